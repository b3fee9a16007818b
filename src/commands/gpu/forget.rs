//! `gpu forget RUN`: what was kept of it, because it could not come home, is not wanted any more.

use super::known;
use crate::{
    commands::{config::Settings, need_root, this_machine},
    gpu::{provider, runs, spec::RunId, state::Event},
    ui::{Try as _, Ui},
};
use anyhow::{Context as _, Result, ensure};
use std::sync::Arc;
use time::OffsetDateTime;

#[derive(clap::Args)]
pub struct Args {
    run: RunId,
    /// Print what was done as JSON
    #[arg(long)]
    pub json: bool,
}

pub fn run(args: Args, settings: &Settings, ui: &Ui) -> Result<u8> {
    let host = Arc::new(this_machine());
    need_root(&host)?;
    let config = settings.read(&host)?;
    known(&host, &args.run)?;
    let busy = || anyhow::anyhow!("{} is under way", args.run);
    let hint = format!("echoes-appliance gpu attach {}", args.run);
    let mut held = runs::hold(&host, &args.run)?.ok_or_else(busy).or_try(hint)?;
    let forgotten = held.state.kept.is_some();
    if forgotten {
        // Looked at before: what is gone is gone, also when it cannot be written down.
        let next = held.state.clone().after(OffsetDateTime::now_utc(), &Event::Forgotten);
        next.with_context(|| format!("{} is {}", args.run, held.state.phase))?;
        let provider = provider::of(&held.state.spec.source, &host, &config)?;
        let gone = provider.forget(&args.run)?;
        ensure!(gone, "what was kept of {} is still on its way out: ask again", args.run);
        held.note(OffsetDateTime::now_utc(), &Event::Forgotten)?;
        ui.say(format_args!("what was kept of {} is gone", args.run));
    } else {
        ui.say(format_args!("nothing was kept of {}", args.run));
    }
    if args.json {
        ui.out(serde_json::json!({ "run": args.run, "forgotten": forgotten }));
    }
    Ok(0)
}
