//! `restart`: and wait until healthy. Units wait for their own health after their start, so systemd's answer is
//! the service's.

use super::{config::Settings, need_installed, need_root, this_machine};
use crate::{
    host::Cmd,
    hq::{receipt::Receipt, resource::last_words, service::Service},
    ui::{Try as _, Ui},
};
use anyhow::{Result, bail};

#[derive(clap::Args)]
pub struct Args {
    /// Which services
    #[arg(value_enum, required_unless_present = "all")]
    service: Vec<Service>,
    /// All that are installed
    #[arg(long, conflicts_with = "service")]
    all: bool,
}

pub fn run(args: Args, settings: &Settings, ui: &Ui) -> Result<u8> {
    let host = this_machine();
    need_root(&host)?;
    need_installed(&host)?;
    let config = settings.read(&host)?;
    let installed = Receipt::read(&host)?.installed();
    let services = if args.all { installed.clone() } else { args.service };
    for service in services {
        if !installed.contains(&service) {
            let missing = || bail!("{service} is not installed");
            missing().or_try(format_args!("sudo echoes-appliance install --service {service}"))?;
        }
        let step = ui.step(format_args!("{service} at {}", service.url(&config)));
        let unit = service.unit();
        host.ask(&Cmd::new("systemctl", ["reset-failed", &unit]))?;
        host.run(&Cmd::new("systemctl", ["restart", &unit])).or_find(|| last_words(&host, &unit))?;
        step.done();
    }
    Ok(0)
}
