//! All that is rented in the name of this headquarters: by its tag, and by name in the group that all runs share, where
//! what Azure makes with a machine carries no tag of ours.

use super::{
    Azure, Fault, Rented,
    arm::Ask,
    names::{RESOURCES, TAG_HQ, prefix, run_of},
};
use serde_json::Value;
use std::collections::BTreeMap;

impl Azure {
    pub(super) async fn list_now(&self) -> Result<Vec<Rented>, Fault> {
        let subscription = self.subscription().await?;
        let filter = format!("tagName eq '{TAG_HQ}' and tagValue eq '{}'", self.hq.replace('\'', "''"));
        let tagged = |path: &str| Ask::get(path, RESOURCES).with("$filter", filter.clone());
        let groups = tagged(&format!("/subscriptions/{subscription}/resourcegroups"));
        let things = tagged(&format!("/subscriptions/{subscription}/resources"));
        let (groups, things, shared) =
            tokio::try_join!(self.arm.list(&groups), self.arm.list(&things), self.shared(&subscription))?;
        let tagged = groups.iter().chain(&things).filter(|one| one["tags"][TAG_HQ] == self.hq.as_str());
        let mut all = BTreeMap::new();
        for one in tagged.chain(&shared) {
            if let Some(rented) = self.rented(one) {
                // Azure writes the same id in more than one way.
                all.insert(rented.id.to_ascii_lowercase(), rented);
            }
        }
        Ok(all.into_values().collect())
    }

    async fn shared(&self, subscription: &str) -> Result<Vec<Value>, Fault> {
        let Some(group) = &self.settings.group else { return Ok(Vec::new()) };
        let path = format!("/subscriptions/{subscription}/resourceGroups/{group}/resources");
        let all = match self.arm.list(&Ask::get(path, RESOURCES)).await {
            Ok(all) => all,
            Err(fault) if fault.is_absent() => Vec::new(),
            Err(fault) => return Err(fault),
        };
        let ours = prefix(&self.hq);
        Ok(all.into_iter().filter(|one| name(one).is_some_and(|name| is_ours(name, &ours))).collect())
    }

    /// None for what is kept on purpose.
    fn rented(&self, one: &Value) -> Option<Rented> {
        if name(one)?.ends_with("_kept") {
            return None;
        }
        let run = run_of(&self.hq, name(one)?, one["tags"].as_object());
        Some(Rented { id: one["id"].as_str()?.to_owned(), run })
    }
}

fn is_ours(name: &str, prefix: &str) -> bool {
    let name = name.to_ascii_lowercase();
    name.strip_prefix("shutdown-computevm-").unwrap_or(&name).starts_with(prefix)
}

fn name(one: &Value) -> Option<&str> {
    one["name"].as_str()
}
