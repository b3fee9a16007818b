use super::*;
use crate::host::{Exec, Output, System};
use std::sync::{
    Arc,
    atomic::{AtomicU32, Ordering::Relaxed},
};

const AT: &str = "/mnt/echoes_data";
const UUID: &str = "0f4c8f0e-6a55-4c0b-9d0e-1d2f3a4b5c6d";

// ── pure ────────────────────────────────────────────────────────────────────────────────────────────────────

/// A blank Azure-sized disk.
fn blank(path: &str) -> Disk {
    Disk {
        path: path.into(),
        kind: "disk".into(),
        size: 64 << 30,
        model: "Virtual Disk".into(),
        serial: String::new(),
        read_only: false,
        node: true,
        luns: vec![],
        temporary: false,
        parts: vec![],
        holders: vec![],
        used: vec![],
        probe: Ok(Probe { head_zero: true, tail_zero: true, ..Probe::default() }),
    }
}

fn holding(path: &str, kind: &str, label: &str, usage: &str) -> Disk {
    let signature =
        Signature { kind: kind.into(), label: label.into(), uuid: UUID.into(), usage: usage.into() };
    let probe = Probe { signatures: vec![signature], tail_zero: true, ..Probe::default() };
    Disk { probe: Ok(probe), ..blank(path) }
}

fn ours(path: &str) -> Disk {
    with_probe(holding(path, "ext4", LABEL, "filesystem"), |p| p.marked = true)
}

fn with_probe(mut disk: Disk, change: impl FnOnce(&mut Probe)) -> Disk {
    change(disk.probe.as_mut().unwrap());
    disk
}

fn system(path: &str) -> Disk {
    let part = Part { path: format!("{path}1"), fs: "ext4".into(), label: String::new() };
    Disk { parts: vec![part], used: vec!["/".into()], ..holding(path, "gpt", "", "partition-table") }
}

fn part(n: u8) -> Part {
    Part { path: format!("/dev/sdc{n}"), fs: String::new(), label: String::new() }
}

#[test]
fn each_thing_a_disk_can_be_is_called_by_its_name() {
    let noted = [UUID.to_owned()];
    let staked = |uuid: &str| {
        with_probe(blank("/dev/sdc"), |p| {
            p.tail_zero = false;
            p.stake = Some(uuid.into());
        })
    };
    let our_uuid = || UUID.to_owned();
    let foreign = |what: &str| Verdict::Foreign { what: what.into() };
    let table = [
        (blank("/dev/sdc"), Verdict::Blank),
        (ours("/dev/sdc"), Verdict::Ours { uuid: our_uuid() }),
        (Disk { used: vec![AT.into()], ..ours("/dev/sdc") }, Verdict::Ours { uuid: our_uuid() }),
        (
            Disk { used: vec!["/srv".into()], ..ours("/dev/sdc") },
            foreign("holds an ext4 file system labelled echoes_data, mounted at /srv"),
        ),
        (
            holding("/dev/sdc", "ext4", "backup", "filesystem"),
            foreign("holds an ext4 file system labelled backup"),
        ),
        (holding("/dev/sdc", "btrfs", "", "filesystem"), foreign("holds a btrfs file system")),
        (
            holding("/dev/sdc", "ext4", LABEL, "filesystem"),
            foreign(
                "holds an ext4 file system labelled echoes_data, but without the appliance's marker .echoes-appliance",
            ),
        ),
        (
            with_probe(holding("/dev/sdc", "ext4", LABEL, "filesystem"), |p| p.unmounted_yet = true),
            Verdict::Unfinished { uuid: our_uuid() },
        ),
        (
            Disk { parts: vec![part(1), part(2)], ..holding("/dev/sdc", "gpt", "", "partition-table") },
            foreign("holds a GPT partition table with 2 partitions"),
        ),
        (holding("/dev/sdc", "dos", "", "partition-table"), foreign("holds an MBR partition table")),
        (
            with_probe(holding("/dev/sdc", "LVM2_member", "", "raid"), |p| p.group = "data".into()),
            foreign("holds an LVM physical volume (volume group data)"),
        ),
        (
            Disk { holders: vec!["dm-0".into()], ..holding("/dev/sdc", "LVM2_member", "", "raid") },
            foreign("holds an LVM physical volume, in use by dm-0"),
        ),
        (Disk { holders: vec!["bcache0".into()], ..blank("/dev/sdc") }, foreign("is in use by bcache0")),
        (
            Disk { used: vec!["[SWAP]".into()], ..holding("/dev/sdc", "swap", "", "other") },
            foreign("holds swap space, in use as swap"),
        ),
        (holding("/dev/sdc", "crypto_LUKS", "", "crypto"), foreign("holds a LUKS encrypted volume")),
        (
            with_probe(blank("/dev/sdc"), |p| p.head_zero = false),
            foreign("holds bytes that are not zero, without a signature that is known"),
        ),
        (
            with_probe(blank("/dev/sdc"), |p| p.tail_zero = false),
            foreign("holds bytes that are not zero, without a signature that is known"),
        ),
        (staked(UUID), Verdict::Unfinished { uuid: our_uuid() }),
        (with_probe(staked(UUID), |p| p.head_zero = false), Verdict::Unfinished { uuid: our_uuid() }),
        (
            staked("11111111-2222-4333-8444-555555555555"),
            foreign("holds a format that another echoes-appliance began and did not finish"),
        ),
        (
            Disk { size: 64 << 20, ..blank("/dev/sdc") },
            foreign("is smaller than the 256 MiB that a data disk needs"),
        ),
        (Disk { read_only: true, ..ours("/dev/sdc") }, foreign("is read-only")),
        (
            Disk { temporary: true, ..blank("/dev/sdc") },
            foreign("is the cloud's temporary disk, which is lost when the machine stops"),
        ),
        (
            Disk { used: vec![AT.into()], ..blank("/dev/sdc") },
            foreign("is mounted at /mnt/echoes_data with no signature that is known"),
        ),
        (
            Disk { probe: Err("input/output error".into()), ..blank("/dev/sdc") },
            foreign("could not be read: input/output error"),
        ),
    ];
    for (disk, wanted) in table {
        assert_eq!(verdict(&disk, AT, &noted), wanted, "{disk:?}");
    }
}

/// Every fact that could speak against blankness is enough by itself.
#[test]
fn no_single_doubt_leaves_a_disk_blank() {
    let part = part(1);
    let doubts: [fn(&mut Disk, &Part); 12] = [
        |d, p| d.parts.push(p.clone()),
        |d, _| d.holders.push("dm-0".into()),
        |d, _| d.used.push("/srv".into()),
        |d, _| d.used.push(AT.into()),
        |d, _| d.read_only = true,
        |d, _| d.temporary = true,
        |d, _| d.size = SMALLEST - 1,
        |d, _| d.probe = Err("no answer".into()),
        |d, _| d.probe.as_mut().unwrap().signatures.push(Signature::default()),
        |d, _| d.probe.as_mut().unwrap().head_zero = false,
        |d, _| d.probe.as_mut().unwrap().tail_zero = false,
        |d, _| d.probe.as_mut().unwrap().stake = Some(UUID.into()),
    ];
    for (n, doubt) in doubts.iter().enumerate() {
        let mut disk = blank("/dev/sdc");
        doubt(&mut disk, &part);
        assert!(matches!(verdict(&disk, AT, &[]), Verdict::Foreign { .. }), "doubt {n}");
    }
}

fn auto(disks: Vec<Disk>) -> Decision {
    decide(&Seen { disks, chosen: None }, &Choice::Auto, AT, &[UUID.to_owned()])
}

fn found(decision: Decision) -> (String, String) {
    match decision {
        Decision::Refuse(Refusal { found, hint }) => (found, hint),
        other => panic!("not refused: {other:?}"),
    }
}

#[test]
fn auto_uses_ours_else_formats_the_one_blank_disk() {
    let format = |path: &str| Decision::Format { path: path.into(), size: 64 << 30, uuid: None };
    let use_it = |path: &str| Decision::Use { path: path.into(), uuid: UUID.into() };
    let backup = || holding("/dev/sdd", "ext4", "backup", "filesystem");
    assert_eq!(auto(vec![system("/dev/sda"), blank("/dev/sdc")]), format("/dev/sdc"));
    assert_eq!(auto(vec![system("/dev/sda"), blank("/dev/sdc"), backup()]), format("/dev/sdc"));
    assert_eq!(auto(vec![blank("/dev/sdb"), ours("/dev/sdc"), backup()]), use_it("/dev/sdc"));
    let unfinished = with_probe(holding("/dev/sdc", "ext4", LABEL, "filesystem"), |p| p.unmounted_yet = true);
    let finish = Decision::Format { path: "/dev/sdc".into(), size: 64 << 30, uuid: Some(UUID.into()) };
    assert_eq!(auto(vec![blank("/dev/sdb"), unfinished.clone()]), finish);
    assert_eq!(auto(vec![ours("/dev/sdb"), unfinished]), use_it("/dev/sdb"));
}

#[test]
fn auto_passes_over_what_is_nobodys_spare_disk() {
    let named = |path: &str, kind: &str| Disk { kind: kind.into(), ..blank(path) };
    let disks = vec![
        system("/dev/sda"),
        Disk { temporary: true, ..blank("/dev/sdb") },
        named("/dev/loop0", "loop"),
        named("/dev/sr0", "rom"),
        named("/dev/zram0", "disk"),
        Disk { node: false, ..blank("/dev/vda") },
        Disk { size: 0, ..blank("/dev/sde") },
        Disk { read_only: true, ..blank("/dev/sdf") },
        holding("/dev/vdb", "iso9660", "cidata", "filesystem"),
    ];
    let why = [
        "mounted at /",
        "the cloud's temporary disk, which is lost when the machine stops",
        "a loop device",
        "a rom device",
        "not a disk that lasts",
        "has no device node here",
        "empty drive",
        "read-only",
        "cloud-init's settings disk",
    ];
    let passed = disks.iter().zip(why).map(|(d, why)| (d.path.clone(), why.to_owned())).collect();
    assert_eq!(auto(disks), Decision::NoDisk { passed });
}

#[test]
fn two_blank_disks_are_a_question_with_both_names_in_it() {
    let lun = |n: u8, path: &str| Disk {
        luns: vec![format!("/dev/disk/azure/scsi1/lun{n}"), format!("/dev/disk/azure/data/by-lun/{n}")],
        ..blank(path)
    };
    let (found, hint) = found(auto(vec![blank("/dev/sdb"), lun(0, "/dev/sdd"), lun(1, "/dev/sdc")]));
    assert_eq!(
        found,
        "2 disks are blank, and one is needed: /dev/sdd (64 GiB, /dev/disk/azure/scsi1/lun0), \
         /dev/sdc (64 GiB, /dev/disk/azure/scsi1/lun1)"
    );
    assert!(hint.starts_with("choose one with --set data.disk=/dev/disk/azure/scsi1/lun0"), "{hint}");
    // Two links to one disk are one candidate, and without links of its own a blank disk is none.
    let one = auto(vec![blank("/dev/sdb"), lun(0, "/dev/sdd")]);
    assert_eq!(one, Decision::Format { path: "/dev/sdd".into(), size: 64 << 30, uuid: None });
}

#[test]
fn two_disks_of_ours_and_a_foreign_one_are_refused() {
    let (two, hint) = found(auto(vec![ours("/dev/sdb"), ours("/dev/sdc"), blank("/dev/sdd")]));
    assert!(two.starts_with("2 disks carry this appliance's data"), "{two}");
    assert!(hint.contains("--set data.disk=/dev/sdb"), "{hint}");
    let mut disk = holding("/dev/sdc", "gpt", "", "partition-table");
    (disk.parts, disk.serial) = (vec![part(1)], "6002248".into());
    let (foreign, hint) = found(auto(vec![system("/dev/sda"), disk]));
    assert_eq!(
        foreign,
        "no disk for the data: /dev/sdc (64 GiB, serial 6002248) holds a GPT partition table with \
         1 partition; nothing was written to it"
    );
    assert!(hint.contains("`wipefs -a /dev/sdc1 /dev/sdc; dd "), "{hint}");
    assert!(hint.contains("--set data.disk=none"), "{hint}");
}

#[test]
fn a_chosen_disk_is_held_to_the_same_proof() {
    let choose = |asked: &str, to: &str, disks: Vec<Disk>| {
        let seen = Seen { disks, chosen: Some(to.into()) };
        decide(&seen, &Choice::Device(asked.into()), AT, &[])
    };
    let sdc = "/dev/sdc";
    assert_eq!(
        choose("/dev/disk/azure/scsi1/lun3", sdc, vec![blank("/dev/sdb"), blank(sdc)]),
        Decision::Format { path: sdc.into(), size: 64 << 30, uuid: None }
    );
    assert_eq!(choose(sdc, sdc, vec![ours(sdc)]), Decision::Use { path: sdc.into(), uuid: UUID.into() });
    let (what, _) = found(choose(sdc, sdc, vec![holding(sdc, "xfs", "", "filesystem")]));
    assert!(what.contains("/dev/sdc (64 GiB) holds an xfs file system; nothing was written"), "{what}");
    let (what, hint) = found(choose("/dev/sda", "/dev/sda", vec![system("/dev/sda")]));
    assert!(what.contains("holds a GPT partition table with 1 partition, mounted at /"), "{what}");
    assert!(!hint.contains("wipefs"), "nobody should be told to wipe a mounted disk: {hint}");
    let (what, _) = found(choose("/dev/sda1", "/dev/sda1", vec![system("/dev/sda")]));
    assert_eq!(what, "data.disk = /dev/sda1 is a partition of /dev/sda, not a whole disk");
    let (what, _) = found(choose("/dev/sdz", "/dev/sdz", vec![blank(sdc)]));
    assert_eq!(what, "data.disk = /dev/sdz: there is no such disk");
}

#[test]
fn the_setting_takes_three_forms_and_no_other() {
    assert_eq!("auto".parse(), Ok(Choice::Auto));
    assert_eq!("none".parse(), Ok(Choice::None));
    assert_eq!("/dev/nvme1n1".parse(), Ok(Choice::Device("/dev/nvme1n1".into())));
    for bad in ["", "sdc", "/etc/passwd", "/dev/../etc/passwd", "/dev/sd c", "/dev/sdc\n", "/dev/$(x)"] {
        assert!(bad.parse::<Choice>().is_err(), "{bad:?}");
    }
}

/// Taken from real answers: util-linux 2.38, and the older way of writing sizes and flags.
#[test]
fn lsblks_answer_is_read_in_both_dialects() {
    let json = r#"{"blockdevices": [
      {"name":"sda","kname":"sda","path":"/dev/sda","maj:min":"8:0","type":"disk","size":32213303296,"ro":false,"model":"Virtual Disk    ","serial":"60022480","fstype":null,"label":null,"mountpoint":null,
        "children":[
          {"name":"sda1","kname":"sda1","path":"/dev/sda1","maj:min":"8:1","type":"part","size":32094797312,"ro":false,"model":null,"serial":null,"fstype":"ext4","label":"cloudimg","mountpoint":"/"}]},
      {"name":"sdb","kname":"sdb","path":"/dev/sdb","maj:min":"  8:16","type":"disk","size":"17179869184","ro":"0","model":"Virtual_Disk","serial":"60022481","fstype":null,"label":null,"mountpoint":null,
        "children":[
          {"name":"sdb1","kname":"sdb1","path":"/dev/sdb1","maj:min":"  8:17","type":"part","size":"17177772032","ro":"0","model":null,"serial":null,"fstype":"ntfs","label":"Temporary Storage","mountpoint":null}]},
      {"name":"sdc","kname":"sdc","path":"/dev/sdc","maj:min":"8:32","type":"disk","size":68719476736,"ro":"1","model":null,"serial":null,"fstype":null,"label":null,"mountpoint":null,
        "children":[
          {"name":"data-lv","kname":"dm-0","path":"/dev/mapper/data-lv","maj:min":"253:0","type":"lvm","size":1,"ro":false,"model":null,"serial":null,"fstype":null,"label":null,"mountpoint":null}]},
      {"name":"nvme1n1","kname":"nvme1n1","path":"/dev/nvme1n1","maj:min":"259:1","type":"disk","size":1,"ro":false,"model":"Microsoft NVMe Direct Disk v2","serial":null,"fstype":null,"label":null,"mountpoint":null}
    ]}"#;
    let mounts = "26 1 8:1 / / rw - ext4 /dev/root rw\n36 26 253:0 / /srv/my\\040data rw - xfs x rw\n";
    let links = Links {
        luns: vec![(0, "/dev/disk/azure/scsi1/lun0".into(), "sdc".into())],
        temporary: vec!["sdb".into()],
    };
    let disks = disks(json, mounts, &links).unwrap();
    let brief: Vec<_> = disks
        .iter()
        .map(|d| (d.path.as_str(), d.size, d.read_only, d.temporary, d.parts.len(), d.used.join(",")))
        .collect();
    assert_eq!(
        brief,
        [
            ("/dev/sdc", 68719476736, true, false, 0, "/srv/my data".into()),
            ("/dev/nvme1n1", 1, false, true, 0, String::new()),
            ("/dev/sda", 32213303296, false, false, 1, "/".into()),
            ("/dev/sdb", 17179869184, false, true, 1, String::new()),
        ]
    );
    assert_eq!((disks[2].model.as_str(), disks[2].serial.as_str()), ("Virtual Disk", "60022480"));
    assert_eq!(
        (&disks[0].holders[..], &disks[0].luns[..]),
        (&["dm-0".to_owned()][..], &[links.luns[0].1.clone()][..])
    );
}

#[test]
fn disks_are_listed_by_lun_and_then_as_a_person_counts() {
    let lun = |n: u32, to: &str| (n, format!("/dev/disk/azure/scsi1/lun{n}"), to.to_owned());
    let table: [(&[(u32, &str)], &str); 5] = [
        // A loop device in use elsewhere gives the first disk the larger name.
        (&[(1, "loop3"), (0, "loop10")], "loop10 loop3"),
        (&[(10, "sda"), (2, "sdb"), (0, "sdc")], "sdc sdb sda sdd"),
        (&[(0, "nvme0n10"), (1, "nvme0n2")], "nvme0n10 nvme0n2 nvme0n1"),
        (&[], "nvme0n1 nvme0n2 nvme0n10 nvme1n1 sda sdb sdz sdaa sdba vda vdb"),
        (&[], "dm-0 loop0 loop2 loop10 nvme1c10n1 sr0 xvda xvdaa zram1"),
    ];
    for (luns, wanted) in table {
        let links = Links { luns: luns.iter().map(|(n, to)| lun(*n, to)).collect(), temporary: vec![] };
        let mut found: Vec<&str> = wanted.split(' ').collect();
        for _ in 0..found.len() {
            found.rotate_left(1);
            let rows: Vec<_> = found
                .iter()
                .map(|n| serde_json::json!({"kname": n, "path": format!("/dev/{n}"), "size": 1, "ro": false}))
                .collect();
            let json = serde_json::json!({ "blockdevices": rows }).to_string();
            let listed = disks(&json, "", &links).unwrap();
            let listed: Vec<_> = listed.iter().map(|disk| name(&disk.path)).collect();
            assert_eq!(listed.join(" "), wanted);
        }
    }
}

#[test]
fn azures_links_are_followed_and_its_partitions_left_out() {
    let dir = tempfile::tempdir().unwrap();
    let host = Host::new(dir.path(), System);
    for (link, to) in [
        ("scsi1/lun10", "../../../sdd"),
        ("scsi1/lun2", "../../../sdc"),
        ("scsi1/lun2-part1", "../../../sdc1"),
        ("data/by-lun/2", "../../../../sdc"),
        ("resource", "../../sdb"),
        ("resource-part1", "../../sdb1"),
        ("local/by-index/1", "../../../../nvme1n1"),
    ] {
        host.link(&Path::new("/dev/disk/azure").join(link), Path::new(to)).unwrap();
    }
    let links = links(&host).unwrap();
    let luns: Vec<_> = links.luns.iter().map(|(lun, _, to)| (*lun, to.as_str())).collect();
    assert_eq!(luns, [(2, "sdc"), (2, "sdc"), (10, "sdd")]);
    assert_eq!(links.temporary, ["nvme1n1", "sdb"]);
    let lun = Choice::Device("/dev/disk/azure/scsi1/lun2".into());
    assert_eq!(chosen(&host, &lun).unwrap().as_deref(), Some("/dev/sdc"));
}

#[test]
fn a_new_uuid_is_a_version_four_one() {
    let (one, two) = (new_uuid().unwrap(), new_uuid().unwrap());
    assert_ne!(one, two);
    assert_eq!((one.len(), &one[14..15]), (36, "4"));
    assert!("89ab".contains(&one[19..20]), "{one}");
    assert_eq!(staked(&format!("{STAKE}{one}\n\0\0")), Some(one));
    assert_eq!(staked("something else"), None);
}

struct Deaf;

impl Exec for Deaf {
    fn exec(&self, _: &Cmd, _: &mut dyn FnMut(&str)) -> Result<Output> {
        Ok(Output::default())
    }
}

#[test]
fn a_link_that_does_not_come_is_an_error_with_a_way_out() {
    let dir = tempfile::tempdir().unwrap();
    let host = Host::new(dir.path(), Deaf);
    noticed(&host, UUID, Duration::ZERO).expect("without udev there is nothing to wait for");
    host.write(Path::new("/run/udev/control"), 0o600, b"").unwrap();
    let error = noticed(&host, UUID, Duration::ZERO).unwrap_err();
    assert!(error.to_string().contains("did not appear"), "{error}");
    assert!(error.downcast_ref::<Refusal>().unwrap().hint.contains("udevadm trigger"));
    host.link(Path::new(&by_uuid(UUID)), Path::new("../../sdc")).unwrap();
    noticed(&host, UUID, Duration::ZERO).unwrap();
}

#[test]
fn a_unit_is_named_as_systemd_would_name_it() {
    let host = Host::new("/", System);
    let table = [
        ("/mnt/echoes_data", "mnt-echoes_data"),
        ("/mnt//echoes-data/", "mnt-echoes\\x2ddata"),
        ("/", "-"),
        ("/.hidden/a.b:c", "\\x2ehidden-a.b:c"),
        ("/srv/é x", "srv-\\xc3\\xa9\\x20x"),
        ("/dev/disk/by-uuid/0f4c-8f0e", "dev-disk-by\\x2duuid-0f4c\\x2d8f0e"),
    ];
    for (path, wanted) in table {
        assert_eq!(escape(path), wanted);
        match host.run(&Cmd::new("systemd-escape", ["--path", path])) {
            Ok(theirs) => assert_eq!(theirs.trim_end(), wanted),
            Err(why) => eprintln!("SKIPPED: {path} not compared with systemd-escape: {why:#}"),
        }
    }
}

#[test]
fn the_mount_unit_is_one_that_systemd_accepts() {
    let mut tera = tera::Tera::default();
    let unit = include_str!("../../../templates/systemd/system/data.mount");
    tera.add_raw_template("data.mount", unit).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let host = Host::new("/", System);
    for udev in [true, false] {
        let mount = Mount::new(AT, UUID, udev);
        let text = tera.render("data.mount", &tera::Context::from_serialize(&mount).unwrap()).unwrap();
        assert_eq!(mount.unit(), "mnt-echoes_data.mount");
        assert_eq!(text.contains("Requires=systemd-fsck@dev-disk-by\\x2duuid-0f4c8f0e\\x2d"), udev, "{text}");
        assert_eq!(text.contains("What=/dev/disk/by-uuid/"), udev, "{text}");
        assert_eq!(mount.device_conf().is_some(), udev);
        let at = dir.path().join(mount.unit());
        host.write(&at, 0o644, text.as_bytes()).unwrap();
        let verify = Cmd::new("systemd-analyze", ["verify", &at.to_string_lossy()]);
        match host.ask(&verify) {
            Ok(out) => {
                let said: Vec<_> = out.stderr.lines().filter(|l| l.contains("mnt-echoes_data")).collect();
                assert_eq!(said, Vec::<&str>::new());
            }
            Err(why) => eprintln!("SKIPPED: the unit was not verified: {why:#}"),
        }
    }
}

// ── real devices ────────────────────────────────────────────────────────────────────────────────────────────

/// A loop device on a sparse file, for a test's lifetime. What is made on it has a UUID of its own: mkfs is given what it
/// needs in a directory of this machine's that is named after it.
struct Loop {
    host: Host,
    dev: String,
    size: u64,
    _dir: tempfile::TempDir,
}

impl Loop {
    fn new(mib: u64) -> Option<Self> {
        let host = Host::new("/", System);
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("disk").to_string_lossy().into_owned();
        host.run(&Cmd::new("truncate", ["-s", &format!("{mib}M"), &file])).unwrap();
        match host.run(&Cmd::new("losetup", ["--find", "--show", "--partscan", &file])) {
            Ok(dev) => Some(Self { host, dev: dev.trim().into(), size: mib * MIB, _dir: dir }),
            Err(why) => {
                eprintln!("SKIPPED: no loop device (root, and loop devices in this container?): {why:#}");
                None
            }
        }
    }

    /// In the shell, with $D for the device.
    fn sh(&self, script: &str) {
        self.host.run(&Cmd::new("sh", ["-ec", script]).env("D", &self.dev)).unwrap();
    }

    fn choice(&self) -> Choice {
        Choice::Device(self.dev.clone())
    }

    fn verdict(&self, noted: &[&str]) -> Verdict {
        let seen = look(&self.host, &self.choice()).unwrap();
        let noted: Vec<_> = noted.iter().map(|&n| n.to_owned()).collect();
        verdict(seen.disks.iter().find(|d| d.path == self.dev).unwrap(), AT, &noted)
    }

    /// A sum of all of it: CRC is quick, and nobody here forges one.
    fn sum(&self) -> String {
        self.host.run(&Cmd::new("cksum", [&self.dev])).unwrap()
    }

    /// Everything zero again.
    fn wipe(&self) {
        self.sh("fallocate --punch-hole -l $(blockdev --getsize64 $D) $D");
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = self.host.run(&Cmd::new("losetup", ["--detach", &self.dev]));
    }
}

#[test]
fn real_disks_are_told_apart_and_not_a_byte_of_them_changes() {
    let Some(disk) = Loop::new(320) else { return };
    let foreign = |what: &str| Verdict::Foreign { what: what.into() };
    let nonzero = "holds bytes that are not zero, without a signature that is known";
    let lone_last = "printf x | dd of=$D bs=1 seek=$(( $(blockdev --getsize64 $D) - 1 )) status=none";
    let gpt = "printf 'label: gpt\\n,100M\\n,100M\\n' | sfdisk -q $D; partx -u $D";
    let table = [
        ("true", "true", Verdict::Blank),
        ("mkfs.ext4 -q -L backup $D", "true", foreign("holds an ext4 file system labelled backup")),
        (
            "mkfs.ext4 -q -L echoes_data $D",
            "true",
            foreign(
                "holds an ext4 file system labelled echoes_data, but without the appliance's marker .echoes-appliance",
            ),
        ),
        ("mkfs.xfs -q $D", "true", foreign("holds an xfs file system")),
        ("mkswap -q $D", "true", foreign("holds swap space")),
        (gpt, "partx -d $D", foreign("holds a GPT partition table with 2 partitions")),
        (
            "printf 'label: dos\\n,100M\\n' | sfdisk -q $D; partx -u $D",
            "partx -d $D",
            foreign("holds an MBR partition table with 1 partition"),
        ),
        ("printf 'label: gpt\\n' | sfdisk -q $D", "true", foreign("holds a GPT partition table")),
        (
            "printf 'LUKS\\272\\276\\000\\002' | dd of=$D status=none",
            "true",
            foreign("holds a LUKS encrypted volume"),
        ),
        (
            "pvcreate -q $D >&2 && vgcreate -q echoes_test $D >&2",
            "true",
            foreign("holds an LVM physical volume (volume group echoes_test)"),
        ),
        ("head -c 4096 /dev/urandom | dd of=$D bs=4096 seek=100 status=none", "true", foreign(nonzero)),
        (lone_last, "true", foreign(nonzero)),
    ];
    for (make, undo, wanted) in table {
        disk.wipe();
        let tool = make.split(' ').find(|w| w.contains("mk") || w.contains("create") || w.contains("sfdisk"));
        if let Some(tool) = tool
            && !disk.host.ask(&Cmd::new("sh", ["-c", &format!("command -v {tool}")])).unwrap().ok()
        {
            eprintln!("SKIPPED: {tool} is not installed, so `{make}` was not tried");
            continue;
        }
        disk.sh(make);
        let before = disk.sum();
        assert_eq!(disk.verdict(&[]), wanted, "{make}");
        if wanted != Verdict::Blank {
            let error = format(&disk.host, &disk.dev, UUID, NOTICE).unwrap_err();
            assert!(error.downcast_ref::<Refusal>().is_some(), "{error:#}");
        }
        assert_eq!(disk.sum(), before, "{make}: something was written");
        disk.sh(undo);
    }
    let Some(small) = Loop::new(64) else { return };
    assert_eq!(small.verdict(&[]), foreign("is smaller than the 256 MiB that a data disk needs"));
}

#[test]
fn a_blank_disk_becomes_ours_once() {
    let Some(disk) = Loop::new(300) else { return };
    let uuid = new_uuid().unwrap();
    format(&disk.host, &disk.dev, &uuid, NOTICE).unwrap();
    let made = disk.sum();
    assert_eq!(disk.verdict(&[]), Verdict::Ours { uuid: uuid.clone() });
    format(&disk.host, &disk.dev, &uuid, NOTICE).expect("a second time changes nothing");
    let error = format(&disk.host, &disk.dev, UUID, NOTICE).unwrap_err();
    assert!(format!("{error:#}").contains("already holds the appliance's data"), "{error:#}");
    assert_eq!(disk.sum(), made);
    disk.sh("e2fsck -fn $D");
    assert!(!disk.host.exists(Path::new(&format!("/run/echoes-appliance/mkfs-{uuid}"))).unwrap());
}

#[test]
fn a_mounted_disk_is_ours_only_where_our_data_belong() {
    let Some(disk) = Loop::new(300) else { return };
    let uuid = new_uuid().unwrap();
    format(&disk.host, &disk.dev, &uuid, NOTICE).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path().to_string_lossy().into_owned();
    if let Err(why) = disk.host.run(&Cmd::new("mount", [&disk.dev, &at])) {
        eprintln!("SKIPPED: cannot mount here: {why:#}");
        return;
    }
    let seen = look(&disk.host, &disk.choice()).unwrap();
    let found = seen.disks.iter().find(|d| d.path == disk.dev).unwrap();
    let (here, there) = (verdict(found, &at, &[]), verdict(found, AT, &[]));
    let again = format(&disk.host, &disk.dev, &uuid, NOTICE);
    // Without its marker, and once mounted, it is no longer ours to make anew.
    disk.sh(&format!("rm {at}/{MARKER}; umount {at}"));
    assert_eq!(here, Verdict::Ours { uuid: uuid.clone() });
    let words = format!("holds an ext4 file system labelled echoes_data, mounted at {at}");
    assert_eq!(there, Verdict::Foreign { what: words });
    again.unwrap_err();
    assert!(matches!(disk.verdict(&[&uuid]), Verdict::Foreign { .. }));
}

/// mkfs stopped after any part of its writing, its first superblock last: what is left is recognised by the
/// stake and the note together, and finished under the same UUID.
#[test]
fn a_format_cut_short_anywhere_is_finished_by_the_next_run() {
    let Some(disk) = Loop::new(300) else { return };
    let (host, uuid) = (&disk.host, new_uuid().unwrap());
    stake(host, &disk.dev, disk.size, &uuid).unwrap();
    assert_eq!(disk.verdict(&[&uuid]), Verdict::Unfinished { uuid: uuid.clone() }, "the stake alone");
    make(host, &disk.dev, disk.size, &uuid).unwrap();
    let whole = disk._dir.path().join("whole").to_string_lossy().into_owned();
    disk.sh(&format!("cp --sparse=always $D {whole}"));
    for blocks in [1, 2, 3, 17, 64, 300, 5000, 33000, 76000] {
        disk.wipe();
        stake(host, &disk.dev, disk.size, &uuid).unwrap();
        disk.sh(&format!("dd if={whole} of=$D bs=4096 count={blocks} conv=sparse,notrunc status=none"));
        disk.sh("dd if=/dev/zero of=$D bs=1024 seek=1 count=1 conv=notrunc status=none");
        assert_eq!(disk.verdict(&[&uuid]), Verdict::Unfinished { uuid: uuid.clone() }, "{blocks} blocks");
        assert!(matches!(disk.verdict(&[]), Verdict::Foreign { .. }), "{blocks} blocks, and no note of it");
        let other = "11111111-2222-4333-8444-555555555555";
        format(host, &disk.dev, other, NOTICE).expect_err("another's half-made file system");
        format(host, &disk.dev, &uuid, NOTICE).unwrap();
        assert_eq!(disk.verdict(&[]), Verdict::Ours { uuid: uuid.clone() }, "{blocks} blocks");
    }
    // A power cut that kept the superblock and lost the marker.
    disk.sh(&format!("debugfs -w -R 'rm /{MARKER}' $D"));
    assert_eq!(disk.verdict(&[&uuid]), Verdict::Unfinished { uuid: uuid.clone() });
    assert!(matches!(disk.verdict(&[]), Verdict::Foreign { .. }));
    format(host, &disk.dev, &uuid, NOTICE).unwrap();
    assert_eq!(disk.verdict(&[]), Verdict::Ours { uuid: uuid.clone() });
}

/// Kills mkfs after so many thousandths of a second; otherwise this machine.
struct Killing(Arc<AtomicU32>);

impl Exec for Killing {
    fn exec(&self, cmd: &Cmd, say: &mut dyn FnMut(&str)) -> Result<Output> {
        let mut cmd = cmd.clone();
        if cmd.program == "mkfs.ext4" && self.0.load(Relaxed) > 0 {
            let after = format!("{:.3}", f64::from(self.0.load(Relaxed)) / 1000.0);
            cmd.args.splice(0..0, ["--signal=KILL".to_owned(), after, "mkfs.ext4".to_owned()]);
            cmd.program = "timeout".into();
        }
        System.exec(&cmd, say)
    }
}

#[test]
fn mkfs_killed_for_real_is_finished_by_the_next_run() {
    let Some(disk) = Loop::new(300) else { return };
    let after = Arc::new(AtomicU32::new(0));
    let host = Host::new("/", Killing(after.clone()));
    let mut cut = 0;
    for ms in [1, 2, 3, 5, 8, 12, 18, 25, 40] {
        disk.wipe();
        let uuid = new_uuid().unwrap();
        after.store(ms, Relaxed);
        cut += u32::from(format(&host, &disk.dev, &uuid, NOTICE).is_err());
        after.store(0, Relaxed);
        format(&host, &disk.dev, &uuid, NOTICE).unwrap_or_else(|e| panic!("killed after {ms} ms: {e:#}"));
        assert_eq!(disk.verdict(&[]), Verdict::Ours { uuid });
    }
    assert!(cut > 0, "mkfs was never in fact cut short");
}

#[test]
fn fuzz_disks_are_read_and_none_of_them_is_blank_by_words_alone() {
    let words = ["\"children\":[]", "\"size\":1", "\"ro\":0", "\"mountpoint\":\"/\"", "LABEL=", "8:16"];
    crate::fuzz::run("disks", &words, |bytes| {
        let text = String::from_utf8_lossy(bytes);
        let (json, table) = text.split_once("\n---\n").unwrap_or((&text, ""));
        let _ = (probed(&text), wiped(json), staked(&text), crate::host::mounts::all(&text));
        let seen = disks(
            json,
            table,
            &Links { luns: vec![(0, "/dev/l".into(), "sdb".into())], temporary: Vec::new() },
        )?;
        for disk in &seen {
            let _ = (shown(disk), disk.best_name(), passed_over(disk, true, "/mnt/echoes_data"));
            assert!(!matches!(verdict(disk, "/mnt/echoes_data", &[]), Verdict::Blank));
        }
        let _ = decide_auto(&seen, "/mnt/echoes_data", &[]);
        Ok(())
    });
}
