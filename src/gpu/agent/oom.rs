//! Whether the kernel has ended a process for want of memory, as its own counters have it. A control group's count is of
//! what runs in it alone; the machine's may be of anybody, so it explains no more than a SIGKILL that nobody of ours sent.

use crate::host::Host;
use std::path::{Path, PathBuf};

/// How many were ended so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct OomKills {
    /// In our control group, and so of the script; none where that cannot be read.
    group: Option<u64>,
    machine: Option<u64>,
}

impl OomKills {
    pub fn read(host: &Host) -> Self {
        let text = |path: &Path| host.read_text(path).ok().flatten();
        let groups = text(Path::new("/proc/self/cgroup")).unwrap_or_default();
        let group = places(&groups).iter().find_map(|place| count(&text(place)?));
        let machine = text(Path::new("/proc/vmstat")).as_deref().and_then(count);
        Self { group, machine }
    }

    /// Of the script's processes, how many were ended since `before`; none where that is not known.
    pub fn of_script(self, before: Self) -> Option<u64> {
        Some(self.group?.saturating_sub(before.group?))
    }

    /// Whether memory is why a process of the script's was killed.
    pub fn since(self, before: Self) -> Starved {
        let machine = self.machine.zip(before.machine).is_some_and(|(now, before)| now > before);
        match self.of_script(before) {
            Some(1..) => Starved::Surely,
            None if machine => Starved::Perhaps,
            Some(0) | None => Starved::No,
        }
    }
}

/// Whether memory is why a process was killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Starved {
    No,
    /// The kernel has killed somebody for it, and nobody says whom.
    Perhaps,
    Surely,
}

/// Where the kernel counts for a process, from its /proc/PID/cgroup: cgroups(7). Version 1 first, since where both are the
/// memory is that one's.
fn places(groups: &str) -> Vec<PathBuf> {
    let below =
        |top: &str, path: &str, file: &str| Path::new(top).join(path.trim_start_matches('/')).join(file);
    let mut places = Vec::new();
    for line in groups.lines() {
        let [_, controllers, path] = line.splitn(3, ':').collect::<Vec<_>>()[..] else { continue };
        if controllers.split(',').any(|name| name == "memory") {
            places.insert(0, below("/sys/fs/cgroup/memory", path, "memory.oom_control"));
        } else if controllers.is_empty() {
            places.push(below("/sys/fs/cgroup", path, "memory.events"));
        }
    }
    places
}

/// The `oom_kill` of memory.events, memory.oom_control or vmstat.
fn count(text: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix("oom_kill "))?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::System;

    #[test]
    fn what_the_kernel_counts_is_read_in_each_of_its_ways() {
        let root = tempfile::tempdir().unwrap();
        let host = Host::new(root.path(), System);
        let write = |path: &str, text: &str| host.write(Path::new(path), 0o644, text.as_bytes()).unwrap();
        assert_eq!(OomKills::read(&host), OomKills::default());
        write("/proc/vmstat", "pgfault 9\noom_kill 4\n");
        write("/proc/self/cgroup", "0::/user.slice/session-3.scope\n");
        assert_eq!(OomKills::read(&host), OomKills { group: None, machine: Some(4) });
        let events = "low 0\nhigh 0\nmax 31\noom 2\noom_kill 1\noom_group_kill 0\n";
        write("/sys/fs/cgroup/user.slice/session-3.scope/memory.events", events);
        assert_eq!(OomKills::read(&host).group, Some(1));
        write("/proc/self/cgroup", "9:name=systemd:/a\n4:cpu,memory:/a:b\n0::/a\n");
        let control = "oom_kill_disable 0\nunder_oom 0\noom_kill 7\n";
        write("/sys/fs/cgroup/memory/a:b/memory.oom_control", control);
        assert_eq!(OomKills::read(&host).group, Some(7));
    }

    #[test]
    fn a_group_s_own_count_is_believed_and_the_machine_s_where_there_is_none() {
        let kills = |group, machine| OomKills { group, machine };
        for (before, now, starved, of_script) in [
            (kills(Some(0), Some(3)), kills(Some(0), Some(4)), Starved::No, Some(0)),
            (kills(Some(0), Some(3)), kills(Some(2), Some(5)), Starved::Surely, Some(2)),
            (kills(None, Some(3)), kills(None, Some(4)), Starved::Perhaps, None),
            (kills(None, Some(3)), kills(None, Some(3)), Starved::No, None),
            (kills(None, None), kills(None, None), Starved::No, None),
        ] {
            assert_eq!((now.since(before), now.of_script(before)), (starved, of_script), "{now:?}");
        }
    }
}
