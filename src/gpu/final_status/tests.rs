use super::*;
use crate::{
    gpu::{
        provider::{Class, Machine, Offer, Refusal},
        spec::Spec,
        state::{Event, Phase},
        target::Target,
    },
    host::System,
};
use axum::{Json, Router, extract::State as Shared, http::StatusCode, routing::post};
use serde_json::{Value, json};
use std::sync::{Arc, Mutex};
use time::ext::NumericalDuration as _;

/// A simulated tracking server: pages of two, and what it was asked to change.
#[derive(Default)]
struct Server {
    experiments: Vec<Value>,
    runs: Vec<Value>,
    updates: Vec<Value>,
    /// The run that it says cannot be changed.
    refused: Option<&'static str>,
}

type Shares = Arc<Mutex<Server>>;

fn page(all: &[Value], key: &str, question: &Value) -> Json<Value> {
    let from: usize = question["page_token"].as_str().unwrap_or("0").parse().unwrap();
    let to = (from + 2).min(all.len());
    let next = if to < all.len() { to.to_string() } else { String::new() };
    Json(json!({ key: all[from..to], "next_page_token": next }))
}

fn serve(server: Server) -> (tokio::runtime::Runtime, String, Shares) {
    let shares = Arc::new(Mutex::new(server));
    let experiments = async |Shared(server): Shared<Shares>, Json(question): Json<Value>| {
        page(&server.lock().unwrap().experiments, "experiments", &question)
    };
    let runs = async |Shared(server): Shared<Shares>, Json(question): Json<Value>| {
        assert_eq!(question["filter"], "tags.`echoes.run` = 'r1'");
        page(&server.lock().unwrap().runs, "runs", &question)
    };
    let update = async |Shared(server): Shared<Shares>, Json(question): Json<Value>| {
        let mut server = server.lock().unwrap();
        let refused = server.refused.is_some_and(|run| question["run_id"] == run);
        server.updates.push(question);
        (if refused { StatusCode::BAD_REQUEST } else { StatusCode::OK }, Json(json!({})))
    };
    let router = Router::new()
        .route("/api/2.0/mlflow/experiments/search", post(experiments))
        .route("/api/2.0/mlflow/runs/search", post(runs))
        .route("/api/2.0/mlflow/runs/update", post(update))
        .with_state(Arc::clone(&shares));
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let door = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
    let base = format!("http://{}", door.local_addr().unwrap());
    runtime.spawn(async move { axum::serve(door, router).await });
    (runtime, base, shares)
}

fn at(seconds: i64) -> OffsetDateTime {
    OffsetDateTime::UNIX_EPOCH + seconds.seconds()
}

fn sample(second: u64) -> String {
    format!("{{\"at\":{},\"memory\":1}}\n", second * 1000)
}

/// A run that has had machines at these seconds, and ended so.
fn ended(came: &[i64], outcome: Outcome) -> State {
    let offers = vec![Offer::example("a"); came.len()];
    let asked = Event::Asked { spec: Box::new(Spec::example("r1")), offers };
    let mut state = State::asked(at(0), &asked).unwrap();
    let machine = Machine { target: Target::Local, home: "/home".into(), data: None };
    for (n, second) in came.iter().enumerate() {
        let all = [
            Event::Renting { offer: Offer::example("a") },
            Event::Rented { machine: machine.clone() },
            Event::Prepared,
            Event::Started,
        ];
        for event in all {
            state = state.after(at(*second), &event).unwrap();
        }
        if n + 1 < came.len() {
            state.rentals.last_mut().unwrap().returned = Some(at(*second + 1));
            state.phase = Phase::Rent;
        }
    }
    state.outcome = Some(outcome);
    state
}

fn tracked(id: &str, began: u64, running: bool) -> TrackedRun {
    let id = TrackedId { experiment: "1".into(), run: id.into() };
    TrackedRun { id, began: began * 1000, running, nested: false, attempt: 1, last: None }
}

fn host() -> (tempfile::TempDir, Host) {
    let dir = tempfile::tempdir().unwrap();
    let host = Host::new(dir.path(), System);
    (dir, host)
}

#[test]
fn how_a_run_ended_has_a_word_of_mlflow_s() {
    let refusal = Refusal { class: Class::Final, said: "no".into(), hint: None };
    for (outcome, expected) in [
        (Outcome::Exit(Exit::Stopped), KILLED),
        (Outcome::Exit(Exit::Deadline), KILLED),
        (Outcome::Exit(Exit::Code(0)), FINISHED),
        (Outcome::Exit(Exit::Code(1)), FAILED),
        (Outcome::Exit(Exit::Code(137)), FAILED),
        (Outcome::Exit(Exit::Evicted), FAILED),
        (Outcome::Lost("gone".into()), FAILED),
        (Outcome::Failed("it".into()), FAILED),
        (Outcome::Refused(refusal), FAILED),
    ] {
        assert_eq!(status(&outcome), expected, "{outcome:?}");
    }
}

#[test]
fn a_run_ends_when_its_machine_was_last_heard_of_and_never_before_it_began_or_after_now() {
    let state = ended(&[1], Outcome::Exit(Exit::Stopped));
    let end = |run: &TrackedRun, samples: &str| {
        let all = [run.clone(), tracked("other", 3, false)];
        let [ending] = &endings(&all, &state, samples, 100_000)[..] else { panic!("one of them runs") };
        assert_eq!((ending.run, ending.status), ("it", KILLED));
        ending.at
    };
    let run = tracked("it", 10, true);
    let samples =
        [sample(5), sample(20), "nonsense\n".into(), sample(15), sample(1 << 40), "{\"at\":3".into()];
    assert_eq!(end(&run, &samples.concat()), 20_000);
    assert_eq!(end(&run, &sample(5)), 10_000, "not before it began");
    assert_eq!(end(&run, ""), 10_000);
    let told = |at| TrackedRun { last: Some(at), ..run.clone() };
    assert_eq!(end(&told(30_000), &samples.concat()), 30_000, "it told a number after the last sample");
    assert_eq!(end(&told(u64::MAX), &samples.concat()), 20_000, "a number of the future");
}

#[test]
fn what_an_earlier_try_began_has_failed_however_the_last_one_ended() {
    // The first machine was taken away while it ran.
    let state = ended(&[1, 100], Outcome::Exit(Exit::Code(0)));
    let all = [tracked("first", 10, true), tracked("second", 110, true)];
    let samples = [sample(50), sample(150)].concat();
    let ending = |run, status, at: u64| RunUpdate { run, status, at: at * 1000 };
    let expected = [ending("first", FAILED, 50), ending("second", FINISHED, 150)];
    assert_eq!(endings(&all, &state, &samples, 200_000), expected);
    // The script has gone on with the same one, or would have ended its own.
    let expected = [ending("first", FINISHED, 150)];
    assert_eq!(endings(&all[..1], &state, &samples, 200_000), expected);

    // A restart of the machine.
    let state = ended(&[1], Outcome::Exit(Exit::Code(0)));
    let again = TrackedRun { attempt: 2, ..tracked("second", 110, true) };
    let expected = [ending("second", FINISHED, 150), ending("first", FAILED, 50)];
    assert_eq!(endings(&[again, all[0].clone()], &state, &samples, 200_000), expected);

    // The machine's clock is behind ours: its first is not taken for an earlier one's.
    let state = ended(&[20], Outcome::Exit(Exit::Code(0)));
    let all = [tracked("first", 10, true), tracked("second", 30, true)];
    let statuses: Vec<_> = endings(&all, &state, "", 200_000).iter().map(|ending| ending.status).collect();
    assert_eq!(statuses, [FINISHED, FINISHED]);
}

#[test]
fn all_that_still_runs_is_ended_on_every_page_of_every_experiment_and_what_has_ended_stays() {
    let (_dir, host) = host();
    let run = |id: &str, status: &str, parent: Option<&str>| {
        let tags: Vec<_> =
            parent.iter().map(|id| json!({ "key": "mlflow.parentRunId", "value": id })).collect();
        let info = json!({ "run_id": id, "experiment_id": "3", "start_time": 5000, "status": status });
        json!({ "info": info, "data": { "tags": tags } })
    };
    let server = Server {
        experiments: (0..5).map(|n| json!({ "experiment_id": n.to_string() })).collect(),
        runs: vec![
            run("done", "FINISHED", None),
            run("outer", "RUNNING", None),
            run("inner", "RUNNING", Some("outer")),
            run("../../etc", "RUNNING", None),
            run("failed", "FAILED", None),
            run("last", "RUNNING", None),
        ],
        ..Server::default()
    };
    let (_mlflow, base, server) = serve(server);
    let state = ended(&[1], Outcome::Exit(Exit::Deadline));
    let now = at(60);
    assert_eq!(read(&host, &state.spec.run).unwrap(), None);
    tell(&host, Some(&base), &state, &sample(9), now).unwrap();
    assert!(server.lock().unwrap().updates.is_empty(), "nothing was to be told");

    note(&host, &state, now).unwrap();
    assert!(read(&host, &state.spec.run).unwrap().unwrap().is_awaited());
    tell(&host, Some(&base), &state, &sample(9), now).unwrap();
    let update = |id: &str| json!({ "run_id": id, "status": "KILLED", "end_time": 9000 });
    assert_eq!(server.lock().unwrap().updates, ["outer", "inner", "last"].map(update));
    let told = read(&host, &state.spec.run).unwrap().unwrap();
    assert!(!told.is_due(now) && !told.is_awaited());
    let receipt = told.on_receipt("https://mlflow.lonel.ai/");
    assert_eq!((receipt.told, receipt.runs), (Told::Done, 5));
    let link = |id: &str| format!("https://mlflow.lonel.ai/#/experiments/3/runs/{id}");
    assert_eq!(receipt.links, ["done", "outer", "failed", "last"].map(link));

    // Who comes later, as after a crash or for what was kept, tells it no more.
    note(&host, &state, at(90)).unwrap();
    tell(&host, Some(&base), &state, "", at(90)).unwrap();
    assert_eq!(server.lock().unwrap().updates.len(), 3);
}

#[test]
fn one_that_cannot_be_ended_keeps_no_other_from_it() {
    let (_dir, host) = host();
    let run = |id: &str| json!({ "info": { "run_id": id, "experiment_id": "1", "start_time": 5, "status": "RUNNING" } });
    let experiments = vec![json!({ "experiment_id": "1" })];
    let runs = vec![run("deleted"), run("good")];
    let (_mlflow, base, server) =
        serve(Server { experiments, runs, refused: Some("deleted"), ..Server::default() });
    let state = ended(&[1], Outcome::Lost("gone".into()));
    note(&host, &state, at(60)).unwrap();
    let error = tell(&host, Some(&base), &state, "", at(60)).unwrap_err();
    assert!(format!("{error:#}").contains("runs/update answered 400"), "{error:#}");
    assert!(server.lock().unwrap().updates.iter().any(|update| update["run_id"] == "good"));
    // It is not found any more: that is all there is to tell.
    server.lock().unwrap().runs.remove(0);
    tell(&host, Some(&base), &state, "", at(900)).unwrap();
    assert_eq!(read(&host, &state.spec.run).unwrap().unwrap().told, Told::Done);
}

#[test]
fn an_mlflow_that_is_down_is_told_later_and_not_for_ever() {
    let (_dir, host) = host();
    let state = ended(&[1], Outcome::Exit(Exit::Stopped));
    let run = &state.spec.run;
    note(&host, &state, at(0)).unwrap();
    tell(&host, Some("http://127.0.0.1:9"), &state, "", at(0)).unwrap_err();
    let due = read(&host, run).unwrap().unwrap();
    assert!(due.told == Told::Due && !due.is_awaited() && !due.is_due(at(299)) && due.is_due(at(300)));
    tell(&host, Some("http://127.0.0.1:9"), &state, "", at(299)).unwrap();
    assert_eq!(read(&host, run).unwrap().unwrap(), due, "it is not tried before its time");
    let mut waits = vec![due.clone()];
    while waits.last().unwrap().told == Told::Due {
        let last = waits.last().unwrap().clone();
        let when = last.next;
        waits.push(last.put_off(when));
    }
    assert!(waits.len() < 200, "{} times in a month", waits.len());
    assert!(waits.last().unwrap().since + GIVEN_UP < waits[waits.len() - 1].next);
    write(&host, run, waits.last().unwrap()).unwrap();
    tell(&host, Some("http://127.0.0.1:9"), &state, "", at(0)).unwrap();

    // It was removed from the headquarters.
    write(&host, run, &due).unwrap();
    tell(&host, None, &state, "", at(300)).unwrap();
    assert_eq!(read(&host, run).unwrap(), None);
}

#[test]
fn a_run_that_goes_on_is_not_told_of() {
    let (_dir, host) = host();
    let mut state = ended(&[1], Outcome::Exit(Exit::Stopped));
    state.outcome = None;
    note(&host, &state, at(60)).unwrap();
    assert_eq!(read(&host, &state.spec.run).unwrap(), None);
}
