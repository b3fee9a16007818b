//! Machines of the simulated Azure that are real ones: a lab machine for each, set up by real cloud-init from the
//! custom data of its request, and reached by real sshd.
//!
//! What Azure tells cloud-init through its own datasource comes here as a NoCloud seed on the disk: the name, the
//! admin and his keys. The address is the lab's, inside and outside alike, so it is known only once the machine is up.
//! There is no GPU, and the image is Debian's whatever was asked for.

use crate::{
    cloud::{Cloud, Metal, Order},
    lab::{Layer, Machine, Options, Release},
};
use anyhow::{Context as _, Result, ensure};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::Write as _,
    net::Ipv4Addr,
    os::unix::fs::PermissionsExt as _,
    process::{Command, Stdio},
    sync::Mutex,
};

pub struct LabMetal {
    release: Release,
    layer: Layer,
    machines: Mutex<BTreeMap<String, Machine>>,
    /// What the lab calls all there ever were.
    made: Mutex<BTreeSet<String>>,
}

impl LabMetal {
    /// Machines with cloud-init and these packages besides. Some seconds the first time, nothing after.
    pub fn new(release: Release, packages: &[&str]) -> Result<Self> {
        let wanted = format!("cloud-init openssh-server {}", packages.join(" "));
        let layer = Layer::cached(release, "azure", &wanted, |machine| {
            // Not its recommended packages: those resize disks, which a container has not.
            let install = format!(
                "export DEBIAN_FRONTEND=noninteractive; apt-get update -qq && apt-get install -qq -y --no-install-recommends {wanted} && apt-get clean && rm -rf /var/lib/apt/lists/*"
            );
            let out = machine.exec(&install);
            ensure!(out.code == 0, "installing {wanted}: {}", out.stderr);
            Ok(())
        })?;
        Ok(Self { release, layer, machines: Mutex::default(), made: Mutex::default() })
    }

    /// Look at one that is on: its id is not heeded for case.
    pub fn with<T>(&self, id: &str, look: impl FnOnce(&Machine) -> T) -> Option<T> {
        self.machines().get(&id.to_lowercase()).map(look)
    }

    /// Which of its machines the lab still has. Others have theirs there at the same time.
    pub fn left(&self) -> Result<Vec<String>> {
        let made = self.made.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        Ok(Machine::list()?.into_iter().filter(|name| made.contains(name)).collect())
    }

    fn machines(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, Machine>> {
        self.machines.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn make(&self, order: &Order) -> Result<Machine> {
        let name = lab_name(order);
        self.made.lock().unwrap_or_else(std::sync::PoisonError::into_inner).insert(name.clone());
        let options = Options { name: Some(name), layer: Some(self.layer.clone()), ..Options::default() };
        let machine = Machine::make(self.release, options)?;
        for (path, mode, text) in seed(order) {
            let to = machine.root().join(path);
            let dir = to.parent().context("a file needs a directory")?;
            fs::create_dir_all(dir)?;
            fs::write(&to, text).with_context(|| format!("writing {}", to.display()))?;
            fs::set_permissions(&to, fs::Permissions::from_mode(mode))?;
        }
        Ok(machine)
    }
}

impl Metal for LabMetal {
    fn boot(&self, order: &Order) -> Result<Option<Ipv4Addr>, String> {
        if order.copy.is_some() {
            return Err("the lab makes no machine of a copy of another's disk".into());
        }
        let kept = self.machines().remove(&order.id);
        let booted = || -> Result<Machine> {
            let mut machine = match kept {
                Some(machine) => machine,
                None => self.make(order)?,
            };
            machine.start()?;
            Ok(machine)
        };
        let machine = booted().map_err(|e| format!("{e:#}"))?;
        let address = machine.ip();
        // The host may remember who had this address before, and would ask in vain for ten seconds.
        let _none = Command::new("ip").args(["neigh", "flush", "to", &address.to_string()]).output();
        self.machines().insert(order.id.clone(), machine);
        Ok(Some(address))
    }

    fn kill(&self, id: &str) {
        if let Some(machine) = self.machines().get_mut(id)
            && let Err(e) = machine.power_cut()
        {
            eprintln!("lab: cutting the power of {id}: {e:#}");
        }
    }

    fn remove(&self, id: &str) {
        let gone = self.machines().remove(id);
        drop(gone);
    }

    fn addresses(&self) -> bool {
        true
    }

    fn slow(&self) -> bool {
        true
    }
}

/// The metadata service at the address where every machine of Azure's finds it. The host's own view of that address is
/// left alone: it may be a machine of some cloud itself.
pub struct Metadata;

impl Metadata {
    /// The cloud's, which is at an address that machines can reach: not on loopback.
    pub fn of(cloud: &Cloud) -> Result<Self> {
        let (_, port) = cloud.imds().rsplit_once(':').context("an address has a port")?;
        let rules = format!(
            "table ip {METADATA}\ndelete table ip {METADATA}\ntable ip {METADATA} {{
                chain into {{
                    type nat hook prerouting priority dstnat;
                    iifname \"echoes-lab\" ip daddr 169.254.169.254 tcp dport 80 redirect to :{port}
                }}
            }}\n"
        );
        let mut nft =
            Command::new("nft").args(["-f", "-"]).stdin(Stdio::piped()).spawn().context("running nft")?;
        nft.stdin.take().context("it was asked for")?.write_all(rules.as_bytes())?;
        ensure!(nft.wait()?.success(), "nft refused the way to the metadata service:\n{rules}");
        Ok(Self)
    }
}

impl Drop for Metadata {
    fn drop(&mut self) {
        let _absent = Command::new("nft").args(["delete", "table", "ip", METADATA]).output();
    }
}

const METADATA: &str = "echoes-cloud";

/// What it is called among the machines of this host: as it wants to be called, if nobody is.
fn lab_name(order: &Order) -> String {
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    let free = Machine::list().is_ok_and(|all| !all.contains(&order.name));
    if free && order.name.len() < 60 && order.name.chars().all(plain) {
        return order.name.clone();
    }
    let hash = crate::cloud::catalog::uuid(&format!("{}{}", order.id, std::process::id()));
    format!("gpu-{}", &hash[..8])
}

/// What cloud-init finds on the disk.
fn seed(order: &Order) -> Vec<(&'static str, u32, Vec<u8>)> {
    let json = |value: serde_json::Value| format!("{value}\n").into_bytes();
    let meta = json(serde_json::json!({
        "instance-id": order.id.replace('/', "-").trim_matches('-'),
        "local-hostname": order.name,
        "public-keys": order.public_keys,
    }));
    // JSON is YAML. The user that Azure's datasource would make of `adminUsername`; the network is there already.
    let settings = json(serde_json::json!({
        "datasource_list": ["NoCloud"],
        "network": {"config": "disabled"},
        "manage_etc_hosts": "localhost",
        // The one that needs no package.
        "locale": "C.UTF-8",
        "system_info": {"default_user": {
            "name": order.admin,
            "lock_passwd": true,
            "gecos": "admin",
            "groups": ["adm", "sudo"],
            "sudo": ["ALL=(ALL) NOPASSWD:ALL"],
            "shell": "/bin/bash",
        }},
    }));
    let user = order.custom_data.clone().unwrap_or_else(|| b"#cloud-config\n".to_vec());
    vec![
        ("var/lib/cloud/seed/nocloud/meta-data", 0o644, meta),
        ("var/lib/cloud/seed/nocloud/user-data", 0o600, user),
        ("etc/cloud/cloud.cfg.d/99-lab.cfg", 0o644, settings),
    ]
}
