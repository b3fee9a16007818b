//! Ordinary troubles: what scripts leave in `$ECHOES_OUT`, and how they end, that the tools of other teams have lost, for
//! ever waited for, or called something else. A table: what the script does, what is at home then, under which words and
//! which exit status, and whether what is left is still where it can be fetched. The script is a person's who is not root,
//! whom modes mean something to: here, on a machine that the team owns, and on one that is rented. The rows of one machine
//! are side by side.

use crate::{
    here::{self, Here},
    process::CompletedProcess,
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;
use std::{
    collections::BTreeSet,
    ffi::OsStr,
    fmt::Write as _,
    fs,
    os::unix::{
        ffi::OsStrExt as _,
        fs::{MetadataExt as _, chown},
    },
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

/// The person whose scripts they are.
pub const PERSON: &str = "bea";
pub const ID: u32 = 4242;

/// From the first script's beginning until the last receipt, with all of them on one or two processors. Each by itself takes
/// seconds, all of them a minute or two; what is waited for in vain takes ten minutes.
const AT_MOST: Duration = Duration::from_secs(400);

/// The beginning of every script.
const PRELUDE: &str = r#"
import os, pathlib, signal, socket, subprocess, sys, time
out = os.environb[b"ECHOES_OUT"]
def at(name):
    return os.path.join(out, name)
def put(name, data=b"x"):
    with open(at(name), "wb") as file:
        file.write(data)
def wait_for(name):
    path = pathlib.Path(sys.argv[1]) / f"{name}-{os.environ['ECHOES_RUN']}"
    while not path.exists():
        time.sleep(0.05)
"#;

/// Something that is at home at the end.
enum Expected {
    /// A file, and what is in it.
    File(&'static [u8], &'static [u8]),
    /// A link with this in it.
    Link(&'static [u8], &'static [u8]),
    /// A directory.
    Dir(&'static [u8]),
    /// Not there, whatever it was.
    None(&'static [u8]),
    /// So many files below there.
    Files(&'static [u8], usize),
    /// One file under two names.
    Same(&'static [u8], &'static [u8]),
    /// A file as long as this, almost none of it on the disk.
    Sparse(&'static [u8], u64),
    /// Reading it, by whatever is there, gives this.
    Reads(&'static [u8], &'static [u8]),
}

use Expected::{Dir, File, Files, Link, None as Nothing, Reads, Same, Sparse};

/// Something that happens while the script runs.
enum Meanwhile {
    Nothing,
    /// Once the script has said `ready`: done as soon as it says that it is.
    Ready(fn(&World, &str) -> bool),
}

pub struct Row {
    run: &'static str,
    script: &'static str,
    meanwhile: Meanwhile,
    home: &'static [Expected],
    /// The receipt says that all is home.
    all_home: bool,
    /// How many things are left, and one of them by its name as it is shown.
    left: Option<(u64, &'static str)>,
    /// On the person's screen.
    words: &'static [&'static str],
    status: i32,
}

impl Row {
    const fn new(run: &'static str, script: &'static str, home: &'static [Expected]) -> Self {
        Self {
            run,
            script,
            meanwhile: Meanwhile::Nothing,
            home,
            all_home: true,
            left: None,
            words: &[],
            status: 0,
        }
    }

    /// Something of it cannot come home, is named with the reason, and stays where it is.
    const fn left(self, count: u64, name: &'static str, words: &'static [&'static str]) -> Self {
        Self { all_home: false, left: Some((count, name)), words, status: 87, ..self }
    }

    const fn says(self, words: &'static [&'static str]) -> Self {
        Self { words, ..self }
    }

    const fn ends(self, status: i32) -> Self {
        Self { status, ..self }
    }

    const fn when_ready(self, act: fn(&World, &str) -> bool) -> Self {
        Self { meanwhile: Meanwhile::Ready(act), ..self }
    }
}

const DENIED: &str = "ermission denied";

pub const ROWS: [Row; 22] = [
    Row::new("plain", "put(b'a', b'1')", &[File(b"a", b"1")]).says(&["exit status 0"]),
    // E 1: it held back all that sorts after it, for ten minutes, and then all was deleted.
    Row::new(
        "private",
        "put(b'a_private.key'); os.chmod(at(b'a_private.key'), 0)\nfor i in range(12): put(b'ckpt%d.pt' % i, b'%d' % i)",
        &[File(b"ckpt0.pt", b"0"), File(b"ckpt11.pt", b"11"), Nothing(b"a_private.key"), Files(b"", 12)],
    )
    .left(1, "a_private.key", &["a_private.key", DENIED]),
    // E 3: nobody said a word about what was in it.
    Row::new(
        "locked",
        "os.mkdir(at(b'd')); put(b'd/x'); os.chmod(at(b'd'), 0); put(b'e')",
        &[File(b"e", b"x"), Nothing(b"d/x")],
    )
    .left(1, "d", &["out/d", DENIED]),
    Row::new("shut", "put(b'a'); os.chmod(out, 0)", &[]).left(1, "out", &["out", DENIED]),
    Row::new(
        "several",
        "for i in range(40):\n    put(b'%02d' % i); os.chmod(at(b'%02d' % i), 0 if i % 2 else 0o600)",
        &[File(b"00", b"x"), File(b"38", b"x"), Files(b"", 20)],
    )
    .left(20, "01", &["20 files", DENIED]),
    // A script's own failure keeps its status, and what is left stays all the same.
    Row::new(
        "fails",
        "put(b'a'); os.chmod(at(b'a'), 0); put(b'b'); sys.exit(3)",
        &[File(b"b", b"x"), Nothing(b"a")],
    )
    .left(1, "a", &["exit status 3", "out/a", DENIED])
    .ends(3),
    // E 4, by their bytes.
    Row::new(
        "names",
        r#"
for name in [b"\xe9", b"a\nb", b"tab\there", b"esc\x1b[2J", b"\xff\xfe", b"bell\x07", b"cr\r", b" spaces ", b"-rf", b"*",
             b'"', b"'", b"\\", b"$HOME", b"a;b", "ü 漢字 \u202e".encode(), b"con.", b"%2e%2e", b".hidden", b"..."]:
    put(name, name)
"#,
        &[
            File(b"\xe9", b"\xe9"),
            File(b"a\nb", b"a\nb"),
            File(b"tab\there", b"tab\there"),
            File(b"esc\x1b[2J", b"esc\x1b[2J"),
            File(b"\xff\xfe", b"\xff\xfe"),
            File(b"cr\r", b"cr\r"),
            File(b" spaces ", b" spaces "),
            File(b"-rf", b"-rf"),
            File(b"$HOME", b"$HOME"),
            File(b"%2e%2e", b"%2e%2e"),
            File(b"...", b"..."),
            Files(b"", 20),
        ],
    ),
    // One such name hid all others of its kind.
    Row::new(
        "unnamed",
        "for i in range(3):\n    put(b'\\xe9%d' % i); os.chmod(at(b'\\xe9%d' % i), 0)\nput(b'a')",
        &[File(b"a", b"x"), Files(b"", 1)],
    )
    .left(3, "", &["3 files", DENIED]),
    Row::new(
        "long",
        "put(b'n' * 255, b'1')\ndeep = b'/'.join([b'd' * 100] * 25)\nos.makedirs(at(deep)); put(deep + b'/f', b'2')",
        &[Files(b"", 2)],
    ),
    // Lightning's last.ckpt, DeepSpeed's latest, W&B's latest-run.
    Row::new(
        "links",
        r#"
put(b"epoch=3.ckpt", b"3"); os.mkdir(at(b"d")); put(b"d/f", b"f")
os.symlink(b"epoch=3.ckpt", at(b"last.ckpt")); os.symlink(b"../epoch=3.ckpt", at(b"d/up")); os.symlink(b"d", at(b"latest"))
os.symlink(at(b"epoch=3.ckpt"), at(b"absolute")); os.symlink(b"not-yet", at(b"dangling"))
os.symlink(b"b", at(b"a")); os.symlink(b"a", at(b"b"))
"#,
        &[
            Link(b"last.ckpt", b"epoch=3.ckpt"),
            Link(b"d/up", b"../epoch=3.ckpt"),
            Link(b"latest", b"d"),
            Link(b"dangling", b"not-yet"),
            Link(b"a", b"b"),
            Link(b"b", b"a"),
            Reads(b"absolute", b"3"),
            Reads(b"latest/f", b"f"),
        ],
    ),
    // What is elsewhere is not this run's, and nobody's password file comes home.
    Row::new(
        "leads-out",
        "os.symlink(b'/etc/passwd', at(b'stolen')); os.symlink(b'../../../../../../../etc', at(b'etc')); put(b'a')",
        &[File(b"a", b"x"), Nothing(b"stolen"), Nothing(b"etc")],
    )
    .says(&["stolen"]),
    Row::new(
        "hard",
        "put(b'one', b'1' * 3000000); os.link(at(b'one'), at(b'two')); os.mkdir(at(b'd')); os.link(at(b'one'), at(b'd/three'))",
        &[Same(b"one", b"two"), Same(b"one", b"d/three"), Files(b"", 3)],
    ),
    // E 16: 3.1 GB and 37 s.
    Row::new(
        "sparse",
        "with open(at(b'db'), 'wb') as db:\n    db.truncate(3 << 30); db.seek(1 << 30); db.write(b'y' * 4096)\nput(b'a')",
        &[Sparse(b"db", 3 << 30), File(b"a", b"x")],
    ),
    // Nothing was computed that is in them.
    Row::new(
        "special",
        "os.mkfifo(at(b'pipe')); socket.socket(socket.AF_UNIX).bind(os.path.relpath(at(b'sock'))); put(b'a')",
        &[File(b"a", b"x"), Nothing(b"pipe"), Nothing(b"sock")],
    )
    .says(&["pipe", "sock"]),
    Row::new("empty", "os.makedirs(at(b'd/e')); put(b'nothing', b'')", &[File(b"nothing", b""), Dir(b"d/e")]),
    Row::new(
        "turns",
        "put(b'a', b'file'); print('ready', flush=True); wait_for('go')\nos.unlink(at(b'a')); os.mkdir(at(b'a')); put(b'a/b', b'2')",
        &[File(b"a/b", b"2")],
    )
    .when_ready(|world, run| world.home(run).join("out/a").exists() && world.go(run)),
    Row::new(
        "grows",
        "with open(at(b'log'), 'ab', 0) as log:\n    for i in range(160): log.write(b'z' * 1000); time.sleep(0.05)",
        &[Files(b"", 1), Reads(b"log", &[b'z'; 160_000])],
    ),
    Row::new(
        "goes",
        "put(b'kept')\nfor i in range(3000):\n    put(b'tmp%d' % i); os.unlink(at(b'tmp%d' % i)); time.sleep(0.002)",
        &[File(b"kept", b"x"), Files(b"", 1)],
    ),
    // As a container leaves it.
    Row::new(
        "others",
        "put(b'mine'); print('ready', flush=True); wait_for('go')",
        &[File(b"mine", b"x"), Nothing(b"root.pt")],
    )
    .when_ready(|world, run| {
        let theirs = world.out(run).join("root.pt");
        fs::write(&theirs, "r").unwrap();
        fs::set_permissions(&theirs, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
        chown(&theirs, Some(0), Some(0)).unwrap();
        world.go(run)
    })
    .left(1, "root.pt", &["out/root.pt", DENIED]),
    Row::new(
        "saves",
        "def save(*_):\n    time.sleep(3); put(b'final.ckpt', b'f'); sys.exit(0)\n\
         signal.signal(signal.SIGTERM, save); put(b'a'); print('ready', flush=True)\nwhile True: time.sleep(1)",
        &[File(b"final.ckpt", b"f"), File(b"a", b"x")],
    )
    .when_ready(|world, run| world.run(&["gpu", "stop", run]).code == 0)
    .says(&["stopped"])
    .ends(85),
    // E 13: a box that restarts, and nobody there who is root: everything of it is told to end at once.
    Row::new(
        "restarted",
        "n = int(os.environ['ECHOES_ATTEMPT']); put(b'try%d' % n, b'%d' % n)\nif n == 1:\n    print('ready', flush=True); time.sleep(600)",
        &[File(b"try1", b"1"), File(b"try2", b"2")],
    )
    .when_ready(|world, run| world.restarts(run)),
    // E 14: as vLLM and Ray do; what is looked for is a name that no other row's has.
    Row::new(
        "orphan",
        "subprocess.Popen(['env', '-i', 'sleep', '4242.5'], start_new_session=True, close_fds=True)\nput(b'a')",
        &[File(b"a", b"x")],
    ),
];

/// E 2, with more than anybody's limit was. One machine is enough for that.
pub const MANY: Row = Row::new(
    "many",
    "for i in range(25000):\n    if i % 1000 == 0: os.mkdir(at(b'%03d' % (i // 1000)))\n    put(b'%03d/%05d' % (i // 1000, i), b'%d' % i)",
    &[File(b"000/00000", b"0"), File(b"024/24999", b"24999"), Files(b"", 25_000)],
);

/// A command here, by its words.
pub type Typed<'a> = dyn Fn(&[&str]) -> Command + 'a;

/// A machine where scripts run, and headquarters.
pub struct World<'a> {
    /// How the names of its runs begin.
    pub named: &'static str,
    pub here: &'a Here,
    pub command: Box<Typed<'a>>,
    /// `--provider` and what belongs to it.
    pub provider: Vec<String>,
    /// The directory on the machine that has a directory for each run, as it is seen from here.
    pub rooms: PathBuf,
    /// A directory there in which a script is told to go on, and the same as it is seen from here.
    pub signs: (String, PathBuf),
    /// Whether there is a process that only the row `orphan` starts.
    pub has_orphan: Box<dyn Fn() -> bool + 'a>,
    /// It is rented: what is left is kept without it.
    pub rented: bool,
}

impl World<'_> {
    fn run(&self, words: &[&str]) -> CompletedProcess {
        CompletedProcess::run(&mut (self.command)(words))
    }

    fn room(&self, run: &str) -> PathBuf {
        self.rooms.join(run)
    }

    fn out(&self, run: &str) -> PathBuf {
        self.room(run).join("out")
    }

    /// Where it is set aside.
    fn kept(&self, run: &str) -> PathBuf {
        self.rooms.with_file_name("kept").join(run)
    }

    fn home(&self, run: &str) -> PathBuf {
        self.here.path("data/azure_results").join(run)
    }

    /// The script may go on.
    fn go(&self, run: &str) -> bool {
        fs::write(self.signs.1.join(format!("go-{run}")), "").is_ok()
    }

    /// Stories beside one another see each other's processes: no two have a run of the same name.
    fn name(&self, row: &Row) -> String {
        format!("{}-{}", self.named, row.run)
    }

    /// The script and its keeper are told to end in the same moment.
    fn restarts(&self, run: &str) -> bool {
        let keeper = here::keeper(run).expect("a keeper");
        let children = fs::read_to_string(format!("/proc/{keeper}/task/{keeper}/children")).unwrap();
        let script = children.split_whitespace().filter_map(|id| id.parse().ok());
        for id in script.chain([keeper]) {
            kill(Pid::from_raw(id), Signal::SIGTERM).unwrap();
        }
        true
    }

    fn begin(&self, row: &Row) -> Child {
        let (script, run) = (self.here.path(&format!("code/{}.py", row.run)), self.name(row));
        let first = ["gpu-run", script.to_str().unwrap(), "--name", &run, "--yes"];
        let provider: Vec<&str> = self.provider.iter().map(String::as_str).collect();
        let last = ["--", self.signs.0.as_str()];
        let mut command = (self.command)(&[&first[..], &provider, &last].concat());
        let log = |name: &str| fs::File::create(self.here.path(&format!("{name}-{run}"))).unwrap();
        command.stdout(Stdio::from(log("stdout"))).stderr(Stdio::from(log("stderr"))).spawn().unwrap()
    }

    fn seen(&self, name: &str, run: &str) -> String {
        let bytes = fs::read(self.here.path(&format!("{name}-{run}"))).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// All rows, side by side; all that is not as it should be, row by row.
    pub fn try_all(&self, rows: &[&Row]) {
        for row in rows {
            let script = format!("{PRELUDE}{}\n", row.script);
            fs::write(self.here.path(&format!("code/{}.py", row.run)), script).unwrap();
        }
        let since = Instant::now();
        let [first, others @ ..] = rows else { return };
        let mut watching = vec![(*first, self.begin(first))];
        // What runs share is brought by the first of them.
        let prepared = || self.here.events(&self.name(first)).iter().any(|event| event == "prepared");
        self.here.until("the first of them", prepared);
        watching.extend(others.iter().map(|row| (*row, self.begin(row))));
        let mut acted = BTreeSet::new();
        let mut faults = Vec::new();
        while !watching.is_empty() {
            watching.retain_mut(|(row, child)| {
                let run = self.name(row);
                if let Meanwhile::Ready(act) = row.meanwhile
                    && !acted.contains(row.run)
                    && self.seen("stdout", &run).contains("ready")
                    && act(self, &run)
                {
                    acted.insert(row.run);
                }
                match child.try_wait().unwrap() {
                    Some(status) => {
                        let code = status.code().unwrap_or(-1);
                        faults.extend(self.faults(row, code).map(|fault| format!("{}: {fault}", row.run)));
                        false
                    }
                    None if since.elapsed() > AT_MOST => {
                        let _ = child.kill();
                        let _ = child.wait();
                        faults.push(format!("{}: it takes too long: {}", row.run, self.seen("stderr", &run)));
                        false
                    }
                    None => true,
                }
            });
            std::thread::sleep(Duration::from_millis(50));
        }
        if (self.has_orphan)() {
            faults.push("orphan: a process of it is left".into());
        }
        assert!(faults.is_empty(), "{} of {} rows:\n{}", faults.len(), rows.len(), faults.join("\n"));
        eprintln!("{} ordinary troubles in {:?}", rows.len(), since.elapsed());
    }

    /// What cannot be read is left, and comes home once somebody has made it readable; asked for before, it stays.
    pub fn pull_what_is_left(&self) {
        let row = Row::new("shut-file", "put(b'a', b'1'); os.chmod(at(b'a'), 0); put(b'b', b'2')", &[]);
        let (run, script) = (self.name(&row), self.here.path("code/shut-file.py"));
        fs::write(&script, format!("{PRELUDE}{}\n", row.script)).unwrap();
        assert_eq!(self.begin(&row).wait().unwrap().code(), Some(87), "{}", self.seen("stderr", &run));
        let out = self.home(&run).join("out");
        for (mode, status) in [(0o0, 87), (0o600, 0)] {
            let left = self.kept(&run).join("out/a");
            fs::set_permissions(&left, std::os::unix::fs::PermissionsExt::from_mode(mode)).unwrap();
            let pulled = self.run(&["gpu", "pull", &run]);
            assert_eq!(pulled.code, status, "{pulled}");
            assert_eq!(out.join("a").exists(), status == 0, "{pulled}");
            assert_eq!(self.kept(&run).exists(), status != 0, "{pulled}");
            assert!(self.room(&run).symlink_metadata().is_err(), "{pulled}");
        }
        let content = |name: &str| fs::read_to_string(out.join(name)).unwrap();
        assert_eq!((content("a"), content("b")), ("1".to_owned(), "2".to_owned()));
        let receipt = self.run(&["gpu", "cost", &run, "--json"]).json();
        let said = (&receipt["all_home"], &receipt["exit_status"], &receipt["left"], &receipt["kept"]);
        assert_eq!(said, (&true.into(), &0.into(), &Value::Null, &Value::Null), "{receipt}");
    }

    /// Lists what is not as the row has it; none when nothing is.
    fn faults(&self, row: &Row, code: i32) -> Option<String> {
        let run = &self.name(row);
        let said = self.seen("stderr", run);
        let mut all = String::new();
        let mut fault = |what: String| writeln!(all, "    {what}").unwrap();
        if code != row.status {
            fault(format!("exit status {code} and not {}", row.status));
        }
        for word in row.words.iter().filter(|word| !said.contains(*word)) {
            fault(format!("{word:?} is not on the screen"));
        }
        if said.contains("its driver is gone") {
            let log = self.here.inside(&format!("{}/{run}/driver.log", here::RUNS));
            fault(format!("its driver died: {}", fs::read_to_string(log).unwrap_or_default()));
        }
        if let Some(bad) = said.chars().find(|c| c.is_control() && *c != '\n') {
            fault(format!("{bad:?} is on the screen"));
        }
        let out = self.home(run).join("out");
        row.home.iter().filter_map(|home| home.fault(&out)).for_each(&mut fault);
        let receipt = self.run(&["gpu", "cost", run, "--json"]).json();
        if receipt["all_home"] != row.all_home {
            fault(format!("all_home is {}", receipt["all_home"]));
        }
        if receipt["proven_gone"] != true {
            fault("it is not proven gone".into());
        }
        self.left(row, &receipt).into_iter().for_each(&mut fault);
        (!all.is_empty()).then(|| format!("\n{all}{said}{receipt}"))
    }

    /// Compares what the receipt says of what is left; it still is where it was, and goes when nobody wants it any more.
    fn left(&self, row: &Row, receipt: &Value) -> Vec<String> {
        let mut all = Vec::new();
        let (left, run) = (&receipt["left"], &self.name(row));
        let events = self.here.events(run);
        let kept = events.iter().any(|event| event == "kept");
        let stays = |what: &str| format!("{what}: {:?}, {events:?}", self.kept(run));
        let is_there = |path: PathBuf| path.symlink_metadata().is_ok();
        match row.left {
            None => {
                if left["count"].as_u64().unwrap_or(0) > 0 {
                    all.push(format!("this is left: {left}"));
                }
                if kept || !self.rented && (is_there(self.room(run)) || is_there(self.kept(run))) {
                    all.push(stays("what is not needed any more is kept"));
                }
            }
            Some((count, name)) => {
                if left["count"] != count {
                    all.push(format!("{} are left and not {count}", left["count"]));
                }
                let first = left["first"].as_array().cloned().unwrap_or_default();
                let named = |one: &Value| {
                    let path = &one["path"];
                    path.as_str().is_none_or(|path| path.contains(name)) && one["why"].is_string()
                };
                if first.is_empty() || !first.iter().any(named) {
                    all.push(format!("{name:?} is not named with a reason: {left}"));
                }
                if left["bytes"].as_u64().is_none() {
                    all.push(format!("how much is left is not said: {left}"));
                }
                if !kept || !self.rented && !is_there(self.kept(run).join("out")) {
                    all.push(stays("what is left is not kept"));
                }
                let forgotten = self.run(&["gpu", "forget", run]);
                if forgotten.code != 0 || !self.rented && is_there(self.kept(run)) {
                    all.push(stays(&format!("it is not forgotten: {forgotten}")));
                }
            }
        }
        all
    }
}

impl Expected {
    fn fault(&self, out: &Path) -> Option<String> {
        let at =
            |name: &[u8]| if name.is_empty() { out.to_owned() } else { out.join(OsStr::from_bytes(name)) };
        let fault = |name: &[u8], what: String| Some(format!("{}: {what}", name.escape_ascii()));
        let start =
            |bytes: &[u8]| format!("{} bytes: {}", bytes.len(), bytes[..bytes.len().min(40)].escape_ascii());
        match self {
            File(name, content) => match fs::symlink_metadata(at(name)) {
                Ok(meta) if !meta.is_file() => fault(name, format!("it is {:?}", meta.file_type())),
                Ok(_) => Reads(name, content).fault(out),
                Err(error) => fault(name, error.to_string()),
            },
            Reads(name, content) => match fs::read(at(name)) {
                Ok(found) if found == *content => None,
                Ok(found) => fault(name, start(&found)),
                Err(error) => fault(name, error.to_string()),
            },
            Link(name, to) => match fs::read_link(at(name)) {
                Ok(found) if found.as_os_str().as_bytes() == *to => None,
                found => fault(name, format!("{found:?}")),
            },
            Dir(name) if at(name).is_dir() => None,
            Dir(name) => fault(name, "there is no such directory".into()),
            Nothing(name) => {
                fs::symlink_metadata(at(name)).ok().and_then(|meta| fault(name, format!("{meta:?}")))
            }
            Files(name, count) => {
                let found = files(&at(name));
                if found == *count { None } else { fault(name, format!("{found} files and not {count}")) }
            }
            Same(one, other) => match (fs::symlink_metadata(at(one)), fs::symlink_metadata(at(other))) {
                (Ok(one), Ok(other)) if one.ino() == other.ino() => None,
                found => fault(one, format!("{found:?}")),
            },
            Sparse(name, len) => match fs::symlink_metadata(at(name)) {
                Ok(meta) if meta.len() == *len && meta.blocks() * 512 < 64 << 20 => None,
                Ok(meta) => fault(name, format!("{} bytes in {} blocks", meta.len(), meta.blocks())),
                Err(error) => fault(name, error.to_string()),
            },
        }
    }
}

/// Whether a process of the row `orphan` is in the namespace: rows of other machines are beside these.
pub fn has_orphan(here: &Here) -> bool {
    let namespace = |id: &str| fs::read_link(format!("/proc/{id}/ns/mnt")).ok();
    let same = namespace(&here.holder.id().to_string());
    fs::read_dir("/proc").unwrap().flatten().any(|entry| {
        let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let ours = line.windows(6).any(|words| words == b"4242.5");
        ours && entry.file_name().to_str().and_then(namespace) == same
    })
}

/// Links are not followed.
fn files(dir: &Path) -> usize {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let count = |entry: fs::DirEntry| match entry.file_type() {
        Ok(kind) if kind.is_dir() => files(&entry.path()),
        Ok(kind) => usize::from(kind.is_file()),
        Err(_) => 0,
    };
    entries.map(count).sum()
}
