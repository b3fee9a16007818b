//! What to run, where, for how long and for how much. Frozen when a run begins: it is the first entry of the run's
//! journal, and nothing that is changed in the settings or in the checkout later changes it. Pure.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::{
    fmt,
    path::{Path, PathBuf},
    str::FromStr,
};
use time::OffsetDateTime;

/// What a run is called: in the journal, in the names of what is rented, in `azure_results/`. Lower-case letters,
/// digits and `-`, begins with a letter, at most 40 characters: what Azure, systemd, ssh and file systems all take.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
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

impl FromStr for RunId {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::try_from(text.to_owned())
    }
}

impl From<RunId> for String {
    fn from(id: RunId) -> Self {
        id.0
    }
}

impl RunId {
    /// What a run of this script is called when nobody says: the script's name, the minute, and something that no
    /// second run of that minute has.
    pub fn of(script: &Path, at: OffsetDateTime, random: u16) -> Self {
        let stem = script.file_stem().unwrap_or_default().to_string_lossy().to_lowercase();
        let letters = stem.trim_start_matches(|c: char| !c.is_ascii_lowercase()).chars();
        let name: String =
            letters.map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).take(20).collect();
        let name = if name.is_empty() { "run" } else { name.trim_end_matches('-') };
        let (date, hour, minute) = (at.date(), at.hour(), at.minute());
        let (year, month, day) = (date.year(), u8::from(date.month()), date.day());
        Self(format!("{name}-{year:04}{month:02}{day:02}-{hour:02}{minute:02}-{random:04x}"))
    }

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

impl Source {
    /// `local`, `azure`, or `ssh://USER@HOST[:PORT]`. None of the parts can be read as an option of ssh's.
    pub fn parse(text: &str) -> Option<Self> {
        match text {
            "local" => return Some(Self::Local),
            "azure" => return Some(Self::Azure),
            _ => {}
        }
        let (user, place) = text.strip_prefix("ssh://")?.split_once('@')?;
        let (host, port) = match place.split_once(':') {
            Some((host, port)) if !port.starts_with('+') => (host, port.parse().ok().filter(|n| *n > 0)?),
            Some(_) => return None,
            None => (place, 22),
        };
        let user_fits = user.starts_with(|c: char| c.is_ascii_lowercase() || c == '_')
            && user.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || "_-".contains(c));
        let host_fits = host.starts_with(|c: char| c.is_ascii_alphanumeric())
            && host.chars().all(|c| c.is_ascii_alphanumeric() || ".-".contains(c));
        (user_fits && host_fits).then(|| Self::Ssh { user: user.into(), host: host.into(), port })
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Local => f.write_str("local"),
            Self::Ssh { user, host, port: 22 } => write!(f, "ssh://{user}@{host}"),
            Self::Ssh { user, host, port } => write!(f, "ssh://{user}@{host}:{port}"),
            Self::Azure => f.write_str("azure"),
        }
    }
}

/// Whether to rent at the price at which the machine may be taken away.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Spot {
    /// When there is one, else not.
    #[default]
    Auto,
    Always,
    Never,
}

/// How datasets get to a machine that is rented.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum DataBy {
    /// By whichever is sooner there.
    #[default]
    Auto,
    /// Sent over the network.
    Copy,
    /// On a clone of headquarters' data disk.
    Clone,
}

/// What a run's login may read at MLflow.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum RunReads {
    /// Experiments that it has runs in.
    #[default]
    Own,
    /// All experiments, and registered models.
    All,
}

/// The disk of which machines in its region get a clone, with the datasets on it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Original {
    /// Azure's id of it.
    pub disk: String,
    pub region: String,
    /// Of its file system, by which a clone is known as well: it has whatever name there.
    pub uuid: String,
    /// Where datasets are here.
    pub here: PathBuf,
    /// Where they are on its file system, below the root of that; empty for the root itself.
    pub below: PathBuf,
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
    /// How they get there: on a clone of this disk, where it can be had; else, and where there is none, as a copy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub original: Option<Original>,
    /// What comes home besides `$ECHOES_OUT`, below the project.
    #[serde(default)]
    pub out: Vec<PathBuf>,
    /// For the script.
    #[serde(default)]
    pub env: Vec<(String, String)>,
    /// Names alone: a secret's value is in no journal.
    #[serde(default)]
    pub secrets: Vec<String>,
    /// Its login has a remark in the password file, by which it is told from a person's; not in journals from before.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub login_marked: bool,
    /// Seconds from the polite request to end until it is ended.
    #[serde(default = "old_grace", skip_serializing_if = "is_old_grace")]
    pub grace: u64,
}

/// What every script was given before it could be chosen.
fn old_grace() -> u64 {
    20
}

/// An old journal is written as it was read.
fn is_old_grace(grace: &u64) -> bool {
    *grace == old_grace()
}

#[cfg(test)]
impl Spec {
    /// For tests: a run of this name on this machine.
    pub fn example(run: &str) -> Self {
        Self {
            run: RunId::try_from(run.to_owned()).unwrap(),
            owner: "ana".into(),
            source: Source::Local,
            project: "/home/ana/echoes".into(),
            script: "train.py".into(),
            arguments: vec!["--epochs".into(), "50".into()],
            sizes: Vec::new(),
            regions: Vec::new(),
            spot: Spot::Auto,
            max_seconds: None,
            max_cost: None,
            data: Vec::new(),
            original: None,
            out: Vec::new(),
            env: Vec::new(),
            secrets: Vec::new(),
            grace: old_grace(),
            login_marked: true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_that_nobody_named_has_a_name_that_fits_everywhere() {
        let at = time::macros::datetime!(2026-11-24 15:30:59 UTC);
        for (script, name) in [
            ("experiments/train_comprehensive.py", "train-comprehensive"),
            ("2. Versuch Ä.py", "versuch"),
            ("_.py", "run"),
            ("a_very_long_name_of_a_script_indeed.py", "a-very-long-name-of"),
        ] {
            let run = RunId::of(Path::new(script), at, 0x7f3a);
            assert_eq!(run.as_str(), format!("{name}-20261124-1530-7f3a"));
            assert!(RunId::try_from(run.as_str().to_owned()).is_ok());
        }
    }

    #[test]
    fn a_run_that_was_asked_for_before_there_were_clones_sends_its_data() {
        // As it was written then: a run without one is written no other way now.
        let old = serde_json::to_value(Spec::example("r1")).unwrap();
        assert!(old.get("original").is_none(), "{old}");
        assert_eq!(serde_json::from_value::<Spec>(old).unwrap().original, None);
        let machine = r#"{"target": "local", "home": "/home"}"#;
        assert_eq!(serde_json::from_str::<crate::gpu::provider::Machine>(machine).unwrap().data, None);
    }

    #[test]
    fn a_run_that_was_asked_for_before_grace_could_be_chosen_has_what_it_had_then() {
        let mut old = serde_json::to_value(Spec { grace: 300, ..Spec::example("r1") }).unwrap();
        assert_eq!(serde_json::from_value::<Spec>(old.clone()).unwrap().grace, 300);
        old.as_object_mut().unwrap().remove("grace");
        assert_eq!(serde_json::from_value::<Spec>(old).unwrap().grace, 20);
    }

    #[test]
    fn a_source_is_written_as_it_is_read_and_holds_no_option() {
        for text in ["local", "azure", "ssh://ana@gpu1", "ssh://ana@10.0.0.4:2222", "ssh://_x@gpu.lab.test:1"]
        {
            assert_eq!(Source::parse(text).unwrap().to_string(), text);
        }
        let bad = ["", "azur", "ssh://gpu1", "ssh://-l@gpu1", "ssh://a@-oProxyCommand=x", "ssh://a@b:0"];
        for text in bad.into_iter().chain(["ssh://a b@c", "ssh://a@b c", "ssh://a@b:+1", "ssh://a@b:99999"]) {
            assert_eq!(Source::parse(text), None, "{text:?}");
        }
    }

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
