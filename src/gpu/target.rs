//! How a command gets to the machine it is for: a pure function from a command to the command that runs it there.
//! Here it is the identity, elsewhere it is ssh; so what happens on a machine is written once. Whatever login shell a person
//! has over there, it is read the same.
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
        // What follows is for a shell over there. A variable in it is in the command line of that machine: secrets
        // go through standard input.
        let mut words: Vec<String> = vec!["exec".into()];
        if !cmd.env.is_empty() {
            words.push("env".into());
            words.extend(cmd.env.iter().map(|(name, value)| quoted(&format!("{name}={value}"))));
        }
        words.push(quoted(&cmd.program));
        words.extend(cmd.args.iter().map(|arg| quoted(arg)));
        let args =
            [vec!["-T".into()], ssh.options(), vec!["--".into(), for_any_shell(&words.join(" "))]].concat();
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

/// The line by which a login shell, whichever it is, has sh run the command. csh and fish read quotes, newlines, `!` and
/// `$` otherwise than sh does, so there are none in it but one pair of single quotes a word; what else is in the command is
/// spelt in octal, which sh's own printf reads. Several words, as an old csh takes no long one.
fn for_any_shell(command: &str) -> String {
    /// Each byte becomes five at most.
    const LONGEST: usize = 180;
    let spelt = |byte: &u8| match *byte {
        plain if plain.is_ascii_alphanumeric() || b" -_./:=@%+,".contains(&plain) => char::from(plain).into(),
        other => format!("\\0{other:03o}"),
    };
    let words: Vec<String> =
        command.as_bytes().chunks(LONGEST).map(|part| part.iter().map(spelt).collect()).collect();
    format!(r#"sh -c 'eval "$(printf %b "$@")"' sh '{}'"#, words.join("' '"))
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
    use crate::host::{Host, System};

    fn ssh() -> Ssh {
        Ssh {
            user: "echoes".into(),
            host: "10.0.0.4".into(),
            port: 22,
            identity: Some("/run/key".into()),
            known_hosts: Some("/run/known".into()),
            control: "/run/c".into(),
        }
    }

    #[test]
    fn whatever_is_in_a_command_arrives_as_it_was() {
        let cmd = Cmd::new("prog", ["a b", "it's", "", "$HOME", "x;y", "--k=v"]).env("K", "v w").stdin("in");
        assert_eq!(Target::Local.cmd(cmd.clone()), cmd);
        let there = Target::Ssh(ssh()).cmd(cmd);
        assert_eq!(there.program, "ssh");
        assert_eq!(there.stdin, b"in");
        let words = r"exec env 'K=v w' prog 'a b' 'it'\''s' '' '$HOME' 'x;y' --k=v";
        assert_eq!(there.args.last().unwrap(), &for_any_shell(words));
        for option in ["StrictHostKeyChecking=yes", "UserKnownHostsFile=/run/known", "IdentitiesOnly=yes"] {
            assert!(there.args.iter().any(|arg| arg == option), "{option}");
        }
    }

    #[test]
    fn a_line_for_any_shell_has_nothing_in_it_that_one_of_them_reads_its_own_way() {
        let line = for_any_shell("a\n'b' \"$c\" !d \\ä");
        let word = r"a\0012\0047b\0047 \0042\0044c\0042 \0041d \0134\0303\0244";
        assert_eq!(line, format!(r#"sh -c 'eval "$(printf %b "$@")"' sh '{word}'"#));
        let long = for_any_shell(&"'".repeat(5000));
        assert!(long.split('\'').all(|word| word.len() < 1000), "a csh has no room for it");
        for bad in ['\n', '!', '`', '#', '~', '*'] {
            assert!(!for_any_shell(&format!("x{bad}y")).contains(bad), "{bad:?}");
        }
    }

    /// Each shell that is here, as somebody's login shell: sshd gives it what was asked as one argument.
    #[test]
    fn every_login_shell_gives_a_command_its_words_as_they_were() {
        let host = Host::new("/", System);
        let script = "for word in \"$@\"; do\n    printf '%s|' \"$word\"\ndone\ncat\nexit 7";
        let words = ["a b", "it's", "", "$HOME `id` $(id)", "x;y\n!z \\ \\n \"q\"", "ä~*?[a]{b,c}#%1^&<>|"];
        let args = ["-c", script, "sh"].into_iter().chain(words);
        let Cmd { args, .. } = Target::Ssh(ssh()).cmd(Cmd::new("sh", args).env("K", "v'w"));
        let expected = words.iter().map(|word| format!("{word}|")).collect::<String>() + "in";
        let mut missing = Vec::new();
        for shell in ["sh", "bash", "dash", "zsh", "ksh", "mksh", "busybox", "csh", "tcsh", "fish"] {
            let first: &[&str] = if shell == "busybox" { &["sh", "-c"] } else { &["-c"] };
            let line = args.last().unwrap();
            let cmd = Cmd::new(shell, first.iter().copied().chain([line.as_str()])).stdin("in");
            let Ok(out) = host.ask(&cmd) else {
                missing.push(shell);
                continue;
            };
            assert_eq!((out.code, out.stdout.as_str()), (7, expected.as_str()), "{shell}: {}", out.stderr);
        }
        if missing.iter().any(|shell| ["tcsh", "fish"].contains(shell)) {
            eprintln!("SKIPPED: login shells that are not here: {}", missing.join(", "));
        }
    }
}
