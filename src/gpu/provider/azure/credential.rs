//! Who we are to Azure: a token, from the first of these that there is.
//!
//! 1. a service principal in the environment (`AZURE_TENANT_ID`, `AZURE_CLIENT_ID`, `AZURE_CLIENT_SECRET`),
//! 2. a workload identity (`AZURE_FEDERATED_TOKEN_FILE` in place of the secret),
//! 3. the managed identity of this machine, from its metadata service,
//! 4. whoever is logged in with `az`.
//!
//! Three requests and a command, in place of Microsoft's crate: that one takes neither another metadata service nor one
//! without TLS, so that it could never be tried against anything but Azure. No token or secret of ours is ever printed.

use super::{
    arm::{chain, encoded},
    clock::Clock,
    fault::Fault,
};
use crate::{
    host::{Cmd, Host},
    web::{hold, json_at_most},
};
use serde_json::Value;
use std::{
    fmt,
    path::PathBuf,
    sync::{Arc, Mutex},
    time::Duration,
};
use time::OffsetDateTime;

/// Bytes of the longest answer that is read; a token has two kilobytes.
const MOST: usize = 1 << 20;

/// A new token is asked for when the old one has so long to live: no request should outlive its token.
const EARLY: time::Duration = time::Duration::minutes(5);
/// The metadata service answers at once or is not there.
const METADATA: Duration = Duration::from_secs(2);
/// It may be busy for a while after a start: the waiting that Microsoft's own client does, 72 s in all.
const METADATA_TRIES: u32 = 6;

/// What must not be seen.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("…")
    }
}

/// Where a token comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    Secret {
        tenant: String,
        client: String,
        secret: Secret,
    },
    Workload {
        tenant: String,
        client: String,
        file: PathBuf,
    },
    /// Of this machine; by the client id of one of several.
    Managed {
        client: Option<String>,
    },
    Cli {
        tenant: Option<String>,
    },
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Secret { client, .. } => write!(f, "service principal {client}"),
            Self::Workload { client, .. } => write!(f, "workload identity {client}"),
            Self::Managed { client: Some(client) } => write!(f, "managed identity {client}"),
            Self::Managed { client: None } => f.write_str("this machine's managed identity"),
            Self::Cli { .. } => f.write_str("az"),
        }
    }
}

/// Which are to be tried, the first first. Pure.
pub fn sources(environment: &dyn Fn(&str) -> Option<String>) -> Vec<Source> {
    let set = |name| environment(name).filter(|value| !value.is_empty());
    let (tenant, client) = (set("AZURE_TENANT_ID"), set("AZURE_CLIENT_ID"));
    if let (Some(tenant), Some(client)) = (tenant.clone(), client.clone()) {
        if let Some(secret) = set("AZURE_CLIENT_SECRET") {
            return vec![Source::Secret { tenant, client, secret: Secret::new(secret) }];
        }
        if let Some(file) = set("AZURE_FEDERATED_TOKEN_FILE") {
            return vec![Source::Workload { tenant, client, file: file.into() }];
        }
    }
    vec![Source::Managed { client }, Source::Cli { tenant }]
}

struct Token {
    secret: Secret,
    until: OffsetDateTime,
}

/// Where tokens are asked for.
pub struct Tokens {
    pub sources: Vec<Source>,
    /// As in `https://login.microsoftonline.com`.
    pub login: String,
    /// As in `http://169.254.169.254`.
    pub metadata: String,
    /// Whom the token is for: `https://management.azure.com/`, also where that is reached at another address.
    pub audience: String,
    pub http: reqwest::Client,
    /// Files and processes.
    pub host: Arc<Host>,
    token: Mutex<Option<Token>>,
}

impl Tokens {
    pub fn new(
        sources: Vec<Source>,
        [login, metadata, audience]: [&str; 3],
        http: reqwest::Client,
        host: Arc<Host>,
    ) -> Self {
        let bare = |url: &str| url.trim_end_matches('/').to_owned();
        let audience = format!("{}/", bare(audience));
        Self {
            sources,
            login: bare(login),
            metadata: bare(metadata),
            audience,
            http,
            host,
            token: Mutex::default(),
        }
    }

    pub async fn get(&self, clock: &dyn Clock) -> Result<Secret, Fault> {
        if let Some(token) = hold(&self.token).as_ref().filter(|token| token.until - clock.now() > EARLY) {
            return Ok(token.secret.clone());
        }
        let mut faults = Vec::new();
        for source in &self.sources {
            match self.ask(source, clock).await {
                Ok(token) => {
                    let secret = token.secret.clone();
                    *hold(&self.token) = Some(token);
                    return Ok(secret);
                }
                Err(why) => faults.push(format!("{source}: {why}")),
            }
        }
        Err(Fault::here("logging in to Azure", faults.join("; ")))
    }

    /// Azure did not take it.
    pub fn forget(&self) {
        *hold(&self.token) = None;
    }

    async fn ask(&self, source: &Source, clock: &dyn Clock) -> Result<Token, String> {
        match source {
            Source::Secret { tenant, client, secret } => {
                self.login(tenant, client, &[("client_secret", secret.reveal())], clock).await
            }
            Source::Workload { tenant, client, file } => {
                let assertion = self.host.read_text(file).map_err(|e| format!("{e:#}"))?;
                let assertion = assertion.ok_or_else(|| format!("{} is not there", file.display()))?;
                let kind = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer";
                let proof = [("client_assertion_type", kind), ("client_assertion", assertion.trim())];
                self.login(tenant, client, &proof, clock).await
            }
            Source::Managed { client } => self.managed(client.as_deref(), clock).await,
            Source::Cli { tenant } => self.cli(tenant.as_deref()),
        }
    }

    async fn login(
        &self,
        tenant: &str,
        client: &str,
        proof: &[(&str, &str)],
        clock: &dyn Clock,
    ) -> Result<Token, String> {
        let url = format!("{}/{}/oauth2/v2.0/token", self.login, encoded(tenant));
        let scope = format!("{}.default", self.audience);
        let mut form =
            vec![("grant_type", "client_credentials"), ("client_id", client), ("scope", scope.as_str())];
        form.extend(proof);
        let form: Vec<String> =
            form.iter().map(|(name, value)| format!("{name}={}", encoded(value))).collect();
        let form = form.join("&");
        let mut last = String::new();
        for tries in 0..4 {
            if tries > 0 {
                clock.nap(Duration::from_secs(1 << tries)).await;
            }
            let request = self.http.post(&url).header("content-type", "application/x-www-form-urlencoded");
            match answer(request.body(form.clone())).await {
                Ok((200, body)) => return token(&body, clock),
                // AADSTS… and a sentence for people; it never repeats a secret.
                Ok((status, body)) => {
                    let said = body["error_description"].as_str().unwrap_or("no reason given");
                    last = format!(
                        "{} answered {status}: {}",
                        self.login,
                        said.lines().next().unwrap_or_default()
                    );
                    if status < 500 && status != 429 {
                        break;
                    }
                }
                Err(why) => last = why,
            }
        }
        Err(last)
    }

    async fn managed(&self, client: Option<&str>, clock: &dyn Clock) -> Result<Token, String> {
        let client = client.map(|id| format!("&client_id={}", encoded(id))).unwrap_or_default();
        let url = format!(
            "{}/metadata/identity/oauth2/token?api-version=2018-02-01&resource={}{client}",
            self.metadata,
            encoded(&self.audience)
        );
        let mut wait = Duration::from_millis(1340);
        for tries in 1.. {
            let request = self.http.get(&url).header("Metadata", "true").timeout(METADATA);
            let (status, body) =
                answer(request).await.map_err(|_| "this machine is none of Azure's".to_owned())?;
            match status {
                200 => return token(&body, clock),
                404 | 410 | 429 | 500.. if tries < METADATA_TRIES => clock.nap(wait).await,
                400 => return Err("no identity is assigned to this machine".into()),
                _ => return Err(format!("the metadata service answered {status}")),
            }
            wait = wait.mul_f32(1.9);
        }
        unreachable!("the last try returns")
    }

    fn cli(&self, tenant: Option<&str>) -> Result<Token, String> {
        let scope = format!("{}.default", self.audience);
        let mut args = vec!["account", "get-access-token", "-o", "json", "--scope", &scope];
        if let Some(tenant) = tenant {
            args.extend(["--tenant", tenant]);
        }
        let output = self.host.ask(&Cmd::new("az", args)).map_err(|_| "az is not installed".to_owned())?;
        if !output.ok() {
            let line =
                output.stderr.lines().find(|line| !line.trim().is_empty()).unwrap_or("no reason given");
            return Err(line.trim().to_owned());
        }
        // What it prints is the token: none of it may reach an error.
        let body: Value =
            serde_json::from_str(&output.stdout).map_err(|_| "az answered with no JSON".to_owned())?;
        let until = body["expires_on"].as_i64().and_then(|at| OffsetDateTime::from_unix_timestamp(at).ok());
        match (body["accessToken"].as_str(), until) {
            (Some(secret), Some(until)) => Ok(Token { secret: Secret::new(secret), until }),
            _ => Err("az is older than 2.54".into()),
        }
    }
}

async fn answer(request: reqwest::RequestBuilder) -> Result<(u16, Value), String> {
    let response = request.send().await.map_err(|e| chain(&e.without_url()))?;
    let status = response.status().as_u16();
    let body = json_at_most(response, MOST).await.map_err(|e| chain(&e.without_url()))?;
    Ok((status, body.unwrap_or_default()))
}

/// From either service: one says when it ends, the other how long it lives; both as a number or as text.
fn token(body: &Value, clock: &dyn Clock) -> Result<Token, String> {
    let number = |key: &str| body[key].as_i64().or_else(|| body[key].as_str()?.parse().ok());
    let lives = number("expires_in").and_then(|life| clock.now().checked_add(time::Duration::seconds(life)));
    let until = number("expires_on").and_then(|at| OffsetDateTime::from_unix_timestamp(at).ok()).or(lives);
    match (body["access_token"].as_str(), until) {
        (Some(secret), Some(until)) => Ok(Token { secret: Secret::new(secret), until }),
        _ => Err("the answer holds no token".into()),
    }
}

/// Whether an answer holds a token.
#[cfg(test)]
pub fn fuzzed(body: &Value) -> bool {
    token(body, &super::clock::Wall).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_that_there_is_is_asked() {
        let found = |names: &[&str]| {
            let set = |name: &str| names.contains(&name).then(|| format!("{name}!"));
            sources(&set).iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        let all = ["AZURE_TENANT_ID", "AZURE_CLIENT_ID", "AZURE_CLIENT_SECRET", "AZURE_FEDERATED_TOKEN_FILE"];
        assert_eq!(found(&all), ["service principal AZURE_CLIENT_ID!"]);
        assert_eq!(found(&[all[0], all[1], all[3]]), ["workload identity AZURE_CLIENT_ID!"]);
        assert_eq!(found(&all[1..2]), ["managed identity AZURE_CLIENT_ID!", "az"]);
        assert_eq!(found(&[]), ["this machine's managed identity", "az"]);
    }

    #[test]
    fn a_secret_is_in_no_word_of_ours() {
        let source = Source::Secret { tenant: "t".into(), client: "c".into(), secret: Secret::new("hush") };
        assert!(!format!("{source:?} {source}").contains("hush"));
    }

    #[test]
    fn a_token_that_lives_for_ever_is_none() {
        let read = |body: Value| token(&body, &crate::gpu::provider::azure::clock::Wall);
        for lives in [i64::MAX, i64::MIN, 1 << 50] {
            let body = serde_json::json!({ "access_token": "a", "expires_in": lives });
            assert_eq!(read(body).err().unwrap(), "the answer holds no token", "{lives}");
        }
        assert!(read(serde_json::json!({ "access_token": "a", "expires_in": "3599" })).is_ok());
    }
}
