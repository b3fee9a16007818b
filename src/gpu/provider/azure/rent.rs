//! A machine, found or rented: look, decide (`step`), do, look again, until there is nothing to do but wait.

use super::{
    Azure, Class, Fault, Offer, Refusal, Rent, Spec,
    arm::Ask,
    body::{self, Blueprint, DATA, USER, schedule},
    names::{Kind, NETWORK, Names, RESOURCES, TAG_EXPIRES, stamp},
    network::{Way, same_region},
    operation::{Stand, Watch},
    seen::{Group, Vm},
    step::{Step, Wanted, next},
};
use crate::{
    gpu::{
        provider::Machine,
        spec::{Original, RunId},
        target::{Ssh, Target},
    },
    host::beneath::Beneath,
    web::hold,
};
use anyhow::Context as _;
use serde_json::json;
use std::{
    path::{Path, PathBuf},
    sync::atomic::Ordering,
    time::Duration,
};
use tokio::{io::AsyncReadExt as _, net::TcpStream};

/// Of looking and doing in one call; each takes away one reason to go on.
const ROUNDS: u32 = 12;
/// What a machine is made in: a network or a rule takes seconds, a snapshot up to a minute or two.
const PREPARE: Duration = Duration::from_secs(180);
/// The schedule's part of Azure may not know the machine at once.
const ARMING: time::Duration = time::Duration::minutes(5);
const KNOCK: Duration = Duration::from_secs(3);

impl Azure {
    pub(super) async fn rent_now(
        &self,
        spec: &Spec,
        offer: &Offer,
        copy: Option<&str>,
    ) -> Result<Rent, Fault> {
        let names = self.names(&spec.run).await?;
        let keys = self.kept(&spec.run).keys(&self.host);
        let keys = keys.map_err(|e| Fault::here("making the keys of a run", e))?;
        let group = self.group_for(&names, spec, offer).await?;
        let home = self.home().await?;
        let way = Way::to(&offer.region, home, self.settings.address, &names, &group)?;
        // A disk can be cloned only where it is; elsewhere what is on it is sent.
        let clone = spec.original.as_ref().filter(|original| same_region(&original.region, &offer.region));
        // Nothing is computed on a machine that is made of what was kept.
        let clone = clone.filter(|_| copy.is_none());
        let wanted = Wanted { offer, own_network: way.own, clone: clone.is_some(), copy: copy.is_some() };
        for _ in 0..ROUNDS {
            let seen = self.see(&names, &group, &offer.region).await?;
            let now = self.arm.clock().now();
            let blueprint = Blueprint {
                names: &names,
                group: &group,
                owner: &spec.owner,
                offer,
                way: &way,
                keys: &keys,
                clone,
                name: self.settings.name.as_deref(),
                expires: now + self.settings.lease,
            };
            let done = match next(&seen, &wanted, now) {
                Step::Wait(why) => return Ok(Rent::Coming(why.into())),
                Step::Prepare(kinds) => self.prepare(&blueprint, &kinds, copy.is_none()).await,
                Step::Copy => {
                    let copy = copy.unwrap_or_default();
                    match self.arm.carry(&blueprint.disk(copy), PREPARE).await {
                        Err(fault) if fault.is_absent() => {
                            let said = format!("what was kept is not there any more: {fault}");
                            let hint = Some(format!("echoes-appliance gpu forget {}", spec.run));
                            return Ok(Rent::Refused(Refusal { class: Class::Final, said, hint }));
                        }
                        made => made.map(drop),
                    }
                }
                Step::Order => self.order(&blueprint, copy.is_some()).await,
                Step::Arm => match self.arm.send(&blueprint.schedule()).await {
                    Err(fault) if !fault.is_passing() => {
                        let since = seen.machine.as_ref().and_then(|vm| vm.created).unwrap_or(now);
                        if fault.is_denied() || now - since > ARMING {
                            // Nobody would ever switch it off: better none at all.
                            self.let_go(&names, &group).await?;
                            return Err(fault);
                        }
                        return Ok(Rent::Coming(fault.to_string()));
                    }
                    armed => armed.map(drop),
                },
                Step::Start => {
                    let id = names.id(&group, Kind::Machine);
                    self.arm.send(&Ask::post(format!("{id}/start"), Kind::Machine.version())).await.map(drop)
                }
                Step::Clear => {
                    self.let_go(&names, &group).await?;
                    return Ok(Rent::Coming("the machine of another offer is being given back".into()));
                }
                Step::Sweep => {
                    let disk = Ask::delete(names.id(&group, Kind::OsDisk), Kind::OsDisk.version());
                    match self.arm.carry(&disk, PREPARE).await {
                        Err(fault) if !fault.is_absent() => return Ok(Rent::Coming(fault.to_string())),
                        _ => Ok(()),
                    }
                }
                Step::Refuse(why) => {
                    // Where Azure told us more than the machine knows.
                    let told = self.watched(&names, &group).await.ok().flatten();
                    self.let_go(&names, &group).await?;
                    return Ok(Rent::Refused(refusal(told, why)));
                }
                Step::Reach => {
                    if let Some(fault) = self.watched(&names, &group).await? {
                        self.let_go(&names, &group).await?;
                        return Ok(Rent::Refused(refusal(Some(fault), None)));
                    }
                    let data = clone.map(|original| Path::new(DATA).join(&original.below));
                    return self.reach(&names, seen.machine.as_ref(), &way, data).await;
                }
            };
            match done {
                Ok(()) => {}
                // It may have been done, or somebody is at it: the next look tells.
                Err(fault) if fault.is_passing() => return Ok(Rent::Coming(fault.to_string())),
                Err(fault) => return Err(fault),
            }
        }
        Ok(Rent::Coming("Azure is not yet showing what it has made".into()))
    }

    /// The group of this run, made where it may be; else the one that is named for all.
    async fn group_for(&self, names: &Names, spec: &Spec, offer: &Offer) -> Result<String, Fault> {
        let own = names.machine();
        let doing = format!("making the resource group {own}");
        // What was begun in a place is gone on with there.
        let begun = self.place(names)?.map(|place| place.group);
        if let Some(group) = begun.filter(|group| *group != own) {
            self.note_place(names, &group, &offer.region)?;
            return Ok(group);
        }
        let may = self.may_make_groups();
        let seen = if may { self.see_group(names, &own).await? } else { Group::Forbidden };
        match seen {
            Group::Ours => {
                self.note_place(names, &own, &offer.region)?;
                return Ok(own);
            }
            Group::Foreign => {
                return Err(Fault::here(&doing, "there is one of this name that does not carry our tags"));
            }
            Group::Leaving => {
                return Err(Fault {
                    code: "ResourceGroupBeingDeleted".into(),
                    ..Fault::here(&doing, "it is still being deleted")
                });
            }
            Group::Absent => {
                self.note_place(names, &own, &offer.region)?;
                let expires = self.arm.clock().now() + self.settings.lease;
                let ask = body::group(names, &own, &offer.region, &spec.owner, expires);
                match self.arm.send(&ask).await {
                    Ok(_) => return Ok(own),
                    Err(fault) if fault.is_lost() && self.see_group(names, &own).await? == Group::Ours => {
                        return Ok(own);
                    }
                    Err(fault) if !fault.is_forbidden() => return Err(fault),
                    Err(fault) if self.settings.group.is_none() => return Err(fault),
                    Err(_) => {}
                }
            }
            Group::Forbidden => {}
        }
        self.no_groups.store(true, Ordering::Relaxed);
        let Some(group) = self.settings.group.clone() else {
            let said = "this identity may not, and none is named as gpu.azure.group";
            return Err(Fault {
                code: "AuthorizationFailed".into(),
                status: Some(403),
                ..Fault::here(&doing, said)
            });
        };
        self.note_place(names, &group, &offer.region)?;
        Ok(group)
    }

    async fn prepare(&self, blueprint: &Blueprint<'_>, kinds: &[Kind], of_image: bool) -> Result<(), Fault> {
        let make = async |kind: Kind| match (kind, blueprint.clone) {
            (Kind::Security, _) if kinds.contains(&kind) => {
                self.arm.carry(&blueprint.security(), PREPARE).await
            }
            (Kind::Network, _) if kinds.contains(&kind) => {
                self.arm.carry(&blueprint.network(), PREPARE).await
            }
            (Kind::Snapshot, Some(original)) if kinds.contains(&kind) => {
                self.settle(original)?;
                self.arm.carry(&blueprint.snapshot(&original.disk), PREPARE).await
            }
            _ => Ok(true),
        };
        // The image is needed next, and is known sooner than these are made.
        let image = async {
            let offer = blueprint.offer;
            if of_image { self.image(&offer.size, &offer.region).await.map(drop) } else { Ok(()) }
        };
        let (security, network, snapshot, image) =
            tokio::join!(make(Kind::Security), make(Kind::Network), make(Kind::Snapshot), image);
        security.and(network).and(snapshot)?;
        image
    }

    /// A snapshot has what is on the disk, and not what is on its way there.
    fn settle(&self, original: &Original) -> Result<(), Fault> {
        let here = &original.here;
        let settled = Beneath::open(&self.host, here)
            .and_then(|dir| dir.with_context(|| format!("there is no {}", here.display()))?.sync());
        settled.map_err(|e| Fault::here(&format!("writing {} to its disk", here.display()), format!("{e:#}")))
    }

    /// A machine, and in the same breath what switches it off.
    async fn order(&self, blueprint: &Blueprint<'_>, of_disk: bool) -> Result<(), Fault> {
        let ask = if of_disk {
            let disk = blueprint.names.id(blueprint.group, Kind::OsDisk);
            let disk = self.arm.send(&Ask::get(disk, Kind::OsDisk.version())).await?;
            blueprint.machine_of(&disk.body)
        } else {
            blueprint.machine(&self.image(&blueprint.offer.size, &blueprint.offer.region).await?)
        };
        let answer = self.arm.send(&ask).await?;
        if let Some(watch) = Watch::of(&ask.method, &answer) {
            hold(&self.watched).insert(blueprint.names.run.clone(), watch);
        }
        // What does not come about is tried again on the next round, and judged there.
        let _ = self.arm.send(&blueprint.schedule()).await;
        Ok(())
    }

    /// Why the making failed, where Azure has said so to us.
    async fn watched(&self, names: &Names, group: &str) -> Result<Option<Fault>, Fault> {
        let Some(watch) = hold(&self.watched).get(&names.run).cloned() else { return Ok(None) };
        let thing = Ask::get(names.id(group, Kind::Machine), Kind::Machine.version());
        let doing = format!("making the machine {}", names.machine());
        match self.arm.stand(&doing, &watch, &thing, false).await?.0 {
            Stand::Failed(fault) => Ok(Some(fault)),
            Stand::Running => Ok(None),
            Stand::Done => {
                hold(&self.watched).remove(&names.run);
                Ok(None)
            }
        }
    }

    /// Have the subscription registered for a part of Azure that it never used; whether that could be asked for.
    pub(super) async fn register(&self, namespace: &str) -> bool {
        let Ok(subscription) = self.subscription().await else { return false };
        let path = format!("/subscriptions/{subscription}/providers/{namespace}/register");
        self.arm.send(&Ask::post(path, RESOURCES)).await.is_ok()
    }

    /// Begin to give the machine back: what failed costs money as well, and the next offer's has its name.
    async fn let_go(&self, names: &Names, group: &str) -> Result<(), Fault> {
        let ask = Ask::delete(names.id(group, Kind::Machine), Kind::Machine.version())
            .with("forceDeletion", "true");
        match self.arm.send(&ask).await {
            Ok(_) => {}
            Err(fault) if fault.is_absent() || fault.is_passing() => {}
            Err(fault) => return Err(fault),
        }
        hold(&self.watched).remove(&names.run);
        Ok(())
    }

    /// Once it answers at its door, whatever Azure still has to do: a machine works before its maker has noticed.
    async fn reach(
        &self,
        names: &Names,
        vm: Option<&Vm>,
        way: &Way,
        data: Option<PathBuf>,
    ) -> Result<Rent, Fault> {
        let coming = |why: &str| Ok(Rent::Coming(format!("{}: {why}", names.machine())));
        let Some(interface) = vm.and_then(|vm| vm.interfaces.first()) else {
            return coming("Azure is making it");
        };
        let Some(interface) = self.arm.find(&Ask::get(interface, NETWORK)).await? else {
            return coming("Azure is making its interface");
        };
        let configuration = &interface.body["properties"]["ipConfigurations"][0]["properties"];
        let address = match configuration["publicIPAddress"]["id"].as_str() {
            Some(id) if !way.inside => {
                let address = self.arm.find(&Ask::get(id, NETWORK)).await?;
                address.and_then(|answer| answer.body["properties"]["ipAddress"].as_str().map(str::to_owned))
            }
            None if !way.inside => None,
            _ => configuration["privateIPAddress"].as_str().map(str::to_owned),
        };
        // From the cloud's own answer, but it becomes an argument of ssh: an address and nothing else.
        let Some(address) = address.and_then(|text| text.parse::<std::net::IpAddr>().ok()) else {
            return coming("it has no address yet");
        };
        if !answers(address, self.settings.port).await {
            let state = vm.map_or("unknown", |vm| vm.state.as_str());
            return coming(&format!("it has the address {address} and is starting ({state})"));
        }
        let kept = self.kept(&names.run);
        let host = &self.host;
        host.make_dir(&self.settings.sockets)
            .map_err(|e| Fault::here("making the directory of the connections", e))?;
        let ssh = Ssh {
            user: USER.into(),
            host: address.to_string(),
            port: self.settings.port,
            identity: Some(host.path(&kept.identity())),
            known_hosts: Some(host.path(&kept.known_hosts())),
            control: host.path(&self.settings.sockets.join(names.run.as_str())),
        };
        let home = format!("/home/{USER}/.echoes").into();
        Ok(Rent::Here(Machine { target: Target::Ssh(ssh), home, data }))
    }

    /// Whether it is there. One that its timer has switched off, while nobody was here to put that off, is switched on
    /// again: what was computed is on its disk, and its agent goes on with it.
    pub(super) async fn still_there_now(&self, run: &RunId) -> Result<bool, Fault> {
        let names = self.names(run).await?;
        let Some(place) = self.place(&names)? else { return Ok(false) };
        let Some(vm) = self.see_machine(&names, &place.group).await? else { return Ok(false) };
        let off = matches!(vm.power.as_deref(), Some("deallocated" | "stopped"));
        if off && vm.state == "Succeeded" {
            // The timer first: from then on it costs money.
            self.renew_now(run).await?;
            let id = names.id(&place.group, Kind::Machine);
            self.arm.send(&Ask::post(format!("{id}/start"), Kind::Machine.version())).await?;
        }
        Ok(!matches!(vm.state.as_str(), "Deleting" | "Failed" | "Canceled"))
    }

    pub(super) async fn renew_now(&self, run: &RunId) -> Result<(), Fault> {
        let names = self.names(run).await?;
        let doing = format!("renewing the lease of {run}");
        let Some(place) = self.place(&names)? else {
            return Err(Fault::here(&doing, "nothing was rented for it"));
        };
        let id = names.id(&place.group, Kind::Machine);
        let machine = self.arm.find(&Ask::get(&id, Kind::Machine.version())).await?;
        let Some(machine) = machine else { return Err(Fault::here(&doing, "its machine is gone")) };
        let region = machine.body["location"].as_str().unwrap_or_default();
        let owner = machine.body["tags"][super::names::TAG_OWNER].as_str().unwrap_or_default();
        let until = self.arm.clock().now() + self.settings.lease;
        // Azure's own PATCH of a schedule changes its tags alone: the whole of it is put again.
        self.arm.send(&schedule(&names, &place.group, region, owner, until)).await?;
        let scope = if place.group == names.machine() { names.group_id(&place.group) } else { id };
        let tags = json!({"operation": "Merge", "properties": {"tags": {TAG_EXPIRES: stamp(until)}}});
        let path = format!("{scope}/providers/Microsoft.Resources/tags/default");
        self.arm.send(&Ask::patch(path, RESOURCES, tags)).await.map(drop)
    }
}

/// What a machine that failed means for the next offer. What nobody has a name for may well go better elsewhere.
fn refusal(told: Option<Fault>, seen: Option<(String, String)>) -> Refusal {
    let doing = "making the machine";
    let seen = seen.map(|(code, said)| {
        let said = if said.is_empty() { "no reason given".into() } else { said };
        Fault { code, ..Fault::here(doing, said) }
    });
    let named = |fault: &Fault| fault.class().is_some();
    let fault = told.clone().filter(named).or_else(|| seen.clone().filter(named)).or(told).or(seen);
    let fault = fault.unwrap_or_else(|| Fault::here(doing, "it failed, and Azure does not say why"));
    Refusal { class: fault.class().unwrap_or(Class::Capacity), said: fault.to_string(), hint: fault.hint() }
}

/// Whether there is an ssh server: whose key it has is for ssh to find out.
async fn answers(address: std::net::IpAddr, port: u16) -> bool {
    let greet = async {
        let mut door = TcpStream::connect((address, port)).await.ok()?;
        let mut first = [0; 4];
        door.read_exact(&mut first).await.ok()?;
        Some(first == *b"SSH-")
    };
    tokio::time::timeout(KNOCK, greet).await.ok().flatten() == Some(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_without_a_name_may_go_better_elsewhere() {
        let told = Fault { code: "ZonalAllocationFailed".into(), ..Fault::here("x", "full") };
        assert_eq!(refusal(Some(told), None).class, Class::Capacity);
        assert_eq!(refusal(None, None).class, Class::Capacity);
        let quota = ("QuotaExceeded".to_owned(), String::new());
        assert_eq!(refusal(Some(Fault::here("x", "y")), Some(quota)).class, Class::Quota);
    }
}
