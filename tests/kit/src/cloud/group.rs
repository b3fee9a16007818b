//! Resource groups, and what Azure's resource manager does for any resource: lists by tag, deletion of whole groups,
//! tags, providers.

use super::{
    answer::Answer,
    ask::Ask,
    operation::{Aim, Told},
    world::{Event, Kind, Thing, World, group_of},
};
use serde_json::{Value, json};
use std::time::Duration;

/// How often the emptying of a group looks again, and for how long: ARM gives up after fifteen minutes.
const AGAIN: Duration = Duration::from_secs(10);
const PATIENCE: Duration = Duration::from_secs(15 * 60);

impl World {
    pub(super) fn put_group(&mut self, ask: &Ask) -> Answer {
        let name = ask.group();
        let id = self.group_id(name);
        let asked = ask.body();
        let region = asked["location"].as_str().unwrap_or_default().to_lowercase();
        if !self.regions.contains(&region) {
            let said = format!(
                "The provided location '{region}' is not available for resource group. List of available regions is '{}'.",
                self.regions.join(",")
            );
            return Answer::error(400, "LocationNotAvailableForResourceGroup", said);
        }
        let old = self.get(&id);
        if let Some(old) = old {
            if old.state() == "Deleting" {
                let said = format!(
                    "The resource group '{name}' is in deprovisioning state and cannot perform this operation."
                );
                return Answer::error(409, "ResourceGroupBeingDeleted", said);
            }
            if old.body["location"] != region {
                let said = format!(
                    "Invalid resource group location '{region}'. The Resource group already exists in location '{}'.",
                    old.body["location"]
                );
                return Answer::error(409, "InvalidResourceGroupLocation", said);
            }
        }
        let status = if old.is_some() { 200 } else { 201 };
        let mut body = json!({"location": region, "properties": {"provisioningState": "Succeeded"}});
        if asked["tags"].is_object() {
            body["tags"] = asked["tags"].clone();
        }
        Answer::of(status, self.put(Kind::Group, &id, body).body.clone())
    }

    pub(super) fn delete_group(&mut self, ask: &Ask) -> Answer {
        let id = match self.meant(ask, Kind::Group) {
            Ok(id) => id,
            Err(refused) => return *refused,
        };
        let below = format!("{}/", id.to_lowercase());
        if let Some(lock) =
            self.lock_on(&id).or_else(|| self.locks.iter().find(|lock| lock.starts_with(&below)))
        {
            return locked(&id, lock);
        }
        let region =
            self.get(&id).and_then(|group| group.body["location"].as_str()).unwrap_or_default().to_owned();
        if let Some(running) = self.under_way(&id) {
            return self.told(Answer::empty(202), ask.base, &running, Told::Location);
        }
        if let Some(group) = self.get_mut(&id) {
            group.set_state("Deleting");
        }
        // Its end is not a matter of time but of what is in it: no `Finish` is due, `Empty` says when.
        let fate = self.fate.take();
        self.fate = Some(super::operation::Fate::Hangs);
        let operation = self.begin(Kind::Group, &region, Aim::Emptied(id.clone()), Duration::ZERO);
        self.fate = None;
        match fate {
            Some(super::operation::Fate::Fails { code, message }) => {
                self.end_group(&id, &operation, Some((code, message)))
            }
            Some(super::operation::Fate::Hangs) => {}
            None => {
                let until = self.now().after(PATIENCE);
                self.plan(
                    Duration::from_secs(1),
                    Event::Empty { group: id, operation: operation.clone(), until },
                );
            }
        }
        self.told(Answer::empty(202), ask.base, &operation, Told::Location)
    }

    /// Machines first, then what they held, then what that was in; whatever refuses is tried again.
    pub(super) fn empty(&mut self, group: &str, operation: &str, until: super::clock::Moment) {
        let name = group_of(group).to_owned();
        let mut left: Vec<(Kind, String)> = self
            .things()
            .filter(|t| t.kind != Kind::Group && group_of(&t.id).eq_ignore_ascii_case(&name))
            .map(|t| (t.kind, t.id.clone()))
            .collect();
        if left.is_empty() {
            return self.end_group(group, operation, None);
        }
        if self.now() >= until {
            let said = format!(
                "Deletion of resource group '{name}' failed as resources with identifiers '{}' could not be deleted.",
                left[0].1
            );
            return self.end_group(group, operation, Some(("ResourceGroupDeletionBlocked".into(), said)));
        }
        left.sort_by_key(|(kind, _)| match kind {
            Kind::Vm => 0,
            Kind::Schedule | Kind::Nic => 1,
            Kind::Group | Kind::Ip | Kind::Nsg | Kind::Disk | Kind::Snapshot => 2,
            Kind::Vnet => 3,
        });
        for (kind, id) in left {
            match kind {
                Kind::Vm => {
                    let running = self.get(&id).is_some_and(|vm| vm.state() == "Deleting");
                    let region = self
                        .get(&id)
                        .and_then(|vm| vm.body["location"].as_str())
                        .unwrap_or_default()
                        .to_owned();
                    if !running {
                        if let Some(vm) = self.get_mut(&id) {
                            vm.set_state("Deleting");
                        }
                        self.preempt(&id);
                        self.begin(Kind::Vm, &region, Aim::Gone(id), self.takes.vm_delete);
                    }
                }
                _ if self.in_use(&id).is_some() => {}
                _ => drop(self.remove(&id)),
            }
        }
        self.plan(AGAIN, Event::Empty { group: group.to_owned(), operation: operation.to_owned(), until });
    }

    fn end_group(&mut self, group: &str, operation: &str, error: Option<(String, String)>) {
        let now = self.now();
        if let Some(operation) = self.operations.get_mut(operation) {
            operation.ended = Some(now);
            operation.error.clone_from(&error);
        }
        match error {
            None => drop(self.remove(group)),
            // It is a group like any other again.
            Some(_) => self.get_mut(group).into_iter().for_each(|group| group.set_state("Succeeded")),
        }
    }

    /// What keeps this from going.
    pub(super) fn in_use(&self, id: &str) -> Option<Answer> {
        self.network_in_use(id).or_else(|| self.disk_in_use(id))
    }

    /// Delete one thing of any kind but a group.
    pub(super) fn delete(&mut self, ask: &Ask, kind: Kind) -> Answer {
        let id = match self.meant(ask, kind) {
            Ok(id) => id,
            Err(refused) => return *refused,
        };
        let Some(thing) = self.get(&id) else { return Answer::empty(204) };
        let region = thing.body["location"].as_str().unwrap_or_default().to_owned();
        if let Some(lock) = self.lock_on(&id) {
            return locked(&id, lock);
        }
        if let Some(refused) = self.in_use(&id) {
            return refused;
        }
        match kind {
            Kind::Vm => return self.delete_machine(ask, &id),
            // The one kind that goes at once.
            Kind::Schedule => {
                self.remove(&id);
                return Answer::empty(200);
            }
            _ => {}
        }
        if let Some(thing) = self.get_mut(&id) {
            thing.set_state("Deleting");
        }
        let takes =
            if kind == Kind::Disk || kind == Kind::Snapshot { self.takes.disk } else { self.takes.network };
        let operation = match self.under_way(&id) {
            Some(running) => running,
            None => self.begin(kind, &region, Aim::Gone(id), takes),
        };
        self.told(Answer::empty(202), ask.base, &operation, Told::Both)
    }

    /// An operation has removed it.
    pub(super) fn gone(&mut self, id: &str) {
        match self.get(id).map(|thing| thing.kind) {
            Some(Kind::Vm) => self.machine_gone(id),
            // It may have been joined to something since it was asked to go.
            Some(_) if self.in_use(id).is_some() => {
                self.get_mut(id).into_iter().for_each(|t| t.set_state("Succeeded"))
            }
            Some(_) => drop(self.remove(id)),
            None => {}
        }
    }

    /// Any resource, as the generic lists show it.
    pub(super) fn resources(&self, ask: &Ask, group: Option<&str>) -> Result<Vec<Value>, Box<Answer>> {
        let filter = Filter::parse(ask.query("$filter").unwrap_or_default())?;
        let expand = ask.query("$expand").unwrap_or_default();
        let group = group.map(str::to_lowercase);
        let shown = self.things().filter(|thing| {
            thing.kind != Kind::Group
                && self.heard(thing)
                && group.as_ref().is_none_or(|group| group_of(&thing.id).to_lowercase() == *group)
                && filter.takes(thing)
        });
        Ok(shown
            .map(|thing| {
                let mut row = json!({"id": thing.id, "name": thing.name(), "type": thing.kind.name()});
                for key in ["location", "tags", "managedBy", "sku"] {
                    // In this list a sku has no more than a name, and of nothing but names.
                    if !thing.body[key].is_null() {
                        row[key] = thing.body[key].clone();
                    }
                }
                for (word, key, value) in [
                    ("createdTime", "createdTime", json!(thing.born.text())),
                    ("provisioningState", "provisioningState", json!(thing.state())),
                ] {
                    if expand.contains(word) {
                        row[key] = value;
                    }
                }
                row
            })
            .collect())
    }

    pub(super) fn groups(&self, ask: &Ask) -> Result<Vec<Value>, Box<Answer>> {
        let filter = Filter::parse(ask.query("$filter").unwrap_or_default())?;
        Ok(self
            .listed(Kind::Group, None)
            .filter(|group| filter.takes(group))
            .map(|group| group.body.clone())
            .collect())
    }

    pub(super) fn tags(&mut self, ask: &Ask, verb: &str) -> Answer {
        let scope = ask.part("scope").to_owned();
        let body = ask.body();
        let Some(thing) = self.get_mut(&scope) else { return Answer::missing(&scope) };
        let mut tags = thing.body["tags"].as_object().cloned().unwrap_or_default();
        let given = body["properties"]["tags"].as_object().cloned().unwrap_or_default();
        match (verb, body["operation"].as_str()) {
            ("CreateOrUpdateAtScope", _) | ("UpdateAtScope", Some("Replace")) => tags = given,
            ("UpdateAtScope", Some("Delete")) => tags.retain(|key, _| !given.contains_key(key)),
            ("UpdateAtScope", _) => tags.extend(given),
            _ => {}
        }
        thing.body["tags"] = Value::Object(tags.clone());
        let id = format!("{}/providers/Microsoft.Resources/tags/default", thing.id);
        Answer::of(
            200,
            json!({"id": id, "name": "default", "type": "Microsoft.Resources/tags", "properties": {"tags": tags}}),
        )
    }

    pub(super) fn provider(&mut self, ask: &Ask, register: bool) -> Answer {
        let name = ask.part("resourceProviderNamespace").to_owned();
        let known = ["Microsoft.Compute", "Microsoft.Network", "Microsoft.DevTestLab", "Microsoft.Resources"];
        let Some(known) = known.into_iter().find(|known| known.eq_ignore_ascii_case(&name)) else {
            return Answer::error(
                404,
                "InvalidResourceNamespace",
                format!("The resource namespace '{name}' is invalid."),
            );
        };
        if register {
            self.unregistered.remove(known);
        }
        let state = if self.unregistered.contains(known) { "NotRegistered" } else { "Registered" };
        let id = format!("/subscriptions/{}/providers/{known}", self.subscription);
        Answer::of(
            200,
            json!({"id": id, "namespace": known, "registrationState": state, "resourceTypes": []}),
        )
    }
}

pub(super) fn locked(id: &str, lock: &str) -> Answer {
    let said = format!(
        "The scope '{id}' cannot perform delete operation because following scope(s) are locked: '{lock}'. Please remove the lock and try again."
    );
    Answer::error(409, "ScopeLocked", said)
}

/// What a list is asked for: one tag, or one type. Tags go with nothing else.
#[derive(Debug, Default)]
struct Filter {
    tag: Option<String>,
    value: Option<String>,
    kind: Option<String>,
}

impl Filter {
    fn parse(text: &str) -> Result<Self, Box<Answer>> {
        let mut filter = Self::default();
        let bad = || {
            let said = format!("The $filter '{text}' is not supported.");
            Box::new(Answer::error(400, "InvalidFilterInQueryString", said))
        };
        if text.is_empty() {
            return Ok(filter);
        }
        for part in text.split(" and ") {
            let (key, value) = part.split_once(" eq ").ok_or_else(bad)?;
            let value = value.trim().strip_prefix('\'').and_then(|v| v.strip_suffix('\'')).ok_or_else(bad)?;
            let value = value.replace("''", "'");
            match key.trim() {
                "tagName" | "tagname" => filter.tag = Some(value),
                "tagValue" | "tagvalue" => filter.value = Some(value),
                "resourceType" => filter.kind = Some(value),
                _ => return Err(bad()),
            }
        }
        let lonely = filter.value.is_some() && filter.tag.is_none();
        if lonely || (filter.tag.is_some() && filter.kind.is_some()) {
            return Err(bad());
        }
        Ok(filter)
    }

    fn takes(&self, thing: &Thing) -> bool {
        let kind = self.kind.as_ref().is_none_or(|kind| kind.eq_ignore_ascii_case(thing.kind.name()));
        let tag = self.tag.as_ref().is_none_or(|tag| {
            thing.tag(tag).is_some_and(|is| self.value.as_ref().is_none_or(|wanted| is == wanted))
        });
        kind && tag
    }
}
