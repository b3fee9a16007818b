//! A question of a run to MLflow: what it names, read strictly, and what it may not say, taken out of it. Pure.

use super::{
    artifact::is_name,
    claim::{Claim, Thing},
    route::{Checked, Refusal},
};
use crate::gpu::{loan::TAG_RUN, spec::RunId, tracking::plain};
use serde_json::{Map, Value};

/// What is asked: ids of the path, fields of the body or of the query, and for which run.
pub struct Question {
    pub run: RunId,
    pub ids: Vec<String>,
    pub fields: Map<String, Value>,
}

pub fn bad<T>(why: impl Into<String>) -> Result<T, Refusal> {
    Err(Refusal::Bad(why.into()))
}

/// protobuf takes a field by two names, `run_id` and `runId`: what could be judged by one and done by the other is refused.
pub fn ensure_field_names(fields: &Map<String, Value>) -> Result<(), Refusal> {
    let good = |name: &str| name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_');
    match fields.keys().find(|name| !good(name)) {
        None => Ok(()),
        Some(name) => {
            bad(format!("a field is called {name:?}: names are those of MLflow's protocol, as in run_id"))
        }
    }
}

/// Whether a tag says whose something is, to whatever reader.
pub fn is_reserved(key: &str) -> bool {
    key.trim().eq_ignore_ascii_case(TAG_RUN)
}

/// Whether a trace's tag says where its data are. MLflow sets these itself, and believes them: it would read and write there.
pub fn is_place(key: &str) -> bool {
    let key = key.trim();
    key == "mlflow.artifactLocation" || key.starts_with("mlflow.trace.")
}

/// What an experiment's tags that begin with `mlflow.` may say: the others are settings of the server's.
const EXPERIMENT_TAGS: [&str; 2] = ["mlflow.note.content", "mlflow.experimentKind"];

pub fn is_setting(key: &str) -> bool {
    key.trim().starts_with("mlflow.") && !EXPERIMENT_TAGS.contains(&key)
}

impl Question {
    /// A field that is a text; none where it is missing, null or empty.
    pub fn text(&self, name: &str) -> Result<Option<String>, Refusal> {
        match self.fields.get(name) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(text)) => Ok(Some(text.clone()).filter(|text| !text.is_empty())),
            Some(_) => bad(format!("{name} is a text")),
        }
    }

    /// A field that is an id, and has to be there.
    pub fn id(&self, name: &str) -> Result<String, Refusal> {
        match self.text(name)? {
            Some(id) if plain(&id) => Ok(id),
            Some(_) => bad(format!("{name} is an id as MLflow makes them")),
            None => bad(format!("{name} is missing")),
        }
    }

    /// The id in the path. A body may repeat it, and may name no other.
    pub fn path_id(&self, name: &str) -> Result<String, Refusal> {
        let id = self.ids.first().cloned().unwrap_or_default();
        match self.text(name)? {
            Some(other) if other != id => bad(format!("{name} is not the one in the path")),
            _ => Ok(id),
        }
    }

    /// A list of ids, with one at least.
    pub fn ids_of(&self, name: &str) -> Result<Vec<String>, Refusal> {
        let Some(Value::Array(all)) = self.fields.get(name) else {
            return bad(format!("{name} is a list of ids"));
        };
        let ids: Option<Vec<_>> =
            all.iter().map(|id| id.as_str().filter(|id| plain(id)).map(str::to_owned)).collect();
        match ids {
            Some(ids) if !ids.is_empty() => Ok(ids),
            _ => bad(format!("{name} is a list of ids, with one at least")),
        }
    }

    /// A list of objects; none where it is missing.
    pub fn list(&mut self, name: &str) -> Result<&mut Vec<Value>, Refusal> {
        let list = self.fields.entry(name).or_insert_with(|| Value::Array(vec![]));
        if list.is_null() {
            *list = Value::Array(vec![]);
        }
        let Value::Array(list) = list else { return bad(format!("{name} is a list")) };
        for one in &*list {
            let Value::Object(fields) = one else { return bad(format!("{name} is a list of objects")) };
            ensure_field_names(fields)?;
        }
        Ok(list)
    }

    /// The ids in a field of a list's objects, each once.
    pub fn ids_in_list(&mut self, name: &str, field: &str) -> Result<Vec<String>, Refusal> {
        let mut ids = std::collections::BTreeSet::new();
        for one in self.list(name)? {
            match &one[field] {
                Value::Null => {}
                Value::String(id) if id.is_empty() => {}
                Value::String(id) if plain(id) => drop(ids.insert(id.clone())),
                _ => return bad(format!("{field} in {name} is an id")),
            }
        }
        Ok(ids.into_iter().collect())
    }

    /// The run that is asked for, by both names that its field has.
    pub fn runs(&self) -> Result<Vec<String>, Refusal> {
        let named = ["run_id", "run_uuid"].into_iter();
        let given: Vec<_> = named.filter(|name| !matches!(self.text(name), Ok(None))).collect();
        if given.is_empty() {
            return bad("run_id is missing");
        }
        given.into_iter().map(|name| self.id(name)).collect()
    }

    pub fn owns_run(&mut self) -> Checked {
        Ok(self.runs()?.into_iter().map(|id| Claim::Owns(Thing::Run(id))).collect())
    }

    pub fn reads_run(&mut self) -> Checked {
        Ok(self.runs()?.into_iter().map(|id| Claim::Reads(Thing::Run(id))).collect())
    }

    pub fn reads_experiments(&mut self) -> Checked {
        let ids = self.ids_of("experiment_ids")?;
        Ok(ids.into_iter().map(|id| Claim::Reads(Thing::Experiment(id))).collect())
    }

    /// Marks what is made as this run's, whatever the question says it is.
    pub fn mark_tags(&mut self) -> Result<(), Refusal> {
        let run = self.run.to_string();
        let tags = self.list("tags")?;
        ensure_tags(tags)?;
        tags.retain(|tag| !tag["key"].as_str().is_some_and(is_reserved));
        tags.push(serde_json::json!({ "key": TAG_RUN, "value": run }));
        Ok(())
    }

    /// Lets nobody else's name be put on what is there.
    pub fn no_reserved_tags(&mut self, name: &str) -> Result<(), Refusal> {
        let run = self.run.to_string();
        let tags = self.list(name)?;
        ensure_tags(tags)?;
        let foreign = |tag: &&Value| tag["key"].as_str().is_some_and(is_reserved) && !says(tag, &run);
        match tags.iter().find(foreign) {
            None => Ok(()),
            Some(_) => Err(Refusal::NotOwn(format!("the tag {TAG_RUN} is set by headquarters"))),
        }
    }

    /// The same of a question with one tag.
    pub fn no_reserved_key(&self) -> Result<(), Refusal> {
        let key = self.text("key")?.unwrap_or_default();
        let same = key == TAG_RUN && self.text("value")?.as_deref() == Some(self.run.as_str());
        if is_reserved(&key) && !same {
            return Err(Refusal::NotOwn(format!("the tag {TAG_RUN} is set by headquarters")));
        }
        Ok(())
    }

    /// Refuses a path that could lead out of the folder that is asked about.
    pub fn stays_inside(&self, name: &str) -> Result<(), Refusal> {
        let Some(path) = self.text(name)? else { return Ok(()) };
        match path.strip_suffix('/').unwrap_or(&path).split('/').all(is_name) {
            true => Ok(()),
            false => bad(format!("{name} is a path below the artifacts")),
        }
    }

    /// The registered model that is asked for.
    pub fn registered(&self) -> Result<String, Refusal> {
        match self.text("name")? {
            Some(name) if name.len() <= 256 && !name.chars().any(char::is_control) => Ok(name),
            Some(_) => bad("name is a text of 256 characters at most"),
            None => bad("name is missing"),
        }
    }

    pub fn owns_registered(&mut self) -> Checked {
        self.no_reserved_key()?;
        Ok(vec![Claim::Owns(Thing::Registered(self.registered()?))])
    }

    pub fn reads_registered(&mut self) -> Checked {
        Ok(vec![Claim::Reads(Thing::Registered(self.registered()?))])
    }

    pub fn drop_places(&mut self) -> Result<(), Refusal> {
        self.list("tags")?.retain(|tag| !tag["key"].as_str().is_some_and(is_place));
        Ok(())
    }

    /// The run that a trace says it is of.
    pub fn owns_source_run(&mut self, name: &str) -> Checked {
        let said = self.list(name)?;
        ensure_tags(said)?;
        let runs = said.iter().filter(|one| one["key"] == SOURCE_RUN).map(|one| one["value"].clone());
        runs.filter_map(|run| owns_named_run(&run)).collect()
    }
}

/// Where a trace's metadata name its run.
pub const SOURCE_RUN: &str = "mlflow.sourceRun";

pub fn owns_named_run(run: &Value) -> Option<Result<Claim, Refusal>> {
    match run.as_str() {
        Some("") => None,
        Some(run) if plain(run) => Some(Ok(Claim::Owns(Thing::Run(run.into())))),
        _ => Some(bad(format!("{SOURCE_RUN} is a run's id"))),
    }
}

fn ensure_tags(tags: &[Value]) -> Result<(), Refusal> {
    let text = |value: &Value| value.is_string() || value.is_null();
    match tags.iter().find(|tag| !text(&tag["key"]) || !text(&tag["value"])) {
        None => Ok(()),
        Some(_) => bad("a tag has a key and a value, which are texts"),
    }
}

fn says(tag: &Value, run: &str) -> bool {
    tag["key"] == TAG_RUN && tag["value"] == run
}
