//! Where a run stands. A phase is the thing still to be done, an event is a thing that happened; this file alone
//! decides what follows what, and the same function replays a journal and leads a life. Pure.
//!
//! One rental at a time: whatever came of an offer is given back before the next one is tried, so nothing that an
//! earlier attempt left behind can be taken for the machine of a later one.

use super::{
    job::Exit,
    left::Left,
    provider::{Class, Machine, Offer, Refusal},
    spec::Spec,
};
use anyhow::{Result, ensure};
use serde::{Deserialize, Serialize};
use std::{collections::VecDeque, fmt, time::Duration};
use time::OffsetDateTime;

/// Of the money that a run may cost, so much time's worth is kept for bringing home and giving back, besides what its script
/// is given to end.
const RESERVE: Duration = Duration::from_secs(580);

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    Rent,
    Prepare,
    Start,
    Watch,
    Fetch,
    Return,
    Done,
}

impl fmt::Display for Phase {
    /// What is being done, for people.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Rent => "renting",
            Self::Prepare => "preparing",
            Self::Start => "starting",
            Self::Watch => "running",
            Self::Fetch => "bringing home",
            Self::Return => "giving back",
            Self::Done => "done",
        })
    }
}

/// Once released, a variant is never changed: old journals load for ever.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum Event {
    /// A person asked for it: the first entry of every journal. The offers are in order of preference.
    Asked {
        spec: Box<Spec>,
        offers: Vec<Offer>,
    },
    /// About to ask for a machine by this offer. From here on something may be ours, and may cost.
    Renting {
        offer: Offer,
    },
    /// Not by that offer.
    Refused {
        refusal: Refusal,
    },
    Rented {
        machine: Machine,
    },
    /// Code, data and environment are there.
    Prepared,
    Started,
    Exited {
        exit: Exit,
    },
    /// The machine is gone, and not by us.
    Lost {
        why: String,
    },
    /// Everything is home.
    Fetched,
    /// All that can come home is here, and this is left. What is on the machine is to be kept, as with `Keeping`.
    Remains {
        left: Left,
    },
    /// Not everything comes home in time: what is on the machine is to be kept. From here on a copy may be ours, and may
    /// cost.
    Keeping {
        why: String,
    },
    /// Where it is kept. It is there until a person does not want it any more.
    Kept {
        place: String,
    },
    /// What was kept is gone.
    Forgotten,
    /// A person wants what was kept: the run that is over rents once more, by one of these, a machine that is made of
    /// it. Nothing is prepared or started on that one, and it changes nothing of how the run ended.
    Pulling {
        offers: Vec<Offer>,
    },
    /// The phase could not be done. What was started is still fetched, what was rented is still given back.
    Failed {
        why: String,
    },
    /// It has to end: a person asked for it, or its time or its money is used up.
    Ending {
        exit: Exit,
    },
    /// Processes that were found where it ran, and are not for us to end.
    Outlived {
        processes: Vec<String>,
    },
    /// Nothing of it is left, and that was looked at twice.
    Returned,
}

/// An event as it stands in the file.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Entry {
    #[serde(with = "time::serde::rfc3339")]
    pub at: OffsetDateTime,
    #[serde(flatten)]
    pub event: Event,
}

impl Entry {
    pub fn new(at: OffsetDateTime, event: &Event) -> Self {
        Self { at, event: event.clone() }
    }
}

/// One attempt to have a machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Rental {
    pub offer: Offer,
    #[serde(with = "time::serde::rfc3339")]
    pub asked: OffsetDateTime,
    #[serde(with = "time::serde::rfc3339::option")]
    pub came: Option<OffsetDateTime>,
    /// When nothing of it was left.
    #[serde(with = "time::serde::rfc3339::option")]
    pub returned: Option<OffsetDateTime>,
    /// Why it was not to be had.
    pub refusal: Option<Refusal>,
}

impl Rental {
    /// Millionths of a US dollar by list price, from the first request to the proof that all is gone, so rather too
    /// much than too little. What was refused is not charged for.
    fn cost(&self, now: OffsetDateTime) -> u64 {
        if self.refusal.is_some() {
            return 0;
        }
        let long = self.returned.unwrap_or(now) - self.asked;
        let seconds = u64::try_from(long.whole_seconds()).unwrap_or(0);
        self.offer.price.saturating_mul(seconds).div_ceil(3600)
    }
}

/// How it all ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// By the script itself, or because it had to.
    Exit(Exit),
    /// No offer could be had.
    Refused(Refusal),
    /// Taken away, and there was no other offer.
    Lost(String),
    Failed(String),
}

/// What became of bringing home what was kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Pulled {
    /// It goes on.
    Not,
    Home,
    /// What was kept still is.
    Ended(Outcome),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct State {
    pub spec: Spec,
    pub phase: Phase,
    /// When the phase began.
    pub since: OffsetDateTime,
    /// Not tried yet, the best first.
    pub offers: VecDeque<Offer>,
    /// Tried, the last one last.
    pub rentals: Vec<Rental>,
    pub machine: Option<Machine>,
    /// The script's first line, on whichever machine.
    pub started: Option<OffsetDateTime>,
    /// It was told to end, and has not yet.
    pub ending: Option<Exit>,
    /// None: it goes on.
    pub outcome: Option<Outcome>,
    /// Why not everything is home.
    pub unfetched: Option<String>,
    /// What cannot come home, where that was all that is missing.
    pub left: Option<Left>,
    /// What was found where it ran, and is not for us to end.
    pub outlived: Vec<String>,
    /// Where the rest of it may be: being kept, or kept.
    pub kept: Option<Keep>,
    /// The newest try to bring that home; none: nobody has tried.
    pub pulled: Option<Pulled>,
    /// How many rentals were before that.
    before: usize,
}

/// What could not be brought home.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Keep {
    /// It was asked for, and whether it came about is not known.
    Asked,
    At(String),
}

/// The state that a journal tells of; none when it does not even say what was asked for.
pub fn replay(entries: &[Entry]) -> Result<Option<State>> {
    let mut state: Option<State> = None;
    for (n, Entry { at, event }) in entries.iter().enumerate() {
        state = match state {
            None => State::asked(*at, event),
            Some(state) => state.after(*at, event),
        };
        ensure!(state.is_some(), "entry {} tells of something that cannot happen there: {event:?}", n + 1);
    }
    Ok(state)
}

impl State {
    pub fn asked(at: OffsetDateTime, event: &Event) -> Option<Self> {
        let Event::Asked { spec, offers } = event else { return None };
        (!offers.is_empty()).then(|| Self {
            spec: (**spec).clone(),
            phase: Phase::Rent,
            since: at,
            offers: offers.iter().cloned().collect(),
            rentals: Vec::new(),
            machine: None,
            started: None,
            ending: None,
            outcome: None,
            unfetched: None,
            left: None,
            outlived: Vec::new(),
            kept: None,
            pulled: None,
            before: 0,
        })
    }

    /// The state after an event, or `None` if that event cannot happen here.
    pub fn after(mut self, at: OffsetDateTime, event: &Event) -> Option<Self> {
        use Phase::{Done, Fetch, Prepare, Rent, Return, Start, Watch};
        let next = match (self.phase, event) {
            (Rent, Event::Renting { offer }) if self.renting().is_none() => {
                (self.offers.pop_front().as_ref() == Some(offer)).then_some(())?;
                let (offer, asked) = (offer.clone(), at);
                self.rentals.push(Rental { offer, asked, came: None, returned: None, refusal: None });
                self.since = at;
                Rent
            }
            (Rent, Event::Refused { refusal }) => {
                self.renting_mut()?.refusal = Some(refusal.clone());
                if refusal.class == Class::Final || self.offers.is_empty() {
                    let refusal = self.worth_telling()?;
                    self.conclude(Outcome::Refused(refusal));
                }
                Return
            }
            (Rent, Event::Rented { machine }) => {
                self.renting_mut()?.came = Some(at);
                self.machine = Some(machine.clone());
                // Whatever is made there was made already.
                if self.is_pull() { Fetch } else { Prepare }
            }
            (Prepare, Event::Prepared) => Start,
            (Start, Event::Started) => {
                self.started = self.started.or(Some(at));
                Watch
            }
            (Watch, Event::Exited { exit }) => {
                self.outcome = Some(Outcome::Exit(exit.clone()));
                Fetch
            }
            (Prepare | Start | Watch | Fetch, Event::Lost { why }) => {
                if self.phase == Fetch {
                    self.unfetched.get_or_insert(why.clone());
                }
                // Only what was cheap because it could be taken away is tried again elsewhere.
                let again = self.renting()?.offer.spot && !self.offers.is_empty();
                if let Some(exit) = self.ending.clone() {
                    self.conclude(Outcome::Exit(exit));
                } else if !again {
                    self.conclude(Outcome::Lost(why.clone()));
                }
                Return
            }
            (Fetch, Event::Fetched) => {
                if self.is_pull() {
                    (self.unfetched, self.left, self.pulled) = (None, None, Some(Pulled::Home));
                }
                Return
            }
            (Rent | Prepare, Event::Failed { why }) => {
                self.conclude(Outcome::Failed(why.clone()));
                Return
            }
            // Where it may have begun, something worth having may be there.
            (Start | Watch, Event::Failed { why }) => {
                let ending = self.ending.clone().map(Outcome::Exit);
                self.conclude(ending.unwrap_or(Outcome::Failed(why.clone())));
                Fetch
            }
            // It could not come from the machine itself either.
            (Fetch, Event::Remains { left }) if self.is_pull() => {
                self.left = Some(left.clone());
                self.conclude(Outcome::Failed(left.words()));
                Return
            }
            (Fetch, Event::Remains { left }) if self.kept.is_none() => {
                (self.unfetched, self.left) = (Some(left.words()), Some(left.clone()));
                (self.kept, self.since) = (Some(Keep::Asked), at);
                Fetch
            }
            (Fetch, Event::Keeping { why }) if self.kept.is_none() => {
                (self.unfetched, self.kept) = (Some(why.clone()), Some(Keep::Asked));
                self.since = at;
                Fetch
            }
            (Fetch, Event::Kept { place }) if self.kept.is_some() && !self.is_pull() => {
                self.kept = Some(Keep::At(place.clone()));
                Return
            }
            // Looked for by a person who wants it.
            (Done, Event::Kept { place }) if self.kept == Some(Keep::Asked) => {
                self.kept = Some(Keep::At(place.clone()));
                Done
            }
            (Done, Event::Pulling { offers }) if self.copy().is_some() && !offers.is_empty() => {
                self.offers = offers.iter().cloned().collect();
                (self.pulled, self.before) = (Some(Pulled::Not), self.rentals.len());
                self.ending = None;
                Rent
            }
            (Done, Event::Forgotten) if self.kept.is_some() => {
                self.kept = None;
                Done
            }
            // It is home, and costs for as long as it is kept.
            (Return, Event::Forgotten) if self.is_home_from_copy() => {
                self.kept = None;
                Return
            }
            (Fetch, Event::Failed { why }) if self.is_pull() => {
                self.conclude(Outcome::Failed(why.clone()));
                Return
            }
            (Fetch, Event::Ending { exit }) if self.is_pull() => {
                self.conclude(Outcome::Exit(exit.clone()));
                Return
            }
            (Fetch, Event::Failed { why }) => {
                self.unfetched = Some(match &self.unfetched {
                    Some(first) => format!("{first}; and it is not kept: {why}"),
                    None => why.clone(),
                });
                Return
            }
            (Rent | Prepare, Event::Ending { exit }) => {
                self.conclude(Outcome::Exit(exit.clone()));
                Return
            }
            (Start, Event::Ending { exit }) => {
                self.conclude(Outcome::Exit(exit.clone()));
                Fetch
            }
            (Watch, Event::Ending { exit }) if self.ending.is_none() => {
                self.ending = Some(exit.clone());
                self.since = at;
                Watch
            }
            // It would have gone on with the next offer.
            (Return, Event::Ending { exit }) if !self.is_concluded() => {
                self.conclude(Outcome::Exit(exit.clone()));
                Return
            }
            (Return, Event::Outlived { processes }) => {
                self.outlived.extend(processes.iter().cloned());
                Return
            }
            (Return, Event::Returned) => {
                if let Some(rental) = self.renting_mut() {
                    rental.returned = Some(at);
                }
                self.machine = None;
                if self.is_concluded() { Done } else { Rent }
            }
            _ => return None,
        };
        if next != self.phase {
            self.since = at;
        }
        self.phase = next;
        Some(self)
    }

    /// What may be ours just now: by this offer.
    pub fn renting(&self) -> Option<&Rental> {
        self.rentals.last().filter(|rental| rental.returned.is_none())
    }

    fn renting_mut(&mut self) -> Option<&mut Rental> {
        self.rentals.last_mut().filter(|rental| rental.returned.is_none())
    }

    /// What ended it stays what ended it, whatever goes wrong afterwards, and whatever becomes of what was kept.
    fn conclude(&mut self, outcome: Outcome) {
        if self.pulled.is_none() {
            self.outcome.get_or_insert(outcome);
        } else if self.pulled == Some(Pulled::Not) {
            self.pulled = Some(Pulled::Ended(outcome));
        }
    }

    /// Whether it is known how what goes on now has ended: nothing more is rented.
    pub fn is_concluded(&self) -> bool {
        self.pulled.as_ref().map_or(self.outcome.is_some(), |pulled| *pulled != Pulled::Not)
    }

    /// Whether what goes on now is bringing home what was kept.
    pub fn is_pull(&self) -> bool {
        self.pulled.is_some() && self.phase != Phase::Done
    }

    /// What was kept is home, and is not forgotten yet.
    pub fn is_home_from_copy(&self) -> bool {
        self.is_pull() && self.pulled == Some(Pulled::Home) && self.kept.is_some()
    }

    /// Where what was kept is.
    pub fn copy(&self) -> Option<&str> {
        match &self.kept {
            Some(Keep::At(place)) => Some(place),
            Some(Keep::Asked) | None => None,
        }
    }

    /// Of all refusals, the one that says most about what to do: what is final, then what may be better in an hour,
    /// then what needs a person.
    fn worth_telling(&self) -> Option<Refusal> {
        let rank = |refusal: &&Refusal| match refusal.class {
            Class::Final => 0,
            Class::Capacity => 1,
            Class::Quota => 2,
        };
        let now = self.rentals.iter().skip(self.before);
        now.filter_map(|rental| rental.refusal.as_ref()).min_by_key(rank).cloned()
    }

    /// Millionths of a US dollar so far, by list price.
    pub fn cost(&self, now: OffsetDateTime) -> u64 {
        self.rentals.iter().fold(0, |sum, rental| sum.saturating_add(rental.cost(now)))
    }

    /// When it has to end, by its time or by its money, whichever is sooner. What is brought home from a copy has
    /// cents to cost, and has its limit in the runner.
    pub fn ends_by(&self) -> Option<OffsetDateTime> {
        if self.is_pull() {
            return None;
        }
        let seconds = |n: u64| time::Duration::seconds(i64::try_from(n).unwrap_or(i64::MAX / 2));
        let time = self.started.zip(self.spec.max_seconds).and_then(|(at, n)| at.checked_add(seconds(n)));
        let money = self.spec.max_cost.zip(self.renting()).and_then(|(most, rental)| {
            let before = self.cost(rental.asked);
            let paid = most.saturating_sub(before).saturating_mul(3600).checked_div(rental.offer.price)?;
            rental
                .asked
                .checked_add(seconds(paid.saturating_sub(RESERVE.as_secs().saturating_add(self.spec.grace))))
        });
        time.into_iter().chain(money).min()
    }

    /// When a script that was told to end is ended, by headquarters' clock. The machine hears of it a little later.
    pub fn killed_at(&self) -> Option<OffsetDateTime> {
        let grace = time::Duration::seconds(i64::try_from(self.spec.grace).unwrap_or(i64::MAX / 2));
        self.ending.as_ref().filter(|_| self.phase == Phase::Watch)?;
        self.since.checked_add(grace)
    }

    /// What the machine is told: the time that is left by the clock and by the money, so that it ends by itself when
    /// nobody comes to end it.
    pub fn spec_on_machine(&self, now: OffsetDateTime) -> Spec {
        let mut spec = self.spec.clone();
        if let Some(at) = self.ends_by() {
            let left = u64::try_from((at - now).whole_seconds()).unwrap_or(0);
            spec.max_seconds = Some(spec.max_seconds.map_or(left, |most| most.min(left)));
        }
        spec
    }
}

#[cfg(test)]
#[path = "state/tests.rs"]
mod tests;
