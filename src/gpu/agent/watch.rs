//! The script's keeper: starts it, keeps what it says, measures the machine, ends it when its time is up, when somebody
//! asks or when the machine is taken away, and writes down how it ended, once. Whoever kills the keeper ends the script
//! too; a keeper that finds a script begun and not ended starts it again, as a machine that restarts does, from its
//! last checkpoint. The time that it has is not counted anew.

use super::{
    book::Writer,
    environment::{self, Kind, Made},
    notice,
    samples::{Sampler, interval},
    site::{Begun, Order, Secrets, Site, read, write},
};
use crate::{
    gpu::{job::Exit, provenance},
    host::{Busy, Cmd, Host, System, beneath::Beneath, process::Heard},
    patience::Patience,
    ui::Try as _,
};
use anyhow::{Context as _, Result};
use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        prctl::set_pdeathsig,
        signal::{SigSet, Signal, kill, killpg},
        signalfd::{SfdFlags, SignalFd},
    },
    unistd::{Pid, User, getppid, getuid, setsid},
};
use std::{
    io::{PipeReader, Read as _},
    os::fd::AsFd as _,
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

/// A script whose machine restarts under it again and again is not what the machine was rented for.
const ATTEMPTS: u32 = 5;
/// Of Azure's half minute, what is not needed to bring the last files home.
const LAST_WORDS: Duration = Duration::from_secs(15);
const TICK: Duration = Duration::from_millis(50);

/// Why a script is being ended.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Ending {
    Exit(Exit),
    /// The machine shuts down, or our own unit is restarted: the script goes on after that.
    Machine,
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// Keep the script to its end. Another keeper at work is as good.
pub fn watch(host: &Host, site: &Site) -> Result<()> {
    // Not on whatever terminal or connection started us. Refused where we lead a session already, which is as good.
    let _ = setsid();
    // Whoever only asks whether somebody watches holds the lock for a moment.
    let alone = Patience::seconds(3).until(|| host.ledger(&site.lock()));
    let _alone = match alone {
        Err(e) if e.is::<Busy>() => return Ok(()),
        alone => alone?,
    };
    if host.exists(&site.exit())? {
        return Ok(());
    }
    let order: Order = read(host, &site.order())?.context("there is nothing to run")?;
    let mut log = Writer::open(host, &site.log())?;
    end_all(host, site);
    let begun = match read::<Begun>(host, &site.begun())? {
        None => Begun { first: now(), until: order.max_seconds.map(|most| now() + most), attempt: 1 },
        Some(begun) => Begun { attempt: begun.attempt + 1, ..begun },
    };
    write(host, &site.begun(), &begun)?;
    if let Some(exit) = at_once(host, site, &begun)? {
        return finish(host, site, exit);
    }
    if begun.attempt > 1 {
        log.write(format!("[echoes-appliance: started again, attempt {}]\n", begun.attempt).as_bytes())?;
    }
    match keep(host, site, &order, &begun, log)? {
        Some(exit) => finish(host, site, exit),
        None => Ok(()),
    }
}

/// What there is to know before it is started.
fn at_once(host: &Host, site: &Site, begun: &Begun) -> Result<Option<Exit>> {
    if let Some(exit) = read(host, &site.stop())? {
        return Ok(Some(exit));
    }
    if begun.until.is_some_and(|until| until <= now()) {
        return Ok(Some(Exit::Deadline));
    }
    // As if somebody had killed it, which is what happened.
    Ok((begun.attempt > ATTEMPTS).then_some(Exit::Code(137)))
}

/// Once: whoever comes later finds it.
fn finish(host: &Host, site: &Site, exit: Exit) -> Result<()> {
    end_all(host, site);
    // What the script wrote is on the disk before it is said that it has ended.
    if let Some(dir) = Beneath::open(host, &site.dir())? {
        dir.sync()?;
    }
    host.remove(&site.secrets())?;
    write(host, &site.exit(), &exit)
}

fn keep(host: &Host, site: &Site, order: &Order, begun: &Begun, mut log: Writer<'_>) -> Result<Option<Exit>> {
    let signals = signals()?;
    let cmd = Cmd::new("/proc/self/exe", site.words("exec"));
    let (mut script, pipe) = host.listen(&cmd)?;
    let taken = order.azure.then(notice::watch);
    // By a clock that nobody sets; the one on the wall may be put right under way.
    let until = begun.until.map(|until| Instant::now() + Duration::from_secs(until.saturating_sub(now())));
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let listening = scope.spawn(|| listen(pipe, &mut log, &over));
        let sampling = scope.spawn(|| sample(host, site, &over));
        let mut ending: Option<(Ending, Instant)> = None;
        let ended = loop {
            let status = script.ended();
            if !matches!(status, Ok(None)) {
                break status;
            }
            if ending.is_none()
                && let Some(why) = reason(host, site, until, taken.as_deref(), &signals)
            {
                let grace = Duration::from_secs(order.grace);
                let grace = if why == Ending::Exit(Exit::Evicted) { grace.min(LAST_WORDS) } else { grace };
                signal(&script, Signal::SIGTERM);
                ending = Some((why, Instant::now() + grace));
            }
            if ending.as_ref().is_some_and(|(_, patience)| Instant::now() >= *patience) {
                signal(&script, Signal::SIGKILL);
            }
            std::thread::sleep(TICK);
        };
        end_all(host, site);
        over.store(true, Ordering::Relaxed);
        let _ = listening.join();
        let _ = sampling.join();
        let code = ended?.unwrap_or(137);
        Ok(match ending {
            None => Some(Exit::Code(code)),
            Some((Ending::Exit(exit), _)) => Some(exit),
            Some((Ending::Machine, _)) => None,
        })
    })
}

fn reason(
    host: &Host,
    site: &Site,
    until: Option<Instant>,
    taken: Option<&AtomicBool>,
    signals: &SignalFd,
) -> Option<Ending> {
    if let Ok(Some(exit)) = read(host, &site.stop()) {
        return Some(Ending::Exit(exit));
    }
    if until.is_some_and(|until| Instant::now() >= until) {
        return Some(Ending::Exit(Exit::Deadline));
    }
    if taken.is_some_and(|taken| taken.load(Ordering::Relaxed)) {
        return Some(Ending::Exit(Exit::Evicted));
    }
    signals.read_signal().ok().flatten().map(|_| Ending::Machine)
}

/// As files to be read, not as interruptions.
fn signals() -> Result<SignalFd> {
    let mut set = SigSet::empty();
    [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP].into_iter().for_each(|signal| set.add(signal));
    set.thread_block()?;
    Ok(SignalFd::with_flags(&set, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)?)
}

/// To the script and whatever it started in its own group.
fn signal(script: &Heard, signal: Signal) {
    let pid = Pid::from_raw(i32::try_from(script.pid()).unwrap_or(i32::MAX));
    // Not there, for a moment after its start or because it has just ended.
    if killpg(pid, signal).is_err() {
        let _ = kill(pid, signal);
    }
}

/// Whatever the script started, also what went into a group or a session of its own: all of it has the run's
/// directory in its environment.
pub fn end_all(host: &Host, site: &Site) {
    let mark = format!("ECHOES_OUT={}", site.out().display());
    for name in host.list(Path::new("/proc")).unwrap_or_default() {
        let Ok(pid) = name.parse::<i32>() else { continue };
        // Others' processes cannot be read, and are not the script's.
        let Ok(Some(environ)) = host.read(&Path::new("/proc").join(&name).join("environ")) else { continue };
        if environ.split(|byte| *byte == 0).any(|pair| pair == mark.as_bytes()) {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
    }
}

fn listen(mut pipe: PipeReader, log: &mut Writer<'_>, over: &AtomicBool) {
    let mut bytes = vec![0; 64 << 10];
    loop {
        // Somebody whom we could not end may hold the other end for ever.
        let ready = poll(&mut [PollFd::new(pipe.as_fd(), PollFlags::POLLIN)], PollTimeout::from(100_u8));
        match ready {
            Ok(0) if over.load(Ordering::Relaxed) => return,
            Ok(0) | Err(nix::errno::Errno::EINTR) => {}
            Err(_) => return,
            Ok(_) => match pipe.read(&mut bytes) {
                Ok(0) | Err(_) => return,
                // A full disk loses lines; a script that cannot write them would stand still.
                Ok(n) => drop(log.write(&bytes[..n])),
            },
        }
    }
}

fn sample(host: &Host, site: &Site, over: &AtomicBool) {
    let Ok(mut book) = Writer::open(host, &site.samples()) else { return };
    let (mut sampler, since) = (Sampler::default(), Instant::now());
    while !over.load(Ordering::Relaxed) {
        let sample = sampler.sample(host, &site.dir());
        if let Ok(mut line) = serde_json::to_vec(&sample) {
            line.push(b'\n');
            // As with the log.
            let _ = book.write(&line);
        }
        let next = Instant::now() + interval(since.elapsed());
        while Instant::now() < next && !over.load(Ordering::Relaxed) {
            std::thread::sleep(TICK);
        }
    }
}

/// Become the script. It is a session of its own, and ends when its keeper does.
pub fn exec(host: &Host, site: &Site) -> Result<u8> {
    let keeper = getppid();
    setsid().context("leaving the agent's session")?;
    set_pdeathsig(Signal::SIGKILL).context("tying the script to its keeper")?;
    if getppid() != keeper {
        return Ok(137);
    }
    // The keeper's, which come as files to it, would never come to the script.
    SigSet::all().thread_unblock()?;
    let order: Order = read(host, &site.order())?.context("there is nothing to run")?;
    let begun: Begun = read(host, &site.begun())?.context("it has not begun")?;
    let secrets: Secrets = read(host, &site.secrets())?.unwrap_or_default();
    let made = environment::of(host, site)?;
    let user = User::from_uid(getuid())?;
    let home = user.map_or_else(|| site.dir(), |user| user.dir);
    let inherited = |name: &str| System::environment(name);
    let cmd = command(site, &order, &begun, &secrets, &made, &home, &inherited);
    Err(host.become_program(&cmd, &site.code()))
        .or_try(format!("look at {} in the project: it must be executable, or end in .py", order.script))
}

/// Pure.
fn command(
    site: &Site,
    order: &Order,
    begun: &Begun,
    secrets: &Secrets,
    made: &Made,
    home: &Path,
    inherited: &dyn Fn(&str) -> Option<String>,
) -> Cmd {
    let script = site.code().join(order.script.as_path()).display().to_string();
    let interpreter: &[&str] = match script.rsplit_once('.').map(|(_, end)| end) {
        Some("py") if made.dir.is_some() => &["python", "-u"],
        Some("py") => &["python3", "-u"],
        Some("sh") => &["bash"],
        _ => &[],
    };
    let mut words = interpreter.iter().map(|word| (*word).to_owned()).chain([script]);
    let mut program = words.next().unwrap_or_default();
    let path = inherited("PATH").unwrap_or_else(|| "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin".into());
    let path = match &made.dir {
        Some(dir) => {
            if program == "python" {
                program = dir.join("bin/python").display().to_string();
            }
            format!("{}:{path}", dir.join("bin").display())
        }
        None => path,
    };
    let mut cmd = Cmd::new(&program, words.chain(order.arguments.iter().cloned()).collect::<Vec<_>>());
    let code = site.code();
    let modules = format!("{}:{}", code.display(), code.join("src").display());
    cmd = cmd.env("PATH", &path).env("HOME", &home.to_string_lossy()).env("PYTHONUNBUFFERED", "1");
    for name in ["LANG", "TZ", "USER", "LOGNAME", "LD_LIBRARY_PATH", "CUDA_HOME", "CUDA_VISIBLE_DEVICES"] {
        if let Some(value) = inherited(name) {
            cmd = cmd.env(name, &value);
        }
    }
    for name in ["http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY"] {
        if let Some(value) = inherited(name) {
            cmd = cmd.env(name, &value);
        }
    }
    let theirs = made.env.iter().chain(&order.env).chain(secrets);
    let mut modules = modules;
    for (name, value) in theirs {
        if name == "PYTHONPATH" {
            modules = format!("{modules}:{value}");
        } else if name == provenance::CONTEXT && begun.attempt > 1 {
            cmd = cmd.env(name, &provenance::of_attempt(value, begun.attempt));
        } else {
            cmd = cmd.env(name, value);
        }
    }
    if order.authority.is_some() {
        cmd = cmd.env("MLFLOW_TRACKING_SERVER_CERT_PATH", &site.authority().to_string_lossy());
    }
    if let Some(dir) = &made.dir {
        let name = if made.kind == Kind::Conda { "CONDA_PREFIX" } else { "VIRTUAL_ENV" };
        cmd = cmd.env(name, &dir.to_string_lossy());
    }
    if let Some(until) = begun.until {
        cmd = cmd.env("ECHOES_UNTIL", &until.to_string());
    }
    cmd.env("PYTHONPATH", &modules)
        .env("ECHOES_RUN", site.run.as_str())
        .env("ECHOES_ATTEMPT", &begun.attempt.to_string())
        .env("ECHOES_DATA", &site.data().to_string_lossy())
        .env("ECHOES_OUT", &site.out().to_string_lossy())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{gpu::spec::RunId, host::beneath::Rel};

    #[test]
    fn what_a_script_sees_is_what_was_ordered_and_nothing_of_ours_is_lost() {
        let site = Site { home: "/h".into(), run: RunId::try_from("r".to_owned()).unwrap() };
        let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        let mut order = Order {
            script: Rel::new("experiments/train.py").unwrap(),
            arguments: vec!["--epochs".into(), "5 0".into()],
            env: vec![
                pair("A", "1"),
                pair("PYTHONPATH", "lib"),
                pair("ECHOES_OUT", "/etc"),
                pair("MLFLOW_RUN_CONTEXT", "{}"),
            ],
            out: Vec::new(),
            max_seconds: None,
            grace: 1,
            authority: Some("pem".into()),
            azure: false,
        };
        let begun = Begun { first: 1, until: Some(9), attempt: 2 };
        let made = Made { kind: Kind::Locked, dir: Some("/h/envs/k".into()), env: Vec::new() };
        let secrets = vec![pair("MLFLOW_TRACKING_PASSWORD", "s3")];
        let inherited = |name: &str| (name == "PATH").then(|| "/bin".to_owned());
        let cmd = command(&site, &order, &begun, &secrets, &made, Path::new("/home/u"), &inherited);
        assert_eq!(
            cmd.to_string(),
            "/h/envs/k/bin/python -u /h/runs/r/code/experiments/train.py --epochs 5 0"
        );
        let value =
            |name: &str| cmd.env.iter().rfind(|(key, _)| key == name).map(|(_, value)| value.as_str());
        for (name, expected) in [
            ("PATH", "/h/envs/k/bin:/bin"),
            ("PYTHONPATH", "/h/runs/r/code:/h/runs/r/code/src:lib"),
            ("A", "1"),
            ("MLFLOW_RUN_CONTEXT", r#"{"echoes.attempt":"2"}"#),
            ("MLFLOW_TRACKING_PASSWORD", "s3"),
            ("MLFLOW_TRACKING_SERVER_CERT_PATH", "/h/runs/r/authority.pem"),
            ("ECHOES_OUT", "/h/runs/r/out"),
            ("ECHOES_DATA", "/h/runs/r/data"),
            ("ECHOES_RUN", "r"),
            ("ECHOES_ATTEMPT", "2"),
            ("ECHOES_UNTIL", "9"),
            ("HOME", "/home/u"),
        ] {
            assert_eq!(value(name), Some(expected), "{name}");
        }
        assert!(!cmd.to_string().contains("s3"), "a secret is in no argument");
        let none = Made { kind: Kind::None, dir: None, env: Vec::new() };
        for (script, expected) in [
            ("a.py", "python3 -u /h/runs/r/code/a.py"),
            ("a.sh", "bash /h/runs/r/code/a.sh"),
            ("bin/a", "/h/runs/r/code/bin/a"),
        ] {
            order.script = Rel::new(script).unwrap();
            order.arguments.clear();
            let cmd = command(&site, &order, &begun, &secrets, &none, Path::new("/"), &inherited);
            assert_eq!(cmd.to_string(), expected);
        }
    }
}
