//! `gpu-run --provider azure` from its first word to its receipt: the program itself, before a simulated Azure that holds
//! each request to Microsoft's documents, on a machine that is this one behind a real sshd with the key that it was given
//! at its first start.

// Tests look at files and processes directly.
#![allow(clippy::disallowed_methods, clippy::disallowed_types, clippy::print_stderr)]

#[path = "support/cloud.rs"]
mod cloud;
#[path = "support/gpu_sshd.rs"]
mod gpu_sshd;
#[path = "support/gpu_story.rs"]
mod gpu_story;
#[path = "support/here.rs"]
mod here;

use gpu_sshd::{Loop, Sshd, inside};
use gpu_story::{Story, T4, words};
use here::Here;
use std::{fs, path::PathBuf, process::Command, sync::Arc};

/// Headquarters' data on a disk of their own, as Azure attaches one; seen here as well as in the namespace of the story.
struct DataDisk {
    _device: Loop,
    holder: u32,
    at: PathBuf,
}

impl DataDisk {
    /// None, and said so, where it cannot be had.
    fn new(here: &Here) -> Option<Self> {
        let (image, at) = (here.path("image"), here.path("data"));
        // Results stay away from a disk that is nearly full. It takes no room until it is written to.
        fs::File::create(&image).unwrap().set_len(16 << 30).unwrap();
        let made = Command::new("mkfs.ext4").args(["-q", "-F"]).arg(&image).status();
        let Some(device) = made.is_ok_and(|made| made.success()).then(|| Loop::new(&image)).flatten() else {
            eprintln!("SKIPPED: a clone of the data disk: no disk can be made here");
            return None;
        };
        assert!(Command::new("mount").arg(&device.0).arg(&at).status().unwrap().success());
        let script = "mount \"$0\" \"$1\" && mkdir -p /dev/disk && mount -t tmpfs none /dev/disk \
            && mkdir -p /dev/disk/azure/scsi1 && ln -s \"$0\" /dev/disk/azure/scsi1/lun0 && mount -t tmpfs none /srv";
        inside(here.holder.id(), script, &[&device.0, at.to_str().unwrap()]);
        fs::create_dir(at.join("ucf")).unwrap();
        fs::write(at.join("ucf/clip"), "a clip").unwrap();
        Some(Self { _device: device, holder: here.holder.id(), at })
    }
}

impl Drop for DataDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(&self.at).status();
        // ssh keeps a connection, and with it the namespace, for a while.
        let holder = self.holder.to_string();
        let words = ["--mount", "--target", &holder, "umount", "--lazy", "/srv/echoes_data"];
        let _ = Command::new("nsenter").args(words).arg(&self.at).status();
        // Made above where no udev is; anybody else's is not empty.
        let _ = fs::remove_dir("/dev/disk");
    }
}

fn story() -> Option<Story> {
    let here = Here::new()?;
    let sshd = Sshd::new(&here, None)?;
    told(here, sshd)
}

fn told(here: Here, sshd: Arc<Sshd>) -> Option<Story> {
    let there = here.dir.path().display().to_string();
    Story::faster(here, sshd.port, sshd, &there)
}

#[test]
fn what_can_be_had_is_shown_and_nothing_is_rented_without_a_yes() {
    let Some(story) = story() else { return };
    let plan = story.gpu_run("plan", &["--dry-run", "--max-cost", "5"]);
    let said = words(&plan.stderr);
    assert_eq!(plan.status.code(), Some(0), "{said}");
    assert!(said.contains('✓') && said.contains(T4) && said.contains("eastus"), "{said}");
    assert!(said.contains("before it costs $5.00"), "{said}");

    let unasked = story.gpu_run("unasked", &[]);
    assert_eq!(unasked.status.code(), Some(1), "{}", words(&unasked.stderr));
    assert!(words(&unasked.stderr).contains("it costs money, and there is nobody to ask\ntry:   -y"));

    story.cloud.set_quota("lowPriorityCores", 0);
    let short = story.gpu_run("short", &["--spot", "always", "-y"]);
    let said = words(&short.stderr);
    assert_eq!(short.status.code(), Some(81), "{said}");
    assert!(said.contains('✗') && said.contains("ask for a limit of 4"), "{said}");
    assert_eq!(story.cloud.left(), Vec::<String>::new());
    story.cloud.assert_honest();
}

#[test]
fn a_script_runs_on_a_rented_machine_and_nothing_of_that_is_left() {
    let Some(story) = story() else { return };
    story.runs_to_its_receipt();
}

#[test]
fn data_are_found_on_a_clone_of_the_data_disk_and_it_goes_with_the_machine() {
    let Some(here) = Here::new() else { return };
    let Some(sshd) = Sshd::new(&here, None) else { return };
    let Some(disk) = DataDisk::new(&here) else { return };
    *sshd.image.lock().unwrap() = Some(here.path("image"));
    let Some(story) = told(here, sshd) else { return };
    let plan = story.gpu_run("plan", &["--data", "ucf", "--dry-run"]);
    let said = words(&plan.stderr);
    assert!(said.contains("data: ucf, 0.0 GB, 1 files: copied, about 1 s at"), "{said}");

    let clone = ["--data", "ucf", "--data-by", "clone"];
    let plan = story.gpu_run("plan", &[&clone[..], &["--dry-run"]].concat());
    let said = words(&plan.stderr);
    assert_eq!(plan.status.code(), Some(0), "{said}");
    assert!(said.contains("1 files: cloned in eastus: a snapshot of "), "{said}");
    let frozen = story.gpu_run("plan", &[&clone[..], &["--print-spec"]].concat());
    let frozen: serde_json::Value = serde_json::from_slice(&frozen.stdout).unwrap();
    assert!(frozen["original"]["disk"].as_str().unwrap().ends_with("/disks/echoes-hq-data"), "{frozen}");

    story.runs_to_its_receipt_with(&clone);
    let logs = story.here.logs();
    assert!(logs.contains("ucf is there, on a clone of the data disk: 1 files"), "{logs}");
    assert!(story.cloud.story().contains("/snapshots/"), "{}", story.cloud.story());
    drop(disk);
}

#[test]
fn a_clone_that_cannot_be_is_refused_with_the_reason_before_anything_is_rented() {
    let Some(story) = story() else { return };
    fs::create_dir(story.here.path("data/ucf")).unwrap();
    let refused = story.gpu_run("no", &["--data", "ucf", "--data-by", "clone", "-y"]);
    let said = words(&refused.stderr);
    assert_eq!(refused.status.code(), Some(2), "{said}");
    assert!(said.contains("there can be no clone of ") && said.contains("--data-by copy"), "{said}");
    assert_eq!(story.cloud.left(), Vec::<String>::new());
}
