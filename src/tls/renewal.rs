//! When a certificate of a public authority is to be obtained or renewed: pure functions of what is
//! remembered about it (`State`), what is so (`Facts`) and the time. Nothing here asks, writes or draws lots.
//!
//! The caller goes round: `State::read`, `decide`, do that one thing, tell `after` what came of it, write the
//! state down, `decide` again; until the answer is `Wait`. It promises two things, and no crash can then make
//! us ask twice for what we may have once. An attempt is told (`Outcome::Begun`) and **on disk before the
//! first request of it**, and so is `Finalizing` before the authority is asked to sign: what cannot be
//! written down is not done. And after `AskTime`, which answers everything that would go out to the
//! authority, it looks at the `Date` of the directory and decides again: by a clock that is wrong nothing is
//! ordered, because a certificate that is expired or not yet valid by it would be ordered again and again.
//!
//! It is made for a timer that wakes it every two hours, each time up to two hours late (`WAKE`). Most of
//! those wake-ups send nothing. Twice a day would do for 90 days, and leave half a day between an authority's
//! announcement that it revokes a six-day certificate and our hearing of it.
//!
//! Sources: RFC 8555 (ACME; the problem types are its section 6.7), RFC 9773 (ARI, an authority's suggestion
//! when to renew), and of Let's Encrypt the integration guide and the rate limits. Other authorities are
//! treated as if they were it, which no one else is stricter than; only limits that a shorter life makes
//! impossible shrink with it.

use serde::{Deserialize, Serialize};
use std::{collections::BTreeSet, fmt};
use time::{Duration, OffsetDateTime, PrimitiveDateTime, macros::format_description};

/// The longest between two wake-ups of a machine that is not asleep: `OnCalendar=*-*-* 00/2:00:00` with
/// `RandomizedDelaySec=2h`.
pub const WAKE: Duration = Duration::hours(4);
/// A wait this short may be slept through by the process; it is the first two steps of a backoff.
pub const NAP: Duration = Duration::minutes(11);
/// How far our clock may be from the authority's.
pub const CLOCK: Duration = Duration::minutes(5);

const VERSION: u32 = 1;
/// Below this, a life is short: less of it may be waited away (Let's Encrypt's integration guide).
const SHORT: Duration = Duration::days(10);
const DAY: Duration = Duration::days(1);
/// What is dated further ahead than this was written by a clock that was wrong, or is read by one.
const AHEAD: Duration = Duration::hours(1);

/// RFC 9773, 4.3.3: how soon an authority may let itself be asked again, within reason.
const ARI_SOONEST: Duration = Duration::minutes(1);
const ARI_LATEST: Duration = DAY;
/// RFC 9773, 4.3.3: after an answer that will not be better in a minute, and where that stops growing.
const ARI_LATER: Duration = Duration::hours(6);

/// Of one set of names, Let's Encrypt signs five in seven days and gives one back each 34 hours. It makes an
/// exception for a renewal with `replaces`; we do not rely on it. The fifth is a person's.
const WEEK: Duration = Duration::days(7);
const REFILL: Duration = Duration::hours(34);
const ISSUED_MOST: usize = 4;
const ISSUED_MOST_BY_HAND: usize = 5;
/// So many at once, whatever the reason: one that was right, and one that corrects it.
const ISSUED_AT_ONCE: usize = 2;
/// Let's Encrypt: five failed validations of a name in an hour. One is left for whatever else runs here.
const REFUSED_MOST: usize = 4;
const HOUR: Duration = Duration::HOUR;
/// How many of each are remembered: more than any limit counts.
const REMEMBERED: usize = 8;
/// An order still in process after this is given up: Let's Encrypt's own last eight hours with the newer
/// profiles.
const ORDER_LIFE: Duration = DAY;
/// Longer than any limit that is known; who asks for more has mistaken the unit.
const RETRY_LATEST: Duration = Duration::days(8);

/// What is to be obtained.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// DNS names, lower case.
    pub names: BTreeSet<String>,
    /// As `Held::key` says it.
    pub key: String,
    /// As it is asked for; a certificate does not tell its profile.
    pub profile: Option<String>,
}

/// A certificate in use that can be read and whose key is its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Held {
    /// Its unique identifier in RFC 9773, 4.1; `None` when the directory in use did not issue it.
    pub id: Option<String>,
    pub names: BTreeSet<String>,
    /// The kind of key, in any words: `P-256`.
    pub key: String,
    pub not_before: OffsetDateTime,
    pub not_after: OffsetDateTime,
}

impl Held {
    fn life(&self) -> Duration {
        self.not_after - self.not_before
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OnDisk {
    /// A placeholder that nobody signed counts as nothing.
    Nothing,
    /// Something that cannot be served: unreadable, or a key that is another's.
    Broken,
    Good(Held),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Asked {
    ByTimer,
    /// Does not wait for a moment or a backoff; Retry-After and the limits hold all the same. It is good for
    /// one attempt: once that has begun, the run goes on as by the timer.
    ByPerson,
}

/// What is so when a decision is to be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    pub wanted: Wanted,
    pub on_disk: OnDisk,
    /// Since when an order for `wanted` stands unfinished, its URL and key on disk.
    pub unfinished: Option<OffsetDateTime>,
    /// The authority's time less ours, if it was asked within this run and no more than a minute ago.
    pub clock: Option<Duration>,
    /// Whether the authority has a staging directory beside it.
    pub staging: bool,
    pub asked: Asked,
}

impl Facts {
    fn held(&self) -> Option<&Held> {
        match &self.on_disk {
            OnDisk::Good(held) if held.life() > Duration::ZERO => Some(held),
            OnDisk::Good(_) | OnDisk::Broken | OnDisk::Nothing => None,
        }
    }
}

/// All that is remembered about one certificate from one run to the next. A new one is for a certificate that
/// was never asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    version: u32,
    ari: Option<Ari>,
    failing: Option<Failing>,
    /// The next attempt goes to staging first, because the last one that reached production was refused.
    rehearse: bool,
    /// Whether `replaces` may be sent; once refused, not again for the same certificate.
    replaces: bool,
    /// The next attempt makes a new account.
    new_account: bool,
    #[serde(with = "time::serde::rfc3339::option")]
    account_made: Option<OffsetDateTime>,
    /// Every certificate production was asked to sign, oldest first, whether or not it arrived.
    spent: Vec<Spent>,
    /// The validations that failed at production, oldest first.
    refused: Vec<Refused>,
    last: Option<Last>,
}

/// About one certificate: what the authority suggests, and what became of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Ari {
    id: String,
    /// When to ask next.
    #[serde(with = "time::serde::rfc3339")]
    next: OffsetDateTime,
    /// How often in a row there was no answer.
    failures: u32,
    drawn: Option<Drawn>,
}

/// The moment is drawn once for a window. Drawn anew at each wake-up, the earliest of many would win.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Drawn {
    window: Window,
    #[serde(with = "time::serde::rfc3339")]
    at: OffsetDateTime,
}

/// `suggestedWindow` of RFC 9773.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Window {
    #[serde(with = "time::serde::rfc3339")]
    pub start: OffsetDateTime,
    #[serde(with = "time::serde::rfc3339")]
    pub end: OffsetDateTime,
}

/// Attempts since the last success. An attempt counts from its beginning, so one that is killed backs off
/// too.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Failing {
    #[serde(with = "time::serde::rfc3339")]
    since: OffsetDateTime,
    count: u32,
    #[serde(with = "time::serde::rfc3339")]
    at: OffsetDateTime,
    class: ErrorClass,
    /// Ours: not before this, unless a person asks.
    #[serde(with = "time::serde::rfc3339")]
    next: OffsetDateTime,
    /// The authority's: not before this, whoever asks.
    #[serde(with = "time::serde::rfc3339::option")]
    retry_at: Option<OffsetDateTime>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Spent {
    #[serde(with = "time::serde::rfc3339")]
    at: OffsetDateTime,
    /// When the certificate ends, if there is one.
    #[serde(with = "time::serde::rfc3339::option")]
    ends: Option<OffsetDateTime>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Refused {
    #[serde(with = "time::serde::rfc3339")]
    at: OffsetDateTime,
}

/// What the last certificate was ordered as.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Last {
    id: Option<String>,
    profile: Option<String>,
}

impl Default for State {
    fn default() -> Self {
        Self {
            version: VERSION,
            ari: None,
            failing: None,
            rehearse: false,
            replaces: true,
            new_account: false,
            account_made: None,
            spent: Vec::new(),
            refused: Vec::new(),
            last: None,
        }
    }
}

impl State {
    /// What a file says, or does not. One that cannot be read is answered with the worst that may have been
    /// in it: the week's certificates all but spent, and a failure just now. Write the answer down before
    /// going by it, or the hour that it makes us wait begins again each time.
    pub fn read(text: Option<&str>, now: OffsetDateTime) -> Self {
        let Some(text) = text else { return Self::default() };
        match serde_json::from_str::<Self>(text) {
            Ok(state) if state.version == VERSION => state,
            Ok(_) | Err(_) => Self::lost(now),
        }
    }

    pub fn write(&self) -> serde_json::Result<String> {
        serde_json::to_string_pretty(self)
    }

    fn lost(now: OffsetDateTime) -> Self {
        let spent = Spent { at: now.saturating_sub(REFILL), ends: None };
        Self {
            failing: Some(Failing {
                since: now,
                count: 1,
                at: now,
                class: ErrorClass::Lost,
                next: now.saturating_add(HOUR),
                retry_at: None,
            }),
            rehearse: true,
            spent: vec![spent; ISSUED_MOST - 1],
            ..Self::default()
        }
    }

    /// What has gone wrong since the last success: when last, what, how often.
    pub fn failure(&self) -> Option<(OffsetDateTime, ErrorClass, u32)> {
        self.failing.as_ref().map(|f| (f.at, f.class, f.count))
    }

    /// What is known of ARI about this very certificate.
    fn ari(&self, held: &Held) -> Option<&Ari> {
        self.ari.as_ref().filter(|ari| held.id.as_ref() == Some(&ari.id))
    }
}

/// Why a certificate is obtained.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    Absent,
    Broken,
    Names,
    Key,
    Profile,
    Expired,
    /// The moment drawn from the authority's window.
    Suggested,
    /// So little of its life is left, and the authority suggests nothing.
    Ending,
    /// So little of its life is left, whatever the authority suggests.
    Backstop,
    Asked,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Absent => "there is none",
            Self::Broken => "it cannot be read, or its key does not belong to it",
            Self::Names => "it is for other names",
            Self::Key => "it has another kind of key",
            Self::Profile => "it has another profile",
            Self::Expired => "it has expired",
            Self::Suggested => "the authority suggests this time",
            Self::Ending => "it ends soon",
            Self::Backstop => "it ends soon, whatever the authority suggests",
            Self::Asked => "it was asked for",
        })
    }
}

/// Why nothing is done now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Waiting {
    /// The certificate is good; what will be the reason when it is time.
    NotDue(Reason),
    /// It failed, and is tried again less and less often.
    Backoff(ErrorClass),
    /// It failed, and the authority said when it wants to be asked again.
    RetryAfter(ErrorClass),
    /// As many were issued as may be for now.
    Issued,
    /// As many validations have failed as may for now.
    Refused,
    /// The authority's time less ours.
    Clock(Duration),
}

impl fmt::Display for Waiting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotDue(_) => f.write_str("it is not due"),
            Self::Backoff(class) => write!(f, "the last attempt failed: {class}"),
            Self::RetryAfter(class) => write!(f, "the authority asked for patience: {class}"),
            Self::Issued => f.write_str("as many were issued as the authority may sign for now"),
            Self::Refused => f.write_str("as many validations have failed as the authority allows for now"),
            Self::Clock(offset) => {
                let way = if offset.is_negative() { "ahead of" } else { "behind" };
                write!(f, "this machine's clock is {} s {way} the authority's", offset.abs().whole_seconds())
            }
        }
    }
}

/// What needs the authority's time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Errand {
    /// If it cannot be had, that is `Outcome::AriFailed`.
    Ari,
    /// If it cannot be had, that is `Outcome::Begun`, and `Outcome::Failed` after it.
    Order,
}

/// The one thing to do now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// Nothing; and as long as neither state nor facts change, nothing before `until`.
    Wait {
        until: OffsetDateTime,
        why: Waiting,
    },
    /// Fetch the directory, compare its `Date` with the clock, and decide again.
    AskTime(Errand),
    /// Ask for `renewalInfo` of the certificate held.
    AskAri,
    /// Go on with the unfinished order. Never make another key for it.
    Resume,
    Obtain(Order),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Order {
    pub why: Reason,
    /// Obtain one from staging first, and go on to production only if that went well.
    pub rehearse: bool,
    /// To be sent to production. On an error that `ErrorClass::blames_replaces`, once more without it.
    pub replaces: Option<String>,
    /// The authority no longer knows our account: make another, unless a run for another name already has.
    pub new_account: bool,
}

/// When a certificate will be renewed, and why then; for what is wrong with it already, `now`. It is done at
/// the last wake-up before a suggested moment, and at the first after any other.
pub fn planned(now: OffsetDateTime, state: &State, facts: &Facts) -> (OffsetDateTime, Reason) {
    let Some(held) = facts.held() else {
        let nothing = facts.on_disk == OnDisk::Nothing;
        return (now, if nothing { Reason::Absent } else { Reason::Broken });
    };
    let last = state.last.as_ref().filter(|last| last.id.is_some() && last.id == held.id);
    let faults = [
        (now >= held.not_after, Reason::Expired),
        (held.names != facts.wanted.names, Reason::Names),
        (held.key != facts.wanted.key, Reason::Key),
        (last.is_some_and(|last| last.profile != facts.wanted.profile), Reason::Profile),
    ];
    if let Some((_, why)) = faults.into_iter().find(|(is_so, _)| *is_so) {
        return (now, why);
    }
    let short = held.life() < SHORT;
    let left = |n: i32| held.not_after.saturating_sub(held.life() / n);
    match state.ari(held).and_then(|ari| ari.drawn.as_ref()) {
        None => (left(if short { 2 } else { 3 }), Reason::Ending),
        Some(drawn) => {
            // Windows lie round two thirds of a life, so a third left would cut half of them off.
            let backstop = left(if short { 3 } else { 4 });
            if drawn.at <= backstop { (drawn.at, Reason::Suggested) } else { (backstop, Reason::Backstop) }
        }
    }
}

pub fn decide(now: OffsetDateTime, state: &State, facts: &Facts) -> Decision {
    let (errand, decision) = match order(now, state, facts) {
        Ok(decision) => (Errand::Order, decision),
        Err((until, why)) => match ask_ari_at(now, state, facts) {
            // Who asked for patience is not asked anything else meanwhile.
            Some(at) if at <= now && !matches!(why, Waiting::RetryAfter(_)) => {
                (Errand::Ari, Decision::AskAri)
            }
            Some(at) if at > now => return Decision::Wait { until: until.min(at), why },
            Some(_) | None => return Decision::Wait { until, why },
        },
    };
    match facts.clock {
        None => Decision::AskTime(errand),
        Some(offset) if offset.abs() > CLOCK => {
            Decision::Wait { until: now.saturating_add(WAKE), why: Waiting::Clock(offset) }
        }
        Some(_) => decision,
    }
}

/// Whether something is to be ordered, or why not and until when.
fn order(now: OffsetDateTime, state: &State, facts: &Facts) -> Result<Decision, (OffsetDateTime, Waiting)> {
    let by_hand = facts.asked == Asked::ByPerson;
    let resume = facts.unfinished.is_some_and(|since| now - since < ORDER_LIFE);
    let (at, mut why) = planned(now, state, facts);
    // RFC 9773, 4.2: what would pass while we sleep is done now.
    let due = if why == Reason::Suggested { at.saturating_sub(WAKE) } else { at };
    if now < due && by_hand {
        why = Reason::Asked;
    } else if now < due && !resume {
        return Err((due, Waiting::NotDue(why)));
    }
    // A failure that is yet to come is a clock's mistake; whose, the authority's time will tell.
    if let Some(failing) = state.failing.as_ref().filter(|f| f.at <= now.saturating_add(AHEAD)) {
        if let Some(at) = failing.retry_at
            && now < at
        {
            return Err((at, Waiting::RetryAfter(failing.class)));
        }
        if now < failing.next && !by_hand {
            return Err((failing.next, Waiting::Backoff(failing.class)));
        }
    }
    if resume {
        return Ok(Decision::Resume);
    }
    let open = issued_open(now, state, facts.asked);
    if now < open {
        return Err((open, Waiting::Issued));
    }
    let open = open_after(now, state.refused.iter().map(|r| r.at), REFUSED_MOST, HOUR);
    if now < open {
        return Err((open, Waiting::Refused));
    }
    let replaced = facts.held().filter(|held| {
        state.replaces && now < held.not_after && !held.names.is_disjoint(&facts.wanted.names)
    });
    Ok(Decision::Obtain(Order {
        why,
        rehearse: state.rehearse && facts.staging,
        replaces: replaced.and_then(|held| held.id.clone()),
        new_account: state.new_account,
    }))
}

/// From when on one more may be issued.
fn issued_open(now: OffsetDateTime, state: &State, asked: Asked) -> OffsetDateTime {
    // Where a certificate lives for hours, no week's limit can be meant.
    let life = state.spent.iter().rev().find_map(|s| Some(s.ends? - s.at)).unwrap_or(WEEK);
    let week = life.clamp(Duration::hours(12), WEEK);
    let pair = (life / 4i32).clamp(HOUR, REFILL);
    let at = || state.spent.iter().map(|s| s.at);
    match asked {
        Asked::ByPerson => open_after(now, at(), ISSUED_MOST_BY_HAND, week),
        Asked::ByTimer => {
            open_after(now, at(), ISSUED_MOST, week).max(open_after(now, at(), ISSUED_AT_ONCE, pair))
        }
    }
}

/// From when on there are fewer than `most` in the last `span`. What is yet to come is not believed; by the
/// time it matters, the clock has been compared.
fn open_after(
    now: OffsetDateTime,
    past: impl DoubleEndedIterator<Item = OffsetDateTime>,
    most: usize,
    span: Duration,
) -> OffsetDateTime {
    let mut past = past.rev().filter(|at| *at <= now.saturating_add(AHEAD));
    past.nth(most.saturating_sub(1)).map_or(now, |at| at.saturating_add(span))
}

/// When the authority may be asked for its suggestion. RFC 9773, 4.3.3: not about what has expired.
fn ask_ari_at(now: OffsetDateTime, state: &State, facts: &Facts) -> Option<OffsetDateTime> {
    let held = facts.held().filter(|held| held.id.is_some() && now < held.not_after)?;
    let next = state.ari(held).map_or(now, |ari| ari.next);
    // Nobody set it that far ahead, unless by another clock.
    Some(if next > now.saturating_add(ARI_LATEST).saturating_add(AHEAD) { now } else { next })
}

/// What came of doing what was decided.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// `Obtain` or `Resume` begins now.
    Begun,
    /// Production is asked to sign now.
    Finalizing,
    /// A certificate of production is installed, and was seen being served.
    Issued {
        id: Option<String>,
        not_after: OffsetDateTime,
    },
    Failed(Failure),
    /// With `Retry-After`, which RFC 9773 demands.
    AriAnswered {
        window: Window,
        retry_after: Option<Duration>,
    },
    AriFailed {
        fault: AriFault,
        retry_after: Option<Duration>,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AriFault {
    /// No answer, or 5xx: asked again after 1, 2, 4 minutes and so on, that is at the next wake-ups.
    Passing,
    /// Any other answer; also that the authority has no ARI. Asked again after six hours.
    Lasting,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Failure {
    pub class: ErrorClass,
    pub at: Ca,
    /// Whether this order was sent with `replaces`.
    pub replaces: bool,
    /// `Retry-After`, or the date in the words of the problem (`retry_date`).
    pub retry_at: Option<OffsetDateTime>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ca {
    Production,
    Staging,
}

/// What is remembered afterwards. `draw` is a fresh fraction, evenly drawn from 0..1, which decides about the
/// moment in a window and spreads a wait by a tenth either way.
pub fn after(mut state: State, now: OffsetDateTime, outcome: Outcome, facts: &Facts, draw: f64) -> State {
    let draw = if draw.is_finite() { draw.clamp(0.0, 1.0) } else { 0.5 };
    match outcome {
        Outcome::Begun => {
            let cut = Failure { class: ErrorClass::Cut, at: Ca::Staging, replaces: false, retry_at: None };
            state.failing = Some(failing(&state, now, &cut, facts, draw));
            if std::mem::take(&mut state.new_account) {
                state.account_made = Some(now);
            }
        }
        Outcome::Finalizing => state.spent.push(Spent { at: now, ends: None }),
        Outcome::Issued { id, not_after } => {
            match state.spent.last_mut() {
                Some(spent) if spent.ends.is_none() && now - spent.at < REFILL => {
                    spent.ends = Some(not_after)
                }
                _ => state.spent.push(Spent { at: now, ends: Some(not_after) }),
            }
            let last = Some(Last { id, profile: facts.wanted.profile.clone() });
            let (spent, refused) = (state.spent, state.refused);
            state = State { spent, refused, last, ..State::default() };
        }
        Outcome::Failed(failure) => state = failed(state, now, &failure, facts, draw),
        Outcome::AriAnswered { window, retry_after } => {
            let Some(mut ari) = known(&state, now, facts) else { return state };
            ari.failures = 0;
            // Without Retry-After, or with a window that ends before it begins, it is an answer of no use
            // until later (RFC 9773, 4.2 and 4.3.3); a window that is right is still believed.
            let mut next = retry_after.map_or(ARI_LATER, |it| it.clamp(ARI_SOONEST, ARI_LATEST));
            if window.end <= window.start {
                next = next.max(ARI_LATER);
            } else if ari.drawn.as_ref().is_none_or(|drawn| drawn.window != window) {
                ari.drawn = Some(Drawn { window, at: within(window, draw) });
            }
            ari.next = now.saturating_add(next);
            state.ari = Some(ari);
        }
        Outcome::AriFailed { fault, retry_after } => {
            let Some(mut ari) = known(&state, now, facts) else { return state };
            let wait = match fault {
                AriFault::Passing => ARI_SOONEST.saturating_mul(1 << ari.failures.min(16)).min(ARI_LATER),
                AriFault::Lasting => ARI_LATER,
            };
            let asked = retry_after.unwrap_or(Duration::ZERO).min(ARI_LATEST);
            ari.failures = ari.failures.saturating_add(1);
            ari.next = now.saturating_add(wait.max(asked));
            state.ari = Some(ari);
        }
    }
    // No limit looks further back, and a list must not grow for years.
    state.spent.drain(..state.spent.len().saturating_sub(REMEMBERED));
    state.refused.drain(..state.refused.len().saturating_sub(REMEMBERED));
    state
}

/// What is known of ARI about the certificate held, to be filled in.
fn known(state: &State, now: OffsetDateTime, facts: &Facts) -> Option<Ari> {
    let held = facts.held()?;
    let id = held.id.clone()?;
    Some(state.ari(held).cloned().unwrap_or(Ari { id, next: now, failures: 0, drawn: None }))
}

fn within(window: Window, draw: f64) -> OffsetDateTime {
    let length = window.end - window.start;
    let part = Duration::saturating_seconds_f64(length.as_seconds_f64() * draw);
    window.start.saturating_add(part).min(window.end).truncate_to_second()
}

fn failed(mut state: State, now: OffsetDateTime, failure: &Failure, facts: &Facts, draw: f64) -> State {
    let Failure { class, at, .. } = *failure;
    let mut failing = failing(&state, now, failure, facts, draw);
    let soon = now.saturating_add(spread(Duration::MINUTE, draw));
    if failure.replaces && class.blames_replaces() {
        // What is wrong may be nothing else; without it we know more in a minute, and it is not sent again.
        state.replaces = false;
        failing.next = soon;
    } else if class == ErrorClass::Unusable {
        // It was signed, and so the old one replaced.
        state.replaces = false;
    } else if class == ErrorClass::Account && state.account_made.is_none_or(|made| now - made >= DAY) {
        // Another account owns no certificate that could be replaced.
        (state.new_account, state.replaces) = (true, false);
        failing.next = soon;
    }
    match at {
        Ca::Production => {
            state.rehearse |= class.about_us();
            if class == ErrorClass::Validation {
                state.refused.push(Refused { at: now });
            }
        }
        // Staging has its own bad days, and must not keep us from production.
        Ca::Staging if !class.about_us() => {
            state.rehearse = false;
            failing.count = failing.count.saturating_sub(1);
            failing.next = soon;
        }
        Ca::Staging => state.rehearse = true,
    }
    state.failing = Some(failing);
    state
}

fn failing(state: &State, now: OffsetDateTime, failure: &Failure, facts: &Facts, draw: f64) -> Failing {
    let class = failure.class;
    let before = state.failing.as_ref();
    // The attempt was counted when it began.
    let counted = class != ErrorClass::Cut && before.is_some_and(|f| f.class == ErrorClass::Cut);
    let count = before.map_or(0, |f| f.count).saturating_add(u32::from(!counted));
    let since = before.map_or(now, |f| f.since.min(now));
    let longest = longest(now, since, facts);
    // A limit that does not say when it ends: not knocked at hourly even in need.
    let longest = if class == ErrorClass::RateLimited { longest.max(Duration::hours(6)) } else { longest };
    let wait = class.wait(count).min(longest);
    let latest = if class == ErrorClass::RateLimited { RETRY_LATEST } else { DAY };
    let retry_at = failure.retry_at.filter(|at| *at > now).map(|at| at.min(now.saturating_add(latest)));
    Failing { since, count, at: now, class, next: now.saturating_add(spread(wait, draw)), retry_at }
}

/// What a wait grows to. The nearer the end, the shorter: an eighth of what is left. Who has no certificate
/// is waited for at a door, so for a week we knock more often; after that it is a machine that nobody misses.
fn longest(now: OffsetDateTime, since: OffsetDateTime, facts: &Facts) -> Duration {
    match facts.held().map(|held| held.not_after - now) {
        Some(left) if left > Duration::ZERO => (left / 8i32).clamp(HOUR, DAY),
        _ if now - since < WEEK => Duration::hours(6),
        _ => DAY,
    }
}

/// A tenth more or less, so that what failed together is not tried again together.
fn spread(wait: Duration, draw: f64) -> Duration {
    Duration::saturating_seconds_f64((wait.as_seconds_f64() * (0.9 + 0.2 * draw)).round())
}

/// Everything that goes wrong, by what is to be done about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ErrorClass {
    /// No answer: no route, no name, no TLS, nothing in time, nothing that is ACME.
    Unreachable,
    /// 503: Let's Encrypt's load balancers, or all of it.
    Busy,
    /// `serverInternal`, any 5xx.
    Server,
    /// `badNonce`, five times in a row.
    BadNonce,
    /// `dns`, `connection`, `tls`, `incorrectResponse`, `unauthorized` of a name: it does not lead here.
    Validation,
    Caa,
    /// `rejectedIdentifier`, `unsupportedIdentifier`.
    Identifier,
    /// `userActionRequired`: the terms have changed.
    Terms,
    /// `externalAccountRequired`.
    Binding,
    /// `invalidProfile`.
    Profile,
    RateLimited,
    /// `accountDoesNotExist`, or `unauthorized` before there is an order: unknown or deactivated.
    Account,
    /// `alreadyReplaced`, `conflict`, a `replaces` that is not echoed.
    Replaces,
    /// The order was still in process when we had to go.
    Processing,
    /// A certificate came and is not what was asked for, or nginx would not serve it.
    Unusable,
    /// Our clock is wrong, found out on the way.
    Clock,
    /// The attempt began, and nobody lived to tell.
    Cut,
    /// What we knew about attempts could not be read.
    Lost,
    /// `malformed`, `badCSR` and all else: our mistake, or an authority's that speaks its own ACME.
    Request,
}

/// Where in ACME an error came up; `unauthorized` means something else in each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    Account,
    NewOrder,
    Challenge,
    Finalize,
}

impl ErrorClass {
    /// From a problem document's `type`, with or without the URN before it, and the HTTP status; neither when
    /// there was no answer. The type wins: some servers send no status in the document.
    pub fn of(stage: Stage, kind: Option<&str>, status: Option<u16>) -> Self {
        let kind = kind.map(|kind| kind.strip_prefix("urn:ietf:params:acme:error:").unwrap_or(kind));
        match (kind.unwrap_or_default(), stage) {
            ("badNonce", _) => Self::BadNonce,
            ("caa", _) => Self::Caa,
            ("rejectedIdentifier" | "unsupportedIdentifier", _) => Self::Identifier,
            ("userActionRequired", _) => Self::Terms,
            ("externalAccountRequired", _) => Self::Binding,
            ("invalidProfile", _) => Self::Profile,
            ("rateLimited", _) => Self::RateLimited,
            ("accountDoesNotExist", _) => Self::Account,
            ("alreadyReplaced", _) | ("conflict", Stage::NewOrder) => Self::Replaces,
            ("dns" | "connection" | "tls" | "incorrectResponse", _) => Self::Validation,
            ("unauthorized", Stage::Challenge) => Self::Validation,
            ("unauthorized", Stage::Account | Stage::NewOrder) => Self::Account,
            (kind, stage) => match (status, stage) {
                (Some(429), _) => Self::RateLimited,
                (Some(503), _) => Self::Busy,
                (Some(500..=599), _) => Self::Server,
                (Some(409), Stage::NewOrder) => Self::Replaces,
                _ if kind == "serverInternal" => Self::Server,
                (None, _) if kind.is_empty() => Self::Unreachable,
                _ => Self::Request,
            },
        }
    }

    /// Before the attempt after this many. The integration guide's 1, 10, 100 minutes and then a day, entered
    /// later the less a second look can change.
    fn wait(self, count: u32) -> Duration {
        const STEPS: [Duration; 4] =
            [Duration::MINUTE, Duration::minutes(10), Duration::minutes(100), Duration::DAY];
        let skipped = match self {
            Self::Unreachable | Self::Busy | Self::Server | Self::BadNonce | Self::Processing | Self::Cut => {
                0
            }
            // Two an hour: no name may fail five times in one.
            Self::Validation => 1,
            Self::Account | Self::Replaces | Self::Unusable | Self::Request => 2,
            Self::Caa | Self::Identifier | Self::Terms | Self::Binding | Self::Profile => 3,
            Self::RateLimited => 3,
            // Nobody was bothered, and whoever corrects it does it here.
            Self::Clock | Self::Lost => return HOUR,
        };
        let step = usize::try_from(count.saturating_sub(1)).unwrap_or(usize::MAX).saturating_add(skipped);
        STEPS.get(step).copied().unwrap_or(Duration::DAY)
    }

    /// Whether the authority judged us, so that staging would too; not only itself.
    fn about_us(self) -> bool {
        match self {
            Self::Validation | Self::Caa | Self::Identifier | Self::Terms | Self::Binding => true,
            Self::Profile | Self::RateLimited | Self::Unusable | Self::Request => true,
            Self::Unreachable | Self::Busy | Self::Server | Self::BadNonce | Self::Processing => false,
            Self::Account | Self::Replaces | Self::Clock | Self::Cut | Self::Lost => false,
        }
    }

    /// Whether an order sent with `replaces` may have failed because of it. Servers answer a `replaces` that
    /// they do not like with 409, 403, 400 and 500, so everything counts that is not clearly something else.
    /// An order that was accepted with it, and failed later, is.
    pub fn blames_replaces(self) -> bool {
        match self {
            Self::Server | Self::Account | Self::Replaces | Self::Request => true,
            Self::BadNonce | Self::Caa | Self::Profile | Self::RateLimited | Self::Identifier => false,
            Self::Terms | Self::Binding | Self::Validation | Self::Processing | Self::Unusable => false,
            Self::Unreachable | Self::Busy | Self::Clock | Self::Cut | Self::Lost => false,
        }
    }

    /// Whether it will not pass by waiting: to be told to somebody the first time.
    pub fn needs_a_person(self) -> bool {
        match self {
            Self::Validation | Self::Caa | Self::Identifier | Self::Terms | Self::Binding => true,
            Self::Profile | Self::Unusable | Self::Clock | Self::Request => true,
            Self::Unreachable | Self::Busy | Self::Server | Self::BadNonce | Self::RateLimited => false,
            Self::Account | Self::Replaces | Self::Processing | Self::Cut | Self::Lost => false,
        }
    }
}

impl fmt::Display for ErrorClass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unreachable => "the authority could not be reached",
            Self::Busy => "the authority is busy",
            Self::Server => "the authority has a fault of its own",
            Self::BadNonce => "the authority rejected every nonce",
            Self::Validation => "the authority could not see this machine under that name",
            Self::Caa => "a CAA record forbids it",
            Self::Identifier => "the authority does not sign for that name",
            Self::Terms => "the authority's terms have changed and must be agreed to",
            Self::Binding => "the authority wants an external account binding",
            Self::Profile => "the authority does not know the profile",
            Self::RateLimited => "the authority's rate limit is reached",
            Self::Account => "the authority does not know the account",
            Self::Replaces => "the authority refused to have the old certificate named",
            Self::Processing => "the authority is not done yet",
            Self::Unusable => "the certificate that came could not be used",
            Self::Clock => "the clock is wrong",
            Self::Cut => "the attempt was cut short",
            Self::Lost => "the record of earlier attempts could not be read",
            Self::Request => "the authority did not accept the request",
        })
    }
}

/// The date in Let's Encrypt's words, which say it where a header was lost: `retry after 2026-11-24 08:15:04
/// UTC`.
pub fn retry_date(detail: &str) -> Option<OffsetDateTime> {
    let date = format_description!("[year]-[month]-[day] [hour]:[minute]:[second]");
    let (_, rest) = detail.split_once("retry after ")?;
    rest.get(19..)?.starts_with(" UTC").then_some(())?;
    PrimitiveDateTime::parse(rest.get(..19)?, date).ok().map(PrimitiveDateTime::assume_utc)
}

/// How a certificate stands, for who watches: renewed long before, it is never seen below a quarter of its
/// life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Health {
    Good,
    /// Less than a quarter of its life is left.
    Warn,
    /// Less than a tenth is left, or none, or it has not begun.
    Bad,
}

pub fn health(now: OffsetDateTime, not_before: OffsetDateTime, not_after: OffsetDateTime) -> Health {
    let (life, left) = (not_after - not_before, not_after - now);
    if now < not_before || left <= Duration::ZERO || left < life / 10 {
        Health::Bad
    } else if left < life / 4 {
        Health::Warn
    } else {
        Health::Good
    }
}

#[cfg(test)]
mod tests;
