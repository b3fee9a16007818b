//! What a region has for rent, fetched: sizes, quotas and prices, all at once.

use super::{
    Azure, Fault,
    arm::{Ask, all, chain, encoded},
    names::{COMPUTE, SKUS},
    network::same_region,
    told,
};
use crate::{
    gpu::offer::{Market, Price, Sku, Usage},
    web::json_at_most,
};
use anyhow::Result;
use reqwest::Url;
use serde_json::Value;
use std::time::Duration;

/// More of one size's prices in one region than there are.
const PAGES: usize = 20;
/// Bytes of the longest page that is read; a hundred prices have 80 KB.
const PAGE: usize = 8 << 20;
/// The longest wait that is kept, whatever was asked for: a plan without prices is better than one next year.
const LONGEST_WAIT: Duration = Duration::from_secs(60);

impl Azure {
    /// Of each region, in this order; none named: where this machine is.
    pub fn markets(&self, regions: &[String], sizes: &[String]) -> Result<Vec<Market>> {
        self.runtime.block_on(self.markets_now(regions, sizes)).map_err(told)
    }

    async fn markets_now(&self, regions: &[String], sizes: &[String]) -> Result<Vec<Market>, Fault> {
        let mut regions = regions.to_vec();
        if regions.is_empty() {
            let here = self.metadata().await.map(|metadata| metadata.location.clone());
            let none = "none is named, and this machine is none of Azure's";
            regions.push(here.ok_or_else(|| Fault::here("choosing a region", none))?);
        }
        let subscription = &self.subscription().await?;
        // The slowest of these takes three seconds, whatever the number of regions.
        let asking: Vec<_> = regions.iter().map(|region| self.market(subscription, region, sizes)).collect();
        all(asking).await
    }

    async fn market(&self, subscription: &str, region: &str, sizes: &[String]) -> Result<Market, Fault> {
        let provider = format!("/subscriptions/{subscription}/providers/Microsoft.Compute");
        let filter = format!("location eq '{}'", region.replace('\'', "''"));
        let skus = Ask::get(format!("{provider}/skus"), SKUS).with("$filter", filter);
        let usages = Ask::get(format!("{provider}/locations/{}/usages", encoded(region)), COMPUTE);
        let prices = all(sizes.iter().map(|size| self.prices(region, size)).collect());
        let (skus, usages, prices) = tokio::join!(self.arm.list(&skus), self.arm.list(&usages), prices);
        let wanted = |sku: &Sku| sizes.iter().any(|size| size.eq_ignore_ascii_case(&sku.name));
        Ok(Market {
            region: region.into(),
            skus: skus?.iter().filter_map(|one| sku(one, region)).filter(wanted).collect(),
            usages: usages?.iter().filter_map(usage).collect(),
            // A price list that is down makes nothing impossible but a limit of cost.
            prices: prices.unwrap_or_default().concat(),
        })
    }

    /// Nobody logs in to the price list.
    async fn prices(&self, region: &str, size: &str) -> Result<Vec<Price>, Fault> {
        let plain = |text: &str| text.replace('\'', "''");
        let filter = format!(
            "serviceName eq 'Virtual Machines' and armRegionName eq '{}' and armSkuName eq '{}' \
             and priceType eq 'Consumption'",
            plain(region),
            plain(size)
        );
        let base = self.settings.prices.trim_end_matches('/');
        let first =
            format!("{base}/api/retail/prices?api-version=2023-01-01-preview&$filter={}", encoded(&filter));
        let doing = format!("asking {base} for the price of {size} in {region}");
        let mut next = first.parse::<Url>().map_err(|e| Fault::here(&doing, e))?;
        let (origin, mut prices) = (next.origin(), Vec::new());
        for _ in 0..PAGES {
            let page = self.price_page(&doing, next.clone()).await?;
            prices.extend(page["Items"].as_array().into_iter().flatten().filter_map(price));
            match page["NextPageLink"].as_str().and_then(|link| link.parse::<Url>().ok()) {
                Some(link) if link.origin() == origin => next = link,
                _ => break,
            }
        }
        Ok(prices)
    }

    async fn price_page(&self, doing: &str, url: Url) -> Result<Value, Fault> {
        let mut wait = Duration::from_secs(1);
        for tries in 1.. {
            let answer = self.http.get(url.clone()).send().await;
            let answer = answer.map_err(|e| Fault::here(doing, chain(&e.without_url())))?;
            let status = answer.status().as_u16();
            let after =
                answer.headers().get("retry-after").and_then(|value| value.to_str().ok()?.parse().ok());
            if (status == 429 || status >= 500) && tries < 4 {
                self.arm.clock().nap(after.map_or(wait, Duration::from_secs).min(LONGEST_WAIT)).await;
                wait *= 2;
                continue;
            }
            if status != 200 {
                return Err(Fault {
                    status: Some(status),
                    ..Fault::here(doing, format!("it answered {status}"))
                });
            }
            let page = json_at_most(answer, PAGE).await;
            let page = page.map_err(|e| Fault::here(doing, chain(&e.without_url())))?;
            return page.ok_or_else(|| Fault::here(doing, "it answered with no JSON, or without end"));
        }
        unreachable!("the last try returns")
    }
}

/// A size of a region, as `ResourceSkus_List` has it.
pub(super) fn sku(one: &Value, region: &str) -> Option<Sku> {
    if one["resourceType"] != "virtualMachines" {
        return None;
    }
    let list = |value: &Value| -> Vec<String> {
        value.as_array().into_iter().flatten().filter_map(|one| one.as_str().map(str::to_owned)).collect()
    };
    let capability = |name: &str| {
        let all = one["capabilities"].as_array().into_iter().flatten();
        all.into_iter().find(|one| one["name"] == name).and_then(|one| one["value"].as_str())
    };
    let number = |name: &str| capability(name).and_then(|text| text.parse::<f64>().ok()).unwrap_or_default();
    let here = |value: &Value| value.as_str().is_some_and(|name| same_region(name, region));
    let info = one["locationInfo"].as_array().into_iter().flatten().find(|info| here(&info["location"]));
    let mut zones = info.map(|info| list(&info["zones"])).unwrap_or_default();
    zones.sort();
    let mut closed = None;
    for restriction in one["restrictions"].as_array().into_iter().flatten() {
        let why = restriction["reasonCode"].as_str().unwrap_or("restricted");
        if restriction["type"] == "Location" {
            closed = Some(match why {
                "NotAvailableForSubscription" => format!("{region} does not have it for this subscription"),
                "QuotaId" => format!("this kind of subscription may not have it in {region}"),
                why => format!("{why} in {region}"),
            });
        } else {
            // The other zones may well have it.
            let shut = list(&restriction["restrictionInfo"]["zones"]);
            zones.retain(|zone| !shut.contains(zone));
        }
    }
    Some(Sku {
        name: one["name"].as_str()?.into(),
        family: one["family"].as_str().unwrap_or_default().into(),
        vcpus: number("vCPUs") as u64,
        memory: number("MemoryGB"),
        gpus: number("GPUs") as u64,
        spot: capability("LowPriorityCapable") == Some("True"),
        zones,
        closed,
    })
}

pub(super) fn usage(one: &Value) -> Option<Usage> {
    let number = |value: &Value| value.as_i64().map(|number| u64::try_from(number).unwrap_or_default());
    Some(Usage {
        name: one["name"]["value"].as_str()?.into(),
        current: number(&one["currentValue"])?,
        limit: number(&one["limit"])?,
    })
}

/// What an hour of Linux costs; nothing for the rows that are about something else.
pub(super) fn price(one: &Value) -> Option<Price> {
    let has = |key: &str, word: &str| one[key].as_str().is_some_and(|text| text.contains(word));
    let other = has("productName", "Windows")
        || has("productName", "Dedicated")
        || has("meterName", "Low Priority")
        || one["type"].as_str().is_some_and(|kind| kind != "Consumption");
    let dollars = one["retailPrice"].as_f64().filter(|price| *price > 0.0)?;
    if other || one["unitOfMeasure"] != "1 Hour" || one["currencyCode"].as_str().unwrap_or("USD") != "USD" {
        return None;
    }
    let spot = has("meterName", "Spot") || has("skuName", "Spot");
    Some(Price { size: one["armSkuName"].as_str()?.into(), spot, micros: (dollars * 1e6).round() as u64 })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_size_is_read_with_what_stands_in_its_way() {
        let of = |restrictions: Value| {
            json!({"resourceType": "virtualMachines", "name": "Standard_NC4as_T4_v3", "family": "F",
                "locations": ["WestEurope"], "locationInfo": [{"location": "WestEurope", "zones": ["3", "1", "2"]}],
                "capabilities": [{"name": "vCPUs", "value": "4"}, {"name": "MemoryGB", "value": "28"},
                    {"name": "GPUs", "value": "1"}, {"name": "LowPriorityCapable", "value": "True"}],
                "restrictions": restrictions})
        };
        let open = sku(&of(json!([])), "westeurope").unwrap();
        assert_eq!((open.vcpus, open.gpus, open.spot, open.zones.concat()), (4, 1, true, "123".into()));
        let zone = json!([{"type": "Zone", "values": ["westeurope"], "reasonCode": "NotAvailableForSubscription",
            "restrictionInfo": {"locations": ["westeurope"], "zones": ["1", "2"]}}]);
        let zoned = sku(&of(zone), "westeurope").unwrap();
        assert_eq!((zoned.closed, zoned.zones), (None, vec!["3".to_owned()]));
        let location = json!([{"type": "Location", "reasonCode": "QuotaId"}]);
        let closed = sku(&of(location), "westeurope").unwrap().closed.unwrap();
        assert_eq!(closed, "this kind of subscription may not have it in westeurope");
    }

    #[test]
    fn only_an_hour_of_linux_is_a_price() {
        let row = |over: Value| {
            let mut row = json!({"armSkuName": "Standard_NC4as_T4_v3", "retailPrice": 0.526, "unitOfMeasure": "1 Hour",
                "productName": "Virtual Machines NCasT4_v3 Series", "meterName": "NC4as T4 v3", "skuName": "NC4as T4 v3",
                "type": "Consumption", "currencyCode": "USD"});
            for (key, value) in over.as_object().unwrap() {
                row[key] = value.clone();
            }
            price(&row).map(|price| (price.spot, price.micros))
        };
        assert_eq!(row(json!({})), Some((false, 526_000)));
        assert_eq!(
            row(json!({"meterName": "NC4as T4 v3 Spot", "retailPrice": 0.1578})),
            Some((true, 157_800))
        );
        for other in [
            json!({"productName": "Virtual Machines NCasT4_v3 Series Windows"}),
            json!({"meterName": "NC4as T4 v3 Low Priority"}),
            json!({"type": "Reservation"}),
            json!({"type": "DevTestConsumption"}),
            json!({"retailPrice": 0.0}),
            json!({"unitOfMeasure": "1 Month"}),
        ] {
            assert_eq!(row(other.clone()), None, "{other}");
        }
    }
}
