//! Experiments on this very machine, and on one that is reached by ssh, for real: a driver of its own process, an agent, a
//! script, results at home. In a mount namespace where `/var/lib` and `/run` are empty, so that nothing of it touches the machine it runs on.

// Tests look at files and processes directly.
#![allow(clippy::disallowed_methods, clippy::print_stderr)]

use std::{
    fs,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    time::{Duration, Instant},
};
use tempfile::TempDir;

const PROGRAM: &str = env!("CARGO_BIN_EXE_echoes-appliance");
const RUNS: &str = "/var/lib/echoes-appliance/runs";

/// It says so, makes something, and exits with what it is told to. `starts` counts how often it was begun.
const SCRIPT: &str = r#"
import os, pathlib, sys, time
here = pathlib.Path(sys.argv[1])
with open(here / "starts", "a") as starts:
    starts.write("x")
print("secret", os.environ.get("API_KEY", "none"), flush=True)
print("\x1b[2Jred", flush=True)
out = pathlib.Path(os.environ["ECHOES_OUT"])
for step in range(int(sys.argv[2])):
    (out / f"step{step}.txt").write_text(f"loss {step}")
    time.sleep(0.5)
print("trained on", os.environ["ECHOES_RUN"], flush=True)
sys.exit(7)
"#;

/// A machine of our own, as far as these stories look.
struct Here {
    holder: Child,
    dir: TempDir,
}

impl Here {
    /// None, and said so, where it cannot be had.
    fn new() -> Option<Self> {
        if !nix::unistd::geteuid().is_root() {
            eprintln!("SKIPPED: experiments on this machine: only root may give an experiment a machine");
            return None;
        }
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let ready = dir.path().join("ready");
        let script =
            "mount -t tmpfs none /var/lib && mount -t tmpfs none /run && touch \"$0\" && exec sleep 900";
        let holder = Command::new("unshare")
            .args(["--mount", "--propagation", "private", "sh", "-c", script])
            .arg(&ready)
            .spawn()
            .unwrap();
        let mut here = Self { holder, dir };
        let since = Instant::now();
        while !ready.exists() {
            if since.elapsed() > Duration::from_secs(10) || here.holder.try_wait().unwrap().is_some() {
                eprintln!("SKIPPED: experiments on this machine: no mount namespace can be had here");
                return None;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        let code = here.path("code");
        fs::create_dir(&code).unwrap();
        fs::write(code.join("train.py"), SCRIPT).unwrap();
        fs::create_dir(here.path("data")).unwrap();
        Some(here)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A path of the namespace, as it is seen from here.
    fn inside(&self, path: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root{path}", self.holder.id()))
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("nsenter");
        let data = format!("data.path={}", self.path("data").display());
        command
            .args(["--mount", "--target", &self.holder.id().to_string(), PROGRAM, "--set", &data])
            .args(arguments)
            .env("API_KEY", "hunter2")
            .env_remove("SUDO_USER")
            .stdin(Stdio::null());
        command
    }

    fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    fn gpu_run(&self, name: &str, steps: &str, more: &[&str]) -> Vec<String> {
        let (script, here) = (self.path("code/train.py"), self.dir.path().to_str().unwrap());
        let first = ["gpu-run", script.to_str().unwrap(), "--provider", "local", "--name", name];
        [&first, more, &["--", here, steps]].concat().into_iter().map(Into::into).collect()
    }

    fn events(&self, run: &str) -> Vec<String> {
        let text =
            fs::read_to_string(self.inside(&format!("{RUNS}/{run}/journal.jsonl"))).unwrap_or_default();
        let events = text.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
        events.map(|event| event["event"].as_str().unwrap().to_owned()).collect()
    }

    /// Wait for it, and not for ever.
    fn until(&self, what: &str, seen: impl Fn() -> bool) {
        let since = Instant::now();
        while !seen() {
            assert!(since.elapsed() < Duration::from_secs(60), "{what} did not come: {}", self.logs());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// What drivers have said, and which of them are there.
    fn logs(&self) -> String {
        let dirs = fs::read_dir(self.inside(RUNS)).into_iter().flatten().flatten();
        let log = |dir: fs::DirEntry| {
            let said = fs::read_to_string(dir.path().join("driver.log")).unwrap_or_default();
            let events = self.events(dir.file_name().to_str()?);
            Some(format!("{}: {events:?}\n{said}", dir.path().display()))
        };
        format!("{:?}\n{}", self.drivers(), dirs.filter_map(log).collect::<String>())
    }

    /// The drivers that are ours, with their runs, by their own words.
    fn drivers(&self) -> Vec<(i32, String)> {
        let data = format!("data.path={}", self.path("data").display());
        let driver = |entry: fs::DirEntry| {
            let line = fs::read(entry.path().join("cmdline")).ok()?;
            let words: Vec<String> = line
                .split(|byte| *byte == 0)
                .map(|word| String::from_utf8_lossy(word).into_owned())
                .collect();
            let at = words.windows(2).position(|pair| pair == ["gpu", "drive"])?;
            let ours = words[0].ends_with("echoes-appliance") && words.contains(&data);
            ours.then(|| Some((entry.file_name().to_str()?.parse().ok()?, words.get(at + 2)?.clone())))
                .flatten()
        };
        fs::read_dir("/proc").unwrap().flatten().filter_map(driver).collect()
    }

    fn driver(&self, run: &str) -> Option<i32> {
        self.drivers().into_iter().find(|(_, of)| of == run).map(|(id, _)| id)
    }

    fn starts(&self) -> usize {
        fs::read(self.path("starts")).unwrap_or_default().len()
    }

    fn result(&self, run: &str, name: &str) -> Option<String> {
        find(&self.path("data/azure_results").join(run), name).map(|path| fs::read_to_string(path).unwrap())
    }

    fn nothing_left(&self, run: &str) {
        let room = self.inside("/var/lib/echoes-appliance/machine/root/runs").join(run);
        assert!(!room.exists(), "{}", room.display());
        let mark = format!("ECHOES_RUN={run}");
        let mark = |entry: &fs::DirEntry| {
            let environment = fs::read(entry.path().join("environ")).unwrap_or_default();
            environment.split(|byte| *byte == 0).any(|one| one == mark.as_bytes())
        };
        assert!(!fs::read_dir("/proc").unwrap().flatten().any(|entry| mark(&entry)), "a process is left");
        let secrets = self.inside(&format!("{RUNS}/{run}/secrets.json"));
        assert!(!secrets.exists(), "a secret is left");
    }
}

impl Drop for Here {
    fn drop(&mut self) {
        for (id, _) in self.drivers() {
            let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(id), nix::sys::signal::SIGKILL);
        }
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}

fn find(dir: &Path, name: &str) -> Option<PathBuf> {
    fs::read_dir(dir).ok()?.flatten().find_map(|entry| {
        let path = entry.path();
        if path.is_dir() { find(&path, name) } else { (entry.file_name() == name).then_some(path) }
    })
}

fn words(out: &[u8]) -> String {
    String::from_utf8_lossy(out).into_owned()
}

#[test]
fn a_script_runs_here_and_what_it_made_comes_home() {
    let Some(here) = Here::new() else { return };
    let arguments = here.gpu_run("esn", "2", &["--secret", "API_KEY"]);
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let out = here.run(&arguments);
    let (said, result) = (words(&out.stderr), words(&out.stdout));
    assert_eq!(out.status.code(), Some(7), "{said}{result}");
    assert!(result.contains("trained on esn\n"), "{result}");
    assert!(result.contains("secret hunter2\n"), "{result}");
    assert!(result.contains("^[[2Jred\n") && !result.contains('\u{1b}'), "{result:?}");
    assert!(said.contains("esn: exit status 7"), "{said}");
    assert!(said.contains("gone: all of it, looked for twice"), "{said}");
    assert_eq!(here.result("esn", "step1.txt").as_deref(), Some("loss 1"));
    assert!(here.result("esn", "log.txt").unwrap().contains("trained on esn"));
    here.nothing_left("esn");

    let journal = here.inside(&format!("{RUNS}/esn/journal.jsonl"));
    let meta = fs::metadata(&journal).unwrap();
    assert_eq!((meta.mode() & 0o777, meta.uid()), (0o600, 0));
    let text = fs::read_to_string(&journal).unwrap();
    assert!(!text.contains("hunter2") && text.contains("API_KEY"), "{text}");
    let expected = ["asked", "renting", "rented", "prepared", "started", "exited", "fetched", "returned"];
    assert_eq!(here.events("esn"), expected);

    // What it is asked about afterwards.
    let again = here.run(&arguments);
    assert_eq!(again.status.code(), Some(1));
    assert!(words(&again.stderr).contains("there was a run called esn already"), "{}", words(&again.stderr));
    let attached = here.run(&["gpu", "attach", "esn"]);
    assert_eq!(attached.status.code(), Some(7), "{}", words(&attached.stderr));
    assert!(words(&here.run(&["gpu", "ps", "--all"]).stdout).contains("exit status 7"));
    assert!(words(&here.run(&["gpu", "ps"]).stderr).contains("no run is under way"));
    let receipt = here.run(&["gpu", "cost", "esn", "--json"]);
    let receipt: serde_json::Value = serde_json::from_slice(&receipt.stdout).unwrap();
    assert_eq!((&receipt["proven_gone"], &receipt["all_home"]), (&true.into(), &true.into()), "{receipt}");
    assert_eq!((&receipt["exit_status"], &receipt["cost"]), (&7.into(), &0.into()), "{receipt}");
    let sweep = here.run(&["gpu", "sweep"]);
    assert_eq!((sweep.status.code(), words(&sweep.stderr).as_str()), (Some(0), "nothing is loose\n"));
}

#[test]
fn a_driver_killed_after_each_entry_of_its_journal_is_replaced_and_the_script_runs_once() {
    let Some(here) = Here::new() else { return };
    for entry in ["asked", "renting", "rented", "prepared", "started", "exited", "fetched"] {
        let run = format!("after-{entry}");
        fs::write(here.path("starts"), "").unwrap();
        let arguments = here.gpu_run(&run, "3", &["--detach"]);
        let out = here.run(&arguments.iter().map(String::as_str).collect::<Vec<_>>());
        assert_eq!(out.status.code(), Some(0), "{}", words(&out.stderr));
        here.until(entry, || here.events(&run).iter().any(|event| event == entry));
        // It may have come further, or to its end.
        if let Some(pid) = here.driver(&run) {
            let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::SIGKILL);
            here.until("its death", || here.driver(&run).is_none());
        }
        // As the timer does, only sooner: a lock outlives the process that is seen to be gone by a moment.
        let swept = std::cell::Cell::new(Instant::now() - Duration::from_secs(9));
        here.until("the end", || {
            if swept.get().elapsed() > Duration::from_secs(3) {
                let sweep = here.run(&["gpu", "sweep"]);
                assert_eq!(sweep.status.code(), Some(0), "{}", words(&sweep.stderr));
                swept.set(Instant::now());
            }
            here.events(&run).last().is_some_and(|event| event == "returned")
        });
        assert_eq!(here.starts(), 1, "{run}");
        assert_eq!(here.result(&run, "step2.txt").as_deref(), Some("loss 2"), "{run}");
        here.nothing_left(&run);
        let attached = here.run(&["gpu", "attach", &run]);
        assert_eq!(attached.status.code(), Some(7), "{run}: {}", words(&attached.stderr));
    }
}

#[test]
fn ctrl_c_ends_the_watching_and_stop_ends_the_run() {
    let Some(here) = Here::new() else { return };
    let arguments = here.gpu_run("long", "600", &[]);
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let mut watching = here.command(&arguments).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    here.until("its first result", || here.result("long", "step0.txt").is_some());
    // nsenter has become the program.
    let pid = nix::unistd::Pid::from_raw(i32::try_from(watching.id()).unwrap());
    nix::sys::signal::kill(pid, nix::sys::signal::SIGINT).unwrap();
    assert_eq!(watching.wait().unwrap().code(), Some(130));
    let mut said = String::new();
    std::io::Read::read_to_string(&mut watching.stderr.take().unwrap(), &mut said).unwrap();
    for command in ["gpu attach long", "gpu logs -f long", "gpu ps", "gpu stop long"] {
        assert!(said.contains(command), "{command} is not in {said}");
    }
    assert!(here.driver("long").is_some(), "the run goes on");
    assert_eq!(here.events("long").last().unwrap(), "started");
    let stopped = here.run(&["gpu", "stop", "long"]);
    assert_eq!(stopped.status.code(), Some(0), "{}", words(&stopped.stderr));
    let attached = here.run(&["gpu", "attach", "long"]);
    assert_eq!(attached.status.code(), Some(85), "{}", words(&attached.stderr));
    assert!(here.result("long", "step0.txt").is_some());
    here.nothing_left("long");
}

#[test]
fn a_run_that_is_stopped_before_its_script_has_begun_ends_at_once() {
    let Some(here) = Here::new() else { return };
    for (n, entry) in ["asked", "rented", "prepared", "started"].into_iter().enumerate() {
        let run = format!("early{n}");
        let arguments = here.gpu_run(&run, "600", &["--detach"]);
        let out = here.run(&arguments.iter().map(String::as_str).collect::<Vec<_>>());
        assert_eq!(out.status.code(), Some(0), "{}", words(&out.stderr));
        here.until(entry, || here.events(&run).iter().any(|event| event == entry));
        let stopped = here.run(&["gpu", "stop", &run]);
        assert_eq!(stopped.status.code(), Some(0), "{}", words(&stopped.stderr));
        let since = Instant::now();
        let attached = here.run(&["gpu", "attach", &run]);
        assert_eq!(attached.status.code(), Some(85), "{run}: {}", words(&attached.stderr));
        assert!(since.elapsed() < Duration::from_secs(60), "{run} took {:?}", since.elapsed());
        here.nothing_left(&run);
    }
}

/// A real sshd on a free port, whose people live in a directory of ours.
struct Sshd(Child, u16);

impl Sshd {
    fn new(here: &Here) -> Option<Self> {
        let Some(sshd) =
            ["/usr/sbin/sshd", "/usr/local/sbin/sshd"].into_iter().find(|at| Path::new(at).exists())
        else {
            eprintln!("SKIPPED: experiments over ssh: there is no sshd here");
            return None;
        };
        let at = |name: &str| here.path(name).display().to_string();
        for key in ["host", "user", "other"] {
            let made =
                Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f", &at(key)]).status();
            assert!(made.unwrap().success());
        }
        fs::create_dir(here.path("home")).unwrap();
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let known = |key: &str| format!("[127.0.0.1]:{port} {}", fs::read_to_string(at(key)).unwrap());
        fs::write(at("known"), known("host.pub")).unwrap();
        fs::write(at("mistaken"), known("other.pub")).unwrap();
        fs::write(at("empty"), "").unwrap();
        let config = format!(
            "Port {port}\nListenAddress 127.0.0.1\nHostKey {}\nAuthorizedKeysFile {}\nStrictModes no\nUsePAM no\n\
             PermitRootLogin yes\nPidFile none\nSetEnv HOME={}\n",
            at("host"),
            at("user.pub"),
            at("home"),
        );
        fs::write(at("sshd"), config).unwrap();
        // In the namespace, whose /run is empty: sshd wants a directory in there.
        let script = "mkdir -p /run/sshd && exec \"$0\" -D -f \"$1\"";
        let holder = here.holder.id().to_string();
        let words = ["--mount", "--target", &holder, "sh", "-c", script, sshd, &at("sshd")];
        let child = Command::new("nsenter").args(words).spawn().unwrap();
        here.until("sshd", || std::net::TcpStream::connect(("127.0.0.1", port)).is_ok());
        Some(Self(child, port))
    }

    fn gpu_run(&self, here: &Here, name: &str, known: &str, key: &str) -> Output {
        let machine = format!("ssh://root@127.0.0.1:{}", self.1);
        let known = format!("gpu.known_hosts={}", here.path(known).display());
        let key = format!("gpu.ssh_key={}", here.path(key).display());
        let (script, dir) = (here.path("code/train.py"), here.dir.path().to_str().unwrap());
        let words = ["--set", &known, "--set", &key, "gpu-run", script.to_str().unwrap()];
        here.run(&[&words[..], &["--provider", &machine, "--name", name, "--", dir, "2"]].concat())
    }
}

impl Drop for Sshd {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_machine_that_the_team_owns_is_worked_on_only_when_it_is_the_one_we_know() {
    let Some(here) = Here::new() else { return };
    let Some(sshd) = Sshd::new(&here) else { return };
    for (known, key, reason, hint) in [
        ("empty", "user", "Host key verification failed", "ssh-keyscan -p"),
        ("mistaken", "user", "Host key verification failed", "ssh-keygen -R"),
        ("known", "other", "Permission denied", "authorized_keys"),
    ] {
        let out = sshd.gpu_run(&here, &format!("no-{known}-{key}"), known, key);
        let said = words(&out.stderr);
        assert_eq!(out.status.code(), Some(86), "{known} {key}: {said}");
        assert!(said.contains(reason) && said.contains(hint), "{known} {key}: {said}");
        assert!(!here.path("home/.echoes-appliance").exists(), "{known} {key}");
    }
    let out = sshd.gpu_run(&here, "far", "known", "user");
    let said = words(&out.stderr);
    assert_eq!(out.status.code(), Some(7), "{said}{}", words(&out.stdout));
    assert!(said.contains("gone: all of it, looked for twice"), "{said}");
    assert_eq!(here.result("far", "step1.txt").as_deref(), Some("loss 1"));
    assert!(words(&out.stdout).contains("trained on far\n"));
    here.nothing_left("far");
    let runs = here.path("home/.echoes-appliance/runs");
    assert_eq!(fs::read_dir(runs).unwrap().count(), 0, "what the run brought is gone");
    assert!(here.path("home/.echoes-appliance/bin").exists(), "what runs share is kept");
}
