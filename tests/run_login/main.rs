//! The login of a run before a real MLflow, of each version that we ship: a script's whole work passes, with MLflow's own
//! client, and what would touch somebody else's is refused.

// Tests look at files and processes directly.
#![allow(clippy::disallowed_methods, clippy::disallowed_types, clippy::print_stderr)]

mod attack;

use axum::{Router, body::Body, extract::Request, response::Response};
use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use kit::process::CompletedProcess;
use serde_json::{Value, json};
use std::{
    fs,
    net::{SocketAddr, TcpListener},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};
use tempfile::TempDir;

const PROGRAM: &str = env!("CARGO_BIN_EXE_echoes-appliance");
const TOP: &str = env!("CARGO_MANIFEST_DIR");

/// Measures the machine for MLflow's system metrics. A script brings it along, the services do without.
const PSUTIL: &str = "psutil==7.0.0";

/// Python of the services' locked requirements, made once for each version. None, and said so, where it cannot be had.
fn python(mlflow: &str, interpreters: &[&str]) -> Option<PathBuf> {
    let venv = Path::new(TOP).join(format!("target/mlflow-{mlflow}"));
    let python = venv.join("bin/python");
    let lock = fs::File::create(venv.with_extension("lock")).unwrap();
    lock.lock().unwrap();
    if venv.join("complete").exists() {
        return Some(python);
    }
    let lock = format!("{TOP}/assets/python/services.txt");
    let output = |program: &Path, args: &[&str]| Command::new(program).args(args).output();
    let made = |program: &Path, args: &[&str]| match output(program, args) {
        Ok(out) if out.status.success() => Ok(()),
        Ok(out) => Err(String::from_utf8_lossy(&out.stderr).trim().to_owned()),
        Err(e) => Err(e.to_string()),
    };
    let pip = ["-m", "pip", "install", "--quiet", "--only-binary", ":all:"];
    let attempt = || {
        let venv = venv.to_string_lossy();
        let first =
            |interpreter: &&&str| made(Path::new(interpreter), &["-m", "venv", "--clear", &venv]).is_ok();
        interpreters.iter().find(first).ok_or_else(|| format!("no Python of {interpreters:?}"))?;
        made(&python, &[&pip[..], &["--require-hashes", "-r", &lock]].concat())?;
        made(&python, &[&pip[..], &[PSUTIL]].concat())
    };
    if let Err(failed) = attempt() {
        eprintln!("SKIPPED: the login of a run before MLflow {mlflow}: {failed}");
        return None;
    }
    fs::write(venv.join("complete"), "").unwrap();
    Some(python)
}

/// A process that ends with its story.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // The whole group: gunicorn's workers outlive it.
        let group = nix::unistd::Pid::from_raw(self.0.id().cast_signed());
        let _ = nix::sys::signal::killpg(group, nix::sys::signal::Signal::SIGKILL);
        let _ = self.0.wait();
    }
}

fn start(command: &mut Command) -> Running {
    use std::os::unix::process::CommandExt as _;
    Running(command.process_group(0).stdin(Stdio::null()).spawn().unwrap())
}

/// MLflow, the proxy before it, and what nginx does between the two: it says whose login it is.
struct Site {
    dir: TempDir,
    python: PathBuf,
    mlflow: String,
    socket: PathBuf,
    front: SocketAddr,
    runtime: tokio::runtime::Runtime,
    client: reqwest::Client,
    _running: [Running; 2],
}

impl Site {
    fn new(python: PathBuf, reads: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let mlflow = format!("http://127.0.0.1:{port}");
        let path = |name: &str| dir.path().join(name);
        let log = |name: &str| fs::File::create(path(name)).unwrap();
        let mut server = Command::new(&python);
        server
            .args([
                "-m",
                "mlflow",
                "server",
                "--host",
                "127.0.0.1",
                "--workers",
                "1",
                "--port",
                &port.to_string(),
            ])
            .args(["--backend-store-uri", &format!("sqlite:///{}", path("mlflow.db").display())])
            .args(["--artifacts-destination", &path("artifacts").display().to_string()])
            .envs([("MLFLOW_SERVER_ENABLE_JOB_EXECUTION", "false"), ("MLFLOW_DISABLE_TELEMETRY", "true")])
            .env("GIT_PYTHON_REFRESH", "quiet")
            .env("PATH", format!("{}:/usr/bin:/bin", python.parent().unwrap().display()))
            .current_dir(dir.path())
            .stdout(log("mlflow.out"))
            .stderr(log("mlflow.err"));
        let socket = path("run-proxy.sock");
        let mut proxy = Command::new(PROGRAM);
        proxy.args(["serve", "run-proxy", "--mlflow", &mlflow, "--reads", reads, "--socket"]).arg(&socket);
        let running = [start(&mut server), start(&mut proxy)];
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let front = runtime.block_on(nginx(socket.clone(), mlflow.clone()));
        let client = client(None);
        let site = Self { dir, python, mlflow, socket, front, runtime, client, _running: running };
        let since = Instant::now();
        while site.ask("ana", "GET", "/health", None).0 != 200 {
            let log = || fs::read_to_string(site.dir.path().join("mlflow.err")).unwrap();
            assert!(since.elapsed() < Duration::from_secs(900), "MLflow does not begin: {}", log());
            std::thread::sleep(Duration::from_millis(200));
        }
        site
    }

    /// Sends a request as somebody. Answers the status and the body.
    fn ask(&self, user: &str, method: &str, path: &str, body: Option<&Value>) -> (u16, String) {
        let json = body.map(|body| ("application/json", body.to_string()));
        self.send(user, method, path, json)
    }

    fn send(&self, user: &str, method: &str, path: &str, body: Option<(&str, String)>) -> (u16, String) {
        let url = format!("http://{}{path}", self.front);
        let mut request = self.client.request(method.parse().unwrap(), url).basic_auth(user, Some("x"));
        if let Some((kind, body)) = body {
            request = request.header("content-type", kind).body(body);
        }
        self.runtime.block_on(async {
            let Ok(answer) = request.send().await else { return (0, String::new()) };
            (answer.status().as_u16(), answer.text().await.unwrap_or_default())
        })
    }

    /// Asks the proxy itself, as nginx does, in words that no client puts right before they go.
    fn raw(&self, named: &[&str], path: &str) -> u16 {
        use std::io::{Read as _, Write as _};
        let mut stream = std::os::unix::net::UnixStream::connect(&self.socket).unwrap();
        let named: String = named.iter().map(|user| format!("X-Echoes-Run: {user}\r\n")).collect();
        write!(stream, "GET {path} HTTP/1.1\r\nHost: h\r\n{named}Connection: close\r\n\r\n").unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).unwrap();
        let answer = String::from_utf8_lossy(&answer);
        answer.get(9..12).and_then(|status| status.parse().ok()).unwrap_or_default()
    }

    /// Asks MLflow itself.
    fn mlflow(&self, what: &str, body: &Value) -> Value {
        let (status, answer) = self.ask("ana", "POST", &format!("/api/2.0/mlflow/{what}"), Some(body));
        assert_eq!(status, 200, "{what} {body}: {answer}");
        serde_json::from_str(&answer).unwrap()
    }

    /// Runs work.py as somebody.
    fn work(&self, user: &str, what: &str) -> Value {
        let mut command = Command::new(&self.python);
        command
            .arg(format!("{TOP}/tests/run_login/work.py"))
            .arg(what)
            .envs([("MLFLOW_TRACKING_USERNAME", user), ("MLFLOW_TRACKING_PASSWORD", "x")])
            .env("MLFLOW_TRACKING_URI", format!("http://{}", self.front))
            .envs([("MLFLOW_DISABLE_TELEMETRY", "true"), ("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")])
            .envs([("PYTHONWARNINGS", "ignore"), ("GIT_PYTHON_REFRESH", "quiet")])
            .env("HOME", self.dir.path())
            .current_dir(self.dir.path());
        let out = CompletedProcess::run(&mut command);
        out.assert_code(0);
        let last = out.stdout.trim().lines().last().unwrap_or_default();
        serde_json::from_str(last).unwrap_or_else(|e| panic!("{e}: {out}"))
    }
}

fn client(socket: Option<&Path>) -> reqwest::Client {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let client = reqwest::Client::builder().no_proxy().tls_certs_only([]);
    match socket {
        Some(socket) => client.unix_socket(socket),
        None => client,
    }
    .build()
    .unwrap()
}

/// Passes requests on as our nginx does: a run's login to the proxy, whose name overwrites what the client said.
async fn nginx(socket: PathBuf, mlflow: String) -> SocketAddr {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = listener.local_addr().unwrap();
    let (direct, proxied) = (client(None), client(Some(&socket)));
    let pass = move |request: Request| {
        let (direct, proxied, mlflow) = (direct.clone(), proxied.clone(), mlflow.clone());
        async move {
            let (mut parts, body) = request.into_parts();
            let login = parts.headers.remove("authorization").unwrap();
            let login = BASE64.decode(&login.as_bytes()["Basic ".len()..]).unwrap();
            let user = String::from_utf8(login).unwrap().split(':').next().unwrap().to_owned();
            parts.headers.remove("host");
            parts.headers.remove("x-echoes-run");
            let (client, base) = match user.starts_with("run-") {
                true => (proxied, "http://run-proxy"),
                false => (direct, mlflow.as_str()),
            };
            if user.starts_with("run-") {
                parts.headers.insert("x-echoes-run", user.parse().unwrap());
            }
            let sent = client
                .request(parts.method, format!("{base}{}", parts.uri))
                .headers(parts.headers)
                .body(reqwest::Body::wrap_stream(body.into_data_stream()));
            match sent.send().await {
                Ok(answer) => {
                    let mut response = Response::builder().status(answer.status());
                    *response.headers_mut().unwrap() = answer.headers().clone();
                    response.headers_mut().unwrap().remove("transfer-encoding");
                    response.body(Body::from_stream(answer.bytes_stream())).unwrap()
                }
                Err(e) => Response::builder().status(599).body(Body::from(format!("{e:?}"))).unwrap(),
            }
        }
    };
    let router = Router::new().fallback(pass);
    tokio::spawn(async move { axum::serve(listener, router).await });
    at
}

fn story(mlflow: &str, interpreters: &[&str]) {
    let Some(python) = python(mlflow, interpreters) else { return };
    let site = Site::new(python, "own");
    let theirs = site.work("ana", "person");
    let own = site.work("run-s4", "run");

    // All that it made is marked as its own, and none of it by its word.
    let (_, experiments) = site.ask("ana", "GET", "/api/2.0/mlflow/experiments/search?max_results=100", None);
    let experiments: Value = serde_json::from_str(&experiments).unwrap();
    let ids: Vec<_> =
        experiments["experiments"].as_array().unwrap().iter().map(|e| e["experiment_id"].clone()).collect();
    let marked = json!({ "experiment_ids": ids, "filter": "tags.`echoes.run` = 's4'", "max_results": 1000 });
    let marked = site.mlflow("runs/search", &marked);
    let marked: std::collections::BTreeSet<_> = marked["runs"]
        .as_array()
        .unwrap()
        .iter()
        .map(|run| run["info"]["run_id"].as_str().unwrap())
        .collect();
    let made = own["runs"].as_array().unwrap();
    assert!(made.iter().all(|run| marked.contains(run.as_str().unwrap())), "{made:?} {marked:?}");
    assert!(!marked.contains(theirs["run"].as_str().unwrap()));

    attack::table(&site, &own, &theirs);
    attack::bodies(&site, &own);
    attack::widened(site, &own, &theirs);
}

#[test]
fn a_runs_login_does_its_runs_work_and_no_more_with_mlflow_3_17() {
    story("3.17.2", &["python3.11", "python3.12", "python3.13", "python3"]);
}

#[test]
fn a_runs_login_does_its_runs_work_and_no_more_with_mlflow_3_1() {
    story("3.1.4", &["python3.9"]);
}

#[test]
fn a_runs_login_does_its_runs_work_and_no_more_with_mlflow_2_17() {
    story("2.17.2", &["python3.8"]);
}
