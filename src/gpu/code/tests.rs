//! Real directories, and what of them goes.

// Tests look at files and processes directly.
#![allow(clippy::disallowed_methods, clippy::disallowed_types)]

use super::*;
use crate::{host::System, ui::told};
use std::{fs, os::unix::fs::symlink};

fn ourselves() -> Person {
    Person::ourselves().unwrap()
}

fn directory(files: &[&str]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for file in files {
        fs::create_dir_all(dir.path().join(file).parent().unwrap()).unwrap();
        fs::write(dir.path().join(file), "x").unwrap();
    }
    dir
}

fn git(dir: &Path, words: &[&str]) {
    let identity = ["-c", "user.name=t", "-c", "user.email=t@localhost"];
    let done =
        std::process::Command::new("git").arg("-C").arg(dir).args(identity).args(words).output().unwrap();
    assert!(done.status.success(), "git {words:?}: {}", String::from_utf8_lossy(&done.stderr));
}

fn refused(project: &Path) -> (String, String) {
    let error = list(&Host::new("/", System), &ourselves(), project).unwrap_err();
    let (said, hint) = told(&error);
    (said.join(": "), hint.unwrap_or_default().to_owned())
}

#[test]
fn a_directory_with_keys_in_it_is_not_sent() {
    for key in [
        ".ssh/id_ed25519",
        ".aws/credentials",
        ".azure/msal_token_cache.json",
        ".config/gcloud/credentials.db",
        ".kube/config",
        ".gnupg/private-keys-v1.d/x",
        ".netrc",
    ] {
        for deep in ["", "backup/home/"] {
            let dir = directory(&["train.py", &format!("{deep}{key}")]);
            let (said, hint) = refused(dir.path());
            let name = CREDENTIALS.iter().find(|name| key.starts_with(**name)).unwrap();
            assert!(said.contains(&format!("has {name} in it, which opens other places")), "{said}");
            assert!(hint.contains("a folder of its own"), "{hint}");
        }
        // In a checkout, what goes counts.
        let dir = directory(&["train.py", key]);
        git(dir.path(), &["init", "--quiet"]);
        let (said, hint) = refused(dir.path());
        assert!(said.contains("which opens other places") && hint.contains(".gitignore"), "{said} {hint}");
        let first = key.split('/').next().unwrap();
        fs::write(dir.path().join(".gitignore"), format!("{first}\n")).unwrap();
        let code = list(&Host::new("/", System), &ourselves(), dir.path()).unwrap();
        assert_eq!((code.outline.files, code.outline.secret), (2, 0));
        git(dir.path(), &["add", "--force", key]);
        assert!(refused(dir.path()).1.contains("git rm -r --cached"));
    }
    // An empty one, and one that is a link.
    let dir = directory(&["train.py"]);
    fs::create_dir(dir.path().join(".ssh")).unwrap();
    refused(dir.path());
    fs::remove_dir(dir.path().join(".ssh")).unwrap();
    symlink("/nowhere", dir.path().join(".ssh")).unwrap();
    refused(dir.path());
    // What is only called alike.
    let dir = directory(&["train.py", ".sshx", "aws/credentials", ".config/other/x"]);
    assert_eq!(list(&Host::new("/", System), &ourselves(), dir.path()).unwrap().outline.files, 4);
}

#[test]
fn a_home_is_not_sent_and_neither_is_what_has_one_in_it() {
    let world = directory(&["home/ana/train.py", "home/ana/proj/train.py", "srv/app/train.py", "home/x.py"]);
    let at = |name: &str| world.path().join(name);
    // Rooted there, so that its accounts are ours to write. What is listed is a path of this machine.
    let accounts = format!(
        "root:x:0:0::/root:/bin/sh\nana:x:1000:1000::{}:/bin/sh\nsvc:x:999:999::{}:/bin/sh\nnobody:x:65534:65534::/nonexistent:/bin/sh\n",
        at("home/ana").display(),
        at("srv/app").display()
    );
    let mut person = ourselves();
    person.home = "/nonexistent".into();
    let refused = |project: PathBuf, is_checkout| {
        let host = Host::new("/", System);
        let error = ensure_no_home_of(&host, &accounts, &person, &project, is_checkout).unwrap_err();
        let (said, hint) = told(&error);
        assert!(hint.is_none_or(|hint| hint.contains("a folder of its own")));
        said.concat()
    };
    for (project, why) in [("home/ana", "is somebody's home"), ("srv/app", "is somebody's home")] {
        assert!(refused(at(project), false).contains(why));
        assert!(refused(at(project), true).contains(why));
    }
    assert!(refused(at("home"), false).contains("has somebody's home in it"));
    assert!(refused("/".into(), true).contains("/ is the whole machine"));
    symlink(at("home/ana"), at("home/link")).unwrap();
    let mut linked = ourselves();
    linked.home = at("home/link");
    let host = Host::new("/", System);
    assert!(ensure_no_home_of(&host, "", &linked, &at("home/ana"), true).is_err());
    for good in ["home/ana/proj", "srv/app/none"] {
        ensure_no_home_of(&host, &accounts, &person, &at(good), false).unwrap();
    }
    ensure_no_home_of(&host, &accounts, &person, &at("home"), true).unwrap();
}

#[test]
fn links_that_lead_out_and_what_is_no_file_are_left_out_and_said() {
    // As `[code] path` has it.
    let world = directory(&["seed/experiments/t.py", "data/logs/a"]);
    let seed = world.path().join("seed");
    for name in ["logs", "mlruns", "tfruns"] {
        symlink(world.path().join("data").join(name), seed.join(name)).unwrap();
    }
    symlink("experiments/t.py", seed.join("inside")).unwrap();
    symlink("../data", seed.join("up")).unwrap();
    nix::unistd::mkfifo(&seed.join("pipe"), nix::sys::stat::Mode::from_bits_truncate(0o600)).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(seed.join(".s.sock")).unwrap();
    for checkout in [false, true] {
        if checkout {
            git(&seed, &["init", "--quiet"]);
        }
        let code = list(&Host::new("/", System), &ourselves(), &seed).unwrap();
        let remarks = code.outline.remarks(&seed).join("\n");
        for name in ["logs (a link to /", "mlruns", "tfruns", "up (a link to ../data)"] {
            assert!(remarks.contains(name), "{name}: {remarks}");
        }
        // git does not list what is no file at all.
        assert_eq!(remarks.contains("pipe (a socket, a named pipe or a device)"), !checkout, "{remarks}");
        assert!(code.has(&Rel::new("experiments/t.py").unwrap()));
        let (_, tree) = code.read().unwrap();
        let names: Vec<_> = tree.0.iter().map(|entry| entry.path.to_string()).collect();
        assert_eq!(names, ["experiments/t.py", "inside"]);
    }
}

#[test]
fn what_may_be_a_secret_is_named_in_the_plan_and_not_more_than_a_few() {
    let dir =
        directory(&["train.py", ".env", ".env.local", "keys/id_rsa", "keys/id_rsa.pub", "tls/server.pem"]);
    git(dir.path(), &["init", "--quiet"]);
    git(dir.path(), &["add", "."]);
    let lines = || list(&Host::new("/", System), &ourselves(), dir.path()).unwrap().outline.lines(dir.path());
    let expected = "secret by its name, and goes along: .env, .env.local, keys/id_rsa, tls/server.pem";
    assert_eq!(lines(), ["code: 6 files, 6 bytes", expected]);
    for n in 0..40 {
        fs::write(dir.path().join(format!("{n:02}.pem")), "x").unwrap();
    }
    assert!(lines()[1].ends_with(", and 32 more"), "{:?}", lines());
    for (name, is) in
        [(".env", true), ("a/.envrc", true), ("id_ed25519.pub", false), ("env.py", false), ("a.pem", true)]
    {
        assert_eq!(is_secret(name.as_bytes()), is, "{name}");
    }
}
