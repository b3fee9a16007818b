//! Who may reach what: many connections that ask nothing, the machine's own users on loopback, and what nginx says of itself.

use crate::attacks::{DOMAIN, Visitor};
use kit::{
    hq,
    lab::{Machine, Release},
};
use serde_json::json;
use std::{
    process::{Command, Stdio},
    time::{Duration, Instant},
};

/// More than a person waits for a page.
const LOGIN: Duration = Duration::from_secs(15);

#[test]
fn thousands_of_half_open_connections_keep_nobody_out_on_debian_11() {
    half_open(Release::Bullseye);
}

#[test]
fn thousands_of_half_open_connections_keep_nobody_out_on_debian_12() {
    half_open(Release::Bookworm);
}

#[test]
fn thousands_of_half_open_connections_keep_nobody_out_on_debian_13() {
    half_open(Release::Trixie);
}

/// Of three bytes each, from one address, begun anew as often as nginx hangs up.
fn half_open(release: Release) {
    if !hq::can_boot("half-open connections") {
        return;
    }
    let machine = hq::installed(release);
    let visitor = Visitor::new(&machine);
    machine.put(HALF_OPEN.as_bytes(), "/root/half_open.py", 0o600).unwrap();
    for connections in [1600, 4000] {
        machine.ok(&format!(
            "rm -f /run/half-open; systemd-run --quiet --collect --unit=half-open --property=LimitNOFILE=8192 \
             python3 /root/half_open.py {connections}"
        ));
        let end = Instant::now() + Duration::from_secs(60);
        while machine.exec(&format!("test \"$(cat /run/half-open)\" = {connections}")).code != 0 {
            assert!(Instant::now() < end, "{release}: {connections} connections do not come about");
            std::thread::sleep(Duration::from_millis(100));
        }
        for path in ["/health", "/api/2.0/mlflow/experiments/search?max_results=1"] {
            let asked = Instant::now();
            let answer = visitor.get(path);
            let took = asked.elapsed();
            assert_eq!(answer.status, 200, "{release}: {connections}: curl {}: {path}", answer.curl);
            assert!(took < LOGIN, "{release}: {connections}: {path} took {took:?}");
        }
        machine.ok("systemctl stop half-open");
    }
    let said = machine.ok("cat /var/log/nginx/error.log");
    assert!(!said.contains("are not enough"), "{release}: {said}");
    // A connection that asks nothing has its place for ten seconds, whatever it had begun: TLS, http, or nothing.
    machine.put(SILENT.as_bytes(), "/root/silent.py", 0o600).unwrap();
    let hung_up = machine.ok("python3 /root/silent.py");
    assert!(hung_up.trim().parse::<f64>().unwrap() < 20.0, "{release}: hung up on after {hung_up}");
}

/// How long until all of them are hung up on.
const SILENT: &str = r#"
import socket, time
began, all = time.monotonic(), []
for port, first in (443, b"\x16\x03\x01"), (443, b""), (80, b"GET"), (5000, b"GET / HTTP/1.1\r\nHost: x"):
    one = socket.create_connection(("127.0.0.1", port), 30)
    one.sendall(first)
    all.append(one)
for one in all:
    try:
        while one.recv(100):
            pass
    except ConnectionResetError:
        pass
print(time.monotonic() - began)
"#;

const HALF_OPEN: &str = r#"
import selectors, socket, sys
count, held, at = int(sys.argv[1]), set(), selectors.DefaultSelector()
while True:
    while len(held) < count:
        one = socket.create_connection(("127.0.0.1", 443), 20)
        one.sendall(b"\x16\x03\x01")
        held.add(one)
        at.register(one, selectors.EVENT_READ)
    open("/run/half-open", "w").write(str(count))
    for key, _ in at.select(1):
        at.unregister(key.fileobj)
        held.discard(key.fileobj)
        key.fileobj.close()
"#;

#[test]
fn on_loopback_members_come_in_and_neighbours_are_asked_on_debian_11() {
    on_loopback(Release::Bullseye);
}

#[test]
fn on_loopback_members_come_in_and_neighbours_are_asked_on_debian_12() {
    on_loopback(Release::Bookworm);
}

#[test]
fn on_loopback_members_come_in_and_neighbours_are_asked_on_debian_13() {
    on_loopback(Release::Trixie);
}

/// Prints the status of a question to a port of loopback, over a socket of either family.
const ASK: &str = r#"
import http.client, socket, sys
at, port, path, *headers = sys.argv[1:]
connection = http.client.HTTPConnection("127.0.0.1", int(port), timeout=60)
connection.sock = socket.create_connection((at, int(port)), 60)
method, _, path = path.rpartition(" ")
headers = dict(header.split(": ", 1) for header in headers)
connection.request(method or "GET", path, b'{"name": "x"}' if method == "POST" else None, headers)
print(connection.getresponse().status)
"#;

fn on_loopback(release: Release) {
    if !hq::can_boot("loopback") {
        return;
    }
    let machine = hq::installed(release);
    let visitor = Visitor::new(&machine);
    machine.put(ASK.as_bytes(), "/srv/ask.py", 0o644).unwrap();
    machine
        .ok("useradd --create-home mallory; useradd --create-home ana; usermod --append --groups echoes ana");
    let ask = |name: &str, words: &str| -> String {
        let sh = format!("python3 /srv/ask.py {words}");
        let out = machine
            .exec_fed(&format!("setpriv --reuid {name} --regid {name} --init-groups sh"), sh.as_bytes());
        assert_eq!(out.code, 0, "{release}: {name}: {words} {out}");
        out.stdout.trim().to_owned()
    };
    let login = format!("'Authorization: Basic {}'", base64(&visitor.login));
    let wrong = format!("'Authorization: Basic {}'", base64("visitor:wrong"));
    for (port, path) in [(5000, "/health"), (6006, "/data/environment"), (8000, "/healthz")] {
        for at in ["127.0.0.1", "::ffff:127.0.0.1"] {
            let asked = format!("{at} {port} {path}");
            assert_eq!(ask("mallory", &asked), "401", "{release}: {asked}");
            assert_eq!(ask("mallory", &format!("{asked} {wrong}")), "401", "{release}: {asked}");
            // What a client says of itself is not what is asked.
            let lies = "'X-Echoes-Connection: 127.0.0.1 1 127.0.0.1 2' 'X-Real-IP: 127.0.0.1'";
            assert_eq!(ask("mallory", &format!("{asked} {lies}")), "401", "{release}: {asked}");
            assert_eq!(ask("mallory", &format!("{asked} {login}")), "200", "{release}: {asked}");
            for name in ["ana", "root"] {
                assert_eq!(ask(name, &asked), "200", "{release}: {name} {asked}");
            }
        }
        // A page elsewhere, in a member's browser: of another origin, or under a name that was made to point here.
        for headers in
            ["'Origin: http://localhost:3000'", "'Origin: http://127.0.0.1:3000'", "'Origin: null'"]
        {
            assert_eq!(
                ask("ana", &format!("127.0.0.1 {port} {path} {headers}")),
                "403",
                "{release}: {headers}"
            );
        }
        for name in ["evil.test", "mlflow.localhost.evil.test", "127.0.0.1.evil.test", "mlflow-localhost"] {
            let asked = format!("127.0.0.1 {port} {path} 'Host: {name}:{port}'");
            assert_eq!(ask("ana", &asked), "421", "{release}: {asked}");
        }
        for name in ["localhost", "127.0.0.1"] {
            let asked =
                format!("127.0.0.1 {port} {path} 'Host: {name}:{port}' 'Origin: http://{name}:{port}'");
            assert_eq!(ask("ana", &asked), "200", "{release}: {asked}");
        }
    }
    let create = "127.0.0.1 5000 'POST /api/2.0/mlflow/experiments/create' 'Content-Type: application/json'";
    assert_eq!(ask("ana", &format!("{create} 'Origin: http://localhost:3000'")), "403", "{release}");
    assert_eq!(ask("mallory", create), "401", "{release}");
    assert_eq!(ask("ana", create), "200", "{release}");
    // Out at once.
    machine.ok("gpasswd --delete ana echoes");
    assert_eq!(ask("ana", "127.0.0.1 5000 /health"), "401", "{release}");

    no_way_around(&machine);
    survives(&machine);
}

/// The programs themselves: at sockets in closed directories, and TensorBoard's ports in a network of its own.
fn no_way_around(machine: &Machine) {
    let release = machine.release();
    for socket in [
        "/run/echoes-mlflow/mlflow:5000",
        "/run/tensorboard-proxy/tensorboard.sock",
        "/run/echoes-dashboard/dashboard.sock",
        "/run/echoes-docs/docs.sock",
    ] {
        let connect = format!("import socket; socket.socket(socket.AF_UNIX).connect(\"{socket}\")");
        machine.ok(&format!("python3 -c '{connect}'"));
        let out = machine
            .exec(&format!("setpriv --reuid mallory --regid mallory --init-groups python3 -c '{connect}'"));
        assert!(out.stderr.contains("PermissionError"), "{release}: {socket}: {out}");
    }
    let sockets = machine.ok("ss --no-header --listening --numeric --tcp --processes");
    for line in sockets.lines() {
        let ours = ["mlflow", "tensorboard", "gunicorn", "uvicorn", "python", "server", "echoes"];
        assert!(!ours.iter().any(|name| line.contains(&format!("(\"{name}"))), "{release}: {line}");
    }
}

/// What ends and begins again is behind the same doors.
fn survives(machine: &Machine) {
    let release = machine.release();
    for command in [
        "systemctl restart tensorboard",
        "systemctl kill --signal=KILL tensorboard",
        "systemctl restart tensorboard-proxy",
        "systemctl restart mlflow",
        "systemctl kill --signal=KILL mlflow",
        "systemctl restart dashboard docs echoes-auth nginx",
    ] {
        machine.ok(command);
        for (port, path) in
            [(5000, "/health"), (6006, "/data/environment"), (8000, "/api/experiments"), (8080, "/")]
        {
            let end = Instant::now() + Duration::from_secs(120);
            let ask = format!("python3 /srv/ask.py 127.0.0.1 {port} {path}");
            while machine.exec(&ask).stdout.trim() != "200" {
                assert!(Instant::now() < end, "{release}: {port} does not answer after `{command}`");
                std::thread::sleep(Duration::from_millis(300));
            }
        }
    }
}

fn base64(text: &str) -> String {
    let mut child = Command::new("base64")
        .args(["-w", "0"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    std::io::Write::write_all(child.stdin.as_mut().unwrap(), text.as_bytes()).unwrap();
    drop(child.stdin.take());
    String::from_utf8(child.wait_with_output().unwrap().stdout).unwrap()
}

#[test]
fn nginx_tells_nothing_of_itself_and_says_each_header_once_on_debian_11() {
    headers(Release::Bullseye);
}

#[test]
fn nginx_tells_nothing_of_itself_and_says_each_header_once_on_debian_12() {
    headers(Release::Bookworm);
}

#[test]
fn nginx_tells_nothing_of_itself_and_says_each_header_once_on_debian_13() {
    headers(Release::Trixie);
}

fn headers(release: Release) {
    if !hq::can_boot("nginx's headers") {
        return;
    }
    let machine = hq::installed(release);
    let visitor = Visitor::new(&machine);
    let ip = machine.ip();
    // Plain http to the port of https, without one of our names.
    let plain = visitor.curl(&format!("http://{ip}:443/"), &["--include"]);
    assert_eq!(plain.status, 400, "{release}: {}", plain.body);
    assert!(plain.body.to_lowercase().contains("server: nginx\r\n"), "{release}: {}", plain.body);

    let always =
        ["x-content-type-options: nosniff", "x-frame-options: sameorigin", "referrer-policy: same-origin"];
    let each_once = |what: &str, answer: &str, more: &[&str]| {
        let head: Vec<String> =
            answer.lines().take_while(|line| !line.trim().is_empty()).map(str::to_lowercase).collect();
        for header in always.iter().chain(more) {
            let name = header.split(':').next().unwrap();
            let said: Vec<_> = head.iter().filter(|line| line.starts_with(&format!("{name}:"))).collect();
            assert!(said.len() == 1 && said[0].starts_with(header), "{release}: {what}: {header}: {said:?}");
        }
    };
    let policy = "content-security-policy: ";
    each_once("mlflow", &visitor.ask("GET", "/", &["--include"]).body, &[policy]);
    each_once(
        "mlflow's API",
        &visitor.ask("GET", "/api/2.0/mlflow/experiments/search?max_results=1", &["--include"]).body,
        &[],
    );
    each_once("docs", &visitor.curl(&format!("https://docs.{DOMAIN}/"), &["--include"]).body, &[policy]);
    for (service, path) in [("tensorboard", "/"), ("dashboard", "/")] {
        let url = format!("https://{service}.{DOMAIN}{path}");
        let answer = visitor.curl(&url, &["--user", &visitor.login, "--include"]);
        each_once(service, &answer.body, &[policy]);
    }
    each_once(
        "401",
        &visitor.curl(&format!("https://mlflow.{DOMAIN}/"), &["--include"]).body,
        &["www-authenticate: basic"],
    );

    // Mozilla's intermediate curves, and no others.
    let handshake = |curve: &str| {
        machine.exec(&format!(
            "openssl s_client -connect 127.0.0.1:443 -servername mlflow.{DOMAIN} -curves {curve} </dev/null"
        ))
    };
    for curve in ["X25519", "prime256v1", "secp384r1"] {
        assert!(handshake(curve).stdout.contains("BEGIN CERTIFICATE"), "{release}: {curve} is refused");
    }
    for curve in ["X448", "secp521r1"] {
        assert!(!handshake(curve).stdout.contains("BEGIN CERTIFICATE"), "{release}: {curve} is offered");
    }

    bodies(&visitor, release);
    let demo = visitor.post("/ajax-api/3.0/mlflow/demo/generate", &json!({}));
    assert_eq!((demo.status, demo.body.as_str()), (403, "Not for remote users.\n"), "{release}");

    // Last: this address has to wait from here on.
    let mut last = visitor.curl(&format!("https://mlflow.{DOMAIN}/"), &["--include", "--user", "visitor:0"]);
    for n in 1..60 {
        if last.status == 429 {
            break;
        }
        last = visitor
            .curl(&format!("https://mlflow.{DOMAIN}/"), &["--include", "--user", &format!("visitor:{n}")]);
    }
    assert_eq!(last.status, 429, "{release}");
    each_once("429", &last.body, &["retry-after: "]);
}

/// What MLflow reads whole has a limit, and an artifact has none.
fn bodies(visitor: &Visitor, release: Release) {
    let file = visitor.dir.path().join("large");
    std::fs::write(&file, vec![b' '; 33 << 20]).unwrap();
    let data = format!("@{}", file.display());
    let artifacts = "/api/2.0/mlflow-artifacts/artifacts";
    for (method, path) in [
        ("POST", "/api/2.0/mlflow/runs/log-batch"),
        ("POST", "/ajax-api/2.0/mlflow/runs/log-batch"),
        ("POST", "//api/2.0/mlflow/runs/log-batch"),
        ("POST", "/v1/traces"),
        ("POST", artifacts),
        ("POST", &format!("{artifacts}/9/x")),
        ("DELETE", &format!("{artifacts}/9/x")),
        ("GET", &format!("{artifacts}/9/x")),
    ] {
        for version in ["--http1.1", "--http2"] {
            let sent = ["--header", "Content-Type: application/json", "--data-binary", &data, version];
            let answer = visitor.ask(method, path, &sent);
            assert_eq!(answer.status, 413, "{release}: {method} {path} {version}");
        }
        let chunked = [
            "--header",
            "Content-Type: application/json",
            "--header",
            "Transfer-Encoding: chunked",
            "--http1.1",
            "--data-binary",
            &data,
        ];
        let answer = visitor.ask(method, path, &chunked);
        // MLflow may refuse before it has heard enough, or hang up, as the old one does.
        assert!(
            (400..500).contains(&answer.status) || answer.status == 502,
            "{release}: {method} {path} in chunks: {}",
            answer.status
        );
    }
    let up = visitor.ask("PUT", &format!("{artifacts}/9/x/artifacts/large"), &["--data-binary", &data]);
    assert_eq!(up.status, 200, "{release}: {}", up.body);
}
