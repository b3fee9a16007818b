//! `serve`: our own services, each run by its unit.

use super::this_machine;
use crate::{gpu::spec::RunReads, web};
use anyhow::Result;
use std::{net::SocketAddr, path::PathBuf};

#[derive(clap::Subcommand)]
pub enum Command {
    /// A directory of pages
    Site {
        #[arg(long)]
        listen: SocketAddr,
        #[arg(long)]
        root: PathBuf,
    },
    /// The dashboard: its page, and what it may read of MLflow
    Dashboard {
        #[arg(long)]
        listen: SocketAddr,
        #[arg(long)]
        root: PathBuf,
        #[arg(long)]
        mlflow: String,
    },
    /// The password check behind nginx's auth_request
    Auth {
        #[arg(long)]
        socket: PathBuf,
        /// May be given more than once; the first that knows a user decides
        #[arg(long)]
        htpasswd: Vec<PathBuf>,
    },
    /// The way to MLflow for logins of runs, which lets each do its own run's work
    RunProxy {
        #[arg(long)]
        socket: PathBuf,
        #[arg(long)]
        mlflow: String,
        /// What runs may read
        #[arg(long, value_enum)]
        reads: RunReads,
    },
}

pub fn run(command: Command) -> Result<u8> {
    match command {
        Command::Site { listen, root } => web::run(web::site::serve(web::site::Site { listen, root }))?,
        Command::Dashboard { listen, root, mlflow } => {
            web::run(web::dashboard::serve(web::dashboard::Dashboard {
                listen,
                root,
                mlflow: mlflow.parse()?,
            }))?;
        }
        Command::Auth { socket, htpasswd } => {
            let host = this_machine();
            web::run(web::gate::serve(
                &host,
                web::gate::Gate { socket, htpasswd, realm: "Echoes headquarters".into() },
            ))?;
        }
        Command::RunProxy { socket, mlflow, reads } => {
            let settings = web::run_proxy::RunProxy { socket, mlflow: mlflow.parse()?, reads };
            web::run(web::run_proxy::serve(&this_machine(), settings))?;
        }
    }
    Ok(0)
}
