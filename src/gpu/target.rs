//! How a command gets to the machine it is for: a pure function from a command to the command that runs it there.
//! Here it is the identity, elsewhere it is ssh; so what happens on a machine is written once.
//!
//! The machine's key is known before the first connection: whoever answers with another is not talked to.

use crate::host::Cmd;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Target {
    Local,
    Ssh(Ssh),
}

/// OpenSSH's own words for how to reach a machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ssh {
    pub user: String,
    pub host: String,
    pub port: u16,
    /// Our private key. None: whatever the user's own configuration says.
    pub identity: Option<PathBuf>,
    /// The only keys that are believed. None: the user's own list.
    pub known_hosts: Option<PathBuf>,
    /// The socket of the one connection that all commands share.
    pub control: PathBuf,
}

impl Target {
    /// The command that runs `cmd` there. Its standard input and output are the command's own.
    pub fn cmd(&self, cmd: Cmd) -> Cmd {
        let Self::Ssh(ssh) = self else { return cmd };
        // What follows is for the shell over there. A variable in it is in the command line of that machine: secrets
        // go through standard input.
        let mut words: Vec<String> = Vec::new();
        if !cmd.env.is_empty() {
            words.push("env".into());
            words.extend(cmd.env.iter().map(|(name, value)| quoted(&format!("{name}={value}"))));
        }
        words.push(quoted(&cmd.program));
        words.extend(cmd.args.iter().map(|arg| quoted(arg)));
        let args = [vec!["-T".into()], ssh.options(), vec!["--".into(), words.join(" ")]].concat();
        Cmd { program: "ssh".into(), args, env: Vec::new(), stdin: cmd.stdin }
    }

    /// The command that is a person's shell there; none for this machine, where they have one.
    pub fn shell(&self) -> Option<Cmd> {
        let Self::Ssh(ssh) = self else { return None };
        Some(Cmd::new("ssh", ssh.options()))
    }
}

impl Ssh {
    /// All that comes before the command.
    fn options(&self) -> Vec<String> {
        let mut args: Vec<String> = vec!["-p".into(), self.port.to_string()];
        let mut option = |text: String| args.extend(["-o".into(), text]);
        for text in [
            "BatchMode=yes",
            "StrictHostKeyChecking=yes",
            "ConnectTimeout=10",
            "ServerAliveInterval=15",
            "ServerAliveCountMax=4",
            "ControlMaster=auto",
            "ControlPersist=600",
        ] {
            option(text.into());
        }
        option(format!("ControlPath={}", self.control.display()));
        if let Some(known) = &self.known_hosts {
            option(format!("UserKnownHostsFile={}", known.display()));
            option("GlobalKnownHostsFile=/dev/null".into());
        }
        if let Some(identity) = &self.identity {
            // Ours alone: neither an agent's keys nor what some configuration adds for every host.
            args.extend(["-F".into(), "none".into(), "-i".into(), identity.display().to_string()]);
            args.extend(["-o".into(), "IdentitiesOnly=yes".into()]);
        }
        args.push(format!("{}@{}", self.user, self.host));
        args
    }
}

/// For a POSIX shell.
fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=@%+,".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.into()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_is_in_a_command_arrives_as_it_was() {
        let cmd = Cmd::new("prog", ["a b", "it's", "", "$HOME", "x;y", "--k=v"]).env("K", "v w").stdin("in");
        assert_eq!(Target::Local.cmd(cmd.clone()), cmd);
        let ssh = Ssh {
            user: "echoes".into(),
            host: "10.0.0.4".into(),
            port: 22,
            identity: Some("/run/key".into()),
            known_hosts: Some("/run/known".into()),
            control: "/run/c".into(),
        };
        let there = Target::Ssh(ssh).cmd(cmd);
        assert_eq!(there.program, "ssh");
        assert_eq!(there.stdin, b"in");
        let words = r"env 'K=v w' prog 'a b' 'it'\''s' '' '$HOME' 'x;y' --k=v";
        assert_eq!(there.args.last().unwrap(), words);
        for option in ["StrictHostKeyChecking=yes", "UserKnownHostsFile=/run/known", "IdentitiesOnly=yes"] {
            assert!(there.args.iter().any(|arg| arg == option), "{option}");
        }
    }
}
