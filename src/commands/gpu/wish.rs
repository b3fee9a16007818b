//! What somebody wants to rent, as `gpu-run` and `gpu offers` are told it: by the command line, else by the settings.

use crate::{config, gpu::spec::Spot};

#[derive(clap::Args)]
pub struct Flags {
    /// The size to rent; several, the best first
    #[arg(long = "vm-size", value_name = "SIZE", value_delimiter = ',')]
    pub sizes: Vec<String>,
    /// The region to rent in; several, the best first. This machine's own when left out
    #[arg(long = "region", value_name = "REGION", value_delimiter = ',')]
    pub regions: Vec<String>,
    /// Whether to rent what is cheap because it may be taken away
    #[arg(long, value_enum)]
    pub spot: Option<Spot>,
    /// End it after so many hours; 0 for no limit. Without it, a day where a machine is rented
    #[arg(long = "max-hours", value_name = "HOURS", value_parser = hours)]
    pub max_seconds: Option<u64>,
    /// End it before it has cost so many US dollars; 0 for no limit
    #[arg(long, value_name = "USD", value_parser = millionths)]
    pub max_cost: Option<u64>,
}

impl Flags {
    /// What the command line leaves open, as the settings have it where a machine is rented or not.
    pub fn over(self, set: &config::Gpu, is_rented: bool) -> Self {
        let limit = |flag: Option<u64>, setting: u32, of: u64| {
            Some(flag.unwrap_or(u64::from(setting) * of)).filter(|most| *most > 0)
        };
        Self {
            sizes: or(self.sizes, &set.azure.vm_size),
            regions: or(self.regions, &set.azure.region),
            spot: self.spot.or(Some(set.azure.spot)),
            max_seconds: limit(self.max_seconds, set.max_hours.hours(is_rented), 3600),
            max_cost: limit(self.max_cost, set.max_cost, 1_000_000),
        }
    }
}

/// What was given, else what is set.
pub fn or(given: Vec<String>, set: &[impl ToString]) -> Vec<String> {
    if given.is_empty() { set.iter().map(ToString::to_string).collect() } else { given }
}

fn hours(text: &str) -> Result<u64, String> {
    amount(text, 3600.0).ok_or_else(|| "hours, as in 6 or 0.5".into())
}

fn millionths(text: &str) -> Result<u64, String> {
    amount(text.trim_start_matches('$'), 1e6).ok_or_else(|| "US dollars, as in 5 or 0.80".into())
}

fn amount(text: &str, of: f64) -> Option<u64> {
    let number: f64 = text.parse().ok()?;
    // A year, or a million dollars, is a slip of the finger.
    (number.is_finite() && (0.0..=1e6).contains(&number)).then(|| (number * of).round() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_are_read_as_people_write_them_and_slips_are_refused() {
        assert_eq!((hours("6"), hours("0.5"), hours("0")), (Ok(21_600), Ok(1800), Ok(0)));
        assert_eq!((millionths("5"), millionths("$0.80")), (Ok(5_000_000), Ok(800_000)));
        for bad in ["", "-1", "nan", "inf", "1e9", "6h", "5 $"] {
            assert!(hours(bad).is_err() && millionths(bad).is_err(), "{bad:?}");
        }
    }
}
