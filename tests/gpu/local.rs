//! Experiments on this very machine, and on one that is reached by ssh, for real: a driver of its own process, an agent, a
//! script, results at home. In a mount namespace where `/var/lib` and `/run` are empty, so that nothing of it touches the machine it runs on.

use crate::PROGRAM;
use kit::{
    here::{Here, RUNS},
    process::CompletedProcess,
};
use std::{
    fs,
    os::unix::fs::MetadataExt as _,
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

#[test]
fn a_script_runs_here_and_what_it_made_comes_home() {
    let Some(here) = Here::new(PROGRAM) else { return };
    let arguments = here.gpu_run("esn", "2", &["--secret", "API_KEY"]);
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let out = here.run(&arguments);
    let (said, result) = (&out.assert_code(7).stderr, &out.stdout);
    assert!(result.contains("trained on esn\n"), "{result}");
    assert!(result.contains("secret hunter2\n"), "{result}");
    assert!(result.contains("^[[2Jred\n") && !result.contains('\u{1b}'), "{result:?}");
    assert!(said.contains("esn: exit status 7"), "{said}");
    assert!(said.contains("gone: all of it"), "{said}");
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

    let home = here.run(&["gpu", "pull", "esn"]);
    home.assert_code(0).assert_stderr("everything of esn is home");

    // What it is asked about afterwards.
    let again = here.run(&arguments);
    again.assert_code(1).assert_stderr("there are results of a run called esn");
    let attached = here.run(&["gpu", "attach", "esn"]);
    attached.assert_code(7);
    here.run(&["gpu", "ps", "--all"]).assert_stdout("exit status 7");
    here.run(&["gpu", "ps"]).assert_stderr("no run is under way");
    let receipt = here.run(&["gpu", "cost", "esn", "--json"]).json();
    assert_eq!((&receipt["proven_gone"], &receipt["all_home"]), (&true.into(), &true.into()), "{receipt}");
    assert_eq!((&receipt["exit_status"], &receipt["cost"]), (&7.into(), &0.into()), "{receipt}");
    let sweep = here.run(&["gpu", "sweep"]);
    assert_eq!((sweep.code, sweep.stderr.as_str()), (0, "nothing is loose\n"));
}

#[test]
fn a_driver_killed_after_each_entry_of_its_journal_is_replaced_and_the_script_runs_once() {
    let Some(here) = Here::new(PROGRAM) else { return };
    for entry in ["asked", "renting", "rented", "prepared", "started", "exited", "fetched"] {
        let run = format!("after-{entry}");
        fs::write(here.path("starts"), "").unwrap();
        let arguments = here.gpu_run(&run, "3", &["--detach"]);
        let out = here.run(&arguments.iter().map(String::as_str).collect::<Vec<_>>());
        out.assert_code(0);
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
                sweep.assert_code(0);
                swept.set(Instant::now());
            }
            here.events(&run).last().is_some_and(|event| event == "returned")
        });
        assert_eq!(here.starts(), 1, "{run}");
        assert_eq!(here.result(&run, "step2.txt").as_deref(), Some("loss 2"), "{run}");
        here.nothing_left(&run);
        let attached = here.run(&["gpu", "attach", &run]);
        assert_eq!(attached.code, 7, "{run}: {attached}");
    }
}

#[test]
fn ctrl_c_ends_the_watching_and_stop_ends_the_run() {
    let Some(here) = Here::new(PROGRAM) else { return };
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
    let pull = here.run(&["gpu", "pull", "long"]);
    pull.assert_code(0).assert_stderr("come home by themselves");
    let stopped = here.run(&["gpu", "stop", "long"]);
    stopped.assert_code(0);
    let attached = here.run(&["gpu", "attach", "long"]);
    attached.assert_code(85);
    assert!(here.result("long", "step0.txt").is_some());
    here.nothing_left("long");
}

#[test]
fn a_run_that_is_stopped_before_its_script_has_begun_ends_at_once() {
    let Some(here) = Here::new(PROGRAM) else { return };
    for (n, entry) in ["asked", "rented", "prepared", "started"].into_iter().enumerate() {
        let run = format!("early{n}");
        let arguments = here.gpu_run(&run, "600", &["--detach"]);
        let out = here.run(&arguments.iter().map(String::as_str).collect::<Vec<_>>());
        out.assert_code(0);
        here.until(entry, || here.events(&run).iter().any(|event| event == entry));
        let stopped = here.run(&["gpu", "stop", &run]);
        stopped.assert_code(0);
        let since = Instant::now();
        let attached = here.run(&["gpu", "attach", &run]);
        assert_eq!(attached.code, 85, "{run}: {attached}");
        assert!(since.elapsed() < Duration::from_secs(60), "{run} took {:?}", since.elapsed());
        here.nothing_left(&run);
    }
}

#[test]
fn the_doctor_does_a_whole_run_and_leaves_nothing_of_it() {
    let Some(here) = Here::new(PROGRAM) else { return };
    let out = here.run(&["gpu", "doctor", "--live", "--provider", "local"]);
    let (said, rows) = (&out.assert_code(0).stderr, &out.stdout);
    for id in ["rent", "prepare", "start", "run", "script", "fetch", "home", "return", "gone", "cost"] {
        assert!(rows.lines().any(|row| row.contains(&format!("✓  live.{id} "))), "{id}: {rows}");
    }
    assert!(said.contains("gone: all of it"), "{said}");
    let run = here.only_run();
    let expected = ["asked", "renting", "rented", "prepared", "started", "exited", "fetched", "returned"];
    assert_eq!(here.events(&run), expected);
    here.nothing_left(&run);
    assert_eq!(fs::read_dir(here.path("data/azure_results")).unwrap().count(), 0, "its results are gone");
    assert!(!here.inside(&format!("{RUNS}/{run}/checkout")).exists(), "its checkout is gone");
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

    fn gpu_run(&self, here: &Here, name: &str, known: &str, key: &str) -> CompletedProcess {
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
    let Some(here) = Here::new(PROGRAM) else { return };
    let Some(sshd) = Sshd::new(&here) else { return };
    for (known, key, reason, hint) in [
        ("empty", "user", "Host key verification failed", "ssh-keyscan -p"),
        ("mistaken", "user", "Host key verification failed", "ssh-keygen -R"),
        ("known", "other", "Permission denied", "authorized_keys"),
    ] {
        let out = sshd.gpu_run(&here, &format!("no-{known}-{key}"), known, key);
        let said = &out.stderr;
        assert_eq!(out.code, 86, "{known} {key}: {said}");
        assert!(said.contains(reason) && said.contains(hint), "{known} {key}: {said}");
        assert!(!here.path("home/.echoes-appliance").exists(), "{known} {key}");
    }
    let out = sshd.gpu_run(&here, "far", "known", "user");
    let said = &out.stderr;
    out.assert_code(7);
    assert!(said.contains("gone: all of it"), "{said}");
    assert_eq!(here.result("far", "step1.txt").as_deref(), Some("loss 1"));
    out.assert_stdout("trained on far\n");
    here.nothing_left("far");
    let runs = here.path("home/.echoes-appliance/runs");
    assert_eq!(fs::read_dir(runs).unwrap().count(), 0, "what the run brought is gone");
    assert!(here.path("home/.echoes-appliance/bin").exists(), "what runs share is kept");
}
