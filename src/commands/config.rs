//! `config`: write, show, check the settings; and how every other command reads them.

use super::this_machine;
use crate::{
    config::{self, Config, Setting},
    host::{Host, SETTINGS},
    ui::{Code, Try as _, Ui},
};
use anyhow::Result;
use clap::Subcommand;
use std::path::{Path, PathBuf};

/// Exit status for a bad configuration: sysexits.h, EX_CONFIG.
const EX_CONFIG: u8 = 78;

/// Where the settings come from: flags over the operator's file over the defaults.
#[derive(clap::Args, Default)]
pub struct Settings {
    /// The settings file
    #[arg(long, global = true, value_name = "FILE", value_parser = absolute, default_value = config::PATH, hide_default_value = true)]
    pub config: PathBuf,
    /// Override one setting, as in `--set data.disk=none`; install writes it to the settings file
    #[arg(long, global = true, value_name = "KEY=VALUE")]
    pub set: Vec<Setting>,
}

/// The settings that `install` and `plan` also take by flags of their own, as the first ones that anybody sets.
#[derive(clap::Args)]
pub struct First {
    /// The name under which people reach the headquarters (the setting `domain`)
    #[arg(long, value_name = "DOMAIN")]
    domain: Option<String>,
    /// Whom the certificate authority may write to (the setting `tls.email`)
    #[arg(long, value_name = "ADDRESS")]
    email: Option<String>,
}

/// From where the person stands: `Host` takes every path from the root.
fn absolute(path: &str) -> std::io::Result<PathBuf> {
    std::path::absolute(path)
}

impl Settings {
    /// These, and what was said by flags of their own.
    pub fn with(&self, first: &First) -> Result<Self> {
        let mut set = self.set.clone();
        for (key, value) in [("domain", &first.domain), ("tls.email", &first.email)] {
            if let Some(value) = value {
                set.push(Setting::new(key, &format!("{value:?}"))?);
            }
        }
        Ok(Self { config: self.config.clone(), set })
    }

    /// The settings of this command; an error says which file, line and key, and ends in exit status 78.
    pub fn read(&self, host: &Host) -> Result<Config> {
        let bad = |e: anyhow::Error| e.context(Code(EX_CONFIG));
        let file = host.read_at_most(&self.config, SETTINGS).or_else(|error| match unreadable(&error) {
            true => Err(error).or_try("sudo echoes-appliance …"),
            false => Err(bad(error)),
        })?;
        if file.is_none() && self.config != Path::new(config::PATH) {
            return Err(bad(anyhow::anyhow!("{} is not there", self.config.display())));
        }
        let file = String::from_utf8_lossy(&file.unwrap_or_default()).into_owned();
        Config::parse(&self.config, &file, &self.set)
            .or_try("`echoes-appliance config init --stdout` shows every setting with its meaning")
            .map_err(bad)
    }
}

/// Whether it is the person who may not read it: then nothing is wrong with what is in there.
fn unreadable(error: &anyhow::Error) -> bool {
    let io = |one: &(dyn std::error::Error + 'static)| {
        one.downcast_ref::<std::io::Error>().is_some_and(|e| e.kind() == std::io::ErrorKind::PermissionDenied)
            || one.downcast_ref() == Some(&nix::errno::Errno::EACCES)
    };
    error.chain().any(io)
}

#[derive(Subcommand)]
pub enum Command {
    /// Write a settings file with every setting, its default and its meaning
    Init {
        /// To standard output instead
        #[arg(long)]
        stdout: bool,
    },
    /// Show the settings in force
    Show,
    /// Say whether the settings are good; exit status 78 when not
    Check,
    /// Print the JSON schema of the settings file
    Schema,
}

pub fn run(command: Command, settings: &Settings, ui: &Ui) -> Result<u8> {
    let host = this_machine();
    match command {
        Command::Init { stdout: true } => ui.out(config::DEFAULTS.trim_end()),
        Command::Init { stdout: false } => {
            let path = &settings.config;
            let there = || anyhow::bail!("{} is there already", path.display());
            if host.exists(path)? {
                there().or_try(
                    "`echoes-appliance config show` shows what is in force; --stdout shows the defaults",
                )?;
            }
            // It may come to hold a database password.
            host.write(path, 0o640, config::DEFAULTS.as_bytes())?;
            ui.say(format_args!("wrote {}", path.display()));
        }
        Command::Show => {
            let mut config = settings.read(&host)?;
            if config.mlflow.backend.as_str() != "sqlite" {
                config.mlflow.backend = "postgresql://(hidden)".parse()?;
            }
            if !config.tls.webhook.as_str().is_empty() {
                config.tls.webhook = "https://(hidden)".parse()?;
            }
            ui.out(toml::to_string_pretty(&config)?.trim_end());
        }
        Command::Check => {
            settings.read(&host)?;
            ui.say(format_args!("{} is good", settings.config.display()));
        }
        Command::Schema => ui.out(config::schema().trim_end()),
    }
    Ok(0)
}
