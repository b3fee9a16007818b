//! `gpu ssh RUN`: a shell on its machine.

use super::known;
use crate::{
    commands::{need_root, this_machine},
    gpu::{provider::room, spec::RunId},
    ui::{Try as _, Ui},
};
use anyhow::{Context as _, Result};
use std::os::unix::process::CommandExt as _;

#[derive(clap::Args)]
pub struct Args {
    run: RunId,
}

pub fn run(args: Args, ui: &Ui) -> Result<u8> {
    let host = this_machine();
    need_root(&host)?;
    let state = known(&host, &args.run)?;
    let none = || anyhow::anyhow!("{} has no machine: it is {}", args.run, state.phase);
    let hint = format!("echoes-appliance gpu events {}", args.run);
    let machine = state.machine.as_ref().ok_or_else(none).or_try(hint)?;
    let Some(shell) = machine.target.shell() else {
        ui.out(room(&machine.home, &args.run).display());
        ui.say("that is where it is: it runs on this machine");
        return Ok(0);
    };
    // It takes our place: the terminal is the shell's over there.
    #[allow(clippy::disallowed_methods)]
    let gone = std::process::Command::new(&shell.program).args(&shell.args).exec();
    Err(gone).context("running ssh")
}
