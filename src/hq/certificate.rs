//! The certificate of one host name as a thing to look at and make: what nginx must have before it can start. It
//! asks no authority but our own: where an ACME authority signs, our own certificate stands in until `issuance` has
//! a better one, and a better one is left alone.

use super::{
    receipt::{Book, Entry},
    resource::{Seen, missing_dirs},
};
use crate::{
    host::Host,
    tls::{
        self, acme,
        internal::{Authority, Due, Why},
        store::{self, Pair, Trust},
    },
};
use anyhow::{Context as _, Result};
use std::path::{Path, PathBuf};
use time::OffsetDateTime;

/// Whose certificate is wanted.
#[derive(Debug, Clone, PartialEq)]
pub enum Source {
    /// Our own authority's for this domain.
    Internal(String),
    /// An ACME authority's, or until there is one as above.
    Acme(String),
    /// What the team brings: certificate with chain, key.
    Files(PathBuf, PathBuf),
}

pub fn look(host: &Host, source: &Source, name: &str) -> Result<Seen> {
    let now = OffsetDateTime::now_utc();
    Ok(match source {
        Source::Internal(domain) => by_us(host, domain, name, now)?,
        Source::Acme(domain) => match stands(host, name)? {
            Standing::Foreign => Seen::Right,
            Standing::Ours | Standing::Broken => by_us(host, domain, name, now)?,
        },
        Source::Files(chain, key) => {
            let wanted = brought(host, chain, key)?;
            match store::current(host, name)? {
                Some(current) if current.pair == wanted && current.key_mode & 0o077 == 0 => Seen::Right,
                Some(_) => Seen::Wrong(format!("it is not the one in {}", chain.display())),
                None => Seen::Wrong(Why::Absent.to_string()),
            }
        }
    })
}

fn by_us(host: &Host, domain: &str, name: &str, now: OffsetDateTime) -> Result<Seen> {
    let Some(authority) = Authority::look(host, domain, now)? else {
        return Ok(Seen::Wrong("there is no authority to sign it yet".into()));
    };
    Ok(match tls::due(host, &authority, name, now)? {
        Due::Renew(why) => Seen::Wrong(why.to_string()),
        Due::Fresh { .. } => Seen::Right,
    })
}

/// Who signed what is in use for a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// There is nothing that nginx could serve for it.
    Broken,
    /// Our own authority.
    Ours,
    /// Another.
    Foreign,
}

/// What is in use for a name, whatever its dates: nginx serves also what has ended.
pub fn stands(host: &Host, name: &str) -> Result<Standing> {
    let Some(current) = store::current(host, name)? else { return Ok(Standing::Broken) };
    let covers = store::facts(&current.pair.chain).is_ok_and(|facts| facts.covers(name));
    let whole = covers && store::key_matches(&current.pair).is_ok_and(|it| it);
    Ok(match (whole && current.key_mode & 0o077 == 0, tls::internal::is_ours(host, &current.pair.chain)) {
        (false, _) => Standing::Broken,
        (true, Ok(true)) => Standing::Ours,
        (true, _) => Standing::Foreign,
    })
}

/// The team's own pair, as it lies there.
pub fn brought(host: &Host, chain: &Path, key: &Path) -> Result<Pair> {
    let read = |path: &Path| {
        let text = host.read_text(path)?;
        text.with_context(|| format!("{} is not there, and the settings name it", path.display()))
    };
    Ok(Pair { chain: read(chain)?, key: read(key)? })
}

pub fn make(host: &Host, source: &Source, name: &str, book: &Book) -> Result<()> {
    let now = OffsetDateTime::now_utc();
    own(host, &Path::new(store::DIR).join(name), book)?;
    match source {
        Source::Internal(domain) | Source::Acme(domain) => {
            for file in [tls::internal::ca_crt(), tls::internal::ca_key()] {
                if !book.receipt().created.contains(&file) {
                    let dirs = missing_dirs(host, &Path::new(store::DIR).join("x"))?;
                    book.note(Entry::Created { dirs, path: file })?;
                }
            }
            let (authority, _) = Authority::keep(host, domain, now)?;
            tls::keep(host, &authority, name, now).map(drop)
        }
        Source::Files(chain, key) => {
            let pair = brought(host, chain, key)?;
            let trust = tls::trust(host, &pair.chain, name, now).unwrap_or(Trust::Private);
            let install = store::install(host, name, &pair, trust, now).map(drop);
            install.with_context(|| format!("taking in {} and {}", chain.display(), key.display()))
        }
    }
}

/// Note a directory of ours, with all in it, before there is anything in it.
pub fn own(host: &Host, dir: &Path, book: &Book) -> Result<()> {
    if !book.receipt().built.contains(dir) {
        book.note(Entry::Built { dirs: missing_dirs(host, dir)?, path: dir.into() })?;
    }
    Ok(())
}

/// The authority stays as long as anything is signed by it, and what concerns the ACME authority as long as that is
/// asked.
pub fn owns(source: &Source, name: &str) -> Vec<PathBuf> {
    let mut all = vec![Path::new(store::DIR).join(name), store::paths(name).0];
    if matches!(source, Source::Internal(_) | Source::Acme(_)) {
        all.extend([tls::internal::ca_crt(), tls::internal::ca_key()]);
    }
    if matches!(source, Source::Acme(_)) {
        all.extend([acme::DIR, acme::WEBROOT].map(PathBuf::from));
    }
    all
}
