//! The loop: read where the run stands, do the phase, write down what happened, go on. It may die at any instruction,
//! and whoever holds the journal next finishes the work.
//!
//! What fails is tried again for as long as it may still succeed; what then has failed ends the run and never the
//! loop, which leaves only by having given everything back. A machine that we cannot give back is one that we go on
//! paying for: that is tried for ever.

use super::{
    home::Fetched,
    job::{Exit, Full, Hopeless, Job, Stand, is_nonsense},
    provider::{Class, Provider, Refusal, Rent},
    runs::{self, Held},
    state::{Event, Outcome, Phase, State},
};
use crate::{host::Host, hq::disk::size_words};
use anyhow::{Error, Result};
use std::time::Duration;
use time::OffsetDateTime;

/// Machines come within minutes. One that is promised for longer than this is asked for elsewhere.
const COMING: Duration = Duration::from_secs(20 * 60);

/// What can fail for reasons that pass: a network that is down, a package index that is busy.
const PATIENCE: Duration = Duration::from_secs(10 * 60);

/// A machine that says what no agent of ours says is asked so often in one phase.
const NONSENSE: u32 = 5;

/// A machine that is not heard of for so long, though its landlord says it is there, is given up. It costs, and the
/// script on it has its own deadline, so this can be long: an hour of ssh's trouble has been seen to pass.
const SILENCE: Duration = Duration::from_secs(60 * 60);

/// Several times in a provider's lease, which is two hours at Azure.
const RENEW: Duration = Duration::from_secs(15 * 60);

/// Between two looks at the script, and at what it has made.
const LOOK: Duration = Duration::from_secs(2);
const FETCH: Duration = Duration::from_secs(15);
/// The same where seconds count, and how often at most where it is for ever.
const SOON: Duration = Duration::from_millis(50);
const AT_ONCE: u32 = 10;

/// Beyond its grace, for a script that was told to end: a machine that counts by another clock, and one that is told late.
const TOLD: Duration = Duration::from_secs(160);

/// Results are worth waiting for, though not for ever: the machine costs.
const HOME: Duration = Duration::from_secs(30 * 60);

/// The same from a machine that was made of what was kept: it costs a cent an hour, and there is no other way home.
pub const HOME_FROM_COPY: Duration = Duration::from_secs(6 * 60 * 60);

/// A copy of a disk is promised within seconds, or there is something wrong that will not pass.
const KEEP: Duration = Duration::from_secs(10 * 60);

/// Of the half minute that a machine has which is taken away, so much is spent on what is newest.
const LAST_MINUTE: Duration = Duration::from_secs(25);

/// Lists lag behind deeds. What is gone is looked for once more after this long.
const TWICE: Duration = Duration::from_secs(5);

/// So many processes that outlive a run are named. A machine may make up any number of them.
const OUTLIVED: usize = 20;

pub trait Clock {
    fn now(&self) -> OffsetDateTime;
    fn wait(&self, long: Duration);
}

/// What a run is lent by the headquarters for as long as it lives: a user of its own at MLflow, and its secrets. Each
/// may be repeated.
pub trait Loan {
    /// Before anything is prepared on the machine.
    fn lend(&self, state: &State) -> Result<()>;
    /// The script was started: the machine has what it needs.
    fn delivered(&self, state: &State) -> Result<()>;
    /// Before the machine is given back.
    fn take_back(&self, state: &State) -> Result<()>;
}

pub struct Runner<'a> {
    pub host: &'a Host,
    pub provider: &'a dyn Provider,
    pub job: &'a dyn Job,
    pub loan: &'a dyn Loan,
    pub clock: &'a dyn Clock,
    /// For who watches.
    pub say: &'a dyn Fn(&str),
}

enum Next {
    Happened(Event),
    Wait(Duration),
}

/// What one driver remembers of a phase. A crash forgets it, and nothing is lost but a little patience.
#[derive(Default)]
struct Mind {
    /// Since when it fails, and how often it did.
    failing: Option<(OffsetDateTime, u32)>,
    /// How often nonsense was answered. What is right in between makes it no better.
    nonsense: u32,
    fetched: Option<OffsetDateTime>,
    renewed: Option<OffsetDateTime>,
    told_to_end: bool,
    delivered: bool,
    /// How often there was more to come home.
    came: u32,
    /// Since when the machine is being taken away.
    evicted: Option<OffsetDateTime>,
    /// Nothing was left, once.
    clean: bool,
}

impl Runner<'_> {
    /// Drive it to its end. An error is one of this machine's own: the journal cannot be written.
    pub fn drive(&self, held: &mut Held) -> Result<()> {
        let mut mind = Mind::default();
        while held.state.phase != Phase::Done {
            let now = self.clock.now();
            self.renew(&held.state, &mut mind, now);
            let next = match self.bidden(&held.state, now)? {
                Some(exit) => Next::Happened(Event::Ending { exit }),
                None => self.step(&held.state, &mut mind, now),
            };
            match next {
                Next::Happened(event) => {
                    held.note(self.clock.now(), &event)?;
                    mind = Mind { renewed: mind.renewed, ..Mind::default() };
                    (self.say)(&held.state.phase.to_string());
                }
                Next::Wait(long) => self.clock.wait(long),
            }
        }
        Ok(())
    }

    /// As long as somebody drives it, a run's machine is not ended by its landlord's own timer.
    fn renew(&self, state: &State, mind: &mut Mind, now: OffsetDateTime) {
        let used = matches!(state.phase, Phase::Prepare | Phase::Start | Phase::Watch | Phase::Fetch);
        if !used || mind.renewed.is_some_and(|at| now - at < RENEW) {
            return;
        }
        mind.renewed = Some(now);
        if let Err(error) = self.provider.renew(&state.spec.run) {
            (self.say)(&format!("its time is not put off just now: {error:#}"));
        }
    }

    /// Whether it has to end, and was not told yet.
    fn bidden(&self, state: &State, now: OffsetDateTime) -> Result<Option<Exit>> {
        if state.ending.is_some() || state.is_concluded() {
            return Ok(None);
        }
        if runs::stop_asked(self.host, &state.spec.run)? {
            return Ok(Some(Exit::Stopped));
        }
        let late = state.ends_by().is_some_and(|by| now >= by);
        Ok(late.then_some(Exit::Deadline))
    }

    fn step(&self, state: &State, mind: &mut Mind, now: OffsetDateTime) -> Next {
        match state.phase {
            Phase::Rent => self.rent(state, mind, now),
            Phase::Prepare => {
                let prepared = self.loan.lend(state).and_then(|()| {
                    let machine = machine(state)?;
                    self.job.prepare(&state.spec_on_machine(now), machine)
                });
                self.done(state, mind, now, prepared, Event::Prepared)
            }
            Phase::Start => {
                let started =
                    machine(state).and_then(|machine| self.job.start(&state.spec_on_machine(now), machine));
                self.done(state, mind, now, started, Event::Started)
            }
            Phase::Watch => self.watch(state, mind, now),
            Phase::Fetch => self.fetch(state, mind, now),
            Phase::Return => self.give_back(state, mind, now),
            Phase::Done => Next::Wait(Duration::ZERO),
        }
    }

    fn rent(&self, state: &State, mind: &mut Mind, now: OffsetDateTime) -> Next {
        let Some(rental) = state.renting() else {
            // A state without an offer left has an outcome, and is past this phase.
            let none = || Event::Failed { why: "no offer is left".into() };
            let offer = state.offers.front().cloned();
            return Next::Happened(offer.map_or_else(none, |offer| Event::Renting { offer }));
        };
        let rent = match state.copy().filter(|_| state.is_pull()) {
            Some(copy) => self.provider.rent_from_copy(&state.spec, &rental.offer, copy),
            None => self.provider.rent(&state.spec, &rental.offer),
        };
        match rent {
            Ok(Rent::Here(machine)) => Next::Happened(Event::Rented { machine }),
            Ok(Rent::Refused(refusal)) => Next::Happened(Event::Refused { refusal }),
            Ok(Rent::Coming(words)) if now - rental.asked < COMING => {
                (self.say)(&words);
                mind.failing = None;
                Next::Wait(LOOK)
            }
            Ok(Rent::Coming(words)) => {
                let minutes = COMING.as_secs() / 60;
                let said = format!("it was promised, and had not come after {minutes} minutes: {words}");
                Next::Happened(Event::Refused {
                    refusal: Refusal { class: Class::Capacity, said, hint: None },
                })
            }
            Err(error) => self.again(mind, now, &error, PATIENCE),
        }
    }

    /// The event, if it could be done.
    fn done(
        &self,
        state: &State,
        mind: &mut Mind,
        now: OffsetDateTime,
        done: Result<()>,
        event: Event,
    ) -> Next {
        match done {
            Ok(()) => Next::Happened(event),
            Err(error) => self.lost(state).unwrap_or_else(|| self.again(mind, now, &error, PATIENCE)),
        }
    }

    fn watch(&self, state: &State, mind: &mut Mind, now: OffsetDateTime) -> Next {
        let Ok(machine) = machine(state) else { return lost("there is no machine".into()) };
        if !mind.delivered {
            // A secret that stays a little longer where only root can read it stops nothing.
            mind.delivered = self.loan.delivered(state).is_ok();
        }
        if state.ending.is_some() && !mind.told_to_end {
            mind.told_to_end = self.job.stop(&state.spec, machine).is_ok();
        }
        if mind.evicted.is_some() {
            return self.last_minute(state, mind, now);
        }
        match self.job.poll(&state.spec, machine) {
            Ok(None | Some(Stand::Running)) if state.ending.is_some() && now - state.since > grace(state) => {
                Next::Happened(Event::Failed { why: "it did not end when told to".into() })
            }
            Ok(news @ (None | Some(Stand::Running))) => {
                if news.is_some() {
                    mind.failing = None;
                }
                self.fetch_meanwhile(state, mind, now);
                Next::Wait(LOOK)
            }
            Ok(Some(Stand::Exited(Exit::Evicted))) => {
                mind.evicted = Some(now);
                self.job.hurry();
                self.last_minute(state, mind, now)
            }
            Ok(Some(Stand::Exited(exit))) => Next::Happened(Event::Exited { exit }),
            Err(error) => self.lost(state).unwrap_or_else(|| {
                let patience = if state.ending.is_some() { grace(state) } else { SILENCE };
                self.again(mind, now, &error, patience)
            }),
        }
    }

    /// Half a minute is left, and what is here is not lost.
    fn last_minute(&self, state: &State, mind: &Mind, now: OffsetDateTime) -> Next {
        let over = mind.evicted.is_none_or(|since| now - since > LAST_MINUTE);
        match machine(state).and_then(|machine| self.job.fetch(&state.spec, machine)) {
            Ok(Fetched::Coming { .. } | Fetched::UnderWay) if !over => Next::Wait(SOON),
            _ => lost("the machine was taken away".into()),
        }
    }

    /// What is complete comes home while the script runs. What does not, comes later.
    fn fetch_meanwhile(&self, state: &State, mind: &mut Mind, now: OffsetDateTime) {
        if mind.fetched.is_some_and(|at| now - at < FETCH) {
            return;
        }
        mind.fetched = Some(now);
        if let Err(error) = machine(state).and_then(|machine| self.job.fetch(&state.spec, machine)) {
            (self.say)(&format!("results do not come home just now: {error:#}"));
        }
    }

    fn fetch(&self, state: &State, mind: &mut Mind, now: OffsetDateTime) -> Next {
        // A script that did not end by itself may run on, and nothing is complete while it does.
        let by_itself = matches!(&state.outcome, Some(Outcome::Exit(exit)) if exit.is_by_itself());
        if !by_itself && !mind.told_to_end {
            let told = machine(state).and_then(|machine| self.job.stop(&state.spec, machine));
            mind.told_to_end = told.is_ok();
        }
        if state.kept.is_some() && !state.is_pull() {
            return self.keep(state, mind, now);
        }
        // Whatever comes later than this would be paid for as dearly as the training.
        let spent = state.spec.max_cost.is_some_and(|most| most > 0 && state.cost(now) >= most);
        let late = match state.is_pull() || !self.provider.is_paid() {
            true => now - state.since > HOME_FROM_COPY,
            false => spent || now - state.since > HOME.saturating_add(Duration::from_secs(state.spec.grace)),
        };
        let next = match machine(state).and_then(|machine| self.job.fetch(&state.spec, machine)) {
            Ok(Fetched::Home(left)) if left.is_empty() => Next::Happened(Event::Fetched),
            Ok(Fetched::Home(left)) if self.provider.can_keep() || state.is_pull() => {
                Next::Happened(Event::Remains { left })
            }
            Ok(Fetched::Home(left)) => Next::Happened(Event::Failed { why: left.words() }),
            Ok(Fetched::Coming { .. }) if !late => {
                mind.failing = None;
                mind.came += 1;
                // A look that began before the script had ended says so; who goes on saying so is not asked all the time.
                Next::Wait(if mind.came <= AT_ONCE { SOON } else { LOOK })
            }
            Ok(Fetched::UnderWay) if !late => Next::Wait(LOOK),
            Ok(Fetched::UnderWay) => {
                Next::Happened(Event::Failed { why: "not everything came home in time".into() })
            }
            Ok(Fetched::Coming { files, bytes, .. }) => {
                let size = size_words(bytes);
                let why =
                    format!("not everything came home in time: {files} files of {size} are still there");
                Next::Happened(Event::Failed { why })
            }
            // The machine is dear, and a copy of its disk waits for room as well as it does.
            Err(error) if late || error.is::<Full>() && self.provider.can_keep() && !state.is_pull() => {
                Next::Happened(Event::Failed { why: format!("{error:#}") })
            }
            Err(error) => self.lost(state).unwrap_or_else(|| self.again(mind, now, &error, PATIENCE)),
        };
        match next {
            // Where its disk can be kept without the machine, that comes before giving back.
            Next::Happened(Event::Failed { why }) if self.provider.can_keep() && !state.is_pull() => {
                Next::Happened(Event::Keeping { why })
            }
            next => next,
        }
    }

    /// What cannot come home is kept, and that within its time too: the machine costs meanwhile.
    fn keep(&self, state: &State, mind: &mut Mind, now: OffsetDateTime) -> Next {
        let run = &state.spec.run;
        // Counted from when it was asked for: whoever dies in between begins no new time.
        let late = now - state.since > KEEP;
        // A landlord who answers nothing takes nothing back either: to wait for that costs no more.
        if late && let Err(error) = self.provider.still_there(run) {
            (self.say)(&format!("cannot be kept just now: {error:#}"));
            return self.pause(mind, now);
        }
        match self.provider.keep(run) {
            Ok(Some(place)) => Next::Happened(Event::Kept { place }),
            Ok(None) => lost("the machine is gone, and its disk with it".into()),
            Err(error) if late => Next::Happened(Event::Failed { why: format!("{error:#}") }),
            Err(error) => self.again(mind, now, &error, KEEP),
        }
    }

    fn give_back(&self, state: &State, mind: &mut Mind, now: OffsetDateTime) -> Next {
        // Each is tried whatever became of the other: a password file that cannot be written keeps no machine.
        let loan = self.loan.take_back(state);
        let left = self.provider.give_back(&state.spec.run);
        let outlived = self.provider.outlived();
        let news = outlived.into_iter().filter(|one| !state.outlived.contains(one));
        let news: Vec<_> = news.take(OUTLIVED.saturating_sub(state.outlived.len())).collect();
        if !news.is_empty() {
            return Next::Happened(Event::Outlived { processes: news });
        }
        match (loan, left) {
            (Ok(()), Ok(left)) if left.is_empty() => {
                let before = std::mem::replace(&mut mind.clean, true);
                if before || !self.provider.is_paid() {
                    return self.forget(state, mind, now);
                }
                Next::Wait(TWICE)
            }
            (Ok(()), Ok(left)) => {
                (self.say)(&format!("still there: {}", left.join(", ")));
                mind.clean = false;
                self.pause(mind, now)
            }
            (Err(error), _) | (_, Err(error)) => {
                (self.say)(&format!("cannot be given back just now: {error:#}"));
                mind.clean = false;
                self.pause(mind, now)
            }
        }
    }

    /// Nothing of the machine is left. Nor shall there be of the copy that it was made of, once all is home.
    fn forget(&self, state: &State, mind: &mut Mind, now: OffsetDateTime) -> Next {
        if !state.is_home_from_copy() {
            return Next::Happened(Event::Returned);
        }
        match self.provider.forget(&state.spec.run) {
            Ok(true) => Next::Happened(Event::Forgotten),
            Ok(false) => {
                (self.say)("what was kept is still on its way out");
                self.pause(mind, now)
            }
            Err(error) => {
                (self.say)(&format!("what was kept cannot be removed just now: {error:#}"));
                self.pause(mind, now)
            }
        }
    }

    /// Silence proves nothing: only its landlord knows whether a machine is gone.
    fn lost(&self, state: &State) -> Option<Next> {
        match self.provider.still_there(&state.spec.run) {
            Ok(false) => Some(lost("the machine is gone".into())),
            Ok(true) | Err(_) => None,
        }
    }

    /// It failed: later once more, or never again.
    fn again(&self, mind: &mut Mind, now: OffsetDateTime, error: &Error, patience: Duration) -> Next {
        let since = mind.failing.map_or(now, |(since, _)| since);
        mind.nonsense += u32::from(is_nonsense(error));
        if error.is::<Hopeless>() || mind.nonsense >= NONSENSE || now - since > patience {
            return Next::Happened(Event::Failed { why: format!("{error:#}") });
        }
        (self.say)(&format!("tried again soon: {error:#}"));
        self.pause(mind, now)
    }

    /// One, two, four seconds, and at most a minute.
    fn pause(&self, mind: &mut Mind, now: OffsetDateTime) -> Next {
        let (_, tries) = mind.failing.get_or_insert((now, 0));
        *tries += 1;
        Next::Wait(Duration::from_secs(1 << (*tries - 1).min(6)).min(Duration::from_secs(60)))
    }
}

/// How long a script that was told to end is waited for.
fn grace(state: &State) -> Duration {
    Duration::from_secs(state.spec.grace).saturating_add(TOLD)
}

fn machine(state: &State) -> Result<&super::provider::Machine> {
    state.machine.as_ref().ok_or_else(|| Error::msg("there is no machine").context(Hopeless))
}

fn lost(why: String) -> Next {
    Next::Happened(Event::Lost { why })
}

#[cfg(test)]
#[path = "runner/tests.rs"]
mod tests;
