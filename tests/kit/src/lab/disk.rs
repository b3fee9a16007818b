//! A data disk: a sparse file behind a loop device. It can be moved from one machine to another, as a managed
//! disk can, and is gone when dropped.

use super::{
    output,
    room::{self, Kind, Room},
    run,
};
use anyhow::{Context as _, Result};
use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::Command,
};

#[derive(Debug)]
pub struct Disk {
    room: Room,
    device: PathBuf,
}

impl Disk {
    /// All zeros, and taking no room until written to.
    pub fn blank(megabytes: u64) -> Result<Self> {
        let room = Room::make(Kind::Disk, &room::fresh()?)?;
        let image = room.dir().join("image");
        let made = File::create_new(&image).and_then(|file| file.set_len(megabytes << 20));
        made.with_context(|| format!("making {}", image.display()))?;
        // With --partscan a partition table made by the test shows as /dev/loopNp1 and so on.
        let device = output(Command::new("losetup").args(["--find", "--show", "--partscan"]).arg(&image))?;
        Ok(Self { room, device: PathBuf::from(device.trim()) })
    }

    /// The block device, the same on the host and in a machine: for mkfs, sfdisk, pvcreate before a boot,
    /// and for comparing every byte after.
    pub fn device(&self) -> &Path {
        &self.device
    }

    /// The digest of every byte on it, to prove that nobody wrote.
    pub fn sha256(&self) -> Result<String> {
        output(Command::new("blockdev").arg("--flushbufs").arg(&self.device))?;
        let said = output(Command::new("sha256sum").arg(&self.device))?;
        Ok(said.split(' ').next().unwrap_or_default().to_owned())
    }

    /// The device and its partitions, as they are now.
    pub(super) fn nodes(&self) -> Result<Vec<PathBuf>> {
        let name = self.device.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let part = format!("{name}p");
        let names = fs::read_dir("/dev")?.filter_map(|e| e.ok()?.file_name().into_string().ok());
        let mut nodes: Vec<_> = names.filter(|n| *n == name || n.starts_with(&part)).collect();
        nodes.sort();
        Ok(nodes.into_iter().map(|n| Path::new("/dev").join(n)).collect())
    }

    pub(super) fn dir(&self) -> &Path {
        self.room.dir()
    }

    pub(super) fn keep(&self) -> Result<()> {
        self.room.keep()
    }
}

/// Give back the loop device of the image in this room, if it has one.
pub(super) fn clear(dir: &Path) -> Result<()> {
    let image = dir.join("image");
    if !image.exists() {
        return Ok(());
    }
    let devices = output(Command::new("losetup").args(["-n", "-O", "NAME", "-j"]).arg(&image))?;
    for device in devices.lines() {
        run("losetup", ["--detach", device.trim()])?;
    }
    Ok(())
}
