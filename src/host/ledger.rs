//! A file of whole lines in one process's hands, and who that is.
//!
//! The lock is flock(2)'s. It goes with the open file and not with the process: a child between fork and exec still has
//! it, whatever became of its parent, so that a kill may leave it behind for a moment.

use super::{Host, absent};
use crate::patience::Patience;
use anyhow::{Context as _, Result};
use std::{
    fmt,
    fs::{self, TryLockError},
    io::{self, BufRead as _, BufReader, ErrorKind, Read, Seek as _, SeekFrom, Write as _},
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    time::Duration,
};

/// How long a dead process's children may take to become other programs; milliseconds, unless every core is busy.
const LEFT_BEHIND: Patience =
    Patience { at_most: Duration::from_secs(2), between: Duration::from_millis(10) };

/// Another process of ours is at work there.
#[derive(Debug)]
pub struct Busy {
    path: PathBuf,
    /// None: nobody asked who, or it is not for us to see.
    pub holder: Option<Holder>,
}

/// A process that holds a lock.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holder {
    pub pid: u32,
    /// As it was started.
    pub command: String,
    /// Whether it took the lock itself, rather than being left with it.
    took_it: bool,
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "process {}, `{}`", self.pid, self.command)
    }
}

impl fmt::Display for Busy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} is in use by another echoes-appliance", self.path.display())?;
        self.holder.iter().try_for_each(|holder| write!(f, ": {holder}"))
    }
}

impl std::error::Error for Busy {}

/// The longest line, with its newline. The longest command line that Linux takes is two MiB, and six times that with each
/// of its bytes escaped; what is longer is no line of ours, and is not taken into memory.
pub const LONGEST: u64 = 16 << 20;

/// The whole lines of a file, from its beginning, one of them in memory at a time.
pub struct Lines<R> {
    from: BufReader<R>,
    line: Vec<u8>,
    end: u64,
}

impl<R: Read> Lines<R> {
    pub fn new(from: R) -> Self {
        Self { from: BufReader::with_capacity(64 << 10, from), line: Vec::new(), end: 0 }
    }

    /// The next one, as bytes, without its newline. None: whatever is left has no newline and was cut short by a crash,
    /// perhaps in the middle of a character; since acting comes after writing, nobody acted on it. An error of the kind
    /// `InvalidData` is a line that is too long.
    pub fn next_line(&mut self) -> io::Result<Option<&[u8]>> {
        self.line.clear();
        let n = (&mut self.from).take(LONGEST + 1).read_until(b'\n', &mut self.line)? as u64;
        if n > LONGEST {
            let words = format!("it is longer than {} MiB", LONGEST >> 20);
            return Err(io::Error::new(ErrorKind::InvalidData, words));
        }
        if self.line.pop_if(|last| *last == b'\n').is_none() {
            return Ok(None);
        }
        self.end += n;
        Ok(Some(&self.line))
    }

    /// Where the last line that was handed out ends, in bytes from the beginning of the file.
    pub fn end(&self) -> u64 {
        self.end
    }
}

/// A locked file of whole lines.
pub struct Ledger {
    file: fs::File,
    /// Where a write began that failed and could not be taken back.
    torn: Option<u64>,
}

impl Ledger {
    /// The lines so far.
    pub fn lines(&self) -> io::Result<Lines<&fs::File>> {
        (&self.file).seek(SeekFrom::Start(0))?;
        Ok(Lines::new(&self.file))
    }

    /// Drop what is beyond so many bytes: no whole line.
    pub fn cut(&self, end: u64) -> io::Result<()> {
        if self.file.metadata()?.len() > end { self.file.set_len(end) } else { Ok(()) }
    }

    /// The lines, which bring their newlines, are on disk when this returns. When it fails, on a full disk say, none of
    /// them is: the next line would go on where half of one was left, and no reader could make anything of the two.
    pub fn append(&mut self, lines: &[u8]) -> io::Result<()> {
        self.mend()?;
        self.torn = Some(self.file.metadata()?.len());
        if let Err(error) = self.file.write_all(lines).and_then(|()| self.file.sync_data()) {
            // Where this fails too, it is tried again before the next line.
            let _ = self.mend();
            return Err(error);
        }
        self.torn = None;
        Ok(())
    }

    fn mend(&mut self) -> io::Result<()> {
        if let Some(end) = self.torn {
            self.file.set_len(end)?;
            self.torn = None;
        }
        Ok(())
    }
}

impl Drop for Ledger {
    /// Closing is not enough: a child between fork and exec still holds a copy of the lock.
    fn drop(&mut self) {
        let _ = self.file.unlock();
    }
}

impl Host {
    /// Open for appending, alone: a second process is told so rather than made to wait, and not by whom. Only its owner
    /// may read a new one: from the hash of a file with a password in it a weak password can be guessed.
    pub fn ledger(&self, path: &Path) -> Result<Ledger> {
        let doing = || format!("opening {}", path.display());
        fs::create_dir_all(self.path(path.parent().unwrap_or(path))).with_context(doing)?;
        let mut options = fs::OpenOptions::new();
        options.read(true).append(true).create(true).mode(0o600);
        let file = self.open_file(path, &mut options).with_context(doing)?.with_context(doing)?;
        match file.try_lock() {
            Ok(()) => Ok(Ledger { file, torn: None }),
            Err(TryLockError::WouldBlock) => Err(Busy { path: path.into(), holder: None }.into()),
            Err(TryLockError::Error(e)) => Err(e).with_context(doing),
        }
    }

    /// The lines of a file that others may hold, and add to meanwhile; none when there is no such file.
    pub fn lines(&self, path: &Path) -> Result<Option<Lines<fs::File>>> {
        let doing = || format!("reading {}", path.display());
        let file = self.open_file(path, fs::OpenOptions::new().read(true)).with_context(doing)?;
        Ok(file.map(Lines::new))
    }

    /// Add what a file has from there on to another one, which only its owner may read; on disk when this returns.
    pub fn copy_from(&self, path: &Path, at: u64, to: &Path) -> Result<()> {
        let copy = || -> Result<()> {
            let mut from =
                self.open_file(path, fs::OpenOptions::new().read(true))?.context("there is no such file")?;
            from.seek(SeekFrom::Start(at))?;
            let mut options = fs::OpenOptions::new();
            options.append(true).create(true).mode(0o600);
            let mut to = self.open_file(to, &mut options)?.context("there is no such directory")?;
            io::copy(&mut from, &mut to)?;
            Ok(to.sync_all()?)
        };
        copy().with_context(|| format!("copying what is in {} to {}", path.display(), to.display()))
    }

    /// As `ledger`, for who needs it: asked again for so long, and then told who holds it. What only a killed process has
    /// left behind is waited for beyond that.
    pub fn ledger_within(&self, path: &Path, patience: Patience) -> Result<Ledger> {
        let is_busy = |opened: &Result<Ledger>| opened.as_ref().is_err_and(|e| e.is::<Busy>());
        let mut opened = patience.until(|| self.ledger(path));
        if !is_busy(&opened) {
            return opened;
        }
        let mut holder = self.holder(path)?;
        if !holder.as_ref().is_some_and(|holder| holder.took_it) {
            opened = LEFT_BEHIND.until(|| self.ledger(path));
            if !is_busy(&opened) {
                return opened;
            }
            holder = self.holder(path)?;
        }
        Err(Busy { path: path.into(), holder }.into())
    }

    /// The process that has the file open and locked; of several, the one that took the lock. From what the kernel says of
    /// each open file: /proc/locks names who took it, dead or alive, and the file by numbers that some file systems make up.
    fn holder(&self, path: &Path) -> Result<Option<Holder>> {
        let doing = || format!("asking who holds {}", path.display());
        let Some(file) = absent(fs::metadata(self.path(path))).with_context(doing)? else { return Ok(None) };
        let mut found: Option<Holder> = None;
        for process in fs::read_dir("/proc").with_context(doing)? {
            let process = process.with_context(doing)?.path();
            let Some(pid) = process.file_name().and_then(|name| name.to_str()?.parse().ok()) else {
                continue;
            };
            // Processes end while we look, and not all are ours to look at.
            for open in fs::read_dir(process.join("fd")).into_iter().flatten().flatten() {
                let same = fs::metadata(open.path())
                    .is_ok_and(|meta| (meta.dev(), meta.ino()) == (file.dev(), file.ino()));
                if !same {
                    continue;
                }
                let info = fs::read_to_string(process.join("fdinfo").join(open.file_name()));
                let Some(took) = info.ok().as_deref().and_then(taker) else { continue };
                let took_it = took == pid;
                if took_it || found.is_none() {
                    found = Some(Holder { pid, command: command(&process), took_it });
                }
            }
        }
        Ok(found)
    }
}

/// Reads a text in all the ways that this file has, for fuzzing.
#[cfg(test)]
pub fn fuzzed(text: &str) {
    let _ = taker(text);
}

/// Who took the lock of an open file, from its /proc/PID/fdinfo: `lock: 1: FLOCK  ADVISORY  WRITE 1234 fe:00:17 0 EOF`.
fn taker(info: &str) -> Option<u32> {
    let lock = info.lines().filter_map(|line| line.strip_prefix("lock:"));
    lock.map(|words| words.split_whitespace().collect::<Vec<_>>())
        .find(|words| words.get(1) == Some(&"FLOCK"))
        .and_then(|words| words.get(4)?.parse().ok())
}

/// The words a process was started with, its program without the directories before it.
fn command(process: &Path) -> String {
    let line = fs::read(process.join("cmdline")).unwrap_or_default();
    let line = String::from_utf8_lossy(&line).trim_end_matches('\0').replace(|c: char| c.is_control(), " ");
    let (program, words) = line.split_once(' ').map_or((&*line, ""), |(program, words)| (program, words));
    let program = program.rsplit('/').next().unwrap_or(program);
    format!("{program} {words}").trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::System;
    use std::process::{Child, Command, Stdio};

    /// Another process with the lock, which it has when this returns.
    fn other(host: &Host, path: &Path, then: &str) -> Child {
        let take = "import fcntl, os, sys, time; f = open(sys.argv[1]); fcntl.flock(f, fcntl.LOCK_EX)";
        let mut other = Command::new("python3")
            .args(["-c", &format!("{take}; {then}")])
            .arg(host.path(path))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut ready = [0];
        other.stdout.as_mut().unwrap().read_exact(&mut ready).unwrap();
        other
    }

    fn scene() -> (tempfile::TempDir, Host) {
        let dir = tempfile::tempdir().unwrap();
        let host = Host::new(dir.path(), System);
        host.write(Path::new("/j"), 0o600, b"\"one\"\n").unwrap();
        (dir, host)
    }

    #[test]
    fn who_holds_it_is_named_at_once() {
        let (_dir, host) = scene();
        let path = Path::new("/j");
        let mut other = other(&host, path, "print(flush=True); sys.stdin.read()");
        let since = std::time::Instant::now();
        let busy = host.ledger_within(path, Patience::NONE).err().unwrap();
        assert!(since.elapsed() < LEFT_BEHIND.at_most, "the living are not waited for");
        let said = busy.to_string();
        let named = format!("/j is in use by another echoes-appliance: process {}, `python3 -c ", other.id());
        assert!(said.starts_with(&named) && busy.is::<Busy>(), "{said}");
        // Who only looks at the file holds nothing.
        let _reader = fs::File::open(host.path(path)).unwrap();
        assert_eq!(host.holder(path).unwrap().map(|holder| holder.pid), Some(other.id()));
        drop(other.stdin.take());
        other.wait().unwrap();
        assert_eq!(host.holder(path).unwrap(), None);
        host.ledger_within(path, Patience::NONE).unwrap();
    }

    #[test]
    fn a_child_that_a_killed_process_left_behind_is_waited_for() {
        let (_dir, host) = scene();
        let path = Path::new("/j");
        let left = |seconds: &str| {
            let fork = format!("print(flush=True) if os.fork() else time.sleep({seconds}); os._exit(0)");
            other(&host, path, &fork).wait().unwrap();
        };
        left("0.3");
        assert!(host.ledger(path).err().unwrap().is::<Busy>(), "the child has it still");
        let ledger = host.ledger_within(path, Patience::NONE).unwrap();
        assert_eq!(ledger.lines().unwrap().next_line().unwrap(), Some(b"\"one\"".as_slice()));
        drop(ledger);
        // Not for ever, and it is told of too.
        left("60");
        let busy = host.ledger_within(path, Patience::NONE).err().unwrap().downcast::<Busy>().unwrap();
        let child = busy.holder.as_ref().unwrap();
        assert!(child.command.starts_with("python3 -c ") && !child.took_it, "{busy}");
        let pid = nix::unistd::Pid::from_raw(child.pid.try_into().unwrap());
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).unwrap();
        host.ledger_within(path, Patience::NONE).unwrap();
    }

    #[test]
    fn the_living_are_given_the_time_that_is_asked_for() {
        let (_dir, host) = scene();
        let mut other = other(&host, Path::new("/j"), "print(flush=True); time.sleep(0.3)");
        host.ledger_within(Path::new("/j"), Patience::seconds(20)).unwrap();
        other.wait().unwrap();
    }

    #[test]
    fn a_line_is_as_long_as_it_may_be_and_no_longer() {
        let long = usize::try_from(LONGEST).unwrap();
        for (len, newline, is_taken) in
            [(long - 1, true, true), (long, true, false), (long + 1, false, false)]
        {
            let file = [vec![b'x'; len], if newline { b"\n".to_vec() } else { Vec::new() }].concat();
            let mut lines = Lines::new(file.as_slice());
            let taken = lines.next_line().map(|line| line.map(<[u8]>::len));
            match taken {
                Ok(taken) => assert!(is_taken && taken == Some(len), "{taken:?}"),
                Err(error) => assert!(!is_taken && error.kind() == ErrorKind::InvalidData, "{error}"),
            }
        }
        // What a crash cut short is no line, whatever it is.
        let mut lines = Lines::new(b"one\n\xc3".as_slice());
        assert_eq!(lines.next_line().unwrap(), Some(b"one".as_slice()));
        assert_eq!(lines.next_line().unwrap(), None);
        assert_eq!(lines.end(), 4);
    }

    /// As on a full disk: a process that may make no file longer than a block.
    #[test]
    fn a_line_that_finds_no_room_leaves_nothing_of_itself() {
        const INSIDE: &str = "LEDGER_WITHOUT_ROOM";
        let name = "host::ledger::tests::a_line_that_finds_no_room_leaves_nothing_of_itself";
        if let Some(path) = System::environment(INSIDE) {
            let host = Host::new("/", System);
            let mut ledger = host.ledger(Path::new(&path)).unwrap();
            let mut whole = 0;
            while ledger.append(&[&[b'x'; 99], b"\n".as_slice()].concat()).is_ok() {
                whole += 100;
            }
            assert!(whole > 100, "there was room for a few");
            assert_eq!(host.meta(Path::new(&path)).unwrap().unwrap().len, whole);
            // Again, in vain; then there is room.
            ledger.append(&[b'y'; 4096]).unwrap_err();
            ledger.append(b"the last\n").unwrap();
            assert_eq!(host.meta(Path::new(&path)).unwrap().unwrap().len, whole + 9);
            return;
        }
        let (dir, _) = scene();
        // In dash and bash alike a block is 512 or 1024 bytes: neither a multiple of 100.
        let limited = "trap '' XFSZ; ulimit -f 1; exec \"$0\" --exact \"$1\" --nocapture";
        let out = Command::new("sh")
            .args(["-c", limited])
            .arg(std::env::current_exe().unwrap())
            .arg(name)
            .env(INSIDE, dir.path().join("full"))
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&out.stdout);
        assert!(out.status.success() && said.contains("1 passed"), "{out:?}");
    }
}
