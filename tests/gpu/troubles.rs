//! What a run at Azure survives of its network, with real processes and a real ssh: it is cut while the program and the code
//! are sent, at the start, while the script runs, in the middle of a file on its way home, and at the end; it is closed,
//! or swallows everything without a word; and its driver dies meanwhile. The script is begun once, all of it comes home,
//! and nothing is left.

use crate::PROGRAM;
use kit::{
    here::{self, Here, RUNS, SCRIPT},
    network::{Cut, Direction, Network},
    sshd::Sshd,
    story::Story,
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use std::{fs, sync::Arc};

/// Some pieces of a file, and half of one.
const LARGE: usize = 20 << 20;

struct World {
    story: Story,
    network: Arc<Network>,
}

impl World {
    /// None, and said so, where it cannot be had.
    fn new() -> Option<Self> {
        let here = Here::new(PROGRAM)?;
        let network = Arc::new(Network::default());
        let between = Arc::clone(&network);
        let sshd = Sshd::new(&here, Some(Box::new(move |id, to| between.lay(id, to))))?;
        let large = format!("(out / 'large').write_bytes(bytes(range(256)) * {})\nsys.exit(7)", LARGE / 256);
        fs::write(here.path("code/train.py"), SCRIPT.replace("sys.exit(7)", &large)).unwrap();
        // What is sent takes a moment.
        fs::write(here.path("code/noise"), here::noise(3 << 20)).unwrap();
        let story = Story::faster(here, sshd.port, sshd, "")?;
        Some(Self { story, network })
    }

    fn begin(&self, run: &str, steps: &str) {
        let there = self.story.here.path(&format!("script-{run}"));
        fs::create_dir(&there).unwrap();
        self.story.begin(run, &[], &[there.to_str().unwrap(), steps]);
    }

    fn log(&self, run: &str) -> String {
        fs::read_to_string(self.story.here.inside(&format!("{RUNS}/{run}/driver.log"))).unwrap_or_default()
    }

    /// It runs, and something of it is home.
    fn until_it_runs(&self, run: &str) {
        self.story.here.until(run, || self.story.here.result(run, "log.txt").is_some());
    }

    /// The script has come to its end on the machine, whoever has heard of that.
    fn until_it_ended(&self, run: &str) {
        let exit = self.story.here.inside(&format!("/home/echoes/.echoes/runs/{run}/exit.json"));
        self.story.here.until(run, || exit.exists());
    }

    /// Its driver has noticed, so often.
    fn until_missed(&self, run: &str, often: usize) {
        self.story.here.until(run, || self.log(run).matches("tried again soon").count() >= often);
    }
}

type Trouble = fn(&World, &str);

/// Each is a run's name, how many steps its script takes, and what becomes of its network.
const TROUBLES: [(&str, &str, Trouble); 7] = [
    ("sending", "2", |_, _| {}),
    ("fetching", "2", |_, _| {}),
    ("starting", "2", |world, run| {
        world.story.until_event(run, "prepared");
        world.network.to(run).cut();
    }),
    ("running", "20", |world, run| {
        world.until_it_runs(run);
        world.network.to(run).close();
        world.until_it_ended(run);
        world.until_missed(run, 1);
        world.network.to(run).open();
    }),
    ("orphaned", "20", |world, run| {
        world.until_it_runs(run);
        world.network.to(run).close();
        let driver = world.story.here.driver(run).expect("a driver");
        kill(Pid::from_raw(driver), Signal::SIGKILL).unwrap();
        world.story.here.until("its death", || here::is_dead(driver));
        world.until_it_ended(run);
        world.network.to(run).open();
        let sweep = world.story.run(&["gpu", "sweep"]);
        sweep.assert_code(0);
    }),
    ("swallowed", "4", |world, run| {
        world.until_it_runs(run);
        world.network.to(run).swallow();
    }),
    ("returning", "2", |world, run| {
        world.story.until_event(run, "fetched");
        world.network.to(run).close();
    }),
];

#[test]
fn a_network_that_goes_away_in_any_phase_costs_a_run_nothing_but_time() {
    let Some(world) = World::new() else { return };
    world.network.plan("sending", Cut { direction: Direction::There, after: 1 << 20, turned_away: 2 });
    world.network.plan("fetching", Cut { direction: Direction::Home, after: 12 << 20, turned_away: 2 });
    std::thread::scope(|scope| {
        for (run, steps, trouble) in TROUBLES {
            let world = &world;
            world.begin(run, steps);
            scope.spawn(move || {
                trouble(world, run);
                world.story.until_event(run, "returned");
            });
        }
    });
    let story = &world.story;
    let large: Vec<u8> = (0..=255).cycle().take(LARGE).collect();
    for (run, steps, _) in TROUBLES {
        let log = world.log(run);
        let starts = fs::read(story.here.path(&format!("script-{run}/starts"))).unwrap_or_default().len();
        assert_eq!(starts, 1, "{run} was begun so often: {log}");
        let last = steps.parse::<u32>().unwrap() - 1;
        let step = story.here.result(run, &format!("step{last}.txt"));
        assert_eq!(step, Some(format!("loss {last}")), "{run}: {log}");
        let said = story.here.result(run, "log.txt").unwrap();
        assert_eq!(said.matches(&format!("trained on {run}\n")).count(), 1, "{run}: {said}");
        let came = fs::read(story.here.path(&format!("data/azure_results/{run}/out/large"))).unwrap();
        assert!(came == large, "{run}: {} bytes came, and not those that were made", came.len());
        let receipt = story.receipt(run);
        let said = (&receipt["proven_gone"], &receipt["all_home"], &receipt["exit_status"]);
        assert_eq!(said, (&true.into(), &true.into(), &7.into()), "{run}: {receipt}");
        // At the end nobody may be connected any more.
        assert!(run == "returning" || world.network.to(run).breaks() > 0, "nothing was broken for {run}");
    }
    for run in ["sending", "running"] {
        assert!(world.log(run).contains("tried again soon"), "{run}: {}", world.log(run));
    }
    story.nothing_left();
    let sweep = story.run(&["gpu", "sweep"]);
    assert_eq!(sweep.stderr, "nothing is loose\n");
    eprintln!("{} runs lost their network", TROUBLES.len());
}
