//! The people who may log in, kept in nginx's password file. Passwords come from a prompt, from standard input or
//! from the kernel's randomness, never from an argument.

use super::{
    htpasswd::{Added, Htpasswd, Password, User},
    receipt::{Book, Entry},
    resource::{Seen, missing_dirs},
};
use crate::host::Host;
use anyhow::{Context as _, Result};
use std::path::Path;

/// Where the first password waits to be shown once. On a tmpfs: gone with the next boot, whoever was killed.
pub const FIRST_PASSWORD: &str = "/run/echoes-appliance/first-password";

pub fn read(host: &Host, path: &Path) -> Result<Htpasswd> {
    Ok(Htpasswd::parse(&host.read(path)?.unwrap_or_default()))
}

/// nginx's workers and our password check are in www-data; nobody else may read it.
pub fn write(host: &Host, path: &Path, file: &Htpasswd) -> Result<()> {
    let owner = match host.gid("www-data")? {
        Some(gid) if host.is_live() => Some((0, gid)),
        _ => None,
    };
    host.write_owned(path, 0o640, owner, &file.format())
}

pub fn look(host: &Host, path: &Path) -> Result<Seen> {
    if read(host, path)?.admits_somebody() {
        Ok(Seen::Right)
    } else {
        Ok(Seen::Wrong("nobody could log in".into()))
    }
}

/// Make the first user with a password of our own, and leave it where `show_first` finds it. The password is left
/// before its hash is written: killed in between, the next run makes another.
pub fn make_first(host: &Host, path: &Path, user: &str, book: &Book) -> Result<()> {
    let mut file = read(host, path)?;
    let password = Password::generate()?;
    let user: User = user.parse().context("reading auth.user")?;
    user.ensure_person().context("reading auth.user")?;
    let _: Added = file.add(&user, &password)?;
    book.note(Entry::Created { path: path.into(), dirs: missing_dirs(host, path)? })?;
    host.write(Path::new(FIRST_PASSWORD), 0o600, format!("{user}\n{}\n", password.reveal()).as_bytes())?;
    write(host, path, &file)
}

/// The first user and password, once.
pub fn show_first(host: &Host) -> Result<Option<(String, String)>> {
    let Some(text) = host.read_text(Path::new(FIRST_PASSWORD))? else { return Ok(None) };
    host.remove(Path::new(FIRST_PASSWORD))?;
    Ok(text.split_once('\n').map(|(user, password)| (user.into(), password.trim().into())))
}
