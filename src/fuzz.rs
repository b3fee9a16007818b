//! Input that nobody would write, for everything that reads what came from elsewhere: whatever it is, it is read or refused,
//! and nothing panics, hangs or takes more memory than it has bytes. A small mutator and no crate: the known ones need a
//! nightly compiler to know where an input leads, and without that they do what stands here. In its place an input whose
//! answer is a new one is kept, and changed further.
//!
//! A target is a test whose name begins with `fuzz_` and the target's. What it begins with are the files of
//! tests/corpus/TARGET, which are also tried as they are: an input that failed once is put there, and stays. `make test`
//! tries 5,000 inputs that are the same each time; `make fuzz TARGET=journal` goes on until it is stopped.

// Tests look at files directly.
#![allow(clippy::disallowed_methods, clippy::disallowed_types, clippy::print_stderr)]

use crate::host::System;
use std::{
    cell::Cell,
    collections::BTreeSet,
    fs::{self, File},
    os::unix::fs::FileExt as _,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

const TRIES: u64 = 5_000;
/// Bytes of the longest input: longer ones find nothing else, and take longer.
const LONGEST: usize = 32 << 10;
/// Inputs that are gone on from, one for each answer that is told apart.
const KEPT: usize = 2_000;

/// Words at which something was wrong before, here or elsewhere.
const WORDS: [&str; 44] = [
    "ü",
    "学",
    "\u{202e}",
    "\u{feff}",
    "\u{1f980}",
    "e\u{301}",
    "\0",
    "\n",
    "\r\n",
    "\t",
    " ",
    "\"",
    "'",
    "\\",
    "\\u0000",
    "\\ud800",
    "{}",
    "[]",
    "[[",
    "null",
    "true",
    "\"\"",
    ":",
    ",",
    "=",
    "#",
    "-",
    "..",
    "/",
    "0",
    "-1",
    "1e309",
    "-1e-309",
    "NaN",
    "65536",
    "2147483648",
    "4294967296",
    "9223372036854775807",
    "18446744073709551615",
    "99999999999999999999999",
    "0.1",
    "9999-12-31T23:59:59.999999999Z",
    "-9999-01-01T00:00:00Z",
    "1970-01-01T00:00:00+23:59",
];

/// Numbers whose order is nobody's: splitmix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number less than `most`; 0 where that is 0.
    fn below(&mut self, most: usize) -> usize {
        usize::try_from(self.next() % (most.max(1) as u64)).unwrap_or_default()
    }

    fn of<'a, T>(&mut self, all: &'a [T]) -> &'a T {
        &all[self.below(all.len())]
    }

    /// A part of something so long, rather a short one.
    fn range(&mut self, len: usize) -> (usize, usize) {
        let from = self.below(len + 1);
        let most = if self.below(4) == 0 { len } else { 16 };
        (from, (from + self.below(most + 1)).min(len))
    }
}

/// The first bytes of one kind from a place on: where they begin and end.
fn run_of(bytes: &[u8], at: usize, is_one: impl Fn(u8) -> bool) -> Option<(usize, usize)> {
    let first = (at..bytes.len()).find(|n| is_one(bytes[*n]))?;
    let end = (first..bytes.len()).find(|n| !is_one(bytes[*n])).unwrap_or(bytes.len());
    Some((first, end))
}

fn mutate(random: &mut Random, bytes: &mut Vec<u8>, all: &[Vec<u8>], words: &[&str]) {
    let at = random.below(bytes.len());
    let word = if words.is_empty() || random.below(2) == 0 { *random.of(&WORDS) } else { *random.of(words) };
    match random.below(12) {
        0 if !bytes.is_empty() => bytes[at] ^= 1 << random.below(8),
        1 if !bytes.is_empty() => bytes[at] = u8::try_from(random.below(256)).unwrap_or_default(),
        2 => drop(bytes.splice(at..at, word.bytes())),
        // A number becomes another one.
        3 => {
            if let Some((from, to)) = run_of(bytes, at, |byte| byte.is_ascii_digit()) {
                bytes.splice(from..to, word.bytes());
            }
        }
        // So does a word, between quotes or not.
        4 => {
            let is_in_word =
                |byte: u8| byte.is_ascii_alphanumeric() || b"_-.+/".contains(&byte) || byte >= 0x80;
            if let Some((from, to)) = run_of(bytes, at, is_in_word) {
                bytes.splice(from..to, word.bytes());
            }
        }
        5 => {
            let (from, to) = random.range(bytes.len());
            bytes.drain(from..to);
        }
        6 => {
            let (from, to) = random.range(bytes.len());
            let part = bytes[from..to].to_vec();
            let times = if random.below(20) == 0 { random.below(1000) } else { 1 };
            let part = part.repeat(times.min(LONGEST / part.len().max(1)));
            bytes.splice(to..to, part);
        }
        7 => bytes.truncate(at),
        8 => {
            let other = random.of(all);
            let from = random.below(other.len());
            bytes.splice(at.., other[from..].iter().copied());
        }
        // A line stands elsewhere, or twice.
        9 => {
            let lines: Vec<&[u8]> = bytes.split_inclusive(|byte| *byte == b'\n').collect();
            if let Some(line) = lines.get(random.below(lines.len())) {
                let to = random.below(lines.len() + 1);
                *bytes = [lines[..to].concat(), line.to_vec(), lines[to..].concat()].concat();
            }
        }
        // Deeper than any reader's stack.
        10 if random.below(50) == 0 => {
            let deep =
                random.of(&["[", "{\"a\":", "(", "a.", "[[a.", "\"", "../"]).repeat(random.below(5000));
            bytes.splice(at..at, deep.into_bytes());
        }
        _ => drop(bytes.splice(at..at, word.bytes().chain([b'\n']))),
    }
    bytes.truncate(LONGEST);
}

/// A file that holds an input while it is tried, so that one that ends the process is there still.
struct Trace {
    dir: PathBuf,
    last: File,
    len: Cell<usize>,
}

impl Trace {
    fn of(target: &str) -> Self {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/fuzz").join(target);
        fs::create_dir_all(&dir).unwrap();
        // Of this process alone: two may be at it.
        let last = File::create(dir.join(format!("last-{}", std::process::id()))).unwrap();
        Self { dir, last, len: Cell::new(0) }
    }

    fn write(&self, input: &[u8]) {
        self.last.write_all_at(input, 0).unwrap();
        // Dearer than the rest of it.
        if self.len.replace(input.len()) > input.len() {
            self.last.set_len(input.len() as u64).unwrap();
        }
    }

    fn end(self) {
        let _ = fs::remove_file(self.dir.join(format!("last-{}", std::process::id())));
    }
}

/// Tries what `read` makes of inputs. `words` are those that mean something to it. It panics where something is wrong.
pub fn run(target: &str, words: &[&str], read: impl Fn(&[u8]) -> anyhow::Result<()>) {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus").join(target);
    let mut paths: Vec<PathBuf> = fs::read_dir(&corpus).unwrap().map(|entry| entry.unwrap().path()).collect();
    // A directory has its names in any order, and the inputs follow from it.
    paths.sort();
    let mut all: Vec<Vec<u8>> = paths.iter().map(|path| fs::read(path).unwrap()).collect();
    assert!(!all.is_empty(), "{} is empty", corpus.display());
    let trace = Trace::of(target);
    let attempt = |input: &[u8]| -> Option<String> {
        trace.write(input);
        let began = Instant::now();
        match catch_unwind(AssertUnwindSafe(|| read(input))) {
            // Quadratic in a few kilobytes is minutes in a megabyte. A busy machine alone is not that slow.
            Ok(_) if began.elapsed() > Duration::from_secs(30) => {
                panic!("{target}: it took {:?}; the input is in {}", began.elapsed(), trace.dir.display())
            }
            Ok(answer) => answer.err().map(|error| {
                format!("{error:#}").chars().filter(|c| c.is_ascii_alphabetic()).take(80).collect()
            }),
            Err(panic) => {
                let kept = trace.dir.join(&crate::hash::sha256(input)[..16]);
                fs::write(&kept, input).unwrap();
                eprintln!(
                    "{target}: the input is in {0}\ntry: FUZZ_INPUT={0} make fuzz TARGET={target}",
                    kept.display()
                );
                resume_unwind(panic)
            }
        }
    };
    if let Some(path) = System::environment("FUZZ_INPUT") {
        eprintln!("{target}: {:?}", attempt(&fs::read(path).unwrap()));
        return;
    }
    let mut answers: BTreeSet<Option<String>> = all.iter().map(|input| attempt(input)).collect();
    // Empty, or for so many seconds.
    let endless =
        System::environment("FUZZ").map(|long| Duration::from_secs(long.parse().unwrap_or(u64::MAX)));
    let (began, mut told, mut tries) = (Instant::now(), 0, 0);
    let seed = match endless {
        Some(_) => std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap().as_nanos() as u64,
        None => target.bytes().fold(0, |seed, byte| seed * 31 + u64::from(byte)),
    };
    let mut random = Random(seed);
    loop {
        let over = endless.map_or(tries == TRIES, |long| began.elapsed() >= long);
        if over || (endless.is_some() && began.elapsed().as_secs() / 60 > told) {
            told += 1;
            if endless.is_some() {
                let seconds = began.elapsed().as_secs();
                eprintln!("{target}: {tries} inputs in {seconds} s, {} answers, seed {seed}", answers.len());
            }
            if over {
                break;
            }
        }
        let mut input = random.of(&all).clone();
        for _ in 0..=random.below(6) {
            mutate(&mut random, &mut input, &all, words);
        }
        let answer = attempt(&input);
        tries += 1;
        if all.len() < KEPT && !answers.contains(&answer) {
            answers.insert(answer);
            all.push(input);
        }
    }
    trace.end();
}

#[test]
fn an_input_that_ends_in_a_panic_is_kept_and_the_same_inputs_are_tried_each_time() {
    let seen = std::cell::RefCell::new(Vec::new());
    let note = |input: &[u8]| {
        seen.borrow_mut().push(crate::hash::sha256(input));
        anyhow::ensure!(input.len().is_multiple_of(2), "odd");
        Ok(())
    };
    run("git", &[], note);
    let first = seen.take();
    run("git", &[], note);
    assert!(first.len() as u64 > TRIES && first == seen.take());
    let ends = catch_unwind(|| {
        run("git", &[], |input| {
            assert!(!input.contains(&0xff), "found");
            Ok(())
        })
    });
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/fuzz/git");
    let kept = fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().path());
    let kept: Vec<_> = kept.filter(|path| fs::read(path).unwrap().contains(&0xff)).collect();
    assert!(ends.is_err() && !kept.is_empty());
    kept.iter().for_each(|path| fs::remove_file(path).unwrap());
}
