//! What we ask for is what Microsoft describes, and what Microsoft shows as answers we can read.

use super::super::{
    arm::{Answer, Ask, encoded},
    body::tests::everything,
    market::{sku, usage},
    operation::Watch,
    seen::Vm,
    takes_trusted_launch,
};
use kit::cloud::contract::{Call, Contract};
use reqwest::Method;
use serde_json::Value;
use std::sync::Arc;

fn contract() -> Option<Arc<Contract>> {
    let contract = Contract::beside();
    if contract.is_none() {
        println!("SKIPPED: Microsoft's documents do not lie beside this project");
    }
    contract
}

fn refused(contract: &Contract, ask: &Ask) -> Vec<String> {
    let Some(found) = contract.find(ask.method.as_str(), &ask.path) else {
        return vec![format!("nothing takes {} {}", ask.method, ask.path)];
    };
    let query: Vec<_> = ask.query.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect();
    let call = Call { method: ask.method.as_str(), path: &ask.path, query: &query, body: ask.body.as_ref() };
    contract.refuse(&found, &call)
}

#[test]
fn all_that_is_made_is_asked_for_as_described() {
    let Some(contract) = contract() else { return };
    for ask in everything() {
        assert_eq!(refused(&contract, &ask), Vec::<String>::new(), "{} {}", ask.method, ask.path);
    }
}

#[test]
fn a_request_that_is_spoilt_in_any_way_is_noticed() {
    let Some(contract) = contract() else { return };
    let machine = everything().into_iter().find(|ask| ask.path.contains("virtualMachines")).unwrap();
    let spoil = |how: &dyn Fn(&mut Ask)| {
        let mut ask = machine.clone();
        how(&mut ask);
        refused(&contract, &ask)
    };
    let spoils: [&dyn Fn(&mut Ask); 4] = [
        &|ask| ask.query[0].1 = "2023-01-01".into(),
        &|ask| ask.body.as_mut().unwrap()["properties"]["provisioningState"] = "Succeeded".into(),
        &|ask| {
            ask.body.as_mut().unwrap()["properties"]["storageProfile"]["osDisk"]["deleteOptoin"] =
                "Delete".into()
        },
        &|ask| ask.path = ask.path.replace("virtualMachines", "virtualMachine"),
    ];
    for spoilt in spoils {
        assert!(!spoil(spoilt).is_empty());
    }
}

#[test]
fn every_answer_that_microsoft_shows_can_be_read() {
    let Some(contract) = contract() else { return };
    let mut read = 0;
    for operation in contract.operations() {
        let method: Method = operation.method.parse().unwrap();
        for path in &operation.examples {
            let example = contract.example(path);
            for (status, response) in example["responses"].as_object().unwrap() {
                let header = |name: &str| response["headers"][name].as_str().map(str::to_owned);
                let answer = Answer {
                    status: status.parse().unwrap(),
                    body: response["body"].clone(),
                    operation: header("Azure-AsyncOperation").or_else(|| header("azure-asyncoperation")),
                    location: header("Location").or_else(|| header("location")),
                    retry_after: None,
                };
                let what = format!("{} {status} of {path}", operation.id);
                understood(&operation.id, &method, &answer, &what);
                read += 1;
            }
        }
    }
    println!("{read} answers of {} operations", contract.operations().len());
    assert!(read > 300, "{read}");
}

fn understood(id: &str, method: &Method, answer: &Answer, what: &str) {
    let body = &answer.body;
    let rows = || body["value"].as_array().into_iter().flatten();
    match Watch::of(method, answer) {
        Some(Watch::Operation(url) | Watch::Location(url)) => assert!(url.starts_with("http"), "{what}"),
        None => assert_ne!(answer.status, 202, "{what}: it is not done"),
        Some(Watch::Thing) => {}
    }
    match id {
        "VirtualMachines_Get" => {
            let vm = Vm::read(body);
            let sized = body["properties"]["hardwareProfile"]["vmSize"].is_string();
            assert!(!sized || !vm.size.is_empty(), "{what}");
            assert_eq!(
                vm.interfaces.is_empty(),
                body["properties"]["networkProfile"]["networkInterfaces"][0].is_null()
            );
            let state = body["properties"]["provisioningState"].as_str().unwrap_or_default();
            assert_eq!(vm.state, state, "{what}");
        }
        // One of these counters has no name.
        "Usage_List" => {
            rows().for_each(|row| assert_eq!(usage(row).is_some(), row["name"]["value"].is_string()))
        }
        "ResourceSkus_List" => {
            let machines = rows().filter(|row| row["resourceType"] == "virtualMachines");
            for row in machines {
                let region = row["locations"][0].as_str().unwrap();
                let sku = sku(row, region).unwrap_or_else(|| panic!("{what}: {row}"));
                assert!(sku.vcpus > 0 && !sku.family.is_empty(), "{what}: {row}");
            }
        }
        "VirtualMachineImages_List" => {
            let first: Option<&Value> = body.as_array().and_then(|all| all.first());
            assert!(first.is_none_or(|one| one["name"].is_string()), "{what}");
        }
        "VirtualMachineImages_Get" => assert!(!takes_trusted_launch(&body["properties"]), "{what}"),
        _ => {}
    }
}

#[test]
fn what_is_encoded_is_what_a_url_takes() {
    assert_eq!(encoded("a b/c'd$é"), "a%20b%2Fc%27d%24%C3%A9");
}
