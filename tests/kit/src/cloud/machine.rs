//! Virtual machines: what is refused at once, what comes with one, what goes with it, and what stays behind.

use super::{
    answer::Answer,
    ask::Ask,
    fitting::order,
    operation::{Aim, Told},
    world::{Deed, Event, Kind, Machine, Power, Thing, World, asked_alone},
};

use serde_json::{Value, json};

pub(super) type Refused<T> = Result<T, Box<Answer>>;

pub(super) fn refuse<T>(status: u16, code: &str, message: impl Into<String>) -> Refused<T> {
    Err(Box::new(Answer::error(status, code, message)))
}

impl World {
    pub(super) fn put_machine(&mut self, ask: &Ask) -> Answer {
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
        let spot = properties["priority"] == "Spot";
        let attached = properties["storageProfile"]["osDisk"]["createOption"] == "Attach";
        let order =
            if attached { self.order_of_disk(&id, &name, &asked, size)? } else { order(&id, &name, &asked)? };

        // Looked at whole before anything is made: what is refused leaves nothing behind.
        let mut body = asked.clone();
        let image = if attached { 0 } else { self.image_of(properties, &region, size)? };
        let disks = self.disks_of(&id, &name, &mut body, image, size)?;
        let nics = self.nics_of(&id, &mut body, &region)?;
        let hang_or_fail = self.fate.is_some();

        let at = &mut body["properties"];
        at["provisioningState"] = json!("Creating");
        at["vmId"] = json!(self.fresh("vm"));
        at["timeCreated"] = json!(self.now().text());
        let os = at.get_mut("osProfile").and_then(Value::as_object_mut);
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
                Some(made) => {
                    let system = made["properties"]["osType"].is_string().then(|| order.clone());
                    self.put(Kind::Disk, &disk, made).system = system;
                }
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

    /// It came up.
    pub(super) fn ready(&mut self, id: &str) {
        // Whatever is being deleted stays so.
        let Some(thing) = self.get_mut(id).filter(|thing| thing.state() != "Deleting") else { return };
        thing.set_state("Succeeded");
        if let Some(machine) = &mut thing.machine
            && machine.power == Power::Starting
        {
            machine.power = Power::Running;
        }
    }

    /// It did not. What was made for it is there all the same, and its network interfaces are its own for a while.
    pub(super) fn failed(&mut self, id: &str, code: &str) {
        let Some(thing) = self.get_mut(id).filter(|thing| thing.state() != "Deleting") else { return };
        thing.set_state("Failed");
        if let Some(machine) = &mut thing.machine {
            // What never got a place costs no processors, only disks and addresses; what got one and never said that it
            // is up costs them too.
            if code.contains("Allocation") {
                machine.power = Power::Deallocated;
                self.deeds.push(Deed::Kill(id.to_lowercase()));
            } else {
                machine.power = Power::Running;
            }
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

    pub(super) fn delete_machine(&mut self, ask: &Ask, id: &str) -> Answer {
        let force = ask.query("forceDeletion").is_some_and(|yes| yes.eq_ignore_ascii_case("true"));
        let Some(vm) = self.get_mut(id) else { return Answer::empty(204) };
        let region = vm.body["location"].as_str().unwrap_or_default().to_owned();
        let already = vm.state() == "Deleting";
        vm.set_state("Deleting");
        let running = already.then(|| self.under_way(id)).flatten();
        if !already {
            self.preempt(id);
        }
        let takes = if force { self.takes.vm_delete / 2 } else { self.takes.vm_delete };
        let operation = match running {
            Some(running) => running,
            None => self.begin(Kind::Vm, &region, Aim::Gone(id.to_owned()), takes),
        };
        self.told(Answer::empty(202), ask.base, &operation, Told::Both)
    }

    /// It is no more: what was marked goes with it, a little later; the rest is left alone.
    pub(super) fn machine_gone(&mut self, id: &str) {
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
                self.fade(at, self.takes.cascade);
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
            self.fade(at, self.takes.cascade);
            for configuration in &configurations {
                let Some(ip) = configuration["properties"]["publicIPAddress"]["id"].as_str() else {
                    continue;
                };
                if self.get(ip).and_then(|ip| ip.text("/deleteOption")) == Some("Delete") {
                    self.fade(ip, self.takes.cascade * 2);
                }
            }
        }
    }

    /// Start, stop, deallocate, restart.
    pub(super) fn power(&mut self, ask: &Ask, id: &str, to: Power) -> Answer {
        let Some(vm) = self.get_mut(id) else { return Answer::missing(id) };
        let region = vm.body["location"].as_str().unwrap_or_default().to_owned();
        if matches!(vm.state(), "Deleting" | "Failed") {
            let said = format!("The VM '{}' cannot be switched: it is {}.", vm.name(), vm.state());
            return Answer::error(409, "OperationNotAllowed", said);
        }
        let operation = self.begin(Kind::Vm, &region, Aim::Power(id.to_owned(), to), self.takes.power);
        self.told(Answer::empty(202), ask.base, &operation, Told::Both)
    }

    pub(super) fn powered(&mut self, id: &str, to: Power) {
        let Some(machine) = self.get_mut(id).and_then(|vm| vm.machine.as_mut()) else { return };
        machine.power = to;
        let order = machine.order.clone();
        self.deeds.push(Deed::Kill(id.to_lowercase()));
        if to == Power::Running {
            self.deeds.push(Deed::Boot(order));
        }
    }

    /// A notice in its metadata, and then the end.
    pub(super) fn give_notice(&mut self, id: &str) -> bool {
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
        let version = vm.version;
        self.plan(wait, Event::Evict { id: id.to_owned(), version });
        true
    }

    pub(super) fn evict(&mut self, id: &str) {
        let Some(vm) = self.get(id) else { return };
        if vm.text("/evictionPolicy") == Some("Delete") {
            self.machine_gone(id);
        } else {
            // The default: everything stays, and what is not a processor is paid for.
            self.powered(id, Power::Deallocated);
        }
    }

    pub(super) fn instance_view(&self, id: &str) -> Answer {
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

pub(super) fn reserved(nic: &str, owner: &str) -> Answer {
    let said = format!(
        "Nic(s) in request is reserved for another Virtual Machine for 180 seconds. Please provide another nic(s) or retry after 180 seconds. Reserved VM: {owner}, Nic(s): {nic}"
    );
    Answer::error(400, "NicReservedForAnotherVm", said)
}

/// Somebody else does something with it just now.
pub(super) fn busy(id: &str) -> Answer {
    let said = format!(
        "Operation on {id} is not allowed while another operation is in progress. Please retry later."
    );
    Answer::error(429, "RetryableErrorDueToAnotherOperation", said).with("retry-after", "10")
}
