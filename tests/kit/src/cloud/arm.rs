//! Azure Resource Manager: who may ask, whether that can be asked at all, and who answers it.

use super::{
    answer::Answer,
    ask::Ask,
    catalog,
    world::{Kind, Power, World},
};
use serde_json::{Value, json};

impl World {
    /// Answer a request that the documents allow. None: this cloud does not do that.
    pub(super) fn answer(&mut self, ask: &Ask, page: usize) -> Option<Answer> {
        let operation = &ask.found.operation;
        let (word, verb) = operation.id.split_once('_').unwrap_or((&operation.id, ""));
        if let Some(answer) = self.particular(ask, word, verb, page) {
            return Some(answer);
        }
        let kind = Kind::of_operations(word)?;
        Some(match verb {
            "Get" | "CheckExistence" => match self.meant(ask, kind) {
                // HEAD has a status and nothing else.
                Ok(_) if verb == "CheckExistence" => Answer::empty(204),
                Err(_) if verb == "CheckExistence" => Answer::empty(404),
                Ok(id) => self
                    .get(&id)
                    .map_or_else(|| Answer::missing(&id), |thing| self.shown(ask, thing.body.clone(), &id)),
                Err(refused) => *refused,
            },
            "List" | "ListAll" | "ListByResourceGroup" | "ListBySubscription" => {
                let group = (!ask.group().is_empty()).then(|| ask.group());
                if let Some(group) = group
                    && self.get(&self.group_id(group)).is_none()
                {
                    return Some(Answer::no_group(group));
                }
                let rows = self.listed(kind, group).map(|thing| thing.body.clone()).collect();
                paged(ask, rows, page)
            }
            "CreateOrUpdate" => match kind {
                Kind::Group => self.put_group(ask),
                Kind::Vm => self.put_machine(ask),
                Kind::Disk | Kind::Snapshot => self.put_disk(ask, kind),
                Kind::Schedule => self.put_schedule(ask),
                Kind::Nic | Kind::Ip | Kind::Nsg | Kind::Vnet => self.put_network(ask, kind),
            },
            "Update" | "UpdateTags" => self.retag(ask, kind)?,
            "Delete" if kind == Kind::Group => self.delete_group(ask),
            "Delete" => self.delete(ask, kind),
            _ => return None,
        })
    }

    fn particular(&mut self, ask: &Ask, word: &str, verb: &str, page: usize) -> Option<Answer> {
        let region = ask.part("location").to_lowercase();
        let machine = |world: &Self| world.meant(ask, Kind::Vm);
        let paged = |rows: Result<Vec<Value>, Box<Answer>>| match rows {
            Ok(rows) => paged(ask, rows, page),
            Err(refused) => *refused,
        };
        Some(match (word, verb) {
            ("ResourceGroups", "List") => paged(self.groups(ask)),
            ("Resources", "List") => paged(self.resources(ask, None)),
            ("Resources", "ListByResourceGroup") => match self.meant(ask, Kind::Group) {
                Ok(_) => paged(self.resources(ask, Some(ask.group()))),
                Err(refused) => *refused,
            },
            ("Tags", _) => self.tags(ask, verb),
            ("Providers", "Get") => self.provider(ask, false),
            ("Providers", "Register") => self.provider(ask, true),
            ("Subnets", _) => self.subnets(ask, verb),
            ("ResourceSkus", "List") => paged(Ok(self.skus(ask))),
            ("Usage", "List") => paged(Ok(self.usages(&region))),
            ("VirtualMachineImages", "Get") => self.image(ask, &region),
            ("VirtualMachineImages", "List" | "ListSkus") => self.images(ask, &region, verb),
            ("VirtualMachines", "InstanceView") => match machine(self) {
                Ok(id) => self.instance_view(&id),
                Err(refused) => *refused,
            },
            ("VirtualMachines", "SimulateEviction") => match machine(self) {
                Ok(id) if self.give_notice(&id) => Answer::empty(204),
                Ok(id) => {
                    let said = format!("{id} is not a spot machine.");
                    Answer::error(409, "OperationNotAllowed", said)
                }
                Err(refused) => *refused,
            },
            ("VirtualMachines", "Deallocate" | "PowerOff" | "Start" | "Restart") => match machine(self) {
                Ok(id) => {
                    let to = match verb {
                        "Deallocate" => Power::Deallocated,
                        "PowerOff" => Power::Stopped,
                        _ => Power::Running,
                    };
                    self.power(ask, &id, to)
                }
                Err(refused) => *refused,
            },
            _ => return None,
        })
    }

    fn shown(&self, ask: &Ask, body: Value, id: &str) -> Answer {
        let mut body = body;
        if ask.query("$expand") == Some("instanceView") {
            let view = self.instance_view(id);
            if let Some(view) = view.body.filter(|_| view.status == 200) {
                body["properties"]["instanceView"] = view;
            }
        }
        Answer::of(200, body)
    }

    /// A change of tags alone; none for any other change.
    fn retag(&mut self, ask: &Ask, kind: Kind) -> Option<Answer> {
        let id = match self.meant(ask, kind) {
            Ok(id) => id,
            Err(refused) => return Some(*refused),
        };
        let body = ask.body().as_object()?;
        if body.keys().any(|key| key != "tags") {
            return None;
        }
        let Some(thing) = self.get_mut(&id) else { return Some(Answer::missing(&id)) };
        if let Some(tags) = body.get("tags") {
            thing.body["tags"] = tags.clone();
        }
        Some(Answer::of(200, thing.body.clone()))
    }

    fn skus(&self, ask: &Ask) -> Vec<Value> {
        let filter = ask.query("$filter").unwrap_or_default();
        let wanted = filter.strip_prefix("location eq '").and_then(|rest| rest.strip_suffix('\''));
        let regions =
            self.regions.iter().filter(|region| wanted.is_none_or(|w| w.eq_ignore_ascii_case(region)));
        regions.flat_map(|region| catalog::SIZES.iter().map(move |size| self.sku(size, region))).collect()
    }

    fn sku(&self, size: &catalog::Size, region: &str) -> Value {
        let mine = self
            .restricted
            .iter()
            .filter(|(name, place, _)| name.eq_ignore_ascii_case(size.name) && place == region);
        let rows = mine.map(|(_, place, zone)| {
            let (kind, values) = match zone {
                Some(zone) => ("Zone", zone),
                None => ("Location", place),
            };
            let mut info = json!({"locations": [place]});
            if let Some(zone) = zone {
                info["zones"] = json!([zone]);
            }
            // A zone restriction is named by its region too.
            let values = if kind == "Zone" { place } else { values };
            json!({"type": kind, "values": [values], "restrictionInfo": info, "reasonCode": "NotAvailableForSubscription"})
        });
        catalog::sku(size, region, rows.collect())
    }

    fn usages(&self, region: &str) -> Vec<Value> {
        let mut names = vec![
            ("cores", "Total Regional vCPUs"),
            ("lowPriorityCores", "Total Regional Low-priority vCPUs"),
        ];
        for size in catalog::SIZES {
            if !names.iter().any(|(name, _)| *name == size.family) {
                names.push((size.family, size.family));
            }
        }
        let row = |(name, title): (&str, &str)| {
            let (used, limit) = self.usage(name, region);
            json!({
                "limit": limit,
                "unit": "Count",
                "currentValue": used,
                "name": {"value": name, "localizedValue": title},
            })
        };
        names.into_iter().map(row).collect()
    }

    fn image(&self, ask: &Ask, region: &str) -> Answer {
        let (publisher, offer) = (ask.part("publisherName"), ask.part("offer"));
        let Some((image, version)) = catalog::image(publisher, offer, ask.part("skus"), ask.part("version"))
        else {
            let said = format!("Artifact: VMImage was not found: {}.", ask.path);
            return Answer::error(404, "ImageNotFound", said);
        };
        let mut features = vec![json!({"name": "IsAcceleratedNetworkSupported", "value": "True"})];
        if image.trusted {
            features.push(json!({"name": "SecurityType", "value": "TrustedLaunchSupported"}));
        }
        Answer::of(
            200,
            json!({
                "id": self.image_id(ask, region, Some(version)),
                "name": version,
                "location": region,
                "properties": {
                    "hyperVGeneration": image.generation,
                    "architecture": "x64",
                    "osDiskImage": {"operatingSystem": "Linux"},
                    "dataDiskImages": [],
                    "features": features,
                },
            }),
        )
    }

    fn images(&self, ask: &Ask, region: &str, verb: &str) -> Answer {
        let same = |a: &str, b: &str| a.eq_ignore_ascii_case(b);
        let mine = catalog::IMAGES.iter().filter(|one| {
            same(one.publisher, ask.part("publisherName")) && same(one.offer, ask.part("offer"))
        });
        let names: Vec<&str> = match verb {
            "ListSkus" => mine.map(|one| one.sku).collect(),
            _ => mine
                .filter(|one| same(one.sku, ask.part("skus")))
                .flat_map(|one| one.versions)
                .copied()
                .collect(),
        };
        if names.is_empty() {
            return Answer::error(
                404,
                "ImageNotFound",
                format!("Artifact: VMImage was not found: {}.", ask.path),
            );
        }
        let mut names = names;
        if ask.query("$orderby").is_some_and(|order| order.ends_with("desc")) {
            names.reverse();
        }
        if let Some(top) = ask.query("$top").and_then(|top| top.parse().ok()) {
            names.truncate(top);
        }
        let row = |name: &&str| json!({"id": self.image_id(ask, region, Some(name)), "name": name, "location": region});
        Answer::of(200, names.iter().map(row).collect())
    }

    fn image_id(&self, ask: &Ask, region: &str, last: Option<&str>) -> String {
        let path = format!(
            "/Subscriptions/{}/Providers/Microsoft.Compute/Locations/{region}/Publishers/{}/ArtifactTypes/VMImage/Offers/{}/Skus",
            self.subscription,
            ask.part("publisherName"),
            ask.part("offer")
        );
        match (ask.part("skus"), last) {
            ("", last) => format!("{path}/{}", last.unwrap_or_default()),
            (sku, last) => format!("{path}/{sku}/Versions/{}", last.unwrap_or_default()),
        }
    }
}

/// A list in pieces: the address of the next one is opaque to who follows it.
fn paged(ask: &Ask, rows: Vec<Value>, page: usize) -> Answer {
    let from: usize = ask.query("$skiptoken").and_then(|at| at.parse().ok()).unwrap_or_default();
    let left = rows.len().saturating_sub(from + page);
    let rows: Vec<_> = rows.into_iter().skip(from).take(page).collect();
    let mut body = json!({"value": rows});
    if left > 0 {
        let mut query: Vec<_> = ask.query.iter().filter(|(key, _)| key != "$skiptoken").cloned().collect();
        query.push(("$skiptoken".into(), (from + page).to_string()));
        let query: String = url_query(&query);
        body["nextLink"] = json!(format!("{}{}?{query}", ask.base, ask.path));
    }
    Answer::of(200, body)
}

fn url_query(pairs: &[(String, String)]) -> String {
    let encoded = |text: &str| -> String {
        let plain = |b: u8| b.is_ascii_alphanumeric() || b"-._~$".contains(&b);
        text.bytes().map(|b| if plain(b) { (b as char).to_string() } else { format!("%{b:02X}") }).collect()
    };
    let pairs: Vec<_> =
        pairs.iter().map(|(key, value)| format!("{}={}", encoded(key), encoded(value))).collect();
    pairs.join("&")
}
