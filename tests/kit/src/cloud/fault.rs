//! What a test has in store for requests: refusals as Azure words them, answers that are lost, patience that is tried.

use serde_json::Value;
use std::{fmt, sync::Arc, time::Duration};

/// Run at a chosen moment of a request, as when whoever asks is to be killed there.
pub type Hook = Arc<dyn Fn() + Send + Sync>;

#[derive(Clone)]
pub enum Act {
    /// In place of the cloud's own answer; nothing is done.
    Refuse { status: u16, code: String, message: String },
    /// In place of the cloud's own answer, as it stands: for the examples that Microsoft has published.
    Say { status: u16, headers: Vec<(&'static str, String)>, body: Option<Value> },
    /// 429. Who asks for the same again before the time is refused again, and waits anew.
    Throttle { seconds: u64 },
    /// The connection ends; nothing is done.
    Reset,
    /// It is done, and the connection ends: the answer is lost.
    ResetAfter,
    /// On the host's clock, before anything is done.
    Delay(Duration),
    /// 200, and something that is no answer.
    Garbage,
    /// The operation begins well, and its status tells of this end.
    Fails { code: String, message: String },
    /// The operation begins, and never ends.
    Hangs,
    /// The hook runs, nothing is done, the connection ends.
    Before(Hook),
    /// It is done, the hook runs, the answer is lost.
    After(Hook),
}

impl fmt::Debug for Act {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refuse { status, code, .. } => write!(f, "{status} {code}"),
            Self::Say { status, .. } => write!(f, "{status} as told"),
            Self::Throttle { seconds } => write!(f, "429 for {seconds} s"),
            Self::Reset => f.write_str("reset"),
            Self::ResetAfter => f.write_str("answer lost"),
            Self::Delay(wait) => write!(f, "delayed {wait:?}"),
            Self::Garbage => f.write_str("garbage"),
            Self::Fails { code, .. } => write!(f, "ends in {code}"),
            Self::Hangs => f.write_str("never ends"),
            Self::Before(_) => f.write_str("hook before"),
            Self::After(_) => f.write_str("hook after"),
        }
    }
}

/// For which requests: a method (empty: any) and a part of path and query, without regard to case; `*` in it is any
/// number of characters. After `skip` of
/// them, `times` times. Of several rules the first that has an act left acts; all of them count.
#[derive(Debug, Clone)]
pub struct Rule {
    pub method: &'static str,
    pub path: String,
    pub skip: u32,
    pub times: u32,
    pub act: Act,
}

impl Rule {
    pub fn once(method: &'static str, path: impl Into<String>, act: Act) -> Self {
        Self { method, path: path.into(), skip: 0, times: 1, act }
    }

    pub fn always(method: &'static str, path: impl Into<String>, act: Act) -> Self {
        Self { times: u32::MAX, ..Self::once(method, path, act) }
    }

    pub fn skip(mut self, skip: u32) -> Self {
        self.skip = skip;
        self
    }

    fn fits(&self, method: &str, target: &str) -> bool {
        let path = self.path.to_lowercase();
        let mut rest = Some(target);
        for part in path.split('*') {
            rest = rest.and_then(|rest| rest.split_once(part)).map(|(_, after)| after);
        }
        (self.method.is_empty() || self.method == method) && rest.is_some()
    }
}

/// The act for this request, if there is one. `target` is lower case.
pub(super) fn next(rules: &mut [Rule], method: &str, target: &str) -> Option<Act> {
    let mut act = None;
    for rule in rules.iter_mut().filter(|rule| rule.fits(method, target)) {
        if rule.skip > 0 {
            rule.skip -= 1;
        } else if rule.times > 0 && act.is_none() {
            rule.times -= 1;
            act = Some(rule.act.clone());
        }
    }
    act
}

/// Refusals and ends as Azure words them (codes and texts as seen in public reports of each).
impl Act {
    pub fn refuse(status: u16, code: &str, message: &str) -> Self {
        Self::Refuse { status, code: code.into(), message: message.into() }
    }

    pub fn fails(code: &str, message: &str) -> Self {
        Self::Fails { code: code.into(), message: message.into() }
    }

    pub fn quota(family: &str) -> Self {
        let said = format!(
            "Operation could not be completed as it results in exceeding approved {family} Cores quota. Additional details - Deployment Model: Resource Manager, Location: eastus, Current Limit: 0, Current Usage: 0, Additional Required: 4, (Minimum) New Limit Required: 4. Setup Alerts when Quota reaches threshold."
        );
        Self::refuse(409, "OperationNotAllowed", &said)
    }

    pub fn sku_not_available() -> Self {
        Self::refuse(
            409,
            "SkuNotAvailable",
            "The requested VM size for resource 'Following SKUs have failed for Capacity Restrictions: Standard_NC4as_T4_v3' is currently not available in location 'eastus'. Please try another size or deploy to a different location or different zone. See https://aka.ms/azureskunotavailable for details.",
        )
    }

    pub fn allocation_failed() -> Self {
        Self::fails(
            "AllocationFailed",
            "Allocation failed. We do not have sufficient capacity for the requested VM size in this region. Read more about improving likelihood of allocation success at https://aka.ms/allocation-guidance",
        )
    }

    pub fn zonal_allocation_failed() -> Self {
        Self::fails(
            "ZonalAllocationFailed",
            "Allocation failed. We do not have sufficient capacity for the requested VM size in this zone. Read more about improving likelihood of allocation success at https://aka.ms/allocation-guidance",
        )
    }

    pub fn overconstrained() -> Self {
        Self::fails(
            "OverconstrainedAllocationRequest",
            "Allocation failed. VM(s) with the following constraints cannot be allocated, because the condition is too restrictive. Please remove some constraints and try again. Constraints applied are: - Networking Constraints (such as Accelerated Networking or IPv6) - VM Size",
        )
    }

    pub fn provisioning_timed_out() -> Self {
        Self::fails(
            "OSProvisioningTimedOut",
            "OS Provisioning for VM did not finish in the allotted time. The VM may still finish provisioning successfully. Please check provisioning state later.",
        )
    }

    pub fn forbidden(action: &str) -> Self {
        let said = format!(
            "The client '11111111-1111-4111-a111-111111111111' with object id '11111111-1111-4111-a111-111111111111' does not have authorization to perform action '{action}' over scope '/subscriptions' or the scope is invalid. If access was recently granted, please refresh your credentials."
        );
        Self::refuse(403, "AuthorizationFailed", &said)
    }

    /// Somebody else holds a network resource just now.
    pub fn busy() -> Self {
        Self::refuse(
            429,
            "RetryableErrorDueToAnotherOperation",
            "Operation on the resource is being done by another operation. Please retry later.",
        )
    }

    pub fn server_error(status: u16) -> Self {
        let code = if status == 503 { "ServiceUnavailable" } else { "InternalServerError" };
        Self::refuse(status, code, "The server encountered an internal error. Please retry the request.")
    }
}
