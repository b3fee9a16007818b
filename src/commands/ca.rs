//! `ca`: the headquarters' own certificate authority.

use super::{config::Settings, this_machine};
use crate::{
    tls::{internal::Authority, trust},
    ui::{Try as _, Ui},
};
use anyhow::{Context as _, Result};

#[derive(clap::Subcommand)]
pub enum Command {
    /// Print the authority's certificate, and how to trust it
    Export {
        /// Only the certificate
        #[arg(long)]
        pem: bool,
    },
}

pub fn run(command: Command, settings: &Settings, ui: &Ui) -> Result<u8> {
    let Command::Export { pem } = command;
    let (cert, facts) = Authority::read(&this_machine())?
        .context("there is no authority yet")
        .or_try("sudo echoes-appliance install")?;
    ui.out(cert.trim_end());
    if !pem {
        let domain = settings.read(&this_machine())?.domain;
        ui.say(trust::words("ca.crt", domain.as_str(), &facts.fingerprint));
    }
    Ok(0)
}
