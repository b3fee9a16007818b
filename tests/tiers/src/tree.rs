//! The checkout, as git knows it.

use crate::{TOP, table::Since};
use anyhow::{Context as _, Result, bail};
use std::{fs, process::Command};

/// The commit on which all there is has passed, from the project's root.
pub const FULL_PASS: &str = "tests/tiers/full-pass";

/// What has changed since everything passed: committed, staged, edited or new.
pub fn since_full_pass() -> Since {
    let Ok(text) = fs::read_to_string(format!("{TOP}/{FULL_PASS}")) else {
        return Since::Unknown(format!("there is no {FULL_PASS}"));
    };
    let commit = text.trim().to_owned();
    let changed = || -> Result<Vec<String>> {
        git(&["merge-base", "--is-ancestor", &commit, "HEAD"])?;
        let mut files = lines(&git(&["diff", "--name-only", "--no-renames", "-z", &commit])?);
        files.extend(lines(&git(&["ls-files", "--others", "--exclude-standard", "-z"])?));
        Ok(files)
    };
    match changed() {
        Ok(files) => Since::Changed { commit, files },
        Err(_) => Since::Unknown(format!("{commit}, which {FULL_PASS} names, is no ancestor of this tree")),
    }
}

/// The commit that the tree is, word for word; else what differs from it.
pub fn clean_head() -> Result<String> {
    let changed = git(&["status", "--porcelain"])?;
    if !changed.is_empty() {
        bail!("not committed yet:\n{}", changed.trim_end());
    }
    Ok(git(&["rev-parse", "HEAD"])?.trim().to_owned())
}

#[cfg(test)]
pub fn files() -> Result<Vec<String>> {
    Ok(lines(&git(&["ls-files", "-z"])?))
}

fn lines(text: &str) -> Vec<String> {
    text.split('\0').filter(|line| !line.is_empty()).map(str::to_owned).collect()
}

fn git(args: &[&str]) -> Result<String> {
    // Root may look at the checkout of whoever builds.
    let mut command = Command::new("git");
    command.args(["-c", "safe.directory=*", "-C", TOP]).args(args);
    let out = command.output().context("running git")?;
    if !out.status.success() {
        bail!("git {}: {}: {}", args.join(" "), out.status, String::from_utf8_lossy(&out.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&out.stdout).into_owned())
}
