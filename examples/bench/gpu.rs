//! What `gpu-run` takes to get an experiment to a machine, beside how a person would by hand: rsync, scp, tar and a shell.
//! Ours is the program as a user has it; its times are those of its journal, from the first look at the machine (no
//! connection is open before that) until all is there, so with its agent's questions and its own bookkeeping. Whatever
//! was timed is then compared with what was sent, file by file.

use crate::{
    Row, TOP,
    far::{Far, Link, sh},
    note, rows,
};
use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use sha2::{Digest as _, Sha256};
use std::{
    collections::HashMap,
    fs,
    os::unix::ffi::OsStrExt as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Instant,
};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

pub const PARTS: [&str; 7] = ["code", "data", "first-line", "cli", "home", "meanwhile", "enter"];

/// Microsoft's own, as pip has it.
const AZURE_CLI: &str = "2.91.0";

/// When it began, of what it sees a hash by which two trees are the same, and that what it needs is there.
pub const SCRIPT: &str = r#"
import time
print("first", time.time_ns(), flush=True)
import hashlib, os, sys
root = os.path.dirname(os.path.abspath(__file__))
if sys.argv[1] == "data":
    root = os.environ.get("ECHOES_DATA", root + "/data") + "/ucf"
paths = []
for at, dirs, names in os.walk(root):
    dirs[:] = [one for one in dirs if one not in (".git", "__pycache__")]
    paths += [os.path.relpath(os.path.join(at, name), root) for name in names]
whole = hashlib.sha256()
for path in sorted(paths, key=os.fsencode):
    with open(os.path.join(root, path), "rb") as file:
        whole.update(os.fsencode(path) + b"\0" + hashlib.sha256(file.read()).digest())
for name in sys.argv[2:]:
    __import__(name)
print("tree", whole.hexdigest(), flush=True)
"#;

/// What is measured stays so when a later part fails.
pub fn table(
    program: Option<PathBuf>,
    rounds: usize,
    wanted: &dyn Fn(&str) -> bool,
    table: &mut Vec<Row>,
) -> Result<()> {
    let program = program.map_or_else(unpacked, Ok)?;
    let bench = Bench { far: Far::start()?, program: fs::canonicalize(program)?, runs: 0.into() };
    if wanted("code") {
        table.extend(bench.code(rounds)?);
    }
    if wanted("data") {
        table.extend(bench.data(rounds.min(3))?);
    }
    if wanted("first-line") {
        table.extend(bench.first_line(rounds.min(3))?);
    }
    if wanted("home") {
        table.extend(bench.home(rounds)?);
    }
    if wanted("meanwhile") {
        table.extend(bench.meanwhile(rounds.min(3))?);
    }
    if wanted("enter") {
        table.extend(bench.enter(rounds)?);
    }
    if wanted("cli") {
        table.extend(bench.cli(rounds)?);
    }
    Ok(())
}

/// The program of the package, as a user gets it.
fn unpacked() -> Result<PathBuf> {
    let dir = Path::new(TOP).join("target/bench-tools/package");
    sh("rm -rf \"$2\" && mkdir -p \"$2\" && dpkg-deb --extract \"$1\" \"$2\"", &[&kit::hq::deb(), &dir])?;
    Ok(dir.join("usr/bin/echoes-appliance"))
}

pub struct Bench {
    pub far: Far,
    pub program: PathBuf,
    runs: std::cell::Cell<usize>,
}

/// One run of ours.
pub struct Ours {
    pub name: String,
    pub at: HashMap<String, OffsetDateTime>,
    pub said: String,
}

impl Ours {
    pub fn seconds(&self, from: &str, to: &str) -> Result<f64> {
        let at = |event: &str| self.at.get(event).with_context(|| format!("{event} is not in the journal"));
        Ok((*at(to)? - *at(from)?).as_seconds_f64())
    }

    pub fn all_there(&self) -> Result<f64> {
        self.seconds("renting", "prepared")
    }

    /// A line of the script's.
    pub fn word(&self, of: &str) -> Result<&str> {
        let word = self.said.lines().find_map(|line| line.strip_prefix(of));
        word.map(str::trim).with_context(|| format!("the script says no {of}:\n{}", self.said))
    }
}

impl Bench {
    /// A `gpu-run` from its beginning to its end, without a connection that is left from before.
    pub fn ours(&self, link: Link, project: &Path, more: &[&str]) -> Result<Ours> {
        let name = self.name();
        let machine = format!("ssh://root@{}", self.far.address(link));
        settled()?;
        let out = self.gpu_run(&machine, project, &name).args(more).output()?;
        let said = String::from_utf8_lossy(&out.stdout).into_owned();
        let complaint = String::from_utf8_lossy(&out.stderr);
        ensure!(out.status.success(), "gpu-run ended in {}:\n{said}\n{complaint}", out.status);
        self.hang_up()?;
        let journal = format!("/var/lib/echoes-appliance/runs/{name}/journal.jsonl");
        let mut at = HashMap::new();
        for line in fs::read_to_string(self.far.seen_near(&journal))?.lines() {
            let entry: Value = serde_json::from_str(line)?;
            let word = |name: &str| entry[name].as_str().with_context(|| format!("no {name}: {line}"));
            at.insert(word("event")?.to_owned(), OffsetDateTime::parse(word("at")?, &Rfc3339)?);
        }
        Ok(Ours { name, at, said })
    }

    /// No two are called the same.
    pub fn name(&self) -> String {
        format!("bench-{}", self.runs.replace(self.runs.get() + 1))
    }

    /// The settings of this headquarters.
    pub fn setting_words(&self) -> Vec<String> {
        let settings = [("data.path", "data"), ("gpu.known_hosts", "known"), ("gpu.ssh_key", "user")];
        let word = |(name, at): (&str, &str)| format!("{name}={}", self.far.at(at).display());
        settings.into_iter().flat_map(|one| ["--set".to_owned(), word(one)]).collect()
    }

    /// A run of this project's script, to be started.
    pub fn gpu_run(&self, machine: &str, project: &Path, name: &str) -> Command {
        let mut command = self.far.near(&self.program);
        command
            .args(self.setting_words())
            .args(["gpu-run", "--provider", machine, "--name", name])
            .arg(project.join("train.py"));
        command
    }

    /// The directory that a run's results come home to.
    pub fn results(&self, name: &str) -> PathBuf {
        self.far.at("data/azure_results").join(name)
    }

    pub fn hang_up(&self) -> Result<()> {
        let script = "for socket in /run/echoes-appliance/ssh/*; do \
                      ssh -o ControlPath=\"$socket\" -O exit x 2> /dev/null; done; true";
        ensure!(self.far.near(Path::new("sh")).args(["-c", script]).status()?.success());
        Ok(())
    }

    /// What a person would type, in seconds. `$SSH` and `$SCP` have the options, `$AT` the machine.
    pub fn theirs(&self, link: Link, script: &str) -> Result<f64> {
        self.typed(link, script).map(|(seconds, _)| seconds)
    }

    pub fn typed(&self, link: Link, script: &str) -> Result<(f64, String)> {
        settled()?;
        let since = Instant::now();
        let out = self.typing(link, script).output()?;
        let seconds = since.elapsed().as_secs_f64();
        let said = String::from_utf8_lossy(&out.stderr);
        ensure!(out.status.success(), "`{script}` ended in {}: {said}", out.status);
        Ok((seconds, String::from_utf8_lossy(&out.stdout).into_owned()))
    }

    pub fn typing(&self, link: Link, script: &str) -> Command {
        let mut command = Command::new("sh");
        command
            .args(["-euc", script])
            .env("SSH", self.far.ssh(link, "ssh"))
            .env("SCP", self.far.ssh(link, "scp"))
            .env("AT", format!("root@{}", self.far.address(link).ip()))
            .env("HERE", self.far.dir.path())
            .env("HOME_THERE", self.far.home());
        command
    }

    /// How long until it has said its version or its help: ours and Microsoft's.
    fn cli(&self, rounds: usize) -> Result<Vec<Row>> {
        let az = match azure_cli() {
            Ok(az) => az,
            Err(error) => {
                note(&format!("SKIPPED: start-up beside az: {error:#}"));
                return Ok(Vec::new());
            }
        };
        let mut table = Vec::new();
        for (ours, theirs) in
            [(&["--version"][..], &["version"][..]), (&["gpu-run", "--help"], &["vm", "--help"])]
        {
            let (mut our, mut their) = (vec![], vec![]);
            // Once each untimed: az compiles itself and writes an index of its commands.
            for round in 0..=rounds {
                let (mut one, mut other) = (Command::new(&self.program), Command::new(&az));
                let one = quiet(one.args(ours))?;
                let other = quiet(other.args(["-Im", "azure.cli"]).args(theirs))?;
                if round > 0 {
                    our.push(one);
                    their.push(other);
                }
            }
            let (ours, theirs) = (ours.join(" "), theirs.join(" "));
            table.extend(rows(&format!("start-up, `{ours}`"), our, vec![(&format!("`az {theirs}`"), their)]));
        }
        let ps: Result<Vec<f64>> =
            (0..rounds).map(|_| quiet(self.far.near(&self.program).args(["gpu", "ps", "--all"]))).collect();
        table.extend(rows("start-up, `gpu ps --all`", ps?, vec![]));
        Ok(table)
    }
}

/// What others wrote is on the disk: ours writes its own there while it is timed, and would wait for theirs, too.
fn settled() -> Result<()> {
    sh("sync", &[])
}

fn quiet(command: &mut Command) -> Result<f64> {
    let since = Instant::now();
    let status = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status()?;
    let seconds = since.elapsed().as_secs_f64();
    ensure!(status.success(), "{command:?} ended in {status}");
    Ok(seconds)
}

/// The same for the same files.
pub fn tree(dir: &Path) -> Result<String> {
    let mut paths = Vec::new();
    let mut left = vec![dir.to_path_buf()];
    while let Some(at) = left.pop() {
        for entry in fs::read_dir(&at).with_context(|| at.display().to_string())? {
            let path = entry?.path();
            if path.is_dir() { left.push(path) } else { paths.push(path.strip_prefix(dir)?.to_owned()) }
        }
    }
    paths.sort_by(|a, b| a.as_os_str().as_bytes().cmp(b.as_os_str().as_bytes()));
    let mut whole = Sha256::new();
    for path in paths {
        whole.update(path.as_os_str().as_bytes());
        whole.update(b"\0");
        whole.update(Sha256::digest(fs::read(dir.join(path))?));
    }
    Ok(whole.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

/// Its Python, from an environment of its own that stays in target/.
fn azure_cli() -> Result<PathBuf> {
    let dir = Path::new(TOP).join("target/bench-tools").join(format!("az-{AZURE_CLI}"));
    if !dir.join("complete").exists() {
        note("fetching azure-cli, which takes minutes");
        let script = "rm -rf \"$1\" && python3 -m venv \"$1\" && \"$1/bin/pip\" install --quiet \"azure-cli==$0\" && : > \"$1/complete\"";
        let out = Command::new("sh").args(["-c", script, AZURE_CLI]).arg(&dir).output()?;
        ensure!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    }
    Ok(dir.join("bin/python3"))
}
