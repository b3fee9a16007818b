//! `echoes-appliance`: the headquarters of a small machine-learning team in one binary. Read `cli.rs` next, then any
//! one command.

// Tests may count the bytes of their own words.
#![cfg_attr(not(test), deny(clippy::string_slice))]

mod cli;
mod commands;
mod config;
#[cfg(test)]
mod fuzz;
mod gpu;
mod hash;
mod host;
mod hq;
mod journal;
mod metadata;
mod patience;
mod tls;
mod ui;
mod web;

use clap::Parser as _;
use std::process::ExitCode;

fn main() -> ExitCode {
    // Every file is written with its mode; under a stricter umask of root's the directories above would shut the
    // services out.
    nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o022));
    let cli = cli::Cli::parse();
    let ui = cli.ui();
    match cli.run(&ui) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            ui.error(&error);
            ExitCode::from(error.downcast_ref::<ui::Code>().map_or(1, |code| code.0))
        }
    }
}
