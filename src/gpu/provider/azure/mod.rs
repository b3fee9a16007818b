//! Machines of Microsoft Azure's, over its Resource Manager.
//!
//! Nothing about how far things have come is kept here: each call looks at what there is, by names that follow from the
//! run's, decides, does, and looks again. So an answer may be lost, and this process may end, at any moment.
//!
//! `arm` is how requests travel, `credential` who we are, `body` what is asked for, `operation` what Azure goes on with
//! after its answer, `fault` what it refuses. `rent`, `give_back` and `list` are the verbs.

mod arm;
mod body;
pub mod clock;
pub mod credential;
mod fault;
mod give_back;
mod keep;
mod kept;
mod list;
mod market;
mod names;
mod network;
mod operation;
mod rent;
mod seen;
mod settings;
mod step;
#[cfg(test)]
mod tests;

use super::{Class, Offer, Provider, Refusal, Rent, Rented};
use crate::{
    gpu::spec::{RunId, Spec},
    host::{Host, System},
    ui::Try as _,
    web::hold,
};
use anyhow::{Context as _, Result, ensure};
use arm::{Arm, Ask};
use body::Image;
use clock::{Clock, Wall};
use credential::{Source, Tokens, sources};
use fault::Fault;
use kept::{Kept, Place};
use names::{COMPUTE, Names};
use network::{Home, Metadata};
pub use network::{Managed, same_region};
use operation::Watch;
use reqwest::Url;
use serde_json::Value;
pub use settings::Settings;
use std::{
    collections::{BTreeMap, HashMap},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
};
use tokio::sync::OnceCell;

pub struct Azure {
    settings: Settings,
    /// Who this headquarters is: on everything it rents.
    hq: String,
    host: Arc<Host>,
    http: reqwest::Client,
    arm: Arm,
    /// One for all calls: connections live in it, and a new one costs three round trips.
    runtime: tokio::runtime::Runtime,
    /// Where this machine is does not change while we run.
    metadata: OnceCell<Option<Metadata>>,
    home: OnceCell<Option<Home>>,
    images: Mutex<HashMap<(String, String), Image>>,
    /// This identity may not make groups: no need to ask again.
    no_groups: AtomicBool,
    /// Where Azure said how a machine's making goes. Without it, the machine itself says less.
    watched: Mutex<BTreeMap<RunId, Watch>>,
}

impl Azure {
    /// As whoever the environment, this machine or `az` says we are.
    pub fn open(settings: Settings, hq: &str, host: Arc<Host>) -> Result<Self> {
        // As az and Microsoft's other tools have it.
        let named = || System::environment("AZURE_SUBSCRIPTION_ID").filter(|id| !id.is_empty());
        let settings = Settings { subscription: settings.subscription.or_else(named), ..settings };
        Self::new(settings, hq, sources(&System::environment), host, Arc::new(Wall))
    }

    pub fn new(
        settings: Settings,
        hq: &str,
        sources: Vec<Source>,
        host: Arc<Host>,
        clock: Arc<dyn Clock>,
    ) -> Result<Self> {
        let doing = || format!("preparing to talk to {}", settings.endpoint);
        let endpoint: Url = settings.endpoint.parse().with_context(doing)?;
        let login: Url = settings.login.parse().with_context(doing)?;
        // A token is worth all that the identity may do, and a secret is worth tokens.
        for url in [&endpoint, &login] {
            let local =
                url.host_str().is_some_and(|host| ["127.0.0.1", "localhost", "[::1]"].contains(&host));
            ensure!(
                url.scheme() == "https" || local,
                "{} is not reached by https",
                url.as_str().trim_end_matches('/')
            );
        }
        let http = arm::client(settings.roots.as_deref()).with_context(doing)?;
        let audience = settings.audience.as_deref().unwrap_or(&settings.endpoint);
        let addresses = [settings.login.as_str(), settings.metadata.as_str(), audience];
        let tokens = Tokens::new(sources, addresses, http.clone(), Arc::clone(&host));
        let arm = Arm::new(endpoint, http.clone(), tokens, clock);
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let runtime = runtime.context("starting the async runtime")?;
        Ok(Self {
            settings,
            hq: hq.into(),
            host,
            http,
            arm,
            runtime,
            metadata: OnceCell::new(),
            home: OnceCell::new(),
            images: Mutex::default(),
            no_groups: AtomicBool::new(false),
            watched: Mutex::default(),
        })
    }

    /// The disk in a slot of this machine, if machines can have a clone of it; else, why not.
    pub fn managed(&self, lun: u32) -> Result<Result<Managed, String>> {
        let managed = async {
            let Some(metadata) = self.metadata().await else {
                return Ok(Err("this machine is none of Azure's".to_owned()));
            };
            Ok(metadata.managed(lun, &self.subscription().await?))
        };
        self.runtime.block_on(managed).map_err(told)
    }

    async fn metadata(&self) -> Option<&Metadata> {
        let ask = || network::metadata(&self.http, &self.settings.metadata);
        self.metadata.get_or_init(ask).await.as_ref()
    }

    async fn home(&self) -> Result<Option<&Home>, Fault> {
        let ask = || async {
            match self.metadata().await {
                Some(metadata) => metadata.home(&self.arm).await.map(Some),
                None => Ok(None),
            }
        };
        Ok(self.home.get_or_try_init(ask).await?.as_ref())
    }

    async fn subscription(&self) -> Result<String, Fault> {
        if let Some(subscription) = &self.settings.subscription {
            return Ok(subscription.clone());
        }
        let metadata = self.metadata().await;
        let none = "none is named, and this machine is none of Azure's";
        Ok(metadata.ok_or_else(|| Fault::here("choosing a subscription", none))?.subscription.clone())
    }

    async fn names(&self, run: &RunId) -> Result<Names, Fault> {
        Ok(Names::new(&self.subscription().await?, &self.hq, run))
    }

    fn kept(&self, run: &RunId) -> Kept {
        Kept::new(&self.settings.runs, run)
    }

    /// Before anything is made there.
    fn note_place(&self, names: &Names, group: &str, region: &str) -> Result<(), Fault> {
        let mut regions = self.place(names)?.map(|place| place.regions).unwrap_or_default();
        if !regions.iter().any(|known| known == region) {
            regions.push(region.into());
        }
        let place = Place {
            endpoint: self.settings.endpoint.clone(),
            subscription: names.subscription.clone(),
            group: group.into(),
            regions,
        };
        let noted = self.kept(&names.run).put_place(&self.host, &place);
        noted.map_err(|e| Fault::here("noting where a run is rented", e))
    }

    /// Where this run was rented, where anything was; never somewhere else because a setting has changed since.
    fn place(&self, names: &Names) -> Result<Option<Place>, Fault> {
        let doing = format!("looking where {} was rented", names.run);
        let place = self.kept(&names.run).place(&self.host).map_err(|e| Fault::here(&doing, e))?;
        match place {
            Some(place)
                if place.subscription != names.subscription || place.endpoint != self.settings.endpoint =>
            {
                let said = format!(
                    "in subscription {} at {}, but the settings now say {} at {}",
                    place.subscription, place.endpoint, names.subscription, self.settings.endpoint
                );
                Err(Fault::here(&doing, said))
            }
            place => Ok(place),
        }
    }

    /// The newest of its kind in a region, and what it can do.
    async fn image(&self, size: &str, region: &str) -> Result<Image, Fault> {
        // All of Azure's sizes with a GPU, and they alone, begin so.
        let urn = &self.settings.images[usize::from(!size.starts_with("Standard_N"))];
        let key = (urn.clone(), region.to_owned());
        if let Some(image) = hold(&self.images).get(&key) {
            return Ok(image.clone());
        }
        let doing = format!("looking up the image {urn} in {region}");
        let parts: Vec<&str> = urn.split(':').collect();
        let [publisher, offer, sku] = parts[..] else {
            return Err(Fault::here(&doing, "an image is named as publisher:offer:sku"));
        };
        let subscription = self.subscription().await?;
        let versions = format!(
            "/subscriptions/{subscription}/providers/Microsoft.Compute/locations/{region}/publishers/{publisher}\
             /artifacttypes/vmimage/offers/{offer}/skus/{sku}/versions"
        );
        let ask = Ask::get(&versions, COMPUTE).with("$top", "1").with("$orderby", "name desc");
        let newest = self.arm.send(&ask).await?.body;
        let version =
            newest[0]["name"].as_str().ok_or_else(|| Fault::here(&doing, "there is no version of it"))?;
        let body = self.arm.send(&Ask::get(format!("{versions}/{version}"), COMPUTE)).await?.body;
        let image = Image {
            publisher: publisher.into(),
            offer: offer.into(),
            sku: sku.into(),
            version: version.into(),
            trusted: takes_trusted_launch(&body["properties"]),
            plan: Some(body["properties"]["plan"].clone()).filter(Value::is_object),
        };
        hold(&self.images).insert(key, image.clone());
        Ok(image)
    }

    /// A machine of an image, or of a copy of a disk.
    fn rent_of(&self, spec: &Spec, offer: &Offer, copy: Option<&str>) -> Result<Rent> {
        match self.runtime.block_on(self.rent_now(spec, offer, copy)) {
            Ok(rent) => Ok(rent),
            // What is there is seen the next time: nothing was decided on an answer that did not come.
            Err(fault) if fault.is_passing() => Ok(Rent::Coming(fault.to_string())),
            Err(fault) => {
                let part = fault.unregistered();
                if part.is_some_and(|part| self.runtime.block_on(self.register(part))) {
                    let why = "the subscription is being registered for what it has not used before";
                    return Ok(Rent::Coming(why.into()));
                }
                fault.refusal().map_or_else(|| Err(told(fault)), |refusal| Ok(Rent::Refused(refusal)))
            }
        }
    }

    /// Whether this identity may make groups, as far as is known.
    fn may_make_groups(&self) -> bool {
        !self.no_groups.load(Ordering::Relaxed)
    }
}

/// From what an image says of itself.
fn takes_trusted_launch(properties: &Value) -> bool {
    let second = properties["hyperVGeneration"] == "V2";
    let features = properties["features"].as_array().into_iter().flatten();
    let mut kinds = features.filter(|feature| feature["name"] == "SecurityType");
    second && kinds.any(|kind| kind["value"].as_str().is_some_and(|value| value.starts_with("TrustedLaunch")))
}

fn told(fault: Fault) -> anyhow::Error {
    match fault.hint() {
        Some(hint) => Err::<(), _>(fault).or_try(hint).unwrap_err(),
        None => fault.into(),
    }
}

impl Provider for Azure {
    fn rent(&self, spec: &Spec, offer: &Offer) -> Result<Rent> {
        self.rent_of(spec, offer, None)
    }

    fn rent_from_copy(&self, spec: &Spec, offer: &Offer, copy: &str) -> Result<Rent> {
        self.rent_of(spec, offer, Some(copy))
    }

    fn give_back(&self, run: &RunId) -> Result<Vec<String>> {
        self.runtime.block_on(self.give_back_now(run)).map_err(told)
    }

    fn still_there(&self, run: &RunId) -> Result<bool> {
        self.runtime.block_on(self.still_there_now(run)).map_err(told)
    }

    fn renew(&self, run: &RunId) -> Result<()> {
        self.runtime.block_on(self.renew_now(run)).map_err(told)
    }

    fn is_paid(&self) -> bool {
        true
    }

    fn can_keep(&self) -> bool {
        true
    }

    fn keep(&self, run: &RunId) -> Result<Option<String>> {
        self.runtime.block_on(self.keep_now(run)).map_err(told)
    }

    fn forget(&self, run: &RunId) -> Result<bool> {
        self.runtime.block_on(self.forget_now(run)).map_err(told)
    }

    fn list(&self) -> Result<Vec<Rented>> {
        self.runtime.block_on(self.list_now()).map_err(told)
    }
}
