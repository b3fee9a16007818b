//! Whose files are read, and by whom: the program as root, for a person whose folder, or whose archive in it, means ill, and
//! for one whose home has keys in it. Nothing that a file asks for is done, and nothing is read that its person cannot read.

use crate::PROGRAM;
use kit::{
    here::{Here, RUNS, noise},
    process::CompletedProcess,
    sshd::inside,
};
use std::{
    fs,
    os::unix::fs::{PermissionsExt as _, chown, symlink},
    path::{Path, PathBuf},
    process::Command,
};

const ANA: u32 = 54_321;
const EVE: u32 = 54_323;

/// Says who and where it is, and what it was sent.
const WHO: &str = r#"
import os, pathlib
print("uid", os.getuid(), "home", os.environ.get("HOME"), "user", os.environ.get("USER"), flush=True)
print("handed on", sorted(name for name in os.environ if name.startswith("SUDO")), flush=True)
keeper = pathlib.Path(f"/proc/{os.getppid()}/environ").read_bytes().split(b"\0")
print("keeper", sorted(one.decode() for one in keeper if one.startswith((b"SUDO", b"HOME=", b"API_KEY"))), flush=True)
print("sent", sorted(str(path) for path in pathlib.Path(".").rglob("*") if not path.is_dir()), flush=True)
"#;

/// A checkout whose settings have git run a command when it lists what is in it: a partial clone, with a `.gitignore` that
/// is said to be in it and is not.
const TRAP: &str = r#"
set -eu
at=$1 proof=$2
mkdir -p "$at" && cd "$at"
git init --quiet .
echo 'print("ran")' > train.py
echo '*.pt' > .gitignore
git add . && git -c user.name=t -c user.email=t@localhost commit --quiet -m x
git update-index --skip-worktree .gitignore
blob=$(git rev-parse HEAD:.gitignore)
rm -f ".git/objects/$(echo "$blob" | cut -c 1-2)/$(echo "$blob" | cut -c 3-)" .gitignore
touch untracked
git config core.repositoryFormatVersion 1
git config extensions.partialClone origin
git config remote.origin.url ssh://x/y
git config remote.origin.promisor true
git config core.sshCommand "id >> $proof; :"
git config core.fsmonitor "id >> $proof; :"
"#;

fn owned(path: &Path, uid: u32) {
    let all = ["-R", "-h", &format!("{uid}:{uid}"), path.to_str().unwrap()].map(str::to_owned);
    CompletedProcess::run(Command::new("chown").args(all)).assert_code(0);
}

/// A machine with ana on it, who has a home there.
fn here() -> Option<Here> {
    let here = Here::new(PROGRAM)?;
    here.add_person("ana", ANA);
    Some(here)
}

fn trap(at: &Path, proof: &Path, uid: u32) {
    let words = ["-c", TRAP, "sh", at.to_str().unwrap(), proof.to_str().unwrap()];
    CompletedProcess::run(Command::new("sh").args(words)).assert_code(0);
    owned(at, uid);
}

/// Typed by somebody behind `sudo`, or by root.
fn gpu_run(here: &Here, who: Option<&str>, script: &Path, more: &[&str]) -> CompletedProcess {
    let first = ["gpu-run", script.to_str().unwrap(), "--provider", "local"];
    let mut command = here.command(&[&first[..], more].concat());
    if let Some(who) = who {
        command.env("SUDO_USER", who).env("HOME", "/root").env("USER", "root").env("LOGNAME", "root");
    }
    CompletedProcess::run(&mut command)
}

fn runs(here: &Here) -> usize {
    fs::read_dir(here.inside(RUNS)).map_or(0, Iterator::count)
}

/// For ana's files, below what everybody may go through.
fn folder(here: &Here, name: &str, files: &[(&str, &str)]) -> PathBuf {
    let folder = here.path(name);
    for (file, text) in files {
        fs::create_dir_all(folder.join(file).parent().unwrap()).unwrap();
        fs::write(folder.join(file), text).unwrap();
    }
    owned(&folder, ANA);
    folder
}

#[test]
fn nothing_is_run_that_a_checkout_asks_for_whoever_has_it_and_whoever_asks() {
    let Some(here) = here() else { return };
    let proofs = here.path("proofs");
    fs::create_dir(&proofs).unwrap();
    fs::set_permissions(&proofs, fs::Permissions::from_mode(0o777)).unwrap();
    let proof = proofs.join("proof");
    let unharmed = || assert!(!proof.exists(), "{}", fs::read_to_string(&proof).unwrap());

    // Somebody's own checkout, which root runs.
    let theirs = here.path("theirs");
    trap(&theirs, &proof, EVE);
    let out = gpu_run(&here, None, &theirs.join("train.py"), &["--name", "theirs"]);
    unharmed();
    out.assert_code(0).assert_stdout("ran");

    // An archive with a checkout in it, unpacked in an honest one.
    let honest = folder(&here, "honest", &[("train.py", WHO), (".gitignore", "*.pt\n")]);
    // It is hers already, and this is root.
    let init = "git() { command git -c safe.directory='*' -C \"$at\" \"$@\"; }; at=$0; git init --quiet && git add .";
    CompletedProcess::run(Command::new("sh").args(["-c", init, honest.to_str().unwrap()])).assert_code(0);
    trap(&honest.join("model"), &proof, ANA);
    owned(&honest, ANA);
    let out = gpu_run(&here, Some("ana"), &honest.join("train.py"), &["--name", "honest"]);
    unharmed();
    out.assert_code(0)
        .assert_stdout("model/untracked")
        .assert_stdout(&format!("uid {ANA} home /home/ana user ana"));

    // A checkout that somebody has put above a script.
    let shared = here.path("shared");
    trap(&shared, &proof, EVE);
    fs::create_dir(shared.join("job")).unwrap();
    chown(&shared, Some(0), Some(0)).unwrap();
    fs::set_permissions(&shared, fs::Permissions::from_mode(0o1777)).unwrap();
    fs::write(shared.join("job/train.py"), "print(1)").unwrap();
    let before = runs(&here);
    let out = gpu_run(&here, None, &shared.join("job/train.py"), &[]);
    unharmed();
    out.assert_code(1)
        .assert_stderr("shared/.git belongs to 54323, who is neither root, nor the person who asks");
    assert_eq!(runs(&here), before, "it was begun");
}

#[test]
fn a_run_is_its_person_s_in_what_is_read_and_in_its_environment() {
    let Some(here) = here() else { return };
    let large = String::from_utf8_lossy(&noise(400_000)).into_owned();
    let files = [("train.py", WHO), ("deep/module.py", "1"), ("large", large.as_str())];
    let project = folder(&here, "project", &files);
    fs::write(project.join("key"), "hers").unwrap();
    chown(project.join("key"), Some(ANA), Some(ANA)).unwrap();
    fs::set_permissions(project.join("key"), fs::Permissions::from_mode(0o600)).unwrap();
    let run = |more: &[&str]| gpu_run(&here, Some("ana"), &project.join("train.py"), more);
    // The settings of these stories come by --set, so that the driver is no unit.
    let out = run(&["--name", "hers"]);
    out.assert_code(0).assert_stdout(&format!(
        "uid {ANA} home /home/ana user ana\nhanded on []\nkeeper ['HOME=/home/ana']\n"
    ));
    out.assert_stdout("sent ['deep/module.py', 'key', 'large', 'train.py']");
    out.assert_stderr("code: 4 files");

    // What she cannot read is not read for her, and nothing is begun.
    let before = runs(&here);
    fs::write(here.path("roots"), "secret").unwrap();
    fs::set_permissions(here.path("roots"), fs::Permissions::from_mode(0o600)).unwrap();
    let secret = format!("KEY=@{}", here.path("roots").display());
    let out = run(&["--secret", &secret]);
    out.assert_code(1).assert_stderr("roots");
    assert!(!out.text().contains("secret\n"), "{out}");
    let own = format!("KEY=@{}", project.join("key").display());
    run(&["--secret", &own, "--dry-run"]).assert_code(0);
    let root_only = project.join("root-only");
    fs::write(&root_only, "x").unwrap();
    fs::set_permissions(&root_only, fs::Permissions::from_mode(0o600)).unwrap();
    for shut in ["root-only", "shut"] {
        let out = run(&[]);
        out.assert_code(1).assert_stderr(shut).assert_stderr("EACCES");
        if shut == "root-only" {
            fs::remove_file(&root_only).unwrap();
            fs::create_dir(project.join("shut")).unwrap();
            fs::set_permissions(project.join("shut"), fs::Permissions::from_mode(0o700)).unwrap();
        }
    }
    fs::remove_dir(project.join("shut")).unwrap();
    assert_eq!(runs(&here), before, "it was begun");
    let out = run(&["--name", "again"]);
    out.assert_code(0);
}

#[test]
fn what_was_not_meant_does_not_go_and_the_original_page_s_layout_does() {
    let Some(here) = here() else { return };
    // In the namespace alone.
    let script = "echo 'print(1)' > /home/ana/train.py && mkdir /home/ana/.ssh && echo k > /home/ana/.ssh/id_rsa && \
                  chown -R ana /home/ana";
    inside(here.holder.id(), script, &["sh"]);
    let out = gpu_run(&here, Some("ana"), Path::new("/home/ana/train.py"), &[]);
    out.assert_code(1).assert_stderr("/home/ana is somebody's home").assert_stderr("a folder of its own");
    for key in [".ssh/id_rsa", ".config/gcloud/x", ".netrc"] {
        let dir = folder(&here, "keys", &[("train.py", "print(1)"), (key, "k")]);
        let out = gpu_run(&here, Some("ana"), &dir.join("train.py"), &[]);
        out.assert_code(1).assert_stderr("which opens other places");
        fs::remove_dir_all(dir).unwrap();
    }
    assert_eq!(runs(&here), 0, "something was begun");

    let seed = folder(&here, "seed", &[("experiments/t.py", WHO), (".env", "A=1")]);
    for name in ["logs", "mlruns", "tfruns"] {
        fs::create_dir(here.path("data").join(name)).unwrap();
        symlink(here.path("data").join(name), seed.join(name)).unwrap();
    }
    CompletedProcess::run(Command::new("git").arg("-C").arg(&seed).args(["init", "--quiet"])).assert_code(0);
    owned(&seed, ANA);
    let out = gpu_run(&here, Some("ana"), &seed.join("experiments/t.py"), &["--name", "seed"]);
    out.assert_code(0).assert_stdout("sent ['.env', 'experiments/t.py']");
    out.assert_stderr("left out: logs (a link to ").assert_stderr("secret by its name, and goes along: .env");
}

#[test]
fn root_follows_no_link_that_a_script_has_put_into_its_run_s_directory() {
    let Some(here) = here() else { return };
    let (home, etc) = (here.path("agent"), here.path("etc"));
    let run = home.join("runs/r1");
    fs::create_dir(&etc).unwrap();
    fs::write(etc.join("shadow"), "{\"code\":0}").unwrap();
    fs::set_permissions(etc.join("shadow"), fs::Permissions::from_mode(0o600)).unwrap();
    let agent = |verb: &str| {
        let words = ["agent", verb, "--home", home.to_str().unwrap(), "--run", "r1"];
        let words = [&words[..], if verb == "leave" { &[] } else { &["--as", "ana"] }].concat();
        let mut command = Command::new("nsenter");
        command
            .args(["--mount", "--target", &here.holder.id().to_string(), "timeout", "60", PROGRAM])
            .args(words);
        CompletedProcess::run(&mut command)
    };
    let links = [
        ("watch.lock", "nologin"),
        ("agent.log", "nologin"),
        ("begun.json", "shadow"),
        ("exit.json", "shadow"),
        ("order.json", "shadow"),
        ("stop.json", "shadow"),
        ("outlived.json", "pipe"),
    ];
    nix::unistd::mkfifo(&etc.join("pipe"), nix::sys::stat::Mode::from_bits_truncate(0o666)).unwrap();
    for (name, to) in links {
        agent("standing").assert_code(0).assert_stdout("waiting");
        symlink(etc.join(to), run.join(name)).unwrap();
        if !name.ends_with(".json") {
            fs::write(run.join("begun.json"), "{\"first\":1,\"until\":null,\"attempt\":1}").unwrap();
        }
        // What cannot be started is waited for.
        let verbs: &[_] =
            if name.ends_with(".json") { &["standing", "leave"] } else { &["standing", "start", "leave"] };
        for verb in verbs {
            let out = agent(verb);
            assert_ne!(out.code, 124, "{name} {verb}: {out}");
            assert!(!etc.join("nologin").exists(), "{name} {verb}: {out}");
            assert!(
                !out.stdout.contains("exited"),
                "{name} {verb}: what root alone may read was read: {out}"
            );
        }
        assert!(!run.exists(), "{name}");
    }
}
