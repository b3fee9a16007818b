//! What a machine can do to the headquarters by what it says. It speaks the protocol by hand here, and lies.

// Tests look at files and processes directly.
#![allow(clippy::disallowed_methods, clippy::disallowed_types)]

use super::*;
use crate::{
    gpu::{job::is_nonsense, wire::tests::pair},
    host::System,
};
use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

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
        let host = Host::new(self.root.path(), System);
        let said = Arc::clone(&self.said);
        let say = move |line: &str| said.lock().unwrap().push(line.to_owned());
        let (dir, memory) = (Path::new("/results/r"), Path::new("/memory/r/home.jsonl"));
        let mut home = Home::open(&host, dir, memory, self.quota, None, &say)?;
        let mut whole = Ok(false);
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
        let all = dir.walk(100_000).unwrap().into_iter();
        all.map(|found| (found.path.unwrap().as_str().to_owned(), found.stamp.len)).collect()
    }

    fn said(&self) -> String {
        self.said.lock().unwrap().join("\n")
    }
}

fn offered(path: &str, len: u64) -> Offered {
    let stamp = Stamp { len, nanos: 1, inode: 1 };
    Offered { root: Root::Out, path: path.into(), stamp, age: 60_000, not: None }
}

/// Offers these, and gives `contents` for whatever is asked.
fn giving(offers: Vec<Offered>, contents: &'static [u8]) -> Answering {
    Box::new(move |ask, wire| match ask {
        Ask::List => wire.pour(&offers),
        Ask::Take { from, len, .. } => {
            let piece = &contents[from as usize..(from + len) as usize];
            wire.tell(&true)?;
            give(wire, piece)?;
            wire.tell(&Some(hex(&Sha256::digest(piece))))
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
        Ask::List => wire.pour(&[offered("best.pt", 4)]),
        other => no_books(&other, wire),
    });
    assert!(story.fetch(&[true], not_again).unwrap(), "all of it is here, and the script has ended");
    let mut young = offered("young.pt", 4);
    young.age = 100;
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
        Ask::List => wire.pour(&offers),
        Ask::Take { from, len, .. } => {
            noted.lock().unwrap().push(from / PIECE);
            wire.tell(&true)?;
            let piece = &contents[from as usize..(from + len) as usize];
            if noted.lock().unwrap().len() == 3 {
                // In the middle of the third piece, without a word.
                let mut sending = wire.sending();
                sending.write_all(&piece[..1 << 20])?;
                return Err(anyhow::Error::new(std::io::Error::from(std::io::ErrorKind::BrokenPipe)));
            }
            give(wire, piece)?;
            wire.tell(&Some(hex(&Sha256::digest(piece))))
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
    let deep = "d/".repeat(40) + "x";
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
        "line\nbreak",
        "\u{1b}[2J",
        ".echoes-part-1",
        "a/.echoes-part-2",
        &deep,
        &long,
    ];
    let mut offers: Vec<_> = bad.iter().map(|path| offered(path, 1)).collect();
    offers.push(Offered { not: Some("it is a link to /etc\x1b[2J".into()), ..offered("link", 1) });
    offers.push(offered("good", 1));
    assert!(story.fetch(&[true], giving(offers, b"x")).unwrap());
    assert_eq!(story.here(), [("out/good".into(), 1)]);
    let said = story.said();
    assert_eq!(said.lines().count(), bad.len() + 1, "{said}");
    assert!(!said.contains('\x1b') && !said.contains('\0'), "{said:?}");
}

#[test]
fn a_directory_that_becomes_a_link_leads_nowhere() {
    let story = Story::new();
    story.fetch(&[true], giving(vec![offered("d/a", 1)], b"x")).unwrap();
    let out = story.root.path().join("results/r/out");
    std::fs::rename(out.join("d"), out.join("moved")).unwrap();
    std::os::unix::fs::symlink("../../../else", out.join("d")).unwrap();
    story.fetch(&[true], giving(vec![offered("d/kept", 1)], b"x")).unwrap();
    assert!(story.said().contains("\"d/kept\" is left on the machine"), "{}", story.said());
    // The same under way, between the beginning of a file and its end.
    std::fs::remove_file(out.join("d")).unwrap();
    let swapped = out.clone();
    let swap: Answering = Box::new(move |ask, wire| match ask {
        Ask::List => wire.pour(&[offered("e/kept", 1)]),
        Ask::Take { .. } => {
            wire.tell(&true)?;
            std::fs::rename(swapped.join("e"), swapped.join("moved-too"))?;
            std::os::unix::fs::symlink("../../../else", swapped.join("e"))?;
            give(wire, b"x")?;
            wire.tell(&Some(hex(&Sha256::digest(b"x"))))
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
fn a_file_that_becomes_a_directory_harms_no_other() {
    let story = Story::new();
    story.fetch(&[true], giving(vec![offered("a", 1)], b"x")).unwrap();
    let offers = vec![offered("a/b", 1), offered("c", 1)];
    assert!(story.fetch(&[true], giving(offers, b"x")).unwrap());
    assert_eq!(story.here(), [("out/a".into(), 1), ("out/c".into(), 1)]);
    assert!(story.said().contains("\"a/b\" is left on the machine"), "{}", story.said());
}

#[test]
fn a_lie_about_a_file_is_found_out_and_nothing_of_it_stays() {
    type Lie = fn(&mut Wire) -> Result<()>;
    let lies: [(&str, Lie); 6] = [
        ("shorter than was announced", |wire| give(wire, b"abc").and_then(|()| wire.tell(&Some("")))),
        ("more bytes came than were announced", |wire| {
            // As ten gigabytes of nothing would: it is left at the first byte too many.
            let mut sending = wire.sending();
            for _ in 0..1000 {
                sending.write_all(&[0; 64 << 10])?;
            }
            sending.end()
        }),
        ("came as something else", |wire| {
            give(wire, b"abcd").and_then(|()| wire.tell(&Some("0".repeat(64))))
        }),
        ("was expected", |wire| wire.tell(&"a word")),
        ("no more disk", |wire| Err(anyhow!("no more disk")).inspect_err(|error| wire.break_off(error))),
        ("not expected", |wire| give(wire, b"abcd").and_then(|()| wire.tell(&7))),
    ];
    for (expected, lie) in lies {
        let story = Story::new();
        let lying: Answering = Box::new(move |ask, wire| match ask {
            Ask::List => wire.pour(&[offered("a", 4)]),
            Ask::Take { .. } => wire.tell(&true).and_then(|()| lie(wire)),
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
    story.quota = Quota { files: 10, file: 100, all: 150, book: 100, free: 0, notes: 1000 };
    let offers = vec![offered("huge", 101), offered("a", 1), offered("liar", u64::MAX)];
    story.fetch(&[true], giving(offers, b"x")).unwrap();
    assert_eq!(story.here(), [("out/a".into(), 1)]);
    let ninety: &[u8] = &[b'x'; 90];
    let big = |name: &str| offered(name, 90);
    story.fetch(&[true], giving(vec![big("b"), big("c")], ninety)).unwrap();
    assert_eq!(story.here().len(), 2);
    assert!(
        story.said().contains("\"c\" is left on the machine: all of it is more than"),
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
            let mut file = offered("a", 1);
            file.stamp.nanos = nanos;
            // It cannot come, each time for another reason.
            wire.pour(&[file, Offered { not: Some(format!("reason {nanos}")), ..offered("b", 1) }])
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
    // And that it comes no more is one.
    assert!((100..=102).contains(&notes), "{notes}");
    assert!(!memory.contains("reason 2"), "{memory}");
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
        let _ = small.write_all(b"[");
        while small.write_all(&[b' '; 1 << 20]).is_ok() {}
        anyhow::bail!("nobody listens")
    });
    let error = story.fetch(&[true], endless).unwrap_err();
    assert!(format!("{error:#}").contains("a list of more than") && is_nonsense(&error), "{error:#}");
}

#[test]
fn books_are_read_on_and_a_gap_is_shown() {
    let story = Story::new();
    // Says `text` from where it is asked, at most three bytes at a time.
    let book = |text: &'static [u8], begins: u64| -> Answering {
        Box::new(move |ask, wire| match ask {
            Ask::List => wire.pour(&Vec::<Offered>::new()),
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
        Ask::List => wire.pour(&Vec::<Offered>::new()),
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
            Ask::List => wire.pour(&Vec::<Offered>::new()),
            _ => wire.tell(&Page { from, to, last: false }),
        });
        let error = format!("{:#}", story.fetch(&[true], impossible).unwrap_err());
        assert!(error.contains("pages that cannot be"), "{error}");
    }
}
