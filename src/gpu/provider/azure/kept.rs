//! What this machine keeps of a run at Azure: the keys that it is reached with, and where it is rented. On disk before
//! anything is asked for, so that a setting changed later, or a crash, never leaves us before a machine that we cannot
//! enter, or looking for it in the wrong place. All of it is its owner's alone.

use crate::{
    gpu::spec::RunId,
    host::{Cmd, Host},
};
use anyhow::{Context as _, Result, ensure};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// A pair, as OpenSSH writes it.
#[derive(Clone, PartialEq, Eq)]
pub struct Pair {
    pub private: String,
    pub public: String,
}

pub struct Keys {
    /// The machine's own: whoever answers with another is not talked to.
    pub host: Pair,
    /// Ours.
    pub user: Pair,
}

/// Where a run is rented.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    pub endpoint: String,
    pub subscription: String,
    pub group: String,
    /// Where things of it may be.
    #[serde(default)]
    pub regions: Vec<String>,
}

/// The directory of one run.
#[derive(Debug, Clone)]
pub struct Kept(PathBuf);

impl Kept {
    pub fn new(runs: &Path, run: &RunId) -> Self {
        Self(runs.join(run.as_str()).join("azure"))
    }

    pub fn identity(&self) -> PathBuf {
        self.0.join("user")
    }

    pub fn known_hosts(&self) -> PathBuf {
        self.0.join("known_hosts")
    }

    /// Those of this run, made when there are none.
    pub fn keys(&self, host: &Host) -> Result<Keys> {
        let keys = Keys { host: self.pair(host, "host")?, user: self.pair(host, "user")? };
        // For whatever address it turns out to have: the file is this run's alone.
        let known = format!("* {}\n", plain(&keys.host.public));
        if host.read_text(&self.known_hosts())?.as_deref() != Some(known.as_str()) {
            host.write(&self.known_hosts(), 0o600, known.as_bytes())?;
        }
        Ok(keys)
    }

    /// The public half is written last: with it there, the pair may be in use, and stays.
    fn pair(&self, host: &Host, name: &str) -> Result<Pair> {
        let (private, public) = (self.0.join(name), self.0.join(format!("{name}.pub")));
        let read = || -> Result<Option<Pair>> {
            let both = (host.read_text(&private)?, host.read_text(&public)?);
            Ok(if let (Some(private), Some(public)) = both { Some(Pair { private, public }) } else { None })
        };
        if let Some(pair) = read()? {
            return Ok(pair);
        }
        let fresh = self.0.join(format!("{name}-fresh"));
        let (fresh_public, at) = (self.0.join(format!("{name}-fresh.pub")), host.path(&fresh));
        host.make_dir(&self.0)?;
        host.remove(&fresh)?;
        let at = at.to_str().context("the directory of a run has a name that is no text")?;
        host.run(&Cmd::new("ssh-keygen", ["-q", "-t", "ed25519", "-N", "", "-C", name, "-f", at]))?;
        let lacking = "ssh-keygen wrote no key";
        let pair = Pair {
            private: host.read_text(&fresh)?.context(lacking)?,
            public: host.read_text(&fresh_public)?.context(lacking)?,
        };
        ensure!(
            pair.public.starts_with("ssh-ed25519 "),
            "ssh-keygen wrote another key than it was asked for"
        );
        host.write(&private, 0o600, pair.private.as_bytes())?;
        host.write(&public, 0o600, pair.public.as_bytes())?;
        host.remove(&fresh)?;
        host.remove(&fresh_public)?;
        Ok(pair)
    }

    pub fn place(&self, host: &Host) -> Result<Option<Place>> {
        let path = self.0.join("place.json");
        let Some(text) = host.read_text(&path)? else { return Ok(None) };
        serde_json::from_str(&text).with_context(|| format!("reading {}", path.display())).map(Some)
    }

    pub fn put_place(&self, host: &Host, place: &Place) -> Result<()> {
        if self.place(host)?.as_ref() == Some(place) {
            return Ok(());
        }
        host.write(&self.0.join("place.json"), 0o600, serde_json::to_string(place)?.as_bytes())
    }
}

/// Without its comment.
pub fn plain(public: &str) -> String {
    public.split_whitespace().take(2).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::{Kind, System};

    #[test]
    fn keys_are_made_once_and_half_a_pair_is_made_anew() {
        let dir = tempfile::tempdir().unwrap();
        let host = Host::new(dir.path(), System);
        let kept = Kept::new(Path::new("/runs"), &RunId::try_from("r".to_owned()).unwrap());
        let first = kept.keys(&host).unwrap();
        assert!(kept.keys(&host).unwrap().user == first.user);
        let meta = host.meta(&kept.identity()).unwrap().unwrap();
        assert_eq!((meta.kind, meta.mode), (Kind::File, 0o600));
        assert_eq!(
            host.list(Path::new("/runs/r/azure")).unwrap(),
            ["host", "host.pub", "known_hosts", "user", "user.pub"]
        );
        host.remove(Path::new("/runs/r/azure/host.pub")).unwrap();
        let again = kept.keys(&host).unwrap();
        assert!(again.host != first.host && again.user == first.user);
        let known = host.read_text(&kept.known_hosts()).unwrap().unwrap();
        assert_eq!(known, format!("* {}\n", plain(&again.host.public)));
    }
}
