//! Certificates from any authority that speaks ACME (RFC 8555, RFC 9773): one certificate, one order. It asks and
//! hands over what came; when to ask is `renewal`'s matter, and putting a certificate in use `store`'s.
//!
//! Whatever costs something is on disk before it is asked for: the account before its first order, and an order's
//! address and private key before its certificate. So an order cut short anywhere is gone on with by the next run,
//! and never paid for twice. All of it is root's alone.

mod account;
mod http;
mod order;

use super::{
    renewal::{AriFault, ErrorClass, Stage, Window, retry_date},
    store::{self, Pair},
};
use crate::{
    config::KeyType,
    hash::{first, sha256},
    host::Host,
    web::block_on,
};
use account::Account;
use anyhow::{Context as _, Result};
use http::{Heard, Messenger, Trouble};
use instant_acme::{CertificateIdentifier, Error, Problem, RevocationReason, RevocationRequest};
use rustls::pki_types::CertificateDer;
use std::{
    fmt,
    path::{Path, PathBuf},
    time::Duration,
};
use time::OffsetDateTime;

/// Accounts and unfinished orders.
pub const DIR: &str = "/var/lib/echoes-appliance/tls/acme";

/// What nginx serves challenges from, for every name of ours, over http and without a password.
pub const WEBROOT: &str = "/var/lib/echoes-appliance/acme";
pub const CHALLENGES: &str = "/var/lib/echoes-appliance/acme/.well-known/acme-challenge";

/// One order from its first request to its certificate. What takes longer is gone on with by a later run.
const ORDER: Duration = Duration::from_secs(300);

/// An authority as the operator named it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ca {
    /// The URL of its directory.
    pub directory: String,
    /// PEM of those who vouch for its web server, in place of the machine's own.
    pub roots: Option<String>,
    /// Whom it may write to.
    pub email: Option<String>,
    pub eab: Option<Eab>,
}

/// External account binding: who we are to an authority that knows its customers.
#[derive(Clone, PartialEq, Eq)]
pub struct Eab {
    pub kid: String,
    pub hmac: Vec<u8>,
}

impl fmt::Debug for Eab {
    /// A key has no business in a log.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Eab").field("kid", &self.kid).finish_non_exhaustive()
    }
}

/// The certificate that is wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wish {
    /// What it is called here: the name of its order's file.
    pub id: String,
    pub names: Vec<String>,
    pub profile: Option<String>,
    pub key: KeyType,
    /// The identifier (RFC 9773, 4.1) of the certificate that this one takes the place of: some authorities treat
    /// such an order better.
    pub replaces: Option<String>,
    /// The authority does not know our account any more.
    pub new_account: bool,
}

/// What came of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Issued {
    pub pair: Pair,
    /// As the authority has it.
    pub profile: Option<String>,
    /// What the operator should know, though it stopped nothing.
    pub notes: Vec<String>,
}

/// When the authority would like a certificate to be replaced (RFC 9773).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Advice {
    pub window: Window,
    pub retry_after: Option<Duration>,
    /// A page about it.
    pub why: Option<String>,
}

/// What an authority says of itself before it is asked for anything.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Greeting {
    /// Its time less ours.
    pub clock: time::Duration,
    /// Its names in CAA records.
    pub caa: Vec<String>,
}

/// Why there is no certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    pub doing: Box<str>,
    pub stage: Stage,
    pub kind: Kind,
    /// Of the answer, if there was one.
    pub status: Option<u16>,
    pub said: Box<str>,
    /// What the authority found wrong with single names.
    pub names: Vec<Fault>,
    /// The authority will not hear of it before this has passed.
    pub retry_after: Option<Duration>,
    /// Pages that the authority points at.
    pub links: Box<[String]>,
    /// Whether the order named the certificate that it replaces.
    pub replaces: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    pub name: String,
    /// As in `Kind::Refused`.
    pub kind: String,
    pub said: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// The last word of one of RFC 8555's error types, as in `rateLimited`.
    Refused(Box<str>),
    /// No answer, or none that an ACME server gives.
    Unavailable,
    /// The order is under way; the next run goes on with it.
    Unfinished,
    /// One of the two clocks is wrong.
    Clock,
    /// What came cannot be put in use.
    Unusable,
    /// It speaks another ACME than we.
    Strange,
    /// It is about this machine or its settings: asking the authority again changes nothing.
    Here,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.doing, self.said)?;
        if let Kind::Refused(kind) = &self.kind {
            write!(f, " ({kind})")?;
        }
        for Fault { name, kind, said } in &self.names {
            write!(f, "; {name}: {said} ({kind})")?;
        }
        Ok(())
    }
}

impl std::error::Error for Failure {}

impl Failure {
    fn new(doing: &str, stage: Stage, kind: Kind, said: impl fmt::Display) -> Self {
        Self {
            doing: doing.into(),
            stage,
            kind,
            status: None,
            said: said.to_string().into(),
            names: Vec::new(),
            retry_after: None,
            links: Box::default(),
            replaces: false,
        }
    }

    /// Of an error its causes too.
    pub fn here(doing: &str, said: impl fmt::Display) -> Self {
        Self::new(doing, Stage::Account, Kind::Here, format_args!("{said:#}"))
    }

    /// What instant-acme says, with what it left out.
    fn of(doing: &str, stage: Stage, error: &Error, heard: &Heard) -> Self {
        let new = |kind, said: &dyn fmt::Display| Self::new(doing, stage, kind, said);
        let refused = |problem: Option<&str>| Kind::Refused(short(problem).into());
        let mut failure = match error {
            Error::Api(problem) => {
                let said = problem.detail.as_deref().unwrap_or("no reason given");
                Self { names: faults(problem), ..new(refused(problem.r#type.as_deref()), &said) }
            }
            Error::Other(other) => match other.downcast_ref::<Trouble>() {
                Some(trouble @ Trouble::Clock { .. }) => new(Kind::Clock, trouble),
                // An ACME server that has trouble of its own says so as it says all else.
                Some(Trouble::Status { kind: Some(problem), said, .. })
                    if !["serverInternal", ""].contains(&short(Some(problem))) =>
                {
                    new(refused(Some(problem)), said)
                }
                Some(trouble) => new(Kind::Unavailable, trouble),
                None => new(Kind::Strange, other),
            },
            Error::Timeout(_) => new(Kind::Unfinished, &"the authority is not done yet"),
            Error::Crypto | Error::KeyRejected => new(Kind::Here, error),
            other => new(Kind::Strange, other),
        };
        failure.status = Some(heard.status).filter(|status| *status > 0);
        failure.retry_after = heard.retry_after;
        failure.links = heard.links.clone().into();
        failure
    }

    /// The same, with what had already gone otherwise than asked for: it may be why.
    fn noting(self, notes: &[String]) -> Self {
        if notes.is_empty() {
            return self;
        }
        Self { doing: format!("{} ({})", self.doing, notes.join("; ")).into(), ..self }
    }

    /// What is to be done about it.
    pub fn class(&self) -> ErrorClass {
        match &self.kind {
            Kind::Refused(kind) => {
                let kind = Some(&**kind).filter(|kind| !kind.is_empty());
                ErrorClass::of(self.stage, kind, self.status.or(Some(400)))
            }
            Kind::Unavailable => ErrorClass::of(self.stage, None, self.status.filter(|s| *s >= 500)),
            Kind::Unfinished => ErrorClass::Processing,
            Kind::Clock => ErrorClass::Clock,
            Kind::Unusable => ErrorClass::Unusable,
            Kind::Strange | Kind::Here => ErrorClass::Request,
        }
    }

    /// Before when the authority will not hear of it; from its header, or from its words where it has lost that.
    pub fn retry_at(&self, now: OffsetDateTime) -> Option<OffsetDateTime> {
        let counted = self.retry_after.and_then(|wait| now.checked_add(wait.try_into().ok()?));
        counted.or_else(|| retry_date(&self.said))
    }

    /// For a question about when to renew.
    pub fn ari(&self) -> AriFault {
        match (&self.kind, self.status) {
            (Kind::Unavailable, None | Some(500..)) | (Kind::Clock, _) => AriFault::Passing,
            _ => AriFault::Lasting,
        }
    }

    /// Whether it is of this kind, in the authority's own word.
    pub fn is(&self, kind: &str) -> bool {
        matches!(&self.kind, Kind::Refused(it) if **it == *kind)
    }
}

/// `urn:ietf:params:acme:error:rateLimited` → `rateLimited`.
fn short(kind: Option<&str>) -> &str {
    kind.and_then(|kind| kind.rsplit(':').next()).unwrap_or("")
}

fn faults(problem: &Problem) -> Vec<Fault> {
    let named = problem.subproblems.iter().filter_map(|sub| {
        let instant_acme::Identifier::Dns(name) = sub.identifier.clone()? else { return None };
        let said = sub.detail.clone().unwrap_or_else(|| "no reason given".into());
        Some(Fault { name, kind: short(sub.r#type.as_deref()).into(), said })
    });
    named.collect()
}

/// What must be remembered before the authority is asked to sign.
pub type Finalizing<'a> = &'a dyn Fn() -> Result<()>;

impl Ca {
    /// What its directory says.
    pub fn greet(&self) -> Result<Greeting, Failure> {
        let doing = format!("asking {} what it offers", self.directory);
        self.within(&doing, async |messenger| {
            messenger.greet(&self.directory).await.map_err(|e| {
                Failure::of(&doing, Stage::Account, &Error::Other(Box::new(e)), &messenger.heard())
            })
        })
    }

    /// The certificate that is wished for, by a new order.
    pub fn order(&self, host: &Host, wish: &Wish, finalizing: Finalizing) -> Result<Issued, Failure> {
        self.within(&self.doing(wish), async |messenger| {
            let mut account = Account::open(host, self, messenger).await?;
            if wish.new_account {
                account.replace(host).await?;
            }
            order::begin(host, &account, wish, finalizing).await
        })
    }

    /// As `order`, by going on with the one that an earlier run left. When nothing can come of that any more it
    /// fails, and the order is forgotten.
    pub fn resume(&self, host: &Host, wish: &Wish, finalizing: Finalizing) -> Result<Issued, Failure> {
        self.within(&self.doing(wish), async |messenger| {
            let account = Account::open(host, self, messenger).await?;
            order::resume(host, &account, wish, finalizing).await
        })
    }

    /// Since when an order for this stands unfinished.
    pub fn unfinished(&self, host: &Host, wish: &Wish) -> Result<Option<OffsetDateTime>> {
        let left = order::left(host, &wish.id)?;
        Ok(left.filter(|left| left.suits(self, wish)).map(|left| left.since()))
    }

    /// When the authority would like this certificate (PEM) replaced.
    pub fn advice(&self, host: &Host, chain: &str) -> Result<Advice, Failure> {
        let doing = format!("asking {} when to renew", self.directory);
        self.within(&doing, async |messenger| {
            let id = identify(chain).map_err(|e| Failure::here(&doing, e))?;
            let account = Account::open(host, self, messenger).await?;
            let asked = account.acme.renewal_info(&id).await;
            let (info, _) = asked.map_err(|e| Failure::of(&doing, Stage::Account, &e, &account.heard()))?;
            let window = Window { start: info.suggested_window.start, end: info.suggested_window.end };
            Ok(Advice { window, retry_after: account.heard().retry_after, why: info.explanation_url })
        })
    }

    /// Tell everybody that this certificate (PEM) must not be believed any more.
    pub fn revoke(&self, host: &Host, chain: &str, key_is_known: bool) -> Result<(), Failure> {
        let doing = format!("revoking a certificate at {}", self.directory);
        self.within(&doing, async |messenger| {
            let certificate = &leaf(chain).map_err(|e| Failure::here(&doing, e))?;
            let account = Account::open(host, self, messenger).await?;
            let reason =
                if key_is_known { RevocationReason::KeyCompromise } else { RevocationReason::Superseded };
            let asked = account.acme.revoke(&RevocationRequest { certificate, reason: Some(reason) }).await;
            match asked.map_err(|e| Failure::of(&doing, Stage::Account, &e, &account.heard())) {
                // As good.
                Err(failure) if failure.is("alreadyRevoked") => Ok(()),
                answer => answer,
            }
        })
    }

    fn doing(&self, wish: &Wish) -> String {
        format!("getting a certificate for {} from {}", wish.names.join(", "), self.directory)
    }

    fn within<T>(
        &self,
        doing: &str,
        asking: impl AsyncFnOnce(Messenger) -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        let messenger = Messenger::new(self.roots.as_deref())
            .map_err(|e| Failure::here(doing, format!("the setting tls.ca_file: {e:#}")))?;
        let answer = block_on(async {
            let late = || {
                let said = format!("not done within {} s", ORDER.as_secs());
                Failure::new(doing, Stage::Finalize, Kind::Unfinished, said)
            };
            Ok(tokio::time::timeout(ORDER, asking(messenger)).await.unwrap_or_else(|_| Err(late())))
        });
        answer.unwrap_or_else(|e| Err(Failure::here(doing, e)))
    }
}

/// The order's work is done: its certificate is in use, or nobody wants it any more.
pub fn forget(host: &Host, id: &str) -> Result<()> {
    host.remove(&order::path(id))
}

/// The identifier of a certificate (PEM) in RFC 9773, 4.1.
pub fn identifier(chain: &str) -> Result<String> {
    Ok(identify(chain)?.to_string())
}

fn leaf(chain: &str) -> Result<CertificateDer<'static>> {
    store::ders(chain)?.into_iter().next().context("there is no certificate")
}

fn identify(chain: &str) -> Result<CertificateIdentifier<'static>> {
    let leaf = leaf(chain)?;
    let id = CertificateIdentifier::try_from(&leaf).map_err(anyhow::Error::msg);
    Ok(id.context("the certificate has no identifier")?.into_owned())
}

/// What an authority is called in names of files, where its directory's URL cannot stand.
pub fn mark(directory: &str) -> String {
    first(&sha256(directory), 16).to_owned()
}

fn below(dir: &str, name: &str) -> PathBuf {
    Path::new(DIR).join(dir).join(name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use time::macros::datetime;

    /// What each answer means for the schedule: by the authority's word first, by the status where it has none.
    #[test]
    fn every_failure_has_its_class() {
        let api = |kind: &str, detail: &str| {
            let json = serde_json::json!({
                "type": format!("urn:ietf:params:acme:error:{kind}"),
                "detail": detail,
            });
            Error::Api(serde_json::from_value(json).unwrap())
        };
        let trouble = |trouble| Error::Other(Box::new(trouble));
        let url = || "https://ca/x".to_owned();
        let status = |status, kind: Option<&str>| {
            let kind = kind.map(|kind| format!("urn:ietf:params:acme:error:{kind}"));
            trouble(Trouble::Status { url: url(), status, kind, said: "x".into() })
        };
        let table = [
            (Stage::NewOrder, api("rateLimited", ""), 429, ErrorClass::RateLimited),
            (Stage::NewOrder, api("unauthorized", ""), 403, ErrorClass::Account),
            (Stage::Challenge, api("unauthorized", ""), 403, ErrorClass::Validation),
            (Stage::NewOrder, api("malformed", ""), 400, ErrorClass::Request),
            (Stage::NewOrder, api("malformed", ""), 409, ErrorClass::Replaces),
            (Stage::NewOrder, status(503, None), 503, ErrorClass::Busy),
            (Stage::NewOrder, status(503, Some("serverInternal")), 503, ErrorClass::Busy),
            (Stage::NewOrder, status(503, Some("rateLimited")), 503, ErrorClass::RateLimited),
            (Stage::NewOrder, status(500, Some("serverInternal")), 500, ErrorClass::Server),
            (
                Stage::Account,
                trouble(Trouble::Silent { url: url(), after: Duration::from_secs(30) }),
                0,
                ErrorClass::Unreachable,
            ),
            (Stage::Account, trouble(Trouble::Clock { ahead: 7200 }), 200, ErrorClass::Clock),
            (Stage::Finalize, Error::Timeout(None), 200, ErrorClass::Processing),
            (Stage::NewOrder, Error::Str("replaces field mismatch"), 201, ErrorClass::Request),
        ];
        for (stage, error, status, class) in table {
            let heard = Heard { status, ..Heard::default() };
            assert_eq!(Failure::of("x", stage, &error, &heard).class(), class, "{error:?}");
        }
        let now = datetime!(2026-11-23 12:00 UTC);
        let said = api("rateLimited", "too many, retry after 2026-11-24 08:15:04 UTC: see https://x");
        let of = |heard: &Heard| Failure::of("x", Stage::NewOrder, &said, heard).retry_at(now);
        assert_eq!(of(&Heard::default()), Some(datetime!(2026-11-24 8:15:04 UTC)), "from its words");
        let header = Heard { retry_after: Some(Duration::from_secs(60)), ..Heard::default() };
        assert_eq!(of(&header), Some(now + time::Duration::MINUTE), "from its header");
    }
}
