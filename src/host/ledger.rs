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
    io::{self, Read as _, Write as _},
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

/// A locked file of whole lines.
pub struct Ledger(fs::File);

impl Ledger {
    /// The lines so far. One without its newline was cut short by a crash; since acting comes after writing,
    /// nobody acted on it, and it is dropped.
    pub fn lines(&mut self) -> Result<Vec<String>> {
        let mut text = String::new();
        self.0.read_to_string(&mut text)?;
        let whole = text.rfind('\n').map_or(0, |end| end + 1);
        if whole < text.len() {
            self.0.set_len(whole as u64)?;
        }
        Ok(text[..whole].lines().map(str::to_owned).collect())
    }

    /// The line is on disk when this returns.
    pub fn append(&mut self, line: &str) -> Result<()> {
        self.0.write_all(format!("{line}\n").as_bytes())?;
        Ok(self.0.sync_data()?)
    }
}

impl Drop for Ledger {
    /// Closing is not enough: a child between fork and exec still holds a copy of the lock.
    fn drop(&mut self) {
        let _ = self.0.unlock();
    }
}

impl Host {
    /// Open for appending, alone: a second process is told so rather than made to wait, and not by whom. Only its owner
    /// may read a new one: from the hash of a file with a password in it a weak password can be guessed.
    pub fn ledger(&self, path: &Path) -> Result<Ledger> {
        let doing = || format!("opening {}", path.display());
        let open = || -> io::Result<fs::File> {
            fs::create_dir_all(self.path(path.parent().unwrap_or(path)))?;
            fs::OpenOptions::new().read(true).append(true).create(true).mode(0o600).open(self.path(path))
        };
        let file = open().with_context(doing)?;
        match file.try_lock() {
            Ok(()) => Ok(Ledger(file)),
            Err(TryLockError::WouldBlock) => Err(Busy { path: path.into(), holder: None }.into()),
            Err(TryLockError::Error(e)) => Err(e).with_context(doing),
        }
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
        let mut ledger = host.ledger_within(path, Patience::NONE).unwrap();
        assert_eq!(ledger.lines().unwrap(), ["\"one\""]);
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
}
