//! What there is in the subscription, and what is about to happen to it.
//!
//! Time moves in one place, `settle`: it goes from one due event to the next, and what has passed between is paid
//! for. So nothing depends on how often anybody looks.

use super::{
    bill::Bill,
    catalog::Size,
    clock::{Clock, Moment},
    metal::Order,
    operation::Operation,
};
use serde_json::{Map, Value, json};
use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
    time::Duration,
};

/// How long Azure takes. All of it is guessed from what others have measured, and may be changed by a test.
#[derive(Debug, Clone)]
pub struct Takes {
    pub vm_create: Duration,
    pub vm_delete: Duration,
    pub power: Duration,
    pub network: Duration,
    pub disk: Duration,
    /// After the machine is gone, what goes with it follows.
    pub cascade: Duration,
    /// How long a network interface belongs to a machine that is gone or never came.
    pub reservation: Duration,
    /// Until something new is in the lists.
    pub list_lag: Duration,
    /// From the notice to the end.
    pub eviction: Duration,
    /// What is told to who polls.
    pub retry_after: Option<u64>,
}

impl Default for Takes {
    fn default() -> Self {
        let seconds = Duration::from_secs;
        Self {
            vm_create: seconds(45),
            vm_delete: seconds(30),
            power: seconds(20),
            network: seconds(2),
            disk: seconds(4),
            cascade: seconds(5),
            reservation: seconds(180),
            list_lag: seconds(8),
            eviction: seconds(30),
            retry_after: Some(5),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    Group,
    Vm,
    Nic,
    Ip,
    Nsg,
    Vnet,
    Disk,
    Snapshot,
    Schedule,
}

impl Kind {
    /// Azure's own word, and the last part but one of an id.
    pub fn name(self) -> &'static str {
        match self {
            Self::Group => "Microsoft.Resources/resourceGroups",
            Self::Vm => "Microsoft.Compute/virtualMachines",
            Self::Nic => "Microsoft.Network/networkInterfaces",
            Self::Ip => "Microsoft.Network/publicIPAddresses",
            Self::Nsg => "Microsoft.Network/networkSecurityGroups",
            Self::Vnet => "Microsoft.Network/virtualNetworks",
            Self::Disk => "Microsoft.Compute/disks",
            Self::Snapshot => "Microsoft.Compute/snapshots",
            Self::Schedule => "Microsoft.DevTestLab/schedules",
        }
    }

    pub(super) fn noun(self) -> &'static str {
        match self {
            Self::Group => "group",
            Self::Vm => "machine",
            Self::Nic => "network interface",
            Self::Ip => "public IP",
            Self::Nsg => "security group",
            Self::Vnet => "network",
            Self::Disk => "disk",
            Self::Snapshot => "snapshot",
            Self::Schedule => "schedule",
        }
    }

    /// As operations are called: `VirtualMachines_Get` is of `VirtualMachines`.
    pub(super) fn of_operations(word: &str) -> Option<Self> {
        Some(match word {
            "ResourceGroups" => Self::Group,
            "VirtualMachines" => Self::Vm,
            "NetworkInterfaces" => Self::Nic,
            "PublicIPAddresses" => Self::Ip,
            "NetworkSecurityGroups" => Self::Nsg,
            "VirtualNetworks" => Self::Vnet,
            "Disks" => Self::Disk,
            "Snapshots" => Self::Snapshot,
            "GlobalSchedules" => Self::Schedule,
            _ => return None,
        })
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Power {
    Starting,
    Running,
    /// Off, with its place kept: paid for.
    Stopped,
    Deallocated,
}

impl Power {
    pub fn paid(self) -> bool {
        self != Self::Deallocated
    }

    pub fn code(self) -> &'static str {
        match self {
            Self::Starting => "PowerState/starting",
            Self::Running => "PowerState/running",
            Self::Stopped => "PowerState/stopped",
            Self::Deallocated => "PowerState/deallocated",
        }
    }
}

/// What only a virtual machine has.
#[derive(Debug, Clone)]
pub(super) struct Machine {
    pub power: Power,
    pub size: &'static Size,
    pub spot: bool,
    /// As it was asked for: the same once more changes nothing.
    pub asked: Value,
    pub order: Order,
    /// Its metal has not answered yet.
    pub booting: bool,
    /// Rows of its scheduled events.
    pub notices: Vec<Value>,
}

#[derive(Debug, Clone)]
pub(super) struct Thing {
    /// As its maker wrote it.
    pub id: String,
    pub kind: Kind,
    /// What GET answers.
    pub body: Value,
    pub born: Moment,
    /// There before anybody rented anything: the headquarters itself.
    pub fixture: bool,
    /// Counts how often it was put: what was planned for an earlier one is not for this.
    pub version: u64,
    /// For a network interface: until when, and for which machine.
    pub reserved: Option<(Moment, String)>,
    pub machine: Option<Machine>,
    /// Of a disk with a system on it, or a copy of one: what that was told when it was new.
    pub system: Option<Order>,
}

impl Thing {
    pub(super) fn name(&self) -> &str {
        self.id.rsplit('/').next().unwrap_or_default()
    }

    pub(super) fn state(&self) -> &str {
        self.body["properties"]["provisioningState"].as_str().unwrap_or_default()
    }

    pub(super) fn set_state(&mut self, state: &str) {
        self.body["properties"]["provisioningState"] = json!(state);
    }

    /// The value at a pointer below `properties`, as a text.
    pub(super) fn text(&self, pointer: &str) -> Option<&str> {
        self.body["properties"].pointer(pointer)?.as_str()
    }

    pub(super) fn tag(&self, name: &str) -> Option<&str> {
        let tags = self.body["tags"].as_object()?;
        tags.iter().find(|(key, _)| key.eq_ignore_ascii_case(name))?.1.as_str()
    }
}

/// What is due at some moment.
#[derive(Debug, Clone)]
pub(super) enum Event {
    /// A long-running operation comes to its end.
    Finish(String),
    /// Something follows what it belonged to.
    Fade(String),
    /// A shut-down schedule; only if it is still the one that was set.
    Shutdown { id: String, version: u64 },
    /// A machine, if it is still this one and not another of its name.
    Evict { id: String, version: u64 },
    /// A group goes on removing what is in it, until it gives up.
    Empty { group: String, operation: String, until: Moment },
}

/// What the metal is to do once nobody holds the world any more.
#[derive(Debug, Clone)]
pub(super) enum Deed {
    Boot(Order),
    Kill(String),
    Remove(String),
    /// Of a machine, as a snapshot.
    Keep(String, String),
}

pub(super) struct World {
    pub clock: Clock,
    pub takes: Takes,
    pub subscription: String,
    pub regions: Vec<String>,
    pub bill: Bill,
    pub deeds: Vec<Deed>,
    /// Whether the metal gives addresses.
    pub metal_addresses: bool,
    pub operations: BTreeMap<String, Operation>,
    /// By name: `cores`, a family, `lowPriorityCores`.
    pub quota: BTreeMap<String, u64>,
    /// Size, region, and zone (none: all of it): not for this subscription.
    pub restricted: Vec<(String, String, Option<String>)>,
    /// Scopes that may not be deleted.
    pub locks: BTreeSet<String>,
    pub unregistered: BTreeSet<String>,
    /// How the next long-running operation ends, if not well.
    pub fate: Option<super::operation::Fate>,
    things: BTreeMap<String, Thing>,
    events: BTreeMap<(Moment, u64), Event>,
    /// Everything before is paid for.
    settled: Moment,
    serial: u64,
    /// Every id that ever was, with when it came and went: for the end of a test.
    pub history: Vec<(Moment, &'static str, String)>,
}

impl World {
    pub(super) fn new(clock: Clock, takes: Takes, subscription: String, regions: Vec<String>) -> Self {
        let settled = clock.now();
        Self {
            clock,
            takes,
            subscription,
            regions,
            settled,
            metal_addresses: false,
            bill: Bill::default(),
            deeds: Vec::new(),
            operations: BTreeMap::new(),
            quota: BTreeMap::new(),
            restricted: Vec::new(),
            locks: BTreeSet::new(),
            unregistered: BTreeSet::new(),
            fate: None,
            things: BTreeMap::new(),
            events: BTreeMap::new(),
            serial: 0,
            history: Vec::new(),
        }
    }

    /// The moment up to which everything has happened.
    pub(super) fn now(&self) -> Moment {
        self.settled
    }

    /// Let everything happen that is due by now.
    pub(super) fn settle(&mut self) {
        let now = self.clock.now();
        while let Some((&(due, serial), _)) = self.events.first_key_value() {
            if due > now {
                break;
            }
            self.pay(due);
            if let Some(event) = self.events.remove(&(due, serial)) {
                self.happen(event);
            }
        }
        self.pay(now);
    }

    fn pay(&mut self, until: Moment) {
        let time = until.since(self.settled);
        if time > Duration::ZERO {
            for thing in self.things.values().filter(|thing| !thing.fixture) {
                self.bill.add(thing, time);
            }
            self.settled = until;
        }
    }

    pub(super) fn plan(&mut self, wait: Duration, event: Event) {
        self.serial += 1;
        self.events.insert((self.settled.after(wait), self.serial), event);
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Finish(operation) => self.finish(&operation),
            Event::Fade(id) => drop(self.remove(&id)),
            Event::Shutdown { id, version } => self.shut_down(&id, version),
            Event::Evict { id, version } => {
                if self.get(&id).is_some_and(|vm| vm.version == version) {
                    self.evict(&id);
                }
            }
            Event::Empty { group, operation, until } => self.empty(&group, &operation, until),
        }
    }

    /// Short, and never the same twice.
    pub(super) fn fresh(&mut self, what: &str) -> String {
        self.serial += 1;
        super::catalog::uuid(&format!("{what} {} {}", self.serial, self.settled.0))
    }

    pub(super) fn get(&self, id: &str) -> Option<&Thing> {
        self.things.get(&id.to_lowercase())
    }

    pub(super) fn get_mut(&mut self, id: &str) -> Option<&mut Thing> {
        self.things.get_mut(&id.to_lowercase())
    }

    pub(super) fn things(&self) -> impl Iterator<Item = &Thing> {
        self.things.values()
    }

    /// Things of one kind, of one group if it is named.
    pub(super) fn of(&self, kind: Kind, group: Option<&str>) -> impl Iterator<Item = &Thing> {
        let group = group.map(str::to_lowercase);
        self.things.values().filter(move |thing| {
            thing.kind == kind
                && group.as_ref().is_none_or(|group| group_of(&thing.id).to_lowercase() == *group)
        })
    }

    /// As `of`, as far as the lists have heard of them.
    pub(super) fn listed(&self, kind: Kind, group: Option<&str>) -> impl Iterator<Item = &Thing> {
        self.of(kind, group).filter(|thing| self.heard(thing))
    }

    pub(super) fn heard(&self, thing: &Thing) -> bool {
        thing.fixture || thing.born.after(self.takes.list_lag) <= self.settled
    }

    /// Put a new thing there, or what it is now in place of what it was.
    pub(super) fn put(&mut self, kind: Kind, id: &str, body: Value) -> &mut Thing {
        let key = id.to_lowercase();
        let now = self.settled;
        self.serial += 1;
        let version = self.serial;
        let thing = self.things.entry(key).or_insert_with(|| {
            self.history.push((now, "came", id.to_owned()));
            Thing {
                id: id.to_owned(),
                kind,
                body: Value::Null,
                born: now,
                fixture: false,
                version,
                reserved: None,
                machine: None,
                system: None,
            }
        });
        thing.version = version;
        thing.body = body;
        thing.body["id"] = json!(thing.id);
        thing.body["name"] = json!(thing.id.rsplit('/').next());
        thing.body["type"] = json!(kind.name());
        thing
    }

    pub(super) fn remove(&mut self, id: &str) -> Option<Thing> {
        let gone = self.things.remove(&id.to_lowercase())?;
        self.history.push((self.settled, "went", gone.id.clone()));
        if gone.kind == Kind::Nic {
            // Its address is free again.
            for ip in self.things.values_mut().filter(|thing| thing.kind == Kind::Ip) {
                let of = ip.body["properties"]["ipConfiguration"]["id"].as_str().unwrap_or_default();
                if of.to_lowercase().starts_with(&format!("{}/", gone.id.to_lowercase())) {
                    ip.body["properties"].as_object_mut().map(|all| all.remove("ipConfiguration"));
                }
            }
        }
        Some(gone)
    }

    /// It goes with what it belonged to, a little later; until then nobody can do anything with it.
    pub(super) fn fade(&mut self, id: &str, wait: Duration) {
        if let Some(thing) = self.get_mut(id) {
            thing.set_state("Deleting");
            self.plan(wait, Event::Fade(id.to_owned()));
        }
    }

    pub(super) fn group_id(&self, group: &str) -> String {
        format!("/subscriptions/{}/resourceGroups/{group}", self.subscription)
    }

    pub(super) fn id(&self, group: &str, kind: Kind, name: &str) -> String {
        format!("{}/providers/{}/{name}", self.group_id(group), kind.name())
    }

    /// The lock that keeps this from being deleted: its own, that of its group, or that of the subscription.
    pub(super) fn lock_on(&self, id: &str) -> Option<&String> {
        let id = id.to_lowercase();
        self.locks.iter().find(|scope| id == **scope || id.starts_with(&format!("{scope}/")))
    }

    /// A free address of a range, the lowest first.
    pub(super) fn free_address(&self, first: Ipv4Addr, pointer: &str, kind: Kind) -> Ipv4Addr {
        let taken: BTreeSet<Ipv4Addr> = self
            .things
            .values()
            .filter(|thing| thing.kind == kind)
            .filter_map(|thing| thing.text(pointer)?.parse().ok())
            .collect();
        let mut address = u32::from(first);
        while taken.contains(&Ipv4Addr::from(address)) {
            address += 1;
        }
        Ipv4Addr::from(address)
    }
}

/// The group in an id, as it is written there.
pub(super) fn group_of(id: &str) -> &str {
    id.split('/').nth(4).unwrap_or_default()
}

/// Without these at the top level, which are Azure's to say.
pub(super) fn asked_alone(body: &Value) -> Map<String, Value> {
    let mut body = body.as_object().cloned().unwrap_or_default();
    for own in ["id", "name", "type", "etag"] {
        body.remove(own);
    }
    body
}
