//! Real checkouts, some of which mean ill, asked by a real git.

// Tests look at files and processes directly.
#![allow(clippy::disallowed_methods, clippy::disallowed_types)]

use super::*;
use crate::host::{System, beneath::Rel};
use std::{fs, os::unix::fs::PermissionsExt as _, process::Command};

fn git(dir: &Path, words: &[&str]) -> String {
    let identity = ["-c", "user.name=t", "-c", "user.email=t@localhost", "-c", "init.defaultBranch=main"];
    // Its own settings start nothing here: these are the fixtures.
    let quiet = ["-c", "core.fsmonitor=false", "-c", "safe.directory=*"];
    let out = Command::new("git").arg("-C").arg(dir).args(identity).args(quiet).args(words).output();
    let out = out.expect("git is needed for this test");
    assert!(out.status.success(), "git {words:?}: {}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8(out.stdout).unwrap()
}

/// A directory that everybody may go through.
fn world() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    dir
}

fn names(listed: &Listed) -> Vec<&str> {
    listed.paths.iter().map(|path| std::str::from_utf8(path).unwrap()).collect()
}

/// A partial clone whose `.gitignore` is said to be somewhere else: to list what is not ignored, git fetches it, by a command
/// that the settings name.
fn trap(at: &Path, proof: &Path) {
    fs::create_dir_all(at).unwrap();
    git(at, &["init", "--quiet"]);
    fs::write(at.join("train.py"), "1").unwrap();
    fs::write(at.join(".gitignore"), "*.pt\n").unwrap();
    git(at, &["add", "."]);
    git(at, &["commit", "--quiet", "-m", "x"]);
    git(at, &["update-index", "--skip-worktree", ".gitignore"]);
    let blob = git(at, &["rev-parse", "HEAD:.gitignore"]);
    let (dir, file) = blob.trim().split_at(2);
    fs::remove_file(at.join(".git/objects").join(dir).join(file)).unwrap();
    fs::remove_file(at.join(".gitignore")).unwrap();
    fs::write(at.join("untracked"), "x").unwrap();
    let command = format!("id > {}; :", proof.display());
    for (name, value) in [
        ("core.repositoryFormatVersion", "1"),
        ("extensions.partialClone", "origin"),
        ("remote.origin.url", "ssh://x/y"),
        ("remote.origin.promisor", "true"),
        ("core.sshCommand", &command),
        ("core.fsmonitor", &command),
        ("filter.x.clean", &command),
        ("filter.x.process", &command),
        ("filter.x.required", "true"),
        ("diff.external", &command),
        ("diff.x.textconv", &command),
        ("diff.x.command", &command),
    ] {
        git(at, &["config", name, value]);
    }
    fs::write(at.join(".git/info/attributes"), "* filter=x diff=x\n").unwrap();
    let hooks = at.join(".git/hooks");
    fs::create_dir_all(&hooks).unwrap();
    for hook in ["post-index-change", "fsmonitor-watchman", "post-checkout"] {
        fs::write(hooks.join(hook), format!("#!/bin/sh\n{command}\n")).unwrap();
        fs::set_permissions(hooks.join(hook), fs::Permissions::from_mode(0o755)).unwrap();
    }
}

#[test]
fn what_a_checkout_s_settings_name_is_not_started_by_anybody() {
    let world = world();
    let (host, us) = (Host::new("/", System), Person::ourselves().unwrap());
    // The fixture is one: git that is not held back falls for it.
    let proof = world.path().join("proof");
    let open = world.path().join("open");
    trap(&open, &proof);
    let _ = Command::new("git").arg("-C").arg(&open).args(["-c", "safe.directory=*", "status"]).output();
    assert!(proof.exists(), "the trap is none");
    fs::remove_file(&proof).unwrap();

    // Its own, and one that came in an archive.
    for (at, project) in [("a", "a"), ("b/vendor/model", "b")] {
        let (at, project) = (world.path().join(at), world.path().join(project));
        if at != project {
            fs::create_dir_all(&project).unwrap();
            git(&project, &["init", "--quiet"]);
            fs::write(project.join("train.py"), "1").unwrap();
        }
        trap(&at, &proof);
        fs::write(at.join("train.py"), "2").unwrap();
        let listed = list(&host, &us, &project);
        assert!(!proof.exists(), "listing {}: {}", project.display(), fs::read_to_string(&proof).unwrap());
        if let Ok(listed) = listed {
            assert!(names(&listed).iter().any(|name| name.ends_with("train.py")), "{listed:?}");
        }
        tags(&host, &us, &project);
        tags(&host, &us, &at);
        assert!(!proof.exists(), "telling of {}: {}", at.display(), fs::read_to_string(&proof).unwrap());
    }
}

#[test]
fn what_differs_is_told_with_every_filter_switched_off() {
    let world = world();
    let (host, us) = (Host::new("/", System), Person::ourselves().unwrap());
    let at = world.path();
    git(at, &["init", "--quiet"]);
    fs::write(at.join("a.py"), "1\n").unwrap();
    git(at, &["add", "."]);
    git(at, &["commit", "--quiet", "-m", "x"]);
    let proof = at.join(".git/proof");
    let command = format!("id > {}; cat", proof.display());
    git(at, &["config", "filter.a b.clean", &command]);
    git(at, &["config", "filter.a b.required", "true"]);
    fs::write(at.join(".git/info/attributes"), "*.py filter=a\\ b\n*.py filter=x\n").unwrap();
    git(at, &["config", "filter.x.clean", &command]);
    fs::write(at.join("a.py"), "2\n").unwrap();
    assert_eq!(tags(&host, &us, at)["echoes.dirty"].len(), 64);
    assert!(!proof.exists());
    git(at, &["config", "filter.a=b.clean", &command]);
    let tags = tags(&host, &us, at);
    assert_eq!((tags.len(), tags.contains_key("mlflow.source.git.commit")), (1, true));
    assert!(!proof.exists());
}

fn give(path: &Path, uid: u32) {
    std::os::unix::fs::lchown(path, Some(uid), Some(uid)).unwrap();
}

/// Whether only root can do what comes, and we are not root.
fn cannot(what: &str) -> bool {
    let cannot = !nix::unistd::geteuid().is_root();
    if cannot {
        eprintln!("SKIPPED: {what}: only root can give files away");
    }
    cannot
}

#[test]
fn a_checkout_goes_along_and_without_one_the_script_s_folder() {
    let world = world();
    let (host, us) = (Host::new("/", System), Person::ourselves().unwrap());
    let at = |name: &str| world.path().join(name);
    host.make_dir(&at("ana/echoes/.git")).unwrap();
    host.make_dir(&at("ana/echoes/experiments")).unwrap();
    host.make_dir(&at("ana/other")).unwrap();
    let found = |script: &str| find(&host, &us, &at(script)).unwrap();
    assert_eq!(found("ana/echoes/experiments/a.py"), at("ana/echoes"));
    assert_eq!(found("ana/other/a.py"), at("ana/other"));
}

#[test]
fn a_checkout_that_a_stranger_has_put_above_a_script_is_refused() {
    if cannot("a stranger's checkout") {
        return;
    }
    let (ana, bob, eve) = (54_321, 54_322, 54_323);
    let world = world();
    let host = Host::new("/", System);
    let at = |name: &str| world.path().join(name);
    let person = |uid| Person::numbered(uid).unwrap();
    for (dir, uid) in [("tmp", 0), ("tmp/.git", eve), ("tmp/job", 0), ("tmp/of-ana", ana)] {
        host.make_dir(&at(dir)).unwrap();
        give(&at(dir), uid);
    }
    for (uid, script) in [(0, "tmp/job/a.py"), (ana, "tmp/of-ana/a.py")] {
        let error = find(&host, &person(uid), &at(script)).unwrap_err();
        let (said, hint) = crate::ui::told(&error);
        assert!(said[0].contains("tmp/.git belongs to 54323, who is neither root"), "{said:?}");
        assert!(hint.unwrap().contains("a folder of your own outside of"), "{hint:?}");
    }
    // A link of hers to somebody's honest one, and a file that names it, are hers.
    for fake in ["link", "file"] {
        host.remove_tree(&at("tmp/.git")).or_else(|_| host.remove(&at("tmp/.git"))).unwrap();
        host.make_dir(&at("honest/.git")).unwrap();
        match fake {
            "link" => std::os::unix::fs::symlink(at("honest/.git"), at("tmp/.git")).unwrap(),
            _ => fs::write(at("tmp/.git"), format!("gitdir: {}\n", at("honest/.git").display())).unwrap(),
        }
        give(&at("tmp/.git"), eve);
        assert!(find(&host, &person(0), &at("tmp/job/a.py")).is_err(), "{fake}");
        host.remove(&at("tmp/.git")).unwrap();
        host.make_dir(&at("tmp/.git")).unwrap();
    }
    // An honest file that names a directory of hers.
    host.remove_tree(&at("tmp/.git")).unwrap();
    host.make_dir(&at("hers")).unwrap();
    give(&at("hers"), eve);
    fs::write(at("tmp/job/.git"), "gitdir: ../../hers\n").unwrap();
    assert!(find(&host, &person(0), &at("tmp/job/a.py")).is_err());

    // A team's: another member's, root's, and what is above a directory of somebody else's is not looked at.
    for (dir, uid) in
        [("team", bob), ("team/.git", bob), ("team/exp", bob), ("roots/.git", 0), ("roots/of-ana", ana)]
    {
        host.make_dir(&at(dir)).unwrap();
        give(&at(dir), uid);
    }
    assert_eq!(find(&host, &person(ana), &at("team/exp/a.py")).unwrap(), at("team"));
    assert_eq!(find(&host, &person(ana), &at("roots/of-ana/a.py")).unwrap(), at("roots"));
    for (dir, uid) in [("up/.git", eve), ("up/hers", eve), ("up/hers/of-ana", ana)] {
        host.make_dir(&at(dir)).unwrap();
        give(&at(dir), uid);
    }
    assert_eq!(find(&host, &person(ana), &at("up/hers/of-ana/a.py")).unwrap(), at("up/hers/of-ana"));
}

#[test]
fn a_checkout_of_another_member_is_listed_by_who_asks_and_not_by_root() {
    if cannot("another member's checkout") {
        return;
    }
    let (ana, bob) = (54_321, 54_322);
    let world = world();
    let host = Host::new("/", System);
    let at = world.path().join("team");
    fs::create_dir(&at).unwrap();
    git(&at, &["init", "--quiet"]);
    fs::write(at.join("train.py"), "1").unwrap();
    fs::create_dir(at.join("shut")).unwrap();
    fs::write(at.join("shut/secret"), "1").unwrap();
    git(&at, &["add", "train.py"]);
    git(&at, &["commit", "--quiet", "-m", "x"]);
    host.run(&Cmd::new("chown", ["-R", &format!("{bob}:{bob}"), at.to_str().unwrap()])).unwrap();
    fs::set_permissions(at.join("shut"), fs::Permissions::from_mode(0o700)).unwrap();
    let of_ana = list(&host, &Person::numbered(ana).unwrap(), &at).unwrap();
    assert_eq!(names(&of_ana), ["train.py"]);
    assert!(of_ana.warnings.concat().contains("shut"), "{of_ana:?}");
    assert_eq!(
        names(&list(&host, &Person::numbered(bob).unwrap(), &at).unwrap()),
        ["shut/secret", "train.py"]
    );
    assert!(tags(&host, &Person::numbered(ana).unwrap(), &at).contains_key("mlflow.source.git.commit"));
    // Asked by root, it is bob's who owns it.
    assert_eq!(reader(&host, "root", &at).unwrap().uid, bob);
    assert_eq!(reader(&host, "54321", &at).unwrap().uid, ana);
    assert!(reader(&host, "no-such-user", &at).is_err());
}

#[test]
fn a_worktree_and_a_submodule_are_listed_as_git_has_them() {
    let world = world();
    let (host, us) = (Host::new("/", System), Person::ourselves().unwrap());
    let (main, lib) = (world.path().join("main"), world.path().join("lib"));
    for (at, file) in [(&lib, "lib.py"), (&main, "train.py")] {
        fs::create_dir(at).unwrap();
        git(at, &["init", "--quiet"]);
        fs::write(at.join(file), "1").unwrap();
        fs::write(at.join(".gitignore"), "*.pt\n").unwrap();
        git(at, &["add", "."]);
        git(at, &["commit", "--quiet", "-m", "x"]);
    }
    let words = ["-c", "protocol.file.allow=always", "submodule", "--quiet", "add"];
    git(&main, &[&words[..], &[lib.to_str().unwrap(), "lib"]].concat());
    git(&main, &["commit", "--quiet", "-m", "lib"]);
    for file in ["lib/big.pt", "big.pt", "lib/new.py"] {
        fs::write(main.join(file), "1").unwrap();
    }
    let listed = list(&host, &us, &main).unwrap();
    let expected = [".gitignore", ".gitmodules", "lib/.gitignore", "lib/lib.py", "lib/new.py", "train.py"];
    assert_eq!(names(&listed), expected);
    git(&main, &["worktree", "add", "--quiet", "-b", "other", "../other"]);
    let other = world.path().join("other");
    fs::write(other.join("big.pt"), "1").unwrap();
    assert_eq!(find(&host, &us, &other.join("train.py")).unwrap(), other);
    assert_eq!(names(&list(&host, &us, &other).unwrap()), [".gitignore", ".gitmodules", "lib", "train.py"]);
    assert!(tags(&host, &us, &other).contains_key("mlflow.source.git.commit"));
}

#[test]
fn a_commit_is_told_and_what_differs_from_it() {
    let (commit, diff) = ("a".repeat(40), "b".repeat(64));
    let clean = told(&format!("{commit}\n"));
    assert_eq!(clean, [("mlflow.source.git.commit".into(), commit.clone())].into());
    let dirty = told(&format!("{commit}\n{diff}  -\n"));
    assert_eq!((dirty.len(), dirty["echoes.dirty"].as_str()), (2, diff.as_str()));
    assert_eq!(told("fatal: not a git repository\n"), Tags::new());
}

#[test]
fn a_real_checkout_says_what_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path().to_str().unwrap();
    let host = Host::new("/", System);
    let git = |words: &[&str]| {
        let first = ["-C", at, "-c", "user.name=a", "-c", "user.email=a@b.c"];
        host.run(&Cmd::new("git", first.iter().chain(words).copied())).unwrap()
    };
    git(&["init", "-q"]);
    host.write(&dir.path().join("a.py"), 0o644, b"1\n").unwrap();
    git(&["add", "."]);
    git(&["commit", "-q", "-m", "first"]);
    let us = Person::ourselves().unwrap();
    let look = || tags(&host, &us, dir.path());
    let commit = git(&["rev-parse", "HEAD"]).trim().to_owned();
    assert_eq!(look(), [("mlflow.source.git.commit".into(), commit)].into());
    host.write(&dir.path().join("a.py"), 0o644, b"2\n").unwrap();
    let first = look();
    assert_eq!(first["echoes.dirty"].len(), 64);
    assert_eq!(look(), first);
    host.write(&dir.path().join("a.py"), 0o644, b"3\n").unwrap();
    assert_ne!(look()["echoes.dirty"], first["echoes.dirty"]);
    let none = tempfile::tempdir().unwrap();
    assert_eq!(tags(&host, &us, none.path()), Tags::new());
}

#[test]
fn what_git_quotes_is_read_as_it_was() {
    let table: [(&str, Option<&[u8]>); 6] = [
        ("a b", Some(b"a b")),
        (r#""a\tb\n\"\\\303\251\377""#, Some(b"a\tb\n\"\\\xc3\xa9\xff")),
        (r#""cut"#, None),
        (r#""a\30""#, None),
        (r#""\"#, None),
        (r#""""#, Some(b"")),
    ];
    for (line, expected) in table {
        assert_eq!(unquoted(line).as_deref(), expected, "{line}");
    }
}

#[test]
fn fuzz_git_names_are_paths_or_refused() {
    crate::fuzz::run("git", &["\"", "\\303\\274", "\\\\", "\\377", "../", "/"], |bytes| {
        let text = String::from_utf8_lossy(bytes);
        let mut taken = Ok(());
        for line in text.lines() {
            let name = unquoted(line).with_context(|| format!("reading {line}"))?;
            taken = taken.and(
                Rel::try_from(name)
                    .map(|rel| assert_eq!(Rel::try_from(rel.as_path()), Ok(rel)))
                    .map_err(|why| anyhow!(why)),
            );
        }
        taken
    });
}
