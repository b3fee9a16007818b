//! One order, from the request for it to the certificate. Every step may be the last one of this process: where the
//! order stands is read from the authority, and only its address and the key are ours to remember.

use super::{CHALLENGES, Ca, Failure, Fault, Finalizing, Issued, Kind, WEBROOT, Wish, account, below, short};
use crate::{
    config::KeyType,
    host::Host,
    tls::{
        renewal::Stage,
        store::{self, Pair},
    },
    web::client::Client,
};
use account::Account;
use anyhow::{Context as _, Result, ensure};
use instant_acme::{
    AuthorizationStatus, CertificateIdentifier, ChallengeStatus, ChallengeType, Error, Identifier, NewOrder,
    Order, OrderStatus,
};
use rcgen::{CertificateParams, DistinguishedName, KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384};
use serde::{Deserialize, Serialize};
use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant},
};
use time::OffsetDateTime;

/// Between two looks at an order: short at first, for authorities that are quick.
const FIRST_LOOK: Duration = Duration::from_millis(50);
const LAST_LOOK: Duration = Duration::from_secs(5);
/// How long an order may stand still before it is left for a later run.
const STANDSTILL: Duration = Duration::from_secs(90);
/// A certificate that is valid only from so much later is waited for.
const NOT_YET: time::Duration = time::Duration::seconds(60);

/// An order whose certificate is not in use yet. Never changed: old ones load for ever.
#[derive(Serialize, Deserialize)]
pub struct Left {
    pub directory: String,
    account: String,
    url: String,
    names: Vec<String>,
    profile: Option<String>,
    key_type: KeyType,
    /// PEM of the private key, which no other order uses.
    key: String,
    /// Unix time.
    since: i64,
}

/// Where an order is remembered.
pub fn path(id: &str) -> PathBuf {
    below("orders", &format!("{id}.json"))
}

/// The order that an earlier run left. A file that cannot be read is none.
pub fn left(host: &Host, id: &str) -> Result<Option<Left>> {
    Ok(host.read_text(&path(id))?.and_then(|text| serde_json::from_str(&text).ok()))
}

impl Left {
    /// Whether it is for what is wished now, at this authority.
    pub fn suits(&self, ca: &Ca, wish: &Wish) -> bool {
        self.directory == ca.directory
            && self.names == wish.names
            && self.profile == wish.profile
            && self.key_type == wish.key
    }

    pub fn since(&self) -> OffsetDateTime {
        OffsetDateTime::from_unix_timestamp(self.since).unwrap_or(OffsetDateTime::UNIX_EPOCH)
    }

    fn keep(&self, host: &Host, id: &str) -> Result<()> {
        host.write(&path(id), 0o600, serde_json::to_string(self)?.as_bytes())
    }
}

/// A new order, to its certificate.
pub async fn begin(
    host: &Host,
    account: &Account<'_>,
    wish: &Wish,
    finalizing: Finalizing<'_>,
) -> Result<Issued, Failure> {
    let doing = account.ca.doing(wish);
    let local = |e: anyhow::Error| Failure::here(&doing, e);
    let mut notes = Vec::new();
    let order = place(account, wish, &mut notes).await?;
    let key = KeyPair::generate_for(match wish.key {
        KeyType::P256 => &PKCS_ECDSA_P256_SHA256,
        KeyType::P384 => &PKCS_ECDSA_P384_SHA384,
    });
    let left = Left {
        directory: account.ca.directory.clone(),
        account: account.acme.id().into(),
        url: order.url().into(),
        names: wish.names.clone(),
        profile: wish.profile.clone(),
        key_type: wish.key,
        key: key.map_err(|e| Failure::here(&doing, e))?.serialize_pem(),
        since: OffsetDateTime::now_utc().unix_timestamp(),
    };
    left.keep(host, &wish.id).map_err(local)?;
    carry_out(Work { host, account, left: &left, doing: &doing, finalizing }, order, wish, notes).await
}

/// The order that an earlier run left, to its certificate.
pub async fn resume(
    host: &Host,
    account: &Account<'_>,
    wish: &Wish,
    finalizing: Finalizing<'_>,
) -> Result<Issued, Failure> {
    let doing = account.ca.doing(wish);
    let local = |e: anyhow::Error| Failure::here(&doing, e);
    let left = left(host, &wish.id).map_err(local)?.filter(|left| left.suits(account.ca, wish));
    let Some(left) = left else { return Err(Failure::here(&doing, "there is no order to go on with")) };
    if left.account != account.acme.id() {
        super::forget(host, &wish.id).map_err(local)?;
        return Err(Failure::here(&doing, "the order that was left is of another account; it is forgotten"));
    }
    let going = format!("going on with the order for {} at {}", left.names.join(", "), left.url);
    let mut tries = 0;
    let order = loop {
        tries += 1;
        match account.acme.order(left.url.clone()).await {
            Ok(order) => break order,
            Err(e) if account::is_bad_nonce(&e) && tries < account::BAD_NONCES => {}
            Err(e) => {
                // Not as the end of an account, though some say that it is unauthorized.
                let failure = Failure::of(&going, Stage::Finalize, &e, &account.heard());
                if is_final(&failure) {
                    super::forget(host, &wish.id).map_err(local)?;
                }
                return Err(failure);
            }
        }
    };
    carry_out(Work { host, account, left: &left, doing: &doing, finalizing }, order, wish, Vec::new()).await
}

async fn carry_out(
    work: Work<'_>,
    mut order: Order,
    wish: &Wish,
    mut notes: Vec<String>,
) -> Result<Issued, Failure> {
    let (host, doing) = (work.host, work.doing);
    let local = |e: anyhow::Error| Failure::here(doing, e);
    let outcome = match work.finish(&mut order).await {
        Ok(chain) => fit(doing, &chain, work.left).await,
        Err(failure) => Err(failure),
    };
    // While the order lives, somebody may still come to read them.
    if outcome.as_ref().err().is_none_or(is_final) {
        host.remove_tree(Path::new(CHALLENGES)).map_err(local)?;
    }
    if outcome.as_ref().is_err_and(is_final) {
        super::forget(host, &wish.id).map_err(local)?;
    }
    let pair = outcome.map_err(|failure| failure.noting(&notes))?;
    let profile = order.state().profile.clone();
    if let Some(wanted) = &wish.profile
        && profile.as_ref() != Some(wanted)
    {
        let got = profile.as_deref().unwrap_or("its own choice");
        notes.push(format!("the authority was asked for the profile {wanted} and took {got}"));
    }
    Ok(Issued { pair, profile, notes })
}

/// Whether nothing more can come of the order. What is only late, or told by nobody, is asked for again.
fn is_final(failure: &Failure) -> bool {
    match &failure.kind {
        Kind::Refused(kind) => !["rateLimited", "badNonce", "userActionRequired"].contains(&&**kind),
        Kind::Unusable => true,
        Kind::Unavailable | Kind::Unfinished | Kind::Clock | Kind::Strange | Kind::Here => false,
    }
}

/// A new order. The authority may have its own ideas about what replaces what (other accounts, other issuers, what
/// was replaced already); a renewal must not fail for that.
async fn place(account: &Account<'_>, wish: &Wish, notes: &mut Vec<String>) -> Result<Order, Failure> {
    let doing = format!("ordering a certificate for {} at {}", wish.names.join(", "), account.ca.directory);
    let offered: Vec<String> = account.acme.profiles().map(|profile| profile.name.to_owned()).collect();
    let profile = wish.profile.as_deref().filter(|_| !offered.is_empty());
    if let Some(wanted) = profile
        && !offered.iter().any(|name| name == wanted)
    {
        let said = format!("it has no profile {wanted}, but {}", offered.join(", "));
        return Err(Failure::new(&doing, Stage::NewOrder, Kind::Refused("invalidProfile".into()), said));
    }
    let names: Vec<Identifier> = wish.names.iter().cloned().map(Identifier::Dns).collect();
    let mut replaces = wish.replaces.as_deref().and_then(|id| id.split_once('.'));
    let mut tries = 0;
    loop {
        tries += 1;
        let mut request = NewOrder::new(&names);
        if let Some(profile) = profile {
            request = request.profile(profile);
        }
        if let Some((authority, serial)) = replaces {
            request = request.replaces(CertificateIdentifier {
                authority_key_identifier: authority.into(),
                serial: serial.into(),
            });
        }
        let e = match account.acme.new_order(&request).await {
            Ok(order) => return Ok(order),
            Err(e) if account::is_bad_nonce(&e) && tries < account::BAD_NONCES => continue,
            Err(e) => e,
        };
        let failure = Failure::of(&doing, Stage::NewOrder, &e, &account.heard());
        if replaces.is_none() {
            return Err(failure.noting(notes));
        }
        // An order that came without what it replaces is one that it does not want to hear of.
        if !failure.class().blames_replaces() {
            return Err(Failure { replaces: true, ..failure });
        }
        if !matches!(e, Error::Unsupported(_)) {
            notes.push(format!("ordered without naming what it replaces: {}", failure.said));
        }
        replaces = None;
    }
}

struct Work<'a> {
    host: &'a Host,
    account: &'a Account<'a>,
    left: &'a Left,
    doing: &'a str,
    finalizing: Finalizing<'a>,
}

impl Work<'_> {
    /// From wherever the order stands to its certificate.
    async fn finish(&self, order: &mut Order) -> Result<String, Failure> {
        let (mut answered, mut finalized) = (false, 0);
        let (mut stood, mut since, mut look) = (order.state().status, Instant::now(), FIRST_LOOK);
        loop {
            match order.state().status {
                OrderStatus::Pending if !answered => {
                    self.answer(order).await?;
                    answered = true;
                }
                OrderStatus::Pending | OrderStatus::Processing => {}
                OrderStatus::Ready if finalized < 2 => {
                    finalized += 1;
                    // An answer that was lost, or a fault on the way, says nothing of the order: look at it.
                    match self.finalize(order).await {
                        Ok(()) => {}
                        // Somebody was asked before, and the answer came to nobody.
                        Err(failure) if failure.is("orderNotReady") => {}
                        Err(failure) if is_final(&failure) => return Err(self.causes(order, failure).await),
                        Err(failure) if finalized == 2 || failure.kind == Kind::Clock => return Err(failure),
                        Err(failure) if failure.is("rateLimited") => return Err(failure),
                        Err(_) => {}
                    }
                }
                OrderStatus::Ready => {
                    return Err(self.standing("the order stays ready after its finalization"));
                }
                OrderStatus::Valid => return self.download(order).await,
                OrderStatus::Invalid => {
                    let said = "the authority gave the order up";
                    let kind = Kind::Refused("".into());
                    let stage = if finalized > 0 { Stage::Finalize } else { Stage::Challenge };
                    let failure = Failure::new(self.doing, stage, kind, said);
                    return Err(self.causes(order, failure).await);
                }
            }
            let status = order.state().status;
            if status != stood {
                (stood, since, look) = (status, Instant::now(), FIRST_LOOK);
                // What was just answered needs no second look: the order may be ready or done.
                if matches!(status, OrderStatus::Ready | OrderStatus::Valid | OrderStatus::Invalid) {
                    continue;
                }
            }
            let asked = self.account.heard().retry_after;
            let wait = asked.unwrap_or(look).max(FIRST_LOOK);
            look = (look * 2).min(LAST_LOOK);
            if since.elapsed().saturating_add(wait) > STANDSTILL {
                let said = format!(
                    "the order is {} for {} s",
                    format!("{stood:?}").to_lowercase(),
                    since.elapsed().as_secs()
                );
                let failure = Failure { retry_after: asked, ..self.standing(&said) };
                // Some authorities leave an order pending although a name has failed.
                let failed = self.causes(order, failure.clone()).await;
                return Err(if failed.names.is_empty() { failure } else { failed });
            }
            tokio::time::sleep(wait).await;
            self.look(order).await?;
        }
    }

    /// The order as the authority has it now; a broken connection is made anew. What stays broken is a matter for a
    /// later run.
    async fn look(&self, order: &mut Order) -> Result<(), Failure> {
        let mut tries = 0;
        loop {
            tries += 1;
            match order.refresh().await {
                Ok(_) => return Ok(()),
                Err(e) => {
                    let failure = self.failed(Stage::Finalize, "looking at the order", &e);
                    let again = failure.kind == Kind::Unavailable || account::is_bad_nonce(&e);
                    if tries >= account::BAD_NONCES || !again {
                        return Err(failure);
                    }
                    tokio::time::sleep(FIRST_LOOK * tries).await;
                }
            }
        }
    }

    fn failed(&self, stage: Stage, step: &str, e: &Error) -> Failure {
        Failure::of(&format!("{}: {step}", self.doing), stage, e, &self.account.heard())
    }

    fn standing(&self, said: &str) -> Failure {
        Failure::new(self.doing, Stage::Finalize, Kind::Unfinished, said)
    }

    /// Put the answer to each name's challenge where the authority will look for it, and say so.
    async fn answer(&self, order: &mut Order) -> Result<(), Failure> {
        let mut tries = 0;
        'again: loop {
            tries += 1;
            let mut authorizations = order.authorizations();
            while let Some(next) = authorizations.next().await {
                let mut authorization = match next {
                    Ok(authorization) => authorization,
                    Err(e) if account::is_bad_nonce(&e) && tries < account::BAD_NONCES => continue 'again,
                    Err(e) => return Err(self.failed(Stage::Challenge, "reading what it wants proven", &e)),
                };
                if authorization.status != AuthorizationStatus::Pending {
                    continue;
                }
                let name = authorization.identifier().to_string();
                let Some(mut challenge) = authorization.challenge(ChallengeType::Http01) else {
                    let said = format!("it does not offer http-01 for {name}");
                    let kind = Kind::Refused("unsupportedChallenge".into());
                    return Err(Failure::new(self.doing, Stage::Challenge, kind, said));
                };
                if challenge.status != ChallengeStatus::Pending {
                    continue;
                }
                let proof = challenge.key_authorization();
                let (token, proof) = (challenge.token.clone(), proof.as_str().to_owned());
                self.put(&token, &proof).map_err(|e| Failure::here(self.doing, e))?;
                // A failed validation is one of five an hour: what our own nginx does not serve is not worth one.
                let served = own_door(&name, &token, &proof).await;
                served.map_err(|e| Failure::here(self.doing, e))?;
                let mut nonces = 0;
                loop {
                    nonces += 1;
                    match challenge.set_ready().await {
                        Ok(()) => break,
                        Err(e) if account::is_bad_nonce(&e) && nonces < account::BAD_NONCES => {}
                        Err(e) => {
                            let mut failure =
                                self.failed(Stage::Challenge, "proving that this is its machine", &e);
                            // Some authorities validate while they are being told.
                            if let (Kind::Refused(kind), true) = (&failure.kind, failure.names.is_empty()) {
                                let (kind, said) = (kind.to_string(), failure.said.to_string());
                                failure.names = vec![Fault { name, kind, said }];
                            }
                            return Err(failure);
                        }
                    }
                }
            }
            return Ok(());
        }
    }

    fn put(&self, token: &str, proof: &str) -> Result<()> {
        let plain = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
        let good = !token.is_empty() && token.len() <= 256 && token.bytes().all(plain);
        ensure!(good, "the authority named a challenge {token:?}, which is no token");
        self.host.write(&Path::new(CHALLENGES).join(token), 0o644, proof.as_bytes())
    }

    async fn finalize(&self, order: &mut Order) -> Result<(), Failure> {
        (self.finalizing)().map_err(|e| Failure::here(self.doing, e))?;
        let csr = request(&self.left.names, &self.left.key).map_err(|e| Failure::here(self.doing, e))?;
        let mut nonces = 0;
        loop {
            nonces += 1;
            match order.finalize_csr(&csr).await {
                Ok(()) => return Ok(()),
                Err(e) if account::is_bad_nonce(&e) && nonces < account::BAD_NONCES => {}
                Err(e) => return Err(self.failed(Stage::Finalize, "finalizing the order", &e)),
            }
        }
    }

    async fn download(&self, order: &mut Order) -> Result<String, Failure> {
        let mut tries = 0;
        loop {
            tries += 1;
            match order.certificate().await {
                Ok(Some(chain)) => return Ok(chain),
                Ok(None) => return Err(self.standing("there is no certificate yet")),
                Err(e) => {
                    let failure = self.failed(Stage::Finalize, "fetching the certificate", &e);
                    let again = failure.kind == Kind::Unavailable || account::is_bad_nonce(&e);
                    if tries >= account::BAD_NONCES || !again {
                        return Err(failure);
                    }
                    tokio::time::sleep(FIRST_LOOK * tries).await;
                }
            }
        }
    }

    /// The same failure, with what the authority found wrong with each name: an order only says that it failed, and
    /// some do not even say that.
    async fn causes(&self, order: &mut Order, failure: Failure) -> Failure {
        let mut failure = failure;
        // Asked again, because what was fetched before the failure does not know of it. Without an answer we know
        // what we knew.
        if let Ok(state) = order.refresh().await
            && let Some(problem) = &state.error
        {
            let kind = Kind::Refused(short(problem.r#type.as_deref()).into());
            if failure.kind == Kind::Refused("".into()) {
                failure.kind = kind;
                failure.said = problem.detail.clone().map_or(failure.said, Into::into);
            }
            if failure.names.is_empty() {
                failure.names = super::faults(problem);
            }
        }
        let mut authorizations = order.authorizations();
        while let Some(Ok(authorization)) = authorizations.next().await {
            let name = authorization.identifier().to_string();
            let problems = authorization.challenges.iter().filter_map(|challenge| challenge.error.as_ref());
            for problem in problems {
                let kind = short(problem.r#type.as_deref()).to_owned();
                let said = problem.detail.clone().unwrap_or_else(|| "no reason given".into());
                if !failure.names.iter().any(|fault| fault.name == name) {
                    failure.names.push(Fault { name: name.clone(), kind, said });
                }
            }
        }
        if let (Kind::Refused(kind), Some(fault)) = (&failure.kind, failure.names.first())
            && kind.is_empty()
        {
            failure.kind = Kind::Refused(fault.kind.as_str().into());
        } else if let (Kind::Unfinished, Some(fault)) = (&failure.kind, failure.names.first()) {
            failure.kind = Kind::Refused(fault.kind.as_str().into());
        }
        failure
    }
}

/// The challenge as the authority will ask for it, of our own nginx.
async fn own_door(name: &str, token: &str, proof: &str) -> Result<()> {
    let doing = || format!("asking nginx on this machine for the challenge of {name}");
    let client = Client::through_nginx(&[name.to_owned()], "").with_context(doing)?;
    let url = format!("http://{name}/.well-known/acme-challenge/{token}");
    let answer = client.ask("GET", &url, None, None).await.with_context(doing)?;
    let right = answer.status == 200 && answer.body.trim_ascii() == proof.as_bytes();
    ensure!(
        right,
        "nginx on this machine answers the challenge of {name} with {} and not with the file in {WEBROOT}: {}",
        answer.status,
        answer.start()
    );
    Ok(())
}

/// The certificate signing request, DER.
fn request(names: &[String], key: &str) -> Result<Vec<u8>> {
    let key = KeyPair::from_pem(key).context("reading the order's private key")?;
    let mut params = CertificateParams::new(names.to_vec()).context("naming the certificate")?;
    params.distinguished_name = DistinguishedName::new();
    Ok(params.serialize_request(&key).context("signing the certificate request")?.der().to_vec())
}

/// What came, if it can be put in use: whole, for our key and names, and valid now.
async fn fit(doing: &str, chain: &str, left: &Left) -> Result<Pair, Failure> {
    let unusable = |e: anyhow::Error| {
        Failure::new(doing, Stage::Finalize, Kind::Unusable, format!("what came is not to be used: {e:#}"))
    };
    let chain = plain(chain).map_err(unusable)?;
    let pair = Pair { chain, key: left.key.clone() };
    let facts = store::facts(&pair.chain).map_err(unusable)?;
    let wait = facts.not_before - OffsetDateTime::now_utc();
    if wait > NOT_YET {
        let retry_after = Some(wait.unsigned_abs());
        let said = format!("the certificate is valid only from {}", facts.not_before);
        return Err(Failure { retry_after, ..Failure::new(doing, Stage::Finalize, Kind::Unfinished, said) });
    }
    if wait.is_positive() {
        tokio::time::sleep(wait.unsigned_abs()).await;
    }
    for name in &left.names {
        store::check(&pair, name, OffsetDateTime::now_utc()).map_err(unusable)?;
    }
    Ok(pair)
}

/// The certificates alone, each once, without the root: a client has that already.
fn plain(chain: &str) -> Result<String> {
    let ders = store::ders(chain)?;
    ensure!(!ders.is_empty(), "there is no certificate in it");
    let mut kept: Vec<&[u8]> = Vec::new();
    for (n, der) in ders.iter().enumerate() {
        let facts = store::der_facts(der)?;
        if n == 0 || facts.subject != facts.issuer && !kept.contains(&der.as_ref()) {
            kept.push(der);
        }
    }
    Ok(kept.into_iter().map(pem).collect())
}

fn pem(der: &[u8]) -> String {
    use base64::Engine as _;
    let text = base64::engine::general_purpose::STANDARD.encode(der);
    let lines: Vec<_> = text.as_bytes().chunks(64).map(|line| String::from_utf8_lossy(line)).collect();
    format!("-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n", lines.join("\n"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{BasicConstraints, DnType, IsCa, Issuer};

    /// A root, one below it, and a leaf for `names`, each PEM; and the leaf's key.
    fn family(names: &[&str]) -> ([String; 3], String) {
        let authority = |name: &str| {
            let mut params = CertificateParams::default();
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            params.distinguished_name.push(DnType::CommonName, name);
            (params, KeyPair::generate().unwrap())
        };
        let (root, root_key) = authority("root");
        let root_pem = root.self_signed(&root_key).unwrap().pem();
        let root = Issuer::new(root, root_key);
        let (below, below_key) = authority("below");
        let below_pem = below.signed_by(&below_key, &root).unwrap().pem();
        let below = Issuer::new(below, below_key);
        let names: Vec<_> = names.iter().map(|name| (*name).to_owned()).collect();
        let (mut leaf, key) = (CertificateParams::new(names).unwrap(), KeyPair::generate().unwrap());
        leaf.not_before = OffsetDateTime::now_utc() - time::Duration::HOUR;
        leaf.not_after = OffsetDateTime::now_utc() + time::Duration::days(90);
        let pem = leaf.signed_by(&key, &below).unwrap().pem();
        ([root_pem, below_pem, pem], key.serialize_pem())
    }

    #[tokio::test]
    async fn what_comes_is_put_in_use_only_if_a_visitor_would_take_it() {
        let ([root, below, leaf], key) = family(&["a.lonel.ai"]);
        let left = |names: &[&str], key: &str| Left {
            directory: String::new(),
            account: String::new(),
            url: String::new(),
            names: names.iter().map(|name| (*name).to_owned()).collect(),
            profile: None,
            key_type: KeyType::P256,
            key: key.to_owned(),
            since: 0,
        };
        let good = left(&["a.lonel.ai"], &key);
        // Some send the root, and some send it twice; what a visitor needs is the rest.
        for chain in [
            format!("{leaf}{below}"),
            format!("{leaf}{below}{root}"),
            format!("{leaf}{below}{root}{root}"),
            format!("Hello\n{leaf}\n{below}{below}"),
        ] {
            let pair = fit("x", &chain, &good).await.unwrap();
            assert_eq!(store::ders(&pair.chain).unwrap().len(), 2);
        }
        let ([_, other, stranger], _) = family(&["a.lonel.ai"]);
        let table = [
            (format!("{stranger}{other}"), &good, "the key is not the certificate's"),
            (format!("{leaf}{other}"), &good, "did not sign it"),
            (leaf[..300].to_owned(), &good, "not to be used"),
            ("<html>".into(), &good, "there is no certificate"),
            (format!("{leaf}{below}"), &left(&["a.lonel.ai", "b.lonel.ai"], &key), "not b.lonel.ai"),
        ];
        for (chain, left, wanted) in table {
            let failure = fit("x", &chain, left).await.unwrap_err();
            assert_eq!(failure.kind, Kind::Unusable);
            assert!(failure.to_string().contains(wanted), "{failure}");
        }
    }

    #[test]
    fn a_request_names_what_was_ordered_and_nothing_else() {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P384_SHA384).unwrap().serialize_pem();
        let names = ["a.lonel.ai".to_owned(), "b.lonel.ai".to_owned()];
        let der = request(&names, &key).unwrap();
        let csr = rcgen::CertificateSigningRequestParams::from_der(&der.as_slice().into()).unwrap();
        let wanted = names.map(|name| rcgen::SanType::DnsName(name.try_into().unwrap()));
        assert_eq!(csr.params.subject_alt_names, wanted);
        assert_eq!(csr.params.distinguished_name.iter().count(), 0);
    }
}
