//! Other people's scanners look at a whole headquarters: what they find and we do not answer for by name fails.

use kit::{
    TOP, hq,
    lab::{Machine, Release},
    process::CompletedProcess,
};
use serde_json::Value;
use std::{
    io::Write as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

/// The scanners that are Python's, as they are locked; none, and said so, where this host's Python is too old for them.
fn venv() -> Option<PathBuf> {
    let new =
        Command::new("python3").args(["-c", "import sys; sys.exit(sys.version_info < (3, 11))"]).status();
    if !new.is_ok_and(|status| status.success()) {
        eprintln!("SKIPPED: gixy and sslyze: they need Python 3.11 or later on this host");
        return None;
    }
    let venv = Path::new(TOP).join("target/scanners-venv");
    let mut make = Command::new(format!("{TOP}/packaging/venv.sh"));
    make.arg(format!("{TOP}/tests/lab/scanners.txt")).arg(&venv);
    CompletedProcess::run(&mut make).assert_code(0);
    Some(venv.join("bin"))
}

fn fed(command: &mut Command, input: &str) -> CompletedProcess {
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    child.wait_with_output().unwrap().into()
}

/// What gixy says of nginx as Debian's own nginx.conf or we mean it to be, by its name for it and the file it is in. The
/// reason is apart.
const MEANT: [(&str, &str, &str); 5] = [
    ("weak_ssl_tls", "<stdin>", "Debian's nginx.conf allows old TLS; each server of ours says its own"),
    ("worker_rlimit_nofile_vs_connections", "<stdin>", "the limit is the unit's, which gixy does not see"),
    ("hsts_header", "", "only a publicly trusted certificate may promise https: it lies beside that"),
    ("missing_resolver", "", "what the variable names are upstreams of ours, at sockets"),
    ("try_files_is_evil_too", "", "an opinion about speed, of a file that is asked for once in two months"),
];

/// Gixy reads nginx's configuration as nginx itself has it, all files in one.
fn gixy(machine: &Machine, bin: &Path) {
    let all = machine.ok("nginx -T 2> /dev/null");
    let said = fed(Command::new(bin.join("gixy")).args(["-f", "json", "-"]), &all);
    let found = said.json();
    let is_meant = |one: &Value| {
        let (plugin, file) = (one["plugin"].as_str().unwrap(), one["file"].as_str().unwrap_or_default());
        MEANT.iter().any(|(name, place, _)| plugin == *name && (place.is_empty() || file == *place))
    };
    let bad: Vec<_> = found.as_array().unwrap().iter().filter(|one| !is_meant(one)).collect();
    assert!(bad.is_empty(), "{bad:#?}");
    assert!(all.contains("server_name mlflow.localhost"), "it was shown our sites");
}

/// sslyze holds each of our names to what Mozilla recommends.
fn sslyze(machine: &Machine, bin: &Path) {
    for service in ["mlflow", "tensorboard", "dashboard", "docs"] {
        let place = format!("{service}.localhost:443{{{}}}", machine.ip());
        let mut command = Command::new(bin.join("sslyze"));
        let said = CompletedProcess::run(command.args(["--mozilla_config=intermediate", &place])).stdout;
        let (_, verdict) = said.split_once("COMPLIANCE AGAINST TLS CONFIGURATION").expect(&said);
        let bad: Vec<_> = verdict.lines().filter_map(|line| line.trim().strip_prefix("* ")).collect();
        // The authority is the machine's own.
        let [own] = bad[..] else { panic!("{service}: {bad:?}") };
        assert!(own.starts_with("certificate_path_validation: "), "{service}: {own}");
    }
}

/// lynis' tests of the web server. HTTP-6710 is about Debian's own nginx.conf, as it is to gixy.
fn lynis(machine: &Machine) {
    machine.ok(
        "apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends lynis",
    );
    let said = machine.ok("lynis audit system --quick --no-colors --tests-from-group webservers");
    assert!(said.contains("sites-enabled/echoes-mlflow.conf"), "{said}");
    let report = machine.ok("grep -E '^(warning|suggestion)' /var/log/lynis-report.dat");
    let of_nginx = |line: &&str| line.starts_with("warning") || line.contains("=HTTP-");
    let bad: Vec<_> = report.lines().filter(of_nginx).filter(|line| !line.contains("=HTTP-6710|")).collect();
    assert!(bad.is_empty(), "{bad:#?}");
}

/// systemd's own opinion of each unit of ours that runs a program here, where there is no data disk, from 0, shut in, to 10:
/// at most so much.
const EXPOSED: [(&str, f32); 9] = [
    ("mlflow.service", 2.5),
    ("tensorboard.service", 2.5),
    ("dashboard.service", 2.5),
    ("docs.service", 2.5),
    ("echoes-auth.service", 2.5),
    ("echoes-alert.service", 2.5),
    ("echoes-renew.service", 2.5),
    // They rent, and bring home for whoever it is.
    ("echoes-gpu@r.service", 4.0),
    ("echoes-sweep.service", 4.0),
];

fn exposure(machine: &Machine) {
    let mut bad = Vec::new();
    for (unit, most) in EXPOSED {
        let said = machine.ok(&format!("systemd-analyze security --no-pager '{unit}' | tail -n 1"));
        let words = said.split_once(&format!("level for {unit}: ")).map(|(_, rest)| rest).expect(&said);
        let level: f32 = words.split(' ').next().unwrap().parse().expect(&said);
        if level > most {
            bad.push(format!("{unit}: {level}, and not {most}"));
        }
    }
    assert_eq!(bad, Vec::<String>::new());
}

#[test]
fn scanners_of_other_people_find_nothing_that_is_not_answered_for() {
    if !hq::can_boot("scanners") {
        return;
    }
    let machine = hq::installed(Release::Bookworm);
    if let Some(bin) = venv() {
        gixy(&machine, &bin);
        sslyze(&machine, &bin);
    }
    exposure(&machine);
    lynis(&machine);
}
