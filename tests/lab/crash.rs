//! Killed anywhere, and run again: the same end. `kill -9` at every entry of the journal, for real.

use kit::{
    hq,
    lab::{Disk, Machine, Release, differences},
    traces,
};
use serde_json::Value;
use std::{collections::BTreeSet, process::Stdio, time::Instant};

/// Die at an entry, after its bytes are written and before anything is done about it. What is noted is not noted
/// again: so each run of this does the work of one entry and no more.
const NOTED: &str = "fdatasync";

/// Die at an entry before its bytes are written. Taking something back comes before its note, so at the second
/// entry each run has taken back one thing that is noted and one that is not.
const NOT_NOTED: &str = "write";

/// What two installations of the same differ in, beyond what an uninstall leaves.
const OF_ITS_OWN: [(&str, &str); 6] = [
    ("/opt/echoes-appliance/*.pyc", "names the time at which its source was unpacked"),
    (
        "/usr/lib/python3*.pyc",
        "compiled by the distribution's packages, and Python 3.9 does not do it alike twice",
    ),
    ("/var/www/docs/site/index.html", "names the time at which it was built"),
    ("/etc/nginx/.htpasswd", "a password of its own"),
    ("/var/lib/echoes-appliance/tls/", "keys and certificates of its own"),
    ("/var/lib/echoes-appliance/receipt.jsonl", "longer by what was done twice; compared by what it says"),
];

#[test]
fn killed_at_every_entry_on_debian_11() {
    killed_at_every_entry(Release::Bullseye);
}

#[test]
fn killed_at_every_entry_on_debian_12() {
    killed_at_every_entry(Release::Bookworm);
}

#[test]
fn killed_at_every_entry_on_debian_13() {
    killed_at_every_entry(Release::Trixie);
}

fn killed_at_every_entry(release: Release) {
    if !hq::can_boot("killed at every entry") {
        return;
    }
    let since = Instant::now();
    let says = |what: &str| eprintln!("{:6.1} s: {what}", since.elapsed().as_secs_f64());
    let machine = hq::fresh(release, vec![Disk::blank(1024).unwrap()]);
    hq::mortal(&machine);
    let before = machine.manifest().unwrap();

    let (kills, said) = killed_until_done(&machine, NOTED, "install");
    says(&format!("installed after {kills} kills"));
    assert!(kills > 60, "every entry is a kill, and there are more than {kills}");
    assert!(said.contains("user echoes, password "), "the password is shown by the run that ends:\n{said}");
    assert_eq!(hq::run(&machine, 0, "install"), "nothing to change\n");
    let bad = hq::bad_answers(&machine).unwrap();
    assert!(bad.is_empty(), "{bad:#?}");
    let (killed, killed_receipt) = (machine.manifest().unwrap(), receipt(&machine));

    let (kills, _) = killed_until_done(&machine, NOT_NOTED, "uninstall");
    says(&format!("uninstalled after {kills} kills"));
    assert!(kills > 40, "every entry is a kill, and there are more than {kills}");
    let left = traces::unexplained(&differences(&before, &machine.manifest().unwrap()), &[]);
    assert!(left.is_empty(), "uninstall leaves:\n{}", left.join("\n"));

    hq::run(&machine, 0, "install");
    says("installed without a kill");
    let straight = machine.manifest().unwrap();
    let other = traces::unexplained(&differences(&straight, &killed), &OF_ITS_OWN);
    assert!(other.is_empty(), "a killed install ends elsewhere:\n{}", other.join("\n"));
    assert_eq!(killed_receipt, receipt(&machine));
}

#[test]
fn killed_in_the_middle_of_a_child() {
    if !hq::can_boot("killed in the middle of a child") {
        return;
    }
    let machine = hq::fresh(Release::Bookworm, vec![]);
    let before = machine.manifest().unwrap();
    // dpkg with it, half way through unpacking: what a machine that lost its power finds.
    kill_when(
        &machine,
        "dpkg .*--unpack",
        "pkill -9 -x echoes-applianc; pkill -9 -x apt-get; pkill -9 -x dpkg",
    );
    // We alone: apt goes on without us, and the next run has to wait for it.
    kill_when(&machine, "dpkg .*--(unpack|configure)", "pkill -9 -x echoes-applianc");
    kill_when(&machine, "uv .*pip install", "pkill -9 -x echoes-applianc");
    machine.ok("sleep 0.2; ! pgrep -x uv");
    kill_when(&machine, "uv .*pip install", "pkill -9 -x echoes-applianc; pkill -9 -x uv");
    hq::run(&machine, 0, "install --set data.disk=none --service tensorboard");
    let bad = hq::bad_answers(&machine).unwrap();
    assert!(bad.is_empty(), "{bad:#?}");
    assert_eq!(machine.ok("dpkg --audit"), "");
    hq::run(&machine, 0, "uninstall");
    // Here the data were on the OS disk: they stay.
    let data = [("/mnt/echoes_data/", "data stay")];
    let left = traces::unexplained(&differences(&before, &machine.manifest().unwrap()), &data);
    assert!(left.is_empty(), "uninstall leaves:\n{}", left.join("\n"));
}

/// MLflow makes its tables in dozens of steps. Killed between any two of them, it starts all the same; and what it has
/// is never thrown away.
#[test]
fn mlflow_killed_while_it_makes_or_changes_its_database() {
    if !hq::can_boot("MLflow killed while it makes its database") {
        return;
    }
    let machine = hq::installed(Release::Bookworm);
    let mut half = 0;
    // Seconds after something is there, not after the start: how long MLflow takes to come to it is the machine's.
    let moments = [
        ("-e .version", "0"),
        ("-e mlflow.db", "0"),
        ("-s mlflow.db", "0"),
        ("-s mlflow.db", "0.3"),
        ("-s mlflow.db", "0.8"),
        ("-s mlflow.db", "2"),
    ];
    for (there, after) in moments {
        let left = machine.ok(&format!(
            "systemctl stop mlflow; systemctl reset-failed mlflow; cd /mnt/echoes_data/mlruns; rm -f mlflow.db .version; \
             systemctl start --no-block mlflow; for n in $(seq 6000); do [ {there} ] && break; sleep 0.01; done; \
             sleep {after}; systemctl kill -s KILL mlflow; systemctl stop mlflow; ls -s mlflow.db; cat .version",
        ));
        half += usize::from(left.contains("mlflow.db") && left.contains(" unanswered"));
        machine.ok("systemctl reset-failed mlflow; systemctl start mlflow");
    }
    assert!(half > 0, "it was never killed with a database half made");
    assert!(!machine.ok("cat /mnt/echoes_data/mlruns/.version").contains("unanswered"));

    // Somebody's experiment, and then a note as an older version left it, and one as a killed first start left it.
    hq::mlflow(&machine, "experiments/create", "{\"name\": \"kept\"}");
    for (note, copies) in [("3.1.4", "1"), ("3.17.2 unanswered", "1")] {
        machine.ok(&format!(
            "systemctl stop mlflow; systemctl reset-failed mlflow; cd /mnt/echoes_data/mlruns; echo {note} >.version; \
             systemctl start mlflow; ! grep -e unanswered -e 3.1.4 .version"
        ));
        let found = hq::mlflow(&machine, "experiments/search", "{\"max_results\": 10}");
        assert!(found.contains("kept"), "{found}");
        assert_eq!(machine.ok("ls /mnt/echoes_data/mlruns/backups | grep -c mlflow-3.1.4-").trim(), copies);
    }
}

/// As after a downgrade: the database is of a version that the one that is here cannot read. For as long as the start fails,
/// nothing is thrown away that an older version could read; with the fault gone, nobody waits.
#[test]
fn mlflow_that_cannot_start_throws_no_copy_away_and_comes_back_by_itself() {
    if !hq::can_boot("MLflow that cannot start") {
        return;
    }
    let machine = hq::installed(Release::Bookworm);
    hq::mlflow(&machine, "experiments/create", "{\"name\": \"kept\"}");
    let revision = |to: &str| {
        let python = "import sqlite3, sys; db = sqlite3.connect(sys.argv[1]); print(*db.execute('SELECT version_num FROM alembic_version').fetchone()); \
                      db.execute('UPDATE alembic_version SET version_num = ?', sys.argv[2:]); db.commit()";
        let db = "/mnt/echoes_data/mlruns/mlflow.db";
        machine
            .ok(&format!("/opt/echoes-appliance/services/bin/python -c \"{python}\" {db} {to}"))
            .trim()
            .to_owned()
    };
    let version = machine.ok("systemctl stop mlflow; cat /mnt/echoes_data/mlruns/.version");
    let known = revision("ffffffffffff");
    machine.ok(
        "cd /mnt/echoes_data/mlruns; mkdir -p backups; chown mlflow: backups; echo older >backups/20250101T000000Z-mlflow-3.1.4.db; \
         echo half >backups/half.db; echo 99.0.0 >.version; systemctl start --no-block mlflow",
    );
    // Three starts have failed, and the fourth is waited for: no start limit ends it.
    machine.ok("until [ $(systemctl show --property NRestarts --value mlflow) -ge 3 ]; do sleep 0.1; done; \
         until journalctl -u mlflow | grep 'came back 3 times.* in 10 s'; do sleep 0.1; done");
    assert_eq!(machine.ok("systemctl show --property SubState --value mlflow"), "start-pre\n");
    let copies = machine.ok("ls /mnt/echoes_data/mlruns/backups");
    let copies: Vec<_> = copies.lines().collect();
    assert!(copies.len() == 2 && copies[0] == "20250101T000000Z-mlflow-3.1.4.db", "{copies:?}");
    assert!(copies[1].contains("-mlflow-99.0.0-"), "{copies:?}");
    assert!(machine.ok("journalctl -u mlflow").contains("Can't locate revision"));

    // Mended by a person, who starts it: the start that waits is replaced by one that does not.
    revision(&known);
    machine
        .ok(&format!("echo {} >/mnt/echoes_data/mlruns/.version; systemctl restart mlflow", version.trim()));
    let last = "cat /run/echoes-appliance/backoff/mlflow.service";
    assert!(machine.ok(last).contains("\"row\":0"), "{}", machine.ok(last));
    let found = hq::mlflow(&machine, "experiments/search", "{\"max_results\": 10}");
    assert!(found.contains("kept"), "{found}");

    // Ended from outside, politely: it is back, and nothing was copied.
    machine.ok("systemctl kill --kill-who=main mlflow; until grep '\"row\":1' /run/echoes-appliance/backoff/mlflow.service; \
         do sleep 0.1; done; until systemctl is-active mlflow; do sleep 0.1; done");
    assert_eq!(machine.ok("ls /mnt/echoes_data/mlruns/backups | wc -l"), "2\n");
}

/// On the oldest systemd, and the newest: what keeps dying waits longer each time, a person who restarts it does not, also in
/// the middle of a wait.
#[test]
fn what_keeps_dying_is_started_again_and_a_person_does_not_wait() {
    if !hq::can_boot("units that keep dying") {
        return;
    }
    for release in [Release::Bullseye, Release::Trixie] {
        let machine = hq::fresh(release, vec![]);
        let unit = "[Unit]\nStartLimitIntervalSec=0\n[Service]\nUser=nobody\nRestart=always\nRestartSec=1\n\
                    ExecStartPre=-+/usr/bin/echoes-appliance backoff dying.service\nExecStart=/bin/sh -c 'date +%%s.%%N >&2; exit 1'\n";
        machine.put(unit.as_bytes(), "/etc/systemd/system/dying.service", 0o644).unwrap();
        let record = "/run/echoes-appliance/backoff/dying.service";
        let until = |row: u32| {
            machine.ok(&format!("until grep '\"row\":{row},' {record}; do sleep 0.05; done"));
        };
        machine.ok("systemctl daemon-reload; systemctl start dying");
        until(3);
        // It waits for ten seconds now. A person's start takes none: it has died again, of its own, before they are over.
        machine.ok("systemctl restart dying");
        until(1);
        until(2);
        machine.ok("systemctl reset-failed dying; systemctl restart dying");
        until(1);
        // And one who comes between two tries, while systemd waits by itself.
        machine.ok("systemctl stop dying; systemctl start dying");
        until(1);
        let said = machine.ok("journalctl -u dying");
        assert!(
            said.contains("came back 3 times, one soon after the other: it is started again in 10 s"),
            "{said}"
        );
        machine.ok("systemctl stop dying");
    }
}

/// Start an install, and kill when a process like this is there.
fn kill_when(machine: &Machine, process: &str, kill: &str) {
    let mut command =
        machine.command("echoes-appliance install --set data.disk=none --service tensorboard").unwrap();
    let install = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    // Looked for from inside, as often as can be: some of these live for a second.
    let wait = format!(
        "for n in $(seq 6000); do pgrep -f '^[^ ]*{process}' >/dev/null && break; sleep 0.02; done; {kill}"
    );
    let since = Instant::now();
    let out = machine.exec(&wait);
    let ended = install.wait_with_output().unwrap();
    let killed = ended.status.code().is_none_or(|code| code == 137);
    assert!(killed, "no {process} in {:?}: {ended:?}; {out:?}", since.elapsed());
    eprintln!("killed at {process} after {:.1} s", since.elapsed().as_secs_f64());
}

/// Run until a run ends by itself; how many did not, and what the last one said.
fn killed_until_done(machine: &Machine, at: &str, command: &str) -> (u32, String) {
    let mut kills = 0;
    while kills < 250 {
        // The one note that is never the same twice: its file system gets a new UUID as long as there is none.
        let formatting =
            || machine.ok("tail -n 1 /var/lib/echoes-appliance/receipt.jsonl").contains("formatting");
        let when = if at == NOT_NOTED || kills > 0 && formatting() { 2 } else { 1 };
        let out = machine.exec(&format!("{} echoes-appliance {command}", hq::die_at(at, when)));
        // Which one that is belongs to the story: the renewal's timer, which the machine has by then.
        for waits in out.text().lines().filter(|line| line.contains("waiting for process")) {
            eprintln!("after {kills} kills: {waits}");
            assert!(waits.contains("echoes-appliance renew`"), "{waits}");
        }
        match out.code {
            137 => kills += 1,
            0 => return (kills, out.text()),
            code => panic!("`{command}` after {kills} kills ended with {code}:\n{}", out.text()),
        }
    }
    panic!("no progress:\n{}", machine.ok("tail -n 8 /var/lib/echoes-appliance/receipt.jsonl"))
}

/// What the receipt says is on the machine: one line for each thing of ours.
fn receipt(machine: &Machine) -> BTreeSet<String> {
    let mut all = BTreeSet::new();
    for line in machine.ok("cat /var/lib/echoes-appliance/receipt.jsonl").lines() {
        let line: Value = serde_json::from_str(line).unwrap();
        let text = |field: &str| line[field].as_str().unwrap_or_default().to_owned();
        let list = |field: &str| -> Vec<String> {
            let names = line[field].as_array().map(Vec::as_slice).unwrap_or_default();
            names.iter().map(|name| name.as_str().unwrap().to_owned()).collect()
        };
        all.extend(list("dirs").iter().map(|dir| format!("path {dir}")));
        match line["did"].as_str().unwrap() {
            "wrote" | "linked" | "created" | "built" => drop(all.insert(format!("path {}", text("path")))),
            "removed" => drop(all.remove(&format!("path {}", text("path")))),
            "set-aside" => drop(all.insert(format!("aside {}", text("path")))),
            "replaced" => drop(all.insert(format!("line {}", text("path")))),
            "shut" => drop(all.insert(format!("mode {}", text("path")))),
            "reopened" => drop(all.remove(&format!("mode {}", text("path")))),
            "put-back" => {
                all.remove(&format!("aside {}", text("path")));
                all.remove(&format!("line {}", text("path")));
            }
            "enabled" => drop(all.insert(format!("unit {}", text("unit")))),
            "disabled" => drop(all.remove(&format!("unit {}", text("unit")))),
            "loaded" => drop(all.insert(format!("loaded {}", text("what")))),
            "installing" => all.extend(list("packages").iter().map(|name| format!("package {name}"))),
            "added-users" => {
                all.extend(
                    ["users", "groups"].iter().flat_map(|kind| list(kind)).map(|name| format!("user {name}")),
                );
            }
            "services" => all.extend(list("names").iter().map(|name| format!("service {name}"))),
            // The second installation finds the disk of the first.
            "made-dirs" | "formatting" => {}
            other => panic!("a new kind of entry, {other}: tell this test what it means"),
        }
    }
    all
}
