//! `status`: how each service is doing, and what all of them stand on, at a glance. Asks systemd and the files, not the
//! services: it must answer when nothing else does.

use super::{config::Settings, need_installed, need_root, this_machine};
use crate::{
    config::Config,
    host::{Cmd, Host},
    hq::{
        blueprint::{AUTH, RUN_PROXY, TENSORBOARD_PROXY, is_part_wanted},
        disk::size_words,
        eyes::{Eyes, UnitFacts},
        nginx, probe, python,
        receipt::Receipt,
        service::Service,
    },
    tls::renewal::{Health, health},
    ui::{Ui, table},
};
use anyhow::Result;
use serde::Serialize;
use std::path::Path;

/// The state of a service that nobody asked for.
const NOT_INSTALLED: &str = "not installed";

#[derive(clap::Args)]
pub struct Args {
    /// Print it as JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Serialize)]
struct Status {
    services: Vec<ServiceStatus>,
    /// What the services stand on.
    parts: Vec<PartStatus>,
    data: DataStatus,
    /// The names of services and parts that should be up and are not.
    down: Vec<&'static str>,
}

#[derive(Serialize)]
struct PartStatus {
    name: &'static str,
    /// systemd's name for it.
    unit: String,
    /// As a service's.
    state: String,
    last_error: Option<String>,
}

/// What all services stand on: its name, its unit, and what is missing without it.
const PARTS: [(&str, &str, &str); 6] = [
    ("nginx", nginx::UNIT, "nobody gets in"),
    ("auth", AUTH, "nobody's password can be checked"),
    ("run-proxy", RUN_PROXY, "runs reach no MLflow"),
    ("tensorboard-proxy", TENSORBOARD_PROXY, "nobody reaches TensorBoard"),
    ("renewal", "echoes-renew.timer", "certificates run out"),
    ("sweep", "echoes-sweep.timer", "what a run has rented may stay when its driver dies"),
];

/// Exit status when something is down, as `validate` has it.
const DOWN: u8 = 3;

#[derive(Serialize)]
struct ServiceStatus {
    name: &'static str,
    /// systemd's ActiveState; "auto-restart" for what died and waits to be started again; or "not installed".
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
    let names: Vec<&str> = units.iter().map(String::as_str).chain(PARTS.map(|(_, unit, _)| unit)).collect();
    let eyes = Eyes::open(&host, &[], &names)?;
    let facts = |unit: &str| eyes.units.get(unit).cloned().unwrap_or_default();
    let service = |service: Service| {
        let facts = facts(&service.unit());
        let known = installed.as_ref().map_or(facts.enabled, |all| all.contains(&service));
        one(&host, &config, service, &facts, known)
    };
    let services: Vec<_> = Service::ALL.into_iter().map(service).collect();
    let part = |(name, unit, _): (&'static str, &str, &str)| PartStatus {
        name,
        unit: unit.into(),
        state: state(&facts(unit)),
        last_error: last_error(&host, unit),
    };
    let has = |service: Service| {
        services.iter().any(|one| one.name == service.name() && one.state != NOT_INSTALLED)
    };
    let parts: Vec<_> =
        PARTS.into_iter().filter(|(_, unit, _)| is_part_wanted(unit, &config, has)).map(part).collect();
    let data = data(&host, &config)?;
    let down = down(&services, &parts, &data);
    let status = Status { services, parts, data, down };
    if args.json {
        ui.out(serde_json::to_string_pretty(&status)?);
    } else {
        ui.out(words(&status));
    }
    Ok(if status.down.is_empty() { 0 } else { DOWN })
}

/// Names what should be up and is not. Pure.
fn down(services: &[ServiceStatus], parts: &[PartStatus], data: &DataStatus) -> Vec<&'static str> {
    // Also while it starts, which takes MLflow some seconds.
    let is_up = |state: &str| matches!(state, "active" | "activating" | "reloading" | NOT_INSTALLED);
    let services = services.iter().map(|one| (one.name, one.state.as_str()));
    let parts = parts.iter().map(|one| (one.name, one.state.as_str()));
    let down = services.chain(parts).filter(|(_, state)| !is_up(state)).map(|(name, _)| name);
    let lacks_disk = !data.mounted && data.disk != "none";
    down.chain(lacks_disk.then_some("data")).collect()
}

fn state(facts: &UnitFacts) -> String {
    let sub = facts.properties.get("SubState");
    sub.filter(|sub| *sub == "auto-restart").unwrap_or(&facts.active).clone()
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
        state: if known { state(facts) } else { NOT_INSTALLED.into() },
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
    let mut parts = Vec::new();
    for part in &status.parts {
        let without = PARTS.iter().find(|(name, ..)| *name == part.name).map_or("", |(.., without)| without);
        let lacks = if status.down.contains(&part.name) { format!(": {without}") } else { String::new() };
        parts.push(vec![part.name.to_owned(), format!("{}{lacks}", part.state)]);
        if let Some(error) = &part.last_error {
            errors.push_str(&format!("\n{}: {error}", part.name));
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
    parts.push(vec!["data".to_owned(), format!("{}, {place}, {room}", data.path)]);
    format!("{}\n\n{}{errors}", table(&rows), table(&parts))
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
    fn what_should_be_up_and_is_not_is_named() {
        let service = |name, state: &str| ServiceStatus {
            name,
            state: state.into(),
            version: None,
            memory: None,
            uptime: None,
            url: String::new(),
            certificate_days_left: None,
            certificate_health: None,
            last_error: None,
        };
        let part = |name, state: &str| PartStatus {
            name,
            unit: String::new(),
            state: state.into(),
            last_error: None,
        };
        let data = |mounted, disk: &str| DataStatus {
            path: "/d".into(),
            mounted,
            disk: disk.into(),
            free: None,
            size: None,
        };
        let up =
            [service("mlflow", "active"), service("docs", NOT_INSTALLED), service("dashboard", "activating")];
        let parts = [part("nginx", "active"), part("sweep", "active")];
        assert_eq!(down(&up, &parts, &data(true, "auto")), Vec::<&str>::new());
        assert_eq!(down(&up, &parts, &data(false, "none")), Vec::<&str>::new());
        let bad = [service("mlflow", "auto-restart"), service("docs", "failed")];
        let parts = [part("nginx", "inactive"), part("sweep", "active"), part("auth", "")];
        assert_eq!(down(&bad, &parts, &data(false, "auto")), ["mlflow", "docs", "nginx", "auth", "data"]);
        let status = Status {
            down: down(&bad, &parts, &data(false, "auto")),
            services: bad.into(),
            parts: parts.into(),
            data: data(false, "auto"),
        };
        assert!(words(&status).contains(" inactive: nobody gets in\n"), "{}", words(&status));
    }

    #[test]
    fn a_unit_that_waits_to_be_started_again_is_not_starting() {
        let facts = |sub: &str| UnitFacts {
            active: "activating".into(),
            properties: [("SubState".to_owned(), sub.to_owned())].into(),
            ..UnitFacts::default()
        };
        assert_eq!(
            (state(&facts("auto-restart")), state(&facts("start"))),
            ("auto-restart".into(), "activating".into())
        );
    }

    #[test]
    fn lengths_of_time_are_short() {
        assert_eq!([5, 65, 3700, 90000].map(ago), ["5s", "1m", "1h 1m", "1d 1h"]);
    }
}
