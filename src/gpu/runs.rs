//! Where runs are kept: one directory each, and in it a journal whose lock is the lease. Whoever holds it drives the
//! run; everybody else reads, or leaves a note for who holds it.

use super::{
    left::Left,
    spec::RunId,
    state::{Entry, Event, State, replay},
};
use crate::{
    config::Config,
    host::{Busy, Host},
    journal::Journal,
};
use anyhow::{Context as _, Result, bail};
use std::path::{Path, PathBuf};
use time::OffsetDateTime;

pub const DIR: &str = "/var/lib/echoes-appliance/runs";

/// What is said while something takes long. On a tmpfs: it means nothing after a boot.
const SAYING: &str = "/run/echoes-appliance/runs";

pub fn dir(run: &RunId) -> PathBuf {
    Path::new(DIR).join(run.as_str())
}

fn journal(run: &RunId) -> PathBuf {
    dir(run).join("journal.jsonl")
}

/// A person wants it to end. A file, since the journal is the driver's.
fn stop(run: &RunId) -> PathBuf {
    dir(run).join("stop")
}

fn saying(run: &RunId) -> PathBuf {
    Path::new(SAYING).join(run.as_str())
}

fn pulse(run: &RunId) -> PathBuf {
    Path::new(SAYING).join(format!("{run}.pulse"))
}

fn left_path(run: &RunId) -> PathBuf {
    Path::new(SAYING).join(format!("{run}.left"))
}

/// Where results come home to, a directory for each run.
pub fn all_results(config: &Config) -> PathBuf {
    config.data.path.to_path().join("azure_results")
}

pub fn results(config: &Config, run: &RunId) -> PathBuf {
    all_results(config).join(run.as_str())
}

/// What its script has written, as far as it has come home.
pub fn log(config: &Config, run: &RunId) -> PathBuf {
    results(config, run).join("log.txt")
}

/// A run in our hands.
pub struct Held {
    journal: Journal<Entry>,
    pub state: State,
}

impl Held {
    /// On disk when this returns; only then act.
    pub fn note(&mut self, at: OffsetDateTime, event: &Event) -> Result<()> {
        let next = self.state.clone().after(at, event);
        let next = next.with_context(|| format!("{event:?} cannot happen while {}", self.state.phase))?;
        self.journal.append(&Entry::new(at, event)?)?;
        self.state = next;
        Ok(())
    }
}

/// Begin a run. Nothing is rented yet; whoever holds it next goes on.
pub fn create(host: &Host, run: &RunId, at: OffsetDateTime, asked: &Event) -> Result<Held> {
    let (mut journal, entries) = match Journal::<Entry>::open(host, &journal(run)) {
        Err(error) if error.is::<Busy>() => bail!("there is a run called {run}, and it is under way"),
        opened => opened?,
    };
    anyhow::ensure!(entries.is_empty(), "there was a run called {run} already");
    let state = State::asked(at, asked).context("a run begins with what was asked for")?;
    journal.append(&Entry::new(at, asked)?)?;
    Ok(Held { journal, state })
}

/// Take the run in hand. None: somebody else has it, or there is no such run.
pub fn hold(host: &Host, run: &RunId) -> Result<Option<Held>> {
    // Opening it would make it.
    if !host.exists(&journal(run))? {
        return Ok(None);
    }
    let (journal, entries) = match Journal::open(host, &journal(run)) {
        Err(error) if error.is::<Busy>() => return Ok(None),
        opened => opened?,
    };
    let state = replay(&entries).with_context(|| format!("reading the journal of {run}"))?;
    Ok(state.map(|state| Held { journal, state }))
}

/// What happened so far, for those who only ask.
pub fn events(host: &Host, run: &RunId) -> Result<Vec<(OffsetDateTime, Event)>> {
    let entries = Journal::<Entry>::read(host, &journal(run))?;
    entries.into_iter().map(|entry| Ok((entry.at, entry.event()?))).collect()
}

/// Where it stands; none when there is no such run.
pub fn state(host: &Host, run: &RunId) -> Result<Option<State>> {
    let entries = Journal::<Entry>::read(host, &journal(run))?;
    replay(&entries).with_context(|| format!("reading the journal of {run}"))
}

/// All there ever were, by name.
pub fn all(host: &Host) -> Result<Vec<RunId>> {
    // What is not the name of a run is not one.
    Ok(host.list(Path::new(DIR))?.into_iter().filter_map(|name| RunId::try_from(name).ok()).collect())
}

/// Leave word for who drives it.
pub fn ask_to_stop(host: &Host, run: &RunId) -> Result<()> {
    host.write(&stop(run), 0o600, b"")
}

pub fn stop_asked(host: &Host, run: &RunId) -> Result<bool> {
    host.exists(&stop(run))
}

/// What it is busy with just now, for who watches. Nothing depends on it.
pub fn say(host: &Host, run: &RunId, words: &str) -> Result<()> {
    host.write(&saying(run), 0o600, words.as_bytes())
}

pub fn said(host: &Host, run: &RunId) -> Result<Option<String>> {
    host.read_text(&saying(run))
}

/// How its script and its machine are just now, in the words of `pulse`. Nothing depends on it either.
pub fn put_pulse(host: &Host, run: &RunId, words: &str) -> Result<()> {
    host.write(&pulse(run), 0o600, words.as_bytes())
}

pub fn read_pulse(host: &Host, run: &RunId) -> Result<Option<String>> {
    host.read_text(&pulse(run))
}

/// What of its results cannot come home, as far as is known just now; nothing, where all can.
pub fn put_left(host: &Host, run: &RunId, left: &Left) -> Result<()> {
    match left.is_empty() {
        true => host.remove(&left_path(run)),
        false => host.write(&left_path(run), 0o600, &serde_json::to_vec(left)?),
    }
}

pub fn read_left(host: &Host, run: &RunId) -> Result<Option<Left>> {
    let Some(bytes) = host.read(&left_path(run))? else { return Ok(None) };
    serde_json::from_slice(&bytes).map(Some).with_context(|| format!("reading {}", left_path(run).display()))
}

/// There is nothing more to be said or asked.
pub fn hush(host: &Host, run: &RunId) -> Result<()> {
    host.remove(&pulse(run))?;
    host.remove(&left_path(run))?;
    host.remove(&saying(run))?;
    host.remove(&stop(run))
}
