//! What to run, where, for how long and for how much. Frozen when a run begins: it is the first entry of the run's
//! journal, and nothing that is changed in the settings or in the checkout later changes it. Pure.

use serde::{Deserialize, Serialize};
use std::{fmt, path::PathBuf};

/// What a run is called: in the journal, in the names of what is rented, in `azure_results/`. Lower-case letters,
/// digits and `-`, begins with a letter, at most 40 characters: what Azure, systemd, ssh and file systems all take.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct RunId(String);

impl TryFrom<String> for RunId {
    type Error = String;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        let begins = text.starts_with(|c: char| c.is_ascii_lowercase());
        let all = text.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-');
        if begins && all && text.len() <= 40 && !text.ends_with('-') {
            Ok(Self(text))
        } else {
            Err(format!(
                "{text:?} is no name of a run: a letter, then letters, digits and `-`, 40 characters at most, all lower case"
            ))
        }
    }
}

impl From<RunId> for String {
    fn from(id: RunId) -> Self {
        id.0
    }
}

impl RunId {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for RunId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Where machines come from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Source {
    /// This machine.
    Local,
    /// A machine that the team owns.
    Ssh {
        user: String,
        host: String,
        port: u16,
    },
    Azure,
}

/// Whether to rent at the price at which the machine may be taken away.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Spot {
    /// When there is one, else not.
    #[default]
    Auto,
    Always,
    Never,
}

/// Fields that came later have a default: old journals load for ever.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spec {
    pub run: RunId,
    /// Who asked for it.
    pub owner: String,
    pub source: Source,
    /// The checkout on this machine, an absolute path; what is sent is in here.
    pub project: PathBuf,
    /// Below `project`.
    pub script: PathBuf,
    pub arguments: Vec<String>,
    /// Acceptable sizes, the best first. Azure's names, as in `Standard_NC4as_T4_v3`.
    #[serde(default)]
    pub sizes: Vec<String>,
    /// Acceptable regions, the best first; none: where this machine is.
    #[serde(default)]
    pub regions: Vec<String>,
    #[serde(default)]
    pub spot: Spot,
    /// From the script's first line on.
    #[serde(default)]
    pub max_seconds: Option<u64>,
    /// In millionths of a US dollar, for all that is rented.
    #[serde(default)]
    pub max_cost: Option<u64>,
    /// Names of datasets below the data disk, as in `ucf101`.
    #[serde(default)]
    pub data: Vec<String>,
    /// What comes home besides `$ECHOES_OUT`, below the project.
    #[serde(default)]
    pub out: Vec<PathBuf>,
    /// For the script.
    #[serde(default)]
    pub env: Vec<(String, String)>,
    /// Names alone: a secret's value is in no journal.
    #[serde(default)]
    pub secrets: Vec<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_somebody_downstream_would_refuse_is_refused_here() {
        for good in ["train", "esn-20261124-1530-7f3a", "a"] {
            assert_eq!(RunId::try_from(good.to_owned()).unwrap().as_str(), good);
        }
        for bad in ["", "-a", "1a", "Train", "a_b", "a/b", "..", "a-", "a b", "ä", &"a".repeat(41)] {
            assert!(RunId::try_from(bad.to_owned()).is_err(), "{bad:?}");
        }
    }
}
