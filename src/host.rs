//! The only door to files and processes. Everything else in this crate is forbidden, by `clippy.toml`, to
//! open a file or start a process; so what the appliance can do to a machine is exactly what this file can
//! do.
//!
//! A host is rooted: paths are written as the machine will see them (`/etc/nginx/…`) and land under `root`.
//! With `/` that is this machine; with a directory, an image of one.

#![allow(clippy::disallowed_methods, clippy::disallowed_types)]

pub mod beneath;
mod ledger;
pub mod mounts;
pub mod person;
pub mod process;
mod regular;

#[cfg(test)]
pub use ledger::fuzzed;
pub use ledger::{Busy, LONGEST, Ledger, Lines};
pub use regular::{HASHES, PROGRAM, SETTINGS};

use anyhow::{Context as _, Result, bail, ensure};
use std::{
    fmt, fs,
    io::{BufRead as _, BufReader, ErrorKind, Read as _, Write as _},
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    path::{Component, Path, PathBuf},
    process::{Command, ExitStatus, Stdio},
};

pub struct Host {
    root: PathBuf,
    exec: Box<dyn Exec + Send + Sync>,
}

/// How a command is carried out: for real, or by a test.
pub trait Exec {
    /// Run to the end. Each line of standard output and error is handed to `say` as it comes.
    fn exec(&self, cmd: &Cmd, say: &mut dyn FnMut(&str)) -> Result<Output>;
}

/// What a command answered.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Output {
    /// Exit status; 128 + n when ended by signal n, as a shell would say.
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Output {
    pub fn ok(&self) -> bool {
        self.code == 0
    }
}

/// A command as plain data, so that it can be shown, compared and rewritten before it is run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cmd {
    pub program: String,
    pub args: Vec<String>,
    pub env: Vec<(String, String)>,
    /// Where secrets go: never in `args`, which every user can read.
    pub stdin: Vec<u8>,
}

impl Cmd {
    pub fn new(program: &str, args: impl IntoIterator<Item = impl Into<String>>) -> Self {
        let args = args.into_iter().map(Into::into).collect();
        Self { program: program.into(), args, env: Vec::new(), stdin: Vec::new() }
    }

    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.env.push((name.into(), value.into()));
        self
    }

    pub fn stdin(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.stdin = bytes.into();
        self
    }
}

impl fmt::Display for Cmd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.program)?;
        self.args.iter().try_for_each(|arg| write!(f, " {arg}"))
    }
}

/// What is at a path, links not followed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Meta {
    pub kind: Kind,
    /// Permission bits alone, as in `0o644`.
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    /// Bytes.
    pub len: u64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    File,
    Dir,
    Link(PathBuf),
    Other,
}

impl Host {
    pub fn new(root: impl Into<PathBuf>, exec: impl Exec + Send + Sync + 'static) -> Self {
        Self { root: root.into(), exec: Box::new(exec) }
    }

    /// The SHA-256 of this very program, in hexadecimal.
    pub fn own_hash() -> Result<String> {
        let own = fs::read("/proc/self/exe").context("reading this program")?;
        Ok(crate::hash::sha256(own))
    }

    /// Copy this very program to `path`, executable by all.
    pub fn write_self(&self, path: &Path) -> Result<()> {
        self.write(path, 0o755, &fs::read("/proc/self/exe").context("reading this program")?)
    }

    /// Whether this is a running machine, rather than a directory that will become one.
    pub fn is_live(&self) -> bool {
        self.root == Path::new("/")
    }

    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Where the machine's `path` is for us.
    pub fn path(&self, path: &Path) -> PathBuf {
        self.root.join(path.strip_prefix("/").unwrap_or(path))
    }

    /// At most `most` bytes of the file from `from` on, for files that grow. None: there is no such file.
    pub fn read_part(&self, path: &Path, from: u64, most: u64) -> Result<Option<Vec<u8>>> {
        use std::io::Seek as _;
        let read = |mut file: fs::File| -> std::io::Result<Vec<u8>> {
            file.seek(std::io::SeekFrom::Start(from))?;
            let mut bytes = Vec::new();
            file.take(most).read_to_end(&mut bytes)?;
            Ok(bytes)
        };
        let doing = || format!("reading {}", path.display());
        let file = self.open_file(path, fs::OpenOptions::new().read(true)).with_context(doing)?;
        file.map(read).transpose().with_context(doing)
    }

    pub fn meta(&self, path: &Path) -> Result<Option<Meta>> {
        let full = self.path(path);
        let meta =
            absent(fs::symlink_metadata(&full)).with_context(|| format!("looking at {}", path.display()))?;
        let Some(meta) = meta else { return Ok(None) };
        let kind = match meta.file_type() {
            t if t.is_file() => Kind::File,
            t if t.is_dir() => Kind::Dir,
            t if t.is_symlink() => Kind::Link(fs::read_link(&full)?),
            _ => Kind::Other,
        };
        let (mode, uid, gid, len) = (meta.mode() & 0o7777, meta.uid(), meta.gid(), meta.len());
        Ok(Some(Meta { kind, mode, uid, gid, len }))
    }

    pub fn exists(&self, path: &Path) -> Result<bool> {
        Ok(self.meta(path)?.is_some())
    }

    /// Whether a file system is mounted right there.
    pub fn is_mount_point(&self, path: &Path) -> Result<bool> {
        let table = self.read_text(Path::new("/proc/self/mountinfo"))?.unwrap_or_default();
        Ok(table.lines().any(|line| line.split(' ').nth(4) == path.to_str()))
    }

    /// The process that holds a POSIX lock on the file, as dpkg and apt take it: fcntl(2), F_GETLK. Process 0 is one
    /// that we cannot see.
    pub fn lock_holder(&self, path: &Path) -> Result<Option<i32>> {
        use nix::{
            fcntl::{FcntlArg, fcntl},
            libc,
        };
        let doing = || format!("asking who holds {}", path.display());
        let file = self.open_file(path, fs::OpenOptions::new().read(true)).with_context(doing)?;
        let Some(file) = file else { return Ok(None) };
        let (kind, from) = (libc::F_WRLCK as libc::c_short, libc::SEEK_SET as libc::c_short);
        let mut lock = libc::flock { l_type: kind, l_whence: from, l_start: 0, l_len: 0, l_pid: 0 };
        fcntl(&file, FcntlArg::F_GETLK(&mut lock)).with_context(doing)?;
        Ok((i32::from(lock.l_type) != libc::F_UNLCK).then_some(lock.l_pid))
    }

    /// The names in a directory, sorted; none if there is no such directory.
    pub fn list(&self, dir: &Path) -> Result<Vec<String>> {
        let entries =
            absent(fs::read_dir(self.path(dir))).with_context(|| format!("listing {}", dir.display()))?;
        let mut names = Vec::new();
        for entry in entries.into_iter().flatten() {
            names.push(entry?.file_name().to_string_lossy().into_owned());
        }
        names.sort();
        Ok(names)
    }

    /// Replace the file in one step: a reader sees the old contents or the new, never half. Belongs to
    /// whoever runs us.
    pub fn write(&self, path: &Path, mode: u32, bytes: &[u8]) -> Result<()> {
        self.write_owned(path, mode, None, bytes)
    }

    /// As `write`, for a file of another user or group. The owner and mode are set before the name appears,
    /// so that a secret is never briefly readable. An owner can be given only by root.
    pub fn write_owned(&self, path: &Path, mode: u32, owner: Option<(u32, u32)>, bytes: &[u8]) -> Result<()> {
        let to = self.path(path);
        let dir = to.parent().context("a file needs a directory")?;
        let temp = dir.join(format!(".{}.new", to.file_name().unwrap_or_default().display()));
        let write = || -> std::io::Result<()> {
            fs::create_dir_all(dir)?;
            // Whatever a crash left here may have a wider mode than ours.
            let _ = fs::remove_file(&temp);
            let mut file = fs::File::create_new(&temp)?;
            file.set_permissions(fs::Permissions::from_mode(mode))?;
            if let Some((uid, gid)) = owner {
                std::os::unix::fs::fchown(&file, Some(uid), Some(gid))?;
                // chown clears the set-id bits.
                file.set_permissions(fs::Permissions::from_mode(mode))?;
            }
            file.write_all(bytes)?;
            file.sync_all()?;
            fs::rename(&temp, &to)?;
            fs::File::open(dir)?.sync_all()
        };
        write()
            .inspect_err(|_| drop(fs::remove_file(&temp)))
            .with_context(|| format!("writing {}", path.display()))
    }

    /// Point the link at `target`, replacing an older link in one step.
    pub fn link(&self, path: &Path, target: &Path) -> Result<()> {
        let to = self.path(path);
        let dir = to.parent().context("a link needs a directory")?;
        let temp = dir.join(format!(".{}.new", to.file_name().unwrap_or_default().display()));
        let link = || -> std::io::Result<()> {
            fs::create_dir_all(dir)?;
            let _ = fs::remove_file(&temp);
            std::os::unix::fs::symlink(target, &temp)?;
            fs::rename(&temp, &to)?;
            fs::File::open(dir)?.sync_all()
        };
        link().with_context(|| format!("linking {} to {}", path.display(), target.display()))
    }

    /// Rename within one file system; replaces what is there.
    pub fn rename(&self, from: &Path, to: &Path) -> Result<()> {
        fs::rename(self.path(from), self.path(to))
            .with_context(|| format!("renaming {} to {}", from.display(), to.display()))
    }

    /// Make the directory and those above it.
    pub fn make_dir(&self, path: &Path) -> Result<()> {
        fs::create_dir_all(self.path(path)).with_context(|| format!("making {}", path.display()))
    }

    /// From now on it is this user's; a link itself, not where it leads.
    pub fn give_to(&self, path: &Path, uid: u32, gid: u32) -> Result<()> {
        std::os::unix::fs::lchown(self.path(path), Some(uid), Some(gid))
            .with_context(|| format!("giving {} to user {uid}", path.display()))
    }

    /// Nobody but its owner may look inside.
    pub fn shut(&self, path: &Path) -> Result<()> {
        fs::set_permissions(self.path(path), fs::Permissions::from_mode(0o700))
            .with_context(|| format!("changing the mode of {}", path.display()))
    }

    /// Remove a file or a link; none there is as good.
    pub fn remove(&self, path: &Path) -> Result<()> {
        absent(fs::remove_file(self.path(path))).with_context(|| format!("removing {}", path.display()))?;
        Ok(())
    }

    /// Remove the directory if it is empty. Says whether it is gone.
    pub fn remove_dir(&self, path: &Path) -> Result<bool> {
        match fs::remove_dir(self.path(path)) {
            Ok(()) => Ok(true),
            Err(e) if e.kind() == ErrorKind::NotFound => Ok(true),
            Err(e) if matches!(e.kind(), ErrorKind::DirectoryNotEmpty | ErrorKind::ResourceBusy) => Ok(false),
            Err(e) => Err(e).with_context(|| format!("removing {}", path.display())),
        }
    }

    /// Where it really is, through all links.
    pub fn real_path(&self, path: &Path) -> Result<PathBuf> {
        fs::canonicalize(self.path(path)).with_context(|| format!("looking at {}", path.display()))
    }

    /// Remove a directory and all below it. Refuses to start when a file system is mounted in there: what is
    /// on the far side of a mount is never ours to remove. So does a path that is empty, the root, or not what it seems,
    /// as one that was made of a variable with nothing in it.
    pub fn remove_tree(&self, path: &Path) -> Result<()> {
        let names = path.components().filter(|part| matches!(part, Component::Normal(_))).count();
        let is_plain = path.is_absolute() && names > 0 && names + 1 == path.components().count();
        ensure!(is_plain, "{path:?} is not a path that is removed with all below it");
        let full = self.path(path);
        let mounts = fs::read_to_string("/proc/self/mountinfo").context("reading the mount table")?;
        if let Some(at) =
            mounts.lines().filter_map(|l| l.split(' ').nth(4)).find(|at| Path::new(at).starts_with(&full))
        {
            bail!("{at} is a mount point: not removing {}", path.display());
        }
        let mut removed = absent(fs::remove_dir_all(&full));
        // A directory of ours that somebody has shut. Root needs no way in, and goes no way that others make.
        if removed.as_ref().is_err_and(|e| e.kind() == ErrorKind::PermissionDenied)
            && !nix::unistd::geteuid().is_root()
        {
            open_up(&full);
            removed = absent(fs::remove_dir_all(&full));
        }
        removed.with_context(|| format!("removing {}", path.display()))?;
        Ok(())
    }

    /// The number of a group, by this root's own `/etc/group`.
    pub fn gid(&self, group: &str) -> Result<Option<u32>> {
        self.id("/etc/group", group)
    }

    /// The number of a user, by this root's own `/etc/passwd`.
    pub fn uid(&self, user: &str) -> Result<Option<u32>> {
        self.id("/etc/passwd", user)
    }

    fn id(&self, file: &str, name: &str) -> Result<Option<u32>> {
        let text = self.read_text(Path::new(file))?.unwrap_or_default();
        let mut rows = text.lines().map(|line| line.split(':').collect::<Vec<_>>());
        let row = rows.find(|row| row.first() == Some(&name));
        row.and_then(|row| row.get(2).map(|id| id.parse()))
            .transpose()
            .with_context(|| format!("reading {file}"))
    }

    /// Free and total bytes of the file system that holds `path`.
    pub fn room(&self, path: &Path) -> Result<(u64, u64)> {
        let at = self.path(path);
        let fs = nix::sys::statvfs::statvfs(&at).with_context(|| format!("looking at {}", path.display()))?;
        let block = fs.fragment_size();
        Ok((fs.blocks_available() * block, fs.blocks() * block))
    }

    /// Run it; anything but success is an error that carries the end of what it said.
    pub fn run(&self, cmd: &Cmd) -> Result<String> {
        self.run_saying(cmd, &mut |_| {})
    }

    /// As `run`, telling each line as it comes: for the long ones.
    pub fn run_saying(&self, cmd: &Cmd, say: &mut dyn FnMut(&str)) -> Result<String> {
        let doing = || format!("running `{cmd}`");
        let out = self.exec.exec(cmd, say).with_context(doing)?;
        if !out.ok() {
            let said = if out.stderr.trim().is_empty() { &out.stdout } else { &out.stderr };
            return Err(anyhow::anyhow!("exit status {}: {}", out.code, tail(said))).with_context(doing);
        }
        Ok(out.stdout)
    }

    /// Run it for its answer, whatever that is.
    pub fn ask(&self, cmd: &Cmd) -> Result<Output> {
        self.exec.exec(cmd, &mut |_| {}).with_context(|| format!("running `{cmd}`"))
    }
}

/// A path without `.` and `..`, as if no name on the way were a link. Pure.
pub fn without_dots(path: &Path) -> PathBuf {
    let mut out = PathBuf::new();
    for part in path.components() {
        match part {
            Component::ParentDir => drop(out.pop()),
            Component::CurDir => {}
            part => out.push(part),
        }
    }
    out
}

/// Every directory from there on down may be listed and changed by its owner, where that is us.
fn open_up(dir: &Path) {
    use std::os::unix::fs::PermissionsExt as _;
    // What stays shut is seen by who removes it.
    let _ = fs::set_permissions(dir, fs::Permissions::from_mode(0o700));
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            open_up(&entry.path());
        }
    }
}

/// The last kilobyte: enough for the reason, short enough to read.
fn tail(text: &str) -> &str {
    let text = text.trim();
    let from = text.len().saturating_sub(1024);
    (from..=text.len()).find_map(|at| text.get(at..)).unwrap_or_default()
}

/// Not there is an answer, not an error.
fn absent<T>(result: std::io::Result<T>) -> std::io::Result<Option<T>> {
    match result {
        Ok(it) => Ok(Some(it)),
        Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => Ok(None),
        Err(e) => Err(e),
    }
}

/// The person at the keyboard.
pub struct Terminal;

impl Terminal {
    /// A line typed without being shown. Says so when there is no terminal.
    pub fn secret(prompt: &str) -> Result<String> {
        use nix::sys::termios::{LocalFlags, SetArg, tcgetattr, tcsetattr};
        let mut tty =
            fs::OpenOptions::new().read(true).write(true).open("/dev/tty").context("opening the terminal")?;
        let before = tcgetattr(&tty)?;
        let mut silent = before.clone();
        silent.local_flags.remove(LocalFlags::ECHO);
        tty.write_all(prompt.as_bytes())?;
        tcsetattr(&tty, SetArg::TCSAFLUSH, &silent)?;
        let mut line = String::new();
        let read = BufReader::new(&tty).read_line(&mut line);
        tcsetattr(&tty, SetArg::TCSAFLUSH, &before)?;
        tty.write_all(b"\n")?;
        read.context("reading from the terminal")?;
        Ok(line.trim_end_matches(['\n', '\r']).to_owned())
    }
}

/// Runs commands on this machine, in the C locale, so that what they answer reads the same everywhere.
pub struct System;

impl System {
    /// A variable of our own environment: for the few that are not settings, such as NO_COLOR.
    pub fn environment(name: &str) -> Option<String> {
        std::env::var(name).ok()
    }
}

/// The command as the system takes it: in the C locale, and on three pipes.
fn piped(cmd: &Cmd) -> Command {
    let mut command = Command::new(&cmd.program);
    command.args(&cmd.args).env("LC_ALL", "C.UTF-8").envs(cmd.env.iter().map(|(k, v)| (k, v)));
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// As a shell says it: 128 + n when ended by signal n.
fn code(status: ExitStatus) -> i32 {
    use std::os::unix::process::ExitStatusExt as _;
    status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or_default())
}

impl Exec for System {
    fn exec(&self, cmd: &Cmd, say: &mut dyn FnMut(&str)) -> Result<Output> {
        let mut child = piped(cmd).spawn()?;
        let (mut stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
        let input = cmd.stdin.clone();
        let feed = std::thread::spawn(move || {
            // A child that does not want its input may close it: its exit status is what counts.
            stdin.as_mut().map(|pipe| pipe.write_all(&input))
        });
        let (tell, told) = std::sync::mpsc::channel();
        let drains = [
            stdout.map(|pipe| drain(pipe, true, tell.clone())),
            stderr.map(|pipe| drain(pipe, false, tell.clone())),
        ];
        drop(tell);
        let mut out = Output::default();
        for (is_stdout, line) in told {
            say(line.trim_end());
            if is_stdout { &mut out.stdout } else { &mut out.stderr }.push_str(&line);
        }
        for drain in drains.into_iter().flatten() {
            let _ = drain.join();
        }
        let status = child.wait()?;
        let _ = feed.join();
        out.code = code(status);
        Ok(out)
    }
}

fn drain(
    pipe: impl std::io::Read + Send + 'static,
    is_stdout: bool,
    tell: std::sync::mpsc::Sender<(bool, String)>,
) -> std::thread::JoinHandle<()> {
    std::thread::spawn(move || {
        let mut pipe = BufReader::new(pipe);
        let mut line = Vec::new();
        while pipe.read_until(b'\n', &mut line).is_ok_and(|n| n > 0) {
            let _ = tell.send((is_stdout, String::from_utf8_lossy(&line).into_owned()));
            line.clear();
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_holds_a_lock_is_known() {
        let dir = tempfile::tempdir().unwrap();
        let host = Host::new(dir.path(), System);
        let path = Path::new("/lock");
        host.write(path, 0o600, b"").unwrap();
        assert_eq!(host.lock_holder(path).unwrap(), None);
        let hold = "import fcntl, sys; f = open(sys.argv[1], 'w'); fcntl.lockf(f, fcntl.LOCK_EX); print(flush=True); input()";
        let mut other = Command::new("python3")
            .args(["-c", hold])
            .arg(host.path(path))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut ready = [0];
        other.stdout.as_mut().unwrap().read_exact(&mut ready).unwrap();
        assert_eq!(host.lock_holder(path).unwrap(), Some(other.id() as i32));
        drop(other.stdin.take());
        other.wait().unwrap();
        assert_eq!(host.lock_holder(path).unwrap(), None);
    }

    #[test]
    fn a_command_is_heard_on_both_streams_and_fed_its_input() {
        let host = Host::new("/", System);
        let mut heard = Vec::new();
        let cmd = Cmd::new("sh", ["-c", "cat; echo two >&2"]).stdin("one\n");
        let out = host.run_saying(&cmd, &mut |line| heard.push(line.to_owned())).unwrap();
        heard.sort();
        assert_eq!((out.as_str(), heard), ("one\n", vec!["one".to_owned(), "two".to_owned()]));
    }

    #[test]
    fn a_failed_command_says_what_it_answered() {
        let err =
            Host::new("/", System).run(&Cmd::new("sh", ["-c", "echo no such >&2; exit 3"])).unwrap_err();
        assert_eq!(format!("{err:#}"), "running `sh -c echo no such >&2; exit 3`: exit status 3: no such");
    }

    #[test]
    fn a_tree_is_removed_only_where_its_path_says_where_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let host = Host::new(dir.path(), System);
        host.write(Path::new("/a/b"), 0o600, b"").unwrap();
        for bad in ["", "/", "a", ".", "..", "/..", "/a/..", "//"] {
            assert!(host.remove_tree(Path::new(bad)).is_err(), "{bad:?}");
        }
        assert!(host.exists(Path::new("/a/b")).unwrap());
        host.remove_tree(Path::new("/a/")).unwrap();
        assert!(!host.exists(Path::new("/a")).unwrap());
    }

    #[test]
    fn a_file_is_replaced_whole_with_its_mode() {
        let dir = tempfile::tempdir().unwrap();
        let host = Host::new(dir.path(), System);
        let path = Path::new("/etc/a/b");
        host.write(path, 0o600, b"x").unwrap();
        host.write(path, 0o640, b"y").unwrap();
        let meta = host.meta(path).unwrap().unwrap();
        assert_eq!((meta.kind, meta.mode, meta.len), (Kind::File, 0o640, 1));
        assert_eq!(host.list(Path::new("/etc/a")).unwrap(), ["b"]);
    }
}
