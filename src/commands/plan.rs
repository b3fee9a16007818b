//! `plan`: install that stops before doing.

use super::{
    config::{First, Settings},
    machine_in, need_root,
};
use crate::{
    host::Host,
    hq::{
        plan::{Change, Sweep, Take, look, plan},
        receipt::Receipt,
        resource::{Resource, Seen},
        service::Service,
        survey::Survey,
        undo::{Fate, Undo},
    },
    ui::Ui,
};
use anyhow::Result;
use serde_json::json;
use std::path::PathBuf;

#[derive(clap::Args)]
pub struct Args {
    /// Only this service, beside those already installed
    #[arg(long, value_enum, value_name = "SERVICE")]
    service: Vec<Service>,
    #[command(flatten)]
    first: First,
    /// Show every file's change as a unified diff
    #[arg(long)]
    diff: bool,
    /// Print the plan as JSON
    #[arg(long)]
    pub json: bool,
    /// Plan for a directory that holds a machine's files
    #[arg(long, value_name = "DIR", default_value = "/", hide_default_value = true)]
    root: PathBuf,
}

/// Exit status when something would change.
const PENDING: u8 = 2;

pub fn run(args: Args, settings: &Settings, ui: &Ui) -> Result<u8> {
    let host = machine_in(&args.root)?;
    need_root(&host)?;
    let receipt = Receipt::read(&host)?;
    let survey = Survey::new(&host, settings.with(&args.first)?.read(&host)?, &args.service, &receipt)?;
    let wanted = survey.blueprint()?;
    let seen = look(&host, &wanted, &receipt)?;
    let changes = plan(&wanted, &seen, &receipt, &Take::default(), Sweep::Unwanted);
    let drift: Vec<(&Resource, &str)> =
        wanted.iter().zip(&seen).filter_map(|(resource, seen)| drifted(resource, seen)).collect();
    if args.json {
        let changes: Vec<_> = changes.iter().map(|change| to_json(&host, change)).collect::<Result<_>>()?;
        let drift: Vec<_> =
            drift.iter().map(|(r, why)| json!({"resource": r.to_string(), "why": why})).collect();
        ui.out(serde_json::to_string_pretty(
            &json!({"changes": changes, "drift": drift, "warnings": survey.warnings}),
        )?);
    } else {
        survey.warnings.iter().for_each(|warning| ui.warn(warning));
        for change in &changes {
            ui.out(change);
            if args.diff {
                ui.out(diff(&host, change)?);
            }
        }
        for (resource, why) in &drift {
            ui.out(format_args!("{resource}: {why}"));
        }
        match changes.len() {
            0 => ui.say("nothing to change"),
            n => ui.say(format_args!("{n} changes; `echoes-appliance install` makes them")),
        }
    }
    Ok(if changes.is_empty() { 0 } else { PENDING })
}

fn drifted<'a>(resource: &'a Resource, seen: &Seen) -> Option<(&'a Resource, &'static str)> {
    match seen {
        Seen::Edited => Some((resource, "edited since we wrote it; kept")),
        Seen::Foreign(_) => {
            Some((resource, "something of somebody else's is there; install will stop at it"))
        }
        _ => None,
    }
}

fn to_json(host: &Host, change: &Change) -> Result<serde_json::Value> {
    Ok(match change {
        Change::Make(resource, why) => {
            json!({"change": "make", "resource": resource.to_string(), "why": why, "diff": diff(host, change)?})
        }
        Change::Undo(undo) => {
            json!({"change": "undo", "resource": undo.to_string(), "diff": diff(host, change)?})
        }
    })
}

/// What the change does to a file's text; empty for what is not a file, or is a secret.
fn diff(host: &Host, change: &Change) -> Result<String> {
    let (path, new) = match change {
        Change::Make(Resource::File(file), _) if !file.secret => (&file.path, file.text.as_str()),
        Change::Undo(undo @ Undo::File(path)) if undo.fate(host, &Receipt::read(host)?)? == Fate::Goes => {
            (path, "")
        }
        _ => return Ok(String::new()),
    };
    let old = host.read_text(path)?.unwrap_or_default();
    let name = path.display().to_string();
    Ok(similar::TextDiff::from_lines(&*old, new)
        .unified_diff()
        .context_radius(3)
        .header(&name, &name)
        .to_string())
}
