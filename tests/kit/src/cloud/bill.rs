//! What everything has cost so far. Written up whenever time moves, from what there is at that moment: a resource
//! that is there is paid for, whatever anybody believes about it.

use super::catalog;
use super::world::{Kind, Thing};
use std::{collections::BTreeMap, fmt, time::Duration};

#[derive(Debug, Clone, Default)]
pub struct Bill {
    /// By resource id.
    lines: BTreeMap<String, Line>,
}

#[derive(Debug, Clone)]
struct Line {
    /// As in `Standard_NC4as_T4_v3 spot`.
    what: String,
    time: Duration,
    /// Millionths of a dollar an hour times milliseconds: whole numbers, so that nothing is lost in adding up.
    sum: u128,
}

impl Line {
    /// Millionths of a US dollar, rounded up.
    fn cost(&self) -> u64 {
        u64::try_from(self.sum.div_ceil(3_600_000)).unwrap()
    }
}

impl Bill {
    pub(super) fn add(&mut self, thing: &Thing, time: Duration) {
        let Some((what, rate)) = rate(thing) else { return };
        let line = self.lines.entry(thing.id.clone()).or_insert_with(|| Line {
            what: what.clone(),
            time: Duration::ZERO,
            sum: 0,
        });
        line.what = what;
        line.time += time;
        line.sum += time.as_millis() * u128::from(rate);
    }

    /// Millionths of a US dollar.
    pub fn total(&self) -> u64 {
        self.lines.values().map(Line::cost).sum()
    }
}

impl fmt::Display for Bill {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (id, line) in &self.lines {
            let name = id.rsplit('/').next().unwrap_or(id);
            let dollars = line.cost() as f64 / 1e6;
            writeln!(f, "{dollars:>10.6} USD  {:>8} s  {:<36} {name}", line.time.as_secs(), line.what)?;
        }
        write!(f, "{:>10.6} USD", self.total() as f64 / 1e6)
    }
}

/// What this costs an hour as it is now, in millionths of a US dollar; none for what is free.
pub(super) fn rate(thing: &Thing) -> Option<(String, u64)> {
    let disk = |gb_price: u64| {
        let gb = thing.body["properties"]["diskSizeGB"].as_u64().unwrap_or(30);
        (format!("{} of {gb} GB", thing.kind.noun()), gb * gb_price)
    };
    match thing.kind {
        Kind::Vm => {
            let machine = thing.machine.as_ref()?;
            // Switched off from inside it is still ours and still paid for; only deallocated it is not.
            if !machine.power.paid() {
                return None;
            }
            let size = machine.size;
            Some(if machine.spot {
                (format!("{} spot", size.name), size.spot.unwrap_or(size.price))
            } else {
                (size.name.to_owned(), size.price)
            })
        }
        Kind::Disk => {
            let sku = thing.body["sku"]["name"].as_str().unwrap_or_default();
            Some(disk(if sku.starts_with("Premium") { catalog::PREMIUM_GB } else { catalog::STANDARD_GB }))
        }
        Kind::Snapshot => Some(disk(catalog::SNAPSHOT_GB)),
        Kind::Ip => Some(("public IP".into(), catalog::PUBLIC_IP)),
        Kind::Group | Kind::Nic | Kind::Nsg | Kind::Vnet | Kind::Schedule => None,
    }
}
