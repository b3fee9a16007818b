//! `gpu drive RUN`: drive it to its end, unless somebody does. What `gpu-run` starts beside itself, and what a sweep
//! starts anew.

use crate::{
    commands::{config::Settings, need_root, this_machine},
    gpu::{driver, spec::RunId},
    ui::Ui,
};
use anyhow::Result;
use std::sync::Arc;

#[derive(clap::Args)]
pub struct Args {
    run: RunId,
}

pub fn run(args: Args, settings: &Settings, ui: &Ui) -> Result<u8> {
    let host = Arc::new(this_machine());
    need_root(&host)?;
    let config = settings.read(&host)?;
    driver::drive(&host, &config, &args.run, ui)?;
    Ok(0)
}
