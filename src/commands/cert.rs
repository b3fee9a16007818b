//! `cert`: how the certificates stand; renew or revoke one by hand.

use super::{config::Settings, need_installed, need_root, renew, this_machine};
use crate::{
    config::{Config, Signer},
    host::Host,
    hq::{
        certificate::{Standing, stands},
        issuance::{Account, Call, Desk, Said, Ticket},
        receipt::Receipt,
        service::Service,
        survey::Survey,
    },
    tls::{
        self,
        renewal::{Health, health},
        store,
    },
    ui::{Try as _, Ui, moment, table},
    web::{block_on, client},
};
use anyhow::{Context as _, Result, bail, ensure};
use clap::Subcommand;
use serde::Serialize;
use std::{net::Ipv4Addr, time::Duration};
use time::OffsetDateTime;

#[derive(Subcommand)]
pub enum Command {
    /// Show each certificate: who signed it, how long it lasts, when it is renewed, what went wrong last
    Status {
        /// Print it as JSON
        #[arg(long)]
        json: bool,
    },
    /// Look at what an authority would see: each name's addresses, port 80, CAA records
    Check,
    /// Renew what is due, without waiting out what was to follow a failure
    Renew {
        /// Only this one: a host name, or the domain where one certificate has all names
        name: Vec<String>,
        /// Also what is not due; authorities sign only a few for the same names in a week
        #[arg(long)]
        force: bool,
        /// Only rehearse, in the authority's staging environment; nothing that is served changes
        #[arg(long, conflicts_with = "force")]
        dry_run: bool,
    },
    /// Tell the authority that a certificate must not be believed any more, and get another
    Revoke {
        /// A host name, or the domain where one certificate has all names
        name: String,
        /// Somebody else may have its private key
        #[arg(long)]
        key_compromise: bool,
    },
    /// Tell the webhook what went wrong (run by echoes-alert.service)
    #[command(hide = true)]
    Alert,
}

impl Command {
    pub fn json(&self) -> bool {
        matches!(self, Self::Status { json: true })
    }
}

pub fn run(command: Command, settings: &Settings, ui: &Ui) -> Result<u8> {
    let host = this_machine();
    need_root(&host)?;
    need_installed(&host)?;
    match command {
        Command::Status { json } => status(&host, settings, json, ui),
        Command::Renew { name, force, dry_run } => {
            let config = settings.read(&host)?;
            if dry_run {
                return rehearse(&host, settings, &name, ui);
            }
            ensure_known(&host, &config, &name)?;
            let which = |ticket: &Ticket| name.is_empty() || name.contains(&ticket.id);
            let call = if force { Call::Now } else { Call::Due };
            renew::renew(&host, settings, &which, call, ui)
        }
        Command::Check => check(&host, settings, ui),
        Command::Revoke { name, key_compromise } => revoke(&host, settings, &name, key_compromise, ui),
        Command::Alert => alert(&host, settings, ui),
    }
}

fn services(host: &Host) -> Result<std::collections::BTreeSet<Service>> {
    Ok(Receipt::read(host)?.installed().into_iter().collect())
}

fn ensure_known(host: &Host, config: &Config, names: &[String]) -> Result<()> {
    let all: Vec<_> =
        crate::hq::issuance::tickets(config, &services(host)?).into_iter().map(|t| t.id).collect();
    match names.iter().find(|name| !all.contains(name)) {
        Some(strange) => bail!("{strange} is not one of {}", all.join(", ")),
        None => Ok(()),
    }
}

#[derive(Serialize)]
struct One {
    names: Vec<String>,
    /// "ours", "public", "private", or "none".
    signed_by: &'static str,
    issuer: Option<String>,
    directory: Option<String>,
    profile: Option<String>,
    key: Option<String>,
    serial: Option<String>,
    /// What a visitor is shown, when that is another.
    served_serial: Option<String>,
    not_after: Option<String>,
    days_left: Option<i64>,
    health: &'static str,
    /// When it is renewed next, and why then.
    renewal: Option<String>,
    renewal_reason: Option<String>,
    failed_attempts: u32,
    last_error: Option<Said>,
}

fn status(host: &Host, settings: &Settings, json: bool, ui: &Ui) -> Result<u8> {
    let config = settings.read(host)?;
    let services = services(host)?;
    let desk = Desk { host, config: &config, services: &services, ui };
    let accounts = match config.signer() {
        Signer::Acme => desk.accounts()?,
        Signer::Internal | Signer::Files => Vec::new(),
    };
    let mut all = Vec::new();
    if accounts.is_empty() {
        for service in &services {
            all.push(one(host, &[service.host(&config)], None)?);
        }
    }
    for account in &accounts {
        all.push(one(host, &account.ticket.names, Some(account))?);
    }
    if json {
        ui.out(serde_json::to_string_pretty(&serde_json::json!({ "certificates": all }))?);
    } else {
        ui.out(words(&all));
    }
    Ok(0)
}

fn one(host: &Host, names: &[String], account: Option<&Account>) -> Result<One> {
    let now = OffsetDateTime::now_utc();
    let name = names.first().context("a certificate without a name")?;
    let current = store::current(host, name)?;
    let facts = current.as_ref().and_then(|current| store::facts(&current.pair.chain).ok());
    let served = tls::served((Ipv4Addr::LOCALHOST, 443).into(), name, Duration::from_secs(5)).ok();
    let shown = served.as_ref().map(|served| served.facts.serial.clone());
    let signed_by = match (stands(host, name)?, &current) {
        (Standing::Broken, _) | (_, None) => "none",
        (Standing::Ours, _) => "ours",
        (Standing::Foreign, Some(current)) => match tls::trust(host, &current.pair.chain, name, now)? {
            store::Trust::Public => "public",
            store::Trust::Private => "private",
        },
    };
    let health = match facts.as_ref().map(|facts| health(now, facts.not_before, facts.not_after)) {
        Some(Health::Good) => "good",
        Some(Health::Warn) => "warning",
        Some(Health::Bad) | None => "bad",
    };
    let record = account.map(|account| &account.record);
    let ours = record.filter(|record| Some(&record.fingerprint) == facts.as_ref().map(|f| &f.fingerprint));
    Ok(One {
        names: names.to_vec(),
        signed_by,
        issuer: facts.as_ref().map(|facts| facts.issuer.clone()),
        directory: ours.map(|record| record.directory.clone()),
        profile: ours.and_then(|record| record.profile.clone()),
        key: current.as_ref().and_then(|current| store::key_kind(&current.pair.chain).ok()),
        serial: facts.as_ref().map(|facts| facts.serial.clone()),
        served_serial: shown.filter(|shown| Some(shown) != facts.as_ref().map(|facts| &facts.serial)),
        not_after: facts.as_ref().map(|facts| moment(facts.not_after)),
        days_left: facts.as_ref().map(|facts| (facts.not_after - now).whole_days()),
        health,
        renewal: account.map(|account| moment(account.planned.0)),
        renewal_reason: account.map(|account| account.planned.1.to_string()),
        failed_attempts: account.and_then(|account| account.failing).map_or(0, |(_, count)| count),
        last_error: record.and_then(|record| record.error.clone()),
    })
}

fn words(all: &[One]) -> String {
    let dash = || "-".to_owned();
    let head = ["certificate", "signed by", "left", "renewal", "serial"];
    let mut rows = vec![head.iter().map(ToString::to_string).collect::<Vec<_>>()];
    let mut errors = String::new();
    for one in all {
        let issuer = one.issuer.clone().unwrap_or_else(dash);
        let by = match one.signed_by {
            "ours" => "our own authority".to_owned(),
            "none" => "nobody: there is none".to_owned(),
            _ => issuer,
        };
        let left = one.days_left.map_or_else(dash, |days| match one.health {
            "good" => format!("{days} days"),
            "warning" => format!("{days} days: soon"),
            _ => format!("{days} days: too few"),
        });
        rows.push(vec![
            one.names.join(" "),
            by,
            left,
            one.renewal.clone().unwrap_or_else(|| "by itself".into()),
            one.serial.clone().unwrap_or_else(dash),
        ]);
        if let Some(shown) = &one.served_serial {
            errors.push_str(&format!("\n{}: nginx serves another, {shown}", one.names.join(" ")));
        }
        if let Some(Said { at, words, links }) = &one.last_error {
            let tries = one.failed_attempts;
            errors.push_str(&format!("\n{}, attempt {tries} in a row: {words}", moment(*at)));
            links.iter().for_each(|link| errors.push_str(&format!("\n  {link}")));
        }
    }
    let errors = if errors.is_empty() { errors } else { format!("\n{errors}") };
    format!("{}{errors}", table(&rows))
}

/// Exit status 3 when something may keep an authority from signing, as with `validate`.
fn check(host: &Host, settings: &Settings, ui: &Ui) -> Result<u8> {
    let config = settings.read(host)?;
    let services = services(host)?;
    let desk = Desk { host, config: &config, services: &services, ui };
    let names: Vec<_> = services.iter().map(|service| service.host(&config)).collect();
    let caa = desk.ca()?.greet().map(|greeting| greeting.caa);
    let mut found: Vec<String> = match &caa {
        Ok(_) => Vec::new(),
        Err(failure) => vec![failure.to_string()],
    };
    let looked = tls::preflight::look(host, &names, &caa.unwrap_or_default())?;
    found.extend(looked.iter().map(ToString::to_string));
    for finding in &found {
        ui.out(format_args!("{} {finding}", ui.warned()));
    }
    if found.is_empty() {
        ui.say("as far as can be seen from here, an authority reaches every name");
    }
    Ok(if found.is_empty() { 0 } else { 3 })
}

/// The whole way to a certificate that nobody trusts: whether the next one would come.
fn rehearse(host: &Host, settings: &Settings, names: &[String], ui: &Ui) -> Result<u8> {
    let config = settings.read(host)?;
    let (services, wanted) = (services(host)?, names);
    ensure_known(host, &config, wanted)?;
    ensure!(config.signer() == Signer::Acme, "no ACME authority signs here: tls.mode says so");
    let desk = Desk { host, config: &config, services: &services, ui };
    let none = || bail!("{} has no staging environment that we know", config.tls.directory);
    if desk.staging()?.is_none() {
        none().or_try("set tls.staging_directory to its directory")?;
    }
    // Only one at a time uses the orders' files.
    let _book = crate::hq::receipt::Book::open(host, ui)?;
    for ticket in crate::hq::issuance::tickets(&config, &services) {
        if wanted.is_empty() || wanted.contains(&ticket.id) {
            let step = ui.step(format_args!("rehearsing a certificate for {}", ticket.names.join(", ")));
            desk.rehearse_ticket(&ticket).map_err(|failure| {
                let cure = crate::hq::issuance::cure(failure.class(), &config);
                let cure = cure.unwrap_or_else(|| "the same again later".into());
                anyhow::Error::new(failure).context(crate::ui::Hint(cure))
            })?;
            step.done();
        }
    }
    Ok(0)
}

fn revoke(host: &Host, settings: &Settings, name: &str, key_compromise: bool, ui: &Ui) -> Result<u8> {
    let config = settings.read(host)?;
    let services = services(host)?;
    ensure_known(host, &config, &[name.to_owned()])?;
    ensure!(config.signer() == Signer::Acme, "no ACME authority signs here: tls.mode says so");
    let desk = Desk { host, config: &config, services: &services, ui };
    let accounts = desk.accounts()?;
    let account = accounts.iter().find(|account| account.ticket.id == name).context("no such certificate")?;
    let place = account.ticket.names.first().context("a certificate without a name")?;
    let current = store::current(host, place)?.context("there is no certificate")?;
    let facts = store::facts(&current.pair.chain)?;
    let ours = facts.fingerprint == account.record.fingerprint;
    ensure!(ours, "the certificate of {name} is not one that {} issued to us", desk.ca()?.directory);
    let step = ui.step(format_args!("revoking {} of {name}", facts.serial));
    desk.ca()?.revoke(host, &current.pair.chain, key_compromise)?;
    step.done();
    // Whoever asks the authority is told so from now on; those who do not would go on believing it.
    renew::renew(host, settings, &|ticket| ticket.id == name, Call::Now, ui)
}

/// What the webhook is told: JSON with `text`, which chat programs show, and the particulars.
fn alert(host: &Host, settings: &Settings, ui: &Ui) -> Result<u8> {
    let config = settings.read(host)?;
    let url = config.tls.webhook.as_str();
    if url.is_empty() {
        ui.say("no webhook is set");
        return Ok(0);
    }
    let receipt = Receipt::read(host)?;
    let survey = Survey::without_data(host, config.clone(), &receipt.installed(), &receipt)?;
    let desk = Desk { host, config: &config, services: &survey.services, ui };
    let mut all = Vec::new();
    for account in desk.accounts()? {
        let one = one(host, &account.ticket.names, Some(&account))?;
        let person = account.failing.is_some_and(|(class, _)| class.needs_a_person());
        if person || one.health != "good" || one.signed_by == "ours" {
            all.push(one);
        }
    }
    if all.is_empty() {
        ui.say("nothing that somebody would have to know yet");
        return Ok(0);
    }
    let line = |one: &One| {
        let left = one.days_left.unwrap_or(0);
        let said = one.last_error.as_ref().map_or("", |said| said.words.as_str());
        format!("{}: {left} days left; {said}", one.names.join(" "))
    };
    let text: Vec<_> = all.iter().map(line).collect();
    let text = format!("certificates of {}: {}", config.domain, text.join("\n"));
    let body = serde_json::json!({ "text": text, "domain": config.domain, "certificates": all });
    let answer = block_on(async {
        client::public()?.ask("POST", url, None, Some(body.to_string().into_bytes())).await
    });
    // The address may be a secret: it is in no error.
    let status = answer.map_err(|_| anyhow::anyhow!("the webhook cannot be reached"))?.status;
    ensure!((200..300).contains(&status), "the webhook answered {status}");
    ui.say("the webhook was told");
    Ok(0)
}
