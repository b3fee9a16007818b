//! Everything the headquarters is, as plain data. No I/O happens here: the same configuration on the same kind of
//! machine gives the same blueprint.

use super::{
    certificate::Source,
    disk, docs,
    machine::{Machine, UNPACKAGED},
    mlflow, nginx, python,
    resource::{Expected, File, Load, Resource, Tool, Unit},
    results::Results,
    service::Service,
    store::Store,
};
use crate::{
    config::{Config, Signer, UnixPath},
    gpu::{agent::sandbox, runs},
    tls,
};
use anyhow::{Context as _, Result};
use std::{
    collections::BTreeSet,
    net::SocketAddr,
    path::{Path, PathBuf},
};
use tera::{Context, Tera};

/// Where the dashboard's page is.
pub const DASHBOARD: &str = "/var/www/dashboard";

/// Where the built documentation is.
pub const DOCS: &str = "/var/www/docs/site";

/// The description of the data disk's directories, out of the way of systemd's pass at boot.
const DATA_TMPFILES: &str = "/etc/echoes-appliance/data.tmpfiles";

/// Where nginx's unit is told how many files it may have open.
const NGINX_LIMITS: &str = "systemd/system/nginx.service.d/echoes.conf";

/// What the data disk holds.
const DATA_DIRS: [&str; 5] = ["ucf101", "logs", "mlruns", "tfruns", "azure_results"];

/// What the team's checkout finds there.
const LINKED: [&str; 3] = ["logs", "mlruns", "tfruns"];

pub const HTPASSWD: &str = "/etc/nginx/.htpasswd";
pub const AUTH: &str = "echoes-auth.service";
pub const TENSORBOARD_PROXY: &str = "tensorboard-proxy.service";
pub const RUN_PROXY: &str = "echoes-run-proxy.service";

/// Whether a unit that services stand on is wanted, where these are the services. True for what all of them need.
pub fn is_part_wanted(unit: &str, config: &Config, has: impl Fn(Service) -> bool) -> bool {
    let is_guarded = |service: Service| has(service) && service.auth(config);
    match unit {
        // Without a password to check there is nobody to check it.
        AUTH => Service::ALL.into_iter().any(is_guarded),
        RUN_PROXY => is_guarded(Service::Mlflow),
        TENSORBOARD_PROXY => has(Service::Tensorboard),
        _ => true,
    }
}

/// A template, and the file it becomes. `templates/` mirrors `/etc/`, so the name says both.
struct Template {
    name: &'static str,
    text: &'static str,
    /// Whom it is for; all, when for nobody in particular.
    service: Option<Service>,
}

macro_rules! template {
    ($name:literal) => {
        template!($name, None)
    };
    ($name:literal, $service:expr) => {
        Template { name: $name, text: include_str!(concat!("../../templates/", $name)), service: $service }
    };
}

/// Every file we render. A row here, a file in `templates/`, a file in `/etc/`: one name.
const TEMPLATES: &[Template] = &[
    template!("sysusers.d/echoes.conf"),
    template!("tmpfiles.d/echoes.conf"),
    template!("systemd/system/data.device.conf"),
    template!("systemd/system/data.mount"),
    template!("systemd/system/mlflow.service", Some(Service::Mlflow)),
    template!("systemd/system/tensorboard.service", Some(Service::Tensorboard)),
    template!("systemd/system/tensorboard-proxy.service", Some(Service::Tensorboard)),
    template!("systemd/system/dashboard.service", Some(Service::Dashboard)),
    template!("systemd/system/docs.service", Some(Service::Docs)),
    template!("systemd/system/echoes-auth.service"),
    template!("systemd/system/echoes-run-proxy.service", Some(Service::Mlflow)),
    template!("systemd/system/echoes-data.service"),
    template!("systemd/system/echoes-renew.service"),
    template!("systemd/system/echoes-renew.timer"),
    template!("systemd/system/echoes-renew-boot.timer"),
    template!("systemd/system/echoes-alert.service"),
    template!("systemd/system/echoes-gpu@.service"),
    template!("systemd/system/echoes-sweep.service"),
    template!("systemd/system/echoes-sweep.timer"),
    template!("systemd/system/nginx.service.d/echoes.conf"),
    template!("nginx/conf.d/echoes.conf"),
    template!("nginx/conf.d/echoes-run-proxy.conf", Some(Service::Mlflow)),
    template!("nginx/snippets/echoes-auth.conf"),
    template!("nginx/snippets/echoes-proxy.conf"),
    template!("nginx/snippets/echoes-site.conf"),
    template!("nginx/snippets/echoes-tls.conf"),
    template!("nginx/sites-available/echoes-default.conf"),
    template!("nginx/sites-available/echoes-mlflow.conf", Some(Service::Mlflow)),
    template!("nginx/sites-available/echoes-tensorboard.conf", Some(Service::Tensorboard)),
    template!("nginx/sites-available/echoes-dashboard.conf", Some(Service::Dashboard)),
    template!("nginx/sites-available/echoes-docs.conf", Some(Service::Docs)),
];

/// What templates include: the sandbox that our small services share.
const SANDBOX: &str = include_str!("../../templates/sandbox");

/// The dashboard's page.
const PAGE: &[(&str, &str)] = &[
    ("index.html", include_str!("../../assets/dashboard/index.html")),
    ("app.js", include_str!("../../assets/dashboard/app.js")),
    ("style.css", include_str!("../../assets/dashboard/style.css")),
    ("icon.svg", include_str!("../../assets/dashboard/icon.svg")),
];

/// What is installed for whom, on which machine, with which disk.
#[derive(Clone, Copy)]
pub struct Site<'a> {
    pub config: &'a Config,
    pub machine: &'a Machine,
    pub services: &'a BTreeSet<Service>,
    /// None: the data live on the OS disk.
    pub disk: Option<&'a DataDisk>,
}

/// The data disk as decided.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DataDisk {
    pub device: String,
    pub uuid: String,
    /// Bytes.
    pub size: u64,
    /// Proven so; a file system is to be made.
    pub blank: bool,
    /// Links under /dev/disk come and go by themselves: not so in a container.
    pub udev: bool,
}

/// The Debian packages it stands on.
pub fn packages(services: &BTreeSet<Service>) -> [Resource; 2] {
    let mut first = vec!["ca-certificates"];
    if services.iter().any(|service| *service != Service::Dashboard) {
        first.push("python3-venv");
    }
    let packages = |names: Vec<&str>, beside| Resource::Packages {
        names: names.into_iter().map(Into::into).collect(),
        beside,
    };
    // Python's environments, which take longest, need not wait for nginx.
    [packages(first, false), packages(vec!["nginx"], true)]
}

/// In the order in which it must come true.
pub fn blueprint(site: &Site) -> Result<Vec<Resource>> {
    let Site { config, machine, services, disk } = *site;
    let has = |service| services.contains(&service);
    let guarded = services.iter().any(|service| service.auth(config));
    let draw = Drawing::new(site)?;
    let data = config.data.path.to_path();
    let mut all: Vec<_> = packages(services).into();
    if machine.program == Path::new(UNPACKAGED) {
        all.push(Resource::Program { path: UNPACKAGED.into(), hash: machine.build.clone() });
    }

    let sysusers = draw.file("sysusers.d/echoes.conf")?;
    all.push(sysusers);
    all.push(Resource::Applied {
        file: etc("sysusers.d/echoes.conf"),
        tool: Tool::Sysusers,
        expects: users(),
    });
    if let Some(disk) = disk {
        all.extend(data_disk(&draw, disk, &config.data.path)?);
    }
    // Where the directories are on a disk that may be late or missing, systemd's own pass at boot would make them
    // on the OS disk: a unit of ours makes them once the disk is there.
    let file = if disk.is_some() { DATA_TMPFILES.into() } else { etc("tmpfiles.d/echoes.conf") };
    all.push(draw.file_as("tmpfiles.d/echoes.conf", file.clone(), &draw.context)?);
    let kind = if disk.is_some() { Expected::Data } else { Expected::Dir };
    let expects = DATA_DIRS.iter().map(|dir| kind(data.join(dir))).collect();
    all.push(Resource::Applied { file, tool: Tool::Tmpfiles, expects });
    if disk.is_some() {
        all.extend(draw.unit("echoes-data.service", &[DATA_TMPFILES.into()], "")?);
    }
    let results = Results { dir: runs::all_results(config), disk: disk.map(|_| data.clone()) };
    all.push(Resource::Results(results));
    if has(Service::Mlflow) {
        // Not all of mlruns: an old file store in there stays as its owners had it.
        let paths = mlflow::OWN.map(|(name, group)| (data.join("mlruns").join(name), group)).into();
        let disk = disk.map(|_| data.clone());
        all.push(Resource::Owned { paths, user: "mlflow".into(), disk });
    }
    if let Some(code) = config.code.path.to_path() {
        all.extend(LINKED.iter().map(|dir| Resource::Link { path: code.join(dir), target: data.join(dir) }));
    }

    let mut env = None;
    if has(Service::Mlflow) || has(Service::Tensorboard) {
        env = Some(python::marker_of(&python::SERVICES));
        all.push(Resource::Env(&python::SERVICES));
        all.push(Resource::Bytecode(&python::SERVICES));
    }
    if has(Service::Docs) {
        all.push(Resource::Env(&python::DOCS));
        all.push(Resource::Site(docs::Site::new(config.docs.source.to_path(), DOCS.into())));
    }
    if has(Service::Dashboard) {
        all.extend(PAGE.iter().map(|(name, text)| plain(Path::new(DASHBOARD).join(name), text)));
    }
    if has(Service::Mlflow) {
        let runs = data.join("mlruns");
        let (backend, artifacts) = (config.mlflow.backend.as_str(), config.mlflow.artifacts.as_str());
        let text = mlflow::environment(&runs, backend, artifacts);
        let path = mlflow::ENVIRONMENT.into();
        all.push(Resource::File(File { path, mode: 0o600, group: None, text, secret: true }));
        all.push(Resource::Store(Store {
            data: runs,
            asked: config.mlflow.import.to_path(),
            sqlite: backend == "sqlite",
            artifacts_here: artifacts.is_empty(),
            can_migrate: machine.python >= (3, 10),
        }));
    }

    all.extend(services.iter().map(|service| {
        let domain = config.domain.to_string();
        let source = match config.signer() {
            Signer::Internal => Source::Internal(domain),
            Signer::Acme => Source::Acme(domain),
            Signer::Files => Source::Files(
                config.tls.cert_file.to_path().unwrap_or_default(),
                config.tls.key_file.to_path().unwrap_or_default(),
            ),
        };
        Resource::Certificate { host: service.host(config), source }
    }));
    if guarded {
        all.push(Resource::FirstUser { path: HTPASSWD.into(), user: config.auth.user.to_string() });
        all.extend(draw.unit(AUTH, &[], &machine.build)?);
    }
    if has(Service::Mlflow) && config.mlflow.auth {
        all.extend(draw.unit(RUN_PROXY, &[], &machine.build)?);
    }
    for service in services {
        let (reads, with) = match service {
            Service::Mlflow => (
                vec![env.clone(), Some(mlflow::ENVIRONMENT.into()), Some(mlflow::STORE_ENVIRONMENT.into())],
                "",
            ),
            Service::Tensorboard => (vec![env.clone()], ""),
            Service::Dashboard | Service::Docs => (vec![], machine.build.as_str()),
        };
        let reads: Vec<PathBuf> = reads.into_iter().flatten().collect();
        all.extend(draw.unit(&service.unit(), &reads, with)?);
        if *service == Service::Tensorboard {
            all.extend(draw.unit(TENSORBOARD_PROXY, &[], &machine.build)?);
        }
    }
    all.push(draw.file("systemd/system/echoes-renew.service")?);
    all.push(draw.file("systemd/system/echoes-alert.service")?);
    for timer in ["echoes-renew.timer", "echoes-renew-boot.timer"] {
        let reads = ["echoes-renew.service", "echoes-alert.service"];
        all.extend(draw.unit(timer, &reads.map(|name| etc("systemd/system").join(name)), "")?);
    }
    all.push(draw.file("systemd/system/echoes-gpu@.service")?);
    all.push(draw.file("systemd/system/echoes-sweep.service")?);
    let reads = ["echoes-gpu@.service", "echoes-sweep.service"];
    let reads = reads.map(|name| etc("systemd/system").join(name));
    all.extend(draw.unit("echoes-sweep.timer", &reads, "")?);
    all.extend(web(&draw, site, guarded)?);
    Ok(all)
}

/// Whom our services run as. People of the machine who are to be in the group were there before us.
fn users() -> Vec<Expected> {
    let users = ["mlflow", "tensorboard"].into_iter().map(|name| Expected::User(name.into()));
    let groups = ["echoes", "echoes-web", "mlflow", "tensorboard"]
        .into_iter()
        .map(|name| Expected::Group(name.into()));
    users.chain(groups).collect()
}

fn data_disk(draw: &Drawing, disk: &DataDisk, at: &UnixPath) -> Result<Vec<Resource>> {
    let mount = disk::Mount::new(at.as_str(), &disk.uuid, disk.udev);
    let context = Context::from_serialize(&mount)?;
    let unit = etc("systemd/system").join(mount.unit());
    let mut all = vec![Resource::FileSystem(disk.clone()), Resource::Dir { path: at.to_path() }];
    if let Some(conf) = mount.device_conf() {
        all.push(draw.file_as(
            "systemd/system/data.device.conf",
            etc("systemd/system").join(conf),
            &context,
        )?);
    }
    all.push(draw.file_as("systemd/system/data.mount", unit.clone(), &context)?);
    // What is mounted stays mounted when the unit's words change: they count at the next boot.
    all.push(Resource::Unit(Unit {
        name: mount.unit(),
        reads: vec![unit],
        with: String::new(),
        load: Load::Start,
    }));
    Ok(all)
}

fn web(draw: &Drawing, site: &Site, guarded: bool) -> Result<Vec<Resource>> {
    let mut all = vec![Resource::SetAside {
        path: etc("nginx/sites-enabled/default"),
        target: etc("nginx/sites-available/default"),
        package: "nginx-common",
    }];
    let mut reads = vec![etc(NGINX_LIMITS)];
    all.push(draw.file(NGINX_LIMITS)?);
    all.push(Resource::Line(nginx::connections()));
    for template in TEMPLATES.iter().filter(|t| t.name.starts_with("nginx/")) {
        let wanted = template.service.is_none_or(|service| site.services.contains(&service));
        if !wanted || template.name.ends_with("echoes-auth.conf") && !guarded {
            continue;
        }
        all.push(draw.file(template.name)?);
        reads.push(etc(template.name));
        if let Some(name) = template.name.strip_prefix("nginx/sites-available/") {
            let path = etc("nginx/sites-enabled").join(name);
            all.push(Resource::Link { path, target: etc(template.name) });
        }
    }
    reads.extend(site.services.iter().map(|service| tls::store::paths(&service.host(site.config)).0));
    all.push(Resource::Unit(Unit {
        name: nginx::UNIT.into(),
        reads,
        with: nginx::connections().to_string(),
        load: Load::Reload,
    }));
    Ok(all)
}

/// Templates and what they are rendered with.
struct Drawing {
    context: Context,
}

impl Drawing {
    fn new(site: &Site) -> Result<Self> {
        let Site { config, machine, services, disk } = *site;
        let mut context = Context::from_serialize(config)?;
        let hosts: Vec<String> = services.iter().map(|service| service.host(config)).collect();
        context.insert("hosts", &hosts);
        context.insert("services", services);
        context.insert("program", &machine.program);
        context.insert("mlflow_loopback", &config.mlflow_loopback());
        context.insert(
            "mlflow_at",
            &SocketAddr::new(config.mlflow.listen, config.mlflow.port.get()).to_string(),
        );
        context.insert("mlflow_remote", &!config.mlflow_loopback().is_loopback());
        // What it talks to is not on this machine.
        let outside =
            config.mlflow.backend.as_str() != "sqlite" || !config.mlflow.artifacts.as_str().is_empty();
        context.insert("mlflow_outside", &outside);
        context.insert("metadata_addresses", &machine.metadata.join(" "));
        // What a person's packages run in a driver is kept from the same doors as a script.
        context.insert("doors", &sandbox::doors());
        context.insert("ipv6", &machine.ipv6);
        // nginx 1.25.1 made http2 a directive of its own; 1.19.4 learnt to refuse a handshake.
        context.insert("http2_directive", &(machine.nginx >= (1, 26)));
        context.insert("reject_handshake", &(machine.nginx >= (1, 20)));
        context.insert("tls", tls::store::DIR);
        context.insert("mounted", &disk.is_some());
        context.insert("env", &python::link(&python::SERVICES));
        Ok(Self { context })
    }

    /// The file that a template of this name becomes.
    fn file(&self, name: &str) -> Result<Resource> {
        self.file_as(name, etc(name), &self.context)
    }

    fn file_as(&self, name: &str, path: PathBuf, context: &Context) -> Result<Resource> {
        let template =
            TEMPLATES.iter().find(|t| t.name == name).with_context(|| format!("no template {name}"))?;
        let mut tera = Tera::default();
        let render = |tera: &mut Tera| {
            tera.add_raw_template("sandbox", SANDBOX)?;
            tera.add_raw_template(name, template.text)?;
            tera.render(name, context)
        };
        let body = render(&mut tera).with_context(|| format!("rendering templates/{name}"))?;
        let text = format!(
            "# Written by echoes-appliance from templates/{name}; an edit is kept, and reported as drift.\n\n{body}"
        );
        Ok(plain(path, &text))
    }

    /// A unit of our own: its file, and the unit itself, which takes in `reads` beside that file.
    fn unit(&self, name: &str, reads: &[PathBuf], with: &str) -> Result<[Resource; 2]> {
        let file = format!("systemd/system/{name}");
        let reads = [etc(&file)].into_iter().chain(reads.iter().cloned()).collect();
        let unit = Unit { name: name.into(), reads, with: with.into(), load: Load::Restart };
        Ok([self.file(&file)?, Resource::Unit(unit)])
    }
}

fn plain(path: PathBuf, text: &str) -> Resource {
    Resource::File(File { path, mode: 0o644, group: None, text: text.into(), secret: false })
}

fn etc(name: &str) -> PathBuf {
    Path::new("/etc").join(name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{gpu::agent::sandbox::exposure::assert_exposure, metadata};

    fn machine() -> Machine {
        let program = "/usr/bin/echoes-appliance".into();
        let metadata = metadata::closable("");
        Machine { nginx: (1, 22), python: (3, 11), ipv6: true, metadata, program, build: "1".into() }
    }

    fn draw(config: &Config, machine: &Machine, disk: Option<&DataDisk>) -> Vec<Resource> {
        let services = Service::ALL.into_iter().collect();
        blueprint(&Site { config, machine, services: &services, disk }).unwrap()
    }

    fn text(all: &[Resource], path: &str) -> String {
        let file = all.iter().find_map(|r| match r {
            Resource::File(file) if file.path == Path::new(path) => Some(file.text.clone()),
            _ => None,
        });
        file.unwrap_or_else(|| panic!("no {path}"))
    }

    fn disk() -> DataDisk {
        DataDisk { device: "/dev/sdc".into(), uuid: "u".into(), size: 1 << 30, blank: false, udev: true }
    }

    #[test]
    #[allow(clippy::disallowed_methods)]
    fn every_template_and_page_has_its_row() {
        fn walk(dir: &Path, base: &Path, out: &mut BTreeSet<String>) {
            for entry in std::fs::read_dir(dir).unwrap() {
                let path = entry.unwrap().path();
                match path.is_dir() {
                    true => walk(&path, base, out),
                    false => drop(out.insert(path.strip_prefix(base).unwrap().display().to_string())),
                }
            }
        }
        let under = |name: &str| {
            let base = Path::new(env!("CARGO_MANIFEST_DIR")).join(name);
            let mut found = BTreeSet::new();
            walk(&base, &base, &mut found);
            found
        };
        let mut templates = under("templates");
        assert!(templates.remove("sandbox"), "included by others");
        assert_eq!(templates, TEMPLATES.iter().map(|t| t.name.to_owned()).collect());
        assert_eq!(under("assets/dashboard"), PAGE.iter().map(|(name, _)| (*name).to_owned()).collect());
        assert_eq!(under("assets/handbook"), docs::pages().map(ToOwned::to_owned).collect());
    }

    #[test]
    fn a_file_comes_before_the_unit_that_reads_it_and_nginx_last() {
        let all = draw(&Config::default(), &machine(), Some(&disk()));
        let place = |path: &Path| all.iter().position(|r| r.path() == Some(path));
        for (n, resource) in all.iter().enumerate() {
            let Resource::Unit(unit) = resource else { continue };
            let late = unit.reads.iter().find(|path| place(path).is_some_and(|at| at > n));
            assert_eq!(late, None, "{} reads it", unit.name);
        }
        assert!(matches!(all.last(), Some(Resource::Unit(unit)) if unit.name == nginx::UNIT));
    }

    #[test]
    fn the_nginx_of_each_release_is_spoken_to_in_its_own_words() {
        let config = Config::default();
        let says = |nginx, name: &str| {
            text(&draw(&config, &Machine { nginx, ..machine() }, None), &format!("/etc/nginx/{name}"))
        };
        let docs = "sites-available/echoes-docs.conf";
        assert!(says((1, 18), docs).contains("listen 443 ssl http2;"));
        assert!(says((1, 26), docs).contains("listen 443 ssl;"));
        assert!(says((1, 26), "snippets/echoes-tls.conf").contains("http2 on;"));
        let default = "sites-available/echoes-default.conf";
        assert!(!says((1, 18), default).contains("ssl_reject_handshake"));
        assert!(says((1, 26), default).contains("ssl_reject_handshake on;"));
    }

    #[test]
    fn each_guarded_site_says_which_service_is_asked_for() {
        let open = Config::parse(Path::new("x"), "", &["mlflow.auth=false".parse().unwrap()]).unwrap();
        let site = |config: &Config, name: &str| {
            text(&draw(config, &machine(), None), &format!("/etc/nginx/sites-available/echoes-{name}.conf"))
        };
        let mut config = Config::default();
        config.docs.auth = true;
        for service in Service::ALL {
            let text = site(&config, service.name());
            assert!(text.contains(&format!("    set $echoes_service {service};\n")), "{text}");
        }
        assert!(site(&config, "mlflow").contains("proxy_pass http://$echoes_mlflow_for;"));
        assert!(site(&config, "mlflow").contains("proxy_set_header X-Echoes-Run $echoes_run;"));
        assert!(site(&open, "mlflow").contains("proxy_pass http://echoes_mlflow;"));
        let unit = |config: &Config| {
            draw(config, &machine(), None)
                .iter()
                .any(|r| matches!(r, Resource::Unit(unit) if unit.name == RUN_PROXY))
        };
        assert!(unit(&config) && !unit(&open), "without a password there is no login of a run");
    }

    #[test]
    fn services_wait_for_the_disk_only_where_there_is_one() {
        let unit = |disk: Option<&DataDisk>| {
            text(&draw(&Config::default(), &machine(), disk), "/etc/systemd/system/mlflow.service")
        };
        assert!(unit(Some(&disk())).contains("AssertPathIsMountPoint=/mnt/echoes_data"));
        assert!(!unit(None).contains("AssertPathIsMountPoint"));
    }

    #[test]
    fn a_database_password_is_in_one_file_of_roots_alone() {
        let set = ["mlflow.backend=postgresql://u:hunter2@db/x".parse().unwrap()];
        let config = Config::parse(Path::new("x"), "", &set).unwrap();
        for resource in draw(&config, &machine(), None) {
            if let Resource::File(file) = &resource
                && file.text.contains("hunter2")
            {
                let is = (file.path.as_path(), file.mode, file.secret);
                assert_eq!(is, (Path::new(mlflow::ENVIRONMENT), 0o600, true));
            }
            assert!(!resource.to_string().contains("hunter2"));
        }
    }

    #[test]
    fn mlflow_has_the_machine_s_identity_only_where_that_is_asked_for() {
        let unit = |set: &[&str]| {
            let set: Vec<_> = set.iter().map(|set| set.parse().unwrap()).collect();
            let config = Config::parse(Path::new("x"), "", &set).unwrap();
            text(&draw(&config, &machine(), None), "/etc/systemd/system/mlflow.service")
        };
        let outside = "mlflow.artifacts=s3://bucket/x";
        let shut = "IPAddressDeny=169.254.169.254 ";
        assert!(unit(&[]).contains("IPAddressDeny=any"));
        for set in [&[outside][..], &["mlflow.backend=postgresql://u:p@db/x"]] {
            assert!(unit(set).contains(shut) && !unit(set).contains("IPAddressDeny=any"), "{set:?}");
        }
        assert!(!unit(&[outside, "mlflow.managed_identity=true"]).contains("IPAddressDeny"));
    }

    #[test]
    fn every_unit_of_ours_reaches_little_of_the_machine() {
        let set = ["mlflow.artifacts=s3://bucket/x", "mlflow.listen=10.0.0.4"];
        let set = set.map(|set| set.parse().unwrap());
        let config = Config::parse(Path::new("x"), "", &set).unwrap();
        for config in [Config::default(), config] {
            for resource in draw(&config, &machine(), Some(&disk())) {
                let Resource::File(file) = resource else { continue };
                let name = file.path.file_name().unwrap().to_string_lossy();
                if name.ends_with(".service") {
                    // These two become people.
                    let most = if name.contains("gpu") || name.contains("sweep") { 40 } else { 25 };
                    assert_exposure(&name, &file.text, most);
                }
            }
        }
    }
}
