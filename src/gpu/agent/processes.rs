//! A run's processes, wherever they have gone. A title is written over an environment (`setproctitle`, as vLLM and Ray
//! do), an environment is cleared, a session is left: so each is known by any of several marks, and what descends from the
//! keeper, who is handed all orphans of the script's, by that alone. Another user's process that merely carries a variable
//! of ours is a stranger: it is named, and neither ended nor waited for.

use super::site::{Site, read};
use crate::host::{Host, Kind};
use nix::{
    errno::Errno,
    sys::{
        signal::{Signal, kill},
        wait::{WaitPidFlag, waitpid},
    },
    unistd::Pid,
};
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    ffi::OsStr,
    fmt,
    os::unix::ffi::OsStrExt as _,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

/// What every process of a run carries in its environment, besides `ECHOES_OUT`.
pub const MARK: &str = "ECHOES_RUN";

/// How long the kernel may take to bury whoever was killed. A GPU's driver takes its time.
const BURIED: Duration = Duration::from_secs(3);
const TICK: Duration = Duration::from_millis(20);

/// A process, as proc(5) has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    pub pid: i32,
    /// In ticks since the machine's start: with `pid`, no other process has it.
    started: u64,
    uid: u32,
    name: String,
    #[serde(skip)]
    parent: i32,
    #[serde(skip)]
    session: i32,
    /// Whether a person sits before it.
    #[serde(skip)]
    has_terminal: bool,
    #[serde(skip)]
    is_dead: bool,
}

impl fmt::Display for Process {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name: String = self.name.chars().filter(|c| !c.is_control()).take(40).collect();
        write!(f, "process {} ({name})", self.pid)
    }
}

/// Those that are alive.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Alive {
    /// Ours, and not gone yet.
    pub left: Vec<Process>,
    /// Not for us to end: another user's.
    pub outlived: Vec<Process>,
}

/// By which marks a process is known, besides its environment.
#[derive(Debug, Clone, Copy)]
enum By<'a> {
    /// It descends from this one, which is ourselves.
    Keeper(i32),
    /// It descends from one of these, whom somebody keeps from going on.
    Keepers(&'a [Process]),
    /// Below the run's directory it stands, has its program or holds a file; or its keeper remembered it. For what a
    /// keeper that was killed has left behind.
    Files,
}

/// What the script has started is ended, by its keeper: all of it descends from it, whatever it has become.
pub fn end_script(host: &Host, site: &Site) -> Alive {
    end(host, site, By::Keeper(std::process::id().cast_signed()))
}

/// What a keeper that is gone has left behind is ended.
pub fn end_others(host: &Host, site: &Site) -> Alive {
    end(host, site, By::Files)
}

/// All of the run's is ended, its keeper too.
pub fn end_all(host: &Host, site: &Site) -> Alive {
    let keepers = keepers(host, site);
    if !keepers.is_empty() {
        // As long as it is there, no orphan gets another parent; and it starts nothing.
        send(&keepers, Signal::SIGSTOP);
        end(host, site, By::Keepers(&keepers));
        send(&keepers, Signal::SIGKILL);
    }
    end_others(host, site)
}

fn keepers(host: &Host, site: &Site) -> Vec<Process> {
    let words = site.words("watch");
    let keeps = |process: &Process| {
        let line = command_line(host, process.pid);
        !process.is_dead && line.len() > words.len() && line[1..].starts_with(&words)
    };
    all(host).into_values().filter(keeps).collect()
}

fn end(host: &Host, site: &Site, by: By<'_>) -> Alive {
    let owner = owner(host, site);
    let remembered: Vec<Process> = match by {
        By::Files => read(host, &site.outlived()).ok().flatten().unwrap_or_default(),
        By::Keeper(_) | By::Keepers(_) => Vec::new(),
    };
    let until = Instant::now() + BURIED;
    loop {
        let mut found = find(host, site, owner, by, &remembered);
        let denied = send(&found.left, Signal::SIGKILL);
        let (ours, theirs) = found.left.into_iter().partition(|process| !denied.contains(&process.pid));
        found.left = ours;
        found.outlived.extend::<Vec<Process>>(theirs);
        if let By::Keeper(keeper) = by {
            bury(host, keeper, None);
        }
        if found.left.is_empty() || Instant::now() >= until {
            return found;
        }
        std::thread::sleep(TICK);
    }
}

/// Those whom we may not tell anything.
fn send(processes: &[Process], signal: Signal) -> Vec<i32> {
    let told = |process: &&Process| kill(Pid::from_raw(process.pid), signal) == Err(Errno::EPERM);
    processes.iter().filter(told).map(|process| process.pid).collect()
}

/// Whoever has the run's directory; where that is gone, whoever has what runs share.
fn owner(host: &Host, site: &Site) -> Option<u32> {
    let places = [site.dir(), site.shared("envs"), site.home.clone()];
    places.iter().find_map(|place| host.meta(place).ok().flatten()).map(|meta| meta.uid)
}

fn find(host: &Host, site: &Site, owner: Option<u32>, by: By<'_>, remembered: &[Process]) -> Alive {
    let table = all(host);
    let own = std::process::id().cast_signed();
    let above = lineage(&table, own);
    let mut found = Alive::default();
    for process in table.values().filter(|process| !process.is_dead && !above.contains(&process.pid)) {
        let descends = match by {
            // What the keeper has started for itself, as nvidia-smi, is in its own session; a script never is.
            By::Keeper(keeper) => {
                let of_ours = table.get(&keeper).is_some_and(|keeper| keeper.session == process.session);
                !of_ours && lineage(&table, process.parent).contains(&keeper)
            }
            By::Keepers(keepers) => {
                let above = lineage(&table, process.parent);
                keepers.iter().any(|keeper| above.contains(&keeper.pid))
            }
            By::Files => false,
        };
        if descends {
            found.left.push(process.clone());
            continue;
        }
        let same = |other: &Process| (other.pid, other.started) == (process.pid, process.started);
        let is_owners = owner == Some(process.uid);
        let is_known = remembered.iter().any(same);
        let is_marked = is_marked(host, site, process.pid);
        // Root's, as of what a script has started by sudo. Any other's may have our marks, and stand in a directory that is
        // called as ours is: by that it would hold us up for as long as its person likes.
        let is_roots = process.uid == 0 && is_marked;
        let is_inside = matches!(by, By::Files)
            && (is_owners && !process.has_terminal || is_roots)
            && is_inside(host, &site.dir(), process.pid);
        let is_ours = is_owners && (is_marked || is_known || is_inside) || is_roots && is_inside;
        if (is_ours || is_marked || is_known) && !is_agent(host, process.pid) {
            let of = if is_ours { &mut found.left } else { &mut found.outlived };
            of.push(process.clone());
        }
    }
    found
}

/// A process and all above it.
fn lineage(table: &BTreeMap<i32, Process>, pid: i32) -> Vec<i32> {
    let mut above = Vec::new();
    let mut at = pid;
    while let Some(process) = table.get(&at).filter(|process| !above.contains(&process.pid)) {
        above.push(at);
        at = process.parent;
    }
    above
}

/// Others' environments cannot be read, and are not the script's.
fn is_marked(host: &Host, site: &Site, pid: i32) -> bool {
    let environ = host.read(&place(pid, "environ")).ok().flatten().unwrap_or_default();
    has_mark(&environ, &site.out(), site.run.as_str())
}

/// By `ECHOES_OUT`, which names a run of this home alone: another headquarters may have a run of the same name here. What
/// has lost that is known by `ECHOES_RUN`. Pure.
fn has_mark(environ: &[u8], out: &Path, run: &str) -> bool {
    let value = |name: &str| {
        environ
            .split(|byte| *byte == 0)
            .find_map(|pair| pair.strip_prefix(name.as_bytes())?.strip_prefix(b"="))
    };
    match value("ECHOES_OUT") {
        Some(at) => Path::new(OsStr::from_bytes(at)).starts_with(out),
        None => value(MARK) == Some(run.as_bytes()),
    }
}

fn is_inside(host: &Host, dir: &Path, pid: i32) -> bool {
    let leads = |link: &Path| match host.meta(link).ok().flatten().map(|meta| meta.kind) {
        // As the kernel says it of what is gone.
        Some(Kind::Link(to)) => {
            let to = to.to_string_lossy();
            Path::new(to.strip_suffix(" (deleted)").unwrap_or(&to)).starts_with(dir)
        }
        _ => false,
    };
    let open = host.list(&place(pid, "fd")).unwrap_or_default();
    ["cwd", "root", "exe"].iter().any(|name| leads(&place(pid, name)))
        || open.iter().any(|number| leads(&place(pid, "fd").join(number)))
}

/// This same program, answering or keeping: it has files of the run open while it works, and no script is it.
fn is_agent(host: &Host, pid: i32) -> bool {
    let program = |pid: i32| host.meta(&place(pid, "exe")).ok().flatten().map(|meta| meta.kind);
    let line = command_line(host, pid);
    let verb = line.get(1).filter(|word| *word == "agent").and(line.get(2)).map_or("", String::as_str);
    matches!(verb, "attend" | "start" | "standing" | "watch" | "leave")
        && program(pid).is_some_and(|kind| Some(kind) == program(std::process::id().cast_signed()))
}

fn command_line(host: &Host, pid: i32) -> Vec<String> {
    let line = host.read(&place(pid, "cmdline")).ok().flatten().unwrap_or_default();
    line.split(|byte| *byte == 0).map(|word| String::from_utf8_lossy(word).into_owned()).collect()
}

fn place(pid: i32, name: &str) -> PathBuf {
    Path::new("/proc").join(pid.to_string()).join(name)
}

/// All that there are, by their ids. One that ends while we look is not among them.
fn all(host: &Host) -> BTreeMap<i32, Process> {
    let names = host.list(Path::new("/proc")).unwrap_or_default();
    let process = |name: String| {
        let pid = name.parse().ok()?;
        let text = |of: &str| host.read_text(&place(pid, of)).ok().flatten();
        Some((pid, process(&text("stat")?, &text("status")?)?))
    };
    names.into_iter().filter_map(process).collect()
}

/// From /proc/PID/stat and /proc/PID/status. Pure. A name may have anything in it, a `)` too.
fn process(stat: &str, status: &str) -> Option<Process> {
    let (first, rest) = stat.rsplit_once(") ")?;
    let (pid, name) = first.split_once(" (")?;
    let fields: Vec<&str> = rest.split_whitespace().collect();
    let number = |n: usize| fields.get(n)?.parse::<i32>().ok();
    let uid = status.lines().find_map(|line| line.strip_prefix("Uid:"))?;
    Some(Process {
        pid: pid.parse().ok()?,
        started: fields.get(19)?.parse().ok()?,
        uid: uid.split_whitespace().next()?.parse().ok()?,
        name: name.into(),
        parent: number(1)?,
        session: number(3)?,
        has_terminal: number(4)? != 0,
        is_dead: matches!(*fields.first()?, "Z" | "X"),
    })
}

/// Orphans of the script's that have ended: as their parent now, we alone can bury them. Whom we have started ourselves, who
/// started them waits for: `script`, and what is in our session.
pub fn bury(host: &Host, keeper: i32, script: Option<u32>) {
    let table = children(host, keeper);
    let session = table.get(&keeper).map(|keeper| keeper.session);
    for process in table.values() {
        let is_orphan = process.parent == keeper && Some(process.session) != session;
        if is_orphan && process.is_dead && script.map(u32::cast_signed) != Some(process.pid) {
            let _ = waitpid(Pid::from_raw(process.pid), Some(WaitPidFlag::WNOHANG));
        }
    }
}

/// A process and its children: asked for by name where the kernel tells them, as looking at all is dear on a busy machine.
fn children(host: &Host, pid: i32) -> BTreeMap<i32, Process> {
    let tasks = host.list(&place(pid, "task")).unwrap_or_default();
    let told: Option<Vec<String>> = tasks
        .iter()
        .map(|task| host.read_text(&place(pid, "task").join(task).join("children")).ok().flatten())
        .collect();
    let Some(told) = told else { return all(host) };
    let text = |pid: i32, of: &str| host.read_text(&place(pid, of)).ok().flatten();
    let ids = told.iter().flat_map(|ids| ids.split_whitespace()).filter_map(|id| id.parse().ok());
    ids.chain([pid])
        .filter_map(|pid| Some((pid, process(&text(pid, "stat")?, &text(pid, "status")?)?)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_may_be_called_anything() {
        let stat = |name: &str| {
            format!("7497 ({name}) S 1 7497 7490 34816 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 8153 1 1 1\n")
        };
        let status = "Name:\tx\nUid:\t1000\t0\t0\t0\n";
        for name in ["python3", "a) S 9 9 9 9", "(", ") Z", "VLLM::EngineCore"] {
            let process = process(&stat(name), status).unwrap();
            let seen = (process.pid, process.parent, process.session, process.started, process.uid);
            assert_eq!(seen, (7497, 1, 7490, 8153, 1000), "{name}");
            assert!(process.has_terminal && !process.is_dead, "{name}");
            assert_eq!(process.to_string(), format!("process 7497 ({name})"));
        }
        assert_eq!(process("", status), None);
        assert_eq!(process("1 (x) S 1", status), None);
    }

    #[test]
    fn a_run_of_the_same_name_in_another_home_is_another_run() {
        let marked = |environ: &str| has_mark(environ.as_bytes(), Path::new("/h/runs/r/out"), "r");
        for ours in
            ["A=1\0ECHOES_RUN=r\0", "ECHOES_OUT=/h/runs/r/out", "ECHOES_RUN=x\0ECHOES_OUT=/h/runs/r/out/deep"]
        {
            assert!(marked(ours), "{ours:?}");
        }
        for other in [
            "",
            "ECHOES_RUN=rr",
            "XECHOES_RUN=r",
            "ECHOES_RUN=r\0ECHOES_OUT=/g/runs/r/out",
            "ECHOES_OUT=/h/runs/r/output",
        ] {
            assert!(!marked(other), "{other:?}");
        }
    }

    #[test]
    fn fuzz_kernel_tables_are_read_or_passed_over() {
        crate::fuzz::run(
            "kernel",
            &[") S 1 ", "Uid:\t0", " (", "MemTotal: 1 kB", "lock:\t1: FLOCK", " - "],
            |bytes| {
                let text = String::from_utf8_lossy(bytes);
                let (stat, status) = text.split_once("\n---\n").unwrap_or((&text, &text));
                let _ = (process(stat, status), has_mark(bytes, Path::new("/h"), "r"));
                crate::gpu::agent::samples::fuzzed(&text);
                let _ = (crate::host::mounts::holding(&text, Path::new("/a/b")), crate::host::fuzzed(&text));
                Ok(())
            },
        );
    }
}
