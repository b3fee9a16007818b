//! What Azure refused, and what that means for the next offer. Pure.
//!
//! Azure refuses in three places: at once (a 4xx), later (in the status of an operation that began well), and in what
//! a failed machine says of itself. All three carry a code and a sentence, and the code alone does not tell: one
//! `OperationNotAllowed` is a quota, another is not.

use super::super::{Class, Refusal};
use serde_json::Value;
use std::{fmt, time::Duration};

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// What we were doing, to what.
    pub doing: String,
    /// Of the answer; none where there was no answer, or where the refusal came later.
    pub status: Option<u16>,
    /// Azure's word for it; empty where it is no answer of Azure's at all.
    pub code: String,
    pub said: String,
    /// What Microsoft's support asks for first.
    pub correlation: Option<String>,
    pub retry_after: Option<Duration>,
    /// Nobody answered, or not in words of Azure's.
    pub lost: bool,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.doing, self.said)?;
        let status = self.status.map(|status| format!("status {status}"));
        let code = Some(self.code.clone()).filter(|code| !code.is_empty());
        let correlation = self.correlation.as_ref().map(|id| format!("correlation id {id}"));
        let known: Vec<String> = [code, status, correlation].into_iter().flatten().collect();
        if known.is_empty() { Ok(()) } else { write!(f, " ({})", known.join(", ")) }
    }
}

impl std::error::Error for Fault {}

/// Codes that say nothing: what is below them does.
const EMPTY: [&str; 6] = [
    "BadRequest",
    "Conflict",
    "DeploymentFailed",
    "InvalidRequest",
    "ResourceOperationFailure",
    "VMProvisioningFailed",
];

/// What a code means: the code, what its sentence must contain, the meaning. The first line that fits.
/// Sources: `pkg/errors` of azure-sdk-for-go-extensions; `error-codes-spot.md` of azure-compute-docs.
const MEANINGS: [(&str, &str, Class); 29] = [
    ("OperationNotAllowed", "quota", Class::Quota),
    ("OperationNotAllowed", "Regional Cores", Class::Quota),
    ("OperationNotAllowed", "LowPriorityCores", Class::Quota),
    ("QuotaExceeded", "", Class::Quota),
    ("ResourceQuotaExceeded", "", Class::Quota),
    ("PublicIPCountLimitReached", "", Class::Quota),
    ("SkuNotAvailable", "", Class::Capacity),
    ("AllocationFailed", "", Class::Capacity),
    ("ZonalAllocationFailed", "", Class::Capacity),
    ("OverconstrainedAllocationRequest", "", Class::Capacity),
    ("OverconstrainedZonalAllocationRequest", "", Class::Capacity),
    ("OSProvisioningTimedOut", "", Class::Capacity),
    ("OSProvisioningInternalError", "", Class::Capacity),
    ("OSProvisioningClientError", "", Class::Capacity),
    ("VMStartTimedOut", "", Class::Capacity),
    ("InternalExecutionError", "", Class::Capacity),
    ("RetryableError", "", Class::Capacity),
    // Another size, region or price has what this one lacks.
    ("SpotPriceGreaterThanProvidedMaxPrice", "", Class::Capacity),
    ("AzureSpotIsNotSupportedForThisVMSize", "", Class::Capacity),
    ("AzureSpotFeatureNotEnabledForSubscription", "", Class::Capacity),
    ("VMSizeIsNotPermittedToEnableAcceleratedNetworking", "", Class::Capacity),
    ("InvalidParameter", "vmSize", Class::Capacity),
    ("InvalidParameter", "VM size", Class::Capacity),
    ("LocationNotAvailableForResourceType", "", Class::Capacity),
    // A person must do something, and no offer is different.
    ("AuthorizationFailed", "", Class::Final),
    ("LinkedAuthorizationFailed", "", Class::Final),
    ("RequestDisallowedByPolicy", "", Class::Final),
    ("MissingSubscriptionRegistration", "", Class::Final),
    ("ReadOnlyDisabledSubscription", "", Class::Final),
];

impl Fault {
    /// What a body says: `{"error": {"code", "message", "details", "innererror"}}`, which some leave out the envelope
    /// of. The first that says something is taken.
    pub fn read(doing: &str, status: Option<u16>, body: &Value) -> Self {
        let error = body.get("error").filter(|error| error.is_object()).unwrap_or(body);
        let mut errors = vec![error];
        errors.extend(error["details"].as_array().into_iter().flatten());
        errors.extend(error.get("innererror"));
        let code = |error: &Value| error["code"].as_str().unwrap_or_default().to_owned();
        let telling = errors.iter().find(|error| {
            let code = code(error);
            !code.is_empty() && !EMPTY.contains(&code.as_str())
        });
        let error = telling.copied().unwrap_or(error);
        let said = error["message"].as_str().unwrap_or_default().trim();
        let said = if said.is_empty() { "no reason given" } else { said };
        Self { status, code: code(error), ..Self::here(doing, said) }
    }

    /// Not an answer of Azure's.
    pub fn here(doing: &str, said: impl fmt::Display) -> Self {
        Self {
            doing: doing.into(),
            status: None,
            code: String::new(),
            said: format!("{said:#}"),
            correlation: None,
            retry_after: None,
            lost: false,
        }
    }

    /// What was asked for may have been done, or not.
    pub fn lost(doing: &str, said: impl fmt::Display) -> Self {
        Self { lost: true, ..Self::here(doing, said) }
    }

    /// Whether this is Azure's word that the thing is not there. A 404 for a subscription that this identity does not
    /// know, or from something between it and us, proves nothing.
    pub fn is_absent(&self) -> bool {
        // Each part of Azure has a word of its own, such as `ResourceGroupNotFound`.
        let whole = ["Subscription", "Tenant", "Provider", "Endpoint"];
        let thing =
            self.code.ends_with("NotFound") && !whole.iter().any(|whole| self.code.starts_with(whole));
        self.status == Some(404) && thing
    }

    pub fn is(&self, code: &str) -> bool {
        self.code.eq_ignore_ascii_case(code)
    }

    pub fn is_forbidden(&self) -> bool {
        self.status == Some(403)
    }

    /// Whether it may have been done all the same: nobody answered, or somebody in trouble did. Look, then decide.
    pub fn is_lost(&self) -> bool {
        self.lost
            || self.status.is_some_and(|status| status >= 500 || status == 408) && self.class().is_none()
    }

    /// Somebody is at work on it, or has just been: it is to be tried again, and will come right by itself.
    pub fn is_passing(&self) -> bool {
        self.status == Some(429) || self.is_settling() || self.is_lost()
    }

    fn is_settling(&self) -> bool {
        const SETTLING: [&str; 9] = [
            "AnotherOperationInProgress",
            "CanceledAndSupersededDueToAnotherOperation",
            "NicReservedForAnotherVm",
            "OperationPreempted",
            "PreconditionFailed",
            "ReferencedResourceNotProvisioned",
            "ResourceGroupBeingDeleted",
            "RetryableErrorDueToAnotherOperation",
            "TooManyRequests",
        ];
        SETTLING.iter().any(|code| self.is(code))
            || (self.is("OperationNotAllowed") && self.said.contains("being deleted"))
    }

    /// What it means for the next offer; nothing where it is no refusal of this one.
    pub fn class(&self) -> Option<Class> {
        if self.is_settling() {
            return None;
        }
        let said = self.said.to_ascii_lowercase();
        let fits = |(code, part, _): &&(&str, &str, Class)| {
            self.is(code) && said.contains(&part.to_ascii_lowercase())
        };
        let known = MEANINGS.iter().find(fits).map(|(_, _, class)| *class);
        // Of a request that was understood and refused, whatever we have not heard of is for a person to read.
        let refused = self
            .status
            .is_some_and(|status| (400..500).contains(&status) && ![401, 408, 429].contains(&status));
        known.or((refused && !self.code.is_empty()).then_some(Class::Final))
    }

    /// Until a person has done something, asking again changes nothing.
    pub fn is_denied(&self) -> bool {
        let known = MEANINGS.iter().find(|(code, ..)| self.is(code));
        known.is_some_and(|(_, _, class)| *class == Class::Final)
    }

    /// The part of Azure that this subscription has never used, and must be registered for.
    pub fn unregistered(&self) -> Option<&str> {
        let named = self.said.split('\'').find(|word| word.starts_with("Microsoft."));
        named.filter(|_| self.is("MissingSubscriptionRegistration"))
    }

    pub fn refusal(&self) -> Option<Refusal> {
        let class = self.class()?;
        Some(Refusal { class, said: self.to_string(), hint: self.hint() })
    }

    /// What to try, if anything.
    pub fn hint(&self) -> Option<String> {
        match self.code.as_str() {
            "AuthorizationFailed" | "LinkedAuthorizationFailed" => {
                let quoted: Vec<&str> = self.said.split('\'').skip(1).step_by(2).collect();
                let action =
                    quoted.iter().find(|word| word.starts_with("Microsoft.") && word.contains('/'))?;
                let scope = quoted.iter().find(|word| word.starts_with("/subscriptions/"));
                let scope = scope.map_or_else(|| "the resource group".into(), ToString::to_string);
                Some(format!("give this headquarters' identity a role with {action} on {scope}"))
            }
            "MissingSubscriptionRegistration" => {
                Some(format!("az provider register --namespace {}", self.unregistered()?))
            }
            "ReadOnlyDisabledSubscription" => Some("re-enable the subscription: it is disabled".into()),
            "ScopeLocked" => Some("remove the lock: az lock list".into()),
            _ if self.class() == Some(Class::Quota) => Some(quota_request(&self.said)),
            _ => None,
        }
    }
}

/// The exact request to make, from a sentence such as: `… exceeding approved standardNCASv3_T4Family Cores quota.
/// Additional details - Deployment Model: Resource Manager, Location: eastus, Current Limit: 0, Current Usage: 0,
/// Additional Required: 4, (Minimum) New Limit Required: 4. …`
fn quota_request(said: &str) -> String {
    let after = |key: &str| {
        let rest = said.split_once(key)?.1.trim_start();
        rest.split([',', '.', ' ']).next().filter(|word| !word.is_empty()).map(str::to_owned)
    };
    let family = said.split_once("approved ").and_then(|(_, rest)| rest.split_once(" quota"));
    let family = family.map_or("its vCPUs", |(family, _)| family);
    let region = after("Location:").unwrap_or_else(|| "this region".into());
    let ask = "https://portal.azure.com/#view/Microsoft_Azure_Capacity/QuotaMenuBlade/~/myQuotas";
    match after("New Limit Required:") {
        Some(limit) => format!("ask for a limit of {limit} {family} in {region}: {ask}"),
        None => format!("ask for more of {family} in {region}: {ask}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn fault(status: u16, code: &str, message: &str) -> Fault {
        Fault::read("renting", Some(status), &json!({"error": {"code": code, "message": message}}))
    }

    #[test]
    fn each_refused_answer_has_its_meaning() {
        use Class::{Capacity, Final, Quota};
        let family = "Operation could not be completed as it results in exceeding approved \
            standardNCASv3_T4Family Cores quota. Additional details - Deployment Model: Resource Manager, Location: \
            eastus, Current Limit: 0, Current Usage: 0, Additional Required: 4, (Minimum) New Limit Required: 4. Setup \
            Alerts when Quota reaches threshold.";
        let regional = "Operation could not be completed as it results in exceeding approved Total Regional Cores quota.";
        let spot =
            "Operation could not be completed as it results in exceeding approved LowPriorityCores quota.";
        let table = [
            (409, "OperationNotAllowed", family, Some(Quota)),
            (409, "OperationNotAllowed", regional, Some(Quota)),
            (409, "OperationNotAllowed", spot, Some(Quota)),
            (409, "OperationNotAllowed", "The VM is being deleted.", None),
            (409, "OperationNotAllowed", "Something else.", Some(Final)),
            (412, "PreconditionFailed", "", None),
            (400, "NicReservedForAnotherVm", "", None),
            (400, "QuotaExceeded", "", Some(Quota)),
            (400, "PublicIPCountLimitReached", "", Some(Quota)),
            (409, "SkuNotAvailable", "not available in location 'eastus'", Some(Capacity)),
            (0, "AllocationFailed", "We do not have sufficient capacity", Some(Capacity)),
            (0, "ZonalAllocationFailed", "", Some(Capacity)),
            (0, "OverconstrainedAllocationRequest", "", Some(Capacity)),
            (0, "OverconstrainedZonalAllocationRequest", "", Some(Capacity)),
            (0, "OSProvisioningTimedOut", "", Some(Capacity)),
            (409, "SpotPriceGreaterThanProvidedMaxPrice", "", Some(Capacity)),
            (400, "AzureSpotIsNotSupportedForThisVMSize", "", Some(Capacity)),
            (400, "InsufficientSubnetSize", "", Some(Final)),
            (400, "SubnetIsFull", "", Some(Final)),
            (403, "AuthorizationFailed", "", Some(Final)),
            (403, "LinkedAuthorizationFailed", "", Some(Final)),
            (409, "MissingSubscriptionRegistration", "", Some(Final)),
            (429, "TooManyRequests", "", None),
            (500, "InternalServerError", "", None),
            (503, "", "<html>", None),
        ];
        for (status, code, message, class) in table {
            let mut fault = fault(status, code, message);
            fault.status = fault.status.filter(|status| *status > 0);
            assert_eq!(fault.class(), class, "{code}: {message}");
            assert!(!(class.is_some() && fault.is_lost()), "{code} is an answer");
        }
    }

    #[test]
    fn a_person_is_told_what_to_ask_for() {
        let quota = fault(
            409,
            "OperationNotAllowed",
            "Operation could not be completed as it results in exceeding approved standardNCASv3_T4Family Cores quota. \
             Additional details - Deployment Model: Resource Manager, Location: eastus, Current Limit: 0, Current Usage: \
             0, Additional Required: 4, (Minimum) New Limit Required: 4. Setup Alerts",
        );
        let hint = quota.hint().unwrap();
        assert!(
            hint.starts_with("ask for a limit of 4 standardNCASv3_T4Family Cores in eastus: https://"),
            "{hint}"
        );
        let denied = fault(
            403,
            "LinkedAuthorizationFailed",
            "The client 'abc' with object id 'def' has permission to perform action \
             'Microsoft.Network/networkInterfaces/write' on scope '/subscriptions/s/resourceGroups/g'",
        );
        assert_eq!(
            denied.hint().unwrap(),
            "give this headquarters' identity a role with Microsoft.Network/networkInterfaces/write on \
             /subscriptions/s/resourceGroups/g"
        );
        let unregistered = "The subscription is not registered to use namespace 'Microsoft.DevTestLab'.";
        assert_eq!(
            fault(409, "MissingSubscriptionRegistration", unregistered).hint().unwrap(),
            "az provider register --namespace Microsoft.DevTestLab"
        );
    }

    #[test]
    fn only_azures_own_word_that_a_thing_is_gone_is_believed() {
        for code in ["ResourceNotFound", "ResourceGroupNotFound", "NotFound"] {
            assert!(fault(404, code, "").is_absent(), "{code}");
        }
        for (status, code) in [
            (404, "SubscriptionNotFound"),
            (404, "TenantNotFound"),
            (404, "InvalidSubscriptionId"),
            (404, ""),
            (403, "ResourceNotFound"),
        ] {
            assert!(!fault(status, code, "").is_absent(), "{status} {code}");
        }
    }

    #[test]
    fn a_code_that_says_nothing_gives_way_to_the_one_below_it() {
        let body = json!({"error": {"code": "DeploymentFailed", "message": "At least one failed.",
            "details": [{"code": "Conflict", "message": "x"}, {"code": "SkuNotAvailable", "message": "None here."}]}});
        let fault = Fault::read("renting", Some(409), &body);
        assert_eq!((fault.code.as_str(), fault.said.as_str()), ("SkuNotAvailable", "None here."));
        assert_eq!(fault.to_string(), "renting: None here. (SkuNotAvailable, status 409)");
    }
}
