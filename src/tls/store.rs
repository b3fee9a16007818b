//! Certificates on disk: each host name has numbered generations, `<tls>/<host>/<generation>/`, and one link,
//! `current`, to the one nginx reads. A certificate and its key change together, by renaming that link, and
//! there is always a pair to read once there was one. It knows nothing of who signs, and refuses a pair that
//! would not work: a key that is not the certificate's, a name that is not in it, a date that is not now.

use crate::host::{Host, Kind};
use anyhow::{Context as _, Result, bail, ensure};
use rustls::{
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
};
use sha2::{Digest as _, Sha256};
use std::{
    fmt,
    path::{Path, PathBuf},
};
use time::OffsetDateTime;
use x509_parser::{error::X509Error, extensions::GeneralName, parse_x509_certificate, public_key::PublicKey};

/// Where everything of this module lives.
pub const DIR: &str = "/var/lib/echoes-appliance/tls";
const CHAIN: &str = "fullchain.pem";
const KEY: &str = "key.pem";
/// What nginx adds to a site whose certificate is publicly trusted; it goes into use, and out of it, with the pair.
const HSTS: &str = "hsts.conf";
/// Half a year: whoever has read this header cannot be reached without a trusted certificate for so long. Names under
/// ours are not ours to promise for.
const HSTS_TEXT: &str = "add_header Strict-Transport-Security \"max-age=15552000\" always;\n";
/// How many generations are kept: the one in use, the one before, and one more to compare with.
const KEPT: usize = 3;

/// A certificate with those that lead to its root, and its key; both PEM.
#[derive(Clone, PartialEq, Eq)]
pub struct Pair {
    pub chain: String,
    pub key: String,
}

impl fmt::Debug for Pair {
    /// A key has no business in a log.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pair").field("chain", &self.chain).finish_non_exhaustive()
    }
}

/// What a certificate says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// The DNS names it is for, lower case.
    pub names: Vec<String>,
    pub not_before: OffsetDateTime,
    pub not_after: OffsetDateTime,
    /// Hexadecimal, as openssl and browsers show it.
    pub serial: String,
    /// SHA-256 of the whole, with colons.
    pub fingerprint: String,
    pub subject: String,
    pub issuer: String,
}

impl Facts {
    /// Whether a client would accept the certificate for this name.
    pub fn covers(&self, name: &str) -> bool {
        let name = name.to_ascii_lowercase();
        // A star stands for one whole label.
        let starred = name.split_once('.').map(|(_, rest)| format!("*.{rest}"));
        self.names.iter().any(|n| *n == name || Some(n) == starred.as_ref())
    }
}

/// The pair that is in use for a host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Current {
    pub generation: u32,
    pub pair: Pair,
    /// Of the key file.
    pub key_mode: u32,
}

/// What nginx is told to read for this host: the chain and the key.
pub fn paths(host_name: &str) -> (PathBuf, PathBuf) {
    let current = dir(host_name).join("current");
    (current.join(CHAIN), current.join(KEY))
}

/// What the first certificate in a PEM text says.
pub fn facts(pem: &str) -> Result<Facts> {
    der_facts(ders(pem)?.first().context("there is no certificate in it")?)
}

/// What a certificate says.
pub fn der_facts(der: &[u8]) -> Result<Facts> {
    let (_, cert) = parse_x509_certificate(der).context("reading a certificate")?;
    let san = cert.subject_alternative_name().context("reading a certificate's names")?;
    let names = san.iter().flat_map(|ext| &ext.value.general_names).filter_map(|name| match name {
        GeneralName::DNSName(dns) => Some(dns.to_ascii_lowercase()),
        _ => None,
    });
    Ok(Facts {
        names: names.collect(),
        not_before: cert.validity().not_before.to_datetime(),
        not_after: cert.validity().not_after.to_datetime(),
        serial: hex(cert.raw_serial(), ""),
        fingerprint: hex(&Sha256::digest(der), ":"),
        subject: cert.subject().to_string(),
        issuer: cert.issuer().to_string(),
    })
}

/// Every certificate in a PEM text.
pub fn ders(pem: &str) -> Result<Vec<CertificateDer<'static>>> {
    CertificateDer::pem_slice_iter(pem.as_bytes()).collect::<Result<_, _>>().context("reading PEM")
}

fn hex(bytes: &[u8], between: &str) -> String {
    bytes.iter().map(|b| format!("{b:02X}")).collect::<Vec<_>>().join(between)
}

/// Whether the key is the certificate's.
pub fn key_matches(pair: &Pair) -> Result<bool> {
    let ders = ders(&pair.chain)?;
    let (_, cert) = parse_x509_certificate(ders.first().context("there is no certificate in it")?)?;
    let key = PrivateKeyDer::from_pem_slice(pair.key.as_bytes()).context("reading a private key")?;
    let key = ring::default_provider().key_provider.load_private_key(key).context("reading a private key")?;
    let public = key.public_key().context("a private key that does not tell its public half")?;
    Ok(public.as_ref() == cert.public_key().raw)
}

/// Refuses a pair that a client would not accept for this host now.
pub fn check(pair: &Pair, host_name: &str, now: OffsetDateTime) -> Result<Facts> {
    let facts = facts(&pair.chain)?;
    ensure!(key_matches(pair)?, "the key is not the certificate's");
    ensure!(facts.covers(host_name), "the certificate is for {}, not {host_name}", facts.names.join(", "));
    ensure!(facts.not_before <= now, "the certificate is valid only from {}", facts.not_before);
    ensure!(now < facts.not_after, "the certificate ended at {}", facts.not_after);
    let chain = ders(&pair.chain)?;
    for links in chain.windows(2) {
        let ((_, one), (_, next)) = (parse_x509_certificate(&links[0])?, parse_x509_certificate(&links[1])?);
        let signed = one.issuer() == next.subject()
            && !matches!(
                one.verify_signature(Some(next.public_key())),
                Err(X509Error::SignatureVerificationError)
            );
        ensure!(signed, "{} is followed by {}, which did not sign it", one.subject(), next.subject());
    }
    Ok(facts)
}

/// What kind of key a certificate is for: `P-256`, `RSA-2048`.
pub fn key_kind(pem: &str) -> Result<String> {
    let ders = ders(pem)?;
    let (_, cert) = parse_x509_certificate(ders.first().context("there is no certificate in it")?)?;
    Ok(match cert.public_key().parsed()? {
        PublicKey::EC(point) => format!("P-{}", point.key_size()),
        PublicKey::RSA(key) => format!("RSA-{}", key.key_size()),
        _ => "another".into(),
    })
}

/// The pair in use; `None` when there is none, or the link leads to nothing whole.
pub fn current(host: &Host, host_name: &str) -> Result<Option<Current>> {
    let dir = named(host_name)?;
    let Some(generation) = pointed(host, &dir)? else { return Ok(None) };
    let at = dir.join(generation.to_string());
    let chain = host.read_text(&at.join(CHAIN))?;
    let key = host.read_text(&at.join(KEY))?;
    let meta = host.meta(&at.join(KEY))?;
    let (Some(chain), Some(key), Some(meta)) = (chain, key, meta) else { return Ok(None) };
    Ok(Some(Current { generation, pair: Pair { chain, key }, key_mode: meta.mode }))
}

/// The generations of a host, oldest first, whole or not.
pub fn generations(host: &Host, host_name: &str) -> Result<Vec<u32>> {
    let mut found: Vec<u32> =
        host.list(&named(host_name)?)?.iter().filter_map(|name| name.parse().ok()).collect();
    found.sort_unstable();
    Ok(found)
}

/// Put a pair in use for a host: checked, written as a new generation, then the link renamed. Stopped anywhere,
/// the host has the old pair or the new one. Says which generation it became.
pub fn install(host: &Host, host_name: &str, pair: &Pair, trust: Trust, now: OffsetDateTime) -> Result<u32> {
    let doing = || format!("putting a new certificate in use for {host_name}");
    named(host_name)?;
    check(pair, host_name, now).with_context(doing)?;
    let (generation, steps) = steps(host, host_name, pair, trust)?;
    steps.iter().try_for_each(|step| step.make(host)).with_context(doing)?;
    Ok(generation)
}

/// Put an older generation in use again, as it was.
pub fn put_back(host: &Host, host_name: &str, generation: u32) -> Result<()> {
    host.link(&named(host_name)?.join("current"), Path::new(&generation.to_string()))
}

/// Whether browsers believe it as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trust {
    Public,
    /// By those who were told to.
    Private,
}

enum Step {
    Write { path: PathBuf, mode: u32, text: String },
    Link { path: PathBuf, target: PathBuf },
    Forget { dir: PathBuf },
}

impl Step {
    fn make(&self, host: &Host) -> Result<()> {
        match self {
            Self::Write { path, mode, text } => host.write(path, *mode, text.as_bytes()),
            Self::Link { path, target } => host.link(path, target),
            Self::Forget { dir } => host.remove_tree(dir),
        }
    }
}

/// What installing a pair amounts to, in order.
fn steps(host: &Host, host_name: &str, pair: &Pair, trust: Trust) -> Result<(u32, Vec<Step>)> {
    let dir = dir(host_name);
    let old = generations(host, host_name)?;
    // Never a number that was used before: what is half-made there may have any contents.
    let generation = old.last().copied().max(pointed(host, &dir)?).unwrap_or(0) + 1;
    let at = dir.join(generation.to_string());
    let mut steps = vec![
        Step::Write { path: at.join(KEY), mode: 0o600, text: pair.key.clone() },
        Step::Write { path: at.join(CHAIN), mode: 0o644, text: pair.chain.clone() },
    ];
    if trust == Trust::Public {
        steps.push(Step::Write { path: at.join(HSTS), mode: 0o644, text: HSTS_TEXT.into() });
    }
    // Relative, so that the tree can be looked at from outside its root.
    steps.push(Step::Link { path: dir.join("current"), target: generation.to_string().into() });
    let mut whole = 1;
    for old in old.into_iter().rev() {
        let at = dir.join(old.to_string());
        let is_whole = host.exists(&at.join(CHAIN))? && host.exists(&at.join(KEY))?;
        whole += usize::from(is_whole);
        if !is_whole || whole > KEPT {
            steps.push(Step::Forget { dir: at });
        }
    }
    Ok((generation, steps))
}

/// The generation that the link leads to.
fn pointed(host: &Host, dir: &Path) -> Result<Option<u32>> {
    let kind = host.meta(&dir.join("current"))?.map(|meta| meta.kind);
    Ok(match kind {
        Some(Kind::Link(target)) => target.to_str().and_then(|name| name.parse().ok()),
        None => None,
        Some(_) => bail!("{}/current is not a link; it is not ours, so it was left alone", dir.display()),
    })
}

fn dir(host_name: &str) -> PathBuf {
    Path::new(DIR).join(host_name)
}

/// A host's directory; a name that is none, or that would lead elsewhere, is refused.
fn named(host_name: &str) -> Result<PathBuf> {
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-.".contains(&b);
    let taken = ["ca.key", "ca.crt"].contains(&host_name);
    if host_name.is_empty() || host_name.starts_with('.') || taken || !host_name.bytes().all(plain) {
        bail!("{host_name:?} cannot be the name of a certificate's host");
    }
    Ok(dir(host_name))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{host::System, tls::internal::Authority};
    use time::{Duration, macros::datetime};

    const NOW: OffsetDateTime = datetime!(2026-11-23 12:00 UTC);
    const NAME: &str = "mlflow.example.org";

    fn pair(ca: &Authority) -> Pair {
        ca.sign(&[NAME.into()], NOW).unwrap()
    }

    fn machine() -> (tempfile::TempDir, Host, Authority) {
        let dir = tempfile::tempdir().unwrap();
        let host = Host::new(dir.path(), System);
        let ca = Authority::keep(&host, "example.org", NOW).unwrap().0;
        (dir, host, ca)
    }

    fn in_use(host: &Host) -> Option<Pair> {
        current(host, NAME).unwrap().map(|c| c.pair)
    }

    #[test]
    fn a_pair_replaces_another_whole_and_three_are_kept() {
        let (_dir, host, ca) = machine();
        assert_eq!(current(&host, NAME).unwrap(), None);
        for n in 1..=5 {
            let pair = pair(&ca);
            assert_eq!(install(&host, NAME, &pair, Trust::Private, NOW).unwrap(), n);
            assert_eq!(in_use(&host), Some(pair.clone()));
            let (chain, key) = paths(NAME);
            assert_eq!(host.read_text(&chain).unwrap().unwrap(), pair.chain);
            assert_eq!(host.read_text(&key).unwrap().unwrap(), pair.key);
        }
        assert_eq!(generations(&host, NAME).unwrap(), [3, 4, 5]);
        for generation in ["3", "4", "5"] {
            let at = dir(NAME).join(generation);
            assert_eq!(host.meta(&at.join(KEY)).unwrap().unwrap().mode, 0o600);
            assert_eq!(host.meta(&at.join(CHAIN)).unwrap().unwrap().mode, 0o644);
        }
    }

    /// Stopped after every step of installing one of the first five pairs, and again while writing a file: what
    /// is in use is the old pair or the new, and the next installation clears up.
    #[test]
    fn stopped_anywhere_the_host_has_the_old_pair_or_the_new() {
        for before in 0..5 {
            for stop in 0.. {
                let (_dir, host, ca) = machine();
                let mut old = None;
                for _ in 0..before {
                    let pair = pair(&ca);
                    install(&host, NAME, &pair, Trust::Private, NOW).unwrap();
                    old = Some(pair);
                }
                let new = pair(&ca);
                let (_, steps) = steps(&host, NAME, &new, Trust::Private).unwrap();
                steps.iter().take(stop).for_each(|step| step.make(&host).unwrap());
                if let Some(Step::Write { path, .. }) = steps.get(stop) {
                    let torn = path.with_file_name(format!(".{}.new", path.file_name().unwrap().display()));
                    host.write(&torn, 0o600, b"-----BEGIN PRI").unwrap();
                }
                let at = format!("after {stop} steps, {before} pairs before");
                let expected = if stop >= 3 { Some(new) } else { old };
                assert_eq!(in_use(&host), expected, "{at}");
                if let Some(pair) = expected {
                    check(&pair, NAME, NOW).unwrap();
                }
                let last = pair(&ca);
                install(&host, NAME, &last, Trust::Private, NOW).unwrap();
                assert_eq!(in_use(&host), Some(last), "{at}");
                let left = generations(&host, NAME).unwrap();
                assert!(left.len() <= KEPT, "{at}: {left:?}");
                for generation in left {
                    let at = dir(NAME).join(generation.to_string());
                    assert_eq!(host.list(&at).unwrap(), [CHAIN, KEY]);
                }
                if stop == steps.len() {
                    break;
                }
            }
        }
    }

    #[test]
    fn a_pair_that_would_not_work_is_refused_and_the_old_one_stays() {
        let (_dir, host, ca) = machine();
        let good = pair(&ca);
        install(&host, NAME, &good, Trust::Private, NOW).unwrap();
        let other = pair(&ca);
        let table = [
            (Pair { key: other.key.clone(), ..good.clone() }, NOW, "not the certificate's"),
            (ca.sign(&["docs.example.org".into()], NOW).unwrap(), NOW, "is for docs.example.org, not"),
            (good.clone(), NOW + Duration::days(91), "ended at 2027-02-21"),
            (good.clone(), NOW - Duration::days(1), "valid only from 2026-11-23 11:00"),
            (
                Pair { chain: format!("{}{}", good.chain, other.chain), ..good.clone() },
                NOW,
                "did not sign it",
            ),
            (Pair { chain: "garbage".into(), ..good.clone() }, NOW, "no certificate"),
            (Pair { key: "garbage".into(), ..good.clone() }, NOW, "private key"),
        ];
        for (bad, now, wanted) in table {
            let error = format!("{:#}", install(&host, NAME, &bad, Trust::Private, now).unwrap_err());
            assert!(error.contains(wanted), "{error}");
        }
        assert_eq!(generations(&host, NAME).unwrap(), [1]);
        for name in ["", "../../etc", "a/b", "A.example", ".hidden", "ca.key", "a b"] {
            assert!(current(&host, name).is_err(), "{name:?}");
            assert!(install(&host, name, &good, Trust::Private, NOW).is_err(), "{name:?}");
        }
    }

    #[test]
    fn a_promise_of_https_comes_and_goes_with_the_certificate_it_is_for() {
        let (_dir, host, ca) = machine();
        install(&host, NAME, &pair(&ca), Trust::Private, NOW).unwrap();
        let at = dir(NAME).join("current/hsts.conf");
        assert_eq!(host.read_text(&at).unwrap(), None);
        let public = pair(&ca);
        install(&host, NAME, &public, Trust::Public, NOW).unwrap();
        assert_eq!(host.read_text(&at).unwrap().unwrap(), HSTS_TEXT);
        put_back(&host, NAME, 1).unwrap();
        assert_eq!(host.read_text(&at).unwrap(), None);
        assert_ne!(in_use(&host), Some(public));
        // A later one does not take the number of what was put back.
        assert_eq!(install(&host, NAME, &pair(&ca), Trust::Private, NOW).unwrap(), 3);
    }

    #[test]
    fn a_star_stands_for_one_label() {
        let facts = |names: &[&str]| Facts {
            names: names.iter().map(|&n| n.to_owned()).collect(),
            not_before: NOW,
            not_after: NOW,
            serial: String::new(),
            fingerprint: String::new(),
            subject: String::new(),
            issuer: String::new(),
        };
        for (names, name, wanted) in [
            (&["a.example.org"][..], "A.example.org", true),
            (&["*.example.org"], "a.example.org", true),
            (&["*.example.org"], "a.b.example.org", false),
            (&["*.example.org"], "example.org", false),
            (&["b.example.org", "a.example.org"], "a.example.org", true),
            (&[], "a.example.org", false),
        ] {
            assert_eq!(facts(names).covers(name), wanted, "{names:?} {name}");
        }
    }

    #[test]
    fn fuzz_certificate_says_what_it_is_or_is_refused() {
        crate::fuzz::run(
            "certificate",
            &["-----BEGIN CERTIFICATE-----\n", "-----END CERTIFICATE-----\n"],
            |bytes| {
                // A PEM text, or what is in one: a letter that is wrong in base64 leads nowhere.
                let text = String::from_utf8_lossy(bytes);
                let pem = facts(&text);
                let _ = (
                    key_kind(&text),
                    ders(&text),
                    check(
                        &Pair { chain: text.to_string(), key: text.to_string() },
                        "a.b",
                        OffsetDateTime::UNIX_EPOCH,
                    ),
                );
                let facts = der_facts(bytes).or(pem)?;
                let now = OffsetDateTime::UNIX_EPOCH;
                let _ = (
                    crate::tls::renewal::health(now, facts.not_before, facts.not_after),
                    facts.covers("a.b"),
                );
                let _ = (facts.not_after - now, crate::ui::moment(facts.not_after));
                Ok(())
            },
        );
    }
}
