//! Machines that the team owns, with a systemd of their own: where the person of the experiments may be root by `sudo`, each
//! script is kept by a unit; where they may not, and who logs out takes along what they have started, a script outlives
//! that as well.

use crate::PROGRAM;
use anyhow::ensure;
use kit::{
    here::Here,
    hq,
    lab::{Layer, Machine, Options, Release},
    ordinary::{ID, PERSON, ROWS, World},
};
use std::{fs, process::Command, thread, time::Duration};

/// With an sshd that lets in, by a key of the story's, whoever is made on it.
struct OwnedMachine {
    machine: Machine,
    here: Here,
}

impl OwnedMachine {
    fn new(what: &str) -> Option<Self> {
        if !hq::can_boot(what) {
            return None;
        }
        let here = Here::new(PROGRAM)?;
        let wanted = "openssh-server python3 sudo dbus libpam-systemd procps";
        let layer = Layer::cached(Release::Bookworm, "owned", wanted, |machine| {
            let out = machine.exec(&format!(
                "export DEBIAN_FRONTEND=noninteractive; apt-get update -qq && apt-get install -qq -y --no-install-recommends {wanted} && apt-get clean && rm -rf /var/lib/apt/lists/*"
            ));
            ensure!(out.code == 0, "installing {wanted}: {}", out.stderr);
            Ok(())
        });
        let options = Options { layer: Some(layer.unwrap()), ..Options::default() };
        let machine = Machine::with(Release::Bookworm, options).unwrap();
        let key = here.path("user");
        let made =
            Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(&key).status();
        assert!(made.unwrap().success());
        let own = machine.ok("cat /etc/ssh/ssh_host_ed25519_key.pub");
        fs::write(here.path("known"), format!("{} {own}", machine.ip())).unwrap();
        // The rows of a table come all at once.
        let open = "MaxStartups 100\nMaxSessions 100\n";
        machine.put(open.as_bytes(), "/etc/ssh/sshd_config.d/story.conf", 0o644).unwrap();
        machine.ok("systemctl restart ssh");
        Some(Self { machine, here })
    }

    fn add_person(&self, name: &str, more: &str) {
        let key = fs::read_to_string(self.here.path("user.pub")).unwrap();
        let key = key.trim();
        self.machine.ok(&format!(
            "useradd -m -s /bin/bash {more} {name} && mkdir -m 700 ~{name}/.ssh && echo '{key}' > ~{name}/.ssh/authorized_keys && chown -R {name}: ~{name}/.ssh"
        ));
    }

    fn command(&self, words: &[&str]) -> Command {
        let setting = |key: &str, name: &str| format!("gpu.{key}={}", self.here.path(name).display());
        self.here.command_with(&[setting("known_hosts", "known"), setting("ssh_key", "user")], words)
    }

    fn url(&self, person: &str) -> String {
        format!("ssh://{person}@{}", self.machine.ip())
    }
}

#[test]
fn ordinary_troubles_where_the_person_may_be_root() {
    let Some(owned) = OwnedMachine::new("ordinary troubles on a machine that the team owns") else { return };
    owned.add_person(PERSON, &format!("-u {ID}"));
    owned.machine.ok(&format!("echo '{PERSON} ALL=(ALL) NOPASSWD:ALL' > /etc/sudoers.d/story"));
    let home = format!("home/{PERSON}/.echoes-appliance/runs");
    let world = World {
        named: "sudo",
        here: &owned.here,
        command: Box::new(|words| owned.command(words)),
        provider: vec!["--provider".to_owned(), owned.url(PERSON)],
        rooms: owned.machine.root().join(home),
        signs: ("/var/tmp".into(), owned.machine.root().join("var/tmp")),
        has_orphan: Box::new(|| owned.machine.exec("pgrep -f 4242[.]5").code == 0),
        rented: false,
    };
    world.pull_what_is_left();
    world.try_all(&ROWS.iter().collect::<Vec<_>>());
    let units = "ls /etc/systemd/system | grep echoes-agent; systemctl list-units --all --plain --no-legend 'echoes-agent-*'";
    assert_eq!(owned.machine.exec(units).stdout, "", "a unit is left");
}

/// It counts its attempts, and ends once it is told that this is enough.
const PATIENT: &str = r#"
import os, pathlib, sys, time
out = pathlib.Path(os.environ["ECHOES_OUT"])
(out / f"try{os.environ['ECHOES_ATTEMPT']}").write_text("x")
print("ready", flush=True)
while not pathlib.Path("/var/tmp/enough").exists():
    time.sleep(0.1)
"#;

/// As hardening roles set it: who logs out ends what they have started. kim's own services may stay, which an administrator
/// has allowed; lee's may not, and nobody there can be asked for it.
#[test]
fn a_script_outlives_a_login_that_takes_along_what_it_has_started() {
    let Some(owned) = OwnedMachine::new("KillUserProcesses= on a machine that the team owns") else { return };
    let (machine, here) = (&owned.machine, &owned.here);
    machine.ok("mkdir -p /etc/systemd/logind.conf.d");
    let kill = "[Login]\nKillUserProcesses=yes\n";
    machine.put(kill.as_bytes(), "/etc/systemd/logind.conf.d/kill.conf", 0o644).unwrap();
    machine.ok("systemctl restart systemd-logind");
    let script = here.path("code/patient.py");
    fs::write(&script, PATIENT).unwrap();
    let people = ["kim", "lee"];
    let mut watching = Vec::new();
    for person in people {
        owned.add_person(person, "");
        if person == "kim" {
            machine.ok("loginctl enable-linger kim");
        }
        let url = owned.url(person);
        let words = ["gpu-run", script.to_str().unwrap(), "--name", person, "--yes", "--provider", &url];
        watching.push(owned.command(&words).spawn().unwrap());
    }
    let made = |person: &str, n: u32| {
        let out = format!("home/{person}/.echoes-appliance/runs/{person}/out/try{n}");
        machine.root().join(out).exists()
    };
    for person in people {
        here.until(&format!("the script of {person}"), || made(person, 1));
        let session = machine.ok(&format!("loginctl list-sessions --no-legend | grep -c {person}"));
        assert_ne!(session.trim(), "0", "without a session there is nothing to log out of");
        // Also the connection that headquarters shares among its questions.
        machine.ok(&format!("pkill -KILL -u root -f '^sshd: {person}' || pkill -KILL -f '^sshd: {person}'"));
    }
    here.until("lee's second attempt", || made("lee", 2));
    thread::sleep(Duration::from_secs(3));
    assert!(!made("kim", 2), "kim's script was ended with the login");
    machine.ok("touch /var/tmp/enough");
    for (person, mut command) in people.iter().zip(watching) {
        assert_eq!(command.wait().unwrap().code(), Some(0), "{person}: {}", here.logs());
        let left = format!("ls -A ~{person}/.echoes-appliance/runs; pgrep -u {person} -f echoes-appliance");
        assert_eq!(machine.exec(&left).stdout, "", "of {person}");
        let attempts = if *person == "kim" { 1 } else { 2 };
        assert_eq!(here.result(person, &format!("try{attempts}")).as_deref(), Some("x"));
    }
    assert_eq!(machine.ok("ls /var/lib/systemd/linger").trim(), "kim", "who may stay is as it was");
}
