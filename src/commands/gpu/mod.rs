//! `gpu`: experiments that were started with `gpu-run`. One verb a file.

pub mod attach;
mod cost;
mod doctor;
mod drive;
mod events;
mod forget;
mod live;
mod logs;
mod offers;
mod ps;
mod pull;
mod ssh;
mod stop;
mod sweep;
pub mod wish;

use super::config::Settings;
use crate::{
    config::Config,
    gpu::{driver::Words, final_status, receipt::Receipt, runs, spec::RunId, state::State},
    host::Host,
    hq::service::Service,
    ui::{Try as _, Ui},
};
use anyhow::Result;
use time::OffsetDateTime;

#[derive(clap::Subcommand)]
pub enum Command {
    /// List runs: those under way, or all there were
    Ps(ps::Args),
    /// Show what a run's script has written
    Logs(logs::Args),
    /// Watch a run until it ends, and exit with its script's status
    Attach(attach::Args),
    /// A shell on a run's machine
    Ssh(ssh::Args),
    /// End a run; what it has made comes home
    Stop(stop::Args),
    /// Take up what nobody looks after (run by echoes-sweep.timer)
    Sweep(sweep::Args),
    /// What can be rented at Azure just now; exit status 3 when nothing can
    Offers(offers::Args),
    /// What runs have cost
    Cost(cost::Args),
    /// Bring home what was kept of a run because it could not come home
    Pull(pull::Args),
    /// Remove what was kept of a run because it could not come home
    Forget(forget::Args),
    /// What happened to a run, and when
    Events(events::Args),
    /// Say whether the next run would find what it needs; exit status 3 when not
    Doctor(doctor::Args),
    /// Drive a run to its end (run by echoes-gpu@RUN.service)
    #[command(hide = true)]
    Drive(drive::Args),
}

impl Command {
    pub fn json(&self) -> bool {
        match self {
            Self::Ps(args) => args.json,
            Self::Logs(args) => args.json,
            Self::Attach(args) => args.json,
            Self::Stop(args) => args.json,
            Self::Sweep(args) => args.json,
            Self::Offers(args) => args.json,
            Self::Cost(args) => args.json,
            Self::Events(args) => args.json,
            Self::Forget(args) => args.json,
            Self::Pull(args) => args.json,
            Self::Doctor(args) => args.json,
            Self::Ssh(_) | Self::Drive(_) => false,
        }
    }
}

pub fn run(command: Command, settings: &Settings, ui: &Ui) -> Result<u8> {
    match command {
        Command::Ps(args) => ps::run(args, settings, ui),
        Command::Logs(args) => logs::run(args, settings, ui),
        Command::Attach(args) => attach::run(args, settings, ui),
        Command::Ssh(args) => ssh::run(args, ui),
        Command::Stop(args) => stop::run(args, settings, ui),
        Command::Sweep(args) => sweep::run(args, settings, ui),
        Command::Offers(args) => offers::run(args, settings, ui),
        Command::Cost(args) => cost::run(args, settings, ui),
        Command::Forget(args) => forget::run(args, settings, ui),
        Command::Pull(args) => pull::run(args, settings, ui),
        Command::Events(args) => events::run(args, ui),
        Command::Doctor(args) => doctor::run(args, settings, ui),
        Command::Drive(args) => drive::run(args, settings, ui),
    }
}

/// The words by which a driver reads the settings that we read; none when they are the machine's own.
pub fn drivers_words(settings: &Settings) -> Words {
    let mut words = Vec::new();
    if settings.config != std::path::Path::new(crate::config::PATH) {
        words.extend(["--config".into(), settings.config.display().to_string()]);
    }
    for set in &settings.set {
        words.extend(["--set".into(), set.to_string()]);
    }
    Words(words)
}

/// Where a run stands that must be there.
fn known(host: &Host, run: &RunId) -> Result<State> {
    let unknown = || anyhow::anyhow!("there is no run called {run}");
    runs::state(host, run)?.ok_or_else(unknown).or_try("echoes-appliance gpu ps --all")
}

fn receipt(host: &Host, config: &Config, state: &State, now: OffsetDateTime) -> Receipt {
    let run = &state.spec.run;
    // One that is damaged is told of by the sweep, and keeps nobody from the rest.
    let status = final_status::read(host, run).ok().flatten();
    let mlflow = status.map(|status| status.on_receipt(&Service::Mlflow.url(config)));
    Receipt::of(state, &runs::results(config, run), now).with_mlflow(mlflow)
}

/// Every run there ever was, the newest last. One whose journal cannot be read is told of and keeps none of the
/// others back.
fn all(host: &Host, ui: &Ui) -> Result<Vec<State>> {
    let mut states = Vec::new();
    for run in runs::all(host)? {
        match runs::state(host, &run) {
            Ok(state) => states.extend(state),
            Err(error) => ui.warn_of(&error),
        }
    }
    states.sort_by_key(|state| state.since);
    Ok(states)
}
