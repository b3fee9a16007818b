//! uv, which makes environments: the one that is on the machine, else one of our own, fetched by its hash. It goes where
//! this machine's pip goes.

use super::{environment::once, sandbox, site::Site};
use crate::{
    hash::{first, sha256},
    host::{Cmd, Host, System},
    hq::python,
    ui::Try as _,
};
use anyhow::{Context as _, Result};
use std::path::Path;

/// uv by its hash, as the headquarters' own environments get it.
const LOCK: &str = include_str!("../../../assets/python/uv.txt");

pub struct Uv {
    program: String,
    settings: Vec<(String, String)>,
}

impl Uv {
    /// The one that is there, else one of our own.
    pub fn get(host: &Host, site: &Site, say: &mut dyn FnMut(&str)) -> Result<Self> {
        let own = site.shared("cache").join(format!("uv-{}", first(&sha256(LOCK), 12)));
        let home = System::environment("HOME").unwrap_or_default();
        let mut places = vec!["uv".to_owned(), format!("{home}/.local/bin/uv"), "/usr/local/bin/uv".into()];
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
            None => {
                once(host, &own, "uv", say, |say| Self::fetch(host, &own, say))?;
                own.join("bin/uv").display().to_string()
            }
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
        // First: a mirror that a person has named stays.
        settings.splice(
            ..0,
            sandbox::caches(site, Path::new(&home)).into_iter().map(|(name, at)| (name.to_owned(), at)),
        );
        settings.push(("UV_CACHE_DIR".into(), site.shared("cache").join("uv").display().to_string()));
        settings.push(("UV_NO_PROGRESS".into(), "1".into()));
        Ok(Self { program, settings })
    }

    fn fetch(host: &Host, dir: &Path, say: &mut dyn FnMut(&str)) -> Result<()> {
        say("fetching uv");
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
        let pip = Cmd::new(&pip, args).env("PIP_USER", "0").env("PIP_NO_INPUT", "1").stdin(LOCK);
        if let Err(e) = host.run_saying(&pip, say) {
            let hint = python::hint(&format!("{e:#}"));
            return Err(e).context("fetching uv, which installs the rest").or_try(hint);
        }
        Ok(())
    }

    pub fn cmd(&self, args: &[&str]) -> Cmd {
        self.told(Cmd::new(&self.program, args.iter().copied()))
    }

    /// With what uv is told of proxies, mirrors and authorities.
    pub fn told(&self, cmd: Cmd) -> Cmd {
        self.settings.iter().fold(cmd, |cmd, (name, value)| cmd.env(name, value))
    }
}
