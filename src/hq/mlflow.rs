//! What MLflow is told.

use crate::config::Config;

/// Read by systemd as root, before it becomes MLflow's user: it may hold a password.
pub const ENVIRONMENT: &str = "/etc/echoes-appliance/mlflow.env";

pub fn environment(config: &Config) -> String {
    let data = config.data.path.as_str();
    let backend = match config.mlflow.backend.as_str() {
        "sqlite" => format!("sqlite:///{data}/mlruns/mlflow.db"),
        uri => uri.to_owned(),
    };
    let artifacts = match config.mlflow.artifacts.as_str() {
        "" => format!("{data}/mlruns/artifacts"),
        uri => uri.to_owned(),
    };
    format!("MLFLOW_BACKEND_STORE_URI={backend}\nMLFLOW_ARTIFACTS_DESTINATION={artifacts}\n")
}
