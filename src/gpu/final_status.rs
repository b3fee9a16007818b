//! How a run ended, told to MLflow for those of its MLflow runs that nobody has ended: their client was killed with its
//! script, or is gone with its machine. That it is to be told is on disk before it is tried; a server that is down or slow
//! holds up nothing that costs, and is told later by the sweep. A run that has ended there stays as its own client left it.

use super::{
    job::Exit,
    runs,
    spec::RunId,
    state::{Outcome, State},
    tracking::{TrackedId, TrackedRun, Tracking},
};
use crate::{host::Host, ui::Try as _, web::block_on};
use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, path::PathBuf, time::Duration};
use time::OffsetDateTime;

/// A few tries, all of them within so long: a driver has nothing else left to do then, and is not waited for.
const WITHIN: Duration = Duration::from_secs(10);
const PAUSES: [Duration; 2] = [Duration::from_millis(500), Duration::from_secs(2)];

/// Until it is tried again: as the sweep comes, then more and more rarely.
const LATER: Duration = Duration::from_secs(5 * 60);
const LATER_AT_MOST: Duration = Duration::from_secs(6 * 3600);

/// A server that does not come back for so long is another one when it does.
const GIVEN_UP: Duration = Duration::from_secs(30 * 24 * 3600);

/// The most links for a receipt: a script may begin hundreds of MLflow runs.
const LINKS: usize = 10;

/// Whether MLflow knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Told {
    /// Not yet.
    Due,
    Done,
    GivenUp,
}

/// The note beside a run's journal. Fields that come later have a default: old ones load for ever.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FinalStatus {
    pub told: Told,
    /// The moment from which it was to be told.
    #[serde(with = "time::serde::rfc3339")]
    since: OffsetDateTime,
    tries: u32,
    /// No sooner is it tried again.
    #[serde(with = "time::serde::rfc3339")]
    next: OffsetDateTime,
    /// The first of its MLflow runs, those that are within no other.
    runs: Vec<TrackedId>,
    /// How many there are in all.
    count: usize,
}

/// The part of it that a receipt shows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct InMlflow {
    pub told: Told,
    pub runs: usize,
    pub links: Vec<String>,
}

impl FinalStatus {
    pub fn is_due(&self, now: OffsetDateTime) -> bool {
        self.told == Told::Due && now >= self.next
    }

    /// It was to be told just now, and nobody knows yet what came of that.
    pub fn is_awaited(&self) -> bool {
        self.told == Told::Due && self.tries == 0
    }

    /// `pages` is the address of MLflow's pages.
    pub fn on_receipt(&self, pages: &str) -> InMlflow {
        let links = self.runs.iter().map(|id| id.link(pages)).collect();
        InMlflow { told: self.told, runs: self.count, links }
    }

    fn put_off(self, now: OffsetDateTime) -> Self {
        let told = if now - self.since > GIVEN_UP { Told::GivenUp } else { self.told };
        let later = LATER.saturating_mul(1 << self.tries.min(10)).min(LATER_AT_MOST);
        Self { told, tries: self.tries.saturating_add(1), next: now + later, ..self }
    }

    fn done(self, all: &[TrackedRun]) -> Self {
        let outer = all.iter().filter(|run| !run.nested);
        let mut first: Vec<&TrackedRun> =
            if outer.clone().next().is_some() { outer.collect() } else { all.iter().collect() };
        first.sort_by_key(|run| run.began);
        let runs = first.into_iter().take(LINKS).map(|run| run.id.clone()).collect();
        Self { told: Told::Done, runs, count: all.len(), ..self }
    }
}

fn path(run: &RunId) -> PathBuf {
    runs::dir(run).join("mlflow.json")
}

/// None: it has not ended, or there was no MLflow when it did.
pub fn read(host: &Host, run: &RunId) -> Result<Option<FinalStatus>> {
    let path = path(run);
    let Some(bytes) = host.read(&path)? else { return Ok(None) };
    serde_json::from_slice(&bytes)
        .map(Some)
        .with_context(|| format!("reading how {run} stands in MLflow: {} is damaged", path.display()))
        .or_try("remove that file: what MLflow says of the run then stays as it is")
}

fn write(host: &Host, run: &RunId, status: &FinalStatus) -> Result<()> {
    host.write(&path(run), 0o600, &serde_json::to_vec(status)?)
}

/// Notes that it is to be told, once for each run. To be called where there is an MLflow to tell.
pub fn note(host: &Host, state: &State, now: OffsetDateTime) -> Result<()> {
    let run = &state.spec.run;
    if state.outcome.is_none() || host.exists(&path(run))? {
        return Ok(());
    }
    write(
        host,
        run,
        &FinalStatus { told: Told::Due, since: now, tries: 0, next: now, runs: Vec::new(), count: 0 },
    )
}

/// Tells it, if that was noted, was not done, and is not put off. What cannot be done now is put off, and is an error all the same.
/// `samples` is what came home of the machine's load.
pub fn tell(
    host: &Host,
    base: Option<&str>,
    state: &State,
    samples: &str,
    now: OffsetDateTime,
) -> Result<()> {
    let run = &state.spec.run;
    // Giving back is done several times, and each time there is news of it.
    let Some(status) = read(host, run)?.filter(|status| status.is_due(now)) else { return Ok(()) };
    // MLflow was removed from this headquarters meanwhile.
    let Some(base) = base else { return host.remove(&path(run)) };
    match block_on(tell_soon(base, state, samples, now)) {
        Ok(all) => write(host, run, &status.done(&all)),
        Err(error) => {
            write(host, run, &status.put_off(now))?;
            Err(error)
        }
    }
}

async fn tell_soon(base: &str, state: &State, samples: &str, now: OffsetDateTime) -> Result<Vec<TrackedRun>> {
    let tracking = Tracking::new(base)?;
    let telling = async {
        let mut pauses = PAUSES.into_iter();
        loop {
            match end_runs(&tracking, state, samples, now).await {
                Ok(all) => return Ok(all),
                Err(error) => match pauses.next() {
                    Some(pause) => tokio::time::sleep(pause).await,
                    None => return Err(error),
                },
            }
        }
    };
    let told = tokio::time::timeout(WITHIN, telling).await;
    told.with_context(|| format!("{base} has not answered it all within {} s", WITHIN.as_secs()))?
}

/// Ends those that run. One that cannot be ended keeps none of the others.
async fn end_runs(
    tracking: &Tracking,
    state: &State,
    samples: &str,
    now: OffsetDateTime,
) -> Result<Vec<TrackedRun>> {
    let all = tracking.runs(&state.spec.run).await?;
    let mut first_error = None;
    for RunUpdate { run, status, at } in endings(&all, state, samples, millis(now)) {
        if let Err(error) = tracking.end(run, status, at).await {
            first_error.get_or_insert(error);
        }
    }
    first_error.map_or(Ok(all), Err)
}

#[derive(Debug, PartialEq, Eq)]
struct RunUpdate<'a> {
    run: &'a str,
    status: &'static str,
    at: u64,
}

/// How MLflow runs end that still run there. One that an earlier try of the script began was cut off, however the last try
/// ended: the machine was taken away, or restarted. A try that began none of its own may have gone on with an older one.
/// Pure.
fn endings<'a>(runs: &'a [TrackedRun], state: &State, samples: &str, now: u64) -> Vec<RunUpdate<'a>> {
    let outcome = state.outcome.as_ref().map_or(FAILED, status);
    let script_try = |run: &TrackedRun| (machines_before(state, run.began), run.attempt);
    let last_try = runs.iter().map(script_try).max();
    let mut last_samples = BTreeMap::new();
    let end = |run: &'a TrackedRun| {
        let own = script_try(run);
        let later = runs.iter().filter(|other| script_try(other) > own).map(|other| other.began);
        let until = later.min().unwrap_or(now).min(now);
        let sample = *last_samples.entry(until).or_insert_with(|| last_sample(samples, until));
        let heard_of = sample.into_iter().chain(run.last.filter(|at| *at <= until));
        let at = heard_of.chain([run.began]).max().unwrap_or(run.began);
        let status = if Some(own) == last_try { outcome } else { FAILED };
        RunUpdate { run: &run.id.run, status, at }
    };
    runs.iter().filter(|run| run.running).map(end).collect()
}

const FINISHED: &str = "FINISHED";
const FAILED: &str = "FAILED";
const KILLED: &str = "KILLED";

/// In MLflow's words. Of a script that ended well, it is what its client says of the newest run when the interpreter ends;
/// it is silent about those around that one, about other processes' and about those of its lower interface.
fn status(outcome: &Outcome) -> &'static str {
    match outcome {
        Outcome::Exit(Exit::Stopped | Exit::Deadline) => KILLED,
        Outcome::Exit(Exit::Code(0)) => FINISHED,
        Outcome::Exit(_) | Outcome::Refused(_) | Outcome::Lost(_) | Outcome::Failed(_) => FAILED,
    }
}

/// How many machines have come after the first by then. Their clocks may differ from ours by less than what lies between
/// two of them; a first one's may not, and needs no telling apart.
fn machines_before(state: &State, began: u64) -> usize {
    let came = state.rentals.iter().filter_map(|rental| rental.came);
    came.skip(1).filter(|came| millis(*came) <= began).count()
}

fn millis(at: OffsetDateTime) -> u64 {
    u64::try_from(at.unix_timestamp_nanos() / 1_000_000).unwrap_or(0)
}

/// When the machine was last heard of until then, by what came home of its load.
fn last_sample(samples: &str, until: u64) -> Option<u64> {
    #[derive(Deserialize)]
    struct Moment {
        at: u64,
    }
    let moments = samples.lines().filter_map(|line| serde_json::from_str::<Moment>(line).ok());
    moments.map(|moment| moment.at).filter(|at| *at <= until).max()
}

#[cfg(test)]
#[path = "final_status/tests.rs"]
mod tests;
