//! The code of a project: what of it goes to a machine, what is left out and said, and what never goes. It is listed before
//! anything is rented, and again when it is sent. Refuses somebody's home, and wherever keys to other places lie.

use super::{
    checkout,
    tree::{self, Known, MOST_DATA, Tree},
};
use crate::{
    host::{
        Host, Kind,
        beneath::{Beneath, Found, Rel, Spelling, stays_inside},
        person::Person,
    },
    hq::disk::size_words,
    ui::Try as _,
};
use anyhow::{Context as _, Result, anyhow, ensure};
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeSet,
    os::unix::ffi::OsStrExt as _,
    path::{Path, PathBuf},
};

/// Names that are left out of a directory that git does not know: made from the rest, or large and of this machine alone.
const MADE: [&str; 11] = [
    ".git",
    ".hg",
    ".ipynb_checkpoints",
    ".mypy_cache",
    ".pytest_cache",
    ".ruff_cache",
    ".tox",
    ".venv",
    "__pycache__",
    "node_modules",
    "venv",
];

/// Keys to other places, where their programs keep them. A directory that has one of these is no project.
const CREDENTIALS: [&str; 7] = [".ssh", ".aws", ".azure", ".config/gcloud", ".kube", ".gnupg", ".netrc"];

/// Code is at most so many files, and so many bytes. Beyond, something is in there that is none.
const MOST_FILES: usize = 50_000;
const MOST_BYTES: u64 = 2 << 30;

/// So many are named, of whatever there is more of.
const NAMED: usize = 12;

/// Accounts of this machine, each with its home.
const ACCOUNTS: &str = "/etc/passwd";

/// A project's code, listed.
#[derive(Debug)]
pub struct ProjectCode {
    dir: Beneath,
    found: Vec<Found>,
    pub outline: CodeOutline,
}

/// Summary of all that goes, in numbers, with what a person should know of it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CodeOutline {
    pub files: u64,
    pub bytes: u64,
    /// Names of directories that are left out where git does not say what is; none: git does.
    pub made: Option<BTreeSet<String>>,
    /// Links that lead out, and what is no file, the first of them, with the reason.
    pub left_out: Vec<String>,
    /// How many there are of these.
    pub left: u64,
    /// Files that go along and may be secrets, by their names; the first of them.
    pub secrets: Vec<String>,
    /// How many there are of these.
    pub secret: u64,
}

impl CodeOutline {
    /// For people, a line each: what is beside the files themselves.
    pub fn remarks(&self, project: &Path) -> Vec<String> {
        let mut lines = Vec::new();
        if let Some(made) = self.made.as_ref().filter(|made| !made.is_empty()) {
            let made: Vec<_> = made.iter().map(String::as_str).collect();
            lines.push(format!(
                "{} is no git checkout: everything goes but {}",
                project.display(),
                made.join(", ")
            ));
        }
        lines.extend(named("left out", &self.left_out, self.left));
        lines.extend(named("secret by its name, and goes along", &self.secrets, self.secret));
        lines
    }

    /// For the plan.
    pub fn lines(&self, project: &Path) -> Vec<String> {
        let files = if self.files == 1 { "file" } else { "files" };
        let first = format!("code: {} {files}, {}", self.files, size_words(self.bytes));
        [first].into_iter().chain(self.remarks(project)).collect()
    }
}

fn named(what: &str, names: &[String], all: u64) -> Option<String> {
    let more = all.saturating_sub(names.len() as u64);
    let more = if more > 0 { format!(", and {more} more") } else { String::new() };
    (!names.is_empty()).then(|| format!("{what}: {}{more}", names.join(", ")))
}

/// Lists what git tracks, and what it does not ignore; of a directory that is no checkout, everything but what is made from the
/// rest. The person is whoever this process is.
pub fn list(host: &Host, person: &Person, project: &Path) -> Result<ProjectCode> {
    let is_checkout = host.exists(&project.join(".git"))?;
    ensure_no_home(host, person, project, is_checkout)?;
    let dir = Beneath::open(host, project)?.with_context(|| format!("there is no {}", project.display()))?;
    let mut outline = CodeOutline::default();
    let found = if is_checkout {
        tracked(host, person, &dir, &mut outline)?
    } else {
        for name in CREDENTIALS {
            ensure_no_key(dir.meta(&Rel::new(name)?)?.is_none(), project, name, is_checkout)?;
        }
        all(&dir, &mut outline)?
    };
    for found in &found {
        let name = match &found.path {
            Ok(path) => path.as_bytes().to_vec(),
            Err(unusable) => unusable.name.clone().bytes().unwrap_or_default(),
        };
        match key(&name) {
            Some((key, depth)) => {
                ensure_no_key(
                    is_checkout && depth > 0,
                    project,
                    &Spelling::of(key).to_string(),
                    is_checkout,
                )?;
                outline.note_secret(&name);
            }
            None if is_secret(&name) => outline.note_secret(&name),
            None => {}
        }
    }
    let (found, left_out) = leave_out(found);
    left_out.into_iter().for_each(|why| outline.note_left(why));
    ensure_small(&found, project)?;
    outline.files = found.len() as u64;
    let files = found.iter().filter(|found| found.kind == Kind::File);
    outline.bytes = files.fold(0, |sum: u64, found| sum.saturating_add(found.stamp.len));
    Ok(ProjectCode { dir, found, outline })
}

impl CodeOutline {
    fn note_secret(&mut self, name: &[u8]) {
        self.secret += 1;
        if self.secrets.len() < NAMED {
            self.secrets.push(Spelling::of(name).to_string());
        }
    }

    fn note_left(&mut self, why: String) {
        self.left += 1;
        if self.left_out.len() < NAMED {
            self.left_out.push(why);
        }
    }
}

impl ProjectCode {
    /// Each file can be read, by whom it will be.
    pub fn ensure_readable(&self) -> Result<()> {
        for found in &self.found {
            let path = found.path.as_ref().map_err(|unusable| anyhow!("{unusable}"));
            let path = path
                .with_context(|| format!("reading {}", self.dir.path().display()))
                .or_try("have it readable for whoever starts the run, or name it in .gitignore")?;
            if found.kind == Kind::File {
                let hint = format!("chmod u+r {path}, as its owner; or name it in .gitignore");
                self.dir.read(path).or_try(hint)?;
            }
        }
        Ok(())
    }

    /// Whether that is among what goes.
    pub fn has(&self, script: &Rel) -> bool {
        self.found.iter().any(|found| found.path.as_ref() == Ok(script) && found.kind == Kind::File)
    }

    pub fn read(self) -> Result<(Beneath, Tree)> {
        let tree = tree::read(&self.dir, self.found, &mut Known::new())?;
        Ok((self.dir, tree))
    }
}

/// Takes out what would not be there, or is nothing to be sent. The rest, and what was taken out, with the reason.
pub fn leave_out(found: Vec<Found>) -> (Vec<Found>, Vec<String>) {
    let mut left_out = Vec::new();
    let kept = found.into_iter().filter(|found| {
        let Ok(path) = &found.path else { return true };
        match &found.kind {
            Kind::Link(to) => {
                let to = to.as_os_str().as_bytes();
                let stays = stays_inside(path, to).is_ok();
                if !stays {
                    left_out.push(format!("{path} (a link to {})", Spelling::of(to)));
                }
                stays
            }
            Kind::Other => {
                left_out.push(format!("{path} (a socket, a named pipe or a device)"));
                false
            }
            Kind::File | Kind::Dir => true,
        }
    });
    (kept.collect(), left_out)
}

fn ensure_small(found: &[Found], project: &Path) -> Result<()> {
    let bytes = found.iter().fold(0, |sum: u64, found| sum.saturating_add(found.stamp.len));
    if found.len() <= MOST_FILES && bytes <= MOST_BYTES {
        return Ok(());
    }
    let largest = found.iter().max_by_key(|found| found.stamp.len);
    let largest =
        largest.and_then(|found| found.path.as_ref().ok().map(|path| (path, found.stamp.len >> 20)));
    let largest =
        largest.map(|(path, mib)| format!("; the largest is {path} of {mib} MiB")).unwrap_or_default();
    let (files, mib) = (found.len(), bytes >> 20);
    Err(anyhow!("{} has {files} files of {mib} MiB, which is more than code{largest}", project.display()))
        .or_try("name what is no code in .gitignore, and send data with --data")
}

/// Refuses a script that is not sent: it could not be started.
pub fn ensure_among(is_there: bool, script: &Rel, project: &Path) -> Result<()> {
    if is_there {
        return Ok(());
    }
    Err(anyhow!("{script} is not among the code in {}", project.display()))
        .or_try("if it is there, git ignores it: look at .gitignore")
}

/// All that anybody has is in their home: keys, histories, other projects. A checkout may be in one, and lists what is its
/// own; it may not be one.
fn ensure_no_home(host: &Host, person: &Person, project: &Path, is_checkout: bool) -> Result<()> {
    let accounts = host.read_text(Path::new(ACCOUNTS))?.unwrap_or_default();
    ensure_no_home_of(host, &accounts, person, project, is_checkout)
}

fn ensure_no_home_of(
    host: &Host,
    accounts: &str,
    person: &Person,
    project: &Path,
    is_checkout: bool,
) -> Result<()> {
    let homes = accounts.lines().filter_map(|line| line.split(':').nth(5)).map(PathBuf::from);
    for home in homes.chain([person.home.clone()]) {
        // Some have none, and some are no directories.
        if !home.is_absolute()
            || !host.meta(&home).ok().flatten().is_some_and(|meta| meta.kind != Kind::Other)
        {
            continue;
        }
        let real = host.real_path(&home).unwrap_or_else(|_| home.clone());
        let is_home = [&home, &real].iter().any(|home| home.as_path() == project);
        let holds_one = [&home, &real].iter().any(|home| home.starts_with(project));
        let what = match (is_home, holds_one && !is_checkout) {
            (true, _) => "is somebody's home",
            (false, true) => "has somebody's home in it",
            (false, false) => continue,
        };
        return Err(anyhow!("{} {what}: all of it would go along", project.display())).or_try(
            "put the script into a folder of its own, with what it needs; `git init` there says what goes",
        );
    }
    ensure!(project != Path::new("/"), "/ is the whole machine: all of it would go along");
    Ok(())
}

fn ensure_no_key(good: bool, project: &Path, key: &str, is_checkout: bool) -> Result<()> {
    if good {
        return Ok(());
    }
    let hint = if is_checkout {
        format!("name {key} in .gitignore, and take it out of what git tracks: git rm -r --cached {key}")
    } else {
        "put the script into a folder of its own, with what it needs; `git init` there says what goes".into()
    };
    Err(anyhow!("{} has {key} in it, which opens other places: it is not sent", project.display()))
        .or_try(hint)
}

/// The credentials that a path leads into or is, and how deep they lie. Pure.
fn key(path: &[u8]) -> Option<(&'static [u8], usize)> {
    let names: Vec<&[u8]> = path.split(|byte| *byte == b'/').collect();
    CREDENTIALS.iter().find_map(|key| {
        let parts: Vec<&[u8]> = key.as_bytes().split(|byte| *byte == b'/').collect();
        let depth = names.windows(parts.len()).position(|names| names == parts)?;
        Some((key.as_bytes(), depth))
    })
}

/// By its name, as people call such files. Pure.
fn is_secret(path: &[u8]) -> bool {
    let name = path.rsplit(|byte| *byte == b'/').next().unwrap_or_default();
    let ends = [".pem", ".key", ".p12", ".pfx"].iter().any(|end| name.ends_with(end.as_bytes()));
    let begins = [".env", "id_"].iter().any(|start| name.starts_with(start.as_bytes()));
    let is_public = name.ends_with(b".pub");
    let whole = [".git-credentials", ".pgpass", ".pypirc"].iter().any(|whole| name == whole.as_bytes());
    (ends || begins || whole) && !is_public
}

/// Files of a checkout, as git lists them.
fn tracked(host: &Host, person: &Person, dir: &Beneath, outline: &mut CodeOutline) -> Result<Vec<Found>> {
    let listed = checkout::list(host, person, dir.path())?;
    listed.warnings.into_iter().for_each(|warning| outline.note_left(warning));
    let mut found = Vec::new();
    for path in listed.paths {
        let path = Rel::try_from(path).map_err(|why| anyhow!(why))?;
        match dir.meta(&path)? {
            // Deleted here, and not yet from the index.
            None => {}
            Some(seen) if seen.kind == Kind::Dir => {}
            Some(seen) => found.push(seen),
        }
    }
    Ok(found)
}

fn all(dir: &Beneath, outline: &mut CodeOutline) -> Result<Vec<Found>> {
    let mut left: BTreeSet<String> = BTreeSet::new();
    let mut found = dir.walk(MOST_DATA)?;
    found.retain(|found| {
        let Ok(path) = &found.path else { return true };
        let made = MADE.iter().find(|made| path.names().any(|name| name == made.as_bytes()));
        left.extend(made.map(|made| (*made).to_owned()));
        made.is_none()
    });
    outline.made = Some(left);
    // With nothing in it: only what is in a directory makes it. Where keys would be, it is seen all the same.
    found.retain(|found| {
        found.kind != Kind::Dir || found.path.as_ref().map_or(true, |path| key(path.as_bytes()).is_some())
    });
    Ok(found)
}

#[cfg(test)]
#[path = "code/tests.rs"]
mod tests;
