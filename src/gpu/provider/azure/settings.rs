//! What the operator says about Azure, and what follows where nothing is said.

use super::{arm, body, network};
use crate::{config, host::Host};
use anyhow::{Context as _, Result};
use std::{net::IpAddr, path::PathBuf, time::Duration};

/// What the operator says about Azure; what is not said is found out.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Of the Resource Manager, of who gives tokens, of this machine's metadata, and of the price list.
    pub endpoint: String,
    pub login: String,
    pub metadata: String,
    pub prices: String,
    /// Whom a token is for, where that is not the endpoint.
    pub audience: Option<String>,
    /// PEM of those who vouch for these services, in place of the machine's own.
    pub roots: Option<String>,
    /// None: the one that this machine is in.
    pub subscription: Option<String>,
    /// Where runs go when this identity may not make a group for each.
    pub group: Option<String>,
    /// Under which address this headquarters goes out; none: as Azure knows.
    pub address: Option<IpAddr>,
    /// The name under which machines ask for this headquarters' MLflow; none where it has none.
    pub name: Option<String>,
    /// `publisher:offer:sku` for machines with a GPU, and for those without.
    pub images: [String; 2],
    /// Where ssh is on the machines: 22.
    pub port: u16,
    /// Unless somebody moves it on, a machine is switched off after so long.
    pub lease: Duration,
    /// Directories of runs, and of the sockets of connections, whose names must be short.
    pub runs: PathBuf,
    pub sockets: PathBuf,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            endpoint: "https://management.azure.com".into(),
            login: "https://login.microsoftonline.com".into(),
            metadata: "http://169.254.169.254".into(),
            prices: "https://prices.azure.com".into(),
            audience: None,
            roots: None,
            subscription: None,
            group: None,
            address: None,
            name: None,
            // The first has driver and CUDA in it: installing them takes minutes and a restart.
            images: ["microsoft-dsvm:ubuntu-hpc:2204".into(), "Canonical:ubuntu-24_04-lts:server".into()],
            port: body::SSH,
            lease: Duration::from_secs(2 * 3600),
            runs: "/var/lib/echoes-appliance/runs".into(),
            sockets: "/run/echoes-appliance/gpu".into(),
        }
    }
}

impl Settings {
    /// As the operator says. What he leaves open about addresses is that of the cloud which this machine is in.
    pub fn of(config: &config::Azure, host: &Host) -> Result<Self> {
        let named = |text: &str| Some(text.to_owned()).filter(|text| !text.is_empty());
        let (endpoint, login) = (named(config.endpoint.as_str()), named(config.login.as_str()));
        let here = match (&endpoint, &login) {
            (Some(_), Some(_)) => None,
            _ => cloud(config.metadata.as_str())?,
        };
        let cloud = Self::of_cloud(here.as_deref().unwrap_or_default());
        let roots = match config.ca_file.to_path() {
            Some(path) => {
                let text = host.read_text(&path)?;
                Some(text.with_context(|| format!("gpu.azure.ca_file: {} is not there", path.display()))?)
            }
            None => None,
        };
        Ok(Self {
            endpoint: endpoint.unwrap_or(cloud.endpoint),
            login: login.unwrap_or(cloud.login),
            metadata: config.metadata.to_string(),
            prices: config.prices.to_string(),
            audience: named(config.audience.as_str()),
            roots,
            subscription: named(config.subscription.as_str()),
            group: named(config.group.as_str()),
            address: config.address.as_str().parse().ok(),
            images: [config.gpu_image.to_string(), config.image.to_string()],
            port: config.ssh_port.get(),
            lease: Duration::from_secs(3600 * u64::from(config.lease_hours.get())),
            ..Self::default()
        })
    }

    /// The addresses of one of Microsoft's clouds, by the name that its metadata service gives it.
    pub fn of_cloud(name: &str) -> Self {
        let (endpoint, login) = match name {
            "AzureUSGovernmentCloud" => {
                ("https://management.usgovcloudapi.net", "https://login.microsoftonline.us")
            }
            "AzureChinaCloud" => ("https://management.chinacloudapi.cn", "https://login.chinacloudapi.cn"),
            _ => return Self::default(),
        };
        Self { endpoint: endpoint.into(), login: login.into(), ..Self::default() }
    }
}

/// What the metadata service calls the cloud that it is of; nothing where there is none.
fn cloud(service: &str) -> Result<Option<String>> {
    let http = arm::client(None).context("preparing to ask for this machine's metadata")?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.context("starting the async runtime")?;
    Ok(runtime.block_on(network::metadata(&http, service)).map(|metadata| metadata.cloud))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{config::Config, host::System};
    use std::path::Path;

    #[test]
    fn what_the_operator_leaves_open_is_as_it_was_thought_of() {
        let host = Host::new("/", System);
        let of = |text: &str| {
            // Nobody is asked where both are named.
            let both = "[gpu.azure]\nendpoint = \"https://a.example\"\nlogin = \"https://b.example\"\n";
            let config = Config::parse(Path::new("c.toml"), &format!("{both}{text}"), &[]).unwrap();
            Settings::of(&config.gpu.azure, &host)
        };
        let named = Settings {
            endpoint: "https://a.example".into(),
            login: "https://b.example".into(),
            ..Settings::default()
        };
        assert_eq!(format!("{:?}", of("").unwrap()), format!("{named:?}"), "the defaults are said once");
        let said = of("lease_hours = 3\naddress = \"20.1.2.3\"\ngroup = \"team\"\n").unwrap();
        assert_eq!((said.lease, said.address), (Duration::from_secs(10_800), "20.1.2.3".parse().ok()));
        assert_eq!(said.group.as_deref(), Some("team"));
        let absent = format!("{:#}", of("ca_file = \"/no/such.pem\"\n").unwrap_err());
        assert!(absent.contains("gpu.azure.ca_file: /no/such.pem is not there"), "{absent}");
    }

    #[test]
    fn sovereign_clouds_have_addresses_of_their_own() {
        for (name, ending) in [
            ("AzureUSGovernmentCloud", "usgovcloudapi.net"),
            ("AzureChinaCloud", "chinacloudapi.cn"),
            ("AzurePublicCloud", "azure.com"),
            ("", "azure.com"),
        ] {
            assert!(Settings::of_cloud(name).endpoint.ends_with(ending), "{name}");
        }
    }
}
