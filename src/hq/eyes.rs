//! What only the running machine can tell, asked once for all: which packages there are, what state the units
//! are in. One question for everything is what makes an install with nothing to do take no time.

use crate::host::{Cmd, Host};
use anyhow::Result;
use std::{collections::BTreeMap, path::Path};

#[derive(Debug, Default)]
pub struct Eyes {
    /// Installed packages among those asked about, and their versions.
    pub packages: BTreeMap<String, String>,
    pub units: BTreeMap<String, UnitFacts>,
}

#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct UnitFacts {
    pub enabled: bool,
    /// systemd's ActiveState: active, activating, failed, …
    pub active: String,
    pub properties: BTreeMap<String, String>,
}

const PROPERTIES: &str =
    "Id,ActiveState,SubState,UnitFileState,NRestarts,MemoryCurrent,ActiveEnterTimestampMonotonic,Result";

impl Eyes {
    pub fn open(host: &Host, packages: &[&str], units: &[&str]) -> Result<Self> {
        if !host.is_live() {
            return Self::open_image(host, units);
        }
        let mut eyes = Self::default();
        if !packages.is_empty() {
            let mut args = vec!["-W", "-f", "${Package} ${db:Status-Status} ${Version}\\n"];
            args.extend(packages);
            // Exit status 1 means that one of them is unknown, which is an answer.
            eyes.packages = installed(&host.ask(&Cmd::new("dpkg-query", args))?.stdout);
        }
        if !units.is_empty() {
            let mut args = vec!["show", "-p", PROPERTIES];
            args.extend(units);
            eyes.units = unit_facts(&host.ask(&Cmd::new("systemctl", args))?.stdout);
        }
        Ok(eyes)
    }

    fn open_image(host: &Host, units: &[&str]) -> Result<Self> {
        let root = format!("--root={}", host.root().display());
        let mut eyes = Self::default();
        for unit in units {
            let enabled = host.ask(&Cmd::new("systemctl", [&root, "is-enabled", unit]))?.ok();
            eyes.units.insert((*unit).into(), UnitFacts { enabled, ..UnitFacts::default() });
        }
        Ok(eyes)
    }

    /// Whether somebody changed this file of a package since it was unpacked.
    pub fn edited(&self, host: &Host, package: &str, path: &Path) -> Result<bool> {
        let said = host.ask(&Cmd::new("dpkg", ["--verify", package]))?.stdout;
        Ok(said.lines().any(|line| line.split_whitespace().last() == path.to_str()))
    }
}

fn installed(said: &str) -> BTreeMap<String, String> {
    let row = |line: &str| {
        let mut words = line.split(' ');
        let (name, status, version) = (words.next()?, words.next()?, words.next()?);
        (status == "installed").then(|| (name.to_owned(), version.to_owned()))
    };
    said.lines().filter_map(row).collect()
}

fn unit_facts(said: &str) -> BTreeMap<String, UnitFacts> {
    let block = |text: &str| {
        let properties: BTreeMap<String, String> = text
            .lines()
            .filter_map(|line| line.split_once('='))
            .map(|(k, v)| (k.to_owned(), v.to_owned()))
            .collect();
        let get = |name: &str| properties.get(name).cloned().unwrap_or_default();
        let enabled =
            matches!(get("UnitFileState").as_str(), "enabled" | "enabled-runtime" | "static" | "alias");
        Some((get("Id"), UnitFacts { enabled, active: get("ActiveState"), properties }))
    };
    said.split("\n\n").filter_map(block).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_wholly_installed_counts() {
        let said = "nginx installed 1.22.1-9\nold config-files 1.0\nhalf half-configured 2\n";
        assert_eq!(installed(said), BTreeMap::from([("nginx".into(), "1.22.1-9".into())]));
    }

    #[test]
    fn units_are_told_apart() {
        let said = "Id=a.service\nActiveState=active\nUnitFileState=enabled\n\nId=b.service\nActiveState=failed\nUnitFileState=\n";
        let units = unit_facts(said);
        assert_eq!((units["a.service"].enabled, units["a.service"].active.as_str()), (true, "active"));
        assert_eq!((units["b.service"].enabled, units["b.service"].active.as_str()), (false, "failed"));
    }
}
