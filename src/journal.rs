//! Memory that survives a crash: one JSON value a line, on disk before anyone acts on it.
//!
//! What is true now is always the fold of what was written, never a second file that could disagree. The
//! installer's receipt is a journal.

use crate::{
    host::{Host, Ledger},
    patience::Patience,
};
use anyhow::{Context as _, Result};
use serde::{Serialize, de::DeserializeOwned};
use std::{marker::PhantomData, path::Path};

pub struct Journal<T>(Ledger, PhantomData<T>);

impl<T: Serialize + DeserializeOwned> Journal<T> {
    /// Open the journal, alone, and read back everything in it. Somebody else at work on it is named, and not waited for.
    pub fn open(host: &Host, path: &Path) -> Result<(Self, Vec<T>)> {
        let mut ledger = host.ledger_within(path, Patience::NONE)?;
        let entries = parse(&ledger.lines()?, path)?;
        Ok((Self(ledger, PhantomData), entries))
    }

    /// Read what is there without holding it: for those who only ask.
    pub fn read(host: &Host, path: &Path) -> Result<Vec<T>> {
        let text = host.read_text(path)?.unwrap_or_default();
        let whole = text.rfind('\n').map_or(0, |end| end + 1);
        parse(&text[..whole].lines().map(str::to_owned).collect::<Vec<_>>(), path)
    }

    /// The entry is on disk when this returns.
    pub fn append(&mut self, entry: &T) -> Result<()> {
        self.append_all(std::slice::from_ref(entry))
    }

    /// All of them are, or, after a crash, the first of them.
    pub fn append_all(&mut self, entries: &[T]) -> Result<()> {
        let lines: Vec<String> = entries.iter().map(serde_json::to_string).collect::<Result<_, _>>()?;
        self.0.append(&lines.join("\n")).context("writing the journal")
    }
}

fn parse<T: DeserializeOwned>(lines: &[String], path: &Path) -> Result<Vec<T>> {
    let entry = |(n, line): (usize, &String)| {
        serde_json::from_str(line).with_context(|| format!("reading {} line {}", path.display(), n + 1))
    };
    lines.iter().enumerate().map(entry).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::System;

    #[test]
    fn a_journal_cut_at_any_byte_opens_with_its_whole_lines() {
        let dir = tempfile::tempdir().unwrap();
        let host = Host::new(dir.path(), System);
        let path = Path::new("/var/lib/j.jsonl");
        let whole = b"\"one\"\n\"two\"\n\"three\"\n";
        for cut in 0..=whole.len() {
            host.write(path, 0o600, &whole[..cut]).unwrap();
            let lines = whole[..cut].iter().filter(|b| **b == b'\n').count();
            let (mut journal, entries) = Journal::<String>::open(&host, path).unwrap();
            assert_eq!(entries.len(), lines, "cut at {cut}");
            journal.append(&"more".into()).unwrap();
            drop(journal);
            assert_eq!(Journal::<String>::read(&host, path).unwrap().len(), lines + 1, "cut at {cut}");
        }
    }

    #[test]
    fn a_second_holder_is_told_so() {
        let dir = tempfile::tempdir().unwrap();
        let host = Host::new(dir.path(), System);
        let path = Path::new("/var/lib/j.jsonl");
        let _held = Journal::<String>::open(&host, path).unwrap();
        let err = Journal::<String>::open(&host, path).err().unwrap();
        let us = format!("in use by another echoes-appliance: process {}, `", std::process::id());
        assert!(err.to_string().contains(&us), "{err}");
    }
}
