//! Catastrophes by enumeration: a world whose every effect can be the last thing a driver does, or can fail, once or
//! for an hour. Its clock is its own, and nothing here waits.

use super::*;
use crate::{
    gpu::{
        job::{Exit, Nonsense},
        left::Left,
        provider::{Machine, Offer, Rented},
        pull,
        spec::{RunId, Spec, Spot},
        state::{Keep, Pulled, State},
        target::Target,
    },
    host::System,
};
use anyhow::{bail, ensure};
use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
};
use time::macros::datetime;

const BEGAN: OffsetDateTime = datetime!(2026-11-24 02:00 UTC);

/// How long the script takes, and what it exits with.
const LONG: Duration = Duration::from_secs(5);
const CODE: i32 = 7;

/// What goes on in the world beside us.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Story {
    Plain,
    /// The first offer cannot be had.
    Refused,
    /// The first machine is taken away while the script runs.
    Evicted,
    /// A person stops it while the script runs.
    Stopped,
    /// A person stops it in the moment in which it starts.
    StoppedAtStart,
    /// It is stopped before anything was done.
    StoppedAtOnce,
    /// What it has made does not fit where it should come home to.
    Full,
    /// The same; then there is room, and a person wants what was kept.
    Pulled,
    /// The same, and there is still no room.
    PulledInVain,
    /// The same, and a person stops it.
    PulledAndStopped,
    /// Something that it has made cannot be read.
    Left,
    /// The same on a machine that costs nothing.
    LeftForFree,
    /// The same; a person wants it all the same.
    LeftAndPulled,
}

impl Story {
    fn is_pulled(self) -> bool {
        matches!(self, Self::Pulled | Self::PulledInVain | Self::PulledAndStopped | Self::LeftAndPulled)
    }

    fn is_left(self) -> bool {
        matches!(self, Self::Left | Self::LeftForFree | Self::LeftAndPulled)
    }
}

/// What cannot be read.
fn left() -> Left {
    let mut left = Left::default();
    left.add("out/key", "permission denied", 3);
    left
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fails {
    Once,
    ForAnHour,
}

/// Somewhere a machine.
#[derive(Default)]
struct Rig {
    prepared: bool,
    started: Option<OffsetDateTime>,
    stopped: bool,
}

struct World {
    story: Story,
    host: Host,
    now: Cell<OffsetDateTime>,
    rigs: RefCell<BTreeMap<String, Rig>>,
    most: Cell<usize>,
    rents: Cell<u32>,
    starts: Cell<u32>,
    lent: Cell<bool>,
    /// The results of a script that ended are at home.
    home: Cell<bool>,
    ended: Cell<bool>,
    /// There is room for what was made.
    room: Cell<bool>,
    /// There is a copy of a machine's disk.
    kept: Cell<bool>,
    /// It was asked for before anybody had written that down.
    unannounced: Cell<bool>,
    effects: Cell<u32>,
    die_at: Cell<Option<u32>>,
    fail_at: Cell<Option<(u32, Fails)>>,
    failing_until: Cell<Option<OffsetDateTime>>,
}

impl World {
    fn new(story: Story, dir: &Path) -> Self {
        Self {
            story,
            host: Host::new(dir, System),
            now: Cell::new(BEGAN),
            rigs: RefCell::default(),
            most: Cell::new(0),
            rents: Cell::new(0),
            starts: Cell::new(0),
            lent: Cell::new(false),
            home: Cell::new(false),
            ended: Cell::new(false),
            room: Cell::new(!matches!(story, Story::Full) && (!story.is_pulled() || story.is_left())),
            kept: Cell::new(false),
            unannounced: Cell::new(false),
            effects: Cell::new(0),
            die_at: Cell::new(None),
            fail_at: Cell::new(None),
            failing_until: Cell::new(None),
        }
    }

    /// Each effect has a moment before it and a moment after it.
    fn effect<T>(&self, doing: impl FnOnce() -> Result<T>) -> Result<T> {
        let n = self.effects.replace(self.effects.get() + 2);
        if self.die_at.get() == Some(n) {
            panic!("power cut before");
        }
        if let Some((_, fails)) = self.fail_at.get().filter(|(at, _)| *at == n || *at == n + 1) {
            self.fail_at.set(None);
            let long = if fails == Fails::Once { Duration::ZERO } else { Duration::from_secs(3600) };
            self.failing_until.set(Some(self.now.get() + long));
            if self.die_at.get() != Some(n + 1) && self.effects.get().is_multiple_of(4) {
                // An answer that was lost: it was done, and we do not know.
                drop(doing());
                bail!("the answer was lost");
            }
            bail!("it failed");
        }
        ensure!(self.failing_until.get().is_none_or(|until| self.now.get() >= until), "it still fails");
        let done = doing()?;
        self.most.set(self.most.get().max(self.rigs.borrow().len()));
        if self.die_at.get() == Some(n + 1) {
            panic!("power cut after");
        }
        Ok(done)
    }

    fn on_machine<T>(&self, doing: impl FnOnce(&mut Rig) -> Result<T>) -> Result<T> {
        match self.rigs.borrow_mut().values_mut().next() {
            Some(machine) => doing(machine),
            None => bail!("nobody answers"),
        }
    }

    fn ended(&self, machine: &Rig) -> bool {
        machine.stopped || machine.started.is_some_and(|at| self.now.get() - at >= LONG)
    }
}

impl Clock for World {
    fn now(&self) -> OffsetDateTime {
        self.now.get()
    }

    fn wait(&self, long: Duration) {
        self.now.set(self.now.get() + long);
        let running = self.rigs.borrow().values().any(|machine| machine.started.is_some());
        match self.story {
            Story::Evicted if running && self.rents.get() == 1 && !self.ended.get() => {
                self.rigs.borrow_mut().clear();
            }
            Story::Stopped if running => runs::ask_to_stop(&self.host, &run()).unwrap(),
            _ => {}
        }
    }
}

impl Provider for World {
    fn rent(&self, _: &Spec, offer: &Offer) -> Result<Rent> {
        self.effect(|| {
            if self.story == Story::Refused && offer.size == "a" {
                let said = "AllocationFailed".into();
                return Ok(Rent::Refused(Refusal { class: Class::Capacity, said, hint: None }));
            }
            if self.rigs.borrow().is_empty() {
                self.rents.set(self.rents.get() + 1);
                self.rigs.borrow_mut().insert(offer.size.clone(), Rig::default());
                return Ok(Rent::Coming("booting".into()));
            }
            Ok(Rent::Here(Machine { target: Target::Local, home: "/home".into(), data: None }))
        })
    }

    fn give_back(&self, _: &RunId) -> Result<Vec<String>> {
        // It takes its time to go.
        self.effect(|| Ok(std::mem::take(&mut *self.rigs.borrow_mut()).into_keys().collect()))
    }

    fn list(&self) -> Result<Vec<Rented>> {
        Ok(Vec::new())
    }

    fn is_paid(&self) -> bool {
        self.story != Story::LeftForFree
    }

    fn can_keep(&self) -> bool {
        self.story == Story::Full || self.story.is_pulled() || self.story.is_left()
    }

    fn keep(&self, run: &RunId) -> Result<Option<String>> {
        let told = runs::state(&self.host, run)?.is_some_and(|state| state.kept.is_some());
        self.unannounced.set(self.unannounced.get() || !told);
        self.effect(|| {
            let there = !self.rigs.borrow().is_empty();
            self.kept.set(self.kept.get() || there);
            Ok(self.kept.get().then(|| "/copy".into()))
        })
    }

    fn rent_from_copy(&self, _: &Spec, offer: &Offer, copy: &str) -> Result<Rent> {
        self.effect(|| {
            ensure!(self.kept.get() && copy == "/copy", "it is not there any more");
            if self.rigs.borrow().is_empty() {
                self.rents.set(self.rents.get() + 1);
                // As it was, when its disk was copied.
                let machine = Rig { prepared: true, started: Some(BEGAN), stopped: false };
                self.rigs.borrow_mut().insert(offer.size.clone(), machine);
                return Ok(Rent::Coming("booting".into()));
            }
            Ok(Rent::Here(Machine { target: Target::Local, home: "/home".into(), data: None }))
        })
    }

    fn forget(&self, _: &RunId) -> Result<bool> {
        // It takes its time to go.
        self.effect(|| Ok(!self.kept.replace(false)))
    }

    fn still_there(&self, _: &RunId) -> Result<bool> {
        Ok(!self.rigs.borrow().is_empty())
    }
}

impl Job for World {
    fn prepare(&self, _: &Spec, _: &Machine) -> Result<()> {
        self.effect(|| {
            self.on_machine(|machine| {
                machine.prepared = true;
                Ok(())
            })
        })
    }

    fn start(&self, _: &Spec, _: &Machine) -> Result<()> {
        self.effect(|| {
            self.on_machine(|machine| {
                ensure!(machine.prepared, "not prepared");
                if machine.started.is_none() {
                    machine.started = Some(self.now.get());
                    self.starts.set(self.starts.get() + 1);
                    if self.story == Story::StoppedAtStart {
                        runs::ask_to_stop(&self.host, &run())?;
                    }
                }
                Ok(())
            })
        })
    }

    fn poll(&self, _: &Spec, _: &Machine) -> Result<Option<Stand>> {
        self.effect(|| {
            self.on_machine(|machine| {
                Ok(match self.ended(machine) {
                    true if machine.stopped => Some(Stand::Exited(Exit::Stopped)),
                    true => Some(Stand::Exited(Exit::Code(CODE))),
                    // Now and then there is nothing new.
                    false if self.effects.get().is_multiple_of(3) => None,
                    false => Some(Stand::Running),
                })
            })
        })
    }

    fn stop(&self, _: &Spec, _: &Machine) -> Result<()> {
        self.effect(|| {
            self.on_machine(|machine| {
                machine.stopped = true;
                Ok(())
            })
        })
    }

    fn fetch(&self, _: &Spec, _: &Machine) -> Result<Fetched> {
        self.effect(|| {
            self.on_machine(|machine| {
                self.ended.set(self.ended(machine));
                if !self.room.get() {
                    return Err(Error::msg("the disk is full").context(Hopeless));
                }
                self.home.set(self.ended(machine));
                Ok(match self.ended(machine) || machine.started.is_none() {
                    // Now and then there is nothing new.
                    _ if self.effects.get().is_multiple_of(3) => Fetched::UnderWay,
                    true if self.story.is_left() && machine.started.is_some() => Fetched::Home(left()),
                    whole => Fetched::example(whole),
                })
            })
        })
    }
}

impl Loan for World {
    fn lend(&self, _: &State) -> Result<()> {
        self.effect(|| {
            self.lent.set(true);
            Ok(())
        })
    }

    fn delivered(&self, _: &State) -> Result<()> {
        Ok(())
    }

    fn take_back(&self, _: &State) -> Result<()> {
        self.effect(|| {
            self.lent.set(false);
            Ok(())
        })
    }
}

fn run() -> RunId {
    RunId::try_from("r1".to_owned()).unwrap()
}

fn begin(world: &World) {
    let mut spec = Spec::example("r1");
    spec.spot = Spot::Auto;
    let offers = vec![Offer::example("a"), Offer::example("b"), Offer::example("c")];
    runs::create(&world.host, &run(), BEGAN, &Event::Asked { spec: Box::new(spec), offers }).unwrap();
    if world.story == Story::StoppedAtOnce {
        runs::ask_to_stop(&world.host, &run()).unwrap();
    }
}

/// One driver's life.
fn drive(world: &World) -> Result<State> {
    let mut held = runs::hold(&world.host, &run())?.expect("nobody else is here");
    let (provider, job, loan, clock) = (world, world, world, world);
    Runner { host: &world.host, provider, job, loan, clock, say: &|_| {} }.drive(&mut held)?;
    Ok(held.state.clone())
}

/// Drivers, one after the other, until one comes to the end.
fn live(world: &World) -> State {
    for _ in 0..5 {
        match catch_unwind(AssertUnwindSafe(|| drive(world))) {
            Ok(state) => {
                let state = state.unwrap();
                let wanted = world.story.is_pulled() && state.pulled.is_none();
                if !(wanted && state.kept.is_some() && pull(world)) {
                    return state;
                }
            }
            Err(_) => world.die_at.set(None),
        }
    }
    panic!("five drivers died of one fuse");
}

/// A person wants what was kept. Whether there was something.
fn pull(world: &World) -> bool {
    let mut held = runs::hold(&world.host, &run()).unwrap().expect("nobody else is here");
    // Whoever is refused an answer, or dies, asks again.
    let found = (0..3).find_map(|_| {
        let find = AssertUnwindSafe(|| pull::find(&mut held, world, world.now()));
        let found = catch_unwind(find);
        world.failing_until.set(None);
        world.die_at.set(world.die_at.get().filter(|_| found.is_ok()));
        found.ok()?.ok()
    });
    if found.flatten().is_none() {
        return false;
    }
    world.room.set(world.story != Story::PulledInVain);
    let offers = vec![Offer { spot: false, ..Offer::example("small") }];
    held.note(world.now(), &Event::Pulling { offers }).unwrap();
    if world.story == Story::PulledAndStopped {
        runs::ask_to_stop(&world.host, &run()).unwrap();
    }
    true
}

/// Journals are synced at each entry: in memory that costs nothing.
fn dir() -> tempfile::TempDir {
    let shm = Path::new("/dev/shm");
    if shm.is_dir() { tempfile::tempdir_in(shm).unwrap() } else { tempfile::tempdir().unwrap() }
}

fn check(world: &World, state: &State, what: &str) {
    assert_eq!(state.phase, Phase::Done, "{what}");
    assert!(world.rigs.borrow().is_empty(), "a machine is left: {what}");
    assert!(!world.lent.get(), "a user is left: {what}");
    assert!(world.most.get() <= 1, "two machines at once: {what}");
    assert!(world.starts.get() <= world.rents.get(), "started twice on one machine: {what}");
    assert!(state.rentals.iter().all(|rental| rental.returned.is_some()), "{what}");
    let outcome = state.outcome.as_ref().unwrap_or_else(|| panic!("no outcome: {what}"));
    if let Outcome::Exit(Exit::Code(code)) = outcome {
        assert_eq!(*code, CODE, "{what}");
        assert!(
            world.home.get() || state.unfetched.is_some(),
            "results are lost, and nobody says so: {what}"
        );
    }
    match &state.pulled {
        None => {}
        Some(Pulled::Home) => {
            assert!(world.home.get() && state.unfetched.is_none(), "it is not home: {what}");
            assert!(state.kept.is_none(), "what is home is kept, too: {what}");
        }
        Some(Pulled::Ended(_)) => {
            assert!(state.unfetched.is_some() && state.kept.is_some(), "it is gone for good: {what}");
        }
        Some(Pulled::Not) => panic!("nobody says what became of it: {what}"),
    }
    assert!(!world.unannounced.get(), "it was kept before that was written down: {what}");
    assert!(!world.kept.get() || state.kept.is_some(), "a copy costs, and nobody knows of it: {what}");
    assert!(world.kept.get() || !matches!(state.kept, Some(Keep::At(_))), "it is not kept: {what}");
    assert!(
        world.now.get() - BEGAN < time::Duration::hours(4),
        "it cost {}: {what}",
        world.now.get() - BEGAN
    );
}

/// The number of moments of a story in which nothing goes wrong.
fn moments(story: Story) -> u32 {
    let dir = dir();
    let world = World::new(story, dir.path());
    begin(&world);
    let state = live(&world);
    check(&world, &state, "nothing went wrong");
    let expected = match story {
        Story::Stopped | Story::StoppedAtStart | Story::StoppedAtOnce => Outcome::Exit(Exit::Stopped),
        _ => Outcome::Exit(Exit::Code(CODE)),
    };
    let said = "trying again would not help: the disk is full".to_owned();
    let full =
        matches!(story, Story::Full | Story::PulledInVain | Story::PulledAndStopped) || story.is_left();
    let said = if story.is_left() { left().words() } else { said };
    assert_eq!(state.left, story.is_left().then(left), "{story:?}");
    let pulled = match story {
        Story::LeftAndPulled => Some(Pulled::Ended(Outcome::Failed(said.clone()))),
        Story::Pulled => Some(Pulled::Home),
        Story::PulledInVain => Some(Pulled::Ended(Outcome::Failed(said.clone()))),
        Story::PulledAndStopped => Some(Pulled::Ended(Outcome::Exit(Exit::Stopped))),
        _ => None,
    };
    assert_eq!(state.pulled, pulled, "{story:?}");
    let kept = full.then(|| Keep::At("/copy".into()));
    let full = full.then_some(said);
    assert_eq!((state.outcome, state.unfetched, state.kept), (Some(expected), full, kept), "{story:?}");
    let tried = match story {
        Story::Refused | Story::Evicted | Story::Pulled | Story::PulledInVain | Story::LeftAndPulled => 2,
        _ => 1,
    };
    assert_eq!(state.rentals.len(), if story == Story::StoppedAtOnce { 0 } else { tried });
    world.effects.get()
}

#[test]
fn whoever_dies_and_whatever_fails_nothing_rented_is_left_and_nothing_is_lost() {
    // Power cuts are panics here, and expected.
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| {}));
    let outcome = catch_unwind(|| {
        let mut tried = 0;
        let stories = [
            Story::Plain,
            Story::Refused,
            Story::Evicted,
            Story::Stopped,
            Story::StoppedAtStart,
            Story::StoppedAtOnce,
            Story::Full,
            Story::Pulled,
            Story::PulledInVain,
            Story::PulledAndStopped,
            Story::Left,
            Story::LeftForFree,
            Story::LeftAndPulled,
        ];
        for story in stories {
            let all = moments(story);
            for die_at in (0..all).map(Some).chain([None]) {
                // An effect fails as a whole; dying has its before and its after.
                for fail_at in (0..all).step_by(2).map(Some).chain([None]) {
                    for fails in [Fails::Once, Fails::ForAnHour] {
                        let dir = dir();
                        let world = World::new(story, dir.path());
                        begin(&world);
                        world.die_at.set(die_at);
                        world.fail_at.set(fail_at.map(|at| (at, fails)));
                        let state = live(&world);
                        check(
                            &world,
                            &state,
                            &format!("{story:?}, die {die_at:?}, fail {fail_at:?} {fails:?}"),
                        );
                        // Dying costs a little; only what fails costs more.
                        let took = world.now.get() - BEGAN;
                        assert!(
                            fail_at.is_some() || took < time::Duration::minutes(2),
                            "{story:?}, die {die_at:?}: {took}"
                        );
                        tried += 1;
                    }
                }
            }
        }
        tried
    });
    std::panic::set_hook(hook);
    let tried = outcome.unwrap_or_else(|why| {
        let said = why.downcast_ref::<String>().cloned();
        panic!("{}", said.or(why.downcast_ref::<&str>().map(|s| (*s).to_owned())).unwrap_or_default())
    });
    println!("{tried} combinations of stories, deaths and failures");
    assert!(tried > 5000, "{tried}");
}

#[test]
fn a_journal_cut_at_any_byte_is_gone_on_with() {
    for story in [Story::Plain, Story::Evicted] {
        let first = dir();
        let world = World::new(story, first.path());
        begin(&world);
        live(&world);
        let path = runs::dir(&run()).join("journal.jsonl");
        let whole = world.host.read(&path).unwrap().unwrap();
        let beginning = whole.iter().position(|b| *b == b'\n').unwrap() + 1;
        for cut in 0..=whole.len() {
            let dir = dir();
            let world = World::new(Story::Plain, dir.path());
            world.host.write(&path, 0o600, &whole[..cut]).unwrap();
            if cut < beginning {
                // Nothing was asked for, so nothing was done.
                assert!(runs::hold(&world.host, &run()).unwrap().is_none(), "cut at {cut}");
                continue;
            }
            // There is a machine, and its script came to its end meanwhile.
            world.now.set(BEGAN + Duration::from_secs(3600));
            let machine = Rig { prepared: true, started: Some(BEGAN), stopped: false };
            world.rigs.borrow_mut().insert("a".into(), machine);
            let state = live(&world);
            assert_eq!(state.phase, Phase::Done, "cut at {cut}");
            // Only the whole journal says that all was given back.
            assert_eq!(world.rigs.borrow().is_empty(), cut < whole.len(), "cut at {cut}");
        }
    }
}

#[test]
fn a_machine_that_cannot_be_given_back_is_never_called_given_back() {
    let dir = dir();
    let world = World::new(Story::StoppedAtOnce, dir.path());
    begin(&world);
    struct Stubborn<'a>(&'a World, Cell<u32>);
    impl Provider for Stubborn<'_> {
        fn rent(&self, spec: &Spec, offer: &Offer) -> Result<Rent> {
            self.0.rent(spec, offer)
        }
        fn give_back(&self, _: &RunId) -> Result<Vec<String>> {
            self.1.set(self.1.get() + 1);
            // Gone in one look and there again in the next, as lists that lag behind will have it.
            Ok(match self.1.get() {
                2 => vec![],
                n if n < 50 => vec!["nic-r1".into()],
                _ => vec![],
            })
        }
        fn list(&self) -> Result<Vec<Rented>> {
            Ok(Vec::new())
        }
        fn is_paid(&self) -> bool {
            true
        }
    }
    let stubborn = Stubborn(&world, Cell::new(0));
    let mut held = runs::hold(&world.host, &run()).unwrap().unwrap();
    let said = RefCell::new(Vec::new());
    let say = |words: &str| said.borrow_mut().push(words.to_owned());
    let (job, loan, clock) = (&world, &world, &world);
    Runner { host: &world.host, provider: &stubborn, job, loan, clock, say: &say }.drive(&mut held).unwrap();
    assert_eq!(stubborn.1.get(), 51);
    assert!(said.borrow().contains(&"still there: nic-r1".to_owned()));
    assert!(world.now.get() - BEGAN > time::Duration::minutes(20), "it was not asked ever more seldom");
}

#[test]
fn what_trying_again_cannot_mend_is_not_tried_again() {
    let dir = dir();
    let world = World::new(Story::Plain, dir.path());
    begin(&world);
    struct NoScript<'a>(&'a World);
    impl Job for NoScript<'_> {
        fn prepare(&self, _: &Spec, _: &Machine) -> Result<()> {
            Err(Error::msg("train.py is not there").context(Hopeless))
        }
        fn start(&self, spec: &Spec, machine: &Machine) -> Result<()> {
            self.0.start(spec, machine)
        }
        fn poll(&self, spec: &Spec, machine: &Machine) -> Result<Option<Stand>> {
            self.0.poll(spec, machine)
        }
        fn stop(&self, spec: &Spec, machine: &Machine) -> Result<()> {
            self.0.stop(spec, machine)
        }
        fn fetch(&self, spec: &Spec, machine: &Machine) -> Result<Fetched> {
            self.0.fetch(spec, machine)
        }
    }
    let mut held = runs::hold(&world.host, &run()).unwrap().unwrap();
    let (provider, loan, clock) = (&world, &world, &world);
    Runner { host: &world.host, provider, job: &NoScript(&world), loan, clock, say: &|_| {} }
        .drive(&mut held)
        .unwrap();
    let why = "trying again would not help: train.py is not there".to_owned();
    assert_eq!(held.state.outcome, Some(Outcome::Failed(why)));
    assert!(world.rigs.borrow().is_empty());
    assert!(world.now.get() - BEGAN < time::Duration::minutes(1));
}

#[test]
fn a_machine_that_talks_nonsense_is_not_asked_for_hours() {
    let dir = dir();
    let world = World::new(Story::Plain, dir.path());
    begin(&world);
    /// Whatever is done there, this is what the driver hears of it once the script runs.
    struct Liar<'a>(&'a World, Cell<u32>);
    impl Liar<'_> {
        fn lie<T>(&self) -> Result<T> {
            self.1.set(self.1.get() + 1);
            Err(Error::new(Nonsense("a frame of kind 113".into())).context("asking"))
        }
    }
    impl Job for Liar<'_> {
        fn prepare(&self, spec: &Spec, machine: &Machine) -> Result<()> {
            self.0.prepare(spec, machine)
        }
        fn start(&self, spec: &Spec, machine: &Machine) -> Result<()> {
            self.0.start(spec, machine)
        }
        fn poll(&self, _: &Spec, _: &Machine) -> Result<Option<Stand>> {
            self.lie()
        }
        fn stop(&self, _: &Spec, _: &Machine) -> Result<()> {
            Ok(())
        }
        fn fetch(&self, _: &Spec, _: &Machine) -> Result<Fetched> {
            self.lie()
        }
    }
    let mut held = runs::hold(&world.host, &run()).unwrap().unwrap();
    let (provider, loan, clock) = (&world, &world, &world);
    let job = Liar(&world, Cell::new(0));
    Runner { host: &world.host, provider, job: &job, loan, clock, say: &|_| {} }.drive(&mut held).unwrap();
    let why = "asking: a frame of kind 113".to_owned();
    assert_eq!(held.state.outcome, Some(Outcome::Failed(why.clone())));
    assert_eq!(held.state.unfetched, Some(why));
    assert_eq!(job.1.get(), 2 * NONSENSE, "so often in each of two phases");
    assert!(world.rigs.borrow().is_empty());
    assert!(world.now.get() - BEGAN < time::Duration::minutes(2), "{}", world.now.get() - BEGAN);
}

#[test]
fn money_ends_a_run_before_it_is_spent() {
    let dir = dir();
    let world = World::new(Story::Plain, dir.path());
    let mut spec = Spec::example("r1");
    // An hour's worth, less what bringing home may take, of a script that would go on for ever.
    spec.max_cost = Some(1_000_000);
    let offers = vec![Offer::example("a")];
    runs::create(&world.host, &run(), BEGAN, &Event::Asked { spec: Box::new(spec), offers }).unwrap();
    struct Endless<'a>(&'a World);
    impl Job for Endless<'_> {
        fn prepare(&self, spec: &Spec, machine: &Machine) -> Result<()> {
            self.0.prepare(spec, machine)
        }
        fn start(&self, spec: &Spec, machine: &Machine) -> Result<()> {
            assert!((2900..=3000).contains(&spec.max_seconds.unwrap()), "{:?}", spec.max_seconds);
            self.0.start(spec, machine)
        }
        fn poll(&self, _: &Spec, _: &Machine) -> Result<Option<Stand>> {
            Ok(Some(Stand::Running))
        }
        fn stop(&self, _: &Spec, _: &Machine) -> Result<()> {
            Ok(())
        }
        fn fetch(&self, _: &Spec, _: &Machine) -> Result<Fetched> {
            Ok(Fetched::example(false))
        }
    }
    let mut held = runs::hold(&world.host, &run()).unwrap().unwrap();
    let (provider, loan, clock) = (&world, &world, &world);
    Runner { host: &world.host, provider, job: &Endless(&world), loan, clock, say: &|_| {} }
        .drive(&mut held)
        .unwrap();
    assert_eq!(held.state.outcome, Some(Outcome::Exit(Exit::Deadline)));
    assert!(held.state.unfetched.is_some());
    assert!(world.rigs.borrow().is_empty());
}

#[test]
fn a_script_that_was_told_to_end_is_waited_for_as_long_as_it_may_take() {
    /// Takes so long to save.
    struct Saving<'a>(&'a World, Duration, Cell<Option<OffsetDateTime>>);
    impl Job for Saving<'_> {
        fn prepare(&self, spec: &Spec, machine: &Machine) -> Result<()> {
            self.0.prepare(spec, machine)
        }
        fn start(&self, spec: &Spec, machine: &Machine) -> Result<()> {
            self.0.start(spec, machine)
        }
        fn poll(&self, _: &Spec, _: &Machine) -> Result<Option<Stand>> {
            let saved = self.2.get().is_some_and(|told| self.0.now.get() - told >= self.1);
            Ok(Some(if saved { Stand::Exited(Exit::Stopped) } else { Stand::Running }))
        }
        fn stop(&self, spec: &Spec, machine: &Machine) -> Result<()> {
            self.2.set(self.2.get().or(Some(self.0.now.get())));
            self.0.stop(spec, machine)
        }
        fn fetch(&self, spec: &Spec, machine: &Machine) -> Result<Fetched> {
            self.0.fetch(spec, machine)
        }
    }
    for (grace, saving, waited_for) in
        [(20, 15, true), (20, 200, false), (1800, 1790, true), (1800, 2000, false)]
    {
        let dir = dir();
        let world = World::new(Story::Plain, dir.path());
        let spec = Spec { grace, ..Spec::example("r1") };
        let offers = vec![Offer::example("a")];
        runs::create(&world.host, &run(), BEGAN, &Event::Asked { spec: Box::new(spec), offers }).unwrap();
        let mut held = runs::hold(&world.host, &run()).unwrap().unwrap();
        held.note(BEGAN, &Event::Renting { offer: Offer::example("a") }).unwrap();
        let machine = Machine { target: Target::Local, home: "/home".into(), data: None };
        for event in [Event::Rented { machine }, Event::Prepared, Event::Started] {
            held.note(BEGAN, &event).unwrap();
        }
        world
            .rigs
            .borrow_mut()
            .insert("a".into(), Rig { prepared: true, started: Some(BEGAN), stopped: false });
        runs::ask_to_stop(&world.host, &run()).unwrap();
        let (provider, loan, clock) = (&world, &world, &world);
        let job = Saving(&world, Duration::from_secs(saving), Cell::new(None));
        Runner { host: &world.host, provider, job: &job, loan, clock, say: &|_| {} }
            .drive(&mut held)
            .unwrap();
        assert_eq!(held.state.outcome, Some(Outcome::Exit(Exit::Stopped)));
        let events = runs::events(&world.host, &run()).unwrap();
        let exited = events.iter().any(|(_, event)| matches!(event, Event::Exited { .. }));
        assert_eq!(exited, waited_for, "{saving} of {grace}: {events:?}");
    }
}

#[test]
fn what_outlives_a_run_is_named_once_and_waited_for_never() {
    struct Haunted<'a>(&'a World);
    impl Provider for Haunted<'_> {
        fn rent(&self, spec: &Spec, offer: &Offer) -> Result<Rent> {
            self.0.rent(spec, offer)
        }
        fn give_back(&self, run: &RunId) -> Result<Vec<String>> {
            self.0.give_back(run)
        }
        fn list(&self) -> Result<Vec<Rented>> {
            self.0.list()
        }
        fn outlived(&self) -> Vec<String> {
            (0..1000).map(|n| format!("process {n} (ghost)")).collect()
        }
    }
    let dir = dir();
    let world = World::new(Story::Plain, dir.path());
    begin(&world);
    let mut held = runs::hold(&world.host, &run()).unwrap().unwrap();
    let (job, loan, clock) = (&world, &world, &world);
    Runner { host: &world.host, provider: &Haunted(&world), job, loan, clock, say: &|_| {} }
        .drive(&mut held)
        .unwrap();
    assert_eq!(held.state.phase, Phase::Done);
    assert_eq!(held.state.outlived.len(), OUTLIVED, "a machine may make up any number");
    let events = runs::events(&world.host, &run()).unwrap();
    assert_eq!(events.iter().filter(|(_, event)| matches!(event, Event::Outlived { .. })).count(), 1);
    let receipt = crate::gpu::receipt::Receipt::of(&held.state, Path::new("/r"), world.now.get());
    let text = receipt.text();
    assert!(
        text.contains("gone: all of it\noutlived it, and not ours to end: process 0 (ghost), "),
        "{text}"
    );
}
