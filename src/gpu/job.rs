//! What happens on a machine, whoever rented it. Each may be repeated, because after a crash each will be.

use super::{home::Fetched, provider::Machine, spec::Spec};
use anyhow::Result;
use serde::{Deserialize, Serialize};
use std::{fmt, io};

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
    /// The kernel has ended it, as there was no memory left.
    OutOfMemory,
}

impl Exit {
    /// Whether the script is no more, whoever asks: nobody had to tell it to end.
    pub fn is_by_itself(&self) -> bool {
        matches!(self, Self::Code(_) | Self::OutOfMemory)
    }
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Code(code) => write!(f, "exit status {code}"),
            Self::Deadline => f.write_str("its time or its money was used up"),
            Self::Stopped => f.write_str("stopped"),
            Self::Evicted => f.write_str("the machine was taken away"),
            Self::OutOfMemory => f.write_str("out of memory"),
        }
    }
}

/// In the chain of an error that trying again cannot mend: the script is not there, a link leads out of the tree.
/// Everything else is tried again for minutes.
#[derive(Debug)]
pub struct Hopeless;

impl fmt::Display for Hopeless {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("trying again would not help")
    }
}

impl std::error::Error for Hopeless {}

/// In the chain of an error that a person at headquarters can mend: there is no room for what comes home.
#[derive(Debug)]
pub struct Full;

impl fmt::Display for Full {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("this machine's disk is full")
    }
}

impl std::error::Error for Full {}

/// In the chain of an error that no bad connection explains, for ssh lets nothing through that was changed on its way: who
/// answers is not our agent, or lies. It is asked a few times more, for less than a minute.
#[derive(Debug)]
pub struct Nonsense(pub String);

impl fmt::Display for Nonsense {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Nonsense {}

/// Also where it came up in the middle of reading something.
pub fn is_nonsense(error: &anyhow::Error) -> bool {
    let read = |e: &io::Error| e.get_ref().is_some_and(|inner| inner.is::<Nonsense>());
    error.chain().any(|cause| cause.is::<Nonsense>() || cause.downcast_ref::<io::Error>().is_some_and(read))
}

pub trait Job {
    /// Code, data and environment, all there and whole.
    fn prepare(&self, spec: &Spec, machine: &Machine) -> Result<()>;
    /// Start the script, unless it was.
    fn start(&self, spec: &Spec, machine: &Machine) -> Result<()>;
    /// How it stands. Comes back at once: none when nothing new is known. The script is followed beside the loop, and what
    /// it says comes home meanwhile.
    fn poll(&self, spec: &Spec, machine: &Machine) -> Result<Option<Stand>>;
    /// Ask the script to end. It may take its time: `poll` tells.
    fn stop(&self, spec: &Spec, machine: &Machine) -> Result<()>;
    /// Bring home what is complete and not here yet. Also while the script runs. Comes back at once: it goes on beside the
    /// loop, for a person may want the run to stop, and the machine costs meanwhile.
    fn fetch(&self, spec: &Spec, machine: &Machine) -> Result<Fetched>;
    /// Little time is left: what is newest comes first.
    fn hurry(&self) {}
}
