//! Somebody of this machine, on whose behalf something is read or run: as that person, who may what they may and no more,
//! and in an environment that is theirs alone. To be root and forbid this and that would take to know all that a file of
//! theirs can ask for.

use super::Cmd;
use anyhow::{Context as _, Result};
use nix::unistd::{Gid, Uid, User, geteuid, initgroups, setgid, setgroups, setuid};
use std::{ffi::CString, path::PathBuf};

/// The path that systemd gives to whatever it starts.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The kernel's number of a group for whoever has none of their own.
const NOGROUP: u32 = 65534;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Person {
    pub name: String,
    pub uid: u32,
    pub gid: u32,
    pub home: PathBuf,
    shell: PathBuf,
    /// Whether the machine has an entry for them: else they have no groups to be looked up.
    is_listed: bool,
}

impl From<User> for Person {
    fn from(user: User) -> Self {
        let (uid, gid) = (user.uid.as_raw(), user.gid.as_raw());
        Self { name: user.name, uid, gid, home: user.dir, shell: user.shell, is_listed: true }
    }
}

impl Person {
    /// Whoever has that number: also of somebody who is gone, or whom only a container knew.
    pub fn numbered(uid: u32) -> Result<Self> {
        let user = User::from_uid(uid.into()).with_context(|| format!("looking for user {uid}"))?;
        Ok(user.map_or_else(
            || Self {
                name: uid.to_string(),
                uid,
                gid: NOGROUP,
                home: "/".into(),
                shell: PathBuf::new(),
                is_listed: false,
            },
            Self::from,
        ))
    }

    pub fn named(name: &str) -> Result<Self> {
        let user = User::from_name(name).with_context(|| format!("looking for user {name}"))?;
        user.map(Self::from).with_context(|| format!("there is no user {name} on this machine"))
    }

    pub fn ourselves() -> Result<Self> {
        Self::numbered(geteuid().as_raw())
    }

    pub fn is_us(&self) -> bool {
        geteuid().as_raw() == self.uid
    }

    /// All that there is in it.
    pub fn environment(&self) -> Vec<(String, String)> {
        let home = self.home.to_string_lossy().into_owned();
        let named = [("HOME", &*home), ("USER", &self.name), ("LOGNAME", &self.name), ("PATH", PATH)];
        named.map(|(name, value)| (name.to_owned(), value.to_owned())).into()
    }

    pub fn shell(&self) -> String {
        let shell = self.shell.to_string_lossy();
        if shell.is_empty() { "/bin/sh".into() } else { shell.into_owned() }
    }

    /// The command that runs `cmd` as this person, with their groups, and with no variable but theirs and its own. Nothing
    /// in it may be a secret: its words can be read by all. It gains no rights by a setuid program.
    pub fn cmd(&self, cmd: Cmd) -> Cmd {
        let mut words: Vec<String> = Vec::new();
        if !self.is_us() {
            let groups = if self.is_listed { "--init-groups" } else { "--clear-groups" };
            let (uid, gid) = (self.uid.to_string(), self.gid.to_string());
            let drop = ["setpriv", "--reuid", &uid, "--regid", &gid, groups, "--no-new-privs", "--"];
            words.extend(drop.map(str::to_owned));
        }
        words.extend(["env".into(), "-i".into(), "LC_ALL=C.UTF-8".into()]);
        let environment = self.environment().into_iter().chain(cmd.env);
        words.extend(environment.map(|(name, value)| format!("{name}={value}")));
        words.push(cmd.program);
        words.extend(cmd.args);
        let mut words = words.into_iter();
        Cmd {
            program: words.next().unwrap_or_default(),
            args: words.collect(),
            env: Vec::new(),
            stdin: cmd.stdin,
        }
    }

    /// This process is theirs from now on, with their other groups: the GPU's device may be for one of them. What it was
    /// started with it still has: who has been root begins anew.
    pub fn become_them(&self) -> Result<()> {
        let (uid, gid) = (Uid::from_raw(self.uid), Gid::from_raw(self.gid));
        if self.is_listed {
            initgroups(&CString::new(self.name.clone())?, gid).context("taking the user's groups")?;
        } else {
            setgroups(&[]).context("leaving root's groups")?;
        }
        setgid(gid).context("taking the user's group")?;
        setuid(uid).with_context(|| format!("becoming {}", self.name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::{Host, System};

    #[test]
    fn a_command_has_its_person_s_rights_and_environment_and_no_other() {
        let host = Host::new("/", System);
        let us = Person::ourselves().unwrap();
        let ask = |person: &Person| {
            let cmd = Cmd::new("sh", ["-c", "id -u; id -g; env | sort; cat"]).env("OWN", "a b").stdin("in");
            host.run(&person.cmd(cmd)).unwrap()
        };
        let expected = |person: &Person| {
            let Person { name, uid, gid, home, .. } = person;
            let (home, here) = (home.display(), std::env::current_dir().unwrap());
            format!(
                "{uid}\n{gid}\nHOME={home}\nLC_ALL=C.UTF-8\nLOGNAME={name}\nOWN=a b\nPATH={PATH}\nPWD={}\nUSER={name}\nin",
                here.display()
            )
        };
        assert_eq!(ask(&us), expected(&us));
        if us.uid != 0 {
            eprintln!("SKIPPED: a command as somebody else: only root can start it");
            return;
        }
        for person in [Person::named("nobody").unwrap(), Person::numbered(54_321).unwrap()] {
            assert_eq!(ask(&person), expected(&person));
            let none = host.ask(&person.cmd(Cmd::new("cat", ["/etc/shadow"]))).unwrap();
            assert_ne!(none.code, 0, "{}", person.name);
        }
        assert!(Person::named("no-such-user").is_err());
    }
}
