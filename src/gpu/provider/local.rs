//! This machine as a machine for experiments: nothing is rented, and giving back is ending what runs and removing what
//! was brought. The first try costs nothing.
//!
//! Each person has a home of their own in it: what one person's runs share, another's must not be able to change.

use super::{Machine, Offer, Provider, Rent, Rented, kept_room, room};
use crate::{
    gpu::{
        agent::{site::Site, start},
        runs,
        spec::{RunId, Spec},
        target::Target,
    },
    host::{Cmd, Host, Kind},
};
use anyhow::{Context as _, Result};
use std::path::{Path, PathBuf};

pub const HOMES: &str = "/var/lib/echoes-appliance/machine";

/// What every process of a run carries in its environment.
pub const MARK: &str = "ECHOES_RUN";

pub struct Local<'a> {
    pub host: &'a Host,
    /// A directory for each person.
    pub homes: PathBuf,
}

impl Local<'_> {
    fn all(&self) -> Result<Vec<PathBuf>> {
        Ok(self.host.list(&self.homes)?.into_iter().map(|person| self.homes.join(person)).collect())
    }
}

impl Provider for Local<'_> {
    fn rent(&self, spec: &Spec, _: &Offer) -> Result<Rent> {
        let home = self.homes.join(&spec.owner);
        Ok(Rent::Here(Machine { target: Target::Local, home, data: None }))
    }

    fn rent_from_copy(&self, spec: &Spec, _: &Offer, _: &str) -> Result<Rent> {
        let home = self.homes.join(&spec.owner);
        let kept = kept_room(&home, &spec.run);
        self.host.meta(&kept)?.with_context(|| format!("{} is gone", kept.display()))?;
        // Given back, the link goes and what it leads to stays.
        self.host.link(&room(&home, &spec.run), &kept)?;
        Ok(Rent::Here(Machine { target: Target::Local, home, data: None }))
    }

    fn can_keep(&self) -> bool {
        true
    }

    fn keep(&self, run: &RunId) -> Result<Option<String>> {
        for home in self.all()? {
            let (room, kept) = (room(&home, run), kept_room(&home, run));
            if self.host.meta(&room)?.is_some_and(|meta| meta.kind == Kind::Dir) {
                self.host.make_dir(&home.join("kept"))?;
                self.host.shut(&home.join("kept"))?;
                self.host.rename(&room, &kept)?;
            }
            if self.host.exists(&kept)? {
                return Ok(Some(kept.display().to_string()));
            }
        }
        Ok(None)
    }

    fn forget(&self, run: &RunId) -> Result<bool> {
        for home in self.all()? {
            self.host.remove_tree(&kept_room(&home, run))?;
        }
        Ok(true)
    }

    fn give_back(&self, run: &RunId) -> Result<Vec<String>> {
        // Not all of it is home: what is there stays, and only what runs is ended.
        if runs::state(self.host, run)?.is_some_and(|state| state.kept.is_some()) {
            self.keep(run)?;
        }
        let mut rooms = Vec::new();
        for home in self.all()? {
            rooms.push(room(&home, run));
            start::leave(self.host, &Site { home, run: run.clone() })?;
        }
        let alive = processes(self.host, run)?;
        if !alive.is_empty() {
            // Whatever got away from its agent. One that ended meanwhile is no failure.
            self.host.ask(&Cmd::new("kill", [vec!["-KILL".into()], alive].concat()))?;
        }
        let mut left: Vec<String> =
            processes(self.host, run)?.into_iter().map(|id| format!("process {id}")).collect();
        for room in rooms {
            if self.host.exists(&room)? {
                left.push(room.display().to_string());
            }
        }
        Ok(left)
    }

    fn list(&self) -> Result<Vec<Rented>> {
        let mut all = Vec::new();
        for home in self.all()? {
            let runs = home.join("runs");
            let rented = |name: String| {
                let id = runs.join(&name).display().to_string();
                Rented { id, run: RunId::try_from(name).ok() }
            };
            all.extend(self.host.list(&runs)?.into_iter().map(rented));
        }
        Ok(all)
    }
}

/// The processes of a run, wherever they have gone: an environment is handed on, other than a parent or a group.
fn processes(host: &Host, run: &RunId) -> Result<Vec<String>> {
    let mark = format!("{MARK}={run}");
    let ours = |id: &String| {
        // One that has ended meanwhile cannot be read, and is not there any more.
        let environment = host.read(&Path::new("/proc").join(id).join("environ")).ok().flatten();
        environment.is_some_and(|all| all.split(|b| *b == 0).any(|one| one == mark.as_bytes()))
    };
    let ids = host.list(Path::new("/proc"))?.into_iter().filter(|id| id.bytes().all(|b| b.is_ascii_digit()));
    Ok(ids.filter(ours).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::System;

    #[test]
    fn what_runs_is_ended_wherever_it_went_and_what_was_brought_is_gone() {
        let dir = tempfile::tempdir().unwrap();
        let host = Host::new("/", System);
        let run = RunId::try_from(format!("local-{}", std::process::id())).unwrap();
        let other = RunId::try_from(format!("{run}0")).unwrap();
        let local = Local { host: &host, homes: dir.path().into() };
        let home = dir.path().join("ana");
        let start = |run: &RunId| {
            // In a session of its own, with its own group: what a daemon does to get away.
            let script = "exec setsid -f sleep 600 > /dev/null 2>&1 < /dev/null";
            host.run(&Cmd::new("sh", ["-c", script]).env(MARK, run.as_str())).unwrap();
        };
        start(&run);
        start(&other);
        for file in ["code/train.py", "log"] {
            host.write(&room(&home, &run).join(file), 0o644, b"x").unwrap();
        }
        host.write(&home.join("envs/abc/bin/python"), 0o755, b"x").unwrap();
        assert_eq!(processes(&host, &run).unwrap().len(), 1);
        assert_eq!(local.list().unwrap()[0].run.as_ref(), Some(&run));

        let mut left = local.give_back(&run).unwrap();
        for _ in 0..100 {
            if left.is_empty() {
                break;
            }
            // The kernel takes a moment to bury it.
            std::thread::sleep(std::time::Duration::from_millis(20));
            left = local.give_back(&run).unwrap();
        }
        assert_eq!(left, Vec::<String>::new());
        assert_eq!(local.list().unwrap(), []);
        assert!(host.exists(&home.join("envs/abc/bin/python")).unwrap(), "caches are kept");
        assert_eq!(processes(&host, &other).unwrap().len(), 1, "somebody else's run goes on");
        local.give_back(&other).unwrap();
    }
}
