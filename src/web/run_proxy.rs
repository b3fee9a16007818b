//! The proxy between the login of a run and MLflow: it lets a run do its own run's work, and nothing else. nginx sends it what
//! comes with a login of a run, and whose that is.
//!
//! A call is read whole, judged (`route`, `artifact`), and what it names is asked for at MLflow (`owner`). What goes on is
//! written anew from what was read, so that nothing is judged in one spelling and done in another. Artifacts alone stream.
//! It keeps nothing on disk.

mod answer;
mod artifact;
mod claim;
mod owner;
mod query;
mod question;
mod route;

use super::{attend, gate, hold, mlflow_client, reach};
use crate::{
    gpu::spec::{RunId, RunReads},
    host::Host,
    hq::htpasswd::RUN_PREFIX,
};
use answer::{Answer, Refused};
use anyhow::{Context as _, Result};
use artifact::ArtifactPath;
use axum::{
    Router,
    body::{Body, Bytes},
    extract::{Request, State},
    http::{HeaderMap, HeaderName, HeaderValue, Method, header},
    response::{IntoResponse, Response},
};
use claim::Claim;
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use owner::Owners;
use query::{read_query, write_query};
use reqwest::Url;
use route::{Call, Found, Refusal};
use serde_json::{Map, Value};
use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    sync::Arc,
    sync::Mutex,
    time::Duration,
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// A batch of a thousand numbers is 200 kB; a model's description, some megabytes.
const LONGEST_BODY: usize = 32 << 20;

/// Bodies of one run in memory at once. Its client has ten threads at most, and those wait.
const BODIES_OF_RUN: usize = 8;

/// Bodies longer than this are read into a tree one after another: that takes ten times their length.
const LONG_BODY: usize = 1 << 20;

/// For a body to come, on a slow line.
const BODY_PATIENCE: Duration = Duration::from_secs(120);

/// MLflow is silent for as long while it stores a large artifact. nginx waits as long.
const SILENCE: Duration = Duration::from_secs(600);

/// An answer that is looked into: one experiment with its tags.
const LONGEST_EXPERIMENT: usize = 8 << 20;

/// What an unsent rest of a refused body may be: who still sends would not hear the answer.
const REST: usize = 1 << 20;

/// What clients send elsewhere where a server does not offer it: spans go to artifacts, large files in one piece.
const NOT_OFFERED: [&str; 3] =
    ["/v1/traces", "/api/2.0/mlflow-artifacts/mpu/", "/api/2.0/mlflow-artifacts/presigned/"];

/// What every client asks of a server.
const OPEN: [&str; 2] = ["/health", "/version"];

/// An address that is nobody's: to MLflow, who has none or a local one is an administrator.
const ELSEWHERE: &str = "192.0.2.1";

pub struct RunProxy {
    /// Where nginx sends what comes with a run's login. The socket belongs to our user and group and lets only these in.
    pub socket: PathBuf,
    /// Where MLflow listens, such as `http://127.0.0.1:5000`.
    pub mlflow: Url,
    /// Its unix socket, whatever place the URL names.
    pub mlflow_socket: Option<PathBuf>,
    pub reads: RunReads,
}

/// Serve until SIGTERM.
pub async fn serve(host: &Host, settings: RunProxy) -> Result<()> {
    let RunProxy { socket, mlflow, mlflow_socket, reads } = settings;
    let listener = gate::listen(host, &socket)?;
    let status = format!("runs' calls on {}, to {mlflow}", socket.display());
    attend(listener, app(mlflow, mlflow_socket.as_deref(), reads)?, &status).await
}

fn app(mlflow: Url, socket: Option<&Path>, reads: RunReads) -> Result<Router> {
    let client = mlflow_client(socket)
        .connect_timeout(Duration::from_secs(5))
        .read_timeout(SILENCE)
        // MLflow closes an idle connection after 5 s; one kept longer than that here loses requests to the race.
        .pool_idle_timeout(Duration::from_secs(3))
        .build()
        .context("making a client for MLflow")?;
    let owners = Owners::new(client.clone(), mlflow.clone(), reads);
    let bodies = Mutex::new(HashMap::new());
    let proxy = Proxy { client, mlflow, owners, bodies, long: Semaphore::new(1) };
    let answer = |State(proxy): State<Arc<Proxy>>, request: Request| async move {
        proxy.answer(request).await.unwrap_or_else(IntoResponse::into_response)
    };
    Ok(Router::new().fallback(answer).with_state(Arc::new(proxy)))
}

/// Shared by all requests.
struct Proxy {
    client: reqwest::Client,
    mlflow: Url,
    owners: Owners,
    /// Places for the bodies of each run.
    bodies: Mutex<HashMap<RunId, Arc<Semaphore>>>,
    long: Semaphore,
}

impl Proxy {
    async fn answer(&self, request: Request) -> Result<Response, Answer> {
        let run = run_of(request.headers()).ok_or(Answer::NoRun)?;
        let method = request.method().clone();
        let path = request.uri().path().to_owned();
        let refused =
            |why| Answer::Refused { run: run.clone(), what: format!("{method} {}", shown(&path)), why };
        if NOT_OFFERED.iter().any(|prefix| path.starts_with(prefix)) {
            drain(request.into_body()).await;
            return Err(Answer::NotOffered);
        }
        if OPEN.contains(&path.as_str()) && method == Method::GET {
            return self.forward(self.client.get(self.url(&path)), request.headers()).await;
        }
        if path == artifact::ROOT || path.starts_with(&format!("{}/", artifact::ROOT)) {
            return match self.artifact(&run, &method, &path, request).await {
                Err(Refused::Here(why)) => Err(refused(why)),
                Err(Refused::Otherwise(answer)) => Err(answer),
                Ok(answer) => Ok(answer),
            };
        }
        let Some(found) = route::find(method.as_str(), &path) else {
            drain(request.into_body()).await;
            return Err(refused(Refusal::Unknown));
        };
        let call = self.read(&run, found, request).await;
        let (call, body, _place) = call.map_err(|why| match why {
            Refused::Here(why) => refused(why),
            Refused::Otherwise(answer) => answer,
        })?;
        self.owners
            .verify(&run, &call.claims)
            .await
            .map_err(|why| Answer::Denied { run: run.clone(), why })?;
        let mut url = self.url(&call.path);
        let sent = match body {
            Some(body) => {
                let json = HeaderValue::from_static("application/json");
                self.client.request(method, url).header(header::CONTENT_TYPE, json).body(body)
            }
            None => {
                write_query(&mut url, &call.fields);
                self.client.get(url)
            }
        };
        let answer = self.forward(sent, &HeaderMap::new()).await?;
        if call.names_experiment { self.note_experiment(&run, answer).await } else { Ok(answer) }
    }

    /// Reads a call's fields and judges them. The place is held until the call was sent on.
    async fn read(
        &self,
        run: &RunId,
        found: Found,
        request: Request,
    ) -> Result<(Call, Option<Vec<u8>>, Option<OwnedSemaphorePermit>), Refused> {
        if !found.has_body() {
            let fields = read_query(request.uri().query().unwrap_or_default())?;
            return Ok((found.check(run, fields)?, None, None));
        }
        let place = self.place(run).await?;
        if !is_json(request.headers()) {
            drain(request.into_body()).await;
            return Err(Answer::NotJson.into());
        }
        let body = read_body(request.into_body()).await?;
        let _long = match body.len() > LONG_BODY {
            true => Some(self.long.acquire().await.map_err(|_| Answer::Busy)?),
            false => None,
        };
        let fields: Map<String, Value> = match &body[..] {
            b"" => Map::new(),
            body => serde_json::from_slice(body)
                .map_err(|e| Refusal::Bad(format!("the body is no JSON object: {e}")))?,
        };
        drop(body);
        let mut call = found.check(run, fields)?;
        let fields = std::mem::take(&mut call.fields);
        let body = serde_json::to_vec(&fields).map_err(|e| Answer::Silent(e.to_string()))?;
        Ok((call, Some(body), Some(place)))
    }

    async fn artifact(
        &self,
        run: &RunId,
        method: &Method,
        path: &str,
        request: Request,
    ) -> Result<Response, Refused> {
        let verify = async |claim| {
            let verified = self.owners.verify(run, &[claim]).await;
            verified.map_err(|why| Answer::Denied { run: run.clone(), why })
        };
        let mut url = self.url(artifact::ROOT);
        let below = path.strip_prefix(artifact::ROOT).and_then(|rest| rest.strip_prefix('/'));
        match (method, below) {
            (&Method::GET, None) => {
                let fields = read_query(request.uri().query().unwrap_or_default())?;
                let asked = fields.get("path").and_then(Value::as_str).unwrap_or_default();
                let asked = ArtifactPath::from_text(asked)?;
                verify(Claim::ReadsAt(asked.thing.clone(), asked.folder())).await?;
                url.query_pairs_mut().append_pair("path", &asked.text());
                Ok(self.forward(self.client.get(url), &HeaderMap::new()).await?)
            }
            (&Method::GET, Some(below)) => {
                let asked = ArtifactPath::from_url(below)?;
                verify(Claim::ReadsAt(asked.thing.clone(), asked.folder())).await?;
                asked.extend(&mut url);
                Ok(self.forward(self.client.get(url), request.headers()).await?)
            }
            (&Method::PUT, Some(below)) => {
                let asked = match ArtifactPath::from_url(below) {
                    Ok(asked) if asked.is_inside() => {
                        verify(Claim::OwnsAt(asked.thing.clone(), asked.folder()))
                            .await
                            .map(|()| asked)
                            .map_err(Refused::from)
                    }
                    Ok(_) => Err(Refusal::Bad("an artifact has a name".into()).into()),
                    Err(why) => Err(why.into()),
                };
                let (parts, body) = request.into_parts();
                let asked = match asked {
                    Ok(asked) => asked,
                    Err(why) => {
                        drain(body).await;
                        return Err(why);
                    }
                };
                asked.extend(&mut url);
                let mut sent = self.client.put(url);
                for name in [header::CONTENT_TYPE, header::CONTENT_LENGTH] {
                    if let Some(value) = parts.headers.get(&name) {
                        sent = sent.header(name, value);
                    }
                }
                let body = reqwest::Body::wrap_stream(body.into_data_stream());
                Ok(self.forward(sent.body(body), &HeaderMap::new()).await?)
            }
            _ => {
                drain(request.into_body()).await;
                Err(Refusal::Unknown.into())
            }
        }
    }

    /// Sends a request on, with the part of an artifact that its client asks for, and hands on what MLflow answers, as it comes.
    async fn forward(
        &self,
        mut sent: reqwest::RequestBuilder,
        asked: &HeaderMap,
    ) -> Result<Response, Answer> {
        for name in [header::RANGE, header::IF_RANGE] {
            if let Some(value) = asked.get(&name) {
                sent = sent.header(name, value);
            }
        }
        sent = sent.header("x-forwarded-for", ELSEWHERE);
        let answer = sent.send().await.map_err(|e| Answer::Silent(e.to_string()))?;
        let mut response = Response::new(Body::empty());
        *response.status_mut() = answer.status();
        for name in ANSWERED {
            if let Some(value) = answer.headers().get(&name) {
                response.headers_mut().insert(name, value.clone());
            }
        }
        *response.body_mut() = Body::from_stream(answer.bytes_stream());
        Ok(response)
    }

    /// Notes which experiment an answer names.
    async fn note_experiment(&self, run: &RunId, answer: Response) -> Result<Response, Answer> {
        let (parts, body) = answer.into_parts();
        let body = Limited::new(body, LONGEST_EXPERIMENT).collect().await;
        let body = body.map_err(|e| Answer::Silent(e.to_string()))?.to_bytes();
        if parts.status.is_success() {
            let said: Value = serde_json::from_slice(&body).unwrap_or_default();
            let id = said["experiment_id"].as_str().or(said["experiment"]["experiment_id"].as_str());
            if let Some(id) = id {
                self.owners.note_named(run, id);
            }
        }
        Ok(Response::from_parts(parts, body.into()))
    }

    fn url(&self, path: &str) -> Url {
        let mut url = self.mlflow.clone();
        url.set_path(&format!("{}{path}", self.mlflow.path().trim_end_matches('/')));
        url
    }

    /// A place for a body of this run.
    async fn place(&self, run: &RunId) -> Result<OwnedSemaphorePermit, Answer> {
        let places = {
            let mut all = hold(&self.bodies);
            // Those of runs that have nothing under way.
            all.retain(|_, places: &mut Arc<Semaphore>| Arc::strong_count(places) > 1);
            all.entry(run.clone()).or_insert_with(|| Arc::new(Semaphore::new(BODIES_OF_RUN))).clone()
        };
        let place = tokio::time::timeout(BODY_PATIENCE, places.acquire_owned()).await;
        place.map_err(|_| Answer::Busy)?.map_err(|_| Answer::Busy)
    }
}

/// Headers of MLflow's answers that mean something to a client. How it is sent is between it and us.
const ANSWERED: [HeaderName; 8] = [
    header::CONTENT_TYPE,
    header::CONTENT_LENGTH,
    header::CONTENT_DISPOSITION,
    header::CONTENT_RANGE,
    header::ACCEPT_RANGES,
    header::ETAG,
    header::LAST_MODIFIED,
    header::X_CONTENT_TYPE_OPTIONS,
];

/// The run whose login this is, as nginx says.
fn run_of(headers: &HeaderMap) -> Option<RunId> {
    let mut named = headers.get_all(reach::RUN).iter();
    let (Some(user), None) = (named.next(), named.next()) else { return None };
    user.to_str().ok()?.strip_prefix(RUN_PREFIX)?.parse().ok()
}

/// Whether a body is JSON, and not squeezed.
fn is_json(headers: &HeaderMap) -> bool {
    let kind = headers.get(header::CONTENT_TYPE).map(|kind| kind.to_str().unwrap_or_default());
    let kind = kind.map(|kind| kind.split(';').next().unwrap_or_default().trim());
    kind.is_none_or(|kind| kind.eq_ignore_ascii_case("application/json"))
        && headers.get(header::CONTENT_ENCODING).is_none()
}

async fn read_body(body: Body) -> Result<Bytes, Answer> {
    let read = tokio::time::timeout(BODY_PATIENCE, Limited::new(body, LONGEST_BODY).collect()).await;
    match read {
        Err(_) => Err(Answer::TooSlow),
        Ok(Err(e)) if e.is::<LengthLimitError>() => Err(Answer::TooLong),
        Ok(Err(_)) => Err(Answer::Cut),
        Ok(Ok(body)) => Ok(body.to_bytes()),
    }
}

/// Takes some of what nobody needs: an answer to somebody who still sends is lost.
async fn drain(body: Body) {
    // What is left then is more than a mistake sends.
    let _ = tokio::time::timeout(Duration::from_secs(5), Limited::new(body, REST).collect()).await;
}

/// The beginning of a path, harmless.
fn shown(path: &str) -> String {
    path.chars().take(200).flat_map(char::escape_default).collect()
}

#[cfg(test)]
mod tests;
