//! What came home about the machine's load, told to MLflow: to the runs that the script began there, by their tag; at the
//! end, how it ended. And what those have told it, for who watches. All of it beside the loop, which waits for none of it.

use super::{
    agent::samples::Sample,
    final_status,
    metrics::{batches, logged},
    pulse, runs,
    spec::RunId,
    state::State,
    tracking::Tracking,
};
use crate::{
    host::{
        Host,
        beneath::{Beneath, Rel},
    },
    web::block_on,
};
use anyhow::{Context as _, Result};
use serde_json::Value;
use std::{io::Read as _, path::PathBuf, sync::mpsc::Receiver, time::Duration};
use time::OffsetDateTime;

/// Whoever drives a run has other things to look after.
const PATIENCE: Duration = Duration::from_secs(10);

/// Some thousands of samples of a machine with eight GPUs are a few megabytes. It is written by a machine that is not
/// believed in.
const MOST: u64 = 64 << 20;

/// A script that begins more runs than these at MLflow has the newest told.
const RUNS: usize = 100;

/// Something to be told.
pub enum News {
    /// Something came home.
    Samples,
    /// It is known how the run ended.
    Ended(Box<State>),
}

/// One run's.
pub struct Telling<'a> {
    pub host: &'a Host,
    /// MLflow's, on this machine. None: there is none.
    pub base: Option<String>,
    /// The script itself has MLflow's client measure its machine: not told twice.
    pub measured: bool,
    pub run: RunId,
    /// Where results of all runs come home to.
    pub results: PathBuf,
    /// How many lines MLflow has heard of. A new driver tells all of them again, which changes nothing.
    pub told: u64,
    /// How the run is, in words.
    pub pulse: String,
}

impl Telling<'_> {
    /// Tells until there is nobody any more who has news. What came up while one thing was told is told in one go.
    pub fn tell_all(mut self, news: &Receiver<News>, say: &dyn Fn(&str)) {
        let mut last = String::new();
        let mut complain = |words: String| {
            if last != words {
                say(&words);
                last = words;
            }
        };
        while let Ok(first) = news.recv() {
            let all: Vec<News> = std::iter::once(first).chain(news.try_iter()).collect();
            match self.tell() {
                // For who watches now: nobody reads later how it was every few seconds.
                Ok(()) => drop(runs::put_pulse(self.host, &self.run, &self.pulse)),
                Err(error) => complain(format!("MLflow is not told how busy the machine is: {error:#}")),
            }
            let ended = all.into_iter().find_map(|news| match news {
                News::Ended(state) => Some(state),
                News::Samples => None,
            });
            if let Some(state) = ended
                && let Err(error) = self.tell_end(&state)
            {
                complain(format!(
                    "MLflow is not told yet how it ended; the sweep goes on with that: {error:#}"
                ));
            }
        }
    }

    /// How it ended, if that is to be told.
    pub fn tell_end(&self, state: &State) -> Result<()> {
        final_status::tell(
            self.host,
            self.base.as_deref(),
            state,
            &self.samples()?,
            OffsetDateTime::now_utc(),
        )
    }

    /// Tell what is new.
    pub fn tell(&mut self) -> Result<()> {
        let text = self.samples()?;
        // The last line may be half of one.
        let whole = text.rfind('\n').and_then(|end| text.get(..=end)).unwrap_or_default();
        let (told, count) = (usize::try_from(self.told)?, whole.lines().count());
        if count <= told {
            return Ok(());
        }
        let new: String = whole.split_inclusive('\n').skip(told).collect();
        let script = match self.base.as_ref().filter(|_| !self.measured) {
            Some(base) => block_on(async {
                let told = tokio::time::timeout(PATIENCE, self.send(base, &new)).await;
                told.context("MLflow is slow")?
            })?,
            None => None,
        };
        self.told = count as u64;
        let last = new.lines().last().and_then(|line| serde_json::from_str::<Sample>(line).ok());
        let machine = last.and_then(|sample| pulse::machine(&sample));
        self.pulse = script.into_iter().chain(machine).collect::<Vec<_>>().join(" · ");
        Ok(())
    }

    /// Their directory is a person's: nobody's link is followed there.
    fn samples(&self) -> Result<String> {
        let Some(results) = Beneath::open(self.host, &self.results)? else { return Ok(String::new()) };
        let Some((file, _)) = results.read(&Rel::new(&format!("{}/samples.jsonl", self.run))?)? else {
            return Ok(String::new());
        };
        let mut bytes = Vec::new();
        file.take(MOST).read_to_end(&mut bytes).context("reading samples.jsonl")?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// What MLflow has heard from the script, in words.
    async fn send(&self, base: &str, lines: &str) -> Result<Option<String>> {
        let tracking = Tracking::new(base)?;
        let experiments = tracking.experiments().await?;
        if experiments.is_empty() {
            return Ok(None);
        }
        let question = Tracking::of_run(&self.run, &experiments, RUNS);
        let runs: Value = tracking.ask("runs/search", &question).await?;
        for run in logged(&runs) {
            for batch in batches(&run, lines, self.told) {
                tracking.ask("runs/log-batch", &batch).await?;
            }
        }
        Ok(pulse::script(&runs))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::System;
    use axum::{Json, Router, extract::State as Shared, routing::post};
    use serde_json::json;
    use std::{
        path::Path,
        sync::{Arc, Mutex},
    };

    type Heard = Arc<Mutex<Vec<Value>>>;

    /// As MLflow answers: an experiment with one run in it, which goes on.
    fn mlflow(heard: &Heard) -> (tokio::runtime::Runtime, String) {
        let runs = async |Shared(heard): Shared<Heard>, Json(question): Json<Value>| {
            heard.lock().unwrap().push(question);
            let metrics = json!([{ "key": "loss", "value": 0.5, "step": 3, "timestamp": 6 }]);
            let info = json!({ "run_id": "abc", "start_time": 5 });
            Json(json!({ "runs": [{ "info": info, "data": { "metrics": metrics } }] }))
        };
        let batch = async |Shared(heard): Shared<Heard>, Json(batch): Json<Value>| {
            heard.lock().unwrap().push(batch);
            Json(json!({}))
        };
        let experiments = async || Json(json!({ "experiments": [{ "experiment_id": "7" }] }));
        let router = Router::new()
            .route("/api/2.0/mlflow/experiments/search", post(experiments))
            .route("/api/2.0/mlflow/runs/search", post(runs))
            .route("/api/2.0/mlflow/runs/log-batch", post(batch))
            .with_state(Arc::clone(heard));
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let door = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
        let base = format!("http://{}", door.local_addr().unwrap());
        runtime.spawn(async move { axum::serve(door, router).await });
        (runtime, base)
    }

    #[test]
    fn what_is_new_is_told_once_and_half_a_line_waits() {
        let heard = Heard::default();
        let (_mlflow, base) = mlflow(&heard);
        let dir = tempfile::tempdir().unwrap();
        let host = Host::new(dir.path(), System);
        let (run, results) = (RunId::try_from("r1".to_owned()).unwrap(), PathBuf::from("/results"));
        let base = Some(base);
        let mut telling =
            Telling { host: &host, base, measured: false, run, results, told: 0, pulse: String::new() };
        telling.tell().unwrap();
        assert!(heard.lock().unwrap().is_empty(), "there is nothing to tell yet");

        let line = |at: u64| {
            format!(r#"{{"at":{at},"cpu":50.0,"memory":1,"memory_total":4,"disk":0,"disk_total":0}}"#)
        };
        let write = |text: String| {
            host.write(Path::new("/results/r1/samples.jsonl"), 0o644, text.as_bytes()).unwrap()
        };
        write(format!("{}\n{}", line(6), &line(7)[..9]));
        telling.tell().unwrap();
        telling.tell().unwrap();
        write(format!("{}\n{}\n", line(6), line(7)));
        telling.tell().unwrap();
        assert_eq!(telling.pulse, "step 3 · loss 0.500 · CPU 50 %");
        let heard = heard.lock().unwrap();
        assert_eq!(heard[0]["filter"], "tags.`echoes.run` = 'r1'");
        let steps: Vec<_> = heard.iter().filter_map(|one| one["metrics"][0]["step"].as_u64()).collect();
        assert_eq!(steps, [0, 1], "each once: {heard:?}");
        assert!(heard.iter().filter(|one| one["metrics"].is_array()).all(|batch| batch["run_id"] == "abc"));
    }

    #[test]
    fn a_link_in_the_results_is_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let host = Host::new(dir.path(), System);
        host.write(Path::new("/secret"), 0o600, b"{}\n").unwrap();
        host.make_dir(Path::new("/results/r1")).unwrap();
        host.link(Path::new("/results/r1/samples.jsonl"), Path::new("/secret")).unwrap();
        let run = RunId::try_from("r1".to_owned()).unwrap();
        // Nobody is there to be told: whoever read something would fail.
        let base = Some("http://127.0.0.1:9".into());
        let results = "/results".into();
        Telling { host: &host, base, measured: false, run, results, told: 0, pulse: String::new() }
            .tell()
            .unwrap();
    }
}
