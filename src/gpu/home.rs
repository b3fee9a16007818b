//! What a run made, brought home while it runs. The machine that it comes from is somebody else's, and is believed in
//! nothing: not in a name, a length, a hash or an end. What comes is written under a name of our own until it is all
//! there and is what was announced; nothing outside the run's directory is touched, and there is an end to how much is
//! taken. A file is complete when it stayed as it is from one look to the next, or when the script has ended.
//!
//! The books, which people watch, and the files come home beside one another: neither waits for the other.

mod books;
mod files;
mod survey;

pub use survey::NOTHING;

use super::{
    agent::site::{Book, Root},
    left::Left,
};
use crate::{
    host::{
        Host,
        beneath::{Beneath, Rel, Spelling, Stamp},
    },
    journal::Journal,
    web::hold,
};
use anyhow::{Context as _, Result};
use files::Files;
use serde::{Deserialize, Serialize};
use std::{
    collections::{BTreeMap, HashMap},
    path::Path,
    sync::{
        Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Instant,
};

/// How much is taken from one run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Quota {
    pub files: usize,
    /// Bytes in all.
    pub all: u64,
    /// Bytes of each book.
    pub book: u64,
    /// Bytes that stay free here, whatever is there to be taken.
    pub free: u64,
    /// Entries of our own memory, besides one for each file: a file that changes for ever, or a book of one byte a page, would
    /// fill a disk with them.
    pub notes: usize,
}

impl Quota {
    /// Files of one run: far more than any has made, and still a number.
    pub const FILES: usize = 10_000_000;
}

impl Default for Quota {
    fn default() -> Self {
        // A script that never stops talking makes one of them a second, for four months.
        let notes = 10_000_000;
        Self { files: Self::FILES, all: u64::MAX, book: 256 << 20, free: 2 << 30, notes }
    }
}

/// What happened here: an entry of the run's own memory of what came home.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Landed {
    File {
        root: Root,
        path: Rel,
        stamp: Stamp,
        /// Of its bytes; of a file with holes, of those that are none.
        hash: String,
    },
    Link {
        root: Root,
        path: Rel,
        to: Spelling,
    },
    /// And why. Written by earlier versions, once for each; what is left is now found out at each look.
    Left {
        root: Root,
        path: String,
        why: String,
    },
    /// A piece of a book: where it ended over there, and here.
    Book {
        book: Book,
        theirs: u64,
        ours: u64,
    },
    /// Another machine goes on with the run: its books begin anew over there, and are added to those here.
    Anew,
}

/// What is here, by its path at home: a fold over the journal.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Here {
    File(Stamp),
    Link(Spelling),
}

/// The directory at home where a run's files go, and what is there.
pub struct Home<'a> {
    host: &'a Host,
    dir: Beneath,
    journal: Mutex<Noted>,
    books: Mutex<HashMap<Book, (u64, u64)>>,
    files: Mutex<Files>,
    /// Whoever brings files ends with the piece that is under way.
    hurried: AtomicBool,
    quota: Quota,
    say: &'a (dyn Fn(&str) + Sync),
}

struct Noted {
    journal: Journal<Landed>,
    /// Besides those of files.
    notes: usize,
}

/// What came of a look.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fetched {
    /// Nothing new is known: it goes on.
    UnderWay,
    /// There is more to come: so many files, as far as is known, of so many bytes. What is left is what cannot come.
    Coming { files: u64, bytes: u64, left: Left },
    /// All that can come is here; nothing more will be made. What is left is what cannot come.
    Home(Left),
}

#[cfg(test)]
impl Fetched {
    /// For tests: all of it is home, or something is still to come.
    pub fn example(whole: bool) -> Self {
        let left = Left::default();
        if whole { Self::Home(left) } else { Self::Coming { files: 1, bytes: 1, left } }
    }
}

impl<'a> Home<'a> {
    /// `dir` is the run's directory among the results, `memory` a file of ours.
    pub fn open(
        host: &'a Host,
        dir: &Path,
        memory: &Path,
        quota: Quota,
        owner: Option<(u32, u32)>,
        say: &'a (dyn Fn(&str) + Sync),
    ) -> Result<Self> {
        // Others may write beside it: only the directory of all results is believed.
        let (all, name) = dir.parent().zip(dir.file_name()).context("a run's results need a directory")?;
        let dir = Beneath::make(host, all)?.inside(&Rel::new(&name.to_string_lossy())?, owner)?;
        let (mut here, mut books, mut notes) = (BTreeMap::new(), HashMap::new(), 0);
        // One after another: there may be millions.
        let journal = Journal::<Landed>::open_with(host, memory, &mut |landed| match landed {
            Landed::File { root, path, stamp, .. } => drop(here.insert((root, path), Here::File(stamp))),
            Landed::Link { root, path, to } => drop(here.insert((root, path), Here::Link(to))),
            Landed::Left { .. } => notes += 1,
            Landed::Book { book, theirs, ours } => {
                notes += 1;
                books.insert(book, (theirs, ours));
            }
            Landed::Anew => {
                notes += 1;
                books.values_mut().for_each(|(theirs, _)| *theirs = 0);
            }
        })?;
        dir.sweep()?;
        let (journal, books) = (Mutex::new(Noted { journal, notes }), Mutex::new(books));
        let (files, hurried) = (Mutex::new(Files::new(here)), AtomicBool::new(false));
        Ok(Self { host, dir, journal, books, files, hurried, quota, say })
    }

    /// What comes from now on is of a machine where the script was never started: none of what is known of an earlier one's
    /// books holds there.
    pub fn anew(&self) -> Result<()> {
        hold(&self.files).anew();
        let mut books = hold(&self.books);
        if books.values().all(|(theirs, _)| *theirs == 0) {
            return Ok(());
        }
        self.note(&[Landed::Anew], 1)?;
        books.values_mut().for_each(|(theirs, _)| *theirs = 0);
        Ok(())
    }

    /// Little time is left: a look that is under way ends, and the next one begins with what is newest.
    pub fn hurry(&self) {
        self.hurried.store(true, Ordering::Relaxed);
    }

    fn is_time_up(&self, until: Instant) -> bool {
        Instant::now() >= until || self.hurried.load(Ordering::Relaxed)
    }

    /// On disk when this returns. So many of them count against the quota.
    fn note(&self, landed: &[Landed], counted: usize) -> Result<()> {
        let mut noted = hold(&self.journal);
        noted.journal.append_all(landed)?;
        noted.notes += counted;
        Ok(())
    }

    fn is_noted_out(&self) -> bool {
        hold(&self.journal).notes >= self.quota.notes
    }

    fn room(&self) -> Result<u64> {
        let (free, _) = self.host.room(self.dir.path())?;
        Ok(free.saturating_sub(self.quota.free))
    }
}

/// The two cannot meet, whatever they are named over there.
pub fn dir_of(root: Root) -> &'static str {
    match root {
        Root::Out => "out",
        Root::Code => "project",
    }
}

#[cfg(test)]
mod tests;
