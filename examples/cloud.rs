//! The simulated Azure from the command line: what `make demo` and a curious person use.

// A tool of ours, not part of the appliance.
#![allow(clippy::print_stdout, clippy::print_stderr, clippy::disallowed_methods)]

use anyhow::{Context as _, Result, bail};
use kit::{
    cloud::{Cloud, Options, Pace, words},
    cloud_lab::{LabMetal, Metadata},
    lab::{Lab, Release},
};
use std::{
    io::{BufRead as _, stdin},
    net::Ipv4Addr,
    process::ExitCode,
    sync::Arc,
};

const USAGE: &str = "usage: cloud [--lab] [--speed N] [--address IP]";

const HELP: &str = "\
  --lab           machines are lab machines, with real cloud-init and sshd; needs root
  --speed N       time runs N times as fast as here; 1 if nothing is said
  --address IP    where to listen, 127.0.0.1 if nothing is said

Serves a simulated Azure until its input ends. First it says where, as lines NAME=VALUE; then it does what each line
of its input says:";

fn main() -> ExitCode {
    match serve() {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("cloud: {e:#}");
            ExitCode::FAILURE
        }
    }
}

fn serve() -> Result<()> {
    let mut options = Options { pace: Pace::Running(1.0), page: 50, ..Options::default() };
    let mut lab = false;
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        let mut value = || args.next().with_context(|| format!("{arg} needs a value\n{USAGE}"));
        match arg.as_str() {
            "--lab" => {
                lab = true;
                Lab::available()
                    .map_err(|missing| anyhow::anyhow!("cannot boot machines here:\n{missing}"))?;
                // From everywhere: the lab's own address comes and goes with its machines.
                options.imds = Some((Ipv4Addr::UNSPECIFIED.into(), 0));
                options.metal = Arc::new(LabMetal::new(Release::Bookworm, &["python3-venv"])?);
            }
            "--speed" => options.pace = Pace::Running(value()?.parse().context("reading the speed")?),
            "--address" => options.address = value()?.parse().context("reading the address")?,
            _ => bail!("{USAGE}\n\n{HELP}\n{}", words::WORDS),
        }
    }
    let cloud = Cloud::start(options).context("starting the simulated Azure")?;
    let _way = lab.then(|| Metadata::of(&cloud)).transpose()?;
    let principal = cloud.principal();
    for (name, value) in [
        ("ARM", cloud.arm()),
        ("LOGIN", cloud.login()),
        ("IMDS", cloud.imds()),
        ("PRICES", cloud.prices()),
        ("AZURE_SUBSCRIPTION_ID", &cloud.subscription()),
        ("AZURE_TENANT_ID", &principal.tenant),
        ("AZURE_CLIENT_ID", &principal.client),
        ("AZURE_CLIENT_SECRET", &principal.secret),
        ("SUBNET", &cloud.subnet()),
    ] {
        println!("{name}={value}");
    }
    println!("ready");
    for line in stdin().lock().lines() {
        let line = line.context("reading what to do")?;
        print!("{}", words::answer(&cloud, &line)?);
        // Whoever reads by program knows where an answer ends.
        println!("ready");
    }
    Ok(())
}
