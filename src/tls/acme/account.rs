//! The account at an authority: made once for each, and kept. A file of root's alone, one for each directory.

use super::{Ca, Eab, Failure, Heard, Messenger, below, mark};
use crate::{host::Host, tls::renewal::Stage};
use instant_acme::{AccountCredentials, Error, ExternalAccountKey, NewAccount};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use time::{Duration, OffsetDateTime};

/// One that an authority knows no more is replaced by a new one, but not again within this time: it then has another
/// trouble, and there is a limit to new accounts.
const ONCE: Duration = Duration::HOUR;

pub struct Account<'a> {
    pub acme: instant_acme::Account,
    pub ca: &'a Ca,
    messenger: Messenger,
    made: OffsetDateTime,
}

/// What is kept of it. Never changed: old ones load for ever.
#[derive(Serialize, Deserialize)]
struct Kept {
    directory: String,
    /// Unix time.
    made: i64,
    /// Holds the account's private key.
    credentials: AccountCredentials,
}

impl<'a> Account<'a> {
    /// The one we have there, or a new one.
    pub async fn open(host: &Host, ca: &'a Ca, messenger: Messenger) -> Result<Self, Failure> {
        let path = path(&ca.directory);
        let doing = format!("opening the account in {}", path.display());
        let kept = host.read_text(&path).map_err(|e| Failure::here(&doing, e))?;
        let Some(text) = kept else { return Self::make(host, ca, messenger).await };
        let kept: Kept = serde_json::from_str(&text).map_err(|e| {
            Failure::here(&doing, format!("{e}: move the file away to begin with a new account"))
        })?;
        let made = OffsetDateTime::from_unix_timestamp(kept.made).unwrap_or(OffsetDateTime::UNIX_EPOCH);
        let builder = instant_acme::Account::builder_with_http(Box::new(messenger.clone()));
        let acme = builder.from_credentials(kept.credentials).await;
        let doing = format!("asking {} what it offers", ca.directory);
        let acme = acme.map_err(|e| Failure::of(&doing, Stage::Account, &e, &messenger.heard()))?;
        Ok(Self { acme, ca, messenger, made })
    }

    async fn make(host: &Host, ca: &'a Ca, messenger: Messenger) -> Result<Self, Failure> {
        let doing = format!("making an account at {}", ca.directory);
        let email = ca.email.as_ref().map(|email| format!("mailto:{email}"));
        let contact: Vec<&str> = email.iter().map(String::as_str).collect();
        let account =
            NewAccount { contact: &contact, terms_of_service_agreed: true, only_return_existing: false };
        let eab = ca.eab.as_ref().map(|Eab { kid, hmac }| ExternalAccountKey::new(kid.clone(), hmac));
        let mut tries = 0;
        let (acme, credentials) = loop {
            tries += 1;
            let builder = instant_acme::Account::builder_with_http(Box::new(messenger.clone()));
            match builder.create(&account, ca.directory.clone(), eab.as_ref()).await {
                Err(e) if is_bad_nonce(&e) && tries < BAD_NONCES => {}
                made => {
                    break made.map_err(|e| Failure::of(&doing, Stage::Account, &e, &messenger.heard()))?;
                }
            }
        };
        let made = OffsetDateTime::now_utc();
        let kept = Kept { directory: ca.directory.clone(), made: made.unix_timestamp(), credentials };
        let text = serde_json::to_string(&kept).map_err(|e| Failure::here(&doing, e))?;
        host.write(&path(&ca.directory), 0o600, text.as_bytes()).map_err(|e| Failure::here(&doing, e))?;
        Ok(Self { acme, ca, messenger, made })
    }

    /// A new one in its place, the old one kept beside it; nothing when this one is new itself: a run for another
    /// certificate made it.
    pub async fn replace(&mut self, host: &Host) -> Result<(), Failure> {
        if OffsetDateTime::now_utc() - self.made < ONCE {
            return Ok(());
        }
        let path = path(&self.ca.directory);
        let doing = format!("setting {} aside", path.display());
        let aside = host.rename(&path, &path.with_extension("old"));
        aside.map_err(|e| Failure::here(&doing, e))?;
        *self = Self::make(host, self.ca, self.messenger.clone()).await?;
        Ok(())
    }

    pub fn heard(&self) -> Heard {
        self.messenger.heard()
    }
}

/// instant-acme tries three times with a nonce from the last refusal; so many rounds of that.
pub const BAD_NONCES: u32 = 5;

pub fn is_bad_nonce(e: &Error) -> bool {
    matches!(e, Error::Api(problem) if super::short(problem.r#type.as_deref()) == "badNonce")
}

fn path(directory: &str) -> PathBuf {
    below("accounts", &format!("{}.json", mark(directory)))
}
