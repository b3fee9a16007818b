//! The kinds of thing a headquarters is made of, and how to look at each and make each so.
//!
//! A resource is plain data and its `Display` is its only description. Looking changes nothing; making may be
//! repeated, because after a crash it will be. Undoing is not in here: it works from the receipt (`undo.rs`),
//! since what must be undone may no longer be wanted by any configuration.

use super::{
    apt,
    blueprint::DataDisk,
    certificate, env,
    eyes::Eyes,
    line::Line,
    python,
    receipt::{Book, Entry, Receipt},
};
use crate::{
    hash::{hex, sha256},
    host::{Cmd, Host, Kind, PROGRAM},
    ui::{Step, Try as _},
};
use anyhow::{Context as _, Result, bail};
use sha2::{Digest as _, Sha256};
use std::{
    fmt,
    path::{Path, PathBuf},
};

#[derive(Debug, Clone, PartialEq)]
pub enum Resource {
    /// Debian packages, installed in one go.
    Packages {
        names: Vec<String>,
        /// What follows can be made without them.
        beside: bool,
    },
    /// A file we own whole.
    File(File),
    Link {
        path: PathBuf,
        target: PathBuf,
    },
    /// A link of the distribution's that would collide with ours, out of the way while we are here.
    SetAside {
        path: PathBuf,
        target: PathBuf,
        package: &'static str,
    },
    /// One line of a file that is a package's own.
    Line(Line),
    /// A directory, whatever is in it.
    Dir {
        path: PathBuf,
    },
    /// A description handed to the system's own tool, which makes it so: users, directories.
    Applied {
        file: PathBuf,
        tool: Tool,
        expects: Vec<Expected>,
    },
    /// This very program, where it was not brought by a package.
    Program {
        path: PathBuf,
        hash: String,
    },
    /// An ext4 file system of ours on the data disk.
    FileSystem(DataDisk),
    /// What a service keeps on a disk that may have come from another machine, where it had another number.
    Owned {
        /// Each with its group.
        paths: Vec<(PathBuf, &'static str)>,
        user: String,
        /// Where the disk is mounted that they are on. What is on it is known only then.
        disk: Option<PathBuf>,
    },
    /// What runs of earlier versions left for everybody to read.
    Results(super::results::Results),
    /// A Python environment.
    Env(&'static python::Lock),
    /// Its bytecode.
    Bytecode(&'static python::Lock),
    /// A file store that a team had before.
    Store(super::store::Store),
    /// The certificate of one host name.
    Certificate {
        host: String,
        source: certificate::Source,
    },
    /// A password file with at least one user in it.
    FirstUser {
        path: PathBuf,
        user: String,
    },
    /// A static site built by MkDocs.
    Site(super::docs::Site),
    /// A unit that is enabled, running, and has loaded the present contents of what it reads.
    Unit(Unit),
}

#[derive(Debug, Clone, PartialEq)]
pub struct File {
    pub path: PathBuf,
    pub mode: u32,
    /// The group that may read it; root's when none is named. The owner is always root.
    pub group: Option<&'static str>,
    pub text: String,
    /// Never shown, not even in a diff.
    pub secret: bool,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Unit {
    pub name: String,
    /// Files whose contents it takes in when it loads.
    pub reads: Vec<PathBuf>,
    /// What else it takes in: the version of a program, say.
    pub with: String,
    pub load: Load,
}

/// How a unit takes in new contents.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Load {
    /// Without dropping a connection.
    Reload,
    Restart,
    /// Only by starting it: a mount is never taken away under those who use it.
    Start,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tool {
    Sysusers,
    Tmpfiles,
}

/// What an applied description must have brought about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Expected {
    User(String),
    Group(String),
    Dir(PathBuf),
    /// A directory that outlives us: on the data disk.
    Data(PathBuf),
}

/// What we saw. `Wrong` says how, in words a person can act on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Seen {
    Right,
    Wrong(String),
    /// Something of somebody else's is in the way.
    Foreign(String),
    /// Ours, and changed by somebody since: kept.
    Edited,
    /// A directory cannot answer; only the machine it becomes can.
    Later,
}

fn wrong(why: impl Into<String>) -> Result<Seen> {
    Ok(Seen::Wrong(why.into()))
}

impl Resource {
    pub fn look(&self, host: &Host, receipt: &Receipt, eyes: &Eyes) -> Result<Seen> {
        match self {
            Self::File(file) => file.look(host, receipt),
            Self::Link { path, target } => match host.meta(path)?.map(|meta| meta.kind) {
                None => wrong("missing"),
                Some(Kind::Link(to)) if to == *target => Ok(Seen::Right),
                Some(Kind::Link(to)) if receipt.links.get(path).is_some_and(|ours| ours.contains(&to)) => {
                    wrong(format!("leads to {}", to.display()))
                }
                Some(Kind::Link(to)) => Ok(Seen::Foreign(format!("a link to {}", to.display()))),
                Some(Kind::Dir) => Ok(Seen::Foreign("a directory".into())),
                Some(_) => Ok(Seen::Foreign("a file".into())),
            },
            Self::SetAside { path, target, package } => match host.meta(path)?.map(|meta| meta.kind) {
                None => Ok(Seen::Right),
                Some(Kind::Link(to)) if to == *target && !eyes.edited(host, package, target)? => {
                    wrong("in the way of our own")
                }
                Some(_) => Ok(Seen::Foreign("a site that is not the distribution's own".into())),
            },
            Self::Line(line) => line.look(host, receipt),
            Self::Dir { path } => match host.meta(path)?.map(|meta| meta.kind) {
                None => wrong("missing"),
                Some(Kind::Dir) => Ok(Seen::Right),
                Some(_) => Ok(Seen::Foreign("not a directory".into())),
            },
            Self::Applied { file, expects, .. } => {
                for expected in expects {
                    if !expected.is_there(host)? {
                        return wrong(format!("{expected} is missing"));
                    }
                }
                match receipt.loaded.get(&self.to_string()) {
                    Some(hash) if *hash == hash_of(host, std::slice::from_ref(file), "")? => Ok(Seen::Right),
                    _ => wrong("not applied yet"),
                }
            }
            Self::Program { path, hash: build } => match host.read_at_most(path, PROGRAM)? {
                None => wrong("missing"),
                Some(bytes) if sha256(&bytes) == *build => Ok(Seen::Right),
                Some(_) if receipt.files.contains_key(path) => wrong("another version"),
                Some(_) => Ok(Seen::Foreign("a program we did not put there".into())),
            },
            Self::Unit(unit) => unit.look(host, receipt, eyes),
            // A file system may be looked at in an image as well; all that follows asks the running machine.
            _ if !host.is_live() => Ok(Seen::Later),
            Self::Packages { names, .. } => {
                let missing: Vec<_> =
                    names.iter().filter(|name| !eyes.packages.contains_key(*name)).cloned().collect();
                if missing.is_empty() {
                    Ok(Seen::Right)
                } else {
                    wrong(format!("not installed: {}", missing.join(" ")))
                }
            }
            Self::FileSystem(disk) => {
                if disk.blank {
                    wrong("blank")
                } else {
                    Ok(Seen::Right)
                }
            }
            Self::Owned { paths, user, disk } => {
                if let Some(at) = disk
                    && !host.is_mount_point(at)?
                {
                    return wrong(format!("the disk of {} is not mounted yet", at.display()));
                }
                let uid = host.uid(user)?;
                for (path, group) in paths {
                    let (Some(meta), Some(uid), Some(gid)) = (host.meta(path)?, uid, host.gid(group)?) else {
                        continue;
                    };
                    if meta.uid != uid {
                        return wrong(format!("{} belongs to user {}", path.display(), meta.uid));
                    }
                    if meta.gid != gid {
                        return wrong(format!("{} belongs to group {}", path.display(), meta.gid));
                    }
                }
                Ok(Seen::Right)
            }
            Self::Results(results) => results.look(host),
            Self::Env(lock) => env::look(host, lock),
            Self::Bytecode(lock) if python::is_compiled(host, lock)? => Ok(Seen::Right),
            Self::Bytecode(_) => wrong("not compiled"),
            Self::Certificate { host: name, source } => certificate::look(host, source, name),
            Self::FirstUser { path, .. } => super::users::look(host, path),
            Self::Store(store) => store.look(host),
            Self::Site(site) => site.look(host, receipt),
        }
    }

    /// Make it so. What must be remembered is noted before it happens.
    pub fn make(&self, host: &Host, book: &Book, step: &Step) -> Result<()> {
        match self {
            Self::Packages { names, .. } => apt::install(host, names, book, step),
            Self::File(file) => file.make(host, book),
            Self::Link { path, target } => {
                let dirs = missing_dirs(host, path)?;
                book.note(Entry::Linked { path: path.clone(), target: target.clone(), dirs })?;
                host.link(path, target)
            }
            Self::SetAside { path, target, .. } => {
                book.note(Entry::SetAside { path: path.clone(), target: target.clone() })?;
                host.remove(path)
            }
            Self::Line(line) => line.make(host, book),
            Self::Dir { path } => {
                let dirs = missing_dirs(host, &path.join("in it"))?;
                book.note(Entry::MadeDirs { dirs })?;
                host.make_dir(path)
            }
            Self::Applied { file, tool, expects } => {
                note_missing(host, expects, book)?;
                host.run(&tool.cmd(host, file))?;
                for expected in expects {
                    if !expected.is_there(host)? {
                        bail!("{expected} is still missing after applying {}", file.display());
                    }
                }
                let hash = hash_of(host, std::slice::from_ref(file), "")?;
                book.note(Entry::Loaded { what: self.to_string(), hash })
            }
            Self::FileSystem(DataDisk { device, uuid, size, .. }) => {
                book.note(Entry::Formatting { device: device.clone(), uuid: uuid.clone(), size: *size })?;
                super::disk::format(host, device, uuid, super::disk::NOTICE)
            }
            Self::Program { path, hash } => {
                let dirs = missing_dirs(host, path)?;
                book.note(Entry::Wrote { path: path.clone(), hash: hash.clone(), dirs })?;
                host.write_self(path)
            }
            Self::Owned { paths, user, .. } => {
                for (path, group) in paths {
                    if host.exists(path)? {
                        let path = path.display().to_string();
                        host.run(&Cmd::new("chown", ["-R", "-h", &format!("{user}:{group}"), &path]))?;
                    }
                }
                Ok(())
            }
            Self::Results(results) => results.make(host, book),
            Self::Env(lock) => env::make(host, lock, book, step),
            Self::Bytecode(lock) => python::compile(host, lock, &mut |line| step.detail(line)),
            Self::Certificate { host: name, source } => certificate::make(host, source, name, book),
            Self::FirstUser { path, user } => super::users::make_first(host, path, user, book),
            Self::Store(store) => store.make(host, book, step),
            Self::Site(site) => site.make(host, book, step),
            Self::Unit(unit) => unit.make(host, book),
        }
    }

    /// The file it puts on the machine, if it is that kind of thing.
    pub fn path(&self) -> Option<&Path> {
        match self {
            Self::File(file) => Some(&file.path),
            Self::Line(line) => Some(&line.path),
            Self::Link { path, .. }
            | Self::SetAside { path, .. }
            | Self::Program { path, .. }
            | Self::Dir { path } => Some(path),
            _ => None,
        }
    }

    /// The paths that stay while this is wanted, and whose contents a unit may read.
    pub fn owns(&self) -> Vec<PathBuf> {
        match self {
            Self::Packages { .. } => apt::LEFT_BEHIND.iter().map(|(_, path)| path.into()).collect(),
            Self::Env(lock) => env::owns(lock),
            // An environment is what its marker says once it is compiled.
            Self::Bytecode(lock) => vec![python::marker_of(lock)],
            Self::Certificate { host, source } => certificate::owns(source, host),
            Self::FirstUser { path, .. } => vec![path.clone()],
            Self::Store(store) => store.owns(),
            Self::Site(site) => site.owns(),
            _ => self.path().map(Into::into).into_iter().collect(),
        }
    }

    /// The paths whose contents making it takes in, beyond what stands before it and is quick.
    pub fn needs(&self) -> Vec<PathBuf> {
        match self {
            Self::Unit(unit) => unit.reads.clone(),
            Self::Bytecode(lock) => vec![python::marker_of(lock)],
            // Two at once take longer than one after the other.
            Self::Env(lock) if **lock == python::DOCS => vec![python::marker_of(&python::SERVICES)],
            Self::Store(_) => vec![python::marker_of(&python::SERVICES)],
            Self::Site(_) => vec![python::marker_of(&python::DOCS)],
            _ => Vec::new(),
        }
    }

    /// Whether others had better go on beside it.
    pub fn takes_long(&self) -> bool {
        matches!(self, Self::Packages { beside: true, .. } | Self::Env(_) | Self::Bytecode(_) | Self::Site(_))
    }
}

impl File {
    fn look(&self, host: &Host, receipt: &Receipt) -> Result<Seen> {
        let Some(meta) = host.meta(&self.path)? else { return wrong("missing") };
        let ours = receipt.files.get(&self.path);
        if meta.kind != Kind::File {
            return Ok(Seen::Foreign("not a plain file".into()));
        }
        let bytes = host.read(&self.path)?.unwrap_or_default();
        if bytes != self.text.as_bytes() {
            return Ok(match ours {
                None => Seen::Foreign("a file we did not write".into()),
                Some(hashes) if hashes.contains(&sha256(&bytes)) => Seen::Wrong("differs".into()),
                Some(_) => Seen::Edited,
            });
        }
        if meta.mode != self.mode {
            return wrong(format!("mode {:04o} instead of {:04o}", meta.mode, self.mode));
        }
        // Who owns what can be told on a running machine alone: an image may be unpacked by anybody.
        let gid = self.group.map_or(Ok(Some(0)), |group| host.gid(group))?;
        if host.is_live() && (meta.uid != 0 || Some(meta.gid) != gid) {
            return wrong("belongs to somebody else");
        }
        Ok(Seen::Right)
    }

    fn make(&self, host: &Host, book: &Book) -> Result<()> {
        let dirs = missing_dirs(host, &self.path)?;
        book.note(Entry::Wrote { path: self.path.clone(), hash: sha256(self.text.as_bytes()), dirs })?;
        let owner = match self.group {
            Some(group) if host.is_live() => {
                Some((0, host.gid(group)?.with_context(|| format!("there is no group {group}"))?))
            }
            _ => None,
        };
        host.write_owned(&self.path, self.mode, owner, self.text.as_bytes())
    }
}

impl Unit {
    fn look(&self, host: &Host, receipt: &Receipt, eyes: &Eyes) -> Result<Seen> {
        if !host.is_live() && !self.is_known(host)? {
            return Ok(Seen::Later);
        }
        let Some(facts) = eyes.units.get(&self.name) else { return wrong("not there") };
        if !facts.enabled {
            return wrong("not enabled");
        }
        if !host.is_live() {
            return Ok(Seen::Right);
        }
        if facts.active != "active" {
            return wrong(match facts.active.as_str() {
                "failed" => "failed",
                "activating" => "still starting",
                _ => "not running",
            });
        }
        if receipt.loaded.get(&self.name) != Some(&hash_of(host, &self.reads, &self.with)?) {
            return wrong("has not loaded its files");
        }
        Ok(Seen::Right)
    }

    /// Whether an image has the unit's file; one of a package that is yet to come is not there.
    fn is_known(&self, host: &Host) -> Result<bool> {
        for dir in ["/etc/systemd/system", "/usr/lib/systemd/system", "/lib/systemd/system"] {
            if host.exists(&Path::new(dir).join(&self.name))? {
                return Ok(true);
            }
        }
        Ok(self.reads.iter().any(|path| path.starts_with("/etc/systemd/system")))
    }

    fn make(&self, host: &Host, book: &Book) -> Result<()> {
        self.enable(host, book)?;
        if !host.is_live() {
            return Ok(());
        }
        let loading = hash_of(host, &self.reads, &self.with)?;
        // A unit that was tried too often refuses to be tried again, also when its reason is gone.
        host.ask(&Cmd::new("systemctl", ["reset-failed", &self.name]))?;
        host.run(&Cmd::new("systemctl", [self.load.verb(), &self.name]))
            .or_find(|| last_words(host, &self.name))?;
        book.note(Entry::Loaded { what: self.name.clone(), hash: loading })
    }

    pub fn enable(&self, host: &Host, book: &Book) -> Result<()> {
        let root = format!("--root={}", host.root().display());
        if !host.ask(&Cmd::new("systemctl", [&root, "is-enabled", &self.name]))?.ok() {
            book.note(Entry::Enabled { unit: self.name.clone() })?;
            host.run(&Cmd::new("systemctl", [&root, "enable", &self.name]))?;
        }
        if host.is_live() {
            host.run(&Cmd::new("systemctl", ["daemon-reload"]))?;
        }
        Ok(())
    }

    /// The hash of all it would take in now.
    pub fn loading(&self, host: &Host) -> Result<String> {
        hash_of(host, &self.reads, &self.with)
    }
}

impl Load {
    pub fn verb(self) -> &'static str {
        match self {
            Self::Reload => "reload-or-restart",
            Self::Restart => "restart",
            Self::Start => "start",
        }
    }
}

/// The end of a unit's journal, as a hint.
pub fn last_words(host: &Host, unit: &str) -> String {
    let cmd = Cmd::new("journalctl", ["-u", unit, "-n", "5", "-o", "cat", "--no-pager"]);
    let said = host.ask(&cmd).map(|out| out.stdout).unwrap_or_default();
    let said: Vec<_> = said.lines().map(|line| format!("\n  {line}")).collect();
    format!("`journalctl -u {unit}`, which ends:{}", said.concat())
}

impl Tool {
    fn cmd(self, host: &Host, file: &Path) -> Cmd {
        let root = format!("--root={}", host.root().display());
        // With a root, a tool finds a description by its name in there, and a path in the machine it runs on.
        let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let file = if host.is_live() { file.display().to_string() } else { name };
        match self {
            Self::Sysusers => Cmd::new("systemd-sysusers", [root, file]),
            Self::Tmpfiles => Cmd::new("systemd-tmpfiles", [root, "--create".into(), file]),
        }
    }
}

impl Expected {
    fn is_there(&self, host: &Host) -> Result<bool> {
        match self {
            Self::User(name) => Ok(host.uid(name)?.is_some()),
            Self::Group(name) => Ok(host.gid(name)?.is_some()),
            Self::Dir(path) | Self::Data(path) => {
                Ok(host.meta(path)?.is_some_and(|meta| meta.kind == Kind::Dir))
            }
        }
    }
}

fn note_missing(host: &Host, expects: &[Expected], book: &Book) -> Result<()> {
    let (mut users, mut groups, mut dirs) = (Vec::new(), Vec::new(), Vec::new());
    for expected in expects {
        if expected.is_there(host)? {
            continue;
        }
        match expected {
            Expected::User(name) => users.push(name.clone()),
            Expected::Group(name) => groups.push(name.clone()),
            Expected::Dir(path) => {
                dirs.extend(missing_dirs(host, path)?);
                dirs.push(path.clone());
            }
            Expected::Data(_) => {}
        }
    }
    if !users.is_empty() || !groups.is_empty() {
        book.note(Entry::AddedUsers { users, groups })?;
    }
    if !dirs.is_empty() {
        book.note(Entry::MadeDirs { dirs })?;
    }
    Ok(())
}

/// The directories that writing `path` will have to make.
pub fn missing_dirs(host: &Host, path: &Path) -> Result<Vec<PathBuf>> {
    let mut missing = Vec::new();
    for dir in path.ancestors().skip(1) {
        if host.exists(dir)? {
            break;
        }
        missing.push(dir.to_owned());
    }
    Ok(missing)
}

/// One hash over the contents of all of them, links followed, absent ones counted as such.
pub fn hash_of(host: &Host, paths: &[PathBuf], with: &str) -> Result<String> {
    let mut all = Sha256::new();
    all.update(with);
    for path in paths {
        all.update(format!("\n{}\n", path.display()));
        match host.read(path)? {
            Some(bytes) => all.update(Sha256::digest(bytes)),
            None => all.update("absent"),
        }
    }
    Ok(hex(&all.finalize()))
}

impl fmt::Display for Resource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Packages { names, .. } => write!(f, "packages {}", names.join(" ")),
            Self::File(file) => write!(f, "file {}", file.path.display()),
            Self::Link { path, target } => write!(f, "link {} to {}", path.display(), target.display()),
            Self::SetAside { path, .. } => write!(f, "setting aside {}", path.display()),
            Self::Line(line) => write!(f, "{line}"),
            Self::Dir { path } => write!(f, "directory {}", path.display()),
            Self::Applied { file, tool: Tool::Sysusers, .. } => write!(f, "users of {}", file.display()),
            Self::Applied { file, tool: Tool::Tmpfiles, .. } => {
                write!(f, "directories of {}", file.display())
            }
            Self::Program { path, .. } => write!(f, "program {}", path.display()),
            Self::FileSystem(disk) => write!(f, "file system on {}", disk.device),
            Self::Owned { user, .. } => write!(f, "files of {user} as {user}'s"),
            Self::Results(results) => write!(f, "results in {} as their people's", results.dir.display()),
            Self::Env(lock) => write!(f, "Python environment {}", lock.name),
            Self::Bytecode(lock) => write!(f, "bytecode of Python environment {}", lock.name),
            Self::Certificate { host, .. } => write!(f, "certificate for {host}"),
            Self::FirstUser { path, .. } => write!(f, "a user in {}", path.display()),
            Self::Store(store) => write!(f, "runs of the old file store for {}", store.data.display()),
            Self::Site(site) => write!(f, "{site}"),
            Self::Unit(unit) => write!(f, "unit {}", unit.name),
        }
    }
}

impl fmt::Display for Expected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::User(name) => write!(f, "user {name}"),
            Self::Group(name) => write!(f, "group {name}"),
            Self::Dir(path) | Self::Data(path) => write!(f, "directory {}", path.display()),
        }
    }
}
