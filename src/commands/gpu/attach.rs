//! `gpu attach RUN`: watch a run until it ends, and exit with its script's status. Watching is all it is: Ctrl-C ends
//! it and the run goes on. A driver that died meanwhile is replaced.

use super::{drivers_words, known, receipt};
use crate::{
    commands::{config::Settings, need_root, this_machine},
    config::Config,
    gpu::{
        driver, final_status,
        home::NOTHING,
        left::{Left, LeftFile},
        log::Harmless,
        pulse::{self, Countdown},
        receipt::{NOT_PROVEN_GONE, pull_status, status},
        runs,
        spec::RunId,
        state::{Event, Outcome, Phase, Pulled, State},
    },
    host::{
        Host,
        beneath::{OpenFile, Stamp},
    },
    ui::{Step, Ui},
    web::block_on,
};
use anyhow::{Context as _, Result};
use std::{
    io::{Read as _, Seek as _, SeekFrom},
    path::PathBuf,
    time::{Duration, Instant},
};
use time::OffsetDateTime;

#[derive(clap::Args)]
pub struct Args {
    run: RunId,
    /// Print what happens as JSON, a line each
    #[arg(long)]
    pub json: bool,
}

/// Exit status when the watching was ended: as a shell says it of Ctrl-C.
const DETACHED: u8 = 130;

const LOOK: Duration = Duration::from_millis(250);

/// How many looks between two at whether somebody drives it.
const DRIVEN: u32 = 20;

/// Giving back takes minutes where an address stays reserved. What takes longer than this needs a person.
const GIVING_BACK: Duration = Duration::from_secs(20 * 60);

/// MLflow tells within a moment, or it is down.
const LINK: Duration = Duration::from_secs(3);

/// Of a log, at once. More comes with the next look.
const PIECE: u64 = 1 << 20;

/// The longest line that is waited for.
const LINE: usize = 64 << 10;

/// Between two lines on how it goes, where they stay.
const PULSE: Duration = Duration::from_secs(60);

pub fn run(args: Args, settings: &Settings, ui: &Ui) -> Result<u8> {
    let host = this_machine();
    need_root(&host)?;
    let config = settings.read(&host)?;
    let of = if known(&host, &args.run)?.is_pull() { Of::Pull } else { Of::Run };
    follow(&host, &config, settings, (&args.run, of), args.json, ui)
}

/// What is watched, and whose exit status it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Of {
    Run,
    /// Bringing home what was kept of it: what was told before is not told again.
    Pull,
}

/// What a person may want next.
pub fn next_commands(run: &RunId) -> String {
    let own = "echoes-appliance gpu";
    format!(
        "{run} goes on. Watch it:  {own} attach {run}\n  its output:  {own} logs -f {run}\n  all runs:    {own} ps\n  end it:      {own} stop {run}"
    )
}

/// Until it ends, or the person at the keyboard has seen enough.
pub fn follow(
    host: &Host,
    config: &Config,
    settings: &Settings,
    (run, of): (&RunId, Of),
    json: bool,
    ui: &Ui,
) -> Result<u8> {
    let log = Tail::new(config, run);
    let (log, told) = match of {
        Of::Run => (log, 0),
        Of::Pull => {
            let begins = |(_, event): &(OffsetDateTime, Event)| matches!(event, Event::Pulling { .. });
            (log.at_its_end(host)?, runs::events(host, run)?.iter().rposition(begins).unwrap_or(0))
        }
    };
    let mut watch = Watch {
        host,
        run,
        of,
        json,
        ui,
        log,
        config,
        told,
        step: None,
        rest: String::new(),
        pulse: Instant::now(),
        left: Left::default(),
        countdown: None,
    };
    block_on(async {
        let mut looks = 0;
        loop {
            if let Some(status) = watch.look()? {
                return Ok(status);
            }
            looks += 1;
            // One that is over is let go while MLflow is told.
            let goes_on = |held: runs::Held| held.state.phase != Phase::Done;
            if looks % DRIVEN == 0 && runs::hold(host, run)?.is_some_and(goes_on) {
                ui.say("its driver is gone; another one takes over");
                driver::start(host, run, &drivers_words(settings))?;
            }
            tokio::select! {
                () = tokio::time::sleep(LOOK) => {}
                _ = tokio::signal::ctrl_c() => {
                    watch.step = None;
                    ui.say(next_commands(run));
                    return Ok(DETACHED);
                }
            }
        }
    })
}

struct Watch<'a> {
    host: &'a Host,
    run: &'a RunId,
    of: Of,
    json: bool,
    ui: &'a Ui,
    log: Tail,
    config: &'a Config,
    /// How many events were told.
    told: usize,
    /// What is being done.
    step: Option<(Phase, Step)>,
    /// Of the script's output: the line that is not whole yet, where a live one is drawn below it.
    rest: String,
    /// When it was last said how it goes.
    pulse: Instant,
    /// Left on the machine, as it was last told.
    left: Left,
    /// What was said last of how long it has to end.
    countdown: Option<Countdown>,
}

impl Watch<'_> {
    /// What is new. The exit status, when that was all.
    fn look(&mut self) -> Result<Option<u8>> {
        let state = known(self.host, self.run)?;
        let events = runs::events(self.host, self.run)?;
        for (at, event) in &events[self.told.min(events.len())..] {
            if self.json {
                self.ui.out(super::events::to_json(*at, event)?);
            } else if let Some(words) = super::events::news(event) {
                self.ui.say(words);
            }
        }
        self.told = events.len();
        let now = OffsetDateTime::now_utc();
        self.show_phase(&state, now)?;
        self.show_left()?;
        while let Some(text) = self.log.more(self.host)? {
            if self.json {
                self.ui.out(serde_json::json!({ "log": text }));
            } else if self.ui.is_live() {
                self.rest += &text;
                // A line without an end is cut: it may never have one.
                let whole = self.rest.rfind('\n').map_or(0, |end| end + 1);
                let cut = if self.rest.len() - whole > LINE { self.rest.len() } else { whole };
                let (lines, rest) = self.rest.split_at_checked(cut).unwrap_or((&self.rest, ""));
                self.ui.raw(lines);
                self.rest = rest.to_owned();
            } else {
                self.ui.raw(&text);
            }
        }
        if state.phase == Phase::Done {
            // Where its runs are in MLflow is known a moment later, and worth that moment.
            let awaited = final_status::read(self.host, self.run).ok().flatten();
            if awaited.is_some_and(|status| status.is_awaited()) && now - state.since < LINK {
                return Ok(None);
            }
            return Ok(Some(self.close(&state, now)?));
        }
        if state.phase == Phase::Return && now - state.since > GIVING_BACK {
            self.close(&state, now)?;
            let words = runs::said(self.host, self.run)?.unwrap_or_default();
            self.ui.warn(format_args!(
                "it could not be given back yet, and is tried for as long as it takes. {words}"
            ));
            return Ok(Some(NOT_PROVEN_GONE));
        }
        Ok(None)
    }

    fn show_phase(&mut self, state: &State, now: OffsetDateTime) -> Result<()> {
        if self.step.as_ref().is_some_and(|(phase, _)| *phase != state.phase)
            && let Some((_, step)) = self.step.take()
        {
            step.done();
        }
        if state.phase == Phase::Done {
            return Ok(());
        }
        let ago = (now - state.since).try_into().unwrap_or_default();
        let begin = || (state.phase, self.ui.step_begun(state.phase, ago));
        let (_, step) = self.step.get_or_insert_with(begin);
        if state.phase == Phase::Watch {
            let doing = runs::read_pulse(self.host, self.run)?.filter(|words| !words.is_empty());
            let countdown = Countdown::of(state, now);
            let ends = countdown.map(|countdown| countdown.to_string());
            let pulse: Vec<_> =
                ends.clone().into_iter().chain(doing).chain([pulse::money(state, now)]).collect();
            let pulse = pulse.join(" · ");
            step.detail(&pulse);
            // Lines that stay come now and then.
            if let (Some(now), Some(words)) = (countdown, ends)
                && !self.countdown.is_some_and(|said| said.is_like(now))
            {
                self.countdown = Some(now);
                if !self.ui.is_live() && !self.json {
                    self.ui.say(words);
                }
            } else if !self.ui.is_live() && self.pulse.elapsed() > PULSE {
                self.pulse = Instant::now();
                self.ui.say(pulse);
            }
        } else if let Some(words) = runs::said(self.host, self.run)?
            && words != state.phase.to_string()
        {
            step.tell(&words);
        }
        Ok(())
    }

    /// Whenever it is more than it was: there may be time to do something about it.
    fn show_left(&mut self) -> Result<()> {
        let Some(left) = runs::read_left(self.host, self.run)? else { return Ok(()) };
        let before = std::mem::replace(&mut self.left, left.clone());
        if self.json && left != before {
            self.ui.out(serde_json::json!({ "left": left }));
        } else if !self.json {
            for LeftFile { path, why } in left.special.iter().filter(|one| !before.special.contains(one)) {
                self.ui.say(format_args!("{path} is {why}: {NOTHING}"));
            }
            if left.count > before.count {
                self.ui.say(format_args!("left on the machine so far: {}", left.words()));
            }
        }
        Ok(())
    }

    fn close(&mut self, state: &State, now: OffsetDateTime) -> Result<u8> {
        self.show_left()?;
        if let Some((_, step)) = self.step.take() {
            step.done();
        }
        if !self.rest.is_empty() {
            self.ui.raw(&format!("{}\n", std::mem::take(&mut self.rest)));
        }
        let receipt = receipt(self.host, self.config, state, now);
        if self.json {
            self.ui.out(serde_json::json!({ "receipt": receipt }));
        } else {
            self.ui.say(receipt.text());
        }
        let outcome = match (self.of, &state.pulled) {
            (Of::Run, _) => state.outcome.as_ref(),
            (Of::Pull, Some(Pulled::Ended(outcome))) => Some(outcome),
            (Of::Pull, _) => None,
        };
        if let Some(Outcome::Refused(refusal)) = outcome
            && let Some(hint) = &refusal.hint
        {
            self.ui.say(format_args!("try:   {hint}"));
        }
        Ok(match self.of {
            Of::Run => status(state).unwrap_or(0),
            Of::Pull => pull_status(state),
        })
    }
}

/// The output of a script, as far as it has come home: a file that grows.
pub struct Tail {
    /// All results.
    results: PathBuf,
    run: RunId,
    from: u64,
    harmless: Harmless,
}

impl Tail {
    pub fn new(config: &Config, run: &RunId) -> Self {
        let (results, harmless) = (runs::all_results(config), Harmless::default());
        Self { results, run: run.clone(), from: 0, harmless }
    }

    fn open(&self, host: &Host) -> Result<Option<(OpenFile, Stamp)>> {
        runs::open_result(host, &self.results, &self.run, "log.txt")
    }

    /// Only what comes from now on.
    pub fn at_its_end(self, host: &Host) -> Result<Self> {
        let from = self.open(host)?.map_or(0, |(_, stamp)| stamp.len);
        Ok(Self { from, ..self })
    }

    /// What has come since, fit for a terminal; none when nothing has.
    pub fn more(&mut self, host: &Host) -> Result<Option<String>> {
        let Some((mut file, _)) = self.open(host)? else { return Ok(None) };
        let mut bytes = Vec::new();
        file.seek(SeekFrom::Start(self.from))?;
        file.take(PIECE).read_to_end(&mut bytes).context("reading log.txt")?;
        self.from += bytes.len() as u64;
        Ok((!bytes.is_empty()).then(|| self.harmless.push(&bytes)))
    }
}

#[cfg(test)]
// Tests look at files and processes directly.
#[allow(clippy::disallowed_methods)]
mod tests {
    use super::*;
    use crate::host::System;
    use std::os::unix::fs::symlink;

    #[test]
    fn what_a_log_leads_to_is_shown_to_nobody() {
        let dir = tempfile::tempdir().unwrap();
        let host = Host::new("/", System);
        let config = Config::default();
        let run = RunId::try_from("r1".to_owned()).unwrap();
        let mut tail = Tail { results: dir.path().into(), ..Tail::new(&config, &run) };
        let log = dir.path().join("r1/log.txt");
        host.write(&log, 0o644, b"one\n").unwrap();
        assert_eq!(tail.more(&host).unwrap().as_deref(), Some("one\n"));
        host.write(&dir.path().join("secret"), 0o600, b"one\nsecret\n").unwrap();
        host.remove(&log).unwrap();
        symlink(dir.path().join("secret"), &log).unwrap();
        assert_eq!(tail.more(&host).unwrap(), None);
        host.remove_tree(&dir.path().join("r1")).unwrap();
        host.write(&dir.path().join("theirs/log.txt"), 0o600, b"one\nsecret\n").unwrap();
        symlink(dir.path().join("theirs"), dir.path().join("r1")).unwrap();
        assert_eq!(tail.more(&host).unwrap(), None);
    }
}
