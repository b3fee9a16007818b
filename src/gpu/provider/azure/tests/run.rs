//! A whole run at the simulated Azure: the runner itself, with a script that takes hours of a clock that nobody waits
//! for.

use super::stage::{SMALL, Stage, T4, offer, spec};
use crate::gpu::{
    home::Fetched,
    job::{Exit, Hopeless, Job, Stand},
    provider::{Machine, Offer, Provider as _},
    runner::{Clock, Loan, Runner},
    runs,
    spec::Spec,
    state::{Event, Keep, Outcome, Phase, Pulled, State},
};
use anyhow::{Error, Result, bail, ensure};
use kit::cloud::{Act, Cloud, Kind, Power, Rule};
use std::{cell::Cell, sync::Arc, time::Duration};
use time::OffsetDateTime;

/// A script that takes so long, on whichever machine there is.
struct Script {
    cloud: Arc<Cloud>,
    long: Duration,
    began: Cell<Option<(OffsetDateTime, usize)>>,
    /// Taken away once, so long after its beginning.
    evicted: Cell<Option<Duration>>,
    born: Cell<usize>,
    /// There is no room for what it has made.
    full: Cell<bool>,
}

impl Script {
    fn new(stage: &Stage, long: Duration) -> Self {
        let cloud = Arc::clone(&stage.cloud);
        Self {
            cloud,
            long,
            began: Cell::new(None),
            evicted: Cell::new(None),
            born: Cell::new(0),
            full: Cell::new(false),
        }
    }

    fn now(&self) -> OffsetDateTime {
        self.cloud.now().date()
    }

    /// The machine, if it is there and on.
    fn there(&self) -> Result<()> {
        let machines = self.cloud.ids(Kind::Vm);
        ensure!(machines.len() <= 1, "{machines:?}");
        let on = machines.first().is_some_and(|id| self.cloud.power(id) == Some(Power::Running));
        ensure!(on, "nobody answers");
        Ok(())
    }
}

impl Job for Script {
    fn prepare(&self, _: &Spec, _: &Machine) -> Result<()> {
        self.there()
    }

    fn start(&self, _: &Spec, _: &Machine) -> Result<()> {
        self.there()?;
        self.born.set(self.born.get() + 1);
        self.began.set(Some((self.now(), self.born.get())));
        Ok(())
    }

    fn poll(&self, _: &Spec, _: &Machine) -> Result<Option<Stand>> {
        let Some((began, _)) = self.began.get() else { bail!("not started") };
        let spent = self.now() - began;
        if self.evicted.get().is_some_and(|at| spent >= at) {
            self.evicted.set(None);
            self.cloud.evict_now(&self.cloud.ids(Kind::Vm)[0]);
        }
        self.there()?;
        Ok(Some(if spent >= self.long { Stand::Exited(Exit::Code(0)) } else { Stand::Running }))
    }

    fn stop(&self, _: &Spec, _: &Machine) -> Result<()> {
        self.there()
    }

    fn fetch(&self, _: &Spec, _: &Machine) -> Result<Fetched> {
        if self.full.get() {
            return Err(Error::msg("the disk is full").context(Hopeless));
        }
        self.there().map(|()| Fetched::example(true))
    }
}

impl Loan for Script {
    fn lend(&self, _: &State) -> Result<()> {
        Ok(())
    }

    fn delivered(&self, _: &State) -> Result<()> {
        Ok(())
    }

    fn take_back(&self, _: &State) -> Result<()> {
        Ok(())
    }
}

impl Clock for Script {
    fn now(&self) -> OffsetDateTime {
        Script::now(self)
    }

    fn wait(&self, long: Duration) {
        // The script is looked at every two seconds: an hour of that is looked at every minute here.
        let long = if self.began.get().is_some() { long.max(Duration::from_secs(60)) } else { long };
        self.cloud.advance(long);
    }
}

fn drive(stage: &Stage, script: &Script, spec: &Spec, offers: Vec<Offer>) -> State {
    let asked = Event::Asked { spec: Box::new(spec.clone()), offers };
    let host = &stage.host;
    let mut held = runs::create(host, &spec.run, script.now(), &asked).unwrap();
    runner(stage, script).drive(&mut held).unwrap();
    held.state.clone()
}

fn runner<'a>(stage: &'a Stage, script: &'a Script) -> Runner<'a> {
    let (host, provider) = (stage.host.as_ref(), &stage.azure);
    Runner { host, provider, job: script, loan: script, clock: script, say: &|_| {} }
}

#[test]
fn a_run_longer_than_its_lease_ends_by_itself_alone() {
    let Some(stage) = Stage::new(|_| {}) else { return };
    let script = Script::new(&stage, 5 * stage.settings.lease / 2);
    let spec = spec("long");
    let state = drive(&stage, &script, &spec, vec![offer(T4, "eastus")]);
    assert_eq!(
        (state.phase, &state.outcome),
        (Phase::Done, &Some(Outcome::Exit(Exit::Code(0)))),
        "{state:#?}"
    );
    assert_eq!(script.born.get(), 1, "it was never begun again");
    assert!(!stage.cloud.story().contains("/start?"), "its timer was put off in time, each time");
    stage.assert_clean();
}

#[test]
fn a_run_goes_on_elsewhere_when_there_is_no_room_and_when_it_is_taken_away() {
    let Some(stage) = Stage::new(|settings| settings.address = Some("20.9.9.9".parse().unwrap())) else {
        return;
    };
    let script = Script::new(&stage, Duration::from_secs(3600));
    script.evicted.set(Some(Duration::from_secs(1200)));
    let full = Rule::once("PUT", "/virtualMachines/", Act::allocation_failed());
    stage.cloud.spoil([full]);
    let spot = |region: &str| Offer { spot: true, ..offer(T4, region) };
    let spec = spec("wanders");
    let offers = vec![spot("eastus"), spot("westus2"), offer(T4, "eastus")];
    let state = drive(&stage, &script, &spec, offers);
    assert_eq!(
        (state.phase, &state.outcome),
        (Phase::Done, &Some(Outcome::Exit(Exit::Code(0)))),
        "{state:#?}"
    );
    let came: Vec<_> = state.rentals.iter().map(|rental| rental.came.is_some()).collect();
    assert_eq!((came, script.born.get()), (vec![false, true, true], 2));
    assert!(state.rentals.iter().all(|rental| rental.returned.is_some()));
    stage.assert_clean();
}

#[test]
fn what_cannot_come_home_is_kept_and_its_machine_is_given_back() {
    let Some(stage) = Stage::new(|_| {}) else { return };
    let script = Script::new(&stage, Duration::from_secs(1200));
    script.full.set(true);
    let spec = spec("full");
    let state = drive(&stage, &script, &spec, vec![offer(T4, "eastus")]);
    assert_eq!(
        (state.phase, &state.outcome),
        (Phase::Done, &Some(Outcome::Exit(Exit::Code(0)))),
        "{state:#?}"
    );
    let Some(Keep::At(place)) = &state.kept else { panic!("{state:#?}") };
    assert_eq!(stage.cloud.costing(), std::slice::from_ref(place));
    assert_eq!(stage.azure.list().unwrap(), [], "it is kept on purpose");
    // There is room now, and somebody wants it.
    script.full.set(false);
    script.evicted.set(None);
    let small = vec![offer(SMALL, "eastus"), offer("Standard_B2ts_v2", "eastus")];
    stage.cloud.spoil([Rule::once("PUT", "/virtualMachines/", Act::allocation_failed())]);
    let mut held = runs::hold(&stage.host, &spec.run).unwrap().unwrap();
    held.note(script.now(), &Event::Pulling { offers: small }).unwrap();
    runner(&stage, &script).drive(&mut held).unwrap();
    let state = held.state.clone();
    assert_eq!((state.phase, &state.outcome), (Phase::Done, &Some(Outcome::Exit(Exit::Code(0)))));
    assert_eq!((state.pulled, state.kept, state.unfetched), (Some(Pulled::Home), None, None));
    let came: Vec<_> = state.rentals.iter().map(|rental| rental.came.is_some()).collect();
    assert_eq!((came, script.born.get()), (vec![true, false, true], 1), "nothing was begun again");
    assert_eq!(stage.cloud.costing(), Vec::<String>::new(), "{}", stage.cloud.story());
    assert_eq!(stage.azure.list().unwrap(), []);
    stage.cloud.assert_honest();
}
