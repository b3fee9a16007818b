//! Asking services questions over http and https, as probes and units do: bounded in time and size, never through
//! a proxy.

use anyhow::{Context as _, Result, ensure};
use std::{
    net::{IpAddr, Ipv4Addr},
    path::Path,
    time::Duration,
};

/// A probe's answer is a page, a small artifact, or a line of JSON.
const MOST: usize = 8 << 20;

pub struct Client(reqwest::Client);

pub struct Answer {
    pub status: u16,
    pub location: Option<String>,
    pub body: Vec<u8>,
}

impl Answer {
    /// Enough of it to recognise an error page.
    pub fn start(&self) -> String {
        let text = String::from_utf8_lossy(&self.body);
        text.split_whitespace().collect::<Vec<_>>().join(" ").chars().take(160).collect()
    }
}

fn builder() -> reqwest::ClientBuilder {
    // One provider for the process; a second call finds the first one's.
    let _ = rustls::crypto::ring::default_provider().install_default();
    reqwest::Client::builder()
        .no_proxy()
        .connect_timeout(Duration::from_secs(5))
        .timeout(Duration::from_secs(60))
        .redirect(reqwest::redirect::Policy::none())
        .user_agent(concat!("echoes-appliance/", env!("CARGO_PKG_VERSION")))
}

/// For services on loopback, without TLS.
pub fn plain() -> Result<Client> {
    Ok(Client(builder().tls_certs_only([]).build()?))
}

/// For a service at a unix socket, whatever name the URL has.
pub fn at_socket(socket: &Path) -> Result<Client> {
    Ok(Client(builder().tls_certs_only([]).unix_socket(socket).build()?))
}

/// Reaches a name at this address, whatever DNS says, without TLS, and waits no longer than this.
pub fn at(name: &str, ip: IpAddr, patience: Duration) -> Result<Client> {
    let client = builder().tls_certs_only([]).connect_timeout(patience).timeout(patience);
    Ok(Client(client.resolve(name, (ip, 0).into()).build()?))
}

/// For others' services, whom this machine's authorities vouch for.
pub fn public() -> Result<Client> {
    Ok(Client(builder().build()?))
}

/// Whether a URL answers with a success.
pub async fn answers(client: &Client, url: &str) -> Result<()> {
    let answer = client.ask("GET", url, None, None).await?;
    ensure!((200..300).contains(&answer.status), "{url} answered {}", answer.status);
    Ok(())
}

impl Client {
    /// Reaches these host names at this machine's own nginx, whatever DNS says, and trusts those in `roots` (PEM)
    /// alone.
    pub fn through_nginx(names: &[String], roots: &str) -> Result<Self> {
        let mut client = builder().tls_certs_only(reqwest::Certificate::from_pem_bundle(roots.as_bytes())?);
        for name in names {
            // Port 0: the one in the URL.
            client = client.resolve(name, (Ipv4Addr::LOCALHOST, 0).into());
        }
        Ok(Self(client.build()?))
    }

    pub async fn ask(
        &self,
        method: &str,
        url: &str,
        login: Option<(&str, &str)>,
        body: Option<Vec<u8>>,
    ) -> Result<Answer> {
        let doing = || format!("{method} {url}");
        let mut request = self.0.request(method.parse()?, url);
        if let Some((user, password)) = login {
            request = request.basic_auth(user, Some(password));
        }
        if let Some(body) = body {
            let json = serde_json::from_slice::<serde::de::IgnoredAny>(&body).is_ok();
            let kind = if json { "application/json" } else { "application/octet-stream" };
            request = request.header("content-type", kind).body(body);
        }
        let mut response = request.send().await.with_context(doing)?;
        let status = response.status().as_u16();
        let location = response.headers().get("location").and_then(|to| to.to_str().ok()).map(Into::into);
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.with_context(doing)? {
            body.extend_from_slice(&chunk);
            ensure!(body.len() <= MOST, "{method} {url} answers with more than {MOST} bytes");
        }
        Ok(Answer { status, location, body })
    }
}
