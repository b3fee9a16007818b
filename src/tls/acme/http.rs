//! How the ACME client's requests travel: bounded in time and size, each counted, and the head of the last answer
//! kept. instant-acme throws away the status, `Retry-After` and `Date` of what went wrong; a person needs the first
//! to know what happened, and the schedule needs the others. What is no answer of an ACME server at all (an error
//! page, a gateway's 503) becomes a `Trouble` that says so, where instant-acme would complain about JSON.

use super::Greeting;
use crate::web::hold;
use anyhow::{Context as _, Result};
use bytes::{Bytes, BytesMut};
use http::{Method, Request, Response, header};
use http_body_util::BodyExt as _;
use instant_acme::{BodyWrapper, BytesResponse, Error, HttpClient, Problem};
use std::{
    fmt,
    pin::Pin,
    sync::{Arc, Mutex},
    time::Duration,
};
use time::{OffsetDateTime, PrimitiveDateTime, macros::format_description};

/// One request, from its first byte to the last of the answer. A public authority answers within a second or two.
const REQUEST: Duration = Duration::from_secs(30);
const CONNECT: Duration = Duration::from_secs(10);
/// A chain is four certificates, a directory a page.
const MOST: usize = 1 << 20;
/// By a clock that is wrong by more, a certificate is not yet valid or already ended when it comes, and is asked for
/// again until the authority has had enough.
const SKEW: time::Duration = time::Duration::minutes(5);

/// The product first: an authority that must reach an operator looks for who runs what.
const USER_AGENT: &str = concat!("echoes-appliance/", env!("CARGO_PKG_VERSION"), " instant-acme/0.8.5");

/// A clone shares the connections and what was heard.
#[derive(Clone)]
pub struct Messenger {
    client: reqwest::Client,
    heard: Arc<Mutex<Heard>>,
}

/// The head of the last answer.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Heard {
    pub status: u16,
    /// From when the answer came; also where it named a date, by the server's own clock.
    pub retry_after: Option<Duration>,
    /// What time it is there.
    pub date: Option<OffsetDateTime>,
    /// Pages for people that it points at.
    pub links: Vec<String>,
    /// How many requests were made so far.
    pub requests: u32,
}

/// What is no answer of an ACME server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Trouble {
    /// No connection, or it broke.
    Unreachable { url: String, why: String },
    /// Nothing, for so long.
    Silent { url: String, after: Duration },
    /// It has trouble of its own, or something between it and us has.
    Status { url: String, status: u16, kind: Option<String>, said: String },
    /// A success without what it should bring.
    Junk { url: String, said: String },
    /// This machine's clock is so many seconds ahead of the server's; behind, when negative.
    Clock { ahead: i64 },
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreachable { url, why } => write!(f, "{url} cannot be reached: {why}"),
            Self::Silent { url, after } => write!(f, "{url} did not answer within {} s", after.as_secs()),
            Self::Status { url, status, said, .. } => write!(f, "{url} answered {status}: {said}"),
            Self::Junk { url, said } => write!(f, "{url} answered with something else than ACME: {said}"),
            Self::Clock { ahead } => {
                let way = if *ahead < 0 { "behind" } else { "ahead of" };
                write!(f, "this machine's clock is {} s {way} the authority's", ahead.abs())
            }
        }
    }
}

impl std::error::Error for Trouble {}

impl Messenger {
    /// Trusts the machine's authorities, or `roots` (PEM) in their place.
    pub fn new(roots: Option<&str>) -> Result<Self> {
        // One provider for the process; a second call finds the first one's.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let mut client = reqwest::Client::builder()
            .no_proxy()
            .https_only(true)
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(CONNECT)
            .timeout(REQUEST)
            .user_agent(USER_AGENT)
            // Otherwise every second POST over one connection waits 40 ms for an acknowledgement.
            .tcp_nodelay(true);
        if let Some(pem) = roots {
            let roots = reqwest::Certificate::from_pem_bundle(pem.as_bytes()).context("reading PEM")?;
            client = client.tls_certs_only(roots);
        }
        Ok(Self { client: client.build().context("preparing the ACME client")?, heard: Arc::default() })
    }

    pub fn heard(&self) -> Heard {
        hold(&self.heard).clone()
    }

    /// A directory, and the time there.
    pub async fn greet(&self, directory: &str) -> Result<Greeting, Trouble> {
        let url = || directory.to_owned();
        let request = Request::get(directory).body(BodyWrapper::default());
        let request = request.map_err(|e| Trouble::Unreachable { url: url(), why: e.to_string() })?;
        let mut answer = self.clone().send(request).await?;
        let date = self.heard().date;
        let date = date.ok_or_else(|| Trouble::Junk { url: url(), said: "no Date in its answer".into() })?;
        let clock = date - OffsetDateTime::now_utc();
        let body = answer.body.into_bytes().await.unwrap_or_default();
        let directory: serde_json::Value = serde_json::from_slice(&body).unwrap_or_default();
        let caa = directory["meta"]["caaIdentities"].as_array().map(Vec::as_slice).unwrap_or_default();
        let caa = caa.iter().filter_map(|name| name.as_str()).map(str::to_ascii_lowercase).collect();
        Ok(Greeting { clock, caa })
    }

    async fn send(self, request: Request<BodyWrapper<Bytes>>) -> Result<BytesResponse, Trouble> {
        let (parts, body) = request.into_parts();
        let body = match body.collect().await {
            Ok(body) => body.to_bytes(),
            Err(never) => match never {},
        };
        let (url, method) = (parts.uri.to_string(), parts.method);
        let mut headers = parts.headers;
        // Ours.
        headers.remove(header::USER_AGENT);
        {
            let mut heard = hold(&self.heard);
            *heard = Heard { requests: heard.requests + 1, date: heard.date, ..Heard::default() };
        }
        let sending = self.client.request(method.clone(), &url).headers(headers).body(body).send();
        let mut response = sending.await.map_err(|e| lost(&url, &e))?;
        let head = {
            let mut heard = hold(&self.heard);
            *heard = listen(heard.requests, response.status().as_u16(), response.headers());
            heard.clone()
        };
        let mut body = BytesMut::new();
        while let Some(chunk) = response.chunk().await.map_err(|e| lost(&url, &e))? {
            body.extend_from_slice(&chunk);
            if body.len() > MOST {
                return Err(Trouble::Junk { url, said: format!("more than {MOST} bytes") });
            }
        }
        let body = body.freeze();
        // A GET may have been answered by a cache, with the date of then.
        if method != Method::GET {
            clock(&head, OffsetDateTime::now_utc())?;
        }
        judge(&url, &method, &head, &body)?;
        let mut answer = Response::builder().status(response.status());
        if let Some(headers) = answer.headers_mut() {
            *headers = std::mem::take(response.headers_mut());
            // instant-acme throws away renewal information that comes without one. Who asks us knows from `heard`.
            if method == Method::GET && head.retry_after.is_none() {
                headers.insert(header::RETRY_AFTER, header::HeaderValue::from_static("21600"));
            }
        }
        let (parts, ()) = match answer.body(()) {
            Ok(answer) => answer.into_parts(),
            Err(e) => return Err(Trouble::Junk { url, said: e.to_string() }),
        };
        Ok(BytesResponse { parts, body: Box::new(body) })
    }
}

impl HttpClient for Messenger {
    fn request(
        &self,
        request: Request<BodyWrapper<Bytes>>,
    ) -> Pin<Box<dyn Future<Output = Result<BytesResponse, Error>> + Send>> {
        let sending = self.clone().send(request);
        Box::pin(async move { sending.await.map_err(|trouble| Error::Other(Box::new(trouble))) })
    }
}

fn lost(url: &str, e: &reqwest::Error) -> Trouble {
    let url = url.to_owned();
    if e.is_timeout() && !e.is_connect() {
        return Trouble::Silent { url, after: REQUEST };
    }
    // reqwest's own words are "error sending request"; the cause is at the end.
    let mut why: &dyn std::error::Error = e;
    let mut words = Vec::new();
    while let Some(cause) = why.source() {
        words.push(cause.to_string());
        why = cause;
    }
    words.dedup();
    let why = if words.is_empty() { e.to_string() } else { words.join(": ") };
    Trouble::Unreachable { url, why }
}

/// What the head of an answer says. Pure.
fn listen(requests: u32, status: u16, headers: &header::HeaderMap) -> Heard {
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok()).map(str::trim);
    let date = text(header::DATE).and_then(http_date);
    let retry_after = text(header::RETRY_AFTER).and_then(|value| {
        if let Ok(seconds) = value.parse() {
            return Some(Duration::from_secs(seconds));
        }
        // A date is by the server's clock, and so is the beginning of the wait: ours may be wrong.
        let wait = http_date(value)? - date.unwrap_or_else(OffsetDateTime::now_utc);
        Some(Duration::from_secs(wait.whole_seconds().max(0).unsigned_abs()))
    });
    let links = headers.get_all(header::LINK).iter();
    let links = links.filter_map(|value| page(value.to_str().ok()?)).collect();
    Heard { status, retry_after, date, links, requests }
}

/// The URL of a `Link` header, but of those between the authority's own resources.
fn page(link: &str) -> Option<String> {
    let (url, rest) = link.trim().strip_prefix('<')?.split_once('>')?;
    let ours = ["index", "up", "alternate"].iter().any(|rel| rest.contains(&format!("rel=\"{rel}\"")));
    (!ours).then(|| url.to_owned())
}

/// As `Sun, 06 Nov 1994 08:49:37 GMT`.
fn http_date(text: &str) -> Option<OffsetDateTime> {
    let form = format_description!(
        "[weekday repr:short], [day] [month repr:short] [year] [hour]:[minute]:[second] GMT"
    );
    PrimitiveDateTime::parse(text, form).ok().map(PrimitiveDateTime::assume_utc)
}

/// Whether this can be handed on as an answer of an ACME server. Pure.
fn judge(url: &str, method: &Method, head: &Heard, body: &[u8]) -> Result<(), Trouble> {
    let (status, url) = (head.status, url.to_owned());
    let json = serde_json::from_slice::<serde_json::Value>(body).ok();
    if status < 400 {
        // The directory and renewal information; all else is asked for by POST, or has no body.
        let promised = *method == Method::GET;
        return if promised && json.is_none() {
            Err(Trouble::Junk { url, said: first_words(body) })
        } else {
            Ok(())
        };
    }
    let problem: Option<Problem> = json.and_then(|json| serde_json::from_value(json).ok());
    let problem = problem.filter(|problem| problem.r#type.is_some() || problem.detail.is_some());
    match problem {
        // An ACME server's own refusal: instant-acme reads it, where it looks at the status at all.
        Some(_) if status < 500 && *method == Method::POST => Ok(()),
        Some(problem) => {
            let said = problem.detail.clone().unwrap_or_else(|| "no reason given".into());
            Err(Trouble::Status { url, status, kind: problem.r#type, said })
        }
        None => Err(Trouble::Status { url, status, kind: None, said: first_words(body) }),
    }
}

fn clock(head: &Heard, now: OffsetDateTime) -> Result<(), Trouble> {
    match head.date.map(|date| now - date) {
        Some(ahead) if ahead.abs() > SKEW => Err(Trouble::Clock { ahead: ahead.whole_seconds() }),
        _ => Ok(()),
    }
}

/// Enough of it to recognise an error page.
fn first_words(body: &[u8]) -> String {
    let text = String::from_utf8_lossy(body);
    let words = text.split_whitespace().collect::<Vec<_>>().join(" ");
    if words.is_empty() { "nothing".into() } else { words.chars().take(160).collect() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use time::macros::datetime;

    fn head(status: u16, headers: &[(&str, &str)]) -> Heard {
        let mut map = header::HeaderMap::new();
        for (name, value) in headers {
            map.append(header::HeaderName::try_from(*name).unwrap(), value.parse().unwrap());
        }
        listen(1, status, &map)
    }

    #[test]
    fn a_date_to_come_back_at_is_counted_by_the_clock_that_named_it() {
        let date = ("date", "Mon, 23 Nov 2026 12:00:00 GMT");
        let seconds = |n| Some(Duration::from_secs(n));
        let table = [
            (vec![("retry-after", "3600")], seconds(3600)),
            (vec![date, ("retry-after", "Mon, 23 Nov 2026 12:00:04 GMT")], seconds(4)),
            (vec![date, ("retry-after", "Mon, 23 Nov 2026 11:00:00 GMT")], seconds(0)),
            (vec![date, ("retry-after", "soon")], None),
            (vec![date], None),
        ];
        for (headers, expected) in table {
            assert_eq!(head(200, &headers).retry_after, expected, "{headers:?}");
        }
        assert_eq!(head(200, &[date]).date, Some(datetime!(2026-11-23 12:00 UTC)));
        let links = [
            ("link", "<https://ca/dir>;rel=\"index\""),
            ("link", "<https://ca/terms>;rel=\"terms-of-service\""),
        ];
        assert_eq!(head(403, &links).links, ["https://ca/terms"]);
    }

    #[test]
    fn what_is_no_answer_of_an_acme_server_is_told_apart() {
        let problem = br#"{"type":"urn:ietf:params:acme:error:rateLimited","detail":"too many"}"#;
        let said = |method: Method, status, body: &[u8]| {
            judge("https://ca/x", &method, &head(status, &[]), body).map_err(|trouble| trouble.to_string())
        };
        assert_eq!(said(Method::POST, 429, problem), Ok(()));
        assert_eq!(said(Method::POST, 200, b"-----BEGIN CERTIFICATE-----"), Ok(()));
        assert_eq!(said(Method::HEAD, 200, b""), Ok(()));
        assert_eq!(said(Method::GET, 200, b"{}"), Ok(()));
        let table: [(Method, u16, &[u8], &str); 6] = [
            (Method::GET, 404, problem, "https://ca/x answered 404: too many"),
            (Method::POST, 503, problem, "https://ca/x answered 503: too many"),
            (Method::GET, 503, b"<h1>Busy</h1>\n ", "https://ca/x answered 503: <h1>Busy</h1>"),
            (Method::POST, 400, b"{}", "https://ca/x answered 400: {}"),
            (Method::HEAD, 503, b"", "https://ca/x answered 503: nothing"),
            (Method::GET, 200, b"<html>", "https://ca/x answered with something else than ACME: <html>"),
        ];
        for (method, status, body, expected) in table {
            assert_eq!(said(method, status, body), Err(expected.into()));
        }
    }

    #[test]
    fn a_clock_that_is_wrong_stops_before_anything_is_asked() {
        let noon = head(200, &[("date", "Mon, 23 Nov 2026 12:00:00 GMT")]);
        let said = |now| clock(&noon, now).map_err(|trouble| trouble.to_string());
        assert_eq!(said(datetime!(2026-11-23 12:05 UTC)), Ok(()));
        assert_eq!(said(datetime!(2026-11-23 11:55 UTC)), Ok(()));
        let slow = Err("this machine's clock is 7200 s behind the authority's".into());
        assert_eq!(said(datetime!(2026-11-23 10:00 UTC)), slow);
        let fast = Err("this machine's clock is 4320000 s ahead of the authority's".into());
        assert_eq!(said(datetime!(2027-01-12 12:00 UTC)), fast);
        assert_eq!(clock(&head(200, &[]), datetime!(2000-01-01 0:00 UTC)), Ok(()));
    }

    #[test]
    fn fuzz_acme_answers_are_handed_on_or_told_apart() {
        crate::fuzz::run(
            "acme",
            &["retry-after: 1\n", "date: Sun, 06 Nov 1994 08:49:37 GMT\n", "link: <a>;rel=\"up\"\n", "\n\n"],
            |bytes| {
                let text = String::from_utf8_lossy(bytes);
                let (headers, body) = text.split_once("\n\n").unwrap_or((&text, ""));
                let mut map = header::HeaderMap::new();
                for (name, value) in headers.lines().filter_map(|line| line.split_once(": ")) {
                    if let (Ok(name), Ok(value)) = (name.parse::<header::HeaderName>(), value.parse()) {
                        map.append(name, value);
                    }
                }
                let _ = crate::tls::renewal::retry_date(&text);
                let mut first = Ok(());
                for status in [200, 400, 403, 429, 503] {
                    let head = listen(1, status, &map);
                    let _ = clock(&head, OffsetDateTime::UNIX_EPOCH);
                    for method in [Method::GET, Method::POST] {
                        let judged = judge("https://a.b", &method, &head, body.as_bytes());
                        first = first.and(judged.map_err(|trouble| anyhow::anyhow!("{trouble:?}")));
                    }
                }
                first
            },
        );
    }
}
