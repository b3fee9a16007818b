//! Scripts that run for real, under this very program: on this machine, and on this machine as if it were another,
//! over a real sshd whose key is known.

// Tests look at files and processes directly.
#![allow(clippy::disallowed_methods, clippy::disallowed_types)]

mod conda;

use super::*;
use crate::{
    gpu::{
        agent::site::{Begun, read},
        left::Left,
        spec::RunId,
        target::{Ssh, Target},
        wire,
    },
    host::System,
    patience::Patience,
};
use std::{
    fs,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    process::{Command, Stdio},
};

impl Errand<'_> {
    /// As it stands now.
    fn poll(&self, spec: &Spec, machine: &Machine) -> Result<Stand> {
        self.follow(spec, machine, Duration::ZERO)
    }

    /// As providers do at the end. Nothing of the run is left over there when this returns; what runs share stays.
    fn leave(&self, spec: &Spec, machine: &Machine) -> Result<()> {
        let leave = || self.run(&self.verb(spec, machine, "leave", true)?, b"", ASKING);
        let (mut status, mut said) = leave().context("taking the run off its machine")?;
        if status == 127 {
            // Nothing came so far, or somebody has tidied up: what is needed to look is brought.
            self.bring(machine)?;
            (status, said) = leave().context("taking the run off its machine")?;
        }
        ensure!(status == 0, "taking the run off its machine: exit status {status}: {said}");
        Ok(())
    }
}

/// The program as it was built: a test's own executable has no verbs. Tests of commands have cargo build it; when only
/// these here are asked for, it must be there, and not be an old one.
fn program() -> PathBuf {
    let own = std::env::current_exe().unwrap();
    let program = own.parent().unwrap().parent().unwrap().join("echoes-appliance");
    let built = |path: &Path| path.metadata().and_then(|meta| meta.modified());
    let built_at =
        built(&program).unwrap_or_else(|e| panic!("{}: {e}; run `cargo build`", program.display()));
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/gpu");
    let mut dirs = vec![sources];
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                dirs.extend((!path.ends_with("tests")).then_some(path));
            } else if !path.ends_with("tests.rs") {
                assert!(built(&path).unwrap() <= built_at, "{} is newer: run `cargo build`", path.display());
            }
        }
    }
    program
}

struct World {
    root: tempfile::TempDir,
    host: Host,
    said: Arc<Mutex<Vec<String>>>,
    spec: Spec,
    machine: Machine,
    user: Option<String>,
    owner: Option<(u32, u32)>,
    program: PathBuf,
    over: Option<Over>,
}

impl World {
    fn new(script: &str) -> Self {
        let root = tempfile::tempdir().unwrap();
        fs::set_permissions(root.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let at = |name: &str| root.path().join(name);
        fs::create_dir_all(at("project/deep")).unwrap();
        fs::write(at("project/run.sh"), script).unwrap();
        fs::write(at("project/deep/module"), "code").unwrap();
        fs::create_dir_all(at("data/ucf")).unwrap();
        fs::write(at("data/ucf/clip"), "a clip").unwrap();
        let spec = Spec {
            run: RunId::try_from("r1".to_owned()).unwrap(),
            owner: "me".into(),
            source: Source::Local,
            project: at("project"),
            script: "run.sh".into(),
            arguments: vec!["a b".into()],
            sizes: Vec::new(),
            regions: Vec::new(),
            spot: Default::default(),
            max_seconds: None,
            login_marked: true,
            max_cost: None,
            data: vec!["ucf".into()],
            original: None,
            out: vec!["made".into()],
            env: vec![("LETTER".into(), "ä".into())],
            secrets: vec!["KEY".into()],
            grace: 1,
        };
        let machine = Machine { target: Target::Local, home: at("machine"), data: None };
        Self {
            host: Host::new("/", System),
            said: Arc::default(),
            spec,
            machine,
            user: None,
            owner: None,
            program: program(),
            over: None,
            root,
        }
    }

    fn at(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    /// What is at home of the run.
    fn here(&self, name: &str) -> String {
        fs::read_to_string(self.at("results/r1").join(name)).unwrap_or_else(|e| panic!("{name}: {e}"))
    }

    fn site(&self) -> Site {
        Errand::site(&self.spec, &self.machine)
    }

    fn with<T>(&self, doing: impl FnOnce(&Errand) -> T) -> T {
        let said = Arc::clone(&self.said);
        let say = move |line: &str| said.lock().unwrap().push(line.to_owned());
        let given = Given {
            user: self.user.clone(),
            reader: Reader::new(crate::host::person::Person::ourselves()),
            sandbox: None,
            data: self.at("data"),
            results: self.at("results"),
            owner: self.owner,
            memory: self.at("memory"),
            env: vec![("MLFLOW_TRACKING_URI".into(), "https://hq".into())],
            tags: [("echoes.run".into(), "r1".into())].into(),
            secrets: vec![("KEY".into(), "s3cr3t".into())],
            authority: None,
            quota: Quota { free: 0, ..Quota::default() },
            over: self.over.clone(),
        };
        doing(&Errand::new(&self.host, given, &say).with(self.program.clone()))
    }

    fn prepared_and_started(&self) {
        self.with(|errand| {
            errand.on_another_machine(&self.spec).unwrap_or_else(|e| panic!("{e:#}"));
            errand.prepare(&self.spec, &self.machine).unwrap_or_else(|e| panic!("{e:#}"));
            errand.start(&self.spec, &self.machine).unwrap_or_else(|e| panic!("{e:#}"));
        });
    }

    fn ended(&self) -> Exit {
        self.with(|errand| {
            let ended = || match errand.poll(&self.spec, &self.machine)? {
                Stand::Exited(exit) => Ok(exit),
                Stand::Running => bail!("it is running"),
            };
            Patience::seconds(30).until(ended).unwrap_or_else(|e| panic!("{e:#}"))
        })
    }

    fn fetched(&self) -> Left {
        let fetch = |errand: &Errand<'_>| errand.fetch(&self.spec, &self.machine);
        match self.with(fetch).unwrap_or_else(|e| panic!("{e:#}")) {
            Fetched::Home(left) => left,
            other => panic!("{other:?}"),
        }
    }

    /// MLflow hears which dataset it was, however that got there.
    fn told_of_data(&self) {
        let dir = Beneath::open(&self.host, &self.at("data/ucf")).unwrap().unwrap();
        let hash = tree::read(&dir, dir.walk(9).unwrap(), &mut Known::new()).unwrap().hash();
        let order = read::<Order>(&self.host, &self.site().order()).unwrap().unwrap();
        let tags = order.env.iter().find(|(name, _)| name == "MLFLOW_RUN_CONTEXT").unwrap();
        assert_eq!(serde_json::from_str::<Tags>(&tags.1).unwrap()["echoes.data.ucf"], hash);
    }

    fn begun(&self) -> Begun {
        read(&self.host, &self.site().begun()).unwrap().unwrap()
    }

    /// Processes that have this in their command line or environment.
    fn alive(&self, word: &str) -> Vec<i32> {
        let mut alive = Vec::new();
        for entry in fs::read_dir("/proc").unwrap() {
            let path = entry.unwrap().path();
            let Some(pid) = path.file_name().and_then(|name| name.to_str()?.parse().ok()) else { continue };
            let text =
                ["cmdline", "environ"].map(|name| fs::read(path.join(name)).unwrap_or_default()).concat();
            if pid != std::process::id() as i32 && String::from_utf8_lossy(&text).contains(word) {
                alive.push(pid);
            }
        }
        alive
    }

    fn until(&self, what: &str, is: impl Fn() -> bool) {
        let so = || -> Result<()> {
            ensure!(is(), "{what}");
            Ok(())
        };
        Patience::seconds(20).until(so).unwrap();
    }
}

impl Drop for World {
    /// A test that fails leaves no script behind.
    fn drop(&mut self) {
        if matches!(self.machine.target, Target::Local) {
            super::super::agent::processes::end_all(&self.host, &self.site());
        }
    }
}

const SCRIPT: &str = r#"
echo "one $1 $LETTER"
echo two >&2
echo "three $(cat deep/module) $(cat "$ECHOES_DATA/ucf/clip")"
echo "$KEY $MLFLOW_TRACKING_URI" > "$ECHOES_OUT/seen"
mkdir -p made/deep "$ECHOES_OUT/checkpoints"
echo best > "$ECHOES_OUT/checkpoints/best.pt"
echo plot > made/deep/plot
echo not > wanted
ln -s /etc/passwd "$ECHOES_OUT/link"
exit 3
"#;

/// The whole way.
fn a_run(world: &World) {
    world.prepared_and_started();
    assert_eq!(world.ended(), Exit::Code(3));
    assert!(world.fetched().is_empty());
    assert_eq!(world.here("log.txt"), "one a b ä\ntwo\nthree code a clip\n");
    assert_eq!(world.here("out/seen"), "s3cr3t https://hq\n");
    assert_eq!(world.here("out/checkpoints/best.pt"), "best\n");
    assert_eq!(world.here("project/made/deep/plot"), "plot\n");
    assert!(world.here("samples.jsonl").starts_with("{\"at\":"));
    let names = |dir: &str| {
        let mut names: Vec<_> =
            fs::read_dir(world.at(dir)).unwrap().map(|e| e.unwrap().file_name()).collect();
        names.sort();
        names
    };
    assert_eq!(names("results/r1"), ["log.txt", "out", "project", "samples.jsonl"]);
    assert_eq!(names("results/r1/out"), ["checkpoints", "seen"]);
    let said = world.said.lock().unwrap().join("\n");
    assert!(said.contains("out/link is a link to /etc/passwd, which is not this run's: "), "{said}");
}

#[test]
fn a_script_runs_and_what_it_made_comes_home() {
    let world = World::new(SCRIPT);
    a_run(&world);
    let site = world.site();
    assert!(!site.secrets().exists(), "a secret is gone when the script has ended");
    assert!(!fs::read_to_string(site.order()).unwrap().contains("s3cr3t"));
    // What is done twice is done once.
    world.with(|errand| {
        errand.start(&world.spec, &world.machine).unwrap();
        assert_eq!(errand.poll(&world.spec, &world.machine).unwrap(), Stand::Exited(Exit::Code(3)));
        let again = errand.prepare(&world.spec, &world.machine).unwrap_err();
        assert!(format!("{again:#}").contains("r1 has begun: its files stay as they are"), "{again:#}");
    });
    assert!(world.fetched().is_empty());
    assert_eq!(world.here("log.txt").lines().count(), 3);
    let data = world.at("machine/runs/r1/data/ucf");
    assert_eq!(fs::read_link(data).unwrap(), world.at("data/ucf"), "here, data are not copied");
    world.told_of_data();
    world.with(|errand| {
        errand.leave(&world.spec, &world.machine).unwrap();
        errand.leave(&world.spec, &world.machine).unwrap();
    });
    assert!(!world.at("machine/runs/r1").exists() && world.at("data/ucf/clip").exists());
    assert!(world.here("out/seen").len() > 1, "what came home stays there");
}

/// A directory, seen at another place, as a clone of its disk would be.
struct Bound(PathBuf);

impl Bound {
    fn new(from: &Path, at: PathBuf, options: &str) -> Option<Self> {
        fs::create_dir_all(&at).unwrap();
        let mount = |words: &[&str]| Command::new("mount").args(words).arg(&at).status().unwrap().success();
        let is_root = nix::unistd::geteuid().is_root();
        if !is_root || !mount(&["--bind", from.to_str().unwrap()]) {
            eprintln!("SKIPPED: data on a clone of their disk: nothing can be mounted here");
            return None;
        }
        assert!(mount(&["-o", &format!("remount,bind,{options}")]));
        Some(Self(at))
    }
}

impl Drop for Bound {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(&self.0).status();
    }
}

#[test]
fn data_on_a_clone_of_their_disk_are_read_there_and_never_written() {
    let mut world =
        World::new(&SCRIPT.replace("exit 3", "touch \"$ECHOES_DATA/ucf/x\" 2> /dev/null && exit 4; exit 3"));
    let Some(_clone) = Bound::new(&world.at("data"), world.at("clone"), "ro") else { return };
    world.machine.data = Some(world.at("clone"));
    a_run(&world);
    assert_eq!(fs::read_link(world.at("machine/runs/r1/data/ucf")).unwrap(), world.at("clone/ucf"));
    assert!(!world.at("machine/data/ucf").exists(), "nothing was sent");
    world.told_of_data();
}

#[test]
fn a_clone_that_is_not_there_or_not_what_is_here_is_no_empty_dataset() {
    let mut world = World::new("true");
    let refused = |world: &World| {
        world.with(|errand| errand.prepare(&world.spec, &world.machine)).expect_err("it was prepared")
    };
    // Where it should be is the machine's own disk.
    fs::create_dir_all(world.at("clone/ucf")).unwrap();
    world.machine.data = Some(world.at("clone"));
    let missing = refused(&world);
    assert!(!missing.is::<Hopeless>(), "it may be on its way");
    let said = format!("{missing:#}");
    assert!(said.contains("--data-by copy") && said.contains("clone"), "{said}");

    let Some(writable) = Bound::new(&world.at("data"), world.at("clone"), "rw") else { return };
    let said = format!("{:#}", refused(&world));
    assert!(said.contains("can be written to"), "{said}");
    drop(writable);
    fs::create_dir_all(world.at("bare")).unwrap();
    let bare = Bound::new(&world.at("bare"), world.at("clone"), "ro").unwrap();
    let said = format!("{:#}", refused(&world));
    assert!(said.contains("there is no") && said.contains("clone/ucf on this machine"), "{said}");
    drop(bare);

    // The same bytes, in another file: somebody has replaced it since.
    fs::create_dir_all(world.at("then/ucf")).unwrap();
    fs::write(world.at("then/ucf/clip"), "a clip").unwrap();
    let _then = Bound::new(&world.at("then"), world.at("clone"), "ro").unwrap();
    let changed = refused(&world);
    let said = format!("{changed:#}");
    assert!(
        changed.is::<Hopeless>() && said.contains("ucf has changed since the data disk was cloned"),
        "{said}"
    );
}

#[test]
fn a_script_of_another_user_is_that_users_in_everything() {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("SKIPPED: a script of another user: only root can start it");
        return;
    }
    let mut world = World::new("id -un; cat /etc/shadow || echo refused; touch \"$ECHOES_OUT/x\"; umask");
    world.user = Some("nobody".into());
    world.prepared_and_started();
    assert_eq!(world.ended(), Exit::Code(0));
    assert!(world.fetched().is_empty());
    let log = world.here("log.txt");
    assert!(log.starts_with("nobody\n") && log.contains("refused"), "{log}");
    let nobody = nix::unistd::User::from_name("nobody").unwrap().unwrap().uid.as_raw();
    let root = world.root.path().to_owned();
    let meta = |name: &str| root.join(name).metadata().unwrap();
    assert_eq!(meta("machine/runs/r1/out/x").uid(), nobody);
    assert_eq!(meta("machine/runs/r1").mode() & 0o777, 0o700);
    assert_eq!(meta("results/r1/out/x").uid(), 0);
    // Whose they are at home is said by whoever asks.
    world.owner = Some((nobody, nobody));
    fs::remove_dir_all(world.at("results")).unwrap();
    fs::remove_dir_all(world.at("memory")).unwrap();
    assert!(world.fetched().is_empty());
    for name in ["results/r1", "results/r1/out", "results/r1/out/x", "results/r1/log.txt"] {
        assert_eq!(meta(name).uid(), nobody, "{name}");
    }
    assert_eq!(meta("results").uid(), 0);
    let mut other = World::new("true");
    other.machine.home = world.machine.home.clone();
    other.user = Some("daemon".into());
    let error = other.with(|errand| errand.prepare(&other.spec, &other.machine).unwrap_err());
    assert!(format!("{error:#}").contains("each user needs an agent's home of their own"), "{error:#}");
}

#[test]
fn started_by_many_at_once_it_starts_once() {
    let world = World::new("echo started >> \"$ECHOES_OUT/starts\"; sleep 1");
    world.with(|errand| errand.prepare(&world.spec, &world.machine).unwrap());
    world.with(|errand| {
        std::thread::scope(|scope| {
            for _ in 0..6 {
                scope.spawn(|| errand.start(&world.spec, &world.machine).unwrap());
            }
        });
    });
    assert_eq!(world.ended(), Exit::Code(0));
    assert_eq!(fs::read_to_string(world.site().out().join("starts")).unwrap(), "started\n");
    assert_eq!(world.begun().attempt, 1);
}

#[test]
fn what_is_damaged_in_the_memory_of_what_came_home_is_learnt_again() {
    let world = World::new("echo one > \"$ECHOES_OUT/one\"; echo told");
    world.prepared_and_started();
    assert_eq!(world.ended(), Exit::Code(0));
    assert!(world.fetched().is_empty());
    let memory = world.at("memory/r1/home.jsonl");
    let whole = fs::read_to_string(&memory).unwrap();
    let damaged = whole.replacen("\"v\"", "\"w\"", 1);
    fs::write(&memory, &damaged).unwrap();
    fs::remove_file(world.at("results/r1/out/one")).unwrap();
    assert!(world.fetched().is_empty());
    assert_eq!((world.here("out/one").as_str(), world.here("log.txt").as_str()), ("one\n", "told\n"));
    assert_eq!(fs::read_to_string(world.at("memory/r1/home.jsonl.damaged")).unwrap(), damaged);
    let said = world.said.lock().unwrap().join("\n");
    assert!(said.contains("home.jsonl is damaged in line 1: its checksum is wrong"), "{said}");
}

/// Hears no polite request, and leaves something behind in a session of its own.
const STUBBORN: &str = r#"
trap '' TERM
setsid sh -c 'trap "" TERM HUP; while :; do sleep 0.1; done' &
echo > "$ECHOES_OUT/is-up"
while :; do sleep 0.1; done
"#;

#[test]
fn when_its_time_is_up_nothing_of_it_goes_on() {
    let mut world = World::new(STUBBORN);
    world.spec.max_seconds = Some(2);
    let mark = format!("ECHOES_OUT={}", world.site().out().display());
    world.prepared_and_started();
    world.until("the script is up", || world.site().out().join("is-up").exists());
    assert!(world.alive(&mark).len() >= 2);
    assert_eq!(world.ended(), Exit::Deadline);
    assert!(world.alive(&mark).is_empty());
    assert!(world.fetched().is_empty(), "what it had made is fetched");
}

#[test]
fn a_script_that_is_asked_to_end_may_say_its_last_words() {
    let world = World::new(
        "trap 'echo saved > \"$ECHOES_OUT/checkpoint\"; exit 0' TERM; echo up; while :; do sleep 0.1; done",
    );
    world.prepared_and_started();
    world.until("it is up", || {
        world.with(|errand| errand.fetch(&world.spec, &world.machine)).unwrap();
        world.at("results/r1/log.txt").exists()
    });
    world.with(|errand| errand.stop(&world.spec, &world.machine).unwrap());
    assert_eq!(world.ended(), Exit::Stopped);
    assert!(world.fetched().is_empty());
    assert_eq!(world.here("out/checkpoint"), "saved\n");
}

#[test]
fn a_keeper_that_is_killed_takes_the_script_with_it_and_its_successor_goes_on() {
    let script = r#"
echo "attempt $ECHOES_ATTEMPT until $ECHOES_UNTIL"
echo $$ > "$ECHOES_OUT/pid"
[ "$ECHOES_ATTEMPT" = 2 ] && exit 0
while :; do sleep 0.1; done
"#;
    let mut world = World::new(script);
    world.spec.max_seconds = Some(3600);
    world.prepared_and_started();
    world.until("the script is up", || world.site().out().join("pid").exists());
    let until = world.begun().until.unwrap();
    let keepers: Vec<_> = world.alive("\0agent\0watch\0").into_iter().collect();
    let ours = |pid: &i32| {
        let line = fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        line.contains(world.root.path().to_str().unwrap())
    };
    let keeper = *keepers.iter().find(|pid| ours(pid)).expect("nobody keeps the script");
    let script: i32 = fs::read_to_string(world.site().out().join("pid")).unwrap().trim().parse().unwrap();
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(keeper), nix::sys::signal::Signal::SIGKILL).unwrap();
    world.until("the script is gone", || {
        let state = fs::read_to_string(format!("/proc/{script}/stat")).unwrap_or_default();
        state.is_empty() || state.contains(") Z ")
    });
    // Whoever looks next sees to it.
    assert_eq!(world.ended(), Exit::Code(0));
    assert!(world.fetched().is_empty());
    let log = world.here("log.txt");
    let expected = format!(
        "attempt 1 until {until}\n[echoes-appliance: started again, attempt 2]\nattempt 2 until {until}\n"
    );
    assert_eq!(log, expected, "its time is not counted anew");
}

#[test]
fn a_machine_that_is_gone_is_gone_on_from_what_came_home() {
    let world = World::new(
        "n=$(cat \"$ECHOES_OUT/steps\" 2>/dev/null || echo 0); echo $((n + 1)) > \"$ECHOES_OUT/steps\"
        echo \"after $n\"; [ $n = 1 ] || echo and more",
    );
    world.prepared_and_started();
    world.ended();
    assert!(world.fetched().is_empty());
    assert_eq!(world.here("out/steps"), "1\n");
    // As an eviction would.
    world.with(|errand| errand.leave(&world.spec, &world.machine).unwrap());
    world.prepared_and_started();
    world.ended();
    assert!(world.fetched().is_empty());
    assert_eq!(world.here("out/steps"), "2\n");
    // It says less there than what we had read of the first one's words.
    let log = "after 0\nand more\n\n[echoes-appliance: on another machine]\nafter 1\n";
    assert_eq!(world.here("log.txt"), log);
}

/// A package as small as they get, in the project itself: what is tried is our part, not an index.
const TINY: &str = "import zipfile; z = zipfile.ZipFile('tiny-1.0-py3-none-any.whl', 'w'); d = 'tiny-1.0.dist-info/'; \
    z.writestr('tiny.py', 'word = \"tiny\"'); \
    z.writestr(d + 'METADATA', 'Metadata-Version: 2.1\\nName: tiny\\nVersion: 1.0\\n'); \
    z.writestr(d + 'WHEEL', 'Wheel-Version: 1.0\\nGenerator: x\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n'); \
    z.writestr(d + 'RECORD', 'tiny.py,,\\n' + d + 'METADATA,,\\n' + d + 'WHEEL,,\\n' + d + 'RECORD,,\\n'); z.close()";

#[test]
fn an_environment_is_made_once_and_the_code_is_found_in_it() {
    let mut world = World::new("");
    let project = world.at("project");
    let done = Command::new("python3").args(["-c", TINY]).current_dir(&project).status().unwrap();
    assert!(done.success());
    fs::write(project.join("requirements.txt"), "--no-index\n--find-links .\n-e .\ntiny==1.0\n").unwrap();
    fs::create_dir_all(project.join("src/ours")).unwrap();
    fs::write(project.join("src/ours/__init__.py"), "word = 'ours'").unwrap();
    fs::write(
        project.join("deep/train.py"),
        "import sys, tiny, ours; print(tiny.word, ours.word, sys.prefix)",
    )
    .unwrap();
    world.spec.script = "deep/train.py".into();
    let prepared = world.with(|errand| errand.prepare(&world.spec, &world.machine));
    if let Err(error) = prepared {
        // Only uv itself comes from elsewhere.
        let error = format!("{error:#}");
        assert!(error.contains("fetching uv"), "{error}");
        eprintln!("SKIPPED: making an environment: uv cannot be fetched from here");
        return;
    }
    world.with(|errand| errand.start(&world.spec, &world.machine).unwrap());
    assert_eq!(world.ended(), Exit::Code(0));
    assert!(world.fetched().is_empty());
    let envs = world.at("machine/envs");
    assert!(
        world.here("log.txt").starts_with(&format!("tiny ours {}/", envs.display())),
        "{}",
        world.here("log.txt")
    );
    world.said.lock().unwrap().clear();
    world.spec.run = RunId::try_from("r2".to_owned()).unwrap();
    world.with(|errand| errand.prepare(&world.spec, &world.machine).unwrap());
    let said = world.said.lock().unwrap().join("\n");
    assert!(said.ends_with("the environment is there already"), "{said}");
    // One that a crash left is not taken for whole.
    let made =
        fs::read_dir(&envs).unwrap().map(|entry| entry.unwrap().path()).find(|path| path.is_dir()).unwrap();
    fs::remove_file(made.join(".complete")).unwrap();
    fs::remove_file(made.join("bin/python")).unwrap();
    world.with(|errand| errand.prepare(&world.spec, &world.machine).unwrap());
    assert!(made.join("bin/python").exists() && made.join(".complete").exists());
}

#[test]
fn a_script_that_is_not_sent_is_missed_before_anything_is_made() {
    let mut world = World::new("true");
    world.spec.script = "other.sh".into();
    let error = world.with(|errand| errand.prepare(&world.spec, &world.machine).unwrap_err());
    let (said, hint) = crate::ui::told(&error);
    assert!(said.concat().contains("other.sh is not among the code"), "{said:?}");
    assert!(hint.unwrap().contains(".gitignore"));
}

#[test]
fn a_machine_that_never_comes_to_an_end_keeps_no_run_from_ending() {
    let mut world = World::new("true");
    world.program = world.at("liar");
    fs::write(&world.program, "#!/bin/sh\nexec sleep 600\n").unwrap();
    world.over = Some(Arc::new(|| true));
    world.with(|errand| {
        let error = format!("{:#}", errand.prepare(&world.spec, &world.machine).unwrap_err());
        assert!(error.contains("it has to end"), "{error}");
    });
}

#[test]
fn of_what_a_machine_says_no_more_is_kept_than_anybody_reads() {
    let world = World::new("true");
    let (mut hq, mut machine) = wire::tests::pair();
    let talking = std::thread::spawn(move || {
        assert!(matches!(machine.hear().unwrap(), Ask::Environment));
        for _ in 0..3 * LINES {
            machine.tell(&Making::Said("\u{1b}[2J".repeat(LINE))).unwrap();
        }
        machine.tell(&Making::Done).unwrap();
    });
    world.with(|errand| errand.make_environment(&mut hq).unwrap());
    talking.join().unwrap();
    let said = world.said.lock().unwrap();
    assert_eq!((said.len(), said.last().map(String::as_str)), (LINES + 1, Some(MORE)));
    assert!(said.iter().all(|line| line.chars().count() <= 6 * LINE && !line.contains('\u{1b}')));
}

#[test]
fn an_agent_that_came_in_half_is_not_run() {
    let world = World::new("true");
    world.with(|errand| {
        let dir = errand.there(&world.machine).unwrap();
        fs::create_dir_all(&dir).unwrap();
        // What a broken connection leaves.
        fs::write(dir.join(".new.1"), "half").unwrap();
        errand.prepare(&world.spec, &world.machine).unwrap();
        let sent = tree::digest(&mut fs::read(dir.join("echoes-appliance")).unwrap().as_slice()).unwrap().0;
        assert_eq!(sent, errand.hash().unwrap());
        // Another program under our name would be another hash.
        let lying = errand.there(&world.machine).unwrap().parent().unwrap().join("0".repeat(64));
        assert!(!lying.exists());
    });
}

/// Carries so many bytes from its input to a program's, and so many back, and then is gone.
const CUT: &str = r#"
import os, subprocess, sys, threading
there, back = int(sys.argv[1]), int(sys.argv[2])
child = subprocess.Popen(sys.argv[3:], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
def carry(source, to, left):
    while left > 0:
        some = os.read(source, min(left, 65536))
        if not some:
            break
        os.write(to, some)
        left -= len(some)
    os._exit(1) if left <= 0 else os.close(to)
threading.Thread(target=carry, args=(0, child.stdin.fileno(), there), daemon=True).start()
carry(child.stdout.fileno(), 1, back)
os._exit(child.wait())
"#;

/// Connections that break after so many bytes on their way there, and on their way back.
struct Cutting(PathBuf);

impl Cutting {
    /// Puts itself between the world and its agent.
    fn between(world: &mut World) -> Self {
        let script = format!(
            "#!/bin/sh\n[ \"$2\" = attend ] && [ -e {dir}/there ] || exec {program} \"$@\"\n\
             exec python3 -c '{CUT}' $(cat {dir}/there) $(cat {dir}/back) {program} \"$@\"\n",
            dir = world.root.path().display(),
            program = world.program.display(),
        );
        world.program = world.at("cutting");
        fs::write(&world.program, script).unwrap();
        fs::set_permissions(&world.program, fs::Permissions::from_mode(0o755)).unwrap();
        Self(world.root.path().into())
    }

    fn after(&self, there: usize, back: usize) {
        fs::write(self.0.join("back"), back.to_string()).unwrap();
        fs::write(self.0.join("there"), there.to_string()).unwrap();
    }

    fn never(&self) {
        fs::remove_file(self.0.join("there")).unwrap();
    }
}

const FAR: usize = 100_000_000;

#[test]
fn a_connection_that_breaks_anywhere_on_the_way_there_is_gone_on_with() {
    let mut world = World::new("exit 7");
    for n in 0..20 {
        fs::write(world.at("project/deep").join(format!("f{n}")), format!("{n}").repeat(n * 20)).unwrap();
    }
    let cutting = Cutting::between(&mut world);
    let cuts = (0..1000).step_by(50).map(|there| (there, FAR));
    let cuts: Vec<_> = cuts.chain((0..200).step_by(10).map(|back| (FAR, back))).collect();
    let mut broken = 0;
    for (there, back) in cuts {
        cutting.after(there, back);
        let cut = world.with(|errand| errand.prepare(&world.spec, &world.machine));
        broken += usize::from(cut.is_err());
        cutting.never();
        world.with(|errand| errand.prepare(&world.spec, &world.machine).unwrap_or_else(|e| panic!("{e:#}")));
        let listed = |dir: &Path| {
            let dir = Beneath::open(&world.host, dir).unwrap().unwrap();
            let mut all = dir.walk(100).unwrap();
            all.iter_mut().for_each(|found| (found.stamp.nanos, found.stamp.inode) = (0, 0));
            all
        };
        assert_eq!(listed(&world.site().code()), listed(&world.spec.project), "{there} there, {back} back");
        fs::remove_dir_all(world.site().dir()).unwrap();
    }
    assert!(broken > 20, "only {broken} connections were broken");
    world.prepared_and_started();
    assert_eq!(world.ended(), Exit::Code(7));
}

#[test]
fn a_connection_that_breaks_anywhere_on_the_way_home_is_gone_on_with() {
    let script = "for n in 1 2 3 4; do seq 1 ${n}00 > \"$ECHOES_OUT/f$n\"; done; seq 1 500";
    let mut world = World::new(script);
    let cutting = Cutting::between(&mut world);
    world.prepared_and_started();
    assert_eq!(world.ended(), Exit::Code(0));
    let whole = |n: usize| (1..=n).map(|n| format!("{n}\n")).collect::<String>();
    let mut broken = 0;
    for back in (0..9000).step_by(300) {
        cutting.after(FAR, back);
        let cut = world.with(|errand| errand.fetch(&world.spec, &world.machine));
        broken += usize::from(cut.is_err());
        // What has its name is whole, and what is not whole has none.
        for entry in fs::read_dir(world.at("results/r1/out")).into_iter().flatten() {
            let path = entry.unwrap().path();
            let n: usize = path.file_name().unwrap().to_str().unwrap()[1..].parse().unwrap();
            assert_eq!(fs::read_to_string(&path).unwrap(), whole(n * 100), "{back}");
        }
        cutting.never();
        assert!(world.fetched().is_empty());
        assert_eq!(world.here("out/f4"), whole(400));
        assert_eq!(world.here("log.txt"), whole(500), "{back}");
        for dir in ["results", "memory"] {
            fs::remove_dir_all(world.at(dir)).unwrap();
        }
    }
    assert!(broken > 15, "only {broken} connections were broken");
}

/// A real sshd on a free port, for us alone; none where there is no sshd.
struct Sshd {
    child: std::process::Child,
    ssh: Ssh,
}

impl Sshd {
    fn start(dir: &Path) -> Option<Self> {
        let sshd =
            ["/usr/sbin/sshd", "/usr/local/sbin/sshd"].into_iter().find(|path| Path::new(path).exists());
        let Some(sshd) = sshd.filter(|_| nix::unistd::geteuid().is_root()) else {
            eprintln!("SKIPPED: a machine over ssh: there is no sshd here, or we are not root");
            return None;
        };
        // It wants this to be there, whoever starts it.
        fs::create_dir_all("/run/sshd").unwrap();
        let at = |name: &str| dir.join(name).display().to_string();
        for key in ["host", "user"] {
            let made =
                Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f", &at(key)]).status();
            assert!(made.unwrap().success());
        }
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        fs::copy(at("user.pub"), at("authorized")).unwrap();
        let host = fs::read_to_string(at("host.pub")).unwrap();
        fs::write(at("known"), format!("[127.0.0.1]:{port} {host}")).unwrap();
        let config = format!(
            "Port {port}\nListenAddress 127.0.0.1\nHostKey {}\nAuthorizedKeysFile {}\nStrictModes no\nUsePAM no\n\
             PermitRootLogin yes\nPidFile none\n",
            at("host"),
            at("authorized"),
        );
        fs::write(at("config"), config).unwrap();
        let log = fs::File::create(at("sshd.log")).unwrap();
        let child = Command::new(sshd).args(["-D", "-e", "-f", &at("config")]).stderr(log).spawn().unwrap();
        let ssh = Ssh {
            user: "root".into(),
            host: "127.0.0.1".into(),
            port,
            identity: Some(at("user").into()),
            known_hosts: Some(at("known").into()),
            control: at("control").into(),
        };
        let up = || Ok(std::net::TcpStream::connect(("127.0.0.1", port)).map(drop)?);
        Patience::seconds(10).until(up).unwrap();
        Some(Self { child, ssh })
    }
}

impl Drop for Sshd {
    fn drop(&mut self) {
        let control = format!("ControlPath={}", self.ssh.control.display());
        let bye =
            Command::new("ssh").args(["-o", &control, "-O", "exit", "x"]).stderr(Stdio::null()).status();
        let _ = (bye, self.child.kill(), self.child.wait());
    }
}

#[test]
fn over_ssh_it_is_the_same_and_data_are_copied() {
    let mut world = World::new(SCRIPT);
    let keys = tempfile::tempdir().unwrap();
    let Some(sshd) = Sshd::start(keys.path()) else { return };
    world.machine.target = Target::Ssh(sshd.ssh.clone());
    a_run(&world);
    let copy = world.at("machine/data/ucf/clip");
    assert_eq!(fs::read_to_string(&copy).unwrap(), "a clip");
    world.told_of_data();
    world.with(|errand| errand.leave(&world.spec, &world.machine).unwrap());
    assert!(!world.at("machine/runs/r1").exists() && copy.exists());
}

#[test]
fn a_machine_with_another_key_is_not_talked_to() {
    let mut world = World::new("true");
    let keys = tempfile::tempdir().unwrap();
    let Some(sshd) = Sshd::start(keys.path()) else { return };
    let other = keys.path().join("user.pub");
    let line = fs::read_to_string(other).unwrap();
    fs::write(keys.path().join("known"), format!("[127.0.0.1]:{} {line}", sshd.ssh.port)).unwrap();
    world.machine.target = Target::Ssh(sshd.ssh.clone());
    let error =
        format!("{:#}", world.with(|errand| errand.prepare(&world.spec, &world.machine).unwrap_err()));
    assert!(error.contains("Host key verification failed"), "{error}");
    assert!(!world.at("machine").exists(), "nothing was sent");
}

#[test]
fn a_connection_that_dies_ends_no_script() {
    let mut world = World::new("echo up; sleep 2; echo end; echo done > \"$ECHOES_OUT/done\"");
    let keys = tempfile::tempdir().unwrap();
    let Some(sshd) = Sshd::start(keys.path()) else { return };
    world.machine.target = Target::Ssh(sshd.ssh.clone());
    world.prepared_and_started();
    // The one connection that all commands share.
    for pid in world.alive(&sshd.ssh.control.display().to_string()) {
        let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL);
    }
    assert_eq!(world.ended(), Exit::Code(0));
    assert!(world.fetched().is_empty());
    assert_eq!(world.here("log.txt"), "up\nend\n");
}
