//! What a run at Azure survives, with real processes: its driver killed at each request to the resource manager that
//! makes or ends something, and its agent in each phase. Nothing is rented twice, begun twice, lost or left.
//! `troubles.rs` takes its network away.

use crate::PROGRAM;
use kit::{
    cloud::{self, Act, Hook, Rule},
    here::{self, Here},
    sshd::Sshd,
    story::Story,
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use std::{
    collections::BTreeMap,
    fs,
    sync::{Arc, Mutex},
};

/// A request at which a driver dies.
struct Point {
    name: &'static str,
    method: &'static str,
    /// Of its path and query, where `RUN` is the run's name.
    path: &'static str,
    /// Of the same, how many come first.
    skip: u32,
}

const POINTS: [Point; 8] = [
    Point { name: "group", method: "PUT", path: "/resourcegroups/*-RUN?", skip: 0 },
    Point { name: "rules", method: "PUT", path: "/networksecuritygroups/*-RUN_nsg", skip: 0 },
    Point { name: "machine", method: "PUT", path: "/virtualmachines/*-RUN?", skip: 0 },
    Point { name: "timer", method: "PUT", path: "/schedules/*-RUN?", skip: 0 },
    // Twice before there is one.
    Point { name: "look", method: "GET", path: "/virtualmachines/*-RUN?", skip: 2 },
    Point { name: "renewal", method: "PUT", path: "/schedules/*-RUN?", skip: 1 },
    Point { name: "end", method: "DELETE", path: "/virtualmachines/*-RUN?", skip: 0 },
    Point { name: "group-end", method: "DELETE", path: "-RUN?*forcedeletiontypes", skip: 0 },
];

#[test]
fn a_driver_killed_at_any_request_is_replaced_by_one_sweep_and_nothing_is_left_or_done_twice() {
    let Some(here) = Here::new(PROGRAM) else { return };
    let Some(sshd) = Sshd::new(&here, None) else { return };
    let (data, dir) = (here.path("data"), here.dir.path().to_owned());
    let Some(story) = Story::faster(here, sshd.port, sshd, "") else { return };
    let killed: Arc<Mutex<BTreeMap<String, i32>>> = Arc::default();
    let (mut rules, mut runs) = (Vec::new(), Vec::new());
    for point in POINTS {
        for (when, act) in [("before", Act::Before as fn(Hook) -> Act), ("after", Act::After)] {
            let run = format!("{when}-{}", point.name);
            let (data, victim, killed) = (data.clone(), run.clone(), Arc::clone(&killed));
            let hook: Hook = Arc::new(move || {
                // Whoever asked is there: it waits for our answer.
                let drivers = here::drivers(&data);
                let (pid, _) = drivers.iter().find(|(_, of)| *of == victim).expect("a driver that asks");
                kill(Pid::from_raw(*pid), Signal::SIGKILL).unwrap();
                killed.lock().unwrap().insert(victim.clone(), *pid);
            });
            rules.push(Rule::once(point.method, point.path.replace("RUN", &run), act(hook)).skip(point.skip));
            runs.push(run);
        }
    }
    story.cloud.spoil(rules);
    for run in &runs {
        let there = dir.join(run);
        fs::create_dir(&there).unwrap();
        story.begin(run, &[], &[there.to_str().unwrap(), "2"]);
    }
    let dead = |run: &String| killed.lock().unwrap().get(run).copied().is_some_and(here::is_dead);
    story.here.until("the death of every driver", || runs.iter().all(dead));
    assert_eq!(story.here.drivers(), []);

    let sweep = story.run(&["gpu", "sweep"]);
    sweep.assert_code(0);
    for run in &runs {
        story.until_event(run, "returned");
        let starts = fs::read(dir.join(run).join("starts")).unwrap_or_default().len();
        assert_eq!(starts, 1, "{run} was begun so often");
        assert_eq!(story.here.result(run, "step1.txt").as_deref(), Some("loss 1"), "{run}");
        let receipt = story.receipt(run);
        let said = (&receipt["proven_gone"], &receipt["all_home"], &receipt["exit_status"]);
        assert_eq!(said, (&true.into(), &true.into(), &7.into()), "{receipt}");
    }
    story.nothing_left();
    let (history, asked) = (story.cloud.history(), story.cloud.asked());
    let unheard = asked.iter().filter(|asked| asked.status.is_none()).count();
    assert_eq!(unheard, runs.len(), "{}", story.cloud.story());
    let at = |run: &str, method: &str| {
        let end = format!("-{run}?");
        let is = |asked: &cloud::Asked| {
            asked.method == method
                && asked.target.contains("/virtualMachines/")
                && asked.target.contains(&end)
        };
        let all: Vec<_> = (0..asked.len()).filter(|n| is(&asked[*n])).collect();
        all
    };
    for run in ["before-look", "after-look"] {
        assert_eq!(asked[at(run, "GET")[2]].status, None, "it died at this one");
        assert!(at(run, "PUT")[0] < at(run, "GET")[2], "and there was a machine then");
    }
    for run in &runs {
        let came = |line: &&str| line.contains("virtualMachines/") && line.ends_with(&format!("-{run}"));
        let lines: Vec<_> = history.lines().filter(came).collect();
        assert_eq!(lines.len(), 2, "one machine came, and went: {lines:?}");
    }
    let again = story.run(&["gpu", "sweep"]);
    assert_eq!(again.stderr, "nothing is loose\n");
    eprintln!("{} drivers were killed at requests", runs.len());
}

/// An agent that is killed: in one of its verbs, once the run's journal ends in `after`, and so many seconds later.
struct Killed {
    run: &'static str,
    verb: &'static str,
    after: &'static str,
    later: &'static str,
}

/// Stories beside one another see each other's processes: no two have a run of the same name.
const AGENTS: [Killed; 7] = [
    Killed { run: "agent-hello", verb: "attend", after: "rented", later: "0.001" },
    Killed { run: "agent-preparing", verb: "attend", after: "rented", later: "0.06" },
    Killed { run: "agent-starting", verb: "start", after: "prepared", later: "0.001" },
    Killed { run: "agent-started", verb: "start", after: "prepared", later: "0.02" },
    Killed { run: "agent-asked", verb: "attend", after: "started", later: "0.001" },
    Killed { run: "agent-ended", verb: "attend", after: "exited", later: "0.001" },
    Killed { run: "agent-fetching", verb: "attend", after: "exited", later: "0.06" },
];

/// The one whose script's keeper is killed, and its script with it.
const KEPT: &str = "agent-kept";

#[test]
fn an_agent_killed_in_any_phase_is_followed_by_another_and_nothing_is_left_or_lost() {
    let Some(here) = Here::new(PROGRAM) else { return };
    let Some(sshd) = Sshd::new(&here, None) else { return };
    sshd.bring_agent(&here, include_str!("mortal.sh"));
    let (dir, port) = (here.dir.path().to_owned(), sshd.port);
    // What is sent and what comes home take a moment.
    fs::write(here.path("code/noise"), here::noise(8 << 20)).unwrap();
    let large = "(out / 'large').write_bytes(open('noise', 'rb').read() * 3)\nsys.exit(7)";
    fs::write(here.path("code/train.py"), here::SCRIPT.replace("sys.exit(7)", large)).unwrap();
    let Some(story) = Story::faster(here, port, sshd, "") else { return };
    let runs: Vec<_> = AGENTS.iter().map(|killed| killed.run).chain([KEPT]).collect();
    for killed in AGENTS {
        let when = format!("{} {} {}\n", killed.verb, killed.after, killed.later);
        fs::write(dir.join(format!("dies-{}", killed.run)), when).unwrap();
    }
    for run in &runs {
        fs::create_dir(dir.join(run)).unwrap();
        story.begin(run, &[], &[dir.join(run).to_str().unwrap(), "4"]);
    }
    story.here.until("the death of a keeper", || {
        let begun = dir.join(KEPT).join("starts").exists();
        begun && here::keeper(KEPT).is_some_and(|pid| kill(Pid::from_raw(pid), Signal::SIGKILL).is_ok())
    });
    for run in &runs {
        story.until_event(run, "returned");
        let log = fs::read_to_string(story.here.inside(&format!("{}/{run}/driver.log", here::RUNS))).unwrap();
        assert!(*run == KEPT || dir.join(format!("died-{run}")).exists(), "{run}: nobody died: {log}");
        let starts = fs::read(dir.join(run).join("starts")).unwrap_or_default().len();
        assert_eq!(starts, if *run == KEPT { 2 } else { 1 }, "{run} was begun so often: {log}");
        assert_eq!(story.here.result(run, "step3.txt").as_deref(), Some("loss 3"), "{run}: {log}");
        let came = fs::metadata(story.here.path(&format!("data/azure_results/{run}/out/large"))).unwrap();
        assert_eq!(came.len(), 24 << 20, "{run}: {log}");
        let receipt = story.receipt(run);
        let said = (&receipt["proven_gone"], &receipt["all_home"], &receipt["exit_status"]);
        assert_eq!(said, (&true.into(), &true.into(), &7.into()), "{receipt}");
    }
    story.nothing_left();
    eprintln!("{} agents were killed", runs.len());
}
