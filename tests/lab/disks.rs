//! Data disks of every kind, through the real command: what is used, what is refused, and that a refusal writes
//! nothing.

use kit::{
    hq,
    lab::{Disk, Machine, Release},
};

/// A disk that is not ours to write to, made with `sh` where `$disk` is its device; and what install must say.
struct Foreign {
    name: &'static str,
    make: &'static str,
    says: &'static [&'static str],
}

const FOREIGN: [Foreign; 4] = [
    Foreign {
        name: "a file system",
        make: "mkfs.ext4 -q -L photos $disk",
        says: &["an ext4 file system labelled photos", "nothing was written to it", "--set data.disk=none"],
    },
    Foreign {
        name: "a partition table",
        make: "echo , | sfdisk -q -X gpt $disk",
        says: &["a GPT partition table", "nothing was written to it"],
    },
    Foreign {
        name: "LVM",
        make: "apt-get update -qq && apt-get install -qq -y lvm2 >/dev/null && pvcreate -q -y $disk && vgcreate -q archive $disk",
        says: &["an LVM physical volume (volume group archive)", "nothing was written to it"],
    },
    Foreign {
        name: "bytes of nobody's",
        make: "printf 'keep me' | dd of=$disk bs=1 seek=1000 conv=notrunc status=none",
        says: &["bytes that are not zero", "nothing was written to it"],
    },
];

#[test]
fn a_disk_that_is_not_proven_blank_is_named_and_left_alone() {
    if !hq::can_boot("foreign disks") {
        return;
    }
    let mut machine = hq::prepared(Release::Bookworm, vec![Disk::blank(300).unwrap()]);
    for Foreign { name, make, says } in FOREIGN {
        machine.ok(&format!("disk={}; {make} && sync", device(&machine, 0)));
        machine.reboot().unwrap();
        let before = machine.disk(0).unwrap().sha256().unwrap();
        for command in ["install --service docs", "plan --service docs"] {
            let said = hq::run(&machine, 1, command);
            for words in says {
                assert!(said.contains(words), "{command} with {name}:\n{said}");
            }
        }
        assert_eq!(machine.disk(0).unwrap().sha256().unwrap(), before, "{name} was written to");
        machine.stop().unwrap();
        drop(machine.detach_disk(0).unwrap());
        machine.attach_disk(0, Disk::blank(300).unwrap()).unwrap();
        machine.start().unwrap();
    }
    assert_ne!(machine.exec("dpkg -s nginx").code, 0, "a refusal comes before everything else");

    machine.stop().unwrap();
    machine.attach_disk(1, Disk::blank(300).unwrap()).unwrap();
    machine.start().unwrap();
    let before = machine.disk(0).unwrap().sha256().unwrap();
    let said = hq::run(&machine, 1, "install --service docs");
    assert!(said.contains("2 disks are blank, and one is needed"), "{said}");
    assert!(said.contains("--set data.disk=/dev/disk/azure/scsi1/lun0"), "{said}");
    // As it says, with the other one.
    hq::run(&machine, 0, "install --service docs --set 'data.disk=\"/dev/disk/azure/scsi1/lun1\"'");
    assert_eq!(machine.disk(0).unwrap().sha256().unwrap(), before, "the one that was not chosen");
    assert_eq!(mounted(&machine), device(&machine, 1));
    good(&machine);
}

#[test]
fn with_no_disk_the_data_go_to_the_os_disk_and_are_never_hidden() {
    if !hq::can_boot("no disk") {
        return;
    }
    let mut machine = hq::prepared(Release::Bookworm, vec![]);
    let said = hq::run(&machine, 0, "install --service docs");
    assert!(said.contains("no data disk") && said.contains("on the OS disk, and are lost with it"), "{said}");
    machine.put(b"kept", "/mnt/echoes_data/ucf101/a.avi", 0o644).unwrap();

    machine.stop().unwrap();
    machine.attach_disk(0, Disk::blank(300).unwrap()).unwrap();
    machine.start().unwrap();
    let before = machine.disk(0).unwrap().sha256().unwrap();
    let said = hq::run(&machine, 1, "install --service docs");
    assert!(said.contains("/mnt/echoes_data/ucf101/a.avi is on the OS disk"), "{said}");
    assert_eq!(machine.disk(0).unwrap().sha256().unwrap(), before);
    assert_eq!(machine.ok("cat /mnt/echoes_data/ucf101/a.avi"), "kept");
    let said = hq::run(&machine, 3, "validate");
    assert!(said.contains("no disk is mounted at /mnt/echoes_data"), "{said}");

    // Both ways out that it names.
    hq::run(&machine, 0, "install --service docs --set data.disk=none");
    good(&machine);
    machine.ok("mv /mnt/echoes_data/ucf101/a.avi /root");
    hq::run(&machine, 0, "install --service docs --set data.disk=auto");
    assert_eq!(mounted(&machine), device(&machine, 0));
    good(&machine);
}

#[test]
fn a_disk_may_be_missing_at_boot_and_may_move_to_another_machine() {
    if !hq::can_boot("a disk that moves") {
        return;
    }
    let mut machine = with_disk(Disk::blank(1024).unwrap());
    hq::run(&machine, 0, "install --set data.disk=auto");
    assert_eq!(mounted(&machine), device(&machine, 0));
    hq::mlflow(&machine, "experiments/create", r#"{"name": "travels"}"#);
    machine.put(b"a run", "/mnt/echoes_data/tfruns/one/notes", 0o644).unwrap();
    good(&machine);

    machine.stop().unwrap();
    let disk = machine.detach_disk(0).unwrap();
    machine.start().unwrap();
    assert_eq!(
        machine.ok("systemctl is-active ssh nginx docs dashboard").lines().filter(|l| *l == "active").count(),
        4
    );
    let said = hq::run(&machine, 3, "status");
    assert!(said.contains("NO data disk is mounted"), "{said}");
    let active = machine.exec("systemctl is-active mlflow tensorboard").stdout;
    assert!(!active.lines().any(|state| state == "active"), "they have nowhere to be: {active}");
    let said = hq::run(&machine, 1, "install");
    assert!(said.contains("mnt-echoes_data.mount) is not attached"), "{said}");
    let bad = hq::bad_answers(&machine).unwrap();
    assert!(bad.iter().any(|row| row.contains("mnt-echoes_data.mount) is not attached")), "{bad:#?}");
    machine.exec("systemctl start mlflow tensorboard; sleep 3");
    assert_eq!(
        machine.ok("find /mnt/echoes_data -mindepth 1"),
        "",
        "nothing is written where the disk should be"
    );
    // What has no part in the data goes on.
    machine.ok("rm -r /var/lib/echoes-appliance/tls/docs.localhost && systemctl start echoes-renew.service");

    machine.stop().unwrap();
    machine.attach_disk(0, disk).unwrap();
    machine.start().unwrap();
    good(&machine);
    assert!(experiments(&machine).contains("travels"));

    // To another machine, where the service has another number.
    machine.stop().unwrap();
    let disk = machine.detach_disk(0).unwrap();
    drop(machine);
    let other = with_disk(disk);
    other.ok("usermod -u 4321 mlflow && groupmod -g 4321 mlflow && groupmod -g 4322 echoes");
    let said = hq::run(&other, 0, "install --set data.disk=auto");
    assert!(!said.contains("file system on"), "never formatted again:\n{said}");
    assert!(experiments(&other).contains("travels"));
    assert_eq!(other.ok("cat /mnt/echoes_data/tfruns/one/notes"), "a run");
    assert_eq!(other.ok("stat -c %u /mnt/echoes_data/mlruns/mlflow.db"), "4321\n");
    good(&other);
}

/// The headquarters from the cache, with a disk that it does not use yet, and nothing on its OS disk that would
/// be hidden by one.
fn with_disk(disk: Disk) -> Machine {
    let mut machine = hq::installed(Release::Bookworm);
    machine.stop().unwrap();
    machine.attach_disk(0, disk).unwrap();
    machine.start().unwrap();
    machine.ok("systemctl stop mlflow tensorboard && rm -r /mnt/echoes_data/*/");
    machine
}

/// A disk's device, the same in the machine and outside.
fn device(machine: &Machine, lun: u32) -> String {
    machine.disk(lun).unwrap().device().display().to_string()
}

/// What is mounted for the data.
fn mounted(machine: &Machine) -> String {
    machine.ok("findmnt -n -o SOURCE /mnt/echoes_data").trim().to_owned()
}

#[track_caller]
fn good(machine: &Machine) {
    let bad = hq::bad_answers(machine).unwrap();
    assert!(bad.is_empty(), "{bad:#?}");
}

fn experiments(machine: &Machine) -> String {
    hq::mlflow(machine, "experiments/search", r#"{"max_results": 10}"#)
}
