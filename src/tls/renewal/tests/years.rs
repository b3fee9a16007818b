//! Six years of one machine and one authority, in which nearly everything goes wrong. The authority counts
//! what it is asked, and the story ends at the first request that it would have refused, and at the first
//! client that finds no good certificate although for some time nothing was wrong. Lots are drawn from a
//! seed, so each year happens again in the same way.

use super::*;
use std::collections::VecDeque;

const BEGIN: OffsetDateTime = datetime!(2026-11-23 12:00 UTC);
const END: OffsetDateTime = datetime!(2032-11-23 12:00 UTC);

/// SplitMix64.
struct Lots(u64);

impl Lots {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn fraction(&mut self) -> f64 {
        f64::from(u32::try_from(self.next() >> 32).unwrap()) / f64::from(u32::MAX)
    }

    fn between(&mut self, from: Duration, to: Duration) -> Duration {
        from + Duration::seconds_f64(((to - from).as_seconds_f64() * self.fraction()).round())
    }

    fn one_in(&mut self, n: u64) -> bool {
        self.next().is_multiple_of(n)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Profile {
    Classic,
    Tlsserver,
    Shortlived,
}

impl Profile {
    const ALL: [Self; 3] = [Self::Classic, Self::Tlsserver, Self::Shortlived];
    /// Enough where it is about long and short.
    const TWO: [Self; 2] = [Self::Classic, Self::Shortlived];

    /// As announced for Let's Encrypt.
    fn life(self, now: OffsetDateTime) -> Duration {
        match self {
            Self::Classic if now < datetime!(2027-02-10 0:00 UTC) => DAY * 90,
            Self::Classic if now < datetime!(2028-02-16 0:00 UTC) => DAY * 64,
            Self::Classic | Self::Tlsserver => DAY * 45,
            Self::Shortlived => HOUR * 160,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Trouble {
    /// Nobody answers, or 503 and when to come back.
    Down,
    Busy,
    StagingDown,
    Nonces,
    /// The name does not lead here.
    Name,
    Caa,
    Asleep,
    /// Our clock goes wrong by this.
    Clock(Duration),
    Ari(Lie),
    /// `replaces` is answered with an error, of whatever kind.
    Replaces,
    /// Orders stay in process.
    Slow,
    /// What comes is not what was asked for.
    Unusable,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Lie {
    Past,
    /// From now on for an hour, as when it will revoke.
    Now,
    Future,
    Inverted,
    /// Another window at each question.
    Restless,
    Silent,
    Refused,
}

/// What happens at a moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Blow {
    StateTorn,
    CertificateTorn,
    AccountLost,
    /// The process is killed at the next chance.
    Kill,
    /// Somebody asks by hand, and again at once when that fails.
    Person,
}

#[derive(Debug, Clone)]
struct Cert {
    id: u32,
    from: OffsetDateTime,
    to: OffsetDateTime,
}

struct Year {
    story: String,
    lots: Lots,
    profile: Profile,
    /// Between two wake-ups, and at most so much later.
    timer: (Duration, Duration),
    /// From, to, and what; sorted when it begins, and forgotten when it is over.
    troubles: VecDeque<(OffsetDateTime, OffsetDateTime, Trouble)>,
    always: Vec<Trouble>,
    blows: Vec<(OffsetDateTime, Blow)>,
    /// `Retry-After` of a suggestion.
    ari_every: Duration,
    /// Whether wake-ups that have nothing to do are gone through.
    every: bool,
    /// How long everything must have gone well before a client may complain.
    grace: Duration,

    /// In truth.
    now: OffsetDateTime,
    state: State,
    disk: Option<Cert>,
    unfinished: Option<OffsetDateTime>,
    account: bool,
    kill: bool,
    well_since: OffsetDateTime,

    ca: Signer,
    /// How long clients found no good certificate, in all.
    dark: Duration,
}

/// Let's Encrypt's limits, without the exceptions it makes.
#[derive(Default)]
struct Signer {
    certs: u32,
    /// When the five of this set of names would all be back.
    paid: Option<OffsetDateTime>,
    signed: Vec<OffsetDateTime>,
    orders: Vec<OffsetDateTime>,
    contacts: Vec<OffsetDateTime>,
    refused: Vec<OffsetDateTime>,
    accounts: Vec<OffsetDateTime>,
    replaced: BTreeSet<u32>,
    /// Not to be asked before.
    orders_at: Option<OffsetDateTime>,
    ari_at: Option<(u32, OffsetDateTime)>,
}

/// How many of them in the last span.
fn last(past: &[OffsetDateTime], now: OffsetDateTime, span: Duration) -> usize {
    past.iter().rev().take_while(|at| now - **at < span).count()
}

impl Year {
    fn new(seed: u64, profile: Profile) -> Self {
        Self {
            story: format!("{profile:?}, seed {seed}"),
            lots: Lots(seed),
            profile,
            timer: (HOUR * 2, HOUR * 2),
            troubles: VecDeque::new(),
            always: Vec::new(),
            blows: Vec::new(),
            ari_every: HOUR * 12,
            every: false,
            grace: HOUR * 12,
            now: BEGIN,
            state: State::default(),
            disk: None,
            unfinished: None,
            account: true,
            kill: false,
            well_since: BEGIN,
            ca: Signer::default(),
            dark: Duration::ZERO,
        }
    }

    fn always(mut self, trouble: Trouble) -> Self {
        self.always.push(trouble);
        self.story.push_str(&format!(", always {trouble:?}"));
        self
    }

    /// Trouble again and again, each lasting up to `long`, with up to `apart` between.
    fn at_times(mut self, kinds: &[Trouble], long: Duration, apart: Duration) -> Self {
        let mut at = BEGIN;
        loop {
            at += self.lots.between(apart / 2, apart);
            let until = at + self.lots.between(HOUR / 4, long);
            if until > END {
                break;
            }
            let kind = usize::try_from(self.lots.next() % kinds.len() as u64).unwrap();
            self.troubles.push_back((at, until, kinds[kind]));
            at = until;
        }
        self.story.push_str(&format!(", at times {kinds:?}"));
        self
    }

    fn struck(mut self, kinds: &[Blow], apart: Duration) -> Self {
        let mut at = BEGIN;
        loop {
            at += self.lots.between(apart / 2, apart);
            if at > END {
                break;
            }
            let kind = usize::try_from(self.lots.next() % kinds.len() as u64).unwrap();
            self.blows.push((at, kinds[kind]));
        }
        self.story.push_str(&format!(", struck by {kinds:?}"));
        self
    }

    /// What is wrong now.
    fn wrong(&self) -> impl Iterator<Item = Trouble> {
        let begun = self.troubles.iter().take_while(|(from, ..)| *from <= self.now);
        begun.filter(|(_, to, _)| self.now < *to).map(|(.., it)| *it).chain(self.always.iter().copied())
    }

    fn has(&self, trouble: Trouble) -> bool {
        self.wrong().any(|it| it == trouble)
    }

    fn lie(&self) -> Option<Lie> {
        self.wrong().find_map(|it| if let Trouble::Ari(lie) = it { Some(lie) } else { None })
    }

    /// The authority's time less ours.
    fn offset(&self) -> Duration {
        let by = self.wrong().find_map(|it| if let Trouble::Clock(by) = it { Some(-by) } else { None });
        by.unwrap_or_default()
    }

    fn local(&self) -> OffsetDateTime {
        self.now - self.offset()
    }

    fn facts(&self, clock: Option<Duration>, asked: Asked) -> Facts {
        let held = |cert: &Cert| Held {
            id: Some(cert.id.to_string()),
            names: names(&["mlflow.example.org"]),
            key: "P-256".into(),
            not_before: cert.from,
            not_after: cert.to,
        };
        Facts {
            wanted: Wanted { names: names(&["mlflow.example.org"]), key: "P-256".into(), profile: None },
            on_disk: self.disk.as_ref().map_or(OnDisk::Nothing, |cert| OnDisk::Good(held(cert))),
            unfinished: self.unfinished,
            clock,
            staging: true,
            asked,
        }
    }

    fn tell(&mut self, outcome: Outcome) {
        let facts = self.facts(None, Asked::ByTimer);
        let (now, draw) = (self.local(), self.lots.fraction());
        self.state = after(std::mem::take(&mut self.state), now, outcome, &facts, draw);
    }

    /// The process ends, and the next one reads what it wrote.
    fn reread(&mut self) {
        let text = self.state.write().unwrap();
        self.state = State::read(Some(&text), self.local());
    }

    fn fail(&mut self, class: ErrorClass, at: Ca, replaces: bool, retry_at: Option<OffsetDateTime>) {
        self.tell(Outcome::Failed(Failure { class, at, replaces, retry_at }));
    }

    fn check(&self, is_so: bool, what: &str) {
        assert!(is_so, "{}: at {}: {what}", self.story, self.now);
    }

    /// What one request of ours, of any kind, must hold to.
    fn contact(&mut self) {
        self.ca.contacts.push(self.now);
        // Three times by hand, each with what follows within minutes, and the timer's own.
        self.check(last(&self.ca.contacts, self.now, HOUR) <= 40, "a burst of requests");
    }

    /// From one Wait to the next, as the service does it.
    fn wake(&mut self, mut asked: Asked) -> OffsetDateTime {
        let (woken, mut clock) = (self.now, None);
        for _ in 0..40 {
            match decide(self.local(), &self.state, &self.facts(clock, asked)) {
                Decision::Wait { until, .. } => {
                    let nap = until - self.local();
                    if nap > NAP || self.now - woken > NAP {
                        return until;
                    }
                    self.now += nap.max(Duration::SECOND);
                    clock = None;
                }
                Decision::AskTime(errand) => {
                    self.contact();
                    if !self.has(Trouble::Down) {
                        clock = Some(self.offset());
                    } else if errand == Errand::Ari {
                        self.tell(Outcome::AriFailed { fault: AriFault::Passing, retry_after: None });
                    } else {
                        self.tell(Outcome::Begun);
                        self.fail(ErrorClass::Unreachable, Ca::Production, false, None);
                        asked = Asked::ByTimer;
                    }
                }
                Decision::AskAri => self.ask_ari(),
                decision => {
                    self.check(clock.is_some_and(|it| it.abs() <= CLOCK), "ordered by a wrong clock");
                    asked = Asked::ByTimer;
                    self.tell(Outcome::Begun);
                    self.attempt(decision);
                    if self.kill {
                        self.kill = false;
                        return self.local();
                    }
                }
            }
        }
        panic!("{}: at {}: goes round and round", self.story, self.now);
    }

    fn ask_ari(&mut self) {
        self.contact();
        let cert = self.disk.clone().unwrap();
        self.check(self.now < cert.to, "asked about an expired certificate");
        if let Some((id, at)) = self.ca.ari_at {
            self.check(id != cert.id || at <= self.now, "asked before Retry-After");
        }
        let life = cert.to - cert.from;
        let third = |from, to| Window { start: from, end: to };
        let honest = third(cert.from + life * 2 / 3 - DAY, cert.from + life * 2 / 3 + DAY);
        let restless = self.lots.between(-HOUR, HOUR);
        let window = match self.lie() {
            Some(Lie::Silent) => {
                return self.tell(Outcome::AriFailed { fault: AriFault::Passing, retry_after: None });
            }
            Some(Lie::Refused) => {
                return self.tell(Outcome::AriFailed { fault: AriFault::Lasting, retry_after: None });
            }
            Some(Lie::Past) => third(BEGIN - DAY * 9, BEGIN - DAY * 8),
            Some(Lie::Now) => third(self.now, self.now + HOUR),
            Some(Lie::Future) => third(END + DAY, END + DAY * 999),
            Some(Lie::Inverted) => third(honest.end, honest.start),
            Some(Lie::Restless) => third(honest.start + restless, honest.end + restless),
            None => honest,
        };
        self.ca.ari_at = Some((cert.id, self.now + self.ari_every));
        self.tell(Outcome::AriAnswered { window, retry_after: Some(self.ari_every) });
    }

    fn attempt(&mut self, decision: Decision) {
        self.contact();
        self.now += Duration::seconds(20);
        let order = match decision {
            Decision::Obtain(order) => Some(order),
            _ => None,
        };
        let at = |production: bool| if production { Ca::Production } else { Ca::Staging };
        let replaces = order.as_ref().is_some_and(|order| order.replaces.is_some());
        if order.as_ref().is_some_and(|order| order.new_account) && !self.has(Trouble::Down) {
            self.account = true;
            self.ca.accounts.push(self.now);
            self.check(last(&self.ca.accounts, self.now, HOUR * 3) <= 1, "accounts in a row");
        }
        if order.as_ref().is_some_and(|order| order.rehearse) {
            if self.has(Trouble::StagingDown) || self.has(Trouble::Down) {
                return self.fail(ErrorClass::Unreachable, at(false), false, None);
            }
            if self.has(Trouble::Name) {
                return self.fail(ErrorClass::Validation, at(false), false, None);
            }
            if self.has(Trouble::Caa) {
                return self.fail(ErrorClass::Caa, at(false), false, None);
            }
        }
        if self.has(Trouble::Down) {
            return self.fail(ErrorClass::Unreachable, at(true), replaces, None);
        }
        let patient = self.ca.orders_at.is_none_or(|at| at <= self.now);
        self.check(patient, "ordered before Retry-After");
        if self.has(Trouble::Busy) {
            let retry_at = self.now + self.lots.between(Duration::MINUTE, HOUR * 3);
            self.ca.orders_at = Some(retry_at);
            return self.fail(ErrorClass::Busy, at(true), replaces, Some(retry_at - self.offset()));
        }
        if self.has(Trouble::Nonces) {
            return self.fail(ErrorClass::BadNonce, at(true), replaces, None);
        }
        if !self.account {
            return self.fail(ErrorClass::Account, at(true), replaces, None);
        }
        let Some(order) = order else { return self.finish(replaces) };
        self.order(&order)
    }

    fn order(&mut self, order: &Order) {
        self.ca.orders.push(self.now);
        self.check(last(&self.ca.orders, self.now, HOUR) <= 4, "a burst of orders");
        self.check(last(&self.ca.orders, self.now, DAY) <= 8, "a day of orders");
        let paid = self.ca.paid.unwrap_or(self.now).max(self.now) + REFILL;
        self.check(paid - self.now <= REFILL * 5, "five certificates in a week");
        let replaces = order.replaces.is_some();
        if let Some(id) = &order.replaces {
            let odd = [ErrorClass::Replaces, ErrorClass::Request, ErrorClass::Server, ErrorClass::Account];
            if self.has(Trouble::Replaces) || self.ca.replaced.contains(&id.parse().unwrap()) {
                let class = odd[usize::try_from(self.lots.next() % 4).unwrap()];
                return self.fail(class, Ca::Production, true, None);
            }
        }
        for (trouble, class) in [(Trouble::Name, ErrorClass::Validation), (Trouble::Caa, ErrorClass::Caa)] {
            if self.has(trouble) {
                self.ca.refused.push(self.now);
                self.check(last(&self.ca.refused, self.now, HOUR) <= 5, "five failed validations in an hour");
                return self.fail(class, Ca::Production, replaces, None);
            }
        }
        self.tell(Outcome::Finalizing);
        self.unfinished = Some(self.local());
        self.ca.paid = Some(paid);
        self.ca.signed.push(self.now);
        if let Some(id) = &order.replaces {
            self.ca.replaced.insert(id.parse().unwrap());
        }
        if !self.kill {
            self.finish(replaces);
        }
    }

    fn finish(&mut self, replaces: bool) {
        if self.has(Trouble::Slow) {
            return self.fail(ErrorClass::Processing, Ca::Production, replaces, None);
        }
        self.unfinished = None;
        if self.has(Trouble::Unusable) {
            return self.fail(ErrorClass::Unusable, Ca::Production, replaces, None);
        }
        self.ca.certs += 1;
        let from = self.now - HOUR;
        let cert = Cert { id: self.ca.certs, from, to: from + self.profile.life(self.now) };
        let (id, not_after) = (Some(cert.id.to_string()), cert.to);
        self.disk = Some(cert);
        let another = self.lots.one_in(10);
        if another {
            self.reread();
        }
        self.tell(Outcome::Issued { id, not_after });
        if another {
            self.reread();
        }
    }

    fn blow(&mut self, blow: Blow) {
        self.well_since = self.now;
        match blow {
            Blow::StateTorn => self.state = State::read(Some("{"), self.local()),
            Blow::CertificateTorn => self.disk = None,
            Blow::AccountLost => self.account = false,
            Blow::Kill => self.kill = true,
            Blow::Person => {
                for _ in 0..3 {
                    self.wake(Asked::ByPerson);
                }
            }
        }
        if blow == Blow::StateTorn {
            // Who lost the answer may ask again.
            self.ca.ari_at = None;
            self.ca.orders_at = None;
        }
    }

    /// What a client sees now.
    fn look(&mut self, since: OffsetDateTime) {
        for (_, to, trouble) in self.troubles.iter().take_while(|(from, ..)| *from <= self.now) {
            // Nothing that only the authority's suggestion does excuses us.
            let excuse = !matches!(trouble, Trouble::Ari(_) | Trouble::StagingDown | Trouble::Replaces);
            if excuse {
                self.well_since = self.well_since.max((*to).min(self.now));
            }
        }
        while self.troubles.front().is_some_and(|(_, to, _)| *to <= self.now) {
            self.troubles.pop_front();
        }
        let end = self.disk.as_ref().map_or(since, |cert| cert.to);
        if end < self.now {
            self.dark += self.now - end.max(since);
            self.check(self.now - self.well_since <= self.grace, "expired though all was well");
        }
    }

    fn run(mut self) -> Self {
        self.blows.sort_by_key(|(at, _)| *at);
        self.troubles.make_contiguous().sort_by_key(|(from, ..)| *from);
        let mut blows = std::mem::take(&mut self.blows).into_iter().peekable();
        let mut changes: Vec<_> = self.troubles.iter().flat_map(|(from, to, _)| [*from, *to]).collect();
        changes.extend(blows.clone().map(|(at, _)| at));
        changes.sort();
        let mut changes = changes.into_iter().peekable();
        let mut until = self.wake(Asked::ByTimer);
        let mut slot = self.now;
        while self.now < END {
            let before = self.now;
            slot += self.timer.0;
            if !self.every {
                // Nothing is done before `until` as long as nothing changes: what would see the same is left
                // out.
                while changes.next_if(|at| *at <= before).is_some() {}
                let change = changes.peek().copied().unwrap_or(END);
                let until = until.saturating_add(self.offset()).min(change);
                while slot + self.timer.0 < until {
                    slot += self.timer.0;
                }
            }
            self.now =
                (slot + self.lots.between(Duration::ZERO, self.timer.1)).max(before + Duration::MINUTE);
            // A machine that slept through it catches up when it wakes.
            while self.has(Trouble::Asleep) {
                self.now += HOUR;
            }
            slot += self.timer.0
                * i32::try_from((self.now - slot).whole_seconds() / self.timer.0.whole_seconds()).unwrap();
            self.look(before);
            while let Some((_, blow)) = blows.next_if(|(at, _)| *at <= self.now) {
                self.blow(blow);
            }
            until = self.wake(Asked::ByTimer);
        }
        self
    }

    fn never_dark(self) -> Self {
        self.check(self.dark == Duration::ZERO, &format!("no good certificate for {}", self.dark));
        self
    }

    /// How many were signed, against one each so many hundredths of a life.
    fn signed_each(self, from: i32, to: i32) -> Self {
        let (mut most, mut least) = (0, 0);
        for (share, count) in [(from, &mut most), (to, &mut least)] {
            let mut at = BEGIN;
            while at < END {
                at += self.profile.life(at) * share / 100;
                *count += 1;
            }
        }
        let signed = self.ca.signed.len();
        self.check((least..=most).contains(&signed), &format!("{signed} signed, not {least} to {most}"));
        self
    }
}

use Trouble::*;

#[test]
fn in_good_years_nothing_expires_and_nothing_is_wasted() {
    for profile in Profile::ALL {
        Year::new(1, profile).run().never_dark().signed_each(50, 70);
    }
    // Every wake-up, and none left out.
    let mut year = Year::new(2, Profile::Classic);
    (year.every, year.ari_every) = (true, HOUR * 6);
    year.run().never_dark().signed_each(60, 70);
    // A timer that fires once a day, or hourly.
    for (profile, timer) in [
        (Profile::Classic, (DAY, HOUR * 12)),
        (Profile::Shortlived, (DAY, HOUR * 12)),
        (Profile::Shortlived, (HOUR, HOUR)),
    ] {
        let mut year = Year::new(3, profile);
        year.timer = timer;
        year.run().never_dark().signed_each(50, 80);
    }
}

#[test]
fn an_authority_that_suggests_nonsense_is_survived() {
    use {Lie::*, Profile::*};
    let table = [
        // In hundredths of a life: a quarter left, or a third of a short one.
        (Classic, Future, 74, 77),
        (Shortlived, Future, 66, 70),
        // As without a suggestion.
        (Classic, Inverted, 66, 68),
        (Classic, Refused, 66, 68),
        (Shortlived, Refused, 50, 54),
        (Shortlived, Silent, 50, 54),
        // The earliest of many moments wins, but they all lie round the right one.
        (Classic, Restless, 62, 68),
        (Shortlived, Restless, 48, 70),
    ];
    for (profile, lie, from, to) in table {
        Year::new(4, profile).always(Ari(lie)).run().never_dark().signed_each(from, to);
    }
}

#[test]
fn an_authority_that_hurries_is_obeyed_within_its_own_limits() {
    use {Lie::*, Profile::*};
    // At once, it says for six years: four times in seven days, or in the shorter life.
    for (profile, lie, days) in [(Classic, Past, 7), (Tlsserver, Now, 7), (Shortlived, Past, 6)] {
        let year = Year::new(5, profile).always(Ari(lie)).run().never_dark();
        assert!(year.ca.signed.len() <= 6 * 366 / days * 4 + 4, "{}", year.ca.signed.len());
    }
    // And said once, it is done when we next ask.
    for profile in Profile::TWO {
        let mut year = Year::new(6, profile);
        year.ari_every = HOUR * 6;
        let from = BEGIN + DAY * 2;
        year.troubles.push_back((from, from + DAY, Ari(Now)));
        let renewed = year.run().never_dark().ca.signed[1];
        assert!(from < renewed && renewed - from <= HOUR * 6 + WAKE, "{renewed}");
    }
}

#[test]
fn outages_shorter_than_what_is_left_are_not_seen_by_anybody() {
    let kinds = [Down, Busy, Nonces, Name, Caa, Replaces, StagingDown, Ari(Lie::Silent), Slow];
    for (seed, profile) in (10..).zip(Profile::TWO.repeat(2)) {
        let (long, apart) = match profile {
            Profile::Shortlived => (HOUR * 20, DAY * 4),
            Profile::Classic | Profile::Tlsserver => (DAY * 5, DAY * 12),
        };
        let mut year = Year::new(seed, profile);
        if seed > 11 {
            year = year.always(Ari(Lie::Refused));
        }
        year.at_times(&kinds, long, apart).run().never_dark();
    }
}

#[test]
fn long_outages_end_with_a_certificate_within_two_days() {
    let kinds = [Down, Busy, Nonces, Name, Caa, Replaces, StagingDown, Asleep];
    for (seed, profile) in (20..).zip(Profile::TWO) {
        let mut year = Year::new(seed, profile).at_times(&kinds, DAY * 20, DAY * 30);
        // After a week of failures it is tried once a day.
        year.grace = HOUR * 36;
        assert!(year.run().dark > Duration::ZERO || profile != Profile::Shortlived);
    }
}

#[test]
fn machines_that_sleep_for_days_wake_to_a_good_certificate() {
    for (seed, profile) in (30..).zip(Profile::TWO) {
        let year = Year::new(seed, profile).at_times(&[Asleep], DAY * 9, DAY * 3).run();
        // Nine days is more than six can live through.
        if profile != Profile::Shortlived {
            year.never_dark();
        }
    }
}

#[test]
fn a_clock_that_steps_costs_neither_certificates_nor_limits() {
    let by = [-DAY * 20000, -DAY * 50, -HOUR * 2, HOUR * 2, DAY * 50, DAY * 400].map(Clock);
    let by = [&by[..], &[Down, Name]].concat();
    for (seed, profile) in (40..).zip(Profile::TWO) {
        let long = if profile == Profile::Shortlived { HOUR * 20 } else { DAY * 3 };
        let year = Year::new(seed, profile).at_times(&by, long, DAY * 6).run().never_dark();
        year.signed_each(45, 76);
    }
}

#[test]
fn whatever_happens_the_authority_is_asked_within_its_limits() {
    use Blow::*;
    let kinds = [
        Down,
        Busy,
        Nonces,
        Name,
        Caa,
        Replaces,
        StagingDown,
        Asleep,
        Slow,
        Unusable,
        Clock(DAY * 50),
        Clock(-DAY * 50),
        Ari(Lie::Past),
        Ari(Lie::Now),
        Ari(Lie::Inverted),
        Ari(Lie::Silent),
    ];
    for (seed, profile) in (50..).zip(Profile::ALL) {
        let mut year = Year::new(seed, profile)
            .at_times(&kinds, DAY * 2, DAY * 4)
            .at_times(&kinds, DAY, DAY * 6)
            .struck(&[StateTorn, CertificateTorn, AccountLost, Kill, Person], DAY * 12);
        // So many were spent that a week must pass.
        year.grace = WEEK;
        year.run();
    }
}
