//! A machine that the team owns, reached by ssh: nothing is rented, and giving back is ending what runs and removing
//! what one run brought. Its key must be known beforehand: a machine met for the first time is not believed.

use super::{Class, Machine, Offer, Provider, Refusal, Rent, Rented};
use crate::{
    config,
    gpu::{
        agent::{processes::MARK, start::OUTLIVED},
        runs,
        spec::{RunId, Spec},
        target::{Ssh, Target},
    },
    host::{Cmd, Host, Output},
    ui::Try as _,
    web::hold,
};
use anyhow::{Context as _, Result, anyhow, bail, ensure};
use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    sync::Mutex,
};

/// Sockets of connections that commands share. ssh puts a hash of user, host and port for `%C`.
const SOCKETS: &str = "/run/echoes-appliance/ssh";

/// ssh's own exit status, when it was not the command that failed.
const SSH_FAILED: i32 = 255;

/// `timeout`'s, when it ended what it was to run.
const TIMED_OUT: i32 = 124;

/// Seconds: what is given back has no grace any more, but many files may take their time.
const ANSWER: &str = "120";

/// Answers stand between two of these, as a login shell may greet, and say goodbye. In two halves: one that repeats what it
/// is asked to do says no mark.
const HALVES: [&str; 2] = ["<<<echoes-", "answer>>>"];

/// Where we would live.
const ASK_HOME: &str = r#"printf %s "${HOME-}""#;

/// The beginning of whatever moves or removes something over there, for a POSIX shell: $1 is the run, $2 the home. With a
/// word missing, or one that means something else, nothing is touched.
const GUARD: &str = r#"
set -u
run=${1:?which run} home=${2:?which home}
case $run in *[!a-z0-9-]*) echo "no name of a run: $run" >&2; exit 64 ;; esac
case $home/ in
    *[!A-Za-z0-9/._-]* | */../* | */./* | *//*) echo "no home: $home" >&2; exit 64 ;;
    /?*) ;;
    *) echo "no home: $home" >&2; exit 64 ;;
esac
"#;

/// What gives back, after `GUARD`; $3 is the mark. The agent knows best what it has done;
/// where there is none, or one that fails, the rest still goes: what has our mark, or stands or holds a file below the
/// run's directory and has no person before it. Says what is left.
const GIVE_BACK: &str = r#"
mark=${3:?which mark}
dir=$home/runs/$run
as_root=
if [ "$(id -u)" != 0 ] && [ -d /run/systemd/system ] && sudo -n true 2> /dev/null; then as_root="sudo -n"; fi
for agent in "$home"/bin/*/echoes-appliance; do
    if [ -x "$agent" ] && said=$($as_root "$agent" agent leave --home "$home" --run "$run"); then
        [ -z "$said" ] || printf '%s\n' "$said"
        break
    fi
done
marked() {
    for file in $(grep -lszxF -e "$mark=$run" -e "ECHOES_OUT=$dir/out" /proc/[0-9]*/environ); do
        if grep -qszxF -e "ECHOES_OUT=$dir/out" "$file" || ! grep -qsz '^ECHOES_OUT=' "$file"; then echo "$file"; fi
    done | cut -d / -f 3
}
inside() {
    find /proc/[0-9]*/cwd /proc/[0-9]*/root /proc/[0-9]*/exe /proc/[0-9]*/fd -maxdepth 1 \
        '(' -lname "$dir" -o -lname "$dir (deleted)" -o -lname "$dir/*" ')' 2> /dev/null |
        cut -d / -f 3 | sort -u | while read -r id; do
        if look "$id" && [ "$terminal" = 0 ]; then echo "$id"; fi
    done
}
look() {
    state=Z terminal=
    [ -O "/proc/$1" ] && [ "$1" != $$ ] && read -r line 2> /dev/null < "/proc/$1/stat" || return 1
    set -- ${line##*") "}
    state=${1-Z} terminal=${5-}
    [ "$state" != Z ]
}
ours() {
    { marked; inside; } | sort -nu | while read -r id; do
        if look "$id"; then echo "$id"; fi
    done
}
for id in $(ours); do $as_root kill -KILL "$id" 2> /dev/null; done
# What somebody has shut.
[ -n "$as_root" ] || [ -L "$dir" ] || chmod -R u+rwX -- "$dir" 2> /dev/null
$as_root rm -rf -- "$dir"
for id in $(ours); do echo "process $id"; done
if [ -e "$dir" ]; then echo "$dir"; fi
"#;

/// Whether a login that is closed takes along what it has started: not where we may be root, nor where the person's own
/// services may stay, as a script's keeper then asks for.
const ASK_LOGOUT: &str = r#"
if [ "$(id -u)" = 0 ] || sudo -n true; then exit 0; fi
login1=org.freedesktop.login1
kills=$(busctl get-property $login1 /org/freedesktop/login1 $login1.Manager KillUserProcesses)
[ "$kills" = 'b true' ] || exit 0
[ -e "/var/lib/systemd/linger/$(id -un)" ] || pkcheck --action-id $login1.set-self-linger --process $$ || echo yes
"#;

/// Sets aside what a run made, after `GUARD`. Says where it is then, if there is any.
const KEEP: &str = r#"
set -e
if [ -d "$home/runs/$run" ] && [ ! -L "$home/runs/$run" ]; then
    mkdir -p -m 700 "$home/kept"
    mv -- "$home/runs/$run" "$home/kept/$run"
fi
if [ -d "$home/kept/$run" ]; then echo "$home/kept/$run"; fi
"#;

/// Makes what was set aside the run's again, for as long as it is fetched: given back, the link goes and what it leads to
/// stays.
const LINK: &str = r#"
set -e
[ -d "$home/kept/$run" ]
mkdir -p "$home/runs"
ln -sfn -- "$home/kept/$run" "$home/runs/$run"
"#;

/// Removes what was set aside, also what somebody has shut.
const FORGET: &str = r#"
chmod -R u+rwX -- "$home/kept/$run" 2> /dev/null
rm -rf -- "$home/kept/$run"
"#;

/// Removes what is kept for the next run, after `GUARD`, which is given no run's name but a word in its place. Says what stays: a run's directory, which keeps all
/// of it, or what could not be removed.
const FORGET_BOX: &str = r#"
in_use=
for dir in "$home"/runs/* "$home"/kept/*; do
    if [ -e "$dir" ] || [ -L "$dir" ]; then echo "$dir"; in_use=yes; fi
done
[ -z "$in_use" ] || exit 0
for name in code data envs cache bin lingering; do
    [ -L "$home/$name" ] || chmod -R u+rwX -- "$home/$name" 2> /dev/null
    rm -rf -- "$home/$name"
    if [ -e "$home/$name" ]; then echo "$home/$name"; fi
done
rmdir -- "$home/runs" "$home/kept" "$home" 2> /dev/null || true
"#;

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
    host: &'a Host,
    ssh: Ssh,
    outlived: Mutex<BTreeSet<String>>,
}

impl<'a> Owned<'a> {
    pub fn new(host: &'a Host, ssh: Ssh) -> Self {
        Self { host, ssh, outlived: Mutex::default() }
    }

    /// Ask it: what it answered, or why it will answer nothing else. An error where it could not be asked.
    fn ask(&self, script: &str, arguments: &[&str]) -> Result<Result<String, Refusal>> {
        if let Some(dir) = self.ssh.control.parent() {
            self.host.make_dir(dir)?;
        }
        let script = between_marks(script);
        let words = [&["-c", &script, "sh"], arguments].concat();
        let Cmd { program, args, .. } = Target::Ssh(self.ssh.clone()).cmd(Cmd::new("sh", words));
        // A machine that holds the line and says nothing would hold us, too.
        let bound = ["--kill-after=5", ANSWER, &program].map(Into::into).to_vec();
        understood(&self.ssh, &self.host.ask(&Cmd::new("timeout", [bound, args].concat()))?)
    }

    /// What it answered.
    fn answer(&self, script: &str, arguments: &[&str]) -> Result<String> {
        self.ask(script, arguments)?.or_else(|refusal| {
            let refused = || Err(anyhow!("asking {}: {}", self.ssh.host, refusal.said));
            refused().or_try(refusal.hint.unwrap_or_default())
        })
    }

    /// Whether it lets us in, and where we would live.
    pub fn meet(&self) -> Result<Rent> {
        let said = match self.ask(ASK_HOME, &[])? {
            Ok(said) => said,
            Err(refusal) => return Ok(Rent::Refused(refusal)),
        };
        Ok(match parse_home(&said) {
            Ok(home) => Rent::Here(Machine { target: Target::Ssh(self.ssh.clone()), home, data: None }),
            Err(error) => {
                let hint = format!(
                    "give {} a home over there that is an absolute path of letters, digits and . _ - /, and see that its login shell leaves $HOME as it is",
                    self.ssh.user
                );
                Rent::Refused(Refusal { class: Class::Final, said: format!("{error:#}"), hint: Some(hint) })
            }
        })
    }

    fn home(&self) -> Result<PathBuf> {
        parse_home(&self.answer(ASK_HOME, &[])?)
    }

    /// Move or remove something of a run's over there, once its name and the home were looked at. What was answered.
    fn change(&self, script: &str, run: &RunId, home: &Path, more: &[&str]) -> Result<String> {
        let home = home.to_str().context("a path over there that is not UTF-8")?;
        self.answer(&format!("{GUARD}{script}"), &[&[run.as_str(), home], more].concat())
    }

    /// Where what the run made is from then on; none when there is none.
    fn set_aside(&self, run: &RunId, home: &Path) -> Result<Option<String>> {
        let said = self.change(KEEP, run, home, &[])?;
        let place = said.lines().next().map(printable).filter(|place| !place.is_empty());
        Ok(place.map(|place| format!("{}:{place}", self.ssh.host)))
    }

    /// Remove what is kept there for the next run. What stays, and why: a run's directory, or what could not be removed.
    pub fn forget_box(&self) -> Result<Vec<String>> {
        let home = self.home()?;
        let home = home.to_str().context("a path over there that is not UTF-8")?;
        let said = self.answer(&format!("{GUARD}{FORGET_BOX}"), &["none", home])?;
        Ok(said.lines().map(printable).collect())
    }

    /// Whether a script there ends when a connection does.
    pub fn ends_at_logout(&self) -> Result<bool> {
        Ok(self.answer(&format!("{{\n{ASK_LOGOUT}}} 2> /dev/null"), &[])?.trim() == "yes")
    }
}

/// The script, and a mark before and after what it says.
fn between_marks(script: &str) -> String {
    let [first, second] = HALVES;
    let mark = format!("printf %s%s '{first}' '{second}'");
    format!("{mark}\n(\n{script}\n)\nstatus=$?\n{mark}\nexit $status")
}

/// What was answered between the marks; else why there is no answer, and will be none.
fn understood(ssh: &Ssh, out: &Output) -> Result<Result<String, Refusal>> {
    let (host, mark) = (&ssh.host, HALVES.concat());
    let Some((_, said)) = out.stdout.split_once(&mark) else {
        if out.code == SSH_FAILED {
            return match refusal(ssh, &out.stderr) {
                Some(refusal) => Ok(Err(refusal)),
                None => bail!("connecting to {host}: {}", printable(&out.stderr)),
            };
        }
        ensure!(out.code != TIMED_OUT, "asking {host}: it says nothing");
        return Ok(Err(no_shell(ssh, out)));
    };
    let Some((said, _)) = said.rsplit_once(&mark) else {
        bail!("asking {host}: it was cut short: exit status {}: {}", out.code, printable(&out.stderr));
    };
    ensure!(out.ok(), "asking {host}: exit status {}: {}", out.code, printable(&out.stderr));
    Ok(Ok(said.to_owned()))
}

/// Of an account that lets us in, and does not what it is asked.
fn no_shell(ssh: &Ssh, out: &Output) -> Refusal {
    let (user, host) = (&ssh.user, &ssh.host);
    let said = printable(&format!("{} {}", out.stdout.trim(), out.stderr.trim()));
    let hint = if said.contains("sftp") {
        format!(
            "{user} may do nothing over there but sftp: take away its ForceCommand in sshd_config, or take another account"
        )
    } else {
        format!(
            "`ssh {user}@{host} echo here` has to say here: see which login shell {user} has over there, whether its start-up file (~/.bashrc, ~/.cshrc) ends or becomes another program where there is no terminal, and whether sshd has a ForceCommand for it"
        )
    };
    let said = if said.is_empty() { "nothing".into() } else { format!("{said:?}") };
    let said = format!("it runs no command for {user}: exit status {}, and it answered {said}", out.code);
    Refusal { class: Class::Final, said, hint: Some(hint) }
}

impl Provider for Owned<'_> {
    fn rent(&self, _: &Spec, _: &Offer) -> Result<Rent> {
        self.meet()
    }

    fn rent_from_copy(&self, spec: &Spec, _: &Offer, copy: &str) -> Result<Rent> {
        let home = self.home()?;
        self.change(LINK, &spec.run, &home, &[]).with_context(|| format!("looking for {copy}"))?;
        Ok(Rent::Here(Machine { target: Target::Ssh(self.ssh.clone()), home, data: None }))
    }

    fn can_keep(&self) -> bool {
        true
    }

    fn keep(&self, run: &RunId) -> Result<Option<String>> {
        self.set_aside(run, &self.home()?)
    }

    fn forget(&self, run: &RunId) -> Result<bool> {
        self.change(FORGET, run, &self.home()?, &[])?;
        Ok(true)
    }

    fn give_back(&self, run: &RunId) -> Result<Vec<String>> {
        // A machine that never let us in, and never may, has nothing of ours.
        let state = runs::state(self.host, run)?;
        if state.as_ref().is_some_and(|state| state.rentals.iter().all(|rental| rental.came.is_none())) {
            return Ok(Vec::new());
        }
        // Not all of it is home: what is there stays, and only what runs is ended.
        let home = self.home()?;
        if state.is_some_and(|state| state.kept.is_some()) {
            self.set_aside(run, &home)?;
        }
        let said = self.change(GIVE_BACK, run, &home, &[MARK])?;
        let (outlived, left): (Vec<_>, _) = said.lines().partition(|line| line.starts_with(OUTLIVED));
        hold(&self.outlived)
            .extend(outlived.iter().filter_map(|line| line.strip_prefix(OUTLIVED)).map(printable));
        Ok(left.into_iter().map(printable).collect())
    }

    fn outlived(&self) -> Vec<String> {
        hold(&self.outlived).iter().cloned().collect()
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
    fn what_is_kept_on_a_box_is_removed_unless_a_run_is_there() {
        let dir = tempfile::tempdir().unwrap();
        let host = Host::new("/", System);
        let home = dir.path().join("x/.echoes-appliance");
        let forget = || {
            let words = ["-c", &format!("{GUARD}{FORGET_BOX}"), "sh", "none", home.to_str().unwrap()];
            host.run(&Cmd::new("sh", words)).unwrap()
        };
        for file in
            ["code/p-1/id_rsa", "code/p-1.tree", "data/ucf/clip", "envs/e/bin/python", "kept/r1/out/a"]
        {
            host.write(&home.join(file), 0o600, b"x").unwrap();
        }
        assert_eq!(forget(), format!("{}\n", home.join("kept/r1").display()));
        assert!(host.exists(&home.join("code/p-1/id_rsa")).unwrap());
        host.remove_tree(&home.join("kept/r1")).unwrap();
        assert_eq!(forget(), "");
        assert!(!host.exists(&home).unwrap());
        assert_eq!(forget(), "", "and once more");
    }

    #[test]
    fn what_came_from_elsewhere_moves_no_cursor() {
        assert_eq!(printable("a\u{1b}[2Jb\u{7}\n"), "a [2Jb");
    }

    fn answered(code: i32, stdout: &str, stderr: &str) -> Result<Result<String, Refusal>> {
        understood(&ssh(), &Output { code, stdout: stdout.into(), stderr: stderr.into() })
    }

    #[test]
    fn an_answer_stands_between_marks_whatever_a_login_shell_says_around_it() {
        let host = Host::new("/", System);
        let script = between_marks("printf %s \"$1\"; printf 'no\\nnewline'");
        let said = host.run(&Cmd::new("sh", ["-c", &script, "sh", "a b"])).unwrap();
        assert!(!script.contains(&HALVES.concat()), "what repeats its command answers nothing");
        for around in [said.clone(), format!("Welcome to gpu1!\n{said}bye\n"), format!("{script}\n{said}")] {
            assert_eq!(answered(0, &around, "").unwrap().unwrap(), "a bno\nnewline", "{around}");
        }
        let failed = host.ask(&Cmd::new("sh", ["-c", &between_marks("echo why >&2; exit 3")])).unwrap();
        assert_eq!(failed.code, 3);
        let said = format!("{:#}", understood(&ssh(), &failed).unwrap_err());
        assert_eq!(said, "asking gpu1: exit status 3: why");
    }

    #[test]
    fn an_account_that_runs_nothing_is_refused_at_once_with_its_cure_and_a_bad_connection_is_not() {
        let refused = |code, stdout: &str, stderr: &str| {
            let refusal = answered(code, stdout, stderr).unwrap().unwrap_err();
            assert_eq!(refusal.class, Class::Final);
            (refusal.said, refusal.hint.unwrap())
        };
        let (said, hint) = refused(1, "This service allows sftp connections only.\n", "");
        assert!(said.contains("This service allows sftp connections only."), "{said}");
        assert!(hint.contains("another account"), "{hint}");
        for (code, stdout) in
            [(0, "Welcome to gpu1!\n"), (1, "This account is currently not available.\n"), (0, "")]
        {
            let (said, hint) = refused(code, stdout, "");
            assert!(said.contains(if stdout.is_empty() { "nothing" } else { stdout.trim() }), "{said}");
            assert!(hint.contains("~/.bashrc") && hint.contains("ssh ana@gpu1 echo here"), "{hint}");
        }
        let mark = HALVES.concat();
        for (code, stdout) in
            [(SSH_FAILED, ""), (SSH_FAILED, "Welcome"), (TIMED_OUT, ""), (SSH_FAILED, &*format!("{mark}/ho"))]
        {
            assert!(answered(code, stdout, "Connection closed").is_err(), "{code} {stdout}");
        }
    }

    #[test]
    fn with_a_word_missing_nothing_is_removed() {
        let top = tempfile::tempdir().unwrap();
        let host = Host::new("/", System);
        let at = top.path().to_str().unwrap();
        // Whatever it would remove, it would do with this.
        let bin = top.path().join("bin");
        for name in ["rm", "kill", "find", "mv", "ln", "mkdir", "chmod"] {
            let text = format!("#!/bin/sh\necho \"{name} $*\" >> {at}/done\n");
            host.write(&bin.join(name), 0o755, text.as_bytes()).unwrap();
        }
        let path = format!("{at}/bin:/usr/bin:/bin");
        let tried = |script: &str, words: &[&str]| {
            let script = format!("{GUARD}{script}");
            let cmd =
                Cmd::new("sh", [&["-c", &script, "sh"], words].concat()).env("PATH", &path).env("HOME", "");
            host.ask(&cmd).unwrap()
        };
        let home = format!("{at}/home");
        for words in [
            &["", "", ""][..],
            &[],
            &["r1"],
            &["r1", ""],
            &["", &home, MARK],
            &["r1", &home, ""],
            &["r1", "/", MARK],
            &["r1", "h", MARK],
            &["r1", "../h", MARK],
            &["r1", "/h/../..", MARK],
            &["r1", "//h", MARK],
            &["r1", "/h x", MARK],
            &["../x", &home, MARK],
            &["a/b", &home, MARK],
            &["*", &home, MARK],
        ] {
            // The mark is giving back's alone.
            let others: &[&str] = if words == ["r1", &home, ""] { &[] } else { &[KEEP, LINK, FORGET] };
            for script in [GIVE_BACK].iter().chain(others) {
                let out = tried(script, words);
                assert!(!out.ok() && out.stdout.is_empty(), "{words:?}: {out:?}");
                assert!(!host.exists(&top.path().join("done")).unwrap(), "{words:?}");
            }
        }
        for (script, room) in [(GIVE_BACK, "runs"), (FORGET, "kept")] {
            host.remove(&top.path().join("done")).unwrap();
            assert!(tried(script, &["r1", &home, MARK]).ok());
            let done = host.read_text(&top.path().join("done")).unwrap().unwrap();
            let removed: Vec<_> = done.lines().filter(|line| line.starts_with("rm ")).collect();
            assert_eq!(removed, [format!("rm -rf -- {home}/{room}/r1")]);
        }
    }

    #[test]
    fn what_is_given_back_leaves_neither_process_nor_file_and_takes_nobody_else_s() {
        let home = tempfile::tempdir().unwrap();
        let host = Host::new("/", System);
        let run = format!("ssh-{}", std::process::id());
        let other = format!("{run}0");
        let at = home.path().to_str().unwrap();
        for run in [&run, &other] {
            host.write(&home.path().join("runs").join(run).join("out/log"), 0o644, b"x").unwrap();
        }
        let dir = home.path().join("runs").join(&run);
        let dir = dir.to_str().unwrap();
        // Each is found again by how long it sleeps.
        let long = |n: u32| format!("{}.{}", 600 + n, std::process::id());
        let start = |n: u32, before: &str| {
            let script = format!("{before} exec setsid -f sleep {} > /dev/null 2>&1", long(n));
            host.run(&Cmd::new("sh", ["-c", &script, "sh", dir])).unwrap();
        };
        start(0, &format!("export {MARK}={run};"));
        start(1, "export ECHOES_OUT=\"$1/out\";");
        start(2, "cd \"$1/out\" &&");
        start(3, "exec < \"$1/out/log\";");
        start(4, &format!("export {MARK}={other};"));
        start(5, &format!("export {MARK}={run} ECHOES_OUT=/elsewhere/runs/{run}/out;"));
        start(6, "cd \"$1/..\" &&");
        let alive =
            |n: u32| host.ask(&Cmd::new("pgrep", ["-f", &format!("^sleep {}$", long(n))])).unwrap().ok();
        let given_back = |run: &str| {
            let script = format!("{GUARD}{GIVE_BACK}");
            let words = ["-c", &script, "sh", run, at, MARK];
            // The kernel takes a moment to bury whoever was ended.
            crate::patience::Patience::seconds(5).until(|| {
                let left = host.run(&Cmd::new("sh", words))?;
                ensure!(left.is_empty(), "{left}");
                Ok(())
            })
        };
        crate::patience::Patience::seconds(5)
            .until(|| {
                ensure!((0..7).all(alive));
                Ok(())
            })
            .unwrap();
        given_back(&run).unwrap();
        assert_eq!((0..7).filter(|n| alive(*n)).collect::<Vec<_>>(), [4, 5, 6], "somebody else's go on");
        assert!(!Path::new(dir).exists() && home.path().join("runs").join(&other).exists());
        given_back(&other).unwrap();
        assert_eq!((0..7).filter(|n| alive(*n)).collect::<Vec<_>>(), [5, 6]);
        for n in [5, 6] {
            host.run(&Cmd::new("pkill", ["-f", &format!("^sleep {}$", long(n))])).unwrap();
        }
    }
}
