//! Nobody becomes a person by a file that their script has left: files are not made setuid. A directory may be setgid, as
//! each one is that is copied from the data disk.

use anyhow::{Context as _, Result};
use nix::libc;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen::Dword, SeccompCmpOp::MaskedEq, SeccompCondition,
    SeccompFilter, SeccompRule, apply_filter,
};
use std::collections::BTreeMap;

type Rules = BTreeMap<i64, Vec<SeccompRule>>;

const SETUID: u64 = libc::S_ISUID as u64;
const SETGID: u64 = libc::S_ISGID as u64;

/// `fchmodat2`, which is younger than our libc.
const FCHMODAT2: i64 = 452;

/// Calls that take a mode, and which of their arguments it is.
fn modes() -> Vec<(i64, u8)> {
    let mut calls = vec![(libc::SYS_fchmod, 1), (libc::SYS_fchmodat, 2), (FCHMODAT2, 2)];
    #[cfg(target_arch = "x86_64")]
    calls.push((libc::SYS_chmod, 1));
    calls
}

/// Calls that make a file, and which of their arguments are its mode and, where it need not be one that makes, the flags.
fn makers() -> Vec<(i64, u8, Option<u8>)> {
    let mut calls = vec![(libc::SYS_openat, 3, Some(2)), (libc::SYS_mknodat, 2, None)];
    #[cfg(target_arch = "x86_64")]
    calls.extend([(libc::SYS_open, 2, Some(1)), (libc::SYS_creat, 1, None), (libc::SYS_mknod, 1, None)]);
    calls
}

fn has(argument: u8, bits: u64) -> Result<SeccompCondition> {
    Ok(SeccompCondition::new(argument, Dword, MaskedEq(bits), bits)?)
}

/// What is refused with EPERM.
fn refused() -> Result<Rules> {
    let mut rules = Rules::new();
    for (call, mode) in modes() {
        rules.insert(call, vec![SeccompRule::new(vec![has(mode, SETUID)?])?]);
    }
    for (call, mode, flags) in makers() {
        for bit in [SETUID, SETGID] {
            let ways = match flags {
                None => vec![None],
                Some(at) => vec![Some((at, libc::O_CREAT)), Some((at, libc::O_TMPFILE))],
            };
            for way in ways {
                let mut conditions = vec![has(mode, bit)?];
                if let Some((at, flag)) = way {
                    conditions.push(has(at, u64::try_from(flag)?)?);
                }
                rules.entry(call).or_default().push(SeccompRule::new(conditions)?);
            }
        }
    }
    Ok(rules)
}

/// What would get past that, as its arguments are in memory, and what everybody does without where it is not there.
fn missing() -> Rules {
    [libc::SYS_openat2, libc::SYS_io_uring_setup].map(|call| (call, Vec::new())).into()
}

/// For this process, and all that it will ever start.
pub fn apply() -> Result<()> {
    for (rules, errno) in [(refused()?, libc::EPERM), (missing(), libc::ENOSYS)] {
        let arch =
            std::env::consts::ARCH.try_into().context("a processor without a filter of system calls")?;
        let answer = SeccompAction::Errno(u32::try_from(errno)?);
        let filter = SeccompFilter::new(rules, SeccompAction::Allow, answer, arch)?;
        apply_filter(&BpfProgram::try_from(filter)?)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::{
        errno::Errno,
        fcntl::{AT_FDCWD, OFlag, open},
        sys::{
            prctl::set_no_new_privs,
            stat::{FchmodatFlags, Mode, fchmodat, mkdirat},
        },
    };
    use std::path::Path;

    /// In a thread of its own, as there is no way back.
    #[test]
    fn a_file_is_not_made_setuid_and_a_directory_is_copied_with_its_group() {
        let dir = tempfile::tempdir().unwrap();
        let at = dir.path().to_owned();
        let tried = std::thread::spawn(move || {
            // Of this thread alone, as is the filter.
            set_no_new_privs().unwrap();
            apply().unwrap();
            let mode = |bits: u32| Mode::from_bits_truncate(bits);
            let (file, below, new) = (at.join("file"), at.join("below"), at.join("new"));
            let make = |path: &Path, bits| open(path, OFlag::O_CREAT | OFlag::O_WRONLY, mode(bits)).map(drop);
            let change =
                |path: &Path, bits| fchmodat(AT_FDCWD, path, mode(bits), FchmodatFlags::FollowSymlink);
            assert_eq!(make(&file, 0o755), Ok(()));
            assert_eq!(mkdirat(AT_FDCWD, &below, mode(0o2775)), Ok(()));
            assert_eq!(change(&below, 0o2775), Ok(()), "a setgid directory is copied");
            assert_eq!(change(&file, 0o755), Ok(()));
            assert_eq!(change(&file, 0o4755), Err(Errno::EPERM));
            assert_eq!(change(&file, 0o6711), Err(Errno::EPERM));
            assert_eq!(make(&new, 0o4755), Err(Errno::EPERM));
            assert_eq!(make(&new, 0o2755), Err(Errno::EPERM));
            assert!(!new.exists());
        });
        tried.join().unwrap();
    }
}
