//! A machine that lies harms nothing at headquarters: the program itself before a simulated Azure, and on its machines, in
//! the place of our agent, one that is the real one until it is asked a certain thing (`liar.py`). Whatever it says,
//! nothing is written outside of its run's results, nothing fills up, no terminal is played with; and the run comes to an
//! end, with a reason, within a minute or so, and its machine is given back.

use crate::PROGRAM;
use kit::{
    here::{Here, RUNS},
    process::CompletedProcess,
    sshd::{Sshd, inside},
    story::Story,
};
use std::{cell::RefCell, collections::BTreeMap, fs, path::Path, process::Command};

/// A run whose machine lies, by the name of its lie, and how it has to end.
struct Lie {
    run: &'static str,
    status: i32,
    /// In the words that its person reads at its end, or in its driver's.
    why: &'static str,
    /// Not everything came home, and what was on the machine is kept.
    kept: bool,
}

const fn lie(run: &'static str, status: i32, why: &'static str, kept: bool) -> Lie {
    Lie { run, status, why, kept }
}

const LIES: [Lie; 16] = [
    lie("names", 7, "out/../../../canary/kept is left on the machine: ", true),
    lie("hash", 7, "bringing home out/best.pt: it came as something else than was announced", true),
    lie("zeros", 7, "bringing home out/zeros: more bytes came than were announced", true),
    lie("list", 7, "hearing what there is to bring home: ", true),
    lie("spaces", 7, "a list with an entry of more than 1048576 bytes", true),
    lie("log", 7, "exit status 7", false),
    lie("pages", 7, "log.txt has pages that cannot be", true),
    lie("garbage", 86, "hearing a word that was not expected: key must be a string", true),
    lie("bytes", 86, "hearing a word that was not expected: expected value", true),
    lie("huge", 86, "a frame of 4294967295 bytes where 1048576 are the most", true),
    lie("words", 86, r"unknown variant `\u{1b}[2Jxxx", true),
    lie("chatter", 86, r"it answered Welcome! \u{1b}[2J", true),
    lie("waiting", 86, "the script was never started on this machine", false),
    lie("code", 86, "sending the code: hearing a word that was not expected: expected value", false),
    lie("twice", 86, "sending the code: it asked for a file twice", false),
    lie("making", 85, "stopped", false),
];

/// What a driver may take for a liar, besides its own program, which it reads to send it.
const MEMORY: u64 = 128 << 20;

/// What a machine has a driver write about it: words for people, and what came home.
const NOTES: u64 = 1 << 20;

/// With a liar on every machine.
fn story() -> Option<Story> {
    let here = Here::new(PROGRAM)?;
    let sshd = Sshd::new(&here, None)?;
    let python = Command::new("python3").args(["-c", "import sys; print(sys.executable)"]).output();
    let Some(python) = python.ok().map(CompletedProcess::from).filter(|found| found.code == 0) else {
        eprintln!("SKIPPED: machines that lie: there is no python3 here");
        return None;
    };
    let liar = include_str!("liar.py");
    sshd.bring_agent(&here, &format!("#!{}\n{liar}", python.stdout.trim()));
    for kept in ["canary/kept", "data/kept", "data/azure_results/kept"] {
        let at = here.path(kept);
        fs::create_dir_all(at.parent().unwrap()).unwrap();
        fs::write(at, "kept").unwrap();
    }
    let there = here.dir.path().display().to_string();
    Story::faster(here, sshd.port, sshd, &there)
}

/// All that is below it, but for what is left out: files with what is in them, and what else there is as what it is.
fn everything(dir: &Path, but: &dyn Fn(&Path) -> bool, all: &mut BTreeMap<String, String>) {
    for entry in fs::read_dir(dir).unwrap().flatten() {
        let (path, kind) = (entry.path(), entry.file_type().unwrap());
        if but(&path) {
            continue;
        }
        let what = match () {
            () if kind.is_file() => String::from_utf8_lossy(&fs::read(&path).unwrap()).into_owned(),
            () => format!("{kind:?}"),
        };
        all.insert(path.display().to_string(), what);
        if kind.is_dir() {
            everything(&path, but, all);
        }
    }
}

/// What is headquarters', and no run's.
fn headquarters(here: &Here, runs: &[&str]) -> BTreeMap<String, String> {
    let mut all = BTreeMap::new();
    let of_run = |path: &Path| runs.iter().any(|run| path.ends_with(format!("azure_results/{run}")));
    for dir in ["canary", "data", "code", "disk"] {
        everything(&here.path(dir), &of_run, &mut all);
    }
    all
}

/// What of headquarters' own memory is of no run.
fn strangers(here: &Here, runs: &[&str]) -> Vec<String> {
    let memory = here.inside("/var/lib/echoes-appliance");
    let names = |dir: &Path| -> Vec<String> {
        let all = fs::read_dir(dir).unwrap().flatten();
        all.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
    };
    let of_runs = ["runs", "home"].map(|dir| names(&memory.join(dir))).concat();
    let strange = |name: &String| !runs.contains(&name.as_str()) && name != "hashes";
    let beside = names(&here.inside("/var/lib")).into_iter().filter(|name| name != "echoes-appliance");
    of_runs.into_iter().filter(strange).chain(beside).collect()
}

/// The most that each driver had in memory so far, in KiB.
fn watch_memory(here: &Here, most: &mut BTreeMap<String, u64>) {
    for (pid, run) in here.drivers() {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")?.strip_suffix("kB"));
        let now = line.and_then(|n| n.trim().parse().ok()).unwrap_or(0);
        let so_far = most.entry(run).or_default();
        *so_far = now.max(*so_far);
    }
}

/// Nothing that a terminal would obey.
#[track_caller]
fn ensure_harmless(what: &str, said: &str) {
    let bad = said.chars().find(|c| c.is_control() && *c != '\n' && *c != '\t');
    assert_eq!(bad, None, "{what}: {said:?}");
}

/// All that its driver wrote down about a run is short, and harmless; what came home is files.
fn ensure_contained(here: &Here, run: &str) {
    for dir in [format!("{RUNS}/{run}"), format!("/var/lib/echoes-appliance/home/{run}")] {
        let mut notes = BTreeMap::new();
        // Nothing came home of who could not even be sent the code.
        if here.inside(&dir).exists() {
            everything(&here.inside(&dir), &|_| false, &mut notes);
        }
        for (path, said) in notes {
            assert!(said.len() as u64 <= NOTES, "{path} has {} bytes", said.len());
            ensure_harmless(&path, &said);
        }
    }
    let mut results = Vec::from([here.path("data/azure_results").join(run)]);
    while let Some(path) = results.pop() {
        let Ok(meta) = fs::symlink_metadata(&path) else { continue };
        assert!(meta.is_file() || meta.is_dir(), "{}: {meta:?}", path.display());
        if meta.is_dir() {
            results.extend(fs::read_dir(&path).unwrap().flatten().map(|entry| entry.path()));
        }
    }
}

/// What was kept is told of, costs, and is gone as soon as a person says so.
fn forget(story: &Story, run: &str) {
    let forgotten = story.run(&["gpu", "forget", run]);
    let said = &forgotten.stderr;
    assert_eq!(forgotten.code, 0, "{run}: {said}");
    assert!(said.contains(&format!("what was kept of {run} is gone")), "{run}: {said}");
}

/// Nothing is there but the group that copies were in, which is empty and costs nothing.
#[track_caller]
fn ensure_given_back(story: &Story) {
    let left = story.cloud.left();
    assert!(left.iter().all(|id| id.ends_with("_kept") && id.contains("/resourceGroups/")), "{left:?}");
    assert_eq!(story.cloud.costing(), Vec::<String>::new());
    story.cloud.assert_honest();
}

fn driver_log(here: &Here, run: &str) -> String {
    fs::read_to_string(here.inside(&format!("{RUNS}/{run}/driver.log"))).unwrap_or_default()
}

#[test]
fn a_machine_that_lies_harms_nothing_and_is_soon_given_back() {
    let Some(story) = story() else { return };
    let here = &story.here;
    let runs: Vec<&str> = LIES.iter().map(|lie| lie.run).chain(["escapes"]).collect();
    let before = headquarters(here, &runs);
    for Lie { run, .. } in &LIES {
        let there = here.path(&format!("script-{run}"));
        fs::create_dir(&there).unwrap();
        story.begin(run, &[], &[there.to_str().unwrap(), "2"]);
    }
    // One that is watched meanwhile, on a terminal that could be played with. Who watches may miss a line.
    let watched = story.gpu_run("escapes", &["-y"]).text();
    ensure_harmless("what is watched", &watched);
    let all = watched + &driver_log(here, "escapes");
    for shown in [r"\u{1b}[2Jnot just now", r"\u{1b}]0;title\u{7}\u{1b}[31mred", "^[[2Jred", "exit status 7"]
    {
        assert!(all.contains(shown), "{shown} is not in {all}");
    }

    // Lines come without end: a person has enough of it.
    let memory = RefCell::default();
    here.until("endless lines", || {
        watch_memory(here, &mut memory.borrow_mut());
        driver_log(here, "making").contains("it says more than anybody reads")
    });
    story.run(&["gpu", "stop", "making"]).assert_code(0);
    here.until("the end of every run", || {
        watch_memory(here, &mut memory.borrow_mut());
        runs.iter().all(|run| here.events(run).iter().any(|event| event == "returned"))
    });
    here.until("the end of every driver", || here.drivers().is_empty());

    let changed = headquarters(here, &runs);
    assert_eq!(changed, before);
    assert_eq!(strangers(here, &runs), Vec::<String>::new());
    for Lie { run, status, why, kept } in &LIES {
        // Of a quarter of a gigabyte, nobody watches all once more.
        let long = *run == "log";
        let end = story.run(&["gpu", if long { "cost" } else { "attach" }, run]);
        let told = end.text() + &driver_log(here, run);
        assert_eq!(end.code, if long { 0 } else { *status }, "{run}: {told}");
        assert!(told.contains(why), "{run}: {why} is not in {told}");
        ensure_harmless(run, &told);
        if !long {
            ensure_harmless(run, &story.run(&["gpu", "logs", run]).text());
        }
        ensure_contained(here, run);
        let lies = fs::read(here.path(&format!("lies-{run}"))).unwrap_or_default().len();
        // Five times while it runs; at its end five times, with a request to end before each; and now and then beside.
        assert!(["log", "names", "making"].contains(run) || (1..=25).contains(&lies), "{run}: {lies} lies");
        assert_eq!(here.events(run).contains(&"kept".to_owned()), *kept, "{run}: {told}");
        let receipt = story.receipt(run);
        let end = (&receipt["proven_gone"], &receipt["exit_status"]);
        assert_eq!(end, (&true.into(), &(*status).into()), "{run}: {receipt}");
        if *kept {
            forget(&story, run);
        }
    }
    let names = here.path("data/azure_results/names");
    let good = fs::read_to_string(names.join("out/good"));
    assert_eq!(good.unwrap(), "x", "what is no lie has come");
    let log = fs::metadata(here.path("data/azure_results/log/log.txt")).unwrap().len();
    assert_eq!(log, 256 << 20, "an endless log has an end");
    let program = fs::metadata(here.program).unwrap().len();
    for (run, most) in memory.into_inner() {
        assert!(most << 10 < program + MEMORY, "{run}'s driver has had {most} KiB in memory");
    }
    ensure_given_back(&story);
    let sweep = story.run(&["gpu", "sweep"]);
    assert_eq!(sweep.stderr, "nothing is loose\n");
    eprintln!("{} machines lied", runs.len());
}

#[test]
fn ten_gigabytes_of_zeros_fill_no_disk_at_headquarters() {
    let Some(story) = story() else { return };
    let here = &story.here;
    // Results stay away from a disk that is nearly full: here is room for a few of these files.
    let results = here.path("data/azure_results");
    let mount = "mount -t tmpfs -o size=2250m none \"$0\"";
    inside(here.holder.id(), mount, &[results.to_str().unwrap()]);
    let out = story.gpu_run("room", &["-y"]);
    let told = out.text();
    assert_eq!(out.code, 7, "{told}");
    assert!(told.contains("there is no room here for") && told.contains("gpu pull room"), "{told}");
    // It is told at the end, or where it was seen while the script ran.
    let all = told + &driver_log(here, "room");
    assert!(all.contains("there is no room here for the rest of out/zeros1"), "{all}");
    let free = nix::sys::statvfs::statvfs(&here.inside(results.to_str().unwrap())).unwrap();
    let free = free.blocks_available() * free.fragment_size();
    assert!(free >= 2 << 30, "{free} bytes are free");
    assert!(
        here.inside(results.to_str().unwrap()).join("room/out/zeros0").exists(),
        "what had room has come"
    );
    ensure_contained(here, "room");
    forget(&story, "room");
    ensure_given_back(&story);
}
