//! Where machines come from: a few verbs, each of which may be repeated, because after a crash each will be.

pub mod azure;

use super::{
    spec::{RunId, Spec},
    target::Target,
};
use anyhow::Result;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// One way to rent. What it is called and what it costs is frozen with it, in the journal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Offer {
    /// As in `Standard_NC4as_T4_v3`; empty where there is no choice.
    pub size: String,
    pub region: String,
    pub zone: Option<String>,
    pub spot: bool,
    /// Millionths of a US dollar an hour.
    pub price: u64,
}

/// What can be worked on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Machine {
    pub target: Target,
    /// Where the agent lives over there, an absolute path; made when it comes.
    pub home: PathBuf,
}

/// What came of asking for a machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Rent {
    Here(Machine),
    /// It is on its way; in words, for who watches. Ask again.
    Coming(String),
    /// Not this one.
    Refused(Refusal),
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    pub class: Class,
    /// What the provider answered.
    pub said: String,
    /// What to try, if anything.
    pub hint: Option<String>,
}

/// What a refusal means for the next offer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Class {
    /// Nobody has one just now, or not here: another offer may do.
    Capacity,
    /// We may not have so many: another family or region may do, a person must ask for more.
    Quota,
    /// Nothing that we could rent would be different.
    Final,
}

/// Something that is rented, by name, with what it says about itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rented {
    pub id: String,
    /// Whose it is, by its tag; none for something that has ours but names no run.
    pub run: Option<RunId>,
}

pub trait Provider {
    /// The machine of this run: found if there is one, else rented by this offer. Never two.
    fn rent(&self, spec: &Spec, offer: &Offer) -> Result<Rent>;

    /// Give back everything of this run. What is still there, or on its way out; nothing is the proof that all is gone.
    fn give_back(&self, run: &RunId) -> Result<Vec<String>>;

    /// Headquarters is well, and the run is to go on: put off the moment at which the provider ends it by itself. Called
    /// again and again, several times in the length of a lease; nothing to do where nothing ends by itself.
    fn renew(&self, _run: &RunId) -> Result<()> {
        Ok(())
    }

    /// All that is rented in the name of this headquarters, of whatever run.
    fn list(&self) -> Result<Vec<Rented>>;
}
