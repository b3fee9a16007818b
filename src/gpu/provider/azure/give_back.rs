//! Everything of a run given back: the machine first, since it costs most, then what Azure lets go of only after it.
//! Done is when each thing's own address answers that it is not there; that Azure took a request proves nothing.

use super::{
    Azure, Fault,
    arm::{Ask, all},
    names::{Kind, Names, RESOURCES, TAG_RUN},
    network::ids,
    seen::Group,
};
use crate::{gpu::spec::RunId, web::hold};

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

/// Of one call. What takes longer is told, and whoever asks again finds it further on: an interface stays reserved for
/// three minutes after its machine.
const CALL: Duration = Duration::from_secs(45);
const BETWEEN: Duration = Duration::from_secs(8);

/// Something of this run that is there.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Thing {
    kind: Kind,
    id: String,
}

/// What can be asked to go now: what nothing else that is there needs. Pure.
fn free(things: &[Thing]) -> Vec<&Thing> {
    let there = |kinds: &[Kind]| things.iter().any(|thing| kinds.contains(&thing.kind));
    let may = |thing: &&Thing| match thing.kind {
        Kind::Machine | Kind::Schedule | Kind::Snapshot => true,
        Kind::Interface | Kind::OsDisk | Kind::DataDisk => !there(&[Kind::Machine]),
        Kind::Address | Kind::Security => !there(&[Kind::Machine, Kind::Interface]),
        Kind::Network => !there(&[Kind::Machine, Kind::Interface, Kind::Security]),
    };
    things.iter().filter(may).collect()
}

/// What one call has asked for.
#[derive(Default)]
struct Effort {
    asked: BTreeSet<String>,
    /// Why Azure would not let go of something.
    held: BTreeMap<String, String>,
}

impl Azure {
    pub(super) async fn give_back_now(&self, run: &RunId) -> Result<Vec<String>, Fault> {
        let names = self.names(run).await?;
        let place = self.place(&names)?;
        let own = names.machine();
        let mut groups: Vec<String> = self.settings.group.iter().cloned().collect();
        let mut regions = Vec::new();
        if let Some(place) = &place {
            groups.push(place.group.clone());
            regions.clone_from(&place.regions);
        }
        groups.retain(|group| *group != own);
        groups.sort();
        groups.dedup();
        let certain = place.as_ref().is_some_and(|place| place.group == own);
        let began = self.arm.clock().now();
        let mut effort = Effort::default();
        let mut quiet = 0;
        loop {
            let mut left = self.give_back_group(&names, certain, &regions, &mut effort).await?;
            for group in &groups {
                let things = self.things(&names, group, &regions).await?;
                self.delete(&free(&things), &mut effort).await?;
                left.extend(things.into_iter().map(|thing| thing.id));
            }
            if left.is_empty() {
                left = self.tagged(&names).await?;
            }
            quiet = if left.is_empty() { quiet + 1 } else { 0 };
            // Twice: what somebody asked for just before may be on its way to being there.
            if quiet == 2 {
                hold(&self.watched).remove(run);
                return Ok(left);
            }
            let spent: Duration = (self.arm.clock().now() - began).try_into().unwrap_or_default();
            if quiet == 0 && spent + BETWEEN > CALL {
                let told = |id: String| match effort.held.get(&id) {
                    Some(why) => format!("{id} ({why})"),
                    None => id,
                };
                return Ok(left.into_iter().map(told).collect());
            }
            self.arm.clock().nap(BETWEEN).await;
        }
    }

    /// The run's own group, with all that is in it; the machine by itself first, which takes a tenth of the time.
    async fn give_back_group(
        &self,
        names: &Names,
        certain: bool,
        regions: &[String],
        effort: &mut Effort,
    ) -> Result<Vec<String>, Fault> {
        let group = names.machine();
        let id = names.group_id(&group);
        let doing = format!("giving back the resource group {group}");
        match self.see_group(names, &group).await? {
            Group::Absent => Ok(Vec::new()),
            // Nobody who may not look can have made it, unless it was made and the right was taken away since.
            Group::Forbidden if !certain => Ok(Vec::new()),
            Group::Forbidden => Err(Fault {
                status: Some(403),
                code: "AuthorizationFailed".into(),
                ..Fault::here(&doing, "this identity may no longer look at it")
            }),
            Group::Foreign => {
                Err(Fault::here(&doing, "it does not carry our tags: it is not ours to delete"))
            }
            Group::Leaving => Ok(vec![id]),
            Group::Ours => {
                let things = self.things(names, &group, regions).await?;
                let machine: Vec<&Thing> =
                    things.iter().filter(|thing| thing.kind == Kind::Machine).collect();
                self.delete(&machine, effort).await?;
                let ask = Ask::delete(&id, RESOURCES)
                    .with("forceDeletionTypes", "Microsoft.Compute/virtualMachines");
                self.let_fall(&id, &ask, effort).await?;
                Ok(std::iter::once(id).chain(things.into_iter().map(|thing| thing.id)).collect())
            }
        }
    }

    async fn delete(&self, things: &[&Thing], effort: &mut Effort) -> Result<(), Fault> {
        for thing in things {
            let mut ask = Ask::delete(&thing.id, thing.kind.version());
            if thing.kind == Kind::Machine {
                // Results are home or not by now; a graceful end costs minutes.
                ask = ask.with("forceDeletion", "true");
            }
            self.let_fall(&thing.id, &ask, effort).await?;
        }
        Ok(())
    }

    /// What Azure refuses is remembered beside what is left: the next look says whether it matters.
    async fn let_fall(&self, id: &str, ask: &Ask, effort: &mut Effort) -> Result<(), Fault> {
        if effort.asked.contains(id) {
            return Ok(());
        }
        match self.arm.send(ask).await {
            // Nobody there to ask.
            Err(fault) if fault.status.is_none() => return Err(fault),
            Err(fault) if !fault.is_absent() => {
                let hint = fault.hint().map(|hint| format!("; try: {hint}")).unwrap_or_default();
                effort.held.insert(id.to_owned(), format!("{}: {}{hint}", fault.code, fault.said));
            }
            // Once is enough: what has begun goes on.
            _ => {
                effort.held.remove(id);
                effort.asked.insert(id.to_owned());
            }
        }
        Ok(())
    }

    /// All of this run's that is in a group: by the names that we gave, by what the machine and its rules say they are
    /// bound to, and by name in the lists, which alone may lag.
    async fn things(&self, names: &Names, group: &str, regions: &[String]) -> Result<Vec<Thing>, Fault> {
        let mut named = Vec::new();
        for kind in Kind::ALL {
            match kind {
                // Azure puts an end of its own to these names.
                Kind::Interface | Kind::Address => {}
                kind if kind.is_many() => {
                    named.extend(regions.iter().map(|region| (kind, names.local(group, kind, region))));
                }
                kind => named.push((kind, names.id(group, kind))),
            }
        }
        let looks = named.iter().map(async |(kind, id)| self.arm.find(&Ask::get(id, kind.version())).await);
        let many = Kind::ALL.into_iter().filter(|kind| kind.is_many());
        let lists = many.map(async |kind| {
            let path = format!("{}/providers/{}", names.group_id(group), kind.path());
            match self.arm.list(&Ask::get(path, kind.version())).await {
                // The group itself is gone.
                Err(fault) if fault.is_absent() => Ok((kind, Vec::new())),
                listed => listed.map(|all| (kind, all)),
            }
        });
        let (looks, lists) = tokio::try_join!(all(looks.collect()), all(lists.collect()))?;
        let mut known: Vec<Thing> = Vec::new();
        let mut bound: Vec<Thing> = Vec::new();
        for ((kind, id), answer) in named.into_iter().zip(looks) {
            let Some(answer) = answer else { continue };
            let properties = &answer.body["properties"];
            let interfaces = match kind {
                Kind::Machine => ids(&properties["networkProfile"]["networkInterfaces"]),
                Kind::Security => ids(&properties["networkInterfaces"]),
                _ => Vec::new(),
            };
            bound.extend(interfaces.into_iter().map(|id| Thing { kind: Kind::Interface, id }));
            known.push(Thing { kind, id });
        }
        for (kind, listed) in lists {
            for one in listed {
                let (Some(id), Some(name)) = (one["id"].as_str(), one["name"].as_str()) else { continue };
                if names.owns(kind, name) {
                    bound.push(Thing { kind, id: id.into() });
                }
            }
        }
        // A machine is no longer bound to an interface that is gone, but it may say so for a while.
        for thing in bound {
            if known.iter().any(|known| known.id.eq_ignore_ascii_case(&thing.id)) {
                continue;
            }
            let Some(answer) = self.arm.find(&Ask::get(&thing.id, thing.kind.version())).await? else {
                continue;
            };
            for configuration in
                answer.body["properties"]["ipConfigurations"].as_array().into_iter().flatten()
            {
                if let Some(id) = configuration["properties"]["publicIPAddress"]["id"].as_str() {
                    let address = Thing { kind: Kind::Address, id: id.into() };
                    if !known.iter().any(|known| known.id.eq_ignore_ascii_case(id)) {
                        known.push(address);
                    }
                }
            }
            known.push(thing);
        }
        known.sort();
        Ok(known)
    }

    /// What carries this run's tag anywhere in the subscription, and is really there.
    async fn tagged(&self, names: &Names) -> Result<Vec<String>, Fault> {
        let filter = format!("tagName eq '{TAG_RUN}' and tagValue eq '{}'", names.run);
        let path = format!("/subscriptions/{}/resources", names.subscription);
        let mut left = Vec::new();
        for one in self.arm.list(&Ask::get(path, RESOURCES).with("$filter", filter)).await? {
            let Some(id) = one["id"].as_str() else { continue };
            // Another headquarters may have a run of the same name.
            if !names.marked(&one["tags"]) {
                continue;
            }
            let there = match Kind::of(id) {
                // The list goes on for a while with what is gone.
                Some(kind) => self.arm.find(&Ask::get(id, kind.version())).await?.is_some(),
                None => true,
            };
            if there {
                left.push(id.into());
            }
        }
        Ok(left)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_asked_to_go_before_what_needs_it() {
        let thing = |kind: Kind| Thing { kind, id: format!("/{kind:?}") };
        let mut left: Vec<Thing> = Kind::ALL.into_iter().map(thing).collect();
        let mut rounds = Vec::new();
        while !left.is_empty() {
            let gone: Vec<Thing> = free(&left).into_iter().cloned().collect();
            assert!(!gone.is_empty(), "{left:?} wait for each other");
            left.retain(|thing| !gone.contains(thing));
            rounds.push(gone.iter().map(|thing| thing.kind).collect::<Vec<_>>());
        }
        use Kind::{Address, DataDisk, Interface, Machine, Network, OsDisk, Schedule, Security, Snapshot};
        assert_eq!(
            rounds,
            [
                vec![Machine, Schedule, Snapshot],
                vec![Interface, OsDisk, DataDisk],
                vec![Address, Security],
                vec![Network],
            ]
        );
    }
}
