//! `validate`: plan that must be empty, and questions that must be answered well.

use super::{config::Settings, need_installed, need_root, this_machine};
use crate::{
    hq::{
        plan::{Sweep, Take, look, plan},
        probe::{Row, Scene, Verdict, ask_all},
        receipt::Receipt,
        resource::Seen,
        service::Service,
        survey::Survey,
    },
    ui::Ui,
};
use anyhow::{Result, ensure};
use serde_json::json;

#[derive(clap::Args)]
pub struct Args {
    /// Only this service
    #[arg(long, value_enum, value_name = "SERVICE")]
    service: Vec<Service>,
    /// Print the rows as JSON
    #[arg(long)]
    pub json: bool,
    /// Print the rows as JUnit XML
    #[arg(long, conflicts_with = "json")]
    pub junit: bool,
}

/// Exit status when something is bad.
const FOUND: u8 = 3;

pub fn run(args: Args, settings: &Settings, ui: &Ui) -> Result<u8> {
    let host = this_machine();
    need_root(&host)?;
    need_installed(&host)?;
    let receipt = Receipt::read(&host)?;
    let installed = receipt.installed();
    let config = settings.read(&host)?;
    let services = installed.iter().copied().collect();
    let drift = || {
        let survey = Survey::new(&host, settings.read(&host)?, &installed, &receipt)?;
        let wanted = survey.blueprint()?;
        let seen = look(&host, &wanted, &receipt)?;
        let changes = plan(&wanted, &seen, &receipt, &Take::default(), Sweep::Unwanted);
        let mut drift: Vec<String> = changes.iter().map(ToString::to_string).collect();
        let edited =
            wanted.iter().zip(&seen).filter(|(_, seen)| matches!(seen, Seen::Edited | Seen::Foreign(_)));
        drift.extend(edited.map(|(resource, _)| format!("{resource}: not as we wrote it")));
        ensure!(drift.is_empty(), "{}", drift.join("; "));
        Ok("none".into())
    };
    let mut scene = Scene::new(&host, &config, &services)?;
    let plain = !args.json && !args.junit;
    let rows = ask_all(&mut scene, &args.service, &drift, &mut |row| {
        if plain {
            ui.out(words(row, ui));
        }
    });
    let bad = rows.iter().filter(|row| matches!(row.verdict, Verdict::Bad { .. })).count();
    if args.json {
        ui.out(serde_json::to_string_pretty(&json!({"good": bad == 0, "rows": rows}))?);
    } else if args.junit {
        ui.out(junit(&rows));
    } else if bad == 0 {
        ui.say(format_args!("all {} answers are good", rows.len()));
    } else {
        ui.say(format_args!("{bad} of {} answers are bad", rows.len()));
    }
    Ok(if bad == 0 { 0 } else { FOUND })
}

fn words(row: &Row, ui: &Ui) -> String {
    match &row.verdict {
        Verdict::Good { found } => format!("{} {:<24} {found}", ui.good(), row.id),
        Verdict::Warning { cause, fix } => {
            format!("{} {:<24} {cause}\n  {:<24} try: {fix}", ui.warned(), row.id, "")
        }
        Verdict::Bad { cause, fix } => {
            format!("{} {:<24} {cause}\n  {:<24} try: {fix}", ui.bad(), row.id, "")
        }
    }
}

/// The one dialect that every CI system reads.
fn junit(rows: &[Row]) -> String {
    let bad = rows.iter().filter(|row| matches!(row.verdict, Verdict::Bad { .. })).count();
    let case = |row: &Row| {
        let id = xml(&row.id);
        match &row.verdict {
            Verdict::Good { .. } => format!("  <testcase classname=\"echoes-appliance\" name=\"{id}\"/>\n"),
            Verdict::Warning { cause, fix } => format!(
                "  <testcase classname=\"echoes-appliance\" name=\"{id}\"><system-out>{}; try: {}</system-out></testcase>\n",
                xml(cause),
                xml(fix)
            ),
            Verdict::Bad { cause, fix } => format!(
                "  <testcase classname=\"echoes-appliance\" name=\"{id}\"><failure message=\"{}\">{}</failure></testcase>\n",
                xml(cause),
                xml(fix)
            ),
        }
    };
    let cases: String = rows.iter().map(case).collect();
    let head = "<?xml version=\"1.0\" encoding=\"UTF-8\"?>";
    format!(
        "{head}\n<testsuite name=\"validate\" tests=\"{}\" failures=\"{bad}\">\n{cases}</testsuite>",
        rows.len()
    )
}

fn xml(text: &str) -> String {
    let mut out = String::new();
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            // XML 1.0 has no place for them, not even escaped.
            c if c.is_control() && c != '\n' => out.push(' '),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn junit_is_well_formed_whatever_a_cause_says() {
        let bad = Verdict::Bad { cause: "<a> & \"b\"\u{1}".into(), fix: "x".into() };
        let text = junit(&[Row { id: "mlflow.https".into(), verdict: bad }]);
        assert!(text.contains("failures=\"1\"") && text.contains("&lt;a&gt; &amp; &quot;b&quot; "), "{text}");
    }
}
