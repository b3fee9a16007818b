use super::*;
use time::macros::datetime;

mod years;

const NOW: OffsetDateTime = datetime!(2026-11-23 12:00 UTC);
const DIE: f64 = 0.5;

fn names(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|&n| n.to_owned()).collect()
}

/// A certificate of so many hours, and `NOW` so many hours into it.
fn held(life: i64, age: i64) -> Held {
    let not_before = NOW - Duration::hours(age);
    Held {
        id: Some("aki.1".into()),
        names: names(&["mlflow.example.org"]),
        key: "P-256".into(),
        not_before,
        not_after: not_before + Duration::hours(life),
    }
}

fn facts(on_disk: OnDisk) -> Facts {
    Facts {
        wanted: Wanted { names: names(&["mlflow.example.org"]), key: "P-256".into(), profile: None },
        on_disk,
        unfinished: None,
        clock: Some(Duration::ZERO),
        staging: true,
        asked: Asked::ByTimer,
    }
}

fn order_of(why: Reason) -> Order {
    Order { why, rehearse: false, replaces: None, new_account: false }
}

fn failure(class: ErrorClass) -> Failure {
    Failure { class, at: Ca::Production, replaces: false, retry_at: None }
}

/// A state after one failed attempt, and when that was.
fn try_and_fail(state: State, now: OffsetDateTime, facts: &Facts, failure: Failure) -> State {
    let begun = after(state, now, Outcome::Begun, facts, DIE);
    after(begun, now, Outcome::Failed(failure), facts, DIE)
}

fn suggested(facts: &Facts, start: OffsetDateTime, end: OffsetDateTime, draw: f64) -> State {
    let answer = Outcome::AriAnswered { window: Window { start, end }, retry_after: Some(HOUR * 6) };
    after(State::default(), NOW, answer, facts, draw)
}

#[test]
fn without_a_suggestion_a_third_of_a_life_is_left_and_of_a_short_one_half() {
    let days = |d: i64| d * 24;
    for (life, due) in [(days(90), days(60)), (days(64), 1024), (days(45), days(30)), (160, 80), (12, 6)] {
        let facts = facts(OnDisk::Good(held(life, 1)));
        let at = NOW + Duration::hours(due - 1);
        assert_eq!(planned(NOW, &State::default(), &facts), (at, Reason::Ending), "{life}");
    }
}

#[test]
fn a_suggestion_is_followed_until_too_little_is_left() {
    let hour = |n| NOW + Duration::hours(n);
    let table = [
        // Life, the window in hours from now, the draw, and what is planned.
        (2160, 1416, 1464, 0.0, hour(1416), Reason::Suggested),
        (2160, 1416, 1464, 0.25, hour(1428), Reason::Suggested),
        (2160, 1416, 1464, 1.0, hour(1464), Reason::Suggested),
        // Not before it begins nor after it ends, whatever lots are drawn.
        (2160, 1416, 1464, 7.0, hour(1464), Reason::Suggested),
        (2160, 1416, 1464, f64::NAN, hour(1440), Reason::Suggested),
        // Moved into the past, by an authority that will revoke.
        (2160, -2, -1, 0.5, NOW - Duration::minutes(90), Reason::Suggested),
        // Far ahead: a quarter of the life is left, or a third of a short one.
        (2160, 9000, 9001, 0.5, hour(1620), Reason::Backstop),
        (1080, 9000, 9001, 0.5, hour(810), Reason::Backstop),
        (160, 9000, 9001, 0.5, NOW + Duration::minutes(160 * 40), Reason::Backstop),
        // What Pebble suggests for six days is left whole.
        (160, 83, 131, 0.49, hour(83) + Duration::minutes(1411) + Duration::seconds(12), Reason::Suggested),
    ];
    for (life, start, end, draw, at, why) in table {
        let facts = facts(OnDisk::Good(held(life, 0)));
        let state = suggested(&facts, hour(start), hour(end), draw);
        assert_eq!(planned(NOW, &state, &facts), (at, why), "{life} {start} {draw}");
    }
}

#[test]
fn a_moment_is_drawn_once_for_a_window() {
    let facts = facts(OnDisk::Good(held(2160, 0)));
    let (start, end) = (NOW + Duration::hours(1416), NOW + Duration::hours(1464));
    let first = suggested(&facts, start, end, 0.5);
    let again = |state, window, draw| {
        let answer = Outcome::AriAnswered { window, retry_after: Some(HOUR) };
        after(state, NOW + HOUR, answer, &facts, draw)
    };
    let same = again(first.clone(), Window { start, end }, 0.0);
    assert_eq!(planned(NOW, &same, &facts), planned(NOW, &first, &facts));
    let moved = again(first.clone(), Window { start: start - HOUR, end }, 0.0);
    assert_eq!(planned(NOW, &moved, &facts), (start - HOUR, Reason::Suggested));
    // One that ends before it begins changes nothing.
    let inverted = again(first.clone(), Window { start: end, end: start }, 0.0);
    assert_eq!(planned(NOW, &inverted, &facts), planned(NOW, &first, &facts));
    // Another certificate has another suggestion.
    let mut other = facts.clone();
    other.on_disk = OnDisk::Good(Held { id: Some("aki.2".into()), ..held(2160, 0) });
    assert_eq!(planned(NOW, &first, &other).1, Reason::Ending);
    assert_eq!(decide(NOW, &first, &other), Decision::AskAri);
}

#[test]
fn the_suggestion_is_asked_for_when_the_authority_said() {
    let facts = facts(OnDisk::Good(held(2160, 0)));
    let window = Window { start: NOW + Duration::days(59), end: NOW + Duration::days(61) };
    let inverted = Window { start: window.end, end: window.start };
    let minutes = Duration::minutes;
    let answered = |window, retry_after| Outcome::AriAnswered { window, retry_after };
    let failed = |fault, retry_after| Outcome::AriFailed { fault, retry_after };
    let table = [
        (answered(window, Some(HOUR * 6)), HOUR * 6),
        (answered(window, Some(Duration::ZERO)), minutes(1)),
        (answered(window, Some(-HOUR)), minutes(1)),
        (answered(window, Some(WEEK)), DAY),
        (answered(window, None), HOUR * 6),
        (answered(inverted, Some(HOUR)), HOUR * 6),
        (answered(inverted, Some(HOUR * 12)), HOUR * 12),
        (failed(AriFault::Lasting, None), HOUR * 6),
        (failed(AriFault::Passing, None), minutes(1)),
        (failed(AriFault::Passing, Some(HOUR * 2)), HOUR * 2),
        (failed(AriFault::Passing, Some(WEEK)), DAY),
    ];
    for (outcome, wait) in table {
        let state = after(State::default(), NOW, outcome.clone(), &facts, DIE);
        let Decision::Wait { until, why: Waiting::NotDue(_) } = decide(NOW, &state, &facts) else {
            panic!("{outcome:?}")
        };
        assert_eq!(until, NOW + wait, "{outcome:?}");
        assert_eq!(decide(until, &state, &facts), Decision::AskAri);
    }
    let mut state = State::default();
    let waits = (0..40).map(|_| {
        state = after(state.clone(), NOW, failed(AriFault::Passing, None), &facts, DIE);
        (state.ari.as_ref().unwrap().next - NOW).whole_minutes()
    });
    assert_eq!(
        waits.collect::<Vec<_>>(),
        [&[1, 2, 4, 8, 16, 32, 64, 128, 256][..], &[360; 31]].concat(),
        "it grows and stops growing"
    );
}

#[test]
fn each_reason_obtains_and_nothing_else_does() {
    let good = || OnDisk::Good(held(2160, 24));
    let with = |change: &dyn Fn(&mut Facts)| {
        let mut facts = facts(good());
        change(&mut facts);
        facts
    };
    let replaces = |why| Decision::Obtain(Order { replaces: Some("aki.1".into()), ..order_of(why) });
    let obtain = |why| Decision::Obtain(order_of(why));
    let table = [
        (facts(good()), Decision::AskAri),
        (facts(OnDisk::Nothing), obtain(Reason::Absent)),
        (facts(OnDisk::Broken), obtain(Reason::Broken)),
        // A life that ends before it begins is no life.
        (facts(OnDisk::Good(held(0, 0))), obtain(Reason::Broken)),
        (facts(OnDisk::Good(held(2160, 1439))), Decision::AskAri),
        (facts(OnDisk::Good(held(2160, 1440))), replaces(Reason::Ending)),
        (facts(OnDisk::Good(held(2160, 2160))), obtain(Reason::Expired)),
        (facts(OnDisk::Good(Held { id: None, ..held(2160, 1440) })), obtain(Reason::Ending)),
        (
            facts(OnDisk::Good(Held { id: None, ..held(2160, 0) })),
            Decision::Wait { until: NOW + Duration::days(60), why: Waiting::NotDue(Reason::Ending) },
        ),
        (with(&|f| f.wanted.names = names(&["mlflow.example.org", "docs.example.org"])), {
            replaces(Reason::Names)
        }),
        // What shares no name is not replaced.
        (with(&|f| f.wanted.names = names(&["docs.example.org"])), obtain(Reason::Names)),
        (with(&|f| f.wanted.key = "P-384".into()), replaces(Reason::Key)),
        // Nobody remembers which profile it has, so it may be the right one.
        (with(&|f| f.wanted.profile = Some("tlsserver".into())), Decision::AskAri),
        (with(&|f| f.asked = Asked::ByPerson), replaces(Reason::Asked)),
        (with(&|f| f.unfinished = Some(NOW - HOUR)), Decision::Resume),
        (with(&|f| f.unfinished = Some(NOW + HOUR)), Decision::Resume),
        (with(&|f| f.unfinished = Some(NOW - DAY)), Decision::AskAri),
    ];
    for (facts, decision) in table {
        assert_eq!(decide(NOW, &State::default(), &facts), decision, "{facts:?}");
    }
}

#[test]
fn another_profile_is_noticed_when_the_last_one_is_remembered() {
    let mut facts = facts(OnDisk::Good(held(2160, 24)));
    let issued = Outcome::Issued { id: Some("aki.1".into()), not_after: NOW + Duration::days(90) };
    let state = after(State::default(), NOW - DAY, issued, &facts, DIE);
    assert_eq!(decide(NOW, &state, &facts), Decision::AskAri);
    facts.wanted.profile = Some("tlsserver".into());
    let order = Order { replaces: Some("aki.1".into()), ..order_of(Reason::Profile) };
    assert_eq!(decide(NOW, &state, &facts), Decision::Obtain(order));
}

#[test]
fn what_would_pass_while_we_sleep_is_done_now() {
    let facts = facts(OnDisk::Good(held(2160, 0)));
    let at = NOW + Duration::days(60);
    let mut state = suggested(&facts, at, at + Duration::SECOND, 0.0);
    state.ari.as_mut().unwrap().next = NOW + Duration::days(61);
    let due = at - WAKE;
    let asked = |now| Decision::Wait { until: due, why: Waiting::NotDue(Reason::Suggested) } == now;
    state.ari.as_mut().unwrap().next = due;
    assert!(asked(decide(due - Duration::SECOND, &state, &facts)));
    assert!(matches!(decide(due, &state, &facts), Decision::Obtain(Order { why: Reason::Suggested, .. })));
}

#[test]
fn nothing_goes_out_by_a_wrong_clock() {
    let clock = |clock| Facts { clock, ..facts(OnDisk::Nothing) };
    let wait = |offset| Decision::Wait { until: NOW + WAKE, why: Waiting::Clock(offset) };
    let (minute, obtain) = (Duration::MINUTE, Decision::Obtain(order_of(Reason::Absent)));
    let table = [
        (None, Decision::AskTime(Errand::Order)),
        (Some(minute * 5), obtain.clone()),
        (Some(-minute * 5), obtain),
        (Some(minute * 6), wait(minute * 6)),
        (Some(-DAY * 50), wait(-DAY * 50)),
        (Some(Duration::MIN), wait(Duration::MIN)),
    ];
    for (offset, decision) in table {
        assert_eq!(decide(NOW, &State::default(), &clock(offset)), decision, "{offset:?}");
    }
    let good = Facts { clock: None, ..facts(OnDisk::Good(held(2160, 0))) };
    assert_eq!(decide(NOW, &State::default(), &good), Decision::AskTime(Errand::Ari));
    assert_eq!(Waiting::Clock(-HOUR).to_string(), "this machine's clock is 3600 s ahead of the authority's");
    assert_eq!(Waiting::Clock(HOUR).to_string(), "this machine's clock is 3600 s behind the authority's");
}

#[test]
fn what_was_written_by_a_wrong_clock_does_not_hold_us_up() {
    let facts = facts(OnDisk::Good(held(2160, 1500)));
    let later = NOW + Duration::days(400);
    let failed = try_and_fail(State::default(), later, &facts, failure(ErrorClass::Unreachable));
    assert!(matches!(decide(NOW, &failed, &facts), Decision::Obtain(_)));
    let facts = Facts { on_disk: OnDisk::Good(held(2160, 0)), ..facts };
    let asked = Outcome::AriFailed { fault: AriFault::Lasting, retry_after: None };
    let asked = after(State::default(), later, asked, &facts, DIE);
    assert_eq!(decide(NOW, &asked, &facts), Decision::AskAri);
}

#[test]
fn each_error_is_waited_out_in_its_own_way() {
    use ErrorClass::*;
    // Minutes before the second attempt, the third, and so on; with half a life left.
    let table: [(&[ErrorClass], [i64; 5]); 6] = [
        (&[Unreachable, Busy, Server, BadNonce, Processing], [1, 10, 100, 1440, 1440]),
        (&[Validation], [10, 100, 1440, 1440, 1440]),
        (&[Replaces, Unusable, Request], [100, 1440, 1440, 1440, 1440]),
        (&[Caa, Identifier, Terms, Binding, Profile, RateLimited], [1440; 5]),
        (&[Clock], [60; 5]),
        // The first makes another account at once, and the second knows that it did not help.
        (&[Account], [1, 1440, 1, 1440, 1]),
    ];
    let facts = facts(OnDisk::Good(held(2160, 1080)));
    for (classes, waits) in table {
        for &class in classes {
            let (mut state, mut now) = (State::default(), NOW);
            for (n, minutes) in (1..).zip(waits) {
                let by_hand = Facts { asked: Asked::ByPerson, ..facts.clone() };
                state = try_and_fail(state, now, &by_hand, failure(class));
                assert_eq!(state.failure(), Some((now, class, n)));
                let next = state.failing.as_ref().unwrap().next;
                assert_eq!((next - now).whole_minutes(), minutes, "{class:?} {n}");
                now = next;
            }
        }
    }
    // An attempt that nobody lived to tell of is one that failed.
    let killed = after(State::default(), NOW, Outcome::Begun, &facts, DIE);
    assert_eq!(killed.failure(), Some((NOW, Cut, 1)));
    assert_eq!(killed.failing.unwrap().next, NOW + Duration::MINUTE);
}

#[test]
fn a_wait_is_spread_by_a_tenth() {
    let facts = facts(OnDisk::Good(held(2160, 1080)));
    for (draw, seconds) in [(0.0, 77760), (0.5, 86400), (1.0, 95040)] {
        let fail = Outcome::Failed(failure(ErrorClass::Caa));
        let state = after(State::default(), NOW, fail, &facts, draw);
        assert_eq!((state.failing.unwrap().next - NOW).whole_seconds(), seconds);
    }
}

#[test]
fn the_nearer_the_end_the_shorter_the_wait() {
    let wait = |on_disk, since: Duration, class| {
        let facts = facts(on_disk);
        let first = try_and_fail(State::default(), NOW - since, &facts, failure(class));
        let state = try_and_fail(first, NOW, &facts, failure(class));
        (state.failing.unwrap().next - NOW).whole_minutes()
    };
    let left = |hours: i64| OnDisk::Good(held(2160, 2160 - hours));
    use ErrorClass::{Caa, RateLimited};
    let table = [
        (left(720), HOUR, Caa, 1440),
        (left(96), HOUR, Caa, 720),
        (left(8), HOUR, Caa, 60),
        (left(1), HOUR, Caa, 60),
        (left(1), HOUR, RateLimited, 360),
        // At the door, and then given up on.
        (left(-1), HOUR, Caa, 360),
        (OnDisk::Nothing, HOUR, Caa, 360),
        (OnDisk::Broken, WEEK - HOUR, Caa, 360),
        (OnDisk::Nothing, WEEK, Caa, 1440),
    ];
    for (on_disk, since, class, minutes) in table {
        assert_eq!(wait(on_disk.clone(), since, class), minutes, "{on_disk:?} {since}");
    }
}

#[test]
fn the_authority_is_not_asked_before_it_said_whoever_asks() {
    let by = |asked| Facts { asked, ..facts(OnDisk::Nothing) };
    let failed = |class, wait: Duration| {
        let failure = Failure { retry_at: Some(NOW + wait), ..failure(class) };
        try_and_fail(State::default(), NOW, &by(Asked::ByTimer), failure)
    };
    use ErrorClass::{Busy, RateLimited};
    // Until when it is waited by the timer, and by hand.
    let table = [
        (RateLimited, HOUR * 34, Some(HOUR * 34)),
        (RateLimited, DAY * 4000, Some(DAY * 8)),
        (Busy, HOUR, Some(HOUR)),
        (Busy, DAY * 4000, Some(DAY)),
        (Busy, -HOUR, None),
    ];
    for (class, asked, wait) in table {
        let state = failed(class, asked);
        for asker in [Asked::ByTimer, Asked::ByPerson] {
            let decision = decide(NOW, &state, &by(asker));
            match wait {
                Some(wait) => {
                    let why = Waiting::RetryAfter(class);
                    assert_eq!(decision, Decision::Wait { until: NOW + wait, why });
                }
                None if asker == Asked::ByPerson => assert!(matches!(decision, Decision::Obtain(_))),
                None => {
                    let until = NOW + Duration::MINUTE;
                    assert_eq!(decision, Decision::Wait { until, why: Waiting::Backoff(Busy) });
                }
            }
        }
    }
    // Nor is it asked for its suggestion meanwhile.
    let due = facts(OnDisk::Good(held(2160, 1500)));
    assert!(matches!(
        decide(NOW, &failed(Busy, HOUR), &due),
        Decision::Wait { why: Waiting::RetryAfter(Busy), .. }
    ));
}

#[test]
fn replaces_is_dropped_on_whatever_it_may_have_caused() {
    use ErrorClass::*;
    let facts = facts(OnDisk::Good(held(2160, 1500)));
    let replaces = |state: &State| match decide(NOW + DAY * 2, state, &facts) {
        Decision::Obtain(order) => order.replaces,
        other => panic!("{other:?}"),
    };
    let next = |state: &State| state.failing.as_ref().unwrap().next - NOW;
    for class in [Server, Account, Replaces, Request] {
        let with = Failure { replaces: true, ..failure(class) };
        let state = try_and_fail(State::default(), NOW, &facts, with);
        assert_eq!(replaces(&state), None, "{class:?}");
        // It is known in a minute whether that was it, and no account is thrown away before.
        assert_eq!(next(&state), Duration::MINUTE, "{class:?}");
        assert!(!state.new_account);
        let issued = Outcome::Issued { id: Some("aki.2".into()), not_after: NOW + DAY * 90 };
        assert!(after(state, NOW, issued, &facts, DIE).replaces, "the next certificate begins anew");
    }
    for class in [
        BadNonce,
        Caa,
        Profile,
        RateLimited,
        Identifier,
        Terms,
        Binding,
        Validation,
        Unreachable,
        Busy,
        Processing,
        Clock,
    ] {
        let with = Failure { replaces: true, ..failure(class) };
        assert_eq!(
            replaces(&try_and_fail(State::default(), NOW, &facts, with)),
            Some("aki.1".into()),
            "{class:?}"
        );
    }
    // It was not sent, so it is not to blame.
    assert_eq!(
        replaces(&try_and_fail(State::default(), NOW, &facts, failure(Request))),
        Some("aki.1".into())
    );
    // A certificate came, so the old one is replaced, as bad as the new one is; and there is no hurry.
    let state = try_and_fail(State::default(), NOW, &facts, failure(Unusable));
    assert_eq!((replaces(&state), next(&state)), (None, Duration::minutes(100)));
}

#[test]
fn a_new_account_is_made_once_a_day() {
    let facts = facts(OnDisk::Nothing);
    let lost = |state, now| try_and_fail(state, now, &facts, failure(ErrorClass::Account));
    let new_account = |state: &State, now| match decide(now, state, &facts) {
        Decision::Obtain(order) => order.new_account,
        other => panic!("{other:?}"),
    };
    let first = lost(State::default(), NOW);
    assert!(new_account(&first, NOW + HOUR));
    let second = lost(first, NOW + HOUR);
    assert!(!new_account(&second, NOW + HOUR * 8));
    assert!(!new_account(&lost(second.clone(), NOW + HOUR * 8), NOW + DAY));
    assert!(new_account(&lost(second, NOW + DAY + HOUR), NOW + DAY * 2));
}

#[test]
fn after_a_refusal_staging_is_asked_first() {
    use ErrorClass::*;
    let nothing = facts(OnDisk::Nothing);
    let rehearse = |state: &State, facts: &Facts| match decide(NOW + DAY * 2, state, facts) {
        Decision::Obtain(order) => order.rehearse,
        other => panic!("{other:?}"),
    };
    let fail = |state, at, class| try_and_fail(state, NOW, &nothing, Failure { at, ..failure(class) });
    for class in [Validation, Caa, Identifier, Terms, Binding, Profile, RateLimited, Unusable, Request] {
        let refused = fail(State::default(), Ca::Production, class);
        assert!(rehearse(&refused, &nothing), "{class:?}");
        assert!(rehearse(&fail(refused.clone(), Ca::Staging, class), &nothing), "{class:?}");
        // Where there is no staging there is nothing to rehearse on.
        assert!(!rehearse(&refused, &Facts { staging: false, ..nothing.clone() }));
        // Staging that does not answer is no reason to wait.
        let down = fail(refused, Ca::Staging, Unreachable);
        assert!(!rehearse(&down, &nothing));
        assert_eq!(down.failure(), Some((NOW, Unreachable, 1)));
        assert_eq!(down.failing.unwrap().next, NOW + Duration::MINUTE);
    }
    for class in [Unreachable, Busy, Server, BadNonce, Processing, Clock] {
        assert!(!rehearse(&fail(State::default(), Ca::Production, class), &nothing), "{class:?}");
    }
}

#[test]
fn no_more_is_issued_than_may_be() {
    let facts = |asked| Facts { asked, ..facts(OnDisk::Broken) };
    let spent = |ago: &[i64], life: Option<Duration>| State {
        spent: ago
            .iter()
            .map(|h| NOW - HOUR * *h as i32)
            .map(|at| Spent { at, ends: life.map(|life| at + life) })
            .collect(),
        ..State::default()
    };
    let (six, half) = (Some(HOUR * 160), Some(HOUR * 12));
    // Hours ago, the life of the last, and in how many hours there is room: by the timer, and by hand.
    let table: [(&[i64], Option<Duration>, i32, i32); 11] = [
        (&[], None, 0, 0),
        (&[1], None, 0, 0),
        (&[2, 1], None, 32, 0),
        (&[34, 1], None, 0, 0),
        (&[160, 100, 60], None, 0, 0),
        (&[167, 100, 60, 40], None, 1, 0),
        (&[168, 100, 60, 40], None, 0, 0),
        (&[167, 100, 60, 40, 35], None, 68, 1),
        (&[159, 100, 60, 40], six, 1, 0),
        // Hours of life cannot be meant with a week's limit.
        (&[18, 12, 6, 3], half, 0, 0),
        (&[2, 1], half, 1, 0),
    ];
    for (ago, life, by_timer, by_hand) in table {
        for (asked, hours) in [(Asked::ByTimer, by_timer), (Asked::ByPerson, by_hand)] {
            let decision = decide(NOW, &spent(ago, life), &facts(asked));
            match hours {
                0 => assert!(matches!(decision, Decision::Obtain(_)), "{ago:?} {asked:?} {decision:?}"),
                _ => {
                    let until = NOW + HOUR * hours;
                    assert_eq!(decision, Decision::Wait { until, why: Waiting::Issued }, "{ago:?}");
                }
            }
        }
    }
}

#[test]
fn what_was_signed_counts_even_if_it_never_came() {
    let facts = facts(OnDisk::Nothing);
    let mut state = State::default();
    for n in 0..2 {
        state = after(state, NOW + HOUR * n, Outcome::Begun, &facts, DIE);
        state = after(state, NOW + HOUR * n, Outcome::Finalizing, &facts, DIE);
    }
    let wait = Decision::Wait { until: NOW + REFILL, why: Waiting::Issued };
    assert_eq!(decide(NOW + HOUR * 20, &state, &facts), wait);
    // Resumed, it is counted once.
    let issued = |id: &str| Outcome::Issued { id: Some(id.into()), not_after: NOW + DAY * 90 };
    let resumed = after(state, NOW + HOUR * 2, issued("a"), &facts, DIE);
    assert_eq!(resumed.spent.len(), 2);
    // And a caller that says nothing before is counted all the same.
    assert_eq!(after(resumed, NOW + HOUR * 3, issued("b"), &facts, DIE).spent.len(), 3);
}

#[test]
fn no_more_validations_fail_than_may() {
    let facts = Facts { asked: Asked::ByPerson, ..facts(OnDisk::Nothing) };
    let mut state = State::default();
    for n in 0..4 {
        let now = NOW + Duration::minutes(n);
        assert!(matches!(decide(now, &state, &facts), Decision::Obtain(_)));
        state = try_and_fail(state, now, &facts, failure(ErrorClass::Validation));
    }
    let wait = Decision::Wait { until: NOW + HOUR, why: Waiting::Refused };
    assert_eq!(decide(NOW + Duration::minutes(4), &state, &facts), wait);
    assert!(matches!(decide(NOW + HOUR, &state, &facts), Decision::Obtain(_)));
}

#[test]
fn a_state_is_read_as_it_was_written() {
    let mut due = facts(OnDisk::Good(held(2160, 1500)));
    due.wanted.profile = Some("classic".into());
    let state = suggested(&due, NOW + DAY, NOW + DAY * 2, DIE);
    let state =
        try_and_fail(state, NOW, &due, Failure { retry_at: Some(NOW + HOUR), ..failure(ErrorClass::Busy) });
    let state = try_and_fail(state, NOW, &due, failure(ErrorClass::Validation));
    let state = after(state, NOW, Outcome::Finalizing, &due, DIE);
    let text = state.write().unwrap();
    assert_eq!(State::read(Some(&text), NOW), state);
    let issued = Outcome::Issued { id: Some("aki.2".into()), not_after: NOW + DAY * 90 };
    let state = after(state, NOW, issued, &due, DIE);
    assert_eq!(State::read(Some(&state.write().unwrap()), NOW), state);
    assert_eq!(state.failure(), None);
    assert_eq!(State::read(None, NOW), State::default());
}

#[test]
fn a_state_that_cannot_be_read_is_taken_for_the_worst() {
    let newer = State { version: 2, ..State::default() }.write().unwrap();
    for text in ["", "{", "null", "[]", "{\"version\":1}", &newer] {
        let state = State::read(Some(text), NOW);
        assert_eq!(state, State::lost(NOW), "{text}");
        assert_eq!(State::read(Some(&state.write().unwrap()), NOW + HOUR), state);
        // A good certificate is not touched.
        let good = facts(OnDisk::Good(held(2160, 24)));
        assert_eq!(decide(NOW, &state, &good), Decision::AskAri);
        // None is obtained in an hour, with staging first, and no second one soon after.
        let none = facts(OnDisk::Nothing);
        let backoff = Waiting::Backoff(ErrorClass::Lost);
        assert_eq!(decide(NOW, &state, &none), Decision::Wait { until: NOW + HOUR, why: backoff });
        let order = Order { rehearse: true, ..order_of(Reason::Absent) };
        assert_eq!(decide(NOW + HOUR, &state, &none), Decision::Obtain(order));
        let signed = after(state, NOW + HOUR, Outcome::Finalizing, &none, DIE);
        let wait = Decision::Wait { until: NOW - REFILL + WEEK, why: Waiting::Issued };
        assert_eq!(decide(NOW + DAY, &signed, &none), wait);
    }
}

#[test]
fn every_answer_of_an_authority_has_its_class() {
    use ErrorClass::*;
    use Stage::{Account, Challenge, Finalize, NewOrder};
    let table = [
        (NewOrder, Some("rateLimited"), Some(429), RateLimited),
        (NewOrder, Some("rateLimited"), None, RateLimited),
        (NewOrder, None, Some(429), RateLimited),
        (NewOrder, Some("badNonce"), Some(400), BadNonce),
        (NewOrder, Some("rejectedIdentifier"), Some(400), Identifier),
        (NewOrder, Some("unsupportedIdentifier"), Some(400), Identifier),
        (NewOrder, Some("invalidProfile"), Some(400), Profile),
        (NewOrder, Some("userActionRequired"), Some(403), Terms),
        (Account, Some("externalAccountRequired"), Some(403), Binding),
        (Account, Some("accountDoesNotExist"), Some(400), ErrorClass::Account),
        (NewOrder, Some("unauthorized"), Some(403), ErrorClass::Account),
        (Challenge, Some("unauthorized"), Some(403), Validation),
        // Pebble, of a CSR that misses a name.
        (Finalize, Some("unauthorized"), Some(403), Request),
        (Challenge, Some("dns"), None, Validation),
        (Challenge, Some("connection"), None, Validation),
        (Challenge, Some("tls"), None, Validation),
        (Challenge, Some("incorrectResponse"), None, Validation),
        (Challenge, Some("caa"), Some(403), Caa),
        (Finalize, Some("caa"), None, Caa),
        (Finalize, Some("badCSR"), Some(400), Request),
        (NewOrder, Some("alreadyReplaced"), Some(409), Replaces),
        (NewOrder, Some("conflict"), Some(409), Replaces),
        // Pebble 2.6.
        (NewOrder, Some("malformed"), Some(409), Replaces),
        // A key that was rolled.
        (Account, Some("malformed"), Some(400), Request),
        (NewOrder, Some("serverInternal"), Some(500), Server),
        (NewOrder, Some("serverInternal"), Some(503), Busy),
        (NewOrder, Some("serverInternal"), None, Server),
        (Account, None, Some(503), Busy),
        (Account, None, Some(502), Server),
        (Account, None, Some(404), Request),
        (Account, None, None, Unreachable),
        (Account, Some("no such thing"), None, Request),
    ];
    for (stage, kind, status, class) in table {
        assert_eq!(ErrorClass::of(stage, kind, status), class, "{stage:?} {kind:?} {status:?}");
        let urn = kind.map(|kind| format!("urn:ietf:params:acme:error:{kind}"));
        assert_eq!(ErrorClass::of(stage, urn.as_deref(), status), class);
    }
}

#[test]
fn a_date_is_found_in_words() {
    let said = "too many certificates (5) already issued for this exact set of identifiers in the last \
                168h0m0s, retry after 2026-11-24 08:15:04 UTC: see the documentation";
    let table = [
        (said, Some(datetime!(2026-11-24 08:15:04 UTC))),
        ("retry after 2026-11-24 08:15:04 UTC", Some(datetime!(2026-11-24 08:15:04 UTC))),
        ("retry after 2026-11-24 08:15:04 CET", None),
        ("retry after 2026-13-24 08:15:04 UTC", None),
        ("retry after 2026-11-24", None),
        ("retry after ééééééééééé", None),
        ("retry after ", None),
        ("", None),
    ];
    for (text, date) in table {
        assert_eq!(retry_date(text), date, "{text}");
    }
}

#[test]
fn health_is_what_is_left() {
    let (from, to) = (NOW, NOW + DAY * 40);
    let table = [
        (from - Duration::SECOND, Health::Bad),
        (from, Health::Good),
        (from + DAY * 30, Health::Good),
        (from + DAY * 30 + Duration::SECOND, Health::Warn),
        (from + DAY * 36, Health::Warn),
        (from + DAY * 36 + Duration::SECOND, Health::Bad),
        (to, Health::Bad),
        (to + DAY, Health::Bad),
    ];
    for (now, expected) in table {
        assert_eq!(health(now, from, to), expected, "{now}");
    }
    assert_eq!(health(NOW, NOW, NOW), Health::Bad);
}

/// Every outcome on every state at every end of time: nothing overflows, and what comes out can be written.
#[test]
fn no_date_is_too_far() {
    let ends =
        [datetime!(0001-01-01 0:00 UTC), OffsetDateTime::UNIX_EPOCH, NOW, datetime!(9999-12-31 23:59:59 UTC)];
    let mut states = 0;
    for (&now, &other) in ends.iter().flat_map(|a| ends.iter().map(move |b| (a, b))) {
        let held = Held { not_before: other, not_after: now, ..held(1, 0) };
        for on_disk in [
            OnDisk::Nothing,
            OnDisk::Good(held.clone()),
            OnDisk::Good(Held { not_before: now, not_after: other, ..held }),
        ] {
            let clock = Some(other - now);
            let facts = Facts { unfinished: Some(other), clock, ..facts(on_disk) };
            let window = Window { start: other, end: now };
            let outcomes = [
                Outcome::Begun,
                Outcome::Finalizing,
                Outcome::AriAnswered { window, retry_after: Some(Duration::MAX) },
                Outcome::AriAnswered {
                    window: Window { start: now, end: other },
                    retry_after: Some(Duration::MIN),
                },
                Outcome::AriFailed { fault: AriFault::Passing, retry_after: Some(Duration::MAX) },
                Outcome::Failed(Failure { retry_at: Some(other), ..failure(ErrorClass::RateLimited) }),
                Outcome::Failed(failure(ErrorClass::Validation)),
                Outcome::Issued { id: None, not_after: other },
            ];
            let mut state = State::lost(other);
            for outcome in outcomes {
                for at in ends {
                    state = after(state, now, outcome.clone(), &facts, f64::INFINITY);
                    let _ = (decide(at, &state, &facts), planned(at, &state, &facts), health(at, now, other));
                    assert_eq!(State::read(Some(&state.write().unwrap()), now), state);
                    states += 1;
                }
            }
        }
    }
    assert_eq!(states, 4 * 4 * 3 * 8 * 4);
}
