//! A tree on its way: whatever is at either end, it arrives as it is, or not at all. What receives it is the agent's
//! own `mirror`, over a pair of pipes.

// Tests look at files and processes directly.
#![allow(clippy::disallowed_methods, clippy::disallowed_types)]

use super::*;
use crate::{
    gpu::{
        agent::{
            attend, mirror,
            site::{Ask, Look, Site},
        },
        code,
        job::is_nonsense,
        spec::RunId,
        wire::tests::pair,
    },
    host::{Host, System, beneath::OnDisk, person::Person},
};
use std::{
    ffi::OsStr,
    fs,
    os::unix::fs::{PermissionsExt as _, symlink},
    path::{Path, PathBuf},
};

fn quiet(_: &str) {}

/// A project's code, as we read it ourselves.
fn code(host: &Host, project: &Path, say: &dyn Fn(&str)) -> Result<(Beneath, Tree)> {
    let code = code::list(host, &Person::ourselves()?, project)?;
    code.outline.remarks(project).iter().for_each(|line| say(line));
    code.read()
}

fn data(host: &Host, path: &Path, known: &mut Known) -> Result<(Beneath, Tree)> {
    let dir = Beneath::open(host, path)?.context("there is none")?;
    let tree = read_known(&dir, dir.walk(1000)?, known)?;
    Ok((dir, tree))
}

/// A directory with these files in it.
fn directory(files: &[(&str, &str)]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    put(dir.path(), files);
    dir
}

fn put(dir: &Path, files: &[(&str, &str)]) {
    for (path, text) in files {
        std::fs::create_dir_all(dir.join(path).parent().unwrap()).unwrap();
        std::fs::write(dir.join(path), text).unwrap();
    }
}

/// Everything that is there, as a line each.
fn shown(dir: &Path) -> Vec<String> {
    let host = Host::new("/", System);
    let beneath = Beneath::open(&host, dir).unwrap().unwrap();
    let line = |found: Found| {
        let path = found.path.unwrap();
        match found.kind {
            Kind::File => {
                let text = std::fs::read_to_string(dir.join(path.as_path())).unwrap();
                format!("{path} {text}{}", if found.mode & 0o100 != 0 { " *" } else { "" })
            }
            Kind::Link(to) => format!("{path} -> {}", to.display()),
            other => format!("{path} {other:?}"),
        }
    };
    beneath.walk(1000).unwrap().into_iter().map(line).collect()
}

fn names(tree: &Tree) -> Vec<&str> {
    tree.0.iter().map(|entry| std::str::from_utf8(entry.path.as_bytes()).unwrap()).collect()
}

fn paths(to: &Path) -> (PathBuf, PathBuf) {
    (to.join("tree"), to.join("mark"))
}

/// Send it, as it was listed.
fn sent(dir: &Beneath, tree: &Tree, to: &Path, squeeze: Squeeze) -> Result<Sent> {
    let (mut hq, mut agent) = pair();
    let ((into, mark), hash) = (paths(to), tree.hash());
    let receiving = std::thread::spawn(move || {
        let received =
            mirror::receive(&Host::new("/", System), &mut agent, (&into, &mark), &hash, squeeze, OnDisk::Now);
        if let Err(error) = &received {
            agent.break_off(error);
        }
        received
    });
    let sent = send(&mut hq, dir, tree, squeeze);
    drop(hq);
    let received = receiving.join().unwrap();
    sent.and_then(|sent| received.map(|()| sent))
}

fn mirrored(from: &Path, to: &Path) -> Result<Sent> {
    let host = Host::new("/", System);
    let (dir, tree) = code(&host, from, &quiet)?;
    sent(&dir, &tree, to, Squeeze::Yes)
}

#[test]
fn what_is_there_is_exactly_what_is_here() {
    let (from, to) =
        (directory(&[("a.py", "a"), ("src/b.py", "b"), ("run", "#!"), ("empty", "")]), directory(&[]));
    let there = to.path().join("tree");
    std::fs::set_permissions(from.path().join("run"), std::fs::Permissions::from_mode(0o755)).unwrap();
    symlink("src/b.py", from.path().join("link")).unwrap();
    assert_eq!(mirrored(from.path(), to.path()).unwrap(), Sent { files: 4, bytes: 4, removed: 0 });
    assert_eq!(shown(&there), ["a.py a", "empty ", "link -> src/b.py", "run #! *", "src/b.py b"]);
    // Nothing changed: nothing is sent, and nothing is looked at.
    assert_eq!(mirrored(from.path(), to.path()).unwrap(), Sent::default());
    // Everything that can change: contents, a mode, a file that becomes a directory and a directory that becomes a file,
    // a link that becomes a file, what is gone here, and what somebody left there.
    std::fs::remove_file(from.path().join("link")).unwrap();
    std::fs::remove_file(from.path().join("a.py")).unwrap();
    std::fs::remove_dir_all(from.path().join("src")).unwrap();
    std::fs::set_permissions(from.path().join("run"), std::fs::Permissions::from_mode(0o644)).unwrap();
    put(from.path(), &[("link", "file"), ("a.py/deep", "d"), ("src", "file"), ("empty", "")]);
    put(&there, &[("left/over", "x"), ("empty", "spoilt")]);
    let second = mirrored(from.path(), to.path()).unwrap();
    assert_eq!(shown(&there), ["a.py/deep d", "empty ", "link file", "run #!", "src file"]);
    assert_eq!(second.files, 4, "what was there already is not sent again: {second:?}");
}

#[test]
fn a_killed_transfer_is_gone_on_with_and_is_never_taken_for_whole() {
    let long: Vec<(String, String)> =
        (0..40).map(|n| (format!("f{n:02}"), format!("{n}").repeat(30_000))).collect();
    let files: Vec<_> = long.iter().map(|(name, text)| (name.as_str(), text.as_str())).collect();
    let (from, host) = (directory(&files), Host::new("/", System));
    let (dir, tree) = data(&host, from.path(), &mut Known::new()).unwrap();
    // How much goes over, in whole.
    let mut resumed = 0;
    for cut in [0, 1, 4, 5, 3000, 200_000, 700_000, 1_500_000] {
        let to = directory(&[]);
        let (into, mark) = paths(to.path());
        let (from_agent, to_hq) = std::io::pipe().unwrap();
        let (from_hq, to_agent) = std::io::pipe().unwrap();
        let hash = tree.hash();
        let at = (into.clone(), mark.clone());
        let receiving = std::thread::spawn(move || {
            let mut agent = Wire::answering(from_hq.take(cut), to_hq).unwrap();
            let at = (&*at.0, &*at.1);
            mirror::receive(&Host::new("/", System), &mut agent, at, &hash, Squeeze::No, OnDisk::Now)
        });
        let mut hq = Wire::asking(Box::new(from_agent), Box::new(to_agent)).unwrap();
        assert!(send(&mut hq, &dir, &tree, Squeeze::No).is_err(), "cut at {cut}");
        drop(hq);
        assert!(receiving.join().unwrap().is_err(), "cut at {cut}");
        assert!(!mark.exists(), "cut at {cut}");
        let left = shown(&into).iter().filter(|line| line.starts_with(".echoes-part")).count();
        assert_eq!(left, 0, "cut at {cut}");
        let again = sent(&dir, &tree, to.path(), Squeeze::No).unwrap();
        resumed += 40 - again.files;
        assert_eq!(shown(&into), shown(from.path()), "cut at {cut}");
    }
    assert!(resumed > 20, "what had come was not sent again: {resumed}");
}

#[test]
fn a_file_that_changes_under_way_is_noticed_however_it_changes() {
    let host = Host::new("/", System);
    type Change = fn(&Path);
    let changes: [(&str, Change); 5] = [
        ("longer", |path| std::fs::write(path, "12345").unwrap()),
        ("shorter", |path| std::fs::write(path, "123").unwrap()),
        ("other", |path| std::fs::write(path, "abcd").unwrap()),
        ("gone", |path| std::fs::remove_file(path).unwrap()),
        ("a link", |path| {
            std::fs::remove_file(path).unwrap();
            symlink("/etc/passwd", path).unwrap();
        }),
    ];
    for (what, change) in changes {
        for squeeze in [Squeeze::Yes, Squeeze::No] {
            let (from, to) = (directory(&[("a", "first"), ("b", "1234"), ("c", "last")]), directory(&[]));
            let (dir, tree) = code(&host, from.path(), &quiet).unwrap();
            change(&from.path().join("b"));
            let error = sent(&dir, &tree, to.path(), squeeze).unwrap_err();
            assert!(error.is::<Changed>(), "{what}: {error:#}");
            assert!(!to.path().join("mark").exists(), "{what}");
            assert!(!to.path().join("tree/b").exists(), "{what}");
        }
    }
}

#[test]
fn a_link_that_leads_out_of_a_dataset_stops_everything_and_says_which() {
    for to in ["/etc/passwd", "../secret", "b/../../secret"] {
        let from = directory(&[("a", "")]);
        symlink(to, from.path().join("bad")).unwrap();
        let error = data(&Host::new("/", System), from.path(), &mut Known::new()).err().unwrap();
        let (said, hint) = crate::ui::told(&error);
        assert!(said[0].contains(&format!("the link bad leads to {to}")), "{said:?}");
        assert!(hint.unwrap().contains("replace bad by the file itself"));
    }
}

#[test]
fn what_receives_believes_no_list() {
    let link = |to: &str| What::Link { to: Spelling::Text(to.into()) };
    let file = || What::file(1, 0o644, hex(&Sha256::digest(b"x")));
    let entry = |path: &str, what| Entry { path: Rel::new(path).unwrap(), what };
    let from = directory(&[("a", "x"), ("d/a", "x")]);
    let dir = Beneath::open(&Host::new("/", System), from.path()).unwrap().unwrap();
    let to = directory(&[("else/kept", "kept")]);
    for list in [vec![entry("a", link("../else"))], vec![entry("d", link("/etc")), entry("d/a", file())]] {
        assert!(sent(&dir, &Tree(list), to.path(), Squeeze::No).is_err());
    }
    // A link of an earlier tree in the place of a directory is not gone through.
    std::fs::create_dir_all(to.path().join("tree")).unwrap();
    symlink("../else", to.path().join("tree/d")).unwrap();
    sent(&dir, &Tree(vec![entry("d/a", file())]), to.path(), Squeeze::No).unwrap();
    assert_eq!(shown(&to.path().join("tree")), ["d/a x"]);
    assert_eq!(shown(&to.path().join("else")), ["kept kept"]);
}

#[test]
fn what_is_there_once_is_sent_once_whatever_is_asked_for() {
    let from = directory(&[("a", "x"), ("b", "y")]);
    let (dir, tree) = code(&Host::new("/", System), from.path(), &quiet).unwrap();
    let lists = ["[0,0]", "[1,0]", "[2]", "[0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15]"];
    for (list, why) in lists.into_iter().zip(["a file twice", "a file twice", "in no list", "more than"]) {
        let (mut hq, mut agent) = pair();
        let asking = std::thread::spawn(move || {
            agent.tell(&Have::Other).unwrap();
            agent.draw::<Tree>(1 << 20).unwrap();
            agent.pour(&serde_json::from_str::<Vec<usize>>(list).unwrap()).unwrap();
            let _ = agent.hear_if_any::<String>();
        });
        let error = send(&mut hq, &dir, &tree, Squeeze::No).unwrap_err();
        assert!(is_nonsense(&error) && error.to_string().contains(why), "{list}: {error:#}");
        drop(hq);
        asking.join().unwrap();
    }
}

fn git(dir: &Path, words: &str) {
    let identity = ["-c", "user.name=t", "-c", "user.email=t@localhost", "-c", "init.defaultBranch=main"];
    let done = std::process::Command::new("git")
        .arg("-C")
        .arg(dir)
        .args(identity)
        .args(words.split(' '))
        .output()
        .expect("git is needed for this test");
    assert!(done.status.success(), "git {words}: {}", String::from_utf8_lossy(&done.stderr));
}

#[test]
fn of_a_checkout_goes_what_git_tracks_and_what_it_does_not_ignore() {
    let from = directory(&[
        (".gitignore", "*.pt\n/data/\n!keep.pt\n"),
        ("train.py", "v1"),
        ("gone.py", ""),
        ("forced.pt", "tracked all the same"),
        ("keep.pt", ""),
        ("big.pt", ""),
        ("data/x", ""),
        ("lib/.gitignore", "*.tmp"),
        ("lib/a b.py", ""),
        ("lib/ä.tmp", ""),
        ("inner/own.py", ""),
        ("inner/.gitignore", "private"),
        ("inner/private", ""),
    ]);
    let dir = from.path();
    git(dir, "init --quiet");
    git(dir, "add --force train.py gone.py forced.pt .gitignore");
    git(dir, "commit --quiet -m x");
    git(&dir.join("inner"), "init --quiet");
    put(dir, &[("train.py", "changed and not committed")]);
    std::fs::remove_file(dir.join("gone.py")).unwrap();
    // What a checkout's settings would have git start is not started.
    git(dir, "config core.fsmonitor /bin/false-and-loud");
    let said = std::sync::Mutex::new(Vec::new());
    let say = |line: &str| said.lock().unwrap().push(line.to_owned());
    let (_, tree) = code(&Host::new("/", System), dir, &say).unwrap();
    let expected = [
        ".gitignore",
        "forced.pt",
        "inner/.gitignore",
        "inner/own.py",
        "keep.pt",
        "lib/.gitignore",
        "lib/a b.py",
        "train.py",
    ];
    assert_eq!(names(&tree), expected);
    assert!(said.lock().unwrap().is_empty());
}

#[test]
fn of_any_other_directory_goes_everything_but_what_is_made_and_that_is_said() {
    let from = directory(&[("a.py", ""), ("__pycache__/a.pyc", ""), (".venv/bin/x", ""), (".hidden", "")]);
    let said = std::sync::Mutex::new(Vec::new());
    let say = |line: &str| said.lock().unwrap().push(line.to_owned());
    let (_, tree) = code(&Host::new("/", System), from.path(), &say).unwrap();
    assert_eq!(names(&tree), [".hidden", "a.py"]);
    let said = said.lock().unwrap().join("");
    assert!(said.ends_with("is no git checkout: everything goes but .venv, __pycache__"), "{said}");
}

#[test]
fn a_dataset_is_read_through_once() {
    let (from, host) = (directory(&[("a", "1"), ("b/c", "2")]), Host::new("/", System));
    let mut known = Known::new();
    let first = data(&host, from.path(), &mut known).unwrap().1;
    // What is known is believed: a wrong hash stays.
    let a = Rel::new("a").unwrap();
    known.get_mut(&a).unwrap().1 = "known".into();
    let second = data(&host, from.path(), &mut known).unwrap().1;
    assert_ne!(first, second);
    assert_ne!(first.hash(), second.hash());
    put(from.path(), &[("a", "11")]);
    let third = data(&host, from.path(), &mut known).unwrap().1;
    let hash = hex(&Sha256::digest("11"));
    assert_eq!(third.0[0].what, What::file(2, 0o644, hash));
}

#[test]
fn a_directory_looks_the_same_only_where_nothing_in_it_is_another() {
    let dir = directory(&[("a/b", "1"), ("c", "22")]);
    let host = Host::new("/", System);
    let look = |path: &Path| outline(&Beneath::open(&host, path).unwrap().unwrap()).unwrap();
    let first = look(dir.path());
    assert_eq!((first.files, first.bytes), (2, 3));
    assert_eq!(look(dir.path()), first);
    // Of the same length, and as old as it was.
    let times = std::fs::metadata(dir.path().join("c")).unwrap().modified().unwrap();
    std::fs::write(dir.path().join("new"), "33").unwrap();
    std::fs::File::open(dir.path().join("new")).unwrap().set_modified(times).unwrap();
    std::fs::rename(dir.path().join("new"), dir.path().join("c")).unwrap();
    let other = look(dir.path());
    assert_eq!((other.files, other.bytes), (2, 3));
    assert_ne!(other.hash, first.hash);
    symlink("c", dir.path().join("d")).unwrap();
    assert_eq!((look(dir.path()).files, look(dir.path()).bytes), (3, 3));
}

/// As headquarters sends a run's code to a machine that keeps it.
fn sent_to_be_kept(home: &Path, run: &str, from: &Path) -> Result<Sent> {
    let site = Site { home: home.into(), run: RunId::try_from(run.to_owned()).unwrap() };
    let (mut hq, mut agent) = pair();
    let attending = std::thread::spawn(move || attend(&Host::new("/", System), &site, &mut agent));
    let (dir, tree) = code(&Host::new("/", System), from, &quiet)?;
    hq.tell(&Ask::Code { hash: tree.hash(), keep: Some(Rel::new("project-1")?) })?;
    let sent = send(&mut hq, &dir, &tree, Squeeze::Yes);
    // The next answer comes only after the run has its own.
    let next = sent.and_then(|sent| {
        hq.tell(&Ask::Look)?;
        hq.hear::<Look>().map(|_| sent)
    });
    drop(hq);
    let attended = attending.join().unwrap();
    next.and_then(|sent| attended.map(|()| sent))
}

#[test]
fn code_that_is_kept_is_sent_once_and_each_run_has_its_own() {
    let from = directory(&[("train.py", "one"), ("deep/module.py", "two")]);
    fs::set_permissions(from.path().join("train.py"), fs::Permissions::from_mode(0o755)).unwrap();
    symlink("deep/module.py", from.path().join("link")).unwrap();
    let home = tempfile::tempdir().unwrap();
    let sent = |run: &str| sent_to_be_kept(home.path(), run, from.path());
    let own = |run: &str| home.path().join("runs").join(run).join("code");
    assert_eq!(sent("r1").unwrap().files, 2);
    assert_eq!(shown(&own("r1")), shown(from.path()));
    // What a script does to its own code is not what the next run gets.
    fs::write(own("r1").join("train.py"), "other").unwrap();
    assert_eq!(sent("r2").unwrap().files, 0);
    assert_eq!(shown(&own("r2")), shown(from.path()));
    // The same run once more, as after a crash of whoever sent it.
    assert_eq!(sent("r2").unwrap().files, 0);
    put(from.path(), &[("deep/module.py", "three")]);
    fs::remove_file(from.path().join("link")).unwrap();
    let changed = sent("r3").unwrap();
    assert_eq!((changed.files, changed.removed), (1, 1));
    assert_eq!(shown(&own("r3")), shown(from.path()));

    // Of the same length: what is kept is believed by its hash alone.
    fs::write(home.path().join("code/project-1/train.py"), "ONE").unwrap();
    let error = sent("r4").unwrap_err();
    assert!(format!("{error:#}").contains("was changed by somebody"), "{error:#}");
    assert_eq!(sent("r4").unwrap().files, 1);
    assert_eq!(shown(&own("r4")), shown(from.path()));

    let host = Host::new("/", System);
    let _busy = host.ledger(&home.path().join("code/project-1.lock")).unwrap();
    assert_eq!(sent("r5").unwrap().files, 2, "it comes for itself");
    assert_eq!(shown(&own("r5")), shown(from.path()));
}

#[test]
fn names_that_are_no_text_go_along() {
    let from = directory(&[("a", "x"), ("new\nline\t\"quoted\"\\", "x")]);
    std::fs::write(from.path().join(OsStr::from_bytes(b"caf\xe9.txt")), "x").unwrap();
    symlink(OsStr::from_bytes(b"caf\xe9.txt"), from.path().join("link")).unwrap();
    std::fs::create_dir(from.path().join("empty")).unwrap();
    let git = |args: &[&str]| {
        let out = std::process::Command::new("git").arg("-C").arg(from.path()).args(args).output().unwrap();
        assert!(out.status.success(), "{out:?}");
    };
    for checkout in [false, true] {
        if checkout {
            git(&["init", "--quiet"]);
            git(&["add", "a"]);
        }
        let (dir, tree) = code(&Host::new("/", System), from.path(), &quiet).unwrap();
        let to = directory(&[]);
        sent(&dir, &tree, to.path(), Squeeze::Yes).unwrap();
        let there = to.path().join("tree");
        let expected = ["a x", "caf\\xE9.txt x", "link -> caf\u{fffd}.txt", "new\\nline\\t\"quoted\"\\ x"];
        assert_eq!(shown(&there), expected, "a checkout: {checkout}");
        assert_eq!(std::fs::read(there.join("link")).unwrap(), b"x");
    }
}

#[test]
fn nobody_may_more_there_than_here() {
    let modes =
        [("a", 0o600), ("b", 0o640), ("c", 0o664), ("d", 0o700), ("e", 0o755), ("f", 0o444), ("g", 0o400)];
    let from = directory(&modes.map(|(name, _)| (name, "x")));
    for (name, mode) in modes {
        fs::set_permissions(from.path().join(name), fs::Permissions::from_mode(mode)).unwrap();
    }
    let home = tempfile::tempdir().unwrap();
    let there = |at: PathBuf| {
        modes.map(|(name, _)| fs::metadata(at.join(name)).unwrap().permissions().mode() & 0o7777)
    };
    sent_to_be_kept(home.path(), "r1", from.path()).unwrap();
    let expected = [0o600, 0o640, 0o644, 0o700, 0o755, 0o644, 0o600];
    assert_eq!(there(home.path().join("code/project-1")), expected);
    assert_eq!(there(home.path().join("runs/r1/code")), expected);
    // A mode alone changes, and is brought up to date without the file.
    fs::set_permissions(from.path().join("e"), fs::Permissions::from_mode(0o700)).unwrap();
    assert_eq!(sent_to_be_kept(home.path(), "r2", from.path()).unwrap().files, 0);
    assert_eq!(there(home.path().join("runs/r2/code"))[4], 0o700);
    // What was written before there were modes is read, and most trees have the hash that they had then.
    let old = r#"{"file":{"len":1,"exec":true,"hash":"h"}}"#;
    let what: What = serde_json::from_str(old).unwrap();
    assert_eq!((what.mode(), serde_json::to_string(&what).unwrap().as_str()), (0o755, old));
}

#[test]
fn fuzz_manifest_is_a_tree_or_refused() {
    let words =
        ["{\"path\":\"a\",\"what\":", "{\"link\":{\"to\":\"b\"}}", "{\"bytes\":\"Li4=\"}", "\"len\":1"];
    crate::fuzz::run("manifest", &words, |bytes| {
        let tree: Tree = crate::gpu::wire::tests::poured(bytes).draw(1 << 20)?;
        let again: Tree = serde_json::from_slice(&serde_json::to_vec(&tree)?)?;
        assert!(again == tree && again.hash() == tree.hash());
        let _ = tree.bytes();
        for entry in &tree.0 {
            let _ = (entry.path.to_string(), entry.path.dirs().count());
            if let What::Link { to } = &entry.what {
                let _ = to.clone().bytes().map(|to| stays_inside(&entry.path, &to));
            }
        }
        Ok(())
    });
}
