//! Before anything is done: what this machine is, which services go on it and which disk, and whether something
//! stands in the way. Looks, refuses, and touches nothing.

use super::{
    apt,
    blueprint::{DataDisk, Site, blueprint},
    certificate,
    disk::{self, Decision},
    machine::Machine,
    mlflow, nginx, python,
    receipt::Receipt,
    resource::Resource,
    service::{Service, choose},
};
use crate::{
    config::{Config, Signer},
    host::{Cmd, Host, Kind},
    tls::store,
    ui::Try as _,
};
use anyhow::{Context as _, Result, bail};
use std::{
    collections::BTreeSet,
    fmt,
    path::{Path, PathBuf},
};
use time::OffsetDateTime;

pub struct Survey {
    pub config: Config,
    pub machine: Machine,
    pub services: BTreeSet<Service>,
    pub disk: Option<DataDisk>,
    /// What the operator should know, though it stops nothing.
    pub warnings: Vec<String>,
}

impl Survey {
    /// `asked` are the services named on the command line; none means all.
    pub fn new(host: &Host, config: Config, asked: &[Service], receipt: &Receipt) -> Result<Self> {
        let mut survey = Self::without_data(host, config, asked, receipt)?;
        if host.is_live() {
            survey.disk = data_disk(host, &survey.config, receipt, &mut survey.warnings)?;
        }
        Ok(survey)
    }

    /// As `new`, with no look at the disks. For what serves the data's pages but has no part in the data:
    /// certificates are renewed while the disk is missing, too.
    pub fn without_data(host: &Host, config: Config, asked: &[Service], receipt: &Receipt) -> Result<Self> {
        let release = host.read_text(Path::new("/etc/os-release"))?.unwrap_or_default();
        apt::check_system(&release).or_try("install on a fresh Debian or Ubuntu machine")?;
        let services = choose(&config, asked, &receipt.installed());
        let nothing = || bail!("every service is switched off");
        if services.is_empty() {
            nothing().or_try("set enabled = true for one of them in the settings")?;
        }
        let machine = Machine::look(host)?;
        Ok(Self { machine, config, services, disk: None, warnings: Vec::new() })
    }

    /// Whether the team's own pair, where one is set, holds for every name: before anything is done.
    pub fn check_files(&self, host: &Host) -> Result<()> {
        let tls = &self.config.tls;
        let (Signer::Files, Some(chain), Some(key)) =
            (self.config.signer(), tls.cert_file.to_path(), tls.key_file.to_path())
        else {
            return Ok(());
        };
        let pair = certificate::brought(host, &chain, &key)?;
        for service in &self.services {
            let name = service.host(&self.config);
            store::check(&pair, &name, OffsetDateTime::now_utc())
                .with_context(|| format!("checking {} and {} for {name}", chain.display(), key.display()))
                .or_try("put a certificate there that holds for every name, with its chain and its key")?;
        }
        Ok(())
    }

    /// The same, after packages came that the drawing depends on.
    pub fn again(self, host: &Host) -> Result<Self> {
        Ok(Self { machine: Machine::look(host)?, ..self })
    }

    pub fn blueprint(&self) -> Result<Vec<Resource>> {
        let Self { config, machine, services, disk, .. } = self;
        blueprint(&Site { config, machine, services, disk: disk.as_ref() })
    }

    /// Whether the ports we need are free, or ours. Others are reported by name. Reads every process: for when
    /// something is to be done.
    pub fn check_ports(&self, host: &Host) -> Result<()> {
        if !host.is_live() {
            return Ok(());
        }
        let listeners = listeners(&host.run(&Cmd::new("ss", ["-H", "-l", "-n", "-t", "-p"]))?);
        let stranger = |port: u16, unit: &str| -> Result<Option<String>> {
            for listener in listeners.iter().filter(|listener| listener.port == port) {
                // A service of an earlier version of ours listened there itself.
                if !listener.is_of(host, nginx::UNIT)? && !listener.is_of(host, unit)? {
                    return Ok(Some(listener.to_string()));
                }
            }
            Ok(None)
        };
        for port in [80, 443] {
            if let Some(who) = stranger(port, nginx::UNIT)? {
                let busy = || bail!("port {port} is taken by {who}");
                return busy().or_try("stop and disable it, or move it to another port, then run this again");
            }
        }
        for service in &self.services {
            let port = service.port(&self.config);
            if let Some(who) = stranger(port, &service.unit())? {
                let busy = || bail!("port {port}, where {service} should listen, is taken by {who}");
                return busy()
                    .or_try(format_args!("stop it, or choose another port: --set {service}.port=…"));
            }
        }
        Ok(())
    }

    /// Whether there is room for MLflow's database, where another version of it is to come: before the one that runs stops.
    pub fn check_room(&self, host: &Host) -> Result<()> {
        let data = self.config.data.path.to_path().join("mlruns");
        let uri = mlflow::uri(&data, self.config.mlflow.backend.as_str());
        if !host.is_live() || !self.services.contains(&Service::Mlflow) || !mlflow::is_here(&data, Some(&uri))
        {
            return Ok(());
        }
        mlflow::check_room(host, &data, python::expected(host, self.machine.python)?.mlflow)
    }

    /// Whether a site of somebody else's answers for every name, as ours must.
    pub fn check_sites(&self, host: &Host, receipt: &Receipt) -> Result<()> {
        if !host.is_live() {
            return Ok(());
        }
        let ours = |path: &Path| {
            receipt.links.contains_key(path)
                || receipt.files.contains_key(path)
                || path == Path::new("/etc/nginx/sites-enabled/default")
        };
        let rivals = nginx::rivals(host, &ours)?;
        if !rivals.is_empty() {
            let claimed = || bail!("another site claims every name: {}", rivals.join(", "));
            return claimed()
                .or_try("take `default_server` out of it, so that it answers for its own names only");
        }
        Ok(())
    }
}

/// Decide on the data disk, or say why that cannot be decided.
fn data_disk(
    host: &Host,
    config: &Config,
    receipt: &Receipt,
    warnings: &mut Vec<String>,
) -> Result<Option<DataDisk>> {
    let choice: disk::Choice = config.data.disk.as_str().parse().map_err(anyhow::Error::msg)?;
    let at = config.data.path.as_str();
    let noted: Vec<String> = receipt.formatting.keys().cloned().collect();
    if choice == disk::Choice::None {
        return Ok(None);
    }
    let seen = disk::look(host, &choice)?;
    let udev = disk::has_udev(host)?;
    let size = |path: &str| seen.disks.iter().find(|disk| disk.path == path).map_or(0, |disk| disk.size);
    let found = match disk::decide(&seen, &choice, at, &noted) {
        Decision::NotWanted => return Ok(None),
        Decision::Use { path, uuid } => {
            DataDisk { size: size(&path), device: path, uuid, blank: false, udev }
        }
        Decision::Format { path, size, uuid } => {
            let uuid = uuid.map_or_else(disk::new_uuid, Ok)?;
            DataDisk { device: path, uuid, size, blank: true, udev }
        }
        Decision::NoDisk { passed } => {
            if let Some(unit) = receipt.units.iter().find(|unit| unit.ends_with(".mount")) {
                let gone = || bail!("the data disk of this headquarters ({unit}) is not attached");
                return gone().or_try("attach it and run this again; nothing was changed");
            }
            let passed: Vec<_> = passed.iter().map(|(disk, why)| format!("{disk}: {why}")).collect();
            let over = if passed.is_empty() {
                String::new()
            } else {
                format!(" (passed over: {})", passed.join("; "))
            };
            warnings.push(format!(
                "no data disk{over}: the data go to {at} on the OS disk, and are lost with it"
            ));
            return Ok(None);
        }
        Decision::Refuse(refusal) => {
            let hint = refusal.hint.clone();
            return Err(anyhow::Error::new(refusal)).or_try(hint);
        }
    };
    refuse_to_hide(host, config)?;
    Ok(Some(found))
}

/// Mounting a disk over data that are on the OS disk would hide them.
fn refuse_to_hide(host: &Host, config: &Config) -> Result<()> {
    let at = config.data.path.to_path();
    if host.is_mount_point(&at)? {
        return Ok(());
    }
    if let Some(file) = first_file(host, &at)? {
        let hidden =
            || bail!("{} is on the OS disk, and mounting the data disk would hide it", file.display());
        return hidden().or_try("move what is there to the data disk by hand, or use --set data.disk=none");
    }
    Ok(())
}

/// Anything below `dir` that is not a directory. Ours are made empty, and hold nothing that could be lost.
fn first_file(host: &Host, dir: &Path) -> Result<Option<PathBuf>> {
    for name in host.list(dir)? {
        let path = dir.join(name);
        let found = match host.meta(&path)?.map(|meta| meta.kind) {
            Some(Kind::Dir) => first_file(host, &path)?,
            Some(_) => Some(path),
            None => None,
        };
        if found.is_some() {
            return Ok(found);
        }
    }
    Ok(None)
}

/// Who listens on a port.
#[derive(Debug, PartialEq, Eq)]
struct Listener {
    port: u16,
    /// Name and process number; none for a process that we cannot see.
    who: Option<(String, u32)>,
}

impl Listener {
    fn is_of(&self, host: &Host, unit: &str) -> Result<bool> {
        let Some((_, pid)) = &self.who else { return Ok(false) };
        let groups = host.read_text(Path::new(&format!("/proc/{pid}/cgroup")))?.unwrap_or_default();
        Ok(groups.lines().any(|line| line.split('/').any(|part| part == unit)))
    }
}

impl fmt::Display for Listener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.who {
            Some((name, pid)) => write!(f, "{name} (process {pid})"),
            None => write!(f, "a process we cannot see"),
        }
    }
}

/// From `ss -Hlntp`. Pure.
fn listeners(sockets: &str) -> Vec<Listener> {
    let listener = |line: &str| {
        let port = line.split_whitespace().nth(3)?.rsplit(':').next()?.parse().ok()?;
        // users:(("apache2",pid=12,fd=4),…)
        let who = || {
            let (name, rest) = line.split_once("((\"")?.1.split_once('"')?;
            let pid: String = rest.strip_prefix(",pid=")?.chars().take_while(char::is_ascii_digit).collect();
            Some((name.to_owned(), pid.parse().ok()?))
        };
        Some(Listener { port, who: who() })
    };
    sockets.lines().filter_map(listener).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::System;

    #[test]
    fn who_holds_a_port_is_named() {
        let said = "LISTEN 0 511 0.0.0.0:80 0.0.0.0:* users:((\"apache2\",pid=12,fd=4),(\"apache2\",pid=13,fd=4))\n\
                    LISTEN 0 511 [::]:443 [::]:* users:((\"nginx\",pid=13,fd=4))\n\
                    LISTEN 0 511 127.0.0.1:8080 0.0.0.0:*\n";
        let found: Vec<_> = listeners(said).iter().map(|found| format!("{} {found}", found.port)).collect();
        assert_eq!(
            found,
            ["80 apache2 (process 12)", "443 nginx (process 13)", "8080 a process we cannot see"]
        );
    }

    #[test]
    fn a_listener_is_the_units_whose_group_it_is_in() {
        let dir = tempfile::tempdir().unwrap();
        let host = Host::new(dir.path(), System);
        host.write(Path::new("/proc/12/cgroup"), 0o644, b"0::/system.slice/mlflow.service\n").unwrap();
        let is_of =
            |pid, unit| Listener { port: 1, who: Some(("x".into(), pid)) }.is_of(&host, unit).unwrap();
        assert!(is_of(12, "mlflow.service"));
        assert!(!is_of(12, "docs.service") && !is_of(13, "mlflow.service"));
    }
}
