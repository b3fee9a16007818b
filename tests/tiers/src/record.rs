//! What runs have cost: seconds by the wall and of the processors, for each test and each part of a run.

use anyhow::{Context as _, Result};
use std::{collections::BTreeMap, fmt::Write as _, fs, io, path::Path};

#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Cost {
    pub seconds: f64,
    pub cpu: f64,
}

/// By name: `binary-id test`, or what a part of the run is called.
#[derive(Debug, Default, PartialEq)]
pub struct Record {
    pub parts: BTreeMap<String, Cost>,
    pub tests: BTreeMap<String, Cost>,
}

impl Record {
    /// None where there is no such file.
    pub fn read(path: &Path) -> Result<Option<Self>> {
        match fs::read_to_string(path) {
            Ok(text) => {
                Self::parse(&text).with_context(|| format!("{} is no record", path.display())).map(Some)
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e).with_context(|| format!("reading {}", path.display())),
        }
    }

    fn parse(text: &str) -> Option<Self> {
        let mut record = Self::default();
        for line in text.lines() {
            let [kind, name, seconds, cpu] = line.split('\t').collect::<Vec<_>>()[..] else { return None };
            let cost = Cost { seconds: seconds.parse().ok()?, cpu: cpu.parse().ok()? };
            match kind {
                "part" => record.parts.insert(name.into(), cost),
                "test" => record.tests.insert(name.into(), cost),
                _ => return None,
            };
        }
        Some(record)
    }

    pub fn write(&self, path: &Path) -> Result<()> {
        let mut text = String::new();
        for (kind, all) in [("part", &self.parts), ("test", &self.tests)] {
            for (name, Cost { seconds, cpu }) in all {
                // Writing into a string does not fail.
                let _ = writeln!(text, "{kind}\t{name}\t{seconds:.1}\t{cpu:.1}");
            }
        }
        fs::write(path, text).with_context(|| format!("writing {}", path.display()))
    }

    /// As `self`, and where it says nothing as `older`.
    pub fn over(mut self, older: Self) -> Self {
        for (name, cost) in older.parts {
            self.parts.entry(name).or_insert(cost);
        }
        for (name, cost) in older.tests {
            self.tests.entry(name).or_insert(cost);
        }
        self
    }

    /// The longer of each test's two lengths.
    pub fn longest(mut self, other: &Self) -> Self {
        for (name, &cost) in &other.tests {
            let ours = self.tests.entry(name.clone()).or_insert(cost);
            if cost.seconds > ours.seconds {
                *ours = cost;
            }
        }
        self
    }

    /// A line for whatever took a fifth longer than it did in `before`: the tests that both know, together, and each part.
    pub fn slower_than(&self, before: &Self) -> Vec<String> {
        let both = |all: &BTreeMap<String, Cost>, other: &BTreeMap<String, Cost>| -> f64 {
            all.iter().filter(|(name, _)| other.contains_key(*name)).map(|(_, cost)| cost.seconds).sum()
        };
        let tests = (
            "the tests, one after another",
            both(&self.tests, &before.tests),
            both(&before.tests, &self.tests),
        );
        let parts = self
            .parts
            .iter()
            .filter_map(|(name, cost)| Some((name.as_str(), cost.seconds, before.parts.get(name)?.seconds)));
        parts
            .chain([tests])
            // Below ten seconds it is chance.
            .filter(|(_, now, then)| *now > 1.2 * then && *now > then + 10.0)
            .map(|(what, now, then)| {
                let more = if then > 0.0 {
                    format!(", {:.0} % more", (now / then - 1.0) * 100.0)
                } else {
                    String::new()
                };
                format!("{what} took {now:.0} s, and {then:.0} s on the last run on record{more}")
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(tests: &[(&str, f64)], parts: &[(&str, f64)]) -> Record {
        let costs = |all: &[(&str, f64)]| {
            all.iter().map(|&(name, seconds)| (name.to_owned(), Cost { seconds, cpu: 1.5 })).collect()
        };
        Record { parts: costs(parts), tests: costs(tests) }
    }

    #[test]
    fn what_is_written_is_read_again() {
        let path = std::env::temp_dir().join(format!("record-{}", std::process::id()));
        let written = record(&[("lab life::a", 324.5)], &[("form", 70.0)]);
        written.write(&path).unwrap();
        assert_eq!(Record::read(&path).unwrap(), Some(written));
        fs::write(&path, "test\tlab life::a\tlong\n").unwrap();
        assert!(Record::read(&path).unwrap_err().to_string().contains("is no record"));
        fs::remove_file(&path).unwrap();
        assert_eq!(Record::read(&path).unwrap(), None);
    }

    #[test]
    fn what_took_a_fifth_longer_is_told_and_what_is_new_or_short_is_not() {
        let before =
            record(&[("a", 100.0), ("b", 50.0), ("gone", 900.0)], &[("form", 60.0), ("package", 5.0)]);
        let same = record(&[("a", 120.0), ("b", 59.0), ("new", 500.0)], &[("form", 71.0), ("package", 14.0)]);
        assert_eq!(same.slower_than(&before), [""; 0]);
        let slower = record(&[("a", 140.0), ("b", 60.0)], &[("form", 75.0), ("trees", 80.0)]);
        assert_eq!(
            slower.slower_than(&before),
            [
                "form took 75 s, and 60 s on the last run on record, 25 % more",
                "the tests, one after another took 200 s, and 150 s on the last run on record, 33 % more"
            ]
        );
    }
}
