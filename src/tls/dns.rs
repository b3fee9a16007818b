//! Questions to the name servers of this machine, one record type at a time: the system's own resolver mixes addresses
//! of both kinds, does not know CAA, and cannot tell "no such name" from "no answer". It asks and reads; what follows
//! from an answer is the asker's matter.

use anyhow::{Context as _, Result, bail, ensure};
use std::{
    io::{Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket},
    time::Duration,
};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    A = 1,
    Aaaa = 28,
    Caa = 257,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Record {
    Address(IpAddr),
    Caa { critical: bool, tag: String, value: String },
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// There may be none of this kind.
    Records(Vec<Record>),
    NoSuchName,
    /// The server's own trouble, by its number: 2 is SERVFAIL.
    Fault(u8),
}

/// The servers that /etc/resolv.conf names. Pure.
pub fn servers(resolv_conf: &str) -> Vec<SocketAddr> {
    let server = |mut line: std::str::SplitWhitespace<'_>| {
        let ip = line.next().filter(|word| *word == "nameserver").and_then(|_| line.next())?;
        Some(SocketAddr::new(ip.split('%').next()?.parse().ok()?, 53))
    };
    resolv_conf.lines().filter_map(|line| server(line.split_whitespace())).collect()
}

/// The first answer that any of the servers gives.
pub fn ask(servers: &[SocketAddr], name: &str, kind: Kind, patience: Duration) -> Result<Answer> {
    let mut last = anyhow::anyhow!("/etc/resolv.conf names no server");
    for server in servers {
        match ask_one(*server, name, kind, patience) {
            Ok(answer) => return Ok(answer),
            Err(e) => last = e.context(format!("asking {server} for {name}")),
        }
    }
    Err(last)
}

fn ask_one(server: SocketAddr, name: &str, kind: Kind, patience: Duration) -> Result<Answer> {
    let mut id = [0; 2];
    getrandom::fill(&mut id)?;
    let question = question(id, name, kind)?;
    let here: IpAddr =
        if server.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((here, 0))?;
    socket.connect(server)?;
    socket.set_read_timeout(Some(patience))?;
    socket.send(&question)?;
    let mut buffer = [0; 4096];
    let answer = loop {
        let n = socket.recv(&mut buffer)?;
        if buffer[..n].starts_with(&id) {
            break &buffer[..n];
        }
    };
    // Cut off: the whole comes over TCP.
    if answer.get(2).is_some_and(|flags| flags & 2 != 0) {
        let mut tcp = TcpStream::connect_timeout(&server, patience)?;
        tcp.set_read_timeout(Some(patience))?;
        tcp.write_all(&u16::try_from(question.len())?.to_be_bytes())?;
        tcp.write_all(&question)?;
        let mut length = [0; 2];
        tcp.read_exact(&mut length)?;
        let mut whole = vec![0; usize::from(u16::from_be_bytes(length))];
        tcp.read_exact(&mut whole)?;
        return read(&whole, kind);
    }
    read(answer, kind)
}

fn question(id: [u8; 2], name: &str, kind: Kind) -> Result<Vec<u8>> {
    // Recursion wanted; one question.
    let mut bytes = [id.as_slice(), &[1, 0, 0, 1, 0, 0, 0, 0, 0, 0]].concat();
    for label in name.trim_end_matches('.').split('.') {
        ensure!((1..=63).contains(&label.len()), "{name} is no DNS name");
        bytes.push(u8::try_from(label.len())?);
        bytes.extend(label.bytes());
    }
    bytes.push(0);
    bytes.extend((kind as u16).to_be_bytes());
    bytes.extend([0, 1]);
    Ok(bytes)
}

/// What an answer says of this kind. Pure.
fn read(bytes: &[u8], kind: Kind) -> Result<Answer> {
    let short = || "the answer is cut short";
    let number = |at: usize| -> Result<usize> {
        let two = bytes.get(at..at + 2).with_context(short)?;
        Ok(usize::from(u16::from_be_bytes([two[0], two[1]])))
    };
    match bytes.get(3).with_context(short)? & 15 {
        0 => {}
        3 => return Ok(Answer::NoSuchName),
        fault => return Ok(Answer::Fault(fault)),
    }
    let skip = |mut at: usize| -> Result<usize> {
        loop {
            match *bytes.get(at).with_context(short)? {
                0 => return Ok(at + 1),
                // A pointer to where the rest was said before.
                n if n >= 0xc0 => return Ok(at + 2),
                n if n < 64 => at += 1 + usize::from(n),
                _ => bail!("the answer has a label of a kind that is not known"),
            }
        }
    };
    let (questions, answers) = (number(4)?, number(6)?);
    let mut at = 12;
    for _ in 0..questions {
        at = skip(at)? + 4;
    }
    let mut records = Vec::new();
    for _ in 0..answers {
        at = skip(at)?;
        let (what, length) = (number(at)?, number(at + 8)?);
        let data = bytes.get(at + 10..at + 10 + length).with_context(short)?;
        at += 10 + length;
        // Aliases on the way are of another kind.
        if what != kind as usize {
            continue;
        }
        records.push(match kind {
            Kind::A => Record::Address(IpAddr::from(<[u8; 4]>::try_from(data)?)),
            Kind::Aaaa => Record::Address(IpAddr::from(<[u8; 16]>::try_from(data)?)),
            Kind::Caa => {
                let (flags, tag) = (*data.first().with_context(short)?, *data.get(1).with_context(short)?);
                let value = 2 + usize::from(tag);
                let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
                Record::Caa {
                    critical: flags & 128 != 0,
                    tag: text(data.get(2..value).with_context(short)?).to_ascii_lowercase(),
                    value: text(data.get(value..).with_context(short)?),
                }
            }
        });
    }
    Ok(Answer::Records(records))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The head of an answer to one question, with so many records.
    fn answer(rcode: u8, records: &[(u16, &[u8])]) -> Vec<u8> {
        let mut bytes = question([7, 7], "a.lonel.ai", Kind::A).unwrap();
        bytes[2] |= 128;
        bytes[3] |= rcode;
        bytes[7] = u8::try_from(records.len()).unwrap();
        for (kind, data) in records {
            bytes.extend([0xc0, 12]);
            bytes.extend(kind.to_be_bytes());
            bytes.extend([0, 1, 0, 0, 0, 60]);
            bytes.extend(u16::try_from(data.len()).unwrap().to_be_bytes());
            bytes.extend(*data);
        }
        bytes
    }

    #[test]
    fn an_answer_is_read_kind_by_kind() {
        let records = |kind, bytes: &[u8]| read(bytes, kind).unwrap();
        let alias: (u16, &[u8]) = (5, &[1, b'b', 0]);
        let both = answer(0, &[alias, (1, &[192, 0, 2, 1]), (28, &[0; 16])]);
        assert_eq!(
            records(Kind::A, &both),
            Answer::Records(vec![Record::Address("192.0.2.1".parse().unwrap())])
        );
        assert_eq!(records(Kind::Aaaa, &both), Answer::Records(vec![Record::Address("::".parse().unwrap())]));
        let caa = answer(0, &[(257, b"\x80\x05ISSUEletsencrypt.org; validationmethods=http-01")]);
        let value = "letsencrypt.org; validationmethods=http-01".to_owned();
        let wanted = Record::Caa { critical: true, tag: "issue".into(), value };
        assert_eq!(records(Kind::Caa, &caa), Answer::Records(vec![wanted]));
        assert_eq!(records(Kind::A, &answer(0, &[])), Answer::Records(vec![]));
        assert_eq!(records(Kind::A, &answer(3, &[])), Answer::NoSuchName);
        assert_eq!(records(Kind::A, &answer(2, &[])), Answer::Fault(2));
    }

    #[test]
    fn an_answer_that_is_cut_anywhere_or_loops_is_refused_and_nothing_worse() {
        let whole = answer(0, &[(257, b"\x00\x05issueca.example")]);
        for cut in 0..whole.len() {
            assert!(read(&whole[..cut], Kind::Caa).is_err(), "{cut}");
        }
        let mut strange = whole.clone();
        strange[12] = 0x40;
        assert!(read(&strange, Kind::Caa).is_err());
    }

    #[test]
    fn the_servers_are_those_of_the_file() {
        let text = "# x\nsearch lan\nnameserver 192.0.2.1\nnameserver fe80::1%eth0\noptions edns0\n";
        let found = servers(text);
        assert_eq!(found, ["192.0.2.1:53".parse().unwrap(), "[fe80::1]:53".parse::<SocketAddr>().unwrap()]);
    }

    #[test]
    fn fuzz_dns_answer_is_read_or_refused() {
        crate::fuzz::run("dns", &["\u{c}", "\u{7f}"], |bytes| {
            let all = [Kind::A, Kind::Aaaa, Kind::Caa].map(|kind| read(bytes, kind).map(drop));
            let _ = servers(&String::from_utf8_lossy(bytes));
            all.into_iter().collect()
        });
    }
}
