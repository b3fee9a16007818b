//! Throw-away Debian machines from the command line: what `make demo` and a curious person use.

// A tool of ours, not part of the appliance.
#![allow(clippy::print_stdout, clippy::print_stderr, clippy::disallowed_methods)]

use anyhow::{Context as _, Result, bail};
use kit::lab::{self, Disk, Lab, Machine, Options, Release};
use std::{path::Path, process::ExitCode};

const USAGE: &str = "\
usage: lab base RELEASE                             build the base tree (11, 12, 13)
       lab boot RELEASE [--name N] [--disk SIZE]…   boot a machine, with disks of so many MB (or 4G)
       lab list                                     the machines there are
       lab exec NAME -- COMMAND                     run a shell command in it
       lab push NAME LOCAL REMOTE                   copy a file into it
       lab pull NAME REMOTE LOCAL                   copy a file out of it
       lab down NAME|--all                          end it";

fn main() -> ExitCode {
    let args: Vec<_> = std::env::args().skip(1).collect();
    let args: Vec<_> = args.iter().map(String::as_str).collect();
    act(&args).unwrap_or_else(|e| {
        eprintln!("lab: {e:#}");
        ExitCode::FAILURE
    })
}

fn act(args: &[&str]) -> Result<ExitCode> {
    if let Some("base" | "boot") = args.first().copied() {
        Lab::available().map_err(|missing| anyhow::anyhow!("cannot boot machines here:\n{missing}"))?;
    }
    match args {
        ["base", release] => println!("{}", release.parse::<Release>()?.base()?.display()),
        ["boot", release, rest @ ..] => boot(release.parse()?, rest)?,
        ["list"] => {
            for name in Machine::list()? {
                let machine = Machine::find(&name)?;
                println!("{name} {} {} {}", machine.release(), machine.ip(), machine.state());
            }
        }
        ["exec", name, "--", command @ ..] if !command.is_empty() => {
            let status = Machine::find(name)?.command(&command.join(" "))?.status()?;
            return Ok(status
                .code()
                .and_then(|code| u8::try_from(code).ok())
                .map_or(ExitCode::FAILURE, ExitCode::from));
        }
        ["push", name, local, remote] => {
            use std::os::unix::fs::PermissionsExt as _;
            let mode =
                std::fs::metadata(local).with_context(|| format!("reading {local}"))?.permissions().mode();
            Machine::find(name)?.push(Path::new(local), remote, mode & 0o7777)?;
        }
        ["pull", name, remote, local] => Machine::find(name)?.pull(remote, Path::new(local))?,
        ["down", "--all"] => lab::end_all()?,
        ["down", name] => Machine::end(name)?,
        _ => bail!("{USAGE}"),
    }
    Ok(ExitCode::SUCCESS)
}

fn boot(release: Release, mut rest: &[&str]) -> Result<()> {
    let mut options = Options::default();
    while let [flag, value, after @ ..] = rest {
        match *flag {
            "--name" => options.name = Some((*value).to_owned()),
            "--disk" => options.disks.push(Disk::blank(megabytes(value)?)?),
            _ => bail!("{USAGE}"),
        }
        rest = after;
    }
    if !rest.is_empty() {
        bail!("{USAGE}");
    }
    let machine = Machine::with(release, options)?;
    println!("{} {} {} {}", machine.name(), machine.release(), machine.ip(), machine.state());
    machine.keep()
}

fn megabytes(text: &str) -> Result<u64> {
    let (number, unit) = text.strip_suffix('G').map_or((text.trim_end_matches('M'), 1), |n| (n, 1024));
    Ok(number.parse::<u64>().with_context(|| format!("{text} is not a size: 512M, 4G"))? * unit)
}
