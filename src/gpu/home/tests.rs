//! What a machine can do to the headquarters by what it says. It speaks the protocol by hand here, and lies.

// Tests look at files and processes directly.
#![allow(clippy::disallowed_methods, clippy::disallowed_types)]

use super::{files::PIECE, *};
use crate::{
    gpu::{
        agent::site::{Ask, Ended, Given, Made, Offered, PAGE, Page},
        job::{Full, is_nonsense},
        wire::{Wire, is_lost, tests::pair},
    },
    hash::hex,
    host::{Kind, System},
};
use anyhow::anyhow;
use sha2::{Digest as _, Sha256};
use std::{io::Write as _, os::unix::fs::MetadataExt as _, sync::Arc, time::Duration};

/// What a machine says when it is asked.
type Answering = Box<dyn FnMut(Ask, &mut Wire) -> Result<()> + Send>;

struct Story {
    root: tempfile::TempDir,
    quota: Quota,
    turn: Duration,
    said: Arc<Mutex<Vec<String>>>,
}

impl Story {
    fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(root.path().join("else")).unwrap();
        std::fs::write(root.path().join("else/kept"), "kept").unwrap();
        Self {
            root,
            quota: Quota { free: 0, ..Quota::default() },
            turn: Duration::from_secs(60),
            said: Arc::default(),
        }
    }

    /// One look, or several over one connection each, with what this machine answers.
    fn fetch(&self, looks: &[bool], answering: Answering) -> Result<bool> {
        let fetched = self.look(looks, answering)?;
        Ok(matches!(fetched, Fetched::Home(left) if left.is_empty()))
    }

    /// The same, with what is left.
    fn look(&self, looks: &[bool], answering: Answering) -> Result<Fetched> {
        let host = Host::new(self.root.path(), System);
        let said = Arc::clone(&self.said);
        let say = move |line: &str| said.lock().unwrap().push(line.to_owned());
        let (dir, memory) = (Path::new("/results/r"), Path::new("/memory/r/home.jsonl"));
        let home = Home::open(&host, dir, memory, self.quota, None, &say)?;
        let mut whole = Err(anyhow!("nobody has looked"));
        let answering = Arc::new(Mutex::new(answering));
        for ended in looks {
            let (mut hq, mut agent) = pair();
            let answering = Arc::clone(&answering);
            let machine = std::thread::spawn(move || {
                while let Ok(Some(ask)) = agent.hear_if_any::<Ask>() {
                    if let Err(error) = answering.lock().unwrap()(ask, &mut agent) {
                        if !is_lost(&error) {
                            agent.break_off(&error);
                        }
                        break;
                    }
                }
            });
            whole = home.fetch(&mut hq, *ended, Instant::now() + self.turn);
            drop(hq);
            machine.join().unwrap();
        }
        assert_eq!(std::fs::read_to_string(self.root.path().join("else/kept")).unwrap(), "kept");
        assert_eq!(std::fs::read_dir(self.root.path().join("else")).unwrap().count(), 1);
        whole
    }

    /// What came, and how long it is.
    fn here(&self) -> Vec<(String, u64)> {
        let host = Host::new(self.root.path(), System);
        let Some(dir) = Beneath::open(&host, Path::new("/results/r")).unwrap() else { return Vec::new() };
        let all = dir.walk(100_000).unwrap().into_iter().filter(|found| found.kind != Kind::Dir);
        all.map(|found| (found.path.unwrap().to_string(), found.stamp.len)).collect()
    }

    fn said(&self) -> String {
        self.said.lock().unwrap().join("\n")
    }
}

fn offered(path: &str, len: u64) -> Offered {
    of(path, file(Stamp { len, nanos: 1, inode: 1 }, 60_000))
}

fn file(stamp: Stamp, age: u64) -> Made {
    Made::File { stamp, age, shared: None, extents: None }
}

fn of(path: &str, what: Made) -> Offered {
    Offered { root: Root::Out, path: Spelling::Text(path.into()), what }
}

fn unreadable(path: &str, why: &str) -> Offered {
    of(path, Made::Unreadable { why: why.into(), bytes: 3 })
}

fn list(wire: &mut Wire, offers: &[Offered]) -> Result<()> {
    wire.pour_each(|next| offers.iter().try_for_each(next))
}

/// Offers these, and gives `contents` for whatever is asked.
fn giving(offers: Vec<Offered>, contents: &'static [u8]) -> Answering {
    Box::new(move |ask, wire| match ask {
        Ask::List => list(wire, &offers),
        Ask::Take { from, len, .. } => {
            let piece = &contents[from as usize..(from + len) as usize];
            wire.tell(&Given::Here)?;
            give(wire, piece)?;
            wire.tell(&Ended::Whole(hex(&Sha256::digest(piece))))
        }
        other => no_books(&other, wire),
    })
}

fn give(wire: &mut Wire, bytes: &[u8]) -> Result<()> {
    let mut sending = wire.sending();
    sending.write_all(bytes)?;
    sending.end()
}

fn no_books(ask: &Ask, wire: &mut Wire) -> Result<()> {
    let Ask::Book { from, .. } = ask else { anyhow::bail!("{ask:?} was not expected") };
    wire.tell(&Page { from: *from, to: *from, last: true })?;
    give(wire, b"")
}

#[test]
fn a_file_comes_home_once_it_rests_and_once_only() {
    let story = Story::new();
    assert!(!story.fetch(&[false], giving(vec![offered("best.pt", 4)], b"best")).unwrap());
    assert_eq!(story.here(), [], "after one look it may still grow");
    assert!(!story.fetch(&[false, false], giving(vec![offered("best.pt", 4)], b"best")).unwrap());
    assert_eq!(story.here(), [("out/best.pt".into(), 4)]);
    let not_again: Answering = Box::new(|ask, wire| match ask {
        Ask::List => list(wire, &[offered("best.pt", 4)]),
        other => no_books(&other, wire),
    });
    assert!(story.fetch(&[true], not_again).unwrap(), "all of it is here, and the script has ended");
    let young = of("young.pt", file(Stamp { len: 4, nanos: 1, inode: 1 }, 100));
    story.fetch(&[false, false], giving(vec![young.clone()], b"best")).unwrap();
    assert_eq!(story.here().len(), 1, "it was written a moment ago");
    assert!(story.fetch(&[true], giving(vec![young], b"best")).unwrap());
    assert_eq!(story.here().len(), 2, "nobody writes on once the script has ended");
}

#[test]
fn a_large_file_comes_in_turns_and_a_broken_connection_costs_one_piece() {
    let contents: &[u8] = vec![7; 3 * PIECE as usize + 5].leak();
    let mut story = Story::new();
    let large = offered("large", contents.len() as u64);
    // Each look has time for nothing more than what is under way.
    story.turn = Duration::ZERO;
    assert!(!story.fetch(&[true, true], giving(vec![large.clone()], contents)).unwrap());
    assert_eq!(story.here(), []);
    story.turn = Duration::from_secs(60);
    let asked = Arc::new(Mutex::new(Vec::new()));
    let (noted, offers) = (Arc::clone(&asked), vec![large]);
    let breaking: Answering = Box::new(move |ask, wire| match ask {
        Ask::List => list(wire, &offers),
        Ask::Take { from, len, .. } => {
            noted.lock().unwrap().push(from / PIECE);
            wire.tell(&Given::Here)?;
            let piece = &contents[from as usize..(from + len) as usize];
            if noted.lock().unwrap().len() == 3 {
                // In the middle of the third piece, without a word.
                let mut sending = wire.sending();
                sending.write_all(&piece[..1 << 20])?;
                return Err(anyhow::Error::new(std::io::Error::from(std::io::ErrorKind::BrokenPipe)));
            }
            give(wire, piece)?;
            wire.tell(&Ended::Whole(hex(&Sha256::digest(piece))))
        }
        other => no_books(&other, wire),
    });
    assert!(story.fetch(&[true, true], breaking).unwrap());
    assert_eq!(*asked.lock().unwrap(), [0, 1, 2, 2, 3]);
    let here = std::fs::read(story.root.path().join("results/r/out/large")).unwrap();
    assert!(here == contents);
}

#[test]
fn names_that_lead_elsewhere_are_left_and_the_rest_comes() {
    let story = Story::new();
    let deep = "d/".repeat(300) + "x";
    let long = "n".repeat(300);
    let bad = [
        "../else/kept",
        "/etc/passwd",
        "a/../../x",
        "",
        ".",
        "..",
        "a//b",
        "nul\0",
        ".echoes-part-1",
        "a/.echoes-part-2",
        &deep,
        &long,
    ];
    let mut offers: Vec<_> = bad.iter().map(|path| offered(path, 1)).collect();
    offers.push(unreadable("link\x1b[2J", "a link to /etc\x1b[2J"));
    let away =
        ["/etc/passwd", "../../x", "d/../../x", "/"].map(|to| Made::Link { to: Spelling::Text(to.into()) });
    offers.extend(away.iter().enumerate().map(|(n, link)| of(&format!("link{n}"), link.clone())));
    offers.push(of("bytes", Made::Link { to: Spelling::Bytes { bytes: "not base64".into() } }));
    offers.push(Offered { path: Spelling::Bytes { bytes: "not base64".into() }, ..offered("", 1) });
    offers.push(offered("good", 1));
    let Fetched::Home(left) = story.look(&[true], giving(offers, b"x")).unwrap() else {
        panic!("it is all there")
    };
    assert_eq!(story.here(), [("out/good".into(), 1)]);
    let (said, count) = (story.said(), bad.len() + 7);
    assert_eq!((said.lines().count(), left.count), (count, count as u64), "{said}");
    let told = said + &left.words();
    assert!(!told.contains('\x1b') && !told.contains('\0'), "{told:?}");
}

#[test]
fn a_directory_that_becomes_a_link_leads_nowhere() {
    let story = Story::new();
    story.fetch(&[true], giving(vec![offered("d/a", 1)], b"x")).unwrap();
    let out = story.root.path().join("results/r/out");
    std::fs::rename(out.join("d"), out.join("moved")).unwrap();
    std::os::unix::fs::symlink("../../../else", out.join("d")).unwrap();
    story.fetch(&[true], giving(vec![offered("d/kept", 1)], b"x")).unwrap();
    assert_eq!(std::fs::read(out.join("d/kept")).unwrap(), b"x", "the link is set aside");
    assert!(std::fs::symlink_metadata(out.join("d.earlier-1")).unwrap().is_symlink());
    // The same under way, between the beginning of a file and its end.
    let swapped = out.clone();
    let swap: Answering = Box::new(move |ask, wire| match ask {
        Ask::List => list(wire, &[offered("e/kept", 1)]),
        Ask::Take { .. } => {
            wire.tell(&Given::Here)?;
            std::fs::rename(swapped.join("e"), swapped.join("moved-too"))?;
            std::os::unix::fs::symlink("../../../else", swapped.join("e"))?;
            give(wire, b"x")?;
            wire.tell(&Ended::Whole(hex(&Sha256::digest(b"x"))))
        }
        other => no_books(&other, wire),
    });
    story.fetch(&[true], swap).unwrap();
    assert!(out.join("moved-too/kept").exists());
}

#[test]
fn what_has_no_room_here_is_never_said_to_be_home() {
    let mut story = Story::new();
    story.quota.free = u64::MAX;
    let offers = || giving(vec![offered("a", 1), offered("empty", 0)], b"x");
    let error = story.fetch(&[true], offers()).unwrap_err();
    assert!(error.is::<Full>(), "{error:#}");
    assert_eq!(format!("{error:#}"), "this machine's disk is full: there is no room here for 1 bytes of it");
    assert_eq!(story.here(), [("out/empty".to_owned(), 0)], "what takes none comes");
    // Somebody made room.
    story.quota.free = 0;
    assert!(story.fetch(&[true], offers()).unwrap());
    assert_eq!(story.here().len(), 2);
}

#[test]
fn what_a_power_cut_left_of_a_file_is_gone_at_the_next_look() {
    let story = Story::new();
    let out = story.root.path().join("results/r/out/deep");
    std::fs::create_dir_all(&out).unwrap();
    std::fs::write(out.join(".echoes-part-0123"), "half").unwrap();
    story.fetch(&[true], giving(vec![offered("a", 1)], b"x")).unwrap();
    assert_eq!(story.here(), [("out/a".into(), 1)]);
}

#[test]
fn a_link_in_the_place_of_the_runs_own_directory_stops_everything() {
    let story = Story::new();
    std::fs::create_dir_all(story.root.path().join("results")).unwrap();
    std::os::unix::fs::symlink("../else", story.root.path().join("results/r")).unwrap();
    assert!(story.fetch(&[true], giving(vec![offered("a", 1)], b"x")).is_err());
}

#[test]
fn what_becomes_something_else_over_there_costs_nothing_of_what_came() {
    let story = Story::new();
    story.fetch(&[true], giving(vec![offered("a", 1)], b"x")).unwrap();
    let offers = vec![offered("a/b", 1), offered("c", 1)];
    assert!(story.fetch(&[true], giving(offers, b"x")).unwrap());
    let here = |names: &[&str]| names.iter().map(|name| (format!("out/{name}"), 1)).collect::<Vec<_>>();
    assert_eq!(story.here(), here(&["a/b", "a.earlier-1", "c"]));
    // And back again.
    let again = of("a", file(Stamp { len: 1, nanos: 2, inode: 2 }, 60_000));
    assert!(story.fetch(&[true], giving(vec![again], b"x")).unwrap());
    assert_eq!(story.here(), here(&["a", "a.earlier-1", "a.earlier-2/b", "c"]));
    assert!(story.said().contains("out/a is something else now: what came before is out/a.earlier-2"));
}

#[test]
fn the_trouble_of_a_file_is_that_file_s_alone() {
    let story = Story::new();
    let offers = [
        unreadable("shut", "EACCES: Permission denied"),
        offered("vanishes", 1),
        offered("shut-meanwhile", 1),
        offered("breaks", 1),
        of("socket", Made::Special { what: "a socket".into() }),
        of("empty", Made::Dir),
        of("last", Made::Link { to: Spelling::Text("good".into()) }),
        of("odd", file(Stamp { len: 1, nanos: 9, inode: 9 }, 60_000)),
        offered("good", 1),
        Offered { path: Spelling::Bytes { bytes: "6S50eHQ=".into() }, ..offered("", 1) },
        offered("new\nline", 1),
    ];
    let troubled: Answering = Box::new(move |ask, wire| match ask {
        Ask::List => list(wire, &offers),
        Ask::Take { path, len, .. } => {
            match path.to_string().as_str() {
                "vanishes" => return wire.tell(&Given::Changed),
                "shut-meanwhile" => return wire.tell(&Given::Unreadable("EACCES".into())),
                _ => wire.tell(&Given::Here)?,
            }
            give(wire, &b"x"[..len as usize])?;
            match path.to_string().as_str() {
                "breaks" => wire.tell(&Ended::Unreadable("EIO: Input/output error".into())),
                "odd" => wire.tell(&Ended::Changed),
                _ => wire.tell(&Ended::Whole(hex(&Sha256::digest(b"x")))),
            }
        }
        other => no_books(&other, wire),
    });
    let Fetched::Coming { files, left, .. } = story.look(&[true], troubled).unwrap() else {
        panic!("two may still come")
    };
    let names: Vec<_> = left.first.iter().map(|file| file.path.as_str()).collect();
    assert_eq!((files, names), (2, vec!["out/breaks", "out/shut", "out/shut-meanwhile"]));
    let here: Vec<_> = story.here().into_iter().map(|(name, _)| name).collect();
    assert_eq!(here, ["out/good", "out/last", r"out/new\nline", r"out/\xE9.txt"]);
    assert!(story.root.path().join("results/r/out/empty").is_dir());
    assert!(story.said().contains("out/socket is a socket: there is nothing in it"), "{}", story.said());
    let out = story.root.path().join("results/r/out");
    assert_eq!(std::fs::read_link(out.join("last")).unwrap(), Path::new("good"));
}

#[test]
fn what_is_one_file_by_several_names_comes_once() {
    let story = Story::new();
    let stamp = Stamp { len: 1, nanos: 1, inode: 5 };
    let shared = move |path: &str, device: u64| {
        of(path, Made::File { stamp, age: 60_000, shared: Some(device), extents: None })
    };
    let asked = Arc::new(Mutex::new(0));
    let (counted, offers) = (Arc::clone(&asked), vec![shared("a", 1), shared("b/c", 1), shared("other", 2)]);
    let mut giving = giving(offers, b"x");
    let counting: Answering = Box::new(move |ask, wire| {
        *counted.lock().unwrap() += u32::from(matches!(ask, Ask::Take { .. }));
        giving(ask, wire)
    });
    assert!(story.fetch(&[true, true], counting).unwrap());
    assert_eq!(*asked.lock().unwrap(), 2);
    let inode =
        |name: &str| std::fs::metadata(story.root.path().join("results/r/out").join(name)).unwrap().ino();
    assert_eq!(inode("a"), inode("b/c"));
    assert_ne!(inode("a"), inode("other"));
    // A name that came later.
    let nothing: Answering = Box::new(move |ask, wire| match ask {
        Ask::List => list(wire, &[shared("a", 1), shared("z", 1)]),
        other => no_books(&other, wire),
    });
    assert!(story.fetch(&[true], nothing).unwrap());
    assert_eq!(inode("a"), inode("z"));
}

#[test]
fn a_hole_stays_a_hole() {
    let story = Story::new();
    let len = 1 << 40;
    let extents = Some(vec![(0, 4096), (1 << 30, 4096)]);
    let sparse = Made::File { stamp: Stamp { len, nanos: 1, inode: 1 }, age: 60_000, shared: None, extents };
    let asked = Arc::new(Mutex::new(Vec::new()));
    let noted = Arc::clone(&asked);
    let answering: Answering = Box::new(move |ask, wire| match ask {
        Ask::List => list(wire, &[of("lmdb", sparse.clone())]),
        Ask::Take { from, len, .. } => {
            noted.lock().unwrap().push((from, len));
            wire.tell(&Given::Here)?;
            let piece = [7; 4096];
            give(wire, &piece)?;
            wire.tell(&Ended::Whole(hex(&Sha256::digest(piece))))
        }
        other => no_books(&other, wire),
    });
    assert!(story.fetch(&[true], answering).unwrap());
    assert_eq!(*asked.lock().unwrap(), [(0, 4096), (1 << 30, 4096)]);
    let here = std::fs::metadata(story.root.path().join("results/r/out/lmdb")).unwrap();
    assert_eq!(here.len(), len);
    assert!(here.blocks() * 512 < 1 << 20, "{} blocks", here.blocks());
}

#[test]
fn the_newest_come_first() {
    let story = Story::new();
    let at = |nanos: i64| of(&format!("{nanos}.pt"), file(Stamp { len: 1, nanos, inode: 1 }, 60_000));
    let asked = Arc::new(Mutex::new(Vec::new()));
    let (noted, mut giving) = (Arc::clone(&asked), giving(vec![at(1), at(3), at(2)], b"x"));
    let noting: Answering = Box::new(move |ask, wire| {
        if let Ask::Take { path, .. } = &ask {
            noted.lock().unwrap().push(path.to_string());
        }
        giving(ask, wire)
    });
    assert!(story.fetch(&[true], noting).unwrap());
    assert_eq!(*asked.lock().unwrap(), ["3.pt", "2.pt", "1.pt"]);
}

#[test]
fn many_files_are_asked_for_ahead_and_all_come() {
    let story = Story::new();
    let offers: Vec<_> = (0..5000).map(|n| offered(&format!("{n:04}"), 1)).collect();
    assert!(story.fetch(&[true], giving(offers, b"x")).unwrap());
    assert_eq!(story.here().len(), 5000);
    let memory = std::fs::read_to_string(story.root.path().join("memory/r/home.jsonl")).unwrap();
    assert_eq!(memory.lines().count(), 5000);
}

#[test]
fn a_lie_about_a_file_is_found_out_and_nothing_of_it_stays() {
    type Lie = fn(&mut Wire) -> Result<()>;
    let lies: [(&str, Lie); 6] = [
        ("shorter than was announced", |wire| give(wire, b"abc").and_then(|()| wire.tell(&Ended::Changed))),
        ("more bytes came than were announced", |wire| {
            // As ten gigabytes of nothing would: it is left at the first byte too many.
            let mut sending = wire.sending();
            for _ in 0..1000 {
                sending.write_all(&[0; 64 << 10])?;
            }
            sending.end()
        }),
        ("came as something else", |wire| {
            give(wire, b"abcd").and_then(|()| wire.tell(&Ended::Whole("0".repeat(64))))
        }),
        ("was expected", |wire| wire.tell(&"a word")),
        ("no more disk", |wire| Err(anyhow!("no more disk")).inspect_err(|error| wire.break_off(error))),
        ("not expected", |wire| give(wire, b"abcd").and_then(|()| wire.tell(&7))),
    ];
    for (expected, lie) in lies {
        let story = Story::new();
        let lying: Answering = Box::new(move |ask, wire| match ask {
            Ask::List => list(wire, &[offered("a", 4)]),
            Ask::Take { .. } => wire.tell(&Given::Here).and_then(|()| lie(wire)),
            other => no_books(&other, wire),
        });
        let error = story.fetch(&[true], lying).unwrap_err();
        // Complaining is no lie.
        assert_eq!(is_nonsense(&error), expected != "no more disk", "{expected}: {error:#}");
        let error = format!("{error:#}");
        assert!(error.contains(expected) || expected == "was expected", "{expected}: {error}");
        assert_eq!(story.here(), [], "{expected}");
    }
}

#[test]
fn there_is_an_end_to_what_is_taken() {
    let mut story = Story::new();
    story.quota = Quota { files: 10, all: 150, book: 100, free: 0, notes: 1000 };
    let offers = vec![offered("huge", 151), offered("a", 1), offered("liar", u64::MAX)];
    story.fetch(&[true], giving(offers, b"x")).unwrap();
    assert_eq!(story.here(), [("out/a".into(), 1)]);
    let ninety: &[u8] = &[b'x'; 90];
    let big = |name: &str| offered(name, 90);
    story.fetch(&[true], giving(vec![big("b"), big("c")], ninety)).unwrap();
    assert_eq!(story.here().len(), 2);
    assert!(
        story.said().contains("out/c is left on the machine: all of it is more than"),
        "{}",
        story.said()
    );
    let endless = (0..5000).map(|n| offered(&format!("f{n}"), 1)).collect();
    story.fetch(&[true], giving(endless, b"x")).unwrap();
    assert_eq!(story.here().len(), 10);
    // Nor is another list another chance, however little it takes.
    let empty = (0..10).map(|n| offered(&format!("e{n}"), 0)).collect();
    story.fetch(&[true], giving(empty, b"")).unwrap();
    assert_eq!(story.here().len(), 10);
}

#[test]
fn what_changes_for_ever_fills_no_disk_with_our_notes() {
    let mut story = Story::new();
    story.quota.notes = 100;
    let mut nanos = 0;
    let ever_new: Answering = Box::new(move |ask, wire| match ask {
        Ask::List => {
            nanos += 1;
            let file = of("a", file(Stamp { len: 1, nanos, inode: 1 }, 60_000));
            // It cannot come, each time for another reason.
            list(wire, &[file, unreadable("b", &format!("reason {nanos}"))])
        }
        Ask::Book { from, .. } => {
            wire.tell(&Page { from, to: from + 1, last: true })?;
            give(wire, b"x")
        }
        other => giving(Vec::new(), b"x")(other, wire),
    });
    story.fetch(&[true; 60], ever_new).unwrap();
    let memory = std::fs::read_to_string(story.root.path().join("memory/r/home.jsonl")).unwrap();
    let notes = memory.lines().count();
    // The first time that a file comes is a note that counts for the file.
    assert!((100..=103).contains(&notes), "{notes}");
    assert!(!memory.contains("reason"), "{memory}");
}

#[test]
fn an_endless_list_of_bad_names_fills_neither_disk_nor_screen() {
    let mut story = Story::new();
    story.quota.files = 100_000;
    let bad = (0..50_000).map(|n| offered(&format!("../{n}"), 1)).collect();
    story.fetch(&[true], giving(bad, b"x")).unwrap();
    assert_eq!(story.said().lines().count(), 1000);
    let memory = std::fs::metadata(story.root.path().join("memory/r/home.jsonl")).unwrap().len();
    assert!(memory < 1 << 20, "{memory}");
}

#[test]
fn a_list_without_end_is_left() {
    let story = Story::new();
    let endless: Answering = Box::new(|ask, wire| {
        if !matches!(ask, Ask::List) {
            return no_books(&ask, wire);
        }
        let mut sending = wire.sending();
        let mut small = flate2::write::DeflateEncoder::new(&mut sending, flate2::Compression::fast());
        while small.write_all(&[b' '; 1 << 20]).is_ok() {}
        anyhow::bail!("nobody listens")
    });
    let error = story.fetch(&[true], endless).unwrap_err();
    assert!(
        format!("{error:#}").contains("a list with an entry of more than") && is_nonsense(&error),
        "{error:#}"
    );
}

#[test]
fn books_are_read_on_and_a_gap_is_shown() {
    let story = Story::new();
    // Says `text` from where it is asked, at most three bytes at a time.
    let book = |text: &'static [u8], begins: u64| -> Answering {
        Box::new(move |ask, wire| match ask {
            Ask::List => list(wire, &[]),
            Ask::Book { book: Book::Log, from } => {
                let from = from.max(begins);
                let to = (from + 3).min(text.len() as u64);
                wire.tell(&Page { from, to, last: to == text.len() as u64 })?;
                give(wire, &text[from as usize..to as usize])
            }
            other => no_books(&other, wire),
        })
    };
    let log = || std::fs::read_to_string(story.root.path().join("results/r/log.txt")).unwrap();
    assert!(!story.fetch(&[false], book(b"one\ntwo\n", 0)).unwrap());
    assert_eq!(log(), "one\ntwo\n");
    // What a crash left between the writing and the note is written again.
    let mut file =
        std::fs::OpenOptions::new().append(true).open(story.root.path().join("results/r/log.txt")).unwrap();
    file.write_all(b"torn").unwrap();
    assert!(story.fetch(&[true], book(b"one\ntwo\nthree\n", 0)).unwrap());
    assert_eq!(log(), "one\ntwo\nthree\n");
    story.fetch(&[true], book(b"one\ntwo\nthree\n.........four\n", 23)).unwrap();
    assert_eq!(log(), "one\ntwo\nthree\n\n[echoes-appliance: 9 bytes are left out]\nfour\n");
}

#[test]
fn an_endless_or_impossible_book_is_closed() {
    let mut story = Story::new();
    story.quota.book = 1 << 20;
    let endless: Answering = Box::new(|ask, wire| match ask {
        Ask::List => list(wire, &[]),
        Ask::Book { from, .. } => {
            wire.tell(&Page { from, to: from + 100_000, last: false })?;
            give(wire, &[b'\x1b'; 100_000])
        }
        other => no_books(&other, wire),
    });
    assert!(story.fetch(&[true], endless).unwrap());
    assert_eq!(story.here(), [("log.txt".into(), 1 << 20), ("samples.jsonl".into(), 1 << 20)]);
    for (from, to) in [(5, 4), (0, u64::MAX), (0, PAGE + 1)] {
        let story = Story::new();
        let impossible: Answering = Box::new(move |ask, wire| match ask {
            Ask::List => list(wire, &[]),
            _ => wire.tell(&Page { from, to, last: false }),
        });
        let error = format!("{:#}", story.fetch(&[true], impossible).unwrap_err());
        assert!(error.contains("pages that cannot be"), "{error}");
    }
}

#[test]
fn fuzz_list_of_results_is_decided_about_or_refused() {
    let story = Story::new();
    let host = Host::new(story.root.path(), System);
    let (dir, memory) = (Path::new("/results/r"), Path::new("/memory/r/home.jsonl"));
    let home = Home::open(&host, dir, memory, story.quota, None, &|_| {}).unwrap();
    let words = [
        "{\"root\":\"out\",\"path\":\"a\",\"what\":\"dir\"}\n",
        "\"extents\":[[0,1]]",
        "\"shared\":7",
        "{\"bytes\":\"Li4=\"}",
    ];
    crate::fuzz::run("list", &words, |bytes| {
        let mut first = Ok(());
        for ended in [true, false] {
            let mut files = files::Files::new(std::collections::BTreeMap::new());
            let survey = home.survey(&mut crate::gpu::wire::tests::poured(bytes), &mut files, ended);
            first = first.and(survey.map(|survey| drop((survey.left.words(), survey.fetched(true)))));
        }
        first
    });
}
