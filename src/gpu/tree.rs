//! A directory as a list of what is in it, by which it is sent: the code of a project, or all of a dataset. What is sent is
//! what was listed: a file that changes meanwhile is noticed, by its hash. Refuses a link that leads out of the directory.

use super::{job::Nonsense, wire::Wire};
use crate::{
    hash::hex,
    host::{
        Kind,
        beneath::{Beneath, Found, Rel, Spelling, Stamp, stays_inside},
    },
    ui::Try as _,
};
use anyhow::{Context as _, Result, anyhow, bail, ensure};
use flate2::{Compression, write::DeflateEncoder};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use std::{
    collections::HashMap,
    io::{Read, Write},
    os::unix::ffi::OsStrExt as _,
};

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    pub path: Rel,
    pub what: What,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum What {
    File {
        len: u64,
        exec: bool,
        hash: String,
        /// Rights that group and others lack, of those that they have to most files: bits of 0o755, or of 0o644. Not
        /// written where there are none, so that most trees have the hash that they had before this was looked at.
        #[serde(default, skip_serializing_if = "is_none_closed")]
        closed: u32,
    },
    Link {
        to: Spelling,
    },
}

fn is_none_closed(closed: &u32) -> bool {
    *closed == 0
}

/// The mode of most files.
fn usual(exec: bool) -> u32 {
    if exec { 0o755 } else { 0o644 }
}

impl What {
    pub fn file(len: u64, mode: u32, hash: String) -> Self {
        let exec = mode & 0o100 != 0;
        Self::File { len, exec, hash, closed: usual(exec) & 0o077 & !mode }
    }

    /// Its owner may always write; nobody else may more than they could where it comes from.
    pub fn mode(&self) -> u32 {
        match self {
            Self::File { exec, closed, .. } => usual(*exec) & !(closed & 0o077),
            Self::Link { .. } => 0o777,
        }
    }
}

/// Sorted by path.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tree(pub Vec<Entry>);

impl Tree {
    /// The same for the same files, wherever they are.
    pub fn hash(&self) -> String {
        let mut hash = Sha256::new();
        for entry in &self.0 {
            // One line each: a path has no newline in it.
            hash.update(serde_json::to_vec(entry).unwrap_or_default());
            hash.update(b"\n");
        }
        hex(&hash.finalize())
    }

    pub fn bytes(&self) -> u64 {
        // Somebody may have said of each that it is as long as a number can be.
        self.0.iter().fold(0, |sum, entry| match &entry.what {
            What::File { len, .. } => sum.saturating_add(*len),
            What::Link { .. } => sum,
        })
    }
}

/// Of a whole reader; and how many bytes there were.
pub fn digest(from: &mut impl Read) -> std::io::Result<(String, u64)> {
    let mut hash = Sha256::new();
    // For thousands of small files: a larger one would be fetched from the kernel, and cleared, for each.
    let mut bytes = [0; 32 << 10];
    let mut len = 0;
    loop {
        match from.read(&mut bytes)? {
            0 => return Ok((hex(&hash.finalize()), len)),
            n => {
                hash.update(&bytes[..n]);
                len += n as u64;
            }
        }
    }
}

/// ImageNet is 1.3 million files.
pub const MOST_DATA: usize = 4_000_000;

/// Hashes of files that were read before, by what one sees of them.
pub type Known = HashMap<Rel, (Stamp, String)>;

/// Reads like `read`; `known` has what is in there when this returns, and nothing else.
pub fn read_known(dir: &Beneath, found: Vec<Found>, known: &mut Known) -> Result<Tree> {
    let tree = read(dir, found, known)?;
    known.retain(|path, _| tree.0.binary_search_by(|entry| entry.path.cmp(path)).is_ok());
    Ok(tree)
}

/// Adds the hashes of files to what was found. A link that leads out, and what is neither file nor link, is an error: who can do
/// without has taken it out.
pub fn read(dir: &Beneath, found: Vec<Found>, known: &mut Known) -> Result<Tree> {
    let mut entries = Vec::with_capacity(found.len());
    for Found { path, kind, stamp, mode, .. } in found {
        let path = path.map_err(|unusable| anyhow!("in {}: {unusable}", dir.path().display()))?;
        let what = match kind {
            // With nothing in it: only what is in a directory makes it.
            Kind::Dir => continue,
            Kind::File => {
                let hash = match known.get(&path) {
                    Some((then, hash)) if *then == stamp => hash.clone(),
                    _ => {
                        let (mut file, stamp) =
                            dir.read(&path)?.with_context(|| format!("{path} went away"))?;
                        let (hash, len) = digest(&mut file).with_context(|| format!("reading {path}"))?;
                        ensure!(len == stamp.len, "{path} changed while it was read");
                        known.insert(path.clone(), (stamp, hash.clone()));
                        hash
                    }
                };
                What::file(stamp.len, mode, hash)
            }
            Kind::Link(to) => {
                let to = to.as_os_str().as_bytes();
                let spelled = Spelling::of(to);
                stays_inside(&path, to)
                    .with_context(|| format!("the link {path} leads to {spelled}, which would not be there"))
                    .or_try(format!("replace {path} by the file itself, or name it in .gitignore"))?;
                What::Link { to: spelled }
            }
            Kind::Other => bail!("{path} is neither file nor link"),
        };
        entries.push(Entry { path, what });
    }
    entries.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(Tree(entries))
}

/// What one sees of a directory without reading a file: the same in two places, it is one file system and its clone, in
/// which nothing has changed since. A copy has other inodes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outline {
    pub files: u64,
    pub bytes: u64,
    pub hash: String,
}

pub fn outline(dir: &Beneath) -> Result<Outline> {
    let found = dir.walk(MOST_DATA)?;
    let (mut hash, mut bytes) = (Sha256::new(), 0_u64);
    // Both sides are the same program, and walk in the same order.
    for Found { path, kind, stamp, mode, .. } in &found {
        hash.update(format!("{path:?} {kind:?} {stamp:?} {mode:o}\n"));
        bytes = bytes.saturating_add(if *kind == Kind::File { stamp.len } else { 0 });
    }
    Ok(Outline { files: found.len() as u64, bytes, hash: hex(&hash.finalize()) })
}

/// Whether it is worth the work to make it smaller on the way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Squeeze {
    /// Text.
    Yes,
    /// Pictures and films, which are as small as they get.
    No,
}

/// What the other side has of a tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Have {
    /// All of it, and nothing else.
    Same,
    Other,
    Nothing,
}

/// What it came to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sent {
    pub files: usize,
    pub bytes: u64,
    /// That were there and should not be.
    pub removed: usize,
}

/// A file is not what it was when it was listed. List again.
#[derive(Debug)]
pub struct Changed(pub Rel);

impl std::fmt::Display for Changed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} changed while it was sent", self.0)
    }
}

impl std::error::Error for Changed {}

/// After the other side was asked for its mirror of `tree`: what it lacks. Its answer to `agent::mirror::receive`.
pub fn send(wire: &mut Wire, from: &dyn Contents, tree: &Tree, squeeze: Squeeze) -> Result<Sent> {
    let lacks: Vec<usize> = match wire.hear::<Have>()? {
        Have::Same => return Ok(Sent::default()),
        Have::Nothing => {
            wire.pour(tree)?;
            (0..tree.0.len()).collect()
        }
        Have::Other => {
            wire.pour(tree)?;
            // Each number has at most seven digits. What is there once is sent once.
            let lacks: Vec<usize> = wire.draw(16 + 8 * tree.0.len() as u64)?;
            let twice = lacks.windows(2).any(|pair| pair[0] >= pair[1]);
            ensure!(!twice, Nonsense("it asked for a file twice".into()));
            lacks
        }
    };
    let mut sending = wire.sending();
    let sent = match squeeze {
        Squeeze::No => from.pour(tree, &lacks, &mut sending),
        Squeeze::Yes => {
            let mut small = DeflateEncoder::new(&mut sending, Compression::fast());
            from.pour(tree, &lacks, &mut small).and_then(|()| Ok(small.finish().map(drop)?))
        }
    };
    match sent {
        Ok(()) => sending.end()?,
        // The other side is in the middle of it: what it has is not to be taken for anything.
        Err(error) => {
            sending.break_off(&error);
            return Err(error);
        }
    }
    wire.hear()
}

/// Files that were listed, to be read once more.
pub trait Contents {
    /// Writes these files of the tree, one after another; links have nothing to write. An error `Changed` where one is not what it was.
    fn pour(&self, tree: &Tree, lacks: &[usize], to: &mut dyn Write) -> Result<()>;
}

impl Contents for Beneath {
    fn pour(&self, tree: &Tree, lacks: &[usize], to: &mut dyn Write) -> Result<()> {
        lacks.iter().try_for_each(|index| {
            let entry = tree.0.get(*index);
            pour_file(
                self,
                entry.ok_or_else(|| Nonsense("it asked for a file that is in no list".into()))?,
                to,
            )
        })
    }
}

pub fn pour_file(dir: &Beneath, entry: &Entry, to: &mut dyn Write) -> Result<()> {
    let What::File { len, hash, .. } = &entry.what else { return Ok(()) };
    let changed = || anyhow::Error::new(Changed(entry.path.clone()));
    let Some((file, _)) = dir.read(&entry.path)? else { return Err(changed()) };
    let mut bytes = vec![0; usize::try_from(*len).unwrap_or(usize::MAX).clamp(1, 128 << 10)];
    let (mut file, mut seen) = (file.take(*len), Sha256::new());
    let mut left = *len;
    while left > 0 {
        let n = file.read(&mut bytes).with_context(|| format!("reading {}", entry.path))?;
        if n == 0 {
            return Err(changed());
        }
        seen.update(&bytes[..n]);
        to.write_all(&bytes[..n])?;
        left -= n as u64;
    }
    // Longer than it was, or of the same length.
    if file.into_inner().read(&mut bytes)? != 0 || hex(&seen.finalize()) != *hash {
        return Err(changed());
    }
    Ok(())
}

#[cfg(test)]
mod tests;
