//! A tree arrives: what is there already stays, what is lacking comes in one stream, what should not be there goes.
//! Killed anywhere, the next try finds what has come so far by its hash. The mark, which vouches for the whole, is
//! removed before anything is touched and written last, so that an unchanged tree is one question and one answer.

use crate::{
    gpu::{
        tree::{self, Entry, Have, Sent, Squeeze, Tree, What},
        wire::{LIST, Wire},
    },
    hash::hex,
    host::{
        Host, Kind,
        beneath::{Beneath, Found, OnDisk, Rel, Spelling, stays_inside},
    },
};
use anyhow::{Context as _, Result, anyhow, bail, ensure};
use flate2::read::DeflateDecoder;
use sha2::{Digest as _, Sha256};
use std::{
    collections::{HashMap, HashSet},
    io::{Read, Write},
    os::unix::ffi::OsStrExt as _,
    path::Path,
};

/// Make `dir` the tree of this hash, by what the other side sends; `mark` is a file beside it. On disk later: whoever
/// uses it looks whether it is what the mark says.
pub fn receive(
    host: &Host,
    wire: &mut Wire,
    (dir, mark): (&Path, &Path),
    hash: &str,
    squeeze: Squeeze,
    on_disk: OnDisk,
) -> Result<()> {
    if is_marked(host, mark, hash)? {
        return wire.tell(&Have::Same);
    }
    host.remove(mark)?;
    let into = Beneath::make(host, dir)?;
    let there = into.walk(usize::MAX)?;
    wire.tell(if there.is_empty() { &Have::Nothing } else { &Have::Other })?;
    let tree: Tree = wire.draw(LIST)?;
    ensure!(tree.hash() == hash, "the list is another than the one that was announced");
    for entry in &tree.0 {
        if let What::Link { to } = &entry.what {
            let to = to.clone().bytes().map_err(|why| anyhow!(why));
            to.and_then(|to| stays_inside(&entry.path, &to))
                .with_context(|| format!("the link {}", entry.path))?;
        }
    }
    let kept: HashSet<&Rel> = tree.0.iter().map(|entry| &entry.path).collect();
    let removed = into.prune(&kept)?;
    let lacks = lacking(&into, &there, &tree)?;
    if !there.is_empty() {
        wire.pour(&lacks)?;
    }
    let receiving = &mut wire.receiving();
    let bytes = match squeeze {
        Squeeze::No => contents(&into, &tree, &lacks, receiving)?,
        Squeeze::Yes => contents(&into, &tree, &lacks, &mut DeflateDecoder::new(&mut *receiving))?,
    };
    // The end of what was squeezed may still be on its way, but no more of it.
    std::io::copy(&mut receiving.take(1 << 10), &mut std::io::sink())?;
    for entry in &tree.0 {
        if let What::Link { to } = &entry.what {
            into.link(&entry.path, &to.clone().bytes().map_err(|why| anyhow!(why))?)?;
        }
    }
    if on_disk == OnDisk::Now {
        into.sync()?;
    }
    set_mark(host, mark, hash)?;
    wire.tell(&Sent { files: lacks.len(), bytes, removed })
}

fn is_marked(host: &Host, mark: &Path, hash: &str) -> Result<bool> {
    Ok(host.read_text(mark)?.is_some_and(|text| text.trim() == hash))
}

fn set_mark(host: &Host, mark: &Path, hash: &str) -> Result<()> {
    host.write(mark, 0o644, format!("{hash}\n").as_bytes())
}

/// Make `dir` the same as `from`, which must be the tree of this hash: it is read for that anyhow.
pub fn copy(host: &Host, from: &Path, (dir, mark): (&Path, &Path), hash: &str) -> Result<()> {
    if is_marked(host, mark, hash)? {
        return Ok(());
    }
    host.remove(mark)?;
    let (from, into) = (Beneath::make(host, from)?, Beneath::make(host, dir)?);
    let there = from.walk(usize::MAX)?;
    into.prune(&there.iter().filter_map(|found| found.path.as_ref().ok()).collect())?;
    let mut tree = Tree::default();
    for Found { path, kind, mode, .. } in there {
        let path = path.map_err(|unusable| anyhow!("{unusable}"))?;
        let doing = || format!("copying {path}");
        let what = match kind {
            Kind::File => {
                let (mut file, _) = from.read(&path)?.with_context(|| format!("{path} went away"))?;
                let mut part = into.write(&path)?;
                let (hash, len) = tree::digest(&mut Tee(&mut file, &mut part)).with_context(doing)?;
                let what = What::file(len, mode, hash);
                part.keep(what.mode(), OnDisk::Later)?;
                what
            }
            Kind::Link(to) => {
                let to = to.as_os_str().as_bytes();
                into.link(&path, to)?;
                What::Link { to: Spelling::of(to) }
            }
            Kind::Dir => continue,
            Kind::Other => bail!("{path} is neither file nor link"),
        };
        tree.0.push(Entry { path, what });
    }
    tree.0.sort_by(|a, b| a.path.cmp(&b.path));
    ensure!(tree.hash() == hash, "{} was changed by somebody; it is mended", from.path().display());
    into.sync()?;
    set_mark(host, mark, hash)
}

/// What is read of the one is written to the other.
struct Tee<'a, R, W>(&'a mut R, &'a mut W);

impl<R: Read, W: Write> Read for Tee<'_, R, W> {
    fn read(&mut self, bytes: &mut [u8]) -> std::io::Result<usize> {
        let n = self.0.read(bytes)?;
        self.1.write_all(&bytes[..n])?;
        Ok(n)
    }
}

/// The files, by their place in the list, that are not there as they should be.
fn lacking(into: &Beneath, there: &[Found], tree: &Tree) -> Result<Vec<usize>> {
    let there: HashMap<&Rel, &Found> =
        there.iter().filter_map(|found| Some((found.path.as_ref().ok()?, found))).collect();
    let mut lacks = Vec::new();
    for (index, entry) in tree.0.iter().enumerate() {
        let What::File { len, hash, .. } = &entry.what else { continue };
        let same = match there.get(&entry.path) {
            Some(found) if found.kind == Kind::File && found.stamp.len == *len => {
                into.read(&entry.path)?.map(|(mut file, _)| tree::digest(&mut file)).transpose()?
            }
            _ => None,
        };
        if same.is_none_or(|(seen, _)| seen != *hash) {
            lacks.push(index);
        } else if there.get(&entry.path).is_some_and(|found| found.mode != entry.what.mode()) {
            into.set_mode(&entry.path, entry.what.mode())?;
        }
    }
    Ok(lacks)
}

fn contents(into: &Beneath, tree: &Tree, lacks: &[usize], from: &mut impl Read) -> Result<u64> {
    let mut bytes = vec![0; 128 << 10];
    let mut all = 0;
    for index in lacks {
        let entry = &tree.0[*index];
        let What::File { len, hash, .. } = &entry.what else { continue };
        let doing = || format!("receiving {}", entry.path);
        let mut part = into.write(&entry.path)?;
        let (mut left, mut seen) = (*len, Sha256::new());
        while left > 0 {
            let most = usize::try_from(left).unwrap_or(usize::MAX).min(bytes.len());
            let n = from.read(&mut bytes[..most]).with_context(doing)?;
            ensure!(n > 0, "{} broke off {left} bytes before its end", entry.path);
            seen.update(&bytes[..n]);
            part.write_all(&bytes[..n]).with_context(doing)?;
            left -= n as u64;
        }
        ensure!(hex(&seen.finalize()) == *hash, "{} came as something else", entry.path);
        part.keep(entry.what.mode(), OnDisk::Later)?;
        all += len;
    }
    Ok(all)
}
