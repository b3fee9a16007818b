//! `ca`: the headquarters' own certificate authority.

use super::this_machine;
use crate::{tls, ui::{Try as _, Ui}};
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

pub fn run(command: Command, ui: &Ui) -> Result<u8> {
    let Command::Export { pem } = command;
    let cert = tls::internal::exported(&this_machine())?.context("there is no authority yet").or_try("sudo echoes-appliance install")?;
    ui.out(cert.trim_end());
    if !pem {
        ui.say(tls::internal::trust_words());
    }
    Ok(0)
}
