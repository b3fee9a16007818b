//! Datasets, and how they get to a machine: sent as a copy, or found there on a clone of this headquarters' data disk.
//! What is here is looked at, and what follows from that is decided once, before a run begins, and frozen in it.

use super::{
    provider::{self, azure::same_region},
    spec::{DataBy, Original, Source},
    tree,
};
use crate::{
    config::Config,
    host::{
        Host, Kind,
        beneath::Beneath,
        mounts::{self, Mount},
    },
    hq::disk,
    ui::{Code, Try as _, lasting},
};
use anyhow::{Context as _, Result, anyhow};
use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

/// What a headquarters on a D4s_v3 with a P10 disk reads in a second, by Microsoft's figures: 96 MB, and 500 requests,
/// of which each small file takes one. Its network could send more than twice as much.
const BYTES: u64 = 96_000_000;
const FILES: u64 = 500;

/// From here on a clone is sooner there: three and a half minutes of copying. A snapshot takes up to two minutes, before
/// the machine can be asked for; a copy goes on while the environment is made, which takes minutes as well; and a clone is
/// slow to read until Azure has moved it over.
const LARGE: u64 = 20_000_000_000;
const LONG: u64 = LARGE / BYTES;

/// The status of a command line that asks for what cannot be.
const USAGE: u8 = 2;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dataset {
    pub name: String,
    pub files: u64,
    pub bytes: u64,
}

impl Dataset {
    /// Of copying.
    fn seconds(&self) -> u64 {
        (self.bytes / BYTES).max(self.files / FILES)
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Way {
    /// They are read where they are.
    Here,
    Copy,
    Clone(Original),
}

/// How the datasets of a run get to its machine, and why so.
#[derive(Debug)]
pub struct Delivery {
    pub sets: Vec<Dataset>,
    pub way: Way,
    why: String,
}

impl Delivery {
    /// For the plan, a line each.
    pub fn lines(&self) -> Vec<String> {
        self.sets.iter().map(|set| line(set, &self.way, &self.why)).collect()
    }

    /// What the run is to have a clone of.
    pub fn original(self) -> Option<Original> {
        match self.way {
            Way::Clone(original) => Some(original),
            Way::Here | Way::Copy => None,
        }
    }
}

/// Look, and decide. An error where what was asked for cannot be.
pub fn deliver(
    host: &Arc<Host>,
    config: &Config,
    source: &Source,
    (names, asked): (&[String], DataBy),
    regions: &[String],
) -> Result<Delivery> {
    let at = config.data.path.to_path();
    let sets: Vec<_> = names.iter().map(|name| measure(host, &at, name)).collect::<Result<_>>()?;
    let seconds = sets.iter().fold(0, |sum: u64, set| sum.saturating_add(set.seconds()));
    let original = match wants_clone(source, asked, seconds) {
        Err(why) => Err(why),
        Ok(()) => original(host, config, names)?.and_then(|original| reaches(original, regions)),
    };
    let no = |why| anyhow!("there can be no clone of {} for this run: {why}", at.display());
    let (way, why) =
        decide(source, asked, original).map_err(no).or_try("--data-by copy, or auto").context(Code(USAGE))?;
    Ok(Delivery { sets, way, why })
}

fn measure(host: &Host, at: &Path, name: &str) -> Result<Dataset> {
    let at = at.join(name);
    let dir = Beneath::open(host, &at)?.with_context(|| format!("there is no {}", at.display()))?;
    let outline = tree::outline(&dir)?;
    Ok(Dataset { name: name.into(), files: outline.files, bytes: outline.bytes })
}

/// Whether it is worth looking for a disk to clone; else, why not. Pure.
fn wants_clone(source: &Source, asked: DataBy, seconds: u64) -> Result<(), String> {
    match (source, asked) {
        (Source::Local, _) => Err("this machine reads them where they are".into()),
        (Source::Ssh { .. }, _) => Err("Azure alone clones disks".into()),
        (Source::Azure, DataBy::Copy) => Err("as asked".into()),
        (Source::Azure, DataBy::Auto) if seconds < LONG => {
            let (gb, files) = (LARGE / 1_000_000_000, grouped(LONG * FILES));
            Err(format!("a clone of the data disk is sooner there from {gb} GB or {files} files on"))
        }
        (Source::Azure, DataBy::Auto | DataBy::Clone) => Ok(()),
    }
}

/// A clone can be had only where its disk is. Pure.
fn reaches(original: Original, regions: &[String]) -> Result<Original, String> {
    // None named: where this machine is, and so its disk.
    if regions.is_empty() || regions.iter().any(|region| same_region(region, &original.region)) {
        return Ok(original);
    }
    Err(format!("it is in {}, and machines are wanted in {}", original.region, regions.join(", ")))
}

/// Pure. An error is what stands in the way of what was asked for.
fn decide(
    source: &Source,
    asked: DataBy,
    original: Result<Original, String>,
) -> Result<(Way, String), String> {
    match (original, source) {
        (Ok(original), _) => {
            let why = format!("a snapshot of {} that is mounted there read only", original.here.display());
            Ok((Way::Clone(original), why))
        }
        (Err(why), Source::Local) => Ok((Way::Here, why)),
        (Err(why), Source::Azure) if asked == DataBy::Clone => Err(why),
        (Err(why), _) => Ok((Way::Copy, why)),
    }
}

/// The disk that datasets are on, if machines can have a clone of it; else, why not.
fn original(host: &Arc<Host>, config: &Config, names: &[String]) -> Result<Result<Original, String>> {
    let here = config.data.path.to_path();
    let real = here.canonicalize().with_context(|| format!("looking at {}", here.display()))?;
    for name in names {
        let at = real.join(name);
        if !matches!(host.meta(&at)?, Some(meta) if meta.kind == Kind::Dir) {
            return Ok(Err(format!("{} leads elsewhere", at.display())));
        }
    }
    let table = host.read_text(Path::new(mounts::TABLE))?.unwrap_or_default();
    let mount = match whole(&table, &real, names) {
        Ok(mount) => mount,
        Err(why) => return Ok(Err(why)),
    };
    let device = host.meta(&Path::new("/sys/dev/block").join(&mount.number))?;
    let kernel = match device.map(|device| device.kind) {
        Some(Kind::Link(to)) => to.file_name().unwrap_or_default().to_string_lossy().into_owned(),
        _ => return Ok(Err(format!("there is no device {}", mount.number))),
    };
    let Some(lun) = disk::lun(host, &kernel)? else {
        return Ok(Err(format!("{} is on /dev/{kernel}, which is no data disk of Azure's", real.display())));
    };
    let Some(uuid) = disk::uuid(host, &kernel)?.filter(|uuid| is_uuid(uuid)) else {
        return Ok(Err(format!("the UUID of the file system on /dev/{kernel} cannot be read")));
    };
    let below = below(&mount, &real);
    Ok(provider::managed(host, config, lun)?.map(|managed| Original {
        disk: managed.id,
        region: managed.region,
        uuid,
        here,
        below,
    }))
}

/// The mount that all of these are on, and nothing else is in the way of. Pure.
fn whole(table: &str, real: &Path, names: &[String]) -> Result<Mount, String> {
    let mount = mounts::holding(table, real).ok_or_else(|| format!("{} is on no disk", real.display()))?;
    // Other kinds want other words of whoever mounts them a second time.
    if mount.kind != "ext4" {
        return Err(format!("{} is on {}, and ext4 alone is cloned", real.display(), mount.kind));
    }
    let sets: Vec<PathBuf> = names.iter().map(|name| real.join(name)).collect();
    match mounts::all(table).iter().find(|other| sets.iter().any(|set| other.at.starts_with(set))) {
        Some(other) => Err(format!("{} is mounted there, from elsewhere", other.at.display())),
        None => Ok(mount),
    }
}

/// Where datasets are below the root of their file system. Pure.
fn below(mount: &Mount, real: &Path) -> PathBuf {
    let within = real.strip_prefix(&mount.at).unwrap_or(real);
    mount.root.strip_prefix("/").unwrap_or(&mount.root).join(within)
}

/// It becomes part of a unit's text.
fn is_uuid(text: &str) -> bool {
    text.len() == 36 && text.bytes().all(|byte| byte.is_ascii_hexdigit() || byte == b'-')
}

fn line(set: &Dataset, way: &Way, why: &str) -> String {
    let (name, gb, files) = (&set.name, set.bytes as f64 / 1e9, grouped(set.files));
    let copying =
        format!("copied, about {} at 96 MB/s or {FILES} files a second", lasting(set.seconds().max(1)));
    let way = match way {
        Way::Here => format!("not sent: {why}"),
        Way::Copy => format!("{copying}: {why}"),
        Way::Clone(Original { region, .. }) => {
            format!("cloned in {region}: {why}; elsewhere {copying}")
        }
    };
    format!("data: {name}, {gb:.1} GB, {files} files: {way}")
}

/// As people write large numbers.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests;
