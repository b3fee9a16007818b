//! What the proxy answers by itself, in words that MLflow's clients show to whoever reads a script's output.

use super::{LONGEST_BODY, owner::Denied, route::Refusal};
use crate::gpu::spec::RunId;
use axum::{
    Json,
    http::StatusCode,
    response::{IntoResponse, Response},
};
use serde_json::json;

/// Why a request is answered by us.
#[derive(Debug)]
pub enum Answer {
    NoRun,
    Refused { run: RunId, what: String, why: Refusal },
    Denied { run: RunId, why: Denied },
    NotOffered,
    NotJson,
    TooLong,
    TooSlow,
    Cut,
    Busy,
    Silent(String),
}

/// A refusal whose sentence names the request, or another answer.
pub enum Refused {
    Here(Refusal),
    Otherwise(Answer),
}

impl From<Refusal> for Refused {
    fn from(why: Refusal) -> Self {
        Self::Here(why)
    }
}

impl From<Answer> for Refused {
    fn from(answer: Answer) -> Self {
        Self::Otherwise(answer)
    }
}

impl IntoResponse for Answer {
    fn into_response(self) -> Response {
        let all = "it does its own run's work at MLflow, and nothing else";
        let setting = "`run_reads = \"all\"` in [gpu] of headquarters' settings allows it";
        let (status, code, message) = match self {
            Self::NoRun => (403, "PERMISSION_DENIED", "this is the way for logins of runs".to_owned()),
            Self::Refused { run, what, why: Refusal::Unknown } => {
                (403, "PERMISSION_DENIED", format!("run {run} may not {what}: {all}"))
            }
            Self::Refused { run, what, why: Refusal::NotOwn(why) } => {
                (403, "PERMISSION_DENIED", format!("run {run} may not {what}: {why}"))
            }
            Self::Refused { run, what, why: Refusal::Bad(why) } => {
                (403, "PERMISSION_DENIED", format!("run {run} may not {what} so: {why}"))
            }
            Self::Denied { run, why: Denied::NotOwn(thing) } => {
                (403, "PERMISSION_DENIED", format!("{thing} is not of run {run}: {all}"))
            }
            Self::Denied { run, why: Denied::NotReadable(thing) } => {
                let why = "it reads experiments that it has runs in";
                (403, "PERMISSION_DENIED", format!("run {run} may not read {thing}: {why}; {setting}"))
            }
            Self::Denied { run, why: Denied::ReadsAll } => {
                (403, "PERMISSION_DENIED", format!("run {run} may not read what all runs made; {setting}"))
            }
            Self::Denied { why: Denied::Missing(thing), .. } => {
                (404, "RESOURCE_DOES_NOT_EXIST", format!("MLflow has not {thing}"))
            }
            Self::Denied { why: Denied::Trouble(why), .. } => (502, "TEMPORARILY_UNAVAILABLE", why),
            Self::NotOffered => {
                let why =
                    "REST OTLP span logging is not supported by the login of a run, nor are uploads in parts";
                (501, "NOT_IMPLEMENTED", why.to_owned())
            }
            Self::NotJson => {
                (415, "INVALID_PARAMETER_VALUE", "a run's call is application/json, not encoded".to_owned())
            }
            Self::TooLong => {
                let limit = LONGEST_BODY >> 20;
                (
                    413,
                    "INVALID_PARAMETER_VALUE",
                    format!("a call has at most {limit} MiB; large things are artifacts"),
                )
            }
            Self::TooSlow => (408, "REQUEST_TIMEOUT", "the body did not come in time".to_owned()),
            Self::Cut => (400, "INVALID_PARAMETER_VALUE", "the body did not come to its end".to_owned()),
            Self::Busy => {
                (503, "TEMPORARILY_UNAVAILABLE", "this run has too many calls under way".to_owned())
            }
            Self::Silent(why) => (502, "TEMPORARILY_UNAVAILABLE", format!("MLflow is not answering: {why}")),
        };
        let status = StatusCode::from_u16(status).unwrap_or(StatusCode::FORBIDDEN);
        // Some clients look at the first, some at the second.
        (status, Json(json!({ "error_code": code, "message": message, "detail": message }))).into_response()
    }
}
