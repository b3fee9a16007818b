//! What a virtual machine is made of, below Azure. Nothing at all for most tests; elsewhere something that boots.

use std::{collections::BTreeMap, net::Ipv4Addr};

/// What Azure's provisioning hands down to a machine.
#[derive(Debug, Clone)]
pub struct Order {
    /// The machine's resource id, lower case: what it is killed by.
    pub id: String,
    /// Its host name.
    pub name: String,
    /// Decoded, as cloud-init reads it.
    pub custom_data: Option<Vec<u8>>,
    pub admin: String,
    /// What its admin may log in with.
    pub public_keys: Vec<String>,
    pub tags: BTreeMap<String, String>,
    /// The snapshot that its disk was made of: it was set up before, in another machine.
    pub copy: Option<String>,
}

pub trait Metal: Send + Sync {
    /// Switch on; until this returns the machine is `Creating`. Its address, where the metal and not the cloud gives
    /// addresses out. An error is a machine whose system never came up.
    fn boot(&self, order: &Order) -> Result<Option<Ipv4Addr>, String>;

    /// Off, and its memory gone; its disk stays, and it may be booted again. None there is as good.
    fn kill(&self, id: &str);

    /// Off for good, with all that was in it. None there is as good.
    fn remove(&self, id: &str) {
        self.kill(id);
    }

    /// What is on the machine's disk now is to be had as this snapshot, whatever becomes of the machine.
    fn keep(&self, _id: &str, _copy: &str) {}

    /// Whether `boot` gives addresses. If so, nobody knows them before.
    fn addresses(&self) -> bool {
        false
    }

    /// Whether `boot` takes so long that nobody should wait for it.
    fn slow(&self) -> bool {
        false
    }
}

/// Machines that are words alone. The cloud gives them addresses, at which there is nothing.
#[derive(Debug, Default)]
pub struct Nothing;

impl Metal for Nothing {
    fn boot(&self, _: &Order) -> Result<Option<Ipv4Addr>, String> {
        Ok(None)
    }

    fn kill(&self, _: &str) {}
}
