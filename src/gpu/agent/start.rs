//! How the keeper comes to life, and how everything of a run goes again. Where systemd and root are there it is a unit,
//! so that it comes back after a restart of the machine with the deadline it had; else a process of its own.

use super::{
    site::{Site, Standing, read},
    watch,
};
use crate::{
    host::{Busy, Cmd, Host},
    patience::Patience,
};
use anyhow::{Context as _, Result, bail, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::{Pid, geteuid},
};
use std::{
    path::{Path, PathBuf},
    time::Duration,
};

/// As `sd_booted(3)` asks.
const SYSTEMD: &str = "/run/systemd/system";

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

/// The keeper is at work, or has done it, when this returns. Started twice, it starts once. `user` is whom the script
/// runs as; we are root then.
pub fn start(host: &Host, site: &Site, user: Option<&str>) -> Result<()> {
    let is_done =
        || -> Result<bool> { Ok(!matches!(standing(host, site)?, Standing::Waiting | Standing::Unwatched)) };
    if is_done()? {
        return Ok(());
    }
    let booted = host.exists(Path::new(SYSTEMD))?;
    if booted && geteuid().is_root() {
        let program = host.run(&Cmd::new("readlink", [format!("/proc/{}/exe", std::process::id())]))?;
        // Where it cannot be read, a machine has no number of its own.
        let machine = host.read_text(Path::new(MACHINE)).ok().flatten();
        let text = text(site, program.trim(), user, machine.as_deref().map(str::trim))?;
        host.write(&unit_file(site), 0o644, text.as_bytes())?;
        host.run(&Cmd::new("systemctl", ["daemon-reload"]))?;
        host.run(&Cmd::new("systemctl", ["enable", "--now", "--quiet", &unit(site)]))?;
    } else {
        let mut words = site.words("watch");
        words.extend(user.into_iter().flat_map(|user| ["--as".to_owned(), user.to_owned()]));
        host.leave_running(&Cmd::new("/proc/self/exe", words), &site.complaints())?;
    }
    let started = || -> Result<()> {
        ensure!(is_done()?);
        Ok(())
    };
    let patience = Patience { at_most: Duration::from_secs(15), between: Duration::from_millis(20) };
    if patience.until(started).is_err() {
        let said = host.read_text(&site.complaints())?.unwrap_or_default();
        bail!("the agent does not start: {}", if said.is_empty() { "it says nothing" } else { said.trim() });
    }
    Ok(())
}

/// Pure.
fn text(site: &Site, program: &str, user: Option<&str>, machine: Option<&str>) -> Result<String> {
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
    Ok(format!(
        "[Unit]\n\
         Description=Experiment {run}\n\
         After=network-online.target\n\
         \n\
         [Service]\n\
         Type=exec\n\
         {user}\
         {here}\
         ExecStart={program} agent watch --home {home} --run {run}\n\
         Restart=on-failure\n\
         RestartSec=2\n\
         # The script is told by its keeper, and is given as long as its keeper gives it.\n\
         KillMode=mixed\n\
         TimeoutStopSec=60\n\
         # A script that takes all the memory ends; its keeper writes down that it did.\n\
         OOMPolicy=continue\n\
         # CUDA pins memory; data loaders open files by the thousand.\n\
         LimitMEMLOCK=infinity\n\
         LimitNOFILE=1048576\n\
         \n\
         [Install]\n\
         WantedBy=multi-user.target\n"
    ))
}

/// Nothing of the run is left when this returns: neither process nor unit nor file. What runs share stays.
pub fn leave(host: &Host, site: &Site) -> Result<()> {
    let file = unit_file(site);
    if host.exists(&file)? {
        host.run(&Cmd::new("systemctl", ["disable", "--now", "--quiet", &unit(site)]))?;
        host.remove(&file)?;
        host.run(&Cmd::new("systemctl", ["daemon-reload"]))?;
    }
    let words = site.words("watch");
    for name in host.list(Path::new("/proc"))? {
        let Ok(pid) = name.parse::<i32>() else { continue };
        let Ok(Some(line)) = host.read(&Path::new("/proc").join(&name).join("cmdline")) else { continue };
        let said: Vec<_> = line.split(|byte| *byte == 0).skip(1).map(String::from_utf8_lossy).collect();
        if said.starts_with(&words.iter().map(|word| word.as_str().into()).collect::<Vec<_>>()) {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
    }
    watch::end_all(host, site);
    // A process that is just ending may still make a file in there.
    Patience::seconds(10).until(|| host.remove_tree(&site.dir()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gpu::spec::RunId;

    fn site(home: &str) -> Site {
        Site { home: home.into(), run: RunId::try_from("esn-1".to_owned()).unwrap() }
    }

    #[test]
    fn a_unit_says_what_is_to_be_started_and_nothing_can_be_slipped_into_it() {
        let text = text(&site("/home/u/.echoes"), "/b/echoes-appliance", Some("u"), None).unwrap();
        let start = "User=u\nExecStart=/b/echoes-appliance agent watch --home /home/u/.echoes --run esn-1\n";
        assert!(text.contains(start), "{text}");
        for (home, program, user) in [("/a b", "/p", "u"), ("/a", "/p\nUser=root", "u"), ("/a", "/p", "u%i")]
        {
            assert!(super::text(&site(home), program, Some(user), None).is_err(), "{home} {program} {user}");
        }
    }

    #[test]
    fn a_copy_of_the_disk_in_another_machine_does_not_go_on_with_the_script() {
        let number = "0f9c1a2e-7c1d-4b1a-9a55-3b6f2d8e4c10";
        let text = |machine| text(&site("/h"), "/p", None, machine).unwrap();
        let line = format!("ExecCondition=+/bin/grep -qixF {number} /sys/class/dmi/id/product_uuid\n");
        assert!(text(Some(number)).contains(&line), "{}", text(Some(number)));
        for none in [None, Some(""), Some("x\nUser=root")] {
            assert!(!text(none).contains("ExecCondition"), "{none:?}");
        }
    }
}
