//! A team's old file store as a thing to look at and take over: `mlflow.rs` does it, here it is noted, and MLflow
//! is stopped for it.

use super::{
    mlflow::{self, Import, STORE_ENVIRONMENT, Wish},
    python,
    receipt::{Book, Entry},
    resource::{Seen, missing_dirs},
};
use crate::{
    host::{Cmd, Host},
    ui::Step,
};
use anyhow::{Context as _, Result, ensure};
use std::path::{Path, PathBuf};

#[derive(Debug, Clone, PartialEq)]
pub struct Store {
    /// The directory `mlruns` of the data disk.
    pub data: PathBuf,
    /// The setting `mlflow.import`.
    pub asked: Option<PathBuf>,
    pub sqlite: bool,
    pub artifacts_here: bool,
    pub can_migrate: bool,
}

impl Store {
    fn import(&self, host: &Host) -> Result<Import> {
        let Self { data, asked, sqlite, artifacts_here, can_migrate } = self;
        let (sqlite, artifacts_here, can_migrate) = (*sqlite, *artifacts_here, *can_migrate);
        mlflow::look(host, data, &Wish { asked: asked.as_deref(), sqlite, artifacts_here, can_migrate })
    }

    pub fn look(&self, host: &Host) -> Result<Seen> {
        Ok(match self.import(host)? {
            Import::Nothing => Seen::Right,
            Import::Needed { from, .. } => {
                Seen::Wrong(format!("there is a file store in {}", from.display()))
            }
            Import::Finish => Seen::Wrong("taken over, but not moved in".into()),
            Import::Refused(why) => Seen::Foreign(why),
        })
    }

    pub fn make(&self, host: &Host, book: &Book, step: &Step) -> Result<()> {
        let import = self.import(host)?;
        mlflow::check_import(host, &self.data, &import)?;
        // It runs on a reinstallation; its unit starts it again, now with other things to read.
        host.ask(&Cmd::new("systemctl", ["stop", "mlflow.service"]))?;
        let path = Path::new(STORE_ENVIRONMENT);
        book.note(Entry::Created { path: path.into(), dirs: missing_dirs(host, path)? })?;
        let ids = (host.uid("mlflow")?, host.gid("mlflow")?);
        let owner = ids.0.zip(ids.1).context("there is no user mlflow")?;
        let env = python::link(&python::SERVICES);
        let mut say = |line: &str| step.detail(line);
        let imported = mlflow::import(host, &self.data, &import, &env, owner, &mut say)?;
        ensure!(imported.is_some(), "the file store went away while it was taken over");
        Ok(())
    }

    pub fn owns(&self) -> Vec<PathBuf> {
        vec![STORE_ENVIRONMENT.into(), self.data.join("imported.json")]
    }
}
