//! How much of a machine a unit may reach, as `systemd-analyze security` counts it: for tests.

use crate::host::{Cmd, Host, System};

/// The unit has at most so many tenths of 10; not known, and said so, where nothing here counts them.
pub fn assert_exposure(name: &str, text: &str, most: u32) {
    let dir = tempfile::tempdir().unwrap();
    let host = Host::new("/", System);
    let at = dir.path().join(name.replace('@', ""));
    host.write(&at, 0o644, text.as_bytes()).unwrap();
    let help = host.ask(&Cmd::new("systemd-analyze", ["--help"]));
    if !help.is_ok_and(|out| out.stdout.contains("--offline") && out.stdout.contains("--threshold")) {
        eprintln!("SKIPPED: how much of a machine {name} may reach: no systemd-analyze here reads files");
        return;
    }
    let words = ["security", "--offline=yes", "--no-pager", &format!("--threshold={most}")];
    let words = words.into_iter().chain([at.to_str().unwrap()]);
    let out = host.ask(&Cmd::new("systemd-analyze", words)).unwrap();
    assert!(out.ok(), "{name} has more than {most} tenths:\n{}{}", out.stdout, out.stderr);
    // Counts what it understands, and says of the rest that it does not.
    let verify =
        host.ask(&Cmd::new("systemd-analyze", ["verify", "--man=no", at.to_str().unwrap()])).unwrap();
    let own = |line: &&str| line.contains(at.to_str().unwrap_or_default());
    let is_strange = |line: &&str| line.contains("Unknown") || line.contains("Failed to parse");
    let unknown: Vec<_> = verify.stderr.lines().filter(own).filter(is_strange).collect();
    assert!(unknown.is_empty(), "{name}: {unknown:?}");
}
