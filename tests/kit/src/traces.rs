//! What an uninstall may leave, each with its reason. Everything else is ours to clean.

/// Where (a path; with `/` at its end all below it; `*` stands for anything), and why.
const MAY_DIFFER: [(&str, &str); 14] = [
    ("/var/log/", "what happened is not undone"),
    ("/var/lib/apt/", "apt's lists of what there is, and what it installed by itself"),
    ("/var/cache/apt/", "apt's copies of packages"),
    ("/var/cache/debconf/", "debconf's questions, and copies of its files from before"),
    ("/var/cache/ldconfig/", "rebuilt by whichever package came last"),
    ("/etc/ld.so.cache", "rebuilt by whichever package came last"),
    ("/var/lib/dpkg/", "dpkg's books; that the packages are gone is asked of dpkg"),
    ("/var/lib/ucf/hashfile.*", "ucf's books from before, of which it keeps a few"),
    ("/var/lib/systemd/", "systemd's own memory: random seed, timers' stamps, deb-systemd-helper's state"),
    ("/var/tmp/systemd-private-*", "scratch space of a service, there while it runs"),
    ("/etc/passwd-", "the copy from before the last change"),
    ("/etc/shadow-", "the copy from before the last change"),
    ("/etc/group-", "the copy from before the last change"),
    ("/etc/gshadow-", "the copy from before the last change"),
];

/// The lines of `differences` that no reason is given for, here or in `also`.
pub fn unexplained(lines: &[String], also: &[(&str, &str)]) -> Vec<String> {
    let explained = |line: &&String| {
        let path = line[2..].split(": ").next().unwrap_or_default();
        MAY_DIFFER.iter().chain(also).any(|(at, _)| match at.split_once('*') {
            Some((start, end)) => path.starts_with(start) && path.ends_with(end),
            None if at.ends_with('/') => path.starts_with(at) || path == at.trim_end_matches('/'),
            None => path == *at,
        })
    };
    lines.iter().filter(|line| !explained(line)).cloned().collect()
}
