//! What can be rented now, what it costs, and why the rest cannot. Pure: sizes, quotas and prices are fetched elsewhere,
//! and are handed in. A row for each way to rent, the best first; one that will not do says why, in one line.

use super::{provider::Offer, spec::Spot};
use serde::{Deserialize, Serialize};
use time::{Date, format_description::well_known::Iso8601};

/// When nobody names a size: one GPU, from cheap to fast.
pub const SIZES: [&str; 3] = ["Standard_NC4as_T4_v3", "Standard_NC24ads_A100_v4", "Standard_NC40ads_H100_v5"];

/// Where no GPU is needed: a cent an hour, and what takes their place when Azure retires the first of them.
pub const SMALL: [&str; 3] = ["Standard_B1s", "Standard_B2ts_v2", "Standard_B2als_v2"];

/// What a machine must run for at least, to be worth its start.
const WORTHWHILE: u64 = 600;

/// One region, as Azure describes it to this subscription at this moment.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Market {
    pub region: String,
    pub skus: Vec<Sku>,
    pub usages: Vec<Usage>,
    pub prices: Vec<Price>,
}

/// A size that a region has.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Sku {
    pub name: String,
    /// Whose quota it counts against.
    pub family: String,
    pub vcpus: u64,
    /// GiB.
    pub memory: f64,
    pub gpus: u64,
    /// Can be rented at the price at which it may be taken away.
    pub spot: bool,
    pub zones: Vec<String>,
    /// Why this subscription may not have it anywhere in the region.
    pub closed: Option<String>,
}

/// A quota, and how much of it is used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Usage {
    pub name: String,
    pub current: u64,
    pub limit: u64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Price {
    pub size: String,
    pub spot: bool,
    /// Millionths of a US dollar an hour.
    pub micros: u64,
}

/// What is asked for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Wish {
    /// The best first.
    pub sizes: Vec<String>,
    pub spot: Spot,
    /// Millionths of a US dollar.
    pub max_cost: Option<u64>,
    pub max_seconds: Option<u64>,
}

/// One way to rent, or why it is none.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Row {
    pub offer: Offer,
    pub vcpus: u64,
    /// GiB.
    pub memory: f64,
    pub gpus: u64,
    /// How many more vCPUs the quota has room for; none where Azure does not say.
    pub quota: Option<u64>,
    /// The longest that it may run, by time and by money, in seconds.
    pub lasts: Option<u64>,
    /// What it costs when it runs as long as that.
    pub costs: Option<u64>,
    /// Where else in the region, when this does not come about.
    pub zones: Vec<String>,
    pub rejected: Option<String>,
}

/// A size that Azure has taken away, or will; and what took its place, for people.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Retirement {
    sizes: Vec<String>,
    pub on: String,
    gpu: String,
    pub instead: Vec<String>,
}

/// From `retired-sizes-list.md` of azure-compute-docs: known here, so that a size that is gone is refused at once. What
/// is for rent is never taken from a list of ours.
pub fn retirement(size: &str) -> Option<Retirement> {
    let all: Vec<Retirement> = serde_json::from_str(include_str!("../../assets/azure/retired.json"))
        .expect("assets/azure/retired.json is tested");
    all.into_iter().find(|one| one.sizes.iter().any(|name| name.eq_ignore_ascii_case(size)))
}

impl Retirement {
    pub fn is_past(&self, today: Date) -> bool {
        Date::parse(&self.on, &Iso8601::DATE).is_ok_and(|on| on <= today)
    }
}

/// Why this size is not worth asking for, and what took its place.
pub fn gone(size: &str, today: Date) -> Option<String> {
    let retired = retirement(size).filter(|retired| retired.is_past(today))?;
    let gpu = if retired.gpu.is_empty() { String::new() } else { format!(" ({})", retired.gpu) };
    Some(format!("{size}{gpu} was retired on {}: take {}", retired.on, retired.instead.join(" or ")))
}

/// All ways to rent, the best first: by size as asked for, then spot before what stays, then by region.
pub fn choose(wish: &Wish, markets: &[Market], today: Date) -> Vec<Row> {
    let mut rows = Vec::new();
    let ways: &[bool] = match wish.spot {
        Spot::Auto => &[true, false],
        Spot::Always => &[true],
        Spot::Never => &[false],
    };
    for size in &wish.sizes {
        if gone(size, today).is_some() {
            // Said once: it is nowhere, at no price.
            rows.extend(markets.first().map(|market| row(wish, size, false, market, today)));
            continue;
        }
        for spot in ways {
            rows.extend(markets.iter().map(|market| row(wish, size, *spot, market, today)));
        }
    }
    // What cannot be had comes after what can; neither loses its order.
    rows.sort_by_key(|row| row.rejected.is_some());
    rows
}

/// What to try, in this order: each row in the region as a whole, then in each of its zones.
pub fn offers(rows: &[Row]) -> Vec<Offer> {
    let good = rows.iter().filter(|row| row.rejected.is_none());
    let ways = |row: &Row| {
        let zoned = row.zones.iter().map(|zone| Offer { zone: Some(zone.clone()), ..row.offer.clone() });
        std::iter::once(row.offer.clone()).chain(zoned).collect::<Vec<_>>()
    };
    good.flat_map(ways).collect()
}

fn row(wish: &Wish, size: &str, spot: bool, market: &Market, today: Date) -> Row {
    let sku = market.skus.iter().find(|sku| sku.name.eq_ignore_ascii_case(size));
    let price =
        market.prices.iter().find(|price| price.size.eq_ignore_ascii_case(size) && price.spot == spot);
    let price = price.map(|price| price.micros).filter(|price| *price > 0);
    // As Azure writes it, where it has it.
    let name = sku.map_or(size, |sku| &sku.name);
    let offer = Offer {
        size: name.into(),
        region: market.region.clone(),
        zone: None,
        spot,
        price: price.unwrap_or_default(),
    };
    let paid = wish.max_cost.zip(price).map(|(cost, price)| cost.saturating_mul(3600) / price);
    let lasts = [wish.max_seconds, paid].into_iter().flatten().min();
    let costs = lasts.zip(price).map(|(seconds, price)| seconds.saturating_mul(price) / 3600);
    let quota = sku.and_then(|sku| room(sku, spot, &market.usages)).map(|(room, _)| room);
    let rejected = gone(size, today).or_else(|| objection(wish, sku, spot, price, paid, market));
    Row {
        offer,
        vcpus: sku.map_or(0, |sku| sku.vcpus),
        memory: sku.map_or(0.0, |sku| sku.memory),
        gpus: sku.map_or(0, |sku| sku.gpus),
        quota,
        lasts,
        costs,
        zones: sku.map(|sku| sku.zones.clone()).unwrap_or_default(),
        rejected,
    }
}

fn objection(
    wish: &Wish,
    sku: Option<&Sku>,
    spot: bool,
    price: Option<u64>,
    paid: Option<u64>,
    market: &Market,
) -> Option<String> {
    let region = &market.region;
    let Some(sku) = sku else { return Some(format!("{region} does not have it")) };
    if let Some(why) = &sku.closed {
        return Some(why.clone());
    }
    if spot && !sku.spot {
        return Some("there is none at a spot price".into());
    }
    if let Some((room, quota)) = room(sku, spot, &market.usages).filter(|(room, _)| *room < sku.vcpus) {
        let more = quota.current.saturating_add(sku.vcpus);
        return Some(format!(
            "the quota {} in {region} has room for {room} vCPUs of {}: ask for a limit of {more}",
            quota.name, sku.vcpus
        ));
    }
    match (wish.max_cost, price) {
        (Some(_), None) => Some("its price is not known, so that no limit of cost could be kept".into()),
        (Some(cost), Some(price)) if paid.is_some_and(|seconds| seconds < WORTHWHILE) => {
            let minutes = paid.unwrap_or_default() / 60;
            Some(format!("{} lasts {minutes} min at {} an hour", dollars(cost), dollars(price)))
        }
        _ => None,
    }
}

/// The quota that a size would meet first, and how many vCPUs that has room for. Spot has one of its own for all
/// families; else there is one for the family and one for the region. The family's is 0 on a new subscription.
fn room<'a>(sku: &Sku, spot: bool, usages: &'a [Usage]) -> Option<(u64, &'a Usage)> {
    let names: &[&str] = if spot { &["lowPriorityCores"] } else { &[&sku.family, "cores"] };
    let met = usages.iter().filter(|usage| names.iter().any(|name| usage.name.eq_ignore_ascii_case(name)));
    met.map(|usage| (usage.limit.saturating_sub(usage.current), usage)).min_by_key(|(room, _)| *room)
}

/// As `0.526 USD`: to the tenth of a cent, which is what some sizes cost an hour.
pub fn dollars(micros: u64) -> String {
    format!("{}.{:03} USD", micros / 1_000_000, micros % 1_000_000 / 1000)
}

/// For people: the one that is taken is ticked.
pub fn table(rows: &[Row]) -> Vec<Vec<String>> {
    let head = ["", "SIZE", "GPU", "VCPU", "MEMORY", "REGION", "", "AN HOUR", "QUOTA", "AT MOST", ""];
    let mut lines = vec![head.map(str::to_owned).to_vec()];
    for (n, row) in rows.iter().enumerate() {
        let known = |number: u64| if number == 0 { "-".to_owned() } else { number.to_string() };
        let mark = match &row.rejected {
            Some(_) => "✗",
            None if n == 0 => "✓",
            None => "",
        };
        lines.push(vec![
            mark.into(),
            row.offer.size.clone(),
            known(row.gpus),
            known(row.vcpus),
            if row.memory > 0.0 { format!("{} GiB", row.memory) } else { "-".into() },
            row.offer.region.clone(),
            if row.offer.spot { "spot".into() } else { String::new() },
            if row.offer.price > 0 { dollars(row.offer.price) } else { "-".into() },
            row.quota.map_or_else(|| "-".into(), |quota| quota.to_string()),
            row.costs.map_or_else(|| "-".into(), dollars),
            row.rejected.clone().unwrap_or_default(),
        ]);
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use time::macros::date;

    const TODAY: Date = date!(2026 - 11 - 24);

    fn sku(name: &str, family: &str, vcpus: u64, gpus: u64) -> Sku {
        Sku {
            name: name.into(),
            family: family.into(),
            vcpus,
            memory: 28.0,
            gpus,
            spot: true,
            zones: vec!["1".into(), "3".into()],
            closed: None,
        }
    }

    fn usage(name: &str, current: u64, limit: u64) -> Usage {
        Usage { name: name.into(), current, limit }
    }

    fn market() -> Market {
        let price = |size: &str, spot, micros| Price { size: size.into(), spot, micros };
        let (t4, a100) = ("Standard_NC4as_T4_v3", "Standard_NC24ads_A100_v4");
        Market {
            region: "westeurope".into(),
            skus: vec![
                sku(t4, "standardNCASv3_T4Family", 4, 1),
                sku(a100, "StandardNCADSA100v4Family", 24, 1),
            ],
            usages: vec![
                usage("cores", 4, 100),
                usage("lowPriorityCores", 0, 10),
                usage("StandardNCASv3_T4Family", 0, 8),
                usage("StandardNCADSA100v4Family", 0, 0),
            ],
            prices: vec![price(t4, false, 526_000), price(t4, true, 158_000), price(a100, false, 3_670_000)],
        }
    }

    fn wish(sizes: &[&str], spot: Spot) -> Wish {
        Wish { sizes: sizes.iter().map(|size| (*size).to_owned()).collect(), spot, ..Wish::default() }
    }

    fn verdicts(rows: &[Row]) -> Vec<(String, bool, Option<String>)> {
        let verdict = |row: &Row| (row.offer.size.clone(), row.offer.spot, row.rejected.clone());
        rows.iter().map(verdict).collect()
    }

    #[test]
    fn what_can_be_had_comes_first_and_the_rest_says_why_not() {
        let (t4, a100) = ("Standard_NC4as_T4_v3", "Standard_NC24ads_A100_v4");
        let rows =
            choose(&wish(&[a100, "standard_nc4as_t4_v3", "Standard_X"], Spot::Auto), &[market()], TODAY);
        let short = "the quota StandardNCADSA100v4Family in westeurope has room for 0 vCPUs of 24: ask for a limit of 24";
        let spot =
            "the quota lowPriorityCores in westeurope has room for 10 vCPUs of 24: ask for a limit of 24";
        let none = "westeurope does not have it";
        assert_eq!(
            verdicts(&rows),
            [
                (t4.to_owned(), true, None),
                (t4.to_owned(), false, None),
                (a100.to_owned(), true, Some(spot.into())),
                (a100.to_owned(), false, Some(short.into())),
                ("Standard_X".to_owned(), true, Some(none.into())),
                ("Standard_X".to_owned(), false, Some(none.into())),
            ]
        );
        let tried: Vec<_> = offers(&rows).into_iter().map(|offer| (offer.spot, offer.zone)).collect();
        let zone = |zone: &str| Some(zone.to_owned());
        assert_eq!(
            tried,
            [
                (true, None),
                (true, zone("1")),
                (true, zone("3")),
                (false, None),
                (false, zone("1")),
                (false, zone("3"))
            ]
        );
        assert_eq!((rows[0].quota, rows[1].quota), (Some(10), Some(8)));
    }

    #[test]
    fn the_sizes_of_yesterday_are_understood_and_refused() {
        for size in ["Standard_NC6s_v3", "Standard_NC12s_v3", "standard_nc24s_v3"] {
            let why = gone(size, TODAY).unwrap();
            assert!(why.contains("(V100) was retired on 2025-09-30: take Standard_NC"), "{why}");
            let rows = choose(&wish(&[size], Spot::Auto), &[market(), market()], TODAY);
            assert_eq!((rows.len(), &rows[0].rejected), (1, &Some(why)));
        }
        assert_eq!(gone("Standard_B1s", TODAY), None);
        assert!(gone("Standard_B1s", date!(2028 - 11 - 15)).is_some());
        assert_eq!(SIZES.iter().find_map(|size| retirement(size)), None);
    }

    #[test]
    fn money_is_a_limit_of_time() {
        let capped = |max_cost, max_seconds| {
            let wish = Wish { max_cost, max_seconds, ..wish(&["Standard_NC4as_T4_v3"], Spot::Never) };
            let row = choose(&wish, &[market()], TODAY).remove(0);
            (row.lasts, row.costs, row.rejected)
        };
        assert_eq!(capped(None, None), (None, None, None));
        assert_eq!(capped(None, Some(7200)), (Some(7200), Some(1_052_000), None));
        assert_eq!(capped(Some(5_260_000), Some(72_000)), (Some(36_000), Some(5_260_000), None));
        let (_, _, rejected) = capped(Some(50_000), None);
        assert_eq!(rejected.unwrap(), "0.050 USD lasts 5 min at 0.526 USD an hour");
        let mut blind = market();
        blind.prices.clear();
        let wish = Wish { max_cost: Some(1), ..wish(&["Standard_NC4as_T4_v3"], Spot::Never) };
        assert!(choose(&wish, &[blind], TODAY)[0].rejected.as_ref().unwrap().contains("price is not known"));
    }

    #[test]
    fn a_restriction_is_told_in_azures_words() {
        let mut market = market();
        market.skus[0].closed = Some("NotAvailableForSubscription in westeurope".into());
        market.skus[1].spot = false;
        let rows = choose(&wish(&["Standard_NC4as_T4_v3"], Spot::Never), &[market.clone()], TODAY);
        assert_eq!(rows[0].rejected.as_deref(), Some("NotAvailableForSubscription in westeurope"));
        let rows = choose(&wish(&["Standard_NC24ads_A100_v4"], Spot::Always), &[market], TODAY);
        assert_eq!(rows[0].rejected.as_deref(), Some("there is none at a spot price"));
    }

    #[test]
    fn the_first_that_can_be_had_is_ticked() {
        let rows = choose(&wish(&["Standard_NC4as_T4_v3", "Standard_X"], Spot::Never), &[market()], TODAY);
        let marks: Vec<String> = table(&rows).into_iter().map(|mut line| line.remove(0)).collect();
        assert_eq!(marks, ["", "✓", "✗"]);
    }
}
