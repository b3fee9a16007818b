//! Long-running operations: who asks for something is told at once that it has begun, and finds out later how it
//! ended. The poll itself succeeds also when the operation did not.

use super::{
    answer::Answer,
    clock::Moment,
    world::{Event, Kind, Power, World},
};
use serde_json::json;
use std::time::Duration;

#[derive(Debug, Clone)]
pub(super) struct Operation {
    pub began: Moment,
    pub ended: Option<Moment>,
    pub error: Option<(String, String)>,
    /// Whose it is: the region or the group in its address.
    pub kind: Kind,
    pub region: String,
    pub aim: Aim,
    /// Its time is over, but the metal still boots.
    overdue: bool,
}

/// What it comes to in the end.
#[derive(Debug, Clone)]
pub(super) enum Aim {
    Ready(String),
    Gone(String),
    Power(String, Power),
    /// The group that is emptied.
    Emptied(String),
}

/// What a test has in store for an operation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Fate {
    Fails { code: String, message: String },
    Hangs,
}

/// Which of ARM's two ways tell of the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Told {
    Status,
    Location,
    Both,
}

impl World {
    /// Begin something that takes so long; the answer gets the headers by which its end is found.
    pub(super) fn begin(&mut self, kind: Kind, region: &str, aim: Aim, takes: Duration) -> String {
        let id = self.fresh("operation");
        let operation = Operation {
            began: self.now(),
            ended: None,
            error: None,
            kind,
            region: region.to_owned(),
            aim,
            overdue: false,
        };
        self.operations.insert(id.clone(), operation);
        match self.fate.take() {
            Some(Fate::Hangs) => {}
            Some(Fate::Fails { code, message }) => {
                if let Some(operation) = self.operations.get_mut(&id) {
                    operation.error = Some((code, message));
                }
                self.plan(takes, Event::Finish(id.clone()));
            }
            None => self.plan(takes, Event::Finish(id.clone())),
        }
        id
    }

    /// How its end is found.
    pub(super) fn told(&self, answer: Answer, base: &str, id: &str, told: Told) -> Answer {
        let Some(operation) = self.operations.get(id) else { return answer };
        let (provider, version) = match operation.kind {
            Kind::Vm => ("Microsoft.Compute", "2024-07-01"),
            Kind::Disk | Kind::Snapshot => ("Microsoft.Compute", "2024-03-02"),
            Kind::Group | Kind::Schedule => ("", "2024-07-01"),
            Kind::Nic | Kind::Ip | Kind::Nsg | Kind::Vnet => ("Microsoft.Network", "2024-05-01"),
        };
        let subscription = format!("{base}/subscriptions/{}", self.subscription);
        let at = format!("{subscription}/providers/{provider}/locations/{}", operation.region);
        let status = format!("{at}/operations/{id}?api-version={version}");
        let location = match provider {
            "" => format!("{subscription}/operationresults/{id}?api-version={version}"),
            "Microsoft.Compute" => format!("{at}/operations/{id}?monitor=true&api-version={version}"),
            _ => format!("{at}/operationResults/{id}?api-version={version}"),
        };
        let mut answer = answer;
        if told != Told::Location {
            answer = answer.with("azure-asyncoperation", status);
        }
        if told != Told::Status {
            answer = answer.with("location", location);
        }
        match self.takes.retry_after {
            Some(seconds) => answer.with("retry-after", seconds.to_string()),
            None => answer,
        }
    }

    /// Somebody polls: by the status address, or by that of the result.
    pub(super) fn poll(&self, id: &str, by_status: bool) -> Answer {
        let Some(operation) = self.operations.get(id) else {
            return Answer::error(404, "NotFound", format!("The entity was not found: operation {id}."));
        };
        let slowly = |answer: Answer| match self.takes.retry_after {
            Some(seconds) => answer.with("retry-after", seconds.to_string()),
            None => answer,
        };
        if by_status {
            let status = match (&operation.ended, &operation.error) {
                (None, _) => "InProgress",
                (Some(_), None) => "Succeeded",
                (Some(_), Some(_)) => "Failed",
            };
            let mut body = json!({"name": id, "status": status, "startTime": operation.began.text()});
            if let Some(ended) = operation.ended {
                body["endTime"] = json!(ended.text());
                if let Some((code, message)) = &operation.error {
                    body["error"] = json!({"code": code, "message": message});
                }
                return Answer::of(200, body);
            }
            return slowly(Answer::of(200, body));
        }
        match (&operation.ended, &operation.error) {
            (None, _) => slowly(Answer::empty(202)),
            (Some(_), Some((code, message))) => Answer::error(409, code, message),
            (Some(_), None) => match &operation.aim {
                Aim::Ready(of) => {
                    self.get(of).map_or_else(|| Answer::empty(204), |t| Answer::of(200, t.body.clone()))
                }
                Aim::Gone(_) => Answer::empty(204),
                Aim::Power(..) | Aim::Emptied(_) => Answer::empty(200),
            },
        }
    }

    /// Its time has come.
    pub(super) fn finish(&mut self, id: &str) {
        let now = self.now();
        let Some(operation) = self.operations.get_mut(id) else { return };
        if operation.ended.is_some() {
            return;
        }
        if let (Aim::Ready(of), None) = (&operation.aim, &operation.error) {
            let of = of.clone();
            let booting = self.get(&of).and_then(|thing| thing.machine.as_ref()).is_some_and(|m| m.booting);
            if booting {
                // The metal will call again.
                if let Some(operation) = self.operations.get_mut(id) {
                    operation.overdue = true;
                }
                return;
            }
        }
        let Some(operation) = self.operations.get_mut(id) else { return };
        operation.ended = Some(now);
        let (aim, error) = (operation.aim.clone(), operation.error.clone());
        let failed = error.is_some();
        match aim {
            Aim::Ready(of) if failed => self.failed(&of, &error.unwrap_or_default().0),
            Aim::Ready(of) => self.ready(&of),
            // What cannot be deleted stays as it was.
            Aim::Gone(of) if failed => {
                self.get_mut(&of).into_iter().for_each(|thing| thing.set_state("Failed"))
            }
            Aim::Gone(of) => self.gone(&of),
            Aim::Power(of, power) if !failed => self.powered(&of, power),
            Aim::Power(..) | Aim::Emptied(_) => {}
        }
    }

    /// The metal has answered: whoever waited for it is told now.
    pub(super) fn booted(&mut self, of: &str) {
        let waiting: Vec<_> = self
            .operations
            .iter()
            .filter(|(_, one)| {
                one.overdue && matches!(&one.aim, Aim::Ready(id) if id.eq_ignore_ascii_case(of))
            })
            .map(|(id, _)| id.clone())
            .collect();
        for id in waiting {
            self.finish(&id);
        }
    }

    /// What was being made is to go: the making is over.
    pub(super) fn preempt(&mut self, of: &str) {
        let now = self.now();
        for operation in self.operations.values_mut() {
            if operation.ended.is_none()
                && matches!(&operation.aim, Aim::Ready(id) if id.eq_ignore_ascii_case(of))
            {
                operation.ended = Some(now);
                let said = "The operation has been preempted by a more recent operation.";
                operation.error = Some(("OperationPreempted".into(), said.into()));
            }
        }
    }

    /// End one early and badly, as when the machine's system never came up.
    pub(super) fn spoil(&mut self, of: &str, code: &str, message: &str) {
        for operation in self.operations.values_mut() {
            if operation.ended.is_none()
                && matches!(&operation.aim, Aim::Ready(id) if id.eq_ignore_ascii_case(of))
            {
                operation.error = Some((code.to_owned(), message.to_owned()));
            }
        }
    }

    /// The one that brings this thing about, while it runs.
    pub(super) fn under_way(&self, of: &str) -> Option<String> {
        let found = self.operations.iter().find(|(_, one)| {
            one.ended.is_none()
                && matches!(&one.aim, Aim::Ready(id) | Aim::Gone(id) | Aim::Emptied(id) if id.eq_ignore_ascii_case(of))
        });
        found.map(|(id, _)| id.clone())
    }
}
