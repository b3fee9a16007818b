//! `gpu-run SCRIPT`: an experiment on a machine that is had for it. It writes down what is asked for, starts the
//! driver, and from then on only watches: Ctrl-C ends the watching, and the run goes on.

use super::{
    config::Settings,
    gpu::{attach, drivers_words, wish},
    need_root, this_machine,
};
use crate::{
    config::{self, Config, Grace, VariableName},
    gpu::{
        checkout,
        code::CodeOutline,
        data, driver,
        loan::{self, Secrets},
        offer::{Row, retirement, table as rows_for_people},
        provider::{self, Choice, Offer},
        reader::Reader,
        receipt::{NO_CAPACITY, NO_QUOTA, dollars},
        runs,
        spec::{DataBy, RunId, Source, Spec},
        state::Event,
    },
    host::{Host, Kind, System, beneath::Rel},
    hq::disk::size_words,
    ui::{Code, Try as _, Ui, lasting, table},
};
use anyhow::{Context as _, Result, bail, ensure};
use std::{
    io::{BufRead as _, IsTerminal as _, Write as _},
    path::PathBuf,
    sync::Arc,
};
use time::OffsetDateTime;

/// Usage errors that clap cannot see.
const USAGE: u8 = 2;

#[derive(clap::Args)]
pub struct Args {
    /// The script; all of its checkout goes along
    script: PathBuf,
    /// What the script is given, after `--`
    #[arg(last = true)]
    arguments: Vec<String>,
    /// Where the machine comes from: local, azure, or ssh://USER@HOST[:PORT]
    #[arg(long, value_parser = source)]
    provider: Option<Source>,
    #[command(flatten)]
    wish: wish::Flags,
    /// When it has to end: how long it may take to save what it has, as in 60s, 5m or 1h
    #[arg(long, value_name = "TIME")]
    grace: Option<Grace>,
    /// A dataset of the data disk that it reads, as in ucf101
    #[arg(long, value_name = "NAME")]
    data: Vec<String>,
    /// How datasets get to a machine of Azure's: as copies, on a clone of the data disk, or as is sooner
    #[arg(long, value_enum, value_name = "HOW")]
    data_by: Option<DataBy>,
    /// What comes home besides $ECHOES_OUT, below the checkout
    #[arg(long, value_name = "PATH")]
    out: Vec<PathBuf>,
    /// A variable of the script's environment
    #[arg(long, value_name = "NAME=VALUE", value_parser = variable)]
    env: Vec<(String, String)>,
    /// A secret of the script's environment: its value from ours, or from a file
    #[arg(long, value_name = "NAME[=@FILE]")]
    secret: Vec<String>,
    /// What the run is called
    #[arg(short, long)]
    name: Option<RunId>,
    /// Start it and come back at once
    #[arg(short, long)]
    detach: bool,
    /// Show what would be done, and do nothing
    #[arg(long)]
    dry_run: bool,
    /// Print what would be frozen into the run's journal, as JSON, and do nothing
    #[arg(long)]
    print_spec: bool,
    /// Ask no question
    #[arg(short, long)]
    yes: bool,
    /// Print what happens as JSON, a line each
    #[arg(long)]
    pub json: bool,
}

pub fn source(text: &str) -> Result<Source, String> {
    Source::parse(text).ok_or_else(|| "local, azure, or ssh://USER@HOST[:PORT]".into())
}

fn is_name(name: &str) -> bool {
    name.parse::<VariableName>().is_ok()
}

fn variable(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("write it as NAME=VALUE")?;
    if !is_name(name) || value.contains('\0') {
        return Err(format!("{name:?} is no name of a variable"));
    }
    Ok((name.into(), value.into()))
}

pub fn run(args: Args, settings: &Settings, ui: &Ui) -> Result<u8> {
    // Before anything is read or asked: whoever types an old size is told at once.
    check_sizes(&args.wish.sizes)?;
    let host = Arc::new(this_machine());
    let config = settings.read(&host)?;
    let args = with_settings(args, &config.gpu);
    go(args, &host, &config, settings, ui)
}

impl Args {
    /// For who starts a run of ours: what the settings say that people's runs need is not for it. `quiet` is whether no
    /// question is asked, and whether what happens is said as JSON.
    pub fn plain(
        script: PathBuf,
        source: Source,
        wish: wish::Flags,
        run: RunId,
        quiet: (bool, bool),
    ) -> Self {
        Self {
            script,
            arguments: vec![run.to_string()],
            provider: Some(source),
            wish,
            grace: None,
            data: Vec::new(),
            data_by: None,
            out: Vec::new(),
            env: Vec::new(),
            secret: Vec::new(),
            name: Some(run),
            detach: false,
            dry_run: false,
            print_spec: false,
            yes: quiet.0,
            json: quiet.1,
        }
    }
}

/// What is asked for is shown, written down, driven and watched.
pub fn go(args: Args, host: &Arc<Host>, config: &Config, settings: &Settings, ui: &Ui) -> Result<u8> {
    let (detach, json, yes) = (args.detach, args.json, args.yes);
    let (dry_run, print_spec, secret) = (args.dry_run, args.print_spec, args.secret.clone());
    let data_by = args.data_by.unwrap_or(config.gpu.data_by);
    let spec = spec(args, host, config)?;
    // What cannot go is known before anything is rented.
    let code = outline(host, &spec)?;
    let delivery = data::deliver(host, config, &spec.source, (&spec.data, data_by), &spec.regions)?;
    let lines: Vec<_> = code.lines(&spec.project).into_iter().chain(delivery.lines()).collect();
    let spec = Spec { original: delivery.original(), ..spec };
    if print_spec {
        ui.out(serde_json::to_string_pretty(&spec)?);
        return Ok(0);
    }
    let choice = provider::offers(&spec, host, config)?;
    ui.say(plan(&spec, &choice, lines, &results_line(host, config, &spec)?));
    let offers = to_be_had(choice)?;
    if dry_run {
        return Ok(0);
    }
    need_root(host)?;
    let secrets = secrets(host, &driver::reader_of(host, &spec), &secret)?;
    // Also where the price list was down: what has no price is not free.
    if spec.source == Source::Azure && !yes && !confirmed()? {
        return Ok(1);
    }
    begin(host, &spec, offers, &secrets)?;
    driver::start(host, &spec.run, &drivers_words(settings))?;
    if detach {
        ui.say(attach::next_commands(&spec.run));
        if json {
            ui.out(serde_json::json!({ "run": spec.run }));
        }
        return Ok(0);
    }
    attach::follow(host, config, settings, (&spec.run, attach::Of::Run), json, ui)
}

fn check_sizes(sizes: &[String]) -> Result<()> {
    let today = OffsetDateTime::now_utc().date();
    for size in sizes {
        if let Some(retired) = retirement(size).filter(|retired| retired.is_past(today)) {
            let on = &retired.on;
            let gone = || bail!("{size} was retired by Azure on {on} and cannot be rented any more");
            let instead = retired.instead.join(" or ");
            gone().or_try(format_args!("--vm-size with {instead}")).context(Code(USAGE))?;
        }
    }
    Ok(())
}

/// The offers, if there are any; an error that ends in the exit status that says why not.
pub fn to_be_had(choice: Choice) -> Result<Vec<Offer>> {
    if choice.offers.is_empty() {
        let none = || bail!("none of these can be had");
        let why = if short_of_quota(&choice.rows) { NO_QUOTA } else { NO_CAPACITY };
        none()
            .or_try("another --vm-size or --region; `echoes-appliance gpu offers` shows what there is")
            .context(Code(why))?;
    }
    Ok(choice.offers)
}

/// What the command line leaves open, as the settings have it.
fn with_settings(args: Args, set: &config::Gpu) -> Args {
    let named: Vec<_> = args.env.iter().map(|(name, _)| name.clone()).collect();
    let env = set.env.iter().map(|(name, value)| (name.to_string(), value.clone()));
    let env = env.filter(|(name, _)| !named.contains(name)).chain(args.env).collect();
    let out = if args.out.is_empty() { set.out.clone() } else { args.out };
    let (data, secret) = (wish::or(args.data, &set.data), wish::or(args.secret, &set.secret));
    Args { data, secret, out, env, ..args }
}

/// What the arguments, the settings and the checkout come to.
fn spec(args: Args, host: &Host, config: &Config) -> Result<Spec> {
    let source = match args.provider {
        Some(source) => source,
        None => config.gpu.source(),
    };
    if source != Source::Azure {
        let choice = [
            ("--vm-size", !args.wish.sizes.is_empty()),
            ("--region", !args.wish.regions.is_empty()),
            ("--spot", args.wish.spot.is_some()),
            // A copy is what there is on a machine of the team's.
            ("--data-by", args.data_by == Some(DataBy::Clone)),
        ];
        if let Some((flag, _)) = choice.into_iter().find(|(_, given)| *given) {
            let no = || bail!("{flag} says what to rent, and on {source} nothing is rented");
            no().or_try(format_args!("leave {flag} out")).context(Code(USAGE))?;
        }
    }
    let mut wish = args.wish.over(&config.gpu, source == Source::Azure);
    if source != Source::Azure {
        wish = wish::Flags { sizes: Vec::new(), regions: Vec::new(), spot: None, ..wish };
    }
    check_sizes(&wish.sizes)?;
    let script =
        args.script.canonicalize().with_context(|| format!("looking at {}", args.script.display()))?;
    ensure!(
        matches!(host.meta(&script)?, Some(meta) if meta.kind == Kind::File),
        "{} is no file",
        script.display()
    );
    let owner = owner(host)?;
    let folder = script.parent().context("a script is in a directory")?;
    let project = if args.name.as_ref().is_some_and(|run| folder == runs::checkout(run)) {
        folder.into()
    } else {
        Reader::new(checkout::reader(host, &owner, folder)).find(host, &script)?
    };
    for name in &args.data {
        let plain = !name.is_empty() && !name.starts_with('.') && !name.contains('/');
        ensure!(plain, "{name:?} is no name of a dataset");
        let at = config.data.path.to_path().join(name);
        ensure!(host.exists(&at)?, "there is no dataset {name}: {} is not there", at.display());
    }
    for path in &args.out {
        let inside = path.components().all(|part| matches!(part, std::path::Component::Normal(_)));
        ensure!(inside && !path.as_os_str().is_empty(), "--out {} leads out of the checkout", path.display());
    }
    let mut random = [0; 2];
    getrandom::fill(&mut random)?;
    let run = args
        .name
        .unwrap_or_else(|| RunId::of(&script, OffsetDateTime::now_utc(), u16::from_le_bytes(random)));
    // Also of a headquarters that was before this one: the data disk moves, the journals do not.
    let results = runs::results(config, &run);
    let taken = || anyhow::anyhow!("there are results of a run called {run}: {}", results.display());
    (!host.exists(&results)?).then_some(()).ok_or_else(taken).or_try("another --name, or none")?;
    Ok(Spec {
        run,
        owner,
        source,
        script: script.strip_prefix(&project)?.into(),
        project,
        arguments: args.arguments,
        sizes: wish.sizes,
        regions: wish.regions,
        spot: wish.spot.unwrap_or_default(),
        max_seconds: wish.max_seconds,
        max_cost: wish.max_cost,
        data: args.data,
        original: None,
        out: args.out,
        env: args.env,
        secrets: args.secret.iter().map(|one| named(one).0.to_owned()).collect(),
        grace: args.grace.unwrap_or(config.gpu.grace).seconds(),
        login_marked: true,
    })
}

/// The part of the project that would go, read by its person; an error where it must not, or where the script would not be
/// there.
fn outline(host: &Host, spec: &Spec) -> Result<CodeOutline> {
    let script = Rel::try_from(spec.script.as_path()).map_err(anyhow::Error::msg)?;
    driver::reader_of(host, spec).outline(host, &spec.project, &script)
}

/// The person who typed sudo: on this machine the script runs as they, and never as root unless root logged in.
fn owner(host: &Host) -> Result<String> {
    if nix::unistd::geteuid().is_root() {
        let Some(name) = System::environment("SUDO_USER") else { return Ok("root".into()) };
        ensure!(host.uid(&name)?.is_some(), "SUDO_USER is {name:?}, and there is no such user");
        return Ok(name);
    }
    let uid = nix::unistd::geteuid();
    Ok(nix::unistd::User::from_uid(uid)?.map_or_else(|| uid.to_string(), |user| user.name))
}

/// `NAME`, or `NAME=@FILE`.
fn named(secret: &str) -> (&str, Option<&str>) {
    secret.split_once("=@").map_or((secret, None), |(name, file)| (name, Some(file)))
}

fn secrets(host: &Host, reader: &Reader, wanted: &[String]) -> Result<Secrets> {
    let mut all = Secrets::new();
    for one in wanted {
        let (name, file) = named(one);
        // Not the whole word: somebody may have typed the secret itself.
        ensure!(is_name(name), "--secret takes NAME or NAME=@FILE, and never the secret itself");
        let value = match file {
            Some(file) => {
                let path = std::path::absolute(file)?;
                let text = reader.secret(host, &path)?;
                text.trim_end_matches(['\n', '\r']).to_owned()
            }
            None => {
                let absent = || anyhow::anyhow!("the secret {name} is not in the environment");
                System::environment(name)
                    .ok_or_else(absent)
                    .or_try(format_args!("sudo --preserve-env={name} …, or --secret {name}=@FILE"))?
            }
        };
        all.insert(name.into(), value);
    }
    Ok(all)
}

/// The journal first, and in our hands until the secrets are there too.
fn begin(host: &Host, spec: &Spec, offers: Vec<Offer>, secrets: &Secrets) -> Result<()> {
    let asked = Event::Asked { spec: Box::new(spec.clone()), offers };
    let _held = runs::create(host, &spec.run, OffsetDateTime::now_utc(), &asked)?;
    loan::leave(host, &spec.run, secrets)
}

/// Whether a larger quota would have been enough.
fn short_of_quota(rows: &[Row]) -> bool {
    rows.iter().any(|row| row.quota.is_some_and(|room| room < row.vcpus))
}

/// What it will do, for people.
fn plan(spec: &Spec, choice: &Choice, sent: Vec<String>, results: &str) -> String {
    let mut lines = vec![format!("{}: {} of {}", spec.run, spec.script.display(), spec.project.display())];
    lines.push(if choice.rows.is_empty() {
        table(&[row(&spec.source)])
    } else {
        table(&rows_for_people(&choice.rows))
    });
    lines.extend(sent);
    let hours = spec.max_seconds.map(|n| format!("after {}", lasting(n)));
    let money = spec.max_cost.map(|n| format!("before it costs {}", dollars(n)));
    let limits: Vec<_> = hours.into_iter().chain(money).collect();
    lines.push(match (limits.is_empty(), &spec.source) {
        (false, _) => format!("ends: at the latest {}", limits.join(", and ")),
        (true, Source::Azure) => "ends: when it ends".into(),
        (true, _) => {
            "ends: when it ends; nothing is rented, so there is no limit but one that is asked for".into()
        }
    });
    lines.push(format!("grace: {} to save, when it has to end", lasting(spec.grace)));
    lines.push(results.to_owned());
    lines.join("\n")
}

/// The plan's line on results: where they come home to, and how much of them.
fn results_line(host: &Host, config: &Config, spec: &Spec) -> Result<String> {
    let (results, gpu) = (runs::results(config, &spec.run), &config.gpu);
    let most = match gpu.max_result_gib {
        // The disk is there when the first of them comes, or not yet.
        0 => match host.exists(&config.data.path.to_path())? {
            true => format!("{} that are free", size_words(host.room(&config.data.path.to_path())?.0)),
            false => "what is free".into(),
        },
        gib => format!("{gib} GiB"),
    };
    let files = grouped(gpu.max_result_files);
    Ok(format!("results: {}, at most {files} files and {most}", results.display()))
}

/// With a comma after each thousand.
fn grouped(n: u32) -> String {
    let digits = n.to_string();
    let place = |at: usize| if at > 0 && (digits.len() - at).is_multiple_of(3) { "," } else { "" };
    digits.chars().enumerate().map(|(at, digit)| format!("{}{digit}", place(at))).collect()
}

/// Where nothing is rented.
fn row(source: &Source) -> Vec<String> {
    vec!["  1".into(), source.to_string(), String::new(), String::new(), "free".into()]
}

/// Whether a person says yes; an error where there is nobody to ask.
pub fn confirmed() -> Result<bool> {
    if !std::io::stdin().is_terminal() {
        let nobody = || bail!("it costs money, and there is nobody to ask");
        return nobody().or_try("-y");
    }
    write!(std::io::stderr(), "rent it? [y/N] ")?;
    let mut line = String::new();
    std::io::stdin().lock().read_line(&mut line)?;
    Ok(matches!(line.trim(), "y" | "Y" | "yes"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::person::Person;

    #[test]
    fn large_numbers_can_be_read() {
        for (n, words) in [(0, "0"), (999, "999"), (1000, "1,000"), (10_000_000, "10,000,000")] {
            assert_eq!(grouped(n), words);
        }
    }

    #[test]
    fn a_secret_typed_by_mistake_is_not_repeated() {
        let host = Host::new("/", System);
        let us = Reader::new(Person::ourselves());
        let said = format!("{:#}", secrets(&host, &us, &["KEY=hunter2".into()]).unwrap_err());
        assert!(!said.contains("hunter2"), "{said}");
        let said = format!("{:#}", secrets(&host, &us, &["NO_SUCH_SECRET".into()]).unwrap_err());
        assert!(said.contains("--preserve-env=NO_SUCH_SECRET"), "{said}");
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("key");
        Host::new("/", System).write(&file, 0o600, b"a b\n").unwrap();
        let given = format!("KEY=@{}", file.display());
        assert_eq!(secrets(&host, &us, &[given]).unwrap(), [("KEY".into(), "a b".into())].into());
    }
}
