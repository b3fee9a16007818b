//! What must have happened before MLflow starts: a database that no kill has left half made, a copy of it before
//! another version changes it, fresh statistics, and, once, the take-over of the file store a team had before.
//!
//! MLflow makes and changes its tables in dozens of steps, and killed between two of them it never starts again. So a
//! database that was being made when MLflow last died, and holds nothing, is made anew; and one of another version is
//! changed in a copy, which takes its place whole.
//!
//! A start that fails is tried for ever, so nothing in here may be done once more for each try: a copy is of one version and
//! of one content, and the newest of each version stays, as it is all that this version can read.
//!
//! A file store is never changed: it is copied, turned into a database beside the place where that will be, counted,
//! and moved in by renames. Whatever was not finished is thrown away and begun again. This file refuses to
//! put a store into a database that has runs of its own.

use super::disk::size_words;
use crate::{
    hash::first,
    host::{Cmd, Host},
    ui::Try as _,
};
use anyhow::{Context as _, Result, bail, ensure};
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

/// Read by systemd as root, before it becomes MLflow's user: it may hold a password.
pub const ENVIRONMENT: &str = "/etc/echoes-appliance/mlflow.env";

/// Says to serve a file store rather than the database; wins over `ENVIRONMENT`, and exists only then.
pub const STORE_ENVIRONMENT: &str = "/var/lib/echoes-appliance/mlflow-store.env";

/// What is MLflow's own in its data directory, and its group: the team may look at the database, wherever that was made.
pub const OWN: [(&str, &str); 6] = [
    ("mlflow.db", TEAM),
    ("artifacts", "mlflow"),
    ("backups", TEAM),
    ("store", "mlflow"),
    (".tmp", "mlflow"),
    (".version", TEAM),
];

/// The team's people.
pub const TEAM: &str = "echoes";

/// Copies of the database that are kept, oldest out first; more where each is the newest of its version.
const COPIES: usize = 3;

/// Where a copy is while it is made.
const HALF: &str = "half.db";

/// What SQLite keeps beside a database that is open.
const BESIDE: [&str; 3] = ["-journal", "-shm", "-wal"];

const COPY_STORE: &str = include_str!("../../assets/python/copy_store.py");

/// Runs the statements that it is given, and prints what each answers. Python's own SQLite is the one that MLflow uses, and
/// needs no package.
const SQL: &str = "\
import sqlite3, sys
db = sqlite3.connect(sys.argv[1], timeout=30, isolation_level=None)
for statement in sys.argv[2:]:
    for row in db.execute(statement):
        print(*row)
";

/// All that was written is in the one file, and nothing beside it: a change that was cut short is taken back, and the
/// write-ahead log is emptied.
const SETTLE: [&str; 2] = ["SELECT count(*) FROM sqlite_master", "PRAGMA wal_checkpoint(TRUNCATE)"];

/// Whether MLflow's database is the one that is kept here. Another backend looks after its own, and then an old file in here
/// is nobody's. `uri` is what its unit says.
pub fn is_here(data: &Path, uri: Option<&str>) -> bool {
    uri.is_none_or(|uri| !uri.contains("://") || uri == format!("sqlite:///{}/mlflow.db", data.display()))
}

/// Where MLflow's database is: `backend` is "sqlite" or a URI.
pub fn uri(data: &Path, backend: &str) -> String {
    match backend.split_once("://") {
        None => format!("sqlite:///{}/mlflow.db", data.display()),
        // The driver that the lock brings; the bare scheme means another one in each SQLAlchemy.
        Some(("postgresql" | "postgres", rest)) => format!("postgresql+psycopg://{rest}"),
        Some(_) => backend.to_owned(),
    }
}

/// The text of `ENVIRONMENT`. `data` is the directory `mlruns`; `backend` is "sqlite" or a URI, `artifacts`
/// "" or one.
pub fn environment(data: &Path, backend: &str, artifacts: &str) -> String {
    let (backend, data) = (uri(data, backend), data.display());
    let artifacts = if artifacts.is_empty() { format!("{data}/artifacts") } else { artifacts.to_owned() };
    format!("MLFLOW_BACKEND_STORE_URI={backend}\nMLFLOW_ARTIFACTS_DESTINATION={artifacts}\n")
}

/// After a version in `.version`: MLflow is making the database and has not answered yet.
const UNANSWERED: &str = " unanswered";

/// What a start of this version has to do first.
#[derive(Debug, PartialEq, Eq)]
enum Before {
    /// MLflow died making the database.
    Discard,
    /// Copy the database: the version that made it is not the one that is about to open it.
    Copy { made_by: String },
    /// Change the tables to what this version expects.
    Upgrade { made_by: String },
    /// Remember which version this is, and whether there is a database that it has served.
    Note { answered: bool },
    /// Statistics: without them a page of history takes 3.7 s rather than 0.2, and gathering them 28 ms on 1 GB.
    Analyze,
}

fn before(database: bool, noted: Option<&str>, version: &str) -> Vec<Before> {
    match (database, noted) {
        (false, _) => vec![Before::Note { answered: false }],
        (true, Some(noted)) if noted.ends_with(UNANSWERED) => {
            vec![Before::Discard, Before::Note { answered: false }]
        }
        (true, Some(noted)) if noted == version => vec![Before::Analyze],
        (true, noted) => {
            let made_by = noted.unwrap_or("unknown").to_owned();
            let (copy, upgrade) = (Before::Copy { made_by: made_by.clone() }, Before::Upgrade { made_by });
            vec![copy, upgrade, Before::Note { answered: true }, Before::Analyze]
        }
    }
}

/// What `.version` says while an upgraded copy takes the place of the database: which of the two is there is known by its
/// contents. Without it, a crash between the rename and the note would have the new one copied under the old one's name.
fn replacing(version: &str, made_by: &str, upgraded: &str) -> String {
    format!("{version} replaces {made_by} with {upgraded}")
}

/// The version before, the one after, and the contents after.
fn parse_replacing(noted: &str) -> Option<(&str, &str, &str)> {
    let (version, rest) = noted.split_once(" replaces ")?;
    let (made_by, upgraded) = rest.rsplit_once(" with ")?;
    Some((made_by, version, upgraded))
}

/// Make ready for `version` to start on the database in `data`. Runs before every start, as MLflow's own user and in
/// its sandbox. `env` is the Python environment, `now` names a copy, as in 20261123T194500Z.
pub fn prepare(host: &Host, data: &Path, env: &Path, version: &str, now: &str) -> Result<()> {
    // One that a killed start has left.
    remove_half(host, data)?;
    let prepared = make_ready(host, data, env, version, now);
    // What a full disk left would keep it full.
    prepared.and(remove_half(host, data))
}

fn make_ready(host: &Host, data: &Path, env: &Path, version: &str, now: &str) -> Result<()> {
    let (db, note) = (data.join("mlflow.db"), data.join(".version"));
    let database = host.meta(&db)?.is_some_and(|meta| meta.len > 0);
    let mut noted = noted(host, data)?;
    if let Some(version) = noted.as_deref().and_then(|noted| noted.strip_suffix(UNANSWERED))
        && database
        && is_used(host, env, &db)?
    {
        noted = Some(version.to_owned());
    }
    for step in before(database, noted.as_deref(), version) {
        match step {
            Before::Discard => replace(host, data, None)?,
            Before::Copy { made_by } => copy(host, data, env, (&made_by, version), now)
                .with_context(|| format!("copying {} before MLflow {version} changes it", db.display()))?,
            Before::Upgrade { made_by } => upgrade(host, data, env, &made_by, version)
                .with_context(|| format!("upgrading a copy of {}", db.display()))?,
            Before::Note { answered } => {
                let text = format!("{version}{}\n", if answered { "" } else { UNANSWERED });
                host.write(&note, 0o640, text.as_bytes())?;
            }
            Before::Analyze => {
                sql(host, env, &db, &["PRAGMA analysis_limit=1000", "ANALYZE"])?;
            }
        }
    }
    Ok(())
}

/// Which version the database is of, as far as it is known.
fn noted(host: &Host, data: &Path) -> Result<Option<String>> {
    let (db, note) = (data.join("mlflow.db"), host.read_text(&data.join(".version"))?);
    let Some(noted) = note.as_deref().map(str::trim) else { return Ok(None) };
    let Some((made_by, version, upgraded)) = parse_replacing(noted) else { return Ok(Some(noted.into())) };
    let is_upgraded = host.exists(&db)? && contents(host, &db)? == upgraded;
    Ok(Some(if is_upgraded { version.into() } else { made_by.into() }))
}

/// MLflow has answered: what it was making is whole. Runs after every start.
pub fn answered(host: &Host, data: &Path) -> Result<()> {
    let note = data.join(".version");
    match host.read_text(&note)?.as_deref().and_then(|noted| noted.trim().strip_suffix(UNANSWERED)) {
        Some(version) => host.write(&note, 0o640, format!("{version}\n").as_bytes()),
        None => Ok(()),
    }
}

/// Whether anybody put something in, which nobody could before it was whole.
fn is_used(host: &Host, env: &Path, db: &Path) -> Result<bool> {
    let tables =
        "SELECT count(*) FROM sqlite_master WHERE name IN ('runs', 'experiments', 'registered_models')";
    if sql(host, env, db, &[tables])?.trim() != "3" {
        return Ok(false);
    }
    let things = "SELECT (SELECT count(*) FROM runs) + (SELECT count(*) FROM registered_models) + \
                  (SELECT count(*) FROM experiments WHERE experiment_id <> 0)";
    Ok(sql(host, env, db, &[things])?.trim() != "0")
}

fn copy(host: &Host, data: &Path, env: &Path, (made_by, version): (&str, &str), now: &str) -> Result<()> {
    let (db, copies) = (data.join("mlflow.db"), data.join("backups"));
    sql(host, env, &db, &SETTLE)?;
    let contents = contents(host, &db)?;
    let is_copied = is_there(&host.list(&copies)?, made_by, &contents);
    let len = host.meta(&db)?.map_or(0, |meta| meta.len);
    check_change(host, data, needed(len, is_copied), (made_by, version))?;
    if !is_copied {
        let half = duplicate(host, data, env)?;
        host.rename(&half, &copies.join(name(now, made_by, &contents)))?;
    }
    for name in surplus(&host.list(&copies)?) {
        host.remove(&copies.join(name))?;
    }
    Ok(())
}

fn upgrade(host: &Host, data: &Path, env: &Path, made_by: &str, version: &str) -> Result<()> {
    let half = duplicate(host, data, env)?;
    let uri = format!("sqlite:///{}", half.display());
    host.run(&Cmd::new(&env.join("bin/mlflow").to_string_lossy(), ["db", "upgrade", &uri]))?;
    // A rename takes one file along, not three.
    sql(host, env, &half, &SETTLE)?;
    sync(host, &half)?;
    let text = format!("{}\n", replacing(version, made_by, &contents(host, &half)?));
    host.write(&data.join(".version"), 0o640, text.as_bytes())?;
    replace(host, data, Some(&half))
}

/// A copy of the database under a name that nobody uses, on disk.
fn duplicate(host: &Host, data: &Path, env: &Path) -> Result<PathBuf> {
    let half = data.join("backups").join(HALF);
    host.make_dir(&data.join("backups"))?;
    sql(host, env, &data.join("mlflow.db"), &[&format!("VACUUM INTO '{}'", half.display())])?;
    sync(host, &half)?;
    Ok(half)
}

fn remove_half(host: &Host, data: &Path) -> Result<()> {
    let half = |beside: &&str| data.join("backups").join(format!("{HALF}{beside}"));
    [""].iter().chain(&BESIDE).map(half).try_for_each(|path| host.remove(&path))
}

/// Put another database in the place of this one, or none. Nobody has it open; what SQLite keeps beside an open one
/// would be taken for the other's.
fn replace(host: &Host, data: &Path, with: Option<&Path>) -> Result<()> {
    for beside in BESIDE {
        host.remove(&data.join(format!("mlflow.db{beside}")))?;
    }
    let db = data.join("mlflow.db");
    with.map_or_else(|| host.remove(&db), |with| host.rename(with, &db))
}

fn sync(host: &Host, path: &Path) -> Result<()> {
    host.run(&Cmd::new("sync", ["--file-system", &*path.to_string_lossy()])).map(drop)
}

/// SHA-256 of a settled database. By a program: it may be larger than the memory that the service is given.
fn contents(host: &Host, db: &Path) -> Result<String> {
    let said = host.run(&Cmd::new("sha256sum", ["--", &*db.to_string_lossy()]))?;
    let hash = said.trim_start_matches('\\').split(' ').next().unwrap_or_default();
    ensure!(hash.len() == 64, "sha256sum answered {said:?}");
    Ok(hash.to_owned())
}

/// So many digits of it tell a handful of copies apart.
const DIGITS: usize = 16;

/// A copy's: when it was made, by which version what is in it, and what that is.
fn name(now: &str, made_by: &str, contents: &str) -> String {
    format!("{now}-mlflow-{}-{}.db", plain(made_by), first(contents, DIGITS))
}

/// Part of a file's name.
fn plain(made_by: &str) -> String {
    made_by.replace(|c: char| !c.is_ascii_alphanumeric() && c != '.', "_")
}

/// The version and the contents of a copy, by its name; nothing for what is none of ours. The first copies had names
/// without their contents.
fn parse_name(name: &str) -> Option<(&str, Option<&str>)> {
    let (_, rest) = name.strip_suffix(".db")?.split_once("-mlflow-")?;
    Some(rest.rsplit_once('-').map_or((rest, None), |(made_by, contents)| (made_by, Some(contents))))
}

fn is_there(names: &[String], made_by: &str, contents: &str) -> bool {
    let wanted = (&*plain(made_by), Some(first(contents, DIGITS)));
    names.iter().any(|name| parse_name(name) == Some(wanted))
}

/// The copies that go. Names begin with their time, so the first are the oldest.
fn surplus(names: &[String]) -> Vec<String> {
    let mut copies: Vec<_> = names.iter().filter(|name| parse_name(name).is_some()).collect();
    copies.sort();
    let made_by = |n: usize| parse_name(copies[n]).map(|(made_by, _)| made_by);
    let is_newest = |n: usize| (n + 1..copies.len()).all(|later| made_by(later) != made_by(n));
    let over = copies.len().saturating_sub(COPIES);
    (0..copies.len()).filter(|n| !is_newest(*n)).take(over).map(|n| copies[n].clone()).collect()
}

/// Bytes that a change of version takes at most while it goes on: the copy that is kept, the one that is changed, and what
/// SQLite writes beside that one meanwhile.
fn needed(len: u64, is_copied: bool) -> u64 {
    let times = if is_copied { 2 } else { 3 };
    len.saturating_mul(times).saturating_add(16 << 20)
}

fn check_change(host: &Host, data: &Path, needed: u64, (made_by, version): (&str, &str)) -> Result<()> {
    let doing = format!("changing MLflow's database of version {made_by} to {version}");
    check_free(host, data, needed, &doing)
        .or_try(format_args!("older copies of it are in {}", data.join("backups").display()))
}

fn check_free(host: &Host, at: &Path, needed: u64, doing: &str) -> Result<()> {
    let (free, _) = host.room(at)?;
    let (takes, is_free, at) = (size_words(needed), size_words(free), at.display());
    let no_room = || anyhow::anyhow!("{doing} takes {takes} in {at}, where {is_free} are free");
    (free >= needed)
        .then_some(())
        .ok_or_else(no_room)
        .or_try("make room there, then run this again; nothing was changed")
}

/// Whether there is room for what a start of this version does first. For an installation, before it stops the version that
/// runs; what that one writes until then is not much.
pub fn check_room(host: &Host, data: &Path, version: &str) -> Result<()> {
    let db = data.join("mlflow.db");
    let len = host.meta(&db)?.map_or(0, |meta| meta.len);
    let noted = noted(host, data)?;
    let noted = noted.as_deref().map(|noted| noted.strip_suffix(UNANSWERED).unwrap_or(noted));
    let is_change = |step: &Before| matches!(step, Before::Copy { .. });
    if !before(len > 0, noted, version).iter().any(is_change) {
        return Ok(());
    }
    let made_by = noted.unwrap_or("unknown");
    // It is read through only where that decides.
    let names = host.list(&data.join("backups"))?;
    let may_be =
        |name: &String| parse_name(name).is_some_and(|(by, of)| by == plain(made_by) && of.is_some());
    let is_copied = host.room(data)?.0 < needed(len, false)
        && names.iter().any(may_be)
        && is_there(&names, made_by, &contents(host, &db)?);
    check_change(host, data, needed(len, is_copied), (made_by, version))
}

/// How a file store is taken over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum How {
    /// Into SQLite.
    Database,
    /// Copied and served as files: the MLflow of Python 3.9 and older cannot turn it into a database.
    Files,
}

/// What is to be done about an old file store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Import {
    /// There is none, or it has been taken over.
    Nothing,
    Needed {
        from: PathBuf,
        how: How,
    },
    /// Built and counted; a crash came before it was moved in.
    Finish,
    /// There is one, and it stays where it is.
    Refused(String),
}

/// The settings that bear on it.
#[derive(Debug, Clone, Copy)]
pub struct Wish<'a> {
    /// `mlflow.import`.
    pub asked: Option<&'a Path>,
    /// The backend is SQLite.
    pub sqlite: bool,
    /// Artifacts are kept in `mlruns/artifacts`.
    pub artifacts_here: bool,
    /// This MLflow has migrate-filestore: on Python 3.10 and newer.
    pub can_migrate: bool,
}

/// What is in the data directory.
#[derive(Debug, Clone, Default)]
struct Found {
    /// The team's.
    store: Option<PathBuf>,
    /// Our copy of one, served as files.
    ours: Option<PathBuf>,
    database: bool,
    artifacts: bool,
    imported: bool,
    verified: bool,
}

/// `data` is the directory `mlruns`. Reads names only.
pub fn look(host: &Host, data: &Path, wish: &Wish) -> Result<Import> {
    let ours = data.join("store/mlruns");
    let mut store = is_store(host, data)?.then(|| data.to_owned());
    if let Some(asked) = wish.asked {
        let inner = asked.join("mlruns");
        store = match (is_store(host, asked)?, is_store(host, &inner)?) {
            (true, _) => Some(asked.to_owned()),
            (_, true) => Some(inner),
            _ => return Ok(Import::Refused(format!("{} holds no MLflow file store", asked.display()))),
        };
    }
    let found = Found {
        store,
        ours: host.exists(&ours)?.then_some(ours),
        database: host.exists(&data.join("mlflow.db"))?,
        artifacts: !host.list(&data.join("artifacts"))?.is_empty(),
        imported: host.exists(&data.join("imported.json"))?,
        verified: host.exists(&data.join(".import/verified.json"))?,
    };
    Ok(decide(found, wish))
}

fn decide(found: Found, wish: &Wish) -> Import {
    let refuse =
        |store: &Path, why: &str| Import::Refused(format!("{} is not taken over: {why}", store.display()));
    match found {
        Found { verified: true, .. } => Import::Finish,
        Found { database: false, ours: Some(from), .. } if wish.can_migrate && wish.sqlite => {
            Import::Needed { from, how: How::Database }
        }
        Found { imported: true, .. } | Found { store: None, .. } => Import::Nothing,
        Found { store: Some(store), .. } if !wish.sqlite => {
            refuse(&store, "MLflow can turn a file store into SQLite alone, and the backend is another")
        }
        Found { store: Some(store), .. } if !wish.artifacts_here => refuse(
            &store,
            "its artifacts would have to go where mlflow.artifacts says; import first, then move them",
        ),
        Found { store: Some(store), database: true, .. } => refuse(
            &store,
            "mlflow.db is there already, and two cannot be made one; set mlflow.db aside to import",
        ),
        Found { store: Some(store), artifacts: true, .. } => refuse(
            &store,
            "artifacts/ is not empty, and its files could be overwritten; set it aside to import",
        ),
        Found { store: Some(from), .. } => {
            let how = if wish.can_migrate { How::Database } else { How::Files };
            Import::Needed { from, how }
        }
    }
}

/// A directory of experiments: numbers with a meta.yaml.
fn is_store(host: &Host, dir: &Path) -> Result<bool> {
    for name in host.list(dir)? {
        let number = !name.is_empty() && name.bytes().all(|b| b.is_ascii_digit());
        if number && host.exists(&dir.join(&name).join("meta.yaml"))? {
            return Ok(true);
        }
    }
    Ok(false)
}

/// What was taken over, kept as `imported.json` beside the database.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Imported {
    pub from: PathBuf,
    pub how: How,
    pub counts: BTreeMap<String, u64>,
    /// Artifact files.
    pub files: BTreeMap<String, u64>,
    /// Artifact places that are not below the store or the data disk: what is there was not brought.
    pub elsewhere: Vec<String>,
    /// What could not be read, and links that were not followed.
    pub notes: Vec<String>,
}

/// What `copy_store.py` prints last.
#[derive(Deserialize)]
struct Copied {
    found: BTreeMap<String, u64>,
    files: BTreeMap<String, u64>,
    elsewhere: Vec<String>,
    notes: Vec<String>,
}

/// Whether there is room to take it over: before MLflow stops. What is text becomes text and a database; artifacts are linked
/// where they can be, and which cannot is known only by trying.
pub fn check_import(host: &Host, data: &Path, what: &Import) -> Result<()> {
    let Import::Needed { from, .. } = what else { return Ok(()) };
    let du = ["-s", "-B1", "--exclude=artifacts", "--", &*from.to_string_lossy()];
    let said = host.run(&Cmd::new("du", du))?;
    let texts: u64 =
        said.split_whitespace().next().unwrap_or_default().parse().context("reading what du said")?;
    let doing = format!("taking over the runs in {}", from.display());
    check_free(host, data, texts.saturating_mul(2).saturating_add(16 << 20), &doing)
}

/// Take it over. MLflow must not be running. As root: the old files are other people's. Repeatable from any
/// point. `owner` is MLflow's user and group, `env` the Python environment.
pub fn import(
    host: &Host,
    data: &Path,
    what: &Import,
    env: &Path,
    owner: (u32, u32),
    say: &mut dyn FnMut(&str),
) -> Result<Option<Imported>> {
    match what {
        Import::Nothing | Import::Refused(_) => return Ok(None),
        Import::Finish => {}
        Import::Needed { from, how } => {
            let built = build(host, data, from, *how, env, owner, say);
            if built.is_err() {
                // What a full disk left would keep it full.
                host.remove_tree(&data.join(".import"))?;
            }
            built.with_context(|| {
                format!("taking over the runs in {} (which stays as it is)", from.display())
            })?;
        }
    }
    move_in(host, data).map(Some)
}

fn build(
    host: &Host,
    data: &Path,
    from: &Path,
    how: How,
    env: &Path,
    (uid, gid): (u32, u32),
    say: &mut dyn FnMut(&str),
) -> Result<()> {
    let new = data.join(".import");
    host.remove_tree(&new)?;
    let disk = data.parent().unwrap_or(data);
    let args = [from, &new].map(|path| path.display().to_string());
    let ids = [uid, gid].map(|id| id.to_string());
    let args = [String::from("-I"), "-".into()]
        .into_iter()
        .chain(args)
        .chain(ids)
        .chain([disk.display().to_string()]);
    let copy = Cmd::new(&env.join("bin/python").to_string_lossy(), args).stdin(COPY_STORE);
    let mut brief = |line: &str| {
        // Of MLflow's words the steps alone: its summary names a database that is about to move.
        if line.starts_with("experiment ") || line.starts_with('[') {
            say(line);
        }
    };
    let said = host.run_saying(&copy, &mut brief)?;
    let copied: Copied =
        serde_json::from_str(said.lines().last().unwrap_or_default()).context("reading what was copied")?;
    if how == How::Database {
        let db = new.join("mlflow.db");
        let (source, target) =
            (new.join("store").display().to_string(), format!("sqlite:///{}", db.display()));
        let args = ["migrate-filestore", "--source", &source, "--target", &target, "--progress"];
        let migrate = Cmd::new(&env.join("bin/mlflow").to_string_lossy(), args)
            .env("MLFLOW_DISABLE_TELEMETRY", "true")
            .env("DO_NOT_TRACK", "true")
            .env("PYTHONUTF8", "1")
            .env("HOME", &new.to_string_lossy())
            .env("TMPDIR", &new.to_string_lossy());
        host.run_saying(&migrate, &mut brief)?;
        // Out of the write-ahead log: a rename takes one file along, not three.
        sql(host, env, &db, &["PRAGMA journal_mode=DELETE", "ANALYZE"])?;
        let counts: Vec<_> =
            copied.found.keys().map(|table| format!("SELECT COUNT(*) FROM {table}")).collect();
        let counts = sql(host, env, &db, &counts.iter().map(String::as_str).collect::<Vec<_>>())?;
        let counts: BTreeMap<_, u64> =
            copied.found.keys().cloned().zip(counts.lines().map(|n| n.parse().unwrap_or(u64::MAX))).collect();
        ensure!(counts == copied.found, "the store holds {:?}, the database {counts:?}", copied.found);
        let team = host.gid(TEAM)?.unwrap_or(gid);
        let (owner, db) = (format!("{uid}:{team}"), db.display().to_string());
        host.run(&Cmd::new("chown", ["-h", &owner, &db]))?;
        host.run(&Cmd::new("chmod", ["640", &db]))?;
    }
    let Copied { found: counts, files, elsewhere, notes } = copied;
    let record = Imported { from: from.into(), how, counts, files, elsewhere, notes };
    // All of it on the disk before the word that it is.
    host.run(&Cmd::new("sync", ["--file-system", &*new.to_string_lossy()]))?;
    host.write(&new.join("verified.json"), 0o644, serde_json::to_string_pretty(&record)?.as_bytes())
}

/// Each step may have been done already.
fn move_in(host: &Host, data: &Path) -> Result<Imported> {
    let new = data.join(".import");
    let record = host.read_text(&new.join("verified.json"))?.context("nothing was verified")?;
    let record: Imported = serde_json::from_str(&record).context("reading what was verified")?;
    let again = record.from == data.join("store/mlruns");
    if host.exists(&new.join("artifacts"))? && !again {
        if !host.remove_dir(&data.join("artifacts"))? {
            bail!("{} is not empty", data.join("artifacts").display());
        }
        host.rename(&new.join("artifacts"), &data.join("artifacts"))?;
    }
    match record.how {
        How::Database => {
            if host.exists(&new.join("mlflow.db"))? {
                host.rename(&new.join("mlflow.db"), &data.join("mlflow.db"))?;
            }
            host.remove(Path::new(STORE_ENVIRONMENT))?;
        }
        How::Files => {
            if host.exists(&new.join("store"))? {
                host.rename(&new.join("store"), &data.join("store"))?;
            }
            let text = format!("MLFLOW_BACKEND_STORE_URI={}\n", data.join("store/mlruns").display());
            host.write(Path::new(STORE_ENVIRONMENT), 0o600, text.as_bytes())?;
        }
    }
    host.write(&data.join("imported.json"), 0o644, serde_json::to_string_pretty(&record)?.as_bytes())?;
    if again {
        // Our copy, which is now in the database; the team's own was never touched.
        host.remove_tree(&data.join("store"))?;
    }
    host.remove_tree(&new)?;
    Ok(record)
}

fn sql(host: &Host, env: &Path, db: &Path, statements: &[&str]) -> Result<String> {
    let db = db.to_string_lossy();
    let args = ["-I", "-", &db].into_iter().chain(statements.iter().copied());
    host.run(&Cmd::new(&env.join("bin/python").to_string_lossy(), args).stdin(SQL))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::{Exec, Output};
    use std::sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    };

    #[test]
    fn another_version_meets_a_copied_database() {
        let copy = |made_by: &str| Before::Copy { made_by: made_by.into() };
        let note = |answered| Before::Note { answered };
        assert_eq!(before(false, None, "2"), [note(false)]);
        assert_eq!(before(true, Some("1 unanswered"), "2"), [Before::Discard, note(false)]);
        assert_eq!(before(true, Some("2"), "2"), [Before::Analyze]);
        for (noted, made_by) in [(Some("1"), "1"), (None, "unknown")] {
            let upgrade = Before::Upgrade { made_by: made_by.into() };
            let upgrade = [copy(made_by), upgrade, note(true), Before::Analyze];
            assert_eq!(before(true, noted, "2"), upgrade);
        }
    }

    #[test]
    fn the_oldest_copies_go_but_the_newest_of_each_version_and_strangers_stay() {
        let table: &[(&[&str], &[&str])] = &[
            (
                &[
                    "5-mlflow-3-ab.db",
                    "notes.txt",
                    "1-mlflow-3.db",
                    "2-mlflow-3-cd.db",
                    "3-mlflow-3.db",
                    "half.db",
                ],
                &["1-mlflow-3.db"],
            ),
            // The copy that only an older version can read, before any number of another's.
            (
                &["1-mlflow-2.db", "2-mlflow-3-a.db", "3-mlflow-3-b.db", "4-mlflow-3-c.db"],
                &["2-mlflow-3-a.db"],
            ),
            (&["1-mlflow-1.db", "2-mlflow-2.db", "3-mlflow-3.db", "4-mlflow-4.db", "5-mlflow-5.db"], &[]),
            (
                &["1-mlflow-1.db", "2-mlflow-1.db", "3-mlflow-2.db", "4-mlflow-3.db", "5-mlflow-4.db"],
                &["1-mlflow-1.db"],
            ),
        ];
        for (names, gone) in table {
            let names: Vec<_> = names.iter().map(|name| (*name).to_owned()).collect();
            assert_eq!(surplus(&names), *gone, "{names:?}");
        }
    }

    #[test]
    fn a_copy_is_known_by_its_version_and_its_contents() {
        let of = |contents: &str| contents.repeat(64);
        let names = [
            name("20261123T194500Z", "3.1.4", &of("a")),
            name("20261123T194501Z", "a/b-c", &of("b")),
            "1-mlflow-3.1.4.db".into(),
        ];
        assert_eq!(names[0], "20261123T194500Z-mlflow-3.1.4-aaaaaaaaaaaaaaaa.db");
        assert!(!names[1].contains('/'));
        for (made_by, contents, there) in
            [("3.1.4", "a", true), ("3.1.4", "b", false), ("3.1.5", "a", false), ("a/b-c", "b", true)]
        {
            assert_eq!(is_there(&names, made_by, &of(contents)), there, "{made_by} {contents}");
        }
    }

    #[test]
    fn another_backends_database_is_left_alone() {
        let data = Path::new("/d/mlruns");
        for uri in [None, Some("sqlite:////d/mlruns/mlflow.db"), Some("/d/mlruns/store/mlruns")] {
            assert!(is_here(data, uri), "{uri:?}");
        }
        for uri in ["postgresql+psycopg://u:p@h/db", "sqlite:////else/mlflow.db"] {
            assert!(!is_here(data, Some(uri)), "{uri}");
        }
    }

    /// A database with one row, in a directory of this machine: SQLite, sync and sha256sum are the real ones, and
    /// MLflow's own upgrade is what `upgrade` says.
    struct Scene {
        dir: tempfile::TempDir,
        host: Host,
    }

    struct Upgrading(fn(&str) -> Result<()>);

    impl Exec for Upgrading {
        fn exec(&self, cmd: &Cmd, say: &mut dyn FnMut(&str)) -> Result<Output> {
            if !cmd.program.ends_with("bin/mlflow") {
                return crate::host::System.exec(cmd, say);
            }
            let [db, upgrade, uri] = &cmd.args[..] else { bail!("{cmd}") };
            assert_eq!((db.as_str(), upgrade.as_str()), ("db", "upgrade"));
            let upgraded = (self.0)(uri.strip_prefix("sqlite:///").unwrap());
            Ok(match upgraded {
                Ok(()) => Output::default(),
                Err(error) => Output { code: 1, stderr: error.to_string(), ..Output::default() },
            })
        }
    }

    fn statement(db: &str, statement: &str) -> String {
        let host = Host::new("/", crate::host::System);
        host.run(&Cmd::new("python3", ["-I", "-", db, statement]).stdin(SQL)).unwrap()
    }

    impl Scene {
        fn new(upgrade: fn(&str) -> Result<()>) -> Self {
            let dir = tempfile::tempdir().unwrap();
            let host = Host::new("/", Upgrading(upgrade));
            host.link(&dir.path().join("env/bin/python"), Path::new("/usr/bin/python3")).unwrap();
            let scene = Self { dir, host };
            scene.host.make_dir(&scene.at("backups")).unwrap();
            scene.note("3.17.2");
            // As MLflow leaves it: what was written last is beside it.
            for words in ["PRAGMA journal_mode=WAL", "CREATE TABLE t (n)", "INSERT INTO t VALUES (7)"] {
                statement(&scene.db(), words);
            }
            scene
        }

        fn at(&self, name: &str) -> PathBuf {
            self.dir.path().join("mlruns").join(name)
        }

        fn db(&self) -> String {
            self.at("mlflow.db").display().to_string()
        }

        fn note(&self, text: &str) {
            self.host.write(&self.at(".version"), 0o640, format!("{text}\n").as_bytes()).unwrap();
        }

        fn noted(&self) -> String {
            self.host.read_text(&self.at(".version")).unwrap().unwrap().trim().to_owned()
        }

        fn start(&self, version: &str, now: &str) -> Result<()> {
            prepare(&self.host, &self.at(""), &self.dir.path().join("env"), version, now)
        }

        /// What is in `backups`, without the contents in the names.
        fn copies(&self) -> Vec<String> {
            let names = self.host.list(&self.at("backups")).unwrap();
            let short = |name: &String| match parse_name(name) {
                Some((made_by, _)) => format!("{} {made_by}", name.split('-').next().unwrap()),
                None => name.clone(),
            };
            names.iter().map(short).collect()
        }
    }

    #[test]
    fn a_start_that_keeps_failing_keeps_the_only_copy_that_the_older_version_can_read() {
        let scene = Scene::new(|_| bail!("Can't locate revision identified by 'dc11669786a5'"));
        scene.host.write(&scene.at("backups/0-mlflow-3.10.1.db"), 0o640, b"older").unwrap();
        for now in ["1", "2", "3", "4", "5", "6"] {
            // As a kill in the middle leaves it, too.
            for half in ["backups/half.db", "backups/half.db-wal"] {
                scene.host.write(&scene.at(half), 0o640, b"half").unwrap();
            }
            let error = scene.start("3.10.1", now).unwrap_err();
            assert!(format!("{error:#}").contains("locate revision"), "{error:#}");
            assert_eq!(scene.copies(), ["0 3.10.1", "1 3.17.2"]);
        }
        assert_eq!(
            (scene.noted().as_str(), statement(&scene.db(), "SELECT n FROM t").as_str()),
            ("3.17.2", "7\n")
        );
        // What is written meanwhile, by the version whose it is, is another content.
        statement(&scene.db(), "INSERT INTO t VALUES (8)");
        scene.start("3.10.1", "7").unwrap_err();
        assert_eq!(scene.copies(), ["0 3.10.1", "1 3.17.2", "7 3.17.2"]);
    }

    #[test]
    fn an_upgraded_copy_takes_the_place_of_the_database_and_what_was_is_kept() {
        let scene = Scene::new(|db| {
            // MLflow switches it to a write-ahead log, and leaves what it wrote in there.
            statement(db, "PRAGMA journal_mode=WAL");
            statement(db, "INSERT INTO t VALUES (9)");
            Ok(())
        });
        scene.start("3.18.0", "1").unwrap();
        assert_eq!(scene.copies(), ["1 3.17.2"]);
        let all = "SELECT group_concat(n) FROM t";
        assert_eq!((scene.noted().as_str(), statement(&scene.db(), all).as_str()), ("3.18.0", "7,9\n"));
        let copy = scene.at("backups").join(&scene.host.list(&scene.at("backups")).unwrap()[0]);
        assert_eq!(statement(&copy.display().to_string(), all), "7\n");
        scene.start("3.18.0", "2").unwrap();
        assert_eq!(scene.copies(), ["1 3.17.2"]);
    }

    #[test]
    fn killed_while_the_copy_takes_its_place_each_database_keeps_its_version() {
        let scene = Scene::new(|_| bail!("it is tried"));
        statement(&scene.db(), SETTLE[1]);
        let there = contents(&scene.host, &scene.at("mlflow.db")).unwrap();
        // After the rename: nothing is left to do.
        scene.note(&replacing("3.18.0", "3.17.2", &there));
        scene.start("3.18.0", "1").unwrap();
        assert_eq!(scene.copies(), [""; 0]);
        // Before it: all of it once more, and the copy has its own version's name.
        scene.note(&replacing("3.18.0", "3.17.2", &"0".repeat(64)));
        scene.start("3.18.0", "2").unwrap_err();
        assert_eq!(scene.copies(), ["2 3.17.2"]);
        // And somebody took it away.
        scene.host.remove(&scene.at("mlflow.db")).unwrap();
        scene.start("3.18.0", "3").unwrap();
        assert_eq!(scene.noted(), "3.18.0 unanswered");
    }

    #[test]
    fn room_is_looked_for_before_anything_is_done_and_what_is_lacking_is_said() {
        let scene = Scene::new(|_| Ok(()));
        let data = scene.at("");
        check_room(&scene.host, &data, "3.18.0").unwrap();
        assert_eq!(
            (needed(1 << 30, false), needed(1 << 30, true)),
            ((3 << 30) + (16 << 20), (2 << 30) + (16 << 20))
        );
        let error = check_change(&scene.host, &data, u64::MAX, ("3.17.2", "3.18.0")).unwrap_err();
        let (said, hint) = crate::ui::told(&error);
        assert!(
            said[0].starts_with("changing MLflow's database of version 3.17.2 to 3.18.0 takes "),
            "{said:?}"
        );
        assert!(said[0].contains(&data.display().to_string()) && said[0].ends_with(" are free"), "{said:?}");
        assert!(hint.unwrap().contains("mlruns/backups"), "{hint:?}");
        // A database that says it is larger than half of what is free; it is sparse, and takes nothing.
        let grow = scene.host.room(&data).unwrap().0.div_ceil(2).to_string();
        scene.host.run(&Cmd::new("truncate", ["-s", &grow, &scene.db()])).unwrap();
        for version in ["3.17.2", "3.18.0"] {
            assert_eq!(check_room(&scene.host, &data, version).is_ok(), version == "3.17.2");
        }
    }

    #[test]
    fn a_password_goes_to_the_driver_we_bring() {
        let text = environment(Path::new("/d"), "postgresql://u:p@h/db", "s3://b/x");
        let expect =
            "MLFLOW_BACKEND_STORE_URI=postgresql+psycopg://u:p@h/db\nMLFLOW_ARTIFACTS_DESTINATION=s3://b/x\n";
        assert_eq!(text, expect);
        let text = environment(Path::new("/d"), "sqlite", "");
        let expect =
            "MLFLOW_BACKEND_STORE_URI=sqlite:////d/mlflow.db\nMLFLOW_ARTIFACTS_DESTINATION=/d/artifacts\n";
        assert_eq!(text, expect);
    }

    const WISH: Wish = Wish { asked: None, sqlite: true, artifacts_here: true, can_migrate: true };

    #[test]
    fn a_store_is_taken_over_once_and_never_over_what_is_there() {
        let store = || Found { store: Some("/old".into()), ..Found::default() };
        let ours = || Found { ours: Some("/ours".into()), imported: true, ..store() };
        let needed = |from: &str, how| Import::Needed { from: from.into(), how };
        let table = [
            (Found::default(), WISH, Import::Nothing),
            (store(), WISH, needed("/old", How::Database)),
            (store(), Wish { can_migrate: false, ..WISH }, needed("/old", How::Files)),
            (Found { imported: true, database: true, ..store() }, WISH, Import::Nothing),
            (Found { verified: true, artifacts: true, ..store() }, WISH, Import::Finish),
            (ours(), Wish { can_migrate: false, ..WISH }, Import::Nothing),
            (ours(), WISH, needed("/ours", How::Database)),
        ];
        for (found, wish, expect) in table {
            assert_eq!(decide(found.clone(), &wish), expect, "{found:?}");
        }
        let refused = [
            (Found { database: true, ..store() }, WISH, "two cannot be made one"),
            (Found { artifacts: true, ..store() }, WISH, "not empty"),
            (store(), Wish { sqlite: false, ..WISH }, "the backend is another"),
            (store(), Wish { artifacts_here: false, ..WISH }, "mlflow.artifacts"),
        ];
        for (found, wish, why) in refused {
            let Import::Refused(said) = decide(found.clone(), &wish) else {
                panic!("{found:?} was not refused")
            };
            assert!(said.contains(why), "{said}");
        }
    }

    /// The copy, the migration and SQLite, as far as files go; killed before and after the nth command.
    #[derive(Clone)]
    struct World(PathBuf, Arc<AtomicUsize>);

    impl Exec for World {
        fn exec(&self, cmd: &Cmd, _: &mut dyn FnMut(&str)) -> Result<Output> {
            let burn = || match self.1.load(Relaxed) {
                0 => bail!("killed"),
                left => {
                    self.1.store(left - 1, Relaxed);
                    Ok(())
                }
            };
            let host = Host::new(&self.0, crate::host::System);
            burn()?;
            let mut stdout = String::new();
            if cmd.stdin == COPY_STORE.as_bytes() {
                let new = Path::new(&cmd.args[3]);
                assert!(!host.exists(new)?, "not wiped");
                host.write(&new.join("store/mlruns/0/meta.yaml"), 0o640, b"new")?;
                host.write(&new.join("artifacts/0/a"), 0o640, b"a")?;
                stdout = r#"{"found":{"runs":2},"files":{"linked":1,"copied":0},"elsewhere":[],"notes":[]}"#
                    .into();
            } else if cmd.args[0] == "migrate-filestore" {
                let db = cmd.args[4].strip_prefix("sqlite:///").unwrap();
                host.write(Path::new(db), 0o600, b"db")?;
            } else if cmd.args.last().is_some_and(|statement| statement.starts_with("SELECT")) {
                stdout = "2\n".into();
            }
            burn()?;
            Ok(Output { stdout, ..Output::default() })
        }
    }

    #[test]
    fn killed_anywhere_an_import_ends_whole_and_the_original_is_untouched() {
        let data = Path::new("/data/mlruns");
        for can_migrate in [true, false] {
            let wish = Wish { can_migrate, ..WISH };
            for fuse in 0.. {
                let dir = tempfile::tempdir().unwrap();
                let left = Arc::new(AtomicUsize::new(fuse));
                let host = Host::new(dir.path(), World(dir.path().into(), left.clone()));
                host.write(&data.join("0/meta.yaml"), 0o644, b"old").unwrap();
                host.make_dir(&data.join("artifacts")).unwrap();
                let go = || {
                    import(&host, data, &look(&host, data, &wish)?, Path::new("/env"), (1, 1), &mut |_| {})
                };
                let whole = go().is_ok();
                left.store(usize::MAX, Relaxed);
                if !whole {
                    assert!(!host.exists(&data.join("mlflow.db")).unwrap(), "fuse {fuse}");
                    go().unwrap();
                }
                assert_eq!(look(&host, data, &wish).unwrap(), Import::Nothing);
                let names = host.list(data).unwrap();
                let made = if can_migrate { "mlflow.db" } else { "store" };
                let mut expect = vec!["0", "artifacts", "imported.json", made];
                expect.sort_unstable();
                assert_eq!(names, expect, "fuse {fuse}");
                assert_eq!(host.read(&data.join("0/meta.yaml")).unwrap().unwrap(), b"old");
                assert_eq!(host.exists(Path::new(STORE_ENVIRONMENT)).unwrap(), !can_migrate);
                if whole {
                    break;
                }
            }
        }
    }

    #[test]
    fn an_import_stopped_between_its_renames_is_finished() {
        let data = Path::new("/data/mlruns");
        let dir = tempfile::tempdir().unwrap();
        let host = Host::new(dir.path(), World(dir.path().into(), Arc::new(AtomicUsize::new(usize::MAX))));
        host.write(&data.join("0/meta.yaml"), 0o644, b"old").unwrap();
        build(&host, data, data, How::Database, Path::new("/env"), (1, 1), &mut |_| {}).unwrap();
        host.rename(&data.join(".import/artifacts"), &data.join("artifacts")).unwrap();
        let what = look(&host, data, &WISH).unwrap();
        assert_eq!(what, Import::Finish);
        import(&host, data, &what, Path::new("/env"), (1, 1), &mut |_| {}).unwrap();
        assert_eq!(host.list(data).unwrap(), ["0", "artifacts", "imported.json", "mlflow.db"]);
    }

    #[test]
    fn a_file_store_becomes_a_database_once_the_python_allows() {
        let data = Path::new("/data/mlruns");
        let dir = tempfile::tempdir().unwrap();
        let host = Host::new(dir.path(), World(dir.path().into(), Arc::new(AtomicUsize::new(usize::MAX))));
        host.write(&data.join("0/meta.yaml"), 0o644, b"old").unwrap();
        for can_migrate in [false, true] {
            let what = look(&host, data, &Wish { can_migrate, ..WISH }).unwrap();
            import(&host, data, &what, Path::new("/env"), (1, 1), &mut |_| {}).unwrap();
        }
        assert_eq!(host.list(data).unwrap(), ["0", "artifacts", "imported.json", "mlflow.db"]);
        assert!(host.exists(&data.join("artifacts/0/a")).unwrap());
        assert!(!host.exists(Path::new(STORE_ENVIRONMENT)).unwrap());
    }
}
