//! A machine that the team owns, reached by ssh: nothing is rented, and giving back is ending what runs and removing
//! what one run brought. Its key must be known beforehand: a machine met for the first time is not believed.

use super::{Class, Machine, Offer, Provider, Refusal, Rent, Rented, local};
use crate::{
    config,
    gpu::{
        runs,
        spec::{RunId, Spec},
        target::{Ssh, Target},
    },
    host::{Cmd, Host, Output},
};
use anyhow::{Context as _, Result, bail, ensure};
use std::path::{Path, PathBuf};

/// Sockets of connections that commands share. ssh puts a hash of user, host and port for `%C`.
const SOCKETS: &str = "/run/echoes-appliance/ssh";

/// ssh's own exit status, when it was not the command that failed.
const SSH_FAILED: i32 = 255;

/// Seconds: as long as a script may take to end, and then some.
const ANSWER: &str = "120";

/// What gives back, for a POSIX shell: $1 is the run, $2 the home, $3 the mark. The agent knows best what it has done;
/// where there is none, or one that fails, the rest still goes. Says what is left.
const GIVE_BACK: &str = r#"
as_root=
if [ "$(id -u)" != 0 ] && [ -d /run/systemd/system ] && sudo -n true 2> /dev/null; then as_root="sudo -n"; fi
for agent in "$2"/bin/*/echoes-appliance; do
    if [ -x "$agent" ] && $as_root "$agent" agent leave --home "$2" --run "$1" >&2; then break; fi
done
ours() {
    for file in $(grep -lszxF -e "$3=$1" /proc/[0-9]*/environ 2> /dev/null); do
        file=${file#/proc/} && echo "${file%/environ}"
    done
}
for id in $(ours "$@"); do $as_root kill -KILL "$id" 2> /dev/null; done
$as_root rm -rf -- "$2/runs/$1"
for id in $(ours "$@"); do echo "process $id"; done
if [ -e "$2/runs/$1" ]; then echo "$2/runs/$1"; fi
"#;

/// Set aside what a run made, for a POSIX shell: $1 is the run, $2 the home. Says where it is then, if there is any.
const KEEP: &str = r#"set -e; if [ -d "$2/runs/$1" ] && [ ! -L "$2/runs/$1" ]; then mkdir -p -m 700 "$2/kept"; mv -- "$2/runs/$1" "$2/kept/$1"; fi; if [ -d "$2/kept/$1" ]; then echo "$2/kept/$1"; fi"#;

/// Make what was set aside the run's again, for as long as it is fetched: given back, the link goes and what it leads to stays.
const LINK: &str = r#"set -e; [ -d "$2/kept/$1" ]; mkdir -p "$2/runs"; ln -sfn -- "$2/kept/$1" "$2/runs/$1""#;

/// What was set aside is not wanted any more.
const FORGET: &str =
    r#"kept="${2:?}/kept/${1:?}"; chmod -R u+rwX -- "$kept" 2> /dev/null; rm -rf -- "$kept""#;

/// How to get to it: with the settings' key, or root's own.
pub fn reach(gpu: &config::Gpu, user: &str, host: &str, port: u16) -> Ssh {
    Ssh {
        user: user.into(),
        host: host.into(),
        port,
        identity: gpu.ssh_key.to_path(),
        known_hosts: gpu.known_hosts.to_path(),
        control: Path::new(SOCKETS).join("%C"),
    }
}

pub struct Owned<'a> {
    pub host: &'a Host,
    pub ssh: Ssh,
}

impl Owned<'_> {
    fn ask(&self, script: &str, arguments: &[&str]) -> Result<Output> {
        if let Some(dir) = self.ssh.control.parent() {
            self.host.make_dir(dir)?;
        }
        let words = [&["-c", script, "sh"], arguments].concat();
        let Cmd { program, args, .. } = Target::Ssh(self.ssh.clone()).cmd(Cmd::new("sh", words));
        // A machine that holds the line and says nothing would hold us, too.
        let bound = ["--kill-after=5", ANSWER, &program].map(Into::into).to_vec();
        self.host.ask(&Cmd::new("timeout", [bound, args].concat()))
    }

    /// What it answered; an error when it could not be asked.
    fn answer(&self, script: &str, arguments: &[&str]) -> Result<String> {
        let name = &self.ssh.host;
        let out = self.ask(script, arguments)?;
        ensure!(out.ok(), "asking {name}: exit status {}: {}", out.code, printable(&out.stderr));
        Ok(out.stdout)
    }

    /// Whether it lets us in, and where we would live.
    pub fn meet(&self) -> Result<Rent> {
        let out = self.ask(r#"printf %s "$HOME""#, &[])?;
        if out.code == SSH_FAILED {
            return match refusal(&self.ssh, &out.stderr) {
                Some(refusal) => Ok(Rent::Refused(refusal)),
                None => bail!("connecting to {}: {}", self.ssh.host, printable(&out.stderr)),
            };
        }
        ensure!(out.ok(), "asking {}: exit status {}: {}", self.ssh.host, out.code, printable(&out.stderr));
        let home = parse_home(&out.stdout)?;
        Ok(Rent::Here(Machine { target: Target::Ssh(self.ssh.clone()), home, data: None }))
    }

    fn home(&self) -> Result<PathBuf> {
        parse_home(&self.answer(r#"printf %s "$HOME""#, &[])?)
    }
}

impl Provider for Owned<'_> {
    fn rent(&self, _: &Spec, _: &Offer) -> Result<Rent> {
        self.meet()
    }

    fn rent_from_copy(&self, spec: &Spec, _: &Offer, copy: &str) -> Result<Rent> {
        let home = self.home()?;
        let there = home.to_str().context("a path over there that is not UTF-8")?;
        let linked = self.answer(LINK, &[spec.run.as_str(), there]);
        linked.with_context(|| format!("looking for {copy}"))?;
        Ok(Rent::Here(Machine { target: Target::Ssh(self.ssh.clone()), home, data: None }))
    }

    fn can_keep(&self) -> bool {
        true
    }

    fn keep(&self, run: &RunId) -> Result<Option<String>> {
        let home = self.home()?;
        let home = home.to_str().context("a path over there that is not UTF-8")?;
        let said = self.answer(KEEP, &[run.as_str(), home])?;
        let place = said.lines().next().map(printable).filter(|place| !place.is_empty());
        Ok(place.map(|place| format!("{}:{place}", self.ssh.host)))
    }

    fn forget(&self, run: &RunId) -> Result<bool> {
        let home = self.home()?;
        let home = home.to_str().context("a path over there that is not UTF-8")?;
        self.answer(FORGET, &[run.as_str(), home])?;
        Ok(true)
    }

    fn give_back(&self, run: &RunId) -> Result<Vec<String>> {
        // A machine that never let us in, and never may, has nothing of ours.
        let state = runs::state(self.host, run)?;
        if state.as_ref().is_some_and(|state| state.rentals.iter().all(|rental| rental.came.is_none())) {
            return Ok(Vec::new());
        }
        // Not all of it is home: what is there stays, and only what runs is ended.
        if state.is_some_and(|state| state.kept.is_some()) {
            self.keep(run)?;
        }
        let home = self.home()?;
        let home = home.to_str().context("a path over there that is not UTF-8")?;
        let said = self.answer(GIVE_BACK, &[run.as_str(), home, local::MARK])?;
        Ok(said.lines().map(printable).collect())
    }

    fn list(&self) -> Result<Vec<Rented>> {
        let runs = self.home()?.join("runs");
        let said = self.answer(r#"ls -1 -- "$1" 2> /dev/null; true"#, &[&runs.display().to_string()])?;
        let rented = |name: &str| Rented {
            id: format!("{}:{}", self.ssh.host, runs.join(printable(name)).display()),
            run: RunId::try_from(name.to_owned()).ok(),
        };
        Ok(said.lines().map(rented).collect())
    }
}

/// Where we live over there. What a machine says is not believed further than it must be.
fn parse_home(said: &str) -> Result<PathBuf> {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-".contains(c);
    let home = Path::new(said);
    let good = home.is_absolute() && said.chars().all(plain) && !said.split('/').any(|part| part == "..");
    ensure!(good && said.len() < 256, "{:?} is no home directory that we could use", printable(said));
    Ok(home.join(".echoes-appliance"))
}

/// Of the ways in which ssh fails, those that trying again does not mend.
fn refusal(ssh: &Ssh, said: &str) -> Option<Refusal> {
    let known = ssh.known_hosts.as_ref().map_or("~root/.ssh/known_hosts".into(), |p| p.display().to_string());
    let place = if ssh.port == 22 { ssh.host.clone() } else { format!("[{}]:{}", ssh.host, ssh.port) };
    let hint = if said.contains("REMOTE HOST IDENTIFICATION HAS CHANGED") {
        format!("find out why {place} has another key; only then `ssh-keygen -R '{place}' -f {known}`")
    } else if said.contains("Host key verification failed") {
        format!(
            "on that machine: `ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub`; here: `ssh-keyscan -p {} {}`, and when both are the same, its line into {known}",
            ssh.port, ssh.host
        )
    } else if said.contains("Permission denied") {
        let key = ssh.identity.as_ref().map_or("root's own key".into(), |p| p.display().to_string());
        format!("put the public half of {key} into ~{}/.ssh/authorized_keys over there", ssh.user)
    } else {
        return None;
    };
    // Its last line is the reason; those before are a banner.
    let last = said.lines().rfind(|line| !line.trim().is_empty()).unwrap_or_default();
    Some(Refusal { class: Class::Final, said: printable(last), hint: Some(hint) })
}

/// What came from elsewhere, for a terminal of ours: short, and without anything that moves its cursor.
fn printable(text: &str) -> String {
    let harmless: String = text.chars().take(500).map(|c| if c.is_control() { ' ' } else { c }).collect();
    harmless.trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::System;

    fn ssh() -> Ssh {
        Ssh {
            user: "ana".into(),
            host: "gpu1".into(),
            port: 2222,
            identity: None,
            known_hosts: None,
            control: "/run/c".into(),
        }
    }

    #[test]
    fn what_ssh_says_is_told_apart_by_whether_trying_again_helps() {
        let unknown = "No ED25519 host key is known for [gpu1]:2222 and you have requested strict checking.\nHost key verification failed.\n";
        let hint = refusal(&ssh(), unknown).unwrap().hint.unwrap();
        assert!(
            hint.contains("ssh-keyscan -p 2222 gpu1") && hint.contains("~root/.ssh/known_hosts"),
            "{hint}"
        );
        let other = "@  WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED!  @\nHost key verification failed.\n";
        assert!(refusal(&ssh(), other).unwrap().hint.unwrap().contains("ssh-keygen -R '[gpu1]:2222'"));
        let denied = refusal(&ssh(), "ana@gpu1: Permission denied (publickey).\n").unwrap();
        assert_eq!(denied.said, "ana@gpu1: Permission denied (publickey).");
        for passing in
            ["ssh: connect to host gpu1 port 22: Connection refused", "Connection closed by peer", ""]
        {
            assert_eq!(refusal(&ssh(), passing), None, "{passing}");
        }
    }

    #[test]
    fn a_home_that_could_mean_something_else_is_refused() {
        assert_eq!(parse_home("/home/ana").unwrap(), Path::new("/home/ana/.echoes-appliance"));
        for bad in ["", "home", "/a b", "/a/../b", "/a\nb", "/a'b", "/\u{1b}[2J"] {
            assert!(parse_home(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn what_came_from_elsewhere_moves_no_cursor() {
        assert_eq!(printable("a\u{1b}[2Jb\u{7}\n"), "a [2Jb");
    }

    #[test]
    fn what_is_given_back_leaves_neither_process_nor_file_and_takes_nobody_else_s() {
        let home = tempfile::tempdir().unwrap();
        let host = Host::new("/", System);
        let run = format!("ssh-{}", std::process::id());
        let other = format!("{run}0");
        for run in [&run, &other] {
            let script = "exec setsid -f sleep 600 > /dev/null 2>&1 < /dev/null";
            host.run(&Cmd::new("sh", ["-c", script]).env(local::MARK, run)).unwrap();
            host.write(&home.path().join("runs").join(run).join("log"), 0o644, b"x").unwrap();
        }
        let at = home.path().to_str().unwrap();
        let given_back = |run: &str| {
            let words = ["-c", GIVE_BACK, "sh", run, at, local::MARK];
            // The kernel takes a moment to bury whoever was ended.
            crate::patience::Patience::seconds(5).until(|| {
                let left = host.run(&Cmd::new("sh", words))?;
                ensure!(left.is_empty(), "{left}");
                Ok(())
            })
        };
        let alive = |run: &str| {
            let mark = format!("{}={run}", local::MARK);
            let look = "grep -lszxF -e \"$1\" /proc/[0-9]*/environ; true";
            !host.run(&Cmd::new("sh", ["-c", look, "sh", &mark])).unwrap().is_empty()
        };
        assert!(alive(&run) && alive(&other));
        given_back(&run).unwrap();
        assert!(!alive(&run) && !home.path().join("runs").join(&run).exists());
        assert!(alive(&other) && home.path().join("runs").join(&other).exists(), "somebody else's goes on");
        given_back(&other).unwrap();
        assert!(!alive(&other));
    }
}
