//! `gpu cost`: what runs have cost, by list price, from the first request to the proof that all is gone.

use super::{all, known, receipt};
use crate::{
    commands::{config::Settings, need_root, this_machine},
    gpu::{receipt::dollars, spec::RunId},
    ui::{Ui, moment, table},
};
use anyhow::Result;
use std::collections::BTreeMap;
use time::OffsetDateTime;

#[derive(clap::Args)]
pub struct Args {
    /// Of this run alone, as its receipt
    run: Option<RunId>,
    /// Print it as JSON
    #[arg(long)]
    pub json: bool,
}

pub fn run(args: Args, settings: &Settings, ui: &Ui) -> Result<u8> {
    let host = this_machine();
    need_root(&host)?;
    let config = settings.read(&host)?;
    let now = OffsetDateTime::now_utc();
    if let Some(run) = &args.run {
        let receipt = receipt(&host, &config, &known(&host, run)?, now);
        ui.out(if args.json { serde_json::to_string_pretty(&receipt)? } else { receipt.text() });
        return Ok(0);
    }
    let states = all(&host, ui)?;
    let mut people: BTreeMap<&str, u64> = BTreeMap::new();
    for state in &states {
        let cost = people.entry(&state.spec.owner).or_default();
        *cost = cost.saturating_add(state.cost(now));
    }
    let total = people.values().fold(0, |sum: u64, cost| sum.saturating_add(*cost));
    if args.json {
        let runs: Vec<_> = states
            .iter()
            .map(|state| serde_json::json!({ "run": state.spec.run, "owner": state.spec.owner, "cost": state.cost(now) }))
            .collect();
        ui.out(serde_json::to_string_pretty(
            &serde_json::json!({ "runs": runs, "owners": people, "total": total }),
        )?);
        return Ok(0);
    }
    let mut rows: Vec<Vec<String>> = vec![["RUN", "WHO", "WHEN", "COST"].map(Into::into).to_vec()];
    rows.extend(states.iter().map(|state| {
        let when = state.rentals.first().map_or(state.since, |rental| rental.asked);
        vec![state.spec.run.to_string(), state.spec.owner.clone(), moment(when), dollars(state.cost(now))]
    }));
    rows.extend(
        people.iter().map(|(who, cost)| vec!["all".into(), (*who).to_owned(), String::new(), dollars(*cost)]),
    );
    rows.push(vec!["all".into(), "all".into(), String::new(), dollars(total)]);
    ui.out(table(&rows));
    Ok(0)
}
