//! Who this headquarters is, on everything that it rents: made before the first thing is rented, and never again. Where
//! there is none, nothing was ever rented in its name.

use crate::{host::Host, patience::Patience};
use anyhow::{Context as _, Result, ensure};
use std::path::Path;

const PATH: &str = "/var/lib/echoes-appliance/identity";
const LOCK: &str = "/run/echoes-appliance/identity.lock";

/// None: nothing was rented yet.
pub fn known(host: &Host) -> Result<Option<String>> {
    let Some(text) = host.read_text(Path::new(PATH))? else { return Ok(None) };
    let name = text.trim();
    // It stands in requests and in names.
    let fits =
        name.len() <= 64 && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
    ensure!(fits && !name.is_empty(), "{PATH} holds no identity of a headquarters");
    Ok(Some(name.to_owned()))
}

/// Ours, on disk when this returns.
pub fn own(host: &Host) -> Result<String> {
    if let Some(name) = known(host)? {
        return Ok(name);
    }
    let _alone = host.ledger_within(Path::new(LOCK), Patience::seconds(10))?;
    // Somebody may have been faster.
    if let Some(name) = known(host)? {
        return Ok(name);
    }
    let mut random = [0; 8];
    getrandom::fill(&mut random).context("making an identity")?;
    let name = format!("hq-{:016x}", u64::from_be_bytes(random));
    host.write(Path::new(PATH), 0o600, format!("{name}\n").as_bytes())?;
    Ok(name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::System;

    #[test]
    fn an_identity_is_made_once_and_stays() {
        let dir = tempfile::tempdir().unwrap();
        let host = Host::new(dir.path(), System);
        assert_eq!(known(&host).unwrap(), None);
        let names: Vec<String> = std::thread::scope(|scope| {
            let all: Vec<_> = (0..8).map(|_| scope.spawn(|| own(&host).unwrap())).collect();
            all.into_iter().map(|one| one.join().unwrap()).collect()
        });
        assert!(names.iter().all(|name| *name == names[0] && name.starts_with("hq-")), "{names:?}");
        assert_eq!(known(&host).unwrap().as_ref(), Some(&names[0]));
        let other = tempfile::tempdir().unwrap();
        assert_ne!(own(&Host::new(other.path(), System)).unwrap(), names[0]);
        host.write(Path::new(PATH), 0o600, b"' or 1 eq 1\n").unwrap();
        assert!(own(&host).is_err(), "and not made anew, which would forget what is rented");
    }
}
