//! Where headquarters is in Azure, if it is there, and by which way a rented machine is reached.
//!
//! The metadata service names neither network nor subnet: it names this machine, Azure names its interface, and that
//! names the subnet.

use super::{
    arm::{Arm, Ask},
    fault::Fault,
    names::{COMPUTE, NETWORK, Names},
};
use crate::web::json_at_most;
use serde_json::Value;
use std::{net::IpAddr, time::Duration};

/// The metadata service answers at once or is not there.
const METADATA: Duration = Duration::from_secs(2);

/// Bytes of the longest answer that is read; the metadata have three kilobytes.
const MOST: usize = 1 << 20;

/// This machine, as its metadata service tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Metadata {
    pub id: String,
    pub subscription: String,
    pub location: String,
    /// `AzurePublicCloud` and the like.
    pub cloud: String,
    pub private: Option<IpAddr>,
    mac: String,
    disks: Vec<Attached>,
}

/// A disk in one of this machine's slots.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Attached {
    lun: u32,
    /// Empty for one that is no managed disk.
    id: String,
    /// As in `Premium_LRS`.
    kind: String,
}

/// A disk of which machines in its region can have a clone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Managed {
    pub id: String,
    pub region: String,
}

/// Headquarters in a network of Azure's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Home {
    pub location: String,
    pub subnet: String,
    /// A machine there reaches the world without an address of its own.
    pub way_out: bool,
    pub private: IpAddr,
    pub public: Option<IpAddr>,
}

/// How a rented machine is reached, and by whom.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Way {
    pub subnet: String,
    /// The subnet is one that we make for it.
    pub own: bool,
    /// It gets an address that the world can see; closed to all but headquarters.
    pub public: bool,
    /// We talk to the address that only its own network can see.
    pub inside: bool,
    /// The only one who may come in.
    pub from: IpAddr,
}

impl Way {
    /// Inside, where headquarters is in a network of the same region; else over the world. Pure.
    pub fn to(
        region: &str,
        home: Option<&Home>,
        address: Option<IpAddr>,
        names: &Names,
        group: &str,
    ) -> Result<Self, Fault> {
        if let Some(home) = home.filter(|home| same_region(&home.location, region)) {
            let (subnet, from) = (home.subnet.clone(), home.private);
            // Without a way out, what the script's environment needs could not be had.
            return Ok(Self { subnet, own: false, public: !home.way_out, inside: true, from });
        }
        let from = address.or(home.and_then(|home| home.public)).ok_or_else(|| {
            Fault::here(
                &format!("choosing who may reach a machine in {region}"),
                "the address under which this headquarters goes out is not known: name it as gpu.azure.address",
            )
        })?;
        Ok(Self { subnet: names.subnet(group, region), own: true, public: true, inside: false, from })
    }

    /// At which address a machine finds headquarters, where it is not to ask for its name. Pure.
    ///
    /// In headquarters' own network that is next door, while the name may lead to an address of the world's that is shut
    /// to machines, or nowhere. Elsewhere the name is the better way, but for one that means the machine itself.
    pub fn back(&self, name: &str) -> Option<IpAddr> {
        (self.inside || is_own(name)).then_some(self.from)
    }
}

/// Whether each machine takes the name for itself (RFC 6761).
fn is_own(name: &str) -> bool {
    let last = name.trim_end_matches('.').rsplit('.').next();
    last.is_some_and(|label| label.eq_ignore_ascii_case("localhost"))
}

/// `West Europe` is `westeurope`.
pub fn same_region(a: &str, b: &str) -> bool {
    let plain = |name: &str| name.replace(' ', "").to_ascii_lowercase();
    plain(a) == plain(b)
}

/// Asks the metadata service; nothing where there is none.
pub async fn metadata(http: &reqwest::Client, service: &str) -> Option<Metadata> {
    let url = format!("{}/metadata/instance?api-version=2021-02-01", service.trim_end_matches('/'));
    let answer = http.get(url).header("Metadata", "true").timeout(METADATA).send().await.ok()?;
    if !answer.status().is_success() {
        return None;
    }
    read_metadata(&json_at_most(answer, MOST).await.ok()??)
}

fn read_metadata(body: &Value) -> Option<Metadata> {
    let text = |value: &Value| value.as_str().filter(|text| !text.is_empty()).map(str::to_owned);
    let (compute, interface) = (&body["compute"], &body["network"]["interface"][0]);
    Some(Metadata {
        id: text(&compute["resourceId"])?,
        subscription: text(&compute["subscriptionId"])?,
        location: text(&compute["location"])?,
        cloud: text(&compute["azEnvironment"]).unwrap_or_else(|| "AzurePublicCloud".into()),
        private: text(&interface["ipv4"]["ipAddress"][0]["privateIpAddress"]).and_then(|ip| ip.parse().ok()),
        mac: text(&interface["macAddress"]).unwrap_or_default(),
        disks: compute["storageProfile"]["dataDisks"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(attached)
            .collect(),
    })
}

/// Everything in there is a text, numbers too.
fn attached(disk: &Value) -> Option<Attached> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let (lun, managed) = (disk["lun"].as_str()?.parse().ok()?, &disk["managedDisk"]);
    Some(Attached { lun, id: text(&managed["id"]), kind: text(&managed["storageAccountType"]) })
}

impl Metadata {
    /// The disk in this slot, if a clone of it can be had at once by machines of this subscription; else, why not. Pure.
    pub fn managed(&self, lun: u32, subscription: &str) -> Result<Managed, String> {
        let disk = self.disks.iter().find(|disk| disk.lun == lun);
        let disk =
            disk.ok_or_else(|| format!("Azure does not say which disk this machine has at LUN {lun}"))?;
        let Attached { id, kind, .. } = disk;
        if id.is_empty() {
            return Err(format!("the disk at LUN {lun} is none that Azure manages"));
        }
        // Of these a snapshot can be used only once Azure has copied all of it; of the others, at once.
        if ["PremiumV2_LRS", "UltraSSD_LRS"].contains(&kind.as_str()) {
            return Err(format!("a snapshot of a {kind} disk takes hours until it can be used"));
        }
        // An incremental snapshot stays in its disk's.
        let own = format!("/subscriptions/{subscription}/").to_ascii_lowercase();
        if !id.to_ascii_lowercase().starts_with(&own) {
            return Err(format!("it is not of the subscription {subscription}, which pays for machines"));
        }
        Ok(Managed { id: id.clone(), region: self.location.clone() })
    }

    /// By way of this machine and its interface to the subnet.
    pub async fn home(&self, arm: &Arm) -> Result<Home, Fault> {
        let machine = arm.send(&Ask::get(&self.id, COMPUTE)).await?.body;
        let interfaces = ids(&machine["properties"]["networkProfile"]["networkInterfaces"]);
        let mut found = None;
        for id in &interfaces {
            let interface = arm.send(&Ask::get(id, NETWORK)).await?.body;
            let mac = interface["properties"]["macAddress"].as_str().unwrap_or_default();
            if interfaces.len() == 1 || plain_mac(mac) == plain_mac(&self.mac) {
                found = Some(interface);
                break;
            }
        }
        let lacking = |what: &str| Fault::here(&format!("finding the network of {}", self.id), what);
        let interface = found.ok_or_else(|| lacking("none of its interfaces is the one that it knows"))?;
        let configuration = &interface["properties"]["ipConfigurations"][0]["properties"];
        let subnet =
            configuration["subnet"]["id"].as_str().ok_or_else(|| lacking("its interface names no subnet"))?;
        let private =
            configuration["privateIPAddress"].as_str().and_then(|ip| ip.parse().ok()).or(self.private);
        let private = private.ok_or_else(|| lacking("its interface has no address"))?;
        let public = match configuration["publicIPAddress"]["id"].as_str() {
            Some(id) => {
                let address = arm.send(&Ask::get(id, NETWORK)).await?.body;
                address["properties"]["ipAddress"].as_str().and_then(|ip| ip.parse().ok())
            }
            None => None,
        };
        let properties = arm.send(&Ask::get(subnet, NETWORK)).await?.body;
        Ok(Home {
            location: self.location.clone(),
            subnet: subnet.into(),
            way_out: way_out(&properties),
            private,
            public,
        })
    }
}

/// Whether a machine without a public address reaches the world from this subnet: it does by default in networks made
/// before 2026, and through a gateway.
fn way_out(subnet: &Value) -> bool {
    let properties = &subnet["properties"];
    properties["natGateway"]["id"].is_string() || properties["defaultOutboundAccess"].as_bool() != Some(false)
}

fn plain_mac(mac: &str) -> String {
    mac.chars().filter(char::is_ascii_hexdigit).collect::<String>().to_ascii_lowercase()
}

/// The ids in a list of references.
pub fn ids(list: &Value) -> Vec<String> {
    let id = |one: &Value| one["id"].as_str().map(str::to_owned);
    list.as_array().into_iter().flatten().filter_map(id).collect()
}

/// Reads an answer in all the ways that this file has, for fuzzing.
#[cfg(test)]
pub fn fuzzed(body: &Value) -> Vec<Result<Managed, String>> {
    let slots = |metadata: Metadata| (0..2).map(move |lun| metadata.managed(lun, "s")).collect::<Vec<_>>();
    let _ = (way_out(body), ids(body), body.as_str().map(plain_mac));
    read_metadata(body).map(slots).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gpu::spec::RunId;
    use serde_json::json;

    #[test]
    fn a_machine_gets_a_public_address_only_where_it_needs_one() {
        let names = Names::new("s", "hq", &RunId::try_from("r".to_owned()).unwrap());
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        let home = |way_out, public: Option<&str>| Home {
            location: "westeurope".into(),
            subnet: "/hq/subnet".into(),
            way_out,
            private: ip("10.0.0.4"),
            public: public.map(ip),
        };
        let (inside, walled) = (home(true, Some("20.1.1.1")), home(false, None));
        let way = |region: &str, home: Option<&Home>, address: Option<&str>| {
            Way::to(region, home, address.map(ip), &names, "g")
                .map(|way| (way.own, way.public, way.inside, way.from))
        };
        assert_eq!(way("West Europe", Some(&inside), None), Ok((false, false, true, ip("10.0.0.4"))));
        assert_eq!(way("westeurope", Some(&walled), None), Ok((false, true, true, ip("10.0.0.4"))));
        assert_eq!(way("eastus", Some(&inside), None), Ok((true, true, false, ip("20.1.1.1"))));
        assert_eq!(way("eastus", Some(&inside), Some("9.9.9.9")), Ok((true, true, false, ip("9.9.9.9"))));
        assert_eq!(way("eastus", None, Some("9.9.9.9")), Ok((true, true, false, ip("9.9.9.9"))));
        assert!(way("eastus", Some(&walled), None).unwrap_err().said.contains("gpu.azure.address"));
    }

    #[test]
    fn a_machine_is_told_where_headquarters_is_unless_its_name_tells_better() {
        let way = |inside: bool| Way {
            subnet: "/s".into(),
            own: !inside,
            public: !inside,
            inside,
            from: "10.0.0.4".parse().unwrap(),
        };
        for (inside, name, told) in [
            (true, "mlflow.lonel.ai", true),
            (true, "mlflow.localhost", true),
            (false, "mlflow.lonel.ai", false),
            (false, "mlflow.hq.internal", false),
            (false, "mlflow.localhost", true),
            (false, "mlflow.LOCALHOST.", true),
            (false, "mlflow.notlocalhost", false),
        ] {
            assert_eq!(way(inside).back(name).is_some(), told, "{inside} {name}");
        }
    }

    #[test]
    fn a_subnet_says_whether_it_leads_out() {
        assert!(way_out(&json!({"properties": {}})));
        assert!(!way_out(&json!({"properties": {"defaultOutboundAccess": false}})));
        assert!(way_out(
            &json!({"properties": {"defaultOutboundAccess": false, "natGateway": {"id": "/n"}}})
        ));
    }

    #[test]
    fn metadata_is_read_as_it_is_documented() {
        let body = json!({"compute": {"azEnvironment": "AzurePublicCloud", "location": "westus",
            "resourceId": "/subscriptions/s/resourceGroups/g/providers/Microsoft.Compute/virtualMachines/hq",
            "subscriptionId": "s"}, "network": {"interface": [{"ipv4": {"ipAddress": [
            {"privateIpAddress": "10.144.133.132", "publicIpAddress": ""}]}, "macAddress": "0011AAFFBB22"}]}});
        let read = read_metadata(&body).unwrap();
        assert_eq!(
            (read.private, read.mac.as_str()),
            (Some("10.144.133.132".parse().unwrap()), "0011AAFFBB22")
        );
        assert_eq!(plain_mac("00-11-AA-FF-BB-22"), plain_mac(&read.mac));
        assert_eq!(read_metadata(&json!({"compute": {}})), None);
    }

    #[test]
    fn a_disk_is_cloned_only_where_that_is_sooner_there_than_a_copy() {
        let id =
            |of: &str| format!("/subscriptions/{of}/resourceGroups/g/providers/Microsoft.Compute/disks/d");
        let disk = |lun: &str, id: &str, kind: &str| json!({"lun": lun, "managedDisk": {"id": id, "storageAccountType": kind}, "diskSizeGB": "128"});
        let body = json!({"compute": {"location": "westus", "resourceId": "/vm", "subscriptionId": "S",
            "storageProfile": {"dataDisks": [disk("0", &id("S"), "Premium_LRS"), disk("1", "", ""),
                disk("2", &id("s"), "PremiumV2_LRS"), disk("3", &id("other"), "Premium_LRS"),
                disk("11", &id("s"), "")]}}});
        let read = read_metadata(&body).unwrap();
        let of = |lun| read.managed(lun, "s");
        assert_eq!(of(0), Ok(Managed { id: id("S"), region: "westus".into() }));
        assert_eq!(of(11), Ok(Managed { id: id("s"), region: "westus".into() }));
        for (lun, why) in [
            (1, "none that Azure manages"),
            (2, "takes hours"),
            (3, "not of the subscription s"),
            (4, "does not say which disk this machine has at LUN 4"),
        ] {
            assert!(of(lun).unwrap_err().contains(why), "{lun}");
        }
    }
}
