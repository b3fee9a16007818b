//! The whole command tree and its dispatch, on one screen.

use crate::{
    commands::{
        agent, backoff, ca, cert, config, gpu, gpu_run, install, logs, plan, prepare_mlflow, renew, restart,
        serve, status, uninstall, user, validate, wait_for,
    },
    ui::Ui,
};
use anyhow::Result;
use clap::{Parser, Subcommand};

/// The headquarters of a small machine-learning team: MLflow, TensorBoard, a dashboard and the docs on one machine.
#[derive(Parser)]
#[command(name = "echoes-appliance", version, max_term_width = 100, propagate_version = true)]
pub struct Cli {
    #[command(flatten)]
    settings: config::Settings,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Turn this machine into the headquarters, or bring it up to date
    Install(install::Args),
    /// Show what install would change; exit status 2 when there is something
    Plan(plan::Args),
    /// Prove that everything people use works; exit status 3 when something does not
    Validate(validate::Args),
    /// Show how each service is doing
    Status(status::Args),
    /// Show what a service wrote to the system's journal
    Logs(logs::Args),
    /// Restart services and wait until they answer
    Restart(restart::Args),
    /// Take everything back that install did; data stay
    Uninstall(uninstall::Args),
    /// Who may log in
    #[command(subcommand)]
    User(user::Command),
    /// The settings
    #[command(subcommand)]
    Config(config::Command),
    /// The headquarters' own certificate authority
    #[command(subcommand)]
    Ca(ca::Command),
    /// The certificates: how they stand, renew or revoke one by hand
    #[command(subcommand)]
    Cert(cert::Command),
    /// Run an experiment on a machine that is had for it: rent, run, bring home, give back
    GpuRun(gpu_run::Args),
    /// The experiments
    #[command(subcommand)]
    Gpu(gpu::Command),
    /// Renew certificates that are due (run by echoes-renew.timer)
    #[command(hide = true)]
    Renew(renew::Args),
    /// Serve one of our own services (run by its unit)
    #[command(hide = true, subcommand)]
    Serve(serve::Command),
    /// Wait before a unit that keeps dying starts again (run by the unit)
    #[command(hide = true)]
    Backoff(backoff::Args),
    /// Make MLflow's database ready for its start (run by its unit)
    #[command(hide = true)]
    PrepareMlflow(prepare_mlflow::Args),
    /// Answer the headquarters on a machine where an experiment runs (run by it)
    #[command(hide = true, subcommand)]
    Agent(agent::Command),
    /// Wait until a URL answers (run by units after their start)
    #[command(hide = true)]
    WaitFor(wait_for::Args),
}

impl Cli {
    pub fn ui(&self) -> Ui {
        Ui::new(match &self.command {
            Command::Plan(args) => args.json,
            Command::Validate(args) => args.json || args.junit,
            Command::Status(args) => args.json,
            Command::Cert(command) => command.json(),
            Command::GpuRun(args) => args.json,
            Command::Gpu(command) => command.json(),
            _ => false,
        })
    }

    /// The exit status, or why there is none better than 1.
    pub fn run(self, ui: &Ui) -> Result<u8> {
        let Self { settings, command } = self;
        match command {
            Command::Install(args) => install::run(args, &settings, ui),
            Command::Plan(args) => plan::run(args, &settings, ui),
            Command::Validate(args) => validate::run(args, &settings, ui),
            Command::Status(args) => status::run(args, &settings, ui),
            Command::Logs(args) => logs::run(args),
            Command::Restart(args) => restart::run(args, &settings, ui),
            Command::Uninstall(args) => uninstall::run(args, ui),
            Command::User(command) => user::run(command, ui),
            Command::Config(command) => config::run(command, &settings, ui),
            Command::Ca(command) => ca::run(command, &settings, ui),
            Command::Cert(command) => cert::run(command, &settings, ui),
            Command::GpuRun(args) => gpu_run::run(args, &settings, ui),
            Command::Gpu(command) => gpu::run(command, &settings, ui),
            Command::Renew(args) => renew::run(args, &settings, ui),
            Command::Serve(command) => serve::run(command),
            Command::Backoff(args) => backoff::run(args, ui),
            Command::PrepareMlflow(args) => prepare_mlflow::run(args),
            Command::Agent(command) => agent::run(command),
            Command::WaitFor(args) => wait_for::run(args),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn the_command_tree_holds_together() {
        Cli::command().debug_assert();
    }
}
