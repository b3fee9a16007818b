//! The headquarters under test: the .deb as a user gets it, in lab machines.

use crate::{
    TOP,
    lab::{Disk, Layer, Machine, Options, Release},
};
use anyhow::{Context as _, Result, ensure};
use sha2::{Digest as _, Sha256};
use std::{path::PathBuf, process::Command};

/// The package that `make deb` left, once it has: the tests begin beside it. Its newest, as several may lie there.
pub fn deb() -> PathBuf {
    if let Ok(building) = std::fs::File::open(format!("{TOP}/target/debian.lock")) {
        building.lock_shared().unwrap();
    }
    let dir = format!("{TOP}/target/debian");
    let mut all: Vec<_> = std::fs::read_dir(&dir)
        .unwrap_or_else(|e| panic!("{dir}: {e}; run `make deb` first"))
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|ext| ext == "deb"))
        .collect();
    all.sort_by_key(|path| path.metadata().and_then(|meta| meta.modified()).unwrap());
    all.pop().unwrap_or_else(|| panic!("{dir} holds no package; run `make deb` first"))
}

/// Whether machines can be booted here; says loudly why not.
pub fn can_boot(story: &str) -> bool {
    match crate::lab::Lab::available() {
        Ok(()) => true,
        Err(missing) => {
            assert!(std::env::var_os("CI").is_none(), "CI must be able to boot machines: {missing}");
            eprintln!("SKIPPED {story}: cannot boot machines here: {missing}");
            false
        }
    }
}

/// A machine with the package on it, as fresh as a cloud makes it.
pub fn fresh(release: Release, disks: Vec<Disk>) -> Machine {
    let machine = Machine::with(release, Options { disks, ..Options::default() }).unwrap();
    add_package(&machine).unwrap();
    machine
}

/// As `fresh`, for stories that are not about the Python environments: they are there, as a killed installation leaves
/// them, and making them is most of what an installation takes.
pub fn prepared(release: Release, disks: Vec<Disk>) -> Machine {
    let layer = Some(environments(release));
    let machine = Machine::with(release, Options { disks, layer, ..Options::default() }).unwrap();
    add_package(&machine).unwrap();
    machine
}

/// A machine with everything installed and its data on the OS disk. Made once for each package.
pub fn installed(release: Release) -> Machine {
    let key = hex(&std::fs::read(deb()).unwrap());
    let layer = environments(release).cached_above("installed", &key, |machine| {
        add_package(machine)?;
        install(machine)
    });
    Machine::with(release, Options { layer: Some(layer.unwrap()), ..Options::default() }).unwrap()
}

/// The Python environments on a machine that has nothing else of ours. Made once for each list of requirements.
fn environments(release: Release) -> Layer {
    let recipe =
        ["assets/python/services.txt", "assets/python/docs.txt", "assets/python/uv.txt", "src/hq/python.rs"];
    let recipe = recipe.map(|file| std::fs::read_to_string(format!("{TOP}/{file}")).unwrap());
    let layer = Layer::cached(release, "environments", &hex(recipe.concat().as_bytes()), |machine| {
        let maker = Machine::with(release, Options::default())?;
        add_package(&maker)?;
        install(&maker)?;
        let at = "opt/echoes-appliance";
        std::fs::create_dir(machine.root().join(at))?;
        let mut copy = Command::new("cp");
        copy.arg("-a").arg(maker.root().join(at).join("env")).arg(machine.root().join(at));
        ensure!(copy.status()?.success(), "{copy:?} failed");
        Ok(())
    });
    layer.unwrap()
}

fn install(machine: &Machine) -> Result<()> {
    let out = machine.exec("echoes-appliance install --set data.disk=none");
    ensure!(out.code == 0, "install {out}");
    Ok(())
}

fn hex(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

pub fn add_package(machine: &Machine) -> Result<()> {
    machine.push(&deb(), "/root/echoes-appliance.deb", 0o644)?;
    let out =
        machine.exec("apt-get install -qq -y /root/echoes-appliance.deb && rm /root/echoes-appliance.deb");
    ensure!(out.code == 0, "installing the package: {}", out.stderr);
    Ok(())
}

/// Put what kills into a machine.
pub fn mortal(machine: &Machine) {
    let source = format!("{TOP}/tests/kit/src/die.c");
    let dir = tempfile::tempdir().unwrap();
    let object = dir.path().join("die.so");
    let cc = Command::new("gcc").args(["-shared", "-fPIC", "-O2", "-o"]).arg(&object).arg(&source).status();
    assert!(cc.unwrap().success(), "compiling {source}");
    machine.push(&object, "/root/die.so", 0o755).unwrap();
}

/// Before a command in such a machine: that it dies at the Nth call of this kind (`die.c` says which there are).
pub fn die_at(call: &str, nth: u32) -> String {
    format!("DIE_AT='{call} {nth}' LD_PRELOAD=/root/die.so")
}

/// Run one of our commands, which must end with this status.
pub fn run(machine: &Machine, code: i32, arguments: &str) -> String {
    let out = machine.exec(&format!("echoes-appliance {arguments}"));
    assert_eq!(out.code, code, "`echoes-appliance {arguments}` on {} {out}", machine.release());
    out.text()
}

/// Every answer of validate that is bad.
pub fn bad_answers(machine: &Machine) -> Result<Vec<String>> {
    let out = machine.exec("echoes-appliance validate --json");
    let all: serde_json::Value = serde_json::from_str(&out.stdout).with_context(|| out.to_string())?;
    let rows = all["rows"].as_array().context("no rows")?;
    let bad = rows.iter().filter(|row| row["verdict"] == "bad");
    Ok(bad.map(|row| format!("{}: {}", row["id"], row["cause"])).collect())
}

/// Ask MLflow, beside nginx.
#[track_caller]
pub fn mlflow(machine: &Machine, what: &str, body: &str) -> String {
    let ask = "import sys, urllib.request as r; print(r.urlopen(r.Request(sys.argv[1], sys.stdin.buffer.read(), \
               {'Content-Type': 'application/json'})).read().decode())";
    let url = format!("http://127.0.0.1:5000/api/2.0/mlflow/{what}");
    let out = machine.exec_fed(&format!("python3 -c \"{ask}\" {url}"), body.as_bytes());
    out.assert_code(0);
    out.stdout
}
