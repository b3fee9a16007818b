//! An MLflow that takes every question and answers none holds up no run and no giving back; how the run ended is told once
//! it answers again. What MLflow itself does with that is in the lab's stories.

use crate::PROGRAM;
use axum::{Json, Router, routing::post};
use kit::here::{Here, RUNS};
use serde_json::{Value, json};
use std::{fs, net::TcpListener, path::PathBuf};

/// Leaves what an installation with MLflow does; the setting that says where that is.
fn installed(here: &Here, port: u16) -> String {
    let receipt = here.inside("/var/lib/echoes-appliance/receipt.jsonl");
    fs::create_dir_all(receipt.parent().unwrap()).unwrap();
    fs::write(receipt, "{\"v\":1,\"at\":0,\"did\":\"services\",\"names\":[\"mlflow\"]}\n").unwrap();
    format!("mlflow.port={port}")
}

fn note(path: &PathBuf) -> Value {
    serde_json::from_str(&fs::read_to_string(path).unwrap_or_default()).unwrap_or_default()
}

#[test]
fn an_mlflow_that_never_answers_holds_up_nothing_and_is_told_when_it_does() {
    let Some(here) = Here::new(PROGRAM) else { return };
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let at = silent.local_addr().unwrap();
    let set = installed(&here, at.port());
    let run = |words: &[&str]| here.run(&[&["--set", &set], words].concat());
    let words = here.gpu_run("untold", "2", &[]);
    let out = run(&words.iter().map(String::as_str).collect::<Vec<_>>());
    out.assert_code(7).assert_stderr("gone: all of it").assert_stderr("MLflow: it is not told yet");
    assert!(!out.stderr.contains("its driver is gone"), "{out}");
    assert_eq!(here.result("untold", "step1.txt").as_deref(), Some("loss 1"));
    here.nothing_left("untold");
    let path = here.inside(&format!("{RUNS}/untold/mlflow.json"));
    assert_eq!(note(&path)["told"], "due", "on disk before it is tried");
    here.until("the end of its driver", || here.drivers().is_empty());
    assert_eq!(note(&path)["tries"], 1, "{}", here.logs());

    // Not before some minutes are over, which are over now.
    run(&["gpu", "sweep"]).assert_code(0).assert_stderr("nothing is loose\n");
    let past = Value::Object(
        note(&path)
            .as_object()
            .unwrap()
            .clone()
            .into_iter()
            .chain([("next".into(), json!("2026-01-01T00:00:00Z"))])
            .collect(),
    );
    fs::write(&path, past.to_string()).unwrap();
    drop(silent);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let answering = runtime.block_on(tokio::net::TcpListener::bind(at)).unwrap();
    let none = async || Json(json!({ "experiments": [] }));
    let router = Router::new().route("/api/2.0/mlflow/experiments/search", post(none));
    runtime.spawn(async move { axum::serve(answering, router).await });
    run(&["gpu", "sweep"])
        .assert_code(0)
        .assert_stderr("untold: over, and MLflow is not told yet how it ended");
    here.until("MLflow's knowing", || note(&path)["told"] == "done");
    here.until("the end of its driver", || here.drivers().is_empty());
    let receipt = run(&["gpu", "cost", "untold", "--json"]).json();
    assert_eq!(receipt["mlflow"], json!({ "told": "done", "runs": 0, "links": [] }), "{receipt}");
    run(&["gpu", "sweep"]).assert_code(0).assert_stderr("nothing is loose\n");
}
