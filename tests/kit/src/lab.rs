//! The lab: throw-away Debian machines with a real systemd, booted on this host in about a second.
//!
//! A machine is a cached base tree, an overlay of its own, a network address the host can reach, loop devices
//! for data disks, and `systemd-nspawn --boot` around it. Dropping a `Machine` leaves nothing; what a killed
//! run left is swept when the next one starts. The lab never changes the host beyond the bridge and the
//! nftables table named `echoes-lab`, `ip_forward`, two rules in Docker's own chain for others where Docker
//! runs, and its own directory.
//!
//! It is a container, so some things differ from a virtual machine: see the traps in `lab/machine.rs`.

mod base;
mod disk;
mod layer;
mod machine;
mod manifest;
mod network;
mod room;

pub use disk::Disk;
pub use layer::Layer;
pub use machine::{Machine, Options};
pub use manifest::{Entry, Manifest, differences};

use anyhow::{Context as _, Result, bail};
use nix::sys::{
    resource::{UsageWho, getrusage},
    time::{TimeVal, TimeValLike as _},
};
use std::{
    fmt,
    fs::File,
    io::Write as _,
    net::Ipv4Addr,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    str::FromStr,
    time::Instant,
};

/// Everything the lab keeps is below here: base trees, layers, machines, disks. With no machine running it
/// may be deleted whole.
const LAB: &str = "/var/cache/echoes-lab";

/// What can be booted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Release {
    /// Debian 11: systemd 247, glibc 2.31. The stand-in for Ubuntu 20.04.
    Bullseye,
    /// Debian 12.
    Bookworm,
    /// Debian 13.
    Trixie,
}

impl Release {
    pub const ALL: [Self; 3] = [Self::Bullseye, Self::Bookworm, Self::Trixie];

    pub fn name(self) -> &'static str {
        match self {
            Self::Bullseye => "bullseye",
            Self::Bookworm => "bookworm",
            Self::Trixie => "trixie",
        }
    }

    /// Build the base tree unless it is there; says where it is. Minutes the first time, nothing after.
    pub fn base(self) -> Result<PathBuf> {
        base::tree(self)
    }
}

impl fmt::Display for Release {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Release {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        Ok(match text.trim_start_matches("debian") {
            "11" | "bullseye" => Self::Bullseye,
            "12" | "bookworm" => Self::Bookworm,
            "13" | "trixie" => Self::Trixie,
            _ => bail!("{text} is not a release of the lab: 11, 12 or 13"),
        })
    }
}

/// Whether this host can boot machines at all.
pub struct Lab;

impl Lab {
    /// What is missing, in words for the person who would have to install it.
    pub fn available() -> Result<(), String> {
        let mut missing = Vec::new();
        if run("id", ["-u"]).ok().as_deref() != Some("0\n") {
            missing.push("root: booting machines needs it, try sudo".to_owned());
        }
        let tools = [
            ("mmdebstrap", "mmdebstrap"),
            ("systemd-nspawn", "systemd-container"),
            ("nft", "nftables"),
            ("ip", "iproute2"),
            ("losetup", "mount"),
            ("unshare", "util-linux"),
            ("nsenter", "util-linux"),
        ];
        let path = std::env::var("PATH").unwrap_or_default();
        for (tool, package) in tools {
            if !path.split(':').any(|dir| Path::new(dir).join(tool).exists()) {
                missing.push(format!("{tool}: apt install {package}"));
            }
        }
        let kernel = [
            ("overlay file systems", Path::new("/sys/module/overlay"), "overlay"),
            ("loop devices", Path::new("/dev/loop-control"), "loop"),
        ];
        for (what, sign, module) in kernel {
            let listed =
                || std::fs::read_to_string("/proc/filesystems").is_ok_and(|all| all.contains(module));
            if !sign.exists() && !listed() && run("modprobe", [module]).is_err() {
                missing.push(format!("{what}: this kernel has none (modprobe {module} failed)"));
            }
        }
        if machine::cgroup2().is_err() {
            missing.push("cgroup2: no such file system is mounted".to_owned());
        }
        if missing.is_empty() { Ok(()) } else { Err(missing.join("\n")) }
    }
}

/// Where machines find this host: there as long as one of them is.
pub fn host() -> Ipv4Addr {
    network::v4(1)
}

/// End every machine that somebody kept, and clear what dead owners left.
pub fn end_all() -> Result<()> {
    for dir in room::rooms(room::Kind::Machine)? {
        if dir.join("kept").exists() {
            Machine::end(&dir.file_name().unwrap_or_default().to_string_lossy())?;
        }
    }
    let _quiet = room::gate()?;
    room::sweep()
}

/// Run to the end; anything but success is an error with what it said.
fn run<'a>(program: &str, args: impl IntoIterator<Item = &'a str>) -> Result<String> {
    output(Command::new(program).args(args))
}

/// As `run`, for a command already put together.
fn output(command: &mut Command) -> Result<String> {
    let doing = format!("{command:?}");
    let out = command.stdin(Stdio::null()).output().with_context(|| format!("running {doing}"))?;
    if !out.status.success() {
        let said = String::from_utf8_lossy(if out.stderr.is_empty() { &out.stdout } else { &out.stderr });
        bail!("{doing}: {}: {}", out.status, said.trim());
    }
    Ok(String::from_utf8_lossy(&out.stdout).into_owned())
}

/// Makes something that later runs find made; `make test` tells what that took, where it keeps accounts.
fn accounted<T>(what: &str, make: impl FnOnce() -> Result<T>) -> Result<T> {
    let cpu = || -> Result<f64> {
        let usage = getrusage(UsageWho::RUSAGE_CHILDREN)?;
        let seconds = |time: TimeVal| time.num_microseconds() as f64 / 1e6;
        Ok(seconds(usage.user_time()) + seconds(usage.system_time()))
    };
    let (since, before) = (Instant::now(), cpu()?);
    let made = make()?;
    if let Some(accounts) = std::env::var_os("TIERS_ACCOUNTS") {
        let mut file = File::options().create(true).append(true).open(accounts)?;
        let line = format!("part\t{what}\t{:.1}\t{:.1}\n", since.elapsed().as_secs_f64(), cpu()? - before);
        file.write_all(line.as_bytes())?;
    }
    Ok(made)
}

/// Short and steady: names a directory after what is in it.
fn hash(text: &str) -> String {
    use sha2::{Digest as _, Sha256};
    Sha256::digest(text.as_bytes()).iter().take(6).map(|byte| format!("{byte:02x}")).collect()
}

/// Where file systems are mounted, of one type.
fn mounts(kind: &str) -> Result<Vec<PathBuf>> {
    let table = std::fs::read_to_string("/proc/self/mounts").context("reading the mount table")?;
    let rows = table.lines().map(|line| line.split(' ').collect::<Vec<_>>());
    Ok(rows.filter(|row| row.get(2) == Some(&kind)).map(|row| PathBuf::from(row[1])).collect())
}
