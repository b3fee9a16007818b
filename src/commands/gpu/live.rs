//! `gpu doctor --live`: a whole run of a few lines, as `gpu-run` does it, on the cheapest machine that can be had. That
//! a machine can be asked for, sent to, brought home from and given back is proven by nothing less.

use super::{doctor::Answer, wish};
use crate::{
    commands::{config::Settings, gpu_run, need_root, this_machine},
    config::Config,
    gpu::{
        job::Exit,
        offer::SMALL,
        receipt::{NO_CAPACITY, NO_QUOTA, dollars, told},
        runs,
        spec::{RunId, Source, Spot},
        state::{Event, Outcome, Phase, State},
    },
    host::Host,
    ui::{self, Code, Ui},
};
use anyhow::Result;
use std::{io::Read as _, path::Path, sync::Arc, time::Duration};
use time::OffsetDateTime;

const SCRIPT: &str = include_str!("../../../assets/doctor.sh");

/// It takes seconds, and its machine is there for minutes.
const MAX_SECONDS: u64 = 600;
const MAX_COST: u64 = 1_000_000;

pub struct Wanted {
    pub source: Option<Source>,
    pub wish: wish::Flags,
    pub yes: bool,
    pub json: bool,
}

/// What came of it; else the exit status of whoever does not see its end: nobody said yes, or the watching was ended.
pub fn run(wanted: Wanted, settings: &Settings, ui: &Ui) -> Result<Result<Vec<Answer>, u8>> {
    let host = Arc::new(this_machine());
    need_root(&host)?;
    let config = settings.read(&host)?;
    let source = wanted.source.unwrap_or_else(|| config.gpu.source());
    let mut random = [0; 2];
    getrandom::fill(&mut random)?;
    let script = Path::new("doctor.sh");
    let run = RunId::of(script, OffsetDateTime::now_utc(), u16::from_le_bytes(random));
    let wish = wish(wanted.wish, &source);
    // In the run's own directory: who ends the watching leaves it to the driver, which may not have sent it yet.
    let checkout = runs::checkout(&run);
    host.write(&checkout.join(script), 0o755, SCRIPT.as_bytes())?;
    let args =
        gpu_run::Args::plain(checkout.join(script), source, wish, run.clone(), (wanted.yes, wanted.json));
    let status = gpu_run::go(args, &host, &config, settings, ui);
    let state = runs::state(&host, &run)?;
    if state.as_ref().is_none_or(|state| state.phase == Phase::Done) {
        host.remove_tree(&checkout)?;
    }
    let status = match state {
        Some(state) if state.phase == Phase::Done => {
            status?;
            let answers = answers(&host, &config, &state)?;
            if answers.iter().all(|answer| answer.good) {
                host.remove_tree(&runs::results(&config, &run))?;
            }
            return Ok(Ok(answers));
        }
        Some(_) => status?,
        None => {
            // It was not even begun.
            host.remove_dir(&runs::dir(&run))?;
            match status {
                Err(error) if none_to_be_had(&error) => {
                    let (causes, hint) = ui::told(&error);
                    let bad = Answer::bad("live.rent", causes.join(": "), hint.unwrap_or_default());
                    return Ok(Ok(vec![bad]));
                }
                status => status?,
            }
        }
    };
    Ok(Err(status))
}

fn none_to_be_had(error: &anyhow::Error) -> bool {
    error.downcast_ref::<Code>().is_some_and(|code| matches!(code.0, NO_CAPACITY | NO_QUOTA))
}

/// Small, where the command line does not say otherwise.
fn wish(wish: wish::Flags, source: &Source) -> wish::Flags {
    let wish = wish::Flags {
        max_seconds: wish.max_seconds.or(Some(MAX_SECONDS)),
        max_cost: wish.max_cost.or(Some(MAX_COST)),
        ..wish
    };
    if *source != Source::Azure {
        return wish;
    }
    let sizes = if wish.sizes.is_empty() { SMALL.map(Into::into).to_vec() } else { wish.sizes };
    wish::Flags { sizes, spot: wish.spot.or(Some(Spot::Never)), ..wish }
}

/// Of a run that is over: only what was looked for twice and not found is.
fn answers(host: &Host, config: &Config, state: &State) -> Result<Vec<Answer>> {
    let run = &state.spec.run;
    let hint = || format!("echoes-appliance gpu events {run}");
    let answer = |id, good, found: String| {
        if good { Answer::good(id, found) } else { Answer::bad(id, found, hint()) }
    };
    let mut all: Vec<_> = times(&runs::events(host, run)?).into_iter().map(took).collect();
    let ended = state.outcome.as_ref().map_or_else(|| "it did not end".into(), told);
    all.push(answer("live.script", state.outcome == Some(Outcome::Exit(Exit::Code(0))), ended));
    let at = runs::results(config, run).join("out/answer.txt");
    let mut text = String::new();
    if let Some((file, _)) = runs::open_result(host, &runs::all_results(config), run, "out/answer.txt")? {
        file.take(1 << 10).read_to_string(&mut text)?;
    }
    let home = text.trim_end() == run.as_str();
    all.push(match &state.unfetched {
        Some(why) => answer("live.home", false, why.clone()),
        None if home => answer("live.home", true, "what came home is what was sent".into()),
        None => answer("live.home", false, format!("{} is not what was sent", at.display())),
    });
    let machines: Vec<_> = state.rentals.iter().filter(|rental| rental.came.is_some()).collect();
    let machines = machines.iter().map(|rental| rental.offer.size.as_str());
    let machines: Vec<_> = machines.filter(|size| !size.is_empty()).collect();
    let on = if machines.is_empty() { String::new() } else { format!(" on {}", machines.join(", ")) };
    all.push(Answer::good("live.gone", "all of it, looked for twice"));
    all.push(Answer::good("live.cost", format!("{}{on}", dollars(state.cost(OffsetDateTime::now_utc())))));
    Ok(all)
}

fn took((phase, long): (Phase, Duration)) -> Answer {
    let id = match phase {
        Phase::Rent => "live.rent",
        Phase::Prepare => "live.prepare",
        Phase::Start => "live.start",
        Phase::Watch => "live.run",
        Phase::Fetch => "live.fetch",
        Phase::Return | Phase::Done => "live.return",
    };
    Answer::good(id, format!("{:.1} s", long.as_secs_f64()))
}

/// How long each phase took, in the order in which they came; where one came twice, both times. Pure.
fn times(events: &[(OffsetDateTime, Event)]) -> Vec<(Phase, Duration)> {
    let mut all: Vec<(Phase, Duration)> = Vec::new();
    let mut stands: Option<(State, OffsetDateTime)> = None;
    for (at, event) in events {
        let next = match stands.take() {
            None => State::asked(*at, event),
            Some((state, since)) => {
                let long: Duration = (*at - since).try_into().unwrap_or_default();
                match all.iter_mut().find(|(phase, _)| *phase == state.phase) {
                    Some((_, sum)) => *sum += long,
                    None => all.push((state.phase, long)),
                }
                state.after(*at, event)
            }
        };
        let Some(next) = next else { break };
        stands = Some((next, *at));
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gpu::{
        provider::{Class, Machine, Offer, Refusal},
        spec::Spec,
        target::Target,
    };

    #[test]
    fn what_a_phase_took_is_all_that_was_tried_of_it() {
        let offer = |size: &str| Offer::example(size);
        let refusal = Refusal { class: Class::Capacity, said: "full".into(), hint: None };
        let machine = Machine { target: Target::Local, home: "/home".into(), data: None };
        let spec = Box::new(Spec::example("r1"));
        let told = [
            (0, Event::Asked { spec, offers: vec![offer("a"), offer("b")] }),
            (1, Event::Renting { offer: offer("a") }),
            (5, Event::Refused { refusal }),
            (8, Event::Returned),
            (9, Event::Renting { offer: offer("b") }),
            (30, Event::Rented { machine }),
            (31, Event::Prepared),
        ];
        let events = told.map(|(at, event)| (OffsetDateTime::UNIX_EPOCH + Duration::from_secs(at), event));
        let seconds: Vec<_> =
            times(&events).into_iter().map(|(phase, long)| (phase, long.as_secs())).collect();
        assert_eq!(seconds, [(Phase::Rent, 5 + 22), (Phase::Return, 3), (Phase::Prepare, 1)]);
    }
}
