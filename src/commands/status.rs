//! `status`: how each service is doing, at a glance. Asks systemd and the files, not the services: it must answer
//! when nothing else does.

use super::{config::Settings, need_installed, need_root, this_machine};
use crate::{
    config::Config,
    host::{Cmd, Host},
    hq::{
        disk::size_words,
        eyes::{Eyes, UnitFacts},
        probe, python,
        receipt::Receipt,
        service::Service,
    },
    tls::renewal::{Health, health},
    ui::{Ui, table},
};
use anyhow::Result;
use serde::Serialize;
use std::path::Path;

#[derive(clap::Args)]
pub struct Args {
    /// Print it as JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Serialize)]
struct Status {
    services: Vec<ServiceStatus>,
    data: DataStatus,
}

#[derive(Serialize)]
struct ServiceStatus {
    name: &'static str,
    /// systemd's ActiveState, or "not installed".
    state: String,
    version: Option<String>,
    /// Bytes.
    memory: Option<u64>,
    /// Seconds.
    uptime: Option<u64>,
    url: String,
    certificate_days_left: Option<i64>,
    /// "good"; "warning" with less than a quarter of its life left, "bad" with less than a tenth.
    certificate_health: Option<&'static str>,
    last_error: Option<String>,
}

#[derive(Serialize)]
struct DataStatus {
    path: String,
    mounted: bool,
    disk: String,
    /// Bytes; absent when there is no such directory.
    free: Option<u64>,
    size: Option<u64>,
}

pub fn run(args: Args, settings: &Settings, ui: &Ui) -> Result<u8> {
    let host = this_machine();
    need_installed(&host)?;
    let config = settings.read(&host)?;
    // The receipt is root's, and may be damaged; without it what systemd knows must do.
    let receipt = Receipt::read(&host);
    if let Err(error) = &receipt
        && need_root(&host).is_ok()
    {
        ui.warn_of(error);
    }
    let installed = receipt.map(|receipt| receipt.installed()).ok();
    let units: Vec<String> = Service::ALL.into_iter().map(Service::unit).collect();
    let names: Vec<&str> = units.iter().map(String::as_str).collect();
    let eyes = Eyes::open(&host, &[], &names)?;
    let service = |service: Service| {
        let facts = eyes.units.get(&service.unit()).cloned().unwrap_or_default();
        let known = installed.as_ref().map_or(facts.enabled, |all| all.contains(&service));
        one(&host, &config, service, &facts, known)
    };
    let services = Service::ALL.into_iter().map(service).collect();
    let status = Status { services, data: data(&host, &config)? };
    if args.json {
        ui.out(serde_json::to_string_pretty(&status)?);
    } else {
        ui.out(words(&status));
    }
    Ok(0)
}

fn one(host: &Host, config: &Config, service: Service, facts: &UnitFacts, known: bool) -> ServiceStatus {
    let number = |name: &str| facts.properties.get(name).and_then(|n| n.parse::<u64>().ok());
    let version = match service {
        Service::Mlflow => python::installed(host, "mlflow"),
        Service::Tensorboard => python::installed(host, "tensorboard"),
        Service::Dashboard | Service::Docs => Some(env!("CARGO_PKG_VERSION").into()),
    };
    let since = facts.properties.get("ActiveEnterTimestampMonotonic").and_then(|n| n.parse::<u64>().ok());
    let uptime = since.filter(|_| facts.active == "active").and_then(|since| {
        let boot = host.read_text(Path::new("/proc/uptime")).ok()??;
        let up: f64 = boot.split(' ').next()?.parse().ok()?;
        Some((up as u64).saturating_sub(since / 1_000_000))
    });
    let certificate = probe::on_disk(host, &service.host(config)).ok();
    ServiceStatus {
        name: service.name(),
        state: if known { facts.active.clone() } else { "not installed".into() },
        version: version.filter(|_| known),
        // systemd says [not set], or the largest number there is, for what it does not count.
        memory: number("MemoryCurrent").filter(|n| *n < u64::MAX / 2 && facts.active == "active"),
        uptime,
        url: service.url(config),
        certificate_days_left: certificate.as_ref().map(probe::days_left),
        certificate_health: certificate.map(|cert| {
            match health(time::OffsetDateTime::now_utc(), cert.not_before, cert.not_after) {
                Health::Good => "good",
                Health::Warn => "warning",
                Health::Bad => "bad",
            }
        }),
        last_error: last_error(host, &service.unit()).filter(|_| known),
    }
}

/// The last thing it or systemd called an error since this boot.
fn last_error(host: &Host, unit: &str) -> Option<String> {
    let args = ["-u", unit, "-b", "-p", "err", "-n", "1", "-o", "cat", "--no-pager", "-q"];
    let said = host.ask(&Cmd::new("journalctl", args)).ok()?.stdout;
    let line = said.trim();
    (!line.is_empty()).then(|| line.to_owned())
}

fn data(host: &Host, config: &Config) -> Result<DataStatus> {
    let path = config.data.path.to_path();
    let mounted = host.is_mount_point(&path)?;
    let (free, size) = host.room(&path).map_or((None, None), |(free, size)| (Some(free), Some(size)));
    Ok(DataStatus {
        path: path.display().to_string(),
        mounted,
        disk: config.data.disk.to_string(),
        free,
        size,
    })
}

fn words(status: &Status) -> String {
    let dash = || "-".to_owned();
    let head = ["service", "state", "version", "memory", "up", "certificate", "url"];
    let mut rows = vec![head.iter().map(ToString::to_string).collect::<Vec<_>>()];
    let mut errors = String::new();
    for service in &status.services {
        rows.push(vec![
            service.name.into(),
            service.state.clone(),
            service.version.clone().unwrap_or_else(dash),
            service.memory.map_or_else(dash, size_words),
            service.uptime.map_or_else(dash, ago),
            service.certificate_days_left.map_or_else(dash, |days| match service.certificate_health {
                Some("warning") => format!("{days} days: soon"),
                Some("bad") => format!("{days} days: too few"),
                _ => format!("{days} days"),
            }),
            service.url.clone(),
        ]);
        if let Some(error) = &service.last_error {
            errors.push_str(&format!("\n{}: {error}", service.name));
        }
    }
    let data = &status.data;
    let room = match (data.free, data.size) {
        (Some(free), Some(size)) => format!("{} of {} free", size_words(free), size_words(size)),
        _ => "not there".into(),
    };
    let place = match (data.mounted, data.disk.as_str()) {
        (true, _) => "data disk",
        (false, "none") => "on the OS disk, as set",
        (false, _) => "NO data disk is mounted",
    };
    let errors = if errors.is_empty() { errors } else { format!("\n\nlast errors:{errors}") };
    format!("{}\n\ndata: {}, {place}, {room}{errors}", table(&rows), data.path)
}

/// A length of time in its two largest units.
fn ago(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}m", seconds / 60),
        3600..86400 => format!("{}h {}m", seconds / 3600, seconds % 3600 / 60),
        _ => format!("{}d {}h", seconds / 86400, seconds % 86400 / 3600),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_of_time_are_short() {
        assert_eq!([5, 65, 3700, 90000].map(ago), ["5s", "1m", "1h 1m", "1d 1h"]);
    }
}
