//! What shuts a script in on the headquarters itself, where its person may be allowed to become root without a word, as the
//! first user of every cloud's image is. The script has that person's rights over files, and no way to more: neither a
//! setuid program, nor a process of that person's outside, nor a daemon that does as root what it is told, nor the token of
//! the machine's identity.
//!
//! Nothing that training does is refused: memory that is written and executed, a pool of processes, a GPU, the network.

#[cfg(test)]
pub mod exposure;
mod filter;

use super::{site::Site, start::SYSTEMD};
use crate::{
    host::{Cmd, Host},
    metadata,
};
use anyhow::{Context as _, Result, ensure};
use nix::{
    errno::Errno,
    sched::{CloneFlags, unshare},
    sys::prctl::set_no_new_privs,
    unistd::{AccessFlags, access, getegid, geteuid},
};
use std::{
    io::Write as _,
    path::{Path, PathBuf},
};

/// What a unit of a sandbox has besides what is the same for all.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sandbox {
    /// Directories that may be written to by their own permissions, besides the agent's home.
    pub writable: Vec<PathBuf>,
}

/// Doors to a process that is not shut in: a person's own systemd, bus, screen and key agents; and those who do as root
/// what a member of their group says. Only what is there is shut.
const DOORS: [&str; 16] = [
    "/run/user",
    "/run/dbus",
    "/run/screen",
    "/run/tmux",
    "/run/docker.sock",
    "/run/docker",
    "/run/containerd",
    "/run/podman",
    "/run/crio",
    "/run/libvirt",
    "/run/snapd.socket",
    "/run/snapd-snap.socket",
    "/run/incus",
    "/var/lib/incus/unix.socket",
    "/var/lib/lxd/unix.socket",
    "/var/snap/lxd/common/lxd/unix.socket",
];

/// As `InaccessiblePaths=` has them: those that are there.
pub fn doors() -> String {
    DOORS.map(|path| format!("-{path}")).join(" ")
}

/// Setuid root: it makes the devices that CUDA looks for and that no driver's package makes at boot.
const NVIDIA: &str = "/usr/bin/nvidia-modprobe";

/// Root's script is root's, and still no more than files and other users' names.
const ROOTS: &str = "CAP_CHOWN CAP_DAC_OVERRIDE CAP_DAC_READ_SEARCH CAP_FOWNER CAP_FSETID CAP_IPC_LOCK CAP_KILL \
                     CAP_NET_BIND_SERVICE CAP_SETGID CAP_SETUID CAP_SYS_NICE CAP_SYS_RESOURCE";

/// The same for every script, in the words of systemd 247.
///
/// A script takes what memory there is and is ended before it takes all, so that this machine's services go on; half of all
/// the threads that there may be is more than data loaders need, and leaves a fork bomb's neighbours some. Not `RemoveIPC=`:
/// it would take away the shared memory of the same person's other runs. Not
/// `RestrictSUIDSGID=`: it refuses `cp -r` of whatever is on the data disk, where every folder is setgid (`filter` has
/// what counts). Not `MemoryDenyWriteExecute=`: compilers at run
/// time are what frameworks are made of. Every character device, as each GPU's is one by its own permissions; no block
/// device, which to the group `disk` is every file. Errors rather than a killed process: libraries try and go on.
const LINES: &str = "\
NoNewPrivileges=yes
AmbientCapabilities=
PrivateTmp=yes
PrivateMounts=yes
ProtectSystem=strict
ProtectHome=read-only
ProtectControlGroups=yes
ProtectKernelLogs=yes
ProtectKernelModules=yes
ProtectKernelTunables=yes
ProtectClock=yes
ProtectHostname=yes
DevicePolicy=closed
DeviceAllow=char-* rwm
LockPersonality=yes
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_NETLINK
SystemCallArchitectures=native
SystemCallFilter=~@clock @cpu-emulation @module @mount @obsolete @raw-io @reboot @swap
SystemCallErrorNumber=EPERM
MemoryMax=90%
TasksMax=50%
";

/// What does not heed `XDG_CACHE_HOME`, or has a name of its own that its users know.
const CACHES: [(&str, &str); 17] = [
    ("TORCH_HOME", "torch"),
    ("HF_HOME", "huggingface"),
    ("KERAS_HOME", "keras"),
    ("KAGGLEHUB_CACHE", "kagglehub"),
    ("TFDS_DATA_DIR", "tensorflow_datasets"),
    ("NLTK_DATA", "nltk_data"),
    ("SCIKIT_LEARN_DATA", "scikit_learn_data"),
    ("GENSIM_DATA_DIR", "gensim-data"),
    ("DGL_DOWNLOAD_DIR", "dgl"),
    ("MPLCONFIGDIR", "matplotlib"),
    ("WANDB_DATA_DIR", "wandb"),
    ("NUMBA_CACHE_DIR", "numba"),
    ("TRITON_CACHE_DIR", "triton"),
    ("CUDA_CACHE_PATH", "cuda"),
    ("UV_PYTHON_INSTALL_DIR", "python"),
    ("CONDA_PKGS_DIRS", "conda-packages"),
    ("MAMBA_ROOT_PREFIX", "mamba"),
];

impl Sandbox {
    /// The words by which the agent's verbs know it.
    pub fn words(&self) -> Vec<String> {
        let writable = |path: &PathBuf| ["--writable".to_owned(), path.display().to_string()];
        ["--sandbox".to_owned()].into_iter().chain(self.writable.iter().flat_map(writable)).collect()
    }

    /// The lines of a unit that runs the script, on the machine as it is.
    pub fn unit(&self, host: &Host, site: &Site, user: Option<&str>) -> Result<String> {
        let nvidia = host.exists(Path::new(NVIDIA))?;
        self.lines(site, user, &resolv_conf(host), nvidia)
    }

    /// Pure.
    pub(super) fn lines(
        &self,
        site: &Site,
        user: Option<&str>,
        resolv_conf: &str,
        nvidia: bool,
    ) -> Result<String> {
        let mut lines = LINES.to_owned();
        let mut line = |name: &str, value: &str| lines.push_str(&format!("{name}={value}\n"));
        for path in [&site.home].into_iter().chain(&self.writable) {
            // One that is not there is nobody's to write to.
            line("ReadWritePaths", &format!("-{}", plain(path)?));
        }
        line("InaccessiblePaths", &doors());
        line("IPAddressDeny", &metadata::closable(resolv_conf).join(" "));
        if nvidia {
            line("ExecStartPre", &format!("-+{NVIDIA} -c 0 -u"));
        }
        if user.is_some() {
            line("CapabilityBoundingSet", "");
            line("ProtectProc", "invisible");
            // By this, no process of the same person's outside may be traced or written to, such as a shell of theirs.
            line("PrivateUsers", "yes");
        } else {
            line("CapabilityBoundingSet", ROOTS);
        }
        Ok(lines)
    }
}

/// The command in a control group of its own, where the machine's identity is not to be had, and with no more memory than a
/// script: what makes an environment runs what packages bring. As it is, where no systemd makes groups.
pub fn apart(host: &Host, cmd: Cmd) -> Result<Cmd> {
    if !host.exists(Path::new(SYSTEMD))? || !geteuid().is_root() {
        return Ok(cmd);
    }
    Ok(scope(&resolv_conf(host), cmd))
}

/// Pure.
fn scope(resolv_conf: &str, cmd: Cmd) -> Cmd {
    let deny = format!("IPAddressDeny={}", metadata::closable(resolv_conf).join(" "));
    let own = LINES.lines().filter(|line| line.starts_with("MemoryMax=") || line.starts_with("TasksMax="));
    let properties = own.chain([deny.as_str()]).flat_map(|line| ["-p".to_owned(), line.to_owned()]);
    let first =
        ["--scope", "--quiet", "--collect", "--description=What makes an environment"].map(str::to_owned);
    let args = first.into_iter().chain(properties).chain(["--".to_owned(), cmd.program]).chain(cmd.args);
    Cmd { args: args.collect(), program: "systemd-run".into(), ..cmd }
}

/// Where it cannot be read, names are not looked up by it.
fn resolv_conf(host: &Host) -> String {
    host.read_text(Path::new(metadata::RESOLV_CONF)).ok().flatten().unwrap_or_default()
}

/// From here on neither this process nor what it starts becomes more than its user. Where it is a person's, no process of
/// theirs outside can be traced or written to either, where the kernel lets people have namespaces of users. True: this
/// process is in one, and may do with its user's files there what root may, such as read what is shut, until it begins anew.
pub fn enter(host: &Host) -> Result<bool> {
    set_no_new_privs().context("giving up setuid programs")?;
    filter::apply().context("giving up the making of setuid files")?;
    let (uid, gid) = (geteuid(), getegid());
    if uid.is_root() || unshare(CloneFlags::CLONE_NEWUSER).is_err() {
        return Ok(false);
    }
    for (file, text) in [
        ("setgroups", "deny".to_owned()),
        ("gid_map", format!("{gid} {gid} 1")),
        ("uid_map", format!("{uid} {uid} 1")),
    ] {
        let doing = || format!("writing /proc/self/{file}");
        host.append(&Path::new("/proc/self").join(file))?.write_all(text.as_bytes()).with_context(doing)?;
    }
    Ok(true)
}

/// Where programs keep what they fetch and compile, by the variables that say so, once a person's home cannot be written
/// to: in what this person's runs share. None where it can, or where there is none.
pub fn caches(site: &Site, home: &Path) -> Vec<(&'static str, String)> {
    if access(home, AccessFlags::W_OK) != Err(Errno::EROFS) {
        return Vec::new();
    }
    caches_in(&site.shared("cache"), home)
}

/// Pure.
fn caches_in(cache: &Path, home: &Path) -> Vec<(&'static str, String)> {
    let below = |(name, dir): (&'static str, &str)| (name, cache.join(dir).display().to_string());
    let mut all: Vec<_> = CACHES.into_iter().map(below).collect();
    all.push(("XDG_CACHE_HOME", cache.display().to_string()));
    // Who has logged in at Hugging Face still has.
    all.push(("HF_TOKEN_PATH", home.join(".cache/huggingface/token").display().to_string()));
    all
}

/// As systemd reads it: nothing else can be slipped in.
fn plain(path: &Path) -> Result<&str> {
    let text = path.to_str().context("a path is no UTF-8")?;
    let is_plain =
        text.starts_with('/') && text.chars().all(|c| c.is_ascii_alphanumeric() || "._-/".contains(c));
    ensure!(is_plain, "{text} cannot be written into a unit");
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gpu::spec::RunId;

    fn site() -> Site {
        Site { home: "/var/lib/h/ana".into(), run: RunId::try_from("r1".to_owned()).unwrap() }
    }

    fn lines(user: Option<&str>) -> String {
        Sandbox { writable: vec!["/mnt/data".into()] }.lines(&site(), user, "", true).unwrap()
    }

    #[test]
    fn a_person_s_script_has_neither_more_rights_nor_doors_and_training_has_what_it_needs() {
        let text = lines(Some("ana"));
        for line in [
            "NoNewPrivileges=yes",
            "CapabilityBoundingSet=",
            "PrivateUsers=yes",
            "ReadWritePaths=-/var/lib/h/ana",
            "ReadWritePaths=-/mnt/data",
            "ProtectHome=read-only",
            "ExecStartPre=-+/usr/bin/nvidia-modprobe -c 0 -u",
            "DeviceAllow=char-* rwm",
        ] {
            assert!(text.lines().any(|has| has == line), "{line}: {text}");
        }
        let has = |name: &str, word: &str| {
            text.lines().any(|line| line.starts_with(name) && line.split([' ', '=']).any(|has| has == word))
        };
        assert!(has("IPAddressDeny", "169.254.169.254") && has("IPAddressDeny", "fd00:ec2::254"));
        assert!(has("InaccessiblePaths", "-/run/user") && has("InaccessiblePaths", "-/run/docker.sock"));
        for stops in ["MemoryDenyWriteExecute", "PrivateDevices", "PrivateNetwork", "RemoveIPC"] {
            assert!(!text.contains(stops), "{stops} stops training: {text}");
        }
        let root = lines(None);
        assert!(
            !root.contains("PrivateUsers") && root.contains("CapabilityBoundingSet=CAP_CHOWN "),
            "{root}"
        );
        assert!(!root.contains("CAP_SYS_ADMIN") && !root.contains("CAP_SYS_PTRACE"), "{root}");
    }

    #[test]
    fn nothing_can_be_slipped_into_a_sandbox() {
        for bad in ["/a b", "/a\nUser=root", "a", "/a%i", "/a:/b"] {
            let sandbox = Sandbox { writable: vec![bad.into()] };
            assert!(sandbox.lines(&site(), None, "", false).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn what_is_fetched_is_kept_where_it_can_be_written_once_a_home_cannot() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(caches(&site(), dir.path()), Vec::new(), "a home that can be written to is used");
        assert_eq!(caches(&site(), &dir.path().join("missing")), Vec::new());
        let all = caches_in(Path::new("/c"), Path::new("/home/ana"));
        let value = |name: &str| all.iter().find(|one| one.0 == name).map(|one| one.1.as_str());
        for (name, expected) in [
            ("XDG_CACHE_HOME", "/c"),
            ("TORCH_HOME", "/c/torch"),
            ("HF_HOME", "/c/huggingface"),
            ("KERAS_HOME", "/c/keras"),
            ("HF_TOKEN_PATH", "/home/ana/.cache/huggingface/token"),
        ] {
            assert_eq!(value(name), Some(expected), "{name}");
        }
    }

    #[test]
    fn what_makes_an_environment_does_not_reach_the_machine_s_identity() {
        let cmd = Cmd::new("sh", ["-c", "exit 127", "x y"]).env("K", "v").stdin("in");
        let apart = scope("", cmd);
        let said = apart.to_string();
        assert!(
            said.starts_with("systemd-run --scope ") && said.ends_with(" -- sh -c exit 127 x y"),
            "{said}"
        );
        assert!(
            said.contains("-p MemoryMax=90% -p TasksMax=50% -p IPAddressDeny=169.254.169.254 "),
            "{said}"
        );
        assert_eq!((apart.stdin.as_slice(), apart.env.len()), (&b"in"[..], 1));
    }

    #[test]
    fn a_sandbox_s_words_are_those_of_the_command_line() {
        let sandbox = Sandbox { writable: vec!["/a".into(), "/b".into()] };
        assert_eq!(sandbox.words().join(" "), "--sandbox --writable /a --writable /b");
    }
}
