//! The lab's network: one bridge, one private range, and a way out through the host's own address.
//!
//! A machine's interface is made and addressed before it boots, so nothing inside has to configure it and a
//! reboot does not lose it. Machines and the host reach each other on any port.

use super::{room, run};
use anyhow::{Context as _, Result};
use std::{
    fs,
    io::Write as _,
    net::{Ipv4Addr, Ipv6Addr},
    process::{Command, Stdio},
};

const NAME: &str = "echoes-lab";
/// Of the range that nobody is given. It follows from the number, as the addresses do: whoever has talked to an earlier
/// machine of that number remembers both.
fn mac(number: u8) -> String {
    format!("02:65:63:68:6f:{number:02x}")
}

/// The host's own address on the bridge is number 1; machines count from 2.
pub(super) fn v4(number: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 213, 77, number)
}

/// Unique local, for host and machines among themselves: there is no v6 way out, because forwarding v6 would
/// make the host deaf to router advertisements.
pub(super) fn v6(number: u8) -> Ipv6Addr {
    Ipv6Addr::new(0xfd6c, 0x6162, 0x6563, 0x686f, 0, 0, 0, u16::from(number))
}

/// The name of a machine's network namespace.
pub(super) fn namespace(name: &str) -> String {
    format!("{NAME}-{name}")
}

fn veth(number: u8) -> String {
    format!("{NAME}-{number}")
}

/// Put the machine on the network. The caller holds the gate.
pub(super) fn join(name: &str, number: u8) -> Result<()> {
    up()?;
    let (space, veth, mtu) = (namespace(name), veth(number), mtu()?);
    run("ip", ["netns", "add", &space])?;
    let mac = mac(number);
    let peer = ["peer", "name", "eth0", "mtu", &mtu, "address", &mac, "netns", &space];
    let link = ["link", "add", &veth, "mtu", &mtu, "type", "veth"];
    run("ip", link.into_iter().chain(peer))?;
    run("ip", ["link", "set", &veth, "master", NAME, "up"])?;
    let (v4, v6) = (format!("{}/24", self::v4(number)), format!("{}/64", v6(number)));
    let gateway = self::v4(1).to_string();
    let inside: [&[&str]; 5] = [
        &["link", "set", "lo", "up"],
        &["link", "set", "eth0", "up"],
        &["addr", "add", &v4, "dev", "eth0"],
        // Without duplicate detection: it would hold the address back for a second.
        &["-6", "addr", "add", &v6, "dev", "eth0", "nodad"],
        &["route", "add", "default", "via", &gateway],
    ];
    for args in inside {
        run("ip", ["-n", &space].into_iter().chain(args.iter().copied()))?;
    }
    Ok(())
}

/// Take the machine off; the last one out takes the bridge and the rules with it. The caller holds the gate
/// and has ended the machine's processes. `ip_forward` stays on: somebody else may have come to need it.
pub(super) fn leave(name: &str, number: Option<u8>) -> Result<()> {
    if let Some(number) = number {
        // Gone at once this way; with the namespace it would go some time after.
        let _absent = run("ip", ["link", "del", &veth(number)]);
    }
    let space = namespace(name);
    if fs::exists(format!("/run/netns/{space}"))? {
        run("ip", ["netns", "del", &space])?;
    }
    let others = room::rooms(room::Kind::Machine)?.iter().filter(|dir| !dir.ends_with(name)).count();
    if others == 0 {
        let _absent = run("ip", ["link", "del", NAME]);
        let _absent = run("nft", ["delete", "table", "inet", NAME]);
    }
    Ok(())
}

/// The bridge and the rules, made unless they are there.
fn up() -> Result<()> {
    if !fs::exists(format!("/sys/class/net/{NAME}"))? {
        // With an address of its own: else it takes the lowest of its ports', and whenever a machine comes or goes, the
        // others talk to an address that nobody has any more.
        run("ip", ["link", "add", NAME, "address", &mac(1), "type", "bridge"])?;
        run("ip", ["addr", "add", &format!("{}/24", v4(1)), "dev", NAME])?;
        run("ip", ["-6", "addr", "add", &format!("{}/64", v6(1)), "dev", NAME, "nodad"])?;
        run("ip", ["link", "set", NAME, "up"])?;
    }
    fs::write("/proc/sys/net/ipv4/ip_forward", "1").context("turning on ip_forward")?;
    let range = v4(0);
    // The first line makes the second succeed whether or not the table was there. Who asks for the metadata of a cloud
    // would be told this host's.
    let mut rules = format!(
        "table inet {NAME}\ndelete table inet {NAME}\ntable inet {NAME} {{
            chain out {{
                type nat hook postrouting priority srcnat;
                ip saddr {range}/24 ip daddr != {range}/24 masquerade
            }}
            chain through {{
                type filter hook forward priority filter;
                ip saddr {range}/24 ip daddr 169.254.0.0/16 drop
            }}
        }}\n"
    );
    // Where Docker runs, it drops whatever it does not know on the way through; this chain is its door for
    // others. Not a table of ours, so the rules are added once and stay.
    if let Ok(chain) = run("nft", ["list", "chain", "ip", "filter", "DOCKER-USER"])
        && !chain.contains(NAME)
    {
        for way in ["iifname", "oifname"] {
            rules += &format!("insert rule ip filter DOCKER-USER {way} \"{NAME}\" accept\n");
        }
    }
    let mut nft = Command::new("nft").args(["-f", "-"]).stdin(Stdio::piped()).spawn()?;
    nft.stdin.take().context("nft takes its rules on standard input")?.write_all(rules.as_bytes())?;
    anyhow::ensure!(nft.wait()?.success(), "nft refused the lab's rules:\n{rules}");
    Ok(())
}

/// That of the host's way out: a larger one would lose big packets wherever ICMP is filtered.
fn mtu() -> Result<String> {
    let routes = run("ip", ["-4", "route", "show", "default"])?;
    let mut words = routes.split_whitespace().skip_while(|word| *word != "dev");
    let device = words.nth(1).context("the host has no default route")?;
    let mtu = fs::read_to_string(format!("/sys/class/net/{device}/mtu"))?;
    Ok(mtu.trim().to_owned())
}

/// The host's name servers as a machine can use them.
pub(super) fn resolv_conf() -> Result<String> {
    // systemd-resolved's stub listens on the host's loopback, where no machine can reach it; this file has
    // the servers behind it.
    for path in ["/etc/resolv.conf", "/run/systemd/resolve/resolv.conf"] {
        let Ok(text) = fs::read_to_string(path) else { continue };
        let reachable = |line: &&str| {
            let server = line.strip_prefix("nameserver").map(str::trim);
            server.is_none_or(|ip| !ip.starts_with("127.") && ip != "::1")
        };
        let lines: Vec<_> = text.lines().filter(reachable).collect();
        if lines.iter().any(|line| line.starts_with("nameserver")) {
            // Many machines at once lose a question now and then, and two in a row end an installation.
            return Ok(lines.join("\n") + "\noptions timeout:2 attempts:5\n");
        }
    }
    anyhow::bail!("the host names no name server that a machine could reach")
}
