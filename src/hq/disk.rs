//! The data disk: which one it is, and making a file system on it. It refuses to guess: a disk is formatted
//! only on proof that nothing is on it, and one that holds anything else is named and left alone, never a
//! byte written.
//!
//! `look` gathers facts and `decide` is a pure function of them; `format` alone writes, and looks again first.
//!
//! What makes a disk ours is its label and a marker file in its root. `mkfs -d` puts the marker there, so there
//! is no moment between the file system and its marker, and `debugfs` reads it without mounting: mounting
//! another machine's ext4 replays its journal, even read-only, and that is writing.
//!
//! A format that was cut short is finished, on three proofs together. The caller has noted the UUID before
//! anything is written. A *stake* with that UUID stands in the disk's last MiB, which stays outside the file
//! system, and it was written when the disk was proven blank. And mkfs writes its first superblock last: until
//! it is there no signature is, and a superblock there without its marker (a power cut may keep the one and
//! lose the other) has never been mounted, so holds nothing.

use crate::host::{Cmd, Host, Kind, mounts::unescape, without_dots};
use anyhow::{Context as _, Result, bail};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::{
    fmt,
    path::{Path, PathBuf},
    str::FromStr,
    time::{Duration, Instant},
};

/// The label of our file system; ext4 has room for sixteen bytes.
pub const LABEL: &str = "echoes_data";
/// The file in its root that says whose it is.
pub const MARKER: &str = ".echoes-appliance";
/// How the file begins, in every version; what follows may be put better.
const MARKED: &str = "This file system holds the data of an echoes-appliance";
const STAKE: &str = "echoes-appliance is making a file system here: ";
/// Less than this is a mistake, or a disk that carries somebody's settings.
const SMALLEST: u64 = 256 << 20;
const MIB: u64 = 1 << 20;

/// `[data] disk`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Choice {
    /// The one that is ours, or else the one that is blank.
    Auto,
    /// No data disk: the data live on the system's own.
    None,
    /// This one: a device or a link to it.
    Device(String),
}

impl FromStr for Choice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        // What is allowed in a device name ends up in a command shown to people and in the journal.
        let plain = |c: char| c.is_ascii_alphanumeric() || "/-_.:+@".contains(c);
        match text {
            "auto" => Ok(Self::Auto),
            "none" => Ok(Self::None),
            dev if dev.starts_with("/dev/") && dev.chars().all(plain) && !dev.contains("..") => {
                Ok(Self::Device(dev.into()))
            }
            _ => Err(format!("{text:?} is not auto, none or a device such as /dev/disk/azure/scsi1/lun0")),
        }
    }
}

/// A whole disk, as it was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disk {
    pub path: String,
    /// lsblk's word: `disk`, `loop`, `rom`.
    pub kind: String,
    /// Bytes.
    pub size: u64,
    pub model: String,
    pub serial: String,
    pub read_only: bool,
    /// Whether there is a device node. A container's lsblk lists its host's disks, which have none.
    pub node: bool,
    /// The links that name it as an Azure data disk, in order of LUN.
    pub luns: Vec<String>,
    /// Gone when the machine is stopped: a cloud's scratch disk.
    pub temporary: bool,
    pub parts: Vec<Part>,
    /// Devices made upon it or upon one of its partitions: `dm-0`, `md0`.
    pub holders: Vec<String>,
    /// Where it, or anything upon it, is mounted; `[SWAP]` for swap.
    pub used: Vec<String>,
    /// What is written on it, or why that could not be read. Disks that are passed over are not read.
    pub probe: Result<Probe, String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    pub path: String,
    pub fs: String,
    pub label: String,
}

/// What is written on a disk.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Probe {
    /// Everything blkid and wipefs recognise.
    pub signatures: Vec<Signature>,
    /// The LVM volume group, when it can be asked.
    pub group: String,
    /// Whether the first MiB is all zero.
    pub head_zero: bool,
    /// Whether the last MiB is all zero.
    pub tail_zero: bool,
    /// The UUID of a format that was begun here.
    pub stake: Option<String>,
    /// For a file system with our label: whether the marker is in its root.
    pub marked: bool,
    /// For a file system with our label: whether it has never been mounted.
    pub unmounted_yet: bool,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Signature {
    pub kind: String,
    pub label: String,
    pub uuid: String,
    pub usage: String,
}

/// What a disk is to us.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    Ours {
        uuid: String,
    },
    /// A format of ours that was cut short; it holds nothing.
    Unfinished {
        uuid: String,
    },
    Blank,
    /// In words that follow "holds" or "is".
    Foreign {
        what: String,
    },
}

/// The machine's disks, and which of them was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    pub disks: Vec<Disk>,
    /// The device that a chosen name leads to.
    pub chosen: Option<String>,
}

/// What to do about the data disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// The setting is `none`.
    NotWanted,
    /// `auto`, and there is nothing to use. With the disks that were passed over, and why.
    NoDisk {
        passed: Vec<(String, String)>,
    },
    Use {
        path: String,
        uuid: String,
    },
    /// With the UUID of the format that is to be finished, if one was begun.
    Format {
        path: String,
        size: u64,
        uuid: Option<String>,
    },
    Refuse(Refusal),
}

/// What was found and, apart, what to try.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    pub found: String,
    pub hint: String,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.found)
    }
}

impl std::error::Error for Refusal {}

/// Look at every disk of this machine, and read those that `choice` leaves in question. Writes nothing and
/// mounts nothing.
pub fn look(host: &Host, choice: &Choice) -> Result<Seen> {
    let lsblk = Cmd::new("lsblk", ["--json", "--bytes", "--output", COLUMNS]);
    let json = host.run(&lsblk).context("listing the disks")?;
    let mounts = host.read_text(Path::new("/proc/self/mountinfo"))?.unwrap_or_default();
    let mut disks = disks(&json, &mounts, &links(host)?)?;
    for disk in &mut disks {
        disk.node = host.exists(Path::new(&disk.path))?;
        let holders = format!("/sys/class/block/{}/holders", name(&disk.path));
        for holder in host.list(Path::new(&holders))? {
            if !disk.holders.contains(&holder) {
                disk.holders.push(holder);
            }
        }
    }
    let chosen = chosen(host, choice)?;
    let by_lun = disks.iter().any(|d| !d.luns.is_empty());
    for disk in &mut disks {
        let asked = chosen.as_deref() == Some(&*disk.path);
        if asked || (*choice == Choice::Auto && passed_over(disk, by_lun, "").is_none()) {
            disk.probe = probe(host, disk).map_err(|e| format!("{e:#}"));
        }
    }
    Ok(Seen { disks, chosen })
}

/// What to do, given what was found. `at` is where our data are mounted; `noted` are the UUIDs that this
/// machine's journal says it chose for a disk.
pub fn decide(seen: &Seen, choice: &Choice, at: &str, noted: &[String]) -> Decision {
    match choice {
        Choice::None => Decision::NotWanted,
        Choice::Auto => decide_auto(&seen.disks, at, noted),
        Choice::Device(asked) => {
            let path = seen.chosen.as_deref().unwrap_or(asked);
            decide_chosen(&seen.disks, asked, path, at, noted)
        }
    }
}

/// The device itself that a chosen device's links lead to.
fn chosen(host: &Host, choice: &Choice) -> Result<Option<String>> {
    let Choice::Device(asked) = choice else { return Ok(None) };
    let mut path = PathBuf::from(asked);
    // The kernel gives up after forty; nobody chains more than two.
    for _ in 0..8 {
        let Some(meta) = host.meta(&path)? else { break };
        let Kind::Link(target) = meta.kind else { break };
        path = without_dots(&path.parent().unwrap_or(Path::new("/")).join(target));
    }
    Ok(Some(path.to_string_lossy().into_owned()))
}

fn decide_auto(disks: &[Disk], at: &str, noted: &[String]) -> Decision {
    let by_lun = disks.iter().any(|d| !d.luns.is_empty());
    let mut passed = Vec::new();
    let (mut ours, mut begun, mut blank, mut foreign) = (vec![], vec![], vec![], vec![]);
    for disk in disks {
        if let Some(why) = passed_over(disk, by_lun, at) {
            passed.push((disk.path.clone(), why));
            continue;
        }
        match verdict(disk, at, noted) {
            Verdict::Ours { uuid } => ours.push((disk, uuid)),
            Verdict::Unfinished { uuid } => begun.push((disk, uuid)),
            Verdict::Blank => blank.push(disk),
            Verdict::Foreign { what } => foreign.push((disk, what)),
        }
    }
    match (&ours[..], &begun[..], &blank[..], &foreign[..]) {
        ([(disk, uuid)], ..) => Decision::Use { path: disk.path.clone(), uuid: uuid.clone() },
        ([_, _, ..], ..) => several(
            "disks carry this appliance's data",
            "detach the one that is not wanted (a restored snapshot, another HQ's disk)",
            &ours.iter().map(|(d, _)| *d).collect::<Vec<_>>(),
        ),
        ([], [(disk, uuid)], ..) => {
            Decision::Format { path: disk.path.clone(), size: disk.size, uuid: Some(uuid.clone()) }
        }
        ([], [_, _, ..], ..) => several(
            "disks carry a format that was begun here",
            "detach the one that is not wanted",
            &begun.iter().map(|(d, _)| *d).collect::<Vec<_>>(),
        ),
        ([], [], [disk], _) => Decision::Format { path: disk.path.clone(), size: disk.size, uuid: None },
        ([], [], [_, _, ..], _) => several("disks are blank", "detach the one that is not wanted", &blank),
        ([], [], [], []) => Decision::NoDisk { passed },
        ([], [], [], foreign) => Decision::Refuse(refuse(foreign)),
    }
}

fn decide_chosen(disks: &[Disk], asked: &str, path: &str, at: &str, noted: &[String]) -> Decision {
    let shown = if asked == path { path.to_owned() } else { format!("{asked} ({path})") };
    let refuse_with = |found: String, hint: String| Decision::Refuse(Refusal { found, hint });
    let whole = "`lsblk` lists the whole disks: choose one with --set data.disk=DEVICE".to_owned();
    let Some(disk) = disks.iter().find(|d| d.path == path && d.node) else {
        let parent = disks.iter().find(|d| d.parts.iter().any(|p| p.path == path));
        return match parent {
            Some(parent) => refuse_with(
                format!("data.disk = {shown} is a partition of {}, not a whole disk", parent.path),
                whole,
            ),
            None => refuse_with(format!("data.disk = {shown}: there is no such disk"), whole),
        };
    };
    match verdict(disk, at, noted) {
        Verdict::Ours { uuid } => Decision::Use { path: path.into(), uuid },
        Verdict::Unfinished { uuid } => {
            Decision::Format { path: path.into(), size: disk.size, uuid: Some(uuid) }
        }
        Verdict::Blank => Decision::Format { path: path.into(), size: disk.size, uuid: None },
        Verdict::Foreign { what } => Decision::Refuse(refuse(&[(disk, what)])),
    }
}

fn several(are: &str, or: &str, disks: &[&Disk]) -> Decision {
    let each: Vec<_> = disks.iter().map(|d| shown(d)).collect();
    Decision::Refuse(Refusal {
        found: format!("{} {are}, and one is needed: {}", disks.len(), each.join(", ")),
        hint: format!("choose one with --set data.disk={}, or {or}", disks[0].best_name()),
    })
}

fn refuse(foreign: &[(&Disk, String)]) -> Refusal {
    let each: Vec<_> = foreign.iter().map(|(d, what)| format!("{} {what}", shown(d))).collect();
    let (disk, _) = foreign[0];
    let last = disk.size.saturating_sub(1) / MIB;
    let wipe = if disk.used.is_empty() && disk.holders.is_empty() && !disk.read_only && disk.size >= SMALLEST
    {
        let all: Vec<_> = disk.parts.iter().map(|p| p.path.as_str()).chain([disk.path.as_str()]).collect();
        // Three commands, because "blank" means no signature and both ends zero.
        format!(
            "; if nothing on {path} is needed any more, wipe it yourself: `wipefs -a {all}; \
             dd if=/dev/zero of={path} bs=1M count=1; dd if=/dev/zero of={path} bs=1M seek={last}`",
            path = disk.path,
            all = all.join(" ")
        )
    } else {
        String::new()
    };
    Refusal {
        found: format!("no disk for the data: {}; nothing was written to it", each.join("; ")),
        hint: format!(
            "attach an empty disk, or keep the data on the system's own with --set data.disk=none{wipe}"
        ),
    }
}

impl Disk {
    /// The name that stays the same over a reboot, where there is one.
    fn best_name(&self) -> &str {
        self.luns.first().map_or(&self.path, String::as_str)
    }
}

fn shown(disk: &Disk) -> String {
    let mut notes = vec![size_words(disk.size)];
    notes.extend(disk.luns.first().cloned());
    if !disk.serial.is_empty() {
        notes.push(format!("serial {}", disk.serial));
    }
    format!("{} ({})", disk.path, notes.join(", "))
}

/// A size as people say it.
pub fn size_words(bytes: u64) -> String {
    let units = [(1 << 40, "TiB"), (1 << 30, "GiB"), (MIB, "MiB")];
    match units.iter().find(|(unit, _)| bytes >= *unit) {
        Some((unit, word)) if bytes.is_multiple_of(*unit) => format!("{} {word}", bytes / unit),
        Some((unit, word)) => format!("{:.1} {word}", bytes as f64 / *unit as f64),
        None => format!("{bytes} bytes"),
    }
}

/// Why `auto` does not consider this disk; `None` when it does.
fn passed_over(disk: &Disk, by_lun: bool, at: &str) -> Option<String> {
    let kernel = name(&disk.path);
    let some = |why: &str| Some(why.to_owned());
    if by_lun && disk.luns.is_empty() {
        return some("not attached as an Azure data disk");
    }
    if !disk.node {
        return some("has no device node here");
    }
    if disk.luns.is_empty() {
        // Ubuntu mounts a loop device for every snap, so one must be asked for by name.
        if disk.kind != "disk" {
            return Some(format!("a {} device", disk.kind));
        }
        if ["zram", "ram", "sr", "fd"]
            .iter()
            .any(|p| kernel.strip_prefix(p).is_some_and(|n| n.bytes().all(|b| b.is_ascii_digit())))
        {
            return some("not a disk that lasts");
        }
    }
    if disk.size == 0 {
        return some("empty drive");
    }
    if disk.read_only {
        return some("read-only");
    }
    if disk.temporary {
        return some("the cloud's temporary disk, which is lost when the machine stops");
    }
    // Where the machine's own first settings come from (cloud-init).
    let seed = |fs: &str, label: &str| {
        fs == "iso9660" || ["cidata", "config-2"].contains(&&*label.to_ascii_lowercase())
    };
    let signatures = disk.probe.iter().flat_map(|p| &p.signatures);
    if disk.parts.iter().any(|p| seed(&p.fs, &p.label))
        || signatures.into_iter().any(|s| seed(&s.kind, &s.label))
    {
        return some("cloud-init's settings disk");
    }
    // At our own mount point it is ours to look at; elsewhere somebody uses it, and that is no mistake.
    if !disk.used.is_empty() && !at.is_empty() && !disk.used.iter().any(|u| u == at) {
        return Some(used_words(disk));
    }
    None
}

fn used_words(disk: &Disk) -> String {
    match disk.used.first().map(String::as_str) {
        Some("[SWAP]") => "in use as swap".into(),
        Some(at) => format!("mounted at {at}"),
        None => format!("in use by {}", disk.holders.join(", ")),
    }
}

/// What this disk is to us. Blank only when everything that could speak against it was asked and was silent.
pub fn verdict(disk: &Disk, at: &str, noted: &[String]) -> Verdict {
    let foreign = |what: String| Verdict::Foreign { what };
    if disk.read_only {
        return foreign("is read-only".into());
    }
    if disk.temporary {
        return foreign("is the cloud's temporary disk, which is lost when the machine stops".into());
    }
    let probe = match &disk.probe {
        Ok(probe) => probe,
        Err(why) => return foreign(format!("could not be read: {why}")),
    };
    let mounted_here = disk.used.iter().any(|u| u == at);
    if !disk.parts.is_empty() || (!mounted_here && !disk.used.is_empty()) || !disk.holders.is_empty() {
        let busy = !disk.used.is_empty() || !disk.holders.is_empty();
        return foreign(match (contents(disk, probe), busy) {
            (Some(what), true) => format!("holds {what}, {}", used_words(disk)),
            (Some(what), false) => format!("holds {what}"),
            (None, _) => format!("is {}", used_words(disk)),
        });
    }
    if let Some(what) = contents(disk, probe) {
        let [Signature { kind, label, uuid, .. }] = &probe.signatures[..] else {
            return foreign(format!("holds {what}"));
        };
        if kind != "ext4" || label != LABEL {
            return foreign(format!("holds {what}"));
        }
        if probe.marked {
            return Verdict::Ours { uuid: uuid.clone() };
        }
        if probe.unmounted_yet && !mounted_here && noted.contains(uuid) {
            return Verdict::Unfinished { uuid: uuid.clone() };
        }
        return foreign(format!("holds {what}, but without the appliance's marker {MARKER}"));
    }
    if mounted_here {
        // Mounted, and yet nothing that blkid knows: whatever it is, it is not blank.
        return foreign(format!("is mounted at {at} with no signature that is known"));
    }
    if disk.size < SMALLEST {
        return foreign(format!("is smaller than the {} that a data disk needs", size_words(SMALLEST)));
    }
    match &probe.stake {
        Some(uuid) if noted.contains(uuid) => Verdict::Unfinished { uuid: uuid.clone() },
        Some(_) => foreign("holds a format that another echoes-appliance began and did not finish".into()),
        None if probe.head_zero && probe.tail_zero => Verdict::Blank,
        None => foreign("holds bytes that are not zero, without a signature that is known".into()),
    }
}

/// What is on the disk, in words; `None` when no signature, table or partition was found.
fn contents(disk: &Disk, probe: &Probe) -> Option<String> {
    let is_table = |s: &&Signature| s.usage == "partition-table";
    let table = probe.signatures.iter().filter(is_table).map(|s| s.kind.as_str()).collect::<Vec<_>>();
    let mut words = Vec::new();
    if !table.is_empty() || !disk.parts.is_empty() {
        let kind = match &table[..] {
            kinds if kinds.contains(&"gpt") => "a GPT partition table",
            kinds if kinds.contains(&"dos") => "an MBR partition table",
            _ => "a partition table",
        };
        words.push(match disk.parts.len() {
            0 => kind.to_owned(),
            1 => format!("{kind} with 1 partition"),
            n => format!("{kind} with {n} partitions"),
        });
    }
    for Signature { kind, label, usage, .. } in probe.signatures.iter().filter(|s| !is_table(s)) {
        let mut what = match (kind.as_str(), usage.as_str()) {
            ("swap", _) => "swap space".into(),
            ("crypto_LUKS", _) => "a LUKS encrypted volume".into(),
            ("LVM2_member" | "LVM1_member", _) if probe.group.is_empty() => "an LVM physical volume".into(),
            ("LVM2_member" | "LVM1_member", _) => {
                format!("an LVM physical volume (volume group {})", probe.group)
            }
            ("linux_raid_member", _) => "a RAID member".into(),
            ("zfs_member", _) => "a ZFS pool member".into(),
            (kind, "filesystem") => {
                let an = if kind.starts_with(['a', 'e', 'i', 'o', 'x']) { "an" } else { "a" };
                format!("{an} {kind} file system")
            }
            (kind, _) => format!("the signature of {kind}"),
        };
        if !label.is_empty() {
            what = format!("{what} labelled {label}");
        }
        if !words.contains(&what) {
            words.push(what);
        }
    }
    (!words.is_empty()).then(|| words.join(" and "))
}

// ── facts ───────────────────────────────────────────────────────────────────────────────────────────────────

/// Known to lsblk since util-linux 2.33; MOUNTPOINTS (all of them) only came with 2.37, so the mount table is
/// read as well.
const COLUMNS: &str = "NAME,KNAME,PATH,MAJ:MIN,TYPE,SIZE,RO,MODEL,SERIAL,FSTYPE,LABEL,MOUNTPOINT";

/// Local disks that clouds lend with the machine and take back when it stops, by model. They come blank, so
/// nothing on them would say so.
const TEMPORARY: [&str; 3] = ["Microsoft NVMe Direct Disk", "Amazon EC2 NVMe Instance Storage", "nvme_card"];

/// What Azure's own rules say of its disks, by kernel name.
#[derive(Debug, Default)]
struct Links {
    luns: Vec<(u32, String, String)>,
    temporary: Vec<String>,
}

fn links(host: &Host) -> Result<Links> {
    let mut links = Links::default();
    // waagent's rules on SCSI, then azure-vm-utils' on SCSI and NVMe. Partitions have links too: `lun0-part1`.
    for (dir, prefix) in [("/dev/disk/azure/scsi1", "lun"), ("/dev/disk/azure/data/by-lun", "")] {
        for (link, to) in linked(host, dir)? {
            if let Some(lun) = link.strip_prefix(prefix).and_then(|n| n.parse().ok()) {
                links.luns.push((lun, format!("{dir}/{link}"), to));
            }
        }
    }
    links.luns.sort();
    for dir in ["/dev/disk/azure/local/by-index", "/dev/disk/azure/local/by-serial"] {
        links.temporary.extend(linked(host, dir)?.into_iter().map(|(_, to)| to));
    }
    let azure = linked(host, "/dev/disk/azure")?;
    links.temporary.extend(azure.into_iter().filter(|(link, _)| link == "resource").map(|(_, to)| to));
    Ok(links)
}

/// The slot in which Azure has attached a whole disk, by its kernel name.
pub fn lun(host: &Host, kernel: &str) -> Result<Option<u32>> {
    Ok(links(host)?.luns.into_iter().find(|(_, _, to)| to == kernel).map(|(lun, _, _)| lun))
}

/// The UUID of the file system on a device, by the links that udev keeps; else as it is written there, which only root
/// can read.
pub fn uuid(host: &Host, kernel: &str) -> Result<Option<String>> {
    let links = linked(host, "/dev/disk/by-uuid")?;
    if let Some((uuid, _)) = links.into_iter().find(|(_, to)| to == kernel) {
        return Ok(Some(uuid));
    }
    let device = format!("/dev/{kernel}");
    let out = host.ask(&Cmd::new("blkid", ["-p", "-o", "value", "-s", "UUID", &device]))?;
    Ok(Some(out.stdout.trim().to_owned()).filter(|uuid| out.ok() && !uuid.is_empty()))
}

/// The links in a directory and the kernel names they lead to.
fn linked(host: &Host, dir: &str) -> Result<Vec<(String, String)>> {
    let mut found = Vec::new();
    for link in host.list(Path::new(dir))? {
        if let Some(Kind::Link(to)) = host.meta(&Path::new(dir).join(&link))?.map(|m| m.kind) {
            found.push((link, name(&to.to_string_lossy()).to_owned()));
        }
    }
    Ok(found)
}

fn name(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

#[derive(Deserialize)]
struct Lsblk {
    blockdevices: Vec<Row>,
}

#[derive(Deserialize)]
struct Row {
    kname: Option<String>,
    path: String,
    #[serde(rename = "maj:min")]
    number: Option<String>,
    #[serde(rename = "type")]
    kind: Option<String>,
    /// A number, or in older versions the same in quotes; `ro` likewise.
    size: Value,
    ro: Value,
    model: Option<String>,
    serial: Option<String>,
    fstype: Option<String>,
    label: Option<String>,
    mountpoint: Option<String>,
    #[serde(default)]
    children: Vec<Row>,
}

impl Row {
    fn kernel(&self) -> &str {
        self.kname.as_deref().unwrap_or(name(&self.path))
    }
}

/// The disks that lsblk's answer, the mount table and the links describe; nodes and contents not yet looked at. Sorted:
/// the first of several is the one that a refusal proposes, and must not follow from the order in which a kernel found them.
fn disks(json: &str, mountinfo: &str, links: &Links) -> Result<Vec<Disk>> {
    let lsblk: Lsblk = serde_json::from_str(json).context("reading lsblk's answer")?;
    let mut rows: Vec<&Row> = lsblk.blockdevices.iter().collect();
    rows.sort_by(|a, b| rank(a.kernel(), links).cmp(&rank(b.kernel(), links)));
    Ok(rows.into_iter().map(|row| disk(row, mountinfo, links)).collect())
}

/// The place of a disk among others: Azure's data disks by LUN, then the rest by name, as a person counts.
fn rank<'a>(kernel: &'a str, links: &Links) -> (u32, Vec<(usize, &'a str)>) {
    let lun = links.luns.iter().find(|(_, _, to)| to == kernel).map_or(u32::MAX, |(lun, ..)| *lun);
    (lun, counted(kernel))
}

/// A kernel name cut into what compares as a text and what compares as a number, which has its length before it: `nvme0n2`
/// comes before `nvme0n10`, and `sdz` before `sdaa`.
fn counted(kernel: &str) -> Vec<(usize, &str)> {
    let letters = |rest: &&str| !rest.is_empty() && rest.bytes().all(|b| b.is_ascii_lowercase());
    let named = |driver: &'static str| Some((driver, kernel.strip_prefix(driver).filter(letters)?));
    if let Some((driver, letters)) = ["sd", "vd", "xvd", "hd"].into_iter().find_map(named) {
        return vec![(0, driver), (letters.len(), letters)];
    }
    let digits = |run: &str| run.starts_with(|c: char| c.is_ascii_digit());
    let mut runs: Vec<&str> = Vec::new();
    let mut rest = kernel;
    while !rest.is_empty() {
        let end = rest.find(|c: char| c.is_ascii_digit() != digits(rest)).unwrap_or(rest.len());
        let (run, after) = rest.split_at_checked(end).unwrap_or((rest, ""));
        runs.push(run);
        rest = after;
    }
    runs.into_iter().map(|run| (if digits(run) { run.len() } else { 0 }, run)).collect()
}

fn disk(row: &Row, mountinfo: &str, links: &Links) -> Disk {
    let kernel = row.kernel();
    let text = |text: &Option<String>| text.as_deref().unwrap_or_default().trim().to_owned();
    let mut disk = Disk {
        path: row.path.clone(),
        kind: text(&row.kind),
        size: row.size.as_u64().or_else(|| row.size.as_str()?.parse().ok()).unwrap_or(0),
        model: text(&row.model),
        serial: text(&row.serial),
        read_only: matches!(&row.ro, Value::Bool(true)) || row.ro == "1" || row.ro == 1,
        node: false,
        luns: links.luns.iter().filter(|(_, _, to)| to == kernel).map(|(_, link, _)| link.clone()).collect(),
        temporary: links.temporary.iter().any(|to| to == kernel),
        parts: Vec::new(),
        holders: Vec::new(),
        used: Vec::new(),
        probe: Err("it was not looked at".into()),
    };
    upon(row, mountinfo, &mut disk);
    disk.temporary |= TEMPORARY.iter().any(|model| disk.model == *model || versioned(&disk.model, model))
        || text(&row.label) == "Temporary Storage"
        || disk.parts.iter().any(|part| part.label == "Temporary Storage");
    disk
}

/// Whether a model is this one with a version after it: `Microsoft NVMe Direct Disk v2`.
fn versioned(model: &str, base: &str) -> bool {
    model.strip_prefix(base).is_some_and(|rest| rest.starts_with(" v"))
}

/// Gather what is upon a device: its partitions, what is made of them, where all that is mounted.
fn upon(row: &Row, mountinfo: &str, disk: &mut Disk) {
    let number = row.number.as_deref().unwrap_or_default().trim();
    let mounts = mountinfo.lines().map(|line| line.split(' ').collect::<Vec<_>>());
    let mounted =
        mounts.filter(|m| m.get(2) == Some(&number)).filter_map(|m| m.get(4).map(|at| unescape(at)));
    for at in row.mountpoint.iter().cloned().chain(mounted) {
        if !disk.used.contains(&at) {
            disk.used.push(at);
        }
    }
    for child in &row.children {
        let kernel = child.kernel();
        if child.kind.as_deref() == Some("part") {
            let text = |text: &Option<String>| text.clone().unwrap_or_default();
            let part = Part { path: child.path.clone(), fs: text(&child.fstype), label: text(&child.label) };
            disk.parts.push(part);
        } else if !disk.holders.iter().any(|h| h == kernel) {
            disk.holders.push(kernel.to_owned());
        }
        upon(child, mountinfo, disk);
    }
}

/// Read what is written on a disk. Fails when a tool fails: what could not be asked proves nothing.
fn probe(host: &Host, disk: &Disk) -> Result<Probe> {
    let path = disk.path.as_str();
    let mut probe = Probe { signatures: signatures(host, path)?, ..Probe::default() };
    if probe.signatures.iter().any(|s| s.kind == "LVM2_member") {
        // lvm2 may not be installed, and the name is a courtesy.
        let pvs = Cmd::new("pvs", ["--noheadings", "-o", "vg_name", path]);
        probe.group = host.ask(&pvs).map(|out| out.stdout.trim().to_owned()).unwrap_or_default();
    }
    if probe.signatures.iter().any(|s| s.label == LABEL && s.kind == "ext4") {
        // -c: without the bitmaps. While a mounted file system is written to, debugfs 1.46 now and then finds one that
        // does not fit its checksum, and then opens nothing.
        let cat = Cmd::new("debugfs", ["-c", "-R", &format!("cat /{MARKER}"), path]);
        probe.marked = host.ask(&cat)?.stdout.starts_with(MARKED);
        if probe.marked && probe.signatures.len() == 1 {
            // Ours, which nothing below would change: an install with nothing to do looks here each time.
            return Ok(probe);
        }
        let header = host.ask(&Cmd::new("dumpe2fs", ["-h", path]))?.stdout;
        let last = header.lines().find_map(|line| line.strip_prefix("Last mount time:"));
        probe.unmounted_yet = last.is_some_and(|when| when.trim() == "n/a");
    }
    probe.head_zero = zero(host, path, 0, MIB.min(disk.size))?;
    probe.tail_zero = zero(host, path, disk.size.saturating_sub(MIB), MIB.min(disk.size))?;
    if !probe.tail_zero && disk.size >= SMALLEST {
        let skip = format!("skip={}", end(disk.size) / 512);
        let read = [&format!("if={path}"), "bs=512", &skip, "count=1", "status=none"];
        probe.stake = staked(&host.run(&Cmd::new("dd", read))?);
    }
    Ok(probe)
}

/// Everything blkid and wipefs recognise. Two tools, because each knows something that the other does not:
/// wipefs shows every signature, the backups too; blkid says when it cannot tell.
fn signatures(host: &Host, path: &str) -> Result<Vec<Signature>> {
    let list = ["--no-act", "--json", "--output", "OFFSET,TYPE,LABEL,UUID,USAGE", path];
    let list = Cmd::new("wipefs", list);
    let mut found = wiped(&host.run(&list)?)?;
    let blkid = Cmd::new("blkid", ["-p", "-o", "export", path]);
    let out = host.ask(&blkid)?;
    match out.code {
        0 => {
            for seen in probed(&out.stdout) {
                if !found.iter().any(|s| s.kind == seen.kind) {
                    found.push(seen);
                }
            }
        }
        // Nothing found.
        2 => {}
        // Two that contradict each other, so wipefs has listed them.
        8 if !found.is_empty() => {}
        code => bail!("running `{blkid}`: exit status {code}: {}", out.stderr.trim()),
    }
    Ok(found)
}

fn wiped(json: &str) -> Result<Vec<Signature>> {
    #[derive(Deserialize)]
    struct Answer {
        signatures: Vec<Row>,
    }
    #[derive(Deserialize)]
    struct Row {
        #[serde(rename = "type")]
        kind: Option<String>,
        label: Option<String>,
        uuid: Option<String>,
        usage: Option<String>,
    }
    // Some versions answer an empty disk with nothing at all.
    if json.trim().is_empty() {
        return Ok(Vec::new());
    }
    let answer: Answer = serde_json::from_str(json).context("reading wipefs's answer")?;
    Ok(answer
        .signatures
        .into_iter()
        .map(|row| Signature {
            kind: row.kind.unwrap_or_else(|| "unknown".into()),
            label: row.label.unwrap_or_default(),
            uuid: row.uuid.unwrap_or_default(),
            usage: row.usage.unwrap_or_default(),
        })
        .collect())
}

fn probed(export: &str) -> Vec<Signature> {
    let value = |key: &str| {
        let line = export.lines().find_map(|l| l.strip_prefix(key)?.strip_prefix('='));
        line.map(|v| v.replace("\\ ", " ").replace("\\\\", "\\"))
    };
    let (label, uuid) = (value("LABEL").unwrap_or_default(), value("UUID").unwrap_or_default());
    let usage = value("USAGE").unwrap_or_default();
    let table = |kind| Signature { kind, usage: "partition-table".into(), ..Signature::default() };
    let fs = |kind| Signature { kind, label, uuid, usage };
    value("PTTYPE").map(table).into_iter().chain(value("TYPE").map(fs)).collect()
}

fn zero(host: &Host, path: &str, from: u64, len: u64) -> Result<bool> {
    let (bytes, skip) = (format!("--bytes={len}"), format!("--ignore-initial={from}:0"));
    let cmp = Cmd::new("cmp", ["--silent", &bytes, &skip, path, "/dev/zero"]);
    let out = host.ask(&cmp)?;
    match out.code {
        0 => Ok(true),
        1 => Ok(false),
        code => bail!("running `{cmp}`: exit status {code}: {}", out.stderr.trim()),
    }
}

// ── making it ───────────────────────────────────────────────────────────────────────────────────────────────

/// How long the system gets to notice the new file system. udev takes well under a second.
pub const NOTICE: Duration = Duration::from_secs(20);

/// A new random UUID: to be noted in the journal before `format` is called with it.
pub fn new_uuid() -> Result<String> {
    let mut bytes = [0u8; 16];
    getrandom::fill(&mut bytes).context("asking the kernel for random bytes")?;
    let n = u128::from_be_bytes(bytes) & !(0xf000 << 64) & !(0xc000 << 48) | (0x4000 << 64) | (0x8000 << 48);
    let hex = format!("{n:032x}");
    let parts = [0..8, 8..12, 12..16, 16..20, 20..32];
    Ok(parts.map(|part| hex.get(part).unwrap_or_default()).join("-"))
}

/// Make our file system on the disk at `path`, under a UUID that the caller has already noted. Looks again
/// first and refuses unless the disk is blank or carries this very format, unfinished; one already finished is
/// left as it is, so this may be repeated. mkfs opens the device exclusively, so nobody can begin to use it in
/// between. When this returns, the file system is on disk and, where udev runs, its link is there.
pub fn format(host: &Host, path: &str, uuid: &str, notice: Duration) -> Result<()> {
    let doing = || format!("making a file system on {path}");
    let choice = Choice::Device(path.into());
    let noted = [uuid.to_owned()];
    let seen = look(host, &choice)?;
    let device = seen.chosen.clone().unwrap_or_else(|| path.into());
    // No disk is mounted at the empty path: mounted anywhere, this one is not ours to format.
    let size = match decide(&seen, &choice, "", &noted) {
        Decision::Use { uuid: found, .. } if found == uuid => return noticed(host, uuid, notice),
        Decision::Use { uuid: found, .. } => {
            return Err(Refusal {
                found: format!("{path} already holds the appliance's data, as {found}"),
                hint: "run again: it will be used as it is".into(),
            })
            .with_context(doing);
        }
        Decision::Format { size, .. } => size,
        Decision::Refuse(refusal) => return Err(refusal).with_context(doing),
        Decision::NotWanted | Decision::NoDisk { .. } => bail!("no disk was chosen"),
    };
    stake(host, &device, size, uuid).with_context(doing)?;
    make(host, &device, size, uuid).with_context(doing)?;
    let after = look(host, &Choice::Device(device.clone()))?;
    let made = after.disks.iter().find(|d| d.path == device).map(|d| verdict(d, "", &noted));
    if made != Some(Verdict::Ours { uuid: uuid.into() }) {
        bail!("mkfs.ext4 reported success, but {device} now reads as {made:?}");
    }
    noticed(host, uuid, notice)
}

/// Where the file system ends and our last MiB begins: a whole number of blocks.
fn end(size: u64) -> u64 {
    (size.saturating_sub(MIB)) / 4096 * 4096
}

/// Say on the disk itself, where mkfs will not write, that what follows is ours.
fn stake(host: &Host, device: &str, size: u64, uuid: &str) -> Result<()> {
    let mut sector = format!("{STAKE}{uuid}\n").into_bytes();
    sector.resize(512, 0);
    let (of, seek) = (format!("of={device}"), format!("seek={}", end(size) / 512));
    let dd = Cmd::new("dd", [&of, "bs=512", &seek, "count=1", "conv=fsync,notrunc,nocreat", "status=none"]);
    host.run(&dd.stdin(sector))?;
    Ok(())
}

/// The UUID in a stake.
fn staked(sector: &str) -> Option<String> {
    let uuid = sector.strip_prefix(STAKE)?.lines().next()?;
    (uuid.len() == 36 && uuid.bytes().all(|b| b.is_ascii_hexdigit() || b == b'-')).then(|| uuid.to_owned())
}

/// The features every supported release can check and mount. Left to itself, Debian 13's mkfs makes a file
/// system that Debian 11's fsck refuses, and the disk may be moved there.
const MKE2FS: &str = "\
[defaults]
    base_features = sparse_super,large_file,filetype,resize_inode,dir_index,ext_attr
[fs_types]
    ext4 = {
        features = has_journal,extent,huge_file,flex_bg,metadata_csum,64bit,dir_nlink,extra_isize
        default_mntopts = acl,user_xattr
        inode_ratio = 16384
    }
";

fn make(host: &Host, device: &str, size: u64, uuid: &str) -> Result<()> {
    let dir = PathBuf::from(format!("/run/echoes-appliance/mkfs-{uuid}"));
    let (conf, root) = (dir.join("mke2fs.conf"), dir.join("root"));
    host.write(&conf, 0o644, MKE2FS.as_bytes())?;
    let marker = format!("{MARKED}, which knows it by this file. Leave it here.\n");
    host.write(&root.join(MARKER), 0o644, marker.as_bytes())?;
    let (conf, root) = (host.path(&conf), host.path(&root));
    let args = [
        // No -F: mkfs then refuses what is mounted or in use, which is the last word on it.
        "-q",
        "-U",
        uuid,
        "-L",
        LABEL,
        // Five per cent for root would be 50 GB of a terabyte; nothing of the system writes here.
        "-m",
        "1",
        // Small disks would get 1 KiB blocks.
        "-b",
        "4096",
        "-I",
        "256",
        // Seconds rather than minutes on a large disk: the kernel zeroes the tables later. The disk is blank,
        // so discarding it first gains nothing, and would take the stake with it.
        "-E",
        "lazy_itable_init=1,lazy_journal_init=1,nodiscard",
        "-d",
        &root.to_string_lossy(),
        device,
        &format!("{}k", end(size) / 1024),
    ];
    let mkfs = Cmd::new("mkfs.ext4", args).env("MKE2FS_CONFIG", &conf.to_string_lossy());
    let made = host.run(&mkfs);
    host.remove_tree(&dir)?;
    made.map(drop)
}

/// Wait until udev has made the link that the mount unit names. Where no udev runs, `Mount` names the file system
/// another way, which systemd 257 takes for that link all the same: so if anybody keeps such links, we wait too, but
/// miss none.
fn noticed(host: &Host, uuid: &str, notice: Duration) -> Result<()> {
    let udev = has_udev(host)?;
    let link = PathBuf::from(by_uuid(uuid));
    let until = Instant::now() + notice;
    if udev {
        // mkfs closing the device is what makes udev look; this waits for the queue, not for a time.
        host.ask(&Cmd::new("udevadm", ["settle", &format!("--timeout={}", notice.as_secs())]))?;
    } else if !host.exists(link.parent().unwrap_or(&link))? {
        return Ok(());
    }
    while !host.exists(&link)? {
        if Instant::now() >= until {
            if !udev {
                return Ok(());
            }
            return Err(Refusal {
                found: format!("{} did not appear within {} s", link.display(), notice.as_secs()),
                hint: "`udevadm trigger --settle` asks for it again; then run the same command again".into(),
            }
            .into());
        }
        std::thread::sleep(Duration::from_millis(100).min(notice));
    }
    Ok(())
}

/// Whether links under /dev/disk come and go by themselves. In a container they do not.
pub fn has_udev(host: &Host) -> Result<bool> {
    host.exists(Path::new("/run/udev/control"))
}

fn by_uuid(uuid: &str) -> String {
    format!("/dev/disk/by-uuid/{uuid}")
}

// ── mounting it ─────────────────────────────────────────────────────────────────────────────────────────────

/// What `templates/systemd/system/data.mount` and `data.device.conf` are rendered from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Mount {
    /// Where: `/mnt/echoes_data`.
    pub path: String,
    /// What mount is given.
    pub what: String,
    /// The unit that checks the file system first.
    pub fsck: Option<String>,
}

impl Mount {
    pub fn new(path: &str, uuid: &str, udev: bool) -> Self {
        let device = by_uuid(uuid);
        let fsck = format!("systemd-fsck@{}.service", escape(&device));
        // Without udev there is no link, and systemd has no unit for the device that fsck's could be bound
        // to; mount then looks for the UUID itself.
        let what = if udev { device } else { format!("UUID={uuid}") };
        Self { path: path.into(), what, fsck: udev.then_some(fsck) }
    }

    /// The unit must be called after the path.
    pub fn unit(&self) -> String {
        format!("{}.mount", escape(&self.path))
    }

    /// Where the device's time limit is said, below /etc/systemd/system; only where there is a device unit.
    pub fn device_conf(&self) -> Option<String> {
        self.fsck.as_ref()?;
        Some(format!("{}.device.d/echoes-appliance.conf", escape(&self.what)))
    }
}

/// A path as systemd writes it in a unit's name; `systemd-escape --path` in Rust.
pub fn escape(path: &str) -> String {
    let parts: Vec<_> = path.split('/').filter(|part| !part.is_empty() && *part != ".").collect();
    if parts.is_empty() {
        return "-".into();
    }
    let mut out = String::new();
    for (n, byte) in parts.join("/").bytes().enumerate() {
        match byte {
            b'/' => out.push('-'),
            b'.' if n == 0 => out.push_str("\\x2e"),
            b if b.is_ascii_alphanumeric() || b":_.".contains(&b) => out.push(b as char),
            b => out.push_str(&format!("\\x{b:02x}")),
        }
    }
    out
}

#[cfg(test)]
mod tests;
