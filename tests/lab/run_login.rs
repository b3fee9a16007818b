//! The login of a run on a whole machine: nginx, the password check and the proxy before MLflow, as they are installed. What
//! each call may do is tried before each version of MLflow in `tests/run_login`.

use kit::{
    hq,
    lab::{Machine, Release},
    process::CompletedProcess,
};
use serde_json::Value;
use std::process::Command;

#[test]
fn a_runs_login_opens_its_own_work_at_mlflow_and_nothing_else_on_debian_11() {
    story(Release::Bullseye);
}

#[test]
fn a_runs_login_opens_its_own_work_at_mlflow_and_nothing_else_on_debian_12() {
    story(Release::Bookworm);
}

/// Asks through nginx as run s4, from this host. Answers the status and the body.
fn ask(machine: &Machine, password: &str, service: &str, arguments: &str) -> (u16, String) {
    let host = format!("{service}.localhost");
    let curl = format!(
        "curl --silent --insecure --max-time 60 --resolve {host}:443:{} --user run-s4:{password} \
         --header 'X-Echoes-Run: run-other' --write-out '\\n%{{http_code}}' {}",
        machine.ip(),
        arguments.replace("URL", &format!("https://{host}"))
    );
    let said = CompletedProcess::run(Command::new("sh").args(["-c", &curl]));
    let said = &said.assert_code(0).stdout;
    let (body, status) = said.trim_end().rsplit_once('\n').unwrap_or(("", said.trim_end()));
    (status.parse().unwrap_or_default(), body.to_owned())
}

fn story(release: Release) {
    if !hq::can_boot("the login of a run") {
        return;
    }
    let machine = hq::installed(release);
    let refused = machine.exec("echoes-appliance user add run-s4 --generate");
    assert!(
        refused.code == 1 && refused.stderr.contains("names that begin with `run-`"),
        "{}",
        refused.stderr
    );
    // As a run is lent one.
    let password = machine.ok("echoes-appliance user add s4 --generate");
    let password = password.trim();
    machine.ok("sed -i 's/^s4:\\(.*\\)$/run-s4:\\1:a run'\"'\"'s, of echoes-appliance/' /etc/nginx/.htpasswd && sleep 1");
    let call = |arguments: &str| ask(&machine, password, "mlflow", arguments);
    assert_eq!(call("URL/health").0, 200);
    for service in ["dashboard", "tensorboard"] {
        let (status, body) = ask(&machine, password, service, "URL/");
        assert_eq!(
            (status, body.as_str()),
            (403, "The login of a run opens MLflow, and nothing else.\n"),
            "{service}"
        );
    }
    let json = "--header 'Content-Type: application/json' --data";
    let api = "URL/api/2.0/mlflow";
    let (status, begun) = call(&format!("{json} '{{\"experiment_id\":\"0\"}}' {api}/runs/create"));
    assert_eq!(status, 200, "{begun}");
    let begun: Value = serde_json::from_str(&begun).unwrap();
    let tags = begun["run"]["data"]["tags"].to_string();
    assert!(tags.contains("{\"key\":\"echoes.run\",\"value\":\"s4\"}"), "nginx says who asks: {tags}");
    let run = begun["run"]["info"]["run_id"].as_str().unwrap();
    let metric = format!("{{\"run_id\":\"{run}\",\"key\":\"loss\",\"value\":0.5,\"timestamp\":1}}");
    assert_eq!(call(&format!("{json} '{metric}' {api}/runs/log-metric")).0, 200);
    let artifact = format!("URL/api/2.0/mlflow-artifacts/artifacts/0/{run}/artifacts/x.bin");
    let dir = tempfile::tempdir().unwrap();
    let (there, back) = (dir.path().join("there"), dir.path().join("back"));
    std::fs::write(&there, kit::here::noise(50_000_000)).unwrap();
    assert_eq!(call(&format!("--upload-file {} {artifact}", there.display())).0, 200);
    let (status, _) = call(&format!("--output {} {artifact}", back.display()));
    assert_eq!(status, 200);
    assert!(std::fs::read(&there).unwrap() == std::fs::read(&back).unwrap(), "it came back changed");
    for arguments in [
        format!("{api}/experiments/search?max_results=10"),
        format!("{json} '{{\"run_id\":\"{run}\"}}' {api}/runs/delete"),
        format!("--request DELETE {artifact}"),
        format!("{api}/registered-models/search?max_results=10"),
        "URL/".to_owned(),
    ] {
        let (status, body) = call(&arguments);
        assert!(status == 403 && body.contains("run s4 may not"), "{arguments}: {status} {body}");
    }
    let level = machine.ok("systemd-analyze security --no-pager echoes-run-proxy.service | tail -n 1");
    let number = level.split_whitespace().find_map(|word| word.parse::<f64>().ok());
    assert!(number.is_some_and(|level| level <= 2.5), "{level}");
}
