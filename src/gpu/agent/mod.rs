//! This same program on the machine where a script runs. It answers the headquarters over one connection (`attend`),
//! and keeps the script on its own (`watch`), so that a connection that breaks ends nothing. It works below its home
//! directory alone, as the user whose script it is.

pub mod book;
pub mod conda;
pub mod environment;
pub mod give;
pub mod mirror;
pub mod notice;
pub mod oom;
pub mod processes;
pub mod samples;
pub mod sandbox;
pub mod site;
pub mod start;
pub mod uv;
pub mod watch;

use super::{
    tree::{Squeeze, outline},
    wire::Wire,
};
use crate::host::{
    Busy, Host, Kind, Meta,
    beneath::{Beneath, OnDisk, Rel},
    mounts,
    person::Person,
};
use anyhow::{Context as _, Result, bail, ensure};
use nix::unistd::geteuid;
use site::{Ask, Look, Making, Site, Standing, read, write};
use std::{
    path::Path,
    sync::mpsc::{RecvTimeoutError, channel},
    time::{Duration, Instant},
};

/// Variables that a person's agent and script keep from whoever starts them: how the network is reached, and where the GPU's
/// programs are. All else in that environment is somebody else's.
pub const HANDED_ON: [&str; 11] = [
    "LANG",
    "TZ",
    "LD_LIBRARY_PATH",
    "CUDA_HOME",
    "CUDA_VISIBLE_DEVICES",
    "http_proxy",
    "https_proxy",
    "no_proxy",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "NO_PROXY",
];

/// The run's directory is there, and everything below it is this user's, whose process this is from now on: where root
/// becomes one, it begins anew with the same verb, in that person's own environment.
///
/// `sandbox`: what is done here gives no more rights than the user's, which what begins anew is told.
pub fn settle(host: &Host, site: &Site, user: Option<&str>, verb: &str, sandbox: bool) -> Result<()> {
    let user = user.filter(|_| geteuid().is_root()).map(Person::named).transpose()?;
    let user = user.filter(|user| !user.is_us());
    let fresh = !host.exists(&site.dir())?;
    host.make_dir(&site.dir())?;
    for name in Site::SHARED {
        let dir = site.shared(name);
        let theirs = host.meta(&dir)?.map(|meta| meta.uid);
        host.make_dir(&dir)?;
        if let Some(user) = &user {
            match theirs {
                None => host.give_to(&dir, user.uid, user.gid)?,
                Some(uid) => ensure!(
                    uid == user.uid,
                    "{} belongs to user {uid} and not to {}: each user needs an agent's home of their own",
                    dir.display(),
                    user.name
                ),
            }
        }
    }
    if fresh {
        host.shut(&site.dir())?;
        if let Some(user) = &user {
            host.give_to(&site.dir(), user.uid, user.gid)?;
        }
    }
    if let Some(user) = user {
        // uv looks for its interpreters in $HOME, and would not find root's.
        let words = site.words(verb).into_iter().chain(sandbox.then(|| "--sandbox".to_owned()));
        return Err(host.begin_anew(&user, words.collect(), &HANDED_ON)?);
    }
    if sandbox && sandbox::enter(host)? {
        return Err(host.go_on(site.words(verb)));
    }
    shut_shared(host, site)?;
    host.list(&site.dir()).with_context(|| format!("{} is not to be reached", site.dir().display()))?;
    Ok(())
}

/// Shuts to all others the directories that runs share: code and data that are kept may be as secret as where they come from.
/// A directory that somebody has put elsewhere by a link is theirs to shut.
fn shut_shared(host: &Host, site: &Site) -> Result<()> {
    for name in Site::SHARED {
        let dir = site.shared(name);
        let is_open =
            |meta: &Meta| meta.kind == Kind::Dir && meta.mode & 0o077 != 0 && meta.uid == geteuid().as_raw();
        if host.meta(&dir)?.is_some_and(|meta| is_open(&meta)) {
            host.shut(&dir)?;
        }
    }
    Ok(())
}

/// Answer until the other side has no more questions.
pub fn attend(host: &Host, site: &Site, wire: &mut Wire) -> Result<()> {
    while let Some(ask) = wire.hear_if_any::<Ask>()? {
        if let Err(error) = answer(host, site, wire, ask) {
            // Who knows what the other side expects now: it has to begin again.
            wire.break_off(&error);
            return Err(error);
        }
    }
    Ok(())
}

fn answer(host: &Host, site: &Site, wire: &mut Wire, ask: Ask) -> Result<()> {
    match ask {
        Ask::Code { hash, keep } => {
            not_begun(host, site)?;
            code(host, site, wire, &hash, keep)
        }
        Ask::Out { hash } => {
            not_begun(host, site)?;
            let out = (&*site.out(), &*site.mark("out"));
            mirror::receive(host, wire, out, &hash, Squeeze::No, OnDisk::Now)
        }
        Ask::Data { name, hash } => {
            plain(&name)?;
            let data = site.shared("data");
            let (dir, mark) = (data.join(name.as_path()), data.join(format!("{name}.tree")));
            let _alone = match host.ledger(&data.join(format!("{name}.lock"))) {
                Err(e) if e.is::<Busy>() => bail!("{name} is on its way to this machine already"),
                lock => lock?,
            };
            mirror::receive(host, wire, (&dir, &mark), &hash, Squeeze::No, OnDisk::Now)?;
            host.link(&site.data().join(name.as_path()), &dir)
        }
        Ask::Placed { name, at, clone } => {
            plain(&name)?;
            ensure!(at.is_absolute(), "{} is not absolute", at.display());
            if clone {
                cloned(host, &at)?;
            }
            host.list(&at).with_context(|| format!("{} is not to be read", at.display()))?;
            ensure!(host.exists(&at)?, "there is no {} on this machine", at.display());
            host.link(&site.data().join(name.as_path()), &at)?;
            let seen =
                if clone { Beneath::open(host, &at)?.map(|dir| outline(&dir)).transpose()? } else { None };
            wire.tell(&seen)
        }
        Ask::Environment => environment(host, site, wire),
        Ask::Order { order, secrets } => {
            // What has begun is not changed. The same order comes again after a crash of whoever sent it.
            if !host.exists(&site.begun())? {
                let script = site.code().join(order.script.as_path());
                ensure!(host.exists(&script)?, "there is no {} among the code", order.script);
                host.make_dir(&site.out())?;
                host.make_dir(&site.data())?;
                if let Some(pem) = &order.authority {
                    host.write(&site.authority(), 0o644, pem.as_bytes())?;
                }
                write(host, &site.secrets(), &secrets)?;
                write(host, &site.order(), &*order)?;
            }
            wire.tell(&())
        }
        Ask::Look => wire.tell(&look(host, site)?),
        Ask::Stop(exit) => {
            write(host, &site.stop(), &exit)?;
            // Nobody may be there to heed it: on a machine that was made of another's disk the script does not go on.
            // Then it has ended, and that is all there is to write down.
            if start::standing(host, site)? == Standing::Unwatched {
                watch::watch(host, site)?;
            }
            wire.tell(&())
        }
        Ask::Wait { log, samples } => wire.tell(&wait(host, site, (log, samples))?),
        Ask::List => give::list(host, site, wire),
        Ask::Take { root, path, stamp, from, len } => {
            give::take(host, site, wire, (root, &path), (stamp, from, len))
        }
        Ask::Book { book, from } => give::page(host, site, wire, book, from),
    }
}

fn look(host: &Host, site: &Site) -> Result<Look> {
    // First: what a script has said when it ended is all that it says.
    let standing = start::standing(host, site)?;
    let bytes = book::last(host, &site.samples())?;
    let mut lines = bytes.split(|byte| *byte == b'\n').rev();
    let sample = lines.find_map(|line| serde_json::from_slice(line).ok());
    Ok(Look { standing, begun: read(host, &site.begun())?, sample })
}

/// As `look`, once the script does not run, or its books have more than so many bytes.
fn wait(host: &Host, site: &Site, (log, samples): (u64, u64)) -> Result<Look> {
    // A connection that says nothing for longer is taken for a dead one.
    const LONGEST: Duration = Duration::from_secs(20);
    const BETWEEN: Duration = Duration::from_millis(50);
    /// Whether anybody keeps the script is asked of a lock that the keeper wants, too.
    const KEEPER: u32 = 20;
    let until = Instant::now() + LONGEST;
    for n in 0_u32.. {
        let more = book::end(host, &site.log())? > log || book::end(host, &site.samples())? > samples;
        let over = more || Instant::now() >= until || host.exists(&site.exit())?;
        if over || n % KEEPER == 0 && start::standing(host, site)? != Standing::Running {
            break;
        }
        std::thread::sleep(BETWEEN);
    }
    look(host, site)
}

/// Where a project's code is kept, that is brought up to date, and the run has its copy: what a script changes in its
/// own code is not what the next one gets.
fn code(host: &Host, site: &Site, wire: &mut Wire, hash: &str, keep: Option<Rel>) -> Result<()> {
    let (own, own_mark) = (site.code(), site.mark("code"));
    let alone = match &keep {
        None => None,
        Some(name) => {
            plain(name)?;
            match host.ledger(&site.shared("code").join(format!("{name}.lock"))) {
                // Another run of the same project is about to begin: this one's code comes for itself.
                Err(e) if e.is::<Busy>() => None,
                lock => Some((name, lock?)),
            }
        }
    };
    let Some((name, _lock)) = alone else {
        return mirror::receive(host, wire, (&own, &own_mark), hash, Squeeze::Yes, OnDisk::Now);
    };
    let kept = site.shared("code").join(name.as_path());
    let mark = site.shared("code").join(format!("{name}.tree"));
    mirror::receive(host, wire, (&kept, &mark), hash, Squeeze::Yes, OnDisk::Later)?;
    if let Err(error) = mirror::copy(host, &kept, (&own, &own_mark), hash) {
        // Whatever became of it, the next try looks at each file.
        host.remove(&mark)?;
        return Err(error);
    }
    Ok(())
}

fn environment(host: &Host, site: &Site, wire: &mut Wire) -> Result<()> {
    let (say, said) = channel::<String>();
    std::thread::scope(|scope| {
        let making = scope.spawn(move || {
            environment::check_gpu(host)?;
            // Whoever asked may be gone; what is made is there when they come back.
            environment::make(host, site, &mut |line| drop(say.send(line.chars().take(500).collect())))
        });
        loop {
            match said.recv_timeout(Duration::from_secs(10)) {
                Ok(line) => wire.tell(&Making::Said(line))?,
                // Packages are unpacked in silence.
                Err(RecvTimeoutError::Timeout) => wire.tell(&Making::Said(String::new()))?,
                Err(RecvTimeoutError::Disconnected) => break,
            }
        }
        making.join().map_err(|_| anyhow::anyhow!("making the environment came to a sudden end"))??;
        wire.tell(&Making::Done)
    })
}

fn not_begun(host: &Host, site: &Site) -> Result<()> {
    ensure!(!host.exists(&site.begun())?, "{} has begun: its files stay as they are", site.run);
    Ok(())
}

/// A disk that does not come holds up no machine's start: where it should be is the machine's own.
fn cloned(host: &Host, at: &Path) -> Result<()> {
    let table = host.read_text(Path::new(mounts::TABLE))?.unwrap_or_default();
    let mount = mounts::holding(&table, at).filter(|mount| mount.at != Path::new("/"));
    let mount = mount.with_context(|| {
        format!(
            "no clone of headquarters' data disk is mounted on this machine, where {} should be",
            at.display()
        )
    })?;
    ensure!(mount.read_only, "what is mounted at {} can be written to", mount.at.display());
    Ok(())
}

/// A dataset has one name, not a path of them: one within another would be undone by it.
fn plain(name: &Rel) -> Result<()> {
    ensure!(name.names().count() == 1, "{name} is no name of a dataset: it has a / in it");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        gpu::{job::Exit, spec::RunId, wire::tests::pair},
        host::System,
    };
    use site::{Begun, Order};

    #[test]
    fn a_script_that_nobody_keeps_has_ended_when_it_is_stopped_and_is_not_begun_again() {
        let dir = tempfile::tempdir().unwrap();
        let host = Host::new("/", System);
        let site = Site { home: dir.path().into(), run: RunId::try_from("r1".to_owned()).unwrap() };
        // As on a copy of a machine's disk: whoever kept the script was on the other machine.
        let ran = dir.path().join("ran");
        host.write(&site.code().join("a.sh"), 0o755, format!("touch {}\n", ran.display()).as_bytes())
            .unwrap();
        let order = Order {
            script: Rel::new("a.sh").unwrap(),
            arguments: Vec::new(),
            env: Vec::new(),
            out: Vec::new(),
            max_seconds: None,
            grace: 1,
            authority: None,
            azure: false,
        };
        write(&host, &site.order(), &order).unwrap();
        write(&host, &site.begun(), &Begun { first: 1, until: None, attempt: 1 }).unwrap();
        host.write(&site.lock(), 0o600, b"").unwrap();
        assert_eq!(start::standing(&host, &site).unwrap(), Standing::Unwatched);
        let (mut hq, mut agent) = pair();
        let asking = std::thread::spawn(move || {
            hq.tell(&Ask::Stop(Exit::Stopped)).unwrap();
            hq.hear::<()>().unwrap();
            hq.tell(&Ask::Look).unwrap();
            hq.hear::<Look>().unwrap().standing
        });
        attend(&host, &site, &mut agent).unwrap();
        assert_eq!(asking.join().unwrap(), Standing::Exited(Exit::Stopped));
        assert!(!host.exists(&ran).unwrap(), "it was begun again");
    }
}
