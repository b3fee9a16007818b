//! How busy the machine is: processors, memory, disk and GPUs, as one line of JSON each time. The kernel's own files
//! are read, and nvidia-smi asked where there is one.

use crate::host::{Cmd, Host};
use serde::{Deserialize, Serialize};
use std::{
    path::Path,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

/// Shares are in percent, amounts in MiB.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Sample {
    /// Milliseconds since 1970: as MLflow counts.
    pub at: u64,
    /// Of all processors.
    pub cpu: Option<f64>,
    pub memory: u64,
    pub memory_total: u64,
    pub disk: u64,
    pub disk_total: u64,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub gpus: Vec<Gpu>,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Gpu {
    pub name: String,
    pub busy: Option<f64>,
    pub memory: Option<f64>,
    pub memory_total: Option<f64>,
    /// Degrees Celsius.
    pub heat: Option<f64>,
    /// Watts.
    pub power: Option<f64>,
}

/// So often at first; the longer a run, the less often, so that there are never more than some thousands.
pub fn interval(since_start: Duration) -> Duration {
    const FIRST: Duration = Duration::from_secs(5);
    FIRST.max(since_start / 1000)
}

#[derive(Default)]
pub struct Sampler {
    /// Processor time so far: busy, all.
    cpu: Option<(u64, u64)>,
    no_gpu: bool,
}

impl Sampler {
    pub fn sample(&mut self, host: &Host, at: &Path) -> Sample {
        let text = |path: &str| host.read_text(Path::new(path)).ok().flatten().unwrap_or_default();
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let cpu = processor(&text("/proc/stat"));
        let share = cpu.zip(self.cpu).and_then(|(now, before)| {
            let all = now.1.checked_sub(before.1).filter(|all| *all > 0)?;
            Some(100.0 * now.0.saturating_sub(before.0) as f64 / all as f64)
        });
        self.cpu = cpu;
        let (memory, memory_total) = memory(&text("/proc/meminfo")).unwrap_or_default();
        let (free, disk_total) = host.room(at).unwrap_or_default();
        let gpus = if self.no_gpu { Vec::new() } else { self.gpus(host) };
        Sample {
            at: u64::try_from(now.as_millis()).unwrap_or_default(),
            cpu: share,
            memory,
            memory_total,
            disk: disk_total.saturating_sub(free) >> 20,
            disk_total: disk_total >> 20,
            gpus,
        }
    }

    fn gpus(&mut self, host: &Host) -> Vec<Gpu> {
        let fields = "name,utilization.gpu,memory.used,memory.total,temperature.gpu,power.draw";
        // It hangs when the driver does.
        let query = [format!("--query-gpu={fields}"), "--format=csv,noheader,nounits".into()];
        let args = ["10".to_owned(), "nvidia-smi".into()].into_iter().chain(query);
        match host.ask(&Cmd::new("timeout", args)) {
            Ok(out) if out.ok() => out.stdout.lines().filter_map(gpu).collect(),
            Ok(out) => {
                // There is none, and there will be none.
                self.no_gpu = matches!(out.code, 126 | 127);
                Vec::new()
            }
            Err(_) => Vec::new(),
        }
    }
}

/// Busy and all, from the first line of /proc/stat: proc(5).
fn processor(stat: &str) -> Option<(u64, u64)> {
    let times: Vec<u64> =
        stat.lines().next()?.split_whitespace().skip(1).filter_map(|n| n.parse().ok()).collect();
    // A guest's time is in its host's already.
    let sum = |times: &[u64]| times.iter().fold(0, |sum: u64, time| sum.saturating_add(*time));
    let (all, idle) = (sum(times.get(..times.len().min(8))?), sum(times.get(3..5)?));
    Some((all.saturating_sub(idle), all))
}

/// Used and all, in MiB.
fn memory(info: &str) -> Option<(u64, u64)> {
    let field = |name: &str| -> Option<u64> {
        info.lines().find_map(|line| line.strip_prefix(name))?.split_whitespace().next()?.parse().ok()
    };
    let (total, free) = (field("MemTotal:")?, field("MemAvailable:")?);
    Some((total.saturating_sub(free) >> 10, total >> 10))
}

/// What a card does not know it calls `[N/A]`.
fn gpu(line: &str) -> Option<Gpu> {
    let mut fields = line.split(',').map(str::trim);
    let name = fields.next().filter(|name| !name.is_empty())?.to_owned();
    let mut number = || fields.next().and_then(|field| field.parse().ok());
    Some(Gpu {
        name,
        busy: number(),
        memory: number(),
        memory_total: number(),
        heat: number(),
        power: number(),
    })
}

/// Reads a text in all the ways that this file has, for fuzzing.
#[cfg(test)]
pub fn fuzzed(text: &str) {
    let _ = (processor(text), memory(text), text.lines().filter_map(gpu).count());
    let _ = serde_json::from_str::<Sample>(text).map(|sample| crate::gpu::pulse::machine(&sample));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::System;

    #[test]
    fn the_kernel_is_read_as_it_writes() {
        let stat = "cpu  100 0 50 800 40 0 10 0 30 0\ncpu0 1 2 3\n";
        assert_eq!(processor(stat), Some((160, 1000)));
        assert_eq!(processor(""), None);
        let info = "MemTotal:  16384000 kB\nMemFree: 1 kB\nMemAvailable:   4096000 kB\n";
        assert_eq!(memory(info), Some((12000, 16000)));
        let line = "Tesla T4, 93, 11021, 15360, 71, [N/A]";
        let (busy, heat) = (Some(93.0), Some(71.0));
        let (memory, memory_total) = (Some(11021.0), Some(15360.0));
        let t4 = Gpu { name: "Tesla T4".into(), busy, memory, memory_total, heat, power: None };
        assert_eq!(gpu(line), Some(t4));
        assert_eq!(gpu(""), None);
    }

    #[test]
    fn this_very_machine_has_memory_and_a_disk() {
        let (host, mut sampler) = (Host::new("/", System), Sampler::default());
        assert_eq!(sampler.sample(&host, Path::new("/")).cpu, None, "one look is no share");
        std::thread::sleep(Duration::from_millis(50));
        let sample = sampler.sample(&host, Path::new("/"));
        assert!(sample.cpu.is_some_and(|cpu| (0.0..=100.0).contains(&cpu)), "{sample:?}");
        assert!(sample.memory > 0 && sample.memory < sample.memory_total);
        assert!(sample.disk_total > 0);
    }

    #[test]
    fn a_week_has_no_more_samples_than_can_be_shown() {
        let (mut at, mut samples) = (Duration::ZERO, 0);
        while at < Duration::from_secs(7 * 86400) {
            at += interval(at);
            samples += 1;
        }
        assert!((5000..8000).contains(&samples), "{samples}");
    }
}
