//! `gpu-run --provider azure` on machines that boot: cloud-init gives them the key that we chose, systemd holds the script,
//! and they are gone when they are given back. What a script has written down outlives its keeper, its machine's power
//! and the machine itself.

use crate::PROGRAM;
use kit::{
    cloud::{Act, Hook, Kind, Options, Pace, Rule, Takes},
    cloud_lab::{LabMetal, Metadata},
    here::{self, Here},
    hq,
    lab::Release,
    process::CompletedProcess,
    story::Story,
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use std::{
    fs,
    net::Ipv4Addr,
    sync::{Arc, Mutex, mpsc},
    time::Duration,
};

/// Counts until there is the file that it is told of, and writes each step down, whole or not at all. It goes on from the
/// newest that is there, and what it says of a step follows from the one before. `tryN.txt`: which attempt that was,
/// after which step, when it began, and until when it may go on.
const SCRIPT: &str = r#"
import os, pathlib, signal, sys, time
out = pathlib.Path(os.environ["ECHOES_OUT"])
def put(name, text):
    with open(out / f".{name}", "w") as new:
        new.write(text)
        new.flush()
        os.fsync(new.fileno())
    os.replace(out / f".{name}", out / name)
taken = []
signal.signal(signal.SIGTERM, lambda *_: taken.append(True))
step = max((int(path.stem[4:]) for path in out.glob("step*.txt")), default=0)
value = int((out / f"step{step}.txt").read_text()) if step else 1
tries = len(list(out.glob("try*.txt")))
put(f"try{tries}.txt", f"{os.environ['ECHOES_ATTEMPT']} {step} {int(time.time())} {os.environ['ECHOES_UNTIL']}")
print("began after", step, flush=True)
while not pathlib.Path(sys.argv[1]).exists():
    if taken:
        put("taken.txt", str(step))
        sys.exit(143)
    step, value = step + 1, value * 31 % 1000003
    put(f"step{step}.txt", str(value))
    time.sleep(0.2)
print("ended after", step, flush=True)
sys.exit(7)
"#;

/// Where it looks whether that is enough: not in /tmp, which a restart empties.
const ENOUGH: &str = "/var/tmp/enough";

/// A story on machines that boot.
struct Rented {
    story: Story,
    metal: Arc<LabMetal>,
    _way: Metadata,
}

impl Rented {
    fn new() -> Option<Self> {
        if !hq::can_boot("an experiment at the simulated Azure") {
            return None;
        }
        let here = Here::new(PROGRAM)?;
        // What the script needs, and what the agent does: an environment is made of the machine's own Python.
        let metal = Arc::new(LabMetal::new(Release::Bookworm, &["python3", "sudo"]).unwrap());
        let second = Duration::from_secs(1);
        let takes = Takes {
            vm_create: second,
            vm_delete: second,
            reservation: 5 * second,
            retry_after: Some(1),
            // An eviction comes when the story says so, however busy this host is.
            eviction: Duration::from_secs(3600),
            ..Takes::default()
        };
        let options = Options {
            pace: Pace::Running(1.0),
            takes,
            metal: Arc::clone(&metal) as Arc<_>,
            // From everywhere: the lab's own address comes and goes with its machines.
            imds: Some((Ipv4Addr::UNSPECIFIED.into(), 0)),
            ..Options::default()
        };
        let story = Story::new(here, 22, "/tmp", options)?;
        // Before there is a machine: what asks there must never get to whatever this host itself is in.
        let way = Metadata::of(&story.cloud).unwrap();
        Some(Self { story, metal, _way: way })
    }

    /// The script that counts, with an hour to do so.
    #[track_caller]
    fn counts(&self, run: &str, more: &[&str]) {
        fs::write(self.story.here.path("code/train.py"), SCRIPT).unwrap();
        self.story.begin(run, &[&["--max-hours", "1"], more].concat(), &[ENOUGH]);
        self.story.until_event(run, "started");
    }

    fn id(&self) -> String {
        let all = self.story.cloud.ids(Kind::Vm);
        assert_eq!(all.len(), 1, "{all:?}");
        assert_eq!(self.metal.left().unwrap().len(), 1, "the lab has it too");
        all[0].clone()
    }

    /// On the machine, while there is one that is on; as root.
    fn exec(&self, sh: &str) -> Option<CompletedProcess> {
        let id = self.story.cloud.ids(Kind::Vm).pop()?;
        self.metal.with(&id, |machine| machine.exec(sh))
    }

    #[track_caller]
    fn ok(&self, sh: &str) -> String {
        let id = self.id();
        self.metal.with(&id, |machine| machine.ok(sh)).expect("a machine that is on")
    }

    /// Until the script that was begun as the `n`th, from 0, has made something new on its machine.
    #[track_caller]
    fn until_try(&self, run: &str, n: u32) {
        let out = out(run);
        // Only what is newer than the try is its own.
        let made = format!("test -n \"$(find {out} -name 'step*.txt' -newer {out}/try{n}.txt)\"");
        self.story
            .here
            .until(&format!("try {n} of {run}"), || self.exec(&made).is_some_and(|out| out.code == 0));
    }

    /// The same at home, where everything comes later.
    #[track_caller]
    fn until_home(&self, run: &str, name: &str) {
        self.story.here.until(&format!("{name} at home"), || self.story.here.result(run, name).is_some());
    }

    fn tries(&self, run: &str) -> Vec<Try> {
        let text = |n: u32| self.story.here.result(run, &format!("try{n}.txt"));
        (0..).map_while(text).map(|text| Try::read(&text)).collect()
    }

    /// The steps at home; each is what it has to be.
    #[track_caller]
    fn steps(&self, run: &str) -> Vec<u32> {
        let dir = self.story.here.path("data/azure_results").join(run).join("out");
        let step = |name: String| name.strip_prefix("step")?.strip_suffix(".txt")?.parse().ok();
        let names =
            fs::read_dir(&dir).unwrap().flatten().filter_map(|entry| entry.file_name().into_string().ok());
        let mut steps: Vec<u32> = names.filter_map(step).collect();
        steps.sort_unstable();
        let (mut at, mut value) = (0, 1_u64);
        for step in &steps {
            while at < *step {
                (at, value) = (at + 1, value * 31 % 1_000_003);
            }
            let text = fs::read_to_string(dir.join(format!("step{step}.txt"))).unwrap();
            assert_eq!(text, value.to_string(), "step {step}");
        }
        steps
    }

    /// It was told that it is enough, and ended with its own status: every step of its long life is at home, nothing of it
    /// is left anywhere, and nothing is paid for.
    #[track_caller]
    fn comes_home(&self, run: &str) {
        self.ok(&format!("touch {ENOUGH}"));
        for event in ["exited", "fetched", "returned"] {
            self.story.until_event(run, event);
        }
        let attached = self.story.run(&["gpu", "attach", run]);
        let said = &attached.assert_code(7).stderr;
        assert!(said.contains("gone: all of it, looked for twice"), "{said}");
        let log = self.story.here.result(run, "log.txt").unwrap();
        let last = log.lines().find_map(|line| line.strip_prefix("ended after ")).expect(&log);
        assert_eq!(self.steps(run), (1..=last.parse().unwrap()).collect::<Vec<_>>());
        let receipt = self.story.receipt(run);
        let told = (&receipt["proven_gone"], &receipt["all_home"], &receipt["exit_status"]);
        assert_eq!(told, (&true.into(), &true.into(), &7.into()), "{receipt}");
        self.nothing_left();
    }

    #[track_caller]
    fn nothing_left(&self) {
        self.story.nothing_left();
        assert_eq!(self.metal.left().unwrap(), Vec::<String>::new());
        let sweep = self.story.run(&["gpu", "sweep"]);
        assert_eq!((sweep.code, sweep.stderr.as_str()), (0, "nothing is loose\n"));
        let bill = self.story.cloud.bill().to_string();
        self.story.cloud.advance(Duration::from_secs(3600));
        assert_eq!(self.story.cloud.bill().to_string(), bill, "nothing is paid for any more");
    }
}

/// What the script says of one of its beginnings.
#[derive(Debug)]
struct Try {
    attempt: u32,
    after: u32,
    began: u64,
    until: u64,
}

impl Try {
    fn read(text: &str) -> Self {
        let numbers: Vec<u64> = text.split(' ').map(|number| number.parse().unwrap()).collect();
        let [attempt, after, began, until] = numbers[..] else { panic!("{text}") };
        Self { attempt: attempt.try_into().unwrap(), after: after.try_into().unwrap(), began, until }
    }
}

fn out(run: &str) -> String {
    format!("/home/echoes/.echoes/runs/{run}/out")
}

#[test]
fn an_experiment_on_a_rented_machine_comes_home_and_the_machine_is_gone() {
    let Some(rented) = Rented::new() else { return };
    rented.story.runs_to_its_receipt();
    assert_eq!(rented.metal.left().unwrap(), Vec::<String>::new());
}

#[test]
fn a_script_whose_keeper_dies_and_whose_machine_loses_its_power_goes_on_with_the_time_it_had() {
    let Some(rented) = Rented::new() else { return };
    let (story, run) = (&rented.story, "enduring");
    rented.counts(run, &["--spot", "never"]);
    rented.until_try(run, 0);

    let unit = format!("echoes-agent-{run}.service");
    rented.ok(&format!("kill -KILL $(systemctl show --property MainPID --value {unit})"));
    rented.until_try(run, 1);

    let id = rented.id();
    let known = "cat /etc/ssh/ssh_host_ed25519_key.pub; ip -4 -o addr show scope global";
    let before = rented.ok(&format!("touch /run/on; {known}"));
    story.cloud.reboot(&id);
    rented.until_try(run, 2);
    assert_eq!(rented.ok(known), before, "it is known by the same key, at the same address");
    assert_eq!(rented.exec("test -e /run/on").map(|out| out.code), Some(1), "it was off");

    rented.comes_home(run);
    let tries = rented.tries(run);
    let attempts: Vec<_> = tries.iter().map(|one| (one.attempt, one.until)).collect();
    assert_eq!(attempts, [1, 2, 3].map(|n| (n, tries[0].until)), "the time that it has is not counted anew");
    assert!(
        tries[0].after == 0 && tries[0].after < tries[1].after && tries[1].after < tries[2].after,
        "{tries:?}"
    );
    let log = story.here.result(run, "log.txt").unwrap();
    assert!(log.contains("started again, attempt 2]") && log.contains("started again, attempt 3]"), "{log}");
    let events = ["asked", "renting", "rented", "prepared", "started", "exited", "fetched", "returned"];
    assert_eq!(story.here.events(run), events, "to headquarters it was one machine, and one script");
}

#[test]
fn a_spot_machine_is_taken_away_with_notice_and_the_run_goes_on_elsewhere_from_its_last_word() {
    let Some(rented) = Rented::new() else { return };
    let (story, run) = (&rented.story, "wandering");
    rented.counts(run, &["--spot", "auto"]);
    rented.until_try(run, 0);

    // It is taken away at the moment when we give it back.
    let (asks, asked) = mpsc::channel();
    let (go, gone) = mpsc::channel::<()>();
    let gone = Mutex::new(gone);
    let hook: Hook = Arc::new(move || {
        asks.send(()).unwrap();
        let _over = gone.lock().unwrap().recv();
    });
    story.cloud.spoil([Rule::once("DELETE", format!("/virtualMachines/*-{run}?"), Act::Before(hook))]);
    let id = rented.id();
    assert!(story.cloud.evict(&id), "it is a spot machine");
    asked.recv_timeout(Duration::from_secs(150)).unwrap_or_else(|_| panic!("{}", story.here.logs()));
    story.cloud.evict_now(&id);
    assert_eq!(story.cloud.ids(Kind::Vm), Vec::<String>::new());
    go.send(()).unwrap();
    assert!(story.here.events(run).iter().any(|event| event == "lost"), "{}", story.here.logs());
    // Its last word was said on notice, and came home in time.
    let last: u32 = story.here.result(run, "taken.txt").expect("its last word").parse().unwrap();
    assert_eq!(rented.steps(run), (1..=last).collect::<Vec<_>>());

    rented.until_try(run, 1);
    rented.comes_home(run);
    let tries = rented.tries(run);
    let begun: Vec<_> = tries.iter().map(|one| (one.attempt, one.after)).collect();
    assert_eq!(begun, [(1, 0), (1, last)]);
    let log = story.here.result(run, "log.txt").unwrap();
    let both =
        format!("began after 0\n\n[echoes-appliance: on another machine]\nbegan after {last}\nended after ");
    assert!(log.starts_with(&both), "{log}");
    let terms: Vec<_> = tries.iter().map(|one| one.until - one.began).collect();
    assert!(terms[1] < terms[0], "on the second machine it has the time that is left: {terms:?}");
    let receipt = story.receipt(run);
    let rentals = receipt["rentals"].as_array().unwrap();
    assert!(rentals.len() == 2 && rentals[0]["offer"]["spot"] == true, "{receipt}");
    assert!(rentals[0]["offer"] != rentals[1]["offer"], "{receipt}");
    assert!(rentals.iter().all(|one| one["came"].is_string() && one["returned"].is_string()), "{receipt}");
}

#[test]
fn a_machine_that_vanishes_while_nobody_looks_is_told_of_by_one_sweep_and_what_had_come_home_stays() {
    let Some(rented) = Rented::new() else { return };
    let (story, run) = (&rented.story, "vanishing");
    // What is spot would go on elsewhere.
    rented.counts(run, &["--spot", "never"]);
    rented.until_home(run, "step2.txt");

    let driver = story.here.driver(run).expect("a driver");
    kill(Pid::from_raw(driver), Signal::SIGKILL).unwrap();
    story.here.until("the end of the driver", || here::is_dead(driver));
    let home = rented.steps(run);
    story.cloud.delete_machine(&rented.id());
    let sweep = story.run(&["gpu", "sweep"]);
    sweep.assert_code(0);
    story.until_event(run, "returned");
    assert_eq!(rented.steps(run), home);
    let attached = story.run(&["gpu", "attach", run]);
    let said = &attached.assert_code(82).stderr;
    assert!(
        said.contains("the machine is gone") && said.contains("gone: all of it, looked for twice"),
        "{said}"
    );
    let receipt = story.receipt(run);
    assert_eq!((&receipt["proven_gone"], &receipt["all_home"]), (&true.into(), &false.into()), "{receipt}");
    rented.nothing_left();
}
