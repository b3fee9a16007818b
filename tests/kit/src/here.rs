//! Experiments with a driver of its own process, an agent and a script, all real: in a mount namespace where `/var/lib`
//! and `/run` are empty, so that nothing of it touches the machine it runs on.

use crate::process::CompletedProcess;
use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};
use tempfile::TempDir;

pub const RUNS: &str = "/var/lib/echoes-appliance/runs";

/// It says so, makes something, and exits with what it is told to. `starts` counts how often it was begun.
pub const SCRIPT: &str = r#"
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
pub struct Here {
    /// Path of the program under test.
    pub program: &'static str,
    pub holder: Child,
    pub dir: TempDir,
}

impl Here {
    /// Makes one for the program at this path. None, and said so, where it cannot be had.
    pub fn new(program: &'static str) -> Option<Self> {
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
        let mut here = Self { program, holder, dir };
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

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The story's directory, as it is called in the namespace and here.
    pub fn signs(&self) -> (String, PathBuf) {
        (self.dir.path().display().to_string(), self.dir.path().into())
    }

    /// A path of the namespace, as it is seen from here.
    pub fn inside(&self, path: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root{path}", self.holder.id()))
    }

    /// Somebody who lives in the namespace, and nowhere else. Once for each story.
    pub fn add_person(&self, name: &str, id: u32) {
        let (passwd, home) = (self.path("passwd"), format!("/home/{name}"));
        let people = fs::read_to_string("/etc/passwd").unwrap();
        fs::write(&passwd, format!("{people}{name}:x:{id}:{id}::{home}:/bin/sh\n")).unwrap();
        let script = "mount -t tmpfs none /home && mkdir -p \"$1\" /run/sshd && chown \"$2:$2\" \"$1\" && \
                      mount --bind \"$0\" /etc/passwd";
        let (passwd, id) = (passwd.to_str().unwrap(), id.to_string());
        crate::sshd::inside(self.holder.id(), script, &[passwd, &home, &id]);
    }

    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("nsenter");
        let data = format!("data.path={}", self.path("data").display());
        command
            .args(["--mount", "--target", &self.holder.id().to_string(), self.program, "--set", &data])
            .args(arguments)
            .env("API_KEY", "hunter2")
            .env_remove("SUDO_USER")
            .stdin(Stdio::null());
        command
    }

    /// As `command`, with more settings, each as `KEY=VALUE`.
    pub fn command_with(&self, settings: &[String], arguments: &[&str]) -> Command {
        let settings: Vec<&str> = settings.iter().flat_map(|one| ["--set", one.as_str()]).collect();
        self.command(&[&settings[..], arguments].concat())
    }

    pub fn run(&self, arguments: &[&str]) -> CompletedProcess {
        CompletedProcess::run(&mut self.command(arguments))
    }

    pub fn gpu_run(&self, name: &str, steps: &str, more: &[&str]) -> Vec<String> {
        let (script, here) = (self.path("code/train.py"), self.dir.path().to_str().unwrap());
        let first = ["gpu-run", script.to_str().unwrap(), "--provider", "local", "--name", name];
        [&first, more, &["--", here, steps]].concat().into_iter().map(Into::into).collect()
    }

    pub fn events(&self, run: &str) -> Vec<String> {
        let text =
            fs::read_to_string(self.inside(&format!("{RUNS}/{run}/journal.jsonl"))).unwrap_or_default();
        let events = text.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
        events.map(|event| event["event"].as_str().unwrap().to_owned()).collect()
    }

    /// The name of the one run that there was.
    pub fn only_run(&self) -> String {
        let mut all: Vec<_> = fs::read_dir(self.inside(RUNS)).unwrap().flatten().collect();
        assert_eq!(all.len(), 1, "{all:?}");
        all.remove(0).file_name().into_string().unwrap()
    }

    /// Wait for it, and not for ever.
    pub fn until(&self, what: &str, seen: impl Fn() -> bool) {
        let since = Instant::now();
        while !seen() {
            assert!(since.elapsed() < Duration::from_secs(150), "{what} did not come: {}", self.logs());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// What drivers have said, and which of them are there.
    pub fn logs(&self) -> String {
        let dirs = fs::read_dir(self.inside(RUNS)).into_iter().flatten().flatten();
        let log = |dir: fs::DirEntry| {
            let said = fs::read_to_string(dir.path().join("driver.log")).unwrap_or_default();
            let events = self.events(dir.file_name().to_str()?);
            Some(format!("{}: {events:?}\n{said}", dir.path().display()))
        };
        format!("{:?}\n{}", self.drivers(), dirs.filter_map(log).collect::<String>())
    }

    pub fn drivers(&self) -> Vec<(i32, String)> {
        drivers(&self.path("data"))
    }

    pub fn driver(&self, run: &str) -> Option<i32> {
        self.drivers().into_iter().find(|(_, of)| of == run).map(|(id, _)| id)
    }

    pub fn starts(&self) -> usize {
        fs::read(self.path("starts")).unwrap_or_default().len()
    }

    pub fn result(&self, run: &str, name: &str) -> Option<String> {
        find(&self.path("data/azure_results").join(run), name).map(|path| fs::read_to_string(path).unwrap())
    }

    pub fn nothing_left(&self, run: &str) {
        let room = self.inside("/var/lib/echoes-appliance/machine/root/runs").join(run);
        assert!(!room.exists(), "{}", room.display());
        let mark = format!("ECHOES_RUN={run}");
        let mark = |entry: &fs::DirEntry| {
            let environment = fs::read(entry.path().join("environ")).unwrap_or_default();
            environment.split(|byte| *byte == 0).any(|one| one == mark.as_bytes())
        };
        let left = fs::read_dir("/proc").unwrap().flatten().filter(mark).map(|entry| {
            let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
            format!("process {:?}: {}", entry.file_name(), String::from_utf8_lossy(&line).replace('\0', " "))
        });
        assert_eq!(left.collect::<Vec<_>>(), Vec::<String>::new(), "left of {run}");
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

/// Every process with its command line.
fn processes() -> impl Iterator<Item = (i32, Vec<String>)> {
    fs::read_dir("/proc").unwrap().flatten().filter_map(|entry| {
        let line = fs::read(entry.path().join("cmdline")).ok()?;
        let words = line.split(|byte| *byte == 0).map(|word| String::from_utf8_lossy(word).into_owned());
        Some((entry.file_name().to_str()?.parse().ok()?, words.collect()))
    })
}

/// The drivers whose data are there, with their runs, by their own words.
pub fn drivers(data: &Path) -> Vec<(i32, String)> {
    let data = format!("data.path={}", data.display());
    let driver = |(pid, words): (i32, Vec<String>)| {
        let at = words.windows(2).position(|pair| pair == ["gpu", "drive"])?;
        let ours = words[0].ends_with("echoes-appliance") && words.contains(&data);
        ours.then(|| Some((pid, words.get(at + 2)?.clone()))).flatten()
    };
    processes().filter_map(driver).collect()
}

/// The process that keeps a run's script on its machine.
pub fn keeper(run: &str) -> Option<i32> {
    let keeps = |words: &[String]| {
        words.get(1..3).is_some_and(|verb| verb == ["agent", "watch"]) && words.iter().any(|word| word == run)
    };
    processes().find_map(|(pid, words)| keeps(&words).then_some(pid))
}

/// Bytes that cannot be made smaller: each number's first digest.
pub fn noise(len: u32) -> Vec<u8> {
    (0..len).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect()
}

/// Whether a process has let go of all that it held. Its entry may stay until somebody asks how it ended.
pub fn is_dead(pid: i32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_none_or(|(_, rest)| rest.starts_with(['Z', 'X']))
}

fn find(dir: &Path, name: &str) -> Option<PathBuf> {
    fs::read_dir(dir).ok()?.flatten().find_map(|entry| {
        let path = entry.path();
        if path.is_dir() { find(&path, name) } else { (entry.file_name() == name).then_some(path) }
    })
}
