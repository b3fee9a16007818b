//! The child and whoever asks it, over a pair of pipes; that the child is somebody else is tried with the program itself.

// Tests look at files and processes directly.
#![allow(clippy::disallowed_methods, clippy::disallowed_types)]

use super::*;
use crate::{gpu::wire::tests::pair, host::System};
use std::fs;

/// A child that is not started, and lives in a thread of ours.
fn asking<T>(doing: impl FnOnce(&mut Wire) -> T) -> T {
    let (mut hq, mut child) = pair();
    let answering = std::thread::spawn(move || answer(&Host::new("/", System), &mut child));
    let done = doing(&mut hq);
    drop(hq);
    drop(answering.join().unwrap());
    done
}

fn ask<T: DeserializeOwned>(wire: &mut Wire, wanted: &ReadRequest) -> Result<T> {
    wire.tell(wanted)?;
    heard(wire)
}

fn poured(wire: &mut Wire, tree: &Tree, lacks: &[usize]) -> Result<Vec<u8>> {
    let mut all = Vec::new();
    draw_contents(wire, tree, lacks, &mut all)?;
    Ok(all)
}

#[test]
fn code_is_listed_and_poured_as_it_is_and_a_change_is_noticed() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let long = "b".repeat(300_000);
    for (name, text) in [("a.py", "a"), ("b", long.as_str()), ("empty", "")] {
        fs::write(at(name), text).unwrap();
    }
    std::os::unix::fs::symlink("a.py", at("link")).unwrap();
    asking(|wire| {
        let wanted = || ReadRequest::Code { project: dir.path().into() };
        let (outline, tree): (CodeOutline, Tree) = ask(wire, &wanted()).unwrap();
        assert_eq!((outline.files, tree.0.len()), (4, 4));
        assert_eq!(poured(wire, &tree, &[0, 1, 2, 3]).unwrap(), format!("a{long}").as_bytes());
        assert_eq!(poured(wire, &tree, &[2, 0]).unwrap(), b"a");
        fs::write(at("b"), "shorter").unwrap();
        assert!(poured(wire, &tree, &[0, 1, 2]).unwrap_err().is::<Changed>());
        fs::remove_file(at("a.py")).unwrap();
        assert!(poured(wire, &tree, &[0]).unwrap_err().is::<Changed>());
        // The same child, asked once more.
        let (_, tree): (CodeOutline, Tree) = ask(wire, &wanted()).unwrap();
        assert_eq!(tree.0.len(), 3);
    });
}

#[test]
fn trouble_comes_with_what_to_try_and_ends_no_conversation() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("a.py"), "a").unwrap();
    asking(|wire| {
        let script = Rel::new("b.py").unwrap();
        let wanted = ReadRequest::Outline { project: dir.path().into(), script };
        let error = ask::<CodeOutline>(wire, &wanted).unwrap_err();
        let (said, hint) = ui::told(&error);
        assert!(said.concat().contains("b.py is not among the code"), "{said:?}");
        assert!(hint.unwrap().contains(".gitignore"), "{hint:?}");
        let file = dir.path().join("a.py");
        assert_eq!(ask::<String>(wire, &ReadRequest::Secret { file }).unwrap(), "a");
        for (bad, why) in [("/dev/zero", "no file"), ("/no/such", "looking at"), ("/", "reading /")] {
            let error = ask::<String>(wire, &ReadRequest::Secret { file: bad.into() }).unwrap_err();
            assert!(format!("{error:#}").contains(why), "{bad}: {error:#}");
        }
    });
}

#[test]
fn what_is_known_of_a_dataset_is_not_read_again() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("a"), "1").unwrap();
    let files = |wire: &mut Wire, known: &[(Rel, (Stamp, String))]| {
        wire.tell(&ReadRequest::Files { dir: dir.path().into(), odd: Odd::Refused }).unwrap();
        wire.pour(&known).unwrap();
        let (_, tree): (Vec<String>, Tree) = heard(wire).unwrap();
        (tree, wire.draw::<Vec<(Rel, (Stamp, String))>>(LIST).unwrap())
    };
    asking(|wire| {
        let (_, mut known) = files(wire, &[]);
        known[0].1.1 = "believed".into();
        let (tree, _) = files(wire, &known);
        assert!(matches!(&tree.0[0].what, What::File { hash, .. } if hash == "believed"), "{tree:?}");
    });
}

#[test]
fn a_child_that_lies_is_told_so() {
    let tree = || Tree(vec![Entry { path: Rel::new("a").unwrap(), what: What::file(3, 0o644, "h".into()) }]);
    let lying = |lie: fn(&mut Wire)| {
        let (mut hq, mut child) = pair();
        let answering = std::thread::spawn(move || {
            child.hear::<ReadRequest>().unwrap();
            child.draw::<Vec<usize>>(LIST).unwrap();
            lie(&mut child);
        });
        let error = poured(&mut hq, &tree(), &[0]).unwrap_err();
        drop(hq);
        answering.join().unwrap();
        format!("{error:#}")
    };
    let longer = lying(|child| {
        let mut sending = child.sending();
        sending.write_all(b"1234").unwrap();
        let _ = sending.end();
    });
    assert!(longer.contains("more came of a than it has"), "{longer}");
    let shorter = lying(|child| {
        let mut sending = child.sending();
        sending.write_all(b"12").unwrap();
        sending.end().unwrap();
        child.tell(&PouredFile::Whole).unwrap();
    });
    assert!(shorter.contains("a changed while it was sent"), "{shorter}");
    let (mut hq, _child) = pair();
    assert!(poured(&mut hq, &tree(), &[1]).is_err());
}
