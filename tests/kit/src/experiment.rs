//! The sample experiment, as a person of the team runs it: their checkout on the headquarters, and the words they type.

use crate::{TOP, lab::Machine};
use anyhow::{Context as _, Result, ensure};
use std::process::{Command, Stdio};

pub const PERSON: &str = "ana";
pub const SCRIPT: &str = "experiments/train_comprehensive.py";

/// Where the authority of the simulated Azure lies on the headquarters.
pub const AZURE_CA: &str = "/etc/echoes-appliance/azure-ca.crt";

/// A person who may use sudo, with a checkout in their home.
pub fn person(machine: &Machine) -> Result<()> {
    // git, which says what a checkout is; and the person, as an administrator would make them.
    let made = machine.exec(&format!(
        "export DEBIAN_FRONTEND=noninteractive; apt-get install -qq -y --no-install-recommends git >/dev/null && \
         useradd --create-home --shell /bin/bash {PERSON} && \
         echo '{PERSON} ALL=(ALL) NOPASSWD: ALL' >/etc/sudoers.d/{PERSON} && chmod 440 /etc/sudoers.d/{PERSON}"
    ));
    ensure!(made.code == 0, "making {PERSON}: {}", made.stderr);
    // The checkout that is theirs.
    let sample = format!("{TOP}/examples/experiment");
    let mut tar = Command::new("tar");
    tar.args(["-c", "--exclude=results", "--exclude=__pycache__", "-C", &sample, "."])
        .stderr(Stdio::inherit());
    let tar = tar.output().context("packing the sample experiment")?;
    ensure!(tar.status.success(), "packing {sample}: {}", tar.status);
    let unpack = as_person(
        "mkdir echoes && cd echoes && tar -x --no-same-owner && git init -q && git add . && \
         git -c user.name=Ana -c user.email=ana@localhost commit -q -m \"A first experiment\"",
    );
    let unpacked = machine.exec_fed(&unpack, &tar.stdout);
    ensure!(unpacked.code == 0, "unpacking the sample experiment: {}", unpacked.stderr);
    Ok(())
}

/// The headquarters is one of the simulated Azure's machines, as its settings say from now on.
pub fn move_to_azure(machine: &Machine, settings: &str, ca: &str) -> Result<()> {
    machine.put(ca.as_bytes(), AZURE_CA, 0o644)?;
    let written = machine.exec_fed("cat >>/etc/echoes-appliance/config.toml", settings.as_bytes());
    ensure!(written.code == 0, "writing the settings: {}", written.stderr);
    Ok(())
}

/// The command that the person types.
pub fn gpu_run(more: &str) -> String {
    format!("sudo echoes-appliance gpu-run {SCRIPT} {more}")
}

/// As they type it, in their checkout.
pub fn typed(words: &str) -> String {
    as_person(&format!("cd echoes && {words}"))
}

/// No word of it has a single quote.
fn as_person(words: &str) -> String {
    format!("runuser --login {PERSON} --command '{words}'")
}
