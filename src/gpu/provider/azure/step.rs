//! What comes next on the way to a machine, given what there is. Pure.

use super::{
    names::Kind,
    seen::{Seen, State},
};
use crate::gpu::provider::Offer;
use time::OffsetDateTime;

/// Most machines are made in one or two minutes. One that is not made in this time never will be.
const MAKING: time::Duration = time::Duration::minutes(15);

/// What is to be done next.
#[derive(Debug, PartialEq, Eq)]
pub enum Step {
    /// What a machine is made in.
    Prepare(Vec<Kind>),
    /// The machine's disk, of what was kept.
    Copy,
    Order,
    Arm,
    Start,
    /// Another offer's machine.
    Clear,
    /// What it left.
    Sweep,
    /// This offer has failed.
    Refuse(Option<(String, String)>),
    Reach,
    Wait(&'static str),
}

/// What one run needs.
pub struct Wanted<'a> {
    pub offer: &'a Offer,
    pub own_network: bool,
    pub clone: bool,
    /// Its disk is made before it, of what was kept.
    pub copy: bool,
}

/// Pure.
pub fn next(seen: &Seen, wanted: &Wanted, now: OffsetDateTime) -> Step {
    if let Some(vm) = &seen.machine {
        let late = vm.created.is_some_and(|created| now - created > MAKING);
        let power = vm.power.as_deref();
        return match vm.state.as_str() {
            "Deleting" => Step::Wait("another machine of this run is being given back"),
            // Of another offer: whoever asks for this one is done with it, whatever it still says of itself. A machine
            // that is being taken away looks well until it is gone.
            _ if !vm.is_of(wanted.offer) => Step::Clear,
            "Failed" | "Canceled" => Step::Refuse(vm.fault.clone()),
            "Creating" if late => Step::Refuse(Some((
                "OSProvisioningTimedOut".into(),
                "Azure is still making it after 15 minutes".into(),
            ))),
            // Before anything else: from here on it costs money.
            _ if !seen.armed => Step::Arm,
            _ if power == Some("deallocating") || power == Some("stopping") => {
                Step::Wait("it is being switched off")
            }
            // By its timer, while nobody was here. What was computed is on its disk.
            _ if power == Some("deallocated") || power == Some("stopped") => Step::Start,
            _ => Step::Reach,
        };
    }
    let needed = [
        (Kind::Security, true, &seen.security),
        (Kind::Network, wanted.own_network, &seen.network),
        (Kind::Snapshot, wanted.clone, &seen.snapshot),
    ];
    let needed = || needed.iter().filter(|(_, needed, _)| *needed);
    let missing: Vec<Kind> = needed()
        .filter(|(_, _, state)| matches!(state, State::Absent | State::Failed))
        .map(|(kind, _, _)| *kind)
        .collect();
    if !missing.is_empty() {
        return Step::Prepare(missing);
    }
    if needed().any(|(_, _, state)| **state == State::Busy) {
        return Step::Wait("what it is made in is not ready");
    }
    match (&seen.disk, wanted.copy) {
        (State::Absent, false) | (State::Here, true) => Step::Order,
        (State::Absent, true) => Step::Copy,
        (State::Busy, true) => Step::Wait("its disk is being made of what was kept"),
        // Of a machine that is gone; another of its name cannot be made.
        (State::Failed, true) | (_, false) => Step::Sweep,
    }
}

#[cfg(test)]
mod tests {
    use super::{super::seen::Vm, *};
    use time::macros::datetime;

    const NOW: OffsetDateTime = datetime!(2026-11-24 12:00 UTC);

    fn offer() -> Offer {
        Offer { size: "Standard_B1s".into(), region: "westeurope".into(), zone: None, spot: false, price: 1 }
    }

    fn vm(state: &str, power: Option<&str>) -> Vm {
        Vm {
            id: "/vm".into(),
            state: state.into(),
            power: power.map(Into::into),
            size: "Standard_B1s".into(),
            region: "westeurope".into(),
            zone: None,
            spot: false,
            created: Some(NOW - time::Duration::minutes(3)),
            fault: None,
            interfaces: Vec::new(),
        }
    }

    fn bare() -> Seen {
        let absent = State::Absent;
        Seen {
            security: absent.clone(),
            network: absent.clone(),
            snapshot: absent.clone(),
            machine: None,
            disk: absent,
            armed: false,
        }
    }

    #[test]
    fn things_come_in_the_order_in_which_they_need_each_other() {
        let offer = offer();
        let step = |seen: &Seen, own_network, clone| {
            next(seen, &Wanted { offer: &offer, own_network, clone, copy: false }, NOW)
        };
        assert_eq!(step(&bare(), false, false), Step::Prepare(vec![Kind::Security]));
        let all = vec![Kind::Security, Kind::Network, Kind::Snapshot];
        assert_eq!(step(&bare(), true, true), Step::Prepare(all));
        let mut seen = Seen { security: State::Here, ..bare() };
        assert_eq!(step(&seen, false, false), Step::Order);
        assert_eq!(step(&seen, false, true), Step::Prepare(vec![Kind::Snapshot]));
        assert_eq!(step(&Seen { disk: State::Here, ..seen.clone() }, false, false), Step::Sweep);
        seen.snapshot = State::Busy;
        assert!(matches!(step(&seen, false, true), Step::Wait(_)));
        seen.security = State::Failed;
        assert_eq!(step(&seen, false, false), Step::Prepare(vec![Kind::Security]));
    }

    #[test]
    fn a_machine_of_what_was_kept_waits_for_its_disk() {
        let offer = offer();
        let step = |disk| {
            let seen = Seen { security: State::Here, disk, ..bare() };
            next(&seen, &Wanted { offer: &offer, own_network: false, clone: false, copy: true }, NOW)
        };
        assert_eq!(step(State::Absent), Step::Copy);
        assert!(matches!(step(State::Busy), Step::Wait(_)));
        assert_eq!(step(State::Here), Step::Order);
        assert_eq!(step(State::Failed), Step::Sweep);
    }

    #[test]
    fn a_machine_is_never_without_what_switches_it_off() {
        let offer = offer();
        let step = |vm: Vm, armed| {
            let seen = Seen { machine: Some(vm), armed, ..bare() };
            next(&seen, &Wanted { offer: &offer, own_network: false, clone: false, copy: false }, NOW)
        };
        for state in ["Creating", "Succeeded", "Updating"] {
            assert_eq!(step(vm(state, Some("running")), false), Step::Arm, "{state}");
            assert_eq!(step(vm(state, Some("running")), true), Step::Reach, "{state}");
        }
        assert_eq!(step(vm("Succeeded", Some("deallocated")), true), Step::Start);
        assert!(matches!(step(vm("Succeeded", Some("deallocating")), true), Step::Wait(_)));
        assert!(matches!(step(vm("Deleting", None), true), Step::Wait(_)));
    }

    #[test]
    fn a_machine_that_failed_is_refused_or_makes_room_for_the_next_offer() {
        let offer = offer();
        let step = |vm: Vm| {
            let seen = Seen { machine: Some(vm), armed: true, ..bare() };
            next(&seen, &Wanted { offer: &offer, own_network: false, clone: false, copy: false }, NOW)
        };
        let why = Some(("AllocationFailed".to_owned(), "no room".to_owned()));
        let failed = Vm { fault: why.clone(), ..vm("Failed", None) };
        assert_eq!(step(failed.clone()), Step::Refuse(why));
        assert_eq!(step(Vm { size: "Standard_NC4as_T4_v3".into(), ..failed }), Step::Clear);
        assert_eq!(step(Vm { spot: true, ..vm("Succeeded", Some("running")) }), Step::Clear);
        let endless = Vm { created: Some(NOW - time::Duration::minutes(16)), ..vm("Creating", None) };
        assert!(matches!(step(endless), Step::Refuse(Some((code, _))) if code == "OSProvisioningTimedOut"));
    }
}
