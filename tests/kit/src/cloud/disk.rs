//! Managed disks and snapshots: nobody deletes them but by name, and both cost.

use super::{
    answer::Answer,
    ask::Ask,
    machine::{Refused, busy},
    operation::{Aim, Told},
    world::{Deed, Kind, World, asked_alone},
};
use serde_json::{Value, json};

impl World {
    pub(super) fn put_disk(&mut self, ask: &Ask, kind: Kind) -> Answer {
        self.try_put_disk(ask, kind).unwrap_or_else(|refused| *refused)
    }

    fn try_put_disk(&mut self, ask: &Ask, kind: Kind) -> Refused<Answer> {
        let id = self.open_group(ask, kind)?;
        let mut body = Value::Object(asked_alone(ask.body()));
        let region = body["location"].as_str().unwrap_or_default().to_lowercase();
        let old = self.get(&id).map(|old| old.body.clone());
        if self.get(&id).is_some_and(|old| old.state() == "Deleting") {
            return Err(Box::new(busy(&id)));
        }
        let properties = &mut body["properties"];
        let creation = properties["creationData"].clone();
        let mut system = None;
        let mut keep = None;
        let gb = match creation["createOption"].as_str() {
            Some("Empty") => properties["diskSizeGB"].as_u64().unwrap_or_default(),
            Some("Copy") => {
                let source = creation["sourceResourceId"].as_str().unwrap_or_default();
                let Some(found) = self.get(source) else { return Err(Box::new(Answer::missing(source))) };
                if found.state() != "Succeeded" {
                    return Err(Box::new(busy(source)));
                }
                if found.body["location"].as_str().unwrap_or_default().to_lowercase() != region {
                    let said = format!("The source {source} is not in the region {region}.");
                    return Err(Box::new(Answer::error(400, "InvalidParameter", said)));
                }
                let gb = found.body["properties"]["diskSizeGB"].as_u64().unwrap_or_default();
                // What is on it makes it what it is.
                for own in ["osType", "hyperVGeneration", "securityProfile", "purchasePlan"] {
                    let theirs = &found.body["properties"][own];
                    if !properties[own].is_null() && properties[own] != *theirs {
                        let said = format!("The {own} of {source} is {theirs}.");
                        return Err(Box::new(Answer::error(400, "InvalidParameter", said)));
                    }
                    match theirs.is_null() {
                        true => drop(properties.as_object_mut().map(|all| all.remove(own))),
                        false => properties[own] = theirs.clone(),
                    }
                }
                system.clone_from(&found.system);
                keep = found.body["managedBy"].as_str().map(str::to_lowercase);
                properties["diskSizeGB"].as_u64().unwrap_or(gb).max(gb)
            }
            other => {
                let said = format!("creationData.createOption {other:?} is not done by this cloud.");
                return Err(Box::new(Answer::error(400, "InvalidParameter", said)));
            }
        };
        if gb == 0 {
            let said = "Required parameter 'diskSizeGB' is missing (null).";
            return Err(Box::new(Answer::error(400, "InvalidParameter", said)));
        }
        properties["diskSizeGB"] = json!(gb);
        properties["provisioningState"] = json!("Creating");
        properties["uniqueId"] = json!(self.fresh("disk"));
        properties["timeCreated"] = json!(self.now().text());
        let mut owner = None;
        if let Some(old) = &old {
            for own in ["uniqueId", "timeCreated", "diskState"] {
                properties[own] = old["properties"][own].clone();
            }
            owner = old["managedBy"].as_str().map(str::to_owned);
        } else {
            properties["diskState"] = json!("Unattached");
        }
        if kind == Kind::Snapshot {
            // Premium and Standard ones can be used at once, and say so.
            properties["completionPercent"] = json!(100.0);
        }
        if let Some(owner) = owner {
            body["managedBy"] = json!(owner);
        }
        if body["sku"].is_null() {
            body["sku"] = json!({"name": "Standard_LRS"});
        }
        if let Some(system) = system.as_mut().filter(|_| kind == Kind::Snapshot) {
            system.copy = Some(id.to_lowercase());
            if let Some(machine) = keep.filter(|_| old.is_none()) {
                self.deeds.push(Deed::Keep(machine, id.to_lowercase()));
            }
        }
        let made = self.put(kind, &id, body);
        made.system = system;
        let shown = made.body.clone();
        let operation = self.begin(kind, &region, Aim::Ready(id), self.takes.disk);
        // An identity is not told before there is one.
        let mut shown = shown;
        for own in ["id", "type"] {
            shown.as_object_mut().map(|all| all.remove(own));
        }
        Ok(self.told(Answer::of(202, shown), ask.base, &operation, Told::Both))
    }

    /// The size of what a new disk is to be a copy of. A disk that a machine writes to is not taken: nothing says that
    /// Azure would.
    pub(super) fn copyable(&self, source: &str) -> Refused<u64> {
        let Some(found) = self.get(source) else { return Err(Box::new(Answer::missing(source))) };
        if found.kind == Kind::Disk && !found.body["managedBy"].is_null() {
            let said = format!("Disk {source} is attached to a running machine: take a snapshot of it.");
            return Err(Box::new(Answer::error(409, "OperationNotAllowed", said)));
        }
        Ok(found.body["properties"]["diskSizeGB"].as_u64().unwrap_or_default())
    }

    pub(super) fn disk_in_use(&self, id: &str) -> Option<Answer> {
        let disk = self.get(id)?;
        let owner = disk.body["managedBy"].as_str()?;
        let said = format!("Disk {} is attached to VM {owner}.", disk.name());
        Some(Answer::error(409, "OperationNotAllowed", said))
    }
}
