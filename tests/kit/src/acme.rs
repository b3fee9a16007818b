//! A certificate authority for machines of the lab: Pebble, Let's Encrypt's own test server, on the host, with a DNS
//! server that knows one machine, and before it a proxy that counts what is asked and spoils what it is told to.
//! Everything ends with the value.
//!
//! Pebble refuses nobody and never tires; what a real authority does on a bad day is the proxy's. Bodies of answers
//! are not signed, so they may be rewritten; the `Host` header is, so it is kept.

mod proxy;

pub use proxy::{Act, Proxy, Rule};

use crate::{TOP, lab::Machine};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, SanType, date_time_ymd};
use serde_json::{Value, json};
use std::{
    fs::{self, File},
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};
use tempfile::TempDir;

/// The host, as machines of the lab see it.
const HOST: Ipv4Addr = Ipv4Addr::new(10, 213, 77, 1);

/// Who vouches for the web servers of test authorities: made anew for each test, valid since years, so that a machine
/// with a wrong clock still believes them.
pub struct Vouching {
    pub pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Vouching {
    fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(rcgen::DnType::CommonName, "test listeners");
        (params.not_before, params.not_after) = (date_time_ymd(2020, 1, 1), date_time_ymd(2060, 1, 1));
        let pem = params.self_signed(&key).unwrap().pem();
        Self { pem, issuer: Issuer::new(params, key) }
    }

    /// A certificate for these addresses and its key, PEM.
    pub fn sign(&self, addresses: &[IpAddr]) -> (String, String) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        params.subject_alt_names.extend(addresses.iter().copied().map(SanType::IpAddress));
        (params.not_before, params.not_after) = (date_time_ymd(2020, 1, 1), date_time_ymd(2060, 1, 1));
        (params.signed_by(&key, &self.issuer).unwrap().pem(), key.serialize_pem())
    }
}

/// How Pebble behaves.
#[derive(Debug, Clone)]
pub struct Options {
    pub retry_after: u32,
    /// Of a hundred authorizations, how many are taken over from earlier orders.
    pub reuse: u32,
    /// Of a hundred good nonces, how many are refused.
    pub nonce_reject: u32,
    /// kid and base64url key: whoever has none is refused.
    pub eab: Option<(String, String)>,
    /// Profiles and the seconds that their certificates last.
    pub profiles: Vec<(String, u64)>,
}

impl Default for Options {
    fn default() -> Self {
        let profile = |name: &str, days: u64| (name.to_owned(), days * 86400);
        let profiles = vec![profile("classic", 90)];
        Self { retry_after: 1, reuse: 0, nonce_reject: 0, eab: None, profiles }
    }
}

pub struct Acme {
    pub proxy: Proxy,
    pub vouching: Vouching,
    management: u16,
    dns: u16,
    dir: TempDir,
    children: Vec<Child>,
}

/// Pebble's programs, or why there are none: what was fetched by `tools.sh`, else what is installed. Says so loudly.
pub fn pebble(story: &str) -> Option<(PathBuf, PathBuf)> {
    let fetched = Path::new(TOP).join("target/tools/usr/bin");
    for dir in [&fetched, Path::new("/usr/bin")] {
        let (server, dns) = (dir.join("pebble"), dir.join("pebble-challtestsrv"));
        if server.exists() && dns.exists() {
            return Some((server, dns));
        }
    }
    assert!(std::env::var_os("CI").is_none(), "CI must have Pebble: tests/kit/tools.sh test");
    eprintln!("SKIPPED {story}: there is no pebble here: tests/kit/tools.sh test fetches one");
    None
}

/// Caddy, whose ACME server is another's work; as `pebble`.
pub fn caddy(story: &str) -> Option<PathBuf> {
    let fetched = Path::new(TOP).join("target/tools/usr/bin/caddy");
    let found = [fetched, "/usr/bin/caddy".into()].into_iter().find(|path| path.exists());
    if found.is_none() {
        assert!(std::env::var_os("CI").is_none(), "CI must have Caddy: tests/kit/tools.sh test");
        eprintln!("SKIPPED {story}: there is no caddy here: tests/kit/tools.sh test fetches one");
    }
    found
}

impl Acme {
    /// An authority that finds every name at this machine.
    pub fn start(machine: &Machine, options: &Options) -> Option<Self> {
        let (server, challtestsrv) = pebble("certificates of an ACME authority")?;
        let dir = tempfile::tempdir().unwrap();
        let vouching = Vouching::new();
        let [listen, management, dns, dns_management] = free_ports();
        let (cert, key) = vouching.sign(&[Ipv4Addr::LOCALHOST.into(), HOST.into()]);
        let at = |name: &str| dir.path().join(name).display().to_string();
        fs::write(at("cert.pem"), &cert).unwrap();
        fs::write(at("key.pem"), &key).unwrap();
        let profiles: serde_json::Map<_, _> = options
            .profiles
            .iter()
            .map(|(name, seconds)| {
                (name.clone(), json!({"description": name.as_str(), "validityPeriod": seconds}))
            })
            .collect();
        let mut config = json!({
            "listenAddress": format!("127.0.0.1:{listen}"),
            "managementListenAddress": format!("127.0.0.1:{management}"),
            "certificate": at("cert.pem"),
            "privateKey": at("key.pem"),
            "httpPort": 80,
            "tlsPort": 443,
            "domainBlocklist": ["docs.blocked.ai"],
            "retryAfter": {"authz": options.retry_after, "order": options.retry_after},
            "keyAlgorithm": "ecdsa",
            "profiles": profiles,
        });
        if let Some((kid, key)) = &options.eab {
            config["externalAccountBindingRequired"] = Value::Bool(true);
            let mut keys = serde_json::Map::new();
            keys.insert(kid.clone(), Value::String(key.clone()));
            config["externalAccountMACKeys"] = Value::Object(keys);
        }
        fs::write(at("pebble.json"), json!({ "pebble": config }).to_string()).unwrap();
        let log = |name: &str| File::options().create(true).append(true).open(at(name)).unwrap();
        let dns_server = Command::new(challtestsrv)
            .args(["-management", &format!("127.0.0.1:{dns_management}")])
            .args(["-http01", "", "-https01", "", "-tlsalpn01", "", "-doh", ""])
            .args(["-dnsserver", &format!("127.0.0.1:{dns}")])
            .args(["-defaultIPv4", &machine.ip().to_string(), "-defaultIPv6", &machine.ip6().to_string()])
            .stdin(Stdio::null())
            .stdout(log("dns.log"))
            .stderr(log("dns.log"))
            .spawn()
            .unwrap();
        let pebble = Command::new(server)
            .args(["-config", &at("pebble.json"), "-dnsserver", &format!("127.0.0.1:{dns}")])
            .env("PEBBLE_VA_NOSLEEP", "1")
            .env("PEBBLE_AUTHZREUSE", options.reuse.to_string())
            .env("PEBBLE_WFE_NONCEREJECT", options.nonce_reject.to_string())
            .stdin(Stdio::null())
            .stdout(log("pebble.log"))
            .stderr(log("pebble.log"))
            .spawn()
            .unwrap();
        for port in [listen, management, dns_management] {
            wait_for(port);
        }
        let proxy = Proxy::start(HOST, listen, (&cert, &key), &vouching.pem);
        let children = vec![dns_server, pebble];
        Some(Self { proxy, vouching, management, dns: dns_management, dir, children })
    }

    pub fn directory(&self) -> String {
        format!("https://{}/dir", self.proxy.address)
    }

    /// How many certificates it ever issued, by its own log.
    pub fn issued(&self) -> usize {
        let log = fs::read_to_string(self.dir.path().join("pebble.log")).unwrap();
        log.lines().filter(|line| line.contains("Issued certificate serial")).count()
    }

    /// What it answers when asked when to renew this certificate; any text.
    pub fn set_renewal_info(&self, chain: &str, answer: &str) {
        const END: &str = "-----END CERTIFICATE-----\n";
        let leaf = chain.find(END).map(|at| &chain[..at + END.len()]).expect("a chain");
        let body = json!({"Certificate": leaf, "ARIResponse": answer});
        self.post(self.management, "https", "set-renewal-info/", &body);
    }

    /// A call of challtestsrv: `set-servfail`, `add-a`, `clear-a` and so on.
    pub fn dns(&self, call: &str, body: &Value) {
        self.post(self.dns, "http", call, body);
    }

    /// The root that its certificates lead to.
    pub fn root(&self) -> String {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let url = format!("https://127.0.0.1:{}/roots/0", self.management);
        runtime.block_on(async { self.client().get(url).send().await?.text().await }).unwrap()
    }

    fn client(&self) -> reqwest::Client {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let roots = reqwest::Certificate::from_pem(self.vouching.pem.as_bytes()).unwrap();
        let client = reqwest::Client::builder().no_proxy().user_agent("tests").tls_certs_only([roots]);
        client.build().unwrap()
    }

    fn post(&self, port: u16, scheme: &str, call: &str, body: &Value) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let url = format!("{scheme}://127.0.0.1:{port}/{call}");
        let answer = runtime.block_on(self.client().post(url).body(body.to_string()).send()).unwrap();
        let status = answer.status();
        assert!(status.is_success(), "{call}: {status}: {}", runtime.block_on(answer.text()).unwrap());
    }
}

impl Drop for Acme {
    fn drop(&mut self) {
        for child in &mut self.children {
            let _gone = child.kill();
            let _gone = child.wait();
        }
    }
}

/// Taken by nobody just now, and not given to who asks for any: between our look and Pebble's start nobody else's tests
/// get them.
fn free_ports<const N: usize>() -> [u16; N] {
    // Linux gives out those from 32768 on. Processes that run at the same time begin apart.
    let begin = std::process::id() % 750 * 16;
    let mut all = (0..12_000).map(|n| u16::try_from(20_000 + (begin + n) % 12_000).unwrap());
    let free = |port: &u16| TcpListener::bind(("127.0.0.1", *port)).is_ok();
    [(); N].map(|()| all.by_ref().find(free).unwrap())
}

fn wait_for(port: u16) {
    let since = Instant::now();
    while std::net::TcpStream::connect(SocketAddr::from((Ipv4Addr::LOCALHOST, port))).is_err() {
        assert!(since.elapsed() < Duration::from_secs(20), "nobody listens on {port}");
        std::thread::sleep(Duration::from_millis(20));
    }
}
