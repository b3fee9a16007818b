//! How far a right login reaches. A person's opens every service; a run's opens MLflow, by way of the proxy that lets it do
//! its run's work (`run_proxy`), and nothing else. nginx says which service is asked for, the gate answers what this says.

use crate::hq::htpasswd::RUN_PREFIX;
use axum::{
    http::{HeaderName, HeaderValue, StatusCode},
    response::{IntoResponse, Response},
};

/// From nginx to the gate: which service is asked for.
pub const SERVICE: HeaderName = HeaderName::from_static("x-echoes-service");

/// From the gate to nginx, and from nginx to the proxy: the login of a run. nginx overwrites a client's own.
pub const RUN: HeaderName = HeaderName::from_static("x-echoes-run");

/// From the gate to nginx: the login is right, and does not open this service.
const BEYOND: HeaderName = HeaderName::from_static("x-echoes-beyond");

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reach {
    Everything,
    /// What this run's login may do at MLflow.
    OwnRun(HeaderValue),
    Nothing,
}

impl Reach {
    /// What this user's right login opens of a service. One that nginx does not name is none that runs need.
    pub fn of(user: &str, service: Option<&HeaderValue>) -> Self {
        if !user.starts_with(RUN_PREFIX) {
            return Self::Everything;
        }
        match HeaderValue::try_from(user) {
            Ok(user) if service.is_some_and(|service| service == "mlflow") => Self::OwnRun(user),
            _ => Self::Nothing,
        }
    }
}

impl IntoResponse for Reach {
    fn into_response(self) -> Response {
        match self {
            Self::Everything => StatusCode::NO_CONTENT.into_response(),
            Self::OwnRun(user) => (StatusCode::NO_CONTENT, [(RUN, user)]).into_response(),
            Self::Nothing => {
                (StatusCode::FORBIDDEN, [(BEYOND, HeaderValue::from_static("1"))]).into_response()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_runs_login_opens_mlflow_alone() {
        let run = Reach::OwnRun(HeaderValue::from_static("run-s4"));
        let table = [
            ("ana", Some("dashboard"), Reach::Everything),
            ("ana", None, Reach::Everything),
            ("runner", Some("tensorboard"), Reach::Everything),
            ("run-s4", Some("mlflow"), run),
            ("run-s4", Some("dashboard"), Reach::Nothing),
            ("run-s4", Some("tensorboard"), Reach::Nothing),
            ("run-s4", Some("docs"), Reach::Nothing),
            ("run-s4", Some("mlflow, docs"), Reach::Nothing),
            ("run-s4", Some(""), Reach::Nothing),
            ("run-s4", None, Reach::Nothing),
            ("run-", Some("docs"), Reach::Nothing),
            ("run-\n", Some("mlflow"), Reach::Nothing),
        ];
        for (user, service, reach) in table {
            let service = service.map(HeaderValue::from_static);
            assert_eq!(Reach::of(user, service.as_ref()), reach, "{user:?} at {service:?}");
        }
    }
}
