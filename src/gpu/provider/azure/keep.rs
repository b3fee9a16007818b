//! What could not be brought home is kept, and the machine given back all the same: a copy of its disk costs cents a
//! month, the machine dollars an hour. A copy belongs to nobody's run any more: it is in a group of its own, which no
//! run's end deletes, or has a name of its own in the group that is shared, and it is listed by itself.

use super::{
    Azure, Fault,
    arm::Ask,
    names::{Kind, Names, RESOURCES, TAG_HQ, TAG_OWNER, prefix},
};
use crate::gpu::spec::RunId;
use serde_json::{Value, json};
use std::time::Duration;

/// In place of the tag that would make it a thing of the run.
pub const TAG_KEPT: &str = "echoes-kept";

/// Azure takes seconds to promise a copy, whatever there is in it.
const COPY: Duration = Duration::from_secs(300);

impl Azure {
    /// A copy of the machine's disk as it is now. Repeated, it is the first one that is kept.
    pub(super) async fn keep_now(&self, run: &RunId) -> Result<Option<String>, Fault> {
        let names = self.names(run).await?;
        let Some(place) = self.place(&names)? else { return Ok(None) };
        let (group, id) = self.kept_id(&names, &place.group);
        for (id, body) in self.copies(&names, &place.group).await? {
            if body["properties"]["provisioningState"].as_str().is_none_or(|state| state == "Succeeded") {
                return Ok(Some(id));
            }
        }
        let disk = names.id(&place.group, Kind::OsDisk);
        let Some(found) = self.arm.find(&Ask::get(&disk, Kind::OsDisk.version())).await? else {
            return Ok(None);
        };
        let region = &found.body["location"];
        let tags = json!({TAG_HQ: self.hq, TAG_KEPT: run.as_str(), TAG_OWNER: found.body["tags"][TAG_OWNER]
            .as_str().unwrap_or_default()});
        if group != place.group {
            let there = self.arm.find(&Ask::get(names.group_id(&group), RESOURCES)).await?;
            if there.is_none() {
                let body = json!({"location": region, "tags": {TAG_HQ: self.hq}});
                self.arm.send(&Ask::put(names.group_id(&group), RESOURCES, body)).await?;
            }
        }
        let source = json!({"createOption": "Copy", "sourceResourceId": disk});
        let body = json!({"location": region, "tags": tags, "properties": {"creationData": source, "incremental": true}});
        let done = self.arm.carry(&Ask::put(&id, Kind::Snapshot.version(), body), COPY).await?;
        if !done {
            return Err(Fault::lost(&format!("keeping a copy of the disk of {run}"), "Azure is still at it"));
        }
        Ok(Some(id))
    }

    pub(super) async fn forget_now(&self, run: &RunId) -> Result<bool, Fault> {
        let names = self.names(run).await?;
        let Some(place) = self.place(&names)? else { return Ok(true) };
        for (id, _) in self.copies(&names, &place.group).await? {
            self.arm.carry(&Ask::delete(&id, Kind::Snapshot.version()), COPY).await?;
        }
        Ok(self.copies(&names, &place.group).await?.is_empty())
    }

    /// The copies of a run: what this identity may do may have changed since one was made, and with it the group in
    /// which another would be.
    async fn copies(&self, names: &Names, place: &str) -> Result<Vec<(String, Value)>, Fault> {
        let own = names.machine();
        let groups = [Some(place), Some(&own), self.settings.group.as_deref()];
        let mut found: Vec<(String, Value)> = Vec::new();
        for group in groups.into_iter().flatten() {
            let (_, id) = self.kept_id(names, group);
            if found.iter().any(|(known, _)| *known == id) {
                continue;
            }
            match self.arm.find(&Ask::get(&id, Kind::Snapshot.version())).await {
                Ok(answer) => found.extend(answer.map(|answer| (id, answer.body))),
                // Whoever may not even look there has made none there.
                Err(fault) if fault.is_forbidden() && group != place => {}
                Err(fault) => return Err(fault),
            }
        }
        Ok(found)
    }

    /// The group that outlives the run, and the copy in it.
    fn kept_id(&self, names: &Names, place: &str) -> (String, String) {
        let own = place == names.machine();
        // No run is called so.
        let group =
            if own { format!("{}_kept", prefix(&self.hq).trim_end_matches('-')) } else { place.to_owned() };
        let id = format!(
            "{}/providers/{}/{}_kept",
            names.group_id(&group),
            Kind::Snapshot.path(),
            names.machine()
        );
        (group, id)
    }
}
