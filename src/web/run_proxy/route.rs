//! The routes of MLflow's REST API that a run's login may ask for, and what each asks of the things it names. Pure.
//!
//! What is not in the table is refused: nothing is deleted, renamed or restored, no UI call is answered. One table serves the
//! three versions that we ship (3.17, 3.1 and 2.17): MLflow itself answers 404 to what it does not know yet, which its client
//! understands. A call goes on as this file wrote it, never as it came.

use super::{
    artifact::{ArtifactPath, is_name},
    claim::{Claim, Thing},
    question::{
        Question, SOURCE_RUN, bad, ensure_field_names, is_place, is_reserved, is_setting, owns_named_run,
    },
};
use crate::gpu::{loan::TAG_RUN, spec::RunId, tracking::plain};
use serde_json::{Map, Value};

/// A call as it goes on to MLflow.
#[derive(Debug, PartialEq)]
pub struct Call {
    pub path: String,
    pub fields: Map<String, Value>,
    pub claims: Vec<Claim>,
    /// Its answer names an experiment, about which the run may ask from then on.
    pub names_experiment: bool,
}

/// Why a call does not go on.
#[derive(Debug, PartialEq)]
pub enum Refusal {
    /// Not a call that a run's login may make.
    Unknown,
    /// May be made, but not so.
    Bad(String),
    /// Belongs to somebody else; what the sentence names.
    NotOwn(String),
}

pub type Checked = Result<Vec<Claim>, Refusal>;

struct Route {
    method: &'static str,
    /// Below `/api/`. `*` is an id.
    path: &'static str,
    /// Says what has to be true, and takes out of the question what a run may not say.
    check: fn(&mut Question) -> Checked,
}

const fn get(path: &'static str, check: fn(&mut Question) -> Checked) -> Route {
    Route { method: "GET", path, check }
}

const fn post(path: &'static str, check: fn(&mut Question) -> Checked) -> Route {
    Route { method: "POST", path, check }
}

const fn patch(path: &'static str, check: fn(&mut Question) -> Checked) -> Route {
    Route { method: "PATCH", path, check }
}

const NAMES_EXPERIMENT: [&str; 2] = ["2.0/mlflow/experiments/get-by-name", "2.0/mlflow/experiments/create"];

const ROUTES: &[Route] = &[
    get("3.0/mlflow/server-info", |_| Ok(vec![])),
    get("2.0/mlflow/experiments/get-by-name", |_| Ok(vec![])),
    get("2.0/mlflow/experiments/get", |q| Ok(vec![Claim::Knows(q.id("experiment_id")?)])),
    get("2.0/mlflow/experiments/search", |_| Ok(vec![Claim::ReadsAll])),
    post("2.0/mlflow/experiments/search", |_| Ok(vec![Claim::ReadsAll])),
    post("2.0/mlflow/experiments/create", create_experiment),
    post("2.0/mlflow/experiments/set-experiment-tag", |q| {
        q.no_reserved_key()?;
        if q.text("key")?.is_some_and(|key| is_setting(&key)) {
            return Err(Refusal::NotOwn("this tag of an experiment is for people to set".into()));
        }
        Ok(vec![Claim::Owns(Thing::Experiment(q.id("experiment_id")?))])
    }),
    post("2.0/mlflow/runs/create", |q| {
        q.mark_tags()?;
        Ok(vec![])
    }),
    post("2.0/mlflow/runs/update", Question::owns_run),
    post("2.0/mlflow/runs/log-metric", |q| {
        let models = q.text("model_id")?.into_iter().map(|id| Claim::Owns(Thing::Model(id)));
        Ok(q.owns_run()?.into_iter().chain(models).collect())
    }),
    post("2.0/mlflow/runs/log-batch", log_batch),
    post("2.0/mlflow/runs/log-parameter", Question::owns_run),
    post("2.0/mlflow/runs/set-tag", |q| {
        q.no_reserved_key()?;
        q.owns_run()
    }),
    post("2.0/mlflow/runs/log-model", Question::owns_run),
    post("2.0/mlflow/runs/log-inputs", |q| {
        let models =
            q.ids_in_list("models", "model_id")?.into_iter().map(|id| Claim::Reads(Thing::Model(id)));
        Ok(q.owns_run()?.into_iter().chain(models).collect())
    }),
    post("2.0/mlflow/runs/outputs", |q| {
        let models = q.ids_in_list("models", "model_id")?.into_iter().map(|id| Claim::Owns(Thing::Model(id)));
        Ok(q.owns_run()?.into_iter().chain(models).collect())
    }),
    get("2.0/mlflow/runs/get", Question::reads_run),
    post("2.0/mlflow/runs/search", Question::reads_experiments),
    get("2.0/mlflow/metrics/get-history", Question::reads_run),
    get("2.0/mlflow/metrics/get-history-bulk-interval", |q| {
        Ok(q.ids_of("run_ids")?.into_iter().map(|id| Claim::Reads(Thing::Run(id))).collect())
    }),
    get("2.0/mlflow/artifacts/list", |q| {
        q.stays_inside("path")?;
        q.reads_run()
    }),
    // Models that are logged: 3.0 and later.
    post("2.0/mlflow/logged-models", |q| {
        q.mark_tags()?;
        Ok(q.text("source_run_id")?.into_iter().map(|id| Claim::Owns(Thing::Run(id))).collect())
    }),
    post("2.0/mlflow/logged-models/search", Question::reads_experiments),
    get("2.0/mlflow/logged-models/*", |q| Ok(vec![Claim::Reads(Thing::Model(q.path_id("model_id")?))])),
    patch("2.0/mlflow/logged-models/*", |q| Ok(vec![Claim::Owns(Thing::Model(q.path_id("model_id")?))])),
    post("2.0/mlflow/logged-models/*/params", |q| {
        Ok(vec![Claim::Owns(Thing::Model(q.path_id("model_id")?))])
    }),
    patch("2.0/mlflow/logged-models/*/tags", |q| {
        q.no_reserved_tags("tags")?;
        Ok(vec![Claim::Owns(Thing::Model(q.path_id("model_id")?))])
    }),
    get("2.0/mlflow/logged-models/*/artifacts/directories", |q| {
        q.stays_inside("artifact_directory_path")?;
        Ok(vec![Claim::Reads(Thing::Model(q.path_id("model_id")?))])
    }),
    // Traces, as clients before 3.0 begin and end them, and as those since send them.
    post("2.0/mlflow/traces", |q| {
        q.mark_tags()?;
        q.drop_places()?;
        q.owns_source_run("request_metadata")
    }),
    patch("2.0/mlflow/traces/*", |q| {
        q.no_reserved_tags("tags")?;
        q.drop_places()?;
        let trace = Claim::Owns(Thing::Trace(q.path_id("request_id")?));
        Ok([trace].into_iter().chain(q.owns_source_run("request_metadata")?).collect())
    }),
    patch("2.0/mlflow/traces/*/tags", set_trace_tag),
    get("2.0/mlflow/traces/*/info", |q| Ok(vec![Claim::Reads(Thing::Trace(q.path_id("request_id")?))])),
    get("2.0/mlflow/traces", Question::reads_experiments),
    post("3.0/mlflow/traces", start_trace),
    post("3.0/mlflow/traces/search", search_traces),
    get("3.0/mlflow/traces/get", |q| Ok(vec![Claim::Reads(Thing::Trace(q.id("trace_id")?))])),
    get("3.0/mlflow/traces/*", |q| Ok(vec![Claim::Reads(Thing::Trace(q.path_id("trace_id")?))])),
    patch("3.0/mlflow/traces/*/tags", set_trace_tag),
    // Registered models: its own; to read, others' where runs may read everything.
    post("2.0/mlflow/registered-models/create", |q| {
        q.registered()?;
        q.mark_tags()?;
        Ok(vec![])
    }),
    get("2.0/mlflow/registered-models/get", Question::reads_registered),
    get("2.0/mlflow/registered-models/alias", Question::reads_registered),
    get("2.0/mlflow/registered-models/get-latest-versions", Question::reads_registered),
    post("2.0/mlflow/registered-models/get-latest-versions", Question::reads_registered),
    get("2.0/mlflow/registered-models/search", |_| Ok(vec![Claim::ReadsAll])),
    post("2.0/mlflow/registered-models/set-tag", Question::owns_registered),
    post("2.0/mlflow/registered-models/alias", Question::owns_registered),
    patch("2.0/mlflow/registered-models/update", Question::owns_registered),
    post("2.0/mlflow/model-versions/create", create_version),
    post("2.0/mlflow/model-versions/set-tag", Question::owns_registered),
    patch("2.0/mlflow/model-versions/update", Question::owns_registered),
    get("2.0/mlflow/model-versions/get", Question::reads_registered),
    get("2.0/mlflow/model-versions/get-download-uri", Question::reads_registered),
    get("2.0/mlflow/model-versions/search", |_| Ok(vec![Claim::ReadsAll])),
];

/// A route that was found for a request, before its body is read.
pub struct Found(&'static Route, Vec<String>);

/// Looks up a request. Only the one spelling of a path that MLflow's clients use is known.
pub fn find(method: &str, path: &str) -> Option<Found> {
    let rest = path.strip_prefix("/api/")?;
    let given: Vec<&str> = rest.split('/').collect();
    ROUTES.iter().filter(|route| route.method == method).find_map(|route| {
        let wanted: Vec<&str> = route.path.split('/').collect();
        let same = wanted.len() == given.len()
            && wanted.iter().zip(&given).all(|(w, g)| w == g || *w == "*" && plain(g));
        let ids = wanted.iter().zip(&given).filter(|(w, _)| **w == "*").map(|(_, g)| (*g).to_owned());
        same.then(|| Found(route, ids.collect()))
    })
}

impl Found {
    /// Whether the question is in a body; else it is in the query.
    pub fn has_body(&self) -> bool {
        self.0.method != "GET"
    }

    /// Judges what is asked, and writes the call that goes on.
    pub fn check(&self, run: &RunId, fields: Map<String, Value>) -> Result<Call, Refusal> {
        ensure_field_names(&fields)?;
        let mut question = Question { run: run.clone(), ids: self.1.clone(), fields };
        let claims = (self.0.check)(&mut question)?;
        let mut ids = self.1.iter();
        let parts = self.0.path.split('/').map(|part| match part {
            "*" => ids.next().map_or("", String::as_str),
            part => part,
        });
        let path = format!("/api/{}", parts.collect::<Vec<_>>().join("/"));
        let names_experiment = NAMES_EXPERIMENT.contains(&self.0.path);
        Ok(Call { path, fields: question.fields, claims, names_experiment })
    }
}

fn create_experiment(q: &mut Question) -> Checked {
    if q.text("artifact_location")?.is_some() {
        return Err(Refusal::NotOwn("where an experiment's artifacts are is for people to say".into()));
    }
    q.list("tags")?.retain(|tag| !tag["key"].as_str().is_some_and(is_setting));
    q.mark_tags()?;
    Ok(vec![])
}

/// A version of its own registered model, of what it logged itself: MLflow reads what a version names as its source.
fn create_version(q: &mut Question) -> Checked {
    q.no_reserved_tags("tags")?;
    let mut claims = q.owns_registered()?;
    claims.push(source(&q.text("source")?.unwrap_or_default())?);
    claims.extend(q.text("run_id")?.map(|id| Claim::Owns(Thing::Run(id))));
    claims.extend(q.text("model_id")?.map(|id| Claim::Owns(Thing::Model(id))));
    Ok(claims)
}

/// Reads where a version's files are: `runs:/RUN/PATH`, `models:/MODEL`, or a path of an artifact.
fn source(uri: &str) -> Result<Claim, Refusal> {
    let foreign = || Refusal::NotOwn("a version's source is what this run logged".into());
    let (scheme, path) = uri.split_once(":/").filter(|_| !uri.contains(['?', '#'])).ok_or_else(foreign)?;
    match (scheme, path.split_once('/')) {
        ("models", None) if plain(path) => Ok(Claim::Owns(Thing::Model(path.into()))),
        ("runs", Some((id, path))) if plain(id) && path.split('/').all(is_name) => {
            Ok(Claim::Owns(Thing::Run(id.into())))
        }
        ("mlflow-artifacts", Some(_)) => {
            let path = ArtifactPath::from_text(path)?;
            Ok(Claim::OwnsAt(path.thing.clone(), path.folder()))
        }
        _ => Err(foreign()),
    }
}

fn log_batch(q: &mut Question) -> Checked {
    q.no_reserved_tags("tags")?;
    let mut claims = q.owns_run()?;
    claims.extend(q.ids_in_list("metrics", "run_id")?.into_iter().map(|id| Claim::Owns(Thing::Run(id))));
    claims.extend(q.ids_in_list("metrics", "model_id")?.into_iter().map(|id| Claim::Owns(Thing::Model(id))));
    Ok(claims)
}

fn set_trace_tag(q: &mut Question) -> Checked {
    q.no_reserved_key()?;
    if let Some(key) = q.text("key")?.filter(|key| is_place(key)) {
        return Err(Refusal::NotOwn(format!("the tag {key} is set by MLflow")));
    }
    for name in ["request_id", "trace_id"] {
        q.path_id(name)?;
    }
    Ok(vec![Claim::Owns(Thing::Trace(q.path_id("trace_id")?))])
}

/// A trace as a whole, whose id its client chose: one that is there already is changed.
fn start_trace(q: &mut Question) -> Checked {
    let run = q.run.to_string();
    let Some(Value::Object(trace)) = q.fields.get_mut("trace") else { return bad("trace is missing") };
    ensure_field_names(trace)?;
    let Some(Value::Object(info)) = trace.get_mut("trace_info") else { return bad("trace_info is missing") };
    ensure_field_names(info)?;
    let id = info.get("trace_id").and_then(Value::as_str).filter(|id| plain(id)).map(str::to_owned);
    let Some(id) = id else { return bad("trace_id is an id as MLflow makes them") };
    let mut claims = vec![Claim::OwnsOrNew(Thing::Trace(id.clone()))];
    match info.get("trace_metadata") {
        None | Some(Value::Null) => {}
        Some(Value::Object(said)) => {
            if let Some(claim) = said.get(SOURCE_RUN).and_then(owns_named_run) {
                claims.push(claim?);
            }
        }
        Some(_) => return bad("trace_metadata is an object"),
    }
    match info.get("assessments") {
        None | Some(Value::Null) => {}
        Some(Value::Array(all)) => {
            for one in all {
                let Value::Object(one) = one else { return bad("assessments are objects") };
                ensure_field_names(one)?;
                if one.get("trace_id").is_some_and(|of| *of != *id) {
                    return bad("an assessment is of another trace");
                }
            }
        }
        Some(_) => return bad("assessments is a list"),
    }
    if info.get("tags").is_none_or(Value::is_null) {
        info.insert("tags".into(), Value::Object(Map::new()));
    }
    let Some(Value::Object(tags)) = info.get_mut("tags") else { return bad("tags is an object") };
    tags.retain(|key, _| !is_reserved(key) && !is_place(key));
    tags.insert(TAG_RUN.into(), run.into());
    Ok(claims)
}

fn search_traces(q: &mut Question) -> Checked {
    let mut claims = Vec::new();
    for place in q.list("locations")? {
        let Some(Value::Object(experiment)) = place.get("mlflow_experiment") else {
            return bad("a location is an experiment");
        };
        ensure_field_names(experiment)?;
        let id = experiment.get("experiment_id").and_then(Value::as_str).filter(|id| plain(id));
        let Some(id) = id else { return bad("experiment_id is an id as MLflow makes them") };
        claims.push(Claim::Reads(Thing::Experiment(id.into())));
    }
    if claims.is_empty() { bad("locations are missing") } else { Ok(claims) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn run() -> RunId {
        "s4".parse().unwrap()
    }

    fn check(method: &str, path: &str, fields: Value) -> Result<Call, Refusal> {
        let Value::Object(fields) = fields else { panic!("{fields}") };
        find(method, path).ok_or(Refusal::Unknown)?.check(&run(), fields)
    }

    const RUNS: &str = "/api/2.0/mlflow/runs";

    #[test]
    fn no_route_deletes_renames_or_restores() {
        for route in ROUTES {
            assert!(["GET", "POST", "PATCH"].contains(&route.method), "{}", route.path);
            for word in ["delete", "restore", "rename", "transition", "ajax", "graphql", "gateway", "jobs"] {
                assert!(!route.path.contains(word), "{} {}", route.method, route.path);
            }
        }
    }

    #[test]
    fn what_is_made_is_marked_and_no_mark_is_taken_from_a_client() {
        let call = check("POST", &format!("{RUNS}/create"), json!({ "experiment_id": "1" })).unwrap();
        assert_eq!(call.fields["tags"], json!([{ "key": "echoes.run", "value": "s4" }]));
        let said = json!({ "tags": [{ "key": "echoes.run", "value": "x" }, { "key": "a", "value": "b" },
                                    { "key": " ECHOES.run", "value": "x" }] });
        let call = check("POST", &format!("{RUNS}/create"), said).unwrap();
        let marked = json!([{ "key": "a", "value": "b" }, { "key": "echoes.run", "value": "s4" }]);
        assert_eq!(call.fields["tags"], marked);
        let trace = json!({ "trace": { "trace_info": { "trace_id": "tr-1", "tags": { "echoes.run": "x", "a": "b",
            "mlflow.artifactLocation": "file:///", "mlflow.trace.archiveLocation": "file:///",
            "mlflow.trace.spansLocation": "ARCHIVE_REPO" } } } });
        let call = check("POST", "/api/3.0/mlflow/traces", trace).unwrap();
        assert_eq!(call.fields["trace"]["trace_info"]["tags"], json!({ "a": "b", "echoes.run": "s4" }));
        assert_eq!(call.claims, [Claim::OwnsOrNew(Thing::Trace("tr-1".into()))]);
    }

    #[test]
    fn everything_that_a_question_names_has_to_be_so() {
        let owns = |id: &str| Claim::Owns(Thing::Run(id.into()));
        let (a, b) = ("a".repeat(32), "b".repeat(32));
        let batch = json!({ "run_id": a, "metrics": [{ "key": "k", "model_id": "m-1" }, { "model_id": "m-1" },
                            { "run_id": b }, { "model_id": "" }, { "model_id": null }] });
        let call = check("POST", &format!("{RUNS}/log-batch"), batch).unwrap();
        assert_eq!(call.claims, [owns(&a), owns(&b), Claim::Owns(Thing::Model("m-1".into()))]);
        let both = json!({ "run_id": a, "run_uuid": b });
        assert_eq!(check("POST", &format!("{RUNS}/update"), both).unwrap().claims, [owns(&a), owns(&b)]);
        let call = check("PATCH", "/api/2.0/mlflow/logged-models/m-1", json!({ "model_id": "m-1" })).unwrap();
        assert_eq!(call.claims, [Claim::Owns(Thing::Model("m-1".into()))]);
        assert_eq!(call.path, "/api/2.0/mlflow/logged-models/m-1");
        let other = check("PATCH", "/api/2.0/mlflow/logged-models/m-1", json!({ "model_id": "m-2" }));
        assert!(matches!(other, Err(Refusal::Bad(_))), "{other:?}");
    }

    #[test]
    fn what_could_be_read_in_two_ways_is_refused() {
        let id = "a".repeat(32);
        let table = [
            json!({ "runId": id }),
            json!({ "run_id": id, "runUuid": id }),
            json!({ "run_id": id, "Run_id": id }),
            json!({ "run_id": id, "[x.y]": 1 }),
            json!({ "run_id": [id] }),
            json!({ "run_id": { "a": id } }),
            json!({ "run_id": 7 }),
            json!({ "run_id": "../x" }),
            json!({ "run_id": format!("{id}' OR 1") }),
            json!({ "run_id": "" }),
            json!({}),
        ];
        for fields in table {
            let refused = check("POST", &format!("{RUNS}/update"), fields.clone());
            assert!(matches!(refused, Err(Refusal::Bad(_))), "{fields}: {refused:?}");
        }
        let tags = [
            json!({}),
            json!([1]),
            json!([[]]),
            json!([{ "key": 1 }]),
            json!([{ "key": "echoes.run", "value": [] }]),
            json!([{ "Key": "x" }]),
        ];
        for tags in tags {
            let refused = check("POST", &format!("{RUNS}/create"), json!({ "tags": tags.clone() }));
            assert!(matches!(refused, Err(Refusal::Bad(_))), "{tags}: {refused:?}");
        }
    }

    #[test]
    fn a_version_of_a_model_is_of_what_the_run_logged() {
        let id = "a".repeat(32);
        assert_eq!(source(&format!("runs:/{id}/model")), Ok(Claim::Owns(Thing::Run(id.clone()))));
        assert_eq!(source("models:/m-1"), Ok(Claim::Owns(Thing::Model("m-1".into()))));
        let place = Claim::OwnsAt(Thing::Run(id.clone()), format!("1/{id}/artifacts"));
        assert_eq!(source(&format!("mlflow-artifacts:/1/{id}/artifacts/model")), Ok(place));
        for foreign in [
            "",
            "/etc",
            "file:///etc",
            "http://h/x",
            "models:/teams/1",
            "models:/teams@best",
            "runs:/../x",
            &format!("runs:/{id}"),
            &format!("runs:/{id}/../x"),
            &format!("runs:/{id}/%2e%2e/x"),
            &format!("runs:/{id}/x?a"),
            &format!("runs://h@s/{id}/x"),
            &format!("mlflow-artifacts://h/1/{id}/artifacts/x"),
            &format!("mlflow-artifacts:/1/{id}/artifacts/../x"),
            "mlflow-artifacts:/1",
        ] {
            assert!(source(foreign).is_err(), "{foreign}");
        }
    }

    #[test]
    fn a_folder_that_is_listed_is_in_its_runs_artifacts() {
        let list = |path: &str| {
            let fields = json!({ "run_id": "a".repeat(32), "path": path });
            check("GET", "/api/2.0/mlflow/artifacts/list", fields)
        };
        for inside in ["", "model", "model/ü & x", "model/"] {
            assert!(list(inside).is_ok(), "{inside}");
        }
        for outside in ["..", "a/../..", "/etc", "a//b", "a\\..\\b", "%2e%2e", "a/%252e%252e/b", "./a", "a\0"]
        {
            assert!(matches!(list(outside), Err(Refusal::Bad(_))), "{outside}");
        }
    }

    #[test]
    fn one_spelling_of_a_path_is_known() {
        assert!(find("POST", "/api/2.0/mlflow/runs/create").is_some());
        for (method, path) in [
            ("GET", "/api/2.0/mlflow/runs/create"),
            ("POST", "/api/2.0/mlflow/runs/create/"),
            ("POST", "//api/2.0/mlflow/runs/create"),
            ("POST", "/api//2.0/mlflow/runs/create"),
            ("POST", "/api/2.0/mlflow/runs/../runs/create"),
            ("POST", "/api/2.0/mlflow/runs/%63reate"),
            ("POST", "/ajax-api/2.0/mlflow/runs/create"),
            ("POST", "/api/2.0/mlflow/runs/delete"),
            ("GET", "/api/2.0/mlflow/logged-models/.."),
            ("GET", "/api/2.0/mlflow/logged-models/a%2fb"),
            ("GET", "/api/2.0/mlflow/logged-models/"),
            ("DELETE", "/api/2.0/mlflow/logged-models/m-1"),
            ("TRACE", "/api/2.0/mlflow/runs/get"),
        ] {
            assert!(find(method, path).is_none(), "{method} {path}");
        }
    }
}
