//! Files below one directory where somebody else may write at the same time, and may mean ill. Every step of a path is
//! taken from the directory before it and never through a link (openat(2) with `O_NOFOLLOW`), so whatever is renamed,
//! replaced or linked meanwhile, nothing outside is read, written or removed.

use super::{Host, Kind};
use anyhow::{Context as _, Result, anyhow, bail, ensure};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use nix::{
    dir::Dir,
    errno::Errno,
    fcntl::{AtFlags, OFlag, openat, readlinkat, renameat},
    sys::stat::{FileStat, Mode, SFlag, fchmod, fstat, fstatat, mkdirat},
    unistd::{UnlinkatFlags, Whence, fchown, linkat, lseek, symlinkat, syncfs, unlinkat},
};
use serde::{Deserialize, Serialize};
use std::{
    collections::HashSet,
    ffi::OsStr,
    fmt::{self, Write as _},
    fs::File,
    io::{Seek as _, Write},
    ops::ControlFlow,
    os::{fd::OwnedFd, unix::ffi::OsStrExt as _},
    path::{Path, PathBuf},
};

/// A path below some directory: names by their bytes, as the kernel has them. No `..`, none too long for a file system, and
/// nothing else is refused: a newline or a byte that is no UTF-8 is somebody's file all the same.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "Spelling", into = "Spelling")]
pub struct Rel(Vec<u8>);

/// Somebody's name as it stands in JSON, in journals and on the wire: text, or bytes where it is no UTF-8. It may be
/// anything: only a `Rel` is a path.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Spelling {
    Text(String),
    Bytes {
        /// In base64.
        bytes: String,
    },
}

impl Spelling {
    pub fn of(bytes: &[u8]) -> Self {
        match std::str::from_utf8(bytes) {
            Ok(text) => Self::Text(text.into()),
            Err(_) => Self::Bytes { bytes: STANDARD.encode(bytes) },
        }
    }

    /// Bytes; an error where they are not what they should be.
    pub fn bytes(self) -> Result<Vec<u8>, String> {
        match self {
            Self::Text(text) => Ok(text.into_bytes()),
            Self::Bytes { bytes } => STANDARD.decode(bytes).map_err(|e| format!("a name in base64: {e}")),
        }
    }
}

impl fmt::Display for Spelling {
    /// For people: no character of it moves a cursor.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text(text) => write_name(f, text.as_bytes()),
            Self::Bytes { bytes } => match STANDARD.decode(bytes) {
                Ok(name) => write_name(f, &name),
                Err(_) => write_name(f, bytes.as_bytes()),
            },
        }
    }
}

fn write_name(f: &mut fmt::Formatter<'_>, name: &[u8]) -> fmt::Result {
    for chunk in name.utf8_chunks() {
        for c in chunk.valid().chars() {
            // A right-to-left mark reorders what is around it.
            if c.is_control()
                || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
            {
                write!(f, "{}", c.escape_default())?;
            } else {
                f.write_char(c)?;
            }
        }
        chunk.invalid().iter().try_for_each(|byte| write!(f, "\\x{byte:02X}"))?;
    }
    Ok(())
}

/// The longest path that Linux takes in one piece, and longer than any that a person makes.
const LONGEST: usize = 4096;
/// Each directory on the way is an open file while it is listed.
const DEEPEST: usize = 256;
/// Of a file system.
const LONGEST_NAME: usize = 255;

impl TryFrom<Vec<u8>> for Rel {
    type Error = String;

    fn try_from(path: Vec<u8>) -> Result<Self, Self::Error> {
        let mut names = path.split(|byte| *byte == b'/');
        let why = if path.is_empty() || path.starts_with(b"/") {
            "it does not begin below the directory"
        } else if path.contains(&0) {
            "it has a zero byte in it"
        } else if names.any(|name| matches!(name, b"" | b"." | b"..")) {
            "it has `.`, `..` or an empty name in it"
        } else if path.len() > LONGEST
            || path.split(|byte| *byte == b'/').count() > DEEPEST
            || path.split(|byte| *byte == b'/').any(|name| name.len() > LONGEST_NAME)
        {
            "it is too long"
        } else {
            return Ok(Self(path));
        };
        let short: String = Spelling::of(&path).to_string().chars().take(100).collect();
        Err(format!("\"{short}\" is not taken as a path: {why}"))
    }
}

impl TryFrom<Spelling> for Rel {
    type Error = String;

    fn try_from(name: Spelling) -> Result<Self, Self::Error> {
        name.bytes()?.try_into()
    }
}

impl TryFrom<&Path> for Rel {
    type Error = String;

    fn try_from(path: &Path) -> Result<Self, Self::Error> {
        path.as_os_str().as_bytes().to_vec().try_into()
    }
}

impl From<Rel> for Spelling {
    fn from(rel: Rel) -> Self {
        Self::of(&rel.0)
    }
}

impl Rel {
    pub fn new(text: &str) -> Result<Self> {
        Self::try_from(text.as_bytes().to_vec()).map_err(|why| anyhow!(why))
    }

    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    pub fn as_path(&self) -> &Path {
        Path::new(OsStr::from_bytes(&self.0))
    }

    /// Where it is in, and its last name.
    fn split(&self) -> (Option<&[u8]>, &[u8]) {
        match self.0.iter().rposition(|byte| *byte == b'/') {
            Some(at) => (Some(&self.0[..at]), &self.0[at + 1..]),
            None => (None, &self.0),
        }
    }

    pub fn names(&self) -> impl Iterator<Item = &[u8]> {
        self.0.split(|byte| *byte == b'/')
    }

    /// The directories on the way, the outermost first.
    pub fn dirs(&self) -> impl Iterator<Item = &[u8]> {
        (0..self.0.len()).filter(|at| self.0[*at] == b'/').map(|at| &self.0[..at])
    }

    /// Whether it is the name of something that is being written, by us.
    pub fn is_part(&self) -> bool {
        self.split().1.starts_with(PART.as_bytes())
    }

    pub fn under(&self, dir: &str) -> Result<Self> {
        Self::try_from([dir.as_bytes(), b"/", &self.0].concat()).map_err(|why| anyhow!(why))
    }

    /// The part below `dir`; none when it is elsewhere, or `dir` itself.
    pub fn below(&self, dir: &[u8]) -> Option<Self> {
        let rest = self.0.strip_prefix(dir)?.strip_prefix(b"/")?;
        Some(Self(rest.to_vec()))
    }
}

impl fmt::Display for Rel {
    /// For people, as `Spelling`: not to be made a path of.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_name(f, &self.0)
    }
}

/// How names begin that a file has before it has its own.
const PART: &str = ".echoes-part-";

/// A file that was opened here.
pub type OpenFile = File;

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

/// What lies somewhere below; of directories, those that have nothing in them, and those that cannot be looked into.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    pub path: Result<Rel, Unusable>,
    pub kind: Kind,
    pub stamp: Stamp,
    /// Permission bits alone, as in `0o644`.
    pub mode: u32,
    /// Bytes that it takes on the disk; fewer than it is long where it has holes.
    pub allocated: u64,
    /// The device, where the same file has more names than this one.
    pub shared: Option<u64>,
}

/// What is there and cannot be had: by its name, or because nobody may look into it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unusable {
    pub name: Spelling,
    pub why: String,
}

impl fmt::Display for Unusable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.name, self.why)
    }
}

#[derive(Debug)]
pub struct Beneath {
    root: OwnedFd,
    path: PathBuf,
    /// Whose is what is made here, and nobody's but theirs and their group's; else, whoever makes it.
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

    /// A directory in here, made if need be, for things that are this user's and group's from now on, and no stranger's to
    /// read. It is never a link.
    pub fn inside(mut self, rel: &Rel, owner: Option<(u32, u32)>) -> Result<Self> {
        self.owner = owner;
        let root = self.dir(Some(&rel.0), true).with_context(|| self.doing("opening", rel))?;
        Ok(Self { root, path: self.path.join(rel.as_path()), owner })
    }

    /// A directory in here, if it is there and no link.
    pub fn there(&self, rel: &Rel) -> Result<Option<Self>> {
        match self.dir(Some(&rel.0), false) {
            Ok(root) => Ok(Some(Self { root, path: self.path.join(rel.as_path()), owner: self.owner })),
            Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP) => Ok(None),
            Err(e) => Err(e).with_context(|| self.doing("opening", rel)),
        }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Permission bits of the directory itself, its user and its group.
    pub fn access(&self) -> Result<(u32, u32, u32)> {
        let stat = fstat(&self.root).with_context(|| format!("looking at {}", self.path.display()))?;
        Ok((stat.st_mode & 0o7777, stat.st_uid, stat.st_gid))
    }

    /// The permission bits of the directory itself are these.
    pub fn set_access(&self, bits: u32) -> Result<()> {
        let doing = || format!("changing the mode of {}", self.path.display());
        fchmod(&self.root, Mode::from_bits_truncate(bits)).with_context(doing)
    }

    fn doing(&self, verb: &str, rel: &Rel) -> String {
        format!("{verb} {}/{rel}", self.path.display())
    }

    /// The directory below, step by step.
    fn dir(&self, below: Option<&[u8]>, made: bool) -> nix::Result<OwnedFd> {
        let mut at = openat(&self.root, ".", DIR, Mode::empty())?;
        for name in below.into_iter().flat_map(|path| path.split(|byte| *byte == b'/')) {
            at = match openat(&at, name, DIR, Mode::empty()) {
                Err(Errno::ENOENT) if made => {
                    let fresh = match mkdirat(&at, name, allowed(0o755, self.owner)) {
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
            seen => seen.with_context(|| self.doing("reading", rel)),
        }
    }

    /// As it is now, for a file that was opened before.
    pub fn stamp(file: &File) -> Result<Stamp> {
        Ok(Stamp::of(&fstat(file)?))
    }

    pub fn meta(&self, rel: &Rel) -> Result<Option<Found>> {
        let (dir, name) = rel.split();
        let look = || found(&self.dir(dir, false)?, name, Ok(rel.clone()));
        match look() {
            Ok(found) => Ok(Some(found)),
            Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP) => Ok(None),
            Err(e) => Err(e).with_context(|| self.doing("looking at", rel)),
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
            Ok(Part { dir, temp, name: name.to_vec(), file: file.into(), owner: self.owner, kept: false })
        };
        begin().with_context(|| self.doing("writing", rel))
    }

    /// To be written on from its byte `at`; whatever came after that goes.
    pub fn append(&self, rel: &Rel, at: u64) -> Result<File> {
        let (dir, name) = rel.split();
        let open = || -> Result<File> {
            let dir = self.dir(dir, true)?;
            let flags =
                OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK;
            let mut file = File::from(openat(&dir, name, flags, allowed(0o644, self.owner))?);
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
        open().with_context(|| self.doing("writing", rel))
    }

    /// A link there that leads to `to`, whatever was there before.
    pub fn link(&self, rel: &Rel, to: &[u8]) -> Result<()> {
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
        link().with_context(|| self.doing("linking", rel))
    }

    pub fn set_mode(&self, rel: &Rel, mode: u32) -> Result<()> {
        let (file, _) = self.read(rel)?.with_context(|| format!("{rel} went away"))?;
        fchmod(&file, allowed(mode, self.owner)).with_context(|| self.doing("changing the mode of", rel))
    }

    /// Everything below; an error when there is more than `most`.
    pub fn walk(&self, most: usize) -> Result<Vec<Found>> {
        let mut all = Vec::new();
        self.walk_each(&mut |found| {
            all.push(found);
            if all.len() > most { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })?;
        ensure!(all.len() <= most, "there are more than {most} files in {}", self.path.display());
        Ok(all)
    }

    /// As `walk`, one after another, in the order of their names, until it is enough.
    pub fn walk_each(&self, each: &mut dyn FnMut(Found) -> ControlFlow<()>) -> Result<()> {
        let root = self.dir(None, false).with_context(|| format!("listing {}", self.path.display()))?;
        let names = names(&root).with_context(|| format!("listing {}", self.path.display()))?;
        // Whoever has seen enough says so by this.
        let _ = walk_in(&root, &[], names, each);
        Ok(())
    }

    /// Remove a file or a link; none there is as good.
    pub fn remove(&self, rel: &Rel) -> Result<()> {
        let (dir, name) = rel.split();
        let remove = || unlinkat(self.dir(dir, false)?, name, UnlinkatFlags::NoRemoveDir);
        match remove() {
            Ok(()) | Err(Errno::ENOENT) => Ok(()),
            Err(e) => Err(e).with_context(|| self.doing("removing", rel)),
        }
    }

    /// Remove what a crash left of files that were being written.
    pub fn sweep(&self) -> Result<()> {
        let mut parts = Vec::new();
        self.walk_each(&mut |found| {
            parts.extend(found.path.ok().filter(Rel::is_part));
            ControlFlow::Continue(())
        })?;
        parts.iter().try_for_each(|path| self.remove(path))
    }

    /// Remove all but these files and links, and the directories they are in. How many things went.
    pub fn prune(&self, kept: &HashSet<&Rel>) -> Result<usize> {
        let dirs: HashSet<&[u8]> = kept.iter().flat_map(|path| path.dirs()).collect();
        let kept: HashSet<&[u8]> = kept.iter().map(|path| path.as_bytes()).collect();
        let prune = || -> nix::Result<usize> {
            let root = self.dir(None, false)?;
            prune(&root, &[], &|path| kept.contains(path), &|path| dirs.contains(path))
        };
        prune().with_context(|| format!("removing what is not wanted in {}", self.path.display()))
    }

    /// All that was written down here is on the disk when this returns.
    pub fn sync(&self) -> Result<()> {
        syncfs(&self.root).with_context(|| format!("syncing {}", self.path.display()))
    }

    /// A directory that is there when this returns.
    pub fn make_dir(&self, rel: &Rel) -> Result<()> {
        self.dir(Some(&rel.0), true).map(drop).with_context(|| self.doing("making", rel))
    }

    /// A second name for a file of here.
    pub fn share(&self, file: &Rel, rel: &Rel) -> Result<()> {
        let ((from, old), (to, new)) = (file.split(), rel.split());
        let share = || -> nix::Result<()> {
            let (from, to) = (self.dir(from, false)?, self.dir(to, true)?);
            let temp = format!("{PART}name-{}", std::process::id());
            match unlinkat(&to, temp.as_str(), UnlinkatFlags::NoRemoveDir) {
                Ok(()) | Err(Errno::ENOENT) => {}
                Err(e) => return Err(e),
            }
            linkat(&from, old, &to, temp.as_str(), AtFlags::empty())?;
            renameat(&to, temp.as_str(), &to, new)?;
            // Where both names were one file already, rename(2) does nothing and leaves the first.
            match unlinkat(&to, temp.as_str(), UnlinkatFlags::NoRemoveDir) {
                Ok(()) | Err(Errno::ENOENT) => Ok(()),
                Err(e) => Err(e),
            }
        };
        share().with_context(|| self.doing("linking", rel))
    }

    /// Make way for `rel`: a file where it needs a directory, or a directory in its place, gets another name, which is
    /// told. None: nothing is in its way.
    pub fn set_aside(&self, rel: &Rel) -> Result<Option<Rel>> {
        let in_the_way = rel.dirs().find_map(|dir| {
            let dir = Rel(dir.to_vec());
            let is_dir = |found: &Found| found.kind == Kind::Dir;
            self.meta(&dir).ok().flatten().filter(|found| !is_dir(found)).map(|_| dir)
        });
        let itself =
            || self.meta(rel).ok().flatten().filter(|found| found.kind == Kind::Dir).map(|_| rel.clone());
        let Some(old) = in_the_way.or_else(itself) else { return Ok(None) };
        for n in 1..=1000 {
            let new = Rel::try_from([&old.0, format!(".earlier-{n}").as_bytes()].concat());
            let new = new.map_err(|why| anyhow!(why))?;
            if self.meta(&new)?.is_none() {
                let ((at, from), (_, to)) = (old.split(), new.split());
                let dir = self.dir(at, false).with_context(|| self.doing("opening", &old))?;
                renameat(&dir, from, &dir, to).with_context(|| self.doing("setting aside", &old))?;
                return Ok(Some(new));
            }
        }
        bail!("{old} has been in the way too often")
    }

    /// Where a file has data, as pieces: where each begins and how long it is. A file system that does not say has one.
    pub fn extents(file: &File, len: u64, most: usize) -> Result<Vec<(u64, u64)>> {
        let mut extents: Vec<(u64, u64)> = Vec::new();
        let mut at = 0;
        while at < len {
            let begins = match lseek(file, i64::try_from(at)?, Whence::SeekData) {
                Ok(begins) => u64::try_from(begins)?,
                // Nothing but a hole to its end.
                Err(Errno::ENXIO) => break,
                Err(Errno::EINVAL) => at,
                Err(e) => return Err(e.into()),
            };
            let ends = match lseek(file, i64::try_from(begins)?, Whence::SeekHole) {
                Ok(ends) if extents.len() + 1 < most => u64::try_from(ends)?.min(len),
                // What is left is taken with its holes.
                _ => len,
            };
            if begins >= len || ends <= begins {
                break;
            }
            extents.push((begins, ends - begins));
            at = ends;
        }
        Ok(extents)
    }
}

/// A file that is being written.
#[derive(Debug)]
pub struct Part {
    dir: OwnedFd,
    temp: String,
    name: Vec<u8>,
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
    /// The next byte comes there; between the last one and that is a hole.
    pub fn seek(&mut self, at: u64) -> Result<()> {
        self.file.seek(std::io::SeekFrom::Start(at))?;
        Ok(())
    }

    /// It has that many bytes.
    pub fn set_len(&mut self, len: u64) -> Result<()> {
        Ok(self.file.set_len(len)?)
    }

    /// What it has so far is on the disk.
    pub fn sync(&self) -> Result<()> {
        Ok(self.file.sync_all()?)
    }

    /// Its names so far are on the disk.
    pub fn sync_dir(&self) -> Result<()> {
        Ok(nix::unistd::fsync(&self.dir)?)
    }

    /// It is whose it will be, and may be read.
    pub fn finish(&self, mode: u32) -> Result<()> {
        if let Some((uid, gid)) = self.owner {
            fchown(&self.file, Some(uid.into()), Some(gid.into()))?;
        }
        Ok(fchmod(&self.file, allowed(mode, self.owner))?)
    }

    /// It has its name.
    pub fn name(&mut self) -> Result<()> {
        renameat(&self.dir, self.temp.as_str(), &self.dir, self.name.as_slice())
            .with_context(|| format!("naming {}", Spelling::of(&self.name)))?;
        self.kept = true;
        Ok(())
    }

    pub fn keep(mut self, mode: u32, on_disk: OnDisk) -> Result<()> {
        self.finish(mode)?;
        if on_disk == OnDisk::Now {
            self.sync()?;
        }
        self.name()?;
        if on_disk == OnDisk::Now {
            self.sync_dir()?;
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

/// What is somebody's is no stranger's.
fn allowed(bits: u32, owner: Option<(u32, u32)>) -> Mode {
    Mode::from_bits_truncate(if owner.is_some() { bits & !0o007 } else { bits })
}

fn is(stat: &FileStat, kind: SFlag) -> bool {
    SFlag::from_bits_truncate(stat.st_mode & SFlag::S_IFMT.bits()) == kind
}

fn joined(prefix: &[u8], name: &[u8]) -> Vec<u8> {
    if prefix.is_empty() { name.to_vec() } else { [prefix, b"/", name].concat() }
}

fn found(dir: &OwnedFd, name: &[u8], path: Result<Rel, Unusable>) -> nix::Result<Found> {
    let stat = fstatat(dir, name, AtFlags::AT_SYMLINK_NOFOLLOW)?;
    let kind = match SFlag::from_bits_truncate(stat.st_mode & SFlag::S_IFMT.bits()) {
        SFlag::S_IFREG => Kind::File,
        SFlag::S_IFDIR => Kind::Dir,
        SFlag::S_IFLNK => Kind::Link(readlinkat(dir, name)?.into()),
        _ => Kind::Other,
    };
    let shared = (kind == Kind::File && stat.st_nlink > 1).then_some(stat.st_dev);
    let allocated = u64::try_from(stat.st_blocks).unwrap_or_default().saturating_mul(512);
    let mode = stat.st_mode & 0o7777;
    Ok(Found { path, kind, stamp: Stamp::of(&stat), mode, allocated, shared })
}

/// Sorted. Never `.` and `..`.
fn names(dir: &OwnedFd) -> nix::Result<Vec<Vec<u8>>> {
    // A directory of its own: two readers of one share their place in it.
    let mut names = Vec::new();
    for entry in Dir::from_fd(openat(dir, ".", DIR, Mode::empty())?)?.iter() {
        let name = entry?.file_name().to_bytes().to_vec();
        if name != b"." && name != b".." {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}

fn walk_in(
    dir: &OwnedFd,
    prefix: &[u8],
    names_here: Vec<Vec<u8>>,
    each: &mut dyn FnMut(Found) -> ControlFlow<()>,
) -> ControlFlow<()> {
    for name in names_here {
        let path = joined(prefix, &name);
        let spelled = || Spelling::of(&path);
        let rel = Rel::try_from(path.clone()).map_err(|why| Unusable { name: spelled(), why });
        let seen = match found(dir, &name, rel) {
            Ok(seen) => seen,
            // It has gone since its name was read.
            Err(Errno::ENOENT) => continue,
            // A directory that may be listed and not entered has only names.
            Err(e) => {
                let path = Err(Unusable { name: spelled(), why: e.to_string() });
                let stamp = Stamp { len: 0, nanos: 0, inode: 0 };
                let nothing = Found { path, kind: Kind::Other, stamp, mode: 0, allocated: 0, shared: None };
                each(nothing)?;
                continue;
            }
        };
        if seen.kind != Kind::Dir || seen.path.is_err() {
            each(seen)?;
            continue;
        }
        let listed =
            openat(dir, name.as_slice(), DIR, Mode::empty()).and_then(|below| Ok((names(&below)?, below)));
        match listed {
            Ok((inside, _)) if inside.is_empty() => each(seen)?,
            Ok((inside, below)) => walk_in(&below, &path, inside, each)?,
            // It has gone, or is something else by now.
            Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP) => {}
            Err(e) => each(Found { path: Err(Unusable { name: spelled(), why: e.to_string() }), ..seen })?,
        }
    }
    ControlFlow::Continue(())
}

fn prune(
    dir: &OwnedFd,
    prefix: &[u8],
    file: &dyn Fn(&[u8]) -> bool,
    is_kept: &dyn Fn(&[u8]) -> bool,
) -> nix::Result<usize> {
    let mut gone = 0;
    for name in names(dir)? {
        let (path, name) = (joined(prefix, &name), name.as_slice());
        let is_dir = is(&fstatat(dir, name, AtFlags::AT_SYMLINK_NOFOLLOW)?, SFlag::S_IFDIR);
        if is_dir {
            let below = openat(dir, name, DIR, Mode::empty())?;
            if is_kept(&path) {
                gone += prune(&below, &path, file, is_kept)?;
            } else {
                gone += 1 + prune(&below, &[], &|_| false, &|_| false)?;
                unlinkat(dir, name, UnlinkatFlags::RemoveDir)?;
            }
        } else if !file(&path) {
            unlinkat(dir, name, UnlinkatFlags::NoRemoveDir)?;
            gone += 1;
        }
    }
    Ok(gone)
}

/// Where a link in a tree leads must be in the tree, whatever other links there are: `..` comes first alone, for after
/// a name, which may be a link, it leads anywhere. Pure.
pub fn stays_inside(link: &Rel, to: &[u8]) -> Result<()> {
    let mut depth = link.dirs().count();
    let mut named = false;
    ensure!(!to.starts_with(b"/"), "it is absolute");
    for name in to.split(|byte| *byte == b'/') {
        match name {
            b"" | b"." => {}
            b".." if named => bail!("it goes down and up again"),
            b".." => depth = depth.checked_sub(1).context("it leads out")?,
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
        for good in
            ["a", "a/b", "..a", "a..", "...", "ä b/c", "-rf", ".hidden", "a\nb", "a\x1b[2J", "\u{9b}31m"]
        {
            assert_eq!(rel(good).as_bytes(), good.as_bytes());
        }
        let long = "a".repeat(256);
        let far = ("a".repeat(250) + "/").repeat(17) + "a";
        let deep = "a/".repeat(256) + "a";
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
            &long,
            &far,
            &deep,
        ] {
            assert!(Rel::new(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_name_is_kept_by_its_bytes_and_shown_so_that_no_cursor_moves() {
        for (bytes, json, shown) in [
            (&b"best.pt"[..], r#""best.pt""#, "best.pt"),
            (b"a\nb", r#""a\nb""#, r"a\nb"),
            (b"d/caf\xe9", r#"{"bytes":"ZC9jYWbp"}"#, r"d/caf\xE9"),
            ("\u{202e}x".as_bytes(), "\"\u{202e}x\"", r"\u{202e}x"),
        ] {
            let rel = Rel::try_from(bytes.to_vec()).unwrap();
            assert_eq!(serde_json::to_string(&rel).unwrap(), json);
            assert_eq!(serde_json::from_str::<Rel>(json).unwrap(), rel);
            assert_eq!(
                (rel.to_string(), Spelling::of(bytes).to_string()),
                (shown.to_owned(), shown.to_owned())
            );
        }
        for bad in [r#"{"bytes":"Li4="}"#, r#"{"bytes":"*"}"#, r#""..""#, "7"] {
            assert!(serde_json::from_str::<Rel>(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn what_cannot_be_looked_into_is_found_and_what_is_empty_too() {
        let (dir, beneath) = world();
        let ours = dir.path().join("ours");
        for name in ["empty", "full"] {
            fs::create_dir(ours.join(name)).unwrap();
        }
        fs::write(ours.join("full/x"), "x").unwrap();
        fs::write(ours.join("full.too"), "").unwrap();
        let found = beneath.walk(100).unwrap();
        let names: Vec<_> = found.iter().map(|found| found.path.as_ref().unwrap().to_string()).collect();
        assert_eq!(names, ["empty", "file", "full/x", "full.too", "way"]);
        assert_eq!(found[0].kind, Kind::Dir);
    }

    #[test]
    fn whatever_is_in_the_way_of_a_file_gets_another_name() {
        let (dir, beneath) = world();
        let ours = dir.path().join("ours");
        fs::write(ours.join("a"), "file").unwrap();
        fs::create_dir_all(ours.join("b/c")).unwrap();
        for (rel, aside) in [("a/x/y", "a.earlier-1"), ("b", "b.earlier-1"), ("way/x", "way.earlier-1")] {
            let moved = beneath.set_aside(&super::tests::rel(rel)).unwrap().map(|rel| rel.to_string());
            assert_eq!(moved.as_deref(), Some(aside));
        }
        assert_eq!(beneath.set_aside(&rel("new/x")).unwrap(), None);
        assert_eq!(fs::read(ours.join("a.earlier-1")).unwrap(), b"file");
        assert!(ours.join("b.earlier-1/c").is_dir());
        assert_eq!(fs::read_dir(dir.path().join("else")).unwrap().count(), 1);
    }

    #[test]
    fn data_is_found_between_holes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("sparse");
        let mut file = File::create(&path).unwrap();
        file.set_len(1 << 30).unwrap();
        assert_eq!(Beneath::extents(&file, 1 << 30, 10).unwrap(), []);
        for at in [0, 64 << 20] {
            file.seek(std::io::SeekFrom::Start(at)).unwrap();
            file.write_all(&[1; 4096]).unwrap();
        }
        let extents = Beneath::extents(&File::open(&path).unwrap(), 1 << 30, 10).unwrap();
        assert_eq!(extents, [(0, 4096), (64 << 20, 4096)]);
        let few = Beneath::extents(&File::open(&path).unwrap(), 1 << 30, 2).unwrap();
        assert_eq!(few, [(0, 4096), (64 << 20, (1 << 30) - (64 << 20))]);
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
            assert_eq!(stays_inside(&rel(link), to.as_bytes()).is_ok(), inside, "{link} -> {to}");
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
        assert!(beneath.link(&rel("way/x"), b"y").is_err());
        // A link in the place of a file is replaced, not followed.
        let mut part = beneath.write(&rel("file")).unwrap();
        part.write_all(b"ours").unwrap();
        part.keep(0o644, OnDisk::Now).unwrap();
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
        part.keep(0o644, OnDisk::Now).unwrap();
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
