//! A headquarters with its provider before a simulated Azure, where time passes only while somebody waits.

use super::super::{
    Azure, Settings,
    clock::Clock,
    credential::{Secret, Source},
};
use crate::{
    gpu::{
        provider::{Offer, Provider as _, Rent},
        spec::{RunId, Source as From, Spec},
    },
    host::{Host, System},
};
use anyhow::Result;
use kit::cloud::{Cloud, Kind, Metal, Options, Order, Takes};
use std::{
    future::Future,
    io::Write as _,
    net::{Ipv4Addr, TcpListener},
    pin::Pin,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use time::OffsetDateTime;

pub const T4: &str = "Standard_NC4as_T4_v3";
pub const SMALL: &str = "Standard_B1s";

/// Whoever waits lets time pass; whoever was killed does neither.
struct Virtual(Arc<Cloud>, Life);

impl Clock for Virtual {
    fn now(&self) -> OffsetDateTime {
        self.1.go_on();
        self.0.now().date()
    }

    fn nap<'a>(&'a self, time: Duration) -> Pin<Box<dyn Future<Output = ()> + Send + 'a>> {
        Box::pin(async move {
            self.1.go_on();
            self.0.advance(time);
            tokio::task::yield_now().await;
        })
    }
}

/// Of headquarters' process. It may be ended from outside, in the middle of a request; here that is a panic at the next
/// thing that it would do.
#[derive(Clone, Default)]
pub struct Life(Arc<AtomicBool>);

impl Life {
    pub fn end(&self) {
        self.0.store(true, Ordering::SeqCst);
    }

    /// Another process.
    pub fn begin(&self) {
        self.0.store(false, Ordering::SeqCst);
    }

    /// What a dead process does not.
    pub fn go_on(&self) {
        assert!(!self.0.load(Ordering::SeqCst), "killed");
    }
}

/// Each machine is this one, and answers at its door as an ssh server does.
struct Door;

impl Metal for Door {
    fn boot(&self, _: &Order) -> Result<Option<Ipv4Addr>, String> {
        Ok(Some(Ipv4Addr::LOCALHOST))
    }

    fn kill(&self, _: &str) {}

    fn addresses(&self) -> bool {
        true
    }
}

/// Where it answers: one for all tests of this process.
fn port() -> u16 {
    static PORT: OnceLock<u16> = OnceLock::new();
    *PORT.get_or_init(|| {
        let door = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = door.local_addr().unwrap().port();
        std::thread::spawn(move || {
            for guest in door.incoming() {
                // Whoever has gone again has heard enough.
                let _ = guest.and_then(|mut guest| guest.write_all(b"SSH-2.0-test\r\n"));
            }
        });
        port
    })
}

pub struct Stage {
    pub cloud: Arc<Cloud>,
    pub azure: Azure,
    pub settings: Settings,
    pub host: Arc<Host>,
    pub life: Life,
    _dir: tempfile::TempDir,
}

impl Stage {
    /// None, and loudly, where Microsoft's documents are not beside the project.
    pub fn new(change: impl FnOnce(&mut Settings)) -> Option<Self> {
        Self::with(Takes::default(), change)
    }

    /// Where Azure takes so long.
    pub fn with(takes: Takes, change: impl FnOnce(&mut Settings)) -> Option<Self> {
        let options = Options { takes, metal: Arc::new(Door), ..Options::default() };
        let cloud = Arc::new(Cloud::start(options)?);
        let dir = tempfile::tempdir().unwrap();
        let host = Arc::new(Host::new(dir.path(), System));
        let mut settings = settings(&cloud);
        change(&mut settings);
        let life = Life::default();
        let azure = provider(&cloud, &settings, &host, &life);
        Some(Self { cloud, azure, settings, host, life, _dir: dir })
    }

    /// As after a crash: another process, with what is on disk.
    pub fn restart(&mut self) {
        self.life.begin();
        self.azure = provider(&self.cloud, &self.settings, &self.host, &self.life);
    }

    /// Ask until there is a machine, or none by this offer.
    pub fn rent(&self, spec: &Spec, offer: &Offer) -> Result<Rent> {
        self.until_there(|| self.azure.rent(spec, offer))
    }

    /// The same, of what was kept.
    pub fn rent_from_copy(&self, spec: &Spec, offer: &Offer, copy: &str) -> Result<Rent> {
        self.until_there(|| self.azure.rent_from_copy(spec, offer, copy))
    }

    fn until_there(&self, ask: impl Fn() -> Result<Rent>) -> Result<Rent> {
        let mut last = String::new();
        for _ in 0..100 {
            match ask()? {
                Rent::Coming(why) => last = why,
                rent => return Ok(rent),
            }
            self.at_most_one();
            self.cloud.advance(Duration::from_secs(5));
        }
        panic!("it never comes: {last}\n{}", self.cloud.story());
    }

    /// Ask until nothing is left.
    pub fn give_back(&self, run: &RunId) {
        let mut last = Vec::new();
        for _ in 0..60 {
            // A bad moment is not the end.
            if let Ok(left) = self.azure.give_back(run) {
                if left.is_empty() {
                    return;
                }
                last = left;
            }
            self.cloud.advance(Duration::from_secs(15));
        }
        panic!("it never goes: {last:#?}\n{}", self.cloud.story());
    }

    pub fn at_most_one(&self) {
        let machines = self.cloud.ids(Kind::Vm);
        assert!(machines.len() <= 1, "{machines:?}");
    }

    /// Nothing of ours is there, nothing was said that is not in the documents, nobody was pressed.
    #[track_caller]
    pub fn assert_clean(&self) {
        assert_eq!(self.cloud.left(), Vec::<String>::new(), "{}", self.cloud.story());
        self.cloud.assert_honest();
        assert_eq!(self.cloud.impatient(), 0, "{}", self.cloud.story());
    }
}

pub fn settings(cloud: &Cloud) -> Settings {
    Settings {
        endpoint: cloud.arm().into(),
        login: cloud.login().into(),
        metadata: cloud.imds().into(),
        prices: cloud.prices().into(),
        audience: Some("https://management.azure.com".into()),
        port: port(),
        ..Settings::default()
    }
}

fn provider(cloud: &Arc<Cloud>, settings: &Settings, host: &Arc<Host>, life: &Life) -> Azure {
    let principal = cloud.principal();
    let secret = Secret::new(principal.secret);
    let source = Source::Secret { tenant: principal.tenant, client: principal.client, secret };
    let clock = Arc::new(Virtual(Arc::clone(cloud), life.clone()));
    Azure::new(settings.clone(), "hq-1", vec![source], Arc::clone(host), clock).unwrap()
}

pub fn spec(run: &str) -> Spec {
    Spec { owner: "ada".into(), source: From::Azure, ..Spec::example(run) }
}

pub fn offer(size: &str, region: &str) -> Offer {
    Offer { size: size.into(), region: region.into(), zone: None, spot: false, price: 1 }
}
