//! `agent`: this program on a machine where an experiment runs. Its words are for the headquarters, not for people.

use super::this_machine;
use crate::{
    gpu::{
        agent::{
            attend,
            sandbox::Sandbox,
            settle,
            site::{Site, is_home},
            start::{self, KeeperState, OUTLIVED},
            watch,
        },
        reader,
        spec::RunId,
        wire::Wire,
    },
    host::person::Person,
};
use anyhow::{Result, anyhow};
use std::{
    io::Write as _,
    path::{Path, PathBuf},
};

#[derive(clap::Args)]
pub struct Args {
    /// Where the agent lives
    #[arg(long, value_parser = home)]
    home: PathBuf,
    #[arg(long, value_parser = run_id)]
    run: RunId,
    /// Whose script it is, where root is asked
    #[arg(long = "as")]
    user: Option<String>,
    /// Give the script no more than its user's rights
    #[arg(long)]
    sandbox: bool,
    /// In there, what may be written to besides the home
    #[arg(long, requires = "sandbox")]
    writable: Vec<PathBuf>,
}

#[derive(clap::Subcommand)]
pub enum Command {
    /// Answer questions on standard input
    Attend(Args),
    /// See to it that the script is kept
    Start(Args),
    /// Keep the script
    Watch(Args),
    /// Become the script
    Exec(Args),
    /// Take everything of the run away
    Leave(Args),
    /// Say how the script stands, as JSON
    Standing(Args),
    /// Read for the headquarters, on its own machine, what a person may
    Read {
        /// The person's number
        #[arg(long = "as")]
        uid: u32,
    },
}

fn home(text: &str) -> Result<PathBuf, String> {
    let home = Path::new(text);
    is_home(home).then(|| home.into()).ok_or_else(|| "an absolute path, and not the root".into())
}

fn run_id(text: &str) -> Result<RunId> {
    RunId::try_from(text.to_owned()).map_err(|why| anyhow!(why))
}

pub fn run(command: Command) -> Result<u8> {
    let host = this_machine();
    let at = |args: Args| {
        let sandbox = args.sandbox.then_some(Sandbox { writable: args.writable });
        (Site { home: args.home, run: args.run }, args.user, sandbox)
    };
    match command {
        Command::Attend(args) => {
            let (site, user, sandbox) = at(args);
            settle(&host, &site, user.as_deref(), "attend", sandbox.is_some())?;
            let mut wire = Wire::answering(std::io::stdin(), std::io::stdout())?;
            attend(&host, &site, &mut wire)?;
        }
        Command::Start(args) => {
            let (site, user, sandbox) = at(args);
            // Only a unit is made by root; all else by the user, whose directory it is.
            if !start::makes_unit(&host)? {
                settle(&host, &site, user.as_deref(), "start", sandbox.is_some())?;
            }
            start::start(&host, &site, user.as_deref(), sandbox.as_ref())?;
        }
        Command::Watch(args) => {
            let (site, user, sandbox) = at(args);
            settle(&host, &site, user.as_deref(), "watch", sandbox.is_some())?;
            watch::watch(&host, &site)?;
        }
        Command::Exec(args) => return watch::exec(&host, &at(args).0),
        Command::Standing(args) => {
            let (site, user, _) = at(args);
            settle(&host, &site, user.as_deref(), "standing", false)?;
            writeln!(std::io::stdout(), "{}", serde_json::to_string(&KeeperState::look(&host, &site)?)?)?;
        }
        Command::Read { uid } => {
            let person = Person::numbered(uid)?;
            if !person.is_us() {
                let words = ["agent", "read", "--as", &uid.to_string()].map(str::to_owned);
                return Err(host.begin_anew(&person, words.into(), &[])?);
            }
            nix::sys::prctl::set_no_new_privs()?;
            let mut wire = Wire::answering(std::io::stdin(), std::io::stdout())?;
            reader::answer(&host, &mut wire)?;
        }
        Command::Leave(args) => {
            let alive = start::leave(&host, &at(args).0)?;
            let mut out = std::io::stdout().lock();
            for process in alive.left {
                writeln!(out, "{process}")?;
            }
            for process in alive.outlived {
                writeln!(out, "{OUTLIVED}{process}")?;
            }
        }
    }
    Ok(0)
}
