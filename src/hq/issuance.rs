//! Certificates of an ACME authority, from the decision that one is due to the proof that nginx serves it. What is
//! decided is decided in `tls::renewal`, what is asked is asked by `tls::acme`; here it is carried out, and what
//! must be remembered is on disk before each deed.
//!
//! Nothing that is served ever gets worse: what came is checked before it is put in use, nginx tests it before it
//! loads it, and what then is not served to a visitor goes out of use again.

use super::{
    certificate::{self, Standing},
    nginx,
    receipt::Book,
    resource::Unit,
    service::Service,
};
use crate::{
    config::{Config, KeyType},
    host::Host,
    patience::Patience,
    tls::{
        self,
        acme::{self, Ca, Eab, Failure, Wish},
        preflight,
        renewal::{self, Asked, Decision, Errand, ErrorClass, Facts, Held, OnDisk, Outcome, State, Waiting},
        store,
    },
    ui::Ui,
};
use anyhow::{Context as _, Result, ensure};
use base64::Engine as _;
use serde::{Deserialize, Serialize};
use std::{
    cell::RefCell,
    collections::BTreeSet,
    path::{Path, PathBuf},
    time::Duration,
};
use time::OffsetDateTime;

/// The authority's time is believed for so long.
const TIME_HOLDS: Duration = Duration::from_secs(60);

/// One certificate of ours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ticket {
    /// What its files are called.
    pub id: String,
    /// The host names it is for, each with its place in `store`.
    pub names: Vec<String>,
}

/// Which certificates there should be. Pure.
pub fn tickets(config: &Config, services: &BTreeSet<Service>) -> Vec<Ticket> {
    let names: Vec<String> = services.iter().map(|service| service.host(config)).collect();
    if config.tls.shared {
        return vec![Ticket { id: config.domain.to_string(), names }];
    }
    names.into_iter().map(|name| Ticket { id: name.clone(), names: vec![name] }).collect()
}

/// What is remembered about a certificate beside the schedule: for people, and to know our own.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Record {
    /// Of the certificate that was put in use last.
    pub fingerprint: String,
    /// Who issued it.
    pub directory: String,
    pub profile: Option<String>,
    pub error: Option<Said>,
}

/// What went wrong when.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Said {
    #[serde(with = "time::serde::rfc3339")]
    pub at: OffsetDateTime,
    pub words: String,
    /// Pages that the authority points at.
    pub links: Vec<String>,
}

/// How a certificate stands, for people.
#[derive(Debug, Clone)]
pub struct Account {
    pub ticket: Ticket,
    pub record: Record,
    /// When it will be renewed and why then.
    pub planned: (OffsetDateTime, renewal::Reason),
    /// What keeps it from being renewed now, and until when.
    pub failing: Option<(ErrorClass, u32)>,
}

/// What came of one ticket.
#[derive(Debug)]
pub enum End {
    /// A new certificate is in use.
    Issued { notes: Vec<String> },
    /// Nothing was to be done, until then.
    Waits { until: OffsetDateTime, why: Waiting },
    /// It failed just now; when it is tried again.
    Failed { failure: String, links: Box<[String]>, class: ErrorClass, again: OffsetDateTime },
}

/// Who calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Call {
    Timer,
    /// A person, about what is due: who has mended something does not wait out what was to follow a failure.
    Due,
    /// A person, about a certificate that is due or not.
    Now,
}

/// What the work is done with.
pub struct Desk<'a> {
    pub host: &'a Host,
    pub config: &'a Config,
    pub services: &'a BTreeSet<Service>,
    pub ui: &'a Ui,
}

/// A certificate that came and is not in use yet.
struct Fresh {
    ticket: Ticket,
    issued: acme::Issued,
    state: State,
}

impl Desk<'_> {
    /// The authority that the settings name.
    pub fn ca(&self) -> Result<Ca> {
        let tls = &self.config.tls;
        let directory = if tls.staging { tls.staging().unwrap_or_default() } else { tls.directory.as_str() };
        self.ca_at(directory)
    }

    /// Its staging environment, unless that is the authority itself.
    pub fn staging(&self) -> Result<Option<Ca>> {
        let tls = &self.config.tls;
        tls.staging().filter(|_| !tls.staging).map(|directory| self.ca_at(directory)).transpose()
    }

    fn ca_at(&self, directory: &str) -> Result<Ca> {
        let (host, tls) = (self.host, &self.config.tls);
        let read = |setting: &str, path: PathBuf| {
            let text = host.read_text(&path)?;
            text.with_context(|| format!("{} is not there; the setting {setting} names it", path.display()))
        };
        let roots = tls.ca_file.to_path().map(|path| read("tls.ca_file", path)).transpose()?;
        let eab = match tls.eab_key_file.to_path() {
            None => None,
            Some(path) => {
                let key = read("tls.eab_key_file", path.clone())?;
                let key = key.trim().trim_end_matches('=');
                let hmac = base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(key);
                let hmac = hmac.with_context(|| format!("{} does not hold base64url", path.display()))?;
                Some(Eab { kid: tls.eab_kid.to_string(), hmac })
            }
        };
        let email = Some(tls.email.to_string()).filter(|email| !email.is_empty());
        Ok(Ca { directory: directory.into(), roots, email, eab })
    }

    fn wish(&self, ticket: &Ticket) -> Wish {
        let tls = &self.config.tls;
        Wish {
            id: ticket.id.clone(),
            names: ticket.names.clone(),
            profile: Some(tls.profile.to_string()).filter(|profile| !profile.is_empty()),
            key: tls.key_type,
            replaces: None,
            new_account: false,
        }
    }

    /// Do what is due for all of `tickets`, and have nginx serve what came. Only what keeps us from trying at all is
    /// an error.
    pub fn work(
        &self,
        tickets: &[Ticket],
        call: Call,
        unit: &Unit,
        book: &Book,
    ) -> Result<Vec<(Ticket, End)>> {
        for dir in [acme::DIR, acme::WEBROOT] {
            certificate::own(self.host, Path::new(dir), book)?;
        }
        let ca = self.ca()?;
        let (mut ends, mut fresh) = (Vec::new(), Vec::new());
        for ticket in tickets {
            match self.pursue(&ca, ticket, call)? {
                Pursued::Came(it) => fresh.push(*it),
                Pursued::Ended(end) => ends.push((ticket.clone(), end)),
            }
        }
        if !fresh.is_empty() {
            ends.extend(self.put_in_use(&ca, fresh, unit, book)?);
        }
        Ok(ends)
    }

    /// Go round for one certificate until there is nothing to do, or a new one.
    fn pursue(&self, ca: &Ca, ticket: &Ticket, call: Call) -> Result<Pursued> {
        let wish = self.wish(ticket);
        self.spread(ca, ticket)?;
        let state = RefCell::new(self.state(ca, ticket)?);
        let (mut clock, mut failed, mut caa) = (None, None, Vec::new());
        let mut asked = match call {
            Call::Timer => Asked::ByTimer,
            Call::Now => Asked::ByPerson,
            Call::Due => {
                let now = OffsetDateTime::now_utc();
                let facts = self.facts(ca, ticket, &wish, None, Asked::ByTimer)?;
                let due = renewal::planned(now, &state.borrow(), &facts).0 <= now;
                if due || facts.unfinished.is_some() { Asked::ByPerson } else { Asked::ByTimer }
            }
        };
        loop {
            let now = OffsetDateTime::now_utc();
            let offset = clock.filter(|(at, _): &(std::time::Instant, _)| at.elapsed() < TIME_HOLDS);
            let facts = self.facts(ca, ticket, &wish, offset.map(|(_, offset)| offset), asked)?;
            let tell = |outcome: Outcome| -> Result<()> {
                let next = renewal::after(state.take(), OffsetDateTime::now_utc(), outcome, &facts, draw()?);
                let text = next.write().context("writing down when a certificate is due")?;
                state.replace(next);
                self.host.write(&state_path(ca, ticket), 0o600, text.as_bytes())
            };
            let decision = renewal::decide(now, &state.borrow(), &facts);
            match decision {
                Decision::Wait { until, why } => {
                    if let Waiting::Clock(_) = why {
                        self.remember_error(ticket, &why.to_string(), &[])?;
                    }
                    let end = match failed.take() {
                        Some(failure) => {
                            let Failure { ref links, .. } = failure;
                            let (links, class) = (links.clone(), failure.class());
                            End::Failed { failure: failure.to_string(), links, class, again: until }
                        }
                        None => End::Waits { until, why },
                    };
                    return Ok(Pursued::Ended(end));
                }
                Decision::AskTime(errand) => match ca.greet() {
                    Ok(greeting) => {
                        clock = Some((std::time::Instant::now(), greeting.clock));
                        caa = greeting.caa;
                    }
                    Err(failure) => match errand {
                        Errand::Ari => {
                            self.ui.say(format_args!("{}: {failure}", ticket.id));
                            let (fault, retry_after) = (failure.ari(), span(failure.retry_after));
                            tell(Outcome::AriFailed { fault, retry_after })?;
                        }
                        Errand::Order => {
                            tell(Outcome::Begun)?;
                            tell(Outcome::Failed(self.outcome(&failure, renewal::Ca::Production)))?;
                            self.remember_error(ticket, &failure.to_string(), &failure.links)?;
                            (asked, failed) = (Asked::ByTimer, Some(failure));
                        }
                    },
                },
                Decision::AskAri => {
                    let chain = self.in_use(ticket)?.unwrap_or_default();
                    match ca.advice(self.host, &chain) {
                        Ok(advice) => {
                            let retry_after = span(advice.retry_after);
                            if let Some(why) = &advice.why {
                                self.ui.say(format_args!(
                                    "{}: the authority explains its advice at {why}",
                                    ticket.id
                                ));
                            }
                            tell(Outcome::AriAnswered { window: advice.window, retry_after })?;
                        }
                        Err(failure) => {
                            self.ui.say(format_args!("{}: {failure}", ticket.id));
                            let (fault, retry_after) = (failure.ari(), span(failure.retry_after));
                            tell(Outcome::AriFailed { fault, retry_after })?;
                        }
                    }
                }
                Decision::Resume | Decision::Obtain(_) => {
                    let step = self.ui.step(format_args!("certificate for {}", ticket.names.join(", ")));
                    tell(Outcome::Begun)?;
                    let finalizing = || tell(Outcome::Finalizing);
                    let mut at = renewal::Ca::Production;
                    let tried = if let Decision::Obtain(order) = &decision {
                        step.detail(&order.why.to_string());
                        let doubtful = self.look_ahead(&facts, &state.borrow(), &wish, &caa)?;
                        let (replaces, new_account) = (order.replaces.clone(), order.new_account);
                        let wish = Wish { replaces, new_account, ..wish.clone() };
                        at = renewal::Ca::Staging;
                        let rehearsed =
                            if order.rehearse || doubtful { self.rehearse(&wish) } else { Ok(()) };
                        rehearsed.and_then(|()| {
                            at = renewal::Ca::Production;
                            ca.order(self.host, &wish, &finalizing)
                        })
                    } else {
                        step.detail("going on with the order that was left");
                        ca.resume(self.host, &wish, &finalizing)
                    };
                    match tried {
                        Ok(issued) => {
                            step.done();
                            let (ticket, state) = (ticket.clone(), state.take());
                            return Ok(Pursued::Came(Box::new(Fresh { ticket, issued, state })));
                        }
                        Err(failure) => {
                            tell(Outcome::Failed(self.outcome(&failure, at)))?;
                            self.remember_error(ticket, &failure.to_string(), &failure.links)?;
                            (asked, failed) = (Asked::ByTimer, Some(failure));
                        }
                    }
                }
            }
        }
    }

    /// Whether an authority may not see this machine; and if so, why, said. Looked at where there is no certificate
    /// yet, and after an attempt that failed for it.
    fn look_ahead(&self, facts: &Facts, state: &State, wish: &Wish, caa: &[String]) -> Result<bool> {
        let failed = state.failure().map(|(_, class, _)| class);
        let blamed = matches!(failed, Some(ErrorClass::Validation | ErrorClass::Caa));
        if matches!(facts.on_disk, OnDisk::Good(_)) && !blamed {
            return Ok(false);
        }
        let found = preflight::look(self.host, &wish.names, caa)?;
        for finding in &found {
            self.ui.warn(finding);
        }
        Ok(!found.is_empty())
    }

    /// The whole way in the staging environment.
    pub fn rehearse_ticket(&self, ticket: &Ticket) -> Result<(), Failure> {
        self.rehearse(&self.wish(ticket))
    }

    /// What production refused is tried where a refusal costs nothing.
    fn rehearse(&self, wish: &Wish) -> Result<(), Failure> {
        let staging = self.staging().map_err(|e| Failure::here("rehearsing", e))?;
        let Some(staging) = staging else { return Ok(()) };
        let wish = Wish { id: format!("{}.staging", wish.id), replaces: None, ..wish.clone() };
        let rehearsed = staging.order(self.host, &wish, &|| Ok(()));
        let forgotten = acme::forget(self.host, &wish.id);
        rehearsed?;
        forgotten.map_err(|e| Failure::here("rehearsing", e))
    }

    fn outcome(&self, failure: &Failure, at: renewal::Ca) -> renewal::Failure {
        let retry_at = failure.retry_at(OffsetDateTime::now_utc());
        renewal::Failure { class: failure.class(), at, replaces: failure.replaces, retry_at }
    }

    /// All new ones at once: one reload, and if nginx does not serve them, none of them stays.
    fn put_in_use(&self, ca: &Ca, fresh: Vec<Fresh>, unit: &Unit, book: &Book) -> Result<Vec<(Ticket, End)>> {
        let now = OffsetDateTime::now_utc();
        let step = self.ui.step("nginx: new certificates");
        let names = || fresh.iter().flat_map(|it| it.ticket.names.iter().map(move |name| (name, it)));
        let mut before = Vec::new();
        let installed = names().try_for_each(|(name, it)| {
            certificate::own(self.host, &Path::new(store::DIR).join(name), book)?;
            let current = store::current(self.host, name)?;
            // Killed between the swap and the load: it is there already.
            if current.as_ref().is_some_and(|current| current.pair == it.issued.pair) {
                return Ok(());
            }
            let old = current.map(|current| current.generation);
            let trust = tls::trust(self.host, &it.issued.pair.chain, name, now)?;
            store::install(self.host, name, &it.issued.pair, trust, now)?;
            before.extend(old.map(|old| (name.clone(), old)));
            Ok(())
        });
        let served = || names().try_for_each(|(name, it)| self.serves(name, &it.issued.pair.chain));
        let proof = installed.and_then(|()| nginx::take_in(self.host, unit, book, &served));
        if let Err(broken) = proof {
            for (name, generation) in before {
                store::put_back(self.host, &name, generation)?;
            }
            let back = nginx::take_in(self.host, unit, book, &|| Ok(()));
            let words = match back {
                Ok(()) => format!("{broken:#}; the certificate from before is back"),
                Err(e) => format!("{broken:#}; the certificate from before is back, but nginx: {e:#}"),
            };
            let mut ends = Vec::new();
            for Fresh { ticket, state, .. } in fresh {
                let wish = self.wish(&ticket);
                let facts = self.facts(ca, &ticket, &wish, None, Asked::ByTimer)?;
                let (class, at) = (ErrorClass::Unusable, renewal::Ca::Production);
                let failure = renewal::Failure { class, at, replaces: false, retry_at: None };
                let state = renewal::after(state, now, Outcome::Failed(failure), &facts, draw()?);
                self.host.write(&state_path(ca, &ticket), 0o600, state.write()?.as_bytes())?;
                self.remember_error(&ticket, &words, &[])?;
                let again = match renewal::decide(now, &state, &facts) {
                    Decision::Wait { until, .. } => until,
                    _ => now,
                };
                ends.push((
                    ticket,
                    End::Failed { failure: words.clone(), links: Box::default(), class, again },
                ));
            }
            return Ok(ends);
        }
        step.done();
        let mut ends = Vec::new();
        for Fresh { ticket, issued, state } in fresh {
            let facts = store::facts(&issued.pair.chain)?;
            let record = Record {
                fingerprint: facts.fingerprint,
                directory: ca.directory.clone(),
                profile: issued.profile.clone(),
                error: None,
            };
            self.remember(&ticket, &record)?;
            let (id, not_after) = (acme::identifier(&issued.pair.chain).ok(), facts.not_after);
            let facts = self.facts(ca, &ticket, &self.wish(&ticket), None, Asked::ByTimer)?;
            let outcome = Outcome::Issued { id, not_after };
            let state = renewal::after(state, OffsetDateTime::now_utc(), outcome, &facts, draw()?);
            self.host.write(&state_path(ca, &ticket), 0o600, state.write()?.as_bytes())?;
            acme::forget(self.host, &ticket.id)?;
            ends.push((ticket, End::Issued { notes: issued.notes }));
        }
        Ok(ends)
    }

    /// Whether a visitor is shown this certificate, whichever way he comes.
    fn serves(&self, name: &str, chain: &str) -> Result<()> {
        let file = store::facts(chain)?;
        for at in tls::doors(self.host)? {
            Patience::seconds(10).until(|| {
                let served = tls::served(at, name, Duration::from_secs(5))?;
                ensure!(served.is(&file), "nginx at {at} shows {name} another certificate than the new one");
                Ok(())
            })?;
        }
        Ok(())
    }

    /// A certificate with several names is in several places: one that lost its copy gets another.
    fn spread(&self, ca: &Ca, ticket: &Ticket) -> Result<()> {
        let record = self.record(ticket)?;
        if ticket.names.len() < 2 || record.directory != ca.directory {
            return Ok(());
        }
        let now = OffsetDateTime::now_utc();
        let currents = ticket.names.iter().map(|name| store::current(self.host, name));
        let pairs: Vec<_> = currents.collect::<Result<Vec<_>>>()?;
        let ours = |pair: &store::Pair| {
            store::facts(&pair.chain).is_ok_and(|facts| facts.fingerprint == record.fingerprint)
        };
        let Some(pair) = pairs.iter().flatten().map(|current| &current.pair).find(|pair| ours(pair)) else {
            return Ok(());
        };
        for (name, current) in ticket.names.iter().zip(&pairs) {
            let has = current.as_ref().is_some_and(|current| ours(&current.pair));
            if !has && store::check(pair, name, now).is_ok() {
                store::install(self.host, name, pair, tls::trust(self.host, &pair.chain, name, now)?, now)?;
            }
        }
        Ok(())
    }

    /// The chain in use for all names of a certificate; none where they differ.
    fn in_use(&self, ticket: &Ticket) -> Result<Option<String>> {
        let mut all = BTreeSet::new();
        for name in &ticket.names {
            match store::current(self.host, name)? {
                Some(current) if certificate::stands(self.host, name)? == Standing::Foreign => {
                    all.insert(current.pair.chain);
                }
                _ => return Ok(None),
            }
        }
        Ok(if all.len() == 1 { all.pop_first() } else { None })
    }

    fn facts(
        &self,
        ca: &Ca,
        ticket: &Ticket,
        wish: &Wish,
        clock: Option<time::Duration>,
        asked: Asked,
    ) -> Result<Facts> {
        let names = |names: &[String]| names.iter().map(|name| name.to_ascii_lowercase()).collect();
        let record = self.record(ticket)?;
        // What another authority issued is not what the settings ask for.
        let held = |chain: &str| -> Result<Option<Held>> {
            let facts = store::facts(chain)?;
            if facts.fingerprint != record.fingerprint || record.directory != ca.directory {
                return Ok(None);
            }
            Ok(Some(Held {
                id: acme::identifier(chain).ok(),
                names: names(&facts.names),
                key: store::key_kind(chain)?,
                not_before: facts.not_before,
                not_after: facts.not_after,
            }))
        };
        let on_disk = match self.in_use(ticket)? {
            None => OnDisk::Nothing,
            Some(chain) => match held(&chain) {
                Ok(Some(held)) => OnDisk::Good(held),
                Ok(None) => OnDisk::Nothing,
                Err(_) => OnDisk::Broken,
            },
        };
        let key = match wish.key {
            KeyType::P256 => "P-256",
            KeyType::P384 => "P-384",
        };
        Ok(Facts {
            wanted: renewal::Wanted {
                names: names(&wish.names),
                key: key.into(),
                profile: wish.profile.clone(),
            },
            on_disk,
            unfinished: ca.unfinished(self.host, wish)?,
            clock,
            staging: self.staging()?.is_some(),
            asked,
        })
    }

    fn state(&self, ca: &Ca, ticket: &Ticket) -> Result<State> {
        let path = state_path(ca, ticket);
        let text = self.host.read_text(&path)?;
        let state = State::read(text.as_deref(), OffsetDateTime::now_utc());
        if let Some(text) = text
            && state.write()? != text
        {
            // One that could not be read begins anew, once.
            self.host.write(&path, 0o600, state.write()?.as_bytes())?;
        }
        Ok(state)
    }

    /// How all certificates stand.
    pub fn accounts(&self) -> Result<Vec<Account>> {
        let ca = self.ca()?;
        let now = OffsetDateTime::now_utc();
        let one = |ticket: Ticket| {
            let state = State::read(self.host.read_text(&state_path(&ca, &ticket))?.as_deref(), now);
            let facts = self.facts(&ca, &ticket, &self.wish(&ticket), None, Asked::ByTimer)?;
            let mut planned = renewal::planned(now, &state, &facts);
            if let Decision::Wait {
                until,
                why: Waiting::Backoff(_) | Waiting::RetryAfter(_) | Waiting::Issued,
            } = renewal::decide(now, &state, &facts)
            {
                planned.0 = until;
            }
            let failing = state.failure().map(|(_, class, count)| (class, count));
            Ok(Account { record: self.record(&ticket)?, ticket, planned, failing })
        };
        tickets(self.config, self.services).into_iter().map(one).collect()
    }

    pub fn record(&self, ticket: &Ticket) -> Result<Record> {
        let text = self.host.read_text(&record_path(ticket))?.unwrap_or_default();
        // What cannot be read is not known: at worst one certificate too many, within the schedule's limits.
        Ok(serde_json::from_str(&text).unwrap_or_default())
    }

    fn remember(&self, ticket: &Ticket, record: &Record) -> Result<()> {
        self.host.write(&record_path(ticket), 0o600, serde_json::to_string_pretty(record)?.as_bytes())
    }

    fn remember_error(&self, ticket: &Ticket, words: &str, links: &[String]) -> Result<()> {
        let (words, links) = (words.to_owned(), links.to_vec());
        let error = Some(Said { at: OffsetDateTime::now_utc(), words, links });
        self.remember(ticket, &Record { error, ..self.record(ticket)? })
    }
}

/// What a person can do about it; nothing, when it passes by itself.
pub fn cure(class: ErrorClass, config: &Config) -> Option<String> {
    let words = match class {
        ErrorClass::Validation => {
            "let every name lead to this machine in DNS (A, and AAAA only if it has IPv6), and let port 80 through from \
             anywhere; `echoes-appliance cert check` looks at each"
        }
        ErrorClass::Caa => {
            "change the CAA record of the domain so that it allows this authority, or remove it"
        }
        ErrorClass::Identifier => "choose a domain that is yours, or tls.mode = \"internal\"",
        ErrorClass::Terms => "agree to the authority's new terms on the page it names",
        ErrorClass::Binding => "set tls.eab_kid and tls.eab_key_file to what the authority gave you",
        ErrorClass::Profile => "set tls.profile to one that the authority has, or to \"\"",
        ErrorClass::Clock => "`timedatectl set-ntp true`, then `echoes-appliance cert renew`",
        ErrorClass::Unreachable => "let this machine reach the authority over https",
        ErrorClass::RateLimited
        | ErrorClass::Busy
        | ErrorClass::Server
        | ErrorClass::BadNonce
        | ErrorClass::Processing
        | ErrorClass::Account
        | ErrorClass::Replaces
        | ErrorClass::Cut
        | ErrorClass::Lost => return None,
        ErrorClass::Unusable | ErrorClass::Request => {
            "`echoes-appliance logs renew` has the whole story; after mending it, `echoes-appliance cert renew`"
        }
    };
    if class == ErrorClass::Validation && config.tls.shared {
        return Some(format!("{words}; tls.shared = false lets the other names have theirs"));
    }
    Some(words.into())
}

enum Pursued {
    Came(Box<Fresh>),
    Ended(End),
}

/// Each authority has its own limits, so each has its own memory.
fn state_path(ca: &Ca, ticket: &Ticket) -> PathBuf {
    Path::new(acme::DIR).join("schedule").join(format!("{}.{}.json", ticket.id, acme::mark(&ca.directory)))
}

fn record_path(ticket: &Ticket) -> PathBuf {
    Path::new(acme::DIR).join("records").join(format!("{}.json", ticket.id))
}

fn span(wait: Option<Duration>) -> Option<time::Duration> {
    wait.and_then(|wait| wait.try_into().ok())
}

/// A fraction, evenly drawn from 0..1.
fn draw() -> Result<f64> {
    let mut bytes = [0u8; 4];
    getrandom::fill(&mut bytes).context("asking the kernel for random bytes")?;
    Ok(f64::from(u32::from_le_bytes(bytes)) / (f64::from(u32::MAX) + 1.0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    #[test]
    fn one_certificate_each_unless_said() {
        let config = |set: &[&str]| {
            let set: Vec<_> = set.iter().map(|set| set.parse().unwrap()).collect();
            Config::parse(Path::new("x"), "domain = \"lonel.ai\"", &set).unwrap()
        };
        let services = BTreeSet::from([Service::Mlflow, Service::Docs]);
        let ids = |config: &Config| {
            let all = tickets(config, &services).into_iter();
            all.map(|ticket| (ticket.id, ticket.names.join(" "))).collect::<Vec<_>>()
        };
        let own = |name: &str| (name.to_owned(), name.to_owned());
        assert_eq!(ids(&config(&[])), [own("mlflow.lonel.ai"), own("docs.lonel.ai")]);
        let shared = ("lonel.ai".to_owned(), "mlflow.lonel.ai docs.lonel.ai".to_owned());
        assert_eq!(ids(&config(&["tls.shared=true"])), [shared]);
    }
}
