//! The user behind a connection on loopback, as the kernel's own table of connections has it. nginx says which connection it
//! is; nothing that a client sends is believed.

use crate::host::Host;
use anyhow::{Context as _, Result, bail};
use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::Path,
    str::FromStr,
};

/// The group of those who may use the services of this machine without a password.
const MEMBERS: &str = "echoes";

/// Of this process's own network. /proc/net/tcp is the same, and hidden where /proc shows processes alone.
const TABLES: [&str; 2] = ["/proc/self/net/tcp", "/proc/self/net/tcp6"];

/// The network of the addresses that stand for users of this machine, of those that are free for private use.
const USERS: u128 = 0xfdec_0e50 << 96;

/// The two ends of a connection, both on this machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Connection {
    client: SocketAddr,
    server: SocketAddr,
}

impl FromStr for Connection {
    type Err = anyhow::Error;

    /// As nginx writes it: the client's address and port, then its own.
    fn from_str(text: &str) -> Result<Self> {
        let words: Vec<&str> = text.split(' ').collect();
        let [client, client_port, server, server_port] = words[..] else {
            bail!("a connection is two addresses with their ports, not `{}`", text.escape_default());
        };
        let end = |ip: &str, port: &str| -> Result<SocketAddr> {
            Ok(SocketAddr::new(ip.parse::<IpAddr>()?.to_canonical(), port.parse()?))
        };
        let both = || Ok((end(client, client_port)?, end(server, server_port)?));
        let (client, server) =
            both().map_err(|e: anyhow::Error| e.context(format!("reading `{}`", text.escape_default())))?;
        Ok(Self { client, server })
    }
}

impl Connection {
    /// The user whose socket is the client's end; none where that is not on this machine, or closed.
    ///
    /// The table is read in pieces while others come and go, so that one that is there may be missed: asked twice.
    pub fn user(self, host: &Host) -> Result<Option<u32>> {
        for _ in 0..2 {
            for table in TABLES {
                let text = host.read_text(Path::new(table))?.unwrap_or_default();
                if let Some(uid) = text.lines().find_map(|line| self.user_in(line)) {
                    return Ok(Some(uid));
                }
            }
        }
        Ok(None)
    }

    /// The user of a line of the table, where the line is this connection's as the client has it.
    fn user_in(self, line: &str) -> Option<u32> {
        /// The client may have sent all it has to say, never closed: a closed one has no user any more, and reads as root's.
        const OPEN: [&str; 2] = ["01", "08"];
        // sl local remote state queues timer retransmits uid timeout inode …
        let words: Vec<&str> = line.split_ascii_whitespace().take(10).collect();
        let [_, local, remote, state, _, _, _, uid, _, inode] = words[..] else { return None };
        let is_open = OPEN.contains(&state) && inode != "0";
        let is_it = is_open && end(local)? == self.client && end(remote)? == self.server;
        is_it.then(|| uid.parse().ok())?
    }
}

/// `0100007F:1388`: an address as words of this machine's own byte order, and a port.
fn end(text: &str) -> Option<SocketAddr> {
    let (address, port) = text.split_once(':')?;
    let word = |at: usize| u32::from_str_radix(address.get(at..at + 8)?, 16).ok().map(u32::to_ne_bytes);
    let ip: IpAddr = match address.len() {
        8 => Ipv4Addr::from(word(0)?).into(),
        32 => {
            let mut bytes = [0; 16];
            for (n, four) in bytes.chunks_exact_mut(4).enumerate() {
                four.copy_from_slice(&word(8 * n)?);
            }
            Ipv6Addr::from(bytes).into()
        }
        _ => return None,
    };
    Some(SocketAddr::new(ip.to_canonical(), u16::from_str_radix(port, 16).ok()?))
}

/// Whether this user may use the services without a password: root, and the members of `echoes`.
pub fn is_member(host: &Host, uid: u32) -> Result<bool> {
    if uid == 0 {
        return Ok(true);
    }
    let read = |path: &str| Ok::<_, anyhow::Error>(host.read_text(Path::new(path))?.unwrap_or_default());
    let (users, groups) = (read("/etc/passwd")?, read("/etc/group")?);
    let Some((gid, names)) = group(&groups, MEMBERS) else { return Ok(false) };
    // Several names may have one number.
    let mut own = users.lines().map(|line| line.split(':').collect::<Vec<_>>());
    Ok(own.any(|row| match row[..] {
        [name, _, id, own_gid, ..] => {
            id.parse() == Ok(uid) && (own_gid == gid || names.split(',').any(|member| member == name))
        }
        _ => false,
    }))
}

/// The number and the members of a group.
fn group<'a>(groups: &'a str, name: &str) -> Option<(&'a str, &'a str)> {
    groups.lines().find_map(|line| match line.split(':').collect::<Vec<_>>()[..] {
        [found, _, gid, members] if found == name => Some((gid, members)),
        _ => None,
    })
}

/// An address that stands for a user of this machine, where wrong passwords are counted by address: one neighbour's guesses
/// hinder no other's logins.
pub fn address(uid: u32) -> IpAddr {
    Ipv6Addr::from_bits(USERS | u128::from(uid) << 64).into()
}

/// `user 1000 of this machine` where an address stands for one.
pub fn words(ip: IpAddr) -> String {
    match ip {
        IpAddr::V6(v6) if v6.to_bits() >> 96 == USERS >> 96 => {
            format!("user {} of this machine", v6.to_bits() >> 64 & u128::from(u32::MAX))
        }
        _ => ip.to_string(),
    }
}

/// What the kernel knows of a client that nginx names so; no user where it knows none.
pub fn look(host: &Host, connection: &str) -> Result<Option<(u32, bool)>> {
    let connection: Connection = connection.parse()?;
    let Some(uid) = connection.user(host).context("looking for the user of a connection")? else {
        return Ok(None);
    };
    Ok(Some((uid, is_member(host, uid)?)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::System;
    use std::net::{TcpListener, TcpStream};

    /// Of a machine whose byte order is this one's: every one that Debian calls by these names.
    const HEAD: &str =
        "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n";

    fn row(client: &str, server: &str, state: &str, uid: u32, inode: u32) -> String {
        format!(
            "{HEAD}   0: {client} {server} {state} 00000000:00000000 00:00000000 00000000 {uid:5}        0 {inode} 1 0 20 4\n"
        )
    }

    fn machine(v4: &str, v6: &str) -> (tempfile::TempDir, Host) {
        let dir = tempfile::tempdir().unwrap();
        let host = Host::new(dir.path(), System);
        for (path, text) in [
            (TABLES[0], v4),
            (TABLES[1], v6),
            (
                "/etc/passwd",
                "root:x:0:0::/root:/bin/sh\nana:x:1000:1000::/:/bin/sh\nbob:x:1001:1001::/:/bin/sh\nold:x:1002:990::/:/bin/sh\nana2:x:1003:1003::/:/bin/sh\n",
            ),
            ("/etc/group", "root:x:0:\nxechoes:x:7:bob\nechoes:x:990:ana,tensorboard\nana2:x:1003:\n"),
        ] {
            host.write(Path::new(path), 0o644, text.as_bytes()).unwrap();
        }
        (dir, host)
    }

    #[test]
    fn only_an_open_socket_of_exactly_this_connection_has_a_user() {
        let asked: Connection = "127.0.0.1 40000 127.0.0.1 5000".parse().unwrap();
        let (client, server) = ("0100007F:9C40", "0100007F:1388");
        let mapped = |end: &str| format!("0000000000000000FFFF0000{end}");
        let of = |v4: String, v6: String| asked.user(&machine(&v4, &v6).1).unwrap();
        assert_eq!(of(row(client, server, "01", 1000, 77), String::new()), Some(1000));
        assert_eq!(of(row(client, server, "08", 1000, 77), String::new()), Some(1000));
        assert_eq!(of(HEAD.into(), row(&mapped(client), &mapped(server), "01", 1001, 77)), Some(1001));
        for (why, line) in [
            ("nginx's own end of it", row(server, client, "01", 33, 77)),
            ("closed: TIME_WAIT reads as root's", row(client, server, "06", 0, 0)),
            ("closed by its process", row(client, server, "01", 0, 0)),
            ("on its way out", row(client, server, "04", 0, 77)),
            ("to another port", row(client, "0100007F:1770", "01", 0, 77)),
            ("from another port", row("0100007F:9C41", server, "01", 0, 77)),
            ("from another address", row("0200007F:9C40", server, "01", 0, 77)),
            ("listening", row(server, "00000000:0000", "0A", 0, 77)),
            ("half a line", row(client, server, "01", 0, 77)[..120].to_owned()),
        ] {
            assert_eq!(of(line, String::new()), None, "{why}");
        }
    }

    #[test]
    fn root_and_the_group_are_members_and_nobody_else() {
        let (_dir, host) = machine("", "");
        let member = |uid| is_member(&host, uid).unwrap();
        // By the list, and by the group that is one's own.
        assert!(member(0) && member(1000) && member(1002));
        // Of a group with a longer name; of none; unknown to this machine.
        assert!(!member(1001) && !member(1003) && !member(4242));
        host.write(Path::new("/etc/group"), 0o644, b"root:x:0:\n").unwrap();
        assert!(member(0) && !member(1000) && !member(1002));
    }

    #[test]
    fn what_is_no_connection_is_refused() {
        for bad in [
            "",
            "127.0.0.1 1 127.0.0.1",
            "127.0.0.1 1 127.0.0.1 2 3",
            "a 1 b 2",
            "127.0.0.1 70000 ::1 1",
            "127.0.0.1:1 ::1:2",
        ] {
            assert!(bad.parse::<Connection>().is_err(), "{bad}");
        }
        assert!("::1 40000 ::1 5000".parse::<Connection>().is_ok());
    }

    #[test]
    fn the_kernel_names_the_user_of_a_real_connection_over_both_families() {
        let host = Host::new("/", System);
        let own = nix::unistd::geteuid().as_raw();
        for at in ["127.0.0.1:0", "[::1]:0", "[::ffff:127.0.0.1]:0"] {
            let Ok(listener) = TcpListener::bind(at) else { continue };
            let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let (server, _) = listener.accept().unwrap();
            let (from, to) = (client.local_addr().unwrap(), client.peer_addr().unwrap());
            let named = format!("{} {} {} {}", from.ip(), from.port(), to.ip(), to.port());
            let asked: Connection = named.parse().unwrap();
            assert_eq!(asked.user(&host).unwrap(), Some(own), "{at}");
            drop(client);
            // Closed by its process, whoever still has the other end.
            assert_eq!(asked.user(&host).unwrap(), None, "{at}");
            drop(server);
        }
    }

    #[test]
    fn an_address_for_a_user_is_one_of_its_own_network_and_is_said_in_words() {
        assert_eq!(words(address(1000)), "user 1000 of this machine");
        assert_eq!(words(address(u32::MAX)), format!("user {} of this machine", u32::MAX));
        assert_eq!(words("192.0.2.1".parse().unwrap()), "192.0.2.1");
        assert_ne!(address(1000), address(1001));
    }
}
