//! Processes that are more than a question and an answer: one that is spoken with, one that is listened to while it
//! works, one that goes on without us, and the one that we become.

use super::{Cmd, Host, code, person::Person, piped};
use anyhow::{Context as _, Result};
use nix::{
    fcntl::{FcntlArg, OFlag, fcntl},
    poll::{PollFd, PollFlags, PollTimeout, poll},
};
use std::{
    fs,
    io::{self, ErrorKind, PipeReader, Read, Write},
    os::fd::AsFd,
    os::unix::process::CommandExt as _,
    path::Path,
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    sync::{Arc, Mutex, PoisonError, mpsc},
    time::{Duration, Instant},
};

/// How long to put up with somebody.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// Without a byte.
    pub silence: Duration,
    /// In all: who sends a byte now and then is not silent.
    pub whole: Duration,
}

/// Whether it has to end, whoever is spoken with. Asked every second for as long as the conversation goes on.
pub type Over = Arc<dyn Fn() -> bool + Send + Sync>;

/// Where one hears somebody.
pub type Ear = Box<dyn Read + Send>;
/// How one speaks to somebody.
pub type Mouth = Box<dyn Write + Send>;

/// A process that is spoken with. Dropped, it is ended.
pub struct Pipe {
    child: Child,
    said: Arc<Mutex<Vec<u8>>>,
    /// Hears that there is no more of that.
    all_said: mpsc::Receiver<()>,
}

impl Pipe {
    /// The end of what it wrote to standard error.
    pub fn said(&self) -> String {
        let said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        String::from_utf8_lossy(&said).trim().to_owned()
    }

    /// Its status, if it ends within a moment. Why it failed is in `said` then.
    pub fn status(&mut self) -> Option<i32> {
        let until = Instant::now() + Duration::from_secs(2);
        loop {
            match self.child.try_wait() {
                Ok(Some(status)) => {
                    if !status.success() {
                        // Its last words may still be on their way. Not for long: a child of its own may go on, and never
                        // close the pipe.
                        let _ = self.all_said.recv_timeout(Duration::from_secs(1));
                    }
                    return Some(code(status));
                }
                Ok(None) if Instant::now() < until => std::thread::sleep(Duration::from_millis(10)),
                _ => return None,
            }
        }
    }
}

impl Drop for Pipe {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The last of what somebody says without end.
const TAIL: usize = 4096;

impl Host {
    /// Start it, to be spoken with: what it says, and what it is told.
    pub fn pipe(&self, cmd: &Cmd, bounds: Bounds, over: Option<&Over>) -> Result<(Pipe, Ear, Mouth)> {
        let doing = || format!("starting `{cmd}`");
        let mut child = piped(cmd).spawn().with_context(doing)?;
        let said: Arc<Mutex<Vec<u8>>> = Arc::default();
        let (stdin, stdout) = (child.stdin.take(), child.stdout.take());
        let (ends, all_said) = mpsc::channel();
        if let Some(mut stderr) = child.stderr.take() {
            let said = Arc::clone(&said);
            std::thread::spawn(move || {
                // Dropped with the thread, which is what is waited for.
                let _ends: mpsc::Sender<()> = ends;
                let mut bytes = [0; 1024];
                while let Ok(n @ 1..) = stderr.read(&mut bytes) {
                    let mut said = said.lock().unwrap_or_else(PoisonError::into_inner);
                    said.extend_from_slice(&bytes[..n]);
                    let from = said.len().saturating_sub(TAIL);
                    said.drain(..from);
                }
            });
        }
        let pipe = Pipe { child, said, all_said };
        let (stdin, stdout) = (stdin.with_context(doing)?, stdout.with_context(doing)?);
        // A write into a full pipe would wait for a reader that may never come.
        fcntl(&stdin, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).with_context(doing)?;
        let until = Instant::now() + bounds.whole;
        let (silence, asked) = (bounds.silence, Instant::now());
        let from = Patient { end: stdout, silence, until, over: over.cloned(), asked };
        let to = Patient { end: stdin, silence, until, over: over.cloned(), asked };
        Ok((pipe, Box::new(from), Box::new(to)))
    }

    /// Start it without input; its two streams are one, so that they stay in order.
    pub fn listen(&self, cmd: &Cmd) -> Result<(Heard, PipeReader)> {
        let doing = || format!("starting `{cmd}`");
        let (from, to) = io::pipe().with_context(doing)?;
        let child = Command::new(&cmd.program)
            .args(&cmd.args)
            .envs(cmd.env.iter().map(|(k, v)| (k, v)))
            .stdin(Stdio::null())
            .stdout(to.try_clone().with_context(doing)?)
            .stderr(to)
            .spawn()
            .with_context(doing)?;
        Ok((Heard(child), from))
    }

    /// Start it and leave it alone: it has no terminal, outlives us, and what it says goes into `log`.
    pub fn leave_running(&self, cmd: &Cmd, log: &Path) -> Result<()> {
        let doing = || format!("starting `{cmd}`");
        let out = self.open_file(log, fs::OpenOptions::new().append(true).create(true));
        let kept = || format!("keeping what it says in {}", log.display());
        let out = out.with_context(kept).with_context(doing)?.with_context(kept).with_context(doing)?;
        let mut child = Command::new(&cmd.program)
            .args(&cmd.args)
            .envs(cmd.env.iter().map(|(k, v)| (k, v)))
            .stdin(Stdio::null())
            .stdout(out.try_clone().with_context(doing)?)
            .stderr(out)
            .spawn()
            .with_context(doing)?;
        // Whoever goes on for long has a child that would otherwise stay behind as a dead entry.
        std::thread::spawn(move || child.wait());
        Ok(())
    }

    /// Be that program from now on, in `dir`, with its own environment alone. Returns only when that cannot be.
    pub fn become_program(&self, cmd: &Cmd, dir: &Path) -> anyhow::Error {
        let error = Command::new(&cmd.program)
            .args(&cmd.args)
            .env_clear()
            .envs(cmd.env.iter().map(|(k, v)| (k, v)))
            .current_dir(self.path(dir))
            .exec();
        anyhow::Error::new(error).context(format!("starting {}", cmd.program))
    }

    /// Be this same program from now on, with these words, as it is. Comes back only when that cannot be, and then with why.
    pub fn go_on(&self, words: Vec<String>) -> anyhow::Error {
        anyhow::Error::new(Command::new("/proc/self/exe").args(words).exec()).context("going on in a sandbox")
    }

    /// Be this same program from now on, with these words, as that person: in their environment alone, but for what is named
    /// of ours. Comes back only when that cannot be, and then with why.
    pub fn begin_anew(&self, person: &Person, words: Vec<String>, kept: &[&str]) -> Result<anyhow::Error> {
        person.become_them()?;
        let kept = kept.iter().filter_map(|name| Some((*name, std::env::var_os(name)?)));
        let error = Command::new("/proc/self/exe")
            .args(words)
            .env_clear()
            .env("LC_ALL", "C.UTF-8")
            .envs(kept)
            .envs(person.environment())
            .env("SHELL", person.shell())
            .exec();
        Ok(anyhow::Error::new(error).context(format!("going on as {}", person.name)))
    }

    /// To be written on at its end; made if need be, for its owner alone.
    pub fn append(&self, path: &Path) -> Result<Mouth> {
        use std::os::unix::fs::OpenOptionsExt as _;
        let doing = || format!("opening {}", path.display());
        let file = self.open_file(path, fs::OpenOptions::new().append(true).create(true).mode(0o600));
        Ok(Box::new(file.with_context(doing)?.with_context(doing)?))
    }
}

/// A process that works while we listen.
pub struct Heard(Child);

impl Heard {
    pub fn pid(&self) -> u32 {
        self.0.id()
    }

    /// Its exit status, once it has ended; 128 + n when ended by signal n.
    pub fn ended(&mut self) -> Result<Option<i32>> {
        Ok(self.0.try_wait()?.map(code))
    }
}

/// An end of a pipe that is not waited for beyond bounds.
struct Patient<T> {
    end: T,
    silence: Duration,
    until: Instant,
    over: Option<Over>,
    /// When that was asked last.
    asked: Instant,
}

impl<T: AsFd> Patient<T> {
    /// Also of who never makes us wait.
    fn go_on(&mut self) -> io::Result<()> {
        const OFTEN: Duration = Duration::from_secs(1);
        let Some(over) = self.over.as_ref().filter(|_| self.asked.elapsed() >= OFTEN) else { return Ok(()) };
        self.asked = Instant::now();
        if over() { Err(io::Error::new(ErrorKind::TimedOut, "it has to end")) } else { Ok(()) }
    }

    fn wait(&mut self, flags: PollFlags) -> io::Result<()> {
        let since = Instant::now();
        let left = self.until.saturating_duration_since(since);
        let patience = left.min(self.silence);
        loop {
            self.go_on()?;
            let still = patience.saturating_sub(since.elapsed());
            let slice = if self.over.is_some() { still.min(Duration::from_millis(500)) } else { still };
            let timeout = PollTimeout::try_from(slice).unwrap_or(PollTimeout::MAX);
            match poll(&mut [PollFd::new(self.end.as_fd(), flags)], timeout) {
                Err(nix::errno::Errno::EINTR) if !still.is_zero() => {}
                Err(e) => return Err(e.into()),
                Ok(0) if slice < still => {}
                Ok(0) => {
                    let why = if left < self.silence { "it takes too long" } else { "it is silent" };
                    return Err(io::Error::new(
                        ErrorKind::TimedOut,
                        format!("{why}: {} s", patience.as_secs()),
                    ));
                }
                Ok(_) => return Ok(()),
            }
        }
    }
}

impl Read for Patient<ChildStdout> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        self.wait(PollFlags::POLLIN)?;
        self.end.read(bytes)
    }
}

impl Write for Patient<ChildStdin> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.go_on()?;
        loop {
            match self.end.write(bytes) {
                Err(e) if e.kind() == ErrorKind::WouldBlock => self.wait(PollFlags::POLLOUT)?,
                written => return written,
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::System;

    fn bounds(silence: u64, whole: u64) -> Bounds {
        Bounds { silence: Duration::from_millis(silence), whole: Duration::from_millis(whole) }
    }

    #[test]
    fn who_says_nothing_is_not_waited_for() {
        let host = Host::new("/", System);
        let quiet = Cmd::new("sleep", ["60"]);
        let (_pipe, mut from, mut to) = host.pipe(&quiet, bounds(50, 9000), None).unwrap();
        assert!(from.read(&mut [0]).unwrap_err().to_string().contains("it is silent"));
        let full = to.write_all(&vec![0; 1 << 20]).unwrap_err();
        assert_eq!(full.kind(), ErrorKind::TimedOut, "nobody reads it");
        let drip = Cmd::new("sh", ["-c", "while :; do echo; sleep 0.02; done"]);
        let (_pipe, mut from, _to) = host.pipe(&drip, bounds(9000, 300), None).unwrap();
        let error = loop {
            if let Err(error) = from.read(&mut [0; 64]) {
                break error;
            }
        };
        assert!(error.to_string().contains("it takes too long"), "{error}");
    }

    #[test]
    fn what_has_to_end_ends_whether_the_other_side_is_silent_talks_or_listens() {
        let host = Host::new("/", System);
        let over: Over = Arc::new(|| true);
        for script in ["sleep 60", "while :; do echo; done"] {
            let cmd = Cmd::new("sh", ["-c", script]);
            let (_pipe, mut from, _to) = host.pipe(&cmd, bounds(60_000, 60_000), Some(&over)).unwrap();
            let error = loop {
                if let Err(error) = from.read(&mut [0; 64]) {
                    break error;
                }
            };
            assert!(error.to_string().contains("it has to end"), "{script}: {error}");
        }
        let sink = Cmd::new("sh", ["-c", "exec cat > /dev/null"]);
        let (_pipe, _from, mut to) = host.pipe(&sink, bounds(60_000, 60_000), Some(&over)).unwrap();
        let error = loop {
            if let Err(error) = to.write_all(&[0; 4096]) {
                break error;
            }
        };
        assert!(error.to_string().contains("it has to end"), "{error}");
    }

    #[test]
    fn what_is_told_comes_back_and_complaints_are_kept_apart() {
        let host = Host::new("/", System);
        let cat = Cmd::new("sh", ["-c", "echo oh >&2; cat; exit 3"]);
        let (mut pipe, mut from, mut to) = host.pipe(&cat, bounds(9000, 9000), None).unwrap();
        let long = vec![7; 3 << 20];
        let sent = long.clone();
        let send = std::thread::spawn(move || to.write_all(&sent));
        let mut back = Vec::new();
        from.read_to_end(&mut back).unwrap();
        send.join().unwrap().unwrap();
        assert!(back == long);
        assert_eq!((pipe.status(), pipe.said()), (Some(3), "oh".to_owned()));
    }

    #[test]
    fn the_last_words_of_who_fails_are_waited_for() {
        let host = Host::new("/", System);
        let late = Cmd::new("sh", ["-c", "(sleep 0.3; echo why >&2) & exit 3"]);
        let (mut pipe, _from, _to) = host.pipe(&late, bounds(9000, 9000), None).unwrap();
        assert_eq!((pipe.status(), pipe.said()), (Some(3), "why".to_owned()));
        // Asked again, there is nothing to wait for.
        let since = Instant::now();
        assert_eq!(pipe.status(), Some(3));
        assert!(since.elapsed() < Duration::from_millis(900));
    }

    #[test]
    fn both_streams_are_heard_in_order() {
        let host = Host::new("/", System);
        let (mut child, mut from) =
            host.listen(&Cmd::new("sh", ["-c", "echo 1; echo 2 >&2; echo 3; exit 4"])).unwrap();
        let mut heard = String::new();
        from.read_to_string(&mut heard).unwrap();
        assert_eq!(heard, "1\n2\n3\n");
        while child.ended().unwrap().is_none() {}
        assert_eq!(child.ended().unwrap(), Some(4));
    }
}
