//! What there is of a run at Azure, read from Azure's answers. Pure, but for the asking.

use super::{
    Azure,
    arm::{Answer, Ask},
    fault::Fault,
    names::{Kind, Names, RESOURCES},
    network::{ids, same_region},
};
use crate::gpu::provider::Offer;
use serde_json::Value;
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

/// Of a thing that is made in a moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    Absent,
    /// Azure is at work on it.
    Busy,
    Here,
    Failed,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Group {
    Absent,
    Ours,
    /// Of this name, but without our marks.
    Foreign,
    /// This identity may not even look.
    Forbidden,
    Leaving,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Vm {
    pub id: String,
    /// `provisioningState`.
    pub state: String,
    /// As in `running`; none before it has one.
    pub power: Option<String>,
    pub size: String,
    pub region: String,
    pub zone: Option<String>,
    pub spot: bool,
    pub created: Option<OffsetDateTime>,
    /// Why it failed.
    pub fault: Option<(String, String)>,
    pub interfaces: Vec<String>,
}

impl Vm {
    pub fn read(body: &Value) -> Self {
        let text = |value: &Value| value.as_str().map(str::to_owned);
        let properties = &body["properties"];
        let statuses = properties["instanceView"]["statuses"].as_array().cloned().unwrap_or_default();
        let code = |status: &Value| status["code"].as_str().unwrap_or_default().to_owned();
        let power =
            statuses.iter().find_map(|status| code(status).strip_prefix("PowerState/").map(str::to_owned));
        // As in `ProvisioningState/failed/AllocationFailed`.
        let fault = statuses.iter().find_map(|status| {
            let code = code(status);
            let why = code.strip_prefix("ProvisioningState/failed/")?;
            Some((why.to_owned(), text(&status["message"]).unwrap_or_default()))
        });
        let created = properties["timeCreated"].as_str();
        Self {
            id: text(&body["id"]).unwrap_or_default(),
            state: text(&properties["provisioningState"]).unwrap_or_default(),
            power,
            size: text(&properties["hardwareProfile"]["vmSize"]).unwrap_or_default(),
            region: text(&body["location"]).unwrap_or_default(),
            zone: text(&body["zones"][0]),
            spot: properties["priority"] == "Spot",
            created: created.and_then(|at| OffsetDateTime::parse(at, &Rfc3339).ok()),
            fault,
            interfaces: ids(&properties["networkProfile"]["networkInterfaces"]),
        }
    }

    /// Whether this offer is what it was rented by.
    pub fn is_of(&self, offer: &Offer) -> bool {
        self.size.eq_ignore_ascii_case(&offer.size)
            && same_region(&self.region, &offer.region)
            && self.spot == offer.spot
            && self.zone == offer.zone
    }
}

/// All that `rent` looks at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    pub security: State,
    pub network: State,
    pub snapshot: State,
    pub machine: Option<Vm>,
    /// A machine's disk: of this name there can be one.
    pub disk: State,
    pub armed: bool,
}

impl Azure {
    pub async fn see_group(&self, names: &Names, group: &str) -> Result<Group, Fault> {
        let answer = self.arm.find(&Ask::get(names.group_id(group), RESOURCES)).await;
        Ok(match answer {
            Ok(None) => Group::Absent,
            Ok(Some(answer)) if !names.marked(&answer.body["tags"]) => Group::Foreign,
            Ok(Some(answer)) if answer.body["properties"]["provisioningState"] == "Deleting" => {
                Group::Leaving
            }
            Ok(Some(_)) => Group::Ours,
            Err(fault) if fault.is_forbidden() => Group::Forbidden,
            Err(fault) => return Err(fault),
        })
    }

    pub async fn see(&self, names: &Names, group: &str, region: &str) -> Result<Seen, Fault> {
        let (security, network, snapshot, machine, disk, armed) = tokio::try_join!(
            self.see_thing(names.local(group, Kind::Security, region), Kind::Security),
            self.see_thing(names.local(group, Kind::Network, region), Kind::Network),
            self.see_thing(names.local(group, Kind::Snapshot, region), Kind::Snapshot),
            self.see_machine(names, group),
            self.see_thing(names.id(group, Kind::OsDisk), Kind::OsDisk),
            self.see_thing(names.id(group, Kind::Schedule), Kind::Schedule),
        )?;
        let armed = armed == State::Here;
        Ok(Seen { security, network, snapshot, machine, disk, armed })
    }

    pub async fn see_machine(&self, names: &Names, group: &str) -> Result<Option<Vm>, Fault> {
        let ask =
            Ask::get(names.id(group, Kind::Machine), Kind::Machine.version()).with("$expand", "instanceView");
        Ok(self.arm.find(&ask).await?.map(|answer| Vm::read(&answer.body)))
    }

    async fn see_thing(&self, id: String, kind: Kind) -> Result<State, Fault> {
        let answer = self.arm.find(&Ask::get(id, kind.version())).await?;
        Ok(state(answer.as_ref()))
    }
}

fn state(answer: Option<&Answer>) -> State {
    let Some(answer) = answer else { return State::Absent };
    match answer.body["properties"]["provisioningState"].as_str() {
        Some("Failed" | "Canceled") => State::Failed,
        Some("Succeeded") | None => State::Here,
        Some(_) => State::Busy,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_machine_is_read_as_azure_describes_it() {
        let body = json!({"id": "/vm", "location": "West Europe", "zones": ["1"], "properties": {
            "provisioningState": "Failed", "priority": "Spot", "hardwareProfile": {"vmSize": "standard_nc4as_t4_v3"},
            "timeCreated": "2026-11-24T01:02:03.4567890+00:00",
            "networkProfile": {"networkInterfaces": [{"id": "/nic"}]},
            "instanceView": {"statuses": [
                {"code": "ProvisioningState/failed/AllocationFailed", "level": "Error", "message": "no room"},
                {"code": "PowerState/stopped"}]}}});
        let vm = Vm::read(&body);
        assert_eq!(vm.fault, Some(("AllocationFailed".into(), "no room".into())));
        assert_eq!(
            (vm.power.as_deref(), vm.interfaces.as_slice()),
            (Some("stopped"), ["/nic".to_owned()].as_slice())
        );
        assert!(vm.created.is_some());
        let offer = |zone: Option<&str>, spot| Offer {
            size: "Standard_NC4as_T4_v3".into(),
            region: "westeurope".into(),
            zone: zone.map(Into::into),
            spot,
            price: 0,
        };
        assert!(vm.is_of(&offer(Some("1"), true)));
        assert!(!vm.is_of(&offer(Some("2"), true)) && !vm.is_of(&offer(Some("1"), false)));
    }
}
