//! What the script made, given to whoever asks: a list, then each file as it was listed or not at all. The trouble of a file
//! is that file's alone: what cannot be read is listed with its reason, and the others come.

use super::{
    book,
    site::{Book, Ended, Given, Made, Offered, Order, Root, Site, read},
};
use crate::{
    gpu::wire::Wire,
    hash::hex,
    host::{
        Host, Kind,
        beneath::{Beneath, Found, OpenFile, Rel, Spelling, Stamp, stays_inside},
        without_dots,
    },
};
use anyhow::{Context as _, Result};
use sha2::{Digest as _, Sha256};
use std::{
    io::{Read as _, Seek as _, SeekFrom, Write as _},
    ops::ControlFlow,
    os::unix::ffi::OsStrExt as _,
    path::{Path, PathBuf},
    time::{SystemTime, UNIX_EPOCH},
};

/// A database of sparse pages has thousands of pieces; of one that has more, the rest comes with its holes.
const EXTENTS: usize = 20_000;

fn path_of(site: &Site, root: Root) -> PathBuf {
    match root {
        Root::Out => site.out(),
        Root::Code => site.code(),
    }
}

/// Everything, one after another.
pub fn list(host: &Host, site: &Site, wire: &mut Wire) -> Result<()> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_millis();
    let now = i64::try_from(now)?;
    let wanted = read::<Order>(host, &site.order())?.map(|order| order.out).unwrap_or_default();
    wire.pour_each(|next| {
        for root in [Root::Out, Root::Code] {
            if root == Root::Out || !wanted.is_empty() {
                list_root(host, site, root, (&wanted, now), next)?;
            }
        }
        Ok(())
    })
}

fn list_root(
    host: &Host,
    site: &Site,
    root: Root,
    (wanted, now): (&[Rel], i64),
    next: &mut dyn FnMut(&Offered) -> Result<()>,
) -> Result<()> {
    let path = path_of(site, root);
    let dir = match Beneath::open(host, &path) {
        Ok(None) => return Ok(()),
        Ok(Some(dir)) => dir,
        // Somebody shut it; there may be anything in it.
        Err(error) => return next(&unreadable_root(root, &error)),
    };
    let mut told = Ok(());
    let walked = dir.walk_each(&mut |found| {
        let is_wanted = match &found.path {
            Ok(path) => root == Root::Out || wanted.iter().any(|out| is_in(path, out)),
            Err(unusable) => root == Root::Out || wanted.iter().any(|out| may_be_in(&unusable.name, out)),
        };
        if is_wanted {
            told = next(&offered(host, &dir, root, found, now));
        }
        if told.is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    });
    told?;
    walked.or_else(|error| next(&unreadable_root(root, &error)))
}

fn unreadable_root(root: Root, error: &anyhow::Error) -> Offered {
    let what = Made::Unreadable { why: reason(error), bytes: 0 };
    Offered { root, path: Spelling::Text(".".into()), what }
}

/// Without the path before it: that stands beside it.
fn reason(error: &anyhow::Error) -> String {
    error.root_cause().to_string()
}

fn is_in(path: &Rel, dir: &Rel) -> bool {
    path == dir || path.below(dir.as_bytes()).is_some()
}

fn may_be_in(name: &Spelling, dir: &Rel) -> bool {
    let name = name.clone().bytes().unwrap_or_default();
    name == dir.as_bytes() || name.strip_prefix(dir.as_bytes()).is_some_and(|rest| rest.starts_with(b"/"))
}

fn offered(host: &Host, dir: &Beneath, root: Root, found: Found, now: i64) -> Offered {
    let Found { path, kind, stamp, allocated, shared, .. } = found;
    let path = match path {
        Ok(path) => path,
        Err(unusable) => {
            let bytes = if kind == Kind::File { stamp.len } else { 0 };
            return Offered {
                root,
                path: unusable.name,
                what: Made::Unreadable { why: unusable.why, bytes },
            };
        }
    };
    let what = match kind {
        Kind::File => {
            let age = u64::try_from(now - stamp.nanos / 1_000_000).unwrap_or(0);
            // Whether it can be read is asked of each that may: what is left is told while the script runs.
            let holes = allocated < stamp.len;
            match holes.then(|| extents(dir, &path, stamp)).transpose() {
                Ok(extents) => Made::File { stamp, age, shared, extents: extents.flatten() },
                Err(error) => Made::Unreadable { why: reason(&error), bytes: allocated },
            }
        }
        Kind::Link(to) => link(host, dir, &path, &to),
        Kind::Dir => Made::Dir,
        Kind::Other => Made::Special { what: "a socket, a named pipe or a device".into() },
    };
    Offered { root, path: path.into(), what }
}

fn extents(dir: &Beneath, path: &Rel, stamp: Stamp) -> Result<Option<Vec<(u64, u64)>>> {
    let Some((file, now)) = dir.read(path)? else { return Ok(None) };
    if now != stamp { Ok(None) } else { Beneath::extents(&file, stamp.len, EXTENTS).map(Some) }
}

/// A link that stays in its directory, however it is written: by the whole path, as people write it, or by a way round.
fn link(host: &Host, dir: &Beneath, path: &Rel, to: &Path) -> Made {
    let depth = path.dirs().count();
    let from_root = |below: &Path| -> Vec<u8> {
        let mut to: Vec<u8> = b"../".repeat(depth);
        to.extend(below.as_os_str().as_bytes());
        if to.is_empty() { b".".to_vec() } else { to }
    };
    let inside = |to: &[u8]| stays_inside(path, to).is_ok().then(|| Made::Link { to: Spelling::of(to) });
    if let Some(link) = inside(to.as_os_str().as_bytes()) {
        return link;
    }
    let whole = dir.path().join(path.as_path().parent().unwrap_or(Path::new(""))).join(to);
    // As it is written; of one that leads to nothing yet, that is all there is.
    let written = without_dots(&whole);
    let real = || Some((host.real_path(&whole).ok()?, host.real_path(dir.path()).ok()?));
    let below = written.strip_prefix(dir.path()).map(from_root).ok();
    let below = below.or_else(|| real().and_then(|(to, root)| to.strip_prefix(root).map(from_root).ok()));
    below.as_deref().and_then(inside).unwrap_or_else(|| {
        let to = Spelling::of(to.as_os_str().as_bytes());
        Made::Special { what: format!("a link to {to}, which is not this run's") }
    })
}

/// A piece of a file, that begins there and is so long.
pub fn take(
    host: &Host,
    site: &Site,
    wire: &mut Wire,
    (root, path): (Root, &Rel),
    (stamp, from, len): (Stamp, u64, u64),
) -> Result<()> {
    let opened = Beneath::open(host, &path_of(site, root))
        .and_then(|dir| dir.map(|dir| dir.read(path)).transpose())
        .map(|file| file.flatten().filter(|(_, now)| *now == stamp))
        .and_then(|file| {
            let Some((mut file, _)) = file else { return Ok(None) };
            file.seek(SeekFrom::Start(from))?;
            Ok(Some(file))
        });
    match opened {
        Ok(Some(file)) => {
            wire.queue(&Given::Here)?;
            let ended = pour_piece(wire, file, stamp, len)?;
            wire.queue(&ended)?;
        }
        Ok(None) => drop(wire.queue(&Given::Changed)?),
        Err(error) => drop(wire.queue(&Given::Unreadable(reason(&error)))?),
    }
    Ok(())
}

/// As many bytes as were announced, whatever becomes of the file: so both sides stay in step.
fn pour_piece(wire: &mut Wire, file: OpenFile, stamp: Stamp, len: u64) -> Result<Ended> {
    let mut sending = wire.sending();
    let (mut hash, mut left, mut trouble) = (Sha256::new(), len, None);
    let mut bytes = vec![0; usize::try_from(len).unwrap_or(usize::MAX).min(128 << 10)];
    let mut piece = file.take(len);
    while left > 0 {
        let n = if trouble.is_some() { Ok(0) } else { piece.read(&mut bytes) };
        let n = match n {
            // Shorter than it was.
            Ok(0) => {
                let fill = usize::try_from(left).unwrap_or(usize::MAX).min(bytes.len());
                bytes[..fill].fill(0);
                fill
            }
            Ok(n) => n,
            Err(error) => {
                trouble = Some(error.to_string());
                continue;
            }
        };
        hash.update(&bytes[..n]);
        sending.write_all(&bytes[..n])?;
        left -= n as u64;
    }
    sending.queue_end()?;
    Ok(match trouble {
        Some(why) => Ended::Unreadable(why),
        None if Beneath::stamp(piece.get_ref())? == stamp => Ended::Whole(hex(&hash.finalize())),
        None => Ended::Changed,
    })
}

pub fn page(host: &Host, site: &Site, wire: &mut Wire, of: Book, from: u64) -> Result<()> {
    let dir = match of {
        Book::Log => site.log(),
        Book::Samples => site.samples(),
    };
    let (page, bytes) = book::page(host, &dir, from)?;
    wire.queue(&page)?;
    let mut sending = wire.sending();
    sending.write_all(&bytes).context("sending what the script has said")?;
    sending.end()
}
