//! From a request to its answer: checked, authorised, spoiled, done, checked once more, noted.

use super::{
    Options,
    answer::{Answer, throttled},
    ask::Ask,
    clock::{Clock, Moment},
    contract::{Call, Contract, Matched},
    door::{Answering, Heard, Serve},
    entra::{Entra, Worth},
    fault::{self, Act, Rule},
    hq, imds,
    metal::Metal,
    operation::Fate,
    prices,
    world::{Deed, World},
};
use serde_json::{Value, json};
use std::{
    fmt,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread,
    time::Duration,
};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Service {
    Arm,
    Login,
    Imds,
    Prices,
}

/// A request to the resource manager, and what came of it.
#[derive(Debug, Clone)]
pub struct Asked {
    pub at: Moment,
    pub method: String,
    /// Path and query.
    pub target: String,
    /// As in `VirtualMachines_Get`; none for what is no operation, as a poll.
    pub operation: Option<String>,
    /// None: the asker never heard.
    pub status: Option<u16>,
    /// Of an error.
    pub code: Option<String>,
}

impl fmt::Display for Asked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {} → ", self.at.text(), self.method, self.target)?;
        match self.status {
            Some(status) => write!(f, "{status} {}", self.code.as_deref().unwrap_or_default()),
            None => f.write_str("lost"),
        }
    }
}

/// Held for one moment at a time, and in this order where two are.
pub(super) struct Shared {
    world: Mutex<World>,
    entra: Mutex<Entra>,
    notes: Mutex<Notes>,
    contract: Arc<Contract>,
    metal: Arc<dyn Metal>,
    /// The thread that minds slow metal, and the way to it.
    slow: Mutex<Option<(mpsc::Sender<Deed>, thread::JoinHandle<()>)>>,
    ending: AtomicBool,
    pub headquarters: Option<String>,
    page: usize,
}

#[derive(Default)]
struct Notes {
    rules: Vec<Rule>,
    violations: Vec<String>,
    asked: Vec<Asked>,
    /// Who was told to wait: method, path, for how long, until when.
    waits: Vec<(String, String, u64, Moment)>,
    impatient: usize,
}

impl Shared {
    pub(super) fn new(contract: Arc<Contract>, options: Options) -> Arc<Self> {
        let clock = Clock::new(options.pace);
        let mut world = World::new(clock, options.takes, options.subscription, options.regions);
        world.metal_addresses = options.metal.addresses();
        let headquarters = options.headquarters.then(|| hq::build(&mut world, options.headquarters_address));
        let entra = Entra::new(options.principal, options.token, headquarters.is_some());
        let slow = options.metal.slow();
        let shared = Arc::new(Self {
            world: Mutex::new(world),
            entra: Mutex::new(entra),
            notes: Mutex::default(),
            contract,
            metal: options.metal,
            slow: Mutex::new(None),
            ending: AtomicBool::new(false),
            headquarters,
            page: options.page,
        });
        if slow {
            let (send, deeds) = mpsc::channel();
            // Weak, or the thread would keep alive what keeps it alive.
            let minded = Arc::downgrade(&shared);
            let thread = thread::spawn(move || {
                while let Ok(deed) = deeds.recv() {
                    let Some(shared) = minded.upgrade() else { return };
                    shared.perform(deed);
                }
            });
            *shared.slow.lock().unwrap() = Some((send, thread));
        }
        shared
    }

    /// A panic elsewhere has told its story; what it left is still worth reading.
    pub(super) fn world(&self) -> MutexGuard<'_, World> {
        self.world.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    pub(super) fn entra(&self) -> MutexGuard<'_, Entra> {
        self.entra.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn notes(&self) -> MutexGuard<'_, Notes> {
        self.notes.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Change the world, and then do to the metal what comes of it.
    pub(super) fn change<T>(&self, change: impl FnOnce(&mut World) -> T) -> T {
        let (value, deeds) = {
            let mut world = self.world();
            world.settle();
            let value = change(&mut world);
            (value, std::mem::take(&mut world.deeds))
        };
        for deed in deeds {
            let slow = self.slow.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            match &*slow {
                // Nobody listens any more when all of it ends.
                Some((slow, _)) => drop(slow.send(deed)),
                None => {
                    drop(slow);
                    self.perform(deed);
                }
            }
        }
        value
    }

    fn perform(&self, deed: Deed) {
        let order = match deed {
            Deed::Kill(id) => return self.metal.kill(&id),
            Deed::Remove(id) => return self.metal.remove(&id),
            Deed::Keep(id, copy) => return self.metal.keep(&id, &copy),
            Deed::Boot(_) if self.ending.load(Ordering::Relaxed) => return,
            Deed::Boot(order) => order,
        };
        let booted = self.metal.boot(&order);
        let mut world = self.world();
        world.settle();
        let Some(machine) = world.get_mut(&order.id).and_then(|vm| vm.machine.as_mut()) else {
            // It was given back while it booted.
            drop(world);
            return self.metal.remove(&order.id);
        };
        machine.booting = false;
        match booted {
            Ok(Some(address)) => world.locate(&order.id, address),
            Ok(None) => {}
            Err(why) => world.spoil(&order.id, "OSProvisioningTimedOut", &why),
        }
        world.booted(&order.id);
    }

    pub(super) fn spoil(&self, rules: Vec<Rule>) {
        let mut notes = self.notes();
        notes.rules = rules;
        notes.waits.clear();
    }

    pub(super) fn violations(&self) -> Vec<String> {
        self.notes().violations.clone()
    }

    pub(super) fn impatient(&self) -> usize {
        self.notes().impatient
    }

    pub(super) fn asked(&self) -> Vec<Asked> {
        self.notes().asked.clone()
    }

    /// Whatever still runs on the metal does not any more.
    pub(super) fn end(&self) {
        self.ending.store(true, Ordering::Relaxed);
        let slow = self.slow.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take();
        if let Some((send, thread)) = slow {
            // What boots just now has to be there to be removed.
            drop(send);
            let _panicked = thread.join();
        }
        let machines: Vec<_> = {
            let world = self.world();
            world
                .things()
                .filter(|thing| thing.machine.is_some())
                .map(|thing| thing.id.to_lowercase())
                .collect()
        };
        machines.iter().for_each(|id| self.metal.remove(id));
    }
}

/// What a door hands its requests to.
pub(super) fn serve(shared: &Arc<Shared>, service: Service) -> Serve {
    let shared = Arc::clone(shared);
    Arc::new(move |heard| -> Answering {
        let shared = Arc::clone(&shared);
        Box::pin(async move { answer(&shared, service, heard).await })
    })
}

async fn answer(shared: &Arc<Shared>, service: Service, heard: Heard) -> Option<Answer> {
    // What is wrong with a request is noted even if it is spoiled.
    let (checked, now) = {
        let now = shared.change(|world| {
            if service == Service::Arm {
                world.clock.asked();
                world.settle();
            }
            world.now()
        });
        (if service == Service::Arm { check(shared, &heard, now) } else { Ok(Meant::Other) }, now)
    };
    let act = {
        let mut notes = shared.notes();
        let target = heard.target.to_lowercase();
        if let Some(refused) = notes.wait(&heard, now) {
            if service == Service::Arm {
                notes.asked.push(noted(&heard, now, checked.as_ref().ok(), Some(&refused)));
            }
            return Some(refused);
        }
        fault::next(&mut notes.rules, &heard.method, &target)
    };
    let note = |answer: Option<&Answer>, meant: Option<&Meant>| {
        if service == Service::Arm {
            shared.notes().asked.push(noted(&heard, now, meant, answer));
        }
    };
    let early = match &act {
        Some(Act::Reset) => {
            note(None, checked.as_ref().ok());
            return None;
        }
        Some(Act::Before(hook)) => {
            note(None, checked.as_ref().ok());
            hook();
            return None;
        }
        Some(Act::Refuse { status, code, message }) => Some(Answer::error(*status, code, message)),
        Some(Act::Say { status, headers, body }) => {
            Some(Answer { status: *status, headers: headers.clone(), body: body.clone() })
        }
        Some(Act::Throttle { seconds }) => {
            let until = now.after(Duration::from_secs(*seconds));
            shared.notes().waits.push((heard.method.clone(), heard.path.to_lowercase(), *seconds, until));
            Some(throttled(*seconds, now))
        }
        Some(Act::Garbage) => Some(Answer::of(200, json!("<html>a proxy on the way</html>"))),
        Some(Act::Delay(wait)) => {
            tokio::time::sleep(*wait).await;
            None
        }
        _ => None,
    };
    if let Some(early) = early {
        note(Some(&early), checked.as_ref().ok());
        return Some(early);
    }
    let (answer, meant) = match checked {
        Err(refused) => (*refused, None),
        Ok(meant) => {
            let fate = match &act {
                Some(Act::Fails { code, message }) => {
                    Some(Fate::Fails { code: code.clone(), message: message.clone() })
                }
                Some(Act::Hangs) => Some(Fate::Hangs),
                _ => None,
            };
            (done(shared, service, &heard, &meant, fate, now), Some(meant))
        }
    };
    match act {
        Some(Act::ResetAfter) => {
            note(None, meant.as_ref());
            None
        }
        Some(Act::After(hook)) => {
            note(None, meant.as_ref());
            hook();
            None
        }
        _ => {
            note(Some(&answer), meant.as_ref());
            Some(answer)
        }
    }
}

/// What a request to the resource manager is about.
enum Meant {
    /// One of the documents' operations, with its body.
    Operation(Matched, Option<Value>),
    /// How a long-running operation stands: its id, and whether by its status address.
    Poll(String, bool),
    /// Not of the resource manager at all.
    Other,
}

/// Whether this can be asked, by whoever asks.
fn check(shared: &Shared, heard: &Heard, now: Moment) -> Result<Meant, Box<Answer>> {
    let violation = |why: String| {
        let said = format!("{} {}: {why}", heard.method, heard.target);
        shared.notes().violations.push(said);
        Box::new(Answer::error(400, "AgainstTheDocuments", why))
    };
    match shared.entra().worth(&heard.headers, now) {
        Worth::Good => {}
        // A token runs out; who finds that out asks for another.
        Worth::Expired => {
            let said = "The access token expiry UTC time is earlier than current UTC time.";
            let header = "Bearer authorization_uri=\"https://login.windows.net/\", error=\"invalid_token\", error_description=\"The access token has expired.\"";
            return Err(Box::new(
                Answer::error(401, "ExpiredAuthenticationToken", said).with("www-authenticate", header),
            ));
        }
        Worth::Unknown => {
            violation("no bearer of ours".into());
            let said = "Authentication failed. The 'Authorization' header is missing or invalid.";
            let header = "Bearer authorization_uri=\"https://login.windows.net/\"";
            return Err(Box::new(
                Answer::error(401, "AuthenticationFailed", said).with("www-authenticate", header),
            ));
        }
    }
    let parts: Vec<_> = heard.path.trim_matches('/').split('/').collect();
    let subscription = shared.world().subscription.clone();
    if parts.len() > 1
        && parts[0].eq_ignore_ascii_case("subscriptions")
        && !parts[1].eq_ignore_ascii_case(&subscription)
    {
        let said = format!("The subscription '{}' could not be found.", parts[1]);
        return Err(Box::new(Answer::error(404, "SubscriptionNotFound", said)));
    }
    let lower: Vec<_> = parts.iter().map(|part| part.to_lowercase()).collect();
    let lower: Vec<_> = lower.iter().map(String::as_str).collect();
    if heard.method == "GET" {
        match lower.as_slice() {
            ["subscriptions", _, "operationresults", id] => return Ok(Meant::Poll((*id).into(), false)),
            ["subscriptions", _, "providers", _, "locations", _, "operationresults", id] => {
                return Ok(Meant::Poll((*id).into(), false));
            }
            ["subscriptions", _, "providers", _, "locations", _, "operations", id] => {
                let monitor = heard.query.iter().any(|(key, value)| key == "monitor" && value == "true");
                return Ok(Meant::Poll((*id).into(), !monitor));
            }
            _ => {}
        }
    }
    let Some(found) = shared.contract.find(&heard.method, &heard.path) else {
        return Err(violation("no operation of the documents".into()));
    };
    let body = if heard.body.is_empty() {
        None
    } else {
        let kind =
            heard.headers.get("content-type").and_then(|value| value.to_str().ok()).unwrap_or_default();
        if !kind.starts_with("application/json") {
            return Err(violation(format!("a body of type {kind:?}")));
        }
        match serde_json::from_slice::<Value>(&heard.body) {
            Ok(body) => Some(body),
            Err(e) => return Err(violation(format!("a body that is no JSON: {e}"))),
        }
    };
    // Where a list goes on is told by an address that is ours, not the documents'.
    let query: Vec<_> = heard.query.iter().filter(|(key, _)| key != "$skiptoken").cloned().collect();
    let call = Call { method: &heard.method, path: &heard.path, query: &query, body: body.as_ref() };
    let wrong = shared.contract.refuse(&found, &call);
    if wrong.is_empty() { Ok(Meant::Operation(found, body)) } else { Err(violation(wrong.join("; "))) }
}

fn done(
    shared: &Shared,
    service: Service,
    heard: &Heard,
    meant: &Meant,
    fate: Option<Fate>,
    now: Moment,
) -> Answer {
    match (service, meant) {
        (Service::Login, _) => shared.entra().answer(heard, now),
        (Service::Prices, _) => {
            let regions = shared.world().regions.clone();
            prices::answer(heard, &regions)
        }
        (Service::Imds, _) => {
            if let Some(closed) = imds::closed(heard) {
                return closed;
            }
            if heard.path == "/metadata/identity/oauth2/token" {
                return shared.entra().managed(heard, now);
            }
            shared.change(|world| world.metadata(heard, shared.headquarters.as_deref()))
        }
        (Service::Arm, Meant::Poll(id, by_status)) => told(shared.world().poll(id, *by_status), heard, now),
        (Service::Arm, Meant::Other) => Answer::error(404, "NotFound", heard.path.clone()),
        (Service::Arm, Meant::Operation(found, body)) => {
            let ask = Ask {
                base: &heard.base,
                found,
                path: &heard.path,
                query: &heard.query,
                headers: &heard.headers,
                body: body.as_ref(),
            };
            let answer = shared.change(|world| {
                world.fate = fate;
                let answer = world.answer(&ask, shared.page);
                world.fate = None;
                answer
            });
            let operation = &found.operation;
            let Some(answer) = answer else {
                let said = format!("{} is not done by the simulated cloud", operation.id);
                shared.notes().violations.push(format!("{} {}: {said}", heard.method, heard.target));
                return Answer::error(501, "NotImplemented", said);
            };
            let wrong = shared.contract.doubt(operation, answer.status, answer.body.as_ref());
            for why in wrong {
                let said = format!("the cloud itself, on {} {}: {why}", heard.method, heard.target);
                shared.notes().violations.push(said);
            }
            told(answer, heard, now)
        }
    }
}

/// What every answer says besides.
fn told(answer: Answer, heard: &Heard, now: Moment) -> Answer {
    let id = super::catalog::uuid(&format!("{} {} {}", heard.target, heard.peer, now.0));
    let kind = match heard.method.as_str() {
        "GET" | "HEAD" => ("x-ms-ratelimit-remaining-subscription-reads", "249"),
        "DELETE" => ("x-ms-ratelimit-remaining-subscription-deletes", "199"),
        _ => ("x-ms-ratelimit-remaining-subscription-writes", "199"),
    };
    let answer = answer
        .with("x-ms-request-id", id.clone())
        .with("x-ms-correlation-request-id", id)
        .with(kind.0, kind.1);
    let text = |name: &str| heard.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    match text("x-ms-return-client-request-id") {
        "true" => answer.with("x-ms-client-request-id", text("x-ms-client-request-id")),
        _ => answer,
    }
}

impl Notes {
    /// Whoever was told to wait and does not, waits anew.
    fn wait(&mut self, heard: &Heard, now: Moment) -> Option<Answer> {
        self.waits.retain(|(_, _, _, until)| *until > now);
        let path = heard.path.to_lowercase();
        let (_, _, seconds, until) =
            self.waits.iter_mut().find(|(method, at, _, _)| *method == heard.method && *at == path)?;
        *until = now.after(Duration::from_secs(*seconds));
        let seconds = *seconds;
        self.impatient += 1;
        Some(throttled(seconds, now))
    }
}

fn noted(heard: &Heard, at: Moment, meant: Option<&Meant>, answer: Option<&Answer>) -> Asked {
    let operation = match meant {
        Some(Meant::Operation(found, _)) => Some(found.operation.id.clone()),
        _ => None,
    };
    let code = answer.and_then(|answer| answer.body.as_ref()?["error"]["code"].as_str().map(str::to_owned));
    Asked {
        at,
        method: heard.method.clone(),
        target: heard.target.clone(),
        operation,
        status: answer.map(|answer| answer.status),
        code,
    }
}
