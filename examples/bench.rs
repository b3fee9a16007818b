//! `make bench`: install, nothing to do and one changed file, beside the same work by Ansible and by pyinfra; what the
//! password check costs; certificates of an authority, beside certbot and lego; and getting an experiment to a machine and
//! its results home, beside rsync, scp, tar and az. Ratios of medians, taken in turns. It judges nothing: times on a shared
//! host are no test.

// A tool of ours, not part of the appliance.
#![allow(clippy::print_stdout, clippy::print_stderr, clippy::disallowed_methods, clippy::disallowed_types)]

#[path = "bench/far.rs"]
mod far;
#[path = "bench/first.rs"]
mod first;
#[path = "bench/gpu.rs"]
mod gpu;
#[path = "bench/home.rs"]
mod home;
#[path = "bench/sending.rs"]
mod sending;

use anyhow::{Context as _, Result, bail, ensure};
use kit::{
    acme, hq,
    lab::{Lab, Machine, Release},
};
use serde_json::{Value, json};
use std::{path::Path, process::Command};

const RELEASE: Release = Release::Trixie;
/// Of the machines' Python, for which the tools are fetched on this host.
const PYTHON: &str = "3.13";
const TOP: &str = env!("CARGO_MANIFEST_DIR");
const USAGE: &str = "usage: bench [--rounds N] [--cold N] [--only PART,…] [--program PATH] [--json]
PART: nothing, file, password, certificates, cold (an installation); code, data, first-line, cli, home, meanwhile, enter (an experiment)
PATH: the program whose experiments are timed, in place of the package's";

const INSTALLING: [&str; 5] = ["nothing", "file", "password", "certificates", "cold"];

const OURS: &str = "echoes-appliance install";
const ANSIBLE: &str = "cd /root/role && LC_ALL=C.UTF-8 PYTHONPATH=/root/tools python3 -m ansible playbook -i localhost, playbook.yml";
const PYINFRA: &str =
    "cd /root/role && LC_ALL=C.UTF-8 PYTHONPATH=/root/tools python3 -m pyinfra -y @local deploy.py";
const BARE: &str = "sh /root/bare.sh /root/services.txt /root/docs.txt";

fn main() -> Result<()> {
    let (mut rounds, mut cold, mut only, mut program, mut as_json) = (5, 3, None, None, false);
    let args: Vec<_> = std::env::args().skip(1).collect();
    let mut rest = args.iter();
    while let Some(arg) = rest.next() {
        match arg.as_str() {
            "--rounds" => rounds = rest.next().context(USAGE)?.parse()?,
            "--cold" => cold = rest.next().context(USAGE)?.parse()?,
            "--only" => only = Some(rest.next().context(USAGE)?.split(',').collect::<Vec<_>>()),
            "--program" => program = Some(rest.next().context(USAGE)?.into()),
            "--json" => as_json = true,
            _ => bail!(USAGE),
        }
    }
    let known = |part: &&str| INSTALLING.contains(part) || gpu::PARTS.contains(part);
    ensure!(only.iter().flatten().all(known), USAGE);
    let wanted = |part: &str| only.as_ref().is_none_or(|only| only.contains(&part));
    let (mut rows, mut tasks, mut done) = (Vec::new(), None, Ok(()));
    if INSTALLING.into_iter().any(wanted) {
        tasks = Some(installing(rounds, cold, &wanted, &mut rows)?);
    }
    if gpu::PARTS.into_iter().any(wanted) {
        done = gpu::table(program, rounds, &wanted, &mut rows);
    }
    let load = std::fs::read_to_string("/proc/loadavg")?;
    let load = load.split(' ').next().unwrap_or_default();
    if as_json {
        let rows: Vec<_> = rows.iter().map(Row::json).collect();
        println!("{}", serde_json::to_string_pretty(&json!({"tasks": tasks, "load": load, "rows": rows}))?);
    } else {
        let tasks = tasks.map(|tasks| format!("{tasks} tasks in the playbook and in the deploy; "));
        println!("\n{}load of this host at the end: {load}\n", tasks.unwrap_or_default());
        println!("{:<46} {:>10} {:>19} {:>14}", "", "median", "least to most", "ratio");
        rows.iter().for_each(|row| println!("{row}"));
    }
    done
}

/// The headquarters, on machines of the lab. How many tasks the others' playbooks have.
fn installing(rounds: usize, cold: usize, wanted: &dyn Fn(&str) -> bool, rows: &mut Vec<Row>) -> Result<u32> {
    Lab::available().map_err(|missing| anyhow::anyhow!("cannot boot machines here:\n{missing}"))?;
    let tools = tools()?;
    let machine = prepared(&tools)?;
    note("the first installation");
    seconds(&machine, "echoes-appliance install --set data.disk=none")?;
    // Ansible wants it for its apt module, and would install it by itself.
    machine.ok("apt-get -qq -y install python3-apt wrk >/dev/null");
    let tasks =
        machine.ok("python3 /root/role.py /root/role /root/services.txt /root/docs.txt").trim().parse()?;
    if wanted("nothing") {
        rows.extend(nothing_to_do(&machine, rounds)?);
    }
    if wanted("file") {
        rows.extend(one_file(&machine, rounds)?);
    }
    if wanted("password") {
        rows.push(password_check(&machine, rounds)?);
    }
    if wanted("certificates") {
        rows.extend(certificates(&machine, rounds)?);
    }
    if wanted("cold") && cold > 0 {
        rows.extend(from_nothing(&machine, &tools, cold)?);
    }
    Ok(tasks)
}

/// One line of the table: a median, and how it stands to ours.
struct Row {
    what: String,
    unit: &'static str,
    all: Vec<f64>,
    ratio: Option<(f64, &'static str)>,
}

impl Row {
    fn json(&self) -> Value {
        let ratio = self.ratio.map(|(ratio, of)| json!({"ratio": ratio, "of": of}));
        json!({"what": self.what, "unit": self.unit, "median": median(&self.all), "all": self.all, "ratio": ratio})
    }
}

impl std::fmt::Display for Row {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (least, most) = self
            .all
            .iter()
            .fold((f64::INFINITY, 0_f64), |(least, most), one| (least.min(*one), most.max(*one)));
        write!(f, "{:<46} {:>7.3} {:<2}", self.what, median(&self.all), self.unit)?;
        write!(f, " {least:>9.3} {most:>9.3}")?;
        self.ratio.map_or(Ok(()), |(ratio, of)| write!(f, " {ratio:>8.2} × {of}"))
    }
}

fn rows(what: &str, ours: Vec<f64>, others: Vec<(&str, Vec<f64>)>) -> Vec<Row> {
    let base = median(&ours);
    let mut rows = vec![Row { what: format!("{what}: ours"), unit: "s", all: ours, ratio: None }];
    rows.extend(others.into_iter().map(|(name, all)| {
        let ratio = Some((median(&all) / base, "ours"));
        Row { what: format!("{what}: {name}"), unit: "s", all, ratio }
    }));
    rows
}

fn nothing_to_do(machine: &Machine, rounds: usize) -> Result<Vec<Row>> {
    // Once each untimed: caches are warm, and what a tool finds wrong at its first look is set right.
    for sh in [OURS, ANSIBLE, PYINFRA] {
        seconds(machine, sh)?;
    }
    let (mut ours, mut ansible, mut pyinfra) = (vec![], vec![], vec![]);
    for round in 1..=rounds {
        note(&format!("nothing to do, {round} of {rounds}"));
        ours.push(saying(machine, OURS, "nothing to change")?);
        ansible.push(saying(machine, ANSIBLE, "changed=0 ")?);
        let (time, said) = timed(machine, PYINFRA)?;
        ensure!(!said.contains("] Success"), "pyinfra found something to change:\n{said}");
        pyinfra.push(time);
    }
    Ok(rows("nothing to do", ours, vec![("Ansible", ansible), ("pyinfra", pyinfra)]))
}

/// A unit file changes and its service restarts: here the settings say so, there the file in the role.
fn one_file(machine: &Machine, rounds: usize) -> Result<Vec<Row>> {
    const SET: &str = "echoes-appliance install --set tensorboard.memory_max=1536M";
    let (mut ours, mut ansible, mut pyinfra) = (vec![], vec![], vec![]);
    for round in 1..=rounds {
        note(&format!("one file, {round} of {rounds}"));
        ours.push(saying(machine, SET, "2 changes")?);
        // Theirs are still the unit and the settings from before, so they change both back, and restart.
        ansible.push(saying(machine, ANSIBLE, "changed=3 ")?);
        seconds(machine, SET)?;
        pyinfra.push(seconds(machine, PYINFRA)?);
    }
    seconds(machine, "echoes-appliance install --set tensorboard.memory_max=2G")?;
    Ok(rows("one file, one restart", ours, vec![("Ansible", ansible), ("pyinfra", pyinfra)]))
}

/// A call to MLflow through nginx, with the password asked for and without, in alternating pairs.
fn password_check(machine: &Machine, rounds: usize) -> Result<Row> {
    // The site once more on another port, but for the line that asks.
    machine.ok(
        "sed -e 's/443/8443/; /echoes-auth/d' /etc/nginx/sites-available/echoes-mlflow.conf >/etc/nginx/conf.d/bench.conf \
         && nginx -t -q && systemctl reload nginx && sleep 1 \
         && grep -q mlflow.localhost /etc/hosts || echo 127.0.0.1 mlflow.localhost >>/etc/hosts",
    );
    let out = machine.exec_fed("echoes-appliance user add bench", b"a bench password\n");
    ensure!(out.code == 0, "adding a user: {}", out.stderr);
    // The check looks at the file once a second: who was added is let in by then.
    machine.ok("sleep 2");
    let rate = |port: u16| -> Result<f64> {
        // bench:a bench password
        let said = machine.ok(&format!(
            "wrk -t1 -c8 -d4s -H 'Authorization: Basic YmVuY2g6YSBiZW5jaCBwYXNzd29yZA==' \
             'https://mlflow.localhost:{port}/api/2.0/mlflow/experiments/get?experiment_id=0'"
        ));
        ensure!(!said.contains("Non-2xx"), "on port {port}: {said}");
        let rate = said.lines().find_map(|line| line.strip_prefix("Requests/sec:"));
        Ok(rate.context("wrk names no rate")?.trim().parse()?)
    };
    let (mut with, mut ratios) = (vec![], vec![]);
    rate(443)?;
    for round in 1..=rounds {
        note(&format!("password check, {round} of {rounds}"));
        // Who goes first changes: what warms up or tires favours neither.
        let (asked, open) = if round % 2 == 0 {
            let open = rate(8443)?;
            (rate(443)?, open)
        } else {
            (rate(443)?, rate(8443)?)
        };
        note(&format!("  {asked:.0}/s with it, {open:.0}/s without"));
        ratios.push(asked / open);
        with.push(asked);
    }
    machine.ok(
        "rm /etc/nginx/conf.d/bench.conf && systemctl reload nginx && echoes-appliance user remove bench",
    );
    let ratio = Some((median(&ratios), "without a password"));
    Ok(Row { what: "MLflow through nginx: password".into(), unit: "/s", all: with, ratio })
}

/// Every name's certificate anew, from the first request to the reload of nginx, at an authority that tells nobody to
/// wait. Each has its account, and proves every name each time. certbot's own checks of what it fetched are as many as
/// it makes; ours looks at what nginx then serves, too.
fn certificates(machine: &Machine, rounds: usize) -> Result<Vec<Row>> {
    const NAMES: [&str; 4] =
        ["mlflow.lonel.ai", "tensorboard.lonel.ai", "dashboard.lonel.ai", "docs.lonel.ai"];
    const WEBROOT: &str = "/var/lib/echoes-appliance/acme";
    let options = acme::Options { retry_after: 0, ..acme::Options::default() };
    let Some(authority) = acme::Acme::start(machine, &options) else { return Ok(Vec::new()) };
    machine.put(authority.vouching.pem.as_bytes(), "/etc/ssl/acme.pem", 0o644)?;
    machine.ok("apt-get -qq -y install certbot lego >/dev/null && systemctl stop certbot.timer");
    let directory = authority.directory();
    seconds(
        machine,
        &format!(
            "{OURS} --domain lonel.ai --email ops@lonel.ai --set tls.directory={directory} \
             --set tls.ca_file=/etc/ssl/acme.pem && systemctl stop echoes-renew.timer echoes-renew-boot.timer"
        ),
    )?;
    let certbot = |names: &str| {
        format!(
            "REQUESTS_CA_BUNDLE=/etc/ssl/acme.pem certbot certonly -q -n --agree-tos -m ops@lonel.ai --server {directory} \
             --webroot -w {WEBROOT} --force-renewal {names}"
        )
    };
    let lego = |names: &str| {
        format!(
            "LEGO_CA_CERTIFICATES=/etc/ssl/acme.pem lego --path /root/lego --accept-tos -m ops@lonel.ai --server {directory} \
             --http --http.webroot {WEBROOT} {names} run"
        )
    };
    let each = |one: &dyn Fn(&str) -> String| {
        let all = NAMES.map(|name| one(&format!("-d {name}")));
        format!("{} && systemctl reload nginx", all.join(" && "))
    };
    let all = NAMES.map(|name| format!("-d {name}")).join(" ");
    let together = |one: &dyn Fn(&str) -> String| format!("{} && systemctl reload nginx", one(&all));
    let mut table = Vec::new();
    for (what, shared, certbot, lego) in [
        ("four certificates", false, each(&certbot), each(&lego)),
        ("one for four names", true, together(&certbot), together(&lego)),
    ] {
        seconds(machine, &format!("{OURS} --set tls.shared={shared}"))?;
        // Each kind has its limit of our own in a week.
        let afresh = "rm -rf /var/lib/echoes-appliance/tls/acme/schedule";
        let ours = "echoes-appliance cert renew --force";
        let mut times: [Vec<f64>; 3] = Default::default();
        // Once each untimed, for their accounts.
        for round in 0..=rounds {
            note(&format!("{what}, {round} of {rounds}"));
            for (n, sh) in [ours, &certbot, &lego].into_iter().enumerate() {
                machine.ok(afresh);
                let before = authority.issued();
                let time = seconds(machine, sh)?;
                let issued = authority.issued() - before;
                ensure!(issued == if shared { 1 } else { NAMES.len() }, "{issued} were issued by: {sh}");
                if round > 0 {
                    times[n].push(time);
                }
            }
        }
        let [ours, certbot, lego] = times;
        table.extend(self::rows(what, ours, vec![("certbot", certbot), ("lego", lego)]));
    }
    Ok(table)
}

/// Each on a machine of its own, fresh but for the package lists.
fn from_nothing(machine: &Machine, tools: &Path, rounds: usize) -> Result<Vec<Row>> {
    let role = tools.with_extension("role.tar");
    machine.ok("tar -C /root -cf /root/role.tar role");
    machine.pull("/root/role.tar", &role)?;
    let mut times: [Vec<f64>; 4] = Default::default();
    for round in 1..=rounds {
        let ours = format!("{OURS} --set data.disk=none");
        for (n, sh) in [ours.as_str(), BARE, ANSIBLE, PYINFRA].into_iter().enumerate() {
            note(&format!(
                "from nothing, {round} of {rounds}: {}",
                ["ours", "bare", "Ansible", "pyinfra"][n]
            ));
            let fresh = prepared(tools)?;
            fresh.push(&role, "/root/role.tar", 0o600)?;
            fresh.ok("tar -C /root -xf /root/role.tar; apt-get -qq -y install python3-apt >/dev/null");
            times[n].push(seconds(&fresh, sh)?);
        }
    }
    let [ours, bare, ansible, pyinfra] = times;
    let others = vec![("bare apt and uv", bare), ("Ansible", ansible), ("pyinfra", pyinfra)];
    Ok(rows("from nothing", ours, others))
}

/// A machine with the package, the tools and the material, and with its package lists fetched.
fn prepared(tools: &Path) -> Result<Machine> {
    let machine = Machine::boot(RELEASE)?;
    hq::add_package(&machine)?;
    machine.push(tools, "/root/tools.tar", 0o600)?;
    machine.ok("mkdir /root/tools && tar -C /root/tools -xf /root/tools.tar && rm /root/tools.tar");
    for name in [
        "benches/role.py",
        "benches/bare.sh",
        "benches/uv.sh",
        "assets/python/services.txt",
        "assets/python/docs.txt",
    ] {
        let path = Path::new(TOP).join(name);
        let to = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        machine.push(&path, &format!("/root/{to}"), 0o644)?;
    }
    machine.ok("apt-get -qq update");
    Ok(machine)
}

/// ansible-core and pyinfra as a directory to put on Python's path: no package of the machine's is needed for them.
fn tools() -> Result<std::path::PathBuf> {
    let dir = Path::new(TOP).join("target/bench-tools");
    let tar = dir.join(format!("{PYTHON}.tar"));
    if !tar.exists() {
        note("fetching ansible-core and pyinfra");
        std::fs::create_dir_all(&dir)?;
        let sh = "rm -rf \"$0\" && python3 -m pip install --quiet --target \"$0\" --python-version \"$1\" \
                  --platform manylinux2014_x86_64 --platform manylinux_2_28_x86_64 --only-binary=:all: \
                  ansible-core pyinfra && tar -C \"$0\" -cf \"$2.half\" . && mv \"$2.half\" \"$2\"";
        let status =
            Command::new("sh").args(["-c", sh]).arg(dir.join(PYTHON)).arg(PYTHON).arg(&tar).status()?;
        ensure!(status.success(), "fetching ansible-core and pyinfra: {status}");
    }
    Ok(tar)
}

/// How long it takes in there, by the machine's own clock. It must succeed.
fn seconds(machine: &Machine, sh: &str) -> Result<f64> {
    Ok(timed(machine, sh)?.0)
}

/// As `seconds`, where it must also say this: otherwise something else was timed.
fn saying(machine: &Machine, sh: &str, words: &str) -> Result<f64> {
    let (seconds, said) = timed(machine, sh)?;
    ensure!(said.contains(words), "`{sh}` does not say {words:?}:\n{said}");
    Ok(seconds)
}

fn timed(machine: &Machine, sh: &str) -> Result<(f64, String)> {
    let script = format!(
        "s=$(date +%s%N); ( {sh} ) >/root/said 2>&1; c=$?; e=$(date +%s%N); echo $((e-s)); cat /root/said; exit $c"
    );
    let out = machine.exec(&script);
    ensure!(out.code == 0, "`{sh}` ended in {}:\n{}\n{}", out.code, out.stdout, out.stderr);
    let (time, said) = out.stdout.split_once('\n').context("it said nothing")?;
    let time = time.parse::<f64>()? / 1e9;
    let tool = sh
        .split(' ')
        .find(|word| ["ansible", "pyinfra", "certbot", "lego", "echoes-appliance"].contains(word));
    note(&format!("  {:<18} {time:>8.3} s", tool.unwrap_or("bare")));
    Ok((time, said.to_owned()))
}

fn median(all: &[f64]) -> f64 {
    let mut all = all.to_vec();
    all.sort_by(f64::total_cmp);
    let n = all.len();
    if n == 0 { f64::NAN } else { (all[(n - 1) / 2] + all[n / 2]) / 2.0 }
}

fn note(what: &str) {
    eprintln!("bench: {what}");
}
