//! The difference between what is wanted and what was seen, and the one loop that closes it.

use super::{
    eyes::Eyes,
    nginx, pace,
    receipt::{Book, Receipt},
    resource::{Resource, Seen, Unit},
    undo::{Undo, unwanted},
};
use crate::{
    host::Host,
    ui::{Try as _, Ui},
};
use anyhow::{Result, bail};
use std::{
    collections::BTreeSet,
    fmt,
    path::{Path, PathBuf},
};

#[derive(Debug, Clone, PartialEq)]
pub enum Change<'a> {
    Make(&'a Resource, String),
    /// Ours once, wanted no longer.
    Undo(Undo),
}

/// Whether what nobody wants any more is taken back, or left for a later, fuller look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sweep {
    Unwanted,
    Nothing,
}

/// Which files that somebody edited may be replaced.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Take {
    pub all: bool,
    pub paths: BTreeSet<PathBuf>,
}

/// Look at everything that is wanted.
pub fn look(host: &Host, wanted: &[Resource], receipt: &Receipt) -> Result<Vec<Seen>> {
    let (mut packages, mut units) = (Vec::new(), Vec::new());
    for resource in wanted {
        match resource {
            Resource::Packages { names, .. } => packages.extend(names.iter().map(String::as_str)),
            Resource::Unit(unit) => units.push(unit.name.as_str()),
            _ => {}
        }
    }
    let eyes = Eyes::open(host, &packages, &units)?;
    wanted.iter().map(|resource| resource.look(host, receipt, &eyes)).collect()
}

/// Decide what to do. Pure: the receipt and what was seen are arguments.
pub fn plan<'a>(
    wanted: &'a [Resource],
    seen: &[Seen],
    receipt: &Receipt,
    take: &Take,
    sweep: Sweep,
) -> Vec<Change<'a>> {
    let mut changes = Vec::new();
    let mut changing: BTreeSet<PathBuf> = BTreeSet::new();
    for (resource, seen) in wanted.iter().zip(seen) {
        let why = match (seen, resource) {
            (Seen::Wrong(why), _) => Some(why.clone()),
            (Seen::Edited, _) => resource
                .path()
                .filter(|p| take.all || take.paths.contains(*p))
                .map(|_| "edited, taken back".into()),
            (Seen::Right, Resource::Unit(unit)) => {
                let read = unit.reads.iter().find(|path| changing.contains(*path));
                read.map(|path| format!("{} changes", path.display()))
            }
            _ => None,
        };
        if let Some(why) = why {
            changing.extend(resource.owns());
            changes.push(Change::Make(resource, why));
        }
    }
    if sweep == Sweep::Unwanted {
        changes.extend(unwanted(receipt, wanted).into_iter().map(Change::Undo));
    }
    let removed = |change: &Change| matches!(change, Change::Undo(undo) if nginx::is_nginx(undo.path()));
    if changes.iter().any(removed) {
        // A site that goes changes what nginx serves as much as one that comes.
        for resource in wanted {
            let planned = changes
                .iter()
                .any(|change| matches!(change, Change::Make(made, _) if std::ptr::eq(*made, resource)));
            if matches!(resource, Resource::Unit(unit) if unit.name == nginx::UNIT) && !planned {
                changes.push(Change::Make(resource, "a site goes".into()));
            }
        }
    }
    changes
}

/// What was done, for the report.
#[derive(Debug, Default)]
pub struct Done {
    pub changes: usize,
    /// What had to stay, and why.
    pub stays: Vec<(Undo, String)>,
    /// Files of ours that somebody edited, kept.
    pub edited: Vec<PathBuf>,
}

impl Done {
    /// A directory that only holds what stays anyway is not worth a line of its own.
    fn stay(&mut self, (undo, why): (Undo, String)) {
        let holds = |dir: &Path| {
            self.stays.iter().any(|(undo, _)| undo.path().is_some_and(|path| path.starts_with(dir)))
        };
        if !matches!(&undo, Undo::Dir(dir) if holds(dir)) {
            self.stays.push((undo, why));
        }
    }
}

/// How the difference is closed.
pub struct Work<'a> {
    pub host: &'a Host,
    pub take: &'a Take,
    pub sweep: Sweep,
    pub ui: &'a Ui,
    /// Proves, after nginx took in something new, that every route still answers.
    pub routes: &'a dyn Fn() -> Result<()>,
}

impl Work<'_> {
    /// Look, decide, note, do; until there is nothing to do.
    pub fn converge(&self, wanted: &[Resource], book: &Book) -> Result<Done> {
        let seen = look(self.host, wanted, &book.receipt())?;
        self.close(wanted, &seen, book)
    }

    /// As `converge`, for what was looked at already.
    pub fn close(&self, wanted: &[Resource], seen: &[Seen], book: &Book) -> Result<Done> {
        let Self { host, take, sweep, ui, routes } = self;
        refuse_foreign(wanted, seen)?;
        let changes = plan(wanted, seen, &book.receipt(), take, *sweep);
        let mut done = Done { changes: changes.len(), ..Done::default() };
        let edited = wanted.iter().zip(seen).filter(|(_, seen)| **seen == Seen::Edited);
        done.edited = edited.filter_map(|(resource, _)| resource.path().map(Into::into)).collect();
        done.edited.retain(|path: &PathBuf| !take.all && !take.paths.contains(path));
        let (web, others): (Vec<Change>, Vec<Change>) = changes.into_iter().partition(Change::is_web);
        let (makes, undos): (Vec<Change>, Vec<Change>) =
            others.into_iter().partition(|change| matches!(change, Change::Make(..)));
        // What nginx passes to is up before nginx passes to it, and goes after nginx has stopped doing so.
        let makes: Vec<_> = makes.iter().filter_map(Change::made).collect();
        pace::each(&makes, |resource| {
            let step = ui.step(resource);
            resource.make(host, book, &step).or_try(AGAIN)?;
            step.done();
            Ok(())
        })?;
        let unit = wanted.iter().find_map(nginx_unit);
        let stays = nginx::transaction(host, &web, unit, book, ui, routes).or_try(AGAIN)?;
        stays.into_iter().for_each(|stays| done.stay(stays));
        for undo in undos.iter().filter_map(Change::undone) {
            let step = ui.step(format_args!("removing {undo}"));
            if let Some(why) = undo.undo(host, book, &step).or_try(AGAIN)? {
                done.stay((undo.clone(), why));
            }
            step.done();
        }
        Ok(done)
    }
}

const AGAIN: &str = "mend what it says, then run this again: it goes on from here";

fn nginx_unit(resource: &Resource) -> Option<&Unit> {
    if let Resource::Unit(unit) = resource
        && unit.name == nginx::UNIT
    {
        Some(unit)
    } else {
        None
    }
}

pub fn refuse_foreign(wanted: &[Resource], seen: &[Seen]) -> Result<()> {
    let foreign = wanted.iter().zip(seen).filter_map(|(resource, seen)| match seen {
        Seen::Foreign(what) => {
            Some(format!("{} is there already: {what}", resource.path().unwrap_or("?".as_ref()).display()))
        }
        _ => None,
    });
    let foreign: Vec<_> = foreign.collect();
    if foreign.is_empty() {
        return Ok(());
    }
    let refused = || bail!("{}", foreign.join("\n  and: "));
    refused()
        .or_try("move it away if nobody needs it, then run this again; we replace nothing that is not ours")
}

impl<'a> Change<'a> {
    fn made(&self) -> Option<&'a Resource> {
        if let Self::Make(resource, _) = self { Some(resource) } else { None }
    }

    fn undone(&self) -> Option<&Undo> {
        if let Self::Undo(undo) = self { Some(undo) } else { None }
    }

    /// Part of what nginx serves, which changes as one.
    fn is_web(&self) -> bool {
        match self {
            Self::Make(Resource::Unit(unit), _) => unit.name == nginx::UNIT,
            Self::Make(resource, _) => nginx::is_nginx(resource.path()),
            Self::Undo(undo) => {
                nginx::is_nginx(undo.path()) && !matches!(undo, Undo::Created(_) | Undo::Dir(_))
            }
        }
    }
}

impl fmt::Display for Change<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Make(resource, why) => write!(f, "{resource}: {why}"),
            Self::Undo(undo) => write!(f, "{undo}: no longer wanted"),
        }
    }
}

#[cfg(test)]
mod tests;
