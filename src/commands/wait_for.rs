//! `wait-for URL`: units run it after their start, so that systemd calls a service started when it answers.

use super::this_machine;
use crate::{patience::Patience, web};
use anyhow::{Result, ensure};
use std::path::{Path, PathBuf};

#[derive(clap::Args)]
pub struct Args {
    /// What must answer with a success
    url: String,
    /// The unix socket that it listens on, whatever address the URL has
    #[arg(long)]
    socket: Option<PathBuf>,
    /// For how long to ask
    #[arg(long, default_value_t = 120)]
    seconds: u64,
    /// The process that is to answer: when it is gone, nobody will
    #[arg(long, value_name = "PID")]
    process: Option<u32>,
}

pub fn run(args: Args) -> Result<u8> {
    let client = match &args.socket {
        Some(socket) => web::client::at_socket(socket)?,
        None => web::client::plain()?,
    };
    let host = this_machine();
    let is_gone = |pid: u32| Ok::<_, anyhow::Error>(!host.exists(Path::new(&format!("/proc/{pid}")))?);
    let answers = Patience::seconds(args.seconds).until(|| {
        if let Some(pid) = args.process
            && is_gone(pid)?
        {
            return Ok(false);
        }
        web::block_on(web::client::answers(&client, &args.url))?;
        Ok(true)
    })?;
    ensure!(answers, "what should answer at {} has ended", args.url);
    Ok(0)
}
