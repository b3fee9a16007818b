//! Files below one directory where somebody else may write at the same time, and may mean ill. Every step of a path is
//! taken from the directory before it and never through a link (openat(2) with `O_NOFOLLOW`), so whatever is renamed,
//! replaced or linked meanwhile, nothing outside is read, written or removed.

use super::{Host, Kind};
use anyhow::{Context as _, Result, anyhow, bail, ensure};
use nix::{
    dir::Dir,
    errno::Errno,
    fcntl::{AtFlags, OFlag, openat, readlinkat, renameat},
    sys::stat::{FileStat, Mode, SFlag, fchmod, fstat, fstatat, mkdirat},
    unistd::{UnlinkatFlags, fchown, symlinkat, syncfs, unlinkat},
};
use serde::{Deserialize, Serialize};
use std::{
    collections::HashSet,
    ffi::{OsStr, OsString},
    fmt,
    fs::File,
    io::{Seek as _, Write},
    os::fd::OwnedFd,
    path::{Path, PathBuf},
};

/// A path below some directory, of names that mean nothing else to anybody: no `..`, no control characters, none too
/// long for a file system.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Rel(String);

impl TryFrom<String> for Rel {
    type Error = String;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        let why = if text.is_empty() || text.starts_with('/') {
            "it does not begin below the directory"
        } else if text.chars().any(char::is_control) {
            "it has control characters"
        } else if text.split('/').any(|name| matches!(name, "" | "." | "..")) {
            "it has `.`, `..` or an empty name in it"
        } else if text.len() > 1024 || text.split('/').count() > 32 || text.split('/').any(|n| n.len() > 255)
        {
            "it is too long"
        } else {
            return Ok(Self(text));
        };
        let short: String = text.chars().take(100).collect();
        Err(format!("{short:?} is not taken as a path: {why}"))
    }
}

impl TryFrom<&Path> for Rel {
    type Error = String;

    fn try_from(path: &Path) -> Result<Self, Self::Error> {
        let text =
            path.to_str().ok_or_else(|| format!("{path:?} is not taken as a path: it is not UTF-8"))?;
        text.to_owned().try_into()
    }
}

impl From<Rel> for String {
    fn from(rel: Rel) -> Self {
        rel.0
    }
}

impl Rel {
    pub fn new(text: &str) -> Result<Self> {
        Self::try_from(text.to_owned()).map_err(|why| anyhow!(why))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Where it is in, and its last name.
    fn split(&self) -> (Option<&str>, &str) {
        self.0.rsplit_once('/').map_or((None, self.0.as_str()), |(dir, name)| (Some(dir), name))
    }

    /// The directories on the way, the outermost first.
    pub fn dirs(&self) -> impl Iterator<Item = &str> {
        self.0.match_indices('/').map(|(at, _)| &self.0[..at])
    }

    /// Whether it is the name of something that is being written, by us.
    pub fn is_part(&self) -> bool {
        self.split().1.starts_with(PART)
    }

    pub fn under(&self, dir: &str) -> Result<Self> {
        Self::new(&format!("{dir}/{}", self.0))
    }
}

impl fmt::Display for Rel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// How names begin that a file has before it has its own.
const PART: &str = ".echoes-part-";

/// By what one sees that a file is no longer the one it was, without reading it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stamp {
    pub len: u64,
    /// Of the last change of contents.
    pub nanos: i64,
    pub inode: u64,
}

impl Stamp {
    fn of(stat: &FileStat) -> Self {
        let nanos = stat.st_mtime.saturating_mul(1_000_000_000).saturating_add(stat.st_mtime_nsec);
        Self { len: u64::try_from(stat.st_size).unwrap_or_default(), nanos, inode: stat.st_ino }
    }
}

/// What lies somewhere below; never a directory that was gone through.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// Or why its name is not taken.
    pub path: Result<Rel, String>,
    pub kind: Kind,
    pub stamp: Stamp,
    /// Its owner may execute it.
    pub exec: bool,
}

#[derive(Debug)]
pub struct Beneath {
    root: OwnedFd,
    path: PathBuf,
    /// Whose is what is made here; else, whoever makes it.
    owner: Option<(u32, u32)>,
}

const DIR: OFlag = OFlag::O_RDONLY.union(OFlag::O_DIRECTORY).union(OFlag::O_CLOEXEC).union(OFlag::O_NOFOLLOW);

impl Beneath {
    /// `path` itself is believed, and may lead through links. None: there is no such directory.
    pub fn open(host: &Host, path: &Path) -> Result<Option<Self>> {
        let full = host.path(path);
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        match nix::fcntl::open(&full, flags, Mode::empty()) {
            Ok(root) => Ok(Some(Self { root, path: path.into(), owner: None })),
            Err(Errno::ENOENT) => Ok(None),
            Err(e) => Err(e).with_context(|| format!("opening {}", path.display())),
        }
    }

    /// As `open`; made if need be.
    pub fn make(host: &Host, path: &Path) -> Result<Self> {
        host.make_dir(path)?;
        Self::open(host, path)?.with_context(|| format!("{} went away", path.display()))
    }

    /// A directory in here, made if need be, for things that are this user's from now on. It is never a link.
    pub fn inside(mut self, rel: &Rel, owner: Option<(u32, u32)>) -> Result<Self> {
        self.owner = owner;
        let root = self.dir(Some(rel.as_str()), true).with_context(|| self.doing("opening", rel.as_str()))?;
        Ok(Self { root, path: self.path.join(rel.as_str()), owner })
    }

    /// A directory in here, if it is there and no link.
    pub fn there(&self, rel: &Rel) -> Result<Option<Self>> {
        match self.dir(Some(rel.as_str()), false) {
            Ok(root) => Ok(Some(Self { root, path: self.path.join(rel.as_str()), owner: self.owner })),
            Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP) => Ok(None),
            Err(e) => Err(e).with_context(|| self.doing("opening", rel.as_str())),
        }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    fn doing(&self, verb: &str, rel: &str) -> String {
        format!("{verb} {}", self.path.join(rel).display())
    }

    /// The directory below, step by step.
    fn dir(&self, below: Option<&str>, made: bool) -> nix::Result<OwnedFd> {
        let mut at = openat(&self.root, ".", DIR, Mode::empty())?;
        for name in below.into_iter().flat_map(|path| path.split('/')) {
            at = match openat(&at, name, DIR, Mode::empty()) {
                Err(Errno::ENOENT) if made => {
                    let fresh = match mkdirat(&at, name, Mode::from_bits_truncate(0o755)) {
                        Ok(()) => true,
                        Err(Errno::EEXIST) => false,
                        Err(e) => return Err(e),
                    };
                    let dir = openat(&at, name, DIR, Mode::empty())?;
                    if fresh && let Some((uid, gid)) = self.owner {
                        fchown(&dir, Some(uid.into()), Some(gid.into()))?;
                    }
                    dir
                }
                dir => dir?,
            };
        }
        Ok(at)
    }

    /// A regular file, to be read, as it is just now. None: there is none, or it is something else.
    pub fn read(&self, rel: &Rel) -> Result<Option<(File, Stamp)>> {
        let (dir, name) = rel.split();
        // Without O_NONBLOCK a named pipe would hold us until somebody writes into it.
        let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK;
        let open = || {
            let file = openat(self.dir(dir, false)?, name, flags, Mode::empty())?;
            let stat = fstat(&file)?;
            Ok(is(&stat, SFlag::S_IFREG).then(|| (File::from(file), Stamp::of(&stat))))
        };
        match open() {
            // ELOOP: a link. ENXIO: a socket.
            Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP | Errno::ENXIO) => Ok(None),
            seen => seen.with_context(|| self.doing("reading", rel.as_str())),
        }
    }

    /// As it is now, for a file that was opened before.
    pub fn stamp(file: &File) -> Result<Stamp> {
        Ok(Stamp::of(&fstat(file)?))
    }

    pub fn meta(&self, rel: &Rel) -> Result<Option<Found>> {
        let (dir, name) = rel.split();
        let look = || found(&self.dir(dir, false)?, OsStr::new(name), Ok(rel.clone()));
        match look() {
            Ok(found) => Ok(Some(found)),
            Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP) => Ok(None),
            Err(e) => Err(e).with_context(|| self.doing("looking at", rel.as_str())),
        }
    }

    /// Begin a file under a name that nobody else knows; it gets its own with `Part::keep`.
    pub fn write(&self, rel: &Rel) -> Result<Part> {
        let (dir, name) = rel.split();
        let begin = || -> Result<Part> {
            let dir = self.dir(dir, true)?;
            let mut key = [0; 8];
            getrandom::fill(&mut key).map_err(|e| anyhow!("{e}"))?;
            let temp = format!("{PART}{:016x}", u64::from_ne_bytes(key));
            let flags =
                OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
            let file = openat(&dir, temp.as_str(), flags, Mode::from_bits_truncate(0o600))?;
            Ok(Part { dir, temp, name: name.into(), file: file.into(), owner: self.owner, kept: false })
        };
        begin().with_context(|| self.doing("writing", rel.as_str()))
    }

    /// To be written on from its byte `at`; whatever came after that goes.
    pub fn append(&self, rel: &Rel, at: u64) -> Result<File> {
        let (dir, name) = rel.split();
        let open = || -> Result<File> {
            let dir = self.dir(dir, true)?;
            let flags =
                OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK;
            let mut file = File::from(openat(&dir, name, flags, Mode::from_bits_truncate(0o644))?);
            let stat = fstat(&file)?;
            // A second name would make another's file this user's.
            ensure!(is(&stat, SFlag::S_IFREG) && stat.st_nlink == 1, "it is no file of its own");
            if let Some((uid, gid)) = self.owner {
                fchown(&file, Some(uid.into()), Some(gid.into()))?;
            }
            file.set_len(at)?;
            file.seek(std::io::SeekFrom::End(0))?;
            Ok(file)
        };
        open().with_context(|| self.doing("writing", rel.as_str()))
    }

    /// A link there that leads to `to`, whatever was there before.
    pub fn link(&self, rel: &Rel, to: &str) -> Result<()> {
        let (dir, name) = rel.split();
        let link = || -> nix::Result<()> {
            let dir = self.dir(dir, true)?;
            let temp = format!("{PART}link-{}", std::process::id());
            match unlinkat(&dir, temp.as_str(), UnlinkatFlags::NoRemoveDir) {
                Ok(()) | Err(Errno::ENOENT) => {}
                Err(e) => return Err(e),
            }
            symlinkat(to, &dir, temp.as_str())?;
            renameat(&dir, temp.as_str(), &dir, name)
        };
        link().with_context(|| self.doing("linking", rel.as_str()))
    }

    pub fn set_exec(&self, rel: &Rel, exec: bool) -> Result<()> {
        let (file, _) = self.read(rel)?.with_context(|| format!("{rel} went away"))?;
        fchmod(&file, mode(exec)).with_context(|| self.doing("changing the mode of", rel.as_str()))
    }

    /// Everything below; an error when there is more than `most`.
    pub fn walk(&self, most: usize) -> Result<Vec<Found>> {
        let all = self.walk_some(most.saturating_add(1))?;
        ensure!(all.len() <= most, "there are more than {most} files in {}", self.path.display());
        Ok(all)
    }

    /// The first `most` of what is below.
    pub fn walk_some(&self, most: usize) -> Result<Vec<Found>> {
        let mut all = Vec::new();
        let root = self.dir(None, false).with_context(|| self.doing("listing", ""))?;
        self.walk_in(&root, "", most, &mut all)?;
        Ok(all)
    }

    fn walk_in(&self, dir: &OwnedFd, prefix: &str, most: usize, all: &mut Vec<Found>) -> Result<()> {
        for name in names(dir).with_context(|| self.doing("listing", prefix))? {
            if all.len() >= most {
                break;
            }
            // It may have gone since its name was read.
            let path = Rel::try_from(Path::new(&joined(prefix, &name)));
            let Ok(seen) = found(dir, &name, path) else { continue };
            match (&seen.kind, &seen.path) {
                (Kind::Dir, Ok(path)) => {
                    let Ok(below) = openat(dir, name.as_os_str(), DIR, Mode::empty()) else { continue };
                    self.walk_in(&below, &format!("{path}/"), most, all)?;
                }
                _ => all.push(seen),
            }
        }
        Ok(())
    }

    /// Remove a file or a link; none there is as good.
    pub fn remove(&self, rel: &Rel) -> Result<()> {
        let (dir, name) = rel.split();
        let remove = || unlinkat(self.dir(dir, false)?, name, UnlinkatFlags::NoRemoveDir);
        match remove() {
            Ok(()) | Err(Errno::ENOENT) => Ok(()),
            Err(e) => Err(e).with_context(|| self.doing("removing", rel.as_str())),
        }
    }

    /// Remove what a crash left of files that were being written.
    pub fn sweep(&self) -> Result<()> {
        for found in self.walk_some(usize::MAX)? {
            if let Ok(path) = found.path
                && path.is_part()
            {
                self.remove(&path)?;
            }
        }
        Ok(())
    }

    /// Remove all but these files and links, and the directories they are in. How many things went.
    pub fn prune(&self, kept: &HashSet<&str>) -> Result<usize> {
        let dirs: HashSet<&str> =
            kept.iter().flat_map(|path| path.match_indices('/').map(|(at, _)| &path[..at])).collect();
        let prune = || -> nix::Result<usize> {
            let root = self.dir(None, false)?;
            prune(&root, "", &|path| kept.contains(path), &|path| dirs.contains(path))
        };
        prune().with_context(|| self.doing("removing what is not wanted in", ""))
    }

    /// All that was written down here is on the disk when this returns.
    pub fn sync(&self) -> Result<()> {
        syncfs(&self.root).with_context(|| self.doing("syncing", ""))
    }
}

/// A file that is being written.
#[derive(Debug)]
pub struct Part {
    dir: OwnedFd,
    temp: String,
    name: String,
    file: File,
    owner: Option<(u32, u32)>,
    kept: bool,
}

/// Whether a file is on the disk before it has its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnDisk {
    Now,
    /// Whoever writes many calls `Beneath::sync` once.
    Later,
}

impl Part {
    /// What comes after its byte `at` goes, and the next one comes there.
    pub fn cut(&mut self, at: u64) -> Result<()> {
        self.file.set_len(at)?;
        self.file.seek(std::io::SeekFrom::Start(at))?;
        Ok(())
    }

    pub fn keep(mut self, exec: bool, on_disk: OnDisk) -> Result<()> {
        if let Some((uid, gid)) = self.owner {
            fchown(&self.file, Some(uid.into()), Some(gid.into()))?;
        }
        fchmod(&self.file, mode(exec))?;
        if on_disk == OnDisk::Now {
            self.file.sync_all()?;
        }
        renameat(&self.dir, self.temp.as_str(), &self.dir, self.name.as_str())
            .with_context(|| format!("naming {}", self.name))?;
        self.kept = true;
        if on_disk == OnDisk::Now {
            nix::unistd::fsync(&self.dir)?;
        }
        Ok(())
    }
}

impl Write for Part {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.file.write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        if !self.kept {
            let _ = unlinkat(&self.dir, self.temp.as_str(), UnlinkatFlags::NoRemoveDir);
        }
    }
}

fn mode(exec: bool) -> Mode {
    Mode::from_bits_truncate(if exec { 0o755 } else { 0o644 })
}

fn is(stat: &FileStat, kind: SFlag) -> bool {
    SFlag::from_bits_truncate(stat.st_mode & SFlag::S_IFMT.bits()) == kind
}

fn joined(prefix: &str, name: &OsStr) -> OsString {
    let mut path = OsString::from(prefix);
    path.push(name);
    path
}

fn found(dir: &OwnedFd, name: &OsStr, path: Result<Rel, String>) -> nix::Result<Found> {
    let stat = fstatat(dir, name, AtFlags::AT_SYMLINK_NOFOLLOW)?;
    let kind = match SFlag::from_bits_truncate(stat.st_mode & SFlag::S_IFMT.bits()) {
        SFlag::S_IFREG => Kind::File,
        SFlag::S_IFDIR => Kind::Dir,
        SFlag::S_IFLNK => Kind::Link(readlinkat(dir, name)?.into()),
        _ => Kind::Other,
    };
    Ok(Found { path, kind, stamp: Stamp::of(&stat), exec: stat.st_mode & 0o100 != 0 })
}

/// Sorted. Never `.` and `..`.
fn names(dir: &OwnedFd) -> nix::Result<Vec<OsString>> {
    use std::os::unix::ffi::OsStringExt as _;
    // A directory of its own: two readers of one share their place in it.
    let mut names = Vec::new();
    for entry in Dir::from_fd(openat(dir, ".", DIR, Mode::empty())?)?.iter() {
        let name = entry?.file_name().to_bytes().to_vec();
        if name != b"." && name != b".." {
            names.push(OsString::from_vec(name));
        }
    }
    names.sort();
    Ok(names)
}

fn prune(
    dir: &OwnedFd,
    prefix: &str,
    file: &dyn Fn(&str) -> bool,
    is_kept: &dyn Fn(&str) -> bool,
) -> nix::Result<usize> {
    let mut gone = 0;
    for name in names(dir)? {
        // A name that is no text is in no list of ours.
        let path = joined(prefix, &name).into_string().unwrap_or_default();
        let is_dir = is(&fstatat(dir, name.as_os_str(), AtFlags::AT_SYMLINK_NOFOLLOW)?, SFlag::S_IFDIR);
        if is_dir {
            let below = openat(dir, name.as_os_str(), DIR, Mode::empty())?;
            if is_kept(&path) {
                gone += prune(&below, &format!("{path}/"), file, is_kept)?;
            } else {
                gone += 1 + prune(&below, "", &|_| false, &|_| false)?;
                unlinkat(dir, name.as_os_str(), UnlinkatFlags::RemoveDir)?;
            }
        } else if !file(&path) {
            unlinkat(dir, name.as_os_str(), UnlinkatFlags::NoRemoveDir)?;
            gone += 1;
        }
    }
    Ok(gone)
}

/// Where a link in a tree leads must be in the tree, whatever other links there are: `..` comes first alone, for after
/// a name, which may be a link, it leads anywhere. Pure.
pub fn stays_inside(link: &Rel, to: &str) -> Result<()> {
    let mut depth = link.as_str().matches('/').count();
    let mut named = false;
    ensure!(!to.starts_with('/'), "it is absolute");
    for name in to.split('/') {
        match name {
            "" | "." => {}
            ".." if named => bail!("it goes down and up again"),
            ".." => depth = depth.checked_sub(1).context("it leads out")?,
            _ => named = true,
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::System;
    use std::{fs, os::unix::fs::symlink};

    fn rel(text: &str) -> Rel {
        Rel::new(text).unwrap()
    }

    #[test]
    fn a_path_that_leads_anywhere_else_is_no_path() {
        for good in ["a", "a/b", "..a", "a..", "...", "ä b/c", "-rf", ".hidden"] {
            assert_eq!(rel(good).as_str(), good);
        }
        let long = "a".repeat(256);
        let far = "a/".repeat(600) + "a";
        let deep = "a/".repeat(32) + "a";
        for bad in [
            "",
            "/",
            "/etc/passwd",
            "..",
            "../a",
            "a/..",
            "a/../b",
            "a//b",
            "a/",
            "./a",
            "a/.",
            "a\0b",
            "a\nb",
            "a\x1b[2J",
            "\u{9b}31m",
            &long,
            &far,
            &deep,
        ] {
            assert!(Rel::new(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_link_that_leads_out_is_seen_however_it_is_written() {
        let table = [
            ("a", "b", true),
            ("a/b", "../c", true),
            ("a/b/c", "../../d/e", true),
            ("a", "./b/./c", true),
            ("a", "..", false),
            ("a", "../b", false),
            ("a/b", "../../c", false),
            ("a", "/etc", false),
            // Inside, if it were not for a link b that leads elsewhere inside.
            ("a/l", "b/../../c", false),
        ];
        for (link, to, inside) in table {
            assert_eq!(stays_inside(&rel(link), to).is_ok(), inside, "{link} -> {to}");
        }
    }

    /// A directory of ours, beside something that is not; and in ours, a link to it.
    fn world() -> (tempfile::TempDir, Beneath) {
        let dir = tempfile::tempdir().unwrap();
        let host = Host::new(dir.path(), System);
        host.write(Path::new("/else/secret"), 0o600, b"secret").unwrap();
        let beneath = Beneath::make(&host, Path::new("/ours")).unwrap();
        symlink("../else", dir.path().join("ours/way")).unwrap();
        symlink("../else/secret", dir.path().join("ours/file")).unwrap();
        (dir, beneath)
    }

    #[test]
    fn nothing_goes_through_a_link() {
        let (dir, beneath) = world();
        assert!(beneath.read(&rel("way/secret")).unwrap().is_none());
        assert!(beneath.read(&rel("file")).unwrap().is_none());
        assert!(beneath.write(&rel("way/new")).is_err());
        assert!(beneath.append(&rel("way/secret"), 0).is_err());
        assert!(beneath.append(&rel("file"), 0).is_err());
        assert!(beneath.link(&rel("way/x"), "y").is_err());
        // A link in the place of a file is replaced, not followed.
        let mut part = beneath.write(&rel("file")).unwrap();
        part.write_all(b"ours").unwrap();
        part.keep(false, OnDisk::Now).unwrap();
        assert_eq!(fs::read(dir.path().join("ours/file")).unwrap(), b"ours");
        assert_eq!(beneath.prune(&HashSet::new()).unwrap(), 2);
        assert_eq!(fs::read(dir.path().join("else/secret")).unwrap(), b"secret");
        assert_eq!(fs::read_dir(dir.path().join("ours")).unwrap().count(), 0);
        assert_eq!(fs::read_dir(dir.path().join("else")).unwrap().count(), 1);
    }

    #[test]
    fn a_second_name_of_somebody_elses_file_is_not_written_to() {
        let (dir, beneath) = world();
        fs::hard_link(dir.path().join("else/secret"), dir.path().join("ours/log")).unwrap();
        assert!(beneath.append(&rel("log"), 0).is_err());
        assert_eq!(fs::read(dir.path().join("else/secret")).unwrap(), b"secret");
        let error = beneath.inside(&rel("way"), None).unwrap_err();
        assert!(format!("{error:#}").contains("opening"), "{error:#}");
    }

    #[test]
    fn a_directory_that_becomes_a_link_while_we_write_leads_nowhere() {
        let (dir, beneath) = world();
        let mut part = beneath.write(&rel("d/e/f")).unwrap();
        part.write_all(b"x").unwrap();
        fs::rename(dir.path().join("ours/d/e"), dir.path().join("ours/moved")).unwrap();
        symlink("../../else", dir.path().join("ours/d/e")).unwrap();
        part.keep(false, OnDisk::Now).unwrap();
        assert_eq!(fs::read(dir.path().join("ours/moved/f")).unwrap(), b"x");
        assert_eq!(fs::read_dir(dir.path().join("else")).unwrap().count(), 1);
    }

    #[test]
    fn what_is_no_file_is_not_read_and_holds_nobody() {
        let (dir, beneath) = world();
        nix::unistd::mkfifo(&dir.path().join("ours/pipe"), Mode::from_bits_truncate(0o600)).unwrap();
        assert!(beneath.read(&rel("pipe")).unwrap().is_none());
        assert!(beneath.read(&rel("none")).unwrap().is_none());
        assert!(beneath.append(&rel("pipe"), 0).is_err());
        let kinds: Vec<_> = beneath.walk(9).unwrap().into_iter().map(|found| found.kind).collect();
        assert_eq!(kinds, [Kind::Link("../else/secret".into()), Kind::Other, Kind::Link("../else".into())]);
        assert!(beneath.walk(2).is_err(), "an endless directory ends");
    }

    #[test]
    fn a_part_that_is_not_kept_leaves_nothing() {
        let (dir, beneath) = world();
        let before = fs::read_dir(dir.path().join("ours")).unwrap().count();
        let mut part = beneath.write(&rel("x")).unwrap();
        part.write_all(b"half").unwrap();
        drop(part);
        assert_eq!(fs::read_dir(dir.path().join("ours")).unwrap().count(), before);
    }
}
