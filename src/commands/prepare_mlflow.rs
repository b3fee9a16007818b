//! `prepare-mlflow`: mlflow.service runs it before and after every start, as MLflow's own user and in its sandbox.

use super::this_machine;
use crate::{
    host::System,
    hq::{mlflow, python},
};
use anyhow::{Context as _, Result};
use std::path::PathBuf;
use time::{OffsetDateTime, macros::format_description};

#[derive(clap::Args)]
pub struct Args {
    /// The directory of the database
    #[arg(long)]
    data: PathBuf,
    /// It has started, and answers
    #[arg(long)]
    answered: bool,
}

pub fn run(args: Args) -> Result<u8> {
    let host = this_machine();
    if !mlflow::is_here(&args.data, System::environment("MLFLOW_BACKEND_STORE_URI").as_deref()) {
        return Ok(0);
    }
    if args.answered {
        return mlflow::answered(&host, &args.data).map(|()| 0);
    }
    let version = python::installed(&host, "mlflow").context("there is no MLflow in the environment")?;
    let now = OffsetDateTime::now_utc()
        .format(format_description!("[year][month][day]T[hour][minute][second]Z"))?;
    mlflow::prepare(&host, &args.data, &python::link(&python::SERVICES), &version, &now)?;
    Ok(0)
}
