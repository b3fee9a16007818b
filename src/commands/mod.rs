//! One verb a file: its arguments, its help, its `run`.

pub mod agent;
pub mod backoff;
pub mod ca;
pub mod cert;
pub mod config;
pub mod gpu;
pub mod gpu_run;
pub mod install;
pub mod logs;
pub mod plan;
pub mod prepare_mlflow;
pub mod renew;
pub mod restart;
pub mod serve;
pub mod status;
pub mod uninstall;
pub mod user;
pub mod validate;
pub mod wait_for;

use crate::{
    host::{Host, System},
    ui::Try as _,
};
use anyhow::Result;
use std::path::Path;

/// This machine.
fn this_machine() -> Host {
    Host::new("/", System)
}

/// This machine, or the one whose files a directory holds.
fn machine_in(root: &Path) -> Result<Host> {
    Ok(Host::new(root.canonicalize()?, System))
}

/// Most verbs change the machine, or read what only root may.
fn need_root(host: &Host) -> Result<()> {
    let refused = || anyhow::bail!("only root may do this");
    if host.is_live() && !nix::unistd::geteuid().is_root() {
        refused().or_try("sudo echoes-appliance …")
    } else {
        Ok(())
    }
}

/// Whether install has been here.
fn need_installed(host: &Host) -> Result<()> {
    let missing = || anyhow::bail!("there is no headquarters on this machine");
    if host.exists(Path::new(crate::hq::receipt::PATH))? {
        Ok(())
    } else {
        missing().or_try("sudo echoes-appliance install")
    }
}
