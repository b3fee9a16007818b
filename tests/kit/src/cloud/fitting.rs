//! What a virtual machine is made of, before it is made: a size that may be had, an image, disks, interfaces, and what
//! its provisioning is told. Whatever is refused here has left nothing behind.

use super::{
    answer::Answer,
    catalog::{self, Size},
    machine::{Refused, busy, refuse, reserved},
    metal::Order,
    world::{Kind, Thing, World, group_of},
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::{Value, json};
use std::collections::BTreeMap;

impl World {
    /// Whether this subscription may have one more of this size there.
    pub(super) fn may_have(
        &self,
        properties: &Value,
        region: &str,
        zone: Option<&str>,
    ) -> Refused<&'static Size> {
        let wanted = properties["hardwareProfile"]["vmSize"].as_str().unwrap_or_default();
        let Some(size) = catalog::find(wanted) else {
            let said = format!(
                "The value {wanted} provided for the VM size is not valid. The valid sizes in the current region are: {}.",
                catalog::SIZES.iter().map(|size| size.name).collect::<Vec<_>>().join(",")
            );
            return refuse(400, "InvalidParameter", said);
        };
        if !self.regions.iter().any(|one| one == region) {
            let said = format!(
                "The provided location '{region}' is not available for resource type 'Microsoft.Compute/virtualMachines'."
            );
            return refuse(400, "LocationNotAvailableForResourceType", said);
        }
        let closed = |(name, place, only): &(String, String, Option<String>)| {
            name.eq_ignore_ascii_case(size.name)
                && place == region
                && (only.is_none() || only.as_deref() == zone)
        };
        if self.restricted.iter().any(closed) {
            let said = format!(
                "The requested size for resource is currently not available in location '{region}' zones '{}' for subscription '{}'. Please try another size or deploy to a different location or zones. See https://aka.ms/azureskunotavailable for details.",
                zone.unwrap_or_default(),
                self.subscription
            );
            return refuse(409, "SkuNotAvailable", said);
        }
        let spot = properties["priority"] == "Spot";
        if spot && size.spot.is_none() {
            let said = format!("Azure spot is not supported for VM size {}.", size.name);
            return refuse(409, "AzureSpotIsNotSupportedForThisVMSize", said);
        }
        if !spot && !properties["evictionPolicy"].is_null() {
            let said = "Eviction policy can be set only on Azure Spot Virtual Machines.";
            return refuse(409, "OperationNotAllowed", said);
        }
        if let Some(most) = properties["billingProfile"]["maxPrice"].as_f64()
            && most >= 0.0
            && size.spot.is_some_and(|price| most < price as f64 / 1e6)
        {
            let said = format!("The provided max price '{most} USD' is lower than the current spot price.");
            return refuse(409, "SpotPriceGreaterThanProvidedMaxPrice", said);
        }
        for (counter, title) in counters(size, spot) {
            let (used, limit) = self.usage(&counter, region);
            if used + u64::from(size.cpus) > limit {
                let said = format!(
                    "Operation could not be completed as it results in exceeding approved {title} quota. Additional details - Deployment Model: Resource Manager, Location: {region}, Current Limit: {limit}, Current Usage: {used}, Additional Required: {}, (Minimum) New Limit Required: {}. Setup Alerts when Quota reaches threshold. Submit a request for Quota increase.",
                    size.cpus,
                    used + u64::from(size.cpus)
                );
                return refuse(409, "OperationNotAllowed", said);
            }
        }
        Ok(size)
    }

    /// Used, and the limit. Deallocated machines count too.
    pub(super) fn usage(&self, counter: &str, region: &str) -> (u64, u64) {
        let here = self.of(Kind::Vm, None).filter(|vm| vm.body["location"] == *region);
        let used = here
            .filter_map(|vm| vm.machine.as_ref())
            .filter(|machine| counters(machine.size, machine.spot).iter().any(|(name, _)| name == counter))
            .map(|machine| u64::from(machine.size.cpus))
            .sum();
        (used, self.quota.get(counter).copied().unwrap_or(100))
    }

    /// The size of its OS disk, in GB.
    pub(super) fn image_of(&self, properties: &Value, region: &str, size: &Size) -> Refused<u32> {
        let image = &properties["storageProfile"]["imageReference"];
        let text = |key: &str| image[key].as_str().unwrap_or_default();
        let (publisher, offer, sku, version) =
            (text("publisher"), text("offer"), text("sku"), text("version"));
        let Some((found, _)) = catalog::image(publisher, offer, sku, version) else {
            let said = format!(
                "The platform image '{publisher}:{offer}:{sku}:{version}' is not available. Verify that all fields in the storage profile are correct. ({region})"
            );
            return refuse(404, "PlatformImageNotFound", said);
        };
        if found.generation == "V1" && !size.gen1 {
            let said = format!(
                "The selected VM size '{}' cannot boot Hypervisor Generation '1'. If this was a Create operation please check that the Hypervisor Generation of the Image matches the Hypervisor Generation of the selected VM Size.",
                size.name
            );
            return refuse(400, "BadRequest", said);
        }
        if properties["securityProfile"]["securityType"] == "TrustedLaunch" && !found.trusted {
            return refuse(400, "BadRequest", "Trusted Launch is not supported by the image.");
        }
        Ok(found.disk_gb)
    }

    /// What the system on the disk that is attached was told, wherever that was; what Azure refuses of such a disk, and of
    /// what is asked for beside it.
    pub(super) fn order_of_disk(&self, id: &str, name: &str, asked: &Value, size: &Size) -> Refused<Order> {
        let properties = &asked["properties"];
        let storage = &properties["storageProfile"];
        let os = &storage["osDisk"];
        if !properties["osProfile"].is_null() {
            return refuse(400, "InvalidParameter", "Parameter 'osProfile' is not allowed.");
        }
        if !storage["imageReference"].is_null() {
            return refuse(400, "InvalidParameter", "Parameter 'imageReference' is not allowed.");
        }
        if os["osType"].is_null() {
            return refuse(400, "InvalidParameter", "Required parameter 'osDisk.osType' is missing (null).");
        }
        let wanted = os["managedDisk"]["id"].as_str().unwrap_or_default();
        let Some(disk) = self.get(wanted) else { return Err(Box::new(Answer::missing(wanted))) };
        if disk.state() != "Succeeded" {
            return Err(Box::new(busy(wanted)));
        }
        let own = &disk.body["properties"];
        let Some(system) = disk.system.clone().filter(|_| own["osType"] == os["osType"]) else {
            let said =
                format!("Disk '{}' cannot be attached as an OS disk of type {}.", disk.name(), os["osType"]);
            return refuse(409, "OperationNotAllowed", said);
        };
        if own["hyperVGeneration"] == "V1" && !size.gen1 {
            let said = format!("The selected VM size '{}' cannot boot Hypervisor Generation '1'.", size.name);
            return refuse(400, "BadRequest", said);
        }
        let (theirs, ours) =
            (&own["securityProfile"]["securityType"], &properties["securityProfile"]["securityType"]);
        if theirs != ours {
            let said =
                format!("The VM's security type {ours} is not the security type {theirs} of its OS disk.");
            return refuse(400, "BadRequest", said);
        }
        if disk.body["location"] != asked["location"] {
            return refuse(
                400,
                "BadRequest",
                format!("Disk '{}' is not in the region of the machine.", disk.name()),
            );
        }
        let tags = asked["tags"].as_object().into_iter().flatten();
        let tags = tags.map(|(key, value)| (key.clone(), value.as_str().unwrap_or_default().to_owned()));
        Ok(Order { id: id.to_lowercase(), name: name.to_owned(), tags: tags.collect(), ..system })
    }

    /// What Azure refuses of a disk that is to be attached, whatever is on it.
    fn attachable(&self, wanted: &str, zones: Option<&Value>) -> Refused<&Thing> {
        let Some(found) = self.get(wanted) else { return Err(Box::new(Answer::missing(wanted))) };
        if let Some(owner) = found.body["managedBy"].as_str() {
            let said = format!(
                "Disk '{}' cannot be attached as the disk is already owned by VM '{owner}'.",
                found.name()
            );
            return refuse(409, "AttachDiskWhileBeingDetached", said);
        }
        if found.body.get("zones") != zones {
            let said = format!("Disk '{}' is not in the zone of the machine.", found.name());
            return refuse(400, "BadRequest", said);
        }
        Ok(found)
    }

    /// Fill in the disks of a machine: ids with what is to be made, or none for what is only attached.
    pub(super) fn disks_of(
        &mut self,
        id: &str,
        name: &str,
        body: &mut Value,
        image_gb: u32,
        size: &Size,
    ) -> Refused<Vec<(String, Option<Value>)>> {
        let group = group_of(id).to_owned();
        let (region, zones) = (body["location"].clone(), body.get("zones").cloned());
        let trusted = body["properties"]["securityProfile"]["securityType"] == "TrustedLaunch";
        let storage = &mut body["properties"]["storageProfile"];
        let mut made = Vec::new();
        let new = |gb: u64, sku: &Value, creation: Value, os: bool| {
            let sku = sku.as_str().unwrap_or(if os { "Premium_LRS" } else { "Standard_LRS" });
            let mut disk = json!({
                "location": region,
                "managedBy": id,
                "sku": {"name": sku},
                "properties": {
                    "creationData": creation,
                    "diskSizeGB": gb,
                    "diskState": "Attached",
                    "provisioningState": "Succeeded",
                },
            });
            if let Some(zones) = &zones {
                disk["zones"] = zones.clone();
            }
            if os {
                disk["properties"]["osType"] = json!("Linux");
                disk["properties"]["hyperVGeneration"] = json!("V2");
                if trusted {
                    disk["properties"]["securityProfile"] = json!({"securityType": "TrustedLaunch"});
                }
            }
            disk
        };
        let os = &mut storage["osDisk"];
        if !os.is_object() {
            *os = json!({"createOption": "FromImage"});
        }
        os["osType"] = json!("Linux");
        if os["diffDiskSettings"]["option"] == "Local" {
            if !size.ephemeral {
                let said = format!("OS disk of Ephemeral VM is not supported for VM size {}.", size.name);
                return refuse(409, "NotSupported", said);
            }
            // No resource of its own, and nothing to pay.
            os["deleteOption"] = json!("Delete");
        } else if os["createOption"] == "Attach" {
            let wanted = os["managedDisk"]["id"].as_str().unwrap_or_default().to_owned();
            let found = self.attachable(&wanted, zones.as_ref())?;
            if !os["name"].is_null() && os["name"] != found.name() {
                return refuse(
                    400,
                    "InvalidParameter",
                    format!("The disk {wanted} is not called {}.", os["name"]),
                );
            }
            os["name"] = json!(found.name());
            os["diskSizeGB"] = found.body["properties"]["diskSizeGB"].clone();
            os["managedDisk"]["storageAccountType"] = found.body["sku"]["name"].clone();
            if os["deleteOption"].is_null() {
                os["deleteOption"] = json!("Detach");
            }
            made.push((found.id.clone(), None));
        } else {
            if os["name"].is_null() {
                os["name"] = json!(format!("{name}_OsDisk_1_{}", self.fresh("disk").replace('-', "")));
            }
            let gb = os["diskSizeGB"].as_u64().unwrap_or(u64::from(image_gb)).max(u64::from(image_gb));
            let disk = self.id(&group, Kind::Disk, os["name"].as_str().unwrap_or_default());
            if self.get(&disk).is_some() {
                let said = format!(
                    "Disk {} already exists in resource group {group}. Only CreateOption.Attach is supported.",
                    os["name"]
                );
                return refuse(409, "ConflictingUserInput", said);
            }
            let creation = json!({"createOption": "FromImage"});
            made.push((
                disk.clone(),
                Some(new(gb, &os["managedDisk"]["storageAccountType"], creation, true)),
            ));
            os["diskSizeGB"] = json!(gb);
            os["managedDisk"]["id"] = json!(disk);
            if os["deleteOption"].is_null() {
                os["deleteOption"] = json!("Detach");
            }
        }
        let mut data = storage["dataDisks"].as_array().cloned().unwrap_or_default();
        for disk in &mut data {
            let lun = disk["lun"].as_u64().unwrap_or_default();
            if disk["deleteOption"].is_null() {
                disk["deleteOption"] = json!("Detach");
            }
            let option = disk["createOption"].as_str().unwrap_or_default().to_owned();
            if option == "Attach" {
                let wanted = disk["managedDisk"]["id"].as_str().unwrap_or_default().to_owned();
                let found = self.attachable(&wanted, zones.as_ref())?;
                disk["name"] = json!(found.name());
                disk["diskSizeGB"] = found.body["properties"]["diskSizeGB"].clone();
                made.push((found.id.clone(), None));
                continue;
            }
            let (gb, creation) = match option.as_str() {
                "Empty" => (disk["diskSizeGB"].as_u64().unwrap_or(32), json!({"createOption": "Empty"})),
                "Copy" => {
                    let source = disk["sourceResource"]["id"].as_str().unwrap_or_default().to_owned();
                    let gb = self.copyable(&source)?;
                    let gb = disk["diskSizeGB"].as_u64().unwrap_or(gb).max(gb);
                    (gb, json!({"createOption": "Copy", "sourceResourceId": source}))
                }
                other => {
                    return refuse(400, "InvalidParameter", format!("createOption {other} of a data disk"));
                }
            };
            if disk["name"].is_null() {
                let hash = self.fresh("disk").replace('-', "");
                disk["name"] = json!(format!("{name}_disk{}_{hash}", lun + 2));
            }
            let to = self.id(&group, Kind::Disk, disk["name"].as_str().unwrap_or_default());
            if self.get(&to).is_some() {
                return refuse(409, "ConflictingUserInput", format!("Disk {to} already exists."));
            }
            made.push((
                to.clone(),
                Some(new(gb, &disk["managedDisk"]["storageAccountType"], creation, false)),
            ));
            disk["diskSizeGB"] = json!(gb);
            disk["managedDisk"]["id"] = json!(to);
        }
        storage["dataDisks"] = Value::Array(data);
        Ok(made)
    }

    /// Fill in the network interfaces of a machine: those that it names, and those that are made with it.
    pub(super) fn nics_of(&mut self, id: &str, body: &mut Value, region: &str) -> Refused<Vec<String>> {
        let network = body["properties"]["networkProfile"].clone();
        let mut rows = network["networkInterfaces"].as_array().cloned().unwrap_or_default();
        let inline = network["networkInterfaceConfigurations"].as_array().cloned().unwrap_or_default();
        if rows.is_empty() == inline.is_empty() {
            let said = "A network profile has either network interfaces or configurations of such.";
            return refuse(400, "InvalidParameter", said);
        }
        if !inline.is_empty() && network["networkApiVersion"].is_null() {
            let said = "Required parameter 'networkApiVersion' is missing (null).";
            return refuse(400, "InvalidParameter", said);
        }
        for row in &mut rows {
            let wanted = row["id"].as_str().unwrap_or_default().to_owned();
            let now = self.now();
            if self.get(&wanted).is_some_and(|nic| nic.state() == "Deleting") {
                return Err(Box::new(busy(&wanted)));
            }
            let Some(nic) = self.get(&wanted) else {
                let said = format!(
                    "Resource {wanted} referenced by resource {id} was not found. Please make sure that the referenced resource exists, and that both resources are in the same region."
                );
                return refuse(400, "InvalidResourceReference", said);
            };
            if let Some(owner) = nic.text("/virtualMachine/id")
                && !owner.eq_ignore_ascii_case(id)
            {
                let said = format!("Network interface {wanted} is in use by {owner}.");
                return refuse(400, "NicInUse", said);
            }
            if let Some((until, owner)) = &nic.reserved
                && *until > now
                && !owner.eq_ignore_ascii_case(id)
            {
                return Err(Box::new(reserved(&wanted, owner)));
            }
            if row["properties"]["deleteOption"].is_null() {
                row["properties"]["deleteOption"] = json!("Detach");
            }
        }
        for configuration in &inline {
            let nic = self.inline_nic(id, configuration, region)?;
            let mut row = json!({"id": nic, "properties": {}});
            let option = configuration["properties"]["deleteOption"].as_str().unwrap_or("Detach");
            row["properties"]["deleteOption"] = json!(option);
            if let Some(primary) = configuration["properties"]["primary"].as_bool() {
                row["properties"]["primary"] = json!(primary);
            }
            rows.push(row);
        }
        let ids = rows.iter().filter_map(|row| row["id"].as_str().map(str::to_owned)).collect();
        body["properties"]["networkProfile"] = json!({"networkInterfaces": rows});
        Ok(ids)
    }
}

/// What it is counted in, and what Azure calls that in a refusal.
fn counters(size: &Size, spot: bool) -> Vec<(String, String)> {
    if spot {
        // Spot has a pool of its own.
        return vec![("lowPriorityCores".into(), "LowPriorityCores".into())];
    }
    let family = size.family.to_owned();
    vec![(family.clone(), format!("{family} Cores")), ("cores".into(), "Total Regional Cores".into())]
}

pub(super) fn order(id: &str, name: &str, asked: &Value) -> Refused<Order> {
    let os = &asked["properties"]["osProfile"];
    let Some(admin) = os["adminUsername"].as_str() else {
        return refuse(
            400,
            "InvalidParameter",
            "Required parameter 'osProfile.adminUsername' is missing (null).",
        );
    };
    if ["admin", "administrator", "root", "test", "user"].contains(&admin.to_lowercase().as_str()) {
        let said = "The Admin Username specified is not allowed.";
        return refuse(400, "InvalidParameter", said);
    }
    let host = os["computerName"].as_str().unwrap_or(name);
    if host.is_empty() || host.len() > 64 || host.contains(['.', '_', ' ']) || host.ends_with('-') {
        let said = format!(
            "Linux host name '{host}' cannot exceed 64 characters in length or contain certain characters."
        );
        return refuse(400, "InvalidParameter", said);
    }
    let linux = &os["linuxConfiguration"];
    let keys = linux["ssh"]["publicKeys"].as_array().cloned().unwrap_or_default();
    let path = format!("/home/{admin}/.ssh/authorized_keys");
    for key in &keys {
        let data = key["keyData"].as_str().unwrap_or_default();
        if !data.starts_with("ssh-rsa ") && !data.starts_with("ssh-ed25519 ") {
            return refuse(
                400,
                "InvalidParameter",
                "The value of parameter linuxConfiguration.ssh.publicKeys.keyData is invalid.",
            );
        }
        if key["path"] != *path {
            let said = format!(
                "Destination path for SSH public keys is currently limited to its default value {path} due to a known issue in Linux provisioning agent."
            );
            return refuse(400, "InvalidParameter", said);
        }
    }
    let password = os["adminPassword"].is_string();
    if keys.is_empty() && (!password || linux["disablePasswordAuthentication"] == true) {
        let said =
            "Authentication using either SSH or by user name and password must be enabled in Linux profile.";
        return refuse(400, "InvalidParameter", said);
    }
    let custom_data = match os["customData"].as_str() {
        None => None,
        Some(text) => match STANDARD.decode(text) {
            Ok(bytes) if bytes.len() <= 65535 => Some(bytes),
            Ok(_) => {
                return refuse(
                    400,
                    "InvalidParameter",
                    "Custom data in OSProfile must not exceed 65535 bytes.",
                );
            }
            Err(_) => {
                return refuse(
                    400,
                    "InvalidParameter",
                    "Custom data in OSProfile must be in Base64 encoding.",
                );
            }
        },
    };
    let tags = asked["tags"].as_object().into_iter().flatten();
    let tags: BTreeMap<_, _> =
        tags.map(|(key, value)| (key.clone(), value.as_str().unwrap_or_default().to_owned())).collect();
    let public_keys = keys.iter().filter_map(|key| key["keyData"].as_str().map(str::to_owned)).collect();
    Ok(Order {
        id: id.to_lowercase(),
        name: host.to_owned(),
        custom_data,
        admin: admin.to_owned(),
        public_keys,
        tags,
        copy: None,
    })
}
