//! Where runs are kept: one directory each, and in it a journal whose lock is the lease. Whoever holds it drives the
//! run; everybody else reads, or leaves a note for who holds it.

use super::{
    left::Left,
    spec::RunId,
    state::{Entry, Event, State, replay},
};
use crate::{
    config::Config,
    host::{
        Busy, Host,
        beneath::{Beneath, OpenFile, Rel, Stamp},
    },
    journal::{Damaged, Journal, or_mend},
    ui::Try as _,
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

/// The code of a run of ours, as of `gpu doctor`.
pub fn checkout(run: &RunId) -> PathBuf {
    dir(run).join("checkout")
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
    dir(run).join("left.json")
}

/// The events tell one story: whatever comes after a gap in it cannot be gone on from.
fn mend(run: &RunId) -> impl Fn(&Damaged) -> String {
    let path = journal(run).display().to_string();
    let sweep = "echoes-appliance gpu sweep";
    move |damaged| match damaged.line - 1 {
        0 => format!(
            "keep a copy, and begin without it: mv {path} {path}.damaged; `{sweep}` then gives back what is rented for it"
        ),
        good => format!(
            "keep a copy, and go on from the lines before it: cp -a {path} {path}.damaged && \
             head -n {good} {path}.damaged > {path}\n\
             or begin without it: mv {path} {path}.damaged; `{sweep}` then gives back what is rented for it"
        ),
    }
}

/// The state that whole lines tell of. A story that cannot be is as bad as a line that cannot be read.
fn told(run: &RunId, entries: &[Entry]) -> Result<Option<State>> {
    let path = journal(run).display().to_string();
    replay(entries).with_context(|| format!("reading {path}")).or_try(format!(
        "if somebody changed that file, put it back as it was; else keep it, and begin without it: mv {path} {path}.damaged; \
         `echoes-appliance gpu sweep` then gives back what is rented for it"
    ))
}

fn open(host: &Host, run: &RunId) -> Result<(Journal<Entry>, Vec<Entry>)> {
    or_mend(Journal::open(host, &journal(run)), mend(run))
}

fn read(host: &Host, run: &RunId) -> Result<Vec<Entry>> {
    or_mend(Journal::read(host, &journal(run)), mend(run))
}

/// Where results come home to, a directory for each run.
pub fn all_results(config: &Config) -> PathBuf {
    config.data.path.to_path().join("azure_results")
}

pub fn results(config: &Config, run: &RunId) -> PathBuf {
    all_results(config).join(run.as_str())
}

/// A file among a run's results, in the directory of all results: they are a person's, and whoever looks may be root, so no
/// link in there is followed.
pub fn open_result(host: &Host, all: &Path, run: &RunId, name: &str) -> Result<Option<(OpenFile, Stamp)>> {
    let Some(dir) = Beneath::open(host, all)? else { return Ok(None) };
    dir.read(&Rel::new(&format!("{run}/{name}"))?)
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
        self.journal.append(&Entry::new(at, event))?;
        self.state = next;
        Ok(())
    }
}

/// Begin a run. Nothing is rented yet; whoever holds it next goes on.
pub fn create(host: &Host, run: &RunId, at: OffsetDateTime, asked: &Event) -> Result<Held> {
    let (mut journal, entries) = match open(host, run) {
        Err(error) if error.is::<Busy>() => bail!("there is a run called {run}, and it is under way"),
        opened => opened?,
    };
    anyhow::ensure!(entries.is_empty(), "there was a run called {run} already");
    let state = State::asked(at, asked).context("a run begins with what was asked for")?;
    journal.append(&Entry::new(at, asked))?;
    Ok(Held { journal, state })
}

/// Take the run in hand. None: somebody else has it, or there is no such run.
pub fn hold(host: &Host, run: &RunId) -> Result<Option<Held>> {
    // Opening it would make it.
    if !host.exists(&journal(run))? {
        return Ok(None);
    }
    let (journal, entries) = match open(host, run) {
        Err(error) if error.is::<Busy>() => return Ok(None),
        opened => opened?,
    };
    Ok(told(run, &entries)?.map(|state| Held { journal, state }))
}

/// What happened so far, for those who only ask.
pub fn events(host: &Host, run: &RunId) -> Result<Vec<(OffsetDateTime, Event)>> {
    Ok(read(host, run)?.into_iter().map(|Entry { at, event }| (at, event)).collect())
}

/// Where it stands; none when there is no such run.
pub fn state(host: &Host, run: &RunId) -> Result<Option<State>> {
    told(run, &read(host, run)?)
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

/// What of its results did not come home at the last look, for who watches. The journal has what is left in the end.
pub fn put_left(host: &Host, run: &RunId, left: &Left) -> Result<()> {
    host.write(&left_path(run), 0o600, &serde_json::to_vec(left)?)
}

pub fn read_left(host: &Host, run: &RunId) -> Result<Option<Left>> {
    let Some(bytes) = host.read(&left_path(run))? else { return Ok(None) };
    serde_json::from_slice(&bytes).map(Some).with_context(|| format!("reading {}", left_path(run).display()))
}

/// There is nothing more to be said or asked.
pub fn hush(host: &Host, run: &RunId) -> Result<()> {
    host.remove(&pulse(run))?;
    host.remove(&saying(run))?;
    host.remove(&stop(run))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        gpu::{job::Exit, provider::Offer, spec::Spec, state::Phase},
        host::{Cmd, System},
        ui::told,
    };

    /// A run of which two things are known, the second with a word that is no ASCII.
    fn scene() -> (tempfile::TempDir, Host, RunId) {
        let dir = tempfile::tempdir().unwrap();
        let host = Host::new(dir.path(), System);
        let (run, at) = (RunId::try_from("r1".to_owned()).unwrap(), OffsetDateTime::UNIX_EPOCH);
        let offers = vec![Offer::example("größe"), Offer::example("b")];
        let asked = Event::Asked { spec: Box::new(Spec::example("r1")), offers: offers.clone() };
        let mut held = create(&host, &run, at, &asked).unwrap();
        held.note(at, &Event::Renting { offer: offers[0].clone() }).unwrap();
        drop(held);
        (dir, host, run)
    }

    #[test]
    fn a_run_whose_journal_was_torn_in_a_character_can_be_driven_and_ended() {
        let (_dir, host, run) = scene();
        let whole = host.read(&journal(&run)).unwrap().unwrap();
        let torn =
            [&whole[..], b"{\"v\":2,\"at\":\"2026-11-24T15:30:08Z\",\"event\":\"lost\",\"why\":\"caf\xc3"]
                .concat();
        host.write(&journal(&run), 0o600, &torn).unwrap();
        assert_eq!(events(&host, &run).unwrap().len(), 2);
        assert_eq!(state(&host, &run).unwrap().unwrap().phase, Phase::Rent);
        let mut held = hold(&host, &run).unwrap().unwrap();
        held.note(OffsetDateTime::UNIX_EPOCH, &Event::Ending { exit: Exit::Stopped }).unwrap();
        drop(held);
        assert_eq!(state(&host, &run).unwrap().unwrap().phase, Phase::Return);
    }

    #[test]
    fn a_damaged_run_names_its_line_and_the_way_on_which_works() {
        let (dir, host, run) = scene();
        let path = journal(&run);
        let whole = String::from_utf8(host.read(&path).unwrap().unwrap()).unwrap();
        for (damaged, line) in
            [(whole.replacen("renting", "runting", 1), 2), (whole.replacen("asked", "aske", 1), 1)]
        {
            host.write(&path, 0o600, damaged.as_bytes()).unwrap();
            let errors = [
                state(&host, &run).unwrap_err(),
                events(&host, &run).unwrap_err(),
                hold(&host, &run).err().unwrap(),
            ];
            let mut way = String::new();
            for error in errors {
                let (said, hint) = told(&error);
                let expected = format!("{} is damaged in line {line}: its checksum is wrong", path.display());
                assert_eq!(said, [expected]);
                way = hint.unwrap().to_owned();
                assert!(way.contains("gpu sweep"), "{way}");
            }
            // As a person would type what stands there, but for where this machine's files are.
            let (_, way) = way.split_once(": ").unwrap();
            let way = way.lines().next().unwrap().split(';').next().unwrap();
            let way = way.replace("/var/lib", &dir.path().join("var/lib").display().to_string());
            host.run(&Cmd::new("sh", ["-c", &way])).unwrap();
            let phase = state(&host, &run).unwrap().map(|state| (state.phase, state.rentals.len()));
            assert_eq!(phase, (line == 2).then_some((Phase::Rent, 0)));
            let kept = PathBuf::from(format!("{}.damaged", path.display()));
            assert_eq!(host.read(&kept).unwrap().unwrap(), damaged.as_bytes());
        }
    }

    #[test]
    fn a_story_that_cannot_be_names_its_file() {
        let (_dir, host, run) = scene();
        let whole = host.read(&journal(&run)).unwrap().unwrap();
        let last = whole.split_inclusive(|byte| *byte == b'\n').next_back().unwrap();
        host.write(&journal(&run), 0o600, &[&whole[..], last].concat()).unwrap();
        let error = state(&host, &run).unwrap_err();
        let (said, hint) = told(&error);
        assert!(said[0].contains("runs/r1/journal.jsonl") && said[1].starts_with("entry 3 "), "{said:?}");
        assert!(hint.unwrap().contains("gpu sweep"), "{hint:?}");
    }
}
