//! `make demo`: a whole headquarters in a throw-away Debian machine that stays until `make demo-down`, with
//! something in it to look at, reached by a browser on this host under the names it will have everywhere. An experiment
//! is run on it, and again on a machine that it rents from a simulated Azure.

// A tool of ours, not part of the appliance.
#![allow(clippy::print_stdout, clippy::print_stderr, clippy::disallowed_methods, clippy::disallowed_types)]

#[path = "demo/azure.rs"]
mod azure;
#[path = "demo/forward.rs"]
mod forward;

use anyhow::{Context as _, Result, bail, ensure};
use kit::{
    cloud::words,
    experiment, hq,
    lab::{Disk, Lab, Machine, Options, Release},
};
use std::{
    fs,
    io::{BufRead as _, BufReader, Write as _},
    net::ToSocketAddrs as _,
    os::unix::fs::{OpenOptionsExt as _, chown},
    path::{Path, PathBuf},
    process::{ExitCode, Stdio},
};

const NAME: &str = "demo";

/// Of its blank data disk, in MB; it takes room only as it fills.
const DISK: u64 = 16 << 10;

const SAMPLES: &str = include_str!("demo/samples.py");

/// What it takes to log in, and the authority's certificate. The developer's, not root's.
const HERE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/target/demo");

const SERVICES: [&str; 4] = ["mlflow", "tensorboard", "dashboard", "docs"];

const USAGE: &str = "usage: demo [up [RELEASE] | down | azure WORD…]";

fn main() -> ExitCode {
    let args: Vec<_> = std::env::args().skip(1).collect();
    let args: Vec<_> = args.iter().map(String::as_str).collect();
    let done = match *args.as_slice() {
        [] | ["up"] => up(Release::Trixie),
        ["up", release] => release.parse().and_then(up),
        ["down"] => down(),
        ["azure", ref word @ ..] if !word.is_empty() => {
            azure::ask(&word.join(" ")).map(|said| print!("{said}"))
        }
        ["azure"] => {
            println!("{}", words::WORDS);
            Ok(())
        }
        ["serve-azure", headquarters] => azure::serve(headquarters),
        ["forward", machine, ip] => {
            let run = |ip| forward::run(machine, ip).inspect_err(|e| println!("{e:#}"));
            ip.parse().map_err(Into::into).and_then(run)
        }
        _ => Err(anyhow::anyhow!(USAGE)),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("demo: {e:#}");
            ExitCode::FAILURE
        }
    }
}

fn up(release: Release) -> Result<()> {
    Lab::available().map_err(|missing| {
        anyhow::anyhow!(
            "cannot boot machines here. It takes root on Linux 5.14 or later, not in a container:\n{missing}"
        )
    })?;
    if let Ok(machine) = Machine::find(NAME) {
        return again(&machine);
    }
    forward::check_ports()?;
    step("booting");
    let disks = vec![Disk::blank(DISK)?];
    Machine::with(release, Options { name: Some(NAME.into()), disks, layer: None })?.keep()?;
    let machine = Machine::find(NAME)?;
    // Beside the installation.
    fs::create_dir_all(HERE)?;
    let coming = azure::start(&machine, fs::File::create(here("azure.log"))?)?;
    let filled = fill(&machine).and_then(|()| experiments(&machine, coming));
    filled.context("the machine stays as it is: `make demo-down` ends it")?;
    forward::start(&machine)?;
    tell(&machine)
}

/// It is there already.
fn again(machine: &Machine) -> Result<()> {
    ensure!(machine.state() != "off", "the demo's machine is off, as after a restart of this host: {BEGIN}");
    ensure!(
        here("login").exists(),
        "there is a machine `{NAME}`, but {HERE} does not say how to log in: it was made from another checkout, \
         or not to the end. {BEGIN}"
    );
    println!("The demo is running already.");
    if forward::check_ports().is_ok() {
        forward::start(machine)?;
    }
    tell(machine)
}

const BEGIN: &str = "`make demo-down`, then `make demo`, begins anew";

/// As a person would, with a little to look at.
fn fill(machine: &Machine) -> Result<()> {
    step("installing the package");
    hq::add_package(machine)?;
    step("echoes-appliance install");
    let said = watch(machine, "echoes-appliance install")?;
    let login = said.lines().find_map(|line| {
        let (user, rest) = line.trim().strip_prefix("user ")?.split_once(", password ")?;
        Some((user.to_owned(), rest.split_whitespace().next()?.to_owned()))
    });
    let (user, password) = login.context("install named no user and no password")?;
    step("logging two runs");
    machine.put(SAMPLES.as_bytes(), "/root/samples.py", 0o600)?;
    watch(
        machine,
        "GIT_PYTHON_REFRESH=quiet MLFLOW_DISABLE_TELEMETRY=true /opt/echoes-appliance/services/bin/python -W ignore \
         /root/samples.py http://127.0.0.1:5000 /mnt/echoes_data/tfruns && rm /root/samples.py",
    )?;
    step("echoes-appliance validate");
    watch(machine, "echoes-appliance validate")?;
    save("ca.crt", 0o644, &machine.exec("echoes-appliance ca export --pem").stdout)?;
    save("login", 0o600, &format!("{user}\n{password}\n"))
}

/// One experiment, on this machine and on a rented one.
fn experiments(machine: &Machine, coming: azure::Coming) -> Result<()> {
    experiment::person(machine)?;
    let run = |more: &str| {
        let words = experiment::gpu_run(more);
        step(&format!("{}, in a checkout: {words}", experiment::PERSON));
        watch(machine, &experiment::typed(&words))
    };
    run("--provider local --name first")?;
    if let Some(why) = coming.wait()? {
        println!("\nSKIPPED: the experiment on a machine of the simulated Azure's: {why}");
        return Ok(());
    }
    step("the headquarters is now a machine of a simulated Azure");
    let settings = azure::ask("settings")?;
    print!("{settings}");
    experiment::move_to_azure(machine, &settings, &azure::ask("ca")?)?;
    run("--provider azure --vm-size Standard_B1s --name second --yes")?;
    step("echoes-appliance gpu ps --all");
    watch(machine, "echoes-appliance gpu ps --all")?;
    step("what the simulated Azure says");
    let left = azure::ask("left")?;
    println!("still there: {}", if left.is_empty() { "nothing" } else { left.trim() });
    print!("{}", azure::ask("bill")?);
    Ok(())
}

fn step(what: &str) {
    println!("\n── {what}");
}

/// Run it, its voice on our terminal, and return what it answered on standard output.
fn watch(machine: &Machine, sh: &str) -> Result<String> {
    let mut child = machine.command(sh)?.stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?;
    let mut all = String::new();
    for line in BufReader::new(child.stdout.take().context("it was asked for")?).lines() {
        let line = line?;
        println!("{line}");
        all += &line;
        all.push('\n');
    }
    let status = child.wait()?;
    ensure!(status.success(), "`{}` ended with {status}", sh.split("  ").next().unwrap_or(sh));
    Ok(all)
}

fn down() -> Result<()> {
    // What it has rented out goes first.
    azure::end()?;
    if Machine::find(NAME).is_ok() {
        // The forwarder sees it go and follows within a second.
        Machine::end(NAME)?;
        println!("The demo is over; nothing of it is left.");
    } else {
        println!("There is no demo running.");
    }
    match fs::remove_dir_all(HERE) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            Err(e).with_context(|| format!("removing {HERE}"))
        }
        _ => Ok(()),
    }
}

fn here(name: &str) -> PathBuf {
    Path::new(HERE).join(name)
}

/// Readable by whoever called sudo, as by root: target/ stays theirs.
fn save(name: &str, mode: u32, text: &str) -> Result<()> {
    fs::create_dir_all(HERE)?;
    let _absent = fs::remove_file(here(name));
    let file = fs::File::options().create_new(true).write(true).mode(mode).open(here(name));
    file.and_then(|mut file| file.write_all(text.as_bytes())).with_context(|| format!("writing {name}"))?;
    let id = |name| std::env::var(name).ok()?.parse().ok();
    if let (Some(uid), Some(gid)) = (id("SUDO_UID"), id("SUDO_GID")) {
        for path in [here(name), HERE.into()] {
            chown(path, Some(uid), Some(gid))?;
        }
    }
    Ok(())
}

fn tell(machine: &Machine) -> Result<()> {
    let login = fs::read_to_string(here("login"))?;
    let (user, password) = login.trim().split_once('\n').context("target/demo/login is damaged")?;
    let ca = here("ca.crt").display().to_string();
    println!("\nThe headquarters is up on {} ({}):\n", machine.release(), machine.ip());
    for service in SERVICES {
        println!("  https://{service}.localhost/");
    }
    println!("\n  user      {user}\n  password  {password}\n");
    println!("Its certificates are signed by its own authority, {ca}. To trust it:\n");
    for (who, how) in ways(machine, &ca)? {
        println!("  {who}\n      {}", how.replace('\n', "\n      "));
    }
    if let Some(line) = missing_names() {
        println!(
            "\nBrowsers know that *.localhost is this host. Python and curl here do not: for them, add to /etc/hosts\n      {line}"
        );
    }
    let own = std::env::current_exe()?;
    let lab = own.with_file_name("lab");
    println!("\nTo look inside:    {} exec {NAME} -- echoes-appliance status", lab.display());
    if azure::ask("left").is_ok() {
        println!("Its Azure:         {} azure bill", own.display());
    }
    println!("To end it:         make demo-down");
    Ok(())
}

/// The ways to trust it that make sense on a host with a lab, as the headquarters words them.
fn ways(machine: &Machine, ca: &str) -> Result<Vec<(String, String)>> {
    let out = machine.exec("echoes-appliance ca export");
    if out.code != 0 {
        bail!("`echoes-appliance ca export`: {}", out.stderr);
    }
    let words = out.stderr.replace("$PWD/ca.crt", "ca.crt").replace("ca.crt", ca);
    let ways = words.split("\n\n").filter_map(|way| way.trim().split_once('\n'));
    let fit = |who: &str| ["Debian", "Firefox", "Chrome"].iter().any(|name| who.starts_with(name));
    Ok(ways.filter(|(who, _)| fit(who)).map(|(who, how)| (who.into(), how.trim().into())).collect())
}

/// What /etc/hosts needs where the C library does not know the names.
fn missing_names() -> Option<String> {
    let known = |service: &str| {
        (format!("{service}.localhost"), 443)
            .to_socket_addrs()
            .is_ok_and(|mut found| found.all(|address| address.ip().is_loopback()))
    };
    let missing: Vec<_> = SERVICES.into_iter().filter(|service| !known(service)).collect();
    let names: Vec<_> = missing.iter().map(|service| format!("{service}.localhost")).collect();
    (!names.is_empty()).then(|| format!("127.0.0.1 {}", names.join(" ")))
}
