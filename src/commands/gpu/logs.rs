//! `gpu logs RUN`: what its script has written, as far as it has come home.

use super::{attach::Tail, known};
use crate::{
    commands::{config::Settings, need_root, this_machine},
    gpu::{spec::RunId, state::Phase},
    ui::Ui,
};
use anyhow::Result;
use std::time::Duration;

#[derive(clap::Args)]
pub struct Args {
    run: RunId,
    /// Go on as more is written
    #[arg(short, long)]
    follow: bool,
    /// Print it as JSON strings
    #[arg(long)]
    pub json: bool,
}

pub fn run(args: Args, settings: &Settings, ui: &Ui) -> Result<u8> {
    let host = this_machine();
    need_root(&host)?;
    let config = settings.read(&host)?;
    let mut log = Tail::new(&config, &args.run);
    loop {
        // Asked before the log is read: what is written before the end is shown.
        let state = known(&host, &args.run)?;
        while let Some(text) = log.more(&host)? {
            if args.json {
                ui.out(serde_json::to_string(&text)?);
            } else {
                ui.raw(&text);
            }
        }
        if !args.follow || matches!(state.phase, Phase::Return | Phase::Done) {
            return Ok(0);
        }
        std::thread::sleep(Duration::from_millis(250));
    }
}
