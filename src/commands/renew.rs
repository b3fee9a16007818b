//! `renew`: the certificate rows of the blueprint alone, and what is due at an ACME authority.

use super::{config::Settings, need_installed, need_root, this_machine};
use crate::{
    config::{Config, Signer},
    host::{Busy, Host},
    hq::{
        issuance::{Call, Desk, End, Ticket, cure, tickets},
        nginx,
        plan::{Sweep, Take, Work},
        probe,
        receipt::Book,
        resource::{Resource, Unit},
        survey::Survey,
    },
    tls::renewal::{ErrorClass, NAP, Waiting},
    ui::{Try as _, Ui, moment},
};
use anyhow::{Context as _, Result, bail};
use std::time::Duration;
use time::OffsetDateTime;

#[derive(clap::Args)]
pub struct Args {}

pub fn run(_: Args, settings: &Settings, ui: &Ui) -> Result<u8> {
    let host = this_machine();
    need_root(&host)?;
    need_installed(&host)?;
    let mut naps = 0;
    loop {
        let round = match round(&host, settings, &|_| true, Call::Timer, ui) {
            // An install, which asks for certificates itself; what it leaves is done at the next wake-up.
            Err(e) if e.is::<Busy>() => {
                ui.say(format_args!("{e}: nothing was done"));
                return Ok(0);
            }
            round => round?,
        };
        // A failure that may pass in minutes is not left for the next wake-up. Nobody is kept waiting meanwhile.
        match round.nap(OffsetDateTime::now_utc()).filter(|_| naps < NAPS) {
            Some(wait) => std::thread::sleep(wait),
            None => return round.told(Call::Timer, ui),
        }
        naps += 1;
    }
}

/// The first two steps of a backoff: one minute, ten minutes.
const NAPS: u32 = 2;

/// Do what is due for these; fails when something that was tried failed.
pub fn renew(
    host: &Host,
    settings: &Settings,
    which: &dyn Fn(&Ticket) -> bool,
    call: Call,
    ui: &Ui,
) -> Result<u8> {
    round(host, settings, which, call, ui)?.told(call, ui)
}

/// What one look at all certificates brought about.
struct Round {
    config: Config,
    changes: usize,
    ends: Vec<(Ticket, End)>,
}

fn round(
    host: &Host,
    settings: &Settings,
    which: &dyn Fn(&Ticket) -> bool,
    call: Call,
    ui: &Ui,
) -> Result<Round> {
    let book = if call == Call::Timer { Book::at_once(host)? } else { Book::open(host, ui)? };
    let survey =
        Survey::without_data(host, settings.read(host)?, &book.receipt().installed(), &book.receipt())?;
    let mut wanted = survey.blueprint()?;
    wanted.retain(|resource| match resource {
        Resource::Certificate { .. } => true,
        Resource::Unit(unit) => unit.name == nginx::UNIT,
        _ => false,
    });
    let routes = || probe::routes(host, &survey.config, &survey.services);
    let work = Work { host, take: &Take::default(), sweep: Sweep::Nothing, ui, routes: &routes };
    let changes = work.converge(&wanted, &book)?.changes;
    let ends = issue(host, &survey, which, call, &book, ui)?;
    Ok(Round { config: survey.config, changes, ends })
}

impl Round {
    /// How soon what failed may be tried again, if that is soon.
    fn nap(&self, now: OffsetDateTime) -> Option<Duration> {
        let again = self.ends.iter().filter_map(|(_, end)| match end {
            End::Failed { again, .. } => Some(*again - now),
            _ => None,
        });
        let soonest = again.min().filter(|wait| *wait <= NAP)?;
        Some(soonest.max(time::Duration::ZERO).unsigned_abs())
    }

    fn told(self, call: Call, ui: &Ui) -> Result<u8> {
        let (mut changes, mut failed) = (self.changes, Vec::new());
        for (ticket, end) in &self.ends {
            match end {
                End::Issued { notes } => {
                    changes += 1;
                    notes.iter().for_each(|note| ui.warn(format_args!("{}: {note}", ticket.id)));
                }
                End::Waits { until, why } => match undone(*why, call) {
                    None => ui.say(format_args!("{}: {why}; next at {}", ticket.id, moment(*until))),
                    Some(class) => failed.push((format!("{}: {why}", ticket.id), &[][..], class, *until)),
                },
                End::Failed { failure, links, class, again } => {
                    failed.push((failure.clone(), links, *class, *again));
                }
            }
        }
        let Some((_, _, class, again)) = failed.first() else {
            if changes == 0 {
                ui.say("no certificate is due");
            }
            return Ok(0);
        };
        let words: Vec<_> = failed.iter().map(|(failure, ..)| failure.as_str()).collect();
        let mut hints: Vec<String> = cure(*class, &self.config).into_iter().collect();
        let links = failed.iter().flat_map(|(_, links, ..)| links.iter());
        hints.extend(links.map(|link| format!("the authority names {link}")));
        hints.push(format!("it is tried again by itself from {} on", moment(*again)));
        let refused = || bail!("{}", words.join("\n  and: "));
        refused().or_try(hints.join("\n"))
    }
}

/// Whether waiting is a failure of what was asked for, and of which kind: for a person who asked for a certificate,
/// any but that it is not due; for the timer, only what needs a person.
fn undone(why: Waiting, call: Call) -> Option<ErrorClass> {
    match why {
        Waiting::NotDue(_) => None,
        Waiting::Clock(_) => Some(ErrorClass::Clock),
        _ if call == Call::Timer => None,
        Waiting::Backoff(class) | Waiting::RetryAfter(class) => Some(class),
        Waiting::Issued | Waiting::Refused => Some(ErrorClass::RateLimited),
    }
}

/// What the ACME authority is to be asked for; nothing where another signs.
pub fn issue(
    host: &Host,
    survey: &Survey,
    which: &dyn Fn(&Ticket) -> bool,
    call: Call,
    book: &Book,
    ui: &Ui,
) -> Result<Vec<(Ticket, End)>> {
    let Survey { config, services, .. } = survey;
    if config.signer() != Signer::Acme || !host.is_live() {
        return Ok(Vec::new());
    }
    let wanted = survey.blueprint()?;
    let unit = wanted.iter().find_map(unit_of_nginx).context("there is no nginx in the blueprint")?;
    let desk = Desk { host, config, services, ui };
    let tickets: Vec<_> = tickets(config, services).into_iter().filter(|ticket| which(ticket)).collect();
    desk.work(&tickets, call, unit, book)
}

fn unit_of_nginx(resource: &Resource) -> Option<&Unit> {
    match resource {
        Resource::Unit(unit) if unit.name == nginx::UNIT => Some(unit),
        _ => None,
    }
}
