//! Rented, found again, given back, and nothing left: whatever is lost on the way, and whoever dies.

use super::{
    super::names::prefix,
    stage::{SMALL, Stage, T4, offer, spec},
};
use crate::gpu::{
    offer::{Wish, choose, offers},
    provider::{Class, Machine, Offer, Provider as _, Rent},
    spec::{Original, Spec, Spot},
    target::Target,
};
use kit::cloud::{Act, Kind, Power, Rule, Takes};
use std::{collections::BTreeSet, path::Path, time::Duration};
use time::macros::date;

#[track_caller]
fn here(rent: Rent) -> Machine {
    match rent {
        Rent::Here(machine) => machine,
        other => panic!("{other:?}"),
    }
}

/// This identity may not make the group of a run.
pub fn no_groups(run: &str) -> Rule {
    let forbidden = Act::forbidden("Microsoft.Resources/subscriptions/resourceGroups/write");
    Rule::always("PUT", format!("/resourcegroups/{}{run}?", prefix("hq-1")), forbidden)
}

#[test]
fn a_machine_beside_headquarters_is_rented_found_again_renewed_and_given_back() {
    let Some(mut stage) = Stage::new(|_| {}) else { return };
    let (spec, offer) = (spec("esn-1"), offer(T4, "eastus"));
    let first = here(stage.rent(&spec, &offer).unwrap());
    let Target::Ssh(ssh) = &first.target else { panic!("{first:?}") };
    assert_eq!((ssh.user.as_str(), ssh.host.as_str()), ("echoes", "127.0.0.1"));
    stage.restart();
    assert_eq!(here(stage.rent(&spec, &offer).unwrap()), first);
    assert_eq!(stage.cloud.ids(Kind::Vm).len(), 1);
    // Nobody but headquarters' own network can see it, and nothing is there that it does not need.
    assert_eq!((stage.cloud.ids(Kind::Ip).len(), stage.cloud.ids(Kind::Vnet).len()), (0, 0));
    let machine = stage.cloud.get(&stage.cloud.ids(Kind::Vm)[0]).unwrap();
    assert_eq!(machine["tags"]["echoes-run"], "esn-1");
    let schedule = || stage.cloud.get(&stage.cloud.ids(Kind::Schedule)[0]).unwrap();
    let (before, group) = (schedule(), stage.cloud.ids(Kind::Group)[0].clone());
    stage.cloud.advance(Duration::from_secs(1800));
    stage.azure.renew(&spec.run).unwrap();
    let time = |of: &serde_json::Value| of["properties"]["dailyRecurrence"]["time"].clone();
    assert_ne!(time(&before), time(&schedule()));
    let expires = stage.cloud.get(&group).unwrap()["tags"]["echoes-expires"].clone();
    assert_eq!(expires, schedule()["tags"]["echoes-expires"]);
    let runs: BTreeSet<_> = stage.azure.list().unwrap().into_iter().map(|rented| rented.run).collect();
    assert_eq!(runs, [Some(spec.run.clone())].into());
    stage.give_back(&spec.run);
    stage.assert_clean();
    assert_eq!(stage.azure.list().unwrap(), []);
    let bill = stage.cloud.bill().total();
    stage.cloud.advance(Duration::from_secs(86_400));
    assert_eq!(stage.cloud.bill().total(), bill);
}

#[test]
fn far_from_headquarters_it_has_an_address_that_is_closed_to_all_but_us() {
    let Some(stage) = Stage::new(|settings| settings.address = Some("20.9.9.9".parse().unwrap())) else {
        return;
    };
    let (spec, offer) = (spec("far"), offer(SMALL, "westus2"));
    here(stage.rent(&spec, &offer).unwrap());
    assert_eq!((stage.cloud.ids(Kind::Ip).len(), stage.cloud.ids(Kind::Vnet).len()), (1, 1));
    let rules = stage.cloud.get(&stage.cloud.ids(Kind::Nsg)[0]).unwrap();
    let first = &rules["properties"]["securityRules"][0]["properties"];
    assert_eq!((&first["sourceAddressPrefix"], &first["access"]), (&"20.9.9.9/32".into(), &"Allow".into()));
    stage.give_back(&spec.run);
    stage.assert_clean();
}

#[test]
fn without_the_right_to_make_groups_all_goes_from_the_one_that_is_shared_and_nothing_else_does() {
    let Some(mut stage) = Stage::new(|settings| {
        settings.group = Some("headquarters".into());
        settings.address = Some("20.9.9.9".parse().unwrap());
    }) else {
        return;
    };
    let forbidden = || {
        Rule::always(
            "PUT",
            "/resourcegroups/er-",
            Act::forbidden("Microsoft.Resources/subscriptions/resourceGroups/write"),
        )
    };
    stage.cloud.spoil([forbidden()]);
    for region in ["eastus", "westus2"] {
        let (ours, other) = (spec("shared"), spec("shared-2"));
        here(stage.rent(&ours, &offer(SMALL, region)).unwrap());
        let mine: BTreeSet<_> = stage.cloud.left().into_iter().collect();
        assert!(
            mine.iter().all(|id| id.to_lowercase().contains("/resourcegroups/headquarters/")),
            "{mine:?}"
        );
        // A second run in the same group.
        stage.restart();
        let second = stage.azure.rent(&other, &offer(SMALL, region));
        assert!(second.is_ok(), "{second:?}");
        for _ in 0..40 {
            stage.cloud.advance(Duration::from_secs(5));
            if let Rent::Here(_) = stage.azure.rent(&other, &offer(SMALL, region)).unwrap() {
                break;
            }
        }
        // The lists lag.
        stage.cloud.advance(Duration::from_secs(30));
        let listed = stage.azure.list().unwrap();
        let ids: BTreeSet<_> = listed.iter().map(|rented| rented.id.to_lowercase()).collect();
        let there: BTreeSet<_> = stage.cloud.left().iter().map(|id| id.to_lowercase()).collect();
        assert_eq!(ids, there, "what Azure made for us is listed as well");
        let runs: BTreeSet<_> = listed.into_iter().map(|rented| rented.run).collect();
        assert_eq!(runs, [Some(ours.run.clone()), Some(other.run.clone())].into());
        stage.give_back(&other.run);
        assert_eq!(stage.cloud.left().into_iter().collect::<BTreeSet<_>>(), mine, "the first run is whole");
        stage.give_back(&ours.run);
        stage.assert_clean();
    }
    assert!(
        stage
            .cloud
            .get(&format!("/subscriptions/{}/resourceGroups/headquarters", stage.cloud.subscription()))
            .is_some()
    );
}

/// The disk that headquarters' data are on, as far as this stage has one.
fn original(stage: &Stage, below: &str) -> Original {
    let managed = stage.azure.managed(0).unwrap().unwrap();
    let hq = stage.cloud.get(stage.cloud.headquarters().unwrap()).unwrap();
    assert_eq!(hq["properties"]["storageProfile"]["dataDisks"][0]["managedDisk"]["id"], managed.id.as_str());
    stage.host.make_dir(Path::new("/mnt/echoes_data")).unwrap();
    Original {
        disk: managed.id,
        region: managed.region,
        uuid: "1d4a3c4e-6f0b-4d0e-9a43-0a6d51c2a5d1".into(),
        here: "/mnt/echoes_data".into(),
        below: below.into(),
    }
}

#[test]
fn a_clone_of_the_data_disk_comes_and_goes_with_the_machine() {
    let Some(mut stage) = Stage::new(|_| {}) else { return };
    let spec = Spec { original: Some(original(&stage, "sets")), ..spec("cloned") };
    let machine = here(stage.rent(&spec, &offer(T4, "eastus")).unwrap());
    assert_eq!(machine.data.as_deref(), Some(Path::new("/srv/echoes_data/sets")));
    assert_eq!((stage.cloud.ids(Kind::Snapshot).len(), stage.cloud.ids(Kind::Disk).len()), (1, 2));
    let snapshot = stage.cloud.get(&stage.cloud.ids(Kind::Snapshot)[0]).unwrap();
    let source = &snapshot["properties"]["creationData"]["sourceResourceId"];
    assert_eq!(source, spec.original.as_ref().unwrap().disk.as_str());
    stage.restart();
    assert_eq!(
        here(stage.rent(&spec, &offer(T4, "eastus")).unwrap()),
        machine,
        "found again, with its clone"
    );
    stage.give_back(&spec.run);
    stage.assert_clean();
}

#[test]
fn far_from_the_data_disk_there_is_no_clone_of_it_and_nobody_is_told_that_there_is() {
    let Some(stage) = Stage::new(|settings| settings.address = Some("20.9.9.9".parse().unwrap())) else {
        return;
    };
    let spec = Spec { original: Some(original(&stage, "")), ..spec("wandering") };
    // Nobody has one beside headquarters, and the next offer is elsewhere.
    stage.cloud.spoil([Rule::once("PUT", "/virtualMachines/", Act::allocation_failed())]);
    let Rent::Refused(refusal) = stage.rent(&spec, &offer(T4, "eastus")).unwrap() else { panic!() };
    assert_eq!(refusal.class, Class::Capacity);
    let machine = here(stage.rent(&spec, &offer(SMALL, "westus2")).unwrap());
    assert_eq!(machine.data, None);
    let vm = stage.cloud.get(&stage.cloud.ids(Kind::Vm)[0]).unwrap();
    let disks = vm["properties"]["storageProfile"]["dataDisks"].as_array().map_or(0, Vec::len);
    assert_eq!((&vm["location"], disks), (&"westus2".into(), 0));
    stage.give_back(&spec.run);
    stage.assert_clean();
}

#[test]
fn nothing_is_cloned_that_cannot_be_brought_to_its_disk_first() {
    let Some(stage) = Stage::new(|_| {}) else { return };
    let spec = Spec { original: Some(original(&stage, "")), ..spec("adrift") };
    stage.host.remove_tree(Path::new("/mnt/echoes_data")).unwrap();
    let error = format!("{:#}", stage.rent(&spec, &offer(T4, "eastus")).unwrap_err());
    assert!(error.contains("writing /mnt/echoes_data to its disk: there is no /mnt/echoes_data"), "{error}");
    assert_eq!((stage.cloud.ids(Kind::Snapshot).len(), stage.cloud.ids(Kind::Vm).len()), (0, 0));
    stage.give_back(&spec.run);
    stage.assert_clean();
}

#[test]
fn only_a_disk_that_this_machine_has_can_be_cloned() {
    let Some(stage) = Stage::new(|_| {}) else { return };
    let none = stage.azure.managed(1).unwrap().unwrap_err();
    assert!(none.contains("LUN 1"), "{none}");
    let Some(elsewhere) = Stage::new(|settings| settings.metadata = "http://127.0.0.1:9".into()) else {
        return;
    };
    assert_eq!(elsewhere.azure.managed(0).unwrap().unwrap_err(), "this machine is none of Azure's");
}

#[test]
fn when_there_is_no_room_the_next_offer_is_taken_and_never_two() {
    let Some(stage) = Stage::new(|settings| settings.address = Some("20.9.9.9".parse().unwrap())) else {
        return;
    };
    let spec = spec("fallback");
    let spot = Offer { spot: true, ..offer(T4, "eastus") };
    stage.cloud.spoil([Rule::once("PUT", "/virtualMachines/", Act::allocation_failed())]);
    let Rent::Refused(refusal) = stage.rent(&spec, &spot).unwrap() else { panic!() };
    assert_eq!(refusal.class, Class::Capacity);
    assert!(refusal.said.contains("AllocationFailed"), "{refusal:?}");
    // At once, while Azure has not let go of the first.
    here(stage.rent(&spec, &offer(T4, "westus2")).unwrap());
    let machine = stage.cloud.get(&stage.cloud.ids(Kind::Vm)[0]).unwrap();
    assert_eq!(
        (&machine["location"], &machine["properties"]["priority"]),
        (&"westus2".into(), &serde_json::Value::Null)
    );
    stage.give_back(&spec.run);
    stage.assert_clean();
}

/// Azure goes slowly about what goes with a machine, and keeps its interface for it meanwhile.
#[test]
fn what_azure_does_not_take_away_by_itself_is_taken_away_once_it_lets_go() {
    let takes = Takes { cascade: Duration::from_secs(3600), ..Takes::default() };
    let Some(stage) = Stage::with(takes, |settings| {
        settings.group = Some("headquarters".into());
        settings.address = Some("20.9.9.9".parse().unwrap());
    }) else {
        return;
    };
    let spec = spec("reserved");
    let failing = Rule::once("PUT", "/virtualMachines/", Act::allocation_failed());
    stage.cloud.spoil([no_groups("reserved"), failing]);
    let Rent::Refused(refusal) = stage.rent(&spec, &offer(T4, "westus2")).unwrap() else { panic!() };
    assert_eq!(refusal.class, Class::Capacity);
    here(stage.rent(&spec, &offer(SMALL, "westus2")).unwrap());
    assert!(stage.cloud.ids(Kind::Nic).len() == 2, "the first is still reserved");
    stage.give_back(&spec.run);
    assert!(stage.cloud.story().contains("NicReservedForAnotherVm"));
    stage.assert_clean();
}

#[test]
fn what_could_not_be_brought_home_is_kept_and_the_machine_is_given_back() {
    for shared in [false, true] {
        let Some(stage) = Stage::new(|settings| settings.group = shared.then(|| "headquarters".into()))
        else {
            return;
        };
        if shared {
            stage.cloud.spoil([no_groups("kept")]);
        }
        let spec = spec("kept");
        here(stage.rent(&spec, &offer(T4, "eastus")).unwrap());
        let kept = stage.azure.keep(&spec.run).unwrap().unwrap();
        assert_eq!(stage.azure.keep(&spec.run).unwrap().as_ref(), Some(&kept));
        stage.give_back(&spec.run);
        assert_eq!(stage.azure.list().unwrap(), []);
        assert_eq!(stage.cloud.costing(), std::slice::from_ref(&kept));
        assert_eq!(stage.azure.keep(&spec.run).unwrap().as_ref(), Some(&kept), "also without its machine");
        assert!(stage.azure.forget(&spec.run).unwrap());
        assert_eq!(stage.cloud.costing(), Vec::<String>::new());
        assert_eq!(stage.azure.keep(&spec.run).unwrap(), None);
        stage.cloud.assert_honest();
    }
}

#[test]
fn what_was_kept_is_rented_given_back_and_stays_until_it_is_forgotten() {
    for shared in [false, true] {
        let Some(mut stage) = Stage::new(|settings| settings.group = shared.then(|| "headquarters".into()))
        else {
            return;
        };
        if shared {
            stage.cloud.spoil([no_groups("kept")]);
        }
        let spec = spec("kept");
        here(stage.rent(&spec, &offer(T4, "eastus")).unwrap());
        let first = stage.cloud.get(&stage.cloud.ids(Kind::Vm)[0]).unwrap();
        let kept = stage.azure.keep(&spec.run).unwrap().unwrap();
        stage.give_back(&spec.run);
        stage.restart();
        for size in [SMALL, "Standard_B2ts_v2"] {
            let small = offer(size, "eastus");
            let machine = here(stage.rent_from_copy(&spec, &small, &kept).unwrap());
            // Whoever looks again finds the same one, and whoever lists it sees whose it is.
            stage.restart();
            assert_eq!(here(stage.rent_from_copy(&spec, &small, &kept).unwrap()), machine);
            let body = stage.cloud.get(&stage.cloud.ids(Kind::Vm)[0]).unwrap();
            let properties = &body["properties"];
            assert_eq!(properties["hardwareProfile"]["vmSize"], size);
            assert_eq!(properties["storageProfile"]["osDisk"]["createOption"], "Attach");
            assert_eq!(properties["securityProfile"], first["properties"]["securityProfile"]);
            assert!(properties.get("osProfile").is_none(), "{body}");
            stage.cloud.advance(Duration::from_secs(30));
            let rented = stage.azure.list().unwrap();
            let disk = properties["storageProfile"]["osDisk"]["managedDisk"]["id"].as_str().unwrap();
            assert!(rented.iter().any(|rented| rented.id.eq_ignore_ascii_case(disk)), "{rented:?}");
            assert!(rented.iter().all(|rented| rented.run.as_ref() == Some(&spec.run)), "{rented:?}");
            stage.give_back(&spec.run);
            assert_eq!(stage.cloud.costing(), std::slice::from_ref(&kept), "{}", stage.cloud.story());
        }
        assert!(stage.azure.forget(&spec.run).unwrap());
        assert_eq!(stage.cloud.costing(), Vec::<String>::new());
        let bill = stage.cloud.bill().total();
        stage.cloud.advance(Duration::from_secs(86_400));
        assert_eq!(stage.cloud.bill().total(), bill);
        // There is nothing that a machine could be made of.
        let Rent::Refused(refusal) = stage.rent_from_copy(&spec, &offer(SMALL, "eastus"), &kept).unwrap()
        else {
            panic!("a machine of nothing")
        };
        assert_eq!(refusal.class, Class::Final);
        assert!(refusal.said.contains("what was kept is not there any more"), "{refusal:?}");
        stage.give_back(&spec.run);
        stage.cloud.assert_honest();
        assert_eq!(stage.cloud.impatient(), 0, "{}", stage.cloud.story());
    }
}

/// The disk is there before its machine: what never became one leaves none.
#[test]
fn a_copy_for_which_there_is_no_machine_leaves_no_disk() {
    let Some(mut stage) = Stage::new(|settings| settings.group = Some("headquarters".into())) else { return };
    stage.cloud.spoil([no_groups("kept")]);
    let spec = spec("kept");
    here(stage.rent(&spec, &offer(T4, "eastus")).unwrap());
    let kept = stage.azure.keep(&spec.run).unwrap().unwrap();
    stage.give_back(&spec.run);
    stage.cloud.spoil([no_groups("kept"), Rule::always("PUT", "/virtualMachines/", Act::server_error(500))]);
    for _ in 0..5 {
        let rent = stage.azure.rent_from_copy(&spec, &offer(SMALL, "eastus"), &kept);
        assert!(matches!(rent, Ok(Rent::Coming(_))), "{rent:?}");
        stage.cloud.advance(Duration::from_secs(5));
    }
    assert_eq!((stage.cloud.ids(Kind::Disk).len(), stage.cloud.ids(Kind::Vm).len()), (1, 0));
    stage.restart();
    stage.give_back(&spec.run);
    assert_eq!(stage.cloud.costing(), std::slice::from_ref(&kept));
    // The right to make groups comes back: the copy is found where it was.
    stage.cloud.spoil([]);
    stage.restart();
    here(stage.rent_from_copy(&spec, &offer(SMALL, "eastus"), &kept).unwrap());
    stage.give_back(&spec.run);
    assert!(stage.azure.forget(&spec.run).unwrap());
    stage.assert_clean();
}

#[test]
fn a_failure_that_nobody_watched_is_found_by_the_next_process() {
    let Some(mut stage) = Stage::new(|_| {}) else { return };
    let (spec, offer) = (spec("unwatched"), offer(T4, "eastus"));
    stage.cloud.spoil([Rule::once("PUT", "/virtualMachines/", Act::allocation_failed())]);
    assert!(matches!(stage.azure.rent(&spec, &offer).unwrap(), Rent::Coming(_)));
    stage.restart();
    stage.cloud.advance(Duration::from_secs(120));
    let Rent::Refused(refusal) = stage.rent(&spec, &offer).unwrap() else { panic!() };
    assert_eq!(refusal.class, Class::Capacity);
    stage.give_back(&spec.run);
    stage.assert_clean();
}

#[test]
fn a_machine_that_never_comes_is_given_up() {
    let Some(stage) = Stage::new(|_| {}) else { return };
    let (spec, offer) = (spec("endless"), offer(T4, "eastus"));
    stage.cloud.spoil([Rule::once("PUT", "/virtualMachines/", Act::Hangs)]);
    let mut refusal = None;
    for _ in 0..100 {
        stage.cloud.advance(Duration::from_secs(30));
        if let Rent::Refused(refused) = stage.azure.rent(&spec, &offer).unwrap() {
            refusal = Some(refused);
            break;
        }
    }
    assert_eq!(refusal.unwrap().class, Class::Capacity);
    stage.give_back(&spec.run);
    stage.assert_clean();
}

#[test]
fn a_machine_that_was_taken_away_leaves_nothing() {
    let Some(stage) = Stage::new(|_| {}) else { return };
    let (spec, spot) = (spec("spot"), Offer { spot: true, ..offer(T4, "eastus") });
    here(stage.rent(&spec, &spot).unwrap());
    assert!(stage.azure.still_there(&spec.run).unwrap());
    // In its last half minute it looks well, and is not what the next offer asks for.
    assert!(stage.cloud.evict(&stage.cloud.ids(Kind::Vm)[0]));
    here(stage.rent(&spec, &offer(SMALL, "eastus")).unwrap());
    let machine = stage.cloud.get(&stage.cloud.ids(Kind::Vm)[0]).unwrap();
    assert_eq!(machine["properties"]["hardwareProfile"]["vmSize"], SMALL);
    stage.cloud.evict_now(&stage.cloud.ids(Kind::Vm)[0]);
    stage.azure.give_back(&spec.run).unwrap();
    assert!(!stage.azure.still_there(&spec.run).unwrap());
    stage.give_back(&spec.run);
    stage.assert_clean();
}

#[test]
fn a_machine_that_its_timer_switched_off_is_found_with_its_disk() {
    let Some(mut stage) = Stage::new(|_| {}) else { return };
    let (spec, offer) = (spec("slept"), offer(T4, "eastus"));
    here(stage.rent(&spec, &offer).unwrap());
    let id = stage.cloud.ids(Kind::Vm)[0].clone();
    stage.cloud.advance(stage.settings.lease + Duration::from_secs(60));
    assert_eq!(stage.cloud.power(&id), Some(Power::Deallocated), "nobody renewed it");
    stage.restart();
    assert!(stage.azure.still_there(&spec.run).unwrap());
    stage.cloud.advance(Duration::from_secs(60));
    assert_eq!((stage.cloud.power(&id), stage.cloud.ids(Kind::Vm)), (Some(Power::Running), vec![id.clone()]));
    stage.cloud.advance(stage.settings.lease + Duration::from_secs(60));
    assert_eq!(stage.cloud.power(&id), Some(Power::Deallocated), "nobody renewed it again");
    here(stage.rent(&spec, &offer).unwrap());
    stage.cloud.advance(Duration::from_secs(60));
    assert_eq!((stage.cloud.power(&id), stage.cloud.ids(Kind::Vm)), (Some(Power::Running), vec![id]));
    stage.give_back(&spec.run);
    stage.assert_clean();
}

pub const SPOILS: [fn() -> Act; 7] = [
    || Act::Reset,
    || Act::ResetAfter,
    || Act::server_error(500),
    || Act::server_error(503),
    || Act::Throttle { seconds: 17 },
    || Act::busy(),
    || Act::Garbage,
];

/// A whole life, of which one request is spoilt; how many there were. None without Microsoft's documents.
fn spoilt_life(shared: bool, n: u32, act: fn() -> Act) -> Option<usize> {
    let stage = Stage::new(|settings| {
        settings.group = shared.then(|| "headquarters".into());
        settings.address = Some("20.9.9.9".parse().unwrap());
    })?;
    let region = if shared { "eastus" } else { "westus2" };
    let mut rules = vec![Rule::once("", "/subscriptions/", act()).skip(n)];
    if shared {
        rules.push(no_groups("spoilt"));
    }
    stage.cloud.spoil(rules);
    let spec = spec("spoilt");
    // Whoever hears nothing but trouble says so, and is asked again.
    let rent = (0..3).find_map(|_| stage.rent(&spec, &offer(SMALL, region)).ok());
    let rent = rent.unwrap_or_else(|| panic!("{:?} at {n}\n{}", act(), stage.cloud.story()));
    assert!(matches!(rent, Rent::Here(_)), "{:?} at {n}: {rent:?}\n{}", act(), stage.cloud.story());
    stage.at_most_one();
    stage.give_back(&spec.run);
    stage.assert_clean();
    Some(stage.cloud.asked().len())
}

/// As `spoilt_life`, of what was kept: from asking for a machine of it until nothing is left.
fn spoilt_pull(n: u32, act: fn() -> Act) -> Option<usize> {
    let stage = Stage::new(|_| {})?;
    let spec = spec("spoilt");
    here(stage.rent(&spec, &offer(T4, "eastus")).unwrap());
    let kept = stage.azure.keep(&spec.run).unwrap().unwrap();
    stage.give_back(&spec.run);
    let before = stage.cloud.asked().len();
    stage.cloud.spoil([Rule::once("", "/subscriptions/", act()).skip(n)]);
    let rent = (0..3).find_map(|_| stage.rent_from_copy(&spec, &offer(SMALL, "eastus"), &kept).ok());
    assert!(matches!(rent, Some(Rent::Here(_))), "{:?} at {n}: {rent:?}\n{}", act(), stage.cloud.story());
    stage.at_most_one();
    stage.give_back(&spec.run);
    let forgotten = (0..5).any(|_| {
        stage.cloud.advance(Duration::from_secs(20));
        stage.azure.forget(&spec.run).is_ok_and(|gone| gone)
    });
    assert!(forgotten, "{:?} at {n}\n{}", act(), stage.cloud.story());
    assert_eq!(stage.cloud.costing(), Vec::<String>::new(), "{:?} at {n}\n{}", act(), stage.cloud.story());
    stage.cloud.assert_honest();
    Some(stage.cloud.asked().len() - before)
}

#[test]
fn whatever_answer_is_lost_or_refused_what_was_kept_is_rented_once_and_nothing_is_left() {
    for n in (0u32..).step_by(2) {
        let Some(requests) = spoilt_pull(n, SPOILS[(n as usize / 2) % SPOILS.len()]) else { return };
        if n as usize > requests {
            println!("{n} requests of a pull");
            break;
        }
    }
}

/// Each request of a whole life spoilt once, each in another way than the one before; of the longer one every third.
#[test]
fn whatever_answer_is_lost_or_refused_there_is_one_machine_and_then_none() {
    for shared in [false, true] {
        for n in (0u32..).step_by(if shared { 3 } else { 1 }) {
            let act = SPOILS[(n as usize + 4 * usize::from(shared)) % SPOILS.len()];
            let Some(requests) = spoilt_life(shared, n, act) else { return };
            if n as usize > requests {
                println!("{n} requests, shared group: {shared}");
                break;
            }
        }
    }
}

#[test]
fn what_is_for_rent_is_found_with_its_price_and_its_quota() {
    let Some(stage) = Stage::new(|_| {}) else { return };
    stage.cloud.restrict(T4, "westus2", None);
    let sizes = [T4.to_owned(), "Standard_NC6s_v3".to_owned(), SMALL.to_owned()];
    let markets = stage.azure.markets(&["eastus".into(), "westus2".into()], &sizes).unwrap();
    let wish = Wish { sizes: sizes.to_vec(), spot: Spot::Auto, max_cost: None, max_seconds: Some(3600) };
    let rows = choose(&wish, &markets, date!(2026 - 11 - 24));
    let first = &rows[0];
    assert_eq!((first.offer.size.as_str(), first.offer.spot, first.offer.price), (T4, true, 157_800));
    assert_eq!((first.quota, first.costs, first.gpus), (Some(100), Some(157_800), 1));
    let why = |size: &str, region: &str, spot: bool| {
        let row = rows
            .iter()
            .find(|row| row.offer.size == size && row.offer.region == region && row.offer.spot == spot);
        row.unwrap().rejected.clone().unwrap_or_default()
    };
    assert_eq!(why(T4, "westus2", false), "westus2 does not have it for this subscription");
    assert!(why("Standard_NC6s_v3", "eastus", false).contains("retired on 2025-09-30"));
    assert_eq!(why(SMALL, "eastus", true), "there is none at a spot price");
    assert_eq!(why(SMALL, "eastus", false), "");
    assert_eq!(offers(&rows).last().unwrap().size, SMALL);
    // Where headquarters is, when nobody says where.
    assert_eq!(stage.azure.markets(&[], &sizes).unwrap()[0].region, "eastus");
    stage.cloud.assert_honest();
}
