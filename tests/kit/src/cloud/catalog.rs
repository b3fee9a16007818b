//! What is for rent: sizes with what they have and cost, images, quotas. Prices and figures are those of the facts
//! collected for this project, good enough to compare and to add up, and no promise of anybody.

use serde_json::{Value, json};

/// One size of virtual machine.
#[derive(Debug, Clone)]
pub struct Size {
    pub name: &'static str,
    pub family: &'static str,
    pub cpus: u32,
    pub memory_gb: u32,
    pub gpus: u32,
    /// Without this, generation 1 images alone; all of ours boot generation 2.
    pub gen1: bool,
    pub temp_gb: u32,
    pub ephemeral: bool,
    /// Millionths of a US dollar an hour.
    pub price: u64,
    /// None: not to be had as spot.
    pub spot: Option<u64>,
}

const fn size(
    name: &'static str,
    family: &'static str,
    (cpus, memory_gb, gpus): (u32, u32, u32),
    temp_gb: u32,
    price: u64,
    spot: Option<u64>,
) -> Size {
    let gen1 = gpus == 0;
    Size { name, family, cpus, memory_gb, gpus, gen1, temp_gb, ephemeral: temp_gb > 30, price, spot }
}

/// Those that are retired are not here: Azure does not name them either.
pub const SIZES: &[Size] = &[
    size("Standard_B1s", "standardBSFamily", (1, 1, 0), 4, 10_400, None),
    size("Standard_B2ts_v2", "standardBsv2Family", (2, 1, 0), 0, 9_400, None),
    size("Standard_D4s_v3", "standardDSv3Family", (4, 16, 0), 32, 192_000, Some(38_400)),
    size("Standard_NC4as_T4_v3", "Standard NCASv3_T4 Family", (4, 28, 1), 176, 526_000, Some(157_800)),
    size("Standard_NC8as_T4_v3", "Standard NCASv3_T4 Family", (8, 56, 1), 352, 752_000, Some(225_600)),
    size("Standard_NC16as_T4_v3", "Standard NCASv3_T4 Family", (16, 110, 1), 352, 1_204_000, Some(361_200)),
    size(
        "Standard_NC64as_T4_v3",
        "Standard NCASv3_T4 Family",
        (64, 440, 4),
        2816,
        4_352_000,
        Some(1_305_600),
    ),
    size("Standard_NV36ads_A10_v5", "StandardNVADSA10v5Family", (36, 440, 1), 1440, 3_200_000, Some(640_000)),
    size(
        "Standard_NC24ads_A100_v4",
        "StandardNCADSA100v4Family",
        (24, 220, 1),
        64,
        3_670_000,
        Some(1_100_000),
    ),
    size(
        "Standard_NC40ads_H100_v5",
        "StandardNCadsH100v5Family",
        (40, 320, 1),
        3576,
        6_980_000,
        Some(2_090_000),
    ),
];

pub(super) fn find(name: &str) -> Option<&'static Size> {
    SIZES.iter().find(|size| size.name.eq_ignore_ascii_case(name))
}

/// Per hour, in millionths of a US dollar: what is paid for besides machines.
pub const PUBLIC_IP: u64 = 5_000;
/// Premium SSD of 128 GiB is 19.71 USD a month of 730 hours; others by size.
pub const PREMIUM_GB: u64 = 211;
pub(super) const STANDARD_GB: u64 = 55;
pub(super) const SNAPSHOT_GB: u64 = 68;

/// A marketplace image: publisher, offer, sku, and its versions, the newest last.
pub(super) struct Image {
    pub(super) publisher: &'static str,
    pub(super) offer: &'static str,
    pub(super) sku: &'static str,
    pub(super) versions: &'static [&'static str],
    pub(super) generation: &'static str,
    pub(super) disk_gb: u32,
    pub(super) trusted: bool,
}

pub(super) const IMAGES: &[Image] = &[
    Image {
        publisher: "microsoft-dsvm",
        offer: "ubuntu-hpc",
        sku: "2204",
        versions: &["22.04.2026051501", "22.04.2026082901"],
        generation: "V2",
        disk_gb: 64,
        trusted: true,
    },
    Image {
        publisher: "microsoft-dsvm",
        offer: "ubuntu-hpc",
        sku: "2404",
        versions: &["24.04.2026082901"],
        generation: "V2",
        disk_gb: 64,
        trusted: true,
    },
    Image {
        publisher: "Canonical",
        offer: "ubuntu-24_04-lts",
        sku: "server",
        versions: &["24.04.202609040", "24.04.202610150"],
        generation: "V2",
        disk_gb: 30,
        trusted: true,
    },
    Image {
        publisher: "Canonical",
        offer: "ubuntu-24_04-lts",
        sku: "server-gen1",
        versions: &["24.04.202610150"],
        generation: "V1",
        disk_gb: 30,
        trusted: false,
    },
    Image {
        publisher: "Debian",
        offer: "debian-12",
        sku: "12-gen2",
        versions: &["0.20261001.2250"],
        generation: "V2",
        disk_gb: 30,
        trusted: true,
    },
];

/// The image and the version of it; `latest` is the newest.
pub(super) fn image(
    publisher: &str,
    offer: &str,
    sku: &str,
    version: &str,
) -> Option<(&'static Image, &'static str)> {
    let same = |a: &str, b: &str| a.eq_ignore_ascii_case(b);
    let image = IMAGES
        .iter()
        .find(|one| same(one.publisher, publisher) && same(one.offer, offer) && same(one.sku, sku))?;
    let version = if same(version, "latest") {
        image.versions.last()
    } else {
        image.versions.iter().find(|one| same(one, version))
    };
    Some((image, version?))
}

/// One size as `skus` lists it. What may restrict it is the caller's.
pub(super) fn sku(size: &Size, region: &str, restrictions: Value) -> Value {
    let truth = |yes: bool| if yes { "True" } else { "False" };
    let generations = if size.gen1 { "V1,V2" } else { "V2" };
    let capabilities = [
        ("MaxResourceVolumeMB", (size.temp_gb * 1024).to_string()),
        ("OSVhdSizeMB", "1047552".into()),
        ("vCPUs", size.cpus.to_string()),
        ("MemoryGB", size.memory_gb.to_string()),
        ("MaxDataDiskCount", (size.cpus.max(2) * 2).to_string()),
        ("HyperVGenerations", generations.into()),
        ("CpuArchitectureType", "x64".into()),
        ("PremiumIO", "True".into()),
        ("LowPriorityCapable", truth(size.spot.is_some()).into()),
        ("EphemeralOSDiskSupported", truth(size.ephemeral).into()),
        ("AcceleratedNetworkingEnabled", truth(size.cpus >= 2).into()),
        ("GPUs", size.gpus.to_string()),
    ];
    // A size without a GPU does not say that it has none.
    let said = capabilities.iter().filter(|(name, value)| *name != "GPUs" || value != "0");
    let capabilities: Vec<_> = said.map(|(name, value)| json!({"name": name, "value": value})).collect();
    json!({
        "resourceType": "virtualMachines",
        "name": size.name,
        "tier": "Standard",
        "size": size.name.trim_start_matches("Standard_"),
        "family": size.family,
        "locations": [region],
        "locationInfo": [{"location": region, "zones": ["1", "2", "3"], "zoneDetails": []}],
        "capabilities": capabilities,
        "restrictions": restrictions,
    })
}

/// The rows of the retail price list for one size in one region, with the ones a reader must not take.
pub(super) fn prices(size: &Size, region: &str) -> Vec<Value> {
    let short = size.name.trim_start_matches("Standard_").replace('_', " ");
    let row = |price: u64, suffix: &str, product: &str, kind: &str| {
        let price = price as f64 / 1e6;
        json!({
            "currencyCode": "USD",
            "tierMinimumUnits": 0.0,
            "retailPrice": price,
            "unitPrice": price,
            "armRegionName": region,
            "location": region,
            "effectiveStartDate": "2024-01-01T00:00:00Z",
            "meterId": uuid(&format!("{}{region}{suffix}{product}{kind}", size.name)),
            "meterName": format!("{short}{suffix}"),
            "productId": "DZH318Z0BQ4B",
            "skuId": "DZH318Z0BQ4B/00TG",
            "productName": product,
            "skuName": format!("{short}{suffix}"),
            "serviceName": "Virtual Machines",
            "serviceId": "DZH313Z7MMC8",
            "serviceFamily": "Compute",
            "unitOfMeasure": "1 Hour",
            "type": kind,
            "isPrimaryMeterRegion": true,
            "armSkuName": size.name,
        })
    };
    let product = format!("Virtual Machines {} Series", size.family.trim_start_matches("standard"));
    let windows = format!("{product} Windows");
    let mut rows = vec![
        row(size.price * 2, "", &windows, "Consumption"),
        row(size.price, "", &product, "Consumption"),
        row(size.price * 9 / 10, "", &product, "DevTestConsumption"),
        row(size.price * 8760 * 6 / 10, "", &product, "Reservation"),
    ];
    if let Some(spot) = size.spot {
        rows.push(row(spot * 2, " Spot", &windows, "Consumption"));
        rows.push(row(spot, " Spot", &product, "Consumption"));
        rows.push(row(spot * 9 / 10, " Low Priority", &product, "Consumption"));
    }
    rows
}

/// The same for the same text: names that nobody reads but everybody compares.
pub(crate) fn uuid(text: &str) -> String {
    use sha2::{Digest as _, Sha256};
    let hex: String = Sha256::digest(text.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect();
    format!("{}-{}-4{}-a{}-{}", &hex[..8], &hex[8..12], &hex[13..16], &hex[17..20], &hex[20..32])
}
