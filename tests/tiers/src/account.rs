//! `tiers account PROGRAM ARGUMENT…`: runs a test for nextest, and notes what it cost, with all that it started.
//!
//! The test's temporary files are on a tmpfs where one was given, unless it is about disks: most of a test's writes are
//! journals', and on a disk each would be waited for.

use anyhow::{Context as _, Result};
use nix::{
    sys::{
        prctl::set_child_subreaper,
        resource::{UsageWho, getrusage},
        signal::Signal,
        time::{TimeVal, TimeValLike as _},
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::Pid,
};
use std::{
    env,
    fs::File,
    io::Write as _,
    os::unix::process::CommandExt as _,
    process::{Command, ExitCode},
    time::Instant,
};

/// Test groups of .config/nextest.toml whose tests need a real disk under their temporary files.
const ON_DISK: [&str; 3] = ["disk", "lab", "azure"];

pub fn account(program: &str, arguments: &[String]) -> Result<ExitCode> {
    let mut command = Command::new(program);
    command.args(arguments);
    let var = |name: &str| env::var(name).ok();
    let (Some(accounts), Some(binary), Some(test)) =
        (var("TIERS_ACCOUNTS"), var("NEXTEST_BINARY_ID"), var("NEXTEST_TEST_NAME"))
    else {
        // A list of tests is asked for.
        return Err(command.exec()).with_context(|| format!("running {program}"));
    };
    if let Some(dir) = var("TIERS_TMPFS")
        && var("NEXTEST_TEST_GROUP").is_none_or(|group| !ON_DISK.contains(&&*group))
    {
        command.env("TMPDIR", dir);
    }
    let since = Instant::now();
    // Drivers and machines that their starter has left are ours then, and so is the time that they took.
    set_child_subreaper(true).context("becoming the parent of orphans")?;
    let child = command.spawn().with_context(|| format!("running {program}"))?;
    let child = Pid::from_raw(child.id().cast_signed());
    let status = loop {
        let status = waitpid(None, None).context("waiting for a test")?;
        if status.pid() == Some(child) && matches!(status, WaitStatus::Exited(..) | WaitStatus::Signaled(..))
        {
            break status;
        }
    };
    let seconds = since.elapsed().as_secs_f64();
    while waitpid(None, Some(WaitPidFlag::WNOHANG)).is_ok_and(|status| status.pid().is_some()) {}
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN).context("asking what a test has cost")?;
    let of = |time: TimeVal| time.num_microseconds() as f64 / 1e6;
    let cpu = of(usage.user_time()) + of(usage.system_time());
    // How soon a test failed says nothing of how long it takes.
    if status == WaitStatus::Exited(child, 0) {
        note(&accounts, &format!("test\t{binary} {test}\t{seconds:.1}\t{cpu:.1}\n"))?;
    }
    Ok(match status {
        WaitStatus::Signaled(_, signal, _) => ended_by(signal),
        WaitStatus::Exited(_, code) => u8::try_from(code).map_or(ExitCode::FAILURE, ExitCode::from),
        _ => ExitCode::FAILURE,
    })
}

fn note(accounts: &str, line: &str) -> Result<()> {
    let mut file = File::options()
        .create(true)
        .append(true)
        .open(accounts)
        .with_context(|| format!("opening {accounts}"))?;
    // At once, as others write too.
    file.write_all(line.as_bytes()).with_context(|| format!("writing {accounts}"))
}

/// As a shell tells it.
fn ended_by(signal: Signal) -> ExitCode {
    ExitCode::from(u8::try_from(128 + signal as i32).unwrap_or(1))
}
