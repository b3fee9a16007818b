//! Where things are on a machine, and what is asked of it. Below the agent's home, what runs share (programs,
//! environments, datasets) lies beside the runs, each of which has a directory of its own and touches nothing else.

use crate::{
    gpu::{job::Exit, spec::RunId},
    host::{
        Host,
        beneath::{Beneath, Rel, Spelling, Stamp},
    },
};
use anyhow::{Context as _, Result, anyhow, ensure};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::{
    io::Read as _,
    path::{Component, Path, PathBuf},
};

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Site {
    pub home: PathBuf,
    pub run: RunId,
}

impl Site {
    /// The words after the program's name for one of its verbs here.
    pub fn words(&self, verb: &str) -> Vec<String> {
        let home = self.home.display().to_string();
        ["agent", verb, "--home", &home, "--run", self.run.as_str()].map(str::to_owned).into()
    }

    /// What runs share. One user's: another could not read it, or could change it under the first.
    pub const SHARED: [&str; 4] = ["envs", "cache", "data", "code"];

    pub fn shared(&self, name: &str) -> PathBuf {
        self.home.join(name)
    }

    pub fn dir(&self) -> PathBuf {
        self.home.join("runs").join(self.run.as_str())
    }

    /// The same, for who removes it: an empty home, or one that leads up, would make it somebody else's.
    pub fn removable(&self) -> Result<PathBuf> {
        let home = &self.home;
        ensure!(is_home(home), "{home:?} is no home of an agent's: nothing is removed below it");
        Ok(self.dir())
    }

    fn at(&self, name: &str) -> PathBuf {
        self.dir().join(name)
    }

    pub fn code(&self) -> PathBuf {
        self.at("code")
    }

    /// `$ECHOES_OUT`.
    pub fn out(&self) -> PathBuf {
        self.at("out")
    }

    /// `$ECHOES_DATA`: a link for each dataset.
    pub fn data(&self) -> PathBuf {
        self.at("data")
    }

    /// What vouches for a tree that came whole.
    pub fn mark(&self, of: &str) -> PathBuf {
        self.at(&format!("{of}.tree"))
    }

    pub fn order(&self) -> PathBuf {
        self.at("order.json")
    }

    /// Its owner's alone, as the whole directory is; gone when the script has ended.
    pub fn secrets(&self) -> PathBuf {
        self.at("secrets.json")
    }

    pub fn environment(&self) -> PathBuf {
        self.at("environment.json")
    }

    pub fn authority(&self) -> PathBuf {
        self.at("authority.pem")
    }

    pub fn begun(&self) -> PathBuf {
        self.at("begun.json")
    }

    pub fn exit(&self) -> PathBuf {
        self.at("exit.json")
    }

    /// How it shall end, where somebody has asked.
    pub fn stop(&self) -> PathBuf {
        self.at("stop.json")
    }

    /// Processes of the script's that its keeper could not end.
    pub fn outlived(&self) -> PathBuf {
        self.at("outlived.json")
    }

    pub fn lock(&self) -> PathBuf {
        self.at("watch.lock")
    }

    pub fn log(&self) -> PathBuf {
        self.at("log")
    }

    pub fn samples(&self) -> PathBuf {
        self.at("samples")
    }

    /// What the agent itself has to say.
    pub fn complaints(&self) -> PathBuf {
        self.at("agent.log")
    }
}

/// The longest value: an order has a command line in it, and secrets.
const LONGEST: u64 = 64 << 20;

/// A value in a file, if there is one. Whoever has the run's directory may be another than who reads, who may be root: no
/// link is followed in there, and nothing but a file is read.
pub fn read<T: DeserializeOwned>(host: &Host, path: &Path) -> Result<Option<T>> {
    let doing = || format!("reading {}", path.display());
    let (dir, name) = path.parent().zip(path.file_name()).with_context(doing)?;
    let Some(dir) = Beneath::open(host, dir)? else { return Ok(None) };
    let name = Rel::try_from(Path::new(name)).map_err(|why| anyhow!(why))?;
    let Some((file, _)) = dir.read(&name)? else { return Ok(None) };
    let mut bytes = Vec::new();
    file.take(LONGEST).read_to_end(&mut bytes).with_context(doing)?;
    serde_json::from_slice(&bytes).map(Some).with_context(doing)
}

/// On the disk when this returns, and nobody else's to read.
pub fn write(host: &Host, path: &Path, value: &impl Serialize) -> Result<()> {
    host.write(path, 0o600, &serde_json::to_vec(value)?)
}

/// What to run. Frozen when it arrives; nothing secret is in it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Order {
    /// Below the code.
    pub script: Rel,
    pub arguments: Vec<String>,
    pub env: Vec<(String, String)>,
    /// What comes home besides `$ECHOES_OUT`, below the code: files, or directories with all in them.
    pub out: Vec<Rel>,
    pub max_seconds: Option<u64>,
    /// From the polite request to end until it is ended.
    pub grace: u64,
    /// Who signed what MLflow shows, in PEM, where the machine does not know it.
    pub authority: Option<String>,
    /// Azure tells the machine before it takes it away.
    pub azure: bool,
}

/// Whether an agent may live there.
pub fn is_home(home: &Path) -> bool {
    let mut parts = home.components();
    parts.next() == Some(Component::RootDir)
        && parts.clone().next().is_some()
        && parts.all(|part| matches!(part, Component::Normal(_)))
}

pub type Secrets = Vec<(String, String)>;

/// That and when it began.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Begun {
    /// Seconds since 1970.
    pub first: u64,
    /// As `first`: when it is ended. Absolute, so that no restart of anything makes it later.
    pub until: Option<u64>,
    /// A machine that restarts starts the script again; so it is told which try this is.
    pub attempt: u32,
}

/// How the script stands, as the machine sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Standing {
    /// It was never started.
    Waiting,
    Running,
    /// It was started, and nobody watches it: whoever hears this starts the agent again.
    Unwatched,
    Exited(Exit),
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Look {
    pub standing: Standing,
    pub begun: Option<Begun>,
    /// The newest sample of the machine's load.
    pub sample: Option<serde_json::Value>,
}

/// What headquarters may ask. Each has one answer, named beside it.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Ask {
    /// `tree::send` follows. `keep`: under this name it is kept for the project's next run, too.
    Code { hash: String, keep: Option<Rel> },
    /// As `Code`: a dataset, into what runs share.
    Data { name: Rel, hash: String },
    /// As `Code`: what an earlier machine had made, into `$ECHOES_OUT`.
    Out { hash: String },
    /// The dataset is on the machine already; on a clone of headquarters' disk, it is looked at. Answer: as what it was
    /// seen, as `Option<Outline>`.
    Placed { name: Rel, at: PathBuf, clone: bool },
    /// Answer: `Making`, until it is done.
    Environment,
    /// Answer: `()`.
    Order { order: Box<Order>, secrets: Secrets },
    /// Answer: `Look`.
    Look,
    /// As `Look`, when there is something to be told: the script has ended, or the books go on after what is known of them
    /// already. At the latest after a while.
    Wait { log: u64, samples: u64 },
    /// Answer: `()`.
    Stop(Exit),
    /// Answer: all that there is, poured one after another as `Offered`.
    List,
    /// Answer: `Given`; then, where it is there, exactly as many bytes from there on, and `Ended`. Many may be asked ahead;
    /// each is answered in its turn.
    Take { root: Root, path: Rel, stamp: Stamp, from: u64, len: u64 },
    /// Answer: `Page`, and its bytes.
    Book { book: Book, from: u64 },
}

/// How the environment is coming on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Making {
    /// What it said; empty: it is still at it.
    Said(String),
    Done,
}

/// Where what comes home is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Root {
    Out,
    Code,
}

/// Something that a script has made. Neither its name nor anything else is believed by whoever reads this.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Offered {
    pub root: Root,
    pub path: Spelling,
    pub what: Made,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Made {
    File {
        stamp: Stamp,
        /// Milliseconds since it last changed, by the machine's own clock.
        age: u64,
        /// The device, where it has other names, too: those of the same stamp.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        shared: Option<u64>,
        /// Where its data is, as beginnings and lengths, where the rest is holes.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        extents: Option<Vec<(u64, u64)>>,
    },
    /// A link to somewhere below the same root.
    Link { to: Spelling },
    /// A directory with nothing in it.
    Dir,
    /// It cannot come, and why; how many bytes it has, as far as one sees.
    Unreadable { why: String, bytes: u64 },
    /// There is nothing in it to bring: a socket, a named pipe, a device, a link to somewhere else.
    Special { what: String },
}

/// Whether a file is there as it was listed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Given {
    Here,
    Changed,
    /// And why.
    Unreadable(String),
}

/// How reading a piece of it went.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Ended {
    /// The hash of the bytes.
    Whole(String),
    Changed,
    /// And why; the bytes are not the file's.
    Unreadable(String),
}

/// What only ever grows, and is read on from where one was.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Book {
    Log,
    Samples,
}

/// A piece of a book.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Page {
    /// Later than was asked for where the machine no longer has that.
    pub from: u64,
    pub to: u64,
    /// Nothing comes after it now.
    pub last: bool,
}

/// The longest piece.
pub const PAGE: u64 = 4 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_removed_but_below_a_home() {
        let run = RunId::try_from("r".to_owned()).unwrap();
        let removable = |home: &str| Site { home: home.into(), run: run.clone() }.removable();
        assert_eq!(removable("/h/.echoes-appliance").unwrap(), Path::new("/h/.echoes-appliance/runs/r"));
        // As with an empty $HOME, or none.
        for home in ["", "/", ".", "..", "h", ".echoes-appliance", "/h/../..", "/..", "//"] {
            assert!(removable(home).is_err(), "{home:?}");
        }
    }
}
