//! A team that kept its runs in files finds them again in the headquarters, and its files as they were.

use kit::{hq, lab::Release};

/// Two runs with a metric and an artifact each, as a training script leaves them in `mlruns/`.
const TRAIN: &str = r#"
import mlflow
mlflow.set_tracking_uri("file:///mnt/echoes_data/mlruns")
mlflow.set_experiment("old")
for n in range(2):
    with mlflow.start_run(run_name=f"run-{n}"):
        mlflow.log_param("n", n)
        for step in range(3):
            mlflow.log_metric("accuracy", 0.5 + n / 10 + step / 100, step=step)
        mlflow.log_text(f"weights of {n}", "weights.txt")
"#;

#[test]
fn an_old_file_store_is_taken_over_and_its_files_are_left() {
    if !hq::can_boot("an old file store") {
        return;
    }
    let machine = hq::installed(Release::Bookworm);
    let runs = "/mnt/echoes_data/mlruns";
    // As before the first install: a directory of files and no database. Neither is our scratch directory there yet.
    machine
        .ok(&format!("systemctl stop mlflow && rm -r {runs}/* && mv {runs}/.tmp /mnt/echoes_data/scratch"));
    machine.put(TRAIN.as_bytes(), "/root/train.py", 0o600).unwrap();
    let python = "/opt/echoes-appliance/services/bin/python";
    machine.ok(&format!(
        "MLFLOW_ALLOW_FILE_STORE=true MLFLOW_DISABLE_TELEMETRY=true {python} /root/train.py 2>&1"
    ));
    machine.ok(&format!("mv /mnt/echoes_data/scratch {runs}/.tmp"));
    let files = format!(
        "cd {runs} && find . -path ./.tmp -prune -o -type f -print0 | grep -zv -e mlflow.db -e imported.json -e '^./artifacts' -e mlflow-version | sort -z | xargs -0 sha256sum"
    );
    let before = machine.ok(&files);
    assert!(before.contains("weights.txt") && before.lines().count() > 10, "{before}");

    let plan = hq::run(&machine, 2, "plan");
    assert!(plan.contains("there is a file store in /mnt/echoes_data/mlruns"), "{plan}");
    hq::run(&machine, 0, "install");
    assert_eq!(machine.ok(&files), before, "the team's own files changed");
    assert_eq!(hq::run(&machine, 0, "install"), "nothing to change\n");

    let found =
        hq::mlflow(&machine, "experiments/search", r#"{"max_results": 10, "filter": "name = 'old'"}"#);
    let found: serde_json::Value = serde_json::from_str(&found).unwrap();
    let id = found["experiments"][0]["experiment_id"].as_str().expect("the experiment is there");
    let found = hq::mlflow(
        &machine,
        "runs/search",
        &format!(r#"{{"experiment_ids": ["{id}"], "order_by": ["params.n"]}}"#),
    );
    let found: serde_json::Value = serde_json::from_str(&found).unwrap();
    let all = found["runs"].as_array().expect("runs are there");
    assert_eq!(all.len(), 2, "{found}");
    for (n, run) in all.iter().enumerate() {
        assert_eq!(run["info"]["run_name"], format!("run-{n}"));
        let last = run["data"]["metrics"][0]["value"].as_f64().unwrap();
        assert!((last - (0.52 + n as f64 / 10.0)).abs() < 1e-9, "{run}");
        let get = format!(
            "python3 -c \"import urllib.request as r; print(r.urlopen('http://127.0.0.1:5000/get-artifact?run_id={}&path=weights.txt').read().decode())\"",
            run["info"]["run_id"].as_str().unwrap()
        );
        assert_eq!(machine.ok(&get), format!("weights of {n}\n"));
    }
    assert_eq!(hq::bad_answers(&machine).unwrap(), [""; 0]);
}
