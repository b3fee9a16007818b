//! What `make demo` shows of experiments, kept: a person's checkout is run on the headquarters, and on a machine that the
//! headquarters rents from a simulated Azure. What both made is at home and in MLflow, and nothing is left to be paid for.

use kit::{
    cloud::{Cloud, Options, Pace, Takes},
    cloud_lab::{LabMetal, Metadata},
    experiment, hq,
    lab::{self, Machine, Release},
};
use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

/// Begins an MLflow run within another, says how long its client waits for an MLflow that is down, and never ends by itself.
const ENDLESS: &str = r#"
import mlflow, time
from mlflow.environment_variables import MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR, MLFLOW_HTTP_REQUEST_MAX_RETRIES
from urllib3.exceptions import MaxRetryError
from urllib3.util import Retry
retry = Retry(total=MLFLOW_HTTP_REQUEST_MAX_RETRIES.get(), backoff_factor=MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR.get())
waits = 0
try:
    while True:
        retry = retry.increment("POST", "/", error=OSError("down"))
        waits += retry.get_backoff_time()
except MaxRetryError:
    pass
mlflow.set_experiment("endless")
with mlflow.start_run(run_name="outer"), mlflow.start_run(run_name="inner", nested=True):
    mlflow.log_metric("waits", waits)
    print("it waits", int(waits), flush=True)
    while True:
        time.sleep(1)
"#;

/// An Azure that this is the headquarters of, and the way to its metadata.
fn azure(headquarters: &Machine) -> Option<(Cloud, Metadata)> {
    let host = IpAddr::V4(lab::host());
    let second = Duration::from_secs(1);
    let takes = Takes {
        vm_create: second,
        vm_delete: second,
        reservation: 5 * second,
        list_lag: second,
        retry_after: Some(1),
        ..Takes::default()
    };
    let options = Options {
        pace: Pace::Running(1.0),
        takes,
        headquarters_address: headquarters.ip(),
        address: host,
        imds: Some((host, 0)),
        metal: Arc::new(LabMetal::new(Release::Bookworm, &["python3-venv"]).unwrap()),
        ..Options::default()
    };
    let cloud = Cloud::start(options)?;
    let way = Metadata::of(&cloud).unwrap();
    Some((cloud, way))
}

/// What the person sees.
fn run(headquarters: &Machine, more: &str) -> String {
    let out = headquarters.exec(&experiment::typed(&experiment::gpu_run(more)));
    let said = out.text();
    assert_eq!(
        out.code,
        0,
        "{said}\n{}",
        headquarters.exec("journalctl -u 'echoes-gpu@*' -n 40 -o cat").stdout
    );
    said
}

/// The MLflow runs of a run in one experiment, by their names.
fn of_run(headquarters: &Machine, experiment: &str, run: &str) -> BTreeMap<String, Value> {
    let ask = |what: &str, body: Value| -> Value {
        serde_json::from_str(&hq::mlflow(headquarters, what, &body.to_string())).unwrap()
    };
    let wanted = json!({"max_results": 10, "filter": format!("name = '{experiment}'")});
    let experiment = ask("experiments/search", wanted)["experiments"][0]["experiment_id"].clone();
    let filter = format!("tags.`echoes.run` = '{run}'");
    let all = ask("runs/search", json!({"experiment_ids": [experiment], "filter": filter}));
    let runs = all["runs"].as_array().cloned().unwrap_or_default();
    runs.into_iter().map(|run| (run["info"]["run_name"].as_str().unwrap().to_owned(), run)).collect()
}

fn named<'a>(all: &'a Value, name: &str) -> Option<&'a Value> {
    all.as_array()?.iter().find(|one| one["key"] == name).map(|one| &one["value"])
}

/// Both networks have learnt, MLflow knows which run that was, and what they made is at home.
fn came_home(headquarters: &Machine, run: &str) {
    let runs = of_run(headquarters, "mackey-glass", run);
    assert_eq!(runs.keys().collect::<Vec<_>>(), ["esn", "lstm"], "of {run}: {runs:#?}");
    for (name, one) in &runs {
        assert_eq!(one["info"]["status"], "FINISHED", "{name}");
        let (metrics, tags, params) = (&one["data"]["metrics"], &one["data"]["tags"], &one["data"]["params"]);
        let error = named(metrics, "test_error").and_then(Value::as_f64).unwrap();
        assert!(error > 0.0 && error < 0.1, "{name}: {error}");
        assert_eq!(named(params, "model"), Some(&name.as_str().into()));
        assert_eq!(named(tags, "echoes.owner"), Some(&experiment::PERSON.into()));
        assert!(named(tags, "mlflow.source.git.commit").is_some(), "{tags}");
        assert_eq!(named(tags, "mlflow.source.name"), Some(&experiment::SCRIPT.into()), "{tags}");
        assert_eq!(named(tags, "mlflow.user"), Some(&experiment::PERSON.into()), "{tags}");
    }
    let home = format!("/mnt/echoes_data/azure_results/{run}");
    let results: Value =
        serde_json::from_str(&headquarters.ok(&format!("cat {home}/out/results.json"))).unwrap();
    assert_eq!(results["learnt"], true, "{results}");
    let files = headquarters.ok(&format!("cd {home}/out && stat -c %U:%n *"));
    let expected = ["esn.npz", "lstm.npz", "predictions.csv", "results.json"];
    let expected: Vec<_> = expected.iter().map(|name| format!("{}:{name}", experiment::PERSON)).collect();
    assert_eq!(files.lines().collect::<Vec<_>>(), expected);
    let log = headquarters.ok(&format!("cat {home}/log.txt"));
    assert!(log.contains("lstm: epoch 12 of 12"), "{log}");
    let receipt: Value =
        serde_json::from_str(&headquarters.ok(&format!("echoes-appliance gpu cost {run} --json"))).unwrap();
    assert_eq!((&receipt["proven_gone"], &receipt["all_home"]), (&true.into(), &true.into()), "{receipt}");
    let in_mlflow = (&receipt["mlflow"]["told"], &receipt["mlflow"]["runs"]);
    assert_eq!(in_mlflow, (&"done".into(), &2.into()), "{receipt}");
}

/// A script that is stopped leaves its MLflow runs running there; headquarters ends them, and tells where they are.
fn is_stopped(headquarters: &Machine) {
    let script = "experiments/endless.py";
    let at = format!("/home/{}/echoes/{script}", experiment::PERSON);
    headquarters.put(ENDLESS.as_bytes(), &at, 0o644).unwrap();
    let words = format!("sudo echoes-appliance gpu-run {script} --provider local --name endless --detach");
    headquarters.ok(&experiment::typed(&words));
    let log = "/mnt/echoes_data/azure_results/endless/log.txt";
    let since = Instant::now();
    let waits: u32 = loop {
        let said = headquarters.exec(&format!("cat {log}")).stdout;
        if let Some(waits) = said.lines().find_map(|line| line.strip_prefix("it waits ")) {
            break waits.parse().unwrap();
        }
        assert!(since.elapsed() < Duration::from_secs(120), "{said}");
        std::thread::sleep(Duration::from_millis(500));
    };
    assert!(waits >= 3600, "an outage of {waits} s ends it");
    headquarters.ok("echoes-appliance gpu stop endless");
    let receipt = headquarters.exec("echoes-appliance gpu attach endless");
    receipt.assert_code(85);
    let runs = of_run(headquarters, "endless", "endless");
    assert_eq!(runs.keys().collect::<Vec<_>>(), ["inner", "outer"], "{runs:#?}");
    for run in runs.values() {
        let (info, tags) = (&run["info"], &run["data"]["tags"]);
        assert_eq!(info["status"], "KILLED", "{run:#}");
        assert!(info["end_time"].as_u64() >= info["start_time"].as_u64(), "{run:#}");
        assert_eq!(named(tags, "mlflow.source.name"), Some(&script.into()), "{tags}");
    }
    let info = &runs["outer"]["info"];
    let id = |name: &str| info[name].as_str().unwrap();
    let page = format!("#/experiments/{}/runs/{}", id("experiment_id"), id("run_id"));
    receipt.assert_stderr(&format!("MLflow: https://mlflow.localhost/{page}\n"));
    receipt.assert_stderr("MLflow: 1 more of its runs");
}

#[test]
fn the_sample_experiment_runs_here_and_on_a_rented_machine_and_nothing_is_left_to_pay_for() {
    if !hq::can_boot("the sample experiment") {
        return;
    }
    let headquarters = hq::installed(Release::Trixie);
    experiment::person(&headquarters).unwrap();
    let said = run(&headquarters, "--provider local --name first");
    assert!(said.contains("lstm: epoch  1 of 12"), "{said}");
    came_home(&headquarters, "first");
    is_stopped(&headquarters);
    // The script was a person's, here too.
    let environments = format!("/var/lib/echoes-appliance/machine/{}/envs", experiment::PERSON);
    let owners = headquarters.ok(&format!("cd {environments} && stat -c %U . */bin/python"));
    assert!(owners.lines().count() == 2 && owners.lines().all(|who| who == experiment::PERSON), "{owners}");

    let Some((cloud, _way)) = azure(&headquarters) else { return };
    experiment::move_to_azure(&headquarters, &cloud.settings(experiment::AZURE_CA), cloud.ca()).unwrap();
    let said = run(&headquarters, "--provider azure --vm-size Standard_B1s --name second --yes");
    assert!(said.contains("gone: all of it, looked for twice") && said.contains("Standard_B1s"), "{said}");
    came_home(&headquarters, "second");
    // It was another machine, which came in by nginx, as a user that is no more.
    let asked = headquarters.ok("cat /var/log/nginx/*access.log");
    assert!(asked.lines().any(|line| line.contains("run-second")), "{asked}");
    assert!(!headquarters.ok("echoes-appliance user list").contains("run-second"));

    assert_eq!(cloud.left(), Vec::<String>::new(), "{}", cloud.story());
    assert_eq!(cloud.costing(), Vec::<String>::new());
    cloud.assert_honest();
    let bill = cloud.bill().to_string();
    std::thread::sleep(Duration::from_secs(1));
    assert_eq!(cloud.bill().to_string(), bill, "nothing is paid for any more");
}
