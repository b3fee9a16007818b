//! MLflow's tracking server on this machine, asked about the MLflow runs that a run's script began: they are found by their
//! tag, in all experiments. Its answers are checked before anything of them is used: it keeps what strangers' scripts told it.

use super::{loan::TAG_RUN, provenance::TAG_ATTEMPT, spec::RunId};
use crate::web::client::{self, Client};
use anyhow::{Context as _, Result, bail, ensure};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// Experiments in one answer: MLflow's own default.
const EXPERIMENTS: usize = 1000;

/// Runs in one answer. Each brings the newest value of each of its metrics along, and an answer is bounded.
const RUNS: usize = 50;

/// The most answers to one question: as many as no team has, so that a server that turns in circles is left.
const PAGES: usize = 400;

/// Which run it is, in a URL and on a receipt: both ids are what `plain` takes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrackedId {
    pub experiment: String,
    pub run: String,
}

impl TrackedId {
    /// Its page, below the address of MLflow's pages.
    pub fn link(&self, pages: &str) -> String {
        format!("{}/#/experiments/{}/runs/{}", pages.trim_end_matches('/'), self.experiment, self.run)
    }
}

/// An MLflow run as `runs/search` has it. Times are in milliseconds since 1970, by the clock of the machine that it was on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TrackedRun {
    pub id: TrackedId,
    pub began: u64,
    /// It was never ended.
    pub running: bool,
    /// Within another.
    pub nested: bool,
    /// Which try of the script on its machine began it.
    pub attempt: u32,
    /// When it was last told a number.
    pub last: Option<u64>,
}

/// An id as MLflow makes them: nothing in it means something in a URL, to a terminal or to a file system.
pub fn plain(id: &str) -> bool {
    id.len() <= 64
        && id.starts_with(|c: char| c.is_ascii_alphanumeric())
        && id.chars().all(|c| c.is_ascii_alphanumeric() || "-_".contains(c))
}

/// None: it is not as it should be.
fn tracked(run: &Value) -> Option<TrackedRun> {
    let info = &run["info"];
    let id = |name: &str| info[name].as_str().filter(|id| plain(id)).map(str::to_owned);
    let tags = run["data"]["tags"].as_array();
    let tag = |name: &str| {
        let found = tags?.iter().find(|tag| tag["key"] == name);
        found?["value"].as_str()
    };
    let metrics = run["data"]["metrics"].as_array().into_iter().flatten();
    Some(TrackedRun {
        id: TrackedId { experiment: id("experiment_id")?, run: id("run_id")? },
        began: info["start_time"].as_u64()?,
        running: matches!(info["status"].as_str(), Some("RUNNING" | "SCHEDULED")),
        nested: tag("mlflow.parentRunId").is_some(),
        attempt: tag(TAG_ATTEMPT).and_then(|n| n.parse().ok()).unwrap_or(1),
        last: metrics.filter_map(|metric| metric["timestamp"].as_u64()).max(),
    })
}

pub struct Tracking {
    client: Client,
    /// Its address, past nginx.
    base: String,
}

impl Tracking {
    pub fn new(base: &str) -> Result<Self> {
        Ok(Self { client: client::plain()?, base: base.trim_end_matches('/').to_owned() })
    }

    pub async fn ask(&self, what: &str, question: &Value) -> Result<Value> {
        let url = format!("{}/api/2.0/mlflow/{what}", self.base);
        let answer = self.client.ask("POST", &url, None, Some(serde_json::to_vec(question)?)).await?;
        ensure!(answer.status == 200, "{url} answered {}: {}", answer.status, answer.start());
        serde_json::from_slice(&answer.body).with_context(|| format!("reading the answer of {url}"))
    }

    /// Asks for page after page, and reads what is in each.
    async fn search<T>(
        &self,
        (what, key): (&str, &str),
        mut question: Value,
        read: impl Fn(&Value) -> Option<T>,
    ) -> Result<Vec<T>> {
        let mut all = Vec::new();
        for _ in 0..PAGES {
            let answer = self.ask(what, &question).await?;
            all.extend(answer[key].as_array().into_iter().flatten().filter_map(&read));
            match answer["next_page_token"].as_str() {
                // An empty one is none.
                Some(token) if !token.is_empty() => question["page_token"] = token.into(),
                _ => return Ok(all),
            }
        }
        bail!("{}: {what} does not come to an end after {PAGES} pages", self.base)
    }

    /// All that were not deleted. Nothing in a deleted one can be changed.
    pub async fn experiments(&self) -> Result<Vec<String>> {
        let question = json!({ "max_results": EXPERIMENTS });
        self.search(("experiments/search", "experiments"), question, |experiment| {
            experiment["experiment_id"].as_str().filter(|id| plain(id)).map(str::to_owned)
        })
        .await
    }

    /// The question for a run's MLflow runs in some experiments, the newest first.
    pub fn of_run(run: &RunId, experiments: &[String], most: usize) -> Value {
        // The name of a run has neither quotes nor backslashes in it.
        let filter = format!("tags.`{TAG_RUN}` = '{run}'");
        json!({ "experiment_ids": experiments, "filter": filter, "max_results": most })
    }

    /// All MLflow runs of a run that were not deleted, nested ones too.
    pub async fn runs(&self, run: &RunId) -> Result<Vec<TrackedRun>> {
        let mut all = Vec::new();
        // Each id becomes a variable in a question to the database, which takes some thousands of them.
        for some in self.experiments().await?.chunks(EXPERIMENTS) {
            let question = Self::of_run(run, some, RUNS);
            all.extend(self.search(("runs/search", "runs"), question, tracked).await?);
        }
        Ok(all)
    }

    pub async fn end(&self, run: &str, status: &str, at: u64) -> Result<()> {
        let question = json!({ "run_id": run, "status": status, "end_time": at });
        self.ask("runs/update", &question).await.map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_that_means_something_elsewhere_is_none() {
        for good in ["0", "7", "823964287546183741", "9c0a6d1f3c1b4b0e8f0a4a0d6c1d2e3f", "a-b_c"] {
            assert!(plain(good), "{good}");
        }
        let bad = ["", "-a", "_", "../1", "a/b", "a?b", "a#b", "a b", "a\n", "\u{1b}[2J", "ä", "a%2e"];
        for bad in bad.into_iter().map(str::to_owned).chain([String::from("a").repeat(65)]) {
            assert!(!plain(&bad), "{bad:?}");
        }
    }

    #[test]
    fn a_run_is_read_only_where_it_is_as_it_should_be() {
        let tags =
            json!([{ "key": "mlflow.parentRunId", "value": "p" }, { "key": TAG_ATTEMPT, "value": "2" }]);
        let metrics = json!([{ "key": "a", "timestamp": 7 }, { "key": "b", "timestamp": 9 }, { "key": "c" }]);
        let info = json!({ "run_id": "abc", "experiment_id": "1", "start_time": 5, "status": "RUNNING" });
        let run = json!({ "info": info, "data": { "tags": tags, "metrics": metrics } });
        let id = TrackedId { experiment: "1".into(), run: "abc".into() };
        let expected =
            TrackedRun { id: id.clone(), began: 5, running: true, nested: true, attempt: 2, last: Some(9) };
        assert_eq!(tracked(&run), Some(expected));
        assert_eq!(id.link("https://mlflow.x/"), "https://mlflow.x/#/experiments/1/runs/abc");
        let bare = json!({ "info": { "run_id": "abc", "experiment_id": "1", "start_time": 5, "status": "FINISHED" } });
        let read = tracked(&bare).unwrap();
        assert_eq!((read.running, read.nested, read.attempt, read.last), (false, false, 1, None));
        for (name, value) in [
            ("run_id", json!("../../x")),
            ("run_id", json!(7)),
            ("experiment_id", json!("1/2")),
            ("start_time", json!("soon")),
        ] {
            let mut wrong = bare.clone();
            wrong["info"][name] = value;
            assert_eq!(tracked(&wrong), None, "{wrong}");
        }
    }

    #[test]
    fn fuzz_mlflow_answers_are_read_or_passed_over() {
        let words = [
            "\"run_id\":\"a\"",
            "\"start_time\":1",
            "\"timestamp\":1",
            "\"step\":1",
            "\"tags\":[]",
            "\"metrics\":[]",
        ];
        crate::fuzz::run("mlflow", &words, |bytes| {
            let text = String::from_utf8_lossy(bytes);
            let samples = crate::gpu::metrics::Logged { id: "a".into(), began: 0, ended: None };
            let _ = crate::gpu::metrics::batches(&samples, &text, 1);
            let answer: Value = serde_json::from_slice(bytes)?;
            let runs = answer["runs"].as_array().into_iter().flatten();
            assert!(runs.filter_map(tracked).all(|run| plain(&run.id.run) && plain(&run.id.experiment)));
            let _ = (crate::gpu::metrics::logged(&answer), crate::gpu::pulse::script(&answer));
            Ok(())
        });
    }
}
