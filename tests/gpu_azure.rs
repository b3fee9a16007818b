//! `gpu-run --provider azure` from its first word to its receipt: the program itself, before a simulated Azure that holds
//! each request to Microsoft's documents, on a machine that is this one behind a real sshd with the key that it was given
//! at its first start.

// Tests look at files and processes directly.
#![allow(clippy::disallowed_methods, clippy::disallowed_types, clippy::print_stderr)]

#[path = "support/cloud.rs"]
mod cloud;
#[path = "support/gpu_story.rs"]
mod gpu_story;
#[path = "support/here.rs"]
mod here;

use cloud::{Metal, Options, Order, Pace, Takes};
use gpu_story::{Story, T4, words};
use here::Here;
use std::{
    fs,
    net::{Ipv4Addr, TcpListener, TcpStream},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Child, Command},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

/// Machines that are this one: what Azure hands down to them is given to an sshd in the namespace of the story.
struct Sshd {
    program: &'static str,
    holder: u32,
    dir: PathBuf,
    port: u16,
    /// The machine that is on.
    on: Mutex<Option<(String, Child)>>,
    /// What a machine's clone is a copy of, where headquarters has a data disk.
    image: Mutex<Option<PathBuf>>,
}

/// An image as a disk, given back when dropped.
struct Loop(String);

impl Loop {
    fn new(image: &Path) -> Option<Self> {
        let made = Command::new("losetup").args(["--find", "--show"]).arg(image).output().ok()?;
        made.status.success().then(|| Self(words(&made.stdout).trim().to_owned()))
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = Command::new("losetup").args(["--detach", &self.0]).status();
    }
}

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

/// Done in a namespace.
fn inside(holder: u32, script: &str, words: &[&str]) {
    let holder = holder.to_string();
    let shell = ["--mount", "--target", &holder, "sh", "-c", script];
    assert!(Command::new("nsenter").args(shell).args(words).status().unwrap().success(), "{script}");
}

impl Sshd {
    /// None, and said so, where it cannot be had.
    fn new(here: &Here) -> Option<Self> {
        let Some(program) =
            ["/usr/sbin/sshd", "/usr/local/sbin/sshd"].into_iter().find(|at| Path::new(at).exists())
        else {
            eprintln!("SKIPPED: experiments at Azure: there is no sshd here");
            return None;
        };
        // Azure makes the admin; here he is another name of root's, in this namespace alone.
        let (passwd, holder) = (here.path("passwd"), here.holder.id());
        let people = fs::read_to_string("/etc/passwd").unwrap();
        fs::write(&passwd, format!("{people}echoes:x:0:0::/home/echoes:/bin/sh\n")).unwrap();
        let script =
            "mount -t tmpfs none /home && mkdir -p /home/echoes /run/sshd && mount --bind \"$0\" /etc/passwd";
        let made = Command::new("nsenter")
            .args(["--mount", "--target", &holder.to_string(), "sh", "-c", script])
            .arg(&passwd)
            .status();
        assert!(made.unwrap().success());
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        Some(Self {
            program,
            holder,
            dir: here.dir.path().into(),
            port,
            on: Mutex::default(),
            image: Mutex::default(),
        })
    }

    fn start(&self, order: &Order) -> Child {
        let at = |name: &str| self.dir.join(name).display().to_string();
        let data = String::from_utf8(order.custom_data.clone().unwrap()).unwrap();
        let key = data.lines().find_map(|line| line.trim().strip_prefix("ed25519_private: ")).unwrap();
        fs::write(at("host"), serde_json::from_str::<String>(key).unwrap()).unwrap();
        fs::set_permissions(at("host"), fs::Permissions::from_mode(0o600)).unwrap();
        fs::write(at("authorized"), order.public_keys.join("\n") + "\n").unwrap();
        assert_eq!(order.admin, "echoes");
        self.clone_disk(&data);
        let config = format!(
            "Port {}\nListenAddress 127.0.0.1\nHostKey {}\nAuthorizedKeysFile {}\nStrictModes no\nUsePAM no\n\
             PermitRootLogin yes\nPidFile none\n",
            self.port,
            at("host"),
            at("authorized"),
        );
        fs::write(at("sshd"), config).unwrap();
        let holder = self.holder.to_string();
        let words = ["--mount", "--target", &holder, self.program, "-D", "-f", &at("sshd")];
        Command::new("nsenter").args(words).spawn().unwrap()
    }

    /// Where what was on a machine is, for a snapshot of it.
    fn copy(&self, snapshot: &str) -> String {
        self.dir.join(snapshot.rsplit('/').next().unwrap()).display().to_string()
    }

    /// A copy of the data disk's blocks, mounted as the machine is told to.
    fn clone_disk(&self, data: &str) {
        let Some(image) = self.image.lock().unwrap().clone() else { return };
        let said = |key: &str| data.lines().find_map(|line| line.trim().strip_prefix(key)).unwrap();
        let copy = self.dir.join("clone");
        let copied = Command::new("cp").arg("--sparse=always").arg(image).arg(&copy).status();
        assert!(copied.unwrap().success());
        let device = Loop::new(&copy).unwrap();
        let uuid =
            Command::new("blkid").args(["-p", "-o", "value", "-s", "UUID", &device.0]).output().unwrap();
        assert_eq!(said("What=/dev/disk/by-uuid/"), words(&uuid.stdout).trim());
        let script = "mkdir -p \"$1\" && mount -t ext4 -o \"$2\" \"$0\" \"$1\"";
        inside(self.holder, script, &[&device.0, said("Where="), said("Options=")]);
        // In use for as long as it is mounted, and no longer.
    }
}

impl Metal for Sshd {
    fn boot(&self, order: &Order) -> Result<Option<Ipv4Addr>, String> {
        if let Some(copy) = &order.copy {
            inside(self.holder, "cp -a \"$0\"/. /home/echoes", &[&self.copy(copy)]);
        }
        let child = self.start(order);
        *self.on.lock().unwrap() = Some((order.id.clone(), child));
        let since = Instant::now();
        while TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)).is_err() {
            if since.elapsed() > Duration::from_secs(10) {
                return Err("sshd does not come up".into());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(Some(Ipv4Addr::LOCALHOST))
    }

    fn keep(&self, _id: &str, copy: &str) {
        inside(self.holder, "rm -rf \"$0\" && cp -a /home/echoes \"$0\"", &[&self.copy(copy)]);
    }

    fn remove(&self, id: &str) {
        self.kill(id);
        inside(self.holder, "find /home/echoes -mindepth 1 -delete", &[]);
    }

    fn kill(&self, id: &str) {
        let mut on = self.on.lock().unwrap();
        if let Some((_, mut child)) = on.take_if(|(machine, _)| machine == id) {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    fn addresses(&self) -> bool {
        true
    }
}

/// Twenty times as fast as the world: what takes Azure minutes takes seconds here.
fn story() -> Option<Story> {
    let here = Here::new()?;
    let sshd = Sshd::new(&here)?;
    told(here, sshd)
}

fn told(here: Here, sshd: Sshd) -> Option<Story> {
    let sshd = Arc::new(sshd);
    let (port, takes) = (sshd.port, Takes { retry_after: Some(1), ..Takes::default() });
    let there = here.dir.path().display().to_string();
    let options = Options { pace: Pace::Running(20.0), takes, metal: sshd, ..Options::default() };
    Story::new(here, port, &there, options)
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
fn the_doctor_rents_the_cheapest_machine_for_a_whole_run_and_leaves_nothing() {
    let Some(story) = story() else { return };
    let live = ["gpu", "doctor", "--live", "--provider", "azure"];
    let unasked = story.run(&live);
    assert_eq!(unasked.status.code(), Some(1), "{}", words(&unasked.stderr));
    assert!(words(&unasked.stderr).contains("there is nobody to ask"));
    assert_eq!(story.cloud.bill().total(), 0);
    let out = story.run(&[&live[..], &["-y"]].concat());
    let (said, rows) = (words(&out.stderr), words(&out.stdout));
    assert_eq!(out.status.code(), Some(0), "{said}{rows}");
    assert!(rows.contains("live.home") && rows.contains(" on Standard_B1s"), "{rows}");
    assert_eq!(story.cloud.left(), Vec::<String>::new(), "{}", story.cloud.story());
    assert!(story.cloud.bill().total() > 0, "{}", story.cloud.bill());

    story.cloud.set_quota("cores", 0);
    let out = story.run(&[&live[..], &["-y"]].concat());
    let rows = words(&out.stdout);
    assert_eq!(out.status.code(), Some(3), "{}{rows}", words(&out.stderr));
    assert!(rows.contains("✗  live.rent  none of these can be had"), "{rows}");
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
    let said = words(&out.stderr);
    assert_eq!(out.status.code(), Some(7), "{said}");
    assert!(said.contains("no room here for") && said.contains("gpu pull big"), "{said}");
    assert!(!step.exists() && story.here.starts() == 1);
    let costing = story.cloud.costing();
    assert!(matches!(&costing[..], [copy] if copy.contains("/snapshots/")), "{costing:?}");
    let before = story.cloud.bill().total();

    let unasked = story.run(&["gpu", "pull", "big"]);
    assert_eq!(unasked.status.code(), Some(1), "{}", words(&unasked.stderr));
    assert!(words(&unasked.stderr).contains("it costs money, and there is nobody to ask"));
    inside(holder, "mount -o remount,size=8g \"$0\"", &[results]);
    let pulled = story.run(&["gpu", "pull", "big", "-y"]);
    let said = words(&pulled.stderr);
    assert_eq!(pulled.status.code(), Some(0), "{said}{}", story.here.logs());
    assert!(said.contains("Standard_B1s") && said.contains("pulled: what was kept is home"), "{said}");
    assert!(!words(&pulled.stdout).contains("trained on"), "what was told is not told again");
    assert_eq!(fs::read_to_string(&step).unwrap(), "loss 1");
    assert_eq!(story.here.starts(), 1, "the script was not begun again");
    assert_eq!(story.cloud.costing(), Vec::<String>::new(), "{}", story.cloud.story());
    assert!(story.cloud.bill().total() > before);
    let events = story.here.events("big");
    let last = ["returned", "pulling", "renting", "rented", "fetched", "forgotten", "returned"];
    assert_eq!(events[events.len() - last.len()..], last);

    let again = story.run(&["gpu", "pull", "big"]);
    assert_eq!(again.status.code(), Some(0), "{}", words(&again.stderr));
    assert!(words(&again.stderr).contains("everything of big is home"));
    assert_eq!(story.run(&["gpu", "attach", "big"]).status.code(), Some(7), "the run's own status");
    let receipt = story.run(&["gpu", "cost", "big", "--json"]);
    let receipt: serde_json::Value = serde_json::from_slice(&receipt.stdout).unwrap();
    assert_eq!((&receipt["all_home"], &receipt["pulled"]), (&true.into(), &"home".into()), "{receipt}");
    assert_eq!(receipt["rentals"].as_array().unwrap().len(), 2, "{receipt}");
    story.cloud.assert_honest();
}

#[test]
fn data_are_found_on_a_clone_of_the_data_disk_and_it_goes_with_the_machine() {
    let Some(here) = Here::new() else { return };
    let Some(sshd) = Sshd::new(&here) else { return };
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
