//! What Azure is asked to make, as data: every request that makes something of a run. Pure. The machine itself is in
//! `assets/azure`, and here is what differs from run to run.

use super::{
    arm::Ask,
    kept::{Keys, plain},
    names::{Kind, Names, RESOURCES},
    network::Way,
};
use crate::{
    gpu::{provider::Offer, spec::Original},
    hq::disk::escape,
};
use base64::{Engine as _, prelude::BASE64_STANDARD};
use serde_json::{Value, json};
use std::net::IpAddr;
use time::{OffsetDateTime, UtcOffset};

/// The user that we come in as.
pub const USER: &str = "echoes";
pub const SSH: u16 = 22;

/// Where a clone of headquarters' data disk is mounted: not below /mnt, where cloud-init mounts the machine's temporary
/// disk, over whatever is there.
pub const DATA: &str = "/srv/echoes_data";

/// What Azure refuses to take more of in `customData`.
const MOST: usize = 65_535;

/// An image of the marketplace, of a definite version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    pub publisher: String,
    pub offer: String,
    pub sku: String,
    pub version: String,
    /// It may be started as a trusted launch.
    pub trusted: bool,
    /// What must be bought with it.
    pub plan: Option<Value>,
}

/// All that a run's things are made from.
pub struct Blueprint<'a> {
    pub names: &'a Names,
    pub group: &'a str,
    pub owner: &'a str,
    pub offer: &'a Offer,
    pub way: &'a Way,
    pub keys: &'a Keys,
    /// A disk of headquarters' that the machine gets a clone of.
    pub clone: Option<&'a Original>,
    /// What headquarters' MLflow is asked for by.
    pub name: Option<&'a str>,
    /// When nobody is interested any more.
    pub expires: OffsetDateTime,
}

impl Blueprint<'_> {
    fn id(&self, kind: Kind) -> String {
        self.names.id(self.group, kind)
    }

    fn local(&self, kind: Kind) -> String {
        self.names.local(self.group, kind, &self.offer.region)
    }

    fn put(&self, id: String, kind: Kind, mut body: Value) -> Ask {
        body["location"] = json!(self.offer.region);
        body["tags"] = self.names.tags(self.owner, self.expires);
        Ask::put(id, kind.version(), body)
    }

    /// Closed to all but headquarters; in Azure's networks every neighbour may come in by default.
    pub fn security(&self) -> Ask {
        let rule = |name: &str, priority: u16, access: &str, from: &str, protocol: &str, port: &str| {
            json!({"name": name, "properties": {
                "direction": "Inbound", "priority": priority, "access": access, "protocol": protocol,
                "sourceAddressPrefix": from, "sourcePortRange": "*",
                "destinationAddressPrefix": "*", "destinationPortRange": port,
            }})
        };
        let bits = if self.way.from.is_ipv4() { 32 } else { 128 };
        let rules = [
            rule("headquarters", 100, "Allow", &format!("{}/{bits}", self.way.from), "Tcp", &SSH.to_string()),
            rule("nobody-else", 4096, "Deny", "*", "*", "*"),
        ];
        self.put(self.local(Kind::Security), Kind::Security, json!({"properties": {"securityRules": rules}}))
    }

    /// For a machine where headquarters has no network. Nobody else is in it, so any range will do.
    pub fn network(&self) -> Ask {
        let subnet = json!({"name": "machines", "properties": {
            "addressPrefix": "10.91.0.0/24",
            // Later versions of this request change the default.
            "defaultOutboundAccess": true,
        }});
        let body = json!({"addressSpace": {"addressPrefixes": ["10.91.0.0/24"]}, "subnets": [subnet]});
        self.put(self.local(Kind::Network), Kind::Network, json!({"properties": body}))
    }

    /// Of headquarters' data disk, as it is at this moment.
    pub fn snapshot(&self, disk: &str) -> Ask {
        let source = json!({"createOption": "Copy", "sourceResourceId": disk});
        self.put(
            self.local(Kind::Snapshot),
            Kind::Snapshot,
            json!({"properties": {"creationData": source, "incremental": true}}),
        )
    }

    /// The disk of a machine, of what was kept.
    pub fn disk(&self, copy: &str) -> Ask {
        let source = json!({"createOption": "Copy", "sourceResourceId": copy});
        let body = json!({"sku": {"name": "StandardSSD_LRS"},
            "properties": {"creationData": source, "osType": "Linux"}});
        self.put(self.id(Kind::OsDisk), Kind::OsDisk, body)
    }

    /// A machine of that disk. It was set up when the disk was new, and is told nothing; what kind of machine it has to
    /// be, the disk says.
    pub fn machine_of(&self, disk: &Value) -> Ask {
        let mut body = self.frame();
        let properties = &mut body["properties"];
        // Azure takes none for a disk that has its users.
        properties.as_object_mut().map(|all| all.remove("osProfile"));
        properties["storageProfile"] = json!({"osDisk": {"createOption": "Attach", "osType": "Linux",
            "caching": "ReadWrite", "deleteOption": "Delete", "managedDisk": {"id": self.id(Kind::OsDisk)}}});
        let disk = &disk["properties"];
        if disk["securityProfile"]["securityType"] == "TrustedLaunch" {
            properties["securityProfile"] = trusted();
        }
        let plan = &disk["purchasePlan"];
        if plan.is_object() {
            body["plan"] =
                json!({"name": plan["name"], "publisher": plan["publisher"], "product": plan["product"]});
        }
        self.put(self.id(Kind::Machine), Kind::Machine, body).only_new()
    }

    /// Whatever is made with the machine, or belongs to it, goes with it.
    pub fn machine(&self, image: &Image) -> Ask {
        let mut body = self.frame();
        let name = self.names.machine();
        let properties = &mut body["properties"];
        let storage = &mut properties["storageProfile"];
        storage["imageReference"] = json!({"publisher": image.publisher, "offer": image.offer, "sku": image.sku,
            "version": image.version});
        storage["osDisk"]["name"] = json!(self.names.name(Kind::OsDisk));
        if self.clone.is_some() {
            storage["dataDisks"] = json!([{"lun": 0, "name": self.names.name(Kind::DataDisk),
                "createOption": "Copy", "sourceResource": {"id": self.local(Kind::Snapshot)},
                "caching": "ReadOnly", "deleteOption": "Delete"}]);
        }
        let os = &mut properties["osProfile"];
        os["computerName"] = json!(name);
        os["adminUsername"] = json!(USER);
        os["customData"] = json!(self.custom_data());
        os["linuxConfiguration"]["ssh"]["publicKeys"] = json!([{
            "path": format!("/home/{USER}/.ssh/authorized_keys"), "keyData": plain(&self.keys.user.public)}]);
        if image.trusted {
            properties["securityProfile"] = trusted();
        }
        if let Some(plan) = &image.plan {
            body["plan"] = plan.clone();
        }
        self.put(self.id(Kind::Machine), Kind::Machine, body).only_new()
    }

    /// What is the same whatever the machine is made of.
    fn frame(&self) -> Value {
        let text = include_str!("../../../../assets/azure/machine.json");
        let mut body: Value = serde_json::from_str(text).expect("assets/azure/machine.json is tested");
        let properties = &mut body["properties"];
        properties["hardwareProfile"]["vmSize"] = json!(self.offer.size);
        let interface = &mut properties["networkProfile"]["networkInterfaceConfigurations"][0];
        interface["name"] = json!(self.names.name(Kind::Interface));
        interface["properties"]["networkSecurityGroup"] = json!({"id": self.local(Kind::Security)});
        let address = &mut interface["properties"]["ipConfigurations"][0]["properties"];
        address["subnet"] = json!({"id": self.way.subnet});
        if self.way.public {
            address["publicIPAddressConfiguration"] = json!({"name": self.names.name(Kind::Address),
                "sku": {"name": "Standard", "tier": "Regional"},
                "properties": {"deleteOption": "Delete", "publicIPAllocationMethod": "Static"}});
        }
        if self.offer.spot {
            properties["priority"] = json!("Spot");
            // The default keeps its disks, and us paying for them.
            properties["evictionPolicy"] = json!("Delete");
            // Never taken away for its price, which is never above that of a machine that stays.
            properties["billingProfile"] = json!({"maxPrice": -1});
        }
        if let Some(zone) = &self.offer.zone {
            body["zones"] = json!([zone]);
        }
        body
    }

    /// Switches the machine off when nobody has moved it on: the one guard that needs neither us nor the machine.
    /// Azure knows a time of day only, so it lies within a day.
    pub fn schedule(&self) -> Ask {
        schedule(self.names, self.group, &self.offer.region, self.owner, self.expires)
    }

    fn custom_data(&self) -> String {
        let name = self.name.and_then(|name| Some((self.way.back(name)?, name)));
        let text = cloud_init(self.keys, self.clone, name);
        debug_assert!(text.len() <= MOST);
        BASE64_STANDARD.encode(text)
    }
}

/// Said aloud: where it is the default it brings Secure Boot, which refuses NVIDIA's modules.
fn trusted() -> Value {
    json!({"securityType": "TrustedLaunch", "uefiSettings": {"secureBootEnabled": false, "vTpmEnabled": true}})
}

pub fn schedule(names: &Names, group: &str, region: &str, owner: &str, at: OffsetDateTime) -> Ask {
    let at = at.to_offset(UtcOffset::UTC);
    let body = json!({
        "location": region,
        "tags": names.tags(owner, at),
        "properties": {
            "status": "Enabled",
            "taskType": "ComputeVmShutdownTask",
            "dailyRecurrence": {"time": format!("{:02}{:02}", at.hour(), at.minute())},
            "timeZoneId": "UTC",
            "targetResourceId": names.id(group, Kind::Machine),
            "notificationSettings": {"status": "Disabled", "timeInMinutes": 30},
        },
    });
    Ask::put(names.id(group, Kind::Schedule), Kind::Schedule.version(), body)
}

/// What the machine is told at its first start: YAML, in which every value of ours is a JSON string, which is YAML too.
fn cloud_init(keys: &Keys, clone: Option<&Original>, name: Option<(IpAddr, &str)>) -> String {
    let quoted = |text: &str| Value::from(text).to_string();
    let text = include_str!("../../../../assets/azure/cloud-init.yaml");
    let mut text = text
        .replace("@HOST_PRIVATE@", &quoted(&keys.host.private))
        .replace("@HOST_PUBLIC@", &quoted(&plain(&keys.host.public)));
    if let Some((address, name)) = name {
        let line = quoted(&format!("{address} {name}"));
        // It goes on with the list that is last in the one before.
        text += &include_str!("../../../../assets/azure/cloud-init-name.yaml").replace("@LINE@", &line);
    }
    let Some(original) = clone else { return text };
    let mount = include_str!("../../../../assets/azure/cloud-init-clone.yaml");
    let values = [("@UUID@", original.uuid.as_str()), ("@DATA@", DATA), ("@NAME@", &escape(DATA))];
    values.into_iter().fold(text + mount, |text, (name, value)| text.replace(name, value))
}

/// A group of the run's own, for all that comes after it.
pub fn group(names: &Names, name: &str, region: &str, owner: &str, expires: OffsetDateTime) -> Ask {
    let body = json!({"location": region, "tags": names.tags(owner, expires)});
    Ask::put(names.group_id(name), RESOURCES, body)
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use crate::gpu::{provider::azure::kept::Pair, spec::RunId};
    use time::macros::datetime;

    pub fn keys() -> Keys {
        let pair = |name: &str| Pair {
            private: format!(
                "-----BEGIN OPENSSH PRIVATE KEY-----\n{name}\n-----END OPENSSH PRIVATE KEY-----\n"
            ),
            public: format!("ssh-ed25519 AAAA{name} somebody@somewhere\n"),
        };
        Keys { host: pair("host"), user: pair("user") }
    }

    pub fn image() -> Image {
        Image {
            publisher: "microsoft-dsvm".into(),
            offer: "ubuntu-hpc".into(),
            sku: "2204".into(),
            version: "22.04.2026100101".into(),
            trusted: true,
            plan: None,
        }
    }

    pub fn original() -> Original {
        Original {
            disk: "/subscriptions/s/resourceGroups/hq/providers/Microsoft.Compute/disks/data".into(),
            region: "westeurope".into(),
            uuid: "1d4a3c4e-6f0b-4d0e-9a43-0a6d51c2a5d1".into(),
            here: "/mnt/echoes_data".into(),
            below: "".into(),
        }
    }

    /// As Azure describes the disk that is made of a copy.
    pub fn disk() -> Value {
        json!({"properties": {"osType": "Linux", "securityProfile": {"securityType": "TrustedLaunch"},
            "purchasePlan": {"name": "n", "publisher": "p", "product": "o", "promotionCode": null}}})
    }

    /// Each request that makes something, of a machine with all that one can have.
    pub fn everything() -> Vec<Ask> {
        let run = RunId::try_from("esn-1".to_owned()).unwrap();
        let names = Names::new("00000000-0000-0000-0000-000000000001", "hq", &run);
        let offer = Offer {
            size: "Standard_NC4as_T4_v3".into(),
            region: "westeurope".into(),
            zone: Some("2".into()),
            spot: true,
            price: 160_000,
        };
        let way = Way {
            subnet: names.subnet("g", "westeurope"),
            own: true,
            public: true,
            inside: false,
            from: "20.1.2.3".parse().unwrap(),
        };
        let (keys, original) = (keys(), original());
        let expires = datetime!(2026-11-24 03:07:59 UTC);
        let blueprint = Blueprint {
            names: &names,
            group: "g",
            owner: "ada",
            offer: &offer,
            way: &way,
            keys: &keys,
            clone: Some(&original),
            name: Some("mlflow.localhost"),
            expires,
        };
        vec![
            group(&names, "g", &offer.region, "ada", expires),
            blueprint.security(),
            blueprint.network(),
            blueprint.snapshot(&original.disk),
            blueprint.machine(&image()),
            blueprint.schedule(),
            blueprint.disk("/subscriptions/s/resourceGroups/g/providers/Microsoft.Compute/snapshots/copy"),
            blueprint.machine_of(&disk()),
        ]
    }

    fn of(kind: &str) -> Value {
        let ask = everything().into_iter().find(|ask| ask.path.contains(kind)).unwrap();
        ask.body.unwrap()
    }

    #[test]
    fn whatever_comes_with_a_machine_goes_with_it() {
        let body = of("virtualMachines/");
        let properties = &body["properties"];
        let interface = &properties["networkProfile"]["networkInterfaceConfigurations"][0]["properties"];
        let address = &interface["ipConfigurations"][0]["properties"]["publicIPAddressConfiguration"];
        for option in [
            &properties["storageProfile"]["osDisk"],
            &properties["storageProfile"]["dataDisks"][0],
            interface,
            &address["properties"],
        ] {
            assert_eq!(option["deleteOption"], "Delete", "{option}");
        }
        assert_eq!(properties["evictionPolicy"], "Delete");
        assert_eq!(properties["securityProfile"]["uefiSettings"]["secureBootEnabled"], false);
    }

    #[test]
    fn everything_says_whose_it_is_and_until_when() {
        for ask in everything() {
            let tags = &ask.body.as_ref().unwrap()["tags"];
            assert_eq!(
                tags,
                &json!({"echoes-hq": "hq", "echoes-run": "esn-1", "echoes-owner": "ada",
                    "echoes-expires": "2026-11-24T03:07:59Z"}),
                "{}",
                ask.path
            );
        }
        assert_eq!(of("schedules/")["properties"]["dailyRecurrence"]["time"], "0307");
    }

    #[test]
    fn only_headquarters_may_come_in() {
        let rules = of("networkSecurityGroups/")["properties"]["securityRules"].clone();
        assert_eq!(rules[0]["properties"]["sourceAddressPrefix"], "20.1.2.3/32");
        assert_eq!(rules[0]["properties"]["destinationPortRange"], "22");
        assert_eq!(
            (&rules[1]["properties"]["access"], &rules[1]["properties"]["sourceAddressPrefix"]),
            (&json!("Deny"), &json!("*"))
        );
    }

    #[test]
    fn the_machine_is_told_its_key_and_nothing_that_is_worth_more_than_the_machine() {
        let custom = of("virtualMachines/")["properties"]["osProfile"]["customData"].clone();
        let text = String::from_utf8(BASE64_STANDARD.decode(custom.as_str().unwrap()).unwrap()).unwrap();
        assert!(text.starts_with("#cloud-config\n"), "{text}");
        let private = r#"ed25519_private: "-----BEGIN OPENSSH PRIVATE KEY-----\nhost\n-----END OPENSSH PRIVATE KEY-----\n""#;
        assert!(text.contains(private), "{text}");
        assert!(text.contains(r#"ed25519_public: "ssh-ed25519 AAAAhost""#), "{text}");
        assert!(text.contains(r#", "20.1.2.3 mlflow.localhost"]"#), "{text}");
        assert!(!text.contains('@') && !text.contains("user\\n"), "{text}");
    }

    #[test]
    fn a_machine_of_a_copy_is_what_its_disk_was_made_for_and_is_told_nothing() {
        let body = everything().pop().unwrap().body.unwrap();
        let properties = &body["properties"];
        assert!(properties.get("osProfile").is_none(), "{body}");
        assert!(properties["storageProfile"].get("imageReference").is_none(), "{body}");
        let disk = &properties["storageProfile"]["osDisk"];
        assert_eq!((&disk["createOption"], &disk["deleteOption"]), (&json!("Attach"), &json!("Delete")));
        assert_eq!(properties["securityProfile"]["securityType"], "TrustedLaunch");
        assert_eq!(properties["securityProfile"]["uefiSettings"]["secureBootEnabled"], false);
        assert_eq!(body["plan"], json!({"name": "n", "publisher": "p", "product": "o"}));
    }

    #[test]
    fn a_clone_is_mounted_by_what_it_has_from_the_original_and_never_written_to() {
        let text = cloud_init(&keys(), Some(&original()), None);
        let lines: Vec<_> = text.lines().map(str::trim).collect();
        for line in [
            "- path: /etc/systemd/system/srv-echoes_data.mount",
            "What=/dev/disk/by-uuid/1d4a3c4e-6f0b-4d0e-9a43-0a6d51c2a5d1",
            "Where=/srv/echoes_data",
            "Options=ro",
            "- systemctl enable --now --no-block srv-echoes_data.mount",
        ] {
            assert!(lines.contains(&line), "{line}: {text}");
        }
        assert!(!cloud_init(&keys(), None, None).contains("mount"));
    }
}
