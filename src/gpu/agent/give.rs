//! What the script made, given to whoever asks: a list, then each file as it was listed or not at all.

use super::{
    book,
    site::{Book, Offered, Order, Root, Site, read},
};
use crate::{
    gpu::wire::Wire,
    hash::hex,
    host::{
        Host, Kind,
        beneath::{Beneath, Found, Rel, Stamp},
    },
};
use anyhow::{Context as _, Result};
use sha2::{Digest as _, Sha256};
use std::{
    io::{Read as _, Seek as _, SeekFrom, Write as _},
    time::{SystemTime, UNIX_EPOCH},
};

/// More would not be taken.
const MOST: usize = 100_000;

fn dir(host: &Host, site: &Site, root: Root) -> Result<Option<Beneath>> {
    let path = match root {
        Root::Out => site.out(),
        Root::Code => site.code(),
    };
    Beneath::open(host, &path)
}

pub fn list(host: &Host, site: &Site) -> Result<Vec<Offered>> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_millis();
    let now = i64::try_from(now)?;
    let out = read::<Order>(host, &site.order())?.map(|order| order.out).unwrap_or_default();
    let mut all = Vec::new();
    for root in [Root::Out, Root::Code] {
        if root == Root::Code && out.is_empty() {
            continue;
        }
        let Some(dir) = dir(host, site, root)? else { continue };
        for Found { path, kind, stamp, .. } in dir.walk_some(MOST)? {
            let wanted =
                root == Root::Out || path.as_ref().is_ok_and(|path| out.iter().any(|out| is_in(path, out)));
            if !wanted {
                continue;
            }
            let age = u64::try_from(now - stamp.nanos / 1_000_000).unwrap_or(0);
            let not = match (&path, kind) {
                (Err(why), _) => Some(why.clone()),
                (Ok(_), Kind::File) => None,
                (Ok(_), Kind::Link(to)) => Some(format!("it is a link to {}", to.display())),
                (Ok(_), _) => Some("it is no file".into()),
            };
            all.push(Offered { root, path: path.map(String::from).unwrap_or_default(), stamp, age, not });
        }
    }
    Ok(all)
}

fn is_in(path: &Rel, dir: &Rel) -> bool {
    path.as_str().strip_prefix(dir.as_str()).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// A piece of a file, that begins there and is so long.
pub fn take(
    host: &Host,
    site: &Site,
    wire: &mut Wire,
    root: Root,
    path: &Rel,
    (stamp, from, len): (Stamp, u64, u64),
) -> Result<()> {
    let file = match dir(host, site, root)? {
        Some(dir) => dir.read(path)?,
        None => None,
    };
    let Some((mut file, _)) = file.filter(|(_, now)| *now == stamp) else { return wire.tell(&false) };
    file.seek(SeekFrom::Start(from)).with_context(|| format!("reading {path}"))?;
    wire.tell(&true)?;
    let mut sending = wire.sending();
    let (mut hash, mut left) = (Sha256::new(), len);
    let mut bytes = vec![0; 128 << 10];
    let mut piece = file.take(len);
    while left > 0 {
        let n = match piece.read(&mut bytes).with_context(|| format!("reading {path}"))? {
            // Shorter than it was. What was announced is sent all the same, so that both sides stay in step.
            0 => {
                let fill = usize::try_from(left).unwrap_or(usize::MAX).min(bytes.len());
                bytes[..fill].fill(0);
                fill
            }
            n => n,
        };
        hash.update(&bytes[..n]);
        sending.write_all(&bytes[..n])?;
        left -= n as u64;
    }
    sending.end()?;
    let same = Beneath::stamp(piece.get_ref())? == stamp;
    wire.tell(&same.then(|| hex(&hash.finalize())))
}

pub fn page(host: &Host, site: &Site, wire: &mut Wire, of: Book, from: u64) -> Result<()> {
    let dir = match of {
        Book::Log => site.log(),
        Book::Samples => site.samples(),
    };
    let (page, bytes) = book::page(host, &dir, from)?;
    wire.tell(&page)?;
    let mut sending = wire.sending();
    sending.write_all(&bytes)?;
    sending.end()
}
