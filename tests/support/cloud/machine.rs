//! Virtual machines: what is refused at once, what comes with one, what goes with it, and what stays behind.

use super::{
    answer::Answer,
    ask::Ask,
    catalog::{self, Size},
    metal::Order,
    operation::{Aim, Told},
    world::{Deed, Event, Kind, Machine, Power, Thing, World, asked_alone, group_of},
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::{Value, json};
use std::collections::BTreeMap;

type Refused<T> = Result<T, Box<Answer>>;

fn refuse<T>(status: u16, code: &str, message: impl Into<String>) -> Refused<T> {
    Err(Box::new(Answer::error(status, code, message)))
}

impl World {
    pub fn put_machine(&mut self, ask: &Ask) -> Answer {
        self.try_put_machine(ask).unwrap_or_else(|refused| *refused)
    }

    fn try_put_machine(&mut self, ask: &Ask) -> Refused<Answer> {
        let id = self.open_group(ask, Kind::Vm)?;
        let name = ask.name(Kind::Vm).to_owned();
        let asked = Value::Object(asked_alone(ask.body()));
        if let Some(old) = self.get(&id) {
            let none_match = ask.header("if-none-match") == Some("*");
            if none_match {
                let said = format!("The condition 'If-None-Match: *' does not hold: {name} exists.");
                return refuse(412, "PreconditionFailed", said);
            }
            return self.put_again(ask, &id, old.clone(), &asked);
        }
        let properties = &asked["properties"];
        let region = asked["location"].as_str().unwrap_or_default().to_lowercase();
        let size = self.may_have(properties, &region, asked["zones"][0].as_str())?;
        let order = order(&id, &name, &asked)?;
        let spot = properties["priority"] == "Spot";

        // Looked at whole before anything is made: what is refused leaves nothing behind.
        let mut body = asked.clone();
        let image = self.image_of(properties, &region, size)?;
        let disks = self.disks_of(&id, &name, &mut body, image, size)?;
        let nics = self.nics_of(&id, &mut body, &region)?;
        let hang_or_fail = self.fate.is_some();

        let at = &mut body["properties"];
        at["provisioningState"] = json!("Creating");
        at["vmId"] = json!(self.fresh("vm"));
        at["timeCreated"] = json!(self.now().text());
        let os = at["osProfile"].as_object_mut();
        if let Some(os) = os {
            // Written once and read by nobody.
            os.remove("customData");
            os.remove("adminPassword");
            os.entry("computerName").or_insert_with(|| json!(name));
            os.insert("secrets".into(), json!([]));
            os.insert("allowExtensionOperations".into(), json!(true));
            os.insert("requireGuestProvisionSignal".into(), json!(true));
        }
        for (disk, made) in disks {
            match made {
                Some(made) => drop(self.put(Kind::Disk, &disk, made)),
                None => {
                    if let Some(disk) = self.get_mut(&disk) {
                        disk.body["managedBy"] = json!(id);
                        disk.body["properties"]["diskState"] = json!("Attached");
                    }
                }
            }
        }
        for (n, nic) in nics.iter().enumerate() {
            if let Some(nic) = self.get_mut(nic) {
                nic.body["properties"]["virtualMachine"] = json!({"id": id});
                nic.body["properties"]["primary"] = json!(n == 0);
            }
        }
        let machine = Machine {
            power: Power::Starting,
            size,
            spot,
            asked,
            order: order.clone(),
            booting: !hang_or_fail,
            notices: Vec::new(),
        };
        let thing = self.put(Kind::Vm, &id, body);
        thing.machine = Some(machine);
        let shown = thing.body.clone();
        if !hang_or_fail {
            self.deeds.push(Deed::Boot(order));
        }
        let operation = self.begin(Kind::Vm, &region, Aim::Ready(id), self.takes.vm_create);
        // A machine is followed by its status address alone.
        Ok(self.told(Answer::of(201, shown), ask.base, &operation, Told::Status))
    }

    /// What exists is asked for: as it is, or changed.
    fn put_again(&mut self, ask: &Ask, id: &str, old: Thing, asked: &Value) -> Refused<Answer> {
        let name = old.name().to_owned();
        if old.state() == "Deleting" {
            let said = format!("The VM '{name}' is being deleted; the operation is not allowed.");
            return refuse(409, "OperationNotAllowed", said);
        }
        let Some(machine) = &old.machine else { return refuse(409, "Conflict", "no machine") };
        for fixed in ["osProfile", "storageProfile", "networkProfile", "priority", "hardwareProfile"] {
            if machine.asked["properties"][fixed] != asked["properties"][fixed] {
                let said = format!("Changing property '{fixed}' is not allowed.");
                return refuse(409, "PropertyChangeNotAllowed", said);
            }
        }
        let running = self.under_way(id);
        let again = old.state() == "Failed" && running.is_none();
        let region = old.body["location"].as_str().unwrap_or_default().to_owned();
        if let Some(thing) = self.get_mut(id) {
            match asked.get("tags") {
                Some(tags) => thing.body["tags"] = tags.clone(),
                None => drop(thing.body.as_object_mut().map(|all| all.remove("tags"))),
            }
        }
        let shown = self.get(id).map(|thing| thing.body.clone()).unwrap_or_default();
        let takes = if again { self.takes.vm_create } else { self.takes.network };
        if again && self.fate.is_none() {
            // What failed is tried once more, with what was made for it the first time.
            self.deeds.push(Deed::Boot(machine.order.clone()));
        }
        if let Some(vm) = self.get_mut(id).filter(|_| again) {
            vm.set_state("Creating");
            if let Some(machine) = &mut vm.machine {
                machine.power = Power::Starting;
            }
        }
        let operation = match running {
            Some(running) => running,
            None => self.begin(Kind::Vm, &region, Aim::Ready(id.to_owned()), takes),
        };
        Ok(self.told(Answer::of(200, shown), ask.base, &operation, Told::Status))
    }

    /// Whether this subscription may have one more of this size there.
    fn may_have(&self, properties: &Value, region: &str, zone: Option<&str>) -> Refused<&'static Size> {
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
    pub fn usage(&self, counter: &str, region: &str) -> (u64, u64) {
        let here = self.of(Kind::Vm, None).filter(|vm| vm.body["location"] == *region);
        let used = here
            .filter_map(|vm| vm.machine.as_ref())
            .filter(|machine| counters(machine.size, machine.spot).iter().any(|(name, _)| name == counter))
            .map(|machine| u64::from(machine.size.cpus))
            .sum();
        (used, self.quota.get(counter).copied().unwrap_or(100))
    }

    /// The size of its OS disk, in GB.
    fn image_of(&self, properties: &Value, region: &str, size: &Size) -> Refused<u32> {
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

    /// Fill in the disks of a machine: ids with what is to be made, or none for what is only attached.
    fn disks_of(
        &mut self,
        id: &str,
        name: &str,
        body: &mut Value,
        image_gb: u32,
        size: &Size,
    ) -> Refused<Vec<(String, Option<Value>)>> {
        let group = group_of(id).to_owned();
        let (region, zones) = (body["location"].clone(), body.get("zones").cloned());
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
                let Some(found) = self.get(&wanted) else { return Err(Box::new(Answer::missing(&wanted))) };
                if let Some(owner) = found.body["managedBy"].as_str() {
                    let said = format!(
                        "Disk '{}' cannot be attached as the disk is already owned by VM '{owner}'.",
                        found.name()
                    );
                    return refuse(409, "AttachDiskWhileBeingDetached", said);
                }
                if found.body.get("zones") != zones.as_ref() {
                    let said = format!("Disk '{}' is not in the zone of the machine.", found.name());
                    return refuse(400, "BadRequest", said);
                }
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
    fn nics_of(&mut self, id: &str, body: &mut Value, region: &str) -> Refused<Vec<String>> {
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

    /// It came up.
    pub fn ready(&mut self, id: &str) {
        let Some(thing) = self.get_mut(id) else { return };
        thing.set_state("Succeeded");
        if let Some(machine) = &mut thing.machine
            && machine.power == Power::Starting
        {
            machine.power = Power::Running;
        }
    }

    /// It did not. What was made for it is there all the same, and its network interfaces are its own for a while.
    pub fn failed(&mut self, id: &str) {
        let Some(thing) = self.get_mut(id) else { return };
        thing.set_state("Failed");
        if let Some(machine) = &mut thing.machine {
            // Never allocated: its disks and addresses cost, its processors do not.
            machine.power = Power::Deallocated;
            self.deeds.push(Deed::Kill(id.to_lowercase()));
        }
        self.reserve_nics(id);
    }

    fn reserve_nics(&mut self, id: &str) {
        let until = self.now().after(self.takes.reservation);
        for nic in self.nics(id) {
            if let Some(nic) = self.get_mut(&nic) {
                nic.reserved = Some((until, id.to_owned()));
            }
        }
    }

    fn nics(&self, id: &str) -> Vec<String> {
        let rows = self
            .get(id)
            .and_then(|vm| vm.body["properties"]["networkProfile"]["networkInterfaces"].as_array());
        rows.into_iter().flatten().filter_map(|row| row["id"].as_str().map(str::to_owned)).collect()
    }

    pub fn delete_machine(&mut self, ask: &Ask, id: &str) -> Answer {
        let force = ask.query("forceDeletion").is_some_and(|yes| yes.eq_ignore_ascii_case("true"));
        let Some(vm) = self.get_mut(id) else { return Answer::empty(204) };
        let region = vm.body["location"].as_str().unwrap_or_default().to_owned();
        let already = vm.state() == "Deleting";
        vm.set_state("Deleting");
        let running = already.then(|| self.under_way(id)).flatten();
        let takes = if force { self.takes.vm_delete / 2 } else { self.takes.vm_delete };
        let operation = match running {
            Some(running) => running,
            None => self.begin(Kind::Vm, &region, Aim::Gone(id.to_owned()), takes),
        };
        self.told(Answer::empty(202), ask.base, &operation, Told::Both)
    }

    /// It is no more: what was marked goes with it, a little later; the rest is left alone.
    pub fn machine_gone(&mut self, id: &str) {
        self.reserve_nics(id);
        let Some(vm) = self.remove(id) else { return };
        self.deeds.push(Deed::Remove(id.to_lowercase()));
        let storage = &vm.body["properties"]["storageProfile"];
        let data = storage["dataDisks"].as_array().cloned().unwrap_or_default();
        for disk in std::iter::once(&storage["osDisk"]).chain(&data) {
            let Some(at) = disk["managedDisk"]["id"].as_str() else { continue };
            if let Some(found) = self.get_mut(at) {
                found.body.as_object_mut().map(|all| all.remove("managedBy"));
                found.body["properties"]["diskState"] = json!("Unattached");
            }
            if disk["deleteOption"] == "Delete" {
                self.plan(self.takes.cascade, Event::Fade(at.to_owned()));
            }
        }
        let nics = vm.body["properties"]["networkProfile"]["networkInterfaces"]
            .as_array()
            .cloned()
            .unwrap_or_default();
        for row in nics {
            let Some(at) = row["id"].as_str() else { continue };
            let Some(nic) = self.get_mut(at) else { continue };
            let properties = nic.body["properties"].as_object_mut();
            properties.map(|all| all.remove("virtualMachine"));
            let configurations =
                nic.body["properties"]["ipConfigurations"].as_array().cloned().unwrap_or_default();
            if row["properties"]["deleteOption"] != "Delete" {
                continue;
            }
            self.plan(self.takes.cascade, Event::Fade(at.to_owned()));
            for configuration in &configurations {
                let Some(ip) = configuration["properties"]["publicIPAddress"]["id"].as_str() else {
                    continue;
                };
                if self.get(ip).and_then(|ip| ip.text("/deleteOption")) == Some("Delete") {
                    self.plan(self.takes.cascade * 2, Event::Fade(ip.to_owned()));
                }
            }
        }
    }

    /// Start, stop, deallocate, restart.
    pub fn power(&mut self, ask: &Ask, id: &str, to: Power) -> Answer {
        let Some(vm) = self.get_mut(id) else { return Answer::missing(id) };
        let region = vm.body["location"].as_str().unwrap_or_default().to_owned();
        if matches!(vm.state(), "Deleting" | "Failed") {
            let said = format!("The VM '{}' cannot be switched: it is {}.", vm.name(), vm.state());
            return Answer::error(409, "OperationNotAllowed", said);
        }
        let operation = self.begin(Kind::Vm, &region, Aim::Power(id.to_owned(), to), self.takes.power);
        self.told(Answer::empty(202), ask.base, &operation, Told::Both)
    }

    pub fn powered(&mut self, id: &str, to: Power) {
        let Some(machine) = self.get_mut(id).and_then(|vm| vm.machine.as_mut()) else { return };
        machine.power = to;
        let order = machine.order.clone();
        self.deeds.push(Deed::Kill(id.to_lowercase()));
        if to == Power::Running {
            self.deeds.push(Deed::Boot(order));
        }
    }

    /// A notice in its metadata, and then the end.
    pub fn give_notice(&mut self, id: &str) -> bool {
        let event = self.fresh("event");
        let before = self.now().after(self.takes.eviction).http();
        let wait = self.takes.eviction;
        let Some(vm) = self.get_mut(id) else { return false };
        let name = vm.name().to_owned();
        let Some(machine) = vm.machine.as_mut().filter(|machine| machine.spot) else { return false };
        machine.notices.push(json!({
            "EventId": event.to_uppercase(),
            "EventStatus": "Scheduled",
            "EventType": "Preempt",
            "ResourceType": "VirtualMachine",
            "Resources": [name],
            "NotBefore": before,
            "Description": "",
            "EventSource": "Platform",
            "DurationInSeconds": -1,
        }));
        self.plan(wait, Event::Evict(id.to_owned()));
        true
    }

    pub fn evict(&mut self, id: &str) {
        let Some(vm) = self.get(id) else { return };
        if vm.text("/evictionPolicy") == Some("Delete") {
            self.machine_gone(id);
        } else {
            // The default: everything stays, and what is not a processor is paid for.
            self.powered(id, Power::Deallocated);
        }
    }

    pub fn instance_view(&self, id: &str) -> Answer {
        let Some(vm) = self.get(id) else { return Answer::missing(id) };
        let Some(machine) = &vm.machine else { return Answer::missing(id) };
        let (level, state) = ("Info", vm.state());
        let provisioning = json!({
            "code": format!("ProvisioningState/{}", state.to_lowercase()),
            "level": if state == "Failed" { "Error" } else { level },
            "displayStatus": format!("Provisioning {}", state.to_lowercase()),
            "time": vm.born.text(),
        });
        let word = machine.power.code().rsplit('/').next().unwrap_or_default();
        let power =
            json!({"code": machine.power.code(), "level": level, "displayStatus": format!("VM {word}")});
        let statuses = if state == "Failed" { json!([provisioning]) } else { json!([provisioning, power]) };
        Answer::of(200, json!({"hyperVGeneration": "V2", "statuses": statuses}))
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

pub fn reserved(nic: &str, owner: &str) -> Answer {
    let said = format!(
        "Nic(s) in request is reserved for another Virtual Machine for 180 seconds. Please provide another nic(s) or retry after 180 seconds. Reserved VM: {owner}, Nic(s): {nic}"
    );
    Answer::error(400, "NicReservedForAnotherVm", said)
}

fn order(id: &str, name: &str, asked: &Value) -> Refused<Order> {
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
    })
}
