//! From a machine that answers to the script's first line: code, data and environment side by side, and the same one
//! after another, as a person's script has them.

use crate::{
    Row,
    far::{Link, sh},
    gpu::{Bench, SCRIPT, tree},
    note, rows,
    sending::{write_clips, write_code},
};
use anyhow::{Context as _, Result, ensure};
use std::fs;
use time::OffsetDateTime;

const CODE: usize = 500;
const CLIPS: usize = 3_330;
const REQUIREMENTS: &str = "numpy==2.3.5\nscipy==1.16.3\nscikit-learn==1.7.2\npillow==12.0.0\ntqdm==4.67.1\n";
/// What the script imports, as proof.
const NAMES: [&str; 4] = ["numpy", "scipy", "sklearn", "PIL"];

/// As one finds it in many a README. What is there already is not made again.
const BY_HAND: &str = r#"
rsync -az --delete -e "$SSH" "$HERE/first/" "$AT:$HOME_THERE/first/"
rsync -a --mkpath --delete -e "$SSH" "$HERE/data/ucf/" "$AT:$HOME_THERE/data/ucf/"
$SSH "$AT" "cd $HOME_THERE; $INSTALL"
$SSH "$AT" "cd $HOME_THERE; ECHOES_DATA=$HOME_THERE/data env/bin/python -u first/train.py data $NAMES"
"#;
const PIP: &str = "[ -d env ] || python3 -m venv env; env/bin/pip install --quiet -r first/requirements.txt";
const UV: &str = "[ -d uv ] || { python3 -m venv uv && uv/bin/pip install --quiet uv; }; \
                  [ -d env ] || uv/bin/uv venv --quiet env; \
                  uv/bin/uv pip install --quiet --python env/bin/python -r first/requirements.txt";

impl Bench {
    pub fn first_line(&self, rounds: usize) -> Result<Vec<Row>> {
        let at = |name: &str| self.far.at(name);
        sh("rm -rf \"$1\"", &[&at("data/ucf")])?;
        write_clips(&at("data/ucf"), CLIPS)?;
        write_code(&at("first"), CODE)?;
        fs::write(at("first/train.py"), SCRIPT)?;
        fs::write(at("first/requirements.txt"), REQUIREMENTS)?;
        let wanted = tree(&at("data/ucf"))?;
        let words = [&["--data", "ucf", "--", "data"], &NAMES[..]].concat();
        let mut times: [[Vec<f64>; 3]; 2] = Default::default();
        for round in 1..=rounds {
            for who in 0..3 {
                self.emptied()?;
                // The second time all is there, and a person calls the same script again.
                for (again, times) in times.iter_mut().enumerate() {
                    let (since, said) = if who == 0 {
                        let ours = self.ours(Link::Away, &at("first"), &words)?;
                        (*ours.at.get("renting").context("it was never rented")?, ours.said)
                    } else {
                        let install = if who == 1 { UV } else { PIP };
                        let script = format!("INSTALL='{install}'; NAMES='{}'\n{BY_HAND}", NAMES.join(" "));
                        let since = OffsetDateTime::now_utc();
                        (since, self.typed(Link::Away, &script)?.1)
                    };
                    let word = |of: &str| said.lines().find_map(|line| line.strip_prefix(of));
                    ensure!(word("tree ") == Some(&wanted), "not all was there:\n{said}");
                    let first: i128 = word("first ").context("no first line")?.trim().parse()?;
                    let seconds = (first - since.unix_timestamp_nanos()) as f64 / 1e9;
                    note(&format!(
                        "first line, {round} of {rounds}, {}, {}: {seconds:.2} s",
                        ["ours", "by hand with uv", "by hand with pip"][who],
                        ["new machine", "again"][again]
                    ));
                    times[who].push(seconds);
                }
            }
        }
        let mut table = Vec::new();
        for (what, [ours, uv, pip]) in ["new machine", "again"].into_iter().zip(times) {
            let others = vec![("one after another, uv", uv), ("one after another, pip", pip)];
            table.extend(rows(&format!("first line, {what}"), ours, others));
        }
        Ok(table)
    }
}
