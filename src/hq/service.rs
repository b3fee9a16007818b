//! The four services people came for.

use crate::config::Config;
use clap::ValueEnum;
use serde::{Deserialize, Serialize};
use std::{collections::BTreeSet, fmt};

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Service {
    Mlflow,
    Tensorboard,
    Dashboard,
    Docs,
}

impl Service {
    pub const ALL: [Self; 4] = [Self::Mlflow, Self::Tensorboard, Self::Dashboard, Self::Docs];

    /// Its name everywhere: in the configuration, as a host name, as a unit.
    pub fn name(self) -> &'static str {
        match self {
            Self::Mlflow => "mlflow",
            Self::Tensorboard => "tensorboard",
            Self::Dashboard => "dashboard",
            Self::Docs => "docs",
        }
    }

    pub fn unit(self) -> String {
        format!("{self}.service")
    }

    pub fn host(self, config: &Config) -> String {
        config.domain.host(self.name())
    }

    pub fn url(self, config: &Config) -> String {
        format!("https://{}/", self.host(config))
    }

    pub fn port(self, config: &Config) -> u16 {
        match self {
            Self::Mlflow => config.mlflow.port,
            Self::Tensorboard => config.tensorboard.port,
            Self::Dashboard => config.dashboard.port,
            Self::Docs => config.docs.port,
        }
        .get()
    }

    /// Whether nginx asks for a password.
    pub fn auth(self, config: &Config) -> bool {
        match self {
            Self::Mlflow => config.mlflow.auth,
            Self::Tensorboard => config.tensorboard.auth,
            Self::Dashboard => config.dashboard.auth,
            Self::Docs => config.docs.auth,
        }
    }

    pub fn enabled(self, config: &Config) -> bool {
        match self {
            Self::Mlflow => config.mlflow.enabled,
            Self::Tensorboard => config.tensorboard.enabled,
            Self::Dashboard => config.dashboard.enabled,
            Self::Docs => config.docs.enabled,
        }
    }

    /// A path that answers 200 quickly when the service works.
    pub fn health(self) -> &'static str {
        match self {
            Self::Mlflow => "/health",
            Self::Tensorboard => "/data/environment",
            Self::Dashboard | Self::Docs => "/healthz",
        }
    }
}

impl fmt::Display for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What to install: the services asked for, or all; beside those installed before; without those switched off.
pub fn choose(config: &Config, asked: &[Service], installed: &[Service]) -> BTreeSet<Service> {
    let mut chosen: BTreeSet<Service> = asked.iter().copied().collect();
    if chosen.is_empty() {
        chosen.extend(Service::ALL);
    }
    chosen.extend(installed);
    chosen.retain(|service| service.enabled(config));
    chosen
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_service_does_not_cost_the_others() {
        let config = Config::default();
        let installed = [Service::Docs];
        let chosen = |asked: &[Service]| choose(&config, asked, &installed).into_iter().collect::<Vec<_>>();
        assert_eq!(chosen(&[Service::Mlflow]), [Service::Mlflow, Service::Docs]);
        assert_eq!(chosen(&[]), Service::ALL);
        let mut off = config.clone();
        off.docs.enabled = false;
        assert_eq!(
            choose(&off, &[Service::Mlflow], &installed).into_iter().collect::<Vec<_>>(),
            [Service::Mlflow]
        );
    }
}
