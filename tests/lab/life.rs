//! A headquarters' life, from the first install to the last trace of it, on each release.

use kit::{
    hq,
    lab::{Disk, Machine, Manifest, Release, differences},
    traces,
};
use std::{collections::BTreeMap, time::Instant};

/// Every unit that install has a hand in.
const UNITS: [&str; 12] = [
    "mlflow.service",
    "tensorboard.service",
    "dashboard.service",
    "docs.service",
    "echoes-auth.service",
    "echoes-run-proxy.service",
    "echoes-data.service",
    "echoes-renew.timer",
    "echoes-renew-boot.timer",
    "echoes-sweep.timer",
    "mnt-echoes_data.mount",
    "nginx.service",
];

/// Ours that run a program.
const SERVICES: [&str; 10] = [
    "mlflow.service",
    "tensorboard.service",
    "tensorboard-proxy.service",
    "dashboard.service",
    "docs.service",
    "echoes-auth.service",
    "echoes-run-proxy.service",
    "echoes-data.service",
    "echoes-renew.service",
    "echoes-alert.service",
];

/// What a change of the domain changes, in /etc: the names that nginx answers to, and those that MLflow believes.
const OF_THE_DOMAIN: [&str; 8] = [
    "/etc/echoes-appliance/config.toml",
    "/etc/nginx/conf.d/echoes.conf",
    "/etc/nginx/sites-available/echoes-dashboard.conf",
    "/etc/nginx/sites-available/echoes-default.conf",
    "/etc/nginx/sites-available/echoes-docs.conf",
    "/etc/nginx/sites-available/echoes-mlflow.conf",
    "/etc/nginx/sites-available/echoes-tensorboard.conf",
    "/etc/systemd/system/mlflow.service",
];

/// A file that somebody put on the data disk.
const KEPT: &str = "/mnt/echoes_data/ucf101/videos/archery.avi";

#[test]
fn a_life_on_debian_11() {
    life(Release::Bullseye);
}

#[test]
fn a_life_on_debian_12() {
    life(Release::Bookworm);
}

#[test]
fn a_life_on_debian_13() {
    life(Release::Trixie);
}

fn life(release: Release) {
    if !hq::can_boot("a headquarters' life") {
        return;
    }
    let mut clock = Clock::new(release);
    let mut machine = hq::fresh(release, vec![Disk::blank(2048).unwrap()]);
    let before = machine.manifest().unwrap();
    clock.says("a fresh machine, with the package");

    let said = hq::run(&machine, 0, "install");
    for name in ["mlflow", "tensorboard", "dashboard", "docs"] {
        assert!(said.contains(&format!("https://{name}.localhost/")), "{said}");
    }
    assert!(said.contains("user echoes, password "), "{said}");
    clock.says("install");
    let security = exposures(&machine);
    assert!(security.is_empty(), "too open to what could go wrong in them: {security:?}");
    validate(&machine);
    clock.says("validate");

    let (starts, nginx) = (starts(&machine), workers(&machine));
    let said = hq::run(&machine, 0, "install");
    assert_eq!(said, "nothing to change\n");
    assert_eq!(self::starts(&machine), starts, "install of what is there restarts nothing");
    assert_eq!(workers(&machine), nginx, "nor does it reload nginx");
    assert_eq!(hq::run(&machine, 0, "plan"), "nothing to change\n");
    clock.says("install and plan, with nothing to change");

    move_to_another_domain(&machine, &starts);
    validate(&machine);
    clock.says("another domain");

    machine.put(&[7; 100_000], KEPT, 0o640).unwrap();
    hq::mlflow(&machine, "experiments/create", r#"{"name": "before the end"}"#);
    machine.reboot().unwrap();
    validate(&machine);
    clock.says("reboot");

    people(&machine);
    words(&machine);
    clock.says("users, status, logs, restart");

    renewal(&machine);
    clock.says("renewal");

    end(&machine, &before);
    clock.says("uninstall");

    let said = hq::run(&machine, 0, "install --service mlflow");
    assert!(!said.contains("file system on"), "the disk is known, so not formatted:\n{said}");
    let found = hq::mlflow(&machine, "experiments/search", r#"{"max_results": 10}"#);
    assert!(found.contains("before the end"), "{found}");
    assert_eq!(machine.ok(&format!("sha256sum {KEPT} | cut -c 1-8")), KEPT_SUM);
    validate(&machine);
    clock.says("install on the disk of before");
}

/// `head -c 100000 /dev/zero | tr '\0' '\7' | sha256sum`
const KEPT_SUM: &str = "2c4b1011\n";

fn move_to_another_domain(machine: &Machine, before: &BTreeMap<String, String>) {
    let files = machine.manifest().unwrap();
    let nginx = workers(machine);
    hq::run(machine, 0, "install --domain team.test");
    let changed = differences(&files, &machine.manifest().unwrap());
    let etc: Vec<_> =
        changed.iter().filter_map(|line| line[2..].split_once(": ")).map(|(path, _)| path).collect();
    let etc: Vec<_> = etc.into_iter().filter(|path| path.starts_with("/etc/")).collect();
    assert_eq!(etc, OF_THE_DOMAIN, "files that changed");
    let ours = [("/etc/", "above"), ("/var/lib/echoes-appliance/", "certificates, and the receipt")];
    let elsewhere = traces::unexplained(&changed, &ours);
    assert!(elsewhere.is_empty(), "{elsewhere:#?}");
    let after = starts(machine);
    let restarted: Vec<_> =
        after.iter().filter(|(unit, at)| before.get(*unit) != Some(at)).map(|(unit, _)| unit).collect();
    assert_eq!(restarted, ["mlflow.service"], "units that started anew");
    assert_ne!(workers(machine), nginx, "nginx was reloaded");
}

/// Add, list, verify, remove; and that a service believes it.
fn people(machine: &Machine) {
    let with = |password: &str, arguments: &str| {
        let out = machine.exec_fed(&format!("echoes-appliance user {arguments}"), password.as_bytes());
        (out.code, out.text())
    };
    assert_eq!(with("a long password\n", "add anna"), (0, "anna may log in\n".into()));
    let listed = hq::run(machine, 0, "user list");
    assert!(listed.contains("anna") && listed.contains("echoes"), "{listed}");
    assert_eq!(with("a long password\n", "verify anna"), (0, "right\n".into()));
    let (code, said) = with("another\n", "verify anna");
    assert_eq!(code, 1, "{said}");
    assert_eq!(hq::run(machine, 0, "user remove anna"), "anna is out\n");
    let (code, said) = with("a long password\n", "verify anna");
    assert_eq!(code, 1, "{said}");
}

fn words(machine: &Machine) {
    let status: serde_json::Value = serde_json::from_str(&hq::run(machine, 0, "status --json")).unwrap();
    let states: Vec<_> =
        status["services"].as_array().unwrap().iter().map(|s| s["state"].as_str().unwrap()).collect();
    assert_eq!(states, ["active"; 4]);
    assert_eq!(status["data"]["mounted"], true);
    let logs = hq::run(machine, 0, "logs mlflow -n 5");
    assert!((1..=6).contains(&logs.lines().count()), "{logs}");
    let before = starts(machine);
    hq::run(machine, 0, "restart --all");
    let after = starts(machine);
    let restarted: Vec<_> = after
        .iter()
        .filter(|(unit, at)| before.get(*unit) != Some(at))
        .map(|(unit, _)| unit.as_str())
        .collect();
    assert_eq!(restarted, ["dashboard.service", "docs.service", "mlflow.service", "tensorboard.service"]);
    validate(machine);
}

/// A lost certificate is made anew by the timer's service, in its sandbox, and served.
fn renewal(machine: &Machine) {
    let kept = machine.ok("cat /var/lib/echoes-appliance/tls/mlflow.team.test/current/fullchain.pem");
    let nginx = workers(machine);
    machine.ok("systemctl start echoes-renew.service");
    assert_eq!(workers(machine), nginx, "no certificate is due");
    machine.ok("rm -r /var/lib/echoes-appliance/tls/docs.team.test && systemctl start echoes-renew.service");
    assert_ne!(workers(machine), nginx, "nginx took in a new certificate");
    let now = machine.ok("cat /var/lib/echoes-appliance/tls/mlflow.team.test/current/fullchain.pem");
    assert_eq!(now, kept, "the others were not due");
    validate(machine);
}

fn end(machine: &Machine, before: &Manifest) {
    let installed = machine.manifest().unwrap();
    let promised = hq::run(machine, 0, "uninstall --dry-run");
    let touched = traces::unexplained(&differences(&installed, &machine.manifest().unwrap()), &[]);
    assert!(touched.is_empty(), "a rehearsal touches nothing: {touched:#?}");
    assert!(
        promised.contains("goes   packages ") && promised.contains("goes   unit mlflow.service"),
        "{promised}"
    );
    let stays: Vec<_> = promised.lines().filter(|line| !line.starts_with("goes   ")).collect();
    assert_eq!(stays, ["stays  everything on the disk that is mounted at /mnt/echoes_data"]);
    let said = hq::run(machine, 0, "uninstall");
    assert!(!said.contains("stays"), "{said}");
    let left = traces::unexplained(&differences(before, &machine.manifest().unwrap()), &[]);
    assert!(left.is_empty(), "uninstall leaves on {}:\n{}\n{said}", machine.release(), left.join("\n"));
    let failed = machine.ok("systemctl --failed --no-legend --plain");
    assert!(!failed.contains("echoes") && !failed.contains("mlflow"), "{failed}");
    assert_eq!(machine.ok("ss -Hlnt | grep -Ec ':(80|443|5000|6006|8000|8080) ' || true"), "0\n");
    // The disk is as it was: nothing of it was ours to take.
    let disk = machine.disk(0).unwrap().device().display().to_string();
    let sum = machine.ok(&format!(
        "mkdir /run/look && mount -o ro {disk} /run/look && sha256sum /run/look/{} | cut -c 1-8; umount /run/look",
        KEPT.strip_prefix("/mnt/echoes_data/").unwrap()
    ));
    assert_eq!(sum, KEPT_SUM);
}

#[track_caller]
fn validate(machine: &Machine) {
    let bad = hq::bad_answers(machine).unwrap();
    assert!(bad.is_empty(), "on {}: {bad:#?}", machine.release());
    hq::run(machine, 0, "validate");
}

/// When each unit was last started, as systemd knows it: a restart has another invocation.
fn starts(machine: &Machine) -> BTreeMap<String, String> {
    let said = machine.ok(&format!(
        "systemctl show -p Id -p InvocationID -p ActiveEnterTimestampMonotonic {}",
        UNITS.join(" ")
    ));
    let unit = |block: &str| {
        let field = |name: &str| {
            block.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('=')).unwrap_or_default()
        };
        (
            field("Id").to_owned(),
            format!("{} {}", field("InvocationID"), field("ActiveEnterTimestampMonotonic")),
        )
    };
    said.split("\n\n").map(unit).collect()
}

/// nginx's workers, which a reload replaces.
fn workers(machine: &Machine) -> String {
    machine.ok("pgrep -P \"$(systemctl show -p MainPID --value nginx)\" | sort")
}

/// Our services that systemd finds more exposed than 2.5 of 10.
fn exposures(machine: &Machine) -> Vec<String> {
    let exposure = |unit: &&str| {
        let said = machine.ok(&format!("systemd-analyze security --no-pager {unit}"));
        let (_, level) = said.rsplit_once(&format!("for {unit}: ")).unwrap_or_else(|| panic!("{said}"));
        let level: f64 = level.split(' ').next().unwrap().parse().unwrap();
        (level > 2.5).then(|| format!("{unit} {level}"))
    };
    SERVICES.iter().filter_map(exposure).collect()
}

/// How long each part of a story takes, for who wants to make it shorter.
struct Clock {
    release: Release,
    since: Instant,
}

impl Clock {
    fn new(release: Release) -> Self {
        Self { release, since: Instant::now() }
    }

    fn says(&mut self, what: &str) {
        eprintln!("{}: {what}: {:.1} s", self.release, self.since.elapsed().as_secs_f64());
        self.since = Instant::now();
    }
}
