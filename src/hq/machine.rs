//! What the blueprint has to know about the machine before it can be drawn: versions, and what the kernel has.

use super::python;
use crate::{
    host::{Cmd, Host, Kind},
    metadata,
};
use anyhow::{Context as _, Result};
use std::path::{Path, PathBuf};

/// Where this program lives when a package put it there.
const PACKAGED: &str = "/usr/bin/echoes-appliance";

/// Where it puts itself otherwise.
pub const UNPACKAGED: &str = "/usr/local/bin/echoes-appliance";

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Machine {
    /// The nginx that is, or would be, installed.
    pub nginx: (u32, u32),
    /// The interpreter of the services' environment; before there is one, the distribution's own.
    pub python: (u8, u8),
    /// The kernel speaks IPv6: a listener on `[::]` is an error without it.
    pub ipv6: bool,
    /// Where it is told about itself, as far as programs can be kept from it.
    pub metadata: Vec<&'static str>,
    /// The path under which units call this program.
    pub program: PathBuf,
    /// The hash of this program: what runs it restarts when it changes.
    pub build: String,
}

impl Machine {
    pub fn look(host: &Host) -> Result<Self> {
        let packaged = host.exists(Path::new(PACKAGED))?;
        Ok(Self {
            nginx: nginx_version(host)?,
            python: match python::look(host, &python::SERVICES)? {
                python::Seen::Right(env) => env.python,
                _ => python_version(host)?,
            },
            ipv6: !host.is_live() || host.exists(Path::new("/proc/net/if_inet6"))?,
            metadata: metadata::closable(
                &host.read_text(Path::new(metadata::RESOLV_CONF))?.unwrap_or_default(),
            ),
            program: if packaged { PACKAGED.into() } else { UNPACKAGED.into() },
            build: Host::own_hash()?,
        })
    }
}

/// Of the package that is installed, else of the one that would be; else the newest we know.
fn nginx_version(host: &Host) -> Result<(u32, u32)> {
    let admin = format!("--admindir={}", host.path(Path::new("/var/lib/dpkg")).display());
    let said =
        host.ask(&Cmd::new("dpkg-query", [&admin, "-W", "-f", "${db:Status-Status} ${Version}", "nginx"]))?;
    if let Some(version) = said.stdout.strip_prefix("installed ").and_then(major_minor) {
        return Ok(version);
    }
    if host.is_live() {
        let said = host.ask(&Cmd::new("apt-cache", ["policy", "nginx"]))?.stdout;
        let candidate = said.lines().find_map(|line| line.trim().strip_prefix("Candidate: "));
        if let Some(version) = candidate.and_then(major_minor) {
            return Ok(version);
        }
    }
    Ok((1, 26))
}

/// The distribution's python3, by the link that every Debian has; a link, so that no image need be run.
fn python_version(host: &Host) -> Result<(u8, u8)> {
    let at = Path::new("/usr/bin/python3");
    if let Some(Kind::Link(target)) = host.meta(at)?.map(|meta| meta.kind) {
        let name = target.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if let Some((major, minor)) = name.strip_prefix("python").and_then(major_minor) {
            return Ok((major.try_into()?, minor.try_into()?));
        }
    }
    // Not there yet: the package that brings it says which it will be.
    let said = host.ask(&Cmd::new("apt-cache", ["policy", "python3"]))?.stdout;
    let candidate = said.lines().find_map(|line| line.trim().strip_prefix("Candidate: "));
    let (major, minor) = candidate.and_then(major_minor).unwrap_or((3, 11));
    Ok((major.try_into()?, minor.try_into().context("reading the version of python3")?))
}

/// The first two numbers of a version, an epoch left out: `1:1.22.1-9+deb12u11` → 1, 22.
fn major_minor(version: &str) -> Option<(u32, u32)> {
    let version = version.split_once(':').map_or(version, |(_, rest)| rest);
    let mut numbers = version.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_as_debian_writes_them() {
        for (text, version) in
            [("1.22.1-9+deb12u11", (1, 22)), ("1:2.3", (2, 3)), ("3.11.2-1+b1", (3, 11)), ("3.13", (3, 13))]
        {
            assert_eq!(major_minor(text), Some(version), "{text}");
        }
        assert_eq!(major_minor("(none)"), None);
    }
}
