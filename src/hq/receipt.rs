//! What we did to this machine, so that it can be undone. A fold over a journal.
//!
//! The note of a thing comes before the thing: whatever is on the machine and not in here is not ours.

use super::{line::Replaced, service::Service};
use crate::{
    host::{Busy, Host},
    journal::{Damaged, Journal, or_mend},
    ui::Ui,
};
use anyhow::Result;
use serde::{Deserialize, Serialize};
use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

/// Outlives everything else of ours: removed last.
pub const PATH: &str = "/var/lib/echoes-appliance/receipt.jsonl";

/// Once released, a variant is never changed; `tests/receipts/` keeps one of each.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "did", rename_all = "kebab-case")]
pub enum Entry {
    /// These packages, none of which was there, are about to be installed.
    Installing {
        packages: Vec<String>,
    },
    /// `dirs` are the directories that had to be made for it.
    Wrote {
        path: PathBuf,
        hash: String,
        dirs: Vec<PathBuf>,
    },
    Linked {
        path: PathBuf,
        target: PathBuf,
        dirs: Vec<PathBuf>,
    },
    /// A link of the distribution's that is in our way was taken out.
    SetAside {
        path: PathBuf,
        target: PathBuf,
    },
    /// One line of a package's own file, which was `was`; empty where there was none.
    Replaced {
        path: PathBuf,
        was: String,
        now: String,
    },
    /// Something whose contents change without us (a password file, keys): ours whatever it holds.
    Created {
        path: PathBuf,
        dirs: Vec<PathBuf>,
    },
    /// A directory that is ours with all that is below it.
    Built {
        path: PathBuf,
        dirs: Vec<PathBuf>,
    },
    /// Directories that people put things into: removed only when empty.
    MadeDirs {
        dirs: Vec<PathBuf>,
    },
    AddedUsers {
        users: Vec<String>,
        groups: Vec<String>,
    },
    /// A file system is about to be made on a disk that was proven blank.
    Formatting {
        device: String,
        uuid: String,
        size: u64,
    },
    Enabled {
        unit: String,
    },
    /// `what` has now taken in the files whose hash this is.
    Loaded {
        what: String,
        hash: String,
    },
    /// The services that are installed.
    Services {
        names: BTreeSet<String>,
    },
    /// A directory that everybody could look into is about to be shut for strangers; `mode` is what it was.
    Shut {
        path: PathBuf,
        mode: u32,
    },
    /// Undone.
    Disabled {
        unit: String,
    },
    Removed {
        path: PathBuf,
    },
    PutBack {
        path: PathBuf,
    },
    /// Has the mode that it had before it was shut.
    Reopened {
        path: PathBuf,
    },
    RemovedUsers {
        users: Vec<String>,
        groups: Vec<String>,
    },
    RemovedPackages {
        packages: Vec<String>,
    },
}

#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Receipt {
    pub packages: BTreeSet<String>,
    /// The files that are ours, and the hash of everything we ever meant to put in each. Meant: the note comes
    /// before the write, so after a crash the file may hold any of them.
    pub files: BTreeMap<PathBuf, BTreeSet<String>>,
    pub links: BTreeMap<PathBuf, BTreeSet<PathBuf>>,
    pub aside: BTreeMap<PathBuf, PathBuf>,
    /// Directories of results, and the mode that each had before we shut it.
    pub shut: BTreeMap<PathBuf, u32>,
    pub lines: BTreeMap<PathBuf, Replaced>,
    pub created: BTreeSet<PathBuf>,
    pub built: BTreeSet<PathBuf>,
    /// Directories to remove when nothing is left in them, whoever they were made for.
    pub dirs: BTreeSet<PathBuf>,
    pub users: BTreeSet<String>,
    pub groups: BTreeSet<String>,
    /// The disks we were about to format: UUID → device and size in bytes.
    pub formatting: BTreeMap<String, (String, u64)>,
    pub units: BTreeSet<String>,
    pub loaded: BTreeMap<String, String>,
    pub services: BTreeSet<String>,
}

impl Receipt {
    pub fn note(&mut self, entry: Entry) {
        match entry {
            Entry::Installing { packages } => self.packages.extend(packages),
            Entry::Wrote { path, hash, dirs } => {
                self.files.entry(path).or_default().insert(hash);
                self.dirs.extend(dirs);
            }
            Entry::Linked { path, target, dirs } => {
                self.links.entry(path).or_default().insert(target);
                self.dirs.extend(dirs);
            }
            Entry::SetAside { path, target } => drop(self.aside.insert(path, target)),
            Entry::Replaced { path, was, now } => {
                // What was there first is what comes back.
                let line = self.lines.entry(path).or_insert_with(|| Replaced { was, ..Replaced::default() });
                line.now.insert(now);
            }
            Entry::Created { path, dirs } => {
                self.created.insert(path);
                self.dirs.extend(dirs);
            }
            Entry::Built { path, dirs } => {
                self.built.insert(path);
                self.dirs.extend(dirs);
            }
            Entry::MadeDirs { dirs } => self.dirs.extend(dirs),
            Entry::AddedUsers { users, groups } => {
                self.users.extend(users);
                self.groups.extend(groups);
            }
            Entry::Formatting { device, uuid, size } => drop(self.formatting.insert(uuid, (device, size))),
            Entry::Enabled { unit } => drop(self.units.insert(unit)),
            Entry::Loaded { what, hash } => drop(self.loaded.insert(what, hash)),
            Entry::Services { names } => self.services = names,
            // The first: after a crash it is noted once more.
            Entry::Shut { path, mode } => drop(self.shut.entry(path).or_insert(mode)),
            Entry::Reopened { path } => drop(self.shut.remove(&path)),
            Entry::Disabled { unit } => {
                self.units.remove(&unit);
                self.loaded.remove(&unit);
            }
            Entry::Removed { path } => {
                self.files.remove(&path);
                self.links.remove(&path);
                self.created.remove(&path);
                self.built.remove(&path);
                self.dirs.remove(&path);
            }
            Entry::PutBack { path } => {
                self.aside.remove(&path);
                self.lines.remove(&path);
            }
            Entry::RemovedUsers { users, groups } => {
                self.users.retain(|u| !users.contains(u));
                self.groups.retain(|g| !groups.contains(g));
            }
            Entry::RemovedPackages { packages } => self.packages.retain(|p| !packages.contains(p)),
        }
    }

    /// The services that are installed.
    pub fn installed(&self) -> Vec<Service> {
        Service::ALL.into_iter().filter(|service| self.services.contains(service.name())).collect()
    }

    /// Whether nothing of ours is left.
    pub fn is_empty(&self) -> bool {
        let Self {
            packages,
            files,
            links,
            aside,
            shut,
            lines,
            created,
            built,
            dirs,
            users,
            groups,
            units,
            ..
        } = self;
        packages.is_empty()
            && files.is_empty()
            && links.is_empty()
            && aside.is_empty()
            && shut.is_empty()
            && lines.is_empty()
            && created.is_empty()
            && built.is_empty()
            && dirs.is_empty()
            && users.is_empty()
            && groups.is_empty()
            && units.is_empty()
    }

    /// The receipt as it stands, for those who only ask.
    pub fn read(host: &Host) -> Result<Self> {
        let mut receipt = Self::default();
        let read = Journal::read_with(host, Path::new(PATH), &mut |Line { entry, .. }| receipt.note(entry));
        or_mend(read, mend).map(|()| receipt)
    }
}

/// Each line stands for itself: without one of them the others hold.
fn mend(damaged: &Damaged) -> String {
    let line = damaged.line;
    format!(
        "keep a copy, and take that line out: cp -a {PATH} {PATH}.damaged && sed -i {line}d {PATH}\n\
         what it noted is then nobody's: if `echoes-appliance plan` finds it in the way, the copy says what it was"
    )
}

/// The receipt together with the right to add to it: one process at a time, any of its threads.
pub struct Book(Mutex<Pages>);

struct Pages {
    receipt: Arc<Receipt>,
    journal: Journal<Line>,
}

/// An entry as it stands in the file.
#[derive(Debug, Serialize, Deserialize)]
struct Line {
    /// Seconds since 1970.
    at: u64,
    #[serde(flatten)]
    entry: Entry,
}

/// A look of the timer's at the certificates is over in a second; but for a minute where nginx does not answer, as after a
/// killed install, and an authority takes its time too.
const OTHERS: Duration = Duration::from_secs(120);

/// A renewal that has nothing to do is over by then.
const WORTH_A_WORD: Duration = Duration::from_secs(5);

impl Book {
    /// Waits for another of ours, and says for whom: whoever is killed and begun again need not know of the timer's.
    pub fn open(host: &Host, ui: &Ui) -> Result<Self> {
        let (since, mut told) = (Instant::now(), None);
        loop {
            let busy = match Self::at_once(host) {
                Err(e) if since.elapsed() < OTHERS => e.downcast::<Busy>()?,
                opened => return opened,
            };
            if since.elapsed() > WORTH_A_WORD && told != busy.holder {
                busy.holder.iter().for_each(|holder| ui.say(format_args!("waiting for {holder}")));
                told = busy.holder;
            }
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    /// As `open`, for whom another one at work is reason enough to do nothing.
    pub fn at_once(host: &Host) -> Result<Self> {
        let mut receipt = Receipt::default();
        let open = Journal::open_with(host, Path::new(PATH), &mut |Line { entry, .. }| receipt.note(entry));
        let journal = or_mend(open, mend)?;
        Ok(Self(Mutex::new(Pages { receipt: Arc::new(receipt), journal })))
    }

    /// As it stands now; later notes are not in it.
    pub fn receipt(&self) -> Arc<Receipt> {
        Arc::clone(&self.pages().receipt)
    }

    /// On disk when this returns; only then act. What is in it already is not written again, so that each entry is
    /// a step forward however often the steps are cut short.
    pub fn note(&self, entry: Entry) -> Result<()> {
        let mut pages = self.pages();
        let mut next = (*pages.receipt).clone();
        next.note(entry.clone());
        if next == *pages.receipt {
            return Ok(());
        }
        let at = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
        pages.journal.append(&Line { at, entry })?;
        pages.receipt = Arc::new(next);
        Ok(())
    }

    fn pages(&self) -> MutexGuard<'_, Pages> {
        // A thread that panicked in here wrote a whole line or none.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        host::{Cmd, System},
        ui::told,
    };

    /// One of each entry, as the first release wrote them. Never changed: machines out there hold these.
    const V1: &str = include_str!("../../tests/receipts/v1.jsonl");

    fn read(text: &str) -> Result<Receipt> {
        let dir = tempfile::tempdir().unwrap();
        let host = Host::new(dir.path(), System);
        host.write(Path::new(PATH), 0o600, text.as_bytes()).unwrap();
        Receipt::read(&host)
    }

    #[test]
    fn receipts_of_every_format_load_for_ever() {
        let did = |line: &str| {
            let line: serde_json::Value = serde_json::from_str(line).unwrap();
            line["did"].as_str().unwrap().to_owned()
        };
        assert_eq!(V1.lines().map(did).collect::<BTreeSet<_>>().len(), 19, "one of each");
        // It ends in the undoing of everything, so that nothing is left if each entry was understood.
        let receipt = read(V1).unwrap();
        assert!(receipt.is_empty(), "{receipt:?}");
        let before: String = V1.lines().take(12).map(|line| format!("{line}\n")).collect();
        let receipt = read(&before).unwrap();
        assert_eq!((receipt.files.len(), receipt.dirs.len()), (1, 3));
        assert_eq!(receipt.loaded["mlflow.service"], "abc");
    }

    /// Entries that came later, as they were first written. Never changed either.
    #[test]
    fn a_line_of_a_packages_file_is_noted_as_it_was_first_until_it_is_put_back() {
        let noted = [
            r#"{"v":1,"at":0,"did":"replaced","path":"/etc/x","was":"768","now":"8192"}"#,
            r#"{"v":1,"at":1,"did":"replaced","path":"/etc/x","was":"8192","now":"9000"}"#,
        ]
        .map(|line| format!("{line}\n"))
        .concat();
        let receipt = read(&noted).unwrap();
        let line = &receipt.lines[Path::new("/etc/x")];
        assert_eq!((line.was.as_str(), line.now.len()), ("768", 2));
        assert!(!receipt.is_empty());
        let back = format!("{noted}{}\n", r#"{"v":1,"at":2,"did":"put-back","path":"/etc/x"}"#);
        assert!(read(&back).unwrap().is_empty());
    }

    #[test]
    fn another_one_at_work_is_waited_for_unless_at_once_is_asked() {
        let dir = tempfile::tempdir().unwrap();
        let host = Host::new(dir.path(), System);
        let other = Book::at_once(&host).unwrap();
        assert!(Book::at_once(&host).err().unwrap().is::<Busy>());
        std::thread::scope(|scope| {
            scope.spawn(move || {
                std::thread::sleep(Duration::from_millis(300));
                drop(other);
            });
            Book::open(&host, &Ui::new(true)).unwrap();
        });
        let broken = b"no entry\n";
        host.write(Path::new(PATH), 0o600, broken).unwrap();
        let since = Instant::now();
        Book::open(&host, &Ui::new(true)).err().unwrap();
        assert!(since.elapsed() < Duration::from_secs(60), "what waiting does not mend is not waited for");
    }

    #[test]
    fn an_older_program_says_that_it_is_the_older_one() {
        let err = read("{\"v\":9,\"at\":0,\"did\":\"disabled\",\"unit\":\"x\"}\n").unwrap_err();
        let (said, hint) = told(&err);
        assert!(said[0].contains("newer echoes-appliance"), "{said:?}");
        assert!(hint.unwrap().contains("or a later one"), "{hint:?}");
    }

    /// As a crash leaves it in the middle of a character: the same for whoever asks and whoever goes on with it.
    #[test]
    fn a_receipt_torn_at_any_byte_is_gone_on_with() {
        let dir = tempfile::tempdir().unwrap();
        let host = Host::new(dir.path(), System);
        let wrote = |path: &str| Entry::Wrote { path: path.into(), hash: "1".into(), dirs: Vec::new() };
        let book = Book::at_once(&host).unwrap();
        book.note(wrote("/srv/größe")).unwrap();
        book.note(wrote("/srv/学习率")).unwrap();
        drop(book);
        let whole = host.read(Path::new(PATH)).unwrap().unwrap();
        let first = whole.iter().position(|byte| *byte == b'\n').unwrap() + 1;
        for cut in first..whole.len() {
            host.write(Path::new(PATH), 0o600, &whole[..cut]).unwrap();
            let read = Receipt::read(&host).unwrap();
            assert_eq!(
                read.files.keys().map(|path| path.display().to_string()).collect::<Vec<_>>(),
                ["/srv/größe"]
            );
            let book = Book::at_once(&host).unwrap();
            assert_eq!(*book.receipt(), read, "cut at {cut}");
            book.note(wrote("/srv/学习率")).unwrap();
            drop(book);
            assert_eq!(Receipt::read(&host).unwrap().files.len(), 2, "cut at {cut}");
        }
    }

    #[test]
    fn a_damaged_receipt_names_its_line_and_the_way_on_which_works() {
        let dir = tempfile::tempdir().unwrap();
        let host = Host::new(dir.path(), System);
        let text = V1.replacen("installing", "instal,ing", 1).replacen("\"wrote\"", "\"wrote", 1);
        host.write(Path::new(PATH), 0o600, text.as_bytes()).unwrap();
        for line in [2, 2] {
            let errors = [Receipt::read(&host).unwrap_err(), Book::at_once(&host).err().unwrap()];
            for error in errors {
                let (said, hint) = told(&error);
                assert!(said[0].starts_with(&format!("{PATH} is damaged in line {line}: ")), "{said:?}");
                let way = format!("cp -a {PATH} {PATH}.damaged && sed -i {line}d {PATH}");
                assert!(hint.unwrap().contains(&way), "{hint:?}");
            }
            let there = host.path(Path::new(PATH));
            host.run(&Cmd::new("sed", ["-i", &format!("{line}d"), &there.display().to_string()])).unwrap();
        }
        assert!(Receipt::read(&host).unwrap().is_empty());
    }

    #[test]
    fn fuzz_receipt_is_folded_or_damaged() {
        crate::fuzz::run("receipt", &["\"wrote\"", "\"hash\"", "\"dirs\":[]", "/etc/nginx"], |bytes| {
            let mut receipt = Receipt::default();
            crate::journal::read_bytes::<Line>(bytes)?.into_iter().for_each(|line| receipt.note(line.entry));
            let _ = (receipt.is_empty(), receipt.installed(), crate::hq::undo::unwanted(&receipt, &[]));
            Ok(())
        });
    }
}
