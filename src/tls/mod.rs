//! Certificates: kept for each host by whoever signs them, and proven to be the ones that are served.
//!
//! `store` keeps pairs, `internal` signs them, `acme` asks another authority to, `renewal` says when, `trust` tells
//! people how to believe them. What is here brings them together; a signer needs nothing of `store` but `install`.

pub mod acme;
mod dns;
pub mod internal;
pub mod preflight;
pub mod renewal;
pub mod store;
pub mod trust;

use anyhow::{Context as _, Result, bail};
use internal::{Authority, Due, Why};
use rustls::{
    ClientConfig, ClientConnection, DigitallySignedStruct, RootCertStore, SignatureScheme,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{CryptoProvider, ring},
    pki_types::{CertificateDer, ServerName, UnixTime},
};
use std::{
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream},
    sync::{Arc, Mutex},
    time::Duration,
};
use store::{Facts, Trust};
use time::OffsetDateTime;

/// Whether what is in use for a host must be replaced.
pub fn due(host: &crate::host::Host, ca: &Authority, host_name: &str, now: OffsetDateTime) -> Result<Due> {
    let Some(current) = store::current(host, host_name)? else { return Ok(Due::Renew(Why::Absent)) };
    let look = || -> Result<internal::Seen> {
        Ok(internal::Seen {
            facts: store::facts(&current.pair.chain)?,
            key_matches: store::key_matches(&current.pair)?,
            key_mode: current.key_mode,
            signed_by_us: ca.signed(&current.pair.chain)?,
        })
    };
    // What cannot be read is replaced; that is all that need be known of it.
    Ok(internal::due(look().ok().as_ref(), &[host_name.to_owned()], now))
}

/// Keep a good certificate of our own authority in use for a host. Says why it was replaced, if it was; the
/// web server must then be told to read it again.
pub fn keep(
    host: &crate::host::Host,
    ca: &Authority,
    host_name: &str,
    now: OffsetDateTime,
) -> Result<Option<Why>> {
    let Due::Renew(why) = due(host, ca, host_name, now)? else { return Ok(None) };
    let pair = ca.sign(&[host_name.to_owned()], now)?;
    store::install(host, host_name, &pair, Trust::Private, now)?;
    Ok(Some(why))
}

/// Where a visitor of this machine is answered: over IPv4, and over IPv6 where the machine has that.
pub fn doors(host: &crate::host::Host) -> Result<Vec<SocketAddr>> {
    let mut doors = vec![SocketAddr::from((Ipv4Addr::LOCALHOST, 443))];
    let addresses = host.read_text(std::path::Path::new("/proc/net/if_inet6"))?.unwrap_or_default();
    if addresses.lines().any(|line| line.starts_with("00000000000000000000000000000001 ")) {
        doors.push(SocketAddr::from((Ipv6Addr::LOCALHOST, 443)));
    }
    Ok(doors)
}

/// What a server showed, itself first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Served {
    pub chain: Vec<CertificateDer<'static>>,
    pub facts: Facts,
}

impl Served {
    /// Whether it is this very certificate, rather than one like it.
    pub fn is(&self, file: &Facts) -> bool {
        self.facts.fingerprint == file.fingerprint
    }
}

/// The certificate that a client asking `addr` for `host_name` is shown, whoever signed it. The server proves
/// that it holds the key; nothing else is believed, and nothing is sent after the handshake. Each wait for the
/// network ends after `patience`.
pub fn served(addr: SocketAddr, host_name: &str, patience: Duration) -> Result<Served> {
    let doing = || format!("asking {addr} for the certificate of {host_name}");
    let ask = || -> Result<Served> {
        let provider = Arc::new(ring::default_provider());
        let witness = Arc::new(Witness { provider: provider.clone(), shown: Mutex::default() });
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .dangerous()
            .with_custom_certificate_verifier(witness.clone())
            .with_no_client_auth();
        let name = ServerName::try_from(host_name.to_owned())?;
        let mut tls = ClientConnection::new(Arc::new(config), name)?;
        let mut tcp = TcpStream::connect_timeout(&addr, patience)?;
        tcp.set_read_timeout(Some(patience))?;
        tcp.set_write_timeout(Some(patience))?;
        while tls.is_handshaking() {
            tls.complete_io(&mut tcp)?;
        }
        tls.send_close_notify();
        // The answer is complete; whether the farewell arrives does not matter.
        let _ = tls.complete_io(&mut tcp);
        let chain = std::mem::take(&mut *witness.shown.lock().unwrap_or_else(|e| e.into_inner()));
        let facts = store::der_facts(chain.first().context("the server showed no certificate")?)?;
        Ok(Served { chain, facts })
    };
    ask().with_context(doing)
}

/// Whether a client that trusts only the authorities in `ca_pem` would accept this chain for this host.
pub fn trusted(
    chain: &[CertificateDer<'_>],
    host_name: &str,
    ca_pem: &str,
    now: OffsetDateTime,
) -> Result<()> {
    let mut roots = RootCertStore::empty();
    // In a machine's list there may be some that rustls cannot read: they vouch for nobody.
    let (_, _) = roots.add_parsable_certificates(store::ders(ca_pem)?);
    let Some((leaf, rest)) = chain.split_first() else { bail!("there is no certificate") };
    let provider = Arc::new(ring::default_provider());
    let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider).build()?;
    let since = Duration::from_secs(u64::try_from(now.unix_timestamp()).unwrap_or(0));
    let name = ServerName::try_from(host_name)?;
    verifier.verify_server_cert(leaf, rest, &name, &[], UnixTime::since_unix_epoch(since))?;
    Ok(())
}

/// Whether browsers believe this chain (PEM) as it is: this machine's own list of authorities stands for theirs. Our
/// own authority does not count, whoever has been told to trust it.
pub fn trust(host: &crate::host::Host, chain: &str, host_name: &str, now: OffsetDateTime) -> Result<Trust> {
    const BUNDLE: &str = "/etc/ssl/certs/ca-certificates.crt";
    let bundle = host.read_text(std::path::Path::new(BUNDLE))?.unwrap_or_default();
    let public =
        !internal::is_ours(host, chain)? && trusted(&store::ders(chain)?, host_name, &bundle, now).is_ok();
    Ok(if public { Trust::Public } else { Trust::Private })
}

/// Believes every certificate and remembers it; a signature it does check.
#[derive(Debug)]
struct Witness {
    provider: Arc<CryptoProvider>,
    shown: Mutex<Vec<CertificateDer<'static>>>,
}

impl ServerCertVerifier for Witness {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        rest: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let chain = std::iter::once(leaf).chain(rest).map(|der| der.clone().into_owned());
        *self.shown.lock().unwrap_or_else(|e| e.into_inner()) = chain.collect();
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let known = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, cert, signed, known)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let known = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, cert, signed, known)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::{Host, System};
    use rustls::{
        ServerConfig, ServerConnection,
        pki_types::{PrivateKeyDer, pem::PemObject as _},
    };
    use std::net::TcpListener;
    use time::macros::datetime;

    const NOW: OffsetDateTime = datetime!(2026-11-23 12:00 UTC);
    const NAME: &str = "mlflow.example.org";
    const PATIENCE: Duration = Duration::from_secs(5);

    /// A web server that reads its pair once, as nginx does, and serves so many clients.
    fn serve(pair: &store::Pair, clients: usize) -> SocketAddr {
        let key = PrivateKeyDer::from_pem_slice(pair.key.as_bytes()).unwrap();
        let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(store::ders(&pair.chain).unwrap(), key)
            .unwrap();
        let (config, listener) = (Arc::new(config), TcpListener::bind("127.0.0.1:0").unwrap());
        let addr = listener.local_addr().unwrap();
        std::thread::spawn(move || {
            for tcp in listener.incoming().take(clients) {
                let (mut tcp, mut tls) = (tcp.unwrap(), ServerConnection::new(config.clone()).unwrap());
                while tls.is_handshaking() && tls.complete_io(&mut tcp).is_ok() {}
            }
        });
        addr
    }

    #[test]
    fn what_is_served_is_compared_with_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let host = Host::new(dir.path(), System);
        let (ca, _) = Authority::keep(&host, "example.org", NOW).unwrap();
        assert_eq!(keep(&host, &ca, NAME, NOW).unwrap(), Some(Why::Absent));
        assert_eq!(keep(&host, &ca, NAME, NOW).unwrap(), None);
        let in_use = || store::current(&host, NAME).unwrap().unwrap().pair;
        let facts = || store::facts(&in_use().chain).unwrap();
        let addr = serve(&in_use(), 2);
        let shown = served(addr, NAME, PATIENCE).unwrap();
        assert!(shown.is(&facts()));
        assert_eq!(shown.facts, facts());
        trusted(&shown.chain, NAME, &ca.pem, NOW).unwrap();
        trusted(&shown.chain, "docs.example.org", &ca.pem, NOW).unwrap_err();
        // Renewed on disk, and the server not told: it still shows the old one.
        let later = NOW + time::Duration::days(61);
        assert_eq!(keep(&host, &ca, NAME, later).unwrap(), Some(Why::Ending));
        assert!(!served(addr, NAME, PATIENCE).unwrap().is(&facts()));
        assert!(served(serve(&in_use(), 1), NAME, PATIENCE).unwrap().is(&facts()));
    }

    #[test]
    fn what_is_damaged_is_replaced_and_says_why() {
        let dir = tempfile::tempdir().unwrap();
        let host = Host::new(dir.path(), System);
        let (ca, _) = Authority::keep(&host, "example.org", NOW).unwrap();
        keep(&host, &ca, NAME, NOW).unwrap();
        let (chain, key) = store::paths(NAME);
        let write = |path, mode, text: &str| host.write(path, mode, text.as_bytes()).unwrap();
        let other = ca.sign(&[NAME.into()], NOW).unwrap();
        let docs = ca.sign(&["docs.example.org".into()], NOW).unwrap();
        let read = |path: &std::path::Path| host.read_text(path).unwrap().unwrap();
        let damages: [(&dyn Fn(), Why); 6] = [
            (&|| write(&chain, 0o644, "torn"), Why::Unreadable),
            (&|| host.remove(&chain).unwrap(), Why::Absent),
            (&|| host.remove(&key).unwrap(), Why::Absent),
            (&|| write(&key, 0o600, &other.key), Why::Key),
            (&|| write(&key, 0o644, &read(&key)), Why::KeyOpen),
            (
                &|| {
                    [(&chain, &docs.chain), (&key, &docs.key)]
                        .map(|(p, t)| write(p, 0o600, t))
                        .into_iter()
                        .collect()
                },
                Why::Names,
            ),
        ];
        for (damage, why) in damages {
            damage();
            assert_eq!(keep(&host, &ca, NAME, NOW).unwrap(), Some(why));
            assert_eq!(keep(&host, &ca, NAME, NOW).unwrap(), None);
        }
        let (ca, _) = Authority::keep(&host, "mlflow.example.org", NOW).unwrap();
        assert_eq!(keep(&host, &ca, NAME, NOW).unwrap(), Some(Why::Authority));
    }

    #[test]
    fn nobody_there_is_said_in_words() {
        let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let error = format!("{:#}", served(closed, NAME, PATIENCE).unwrap_err());
        assert!(error.starts_with(&format!("asking {closed} for the certificate of {NAME}: ")), "{error}");
        // Somebody who speaks no TLS.
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        std::thread::spawn(move || {
            use std::io::Write as _;
            listener.accept().map(|(mut tcp, _)| tcp.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n"))
        });
        served(addr, NAME, PATIENCE).unwrap_err();
    }
}
