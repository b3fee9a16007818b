//! Everything on a machine's root file system, so that two moments can be compared.

use super::{base, output};
use anyhow::{Context as _, Result};
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    path::Path,
    process::Command,
};

/// By absolute path.
pub type Manifest = BTreeMap<String, Entry>;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// As `find` says it: f, d, l, p, s, b, c.
    pub kind: char,
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    /// Bytes; 0 for a directory, whose own size means nothing.
    pub size: u64,
    /// A file's sha256, a link's target.
    pub content: String,
}

impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kind, mode, uid, gid, size, content } = self;
        write!(f, "{kind} {mode:04o} {uid}:{gid} {size} {}", content.get(..12).unwrap_or(content))
    }
}

/// Look at every file below `root`. What only exists while a machine runs is left out, and so is the lab's
/// own.
pub(super) fn read(root: &Path) -> Result<Manifest> {
    let mut skip = Vec::new();
    for path in ["proc", "sys", "dev", "run", "tmp"].into_iter().chain(base::OURS) {
        skip.extend(["-path".to_owned(), format!("./{path}"), "-prune".to_owned(), "-o".to_owned()]);
    }
    let list = output(
        Command::new("find")
            .current_dir(root)
            .args([".", "-xdev"])
            .args(&skip)
            .args(["-printf", "%p\\0%y\\0%m\\0%U\\0%G\\0%s\\0%l\\0"]),
    )?;
    let fields: Vec<_> = list.split_terminator('\0').collect();
    let mut all = Manifest::new();
    for row in fields.chunks_exact(7) {
        let kind = row[1].chars().next().unwrap_or('?');
        let mut entry = Entry {
            kind,
            mode: u32::from_str_radix(row[2], 8)?,
            uid: row[3].parse()?,
            gid: row[4].parse()?,
            size: row[5].parse()?,
            content: row[6].to_owned(),
        };
        if kind == 'd' {
            entry.size = 0;
        }
        all.insert(absolute(row[0]), entry);
    }
    // The tool rather than a library: tests are built without optimization, and this is a third of a
    // gigabyte.
    let sums = output(
        Command::new("sh")
            .current_dir(root)
            .args(["-c", "find . -xdev \"$@\" -type f -print0 | xargs -0 sha256sum -z --", "sh"])
            .args(&skip),
    )?;
    for line in sums.split_terminator('\0') {
        let (sum, path) = line.split_once("  ").context("reading sha256sum's answer")?;
        if let Some(entry) = all.get_mut(&absolute(path)) {
            entry.content = sum.to_owned();
        }
    }
    Ok(all)
}

fn absolute(path: &str) -> String {
    let path = path.strip_prefix('.').unwrap_or(path);
    if path.is_empty() { "/".to_owned() } else { path.to_owned() }
}

/// One line for each path that is not the same in both, in order of path: `+` came, `-` went, `~` changed.
pub fn differences(before: &Manifest, after: &Manifest) -> Vec<String> {
    let paths: BTreeSet<_> = before.keys().chain(after.keys()).collect();
    let line = |path: &String| match (before.get(path), after.get(path)) {
        (None, Some(new)) => Some(format!("+ {path}: {new}")),
        (Some(old), None) => Some(format!("- {path}: {old}")),
        (Some(old), Some(new)) if old != new => Some(format!("~ {path}: {old} -> {new}")),
        _ => None,
    };
    paths.into_iter().filter_map(line).collect()
}
