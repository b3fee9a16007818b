"""Rent a machine, list it and give it back, with Microsoft's own client libraries.

Addresses and credentials come from the environment. What is said on standard output is compared by the test."""

import os

from azure.identity import ClientSecretCredential
from azure.mgmt.compute import ComputeManagementClient
from azure.mgmt.compute import models as compute
from azure.mgmt.network import NetworkManagementClient
from azure.mgmt.network import models as network
from azure.mgmt.resource.resources import ResourceManagementClient

GROUP, REGION = "sdk", "eastus"
env = os.environ
credential = ClientSecretCredential(
    env["AZURE_TENANT_ID"],
    env["AZURE_CLIENT_ID"],
    env["AZURE_CLIENT_SECRET"],
    authority=env["LOGIN"],
    disable_instance_discovery=True,
)
common = {
    "base_url": env["ARM"],
    "credential_scopes": ["https://management.azure.com/.default"],
    # The libraries' own pace is for a cloud that takes its time.
    "polling_interval": 0,
}

subscription = env["AZURE_SUBSCRIPTION_ID"]
resources = ResourceManagementClient(credential, subscription, api_version="2024-07-01", **common)
machines = ComputeManagementClient(credential, subscription, **common)
net = NetworkManagementClient(credential, subscription, **common)
# These take their version with each call.
VM, DISK, NETWORK = ({"api_version": version} for version in ("2024-07-01", "2024-03-02", "2024-05-01"))

resources.resource_groups.create_or_update(GROUP, {"location": REGION, "tags": {"echoes-run": "sdk"}})
ip = net.public_ip_addresses.begin_create_or_update(
    GROUP,
    "ip",
    network.PublicIPAddress(
        location=REGION,
        sku=network.PublicIPAddressSku(name="Standard"),
        public_ip_allocation_method="Static",
    ),
    **NETWORK,
).result()
nsg = net.network_security_groups.begin_create_or_update(
    GROUP,
    "nsg",
    network.NetworkSecurityGroup(
        location=REGION,
        security_rules=[
            network.SecurityRule(
                name="ssh",
                protocol="Tcp",
                access="Allow",
                direction="Inbound",
                priority=100,
                source_address_prefix="198.51.100.7/32",
                source_port_range="*",
                destination_address_prefix="*",
                destination_port_range="22",
            )
        ],
    ),
    **NETWORK,
).result()
nic = net.network_interfaces.begin_create_or_update(
    GROUP,
    "nic",
    network.NetworkInterface(
        location=REGION,
        network_security_group=network.NetworkSecurityGroup(id=nsg.id),
        ip_configurations=[
            network.NetworkInterfaceIPConfiguration(
                name="ipconfig1",
                subnet=network.Subnet(id=env["SUBNET"]),
                public_ip_address=network.PublicIPAddress(id=ip.id, delete_option="Delete"),
            )
        ],
    ),
    **NETWORK,
).result()
print("address", nic.ip_configurations[0].private_ip_address, ip.ip_address)

machine = compute.VirtualMachine(
    location=REGION,
    tags={"echoes-run": "sdk"},
    hardware_profile=compute.HardwareProfile(vm_size="Standard_NC4as_T4_v3"),
    storage_profile=compute.StorageProfile(
        image_reference=compute.ImageReference(
            publisher="microsoft-dsvm", offer="ubuntu-hpc", sku="2204", version="latest"
        ),
        os_disk=compute.OSDisk(create_option="FromImage", delete_option="Delete"),
    ),
    os_profile=compute.OSProfile(
        computer_name="vm",
        admin_username="echoes",
        custom_data="I2Nsb3VkLWNvbmZpZwo=",
        linux_configuration=compute.LinuxConfiguration(
            disable_password_authentication=True,
            ssh=compute.SshConfiguration(
                public_keys=[
                    compute.SshPublicKey(
                        path="/home/echoes/.ssh/authorized_keys", key_data="ssh-ed25519 AAAAC3NzaC1lZDI1NTE5 sdk"
                    )
                ]
            ),
        ),
    ),
    network_profile=compute.NetworkProfile(
        network_interfaces=[compute.NetworkInterfaceReference(id=nic.id, primary=True, delete_option="Delete")]
    ),
)
made = machines.virtual_machines.begin_create_or_update(GROUP, "vm", machine, **VM).result()
print("made", made.name, made.provisioning_state)
print("listed", [vm.name for vm in machines.virtual_machines.list(GROUP, **VM)])
print("power", [s.code for s in machines.virtual_machines.instance_view(GROUP, "vm", **VM).statuses])
print("disks", [disk.disk_state.value for disk in machines.disks.list_by_resource_group(GROUP, **DISK)])
print("tagged", sorted(r.type for r in resources.resources.list(filter="tagName eq 'echoes-run'")))

machines.virtual_machines.begin_delete(GROUP, "vm", **VM).result()
print("left", [vm.name for vm in machines.virtual_machines.list(GROUP, **VM)])
resources.resource_groups.begin_delete(GROUP).result()
print("group", resources.resource_groups.check_existence(GROUP))
