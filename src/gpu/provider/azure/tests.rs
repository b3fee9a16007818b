//! The provider against the simulated Azure, and against what Microsoft has written down.

mod contract;
mod faults;
mod life;
mod login;
mod matrix;
mod run;
mod stage;

use super::{arm, credential, fault, market, network, operation, seen};
use serde_json::Value;

#[test]
fn fuzz_azure_answers_mean_something_or_nothing() {
    use crate::gpu::offer::{Market, Wish, choose, offers, table};
    let words = [
        "\"vCPUs\"",
        "\"Failed\"",
        "\"provisioningState\":\"Failed\"",
        "\"expires_in\":1",
        "\"retailPrice\":0.1",
        "\"limit\":1",
        "9999-12-31T23:59:59-23:59",
    ];
    crate::fuzz::run("azure", &words, |bytes| {
        let body: Value = serde_json::from_slice(bytes)?;
        for status in [None, Some(403), Some(409), Some(503)] {
            let fault = fault::Fault::read("asking", status, &body);
            let _ = (fault.to_string(), fault.hint(), fault.refusal(), fault.is_passing(), fault.is_denied());
        }
        let vm = seen::Vm::read(&body);
        let _ = (
            vm.is_of(&crate::gpu::provider::Offer::example("a")),
            network::fuzzed(&body),
            credential::fuzzed(&body),
        );
        for status in [200, 201, 202] {
            let answer = arm::Answer {
                status,
                body: body.clone(),
                operation: Some("/o".into()),
                location: None,
                retry_after: None,
            };
            for watch in [
                operation::Watch::Operation("/o".into()),
                operation::Watch::Location("/l".into()),
                operation::Watch::Thing,
            ] {
                let _ = watch.judge("asking", &answer);
            }
            let _ = operation::Watch::of(&reqwest::Method::PUT, &answer);
        }
        // A page of a list, of either service.
        let all = |key: &str| body[key].as_array().cloned().unwrap_or_else(|| vec![body.clone()]);
        let market = Market {
            region: "westeurope".into(),
            skus: all("value").iter().filter_map(|one| market::sku(one, "westeurope")).collect(),
            usages: all("value").iter().filter_map(market::usage).collect(),
            prices: all("Items").iter().filter_map(market::price).collect(),
        };
        let mut sizes: Vec<String> = market.skus.iter().map(|sku| sku.name.clone()).collect();
        sizes.extend(market.prices.iter().map(|price| price.size.clone()));
        for most in [None, Some(0), Some(u64::MAX)] {
            let wish = Wish { sizes: sizes.clone(), max_cost: most, max_seconds: most, ..Wish::default() };
            let rows = choose(&wish, std::slice::from_ref(&market), time::macros::date!(2026 - 11 - 29));
            let _ = (crate::ui::table(&table(&rows)), offers(&rows));
        }
        Ok(())
    });
}
