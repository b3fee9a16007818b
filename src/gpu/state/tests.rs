use super::*;
use crate::{
    gpu::{spec::RunId, target::Target},
    host::{Host, System},
    journal::Journal,
};
use std::path::Path;
use time::macros::datetime;

const BEGAN: OffsetDateTime = datetime!(2026-11-24 02:00 UTC);

fn after(seconds: i64) -> OffsetDateTime {
    BEGAN + time::Duration::seconds(seconds)
}

fn asked(sizes: &[&str]) -> State {
    let offers = sizes.iter().map(|size| Offer::example(size)).collect();
    let spec = Box::new(Spec::example("r1"));
    State::asked(BEGAN, &Event::Asked { spec, offers }).unwrap()
}

fn renting(size: &str) -> Event {
    Event::Renting { offer: Offer::example(size) }
}

fn refused(class: Class) -> Event {
    Event::Refused { refusal: Refusal { class, said: format!("{class:?}"), hint: None } }
}

fn rented() -> Event {
    Event::Rented { machine: Machine { target: Target::Local, home: "/home".into(), data: None } }
}

fn gone() -> Event {
    Event::Lost { why: "gone".into() }
}

fn failed() -> Event {
    Event::Failed { why: "broken".into() }
}

fn keeping() -> Event {
    Event::Keeping { why: "too slow".into() }
}

fn remains() -> Event {
    let mut left = Left::default();
    left.add("out/a", "permission denied", 1);
    Event::Remains { left }
}

fn kept_event() -> Event {
    Event::Kept { place: "/snap".into() }
}

fn pulling() -> Event {
    Event::Pulling { offers: vec![Offer::example("s"), Offer::example("t")] }
}

fn stop() -> Event {
    Event::Ending { exit: Exit::Stopped }
}

/// After all of them, a second apart.
fn tell(state: State, events: &[Event]) -> State {
    let mut at = state.since;
    events.iter().fold(state, |state, event| {
        at += time::Duration::seconds(1);
        let phase = state.phase;
        state.after(at, event).unwrap_or_else(|| panic!("{event:?} cannot happen while {phase}"))
    })
}

#[test]
fn every_way_to_the_end_leads_through_giving_back() {
    use Event::{Fetched, Prepared, Returned, Started};
    let exited = || Event::Exited { exit: Exit::Code(3) };
    let up = || vec![renting("a"), rented(), Prepared, Started];
    let exit = |exit| Some(Outcome::Exit(exit));
    let table: Vec<(Vec<Event>, Option<Outcome>, Option<&str>)> = vec![
        ([up(), vec![exited(), Fetched]].concat(), exit(Exit::Code(3)), None),
        ([up(), vec![exited(), failed()]].concat(), exit(Exit::Code(3)), Some("broken")),
        ([up(), vec![exited(), gone()]].concat(), exit(Exit::Code(3)), Some("gone")),
        ([up(), vec![exited(), keeping(), kept_event()]].concat(), exit(Exit::Code(3)), Some("too slow")),
        ([up(), vec![exited(), keeping(), gone()]].concat(), exit(Exit::Code(3)), Some("too slow")),
        (
            [up(), vec![exited(), keeping(), failed()]].concat(),
            exit(Exit::Code(3)),
            Some("too slow; and it is not kept: broken"),
        ),
        ([up(), vec![failed(), Fetched]].concat(), Some(Outcome::Failed("broken".into())), None),
        (
            [up(), vec![stop(), Event::Exited { exit: Exit::Stopped }, Fetched]].concat(),
            exit(Exit::Stopped),
            None,
        ),
        // It came to its end while it was told to.
        ([up(), vec![stop(), exited(), Fetched]].concat(), exit(Exit::Code(3)), None),
        ([up(), vec![stop(), failed(), Fetched]].concat(), exit(Exit::Stopped), None),
        ([up(), vec![stop(), gone()]].concat(), exit(Exit::Stopped), None),
        (vec![stop()], exit(Exit::Stopped), None),
        (vec![renting("a"), stop()], exit(Exit::Stopped), None),
        (vec![renting("a"), failed()], Some(Outcome::Failed("broken".into())), None),
        (vec![renting("a"), rented(), stop()], exit(Exit::Stopped), None),
        (vec![renting("a"), rented(), failed()], Some(Outcome::Failed("broken".into())), None),
        (vec![renting("a"), rented(), Prepared, stop(), Fetched], exit(Exit::Stopped), None),
    ];
    for (events, outcome, unfetched) in table {
        let state = tell(asked(&["a", "b"]), &events);
        assert_eq!(state.phase, Phase::Return, "{events:?}");
        assert_eq!((&state.outcome, state.unfetched.as_deref()), (&outcome, unfetched), "{events:?}");
        let state = tell(state, &[Returned]);
        assert_eq!((state.phase, state.outcome), (Phase::Done, outcome), "{events:?}");
    }
}

#[test]
fn what_is_over_or_has_not_begun_cannot_be_told_of() {
    let up = [renting("a"), rented(), Event::Prepared, Event::Started];
    let all = [
        renting("b"),
        refused(Class::Capacity),
        rented(),
        Event::Prepared,
        Event::Started,
        Event::Exited { exit: Exit::Code(0) },
        gone(),
        Event::Fetched,
        failed(),
        stop(),
        Event::Returned,
        keeping(),
        kept_event(),
        Event::Forgotten,
        pulling(),
        remains(),
    ];
    // In each phase, the numbers of those that can happen.
    let table: [(&[Event], &[usize]); 8] = [
        (&[], &[8, 9]),
        (&up[..1], &[1, 2, 8, 9]),
        (&up[..2], &[3, 6, 8, 9]),
        (&up[..3], &[4, 6, 8, 9]),
        (&up, &[5, 6, 8, 9]),
        (&[&up[..], &[failed()]].concat(), &[6, 7, 8, 11, 15]),
        (&[&up[..], &[failed(), keeping()]].concat(), &[6, 7, 8, 12]),
        (&[&up[..], &[failed(), Event::Fetched]].concat(), &[10]),
    ];
    for (told, possible) in table {
        let state = tell(asked(&["a", "b"]), told);
        let can = |n: &usize| state.clone().after(after(99), &all[*n]).is_some();
        assert_eq!((0..all.len()).filter(can).collect::<Vec<_>>(), possible, "while {}", state.phase);
    }
    let done = tell(asked(&["a"]), &[stop(), Event::Returned]);
    assert!(all.iter().all(|event| done.clone().after(after(99), event).is_none()));
    // But for what was kept, which outlives its run.
    let kept =
        tell(asked(&["a"]), &[&up[..], &[failed(), keeping(), kept_event(), Event::Returned]].concat());
    assert_eq!((kept.phase, &kept.kept), (Phase::Done, &Some(Keep::At("/snap".into()))));
    assert_eq!(tell(kept.clone(), &[Event::Forgotten]).kept, None);
    // And then whoever wants it.
    let small = || Event::Renting { offer: Offer::example("s") };
    let table: [(&[Event], &[usize]); 7] = [
        (&[], &[13, 14]),
        (&[pulling()], &[8, 9]),
        (&[pulling(), small()], &[1, 2, 8, 9]),
        (&[pulling(), small(), rented()], &[6, 7, 8, 9, 15]),
        (&[pulling(), small(), rented(), Event::Fetched], &[10, 13]),
        (&[pulling(), small(), rented(), failed()], &[10]),
        (&[pulling(), small(), refused(Class::Capacity)], &[9, 10]),
    ];
    for (told, possible) in table {
        let state = tell(kept.clone(), told);
        let can = |n: &usize| state.clone().after(after(99), &all[*n]).is_some();
        assert_eq!((0..all.len()).filter(can).collect::<Vec<_>>(), possible, "after {told:?}");
    }
    // Asked for, and nobody heard of it: it may be found, and only then is it to be had.
    let asked_for = [&up[..], &[failed(), keeping(), failed(), Event::Returned]].concat();
    let asked_for = tell(asked(&["a"]), &asked_for);
    assert_eq!(asked_for.kept, Some(Keep::Asked));
    assert!(asked_for.clone().after(after(99), &pulling()).is_none());
    assert_eq!(tell(asked_for, &[kept_event(), pulling()]).phase, Phase::Rent);
}

#[test]
fn what_becomes_of_a_pull_changes_nothing_of_how_the_run_ended() {
    use Event::{Fetched, Forgotten, Returned};
    let up = [renting("a"), rented(), Event::Prepared, Event::Started];
    let exited = Event::Exited { exit: Exit::Code(3) };
    let kept = tell(asked(&["a"]), &[&up[..], &[exited, keeping(), kept_event(), Returned]].concat());
    let ended = Some(Outcome::Exit(Exit::Code(3)));
    let small = || Event::Renting { offer: Offer::example("s") };
    let there = || vec![pulling(), small(), rented()];
    let refusals = vec![
        pulling(),
        small(),
        refused(Class::Quota),
        Returned,
        Event::Renting { offer: Offer::example("t") },
        refused(Class::Capacity),
    ];
    let capacity = Refusal { class: Class::Capacity, said: "Capacity".into(), hint: None };
    let table: Vec<(Vec<Event>, Pulled)> = vec![
        ([there(), vec![Fetched, Forgotten]].concat(), Pulled::Home),
        ([there(), vec![failed()]].concat(), Pulled::Ended(Outcome::Failed("broken".into()))),
        (
            [there(), vec![remains()]].concat(),
            Pulled::Ended(Outcome::Failed("1 file, 1 bytes: out/a: permission denied".into())),
        ),
        ([there(), vec![stop()]].concat(), Pulled::Ended(Outcome::Exit(Exit::Stopped))),
        (vec![pulling(), stop()], Pulled::Ended(Outcome::Exit(Exit::Stopped))),
        (vec![pulling(), small(), failed()], Pulled::Ended(Outcome::Failed("broken".into()))),
        (refusals, Pulled::Ended(Outcome::Refused(capacity))),
    ];
    for (events, pulled) in table {
        let state = tell(kept.clone(), &events);
        assert_eq!((state.phase, state.is_pull()), (Phase::Return, true), "{events:?}");
        let state = tell(state, &[Returned]);
        assert_eq!((state.phase, &state.outcome), (Phase::Done, &ended), "{events:?}");
        let home = pulled == Pulled::Home;
        assert_eq!((state.unfetched.is_none(), state.kept.is_none()), (home, home), "{events:?}");
        assert_eq!(state.pulled, Some(pulled), "{events:?}");
        if !home {
            // Once more: what the first try came to is nothing to the second.
            let again = tell(state, &[there(), vec![Fetched, Returned]].concat());
            assert_eq!((again.outcome, again.pulled), (ended.clone(), Some(Pulled::Home)), "{events:?}");
        }
    }
}

#[test]
fn a_refusal_leads_to_the_next_offer_and_the_last_one_says_what_to_do() {
    let again = |class| vec![refused(class), Event::Returned];
    let state = tell(asked(&["a", "b"]), &[vec![renting("a")], again(Class::Capacity)].concat());
    assert_eq!((state.phase, state.outcome.as_ref()), (Phase::Rent, None));
    // Offers are tried in their order, and none twice.
    assert!(state.clone().after(after(9), &renting("a")).is_none());
    let state = tell(state, &[vec![renting("b")], again(Class::Quota)].concat());
    assert_eq!(state.phase, Phase::Done);
    // An hour may bring what a quota does not.
    let Some(Outcome::Refused(refusal)) = &state.outcome else { panic!("{:?}", state.outcome) };
    assert_eq!(refusal.class, Class::Capacity);
    assert_eq!(state.cost(after(9999)), 0, "what was refused is not charged for");

    let final_ = tell(asked(&["a", "b"]), &[vec![renting("a")], again(Class::Final)].concat());
    assert_eq!(final_.phase, Phase::Done, "nothing that could be rented would be different");
}

#[test]
fn a_machine_that_was_taken_away_is_replaced_only_where_that_was_the_bargain() {
    let up = [renting("a"), rented(), Event::Prepared, Event::Started, gone()];
    let state = tell(asked(&["a", "b"]), &up);
    assert_eq!((state.phase, &state.outcome), (Phase::Return, &None));
    let state = tell(state, &[Event::Returned]);
    assert_eq!((state.phase, state.machine.as_ref()), (Phase::Rent, None));
    // Stopped between two machines.
    let stopped = tell(tell(asked(&["a", "b"]), &up), &[stop(), Event::Returned]);
    assert_eq!((stopped.phase, stopped.outcome), (Phase::Done, Some(Outcome::Exit(Exit::Stopped))));

    let last = tell(asked(&["a"]), &up);
    assert_eq!(last.outcome, Some(Outcome::Lost("gone".into())), "there is no other offer");
    let dear = Offer { spot: false, ..Offer::example("a") };
    let offers = vec![dear.clone(), Offer::example("b")];
    let spec = Box::new(Spec::example("r1"));
    let state = State::asked(BEGAN, &Event::Asked { spec, offers }).unwrap();
    let events = [Event::Renting { offer: dear }, rented(), Event::Prepared, gone()];
    assert_eq!(tell(state, &events).outcome, Some(Outcome::Lost("gone".into())));
}

#[test]
fn time_and_money_end_a_run_whichever_is_sooner() {
    let at_machine = |max_seconds, max_cost| {
        let mut state = asked(&["a"]);
        (state.spec.max_seconds, state.spec.max_cost) = (max_seconds, max_cost);
        tell(state, &[renting("a"), rented(), Event::Prepared])
    };
    let seconds = |state: &State| state.spec_on_machine(after(3)).max_seconds;
    assert_eq!(seconds(&at_machine(None, None)), None);
    // A dollar buys an hour, of which ten minutes are kept; two seconds are gone since the machine was asked for.
    assert_eq!(seconds(&at_machine(None, Some(1_000_000))), Some(3000 - 2));
    assert_eq!(seconds(&at_machine(Some(60), Some(1_000_000))), Some(60));
    assert_eq!(seconds(&at_machine(Some(9999), Some(1_000_000))), Some(2998));
    assert_eq!(seconds(&at_machine(None, Some(1))), Some(0));
    let running = tell(at_machine(Some(60), None), &[Event::Started]);
    assert_eq!(running.ends_by(), Some(after(4 + 60)));
    assert_eq!(running.cost(after(1 + 3600)), 1_000_000);

    // Time and money that the first machine took are not there for the second.
    let second = [gone(), Event::Returned, renting("b"), rented(), Event::Prepared];
    let mut state = tell(asked(&["a", "b"]), &[renting("a"), rented(), Event::Prepared, Event::Started]);
    (state.spec.max_seconds, state.spec.max_cost) = (Some(7200), Some(1_000_000));
    state.since = after(1800);
    let state = tell(state, &second);
    assert_eq!(state.started, Some(after(4)));
    // 1801 seconds are paid for, 1799 are left but for a part of one, ten minutes are kept.
    assert_eq!(state.ends_by(), Some(after(1803 + 1798 - 600)));
}

#[test]
fn journals_of_every_format_load_for_ever() {
    // One of each event, as the first release wrote them. Never changed: headquarters out there hold these.
    let v1 = include_str!("../../../tests/receipts/run-v1.jsonl");
    let dir = tempfile::tempdir().unwrap();
    let host = Host::new(dir.path(), System);
    host.write(Path::new("/j"), 0o600, v1.as_bytes()).unwrap();
    let entries: Vec<Entry> = Journal::read(&host, Path::new("/j")).unwrap();
    let kinds: std::collections::HashSet<_> =
        entries.iter().map(|entry| std::mem::discriminant(&entry.event)).collect();
    assert_eq!(kinds.len(), 16, "one of each");
    // Four runs, since no single one can fail to come home, come home, be kept, and come home after that.
    let is_first = |n: &usize| matches!(entries[*n].event, Event::Asked { .. });
    let begins: Vec<usize> = (0..entries.len()).filter(is_first).chain([entries.len()]).collect();
    let run = |n: usize| &entries[begins[n]..begins[n + 1]];
    let told = |entries: &[Entry]| replay(entries).unwrap().unwrap();
    let state = told(run(0));
    assert_eq!(state.spec.run, RunId::try_from("esn-20261124-1530-7f3a".to_owned()).unwrap());
    assert_eq!((state.phase, state.outcome), (Phase::Done, Some(Outcome::Exit(Exit::Stopped))));
    assert_eq!((state.rentals.len(), state.unfetched.as_deref()), (3, Some("disk full")));
    let state = told(run(1));
    assert_eq!((state.phase, state.outcome), (Phase::Done, Some(Outcome::Exit(Exit::Code(0)))));
    let state = told(&run(2)[..run(2).len() - 1]);
    let place = "/subscriptions/s/resourceGroups/er-1a2b3c_kept/providers/Microsoft.Compute/snapshots/er-1a2b3c-big_kept";
    assert_eq!((state.phase, state.kept), (Phase::Done, Some(Keep::At(place.into()))));
    assert_eq!(told(run(2)).kept, None);
    let state = told(run(3));
    assert_eq!((state.phase, state.outcome), (Phase::Done, Some(Outcome::Exit(Exit::Code(0)))));
    assert_eq!((state.pulled, state.kept, state.unfetched), (Some(Pulled::Home), None, None));
    // And what is written today reads the same when it is read again.
    for (entry, line) in entries.iter().zip(v1.lines()) {
        let text = serde_json::to_string(entry).unwrap();
        assert_eq!(text.replacen('{', "{\"v\":1,", 1), line);
    }
}

#[test]
fn an_impossible_story_is_told_as_one() {
    let entry = |event| Entry::new(BEGAN, &event);
    let spec = Box::new(Spec::example("r1"));
    let asked = entry(Event::Asked { spec, offers: vec![Offer::example("a")] });
    let said = format!("{:#}", replay(&[asked, entry(Event::Fetched)]).unwrap_err());
    assert_eq!(said, "entry 2 tells of something that cannot happen there: Fetched");
    assert_eq!(replay(&[]).unwrap(), None);
}

#[test]
fn fuzz_run_is_replayed_or_refused_and_can_be_told() {
    let words = [
        "\"event\":\"asked\"",
        "\"event\":\"lost\"",
        "\"max_cost\":1",
        "\"grace\":1",
        "\"price\":1",
        "9999-12-31T23:59:59-23:59",
    ];
    crate::fuzz::run("run", &words, |bytes| {
        let entries = crate::journal::read_bytes::<Entry>(bytes)?;
        let Some(state) = replay(&entries)? else { return Ok(()) };
        let last = entries.last().map(|entry| entry.at);
        for now in
            [Some(OffsetDateTime::UNIX_EPOCH), last, Some(time::macros::datetime!(2026-11-29 00:00 UTC))]
        {
            let now = now.unwrap_or(OffsetDateTime::UNIX_EPOCH);
            let _ = (state.spec_on_machine(now), state.killed_at(), super::super::pulse::money(&state, now));
            let _ = super::super::pulse::Countdown::of(&state, now).map(|left| left.to_string());
            let receipt = super::super::receipt::Receipt::of(&state, std::path::Path::new("/r"), now);
            let _ = (receipt.text(), serde_json::to_string(&receipt)?, super::super::receipt::status(&state));
        }
        Ok(())
    });
}
