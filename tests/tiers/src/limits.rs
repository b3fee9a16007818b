//! Settings for nextest that follow from how long each test took in a quiet run: its limit, and its place in the queue.

use crate::record::Record;
use std::fmt::Write as _;

/// A test's limit is this many times its length: it only stops what hangs.
const TIMES: f64 = 10.0;

/// No test has a shorter limit, in seconds.
const LEAST: f64 = 120.0;

/// Seconds for a story about machines that no record knows.
const NEW_STORY: u32 = 1800;

/// The lowest place in the queue for a story about machines; a test's is 0.
const STORY: i32 = 50;

/// The text of a configuration that stands behind `.config/nextest.toml`.
pub fn config(record: &Record) -> String {
    let mut text = format!("[profile.default]\nslow-timeout = {}\n", limit(LEAST));
    for (name, cost) in &record.tests {
        let Some((binary, test)) = name.split_once(' ') else { continue };
        if cost.seconds * TIMES <= LEAST {
            continue;
        }
        // Writing into a string does not fail.
        let _ = write!(
            text,
            "\n[[profile.default.overrides]]\nfilter = 'binary_id(={binary}) and test(={test})'\nslow-timeout = {}\npriority = {}\n",
            limit((cost.seconds * TIMES).ceil()),
            priority(binary, cost.seconds),
        );
    }
    let new = format!(
        "\n[[profile.default.overrides]]\nfilter = 'binary(lab)'\nslow-timeout = {}\npriority = {STORY}\n",
        limit(f64::from(NEW_STORY))
    );
    text + &new
}

fn limit(seconds: f64) -> String {
    format!("{{ period = \"{seconds:.0}s\", terminate-after = 1 }}")
}

/// The longest start first, stories about machines before the rest: few of those go on at once, and what starts last and takes
/// minutes is waited for by idle processors.
fn priority(binary: &str, seconds: f64) -> i32 {
    let least = if binary.ends_with("::lab") { STORY } else { 0 };
    least + (seconds / 8.0).min(f64::from(100 - STORY)) as i32
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::Cost;

    #[test]
    fn a_limit_is_ten_times_a_length_and_two_minutes_at_least() {
        let cost = |seconds| Cost { seconds, cpu: 0.0 };
        let tests = [("a::b short", 11.9), ("a::lab life::on_12", 324.4), ("a::gpu troubles", 120.0)];
        let record = Record {
            tests: tests.map(|(name, seconds)| (name.into(), cost(seconds))).into(),
            ..Record::default()
        };
        let text = config(&record);
        let parsed: toml::Table = toml::from_str(&text).unwrap();
        let profile = &parsed["profile"]["default"];
        assert_eq!(profile["slow-timeout"]["period"].as_str(), Some("120s"));
        let rows: Vec<_> = profile["overrides"]
            .as_array()
            .unwrap()
            .iter()
            .map(|row| {
                let period = row["slow-timeout"]["period"].as_str().unwrap();
                (row["filter"].as_str().unwrap(), period, row["priority"].as_integer().unwrap())
            })
            .collect();
        assert_eq!(
            rows,
            [
                ("binary_id(=a::gpu) and test(=troubles)", "1200s", 15),
                ("binary_id(=a::lab) and test(=life::on_12)", "3244s", 90),
                ("binary(lab)", "1800s", 50),
            ]
        );
    }
}
