//! What a run of the tests tells at its end, and keeps: the longest tests, each part's cost, what was retried, what took
//! longer than last time, and what was not tried.

use crate::record::{Cost, Record};
use anyhow::{Context as _, Result};
use quick_junit::{Property, Report, TestCase, TestCaseStatus, XmlString};
use std::{
    collections::BTreeSet,
    fmt::Write as _,
    fs::{self, File},
    path::Path,
};

/// How many of the longest tests are named.
const LONGEST: usize = 10;

/// nextest's report, with what each test has cost the processors.
pub struct Ran {
    report: Report,
}

impl Ran {
    pub fn read(junit: &Path, costs: &Record) -> Result<Self> {
        let text = fs::read_to_string(junit).with_context(|| format!("reading {}", junit.display()))?;
        let mut report = Report::deserialize_from_str(&text)
            .with_context(|| format!("understanding {}", junit.display()))?;
        for suite in &mut report.test_suites {
            for case in &mut suite.test_cases {
                let name = name(&suite.name, case);
                if let Some(cost) = costs.tests.get(&name) {
                    case.add_property(Property::new("cpu-seconds", format!("{:.1}", cost.cpu)));
                }
            }
        }
        Ok(Self { report })
    }

    pub fn write(&self, path: &Path) -> Result<()> {
        let file = File::create(path).with_context(|| format!("writing {}", path.display()))?;
        self.report.serialize(file).with_context(|| format!("writing {}", path.display()))
    }

    fn cases(&self) -> impl Iterator<Item = (String, &TestCase)> {
        self.report
            .test_suites
            .iter()
            .flat_map(|suite| suite.test_cases.iter().map(move |case| (name(&suite.name, case), case)))
    }

    /// A line for each test that passed only when it was tried again.
    pub fn retried(&self) -> Vec<String> {
        let again = |case: &TestCase| matches!(&case.status, TestCaseStatus::Success { flaky_runs } if !flaky_runs.is_empty());
        self.cases().filter(|(_, case)| again(case)).map(|(name, _)| format!("RETRIED: {name}")).collect()
    }

    /// Lines in which passing tests say that they could not try something here.
    pub fn skips(&self) -> BTreeSet<String> {
        let words = |case: &TestCase| {
            let texts = [&case.system_out, &case.system_err]
                .map(|text| text.as_ref().map_or_else(String::new, |text| text.as_str().to_owned()));
            let lines = texts.iter().flat_map(|text| text.lines());
            lines.filter_map(|line| line.find("SKIPPED").map(|at| line[at..].to_owned())).collect::<Vec<_>>()
        };
        self.cases().flat_map(|(_, case)| words(case)).collect()
    }
}

/// A test's name in records.
fn name(binary: &XmlString, case: &TestCase) -> String {
    format!("{} {}", binary.as_str(), case.name.as_str())
}

/// The costs of this run and of the last one, as a person reads them.
pub fn costs(now: &Record, before: &Record) -> String {
    let mut text = String::new();
    let row = |text: &mut String, name: &str, Cost { seconds, cpu }: Cost| {
        // Writing into a string does not fail.
        let _ = writeln!(text, "{seconds:8.1} s {cpu:8.1} s CPU  {name}");
    };
    for (name, cost) in &now.parts {
        row(&mut text, name, *cost);
    }
    let mut tests: Vec<_> = now.tests.iter().collect();
    tests.sort_by(|(_, a), (_, b)| b.seconds.total_cmp(&a.seconds));
    let all = tests.iter().fold(Cost::default(), |sum, (_, cost)| Cost {
        seconds: sum.seconds + cost.seconds,
        cpu: sum.cpu + cost.cpu,
    });
    row(&mut text, &format!("{} tests, one after another; the longest:", tests.len()), all);
    for (name, cost) in tests.into_iter().take(LONGEST) {
        row(&mut text, &format!("  {name}"), *cost);
    }
    for line in now.slower_than(before) {
        let _ = writeln!(text, "SLOWER: {line}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    const JUNIT: &str = r#"<?xml version="1.0" encoding="UTF-8"?>
<testsuites name="nextest-run" tests="2" skipped="0" failures="0" errors="0" time="0.012">
  <testsuite name="a::lab" tests="2" skipped="0" errors="0" failures="0">
    <testcase name="demo::pages" classname="a::lab" timestamp="2026-11-28T18:21:13.172+00:00" time="0.010">
      <system-out>
SKIPPED: the pages in a browser: "apt install chromium" &amp; more
test demo::pages ... ok
</system-out>
      <system-err>no pages: SKIPPED: curves</system-err>
    </testcase>
    <testcase name="life::on_12" classname="a::lab" timestamp="2026-11-28T18:21:13.172+00:00" time="30.010">
      <flakyFailure message="panicked" type="test failure">no network</flakyFailure>
      <system-out></system-out>
    </testcase>
  </testsuite>
</testsuites>"#;

    fn costs_of(tests: &[(&str, f64, f64)]) -> Record {
        let tests = tests.iter().map(|&(name, seconds, cpu)| (name.to_owned(), Cost { seconds, cpu }));
        Record {
            tests: tests.collect(),
            parts: [("form".to_owned(), Cost { seconds: 71.0, cpu: 120.5 })].into(),
        }
    }

    #[test]
    fn skips_and_retries_are_found_in_a_report_and_costs_are_put_into_it() {
        let dir = std::env::temp_dir();
        let at = |name: &str| dir.join(format!("{name}-{}.xml", std::process::id()));
        fs::write(at("junit"), JUNIT).unwrap();
        let ran = Ran::read(&at("junit"), &costs_of(&[("a::lab life::on_12", 30.0, 4.25)])).unwrap();
        assert_eq!(ran.retried(), ["RETRIED: a::lab life::on_12"]);
        let skips: Vec<_> = ran.skips().into_iter().collect();
        assert_eq!(
            skips,
            ["SKIPPED: curves", "SKIPPED: the pages in a browser: \"apt install chromium\" & more"]
        );
        ran.write(&at("whole")).unwrap();
        let text = fs::read_to_string(at("whole")).unwrap();
        assert!(text.contains("cpu-seconds") && text.contains("4.2"), "{text}");
        for name in ["junit", "whole"] {
            fs::remove_file(at(name)).unwrap();
        }
    }

    #[test]
    fn the_longest_tests_stand_first_and_the_rest_is_summed_up() {
        let names: Vec<_> = (0..12).map(|n| format!("a t{n:02}")).collect();
        let tests: Vec<_> =
            names.iter().zip(0..).map(|(name, n)| (name.as_str(), f64::from(n), 0.5)).collect();
        let text = costs(&costs_of(&tests), &costs_of(&[("a t11", 0.5, 0.5)]));
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines.len(), 1 + 1 + LONGEST + 1);
        assert_eq!(lines[0], "    71.0 s    120.5 s CPU  form");
        assert_eq!(lines[1], "    66.0 s      6.0 s CPU  12 tests, one after another; the longest:");
        assert_eq!(lines[2], "    11.0 s      0.5 s CPU    a t11");
        assert!(lines[12].starts_with("SLOWER: the tests, one after another took 11 s"), "{}", lines[12]);
    }
}
