//! What must not be possible: through nginx with a valid password, on loopback as somebody else, and for whoever has
//! taken over MLflow. The facts behind each are in the comments; the doors that are meant to be shut are tried.

use kit::{
    hq,
    lab::{self, Machine, Manifest, Release},
};
use serde_json::{Value, json};
use std::{
    collections::BTreeSet,
    io::Write as _,
    path::PathBuf,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

pub const DOMAIN: &str = "localhost";

/// Somebody on the network with a browser: curl on this host, which trusts the machine's own authority.
pub struct Visitor<'a> {
    machine: &'a Machine,
    pub dir: tempfile::TempDir,
    pub login: String,
}

pub struct Answer {
    /// curl's own exit status; 0 when there was an answer.
    pub curl: i32,
    pub status: u16,
    pub body: String,
}

impl<'a> Visitor<'a> {
    pub fn new(machine: &'a Machine) -> Self {
        let password = machine.ok("echoes-appliance user add visitor --generate").trim().to_owned();
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("ca.pem"), machine.ok("echoes-appliance ca export --pem")).unwrap();
        let visitor = Self { machine, dir, login: format!("visitor:{password}") };
        visitor.until_let_in();
        visitor
    }

    /// The password check looks at its file four times a second; MLflow, just booted, takes longer.
    fn until_let_in(&self) {
        let end = Instant::now() + Duration::from_secs(90);
        loop {
            let answer = self.get("/health");
            if answer.status == 200 {
                return;
            }
            assert!(Instant::now() < end, "a new user gets {} (curl {})", answer.status, answer.curl);
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    fn ca(&self) -> PathBuf {
        self.dir.path().join("ca.pem")
    }

    pub fn curl(&self, url: &str, args: &[&str]) -> Answer {
        let mut curl = Command::new("curl");
        curl.args([
            "--silent",
            "--path-as-is",
            "--globoff",
            "--max-time",
            "120",
            "--write-out",
            "\n%{http_code}",
        ]);
        curl.arg("--cacert").arg(self.ca());
        for service in ["mlflow", "tensorboard", "dashboard", "docs"] {
            for port in [80, 443] {
                curl.args(["--resolve", &format!("{service}.{DOMAIN}:{port}:{}", self.machine.ip())]);
            }
        }
        let out = curl.args(args).arg(url).stdin(Stdio::null()).output().expect("curl is installed");
        let text = String::from_utf8_lossy(&out.stdout).into_owned();
        let (body, status) = text.rsplit_once('\n').unwrap_or_default();
        Answer {
            curl: out.status.code().unwrap_or(-1),
            status: status.parse().unwrap_or(0),
            body: body.into(),
        }
    }

    /// As the visitor, at MLflow.
    pub fn ask(&self, method: &str, path: &str, args: &[&str]) -> Answer {
        let mut all = vec!["--user", &self.login, "--request", method];
        all.extend(args);
        self.curl(&format!("https://mlflow.{DOMAIN}{path}"), &all)
    }

    pub fn get(&self, path: &str) -> Answer {
        self.ask("GET", path, &[])
    }

    pub fn post(&self, path: &str, body: &Value) -> Answer {
        self.ask("POST", path, &["--header", "Content-Type: application/json", "--data", &body.to_string()])
    }

    /// One whole request, byte by byte, over TLS for `name`.
    fn raw(&self, name: &str, request: &str) -> String {
        let mut child = Command::new("openssl")
            .args([
                "s_client",
                "-quiet",
                "-connect",
                &format!("{}:443", self.machine.ip()),
                "-servername",
                name,
            ])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("openssl is installed");
        child.stdin.as_mut().unwrap().write_all(request.as_bytes()).unwrap();
        String::from_utf8_lossy(&child.wait_with_output().unwrap().stdout).into_owned()
    }

    fn basic(&self) -> String {
        let mut child = Command::new("base64")
            .args(["-w", "0"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(self.login.as_bytes()).unwrap();
        String::from_utf8(child.wait_with_output().unwrap().stdout).unwrap()
    }
}

/// Routes of MLflow that run commands or code, spend the team's money, or make the machine call others.
const NOT_FOR_VISITORS: &[(&str, &str)] = &[
    ("PUT", "/ajax-api/3.0/mlflow/assistant/config"),
    ("POST", "/ajax-api/3.0/mlflow/assistant/message"),
    ("POST", "/ajax-api/3.0/mlflow/assistant/skills/install"),
    ("POST", "/ajax-api/3.0/jobs/"),
    ("POST", "/ajax-api/3.0/jobs/search"),
    ("PATCH", "/ajax-api/3.0/mlflow/jobs/cancel/1"),
    ("POST", "/ajax-api/3.0/mlflow/scorer/invoke"),
    ("POST", "/ajax-api/3.0/mlflow/issues/invoke"),
    ("POST", "/ajax-api/3.0/mlflow/genai/evaluate/invoke"),
    ("PUT", "/ajax-api/3.0/mlflow/scorers/online-config"),
    ("POST", "/api/3.0/mlflow/prompt-optimization/jobs"),
    ("POST", "/api/2.0/mlflow/webhooks"),
    ("POST", "/api/2.0/mlflow/webhooks/1/test"),
    ("POST", "/ajax-api/2.0/mlflow/gateway-proxy"),
    ("POST", "/ajax-api/3.0/mlflow/gateway/secrets/create"),
    ("POST", "/gateway/x/mlflow/invocations"),
    ("POST", "/gateway/proxy/x/y"),
];

#[test]
fn what_runs_code_or_spends_money_is_refused_in_every_spelling_on_debian_11() {
    what_runs_code(Release::Bullseye);
}

#[test]
fn what_runs_code_or_spends_money_is_refused_in_every_spelling_on_debian_12() {
    what_runs_code(Release::Bookworm);
}

#[test]
fn what_runs_code_or_spends_money_is_refused_in_every_spelling_on_debian_13() {
    what_runs_code(Release::Trixie);
}

fn what_runs_code(release: Release) {
    if !hq::can_boot("attacks on MLflow's routes") {
        return;
    }
    let machine = hq::installed(release);
    let visitor = Visitor::new(&machine);
    for (method, path) in NOT_FOR_VISITORS {
        for (n, spelt) in spellings(path).into_iter().enumerate() {
            // nginx reads a path in the same way however it came; so each is tried in one way, the first in both.
            let versions = ["--http1.1", "--http2"];
            for version in if n == 0 { &versions[..] } else { &versions[n % 2..][..1] } {
                let answer = visitor.ask(method, &spelt, &[version, "--data", "{}"]);
                // 400 is a path that nginx cannot read or will not pass on.
                assert!(
                    matches!(answer.status, 400 | 403),
                    "{release}: {method} {spelt} {version} answered {}: {}",
                    answer.status,
                    answer.body
                );
                assert!(
                    answer.status == 400 || answer.body == "Not for remote users.\n",
                    "{spelt}: {}",
                    answer.body
                );
            }
        }
    }
    // A request target with a scheme and a name in it, which overrules the Host header.
    let login = visitor.basic();
    let absolute = |target: &str, host: &str| {
        let request = format!(
            "GET {target} HTTP/1.1\r\nHost: {host}\r\nAuthorization: Basic {login}\r\nConnection: close\r\n\r\n"
        );
        visitor.raw(&format!("mlflow.{DOMAIN}"), &request)
    };
    let own = format!("mlflow.{DOMAIN}");
    for (target, host) in [
        (format!("https://{own}/ajax-api/3.0/mlflow/assistant/config"), own.clone()),
        (format!("http://{own}/gateway/x"), own.clone()),
        (format!("https://{own}/gateway/proxy/x/../../../health"), own.clone()),
        (format!("https://docs.{DOMAIN}/../gateway/x"), own.clone()),
        ("/gateway/x".into(), format!("{own}:443")),
        ("/gateway/x".into(), own.to_uppercase()),
        ("/gateway/x".into(), format!("{own}.")),
    ] {
        let said = absolute(&target, &host);
        let line = said.lines().next().unwrap_or_default();
        // The docs know nothing of that path; everybody else refuses it.
        let fine = ["403", "400", "404"].iter().any(|code| line.contains(code));
        assert!(fine, "{release}: {target} for {host}: {said}");
    }
    // And what people need is not refused along with it.
    for (method, path, expected) in [
        ("GET", "/api/2.0/mlflow/experiments/search?max_results=1&note=a/../b", &[200][..]),
        ("GET", "/ajax-api/2.0/mlflow/experiments/search?max_results=1", &[200]),
        ("GET", "/", &[200]),
        // How clients log traces: not there before MLflow 3.6, and a body it cannot read after.
        ("POST", "/v1/traces", &[400, 404, 405, 415, 422]),
    ] {
        let answer = visitor.ask(method, path, &[]);
        assert!(expected.contains(&answer.status), "{release}: {path} answered {}", answer.status);
    }
}

/// As many ways to write a path as a proxy and a Python server may read differently.
fn spellings(path: &str) -> Vec<String> {
    let (first, rest) = path[1..].split_once('/').unwrap();
    let last = path.rsplit('/').next().unwrap();
    let mut all = vec![
        path.to_owned(),
        format!("/{path}"),
        format!("//{}", path.replace('/', "//")),
        path.replacen(rest, &rest.replace('/', "%2f"), 1),
        path.replacen(rest, &rest.replace('/', "%2F"), 1),
        format!("/.{path}"),
        format!("/x/..{path}"),
        format!("/x/%2e%2e{path}"),
        format!("/x%2f..{path}"),
        format!("/{first}/./{rest}"),
        format!("/{first}/x/../{rest}"),
        format!("{path}/.."),
        format!("{path}/x/../../../../../../../health"),
        format!("{path}?x=/health"),
        format!("{path}%00"),
        format!("/health/..{path}"),
        path.to_uppercase(),
        path.replacen("a", "%61", 1),
        path.replacen("ga", "%67%61", 1),
    ];
    // The last word itself in another spelling, where what is refused ends before it.
    if path.matches('/').count() > 4 {
        all.push(path.replacen(last, &format!("%{:02x}{}", last.as_bytes()[0], &last[1..]), 1));
        all.push(format!("{path}%0a"));
        all.push(format!("{path}/"));
    }
    all
}

/// Whatever MLflow a later lock brings: a route that sounds like one of these must be refused.
#[test]
fn no_route_of_this_mlflow_that_sounds_dangerous_is_open() {
    if !hq::can_boot("MLflow's routes") {
        return;
    }
    let machine = hq::installed(Release::Bookworm);
    let visitor = Visitor::new(&machine);
    machine.put(ROUTES.as_bytes(), "/root/routes.py", 0o600).unwrap();
    let said = machine.ok("/opt/echoes-appliance/services/bin/python /root/routes.py 2>/dev/null");
    let routes: BTreeSet<(&str, &str)> = said.lines().filter_map(|line| line.split_once(' ')).collect();
    assert!(routes.len() > 300, "these are all routes of MLflow? {said}");
    let sounds = |path: &str| {
        let words = [
            "assistant",
            "job",
            "gateway",
            "invo",
            "webhook",
            "optimi",
            "secret",
            "online-config",
            "exec",
            "shell",
        ];
        words.iter().any(|word| path.to_lowercase().contains(word))
    };
    let (mut tried, mut open) = (0, Vec::new());
    for (method, path) in &routes {
        if sounds(path) {
            tried += 1;
            let answer = visitor.ask(method, path, &["--data", "{}"]);
            if answer.status != 403 || answer.body != "Not for remote users.\n" {
                open.push(format!("{method} {path}: {}", answer.status));
            }
        }
    }
    assert!(tried > 80, "only {tried} of {} routes sound dangerous", routes.len());
    assert!(open.is_empty(), "{open:#?}");
}

/// `METHOD path` of every route, parameters filled in.
const ROUTES: &str = r#"
import os, re
os.environ["MLFLOW_BACKEND_STORE_URI"] = os.environ["_MLFLOW_SERVER_FILE_STORE"] = "sqlite:////tmp/routes.db"
from mlflow.server import app as flask
from mlflow.server.fastapi_app import app

def say(methods, path):
    for method in sorted(set(methods) - {"HEAD", "OPTIONS"}):
        print(method, re.sub(r"[{<][^}>]*[}>]", "x", path))

def walk(routes, prefix=""):
    for route in routes:
        below = getattr(route, "original_router", None)
        if below is not None:
            walk(below.routes, prefix + route.include_context.prefix)
        elif getattr(route, "methods", None):
            say(route.methods, prefix + route.path)

walk(app.routes)
for rule in flask.url_map.iter_rules():
    say(rule.methods, rule.rule)
"#;

#[test]
fn foreign_names_origins_and_addresses_get_nowhere_on_debian_11() {
    foreign_names(Release::Bullseye);
}

#[test]
fn foreign_names_origins_and_addresses_get_nowhere_on_debian_12() {
    foreign_names(Release::Bookworm);
}

#[test]
fn foreign_names_origins_and_addresses_get_nowhere_on_debian_13() {
    foreign_names(Release::Trixie);
}

fn foreign_names(release: Release) {
    if !hq::can_boot("foreign names") {
        return;
    }
    let machine = hq::installed(release);
    let visitor = Visitor::new(&machine);
    // TLS for one of ours, and then another name: no answer at all.
    for host in ["evil.test", "localhost", "127.0.0.1:5000", ""] {
        for version in ["--http1.1", "--http2"] {
            let answer = visitor.ask("GET", "/", &[version, "--header", &format!("Host: {host}")]);
            if host.is_empty() {
                // curl then sends none: HTTP/1.1 without a name is a bad request.
                assert!(answer.status != 200 || version == "--http2", "{release}: no Host was served");
            } else {
                assert_eq!(
                    answer.status, 0,
                    "{release} {version}: Host {host} got {}: {}",
                    answer.status, answer.body
                );
            }
        }
    }
    let ip = machine.ip();
    let plain = visitor.curl(&format!("http://{ip}/"), &["--header", "Host: evil.test"]);
    assert_eq!((plain.curl, plain.status), (52, 0), "{release}: a foreign name over http was answered");
    let tls = visitor.curl(&format!("https://{ip}/"), &["--insecure"]);
    assert_eq!(tls.status, 0, "{release}: the bare address was answered");
    // A page of somebody else's that uses the visitor's password.
    let create = "/api/2.0/mlflow/experiments/create";
    let json = ["--header", "Content-Type: application/json", "--data", "{\"name\":\"stolen\"}"];
    for origin in [
        "https://evil.test",
        "null",
        "https://mlflow.localhost.evil.test",
        "http://mlflow.localhost",
        "https://docs.localhost",
        "http://localhost:3000",
        "http://127.0.0.1:5000",
    ] {
        let header = format!("Origin: {origin}");
        let answer = visitor.ask("POST", create, &[&["--header", &header], &json[..]].concat());
        assert_eq!(answer.status, 403, "{release}: Origin {origin}: {}", answer.body);
        let read =
            visitor.ask("GET", "/api/2.0/mlflow/experiments/search?max_results=1", &["--header", &header]);
        assert_eq!(read.status, 403, "{release}: a page of {origin} reads");
    }
    let own = ["--header", "Origin: https://mlflow.localhost"];
    let answer = visitor.ask("POST", create, &[&own[..], &json[..]].concat());
    assert_eq!(answer.status, 200, "{release}: our own origin: {}", answer.body);
    what_reaches_mlflow(&visitor);
}

/// In MLflow's place something that repeats what it was told.
fn what_reaches_mlflow(visitor: &Visitor) {
    let machine = visitor.machine;
    machine.put(ECHO.as_bytes(), "/root/echo.py", 0o600).unwrap();
    machine.ok("systemctl stop mlflow && install -d -m 750 -g echoes-web /run/echoes-mlflow && \
                systemd-run --quiet --unit=echo python3 /root/echo.py");
    let mut args = Vec::new();
    for header in [
        "X-Forwarded-For: 127.0.0.1",
        "X-Real-IP: 127.0.0.1",
        "X-Forwarded-Proto: http",
        "X-Forwarded-Host: evil.test",
        "Forwarded: for=127.0.0.1",
    ] {
        args.extend(["--header", header]);
    }
    let end = Instant::now() + Duration::from_secs(10);
    let said = loop {
        let answer = visitor.ask("GET", "/headers", &args);
        if answer.status == 200 {
            break answer.body.to_lowercase();
        }
        assert!(Instant::now() < end, "the echo does not come up: {}", answer.status);
        std::thread::sleep(Duration::from_millis(100));
    };
    let values = |name: &str| -> Vec<&str> {
        said.lines()
            .filter_map(|line| line.split_once(": "))
            .filter(|(n, _)| *n == name)
            .map(|(_, v)| v)
            .collect()
    };
    let from = values("x-forwarded-for");
    assert_eq!(from.len(), 1, "{said}");
    assert_eq!(values("x-real-ip"), from, "{said}");
    assert!(!from[0].contains("127.0.0.1") && from[0].starts_with("10."), "{said}");
    assert_eq!(values("x-forwarded-proto"), ["https"], "{said}");
    assert_eq!(values("host"), ["mlflow.localhost"], "{said}");
    assert!(values("authorization").is_empty(), "the password reached MLflow: {said}");
}

const ECHO: &str = r#"
import http.server, os, socketserver
class Echo(http.server.BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass
    def do_GET(self):
        body = "".join(f"{name}: {value}\n" for name, value in self.headers.items()).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
os.umask(0)
socketserver.UnixStreamServer("/run/echoes-mlflow/mlflow:5000", Echo).serve_forever()
"#;

#[test]
fn an_artifact_place_outside_leads_nowhere_on_debian_11() {
    artifact_places(Release::Bullseye);
}

#[test]
fn an_artifact_place_outside_leads_nowhere_on_debian_12() {
    artifact_places(Release::Bookworm);
}

#[test]
fn an_artifact_place_outside_leads_nowhere_on_debian_13() {
    artifact_places(Release::Trixie);
}

/// Any client may name a place on the server as an experiment's artifact place: MLflow then reads and writes there
/// with its own rights. So its rights are what must be small.
fn artifact_places(release: Release) {
    if !hq::can_boot("artifact places") {
        return;
    }
    let machine = hq::installed(release);
    let visitor = Visitor::new(&machine);
    machine.ok("echo the-data-set >/mnt/echoes_data/ucf101/secret; mkdir -m 777 /srv/open; echo hers >/srv/open/secret; \
                useradd --create-home mallory; echo mine >/home/mallory/secret; chmod 755 /home/mallory");
    let before = machine.manifest().unwrap();
    let create = |path: &str, body: Value| {
        let answer = visitor.post(&format!("/api/2.0/mlflow/{path}"), &body);
        assert_eq!(answer.status, 200, "{release}: {path}: {}", answer.body);
        serde_json::from_str::<Value>(&answer.body).unwrap()
    };
    let places = [
        "file:///etc",
        "file:///mnt/echoes_data/ucf101",
        "file:///var/lib/echoes-appliance",
        "file:///root",
        "file:///home/mallory",
        "file:///srv/open",
        "file:///tmp",
        "file:///var/www",
        "file:///run/lock",
        "file:///dev/shm",
        "file:///proc/1/root/srv/open",
        "file:///proc/self/cwd/../ucf101",
        "/etc",
        "file:///etc/nginx",
        "file:///mnt/echoes_data/mlruns/../tfruns",
    ];
    let mut refused = 0;
    for place in places {
        let made = visitor
            .post("/api/2.0/mlflow/experiments/create", &json!({"name": place, "artifact_location": place}));
        if made.status != 200 {
            refused += 1;
            continue;
        }
        let made: Value = serde_json::from_str(&made.body).unwrap();
        let run = create("runs/create", json!({"experiment_id": made["experiment_id"]}));
        let run = run["run"]["info"]["run_id"].as_str().unwrap().to_owned();
        let octets = ["--header", "Content-Type: application/octet-stream", "--data-binary", "pwned"];
        visitor.ask(
            "POST",
            &format!("/ajax-api/2.0/mlflow/upload-artifact?run_uuid={run}&path=pwned"),
            &octets,
        );
        for path in [
            "",
            "../..",
            "../../secret",
            "%2e%2e/%2e%2e/secret",
            "..%2f..%2fpasswd",
            "/etc/passwd",
            "file:///etc/passwd",
        ] {
            let list = visitor.get(&format!("/api/2.0/mlflow/artifacts/list?run_id={run}&path={path}"));
            assert!(!list.body.contains("secret\""), "{release}: {place} {path} lists {}", list.body);
            let got = visitor.get(&format!("/get-artifact?run_id={run}&path={path}"));
            leaks_nothing(&got, &format!("{release}: {place} {path}"));
        }
        visitor.post("/api/2.0/mlflow/runs/delete", &json!({"run_id": run}));
    }
    // The same where it may: so it is the sandbox that stopped the others.
    let inside = create(
        "experiments/create",
        json!({"name": "inside", "artifact_location": "file:///mnt/echoes_data/mlruns/inside"}),
    );
    let run = create("runs/create", json!({"experiment_id": inside["experiment_id"]}));
    let run = run["run"]["info"]["run_id"].as_str().unwrap();
    let octets = ["--header", "Content-Type: application/octet-stream", "--data-binary", "own"];
    let at = format!("/ajax-api/2.0/mlflow/upload-artifact?run_uuid={run}&path=own");
    assert_eq!(visitor.ask("POST", &at, &octets).status, 200, "{release}");
    assert_eq!(visitor.get(&format!("/get-artifact?run_id={run}&path=own")).body, "own", "{release}");
    assert!(refused < places.len(), "{release}: MLflow refuses them all now; then try something else");
    // A model version whose source is a directory of the server's, and the proxied artifacts themselves.
    visitor.post("/api/2.0/mlflow/registered-models/create", &json!({"name": "m"}));
    for source in ["file:///etc", "/etc", "file:///mnt/echoes_data/ucf101", "file:///proc/self/root/etc"] {
        visitor.post("/api/2.0/mlflow/model-versions/create", &json!({"name": "m", "source": source}));
    }
    for version in 1..4 {
        for path in ["passwd", "secret", "../secret"] {
            let got =
                visitor.get(&format!("/model-versions/get-artifact?name=m&version={version}&path={path}"));
            leaks_nothing(&got, &format!("{release}: model version {version} {path}"));
        }
    }
    for path in [
        "../../../etc/passwd",
        "..%2f..%2f..%2fetc%2fpasswd",
        "%2e%2e/%2e%2e/%2e%2e/etc/passwd",
        "%252e%252e%252f%252e%252e%252fetc%252fpasswd",
        "/etc/passwd",
        "%2fetc%2fpasswd",
        "x/../../../ucf101/secret",
        "file:///etc/passwd",
        "0/..%00/etc/passwd",
        "../mlflow.db",
    ] {
        let at = format!("/api/2.0/mlflow-artifacts/artifacts/{path}");
        leaks_nothing(&visitor.get(&at), &format!("{release}: {at}"));
        let put = visitor.ask("PUT", &at, &["--data-binary", "pwned"]);
        assert_ne!(put.status, 200, "{release}: PUT {at}: {}", put.body);
        let delete = visitor.ask("DELETE", &at, &[]);
        assert_ne!(delete.status, 200, "{release}: DELETE {at}: {}", delete.body);
    }
    // Nothing came, went or changed but in the service's own directory.
    let changed = strange(&before, &machine.manifest().unwrap());
    assert!(changed.is_empty(), "{release}: MLflow changed {changed:#?}");
    assert_eq!(machine.ok("cat /mnt/echoes_data/ucf101/secret"), "the-data-set\n");
    // But for the socket that it listens on, and its directory.
    let shared = machine.ok("find /tmp /dev/shm /run/lock /run/user -xdev -user mlflow; find /run -xdev -user mlflow -not -path /run/echoes-mlflow -not -path /run/echoes-mlflow/mlflow:5000");
    assert_eq!(shared, "", "{release}: MLflow wrote where others look");
    as_mlflow_itself(&machine);
}

fn leaks_nothing(answer: &Answer, what: &str) {
    let secret = ["root:x:0:0", "the-data-set", "hers\n", "mine\n", "SQLite format"];
    assert!(!secret.iter().any(|s| answer.body.contains(s)), "{what} was read: {}", answer.body);
}

/// What differs, but for what a running machine and MLflow's own directory change by themselves.
fn strange(before: &Manifest, after: &Manifest) -> Vec<String> {
    let own = [
        "mnt/echoes_data/mlruns",
        "var/log",
        "var/lib/systemd",
        "root",
        "var/tmp/systemd-private",
        "var/lib/private/systemd",
    ];
    let all = lab::differences(before, after);
    all.into_iter()
        .map(|line| line.to_string())
        .filter(|line| !own.iter().any(|path| line.contains(path)))
        .collect()
}

/// Whoever has MLflow has its rights: this is all of them.
fn as_mlflow_itself(machine: &Machine) {
    let release = machine.release();
    let inside = |sh: &str| {
        let pid = machine.ok("systemctl show --property MainPID --value mlflow");
        let enter = format!(
            "nsenter --target {} --mount setpriv --reuid mlflow --regid mlflow --clear-groups --no-new-privs --bounding-set -all sh -c '{sh}'",
            pid.trim()
        );
        machine.exec(&enter)
    };
    for secret in [
        "/etc/shadow",
        "/etc/nginx/.htpasswd",
        "/etc/echoes-appliance/mlflow.env",
        "/var/lib/echoes-appliance/receipt.jsonl",
        "/var/lib/echoes-appliance/tls/mlflow.localhost/current/key.pem",
        "/mnt/echoes_data/ucf101/secret",
        "/home/mallory/secret",
        "/srv/open/secret",
        "/etc/ssh/sshd_config",
        "/proc/1/environ",
        "/var/log/nginx/access.log",
    ] {
        let out = inside(&format!("cat {secret}"));
        assert!(out.code != 0 && out.stdout.is_empty(), "{release}: mlflow reads {secret}");
    }
    let here = inside("ls /mnt/echoes_data").stdout;
    assert_eq!(here, "mlruns\n", "{release}: of the data it sees");
    // World-writable places that others use as well. /tmp and its like are its own.
    let writes = inside("for dir in $(find / -xdev -type d -writable 2>/dev/null; echo /dev/shm /run/lock /dev/mqueue /run /tmp /var/tmp); do \
                         if touch $dir/.pwned 2>/dev/null; then echo $dir; fi; done").stdout;
    let writes: BTreeSet<&str> = writes
        .lines()
        .filter(|dir| !dir.starts_with("/mnt/echoes_data/mlruns") && !dir.starts_with("/proc"))
        .collect();
    let out = machine.ok("find / -name .pwned -not -path \"/mnt/echoes_data/mlruns/*\" -not -path \"/proc/*\" 2>/dev/null || true");
    assert_eq!(out, "", "{release}: it wrote into what others see (it can write to {writes:?})");
    machine.ok("find /mnt/echoes_data/mlruns -name .pwned -delete");
}

#[test]
fn a_neighbour_on_the_machine_reaches_nothing_and_a_member_runs_nothing_on_debian_11() {
    a_neighbour(Release::Bullseye);
}

#[test]
fn a_neighbour_on_the_machine_reaches_nothing_and_a_member_runs_nothing_on_debian_12() {
    a_neighbour(Release::Bookworm);
}

#[test]
fn a_neighbour_on_the_machine_reaches_nothing_and_a_member_runs_nothing_on_debian_13() {
    a_neighbour(Release::Trixie);
}

/// A neighbour is asked for a password; a member is not, and has what every user has.
fn a_neighbour(release: Release) {
    if !hq::can_boot("a neighbour on the machine") {
        return;
    }
    let machine = hq::installed(release);
    // As the program writes it, where there is none any more.
    machine
        .ok("useradd --create-home mallory; useradd --create-home --groups echoes ana; umask 077; touch /run/echoes-appliance/first-password || true");
    let becoming = |name: &str, sh: &str| {
        machine.exec_fed(&format!("setpriv --reuid {name} --regid {name} --init-groups sh"), sh.as_bytes())
    };
    let as_her = |sh: &str| becoming("mallory", sh);
    for secret in [
        "/etc/nginx/.htpasswd",
        "/etc/echoes-appliance/mlflow.env",
        "/var/lib/echoes-appliance/receipt.jsonl",
        "/var/lib/echoes-appliance/tls/mlflow.localhost/current/key.pem",
        "/mnt/echoes_data/mlruns/mlflow.db",
        "/run/echoes-appliance/first-password",
    ] {
        let out = as_her(&format!("cat {secret}"));
        assert!(out.code != 0 && out.stdout.is_empty(), "{release}: a neighbour reads {secret}");
    }
    let keys =
        as_her("find / -name \"*key*.pem\" -readable -not -path \"/proc/*\" -path \"*echoes*\" 2>/dev/null")
            .stdout;
    assert_eq!(keys, "", "{release}: a neighbour reads keys");
    let socket = as_her(
        "python3 -c \"import socket; socket.socket(socket.AF_UNIX).connect(\\\"/run/echoes-auth/auth.sock\\\")\"",
    );
    assert!(socket.code != 0 && socket.stderr.contains("PermissionError"), "{release}: {}", socket.stderr);
    for sh in [
        "touch /mnt/echoes_data/mlruns/x",
        "touch /mnt/echoes_data/tfruns/x",
        "touch /var/www/dashboard/x",
        "ls /mnt/echoes_data/mlruns/artifacts",
    ] {
        assert_ne!(as_her(sh).code, 0, "{release}: a neighbour may `{sh}`");
    }
    let refused = as_her("echoes-appliance status; echoes-appliance user add mallory --generate");
    assert!(
        refused.code == 1 && refused.stderr.contains("only root may do this"),
        "{release}: {}",
        refused.stderr
    );

    // Nothing of ours is for the network but nginx.
    let sockets = machine.ok("ss --no-header --listening --numeric --tcp --udp");
    for line in sockets.lines() {
        let at = line.split_whitespace().nth(4).unwrap_or_default();
        let (address, port) = at.rsplit_once(':').unwrap();
        let inside = address.starts_with("127.") || address == "[::1]";
        assert!(inside || matches!(port, "22" | "80" | "443"), "{release}: {line}");
    }

    machine.put(NEIGHBOUR.as_bytes(), "/srv/neighbour.py", 0o644).unwrap();
    let before = machine.manifest().unwrap();
    let stranger = as_her("python3 /srv/neighbour.py");
    assert_eq!(stranger.code, 0, "{release}: {}", stranger.text());
    for line in
        stranger.stdout.lines().filter(|line| line.split(' ').nth(1).is_some_and(|p| p.starts_with('/')))
    {
        let status = line.split(' ').nth(2).unwrap_or_default();
        assert!(matches!(status, "401" | "403" | "421"), "{release}: a neighbour gets {line}");
    }
    let said = becoming("ana", "python3 /srv/neighbour.py");
    assert_eq!(said.code, 0, "{release}: {}", said.text());
    for line in said
        .stdout
        .lines()
        .filter(|line| line.contains("/assistant") || line.contains("/jobs") || line.contains("/invoke"))
    {
        assert!(line.contains(" 403 Not for remote users."), "{release}: a member gets {line}");
    }
    let changed = strange(&before, &machine.manifest().unwrap());
    assert!(changed.is_empty(), "{release}: through MLflow a neighbour changed {changed:#?}");
    assert!(!said.stdout.contains("root:x:0:0"), "{release}: {}", said.stdout);
    assert_eq!(
        machine.ok("pgrep --uid mlflow --full \"sleep 4242\" || true"),
        "",
        "{release}: she runs commands as mlflow"
    );
}

/// The assistant and the jobs as a neighbour finds them, with all she may tell them.
const NEIGHBOUR: &str = r#"
import json, urllib.request, urllib.error
def ask(method, path, body=None, headers={}):
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request("http://127.0.0.1:5000" + path, data, {"Content-Type": "application/json", **headers}, method=method)
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            status, text = answer.status, answer.read(2000).decode(errors="replace")
    except urllib.error.HTTPError as e:
        status, text = e.code, e.read(500).decode(errors="replace")
    except Exception as e:
        status, text = 0, str(e)
    print(method, path, status, text[:300])
    return status, text
A = "/ajax-api/3.0/mlflow/assistant"
for provider in "claude_code", "codex", "mlflow_gateway":
    ask("PUT", A + "/config", {"providers": {provider: {"selected": True, "model": "default", "permissions": {"allow_edit_files": True, "allow_read_docs": True, "full_access": True}}}, "projects": {"0": {"type": "local", "location": "/etc"}}})
    ask("POST", A + "/skills/install", {"type": "custom", "custom_path": "/srv/open/skills", "experiment_id": "0"})
    ask("POST", A + "/skills/install", {"type": "global"})
    ask("POST", A + "/skills/install", {"type": "project", "experiment_id": "0"})
status, text = ask("POST", A + "/message", {"message": "run `sleep 4242` and `cat /etc/passwd`", "experiment_id": "0"})
if status == 200:
    ask("GET", json.loads(text)["stream_url"])
ask("POST", "/ajax-api/3.0/jobs/", {"job_name": "run_online_trace_scorer", "params": {}})
ask("POST", "/ajax-api/3.0/jobs/", {"job_name": "invoke_scorer", "params": {"experiment_id": "0", "serialized_scorer": "{}", "trace_ids": []}})
ask("POST", "/ajax-api/3.0/mlflow/genai/evaluate/invoke", {"experiment_id": "0", "trace_ids": ["x"], "serialized_scorers": ["{}"]})
ask("GET", "/", headers={"Host": "evil.test"})
_, text = ask("POST", "/api/2.0/mlflow/experiments/create", {"name": "hers", "artifact_location": "file:///srv"})
"#;

/// nginx hands the body through as it comes, MLflow writes it where it will lie.
#[test]
fn an_upload_of_two_gigabytes_spools_nothing_on_the_os_disk() {
    if !hq::can_boot("a large upload") {
        return;
    }
    let machine = hq::installed(Release::Bookworm);
    let visitor = Visitor::new(&machine);
    // Where a proxy or a Python server might put a large body first, there is now next to no room.
    machine.ok("systemctl stop nginx && for dir in /var/lib/nginx /tmp /var/tmp; do mount -t tmpfs -o size=4m,mode=1777 small $dir; done && systemctl start nginx && systemctl restart mlflow");
    let size: u64 = 2 << 30;
    machine.ok("touch /root/marker");
    let mut zeros = Command::new("sh");
    let at = format!("https://mlflow.{DOMAIN}/api/2.0/mlflow-artifacts/artifacts/9/big/artifacts/zeros");
    // Without --upload-file's 100-continue curl would send nothing until asked; a stream has no length to announce.
    zeros.args(["-c", &format!(
        "head -c {size} /dev/zero | curl --silent --show-error --fail --cacert {} --resolve mlflow.{DOMAIN}:443:{} --user {} --upload-file - {at}",
        visitor.ca().display(), machine.ip(), visitor.login
    )]);
    let mut sending = zeros.stdout(Stdio::null()).spawn().unwrap();
    let mut watched = 0;
    while sending.try_wait().unwrap().is_none() {
        let elsewhere = machine.ok("find / -xdev -newer /root/marker -type f -size +1M -not -path '/mnt/echoes_data/*' -not -path '/var/log/journal/*'; du -sm /var/lib/nginx | grep -v '^[0-3]\\s' || true");
        assert_eq!(elsewhere, "", "a part of the upload lies elsewhere");
        watched += 1;
        std::thread::sleep(Duration::from_millis(200));
    }
    assert!(sending.wait().unwrap().success(), "the upload failed");
    assert!(watched > 3, "looked {watched} times while it went up");
    let artifacts = machine.ok("stat --format %s /mnt/echoes_data/mlruns/artifacts/9/big/artifacts/zeros");
    assert_eq!(artifacts.trim(), size.to_string());
    // Down again through the proxy, also without a spool.
    let down = Command::new("sh").args(["-c", &format!(
        "curl --silent --fail --cacert {} --resolve mlflow.{DOMAIN}:443:{} --user {} --range 0-400000000 {at} | wc -c",
        visitor.ca().display(), machine.ip(), visitor.login
    )]).output().unwrap();
    assert!(String::from_utf8_lossy(&down.stdout).trim().parse::<u64>().unwrap_or(0) > 400_000_000);
    // Who has no password sends nothing at all; who sends too much to the others is told so.
    let stranger = visitor.curl(&at, &["--upload-file", "/etc/services"]);
    assert_eq!(stranger.status, 401);
    for (service, most) in [("tensorboard", 17), ("dashboard", 2), ("docs", 2)] {
        let file = visitor.dir.path().join("large");
        std::fs::write(&file, vec![0; most << 20]).unwrap();
        let url = format!("https://{service}.{DOMAIN}/");
        let answer =
            visitor.curl(&url, &["--user", &visitor.login, "--data-binary", &format!("@{}", file.display())]);
        assert_eq!(answer.status, 413, "{service}");
    }
}

/// A guesser at full speed: those who are known get on, the guesser gets nowhere, the machine stays calm.
#[test]
fn a_guesser_stops_nobody_and_a_removed_user_is_out_within_a_second() {
    if !hq::can_boot("a password guesser") {
        return;
    }
    let machine = hq::installed(Release::Bookworm);
    let visitor = Visitor::new(&machine);
    let gate = machine.ok("systemctl show --property MainPID --value echoes-auth");
    let cpu = || -> f64 {
        let stat = machine.ok(&format!("cat /proc/{}/stat", gate.trim()));
        let words: Vec<f64> =
            stat.rsplit(')').next().unwrap().split_whitespace().filter_map(|w| w.parse().ok()).collect();
        // Fields 14 and 15 of the line, in hundredths; the state before them is no number.
        (words[10] + words[11]) / 100.0
    };
    const GUESSES: usize = 1500;
    let guesser = |n: usize| {
        let mut config = String::new();
        for guess in 0..GUESSES {
            config += &format!(
                "url = \"https://mlflow.{DOMAIN}/health\"\nuser = \"visitor:{n}-{guess}\"\noutput = /dev/null\nnext\n"
            );
        }
        // Options are each transfer's own: what all need is repeated.
        let all = format!(
            "cacert = \"{}\"\nresolve = \"mlflow.{DOMAIN}:443:{}\"\nsilent\nwrite-out = \"%{{http_code}}\\n\"\n",
            visitor.ca().display(),
            machine.ip()
        );
        let config = config.replace("url = ", &format!("{all}url = "));
        let file = visitor.dir.path().join(format!("guesses-{n}"));
        std::fs::write(&file, config.trim_end().trim_end_matches("next")).unwrap();
        Command::new("curl")
            .arg("--config")
            .arg(file)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap()
    };
    let (cpu_before, since) = (cpu(), machine.ok("date +%s"));
    let began = Instant::now();
    let mut guessers: Vec<_> = (0..2).map(guesser).collect();
    let (mut asked, mut slowest) = (0, Duration::ZERO);
    while guessers.iter_mut().any(|g| g.try_wait().unwrap().is_none()) {
        let asking = Instant::now();
        let answer = visitor.get("/health");
        assert_eq!(answer.status, 200, "the known user was refused after {asked} requests");
        slowest = slowest.max(asking.elapsed());
        asked += 1;
    }
    let took = began.elapsed();
    let mut answers = std::collections::BTreeMap::<String, usize>::new();
    for guesser in guessers {
        let out = guesser.wait_with_output().unwrap();
        for line in String::from_utf8_lossy(&out.stdout).lines() {
            *answers.entry(line.into()).or_default() += 1;
        }
    }
    eprintln!(
        "{answers:?} in {took:?}; {asked} requests of the known user, the slowest {slowest:?}; {:.1} s of CPU",
        cpu() - cpu_before
    );
    let of = |status: &str| answers.get(status).copied().unwrap_or(0);
    assert_eq!(of("401") + of("429"), 2 * GUESSES, "{answers:?}");
    assert!(of("401") <= 40, "{answers:?}: that is how many were verified");
    assert!(asked > 5 && slowest < Duration::from_secs(8), "the known user waited {slowest:?}");
    // 3000 hashes would be ten minutes; a few dozen are a few seconds, also in a build for debugging.
    assert!(cpu() - cpu_before < 60.0, "{:.1} s of CPU", cpu() - cpu_before);
    let lines =
        machine.ok(&format!("journalctl --unit echoes-auth --since @{} --output cat | wc -l", since.trim()));
    assert!(lines.trim().parse::<u32>().unwrap() < 60, "the journal has {lines} lines of it");
    let lines = machine.ok("grep -c '\" 429 ' /var/log/nginx/access.log || true");
    assert_eq!(lines.trim(), "0", "nginx writes a line for each guess that is not even looked at");

    // She is in, with a connection that stays open; then she is not.
    machine.ok("echoes-appliance user remove visitor");
    let end = Instant::now() + Duration::from_secs(1);
    std::thread::sleep(Duration::from_millis(900));
    assert!(Instant::now() < end + Duration::from_millis(100));
    let after = visitor.get("/health").status;
    assert!(matches!(after, 401 | 429), "a removed user got {after}");
}
