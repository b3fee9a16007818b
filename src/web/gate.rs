//! The gate: nginx asks it (`auth_request`) whether a request may pass. A password is verified once and then
//! remembered, because a hash that withstands a thief takes 0.2 s, and a page is hundreds of requests.
//!
//! | answer | when | what nginx makes of it |
//! |---|---|---|
//! | 204 | the login is right | passes the request; a run's, to the proxy that knows what it may do (`reach`) |
//! | 401, `WWW-Authenticate` | no login, or a wrong one | 401 with that header: the browser asks |
//! | 403, `Retry-After` | too many wrong ones | 403; the site's `error_page` makes it 429 |
//! | 403, `X-Echoes-Beyond` | right, but a run's, which does not open this service | 403 with a sentence |
//! | 503 | no password file that can be used | 500: closed, as when the gate itself is down |
//!
//! nginx knows no answers but 2xx, 401 and 403, hence 403 for too many.
//!
//! What is remembered is that *this header opened this stored hash*: a key made of both. So a user who is
//! removed or has a new password is out as soon as the file is read again, and nobody else notices. The file
//! is compared four times a second, by its bytes: its times and size can stay the same while it changes.
//!
//! On loopback nginx also names the connection, and who is root or a member by the kernel's word passes without a login.
//!
//! Nothing is written anywhere but one line in the journal for a refusal, with the address and the user.

use super::{
    attend, hold,
    memory::{Key, Limits, Memory},
    peer,
    reach::{Reach, SERVICE},
    tries::{Allowance, Tries},
};
use crate::{
    host::{Host, System},
    hq::htpasswd::{Htpasswd, Lock},
};
use anyhow::{Context as _, Result};
use axum::{
    Router,
    extract::State,
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use hmac::{Hmac, KeyInit as _, Mac as _};
use libsystemd::logging::{Priority, journal_send};
use nix::sys::stat::{FchmodatFlags, Mode, fchmodat};
use sha2::Sha256;
use std::{
    collections::HashMap,
    net::{IpAddr, Ipv6Addr},
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};
use tokio::{
    net::UnixListener,
    sync::{Semaphore, watch},
};

/// How often the password file is compared: four times within the second a removed user may still be in.
const LOOK: Duration = Duration::from_millis(250);

/// A password file of ten thousand users; one that is longer is not a password file.
const LONGEST_FILE: u64 = 1 << 20;

/// The longest name and password that may be set make 184 bytes.
const LONGEST_HEADER: usize = 1024;

/// Logins being verified or waiting for it. At 0.2 s each the last waits for seven seconds on the smallest
/// machine; more would be answered after the asker has gone. Who was right from there before has as many
/// places again, which strangers cannot fill.
const WAITING: usize = 32;

/// Right logins: a page left open stays in, and everybody pays one hash an hour.
const RIGHT: Limits =
    Limits { most: 1024, idle: Duration::from_secs(10 * 60), age: Duration::from_secs(60 * 60) };

/// Wrong ones: a program that goes on with an old password costs one hash in five minutes and is not counted
/// as guessing. Changing the password in the file is noticed at once, being part of the key.
const WRONG: Limits = Limits { most: 1024, idle: Duration::from_secs(300), age: Duration::from_secs(300) };

/// Who has logged in from where. There, a user is not hindered by what a guesser elsewhere does.
const AT_HOME: Limits = Limits {
    most: 1024,
    idle: Duration::from_secs(7 * 24 * 60 * 60),
    age: Duration::from_secs(7 * 24 * 60 * 60),
};

/// Wrong tries from one address: a whole team behind one router may mistype.
const PER_ADDRESS: Allowance = Allowance { burst: 20, every: Duration::from_secs(6) };

/// Wrong tries at one user from addresses that were never right: nine thousand a day, and a password of
/// eight random letters stands for sixty thousand years.
const PER_USER: Allowance = Allowance { burst: 20, every: Duration::from_secs(10) };

/// Lines in the journal. A guesser shall not fill the disk.
const LINES: Allowance = Allowance { burst: 10, every: Duration::from_secs(6) };

/// Looks at the kernel's table of connections at once. One takes milliseconds where there are thousands of connections.
static LOOKING: Semaphore = Semaphore::const_new(4);

/// Addresses and users whose tries are counted at once.
const COUNTED: usize = 4096;

pub struct Gate {
    /// Where nginx asks. The socket belongs to our user and group and lets only these in.
    pub socket: PathBuf,
    /// Read as one, in this order. The first must be there; others come and go.
    pub htpasswd: Vec<PathBuf>,
    /// What the browser shows when it asks for the password.
    pub realm: String,
}

/// Answer nginx until SIGTERM.
pub async fn serve(host: &Host, gate: Gate) -> Result<()> {
    let realm = challenge(&gate.realm)?;
    let keeper = Arc::new(Keeper::new(Instant::now, journal)?);
    keeper.read(host, &gate.htpasswd);
    let listener = listen(host, &gate.socket)?;
    let here = Arc::new(Host::new(host.root(), System));
    let status = format!(
        "asked on {}, by {}",
        gate.socket.display(),
        gate.htpasswd.first().map_or("?".into(), |path| path.display().to_string())
    );
    tokio::select! {
        served = attend(listener, app(keeper.clone(), realm, here), &status) => served,
        never = keeper.watch(host, &gate.htpasswd) => match never {},
    }
}

/// A socket for our user and group, and for nobody else.
pub fn listen(host: &Host, socket: &Path) -> Result<UnixListener> {
    // A socket left by a crash cannot be bound again; systemd sees to it that there is one of us.
    host.remove(socket)?;
    let at = host.path(socket);
    let doing = || format!("listening on {}", socket.display());
    let listener = UnixListener::bind(&at).with_context(doing)?;
    // Until here the umask decides, which lets fewer in, not more.
    let mode = Mode::from_bits_truncate(0o660);
    fchmodat(nix::fcntl::AT_FDCWD, &at, mode, FchmodatFlags::FollowSymlink).with_context(doing)?;
    Ok(listener)
}

fn app(keeper: Arc<Keeper>, realm: HeaderValue, host: Arc<Host>) -> Router {
    let ask = async move |State(keeper): State<Arc<Keeper>>, headers: HeaderMap| {
        let login = headers.get(header::AUTHORIZATION).map(HeaderValue::as_bytes);
        let mut from =
            headers.get("x-real-ip").and_then(|ip| ip.to_str().ok()).and_then(|ip| ip.parse().ok());
        if let Some((uid, is_member)) = local_user(&host, &headers).await {
            if is_member && !login.is_some_and(is_of_a_run) {
                return Answer::Pass.response(&realm);
            }
            from = Some(peer::address(uid));
        }
        match keeper.ask(login, from).await {
            Answer::Pass => {
                let user = login.and_then(credentials).map(|(user, _)| user).unwrap_or_default();
                Reach::of(&user, headers.get(SERVICE)).into_response()
            }
            other => other.response(&realm),
        }
    };
    Router::new().fallback(ask).with_state(keeper)
}

/// The user of this machine whose connection nginx names, and whether a member. Where that cannot be seen, as everybody else.
async fn local_user(host: &Arc<Host>, headers: &HeaderMap) -> Option<(u32, bool)> {
    let connection = headers.get("x-echoes-connection")?.to_str().ok()?.to_owned();
    let host = Arc::clone(host);
    // The few threads there are make hashes, too: a neighbour's many questions wait here.
    let _turn = LOOKING.acquire().await.ok()?;
    let look = move || peer::look(&host, &connection);
    tokio::task::spawn_blocking(look).await.ok()?.ok()?
}

/// Whether a login is one that a run was lent. Whoever shows it is that run, and no more, also from a member's process.
fn is_of_a_run(login: &[u8]) -> bool {
    credentials(login).is_some_and(|(user, _)| user.starts_with("run-"))
}

/// `Basic realm="…", charset="UTF-8"`, so that browsers send letters beyond ASCII the way our clients do.
fn challenge(realm: &str) -> Result<HeaderValue> {
    let realm = realm.replace('\\', r"\\").replace('"', "\\\"");
    HeaderValue::try_from(format!("Basic realm=\"{realm}\", charset=\"UTF-8\""))
        .context("the realm is shown in one line of text")
}

/// What the gate answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Answer {
    Pass,
    Who,
    Wait(Duration),
    Closed,
}

impl Answer {
    fn response(self, realm: &HeaderValue) -> Response {
        match self {
            Self::Pass => StatusCode::NO_CONTENT.into_response(),
            Self::Who => {
                (StatusCode::UNAUTHORIZED, [(header::WWW_AUTHENTICATE, realm.clone())]).into_response()
            }
            Self::Wait(time) => {
                let seconds = HeaderValue::from(time.as_secs() + 1);
                (StatusCode::FORBIDDEN, [(header::RETRY_AFTER, seconds)]).into_response()
            }
            Self::Closed => StatusCode::SERVICE_UNAVAILABLE.into_response(),
        }
    }
}

/// Who decides. Shared by all requests.
struct Keeper {
    file: Mutex<Arc<File>>,
    state: Mutex<Known>,
    /// New at each start and never written: what is remembered dies with us.
    secret: Hmac<Sha256>,
    /// Half of the processors: however many guess, the other half goes on serving.
    hashing: Semaphore,
    clock: Box<dyn Fn() -> Instant + Send + Sync>,
    say: Box<dyn Fn(Refusal) + Send + Sync>,
}

/// The password file as it was last read: its bytes, and what they mean or why they are of no use.
struct File {
    bytes: Option<Vec<u8>>,
    users: Result<Htpasswd, String>,
}

struct Known {
    right: Memory,
    wrong: Memory,
    at_home: Memory,
    addresses: Tries<Option<IpAddr>>,
    users: Tries<Key>,
    /// Logins being verified. Those who ask the same meanwhile wait for the same answer.
    under_way: HashMap<Key, watch::Receiver<Option<Answer>>>,
    lines: Tries<()>,
    unsaid: u64,
}

/// A login as it was given, and all that follows from it.
struct Login {
    key: Key,
    user: String,
    password: Vec<u8>,
    lock: Lock,
    from: Option<IpAddr>,
    user_key: Key,
    home_key: Key,
    is_home: bool,
}

/// What is said of those who are not let in.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Refusal {
    Wrong { user: String, from: Option<IpAddr>, unsaid: u64 },
    TooMany { user: String, from: Option<IpAddr>, unsaid: u64 },
    Closed(String),
    Open,
}

impl Keeper {
    fn new(
        clock: impl Fn() -> Instant + Send + Sync + 'static,
        say: impl Fn(Refusal) + Send + Sync + 'static,
    ) -> Result<Self> {
        let mut secret = [0; 32];
        getrandom::fill(&mut secret).context("asking the kernel for a random key")?;
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Ok(Self {
            file: Mutex::new(Arc::new(File { bytes: None, users: Err("it was not read yet".into()) })),
            state: Mutex::new(Known {
                right: Memory::new(RIGHT),
                wrong: Memory::new(WRONG),
                at_home: Memory::new(AT_HOME),
                addresses: Tries::new(PER_ADDRESS, COUNTED),
                users: Tries::new(PER_USER, COUNTED),
                under_way: HashMap::new(),
                lines: Tries::new(LINES, 1),
                unsaid: 0,
            }),
            secret: Hmac::new_from_slice(&secret).context("making a key")?,
            hashing: Semaphore::new((cores / 2).max(1)),
            clock: Box::new(clock),
            say: Box::new(say),
        })
    }

    /// Keep up with the password file, for ever. Stays on the thread it is awaited on, so that reading holds
    /// up no request.
    async fn watch(&self, host: &Host, paths: &[PathBuf]) -> std::convert::Infallible {
        loop {
            tokio::time::sleep(LOOK).await;
            self.read(host, paths);
        }
    }

    /// Read the password file if it is not as it was.
    fn read(&self, host: &Host, paths: &[PathBuf]) {
        let read = || -> Result<Vec<u8>> {
            let mut all = Vec::new();
            for (n, path) in paths.iter().enumerate() {
                let Some(meta) = host.meta(path)? else {
                    anyhow::ensure!(n > 0, "there is no such file");
                    continue;
                };
                anyhow::ensure!(meta.len <= LONGEST_FILE, "it is longer than {LONGEST_FILE} bytes");
                all.extend(host.read(path)?.unwrap_or_default());
                if all.last().is_some_and(|last| *last != b'\n') {
                    all.push(b'\n');
                }
            }
            Ok(all)
        };
        let was = self.file();
        let (bytes, users) = match read() {
            Ok(bytes) if was.bytes.as_ref() == Some(&bytes) => return,
            Ok(bytes) => {
                let users = Htpasswd::parse(&bytes);
                let none = "it holds no user with a bcrypt hash; `echoes-appliance user add NAME` adds one";
                let users = if users.admits_somebody() { Ok(users) } else { Err(none.to_owned()) };
                (Some(bytes), users)
            }
            Err(e) => (None, Err(format!("{e:#}"))),
        };
        if bytes.is_none() && was.users.as_ref().err() == users.as_ref().err() {
            return;
        }
        match (&was.users, &users) {
            (_, Err(why)) => (self.say)(Refusal::Closed(format!(
                "{}: {why}",
                paths.first().map_or_else(String::new, |p| p.display().to_string())
            ))),
            (Err(_), Ok(_)) => (self.say)(Refusal::Open),
            (Ok(_), Ok(_)) => {}
        }
        *hold(&self.file) = Arc::new(File { bytes, users });
    }

    fn file(&self) -> Arc<File> {
        hold(&self.file).clone()
    }

    /// Whether whoever sent this `Authorization` from there may pass.
    async fn ask(self: &Arc<Self>, header: Option<&[u8]>, from: Option<IpAddr>) -> Answer {
        let file = self.file();
        let Ok(users) = &file.users else { return Answer::Closed };
        let Some((user, password)) = header.and_then(credentials) else { return Answer::Who };
        let lock = users.lock(&user);
        let key = self.key(&[b"login", lock.hash().as_bytes(), user.as_bytes(), &password]);
        let answer = match self.recall(key, user, password, lock, from) {
            Ok(answer) => answer,
            Err(mut told) => {
                let told = told.wait_for(Option::is_some).await.map(|answer| *answer);
                told.ok().flatten().unwrap_or(Answer::Closed)
            }
        };
        // A hash takes its time, and longer in a queue: the user may have been removed meanwhile.
        if answer == Answer::Pass && !Arc::ptr_eq(&file, &self.file()) {
            return self.still(header, key);
        }
        answer
    }

    /// Whether a login that was right is right by the file as it is now.
    fn still(&self, header: Option<&[u8]>, key: Key) -> Answer {
        let file = self.file();
        let Ok(users) = &file.users else { return Answer::Closed };
        let Some((user, password)) = header.and_then(credentials) else { return Answer::Who };
        let now = self.key(&[b"login", users.lock(&user).hash().as_bytes(), user.as_bytes(), &password]);
        if now == key { Answer::Pass } else { Answer::Who }
    }

    /// The answer, if it is known without a hash; else where it will be told.
    fn recall(
        self: &Arc<Self>,
        key: Key,
        user: String,
        password: Vec<u8>,
        lock: Lock,
        from: Option<IpAddr>,
    ) -> Result<Answer, watch::Receiver<Option<Answer>>> {
        let now = (self.clock)();
        let mut state = hold(&self.state);
        if state.right.recall(&key, now) {
            return Ok(Answer::Pass);
        }
        if state.wrong.recall(&key, now) {
            return Ok(Answer::Who);
        }
        if let Some(told) = state.under_way.get(&key) {
            return Err(told.clone());
        }
        let from = from.map(network);
        let user_key = self.key(&[b"user", user.as_bytes()]);
        let home_key = self.key(&[b"home", user.as_bytes(), format!("{from:?}").as_bytes()]);
        let is_home = state.at_home.recall(&home_key, now);
        if state.under_way.len() >= if is_home { 2 * WAITING } else { WAITING } {
            return Ok(Answer::Wait(Duration::ZERO));
        }
        let login = Login { key, user, password, lock, from, user_key, home_key, is_home };
        if let Err(wait) = state.charge(&login, now) {
            let unsaid = state.may_say(now);
            drop(state);
            if let Some(unsaid) = unsaid {
                (self.say)(Refusal::TooMany { user: printable(&login.user), from, unsaid });
            }
            return Ok(Answer::Wait(wait));
        }
        let (tell, told) = watch::channel(None);
        state.under_way.insert(key, told.clone());
        drop(state);
        let keeper = self.clone();
        // On its own, so that it ends and is remembered even when the asker goes away.
        tokio::spawn(async move {
            let answer = keeper.prove(login).await;
            let _ = tell.send(Some(answer));
        });
        Err(told)
    }

    /// Hash, and remember what came of it.
    async fn prove(&self, login: Login) -> Answer {
        let Login { key, user, password, lock, from, user_key, home_key, is_home } = login;
        let opens = match self.hashing.acquire().await {
            Ok(_permit) => tokio::task::spawn_blocking(move || lock.opens(&password)).await.ok(),
            Err(_) => None,
        };
        let now = (self.clock)();
        let mut state = hold(&self.state);
        state.under_way.remove(&key);
        match opens {
            Some(true) => {
                state.right.keep(key, now);
                state.at_home.keep(home_key, now);
                state.addresses.give_back(&from);
                if !is_home {
                    state.users.give_back(&user_key);
                }
                Answer::Pass
            }
            Some(false) => {
                state.wrong.keep(key, now);
                let unsaid = state.may_say(now);
                drop(state);
                if let Some(unsaid) = unsaid {
                    (self.say)(Refusal::Wrong { user: printable(&user), from, unsaid });
                }
                Answer::Who
            }
            None => Answer::Closed,
        }
    }

    /// The keyed hash of these parts, which no other parts share: each is preceded by its length.
    fn key(&self, parts: &[&[u8]]) -> Key {
        let mut hash = self.secret.clone();
        for part in parts {
            hash.update(&part.len().to_le_bytes());
            hash.update(part);
        }
        hash.finalize().into_bytes().into()
    }
}

impl Known {
    /// Count a try before it is known to be wrong, or many at once would all be the first.
    fn charge(&mut self, login: &Login, now: Instant) -> Result<(), Duration> {
        self.addresses.take(&login.from, now)?;
        if !login.is_home
            && let Err(wait) = self.users.take(&login.user_key, now)
        {
            self.addresses.give_back(&login.from);
            return Err(wait);
        }
        Ok(())
    }

    /// Whether a line may be written now, and how many were not since the last.
    fn may_say(&mut self, now: Instant) -> Option<u64> {
        if self.lines.take(&(), now).is_err() {
            self.unsaid += 1;
            return None;
        }
        Some(std::mem::take(&mut self.unsaid))
    }
}

/// The user and the password of a `Basic` login.
fn credentials(header: &[u8]) -> Option<(String, Vec<u8>)> {
    if header.len() > LONGEST_HEADER {
        return None;
    }
    let (scheme, rest) = header.split_at_checked(6)?;
    if !scheme.eq_ignore_ascii_case(b"basic ") {
        return None;
    }
    let login = BASE64.decode(rest.trim_ascii()).ok()?;
    let colon = login.iter().position(|b| *b == b':')?;
    let user = str::from_utf8(&login[..colon]).ok().filter(|user| !user.is_empty())?;
    Some((user.to_owned(), login[colon + 1..].to_vec()))
}

/// Whom we count as one: a v6 network hands each of its hosts as many addresses as it likes.
fn network(ip: IpAddr) -> IpAddr {
    match ip.to_canonical() {
        IpAddr::V6(ip) => Ipv6Addr::from_bits(ip.to_bits() & (!0 << 64)).into(),
        v4 => v4,
    }
}

/// A stranger's words, safe in a journal.
fn printable(user: &str) -> String {
    user.chars().take(64).flat_map(char::escape_default).collect()
}

/// One line in the journal, with fields to search by.
fn journal(refusal: Refusal) {
    let address = |from: Option<IpAddr>| from.map_or("an unknown address".to_owned(), peer::words);
    let more = |unsaid: u64| if unsaid == 0 { String::new() } else { format!("; {unsaid} more not shown") };
    let (priority, text, user, from) = match &refusal {
        Refusal::Wrong { user, from, unsaid } => {
            let text = format!("refused `{user}` from {}: wrong login{}", address(*from), more(*unsaid));
            (Priority::Notice, text, user.as_str(), *from)
        }
        Refusal::TooMany { user, from, unsaid } => {
            let text = format!("refused `{user}` from {}: too many tries{}", address(*from), more(*unsaid));
            (Priority::Warning, text, user.as_str(), *from)
        }
        Refusal::Closed(why) => (Priority::Error, format!("nobody is let in: {why}"), "", None),
        Refusal::Open => (Priority::Notice, "the password file can be used".to_owned(), "", None),
    };
    let fields = [
        ("ECHOES_USER", user.to_owned()),
        ("ECHOES_ADDRESS", from.map_or(String::new(), |ip| ip.to_string())),
    ];
    // Without a journal there is nobody to tell, and the answer stays the same.
    let _ = journal_send(priority, &text, fields.into_iter().filter(|(_, value)| !value.is_empty()));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::web::attend_until;
    use std::sync::atomic::{AtomicU64, Ordering};
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::UnixStream,
    };

    /// Of the least cost: alice's password is `alice-password`, and so on.
    fn line(user: &str, password: &str) -> String {
        let hash = bcrypt::hash_with_result(password, 4).unwrap().format_for_version(bcrypt::Version::TwoY);
        format!("{user}:{hash}\n")
    }

    fn basic(user: &str, password: &str) -> String {
        format!("Basic {}", BASE64.encode(format!("{user}:{password}")))
    }

    /// A gate on a real socket in a directory of its own, with a clock that the test moves and ears for what
    /// it says.
    struct Town {
        dir: tempfile::TempDir,
        keeper: Arc<Keeper>,
        seconds: Arc<AtomicU64>,
        said: Arc<Mutex<Vec<Refusal>>>,
    }

    const HTPASSWD: &str = "/etc/nginx/.htpasswd";

    impl Town {
        fn of(users: &str) -> Self {
            let dir = tempfile::tempdir().unwrap();
            let seconds = Arc::new(AtomicU64::new(0));
            let said = Arc::new(Mutex::new(Vec::new()));
            let (start, clock, ears) = (Instant::now(), seconds.clone(), said.clone());
            let keeper = Keeper::new(
                move || start + Duration::from_secs(clock.load(Ordering::SeqCst)),
                move |refusal| hold(&ears).push(refusal),
            );
            let town = Self { dir, keeper: Arc::new(keeper.unwrap()), seconds, said };
            town.write(users);
            town.keeper.read(&town.host(), &[HTPASSWD.into()]);
            town
        }

        fn host(&self) -> Host {
            Host::new(self.dir.path(), System)
        }

        fn write(&self, users: &str) {
            self.host().write(Path::new(HTPASSWD), 0o640, users.as_bytes()).unwrap();
        }

        fn pass(&self, time: Duration) {
            self.seconds.fetch_add(time.as_secs(), Ordering::SeqCst);
        }

        /// Open the gate and keep reading the file, while the story is told.
        async fn while_open(&self, story: impl AsyncFnOnce(&Self)) {
            let host = self.host();
            host.make_dir(Path::new("/run")).unwrap();
            let listener = listen(&host, Path::new("/run/gate.sock")).unwrap();
            let files = [HTPASSWD.into()];
            let app = app(self.keeper.clone(), challenge("HQ").unwrap(), Arc::new(self.host()));
            let (end, ended) = tokio::sync::oneshot::channel::<()>();
            let served = attend_until(listener, app, async { drop(ended.await) });
            tokio::select! {
                served = async { tokio::join!(served, async { story(self).await; end.send(()).unwrap() }) } => served.0.unwrap(),
                never = self.keeper.watch(&host, &files) => match never {},
            }
        }

        /// One request as nginx makes it. Answers the whole response's head.
        async fn knock(&self, login: Option<&str>, from: &str) -> String {
            self.knock_at("mlflow", login, from).await
        }

        async fn knock_at(&self, service: &str, login: Option<&str>, from: &str) -> String {
            let mut stream = UnixStream::connect(self.dir.path().join("run/gate.sock")).await.unwrap();
            let login = login.map_or(String::new(), |login| format!("Authorization: {login}\r\n"));
            let request = format!(
                "GET / HTTP/1.1\r\nHost: gate\r\nX-Real-IP: {from}\r\nX-Echoes-Service: {service}\r\n{login}Connection: close\r\n\r\n"
            );
            stream.write_all(request.as_bytes()).await.unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await.unwrap();
            answer.to_lowercase()
        }

        async fn status(&self, login: &str, from: &str) -> u16 {
            self.knock(Some(login), from).await[9..12].parse().unwrap()
        }

        /// What was said since this was last asked.
        fn said(&self) -> Vec<Refusal> {
            std::mem::take(&mut hold(&self.said))
        }
    }

    const HERE: &str = "192.0.2.1";

    #[tokio::test(flavor = "multi_thread")]
    async fn a_right_login_passes_and_others_are_asked_who_they_are() {
        let town = Town::of(&line("alice", "alice-password"));
        town.while_open(async |town| {
            assert_eq!(town.status(&basic("alice", "alice-password"), HERE).await, 204);
            assert_eq!(
                town.status(&basic("alice", "alice-password").replace("Basic", "bASIC"), HERE).await,
                204
            );
            let asked = town.knock(None, HERE).await;
            assert!(asked.starts_with("http/1.1 401"), "{asked}");
            assert!(asked.contains("www-authenticate: basic realm=\"hq\", charset=\"utf-8\"\r\n"), "{asked}");
            for wrong in [
                basic("alice", "alice-passwor"),
                basic("alice", ""),
                basic("bob", "alice-password"),
                basic("", "alice-password"),
                "Basic".into(),
                "Basic ".into(),
                "Basic !!!".into(),
                "Bearer abc".into(),
                format!("Basic {}", BASE64.encode("no colon")),
                format!("Basic {}", BASE64.encode(b"\xff:alice-password")),
                format!("Basic {}", "A".repeat(5000)),
            ] {
                assert_eq!(town.status(&wrong, HERE).await, 401, "{wrong}");
            }
        })
        .await;
    }

    /// As nginx says it of loopback: from which port, and to which.
    fn from_port(port: u16) -> String {
        format!("127.0.0.1\r\nX-Echoes-Connection: 127.0.0.1 {port} 127.0.0.1 5000")
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn on_loopback_members_pass_by_the_kernels_word_and_neighbours_are_asked() {
        let users = [line("bob", "bob-password"), line("run-r1", "run-password")].concat();
        let town = Town::of(&users);
        let host = town.host();
        let row =
            |port: u16, uid: u32| format!("0: 0100007F:{port:04X} 0100007F:1388 01 0:0 0:0 0 {uid} 0 77 1\n");
        let table = [row(40000, 1000), row(40001, 1001), row(40002, 0)].concat();
        for (path, text) in [
            ("/proc/self/net/tcp", table.as_str()),
            ("/etc/passwd", "ana:x:1000:1000::/:/bin/sh\nbob:x:1001:1001::/:/bin/sh\n"),
            ("/etc/group", "echoes:x:990:ana\n"),
        ] {
            host.write(Path::new(path), 0o644, text.as_bytes()).unwrap();
        }
        town.while_open(async |town| {
            let status =
                async |login: Option<&str>, port| town.knock(login, &from_port(port)).await[9..12].to_owned();
            let (ana, bob, root, gone) = (40000, 40001, 40002, 40003);
            assert_eq!(status(None, ana).await, "204");
            assert_eq!(status(None, root).await, "204");
            assert_eq!(status(None, bob).await, "401");
            assert_eq!(status(None, gone).await, "401");
            assert_eq!(status(Some(&basic("bob", "bob-password")), bob).await, "204");
            // What a script has in its environment for another server hinders no member.
            assert_eq!(status(Some(&basic("elsewhere", "x")), ana).await, "204");
            // A run's login is the run's, whoever's process shows it.
            assert_eq!(status(Some(&basic("run-r1", "run-password")), ana).await, "204");
            assert_eq!(status(Some(&basic("run-r1", "wrong")), ana).await, "401");
            assert_eq!(status(Some(&basic("run-r2", "wrong")), root).await, "401");
            // Who comes from elsewhere has no such header from nginx; one without sense lets nobody in.
            let odd = "127.0.0.1\r\nX-Echoes-Connection: root";
            assert_eq!(&town.knock(None, odd).await[9..12], "401");
            // One neighbour's guesses are not another's.
            for n in 0..PER_ADDRESS.burst {
                assert_eq!(status(Some(&basic("ana", &format!("guess{n}"))), bob).await, "401", "{n}");
            }
            assert_eq!(status(Some(&basic("ana", "more")), bob).await, "403");
            assert_eq!(status(Some(&basic("nobody", "more")), gone).await, "401");
            assert_eq!(status(None, ana).await, "204");
        })
        .await;
        let said = town.said();
        let from = Some(peer::address(1001));
        let is_hers = |refusal: &Refusal| matches!(refusal, Refusal::Wrong { from: at, .. } if *at == from);
        assert!(said.iter().any(is_hers), "{said:?}");
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_runs_login_is_named_to_nginx_and_opens_mlflow_alone() {
        let town = Town::of(&format!("{}{}", line("alice", "alice-password"), line("run-s4", "s4-password")));
        town.while_open(async |town| {
            let (alice, run) = (basic("alice", "alice-password"), basic("run-s4", "s4-password"));
            let named = town.knock_at("mlflow", Some(&run), HERE).await;
            assert!(
                named.starts_with("http/1.1 204") && named.contains("\r\nx-echoes-run: run-s4\r\n"),
                "{named}"
            );
            for service in ["dashboard", "tensorboard", "docs", ""] {
                let beyond = town.knock_at(service, Some(&run), HERE).await;
                assert!(
                    beyond.starts_with("http/1.1 403") && beyond.contains("\r\nx-echoes-beyond: 1\r\n"),
                    "{beyond}"
                );
                assert!(!beyond.contains("retry-after"), "it is not asked to try again: {beyond}");
                let alices = town.knock_at(service, Some(&alice), HERE).await;
                assert!(alices.starts_with("http/1.1 204") && !alices.contains("x-echoes"), "{alices}");
            }
            assert_eq!(town.status(&basic("run-s4", "wrong-password"), HERE).await, 401);
        })
        .await;
    }

    #[tokio::test]
    async fn only_our_user_and_group_reach_the_socket() {
        let town = Town::of("");
        let host = town.host();
        host.make_dir(Path::new("/run")).unwrap();
        let socket = Path::new("/run/gate.sock");
        let first = listen(&host, socket).unwrap();
        assert_eq!(host.meta(socket).unwrap().unwrap().mode, 0o660);
        drop(first);
        listen(&host, socket).expect("a socket left by a crash is replaced");
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_removed_user_is_out_within_a_second_and_nobody_else_notices() {
        let alice = line("alice", "alice-password");
        let town = Town::of(&format!("{alice}{}", line("bob", "bob-password")));
        town.while_open(async |town| {
            let (as_alice, as_bob) = (basic("alice", "alice-password"), basic("bob", "bob-password"));
            assert_eq!(town.status(&as_alice, HERE).await, 204);
            assert_eq!(town.status(&as_bob, HERE).await, 204);
            town.write(&alice);
            tokio::time::sleep(Duration::from_secs(1)).await;
            assert_eq!(town.status(&as_bob, HERE).await, 401);
            assert_eq!(town.status(&as_alice, HERE).await, 204);
            // A changed password shuts the old one out and lets the new one in, though both were asked before.
            assert_eq!(town.status(&basic("alice", "new-password"), HERE).await, 401);
            town.write(&line("alice", "new-password"));
            tokio::time::sleep(Duration::from_secs(1)).await;
            assert_eq!(town.status(&as_alice, HERE).await, 401);
            assert_eq!(town.status(&basic("alice", "new-password"), HERE).await, 204);
        })
        .await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_user_removed_while_the_hash_is_made_does_not_pass() {
        let town = Town::of(&line("alice", "alice-password"));
        let login = basic("alice", "alice-password");
        // All who hash are held, so the login waits in the queue.
        let held =
            town.keeper.hashing.acquire_many(town.keeper.hashing.available_permits() as u32).await.unwrap();
        let keeper = town.keeper.clone();
        let asked = tokio::spawn(async move { keeper.ask(Some(login.as_bytes()), None).await });
        while hold(&town.keeper.state).under_way.is_empty() {
            tokio::task::yield_now().await;
        }
        town.write(&line("bob", "bob-password"));
        town.keeper.read(&town.host(), &[HTPASSWD.into()]);
        drop(held);
        assert_eq!(asked.await.unwrap(), Answer::Who);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn without_a_usable_file_nobody_passes() {
        let alice = line("alice", "alice-password");
        let town = Town::of(&alice);
        town.while_open(async |town| {
            let login = basic("alice", "alice-password");
            assert_eq!(town.status(&login, HERE).await, 204);
            let path = Path::new(HTPASSWD);
            let shut = async |what: &str| {
                tokio::time::sleep(Duration::from_millis(600)).await;
                assert_eq!(town.status(&login, HERE).await, 503, "{what}");
                assert_eq!(&town.knock(None, HERE).await[9..12], "503", "{what}");
            };
            let host = town.host();
            host.remove(path).unwrap();
            shut("gone").await;
            host.write(path, 0o640, b"").unwrap();
            shut("empty").await;
            host.write(path, 0o640, b"alice:$apr1$x$y\n").unwrap();
            shut("other kinds").await;
            host.write(path, 0o640, &vec![b'#'; 2 << 20]).unwrap();
            shut("too long").await;
            host.remove(path).unwrap();
            host.make_dir(path).unwrap();
            shut("a directory").await;
            town.host().remove_dir(path).unwrap();
            town.write(&alice);
            tokio::time::sleep(Duration::from_millis(600)).await;
            assert_eq!(town.status(&login, HERE).await, 204);
            let said = town.said();
            assert_eq!(said.len(), 7, "one line for each cause, one for each recovery: {said:?}");
            assert!(
                matches!(&said[1], Refusal::Closed(why) if why.contains("there is no such file")),
                "{said:?}"
            );
        })
        .await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn the_same_login_asked_at_once_is_hashed_once() {
        let town = Town::of(&line("alice", "alice-password"));
        let keeper = &town.keeper;
        let permits = keeper.hashing.available_permits() as u32;
        let held = keeper.hashing.acquire_many(permits).await.unwrap();
        let login = basic("alice", "alice-password");
        let ask = || {
            let (keeper, login) = (keeper.clone(), login.clone());
            tokio::spawn(async move { keeper.ask(Some(login.as_bytes()), None).await })
        };
        // More than the queue and the allowance could hold, were each of them to count.
        let all: Vec<_> = (0..200).map(|_| ask()).collect();
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert_eq!(hold(&keeper.state).under_way.len(), 1);
        // One who goes away does not take the answer along.
        all[0].abort();
        drop(held);
        for one in all.into_iter().skip(1) {
            assert_eq!(one.await.unwrap(), Answer::Pass);
        }
        assert!(hold(&keeper.state).under_way.is_empty());
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn strangers_fill_their_own_part_of_the_queue() {
        let town = Town::of(&line("alice", "alice-password"));
        let keeper = &town.keeper;
        let (alice, home) = (basic("alice", "alice-password"), Some(IpAddr::from([192, 0, 2, 1])));
        assert_eq!(keeper.ask(Some(alice.as_bytes()), home).await, Answer::Pass);
        hold(&keeper.state).right = Memory::new(RIGHT);
        let permits = keeper.hashing.available_permits() as u32;
        let held = keeper.hashing.acquire_many(permits).await.unwrap();
        let mut asked = Vec::new();
        for n in 0..WAITING + 8 {
            let keeper = keeper.clone();
            let from = IpAddr::from([10, 0, (n / 256) as u8, n as u8]);
            let login = basic(&format!("user{n}"), "guess");
            asked.push(tokio::spawn(async move { keeper.ask(Some(login.as_bytes()), Some(from)).await }));
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
        assert_eq!(hold(&keeper.state).under_way.len(), WAITING);
        let (keeper, at_home) = (keeper.clone(), alice.clone());
        let at_home = tokio::spawn(async move { keeper.ask(Some(at_home.as_bytes()), home).await });
        tokio::time::sleep(Duration::from_millis(100)).await;
        drop(held);
        assert_eq!(at_home.await.unwrap(), Answer::Pass, "there is a place for who was right before");
        let mut answers = Vec::new();
        for one in asked {
            answers.push(one.await.unwrap());
        }
        assert_eq!(answers.iter().filter(|a| **a == Answer::Wait(Duration::ZERO)).count(), 8);
        assert_eq!(answers.iter().filter(|a| **a == Answer::Who).count(), WAITING);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_guesser_is_slowed_and_stops_nobody_else() {
        let town = Town::of(&format!("{}{}", line("alice", "alice-password"), line("bob", "bob-password")));
        town.while_open(async |town| {
            let (as_alice, as_bob) = (basic("alice", "alice-password"), basic("bob", "bob-password"));
            let guesser = "198.51.100.7";
            assert_eq!(town.status(&as_alice, HERE).await, 204);
            for n in 0..PER_ADDRESS.burst {
                assert_eq!(town.status(&basic("alice", &format!("guess{n}")), guesser).await, 401, "{n}");
            }
            let told = town.knock(Some(&basic("alice", "guess-more")), guesser).await;
            assert!(told.starts_with("http/1.1 403") && told.contains("\r\nretry-after: 7\r\n"), "{told}");
            assert_eq!(
                town.status(&basic("alice", "guess1"), guesser).await,
                401,
                "an old guess costs nothing"
            );
            assert_eq!(
                town.status(&as_bob, guesser).await,
                403,
                "the address is slowed, whoever it says it is"
            );
            assert_eq!(town.status(&as_alice, HERE).await, 204, "who is remembered does not notice");
            assert_eq!(town.status(&as_bob, HERE).await, 204, "nor does another user elsewhere");
            // Alice's own allowance is used up: from a new place she waits, at home she does not.
            assert_eq!(town.status(&basic("alice", "guess-again"), "203.0.113.9").await, 403);
            town.pass(RIGHT.idle);
            hold(&town.keeper.state).users = Tries::new(Allowance { burst: 0, ..PER_USER }, COUNTED);
            assert_eq!(town.status(&as_alice, "203.0.113.9").await, 403);
            assert_eq!(town.status(&as_alice, HERE).await, 204);
        })
        .await;
        let said = town.said();
        let lines = said.iter().filter(|refusal| !matches!(refusal, Refusal::Open)).count();
        assert!((LINES.burst as usize..LINES.burst as usize + 3).contains(&lines), "{said:?}");
        assert!(!format!("{said:?}").contains("guess"), "no password is ever said");
        assert!(said.contains(&Refusal::Wrong {
            user: "alice".into(),
            from: Some(IpAddr::from([198, 51, 100, 7])),
            unsaid: 0
        }));
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn right_logins_are_never_counted_and_last_an_hour_at_most() {
        let town = Town::of(&line("alice", "alice-password"));
        let login = basic("alice", "alice-password");
        // Each time forgotten, each time hashed again: more often than any allowance.
        for n in 0..2 * PER_ADDRESS.burst {
            assert_eq!(town.keeper.ask(Some(login.as_bytes()), None).await, Answer::Pass, "{n}");
            hold(&town.keeper.state).right = Memory::new(RIGHT);
        }
        assert_eq!(town.keeper.ask(Some(login.as_bytes()), None).await, Answer::Pass);
        let remembered = |town: &Town| {
            let users = town.keeper.file();
            let lock = users.users.as_ref().unwrap().lock("alice");
            let key = town.keeper.key(&[b"login", lock.hash().as_bytes(), b"alice", b"alice-password"]);
            hold(&town.keeper.state).right.recall(&key, (town.keeper.clock)())
        };
        for _ in 0..11 {
            town.pass(Duration::from_secs(5 * 60));
            assert!(remembered(&town));
        }
        town.pass(Duration::from_secs(5 * 60));
        assert!(!remembered(&town));
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_v6_network_counts_as_one() {
        let town = Town::of(&line("alice", "alice-password"));
        let ask = async |n: u32, from: IpAddr| {
            town.keeper.ask(Some(basic(&format!("u{n}"), "guess").as_bytes()), Some(from)).await
        };
        let host = |net: u16, n: u32| IpAddr::from(Ipv6Addr::new(0x2001, 0xdb8, 0, net, 0, 0, 0, n as u16));
        for n in 0..PER_ADDRESS.burst {
            assert_eq!(ask(n, host(1, n)).await, Answer::Who);
        }
        assert!(matches!(ask(99, host(1, 99)).await, Answer::Wait(_)));
        assert_eq!(ask(99, host(2, 99)).await, Answer::Who);
        assert_eq!(network("::ffff:192.0.2.1".parse().unwrap()), IpAddr::from([192, 0, 2, 1]));
    }

    #[test]
    fn what_strangers_call_themselves_is_safe_in_a_journal() {
        assert_eq!(printable("a\nb\x1b[31m`é"), "a\\nb\\u{1b}[31m`\\u{e9}");
        assert_eq!(printable(&"x".repeat(500)).len(), 64);
    }

    #[test]
    fn a_realm_cannot_end_its_header() {
        assert_eq!(challenge(r#"a "b" \"#).unwrap(), r#"Basic realm="a \"b\" \\", charset="UTF-8""#);
        assert!(challenge("a\r\nb").is_err());
    }

    #[test]
    fn fuzz_login_is_a_name_and_a_password_or_none() {
        crate::fuzz::run("login", &["Basic ", "basic  ", "YTpi", "="], |bytes| {
            let (user, password) = credentials(bytes).ok_or_else(|| anyhow::anyhow!("none"))?;
            assert!(!user.is_empty() && !user.contains(':') && user.len() + password.len() < bytes.len());
            Ok(())
        });
    }
}
