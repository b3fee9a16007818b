//! `renew`: the certificate rows of the blueprint alone.

use super::{config::Settings, need_installed, need_root, this_machine};
use crate::{
    hq::{
        nginx,
        plan::{Sweep, Take, Work},
        probe,
        receipt::Book,
        resource::Resource,
        survey::Survey,
    },
    ui::Ui,
};
use anyhow::Result;

#[derive(clap::Args)]
pub struct Args {}

pub fn run(_: Args, settings: &Settings, ui: &Ui) -> Result<u8> {
    let host = this_machine();
    need_root(&host)?;
    need_installed(&host)?;
    let book = Book::open(&host)?;
    let survey =
        Survey::without_data(&host, settings.read(&host)?, &book.receipt().installed(), &book.receipt())?;
    let mut wanted = survey.blueprint()?;
    wanted.retain(|resource| match resource {
        Resource::Certificate { .. } => true,
        Resource::Unit(unit) => unit.name == nginx::UNIT,
        _ => false,
    });
    let routes = || probe::routes(&host, &survey.config, &survey.services);
    let work = Work { host: &host, take: &Take::default(), sweep: Sweep::Nothing, ui, routes: &routes };
    let done = work.converge(&wanted, &book)?;
    if done.changes == 0 {
        ui.say("no certificate is due");
    }
    Ok(0)
}
