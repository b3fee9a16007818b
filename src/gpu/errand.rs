//! What happens on a machine, carried out: this program goes over there once, by its hash, and is then asked for
//! everything else. Nothing is needed there but a shell and sha256sum. Whatever breaks, asking again goes on where it
//! stopped.

mod data;

use super::{
    agent::{
        sandbox::{self, Sandbox},
        site::{Ask, Look, Making, Order, Root, Secrets, Site, Standing},
    },
    code::ensure_among,
    home::{Fetched, Home, Quota, dir_of},
    job::{Exit, Hopeless, Nonsense, Stand, is_nonsense},
    provenance::{self, Tags},
    provider::Machine,
    reader::{FileSource, Odd, Reader},
    spec::{Source, Spec},
    target::Target,
    tree::{self, Changed, Known, Squeeze, Tree},
    wire::{Wire, is_lost, shown},
};
use crate::{
    hash::{first, sha256},
    host::{
        Cmd, Host, PROGRAM,
        beneath::{Beneath, Rel},
        process::{Bounds, Over, Pipe},
    },
    journal,
    web::hold,
};
use anyhow::{Context as _, Result, anyhow, bail, ensure};
use std::{
    cell::OnceCell,
    io::{Read as _, Write as _},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, OnceLock,
        atomic::{AtomicBool, Ordering},
        mpsc::channel,
    },
    time::{Duration, Instant},
};

/// A dataset that came in parts is read through, over there, before it is gone on with.
const SENDING: Bounds =
    Bounds { silence: Duration::from_secs(20 * 60), whole: Duration::from_secs(24 * 3600) };
/// The driver of a run has a deadline to keep: whoever answers slower than that is asked again later.
const ASKING: Bounds = Bounds { silence: Duration::from_secs(60), whole: Duration::from_secs(1800) };
/// What comes home comes in turns, each of which begins with what is newest.
const FETCHING: Bounds = Bounds { silence: Duration::from_secs(60), whole: Duration::from_secs(15 * 60) };
const TURN: Duration = Duration::from_secs(120);
/// A script is followed by conversations that are begun anew now and then: nothing depends on one that stays for days.
const FOLLOWING: Bounds = Bounds { silence: Duration::from_secs(45), whole: Duration::from_secs(10 * 60) };
pub const FOLLOWED: Duration = Duration::from_secs(8 * 60);
/// Of a script whose words cannot be written here.
const UNHEARD: Duration = Duration::from_secs(2);
/// Somebody saves a file just then; not every time.
const TRIES: u32 = 5;

/// Of what a machine says while it makes an environment, so much is kept here: it may never come to an end.
const LINES: usize = 2000;
const LINE: usize = 400;
const MORE: &str = "it says more than anybody reads";

/// What an errand knows besides what is frozen in the run.
pub struct Given {
    /// Whose script it is, on a machine where we are root.
    pub user: Option<String>,
    /// Reads the project, the datasets and what came home before: never more than the run's person may.
    pub reader: Reader,
    /// What shuts the script in, on the machine that is headquarters itself.
    pub sandbox: Option<Sandbox>,
    /// Where datasets are here: `ucf101` below it.
    pub data: PathBuf,
    /// Where results go: a directory for each run below it.
    pub results: PathBuf,
    /// Whose they are then.
    pub owner: Option<(u32, u32)>,
    /// What came home is remembered in here.
    pub memory: PathBuf,
    /// For the script, besides the run's own: where MLflow is, and who it is there.
    pub env: Vec<(String, String)>,
    /// What every MLflow run of the script's is tagged with, besides what is found out on the way; nothing where there is
    /// no MLflow.
    pub tags: Tags,
    /// As `env`; in no journal, argument or log.
    pub secrets: Secrets,
    /// Who signed what MLflow shows, in PEM.
    pub authority: Option<String>,
    pub quota: Quota,
    /// Whether the run has to end. What is sent may take hours, and whoever drives the run is not to be kept from ending it.
    pub over: Option<Over>,
}

/// One run's dealings with its machine.
pub struct Errand<'a> {
    host: &'a Host,
    given: Given,
    say: &'a (dyn Fn(&str) + Sync),
    /// What goes over there: this program, unless a test says otherwise.
    program: PathBuf,
    hash: OnceLock<String>,
    home: Mutex<Option<Arc<Home<'a>>>>,
    /// What this run is made from, as far as it was looked at.
    made_from: Mutex<Tags>,
    /// Whoever is still spoken with is not needed any more.
    closing: Arc<AtomicBool>,
}

/// A conversation with the agent.
struct Talk {
    wire: Wire,
    pipe: Pipe,
}

impl<'a> Errand<'a> {
    pub fn new(host: &'a Host, given: Given, say: &'a (dyn Fn(&str) + Sync)) -> Self {
        let program = "/proc/self/exe".into();
        let (hash, home, made_from) = (OnceLock::new(), Mutex::new(None), Mutex::default());
        let closing = Arc::default();
        Self { host, given, say, program, hash, home, made_from, closing }
    }

    #[cfg(test)]
    fn with(self, program: PathBuf) -> Self {
        Self { program, ..self }
    }

    fn site(spec: &Spec, machine: &Machine) -> Site {
        Site { home: machine.home.clone(), run: spec.run.clone() }
    }

    fn hash(&self) -> Result<&str> {
        if self.hash.get().is_none() {
            let program =
                self.host.read_at_most(&self.program, PROGRAM)?.context("this program went away")?;
            let (hash, _) = tree::digest(&mut program.as_slice())?;
            let _ = self.hash.set(hash);
        }
        self.hash.get().map(String::as_str).context("this program has no hash")
    }

    fn there(&self, machine: &Machine) -> Result<PathBuf> {
        Ok(machine.home.join("bin").join(self.hash()?))
    }

    /// One of the agent's verbs, as a command over there. It ends in 127 where the program is not there yet.
    fn verb(&self, spec: &Spec, machine: &Machine, verb: &str, root: bool) -> Result<Cmd> {
        let program = self.there(machine)?.join("echoes-appliance");
        let mut words = Self::site(spec, machine).words(verb);
        words.extend(self.given.user.iter().flat_map(|user| ["--as".to_owned(), user.clone()]));
        let sandbox = self.given.sandbox.as_ref().filter(|_| matches!(verb, "attend" | "start"));
        words.extend(sandbox.into_iter().flat_map(Sandbox::words));
        // Who is not root there may become it without a word, as on Azure's machines: only root's units outlive a
        // restart of the machine.
        let elevate = "if [ \"$(id -u)\" != 0 ] && [ -d /run/systemd/system ] && sudo -n true 2>/dev/null; then \
                       exec sudo -n \"$0\" \"$@\" --as \"$(id -un)\"; fi; ";
        let elevate = if root && self.given.user.is_none() { elevate } else { "" };
        let program = program.to_str().context("the agent's home is no UTF-8")?.to_owned();
        let script = format!("[ -x \"$0\" ] || exit 127; {elevate}exec \"$0\" \"$@\"");
        let args = ["-c".to_owned(), script, program].into_iter().chain(words);
        Ok(machine.target.cmd(Cmd::new("sh", args.collect::<Vec<_>>())))
    }

    /// This program is over there, whole, under its hash.
    fn bring(&self, machine: &Machine) -> Result<()> {
        let dir = self.there(machine)?;
        let program = self.host.read_at_most(&self.program, PROGRAM)?.context("this program went away")?;
        // What is removed has a name, whatever we were given.
        let script = "set -eu; umask 022; case \"${1:?}\" in /?*) ;; *) exit 64 ;; esac; \
                      : \"${2:?}\"; mkdir -p \"$1\"; new=\"$1/.new.$$\"; trap 'rm -f \"$new\"' EXIT; \
                      cat > \"$new\"; set -- \"$1\" \"$2\" $(sha256sum < \"$new\"); [ \"$2\" = \"$3\" ]; \
                      chmod 755 \"$new\"; mv -f \"$new\" \"$1/echoes-appliance\"; trap - EXIT";
        let dir = dir.to_str().context("the agent's home is no UTF-8")?;
        let cmd = machine.target.cmd(Cmd::new("sh", ["-c", script, "sh", dir, self.hash()?]));
        let (status, said) =
            self.run(&cmd, &program, SENDING).context("bringing the agent to the machine")?;
        ensure!(status == 0, "bringing the agent to the machine: exit status {status}: {said}");
        Ok(())
    }

    /// Run it over there, within bounds: a machine may take for ever. Its status, and what it complained about.
    fn run(&self, cmd: &Cmd, input: &[u8], bounds: Bounds) -> Result<(i32, String)> {
        let (mut pipe, mut from, mut to) = self.host.pipe(cmd, bounds, self.over(bounds).as_ref())?;
        // Who ends without reading it all has said why.
        let fed = to.write_all(input);
        drop(to);
        let heard = from.by_ref().take(64 << 10).read_to_end(&mut Vec::new());
        match (pipe.status(), fed.and(heard)) {
            (Some(status), _) => Ok((status, shown(&pipe.said()))),
            (None, Err(error)) => Err(error).with_context(|| format!("running `{}`", cmd.program)),
            (None, Ok(_)) => bail!("`{}` does not come to an end", cmd.program),
        }
    }

    /// What does not take long is also how a run is ended; what goes on beside it ends with it.
    fn over(&self, bounds: Bounds) -> Option<Over> {
        if bounds == FOLLOWING || bounds == FETCHING {
            let closing = Arc::clone(&self.closing);
            return Some(Arc::new(move || closing.load(Ordering::Relaxed)));
        }
        self.given.over.clone().filter(|_| bounds.whole > ASKING.whole)
    }

    /// End what is still spoken beside the loop.
    pub fn close(&self) {
        self.closing.store(true, Ordering::Relaxed);
    }

    fn talk(&self, spec: &Spec, machine: &Machine, bounds: Bounds) -> Result<Talk> {
        let cmd = self.verb(spec, machine, "attend", false)?;
        let cmd = match &self.given.sandbox {
            // An environment may be made in this conversation, by what its packages bring.
            Some(_) if bounds == SENDING && machine.target == Target::Local => {
                sandbox::apart(self.host, cmd)?
            }
            _ => cmd,
        };
        let first = self.connect(&cmd, bounds);
        let missing = first.as_ref().is_err_and(|(_, status)| *status == Some(127));
        if !missing {
            return first.map_err(|(error, _)| error);
        }
        (self.say)("bringing the agent to the machine");
        self.bring(machine)?;
        self.connect(&cmd, bounds).map_err(|(error, _)| error)
    }

    fn connect(&self, cmd: &Cmd, bounds: Bounds) -> Result<Talk, (anyhow::Error, Option<i32>)> {
        let (mut pipe, from, to) =
            self.host.pipe(cmd, bounds, self.over(bounds).as_ref()).map_err(|error| (error, None))?;
        match Wire::asking(from, to) {
            Ok(wire) => Ok(Talk { wire, pipe }),
            Err(error) => {
                let (status, said) = (pipe.status(), pipe.said());
                let known = said.is_empty() || is_nonsense(&error);
                let said = if known { error } else { anyhow!("{}", shown(&said)) };
                Err((said.context("reaching the agent"), status))
            }
        }
    }

    /// Hold one conversation. What the other side complained about on its way out is part of the error.
    fn hold<T>(
        &self,
        spec: &Spec,
        machine: &Machine,
        bounds: Bounds,
        doing: impl FnOnce(&mut Wire) -> Result<T>,
    ) -> Result<T> {
        let Talk { mut wire, mut pipe } = self.talk(spec, machine, bounds)?;
        let held = doing(&mut wire);
        drop(wire);
        held.map_err(|error| {
            // Why a connection broke, ssh alone knows.
            let said =
                if is_lost(&error) && pipe.status().is_some() { shown(&pipe.said()) } else { String::new() };
            if said.is_empty() { error } else { error.context(said) }
        })
    }

    fn read_code(&self, spec: &Spec) -> Result<(FileSource, Tree)> {
        // What cannot be listed now cannot be listed in a minute either; a child that was ended may be started again.
        let code = self.given.reader.code(self.host, &spec.project, self.over(SENDING).as_ref());
        let (source, tree, outline) = code.map_err(|e| if is_lost(&e) { e } else { e.context(Hopeless) })?;
        outline.remarks(&spec.project).iter().for_each(|line| (self.say)(line));
        let script = Rel::try_from(spec.script.as_path()).map_err(|why| anyhow!(why))?;
        let is_there = tree.0.iter().any(|entry| entry.path == script);
        ensure_among(is_there, &script, &spec.project).context(Hopeless)?;
        self.note(provenance::code(&tree));
        Ok((source, tree))
    }

    fn send_code(&self, spec: &Spec, wire: &mut Wire, (source, tree): &(FileSource, Tree)) -> Result<()> {
        // What is rented is gone after the run, and what is here is not sent far.
        let keep =
            matches!(spec.source, Source::Ssh { .. }).then(|| project_key(&spec.project)).transpose()?;
        wire.tell(&Ask::Code { hash: tree.hash(), keep })?;
        let sent = tree::send(wire, source, tree, Squeeze::Yes)?;
        (self.say)(&match sent.files {
            0 => format!("the code is there: {} files", tree.0.len()),
            files => format!("sent {files} of {} files of code", tree.0.len()),
        });
        Ok(())
    }

    /// What an earlier machine of this run had made, to go on from.
    fn send_results(&self, spec: &Spec, wire: &mut Wire) -> Result<()> {
        let Some(results) = Beneath::open(self.host, &self.given.results)? else { return Ok(()) };
        let of_run = Rel::new(&format!("{}/{}", spec.run, dir_of(Root::Out)))?;
        let Some(dir) = results.there(&of_run)? else { return Ok(()) };
        let read = (&mut Known::new(), Odd::LeftOut);
        let (source, tree, _) =
            self.given.reader.files(self.host, dir.path(), read, self.over(SENDING).as_ref())?;
        if !tree.0.is_empty() {
            wire.tell(&Ask::Out { hash: tree.hash() })?;
            let sent = tree::send(wire, &source, &tree, Squeeze::No)?;
            (self.say)(&format!("{} files of an earlier machine are there to go on from", sent.files));
        }
        Ok(())
    }

    fn make_environment(&self, wire: &mut Wire) -> Result<()> {
        wire.tell(&Ask::Environment)?;
        let mut lines = 0;
        loop {
            match wire.hear()? {
                Making::Said(line) if line.is_empty() || lines > LINES => {}
                Making::Said(line) => {
                    lines += 1;
                    let cut: String = line.chars().take(LINE).collect();
                    let cut = if lines > LINES { MORE.to_owned() } else { shown(&cut) };
                    (self.say)(&cut);
                }
                Making::Done => return Ok(()),
            }
        }
    }

    fn note(&self, tags: impl IntoIterator<Item = (String, String)>) {
        hold(&self.made_from).extend(tags);
    }

    /// For MLflow, where there is one.
    fn told(&self) -> Option<(String, String)> {
        if self.given.tags.is_empty() {
            return None;
        }
        let mut tags = self.given.tags.clone();
        tags.extend(hold(&self.made_from).clone());
        provenance::variable(&tags)
    }

    fn order(&self, spec: &Spec) -> Result<Order> {
        let rel = |path: &Path| Rel::try_from(path).map_err(|why| anyhow!(why));
        Ok(Order {
            script: rel(&spec.script)?,
            arguments: spec.arguments.clone(),
            env: self.given.env.iter().cloned().chain(self.told()).chain(spec.env.iter().cloned()).collect(),
            out: spec.out.iter().map(|path| rel(path)).collect::<Result<_>>()?,
            max_seconds: spec.max_seconds,
            grace: spec.grace,
            authority: self.given.authority.clone(),
            azure: matches!(spec.source, Source::Azure),
        })
    }

    /// The directory that its results come home to.
    fn home(&self, spec: &Spec) -> Result<Arc<Home<'a>>> {
        let mut home = hold(&self.home);
        if home.is_none() {
            let dir = self.given.results.join(spec.run.as_str());
            let memory = self.given.memory.join(spec.run.as_str()).join("home.jsonl");
            let Given { quota, owner, .. } = self.given;
            let open = || Home::open(self.host, &dir, &memory, quota, owner, self.say);
            let opened = open().or_else(|error| {
                // At worst what came home comes once more; where nothing came, it would not come at all.
                let Some(damaged) = error.downcast_ref() else { return Err(error) };
                let beside = journal::set_aside(self.host, damaged)?;
                (self.say)(&format!(
                    "{damaged}: from there on it begins anew, and was moved to {}",
                    beside.display()
                ));
                open()
            });
            *home = Some(Arc::new(opened?));
        }
        home.clone().context("there is no home")
    }

    /// To be said before a machine is prepared, by the errand that brings its results home: no other may hold that home, not
    /// even the one that prepares.
    pub fn on_another_machine(&self, spec: &Spec) -> Result<()> {
        self.home(spec)?.anew()
    }

    /// How the script stands, once it does not run any more, or after some minutes; what it says comes home meanwhile.
    pub fn follow(&self, spec: &Spec, machine: &Machine, long: Duration) -> Result<Stand> {
        let home = self.home(spec)?;
        let until = Instant::now() + long;
        let standing = self.hold(spec, machine, FOLLOWING, |wire| {
            wire.tell(&Ask::Look)?;
            let look: Look = wire.hear()?;
            if look.standing != Standing::Running {
                return Ok(look.standing);
            }
            match home.follow(wire, until) {
                Err(error) if is_lost(&error) || is_nonsense(&error) => Err(error),
                // What cannot be written here is told of when files come; the script goes on.
                Err(_) => {
                    std::thread::sleep(UNHEARD);
                    Ok(Standing::Running)
                }
                Ok(look) => Ok(look.standing),
            }
        })?;
        match standing {
            Standing::Exited(exit) => Ok(Stand::Exited(exit)),
            Standing::Running => Ok(Stand::Running),
            // Its keeper is gone: killed, or the machine was restarted and has no systemd.
            Standing::Unwatched => self.started(spec, machine).map(|()| Stand::Running),
            Standing::Waiting => bail!(Nonsense("the script was never started on this machine".into())),
        }
    }

    pub fn fetch(&self, spec: &Spec, machine: &Machine) -> Result<Fetched> {
        let home = self.home(spec)?;
        self.hold(spec, machine, FETCHING, |wire| {
            // Asked before the list: what is there once the script has ended stays as it is.
            wire.tell(&Ask::Look)?;
            let standing = wire.hear::<Look>()?.standing;
            // What was never started makes nothing more either.
            let ended = matches!(standing, Standing::Exited(_) | Standing::Waiting);
            home.fetch(wire, ended, Instant::now() + TURN)
        })
        .context("bringing home what the run made")
    }

    /// Little time is left: what is newest comes first.
    pub fn hurry(&self) {
        hold(&self.home).iter().for_each(|home| home.hurry());
    }

    fn started(&self, spec: &Spec, machine: &Machine) -> Result<()> {
        let start = self.verb(spec, machine, "start", true)?;
        let (status, said) = self.run(&start, b"", ASKING).context("starting the script")?;
        ensure!(status == 0, "starting the script: exit status {status}: {said}");
        Ok(())
    }
}

/// By what a machine knows a project again: its name for people, and where it is here.
pub fn project_key(project: &Path) -> Result<Rel> {
    let name = project.file_name().unwrap_or_default().to_string_lossy();
    let name: String = name.chars().filter(|c| c.is_ascii_alphanumeric()).take(40).collect();
    Rel::new(&format!("{name}-{}", first(&sha256(project.as_os_str().as_encoded_bytes()), 16)))
}

impl Errand<'_> {
    /// Code, data and environment, all there and whole.
    pub fn prepare(&self, spec: &Spec, machine: &Machine) -> Result<()> {
        // A dataset needs the network and the disk, an environment the processors: side by side. Whatever else there is
        // to say is said in one conversation, for each one more is several ways there and back.
        std::thread::scope(|scope| {
            let (code_is_there, go) = channel();
            let mut data = Some(scope.spawn(move || {
                let gone = OnceCell::new();
                self.send_data(spec, machine, &|| *gone.get_or_init(|| go.recv().is_ok()))
            }));
            // It is read while the connection comes about.
            let read = || self.read_code(spec);
            let mut code = Some(scope.spawn(read));
            let mut tries = 0;
            loop {
                let held = self.hold(spec, machine, SENDING, |wire| {
                    let code = code.take().map_or_else(|| Ok(read()), |code| code.join());
                    code.map_err(|_| anyhow!("reading the code came to a sudden end"))?
                        .and_then(|code| self.send_code(spec, wire, &code))
                        .and_then(|()| self.send_results(spec, wire))
                        .context("sending the code")?;
                    // Who does not listen any more has said why.
                    let _ = code_is_there.send(());
                    let environment = self.make_environment(wire).context("making the environment");
                    let sent = data.take().map_or(Ok(Ok(())), |data| data.join());
                    let sent = sent.map_err(|_| anyhow!("sending the data came to a sudden end"))?;
                    environment.and(sent)?;
                    // Last: which data it is, is a tag of what the script makes.
                    let order = Box::new(self.order(spec)?);
                    wire.tell(&Ask::Order { order, secrets: self.given.secrets.clone() })?;
                    wire.hear()
                });
                tries += 1;
                match held {
                    Err(e) if e.is::<Changed>() && tries < TRIES => (self.say)(&format!("{e:#}; once more")),
                    held => return held,
                }
            }
        })
    }

    pub fn start(&self, spec: &Spec, machine: &Machine) -> Result<()> {
        self.started(spec, machine)
    }

    /// Ask the script to end.
    pub fn stop(&self, spec: &Spec, machine: &Machine) -> Result<()> {
        self.hold(spec, machine, ASKING, |wire| {
            wire.tell(&Ask::Stop(Exit::Stopped))?;
            wire.hear()
        })
    }
}

#[cfg(test)]
mod tests;
