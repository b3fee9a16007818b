//! A person's files, read as that person: by a child of ours that has become them, and lists, hashes and pours what it is
//! asked for. What they cannot read is not read for them, wherever a link of theirs or a rename in the middle of it leads.
//! Where we are that person already, nobody else is asked.
//!
//! A child that somebody else is may do as that somebody likes: it is heard as a machine is, within bounds, and what it says
//! is no more than what they could have put into their files.

use super::{
    checkout,
    code::{self, CodeOutline, leave_out},
    job::Nonsense,
    tree::{self, Changed, Contents, Entry, Known, MOST_DATA, Tree, What, pour_file},
    wire::{LIST, Wire},
};
use crate::{
    host::{
        Cmd, Host,
        beneath::{Beneath, Rel, Stamp},
        person::Person,
        process::{Bounds, Over, Pipe},
    },
    ui::{self, Try as _},
    web::hold,
};
use anyhow::{Context as _, Result, anyhow, ensure};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::{
    io::{Read as _, Write},
    path::{Path, PathBuf},
    sync::Mutex,
    time::Duration,
};

/// A dataset may take hours to be read through, and nothing is said meanwhile.
const READING: Bounds =
    Bounds { silence: Duration::from_secs(24 * 3600), whole: Duration::from_secs(48 * 3600) };

/// A secret is a word or a key, not a file system.
const SECRET: u64 = 64 << 10;

/// Treatment of a link that leads out of a directory, and of what is no file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Odd {
    LeftOut,
    Refused,
}

/// Requests to a child. Each is answered by `ReadReply`, and then by the value that is named beside it, poured.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum ReadRequest {
    /// Answer: the checkout that it is in, or its folder.
    Find { script: PathBuf },
    /// Answer: `CodeOutline`.
    Outline { project: PathBuf, script: Rel },
    /// Answer: `CodeOutline` and `Tree`.
    Code { project: PathBuf },
    /// `Vec` of what is known follows. Answer: what was left out and `Tree`; then all that is known, poured.
    Files { dir: PathBuf, odd: Odd },
    /// Numbers in the last tree follow. Answer: each file of these as a stream, and `PouredFile`.
    Contents,
    /// Answer: the text.
    Secret { file: PathBuf },
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum ReadReply {
    Here,
    Trouble { said: Vec<String>, hint: Option<String> },
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum PouredFile {
    Whole,
    Changed,
}

/// One that reads as somebody.
#[derive(Debug, Clone)]
pub struct Reader {
    /// Or why there is none: a run whose person is gone can still be brought home, and given back.
    person: Result<Person, String>,
    /// Ours.
    program: PathBuf,
}

/// Files that were listed, in the hands of whoever can read them.
pub enum FileSource {
    Ours(Beneath),
    Theirs(Mutex<ReaderChild>),
}

/// It is ended when it is dropped.
pub struct ReaderChild {
    wire: Wire,
    _pipe: Pipe,
}

impl Reader {
    pub fn new(person: Result<Person>) -> Self {
        Self { person: person.map_err(|error| format!("{error:#}")), program: "/proc/self/exe".into() }
    }

    pub fn person(&self) -> Result<&Person> {
        self.person.as_ref().map_err(|why| anyhow!("{why}"))
    }

    /// Whether nobody else need be asked.
    fn is_us(&self) -> Result<bool> {
        Ok(self.person()?.is_us())
    }

    fn child(&self, host: &Host, over: Option<&Over>) -> Result<ReaderChild> {
        let person = self.person()?;
        let doing = || format!("reading as {}", person.name);
        let program = self.program.to_str().context("a program whose path is no UTF-8")?;
        let cmd = Cmd::new(program, ["agent", "read", "--as", &person.uid.to_string()]);
        let (mut pipe, from, to) = host.pipe(&cmd, READING, over).with_context(doing)?;
        match Wire::asking(from, to) {
            Ok(wire) => Ok(ReaderChild { wire, _pipe: pipe }),
            Err(error) => {
                let said = if pipe.status().is_some() { pipe.said() } else { String::new() };
                let error = if said.is_empty() { error } else { anyhow!("{}", super::wire::shown(&said)) };
                Err(error).with_context(doing)
            }
        }
    }

    /// The checkout that a script is in; without one, its folder.
    pub fn find(&self, host: &Host, script: &Path) -> Result<PathBuf> {
        if self.is_us()? {
            return checkout::find(host, self.person()?, script);
        }
        self.child(host, None)?.ask(&ReadRequest::Find { script: script.into() }, |_| Ok(()))
    }

    /// Summary of what of a project would go, without reading it: every file can be read, and the script is among them.
    pub fn outline(&self, host: &Host, project: &Path, script: &Rel) -> Result<CodeOutline> {
        if self.is_us()? {
            return outline(host, self.person()?, project, script);
        }
        let mut child = self.child(host, None)?;
        child.ask(&ReadRequest::Outline { project: project.into(), script: script.clone() }, |_| Ok(()))
    }

    /// Code of a project: its files, their list, and its summary.
    pub fn code(
        &self,
        host: &Host,
        project: &Path,
        over: Option<&Over>,
    ) -> Result<(FileSource, Tree, CodeOutline)> {
        if self.is_us()? {
            let (dir, tree, outline) = code(host, self.person()?, project)?;
            return Ok((FileSource::Ours(dir), tree, outline));
        }
        let mut child = self.child(host, over)?;
        let (outline, tree) = child.ask(&ReadRequest::Code { project: project.into() }, |_| Ok(()))?;
        Ok((FileSource::Theirs(Mutex::new(child)), tree, outline))
    }

    /// All of a directory. `known` saves reading what was read before. What was left out is told.
    pub fn files(
        &self,
        host: &Host,
        dir: &Path,
        (known, odd): (&mut Known, Odd),
        over: Option<&Over>,
    ) -> Result<(FileSource, Tree, Vec<String>)> {
        if self.is_us()? {
            let (dir, tree, left_out) = files(host, dir, known, odd)?;
            return Ok((FileSource::Ours(dir), tree, left_out));
        }
        let mut child = self.child(host, over)?;
        let before: Vec<_> = known.iter().collect();
        let wanted = ReadRequest::Files { dir: dir.into(), odd };
        let (left_out, tree) = child.ask(&wanted, |wire| wire.pour(&before))?;
        let after: Vec<(Rel, (Stamp, String))> = child.wire.draw(LIST)?;
        *known = after.into_iter().collect();
        Ok((FileSource::Theirs(Mutex::new(child)), tree, left_out))
    }

    /// Content of a file of theirs.
    pub fn secret(&self, host: &Host, file: &Path) -> Result<String> {
        if self.is_us()? {
            return secret(host, file);
        }
        self.child(host, None)?.ask(&ReadRequest::Secret { file: file.into() }, |_| Ok(()))
    }
}

impl ReaderChild {
    fn ask<T: DeserializeOwned>(
        &mut self,
        wanted: &ReadRequest,
        more: impl FnOnce(&mut Wire) -> Result<()>,
    ) -> Result<T> {
        self.wire.tell(wanted)?;
        more(&mut self.wire)?;
        heard(&mut self.wire)
    }
}

fn heard<T: DeserializeOwned>(wire: &mut Wire) -> Result<T> {
    match wire.hear()? {
        ReadReply::Here => wire.draw(LIST),
        ReadReply::Trouble { said, hint } => {
            let error = Err(anyhow!(said.join(": ")));
            match hint {
                Some(hint) => error.or_try(hint),
                None => error,
            }
        }
    }
}

/// Has a child pour these files of the tree.
fn draw_contents(wire: &mut Wire, tree: &Tree, lacks: &[usize], to: &mut dyn Write) -> Result<()> {
    let entries = wanted(tree, lacks)?;
    wire.tell(&ReadRequest::Contents)?;
    wire.pour(&lacks)?;
    let mut bytes = vec![0; 128 << 10];
    for entry in entries {
        let What::File { len, .. } = &entry.what else { continue };
        let (mut receiving, mut left) = (wire.receiving(), *len);
        loop {
            let n = receiving.read(&mut bytes).with_context(|| format!("reading {}", entry.path))?;
            if n == 0 {
                break;
            }
            left = left
                .checked_sub(n as u64)
                .ok_or_else(|| Nonsense(format!("more came of {} than it has", entry.path)))?;
            to.write_all(&bytes[..n])?;
        }
        let poured: PouredFile = wire.hear()?;
        if left > 0 || matches!(poured, PouredFile::Changed) {
            return Err(Changed(entry.path.clone()).into());
        }
    }
    Ok(())
}

impl Contents for FileSource {
    fn pour(&self, tree: &Tree, lacks: &[usize], to: &mut dyn Write) -> Result<()> {
        match self {
            Self::Ours(dir) => dir.pour(tree, lacks, to),
            Self::Theirs(child) => draw_contents(&mut hold(child).wire, tree, lacks, to),
        }
    }
}

/// Entries of a tree that were asked for.
fn wanted<'a>(tree: &'a Tree, lacks: &[usize]) -> Result<Vec<&'a Entry>> {
    let all: Option<Vec<_>> = lacks.iter().map(|index| tree.0.get(*index)).collect();
    all.ok_or_else(|| Nonsense("it asked for a file that is in no list".into()).into())
}

fn outline(host: &Host, person: &Person, project: &Path, script: &Rel) -> Result<CodeOutline> {
    let code = code::list(host, person, project)?;
    code.ensure_readable()?;
    code::ensure_among(code.has(script), script, project)?;
    Ok(code.outline)
}

fn code(host: &Host, person: &Person, project: &Path) -> Result<(Beneath, Tree, CodeOutline)> {
    let code = code::list(host, person, project)?;
    let outline = code.outline.clone();
    let (dir, tree) = code.read()?;
    Ok((dir, tree, outline))
}

fn files(host: &Host, at: &Path, known: &mut Known, odd: Odd) -> Result<(Beneath, Tree, Vec<String>)> {
    let dir = Beneath::open(host, at)?.with_context(|| format!("there is no {}", at.display()))?;
    let found = dir.walk(MOST_DATA)?;
    let (found, left_out) = match odd {
        Odd::LeftOut => leave_out(found),
        Odd::Refused => (found, Vec::new()),
    };
    let tree = tree::read_known(&dir, found, known)?;
    Ok((dir, tree, left_out))
}

/// A file, which may lie anywhere, and be somebody's link.
fn secret(host: &Host, file: &Path) -> Result<String> {
    let doing = || format!("reading {}", file.display());
    let real = host.real_path(file)?;
    let (dir, name) = real.parent().zip(real.file_name()).with_context(doing)?;
    let name = Rel::try_from(Path::new(name)).map_err(|why| anyhow!(why))?;
    let dir = Beneath::open(host, dir)?.with_context(doing)?;
    let (file, _) = dir.read(&name)?.context("it is no file").with_context(doing)?;
    let mut text = String::new();
    let long = file.take(SECRET + 1).read_to_string(&mut text).with_context(doing)? as u64 > SECRET;
    ensure!(!long, "{} is longer than {} KiB", real.display(), SECRET >> 10);
    Ok(text)
}

/// Answer whoever has started us, until there are no more questions. We are the person already.
pub fn answer(host: &Host, wire: &mut Wire) -> Result<()> {
    let person = Person::ourselves()?;
    let mut listed: Option<(Beneath, Tree)> = None;
    while let Some(wanted) = wire.hear_if_any::<ReadRequest>()? {
        match wanted {
            ReadRequest::Find { script } => drop(reply(wire, checkout::find(host, &person, &script))?),
            ReadRequest::Outline { project, script } => {
                reply(wire, outline(host, &person, &project, &script))?;
            }
            ReadRequest::Code { project } => {
                let read = code(host, &person, &project);
                listed = reply_with(wire, read.map(|(dir, tree, outline)| ((dir, tree), outline)))?;
            }
            ReadRequest::Files { dir, odd } => {
                let known: Vec<(Rel, (Stamp, String))> = wire.draw(LIST)?;
                let mut known: Known = known.into_iter().collect();
                let read = files(host, &dir, &mut known, odd);
                listed = reply_with(wire, read.map(|(dir, tree, left_out)| ((dir, tree), left_out)))?;
                if listed.is_some() {
                    wire.pour(&known.iter().collect::<Vec<_>>())?;
                }
            }
            ReadRequest::Contents => {
                let lacks: Vec<usize> = wire.draw(LIST)?;
                let (dir, tree) = listed.as_ref().context("nothing was listed")?;
                pour(wire, dir, tree, &lacks)?;
            }
            ReadRequest::Secret { file } => drop(reply(wire, secret(host, &file))?),
        }
    }
    Ok(())
}

/// Whether there was anything but trouble.
fn reply<T: Serialize>(wire: &mut Wire, found: Result<T>) -> Result<Option<T>> {
    match found {
        Ok(it) => {
            wire.queue(&ReadReply::Here)?;
            wire.pour(&it)?;
            Ok(Some(it))
        }
        Err(error) => {
            let (said, hint) = ui::told(&error);
            wire.tell(&ReadReply::Trouble { said, hint: hint.map(str::to_owned) })?;
            Ok(None)
        }
    }
}

/// Replies with a tree and with what goes with it.
fn reply_with<T: Serialize>(
    wire: &mut Wire,
    found: Result<((Beneath, Tree), T)>,
) -> Result<Option<(Beneath, Tree)>> {
    match found {
        Ok(((dir, tree), more)) => {
            let (_, tree) = reply(wire, Ok((more, tree)))?.context("nothing was listed")?;
            Ok(Some((dir, tree)))
        }
        Err(error) => reply::<()>(wire, Err(error)).map(|_| None),
    }
}

fn pour(wire: &mut Wire, dir: &Beneath, tree: &Tree, lacks: &[usize]) -> Result<()> {
    for entry in wanted(tree, lacks)? {
        if matches!(entry.what, What::Link { .. }) {
            continue;
        }
        let mut sending = wire.sending();
        let poured = match pour_file(dir, entry, &mut sending) {
            Ok(()) => PouredFile::Whole,
            Err(error) if error.is::<Changed>() => PouredFile::Changed,
            Err(error) => {
                sending.break_off(&error);
                return Err(error);
            }
        };
        sending.queue_end()?.queue(&poured)?;
        if matches!(poured, PouredFile::Changed) {
            break;
        }
    }
    wire.flush()
}

#[cfg(test)]
#[path = "reader/tests.rs"]
mod tests;
