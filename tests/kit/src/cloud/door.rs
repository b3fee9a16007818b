//! Where requests come in: http, and https under an authority made for this one cloud. Nothing else of HTTP than
//! version 1.1, because an answer that is lost is a connection that ends.

use super::answer::Answer;
use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, SanType, date_time_ymd};
use rustls::{
    ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
};
use std::{
    future::Future,
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    pin::Pin,
    sync::Arc,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpListener,
    runtime::Runtime,
};
use tokio_rustls::TlsAcceptor;

/// More than any body that Azure takes.
const LARGEST: usize = 4 << 20;

/// A request, read to its end.
#[derive(Debug, Clone)]
pub(super) struct Heard {
    pub method: String,
    pub path: String,
    pub query: Vec<(String, String)>,
    /// Path and query as they came.
    pub target: String,
    pub headers: HeaderMap,
    pub body: Bytes,
    pub peer: SocketAddr,
    /// Scheme and host, as the asker wrote them.
    pub base: String,
}

/// No answer is a connection that ends.
pub(super) type Answering = Pin<Box<dyn Future<Output = Option<Answer>> + Send>>;
pub(super) type Serve = Arc<dyn Fn(Heard) -> Answering + Send + Sync>;

/// The authority behind the https ports.
pub(super) struct Vouching {
    pub pem: String,
    tls: TlsAcceptor,
}

impl Vouching {
    pub(super) fn new(address: IpAddr) -> Self {
        let _installed = rustls::crypto::ring::default_provider().install_default();
        let dates = |params: &mut CertificateParams| {
            (params.not_before, params.not_after) = (date_time_ymd(2020, 1, 1), date_time_ymd(2060, 1, 1));
        };
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages =
            vec![rcgen::KeyUsagePurpose::KeyCertSign, rcgen::KeyUsagePurpose::DigitalSignature];
        params.distinguished_name.push(rcgen::DnType::CommonName, "simulated Azure");
        dates(&mut params);
        let pem = params.self_signed(&key).unwrap().pem();
        let issuer = Issuer::new(params, key);
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        // What some clients insist on: which key vouched, and what this one is for.
        params.use_authority_key_identifier_extension = true;
        params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ServerAuth];
        params.subject_alt_names.extend([IpAddr::V4(Ipv4Addr::LOCALHOST), address].map(SanType::IpAddress));
        dates(&mut params);
        let cert = params.signed_by(&key, &issuer).unwrap().pem();
        let chain = CertificateDer::pem_slice_iter(cert.as_bytes()).collect::<Result<_, _>>().unwrap();
        let key = PrivateKeyDer::from_pem_slice(key.serialize_pem().as_bytes()).unwrap();
        let tls = ServerConfig::builder().with_no_client_auth().with_single_cert(chain, key).unwrap();
        Self { pem, tls: TlsAcceptor::from(Arc::new(tls)) }
    }
}

/// One service at a plain and at a secure port.
#[derive(Debug, Clone, Copy)]
pub(super) struct Door {
    pub http: SocketAddr,
    pub https: SocketAddr,
}

impl Door {
    pub(super) fn open(
        runtime: &Runtime,
        at: (IpAddr, u16),
        vouching: &Vouching,
        serve: &Serve,
    ) -> io::Result<Self> {
        let http = listen(runtime, at, None, serve)?;
        let https = listen(runtime, (at.0, 0), Some(vouching.tls.clone()), serve)?;
        Ok(Self { http, https })
    }
}

fn listen(
    runtime: &Runtime,
    at: (IpAddr, u16),
    tls: Option<TlsAcceptor>,
    serve: &Serve,
) -> io::Result<SocketAddr> {
    // Not by waiting for it: a test may be asynchronous itself.
    let listener = std::net::TcpListener::bind(at)?;
    listener.set_nonblocking(true)?;
    let address = listener.local_addr()?;
    let _inside = runtime.enter();
    let listener = TcpListener::from_std(listener)?;
    let serve = Arc::clone(serve);
    runtime.spawn(async move {
        while let Ok((stream, peer)) = listener.accept().await {
            let (tls, serve) = (tls.clone(), Arc::clone(&serve));
            tokio::spawn(async move {
                match tls {
                    None => talk(stream, peer, "http", address, serve).await,
                    Some(tls) => {
                        // A handshake that fails is the asker's affair.
                        if let Ok(stream) = tls.accept(stream).await {
                            talk(stream, peer, "https", address, serve).await;
                        }
                    }
                }
            });
        }
    });
    Ok(address)
}

async fn talk<S>(stream: S, peer: SocketAddr, scheme: &'static str, here: SocketAddr, serve: Serve)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let service = service_fn(move |request| {
        let serve = Arc::clone(&serve);
        async move {
            let heard = hear(request, peer, scheme, here).await?;
            let head = heard.method == "HEAD";
            // An error here is the end of the connection, without a word.
            let answer = serve(heard).await.ok_or(io::ErrorKind::ConnectionReset)?;
            Ok::<_, io::Error>(say(answer, head))
        }
    });
    // How a connection ends is no news.
    let _ended = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
}

async fn hear(
    request: Request<Incoming>,
    peer: SocketAddr,
    scheme: &str,
    here: SocketAddr,
) -> io::Result<Heard> {
    let (parts, body) = request.into_parts();
    let body = Limited::new(body, LARGEST).collect().await.map_err(io::Error::other)?.to_bytes();
    let target = parts.uri.path_and_query().map_or("/", |at| at.as_str()).to_owned();
    let host = parts.headers.get("host").and_then(|host| host.to_str().ok()).map(str::to_owned);
    let base = format!("{scheme}://{}", host.unwrap_or_else(|| here.to_string()));
    let url = reqwest::Url::parse(&format!("{scheme}://{here}{target}")).map_err(io::Error::other)?;
    let query = url.query_pairs().map(|(key, value)| (key.into_owned(), value.into_owned())).collect();
    Ok(Heard {
        method: parts.method.to_string(),
        path: parts.uri.path().to_owned(),
        query,
        target,
        headers: parts.headers,
        body,
        peer,
        base,
    })
}

fn say(answer: Answer, head: bool) -> Response<Full<Bytes>> {
    let mut response = Response::builder().status(answer.status);
    for (name, value) in answer.headers {
        response = response.header(name, value);
    }
    let body = match answer.body {
        Some(body) if !head => {
            response = response.header("content-type", "application/json; charset=utf-8");
            Bytes::from(body.to_string())
        }
        _ => Bytes::new(),
    };
    response.body(Full::new(body)).unwrap()
}
