//! The simulated cloud is held to Microsoft's own documents and examples, and to what is known of how Azure behaves.

use kit::{
    cloud::{self, Act, Cloud, Kind, Options, Pace, Power, Rule, contract::Contract},
    cloud_client::{self, Client, machine},
    process::CompletedProcess,
};
use serde_json::{Value, json};
use std::{sync::Arc, time::Duration};

const SECOND: Duration = Duration::from_secs(1);

/// A cloud, and somebody who is allowed in for a day.
async fn start() -> Option<(Cloud, Client)> {
    with(Options { token: Duration::from_secs(86_400), ..Options::default() }).await
}

async fn with(options: Options) -> Option<(Cloud, Client)> {
    let cloud = Cloud::start(options)?;
    let client = Client::new(&cloud).await;
    Some((cloud, client))
}

/// Bodies of Microsoft's examples, by what they are of.
fn examples(contract: &Contract) -> Vec<(Arc<cloud::contract::Operation>, String, Value)> {
    let mut all = Vec::new();
    for operation in contract.operations() {
        for path in &operation.examples {
            all.push((Arc::clone(operation), path.clone(), contract.example(path)));
        }
    }
    all
}

#[test]
fn every_example_of_microsofts_is_allowed() {
    let Some(contract) = Contract::beside() else {
        eprintln!("SKIPPED: there is no ../shared/azure-openapi");
        return;
    };
    let (mut bodies, mut answers, mut wrong) = (0, 0, Vec::new());
    for (operation, path, example) in examples(&contract) {
        let name = path.rsplit('/').next().unwrap_or_default();
        if let Some((body, refused)) = contract.example_body(&operation, &example) {
            bodies += 1;
            wrong.extend(refused.iter().map(|why| format!("{} {name} asked {why}", operation.id)));
            assert!(body.is_object());
        }
        for (status, response) in example["responses"].as_object().into_iter().flatten() {
            let Ok(status) = status.parse() else { continue };
            if let Some(body) = response.get("body") {
                answers += 1;
                let refused = contract.doubt(&operation, status, Some(body));
                wrong.extend(
                    refused.iter().map(|why| format!("{} {name} answered {status} {why}", operation.id)),
                );
            }
        }
    }
    assert_eq!((bodies, answers), (142, 336), "how many there are, by the documents' own README");
    // As the README says, four files have null where the schema wants something. All else is as it should be, and no
    // example has a property that is not described.
    let (null, wrong): (Vec<_>, Vec<_>) = wrong.iter().partition(|why| why.contains("null is not of type"));
    let files: std::collections::BTreeSet<_> = null.iter().filter_map(|why| why.split(' ').nth(1)).collect();
    assert_eq!((files.len(), null.len()), (4, 5), "{null:?}");
    assert!(wrong.is_empty(), "{wrong:?}");
}

#[tokio::test]
async fn what_the_documents_do_not_allow_is_refused_and_noted() {
    let Some((cloud, client)) = start().await else { return };
    client.group("run", json!({})).await;
    let group = format!("/subscriptions/{}/resourceGroups/run", cloud.subscription());
    let vm = format!("{group}/providers/Microsoft.Compute/virtualMachines/vm?api-version=2024-07-01");
    let nic = format!("{group}/providers/Microsoft.Network/networkInterfaces/nic?api-version=2024-05-01");
    let good = machine(&cloud, "vm");
    let changed = |pointer: &str, value: Value| {
        let mut body = good.clone();
        let (parent, key) = pointer.rsplit_once('/').unwrap();
        body.pointer_mut(parent).unwrap()[key] = value;
        body
    };
    let cases = [
        ("PUT", vm.replace("2024-07-01", "2024-11-01"), Some(good.clone()), "api-version 2024-11-01"),
        ("PUT", vm.replace("?api-version=2024-07-01", ""), Some(good.clone()), "api-version is missing"),
        ("PUT", format!("{vm}&force=true"), Some(good.clone()), "no query parameter force"),
        ("PUT", vm.clone(), None, "needs a body"),
        ("PUT", vm.clone(), Some(changed("/location", json!(1))), "/location"),
        ("PUT", vm.clone(), Some(changed("/properties/provisioningState", json!("Succeeded"))), "read-only"),
        (
            "PUT",
            vm.clone(),
            Some(changed("/properties/storageProfile/osDisk/deleteOptions", json!("Delete"))),
            "deleteOptions is not described",
        ),
        ("PUT", vm.clone(), Some(changed("/propertys", json!({}))), "/propertys is not described"),
        ("DELETE", vm.clone(), Some(json!({})), "takes no body"),
        ("DELETE", format!("{vm}&forceDeletion=perhaps"), None, "is not a boolean"),
        ("POST", nic.clone(), Some(json!({})), "no operation"),
        (
            "GET",
            format!("/subscriptions/{}/nothing?api-version=2024-07-01", cloud.subscription()),
            None,
            "no operation",
        ),
    ];
    for (n, (method, path, body, why)) in cases.iter().enumerate() {
        let answer = client.call(method, path, body.as_ref()).await;
        assert_eq!((answer.status, answer.code()), (400, "AgainstTheDocuments"), "{method} {path}: {why}");
        let notes = cloud.violations();
        assert_eq!(notes.len(), n + 1, "{notes:?}");
        assert!(notes[n].contains(why), "{why}: {}", notes[n]);
    }
    assert_eq!(cloud.ids(Kind::Vm), [""; 0], "and nothing was done");
    let typo = client.call("GET", &vm.replace("virtualMachines", "virtualMachine"), None).await;
    assert_eq!(typo.status, 501, "a resource of a kind that nobody knows");
    let noted = cases.len() + 1;
    assert_eq!(cloud.violations().len(), noted);

    let stranger = Client { token: "stolen".into(), ..client.clone() };
    assert_eq!(stranger.call("GET", &vm, None).await.status, 401);
    assert_eq!(cloud.violations().len(), noted + 1);
    // One that ran out is another matter: so will every honest one.
    cloud.expire_tokens();
    let answer = client.call("GET", &vm, None).await;
    assert_eq!((answer.status, answer.code()), (401, "ExpiredAuthenticationToken"));
    assert_eq!(cloud.violations().len(), noted + 1);
}

#[tokio::test]
async fn a_machine_takes_with_it_what_was_marked_and_leaves_the_rest_which_costs() {
    let Some((cloud, client)) = start().await else { return };
    client.group("run", json!({"echoes-run": "r1"})).await;
    for (name, delete) in [("all", true), ("none", false)] {
        let mut body = machine(&cloud, name);
        if !delete {
            cloud_client::strip(&mut body, "deleteOption");
        }
        let answer = client.put_machine("run", name, &body).await;
        assert_eq!(answer.status, 201, "{}", answer.body);
        assert_eq!(answer.body["properties"]["provisioningState"], "Creating");
        assert!(answer.body["properties"]["osProfile"]["customData"].is_null());
        let poll = answer.header("azure-asyncoperation").to_owned();
        assert_eq!(client.get(&poll).await.body["status"], "InProgress");
        cloud.advance(60 * SECOND);
        assert_eq!(client.get(&poll).await.body["status"], "Succeeded");
    }
    assert_eq!(cloud.left().len(), 1 + 2 * 4, "{:?}", cloud.left());
    // Two machines a T4 at 0.526, two disks, two addresses.
    cloud.advance(3600 * SECOND);
    let hour = 2 * (526_000 + 64 * cloud::catalog::PREMIUM_GB + cloud::catalog::PUBLIC_IP);
    let (total, least) = (cloud.bill().total(), hour);
    assert!(total > least && total < least * 105 / 100, "{}", cloud.bill());

    for name in ["all", "none"] {
        let answer = client.delete_machine("run", name).await;
        assert_eq!(answer.status, 202);
        assert!(answer.header("location").contains("monitor=true"));
    }
    cloud.advance(300 * SECOND);
    let left = cloud.left();
    assert_eq!(left.len(), 4, "the group, and NIC, IP and disk of one: {left:?}");
    assert_eq!(cloud.costing().len(), 2, "a disk and an address are still paid for");
    let before = cloud.bill().total();
    cloud.advance(3600 * SECOND);
    let waste = cloud.bill().total() - before;
    assert!(
        waste.abs_diff(64 * cloud::catalog::PREMIUM_GB + cloud::catalog::PUBLIC_IP) <= 2,
        "{}",
        cloud.bill()
    );

    // A group goes with all that is in it.
    let answer = client.call("DELETE", &client.path("run", "", "2024-07-01"), None).await;
    assert_eq!(answer.status, 202);
    assert_eq!(client.call("HEAD", &client.path("run", "", "2024-07-01"), None).await.status, 204);
    cloud.advance(120 * SECOND);
    assert_eq!(client.call("HEAD", &client.path("run", "", "2024-07-01"), None).await.status, 404);
    assert_eq!(client.get(answer.header("location")).await.status, 200);
    assert_eq!(client.call("DELETE", &client.path("run", "", "2024-07-01"), None).await.status, 404);
    assert_eq!(cloud.left(), [""; 0]);
    cloud.assert_honest();
}

#[tokio::test]
async fn a_failed_allocation_leaves_the_machine_and_keeps_its_interface_for_three_minutes() {
    let Some((cloud, client)) = start().await else { return };
    client.group("run", json!({})).await;
    let nic = client.path("run", "Microsoft.Network/networkInterfaces/nic", "2024-05-01");
    let answer = client.call("PUT", &nic, Some(&cloud_client::nic(&cloud))).await;
    assert_eq!(answer.status, 201, "{}", answer.body);
    let mut body = machine(&cloud, "vm");
    body["properties"]["networkProfile"] = json!({"networkInterfaces": [{"id": answer.body["id"]}]});

    cloud.spoil([Rule::once("PUT", "/virtualMachines/", Act::allocation_failed())]);
    let answer = client.put_machine("run", "vm", &body).await;
    assert_eq!(answer.status, 201, "the PUT itself is well");
    cloud.advance(60 * SECOND);
    let status = client.get(answer.header("azure-asyncoperation")).await;
    assert_eq!((status.status, &status.body["status"]), (200, &json!("Failed")));
    assert_eq!(status.body["error"]["code"], "AllocationFailed");
    let vm = client.path("run", "Microsoft.Compute/virtualMachines/vm", "2024-07-01");
    assert_eq!(client.call("GET", &vm, None).await.body["properties"]["provisioningState"], "Failed");
    assert_eq!(cloud.costing().len(), 1, "its disk: {:?}", cloud.costing());

    assert_eq!(client.call("DELETE", &nic, None).await.code(), "NicInUse");
    assert_eq!(client.delete_machine("run", "vm").await.status, 202);
    cloud.advance(40 * SECOND);
    assert_eq!(client.call("GET", &vm, None).await.status, 404);
    let refused = client.call("DELETE", &nic, None).await;
    assert_eq!((refused.status, refused.code()), (400, "NicReservedForAnotherVm"));
    cloud.advance(180 * SECOND);
    assert_eq!(client.call("DELETE", &nic, None).await.status, 202);
    cloud.advance(10 * SECOND);
    assert_eq!(client.call("DELETE", &nic, None).await.status, 204, "what is gone may be deleted once more");
    cloud.assert_honest();
}

#[tokio::test]
async fn a_lost_answer_is_made_good_by_asking_the_same_again() {
    let Some((cloud, client)) = start().await else { return };
    client.group("run", json!({})).await;
    let body = machine(&cloud, "vm");
    cloud.spoil([Rule::once("PUT", "/virtualMachines/", Act::ResetAfter)]);
    assert!(client.try_put_machine("run", "vm", &body).await.is_err());
    assert_eq!(cloud.ids(Kind::Vm).len(), 1, "it was done");
    let answer = client.put_machine("run", "vm", &body).await;
    assert_eq!(answer.status, 200);
    cloud.advance(60 * SECOND);
    assert_eq!(client.get(answer.header("azure-asyncoperation")).await.body["status"], "Succeeded");
    assert_eq!((cloud.ids(Kind::Vm).len(), cloud.ids(Kind::Nic).len()), (1, 1));

    cloud.spoil([Rule::once("PUT", "/virtualMachines/", Act::Reset)]);
    assert!(client.try_put_machine("run", "other", &machine(&cloud, "other")).await.is_err());
    assert_eq!(cloud.ids(Kind::Vm).len(), 1, "this one was not");
    let story = cloud.story();
    assert_eq!(story.matches("lost").count(), 2, "{story}");
    cloud.assert_honest();
}

#[tokio::test]
async fn who_does_not_wait_as_told_waits_anew() {
    let Some((cloud, client)) = start().await else { return };
    let groups = format!("/subscriptions/{}/resourcegroups?api-version=2024-07-01", cloud.subscription());
    cloud.spoil([Rule::once("GET", "/resourcegroups", Act::Throttle { seconds: 20 })]);
    for wait in [0, 19, 19] {
        cloud.advance(wait * SECOND);
        let answer = client.call("GET", &groups, None).await;
        assert_eq!((answer.status, answer.header("retry-after")), (429, "20"));
    }
    cloud.advance(20 * SECOND);
    assert_eq!(client.call("GET", &groups, None).await.status, 200);
    assert_eq!(cloud.impatient(), 2);
    cloud.assert_honest();
}

#[tokio::test]
async fn lists_are_late_come_in_pieces_and_know_tags() {
    let Some((cloud, client)) = start().await else { return };
    for n in 0..5 {
        client.group(&format!("g{n}"), json!({"echoes-run": format!("r{}", n % 2)})).await;
    }
    assert_eq!(client.rows("/resourcegroups", "").await.len(), 1, "the headquarters' alone");
    cloud.advance(10 * SECOND);
    assert_eq!(client.rows("/resourcegroups", "").await.len(), 6);
    let odd = "&$filter=tagName eq 'echoes-run' and tagValue eq 'r1'";
    assert_eq!(client.rows("/resourcegroups", odd).await.len(), 2);
    let mut body = machine(&cloud, "vm");
    body["tags"] = json!({"echoes-run": "r1"});
    client.put_machine("g1", "vm", &body).await;
    assert_eq!(client.rows("/resources", odd).await.len(), 0, "not yet");
    cloud.advance(60 * SECOND);
    let rows = client.rows("/resources", odd).await;
    assert_eq!(rows.len(), 1, "the machine; what came with it has no tags: {rows:?}");
    assert_eq!(client.rows("/resources", "").await.len(), 5 + 4);
    cloud.assert_honest();
}

#[tokio::test]
async fn a_spot_machine_is_warned_and_then_taken_away() {
    let Some((cloud, client)) = start().await else { return };
    client.group("run", json!({})).await;
    let mut body = machine(&cloud, "vm");
    body["properties"]["priority"] = json!("Spot");
    body["properties"]["evictionPolicy"] = json!("Delete");
    body["properties"]["billingProfile"] = json!({"maxPrice": -1.0});
    client.put_machine("run", "vm", &body).await;
    cloud.advance(60 * SECOND);
    let vm = client.path("run", "Microsoft.Compute/virtualMachines/vm/simulateEviction", "2024-07-01");
    assert_eq!(client.call("POST", &vm, None).await.status, 204);
    cloud.advance(29 * SECOND);
    assert_eq!(cloud.ids(Kind::Vm).len(), 1);
    cloud.advance(20 * SECOND);
    assert_eq!(cloud.left().len(), 1, "all was marked to go with it: {:?}", cloud.left());

    // By default it is only switched off, and stays.
    body["properties"].as_object_mut().unwrap().remove("evictionPolicy");
    client.put_machine("run", "vm", &body).await;
    cloud.advance(60 * SECOND);
    let id = cloud.ids(Kind::Vm)[0].clone();
    cloud.evict_now(&id);
    assert_eq!(cloud.power(&id), Some(Power::Deallocated));
    assert_eq!(cloud.costing().len(), 2, "disk and address");
    cloud.assert_honest();
}

#[tokio::test]
async fn a_lock_a_quota_and_a_full_region_are_refused_as_azure_does() {
    let Some((cloud, client)) = start().await else { return };
    client.group("run", json!({})).await;
    let body = machine(&cloud, "vm");
    cloud.set_quota("Standard NCASv3_T4 Family", 0);
    let refused = client.put_machine("run", "vm", &body).await;
    assert_eq!((refused.status, refused.code()), (409, "OperationNotAllowed"));
    assert!(refused.body["error"]["message"].as_str().unwrap().contains("NCASv3_T4 Family Cores quota"));
    cloud.set_quota("Standard NCASv3_T4 Family", 4);
    cloud.restrict("Standard_NC4as_T4_v3", "eastus", Some("2"));
    let mut zonal = body.clone();
    zonal["zones"] = json!(["2"]);
    assert_eq!(client.put_machine("run", "vm", &zonal).await.code(), "SkuNotAvailable");
    assert_eq!(cloud.left().len(), 1, "what was refused left nothing: {:?}", cloud.left());
    assert_eq!(client.put_machine("run", "vm", &body).await.status, 201);
    let usages = client.rows("/providers/Microsoft.Compute/locations/eastus/usages", "").await;
    let t4 = usages.iter().find(|row| row["name"]["value"] == "Standard NCASv3_T4 Family").unwrap();
    assert_eq!((&t4["currentValue"], &t4["limit"]), (&json!(4), &json!(4)));
    let retired = json!("Standard_NC6s_v3");
    let mut gone = body.clone();
    gone["properties"]["hardwareProfile"]["vmSize"] = retired;
    assert_eq!(client.put_machine("run", "old", &gone).await.code(), "InvalidParameter");

    let group = format!("/subscriptions/{}/resourceGroups/run", cloud.subscription());
    cloud.advance(60 * SECOND);
    cloud.lock(&group);
    assert_eq!(client.delete_machine("run", "vm").await.code(), "ScopeLocked");
    let at = client.path("run", "", "2024-07-01");
    assert_eq!(client.call("DELETE", &at, None).await.code(), "ScopeLocked");
    cloud.unlock(&group);
    assert_eq!(client.call("DELETE", &at, None).await.status, 202);
    assert_eq!(client.put_machine("run", "late", &body).await.code(), "ResourceGroupBeingDeleted");
    cloud.advance(120 * SECOND);
    assert_eq!(cloud.left(), [""; 0]);
    cloud.assert_honest();
}

#[tokio::test]
async fn the_shut_down_schedule_switches_off_and_outlives_its_machine() {
    let Some((cloud, client)) = start().await else { return };
    client.group("run", json!({})).await;
    client.put_machine("run", "vm", &machine(&cloud, "vm")).await;
    cloud.advance(60 * SECOND);
    let id = cloud.ids(Kind::Vm)[0].clone();
    let at = client.path("run", "Microsoft.DevTestLab/schedules/shutdown-computevm-vm", "2018-09-15");
    let body = |hours: i64| {
        let when = cloud.now().date() + time::Duration::hours(hours);
        json!({
            "location": "eastus",
            "properties": {
                "status": "Enabled",
                "taskType": "ComputeVmShutdownTask",
                "dailyRecurrence": {"time": format!("{:02}{:02}", when.hour(), when.minute())},
                "timeZoneId": "UTC",
                "targetResourceId": id,
                "notificationSettings": {"status": "Disabled"},
            },
        })
    };
    assert_eq!(client.call("PUT", &at, Some(&body(2))).await.status, 201);
    // Renewed in time, the first is forgotten.
    cloud.advance(3600 * SECOND);
    assert_eq!(client.call("PUT", &at, Some(&body(2))).await.status, 200);
    cloud.advance(90 * 60 * SECOND);
    assert_eq!(cloud.power(&id), Some(Power::Running));
    cloud.advance(31 * 60 * SECOND);
    assert_eq!(cloud.power(&id), Some(Power::Deallocated));
    client.delete_machine("run", "vm").await;
    cloud.advance(60 * SECOND);
    assert_eq!(cloud.ids(Kind::Schedule).len(), 1);
    assert_eq!(client.call("DELETE", &at, None).await.status, 200);
    cloud.assert_honest();
}

#[tokio::test]
async fn the_headquarters_is_found_through_the_metadata_service_and_its_identity_opens_the_door() {
    let Some((cloud, client)) = start().await else { return };
    let ask = |path: &str| format!("{}{path}", cloud.imds());
    let instance = client.imds(&ask("/metadata/instance?api-version=2021-02-01")).await;
    let vm = instance["compute"]["resourceId"].as_str().unwrap().to_owned();
    assert_eq!(Some(vm.as_str()), cloud.headquarters());
    let bare = client.http.get(ask("/metadata/instance?api-version=2021-02-01")).send().await.unwrap();
    assert_eq!(bare.status(), 400, "without its header");
    let vm = client.call("GET", &format!("{vm}?api-version=2024-07-01"), None).await.body;
    let nic = vm["properties"]["networkProfile"]["networkInterfaces"][0]["id"].as_str().unwrap().to_owned();
    let nic = client.call("GET", &format!("{nic}?api-version=2024-05-01"), None).await.body;
    assert_eq!(nic["properties"]["ipConfigurations"][0]["properties"]["subnet"]["id"], cloud.subnet());

    let at = "/metadata/identity/oauth2/token?api-version=2018-02-01&resource=https://management.azure.com/";
    let token = client.imds(&ask(at)).await;
    assert!(token["expires_on"].as_str().unwrap().parse::<u64>().unwrap() > cloud.now().seconds());
    let managed = Client { token: token["access_token"].as_str().unwrap().into(), ..client.clone() };
    assert_eq!(managed.rows("/resourcegroups", "").await.len(), 1);
    cloud.assert_honest();
}

#[tokio::test]
async fn what_can_be_rented_is_listed_with_its_price() {
    let Some((cloud, client)) = start().await else { return };
    cloud.restrict("Standard_NC40ads_H100_v5", "eastus", None);
    let skus = client.rows("/providers/Microsoft.Compute/skus", "&$filter=location eq 'eastus'").await;
    assert_eq!(skus.len(), cloud::catalog::SIZES.len());
    let refused: Vec<_> = skus.iter().filter(|sku| sku["restrictions"][0].is_object()).collect();
    assert_eq!((refused.len(), &refused[0]["name"]), (1, &json!("Standard_NC40ads_H100_v5")));
    let filter = "serviceName eq 'Virtual Machines' and armRegionName eq 'eastus' and armSkuName eq 'Standard_NC4as_T4_v3' and priceType eq 'Consumption'";
    let at = reqwest::Url::parse_with_params(
        &format!("{}/api/retail/prices", cloud.prices()),
        [("$filter", filter)],
    );
    let answer: Value = client.http.get(at.unwrap()).send().await.unwrap().json().await.unwrap();
    let rows = answer["Items"].as_array().unwrap();
    assert_eq!(rows.len(), 5, "Windows, spot and low priority rows are in it too");
    let taken: Vec<_> = rows
        .iter()
        .filter(|row| !row["productName"].as_str().unwrap().contains("Windows"))
        .map(|row| row["retailPrice"].as_f64().unwrap())
        .collect();
    assert!(taken.contains(&0.526), "{taken:?}");
    let images = "/providers/Microsoft.Compute/locations/eastus/publishers/microsoft-dsvm/artifacttypes/vmimage/offers/ubuntu-hpc/skus/2204/versions";
    let at = format!(
        "/subscriptions/{}{images}?api-version=2024-07-01&$top=1&$orderby=name desc",
        cloud.subscription()
    );
    let newest = client.call("GET", &at, None).await.body[0]["name"].as_str().unwrap().to_owned();
    let at = format!("/subscriptions/{}{images}/{newest}?api-version=2024-07-01", cloud.subscription());
    assert_eq!(client.call("GET", &at, None).await.body["properties"]["hyperVGeneration"], "V2");
    cloud.assert_honest();
}

#[tokio::test]
async fn a_disk_is_cloned_from_a_snapshot_of_one_in_use() {
    let Some((cloud, client)) = start().await else { return };
    client.group("run", json!({})).await;
    let data = cloud.get(cloud.headquarters().unwrap()).unwrap();
    let data = data["properties"]["storageProfile"]["dataDisks"][0]["managedDisk"]["id"].clone();
    let snapshot = client.path("run", "Microsoft.Compute/snapshots/snap", "2024-03-02");
    let body = json!({
        "location": "eastus",
        "properties": {"creationData": {"createOption": "Copy", "sourceResourceId": data}, "incremental": true},
    });
    assert_eq!(client.call("PUT", &snapshot, Some(&body)).await.status, 202);
    cloud.advance(10 * SECOND);
    let made = client.call("GET", &snapshot, None).await.body;
    assert_eq!(made["properties"]["provisioningState"], "Succeeded");
    let mut body = machine(&cloud, "vm");
    body["properties"]["storageProfile"]["dataDisks"] = json!([{
        "lun": 0, "createOption": "Copy", "sourceResource": {"id": data}, "deleteOption": "Delete",
    }]);
    assert_eq!(client.put_machine("run", "vm", &body).await.status, 409, "of the disk itself: it is in use");
    body["properties"]["storageProfile"]["dataDisks"][0]["sourceResource"]["id"] = made["id"].clone();
    let answer = client.put_machine("run", "vm", &body).await;
    assert_eq!(answer.status, 201, "{}", answer.body);
    let disk = answer.body["properties"]["storageProfile"]["dataDisks"][0]["managedDisk"]["id"].clone();
    cloud.advance(60 * SECOND);
    let at = format!("{}?api-version=2024-03-02", disk.as_str().unwrap());
    assert_eq!(client.call("DELETE", &at, None).await.status, 409, "attached");
    client.delete_machine("run", "vm").await;
    cloud.advance(60 * SECOND);
    assert_eq!(client.call("GET", &at, None).await.status, 404, "it went with the machine");
    assert_eq!(cloud.ids(Kind::Snapshot).len(), 1, "this did not");
    cloud.assert_honest();
}

#[tokio::test]
async fn who_polls_gets_on_where_time_moves_with_requests() {
    let options = Options { pace: Pace::PerRequest(10 * SECOND), ..Options::default() };
    let Some((cloud, client)) = with(options).await else { return };
    client.group("run", json!({})).await;
    let answer = client.put_machine("run", "vm", &machine(&cloud, "vm")).await;
    let mut polls = 0;
    while client.get(answer.header("azure-asyncoperation")).await.body["status"] == "InProgress" {
        polls += 1;
        assert!(polls < 10);
    }
    assert!(polls >= 3);
    cloud.assert_honest();
}

#[tokio::test]
async fn each_of_microsofts_answers_can_be_put_in_the_place_of_the_clouds_own() {
    let Some((cloud, client)) = start().await else { return };
    let contract = Contract::beside().unwrap();
    let mut said = 0;
    for (operation, path, example) in examples(&contract) {
        for (status, response) in example["responses"].as_object().into_iter().flatten() {
            let Ok(status) = status.parse() else { continue };
            let body = response.get("body").cloned();
            cloud.spoil([Rule::once(
                "GET",
                "/virtualMachines",
                Act::Say { status, headers: Vec::new(), body: body.clone() },
            )]);
            let at = client.path("run", "Microsoft.Compute/virtualMachines", "2024-07-01");
            let told = client.call("GET", &at, None).await;
            assert_eq!(
                (told.status, told.body),
                (status, body.unwrap_or_default()),
                "{} {path}",
                operation.id
            );
            said += 1;
        }
    }
    assert!(said > 300, "{said}");
    cloud.assert_honest();
}

#[tokio::test]
async fn whoever_is_to_be_killed_before_or_after_a_request_is() {
    let Some((cloud, client)) = start().await else { return };
    client.group("run", json!({})).await;
    let killed = Arc::new(std::sync::Mutex::new(Vec::new()));
    let kill = |word: &'static str| {
        let killed = Arc::clone(&killed);
        Arc::new(move || killed.lock().unwrap().push(word)) as cloud::Hook
    };
    cloud.spoil([
        Rule::once("PUT", "/virtualMachines/", Act::Before(kill("before"))),
        Rule::once("PUT", "/virtualMachines/", Act::After(kill("after"))),
    ]);
    for (word, machines) in [("before", 0), ("after", 1)] {
        assert!(client.try_put_machine("run", "vm", &machine(&cloud, "vm")).await.is_err());
        assert_eq!(killed.lock().unwrap().last(), Some(&word));
        assert_eq!(cloud.ids(Kind::Vm).len(), machines);
    }
    cloud.assert_honest();
}

#[tokio::test]
async fn a_machine_that_never_says_that_it_is_up_is_paid_for_and_one_that_never_came_is_not() {
    let Some((cloud, client)) = start().await else { return };
    client.group("run", json!({})).await;
    cloud.spoil([
        Rule::once("PUT", "/virtualMachines/silent", Act::provisioning_timed_out()),
        Rule::once("PUT", "/virtualMachines/absent", Act::zonal_allocation_failed()),
        Rule::once("PUT", "/virtualMachines/stuck", Act::Hangs),
    ]);
    let mut poll = String::new();
    for name in ["silent", "absent", "stuck"] {
        let answer = client.put_machine("run", name, &machine(&cloud, name)).await;
        assert_eq!(answer.status, 201);
        poll = answer.header("azure-asyncoperation").to_owned();
    }
    cloud.advance(3600 * SECOND);
    let costing: Vec<_> = cloud.costing().into_iter().filter(|id| id.contains("virtualMachines")).collect();
    assert!(costing.len() == 2 && !costing.iter().any(|id| id.ends_with("absent")), "{costing:?}");
    assert_eq!(client.get(&poll).await.body["status"], "InProgress", "for ever");
    client.delete_machine("run", "stuck").await;
    assert_eq!(client.get(&poll).await.body["error"]["code"], "OperationPreempted");
    cloud.advance(60 * SECOND);
    let vm = client.path("run", "Microsoft.Compute/virtualMachines/stuck", "2024-07-01");
    assert_eq!(client.call("GET", &vm, None).await.status, 404);
    cloud.assert_honest();
}

#[tokio::test]
async fn what_was_planned_for_one_machine_is_not_done_to_the_next_of_its_name() {
    let Some((cloud, client)) = start().await else { return };
    client.group("run", json!({})).await;
    let mut body = machine(&cloud, "vm");
    body["properties"]["priority"] = json!("Spot");
    body["properties"]["evictionPolicy"] = json!("Delete");
    client.put_machine("run", "vm", &body).await;
    cloud.advance(60 * SECOND);
    let id = cloud.ids(Kind::Vm)[0].clone();
    assert!(cloud.evict(&id));
    let at = format!(
        "{}?api-version=2024-07-01&forceDeletion=true",
        client.path("run", "Microsoft.Compute/virtualMachines/vm", "").split('?').next().unwrap()
    );
    assert_eq!(client.call("DELETE", &at, None).await.status, 202);
    cloud.advance(16 * SECOND);
    assert_eq!(client.put_machine("run", "vm", &body).await.status, 201);
    cloud.advance(60 * SECOND);
    assert_eq!(cloud.power(&id), Some(Power::Running));
    assert_eq!(cloud.left().len(), 1 + 4, "what belonged to the first is gone: {:?}", cloud.left());
    cloud.assert_honest();
}

/// Microsoft's client libraries in an environment of their own, made once; or why there are none, loudly.
fn sdk() -> Option<std::path::PathBuf> {
    let dir = std::path::Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/target/tools/azure-sdk"));
    let wanted = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/gpu/cloud_sdk.txt");
    let python = dir.join("bin/python");
    let have = dir.join("have.txt");
    let same = || std::fs::read(&have).ok() == std::fs::read(wanted).ok();
    if !same() {
        let run = |program: &std::path::Path, args: &[&str]| {
            let out = std::process::Command::new(program).args(args).output();
            let out = CompletedProcess::from(out.map_err(|e| format!("{}: {e}", program.display()))?);
            if out.code == 0 { Ok(()) } else { Err(out.stderr) }
        };
        let made = run("python3".as_ref(), &["-m", "venv", &dir.display().to_string()]).and_then(|()| {
            run(&python, &["-m", "pip", "install", "-q", "--disable-pip-version-check", "-r", wanted])
        });
        if let Err(why) = made {
            assert!(std::env::var_os("CI").is_none(), "CI must have Microsoft's client libraries: {why}");
            eprintln!("SKIPPED another client of the cloud: {why}");
            return None;
        }
        std::fs::copy(wanted, have).unwrap();
    }
    Some(python)
}

#[test]
fn microsofts_own_client_creates_lists_and_deletes_a_machine() {
    let Some(python) = sdk() else { return };
    let options = Options { pace: Pace::PerRequest(20 * SECOND), ..Options::default() };
    let Some(cloud) = Cloud::start(options) else { return };
    // The libraries speak of nothing but https.
    let dir = tempfile::tempdir().unwrap();
    let ca = dir.path().join("ca.pem");
    std::fs::write(&ca, cloud.ca()).unwrap();
    let principal = cloud.principal();
    let mut sdk = std::process::Command::new(python);
    sdk.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/gpu/cloud_sdk.py"))
        .envs([("ARM", &cloud.secure().arm), ("LOGIN", &cloud.secure().login), ("SUBNET", &cloud.subnet())])
        .envs([("AZURE_SUBSCRIPTION_ID", &cloud.subscription()), ("AZURE_TENANT_ID", &principal.tenant)])
        .envs([("AZURE_CLIENT_ID", &principal.client), ("AZURE_CLIENT_SECRET", &principal.secret)])
        .env("REQUESTS_CA_BUNDLE", &ca)
        .env("NO_PROXY", "127.0.0.1");
    let out = CompletedProcess::run(&mut sdk);
    assert!(out.code == 0, "{out}\n{}", cloud.story());
    let expected = "address 10.213.78.5 203.0.113.4
made vm Succeeded
listed ['vm']
power ['ProvisioningState/succeeded', 'PowerState/running']
disks ['Attached']
tagged ['Microsoft.Compute/virtualMachines']
left []
group False
";
    assert_eq!(out.stdout, expected);
    assert_eq!(cloud.left(), [""; 0]);
    cloud.assert_honest();
}
