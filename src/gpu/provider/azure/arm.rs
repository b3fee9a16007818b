//! How requests travel to Azure Resource Manager: bounded in time and size, never earlier than asked, and again where
//! that is safe. A request is plain data, so that it can be compared with Microsoft's description before it is sent.
//!
//! Reading, deleting and what was refused for being too much are repeated here. A PUT whose answer was lost is not:
//! who asked looks at what is there, by name, and decides anew.

use super::{clock::Clock, credential::Tokens, fault::Fault};
use crate::web::hold;
use reqwest::{Method, Url, header};
use serde_json::Value;
use std::{
    fmt,
    future::poll_fn,
    sync::{Arc, Mutex},
    task::Poll,
    time::Duration,
};
use time::OffsetDateTime;

/// One request, from its first byte to the last of the answer. Most take half a second; a list of all sizes, three.
const REQUEST: Duration = Duration::from_secs(60);
const CONNECT: Duration = Duration::from_secs(10);
/// All sizes of a region are about five megabytes.
const MOST: usize = 32 << 20;
/// How often the same is asked before the trouble is somebody else's.
const TRIES: u32 = 6;
/// Of all waiting for one answer. Whoever asked may ask again.
const PATIENCE: Duration = Duration::from_secs(180);
/// When Azure does not say: its own documents advise so much after 429.
const BUSY: Duration = Duration::from_secs(10);

#[derive(Clone, PartialEq)]
pub struct Ask {
    pub method: Method,
    /// From the root, or whole, where Azure named it.
    pub path: String,
    pub query: Vec<(&'static str, String)>,
    pub body: Option<Value>,
    /// Never in place of something that is there.
    pub only_new: bool,
}

impl fmt::Debug for Ask {
    /// A machine's body holds its private key.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.method, self.target())
    }
}

impl Ask {
    fn new(method: Method, path: impl Into<String>, version: &str) -> Self {
        let query = vec![("api-version", version.to_owned())];
        Self { method, path: path.into(), query, body: None, only_new: false }
    }

    pub fn get(path: impl Into<String>, version: &str) -> Self {
        Self::new(Method::GET, path, version)
    }

    pub fn put(path: impl Into<String>, version: &str, body: Value) -> Self {
        Self { body: Some(body), ..Self::new(Method::PUT, path, version) }
    }

    pub fn patch(path: impl Into<String>, version: &str, body: Value) -> Self {
        Self { body: Some(body), ..Self::new(Method::PATCH, path, version) }
    }

    pub fn post(path: impl Into<String>, version: &str) -> Self {
        Self::new(Method::POST, path, version)
    }

    pub fn delete(path: impl Into<String>, version: &str) -> Self {
        Self::new(Method::DELETE, path, version)
    }

    pub fn with(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.query.push((name, value.into()));
        self
    }

    pub fn only_new(mut self) -> Self {
        self.only_new = true;
        self
    }

    /// For an error: what is asked for, without what everybody knows.
    fn doing(&self) -> String {
        format!("{} {}", self.method, self.path.split('?').next().unwrap_or_default())
    }

    /// Where it goes, below the endpoint.
    pub fn target(&self) -> String {
        let query: Vec<String> =
            self.query.iter().map(|(name, value)| format!("{name}={}", encoded(value))).collect();
        if query.is_empty() { self.path.clone() } else { format!("{}?{}", self.path, query.join("&")) }
    }
}

/// Percent-encoded, all but what never needs to be (RFC 3986, 2.3).
pub fn encoded(text: &str) -> String {
    let byte = |b: u8| match b {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => char::from(b).to_string(),
        _ => format!("%{b:02X}"),
    };
    text.bytes().map(byte).collect()
}

/// A success.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Answer {
    pub status: u16,
    pub body: Value,
    /// `Azure-AsyncOperation`.
    pub operation: Option<String>,
    pub location: Option<String>,
    pub retry_after: Option<Duration>,
}

pub struct Arm {
    endpoint: Url,
    http: reqwest::Client,
    tokens: Tokens,
    clock: Arc<dyn Clock>,
    /// Azure will not hear of us before this; asking earlier begins its wait anew.
    calm: Mutex<Option<OffsetDateTime>>,
}

impl Arm {
    pub fn new(endpoint: Url, http: reqwest::Client, tokens: Tokens, clock: Arc<dyn Clock>) -> Self {
        Self { endpoint, http, tokens, clock, calm: Mutex::default() }
    }

    pub fn clock(&self) -> &dyn Clock {
        &*self.clock
    }

    pub async fn send(&self, ask: &Ask) -> Result<Answer, Fault> {
        let doing = ask.doing();
        let url = self.endpoint.join(&ask.target());
        let url = url.map_err(|e| Fault::here(&doing, format!("no address: {e}")))?;
        // Azure names addresses to ask next. The token is for Azure alone, whoever wrote the answer.
        if url.origin() != self.endpoint.origin() {
            return Err(Fault::here(&doing, format!("{} is not at {}", url, self.endpoint)));
        }
        let began = self.clock.now();
        let (mut tries, mut refreshed) = (0, false);
        loop {
            self.rest().await;
            let token = self.tokens.get(&*self.clock).await?;
            tries += 1;
            let fault = match self.once(ask, &url, &doing, token.reveal()).await {
                Ok(answer) => return Ok(answer),
                Err(fault) => fault,
            };
            if fault.status == Some(401) && !refreshed {
                // Ended before its time, or taken back.
                refreshed = true;
                self.tokens.forget();
                continue;
            }
            let waited = (self.clock.now() - began).try_into().unwrap_or_default();
            let Some(wait) = again(&ask.method, &fault, tries, waited) else { return Err(fault) };
            if fault.status == Some(429) {
                let until = self.clock.now() + wait;
                let mut calm = hold(&self.calm);
                *calm = calm.max(Some(until));
            } else {
                self.clock.nap(wait).await;
            }
        }
    }

    /// As `send`; not there is an answer.
    pub async fn find(&self, ask: &Ask) -> Result<Option<Answer>, Fault> {
        match self.send(ask).await {
            Ok(answer) => Ok(Some(answer)),
            Err(fault) if fault.is_absent() => Ok(None),
            Err(fault) => Err(fault),
        }
    }

    /// All pages of a list.
    pub async fn list(&self, ask: &Ask) -> Result<Vec<Value>, Fault> {
        // What a list of a thousand a page holds at most; a server that never comes to an end is not followed.
        const PAGES: usize = 200;
        let (mut next, mut all) = (ask.clone(), Vec::new());
        for _ in 0..PAGES {
            let mut page = self.send(&next).await?.body;
            match page.get_mut("value").map(Value::take) {
                Some(Value::Array(values)) => all.extend(values),
                _ => return Err(Fault::here(&ask.doing(), "the answer is not a list")),
            }
            match page["nextLink"].as_str().filter(|link| !link.is_empty()) {
                Some(link) => next = Ask { path: link.into(), query: Vec::new(), ..ask.clone() },
                None => return Ok(all),
            }
        }
        Err(Fault::here(&ask.doing(), format!("more than {PAGES} pages")))
    }

    async fn rest(&self) {
        loop {
            let calm = *hold(&self.calm);
            let left: Option<Duration> = calm.and_then(|until| (until - self.clock.now()).try_into().ok());
            match left {
                Some(left) if !left.is_zero() => self.clock.nap(left).await,
                _ => return,
            }
        }
    }

    async fn once(&self, ask: &Ask, url: &Url, doing: &str, token: &str) -> Result<Answer, Fault> {
        let lost = |e: reqwest::Error| {
            let e = e.without_url();
            // Nothing was asked of somebody whom nobody vouches for, and asking again changes nothing.
            if unvouched(&e) { Fault::here(doing, chain(&e)) } else { Fault::lost(doing, chain(&e)) }
        };
        let mut request = self.http.request(ask.method.clone(), url.clone()).bearer_auth(token);
        if ask.only_new {
            request = request.header(header::IF_NONE_MATCH, "*");
        }
        if let Some(body) = &ask.body {
            request = request.json(body);
        }
        let mut response = request.send().await.map_err(lost)?;
        let status = response.status().as_u16();
        let header = |name: &str| {
            response.headers().get(name).and_then(|value| value.to_str().ok()).map(str::to_owned)
        };
        let correlation = header("x-ms-correlation-request-id").or_else(|| header("x-ms-request-id"));
        let retry_after = header("retry-after").and_then(|text| text.trim().parse().ok());
        let retry_after = retry_after.map(Duration::from_secs);
        let (operation, location) = (header("azure-asyncoperation"), header("location"));
        let mut bytes = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(lost)? {
            bytes.extend_from_slice(&chunk);
            if bytes.len() > MOST {
                return Err(Fault::lost(doing, format!("the answer is longer than {MOST} bytes")));
            }
        }
        let body = if bytes.is_empty() { Ok(Value::Null) } else { serde_json::from_slice(&bytes) };
        match body {
            // Something on the way may well answer with a success of its own.
            Ok(body)
                if (200..300).contains(&status)
                    && (body.is_null() || body.is_object() || body.is_array()) =>
            {
                Ok(Answer { status, body, operation, location, retry_after })
            }
            Ok(body) if status >= 300 && body.is_object() => {
                Err(Fault { correlation, retry_after, ..Fault::read(doing, Some(status), &body) })
            }
            _ => {
                let words = String::from_utf8_lossy(&bytes).split_whitespace().collect::<Vec<_>>().join(" ");
                let said = words.chars().take(160).collect::<String>();
                let fault = Fault::here(doing, format!("the answer is none of Azure's: {said}"));
                // A refusal, by whomever, was not carried out.
                let lost = !(400..500).contains(&status);
                Err(Fault { status: Some(status), correlation, retry_after, lost, ..fault })
            }
        }
    }
}

/// A client for Azure's services: TLS but on this very machine, no proxy that somebody's shell names, no redirects.
pub fn client(roots: Option<&str>) -> anyhow::Result<reqwest::Client> {
    // One provider for the process; a second call finds the first one's.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let mut client = reqwest::Client::builder()
        .no_proxy()
        .redirect(reqwest::redirect::Policy::none())
        .connect_timeout(CONNECT)
        .timeout(REQUEST)
        .tcp_nodelay(true)
        .user_agent(concat!("echoes-appliance/", env!("CARGO_PKG_VERSION")));
    if let Some(pem) = roots {
        client = client.tls_certs_only(reqwest::Certificate::from_pem_bundle(pem.as_bytes())?);
    }
    Ok(client.build()?)
}

/// Whether to ask the same again, and after how long. Pure.
fn again(method: &Method, fault: &Fault, tries: u32, waited: Duration) -> Option<Duration> {
    let busy = fault.status == Some(429);
    // A PUT or POST may have been carried out: that is not for here to find out.
    let safe = [Method::GET, Method::HEAD, Method::DELETE].contains(method);
    let trouble = fault.lost || fault.status.is_some_and(|status| status == 408 || status >= 500);
    if tries >= TRIES || !(busy || (safe && trouble)) {
        return None;
    }
    // 1, 2, 4, 8, 16 s.
    let ours = if busy { BUSY } else { Duration::from_secs(1 << (tries - 1).min(4)) };
    let wait =
        fault.retry_after.map_or(ours, |asked| asked.max(if busy { Duration::from_secs(1) } else { ours }));
    (waited.saturating_add(wait) <= PATIENCE).then_some(wait)
}

/// All at once, in their order; the first failure in the way of them all.
pub async fn all<T>(asking: Vec<impl Future<Output = Result<T, Fault>>>) -> Result<Vec<T>, Fault> {
    let mut asking: Vec<_> = asking.into_iter().map(Box::pin).collect();
    let mut done: Vec<Option<T>> = asking.iter().map(|_| None).collect();
    poll_fn(move |context| {
        for (asking, done) in asking.iter_mut().zip(&mut done).filter(|(_, done)| done.is_none()) {
            match asking.as_mut().poll(context) {
                Poll::Ready(Ok(it)) => *done = Some(it),
                Poll::Ready(Err(fault)) => return Poll::Ready(Err(fault)),
                Poll::Pending => {}
            }
        }
        if done.iter().any(Option::is_none) {
            return Poll::Pending;
        }
        Poll::Ready(Ok(done.iter_mut().filter_map(Option::take).collect()))
    })
    .await
}

/// An error with its reasons: reqwest's own words are the widest.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut parts = vec![error.to_string()];
    let mut next = error.source();
    while let Some(error) = next {
        parts.push(error.to_string());
        next = error.source();
    }
    parts.dedup();
    parts.join(": ")
}

/// Whether the other end showed a certificate that is none of theirs whom we believe.
fn unvouched(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut next = Some(error);
    while let Some(error) = next {
        if matches!(error.downcast_ref(), Some(rustls::Error::InvalidCertificate(_))) {
            return true;
        }
        // What is in an error of the system's is not its source.
        next = match error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref) {
            Some(within) => Some(within),
            None => error.source(),
        };
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_may_have_been_done_is_not_done_again() {
        let fault = |status: u16, after: Option<u64>| Fault {
            status: Some(status).filter(|status| *status > 0),
            retry_after: after.map(Duration::from_secs),
            lost: status == 0,
            ..Fault::here("x", "y")
        };
        let seconds = |n| Some(Duration::from_secs(n));
        let table = [
            (Method::GET, fault(0, None), 1, 0, seconds(1)),
            (Method::GET, fault(503, None), 4, 0, seconds(8)),
            (Method::GET, fault(503, Some(30)), 1, 0, seconds(30)),
            (Method::DELETE, fault(500, None), 2, 0, seconds(2)),
            (Method::PUT, fault(500, None), 1, 0, None),
            (Method::PUT, fault(0, None), 1, 0, None),
            (Method::POST, fault(502, None), 1, 0, None),
            (Method::PUT, fault(429, Some(17)), 1, 0, seconds(17)),
            (Method::PUT, fault(429, Some(0)), 1, 0, seconds(1)),
            (Method::PUT, fault(429, None), 1, 0, seconds(10)),
            // Longer than anybody should sit here: who asked may ask again, and waits there.
            (Method::GET, fault(429, Some(600)), 1, 0, None),
            (Method::GET, fault(429, Some(20)), 1, 170, None),
            (Method::GET, fault(429, Some(u64::MAX)), 1, 170, None),
            (Method::GET, fault(503, None), 6, 0, None),
            (Method::GET, fault(404, None), 1, 0, None),
            (Method::PUT, fault(409, None), 1, 0, None),
        ];
        for (method, fault, tries, waited, expected) in table {
            let waited = Duration::from_secs(waited);
            assert_eq!(again(&method, &fault, tries, waited), expected, "{method} {fault:?}");
        }
    }

    #[test]
    fn a_filter_arrives_as_it_was_written() {
        let ask = Ask::get("/subscriptions/s/resources", "v")
            .with("$filter", "tagName eq 'a' and tagValue eq 'b&c'");
        assert_eq!(
            ask.target(),
            "/subscriptions/s/resources?api-version=v&$filter=tagName%20eq%20%27a%27%20and%20tagValue%20eq%20%27b%26c%27"
        );
    }
}
