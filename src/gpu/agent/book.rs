//! What only grows, in little room: the script's output and the samples of the machine's load. It is kept in pieces
//! named by where they begin. The first piece stays, as the beginning of a run tells how it was set up, and so do the
//! last; what was between is given up when there is too much, and whoever reads is told where it goes on.

use super::site::{PAGE, Page};
use crate::host::Host;
use anyhow::{Context as _, Result};
use std::{
    io::Write,
    path::{Path, PathBuf},
};

/// A piece.
const PIECE: u64 = 4 << 20;
/// So many are kept: 64 MiB.
const PIECES: usize = 16;

pub struct Writer<'a> {
    host: &'a Host,
    dir: PathBuf,
    to: Box<dyn Write + Send>,
    /// Where in the whole the next byte goes.
    at: u64,
    begins: u64,
}

fn name(begins: u64) -> String {
    format!("{begins:016}")
}

/// Where the pieces begin, and how long the last is.
fn pieces(host: &Host, dir: &Path) -> Result<(Vec<u64>, u64)> {
    let begins: Vec<u64> = host.list(dir)?.iter().filter_map(|name| name.parse().ok()).collect();
    let last = match begins.last() {
        Some(last) => host.meta(&dir.join(name(*last)))?.map_or(0, |meta| meta.len),
        None => 0,
    };
    Ok((begins, last))
}

impl<'a> Writer<'a> {
    /// Goes on where an earlier one stopped.
    pub fn open(host: &'a Host, dir: &Path) -> Result<Self> {
        host.make_dir(dir)?;
        let (begins, len) = pieces(host, dir)?;
        let begins = begins.last().copied().unwrap_or(0);
        let to = host.append(&dir.join(name(begins)))?;
        Ok(Self { host, dir: dir.into(), to, at: begins.saturating_add(len), begins })
    }

    pub fn write(&mut self, mut bytes: &[u8]) -> Result<()> {
        while !bytes.is_empty() {
            let room = PIECE.saturating_sub(self.at - self.begins);
            if room == 0 {
                self.next()?;
                continue;
            }
            let (now, rest) = bytes.split_at(bytes.len().min(usize::try_from(room)?));
            self.to.write_all(now).with_context(|| format!("writing in {}", self.dir.display()))?;
            self.at = self.at.saturating_add(now.len() as u64);
            bytes = rest;
        }
        Ok(())
    }

    fn next(&mut self) -> Result<()> {
        self.begins = self.at;
        self.to = self.host.append(&self.dir.join(name(self.begins)))?;
        let (begins, _) = pieces(self.host, &self.dir)?;
        let over = begins.len().saturating_sub(PIECES);
        begins
            .iter()
            .skip(1)
            .take(over)
            .try_for_each(|begins| self.host.remove(&self.dir.join(name(*begins))))
    }
}

/// The end of a book: where its next byte goes.
pub fn end(host: &Host, dir: &Path) -> Result<u64> {
    let (begins, len) = pieces(host, dir)?;
    Ok(begins.last().map_or(0, |last| last.saturating_add(len)))
}

/// The piece that begins at `from`, or the nearest after it.
pub fn page(host: &Host, dir: &Path, from: u64) -> Result<(Page, Vec<u8>)> {
    let (begins, len) = pieces(host, dir)?;
    let end = begins.last().map_or(0, |last| last.saturating_add(len));
    let mut from = from;
    // The directory is the script's as well, which may have made any number of pieces with nothing in them.
    loop {
        let piece = begins.iter().rev().find(|begins| **begins <= from).copied().unwrap_or(0);
        let bytes =
            host.read_part(&dir.join(name(piece)), from.saturating_sub(piece), PAGE)?.unwrap_or_default();
        if !bytes.is_empty() {
            let to = from.saturating_add(bytes.len() as u64);
            return Ok((Page { from, to, last: to >= end }, bytes));
        }
        // Past the end of a piece whose successor is gone: on with the next that is there.
        match begins.iter().find(|begins| **begins > from) {
            Some(next) => from = *next,
            None => return Ok((Page { from: from.min(end), to: from.min(end), last: true }, bytes)),
        }
    }
}

/// The newest piece.
pub fn last(host: &Host, dir: &Path) -> Result<Vec<u8>> {
    let (begins, _) = pieces(host, dir)?;
    let Some(begins) = begins.last() else { return Ok(Vec::new()) };
    Ok(host.read(&dir.join(name(*begins)))?.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::System;

    /// All that can be read, with a mark where something is missing.
    fn read(host: &Host, dir: &Path) -> Vec<u8> {
        let (mut all, mut at) = (Vec::new(), 0);
        loop {
            let (page, bytes) = page(host, dir, at).unwrap();
            if page.from != at {
                all.extend(b"[gap]");
            }
            all.extend(bytes);
            at = page.to;
            if page.last {
                return all;
            }
        }
    }

    #[test]
    fn what_is_written_is_read_across_pieces_and_writers() {
        let dir = tempfile::tempdir().unwrap();
        let host = Host::new(dir.path(), System);
        let log = Path::new("/log");
        assert_eq!(page(&host, log, 7).unwrap().0, Page { from: 0, to: 0, last: true });
        let line = vec![b'x'; 3 << 20];
        for n in 0..3 {
            let mut writer = Writer::open(&host, log).unwrap();
            writer.write(&line).unwrap();
            writer.write(&[b'0' + n]).unwrap();
        }
        let all = read(&host, log);
        assert_eq!(all.len(), 3 * ((3 << 20) + 1));
        assert_eq!((all[3 << 20], *all.last().unwrap()), (b'0', b'2'));
    }

    #[test]
    fn whatever_else_has_the_name_of_a_piece_is_read_or_refused() {
        let dir = tempfile::tempdir().unwrap();
        let host = Host::new(dir.path(), System);
        let log = Path::new("/log");
        host.write(&log.join(name(0)), 0o600, b"ours").unwrap();
        (10..3000).for_each(|n| drop(host.append(&log.join(name(n))).unwrap()));
        let (first, bytes) = page(&host, log, 0).unwrap();
        assert_eq!((first.to, bytes.as_slice()), (4, b"ours".as_slice()));
        host.write(&log.join(name(u64::MAX)), 0o600, b"x").unwrap();
        assert_eq!(
            page(&host, log, 4).unwrap(),
            (Page { from: u64::MAX, to: u64::MAX, last: true }, b"x".to_vec())
        );
        assert_eq!(end(&host, log).unwrap(), u64::MAX);
        Writer::open(&host, log).unwrap().write(b"on").unwrap();
    }

    #[test]
    fn an_endless_writer_fills_no_disk_and_the_beginning_and_the_end_are_kept() {
        let dir = tempfile::tempdir().unwrap();
        let host = Host::new(dir.path(), System);
        let log = Path::new("/log");
        let mut writer = Writer::open(&host, log).unwrap();
        writer.write(b"first").unwrap();
        for _ in 0..100 {
            writer.write(&vec![b'.'; 1 << 20]).unwrap();
        }
        writer.write(b"last").unwrap();
        let all = read(&host, log);
        assert!(all.len() as u64 <= PIECE * PIECES as u64 + 5, "{}", all.len());
        assert!(all.starts_with(b"first.") && all.ends_with(b".last"));
        let gaps = all.windows(5).filter(|window| window == b"[gap]").count();
        assert_eq!(gaps, 1);
    }
}
