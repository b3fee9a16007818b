//! The kill matrix: whole runs at the simulated Azure, and at each of their moments whatever may go wrong there, once.
//!
//! The loop, its journal, the provider and every request are the real ones. The machine's disk and what its script has
//! made there are a few numbers, and time passes only while somebody waits. Headquarters' process ends before and after
//! each request to Azure, each dealing with the machine, and each entry of its journal: what it would have done from then
//! on is not done, and one sweep later somebody else has finished the work. (Before an entry is after the dealing
//! that it tells of: nothing lies between.)

use super::{
    life::{SPOILS, no_groups},
    stage::{Life, Stage, T4, offer, spec},
};
use crate::gpu::{
    home::Fetched,
    job::{Exit, Hopeless, Job, Stand},
    provider::{Machine, Offer, Provider},
    runner::{Clock, Loan, Runner},
    runs,
    spec::{RunId, Spec},
    state::{Event, Keep, Outcome, Phase, State},
    sweep::{self, Loose},
};
use anyhow::{Error, Result, bail, ensure};
use kit::cloud::{Act, Cloud, Kind, Power, Rule};
use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    time::Duration,
};
use time::OffsetDateTime;

const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);

/// How long the script works, on however many machines.
const LONG: Duration = Duration::from_secs(240);

/// What may be lost of it with a machine: what has not come home yet, which it does several times a minute.
const LOST: Duration = MINUTE;

/// What goes on beside us.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Story {
    /// Beside headquarters.
    Near,
    /// In another region, with a network and an address of its own.
    Far,
    /// Where this identity may make no groups.
    Shared,
    /// No room for the first offer; the second one's machine is taken away in the middle.
    Wanders,
    /// What it has made does not fit at home.
    Full,
    /// A person ends it in the middle.
    Stopped,
}

const STORIES: [Story; 6] =
    [Story::Near, Story::Far, Story::Shared, Story::Wanders, Story::Full, Story::Stopped];

/// Where in a life: the so manieth request to Azure, dealing with the machine, or entry of the journal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Moment {
    Request(u32),
    Dealing(u32),
    Entry(u32),
}

/// What goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Harm {
    /// Headquarters' process is killed.
    Before,
    After,
    /// The request is answered in one of these ways.
    Spoilt(usize),
    /// Azure cannot be reached, for an hour.
    AzureSilent,
    /// The machine cannot be reached, for so long.
    MachineSilent(Duration),
    /// The machine is gone with its disk: deleted by somebody, or taken away without notice.
    MachineGone,
    /// Off by itself; on again only when somebody asks for that.
    MachineOff,
    /// Its host died: on again by itself, with its disk.
    MachineRestarts,
}

impl Harm {
    fn of_requests() -> Vec<Self> {
        let spoilt = (0..SPOILS.len()).map(Self::Spoilt);
        [Self::Before, Self::After, Self::AzureSilent].into_iter().chain(spoilt).collect()
    }

    fn of_dealings() -> Vec<Self> {
        let silent = [Self::MachineSilent(3 * MINUTE), Self::MachineSilent(2 * HOUR)];
        let machine = [Self::MachineGone, Self::MachineOff, Self::MachineRestarts];
        [Self::Before, Self::After].into_iter().chain(silent).chain(machine).collect()
    }

    /// Of headquarters' process.
    fn is_death(self) -> bool {
        matches!(self, Self::Before | Self::After)
    }
}

/// What a machine's disk holds.
#[derive(Debug, Clone, Copy, Default)]
struct Disk {
    prepared: bool,
    /// What came along from home.
    base: Duration,
    began: Option<OffsetDateTime>,
    stopped: bool,
}

struct World {
    cloud: Arc<Cloud>,
    host: Arc<crate::host::Host>,
    life: Life,
    run: RunId,
    story: Story,
    disks: RefCell<BTreeMap<String, Disk>>,
    /// What has come home.
    home: Cell<Duration>,
    /// What was there, at most, the last time that it was looked at.
    made: Cell<Duration>,
    evicted: Cell<bool>,
    lent: Cell<bool>,
    dealings: Cell<u32>,
    entries: Cell<u32>,
    harm: Cell<Option<(Moment, Harm)>>,
    azure_silent_until: Cell<Option<OffsetDateTime>>,
    machine_silent_until: Cell<Option<OffsetDateTime>>,
}

impl World {
    fn new(stage: &Stage, story: Story, run: &RunId) -> Self {
        Self {
            cloud: Arc::clone(&stage.cloud),
            host: Arc::clone(&stage.host),
            life: stage.life.clone(),
            run: run.clone(),
            story,
            disks: RefCell::default(),
            home: Cell::default(),
            made: Cell::default(),
            evicted: Cell::default(),
            lent: Cell::default(),
            dealings: Cell::default(),
            entries: Cell::default(),
            harm: Cell::default(),
            azure_silent_until: Cell::default(),
            machine_silent_until: Cell::default(),
        }
    }

    fn date(&self) -> OffsetDateTime {
        self.cloud.now().date()
    }

    /// The one machine, by an id that no machine before it had.
    fn machine(&self) -> Option<(String, String)> {
        let all = self.cloud.ids(Kind::Vm);
        assert!(all.len() <= 1, "{all:?}");
        let id = all.into_iter().next()?;
        let own = self.cloud.get(&id)?["properties"]["vmId"].as_str()?.to_owned();
        Some((id, own))
    }

    fn done_on(&self, disk: &Disk) -> Duration {
        let here = disk.began.map_or(0, |at| (self.date() - at).whole_seconds());
        (disk.base + Duration::from_secs(u64::try_from(here).unwrap_or(0))).min(LONG)
    }

    /// One dealing with the machine, which may be the moment of some harm.
    fn deal<T>(&self, doing: impl FnOnce(&mut Disk) -> Result<T>) -> Result<T> {
        self.life.go_on();
        let n = self.dealings.replace(self.dealings.get() + 1);
        let harm = self.harm.get().filter(|(moment, _)| *moment == Moment::Dealing(n)).map(|(_, harm)| harm);
        if let Some(harm) = harm {
            self.do_harm(harm);
        }
        ensure!(self.machine_silent_until.get().is_none_or(|until| self.date() >= until), "nobody answers");
        let Some((id, own)) = self.machine() else { bail!("there is no machine") };
        ensure!(self.cloud.power(&id) == Some(Power::Running), "it is off");
        let mut disks = self.disks.borrow_mut();
        let disk = disks.entry(own).or_default();
        self.made.set(self.made.get().max(self.done_on(disk)));
        let done = doing(disk);
        if harm == Some(Harm::After) {
            self.life.end();
        }
        self.life.go_on();
        done
    }

    fn do_harm(&self, harm: Harm) {
        let later = |long: Duration| Some(self.date() + long);
        match (harm, self.machine()) {
            (Harm::Before, _) => {
                self.life.end();
                self.life.go_on();
            }
            (Harm::MachineSilent(long), _) => self.machine_silent_until.set(later(long)),
            (Harm::MachineGone, Some((id, _))) => self.cloud.delete_machine(&id),
            (Harm::MachineOff, Some((id, _))) => self.cloud.switch_off(&id),
            (Harm::MachineRestarts, Some((id, _))) => self.cloud.reboot(&id),
            _ => {}
        }
    }

    /// What requests meet, besides what belongs to the story.
    fn rules(&self) -> Vec<Rule> {
        let at = |n: u32, act: Act| Rule::once("", "/subscriptions/", act).skip(n);
        let dead = |n: u32| Rule::always("", "/subscriptions/", Act::Reset).skip(n);
        let kill = || {
            let life = self.life.clone();
            Arc::new(move || life.end())
        };
        match self.harm.get() {
            Some((Moment::Request(n), Harm::Before)) => vec![at(n, Act::Before(kill())), dead(n + 1)],
            Some((Moment::Request(n), Harm::After)) => vec![at(n, Act::After(kill())), dead(n + 1)],
            Some((Moment::Request(n), Harm::Spoilt(way))) => vec![at(n, SPOILS[way]())],
            Some((Moment::Request(n), Harm::AzureSilent)) => vec![dead(n)],
            _ => Vec::new(),
        }
    }

    fn of_story(&self) -> Vec<Rule> {
        match self.story {
            Story::Shared => vec![no_groups(self.run.as_str())],
            Story::Wanders => vec![Rule::once("PUT", "/virtualMachines/", Act::allocation_failed())],
            _ => Vec::new(),
        }
    }

    /// What the world does by itself while time passes.
    fn turn(&self) {
        let Some((id, own)) = self.machine() else { return };
        let begun = self.disks.borrow().get(&own).copied().filter(|disk| disk.began.is_some());
        let half = begun.is_some_and(|disk| self.done_on(&disk) >= LONG / 2);
        match self.story {
            Story::Wanders if half && !self.evicted.replace(true) => self.cloud.evict_now(&id),
            Story::Stopped if half => runs::ask_to_stop(&self.host, &self.run).unwrap(),
            _ => {}
        }
    }
}

impl Job for World {
    fn prepare(&self, _: &Spec, _: &Machine) -> Result<()> {
        self.deal(|disk| {
            if disk.began.is_none() {
                (disk.prepared, disk.base) = (true, self.home.get());
            }
            Ok(())
        })
    }

    fn start(&self, _: &Spec, _: &Machine) -> Result<()> {
        self.deal(|disk| {
            ensure!(disk.prepared, "it was started before it was prepared");
            disk.began.get_or_insert(self.date());
            Ok(())
        })
    }

    fn poll(&self, _: &Spec, _: &Machine) -> Result<Option<Stand>> {
        self.deal(|disk| {
            ensure!(disk.began.is_some(), "it was never started");
            Ok(Some(match disk {
                disk if disk.stopped => Stand::Exited(Exit::Stopped),
                disk if self.done_on(disk) == LONG => Stand::Exited(Exit::Code(0)),
                _ => Stand::Running,
            }))
        })
    }

    fn stop(&self, _: &Spec, _: &Machine) -> Result<()> {
        self.deal(|disk| {
            disk.stopped = true;
            Ok(())
        })
    }

    fn fetch(&self, _: &Spec, _: &Machine) -> Result<Fetched> {
        self.deal(|disk| {
            if self.story == Story::Full {
                return Err(Error::msg("the disk is full").context(Hopeless));
            }
            self.home.set(self.home.get().max(self.done_on(disk)));
            let ended = disk.stopped || disk.began.is_none() || self.done_on(disk) == LONG;
            Ok(Fetched::example(ended))
        })
    }
}

impl Loan for World {
    fn lend(&self, _: &State) -> Result<()> {
        self.lent.set(true);
        Ok(())
    }

    fn delivered(&self, _: &State) -> Result<()> {
        Ok(())
    }

    fn take_back(&self, _: &State) -> Result<()> {
        self.lent.set(false);
        Ok(())
    }
}

impl Clock for World {
    fn now(&self) -> OffsetDateTime {
        self.life.go_on();
        self.date()
    }

    fn wait(&self, long: Duration) {
        self.life.go_on();
        // A script is looked at every two seconds: here four times a minute, as often as things come home.
        let began = self.disks.borrow().values().any(|disk| disk.began.is_some());
        self.cloud.advance(if began { long.max(MINUTE / 4) } else { long });
        self.turn();
        if self.azure_silent_until.get().is_some_and(|until| self.date() >= until) {
            self.azure_silent_until.set(None);
            self.cloud.spoil(self.of_story());
        }
    }
}

/// One life: the story, with one harm in it.
struct Lived {
    requests: u32,
    dealings: u32,
    entries: u32,
}

fn offers(story: Story) -> Vec<Offer> {
    let spot = |region: &str| Offer { spot: true, price: 160_000, ..offer(T4, region) };
    let sure = |region: &str| Offer { price: 526_000, ..offer(T4, region) };
    match story {
        Story::Far => vec![spot("westus2"), sure("westus2"), sure("westus2")],
        Story::Wanders => vec![spot("eastus"), spot("westus2"), spot("eastus"), sure("eastus")],
        _ => vec![spot("eastus"), spot("westus2"), sure("eastus")],
    }
}

/// None without Microsoft's documents.
fn live(story: Story, harm: Option<(Moment, Harm)>) -> Option<Lived> {
    let mut stage = Stage::new(|settings| {
        settings.address = Some("20.9.9.9".parse().unwrap());
        settings.group = (story == Story::Shared).then(|| "headquarters".into());
    })?;
    let spec = spec("m");
    let world = World::new(&stage, story, &spec.run);
    world.harm.set(harm);
    let asked = Event::Asked { spec: Box::new(spec.clone()), offers: offers(story) };
    drop(runs::create(&stage.host, &spec.run, world.date(), &asked).unwrap());
    stage.cloud.spoil(world.of_story().into_iter().chain(world.rules()));
    if matches!(harm, Some((Moment::Request(_), Harm::AzureSilent))) {
        world.azure_silent_until.set(Some(world.date() + HOUR));
    }
    let what = || format!("{story:?}, {harm:?}\n{}", stage_story(&world));
    let began = world.date();
    let state = match catch_unwind(AssertUnwindSafe(|| drive(&stage, &world))) {
        Ok(state) => state,
        Err(_) => {
            assert!(matches!(harm, Some((_, Harm::Before | Harm::After))), "a panic of its own: {}", what());
            // As the timer does, or the next boot.
            stage.cloud.spoil(world.of_story());
            world.harm.set(None);
            stage.restart();
            stage.cloud.advance(5 * MINUTE);
            world.turn();
            let found = sweep::look(&stage.host, &[&stage.azure]).unwrap();
            assert!(found.errors.is_empty(), "{:?} {}", found.errors, what());
            match found.loose.as_slice() {
                [Loose::Run(run, _)] => assert_eq!(run, &spec.run),
                // Its last entry was written.
                [] => {}
                loose => panic!("{loose:?} {}", what()),
            }
            drive(&stage, &world)
        }
    };
    check(&stage, &world, &state, began, &what);
    Some(Lived {
        requests: u32::try_from(stage.cloud.asked().len()).unwrap(),
        dealings: world.dealings.get(),
        entries: world.entries.get(),
    })
}

fn stage_story(world: &World) -> String {
    let events = runs::events(&world.host, &world.run).unwrap();
    let events: Vec<_> = events.iter().map(|(at, event)| format!("{at} {event:?}")).collect();
    format!("{}\n{}", events.join("\n"), world.cloud.story())
}

fn drive(stage: &Stage, world: &World) -> State {
    let mut held = runs::hold(&stage.host, &world.run).unwrap().expect("nobody else is here");
    let phase = Cell::new(held.state.phase);
    // The runner says what it does now right after each entry of its journal.
    let say = |words: &str| {
        let now = [
            Phase::Rent,
            Phase::Prepare,
            Phase::Start,
            Phase::Watch,
            Phase::Fetch,
            Phase::Return,
            Phase::Done,
        ]
        .into_iter()
        .find(|phase| phase.to_string() == words);
        let Some(now) = now else { return };
        phase.set(now);
        let n = world.entries.replace(world.entries.get() + 1);
        if world.harm.get() == Some((Moment::Entry(n), Harm::After)) {
            world.life.end();
            world.life.go_on();
        }
    };
    let (host, provider) = (&*stage.host, &stage.azure as &dyn Provider);
    Runner { host, provider, job: world, loan: world, clock: world, say: &say }.drive(&mut held).unwrap();
    held.state.clone()
}

/// Nothing is left, nothing costs, what there was is at home, and what is told is true.
fn check(stage: &Stage, world: &World, state: &State, began: OffsetDateTime, what: &dyn Fn() -> String) {
    assert_eq!(state.phase, Phase::Done, "{}", what());
    assert!(!world.lent.get(), "a user is left: {}", what());
    assert!(state.rentals.iter().all(|rental| rental.returned.is_some()), "{}", what());
    let kept = state.kept.is_some();
    if kept {
        // One that was asked for, and that nobody has heard of, may be there and may not.
        let least = usize::from(state.kept != Some(Keep::Asked));
        assert!((least..=1).contains(&stage.cloud.costing().len()), "{}", what());
        // A person forgets it, once Azure answers again.
        stage.cloud.spoil(Vec::new());
        while !stage.azure.forget(&world.run).unwrap() {
            stage.cloud.advance(MINUTE);
        }
    }
    let silent = matches!(world.harm.get(), Some((_, Harm::AzureSilent)));
    if silent && world.story == Story::Full && state.outcome == Some(Outcome::Exit(Exit::Code(0))) {
        assert!(matches!(state.kept, Some(Keep::At(_))), "who waits for Azure loses nothing: {}", what());
    }
    // The group of what is kept stays for the next one, and costs nothing.
    let left = if kept { stage.cloud.costing() } else { stage.cloud.left() };
    assert_eq!(left, Vec::<String>::new(), "{}", what());
    let violations = stage.cloud.violations();
    assert!(violations.is_empty(), "{violations:?} {}", what());
    let bill = stage.cloud.bill().total();
    stage.cloud.advance(24 * HOUR);
    assert_eq!(stage.cloud.bill().total(), bill, "{}", what());
    let took = world.date() - began - time::Duration::days(1);
    assert!(took < time::Duration::hours(6), "it took {took}: {}", what());

    let told = state.unfetched.is_some() || kept;
    match state.outcome.as_ref().unwrap() {
        Outcome::Exit(Exit::Code(0)) => {
            assert!(world.home.get() == LONG || told, "at home is {:?}: {}", world.home.get(), what());
        }
        Outcome::Exit(Exit::Stopped) if world.story == Story::Stopped => {}
        // Nobody could be asked for longer than anybody waits, or no offer was left.
        Outcome::Failed(_) | Outcome::Lost(_) | Outcome::Refused(_) => {}
        outcome => panic!("{outcome:?} {}", what()),
    }
    let lost = world.made.get().saturating_sub(world.home.get());
    assert!(lost <= LOST || told, "{lost:?} of {:?} is lost: {}", world.made.get(), what());
}

/// The so manieth of a story's moments and harms: of the process's deaths, and of all others.
#[derive(Clone, Copy)]
struct Every {
    death: usize,
    other: usize,
}

/// How many lives that were.
fn count(story: Story, every: Every) -> Option<u32> {
    let Lived { requests, dealings, entries } = live(story, None)?;
    let requests = (0..requests)
        .map(Moment::Request)
        .flat_map(|at| Harm::of_requests().into_iter().map(move |harm| (at, harm)));
    let dealings = (0..dealings)
        .map(Moment::Dealing)
        .flat_map(|at| Harm::of_dealings().into_iter().map(move |harm| (at, harm)));
    let (deaths, others): (Vec<_>, Vec<_>) = requests.chain(dealings).partition(|(_, harm)| harm.is_death());
    let entries = (0..entries).map(|n| (Moment::Entry(n), Harm::After));
    let mut lives = 0;
    let sampled = deaths.into_iter().step_by(every.death).chain(others.into_iter().step_by(every.other));
    for harm in sampled.chain(entries) {
        live(story, Some(harm))?;
        lives += 1;
    }
    Some(lives)
}

/// Deaths are panics here, and nobody needs to read of those that were meant.
fn quietly<T>(living: impl FnOnce() -> T) -> T {
    let hook = Arc::new(std::panic::take_hook());
    let loud = Arc::clone(&hook);
    std::panic::set_hook(Box::new(move |why| {
        if why.payload().downcast_ref() != Some(&"killed") {
            loud(why);
        }
    }));
    let lived = living();
    let _ = std::panic::take_hook();
    lived
}

fn all(story: Story, every: Every) {
    if let Some(lives) = count(story, every) {
        println!("{story:?}: {lives} lives, each with a harm of its own");
    }
}

fn tried(story: Story, every: Every) {
    quietly(|| all(story, every));
}

// Where a machine is beside us or far away, each death; else one in so many, some hundreds of lives in all. No number has
// a divisor in common with that of the ways, so that none is left out.

#[test]
fn beside_headquarters_nothing_is_left_and_nothing_is_lost() {
    tried(Story::Near, Every { death: 1, other: 23 });
}

#[test]
fn in_another_region_nothing_is_left_and_nothing_is_lost() {
    tried(Story::Far, Every { death: 1, other: 23 });
}

#[test]
fn in_a_group_that_is_shared_nothing_is_left_and_nothing_is_lost() {
    tried(Story::Shared, Every { death: 13, other: 23 });
}

#[test]
fn from_offer_to_offer_nothing_is_left_and_nothing_is_lost() {
    tried(Story::Wanders, Every { death: 29, other: 61 });
}

#[test]
fn without_room_at_home_nothing_is_left_and_nothing_is_lost() {
    tried(Story::Full, Every { death: 5, other: 11 });
}

#[test]
fn stopped_by_a_person_nothing_is_left_and_nothing_is_lost() {
    tried(Story::Stopped, Every { death: 5, other: 11 });
}

#[test]
#[ignore = "as those before, with every harm at every moment: 10,105 lives, two hours of processor time"]
fn at_every_moment_of_every_story_nothing_is_left_and_nothing_is_lost() {
    // The hook is the whole process's.
    quietly(|| {
        std::thread::scope(|scope| {
            for story in STORIES {
                scope.spawn(move || all(story, Every { death: 1, other: 1 }));
            }
        });
    });
}
