//! How a run is, in one line: how far its script says that it is, how busy its machine is, what it has cost, and when it
//! ends at the latest, or how long it has to save what it has. Pure. The first two are the words of a machine that nobody believes in, and are made harmless.

use super::{agent::samples::Sample, receipt::dollars, state::State};
use crate::ui::{lasting, moment};
use serde_json::Value;
use time::OffsetDateTime;

/// Of all that a script measures, so much fits beside the rest.
const NUMBERS: usize = 3;

/// Of a number's name.
const NAME: usize = 24;

/// What the script told MLflow last: the numbers of its newest step. From the answer of `runs/search`.
pub fn script(answer: &Value) -> Option<String> {
    let runs = answer["runs"].as_array()?.iter();
    let all = runs.filter_map(|run| run["data"]["metrics"].as_array());
    let own = |metric: &&Value| metric["key"].as_str().is_some_and(|key| !key.starts_with("system/"));
    let when = |metric: &Value| (metric["timestamp"].as_i64(), metric["step"].as_i64());
    let newest = all.max_by_key(|metrics| metrics.iter().filter(own).map(when).max())?;
    let step = newest.iter().filter(own).filter_map(|metric| metric["step"].as_i64()).max()?;
    let of_step = newest.iter().filter(own).filter(|metric| metric["step"].as_i64() == Some(step));
    let mut numbers: Vec<String> = of_step
        .filter_map(|metric| {
            Some(format!("{} {}", plain(metric["key"].as_str()?), short(metric["value"].as_f64()?)))
        })
        .collect();
    numbers.sort();
    numbers.truncate(NUMBERS);
    Some(format!("step {step} · {}", numbers.join(" · ")))
}

/// How busy it is: its GPUs where it has some, else its processors.
pub fn machine(sample: &Sample) -> Option<String> {
    let busy: Vec<f64> = sample.gpus.iter().filter_map(|gpu| gpu.busy).collect();
    if busy.is_empty() {
        return sample.cpu.map(|cpu| format!("CPU {cpu:.0} %"));
    }
    let many = if busy.len() == 1 { "GPU".to_owned() } else { format!("{} GPUs", busy.len()) };
    Some(format!("{many} {:.0} %", busy.iter().sum::<f64>() / busy.len() as f64))
}

/// What it has cost, and when it ends by itself.
pub fn money(state: &State, now: OffsetDateTime) -> String {
    let cost = dollars(state.cost(now));
    let most = state.spec.max_cost.map_or_else(String::new, |most| format!(" of {}", dollars(most)));
    let ends = state.ends_by().map_or_else(String::new, |at| format!(" · ends by {}", moment(at)));
    format!("{cost}{most}{ends}")
}

/// Seconds before a script is killed, from which on that is said.
const SOON: i64 = 10;

/// How a script that was told to end is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Countdown {
    Saving(i64),
    /// It is killed in so many seconds.
    Soon(i64),
    Killed,
}

impl Countdown {
    /// None where nothing has to end.
    pub fn of(state: &State, now: OffsetDateTime) -> Option<Self> {
        let left = (state.killed_at()? - now).whole_seconds();
        Some(match left {
            ..=0 => Self::Killed,
            1..=SOON => Self::Soon(left),
            _ => Self::Saving(left),
        })
    }

    /// Whether the other has nothing more to say where lines stay.
    pub fn is_like(self, other: Self) -> bool {
        std::mem::discriminant(&self) == std::mem::discriminant(&other)
    }
}

impl std::fmt::Display for Countdown {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Saving(left) => write!(f, "stopping: {} left to save", lasting(left.unsigned_abs())),
            Self::Soon(left) => write!(f, "stopping: {left} s left to save, then it is killed"),
            Self::Killed => f.write_str("stopping: its time to save is over, and it is killed"),
        }
    }
}

/// Nothing in a name moves a cursor or takes the whole line.
fn plain(name: &str) -> String {
    name.chars().filter(|c| c.is_ascii_graphic()).take(NAME).collect()
}

fn short(value: f64) -> String {
    let size = value.abs();
    if size == 0.0 || (0.001..1e5).contains(&size) { format!("{value:.3}") } else { format!("{value:.1e}") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gpu::{
        agent::samples::Gpu,
        job::Exit,
        provider::{Machine, Offer},
        spec::Spec,
        state::Event,
        target::Target,
    };
    use serde_json::json;

    #[test]
    fn the_newest_step_of_the_newest_run_is_told_and_nothing_in_it_moves_a_cursor() {
        let metric = |key: &str, value: f64, step: i64, at: i64| json!({ "key": key, "value": value, "step": step, "timestamp": at });
        let old = json!({ "data": { "metrics": [metric("loss", 9.0, 99, 10)] } });
        let new = json!({ "data": { "metrics": [
            metric("loss", 1.2068, 812, 20),
            metric("rate", 0.000_02, 812, 20),
            metric("\u{1b}[2Jacc", 0.5, 812, 20),
            metric("epoch_time", 7.0, 800, 19),
            metric("system/cpu_utilization_percentage", 7.0, 900, 99),
        ] } });
        let told = script(&json!({ "runs": [old, new] }));
        assert_eq!(told.as_deref(), Some("step 812 · [2Jacc 0.500 · loss 1.207 · rate 2.0e-5"));
        for silent in [json!({}), json!({ "runs": [] }), json!({ "runs": [{ "data": {} }] })] {
            assert_eq!(script(&silent), None);
        }
    }

    #[test]
    fn a_machine_is_as_busy_as_its_gpus() {
        let gpu = |busy| Gpu { busy: Some(busy), ..Gpu::default() };
        let with = |gpus| Sample { cpu: Some(40.4), gpus, ..Sample::default() };
        assert_eq!(machine(&with(vec![gpu(93.0)])).unwrap(), "GPU 93 %");
        assert_eq!(machine(&with(vec![gpu(90.0), gpu(50.0)])).unwrap(), "2 GPUs 70 %");
        assert_eq!(machine(&with(vec![])).unwrap(), "CPU 40 %");
        assert_eq!(machine(&Sample::default()), None);
    }

    #[test]
    fn what_it_has_cost_is_told_and_when_it_ends() {
        let at = OffsetDateTime::UNIX_EPOCH;
        let spec = Spec { max_cost: Some(5_000_000), max_seconds: None, ..Spec::example("r") };
        let asked = Event::Asked { spec: Box::new(spec), offers: vec![Offer::example("a")] };
        let renting = Event::Renting { offer: Offer::example("a") };
        let state = State::asked(at, &asked).unwrap().after(at, &renting).unwrap();
        let later = at + time::Duration::hours(1);
        assert_eq!(money(&state, later), "$1.00 of $5.00 · ends by 1970-01-01 04:50 UTC");
    }

    #[test]
    fn how_long_a_script_has_to_save_is_counted_down_and_its_end_is_announced() {
        let at = OffsetDateTime::UNIX_EPOCH;
        let asked = Event::Asked {
            spec: Box::new(Spec { grace: 60, ..Spec::example("r") }),
            offers: vec![Offer::example("a")],
        };
        let machine = Machine { target: Target::Local, home: "/h".into(), data: None };
        let events = [
            Event::Renting { offer: Offer::example("a") },
            Event::Rented { machine },
            Event::Prepared,
            Event::Started,
        ];
        let running = events
            .iter()
            .fold(State::asked(at, &asked).unwrap(), |state, event| state.after(at, event).unwrap());
        assert_eq!(Countdown::of(&running, at), None);
        let told = at + time::Duration::hours(1);
        let stopping = running.after(told, &Event::Ending { exit: Exit::Stopped }).unwrap();
        let said =
            |seconds| Countdown::of(&stopping, told + time::Duration::seconds(seconds)).unwrap().to_string();
        assert_eq!(said(0), "stopping: 1 min left to save");
        assert_eq!(said(17), "stopping: 43 s left to save");
        assert_eq!(said(52), "stopping: 8 s left to save, then it is killed");
        assert_eq!(said(61), "stopping: its time to save is over, and it is killed");
        let ended = stopping.after(told, &Event::Exited { exit: Exit::Stopped }).unwrap();
        assert_eq!(Countdown::of(&ended, told), None, "it is not counted on while results come home");
    }
}
