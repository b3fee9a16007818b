//! What `validate` leaves behind: taken away after each question, and what a killed one has left, by the next.

use super::{Answer, Scene};
use crate::{
    host::{Host, Kind},
    hq::service::Service,
};
use anyhow::Result;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

/// How everything is called that `validate` makes at a service.
pub const NAME: &str = "echoes-validate";

/// Nobody asks for so long: what is older was left by one that was killed. Milliseconds.
const LEFT_AFTER: i64 = 10 * 60 * 1000;

/// So many folders are looked at each time: what is more goes the next time.
const AT_ONCE: usize = 100;

/// The directory for an event file of this process.
pub fn event_dir(runs: &Path) -> PathBuf {
    runs.join(format!("{NAME}-{}", std::process::id()))
}

/// Remove the directories of those that do not live any more. Members write beside them: root's own alone.
pub fn sweep_events(host: &Host, runs: &Path) -> Result<()> {
    let is_alive = |id: &str| host.exists(&Path::new("/proc").join(id)).unwrap_or(true);
    for name in host.list(runs)? {
        if !is_left(&name, &is_alive) {
            continue;
        }
        let dir = runs.join(&name);
        if host
            .meta(&dir)?
            .is_some_and(|meta| meta.kind == Kind::Dir && meta.uid == nix::unistd::geteuid().as_raw())
        {
            host.remove_tree(&dir)?;
        }
    }
    Ok(())
}

/// Whether this is the name of a directory whose process is gone. Pure.
fn is_left(name: &str, is_alive: &dyn Fn(&str) -> bool) -> bool {
    let id = name.strip_prefix(NAME).and_then(|rest| rest.strip_prefix('-'));
    id.is_some_and(|id| !id.is_empty() && id.bytes().all(|b| b.is_ascii_digit()) && !is_alive(id))
}

/// Where MLflow's server keeps the artifacts of a run of the experiment.
fn folder(experiment: &str, run: &str) -> String {
    format!("/api/2.0/mlflow-artifacts/artifacts/{experiment}/{run}")
}

/// Remove the folders that its artifact was in; MLflow leaves them, and they would be one more each time. What cannot be
/// removed is no fault of the server's.
pub fn sweep_run(scene: &Scene, experiment: &str, run: &str) {
    let _ = scene.ask("DELETE", Service::Mlflow, &folder(experiment, run), true, None);
}

/// The same for runs that nobody has seen to their end, and for those of earlier versions.
pub fn sweep_runs(scene: &Scene, experiment: &str, now: i64) {
    let path = format!("/api/2.0/mlflow-artifacts/artifacts?path={experiment}");
    let Ok(listed) = scene.json("GET", Service::Mlflow, &path, None) else { return };
    for run in runs(&listed).into_iter().take(AT_ONCE) {
        let path = format!("/api/2.0/mlflow/runs/get?run_id={run}");
        let Ok(answer) = scene.get(Service::Mlflow, &path, true) else { return };
        match standing(&answer, now) {
            Standing::Fresh => continue,
            Standing::Begun => {
                let path = "/api/2.0/mlflow/runs/delete";
                let _ = scene.json("POST", Service::Mlflow, path, Some(json!({"run_id": run})));
            }
            Standing::Gone => {}
        }
        sweep_run(scene, experiment, &run);
    }
}

/// The runs that have a folder. Pure.
fn runs(listed: &Value) -> Vec<String> {
    let files = listed["files"].as_array().map(Vec::as_slice).unwrap_or_default();
    let name = |file: &Value| file["path"].as_str()?.rsplit('/').next().map(str::to_owned);
    let is_run = |name: &String| name.len() == 32 && name.bytes().all(|b| b.is_ascii_hexdigit());
    files.iter().filter(|file| file["is_dir"] == true).filter_map(name).filter(is_run).collect()
}

/// How a run of `validate` stands.
#[derive(Debug, PartialEq, Eq)]
enum Standing {
    /// Somebody may be at it.
    Fresh,
    /// Left, and not deleted.
    Begun,
    /// Deleted, or never there.
    Gone,
}

/// Pure.
fn standing(answer: &Answer, now: i64) -> Standing {
    if answer.status == 404 {
        return Standing::Gone;
    }
    let run: Value = serde_json::from_slice(&answer.body).unwrap_or_default();
    let info = &run["run"]["info"];
    // A number, or, from some versions, the same as text.
    let began = &info["start_time"];
    let began = began.as_i64().or_else(|| began.as_str()?.parse().ok());
    match began {
        Some(began) if answer.status == 200 && now - began > LEFT_AFTER => {
            if info["lifecycle_stage"] == "deleted" { Standing::Gone } else { Standing::Begun }
        }
        _ => Standing::Fresh,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::System;

    #[test]
    fn what_a_killed_one_has_put_before_tensorboard_goes_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let host = Host::new(dir.path(), System);
        let runs = Path::new("/data/tfruns");
        let all =
            ["echoes-validate-7", "echoes-validate-8", "echoes-validate-", "echoes-validate-x", "esn-7"];
        for name in all {
            host.write(&runs.join(name).join("events"), 0o644, b"x").unwrap();
        }
        host.make_dir(Path::new("/proc/8")).unwrap();
        host.write(Path::new("/else/kept"), 0o644, b"x").unwrap();
        host.link(&runs.join("echoes-validate-9"), Path::new("/else")).unwrap();
        sweep_events(&host, runs).unwrap();
        let mut left = host.list(runs).unwrap();
        left.sort();
        assert_eq!(
            left,
            ["echoes-validate-", "echoes-validate-8", "echoes-validate-9", "echoes-validate-x", "esn-7"]
        );
        assert!(host.exists(Path::new("/else/kept")).unwrap());
    }

    #[test]
    fn the_folders_of_runs_that_nobody_is_at_are_told_from_others() {
        let run = "0123456789abcdef0123456789abcdef";
        let listed = json!({"files": [
            {"path": run, "is_dir": true},
            {"path": "models", "is_dir": true},
            {"path": "fedcba9876543210fedcba9876543210", "is_dir": false},
            {"path": format!("1/{run}"), "is_dir": true},
        ]});
        assert_eq!(runs(&listed), [run, run]);
        assert_eq!(runs(&json!({})), [""; 0]);
        let answer =
            |status, body: Value| Answer { status, location: None, body: serde_json::to_vec(&body).unwrap() };
        let began = |at: i64, stage: &str| {
            let info = json!({"start_time": at, "lifecycle_stage": stage});
            answer(200, json!({"run": {"info": info}}))
        };
        let now = 1_800_000_000_000;
        for (answer, expected) in [
            (began(now - 1000, "active"), Standing::Fresh),
            (began(now - LEFT_AFTER - 1, "active"), Standing::Begun),
            (began(now - LEFT_AFTER - 1, "deleted"), Standing::Gone),
            (answer(404, json!({})), Standing::Gone),
            (answer(503, json!({})), Standing::Fresh),
        ] {
            assert_eq!(standing(&answer, now), expected);
        }
    }
}
