//! `uninstall`: install of nothing at all.

use super::{need_installed, need_root, this_machine};
use crate::{
    gpu::{provider::local, runs, state::Phase},
    host::Host,
    hq::{
        plan::{Sweep, Take, Work},
        receipt::{self, Book, Receipt},
        undo::{Fate, Undo, unwanted},
    },
    ui::{Try as _, Ui},
};
use anyhow::{Result, bail};
use std::path::Path;

#[derive(clap::Args)]
pub struct Args {
    /// List what would go, what would stay and why
    #[arg(long)]
    dry_run: bool,
}

pub fn run(args: Args, ui: &Ui) -> Result<u8> {
    let host = this_machine();
    need_root(&host)?;
    need_installed(&host)?;
    if args.dry_run {
        let receipt = Receipt::read(&host)?;
        for undo in unwanted(&receipt, &[]) {
            match undo.fate(&host, &receipt)? {
                Fate::Goes => ui.out(format_args!("goes   {undo}")),
                Fate::Stays(why) => ui.out(format_args!("stays  {undo}: {why}")),
                Fate::Gone => ui.out(format_args!("gone   {undo}")),
            }
            if let Undo::Dir(path) = &undo
                && host.is_mount_point(path)?
            {
                ui.out(format_args!("stays  everything on the disk that is mounted at {}", path.display()));
            }
        }
        return Ok(0);
    }
    nobody_rents(&host)?;
    let book = Book::open(&host, ui)?;
    let work = Work { host: &host, take: &Take::default(), sweep: Sweep::Unwanted, ui, routes: &|| Ok(()) };
    let done = work.converge(&[], &book)?;
    for (undo, why) in &done.stays {
        ui.out(format_args!("stays: {undo}: {why}"));
    }
    if !book.receipt().is_empty() {
        bail!("something is left that could not be taken back; running this again goes on from here");
    }
    host.remove(Path::new(receipt::PATH))?;
    drop(book);
    // Environments for experiments here. The journals of runs stay: they say what was paid for.
    host.remove_tree(Path::new(local::HOMES))?;
    if let Some(dir) = Path::new(receipt::PATH).parent() {
        host.remove_dir(dir)?;
    }
    host.remove_tree(Path::new("/run/echoes-appliance"))?;
    ui.say(format_args!("{} things taken back; the data were not touched", done.changes));
    Ok(0)
}

/// Without us nobody would give back what a run has rented.
fn nobody_rents(host: &Host) -> Result<()> {
    for run in runs::all(host)? {
        if runs::state(host, &run)?.is_some_and(|state| state.phase != Phase::Done) {
            let under_way =
                || bail!("the run {run} is under way, and what it has rented would be left behind");
            return under_way().or_try(format_args!("echoes-appliance gpu stop {run}"));
        }
    }
    Ok(())
}
