//! `user`: who may log in.

use super::{need_root, this_machine};
use crate::{
    hq::{
        blueprint::HTPASSWD,
        htpasswd::{Added, Answer, Password, User},
        users,
    },
    patience::Patience,
    ui::{Try as _, Ui, table},
};
use anyhow::{Context as _, Result, bail};
use std::{
    io::{BufRead as _, IsTerminal as _, Read as _},
    path::Path,
};

#[derive(clap::Subcommand)]
pub enum Command {
    /// Add a user, or give one a new password; it is asked for, or read from standard input
    Add {
        name: User,
        /// Make a password and print it
        #[arg(long)]
        generate: bool,
    },
    /// Remove a user, who is out within a second
    Remove { name: User },
    /// List the users
    List,
    /// Say whether a password, asked for or read from standard input, is this user's; exit status 1 when not
    Verify { name: User },
}

pub fn run(command: Command, ui: &Ui) -> Result<u8> {
    let host = this_machine();
    need_root(&host)?;
    let path = Path::new(HTPASSWD);
    // Two of us at once would lose one's user.
    let _alone = host.ledger_within(Path::new("/run/echoes-appliance/users.lock"), Patience::seconds(10))?;
    let mut file = users::read(&host, path)?;
    match command {
        Command::Add { name, generate } => {
            name.ensure_person().or_try("another name")?;
            let password = if generate { Password::generate()? } else { ask("password: ", true)? };
            let added = file.add(&name, &password)?;
            users::write(&host, path, &file)?;
            ui.say(match added {
                Added::New => format!("{name} may log in"),
                Added::Changed => format!("{name} has a new password"),
            });
            if generate {
                ui.out(password.reveal());
            }
        }
        Command::Remove { name } => {
            if !file.remove(&name) {
                return Err(anyhow::anyhow!("there is no user {name}")).or_try("echoes-appliance user list");
            }
            users::write(&host, path, &file)?;
            ui.say(format_args!("{name} is out"));
        }
        Command::List => {
            let rows: Vec<_> =
                file.list().into_iter().map(|user| vec![user.user, user.kind.to_string()]).collect();
            if rows.is_empty() {
                ui.say("nobody may log in");
            } else {
                ui.out(table(&rows));
            }
        }
        Command::Verify { name } => {
            let password = ask("password: ", false)?;
            match file.verify(&name, password.reveal()) {
                Answer::Right => ui.say("right"),
                Answer::Wrong => bail!("that is not {name}'s password"),
                Answer::NoSuchUser => bail!("there is no user {name}"),
                Answer::Unchecked(kind) => bail!("{name} has a {kind} hash, which is not checked here"),
            }
        }
    }
    Ok(0)
}

/// Bytes that are read in search of a password, which has 72 at most.
const LONGEST_LINE: u64 = 64 << 10;

/// From the terminal without echo, twice for a new one; else the first line of standard input.
fn ask(prompt: &str, new: bool) -> Result<Password> {
    if std::io::stdin().is_terminal() {
        let first = crate::host::Terminal::secret(prompt)?;
        if new && crate::host::Terminal::secret("again: ")? != first {
            bail!("the two are not the same");
        }
        return first.parse();
    }
    let mut line = String::new();
    // A line without end has no password in it: a longer one is refused as any is that is too long.
    let input = std::io::stdin().lock().take(LONGEST_LINE).read_line(&mut line);
    input.context("reading the password from standard input")?;
    line.trim_end_matches(['\n', '\r']).parse()
}
