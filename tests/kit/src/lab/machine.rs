//! One machine: made, booted, spoken to, rebooted, cut off, frozen, and gone without a trace when dropped.
//!
//! # Traps: where it differs from a virtual machine
//!
//! * `/sys` and `/proc/sys` are read-only, so there is no udev and `sysctl` changes nothing. Our stand-in
//!   keeps /dev/disk/{azure,by-uuid,by-label} and hides the host's disks from `lsblk`; `udevadm settle`
//!   answers at once. A disk's TYPE is `loop`, where Azure's is `disk`.
//! * systemd makes no device units, so a `.mount` whose disk is missing fails at once, and the machine ends
//!   `degraded`, instead of waiting for `x-systemd.device-timeout`.
//! * `power_cut` kills every process, but the kernel is the host's: what was written and not synced is still
//!   there afterwards.
//! * Units with `ConditionVirtualization=!container` are skipped: time synchronisation is one, and the clock
//!   is the host's. `systemd-detect-virt` says `systemd-nspawn`.
//! * Memory and task limits work only where the host has those controllers in cgroup2; elsewhere
//!   `MemoryCurrent` is `[not set]`. Memory and processors are the host's.
//! * The root file system is an overlay, as large as the host's disk: `df /` shows that.
//! * No modules can be loaded; device mapper (LVM, crypt) is the host's. Make such disks on the host, through
//!   `Disk::device`.
//! * Machines that boot from one layer have one machine-id and one set of ssh host keys.

use crate::process::CompletedProcess;

use super::{
    Disk, LAB, Layer, Manifest, Release, base, manifest, mounts, network, output,
    room::{self, Kind, Room},
};
use anyhow::{Context as _, Result, bail, ensure};
use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::Write as _,
    net::{Ipv4Addr, Ipv6Addr},
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

/// A machine's launcher, run by `sh`.
const BOOT: &str = include_str!("boot.sh");

/// A boot takes a second or two; on a host with every core busy, ten times that.
const PATIENCE: Duration = Duration::from_secs(90);

#[derive(Debug)]
pub struct Machine {
    name: String,
    number: u8,
    dir: PathBuf,
    release: Release,
    /// The outer shell, while the machine is on.
    launcher: Option<Child>,
    /// None for a machine that somebody else made.
    room: Option<Room>,
    // After the room: what uses them has ended by then.
    disks: BTreeMap<u32, Disk>,
    layer: Option<Layer>,
}

/// What a machine is made with.
#[derive(Debug, Default)]
pub struct Options {
    /// The host name; chosen for you if there is none.
    pub name: Option<String>,
    /// Data disks, at LUN 0, 1, and so on.
    pub disks: Vec<Disk>,
    /// Boot on top of this instead of the bare base tree.
    pub layer: Option<Layer>,
}

impl Machine {
    /// A bare machine, running.
    pub fn boot(release: Release) -> Result<Self> {
        Self::with(release, Options::default())
    }

    /// A machine with what it needs, running.
    pub fn with(release: Release, options: Options) -> Result<Self> {
        let mut machine = Self::make(release, options)?;
        machine.start()?;
        Ok(machine)
    }

    /// A machine with what it needs, still off.
    pub fn make(release: Release, options: Options) -> Result<Self> {
        if let Some(layer) = &options.layer {
            ensure!(layer.release() == release, "that layer is of {}, not {release}", layer.release());
        }
        release.base()?;
        let (room, name, number) = take_number(options.name)?;
        let dir = room.dir().to_owned();
        let disks = (0..).zip(options.disks).collect();
        let layer = options.layer;
        let machine = Self { name, number, dir, release, launcher: None, room: Some(room), disks, layer };
        for sub in ["upper", "work", "root"] {
            fs::create_dir(machine.dir.join(sub))?;
        }
        fs::write(machine.dir.join("release"), release.name())?;
        machine.mount()?;
        let joined = {
            let _quiet = room::gate()?;
            network::join(&machine.name, number)
        };
        joined.with_context(|| format!("putting {} on the network", machine.name))?;
        Ok(machine)
    }

    /// A machine that another process made and kept: to speak to, not to start.
    pub fn find(name: &str) -> Result<Self> {
        let dir = Kind::Machine.dir().join(name);
        let read = |file: &str| {
            fs::read_to_string(dir.join(file)).with_context(|| format!("there is no machine {name}"))
        };
        Ok(Self {
            name: name.to_owned(),
            number: read("number")?.parse()?,
            release: read("release")?.parse()?,
            launcher: None,
            room: None,
            disks: BTreeMap::new(),
            layer: None,
            dir,
        })
    }

    /// The names of all machines, whoever made them.
    pub fn list() -> Result<Vec<String>> {
        let name = |dir: &PathBuf| dir.file_name().unwrap_or_default().to_string_lossy().into_owned();
        Ok(room::rooms(Kind::Machine)?.iter().map(name).collect())
    }

    /// The machine, its disks and its layers outlive this process, until `end`.
    pub fn keep(self) -> Result<()> {
        let room = self.room.as_ref().context("only its maker can keep a machine")?;
        let disks: Vec<_> = self.disks.values().map(|disk| disk.dir().display().to_string()).collect();
        fs::write(self.dir.join("disks"), disks.join("\n"))?;
        self.disks.values().try_for_each(Disk::keep)?;
        self.layer.as_ref().map_or(Ok(()), Layer::keep)?;
        room.keep()
    }

    /// End a kept machine, with its disks.
    pub fn end(name: &str) -> Result<()> {
        let dir = Kind::Machine.dir().join(name);
        ensure!(dir.exists(), "there is no machine {name}");
        ensure!(dir.join("kept").exists(), "{name} belongs to a running test");
        let disks = fs::read_to_string(dir.join("disks")).unwrap_or_default();
        let _quiet = room::gate()?;
        Kind::Machine.clear(&dir)?;
        disks.lines().try_for_each(|disk| Kind::Disk.clear(Path::new(disk)))
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn release(&self) -> Release {
        self.release
    }

    /// Where the host, and other machines, reach it.
    pub fn ip(&self) -> Ipv4Addr {
        network::v4(self.number)
    }

    /// As `ip`, in v6.
    pub fn ip6(&self) -> Ipv6Addr {
        network::v6(self.number)
    }

    /// The root file system as the host sees it, also while the machine is off. Without what is mounted in
    /// the machine: /run, /dev, data disks. Follow no absolute link in it: that would lead to the host.
    pub fn root(&self) -> PathBuf {
        self.dir.join("root")
    }

    /// Everything on the root file system now.
    pub fn manifest(&self) -> Result<Manifest> {
        manifest::read(&self.root())
    }

    /// What the machine has printed on its console.
    pub fn console(&self) -> String {
        let bytes = fs::read(self.dir.join("console")).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Switch on, and wait until everything that starts at boot has. Ends well also when some unit failed:
    /// see `state`.
    pub fn start(&mut self) -> Result<()> {
        ensure!(self.room.is_some(), "{} was made by another process: only that can start it", self.name);
        ensure!(self.launcher.is_none(), "{} is on", self.name);
        base::settle(&self.root(), &self.name)?;
        let group = self.group();
        for dir in ["launch", "boot"] {
            fs::create_dir_all(cgroup2()?.join(&group).join(dir))?;
        }
        let console = File::options().create(true).append(true).open(self.dir.join("console"))?;
        let mut launcher = Command::new("unshare");
        launcher.args(["--mount", "--propagation", "private", "sh", "-c", BOOT, "lab", LAB]);
        launcher.arg(Path::new("/").join(&group)).arg(self.root());
        launcher.args(["--quiet", "--boot", "--register=no", "--keep-unit", "--console=pipe"]);
        launcher.args(["--link-journal=no", "--resolv-conf=off", "--timezone=off"]);
        launcher.arg(format!("--machine={}", self.name));
        launcher.arg(format!("--directory={}", self.root().display()));
        launcher.arg(format!("--network-namespace-path=/run/netns/{}", network::namespace(&self.name)));
        // As on a real machine, where systemd makes the loopback of a unit's own network.
        launcher.arg("--capability=CAP_NET_ADMIN");
        let mut table = String::new();
        for (lun, disk) in &self.disks {
            let name = disk.device().file_name().unwrap_or_default().to_string_lossy();
            table += &format!("{lun} {name}\n");
            launcher.args(disk.nodes()?.iter().map(|node| format!("--bind={}", node.display())));
        }
        fs::write(self.root().join("usr/lib/echoes-lab/disks"), table)?;
        launcher.stdin(Stdio::null()).stdout(console.try_clone()?).stderr(console);
        // A group of its own: what the terminal sends to the test is not for the machine.
        self.launcher = Some(launcher.process_group(0).spawn().context("running unshare")?);
        self.wait_running(None)
    }

    /// `running`, or `degraded` when some unit failed, or `off`.
    pub fn state(&self) -> String {
        let out = self.exec("systemctl is-system-running");
        if out.code == 255 { "off".into() } else { out.stdout.trim().to_owned() }
    }

    /// Run a shell command as root and wait for it. It ends with 255 when the machine is off.
    pub fn exec(&self, sh: &str) -> CompletedProcess {
        self.exec_fed(sh, b"")
    }

    /// As `exec`, with something on standard input.
    pub fn exec_fed(&self, sh: &str, stdin: &[u8]) -> CompletedProcess {
        let off = |e: anyhow::Error| CompletedProcess {
            code: 255,
            stdout: String::new(),
            stderr: format!("{e:#}"),
        };
        let ran = || -> Result<CompletedProcess> {
            let mut command = self.command(sh)?;
            let command = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
            let mut child = command.spawn()?;
            let mut pipe = child.stdin.take().context("it was asked for")?;
            let out = thread::scope(|threads| {
                threads.spawn(move || {
                    // Who does not want its input may close it: the exit status is what counts.
                    let _unwanted = pipe.write_all(stdin);
                });
                child.wait_with_output()
            })?;
            Ok(out.into())
        };
        ran().unwrap_or_else(off)
    }

    /// A shell command in the machine, to be run as the caller likes: with a terminal, in the background. As
    /// root, in all of the machine's namespaces, with the environment of a fresh login.
    pub fn command(&self, sh: &str) -> Result<Command> {
        let leader = self.leader().with_context(|| format!("{} is off", self.name))?;
        let group = cgroup2()?.join(self.group()).join("boot/payload/lab.scope");
        // In the machine's own part of the tree, where systemd can see it; not below a unit of systemd's, so
        // no restart of anything ends it.
        let _exists = fs::create_dir(&group);
        let mut command = Command::new("sh");
        command.args(["-c", "echo 0 >\"$1\" || exit 255; shift; exec nsenter \"$@\"", "lab"]);
        command.arg(group.join("cgroup.procs"));
        command.args([
            &format!("--target={leader}"),
            "--all",
            "/bin/sh",
            "-c",
            "cd /root && eval \"$0\"",
            sh,
        ]);
        command.env_clear().envs(base::variables());
        command.env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
        command.envs([("HOME", "/root"), ("USER", "root"), ("LOGNAME", "root"), ("SHELL", "/bin/bash")]);
        command.env("LANG", "C");
        Ok(command)
    }

    /// As `exec`, for what must succeed: standard output. Otherwise panics with all there is to know.
    #[track_caller]
    pub fn ok(&self, sh: &str) -> String {
        let out = self.exec(sh);
        if out.code != 0 {
            let journal = self.exec("journalctl -n 30 --no-pager -o short-precise").stdout;
            panic!("on {} ({}): `{sh}` {out}\n--- journal\n{journal}", self.name, self.release);
        }
        out.stdout
    }

    /// Copy a file of the host's into the machine, replacing in one step.
    pub fn push(&self, local: &Path, remote: &str, mode: u32) -> Result<()> {
        self.put(&fs::read(local).with_context(|| format!("reading {}", local.display()))?, remote, mode)
    }

    /// Make a file in the machine, replacing in one step.
    pub fn put(&self, bytes: &[u8], remote: &str, mode: u32) -> Result<()> {
        let q = quote(remote);
        let sh = format!(
            "umask 077 && mkdir -p -m 755 \"$(dirname {q})\" && cat >{q}.new && chmod {mode:o} {q}.new && mv -T {q}.new {q}"
        );
        let out = self.exec_fed(&sh, bytes);
        ensure!(out.code == 0, "writing {remote} on {}: {}", self.name, out.stderr.trim());
        Ok(())
    }

    /// Copy a file of the machine's to the host.
    pub fn pull(&self, remote: &str, local: &Path) -> Result<()> {
        let to = File::create(local).with_context(|| format!("writing {}", local.display()))?;
        let mut command = self.command(&format!("cat {}", quote(remote)))?;
        let out = command.stdout(to).stderr(Stdio::piped()).spawn()?.wait_with_output()?;
        let said = String::from_utf8_lossy(&out.stderr);
        ensure!(out.status.success(), "reading {remote} on {}: {}", self.name, said.trim());
        Ok(())
    }

    /// As a person would: `systemctl reboot`, and wait until it is up again, with the same disks.
    pub fn reboot(&mut self) -> Result<()> {
        self.reboot_by("systemctl reboot")
    }

    /// As `reboot`, where `sh` is what makes it reboot.
    pub fn reboot_by(&mut self, sh: &str) -> Result<()> {
        let before = self.leader().with_context(|| format!("{} is off", self.name))?;
        // It may end with its own machine, so its status says nothing; the new leader does.
        let out = self.exec(sh);
        self.wait_running(Some(before)).with_context(|| format!("after `{sh}`: {out:?}"))
    }

    /// Switch off in order, as `systemctl poweroff` does.
    pub fn stop(&mut self) -> Result<()> {
        self.exec("systemctl poweroff");
        let end = Instant::now() + PATIENCE;
        while self.leader().is_some() {
            ensure!(Instant::now() < end, "{} does not switch off:\n{}", self.name, tail(&self.console()));
            thread::sleep(Duration::from_millis(20));
        }
        // What is left is our own outer shell.
        self.power_cut()
    }

    /// Every process dies now. `start` boots it again.
    pub fn power_cut(&mut self) -> Result<()> {
        kill(&self.group())?;
        if let Some(mut launcher) = self.launcher.take() {
            launcher.wait()?;
        }
        Ok(())
    }

    /// Freeze what this machine has become, for others to boot from. It is off afterwards, and goes on from
    /// there itself when started.
    pub fn snapshot(&mut self) -> Result<Layer> {
        self.stop()?;
        self.unmount()?;
        let layer = Layer::freeze(self.release, self.layer.clone(), &self.dir.join("upper"))?;
        self.layer = Some(layer.clone());
        fs::remove_dir_all(self.dir.join("work"))?;
        for sub in ["upper", "work"] {
            fs::create_dir(self.dir.join(sub))?;
        }
        self.mount()?;
        Ok(layer)
    }

    /// End, leaving what it added to its base at `to`.
    pub(super) fn give_upper(mut self, to: &Path) -> Result<()> {
        self.stop()?;
        self.unmount()?;
        Ok(fs::rename(self.dir.join("upper"), to)?)
    }

    /// Take a data disk out of a machine that is off.
    pub fn detach_disk(&mut self, lun: u32) -> Result<Disk> {
        ensure!(self.launcher.is_none(), "{} is on", self.name);
        self.disks.remove(&lun).with_context(|| format!("{} has no disk at LUN {lun}", self.name))
    }

    /// Put a data disk into a machine that is off.
    pub fn attach_disk(&mut self, lun: u32, disk: Disk) -> Result<()> {
        ensure!(self.launcher.is_none(), "{} is on", self.name);
        ensure!(!self.disks.contains_key(&lun), "{} has a disk at LUN {lun}", self.name);
        self.disks.insert(lun, disk);
        Ok(())
    }

    pub fn disk(&self, lun: u32) -> Option<&Disk> {
        self.disks.get(&lun)
    }

    /// Below the root of cgroup2.
    fn group(&self) -> PathBuf {
        group(&self.name)
    }

    fn mount(&self) -> Result<()> {
        let base = self.release.base()?;
        let mut lower = self.layer.as_ref().map(Layer::trees).unwrap_or_default();
        lower.push(&base);
        let lower: Vec<_> = lower.iter().map(|tree| tree.display().to_string()).collect();
        // With redirect_dir a directory of the base can be renamed, as on any disk.
        let options = format!(
            "lowerdir={},upperdir={dir}/upper,workdir={dir}/work,redirect_dir=on,metacopy=off",
            lower.join(":"),
            dir = self.dir.display()
        );
        let mut mount = Command::new("mount");
        mount.args(["-t", "overlay", "overlay", "-o", &options]).arg(self.root());
        output(&mut mount)
            .map(drop)
            .with_context(|| format!("is {LAB} on an overlay or a network file system?"))
    }

    fn unmount(&self) -> Result<()> {
        output(Command::new("umount").arg(self.root())).map(drop)
    }

    /// The host's number of the machine's process 1, while there is one.
    fn leader(&self) -> Option<u32> {
        let payload = cgroup2().ok()?.join(self.group()).join("boot/payload");
        // In the first moments it has not yet moved into its scope.
        ["init.scope/cgroup.procs", "cgroup.procs"].into_iter().find_map(|file| {
            let pids = fs::read_to_string(payload.join(file)).ok()?;
            pids.lines().filter_map(|pid| pid.parse().ok()).find(|pid| is_leader(*pid))
        })
    }

    /// Until a leader other than `before` has finished booting.
    fn wait_running(&mut self, before: Option<u32>) -> Result<()> {
        let end = Instant::now() + PATIENCE;
        loop {
            if self.leader().is_some_and(|now| Some(now) != before) {
                match self.exec("systemctl is-system-running").stdout.trim() {
                    "running" | "degraded" => return Ok(()),
                    "maintenance" => bail!("{} is in emergency mode:\n{}", self.name, tail(&self.console())),
                    _ => {}
                }
            }
            if let Some(launcher) = &mut self.launcher
                && let Some(status) = launcher.try_wait()?
            {
                self.launcher = None;
                bail!("{} went off ({status}):\n{}", self.name, tail(&self.console()));
            }
            if Instant::now() > end {
                let jobs = self.exec("systemctl list-jobs; systemctl --failed").stdout;
                bail!("{} has not booted in {PATIENCE:?}:\n{jobs}\n{}", self.name, tail(&self.console()));
            }
            thread::sleep(Duration::from_millis(25));
        }
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let kept = self.dir.join("kept").exists();
        if self.room.is_some() && !kept {
            // The room would do it too; here the launcher is also waited for.
            if let Err(e) = self.power_cut() {
                eprintln!("lab: ending {}: {e:#}", self.name);
            }
        }
    }
}

/// A room for a machine, with a free number and name.
fn take_number(name: Option<String>) -> Result<(Room, String, u8)> {
    let _quiet = room::gate()?;
    room::sweep()?;
    let read = |dir: &PathBuf| fs::read_to_string(dir.join("number")).ok()?.parse().ok();
    let taken: Vec<u8> = room::rooms(Kind::Machine)?.iter().filter_map(read).collect();
    let number = (2..=254).find(|n| !taken.contains(n)).context("253 machines are enough")?;
    let name = name.unwrap_or_else(|| format!("lab{number}"));
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    ensure!(!name.is_empty() && name.len() < 60 && name.chars().all(plain), "{name:?} is not a host name");
    let room = Room::make_within(Kind::Machine, &name)?;
    match fs::write(room.dir().join("number"), number.to_string()) {
        Ok(()) => Ok((room, name, number)),
        // Dropping the room would wait for the gate that we hold. A sweep will find it.
        Err(e) => {
            std::mem::forget(room);
            Err(e).context("noting a machine's number")
        }
    }
}

/// End what is left of a machine, but for its directory. The caller holds the gate.
pub(super) fn clear(dir: &Path) -> Result<()> {
    let name = dir.file_name().unwrap_or_default().to_string_lossy();
    kill(&group(&name))?;
    let root = dir.join("root");
    if mounts("overlay")?.contains(&root) {
        output(Command::new("umount").arg(&root))?;
    }
    let number = fs::read_to_string(dir.join("number")).ok().and_then(|n| n.parse().ok());
    network::leave(&name, number)
}

fn group(name: &str) -> PathBuf {
    Path::new("echoes-lab").join(name)
}

/// Kill everything in the cgroup, wait until it is empty, and remove it. None there is as good.
fn kill(group: &Path) -> Result<()> {
    let top = cgroup2()?.join(group);
    if !top.exists() {
        return Ok(());
    }
    let end = Instant::now() + Duration::from_secs(20);
    fs::write(top.join("cgroup.kill"), "1").context("killing a cgroup needs Linux 5.14")?;
    while fs::read_to_string(top.join("cgroup.events"))?.contains("populated 1") {
        ensure!(Instant::now() < end, "processes in {} do not die", top.display());
        thread::sleep(Duration::from_millis(5));
    }
    remove(&top).with_context(|| format!("removing {}", top.display()))
}

/// A cgroup can only be removed empty, and the files in it cannot be removed at all.
fn remove(dir: &Path) -> Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove(&entry.path())?;
        }
    }
    Ok(fs::remove_dir(dir)?)
}

/// Where the host has cgroup2 mounted.
pub(super) fn cgroup2() -> Result<PathBuf> {
    mounts("cgroup2")?.into_iter().next().context("cgroup2 is not mounted")
}

/// Process 1 of a namespace just below ours, and already systemd rather than nspawn on its way there.
fn is_leader(pid: u32) -> bool {
    let read = |file: &str| fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap_or_default();
    let status = read("status");
    let ids = status.lines().find_map(|line| line.strip_prefix("NSpid:")).unwrap_or_default();
    ids.split_whitespace().skip(1).collect::<Vec<_>>() == ["1"] && read("comm").trim() == "systemd"
}

fn quote(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

fn tail(text: &str) -> String {
    let lines: Vec<_> = text.lines().collect();
    lines[lines.len().saturating_sub(40)..].join("\n")
}
