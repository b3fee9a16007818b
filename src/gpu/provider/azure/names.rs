//! What the things of a run are called. Pure: whoever knows the headquarters and the run knows every name, so that
//! what was rented can be found and given back with nothing else left to go by.
//!
//! `er-HQ-RUN` is the machine, and the group that it is in; `er-HQ-RUN_nsg` and the like are what belongs to it. A
//! run's name has no `_`, so no thing of one run can be taken for one of another.

use crate::{
    gpu::spec::RunId,
    hash::{first, sha256},
};
use serde_json::{Map, Value, json};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

pub const TAG_HQ: &str = "echoes-hq";
pub const TAG_RUN: &str = "echoes-run";
pub const TAG_OWNER: &str = "echoes-owner";
/// After this nobody is interested in it any more; moved on while headquarters is well.
pub const TAG_EXPIRES: &str = "echoes-expires";

/// The versions whose descriptions we check ourselves against. Older ones go on working; newer ones change defaults.
pub const COMPUTE: &str = "2024-07-01";
pub const DISKS: &str = "2024-03-02";
pub const SKUS: &str = "2021-07-01";
pub const NETWORK: &str = "2024-05-01";
pub const RESOURCES: &str = "2024-07-01";
pub const SCHEDULES: &str = "2018-09-15";

/// What a run may own, in the order in which it can be deleted: nothing depends on what comes after it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    Machine,
    Schedule,
    Interface,
    OsDisk,
    DataDisk,
    Snapshot,
    Address,
    Security,
    Network,
}

impl Kind {
    pub const ALL: [Self; 9] = [
        Self::Machine,
        Self::Schedule,
        Self::Interface,
        Self::OsDisk,
        Self::DataDisk,
        Self::Snapshot,
        Self::Address,
        Self::Security,
        Self::Network,
    ];

    pub fn path(self) -> &'static str {
        match self {
            Self::Machine => "Microsoft.Compute/virtualMachines",
            Self::Schedule => "Microsoft.DevTestLab/schedules",
            Self::Interface => "Microsoft.Network/networkInterfaces",
            Self::OsDisk | Self::DataDisk => "Microsoft.Compute/disks",
            Self::Snapshot => "Microsoft.Compute/snapshots",
            Self::Address => "Microsoft.Network/publicIPAddresses",
            Self::Security => "Microsoft.Network/networkSecurityGroups",
            Self::Network => "Microsoft.Network/virtualNetworks",
        }
    }

    /// Of which a run may have several: Azure puts something of its own after what we asked for, or we the region.
    pub fn is_many(self) -> bool {
        matches!(self, Self::Interface | Self::Address | Self::Security | Self::Network | Self::Snapshot)
    }

    pub fn version(self) -> &'static str {
        match self {
            Self::Machine => COMPUTE,
            Self::Schedule => SCHEDULES,
            Self::OsDisk | Self::DataDisk | Self::Snapshot => DISKS,
            Self::Interface | Self::Address | Self::Security | Self::Network => NETWORK,
        }
    }

    /// Of a resource, by its id.
    pub fn of(id: &str) -> Option<Self> {
        let kind = |kind: &Self| {
            let part = format!("/providers/{}/", kind.path());
            id.to_ascii_lowercase().contains(&part.to_ascii_lowercase())
        };
        Self::ALL.into_iter().find(kind)
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Names {
    pub subscription: String,
    pub hq: String,
    pub run: RunId,
}

impl Names {
    pub fn new(subscription: &str, hq: &str, run: &RunId) -> Self {
        Self { subscription: subscription.into(), hq: hq.into(), run: run.clone() }
    }

    /// The machine's, and that of its group.
    pub fn machine(&self) -> String {
        format!("{}{}", prefix(&self.hq), self.run)
    }

    /// For things that Azure makes for us, and for those of which each region has its own, it is what their names begin
    /// with.
    pub fn name(&self, kind: Kind) -> String {
        let machine = self.machine();
        match kind {
            Kind::Machine => machine,
            // Azure takes no other for the schedule of a machine.
            Kind::Schedule => format!("shutdown-computevm-{machine}"),
            Kind::Interface => format!("{machine}_nic"),
            Kind::OsDisk => format!("{machine}_os"),
            Kind::DataDisk => format!("{machine}_data"),
            Kind::Snapshot => format!("{machine}_snap"),
            Kind::Address => format!("{machine}_ip"),
            Kind::Security => format!("{machine}_nsg"),
            Kind::Network => format!("{machine}_net"),
        }
    }

    pub fn group_id(&self, group: &str) -> String {
        format!("/subscriptions/{}/resourceGroups/{group}", self.subscription)
    }

    pub fn id(&self, group: &str, kind: Kind) -> String {
        format!("{}/providers/{}/{}", self.group_id(group), kind.path(), self.name(kind))
    }

    /// Of a thing that must be where the machine is. A run whose machine could not be had in one region goes on in
    /// another before Azure has let go of what is in the first.
    pub fn local(&self, group: &str, kind: Kind, region: &str) -> String {
        let region: String = region.chars().filter(char::is_ascii_alphanumeric).collect();
        format!("{}-{}", self.id(group, kind), region.to_ascii_lowercase())
    }

    pub fn subnet(&self, group: &str, region: &str) -> String {
        format!("{}/subnets/machines", self.local(group, Kind::Network, region))
    }

    /// Whether a thing of this name, of this kind, is this run's.
    pub fn owns(&self, kind: Kind, name: &str) -> bool {
        let (name, ours) = (name.to_ascii_lowercase(), self.name(kind).to_ascii_lowercase());
        if kind.is_many() { name.starts_with(&ours) } else { name == ours }
    }

    pub fn tags(&self, owner: &str, expires: OffsetDateTime) -> Value {
        json!({
            TAG_HQ: self.hq,
            TAG_RUN: self.run.as_str(),
            // What Azure allows in a value: 256 characters.
            TAG_OWNER: owner.chars().take(256).collect::<String>(),
            TAG_EXPIRES: stamp(expires),
        })
    }

    /// Whether what these tags are on is this headquarters', of this run.
    pub fn marked(&self, tags: &Value) -> bool {
        tags[TAG_HQ] == self.hq.as_str() && tags[TAG_RUN] == self.run.as_str()
    }
}

pub fn stamp(at: OffsetDateTime) -> String {
    // Whole seconds, and always the same form: people sort by it.
    let at = at.replace_nanosecond(0).unwrap_or(at);
    at.format(&Rfc3339).unwrap_or_default()
}

/// What every name of this headquarters begins with: six characters tell any few apart that share a group.
pub fn prefix(hq: &str) -> String {
    format!("er-{}-", first(&sha256(hq), 6))
}

/// Whose a thing is: by its tags, else by its name where Azure made it for us and tags are not taken over.
pub fn run_of(hq: &str, name: &str, tags: Option<&Map<String, Value>>) -> Option<RunId> {
    let tagged = tags.and_then(|tags| tags.get(TAG_RUN)).and_then(Value::as_str);
    let named = || {
        let name = name.to_ascii_lowercase();
        let name = name.strip_prefix("shutdown-computevm-").unwrap_or(&name).to_owned();
        let rest = name.strip_prefix(&prefix(hq))?;
        Some(rest.split('_').next().unwrap_or(rest).to_owned())
    };
    tagged.map(str::to_owned).or_else(named).and_then(|run| RunId::try_from(run).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(run: &str) -> Names {
        Names::new("sub", "hq-1", &RunId::try_from(run.to_owned()).unwrap())
    }

    #[test]
    fn no_thing_of_one_run_is_taken_for_one_of_another() {
        let runs = ["a", "a-nic", "a-ip", "a-nsg", "b"].map(names);
        for ours in &runs {
            for theirs in &runs {
                for kind in Kind::ALL {
                    let name = theirs.name(kind);
                    let made = if kind.is_many() { format!("{name}-0f3c") } else { name };
                    assert_eq!(ours.owns(kind, &made), ours == theirs, "{made}");
                    assert_eq!(run_of("hq-1", &made, None).as_ref(), Some(&theirs.run), "{made}");
                    assert_eq!(run_of("hq-2", &made, None), None, "{made}");
                }
            }
        }
        assert_eq!(run_of("hq-1", "somebody-elses", None), None);
    }

    #[test]
    fn names_are_as_short_as_azure_wants_them() {
        let longest = names(&"a".repeat(40));
        for kind in Kind::ALL {
            // 64 for a Linux machine, 80 for all else; a schedule's is the machine's and 19 more.
            let most = if kind == Kind::Machine { 64 } else { 80 };
            assert!(longest.name(kind).len() <= most, "{kind:?}");
            assert_eq!(Kind::of(&longest.id("g", kind)).map(Kind::path), Some(kind.path()));
        }
    }
}
