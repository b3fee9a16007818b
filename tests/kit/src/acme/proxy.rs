//! What stands between a machine and its certificate authority: TLS in, TLS out, each request noted, and some of the
//! answers spoiled.

use axum::{
    Router,
    body::{Body, Bytes, to_bytes},
    extract::{Request, State},
    response::Response,
    serve::Listener,
};
use rustls::{
    ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
};
use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll},
    time::Duration,
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::mpsc,
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};

/// What is done to an answer.
#[derive(Clone)]
pub enum Act {
    /// In place of the authority's own, which is not asked.
    Answer {
        status: u16,
        headers: Vec<(&'static str, String)>,
        body: String,
    },
    /// It does not come for so long; then as it is. Nobody may be waiting for it any more.
    Delay(Duration),
    /// It breaks off.
    Reset,
    /// The authority hears it and its answer breaks off: as when a machine loses its network.
    ResetAfter,
    /// Only so many bytes of it.
    Truncate(usize),
    /// Another body.
    Body(String),
    /// Its JSON, changed.
    Json(fn(&mut serde_json::Value)),
    /// Without this header.
    Without(&'static str),
    With(&'static str, String),
}

/// For which requests: the method, and a part of the path. After `skip` of them, `times` times.
#[derive(Clone)]
pub struct Rule {
    pub method: &'static str,
    pub path: &'static str,
    pub skip: u32,
    pub times: u32,
    pub act: Act,
}

impl Rule {
    pub fn always(method: &'static str, path: &'static str, act: Act) -> Self {
        Self { method, path, skip: 0, times: u32::MAX, act }
    }

    pub fn once(method: &'static str, path: &'static str, act: Act) -> Self {
        Self { method, path, skip: 0, times: 1, act }
    }
}

#[derive(Default)]
struct Inner {
    rules: Vec<Rule>,
    /// Method and path of every request.
    asked: Vec<(String, String)>,
    /// What the authority itself refused, where its answer arrived.
    refused: Vec<String>,
}

pub struct Proxy {
    pub address: SocketAddr,
    inner: Arc<Mutex<Inner>>,
    // Dropped, it ends.
    _runtime: tokio::runtime::Runtime,
}

impl Proxy {
    /// On a port of this address, before `upstream` on loopback.
    pub fn start(ip: Ipv4Addr, upstream: u16, pair: (&str, &str), roots: &str) -> Self {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let roots = reqwest::Certificate::from_pem(roots.as_bytes()).unwrap();
        // Over HTTP/2 the authority would be told our address for it, and not the one that was signed.
        let client = reqwest::Client::builder().no_proxy().http1_only().tls_certs_only([roots]);
        // A connection that the authority is just closing would look like a fault of ours.
        let client = client.pool_max_idle_per_host(0);
        let client = client.build().unwrap();
        let chain = CertificateDer::pem_slice_iter(pair.0.as_bytes()).collect::<Result<_, _>>().unwrap();
        let key = PrivateKeyDer::from_pem_slice(pair.1.as_bytes()).unwrap();
        let tls = ServerConfig::builder().with_no_client_auth().with_single_cert(chain, key).unwrap();
        let inner: Arc<Mutex<Inner>> = Arc::default();
        let listener = runtime.block_on(TcpListener::bind((ip, 0))).unwrap();
        let address = listener.local_addr().unwrap();
        let door = Door::open(&runtime, listener, TlsAcceptor::from(Arc::new(tls)));
        let app = Router::new().fallback(pass).with_state((Arc::clone(&inner), client, upstream));
        runtime.spawn(async move { axum::serve(door, app).await });
        Self { address, inner, _runtime: runtime }
    }

    /// From now on these and no others.
    pub fn spoil(&self, rules: Vec<Rule>) {
        self.inner.lock().unwrap().rules = rules;
    }

    /// How many requests had this method, and this in their path; since the last `forget`.
    pub fn asked(&self, method: &str, path: &str) -> usize {
        let inner = self.inner.lock().unwrap();
        inner.asked.iter().filter(|(m, p)| m == method && p.contains(path)).count()
    }

    /// How often the authority itself refused something with these words; since the last `forget`.
    pub fn refused(&self, words: &str) -> usize {
        self.inner.lock().unwrap().refused.iter().filter(|said| said.contains(words)).count()
    }

    /// All of them, for a person.
    pub fn story(&self) -> Vec<String> {
        self.inner.lock().unwrap().asked.iter().map(|(method, path)| format!("{method} {path}")).collect()
    }

    pub fn forget(&self) {
        let mut inner = self.inner.lock().unwrap();
        inner.asked.clear();
        inner.refused.clear();
    }
}

/// Connections whose handshake is done: one that never comes to that keeps nobody waiting.
struct Door {
    address: SocketAddr,
    shaken: mpsc::Receiver<(TlsStream<TcpStream>, SocketAddr)>,
}

impl Door {
    fn open(runtime: &tokio::runtime::Runtime, listener: TcpListener, tls: TlsAcceptor) -> Self {
        let address = listener.local_addr().unwrap();
        let (shake, shaken) = mpsc::channel(16);
        runtime.spawn(async move {
            while let Ok((tcp, from)) = listener.accept().await {
                let (tls, shake) = (tls.clone(), shake.clone());
                tokio::spawn(async move {
                    if let Ok(stream) = tls.accept(tcp).await {
                        let _closing = shake.send((stream, from)).await;
                    }
                });
            }
        });
        Self { address, shaken }
    }
}

impl Listener for Door {
    type Io = TlsStream<TcpStream>;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        match self.shaken.recv().await {
            Some(connection) => connection,
            None => std::future::pending().await,
        }
    }

    fn local_addr(&self) -> io::Result<Self::Addr> {
        Ok(self.address)
    }
}

type Shared = (Arc<Mutex<Inner>>, reqwest::Client, u16);

async fn pass(State((inner, client, upstream)): State<Shared>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let path = parts.uri.path_and_query().map_or("/", |at| at.as_str()).to_owned();
    let body = to_bytes(body, 1 << 20).await.unwrap();
    let act = {
        let mut inner = inner.lock().unwrap();
        inner.asked.push((parts.method.to_string(), path.clone()));
        let mut acts = None;
        for rule in &mut inner.rules {
            if parts.method == rule.method && path.contains(rule.path) {
                if rule.skip > 0 {
                    rule.skip -= 1;
                } else if rule.times > 0 && acts.is_none() {
                    rule.times -= 1;
                    acts = Some(rule.act.clone());
                }
            }
        }
        acts
    };
    match &act {
        Some(Act::Answer { status, headers, body }) => {
            let mut answer = Response::builder().status(*status);
            for (name, value) in headers {
                answer = answer.header(*name, value);
            }
            return answer.body(Body::from(body.clone())).unwrap();
        }
        Some(Act::Reset) => return broken(),
        Some(Act::Delay(wait)) => tokio::time::sleep(*wait).await,
        _ => {}
    }
    let url = format!("https://127.0.0.1:{upstream}{path}");
    let asking = client.request(parts.method, url).headers(parts.headers).body(body).send().await;
    let Ok(answer) = asking else { return broken() };
    let (status, mut headers) = (answer.status(), answer.headers().clone());
    let mut body = answer.bytes().await.unwrap();
    headers.remove("content-length");
    headers.remove("transfer-encoding");
    match act {
        Some(Act::ResetAfter) => return broken(),
        Some(Act::Truncate(bytes)) => body = body.slice(..bytes.min(body.len())),
        Some(Act::Body(other)) => body = other.into(),
        Some(Act::Json(change)) => {
            let mut json = serde_json::from_slice(&body).unwrap();
            change(&mut json);
            body = json.to_string().into();
        }
        Some(Act::Without(name)) => drop(headers.remove(name)),
        Some(Act::With(name, value)) => drop(headers.insert(name, value.parse().unwrap())),
        _ => {}
    }
    if status.is_client_error() || status.is_server_error() {
        inner.lock().unwrap().refused.push(String::from_utf8_lossy(&body).into_owned());
    }
    let mut answer = Response::builder().status(status);
    *answer.headers_mut().unwrap() = headers;
    answer.body(Body::from(body)).unwrap()
}

/// An answer whose connection breaks in the middle of it.
fn broken() -> Response {
    Response::builder().header("content-length", "100").body(Body::new(Breaks)).unwrap()
}

struct Breaks;

impl http_body::Body for Breaks {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<Bytes>, io::Error>>> {
        Poll::Ready(Some(Err(io::ErrorKind::ConnectionReset.into())))
    }
}
