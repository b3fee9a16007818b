//! `backoff UNIT`: units run it before their start, so that one that keeps dying is started again more and more slowly, up to
//! every five minutes, and for ever. A person who starts it is not kept waiting.
//!
//! systemd can do that itself since 254 (RestartSteps=, RestartMaxDelaySec=). Debian 11 has 247: there RestartSec= is the
//! same each time, and a start limit leaves the unit down for good. So the limit is off, RestartSec= is short, and the rest
//! of the wait is in here, for every release alike. systemd counts the restarts it does by itself: where that number has grown
//! since the last start, this start is systemd's. `systemctl restart`, also while this waits, leaves it as it was or
//! forgets it.

use super::this_machine;
use crate::{
    host::{Cmd, Host},
    ui::Ui,
};
use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};
use std::{
    path::{Path, PathBuf},
    time::Duration,
};

#[derive(clap::Args)]
pub struct Args {
    /// The unit that is about to start
    unit: String,
}

/// On a tmpfs: at a boot systemd's own count begins anew, too.
const DIR: &str = "/run/echoes-appliance/backoff";

/// The longest wait; with RestartSec= five minutes.
const LONGEST: Duration = Duration::from_secs(297);

/// What ran for so long was well, and the next time is the first.
const WELL: Duration = Duration::from_secs(600);

/// The last start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Start {
    /// systemd's count, NRestarts.
    restarts: u64,
    /// How many of systemd's own came one soon after the other, this one included.
    row: u32,
    /// Seconds since the machine's start when it goes on.
    at: u64,
}

/// What this start is, and how long it waits. Pure.
fn next(last: Option<Start>, restarts: u64, now: u64) -> (Start, Duration) {
    let row = match last {
        Some(last) if restarts <= last.restarts => 0,
        None if restarts == 0 => 0,
        Some(last) if now.saturating_sub(last.at) < WELL.as_secs() => last.row.saturating_add(1),
        _ => 1,
    };
    let wait = delay(row);
    (Start { restarts, row, at: now + wait.as_secs() }, wait)
}

/// The first restart is RestartSec= alone: a kill out of the blue is over in seconds.
fn delay(row: u32) -> Duration {
    let doublings = row.saturating_sub(2).min(16);
    let long = if row < 2 { 0 } else { 5 << doublings };
    Duration::from_secs(long).min(LONGEST)
}

pub fn run(args: Args, ui: &Ui) -> Result<u8> {
    let host = this_machine();
    let path = record(&args.unit);
    let text = host.read_text(&path)?.unwrap_or_default();
    // One that cannot be read is none.
    let last = serde_json::from_str(&text).ok();
    let (start, wait) = next(last, restarts(&host, &args.unit)?, uptime(&host)?);
    // Before the wait: whoever ends that is a person, and then no restart is counted.
    host.write(&path, 0o644, &serde_json::to_vec(&start)?)?;
    if !wait.is_zero() {
        let (unit, row, seconds) = (&args.unit, start.row, wait.as_secs());
        ui.say(format_args!(
            "{unit} came back {row} times, one soon after the other: it is started again in {seconds} s"
        ));
        std::thread::sleep(wait);
    }
    Ok(0)
}

fn record(unit: &str) -> PathBuf {
    Path::new(DIR).join(unit.replace('/', "_"))
}

fn restarts(host: &Host, unit: &str) -> Result<u64> {
    let said = host.run(&Cmd::new("systemctl", ["show", "--property", "NRestarts", unit]))?;
    let count = said.trim().strip_prefix("NRestarts=").and_then(|count| count.parse().ok());
    count.with_context(|| format!("systemctl said {said:?} of the restarts of {unit}"))
}

fn uptime(host: &Host) -> Result<u64> {
    let text = host.read_text(Path::new("/proc/uptime"))?.unwrap_or_default();
    let seconds = text.split('.').next().and_then(|seconds| seconds.parse().ok());
    seconds.context("reading /proc/uptime")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One start after the other: systemd's count, how long the one before it ran, and how long it waits.
    #[track_caller]
    fn tell(starts: &[(u64, u64, u64)]) {
        let (mut last, mut now) = (None, 1000);
        for (n, (restarts, ran, expected)) in starts.iter().enumerate() {
            now += ran;
            let (start, wait) = next(last, *restarts, now);
            assert_eq!(wait.as_secs(), *expected, "start {n}: {start:?}");
            now += wait.as_secs();
            last = Some(start);
        }
    }

    #[test]
    fn what_keeps_dying_is_started_ever_more_slowly_and_for_ever() {
        let waits = [0, 0, 5, 10, 20, 40, 80, 160, 297, 297];
        let starts: Vec<_> = (0..).zip(waits).map(|(restarts, wait)| (restarts, 20, wait)).collect();
        tell(&starts);
        assert_eq!(delay(u32::MAX), LONGEST);
        // A count that goes on after its record was lost.
        tell(&[(7, 0, 0), (8, 0, 5)]);
    }

    #[test]
    fn what_ran_for_long_begins_anew() {
        tell(&[(0, 0, 0), (1, 3, 0), (2, 3, 5), (3, 3, 10), (4, 600, 0), (5, 599, 5)]);
    }

    #[test]
    fn a_person_is_not_kept_waiting() {
        // In the middle of a wait, while it runs, and after it was stopped: the count stays, or begins anew.
        tell(&[(0, 0, 0), (1, 3, 0), (2, 3, 5), (2, 1, 0), (3, 3, 0), (0, 3, 0), (1, 3, 0), (2, 3, 5)]);
    }
}
