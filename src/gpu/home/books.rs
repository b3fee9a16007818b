//! The books on their way home: what the script says, and how busy its machine is. Each only grows, and is read on from
//! where one was.

use super::{Home, Landed};
use crate::{
    gpu::{
        agent::site::{Ask, Book, Look, PAGE, Page, Standing},
        job::Nonsense,
        wire::Wire,
    },
    host::beneath::Rel,
    web::hold,
};
use anyhow::{Context as _, Result, ensure};
use std::{
    io::{Read as _, Write as _},
    time::{Duration, Instant},
};

/// Between two looks at a script that never stops talking: each of its lines on the way home would be a note here.
const BETWEEN: Duration = Duration::from_secs(1);

impl Home<'_> {
    /// Follow the script until it does not run any more, or until then: what it says is here moments later.
    pub fn follow(&self, wire: &mut Wire, until: Instant) -> Result<Look> {
        loop {
            let (log, samples) = (self.known(Book::Log), self.known(Book::Samples));
            wire.tell(&Ask::Wait { log, samples })?;
            let look: Look = wire.hear()?;
            let asked = Instant::now();
            let all = self.listen(wire, until)?;
            if look.standing != Standing::Running && all || Instant::now() >= until {
                return Ok(look);
            }
            if look.standing == Standing::Running {
                std::thread::sleep(BETWEEN.saturating_sub(asked.elapsed()));
            }
        }
    }

    /// How much of a book over there is here; all there ever will be, where no more of it is taken.
    fn known(&self, book: Book) -> u64 {
        let (theirs, ours) = hold(&self.books).get(&book).copied().unwrap_or_default();
        if ours >= self.quota.book || self.is_noted_out() { u64::MAX } else { theirs }
    }

    /// What the script has said since, and how its machine is. Whether that is all so far.
    pub fn listen(&self, wire: &mut Wire, until: Instant) -> Result<bool> {
        let log = self.read_on(wire, Book::Log, until)?;
        Ok(log & self.read_on(wire, Book::Samples, until)?)
    }

    /// Whether all that is written is here.
    fn read_on(&self, wire: &mut Wire, book: Book, until: Instant) -> Result<bool> {
        let name = Rel::new(match book {
            Book::Log => "log.txt",
            Book::Samples => "samples.jsonl",
        })?;
        // One reader at a time: where it is, is where the next goes on.
        let mut books = hold(&self.books);
        loop {
            let (theirs, ours) = books.get(&book).copied().unwrap_or_default();
            if ours >= self.quota.book || self.is_noted_out() {
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
                self.note(&[Landed::Book { book, theirs: page.to, ours }], 1)?;
                books.insert(book, (page.to, ours));
            }
            if page.last || len == 0 || Instant::now() >= until {
                return Ok(page.last);
            }
        }
    }
}
