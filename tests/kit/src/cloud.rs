//! A simulated Azure: the resource manager, Entra, the metadata service and the price list, as strict servers on free
//! ports of this host.
//!
//! Every request to the resource manager is checked against Microsoft's OpenAPI documents, and so is every answer.
//! What is not allowed there is refused, and noted: a test reads the notes at its end. Machines are what the `Metal`
//! says: words alone, or lab machines with real cloud-init and sshd (`cloud_lab.rs`). Time stands still unless told
//! otherwise, and everything that is there is paid for.
//!
//! ```ignore
//! use kit::cloud::{Act, Cloud, Options, Rule};
//!
//! let Some(cloud) = Cloud::start(Options::default()) else { return };  // says loudly why not
//! // cloud.arm(), cloud.login(), cloud.imds(), cloud.prices(): addresses for the client under test;
//! // cloud.secure().arm and so on: the same over https, under the authority cloud.ca().
//! cloud.spoil([Rule::once("PUT", "/virtualMachines/", Act::ResetAfter)]);
//! // … let the client rent; between its polls:
//! cloud.advance(Duration::from_secs(60));
//! // … let the client give back …
//! cloud.advance(Duration::from_secs(600));
//! assert_eq!(cloud.left(), [""; 0]);         // nothing is there any more
//! cloud.assert_honest();                      // nothing was asked, or answered, that is not in the documents
//! println!("{}", cloud.bill());
//! ```
//!
//! # Where it differs from Azure
//!
//! * How long things take is guessed (`Takes`), prices and images are a few (`catalog.rs`), and there is one tenant
//!   with one subscription and one principal, who may do everything; `Act::forbidden` refuses.
//! * What it does not do (extensions, single security rules, peerings, disk export, boot diagnostics…) it refuses
//!   with 501 and notes, rather than pretend.
//! * Where the documents are silent it is the stricter of the readings that came to mind: a disk in use is not copied,
//!   a schedule needs its machine, tags are inherited by nothing, no sku is free.
//! * A lost answer is a connection that ends without a byte.

mod answer;
mod arm;
mod ask;
mod bill;
pub mod catalog;
mod clock;
pub mod contract;
mod disk;
mod door;
mod entra;
mod fault;
mod fitting;
mod front;
mod group;
mod hq;
mod imds;
mod machine;
mod metal;
mod network;
mod operation;
mod prices;
mod schedule;
pub mod words;
mod world;

pub use bill::Bill;
pub use clock::{Moment, Pace};
pub use entra::Principal;
pub use fault::{Act, Hook, Rule};
pub use front::Asked;
pub use metal::{Metal, Nothing, Order};
pub use world::{Kind, Power, Takes};

use door::{Door, Vouching};
use front::{Service, Shared};
use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

/// How often time that runs by itself is looked at.
const TICK: Duration = Duration::from_millis(100);

/// What a cloud is started with.
pub struct Options {
    pub pace: Pace,
    pub takes: Takes,
    pub subscription: String,
    /// The first is where the headquarters is.
    pub regions: Vec<String>,
    pub principal: Principal,
    /// How long a token is good.
    pub token: Duration,
    /// Whether there is a headquarters: a machine with a network, a data disk and an identity.
    pub headquarters: bool,
    /// Where that machine is in its network.
    pub headquarters_address: Ipv4Addr,
    /// How many rows a list shows at once.
    pub page: usize,
    /// Where to listen. Machines of the lab cannot reach loopback.
    pub address: IpAddr,
    /// The metadata service's own place, as machines know it.
    pub imds: Option<(IpAddr, u16)>,
    pub metal: Arc<dyn Metal>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            pace: Pace::Still,
            takes: Takes::default(),
            subscription: "0b1f6471-1bf0-4dda-aec3-cb9272f09590".into(),
            regions: vec!["eastus".into(), "westus2".into()],
            principal: Principal::default(),
            token: Duration::from_secs(3599),
            headquarters: true,
            headquarters_address: Ipv4Addr::new(10, 213, 78, 4),
            page: 3,
            address: IpAddr::V4(Ipv4Addr::LOCALHOST),
            imds: None,
            metal: Arc::new(Nothing),
        }
    }
}

/// Addresses, without a slash at their end.
#[derive(Debug, Clone)]
pub struct Addresses {
    pub arm: String,
    pub login: String,
    pub imds: String,
    pub prices: String,
}

pub struct Cloud {
    shared: Arc<Shared>,
    plain: Addresses,
    secure: Addresses,
    ca: String,
    // Ended without waiting, so that an async test may drop it as well.
    runtime: Option<tokio::runtime::Runtime>,
}

impl Cloud {
    /// A cloud of one's own. None, and loudly, where Microsoft's documents are not beside the project: unchecked it
    /// would prove nothing.
    pub fn start(options: Options) -> Option<Self> {
        let Some(contract) = contract::Contract::beside() else {
            assert!(std::env::var_os("CI").is_none(), "CI must have ../shared/azure-openapi");
            eprintln!("SKIPPED: there is no ../shared/azure-openapi to check requests against");
            return None;
        };
        let (address, imds, pace) = (options.address, options.imds, options.pace);
        let shared = Shared::new(contract, options);
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
        let runtime = runtime.expect("a runtime for the simulated cloud");
        if matches!(pace, Pace::Running(_)) {
            // What is due happens also when nobody asks.
            let shared = Arc::clone(&shared);
            runtime.spawn(async move {
                loop {
                    tokio::time::sleep(TICK).await;
                    shared.change(|_| ());
                }
            });
        }
        let vouching = Vouching::new(address);
        let open = |service, at| {
            let serve = front::serve(&shared, service);
            Door::open(&runtime, at, &vouching, &serve).unwrap_or_else(|e| panic!("listening at {at:?}: {e}"))
        };
        let free = (address, 0);
        let [arm, login, prices] = [Service::Arm, Service::Login, Service::Prices].map(|one| open(one, free));
        let imds = open(Service::Imds, imds.unwrap_or(free));
        let addresses = |scheme: &str, port: fn(&Door) -> SocketAddr| {
            let at = |door| format!("{scheme}://{}", port(door));
            Addresses { arm: at(&arm), login: at(&login), imds: at(&imds), prices: at(&prices) }
        };
        Some(Self {
            shared,
            plain: addresses("http", |door| door.http),
            secure: addresses("https", |door| door.https),
            ca: vouching.pem,
            runtime: Some(runtime),
        })
    }

    pub fn arm(&self) -> &str {
        &self.plain.arm
    }

    pub fn login(&self) -> &str {
        &self.plain.login
    }

    pub fn imds(&self) -> &str {
        &self.plain.imds
    }

    pub fn prices(&self) -> &str {
        &self.plain.prices
    }

    /// The same services over https.
    pub fn secure(&self) -> &Addresses {
        &self.secure
    }

    /// Who vouches for them, PEM.
    pub fn ca(&self) -> &str {
        &self.ca
    }

    /// The headquarters' own settings that lead here, over https, for whoever has `ca()` in that file. Who they are, and
    /// where, they are told as on every machine of Azure's.
    pub fn settings(&self, ca_file: &str) -> String {
        let Addresses { arm, login, prices, .. } = self.secure();
        format!(
            "[gpu.azure]\nendpoint = {arm:?}\nlogin = {login:?}\nprices = {prices:?}\n\
             audience = \"https://management.azure.com\"\nca_file = {ca_file:?}\n"
        )
    }

    pub fn subscription(&self) -> String {
        self.shared.world().subscription.clone()
    }

    pub fn principal(&self) -> Principal {
        self.shared.entra().principal.clone()
    }

    pub fn now(&self) -> Moment {
        self.shared.world().clock.now()
    }

    /// Let time pass; all that is due happens, in its order.
    pub fn advance(&self, by: Duration) {
        self.shared.change(|world| {
            world.clock.advance(by);
            world.settle();
        });
    }

    /// From now on these and no others.
    pub fn spoil(&self, rules: impl IntoIterator<Item = Rule>) {
        self.shared.spoil(rules.into_iter().collect());
    }

    /// Vcpus of `cores`, of a family or of `lowPriorityCores`; 100 where nothing is said.
    pub fn set_quota(&self, counter: &str, limit: u64) {
        self.shared.change(|world| world.quota.insert(counter.to_owned(), limit));
    }

    /// Not for this subscription, in a region or in one zone of it.
    pub fn restrict(&self, size: &str, region: &str, zone: Option<&str>) {
        let row = (size.to_owned(), region.to_owned(), zone.map(str::to_owned));
        self.shared.change(|world| world.restricted.push(row));
    }

    /// Nothing at or below this id can be deleted.
    pub fn lock(&self, scope: &str) {
        self.shared.change(|world| world.locks.insert(scope.to_lowercase()));
    }

    pub fn unlock(&self, scope: &str) {
        self.shared.change(|world| world.locks.remove(&scope.to_lowercase()));
    }

    /// As on a fresh subscription: `Microsoft.Compute` has to be registered first.
    pub fn unregister(&self, provider: &str) {
        self.shared.change(|world| world.unregistered.insert(provider.to_owned()));
    }

    /// No token that is out there is good any longer.
    pub fn expire_tokens(&self) {
        self.shared.entra().expire();
    }

    /// Notice now, the end half a minute later. Whether there is such a spot machine.
    pub fn evict(&self, id: &str) -> bool {
        self.shared.change(|world| world.give_notice(id))
    }

    /// Gone at once, without notice.
    pub fn evict_now(&self, id: &str) {
        self.shared.change(|world| world.evict(id));
    }

    /// Off and on again, as when its host dies: whoever is on it starts anew.
    pub fn reboot(&self, id: &str) {
        self.shared.change(|world| world.powered(id, Power::Running));
    }

    /// Switched off by somebody, as in the portal.
    pub fn switch_off(&self, id: &str) {
        self.shared.change(|world| world.powered(id, Power::Deallocated));
    }

    /// Deleted by somebody, and with it what goes with it.
    pub fn delete_machine(&self, id: &str) {
        self.shared.change(|world| world.machine_gone(id));
    }

    /// Ids of everything that was rented and is there, whatever it costs.
    pub fn left(&self) -> Vec<String> {
        let world = self.shared.world();
        world.things().filter(|thing| !thing.fixture).map(|thing| thing.id.clone()).collect()
    }

    /// As `left`, of what is being paid for now.
    pub fn costing(&self) -> Vec<String> {
        let world = self.shared.world();
        let paid = world.things().filter(|thing| !thing.fixture && bill::rate(thing).is_some());
        paid.map(|thing| thing.id.clone()).collect()
    }

    /// Ids of one kind, rented ones only.
    pub fn ids(&self, kind: Kind) -> Vec<String> {
        let world = self.shared.world();
        world.of(kind, None).filter(|thing| !thing.fixture).map(|thing| thing.id.clone()).collect()
    }

    /// What GET would answer.
    pub fn get(&self, id: &str) -> Option<serde_json::Value> {
        self.shared.world().get(id).map(|thing| thing.body.clone())
    }

    pub fn power(&self, id: &str) -> Option<Power> {
        self.shared.world().get(id)?.machine.as_ref().map(|machine| machine.power)
    }

    /// What everything came to.
    pub fn bill(&self) -> Bill {
        let mut world = self.shared.world();
        world.settle();
        world.bill.clone()
    }

    /// Requests that the documents do not allow, and answers of ours that they do not.
    pub fn violations(&self) -> Vec<String> {
        self.shared.violations()
    }

    #[track_caller]
    pub fn assert_honest(&self) {
        let violations = self.violations();
        assert!(violations.is_empty(), "against the documents:\n{}", violations.join("\n"));
    }

    /// How often somebody asked again before he might.
    pub fn impatient(&self) -> usize {
        self.shared.impatient()
    }

    /// Every request to the resource manager, in order.
    pub fn asked(&self) -> Vec<Asked> {
        self.shared.asked()
    }

    /// As `asked`, for a person.
    pub fn story(&self) -> String {
        self.asked().iter().map(|asked| format!("{asked}\n")).collect()
    }

    /// What came and went, for a person.
    pub fn history(&self) -> String {
        let world = self.shared.world();
        world.history.iter().map(|(at, what, id)| format!("{} {what} {id}\n", at.text())).collect()
    }

    /// The id of the headquarters' machine.
    pub fn headquarters(&self) -> Option<&str> {
        self.shared.headquarters.as_deref()
    }

    /// The subnet that the headquarters is in.
    pub fn subnet(&self) -> String {
        hq::subnet(&self.subscription())
    }
}

impl Drop for Cloud {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
        self.shared.end();
    }
}
