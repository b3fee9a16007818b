//! What the login of a run tries at somebody else's work.

use crate::Site;
use serde_json::{Value, json};

const RUN: &str = "run-s4";

/// Each is refused, and changes nothing.
pub fn table(site: &Site, own: &Value, theirs: &Value) {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let (mine, my_experiment) = (text(&own["runs"][0]), text(&own["experiment"]));
    let (run, experiment, empty) =
        (text(&theirs["run"]), text(&theirs["experiment"]), text(&theirs["empty"]));
    let model = text(&theirs["model"]);
    let trace = text(&theirs["trace"]);
    let before = snapshot(site, theirs);
    let v2 = |what: &str| format!("/api/2.0/mlflow/{what}");
    let post = |what: &str, body: Value| ("POST", v2(what), Some(body));
    let get = |what: &str| ("GET", v2(what), None);
    let at = |what: &str| format!("/api/2.0/mlflow-artifacts/artifacts{what}");
    let version =
        |source: String| post("model-versions/create", json!({ "name": "own-model", "source": source }));
    let table = vec![
        // Another's experiments.
        get("experiments/search?max_results=100"),
        post("experiments/search", json!({ "max_results": 100 })),
        get(&format!("experiments/get?experiment_id={experiment}")),
        get(&format!("experiments/get?experiment_id={my_experiment}&experiment_id={experiment}")),
        post("experiments/delete", json!({ "experiment_id": experiment })),
        post("experiments/delete", json!({ "experiment_id": my_experiment })),
        post("experiments/update", json!({ "experiment_id": experiment, "new_name": "x" })),
        post("experiments/restore", json!({ "experiment_id": experiment })),
        post(
            "experiments/set-experiment-tag",
            json!({ "experiment_id": experiment, "key": "a", "value": "b" }),
        ),
        post("experiments/create", json!({ "name": "x", "artifact_location": "mlflow-artifacts:/1" })),
        post("experiments/create", json!({ "name": "x", "artifactLocation": "mlflow-artifacts:/1" })),
        // Another's runs.
        get(&format!("runs/get?run_id={run}")),
        get(&format!("runs/get?run_uuid={run}")),
        get(&format!("runs/get?run_id={mine}&run_uuid={run}")),
        get(&format!("runs/get?run_id={mine}&runId={run}")),
        post("runs/search", json!({ "experiment_ids": [experiment] })),
        post("runs/search", json!({ "experiment_ids": [my_experiment, experiment] })),
        post("runs/search", json!({ "experiment_ids": [my_experiment], "experimentIds": [experiment] })),
        post("runs/search", json!({ "experiment_ids": [] })),
        post("runs/search", json!({})),
        post("runs/update", json!({ "run_id": run, "status": "KILLED" })),
        post("runs/update", json!({ "run_uuid": run, "status": "KILLED" })),
        post("runs/update", json!({ "run_id": mine, "run_uuid": run, "status": "KILLED" })),
        post("runs/update", json!({ "run_id": mine, "runId": run, "status": "KILLED" })),
        post("runs/update", json!({ "run_id": "", "run_uuid": run, "status": "KILLED" })),
        post("runs/update", json!({ "run_id": [run], "status": "KILLED" })),
        post("runs/delete", json!({ "run_id": run })),
        post("runs/delete", json!({ "run_id": mine })),
        post("runs/restore", json!({ "run_id": run })),
        post("runs/log-metric", json!({ "run_id": run, "key": "loss", "value": 9, "timestamp": 1 })),
        post("runs/log-parameter", json!({ "run_id": run, "key": "p", "value": "9" })),
        post("runs/log-batch", json!({ "run_id": run, "tags": [{ "key": "a", "value": "b" }] })),
        post("runs/set-tag", json!({ "run_id": run, "key": "a", "value": "b" })),
        post("runs/set-tag", json!({ "run_id": mine, "key": "echoes.run", "value": "other" })),
        post("runs/set-tag", json!({ "run_id": mine, "key": "Echoes.Run ", "value": "other" })),
        post(
            "runs/log-batch",
            json!({ "run_id": mine, "tags": [{ "key": "echoes.run", "value": "other" }] }),
        ),
        post("runs/delete-tag", json!({ "run_id": mine, "key": "echoes.run" })),
        post("runs/delete-tag", json!({ "run_id": run, "key": "mlflow.user" })),
        post("runs/log-model", json!({ "run_id": run, "model_json": "{}" })),
        post("runs/log-inputs", json!({ "run_id": run, "datasets": [] })),
        get(&format!("metrics/get-history?run_id={run}&metric_key=loss")),
        get(&format!(
            "metrics/get-history-bulk-interval?run_ids={mine}&run_ids={run}&metric_key=loss&max_results=5"
        )),
        get(&format!("artifacts/list?run_id={run}")),
        ("GET", format!("/get-artifact?run_uuid={run}&path=weights.bin"), None),
        ("GET", format!("/ajax-api/2.0/mlflow/metrics/get-history-bulk?run_id={run}&metric_key=loss"), None),
        ("GET", format!("/ajax-api/2.0/mlflow/runs/get?run_id={run}"), None),
        ("POST", format!("/ajax-api/2.0/mlflow/upload-artifact?run_uuid={run}&path=x"), Some(json!({}))),
        ("POST", "/graphql".into(), Some(json!({ "query": "{__typename}" }))),
        ("POST", "/ajax-api/2.0/mlflow/graphql".into(), Some(json!({ "query": "{__typename}" }))),
        // Another's artifacts.
        ("GET", at(""), None),
        ("GET", at("?path=."), None),
        ("GET", at(&format!("?path={experiment}")), None),
        ("GET", at(&format!("?path={experiment}/{run}/artifacts")), None),
        (
            "GET",
            at(&format!("?path={my_experiment}/{mine}/artifacts&path={experiment}/{run}/artifacts")),
            None,
        ),
        ("GET", at(&format!("/{experiment}/{run}/artifacts/weights.bin")), None),
        ("PUT", at(&format!("/{experiment}/{run}/artifacts/weights.bin")), Some(json!({}))),
        ("PUT", at(&format!("/{my_experiment}/{run}/artifacts/weights.bin")), Some(json!({}))),
        ("PUT", at(&format!("/{experiment}/{mine}/artifacts/weights.bin")), Some(json!({}))),
        ("PUT", at(&format!("/{my_experiment}/{mine}/x")), Some(json!({}))),
        ("PUT", at("/x"), Some(json!({}))),
        ("DELETE", at(&format!("/{experiment}")), None),
        ("DELETE", at(&format!("/{experiment}/{run}/artifacts/weights.bin")), None),
        ("DELETE", at(&format!("/{my_experiment}/{mine}/artifacts/big.bin")), None),
        (
            "POST",
            "/api/2.0/mlflow/artifacts/presigned-upload-url".into(),
            Some(json!({ "run_id": run, "path": "x" })),
        ),
        // The registry.
        get("registered-models/search?max_results=10"),
        get("registered-models/get?name=teams-model"),
        get("model-versions/get-download-uri?name=teams-model&version=1"),
        post("registered-models/create", json!({ "name": "teams-model/x\n" })),
        ("PATCH", v2("registered-models/update"), Some(json!({ "name": "teams-model", "description": "x" }))),
        post("registered-models/rename", json!({ "name": "teams-model", "new_name": "x" })),
        ("DELETE", v2("registered-models/delete"), Some(json!({ "name": "teams-model" }))),
        post("registered-models/alias", json!({ "name": "teams-model", "alias": "best", "version": "1" })),
        post("registered-models/set-tag", json!({ "name": "teams-model", "key": "a", "value": "b" })),
        post(
            "model-versions/create",
            json!({ "name": "teams-model", "source": format!("runs:/{mine}/model"), "run_id": mine }),
        ),
        version(format!("runs:/{run}/model")),
        version(format!("mlflow-artifacts:/{experiment}/{run}/artifacts/model")),
        version("models:/teams-model/1".into()),
        version("file:///etc".into()),
        post("registered-models/set-tag", json!({ "name": "own-model", "key": "echoes.run", "value": "x" })),
        ("DELETE", v2("registered-models/delete"), Some(json!({ "name": "own-model" }))),
        post(
            "model-versions/transition-stage",
            json!({ "name": "teams-model", "version": "1", "stage": "Archived" }),
        ),
        ("DELETE", v2("model-versions/delete"), Some(json!({ "name": "teams-model", "version": "1" }))),
        // The server.
        ("GET", "/".into(), None),
        ("GET", "/static-files/index.html".into(), None),
        ("GET", "/api/3.0/mlflow/workspaces".into(), None),
        ("GET", "/api/2.0/mlflow/webhooks".into(), None),
        ("POST", "/api/3.0/mlflow/scorers/register".into(), Some(json!({}))),
        ("POST", "/api/3.0/mlflow/gateway/secrets/create".into(), Some(json!({}))),
        ("PUT", "/ajax-api/3.0/mlflow/assistant/config".into(), Some(json!({}))),
        ("POST", "/ajax-api/3.0/jobs/".into(), Some(json!({}))),
    ];
    let models = [
        get(&format!("logged-models/{model}")),
        ("PATCH", v2(&format!("logged-models/{model}")), Some(json!({ "model_id": model, "status": 2 }))),
        ("DELETE", v2(&format!("logged-models/{model}")), None),
        ("DELETE", v2(&format!("logged-models/{}", text(&own["model"]))), None),
        (
            "PATCH",
            v2(&format!("logged-models/{model}/tags")),
            Some(json!({ "tags": [{ "key": "a", "value": "b" }] })),
        ),
        ("DELETE", v2(&format!("logged-models/{model}/tags/a")), None),
        post(&format!("logged-models/{model}/params"), json!({ "params": [{ "key": "a", "value": "b" }] })),
        post("logged-models/search", json!({ "experiment_ids": [experiment] })),
        post("logged-models", json!({ "experiment_id": my_experiment, "source_run_id": run })),
        post("runs/outputs", json!({ "run_id": mine, "models": [{ "model_id": model, "step": 0 }] })),
        post("runs/outputs", json!({ "run_id": mine, "models": [{ "modelId": model, "step": 0 }] })),
        post("runs/log-inputs", json!({ "run_id": mine, "models": [{ "model_id": model }] })),
        post(
            "runs/log-metric",
            json!({ "run_id": mine, "model_id": model, "key": "k", "value": 1, "timestamp": 1 }),
        ),
        post(
            "runs/log-batch",
            json!({ "run_id": mine, "metrics": [{ "key": "k", "value": 1, "timestamp": 1, "model_id": model }] }),
        ),
        post(
            "runs/log-batch",
            json!({ "run_id": mine, "metrics": [{ "key": "k", "value": 1, "timestamp": 1, "modelId": model }] }),
        ),
        ("PUT", at(&format!("/{experiment}/models/{model}/artifacts/MLmodel")), Some(json!({}))),
        ("GET", at(&format!("/{experiment}/models/{model}/artifacts/MLmodel")), None),
    ];
    let traces = [
        get(&format!("traces/{trace}/info")),
        get(&format!("traces?experiment_ids={experiment}")),
        ("PATCH", v2(&format!("traces/{trace}")), Some(json!({ "status": "ERROR", "timestamp_ms": 1 }))),
        ("PATCH", v2(&format!("traces/{trace}/tags")), Some(json!({ "key": "a", "value": "b" }))),
        ("DELETE", v2(&format!("traces/{trace}/tags")), Some(json!({ "key": "a" }))),
        post("traces/delete-traces", json!({ "experiment_id": experiment, "request_ids": [trace] })),
        post(
            "traces/delete-traces",
            json!({ "experiment_id": my_experiment, "max_timestamp_millis": 9_999_999_999_999_u64 }),
        ),
        ("PUT", at(&format!("/{experiment}/traces/{trace}/artifacts/traces.json")), Some(json!({}))),
        (
            "POST",
            "/api/3.0/mlflow/traces".into(),
            Some(json!({ "trace": { "trace_info": { "trace_id": trace,
            "trace_location": { "type": "MLFLOW_EXPERIMENT", "mlflow_experiment": { "experiment_id": experiment } } } } })),
        ),
        (
            "POST",
            "/api/3.0/mlflow/traces".into(),
            Some(json!({ "trace": { "traceInfo": { "trace_id": trace } } })),
        ),
        (
            "POST",
            "/api/3.0/mlflow/traces/search".into(),
            Some(json!({ "locations": [
            { "type": "MLFLOW_EXPERIMENT", "mlflow_experiment": { "experiment_id": experiment } }] })),
        ),
        (
            "POST",
            "/api/3.0/mlflow/traces/search".into(),
            Some(json!({ "locations": [
            { "type": "MLFLOW_EXPERIMENT", "mlflowExperiment": { "experimentId": experiment } }] })),
        ),
        ("PATCH", format!("/api/3.0/mlflow/traces/{trace}/tags"), Some(json!({ "key": "a", "value": "b" }))),
        (
            "PATCH",
            format!("/api/3.0/mlflow/traces/{}/tags", text(&own["trace"])),
            Some(json!({ "key": "mlflow.artifactLocation", "value": "mlflow-artifacts:/1" })),
        ),
        ("GET", format!("/ajax-api/2.0/mlflow/get-trace-artifact?request_id={trace}"), None),
    ];
    let models = models.into_iter().filter(|_| !model.is_empty());
    let traces = traces.into_iter().filter(|_| !trace.is_empty());
    for (method, path, body) in table.into_iter().chain(models).chain(traces) {
        let (status, answer) = site.ask(RUN, method, &path, body.as_ref());
        assert_eq!(status, 403, "{method} {path} {body:?}: {answer}");
        let said: Value =
            serde_json::from_str(&answer).unwrap_or_else(|e| panic!("{method} {path}: {e}: {answer}"));
        assert_eq!(said["error_code"], "PERMISSION_DENIED", "{method} {path}: {answer}");
        assert!(said["message"].as_str().unwrap().contains("run s4"), "{method} {path}: {answer}");
    }
    // Spellings of what may be asked, and of what is its own: the one that clients use is known.
    let own_folder = format!("{my_experiment}/{mine}/artifacts");
    for path in [
        format!("//api/2.0/mlflow/runs/get?run_id={mine}"),
        format!("/api/2.0/mlflow//runs/get?run_id={mine}"),
        format!("/api/2.0/mlflow/runs/get/?run_id={mine}"),
        format!("/api/2.0/mlflow/runs/%67et?run_id={mine}"),
        format!("/api/2.0/mlflow/runs;x/get?run_id={mine}"),
        format!("/api/2.0/mlflow/experiments/../runs/get?run_id={mine}"),
        format!("/API/2.0/mlflow/runs/get?run_id={mine}"),
        format!("/api/2.00/mlflow/runs/get?run_id={mine}"),
        at(&format!("/{own_folder}/../../../{experiment}/{run}/artifacts/weights.bin")),
        at(&format!("/{own_folder}/%2e%2e/%2e%2e/%2e%2e/{experiment}/{run}/artifacts/weights.bin")),
        at(&format!("/{own_folder}/..%2f..%2f..%2f{experiment}%2f{run}%2fartifacts%2fweights.bin")),
        at(&format!(
            "/{own_folder}/%252e%252e/%252e%252e/%252e%252e/{experiment}/{run}/artifacts/weights.bin"
        )),
        at(&format!("?path={own_folder}/../../../{experiment}/{run}/artifacts")),
        at(&format!("?path={own_folder}/%2e%2e/%2e%2e/%2e%2e/{experiment}")),
        at(&format!("/{own_folder}//big.bin")),
    ] {
        assert_eq!(site.raw(&[RUN], &path), 403, "{path}");
    }
    // One run is named, as runs are.
    let named = format!("/api/2.0/mlflow/runs/get?run_id={mine}");
    assert_eq!(site.raw(&[RUN], &named), 200);
    for users in [&[][..], &["run-other"], &["run-"], &["run-S4"], &["s4"], &[RUN, RUN], &[RUN, "run-other"]]
    {
        assert_eq!(site.raw(users, &named), 403, "{users:?}");
    }
    assert_eq!(
        site.ask(RUN, "GET", &format!("/api/2.0/mlflow/runs/get?run_id={}", "0".repeat(32)), None).0,
        404
    );
    assert_eq!(snapshot(site, theirs), before, "nothing of theirs has changed");
    // An experiment is found by its name, and may be written to from then on.
    let (status, _) =
        site.ask(RUN, "GET", "/api/2.0/mlflow/experiments/get-by-name?experiment_name=empty", None);
    assert_eq!(status, 200);
    assert_eq!(
        site.ask(RUN, "GET", &format!("/api/2.0/mlflow/experiments/get?experiment_id={empty}"), None).0,
        200
    );
    // What a client says of itself is overwritten.
    let tags = json!([{ "key": "echoes.run", "value": "other" }, { "key": "Echoes.run", "value": "other" }]);
    let begun = json!({ "experiment_id": my_experiment, "tags": tags, "start_time": 1 });
    let (status, begun) = site.ask(RUN, "POST", "/api/2.0/mlflow/runs/create", Some(&begun));
    assert_eq!(status, 200, "{begun}");
    let begun: Value = serde_json::from_str(&begun).unwrap();
    let of_run: Vec<_> = begun["run"]["data"]["tags"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|tag| tag["key"].as_str().unwrap().eq_ignore_ascii_case("echoes.run"))
        .cloned()
        .collect();
    assert_eq!(of_run, [json!({ "key": "echoes.run", "value": "s4" })]);
}

/// Bodies that are not what they seem, or too much.
pub fn bodies(site: &Site, own: &Value) {
    let run = own["runs"][0].as_str().unwrap();
    let path = "/api/2.0/mlflow/runs/set-tag";
    let send = |kind: &str, body: String| site.send(RUN, "POST", path, Some((kind, body))).0;
    let good = json!({ "run_id": run, "key": "k", "value": "v" }).to_string();
    assert_eq!(send("application/json; charset=utf-8", good.clone()), 200);
    for kind in [
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=x",
        "text/plain",
        "application/x-protobuf",
    ] {
        assert_eq!(send(kind, good.clone()), 415, "{kind}");
    }
    // The one that counts is the one that is judged, however a key is spelt.
    let other = "0".repeat(32);
    for body in [
        format!("{{\"run_id\":\"{run}\",\"run_id\":\"{other}\",\"key\":\"k\",\"value\":\"v\"}}"),
        format!("{{\"run_id\":\"{run}\",\"run\\u005fid\":\"{other}\",\"key\":\"k\",\"value\":\"v\"}}"),
    ] {
        assert_eq!(send("application/json", body.clone()), 404, "{body}");
    }
    for body in ["[]", "\"{}\"", "null", "{", "{\"run_id\": NaN}", &"[".repeat(100_000)] {
        assert_eq!(send("application/json", body.to_owned()), 403, "{body:.20}");
    }
    let long = format!("{{\"run_id\":\"{run}\",\"key\":\"k\",\"value\":\"{}\"}}", "x".repeat(33 << 20));
    assert!(matches!(send("application/json", long), 413 | 599), "a body of 33 MB is not read");
    assert_eq!(site.send(RUN, "POST", "/v1/traces", Some(("application/x-protobuf", "x".into()))).0, 501);
}

/// What `run_reads = "all"` adds: to read. To write is as it was.
pub fn widened(site: Site, own: &Value, theirs: &Value) {
    let Site { dir, python, mlflow, runtime, client, _running, .. } = site;
    let socket = dir.path().join("wide.sock");
    let mut proxy = std::process::Command::new(crate::PROGRAM);
    proxy.args(["serve", "run-proxy", "--mlflow", &mlflow, "--reads", "all", "--socket"]).arg(&socket);
    let _proxy = crate::start(&mut proxy);
    let front = runtime.block_on(crate::nginx(socket.clone(), mlflow.clone()));
    let site = Site { dir, python, mlflow, socket, front, runtime, client, _running };
    let since = std::time::Instant::now();
    while site.ask(RUN, "GET", "/health", None).0 != 200 {
        assert!(since.elapsed() < std::time::Duration::from_secs(30));
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let (run, experiment) = (text(&theirs["run"]), text(&theirs["experiment"]));
    for path in [
        "/api/2.0/mlflow/experiments/search?max_results=100".to_owned(),
        format!("/api/2.0/mlflow/runs/get?run_id={run}"),
        format!("/api/2.0/mlflow/artifacts/list?run_id={run}"),
        format!("/api/2.0/mlflow-artifacts/artifacts/{experiment}/{run}/artifacts/weights.bin"),
        "/api/2.0/mlflow/registered-models/get?name=teams-model".to_owned(),
    ] {
        let (status, answer) = site.ask(RUN, "GET", &path, None);
        assert_eq!(status, 200, "{path}: {answer:.300}");
    }
    let mine = text(&own["runs"][0]);
    for (path, body) in [
        ("runs/update", json!({ "run_id": run, "status": "KILLED" })),
        ("runs/delete", json!({ "run_id": run })),
        ("experiments/delete", json!({ "experiment_id": experiment })),
        ("registered-models/set-tag", json!({ "name": "teams-model", "key": "a", "value": "b" })),
        ("runs/set-tag", json!({ "run_id": mine, "key": "echoes.run", "value": "x" })),
    ] {
        assert_eq!(site.ask(RUN, "POST", &format!("/api/2.0/mlflow/{path}"), Some(&body)).0, 403, "{path}");
    }
}

/// All of somebody else's work that an attack could change.
fn snapshot(site: &Site, theirs: &Value) -> Vec<String> {
    let text = |name: &str| theirs[name].as_str().unwrap_or_default().to_owned();
    let (run, experiment) = (text("run"), text("experiment"));
    let mut all = vec![
        format!("/api/2.0/mlflow/experiments/get?experiment_id={experiment}"),
        format!("/api/2.0/mlflow/runs/get?run_id={run}"),
        format!("/api/2.0/mlflow-artifacts/artifacts/{experiment}/{run}/artifacts/weights.bin"),
        "/api/2.0/mlflow/registered-models/get?name=teams-model".to_owned(),
    ];
    if !text("model").is_empty() {
        all.push(format!("/api/2.0/mlflow/logged-models/{}", text("model")));
    }
    if !text("trace").is_empty() {
        all.push(format!("/api/2.0/mlflow/traces/{}/info", text("trace")));
    }
    let asked = all.into_iter().map(|path| site.ask("ana", "GET", &path, None));
    asked.map(|(status, answer)| format!("{status} {answer}")).collect()
}
