//! What a run is lent by the headquarters for as long as it lives: a user of its own at MLflow, whose password works
//! nowhere else and not a minute longer, and the secrets that its script asked for.
//!
//! Both lie in one file of root's alone until the machine has them. They are in no journal, argument or log.

use super::{
    job::Hopeless,
    provenance::Tags,
    runner::Loan,
    runs,
    spec::{RunId, Source, Spec},
    state::State,
};
use crate::{
    config::Config,
    host::Host,
    hq::{
        blueprint::HTPASSWD,
        htpasswd::{Answer, Password, RUN_PREFIX, User},
        receipt::Receipt,
        service::Service,
        users,
    },
    patience::Patience,
    ui::Try as _,
};
use anyhow::{Context as _, Result};
use std::{collections::BTreeMap, path::Path, path::PathBuf};

/// By which the MLflow runs of a run are found.
pub const TAG_RUN: &str = "echoes.run";

const USER: &str = "MLFLOW_TRACKING_USERNAME";
const PASSWORD: &str = "MLFLOW_TRACKING_PASSWORD";

/// How often MLflow's client asks again before a script dies of it. It waits 4, 8, 16, 32, 64 and then 120 s each time
/// (`urllib3.util.Retry`, whose longest wait nothing changes): an hour and two minutes. Its own default is 7 times: four
/// minutes.
const RETRIES: (&str, u32) = ("MLFLOW_HTTP_REQUEST_MAX_RETRIES", 36);

/// Since 2.12, the version that gave it this name, the client refuses to begin with more than 10 unless this allows it;
/// up to 3.9, also with exactly as many. So large that a person's own number is allowed as well.
const RETRIES_ALLOWED: (&str, u32) = ("_MLFLOW_HTTP_REQUEST_MAX_RETRIES_LIMIT", 1000);

/// Names and values, for the script's environment.
pub type Secrets = BTreeMap<String, String>;

fn path(run: &RunId) -> PathBuf {
    runs::dir(run).join("secrets.json")
}

/// Hand them to whoever drives the run.
pub fn leave(host: &Host, run: &RunId, secrets: &Secrets) -> Result<()> {
    if secrets.is_empty() {
        return Ok(());
    }
    host.write(&path(run), 0o600, &serde_json::to_vec(secrets)?)
}

/// What there is for the machine; nothing once it has been delivered.
pub fn secrets(host: &Host, run: &RunId) -> Result<Secrets> {
    let Some(bytes) = host.read(&path(run))? else { return Ok(Secrets::new()) };
    // What is wrong with it may be told, what is in it may not.
    serde_json::from_slice(&bytes).map_err(|_| anyhow::anyhow!("{} is damaged", path(run).display()))
}

/// Where MLflow is for a script on this source's machine; none when this headquarters has none.
pub fn mlflow(host: &Host, config: &Config, source: &Source) -> Result<Option<String>> {
    // One that cannot be read holds no run up: then what was written to be started says it.
    let here = match Receipt::read(host) {
        Ok(receipt) => receipt.installed().contains(&Service::Mlflow),
        Err(_) => host.exists(&Path::new("/etc/systemd/system").join(Service::Mlflow.unit()))?,
    };
    Ok(match source {
        _ if !here => None,
        // Without TLS, which a machine's own processes need not have. Who they are is asked there, too.
        Source::Local => Some(format!("http://{}:{}", config.mlflow_loopback(), config.mlflow.port)),
        Source::Ssh { .. } | Source::Azure => {
            Some(Service::Mlflow.url(config).trim_end_matches('/').to_owned())
        }
    })
}

/// For the script's environment: where MLflow is, and that an outage of it is waited for. What a person sets comes after
/// these, and wins.
pub fn environment(host: &Host, config: &Config, spec: &Spec) -> Result<Vec<(String, String)>> {
    let Some(url) = mlflow(host, config, &spec.source)? else { return Ok(Vec::new()) };
    let retries = [RETRIES, RETRIES_ALLOWED].map(|(name, n)| (name.to_owned(), n.to_string()));
    Ok([("MLFLOW_TRACKING_URI".to_owned(), url)].into_iter().chain(retries).collect())
}

/// Tags of every MLflow run that the script begins; nothing where there is no MLflow. Two of these its client
/// would set itself, to what is gone when the run is: a path on the machine, and the user that the run was lent.
pub fn tags(host: &Host, config: &Config, spec: &Spec) -> Result<Tags> {
    if mlflow(host, config, &spec.source)?.is_none() {
        return Ok(Tags::new());
    }
    let script = spec.script.to_string_lossy().into_owned();
    let tags = [
        (TAG_RUN, spec.run.to_string()),
        ("echoes.owner", spec.owner.clone()),
        ("mlflow.source.name", script),
        ("mlflow.user", spec.owner.clone()),
    ];
    Ok(tags.map(|(name, value)| (name.to_owned(), value)).into())
}

pub struct Desk<'a> {
    pub host: &'a Host,
    pub config: &'a Config,
}

impl Desk<'_> {
    /// Whether the script has to say who it is.
    fn guarded(&self, state: &State) -> Result<bool> {
        Ok(self.config.mlflow.auth && mlflow(self.host, self.config, &state.spec.source)?.is_some())
    }

    /// Change the password file, alone.
    fn with_users<T>(
        &self,
        change: impl FnOnce(&mut crate::hq::htpasswd::Htpasswd) -> Result<T>,
    ) -> Result<T> {
        let lock = Path::new("/run/echoes-appliance/users.lock");
        let _alone = self.host.ledger_within(lock, Patience::seconds(10))?;
        let at = Path::new(HTPASSWD);
        let mut file = users::read(self.host, at)?;
        let before = file.format();
        let changed = change(&mut file)?;
        if file.format() != before {
            users::write(self.host, at, &file)?;
        }
        Ok(changed)
    }
}

impl Loan for Desk<'_> {
    fn lend(&self, state: &State) -> Result<()> {
        let run = &state.spec.run;
        let mut secrets = secrets(self.host, run)?;
        if let Some(name) = state.spec.secrets.iter().find(|name| !secrets.contains_key(*name)) {
            let gone =
                || anyhow::bail!("the secret {name} is not here: who asked for this run was cut short");
            return gone().context(Hopeless).or_try("start it again");
        }
        if self.guarded(state)? {
            let user = user(run)?;
            let marked = state.spec.login_marked;
            if marked && users::read(self.host, Path::new(HTPASSWD))?.has_person(&user) {
                let taken =
                    || anyhow::bail!("{user} is a person who may log in here, and would be this run's login");
                return taken().context(Hopeless).or_try("start it again with another --name");
            }
            if !secrets.contains_key(PASSWORD) {
                secrets.insert(USER.into(), user.to_string());
                secrets.insert(PASSWORD.into(), Password::generate()?.reveal().into());
                // On disk before anybody can log in with it, so that whoever goes on has the same.
                leave(self.host, run, &secrets)?;
            }
            let password = &secrets[PASSWORD];
            self.with_users(|file| {
                if file.verify(&user, password) != Answer::Right || file.has_person(&user) && !marked {
                    file.add_run(&user, &password.parse()?)?;
                }
                Ok(())
            })?;
        }
        Ok(())
    }

    fn delivered(&self, state: &State) -> Result<()> {
        // Another machine would need them again.
        let again = state.renting().is_some_and(|rental| rental.offer.spot) && !state.offers.is_empty();
        if again { Ok(()) } else { self.host.remove(&path(&state.spec.run)) }
    }

    fn take_back(&self, state: &State) -> Result<()> {
        let run = &state.spec.run;
        let user = user(run)?;
        if self.host.exists(Path::new(HTPASSWD))? {
            // One who is not there is as good.
            self.with_users(|file| {
                if state.spec.login_marked {
                    file.remove_run(&user);
                } else {
                    file.remove(&user);
                }
                Ok(())
            })?;
        }
        if state.outcome.is_some() { self.host.remove(&path(run)) } else { Ok(()) }
    }
}

/// A run's login: no person is given a name that begins so.
fn user(run: &RunId) -> Result<User> {
    format!("{RUN_PREFIX}{run}").parse()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        gpu::{
            provider::Offer,
            state::{Event, State},
        },
        host::{Kind, System},
        hq::receipt,
    };
    use time::OffsetDateTime;

    fn state(source: Source, secrets: &[&str]) -> State {
        let mut spec = Spec::example("r1");
        spec.source = source;
        spec.secrets = secrets.iter().map(|name| (*name).to_owned()).collect();
        let offers = vec![Offer { price: 0, ..Offer::example("") }];
        State::asked(OffsetDateTime::UNIX_EPOCH, &Event::Asked { spec: Box::new(spec), offers }).unwrap()
    }

    fn elsewhere() -> Source {
        Source::parse("ssh://ana@gpu1").unwrap()
    }

    /// A headquarters with MLflow and a user of its own.
    fn headquarters() -> (tempfile::TempDir, Host) {
        let dir = tempfile::tempdir().unwrap();
        let host = Host::new(dir.path(), System);
        let services = br#"{"v":1,"at":0,"did":"services","names":["mlflow"]}"#;
        host.write(Path::new(receipt::PATH), 0o600, &[services.as_slice(), b"\n"].concat()).unwrap();
        host.write(Path::new(HTPASSWD), 0o640, b"ana:$apr1$x$y\n").unwrap();
        (dir, host)
    }

    #[test]
    fn a_damaged_receipt_holds_no_run_up() {
        let (_dir, host) = headquarters();
        let config = Config::default();
        let there = mlflow(&host, &config, &Source::Local).unwrap();
        assert!(there.is_some());
        host.write(Path::new(receipt::PATH), 0o600, b"no entry\n").unwrap();
        assert_eq!(mlflow(&host, &config, &Source::Local).unwrap(), None);
        host.write(Path::new("/etc/systemd/system/mlflow.service"), 0o644, b"").unwrap();
        assert_eq!(mlflow(&host, &config, &Source::Local).unwrap(), there);
    }

    #[test]
    fn a_run_has_a_user_of_its_own_for_as_long_as_it_lives() {
        let (_dir, host) = headquarters();
        let desk = Desk { host: &host, config: &Config::default() };
        let mut state = state(elsewhere(), &[]);
        desk.lend(&state).unwrap();
        let first = secrets(&host, &state.spec.run).unwrap();
        desk.lend(&state).unwrap();
        assert_eq!(secrets(&host, &state.spec.run).unwrap(), first, "lent twice is lent once");
        let file = users::read(&host, Path::new(HTPASSWD)).unwrap();
        let user = first[USER].parse().unwrap();
        assert_eq!((first[USER].as_str(), file.verify(&user, &first[PASSWORD])), ("run-r1", Answer::Right));
        let meta = host.meta(&path(&state.spec.run)).unwrap().unwrap();
        assert_eq!((meta.kind, meta.mode), (Kind::File, 0o600));

        state.outcome = Some(super::super::state::Outcome::Failed("x".into()));
        desk.take_back(&state).unwrap();
        desk.take_back(&state).unwrap();
        assert_eq!(host.read(Path::new(HTPASSWD)).unwrap().unwrap(), b"ana:$apr1$x$y\n");
        assert_eq!(secrets(&host, &state.spec.run).unwrap(), Secrets::new());
    }

    #[test]
    fn a_person_called_like_a_runs_login_stays_as_they_are() {
        let (_dir, host) = headquarters();
        let desk = Desk { host: &host, config: &Config::default() };
        let before = b"ana:$apr1$x$y\nrun-r1:$2y$05$c0ImoSkpDEWz66WPxQuoqeblKpmE946bWLgI33KqBAmxdatPrfASW\n";
        host.write(Path::new(HTPASSWD), 0o640, before).unwrap();
        let mut state = state(elsewhere(), &[]);
        let refused = desk.lend(&state).unwrap_err();
        assert!(
            refused.is::<Hopeless>() && format!("{refused:#}").contains("run-r1 is a person"),
            "{refused:#}"
        );
        desk.take_back(&state).unwrap();
        assert_eq!(host.read(Path::new(HTPASSWD)).unwrap().unwrap(), before);
        // A run that began before the lines had remarks has the line of its name, with or without one.
        state.spec.login_marked = false;
        desk.lend(&state).unwrap();
        desk.take_back(&state).unwrap();
        assert_eq!(host.read(Path::new(HTPASSWD)).unwrap().unwrap(), b"ana:$apr1$x$y\n");
    }

    #[test]
    fn a_script_on_this_machine_has_its_runs_login_as_on_any_other() {
        let (_dir, host) = headquarters();
        let config = Config::default();
        let desk = Desk { host: &host, config: &config };
        let here = state(Source::Local, &[]);
        desk.lend(&here).unwrap();
        let lent = secrets(&host, &here.spec.run).unwrap();
        let file = users::read(&host, Path::new(HTPASSWD)).unwrap();
        assert_eq!(file.verify(&lent[USER].parse().unwrap(), &lent[PASSWORD]), Answer::Right);
        desk.take_back(&here).unwrap();
        assert_eq!(host.read(Path::new(HTPASSWD)).unwrap().unwrap(), b"ana:$apr1$x$y\n");
        // Nor here where MLflow asks nobody.
        let mut open = config.clone();
        open.mlflow.auth = false;
        Desk { host: &host, config: &open }.lend(&here).unwrap();
        assert_eq!(host.read(Path::new(HTPASSWD)).unwrap().unwrap(), b"ana:$apr1$x$y\n");
        let environment = environment(&host, &config, &Spec::example("r1")).unwrap();
        let expected = [
            ("MLFLOW_TRACKING_URI", "http://127.0.0.1:5000"),
            ("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "36"),
            ("_MLFLOW_HTTP_REQUEST_MAX_RETRIES_LIMIT", "1000"),
        ];
        assert_eq!(environment, expected.map(|(name, value)| (name.into(), value.into())));
        let tagged = tags(&host, &config, &Spec::example("r1")).unwrap();
        let expected = [
            (TAG_RUN, "r1"),
            ("echoes.owner", "ana"),
            ("mlflow.source.name", "train.py"),
            ("mlflow.user", "ana"),
        ];
        assert_eq!(tagged, expected.map(|(n, v)| (n.into(), v.into())).into());
        assert_eq!(mlflow(&host, &config, &elsewhere()).unwrap().unwrap(), "https://mlflow.localhost");
    }

    #[test]
    fn an_hour_without_mlflow_ends_no_training() {
        // The first try follows at once, and no wait is longer than two minutes.
        let waits = (1..RETRIES.1).map(|n| (2 << n.min(10)).min(120));
        assert!(waits.sum::<u32>() > 3600);
        assert!(RETRIES.1 < RETRIES_ALLOWED.1, "as many as are allowed are refused by some versions");
        let (_dir, host) = headquarters();
        host.remove(Path::new(receipt::PATH)).unwrap();
        let none = environment(&host, &Config::default(), &Spec::example("r1")).unwrap();
        assert_eq!(none, [], "without MLflow nothing is said of it");
    }

    #[test]
    fn a_secret_that_was_never_handed_over_ends_the_run_at_once() {
        let (_dir, host) = headquarters();
        let state = state(Source::Local, &["WANDB_KEY"]);
        let desk = Desk { host: &host, config: &Config::default() };
        assert!(desk.lend(&state).unwrap_err().is::<Hopeless>());
        leave(&host, &state.spec.run, &[("WANDB_KEY".into(), "x".into())].into()).unwrap();
        desk.lend(&state).unwrap();
        desk.delivered(&state).unwrap();
        assert_eq!(secrets(&host, &state.spec.run).unwrap(), Secrets::new());
    }
}
