//! `install`: look, decide, note, do; then prove that every route answers.

use super::{
    config::{First, Settings},
    machine_in, need_root, renew,
};
use crate::{
    config,
    hash::sha256,
    host::Host,
    hq::{
        certificate::{Standing, stands},
        issuance::{Call, End, Ticket, cure},
        plan::{Done, Sweep, Take, Work, look, refuse_foreign},
        probe, python,
        receipt::{Book, Entry},
        resource::{Resource, Seen, missing_dirs},
        service::Service,
        survey::Survey,
        users,
    },
    tls::{internal::Authority, renewal::Waiting},
    ui::{Ui, moment},
};
use anyhow::Result;
use std::path::{Path, PathBuf};

#[derive(clap::Args)]
pub struct Args {
    /// Only this service, beside those already installed; may be given more than once
    #[arg(long, value_enum, value_name = "SERVICE")]
    service: Vec<Service>,
    #[command(flatten)]
    first: First,
    /// Install into a directory that holds a machine's files instead of this machine
    #[arg(long, value_name = "DIR", default_value = "/", hide_default_value = true)]
    root: PathBuf,
    /// Replace this file of ours although somebody edited it; "all" for every such file
    #[arg(long, value_name = "PATH")]
    take: Vec<String>,
    /// Ask nothing (install never asks; for scripts that say it anyway)
    #[arg(long)]
    yes: bool,
}

pub fn run(args: Args, settings: &Settings, ui: &Ui) -> Result<u8> {
    let _ = args.yes;
    let host = machine_in(&args.root)?;
    need_root(&host)?;
    let settings = settings.with(&args.first)?;
    let config = settings.read(&host)?;
    let book = Book::open(&host, ui)?;
    let survey = Survey::new(&host, config, &args.service, &book.receipt())?;
    survey.check_files(&host)?;
    let wanted = survey.blueprint()?;
    let seen = look(&host, &wanted, &book.receipt())?;
    // What would stop us later stops us before anything is done.
    survey.check_sites(&host, &book.receipt())?;
    refuse_foreign(&wanted, &seen)?;
    if seen.iter().any(|seen| matches!(seen, Seen::Wrong(_))) {
        survey.check_ports(&host)?;
        survey.check_room(&host)?;
    }
    survey.warnings.iter().for_each(|warning| ui.warn(warning));
    remember(&host, &settings, &survey, &book)?;
    let (done, survey) = carry_out(&host, survey, (wanted, seen), &take(&args.take), &book, ui)?;
    let ends = certificates(&host, &survey, &book, ui);
    report(&host, &done, &settings, &book, &ends, ui)
}

/// The headquarters is up, with our own authority's certificates where it has no others. What an ACME authority does
/// or leaves undone changes nothing about that: it is said, and tried again by the timer.
fn certificates(host: &Host, survey: &Survey, book: &Book, ui: &Ui) -> Vec<(Ticket, End)> {
    let ends = renew::issue(host, survey, &|_| true, Call::Due, book, ui);
    let ends = ends.unwrap_or_else(|e| {
        ui.warn(format_args!("no certificates could be asked for: {e:#}"));
        Vec::new()
    });
    for (ticket, end) in &ends {
        match end {
            End::Issued { notes } => {
                notes.iter().for_each(|note| ui.warn(format_args!("{}: {note}", ticket.id)))
            }
            End::Waits { why: Waiting::NotDue(_), .. } => {}
            End::Waits { until, why } => {
                ui.warn(format_args!(
                    "no certificate for {} yet: {why}; next at {}",
                    ticket.id,
                    moment(*until)
                ));
            }
            End::Failed { failure, links, class, again } => {
                ui.warn(format_args!("no certificate for {} yet: {failure}", ticket.id));
                links.iter().for_each(|link| ui.say(format_args!("  the authority names {link}")));
                if let Some(cure) = cure(*class, &survey.config) {
                    ui.say(format_args!("  try: {cure}"));
                }
                ui.say(format_args!("  it is tried again by itself from {} on", moment(*again)));
            }
        }
    }
    ends
}

/// Settings of the command line go to the settings file: the next `validate`, and the renewal at night, must see
/// what this installation saw.
fn remember(host: &Host, settings: &Settings, survey: &Survey, book: &Book) -> Result<()> {
    let names = survey.services.iter().map(|service| service.name().to_owned()).collect();
    if book.receipt().services != names {
        book.note(Entry::Services { names })?;
    }
    if settings.set.is_empty() {
        return Ok(());
    }
    let path = Path::new(config::PATH);
    let old = host.read_text(&settings.config)?;
    let mut text = old.clone().unwrap_or_default();
    for setting in &settings.set {
        text = setting.write_into(&text)?;
    }
    if old.as_deref() != Some(&text) {
        let mode = host.meta(path)?.map_or(0o640, |meta| meta.mode);
        if old.is_none() || book.receipt().files.contains_key(path) {
            let dirs = missing_dirs(host, path)?;
            book.note(Entry::Wrote { path: path.into(), hash: sha256(text.as_bytes()), dirs })?;
        }
        host.write(path, mode, text.as_bytes())?;
    }
    Ok(())
}

fn take(asked: &[String]) -> Take {
    let all = asked.iter().any(|path| path == "all");
    Take { all, paths: asked.iter().map(PathBuf::from).collect() }
}

/// The ground first: which nginx and which Python there are decides what the rest looks like.
fn carry_out(
    host: &Host,
    survey: Survey,
    looked: (Vec<Resource>, Vec<Seen>),
    take: &Take,
    book: &Book,
    ui: &Ui,
) -> Result<(Done, Survey)> {
    let is_ground = |resource: &Resource| match resource {
        Resource::Packages { .. } => true,
        Resource::Env(lock) => **lock == python::SERVICES,
        _ => false,
    };
    let (mut survey, (mut wanted, mut seen), mut laid) = (survey, looked, 0);
    if wanted.iter().zip(&seen).any(|(resource, seen)| is_ground(resource) && matches!(seen, Seen::Wrong(_)))
    {
        wanted.retain(is_ground);
        laid = Work { host, take, sweep: Sweep::Nothing, ui, routes: &|| Ok(()) }
            .converge(&wanted, book)?
            .changes;
        survey = survey.again(host)?;
        wanted = survey.blueprint()?;
        seen = look(host, &wanted, &book.receipt())?;
    }
    let routes = || probe::routes(host, &survey.config, &survey.services);
    let mut done =
        Work { host, take, sweep: Sweep::Unwanted, ui, routes: &routes }.close(&wanted, &seen, book)?;
    done.changes += laid;
    if host.is_live() && python::is_unswept(host)? {
        // Everything answers from the new environments: the old ones may go. Asked of the machine, as the run that
        // made them may have been killed before it came here.
        python::sweep(host)?;
    }
    Ok((done, survey))
}

fn report(
    host: &Host,
    done: &Done,
    settings: &Settings,
    book: &Book,
    ends: &[(Ticket, End)],
    ui: &Ui,
) -> Result<u8> {
    for (undo, why) in &done.stays {
        ui.warn(format_args!("stays: {undo}: {why}"));
    }
    for path in &done.edited {
        ui.warn(format_args!(
            "{} was edited and is kept; --take {} replaces it",
            path.display(),
            path.display()
        ));
    }
    let came = ends.iter().filter(|(_, end)| matches!(end, End::Issued { .. })).count();
    if done.changes + came == 0 {
        ui.say("nothing to change");
    } else if host.is_live() {
        addresses(host, done.changes + came, settings, book, ui)?;
    } else {
        ui.say(format_args!(
            "{} changes; `echoes-appliance install` on the running machine does the rest",
            done.changes
        ));
    }
    // Also when an earlier run was killed before it could say so.
    if let Some((user, password)) = users::show_first(host)? {
        ui.out(format_args!(
            "\n  user {user}, password {password} (shown this once; `echoes-appliance user add` makes more)"
        ));
    }
    Ok(0)
}

fn addresses(host: &Host, changes: usize, settings: &Settings, book: &Book, ui: &Ui) -> Result<()> {
    let config = settings.read(host)?;
    ui.say(format_args!("\n{changes} changes. The headquarters is up:\n"));
    let mut ours = false;
    for service in book.receipt().installed() {
        ui.out(format_args!("  {:<12} {}", service.name(), service.url(&config)));
        ours |= stands(host, &service.host(&config))? == Standing::Ours;
    }
    if let Some((_, authority)) = Authority::read(host)?
        && ours
    {
        ui.say(
            "\nThe certificates are of our own authority; `echoes-appliance ca export` says how to trust it.",
        );
        ui.say(format_args!("Its SHA-256 fingerprint: {}", authority.fingerprint));
    }
    Ok(())
}
