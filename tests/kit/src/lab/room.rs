//! A directory that lives as long as somebody holds it. Machines, disks and snapshots each have one.
//!
//! The holder has a lock on a file in it; the kernel gives the lock up when the holder dies, however it dies.
//! A room whose lock is free and that nobody asked to keep is rubbish, and the next to make one clears it.

use super::{LAB, disk, machine};
use anyhow::{Context as _, Result, bail};
use std::{
    fs::{self, File},
    path::{Path, PathBuf},
};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Machine,
    Disk,
    Layer,
}

impl Kind {
    /// Machines first: they use the others.
    const ALL: [Self; 3] = [Self::Machine, Self::Disk, Self::Layer];

    pub(super) fn dir(self) -> PathBuf {
        Path::new(LAB).join(match self {
            Self::Machine => "machines",
            Self::Disk => "disks",
            Self::Layer => "layers",
        })
    }

    /// Undo everything outside the directory, then remove it. Works on what a crash left at any point.
    pub(super) fn clear(self, dir: &Path) -> Result<()> {
        match self {
            Self::Machine => machine::clear(dir)?,
            Self::Disk => disk::clear(dir)?,
            Self::Layer => {}
        }
        fs::remove_dir_all(dir).with_context(|| format!("removing {}", dir.display()))
    }
}

#[derive(Debug)]
pub(super) struct Room {
    kind: Kind,
    dir: PathBuf,
    lock: File,
}

impl Room {
    /// A new room, after clearing what dead owners left. `name` must be free.
    pub(super) fn make(kind: Kind, name: &str) -> Result<Self> {
        let _quiet = gate()?;
        sweep()?;
        Self::make_within(kind, name)
    }

    /// As `make`, for a caller who holds the gate and has swept.
    pub(super) fn make_within(kind: Kind, name: &str) -> Result<Self> {
        let dir = kind.dir().join(name);
        if dir.exists() {
            bail!("{} is in use: choose another name, or end it", dir.display());
        }
        fs::create_dir_all(&dir).with_context(|| format!("making {}", dir.display()))?;
        let lock = File::create_new(dir.join("lock"))?;
        lock.try_lock().context("locking a new room")?;
        Ok(Self { kind, dir, lock })
    }

    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    /// From now on the room outlives us, until somebody clears it by name.
    pub(super) fn keep(&self) -> Result<()> {
        Ok(fs::write(self.dir.join("kept"), "")?)
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        if !self.dir.join("kept").exists() {
            // Under the gate, or a sweep could find the room half gone.
            let cleared = gate().and_then(|_quiet| self.kind.clear(&self.dir));
            if let Err(e) = cleared {
                eprintln!("lab: clearing {}: {e:#}", self.dir.display());
            }
        }
        // Closing is not enough: a child between fork and exec still holds a copy of the lock.
        let _ = self.lock.unlock();
    }
}

/// One at a time through here, among all processes: making, sweeping and clearing. Held until dropped.
pub(super) fn gate() -> Result<Gate> {
    fs::create_dir_all(LAB).with_context(|| format!("making {LAB}"))?;
    let file = File::options().create(true).append(true).open(Path::new(LAB).join("gate"))?;
    file.lock()?;
    Ok(Gate(file))
}

pub(super) struct Gate(File);

impl Drop for Gate {
    fn drop(&mut self) {
        let _ = self.0.unlock();
    }
}

/// Clear every room whose owner is dead. The caller holds the gate.
pub(super) fn sweep() -> Result<()> {
    for kind in Kind::ALL {
        for dir in rooms(kind)? {
            // A room without a lock was cut short in the making: only we can be making one now.
            let free = File::open(dir.join("lock")).map_or(true, |lock| lock.try_lock().is_ok());
            if free && !dir.join("kept").exists() {
                kind.clear(&dir)?;
            }
        }
    }
    Ok(())
}

pub(super) fn rooms(kind: Kind) -> Result<Vec<PathBuf>> {
    let Ok(entries) = fs::read_dir(kind.dir()) else { return Ok(Vec::new()) };
    let mut dirs = entries.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
    dirs.sort();
    Ok(dirs)
}

/// A name nobody has: for rooms that need none.
pub(super) fn fresh() -> Result<String> {
    let id = fs::read_to_string("/proc/sys/kernel/random/uuid").context("asking the kernel for a name")?;
    Ok(id.chars().filter(char::is_ascii_hexdigit).take(12).collect())
}
