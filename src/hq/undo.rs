//! Taking back what the receipt says we did. It asks no configuration: an old installation is undone by any newer
//! binary, whatever that binary would install today.
//!
//! Nothing is removed that somebody changed since, that others have come to need, or that holds somebody's data.

use super::{
    apt,
    line::{self, Replaced},
    receipt::{Book, Entry, Receipt},
    resource::Resource,
    results,
};
use crate::{
    config,
    hash::sha256,
    host::{Cmd, Host, Kind, PROGRAM},
    ui::Step,
};
use anyhow::Result;
use std::{
    collections::BTreeSet,
    fmt,
    path::{Path, PathBuf},
};

/// One thing to take back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Undo {
    Unit(String),
    File(PathBuf),
    Link(PathBuf),
    /// Put the distribution's link back.
    Aside {
        path: PathBuf,
        target: PathBuf,
    },
    /// Put the line back that stood in a package's own file.
    Line {
        path: PathBuf,
        line: Replaced,
    },
    Created(PathBuf),
    Built(PathBuf),
    Users {
        users: Vec<String>,
        groups: Vec<String>,
    },
    Packages(Vec<String>),
    /// Give a directory of results the mode that it had before us.
    Mode {
        path: PathBuf,
        mode: u32,
    },
    Dir(PathBuf),
}

/// What would come of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fate {
    Goes,
    /// It stays, and this is why.
    Stays(String),
    /// Somebody was faster.
    Gone,
}

/// What the receipt holds and nobody wants, in the order in which it can be taken back. Pure.
pub fn unwanted(receipt: &Receipt, wanted: &[Resource]) -> Vec<Undo> {
    let units: BTreeSet<&str> = wanted
        .iter()
        .filter_map(|r| if let Resource::Unit(u) = r { Some(u.name.as_str()) } else { None })
        .collect();
    let mut paths: BTreeSet<PathBuf> = wanted.iter().flat_map(Resource::owns).collect();
    if !wanted.is_empty() {
        // What install wrote of the command line's settings counts for as long as anything does.
        paths.insert(config::PATH.into());
    }
    let unwanted = |path: &&PathBuf| !paths.contains(*path);
    let mut all: Vec<Undo> = Vec::new();
    let mut stopping: Vec<&String> = receipt.units.iter().filter(|u| !units.contains(u.as_str())).collect();
    // A mount goes after those who use it.
    stopping.sort_by_key(|unit| unit.ends_with(".mount"));
    all.extend(stopping.into_iter().cloned().map(Undo::Unit));
    all.extend(receipt.links.keys().filter(unwanted).cloned().map(Undo::Link));
    all.extend(receipt.files.keys().filter(unwanted).cloned().map(Undo::File));
    let aside = receipt.aside.iter().filter(|(path, _)| unwanted(path));
    all.extend(aside.map(|(path, target)| Undo::Aside { path: path.clone(), target: target.clone() }));
    let lines = receipt.lines.iter().filter(|(path, _)| unwanted(path));
    all.extend(lines.map(|(path, line)| Undo::Line { path: path.clone(), line: line.clone() }));
    all.extend(receipt.created.iter().filter(unwanted).cloned().map(Undo::Created));
    all.extend(receipt.built.iter().filter(unwanted).cloned().map(Undo::Built));
    // Users, packages and directories are shared by everything we install, so they go when all of it goes.
    if wanted.is_empty() {
        let (users, groups) = (
            receipt.users.iter().cloned().collect::<Vec<_>>(),
            receipt.groups.iter().cloned().collect::<Vec<_>>(),
        );
        if !users.is_empty() || !groups.is_empty() {
            all.push(Undo::Users { users, groups });
        }
        if !receipt.packages.is_empty() {
            all.push(Undo::Packages(receipt.packages.iter().cloned().collect()));
        }
        let shut = receipt.shut.iter();
        all.extend(shut.map(|(path, mode)| Undo::Mode { path: path.clone(), mode: *mode }));
        // Deepest first: a parent sorts before what is in it.
        all.extend(receipt.dirs.iter().rev().cloned().map(Undo::Dir));
    }
    all
}

impl Undo {
    /// Look, without touching.
    pub fn fate(&self, host: &Host, receipt: &Receipt) -> Result<Fate> {
        let Some(path) = self.path() else { return Ok(Fate::Goes) };
        let meta = host.meta(path)?;
        Ok(match (self, meta.map(|meta| meta.kind)) {
            (Self::Aside { .. }, None) => Fate::Goes,
            (Self::Aside { .. }, Some(_)) => Fate::Stays("somebody put something there since".into()),
            (_, None) => Fate::Gone,
            (Self::Mode { .. }, _) if results::is_shut(host, path)? => Fate::Goes,
            (Self::Mode { .. }, _) => Fate::Stays("somebody changed it since".into()),
            (Self::Line { line, .. }, Some(_)) => {
                let text = host.read_text(path)?.unwrap_or_default();
                match line::standing(host, path, line)? {
                    Some(_) => Fate::Goes,
                    None if text.lines().any(|found| found == line.was) => Fate::Gone,
                    None => Fate::Stays("its line was edited since we wrote it".into()),
                }
            }
            (Self::File(_), Some(Kind::File)) => {
                let bytes = host.read_at_most(path, PROGRAM)?.unwrap_or_default();
                let ours = receipt.files.get(path).is_some_and(|hashes| hashes.contains(&sha256(&bytes)));
                if ours { Fate::Goes } else { Fate::Stays("edited since we wrote it".into()) }
            }
            (Self::Link(_), Some(Kind::Link(to))) => {
                let ours = receipt.links.get(path).is_some_and(|targets| targets.contains(&to));
                if ours { Fate::Goes } else { Fate::Stays("leads elsewhere since we made it".into()) }
            }
            (Self::File(_) | Self::Link(_), Some(_)) => {
                Fate::Stays("replaced since by something else".into())
            }
            // What is seen there is on another disk, which is not touched; below it the directory is empty.
            (Self::Dir(_), Some(Kind::Dir)) if host.is_mount_point(path)? => Fate::Goes,
            (Self::Dir(_), Some(Kind::Dir)) => {
                // What of it is ours goes before it; whether the rest is empty is known only then.
                let strange = strange_in(host, path, receipt)?;
                strange.map_or(Fate::Goes, |name| Fate::Stays(format!("holds {name}, which is not ours")))
            }
            _ => Fate::Goes,
        })
    }

    /// Take it back, and note that it is done. Returns why, if it or a part of it had to stay.
    pub fn undo(&self, host: &Host, book: &Book, step: &Step) -> Result<Option<String>> {
        let fate = self.fate(host, &book.receipt())?;
        let mut stays = if let Fate::Stays(why) = &fate { Some(why.clone()) } else { None };
        match self {
            Self::Unit(unit) => {
                let root = format!("--root={}", host.root().display());
                if host.is_live() {
                    // One that is no longer there cannot be stopped, which is as good.
                    host.ask(&Cmd::new("systemctl", ["stop", unit]))?;
                }
                host.ask(&Cmd::new("systemctl", [&root, "disable", unit]))?;
                book.note(Entry::Disabled { unit: unit.clone() })?;
            }
            Self::File(path) | Self::Link(path) | Self::Created(path) => {
                if fate == Fate::Goes {
                    host.remove(path)?;
                }
                book.note(Entry::Removed { path: path.clone() })?;
            }
            Self::Aside { path, target } => {
                // With the package gone the link would lead nowhere.
                if fate == Fate::Goes && host.exists(target)? {
                    host.link(path, target)?;
                }
                book.note(Entry::PutBack { path: path.clone() })?;
            }
            Self::Mode { path, mode } => {
                if fate == Fate::Goes {
                    results::reopen(host, path, *mode)?;
                }
                book.note(Entry::Reopened { path: path.clone() })?;
            }
            Self::Line { path, line } => {
                if fate == Fate::Goes {
                    line::put_back(host, path, line)?;
                }
                book.note(Entry::PutBack { path: path.clone() })?;
            }
            Self::Built(path) => {
                host.remove_tree(path)?;
                book.note(Entry::Removed { path: path.clone() })?;
            }
            Self::Users { users, groups } => {
                if host.is_live() {
                    for user in users {
                        if host.uid(user)?.is_some() {
                            host.run(&Cmd::new("userdel", [user]))?;
                        }
                    }
                    for group in groups {
                        if host.gid(group)?.is_some() {
                            host.run(&Cmd::new("groupdel", [group]))?;
                        }
                    }
                }
                book.note(Entry::RemovedUsers { users: users.clone(), groups: groups.clone() })?;
            }
            Self::Packages(packages) => {
                let kept = if host.is_live() { apt::remove(host, packages, step)? } else { Vec::new() };
                if !kept.is_empty() {
                    stays = Some(format!("{}: other packages need them", kept.join(" ")));
                }
                book.note(Entry::RemovedPackages { packages: packages.clone() })?;
            }
            Self::Dir(path) => {
                if !host.remove_dir(path)? {
                    stays = Some("not empty".into());
                }
                book.note(Entry::Removed { path: path.clone() })?;
            }
        }
        Ok(stays)
    }

    pub fn path(&self) -> Option<&Path> {
        match self {
            Self::File(path)
            | Self::Link(path)
            | Self::Created(path)
            | Self::Built(path)
            | Self::Dir(path) => Some(path),
            Self::Aside { path, .. } | Self::Mode { path, .. } | Self::Line { path, .. } => Some(path),
            Self::Unit(_) | Self::Users { .. } | Self::Packages(_) => None,
        }
    }
}

/// The first thing below `dir` that the receipt does not know.
fn strange_in(host: &Host, dir: &Path, receipt: &Receipt) -> Result<Option<String>> {
    for name in host.list(dir)? {
        let path = dir.join(&name);
        let known = receipt.files.contains_key(&path)
            || receipt.links.contains_key(&path)
            || receipt.created.contains(&path)
            || receipt.built.contains(&path)
            || path == Path::new(super::receipt::PATH);
        if known {
            continue;
        }
        let inside = receipt.dirs.contains(&path);
        if !inside {
            return Ok(Some(name));
        }
        if let Some(strange) = strange_in(host, &path, receipt)? {
            return Ok(Some(format!("{name}/{strange}")));
        }
    }
    Ok(None)
}

impl fmt::Display for Undo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unit(unit) => write!(f, "unit {unit}"),
            Self::File(path) => write!(f, "file {}", path.display()),
            Self::Link(path) => write!(f, "link {}", path.display()),
            Self::Aside { path, .. } => write!(f, "what replaced {}", path.display()),
            Self::Line { path, .. } => write!(f, "our line of {}", path.display()),
            Self::Created(path) => write!(f, "file {}", path.display()),
            Self::Built(path) => write!(f, "directory {} and all in it", path.display()),
            Self::Users { users, groups } => {
                let all: BTreeSet<_> = users.iter().chain(groups).map(String::as_str).collect();
                write!(f, "users and groups {}", all.into_iter().collect::<Vec<_>>().join(" "))
            }
            Self::Packages(packages) => write!(f, "packages {}", packages.join(" ")),
            Self::Mode { path, .. } => write!(f, "the mode of {}", path.display()),
            Self::Dir(path) => write!(f, "directory {}", path.display()),
        }
    }
}
