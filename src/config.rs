//! What the operator asked for. One struct, one name per setting: the key in the TOML file is the field here
//! and the variable in the templates.
//!
//! nginx and systemd have no escaping, so the type is the escaping: every text in here is of a type that cannot
//! hold what would end a directive. A value that got past this file needs no further checks.

use crate::gpu::spec::{DataBy, RunReads, Source, Spot};
use anyhow::{Context as _, Result, bail, ensure};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::{
    borrow::Cow,
    collections::BTreeMap,
    fmt,
    net::{IpAddr, Ipv4Addr},
    num::NonZeroU16,
    path::{Path, PathBuf},
};
use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

/// The defaults, which are also the reference: this is what `config init` writes.
pub const DEFAULTS: &str = include_str!("../assets/config.toml");

/// The operator's file.
pub const PATH: &str = "/etc/echoes-appliance/config.toml";

#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The name under which people reach the headquarters.
    pub domain: Domain,
    pub data: Data,
    pub code: Code,
    pub auth: Auth,
    pub tls: Tls,
    pub mlflow: Mlflow,
    pub tensorboard: Tensorboard,
    pub dashboard: Dashboard,
    pub docs: Docs,
    pub gpu: Gpu,
}

#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Data {
    /// "auto", "none", or a block device.
    pub disk: DiskChoice,
    /// Where the disk is mounted.
    pub path: UnixPath,
    /// Users of this machine who join the group "echoes".
    pub members: Vec<UserName>,
}

#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Code {
    /// The team's checkout, or "".
    pub path: MaybePath,
}

#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Auth {
    /// The first user.
    pub user: UserName,
}

#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Tls {
    /// Who signs the certificates.
    pub mode: TlsMode,
    /// Whom the authority may write to, or "".
    pub email: MaybeEmail,
    /// The directory of an ACME authority (RFC 8555).
    pub directory: Https,
    /// The directory of its staging environment; "" for Let's Encrypt's when that is the authority, else for none.
    pub staging_directory: MaybeHttps,
    /// Certificates from the staging environment, which nobody trusts: to try.
    pub staging: bool,
    /// PEM of those who vouch for the authority's own web server, or "" for the machine's.
    pub ca_file: MaybePath,
    /// External account binding: the key's identifier, or "".
    pub eab_kid: Token,
    /// External account binding: the file that holds the key as base64url, or "".
    pub eab_key_file: MaybePath,
    /// The authority's name for a kind of certificate, or "" for its default.
    pub profile: Token,
    pub key_type: KeyType,
    /// One certificate with all names, instead of one each.
    pub shared: bool,
    /// The pair of mode "files": certificate and chain, PEM.
    pub cert_file: MaybePath,
    /// Its private key, PEM.
    pub key_file: MaybePath,
    /// Told by POST when a certificate cannot be renewed and somebody should know, or "".
    pub webhook: MaybeHttps,
}

/// Who signs the certificates.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum TlsMode {
    /// The ACME authority for names that a public one signs, our own for the others.
    Auto,
    /// The ACME authority.
    Letsencrypt,
    /// An authority of our own.
    Internal,
    /// A pair of the team's.
    Files,
}

/// The kind of a certificate's private key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
pub enum KeyType {
    #[serde(rename = "ecdsa-p256")]
    P256,
    #[serde(rename = "ecdsa-p384")]
    P384,
}

/// Who signs the certificates, once decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signer {
    Internal,
    Acme,
    Files,
}

pub const LETS_ENCRYPT: &str = "https://acme-v02.api.letsencrypt.org/directory";
const LETS_ENCRYPT_STAGING: &str = "https://acme-staging-v02.api.letsencrypt.org/directory";

#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Mlflow {
    pub enabled: bool,
    /// Ask for a user and a password.
    pub auth: bool,
    pub port: NonZeroU16,
    pub listen: IpAddr,
    /// "sqlite", or a postgresql:// URI.
    pub backend: Backend,
    /// "", or any URI that MLflow takes.
    pub artifacts: MaybeUri,
    /// MLflow may ask this machine's metadata for the token of its identity.
    pub managed_identity: bool,
    /// A file store to take over, or "".
    pub import: MaybePath,
    /// systemd's MemoryMax=.
    pub memory_max: Size,
}

#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Tensorboard {
    pub enabled: bool,
    pub auth: bool,
    pub port: NonZeroU16,
    pub memory_max: Size,
}

#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Dashboard {
    pub enabled: bool,
    pub auth: bool,
    pub port: NonZeroU16,
}

#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Docs {
    pub enabled: bool,
    pub auth: bool,
    pub port: NonZeroU16,
    /// The directory of the team's own mkdocs.yml, or "" for this appliance's handbook.
    pub source: MaybePath,
}

#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Gpu {
    /// Where machines come from: "auto", "local", "azure", or ssh://USER@HOST[:PORT].
    pub provider: ProviderName,
    /// A run ends after so long: "auto", or hours, 0 for no limit.
    pub max_hours: MaxHours,
    /// A run ends before it has cost so many US dollars; 0 for no limit.
    pub max_cost: u32,
    /// So many files of one run come home.
    pub max_result_files: u32,
    /// So many GiB of one run come home; 0 for as many as there is room for.
    pub max_result_gib: u32,
    /// Scripts of this machine are shut in.
    pub local_sandbox: bool,
    /// What such a script may write to by its person's rights, besides `data.path`.
    pub local_writable: Vec<UnixPath>,
    /// From the polite request to end until a script is ended: "60s", "5m", "1h", or seconds.
    pub grace: Grace,
    /// Datasets that runs read, where the command line names none.
    pub data: Vec<String>,
    /// How datasets get to a machine that is rented, where the command line does not say.
    pub data_by: DataBy,
    /// What a run's login may read at MLflow.
    pub run_reads: RunReads,
    /// What comes home besides `$ECHOES_OUT`, where the command line names nothing.
    pub out: Vec<PathBuf>,
    /// Variables of every script's environment.
    pub env: BTreeMap<VariableName, String>,
    /// Secrets of every script's environment, by name: their values come from that of `gpu-run`.
    pub secret: Vec<VariableName>,
    /// The private key for machines that the team owns, or "" for root's own.
    pub ssh_key: MaybePath,
    /// The keys of those machines, or "" for root's own list.
    pub known_hosts: MaybePath,
    pub azure: Azure,
}

#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Azure {
    /// The subscription that pays, by its id, or "".
    pub subscription: Token,
    /// Sizes to rent where the command line names none, the best first.
    pub vm_size: Vec<Token>,
    /// Regions to rent in where the command line names none, the best first.
    pub region: Vec<Token>,
    /// Whether to rent what may be taken away, where the command line does not say.
    pub spot: Spot,
    /// The resource group for runs where none may be made for each, or "".
    pub group: Token,
    /// The address under which this headquarters goes out, or "".
    pub address: MaybeAddress,
    /// For machines with a GPU.
    pub gpu_image: Image,
    /// For machines without.
    pub image: Image,
    /// After so long without its headquarters a machine is switched off.
    pub lease_hours: NonZeroU16,
    /// Of the Resource Manager, or "".
    pub endpoint: MaybeUrl,
    /// Of who gives tokens, or "".
    pub login: MaybeUrl,
    /// Whom a token is for, or "".
    pub audience: MaybeUrl,
    /// Of this machine's metadata.
    pub metadata: Url,
    /// Of the price list.
    pub prices: Url,
    /// Who vouches for these services, or "".
    pub ca_file: MaybePath,
    /// Where rented machines have ssh.
    pub ssh_port: NonZeroU16,
}

impl Config {
    /// Lay the operator's file over the defaults, then each `key=value` of `set` over both. `path` is named in
    /// errors, which carry the line and what is allowed there.
    pub fn parse(path: &Path, file: &str, set: &[Setting]) -> Result<Self> {
        let mut table = DeTable::parse(DEFAULTS).context("reading the built-in defaults")?;
        let named = |mut e: toml::de::Error| {
            e.set_input(Some(file));
            anyhow::anyhow!("{}", e.to_string().trim_end())
        };
        let over =
            DeTable::parse(file).map_err(named).with_context(|| format!("reading {}", path.display()))?;
        overlay(&mut table, over);
        let with_file: Self = deserialize(table.clone())
            .map_err(named)
            .with_context(|| format!("checking {}", path.display()))?;
        if set.is_empty() {
            return with_file.checked();
        }
        for setting in set {
            let over =
                DeTable::parse(&setting.toml).with_context(|| format!("reading --set {}", setting.key))?;
            overlay(&mut table, over);
            let mut trial = table.clone();
            trial.get_mut().make_owned();
            let checked: Result<Self, _> = deserialize(trial);
            checked
                .map_err(|e| anyhow::anyhow!("{}", e.message()))
                .with_context(|| format!("checking --set {setting}"))?;
        }
        deserialize::<Self>(table).context("checking the settings")?.checked()
    }

    /// What no single value can know.
    fn checked(self) -> Result<Self> {
        let ports = [
            ("mlflow", self.mlflow.port),
            ("tensorboard", self.tensorboard.port),
            ("dashboard", self.dashboard.port),
            ("docs", self.docs.port),
        ];
        for (n, (name, port)) in ports.iter().enumerate() {
            ensure!(!matches!(port.get(), 22 | 80 | 443), "{name}.port = {port} belongs to ssh or nginx");
            if let Some((other, _)) = ports[..n].iter().find(|(_, taken)| taken == port) {
                bail!("{other}.port and {name}.port are both {port}");
            }
        }
        let (tls, domain) = (&self.tls, &self.domain);
        let empty = |path: &MaybePath| path.as_str().is_empty();
        if tls.mode == TlsMode::Letsencrypt && tls.directory.as_str() == LETS_ENCRYPT {
            ensure!(
                is_public(domain.as_str()),
                "tls.mode is \"letsencrypt\", but no public authority signs names under {domain}"
            );
        }
        if tls.mode == TlsMode::Files {
            let both = !empty(&tls.cert_file) && !empty(&tls.key_file);
            ensure!(both, "tls.mode is \"files\": tls.cert_file and tls.key_file must name them");
        }
        let files = [
            ("ca_file", &tls.ca_file),
            ("eab_key_file", &tls.eab_key_file),
            ("cert_file", &tls.cert_file),
            ("key_file", &tls.key_file),
        ];
        for (name, path) in files {
            let unseen = ["/home/", "/root/", "/run/user/", "/tmp/", "/var/tmp/"];
            ensure!(
                !unseen.iter().any(|dir| path.as_str().starts_with(dir)),
                "tls.{name} = {path} is where the renewal at night cannot look: put it below /etc"
            );
        }
        let bound = !tls.eab_kid.as_str().is_empty();
        ensure!(bound != empty(&tls.eab_key_file), "tls.eab_kid and tls.eab_key_file need each other");
        if tls.staging {
            ensure!(tls.staging().is_some(), "tls.staging is true, but tls.staging_directory is \"\"");
        }
        Ok(self)
    }

    /// Who signs the certificates.
    pub fn signer(&self) -> Signer {
        match self.tls.mode {
            TlsMode::Auto if is_public(self.domain.as_str()) => Signer::Acme,
            TlsMode::Auto | TlsMode::Internal => Signer::Internal,
            TlsMode::Letsencrypt => Signer::Acme,
            TlsMode::Files => Signer::Files,
        }
    }

    /// Where MLflow can be reached on this machine, whatever it listens on.
    pub fn mlflow_loopback(&self) -> IpAddr {
        if self.mlflow.listen.is_unspecified() { Ipv4Addr::LOCALHOST.into() } else { self.mlflow.listen }
    }
}

impl Tls {
    /// The directory of the authority's staging environment, if it has one.
    pub fn staging(&self) -> Option<&str> {
        match self.staging_directory.as_str() {
            "" if self.directory.as_str() == LETS_ENCRYPT => Some(LETS_ENCRYPT_STAGING),
            "" => None,
            url => Some(url),
        }
    }
}

/// Whether a public authority would sign names under this domain: not those set apart for other uses (RFC 6761, RFC
/// 6762, RFC 8375, and what ICANN keeps for private use), nor what networks have invented for themselves.
fn is_public(domain: &str) -> bool {
    const PRIVATE: [&str; 14] = [
        "alt",
        "arpa",
        "corp",
        "example",
        "home",
        "internal",
        "intranet",
        "invalid",
        "lan",
        "local",
        "localdomain",
        "localhost",
        "onion",
        "test",
    ];
    let labels: Vec<_> = domain.rsplit('.').collect();
    let reserved = labels.get(1) == Some(&"example") && ["com", "net", "org"].contains(&labels[0]);
    let number = labels[0].bytes().all(|b| b.is_ascii_digit());
    labels.len() > 1 && !PRIVATE.contains(&labels[0]) && !reserved && !number
}

impl Default for Config {
    fn default() -> Self {
        Self::parse(Path::new("defaults"), "", &[]).expect("the defaults are tested")
    }
}

fn deserialize<T: serde::de::DeserializeOwned>(table: Spanned<DeTable<'_>>) -> Result<T, toml::de::Error> {
    T::deserialize(toml::de::Deserializer::from(table))
}

fn overlay<'i>(under: &mut Spanned<DeTable<'i>>, over: Spanned<DeTable<'i>>) {
    fn lay<'i>(under: &mut DeTable<'i>, over: DeTable<'i>) {
        for (key, value) in over {
            let both = under.get_mut(key.get_ref().as_ref()).map(Spanned::as_mut);
            match (both, value) {
                (Some(under), value) if under.is_table() && value.get_ref().is_table() => {
                    if let (DeValue::Table(under), DeValue::Table(over)) = (under, value.into_inner()) {
                        lay(under, over);
                    }
                }
                (_, value) => {
                    // Remove first: a key that stays keeps its old span, and errors would point at the default.
                    under.remove(key.get_ref().as_ref());
                    under.insert(key, value);
                }
            }
        }
    }
    lay(under.get_mut(), over.into_inner());
}

/// One `key=value` of the command line. The value is TOML where it reads as such, else a string: quotes are for
/// shells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Setting {
    pub key: String,
    pub value: String,
    toml: String,
}

impl Setting {
    pub fn new(key: &str, value: &str) -> Result<Self> {
        let part =
            |p: &str| !p.is_empty() && p.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-".contains(&b));
        ensure!(key.split('.').all(part), "`{key}` is not a setting; they look like data.disk");
        let plain = format!("{key} = {value}");
        let toml = match plain.parse::<toml::Table>() {
            // One key, so that no newline in a value brings in a second one.
            Ok(table) if !value.contains('\n') && table.len() == 1 => plain,
            _ => format!("{key} = {}", toml::Value::String(value.into())),
        };
        Ok(Self { key: key.into(), value: value.into(), toml })
    }

    /// Write this setting into the operator's file, keeping everything else as it is, comments included.
    pub fn write_into(&self, file: &str) -> Result<String> {
        let mut doc: toml_edit::DocumentMut = file.parse().context("reading the settings file")?;
        let over: toml_edit::DocumentMut = self.toml.parse().context("reading a setting")?;
        let path: Vec<_> = self.key.split('.').collect();
        let (last, tables) = path.split_last().context("a setting needs a name")?;
        let mut value = over.as_item();
        let mut at = doc.as_table_mut() as &mut dyn toml_edit::TableLike;
        for table in tables {
            value = value.get(table).context("a setting needs a value")?;
            let mut fresh = toml_edit::Table::new();
            fresh.set_implicit(false);
            at = at
                .entry(table)
                .or_insert(toml_edit::Item::Table(fresh))
                .as_table_like_mut()
                .with_context(|| format!("`{table}` is not a table"))?;
        }
        let value = value.get(last).and_then(toml_edit::Item::as_value).context("a setting needs a value")?;
        match at.get_mut(last).and_then(toml_edit::Item::as_value_mut) {
            Some(old) => {
                let decor = old.decor().clone();
                *old = value.clone();
                *old.decor_mut() = decor;
            }
            None => drop(at.insert(last, toml_edit::value(value.clone()))),
        }
        Ok(doc.to_string())
    }
}

impl std::str::FromStr for Setting {
    type Err = anyhow::Error;
    fn from_str(text: &str) -> Result<Self> {
        let (key, value) = text.split_once('=').context("write it as key=value")?;
        Self::new(key.trim(), value.trim())
    }
}

impl fmt::Display for Setting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.key, self.value)
    }
}

/// A text type: what it is for people, the pattern it must match (which is also its JSON schema), and the check.
macro_rules! text {
    ($(#[$doc:meta])* $name:ident, $what:literal, $pattern:literal, $check:expr) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Deserialize, Serialize, JsonSchema)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(#[schemars(regex(pattern = $pattern))] String);

        impl TryFrom<String> for $name {
            type Error = anyhow::Error;
            fn try_from(text: String) -> Result<Self> {
                let check: fn(&str) -> bool = $check;
                ensure!(check(&text), concat!("{:?} is not ", $what), text);
                Ok(Self(text))
            }
        }

        impl From<$name> for String {
            fn from(text: $name) -> Self {
                text.0
            }
        }

        impl std::str::FromStr for $name {
            type Err = anyhow::Error;
            fn from_str(text: &str) -> Result<Self> {
                Self::try_from(text.to_owned())
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl $name {
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }
    };
}

text! {
    /// A host name in lower case (RFC 1123), one label or more. 234 bytes, so that `tensorboard.` fits before it.
    Domain,
    "a domain name: lower-case letters, digits and hyphens, in labels of at most 63, joined by dots",
    "^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?(\\.[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)*$",
    |name| {
        let edge = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit();
        let label = |l: &str| {
            let l = l.as_bytes();
            l.len() <= 63 && l.first().is_some_and(edge) && l.last().is_some_and(edge)
                && l.iter().all(|b| edge(b) || *b == b'-')
        };
        name.len() <= 234 && name.split('.').all(label)
    }
}

text! {
    /// A variable of a script's environment.
    VariableName,
    "the name of a variable: letters, digits and `_`, not a digit first",
    "^[A-Za-z_][A-Za-z0-9_]*$",
    |name| {
        !name.starts_with(|c: char| c.is_ascii_digit()) && !name.is_empty()
            && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
    }
}

text! {
    /// An absolute path without `..`, of characters that neither systemd nor nginx reads as anything else.
    UnixPath,
    "an absolute path of letters, digits and . _ - / without `..`",
    "^(/[A-Za-z0-9._-]+)+$",
    is_path
}

text! {
    /// A path, or none.
    MaybePath,
    "an absolute path of letters, digits and . _ - / without `..`, or \"\"",
    "^((/[A-Za-z0-9._-]+)+)?$",
    |path| path.is_empty() || is_path(path)
}

text! {
    /// The data disk: to be found, not to be used, or one device.
    DiskChoice,
    "\"auto\", \"none\" or a device such as /dev/disk/azure/scsi1/lun0",
    "^(auto|none|/dev/[A-Za-z0-9._/:-]+)$",
    |disk| matches!(disk, "auto" | "none") || disk.starts_with("/dev/") && is_path(&disk.replace(':', "_"))
}

text! {
    /// A name for a person: of this machine, or in the password file.
    UserName,
    "a user name: a lower-case letter or _, then letters, digits, - and _, at most 32",
    "^[a-z_][a-z0-9_-]{0,31}$",
    |name| {
        let bytes = name.as_bytes();
        bytes.len() <= 32
            && bytes.first().is_some_and(|b| b.is_ascii_lowercase() || *b == b'_')
            && bytes.iter().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"_-".contains(b))
    }
}

text! {
    /// Where runs are kept. A PostgreSQL URI holds a password: never shown, never in an argument.
    Backend,
    "\"sqlite\" or postgresql://USER:PASSWORD@HOST/DATABASE (no spaces, quotes or backslashes)",
    "^(sqlite|postgresql://[^\\s\"'\\\\]+)$",
    |uri| uri == "sqlite" || uri.starts_with("postgresql://") && is_uri(uri)
}

text! {
    /// A URI, or none.
    MaybeUri,
    "a URI such as s3://bucket/path (no spaces, quotes or backslashes), or \"\"",
    "^([a-z0-9+-]+:[^\\s\"'\\\\]+)?$",
    |uri| uri.is_empty() || is_uri(uri)
}

text! {
    /// An e-mail address, or none.
    MaybeEmail,
    "an e-mail address, or \"\"",
    "^([A-Za-z0-9._%+-]+@[A-Za-z0-9.-]+)?$",
    |email| {
        let user = |b: u8| b.is_ascii_alphanumeric() || b"._%+-".contains(&b);
        let domain = |b: u8| b.is_ascii_alphanumeric() || b".-".contains(&b);
        email.is_empty() || email.split_once('@').is_some_and(|(name, at)| {
            !name.is_empty() && !at.is_empty() && name.bytes().all(user) && at.bytes().all(domain)
        })
    }
}

text! {
    /// An https URL.
    Https,
    "an https URL (no spaces, quotes or backslashes)",
    "^https://[^\\s\"'\\\\]+$",
    is_https
}

text! {
    /// An https URL, or none. What a webhook's holds may be a secret: never shown.
    MaybeHttps,
    "an https URL (no spaces, quotes or backslashes), or \"\"",
    "^(https://[^\\s\"'\\\\]+)?$",
    |url| url.is_empty() || is_https(url)
}

text! {
    /// A word that an authority chose.
    Token,
    "a word of at most 255 letters, digits and . _ - + / =, or \"\"",
    "^[A-Za-z0-9._+/=-]{0,255}$",
    |word| word.len() <= 255 && word.bytes().all(|b| b.is_ascii_alphanumeric() || b"._+/=-".contains(&b))
}

text! {
    /// Where machines for experiments come from.
    ProviderName,
    "\"auto\", \"local\", \"azure\" or ssh://USER@HOST[:PORT]",
    "^(auto|local|azure|ssh://[a-z_][a-z0-9_-]*@[A-Za-z0-9][A-Za-z0-9.-]*(:[1-9][0-9]{0,4})?)$",
    |name| name == "auto" || Source::parse(name).is_some()
}

text! {
    /// An address of the internet protocol, or none.
    MaybeAddress,
    "an address such as 20.1.2.3, or \"\"",
    "^[0-9A-Fa-f.:]*$",
    |address| address.is_empty() || address.parse::<IpAddr>().is_ok()
}

text! {
    /// What a machine of Azure's is made from.
    Image,
    "an image named as publisher:offer:sku",
    "^[A-Za-z0-9._-]+:[A-Za-z0-9._-]+:[A-Za-z0-9._-]+$",
    |image| {
        let part = |p: &str| !p.is_empty() && p.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b));
        image.split(':').count() == 3 && image.split(':').all(part)
    }
}

text! {
    /// A URL of a service.
    Url,
    "a URL such as https://prices.azure.com (no spaces, quotes or backslashes)",
    "^https?://[^\\s\"'\\\\]+$",
    is_url
}

text! {
    /// A URL of a service, or none.
    MaybeUrl,
    "a URL such as https://management.azure.com (no spaces, quotes or backslashes), or \"\"",
    "^(https?://[^\\s\"'\\\\]+)?$",
    |url| url.is_empty() || is_url(url)
}

text! {
    /// An amount of memory as systemd writes it.
    Size,
    "an amount of memory such as 512M or 2G",
    "^[1-9][0-9]{0,8}[KMGT]$",
    |size| {
        let units = [('K', 10), ('M', 20), ('G', 30), ('T', 40)];
        let parts = units.iter().find_map(|(unit, bits)| Some((size.strip_suffix(*unit)?, *bits)));
        // systemd takes no account of a limit whose bytes it cannot count.
        parts.is_some_and(|(number, bits)| {
            (1..=9).contains(&number.len())
                && !number.starts_with('0')
                && number.bytes().all(|b| b.is_ascii_digit())
                && number.parse::<u64>().is_ok_and(|number| number <= u64::MAX >> bits)
        })
    }
}

/// Hours after which a run ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MaxHours {
    /// A day where a machine is rented. What costs nothing has no end that nobody has asked for.
    Auto,
    Hours(u32),
}

impl MaxHours {
    const WHAT: &str = "hours, as in 24, with 0 for no limit, or \"auto\"";

    /// How many, where a machine is rented or not; 0 for no limit.
    pub fn hours(self, is_rented: bool) -> u32 {
        match self {
            Self::Hours(hours) => hours,
            Self::Auto => {
                if is_rented {
                    24
                } else {
                    0
                }
            }
        }
    }
}

impl<'de> Deserialize<'de> for MaxHours {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let number = |n| u32::try_from(n).ok().map(Self::Hours);
        let word = |word: &str| (word == "auto").then_some(Self::Auto);
        from.deserialize_any(NumberOrWord { what: Self::WHAT, number, word })
    }
}

impl Serialize for MaxHours {
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Auto => to.serialize_str("auto"),
            Self::Hours(hours) => to.serialize_u32(*hours),
        }
    }
}

impl JsonSchema for MaxHours {
    fn schema_name() -> Cow<'static, str> {
        "MaxHours".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({
            "description": "Hours after which a run ends.",
            "oneOf": [{ "const": "auto" }, { "type": "integer", "minimum": 0, "maximum": u32::MAX }]
        })
    }
}

/// Seconds that a script is given to end by itself, a day at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Grace(u32);

impl Grace {
    const WHAT: &str = "a time of at most a day, such as 60s, 5m or 1h, or in seconds";
    const MOST: u32 = 86_400;

    pub fn seconds(self) -> u64 {
        self.0.into()
    }

    fn of(seconds: i64) -> Option<Self> {
        u32::try_from(seconds).ok().filter(|seconds| *seconds <= Self::MOST).map(Self)
    }

    fn parse(text: &str) -> Option<Self> {
        let unit = text.trim_start_matches(|c: char| c.is_ascii_digit());
        let number = text.strip_suffix(unit)?;
        let of = match unit.trim_start() {
            "" | "s" => 1,
            "m" | "min" => 60,
            "h" => 3600,
            _ => return None,
        };
        Self::of(number.parse::<i64>().ok()?.checked_mul(of)?)
    }
}

impl std::str::FromStr for Grace {
    type Err = anyhow::Error;
    fn from_str(text: &str) -> Result<Self> {
        Self::parse(text).with_context(|| format!("{text:?} is not {}", Self::WHAT))
    }
}

impl<'de> Deserialize<'de> for Grace {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_any(NumberOrWord { what: Self::WHAT, number: Self::of, word: Self::parse })
    }
}

impl Serialize for Grace {
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(&format_args!("{}s", self.0))
    }
}

impl JsonSchema for Grace {
    fn schema_name() -> Cow<'static, str> {
        "Grace".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({
            "description": "Seconds that a script is given to end by itself, a day at most.",
            "oneOf": [
                { "type": "string", "pattern": "^[0-9]+ ?(s|m|min|h)?$" },
                { "type": "integer", "minimum": 0, "maximum": Self::MOST }
            ]
        })
    }
}

/// A value that people write as a number or as a word.
struct NumberOrWord<N, W> {
    /// For whoever wrote it otherwise.
    what: &'static str,
    number: N,
    word: W,
}

impl<T, N: Fn(i64) -> Option<T>, W: Fn(&str) -> Option<T>> serde::de::Visitor<'_> for NumberOrWord<N, W> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.what)
    }

    fn visit_i64<E: serde::de::Error>(self, number: i64) -> Result<T, E> {
        (self.number)(number).ok_or_else(|| E::custom(format_args!("{number} is not {}", self.what)))
    }

    fn visit_u64<E: serde::de::Error>(self, number: u64) -> Result<T, E> {
        self.visit_i64(i64::try_from(number).unwrap_or(i64::MAX))
    }

    fn visit_str<E: serde::de::Error>(self, word: &str) -> Result<T, E> {
        (self.word)(word).ok_or_else(|| E::custom(format_args!("{word:?} is not {}", self.what)))
    }
}

fn is_path(path: &str) -> bool {
    let part = |p: &str| {
        !p.is_empty()
            && p != "."
            && p != ".."
            && p.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
    };
    path.strip_prefix('/').is_some_and(|rest| rest.split('/').all(part))
}

/// These reach a process through an environment file alone, where a `%` (an escaped character) means itself.
fn is_uri(uri: &str) -> bool {
    let scheme = |s: &str| {
        !s.is_empty() && s.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"+-".contains(&b))
    };
    uri.split_once(':').is_some_and(|(s, rest)| scheme(s) && !rest.is_empty())
        && uri.bytes().all(|b| b.is_ascii_graphic() && !b"\"'\\;`${}".contains(&b))
}

fn is_https(url: &str) -> bool {
    url.strip_prefix("https://").is_some_and(|rest| !rest.is_empty() && !rest.starts_with('/')) && is_uri(url)
}

fn is_url(url: &str) -> bool {
    let rest = url.strip_prefix("https://").or_else(|| url.strip_prefix("http://"));
    rest.is_some_and(|rest| !rest.is_empty() && !rest.starts_with('/')) && is_uri(url)
}

impl UnixPath {
    pub fn to_path(&self) -> PathBuf {
        PathBuf::from(&self.0)
    }
}

impl MaybePath {
    pub fn to_path(&self) -> Option<PathBuf> {
        (!self.0.is_empty()).then(|| PathBuf::from(&self.0))
    }
}

impl Gpu {
    /// Where machines come from when the command line says nothing: nothing is rented unless somebody said who pays.
    pub fn source(&self) -> Source {
        // Checked when it was read: what is left is "auto".
        Source::parse(self.provider.as_str()).unwrap_or(match self.azure.subscription.as_str() {
            "" => Source::Local,
            _ => Source::Azure,
        })
    }
}

impl Domain {
    /// The host name of a service.
    pub fn host(&self, service: &str) -> String {
        format!("{service}.{}", self.0)
    }
}

/// The JSON schema of `config.toml`.
pub fn schema() -> String {
    let mut text = serde_json::to_string_pretty(&schemars::schema_for!(Config)).expect("a schema is JSON");
    text.push('\n');
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::str::FromStr as _;

    fn parse(file: &str, set: &[&str]) -> Result<Config> {
        let set: Result<Vec<Setting>> = set.iter().map(|s| s.parse()).collect();
        Config::parse(Path::new("/etc/x.toml"), file, &set?)
    }

    #[test]
    fn layers_override_in_order() {
        let config =
            parse("domain = \"a.example\"\n[mlflow]\nport = 9", &["mlflow.port=10", "docs.auth=true"])
                .unwrap();
        assert_eq!(
            (config.domain.as_str(), config.mlflow.port.get(), config.docs.auth),
            ("a.example", 10, true)
        );
        assert_eq!(config.tensorboard.port.get(), 6006);
    }

    #[test]
    fn what_costs_nothing_has_no_end_but_one_that_was_asked_for() {
        let hours = |file: &str, set: &[&str]| {
            let of = parse(file, set).unwrap().gpu.max_hours;
            (of.hours(true), of.hours(false))
        };
        assert_eq!(hours("", &[]), (24, 0));
        assert_eq!(hours("[gpu]\nmax_hours = 24", &[]), (24, 24));
        assert_eq!(hours("[gpu]\nmax_hours = 24", &["gpu.max_hours=auto"]), (24, 0));
        assert_eq!(hours("", &["gpu.max_hours=0"]), (0, 0));
        for bad in ["gpu.max_hours=-1", "gpu.max_hours=1.5", "gpu.max_hours=never", "gpu.max_hours=true"] {
            let said = format!("{:#}", parse("", &[bad]).unwrap_err());
            assert!(said.contains("hours, as in 24, with 0 for no limit, or \"auto\""), "{bad}: {said}");
        }
    }

    #[test]
    fn grace_is_written_as_people_write_a_time() {
        let grace =
            |text: &str| parse("", &[&format!("gpu.grace={text}")]).map(|config| config.gpu.grace.seconds());
        assert_eq!(parse("", &[]).unwrap().gpu.grace.seconds(), 60);
        for (text, seconds) in
            [("90", 90), ("90s", 90), ("5m", 300), ("5 min", 300), ("1h", 3600), ("0", 0), ("24h", 86_400)]
        {
            assert_eq!(grace(text).unwrap(), seconds, "{text}");
        }
        for bad in ["-1", "25h", "86401", "m", "5x", "1.5m", "5m5", "true", "99999999999999999999h"] {
            let said = format!("{:#}", grace(bad).unwrap_err());
            assert!(said.contains("a time of at most a day, such as 60s, 5m or 1h"), "{bad}: {said}");
        }
        let shown = toml::to_string(&Config::default().gpu).unwrap();
        assert!(shown.contains("grace = \"60s\"") && shown.contains("max_hours = \"auto\""), "{shown}");
    }

    #[test]
    fn a_domain_cannot_carry_a_directive() {
        for bad in ["", "a.b; return 200", "a..b", "a.b\nc", "-a.b", "a_b", "A.b", ".", &"a".repeat(64)] {
            assert!(Domain::try_from(bad.to_owned()).is_err(), "{bad:?}");
        }
        for good in ["localhost", "lonel.ai", "a-b.c1.example"] {
            assert!(Domain::try_from(good.to_owned()).is_ok(), "{good:?}");
        }
    }

    #[test]
    fn texts_that_would_be_read_as_something_else_are_refused() {
        for bad in
            ["data.path=/a b", "data.path=/a/../b", "data.path=relative", "data.path=/a%h", "data.path=/a;b"]
        {
            assert!(parse("", &[bad]).is_err(), "{bad}");
        }
        for bad in
            ["mlflow.backend=mysql://a", "mlflow.artifacts=s3://a;b", "mlflow.memory_max=0G", "auth.user=a:b"]
        {
            assert!(parse("", &[bad]).is_err(), "{bad}");
        }
        for bad in ["", "G", "ü", "1ü", "ü1G", "1G ", "1", "01G", "+1G", "-1G", "16777216T", "99999999999T"]
        {
            assert!(Size::from_str(bad).is_err(), "{bad}");
        }
        for bad in [
            "",
            "s",
            "ü",
            "1ü",
            "ü1s",
            "1s1",
            "-1s",
            "86401",
            "99999999999999999999h",
            "9223372036854775807h",
        ] {
            assert!(Grace::from_str(bad).is_err(), "{bad}");
        }
        for good in ["1K", "512M", "16777215T"] {
            Size::from_str(good).unwrap();
        }
        for good in
            ["data.disk=/dev/disk/by-id/scsi-1:2", "mlflow.backend=postgresql://u:p@h/db", "data.disk=none"]
        {
            parse("", &[good]).unwrap();
        }
    }

    #[test]
    fn an_error_names_the_file_the_line_and_what_is_allowed() {
        let said = |file| format!("{:#}", parse(file, &[]).unwrap_err());
        let unknown = said("domain = \"a.example\"\n[mlflow]\nprot = 1\n");
        assert!(unknown.contains("/etc/x.toml") && unknown.contains("line 3"), "{unknown}");
        assert!(unknown.contains("unknown field `prot`") && unknown.contains("`port`"), "{unknown}");
        let wrong = said("\n\ndomain = 3\n");
        assert!(wrong.contains("line 3") && wrong.contains("string"), "{wrong}");
        let evil = said("domain = \"a.b\\nserver {}\"\n");
        assert!(evil.contains("line 1") && evil.contains("is not a domain name"), "{evil}");
        assert!(said("domain = ").contains("line 1"));
    }

    #[test]
    fn an_error_on_the_command_line_names_the_setting() {
        let err = format!("{:#}", parse("", &["mlflow.port=99999"]).unwrap_err());
        assert!(err.contains("--set mlflow.port=99999"), "{err}");
        let err = format!("{:#}", parse("", &["mlflw.port=1"]).unwrap_err());
        assert!(err.contains("unknown field `mlflw`"), "{err}");
    }

    #[test]
    fn two_services_cannot_share_a_port() {
        let err = parse("", &["docs.port=5000"]).unwrap_err().to_string();
        assert_eq!(err, "mlflow.port and docs.port are both 5000");
    }

    #[test]
    fn who_signs_is_decided_by_the_name_unless_said() {
        let signer = |domain: &str, mode: &str| {
            parse(&format!("domain = \"{domain}\"\ntls.mode = \"{mode}\""), &[]).map(|c| c.signer())
        };
        for public in ["lonel.ai", "hq.lonel.ai", "example.ai", "internal.lonel.ai", "my-example.com"] {
            assert_eq!(signer(public, "auto").unwrap(), Signer::Acme, "{public}");
        }
        let private = [
            "localhost",
            "hq",
            "team.test",
            "hq.internal",
            "a.b.local",
            "example.org",
            "hq.example.com",
            "1.2.3.4",
        ];
        for private in private {
            assert_eq!(signer(private, "auto").unwrap(), Signer::Internal, "{private}");
            assert!(signer(private, "letsencrypt").is_err(), "{private}");
        }
        assert_eq!(signer("lonel.ai", "internal").unwrap(), Signer::Internal);
        let own =
            ["tls.mode=letsencrypt", "tls.directory=https://ca.internal/directory", "domain=hq.internal"];
        assert_eq!(
            parse("", &own).unwrap().signer(),
            Signer::Acme,
            "an authority of one's own signs anything"
        );
    }

    #[test]
    fn settings_of_certificates_that_need_each_other_are_told() {
        let said = |set: &[&str]| format!("{:#}", parse("", set).unwrap_err());
        assert!(said(&["tls.mode=files"]).contains("tls.cert_file and tls.key_file must name them"));
        assert!(said(&["tls.eab_kid=k"]).contains("need each other"));
        assert!(said(&["tls.eab_key_file=/etc/k"]).contains("need each other"));
        let elsewhere = ["tls.directory=https://ca.test/dir", "tls.staging=true"];
        assert!(said(&elsewhere).contains("tls.staging_directory is"));
        assert!(said(&["tls.ca_file=/root/ca.pem"]).contains("put it below /etc"));
        for bad in
            ["tls.email=a b@c", "tls.directory=http://ca.test/", "tls.profile=a b", "tls.webhook=ftp://x"]
        {
            assert!(parse("", &[bad]).is_err(), "{bad}");
        }
        let good =
            parse("", &["tls.staging=true", "tls.email=ops@lonel.ai", "tls.key_type=ecdsa-p384"]).unwrap();
        assert_eq!(good.tls.staging(), Some(LETS_ENCRYPT_STAGING));
    }

    #[test]
    fn a_value_may_be_written_without_quotes_and_cannot_bring_a_second_key() {
        assert_eq!(parse("", &["domain=lonel.ai"]).unwrap().domain.as_str(), "lonel.ai");
        assert!(parse("", &["domain=\"a.b\"\nauth.user=\"x\""]).is_err());
    }

    #[test]
    fn a_setting_is_written_into_the_file_with_its_comments_kept() {
        let file = "# ours\ndomain = \"a.b\" # public\n\n[mlflow]\nport = 1\n";
        let set: Setting = "domain=c.d".parse().unwrap();
        assert_eq!(
            set.write_into(file).unwrap(),
            "# ours\ndomain = \"c.d\" # public\n\n[mlflow]\nport = 1\n"
        );
        let set: Setting = "data.disk=none".parse().unwrap();
        assert_eq!(
            set.write_into("domain = \"a.b\"\n").unwrap(),
            "domain = \"a.b\"\n\n[data]\ndisk = \"none\"\n"
        );
    }

    #[test]
    fn what_config_init_writes_means_the_defaults() {
        assert_eq!(parse(DEFAULTS, &[]).unwrap(), Config::default());
    }

    #[test]
    #[allow(clippy::disallowed_methods)]
    fn the_published_schema_is_this_one() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/assets/config.schema.json");
        if std::env::var_os("UPDATE").is_some() {
            std::fs::write(path, schema()).unwrap();
        }
        assert!(std::fs::read_to_string(path).unwrap() == schema(), "run `UPDATE=1 cargo test schema`");
    }

    #[test]
    fn fuzz_config_is_read_or_refused_and_what_is_shown_means_the_same() {
        let words = [
            "[gpu.azure]\n",
            "memory_max = \"2G\"",
            "grace = \"5m\"",
            "max_hours = \"auto\"",
            "provider = \"ssh://a@b:22\"",
        ];
        crate::fuzz::run("config", &words, |bytes| {
            let text = String::from_utf8_lossy(bytes);
            let config = Config::parse(Path::new("/c.toml"), &text, &[])?;
            let shown = toml::to_string(&config)?;
            assert_eq!(Config::parse(Path::new("/c.toml"), &shown, &[]).unwrap(), config);
            Ok(())
        });
    }

    #[test]
    fn fuzz_setting_is_written_into_a_file_that_says_it_then_or_refused() {
        crate::fuzz::run(
            "setting",
            &["=", ".", "gpu.env.A", "data.disk", "\"a\".b", "[1, 2]", "{ a = 1 }"],
            |bytes| {
                let text = String::from_utf8_lossy(bytes);
                let (file, set) = text.split_once("\n---\n").unwrap_or(("", &text));
                let setting: Setting = set.parse()?;
                let written = setting.write_into(file)?;
                let _ = Config::parse(Path::new("/c.toml"), file, std::slice::from_ref(&setting));
                assert_eq!(setting.write_into(&written)?, written);
                Ok(())
            },
        );
    }
}
