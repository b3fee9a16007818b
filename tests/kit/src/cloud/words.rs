//! What may be asked of a simulated Azure by word, and what it answers.

use super::Cloud;
use anyhow::{Context as _, Result};
use std::{fmt::Write as _, time::Duration};

pub const WORDS: &str = "\
  left            what is rented and still there      bill      what it all came to
  story           every request and its answer        history   what came and went
  violations      what was against the documents      advance SECONDS
  evict ID        the spot machine is warned          reboot ID";

/// Whole lines.
pub fn answer(cloud: &Cloud, line: &str) -> Result<String> {
    let lines = |all: Vec<String>| all.iter().map(|line| format!("{line}\n")).collect::<String>();
    let mut said = String::new();
    match line.split_whitespace().collect::<Vec<_>>().as_slice() {
        ["left"] => said += &lines(cloud.left()),
        ["bill"] => writeln!(said, "{}", cloud.bill())?,
        ["story"] => said += &cloud.story(),
        ["history"] => said += &cloud.history(),
        ["violations"] => said += &lines(cloud.violations()),
        ["advance", seconds] => {
            cloud.advance(Duration::from_secs(seconds.parse().context("reading the seconds")?));
        }
        ["evict", id] if cloud.evict(id) => {}
        ["reboot", id] => cloud.reboot(id),
        _ => writeln!(said, "not understood: {line}")?,
    }
    Ok(said)
}
