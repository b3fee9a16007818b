//! What a machine added to its base, frozen: others boot on top of it at once.
//!
//! A layer lives as long as anyone holds it, machines included. A cached one stays for the next run as well.

use super::{
    LAB, Machine, Options, Release, accounted, hash,
    room::{self, Kind, Room},
};
use anyhow::{Context as _, Result};
use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    sync::Arc,
};

#[derive(Debug, Clone)]
pub struct Layer(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    release: Release,
    below: Option<Layer>,
    tree: PathBuf,
    _held: Held,
}

/// What keeps the tree from being removed.
#[derive(Debug)]
enum Held {
    Room(Room),
    /// Shared among all who use it.
    Lock {
        _file: File,
    },
}

impl Layer {
    /// Take over a tree, by moving it.
    pub(super) fn freeze(release: Release, below: Option<Self>, upper: &Path) -> Result<Self> {
        let room = Room::make(Kind::Layer, &room::fresh()?)?;
        let tree = room.dir().join("tree");
        fs::rename(upper, &tree)?;
        Ok(Self(Arc::new(Inner { release, below, tree, _held: Held::Room(room) })))
    }

    /// The layer that `make` leaves on a fresh machine of this release, made once for each `key` and kept
    /// between runs and processes: put whatever decides its contents into the key, the digest of a binary for
    /// one. An older one of the same name goes when a new one is made.
    pub fn cached(
        release: Release,
        name: &str,
        key: &str,
        make: impl FnOnce(&mut Machine) -> Result<()>,
    ) -> Result<Self> {
        Self::get(release, None, name, key, make)
    }

    /// As `cached`, on a machine that boots from this layer.
    pub fn cached_above(
        self,
        name: &str,
        key: &str,
        make: impl FnOnce(&mut Machine) -> Result<()>,
    ) -> Result<Self> {
        Self::get(self.release(), Some(self), name, key, make)
    }

    fn get(
        release: Release,
        below: Option<Self>,
        name: &str,
        key: &str,
        make: impl FnOnce(&mut Machine) -> Result<()>,
    ) -> Result<Self> {
        let base = release.base()?;
        let dir = Path::new(LAB).join("cached");
        let title = format!("{release}-{name}-");
        let under = below.as_ref().map_or(base.as_path(), |below| &below.0.tree);
        let here = dir.join(format!("{title}{}", hash(&format!("{}\n{key}", under.display()))));
        fs::create_dir_all(&here)?;
        let lock = File::options().create(true).append(true).open(here.join("lock"))?;
        let tree = here.join("tree");
        if !tree.exists() {
            lock.lock()?;
            // Another may have made it while we waited.
            if !tree.exists() {
                prune(&dir, &title, &here)?;
                let options = Options { layer: below.clone(), ..Options::default() };
                let made = || {
                    let mut machine = Machine::with(release, options)?;
                    make(&mut machine)?;
                    machine.give_upper(&tree)
                };
                accounted(&format!("layer {name} of {release}"), made)
                    .with_context(|| format!("making the layer {name} on {release}"))?;
            }
            lock.unlock()?;
        }
        lock.lock_shared()?;
        anyhow::ensure!(tree.exists(), "{} was removed by another version of its tests", here.display());
        Ok(Self(Arc::new(Inner { release, below, tree, _held: Held::Lock { _file: lock } })))
    }

    pub fn release(&self) -> Release {
        self.0.release
    }

    /// The trees from the top down, without the base.
    pub(super) fn trees(&self) -> Vec<&Path> {
        let mut trees = vec![self.0.tree.as_path()];
        let mut at = self;
        while let Some(below) = &at.0.below {
            trees.push(&below.0.tree);
            at = below;
        }
        trees
    }

    pub(super) fn keep(&self) -> Result<()> {
        if let Held::Room(room) = &self.0._held {
            room.keep()?;
        }
        self.0.below.as_ref().map_or(Ok(()), Self::keep)
    }
}

/// Remove the older ones of the same title that nobody uses.
fn prune(dir: &Path, title: &str, but: &Path) -> Result<()> {
    let busy = fs::read_to_string("/proc/self/mounts")?;
    for entry in fs::read_dir(dir)? {
        let old = entry?.path();
        let name = old.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let same = name.strip_prefix(title).is_some_and(|rest| !rest.contains('-'));
        if !same || old == but || busy.contains(&name) {
            continue;
        }
        let Ok(lock) = File::open(old.join("lock")) else { continue };
        if lock.try_lock().is_ok() {
            fs::remove_dir_all(&old).with_context(|| format!("removing {}", old.display()))?;
        }
    }
    Ok(())
}
