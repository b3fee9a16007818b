//! The metadata service, as each machine sees it: itself. Who it is, is known by its address; anybody else is taken
//! for the headquarters.

use super::{
    answer::Answer,
    door::Heard,
    world::{Kind, World, group_of},
};
use serde_json::{Value, json};

const VERSIONS: [&str; 4] = ["2021-02-01", "2021-12-13", "2023-07-01", "2025-04-07"];
const EVENT_VERSIONS: [&str; 2] = ["2019-08-01", "2020-07-01"];

/// Refused before anything is looked at.
pub(super) fn closed(heard: &Heard) -> Option<Answer> {
    if heard.headers.get("metadata").and_then(|value| value.to_str().ok()).map(str::to_lowercase).as_deref()
        != Some("true")
    {
        let said = "Bad request. Required metadata header not specified";
        return Some(Answer::of(400, json!({"error": said})));
    }
    if heard.headers.contains_key("x-forwarded-for") {
        return Some(Answer::of(400, json!({"error": "Bad request. X-Forwarded-For is not allowed"})));
    }
    None
}

impl World {
    pub(super) fn metadata(&mut self, heard: &Heard, hq: Option<&str>) -> Answer {
        let me = self.at_address(&heard.peer.ip().to_string()).or(hq).map(str::to_owned);
        let Some(me) = me else { return Answer::of(404, json!({"error": "Not found"})) };
        let version =
            heard.query.iter().find(|(key, _)| key == "api-version").map(|(_, value)| value.as_str());
        let known = |versions: &[&str]| version.is_some_and(|version| versions.contains(&version));
        match (heard.method.as_str(), heard.path.trim_end_matches('/')) {
            ("GET", "/metadata/instance") if known(&VERSIONS) => self.instance(&me),
            ("GET", "/metadata/instance") => {
                let said = "Bad request. api-version is invalid or was not specified in the request.";
                Answer::of(400, json!({"error": said, "newest-versions": VERSIONS}))
            }
            ("GET", "/metadata/scheduledevents") if known(&EVENT_VERSIONS) => self.events_of(&me),
            ("POST", "/metadata/scheduledevents") if known(&EVENT_VERSIONS) => self.started(&me, &heard.body),
            _ => Answer::of(404, json!({"error": "Not found"})),
        }
    }

    fn instance(&self, me: &str) -> Answer {
        let Some(vm) = self.get(me) else { return Answer::of(404, json!({"error": "Not found"})) };
        let properties = &vm.body["properties"];
        let storage = &properties["storageProfile"];
        let text = |value: &Value| match value {
            Value::String(text) => text.clone(),
            Value::Null => String::new(),
            other => other.to_string(),
        };
        // Everything here is a text, numbers too.
        let disk = |disk: &Value| {
            json!({
                "lun": text(&disk["lun"]),
                "name": text(&disk["name"]),
                "createOption": text(&disk["createOption"]),
                "caching": text(&disk["caching"]),
                "diskSizeGB": text(&disk["diskSizeGB"]),
                "managedDisk": {
                    "id": text(&disk["managedDisk"]["id"]),
                    "storageAccountType": text(&disk["managedDisk"]["storageAccountType"]),
                },
            })
        };
        let disks: Vec<_> = storage["dataDisks"].as_array().into_iter().flatten().map(disk).collect();
        let rows = properties["networkProfile"]["networkInterfaces"].as_array().into_iter().flatten();
        let interfaces: Vec<_> = rows
            .filter_map(|row| self.get(row["id"].as_str()?))
            .map(|nic| {
                let at = &nic.body["properties"]["ipConfigurations"][0]["properties"];
                let outside = at["publicIPAddress"]["id"].as_str().and_then(|ip| self.get(ip));
                let outside = outside.and_then(|ip| ip.text("/ipAddress")).unwrap_or_default();
                let address = text(&at["privateIPAddress"]);
                let subnet = address.rsplit_once('.').map(|(net, _)| format!("{net}.0")).unwrap_or_default();
                json!({
                    "ipv4": {
                        "ipAddress": [{"privateIpAddress": address, "publicIpAddress": outside}],
                        "subnet": [{"address": subnet, "prefix": "24"}],
                    },
                    "ipv6": {"ipAddress": []},
                    "macAddress": text(&nic.body["properties"]["macAddress"]).replace('-', ""),
                })
            })
            .collect();
        let tags = vm.body["tags"].as_object().cloned().unwrap_or_default();
        let list: Vec<_> = tags.iter().map(|(name, value)| json!({"name": name, "value": value})).collect();
        let line: Vec<_> = tags.iter().map(|(name, value)| format!("{name}:{}", text(value))).collect();
        Answer::of(
            200,
            json!({
                "compute": {
                    "azEnvironment": "AzurePublicCloud",
                    "location": text(&vm.body["location"]),
                    "name": vm.name(),
                    "osType": "Linux",
                    "provider": "Microsoft.Compute",
                    "resourceGroupName": group_of(&vm.id),
                    "resourceId": vm.id,
                    "storageProfile": {"dataDisks": disks, "osDisk": disk(&storage["osDisk"])},
                    "subscriptionId": self.subscription,
                    "tags": line.join(";"),
                    "tagsList": list,
                    "vmId": text(&properties["vmId"]),
                    "vmSize": text(&properties["hardwareProfile"]["vmSize"]),
                    "zone": text(&vm.body["zones"][0]),
                },
                "network": {"interface": interfaces},
            }),
        )
    }

    fn events_of(&self, me: &str) -> Answer {
        let machine = self.get(me).filter(|vm| vm.kind == Kind::Vm).and_then(|vm| vm.machine.as_ref());
        let rows = machine.map(|machine| machine.notices.clone()).unwrap_or_default();
        Answer::of(200, json!({"DocumentIncarnation": rows.len() + 1, "Events": rows}))
    }

    /// The machine says that it is ready: nothing is waited for any longer.
    fn started(&mut self, me: &str, body: &[u8]) -> Answer {
        let asked: Value = serde_json::from_slice(body).unwrap_or_default();
        let ids: Vec<String> = asked["StartRequests"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|one| one["EventId"].as_str().map(str::to_lowercase))
            .collect();
        if ids.is_empty() {
            return Answer::of(400, json!({"error": "Bad request. StartRequests is missing"}));
        }
        let mine = self.get(me).and_then(|vm| vm.machine.as_ref()).is_some_and(|machine| {
            machine
                .notices
                .iter()
                .any(|n| n["EventId"].as_str().is_some_and(|id| ids.contains(&id.to_lowercase())))
        });
        if mine {
            self.evict(me);
        }
        Answer::empty(200)
    }
}
