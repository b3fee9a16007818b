//! Base trees: what a fresh, small cloud VM has on its disk, made once per recipe by mmdebstrap.
//!
//! Mirror and keyring are the host's own; none is named here. What belongs to this host alone (its extra
//! certificates, proxies, pip settings) is not in the tree: `settle` puts it into each machine.

use super::{LAB, Release, accounted, hash, network, output, room, run};
use anyhow::{Context as _, Result, bail};
use std::{
    collections::BTreeMap,
    fs::{self, File},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
};

/// What Debian's cloud images have and the appliance or its tests meet. No curl, no nginx, no pip: whoever needs one
/// must install it, as on a real machine.
const PACKAGES: &[&str] = &[
    "systemd",
    "systemd-sysv",
    "libpam-systemd",
    "udev",
    "dbus",
    "apt",
    "ca-certificates",
    "python3",
    "openssh-server",
    "sudo",
    "e2fsprogs",
    "fdisk",
    "iproute2",
    "netbase",
    "procps",
    "tzdata",
    "util-linux",
];

const UDEV: &str = include_str!("udev.sh");
const UDEV_SERVICE: &str = include_str!("lab-udev.service");

/// Not the product's business: neither in manifests nor on a real machine.
pub(super) const OURS: [&str; 3] = [
    "usr/lib/echoes-lab",
    "usr/lib/systemd/system/lab-udev.service",
    "etc/systemd/system/sysinit.target.wants/lab-udev.service",
];

/// The tree of this release, built if need be.
pub(super) fn tree(release: Release) -> Result<PathBuf> {
    let sources = sources(release)?;
    let recipe = format!("{PACKAGES:?}{UDEV}{UDEV_SERVICE}{sources:?}");
    let name = format!("{release}-{}", hash(&recipe));
    let tree = Path::new(LAB).join(&name);
    if tree.exists() {
        return Ok(tree);
    }
    fs::create_dir_all(LAB).with_context(|| format!("making {LAB}"))?;
    // Whoever waits here finds the tree made.
    let lock = File::options().create(true).append(true).open(Path::new(LAB).join(format!("{name}.lock")))?;
    lock.lock()?;
    let made = if tree.exists() {
        Ok(())
    } else {
        accounted(&format!("base tree of {release}"), || build(release, &sources, &tree))
    };
    lock.unlock()?;
    made.with_context(|| format!("building the base tree of {release}")).map(|()| tree)
}

fn build(release: Release, sources: &[String], tree: &Path) -> Result<()> {
    let half = tree.with_extension("half");
    if half.exists() {
        fs::remove_dir_all(&half)?;
    }
    eprintln!("lab: building {} (a minute or two, once)", tree.display());
    let mut make = Command::new("mmdebstrap");
    make.args(["--quiet", "--variant=minbase"]).arg(format!("--include={}", PACKAGES.join(",")));
    // How the host reaches its mirror (proxies, clock) is how mmdebstrap must, too.
    make.args(apt_settings()?.iter().map(|line| format!("--aptopt={line}")));
    make.arg("--aptopt=Acquire::Retries \"5\"");
    make.arg(release.name()).arg(&half).args(sources);
    output(&mut make)?;

    let put = |path: &str, mode, text: &str| put(&half, path, mode, text);
    put("usr/lib/echoes-lab/udev", 0o755, UDEV)?;
    put("usr/lib/systemd/system/lab-udev.service", 0o644, UDEV_SERVICE)?;
    let wants = half.join("etc/systemd/system/sysinit.target.wants");
    fs::create_dir_all(&wants)?;
    std::os::unix::fs::symlink("/lib/systemd/system/lab-udev.service", wants.join("lab-udev.service"))?;
    // What mmdebstrap took from the host; each machine gets its own.
    for path in ["etc/machine-id", "etc/hostname", "etc/resolv.conf", "etc/apt/apt.conf.d/99mmdebstrap"] {
        let _absent = fs::remove_file(half.join(path));
    }
    fs::rename(&half, tree)?;
    Ok(())
}

/// The host's Debian mirror, with this release's suites: the release itself, and its updates and security
/// updates where the mirror has them.
fn sources(release: Release) -> Result<Vec<String>> {
    const SUITES: [&str; 9] =
        ["bullseye", "bookworm", "trixie", "forky", "sid", "unstable", "testing", "stable", "oldstable"];
    let all = targets()?;
    let rows = || all.lines().filter_map(|line| line.split_once(' '));
    let mirror = rows().find(|(suite, _)| SUITES.contains(suite)).map(|(_, site)| site);
    let mirror = mirror.context("the host's apt sources name no Debian mirror")?;
    let security = rows().find(|(suite, _)| suite.ends_with("-security")).map(|(_, site)| site);
    let keyring = Path::new("/usr/share/keyrings/debian-archive-keyring.gpg");
    if !keyring.exists() {
        bail!("{}: apt install debian-archive-keyring", keyring.display());
    }
    let line = |site, suite| format!("deb [signed-by={}] {site} {suite} main", keyring.display());
    let mut lines = vec![line(mirror, release.to_string()), line(mirror, format!("{release}-updates"))];
    lines.extend(security.map(|site| line(site, format!("{release}-security"))));
    Ok(lines)
}

/// What the host's apt fetches from where, a suite and a site a line. Asking apt takes most of a second, and
/// every test process asks: so the answer is kept until the host's sources change.
fn targets() -> Result<String> {
    let dirs = ["/etc/apt", "/etc/apt/sources.list.d"];
    let mut stamp = String::new();
    for dir in dirs {
        let mut entries: Vec<_> = fs::read_dir(dir).into_iter().flatten().filter_map(Result::ok).collect();
        entries.sort_by_key(fs::DirEntry::path);
        for entry in entries {
            stamp += &format!("{:?} {:?} ", entry.path(), entry.metadata()?.modified()?);
        }
    }
    let stamp = hash(&stamp);
    let kept = Path::new(LAB).join("targets");
    let text = fs::read_to_string(&kept).unwrap_or_default();
    if let Some((of, targets)) = text.split_once('\n')
        && of == stamp
    {
        return Ok(targets.to_owned());
    }
    let targets = run("apt-get", ["indextargets", "--format", "$(RELEASE) $(SITE)"])?;
    fs::create_dir_all(LAB).with_context(|| format!("making {LAB}"))?;
    let new = kept.with_extension(room::fresh()?);
    fs::write(&new, format!("{stamp}\n{targets}"))?;
    fs::rename(&new, &kept)?;
    Ok(targets)
}

/// The host's apt settings that say how to reach a mirror, one `Key "value";` each.
fn apt_settings() -> Result<Vec<String>> {
    let dump = run("apt-config", ["dump"])?;
    let wanted = ["Acquire::http", "Acquire::https", "Acquire::Check-", "Acquire::Retries"];
    let given = |line: &&str| wanted.iter().any(|key| line.starts_with(key)) && !line.ends_with("\"\";");
    Ok(dump.lines().filter(given).map(str::to_owned).collect())
}

/// Make the machine at home on this host: its name, its name servers, and the certificates, proxies and
/// package indexes with which the host reaches the registries. Repeated at every start.
pub(super) fn settle(root: &Path, name: &str) -> Result<()> {
    let put = |path: &str, text: &str| put(root, path, 0o644, text);
    put("etc/hostname", &format!("{name}\n"))?;
    put("etc/hosts", &format!("127.0.0.1 localhost\n127.0.1.1 {name}\n::1 localhost ip6-localhost\n"))?;
    put("etc/resolv.conf", &network::resolv_conf()?)?;
    if !root.join("etc/machine-id").exists() {
        // Given here, because a first boot takes longer and asks questions.
        let id = fs::read_to_string("/proc/sys/kernel/random/uuid")?;
        put("etc/machine-id", &id.replace('-', ""))?;
    }
    let settings = apt_settings()?;
    if !settings.is_empty() {
        put("etc/apt/apt.conf.d/99host", &(settings.join("\n") + "\n"))?;
    }
    let extra = Path::new("/usr/local/share/ca-certificates");
    for entry in fs::read_dir(extra).into_iter().flatten() {
        let path = entry?.path();
        if path.extension().is_some_and(|e| e == "crt") {
            copy(&path, root)?;
        }
    }
    for path in ["/etc/ssl/certs/ca-certificates.crt", "/etc/pip.conf"] {
        if Path::new(path).exists() {
            copy(Path::new(path), root)?;
        }
    }
    let vars = variables();
    if !vars.is_empty() {
        put(
            "etc/environment",
            &vars.iter().map(|(name, value)| format!("{name}={value}\n")).collect::<String>(),
        )?;
    }
    Ok(())
}

/// What the host's own environment says about reaching registries. `exec` sees these, as a login would;
/// services do not.
pub(super) fn variables() -> BTreeMap<String, String> {
    const NAMES: &[&str] = &[
        "PIP_CERT",
        "PIP_DEFAULT_TIMEOUT",
        "PIP_EXTRA_INDEX_URL",
        "PIP_INDEX_URL",
        "PIP_TRUSTED_HOST",
        "REQUESTS_CA_BUNDLE",
        "SSL_CERT_FILE",
        "UV_DEFAULT_INDEX",
        "UV_INDEX",
        "UV_INDEX_URL",
        "UV_NATIVE_TLS",
        "UV_PYTHON_INSTALL_MIRROR",
        "http_proxy",
        "https_proxy",
        "no_proxy",
        "HTTP_PROXY",
        "HTTPS_PROXY",
        "NO_PROXY",
    ];
    let bundle = "/etc/ssl/certs/ca-certificates.crt";
    let given = |name: &&str| {
        let value = std::env::var(name).ok()?;
        // A path means nothing in a machine unless it is the one that we copy.
        (!value.starts_with('/') || value == bundle).then_some(((*name).to_owned(), value))
    };
    NAMES.iter().filter_map(given).collect()
}

/// The same path in the machine, unless it says the same already: an overlay would copy it up for nothing.
fn copy(path: &Path, root: &Path) -> Result<()> {
    let text = fs::read(path)?;
    let to = root.join(path.strip_prefix("/")?);
    if fs::read(&to).is_ok_and(|old| old == text) {
        return Ok(());
    }
    fs::create_dir_all(to.parent().context("a file needs a directory")?)?;
    fs::write(&to, text).with_context(|| format!("writing {}", to.display()))
}

fn put(root: &Path, path: &str, mode: u32, text: &str) -> Result<()> {
    let to = root.join(path);
    if fs::read_to_string(&to).is_ok_and(|old| old == text) {
        return Ok(());
    }
    fs::create_dir_all(to.parent().context("a file needs a directory")?)?;
    // Replaced rather than written into: it may be a link to somewhere on the host.
    let _absent = fs::remove_file(&to);
    fs::write(&to, text).with_context(|| format!("writing {}", to.display()))?;
    Ok(fs::set_permissions(&to, fs::Permissions::from_mode(mode))?)
}
