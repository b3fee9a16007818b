//! `logs SERVICE`: what it wrote to the system's journal.

use super::{need_root, this_machine};
use crate::hq::service::Service;
use anyhow::{Context as _, Result};
use nix::unistd::{Group, getegid, getgroups};
use std::os::unix::process::CommandExt as _;

#[derive(clap::Args)]
pub struct Args {
    /// mlflow, tensorboard, dashboard, docs; or nginx, auth, run-proxy, renew
    #[arg(value_parser = unit)]
    service: String,
    /// Go on as more is written
    #[arg(short, long)]
    follow: bool,
    /// How many lines from the end
    #[arg(short = 'n', long, value_name = "N", default_value_t = 100)]
    lines: u32,
    /// From when on, as journalctl reads it: "1 hour ago", "today", 2026-11-23
    #[arg(long, value_name = "TIME")]
    since: Option<String>,
}

fn unit(name: &str) -> Result<String, String> {
    let ours = Service::ALL.into_iter().find(|service| service.name() == name).map(Service::unit);
    let others = match name {
        "nginx" => Some("nginx.service"),
        "auth" => Some("echoes-auth.service"),
        "run-proxy" => Some("echoes-run-proxy.service"),
        "renew" => Some("echoes-renew.service"),
        _ => None,
    };
    ours.or(others.map(Into::into))
        .ok_or("not one of mlflow, tensorboard, dashboard, docs, nginx, auth, run-proxy, renew".into())
}

/// Who is in one of these may read all of the journal, as systemd-journald.service(8) has it; others see nothing in there
/// but what is their own.
const READERS: [&str; 3] = ["systemd-journal", "adm", "wheel"];

fn may_read() -> Result<bool> {
    let own = getgroups().context("asking for one's own groups")?;
    let is_in = |name: &str| -> Result<bool> {
        Ok(Group::from_name(name)?.is_some_and(|group| group.gid == getegid() || own.contains(&group.gid)))
    };
    Ok(READERS.into_iter().map(is_in).collect::<Result<Vec<_>>>()?.contains(&true))
}

pub fn run(args: Args) -> Result<u8> {
    if !may_read()? {
        need_root(&this_machine())?;
    }
    let lines = args.lines.to_string();
    let mut rest = vec!["-u", &args.service, "-n", &lines];
    if args.follow {
        rest.push("-f");
    }
    if let Some(since) = &args.since {
        rest.extend(["--since", since]);
    }
    // It takes our place: the terminal, its size, its signals and its pager are its own.
    #[allow(clippy::disallowed_methods)]
    let gone = std::process::Command::new("journalctl").args(rest).exec();
    Err(gone).context("running journalctl")
}
