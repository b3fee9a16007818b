//! The daily shut-down of a virtual machine: a resource of its own, that Azure keeps when everybody else is dead.

use super::{
    answer::Answer,
    ask::Ask,
    clock::Moment,
    world::{Event, Kind, Power, World, asked_alone},
};
use serde_json::{Value, json};
use std::time::Duration;
use time::Time;

const DAY: Duration = Duration::from_secs(86_400);

impl World {
    pub(super) fn put_schedule(&mut self, ask: &Ask) -> Answer {
        let id = match self.open_group(ask, Kind::Schedule) {
            Ok(id) => id,
            Err(refused) => return *refused,
        };
        let mut body = Value::Object(asked_alone(ask.body()));
        let properties = &body["properties"];
        let target = properties["targetResourceId"].as_str().unwrap_or_default().to_owned();
        let bad = |said: String| Answer::error(400, "InvalidScheduleProperties", said);
        if properties["taskType"] != "ComputeVmShutdownTask" {
            return bad(format!("Task type {} is not of a virtual machine.", properties["taskType"]));
        }
        if properties["timeZoneId"] != "UTC" {
            return bad(format!("This cloud keeps UTC alone, not {}.", properties["timeZoneId"]));
        }
        let Some(vm) = self.get(&target).filter(|thing| thing.kind == Kind::Vm) else {
            return bad(format!("The target resource {target} does not exist."));
        };
        let wanted = format!("shutdown-computevm-{}", vm.name());
        if !ask.name(Kind::Schedule).eq_ignore_ascii_case(&wanted) {
            return bad(format!("The schedule of {target} is to be called {wanted}."));
        }
        let Some(at) = time_of(&properties["dailyRecurrence"]["time"]) else {
            return bad(format!("{} is no time of day, as in 1830.", properties["dailyRecurrence"]["time"]));
        };
        let enabled = properties["status"] == "Enabled";
        let status = if self.get(&id).is_some() { 200 } else { 201 };
        body["properties"]["provisioningState"] = json!("Succeeded");
        body["properties"]["createdDate"] = json!(self.now().text());
        body["properties"]["uniqueIdentifier"] = json!(self.fresh("schedule"));
        let thing = self.put(Kind::Schedule, &id, body);
        let (shown, version) = (thing.body.clone(), thing.version);
        if enabled {
            let wait = until(self.now(), at);
            self.plan(wait, Event::Shutdown { id, version });
        }
        Answer::of(status, shown)
    }

    pub(super) fn shut_down(&mut self, id: &str, version: u64) {
        let Some(schedule) = self.get(id).filter(|schedule| schedule.version == version) else { return };
        let target = schedule.text("/targetResourceId").unwrap_or_default().to_owned();
        if self.get(&target).is_some_and(|vm| vm.state() == "Succeeded") {
            self.powered(&target, Power::Deallocated);
        }
        self.plan(DAY, Event::Shutdown { id: id.to_owned(), version });
    }
}

/// `1830`, as the schedules write it.
fn time_of(value: &Value) -> Option<Time> {
    let text = value.as_str()?.replace(':', "");
    if text.len() != 4 || !text.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    Time::from_hms(text[..2].parse().ok()?, text[2..].parse().ok()?, 0).ok()
}

/// How long until it is this time of day the next time.
fn until(now: Moment, at: Time) -> Duration {
    let today = now.date().replace_time(at);
    let wait = today - now.date();
    let wait = if wait.is_positive() { wait } else { wait + time::Duration::DAY };
    wait.try_into().unwrap_or(DAY)
}
