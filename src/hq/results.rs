//! Results that runs of earlier versions left for everybody to read. Each folder is shut for strangers, which shuts what is
//! in it; its old mode is in the receipt, and comes back when all of ours goes. Only a folder of a run that we know is ours.
//! Members write beside them, so none is reached through a link.

use super::{
    receipt::{Book, Entry},
    resource::Seen,
};
use crate::{
    gpu::{runs, spec::RunId},
    host::{
        Host,
        beneath::{Beneath, Rel},
    },
};
use anyhow::Result;
use std::path::{Path, PathBuf};

/// Its person's, to be read by the team; what is made in it stays the team's (setgid).
const SHUT: u32 = 0o2750;

#[derive(Debug, Clone, PartialEq)]
pub struct Results {
    /// Where each run has a folder.
    pub dir: PathBuf,
    /// Where the disk is mounted that they are on. What is on it is known only then.
    pub disk: Option<PathBuf>,
}

impl Results {
    pub fn look(&self, host: &Host) -> Result<Seen> {
        if let Some(at) = &self.disk
            && !host.is_mount_point(at)?
        {
            return Ok(Seen::Wrong(format!("the disk of {} is not mounted yet", at.display())));
        }
        let open = self.open(host)?;
        Ok(match open.first() {
            None => Seen::Right,
            Some((folder, mode)) => {
                Seen::Wrong(format!("{} has mode {mode:04o} instead of {SHUT:04o}", folder.path().display()))
            }
        })
    }

    pub fn make(&self, host: &Host, book: &Book) -> Result<()> {
        for (folder, mode) in self.open(host)? {
            book.note(Entry::Shut { path: folder.path().into(), mode })?;
            folder.set_access(SHUT)?;
        }
        Ok(())
    }

    /// The folders that strangers may look into, and their modes.
    fn open(&self, host: &Host) -> Result<Vec<(Beneath, u32)>> {
        let (mut open, team) = (Vec::new(), host.gid(super::mlflow::TEAM)?);
        let Some(all) = Beneath::open(host, &self.dir)? else { return Ok(open) };
        for name in host.list(&self.dir)? {
            let Ok(run) = RunId::try_from(name) else { continue };
            if !host.exists(&runs::dir(&run))? {
                continue;
            }
            let Some(folder) = all.there(&Rel::new(run.as_str())?)? else { continue };
            let (mode, uid, gid) = folder.access()?;
            // Where there was no such group, everybody's right is the only one by which its person reads it.
            if mode & 0o007 != 0 && (uid != 0 || Some(gid) == team) {
                open.push((folder, mode));
            }
        }
        Ok(open)
    }
}

fn folder(host: &Host, path: &Path) -> Result<Option<Beneath>> {
    let (Some(dir), Some(name)) = (path.parent(), path.file_name()) else { return Ok(None) };
    let Some(all) = Beneath::open(host, dir)? else { return Ok(None) };
    all.there(&Rel::new(&name.to_string_lossy())?)
}

/// Whether it is as we made it.
pub fn is_shut(host: &Host, path: &Path) -> Result<bool> {
    Ok(folder(host, path)?.map(|folder| folder.access()).transpose()?.is_some_and(|(mode, ..)| mode == SHUT))
}

pub fn reopen(host: &Host, path: &Path, mode: u32) -> Result<()> {
    folder(host, path)?.map_or(Ok(()), |folder| folder.set_access(mode))
}

#[cfg(test)]
// Tests make what earlier versions made.
#[allow(clippy::disallowed_methods)]
mod tests {
    use super::*;
    use crate::{
        host::System,
        hq::{
            receipt::Receipt,
            resource::Resource,
            undo::{Fate, Undo, unwanted},
        },
        ui::Ui,
    };
    use std::{fs, os::unix::fs::PermissionsExt as _};

    #[test]
    fn results_that_everybody_could_read_are_shut_and_are_as_before_when_ours_goes() {
        let dir = tempfile::tempdir().unwrap();
        let host = Host::new(dir.path(), System);
        let results = Results { dir: "/data/azure_results".into(), disk: None };
        let at = |name: &str| dir.path().join("data/azure_results").join(name);
        let bits = |name: &str| fs::metadata(at(name)).unwrap().permissions().mode() & 0o7777;
        let (uid, gid) = (nix::unistd::geteuid(), nix::unistd::getegid());
        let group = format!("echoes:x:{gid}:\n");
        host.write(Path::new("/etc/group"), 0o644, group.as_bytes()).unwrap();
        for (name, mode) in [("esn", 0o2755), ("shut", 0o2750), ("strangers", 0o2755)] {
            fs::create_dir_all(at(name)).unwrap();
            fs::set_permissions(at(name), fs::Permissions::from_mode(mode)).unwrap();
        }
        for name in ["esn", "shut", "linked"] {
            host.make_dir(&runs::dir(&RunId::try_from(name.to_owned()).unwrap())).unwrap();
        }
        // A member has put a link in the place of a run's folder.
        fs::create_dir(dir.path().join("else")).unwrap();
        std::os::unix::fs::symlink(dir.path().join("else"), at("linked")).unwrap();
        assert!(
            matches!(results.look(&host).unwrap(), Seen::Wrong(why) if why.contains("azure_results/esn"))
        );
        let book = Book::at_once(&host).unwrap();
        results.make(&host, &book).unwrap();
        results.make(&host, &book).unwrap();
        assert_eq!(results.look(&host).unwrap(), Seen::Right);
        assert_eq!((bits("esn"), bits("shut"), bits("strangers")), (0o2750, 0o2750, 0o2755), "{uid}");
        assert_eq!(fs::metadata(dir.path().join("else")).unwrap().permissions().mode() & 0o7, 0o5);
        let receipt = Receipt::read(&host).unwrap();
        let esn = PathBuf::from("/data/azure_results/esn");
        assert_eq!(receipt.shut, [(esn.clone(), 0o2755)].into());

        let wanted = [Resource::Results(results)];
        assert_eq!(unwanted(&receipt, &wanted), [], "as long as anything of ours is wanted");
        let undo = Undo::Mode { path: esn, mode: 0o2755 };
        assert_eq!(unwanted(&receipt, &[]), std::slice::from_ref(&undo));
        assert_eq!(undo.fate(&host, &receipt).unwrap(), Fate::Goes);
        let step = Ui::new(true).step("test");
        assert_eq!(undo.undo(&host, &book, &step).unwrap(), None);
        assert_eq!(bits("esn"), 0o2755);
        assert!(Receipt::read(&host).unwrap().is_empty());
    }
}
