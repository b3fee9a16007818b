//! Before an authority is asked: whether it could see this machine under each name, as far as that can be told from
//! here. Advice and no verdict: a router that does not lead its own network back to itself, or a name server that tells
//! insiders something else, makes a good machine look bad. So nothing is held back for it; it decides only that the
//! authority's staging environment is asked first, and it explains.

use super::{
    acme::CHALLENGES,
    dns::{self, Answer, Kind, Record},
};
use crate::{
    host::Host,
    web::{block_on, client},
};
use anyhow::{Context as _, Result};
use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    path::Path,
    time::Duration,
};

const PATIENCE: Duration = Duration::from_secs(2);

/// What may keep an authority from signing for a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    pub name: String,
    pub what: What,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum What {
    /// No such name, or none of either kind of address.
    NoAddress,
    /// The name servers have trouble with records of this kind; authorities take that for a no.
    Servers(&'static str, String),
    /// An address of a network that nobody outside reaches.
    Private(IpAddr),
    /// Port 80 of an address is not answered, or by somebody else.
    Port80(IpAddr, String),
    /// Records at this name allow others only.
    Caa(String, Vec<String>),
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = &self.name;
        match &self.what {
            What::NoAddress => write!(f, "{name} has no address in DNS: add an A record with this machine's"),
            What::Servers(kind, said) => {
                write!(f, "the name servers do not answer for the {kind} record of {name}: {said}")
            }
            What::Private(ip) => {
                write!(f, "{name} leads to {ip}, which cannot be reached from outside: change its record")
            }
            What::Port80(ip @ IpAddr::V6(_), said) => write!(
                f,
                "{name} has the IPv6 address {ip}, where port 80 is not this machine's as seen from here: {said}; \
                 authorities prefer IPv6, so mend it or remove the AAAA record"
            ),
            What::Port80(ip, said) => write!(
                f,
                "{name} leads to {ip}, where port 80 is not this machine's as seen from here: {said}; fine if only \
                 the way from inside is missing, else open port 80"
            ),
            What::Caa(at, allowed) if allowed.is_empty() => {
                write!(f, "the CAA records of {at} let nobody sign for {name}")
            }
            What::Caa(at, allowed) => {
                write!(f, "the CAA records of {at} let only {} sign for {name}", allowed.join(", "))
            }
        }
    }
}

/// Look at every name, all at once. `caa` are the authority's own names in CAA records; none when it has none.
pub fn look(host: &Host, names: &[String], caa: &[String]) -> Result<Vec<Finding>> {
    let resolv_conf = host.read_text(Path::new("/etc/resolv.conf"))?.unwrap_or_default();
    let servers = dns::servers(&resolv_conf);
    let mut random = [0u8; 8];
    getrandom::fill(&mut random).context("asking the kernel for random bytes")?;
    let token: String = "preflight-"
        .chars()
        .chain(random.iter().flat_map(|b| format!("{b:02x}").into_bytes()).map(char::from))
        .collect();
    let file = Path::new(CHALLENGES).join(&token);
    host.write(&file, 0o644, token.as_bytes())?;
    let look = |name: &String| {
        let whats = of_name(&servers, name, &token).into_iter().chain(forbids(&servers, name, caa));
        whats.map(|what| Finding { name: name.clone(), what }).collect::<Vec<_>>()
    };
    let found = std::thread::scope(|scope| {
        let looks: Vec<_> = names.iter().map(|name| scope.spawn(move || look(name))).collect();
        looks.into_iter().filter_map(|look| look.join().ok()).flatten().collect()
    });
    host.remove(&file)?;
    Ok(found)
}

fn of_name(servers: &[SocketAddr], name: &str, token: &str) -> Vec<What> {
    let (mut found, mut addresses) = (Vec::new(), Vec::new());
    for (kind, what) in [(Kind::A, "A"), (Kind::Aaaa, "AAAA")] {
        match dns::ask(servers, name, kind, PATIENCE) {
            Ok(Answer::Records(records)) => addresses.extend(records),
            Ok(Answer::NoSuchName) => {}
            Ok(Answer::Fault(number)) => found.push(What::Servers(what, format!("fault {number}"))),
            Err(e) => found.push(What::Servers(what, format!("{:#}", e.root_cause()))),
        }
    }
    if addresses.is_empty() && found.is_empty() {
        return vec![What::NoAddress];
    }
    for record in addresses {
        let Record::Address(ip) = record else { continue };
        if !is_public(ip) {
            found.push(What::Private(ip));
        } else if let Err(e) = knock(ip, name, token) {
            found.push(What::Port80(ip, format!("{:#}", e.root_cause())));
        }
    }
    found
}

/// Whether the internet leads there.
fn is_public(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => {
            let shared = ip.octets()[0] == 100 && (64..128).contains(&ip.octets()[1]);
            !(ip.is_private() || ip.is_loopback() || ip.is_link_local() || ip.is_unspecified() || shared)
        }
        IpAddr::V6(ip) => {
            !(ip.is_loopback() || ip.is_unspecified() || ip.is_unique_local() || ip.is_unicast_link_local())
        }
    }
}

/// Port 80 as the authority will ask it.
fn knock(ip: IpAddr, name: &str, token: &str) -> Result<()> {
    let url = format!("http://{name}/.well-known/acme-challenge/{token}");
    let answer = block_on(async { client::at(name, ip, PATIENCE)?.ask("GET", &url, None, None).await })?;
    let right = answer.status == 200 && answer.body.trim_ascii() == token.as_bytes();
    anyhow::ensure!(right, "somebody answers {} there", answer.status);
    Ok(())
}

/// What the CAA records that hold for a name forbid (RFC 8659): those of the nearest name that has any.
fn forbids(servers: &[SocketAddr], name: &str, caa: &[String]) -> Option<What> {
    let mut at = name;
    loop {
        match dns::ask(servers, at, Kind::Caa, PATIENCE) {
            Ok(Answer::Records(records)) if !records.is_empty() => return judge(at, &records, caa),
            Ok(Answer::Records(_) | Answer::NoSuchName) => {}
            Ok(Answer::Fault(number)) => return Some(What::Servers("CAA", format!("fault {number}"))),
            // Said for the addresses already.
            Err(_) => return None,
        }
        at = at.split_once('.')?.1;
    }
}

fn judge(at: &str, records: &[Record], caa: &[String]) -> Option<What> {
    let issue = records.iter().filter_map(|record| match record {
        Record::Caa { tag, value, .. } if tag == "issue" => Some(value),
        _ => None,
    });
    // What follows a semicolon are conditions: whether they are kept only the authority knows.
    let allowed: Vec<String> =
        issue.map(|value| value.split(';').next().unwrap_or("").trim().to_owned()).collect();
    let may = allowed.is_empty() || caa.is_empty() || allowed.iter().any(|who| caa.contains(who));
    let named = allowed.into_iter().filter(|who| !who.is_empty()).collect();
    (!may).then(|| What::Caa(at.into(), named))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_may_sign_is_read_as_authorities_read_it() {
        let record =
            |tag: &str, value: &str| Record::Caa { critical: false, tag: tag.into(), value: value.into() };
        let ours = ["letsencrypt.org".to_owned()];
        let table = [
            (vec![record("issue", "letsencrypt.org")], None),
            (vec![record("issue", "letsencrypt.org; validationmethods=http-01")], None),
            (vec![record("issue", "other.example"), record("issue", "letsencrypt.org")], None),
            (vec![record("iodef", "mailto:a@b.c")], None),
            (vec![record("issuewild", ";")], None),
            (vec![record("issue", "other.example")], Some(vec!["other.example"])),
            (vec![record("issue", ";")], Some(vec![])),
        ];
        for (records, allowed) in table {
            let wanted = allowed.map(|all: Vec<&str>| {
                What::Caa("lonel.ai".into(), all.into_iter().map(ToOwned::to_owned).collect())
            });
            assert_eq!(judge("lonel.ai", &records, &ours), wanted, "{records:?}");
        }
        assert_eq!(
            judge("lonel.ai", &[record("issue", "other.example")], &[]),
            None,
            "it does not say who it is"
        );
    }

    #[test]
    fn addresses_that_nobody_reaches_are_known() {
        for inside in ["10.0.0.4", "127.0.0.1", "169.254.1.1", "100.64.0.1", "::1", "fd00::1", "fe80::1"] {
            assert!(!is_public(inside.parse().unwrap()), "{inside}");
        }
        for outside in ["20.1.2.3", "100.128.0.1", "2603::1"] {
            assert!(is_public(outside.parse().unwrap()), "{outside}");
        }
    }
}
