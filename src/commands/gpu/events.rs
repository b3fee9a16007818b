//! `gpu events RUN`: what happened to it, and when.

use super::known;
use crate::{
    commands::{need_root, this_machine},
    gpu::{
        runs,
        spec::RunId,
        state::{Entry, Event},
    },
    journal::FORMAT,
    ui::{Ui, table},
};
use anyhow::Result;
use time::OffsetDateTime;

#[derive(clap::Args)]
pub struct Args {
    run: RunId,
    /// Print them as JSON, a line each
    #[arg(long)]
    pub json: bool,
}

pub fn run(args: Args, ui: &Ui) -> Result<u8> {
    let host = this_machine();
    need_root(&host)?;
    known(&host, &args.run)?;
    let events = runs::events(&host, &args.run)?;
    if args.json {
        for (at, event) in &events {
            ui.out(to_json(*at, event)?);
        }
    } else {
        let form = time::macros::format_description!("[year]-[month]-[day] [hour]:[minute]:[second] UTC");
        let row = |(at, event): &(OffsetDateTime, Event)| Ok(vec![at.format(form)?, words(event)]);
        ui.out(table(&events.iter().map(row).collect::<Result<Vec<_>>>()?));
    }
    Ok(0)
}

/// As it stands in the journal, but for its checksum.
pub fn to_json(at: OffsetDateTime, event: &Event) -> Result<String> {
    #[derive(serde::Serialize)]
    struct Line {
        v: u64,
        #[serde(flatten)]
        entry: Entry,
    }
    Ok(serde_json::to_string(&Line { v: FORMAT, entry: Entry::new(at, event) })?)
}

/// What somebody who watches has to be told; the rest is seen from what is done next.
pub fn news(event: &Event) -> Option<String> {
    match event {
        Event::Refused { .. }
        | Event::Lost { .. }
        | Event::Failed { .. }
        | Event::Remains { .. }
        | Event::Keeping { .. }
        | Event::Kept { .. }
        | Event::Ending { .. }
        | Event::Exited { .. } => Some(words(event)),
        _ => None,
    }
}

fn words(event: &Event) -> String {
    match event {
        Event::Asked { spec, .. } => format!("{} asked for {}", spec.owner, spec.script.display()),
        Event::Renting { offer } if offer.size.is_empty() => "asking for a machine".into(),
        Event::Renting { offer } => {
            format!("asking for {} in {}{}", offer.size, offer.region, if offer.spot { ", spot" } else { "" })
        }
        Event::Refused { refusal } => format!("refused: {}", refusal.said),
        Event::Rented { .. } => "the machine is there".into(),
        Event::Prepared => "code, data and environment are there".into(),
        Event::Started => "the script was started".into(),
        Event::Exited { exit } => format!("the script has ended: {exit}"),
        Event::Lost { why } => why.clone(),
        Event::Fetched => "everything is home".into(),
        Event::Remains { left } => {
            format!("all that can come is home, and left on the machine: {}", left.words())
        }
        Event::Keeping { why } => format!("what is on the machine is to be kept: {why}"),
        Event::Kept { place } => format!("what is not home is kept: {place}"),
        Event::Forgotten => "what was kept is gone".into(),
        Event::Pulling { .. } => "what was kept is to come home".into(),
        Event::Failed { why } => format!("failed: {why}"),
        Event::Ending { exit } => format!("it has to end: {exit}"),
        Event::Outlived { processes } => format!("not ours to end: {}", processes.join(", ")),
        Event::Returned => "all of it is given back".into(),
    }
}
