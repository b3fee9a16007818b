//! What is left of a run on paper: what was rented, from when to when, what it cost, whether it is proven gone, where
//! the results are. And the exit status that says the same to a script. Pure.

use super::{
    errand::project_key,
    final_status::{InMlflow, Told},
    job::Exit,
    left::Left,
    provider::Class,
    spec::{RunId, Source, Spec},
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
/// The script ended well, and not all that it made is home.
pub const NOT_HOME: u8 = 87;
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
    /// All that was rented was looked for, at Azure twice, and nothing was left.
    pub proven_gone: bool,
    /// Processes that were found over there, and are not for us to end.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub outlived: Vec<String>,
    pub results: PathBuf,
    pub all_home: bool,
    pub why_not_home: Option<String>,
    /// What cannot come home, where that is all that is missing.
    pub left: Option<Left>,
    /// Where what is not home was kept; a copy at Azure costs, too.
    pub kept: Option<Keep>,
    #[serde(skip)]
    is_paid: bool,
    /// Paths of all that a machine of the team's keeps for the next run.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub stays: Vec<String>,
    /// What became of bringing that home, where somebody has tried.
    pub pulled: Option<Pulled>,
    /// Links to its runs in MLflow; none where there was no MLflow, or the run goes on.
    pub mlflow: Option<InMlflow>,
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
            exit_status: status(state),
            rentals: state.rentals.clone(),
            cost: state.cost(now),
            proven_gone: state.phase == Phase::Done,
            outlived: state.outlived.clone(),
            results: results.into(),
            all_home: is_all_home(state),
            why_not_home: state.unfetched.clone(),
            left: state.left.clone(),
            kept: state.kept.clone(),
            is_paid: state.spec.source == Source::Azure,
            stays: stays(state),
            pulled: state.pulled.clone(),
            mlflow: None,
        }
    }

    pub fn with_mlflow(self, mlflow: Option<InMlflow>) -> Self {
        Self { mlflow, ..self }
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
        lines.push(match (self.proven_gone, self.is_paid, &self.kept) {
            (false, ..) => "gone: not proven yet".into(),
            (true, true, _) => "gone: all of it, looked for twice".into(),
            (true, false, None) => "gone: all of it".into(),
            (true, false, Some(_)) => "gone: all of it, but for what it made".into(),
        });
        if !self.outlived.is_empty() {
            lines.push(format!("outlived it, and not ours to end: {}", self.outlived.join(", ")));
        }
        if !self.stays.is_empty() {
            let forget = format!("`echoes-appliance gpu forget --box {}`", self.source);
            lines.push(format!("stays there for the next run, until {forget}: {}", self.stays.join(", ")));
        }
        let home = self.results.display();
        lines.push(match (&self.left, &self.why_not_home) {
            (None, None) => format!("results: {home}"),
            (None, Some(why)) => format!("results: {home}, not all of them: {why}"),
            (Some(left), _) => format!("results: {home}, not all of them\nleft: {}", left.words()),
        });
        lines.extend(self.mlflow.iter().flat_map(in_mlflow));
        lines.extend(self.pulled.as_ref().map(|pulled| match pulled {
            Pulled::Not => "pulled: what was kept is on its way home".into(),
            Pulled::Home => "pulled: what was kept is home".into(),
            Pulled::Ended(outcome) => format!("pulled: not all of it: {}", told(outcome)),
        }));
        let pull = format!("`echoes-appliance gpu pull {}` brings it home", self.run);
        let forget = format!("`echoes-appliance gpu forget {}`", self.run);
        lines.extend(self.kept.as_ref().map(|kept| match kept {
            Keep::At(place) if self.is_paid => {
                format!("kept: a copy of its disk, which costs until {forget}: {place}\n{pull}")
            }
            Keep::At(place) => format!("kept: what it made, until {forget}: {place}\n{pull}"),
            Keep::Asked if !self.is_paid => {
                format!("kept: perhaps what it made, until {forget}\n{pull}")
            }
            Keep::Asked => {
                format!("kept: perhaps a copy of its disk; {forget} makes sure that there is none")
            }
        }));
        lines.join("\n")
    }
}

/// On a machine that was never had there is nothing.
fn stays(state: &State) -> Vec<String> {
    let Spec { source, project, data, .. } = &state.spec;
    let is_kept =
        matches!(source, Source::Ssh { .. }) && state.rentals.iter().any(|rental| rental.came.is_some());
    // A project always has a key.
    let Some(key) = project_key(project).ok().filter(|_| is_kept) else { return Vec::new() };
    let code = format!("~/.echoes-appliance/code/{key}");
    let data = data.iter().map(|name| format!("~/.echoes-appliance/data/{name}"));
    [code].into_iter().chain(data).chain(["its environment".to_owned()]).collect()
}

/// Lines for the first few: a person finds the rest beside them.
fn in_mlflow(mlflow: &InMlflow) -> Vec<String> {
    const SHOWN: usize = 3;
    let links = mlflow.links.iter().take(SHOWN).map(|link| format!("MLflow: {link}"));
    let rest = mlflow.runs.saturating_sub(mlflow.links.len().min(SHOWN));
    let rest = (rest > 0).then(|| format!("MLflow: {rest} more of its runs, beside or within these"));
    let told = match mlflow.told {
        Told::Done => None,
        Told::Due => {
            Some("MLflow: it is not told yet how the run ended; the sweep goes on with that".to_owned())
        }
        Told::GivenUp => {
            Some("MLflow: it was never told how the run ended, and may show it as running".to_owned())
        }
    };
    links.chain(rest).chain(told).collect()
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

/// Whether nothing that the script made is missing, as far as it will ever make anything.
fn is_all_home(state: &State) -> bool {
    let over = matches!(state.phase, Phase::Return | Phase::Done);
    let ended = matches!(state.outcome, Some(Outcome::Exit(_))) || state.pulled == Some(Pulled::Home);
    over && ended && state.unfetched.is_none() && state.left.is_none()
}

/// The exit status that says how a run ended, once it has: its script's own, unless that ended well and not all of what it
/// made is home.
pub fn status(state: &State) -> Option<u8> {
    let ended = state.outcome.as_ref().map(status_of)?;
    let missing = state.phase == Phase::Done && !is_all_home(state);
    Some(if ended == 0 && missing { NOT_HOME } else { ended })
}

/// The same of what was pulled.
pub fn pull_status(state: &State) -> u8 {
    match &state.pulled {
        Some(Pulled::Ended(_)) if state.left.is_some() => NOT_HOME,
        Some(Pulled::Ended(outcome)) => status_of(outcome),
        Some(Pulled::Not | Pulled::Home) | None => 0,
    }
}

fn status_of(outcome: &Outcome) -> u8 {
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
    fn the_runs_in_mlflow_are_on_it_and_whether_mlflow_knows_how_they_ended() {
        let told = |told, runs, links: &[&str]| {
            let links = links.iter().map(|link| (*link).to_owned()).collect();
            in_mlflow(&InMlflow { told, runs, links }).join("\n")
        };
        assert_eq!(told(Told::Done, 0, &[]), "");
        assert_eq!(told(Told::Done, 1, &["https://a"]), "MLflow: https://a");
        let many = told(Told::Done, 9, &["https://a", "https://b", "https://c", "https://d"]);
        let expected = "MLflow: https://a\nMLflow: https://b\nMLflow: https://c\n\
                        MLflow: 6 more of its runs, beside or within these";
        assert_eq!(many, expected);
        assert!(told(Told::Due, 0, &[]).contains("not told yet"));
        assert!(told(Told::GivenUp, 0, &[]).contains("never told"));
    }

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
            assert_eq!(i32::from(status_of(&Outcome::Exit(Exit::Code(code)))), code);
        }
        assert_eq!(status_of(&Outcome::Exit(Exit::Code(300))), FAILED);
        assert_eq!(status_of(&Outcome::Exit(Exit::Deadline)), USED_UP);
        assert_eq!(status_of(&Outcome::Lost("x".into())), SPOT_LOST);
        assert_eq!(status_of(&Outcome::Exit(Exit::OutOfMemory)), 137);
    }
}
