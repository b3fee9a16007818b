//! A script on the headquarters itself is its person and no more, and what training does goes on: tried by a script whose
//! person may become root without a word, as the first user of every cloud's image may.

use kit::{
    experiment::{self, PERSON},
    hq,
    lab::{Machine, Release},
};
use serde_json::{Value, json};

const SCRIPT: &str = include_str!("sandbox.py");

/// What came of each try.
fn tried(machine: &Machine, run: &str) -> Value {
    let words = format!("sudo echoes-appliance gpu-run experiments/sandbox.py --provider local --name {run}");
    let out = machine.exec(&experiment::typed(&words));
    assert_eq!(out.code, 0, "{}\n{}", out.text(), machine.exec("journalctl -n 60 -o cat --no-pager").stdout);
    let tried = machine.ok(&format!("cat /mnt/echoes_data/azure_results/{run}/out/tried.json"));
    serde_json::from_str(&tried).unwrap()
}

fn is_refused(tried: &Value, what: &str) -> bool {
    tried[what].as_str().is_some_and(|said| said.starts_with("refused: "))
}

/// Whether `IPAddressDeny=` does anything here: it needs a kernel's filters, which a container may not have.
fn denies_addresses(machine: &Machine) -> bool {
    let ask = "python3 -c 'import socket; socket.create_connection((\"169.254.169.254\", 80), 5)'";
    machine.ok(ask);
    let denied = format!("systemd-run --quiet --wait --collect -p IPAddressDeny=169.254.169.254 {ask}");
    machine.exec(&denied).code != 0
}

fn exposure(machine: &Machine, unit: &str) -> f64 {
    let said = machine.exec(&format!("systemd-analyze security --no-pager {unit} | tail -n 1")).stdout;
    let number = said.split_whitespace().find_map(|word| word.parse().ok());
    number.unwrap_or_else(|| panic!("{unit}: {said}"))
}

#[test]
fn a_script_here_is_its_person_and_no_more_and_training_goes_on_on_debian_11() {
    a_script_here(Release::Bullseye);
}

#[test]
fn a_script_here_is_its_person_and_no_more_and_training_goes_on_on_debian_12() {
    a_script_here(Release::Bookworm);
}

#[test]
fn a_script_here_is_its_person_and_no_more_and_training_goes_on_on_debian_13() {
    a_script_here(Release::Trixie);
}

fn a_script_here(release: Release) {
    if !hq::can_boot("a script that is shut in") {
        return;
    }
    let machine = hq::installed(release);
    experiment::person(&machine).unwrap();
    if release == Release::Bullseye {
        // The experiment's own are for a newer Python.
        let requirements = format!("/home/{PERSON}/echoes/requirements.txt");
        machine.put(b"mlflow-skinny==3.1.4\nnumpy\n", &requirements, 0o644).unwrap();
    }
    machine.put(SCRIPT.as_bytes(), &format!("/home/{PERSON}/echoes/experiments/sandbox.py"), 0o644).unwrap();
    machine.ok(&format!(
        "usermod -aG echoes,disk {PERSON}; useradd bob; cd /mnt/echoes_data/azure_results && \
         mkdir -m 2700 others && chown bob:echoes others"
    ));
    // nginx answers there as a cloud would.
    machine.ok("ip address add 169.254.169.254/32 dev lo");
    // A process of the person's own, which is not shut in.
    machine.ok(&format!("runuser -u {PERSON} -- setsid -f sleep 777 </dev/null >/dev/null 2>&1"));
    let came = tried(&machine, "shut");
    for what in [
        "sudo",
        "etc",
        "home",
        "setuid",
        "another_process",
        "own_systemd",
        "system_bus",
        "namespace",
        "others_results",
        "move_others_results",
        "disk",
    ] {
        assert!(is_refused(&came, what), "{what}: {came:#}");
    }
    if denies_addresses(&machine) {
        assert!(is_refused(&came, "metadata"), "{came:#}");
    } else {
        eprintln!(
            "SKIPPED: the machine's metadata: systemd filters no addresses on {release}'s machines here"
        );
    }
    for (what, expected) in [
        ("home_is_read", json!(true)),
        ("event_files", json!("0o42755")),
        ("event_files_by_link", json!("written")),
        ("copies_of_data", json!("")),
        ("pool", json!(4950)),
        ("spawned", json!(0)),
        ("shared", json!("shared")),
        ("compiled", json!(42)),
        ("sparse", json!(100_u64 << 30)),
        ("temporary", json!("/tmp")),
        ("autolog", json!("FINISHED")),
    ] {
        assert_eq!(came[what], expected, "{what}: {came:#}");
    }
    let cache = format!("/var/lib/echoes-appliance/machine/{PERSON}/cache");
    assert_eq!(came["caches"][0], json!(cache));
    assert_eq!(machine.ok(&format!("cat {cache}/torch/fetched")), "x", "it is kept for the next");
    machine.ok(&format!("pgrep -u {PERSON} -f 'sleep 777'"));
    // Results are the person's, the group may read them, and a stranger may not.
    let results = "/mnt/echoes_data/azure_results/shut";
    let modes = machine.ok(&format!("cd {results} && stat -c '%a %U:%G' . out out/tried.json log.txt"));
    let (dir, file) = (format!("2750 {PERSON}:echoes\n"), format!("640 {PERSON}:echoes\n"));
    assert_eq!(modes, format!("{dir}{dir}{file}{file}"));
    machine.exec(&format!("runuser -u nobody -- cat {results}/log.txt")).assert_code(1);
    let doctor = machine.exec("echoes-appliance gpu doctor").stdout;
    assert!(doctor.contains("its person's rights and no more"), "{doctor}");
    for (unit, most) in [
        ("echoes-gpu@x.service", 4.0),
        ("echoes-sweep.service", 4.0),
        ("mlflow.service", 2.5),
        ("tensorboard.service", 2.5),
        ("dashboard.service", 2.5),
        ("docs.service", 2.5),
        ("echoes-auth.service", 2.5),
        ("echoes-renew.service", 2.5),
        ("echoes-alert.service", 2.5),
    ] {
        let counted = exposure(&machine, unit);
        assert!(counted <= most, "{unit}: {counted}");
    }

    // A team that needs setuid programs says so.
    machine.ok("sed -i '/^\\[gpu\\]/,$d' /etc/echoes-appliance/config.toml; \
         printf '\\n[gpu]\\nlocal_sandbox = false\\n' >>/etc/echoes-appliance/config.toml");
    machine.ok("rm -rf /mnt/echoes_data/tfruns/mine /mnt/echoes_data/tfruns/linked");
    let came = tried(&machine, "open");
    assert!(came["sudo"].as_str().is_some_and(|said| said.starts_with("uid=0(root)")), "{came:#}");
    let doctor = machine.exec("echoes-appliance gpu doctor").stdout;
    assert!(doctor.contains("gpu.local_sandbox"), "{doctor}");
}

/// Folders that earlier versions left open are shut, and are as before when the headquarters goes.
#[test]
fn results_of_earlier_versions_are_shut_at_install() {
    if !hq::can_boot("results of earlier versions") {
        return;
    }
    let machine = hq::installed(Release::Bookworm);
    let results = "/mnt/echoes_data/azure_results";
    machine.ok(&format!(
        "mkdir -p /var/lib/echoes-appliance/runs/old {results}/old {results}/strangers; \
         chown nobody:echoes {results}/old; chmod 2755 {results}/old {results}/strangers"
    ));
    let modes = || machine.ok(&format!("cd {results} && stat -c %a old strangers"));
    hq::run(&machine, 2, "plan");
    hq::run(&machine, 0, "install");
    assert_eq!(modes(), "2750\n2755\n");
    hq::run(&machine, 0, "plan");
    hq::run(&machine, 0, "uninstall");
    assert_eq!(modes(), "2755\n2755\n");
}

/// What `validate` makes is gone after it, and what a killed one has left, after the next.
#[test]
fn validate_leaves_nothing_behind() {
    if !hq::can_boot("what validate leaves") {
        return;
    }
    let machine = hq::installed(Release::Bookworm);
    machine.ok("mkdir -p /mnt/echoes_data/tfruns/echoes-validate-999999");
    hq::run(&machine, 0, "validate");
    let made =
        "find /mnt/echoes_data/mlruns/artifacts /mnt/echoes_data/tfruns -mindepth 2 -o -name 'echoes-*'";
    assert_eq!(machine.ok(made), "");
    let locks = "find /opt/echoes-appliance /mnt/echoes_data/mlruns -perm /022 -not -type l";
    assert_eq!(machine.ok(locks), "", "nobody else may write there");
    // A disk that comes back to a headquarters whose users have other numbers.
    hq::run(&machine, 0, "uninstall");
    machine.ok("groupadd between; useradd --no-create-home -g between between");
    hq::run(&machine, 0, "install --set data.disk=none");
    let groups = machine.ok("cd /mnt/echoes_data/mlruns && stat -c %U:%G mlflow.db .version artifacts");
    assert_eq!(groups, "mlflow:echoes\nmlflow:echoes\nmlflow:mlflow\n");
}
