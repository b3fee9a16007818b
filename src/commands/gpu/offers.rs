//! `gpu offers`: what can be rented at Azure just now, for how much, and why the rest cannot.

use crate::{
    commands::{
        config::Settings,
        gpu_run::{hours, millionths},
        this_machine,
    },
    config::Token,
    gpu::{
        offer::{Market, SIZES, Wish, choose, gone, table as rows_for_people},
        provider::azure::{self, Azure},
        spec::Spot,
    },
    ui::{Try as _, Ui, table},
};
use anyhow::Result;
use std::sync::Arc;
use time::OffsetDateTime;

#[derive(clap::Args)]
pub struct Args {
    /// The size to look for; several, the best first
    #[arg(long = "vm-size", value_name = "SIZE", value_delimiter = ',')]
    sizes: Vec<String>,
    /// The region to look in; several, the best first. This machine's own when left out
    #[arg(long = "region", value_name = "REGION", value_delimiter = ',')]
    regions: Vec<String>,
    /// Whether to rent what is cheap because it may be taken away
    #[arg(long, value_enum)]
    spot: Option<Spot>,
    /// For so many hours
    #[arg(long, value_name = "HOURS", value_parser = hours)]
    max_hours: Option<u64>,
    /// For so many US dollars at most
    #[arg(long, value_name = "USD", value_parser = millionths)]
    max_cost: Option<u64>,
    /// Azure's subscription; the settings', $AZURE_SUBSCRIPTION_ID, or this machine's own, when left out
    #[arg(long, value_name = "ID")]
    subscription: Option<String>,
    /// Print the rows as JSON
    #[arg(long)]
    pub json: bool,
}

/// Nothing of it can be had.
const NONE: u8 = 3;

/// What the command line names, else the settings.
fn named(given: Vec<String>, set: &[Token]) -> Vec<String> {
    if given.is_empty() { set.iter().map(ToString::to_string).collect() } else { given }
}

pub fn run(args: Args, settings: &Settings, ui: &Ui) -> Result<u8> {
    let host = Arc::new(this_machine());
    let config = settings.read(&host)?;
    let set = &config.gpu.azure;
    let (sizes, regions) = (named(args.sizes, &set.vm_size), named(args.regions, &set.region));
    let sizes = if sizes.is_empty() { SIZES.map(Into::into).to_vec() } else { sizes };
    let some = |limit: Option<u64>| limit.filter(|limit| *limit > 0);
    let (max_cost, max_seconds) = (some(args.max_cost), some(args.max_hours));
    let today = OffsetDateTime::now_utc().date();
    // What nobody has any more is answered without asking anybody.
    let markets = if sizes.iter().all(|size| gone(size, today).is_some()) {
        let nowhere = |region: &String| Market { region: region.clone(), ..Market::default() };
        let any = ["any".to_owned()];
        let regions = if regions.is_empty() { any.as_slice() } else { regions.as_slice() };
        regions.iter().map(nowhere).collect()
    } else {
        let mut azure = azure::Settings::of(set, &host)?;
        azure.subscription = args.subscription.or(azure.subscription);
        // Nothing is rented: it does not matter in whose name.
        let azure = Azure::open(azure, "", host)?;
        let step = ui.step("asking Azure for sizes, quotas and prices");
        let markets = azure.markets(&regions, &sizes);
        let markets =
            markets.or_try("--region and --subscription say where, `az login` or AZURE_CLIENT_ID who")?;
        step.done();
        markets
    };
    let rows =
        choose(&Wish { sizes, spot: args.spot.unwrap_or(set.spot), max_cost, max_seconds }, &markets, today);
    if args.json {
        ui.out(serde_json::to_string_pretty(&rows)?);
    } else {
        ui.out(table(&rows_for_people(&rows)));
    }
    Ok(if rows.iter().any(|row| row.rejected.is_none()) { 0 } else { NONE })
}
