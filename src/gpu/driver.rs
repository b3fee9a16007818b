//! The process that drives a run, apart from whoever asked for it: a unit of systemd where the headquarters is
//! installed, so that it is started again when it dies; else a process of its own, which the next sweep replaces.

use super::{
    agent::sandbox::Sandbox,
    beside::{Beside, Wake},
    checkout,
    errand::{Errand, FOLLOWED, Given},
    final_status,
    home::{Fetched, Quota},
    job::{Job, Stand},
    left::Left,
    loan::{self, Desk},
    provider::{self, Machine},
    reader::Reader,
    runner::{Clock, Loan, Runner},
    runs,
    spec::{RunId, Source, Spec},
    state::{Phase, State},
    telling::{News, Telling},
};
use crate::{
    config::{Config, Signer, UnixPath},
    host::{Cmd, Host, person::Person, process::Over},
    patience::Patience,
    tls::internal::Authority,
    ui::Ui,
    web::hold,
};
use anyhow::{Context as _, Result};
use std::{
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        mpsc::{Sender, channel},
    },
    time::{Duration, Instant},
};
use time::OffsetDateTime;

/// What the errands of all runs remember: what of a run came home, and what datasets hash to.
const MEMORY: &str = "/var/lib/echoes-appliance/home";

/// The template of drivers' units.
pub const UNIT: &str = "/etc/systemd/system/echoes-gpu@.service";

/// What a driver that is no unit says.
pub fn log(run: &RunId) -> PathBuf {
    runs::dir(run).join("driver.log")
}

/// The words of the command line by which a driver reads the same settings as we do.
pub struct Words(pub Vec<String>);

/// Start one, and come back at once. One too many finds the run taken and ends.
pub fn start(host: &Host, run: &RunId, words: &Words) -> Result<()> {
    let systemd = host.exists(Path::new("/run/systemd/system"))? && host.exists(Path::new(UNIT))?;
    // A unit reads the machine's own settings, and no others.
    if systemd && words.0.is_empty() {
        let unit = format!("echoes-gpu@{run}.service");
        // Five deaths in a row leave it down; whoever starts it again means it.
        host.ask(&Cmd::new("systemctl", ["reset-failed", &unit]))?;
        host.run(&Cmd::new("systemctl", ["start", "--no-block", &unit]))?;
        return Ok(());
    }
    let own = std::env::current_exe().context("finding this program")?;
    host.run(&detached(&log(run), &own, run, words))?;
    Ok(())
}

/// In a session of its own: neither a Ctrl-C nor a closed terminal reaches it.
fn detached(log: &Path, own: &Path, run: &RunId, words: &Words) -> Cmd {
    let script = r#"umask 077; exec setsid -f "$@" < /dev/null >> "$0" 2>&1"#;
    let first = ["-c".to_owned(), script.into(), log.display().to_string(), own.display().to_string()];
    let verb = ["gpu".to_owned(), "drive".into(), run.to_string()];
    Cmd::new("sh", first.into_iter().chain(words.0.iter().cloned()).chain(verb))
}

/// Drive it to its end, unless somebody does.
pub fn drive(host: &Arc<Host>, config: &Config, run: &RunId, ui: &Ui) -> Result<()> {
    // Who only looks whether it is held holds it for a moment. What cannot be read will not be read in a second.
    let take = || runs::hold(host, run).transpose().context("held by somebody else");
    let Ok(held) = Patience::seconds(2).until(take) else {
        ui.say(format_args!("{run} is driven by somebody else, or is not there"));
        return Ok(());
    };
    let held = held?;
    let last = Mutex::new(String::new());
    let say = |words: &str| {
        let mut last = hold(&last);
        if *last != words {
            words.clone_into(&mut last);
            ui.say(words);
            // Who watches sees it a little later, or not.
            let _ = runs::say(host, run, words);
        }
    };
    let spec = held.state.spec.clone();
    let telling = telling(host, config, &spec)?;
    if held.state.phase == Phase::Done {
        // It was over before MLflow could be told. What fails is put off, and no reason to be started again at once.
        if let Err(error) = telling.tell_end(&held.state) {
            ui.say(format_args!("MLflow is not told yet how it ended: {error:#}"));
        }
        return runs::hush(host, run);
    }
    let provider = provider::of(&spec.source, host, config)?;
    std::thread::scope(|scope| {
        let (tell, news) = channel();
        let is_told = telling.base.is_some();
        scope.spawn(move || telling.tell_all(&news, &|words| ui.say(words)));
        // At the end of this, all who have news are gone, and the run is let go: only then is the telling waited for.
        let mut held = held;
        let remote = Remote::new(host, config, &spec, &say, tell.clone())?;
        let desk = Lender { desk: Desk { host, config }, news: is_told.then_some(tell), say: &say };
        let wake = Wake::default();
        let clock = Wall { host, run, wake: &wake };
        std::thread::scope(|scope| {
            let job = Driven {
                remote: &remote,
                following: Beside::new(scope, &wake),
                fetching: Beside::new(scope, &wake),
            };
            let provider = provider.as_ref();
            let runner = Runner { host, provider, job: &job, loan: &desk, clock: &clock, say: &say };
            let driven = runner.drive(&mut held);
            // Whoever is still spoken with is not waited for.
            remote.errand.close();
            driven
        })?;
        runs::hush(host, run)
    })
}

/// Tells MLflow of a run: from here, wherever its script is.
fn telling<'a>(host: &'a Host, config: &Config, spec: &Spec) -> Result<Telling<'a>> {
    let measured = spec.env.iter().any(|(name, _)| name == "MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING");
    let base = loan::mlflow(host, config, &Source::Local)?;
    let (run, results) = (spec.run.clone(), runs::all_results(config));
    Ok(Telling { host, base, measured, run, results, told: 0, pulse: String::new() })
}

/// The desk, and somebody who tells MLflow how the run ended while what it was lent is taken back.
struct Lender<'a> {
    desk: Desk<'a>,
    /// None: there is no MLflow.
    news: Option<Sender<News>>,
    say: &'a dyn Fn(&str),
}

impl Loan for Lender<'_> {
    fn lend(&self, state: &State) -> Result<()> {
        self.desk.lend(state)
    }

    fn delivered(&self, state: &State) -> Result<()> {
        self.desk.delivered(state)
    }

    fn take_back(&self, state: &State) -> Result<()> {
        // What is not known yet is told by the last of its machines.
        if let Some(news) = self.news.as_ref().filter(|_| state.outcome.is_some()) {
            match final_status::note(self.desk.host, state, OffsetDateTime::now_utc()) {
                // Nobody hears it once all has been told.
                Ok(()) => drop(news.send(News::Ended(Box::new(state.clone())))),
                Err(error) => (self.say)(&format!("MLflow is not told how it ended: {error:#}")),
            }
        }
        self.desk.take_back(state)
    }
}

/// A run's dealings with its machine. What it is lent is there only once it was lent, and is read for as long as it takes to
/// hand it over.
struct Remote<'a> {
    host: &'a Arc<Host>,
    config: &'a Config,
    say: &'a (dyn Fn(&str) + Sync),
    errand: Errand<'a>,
    news: Sender<News>,
    /// What is left, as it was last shown.
    shown: Mutex<Left>,
}

impl<'a> Remote<'a> {
    fn new(
        host: &'a Arc<Host>,
        config: &'a Config,
        spec: &Spec,
        say: &'a (dyn Fn(&str) + Sync),
        news: Sender<News>,
    ) -> Result<Self> {
        let errand = Errand::new(host, given(host, config, spec, Vec::new())?, say);
        Ok(Self { host, config, say, errand, news, shown: Mutex::default() })
    }

    fn fetch(&self, spec: &Spec, machine: &Machine) -> Result<Fetched> {
        let fetched = self.errand.fetch(spec, machine);
        if let Ok(Fetched::Home(left) | Fetched::Coming { left, .. }) = &fetched {
            self.show_left(spec, left);
        }
        // Nobody hears it where telling came to a sudden end.
        let _ = self.news.send(News::Samples);
        fetched
    }

    /// For who watches now; the receipt has it in the end.
    fn show_left(&self, spec: &Spec, left: &Left) {
        let mut shown = hold(&self.shown);
        if *shown == *left {
            return;
        }
        shown.clone_from(left);
        if let Err(error) = runs::put_left(self.host, &spec.run, left) {
            (self.say)(&format!("what is left cannot be shown: {error:#}"));
        }
    }
}

/// The same beside the loop that drives the run.
struct Driven<'scope, 'env> {
    remote: &'scope Remote<'env>,
    following: Beside<'scope, 'env, Machine, Result<Stand>>,
    fetching: Beside<'scope, 'env, Machine, Result<Fetched>>,
}

impl Job for Driven<'_, '_> {
    fn prepare(&self, spec: &Spec, machine: &Machine) -> Result<()> {
        let remote = self.remote;
        remote.errand.on_another_machine(spec)?;
        let secrets = loan::secrets(remote.host, &spec.run)?.into_iter().collect();
        let mut given = given(remote.host, remote.config, spec, secrets)?;
        if !given.tags.is_empty() {
            given.tags.extend(
                given
                    .reader
                    .person()
                    .map(|person| checkout::tags(remote.host, person, &spec.project))
                    .unwrap_or_default(),
            );
        }
        given.over = Some(over(remote.host, &spec.run));
        Errand::new(remote.host, given, remote.say).prepare(spec, machine)
    }

    fn start(&self, spec: &Spec, machine: &Machine) -> Result<()> {
        self.remote.errand.start(spec, machine)
    }

    fn poll(&self, spec: &Spec, machine: &Machine) -> Result<Option<Stand>> {
        let (remote, spec, there) = (self.remote, spec.clone(), machine.clone());
        self.following
            .ask(machine.clone(), move || remote.errand.follow(&spec, &there, FOLLOWED))?
            .transpose()
    }

    fn stop(&self, spec: &Spec, machine: &Machine) -> Result<()> {
        self.remote.errand.stop(spec, machine)
    }

    fn fetch(&self, spec: &Spec, machine: &Machine) -> Result<Fetched> {
        let (remote, spec, there) = (self.remote, spec.clone(), machine.clone());
        let fetched = self.fetching.ask(machine.clone(), move || remote.fetch(&spec, &there))?;
        fetched.unwrap_or(Ok(Fetched::UnderWay))
    }

    fn hurry(&self) {
        self.remote.errand.hurry();
    }
}

/// What is this headquarters' and not the run's.
fn given(host: &Host, config: &Config, spec: &Spec, secrets: Vec<(String, String)>) -> Result<Given> {
    let data = config.data.path.to_path();
    let here = spec.source == Source::Local;
    // Here we are root and the script is a person's; elsewhere ssh has said who we are.
    let user = (here && spec.owner != "root").then(|| spec.owner.clone());
    let writable = || {
        let named = config.gpu.local_writable.iter().map(UnixPath::to_path);
        named.chain([data.clone()]).collect()
    };
    let sandbox = (here && config.gpu.local_sandbox).then(|| Sandbox { writable: writable() });
    // Results are the person's, and the group's that has the others there.
    let owner = match (host.uid(&spec.owner)?, host.gid("echoes")?) {
        (Some(uid), Some(gid)) => Some((uid, gid)),
        _ => None,
    };
    // Elsewhere, who signs MLflow's certificate may be known to nobody.
    let authority = match config.signer() {
        Signer::Internal if !here => Authority::read(host)?.map(|(pem, _)| pem),
        _ => None,
    };
    Ok(Given {
        user,
        reader: reader_of(host, spec),
        sandbox,
        results: runs::all_results(config),
        data,
        owner,
        memory: MEMORY.into(),
        env: loan::environment(host, config, spec)?,
        tags: loan::tags(host, config, spec)?,
        secrets,
        authority,
        quota: quota(config),
        over: None,
    })
}

/// The reader of a run's project; ourselves, where `gpu doctor` has put it there.
pub fn reader_of(host: &Host, spec: &Spec) -> Reader {
    let is_ours = spec.project == runs::checkout(&spec.run);
    Reader::new(if is_ours {
        Person::ourselves()
    } else {
        checkout::reader(host, &spec.owner, &spec.project)
    })
}

fn quota(config: &Config) -> Quota {
    let files = usize::try_from(config.gpu.max_result_files).unwrap_or(usize::MAX);
    let quota = Quota { files, ..Quota::default() };
    match config.gpu.max_result_gib {
        0 => quota,
        gib => Quota { all: u64::from(gib) << 30, ..quota },
    }
}

/// As the runner sees it between two steps, for a step that takes long.
fn over(host: &Arc<Host>, run: &RunId) -> Over {
    let (host, run) = (Arc::clone(host), run.clone());
    Arc::new(move || {
        // A journal that cannot be read just now ends nothing.
        let by = || runs::state(&host, &run).ok().flatten().and_then(|state| state.ends_by());
        runs::stop_asked(&host, &run).unwrap_or(false)
            || by().is_some_and(|by| OffsetDateTime::now_utc() >= by)
    })
}

/// The time on the wall; whoever waits by it is woken by news from the machine, and by a person who wants an end.
struct Wall<'a> {
    host: &'a Host,
    run: &'a RunId,
    wake: &'a Wake,
}

impl Clock for Wall<'_> {
    fn now(&self) -> OffsetDateTime {
        OffsetDateTime::now_utc()
    }

    fn wait(&self, long: Duration) {
        const BETWEEN: Duration = Duration::from_millis(100);
        // What cannot be looked at wakes nobody.
        let is_asked = || runs::stop_asked(self.host, self.run).unwrap_or(false);
        let (until, before) = (Instant::now() + long, is_asked());
        loop {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() || self.wake.wait(left.min(BETWEEN)) || !before && is_asked() {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::System;

    #[test]
    fn a_detached_driver_is_given_its_words_as_they_are_and_is_not_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let run = RunId::try_from("r1".to_owned()).unwrap();
        let (log, stand_in) = (dir.path().join("a log"), dir.path().join("stand in"));
        let host = Host::new("/", System);
        let script = b"#!/bin/sh\nprintf '%s|' \"$@\"\nif read -r line; then echo terminal; fi\nsleep 5\n";
        host.write(&stand_in, 0o755, script).unwrap();
        let words = Words(vec!["--set".into(), "data.path=/a b".into()]);
        let since = std::time::Instant::now();
        host.run(&detached(&log, &stand_in, &run, &words)).unwrap();
        assert!(since.elapsed() < Duration::from_secs(4), "it was waited for");
        let said = crate::patience::Patience::seconds(3)
            .until(|| host.read_text(&log)?.filter(|said| !said.is_empty()).context("nothing yet"));
        assert_eq!(said.unwrap(), "--set|data.path=/a b|gpu|drive|r1|");
    }
}
