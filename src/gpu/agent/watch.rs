//! The script's keeper: starts it, keeps what it says, measures the machine, ends it when its time is up, when somebody
//! asks or when the machine is taken away, and writes down how it ended, once. Whoever kills the keeper ends the script
//! too; a keeper that finds a script begun and not ended starts it again, as a machine that restarts does, from its
//! last checkpoint. The time that it has is not counted anew. Whoever ends both in one moment, as a machine that shuts down
//! or a login that is closed, has ended no script: that has no exit status of its own.

use super::{
    HANDED_ON,
    book::Writer,
    environment::{self, Kind, Made},
    notice,
    oom::{OomKills, Starved},
    processes,
    samples::{Sampler, interval},
    sandbox,
    site::{Begun, Order, Secrets, Site, read, write},
};
use crate::{
    gpu::{job::Exit, provenance},
    host::{Busy, Cmd, Host, System, beneath::Beneath, process::Heard},
    patience::{Patience, from_now},
    ui::Try as _,
};
use anyhow::{Context as _, Result};
use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        prctl::{set_child_subreaper, set_pdeathsig},
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
/// Who ends a script and its keeper, as systemd does at shutdown, ends one a little after the other.
const BOTH: Duration = Duration::from_millis(500);
/// Between two looks for orphans to bury.
const BURIAL: Duration = Duration::from_secs(1);

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
    // What a script's process leaves behind when it ends is handed to us: nothing can get away by what it calls itself.
    set_child_subreaper(true).context("becoming the parent of the script's orphans")?;
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
    let begun = read::<Begun>(host, &site.begun())?;
    if begun.is_some() {
        // What a keeper that was killed has left behind is no child of ours.
        processes::end_others(host, site);
    }
    let begun = match begun {
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
    let alive = processes::end_script(host, site);
    if !alive.outlived.is_empty() {
        // Nobody else knows that they are the script's.
        write(host, &site.outlived(), &alive.outlived)?;
    }
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
    let before = OomKills::read(host);
    let (mut script, pipe) = host.listen(&cmd)?;
    let taken = order.azure.then(notice::watch);
    // By a clock that nobody sets; the one on the wall may be put right under way.
    let until = begun.until.map(|until| from_now(Duration::from_secs(until.saturating_sub(now()))));
    let over = AtomicBool::new(false);
    let exit = std::thread::scope(|scope| {
        let listening = scope.spawn(|| listen(pipe, &mut log, &over));
        let sampling = scope.spawn(|| sample(host, site, &over));
        let mut ending: Option<(Ending, Instant)> = None;
        let mut buried = Instant::now();
        let is_taken = || taken.as_deref().is_some_and(|taken| taken.load(Ordering::Relaxed));
        let mut last_words = None;
        let ended = loop {
            let status = script.ended();
            if !matches!(status, Ok(None)) {
                break status;
            }
            if ending.is_none()
                && let Some(why) = reason(host, site, until, is_taken(), &signals)
            {
                signal(&script, Signal::SIGTERM);
                ending = Some((why, from_now(Duration::from_secs(order.grace))));
            }
            // However long it was given before.
            if last_words.is_none() && is_taken() {
                last_words = Some(Instant::now() + LAST_WORDS);
            }
            if let Some((_, until)) = &ending
                && Instant::now() >= last_words.map_or(*until, |last| last.min(*until))
            {
                signal(&script, Signal::SIGKILL);
            }
            if buried.elapsed() >= BURIAL {
                processes::bury(host, std::process::id().cast_signed(), Some(script.pid()));
                buried = Instant::now();
            }
            std::thread::sleep(TICK);
        };
        let code = ended.as_ref().map_or(137, |code| code.unwrap_or(137));
        let starved = OomKills::read(host).since(before);
        if ending.is_none() && is_told_to_end(&signals, if is_signal(code) { BOTH } else { Duration::ZERO }) {
            ending = Some((Ending::Machine, Instant::now()));
        }
        processes::end_script(host, site);
        over.store(true, Ordering::Relaxed);
        let _ = listening.join();
        let _ = sampling.join();
        ended.map(|_| verdict(code, ending.map(|(why, _)| why), starved))
    })?;
    if let Some(killed) = OomKills::read(host).of_script(before).filter(|killed| *killed > 0) {
        // As with its own words: a full disk loses them.
        let words = format!(
            "[echoes-appliance: for want of memory the kernel has ended processes of it: {killed}]\n"
        );
        let _ = log.write(words.as_bytes());
    }
    Ok(exit)
}

/// How it has ended; none: it goes on when the machine is back, or its keeper. Pure.
fn verdict(code: i32, ending: Option<Ending>, starved: Starved) -> Option<Exit> {
    let is_killed = code == 128 + Signal::SIGKILL as i32;
    match ending {
        Some(Ending::Exit(exit)) => Some(exit),
        // systemd ends a scope in which a process was ended for want of memory, and us with it.
        _ if is_killed && starved == Starved::Surely => Some(Exit::OutOfMemory),
        Some(Ending::Machine) => None,
        None if is_killed && starved == Starved::Perhaps => Some(Exit::OutOfMemory),
        None => Some(Exit::Code(code)),
    }
}

/// Whether it was ended, rather than came to its end, by what ends whole machines and logins. A shell says of its last
/// command what the system says of it.
fn is_signal(code: i32) -> bool {
    [Signal::SIGHUP, Signal::SIGINT, Signal::SIGKILL, Signal::SIGTERM]
        .iter()
        .any(|by| 128 + *by as i32 == code)
}

/// Whether we are to end too; waited for so long. Who kills us meanwhile has us write nothing.
fn is_told_to_end(signals: &SignalFd, at_most: Duration) -> bool {
    let until = Instant::now() + at_most;
    loop {
        if matches!(signals.read_signal(), Ok(Some(_))) {
            return true;
        }
        if Instant::now() >= until {
            return false;
        }
        std::thread::sleep(TICK.min(at_most));
    }
}

fn reason(
    host: &Host,
    site: &Site,
    until: Option<Instant>,
    is_taken: bool,
    signals: &SignalFd,
) -> Option<Ending> {
    if let Ok(Some(exit)) = read(host, &site.stop()) {
        return Some(Ending::Exit(exit));
    }
    if until.is_some_and(|until| Instant::now() >= until) {
        return Some(Ending::Exit(Exit::Deadline));
    }
    if is_taken {
        return Some(Ending::Exit(Exit::Evicted));
    }
    is_told_to_end(signals, Duration::ZERO).then_some(Ending::Machine)
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
    let mut made = environment::of(host, site)?;
    let user = User::from_uid(getuid())?;
    let home = user.map_or_else(|| site.dir(), |user| user.dir);
    // First, as what the project or the run says of the same comes before it.
    let caches = sandbox::caches(site, &home).into_iter().map(|(name, at)| (name.to_owned(), at));
    made.env.splice(..0, caches);
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
    for name in HANDED_ON.iter().chain(&["USER", "LOGNAME"]) {
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
    fn a_script_has_an_end_of_its_own_only_where_nobody_ended_it_and_its_keeper() {
        let machine = || Some(Ending::Machine);
        let asked = || Some(Ending::Exit(Exit::Stopped));
        for (code, ending, starved, exit) in [
            (0, None, Starved::No, Some(Exit::Code(0))),
            (1, None, Starved::Surely, Some(Exit::Code(1))),
            (143, None, Starved::No, Some(Exit::Code(143))),
            (137, None, Starved::No, Some(Exit::Code(137))),
            (137, None, Starved::Perhaps, Some(Exit::OutOfMemory)),
            (137, None, Starved::Surely, Some(Exit::OutOfMemory)),
            (143, machine(), Starved::No, None),
            (137, machine(), Starved::No, None),
            (0, machine(), Starved::No, None),
            (137, machine(), Starved::Perhaps, None),
            (137, machine(), Starved::Surely, Some(Exit::OutOfMemory)),
            (137, asked(), Starved::Surely, Some(Exit::Stopped)),
            (0, asked(), Starved::No, Some(Exit::Stopped)),
        ] {
            let said = format!("{code} {ending:?} {starved:?}");
            assert_eq!(verdict(code, ending, starved), exit, "{said}");
        }
        let by_signal = [0, 1, 128, 129, 130, 134, 137, 139, 143, 255].map(is_signal);
        assert_eq!(by_signal, [false, false, false, true, true, false, true, false, true, false]);
    }

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
