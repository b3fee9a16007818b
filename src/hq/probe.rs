//! Questions that only a live machine can answer, asked as the people who use it would: through nginx, by host
//! name, with and without a password. A table: each row has a stable id, and an answer with its cause and its cure.

mod litter;

use super::{
    blueprint::{AUTH, HTPASSWD, RUN_PROXY, TENSORBOARD_PROXY, is_part_wanted},
    certificate::{self, Standing},
    eyes::Eyes,
    htpasswd::{Htpasswd, Password, User},
    nginx, python, scalar,
    service::Service,
    users,
};
use crate::{
    config::{Config, Signer},
    host::{
        Cmd, Host,
        beneath::{Beneath, OnDisk, Rel},
    },
    patience::Patience,
    tls::{
        self,
        internal::Authority,
        renewal::{self, Health},
        store,
    },
    ui::told,
    web::{
        block_on,
        client::{Answer, Client},
    },
};
use anyhow::{Context as _, Result, bail, ensure};
use serde::Serialize;
use serde_json::{Value, json};
use std::{
    collections::BTreeSet,
    io::Write as _,
    path::{Path, PathBuf},
    time::Duration,
};

/// A second password file, on a tmpfs, with one user who lives as long as one validation.
const VISITOR: &str = "/run/echoes-auth/validate.htpasswd";

/// How one question was answered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "verdict", rename_all = "lowercase")]
pub enum Verdict {
    Good {
        found: String,
    },
    /// Works, but somebody should know.
    Warning {
        cause: String,
        fix: String,
    },
    Bad {
        cause: String,
        fix: String,
    },
}

#[derive(Debug, Clone, Serialize)]
pub struct Row {
    /// Stable: scripts and tickets may name it.
    pub id: String,
    #[serde(flatten)]
    pub verdict: Verdict,
}

/// What is asked about.
pub struct Scene<'a> {
    pub host: &'a Host,
    pub config: &'a Config,
    pub services: &'a BTreeSet<Service>,
    client: Client,
    visitor: Option<(String, Password)>,
}

type Ask = fn(&Scene, Service) -> Result<String>;

/// What each service is asked.
const OF_SERVICES: &[(&str, &[Service], Ask, &str)] = &[
    ("https", &Service::ALL, https, "`echoes-appliance install`, then `logs nginx`"),
    (
        "password",
        &Service::ALL,
        password,
        "`echoes-appliance install` writes nginx's files again; `logs auth`",
    ),
    (
        "certificate",
        &Service::ALL,
        certificate,
        "`echoes-appliance cert status` says what is known; then `cert renew`",
    ),
    ("unit", &Service::ALL, unit, "`echoes-appliance logs SERVICE`, then `restart SERVICE`"),
    ("run", &[Service::Mlflow], mlflow_run, "`echoes-appliance logs mlflow`"),
    ("blocked", &[Service::Mlflow], mlflow_blocked, "`echoes-appliance install` writes nginx's files again"),
    ("scalar", &[Service::Tensorboard], tensorboard_scalar, "`echoes-appliance logs tensorboard`"),
    ("page", &[Service::Dashboard, Service::Docs], page, "`echoes-appliance install` writes the pages again"),
    ("experiments", &[Service::Dashboard], dashboard_experiments, "`echoes-appliance logs dashboard`"),
];

impl<'a> Scene<'a> {
    pub fn new(host: &'a Host, config: &'a Config, services: &'a BTreeSet<Service>) -> Result<Self> {
        let names: Vec<String> = services.iter().map(|service| service.host(config)).collect();
        let client = Client::through_nginx(&names, &vouching(host, &names)?)?;
        Ok(Self { host, config, services, client, visitor: None })
    }

    /// Let somebody in for the time of the questions.
    fn admit_visitor(&mut self) -> Result<()> {
        if !self.host.exists(Path::new(HTPASSWD))? {
            return Ok(());
        }
        let user: User = "echoes-validate".parse()?;
        let password = Password::generate()?;
        let mut file = Htpasswd::default();
        let _ = file.add(&user, &password)?;
        users::write(self.host, Path::new(VISITOR), &file)?;
        self.visitor = Some((user.to_string(), password));
        let Some(guarded) = self.services.iter().copied().find(|service| service.auth(self.config)) else {
            return Ok(());
        };
        // The password check looks at its files four times a second.
        let patience = Patience { at_most: Duration::from_secs(4), between: Duration::from_millis(400) };
        patience.until(|| {
            let status = self.get(guarded, guarded.health(), true)?.status;
            ensure!(status != 401, "the password check does not let a new user in");
            Ok(())
        })
    }

    fn get(&self, service: Service, path: &str, with_password: bool) -> Result<Answer> {
        self.ask("GET", service, path, with_password, None)
    }

    fn ask(
        &self,
        method: &str,
        service: Service,
        path: &str,
        with_password: bool,
        body: Option<Value>,
    ) -> Result<Answer> {
        let url = format!("https://{}{path}", service.host(self.config));
        let login =
            self.visitor.as_ref().filter(|_| with_password).map(|(user, p)| (user.as_str(), p.reveal()));
        block_on(self.client.ask(method, &url, login, body.map(|body| body.to_string().into_bytes())))
    }

    fn json(&self, method: &str, service: Service, path: &str, body: Option<Value>) -> Result<Value> {
        let answer = self.ask(method, service, path, true, body)?;
        ensure!(answer.status == 200, "{method} {path} answered {}: {}", answer.status, answer.start());
        serde_json::from_slice(&answer.body)
            .with_context(|| format!("{method} {path} did not answer with JSON"))
    }
}

impl Drop for Scene<'_> {
    fn drop(&mut self) {
        if self.visitor.is_some() {
            // Its password is known to nobody else and forgotten now; the file goes with the next boot anyway.
            let _ = self.host.remove(Path::new(VISITOR));
        }
    }
}

/// Ask everything, of these services only if any are named, telling each row as it is answered.
pub fn ask_all(
    scene: &mut Scene,
    only: &[Service],
    drift: &dyn Fn() -> Result<String>,
    tell: &mut dyn FnMut(&Row),
) -> Vec<Row> {
    let admitted = scene.admit_visitor();
    let mut rows = Vec::new();
    let mut add = |row: Row| {
        tell(&row);
        rows.push(row);
    };
    if let Err(e) = admitted {
        add(row("auth.file", Err(e), "`echoes-appliance install`"));
    }
    for service in scene.services.iter().filter(|service| only.is_empty() || only.contains(service)) {
        for (what, whom, ask, fix) in OF_SERVICES {
            if whom.contains(service) && (*what != "password" || service.auth(scene.config)) {
                add(row(&format!("{service}.{what}"), ask(scene, *service), fix));
            }
        }
    }
    if scene.services.contains(&Service::Mlflow) && (only.is_empty() || only.contains(&Service::Mlflow)) {
        let fix =
            "install on a release with Python 3.10 or later, or let this machine reach where uv fetches one";
        add(soft("mlflow.version", mlflow_version(scene), fix));
    }
    if only.is_empty() {
        add(row("web.redirect", redirect(scene), "`echoes-appliance install` writes nginx's files again"));
        add(row(
            "web.unknown-name",
            unknown_name(scene),
            "`echoes-appliance install` writes nginx's files again",
        ));
        add(row("web.listeners", listeners(scene), "bind it to 127.0.0.1, or close its port to the network"));
        for unit in [nginx::UNIT, AUTH, RUN_PROXY, TENSORBOARD_PROXY, "echoes-renew.timer"] {
            if is_part_wanted(unit, scene.config, |service| scene.services.contains(&service)) {
                add(row(
                    &format!("unit.{unit}"),
                    unit_is_well(scene, unit),
                    "`systemctl status` names the reason",
                ));
            }
        }
        add(soft(
            "data.disk",
            data_disk(scene),
            "attach the disk, `systemctl start` its mount; `status` shows which",
        ));
        add(row("data.room", room(scene), "delete what nobody needs, or grow the disk"));
        add(soft("clock", clock(scene), "`timedatectl set-ntp true`: certificates depend on the time"));
        add(row("drift", drift(), "`echoes-appliance plan --diff` shows it, `install` repairs it"));
    }
    rows
}

/// After nginx took in something new: every route answers, with the status it should have. A little patience, for
/// workers of the old configuration that finish what they have.
pub fn routes(host: &Host, config: &Config, services: &BTreeSet<Service>) -> Result<()> {
    let scene = Scene::new(host, config, services)?;
    for service in services {
        let what = || format!("asking for {}", service.url(config));
        Patience::seconds(10).until(|| https(&scene, *service)).with_context(what)?;
    }
    Ok(())
}

fn row(id: &str, answer: Result<String>, fix: &str) -> Row {
    let verdict = match answer {
        Ok(found) => Verdict::Good { found },
        Err(e) if e.is::<Mild>() => Verdict::Warning { cause: format!("{e:#}"), fix: fix.into() },
        Err(e) => {
            let (causes, hint) = told(&e);
            Verdict::Bad { cause: causes.join(": "), fix: hint.unwrap_or(fix).into() }
        }
    };
    Row { id: id.into(), verdict }
}

/// As `row`, for what people can work without.
fn soft(id: &str, answer: Result<String>, fix: &str) -> Row {
    let mut row = row(id, answer, fix);
    if let Verdict::Bad { cause, fix } = row.verdict {
        row.verdict = Verdict::Warning { cause, fix };
    }
    row
}

fn https(scene: &Scene, service: Service) -> Result<String> {
    let answer = scene.get(service, "/", false)?;
    let expected = if service.auth(scene.config) { 401 } else { 200 };
    ensure!(
        answer.status == expected,
        "answered {} instead of {expected}: {}",
        answer.status,
        answer.start()
    );
    Ok(format!("{} over a certificate that holds for the name", answer.status))
}

fn password(scene: &Scene, service: Service) -> Result<String> {
    let without = scene.get(service, service.health(), false)?.status;
    ensure!(without == 401, "answered {without} without a password");
    let with = scene.get(service, service.health(), true)?;
    ensure!(with.status == 200, "answered {} with a password: {}", with.status, with.start());
    Ok("401 without a password, 200 with one".into())
}

fn certificate(scene: &Scene, service: Service) -> Result<String> {
    let name = service.host(scene.config);
    let file = on_disk(scene.host, &name)?;
    let now = time::OffsetDateTime::now_utc();
    let mut chain = Vec::new();
    for at in tls::doors(scene.host)? {
        let served = tls::served(at, &name, Duration::from_secs(5))?;
        ensure!(
            served.is(&file),
            "nginx at {at} serves another certificate than the one in {}",
            store::paths(&name).0.display()
        );
        chain = served.chain;
    }
    tls::trusted(&chain, &name, &vouching(scene.host, std::slice::from_ref(&name))?, now)
        .context("a client that trusts its authority would refuse it")?;
    let left = (file.not_after - now).whole_days();
    ensure!(now < file.not_after, "it ended {} days ago", -left);
    let found = format!("served as on disk, {left} days left");
    match renewal::health(now, file.not_before, file.not_after) {
        Health::Good => {}
        Health::Warn => bail!(Mild(format!("{found}, which is less than a quarter of its life"))),
        Health::Bad => bail!("{found}, which is less than a tenth of its life"),
    }
    let ours = certificate::stands(scene.host, &name)? == Standing::Ours;
    if ours && scene.config.signer() == Signer::Acme {
        bail!(Mild(format!("{found}, of our own authority: the one of the settings has not issued one yet")));
    }
    Ok(found)
}

/// Things work, but somebody should know.
#[derive(Debug)]
struct Mild(String);

impl std::fmt::Display for Mild {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Mild {}

/// Who vouches for what nginx is told to serve, PEM: our own authority, and whoever stands at the end of each other
/// chain. Whether browsers trust those as well is a question of its own.
fn vouching(host: &Host, names: &[String]) -> Result<String> {
    const BEGIN: &str = "-----BEGIN";
    let mut all = Authority::read(host)?.map(|(pem, _)| pem).unwrap_or_default();
    for name in names {
        if let Some(current) = store::current(host, name)?
            && let Some((_, last)) = current.pair.chain.rsplit_once(BEGIN)
            && !tls::internal::is_ours(host, &current.pair.chain)?
        {
            all += &[BEGIN, last].concat();
        }
    }
    Ok(all)
}

/// What is said by the certificate that nginx is told to serve for a host.
pub fn on_disk(host: &Host, name: &str) -> Result<store::Facts> {
    let file = store::paths(name).0;
    let pem = host.read_text(&file)?.with_context(|| format!("{} is not there", file.display()))?;
    store::facts(&pem)
}

/// Whole days until a certificate ends; less than nothing when it did.
pub fn days_left(facts: &store::Facts) -> i64 {
    (facts.not_after - time::OffsetDateTime::now_utc()).whole_days()
}

fn unit(scene: &Scene, service: Service) -> Result<String> {
    unit_is_well(scene, &service.unit())
}

fn unit_is_well(scene: &Scene, unit: &str) -> Result<String> {
    let eyes = Eyes::open(scene.host, &[], &[unit])?;
    let facts = eyes.units.get(unit).with_context(|| format!("systemd does not know {unit}"))?;
    ensure!(facts.active == "active", "{unit} is {}", facts.active);
    ensure!(facts.enabled, "{unit} would not start at boot");
    let restarts = facts.properties.get("NRestarts").and_then(|n| n.parse::<u32>().ok()).unwrap_or(0);
    ensure!(restarts < 3, "{unit} had to be restarted {restarts} times");
    Ok("active and enabled".into())
}

/// What a training script does, and back again.
fn mlflow_run(scene: &Scene, service: Service) -> Result<String> {
    const API: &str = "/api/2.0/mlflow";
    let post = |call: &str, body: Value| scene.json("POST", service, &format!("{API}/{call}"), Some(body));
    let name = litter::NAME;
    let by_name =
        scene.get_with(service, &format!("{API}/experiments/get-by-name?experiment_name={name}"))?;
    let experiment = match by_name.status {
        404 => text(&post("experiments/create", json!({"name": name}))?, "/experiment_id")?,
        200 => {
            let found: Value = serde_json::from_slice(&by_name.body)?;
            let id = text(&found, "/experiment/experiment_id")?;
            if text(&found, "/experiment/lifecycle_stage")? == "deleted" {
                post("experiments/restore", json!({"experiment_id": id}))?;
            }
            id
        }
        status => bail!("looking for an experiment answered {status}: {}", by_name.start()),
    };
    let now = time::OffsetDateTime::now_utc().unix_timestamp() * 1000;
    let run = post("runs/create", json!({"experiment_id": experiment, "start_time": now, "run_name": name}))?;
    let run = text(&run, "/run/info/run_id")?;
    litter::sweep_runs(scene, &experiment, now);
    let outcome = (|| {
        post(
            "runs/log-metric",
            json!({"run_id": run, "key": "probe", "value": 0.25, "timestamp": now, "step": 1}),
        )?;
        let back = scene.json("GET", service, &format!("{API}/runs/get?run_id={run}"), None)?;
        let metric = back.pointer("/run/data/metrics/0/value").and_then(Value::as_f64);
        ensure!(metric == Some(0.25), "the metric came back as {metric:?}");
        let artifact = format!("/api/2.0/mlflow-artifacts/artifacts/{experiment}/{run}/artifacts/probe.txt");
        let sent = scene.put(service, &artifact, b"probe".to_vec())?;
        ensure!(sent.status == 200, "storing an artifact answered {}: {}", sent.status, sent.start());
        let got = scene.get_with(service, &artifact)?;
        ensure!(got.body == b"probe", "the artifact came back changed ({})", got.status);
        let gone = scene.ask("DELETE", service, &artifact, true, None)?;
        ensure!(gone.status == 200, "deleting an artifact answered {}", gone.status);
        Ok("a run, its metric and its artifact went there and back".into())
    })();
    litter::sweep_run(scene, &experiment, &run);
    post("runs/delete", json!({"run_id": run}))?;
    post("experiments/delete", json!({"experiment_id": experiment}))?;
    outcome
}

impl Scene<'_> {
    fn get_with(&self, service: Service, path: &str) -> Result<Answer> {
        self.get(service, path, true)
    }

    fn put(&self, service: Service, path: &str, bytes: Vec<u8>) -> Result<Answer> {
        let url = format!("https://{}{path}", service.host(self.config));
        let login = self.visitor.as_ref().map(|(user, p)| (user.as_str(), p.reveal()));
        block_on(self.client.ask("PUT", &url, login, Some(bytes)))
    }
}

fn text(value: &Value, at: &str) -> Result<String> {
    let text = value.pointer(at).and_then(Value::as_str);
    text.map(Into::into).with_context(|| format!("MLflow's answer has no {at}"))
}

fn mlflow_version(scene: &Scene) -> Result<String> {
    let python::Seen::Right(env) = python::look(scene.host, &python::SERVICES)? else {
        bail!("its Python environment is not complete");
    };
    let runs = python::choose(env.python)?;
    let (major, minor) = env.python;
    match runs.cost {
        Some(cost) => bail!("{cost}"),
        None => Ok(format!(
            "MLflow {} and TensorBoard {} on Python {major}.{minor}",
            runs.mlflow, runs.tensorboard
        )),
    }
}

/// What would run commands on this machine for whoever asks.
fn mlflow_blocked(scene: &Scene, service: Service) -> Result<String> {
    for path in ["/ajax-api/3.0/mlflow/assistant/config", "/ajax-api/3.0/jobs/search", "/gateway/endpoints"] {
        let answer = scene.get(service, path, true)?;
        ensure!(answer.status == 403, "{path} answered {} instead of 403", answer.status);
    }
    Ok("assistant, jobs and gateway answer 403".into())
}

fn tensorboard_scalar(scene: &Scene, service: Service) -> Result<String> {
    let runs = scene.config.data.path.to_path().join("tfruns");
    // Made where the disk should be, it would be on the OS disk.
    ensure!(scene.host.exists(&runs)?, "there is no {}: is the data disk there?", runs.display());
    litter::sweep_events(scene.host, &runs)?;
    let dir = litter::event_dir(&runs);
    let name = dir.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let now = time::OffsetDateTime::now_utc().unix_timestamp();
    // Members write here, too: no link of theirs is followed.
    let write = || -> Result<()> {
        let own = Beneath::make(scene.host, &runs)?.inside(&Rel::new(&name)?, None)?;
        let mut file = own.write(&Rel::new(&format!("events.out.tfevents.{now}.echoes"))?)?;
        file.write_all(&scalar::event_file(now, "probe", 0.25))?;
        file.keep(0o644, OnDisk::Now)
    };
    let outcome = write().and_then(|()| {
        // TensorBoard looks every five seconds, and reads all it has before it says so.
        Patience::seconds(60).until(|| {
            let tags = scene.json("GET", service, "/data/plugin/scalars/tags", None)?;
            ensure!(
                tags.pointer(&format!("/{name}/probe")).is_some(),
                "it does not list a scalar that is in {}",
                dir.display()
            );
            Ok("a scalar put into tfruns is listed".into())
        })
    });
    scene.host.remove_tree(&dir)?;
    outcome
}

fn page(scene: &Scene, service: Service) -> Result<String> {
    let answer = scene.get_with(service, "/")?;
    ensure!(answer.status == 200, "answered {}", answer.status);
    let html = String::from_utf8_lossy(&answer.body).to_ascii_lowercase();
    ensure!(html.contains("<html"), "is not a page: {}", answer.start());
    Ok(format!("{} bytes of page", answer.body.len()))
}

fn dashboard_experiments(scene: &Scene, service: Service) -> Result<String> {
    if !scene.services.contains(&Service::Mlflow) {
        return Ok("no MLflow here to ask".into());
    }
    let answer = scene.json("GET", service, "/api/experiments", None)?;
    let experiments =
        answer.pointer("/experiments").and_then(Value::as_array).context("it lists no experiments")?;
    Ok(format!("{} experiments listed", experiments.len()))
}

fn redirect(scene: &Scene) -> Result<String> {
    let name = scene.services.first().context("no service")?.host(scene.config);
    let answer = block_on(scene.client.ask("GET", &format!("http://{name}/x"), None, None))?;
    let to = answer.location.unwrap_or_default();
    ensure!(
        answer.status == 301 && to == format!("https://{name}/x"),
        "http answered {} to {to:?}",
        answer.status
    );
    Ok("http leads to https".into())
}

fn unknown_name(_: &Scene) -> Result<String> {
    let client = Client::through_nginx(&["unknown.invalid".into()], "")?;
    let answer = block_on(client.ask("GET", "http://unknown.invalid/", None, None));
    ensure!(answer.is_err(), "a name that is not ours was answered");
    Ok("names that are not ours get no answer".into())
}

/// Nothing but ssh and nginx is to be reached from the network.
fn listeners(scene: &Scene) -> Result<String> {
    let said = scene.host.run(&Cmd::new("ss", ["-H", "-l", "-n", "-t", "-p"]))?;
    let open = beyond_loopback(&said);
    let fine = |(port, _): &(u16, String)| matches!(port, 22 | 80 | 443);
    let strange: Vec<_> =
        open.into_iter().filter(|it| !fine(it)).map(|(port, who)| format!("{who} on port {port}")).collect();
    ensure!(strange.is_empty(), "beyond loopback also listens: {}", strange.join(", "));
    Ok("only 22, 80 and 443 listen beyond loopback".into())
}

fn beyond_loopback(sockets: &str) -> BTreeSet<(u16, String)> {
    let socket = |line: &str| {
        let at = line.split_whitespace().nth(3)?;
        let (address, port) = at.rsplit_once(':')?;
        let address = address.split('%').next()?.trim_matches(['[', ']']);
        let inside = address.starts_with("127.") || address == "::1" || address.starts_with("::ffff:127.");
        let who = line
            .split_once("((\"")
            .and_then(|(_, rest)| rest.split_once('"'))
            .map_or("somebody", |(name, _)| name);
        (!inside).then(|| Some((port.parse().ok()?, who.to_owned())))?
    };
    sockets.lines().filter_map(socket).collect()
}

fn data_disk(scene: &Scene) -> Result<String> {
    let at = scene.config.data.path.to_path();
    if scene.config.data.disk.as_str() == "none" {
        return Ok(format!("none wanted; the data are in {} on the OS disk", at.display()));
    }
    ensure!(
        scene.host.is_mount_point(&at)?,
        "no disk is mounted at {}: the data are on the OS disk",
        at.display()
    );
    Ok(format!("mounted at {}", at.display()))
}

fn room(scene: &Scene) -> Result<String> {
    let at: PathBuf = scene.config.data.path.to_path();
    let (free, all) = scene.host.room(&at)?;
    ensure!(
        free > all / 20,
        "{} of {} are free at {}",
        super::disk::size_words(free),
        super::disk::size_words(all),
        at.display()
    );
    Ok(format!("{} of {} free", super::disk::size_words(free), super::disk::size_words(all)))
}

fn clock(scene: &Scene) -> Result<String> {
    let said = scene.host.ask(&Cmd::new("timedatectl", ["show", "-p", "NTPSynchronized", "--value"]))?.stdout;
    ensure!(said.trim() == "yes", "nobody keeps this machine's clock right");
    Ok("synchronised".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_the_network_reaches_counts() {
        let said = "LISTEN 0 1 127.0.0.1:5000 0.0.0.0:* users:((\"mlflow\",pid=1,fd=1))\n\
                    LISTEN 0 1 127.0.0.53%lo:53 0.0.0.0:*\n\
                    LISTEN 0 1 [::1]:25 [::]:*\n\
                    LISTEN 0 1 0.0.0.0:22 0.0.0.0:* users:((\"sshd\",pid=1,fd=1))\n\
                    LISTEN 0 1 *:6006 *:* users:((\"tb\",pid=1,fd=1))\n";
        let open: Vec<_> = beyond_loopback(said).into_iter().collect();
        assert_eq!(open, [(22, "sshd".into()), (6006, "tb".into())]);
    }
}
