//! What a script needs besides itself: Python packages as the project's own files name them, in an environment that is
//! found by what it was made from, so that the second run makes nothing. The code itself is never installed: it is on
//! `PYTHONPATH`, and an environment is the same whatever became of the code.

use super::{
    conda,
    site::{Site, read, write},
    uv::Uv,
};
use crate::{
    hash::{first, hex},
    host::{Busy, Cmd, Host, without_dots},
    hq::python,
    ui::Try as _,
};
use anyhow::{Context as _, Result, bail};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    path::{Path, PathBuf},
    time::Duration,
};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// `uv.lock`: exactly that.
    Locked,
    /// What `pyproject.toml` says it depends on.
    Project,
    /// `requirements.txt`, and whatever that names.
    Requirements,
    /// `environment.yml`, by whichever of conda's kin is there, or by what is fetched in their place.
    Conda,
    /// The machine's own Python.
    None,
}

/// What is wanted: pure, from the files' texts.
#[derive(Debug, PartialEq, Eq)]
struct Wanted {
    kind: Kind,
    /// What it is made from, by name.
    from: BTreeMap<String, String>,
}

fn wanted(text: &dyn Fn(&str) -> Result<Option<String>>) -> Result<Wanted> {
    let project = text("pyproject.toml")?;
    if let (Some(lock), Some(project)) = (text("uv.lock")?, &project) {
        let from = [("uv.lock".to_owned(), lock), ("pyproject.toml".into(), project.clone())].into();
        return Ok(Wanted { kind: Kind::Locked, from });
    }
    if let Some(project) = project {
        let parsed: toml::Table = toml::from_str(&project).context("reading pyproject.toml")?;
        // Many have one for their formatter alone.
        if parsed.contains_key("project") {
            return Ok(Wanted { kind: Kind::Project, from: [("pyproject.toml".into(), project)].into() });
        }
    }
    if text("requirements.txt")?.is_some() {
        let mut from = BTreeMap::new();
        requirements(text, "requirements.txt", &mut from)?;
        return Ok(Wanted { kind: Kind::Requirements, from });
    }
    for name in conda::FILES {
        if let Some(conda) = text(name)? {
            let mut from = [(name.to_owned(), conda.clone())].into();
            for line in conda::lines(&conda) {
                if let Some(named) = named(line) {
                    requirements(text, named, &mut from)?;
                }
            }
            return Ok(Wanted { kind: Kind::Conda, from });
        }
    }
    Ok(Wanted { kind: Kind::None, from: BTreeMap::new() })
}

/// The file and all that it names. Lines that would install the code itself are left out.
fn requirements(
    text: &dyn Fn(&str) -> Result<Option<String>>,
    name: &str,
    all: &mut BTreeMap<String, String>,
) -> Result<()> {
    // By what they are called without detours: a file may name itself by a new way each time. One after another, and not
    // one within another: each may name the next.
    let mut known: BTreeSet<PathBuf> = all.keys().map(|name| without_dots(Path::new(name))).collect();
    let mut next = VecDeque::from([name.to_owned()]);
    while let Some(name) = next.pop_front() {
        if !known.insert(without_dots(Path::new(&name))) {
            continue;
        }
        let said = text(&name)?.with_context(|| format!("there is no {name} among the code"))?;
        let kept: Vec<_> = said.lines().filter(|line| !is_code(line)).collect();
        let dir = Path::new(&name).parent().unwrap_or(Path::new(""));
        next.extend(
            said.lines().filter_map(named).map(|named| dir.join(named).to_string_lossy().into_owned()),
        );
        all.insert(name, kept.join("\n") + "\n");
    }
    Ok(())
}

/// The file that a line of requirements names.
fn named(line: &str) -> Option<&str> {
    let flags = ["--requirement", "--constraint", "-r", "-c"];
    let named = flags.iter().find_map(|flag| line.trim().strip_prefix(flag))?;
    let named = named.split(" #").next()?.trim_start_matches([' ', '=']).trim();
    (!named.is_empty() && !named.contains("://")).then_some(named)
}

/// Whether a line of requirements would install the code itself.
pub(super) fn is_code(line: &str) -> bool {
    let line = line.trim();
    let path = ["-e", "--editable"].iter().find_map(|flag| line.strip_prefix(flag)).unwrap_or(line);
    let path = path.trim_start_matches([' ', '=']);
    path == "." || path.starts_with("./") || path.starts_with("../") || path.starts_with(".[")
}

impl Wanted {
    /// The same for what would become the same environment.
    fn key(&self, python: &str) -> String {
        let mut hash = Sha256::new();
        hash.update(format!("{:?}\n{python}\n{}\n", self.kind, std::env::consts::ARCH));
        for (name, text) in &self.from {
            hash.update(format!("{name} {}\n{text}\n", text.len()));
        }
        first(&hex(&hash.finalize()), 16).to_owned()
    }
}

/// The environment of a run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Made {
    pub kind: Kind,
    /// None: the machine's own Python.
    pub dir: Option<PathBuf>,
    /// What `environment.yml` says the script finds in its environment.
    #[serde(default)]
    pub env: Vec<(String, String)>,
}

/// Made, or found; noted for the run.
pub fn make(host: &Host, site: &Site, say: &mut dyn FnMut(&str)) -> Result<Made> {
    let code = site.code();
    let wanted = wanted(&|name| host.read_text(&code.join(name)))?;
    let made = if wanted.kind == Kind::None {
        say("no requirements: the machine's own Python");
        Made { kind: Kind::None, dir: None, env: Vec::new() }
    } else {
        let version = host.ask(&Cmd::new("python3", ["-V"])).map(|out| out.stdout).unwrap_or_default();
        let dir = site.shared("envs").join(wanted.key(version.trim()));
        let fill = |say: &mut dyn FnMut(&str)| match wanted.kind {
            Kind::Conda => conda::fill(host, site, &dir, &wanted.from, say),
            _ => by_uv(host, site, &dir, &wanted, say),
        };
        if !once(host, &dir, "environment", say, fill)? {
            say("the environment is there already");
        }
        let env = if wanted.kind == Kind::Conda { conda::variables(host, &dir)? } else { Vec::new() };
        Made { kind: wanted.kind, dir: Some(dir), env }
    };
    write(host, &site.environment(), &made)?;
    Ok(made)
}

pub fn of(host: &Host, site: &Site) -> Result<Made> {
    Ok(read(host, &site.environment())?.unwrap_or(Made { kind: Kind::None, dir: None, env: Vec::new() }))
}

/// It is in `dir`, whole, when this returns. Whether it had to be made: what a crash left in half is made anew.
pub(super) fn once(
    host: &Host,
    dir: &Path,
    what: &str,
    say: &mut dyn FnMut(&str),
    fill: impl FnOnce(&mut dyn FnMut(&str)) -> Result<()>,
) -> Result<bool> {
    let mark = dir.join(".complete");
    // Another run may be making the same one.
    let _alone = loop {
        if host.exists(&mark)? {
            return Ok(false);
        }
        match host.ledger(&dir.with_extension("lock")) {
            Err(e) if e.is::<Busy>() => {
                say(&format!("another run is making the same {what}"));
                std::thread::sleep(Duration::from_secs(1));
            }
            lock => break lock?,
        }
    };
    if host.exists(&mark)? {
        return Ok(false);
    }
    host.remove_tree(dir)?;
    fill(say).with_context(|| format!("making the {what} in {}", dir.display()))?;
    // uv leaves it for everybody to write to, and nobody else is to hold it.
    host.remove(&dir.join(".lock"))?;
    // The mark must not reach the disk before what it vouches for.
    host.run(&Cmd::new("sync", ["--file-system", &*dir.to_string_lossy()]))?;
    host.write(&mark, 0o644, b"")?;
    Ok(true)
}

fn by_uv(host: &Host, site: &Site, dir: &Path, wanted: &Wanted, say: &mut dyn FnMut(&str)) -> Result<()> {
    let uv = Uv::get(host, site, say)?;
    let (dir, code) = (dir.to_string_lossy(), site.code());
    let code = code.to_string_lossy();
    let done = match wanted.kind {
        Kind::Locked => {
            let args = ["sync", "--frozen", "--no-install-workspace", "--no-progress", "--project", &code];
            host.run_saying(&uv.cmd(&args).env("UV_PROJECT_ENVIRONMENT", &dir), say)
        }
        _ => {
            host.run_saying(&uv.cmd(&["venv", "--quiet", "--directory", &code, &dir]), say)?;
            let python = format!("{dir}/bin/python");
            let mut args = vec!["pip", "install", "--directory", &code, "--python", &python, "-r"];
            if wanted.kind == Kind::Project {
                args.push("pyproject.toml");
                host.run_saying(&uv.cmd(&args), say)
            } else {
                // From where the file is, so that what it names is found; without the lines that name the code.
                args.push("-");
                let text = wanted.from.get("requirements.txt").cloned().unwrap_or_default();
                host.run_saying(&uv.cmd(&args).stdin(text), say)
            }
        }
    };
    match done {
        Ok(_) => Ok(()),
        Err(e) => {
            let hint = python::hint(&format!("{e:#}"));
            Err(e).or_try(hint)
        }
    }
}

/// That the driver answers, where there is one: a script that finds no GPU trains on, for days, at the GPU's price.
pub fn check_gpu(host: &Host) -> Result<()> {
    // Not there is an answer: a machine without a GPU.
    let Ok(out) = host.ask(&Cmd::new("timeout", ["30", "nvidia-smi", "-L"])) else { return Ok(()) };
    match out.code {
        // 126: a directory in the path that this user may not look into.
        0 | 126 | 127 => Ok(()),
        124 => bail!("nvidia-smi does not answer: the driver is not well"),
        code => bail!("nvidia-smi ends in {code}: {} {}", out.stdout.trim(), out.stderr.trim()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(files: &[(&str, &str)]) -> Result<Wanted> {
        let text = |name: &str| Ok(files.iter().find(|file| file.0 == name).map(|file| file.1.to_owned()));
        wanted(&text)
    }

    #[test]
    fn the_most_exact_description_of_an_environment_is_the_one_taken() {
        let lock = ("uv.lock", "version = 1");
        let project = ("pyproject.toml", "[project]\nname = \"x\"");
        let tools = ("pyproject.toml", "[tool.ruff]\n");
        let requirements = ("requirements.txt", "numpy\n");
        let conda = ("environment.yml", "dependencies: [numpy]");
        let table: [(&[(&str, &str)], Kind); 7] = [
            (&[lock, project, requirements, conda], Kind::Locked),
            (&[project, requirements], Kind::Project),
            (&[tools, requirements], Kind::Requirements),
            (&[requirements, conda], Kind::Requirements),
            (&[conda], Kind::Conda),
            (&[tools], Kind::None),
            (&[], Kind::None),
        ];
        for (files, kind) in table {
            assert_eq!(of(files).unwrap().kind, kind, "{files:?}");
        }
        assert!(of(&[("pyproject.toml", "[project")]).is_err());
    }

    #[test]
    fn whatever_requirements_name_is_part_of_the_key_and_the_code_is_not() {
        let base = [
            ("requirements.txt", "-r more/deep.txt\n-e .\n./lib\nnumpy==1\n--constraint=c.txt"),
            ("more/deep.txt", "-r ../requirements.txt\nscipy"),
            ("c.txt", "numpy<2"),
        ];
        // A name with `..` in it is another name for the same file, which is harmless.
        let files = [base[0], base[1], base[2], ("more/../requirements.txt", "numpy")];
        let wanted = of(&files).unwrap();
        assert_eq!(wanted.from["requirements.txt"], "-r more/deep.txt\nnumpy==1\n--constraint=c.txt\n");
        assert!(wanted.from.contains_key("more/deep.txt") && wanted.from.contains_key("c.txt"));
        let mut other = files;
        other[2].1 = "numpy<3";
        assert_ne!(of(&other).unwrap().key("3.12"), wanted.key("3.12"));
        assert_ne!(wanted.key("3.11"), wanted.key("3.12"));
        assert_eq!(of(&files).unwrap().key("3.12"), wanted.key("3.12"));
        let missing = of(&files[..1]).unwrap_err().to_string();
        assert_eq!(missing, "there is no more/deep.txt among the code");
    }

    #[test]
    fn requirements_that_name_themselves_by_ever_new_ways_or_on_and_on_come_to_an_end() {
        let itself = [("requirements.txt", "-r a/b.txt"), ("a/b.txt", "-r ../a/b.txt\nsix")];
        assert_eq!(of(&itself).unwrap().from.len(), 2);
        let text = |name: &str| {
            let name = without_dots(Path::new(name)).display().to_string();
            let n: Option<u32> = name.strip_prefix('r').and_then(|n| n.parse().ok());
            Ok(match (&*name, n) {
                ("requirements.txt", _) => Some("-r a/b.txt\n-r r0".to_owned()),
                ("a/b.txt", _) => Some("-r ../a/b.txt\n-c ./b.txt".into()),
                (_, Some(n)) => Some(if n < 20_000 { format!("-r r{}", n + 1) } else { "six".into() }),
                _ => None,
            })
        };
        assert_eq!(super::wanted(&text).unwrap().from.len(), 2 + 20_001);
    }

    #[test]
    fn what_environment_yml_names_for_pip_is_part_of_the_key() {
        let conda = ("environment.yml", "dependencies:\n- six\n- pip:\n  - '-r more.txt' # ours\n");
        let files = [conda, ("more.txt", "-c c.txt\nnumpy"), ("c.txt", "numpy<2")];
        let wanted = of(&files).unwrap();
        assert_eq!(wanted.from.keys().collect::<Vec<_>>(), ["c.txt", "environment.yml", "more.txt"]);
        let mut other = files;
        other[2].1 = "numpy<3";
        assert_ne!(of(&other).unwrap().key("3.12"), wanted.key("3.12"));
        assert_eq!(of(&files[..1]).unwrap_err().to_string(), "there is no more.txt among the code");
    }

    #[test]
    fn fuzz_requirements_of_any_kind_make_a_key_or_an_error() {
        let words = [
            "\n--- requirements.txt\n",
            "\n--- environment.yml\n",
            "\n--- pyproject.toml\n",
            "-r a.txt",
            "-c ../b.txt",
            "-e .",
            "- pip:",
        ];
        crate::fuzz::run("requirements", &words, |bytes| {
            let text = String::from_utf8_lossy(bytes);
            let files: BTreeMap<&str, &str> =
                text.split("\n--- ").filter_map(|file| file.split_once('\n')).collect();
            // As a file system has it: by any way there.
            let of = |name: &str| {
                let plain = without_dots(Path::new(name));
                Ok(files
                    .iter()
                    .find(|(name, _)| without_dots(Path::new(name)) == plain)
                    .map(|(_, text)| (*text).to_owned()))
            };
            let wanted = super::wanted(&of)?;
            assert!(wanted.from.len() <= files.len() && wanted.key("3.12").len() == 16);
            Ok(())
        });
    }
}
