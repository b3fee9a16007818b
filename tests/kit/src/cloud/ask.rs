//! A request that the documents allow, with its parts at hand.

use super::{
    answer::Answer,
    contract::Matched,
    world::{Kind, World},
};
use serde_json::Value;

pub(super) struct Ask<'a> {
    /// Scheme and host, as the asker knows them: addresses in answers begin with it.
    pub base: &'a str,
    pub found: &'a Matched,
    pub path: &'a str,
    pub query: &'a [(String, String)],
    pub headers: &'a http::HeaderMap,
    pub body: Option<&'a Value>,
}

impl Ask<'_> {
    pub(super) fn part(&self, name: &str) -> &str {
        self.found.path.get(name).map_or("", String::as_str)
    }

    pub(super) fn group(&self) -> &str {
        self.part("resourceGroupName")
    }

    /// What the path calls the thing that is meant.
    pub(super) fn name(&self, kind: Kind) -> &str {
        self.part(match kind {
            Kind::Group => "resourceGroupName",
            Kind::Vm => "vmName",
            Kind::Nic => "networkInterfaceName",
            Kind::Ip => "publicIpAddressName",
            Kind::Nsg => "networkSecurityGroupName",
            Kind::Vnet => "virtualNetworkName",
            Kind::Disk => "diskName",
            Kind::Snapshot => "snapshotName",
            Kind::Schedule => "name",
        })
    }

    pub(super) fn query(&self, name: &str) -> Option<&str> {
        let found = self.query.iter().find(|(key, _)| key.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.as_str())
    }

    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    pub(super) fn body(&self) -> &Value {
        self.body.unwrap_or(&Value::Null)
    }
}

impl World {
    /// The id of what is meant, in a group that is there.
    pub(super) fn meant(&self, ask: &Ask, kind: Kind) -> Result<String, Box<Answer>> {
        let group = self.group_id(ask.group());
        let Some(group) = self.get(&group) else {
            return Err(Box::new(Answer::no_group(ask.group())));
        };
        if kind == Kind::Group {
            return Ok(group.id.clone());
        }
        Ok(self.id(group.name(), kind, ask.name(kind)))
    }

    /// As `meant`, in a group where something may be made.
    pub(super) fn open_group(&self, ask: &Ask, kind: Kind) -> Result<String, Box<Answer>> {
        let id = self.meant(ask, kind)?;
        let provider = kind.name().split('/').next().unwrap_or_default();
        if self.unregistered.contains(provider) {
            let said = format!(
                "The subscription is not registered to use namespace '{provider}'. See https://aka.ms/rps-not-found for how to register subscriptions."
            );
            return Err(Box::new(Answer::error(409, "MissingSubscriptionRegistration", said)));
        }
        let group = self.get(&self.group_id(ask.group()));
        if group.is_some_and(|group| group.state() == "Deleting") {
            let said = format!(
                "The resource group '{}' is in deprovisioning state and cannot perform this operation.",
                ask.group()
            );
            return Err(Box::new(Answer::error(409, "ResourceGroupBeingDeleted", said)));
        }
        Ok(id)
    }
}
