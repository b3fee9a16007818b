//! Work that Azure goes on with after its first answer. Where to ask how it stands, in Azure's own order of
//! preference: the operation's address, the `Location`, and the thing itself, which always knows.
//! <https://learn.microsoft.com/azure/azure-resource-manager/management/async-operations>

use super::{
    arm::{Answer, Arm, Ask},
    fault::Fault,
};
use reqwest::Method;
use serde_json::Value;
use std::time::Duration;

/// When Azure does not say. Most of what we ask for takes a few seconds.
const BETWEEN: Duration = Duration::from_secs(2);

/// How something stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stand {
    Done,
    Running,
    Failed(Fault),
}

/// Where to ask.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Watch {
    Operation(String),
    Location(String),
    /// By its own address.
    Thing,
}

impl Watch {
    /// From the first answer; nothing when all is done already. Pure.
    pub fn of(method: &Method, answer: &Answer) -> Option<Self> {
        let state = answer.body["properties"]["provisioningState"].as_str();
        let ended = state.is_some_and(|state| ["Succeeded", "Failed", "Canceled"].contains(&state));
        let begun = matches!(answer.status, 201 | 202);
        match (&answer.operation, &answer.location) {
            (Some(url), _) if begun || (answer.status == 200 && !ended && state.is_some()) => {
                Some(Self::Operation(url.clone()))
            }
            (None, Some(url)) if answer.status == 202 => Some(Self::Location(url.clone())),
            _ if state.is_some() && !ended => Some(Self::Thing),
            _ if answer.status == 202 => Some(Self::Thing),
            // A PUT may be answered by a thing that has failed already.
            _ if *method == Method::PUT && state == Some("Failed") => Some(Self::Thing),
            _ => None,
        }
    }

    /// What an answer there means. Pure.
    pub fn judge(&self, doing: &str, answer: &Answer) -> Stand {
        let ended = |state: Option<&str>, body: &Value| match state {
            Some("Succeeded") => Stand::Done,
            Some("Failed" | "Canceled") => {
                let fault = Fault::read(doing, None, body);
                let code = if fault.code.is_empty() { "Failed".into() } else { fault.code.clone() };
                Stand::Failed(Fault { code, ..fault })
            }
            // A provider's own words, such as `InProgress`.
            Some(_) => Stand::Running,
            // No state at all: a thing that is there at once, such as a group.
            None => Stand::Done,
        };
        match self {
            Self::Operation(_) => ended(answer.body["status"].as_str().or(Some("InProgress")), &answer.body),
            Self::Location(_) if answer.status == 202 => Stand::Running,
            Self::Location(_) => Stand::Done,
            Self::Thing => {
                ended(answer.body["properties"]["provisioningState"].as_str(), &answer.body["properties"])
            }
        }
    }
}

impl Arm {
    /// How it stands now. `thing` is where the thing itself is, for an operation whose own address this identity may
    /// not read, or which Azure has forgotten.
    pub async fn stand(
        &self,
        doing: &str,
        watch: &Watch,
        thing: &Ask,
        deleted: bool,
    ) -> Result<(Stand, Option<Duration>), Fault> {
        let url = match watch {
            Watch::Operation(url) | Watch::Location(url) => Some(url),
            Watch::Thing => None,
        };
        if let Some(url) = url {
            let ask = Ask { path: url.clone(), query: Vec::new(), ..Ask::get("", "") };
            match self.send(&ask).await {
                Ok(answer) => return Ok((watch.judge(doing, &answer), answer.retry_after)),
                Err(fault) if matches!(fault.status, Some(403 | 404)) => {}
                Err(fault) => return Err(fault),
            }
        }
        Ok(match self.find(thing).await? {
            Some(_) if deleted => (Stand::Running, None),
            Some(answer) => (Watch::Thing.judge(doing, &answer), answer.retry_after),
            None if deleted => (Stand::Done, None),
            // A list or a replica that lags behind what was just begun.
            None => (Stand::Running, None),
        })
    }

    /// Ask, and stay with it until it is done, has failed, or has taken `at_most`; whether it is done.
    pub async fn carry(&self, ask: &Ask, at_most: Duration) -> Result<bool, Fault> {
        let answer = self.send(ask).await?;
        let doing = format!("{} {}", ask.method, ask.path);
        let thing = Ask {
            method: Method::GET,
            body: None,
            only_new: false,
            query: ask.query[..1].to_vec(),
            ..ask.clone()
        };
        let deleted = ask.method == Method::DELETE;
        let Some(watch) = Watch::of(&ask.method, &answer) else { return Ok(true) };
        self.follow(&doing, &watch, &thing, deleted, answer.retry_after, at_most).await
    }

    pub async fn follow(
        &self,
        doing: &str,
        watch: &Watch,
        thing: &Ask,
        deleted: bool,
        first: Option<Duration>,
        at_most: Duration,
    ) -> Result<bool, Fault> {
        let (began, mut wait) = (self.clock().now(), first);
        loop {
            let nap = wait.unwrap_or(BETWEEN);
            let spent: Duration = (self.clock().now() - began).try_into().unwrap_or_default();
            if spent.saturating_add(nap) > at_most {
                return Ok(false);
            }
            self.clock().nap(nap).await;
            match self.stand(doing, watch, thing, deleted).await? {
                (Stand::Done, _) => return Ok(true),
                (Stand::Failed(fault), _) => return Err(fault),
                (Stand::Running, after) => wait = after,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn answer(status: u16, operation: Option<&str>, location: Option<&str>, body: Value) -> Answer {
        let (operation, location) = (operation.map(Into::into), location.map(Into::into));
        Answer { status, body, operation, location, retry_after: None }
    }

    #[test]
    fn the_operations_address_goes_before_the_location_and_that_before_the_thing() {
        let state = |state: &str| json!({"properties": {"provisioningState": state}});
        let table = [
            (answer(201, Some("/o"), Some("/l"), state("Creating")), Some(Watch::Operation("/o".into()))),
            (answer(202, None, Some("/l"), Value::Null), Some(Watch::Location("/l".into()))),
            (answer(202, None, None, Value::Null), Some(Watch::Thing)),
            (answer(201, None, None, state("Updating")), Some(Watch::Thing)),
            (answer(200, Some("/o"), None, state("Updating")), Some(Watch::Operation("/o".into()))),
            (answer(200, None, None, state("Succeeded")), None),
            (answer(200, Some("/o"), None, state("Succeeded")), None),
            (answer(201, None, None, json!({"properties": {}})), None),
            (answer(200, None, None, state("Failed")), Some(Watch::Thing)),
            (answer(204, None, None, Value::Null), None),
        ];
        for (answer, expected) in table {
            assert_eq!(Watch::of(&Method::PUT, &answer), expected, "{answer:?}");
        }
    }

    #[test]
    fn an_operation_that_failed_says_so_in_a_success() {
        let ask = |watch: &Watch, status, body| watch.judge("renting", &answer(status, None, None, body));
        let (operation, location) = (Watch::Operation("/o".into()), Watch::Location("/l".into()));
        assert_eq!(ask(&operation, 200, json!({"status": "Succeeded"})), Stand::Done);
        assert_eq!(ask(&operation, 200, json!({"status": "InProgress"})), Stand::Running);
        assert_eq!(ask(&operation, 200, json!({})), Stand::Running);
        let failed = json!({"status": "Failed", "error": {"code": "AllocationFailed", "message": "no room"}});
        let Stand::Failed(fault) = ask(&operation, 200, failed) else { panic!() };
        assert_eq!((fault.code.as_str(), fault.status), ("AllocationFailed", None));
        let Stand::Failed(fault) = ask(&operation, 200, json!({"status": "Canceled"})) else { panic!() };
        assert_eq!(fault.code, "Failed");
        assert_eq!(ask(&location, 202, Value::Null), Stand::Running);
        assert_eq!(ask(&location, 204, Value::Null), Stand::Done);
        assert_eq!(
            ask(&Watch::Thing, 200, json!({"properties": {"provisioningState": "Creating"}})),
            Stand::Running
        );
        assert_eq!(
            ask(&Watch::Thing, 200, json!({"properties": {"provisioningState": "Succeeded"}})),
            Stand::Done
        );
    }
}
