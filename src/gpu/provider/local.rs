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
    host::{Host, Kind},
    web::hold,
};
use anyhow::{Context as _, Result};
use std::{collections::BTreeSet, path::PathBuf, sync::Mutex};

pub const HOMES: &str = "/var/lib/echoes-appliance/machine";

pub struct Local<'a> {
    host: &'a Host,
    /// A directory for each person.
    homes: PathBuf,
    outlived: Mutex<BTreeSet<String>>,
}

impl<'a> Local<'a> {
    pub fn new(host: &'a Host, homes: PathBuf) -> Self {
        Self { host, homes, outlived: Mutex::default() }
    }

    fn all(&self) -> Result<Vec<PathBuf>> {
        Ok(self.host.list(&self.homes)?.into_iter().map(|person| self.homes.join(person)).collect())
    }

    /// Where something of the run may be: in whose home it is, and in that of who asked for it. In another's home its
    /// processes would be a stranger's.
    fn homes_of(&self, run: &RunId) -> Result<Vec<PathBuf>> {
        let owner = runs::state(self.host, run)?.map(|state| self.homes.join(state.spec.owner));
        let mut homes = Vec::new();
        for home in self.all()? {
            if Some(&home) == owner.as_ref() || self.host.exists(&room(&home, run))? {
                homes.push(home);
            }
        }
        Ok(homes)
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
                // The person goes through it when it is pulled; what is in it is theirs alone.
                self.host.make_dir(&home.join("kept"))?;
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
        let mut left = Vec::new();
        for home in self.homes_of(run)? {
            let room = room(&home, run);
            let alive = start::leave(self.host, &Site { home, run: run.clone() })?;
            left.extend(alive.left.iter().map(ToString::to_string));
            hold(&self.outlived).extend(alive.outlived.iter().map(ToString::to_string));
            if self.host.exists(&room)? {
                left.push(room.display().to_string());
            }
        }
        Ok(left)
    }

    fn outlived(&self) -> Vec<String> {
        hold(&self.outlived).iter().cloned().collect()
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

#[cfg(test)]
// Tests look at files and processes directly.
#[allow(clippy::disallowed_methods, clippy::disallowed_types)]
mod tests {
    use super::*;
    use crate::{gpu::agent::processes::MARK, host::System};
    use std::{
        path::Path,
        process::{Child, Command},
    };

    /// Somebody who does nothing, until dropped.
    struct Sleeper(Child);

    impl Sleeper {
        fn start(command: &mut Command) -> Self {
            Self(command.spawn().unwrap())
        }

        fn is_alive(&mut self) -> bool {
            self.0.try_wait().unwrap().is_none()
        }

        fn name(&self) -> String {
            format!("process {} (sleep)", self.0.id())
        }
    }

    impl Drop for Sleeper {
        fn drop(&mut self) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }

    fn sleep() -> Command {
        let mut command = Command::new("setsid");
        command.args(["sleep", "600"]).env_clear().current_dir("/");
        command
    }

    fn until_asleep(sleepers: &[&Sleeper]) {
        let asleep = || -> Result<()> {
            for sleeper in sleepers {
                let line =
                    Host::new("/", System).read(Path::new(&format!("/proc/{}/cmdline", sleeper.0.id())))?;
                anyhow::ensure!(line.unwrap_or_default().starts_with(b"sleep"));
            }
            Ok(())
        };
        crate::patience::Patience::seconds(10).until(asleep).unwrap();
    }

    #[test]
    fn what_runs_is_ended_wherever_it_went_and_what_was_brought_is_gone() {
        let dir = tempfile::tempdir().unwrap();
        let host = Host::new("/", System);
        let run = RunId::try_from(format!("local-{}", std::process::id())).unwrap();
        let other = RunId::try_from(format!("{run}0")).unwrap();
        let local = Local::new(&host, dir.path().into());
        let home = dir.path().join("ana");
        for run in [&run, &other] {
            for file in ["code/train.py", "out/log"] {
                host.write(&room(&home, run).join(file), 0o644, b"x").unwrap();
            }
        }
        host.write(&home.join("envs/abc/bin/python"), 0o755, b"x").unwrap();
        let at = room(&home, &run);
        let open = || std::fs::File::open(at.join("out/log")).unwrap();
        // What a daemon does to get away, and what a title does to an environment.
        let mut ours = [
            Sleeper::start(sleep().env(MARK, run.as_str())),
            Sleeper::start(sleep().env("ECHOES_OUT", at.join("out"))),
            Sleeper::start(sleep().current_dir(at.join("code"))),
            Sleeper::start(sleep().stdin(open())),
        ];
        let mut others = [Sleeper::start(sleep().env(MARK, other.as_str())), Sleeper::start(&mut sleep())];
        until_asleep(&ours.iter().chain(&others).collect::<Vec<_>>());
        assert_eq!(local.list().unwrap()[0].run.as_ref(), Some(&run));

        assert_eq!(local.give_back(&run).unwrap(), Vec::<String>::new());
        for (n, sleeper) in ours.iter_mut().enumerate() {
            assert!(!sleeper.is_alive(), "{n}");
        }
        assert!(others.iter_mut().all(Sleeper::is_alive), "somebody else's run goes on");
        assert_eq!((local.list().unwrap().len(), local.outlived()), (1, Vec::new()));
        assert!(host.exists(&home.join("envs/abc/bin/python")).unwrap(), "caches are kept");
        local.give_back(&other).unwrap();
        assert!(!others[0].is_alive() && others[1].is_alive());
    }

    #[test]
    fn a_stranger_who_carries_our_variable_is_named_and_neither_ended_nor_waited_for() {
        if !nix::unistd::geteuid().is_root() {
            eprintln!("SKIPPED: a stranger's process: only root can start it");
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let host = Host::new("/", System);
        let run = RunId::try_from(format!("strange-{}", std::process::id())).unwrap();
        let local = Local::new(&host, dir.path().into());
        host.write(&room(&dir.path().join("ana"), &run).join("log"), 0o644, b"x").unwrap();
        let nobody = nix::unistd::User::from_name("nobody").unwrap().unwrap().uid;
        let mut command = Command::new("setpriv");
        let words = ["--reuid", &nobody.to_string(), "--clear-groups", "setsid", "sleep", "600"];
        let mut stranger =
            Sleeper::start(command.args(words).env_clear().env(MARK, run.as_str()).current_dir("/"));
        // Somebody who makes it look as if it were in there: by a file that was handed over, or a mount of their own.
        let file = std::fs::File::open(room(&dir.path().join("ana"), &run).join("log")).unwrap();
        let mut command = Command::new("setpriv");
        let out = room(&dir.path().join("ana"), &run).join("out");
        command.args(words).env_clear().env("ECHOES_OUT", out).current_dir("/").stdin(file);
        let mut inside = Sleeper::start(&mut command);
        until_asleep(&[&stranger, &inside]);
        assert_eq!(local.give_back(&run).unwrap(), Vec::<String>::new());
        assert!(stranger.is_alive() && inside.is_alive());
        let mut names = [stranger.name(), inside.name()];
        names.sort();
        assert_eq!(local.outlived(), names);
    }
}
