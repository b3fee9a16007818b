//! Files on their way home. Many are asked for ahead, so that the way there and back is gone once and not once for each; what
//! has come is put on the disk a batch at a time. The trouble of a file is that file's alone.

use super::{
    Fetched, Here, Home, Landed,
    survey::{Survey, Take},
};
use crate::{
    gpu::{
        agent::site::{Ask, Ended, Given, Root},
        job::{Full, Nonsense},
        wire::{Wire, is_lost},
    },
    hash::hex,
    host::beneath::{Part, Rel, Stamp},
    hq::disk::size_words,
    web::hold,
};
use anyhow::{Context as _, Result, anyhow, ensure};
use sha2::{Digest as _, Sha256};
use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque},
    io::{ErrorKind, Read as _, Write as _},
    sync::atomic::Ordering,
    time::{Duration, Instant},
};

/// A file comes in pieces, so that what broke off goes on from the last one.
pub(super) const PIECE: u64 = 8 << 20;

/// Asked for ahead: what a fast line holds on a long way, in bytes of files; and in bytes of questions less than a pipe takes
/// without a reader, for we do not listen while we ask.
const AHEAD: u64 = 16 << 20;
const QUESTIONS: usize = 32 << 10;

/// Put on the disk together: so many files, each with two files open here; so many bytes; or what came in so long.
const BATCH: usize = 128;
const BATCH_BYTES: u64 = 64 << 20;
const BATCH_TIME: Duration = Duration::from_secs(2);
/// Synced each by itself: to sync all of a disk, others' pages too, is cheaper only for many.
const FEW: usize = 4;

/// Names that are told of, once each: an endless list of bad ones would fill a disk with them.
const TOLD: usize = 1000;

/// What is known of a run's files.
pub(super) struct Files {
    pub here: BTreeMap<(Root, Rel), Here>,
    /// All of theirs.
    pub bytes: u64,
    /// By its path at home, what was offered at the last look and may have changed since.
    pub seen: HashMap<Rel, Stamp>,
    /// What there was no time for.
    coming: Option<Coming>,
    told: HashSet<String>,
}

/// A file, some pieces of which are here.
struct Coming {
    home: Rel,
    stamp: Stamp,
    part: Part,
    seen: Sha256,
    /// How many pieces are here.
    pieces: usize,
}

/// A piece that was asked for.
struct Asked {
    take: usize,
    from: u64,
    len: u64,
    last: bool,
    /// Of the question.
    words: usize,
}

/// How a piece came.
enum Came {
    Whole,
    Changed,
    Unreadable(String),
}

impl Files {
    pub fn new(here: BTreeMap<(Root, Rel), Here>) -> Self {
        let len = |here: &Here| if let Here::File(stamp) = here { stamp.len } else { 0 };
        let bytes = here.values().map(len).fold(0, u64::saturating_add);
        Self { here, bytes, seen: HashMap::new(), coming: None, told: HashSet::new() }
    }

    pub fn anew(&mut self) {
        (self.seen, self.coming) = (HashMap::new(), None);
    }

    /// For whoever reads what the driver says, once for each path.
    pub fn tell(&mut self, path: &str, say: &dyn Fn(&str), words: impl FnOnce(&str) -> String) {
        let path: String = path.chars().take(200).collect();
        if self.told.len() < TOLD && self.told.insert(path.clone()) {
            say(&words(&path));
        }
    }

    fn add(&mut self, root: Root, home: Rel, stamp: Stamp) {
        self.bytes = self.bytes.saturating_add(stamp.len);
        if let Some(Here::File(old)) = self.here.insert((root, home), Here::File(stamp)) {
            self.bytes = self.bytes.saturating_sub(old.len);
        }
    }
}

/// The pieces of a file: where each begins, and how long it is. Of one without data, one of no bytes: so it is looked at.
fn pieces(take: &Take) -> impl Iterator<Item = (u64, u64)> + use<> {
    let whole = vec![(0, take.stamp.len)];
    let mut extents = take.extents.clone().unwrap_or(whole);
    if extents.iter().all(|(_, len)| *len == 0) {
        extents = vec![(0, 0)];
    }
    extents.into_iter().flat_map(|(from, len)| {
        let count = len.div_ceil(PIECE).max(1);
        (0..count).map(move |n| (from + n * PIECE, PIECE.min(len - n * PIECE)))
    })
}

impl Home<'_> {
    /// Bring home what is complete and not here, as much as there is time for. `ended` says that nothing more will come.
    pub fn fetch(&self, wire: &mut Wire, ended: bool, until: Instant) -> Result<Fetched> {
        self.hurried.store(false, Ordering::Relaxed);
        // What people watch comes first.
        let whole = self.listen(wire, until)?;
        let mut files = hold(&self.files);
        let files = &mut *files;
        let mut survey = self.survey(wire, files, ended)?;
        self.make_dirs(files, &mut survey);
        self.make_links(files, &mut survey)?;
        let takes = std::mem::take(&mut survey.takes);
        let no_room = self.bring(wire, (files, &mut survey), takes, until)?;
        self.make_names(files, &mut survey)?;
        if no_room > 0 {
            // Nobody who is told that all is home would look for it.
            let no_room = || anyhow!("there is no room here for {} of it", size_words(no_room));
            return Err(no_room().context(Full));
        }
        Ok(survey.fetched(whole && ended))
    }

    fn make_dirs(&self, files: &mut Files, survey: &mut Survey) {
        for home in std::mem::take(&mut survey.dirs) {
            if let Err(error) = self.cleared(&home, || self.dir.make_dir(&home)) {
                self.leave(files, survey, &home.to_string(), &format!("{error:#}"), 0);
            }
        }
    }

    fn make_links(&self, files: &mut Files, survey: &mut Survey) -> Result<()> {
        let mut made = Vec::new();
        for link in std::mem::take(&mut survey.links) {
            // It was looked at before it was decided that it is one.
            let to = link.to.clone().bytes().map_err(anyhow::Error::msg)?;
            match self.cleared(&link.home, || self.dir.link(&link.home, &to)) {
                Ok(()) => {
                    let here = Here::Link(link.to.clone());
                    files.here.insert((link.root, link.home.clone()), here);
                    made.push(Landed::Link { root: link.root, path: link.home, to: link.to });
                }
                Err(error) => self.leave(files, survey, &link.home.to_string(), &format!("{error:#}"), 0),
            }
        }
        if made.is_empty() { Ok(()) } else { self.note(&made, made.len()) }
    }

    /// Other names of files, once those are here.
    fn make_names(&self, files: &mut Files, survey: &mut Survey) -> Result<()> {
        let mut made = Vec::new();
        for name in std::mem::take(&mut survey.names) {
            if files.here.get(&(name.root, name.first.clone())) != Some(&Here::File(name.stamp)) {
                survey.put_off(0);
                continue;
            }
            match self.cleared(&name.home, || self.dir.share(&name.first, &name.home)) {
                Ok(()) => {
                    files.add(name.root, name.home.clone(), name.stamp);
                    // What it has is noted where it came.
                    let hash = format!("as {}", name.first);
                    made.push(Landed::File { root: name.root, path: name.home, stamp: name.stamp, hash });
                }
                Err(error) => self.leave(files, survey, &name.home.to_string(), &format!("{error:#}"), 0),
            }
        }
        if made.is_empty() { Ok(()) } else { self.note(&made, 0) }
    }

    /// What was a file over there may have become a directory, or the other way round: what came before gets another name.
    fn cleared<T>(&self, home: &Rel, make: impl Fn() -> Result<T>) -> Result<T> {
        make().or_else(|error| if self.make_way(home) { make() } else { Err(error) })
    }

    fn make_way(&self, home: &Rel) -> bool {
        let aside = self.dir.set_aside(home).ok().flatten();
        if let Some(aside) = &aside {
            (self.say)(&format!("{home} is something else now: what came before is {aside}"));
        }
        aside.is_some()
    }

    /// Bytes that there was no room for.
    fn bring(
        &self,
        wire: &mut Wire,
        (files, survey): (&mut Files, &mut Survey),
        takes: Vec<Take>,
        until: Instant,
    ) -> Result<u64> {
        let mut queue = Queue::new(&takes, files.coming.take());
        let brought = self.bring_each(wire, (files, survey), &mut queue, until);
        // What came whole is here, whatever became of the rest.
        let kept = self.keep(files, survey, &mut queue.batch);
        // By another connection it goes on from the last piece that came whole.
        if brought.as_ref().map_or_else(is_lost, |()| true) {
            files.coming = queue.current.or(queue.resumed).map(|(_, coming)| coming).or(queue.begun);
        }
        brought?;
        kept.map(|()| queue.no_room)
    }

    fn bring_each(
        &self,
        wire: &mut Wire,
        (files, survey): (&mut Files, &mut Survey),
        queue: &mut Queue<'_>,
        until: Instant,
    ) -> Result<()> {
        loop {
            while !self.is_time_up(until) && queue.has_room() {
                let Some(asked) = self.next_piece(queue)? else { break };
                let take = &queue.takes[asked.take];
                let (root, path, stamp) = (take.root, take.there.clone(), take.stamp);
                let ask = Ask::Take { root, path, stamp, from: asked.from, len: asked.len };
                let words = wire.queue(&ask)?;
                queue.push(Asked { words, ..asked });
            }
            let Some(asked) = queue.pop() else { break };
            let take = &queue.takes[asked.take];
            self.begin(files, survey, queue, take, asked.take)?;
            // It was asked for a while ago.
            if queue.coming(asked.take).is_some() && asked.len > self.room()? {
                self.no_more_room(queue, asked.take);
            }
            let came = receive(wire, queue.coming(asked.take), &asked)
                .with_context(|| format!("bringing home {}", take.home))?;
            if queue.given_up.contains(&asked.take) {
                continue;
            }
            match came {
                Came::Whole if !asked.last => {}
                Came::Whole => queue.finish(take)?,
                Came::Changed => {
                    survey.put_off(take.data());
                    queue.give_up(asked.take);
                }
                Came::Unreadable(why) => {
                    self.leave(files, survey, &take.home.to_string(), &why, take.data());
                    queue.give_up(asked.take);
                }
            }
            if queue.batch.is_full() {
                self.keep(files, survey, &mut queue.batch)?;
            }
        }
        // What there was no time for.
        let begun = queue.current.as_ref().map(|(n, _)| *n).or(queue.asking.as_ref().map(|(n, _)| *n));
        begun
            .into_iter()
            .chain(queue.next..queue.takes.len())
            .for_each(|n| survey.put_off(queue.takes[n].data()));
        Ok(())
    }

    /// What is to be asked for next, where there is room for it. Other runs' files come meanwhile, so that is looked at for
    /// each file and for each piece.
    fn next_piece(&self, queue: &mut Queue<'_>) -> Result<Option<Asked>> {
        loop {
            let Some((n, pieces)) = &mut queue.asking else {
                let Some(take) = queue.takes.get(queue.next) else { return Ok(None) };
                if take.data() > self.room()? {
                    queue.no_room += take.data();
                    queue.next += 1;
                } else {
                    queue.begin_asking(take);
                }
                continue;
            };
            let Some((from, len)) = pieces.next() else {
                queue.asking = None;
                continue;
            };
            let (n, last) = (*n, pieces.peek().is_none());
            if last {
                queue.asking = None;
            }
            if len.saturating_add(queue.bytes_ahead) > self.room()? {
                self.no_more_room(queue, n);
                queue.asking = None;
                continue;
            }
            return Ok(Some(Asked { take: n, from, len, last, words: 0 }));
        }
    }

    fn no_more_room(&self, queue: &mut Queue<'_>, n: usize) {
        let take = &queue.takes[n];
        (self.say)(&format!("there is no room here for the rest of {}", take.home));
        queue.no_room += take.data();
        queue.give_up(n);
    }

    /// The file that a piece is for is begun here, unless it was.
    fn begin(
        &self,
        files: &mut Files,
        survey: &mut Survey,
        queue: &mut Queue<'_>,
        take: &Take,
        n: usize,
    ) -> Result<()> {
        if queue.current.is_some() || queue.given_up.contains(&n) {
            return Ok(());
        }
        queue.current = queue.resumed.take_if(|(resumed, _)| *resumed == n);
        if queue.current.is_some() {
            return Ok(());
        }
        match self.cleared(&take.home, || self.dir.write(&take.home)) {
            Ok(part) => {
                let (home, stamp, seen) = (take.home.clone(), take.stamp, Sha256::new());
                queue.current = Some((n, Coming { home, stamp, part, seen, pieces: 0 }));
            }
            Err(error) => {
                ensure_room(&error)?;
                self.leave(files, survey, &take.home.to_string(), &format!("{error:#}"), take.data());
                queue.give_up(n);
            }
        }
        Ok(())
    }

    /// Put what has come on the disk, under its name, and note it.
    fn keep(&self, files: &mut Files, survey: &mut Survey, batch: &mut Batch) -> Result<()> {
        let came = std::mem::replace(batch, Batch::new()).came;
        if came.is_empty() {
            return Ok(());
        }
        if came.len() <= FEW {
            came.iter().try_for_each(|(part, _)| part.sync())?;
        } else {
            self.dir.sync()?;
        }
        let (mut notes, mut dirs) = (Vec::new(), HashMap::new());
        for (mut part, take) in came {
            let named = part.name().or_else(|error| match self.make_way(&take.home) {
                true => part.name(),
                false => Err(error),
            });
            if let Err(error) = named {
                self.leave(files, survey, &take.home.to_string(), &format!("{error:#}"), take.bytes);
                continue;
            }
            dirs.insert(take.home.dirs().last().unwrap_or_default().to_vec(), part);
            notes.push(Landed::File { root: take.root, path: take.home, stamp: take.stamp, hash: take.hash });
        }
        dirs.values().try_for_each(Part::sync_dir)?;
        // What has come before is a note more.
        let is_again = |note: &&Landed| match note {
            Landed::File { root, path, .. } => files.here.contains_key(&(*root, path.clone())),
            _ => false,
        };
        let again = notes.iter().filter(is_again).count();
        self.note(&notes, again)?;
        for note in notes {
            if let Landed::File { root, path, stamp, .. } = note {
                files.add(root, path, stamp);
            }
        }
        Ok(())
    }
}

type Pieces = std::iter::Peekable<Box<dyn Iterator<Item = (u64, u64)> + Send>>;

/// What is asked for, in order, and what came of it so far. Answers come in the order of the questions, so that one file is
/// written at a time.
struct Queue<'t> {
    takes: &'t [Take],
    /// The first that nothing was asked of.
    next: usize,
    /// The one whose pieces are asked for.
    asking: Option<(usize, Pieces)>,
    ahead: VecDeque<Asked>,
    bytes_ahead: u64,
    words_ahead: usize,
    /// The one whose pieces come.
    current: Option<(usize, Coming)>,
    /// Some pieces of a file came by an earlier connection; and its number, once it is asked for.
    begun: Option<Coming>,
    resumed: Option<(usize, Coming)>,
    /// Whatever is still answered about these is of no use.
    given_up: BTreeSet<usize>,
    no_room: u64,
    batch: Batch,
}

impl<'t> Queue<'t> {
    fn new(takes: &'t [Take], begun: Option<Coming>) -> Self {
        Self {
            takes,
            next: 0,
            asking: None,
            ahead: VecDeque::new(),
            bytes_ahead: 0,
            words_ahead: 0,
            current: None,
            begun,
            resumed: None,
            given_up: BTreeSet::new(),
            no_room: 0,
            batch: Batch::new(),
        }
    }

    fn has_room(&self) -> bool {
        self.ahead.is_empty() || self.bytes_ahead < AHEAD && self.words_ahead < QUESTIONS
    }

    fn begin_asking(&mut self, take: &Take) {
        let n = self.next;
        self.next += 1;
        let same = |coming: &mut Coming| coming.home == take.home && coming.stamp == take.stamp;
        let resumed = self.begun.take_if(same);
        let skipped = resumed.as_ref().map_or(0, |coming| coming.pieces);
        if let Some(coming) = resumed {
            self.resumed = Some((n, coming));
        }
        let all: Box<dyn Iterator<Item = (u64, u64)> + Send> = Box::new(pieces(take).skip(skipped));
        self.asking = Some((n, all.peekable()));
    }

    fn push(&mut self, asked: Asked) {
        (self.bytes_ahead, self.words_ahead) = (self.bytes_ahead + asked.len, self.words_ahead + asked.words);
        self.ahead.push_back(asked);
    }

    fn pop(&mut self) -> Option<Asked> {
        let asked = self.ahead.pop_front()?;
        (self.bytes_ahead, self.words_ahead) = (self.bytes_ahead - asked.len, self.words_ahead - asked.words);
        Some(asked)
    }

    /// Where a piece of that file goes; nowhere when it was given up.
    fn coming(&mut self, n: usize) -> Option<&mut Coming> {
        self.current.as_mut().filter(|(current, _)| *current == n).map(|(_, coming)| coming)
    }

    fn give_up(&mut self, n: usize) {
        self.given_up.insert(n);
        self.current.take_if(|(current, _)| *current == n);
    }

    fn finish(&mut self, take: &Take) -> Result<()> {
        match self.current.take() {
            Some((_, coming)) => self.batch.add(take, coming),
            None => Ok(()),
        }
    }
}

/// Files that have come whole, and are not named yet.
struct Batch {
    came: Vec<(Part, Named)>,
    bytes: u64,
    since: Instant,
}

/// What one of them will be.
struct Named {
    root: Root,
    home: Rel,
    stamp: Stamp,
    bytes: u64,
    hash: String,
}

impl Batch {
    fn new() -> Self {
        Self { came: Vec::new(), bytes: 0, since: Instant::now() }
    }

    fn add(&mut self, take: &Take, coming: Coming) -> Result<()> {
        let Coming { home, stamp, mut part, seen, .. } = coming;
        // A hole at its end.
        part.set_len(stamp.len)?;
        part.finish(0o644)?;
        self.bytes += take.data();
        let named = Named { root: take.root, home, stamp, bytes: take.data(), hash: hex(&seen.finalize()) };
        self.came.push((part, named));
        Ok(())
    }

    fn is_full(&self) -> bool {
        let long = !self.came.is_empty() && self.since.elapsed() >= BATCH_TIME;
        self.came.len() >= BATCH || self.bytes >= BATCH_BYTES || long
    }
}

/// An error when it is one of room, which a person can make.
fn ensure_room(error: &anyhow::Error) -> Result<()> {
    let full = |e: &std::io::Error| matches!(e.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded);
    let is_full = error.chain().any(|cause| {
        cause.downcast_ref::<std::io::Error>().is_some_and(full)
            || matches!(cause.downcast_ref(), Some(nix::errno::Errno::ENOSPC | nix::errno::Errno::EDQUOT))
    });
    if is_full { Err(anyhow!("{error:#}").context(Full)) } else { Ok(()) }
}

/// The next piece, into the file if that is still wanted.
fn receive(wire: &mut Wire, into: Option<&mut Coming>, asked: &Asked) -> Result<Came> {
    match wire.hear()? {
        Given::Here => {}
        Given::Changed => return Ok(Came::Changed),
        Given::Unreadable(why) => return Ok(Came::Unreadable(why)),
    }
    let (mut piece, mut left, mut trouble) = (Sha256::new(), asked.len, None);
    let mut into = into;
    let mut seen = into.as_ref().map(|coming| coming.seen.clone());
    if let Some(coming) = &mut into {
        coming.part.seek(asked.from)?;
    }
    let mut receiving = wire.receiving();
    let mut bytes = vec![0; usize::try_from(asked.len).unwrap_or(usize::MAX).min(128 << 10)];
    while left > 0 {
        let most = usize::try_from(left).unwrap_or(usize::MAX).min(bytes.len());
        let n = receiving.read(&mut bytes[..most])?;
        ensure!(n > 0, Nonsense(format!("it is shorter than was announced, by {left} bytes")));
        piece.update(&bytes[..n]);
        if let Some(seen) = &mut seen {
            seen.update(&bytes[..n]);
        }
        if let Some(coming) = &mut into
            && trouble.is_none()
            && let Err(error) = coming.part.write_all(&bytes[..n])
        {
            let error = anyhow::Error::new(error).context("writing it here");
            ensure_room(&error)?;
            // Both sides stay in step: what comes is heard to its end.
            trouble = Some(format!("{error:#}"));
        }
        left -= n as u64;
    }
    receiving.rest()?;
    match wire.hear()? {
        Ended::Whole(hash) => {
            let same = hash == hex(&piece.finalize());
            ensure!(same, Nonsense("it came as something else than was announced".into()));
        }
        Ended::Changed => return Ok(Came::Changed),
        Ended::Unreadable(why) => return Ok(Came::Unreadable(why)),
    }
    if let Some(why) = trouble {
        return Ok(Came::Unreadable(why));
    }
    if let (Some(coming), Some(seen)) = (into, seen) {
        (coming.seen, coming.pieces) = (seen, coming.pieces + 1);
    }
    Ok(Came::Whole)
}
