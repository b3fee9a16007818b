//! What an uninstall may leave, each with its reason. Everything else is ours to clean.

/// Where (a path, or with `/` at its end all below), and why.
const MAY_DIFFER: [(&str, &str); 12] = [
    ("/var/log/", "what happened is not undone"),
    ("/var/lib/apt/", "apt's lists of what there is, and what it installed by itself"),
    ("/var/cache/apt/", "apt's copies of packages"),
    ("/var/cache/debconf/", "debconf's questions, and copies of its files from before"),
    ("/var/cache/ldconfig/", "rebuilt by whichever package came last"),
    ("/etc/ld.so.cache", "rebuilt by whichever package came last"),
    ("/var/lib/dpkg/", "dpkg's books; that the packages are gone is asked of dpkg"),
    ("/var/lib/systemd/", "systemd's own memory: random seed, timers' stamps, deb-systemd-helper's state"),
    ("/etc/passwd-", "the copy from before the last change"),
    ("/etc/shadow-", "the copy from before the last change"),
    ("/etc/group-", "the copy from before the last change"),
    ("/etc/gshadow-", "the copy from before the last change"),
];

/// The lines of `differences` that no reason is given for.
pub fn unexplained(lines: &[String]) -> Vec<String> {
    let explained = |line: &&String| {
        let path = line[2..].split(": ").next().unwrap_or_default();
        MAY_DIFFER.iter().any(|(at, _)| {
            path == *at || at.ends_with('/') && (path.starts_with(at) || path == at.trim_end_matches('/'))
        })
    };
    lines.iter().filter(|line| !explained(line)).cloned().collect()
}
