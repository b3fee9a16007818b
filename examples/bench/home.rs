//! The way home: many small files over a late link, what a person sees and can do while large ones come over a narrow one,
//! and what a script of nothing takes on this machine.

use crate::{
    Row,
    far::{Link, sh},
    gpu::{Bench, Ours, tree},
    note, rows,
};
use anyhow::{Context as _, Result, bail, ensure};
use std::{
    fs,
    io::{BufRead as _, BufReader},
    path::Path,
    process::Stdio,
    sync::mpsc::{Receiver, RecvTimeoutError, channel},
    thread,
    time::{Duration, Instant},
};
use time::OffsetDateTime;

/// Makes files of noise by the thousand, as predictions are, one a clip.
const MANY: &str = r#"
import hashlib, os, time
out = os.environ["ECHOES_OUT"]
whole = hashlib.sha256()
for n in range(1000):
    noise = os.urandom(4096)
    with open(f"{out}/{n:04}", "wb") as file:
        file.write(noise)
    whole.update(b"%04d\0" % n + hashlib.sha256(noise).digest())
print("tree", whole.hexdigest())
print("made", time.time_ns(), flush=True)
"#;

const FILES: usize = 1000;
const LEN: usize = 4096;

/// Makes files as large as checkpoints; then it says what time it is, until somebody stops it.
const LARGE: &str = r#"
import os, signal, sys, time
def stop(*_):
    print("stopped", time.time_ns(), flush=True)
    sys.exit(0)
signal.signal(signal.SIGTERM, stop)
for n in range(9):
    with open(f'{os.environ["ECHOES_OUT"]}/{n}.pt', "wb") as file:
        for _ in range(100):
            file.write(os.urandom(1000000))
while True:
    print("line", time.time_ns(), flush=True)
    time.sleep(0.25)
"#;

const BYTES: u64 = 900_000_000;

/// So much is home when it is certain that more comes; so long is looked at from then on; and nothing takes longer.
const BEGUN: u64 = 8 << 20;
const WINDOW: Duration = Duration::from_secs(12);
const AT_MOST: Duration = Duration::from_secs(300);

const RSYNC: &str =
    "mkdir -p \"$HERE/back\" && rsync -a -e \"$SSH\" \"$AT:$HOME_THERE/made/\" \"$HERE/back/\"";
const TAR: &str =
    "mkdir -p \"$HERE/back\" && $SSH \"$AT\" \"tar -C $HOME_THERE/made -c .\" | tar -C \"$HERE/back\" -x";

/// A line of the script's, and when it was there to be read.
struct Line {
    words: String,
    came: OffsetDateTime,
}

impl Line {
    /// The time that it names after this word.
    fn time(&self, of: &str) -> Option<OffsetDateTime> {
        let nanos = self.words.strip_prefix(of)?.trim().parse().ok()?;
        OffsetDateTime::from_unix_timestamp_nanos(nanos).ok()
    }
}

impl Bench {
    /// From the script's last word until all of its files are home and on the disk.
    pub fn home(&self, rounds: usize) -> Result<Vec<Row>> {
        let at = |name: &str| self.far.at(name);
        fs::create_dir_all(at("many"))?;
        fs::write(at("many/train.py"), MANY)?;
        self.emptied()?;
        let made = self.far.seen(&self.far.home()).join("made");
        fs::create_dir_all(&made)?;
        let noise = fs::read(&self.program)?;
        for n in 0..FILES {
            let from = n * LEN % (noise.len() - LEN);
            fs::write(made.join(format!("{n:04}")), &noise[from..from + LEN])?;
        }
        let wanted = tree(&made)?;
        let (mut ours, mut known, mut rsync, mut tar) = (vec![], vec![], vec![], vec![]);
        // Once untimed: the agent is brought to a machine once.
        for round in 0..=rounds {
            note(&format!("{FILES} files home over {}, {round} of {rounds}", Link::Late.name()));
            let run = self.ours(Link::Late, &at("many"), &[])?;
            ensure!(run.word("tree ")? == tree(&self.results(&run.name).join("out"))?, "not all came home");
            let theirs = |script: &str| -> Result<f64> {
                sh("rm -rf \"$1\"", &[&at("back")])?;
                let seconds = self.theirs(Link::Late, script)?;
                ensure!(tree(&at("back"))? == wanted, "not all was brought back");
                Ok(seconds)
            };
            let (by_rsync, by_tar) = (theirs(RSYNC)?, theirs(TAR)?);
            if round > 0 {
                ours.push(since_made(&run)?);
                known.push(run.seconds("exited", "fetched")?);
                rsync.push(by_rsync);
                tar.push(by_tar);
            }
        }
        let what = format!("{FILES} files home, {}", Link::Late.name());
        let mut table = rows(&what, ours, vec![("rsync", rsync), ("ssh | tar", tar)]);
        table.extend(rows(&format!("{what}, once the script's end is known"), known, vec![]));
        Ok(table)
    }

    /// How late a line is shown, and how long `gpu stop` takes to reach the script, while large files come home.
    pub fn meanwhile(&self, rounds: usize) -> Result<Vec<Row>> {
        let project = self.far.at("large");
        fs::create_dir_all(&project)?;
        fs::write(project.join("train.py"), LARGE)?;
        self.emptied()?;
        let (mut late, mut stop) = (vec![], vec![]);
        for round in 1..=rounds {
            note(&format!("{} MB home over {}, {round} of {rounds}", BYTES / 1_000_000, Link::Narrow.name()));
            let (latest, stopped) = self.while_it_comes(&project)?;
            note(&format!("  a line {latest:.2} s late at most, stopped after {stopped:.2} s"));
            late.push(latest);
            stop.push(stopped);
        }
        let what = format!("while {} MB come home, {}", BYTES / 1_000_000, Link::Narrow.name());
        let mut table = rows(&format!("{what}: the latest line"), late, vec![]);
        table.extend(rows(&format!("{what}: `gpu stop`"), stop, vec![]));
        Ok(table)
    }

    fn while_it_comes(&self, project: &Path) -> Result<(f64, f64)> {
        let name = self.name();
        let machine = format!("ssh://root@{}", self.far.address(Link::Narrow));
        let mut watching = self.gpu_run(&machine, project, &name);
        let mut watching = watching.stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?;
        let output = BufReader::new(watching.stdout.take().context("it has an output")?);
        let (tell, lines) = channel();
        thread::spawn(move || {
            for words in output.lines().map_while(Result::ok) {
                let _ = tell.send(Line { words, came: OffsetDateTime::now_utc() });
            }
        });
        let mut all = Vec::new();
        let out = self.results(&name);
        until(&lines, &mut all, "the first of it at home", || Ok(bytes(&out)? > BEGUN))?;
        let (from, since) = (OffsetDateTime::now_utc(), Instant::now());
        until(&lines, &mut all, "the window's end", || Ok(since.elapsed() > WINDOW))?;
        ensure!(bytes(&out)? < BYTES, "all of it was home too soon");
        let asked = OffsetDateTime::now_utc();
        let words = self.setting_words();
        let told = self.far.near(&self.program).args(words).args(["gpu", "stop", &name]).output()?;
        ensure!(told.status.success(), "gpu stop: {}", String::from_utf8_lossy(&told.stderr));
        let mut ended = None;
        until(&lines, &mut all, "the run's end", || {
            ended = watching.try_wait()?;
            Ok(ended.is_some())
        })?;
        ensure!(ended.and_then(|status| status.code()) == Some(85), "gpu-run ended in {ended:?}");
        all.extend(lines.try_iter());
        self.hang_up()?;
        let stopped = all.iter().find_map(|line| line.time("stopped ")).context("it was not stopped")?;
        let printed = |line: &Line| line.time("line ").filter(|at| (from..asked).contains(at));
        let late = all.iter().filter_map(|line| Some((line.came - printed(line)?).as_seconds_f64()));
        let latest = late.reduce(f64::max).context("it said nothing meanwhile")?;
        Ok((latest, (stopped - asked).as_seconds_f64()))
    }

    /// From Enter to prompt, on this machine.
    pub fn enter(&self, rounds: usize) -> Result<Vec<Row>> {
        let project = self.far.at("nothing");
        fs::create_dir_all(&project)?;
        fs::write(project.join("train.py"), "")?;
        let mut ours = Vec::new();
        // Once untimed: the program is brought to where its machine is here, too.
        for round in 0..=rounds {
            sh("sync", &[])?;
            let since = Instant::now();
            let out = self.gpu_run("local", &project, &self.name()).output()?;
            let seconds = since.elapsed().as_secs_f64();
            let said = String::from_utf8_lossy(&out.stderr);
            ensure!(out.status.success(), "gpu-run ended in {}: {said}", out.status);
            if round > 0 {
                ours.push(seconds);
            }
        }
        Ok(rows("a script of nothing, on this machine", ours, vec![]))
    }
}

fn since_made(run: &Ours) -> Result<f64> {
    let made = OffsetDateTime::from_unix_timestamp_nanos(run.word("made ")?.parse()?)?;
    let home = run.at.get("fetched").context("it never came home")?;
    Ok((*home - made).as_seconds_f64())
}

/// All that is there so far, also of files that are not whole.
fn bytes(dir: &Path) -> Result<u64> {
    let mut sum = 0;
    let mut left = vec![dir.to_path_buf()];
    while let Some(at) = left.pop() {
        // What comes and goes meanwhile.
        for entry in fs::read_dir(&at).into_iter().flatten().flatten() {
            match entry.metadata() {
                Ok(meta) if meta.is_dir() => left.push(entry.path()),
                Ok(meta) => sum += meta.len(),
                Err(_) => {}
            }
        }
    }
    Ok(sum)
}

/// Keeps what comes until then.
fn until(
    lines: &Receiver<Line>,
    all: &mut Vec<Line>,
    what: &str,
    mut seen: impl FnMut() -> Result<bool>,
) -> Result<()> {
    let since = Instant::now();
    while !seen()? {
        if since.elapsed() > AT_MOST {
            bail!("{what} did not come");
        }
        match lines.recv_timeout(Duration::from_millis(50)) {
            Ok(line) => all.push(line),
            Err(RecvTimeoutError::Timeout) => {}
            // Its output has ended, and soon it will have.
            Err(RecvTimeoutError::Disconnected) => thread::sleep(Duration::from_millis(50)),
        }
    }
    Ok(())
}
