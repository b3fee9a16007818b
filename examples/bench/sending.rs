//! Code and data on their way to a machine: the first time, again when nothing has changed, and after a cut.

use crate::{
    Row,
    far::{Link, sh},
    gpu::{Bench, SCRIPT, tree},
    note, rows,
};
use anyhow::{Context as _, Result, ensure};
use std::{fs, path::Path};

/// A checkout of a team that has been at it for a while.
const CODE: usize = 2_000;
/// As many files as UCF101 has, in its 101 classes; a sixteenth of its bytes.
const CLASSES: usize = 101;
const CLIPS: usize = 13_320;
const MEAN: u64 = 32 << 10;
/// scp asks several times for each file. Over the late link it gets a part of them, once, and its time is multiplied.
const TENTH: usize = 10;
const TWENTIETH: usize = 20;

const RSYNC: &str = "rsync -az --delete -e \"$SSH\" \"$HERE/$0/\" \"$AT:$HOME_THERE/rsync/\"";
/// Films are as small as they get.
const RSYNC_DATA: &str = "rsync -a --delete -e \"$SSH\" \"$HERE/$0/\" \"$AT:$HOME_THERE/rsync/\"";
const SCP: &str = "$SCP -q -r \"$HERE/$0/.\" \"$AT:$HOME_THERE/scp\"";
const TAR: &str =
    "tar -C \"$HERE/$0\" -c . | $SSH \"$AT\" \"cd $HOME_THERE && mkdir -p tar && tar -C tar -x\"";

impl Bench {
    /// 2,000 files of text, to where nothing is, and again to where they are.
    pub fn code(&self, rounds: usize) -> Result<Vec<Row>> {
        let at = |name: &str| self.far.at(name);
        write_code(&at("plain"), CODE)?;
        write_code(&at("tenth"), CODE / TENTH)?;
        // Theirs is the same without .git, which none of them would leave out by itself.
        sh(
            "cp -r \"$1\" \"$2\" && cd \"$2\" && git init -q && git add . && \
             git -c user.name=bench -c user.email=bench@localhost commit -qm all",
            &[&at("plain"), &at("project")],
        )?;
        let wanted = tree(&at("plain"))?;
        let mut table = Vec::new();
        for link in [Link::Plain, Link::Narrow, Link::Late] {
            let mut times: [[Vec<f64>; 4]; 2] = Default::default();
            self.emptied()?;
            // The agent is brought once to each machine; that is timed where machines are new.
            self.ours(link, &at("project"), &["--", "code"])?;
            for round in 1..=rounds {
                note(&format!("code over {}, {round} of {rounds}", link.name()));
                self.forget_code()?;
                for times in &mut times {
                    let ours = self.ours(link, &at("project"), &["--", "code"])?;
                    ensure!(ours.word("tree ")? == wanted, "the code is not what was sent");
                    times[0].push(ours.all_there()?);
                    times[1].push(self.sent(link, RSYNC, ("plain", "rsync"))?);
                    times[3].push(self.sent(link, TAR, ("plain", "tar"))?);
                    match link {
                        Link::Late if round > 1 => {}
                        Link::Late => {
                            times[2].push(self.sent(link, SCP, ("tenth", "scp"))? * TENTH as f64);
                        }
                        _ => times[2].push(self.sent(link, SCP, ("plain", "scp"))?),
                    }
                }
            }
            for (what, [ours, rsync, scp, tar]) in ["first", "no change"].into_iter().zip(times) {
                let scp_is = if link == Link::Late { "scp -r, 10 × a tenth" } else { "scp -r" };
                let others = vec![("rsync", rsync), (scp_is, scp), ("tar | ssh", tar)];
                table.extend(rows(&format!("code, {}, {what}", link.name()), ours, others));
            }
        }
        Ok(table)
    }

    /// Seconds, and proof.
    fn sent(&self, link: Link, script: &str, (from, to): (&str, &str)) -> Result<f64> {
        let seconds = self.theirs(link, &script.replace("$0", from))?;
        let there = tree(&self.far.seen(&self.far.home().join(to)))?;
        ensure!(there == tree(&self.far.at(from))?, "{to} is not what was sent");
        Ok(seconds)
    }

    /// What the code of earlier rounds left; the agent stays.
    fn forget_code(&self) -> Result<()> {
        let home = self.far.seen(&self.far.home());
        sh("cd \"$1\" && rm -rf rsync scp tar .echoes-appliance/code && mkdir scp && sync -f .", &[&home])
    }

    /// Nothing is on the machine, and nothing is remembered of it.
    pub fn emptied(&self) -> Result<()> {
        let memory = self.far.seen_near("/var/lib/echoes-appliance/home");
        sh("rm -rf \"$1\"", &[&memory])?;
        self.far.emptied()
    }

    /// 13,320 files that do not get smaller.
    pub fn data(&self, rounds: usize) -> Result<Vec<Row>> {
        let at = |name: &str| self.far.at(name);
        let bytes = write_clips(&at("data/ucf"), CLIPS)?;
        write_clips(&at("few"), CLIPS / TWENTIETH)?;
        note(&format!("{CLIPS} files of {} MiB in all", bytes >> 20));
        fs::create_dir_all(at("reader"))?;
        fs::write(at("reader/train.py"), SCRIPT)?;
        let words = ["--data", "ucf", "--", "data"];
        let wanted = tree(&at("data/ucf"))?;
        let mut table = Vec::new();
        for link in [Link::Narrow, Link::Late] {
            let mut times: [[Vec<f64>; 3]; 2] = Default::default();
            for round in 1..=rounds {
                note(&format!("data over {}, {round} of {rounds}", link.name()));
                self.emptied()?;
                self.ours(link, &at("reader"), &["--", "code"])?;
                self.make("scp")?;
                for (again, times) in times.iter_mut().enumerate() {
                    let ours = self.ours(link, &at("reader"), &words)?;
                    ensure!(ours.word("tree ")? == wanted, "the data is not what was sent");
                    times[0].push(ours.all_there()?);
                    times[1].push(self.sent(link, RSYNC_DATA, ("data/ucf", "rsync"))?);
                    match link {
                        _ if again > 0 => {}
                        Link::Late if round > 1 => {}
                        Link::Late => {
                            times[2].push(self.sent(link, SCP, ("few", "scp"))? * TWENTIETH as f64);
                        }
                        _ => times[2].push(self.sent(link, SCP, ("data/ucf", "scp"))?),
                    }
                }
            }
            let [[ours, rsync, scp], [ours_again, rsync_again, _]] = times;
            let scp_is = if link == Link::Late { "scp -r, 20 × a twentieth" } else { "scp -r" };
            let name = link.name();
            table.extend(rows(&format!("data, {name}, first"), ours, vec![("rsync", rsync), (scp_is, scp)]));
            table.extend(rows(&format!("data, {name}, no change"), ours_again, vec![("rsync", rsync_again)]));
        }
        let (mut ours, mut rsync) = (vec![], vec![]);
        for round in 1..=rounds {
            note(&format!("data after a cut, {round} of {rounds}"));
            self.emptied()?;
            self.ours(Link::Narrow, &at("reader"), &["--", "code"])?;
            // From the cut until all is there: ours goes on by itself, rsync is called again at once.
            self.far.knife.after(bytes / 2);
            let run = self.ours(Link::Narrow, &at("reader"), &words)?;
            let cut = self.far.knife.cut().context("ours was not cut")?;
            ensure!(run.word("tree ")? == wanted, "the data is not what was sent");
            let prepared = run.at.get("prepared").context("never prepared")?;
            ours.push((*prepared - cut.1).as_seconds_f64());
            self.far.knife.after(bytes / 2);
            let script = RSYNC_DATA.replace("$0", "data/ucf");
            let first = self.typing(Link::Narrow, &script).output()?;
            ensure!(!first.status.success(), "rsync was not cut");
            let cut = self.far.knife.cut().context("rsync was not cut")?;
            let begun = cut.0.elapsed().as_secs_f64();
            let seconds = begun + self.sent(Link::Narrow, RSYNC_DATA, ("data/ucf", "rsync"))?;
            rsync.push(seconds);
        }
        table.extend(rows("data, 200 Mbit/s, after a cut", ours, vec![("rsync, again", rsync)]));
        Ok(table)
    }

    fn make(&self, name: &str) -> Result<()> {
        Ok(fs::create_dir_all(self.far.seen(&self.far.home().join(name)))?)
    }
}

/// Always the same.
struct Dice(u64);

impl Dice {
    fn roll(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// At least 0, less than 1.
    fn part(&mut self) -> f64 {
        (self.roll() >> 11) as f64 / (1_u64 << 53) as f64
    }
}

/// Files of 0.5 to 30 KB, small ones more often, of pieces of our own sources: text, of a kind.
pub fn write_code(dir: &Path, files: usize) -> Result<()> {
    let mut text = Vec::new();
    let mut left = vec![Path::new(crate::TOP).join("src")];
    while let Some(at) = left.pop() {
        let mut entries = fs::read_dir(&at)?.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
        entries.sort();
        for path in entries {
            if path.is_dir() { left.push(path) } else { text.extend(fs::read(path)?) }
        }
    }
    let mut dice = Dice(0x9e37_79b9_7f4a_7c15);
    for n in 0..files - 1 {
        let len = (512.0 * 60_f64.powf(dice.part())) as usize;
        let from = dice.roll() as usize % (text.len() - len);
        let path = dir.join(format!("package{}/part{}/module{n}.py", n % 12, n % 60));
        fs::create_dir_all(path.parent().context("it is in a directory")?)?;
        fs::write(path, &text[from..from + len])?;
    }
    fs::write(dir.join("train.py"), SCRIPT)?;
    Ok(())
}

/// Most of them small, some of them many times that, as clips of films are.
pub fn write_clips(dir: &Path, files: usize) -> Result<u64> {
    let (mut dice, mut all) = (Dice(0x2545_f491_4f6c_dd1d), 0);
    for n in 0..files {
        let (class, group, clip) = (n % CLASSES, n / CLASSES / 7 + 1, n / CLASSES % 7 + 1);
        // From a fifth of the mean upwards, exponentially: the mean is the mean.
        let len = MEAN / 5 + (-(1.0 - dice.part()).ln() * (MEAN * 4 / 5) as f64) as u64;
        let bytes: Vec<u8> = (0..len.div_ceil(8)).flat_map(|_| dice.roll().to_le_bytes()).collect();
        let dir = dir.join(format!("Class{class:03}"));
        fs::create_dir_all(&dir)?;
        fs::write(dir.join(format!("v_Class{class:03}_g{group:02}_c{clip:02}.avi")), &bytes)?;
        all += bytes.len() as u64;
    }
    Ok(all)
}
