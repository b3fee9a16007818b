//! What a run made, brought home while it runs. The machine that it comes from is somebody else's, and is believed in
//! nothing: not in a name, a length, a hash or an end. What comes is written under a name of our own until it is all
//! there and is what was announced; nothing outside the run's directory is touched, and there is an end to how much is
//! taken. A file is complete when it stayed as it is from one look to the next, or when the script has ended.

use super::{
    agent::site::{Ask, Book, Offered, PAGE, Page, Root},
    job::{Full, Nonsense},
    wire::{Wire, is_lost, shown},
};
use crate::{
    hash::hex,
    host::{
        Host,
        beneath::{Beneath, OnDisk, Part, Rel, Stamp},
    },
    hq::disk::size_words,
    journal::Journal,
};
use anyhow::{Context as _, Result, anyhow, ensure};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    io::{Read as _, Write as _},
    path::Path,
    time::Instant,
};

/// How much is taken from one run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Quota {
    pub files: usize,
    /// Bytes of one file.
    pub file: u64,
    /// Bytes in all.
    pub all: u64,
    /// Bytes of each book.
    pub book: u64,
    /// Bytes that stay free here, whatever is there to be taken.
    pub free: u64,
    /// Entries of our own memory: a file that changes for ever, or a book of one byte a page, would fill a disk with them.
    pub notes: usize,
}

impl Default for Quota {
    fn default() -> Self {
        // A run whose script never stops talking makes as many notes in a month and a half.
        let notes = 4_000_000;
        Self { files: 20_000, file: 64 << 30, all: 256 << 30, book: 256 << 20, free: 2 << 30, notes }
    }
}

/// A file comes in pieces, so that there is time for other things between them.
const PIECE: u64 = 8 << 20;

/// The longest list of what there is to be taken, in bytes: four times what is taken, with long names.
const OFFERS: u64 = 64 << 20;

/// A file must have rested so long, by the clock of its own machine.
const REST: u64 = 2000;

/// What happened here: an entry of the run's own memory of what came home.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Landed {
    File {
        root: Root,
        path: Rel,
        stamp: Stamp,
        hash: String,
    },
    /// And why. Said once.
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

/// All of it: a fold over the journal.
#[derive(Debug, Default)]
struct Memory {
    files: BTreeMap<(Root, Rel), (Stamp, String)>,
    left: BTreeSet<(Root, String)>,
    books: HashMap<Book, (u64, u64)>,
    notes: usize,
}

impl Memory {
    fn add(&mut self, landed: Landed) {
        self.notes += 1;
        match landed {
            Landed::File { root, path, stamp, hash } => {
                self.left.remove(&(root, path.as_str().to_owned()));
                self.files.insert((root, path), (stamp, hash));
            }
            Landed::Left { root, path, .. } => drop(self.left.insert((root, path))),
            Landed::Book { book, theirs, ours } => drop(self.books.insert(book, (theirs, ours))),
            Landed::Anew => self.books.values_mut().for_each(|(theirs, _)| *theirs = 0),
        }
    }

    fn bytes(&self) -> u64 {
        self.files.values().map(|(stamp, _)| stamp.len).fold(0, u64::saturating_add)
    }
}

/// The directory at home where a run's files go, and what is there.
pub struct Home<'a> {
    host: &'a Host,
    dir: Beneath,
    journal: Journal<Landed>,
    memory: Memory,
    quota: Quota,
    /// What was offered at the last look.
    seen: HashMap<(Root, String), Stamp>,
    /// What there was no time for.
    coming: Option<Coming>,
    say: &'a (dyn Fn(&str) + Sync),
}

/// A file, some pieces of which are here.
struct Coming {
    path: Rel,
    stamp: Stamp,
    part: Part,
    seen: Sha256,
    at: u64,
}

impl Coming {
    fn new(path: &Rel, stamp: Stamp, part: Part) -> Self {
        Self { path: path.clone(), stamp, part, seen: Sha256::new(), at: 0 }
    }

    /// The next piece; not, when the file is no longer what it was.
    fn piece(&mut self, wire: &mut Wire, len: u64) -> Result<bool> {
        if !wire.hear::<bool>()? {
            return Ok(false);
        }
        let mut receiving = wire.receiving();
        let (mut seen, mut piece, mut left) = (self.seen.clone(), Sha256::new(), len);
        let mut bytes = vec![0; 128 << 10];
        while left > 0 {
            let most = usize::try_from(left).unwrap_or(usize::MAX).min(bytes.len());
            let n = receiving.read(&mut bytes[..most])?;
            ensure!(n > 0, Nonsense(format!("it is shorter than was announced, by {left} bytes")));
            seen.update(&bytes[..n]);
            piece.update(&bytes[..n]);
            self.part.write_all(&bytes[..n]).context("writing it here")?;
            left -= n as u64;
        }
        receiving.rest()?;
        let Some(hash) = wire.hear::<Option<String>>()? else { return Ok(false) };
        let same = hash == hex(&piece.finalize());
        ensure!(same, Nonsense("it came as something else than was announced".into()));
        (self.seen, self.at) = (seen, self.at + len);
        Ok(true)
    }
}

/// What is to be done about an offer. Pure.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Judgement {
    Here,
    /// It may still change.
    Later,
    Take(Rel),
    Leave(String),
    /// It may come when there is.
    NoRoom,
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
        let (journal, landed) = Journal::<Landed>::open(host, memory)?;
        let mut memory = Memory::default();
        landed.into_iter().for_each(|landed| memory.add(landed));
        dir.sweep()?;
        Ok(Self { host, dir, journal, memory, quota, seen: HashMap::new(), coming: None, say })
    }

    /// Bring home what is complete and not here, as much as there is time for. Whether that is everything: `ended` says
    /// that nothing more will come.
    pub fn fetch(&mut self, wire: &mut Wire, ended: bool, until: Instant) -> Result<bool> {
        // What people watch comes first, and a large file does not keep it waiting.
        let mut whole = self.listen(wire, until)?;
        wire.tell(&Ask::List)?;
        let offers: Vec<Offered> = wire.draw(OFFERS).context("hearing what there is to bring home")?;
        let (mut seen, mut too_much) = (HashMap::new(), 0);
        for (n, offer) in offers.into_iter().enumerate() {
            let key = (offer.root, offer.path.clone());
            let rested = self.seen.get(&key) == Some(&offer.stamp);
            let judgement = if n >= self.quota.files {
                Judgement::Leave(format!("more than {} files", self.quota.files))
            } else {
                self.judge(&offer, ended || rested && offer.age >= REST)?
            };
            match judgement {
                Judgement::Here => {}
                Judgement::Later => whole = false,
                Judgement::NoRoom => too_much += offer.stamp.len,
                Judgement::Take(_) if Instant::now() >= until => whole = false,
                Judgement::Take(path) => {
                    whole &= self.take(wire, offer.root, path, offer.stamp, until)?;
                }
                Judgement::Leave(why) => {
                    self.leave(offer.root, &offer.path, why)?;
                    if n >= self.quota.files {
                        break;
                    }
                }
            }
            seen.insert(key, offer.stamp);
        }
        self.seen = seen;
        if too_much > 0 {
            // Nobody who is told that all is home would look for it.
            let no_room = || anyhow!("there is no room here for {} of it", size_words(too_much));
            return Err(no_room().context(Full));
        }
        Ok(whole && ended)
    }

    /// What comes from now on is of a machine where the script was never started: none of what is known of an earlier one's
    /// books holds there.
    pub fn anew(&mut self) -> Result<()> {
        (self.seen, self.coming) = (HashMap::new(), None);
        if self.memory.books.values().all(|(theirs, _)| *theirs == 0) {
            return Ok(());
        }
        self.note(Landed::Anew)
    }

    /// What the script has said since, and how its machine is. Whether that is all so far.
    pub fn listen(&mut self, wire: &mut Wire, until: Instant) -> Result<bool> {
        let log = self.read_on(wire, Book::Log, until)?;
        Ok(log & self.read_on(wire, Book::Samples, until)?)
    }

    fn judge(&self, offer: &Offered, complete: bool) -> Result<Judgement> {
        if let Some(why) = &offer.not {
            return Ok(Judgement::Leave(why.chars().take(200).collect()));
        }
        let path = match Rel::new(&offer.path).and_then(|path| path.under(dir_of(offer.root))) {
            Ok(path) if path.is_part() => return Ok(Judgement::Leave("its name is one of ours".into())),
            Ok(path) => path,
            Err(why) => return Ok(Judgement::Leave(format!("{why:#}"))),
        };
        let before = self.memory.files.get(&(offer.root, path.clone()));
        if before.is_some_and(|(stamp, _)| *stamp == offer.stamp) {
            return Ok(Judgement::Here);
        }
        if !complete {
            return Ok(Judgement::Later);
        }
        let (len, quota) = (offer.stamp.len, self.quota);
        if self.memory.notes >= quota.notes {
            return Ok(Judgement::Leave(format!("files have come {} times", quota.notes)));
        }
        // Of one list or of many: a file without a byte takes room, too.
        if before.is_none() && self.memory.files.len() >= quota.files {
            return Ok(Judgement::Leave(format!("more than {} files", quota.files)));
        }
        let all = self.memory.bytes() - before.map_or(0, |(stamp, _)| stamp.len);
        Ok(if len > quota.file {
            Judgement::Leave(format!("it is larger than {} MiB", quota.file >> 20))
        } else if all.saturating_add(len) > quota.all {
            Judgement::Leave(format!("all of it is more than {} MiB", quota.all >> 20))
        } else if len > self.room()? {
            Judgement::NoRoom
        } else {
            Judgement::Take(path)
        })
    }

    fn room(&self) -> Result<u64> {
        let (free, _) = self.host.room(self.dir.path())?;
        Ok(free.saturating_sub(self.quota.free))
    }

    /// Whether it came; not, when it changed meanwhile, or when there was no time for all of it.
    fn take(&mut self, wire: &mut Wire, root: Root, path: Rel, stamp: Stamp, until: Instant) -> Result<bool> {
        let there = Rel::new(&path.as_str()[dir_of(root).len() + 1..])?;
        let begun = self.coming.take().filter(|coming| coming.stamp == stamp && coming.path == path);
        let mut coming = match begun
            .map_or_else(|| self.dir.write(&path).map(|part| Coming::new(&path, stamp, part)), Ok)
        {
            Ok(coming) => coming,
            // What was a file over there has become a directory, or the other way round.
            Err(error) => {
                self.leave(root, there.as_str(), format!("{error:#}"))?;
                return Ok(true);
            }
        };
        loop {
            if Instant::now() >= until {
                self.coming = Some(coming);
                return Ok(false);
            }
            let len = PIECE.min(stamp.len - coming.at);
            // Other runs' files come meanwhile.
            if len > self.room()? {
                return Err(anyhow!("there is no room here for the rest of {path}").context(Full));
            }
            let piece = wire
                .tell(&Ask::Take { root, path: there.clone(), stamp, from: coming.at, len })
                .and_then(|()| coming.piece(wire, len));
            match piece {
                Ok(true) if coming.at == stamp.len => break,
                Ok(true) => {}
                Ok(false) => return Ok(false),
                Err(error) => {
                    // By another connection it goes on from the last piece that came whole.
                    if is_lost(&error) && coming.part.cut(coming.at).is_ok() {
                        self.coming = Some(coming);
                    }
                    return Err(error).with_context(|| format!("bringing home {path}"));
                }
            }
        }
        let hash = hex(&coming.seen.finalize());
        if let Err(error) = coming.part.keep(false, OnDisk::Now) {
            self.leave(root, there.as_str(), format!("{error:#}"))?;
            return Ok(true);
        }
        self.note(Landed::File { root, path, stamp, hash })?;
        Ok(true)
    }

    fn leave(&mut self, root: Root, path: &str, why: String) -> Result<()> {
        let path: String = path.chars().take(200).collect();
        let known = self.memory.left.contains(&(root, path.clone()));
        // Or an endless list of bad names, or of reasons, would fill the disk with them.
        if !known && self.memory.left.len() < 1000 {
            (self.say)(&format!("{path:?} is left on the machine: {}", shown(&why)));
            self.note(Landed::Left { root, path, why })?;
        }
        Ok(())
    }

    /// Whether all that is written is here.
    fn read_on(&mut self, wire: &mut Wire, book: Book, until: Instant) -> Result<bool> {
        let name = Rel::new(match book {
            Book::Log => "log.txt",
            Book::Samples => "samples.jsonl",
        })?;
        loop {
            let (theirs, ours) = self.memory.books.get(&book).copied().unwrap_or_default();
            if ours >= self.quota.book || self.memory.notes >= self.quota.notes {
                return Ok(true);
            }
            wire.tell(&Ask::Book { book, from: theirs })?;
            let page: Page = wire.hear()?;
            let len = page.to.checked_sub(page.from).filter(|len| *len <= PAGE && page.from >= theirs);
            let len = len.ok_or_else(|| Nonsense(format!("{name} has pages that cannot be")))?;
            let mut bytes = Vec::new();
            let mut receiving = wire.receiving();
            receiving.by_ref().take(len).read_to_end(&mut bytes)?;
            let short = || Nonsense(format!("a page of {name} is shorter than was announced"));
            ensure!(bytes.len() as u64 == len, short());
            receiving.rest()?;
            if len > 0 {
                let mut text = Vec::new();
                if book == Book::Log && theirs == 0 && ours > 0 {
                    text.extend(b"\n[echoes-appliance: on another machine]\n");
                }
                if book == Book::Log && page.from > theirs {
                    let lost = page.from - theirs;
                    text.extend(format!("\n[echoes-appliance: {lost} bytes are left out]\n").into_bytes());
                }
                text.extend(bytes);
                text.truncate(usize::try_from(self.quota.book - ours)?);
                // What came after the last note, by a crash between the two, comes again.
                let mut file = self.dir.append(&name, ours)?;
                file.write_all(&text).with_context(|| format!("writing {name}"))?;
                file.sync_data()?;
                let ours = ours + text.len() as u64;
                self.note(Landed::Book { book, theirs: page.to, ours })?;
            }
            if page.last || len == 0 || Instant::now() >= until {
                return Ok(page.last);
            }
        }
    }

    fn note(&mut self, landed: Landed) -> Result<()> {
        self.journal.append(&landed)?;
        self.memory.add(landed);
        Ok(())
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
