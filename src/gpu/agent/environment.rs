//! What a script needs besides itself: Python packages as the project's own files name them, in an environment that is
//! found by what it was made from, so that the second run makes nothing. The code itself is never installed: it is on
//! `PYTHONPATH`, and an environment is the same whatever became of the code.

use super::site::{Site, read, write};
use crate::{
    hash::{hex, sha256},
    host::{Busy, Cmd, Host, System},
    hq::python,
    ui::Try as _,
};
use anyhow::{Context as _, Result, anyhow, bail};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    time::Duration,
};

/// uv by its hash, as the headquarters' own environments get it.
const UV: &str = include_str!("../../../assets/python/uv.txt");

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// `uv.lock`: exactly that.
    Locked,
    /// What `pyproject.toml` says it depends on.
    Project,
    /// `requirements.txt`, and whatever that names.
    Requirements,
    /// `environment.yml`, by whichever of conda's kin is there.
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
    for name in ["environment.yml", "environment.yaml"] {
        if let Some(conda) = text(name)? {
            return Ok(Wanted { kind: Kind::Conda, from: [(name.into(), conda)].into() });
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
    if all.contains_key(name) {
        return Ok(());
    }
    let said = text(name)?.with_context(|| format!("there is no {name} among the code"))?;
    let is_code = |line: &str| {
        let line = line.trim();
        let path = ["-e", "--editable"].iter().find_map(|flag| line.strip_prefix(flag)).unwrap_or(line);
        let path = path.trim_start_matches([' ', '=']);
        path == "." || path.starts_with("./") || path.starts_with("../") || path.starts_with(".[")
    };
    let kept: Vec<_> = said.lines().filter(|line| !is_code(line)).collect();
    all.insert(name.into(), kept.join("\n") + "\n");
    for line in said.lines() {
        let flags = ["--requirement", "--constraint", "-r", "-c"];
        let Some(named) = flags.iter().find_map(|flag| line.trim().strip_prefix(flag)) else { continue };
        let named = named.trim_start_matches([' ', '=']).trim();
        if !named.is_empty() && !named.contains("://") {
            let dir = Path::new(name).parent().unwrap_or(Path::new(""));
            requirements(text, &dir.join(named).to_string_lossy(), all)?;
        }
    }
    Ok(())
}

impl Wanted {
    /// The same for what would become the same environment.
    fn key(&self, python: &str) -> String {
        let mut hash = Sha256::new();
        hash.update(format!("{:?}\n{python}\n{}\n", self.kind, std::env::consts::ARCH));
        for (name, text) in &self.from {
            hash.update(format!("{name} {}\n{text}\n", text.len()));
        }
        hex(&hash.finalize())[..16].to_owned()
    }
}

/// The environment of a run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Made {
    pub kind: Kind,
    /// None: the machine's own Python.
    pub dir: Option<PathBuf>,
}

/// Made, or found; noted for the run.
pub fn make(host: &Host, site: &Site, say: &mut dyn FnMut(&str)) -> Result<Made> {
    let code = site.code();
    let wanted = wanted(&|name| host.read_text(&code.join(name)))?;
    let made = if wanted.kind == Kind::None {
        say("no requirements: the machine's own Python");
        Made { kind: Kind::None, dir: None }
    } else {
        let version = host.ask(&Cmd::new("python3", ["-V"])).map(|out| out.stdout).unwrap_or_default();
        let dir = site.shared("envs").join(wanted.key(version.trim()));
        found_or_made(host, site, &wanted, &dir, say)?;
        Made { kind: wanted.kind, dir: Some(dir) }
    };
    write(host, &site.environment(), &made)?;
    Ok(made)
}

pub fn of(host: &Host, site: &Site) -> Result<Made> {
    Ok(read(host, &site.environment())?.unwrap_or(Made { kind: Kind::None, dir: None }))
}

fn found_or_made(
    host: &Host,
    site: &Site,
    wanted: &Wanted,
    dir: &Path,
    say: &mut dyn FnMut(&str),
) -> Result<()> {
    let mark = dir.join(".complete");
    // Another run may be making the same one.
    let _alone = loop {
        if host.exists(&mark)? {
            say("the environment is there already");
            return Ok(());
        }
        match host.ledger(&dir.with_extension("lock")) {
            Err(e) if e.is::<Busy>() => {
                say("another run is making the same environment");
                std::thread::sleep(Duration::from_secs(1));
            }
            lock => break lock?,
        }
    };
    if host.exists(&mark)? {
        return Ok(());
    }
    host.remove_tree(dir)?;
    let filled = match wanted.kind {
        Kind::Conda => conda(host, site, dir, wanted, say),
        _ => by_uv(host, site, dir, wanted, say),
    };
    filled.with_context(|| format!("making the environment in {}", dir.display()))?;
    // The mark must not reach the disk before what it vouches for.
    host.run(&Cmd::new("sync", ["--file-system", &*dir.to_string_lossy()]))?;
    host.write(&mark, 0o644, b"")
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

fn conda(host: &Host, site: &Site, dir: &Path, wanted: &Wanted, say: &mut dyn FnMut(&str)) -> Result<()> {
    let file = wanted.from.keys().next().context("no environment.yml")?;
    let (dir, file) = (dir.to_string_lossy(), site.code().join(file));
    let file = file.to_string_lossy();
    let home = System::environment("HOME").unwrap_or_default();
    // Where Azure's images and conda's own installers put it.
    let places = [
        String::new(),
        "/opt/conda/bin/".into(),
        "/anaconda/bin/".into(),
        "/opt/miniconda/bin/".into(),
        format!("{home}/miniconda3/bin/"),
        format!("{home}/.local/bin/"),
    ];
    for name in ["micromamba", "mamba", "conda"] {
        for place in &places {
            let program = format!("{place}{name}");
            if !host.ask(&Cmd::new(&program, ["--version"])).is_ok_and(|out| out.ok()) {
                continue;
            }
            let create: &[&str] =
                if name == "micromamba" { &["create", "--yes"] } else { &["env", "create"] };
            let args = create.iter().copied().chain(["--prefix", &dir, "--file", &file]);
            return host.run_saying(&Cmd::new(&program, args), say).map(drop);
        }
    }
    Err(anyhow!("the project has an environment.yml, and there is neither micromamba, mamba nor conda"))
        .or_try("take an image with conda, or give the project a requirements.txt, which needs none")
}

struct Uv {
    program: String,
    settings: Vec<(String, String)>,
}

impl Uv {
    /// The one that is there, else one of our own.
    fn get(host: &Host, site: &Site, say: &mut dyn FnMut(&str)) -> Result<Self> {
        let own = site.shared("cache").join(format!("uv-{}", &sha256(UV)[..12]));
        let home = System::environment("HOME").unwrap_or_default();
        let mut places = vec![
            "uv".to_owned(),
            format!("{home}/.local/bin/uv"),
            "/usr/local/bin/uv".into(),
            own.join("bin/uv").display().to_string(),
        ];
        // On the headquarters itself.
        let envs = Path::new(python::HOME).join("env");
        for name in host.list(&envs).unwrap_or_default() {
            if name.starts_with("uv-") {
                places.push(envs.join(name).join("bin/uv").display().to_string());
            }
        }
        let runs = |program: &String| host.ask(&Cmd::new(program, ["--version"])).is_ok_and(|out| out.ok());
        let program = match places.into_iter().find(runs) {
            Some(program) => program,
            None => Self::fetch(host, &own, say)?,
        };
        let pip = host.ask(&Cmd::new("python3", ["-m", "pip", "config", "list"]));
        let pip = pip.map(|out| out.stdout).unwrap_or_default();
        let inherited = host.run(&Cmd::new("env", ["-0"]))?;
        let inherited: Vec<_> = inherited
            .split('\0')
            .filter_map(|pair| pair.split_once('='))
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect();
        let mut settings = python::settings(&pip, &inherited);
        settings.push(("UV_CACHE_DIR".into(), site.shared("cache").join("uv").display().to_string()));
        settings.push(("UV_NO_PROGRESS".into(), "1".into()));
        Ok(Self { program, settings })
    }

    fn fetch(host: &Host, dir: &Path, say: &mut dyn FnMut(&str)) -> Result<String> {
        say("fetching uv");
        host.remove_tree(dir)?;
        let venv = Cmd::new("python3", ["-m", "venv", &*dir.to_string_lossy()]);
        host.run_saying(&venv, say)
            .context("fetching uv, which installs the rest")
            .or_try("sudo apt-get install python3-venv, or take an image with uv")?;
        let pip = dir.join("bin/python").display().to_string();
        let args = [
            "-m",
            "pip",
            "install",
            "--quiet",
            "--require-hashes",
            "--only-binary",
            ":all:",
            "-r",
            "/dev/stdin",
        ];
        let pip = Cmd::new(&pip, args).env("PIP_USER", "0").env("PIP_NO_INPUT", "1").stdin(UV);
        if let Err(e) = host.run_saying(&pip, say) {
            let hint = python::hint(&format!("{e:#}"));
            return Err(e).context("fetching uv, which installs the rest").or_try(hint);
        }
        Ok(dir.join("bin/uv").display().to_string())
    }

    fn cmd(&self, args: &[&str]) -> Cmd {
        let cmd = Cmd::new(&self.program, args.iter().copied());
        self.settings.iter().fold(cmd, |cmd, (name, value)| cmd.env(name, value))
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
}
