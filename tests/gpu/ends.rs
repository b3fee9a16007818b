//! How a script ends, and what is left of it, here and over a real sshd, for people with the login shells and the habits
//! that people have: an end that somebody else made is not the script's own, what it has to save is waited for, and no
//! process of it goes on.

use crate::PROGRAM;
use kit::{
    here::{self, Here, RUNS},
    process::CompletedProcess,
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use std::{
    fs,
    os::unix::fs::{PermissionsExt as _, chown},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

/// Somebody with an account on a machine of the team's.
struct Person {
    name: &'static str,
    shell: &'static str,
    /// What their shell does before it does what it is asked to, by the name of its file.
    start_up: &'static [(&'static str, &'static str)],
}

const GREETING: &str = "echo Welcome to gpu1\necho Disk quota 80% of /home/noisy\n";

const PEOPLE: [Person; 9] = [
    Person { name: "plain", shell: "/bin/sh", start_up: &[] },
    Person { name: "noisy", shell: "/bin/bash", start_up: &[(".bashrc", GREETING)] },
    Person { name: "tcshu", shell: "/usr/bin/tcsh", start_up: &[] },
    Person {
        name: "loudcsh",
        shell: "/usr/bin/tcsh",
        start_up: &[(".cshrc", GREETING), (".tcshrc", GREETING)],
    },
    Person { name: "cshu", shell: "/usr/bin/bsd-csh", start_up: &[] },
    Person { name: "fishu", shell: "/usr/bin/fish", start_up: &[(".config/fish/config.fish", GREETING)] },
    Person { name: "zshu", shell: "/usr/bin/zsh", start_up: &[(".zshenv", GREETING)] },
    Person { name: "sftponly", shell: "/bin/sh", start_up: &[] },
    Person { name: "nologin", shell: "/usr/sbin/nologin", start_up: &[] },
];

/// The first user id that they have, and no other on this machine.
const FIRST: u32 = 61_001;

/// This machine, on which these people have accounts, and a real sshd.
struct World {
    here: Here,
    sshd: Child,
    port: u16,
}

impl World {
    /// None, and said so, where it cannot be had.
    fn new() -> Option<Self> {
        let here = Here::new(PROGRAM)?;
        let Some(program) =
            ["/usr/sbin/sshd", "/usr/local/sbin/sshd"].into_iter().find(|at| Path::new(at).exists())
        else {
            eprintln!("SKIPPED: how scripts end over ssh: there is no sshd here");
            return None;
        };
        let at = |name: &str| here.path(name).display().to_string();
        let mut passwd = fs::read_to_string("/etc/passwd").unwrap();
        for (n, person) in PEOPLE.iter().enumerate() {
            let (id, home) = (FIRST + u32::try_from(n).unwrap(), here.path(&format!("home/{}", person.name)));
            passwd += &format!("{}:x:{id}:{id}::{}:{}\n", person.name, home.display(), person.shell);
            fs::create_dir_all(&home).unwrap();
            for (name, text) in person.start_up {
                let file = home.join(name);
                fs::create_dir_all(file.parent().unwrap()).unwrap();
                fs::write(file, text).unwrap();
            }
            give_to(&home, id);
        }
        fs::write(at("passwd"), passwd).unwrap();
        for key in ["host", "user"] {
            let made =
                Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f", &at(key)]).status();
            assert!(made.unwrap().success());
        }
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let known = format!("[127.0.0.1]:{port} {}", fs::read_to_string(at("host.pub")).unwrap());
        fs::write(at("known"), known).unwrap();
        let config = format!(
            "Port {port}\nListenAddress 127.0.0.1\nHostKey {}\nAuthorizedKeysFile {}\nStrictModes no\nUsePAM no\n\
             PidFile none\nMaxStartups 50\nSubsystem sftp internal-sftp\nMatch User sftponly\n  ForceCommand internal-sftp\n",
            at("host"),
            at("user.pub"),
        );
        fs::write(at("sshd"), config).unwrap();
        // In the namespace, where they are people, and whose /run is empty: sshd wants a directory in there.
        let script = "mount --bind \"$2\" /etc/passwd && mkdir -p /run/sshd && exec \"$0\" -D -f \"$1\"";
        let holder = here.holder.id().to_string();
        let words = ["--mount", "--target", &holder, "sh", "-c", script, program, &at("sshd"), &at("passwd")];
        let sshd = Command::new("nsenter").args(words).spawn().unwrap();
        here.until("sshd", || std::net::TcpStream::connect(("127.0.0.1", port)).is_ok());
        Some(Self { here, sshd, port })
    }

    /// Puts a script into the checkout, that all may read.
    fn script(&self, name: &str, text: &str) {
        fs::write(self.here.path("code").join(name), text).unwrap();
    }

    /// A directory in which a run's script may write what is asked about later.
    fn notes(&self, run: &str) -> PathBuf {
        let notes = self.here.path(&format!("notes-{run}"));
        fs::create_dir_all(&notes).unwrap();
        fs::set_permissions(&notes, fs::Permissions::from_mode(0o777)).unwrap();
        notes
    }

    /// `gpu-run`: here, or as one of the people.
    fn command(&self, run: &str, person: Option<&str>, script: &str, more: &[&str]) -> Command {
        let provider =
            person.map_or_else(|| "local".to_owned(), |name| format!("ssh://{name}@127.0.0.1:{}", self.port));
        let known = format!("gpu.known_hosts={}", self.here.path("known").display());
        let key = format!("gpu.ssh_key={}", self.here.path("user").display());
        let (script, notes) = (self.here.path("code").join(script), self.notes(run));
        let first = ["--set", &known, "--set", &key, "gpu-run", script.to_str().unwrap()];
        let then = ["--provider", &provider, "--name", run];
        self.here.command(&[&first, &then[..], more, &["--", notes.to_str().unwrap()]].concat())
    }

    fn run(&self, run: &str, person: Option<&str>, script: &str, more: &[&str]) -> CompletedProcess {
        CompletedProcess::run(&mut self.command(run, person, script, more))
    }

    fn begin(&self, run: &str, person: Option<&str>, script: &str, more: &[&str]) {
        self.run(run, person, script, &[more, &["--detach"]].concat()).assert_code(0);
    }

    fn note(&self, run: &str, name: &str) -> Option<String> {
        fs::read_to_string(self.notes(run).join(name)).ok().filter(|text| text.ends_with('\n'))
    }

    fn until_noted(&self, run: &str, name: &str) -> String {
        self.here.until(&format!("{name} of {run}"), || self.note(run, name).is_some());
        self.note(run, name).unwrap().trim().to_owned()
    }

    fn receipt(&self, run: &str) -> serde_json::Value {
        self.here.until(run, || self.here.events(run).last().is_some_and(|event| event == "returned"));
        self.here.run(&["gpu", "cost", run, "--json"]).json()
    }

    /// Nothing is left where the run was.
    fn nothing_left(&self, run: &str, person: Option<&str>) {
        self.here.nothing_left(run);
        if let Some(name) = person {
            let room = self.here.path(&format!("home/{name}/.echoes-appliance/runs")).join(run);
            assert!(!room.exists(), "{}", room.display());
        }
    }
}

impl Drop for World {
    fn drop(&mut self) {
        let _ = self.sshd.kill();
        let _ = self.sshd.wait();
    }
}

fn give_to(path: &Path, id: u32) {
    chown(path, Some(id), Some(id)).unwrap();
    if path.is_dir() {
        fs::read_dir(path).unwrap().for_each(|entry| give_to(&entry.unwrap().path(), id));
    }
}

/// Whether somebody sleeps for exactly so long.
fn sleeps(long: &str) -> bool {
    let words = ["-f", &format!("^sleep {long}$")];
    Command::new("pgrep").args(words).stdout(Stdio::null()).status().unwrap().success()
}

/// A number of seconds that nobody else sleeps for.
fn long(n: u32) -> String {
    format!("{}.{}", 7000 + n, std::process::id())
}

#[test]
fn a_run_begins_and_ends_whatever_login_shell_its_person_has_and_whatever_that_says() {
    let Some(world) = World::new() else { return };
    world.script("end.sh", "echo \"it's $HOME\" > \"$ECHOES_OUT/made\"\nexit 7\n");
    std::thread::scope(|scope| {
        for person in PEOPLE.iter().filter(|person| !["sftponly", "nologin"].contains(&person.name)) {
            if !Path::new(person.shell).exists() {
                eprintln!("SKIPPED: a run for somebody with {}: it is not here", person.shell);
                continue;
            }
            let world = &world;
            scope.spawn(move || {
                let (name, run) = (person.name, format!("shell-{}", person.name));
                let out = world.run(&run, Some(name), "end.sh", &[]);
                assert_eq!(out.code, 7, "{name}: {out}");
                assert!(out.stderr.contains("gone: all of it"), "{name}: {out}");
                assert!(!out.stderr.contains("tried again soon"), "{name}: {out}");
                let home = world.here.path(&format!("home/{name}"));
                let made = world.here.result(&run, "made");
                assert_eq!(made, Some(format!("it's {}\n", home.display())), "{name}");
                world.nothing_left(&run, Some(name));
            });
        }
    });
}

#[test]
fn an_account_that_runs_no_command_is_refused_at_once_and_told_what_to_do() {
    let Some(world) = World::new() else { return };
    world.script("end.sh", "true\n");
    for (name, said, cure) in [
        ("sftponly", "sftp", "take another account"),
        ("nologin", "not available", "ssh nologin@127.0.0.1 echo here"),
    ] {
        let out = world.run(&format!("no-{name}"), Some(name), "end.sh", &[]);
        assert_eq!(out.code, 86, "{name}: {out}");
        assert!(out.stderr.contains(said) && out.stderr.contains(cure), "{name}: {out}");
        assert!(!out.stderr.contains("tried again soon"), "{name}: {out}");
    }
}

/// Goes on for ever the first time, and leaves something below its folder that has forgotten all else of it.
const TWICE: &str = r#"
if [ "$ECHOES_ATTEMPT" = 1 ]; then
    (cd "$ECHOES_OUT" && exec env -i setsid sleep "$(cat "$1/long")") > /dev/null 2>&1 < /dev/null &
    echo 17 > "$ECHOES_OUT/checkpoint"
    echo $$ > "$1/pid"
    while :; do sleep 0.1; done
fi
echo "attempt $ECHOES_ATTEMPT from $(cat "$ECHOES_OUT/checkpoint")"
exit 7
"#;

#[test]
fn a_script_that_is_ended_together_with_its_keeper_has_a_second_attempt_and_one_that_is_ended_alone_has_not()
{
    let Some(world) = World::new() else { return };
    world.script("twice.sh", TWICE);
    // A shutdown, KillUserProcesses after a connection has dropped, and what has no patience any more. The keeper is told
    // when its script is gone already.
    let ends = [
        ("down", Signal::SIGTERM, Some(Signal::SIGTERM)),
        ("hung", Signal::SIGHUP, Some(Signal::SIGHUP)),
        ("shot", Signal::SIGKILL, Some(Signal::SIGKILL)),
        ("alone", Signal::SIGTERM, None),
    ];
    std::thread::scope(|scope| {
        for (n, person) in [None, Some("plain")].into_iter().enumerate() {
            for (m, (what, first, second)) in ends.into_iter().enumerate() {
                let world = &world;
                scope.spawn(move || {
                    let run = format!("{what}-{}", person.unwrap_or("here"));
                    let forgotten = long(u32::try_from(10 * n + m).unwrap());
                    fs::write(world.notes(&run).join("long"), &forgotten).unwrap();
                    world.begin(&run, person, "twice.sh", &[]);
                    let script = Pid::from_raw(world.until_noted(&run, "pid").parse().unwrap());
                    let keeper = Pid::from_raw(here::keeper(&run).expect("a keeper"));
                    world.here.until("what it leaves behind", || sleeps(&forgotten));
                    if second.is_some() {
                        kill(keeper, Signal::SIGSTOP).unwrap();
                    }
                    kill(script, first).unwrap();
                    if let Some(second) = second {
                        world.here.until("its death", || here::is_dead(script.as_raw()));
                        kill(keeper, second).unwrap();
                        // One that was shot may be gone already.
                        let _ = kill(keeper, Signal::SIGCONT);
                    }
                    let receipt = world.receipt(&run);
                    let status = if second.is_some() { 7 } else { 128 + first as i32 };
                    assert_eq!(receipt["exit_status"], status, "{run}: {receipt}");
                    let log = world.here.result(&run, "log.txt").unwrap_or_default();
                    assert_eq!(log.contains("attempt 2 from 17\n"), second.is_some(), "{run}: {log}");
                    assert!(!sleeps(&forgotten), "{run}: a process is left");
                    world.nothing_left(&run, person);
                });
            }
        }
    });
}

/// What renames itself is as one whose environment was cleared; and both are in a session of their own, far from all files.
const HIDING: &str = r#"
cd /
env -i setsid sleep "$(cat "$1/long")1" > /dev/null 2>&1 < /dev/null &
(setsid env -i sh -c 'sleep "$0" & exec sleep "$1"' "$(cat "$1/long")2" "$(cat "$1/long")3" > /dev/null 2>&1 &)
until pgrep -f "^sleep $(cat "$1/long")2$" && pgrep -f "^sleep $(cat "$1/long")3$"; do sleep 0.05; done
"#;

#[test]
fn what_has_hidden_from_its_run_is_ended_with_it_and_a_stranger_with_our_variable_holds_nothing_up() {
    let Some(world) = World::new() else { return };
    world.script("hiding.sh", HIDING);
    for (n, person) in [None, Some("plain")].into_iter().enumerate() {
        let run = format!("hiding-{}", person.unwrap_or("here"));
        let (hidden, strange) =
            (long(100 + u32::try_from(n).unwrap()), long(200 + u32::try_from(n).unwrap()));
        fs::write(world.notes(&run).join("long"), &hidden).unwrap();
        let stranger = Command::new("setpriv")
            .args(["--reuid", "65534", "--clear-groups", "sleep", &strange])
            .env_clear()
            .env("ECHOES_RUN", &run)
            .spawn()
            .unwrap();
        let stranger = Stranger(stranger);
        world.here.until("the stranger", || sleeps(&strange));
        let since = Instant::now();
        let out = world.run(&run, person, "hiding.sh", &[]);
        out.assert_code(0);
        assert!(out.stderr.contains("gone: all of it"), "{out}");
        for one in [1, 2, 3] {
            assert!(!sleeps(&format!("{hidden}{one}")), "{run}: {one} is left");
        }
        assert!(sleeps(&strange), "{run}: it is not ours to end");
        assert!(since.elapsed() < Duration::from_secs(60), "{run}: {:?}", since.elapsed());
        // Others' environments are root's alone to read.
        let named = out.stderr.contains(&format!("not ours to end: process {} (sleep)", stranger.0.id()));
        assert_eq!(named, person.is_none(), "{run}: {out}");
        drop(stranger);
        world.nothing_left(&run, person);
    }
}

/// Gone when dropped, also by a test that fails: the next one would meet it.
struct Stranger(Child);

impl Drop for Stranger {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A control group with little memory; gone when dropped.
struct Group(PathBuf);

impl Group {
    fn new(bytes: u64) -> Option<Self> {
        let name = format!("echoes-test-{}", std::process::id());
        for (top, limit) in
            [("/sys/fs/cgroup/memory", "memory.limit_in_bytes"), ("/sys/fs/cgroup", "memory.max")]
        {
            let dir = Path::new(top).join(&name);
            if Path::new(top).join("cgroup.procs").exists() && fs::create_dir(&dir).is_ok() {
                let group = Self(dir);
                if fs::write(group.0.join(limit), bytes.to_string()).is_ok() {
                    return Some(group);
                }
            }
        }
        eprintln!("SKIPPED: a script without memory: no control group can be made here");
        None
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.0);
    }
}

#[test]
fn a_script_that_the_kernel_ends_for_want_of_memory_has_run_out_of_memory() {
    let Some(world) = World::new() else { return };
    let Some(group) = Group::new(2 << 30) else { return };
    world.script("greedy.py", "print('greedy', flush=True)\nlen(bytearray(6 << 30))\n");
    world.script("shot.py", "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)\n");
    for (script, words) in [("greedy.py", "out of memory"), ("shot.py", "exit status 137")] {
        let run = script.trim_end_matches(".py");
        let inner = world.command(run, None, script, &[]);
        let mut command = Command::new("sh");
        command
            .args(["-c", "echo $$ > \"$0\" && exec \"$@\""])
            .arg(group.0.join("cgroup.procs"))
            .arg(inner.get_program())
            .args(inner.get_args())
            .env_remove("SUDO_USER")
            .stdin(Stdio::null());
        let out = CompletedProcess::run(&mut command);
        assert_eq!(out.code, 137, "{run}: {out}");
        assert!(out.stderr.contains(&format!("the script has ended: {words}")), "{run}: {out}");
        assert_eq!(out.stdout.contains("for want of memory"), run == "greedy", "{run}: {out}");
        let outcome = &world.receipt(run)["outcome"]["exit"];
        let expected =
            if run == "greedy" { "out-of-memory".into() } else { serde_json::json!({ "code": 137 }) };
        assert_eq!(*outcome, expected, "{run}");
        world.nothing_left(run, None);
    }
}

/// Saves for three seconds, as it was told to end.
const SAVING: &str = r#"
save() { for n in 1 2 3 4 5 6; do sleep 0.5; echo "saving $n"; done; echo whole > "$ECHOES_OUT/final"; exit 0; }
trap save TERM
echo up > "$1/up"
while :; do sleep 0.1; done
"#;

#[test]
fn a_script_that_has_to_end_is_given_the_time_that_was_asked_for_and_it_is_counted_down() {
    let Some(world) = World::new() else { return };
    world.script("saving.sh", SAVING);
    let cases = [
        ("grace-stopped", None, &["--grace", "40s"][..], 85, true),
        ("grace-far", Some("plain"), &["--grace", "40s"], 85, true),
        ("grace-late", None, &["--grace", "40s", "--max-hours", "0.001"], 84, true),
        ("grace-short", Some("plain"), &["--grace", "1"], 85, false),
    ];
    std::thread::scope(|scope| {
        for (run, person, more, status, whole) in cases {
            let world = &world;
            scope.spawn(move || {
                let mut watching = world.command(run, person, "saving.sh", more);
                let watching = watching.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
                world.until_noted(run, "up");
                // What a script does is seen before its driver has noted that it does anything.
                let noted = || world.here.events(run).iter().any(|event| event == "started");
                world.here.until("the driver's note", noted);
                if status == 85 {
                    let out = world.here.run(&["gpu", "stop", run]);
                    out.assert_code(0);
                    let grace = if whole { "it has 40 s to save" } else { "it has 1 s to save" };
                    assert!(out.stderr.contains(grace), "{run}: {out}");
                }
                let out = CompletedProcess::from(watching.wait_with_output().unwrap());
                assert_eq!(out.code, status, "{run}: {out}");
                assert!(!whole || out.stderr.contains("left to save"), "{run}: {out}");
                let saved = world.here.result(run, "final");
                assert_eq!(saved.is_some(), whole, "{run}: {out}");
                world.nothing_left(run, person);
            });
        }
    });
    let journal =
        fs::read_to_string(world.here.inside(&format!("{RUNS}/grace-stopped/journal.jsonl"))).unwrap();
    assert!(journal.lines().next().unwrap().contains("\"grace\":40"), "it is frozen: {journal}");
    assert!(!journal.lines().next().unwrap().contains("\"max_seconds\":86400"), "{journal}");
}

#[test]
fn whoever_is_become_is_so_in_everything_that_the_script_and_its_environment_see() {
    let Some(world) = World::new() else { return };
    let script =
        "env > \"$ECHOES_OUT/mine\"\ntr '\\0' '\\n' < /proc/$PPID/environ > \"$ECHOES_OUT/keepers\"\n";
    world.script("who.sh", script);
    let mut command = world.command("who", None, "who.sh", &[]);
    command.env("SUDO_USER", "plain").env("HOME", "/root").env("USER", "root").env("LOGNAME", "root");
    command.env("XDG_DATA_HOME", "/root/.local/share");
    CompletedProcess::run(&mut command).assert_code(0);
    let home = world.here.path("home/plain").display().to_string();
    for seen in ["mine", "keepers"] {
        let text = world.here.result("who", seen).unwrap();
        let value = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
        for (name, expected) in
            [("HOME", &*home), ("USER", "plain"), ("LOGNAME", "plain"), ("SHELL", "/bin/sh")]
        {
            // A script is given what scripts need, and no login shell.
            let expected = if (seen, name) == ("mine", "SHELL") { value(name) } else { Some(expected) };
            assert_eq!(value(name), expected, "{seen} {name}: {text}");
        }
        assert_eq!(value("XDG_DATA_HOME"), None, "{seen}: {text}");
    }
    let room = world.here.inside("/var/lib/echoes-appliance/machine/plain/runs/who");
    assert!(!room.exists(), "{}", room.display());
}
