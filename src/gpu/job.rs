//! What happens on a machine, whoever rented it. Each may be repeated, because after a crash each will be.

use super::{provider::Machine, spec::Spec};
use anyhow::Result;
use serde::{Deserialize, Serialize};

/// How the script stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Stand {
    Running,
    Exited(Exit),
}

/// How a script ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Exit {
    /// 128 + n when ended by signal n.
    Code(i32),
    /// Its time or its money was used up.
    Deadline,
    /// A person asked for it.
    Stopped,
    /// The machine is taken away.
    Evicted,
}

pub trait Job {
    /// Code, data and environment, all there and whole.
    fn prepare(&self, spec: &Spec, machine: &Machine) -> Result<()>;
    /// Start the script, unless it was.
    fn start(&self, spec: &Spec, machine: &Machine) -> Result<()>;
    fn poll(&self, spec: &Spec, machine: &Machine) -> Result<Stand>;
    /// Ask the script to end.
    fn stop(&self, spec: &Spec, machine: &Machine) -> Result<()>;
    /// Bring home what is complete and not here yet; whether everything is.
    fn fetch(&self, spec: &Spec, machine: &Machine) -> Result<bool>;
}
