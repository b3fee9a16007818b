//! Memory that survives a crash: one JSON value a line, on disk before anyone acts on it.
//!
//! What is true now is always the fold of what was written, never a second file that could disagree. The installer's
//! receipt is a journal, and so are runs, and what is known of each run's results. Nobody else reads or writes their lines.
//!
//! A line of today is the entry with our own members around it: `{"v":2,"by":"0.1.0",…,"sum":"1f2e3d4c"}`. `v` is the format;
//! `by`, the version of the program, stands only where another one wrote the line before; `sum` is the CRC-32C of all bytes
//! before its comma. It is of the bytes and not of the value, so that nothing has to be written twice alike. The members
//! stand in the entry's own object, and not in one around it, because lines of format 1 are the bare entry, with a `v`
//! or, in what is known of results, without one: those load for ever, files of both are read in one pass, and a program of
//! format 1 finds the `v` where it looks for it, and says that a newer one wrote the line. An entry that is no object, as
//! `"anew"`, is the member `entry`.

use crate::{
    hash::crc32c,
    host::{Host, LONGEST, Ledger, Lines},
    patience::Patience,
    ui::Try as _,
};
use anyhow::{Context as _, Result, ensure};
use serde::{Serialize, de::DeserializeOwned};
use std::{
    borrow::Cow,
    fmt,
    io::{ErrorKind, Read},
    marker::PhantomData,
    path::{Path, PathBuf},
};

/// The newest format we write. Older ones load for ever.
pub const FORMAT: u64 = 2;

/// From this one on each line has a checksum.
const SUMMED: u64 = 2;

const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Between the entry and its checksum.
const SUM: &str = ",\"sum\":\"";

/// A line that says nothing we could go by: not a torn one, which no one acted on, but one that was whole once.
#[derive(Debug)]
pub struct Damaged {
    pub path: PathBuf,
    /// From 1 on, as editors and sed(1) count.
    pub line: u64,
    /// Where it begins, in bytes.
    pub at: u64,
    why: String,
}

impl fmt::Display for Damaged {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { path, line, why, .. } = self;
        write!(f, "{} is damaged in line {line}: {why}", path.display())
    }
}

impl std::error::Error for Damaged {}

/// Attach to the error of a damaged journal how one of its kind is mended.
pub fn or_mend<T>(read: Result<T>, way: impl FnOnce(&Damaged) -> String) -> Result<T> {
    let way = read.as_ref().err().and_then(|error| error.downcast_ref()).map(way);
    match way {
        Some(way) => read.or_try(way),
        None => read,
    }
}

/// From a damaged line on, move what is there to a file beside it, whose name is returned. For what can be learnt again.
pub fn set_aside(host: &Host, damaged: &Damaged) -> Result<PathBuf> {
    let Damaged { path, at, .. } = damaged;
    let ledger = host.ledger_within(path, Patience::NONE)?;
    let beside = PathBuf::from(format!("{}.damaged", path.display()));
    host.copy_from(path, *at, &beside)?;
    ledger.cut(*at).with_context(|| format!("cutting {} short", path.display()))?;
    Ok(beside)
}

pub struct Journal<T> {
    ledger: Ledger,
    path: PathBuf,
    /// Whether this version of the program wrote the last line.
    ours: bool,
    of: PhantomData<T>,
}

impl<T: Serialize + DeserializeOwned> Journal<T> {
    /// Open the journal, alone, and read back everything in it. Somebody else at work on it is named, and not waited for.
    pub fn open(host: &Host, path: &Path) -> Result<(Self, Vec<T>)> {
        let mut entries = Vec::new();
        let journal = Self::open_with(host, path, &mut |entry| entries.push(entry))?;
        Ok((journal, entries))
    }

    /// As `open`, for one that may be long: its entries are handed over one after the other, and not held in memory.
    pub fn open_with(host: &Host, path: &Path, each: &mut dyn FnMut(T)) -> Result<Self> {
        let ledger = host.ledger_within(path, Patience::NONE)?;
        let doing = || format!("reading {}", path.display());
        let mut lines = ledger.lines().with_context(doing)?;
        let by = read(&mut lines, path, each)?;
        let end = lines.end();
        drop(lines);
        ledger.cut(end).with_context(doing)?;
        Ok(Self { ledger, path: path.into(), ours: by.as_deref() == Some(VERSION), of: PhantomData })
    }

    /// Read what is there without holding it: for those who only ask.
    pub fn read(host: &Host, path: &Path) -> Result<Vec<T>> {
        let mut entries = Vec::new();
        Self::read_with(host, path, &mut |entry| entries.push(entry))?;
        Ok(entries)
    }

    /// As `read`, for one that may be long.
    pub fn read_with(host: &Host, path: &Path, each: &mut dyn FnMut(T)) -> Result<()> {
        let Some(mut lines) = host.lines(path)? else { return Ok(()) };
        read(&mut lines, path, each).map(drop)
    }

    /// The entry is on disk when this returns; it is not there when this fails.
    pub fn append(&mut self, entry: &T) -> Result<()> {
        self.append_all(std::slice::from_ref(entry))
    }

    /// As `append`, for many at once: one write, and one wait for the disk. After a crash the first of them may be there
    /// without the others.
    pub fn append_all(&mut self, entries: &[T]) -> Result<()> {
        let doing = || format!("writing {}", self.path.display());
        let mut lines = String::new();
        let mut by = (!self.ours).then_some(VERSION);
        for entry in entries {
            let line = write(&serde_json::to_string(entry).with_context(doing)?, by.take());
            ensure!(line.len() as u64 <= LONGEST, "{}: one entry of {} bytes", doing(), line.len());
            lines += &line;
        }
        if entries.is_empty() {
            return Ok(());
        }
        self.ledger.append(lines.as_bytes()).with_context(doing)?;
        self.ours = true;
        Ok(())
    }
}

/// An entry as a line.
fn write(entry: &str, by: Option<&str>) -> String {
    let members = entry.strip_prefix('{').and_then(|entry| entry.strip_suffix('}'));
    // What could be taken for ours goes into one of ours.
    let is_plain = |members: &&str| !["", "\"entry\":", "\"by\":"].contains(&first_name(members));
    let members = members.filter(is_plain).map_or_else(|| format!("\"entry\":{entry}"), str::to_owned);
    let by = by.map(|by| format!("\"by\":\"{by}\",")).unwrap_or_default();
    let text = format!("{{\"v\":{FORMAT},{by}{members}");
    format!("{text}{SUM}{:08x}\"}}\n", crc32c(&text))
}

/// The name of an object's first member, as it is written, with its colon.
fn first_name(members: &str) -> &str {
    members.find(':').and_then(|end| members.get(..=end)).unwrap_or_default()
}

/// A line, taken apart.
#[derive(Debug, PartialEq, Eq)]
struct Parts<'a> {
    /// None: it is older than formats are.
    format: Option<u64>,
    by: Option<&'a str>,
    is_summed: bool,
    entry: Cow<'a, str>,
}

/// Where its checksum is wrong, that is all there is to say.
fn take_apart(line: &str) -> Result<Parts<'_>, String> {
    let summed = line.strip_suffix("\"}").and_then(|line| {
        let (text, sum) = line.split_at_checked(line.len().checked_sub(8)?)?;
        Some((text.strip_suffix(SUM)?, sum))
    });
    if summed.is_some_and(|(text, sum)| format!("{:08x}", crc32c(text)) != sum) {
        return Err("its checksum is wrong".into());
    }
    let (is_summed, text) = (summed.is_some(), summed.map_or(line, |(text, _)| text));
    let versioned = text.strip_prefix("{\"v\":").and_then(|rest| rest.split_once(','));
    let versioned = versioned.and_then(|(format, rest)| Some((format.parse().ok()?, rest)));
    let Some((format, rest)) = versioned else {
        return match is_summed {
            true => Err("it names no format".into()),
            false => Ok(Parts { format: None, by: None, is_summed, entry: line.into() }),
        };
    };
    if !is_summed {
        return Ok(Parts { format: Some(format), by: None, is_summed, entry: format!("{{{rest}").into() });
    }
    let by = rest.strip_prefix("\"by\":\"").and_then(|rest| rest.split_once("\","));
    let (by, members) = by.map_or((None, rest), |(by, members)| (Some(by), members));
    let entry = members.strip_prefix("\"entry\":").map_or_else(|| format!("{{{members}}}").into(), Cow::from);
    Ok(Parts { format: Some(format), by, is_summed, entry })
}

/// Hand over each entry. Which version of the program wrote the last line, where one says so.
fn read<T: DeserializeOwned>(
    lines: &mut Lines<impl Read>,
    path: &Path,
    each: &mut dyn FnMut(T),
) -> Result<Option<String>> {
    let (mut n, mut by, mut is_summed) = (0, None::<String>, false);
    loop {
        n += 1;
        let at = lines.end();
        let damaged = |why: String| Damaged { path: path.into(), line: n, at, why };
        let line = match lines.next_line() {
            Ok(Some(line)) => line,
            Ok(None) => return Ok(by),
            Err(error) if error.kind() == ErrorKind::InvalidData => {
                return Err(damaged(error.to_string()).into());
            }
            Err(error) => return Err(error).with_context(|| format!("reading {}", path.display())),
        };
        let line = std::str::from_utf8(line).map_err(|_| damaged("it is no UTF-8".into()))?;
        let parts = take_apart(line).map_err(&damaged)?;
        if let Some(name) = parts.by {
            by = Some(name.to_owned());
        }
        let newer = |why: String| {
            let name = by.as_ref().map(|by| format!(", {by}")).unwrap_or_default();
            let newer = || {
                anyhow::anyhow!("{} was written by a newer echoes-appliance{name} ({why})", path.display())
            };
            Err(newer())
                .or_try("install that version of echoes-appliance again, or a later one; nothing was changed")
        };
        let format = parts.format.unwrap_or(0);
        if format > FORMAT {
            return newer(format!("line {n} has format {format}, this one reads {FORMAT}"));
        }
        // An older program does not go on where a newer one has been; so this one had its checksum.
        if !parts.is_summed && (is_summed || format >= SUMMED) {
            return Err(damaged("it has no checksum".into()).into());
        }
        is_summed = parts.is_summed;
        match serde_json::from_str(&parts.entry) {
            Ok(entry) => each(entry),
            // It is as it was written.
            Err(error) if is_summed && error.is_data() => {
                return newer(format!("line {n}: {}", reason(&error)));
            }
            Err(error) => return Err(damaged(reason(&error)).into()),
        }
    }
}

/// All entries of a file that is these bytes.
#[cfg(test)]
pub fn read_bytes<T: DeserializeOwned>(bytes: &[u8]) -> Result<Vec<T>> {
    let mut entries = Vec::new();
    read(&mut Lines::new(bytes), Path::new("/j.jsonl"), &mut |entry| entries.push(entry))?;
    Ok(entries)
}

/// Without the place, which is not the one in the file.
fn reason(error: &serde_json::Error) -> String {
    let said = error.to_string();
    said.rsplit_once(" at line ").map_or(said.as_str(), |(reason, _)| reason).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::System;
    use serde::Deserialize;

    const PATH: &str = "/var/lib/j.jsonl";

    /// Entries of each form that journals have.
    #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
    #[serde(rename_all = "kebab-case")]
    enum Note {
        File { path: String },
        Anew,
        Entry(u8),
        By(u8),
    }

    fn scene() -> (tempfile::TempDir, Host) {
        let dir = tempfile::tempdir().unwrap();
        let host = Host::new(dir.path(), System);
        (dir, host)
    }

    fn text(host: &Host) -> String {
        String::from_utf8(host.read(Path::new(PATH)).unwrap().unwrap()).unwrap()
    }

    fn read_back(host: &Host, bytes: &[u8]) -> Result<Vec<Note>> {
        host.write(Path::new(PATH), 0o600, bytes).unwrap();
        let read = Journal::read(host, Path::new(PATH));
        // Whoever holds it and whoever only asks read the same.
        let opened = Journal::<Note>::open(host, Path::new(PATH)).map(|(_, entries)| entries);
        match (&read, &opened) {
            (Ok(read), Ok(opened)) => assert_eq!(read, opened),
            (Err(read), Err(opened)) => assert_eq!(format!("{read:#}"), format!("{opened:#}")),
            _ => panic!("{read:?} is not {opened:?}"),
        }
        read
    }

    fn notes() -> Vec<Note> {
        let file = |path: &str| Note::File { path: path.into() };
        vec![
            file("größe/学习率.pt"),
            Note::Anew,
            Note::Entry(1),
            Note::By(2),
            file("a\",\"sum\":\"00000000\"}\n"),
        ]
    }

    #[test]
    fn a_journal_cut_at_any_byte_opens_with_its_whole_lines() {
        let (_dir, host) = scene();
        let path = Path::new(PATH);
        let (mut journal, _) = Journal::<Note>::open(&host, path).unwrap();
        journal.append(&notes()[0]).unwrap();
        journal.append_all(&notes()[1..]).unwrap();
        drop(journal);
        let whole = host.read(path).unwrap().unwrap();
        for cut in 0..=whole.len() {
            let lines = whole[..cut].iter().filter(|b| **b == b'\n').count();
            assert_eq!(read_back(&host, &whole[..cut]).unwrap(), notes()[..lines], "cut at {cut}");
            let (mut journal, _) = Journal::<Note>::open(&host, path).unwrap();
            journal.append(&Note::Anew).unwrap();
            drop(journal);
            let entries = Journal::<Note>::read(&host, path).unwrap();
            assert_eq!((entries.len(), entries.last()), (lines + 1, Some(&Note::Anew)), "cut at {cut}");
        }
    }

    #[test]
    fn old_lines_load_for_ever_and_new_ones_go_on_below_them() {
        let (_dir, host) = scene();
        let old = "{\"file\":{\"path\":\"größe\"}}\n\"anew\"\n{\"v\":1,\"entry\":3}\n";
        host.write(Path::new(PATH), 0o600, old.as_bytes()).unwrap();
        let (mut journal, _) = Journal::<Note>::open(&host, Path::new(PATH)).unwrap();
        journal.append_all(&[Note::Entry(4), Note::File { path: "b".into() }]).unwrap();
        drop(journal);
        // And by the next process of the same version.
        let (mut journal, entries) = Journal::<Note>::open(&host, Path::new(PATH)).unwrap();
        assert_eq!(entries[..3], [Note::File { path: "größe".into() }, Note::Anew, Note::Entry(3)]);
        journal.append(&Note::Anew).unwrap();
        drop(journal);
        let text = text(&host);
        let (before, new) = text.split_at_checked(old.len()).unwrap();
        assert_eq!(before, old);
        let sums = new.lines().map(|line| line.split_once(SUM).unwrap().0).collect::<Vec<_>>();
        let by = format!("{{\"v\":2,\"by\":\"{VERSION}\",");
        let expected = [
            format!("{by}\"entry\":{{\"entry\":4}}"),
            "{\"v\":2,\"file\":{\"path\":\"b\"}".into(),
            "{\"v\":2,\"entry\":\"anew\"".into(),
        ];
        assert_eq!(sums, expected);
        for line in new.lines() {
            // Whatever else reads JSON lines reads these.
            serde_json::from_str::<serde_json::Value>(line).unwrap();
        }
        assert_eq!(Journal::<Note>::read(&host, Path::new(PATH)).unwrap().len(), 6);
    }

    #[test]
    fn no_single_wrong_bit_is_taken_for_what_was_written() {
        let lines: Vec<String> =
            notes().iter().map(|note| write(&serde_json::to_string(note).unwrap(), None)).collect();
        let whole = lines.concat().into_bytes();
        for bit in 0..whole.len() * 8 {
            let mut bytes = whole.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            let line = whole[..bit / 8].iter().filter(|byte| **byte == b'\n').count();
            match super::read_bytes::<Note>(&bytes) {
                // The last newline alone: then that line was cut short.
                Ok(entries) => {
                    assert!(bit / 8 == whole.len() - 1 && entries == notes()[..4], "bit {bit}: {entries:?}")
                }
                Err(error) => {
                    let damaged =
                        error.downcast_ref::<Damaged>().unwrap_or_else(|| panic!("bit {bit}: {error:#}"));
                    // A newline that came into a line makes its first half the damaged one.
                    assert_eq!(
                        (damaged.line, damaged.at),
                        (line as u64 + 1, lines[..line].concat().len() as u64)
                    );
                }
            }
        }
    }

    #[test]
    fn a_damaged_line_is_told_with_its_file_its_number_and_why() {
        let (_dir, host) = scene();
        let good = write("\"anew\"", None);
        let newer = write("{\"beamed\":{}}", Some("0.9.0"));
        let wrong = good.replace("anew", "Anew");
        let table: &[(String, &str)] = &[
            (format!("{good}{wrong}{good}"), "is damaged in line 2: its checksum is wrong"),
            (format!("{good}\"anew\"\n"), "is damaged in line 2: it has no checksum"),
            ("{\"v\":2,\"entry\":1}\n".into(), "is damaged in line 1: it has no checksum"),
            (format!("\"anew\"\nno entry\n{good}"), "is damaged in line 2: expected"),
            ("{\"beamed\":{}}\n".into(), "is damaged in line 1: unknown variant `beamed`"),
            (format!("\n{good}"), "is damaged in line 1: EOF"),
            (
                format!("{good}{newer}"),
                "by a newer echoes-appliance, 0.9.0 (line 2: unknown variant `beamed`",
            ),
            (
                "{\"v\":99,\"entry\":1}\n".into(),
                "by a newer echoes-appliance (line 1 has format 99, this one reads 2)",
            ),
        ];
        for (text, expected) in table {
            let said = format!("{:#}", read_back(&host, text.as_bytes()).unwrap_err());
            assert!(said.contains(&format!("{PATH} ")) && said.contains(expected), "{said}");
            assert!(!said.contains(" column "), "{said}");
        }
        let bytes = [good.as_bytes(), b"\"\xc3\"\n"].concat();
        let said = format!("{:#}", read_back(&host, &bytes).unwrap_err());
        assert!(said.contains("line 2: it is no UTF-8"), "{said}");
        // Larger than memory need be, and told before it is read.
        let long = [good.as_bytes(), &vec![b'x'; usize::try_from(LONGEST).unwrap()], b"\n"].concat();
        let said = format!("{:#}", read_back(&host, &long).unwrap_err());
        assert!(said.contains("line 2: it is longer than 16 MiB"), "{said}");
    }

    #[test]
    fn an_entry_that_no_reader_would_take_is_not_written() {
        let (_dir, host) = scene();
        let (mut journal, _) = Journal::<Note>::open(&host, Path::new(PATH)).unwrap();
        let long = Note::File { path: "x".repeat(usize::try_from(LONGEST).unwrap()) };
        let said = format!("{:#}", journal.append_all(&[Note::Anew, long]).unwrap_err());
        assert!(said.contains(PATH) && said.contains("one entry of"), "{said}");
        assert_eq!(text(&host), "");
    }

    #[test]
    fn what_can_be_learnt_again_is_kept_beside_from_the_damage_on() {
        let (_dir, host) = scene();
        let (good, bad) = (write("\"anew\"", None), "no entry\n");
        let error = read_back(&host, format!("{good}{bad}{good}").as_bytes()).unwrap_err();
        let beside = set_aside(&host, error.downcast_ref().unwrap()).unwrap();
        assert_eq!(text(&host), good);
        assert_eq!(host.read(&beside).unwrap().unwrap(), format!("{bad}{good}").into_bytes());
        assert_eq!(Journal::<Note>::read(&host, Path::new(PATH)).unwrap(), [Note::Anew]);
    }

    #[test]
    fn a_second_holder_is_told_so() {
        let (_dir, host) = scene();
        let path = Path::new(PATH);
        let _held = Journal::<String>::open(&host, path).unwrap();
        let err = Journal::<String>::open(&host, path).err().unwrap();
        let us = format!("in use by another echoes-appliance: process {}, `", std::process::id());
        assert!(err.to_string().contains(&us), "{err}");
    }

    #[test]
    fn fuzz_journal_is_what_was_written_or_damaged() {
        crate::fuzz::run(
            "journal",
            &["{\"v\":2,", "\"by\":\"0.1.0\",", SUM, "\"entry\":", "\"anew\""],
            |bytes| {
                for note in super::read_bytes::<Note>(bytes)? {
                    let line = write(&serde_json::to_string(&note)?, None);
                    assert_eq!(super::read_bytes::<Note>(line.as_bytes())?, [note]);
                }
                Ok(())
            },
        );
    }
}
