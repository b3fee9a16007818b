//! `gpu doctor`: whether the next run would find what it needs, before it costs anything. With `--live` it is tried.

use super::{live, wish};
use crate::{
    commands::{config::Settings, gpu_run, need_root, this_machine},
    config::Config,
    gpu::{
        agent::start::SYSTEMD,
        driver,
        provider::{
            self, Provider, Rent,
            ssh::{Owned, reach},
        },
        spec::Source,
        sweep,
    },
    host::{Cmd, Host},
    hq::disk::size_words,
    ui::{Ui, table, told},
};
use anyhow::Result;
use serde::Serialize;
use std::{path::Path, sync::Arc};

#[derive(clap::Args)]
pub struct Args {
    /// Do a whole run of a few lines on the cheapest machine, and say how long each part took
    #[arg(long)]
    live: bool,
    /// With --live: where the machine comes from, as for gpu-run
    #[arg(long, value_parser = gpu_run::source, requires = "live")]
    provider: Option<Source>,
    #[command(flatten)]
    wish: wish::Flags,
    /// With --live: ask no question
    #[arg(short, long, requires = "live")]
    yes: bool,
    /// Print the answers as JSON
    #[arg(long)]
    pub json: bool,
}

/// As `validate` has it.
const PROBLEM: u8 = 3;

/// Results need room, and so do environments.
const ROOM: u64 = 5 << 30;

#[derive(Serialize)]
pub struct Answer {
    id: &'static str,
    pub good: bool,
    found: String,
    fix: Option<String>,
}

impl Answer {
    pub fn good(id: &'static str, found: impl Into<String>) -> Self {
        Self { id, good: true, found: found.into(), fix: None }
    }

    pub fn bad(id: &'static str, found: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { id, good: false, found: found.into(), fix: Some(fix.into()) }
    }
}

pub fn run(args: Args, settings: &Settings, ui: &Ui) -> Result<u8> {
    if args.live {
        let json = args.json;
        let wanted = live::Wanted { source: args.provider, wish: args.wish, yes: args.yes, json };
        return Ok(match live::run(wanted, settings, ui)? {
            Ok(answers) => tell(&answers, json, ui)?,
            Err(status) => status,
        });
    }
    let host = Arc::new(this_machine());
    need_root(&host)?;
    let config = settings.read(&host)?;
    let ours = provider::ours(&host, &config)?;
    let ours: Vec<&dyn Provider> = ours.iter().map(AsRef::as_ref).collect();
    let answers = [
        room(&host, &config)?,
        drivers(&host)?,
        sweeps(&host)?,
        sandbox(&host, &config)?,
        machine(&host, &config, config.gpu.source())?,
        loose(&host, &ours)?,
    ];
    tell(&answers, args.json, ui)
}

/// The exit status that says the same.
fn tell(answers: &[Answer], json: bool, ui: &Ui) -> Result<u8> {
    let good = answers.iter().all(|answer| answer.good);
    if json {
        ui.out(serde_json::to_string_pretty(&serde_json::json!({ "good": good, "rows": answers }))?);
    } else {
        let row = |answer: &Answer| {
            let mark = if answer.good { ui.good() } else { ui.bad() };
            let fix = answer.fix.as_ref().map_or_else(String::new, |fix| format!("; try: {fix}"));
            vec![mark, answer.id.into(), format!("{}{fix}", answer.found)]
        };
        ui.out(table(&answers.iter().map(row).collect::<Vec<_>>()));
    }
    Ok(if good { 0 } else { PROBLEM })
}

fn room(host: &Host, config: &Config) -> Result<Answer> {
    let at = config.data.path.to_path();
    if !host.exists(&at)? {
        let fix = "sudo echoes-appliance install, or --set data.path=DIR";
        return Ok(Answer::bad("results.room", format!("{} is not there", at.display()), fix));
    }
    let (free, _) = host.room(&at)?;
    let found = format!("{} free at {}", size_words(free), at.display());
    Ok(if free >= ROOM {
        Answer::good("results.room", found)
    } else {
        Answer::bad("results.room", found, "make room")
    })
}

fn drivers(host: &Host) -> Result<Answer> {
    let unit = host.exists(Path::new(driver::UNIT))?;
    Ok(if unit {
        Answer::good("driver.unit", "a driver that dies is started again")
    } else {
        Answer::bad("driver.unit", "a driver that dies stays dead", "sudo echoes-appliance install")
    })
}

fn sweeps(host: &Host) -> Result<Answer> {
    let said = host.ask(&Cmd::new("systemctl", ["is-active", "echoes-sweep.timer"]));
    Ok(if said.is_ok_and(|out| out.ok()) {
        Answer::good("sweep.timer", "what is loose is taken up every few minutes")
    } else {
        let fix = "sudo echoes-appliance install; until then `echoes-appliance gpu sweep` by hand";
        Answer::bad("sweep.timer", "nobody takes up what is loose", fix)
    })
}

/// Which holds, for scripts of this machine. A team that has decided so has no problem.
fn sandbox(host: &Host, config: &Config) -> Result<Answer> {
    let systemd = host.exists(Path::new(SYSTEMD))?;
    Ok(Answer::good(
        "local.sandbox",
        match (config.gpu.local_sandbox, systemd) {
            (true, true) => {
                "a script of this machine has its person's rights and no more, and is kept from the machine's identity"
            }
            (true, false) => {
                "a script of this machine cannot become root; without systemd nothing keeps it from the machine's identity"
            }
            (false, _) => {
                "off (gpu.local_sandbox): a script of this machine is root where its person may be by sudo, and has the \
             machine's identity"
            }
        },
    ))
}

/// Whether the team's own machine answers. Where asking for a machine would rent one, only the landlord is asked.
fn machine(host: &Arc<Host>, config: &Config, source: Source) -> Result<Answer> {
    let name = source.to_string();
    if source == Source::Azure {
        return Ok(match provider::greet_azure(host, config) {
            Ok(()) => Answer::good("machine", "azure knows us; `gpu offers` shows what there is"),
            Err(error) => {
                Answer::bad("machine", format!("{error:#}"), "`az login` as root, or AZURE_CLIENT_ID")
            }
        });
    }
    let Source::Ssh { user, host: at, port } = source else {
        return Ok(Answer::good("machine", name));
    };
    let owned = Owned::new(host, reach(&config.gpu, &user, &at, port));
    Ok(match owned.meet() {
        // What cannot be asked is no problem of its own.
        Ok(Rent::Here(_)) if owned.ends_at_logout().unwrap_or(false) => {
            let found = format!(
                "{name} answers, but a connection that closes takes a script along (KillUserProcesses=yes)"
            );
            let fix = format!(
                "over there: `loginctl enable-linger {user}` as root; else such a script has another attempt"
            );
            Answer::bad("machine", found, fix)
        }
        Ok(Rent::Here(_) | Rent::Coming(_)) => Answer::good("machine", format!("{name} answers")),
        Ok(Rent::Refused(refusal)) => Answer::bad("machine", refusal.said, refusal.hint.unwrap_or_default()),
        Err(error) => Answer::bad("machine", format!("{error:#}"), "see whether it is on"),
    })
}

fn loose(host: &Host, ours: &[&dyn Provider]) -> Result<Answer> {
    let found = sweep::look(host, ours)?;
    let all: Vec<String> = found
        .loose
        .iter()
        .map(ToString::to_string)
        .chain(found.errors.iter().map(|error| told(error).0.join(": ")))
        .collect();
    Ok(if all.is_empty() {
        Answer::good("loose", "nothing")
    } else {
        Answer::bad("loose", all.join("; "), "echoes-appliance gpu sweep")
    })
}
