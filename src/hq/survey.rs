//! Before anything is done: what this machine is, which services go on it and which disk, and whether something
//! stands in the way. Looks, refuses, and touches nothing.

use super::{
    apt,
    blueprint::{DataDisk, Site, blueprint},
    disk::{self, Decision},
    machine::Machine,
    nginx,
    receipt::Receipt,
    resource::Resource,
    service::{Service, choose},
};
use crate::{
    config::Config,
    host::{Cmd, Host, Kind},
    ui::Try as _,
};
use anyhow::{Result, bail};
use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

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

    /// The same, after packages came that the drawing depends on.
    pub fn again(self, host: &Host) -> Result<Self> {
        Ok(Self { machine: Machine::look(host)?, ..self })
    }

    pub fn blueprint(&self) -> Result<Vec<Resource>> {
        let Self { config, machine, services, disk, .. } = self;
        blueprint(&Site { config, machine, services, disk: disk.as_ref() })
    }

    /// Whether nginx runs with our sites and every service has been here before: then no port can be a stranger's,
    /// and looking who listens, which reads every process, can be left out.
    fn all_taken_by_us(&self, host: &Host, receipt: &Receipt) -> Result<bool> {
        let pid = host.read_text(Path::new("/run/nginx.pid"))?.unwrap_or_default();
        let comm = host.read_text(&Path::new("/proc").join(pid.trim()).join("comm"))?;
        Ok(receipt.loaded.contains_key(nginx::UNIT)
            && !pid.trim().is_empty()
            && comm.is_some_and(|name| name.trim() == "nginx")
            && self.services.iter().all(|service| receipt.units.contains(&service.unit())))
    }

    /// Whether the ports and names we need are free, or ours. Others are reported by name.
    pub fn check_web(&self, host: &Host, receipt: &Receipt) -> Result<()> {
        if !host.is_live() {
            return Ok(());
        }
        let sockets = if self.all_taken_by_us(host, receipt)? {
            String::new()
        } else {
            host.run(&Cmd::new("ss", ["-H", "-l", "-n", "-t", "-p"]))?
        };
        let taken = strangers(&sockets, &[80, 443], "nginx");
        if let Some((port, who)) = taken.first() {
            let busy = || bail!("port {port} is taken by {who}");
            return busy().or_try("stop and disable it, or move it to another port, then run this again");
        }
        for service in &self.services {
            let port = service.port(&self.config);
            if receipt.units.contains(&service.unit()) {
                continue;
            }
            if let Some((port, who)) = strangers(&sockets, &[port], "").first() {
                let busy = || bail!("port {port}, where {service} should listen, is taken by {who}");
                return busy()
                    .or_try(format_args!("stop it, or choose another port: --set {service}.port=…"));
            }
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

/// Who else listens on one of `ports`: (port, name). From `ss -Hlntp`. Pure.
fn strangers(sockets: &str, ports: &[u16], ours: &str) -> Vec<(u16, String)> {
    let mut found = Vec::new();
    for line in sockets.lines() {
        let words: Vec<_> = line.split_whitespace().collect();
        let port = words.get(3).and_then(|at| at.rsplit(':').next()).and_then(|port| port.parse().ok());
        let Some(port) = port.filter(|port| ports.contains(port)) else { continue };
        // users:(("apache2",pid=12,fd=4),…)
        let who = line.split_once("((\"").and_then(|(_, rest)| rest.split_once('"')).map(|(name, _)| name);
        let pid = line
            .split_once("pid=")
            .map(|(_, rest)| rest.chars().take_while(char::is_ascii_digit).collect::<String>());
        match (who, pid) {
            (Some(name), _) if name == ours => {}
            (Some(name), Some(pid)) => found.push((port, format!("{name} (process {pid})"))),
            _ => found.push((port, "a process we cannot see".into())),
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_holds_a_port_is_named() {
        let said = "LISTEN 0 511 0.0.0.0:80 0.0.0.0:* users:((\"apache2\",pid=12,fd=4))\n\
                    LISTEN 0 511 [::]:443 [::]:* users:((\"nginx\",pid=13,fd=4))\n\
                    LISTEN 0 511 127.0.0.1:8080 0.0.0.0:*\n";
        assert_eq!(strangers(said, &[80, 443], "nginx"), [(80, "apache2 (process 12)".into())]);
        assert_eq!(strangers(said, &[8080], ""), [(8080, "a process we cannot see".into())]);
    }
}
