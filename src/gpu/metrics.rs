//! The machine's load as MLflow's own system metrics: under the names that its client uses (`mlflow.system_metrics`),
//! so that they are shown where people look for them. Pure: what to say, not how to say it.

use super::{agent::samples::Sample, tracking::plain};
use serde_json::{Value, json};

/// MLflow takes no more in one request: `POST /api/2.0/mlflow/runs/log-batch`.
const MOST: usize = 1000;

/// A run of MLflow's, from when to when it went: in milliseconds since 1970, by the clock of the machine that it was on, which
/// is also the clock of the samples.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Logged {
    pub id: String,
    pub began: u64,
    /// None: it goes on.
    pub ended: Option<u64>,
}

impl Logged {
    fn was_at(&self, at: u64) -> bool {
        self.began <= at && self.ended.is_none_or(|ended| at <= ended)
    }
}

/// As `runs/search` has them. What is not as it should be is passed over.
pub fn logged(answer: &Value) -> Vec<Logged> {
    let runs = answer["runs"].as_array().into_iter().flatten();
    let read = |run: &Value| {
        let info = &run["info"];
        let id = info["run_id"].as_str().filter(|id| plain(id))?.into();
        Some(Logged {
            id,
            began: info["start_time"].as_u64()?,
            ended: info["end_time"].as_u64().filter(|at| *at > 0),
        })
    };
    runs.filter_map(read).collect()
}

/// The bodies of the requests that tell a run of these samples, the first of which is the `first` of all. Said twice is said
/// once: MLflow knows a number by its name, time and step. A line that cannot be read comes from a machine that is not
/// believed in, and is passed over.
pub fn batches(run: &Logged, lines: &str, first: u64) -> Vec<Value> {
    let samples = lines.lines().map(|line| serde_json::from_str::<Sample>(line).ok());
    let metrics: Vec<Value> = samples
        .zip(first..)
        .filter_map(|(sample, step)| Some((sample.filter(|sample| run.was_at(sample.at))?, step)))
        .flat_map(|(sample, step)| {
            let at = sample.at;
            let number = move |(name, value): (String, f64)| {
                json!({ "key": format!("system/{name}"), "value": value, "timestamp": at, "step": step })
            };
            named(&sample).into_iter().filter(|(_, value)| value.is_finite()).map(number)
        })
        .collect();
    metrics.chunks(MOST).map(|metrics| json!({ "run_id": run.id, "metrics": metrics })).collect()
}

fn named(sample: &Sample) -> Vec<(String, f64)> {
    let share = |part: f64, whole: f64| if whole > 0.0 { 100.0 * part / whole } else { f64::NAN };
    let (memory, disk) = (sample.memory as f64, sample.disk as f64);
    let mut all = vec![
        ("system_memory_usage_megabytes".to_owned(), memory),
        ("system_memory_usage_percentage".into(), share(memory, sample.memory_total as f64)),
        ("disk_usage_megabytes".into(), disk),
        ("disk_usage_percentage".into(), share(disk, sample.disk_total as f64)),
        ("disk_available_megabytes".into(), sample.disk_total.saturating_sub(sample.disk) as f64),
    ];
    all.extend(sample.cpu.map(|cpu| ("cpu_utilization_percentage".into(), cpu)));
    for (n, gpu) in sample.gpus.iter().enumerate().take(64) {
        let used = gpu.memory.zip(gpu.memory_total).map(|(used, all)| share(used, all));
        let known = [
            ("utilization_percentage", gpu.busy),
            ("memory_usage_megabytes", gpu.memory),
            ("memory_usage_percentage", used),
            ("power_usage_watts", gpu.power),
        ];
        let known = known.into_iter().filter_map(|(name, value)| Some((format!("gpu_{n}_{name}"), value?)));
        all.extend(known);
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gpu::agent::samples::Gpu;

    #[test]
    fn samples_are_told_as_mlflow_tells_them_and_no_more_than_it_takes_at_once() {
        let gpu = Gpu { busy: Some(93.0), memory: Some(4.0), memory_total: Some(16.0), ..Gpu::default() };
        let sample = Sample {
            at: 7,
            cpu: Some(50.0),
            memory: 1,
            memory_total: 4,
            gpus: vec![gpu],
            ..Sample::default()
        };
        let line = serde_json::to_string(&sample).unwrap();
        let run = Logged { id: "abc".into(), began: 7, ended: None };
        let one = batches(&run, &format!("{line}\nnonsense\n"), 3);
        assert_eq!(one.len(), 1);
        assert_eq!(one[0]["run_id"], "abc");
        let metrics = one[0]["metrics"].as_array().unwrap();
        let of =
            |name: &str| metrics.iter().find(|metric| metric["key"] == format!("system/{name}")).cloned();
        let busy =
            json!({ "key": "system/gpu_0_utilization_percentage", "value": 93.0, "timestamp": 7, "step": 3 });
        assert_eq!(of("gpu_0_utilization_percentage"), Some(busy));
        assert_eq!(of("gpu_0_memory_usage_percentage").unwrap()["value"], 25.0);
        assert_eq!(of("system_memory_usage_percentage").unwrap()["value"], 25.0);
        assert_eq!(of("gpu_0_power_usage_watts"), None, "what a card does not know is not said");
        assert_eq!(of("disk_usage_percentage"), None, "no share of nothing");
        let many = batches(&run, &format!("{line}\n").repeat(600), 0);
        assert!(
            many.len() > 4 && many.iter().all(|batch| batch["metrics"].as_array().unwrap().len() <= 1000)
        );
        let last = many.last().unwrap()["metrics"].as_array().unwrap().last().unwrap()["step"].clone();
        assert_eq!(last, 599);
        assert_eq!(batches(&run, "", 0), Vec::<Value>::new());
        for elsewhere in [Logged { began: 8, ..run.clone() }, Logged { began: 1, ended: Some(6), ..run }] {
            assert_eq!(
                batches(&elsewhere, &line, 0),
                Vec::<Value>::new(),
                "it was not there yet, or any more"
            );
        }
    }

    #[test]
    fn mlflow_says_which_runs_there_are() {
        let answer = json!({ "runs": [
            { "info": { "run_id": "a", "start_time": 5, "end_time": 9 } },
            { "info": { "run_id": "b", "start_time": 5, "status": "RUNNING" } },
            { "info": { "run_id": "c" } },
            { "info": { "run_id": "../c", "start_time": 5 } },
        ] });
        let run = |id: &str, ended| Logged { id: id.into(), began: 5, ended };
        assert_eq!(logged(&answer), [run("a", Some(9)), run("b", None)]);
        assert_eq!(logged(&json!({})), []);
    }
}
