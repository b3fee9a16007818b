//! The dashboard: its page, and a read-only view of MLflow's experiments and runs for it.
//!
//! MLflow is asked at its socket, with a limit to time, size and number; what it answers is read into the few
//! fields that we show and checked, because whoever logs a run decides what is in it. Nothing here can change
//! anything in MLflow.

use super::{attend, gate, mlflow_client, site};
use crate::host::Host;
use anyhow::{Context as _, Result};
use axum::{
    Json, Router,
    extract::{Query, State},
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use reqwest::Url;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};
use tokio::sync::Semaphore;
use tower_http::set_header::SetResponseHeaderLayer;

/// A hundred runs of twenty metrics are half a megabyte.
const LONGEST_ANSWER: usize = 16 << 20;

/// A search over a thousand runs took 1.3 s on a small machine.
const PATIENCE: Duration = Duration::from_secs(15);

/// MLflow has one worker: more at once would only make its own users wait.
const AT_ONCE: usize = 2;

/// Rows of a page.
const ROWS: u32 = 100;

/// Of one run, what a table can hold.
const MOST_VALUES: usize = 200;

/// Of one text, what a cell can hold.
const LONGEST_TEXT: usize = 300;

/// The page loads nothing from elsewhere and runs nothing that was written into it.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; \
                      font-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; \
                      frame-ancestors 'none'";

pub struct Dashboard {
    /// The page's files.
    pub root: PathBuf,
    pub socket: PathBuf,
    /// Where MLflow listens.
    pub mlflow: PathBuf,
}

/// Serve until SIGTERM.
pub async fn serve(host: &Host, dashboard: Dashboard) -> Result<()> {
    let Dashboard { root, socket, mlflow } = dashboard;
    let listener = gate::listen(host, &socket)?;
    let status =
        format!("serving {} on {}, runs from {}", root.display(), socket.display(), mlflow.display());
    // The name is not looked up: MLflow answers to it.
    let base = "http://localhost".parse().context("naming MLflow")?;
    attend(listener, app(root, Mlflow::new(base, Some(&mlflow), PATIENCE)?), &status).await
}

fn app(root: PathBuf, mlflow: Mlflow) -> Router {
    let never = HeaderValue::from_static("no-store");
    let api = Router::new()
        .route("/api/experiments", get(experiments))
        .route("/api/runs", get(runs))
        .route("/api/{*rest}", get(async || Trouble::NoSuchCall))
        .layer(SetResponseHeaderLayer::overriding(header::CACHE_CONTROL, never))
        .with_state(Arc::new(mlflow));
    let set = |name, value| SetResponseHeaderLayer::overriding(name, HeaderValue::from_static(value));
    site::app(&root)
        .merge(api)
        .layer(set(header::CONTENT_SECURITY_POLICY, POLICY))
        .layer(set(header::X_CONTENT_TYPE_OPTIONS, "nosniff"))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Page {
    page_token: Option<Token>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RunsOf {
    experiment_id: Id,
    page_token: Option<Token>,
}

async fn experiments(
    State(mlflow): State<Arc<Mlflow>>,
    query: Result<Query<Page>, axum::extract::rejection::QueryRejection>,
) -> Result<Json<Experiments>, Trouble> {
    let Query(page) = query.map_err(|e| Trouble::BadCall(e.body_text()))?;
    let question = json!({ "max_results": ROWS, "page_token": page.page_token });
    let answer: Experiments = mlflow.ask("experiments/search", question).await?;
    Ok(Json(answer))
}

async fn runs(
    State(mlflow): State<Arc<Mlflow>>,
    query: Result<Query<RunsOf>, axum::extract::rejection::QueryRejection>,
) -> Result<Json<Runs>, Trouble> {
    let Query(of) = query.map_err(|e| Trouble::BadCall(e.body_text()))?;
    let question = json!({
        "experiment_ids": [of.experiment_id],
        "max_results": ROWS,
        "order_by": ["attributes.start_time DESC"],
        "page_token": of.page_token,
    });
    let answer: RawRuns = mlflow.ask("runs/search", question).await?;
    Ok(Json(answer.into()))
}

/// MLflow's REST API, as far as it reads.
struct Mlflow {
    client: reqwest::Client,
    base: Url,
    turns: Semaphore,
    patience: Duration,
}

impl Mlflow {
    fn new(base: Url, socket: Option<&Path>, patience: Duration) -> Result<Self> {
        let client = mlflow_client(socket)
            .connect_timeout(Duration::from_secs(2))
            .build()
            .context("making a client for MLflow")?;
        Ok(Self { client, base, turns: Semaphore::new(AT_ONCE), patience })
    }

    async fn ask<T: for<'a> Deserialize<'a>>(&self, what: &str, mut question: Value) -> Result<T, Trouble> {
        // MLflow takes an absent token for the first page, not a null one.
        if let Value::Object(fields) = &mut question {
            fields.retain(|_, value| !value.is_null());
        }
        let asked = tokio::time::timeout(self.patience, self.fetch(what, &question)).await;
        let body = asked.map_err(|_| Trouble::Slow(self.patience))??;
        serde_json::from_slice(&body).map_err(|e| Trouble::Strange(e.to_string()))
    }

    async fn fetch(&self, what: &str, question: &Value) -> Result<Vec<u8>, Trouble> {
        let _turn = self.turns.acquire().await.map_err(|_| Trouble::Silent)?;
        let mut url = self.base.clone();
        url.set_path(&format!("{}/api/2.0/mlflow/{what}", self.base.path().trim_end_matches('/')));
        let mut answer = self.client.post(url).json(question).send().await.map_err(|_| Trouble::Silent)?;
        let status = answer.status();
        let mut body = Vec::new();
        while let Some(piece) = answer.chunk().await.map_err(|_| Trouble::Silent)? {
            if body.len() + piece.len() > LONGEST_ANSWER {
                return Err(Trouble::Long);
            }
            body.extend_from_slice(&piece);
        }
        match status.as_u16() {
            200 => Ok(body),
            400 => Err(Trouble::BadCall("MLflow does not accept this experiment or page".into())),
            403 => Err(Trouble::Refused),
            404 => Err(Trouble::NotFound),
            other => Err(Trouble::Failed(other)),
        }
    }
}

/// Why there is no answer, for the page to show.
#[derive(Debug)]
enum Trouble {
    NoSuchCall,
    BadCall(String),
    NotFound,
    Silent,
    Slow(Duration),
    Long,
    Refused,
    Failed(u16),
    Strange(String),
}

impl IntoResponse for Trouble {
    fn into_response(self) -> Response {
        let logs = "`echoes-appliance logs mlflow` shows why";
        let (status, error, hint) = match self {
            Self::NoSuchCall => (404, "there is no such call".into(), "reload the page"),
            Self::BadCall(why) => (400, why, "reload the page"),
            Self::NotFound => (404, "MLflow knows no such experiment".into(), "it may have been deleted"),
            Self::Silent => (502, "MLflow is not answering".into(), logs),
            Self::Slow(time) => (
                504,
                format!("MLflow did not answer within {} s", time.as_secs_f32()),
                "it may be busy: this page asks again",
            ),
            Self::Long => {
                (502, "MLflow's answer is too long".into(), "look at this experiment in MLflow itself")
            }
            Self::Refused => {
                (502, "MLflow refused the call".into(), "its allowed hosts must name this address")
            }
            Self::Failed(status) => (502, format!("MLflow failed with status {status}"), logs),
            Self::Strange(why) => (502, format!("MLflow answered in a form we do not know: {why}"), logs),
        };
        let status = StatusCode::from_u16(status).unwrap_or(StatusCode::BAD_GATEWAY);
        (status, Json(json!({ "error": short(error), "hint": hint }))).into_response()
    }
}

/// An experiment's id: digits, and in old file stores many of them.
#[derive(Debug, Deserialize, Serialize)]
#[serde(try_from = "String")]
struct Id(String);

impl TryFrom<String> for Id {
    type Error = &'static str;

    fn try_from(id: String) -> Result<Self, Self::Error> {
        let good = (1..=32).contains(&id.len()) && id.bytes().all(|b| b.is_ascii_digit());
        good.then_some(Self(id)).ok_or("an experiment's id is made of digits")
    }
}

/// A run's id.
#[derive(Debug, Deserialize, Serialize)]
#[serde(try_from = "String")]
struct RunId(String);

impl TryFrom<String> for RunId {
    type Error = &'static str;

    fn try_from(id: String) -> Result<Self, Self::Error> {
        let good = (1..=64).contains(&id.len()) && id.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
        good.then_some(Self(id)).ok_or("a run's id is made of letters and digits")
    }
}

/// What MLflow gave us to ask for the next page.
#[derive(Debug, Deserialize, Serialize)]
#[serde(try_from = "String")]
struct Token(String);

impl TryFrom<String> for Token {
    type Error = &'static str;

    fn try_from(token: String) -> Result<Self, Self::Error> {
        let good =
            token.len() <= 2048 && token.bytes().all(|b| b.is_ascii_alphanumeric() || b"+/=_-".contains(&b));
        good.then_some(Self(token)).ok_or("this is not a page's token")
    }
}

/// The absence of a token is also written as an empty one.
fn token<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Option<Token>, D::Error> {
    let token = Option::<Token>::deserialize(from)?;
    Ok(token.filter(|token| !token.0.is_empty()))
}

#[derive(Debug, Deserialize, Serialize)]
struct Experiments {
    #[serde(default)]
    experiments: Vec<Experiment>,
    #[serde(default, deserialize_with = "token", skip_serializing_if = "Option::is_none")]
    next_page_token: Option<Token>,
}

#[derive(Debug, Deserialize, Serialize)]
struct Experiment {
    experiment_id: Id,
    name: Text,
    #[serde(default)]
    last_update_time: Option<Millis>,
}

#[derive(Debug, Serialize)]
struct Runs {
    runs: Vec<Run>,
    #[serde(skip_serializing_if = "Option::is_none")]
    next_page_token: Option<Token>,
}

#[derive(Debug, Serialize)]
struct Run {
    #[serde(flatten)]
    info: Info,
    metrics: Vec<Metric>,
    params: Vec<Param>,
}

#[derive(Debug, Deserialize)]
struct RawRuns {
    #[serde(default)]
    runs: Vec<RawRun>,
    #[serde(default, deserialize_with = "token")]
    next_page_token: Option<Token>,
}

#[derive(Debug, Deserialize)]
struct RawRun {
    info: Info,
    #[serde(default)]
    data: Data,
}

#[derive(Debug, Deserialize, Serialize)]
struct Info {
    run_id: RunId,
    #[serde(default)]
    run_name: Text,
    status: Status,
    #[serde(default)]
    start_time: Option<Millis>,
    #[serde(default)]
    end_time: Option<Millis>,
}

#[derive(Debug, Default, Deserialize)]
struct Data {
    #[serde(default)]
    metrics: Vec<Metric>,
    #[serde(default)]
    params: Vec<Param>,
}

#[derive(Debug, Deserialize, Serialize)]
struct Metric {
    key: Text,
    value: Number,
    #[serde(default)]
    step: Option<Whole>,
}

#[derive(Debug, Deserialize, Serialize)]
struct Param {
    key: Text,
    #[serde(default)]
    value: Text,
}

#[derive(Debug, Clone, Copy, Deserialize, Serialize)]
#[serde(rename_all = "UPPERCASE")]
enum Status {
    Running,
    Scheduled,
    Finished,
    Failed,
    Killed,
}

/// A metric's value. JSON has no word for the last three, so MLflow and we write them as texts.
#[derive(Debug, Deserialize, Serialize)]
#[serde(untagged)]
enum Number {
    Finite(f64),
    Other(NotFinite),
}

#[derive(Debug, Deserialize, Serialize)]
enum NotFinite {
    NaN,
    Infinity,
    #[serde(rename = "-Infinity")]
    MinusInfinity,
}

/// A whole number, which some writers of JSON put in quotes when it may have more than 53 bits.
#[derive(Debug, Clone, Copy, Serialize)]
struct Whole(i64);

/// Milliseconds since 1970.
type Millis = Whole;

impl<'de> Deserialize<'de> for Whole {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Form {
            Plain(i64),
            Quoted(String),
        }
        match Form::deserialize(from)? {
            Form::Plain(n) => Ok(Self(n)),
            Form::Quoted(text) => text.parse().map(Self).map_err(serde::de::Error::custom),
        }
    }
}

/// Somebody's words, cut to what a cell can hold.
#[derive(Debug, Default, Deserialize, Serialize)]
#[serde(from = "String")]
struct Text(String);

impl From<String> for Text {
    fn from(text: String) -> Self {
        Self(short(text))
    }
}

fn short(text: String) -> String {
    let end = text.char_indices().nth(LONGEST_TEXT);
    end.and_then(|(end, _)| text.get(..end)).map(|cut| format!("{cut}…")).unwrap_or(text)
}

impl From<RawRuns> for Runs {
    fn from(raw: RawRuns) -> Self {
        let run = |RawRun { info, mut data }: RawRun| {
            data.metrics.truncate(MOST_VALUES);
            data.params.truncate(MOST_VALUES);
            Run { info, metrics: data.metrics, params: data.params }
        };
        Self { runs: raw.runs.into_iter().map(run).collect(), next_page_token: raw.next_page_token }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::web::attend_until;
    use axum::{extract::Request, http::Uri};
    use std::sync::Mutex;
    use tokio::{io::AsyncWriteExt as _, net::TcpListener};

    type Asked = Arc<Mutex<Vec<(String, Value)>>>;

    /// An MLflow that answers each call with the same, however odd; and what it was asked.
    async fn fake(answer: impl Fn() -> Response + Clone + Send + Sync + 'static) -> (Url, Asked) {
        let asked = Asked::default();
        let ears = asked.clone();
        let call = move |uri: Uri, request: Request| async move {
            let body = axum::body::to_bytes(request.into_body(), 1 << 20).await.unwrap();
            ears.lock().unwrap().push((uri.path().to_owned(), serde_json::from_slice(&body).unwrap()));
            answer()
        };
        let at = serve(Router::new().fallback(call)).await;
        (at, asked)
    }

    async fn serve(app: Router) -> Url {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = listener.local_addr().unwrap();
        tokio::spawn(attend_until(listener, app, std::future::pending()));
        format!("http://{at}").parse().unwrap()
    }

    /// The dashboard before that MLflow; patient for a third of a second.
    async fn before(mlflow: Url) -> Url {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let root = concat!(env!("CARGO_MANIFEST_DIR"), "/assets/dashboard");
        serve(app(root.into(), Mlflow::new(mlflow, None, Duration::from_millis(300)).unwrap())).await
    }

    async fn get(dashboard: &Url, path: &str) -> (u16, Value) {
        let answer = reqwest::get(dashboard.join(path).unwrap()).await.unwrap();
        assert_eq!(answer.headers()["cache-control"], "no-store", "{path}");
        assert_eq!(answer.headers()["content-type"], "application/json", "{path}");
        (answer.status().as_u16(), answer.json().await.unwrap())
    }

    #[tokio::test]
    async fn runs_come_with_what_we_show_and_no_more() {
        let (mlflow, asked) = fake(|| {
            Json(json!({
                "runs": [{
                    "info": {
                        "run_id": "abc123", "run_name": "lstm <b>", "status": "FINISHED", "user_id": "root",
                        "start_time": 1_700_000_000_000_i64, "end_time": "1700000060000",
                        "artifact_uri": "file:///etc", "lifecycle_stage": "active",
                    },
                    "data": {
                        "metrics": [
                            { "key": "acc", "value": 0.5, "timestamp": 1, "step": "3" },
                            { "key": "loss", "value": "NaN", "timestamp": 1, "step": 0 },
                            { "key": "up", "value": "Infinity", "timestamp": 1, "step": 0 },
                            { "key": "down", "value": "-Infinity", "timestamp": 1, "step": 0 },
                        ],
                        "params": [{ "key": "note", "value": "é".repeat(400) }],
                        "tags": [{ "key": "secret", "value": "x" }],
                    },
                    "inputs": {},
                }],
                "next_page_token": "eyJ4Ijox+/=",
            }))
            .into_response()
        })
        .await;
        let dashboard = before(mlflow).await;
        let (status, runs) = get(&dashboard, "api/runs?experiment_id=7&page_token=abc%3D").await;
        assert_eq!(status, 200, "{runs}");
        assert_eq!(
            runs,
            json!({
                "runs": [{
                    "run_id": "abc123", "run_name": "lstm <b>", "status": "FINISHED",
                    "start_time": 1_700_000_000_000_i64, "end_time": 1_700_000_060_000_i64,
                    "metrics": [
                        { "key": "acc", "value": 0.5, "step": 3 },
                        { "key": "loss", "value": "NaN", "step": 0 },
                        { "key": "up", "value": "Infinity", "step": 0 },
                        { "key": "down", "value": "-Infinity", "step": 0 },
                    ],
                    "params": [{ "key": "note", "value": format!("{}…", "é".repeat(300)) }],
                }],
                "next_page_token": "eyJ4Ijox+/=",
            })
        );
        let question = json!({
            "experiment_ids": ["7"], "max_results": 100, "order_by": ["attributes.start_time DESC"],
            "page_token": "abc=",
        });
        assert_eq!(*asked.lock().unwrap(), [("/api/2.0/mlflow/runs/search".into(), question)]);
    }

    #[tokio::test]
    async fn experiments_come_by_name_and_an_empty_mlflow_is_no_error() {
        let (mlflow, asked) = fake(|| Json(json!({})).into_response()).await;
        let dashboard = before(mlflow.join("/mlflow/").unwrap()).await;
        assert_eq!(get(&dashboard, "api/experiments").await, (200, json!({ "experiments": [] })));
        assert_eq!(get(&dashboard, "api/runs?experiment_id=0").await, (200, json!({ "runs": [] })));
        let first = asked.lock().unwrap()[0].clone();
        assert_eq!(
            first,
            ("/mlflow/api/2.0/mlflow/experiments/search".into(), json!({ "max_results": 100 }))
        );
        let one = json!({ "experiment_id": "1", "name": "ucf101", "artifact_location": "x" });
        let (mlflow, _) =
            fake(move || Json(json!({ "experiments": [one], "next_page_token": "" })).into_response()).await;
        let dashboard = before(mlflow).await;
        let named = json!({ "experiment_id": "1", "name": "ucf101", "last_update_time": null });
        assert_eq!(get(&dashboard, "api/experiments").await, (200, json!({ "experiments": [named] })));
    }

    #[tokio::test]
    async fn a_call_that_is_not_ours_never_reaches_mlflow() {
        let (mlflow, asked) = fake(|| Json(json!({})).into_response()).await;
        let dashboard = before(mlflow).await;
        for (path, status) in [
            ("api/runs", 400),
            ("api/runs?experiment_id=", 400),
            ("api/runs?experiment_id=1%22", 400),
            ("api/runs?experiment_id=../x", 400),
            ("api/runs?experiment_id=1&page_token=%22%7D", 400),
            ("api/runs?experiment_id=1&filter=x", 400),
            ("api/experiments?view_type=ALL", 400),
            ("api/2.0/mlflow/runs/delete", 404),
            ("api/nothing", 404),
        ] {
            let (answered, error) = get(&dashboard, path).await;
            assert_eq!(answered, status, "{path}");
            assert!(error["error"].is_string() && error["hint"].is_string(), "{path}: {error}");
        }
        let post =
            reqwest::Client::new().post(dashboard.join("api/experiments").unwrap()).send().await.unwrap();
        assert_eq!(post.status(), 405);
        assert!(asked.lock().unwrap().is_empty());
    }

    #[tokio::test]
    async fn an_mlflow_that_misbehaves_is_reported_and_not_believed() {
        let text = |text: &'static str| move || text.into_response();
        let odd = [
            "",
            "not json",
            "7",
            r#"{"runs":7}"#,
            r#"{"runs":[{}]}"#,
            r#"{"runs":[{"info":{"run_id":"../../x","status":"FINISHED"}}]}"#,
            r#"{"runs":[{"info":{"run_id":"a","status":"<script>"}}]}"#,
            r#"{"runs":[{"info":{"run_id":"a","status":"RUNNING","start_time":"soon"}}]}"#,
            r#"{"runs":[{"info":{"run_id":"a","status":"RUNNING"},"data":{"metrics":[{"key":"k","value":"<b>"}]}}]}"#,
            r#"{"runs":[],"next_page_token":"<script>"}"#,
        ];
        for odd in odd {
            let dashboard = before(fake(text(odd)).await.0).await;
            let (status, error) = get(&dashboard, "api/runs?experiment_id=1").await;
            assert_eq!(status, 502, "{odd}: {error}");
            assert!(error["error"].as_str().unwrap().contains("in a form we do not know"), "{odd}: {error}");
        }
        let failing = |status: u16| move || StatusCode::from_u16(status).unwrap().into_response();
        for (theirs, ours, says) in [
            (500, 502, "failed with status 500"),
            (302, 502, "failed with status 302"),
            (403, 502, "refused"),
            (404, 404, "no such experiment"),
            (400, 400, "does not accept"),
        ] {
            let dashboard = before(fake(failing(theirs)).await.0).await;
            let (status, error) = get(&dashboard, "api/runs?experiment_id=1").await;
            assert_eq!(status, ours, "{theirs}");
            assert!(error["error"].as_str().unwrap().contains(says), "{theirs}: {error}");
        }
    }

    #[tokio::test]
    async fn an_endless_answer_is_cut_and_a_silent_one_given_up() {
        let endless = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = endless.local_addr().unwrap();
        tokio::spawn(async move {
            let (mut stream, _) = endless.accept().await.unwrap();
            let mut said = b"HTTP/1.1 200 OK\r\n\r\n".to_vec();
            while stream.write_all(&said).await.is_ok() {
                said = vec![b' '; 1 << 16];
            }
        });
        let dashboard = before_patient(format!("http://{at}").parse().unwrap()).await;
        let (status, error) = get(&dashboard, "api/experiments").await;
        assert_eq!((status, &error["error"]), (502, &json!("MLflow's answer is too long")));

        // Takes the call and says nothing.
        let mute = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let dashboard = before(format!("http://{}", mute.local_addr().unwrap()).parse().unwrap()).await;
        let (status, error) = get(&dashboard, "api/experiments").await;
        assert_eq!((status, &error["error"]), (504, &json!("MLflow did not answer within 0.3 s")));

        // Is not there at all.
        let gone = mute.local_addr().unwrap();
        drop(mute);
        let dashboard = before(format!("http://{gone}").parse().unwrap()).await;
        let (status, error) = get(&dashboard, "api/experiments").await;
        assert_eq!((status, &error["error"]), (502, &json!("MLflow is not answering")));
    }

    async fn before_patient(mlflow: Url) -> Url {
        let _ = rustls::crypto::ring::default_provider().install_default();
        serve(app("/nonexistent".into(), Mlflow::new(mlflow, None, Duration::from_secs(30)).unwrap())).await
    }

    #[tokio::test]
    async fn the_page_is_served_under_a_policy_that_it_keeps() {
        let (mlflow, _) = fake(|| Json(json!({})).into_response()).await;
        let dashboard = before(mlflow).await;
        let answer = reqwest::get(dashboard.clone()).await.unwrap();
        assert_eq!(answer.headers()["content-security-policy"], POLICY);
        assert_eq!(answer.headers()["x-content-type-options"], "nosniff");
        let page = answer.text().await.unwrap();
        assert!(page.contains("<script type=\"module\" src=\"app.js\">"), "{page}");
        // What the policy would stop, and what would load something from elsewhere.
        for never in [" style=", "<style", " onclick=", "http://", "https://", "javascript:"] {
            assert!(!page.contains(never), "{never}");
        }
        let script = reqwest::get(dashboard.join("app.js").unwrap()).await.unwrap();
        assert_eq!(script.headers()["content-type"], "text/javascript");
        let script = script.text().await.unwrap();
        for never in
            ["innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", ".style", "http:"]
        {
            assert!(!script.contains(never), "{never}");
        }
    }

    #[test]
    fn fuzz_dashboard_takes_any_answer_of_mlflow() {
        crate::fuzz::run(
            "dashboard",
            &["\"next_page_token\":\"\"", "\"NaN\"", "\"FINISHED\"", "\"value\":"],
            |bytes| {
                let runs = serde_json::from_slice::<RawRuns>(bytes);
                let experiments = serde_json::from_slice::<Experiments>(bytes)?;
                serde_json::to_string(&experiments)?;
                serde_json::to_string(&Runs::from(runs?))?;
                Ok(())
            },
        );
    }
}
