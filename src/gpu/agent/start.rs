//! How the keeper comes to life, and how everything of a run goes again. Where systemd and root are there it is a unit,
//! so that it comes back after a restart of the machine with the deadline it had; else a process of its own.

use super::{
    processes::{self, Alive},
    sandbox::Sandbox,
    site::{Order, Site, Standing, read},
};
use crate::{
    host::{Busy, Cmd, Host},
    patience::Patience,
};
use anyhow::{Context as _, Result, bail, ensure};
use nix::unistd::{User, geteuid};
use serde::{Deserialize, Serialize};
use std::{
    path::{Path, PathBuf},
    time::Duration,
};

/// As `sd_booted(3)` asks.
pub const SYSTEMD: &str = "/run/systemd/system";

/// What `agent leave` says before each process that it has found and may not end.
pub const OUTLIVED: &str = "outlived ";

/// What a unit's keeper may take beyond its script's grace, to see it end and to write that down.
const WRITING_DOWN: u64 = 40;

/// The number of this machine, which a copy of its disk in another machine does not bring along.
const MACHINE: &str = "/sys/class/dmi/id/product_uuid";

pub fn unit(site: &Site) -> String {
    format!("echoes-agent-{}.service", site.run)
}

fn unit_file(site: &Site) -> PathBuf {
    Path::new("/etc/systemd/system").join(unit(site))
}

pub fn standing(host: &Host, site: &Site) -> Result<Standing> {
    if let Some(exit) = read(host, &site.exit())? {
        return Ok(Standing::Exited(exit));
    }
    if !host.exists(&site.dir())? {
        return Ok(Standing::Waiting);
    }
    let begun = host.exists(&site.begun())?;
    // Asked about only where it is: the keeper, who may be another user, makes it.
    if !host.exists(&site.lock())? {
        return Ok(if begun { Standing::Unwatched } else { Standing::Waiting });
    }
    match host.ledger(&site.lock()) {
        Err(e) if e.is::<Busy>() => Ok(Standing::Running),
        lock => lock.map(|_| if begun { Standing::Unwatched } else { Standing::Waiting }),
    }
}

/// State of a run's keeper, to be known before a script is started, and after.
#[derive(Debug, Serialize, Deserialize)]
pub struct KeeperState {
    standing: Standing,
    /// Its grace; none: there is nothing to run.
    grace: Option<u64>,
}

impl KeeperState {
    pub fn look(host: &Host, site: &Site) -> Result<Self> {
        let grace = read::<Order>(host, &site.order())?.map(|order| order.grace);
        Ok(Self { standing: standing(host, site)?, grace })
    }

    /// By somebody who has become the user: a run's directory is its user's, whose links root does not follow.
    fn ask(host: &Host, site: &Site, user: &str) -> Result<Self> {
        let words = site.words("standing").into_iter().chain(["--as".to_owned(), user.to_owned()]);
        let said = host.run(&Cmd::new("/proc/self/exe", words))?;
        serde_json::from_str(&said).with_context(|| format!("hearing of {user}'s run how it stands"))
    }
}

/// Whether a keeper is a unit of the machine's, which root alone can make.
pub fn makes_unit(host: &Host) -> Result<bool> {
    Ok(geteuid().is_root() && host.exists(Path::new(SYSTEMD))?)
}

/// The keeper is at work, or has done it, when this returns. Started twice, it starts once. `user` is whom the script
/// runs as, where we are root and make a unit for it; else we are that user.
/// `sandbox` shuts the unit in; without one we are in it already.
pub fn start(host: &Host, site: &Site, user: Option<&str>, sandbox: Option<&Sandbox>) -> Result<()> {
    let look =
        || user.map_or_else(|| KeeperState::look(host, site), |user| KeeperState::ask(host, site, user));
    let is_done =
        || -> Result<bool> { Ok(!matches!(look()?.standing, Standing::Waiting | Standing::Unwatched)) };
    if is_done()? {
        return Ok(());
    }
    let program = || host.run(&Cmd::new("readlink", [format!("/proc/{}/exe", std::process::id())]));
    let makes_unit = makes_unit(host)?;
    if makes_unit {
        let program = program()?;
        // Where it cannot be read, a machine has no number of its own.
        let machine = host.read_text(Path::new(MACHINE)).ok().flatten();
        let grace = look()?.grace.context("there is nothing to run")?;
        let shut = sandbox.map(|sandbox| sandbox.unit(host, site, user)).transpose()?.unwrap_or_default();
        let text = text(site, program.trim(), user, machine.as_deref().map(str::trim), grace, &shut)?;
        host.write(&unit_file(site), 0o644, text.as_bytes())?;
        host.run(&Cmd::new("systemctl", ["daemon-reload"]))?;
        host.run(&Cmd::new("systemctl", ["enable", "--now", "--quiet", &unit(site)]))?;
    } else {
        let words = site.words("watch");
        let booted = host.exists(Path::new(SYSTEMD))?;
        let cmd = if booted && ends_at_logout(host) && lingers(host, site)? {
            scope(program()?.trim(), words)
        } else {
            Cmd::new("/proc/self/exe", words)
        };
        host.leave_running(&cmd, &site.complaints())?;
    }
    let started = || -> Result<()> {
        ensure!(is_done()?);
        Ok(())
    };
    let patience = Patience { at_most: Duration::from_secs(15), between: Duration::from_millis(20) };
    if patience.until(started).is_err() {
        // A unit complains to the journal.
        let said = if makes_unit { None } else { host.read_text(&site.complaints())? };
        let said = said.filter(|said| !said.is_empty()).unwrap_or_else(|| "it says nothing".into());
        bail!("the agent does not start: {}", said.trim());
    }
    Ok(())
}

/// Whether what a person has started is ended when they log out, as `KillUserProcesses=` of logind.conf(5) has it.
fn ends_at_logout(host: &Host) -> bool {
    let login1 = "org.freedesktop.login1";
    let words = [
        "get-property",
        login1,
        "/org/freedesktop/login1",
        "org.freedesktop.login1.Manager",
        "KillUserProcesses",
    ];
    host.ask(&Cmd::new("busctl", words)).is_ok_and(|out| out.stdout.trim() == "b true")
}

/// What says that it was we who had the person's own services stay: a file, as those of other runs have to know.
fn lingering(site: &Site) -> PathBuf {
    site.shared("lingering")
}

/// Whether what a person's own systemd holds stays when they log out, seen to as far as we are allowed to. Where it does
/// not, a script that a closed connection ends has one more attempt.
fn lingers(host: &Host, site: &Site) -> Result<bool> {
    let Some(person) = User::from_uid(geteuid())? else { return Ok(false) };
    let does = |program: &str, words: &[&str]| {
        host.ask(&runtime(Cmd::new(program, words.iter().copied()))).is_ok_and(|out| out.ok())
    };
    if !host.exists(&Path::new("/var/lib/systemd/linger").join(&person.name))? {
        if !does("loginctl", &["enable-linger"]) {
            return Ok(false);
        }
        host.write(&lingering(site), 0o644, b"")?;
    }
    Ok(does("systemctl", &["--user", "show-environment"]))
}

/// Where a person's own systemd is to be found, which sshd tells only those who ask for a terminal.
fn runtime(cmd: Cmd) -> Cmd {
    cmd.env("XDG_RUNTIME_DIR", &format!("/run/user/{}", geteuid()))
}

/// The keeper apart from the login that starts it, in the hands of the person's own systemd.
fn scope(program: &str, words: Vec<String>) -> Cmd {
    let first = ["--user", "--scope", "--quiet", "--collect", "--", program].map(str::to_owned);
    runtime(Cmd::new("systemd-run", first.into_iter().chain(words)))
}

/// Pure.
fn text(
    site: &Site,
    program: &str,
    user: Option<&str>,
    machine: Option<&str>,
    grace: u64,
    shut: &str,
) -> Result<String> {
    let patience = grace.saturating_add(WRITING_DOWN);
    let plain = |word: &str| word.chars().all(|c| c.is_ascii_alphanumeric() || "._-/".contains(c));
    let (home, run) = (site.home.to_str().context("the agent's home is no UTF-8")?, &site.run);
    // systemd would read more into it.
    ensure!(plain(home) && plain(program), "{home} or {program} cannot be written into a unit");
    let user = match user {
        Some(user) if plain(user) => format!("User={user}\n"),
        Some(user) => bail!("{user} cannot be written into a unit"),
        None => String::new(),
    };
    // What was computed here is brought home from there, and not overwritten.
    let here = match machine {
        Some(machine) if !machine.is_empty() && plain(machine) => {
            format!("ExecCondition=+/bin/grep -qixF {machine} {MACHINE}\n")
        }
        _ => String::new(),
    };
    let flag = if shut.is_empty() { "" } else { " --sandbox" };
    Ok(format!(
        "[Unit]\n\
         Description=Experiment {run}\n\
         After=network-online.target\n\
         \n\
         [Service]\n\
         Type=exec\n\
         {user}\
         {here}\
         ExecStart={program} agent watch --home {home} --run {run}{flag}\n\
         Restart=on-failure\n\
         RestartSec=2\n\
         # The script is told by its keeper, and is given as long as its keeper gives it.\n\
         KillMode=mixed\n\
         TimeoutStopSec={patience}\n\
         # A script that takes all the memory ends; its keeper writes down that it did.\n\
         OOMPolicy=continue\n\
         # CUDA pins memory; data loaders open files by the thousand.\n\
         LimitMEMLOCK=infinity\n\
         LimitNOFILE=1048576\n\
         {shut}\
         \n\
         [Install]\n\
         WantedBy=multi-user.target\n"
    ))
}

/// Nothing of the run is left when this returns but what is said: neither process nor unit nor file. What runs share
/// stays. It is over: what still goes on is given no grace.
pub fn leave(host: &Host, site: &Site) -> Result<Alive> {
    let dir = site.removable()?;
    let file = unit_file(site);
    if host.exists(&file)? {
        let unit = unit(site);
        // In this order: what is being stopped is not started again when it dies. It may be dead already.
        host.ask(&Cmd::new("systemctl", ["stop", "--no-block", "--quiet", &unit]))?;
        host.ask(&Cmd::new("systemctl", ["kill", "--signal=KILL", &unit]))?;
        host.run(&Cmd::new("systemctl", ["disable", "--now", "--quiet", &unit]))?;
        host.remove(&file)?;
        host.run(&Cmd::new("systemctl", ["daemon-reload"]))?;
    }
    let alive = processes::end_all(host, site);
    // A process that is just ending may still make a file in there.
    Patience::seconds(10).until(|| host.remove_tree(&dir))?;
    if host.exists(&lingering(site))? && host.list(&site.home.join("runs"))?.is_empty() {
        // Theirs is as it was. Where it cannot be, an idle process of systemd's stays.
        let _ = host.ask(&Cmd::new("loginctl", ["disable-linger"]));
        host.remove(&lingering(site))?;
    }
    Ok(alive)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gpu::{agent::sandbox::exposure::assert_exposure, spec::RunId};

    fn site(home: &str) -> Site {
        Site { home: home.into(), run: RunId::try_from("esn-1".to_owned()).unwrap() }
    }

    #[test]
    fn a_unit_says_what_is_to_be_started_and_nothing_can_be_slipped_into_it() {
        let text = text(&site("/home/u/.echoes"), "/b/echoes-appliance", Some("u"), None, 300, "").unwrap();
        let start = "User=u\nExecStart=/b/echoes-appliance agent watch --home /home/u/.echoes --run esn-1\n";
        assert!(text.contains(start), "{text}");
        assert!(text.contains("TimeoutStopSec=340\n"), "systemd waits for the script's grace: {text}");
        for (home, program, user) in [("/a b", "/p", "u"), ("/a", "/p\nUser=root", "u"), ("/a", "/p", "u%i")]
        {
            assert!(
                super::text(&site(home), program, Some(user), None, 1, "").is_err(),
                "{home} {program} {user}"
            );
        }
    }

    #[test]
    fn a_script_here_reaches_little_of_the_machine() {
        let site = site("/var/lib/echoes-appliance/machine/ana");
        let sandbox = Sandbox { writable: vec!["/mnt/echoes_data".into()] };
        for user in [Some("ana"), None] {
            let shut = sandbox.lines(&site, user, "", true).unwrap();
            let text = text(&site, "/b/echoes-appliance", user, None, 300, &shut).unwrap();
            assert_exposure("echoes-agent-esn-1.service", &text, 50);
        }
    }

    #[test]
    fn a_copy_of_the_disk_in_another_machine_does_not_go_on_with_the_script() {
        let number = "0f9c1a2e-7c1d-4b1a-9a55-3b6f2d8e4c10";
        let text = |machine| text(&site("/h"), "/p", None, machine, 1, "").unwrap();
        let line = format!("ExecCondition=+/bin/grep -qixF {number} /sys/class/dmi/id/product_uuid\n");
        assert!(text(Some(number)).contains(&line), "{}", text(Some(number)));
        for none in [None, Some(""), Some("x\nUser=root")] {
            assert!(!text(none).contains("ExecCondition"), "{none:?}");
        }
    }

    #[test]
    fn a_keeper_in_a_person_s_own_systemd_has_the_words_by_which_it_is_known() {
        let site = site("/h");
        let cmd = scope("/b/echoes-appliance", site.words("watch"));
        let words = "systemd-run --user --scope --quiet --collect -- /b/echoes-appliance agent watch --home /h --run esn-1";
        assert_eq!(cmd.to_string(), words);
        assert_eq!(cmd.env[0].0, "XDG_RUNTIME_DIR");
    }
}
