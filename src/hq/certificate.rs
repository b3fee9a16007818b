//! The certificate of one host name as a thing to look at and make.

use super::{
    receipt::{Book, Entry},
    resource::{Seen, missing_dirs},
};
use crate::{
    host::Host,
    tls::{
        self,
        internal::{Authority, Due},
        store,
    },
};
use anyhow::Result;
use std::path::{Path, PathBuf};
use time::OffsetDateTime;

pub fn look(host: &Host, domain: &str, name: &str) -> Result<Seen> {
    let now = OffsetDateTime::now_utc();
    let Some(authority) = Authority::look(host, domain, now)? else {
        return Ok(Seen::Wrong("there is no authority to sign it yet".into()));
    };
    Ok(match tls::due(host, &authority, name, now)? {
        Due::Renew(why) => Seen::Wrong(why.to_string()),
        Due::Fresh { .. } => Seen::Right,
    })
}

pub fn make(host: &Host, domain: &str, name: &str, book: &Book) -> Result<()> {
    let now = OffsetDateTime::now_utc();
    let (shared, own) = (Path::new(store::DIR), Path::new(store::DIR).join(name));
    for file in [tls::internal::ca_crt(), tls::internal::ca_key()] {
        if !book.receipt().created.contains(&file) {
            book.note(Entry::Created { dirs: missing_dirs(host, &shared.join("x"))?, path: file })?;
        }
    }
    if !book.receipt().built.contains(&own) {
        book.note(Entry::Built { dirs: missing_dirs(host, &own)?, path: own })?;
    }
    let (authority, _) = Authority::keep(host, domain, now)?;
    tls::keep(host, &authority, name, now).map(drop)
}

/// The authority stays as long as anything is signed by it.
pub fn owns(name: &str) -> Vec<PathBuf> {
    vec![
        Path::new(store::DIR).join(name),
        store::paths(name).0,
        tls::internal::ca_crt(),
        tls::internal::ca_key(),
    ]
}
