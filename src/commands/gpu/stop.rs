//! `gpu stop RUN`: end it. What it has made comes home, and its machine is given back.

use super::{drivers_words, known};
use crate::{
    commands::{config::Settings, need_root, this_machine},
    gpu::{driver, runs, spec::RunId, state::Phase},
    ui::{Ui, lasting},
};
use anyhow::Result;

#[derive(clap::Args)]
pub struct Args {
    #[arg(required = true)]
    runs: Vec<RunId>,
    /// Print what was done as JSON
    #[arg(long)]
    pub json: bool,
}

pub fn run(args: Args, settings: &Settings, ui: &Ui) -> Result<u8> {
    let host = this_machine();
    need_root(&host)?;
    let mut told = Vec::new();
    for run in &args.runs {
        let state = known(&host, run)?;
        if state.phase == Phase::Done {
            ui.say(format_args!("{run} is over"));
            continue;
        }
        runs::ask_to_stop(&host, run)?;
        // Nobody may be there to read it.
        if runs::hold(&host, run)?.is_some() {
            driver::start(&host, run, &drivers_words(settings))?;
        }
        told.push(run);
        let grace = match state.phase {
            Phase::Watch => format!("; it has {} to save", lasting(state.spec.grace)),
            _ => String::new(),
        };
        ui.say(format_args!("{run} is told to end{grace}; what it has made comes home first"));
    }
    if args.json {
        ui.out(serde_json::json!({ "stopping": told }));
    }
    Ok(0)
}
