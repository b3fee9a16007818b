//! What is left of a run on paper: what was rented, from when to when, what it cost, whether it is proven gone, where
//! the results are. And the exit status that says the same to a script. Pure.

use super::{
    job::Exit,
    provider::Class,
    spec::RunId,
    state::{Keep, Outcome, Phase, Pulled, Rental, State},
};
use crate::ui::{moment, table};
use serde::Serialize;
use std::path::{Path, PathBuf};
use time::OffsetDateTime;

/// Beside the script's own. Above what sysexits.h takes and below what shells make of signals.
pub const NO_CAPACITY: u8 = 80;
pub const NO_QUOTA: u8 = 81;
pub const SPOT_LOST: u8 = 82;
pub const NOT_PROVEN_GONE: u8 = 83;
pub const USED_UP: u8 = 84;
pub const STOPPED: u8 = 85;
pub const FAILED: u8 = 86;
/// As a shell says it of whom the kernel has killed.
pub const OUT_OF_MEMORY: u8 = 137;

#[derive(Debug, Serialize)]
pub struct Receipt {
    pub run: RunId,
    pub owner: String,
    pub script: PathBuf,
    pub source: String,
    pub phase: Phase,
    pub outcome: Option<Outcome>,
    pub exit_status: Option<u8>,
    pub rentals: Vec<Rental>,
    /// Millionths of a US dollar, by list price.
    pub cost: u64,
    /// All that was rented was looked for twice, and nothing was left.
    pub proven_gone: bool,
    /// Processes that were found over there, and are not for us to end.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub outlived: Vec<String>,
    pub results: PathBuf,
    pub all_home: bool,
    pub why_not_home: Option<String>,
    /// Where what is not home was kept; it costs, too.
    pub kept: Option<Keep>,
    /// What became of bringing that home, where somebody has tried.
    pub pulled: Option<Pulled>,
}

impl Receipt {
    pub fn of(state: &State, results: &Path, now: OffsetDateTime) -> Self {
        Self {
            run: state.spec.run.clone(),
            owner: state.spec.owner.clone(),
            script: state.spec.script.clone(),
            source: state.spec.source.to_string(),
            phase: state.phase,
            outcome: state.outcome.clone(),
            exit_status: state.outcome.as_ref().map(status),
            rentals: state.rentals.clone(),
            cost: state.cost(now),
            proven_gone: state.phase == Phase::Done,
            outlived: state.outlived.clone(),
            results: results.into(),
            all_home: state.unfetched.is_none()
                && (matches!(state.outcome, Some(Outcome::Exit(_))) || state.pulled == Some(Pulled::Home)),
            why_not_home: state.unfetched.clone(),
            kept: state.kept.clone(),
            pulled: state.pulled.clone(),
        }
    }

    /// For people.
    pub fn text(&self) -> String {
        let ended = match &self.outcome {
            Some(outcome) => told(outcome),
            None => self.phase.to_string(),
        };
        let mut lines = vec![format!("{}: {ended}", self.run)];
        let rows: Vec<_> = self.rentals.iter().map(|rental| row(rental, &self.source)).collect();
        if !rows.is_empty() {
            lines.push(table(&rows));
        }
        lines.push(format!("cost: {}", dollars(self.cost)));
        lines.push(if self.proven_gone {
            "gone: all of it, looked for twice".into()
        } else {
            "gone: not proven yet".into()
        });
        if !self.outlived.is_empty() {
            lines.push(format!("outlived it, and not ours to end: {}", self.outlived.join(", ")));
        }
        let home = self.results.display();
        lines.push(match &self.why_not_home {
            None => format!("results: {home}"),
            Some(why) => format!("results: {home}, not all of them: {why}"),
        });
        lines.extend(self.pulled.as_ref().map(|pulled| match pulled {
            Pulled::Not => "pulled: what was kept is on its way home".into(),
            Pulled::Home => "pulled: what was kept is home".into(),
            Pulled::Ended(outcome) => format!("pulled: not all of it: {}", told(outcome)),
        }));
        let pull = format!("`echoes-appliance gpu pull {}` brings it home", self.run);
        let forget = format!("`echoes-appliance gpu forget {}`", self.run);
        lines.extend(self.kept.as_ref().map(|kept| match kept {
            Keep::At(place) => {
                format!("kept: a copy of its disk, which costs until {forget}: {place}\n{pull}")
            }
            Keep::Asked => {
                format!("kept: perhaps a copy of its disk; {forget} makes sure that there is none")
            }
        }));
        lines.join("\n")
    }
}

fn row(rental: &Rental, source: &str) -> Vec<String> {
    let offer = &rental.offer;
    let what = if offer.size.is_empty() {
        source.to_owned()
    } else {
        let spot = if offer.spot { " spot" } else { "" };
        format!("{} {}{spot}", offer.size, offer.region)
    };
    let until = match (&rental.refusal, rental.returned) {
        (Some(refusal), _) => format!("refused: {}", refusal.said),
        (None, Some(at)) => moment(at),
        (None, None) => "…".into(),
    };
    vec![format!("  {what}"), moment(rental.asked), until]
}

/// How it ended, in words.
pub fn told(outcome: &Outcome) -> String {
    match outcome {
        Outcome::Exit(exit) => exit.to_string(),
        Outcome::Refused(refusal) => {
            let class = match refusal.class {
                Class::Capacity => "nobody has such a machine just now",
                Class::Quota => "the quota does not allow it",
                Class::Final => "refused",
            };
            format!("{class}: {}", refusal.said)
        }
        Outcome::Lost(why) => why.clone(),
        Outcome::Failed(why) => format!("failed: {why}"),
    }
}

/// The exit status that says so; the script's own where it came to its end.
pub fn status(outcome: &Outcome) -> u8 {
    match outcome {
        Outcome::Exit(Exit::Code(code)) => u8::try_from(*code).unwrap_or(FAILED),
        Outcome::Exit(Exit::Deadline) => USED_UP,
        Outcome::Exit(Exit::Stopped) => STOPPED,
        Outcome::Exit(Exit::OutOfMemory) => OUT_OF_MEMORY,
        Outcome::Exit(Exit::Evicted) | Outcome::Lost(_) => SPOT_LOST,
        Outcome::Refused(refusal) => match refusal.class {
            Class::Capacity => NO_CAPACITY,
            Class::Quota => NO_QUOTA,
            Class::Final => FAILED,
        },
        Outcome::Failed(_) => FAILED,
    }
}

/// To the cent, and to the hundredth of one where it is less than that.
pub fn dollars(millionths: u64) -> String {
    let amount = millionths as f64 / 1e6;
    if millionths == 0 || millionths >= 10_000 { format!("${amount:.2}") } else { format!("${amount:.4}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn money_is_written_as_people_write_it() {
        for (millionths, text) in
            [(0, "$0.00"), (526_000, "$0.53"), (1_200, "$0.0012"), (10_000, "$0.01"), (98_320_000, "$98.32")]
        {
            assert_eq!(dollars(millionths), text);
        }
    }

    #[test]
    fn a_script_s_own_status_is_passed_on_and_no_other_is_taken_for_it() {
        for code in [0, 1, 2, 137, 255] {
            assert_eq!(i32::from(status(&Outcome::Exit(Exit::Code(code)))), code);
        }
        assert_eq!(status(&Outcome::Exit(Exit::Code(300))), FAILED);
        assert_eq!(status(&Outcome::Exit(Exit::Deadline)), USED_UP);
        assert_eq!(status(&Outcome::Lost("x".into())), SPOT_LOST);
        assert_eq!(status(&Outcome::Exit(Exit::OutOfMemory)), 137);
    }
}
