//! Where machines come from: a few verbs, each of which may be repeated, because after a crash each will be.

pub mod azure;

pub mod local;
pub mod ssh;

use super::{
    identity, loan,
    offer::{self, Row, SIZES, Wish, choose},
    spec::{RunId, Source, Spec},
    target::Target,
};
use crate::{config::Config, host::Host, hq::service::Service, ui::Try as _};
use anyhow::Result;
use azure::{Azure, Managed};
use serde::{Deserialize, Serialize};
use std::{
    path::{Path, PathBuf},
    sync::Arc,
};
use time::OffsetDateTime;

/// One way to rent. What it is called and what it costs is frozen with it, in the journal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Offer {
    /// As in `Standard_NC4as_T4_v3`; empty where there is no choice.
    pub size: String,
    pub region: String,
    pub zone: Option<String>,
    pub spot: bool,
    /// Millionths of a US dollar an hour.
    pub price: u64,
}

/// What can be worked on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Machine {
    pub target: Target,
    /// Where the agent lives over there, an absolute path; made when it comes. One for all runs of a machine, so
    /// that environments and data that one run brought are there for the next.
    pub home: PathBuf,
    /// Where headquarters' datasets are over there, on a clone of its data disk that came with the machine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data: Option<PathBuf>,
}

/// Where all that is one run's lies, below the home of its machine; what is beside it is kept.
pub fn room(home: &Path, run: &RunId) -> PathBuf {
    home.join("runs").join(run.as_str())
}

/// Where it lies when its run is over and not all of it is home: until it is, or until nobody wants it any more.
pub fn kept_room(home: &Path, run: &RunId) -> PathBuf {
    home.join("kept").join(run.as_str())
}

/// What came of asking for a machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Rent {
    Here(Machine),
    /// It is on its way; in words, for who watches. Ask again.
    Coming(String),
    /// Not this one.
    Refused(Refusal),
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    pub class: Class,
    /// What the provider answered.
    pub said: String,
    /// What to try, if anything.
    pub hint: Option<String>,
}

/// What a refusal means for the next offer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Class {
    /// Nobody has one just now, or not here: another offer may do.
    Capacity,
    /// We may not have so many: another family or region may do, a person must ask for more.
    Quota,
    /// Nothing that we could rent would be different.
    Final,
}

/// Something that is rented, by name, with what it says about itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rented {
    pub id: String,
    /// Whose it is, by its tag; none for something that has ours but names no run.
    pub run: Option<RunId>,
}

pub trait Provider {
    /// The machine of this run by this offer: found if there is one, else rented. One of another offer is given back
    /// first: never two.
    fn rent(&self, spec: &Spec, offer: &Offer) -> Result<Rent>;

    /// Give back everything of this run. What is still there, or on its way out; nothing is the proof that all is gone.
    fn give_back(&self, run: &RunId) -> Result<Vec<String>>;

    /// Processes that giving back has found so far and that are not ours to end: they are named, and hold nothing up.
    fn outlived(&self) -> Vec<String> {
        Vec::new()
    }

    /// Headquarters is well, and the run is to go on: put off the moment at which the provider ends it by itself. Called
    /// again and again, several times in the length of a lease; nothing to do where nothing ends by itself.
    fn renew(&self, _run: &RunId) -> Result<()> {
        Ok(())
    }

    /// Whether what is had from here costs money for as long as it is had. Its lists lag behind its deeds then, too.
    fn is_paid(&self) -> bool {
        false
    }

    /// Whether what is on a machine's disk can be kept apart from the machine.
    fn can_keep(&self) -> bool {
        false
    }

    /// Keep what is on the disk of the run's machine, where giving back does not reach: where it is, and always the same
    /// one. None when there is no disk any more. It costs until it is forgotten.
    fn keep(&self, _run: &RunId) -> Result<Option<String>> {
        Ok(None)
    }

    /// As `rent`, a machine whose disk is made of what was kept, at the place that `keep` named: what it is made of stays.
    fn rent_from_copy(&self, _spec: &Spec, _offer: &Offer, copy: &str) -> Result<Rent> {
        anyhow::bail!("no machine can be made of {copy}")
    }

    /// What was kept of the run is not wanted any more. Whether it is gone.
    fn forget(&self, _run: &RunId) -> Result<bool> {
        Ok(true)
    }

    /// All that is rented in the name of this headquarters, of whatever run.
    fn list(&self) -> Result<Vec<Rented>>;

    /// Whether the run's machine exists, as its landlord sees it: a machine that does not answer proves nothing. One
    /// that the team owns is never taken away; who rents has to ask.
    fn still_there(&self, _run: &RunId) -> Result<bool> {
        Ok(true)
    }
}

/// The provider of a source: the one place that knows all of them.
pub fn of<'a>(source: &Source, host: &'a Arc<Host>, config: &'a Config) -> Result<Box<dyn Provider + 'a>> {
    Ok(match source {
        Source::Local => Box::new(local::Local::new(host, local::HOMES.into())),
        Source::Ssh { user, host: name, port } => {
            Box::new(ssh::Owned::new(host, ssh::reach(&config.gpu, user, name, *port)))
        }
        Source::Azure => Box::new(rented(host, config, &identity::own(host)?)?),
    })
}

/// Those that give out machines in our name. A machine that the team owns has other masters, too.
pub fn ours<'a>(host: &'a Arc<Host>, config: &'a Config) -> Result<Vec<Box<dyn Provider + 'a>>> {
    let mut all = vec![of(&Source::Local, host, config)?];
    // Whoever never rented anything need not be able to ask.
    if let Some(hq) = identity::known(host)? {
        all.push(Box::new(rented(host, config, &hq)?));
    }
    Ok(all)
}

fn rented(host: &Arc<Host>, config: &Config, hq: &str) -> Result<Azure> {
    let name = loan::mlflow(host, config, &Source::Azure)?.map(|_| Service::Mlflow.host(config));
    let settings = azure::Settings { name, ..azure::Settings::of(&config.gpu.azure, host)? };
    Azure::open(settings, hq, Arc::clone(host))
}

/// Whether Azure knows us, and shows us a subscription. Nothing is rented.
pub fn greet_azure(host: &Arc<Host>, config: &Config) -> Result<()> {
    rented(host, config, "")?.list().map(drop)
}

/// The managed disk that Azure has in a slot of this machine, if machines can have a clone of it; else, why not.
pub fn managed(host: &Arc<Host>, config: &Config, lun: u32) -> Result<Result<Managed, String>> {
    rented(host, config, "")?.managed(lun)
}

/// What can be had for a run, the best first. Where there was a choice: what it was made from.
pub struct Choice {
    pub offers: Vec<Offer>,
    pub rows: Vec<Row>,
}

/// Where nothing is rented there is one offer, and it costs nothing.
pub fn offers(spec: &Spec, host: &Arc<Host>, config: &Config) -> Result<Choice> {
    match spec.source {
        Source::Local | Source::Ssh { .. } => {
            let offer =
                Offer { size: String::new(), region: String::new(), zone: None, spot: false, price: 0 };
            Ok(Choice { offers: vec![offer], rows: Vec::new() })
        }
        Source::Azure => {
            let sizes =
                if spec.sizes.is_empty() { SIZES.map(Into::into).to_vec() } else { spec.sizes.clone() };
            // Nothing is rented yet: it does not matter in whose name.
            let azure = rented(host, config, "")?;
            let markets = azure.markets(&spec.regions, &sizes);
            let markets =
                markets.or_try("--region says where, gpu.azure.subscription who pays, `az login` or AZURE_CLIENT_ID who we are")?;
            let wish =
                Wish { sizes, spot: spec.spot, max_cost: spec.max_cost, max_seconds: spec.max_seconds };
            let rows = choose(&wish, &markets, OffsetDateTime::now_utc().date());
            Ok(Choice { offers: offer::offers(&rows), rows })
        }
    }
}

#[cfg(test)]
impl Offer {
    /// For tests: a size at a dollar an hour, that may be taken away.
    pub fn example(size: &str) -> Self {
        Self { size: size.into(), region: "eastus".into(), zone: None, spot: true, price: 1_000_000 }
    }
}
