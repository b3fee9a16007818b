//! `gpu forget RUN`: what was kept of it, because it could not come home, is not wanted any more. `gpu forget --box`: neither
//! is what a machine of the team's keeps for the next run.

use super::{all, known};
use crate::{
    commands::{config::Settings, gpu_run::source, need_root, this_machine},
    config::Config,
    gpu::{
        provider::{
            self,
            ssh::{Owned, reach},
        },
        runs,
        spec::{RunId, Source},
        state::{Event, Phase, State},
    },
    host::Host,
    ui::{Try as _, Ui},
};
use anyhow::{Context as _, Result, anyhow, bail, ensure};
use std::sync::Arc;
use time::OffsetDateTime;

#[derive(clap::Args)]
pub struct Args {
    #[arg(required_unless_present = "machine")]
    run: Option<RunId>,
    /// Remove all that a machine of the team's keeps for the next run: code, datasets, environments, programs
    #[arg(long = "box", value_name = "ssh://USER@HOST", value_parser = source, conflicts_with = "run")]
    machine: Option<Source>,
    /// Print what was done as JSON
    #[arg(long)]
    pub json: bool,
}

pub fn run(args: Args, settings: &Settings, ui: &Ui) -> Result<u8> {
    let host = Arc::new(this_machine());
    need_root(&host)?;
    let config = settings.read(&host)?;
    match (&args.machine, &args.run) {
        (Some(machine), _) => forget_box(&host, &config, machine, args.json, ui),
        (None, Some(run)) => forget(&host, &config, run, args.json, ui),
        (None, None) => bail!("name a run, or a machine of the team's with --box"),
    }
}

fn forget(host: &Arc<Host>, config: &Config, run: &RunId, json: bool, ui: &Ui) -> Result<u8> {
    known(host, run)?;
    let busy = || anyhow!("{run} is under way");
    let hint = format!("echoes-appliance gpu attach {run}");
    let mut held = runs::hold(host, run)?.ok_or_else(busy).or_try(hint)?;
    let forgotten = held.state.kept.is_some();
    if forgotten {
        // Looked at before: what is gone is gone, also when it cannot be written down.
        let next = held.state.clone().after(OffsetDateTime::now_utc(), &Event::Forgotten);
        next.with_context(|| format!("{run} is {}", held.state.phase))?;
        let provider = provider::of(&held.state.spec.source, host, config)?;
        let gone = provider.forget(run)?;
        ensure!(gone, "what was kept of {run} is still on its way out: ask again");
        held.note(OffsetDateTime::now_utc(), &Event::Forgotten)?;
        ui.say(format_args!("what was kept of {run} is gone"));
    } else {
        ui.say(format_args!("nothing was kept of {run}"));
    }
    if json {
        ui.out(serde_json::json!({ "run": run, "forgotten": forgotten }));
    }
    Ok(0)
}

fn forget_box(host: &Arc<Host>, config: &Config, machine: &Source, json: bool, ui: &Ui) -> Result<u8> {
    let Source::Ssh { user, host: name, port } = machine else {
        return Err(anyhow!("{machine} is no machine of the team's")).or_try("--box ssh://USER@HOST");
    };
    let is_there = |state: &State| state.spec.source == *machine && state.phase != Phase::Done;
    if let Some(state) = all(host, ui)?.into_iter().find(is_there) {
        let hint = format!("wait for it, or `echoes-appliance gpu stop {}`", state.spec.run);
        return Err(anyhow!("{} is on {machine}", state.spec.run)).or_try(hint);
    }
    let stays = Owned::new(host, reach(&config.gpu, user, name, *port)).forget_box()?;
    if !stays.is_empty() {
        let hint =
            "what runs have left there is brought home by `gpu pull RUN`, or removed by `gpu forget RUN`";
        return Err(anyhow!("on {machine} there is still {}", stays.join(", "))).or_try(hint);
    }
    ui.say(format_args!("{machine} keeps nothing of ours any more"));
    if json {
        ui.out(serde_json::json!({ "box": machine.to_string(), "forgotten": true }));
    }
    Ok(0)
}
