//! `gpu ps`: the runs under way, or all there were.

use super::{all, receipt};
use crate::{
    commands::{config::Settings, need_root, this_machine},
    gpu::{
        receipt::{dollars, told},
        state::{Phase, State},
    },
    ui::{Ui, moment, table},
};
use anyhow::Result;
use time::OffsetDateTime;

#[derive(clap::Args)]
pub struct Args {
    /// Also those that are over
    #[arg(short, long)]
    all: bool,
    /// Print them as JSON
    #[arg(long)]
    pub json: bool,
}

pub fn run(args: Args, settings: &Settings, ui: &Ui) -> Result<u8> {
    let host = this_machine();
    need_root(&host)?;
    let config = settings.read(&host)?;
    let now = OffsetDateTime::now_utc();
    let states: Vec<_> =
        all(&host, ui)?.into_iter().filter(|state| args.all || state.phase != Phase::Done).collect();
    if args.json {
        let runs: Vec<_> = states.iter().map(|state| receipt(&host, &config, state, now)).collect();
        ui.out(serde_json::to_string_pretty(&serde_json::json!({ "runs": runs }))?);
    } else if states.is_empty() {
        ui.say("no run is under way");
    } else {
        let head = ["RUN", "WHO", "WHERE", "STATE", "SINCE", "ENDS BY", "COST"].map(Into::into).to_vec();
        let rows = std::iter::once(head).chain(states.iter().map(|state| row(state, now)));
        ui.out(table(&rows.collect::<Vec<_>>()));
    }
    Ok(0)
}

fn row(state: &State, now: OffsetDateTime) -> Vec<String> {
    let place = match state.rentals.last().map(|rental| &rental.offer) {
        Some(offer) if !offer.size.is_empty() => format!("{} {}", offer.size, offer.region),
        _ => state.spec.source.to_string(),
    };
    let stands = match (&state.outcome, state.phase) {
        (Some(outcome), Phase::Done) => told(outcome),
        (_, phase) => phase.to_string(),
    };
    let ends = state.ends_by().filter(|_| state.phase != Phase::Done).map_or_else(String::new, moment);
    let (run, who) = (state.spec.run.to_string(), state.spec.owner.clone());
    vec![run, who, place, stands, moment(state.since), ends, dollars(state.cost(now))]
}
