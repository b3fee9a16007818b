//! What a request is told.

use super::clock::Moment;
use serde_json::{Value, json};

#[derive(Debug, Clone)]
pub(super) struct Answer {
    pub status: u16,
    pub headers: Vec<(&'static str, String)>,
    pub body: Option<Value>,
}

impl Answer {
    pub(super) fn of(status: u16, body: Value) -> Self {
        Self { status, headers: Vec::new(), body: Some(body) }
    }

    pub(super) fn empty(status: u16) -> Self {
        Self { status, headers: Vec::new(), body: None }
    }

    /// ARM's one shape of an error.
    pub(super) fn error(status: u16, code: &str, message: impl Into<String>) -> Self {
        Self::of(status, json!({"error": {"code": code, "message": message.into()}}))
    }

    pub(super) fn with(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    pub(super) fn missing(id: &str) -> Self {
        let name = id.rsplit('/').next().unwrap_or_default();
        let kind: Vec<_> = id.split("/providers/").last().unwrap_or_default().split('/').collect();
        let kind = kind.get(..2).map(|parts| parts.join("/")).unwrap_or_default();
        let group = super::world::group_of(id);
        let said = format!(
            "The Resource '{kind}/{name}' under resource group '{group}' was not found. For more details please go to https://aka.ms/ARMResourceNotFoundFix"
        );
        Self::error(404, "ResourceNotFound", said)
    }

    pub(super) fn no_group(name: &str) -> Self {
        Self::error(404, "ResourceGroupNotFound", format!("Resource group '{name}' could not be found."))
    }
}

/// A request that waits or comes too often.
pub(super) fn throttled(seconds: u64, now: Moment) -> Answer {
    let said = format!(
        "The request is being throttled as the limit has been reached for operation type. Please try again after '{seconds}' seconds. ({})",
        now.text()
    );
    Answer::error(429, "TooManyRequests", said).with("retry-after", seconds.to_string())
}
