//! The headquarters as Azure sees it: there before anything is rented, and never on the bill of a run.

use super::world::{Kind, World};
use serde_json::json;
use std::net::Ipv4Addr;

const GROUP: &str = "headquarters";

pub(super) fn subnet(subscription: &str) -> String {
    format!(
        "/subscriptions/{subscription}/resourceGroups/{GROUP}/providers/Microsoft.Network/virtualNetworks/hq-vnet/subnets/default"
    )
}

/// A machine in a network, with a disk for its data at LUN 0; its id.
pub(super) fn build(world: &mut World, address: Ipv4Addr) -> String {
    let [a, b, c, _] = address.octets();
    let range = format!("{a}.{b}.{c}.0/24");
    let region = world.regions[0].clone();
    let id = |world: &World, kind, name: &str| world.id(GROUP, kind, name);
    let vnet = id(world, Kind::Vnet, "hq-vnet");
    let nic = id(world, Kind::Nic, "hq-nic");
    let vm = id(world, Kind::Vm, "echoes-hq");
    let os = id(world, Kind::Disk, "echoes-hq-os");
    let data = id(world, Kind::Disk, "echoes-hq-data");
    let group = world.group_id(GROUP);
    let subnet = subnet(&world.subscription);
    let disk = |gb: u32, system: bool| {
        let mut disk = json!({
            "location": region,
            "managedBy": vm,
            "sku": {"name": "Premium_LRS"},
            "properties": {
                "creationData": {"createOption": if system { "FromImage" } else { "Empty" }},
                "diskSizeGB": gb,
                "diskState": "Attached",
                "provisioningState": "Succeeded",
            },
        });
        if system {
            disk["properties"]["osType"] = json!("Linux");
        }
        disk
    };
    let things = [
        (Kind::Group, &group, json!({"location": region, "properties": {"provisioningState": "Succeeded"}})),
        (
            Kind::Vnet,
            &vnet,
            json!({
                "location": region,
                "properties": {
                    "provisioningState": "Succeeded",
                    "addressSpace": {"addressPrefixes": [range]},
                    "subnets": [{
                        "id": subnet,
                        "name": "default",
                        "type": "Microsoft.Network/virtualNetworks/subnets",
                        "properties": {"addressPrefix": range, "provisioningState": "Succeeded"},
                    }],
                },
            }),
        ),
        (
            Kind::Nic,
            &nic,
            json!({
                "location": region,
                "properties": {
                    "provisioningState": "Succeeded",
                    "macAddress": "00-0D-3A-00-00-01",
                    "primary": true,
                    "virtualMachine": {"id": vm},
                    "ipConfigurations": [{
                        "id": format!("{nic}/ipConfigurations/ipconfig1"),
                        "name": "ipconfig1",
                        "properties": {
                            "provisioningState": "Succeeded",
                            "privateIPAddress": address.to_string(),
                            "privateIPAllocationMethod": "Dynamic",
                            "privateIPAddressVersion": "IPv4",
                            "primary": true,
                            "subnet": {"id": subnet},
                        },
                    }],
                },
            }),
        ),
        (Kind::Disk, &os, disk(30, true)),
        (Kind::Disk, &data, disk(128, false)),
        (
            Kind::Vm,
            &vm,
            json!({
                "location": region,
                "properties": {
                    "provisioningState": "Succeeded",
                    "vmId": "d1b0e1a4-0000-4000-a000-000000000001",
                    "hardwareProfile": {"vmSize": "Standard_D4s_v3"},
                    "storageProfile": {
                        "osDisk": {
                            "name": "echoes-hq-os",
                            "createOption": "FromImage",
                            "osType": "Linux",
                            "diskSizeGB": 30,
                            "managedDisk": {"id": os},
                        },
                        "dataDisks": [{
                            "lun": 0,
                            "name": "echoes-hq-data",
                            "createOption": "Attach",
                            "diskSizeGB": 128,
                            "managedDisk": {"id": data},
                        }],
                    },
                    "networkProfile": {"networkInterfaces": [{"id": nic, "properties": {"primary": true}}]},
                },
            }),
        ),
    ];
    for (kind, id, body) in things {
        world.put(kind, id, body).fixture = true;
    }
    world.history.clear();
    vm
}
