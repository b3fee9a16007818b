//! The Python environments that MLflow, TensorBoard and the documentation builder run in: which locked
//! requirements, on which interpreter, in which directory, and the one link the services go through.
//!
//! An environment is built where it will stay (a venv cannot be moved), is complete when its marker is
//! written, and is never changed after that. A new one is built beside the old; one rename of a link
//! switches; the old one goes only when `sweep` is called. This file refuses to install anything whose hash
//! is not in the lock, and to build anything from source: that would run a stranger's code as root.

use crate::{
    hash::{first, sha256},
    host::{Cmd, Host, Kind, Meta},
};
use anyhow::{Context as _, Result, bail, ensure};
use std::{
    num::NonZero,
    path::{Path, PathBuf},
};

/// Major and minor: a patch release of Python keeps an environment working, a minor one breaks it.
pub type Version = (u8, u8);

/// Requirements with hashes. One text serves every Python from 3.8 on: its markers say which version each
/// gets.
#[derive(Debug, PartialEq, Eq)]
pub struct Lock {
    pub name: &'static str,
    text: &'static str,
    /// Below this it is worth fetching a newer Python than the distribution's.
    wants: Version,
}

pub const SERVICES: Lock =
    Lock { name: "services", text: include_str!("../../assets/python/services.txt"), wants: (3, 10) };
pub const DOCS: Lock =
    Lock { name: "docs", text: include_str!("../../assets/python/docs.txt"), wants: (3, 8) };
const UV: Lock = Lock { name: "uv", text: include_str!("../../assets/python/uv.txt"), wants: (3, 8) };

/// All environments, and whatever else Python needs.
pub const HOME: &str = "/opt/echoes-appliance";
/// The parent of every cache of ours.
pub const CACHE_HOME: &str = "/var/cache/echoes-appliance";
/// Downloads, until an environment is complete: what a killed install does not fetch twice. Files are hard
/// links into the environment, so on one file system it takes no room.
const CACHE: &str = "/var/cache/echoes-appliance/uv";
const SYSTEM_PYTHON: &str = "/usr/bin/python3";
const MARKER: &str = ".complete";
const COMPILED: &str = ".compiled";
/// uv leaves it, for everybody to write to; whoever holds it keeps another uv waiting.
const UV_LOCK: &str = ".lock";
/// Half of an environment is tests, and packages that MLflow wants for its clients: no service imports them.
const NEVER_LOADED: [&str; 9] = [
    "__pycache__",
    "databricks",
    "fontTools",
    "joblib",
    "matplotlib",
    "mpl_toolkits",
    "setuptools",
    "sklearn",
    "tests",
];
/// The one fetched where the distribution's is too old.
const NEWER_PYTHON: Version = (3, 12);
/// It comes from a host that many networks do not reach. A minute is enough for 35 MB at 5 Mbit/s, and is
/// what an install on such a network pays once.
const NEWER_PYTHON_SECONDS: u32 = 60;

/// What the services are on a given Python.
#[derive(Debug, PartialEq, Eq)]
pub struct Runs {
    pub since: Version,
    pub mlflow: &'static str,
    pub tensorboard: &'static str,
    /// What it costs in security to run these rather than the newest, for `validate` and `status`.
    pub cost: Option<&'static str>,
}

/// Newest first. A test holds this to the lock.
const RUNS: [Runs; 3] = [
    Runs { since: (3, 10), mlflow: "3.17.2", tensorboard: "2.21.0", cost: None },
    Runs {
        since: (3, 9),
        mlflow: "3.1.4",
        tensorboard: "2.21.0",
        cost: Some(
            "MLflow 3.1.4, the last for Python 3.9, does not check the Host header (CVE-2025-14279: a web page \
             can reach it through DNS rebinding) and has no fix for CVE-2026-2393 (webhooks can call internal \
             addresses), CVE-2026-2614 (a model version can name a local file) or CVE-2026-2651 (an upload can \
             overwrite another's artifact). nginx refuses foreign names and the sandbox limits what can be \
             reached; only people with a password can try the rest",
        ),
    },
    Runs {
        since: (3, 8),
        mlflow: "2.17.2",
        tensorboard: "2.14.0",
        cost: Some(
            "MLflow 2.17.2, the last for Python 3.8, does not check the Host header (CVE-2025-14279: a web page \
             can reach it through DNS rebinding) and has no fix for CVE-2025-11201 (a model source can run code \
             as the service's user), CVE-2026-2614 (a model version can name a local file) or CVE-2026-2651 (an \
             upload can overwrite another's artifact). Python 3.8 itself gets no fixes any more. nginx refuses \
             foreign names and the sandbox limits what can be reached; only people with a password can try the \
             rest",
        ),
    },
];

/// What the lock gives this Python.
pub fn choose(python: Version) -> Result<&'static Runs> {
    let (major, minor) = python;
    RUNS.iter().find(|runs| major == 3 && python >= runs.since).with_context(|| {
        format!("Python {major}.{minor} is too old for MLflow: 3.8 is the oldest, 3.10 the oldest for a current one")
    })
}

/// What the services will be once their environment is made, on a machine whose own Python is this one. A newer one that was
/// fetched is taken again.
pub fn expected(host: &Host, system: Version) -> Result<&'static Runs> {
    let fetched = match current(host, &SERVICES)? {
        Some(dir) => marker(host, &dir)?.map(|marker| marker.python),
        None => None,
    };
    choose(fetched.map_or(system, |fetched| fetched.max(system)))
}

/// A complete environment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Env {
    pub dir: PathBuf,
    pub python: Version,
}

impl Env {
    pub fn program(&self, name: &str) -> PathBuf {
        self.dir.join("bin").join(name)
    }
}

/// What is there in place of a lock's environment.
#[derive(Debug, PartialEq, Eq)]
pub enum Seen {
    Right(Env),
    Missing,
    Wrong(String),
    /// An image of a machine: environments are built when it runs.
    Later,
}

/// The name the services use: `/opt/echoes-appliance/services/bin/mlflow`.
pub fn link(lock: &Lock) -> PathBuf {
    Path::new(HOME).join(lock.name)
}

/// The file that changes with the environment the link leads to: what its users read.
pub fn marker_of(lock: &Lock) -> PathBuf {
    link(lock).join(MARKER)
}

/// The version of a package in the services' environment, by the directory that its installation left.
pub fn installed(host: &Host, package: &str) -> Option<String> {
    let lib = link(&SERVICES).join("lib");
    let python = host.list(&lib).ok()?.into_iter().find(|name| name.starts_with("python"))?;
    let names = host.list(&lib.join(python).join("site-packages")).ok()?;
    names.iter().find_map(|name| {
        let version = name.strip_prefix(package)?.strip_prefix('-')?.strip_suffix(".dist-info")?;
        Some(version.to_owned())
    })
}

/// Where the link points now: what to `switch` back to when a new environment does not answer.
pub fn current(host: &Host, lock: &Lock) -> Result<Option<PathBuf>> {
    Ok(match host.meta(&link(lock))?.map(|meta| meta.kind) {
        Some(Kind::Link(target)) => Some(target),
        _ => None,
    })
}

/// Starts nothing where the names say it all; an interpreter that is there and does not run shows in its services.
pub fn look(host: &Host, lock: &Lock) -> Result<Seen> {
    if host.is_live() { look_inside(host, lock) } else { Ok(Seen::Later) }
}

fn look_inside(host: &Host, lock: &Lock) -> Result<Seen> {
    let Some(dir) = current(host, lock)? else { return Ok(Seen::Missing) };
    let Some(marker) = marker(host, &dir)? else {
        return Ok(Seen::Wrong(format!("{} is incomplete", dir.display())));
    };
    if host.meta(&dir.join(UV_LOCK))?.is_some_and(|meta| meta.mode & 0o022 != 0) {
        return Ok(Seen::Wrong(format!("everybody may write to {}", dir.join(UV_LOCK).display())));
    }
    if marker.lock != sha256(lock.text) {
        return Ok(Seen::Wrong("made from other requirements than this version's".into()));
    }
    let python = dir.join("bin/python");
    Ok(match named_version(host, &python)?.map_or_else(|| version(host, &python), Ok) {
        Ok(python) if python == marker.python => Seen::Right(Env { dir, python }),
        Ok((major, minor)) => Seen::Wrong(format!("its Python became {major}.{minor}")),
        Err(e) => Seen::Wrong(format!("its Python does not run any more: {e:#}")),
    })
}

/// The environment, complete; made if need be. The link still points where it did.
pub fn make(host: &Host, lock: &Lock, say: &mut dyn FnMut(&str)) -> Result<Env> {
    ensure!(host.is_live(), "a Python environment can only be made on the running machine");
    make_inside(host, lock, say)
}

fn make_inside(host: &Host, lock: &Lock, say: &mut dyn FnMut(&str)) -> Result<Env> {
    let system = version(host, Path::new(SYSTEM_PYTHON))
        .context("looking for the distribution's Python (package python3)")?;
    // Not Host::make_dir: under root's umask of 077 nobody else could go in.
    host.run(&Cmd::new("install", ["-d", "-m", "755", HOME, &format!("{HOME}/env"), CACHE]))?;
    let uv = Uv::get(host, system, say)?;
    let python = match lock.wants {
        wants if system >= wants => SYSTEM_PYTHON.into(),
        _ => uv.newer_python(host, say)?.unwrap_or_else(|| SYSTEM_PYTHON.into()),
    };
    let version = version(host, &python)?;
    let env = Env { dir: dir(lock, version), python: version };
    if is_complete(host, lock, &env)? {
        host.remove(&env.dir.join(UV_LOCK))?;
        return Ok(env);
    }
    let (major, minor) = version;
    build(host, lock, &env, |host| uv.fill(host, lock, &env, &python, say))
        .with_context(|| format!("making the {} environment for Python {major}.{minor}", lock.name))?;
    Ok(env)
}

/// From here on the services start from `dir`. One rename: there is always one or the other.
pub fn switch(host: &Host, lock: &Lock, dir: &Path) -> Result<()> {
    host.link(&link(lock), dir)
}

/// Whether there is bytecode for what the services import.
pub fn is_compiled(host: &Host, lock: &Lock) -> Result<bool> {
    host.exists(&link(lock).join(COMPILED))
}

/// Compile the environment that the link leads to. A service may not write in there, and without bytecode each of
/// its starts takes twice the time.
pub fn compile(host: &Host, lock: &Lock, say: &mut dyn FnMut(&str)) -> Result<()> {
    let env = link(lock);
    let mut dirs = Vec::new();
    loaded(host, env.join("lib"), &mut dirs)?;
    for dir in &dirs {
        // Of a try cut short: what it was just writing has a name that no later try would use again.
        host.remove_tree(&dir.join("__pycache__"))?;
    }
    // A process for each processor, dealt the directories like cards. compileall has workers of its own, but they
    // outlive it when it is killed.
    let hands = std::thread::available_parallelism().map_or(1, NonZero::get);
    let python = env.join("bin/python").display().to_string();
    let compile = |hand: usize| {
        let dealt = dirs.iter().skip(hand).step_by(hands).map(|dir| format!("{}\n", dir.display()));
        let compileall = plain(&python, ["-I", "-m", "compileall", "-q", "-l", "-i", "-"]);
        host.ask(&compileall.stdin(dealt.collect::<String>()))
    };
    let outs: Vec<_> = std::thread::scope(|scope| {
        let hands: Vec<_> = (0..hands).map(|hand| scope.spawn(move || compile(hand))).collect();
        hands.into_iter().filter_map(|hand| hand.join().ok()).collect()
    });
    for out in outs {
        // It fails over each file that is not for this Python, and those are not imported either. That the rest is
        // there is known when the marker, which comes last, finds room.
        if !out?.ok() {
            say("some files are not for this Python");
        }
    }
    host.write(&env.join(COMPILED), 0o644, b"")
}

/// The directory, and those below it that services load from.
fn loaded(host: &Host, dir: PathBuf, all: &mut Vec<PathBuf>) -> Result<()> {
    for name in host.list(&dir)? {
        let path = dir.join(&name);
        let is_dir = host.meta(&path)?.is_some_and(|meta| meta.kind == Kind::Dir);
        if is_dir && !NEVER_LOADED.contains(&name.as_str()) {
            loaded(host, path, all)?;
        }
    }
    all.push(dir);
    Ok(())
}

/// Whether environments were made and not swept since: the cache is there meanwhile, and goes last.
pub fn is_unswept(host: &Host) -> Result<bool> {
    host.exists(Path::new(CACHE))
}

/// Remove every environment that no link points at, the download cache, and a fetched Python that none of
/// the rest uses. For when the new one has answered. Says what went.
pub fn sweep(host: &Host) -> Result<Vec<PathBuf>> {
    let envs = Path::new(HOME).join("env");
    let mut kept = Vec::new();
    let mut gone = Vec::new();
    for lock in [&SERVICES, &DOCS] {
        kept.extend(current(host, lock)?);
    }
    // The latest uv is kept: 60 MB against fetching it for every change.
    let uv = host.list(&envs)?.into_iter().filter(|name| name.starts_with("uv-")).map(|name| envs.join(name));
    for dir in uv {
        if let Some(marker) = marker(host, &dir)?
            && marker.lock == sha256(UV.text)
            && is_complete(host, &UV, &Env { dir: dir.clone(), python: marker.python })?
        {
            kept.push(dir);
        }
    }
    for name in host.list(&envs)? {
        let dir = envs.join(name);
        if !kept.contains(&dir) {
            host.remove_tree(&dir)?;
            gone.push(dir);
        }
    }
    let pythons = Path::new(HOME).join("python");
    let mut in_use = false;
    for dir in &kept {
        let about = host.read_text(&dir.join("pyvenv.cfg"))?.unwrap_or_default();
        in_use |= about.contains(&*pythons.to_string_lossy());
    }
    if !in_use && host.exists(&pythons)? {
        host.remove_tree(&pythons)?;
        gone.push(pythons);
    }
    let cache = PathBuf::from(CACHE);
    if host.exists(&cache)? {
        host.remove_tree(&cache)?;
        gone.push(cache);
    }
    Ok(gone)
}

/// What to try, from what pip or uv said.
pub fn hint(said: &str) -> &'static str {
    let said = said.to_lowercase();
    let has = |words: &[&str]| words.iter().any(|word| said.contains(word));
    if has(&["no space left", "os error 28", "errno 28"]) {
        "free 2 GB on the disk that holds /opt and /var/cache, then run this again: it continues"
    } else if has(&["ensurepip", "python3-venv", "no module named venv"]) {
        "install the package python3-venv"
    } else if has(&["certificate", "unknownissuer", "ssl"]) {
        "if a proxy here signs its own certificates, add its authority to /usr/local/share/ca-certificates and \
         run update-ca-certificates"
    } else if has(&["hash mismatch", "do not match the hashes", "hashes"]) {
        "the package index served other files than the ones this version was tested with: try another index \
         (index-url in /etc/pip.conf), and be suspicious of this one"
    } else if has(&[
        "dns",
        "name resolution",
        "failed to lookup",
        "connect",
        "timed out",
        "timeout",
        "unreachable",
    ]) {
        "check the network; behind a mirror or proxy set index-url or proxy in /etc/pip.conf, which is read \
         here too; then run this again: it continues"
    } else if has(&[
        "no solution",
        "no matching distribution",
        "no wheels",
        "not found in the package registry",
    ]) {
        "the package index lacks a needed version or a wheel for this machine: a mirror may lag, try another \
         (index-url in /etc/pip.conf)"
    } else {
        "run this again: it continues where it stopped"
    }
}

/// Whatever uv must be told for it to go where this machine's pip goes: uv does not read pip's settings.
/// `pip` is the answer of `pip config list`, `env` the environment uv inherits, whose own words for uv win.
pub fn settings(pip: &str, env: &[(String, String)]) -> Vec<(String, String)> {
    // As pip weighs them: a later place in this list wins.
    let said = |key: &str| {
        ["global", "install", ":env:"]
            .iter()
            .rev()
            .find_map(|place| pip.lines().find_map(|line| line.strip_prefix(&format!("{place}.{key}="))))
            .map(unquote)
            .filter(|value| !value.trim().is_empty())
    };
    let set = |name: &str| env.iter().any(|(key, value)| key == name && !value.is_empty());
    let words = |value: String| value.split_whitespace().collect::<Vec<_>>().join(" ");
    let mut out: Vec<(String, String)> = Vec::new();
    let mut put = |name: &str, unless: &[&str], value: Option<String>| {
        if let Some(value) = value
            && !set(name)
            && !unless.iter().any(|other| set(other))
        {
            out.push((name.into(), value));
        }
    };
    put("UV_DEFAULT_INDEX", &["UV_INDEX_URL"], said("index-url"));
    put("UV_INDEX", &["UV_EXTRA_INDEX_URL"], said("extra-index-url").map(words));
    // pip looks in every index and so must we; what this usually risks, a stranger's package under our
    // package's name, the hashes rule out.
    put("UV_INDEX_STRATEGY", &[], Some("unsafe-best-match".into()));
    put("UV_FIND_LINKS", &[], said("find-links").map(|value| words(value).replace(' ', ",")));
    put(
        "UV_NO_INDEX",
        &[],
        said("no-index").filter(|v| ["1", "true", "yes", "on"].contains(&&*v.to_lowercase())),
    );
    put("UV_INSECURE_HOST", &[], said("trusted-host").map(words));
    // A few hundred files: three tries for each are too few where a hiccup lasts half a minute.
    put("UV_HTTP_RETRIES", &[], Some("6".into()));
    put("UV_HTTP_TIMEOUT", &[], said("timeout").or_else(|| said("default-timeout")));
    // The authorities this machine trusts, rather than the list inside uv.
    put("UV_SYSTEM_CERTS", &["SSL_CERT_FILE", "SSL_CERT_DIR"], Some("true".into()));
    put("SSL_CERT_FILE", &[], said("cert"));
    put("SSL_CLIENT_CERT", &[], said("client-cert"));
    put("ALL_PROXY", &["all_proxy", "HTTPS_PROXY", "https_proxy"], said("proxy"));
    out
}

/// A Python string literal, as `pip config list` prints its values.
fn unquote(literal: &str) -> String {
    let inner = literal.trim();
    let inner = inner.get(1..inner.len().saturating_sub(1)).unwrap_or_default();
    let mut out = String::new();
    let mut chars = inner.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => match chars.next() {
                Some('n') => out.push('\n'),
                Some('t') => out.push('\t'),
                Some(other) => out.push(other),
                None => {}
            },
            c => out.push(c),
        }
    }
    out
}

/// uv, in an environment of its own, and what it must be told on this machine.
struct Uv {
    program: PathBuf,
    settings: Vec<(String, String)>,
}

impl Uv {
    /// Installed by the distribution's pip, which knows how to reach the package index from here.
    fn get(host: &Host, system: Version, say: &mut dyn FnMut(&str)) -> Result<Self> {
        let env = Env { dir: dir(&UV, system), python: system };
        let python = env.program("python").display().to_string();
        if !is_complete(host, &UV, &env)? {
            build(host, &UV, &env, |host| {
                host.run_saying(&plain(SYSTEM_PYTHON, ["-m", "venv", &env.dir.to_string_lossy()]), say)?;
                // Without -I: pip is to see its own settings in the environment. PIP_USER would send the
                // packages to root's home.
                let args = [
                    "-m",
                    "pip",
                    "--no-cache-dir",
                    "install",
                    "--require-hashes",
                    "--only-binary",
                    ":all:",
                    "-r",
                    "/dev/stdin",
                ];
                let pip = plain(&python, args).env("PIP_USER", "0").env("PIP_NO_INPUT", "1");
                host.run_saying(&pip.stdin(UV.text), say).map(drop)
            })
            .context("installing uv, which installs the rest")?;
        }
        let pip = host.run(&plain(&python, ["-m", "pip", "config", "list"]))?;
        let inherited = host.run(&Cmd::new("env", ["-0"]))?;
        let inherited: Vec<_> = inherited
            .split('\0')
            .filter_map(|pair| pair.split_once('='))
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .collect();
        let mut settings = settings(&pip, &inherited);
        if host.exists(Path::new("/etc/uv/uv.toml"))? {
            // Whoever wrote that has told uv itself where to go.
            settings.retain(|(key, _)| !key.contains("INDEX") && key != "UV_FIND_LINKS");
        }
        Ok(Self { program: env.program("uv"), settings })
    }

    fn cmd<'a>(&self, args: impl IntoIterator<Item = &'a str>) -> Cmd {
        let cmd = plain(&self.program.to_string_lossy(), args);
        self.settings
            .iter()
            .fold(cmd, |cmd, (key, value)| cmd.env(key, value))
            .env("UV_CACHE_DIR", CACHE)
            .env("UV_PYTHON_INSTALL_DIR", &format!("{HOME}/python"))
            .env("UV_LINK_MODE", "hardlink")
            .env("UV_NO_PROGRESS", "1")
    }

    /// A newer Python, if it can be had.
    fn newer_python(&self, host: &Host, say: &mut dyn FnMut(&str)) -> Result<Option<PathBuf>> {
        let wanted = format!("{}.{}", NEWER_PYTHON.0, NEWER_PYTHON.1);
        let find = self.cmd(["python", "find", "--managed-python", "--no-python-downloads", &wanted]);
        let found = host.ask(&find)?;
        if found.ok() {
            return Ok(Some(found.stdout.trim().into()));
        }
        say(&format!("fetching Python {wanted}, as this distribution's is too old for the newest MLflow"));
        let mut install = self.cmd(["python", "install", "--managed-python", "--no-bin", &wanted]);
        // timeout(1), as uv tries again and again where packets are dropped.
        let at = install.args.iter().position(|arg| Path::new(arg) == self.program).unwrap_or_default();
        let limit = NEWER_PYTHON_SECONDS.to_string();
        install.args.splice(at..at, ["timeout", "--kill-after=5", &limit].map(str::to_owned));
        let out = host.ask(&install)?;
        if out.ok() {
            let found = host.ask(&find)?;
            return Ok(found.ok().then(|| found.stdout.trim().into()));
        }
        let why =
            out.stderr.lines().map(str::trim).rfind(|line| !line.is_empty()).unwrap_or("it took too long");
        say(&format!("Python {wanted} could not be had ({why}): going on with the distribution's"));
        Ok(None)
    }

    fn fill(
        &self,
        host: &Host,
        lock: &Lock,
        env: &Env,
        python: &Path,
        say: &mut dyn FnMut(&str),
    ) -> Result<()> {
        let dir = env.dir.to_string_lossy();
        let python = python.to_string_lossy();
        // --directory: or the pyproject.toml of whatever directory we were started in would have a say.
        let venv = ["--directory", HOME, "venv", "--quiet", "--no-project", "--python", &python, &dir];
        host.run_saying(&self.cmd(venv), say)?;
        let into = env.program("python").display().to_string();
        let install = [
            "--directory",
            HOME,
            "pip",
            "install",
            "--python",
            &into,
            "--require-hashes",
            "--no-build",
            "--no-deps",
            "-r",
            "-",
        ];
        let mut brief = |line: &str| {
            // One line for each of a hundred packages says nothing that the lock does not.
            if !line.starts_with(" + ") {
                say(line);
            }
        };
        host.run_saying(&self.cmd(install).stdin(lock.text), &mut brief).map(drop)
    }
}

/// Build where it stays: wiped first, as an unmarked one is what a crash left; marked last.
fn build(host: &Host, lock: &Lock, env: &Env, fill: impl FnOnce(&Host) -> Result<()>) -> Result<()> {
    host.remove_tree(&env.dir)?;
    fill(host)?;
    host.remove(&env.dir.join(UV_LOCK))?;
    // The marker must not reach the disk before what it vouches for.
    host.run(&Cmd::new("sync", ["--file-system", &*env.dir.to_string_lossy()]))?;
    let (major, minor) = env.python;
    let text = format!("lock {}\npython {major}.{minor}\n", sha256(lock.text));
    host.write(&env.dir.join(MARKER), 0o644, text.as_bytes())
}

fn is_complete(host: &Host, lock: &Lock, env: &Env) -> Result<bool> {
    let whole = marker(host, &env.dir)?
        .is_some_and(|marker| marker.lock == sha256(lock.text) && marker.python == env.python);
    Ok(whole && version(host, &env.program("python")).is_ok_and(|python| python == env.python))
}

struct Marker {
    lock: String,
    python: Version,
}

/// None too if it cannot be understood: such an environment is built anew.
fn marker(host: &Host, dir: &Path) -> Result<Option<Marker>> {
    let text = host.read_text(&dir.join(MARKER))?.unwrap_or_default();
    let field = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
    Ok(field("lock ")
        .zip(field("python ").and_then(parse))
        .map(|(lock, python)| Marker { lock: lock.into(), python }))
}

/// `…/env/services-0123456789ab`: the same requirements on the same Python are the same directory.
fn dir(lock: &Lock, python: Version) -> PathBuf {
    let id = sha256(format!("{}\n{}.{}\n", lock.text, python.0, python.1));
    Path::new(HOME).join("env").join(format!("{}-{}", lock.name, first(&id, 12)))
}

fn version(host: &Host, python: &Path) -> Result<Version> {
    let ask = Cmd::new(
        &python.to_string_lossy(),
        ["-I", "-S", "-c", "import sys; print('%d.%d' % sys.version_info[:2])"],
    );
    let said = host.run(&ask)?;
    let Some(version) = parse(said.trim()) else { bail!("{} answered {said:?}", python.display()) };
    Ok(version)
}

/// By the name of the program that the links lead to, which is python3.13 in Debian and from uv. None where it says
/// nothing, or there is no such program.
fn named_version(host: &Host, python: &Path) -> Result<Option<Version>> {
    let mut path = python.to_owned();
    // The kernel gives up after forty; an environment has three.
    for _ in 0..8 {
        match host.meta(&path)? {
            Some(Meta { kind: Kind::Link(target), .. }) => {
                path = path.parent().unwrap_or(Path::new("/")).join(target)
            }
            Some(Meta { kind: Kind::File, mode, .. }) if mode & 0o111 != 0 => {
                let name = path.file_name().unwrap_or_default().to_string_lossy();
                return Ok(name.strip_prefix("python").and_then(parse));
            }
            _ => return Ok(None),
        }
    }
    Ok(None)
}

fn parse(text: &str) -> Option<Version> {
    let (major, minor) = text.split_once('.')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

/// With an ordinary umask, whatever root's is, and without what another Python left in the environment. It does not
/// outlive us, and where PID namespaces may be made, neither does what it starts (venv runs pip as a child's child): the
/// next run would find them at work in the directory that it wipes and builds again.
fn plain<'a>(program: &str, args: impl IntoIterator<Item = &'a str>) -> Cmd {
    let script = "umask 022; unset PYTHONPATH PYTHONHOME VIRTUAL_ENV CONDA_PREFIX; \
                  alone='unshare --pid --fork --kill-child=KILL'; $alone true 2> /dev/null || alone=; \
                  exec setpriv --pdeathsig KILL $alone \"$@\"";
    let shell = ["-c", script, "sh", program].map(str::to_owned);
    Cmd::new("/bin/sh", shell.into_iter().chain(args.into_iter().map(str::to_owned)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::{Exec, Output};
    use std::{
        path::PathBuf,
        sync::{
            Arc,
            atomic::{AtomicUsize, Ordering::Relaxed},
        },
    };

    #[test]
    fn what_a_python_runs_is_what_the_lock_gives_it() {
        let marks = [
            "python_full_version >= '3.10'",
            "python_full_version == '3.9.*'",
            "python_full_version < '3.9'",
        ];
        for (runs, mark) in RUNS.iter().zip(marks) {
            let line = format!("mlflow=={} ; {mark} \\", runs.mlflow);
            assert!(SERVICES.text.lines().any(|l| l == line), "{line}");
            assert!(SERVICES.text.contains(&format!("\ntensorboard=={}", runs.tensorboard)));
            assert!(runs.cost.is_none_or(|cost| cost.contains(runs.mlflow)));
        }
        let mlflows = SERVICES.text.lines().filter(|l| l.starts_with("mlflow==")).count();
        assert_eq!(mlflows, RUNS.len(), "the lock has another split of Python versions");
    }

    #[test]
    fn every_python_from_3_8_gets_something_and_older_ones_a_reason() {
        let got = |minor| choose((3, minor)).map(|runs| runs.mlflow).map_err(|e| e.to_string());
        assert_eq!([8, 9, 10, 14].map(got), [Ok("2.17.2"), Ok("3.1.4"), Ok("3.17.2"), Ok("3.17.2")]);
        assert!(got(7).unwrap_err().starts_with("Python 3.7 is too old"));
        assert!(choose((2, 7)).is_err());
    }

    #[test]
    fn a_lock_names_no_host_and_hashes_everything() {
        for lock in [&UV, &SERVICES, &DOCS] {
            assert!(!lock.text.contains("://"), "{}", lock.name);
            assert!(!lock.text.lines().any(|line| line.starts_with('-')), "{}", lock.name);
            let pins = lock.text.lines().filter(|line| line.contains("==") && !line.starts_with(' '));
            for pin in pins {
                assert!(pin.ends_with('\\'), "{}: {pin} has no hash", lock.name);
            }
        }
    }

    #[test]
    fn uv_goes_where_pip_goes() {
        let pip = ":env:.cert='/etc/ssl/one.pem'\n\
            global.cert='/etc/ssl/two.pem'\n\
            global.extra-index-url='\\nhttps://a/simple\\nhttps://b/simple'\n\
            global.index-url=\"https://u:p'w@m.example/simple\"\n\
            global.trusted-host='m.example'\n\
            global.timeout='60'\n\
            install.timeout='9'\n";
        let pair = |(a, b): &(&str, &str)| ((*a).to_owned(), (*b).to_owned());
        let expect: Vec<_> = [
            ("UV_DEFAULT_INDEX", "https://u:p'w@m.example/simple"),
            ("UV_INDEX", "https://a/simple https://b/simple"),
            ("UV_INDEX_STRATEGY", "unsafe-best-match"),
            ("UV_INSECURE_HOST", "m.example"),
            ("UV_HTTP_RETRIES", "6"),
            ("UV_HTTP_TIMEOUT", "9"),
            ("UV_SYSTEM_CERTS", "true"),
            ("SSL_CERT_FILE", "/etc/ssl/one.pem"),
        ]
        .iter()
        .map(pair)
        .collect();
        assert_eq!(settings(pip, &[]), expect);
        let own = [("UV_INDEX_URL", "https://mine/"), ("SSL_CERT_FILE", "/x")].map(|p| pair(&p));
        let left: Vec<_> = settings(pip, &own).into_iter().map(|(key, _)| key).collect();
        let expect =
            ["UV_INDEX", "UV_INDEX_STRATEGY", "UV_INSECURE_HOST", "UV_HTTP_RETRIES", "UV_HTTP_TIMEOUT"];
        assert_eq!(left, expect);
    }

    #[test]
    fn a_machine_without_pip_settings_uses_its_own_authorities() {
        let keys: Vec<_> = settings("", &[]).into_iter().map(|(key, _)| key).collect();
        assert_eq!(keys, ["UV_INDEX_STRATEGY", "UV_HTTP_RETRIES", "UV_SYSTEM_CERTS"]);
    }

    #[test]
    fn what_uv_said_has_something_to_try() {
        let table = [
            ("failed to write to file: No space left on device (os error 28)", "free 2 GB"),
            (
                "The virtual environment was not created successfully because ensurepip is not available",
                "python3-venv",
            ),
            ("invalid peer certificate: UnknownIssuer", "update-ca-certificates"),
            ("Hash mismatch for `mlflow==3.17.2`", "be suspicious"),
            ("error resolving DNS: failed to lookup address information", "check the network"),
            ("because there is no version of mlflow==3.17.2: No solution found", "a mirror may lag"),
            ("", "run this again"),
        ];
        for (said, expect) in table {
            assert!(hint(said).contains(expect), "{said}: {}", hint(said));
        }
    }

    /// Python, pip and uv, as far as directories go; killed before and after the nth command.
    #[derive(Clone)]
    struct World {
        root: PathBuf,
        system: &'static str,
        newer: Option<&'static str>,
        fuse: Arc<AtomicUsize>,
    }

    impl Exec for World {
        fn exec(&self, cmd: &Cmd, _: &mut dyn FnMut(&str)) -> Result<Output> {
            let burn = || match self.fuse.load(Relaxed) {
                0 => bail!("killed"),
                left => {
                    self.fuse.store(left - 1, Relaxed);
                    Ok(())
                }
            };
            let at = |path: &str| self.root.join(path.trim_start_matches('/'));
            let host = Host::new(&self.root, crate::host::System);
            let args: Vec<_> = cmd.args.iter().map(String::as_str).collect();
            let after = |flag: &str| args.iter().position(|a| *a == flag).map_or("", |i| args[i + 1]);
            let python = |path: &str| match path {
                SYSTEM_PYTHON => Ok(Some(self.system.to_owned())),
                path => host.read_text(Path::new(path)),
            };
            let new_venv = |dir: &str, version: &str| {
                let bin = Path::new(dir).join("bin/python");
                assert!(!at(dir).exists(), "{dir} was not wiped");
                host.write(&bin, 0o755, version.as_bytes())
            };
            burn()?;
            let ok = |stdout: &str| Ok(Output { stdout: stdout.to_owned(), ..Output::default() });
            let no = || Ok(Output { code: 1, stderr: "client error (Connect)".into(), ..Output::default() });
            let out = if args.contains(&"-S") {
                match python(&cmd.program)? {
                    Some(version) => ok(&version),
                    None => no(),
                }
            } else if args.contains(&"venv") {
                let base = if args.contains(&"--python") { after("--python") } else { SYSTEM_PYTHON };
                new_venv(args.last().unwrap(), &python(base)?.unwrap())?;
                ok("")
            } else if args.contains(&"install") && args.contains(&"pip") {
                assert!(args.contains(&"--require-hashes") && !cmd.stdin.is_empty());
                let into = if args.contains(&"--python") { after("--python") } else { args[3] };
                let dir = Path::new(into).parent().unwrap().parent().unwrap();
                host.write(&dir.join("installed"), 0o644, &cmd.stdin)?;
                ok("")
            } else if args.contains(&"find") || args.contains(&"install") && args.contains(&"python") {
                let path = "/opt/echoes-appliance/python/bin/python3.12";
                match (self.newer, args.contains(&"install")) {
                    (Some(version), true) => {
                        host.write(Path::new(path), 0o755, version.as_bytes())?;
                        ok("")
                    }
                    (_, false) if at(path).exists() => ok(path),
                    _ => no(),
                }
            } else {
                ok("")
            };
            burn()?;
            out
        }
    }

    fn world(system: &'static str, newer: Option<&'static str>) -> (tempfile::TempDir, World) {
        let dir = tempfile::tempdir().unwrap();
        let world =
            World { root: dir.path().into(), system, newer, fuse: Arc::new(AtomicUsize::new(usize::MAX)) };
        (dir, world)
    }

    fn install(host: &Host) -> Result<Env> {
        let env = make_inside(host, &SERVICES, &mut |_| {})?;
        switch(host, &SERVICES, &env.dir)?;
        sweep(host)?;
        Ok(env)
    }

    #[test]
    fn killed_anywhere_and_run_again_it_ends_in_the_same_place() {
        for fuse in 0.. {
            let (_dir, world) = world("3.11", None);
            let host = Host::new(&world.root, world.clone());
            world.fuse.store(fuse, Relaxed);
            let whole = install(&host).is_ok();
            world.fuse.store(usize::MAX, Relaxed);
            if !whole {
                // Until the switch, nothing may look right.
                assert_eq!(look_inside(&host, &SERVICES).unwrap(), Seen::Missing, "fuse {fuse}");
            }
            let env = install(&host).unwrap();
            assert_eq!(look_inside(&host, &SERVICES).unwrap(), Seen::Right(env.clone()), "fuse {fuse}");
            let installed = host.read_text(&env.dir.join("installed")).unwrap().unwrap();
            assert_eq!(installed, SERVICES.text);
            assert_eq!(host.list(Path::new("/opt/echoes-appliance/env")).unwrap().len(), 2, "fuse {fuse}");
            if whole {
                assert!(fuse > 10, "only {fuse} steps were killed");
                return;
            }
        }
    }

    #[test]
    fn an_old_distribution_gets_a_newer_python_where_that_can_be_had() {
        for (newer, expect) in [(Some("3.12"), (3, 12)), (None, (3, 8))] {
            let (_dir, world) = world("3.8", newer);
            let host = Host::new(&world.root, world.clone());
            let env = install(&host).unwrap();
            assert_eq!(env.python, expect);
            assert_eq!(look_inside(&host, &SERVICES).unwrap(), Seen::Right(env));
        }
    }

    #[test]
    fn after_a_distribution_upgrade_it_is_made_anew_and_the_old_one_goes_last() {
        let (_dir, mut world) = world("3.11", None);
        let host = Host::new(&world.root, world.clone());
        let old = install(&host).unwrap();
        world.system = "3.13";
        let host = Host::new(&world.root, world.clone());
        host.write(&old.program("python"), 0o755, b"3.13").unwrap();
        let seen = look_inside(&host, &SERVICES).unwrap();
        assert_eq!(seen, Seen::Wrong("its Python became 3.13".into()));
        let new = make_inside(&host, &SERVICES, &mut |_| {}).unwrap();
        assert_eq!(current(&host, &SERVICES).unwrap(), Some(old.dir.clone()));
        switch(&host, &SERVICES, &new.dir).unwrap();
        assert!(host.exists(&old.dir).unwrap());
        assert!(sweep(&host).unwrap().contains(&old.dir));
        assert_eq!(look_inside(&host, &SERVICES).unwrap(), Seen::Right(new));
    }

    #[test]
    fn fuzz_pip_settings_are_read_and_its_words_have_a_hint() {
        crate::fuzz::run(
            "pip",
            &["global.index-url='", "install.cert=", ":env:.proxy='x'", "\\'"],
            |bytes| {
                let text = String::from_utf8_lossy(bytes);
                let _ = (settings(&text, &[]), hint(&text), text.lines().filter_map(parse).count());
                Ok(())
            },
        );
    }
}
