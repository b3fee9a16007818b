//! Our own certificate authority, for names that no public one signs. It signs and does nothing else: where
//! certificates are kept is `store`'s matter, and who trusts us is decided by whoever installs `ca.crt`.
//!
//! The authority is one key, made once, and a certificate about it that is made anew when it is needed: with a
//! third of its ten years left, or for another domain. The name carries the domain, so that a client that has
//! both certificates never takes the one for the other; and with the same key and name, what an old copy of
//! `ca.crt` vouched for stays good until that copy ends. One file changes at a time, so no crash can leave a
//! certificate beside a key that is not its own.
//!
//! It can sign only for its domain: name constraints say so, and clients hold even a trusted root to them
//! (OpenSSL and webpki are asked in the tests). So whoever steals the key can play this HQ, and not a team
//! member's bank.

use super::store::{self, DIR, Facts, Pair};
use crate::host::Host;
use anyhow::{Context as _, Result};
use rcgen::{
    BasicConstraints, CertificateParams, CidrSubnet, DistinguishedName, DnType, ExtendedKeyUsagePurpose,
    GeneralSubtree, IsCa, Issuer, KeyPair, KeyUsagePurpose, NameConstraints, PKCS_ECDSA_P256_SHA256, SanType,
    SerialNumber,
};
use std::{
    fmt,
    path::{Path, PathBuf},
};
use time::{Duration, OffsetDateTime};
use x509_parser::parse_x509_certificate;

const CA_LIFE: Duration = Duration::days(3650);
/// Apple refuses more than 825 days even from a private authority; less is only a matter of the timer.
const LEAF_LIFE: Duration = Duration::days(90);
/// A new machine's clock, and a laptop's, may be behind.
const SLOW_CLOCK: Duration = Duration::hours(1);

pub fn ca_crt() -> PathBuf {
    Path::new(DIR).join("ca.crt")
}

pub fn ca_key() -> PathBuf {
    Path::new(DIR).join("ca.key")
}

/// The authority, ready to sign.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pub pem: String,
    pub facts: Facts,
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authority").field("facts", &self.facts).finish_non_exhaustive()
    }
}

/// Whether a certificate must be replaced.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Due {
    Renew(Why),
    /// Good, and to be looked at again then.
    Fresh {
        until: OffsetDateTime,
    },
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Why {
    Absent,
    Unreadable,
    /// The names it should be for are not the names it is for.
    Names,
    /// The key beside it is another's.
    Key,
    /// Somebody besides root could read the key.
    KeyOpen,
    /// This authority did not sign it.
    Authority,
    NotYetValid,
    /// A third of its life is left, or less.
    Ending,
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Absent => "there is none",
            Self::Unreadable => "it cannot be read",
            Self::Names => "it is for other names",
            Self::Key => "its key does not belong to it",
            Self::KeyOpen => "its key could be read by others",
            Self::Authority => "it was not signed by this authority",
            Self::NotYetValid => "it is not valid yet",
            Self::Ending => "it ends soon",
        })
    }
}

/// A certificate in use, as far as deciding about it needs to know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    pub facts: Facts,
    pub key_matches: bool,
    /// Permission bits of the key's file.
    pub key_mode: u32,
    /// Whether this authority signed it.
    pub signed_by_us: bool,
}

/// Whether what is in use for `names` must be replaced. `None` for what could not be read.
pub fn due(seen: Option<&Seen>, names: &[String], now: OffsetDateTime) -> Due {
    let Some(seen) = seen else { return Due::Renew(Why::Unreadable) };
    let sorted = |names: &[String]| {
        let mut names: Vec<_> = names.iter().map(|n| n.to_ascii_lowercase()).collect();
        names.sort();
        names
    };
    let until = end_of_freshness(&seen.facts);
    let faults = [
        (!seen.signed_by_us, Why::Authority),
        (!seen.key_matches, Why::Key),
        (seen.key_mode & 0o077 != 0, Why::KeyOpen),
        (sorted(&seen.facts.names) != sorted(names), Why::Names),
        (now < seen.facts.not_before, Why::NotYetValid),
        (now >= until, Why::Ending),
    ];
    match faults.into_iter().find(|(is_so, _)| *is_so) {
        Some((_, why)) => Due::Renew(why),
        None => Due::Fresh { until },
    }
}

/// When a third of its life is left.
fn end_of_freshness(facts: &Facts) -> OffsetDateTime {
    facts.not_after - (facts.not_after - facts.not_before) / 3
}

impl Authority {
    /// This machine's authority for a domain and all below it, as it is; `None` when `keep` would have to make
    /// or renew it.
    pub fn look(host: &Host, domain: &str, now: OffsetDateTime) -> Result<Option<Self>> {
        let (Some(key), Some(pem)) = (Self::key(host)?, host.read_text(&ca_crt())?) else { return Ok(None) };
        let Some(facts) = Self::good(&pem, &key, &domain.to_ascii_lowercase(), now) else { return Ok(None) };
        Ok(Some(Self { issuer: Issuer::from_ca_cert_pem(&pem, key)?, pem, facts }))
    }

    /// As `look`, made or renewed if need be. Says whether `ca.crt` is new, and so must be trusted anew or
    /// before long.
    pub fn keep(host: &Host, domain: &str, now: OffsetDateTime) -> Result<(Self, bool)> {
        let key = match Self::key(host)? {
            Some(key) => key,
            None => KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?,
        };
        if host.meta(&ca_key())?.is_none_or(|meta| meta.mode & 0o077 != 0) {
            host.write(&ca_key(), 0o600, key.serialize_pem().as_bytes())?;
        }
        if let Some(it) = Self::look(host, domain, now)? {
            return Ok((it, false));
        }
        let pem = Self::certificate(&key, &domain.to_ascii_lowercase(), now)
            .context("making the certificate authority")?;
        host.write(&ca_crt(), 0o644, pem.as_bytes())?;
        let facts = store::facts(&pem)?;
        Ok((Self { issuer: Issuer::from_ca_cert_pem(&pem, key)?, pem, facts }, true))
    }

    /// The certificate as it is on disk, to be handed to people, whether or not it is still right.
    pub fn read(host: &Host) -> Result<Option<(String, Facts)>> {
        let Some(pem) = host.read_text(&ca_crt())? else { return Ok(None) };
        let facts = store::facts(&pem).with_context(|| format!("reading {}", ca_crt().display()))?;
        Ok(Some((pem, facts)))
    }

    fn key(host: &Host) -> Result<Option<KeyPair>> {
        let path = ca_key();
        let Some(pem) = host.read_text(&path)? else { return Ok(None) };
        let key = KeyPair::from_pem(&pem).with_context(|| {
            let p = path.display();
            format!("reading {p}: move it away to begin with a new authority, that must be trusted anew")
        })?;
        Ok(Some(key))
    }

    /// What the certificate says, if it is still the right one.
    fn good(pem: &str, key: &KeyPair, domain: &str, now: OffsetDateTime) -> Option<Facts> {
        let facts = store::facts(pem).ok()?;
        let pair = Pair { chain: pem.into(), key: key.serialize_pem() };
        let right = store::key_matches(&pair).is_ok_and(|it| it)
            && facts.subject == format!("CN={}", common_name(domain))
            && facts.not_before <= now
            && now < end_of_freshness(&facts);
        right.then_some(facts)
    }

    fn certificate(key: &KeyPair, domain: &str, now: OffsetDateTime) -> Result<String> {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, common_name(domain));
        params.serial_number = Some(serial()?);
        (params.not_before, params.not_after) = (now - SLOW_CLOCK, now + CA_LIFE);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.name_constraints = Some(NameConstraints {
            permitted_subtrees: vec![GeneralSubtree::DnsName(domain.into())],
            // A constraint on DNS names says nothing of addresses.
            excluded_subtrees: vec![
                GeneralSubtree::IpAddress(CidrSubnet::V4([0; 4], [0; 4])),
                GeneralSubtree::IpAddress(CidrSubnet::V6([0; 16], [0; 16])),
            ],
        });
        // Some clients look for it even in a root.
        params.use_authority_key_identifier_extension = true;
        Ok(params.self_signed(key)?.pem())
    }

    /// A new key and a certificate for it. It ends no later than the authority does.
    pub fn sign(&self, names: &[String], now: OffsetDateTime) -> Result<Pair> {
        let doing = || format!("signing a certificate for {}", names.join(", "));
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).with_context(doing)?;
        let mut params = CertificateParams::default();
        // Names count only as alternative names. A subject there must be all the same: with none, strict
        // clients want those marked critical.
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::OrganizationName, "echoes-appliance");
        let names = names.iter().map(|n| Ok(SanType::DnsName(n.to_ascii_lowercase().try_into()?)));
        params.subject_alt_names = names.collect::<Result<_, rcgen::Error>>().with_context(doing)?;
        params.serial_number = Some(serial()?);
        params.not_before = now - SLOW_CLOCK;
        params.not_after = (now + LEAF_LIFE).min(self.facts.not_after);
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.use_authority_key_identifier_extension = true;
        let cert = params.signed_by(&key, &self.issuer).with_context(doing)?;
        Ok(Pair { chain: cert.pem(), key: key.serialize_pem() })
    }

    /// Whether this authority signed the first certificate of a chain.
    pub fn signed(&self, chain: &str) -> Result<bool> {
        signed(&self.pem, chain)
    }
}

fn signed(ca: &str, chain: &str) -> Result<bool> {
    let (ca, certs) = (store::ders(ca)?, store::ders(chain)?);
    let (Some(ca), Some(cert)) = (ca.first(), certs.first()) else { return Ok(false) };
    let ((_, ca), (_, cert)) = (parse_x509_certificate(ca)?, parse_x509_certificate(cert)?);
    Ok(cert.issuer() == ca.subject() && cert.verify_signature(Some(ca.public_key())).is_ok())
}

/// Whether the authority on this machine, whatever its age, signed the first certificate of a chain.
pub fn is_ours(host: &Host, chain: &str) -> Result<bool> {
    match host.read_text(&ca_crt())? {
        Some(ca) => signed(&ca, chain),
        None => Ok(false),
    }
}

fn common_name(domain: &str) -> String {
    // A common name has room for 64 characters; a domain may have 253. What is cut off is still in the
    // constraints, but two such domains must not share a name: so a hash takes its place.
    let name = format!("echoes-appliance for {domain}");
    if name.len() <= 64 {
        return name;
    }
    use sha2::Digest as _;
    let hash = sha2::Sha256::digest(domain);
    format!("echoes-appliance for {:02x}{:02x}{:02x}{:02x}", hash[0], hash[1], hash[2], hash[3])
}

/// 128 random bits, positive and of full length.
fn serial() -> Result<SerialNumber> {
    let mut bytes = [0u8; 17];
    getrandom::fill(&mut bytes[1..]).context("asking the kernel for random bytes")?;
    // A leading one, so that no serial is shorter or negative: all 128 bits after it stay random.
    bytes[0] = 1;
    Ok(SerialNumber::from_slice(&bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        host::{Cmd, System},
        tls,
    };
    use time::macros::datetime;

    const NOW: OffsetDateTime = datetime!(2026-11-23 12:00 UTC);
    const NAME: &str = "mlflow.example.org";

    fn machine() -> (tempfile::TempDir, Host) {
        let dir = tempfile::tempdir().unwrap();
        let host = Host::new(dir.path(), System);
        (dir, host)
    }

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|&n| n.to_owned()).collect()
    }

    #[test]
    fn a_certificate_is_renewed_for_each_reason_and_for_no_other() {
        let seen = || Seen {
            facts: Facts {
                names: names(&["b.example.org", NAME]),
                not_before: NOW,
                not_after: NOW + Duration::days(90),
                serial: "01".into(),
                fingerprint: "00".into(),
                subject: "O=x".into(),
                issuer: "CN=y".into(),
            },
            key_matches: true,
            key_mode: 0o600,
            signed_by_us: true,
        };
        let wanted = names(&[NAME, "B.example.org"]);
        let fresh = Due::Fresh { until: NOW + Duration::days(60) };
        let day = |n| NOW + Duration::days(n);
        let table = [
            (Some(seen()), NOW, fresh.clone()),
            (Some(seen()), day(60) - Duration::SECOND, fresh),
            (Some(seen()), day(60), Due::Renew(Why::Ending)),
            (Some(seen()), day(600), Due::Renew(Why::Ending)),
            (Some(seen()), NOW - Duration::SECOND, Due::Renew(Why::NotYetValid)),
            (Some(Seen { key_matches: false, ..seen() }), NOW, Due::Renew(Why::Key)),
            (Some(Seen { key_mode: 0o640, ..seen() }), NOW, Due::Renew(Why::KeyOpen)),
            (Some(Seen { signed_by_us: false, ..seen() }), NOW, Due::Renew(Why::Authority)),
            (None, NOW, Due::Renew(Why::Unreadable)),
        ];
        for (seen, now, expected) in table {
            assert_eq!(due(seen.as_ref(), &wanted, now), expected, "{seen:?}");
        }
        assert_eq!(due(Some(&seen()), &names(&[NAME]), NOW), Due::Renew(Why::Names));
    }

    #[test]
    fn the_authority_is_made_once_and_kept() {
        let (_dir, host) = machine();
        assert!(Authority::look(&host, "example.org", NOW).unwrap().is_none());
        assert!(host.list(Path::new("/")).unwrap().is_empty(), "looking writes nothing");
        let (ca, new) = Authority::keep(&host, "example.org", NOW).unwrap();
        assert!(new);
        assert_eq!(Authority::look(&host, "example.org", NOW).unwrap().unwrap().pem, ca.pem);
        assert!(Authority::look(&host, "example.net", NOW).unwrap().is_none());
        assert_eq!(Authority::read(&host).unwrap(), Some((ca.pem.clone(), ca.facts.clone())));
        let key = host.read(&ca_key()).unwrap();
        let mode = |path: &Path| host.meta(path).unwrap().unwrap().mode;
        assert_eq!((mode(&ca_key()), mode(&ca_crt())), (0o600, 0o644));
        let years = |n: i64| NOW + Duration::days(365 * n);
        let (again, new) = Authority::keep(&host, "Example.org", years(6)).unwrap();
        assert_eq!((new, &again.pem), (false, &ca.pem));
        // A leaf that old clients check against the old certificate, and new ones against the new.
        let leaf = again.sign(&names(&[NAME]), years(6)).unwrap();
        let (renewed, new) = Authority::keep(&host, "example.org", years(7)).unwrap();
        assert!(new && renewed.pem != ca.pem && renewed.facts.not_after == years(17));
        assert!(renewed.signed(&leaf.chain).unwrap());
        let young = renewed.sign(&names(&[NAME]), years(7)).unwrap();
        assert!(ca.signed(&young.chain).unwrap());
        tls::trusted(&store::ders(&young.chain).unwrap(), NAME, &ca.pem, years(7)).unwrap();
        // Another domain is another authority, by name.
        let (other, new) = Authority::keep(&host, "example.net", NOW).unwrap();
        assert!(new && !other.signed(&leaf.chain).unwrap());
        assert_eq!(host.read(&ca_key()).unwrap(), key, "the key stays");
    }

    /// Whatever a crash, a restore or a person left of the two files, the next run has an authority whose
    /// certificate and key belong together.
    #[test]
    fn half_an_authority_is_made_whole() {
        let (_a, host) = machine();
        let (_b, other) = machine();
        Authority::keep(&host, "example.org", NOW).unwrap();
        Authority::keep(&other, "example.org", NOW).unwrap();
        let foreign = other.read(&ca_crt()).unwrap().unwrap();
        let damages: [&dyn Fn(); 5] = [
            &|| host.remove(&ca_crt()).unwrap(),
            &|| host.remove(&ca_key()).unwrap(),
            &|| host.write(&ca_crt(), 0o644, &foreign).unwrap(),
            &|| host.write(&ca_crt(), 0o644, b"-----BEGIN CERT").unwrap(),
            &|| {
                let key = host.read(&ca_key()).unwrap().unwrap();
                host.write(&ca_key(), 0o644, &key).unwrap();
            },
        ];
        for (n, damage) in damages.iter().enumerate() {
            damage();
            let (ca, _) = Authority::keep(&host, "example.org", NOW).unwrap();
            let pair = ca.sign(&names(&[NAME]), NOW).unwrap();
            let pem = host.read_text(&ca_crt()).unwrap().unwrap();
            tls::trusted(&store::ders(&pair.chain).unwrap(), NAME, &pem, NOW)
                .unwrap_or_else(|e| panic!("damage {n}: {e:#}"));
            assert_eq!(host.meta(&ca_key()).unwrap().unwrap().mode, 0o600, "damage {n}");
        }
        host.write(&ca_key(), 0o600, b"garbage").unwrap();
        let error = format!("{:#}", Authority::keep(&host, "example.org", NOW).unwrap_err());
        assert!(error.contains("move it away"), "{error}");
    }

    #[test]
    fn a_certificate_never_outlives_its_authority() {
        let (_dir, host) = machine();
        let (ca, _) = Authority::keep(&host, "example.org", NOW).unwrap();
        let late = ca.facts.not_after - Duration::days(10);
        let facts = store::facts(&ca.sign(&names(&[NAME]), late).unwrap().chain).unwrap();
        assert_eq!(facts.not_after, ca.facts.not_after);
        let facts = store::facts(&ca.sign(&names(&[NAME]), NOW).unwrap().chain).unwrap();
        assert_eq!((facts.not_before, facts.not_after), (NOW - SLOW_CLOCK, NOW + LEAF_LIFE));
        assert_eq!((facts.names, facts.serial.len()), (names(&[NAME]), 34));
    }

    /// What each client says of certificates this authority should sign, and of those it should not be able
    /// to make anybody believe.
    #[test]
    fn clients_accept_our_names_and_no_others() {
        let (_dir, host) = machine();
        let (ca, _) = Authority::keep(&host, "example.org", NOW).unwrap();
        let (local, _) = {
            let (_dir, host) = machine();
            Authority::keep(&host, "localhost", NOW).unwrap()
        };
        let table = [
            (&ca, NAME, NAME, true),
            (&ca, "example.org", "example.org", true),
            (&ca, "a.b.example.org", "a.b.example.org", true),
            (&ca, "*.example.org", NAME, true),
            (&ca, NAME, "docs.example.org", false),
            (&ca, "bank.com", "bank.com", false),
            (&ca, "notexample.org", "notexample.org", false),
            (&ca, "*.com", "bank.com", false),
            (&local, "mlflow.localhost", "mlflow.localhost", true),
            (&local, NAME, NAME, false),
        ];
        for (ca, signed_for, asked, wanted) in table {
            let pair = ca.sign(&names(&[signed_for]), NOW).unwrap();
            let chain = store::ders(&pair.chain).unwrap();
            let rustls = tls::trusted(&chain, asked, &ca.pem, NOW);
            assert_eq!(rustls.is_ok(), wanted, "rustls: {signed_for} for {asked}: {rustls:?}");
            match openssl(&ca.pem, &pair.chain, &pair.chain, asked) {
                Some(said) => assert_eq!(said.is_ok(), wanted, "openssl: {signed_for} for {asked}: {said:?}"),
                None => eprintln!("SKIPPED: openssl is not installed, so only rustls was asked"),
            }
        }
    }

    /// An authority below ours is bound by ours: OpenSSL refuses it altogether, as we say it should; rustls
    /// does not ask a trusted root how long a path may be, but holds what is below to the domain.
    #[test]
    fn a_stolen_key_cannot_make_an_authority_for_other_names() {
        let (_dir, host) = machine();
        let (ca, _) = Authority::keep(&host, "example.org", NOW).unwrap();
        let (mut params, key) = (CertificateParams::default(), KeyPair::generate().unwrap());
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        params.use_authority_key_identifier_extension = true;
        params.distinguished_name.push(DnType::CommonName, "below");
        let below = params.signed_by(&key, &ca.issuer).unwrap();
        let below_issuer = Issuer::new(params, key);
        for (name, rustls_accepts) in [(NAME, true), ("bank.com", false)] {
            let mut leaf = CertificateParams::new(vec![name.into()]).unwrap();
            (leaf.not_before, leaf.not_after) = (NOW, NOW + LEAF_LIFE);
            leaf.use_authority_key_identifier_extension = true;
            let leaf = leaf.signed_by(&KeyPair::generate().unwrap(), &below_issuer).unwrap();
            let chain = [leaf.der().clone(), below.der().clone()];
            assert_eq!(tls::trusted(&chain, name, &ca.pem, NOW).is_ok(), rustls_accepts, "{name}");
            match openssl(&ca.pem, &leaf.pem(), &below.pem(), name) {
                Some(said) => assert!(said.is_err_and(|e| e.contains("path length constraint exceeded"))),
                None => eprintln!("SKIPPED: openssl is not installed, so only rustls was asked"),
            }
        }
    }

    /// What openssl says of a chain, as strictly as it can be asked; `None` where it is not installed.
    fn openssl(ca: &str, leaf: &str, between: &str, name: &str) -> Option<Result<(), String>> {
        let here = Host::new("/", System);
        here.ask(&Cmd::new("openssl", ["version"])).ok()?;
        let (_dir, host) = machine();
        let file = |path: &str, text: &str| {
            host.write(Path::new(path), 0o644, text.as_bytes()).unwrap();
            host.path(Path::new(path)).to_string_lossy().into_owned()
        };
        let (ca, leaf) = (file("/ca.pem", ca), file("/leaf.pem", leaf));
        let (between, time) = (file("/between.pem", between), NOW.unix_timestamp().to_string());
        let strict = ["verify", "-x509_strict", "-purpose", "sslserver", "-attime", &time, "-CAfile", &ca];
        let what = ["-untrusted", &between, "-verify_hostname", name, &leaf];
        let out = here.ask(&Cmd::new("openssl", strict.into_iter().chain(what))).unwrap();
        Some(if out.ok() { Ok(()) } else { Err(out.stderr) })
    }

    #[test]
    fn a_long_domain_still_has_a_name_of_its_own() {
        let long = |c: &str| format!("{}.example.org", c.repeat(60));
        assert_eq!(common_name("example.org"), "echoes-appliance for example.org");
        assert!(common_name(&long("a")).len() <= 64 && common_name(&long("a")) != common_name(&long("b")));
    }
}
