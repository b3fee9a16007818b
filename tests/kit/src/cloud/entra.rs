//! Who may ask: tokens of Entra for a service principal, and of the metadata service for a machine's own identity.

use super::{answer::Answer, clock::Moment, door::Heard};
use serde_json::{Value, json};
use std::{collections::BTreeMap, time::Duration};

/// What tokens are for.
pub(super) const AUDIENCE: &str = "https://management.azure.com/";

#[derive(Debug, Clone)]
pub struct Principal {
    pub tenant: String,
    pub client: String,
    pub secret: String,
}

impl Default for Principal {
    fn default() -> Self {
        Self {
            tenant: "7e2a1c53-0d4b-4c1e-9a55-3f6f0f9b1a01".into(),
            client: "5b8f6f0e-52f5-4f63-8f0c-2a4d7f3c9b02".into(),
            secret: "a secret of the simulated tenant".into(),
        }
    }
}

pub(super) struct Entra {
    pub principal: Principal,
    pub lifetime: Duration,
    /// Whether the headquarters' machine has an identity.
    pub identity: bool,
    tokens: BTreeMap<String, Moment>,
    serial: u64,
}

/// What a bearer is worth.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Worth {
    Good,
    Expired,
    Unknown,
}

impl Entra {
    pub(super) fn new(principal: Principal, lifetime: Duration, identity: bool) -> Self {
        Self { principal, lifetime, identity, tokens: BTreeMap::new(), serial: 0 }
    }

    pub(super) fn worth(&self, headers: &http::HeaderMap, now: Moment) -> Worth {
        let bearer = headers.get("authorization").and_then(|value| value.to_str().ok());
        let token = bearer.and_then(|value| value.strip_prefix("Bearer "));
        match token.and_then(|token| self.tokens.get(token)) {
            Some(until) if *until > now => Worth::Good,
            Some(_) => Worth::Expired,
            None => Worth::Unknown,
        }
    }

    /// All that were given out are worth nothing from now on.
    pub(super) fn expire(&mut self) {
        self.tokens.values_mut().for_each(|until| *until = Moment::default());
    }

    fn issue(&mut self, now: Moment) -> (String, Moment) {
        self.serial += 1;
        let noise: String =
            super::catalog::uuid(&format!("token {} {}", self.serial, now.0)).replace('-', "");
        let token = format!("simulated.{noise}.{}", self.serial);
        let until = now.after(self.lifetime);
        self.tokens.insert(token.clone(), until);
        (token, until)
    }

    pub(super) fn answer(&mut self, heard: &Heard, now: Moment) -> Answer {
        let parts: Vec<_> = heard.path.trim_matches('/').split('/').collect();
        match (heard.method.as_str(), parts.as_slice()) {
            ("POST", [tenant, "oauth2", "v2.0", "token"]) => self.token(tenant, heard, now),
            ("GET", [tenant, "v2.0", ".well-known", "openid-configuration"]) => {
                let at = format!("{}/{tenant}", heard.base);
                Answer::of(
                    200,
                    json!({
                        "token_endpoint": format!("{at}/oauth2/v2.0/token"),
                        "authorization_endpoint": format!("{at}/oauth2/v2.0/authorize"),
                        "device_authorization_endpoint": format!("{at}/oauth2/v2.0/devicecode"),
                        "issuer": format!("{at}/v2.0"),
                        "jwks_uri": format!("{at}/discovery/v2.0/keys"),
                    }),
                )
            }
            _ => Answer::error(404, "NotFound", format!("{} {}", heard.method, heard.path)),
        }
    }

    fn token(&mut self, tenant: &str, heard: &Heard, now: Moment) -> Answer {
        let body = String::from_utf8_lossy(&heard.body).into_owned();
        let url = reqwest::Url::parse(&format!("http://form/?{body}"));
        let form: BTreeMap<String, String> =
            url.map(|url| url.query_pairs().into_owned().collect()).unwrap_or_default();
        let field = |name: &str| form.get(name).map(String::as_str).unwrap_or_default();
        let refuse = |status, error: &str, code: u32, said: &str| {
            let description = format!("AADSTS{code}: {said} Timestamp: {}", now.text());
            Answer::of(
                status,
                json!({"error": error, "error_description": description, "error_codes": [code]}),
            )
        };
        let kind =
            heard.headers.get("content-type").and_then(|value| value.to_str().ok()).unwrap_or_default();
        if !kind.starts_with("application/x-www-form-urlencoded") {
            return refuse(400, "invalid_request", 900_144, "The request body must be a form.");
        }
        if tenant != self.principal.tenant {
            let said = format!("Tenant '{tenant}' not found.");
            return refuse(400, "invalid_request", 90002, &said);
        }
        if field("grant_type") != "client_credentials" {
            return refuse(
                400,
                "unsupported_grant_type",
                70003,
                "The app requested an unsupported grant type.",
            );
        }
        if field("scope") != format!("{AUDIENCE}.default") {
            let said = format!("The provided value for scope {} is not valid.", field("scope"));
            return refuse(400, "invalid_scope", 70011, &said);
        }
        if field("client_id") != self.principal.client {
            let said = format!(
                "Application with identifier '{}' was not found in the directory.",
                field("client_id")
            );
            return refuse(400, "unauthorized_client", 700_016, &said);
        }
        let assertion = field("client_assertion_type")
            == "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
            && field("client_assertion") == self.principal.secret;
        if field("client_secret") != self.principal.secret && !assertion {
            return refuse(401, "invalid_client", 7_000_215, "Invalid client secret provided.");
        }
        let (token, _) = self.issue(now);
        let seconds = self.lifetime.as_secs();
        Answer::of(
            200,
            json!({"token_type": "Bearer", "expires_in": seconds, "ext_expires_in": seconds, "access_token": token}),
        )
    }

    /// What the metadata service gives to a machine that has an identity.
    pub(super) fn managed(&mut self, heard: &Heard, now: Moment) -> Answer {
        let query = |name: &str| {
            let found = heard.query.iter().find(|(key, _)| key == name);
            found.map(|(_, value)| value.as_str()).unwrap_or_default()
        };
        let refuse =
            |said: &str| Answer::of(400, json!({"error": "invalid_request", "error_description": said}));
        if query("api-version") != "2018-02-01" {
            return refuse("Required query variable 'api-version' is missing or unsupported");
        }
        if query("resource").trim_end_matches('/') != AUDIENCE.trim_end_matches('/') {
            return refuse("AADSTS500011: The resource principal was not found in the tenant");
        }
        let named = query("client_id");
        if !self.identity || !(named.is_empty() || named == self.principal.client) {
            return refuse("Identity not found");
        }
        let (token, until) = self.issue(now);
        let text = |value: u64| Value::String(value.to_string());
        Answer::of(
            200,
            json!({
                "access_token": token,
                "client_id": self.principal.client,
                "expires_in": text(self.lifetime.as_secs()),
                "expires_on": text(until.seconds()),
                "ext_expires_in": text(self.lifetime.as_secs()),
                "not_before": text(now.seconds()),
                "resource": AUDIENCE,
                "token_type": "Bearer",
            }),
        )
    }
}
