//! `gpu offers`: what can be rented at Azure just now, for how much, and why the rest cannot.

use super::wish;
use crate::{
    commands::{config::Settings, this_machine},
    gpu::{
        offer::{Market, SIZES, Wish, choose, gone, table as rows_for_people},
        provider::azure::{self, Azure},
    },
    ui::{Try as _, Ui, table},
};
use anyhow::Result;
use std::sync::Arc;
use time::OffsetDateTime;

#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    wish: wish::Flags,
    /// Azure's subscription; the settings', $AZURE_SUBSCRIPTION_ID, or this machine's own, when left out
    #[arg(long, value_name = "ID")]
    subscription: Option<String>,
    /// Print the rows as JSON
    #[arg(long)]
    pub json: bool,
}

/// Nothing of it can be had.
const NONE: u8 = 3;

pub fn run(args: Args, settings: &Settings, ui: &Ui) -> Result<u8> {
    let host = Arc::new(this_machine());
    let config = settings.read(&host)?;
    let wish::Flags { sizes, regions, spot, max_seconds, max_cost } = args.wish.over(&config.gpu, true);
    let sizes = if sizes.is_empty() { SIZES.map(Into::into).to_vec() } else { sizes };
    let today = OffsetDateTime::now_utc().date();
    // What nobody has any more is answered without asking anybody.
    let markets = if sizes.iter().all(|size| gone(size, today).is_some()) {
        let nowhere = |region: &String| Market { region: region.clone(), ..Market::default() };
        let any = ["any".to_owned()];
        let regions = if regions.is_empty() { any.as_slice() } else { regions.as_slice() };
        regions.iter().map(nowhere).collect()
    } else {
        let mut azure = azure::Settings::of(&config.gpu.azure, &host)?;
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
    let wish = Wish { sizes, spot: spot.unwrap_or_default(), max_cost, max_seconds };
    let rows = choose(&wish, &markets, today);
    if args.json {
        ui.out(serde_json::to_string_pretty(&rows)?);
    } else {
        ui.out(table(&rows_for_people(&rows)));
    }
    Ok(if rows.iter().any(|row| row.rejected.is_none()) { 0 } else { NONE })
}
