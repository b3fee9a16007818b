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
        socket: PathBuf,
        #[arg(long)]
        root: PathBuf,
    },
    /// The dashboard: its page, and what it may read of MLflow
    Dashboard {
        #[arg(long)]
        socket: PathBuf,
        #[arg(long)]
        root: PathBuf,
        /// MLflow's socket
        #[arg(long)]
        mlflow: PathBuf,
    },
    /// A unix socket in front of a service that knows TCP alone
    Proxy {
        #[arg(long)]
        socket: PathBuf,
        #[arg(long)]
        to: SocketAddr,
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
        /// MLflow's unix socket, whatever place the URL names
        #[arg(long)]
        mlflow_socket: Option<PathBuf>,
        /// What runs may read
        #[arg(long, value_enum)]
        reads: RunReads,
    },
}

pub fn run(command: Command) -> Result<u8> {
    let host = this_machine();
    match command {
        Command::Site { socket, root } => {
            web::run(web::site::serve(&host, web::site::Site { socket, root }))?;
        }
        Command::Dashboard { socket, root, mlflow } => {
            let dashboard = web::dashboard::Dashboard { socket, root, mlflow };
            web::run(web::dashboard::serve(&host, dashboard))?;
        }
        Command::Proxy { socket, to } => {
            web::run(web::proxy::serve(&host, web::proxy::Proxy { socket, to }))?;
        }
        Command::Auth { socket, htpasswd } => {
            web::run(web::gate::serve(
                &host,
                web::gate::Gate { socket, htpasswd, realm: "Echoes headquarters".into() },
            ))?;
        }
        Command::RunProxy { socket, mlflow, mlflow_socket, reads } => {
            let mlflow = mlflow.parse()?;
            let settings = web::run_proxy::RunProxy { socket, mlflow, mlflow_socket, reads };
            web::run(web::run_proxy::serve(&host, settings))?;
        }
    }
    Ok(0)
}
