//! A directory as a list of what is in it, by which it is sent: the files of a checkout as git sees them, or all of a
//! dataset. What is sent is what was listed: a file that changes meanwhile is noticed, by its hash. Refuses a link that
//! leads out of the directory.

use super::{job::Nonsense, wire::Wire};
use crate::{
    hash::hex,
    host::{
        Cmd, Host, Kind,
        beneath::{Beneath, Found, Rel, Spelling, Stamp, stays_inside},
    },
    ui::Try as _,
};
use anyhow::{Context as _, Result, anyhow, bail, ensure};
use flate2::{Compression, write::DeflateEncoder};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use std::{
    collections::{BTreeSet, HashMap},
    ffi::OsStr,
    io::{Read, Write},
    os::unix::ffi::OsStrExt as _,
    path::Path,
};

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    pub path: Rel,
    pub what: What,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum What {
    File { len: u64, exec: bool, hash: String },
    Link { to: Spelling },
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

/// What is left out of a directory that git does not know: made from the rest, or large and of this machine alone.
const MADE: [&str; 11] = [
    ".git",
    ".hg",
    ".ipynb_checkpoints",
    ".mypy_cache",
    ".pytest_cache",
    ".ruff_cache",
    ".tox",
    ".venv",
    "__pycache__",
    "node_modules",
    "venv",
];

/// Code is at most so many files, and so many bytes. Beyond, something is in there that is none.
const MOST_FILES: usize = 50_000;
const MOST_BYTES: u64 = 2 << 30;
/// ImageNet is 1.3 million files.
const MOST_DATA: usize = 4_000_000;

/// The code of a project: what git tracks, and what it does not ignore. Of a directory that is no checkout, everything
/// but what is made from the rest; what that was is said.
pub fn code(host: &Host, project: &Path, say: &dyn Fn(&str)) -> Result<(Beneath, Tree)> {
    let dir = Beneath::open(host, project)?.with_context(|| format!("there is no {}", project.display()))?;
    let is_checkout = host.exists(&project.join(".git"))?;
    let found = if is_checkout { tracked(host, project, &dir)? } else { all(&dir, say)? };
    ensure_code(&found, project)?;
    let tree = read(&dir, found, &mut HashMap::new())?;
    Ok((dir, tree))
}

fn ensure_code(found: &[Found], project: &Path) -> Result<()> {
    let bytes = found.iter().fold(0, |sum: u64, found| sum.saturating_add(found.stamp.len));
    if found.len() <= MOST_FILES && bytes <= MOST_BYTES {
        return Ok(());
    }
    let largest = found.iter().max_by_key(|found| found.stamp.len);
    let largest =
        largest.and_then(|found| found.path.as_ref().ok().map(|path| (path, found.stamp.len >> 20)));
    let largest =
        largest.map(|(path, mib)| format!("; the largest is {path} of {mib} MiB")).unwrap_or_default();
    let (files, mib) = (found.len(), bytes >> 20);
    Err(anyhow!("{} has {files} files of {mib} MiB, which is more than code{largest}", project.display()))
        .or_try("name what is no code in .gitignore, and send data with --data")
}

/// As git lists it. Git alone knows what its ignore files mean together with its index.
fn tracked(host: &Host, project: &Path, dir: &Beneath) -> Result<Vec<Found>> {
    let mut paths = BTreeSet::new();
    git_list(host, project, &[], &mut paths, 0)?;
    let mut found = Vec::new();
    for path in paths {
        let path = Rel::try_from(path).map_err(|why| anyhow!(why))?;
        match dir.meta(&path)? {
            // Deleted here, and not yet from the index.
            None => {}
            Some(seen) if seen.kind == Kind::Dir => {}
            Some(seen) => found.push(seen),
        }
    }
    Ok(found)
}

fn git_list(host: &Host, at: &Path, prefix: &[u8], paths: &mut BTreeSet<Vec<u8>>, depth: u32) -> Result<()> {
    ensure!(depth < 8, "{} has checkouts in checkouts without end", at.display());
    let dir = at.to_string_lossy();
    // Somebody else's checkout may be read by root, but its settings may not have git start anything.
    let git = |args: &[&str]| {
        let safe = ["-c", "safe.directory=*", "-c", "core.fsmonitor=false", "-c", "core.hooksPath=/dev/null"];
        let args = safe.iter().copied().chain(["-C", &*dir]).chain(args.iter().copied());
        host.run(&Cmd::new("git", args).env("GIT_OPTIONAL_LOCKS", "0"))
    };
    // Without -z, a name that is no plain text stands in quotes: bytes that are no UTF-8 come whole.
    let listed =
        git(&["-c", "core.quotePath=true", "ls-files", "--cached", "--others", "--exclude-standard"])
            .with_context(|| format!("listing the code in {}", at.display()))
            .or_try("sudo apt-get install git")?;
    for line in listed.lines() {
        let mut name = unquoted(line).with_context(|| format!("reading what git lists: {line}"))?;
        // A checkout in the checkout, with a slash at its end when git does not track it.
        name.truncate(name.iter().rposition(|byte| *byte != b'/').map_or(0, |last| last + 1));
        let inner = at.join(OsStr::from_bytes(&name));
        if host.exists(&inner.join(".git"))? {
            git_list(host, &inner, &[prefix, &name, b"/"].concat(), paths, depth + 1)?;
        } else {
            paths.insert([prefix, &name].concat());
        }
    }
    Ok(())
}

/// A path as git writes it: as it is, or in double quotes as in C, with bytes in octal. None: it is neither. Pure.
fn unquoted(line: &str) -> Option<Vec<u8>> {
    let Some(quoted) = line.strip_prefix('"') else { return Some(line.as_bytes().to_vec()) };
    let mut rest = quoted.strip_suffix('"')?.bytes();
    let mut name = Vec::new();
    while let Some(byte) = rest.next() {
        if byte != b'\\' {
            name.push(byte);
            continue;
        }
        name.push(match rest.next()? {
            b'a' => 7,
            b'b' => 8,
            b't' => b'\t',
            b'n' => b'\n',
            b'v' => 11,
            b'f' => 12,
            b'r' => b'\r',
            first @ b'0'..=b'3' => {
                let digits = [first, rest.next()?, rest.next()?];
                u8::from_str_radix(std::str::from_utf8(&digits).ok()?, 8).ok()?
            }
            other => other,
        });
    }
    Some(name)
}

fn all(dir: &Beneath, say: &dyn Fn(&str)) -> Result<Vec<Found>> {
    let mut left: BTreeSet<&str> = BTreeSet::new();
    let mut found = dir.walk(MOST_DATA)?;
    found.retain(|found| {
        let Ok(path) = &found.path else { return true };
        let made = MADE.iter().find(|made| path.names().any(|name| name == made.as_bytes()));
        left.extend(made);
        made.is_none()
    });
    let words: Vec<_> = left.iter().map(|name| (*name).to_owned()).collect();
    if !words.is_empty() {
        say(&format!(
            "{} is no git checkout: everything goes but {}",
            dir.path().display(),
            words.join(", ")
        ));
    }
    Ok(found)
}

/// Hashes of files that were read before, by what one sees of them.
pub type Known = HashMap<Rel, (Stamp, String)>;

/// All of a directory. `known` saves reading what was read before.
pub fn files(dir: &Beneath, known: &mut Known) -> Result<Tree> {
    let tree = read(dir, dir.walk(MOST_DATA)?, known)?;
    known.retain(|path, _| tree.0.binary_search_by(|entry| entry.path.cmp(path)).is_ok());
    Ok(tree)
}

fn read(dir: &Beneath, found: Vec<Found>, known: &mut Known) -> Result<Tree> {
    let mut entries = Vec::with_capacity(found.len());
    for Found { path, kind, stamp, exec, .. } in found {
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
                What::File { len: stamp.len, exec, hash }
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
    for Found { path, kind, stamp, exec, .. } in &found {
        hash.update(format!("{path:?} {kind:?} {stamp:?} {exec}\n"));
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
pub fn send(wire: &mut Wire, dir: &Beneath, tree: &Tree, squeeze: Squeeze) -> Result<Sent> {
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
        Squeeze::No => contents(dir, tree, &lacks, &mut sending),
        Squeeze::Yes => {
            let mut small = DeflateEncoder::new(&mut sending, Compression::fast());
            contents(dir, tree, &lacks, &mut small).and_then(|()| Ok(small.finish().map(drop)?))
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

fn contents(dir: &Beneath, tree: &Tree, lacks: &[usize], to: &mut impl Write) -> Result<()> {
    let mut bytes = vec![0; 128 << 10];
    for index in lacks {
        let entry = tree.0.get(*index);
        let entry = entry.ok_or_else(|| Nonsense("it asked for a file that is in no list".into()))?;
        let What::File { len, hash, .. } = &entry.what else { continue };
        let changed = || anyhow::Error::new(Changed(entry.path.clone()));
        let Some((file, _)) = dir.read(&entry.path)? else { return Err(changed()) };
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
    }
    Ok(())
}

#[cfg(test)]
mod tests;
