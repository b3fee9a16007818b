//! Which stories a run of the tests leaves out, and what a run has cost: the deciding and telling half of
//! `tests/kit/test.sh`, which does the rest.
//!
//! * `tiers plan test|all|quick`: the run's tests as a filter for nextest, on standard output; settings for nextest that
//!   follow from the record beside it.
//! * `tiers account PROGRAM ARGUMENT…`: runs one test, and notes its cost.
//! * `tiers report passed|failed`: what the run tells at its end.
//! * `tiers passed`: notes that everything has passed on this commit.

// A tool for tests, not part of the appliance.
#![allow(clippy::print_stdout, clippy::print_stderr, clippy::disallowed_methods, clippy::disallowed_types)]

mod account;
mod limits;
mod record;
mod report;
mod table;
mod tree;

use anyhow::{Context as _, Result, bail, ensure};
use record::Record;
use report::Ran;
use std::{
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
};
use table::{Choice, Since, Table};

/// The project's root.
const TOP: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../..");

const TABLE: &str = include_str!("../table.toml");

const USAGE: &str =
    "usage: tiers plan test|all|quick | account PROGRAM ARGUMENT… | report passed|failed | passed";

fn main() -> ExitCode {
    let args: Vec<_> = std::env::args().skip(1).collect();
    act(&args).unwrap_or_else(|e| {
        eprintln!("tiers: {e:#}");
        ExitCode::FAILURE
    })
}

fn act(args: &[String]) -> Result<ExitCode> {
    match args {
        [verb, tier] if verb == "plan" => plan(tier)?,
        [verb, program, arguments @ ..] if verb == "account" => return account::account(program, arguments),
        [verb, result] if verb == "report" => report(result)?,
        [verb] if verb == "passed" => passed()?,
        _ => bail!("{USAGE}"),
    }
    Ok(ExitCode::SUCCESS)
}

/// A file of this run, below the build.
fn at(name: &str) -> PathBuf {
    Path::new(TOP).join("target/tiers").join(name)
}

/// The last run of this checkout, and the last one that somebody committed.
fn on_record() -> Result<(Record, Record)> {
    let read = |path: &Path| Ok::<_, anyhow::Error>(Record::read(path)?.unwrap_or_default());
    Ok((read(&at("last.tsv"))?, read(&Path::new(TOP).join("tests/tiers/record.tsv"))?))
}

fn plan(tier: &str) -> Result<()> {
    let table = Table::read(TABLE)?;
    let since = match tier {
        "all" => Since::Unknown("all was asked for".into()),
        "test" | "quick" => tree::since_full_pass(),
        _ => bail!("{USAGE}"),
    };
    let choice = table.choose(&since);
    fs::create_dir_all(at(""))?;
    if at("now.tsv").exists() {
        fs::remove_file(at("now.tsv"))?;
    }
    let (last, committed) = on_record()?;
    fs::write(at("nextest.toml"), limits::config(&committed.longest(&last)))?;
    let (filter, left) = if tier == "quick" {
        ("not binary(lab)".into(), "NOT RUN: every story about whole machines: make test\n".into())
    } else {
        (choice.filter(), told(&choice, &since))
    };
    fs::write(at("left"), left)?;
    // Half an hour from now the tree may be another.
    fs::write(at("head"), tree::clean_head().unwrap_or_else(|why| format!("{why:#}")))?;
    println!("{filter}");
    Ok(())
}

/// Each row of the table, and why it is in this run or not.
fn told(choice: &Choice, since: &Since) -> String {
    let row = |(row, why): &(&table::Row, Option<String>)| match (why, since) {
        (Some(why), _) => format!("in this run: {}: {why}\n", row.what),
        (None, Since::Changed { commit, .. }) => format!(
            "NOT RUN: {} ({}): nothing that it depends on has changed since all passed on {}: make test-all\n",
            row.what,
            row.stories.join(", "),
            commit.get(..12).unwrap_or(commit),
        ),
        (None, Since::Unknown(_)) => String::new(),
    };
    choice.0.iter().map(row).collect()
}

fn report(result: &str) -> Result<()> {
    let now = Record::read(&at("now.tsv"))?.unwrap_or_default();
    let (last, committed) = on_record()?;
    let before = last.over(committed);
    println!("\n== what it cost\n{}", report::costs(&now, &before));
    let ran = Ran::read(&Path::new(TOP).join("target/nextest/default/junit.xml"), &now)?;
    ran.write(&at("junit.xml"))?;
    let rows = fs::read_to_string(at("left"))?;
    let (left, others): (Vec<_>, Vec<_>) =
        rows.lines().map(str::to_owned).chain(ran.skips()).partition(|row| !row.starts_with("in this run"));
    others.into_iter().chain(ran.retried()).for_each(|row| println!("{row}"));
    match (result, left.is_empty()) {
        ("passed", true) => println!("== all of it ran, and all of it passed"),
        ("passed", false) => println!("== passed, but NOT ALL OF IT RAN"),
        _ => println!("== FAILED"),
    }
    left.iter().for_each(|row| println!("{row}"));
    now.over(before).write(&at("last.tsv"))
}

fn passed() -> Result<()> {
    let head = tree::clean_head().context("a pass is noted for a commit")?;
    let begun = fs::read_to_string(at("head"))?;
    ensure!(
        begun == head,
        "a pass is noted for the commit that was tried: it began with {begun}, and this is {head}"
    );
    fs::write(Path::new(TOP).join(tree::FULL_PASS), format!("{head}\n"))?;
    let now = Record::read(&at("last.tsv"))?.context("no run is on record")?;
    now.write(&Path::new(TOP).join("tests/tiers/record.tsv"))?;
    println!("all passed on {head}: commit {} and tests/tiers/record.tsv", tree::FULL_PASS);
    Ok(())
}
