//! `gpu-run --provider azure` from its first word to its receipt: the program itself, before a simulated Azure that holds
//! each request to Microsoft's documents, on a machine that is this one behind a real sshd with the key that it was given
//! at its first start.

use crate::PROGRAM;
use kit::{
    here::Here,
    sshd::{Loop, Sshd, inside},
    story::{Story, T4},
};
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
    let here = Here::new(PROGRAM)?;
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
    let said = &plan.assert_code(0).stderr;
    assert!(said.contains('✓') && said.contains(T4) && said.contains("eastus"), "{said}");
    assert!(said.contains("before it costs $5.00"), "{said}");

    let unasked = story.gpu_run("unasked", &[]);
    unasked.assert_code(1).assert_stderr("it costs money, and there is nobody to ask\ntry:   -y");

    story.cloud.set_quota("lowPriorityCores", 0);
    let short = story.gpu_run("short", &["--spot", "always", "-y"]);
    let said = &short.assert_code(81).stderr;
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
fn the_doctor_rents_the_cheapest_machine_for_a_whole_run_and_leaves_nothing() {
    let Some(story) = story() else { return };
    let live = ["gpu", "doctor", "--live", "--provider", "azure"];
    let unasked = story.run(&live);
    unasked.assert_code(1).assert_stderr("there is nobody to ask");
    assert_eq!(story.cloud.bill().total(), 0);
    let out = story.run(&[&live[..], &["-y"]].concat());
    let rows = &out.assert_code(0).stdout;
    assert!(rows.contains("live.home") && rows.contains(" on Standard_B1s"), "{rows}");
    assert_eq!(story.cloud.left(), Vec::<String>::new(), "{}", story.cloud.story());
    assert!(story.cloud.bill().total() > 0, "{}", story.cloud.bill());

    story.cloud.set_quota("cores", 0);
    let out = story.run(&[&live[..], &["-y"]].concat());
    out.assert_code(3).assert_stdout("✗  live.rent  none of these can be had");
    story.cloud.assert_honest();
}

#[test]
fn what_had_no_room_at_home_is_kept_and_pulled_once_there_is_some() {
    let Some(story) = story() else { return };
    // Results stay away from a disk that is nearly full.
    let (holder, results) = (story.here.holder.id(), story.here.path("data/azure_results"));
    let results = results.to_str().unwrap();
    let mount = "mkdir -p \"$0\" && mount -t tmpfs -o size=1g none \"$0\"";
    inside(holder, mount, &[results]);
    let step = story.here.inside(&format!("{results}/big/out/step1.txt"));
    let out = story.gpu_run("big", &["-y"]);
    let said = &out.assert_code(7).stderr;
    assert!(said.contains("no room here for") && said.contains("gpu pull big"), "{said}");
    assert!(!step.exists() && story.here.starts() == 1);
    let costing = story.cloud.costing();
    assert!(matches!(&costing[..], [copy] if copy.contains("/snapshots/")), "{costing:?}");
    let before = story.cloud.bill().total();

    let unasked = story.run(&["gpu", "pull", "big"]);
    unasked.assert_code(1).assert_stderr("it costs money, and there is nobody to ask");
    inside(holder, "mount -o remount,size=8g \"$0\"", &[results]);
    let pulled = story.run(&["gpu", "pull", "big", "-y"]);
    let said = &pulled.stderr;
    assert_eq!(pulled.code, 0, "{said}{}", story.here.logs());
    assert!(said.contains("Standard_B1s") && said.contains("pulled: what was kept is home"), "{said}");
    assert!(!pulled.stdout.contains("trained on"), "what was told is not told again");
    assert_eq!(fs::read_to_string(&step).unwrap(), "loss 1");
    assert_eq!(story.here.starts(), 1, "the script was not begun again");
    assert_eq!(story.cloud.costing(), Vec::<String>::new(), "{}", story.cloud.story());
    assert!(story.cloud.bill().total() > before);
    let events = story.here.events("big");
    let last = ["returned", "pulling", "renting", "rented", "fetched", "forgotten", "returned"];
    assert_eq!(events[events.len() - last.len()..], last);

    let again = story.run(&["gpu", "pull", "big"]);
    again.assert_code(0).assert_stderr("everything of big is home");
    assert_eq!(story.run(&["gpu", "attach", "big"]).code, 7, "the run's own status");
    let receipt = story.run(&["gpu", "cost", "big", "--json"]).json();
    assert_eq!((&receipt["all_home"], &receipt["pulled"]), (&true.into(), &"home".into()), "{receipt}");
    assert_eq!(receipt["rentals"].as_array().unwrap().len(), 2, "{receipt}");
    story.cloud.assert_honest();
}

#[test]
fn data_are_found_on_a_clone_of_the_data_disk_and_it_goes_with_the_machine() {
    let Some(here) = Here::new(PROGRAM) else { return };
    let Some(sshd) = Sshd::new(&here, None) else { return };
    let Some(disk) = DataDisk::new(&here) else { return };
    *sshd.image.lock().unwrap() = Some(here.path("image"));
    let Some(story) = told(here, sshd) else { return };
    let plan = story.gpu_run("plan", &["--data", "ucf", "--dry-run"]);
    let said = &plan.stderr;
    assert!(said.contains("data: ucf, 0.0 GB, 1 files: copied, about 1 s at"), "{said}");

    let clone = ["--data", "ucf", "--data-by", "clone"];
    let plan = story.gpu_run("plan", &[&clone[..], &["--dry-run"]].concat());
    let said = &plan.assert_code(0).stderr;
    assert!(said.contains("1 files: cloned in eastus: a snapshot of "), "{said}");
    let frozen = story.gpu_run("plan", &[&clone[..], &["--print-spec"]].concat());
    let frozen = frozen.json();
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
    let said = &refused.assert_code(2).stderr;
    assert!(said.contains("there can be no clone of ") && said.contains("--data-by copy"), "{said}");
    assert_eq!(story.cloud.left(), Vec::<String>::new());
}
