//! Each thing that Azure refuses, as it words it: what it means for the next offer, and what a person is told.

use super::stage::{Stage, T4, offer, spec};
use crate::gpu::provider::{Class, Offer, Provider as _, Refusal, Rent};
use kit::cloud::{Act, Kind, Rule};
use std::time::Duration;

#[track_caller]
fn refused(stage: &Stage, run: &str, offer: &Offer) -> Refusal {
    match stage.rent(&spec(run), offer).unwrap() {
        Rent::Refused(refusal) => refusal,
        other => panic!("{other:?}"),
    }
}

#[test]
fn each_refusal_of_a_machine_means_what_it_means() {
    let Some(stage) = Stage::new(|_| {}) else { return };
    let at_once = |code: &str, message: &str| Act::refuse(409, code, message);
    let table = [
        (Act::quota("Standard NCASv3_T4 Family"), Class::Quota),
        (at_once("OperationNotAllowed", "exceeding approved Total Regional Cores quota."), Class::Quota),
        (at_once("OperationNotAllowed", "exceeding approved LowPriorityCores quota."), Class::Quota),
        (at_once("QuotaExceeded", "Quota."), Class::Quota),
        (Act::sku_not_available(), Class::Capacity),
        (at_once("SpotPriceGreaterThanProvidedMaxPrice", "Price."), Class::Capacity),
        (Act::forbidden("Microsoft.Compute/virtualMachines/write"), Class::Final),
        (
            Act::refuse(
                403,
                "LinkedAuthorizationFailed",
                "'Microsoft.Network/virtualNetworks/subnets/join/action'",
            ),
            Class::Final,
        ),
        (Act::refuse(400, "SubnetIsFull", "Full."), Class::Final),
        (Act::allocation_failed(), Class::Capacity),
        (Act::zonal_allocation_failed(), Class::Capacity),
        (Act::overconstrained(), Class::Capacity),
        (Act::provisioning_timed_out(), Class::Capacity),
        (Act::fails("SomethingUnheardOf", "What?"), Class::Capacity),
    ];
    for (n, (act, class)) in table.into_iter().enumerate() {
        let name = format!("{act:?}");
        let run = format!("refused-{n}");
        stage.cloud.spoil([Rule::once("PUT", "/virtualMachines/", act)]);
        let refusal = refused(&stage, &run, &offer(T4, "eastus"));
        assert_eq!(refusal.class, class, "{name}: {refusal:?}");
        stage.cloud.spoil([]);
        stage.give_back(&spec(&run).run);
    }
    stage.assert_clean();
}

#[test]
fn the_clouds_own_quota_and_restrictions_are_understood() {
    let Some(stage) = Stage::new(|_| {}) else { return };
    stage.cloud.set_quota("Standard NCASv3_T4 Family", 0);
    let refusal = refused(&stage, "no-quota", &offer(T4, "eastus"));
    assert_eq!(refusal.class, Class::Quota);
    let hint = refusal.hint.unwrap();
    assert!(
        hint.starts_with("ask for a limit of 4 Standard NCASv3_T4 Family Cores in eastus: https://"),
        "{hint}"
    );
    stage.cloud.set_quota("Standard NCASv3_T4 Family", 8);
    stage.cloud.restrict(T4, "eastus", Some("2"));
    let zoned = Offer { zone: Some("2".into()), ..offer(T4, "eastus") };
    assert_eq!(refused(&stage, "no-quota", &zoned).class, Class::Capacity);
    let other = Offer { zone: Some("1".into()), ..offer(T4, "eastus") };
    assert!(matches!(stage.rent(&spec("no-quota"), &other).unwrap(), Rent::Here(_)));
    stage.give_back(&spec("no-quota").run);
    stage.assert_clean();
}

#[test]
fn a_token_that_ends_is_replaced() {
    let Some(stage) = Stage::new(|_| {}) else { return };
    let run = spec("tokens");
    stage.azure.list().unwrap();
    stage.cloud.expire_tokens();
    assert!(matches!(stage.rent(&run, &offer(T4, "eastus")).unwrap(), Rent::Here(_)));
    stage.cloud.advance(Duration::from_secs(7000));
    stage.cloud.expire_tokens();
    stage.give_back(&run.run);
    stage.assert_clean();
}

#[test]
fn a_lock_is_named_as_long_as_it_is_there() {
    let Some(stage) = Stage::new(|_| {}) else { return };
    let run = spec("locked");
    assert!(matches!(stage.rent(&run, &offer(T4, "eastus")).unwrap(), Rent::Here(_)));
    let group = stage.cloud.ids(Kind::Group)[0].clone();
    stage.cloud.lock(&group);
    let left = stage.azure.give_back(&run.run).unwrap();
    assert!(left.iter().any(|one| one.contains("ScopeLocked") && one.contains("az lock list")), "{left:#?}");
    stage.cloud.unlock(&group);
    stage.give_back(&run.run);
    stage.assert_clean();
}

#[test]
fn without_a_timer_there_is_no_machine() {
    let Some(stage) = Stage::new(|_| {}) else { return };
    let run = spec("unarmed");
    let denied = Act::forbidden("Microsoft.DevTestLab/schedules/write");
    stage.cloud.spoil([Rule::always("PUT", "/schedules/", denied)]);
    let refusal = refused(&stage, "unarmed", &offer(T4, "eastus"));
    assert_eq!(refusal.class, Class::Final);
    assert!(refusal.hint.unwrap().contains("Microsoft.DevTestLab/schedules/write"));
    stage.cloud.advance(Duration::from_secs(60));
    assert_eq!(stage.cloud.ids(Kind::Vm), Vec::<String>::new());
    stage.cloud.spoil([]);
    stage.give_back(&run.run);
    stage.assert_clean();
}

#[test]
fn a_subscription_that_is_new_to_it_is_registered() {
    let Some(stage) = Stage::new(|_| {}) else { return };
    for part in ["Microsoft.Compute", "Microsoft.Network", "Microsoft.DevTestLab"] {
        stage.cloud.unregister(part);
    }
    let run = spec("fresh");
    let rent = stage.rent(&run, &offer(T4, "eastus")).unwrap();
    assert!(matches!(rent, Rent::Here(_)), "{rent:?}\n{}", stage.cloud.story());
    stage.give_back(&run.run);
    stage.assert_clean();
}

#[test]
fn a_wrong_subscription_is_never_taken_for_an_empty_one() {
    let Some(mut stage) = Stage::new(|_| {}) else { return };
    let run = spec("elsewhere");
    assert!(matches!(stage.rent(&run, &offer(T4, "eastus")).unwrap(), Rent::Here(_)));
    let right = stage.settings.subscription.take();
    stage.settings.subscription = Some("11111111-2222-4333-8444-555555555555".into());
    stage.restart();
    let error = format!("{:#}", stage.azure.give_back(&run.run).unwrap_err());
    assert!(error.contains("but the settings now say"), "{error}");
    // Also where nothing is noted.
    let error = format!("{:#}", stage.azure.give_back(&spec("never").run).unwrap_err());
    assert!(error.contains("SubscriptionNotFound"), "{error}");
    stage.settings.subscription = right;
    stage.restart();
    stage.give_back(&run.run);
    stage.assert_clean();
}

#[test]
fn no_token_and_no_secret_is_in_an_error() {
    let Some(mut stage) = Stage::new(|_| {}) else { return };
    let principal = stage.cloud.principal();
    stage.settings.login = stage.cloud.imds().into();
    stage.restart();
    let error = stage.azure.list().unwrap_err();
    let text = format!("{error:#} {error:?}");
    assert!(text.contains("logging in to Azure"), "{text}");
    assert!(!text.contains(&principal.secret), "{text}");
}
