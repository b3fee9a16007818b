//! Asks MLflow who made what, and remembers it for a while, in bounded memory. Whose something is stands in its tag
//! `echoes.run`, which no run's login can change.

use super::claim::{Claim, Thing};
use crate::{
    gpu::{loan::TAG_RUN, spec::RunId},
    web::hold,
};
use reqwest::Url;
use serde_json::{Value, json};
use std::{
    collections::HashMap,
    hash::Hash,
    sync::Mutex,
    time::{Duration, Instant},
};

/// Things, and pairs of a run and an experiment, that are remembered at once: a few megabytes.
const REMEMBERED: usize = 8192;

/// A person may give something to another run by its tag; so long a run may go on with what was its own.
const FRESH: Duration = Duration::from_secs(300);

/// An answer about one thing. A run's brings the newest of each of its numbers along.
const LONGEST_ANSWER: usize = 32 << 20;

/// A question that is asked before a call goes on.
const PATIENCE: Duration = Duration::from_secs(60);

/// Every run may use it, and its client looks at it before the first run.
const DEFAULT_EXPERIMENT: &str = "0";

/// Which runs' work a run may read: what `[gpu] run_reads` says.
pub use crate::gpu::spec::RunReads;

/// Why a call does not go on, once MLflow was asked.
#[derive(Debug, PartialEq, Eq)]
pub enum Denied {
    /// It is somebody else's.
    NotOwn(Thing),
    /// It is in an experiment that the run has nothing to do with.
    NotReadable(Thing),
    /// Only where runs may read everything.
    ReadsAll,
    /// MLflow has no such thing.
    Missing(Thing),
    /// MLflow did not answer, or not as it should.
    Trouble(String),
}

/// What is known of a thing.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Facts {
    owner: Option<String>,
    experiment: String,
    /// Where its artifacts are, below MLflow's root of them. None: elsewhere, or nowhere.
    folder: Option<String>,
}

pub struct Owners {
    client: reqwest::Client,
    base: Url,
    reads: RunReads,
    things: Mutex<Recent<Thing, Facts>>,
    /// Experiments that a run may read.
    readable: Mutex<Recent<(String, String), ()>>,
    /// Experiments that a run looked up by their name.
    named: Mutex<Recent<(String, String), ()>>,
}

impl Owners {
    pub fn new(client: reqwest::Client, base: Url, reads: RunReads) -> Self {
        Self {
            client,
            base,
            reads,
            things: Mutex::new(Recent::new()),
            readable: Mutex::new(Recent::new()),
            named: Mutex::new(Recent::new()),
        }
    }

    /// Notes that a run looked an experiment up by its name.
    pub fn note_named(&self, run: &RunId, experiment: &str) {
        hold(&self.named).keep((run.to_string(), experiment.to_owned()), ());
    }

    /// Whether all of this is so.
    pub async fn verify(&self, run: &RunId, claims: &[Claim]) -> Result<(), Denied> {
        for claim in claims {
            self.verify_one(run, claim).await?;
        }
        Ok(())
    }

    async fn verify_one(&self, run: &RunId, claim: &Claim) -> Result<(), Denied> {
        let owns = |facts: &Facts| facts.owner.as_deref() == Some(run.as_str());
        match claim {
            Claim::ReadsAll if self.reads == RunReads::All => Ok(()),
            Claim::ReadsAll => Err(Denied::ReadsAll),
            Claim::Owns(thing) => match self.facts(thing).await? {
                Some(facts) if owns(&facts) => Ok(()),
                Some(_) => Err(Denied::NotOwn(thing.clone())),
                None => Err(Denied::Missing(thing.clone())),
            },
            Claim::OwnsOrNew(thing) => match self.facts(thing).await? {
                Some(facts) if !owns(&facts) => Err(Denied::NotOwn(thing.clone())),
                _ => Ok(()),
            },
            Claim::OwnsAt(thing, folder) => match self.facts(thing).await? {
                Some(facts) if owns(&facts) && facts.folder.as_ref() == Some(folder) => Ok(()),
                _ => Err(Denied::NotOwn(thing.clone())),
            },
            Claim::Reads(Thing::Experiment(id)) => self.verify_readable(run, id).await,
            Claim::Reads(thing @ Thing::Registered(_)) => match self.facts(thing).await? {
                Some(facts) if owns(&facts) || self.reads == RunReads::All => Ok(()),
                Some(_) => Err(Denied::ReadsAll),
                None => Err(Denied::Missing(thing.clone())),
            },
            Claim::Reads(thing) => match self.facts(thing).await? {
                Some(facts) if owns(&facts) => Ok(()),
                Some(facts) => self.verify_readable(run, &facts.experiment).await,
                None => Err(Denied::Missing(thing.clone())),
            },
            Claim::ReadsAt(thing, folder) => match self.facts(thing).await? {
                Some(facts) if facts.folder.as_ref() != Some(folder) => {
                    Err(Denied::NotReadable(thing.clone()))
                }
                Some(facts) if owns(&facts) => Ok(()),
                Some(facts) => self.verify_readable(run, &facts.experiment).await,
                None => Err(Denied::NotReadable(thing.clone())),
            },
            Claim::Knows(id) => {
                let named = || hold(&self.named).get(&(run.to_string(), id.clone())).is_some();
                if id == DEFAULT_EXPERIMENT || named() { Ok(()) } else { self.verify_readable(run, id).await }
            }
        }
    }

    /// Whether the run made the experiment, or has a run in it.
    async fn verify_readable(&self, run: &RunId, experiment: &str) -> Result<(), Denied> {
        let pair = (run.to_string(), experiment.to_owned());
        if self.reads == RunReads::All || hold(&self.readable).get(&pair).is_some() {
            return Ok(());
        }
        // The name of a run has neither quotes nor backslashes in it.
        let question = json!({
            "experiment_ids": [experiment],
            "filter": format!("tags.`{TAG_RUN}` = '{run}'"),
            "run_view_type": "ALL",
            "max_results": 1,
        });
        let answer = self.ask("2.0/mlflow/runs/search", &[], Some(&question)).await?;
        let has_run =
            answer.is_some_and(|answer| answer["runs"].as_array().is_some_and(|runs| !runs.is_empty()));
        let thing = Thing::Experiment(experiment.to_owned());
        let made =
            async || Ok(self.facts(&thing).await?.is_some_and(|f| f.owner.as_deref() == Some(run.as_str())));
        if has_run || made().await? {
            hold(&self.readable).keep(pair, ());
            return Ok(());
        }
        Err(Denied::NotReadable(thing))
    }

    /// What MLflow knows of a thing; nothing where it is not there.
    async fn facts(&self, thing: &Thing) -> Result<Option<Facts>, Denied> {
        if let Some(facts) = hold(&self.things).get(thing) {
            return Ok(Some(facts));
        }
        let found = match thing {
            Thing::Run(id) => self.ask("2.0/mlflow/runs/get", &[("run_id", id)], None).await?,
            Thing::Experiment(id) => {
                self.ask("2.0/mlflow/experiments/get", &[("experiment_id", id)], None).await?
            }
            Thing::Model(id) => self.ask(&format!("2.0/mlflow/logged-models/{id}"), &[], None).await?,
            Thing::Registered(name) => {
                self.ask("2.0/mlflow/registered-models/get", &[("name", name)], None).await?
            }
            // MLflow before 3.2 knows the second alone.
            Thing::Trace(id) => match self.ask(&format!("3.0/mlflow/traces/{id}"), &[], None).await? {
                Some(found) => Some(found),
                None => self.ask(&format!("2.0/mlflow/traces/{id}/info"), &[], None).await?,
            },
        };
        let Some(found) = found else { return Ok(None) };
        let facts = read_facts(thing, &found)
            .ok_or_else(|| Denied::Trouble(format!("MLflow's answer about {thing} is not understood")))?;
        hold(&self.things).keep(thing.clone(), facts.clone());
        Ok(Some(facts))
    }

    /// One question to MLflow. None: there is no such thing, or no such question.
    async fn ask(
        &self,
        what: &str,
        query: &[(&str, &str)],
        body: Option<&Value>,
    ) -> Result<Option<Value>, Denied> {
        let mut url = self.base.clone();
        url.set_path(&format!("{}/api/{what}", self.base.path().trim_end_matches('/')));
        if !query.is_empty() {
            url.query_pairs_mut().extend_pairs(query);
        }
        let request = match body {
            Some(body) => self.client.post(url).json(body),
            None => self.client.get(url),
        };
        let trouble = |e: reqwest::Error| Denied::Trouble(format!("MLflow does not answer: {e}"));
        let asked = async {
            let mut answer = request.send().await.map_err(trouble)?;
            let mut bytes = Vec::new();
            while let Some(piece) = answer.chunk().await.map_err(trouble)? {
                bytes.extend_from_slice(&piece);
                if bytes.len() > LONGEST_ANSWER {
                    return Err(Denied::Trouble("MLflow's answer is too long".into()));
                }
            }
            Ok((answer.status().as_u16(), bytes))
        };
        let (status, bytes) = tokio::time::timeout(PATIENCE, asked).await.map_err(|_| {
            Denied::Trouble(format!("MLflow did not answer within {} s", PATIENCE.as_secs()))
        })??;
        match status {
            200 => serde_json::from_slice(&bytes)
                .map(Some)
                .map_err(|_| Denied::Trouble("MLflow's answer is no JSON".into())),
            // What it cannot take for an id, it does not have.
            400 | 404 | 405 => Ok(None),
            status => Err(Denied::Trouble(format!("MLflow answers {status}"))),
        }
    }
}

/// Reads what each version of MLflow answers. None: it is not as it should be.
fn read_facts(thing: &Thing, answer: &Value) -> Option<Facts> {
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let (experiment, tags, place) = match thing {
        Thing::Run(_) => {
            let run = &answer["run"];
            (text(&run["info"]["experiment_id"])?, &run["data"]["tags"], text(&run["info"]["artifact_uri"]))
        }
        Thing::Experiment(_) => {
            let experiment = &answer["experiment"];
            (text(&experiment["experiment_id"])?, &experiment["tags"], None)
        }
        Thing::Model(_) => {
            let info = &answer["model"]["info"];
            (text(&info["experiment_id"])?, &info["tags"], text(&info["artifact_uri"]))
        }
        // Of no experiment.
        Thing::Registered(_) => {
            let model = answer.get("registered_model")?;
            (String::new(), &model["tags"], None)
        }
        Thing::Trace(_) => {
            let info = match &answer["trace"]["trace_info"] {
                Value::Null => &answer["trace_info"],
                info => info,
            };
            let place = &info["trace_location"]["mlflow_experiment"]["experiment_id"];
            let tags = &info["tags"];
            (
                text(place).or_else(|| text(&info["experiment_id"]))?,
                tags,
                tag(tags, "mlflow.artifactLocation"),
            )
        }
    };
    let folder = place.and_then(|place| {
        let path = place.strip_prefix("mlflow-artifacts:/")?;
        // With a host in it, it would be another server's.
        (!path.starts_with('/')).then(|| path.trim_end_matches('/').to_owned())
    });
    Some(Facts { owner: tag(tags, TAG_RUN), experiment, folder })
}

/// A tag's value, of a list of keys and values or of an object.
fn tag(tags: &Value, key: &str) -> Option<String> {
    let value = match tags {
        Value::Array(tags) => &tags.iter().find(|tag| tag["key"] == key)?["value"],
        tags => &tags[key],
    };
    value.as_str().map(str::to_owned)
}

/// What was learnt in the last minutes; the oldest goes when there is too much of it.
struct Recent<K, V>(HashMap<K, (Instant, V)>);

impl<K: Hash + Eq + Clone, V: Clone> Recent<K, V> {
    fn new() -> Self {
        Self(HashMap::new())
    }

    fn get(&mut self, key: &K) -> Option<V> {
        let (since, value) = self.0.get(key)?;
        if since.elapsed() < FRESH {
            return Some(value.clone());
        }
        self.0.remove(key);
        None
    }

    fn keep(&mut self, key: K, value: V) {
        if self.0.len() >= REMEMBERED && !self.0.contains_key(&key) {
            self.0.retain(|_, (since, _)| since.elapsed() < FRESH);
            // An eighth at once, so that looking for the oldest is not paid for each.
            if self.0.len() >= REMEMBERED {
                let mut ages: Vec<_> = self.0.values().map(|(since, _)| *since).collect();
                ages.sort_unstable();
                let youngest = ages[REMEMBERED / 8];
                self.0.retain(|_, (since, _)| *since > youngest);
            }
        }
        self.0.insert(key, (Instant::now(), value));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_version_says_whose_a_thing_is_in_its_own_words() {
        let facts = |owner: &str, folder: Option<&str>| {
            Some(Facts { owner: Some(owner.into()), experiment: "7".into(), folder: folder.map(Into::into) })
        };
        let tags = json!([{"key": "x", "value": "y"}, {"key": TAG_RUN, "value": "s4"}]);
        let run = json!({"run": {"info": {"experiment_id": "7", "artifact_uri": "mlflow-artifacts:/7/r/artifacts"},
                                 "data": {"tags": tags}}});
        assert_eq!(read_facts(&Thing::Run("r".into()), &run), facts("s4", Some("7/r/artifacts")));
        let elsewhere = json!({"run": {"info": {"experiment_id": "7", "artifact_uri": "mlflow-artifacts://h/7/r/artifacts"},
                                       "data": {"tags": tags}}});
        assert_eq!(read_facts(&Thing::Run("r".into()), &elsewhere), facts("s4", None));
        let third = json!({"trace": {"trace_info": {
            "trace_location": {"mlflow_experiment": {"experiment_id": "7"}},
            "tags": {TAG_RUN: "s4", "mlflow.artifactLocation": "mlflow-artifacts:/7/traces/t/artifacts"}}}});
        assert_eq!(read_facts(&Thing::Trace("t".into()), &third), facts("s4", Some("7/traces/t/artifacts")));
        let second = json!({"trace_info": {"experiment_id": "7", "tags": tags}});
        assert_eq!(read_facts(&Thing::Trace("t".into()), &second), facts("s4", None));
        assert_eq!(read_facts(&Thing::Run("r".into()), &json!({"run": {}})), None);
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let mut recent = Recent::new();
        for n in 0..3 * REMEMBERED {
            recent.keep(n, ());
            assert!(recent.0.len() <= REMEMBERED);
            assert!(recent.get(&n).is_some(), "the newest stays");
        }
    }
}
