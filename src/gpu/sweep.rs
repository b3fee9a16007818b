//! Finish what nobody holds: runs whose driver died, and what is rented for a run that is over. Run by a timer and at
//! every boot. It starts drivers and is one for none, so that one long run keeps nobody waiting.

use super::{
    final_status,
    provider::Provider,
    runs,
    spec::RunId,
    state::{Phase, State},
};
use crate::host::Host;
use anyhow::{Error, Result, ensure};
use std::fmt;
use time::OffsetDateTime;

/// What nobody looks after.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Loose {
    /// A run that is not over, and that nobody drives.
    Run(RunId, Phase),
    /// Something that is rented for a run that is over, or that never was.
    Stray(RunId, String),
    /// Something of ours that names no run: for a person to look at.
    Nameless(String),
    /// A run that is over, and MLflow, which was down, shows some of it as running.
    Untold(RunId),
}

impl fmt::Display for Loose {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Run(run, phase) => write!(f, "{run}: {phase}, and nobody drives it"),
            Self::Stray(run, id) => write!(f, "{run}: over, and {id} is still there"),
            Self::Nameless(id) => {
                write!(f, "{id} is ours and names no run: look at it, and remove it by hand")
            }
            Self::Untold(run) => write!(f, "{run}: over, and MLflow is not told yet how it ended"),
        }
    }
}

/// What was found, and what could not be looked at. A provider that does not answer keeps no run waiting.
#[derive(Debug, Default)]
pub struct Found {
    pub loose: Vec<Loose>,
    pub errors: Vec<Error>,
}

/// A run that is in somebody's hands is nobody else's business.
pub fn look(host: &Host, providers: &[&dyn Provider]) -> Result<Found> {
    let mut found = Found::default();
    // First what is rented, then the journals: what is rented has had its journal before it was.
    let mut rented = Vec::new();
    for provider in providers {
        match provider.list() {
            Ok(things) => rented.extend(things),
            Err(error) => found.errors.push(error),
        }
    }
    for run in runs::all(host)? {
        // The lock is let go at once; whoever is started takes it again, or finds it taken.
        match runs::hold(host, &run) {
            Ok(Some(held)) if held.state.phase != Phase::Done => {
                found.loose.push(Loose::Run(run, held.state.phase));
            }
            // Whoever is started for that holds it meanwhile.
            Ok(Some(_)) => match final_status::read(host, &run) {
                Ok(Some(status)) if status.is_due(OffsetDateTime::now_utc()) => {
                    found.loose.push(Loose::Untold(run));
                }
                Ok(_) => {}
                Err(error) => found.errors.push(error),
            },
            Ok(None) => {}
            Err(error) => found.errors.push(error),
        }
    }
    for thing in rented {
        match thing.run.map(|run| (runs::state(host, &run), run)) {
            None => found.loose.push(Loose::Nameless(thing.id)),
            Some((Ok(state), run)) if is_over(state.as_ref()) => {
                found.loose.push(Loose::Stray(run, thing.id));
            }
            // What its journal says cannot be read, and was told of above.
            Some(_) => {}
        }
    }
    Ok(found)
}

fn is_over(state: Option<&State>) -> bool {
    state.is_none_or(|state| state.phase == Phase::Done)
}

/// Do something about one of them.
pub fn sweep(one: &Loose, providers: &[&dyn Provider], start: &dyn Fn(&RunId) -> Result<()>) -> Result<()> {
    match one {
        Loose::Run(run, _) | Loose::Untold(run) => start(run),
        Loose::Stray(run, _) => {
            let left: Vec<Vec<String>> =
                providers.iter().map(|provider| provider.give_back(run)).collect::<Result<_>>()?;
            let left = left.concat();
            ensure!(left.is_empty(), "still there, and tried again by the next sweep: {}", left.join(", "));
            Ok(())
        }
        Loose::Nameless(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        gpu::{
            provider::{Offer, local::Local, room},
            spec::Spec,
            state::Event,
        },
        host::System,
    };
    use std::{cell::RefCell, path::Path};

    #[test]
    fn what_nobody_holds_is_taken_up_and_what_is_over_is_given_back() {
        let dir = tempfile::tempdir().unwrap();
        let host = Host::new(dir.path(), System);
        let at = OffsetDateTime::UNIX_EPOCH;
        let run = |name: &str| RunId::try_from(name.to_owned()).unwrap();
        let begin = |name: &str| {
            let spec = Box::new(Spec::example(name));
            let asked = Event::Asked { spec, offers: vec![Offer::example("a")] };
            runs::create(&host, &run(name), at, &asked).unwrap();
            host.write(&room(Path::new("/homes/ana"), &run(name)).join("code/x"), 0o644, b"").unwrap();
        };
        ["dead", "driven", "over"].into_iter().for_each(begin);
        let mut over = runs::hold(&host, &run("over")).unwrap().unwrap();
        for event in [Event::Ending { exit: crate::gpu::job::Exit::Stopped }, Event::Returned] {
            over.note(at, &event).unwrap();
        }
        drop(over);
        let _driver = runs::hold(&host, &run("driven")).unwrap().unwrap();
        // Its journal was lost, as on a headquarters set up anew.
        host.write(&room(Path::new("/homes/ana"), &run("unknown")).join("log"), 0o644, b"").unwrap();
        host.write(Path::new("/homes/ana/runs/What Is This"), 0o644, b"").unwrap();
        // A journal that says nothing yet is no run.
        host.write(&runs::dir(&run("torn")).join("journal.jsonl"), 0o600, b"{\"v\":1,\"at").unwrap();

        let local = Local::new(&host, "/homes".into());
        let found = look(&host, &[&local]).unwrap();
        let stray = |name: &str| Loose::Stray(run(name), format!("/homes/ana/runs/{name}"));
        let nameless = Loose::Nameless("/homes/ana/runs/What Is This".into());
        assert_eq!(
            found.loose,
            [Loose::Run(run("dead"), Phase::Rent), nameless, stray("over"), stray("unknown")]
        );
        assert!(found.errors.is_empty(), "{:?}", found.errors);

        let started = RefCell::new(Vec::new());
        for one in &found.loose {
            let start = |run: &RunId| {
                started.borrow_mut().push(run.clone());
                Ok(())
            };
            sweep(one, &[&local], &start).unwrap();
        }
        assert_eq!(started.into_inner(), [run("dead")]);
        assert_eq!(host.list(Path::new("/homes/ana/runs")).unwrap(), ["What Is This", "dead", "driven"]);
    }

    #[test]
    fn a_run_that_mlflow_was_not_told_of_is_taken_up_until_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let host = Host::new(dir.path(), System);
        let (run, at) = (RunId::try_from("over".to_owned()).unwrap(), OffsetDateTime::UNIX_EPOCH);
        let spec = Box::new(Spec::example("over"));
        let asked = Event::Asked { spec, offers: vec![Offer::example("a")] };
        let mut held = runs::create(&host, &run, at, &asked).unwrap();
        held.note(at, &Event::Ending { exit: crate::gpu::job::Exit::Stopped }).unwrap();
        final_status::note(&host, &held.state, at).unwrap();
        assert_eq!(look(&host, &[]).unwrap().loose, [], "its driver sees to that");
        held.note(at, &Event::Returned).unwrap();
        let state = held.state.clone();
        drop(held);
        let untold = || look(&host, &[]).unwrap().loose;
        assert_eq!(untold(), [Loose::Untold(run.clone())]);
        let started = RefCell::new(Vec::new());
        let start = |run: &RunId| {
            started.borrow_mut().push(run.clone());
            Ok(())
        };
        sweep(&untold()[0], &[], &start).unwrap();
        assert_eq!(started.into_inner(), [run]);
        // Nobody is there: it is put off, and tried again by a later sweep.
        let now = OffsetDateTime::now_utc();
        final_status::tell(&host, Some("http://127.0.0.1:9"), &state, "", now).unwrap_err();
        assert_eq!(untold(), []);
        host.write(&runs::dir(&state.spec.run).join("mlflow.json"), 0o600, b"{").unwrap();
        let found = look(&host, &[]).unwrap();
        let said = format!("{:#}", found.errors[0]);
        assert!(found.loose.is_empty() && said.contains("runs/over/mlflow.json is damaged"), "{said}");
    }

    #[test]
    fn a_journal_that_cannot_be_read_keeps_no_other_run_waiting() {
        let dir = tempfile::tempdir().unwrap();
        let host = Host::new(dir.path(), System);
        let future = b"{\"v\":9,\"at\":\"2030-01-01T00:00:00Z\",\"event\":\"beamed\"}\n";
        host.write(Path::new("/var/lib/echoes-appliance/runs/future/journal.jsonl"), 0o600, future).unwrap();
        let spec = Box::new(Spec::example("now"));
        let asked = Event::Asked { spec, offers: vec![Offer::example("a")] };
        runs::create(&host, &RunId::try_from("now".to_owned()).unwrap(), OffsetDateTime::UNIX_EPOCH, &asked)
            .unwrap();
        let damaged = b"{\"v\":1,\"at\":\"2026-01-01T00:00:00Z\",\"event\":\"started\n{\"v\":1}\n";
        host.write(Path::new("/var/lib/echoes-appliance/runs/damaged/journal.jsonl"), 0o600, damaged)
            .unwrap();
        let found = look(&host, &[]).unwrap();
        assert_eq!(found.loose.len(), 1);
        let said: Vec<_> = found.errors.iter().map(|error| crate::ui::told(error).0.concat()).collect();
        assert!(said[0].contains("runs/damaged/journal.jsonl is damaged in line 1"), "{said:?}");
        assert!(said[1].contains("runs/future/journal.jsonl was written by a newer"), "{said:?}");
    }
}
