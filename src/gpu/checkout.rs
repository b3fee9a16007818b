//! A checkout, as git knows it: which one a script is in, which files are in it, and what differs from its commit. git is
//! asked by the person whose folder it is read for, and starts nothing that the checkout's own settings name: a checkout may
//! have come in an archive. Refuses one that somebody else has put above a script.

use super::provenance::Tags;
use crate::{
    host::{Cmd, Host, Kind, Output, person::Person},
    ui::Try as _,
};
use anyhow::{Context as _, Result, anyhow, ensure};
use std::{
    collections::BTreeSet,
    ffi::OsStr,
    os::unix::ffi::OsStrExt as _,
    path::{Path, PathBuf},
};

/// Owners whose `.git` is asked.
#[derive(Debug, Clone, Copy)]
pub struct Trusted([u32; 3]);

impl Trusted {
    /// Root, the person, and whoever has the folder that a script is in, as of a team's checkout.
    pub fn of(host: &Host, person: &Person, folder: &Path) -> Result<Self> {
        let owner = host.meta(folder)?.with_context(|| format!("there is no {}", folder.display()))?.uid;
        Ok(Self([0, person.uid, owner]))
    }

    fn has(self, uid: u32) -> bool {
        self.0.contains(&uid)
    }
}

/// The person as whom a run's folder is read: who asked for the run; where that was root, whoever has the folder.
pub fn reader(host: &Host, owner: &str, folder: &Path) -> Result<Person> {
    match owner {
        "root" => {
            let meta = host.meta(folder)?.with_context(|| format!("there is no {}", folder.display()))?;
            Person::numbered(meta.uid)
        }
        // Somebody without an entry is called by their number.
        name => Person::named(name).or_else(|error| Person::numbered(name.parse().map_err(|_| error)?)),
    }
}

/// The checkout that a script is in; without one, the script's own folder. It is looked for as far up as directories are
/// root's, the person's or of whoever has the script's folder, and in the next one: no `.git` that anybody may put into `/tmp`
/// is asked.
pub fn find(host: &Host, person: &Person, script: &Path) -> Result<PathBuf> {
    let folder = script.parent().context("a script is in a directory")?;
    let trusted = Trusted::of(host, person, folder)?;
    for dir in folder.ancestors() {
        if host.exists(&dir.join(".git"))? {
            ensure_trusted(host, dir, trusted)?;
            return Ok(dir.into());
        }
        if !host.meta(dir)?.is_some_and(|meta| trusted.has(meta.uid)) {
            break;
        }
    }
    Ok(folder.into())
}

/// Its `.git`, and where that leads: a worktree's, or a submodule's, is a file that names a directory elsewhere.
fn ensure_trusted(host: &Host, checkout: &Path, trusted: Trusted) -> Result<()> {
    let git = checkout.join(".git");
    let mut places = vec![git.clone()];
    let (dir, mut at) = match host.meta(&git)?.map(|meta| meta.kind) {
        Some(Kind::Link(to)) => (checkout.join(&to), checkout.join(to)),
        _ => (git.clone(), git),
    };
    // Short texts, both of them: what is longer is something else, and git will say so.
    let named = |file: &Path| -> Result<Option<String>> {
        let is_file = matches!(host.meta(file)?, Some(meta) if meta.kind == Kind::File && meta.len <= 8192);
        if is_file { host.read_text(file) } else { Ok(None) }
    };
    if let Some(text) = named(&dir)? {
        let to = text.strip_prefix("gitdir:").unwrap_or_default().trim();
        at = checkout.join(to);
    }
    places.push(at.clone());
    if let Some(common) = named(&at.join("commondir"))? {
        places.push(at.join(common.trim()));
    }
    for place in places {
        let owner = host.meta(&place)?.map(|meta| meta.uid);
        if let Some(stranger) = owner.filter(|uid| !trusted.has(*uid)) {
            let stranger = Person::numbered(stranger)?.name;
            return Err(anyhow!(
                "{} belongs to {stranger}, who is neither root, nor the person who asks, nor the owner of the folder",
                place.display()
            ))
            .or_try(format!(
                "have its person run it; or move the script to a folder of your own outside of {}",
                checkout.display()
            ));
        }
    }
    Ok(())
}

/// Content of a checkout, by git's list: git alone knows what its ignore files mean together with its index.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Listed {
    /// All that is tracked or not ignored; of a checkout in it, all that this one lists.
    pub paths: BTreeSet<Vec<u8>>,
    /// Directories that git could not look into, in its words.
    pub warnings: Vec<String>,
}

pub fn list(host: &Host, person: &Person, project: &Path) -> Result<Listed> {
    let (mut listed, trusted) = (Listed::default(), Trusted::of(host, person, project)?);
    list_in(host, person, trusted, (project, &[], 0), &mut listed)?;
    Ok(listed)
}

fn list_in(
    host: &Host,
    person: &Person,
    trusted: Trusted,
    (at, prefix, depth): (&Path, &[u8], u32),
    listed: &mut Listed,
) -> Result<()> {
    ensure!(depth < 8, "{} has checkouts in checkouts without end", at.display());
    ensure_trusted(host, at, trusted)?;
    let doing = || format!("listing the code in {}", at.display());
    // Without -z, a name that is no plain text stands in quotes: bytes that are no UTF-8 come whole.
    let words = ["-c", "core.quotePath=true", "ls-files", "--cached", "--others", "--exclude-standard"];
    let cmd = Cmd::new("git", git(at)?.into_iter().chain(words.map(str::to_owned)));
    let Output { code, stdout, stderr } =
        host.ask(&quiet(person, cmd)).with_context(doing).or_try("sudo apt-get install git")?;
    if code != 0 {
        let said = stderr.trim();
        let hint =
            if code == 127 { "sudo apt-get install git" } else { "see that `git status` works in there" };
        return Err(anyhow!("exit status {code}: {said}")).with_context(doing).or_try(hint);
    }
    listed
        .warnings
        .extend(stderr.lines().filter(|line| line.starts_with("warning: could not")).map(str::to_owned));
    for line in stdout.lines() {
        let mut name = unquoted(line).with_context(|| format!("reading what git lists: {line}"))?;
        // A checkout in the checkout, with a slash at its end when git does not track it.
        name.truncate(name.iter().rposition(|byte| *byte != b'/').map_or(0, |last| last + 1));
        let inner = at.join(OsStr::from_bytes(&name));
        if host.exists(&inner.join(".git"))? {
            let prefix = [prefix, &name, b"/"].concat();
            list_in(host, person, trusted, (&inner, &prefix, depth + 1), listed)?;
        } else {
            listed.paths.insert([prefix, &name].concat());
        }
    }
    Ok(())
}

/// git's words for a checkout: this one and no other, wherever its settings say that its files are. Named, it is not asked
/// whose it is, by no version; that was looked at. Of what its settings would have git start, what a word here can forbid:
/// the rest is forbidden by `quiet`.
fn git(at: &Path) -> Result<Vec<String>> {
    let at = at.to_str().with_context(|| format!("{} is no UTF-8", at.display()))?;
    let words = ["-C", at, "--git-dir=.git", "--work-tree=.", "-c", "core.fsmonitor=false"];
    Ok(words.into_iter().chain(["-c", "core.hooksPath=/dev/null"]).map(str::to_owned).collect())
}

/// Runs it as the person, and without a way to anywhere: a partial clone would fetch what it lacks, by any command that its settings
/// name. Older gits know only the second of the two variables.
fn quiet(person: &Person, cmd: Cmd) -> Cmd {
    let cmd = cmd.env("GIT_NO_LAZY_FETCH", "1").env("GIT_ALLOW_PROTOCOL", "none");
    person.cmd(cmd.env("GIT_OPTIONAL_LOCKS", "0").env("GIT_TERMINAL_PROMPT", "0"))
}

/// A path as git writes it: as it is, or in double quotes as in C, with bytes in octal. None: it is neither. Pure.
fn unquoted(line: &str) -> Option<Vec<u8>> {
    let Some(quoted) = line.strip_prefix('"') else { return Some(line.as_bytes().to_vec()) };
    let mut rest = quoted.strip_suffix('"')?.bytes();
    let mut name = Vec::new();
    while let Some(byte) = rest.next() {
        if byte != b'\\' {
            name.push(byte);
            continue;
        }
        name.push(match rest.next()? {
            b'a' => 7,
            b'b' => 8,
            b't' => b'\t',
            b'n' => b'\n',
            b'v' => 11,
            b'f' => 12,
            b'r' => b'\r',
            first @ b'0'..=b'3' => {
                let digits = [first, rest.next()?, rest.next()?];
                u8::from_str_radix(std::str::from_utf8(&digits).ok()?, 8).ok()?
            }
            other => other,
        });
    }
    Some(name)
}

/// Its commit, and the hash of what differs from that. What cannot be found out is not said.
///
/// A file that has changed is read through the filters of the checkout's own settings, which are programs: each is switched
/// off, so that of a file of git-lfs's the content is told.
pub fn tags(host: &Host, person: &Person, project: &Path) -> Tags {
    const SCRIPT: &str = r#"set -f
git "$@" rev-parse --verify HEAD || exit 1
filters=$(git "$@" config --name-only --get-regexp '^filter\.') || filters=
IFS='
'
for name in $filters; do
    # What cannot be switched off by its name is not gone near.
    case $name in *=*) exit 0 ;; esac
    case $name in
        *.required) set -- "$@" -c "$name=false" ;;
        *) set -- "$@" -c "$name=" ;;
    esac
done
differ() { git "$@" --no-ext-diff --no-textconv --submodule=short --ignore-submodules=dirty HEAD --; }
differ "$@" diff --quiet
[ $? != 1 ] || differ "$@" diff --binary | sha256sum"#;
    let asked = || -> Result<Output> {
        ensure_trusted(host, project, Trusted::of(host, person, project)?)?;
        let words = ["-c", SCRIPT, "sh"].map(str::to_owned).into_iter().chain(git(project)?);
        host.ask(&quiet(person, Cmd::new("sh", words)))
    };
    match asked() {
        Ok(out) if out.ok() => told(&out.stdout),
        _ => Tags::new(),
    }
}

/// The commit, and the hash of what differs from it if anything does.
fn told(said: &str) -> Tags {
    let hex = |word: &str| word.len() >= 40 && word.bytes().all(|b| b.is_ascii_hexdigit());
    let mut words = said.lines().map(|line| line.split_whitespace().next().unwrap_or_default());
    let mut tags = Tags::new();
    if let Some(commit) = words.next().filter(|word| hex(word)) {
        tags.insert("mlflow.source.git.commit".into(), commit.into());
        if let Some(diff) = words.next().filter(|word| hex(word)) {
            tags.insert("echoes.dirty".into(), diff.into());
        }
    }
    tags
}

#[cfg(test)]
#[path = "checkout/tests.rs"]
mod tests;
