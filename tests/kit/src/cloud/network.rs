//! Network interfaces, public addresses, security groups, networks: who is joined to whom, and who cannot go before
//! whom.

use super::{
    answer::Answer,
    ask::Ask,
    machine::{Refused, busy, refuse, reserved},
    operation::{Aim, Told},
    world::{Kind, World, asked_alone, group_of},
};
use serde_json::{Value, json};
use std::net::Ipv4Addr;

/// Where addresses of machines without metal are; nobody answers there (RFC 5737 for those seen from outside).
const PRIVATE: Ipv4Addr = Ipv4Addr::new(10, 213, 78, 4);
const PUBLIC: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 4);

impl World {
    pub(super) fn put_network(&mut self, ask: &Ask, kind: Kind) -> Answer {
        self.try_put_network(ask, kind).unwrap_or_else(|refused| *refused)
    }

    fn try_put_network(&mut self, ask: &Ask, kind: Kind) -> Refused<Answer> {
        let id = self.open_group(ask, kind)?;
        let mut body = Value::Object(asked_alone(ask.body()));
        let Some(region) = body["location"].as_str().map(str::to_lowercase) else {
            return refuse(400, "LocationRequired", "The location property is required for this definition.");
        };
        if !self.regions.contains(&region) {
            let said = format!(
                "The provided location '{region}' is not available for resource type '{}'.",
                kind.name()
            );
            return refuse(400, "LocationNotAvailableForResourceType", said);
        }
        let old = self.get(&id).cloned();
        if let Some(old) = &old
            && old.body["location"] != body["location"]
        {
            let said = format!(
                "The resource '{}' already exists in location '{}'.",
                old.name(),
                old.body["location"]
            );
            return refuse(409, "InvalidResourceLocation", said);
        }
        if old.as_ref().is_some_and(|old| old.state() == "Deleting") {
            return Err(Box::new(busy(&id)));
        }
        match kind {
            Kind::Nic => self.complete_nic(&id, &mut body, old.as_ref().map(|old| &old.body))?,
            Kind::Ip => self.complete_ip(&mut body, old.as_ref().map(|old| &old.body))?,
            Kind::Nsg => complete_nsg(&id, &mut body)?,
            _ => self.complete_vnet(&id, &mut body)?,
        }
        body["properties"]["provisioningState"] = json!(if old.is_some() { "Updating" } else { "Succeeded" });
        body["properties"]["resourceGuid"] = json!(match &old {
            Some(old) => old.text("/resourceGuid").unwrap_or_default().to_owned(),
            None => self.fresh("guid"),
        });
        body["etag"] = json!(format!("W/\"{}\"", self.fresh("etag")));
        let shown = self.put(kind, &id, body).body.clone();
        if kind == Kind::Nic {
            self.join_addresses(&id, &shown);
        }
        let status = if old.is_some() { 200 } else { 201 };
        let operation = self.begin(kind, &region, Aim::Ready(id), self.takes.network);
        Ok(self.told(Answer::of(status, shown), ask.base, &operation, Told::Status))
    }

    fn complete_nic(&mut self, id: &str, body: &mut Value, old: Option<&Value>) -> Refused<()> {
        let before = old.map(|old| old["properties"].clone()).unwrap_or_default();
        if let Some(nsg) = body["properties"]["networkSecurityGroup"]["id"].as_str() {
            self.referred(id, nsg)?;
        }
        let mut rows = body["properties"]["ipConfigurations"].as_array().cloned().unwrap_or_default();
        if rows.is_empty() {
            return refuse(
                400,
                "NetworkInterfaceMustHaveAtLeastOneIpConfiguration",
                format!("{id} has no IP configuration."),
            );
        }
        for (n, row) in rows.iter_mut().enumerate() {
            let name = row["name"].as_str().unwrap_or("ipconfig1").to_owned();
            row["id"] = json!(format!("{id}/ipConfigurations/{name}"));
            row["name"] = json!(name);
            let subnet = row["properties"]["subnet"]["id"].as_str().unwrap_or_default().to_owned();
            self.subnet(id, &subnet)?;
            let properties = &mut row["properties"];
            if let Some(ip) = properties["publicIPAddress"]["id"].as_str() {
                let found = self.referred(id, ip)?;
                let used =
                    self.get(&found).and_then(|ip| ip.text("/ipConfiguration/id").map(str::to_lowercase));
                if used.is_some_and(|by| !by.starts_with(&format!("{}/", id.to_lowercase()))) {
                    let said = format!(
                        "Resource {id} is referencing public IP address {found} that is already allocated to another resource."
                    );
                    return refuse(400, "PublicIPAddressInUse", said);
                }
            }
            if properties["privateIPAllocationMethod"].is_null() {
                properties["privateIPAllocationMethod"] = json!("Dynamic");
            }
            properties["privateIPAddressVersion"] = json!("IPv4");
            properties["primary"] = json!(n == 0);
            properties["provisioningState"] = json!("Succeeded");
            let had = before["ipConfigurations"][n]["properties"]["privateIPAddress"].clone();
            if had.is_string() {
                properties["privateIPAddress"] = had;
            } else if !self.metal_addresses {
                let at = "/ipConfigurations/0/properties/privateIPAddress";
                properties["privateIPAddress"] = json!(self.free_address(PRIVATE, at, Kind::Nic).to_string());
            }
        }
        let properties = &mut body["properties"];
        properties["ipConfigurations"] = Value::Array(rows);
        for (key, usual) in [("enableAcceleratedNetworking", false), ("enableIPForwarding", false)] {
            if properties[key].is_null() {
                properties[key] = json!(usual);
            }
        }
        properties["macAddress"] = match before["macAddress"].as_str() {
            Some(had) => json!(had),
            None => json!(mac(&self.fresh("mac"))),
        };
        for own in ["virtualMachine", "primary"] {
            if !before[own].is_null() {
                properties[own] = before[own].clone();
            }
        }
        Ok(())
    }

    fn complete_ip(&mut self, body: &mut Value, old: Option<&Value>) -> Refused<()> {
        if body["sku"]["name"] != "Standard" {
            let said = "Cannot create more than 0 IPv4 Basic SKU public IP addresses for this subscription in this region.";
            return refuse(400, "IPv4BasicSkuPublicIpCountLimitReached", said);
        }
        let before = old.map(|old| old["properties"].clone()).unwrap_or_default();
        let metal = self.metal_addresses;
        let properties = &mut body["properties"];
        if properties["publicIPAllocationMethod"] != "Static" {
            let said = "Standard sku publicIp must have AllocationMethod set to Static.";
            return refuse(400, "StandardSkuPublicIPAddressesMustBeStatic", said);
        }
        properties["publicIPAddressVersion"] = json!("IPv4");
        if properties["idleTimeoutInMinutes"].is_null() {
            properties["idleTimeoutInMinutes"] = json!(4);
        }
        let had = before["ipAddress"].clone();
        if had.is_string() {
            properties["ipAddress"] = had;
        } else if !metal {
            let address = self.free_address(PUBLIC, "/ipAddress", Kind::Ip);
            properties["ipAddress"] = json!(address.to_string());
        }
        if !before["ipConfiguration"].is_null() {
            body["properties"]["ipConfiguration"] = before["ipConfiguration"].clone();
        }
        Ok(())
    }

    fn complete_vnet(&mut self, id: &str, body: &mut Value) -> Refused<()> {
        if body["properties"]["addressSpace"]["addressPrefixes"].as_array().is_none_or(Vec::is_empty) {
            return refuse(400, "MissingAddressSpace", format!("{id} has no address space."));
        }
        let mut subnets = body["properties"]["subnets"].as_array().cloned().unwrap_or_default();
        for subnet in &mut subnets {
            complete_subnet(id, subnet);
        }
        body["properties"]["subnets"] = Value::Array(subnets);
        Ok(())
    }

    /// Something that another thing names must be there.
    fn referred(&self, by: &str, id: &str) -> Refused<String> {
        match self.get(id) {
            Some(found) => Ok(found.id.clone()),
            None => {
                let said = format!(
                    "Resource {id} referenced by resource {by} was not found. Please make sure that the referenced resource exists, and that both resources are in the same region."
                );
                refuse(400, "InvalidResourceReference", said)
            }
        }
    }

    fn subnet(&self, by: &str, id: &str) -> Refused<()> {
        let (vnet, name) = id.rsplit_once("/subnets/").unwrap_or((id, ""));
        let vnet = self.referred(by, vnet)?;
        let subnets = self.get(&vnet).and_then(|vnet| vnet.body["properties"]["subnets"].as_array());
        let mut named = subnets.into_iter().flatten().filter_map(|subnet| subnet["name"].as_str());
        if named.any(|one| one.eq_ignore_ascii_case(name)) {
            return Ok(());
        }
        refuse(
            400,
            "InvalidResourceReference",
            format!("Resource {id} referenced by resource {by} was not found."),
        )
    }

    /// Tell the public addresses whose they are now.
    fn join_addresses(&mut self, nic: &str, body: &Value) {
        for row in body["properties"]["ipConfigurations"].as_array().into_iter().flatten() {
            let asked = &row["properties"]["publicIPAddress"];
            let Some(ip) = asked["id"].as_str().and_then(|ip| self.get_mut(ip)) else { continue };
            ip.body["properties"]["ipConfiguration"] = json!({"id": row["id"]});
            if let Some(option) = asked["properties"]["deleteOption"].as_str() {
                ip.body["properties"]["deleteOption"] = json!(option);
            }
        }
        // The interface itself names the address and no more.
        if let Some(nic) = self.get_mut(nic) {
            for row in nic.body["properties"]["ipConfigurations"].as_array_mut().into_iter().flatten() {
                if let Some(id) = row["properties"]["publicIPAddress"]["id"].as_str() {
                    row["properties"]["publicIPAddress"] = json!({"id": id});
                }
            }
        }
    }

    /// An interface, and perhaps an address, that come with a machine. Azure chooses what they are called.
    pub(super) fn inline_nic(&mut self, vm: &str, configuration: &Value, region: &str) -> Refused<String> {
        let group = group_of(vm).to_owned();
        let hash = self.fresh("inline").replace('-', "");
        let name = |given: &Value| format!("{}-{}", given.as_str().unwrap_or_default(), &hash[..8]);
        let nic = self.id(&group, Kind::Nic, &name(&configuration["name"]));
        let asked = &configuration["properties"];
        let mut rows = Vec::new();
        let mut addresses = Vec::new();
        for row in asked["ipConfigurations"].as_array().into_iter().flatten() {
            let mut properties = json!({"subnet": row["properties"]["subnet"]});
            let ip = &row["properties"]["publicIPAddressConfiguration"];
            if ip.is_object() {
                let id = self.id(&group, Kind::Ip, &name(&ip["name"]));
                let mut body = json!({
                    "location": region,
                    "sku": if ip["sku"].is_object() { ip["sku"].clone() } else { json!({"name": "Basic"}) },
                    "properties": {
                        "publicIPAllocationMethod": ip["properties"]["publicIPAllocationMethod"],
                        "provisioningState": "Succeeded",
                    },
                });
                if let Some(option) = ip["properties"]["deleteOption"].as_str() {
                    body["properties"]["deleteOption"] = json!(option);
                }
                self.complete_ip(&mut body, None)?;
                properties["publicIPAddress"] = json!({"id": id});
                addresses.push((id, body));
            }
            rows.push(json!({"name": row["name"], "properties": properties}));
        }
        let mut body = json!({
            "location": region,
            "properties": {"ipConfigurations": rows, "provisioningState": "Succeeded"},
        });
        for key in ["networkSecurityGroup", "enableAcceleratedNetworking"] {
            if !asked[key].is_null() {
                body["properties"][key] = asked[key].clone();
            }
        }
        // The addresses have to be there to be referred to; they go again when the interface is refused.
        let made: Vec<_> = addresses.iter().map(|(id, _)| id.clone()).collect();
        for (id, address) in addresses {
            self.put(Kind::Ip, &id, address);
        }
        if let Err(refused) = self.complete_nic(&nic, &mut body, None) {
            made.iter().for_each(|id| drop(self.remove(id)));
            return Err(refused);
        }
        let shown = self.put(Kind::Nic, &nic, body).body.clone();
        self.join_addresses(&nic, &shown);
        Ok(nic)
    }

    /// What keeps this from being deleted now.
    pub(super) fn network_in_use(&self, id: &str) -> Option<Answer> {
        let thing = self.get(id)?;
        let said = |code: &str, by: &str| {
            let said = format!("{} {id} is still in use by {by} and cannot be deleted.", thing.kind.noun());
            Some(Answer::error(400, code, said))
        };
        match thing.kind {
            Kind::Nic => {
                if let Some(vm) = thing.text("/virtualMachine/id") {
                    return said("NicInUse", vm);
                }
                match &thing.reserved {
                    Some((until, owner)) if *until > self.now() => Some(reserved(id, owner)),
                    _ => None,
                }
            }
            Kind::Ip => {
                let by = thing.text("/ipConfiguration/id")?;
                said("PublicIPAddressCannotBeDeleted", by)
            }
            Kind::Nsg => {
                let by = self.of(Kind::Nic, None).find(|nic| {
                    nic.text("/networkSecurityGroup/id").is_some_and(|nsg| nsg.eq_ignore_ascii_case(id))
                })?;
                said("InUseNetworkSecurityGroupCannotBeDeleted", &by.id)
            }
            Kind::Vnet => {
                let below = format!("{}/subnets/", id.to_lowercase());
                let by = self.of(Kind::Nic, None).find(|nic| {
                    let rows = nic.body["properties"]["ipConfigurations"].as_array().into_iter().flatten();
                    rows.filter_map(|row| row["properties"]["subnet"]["id"].as_str())
                        .any(|subnet| subnet.to_lowercase().starts_with(&below))
                })?;
                said("InUseSubnetCannotBeDeleted", &by.id)
            }
            _ => None,
        }
    }

    /// The metal says where the machine is: inside and outside alike.
    pub(super) fn locate(&mut self, vm: &str, address: Ipv4Addr) {
        let vm = vm.to_lowercase();
        let mine: Vec<_> = self
            .of(Kind::Nic, None)
            .filter(|nic| nic.text("/virtualMachine/id").is_some_and(|id| id.to_lowercase() == vm))
            .map(|nic| nic.id.clone())
            .collect();
        let mut outside = Vec::new();
        for nic in mine.iter().filter_map(|id| self.get(id).map(|nic| nic.id.clone())).collect::<Vec<_>>() {
            let Some(nic) = self.get_mut(&nic) else { continue };
            for row in nic.body["properties"]["ipConfigurations"].as_array_mut().into_iter().flatten() {
                row["properties"]["privateIPAddress"] = json!(address.to_string());
                outside.extend(row["properties"]["publicIPAddress"]["id"].as_str().map(str::to_owned));
            }
        }
        for ip in outside {
            if let Some(ip) = self.get_mut(&ip) {
                ip.body["properties"]["ipAddress"] = json!(address.to_string());
            }
        }
    }

    /// The machine whose address this is.
    pub(super) fn at_address(&self, address: &str) -> Option<&str> {
        let nic = self
            .of(Kind::Nic, None)
            .find(|nic| nic.text("/ipConfigurations/0/properties/privateIPAddress") == Some(address))?;
        nic.text("/virtualMachine/id")
    }

    pub(super) fn subnets(&mut self, ask: &Ask, verb: &str) -> Answer {
        let vnet = match self.meant(ask, Kind::Vnet) {
            Ok(id) => id,
            Err(refused) => return *refused,
        };
        let name = ask.part("subnetName").to_owned();
        let id = format!("{vnet}/subnets/{name}");
        let Some(thing) = self.get_mut(&vnet) else { return Answer::missing(&vnet) };
        let region = thing.body["location"].as_str().unwrap_or_default().to_owned();
        let rows = thing.body["properties"]["subnets"].as_array().cloned().unwrap_or_default();
        let at = rows
            .iter()
            .position(|row| row["name"].as_str().is_some_and(|one| one.eq_ignore_ascii_case(&name)));
        match (verb, at) {
            ("List", _) => Answer::of(200, json!({"value": rows})),
            ("Get", Some(at)) => Answer::of(200, rows[at].clone()),
            ("Get", None) => Answer::error(404, "NotFound", format!("Resource {id} not found.")),
            ("CreateOrUpdate", at) => {
                let mut subnet = Value::Object(asked_alone(ask.body()));
                subnet["name"] = json!(name);
                complete_subnet(&vnet, &mut subnet);
                let mut rows = rows;
                match at {
                    Some(at) => rows[at] = subnet.clone(),
                    None => rows.push(subnet.clone()),
                }
                thing.body["properties"]["subnets"] = Value::Array(rows);
                let status = if at.is_some() { 200 } else { 201 };
                let operation = self.begin(Kind::Vnet, &region, Aim::Ready(vnet), self.takes.network);
                self.told(Answer::of(status, subnet), ask.base, &operation, Told::Status)
            }
            ("Delete", Some(at)) => {
                let below = id.to_lowercase();
                let used = self.of(Kind::Nic, None).any(|nic| {
                    let rows = nic.body["properties"]["ipConfigurations"].as_array().into_iter().flatten();
                    rows.filter_map(|row| row["properties"]["subnet"]["id"].as_str())
                        .any(|subnet| subnet.to_lowercase() == below)
                });
                if used {
                    return Answer::error(
                        400,
                        "InUseSubnetCannotBeDeleted",
                        format!("Subnet {id} is in use."),
                    );
                }
                let mut rows = rows;
                rows.remove(at);
                if let Some(thing) = self.get_mut(&vnet) {
                    thing.body["properties"]["subnets"] = Value::Array(rows);
                }
                let operation = self.begin(Kind::Vnet, &region, Aim::Ready(vnet), self.takes.network);
                self.told(Answer::empty(202), ask.base, &operation, Told::Both)
            }
            _ => Answer::empty(204),
        }
    }
}

fn complete_subnet(vnet: &str, subnet: &mut Value) {
    subnet["id"] = json!(format!("{vnet}/subnets/{}", subnet["name"].as_str().unwrap_or_default()));
    subnet["properties"]["provisioningState"] = json!("Succeeded");
    subnet["type"] = json!("Microsoft.Network/virtualNetworks/subnets");
}

fn complete_nsg(id: &str, body: &mut Value) -> Refused<()> {
    let mut rules = body["properties"]["securityRules"].as_array().cloned().unwrap_or_default();
    let mut taken = Vec::new();
    for rule in &mut rules {
        let properties = &rule["properties"];
        let priority = properties["priority"].as_u64().unwrap_or_default();
        if !(100..=4096).contains(&priority) {
            let said = format!(
                "Security rule has invalid Priority. Value provided: {priority} Allowed range 100-4096."
            );
            return refuse(400, "SecurityRuleInvalidPriority", said);
        }
        let key = (priority, properties["direction"].clone());
        if taken.contains(&key) {
            let said = format!("Security rules have the same priority {priority} and direction.");
            return refuse(400, "SecurityRuleConflict", said);
        }
        taken.push(key);
        for (one, many) in [
            ("sourceAddressPrefix", "sourceAddressPrefixes"),
            ("destinationPortRange", "destinationPortRanges"),
        ] {
            if properties[one].is_null() && properties[many].is_null() {
                return refuse(400, "SecurityRuleParameterNotSpecified", format!("{one} is not specified."));
            }
        }
        let name = rule["name"].as_str().unwrap_or_default().to_owned();
        rule["id"] = json!(format!("{id}/securityRules/{name}"));
        rule["properties"]["provisioningState"] = json!("Succeeded");
    }
    body["properties"]["securityRules"] = Value::Array(rules);
    let usual = [
        ("AllowVnetInBound", "VirtualNetwork", "VirtualNetwork", "Allow", 65000, "Inbound"),
        ("AllowAzureLoadBalancerInBound", "AzureLoadBalancer", "*", "Allow", 65001, "Inbound"),
        ("DenyAllInBound", "*", "*", "Deny", 65500, "Inbound"),
        ("AllowVnetOutBound", "VirtualNetwork", "VirtualNetwork", "Allow", 65000, "Outbound"),
        ("AllowInternetOutBound", "*", "Internet", "Allow", 65001, "Outbound"),
        ("DenyAllOutBound", "*", "*", "Deny", 65500, "Outbound"),
    ];
    let usual = usual.map(|(name, from, to, access, priority, direction)| {
        json!({
            "id": format!("{id}/defaultSecurityRules/{name}"),
            "name": name,
            "properties": {
                "provisioningState": "Succeeded",
                "protocol": "*",
                "sourcePortRange": "*",
                "destinationPortRange": "*",
                "sourceAddressPrefix": from,
                "destinationAddressPrefix": to,
                "access": access,
                "priority": priority,
                "direction": direction,
            },
        })
    });
    body["properties"]["defaultSecurityRules"] = json!(usual);
    Ok(())
}

fn mac(uuid: &str) -> String {
    let hex: String = uuid.chars().filter(char::is_ascii_hexdigit).collect::<String>().to_uppercase();
    format!("00-0D-3A-{}-{}-{}", &hex[..2], &hex[2..4], &hex[4..6])
}
