//! `gpu sweep`: take up what nobody looks after. Run every few minutes, and at every boot.

use super::drivers_words;
use crate::{
    commands::{config::Settings, need_root, this_machine},
    gpu::{
        driver,
        provider::{self, Provider},
        sweep,
    },
    ui::{Ui, told},
};
use anyhow::Result;
use std::sync::Arc;

#[derive(clap::Args)]
pub struct Args {
    /// Say what is loose, and leave it
    #[arg(long)]
    dry_run: bool,
    /// Print it as JSON
    #[arg(long)]
    pub json: bool,
}

pub fn run(args: Args, settings: &Settings, ui: &Ui) -> Result<u8> {
    let host = Arc::new(this_machine());
    need_root(&host)?;
    let config = settings.read(&host)?;
    let ours = provider::ours(&host, &config)?;
    let providers: Vec<&dyn Provider> = ours.iter().map(AsRef::as_ref).collect();
    let found = sweep::look(&host, &providers)?;
    let mut failed = Vec::new();
    let mut fail = |error: &anyhow::Error| {
        ui.warn_of(error);
        failed.push(told(error).0.join(": "));
    };
    found.errors.iter().for_each(&mut fail);
    for one in &found.loose {
        ui.say(one);
        if !args.dry_run {
            let start = |run: &_| driver::start(&host, run, &drivers_words(settings));
            if let Err(error) = sweep::sweep(one, &providers, &start) {
                fail(&error);
            }
        }
    }
    if found.loose.is_empty() && failed.is_empty() {
        ui.say("nothing is loose");
    }
    if args.json {
        let loose: Vec<_> = found.loose.iter().map(ToString::to_string).collect();
        let any = !failed.is_empty();
        ui.out(
            serde_json::json!({ "loose": loose, "dry_run": args.dry_run, "failed": any, "errors": failed }),
        );
    }
    Ok(u8::from(!failed.is_empty()))
}
