//! Debian packages, calmly: wait for the lock and name its holder, repair an interrupted dpkg, keep everybody's
//! configuration files, and remember exactly what was not there before, so that uninstall can take away that and
//! nothing else.

use super::{
    receipt::{Book, Entry},
    resource::missing_dirs,
};
use crate::{
    host::{Cmd, Host},
    ui::{Step, Try as _},
};
use anyhow::{Result, bail};
use std::{
    path::Path,
    time::{Duration, Instant},
};

/// A fresh cloud VM upgrades itself on its first boot: this long may that take.
const LOCK_WAIT: Duration = Duration::from_secs(600);

/// What a package makes as it is installed and leaves behind when it is purged.
pub const LEFT_BEHIND: [(&str, &str); 1] = [("nginx-common", "/var/www/html/index.nginx-debian.html")];

fn apt_get(args: &[&str]) -> Cmd {
    // Options in front; a prompt nobody can answer would hang for ever.
    let calm = [
        "-q",
        "-y",
        "-o",
        "Dpkg::Options::=--force-confdef",
        "-o",
        "Dpkg::Options::=--force-confold",
        // Older ones give up at the first hiccup of the network.
        "-o",
        "Acquire::Retries=3",
        // Somebody may take the lock between our look and apt's.
        "-o",
        "DPkg::Lock::Timeout=60",
    ];
    Cmd::new("apt-get", calm.iter().chain(args).copied())
        .env("DEBIAN_FRONTEND", "noninteractive")
        .env("NEEDRESTART_SUSPEND", "1")
}

pub fn install(host: &Host, names: &[String], book: &Book, step: &Step) -> Result<()> {
    wait_for_locks(host, step)?;
    // An unpack that was cut short blocks every later one; finishing it is what apt itself would tell us to do.
    host.run(&Cmd::new("dpkg", ["--configure", "-a"]).env("DEBIAN_FRONTEND", "noninteractive"))
        .or_try("mend the package that dpkg names, then run this again")?;
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let mut install = vec!["install", "--no-install-recommends"];
    install.extend(&names);
    let mut rehearsal = vec!["-s"];
    rehearsal.extend(&install);
    let offline = "see whether this machine reaches its package mirrors (`apt-get update`) and names them all \
                   (/etc/apt/sources.list), then run this again";
    let mut first = host.ask(&apt_get(&rehearsal))?;
    if !first.ok() || lists_are_stale(host)? {
        step.detail("apt-get update");
        host.run_saying(&apt_get(&["update"]), &mut |line| step.detail(line)).or_try(offline)?;
        first = host.ask(&apt_get(&rehearsal))?;
    }
    if !first.ok() {
        return Err(anyhow::anyhow!("apt-get cannot install {}: {}", names.join(" "), first.stderr.trim()))
            .or_try(offline);
    }
    let packages = new_packages(&first.stdout);
    for (package, path) in LEFT_BEHIND.map(|(package, path)| (package, Path::new(path))) {
        if packages.iter().any(|new| new == package) && !host.exists(path)? {
            book.note(Entry::Created { path: path.into(), dirs: missing_dirs(host, path)? })?;
        }
    }
    book.note(Entry::Installing { packages })?;
    wait_for_locks(host, step)?;
    host.run_saying(&apt_get(&install), &mut |line| step.detail(line)).or_try(offline)?;
    Ok(())
}

/// Remove what we brought, unless that would take somebody else's packages along: those stay and are returned.
pub fn remove(host: &Host, packages: &[String], step: &Step) -> Result<Vec<String>> {
    wait_for_locks(host, step)?;
    let (mut going, mut staying) = (Vec::new(), Vec::new());
    for package in packages {
        let known = host.ask(&Cmd::new("dpkg-query", ["-W", "-f", "${db:Status-Status}", package]))?;
        if known.ok() && known.stdout != "not-installed" {
            going.push(package.clone());
        }
    }
    // Each round, what others lean on stays, until nothing of theirs would go.
    loop {
        if going.is_empty() {
            return Ok(staying);
        }
        let mut rehearsal = vec!["-s", "purge"];
        rehearsal.extend(going.iter().map(String::as_str));
        let would = removed_packages(&host.run(&apt_get(&rehearsal))?);
        if would.iter().all(|package| packages.contains(package)) {
            break;
        }
        let Some(leaned_on) = first_needed(host, &mut going, packages)? else {
            staying.append(&mut going);
            return Ok(staying);
        };
        staying.push(leaned_on);
    }
    let mut purge = vec!["purge"];
    purge.extend(going.iter().map(String::as_str));
    host.run_saying(&apt_get(&purge), &mut |line| step.detail(line))?;
    Ok(staying)
}

/// Take out of `going` the first whose removal alone would remove a package that is not ours.
fn first_needed(host: &Host, going: &mut Vec<String>, ours: &[String]) -> Result<Option<String>> {
    for n in 0..going.len() {
        let would = removed_packages(&host.run(&apt_get(&["-s", "purge", &going[n]]))?);
        if !would.iter().all(|package| ours.contains(package)) {
            return Ok(Some(going.remove(n)));
        }
    }
    Ok(None)
}

fn wait_for_locks(host: &Host, step: &Step) -> Result<()> {
    let since = Instant::now();
    while let Some(holder) = lock_holder(host)? {
        if since.elapsed() > LOCK_WAIT {
            return Err(anyhow::anyhow!(
                "{holder} has held the package lock for {} minutes",
                LOCK_WAIT.as_secs() / 60
            ))
            .or_try("wait for it to end, or end it, then run this again");
        }
        step.tell(&format!("waiting for {holder}, which holds the package lock"));
        std::thread::sleep(Duration::from_secs(1));
    }
    Ok(())
}

/// Who holds a lock of dpkg's or apt's.
fn lock_holder(host: &Host) -> Result<Option<String>> {
    const LOCKS: [&str; 3] = ["/var/lib/dpkg/lock-frontend", "/var/lib/dpkg/lock", "/var/lib/apt/lists/lock"];
    for lock in LOCKS {
        if let Some(pid) = host.lock_holder(Path::new(lock))? {
            let name = host.read_text(Path::new(&format!("/proc/{pid}/comm")))?;
            return Ok(Some(format!("{} (process {pid})", name.as_deref().unwrap_or("somebody").trim())));
        }
    }
    Ok(None)
}

/// Whether apt knows no packages at all, as on a fresh image.
fn lists_are_stale(host: &Host) -> Result<bool> {
    Ok(!host.list(Path::new("/var/lib/apt/lists"))?.iter().any(|name| name.contains("Packages")))
}

/// `Inst nginx (1.22 …)` is new, `Inst nginx [1.21] (1.22 …)` was there.
fn new_packages(said: &str) -> Vec<String> {
    let new = |line: &str| {
        let (name, rest) = line.strip_prefix("Inst ")?.split_once(' ')?;
        (!rest.starts_with('[')).then(|| name.to_owned())
    };
    said.lines().filter_map(new).collect()
}

fn removed_packages(said: &str) -> Vec<String> {
    let gone = |line: &str| {
        let rest = line.strip_prefix("Purg ").or_else(|| line.strip_prefix("Remv "))?;
        rest.split(' ').next().map(str::to_owned)
    };
    said.lines().filter_map(gone).collect()
}

/// A repository that is neither Debian nor Ubuntu of a release we know has other packages under these names.
pub fn check_system(os_release: &str) -> Result<()> {
    let field = |name: &str| {
        let line = os_release.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix('='))?;
        Some(line.trim_matches('"').to_owned())
    };
    let (id, version) = (field("ID").unwrap_or_default(), field("VERSION_ID").unwrap_or_default());
    let major: u32 = version.split('.').next().and_then(|v| v.parse().ok()).unwrap_or(0);
    if matches!((id.as_str(), major), ("debian", 11..) | ("ubuntu", 20..)) {
        return Ok(());
    }
    let name = field("PRETTY_NAME").unwrap_or_else(|| "an unknown system".into());
    bail!("this is {name}; the headquarters needs Debian 11 or later, or Ubuntu 20.04 or later")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_apt_would_do_is_read_from_its_rehearsal() {
        let said = "NOTE: x\nInst libgd3 (2.3 Debian:12 [amd64])\nInst nginx [1.20] (1.22 Debian:12 [amd64])\nConf libgd3 (2.3)\nPurg a [1]\nRemv b [2]\n";
        assert_eq!(new_packages(said), ["libgd3"]);
        assert_eq!(removed_packages(said), ["a", "b"]);
    }

    #[test]
    fn only_systems_we_know_are_touched() {
        for good in ["ID=debian\nVERSION_ID=\"11\"", "ID=ubuntu\nVERSION_ID=\"24.04\""] {
            check_system(good).unwrap();
        }
        for bad in
            ["ID=debian\nVERSION_ID=\"10\"", "ID=fedora\nVERSION_ID=41", "", "ID=ubuntu\nVERSION_ID=18.04"]
        {
            assert!(check_system(bad).is_err(), "{bad}");
        }
    }
}
