//! The demo's promise, kept on a real machine: a person with a browser and a training script on another machine
//! find everything that the headquarters is for.

use kit::{
    hq,
    lab::{Disk, Machine, Release},
    process::CompletedProcess,
};
use serde_json::Value;
use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

const SAMPLES: &str = include_str!("../../examples/demo/samples.py");
const CLIENT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/lab/client.py");
const BROWSE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/lab/browse.py");
const LOCK: &str = include_str!("../../assets/python/services.txt");

/// What somebody outside has: the address, the names, a login, the authority's certificate.
struct Visitor {
    ip: String,
    user: String,
    password: String,
    dir: tempfile::TempDir,
}

#[test]
fn a_visitor_finds_a_run_with_a_large_artifact_and_curves_and_pages() {
    if !hq::can_boot("the demo's promise") {
        return;
    }
    let machine = hq::prepared(Release::Trixie, vec![Disk::blank(8 << 10).unwrap()]);
    let said = hq::run(&machine, 0, "install");
    let visitor = Visitor::new(&machine, &said);
    machine.put(SAMPLES.as_bytes(), "/root/samples.py", 0o600).unwrap();
    machine.ok("GIT_PYTHON_REFRESH=quiet /opt/echoes-appliance/services/bin/python -W ignore \
         /root/samples.py http://127.0.0.1:5000 /mnt/echoes_data/tfruns");

    let logged = large_artifact(&machine, &visitor);
    curves(&visitor);
    // The dashboard begins with what was worked on last.
    pages(&visitor, if logged { "from-a-laptop" } else { "resnet18-fast" });
}

impl Visitor {
    fn new(machine: &Machine, said: &str) -> Self {
        let login = said.lines().find_map(|line| {
            line.trim().strip_prefix("user ")?.split(" (").next()?.split_once(", password ")
        });
        let (user, password) = login.unwrap_or_else(|| panic!("install named no login:\n{said}"));
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("ca.crt"), machine.ok("echoes-appliance ca export --pem")).unwrap();
        let names = ["mlflow", "tensorboard", "dashboard", "docs"].map(|name| format!("{name}.localhost"));
        let hosts = format!("127.0.0.1 localhost\n{} {}\n", machine.ip(), names.join(" "));
        fs::write(dir.path().join("hosts"), hosts).unwrap();
        Self { ip: machine.ip().to_string(), user: user.into(), password: password.into(), dir }
    }

    /// A program that finds the machine under its names: in a mount namespace with an /etc/hosts of its own.
    fn command(&self, program: &Path) -> Command {
        let mut command = Command::new("unshare");
        command.args(["--mount", "sh", "-c", "mount --bind \"$0\" /etc/hosts && exec \"$@\""]);
        command.arg(self.dir.path().join("hosts")).arg(program).stdin(Stdio::null());
        let ca = self.dir.path().join("ca.crt");
        command
            .env("MLFLOW_TRACKING_SERVER_CERT_PATH", &ca)
            .env("MLFLOW_TRACKING_URI", "https://mlflow.localhost");
        command.env("MLFLOW_TRACKING_USERNAME", &self.user).env("MLFLOW_TRACKING_PASSWORD", &self.password);
        command.env("MLFLOW_DISABLE_TELEMETRY", "true").env("GIT_PYTHON_REFRESH", "quiet");
        command
    }

    /// GET with the password and the certificate checked; the answer must be JSON.
    fn json(&self, url: &str) -> Value {
        const GET: &str = "import base64, os, ssl, sys, urllib.request as r\n\
            login = base64.b64encode((os.environ['MLFLOW_TRACKING_USERNAME'] + ':' + os.environ['MLFLOW_TRACKING_PASSWORD']).encode()).decode()\n\
            trust = ssl.create_default_context(cafile=os.environ['MLFLOW_TRACKING_SERVER_CERT_PATH'])\n\
            print(r.urlopen(r.Request(sys.argv[1], headers={'Authorization': 'Basic ' + login}), context=trust).read().decode())";
        let out = CompletedProcess::run(self.command(Path::new("python3")).args(["-c", GET, url]));
        assert!(out.code == 0, "{url} {out}");
        out.json()
    }
}

/// MLflow's own client, in the version of the lock, on another machine.
fn large_artifact(machine: &Machine, visitor: &Visitor) -> bool {
    let Some(python) = client_python() else { return false };
    let mut client = visitor.command(&python);
    let out = CompletedProcess::run(client.args([CLIENT, "laptop", "300"]));
    assert!(out.code == 0, "the client {out}\n{}", machine.ok("journalctl -u mlflow -n 30 -o cat"));
    // MLflow itself says where the run can be seen; the last line is ours.
    let last = out.stdout.trim().lines().last().unwrap_or_default();
    let answer: Value = serde_json::from_str(last).unwrap_or_else(|e| panic!("{e}: {last}"));
    println!("300 MB through nginx: {} s up, {} s down", answer["up"], answer["down"]);
    let (run, experiment) = (answer["run"].as_str().unwrap(), answer["experiment"].as_str().unwrap());

    let kept = machine.ok("find /mnt/echoes_data/mlruns/artifacts -name weights.bin -size +299M");
    assert_eq!(kept.lines().count(), 1, "the artifact is on the data disk");
    let listed = visitor.json(&format!(
        "https://mlflow.localhost/api/2.0/mlflow-artifacts/artifacts?path={experiment}/{run}/artifacts"
    ));
    assert_eq!(listed.pointer("/files/0/file_size"), Some(&Value::from(300 << 20)), "{listed}");
    let seen = visitor.json(&format!("https://mlflow.localhost/api/2.0/mlflow/runs/get?run_id={run}"));
    assert_eq!(seen.pointer("/run/info/status"), Some(&"FINISHED".into()), "{seen}");
    let experiments = visitor.json("https://dashboard.localhost/api/experiments");
    let names: Vec<_> =
        experiments["experiments"].as_array().unwrap().iter().map(|one| &one["name"]).collect();
    assert!(names.contains(&&"laptop".into()), "{names:?}");
    let runs = visitor.json(&format!("https://dashboard.localhost/api/runs?experiment_id={experiment}"));
    assert_eq!(runs.pointer("/runs/0/run_id"), Some(&run.into()), "{runs}");
    assert_eq!(runs.pointer("/runs/0/metrics/0/value"), Some(&Value::from(0.7)), "{runs}");
    true
}

/// TensorBoard has what was put into tfruns.
fn curves(visitor: &Visitor) {
    let url = "https://tensorboard.localhost/data/plugin/scalars/scalars?run=demo-resnet18-fast&tag=loss";
    // It looks every few seconds.
    for _ in 0..30 {
        let tags = visitor.json("https://tensorboard.localhost/data/plugin/scalars/tags");
        if tags.pointer("/demo-resnet18-fast/loss").is_some() {
            let points = visitor.json(url);
            assert_eq!(points.as_array().map(Vec::len), Some(60), "{points}");
            return;
        }
        std::thread::sleep(std::time::Duration::from_secs(1));
    }
    panic!("TensorBoard does not list the sample runs");
}

/// The four pages, as a browser shows them.
fn pages(visitor: &Visitor, latest: &str) {
    if !on_path("chromium") {
        println!("SKIPPED: the pages in a browser: apt install chromium");
        return;
    }
    let pictures = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/pictures");
    fs::create_dir_all(&pictures).unwrap();
    let mut browse = Command::new("python3");
    browse.arg(BROWSE).arg(&visitor.ip).arg(&pictures);
    browse.args([
        "https://mlflow.localhost/=ucf101-demo",
        "https://tensorboard.localhost/=demo-resnet18-fast",
        &format!("https://dashboard.localhost/={latest}"),
        "https://docs.localhost/=Troubleshooting",
    ]);
    browse.env("LOGIN", format!("{}:{}", visitor.user, visitor.password));
    let seen = CompletedProcess::run(&mut browse);
    let lines = &seen.assert_code(0).stdout;
    assert_eq!(lines.lines().count(), 4, "{lines}");
    for line in lines.lines() {
        let page: Value = serde_json::from_str(line).unwrap();
        assert_eq!(page["found"], true, "see {}: {page}", pictures.display());
        let wrong = page["wrong"].as_array().unwrap().iter().filter_map(Value::as_str);
        // MLflow's pages ask for what is blocked, and live without; nothing else may be missing.
        let expected =
            |what: &&str| what.contains("/mlflow/assistant/") || what.contains("/mlflow/users/current");
        let wrong: Vec<_> = wrong.filter(|what| !expected(what)).collect();
        assert!(wrong.is_empty(), "on {}: {wrong:?}", page["url"]);
    }
}

/// A Python with MLflow's client in it, made once for each version.
fn client_python() -> Option<PathBuf> {
    let wanted = LOCK.lines().find_map(|line| {
        line.strip_prefix("mlflow-skinny==")?.strip_suffix(" ; python_full_version >= '3.10' \\")
    });
    let version = wanted.expect("the lock names MLflow's client for a new Python");
    let new =
        Command::new("python3").args(["-c", "import sys; sys.exit(sys.version_info < (3, 11))"]).status();
    if !new.is_ok_and(|status| status.success()) {
        println!("SKIPPED: MLflow's client on this host: it needs Python 3.11 or later");
        return None;
    }
    let venv = Path::new(env!("CARGO_MANIFEST_DIR")).join("target").join(format!("mlflow-client-{version}"));
    let python = venv.join("bin/python");
    if !venv.join("complete").exists() {
        let run = |program: &Path, args: &[&str]| {
            let out = CompletedProcess::run(Command::new(program).args(args));
            assert!(out.code == 0, "{args:?} {out}");
        };
        run(Path::new("python3"), &["-m", "venv", "--clear", &venv.to_string_lossy()]);
        run(&python, &["-m", "pip", "install", "--quiet", &format!("mlflow-skinny=={version}"), "requests"]);
        fs::write(venv.join("complete"), "").unwrap();
    }
    Some(python)
}

fn on_path(program: &str) -> bool {
    let path = std::env::var("PATH").unwrap_or_default();
    path.split(':').any(|dir| Path::new(dir).join(program).exists())
}
