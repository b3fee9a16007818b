//! What `environment.yml` names, by whichever of conda's kin is on the machine; where none is, by conda's own solver as a
//! Python library, fetched by its hash, and a script of ours that drives it. What such a file has for pip, uv installs.

use super::{
    environment::{is_code, once},
    sandbox,
    site::{Site, read},
    uv::Uv,
};
use crate::{
    hash::{first, sha256},
    host::{Cmd, Host, System},
    hq::python,
    ui::Try as _,
};
use anyhow::{Context as _, Result};
use serde::Deserialize;
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

pub const FILES: [&str; 2] = ["environment.yml", "environment.yaml"];
const LOCK: &str = include_str!("../../../assets/python/conda.txt");
const SCRIPT: &str = include_str!("../../../assets/python/conda.py");
const ELSE: &str = "take an image with conda, or give the project a requirements.txt, which needs none";

/// What could be lines of requirements in it: whatever is an item of a list, in either of YAML's ways to write one. Too
/// many do no harm, as only those are looked at that begin as an option of pip's.
pub fn lines(text: &str) -> impl Iterator<Item = &str> {
    text.split(['\n', '[', ',', ']']).map(|line| {
        let line = line.split(" #").next().unwrap_or_default().trim();
        let line = line.trim_start_matches("- ").trim();
        line.trim_matches(['"', '\''])
    })
}

/// `dir` is what the file among the code names, when this returns.
pub fn fill(
    host: &Host,
    site: &Site,
    dir: &Path,
    from: &BTreeMap<String, String>,
    say: &mut dyn FnMut(&str),
) -> Result<()> {
    let file = FILES.into_iter().find(|name| from.contains_key(*name)).context("no environment.yml")?;
    let file = site.code().join(file);
    let Some((program, create)) = kin(host) else { return fill_alone(host, site, dir, &file, say) };
    let (dir, file) = (dir.to_string_lossy(), file.to_string_lossy());
    let args = create.iter().copied().chain(["--prefix", &dir, "--file", &file]);
    let home = System::environment("HOME").unwrap_or_default();
    let caches = sandbox::caches(site, Path::new(&home));
    let cmd = caches.iter().fold(Cmd::new(&program, args), |cmd, (name, at)| cmd.env(name, at));
    host.run_saying(&cmd, say).map(drop)
}

/// The one on the machine, and its words to make an environment.
pub fn kin(host: &Host) -> Option<(String, &'static [&'static str])> {
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
        let create: &[&str] = if name == "micromamba" { &["create", "--yes"] } else { &["env", "create"] };
        let mut programs = places.iter().map(|place| format!("{place}{name}"));
        let runs = |program: &String| host.ask(&Cmd::new(program, ["--version"])).is_ok_and(|out| out.ok());
        if let Some(program) = programs.find(runs) {
            return Some((program, create));
        }
    }
    None
}

/// What the script has read for us. The rest is for the script itself.
#[derive(Deserialize)]
struct Said {
    pip: Vec<String>,
}

fn fill_alone(host: &Host, site: &Site, dir: &Path, file: &Path, say: &mut dyn FnMut(&str)) -> Result<()> {
    let uv = Uv::get(host, site, say)?;
    let tool = tool(host, site, &uv, say)?;
    let cache = site.shared("cache").join("conda");
    let (dir, cache) = (dir.to_string_lossy(), cache.to_string_lossy());
    let (python, script) = (tool.join("bin/python"), tool.join("conda.py").display().to_string());
    let script = |args: &[&str]| {
        // Isolated: another Python's modules are not this one's.
        let args = ["-I", &script].into_iter().chain(args.iter().copied());
        uv.told(Cmd::new(&python.to_string_lossy(), args))
    };
    let read = host.run(&script(&["read", &file.to_string_lossy()]))?;
    let said: Said = serde_json::from_str(&read).with_context(|| format!("reading {}", file.display()))?;
    if let Err(e) = host.run_saying(&script(&["make", &dir, &cache]).stdin(read), say) {
        let hint = hint(&format!("{e:#}"));
        return Err(e).or_try(hint);
    }
    let pip: Vec<_> = said.pip.iter().filter(|line| !is_code(line)).map(|line| format!("{line}\n")).collect();
    if pip.is_empty() {
        return Ok(());
    }
    // From where the file is, so that what it names is found.
    let (code, python) = (site.code(), format!("{dir}/bin/python"));
    let args = ["pip", "install", "--directory", &*code.to_string_lossy(), "--python", &python, "-r", "-"];
    match host.run_saying(&uv.cmd(&args).stdin(pip.concat()), say) {
        Ok(_) => Ok(()),
        Err(e) => {
            let hint = python::hint(&format!("{e:#}"));
            Err(e).context("installing what environment.yml has for pip").or_try(hint)
        }
    }
}

/// The solver and its script, in an environment of their own that runs share.
fn tool(host: &Host, site: &Site, uv: &Uv, say: &mut dyn FnMut(&str)) -> Result<PathBuf> {
    let name = format!("conda-{}", first(&sha256(format!("{LOCK}{SCRIPT}")), 12));
    let dir = site.shared("cache").join(name);
    let at = dir.display().to_string();
    let fetch = |say: &mut dyn FnMut(&str)| -> Result<()> {
        say("there is no conda on this machine: fetching a solver");
        let filled = || -> Result<()> {
            host.run(&uv.cmd(&["venv", "--quiet", "--no-project", "--python", ">=3.8", &at]))?;
            let python = format!("{at}/bin/python");
            let install = ["pip", "install", "--quiet", "--require-hashes", "--only-binary", ":all:"];
            let args: Vec<_> = install.into_iter().chain(["--python", &python, "-r", "-"]).collect();
            host.run(&uv.cmd(&args).stdin(LOCK)).map(drop)
        };
        if let Err(e) = filled() {
            let hint = python::hint(&format!("{e:#}"));
            let doing =
                "fetching a solver for environment.yml, as there is neither micromamba, mamba nor conda";
            return Err(e).context(doing).or_try(format!("{hint}; or {ELSE}"));
        }
        host.write(&dir.join("conda.py"), 0o644, SCRIPT.as_bytes())
    };
    once(host, &dir, "solver", say, fetch)?;
    Ok(dir)
}

/// What to try, from what the script said.
fn hint(said: &str) -> String {
    let said = said.to_lowercase();
    let has = |words: &[&str]| words.iter().any(|word| said.contains(word));
    if has(&["no space left", "os error 28"]) {
        "make room on the machine's disk, or take a machine with a larger one".into()
    } else if has(&["__cuda"]) {
        "it needs another GPU driver than this machine's: take a machine with a GPU, or ask for another build"
            .into()
    } else if has(&["cannot solve"]) {
        "look in environment.yml for the package's name and version, and add the channel that has it".into()
    } else if has(&["certificate"]) {
        "if a proxy here signs its own certificates, name its authority in SSL_CERT_FILE or in pip's `cert`"
            .into()
    } else if has(&["could not find subdir", "404"]) {
        "look in environment.yml for the channel's name".into()
    } else if has(&["dns", "failed to lookup", "connect", "timed out", "timeout", "error sending request"]) {
        format!("check the network; a mirror is named as channel_alias in ~/.condarc; or {ELSE}")
    } else {
        format!("run this again: what was fetched is kept; or {ELSE}")
    }
}

/// The variables that the file sets, from where every kind of conda keeps them.
pub fn variables(host: &Host, dir: &Path) -> Result<Vec<(String, String)>> {
    #[derive(Default, Deserialize)]
    struct State {
        #[serde(default)]
        env_vars: BTreeMap<String, String>,
    }
    let state: State = read(host, &dir.join("conda-meta/state"))?.unwrap_or_default();
    Ok(state.env_vars.into_iter().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_for_pip_is_found_however_the_list_is_written() {
        let table = [
            ("dependencies:\n  - python=3.11\n  - pip:\n    - -r more.txt\n", "-r more.txt"),
            ("dependencies:\n- pip:\n  - \"--requirement=more.txt\"  # ours\n", "--requirement=more.txt"),
            ("dependencies: [python, pip: [six, '-c c.txt']]\n", "-c c.txt"),
        ];
        for (text, line) in table {
            assert_eq!(
                lines(text).filter(|line| line.starts_with('-')).collect::<Vec<_>>(),
                [line],
                "{text}"
            );
        }
    }

    #[test]
    fn what_the_solver_said_has_something_to_try() {
        let table = [
            (
                "Cannot solve the request because of: No candidates were found for nosuch *.",
                "add the channel",
            ),
            ("Cannot solve the request because of: x would require\n __cuda >=12, for which", "GPU"),
            ("could not find subdir 'noarch' in channel 'file:///c/'", "the channel's name"),
            ("error sending request\nclient error (Connect)\ninvalid peer certificate", "SSL_CERT_FILE"),
            ("error sending request\nclient error (Connect)\ndns error", "channel_alias"),
            ("No space left on device (os error 28)", "make room"),
            ("something else", "requirements.txt"),
        ];
        for (said, tried) in table {
            assert!(hint(said).contains(tried), "{said}: {}", hint(said));
        }
    }

    #[test]
    fn a_lock_names_no_host_and_hashes_everything() {
        assert!(!LOCK.contains("://"));
        let pins: Vec<_> = LOCK.lines().filter(|line| !line.starts_with(' ')).collect();
        assert!(
            pins.len() > 1 && pins.iter().all(|pin| pin.contains("==") && pin.ends_with('\\')),
            "{pins:?}"
        );
    }
}
