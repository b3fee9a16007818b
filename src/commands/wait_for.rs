//! `wait-for URL`: units run it after their start, so that systemd calls a service started when it answers.

use crate::{patience::Patience, web};
use anyhow::Result;

#[derive(clap::Args)]
pub struct Args {
    /// What must answer with a success
    url: String,
    /// For how long to ask
    #[arg(long, default_value_t = 120)]
    seconds: u64,
}

pub fn run(args: Args) -> Result<u8> {
    let client = web::client::plain()?;
    Patience::seconds(args.seconds).until(|| web::block_on(web::client::answers(&client, &args.url)))?;
    Ok(0)
}
