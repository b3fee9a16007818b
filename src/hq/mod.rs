//! The headquarters: what it is (`blueprint`), what each part is and how it is made (`resource`), what to do about
//! the difference (`plan`), what was done (`receipt`), how it is taken back (`undo`), and whether it works
//! (`probe`).

pub mod apt;
pub mod blueprint;
pub mod certificate;
pub mod disk;
pub mod docs;
pub mod env;
pub mod eyes;
pub mod htpasswd;
pub mod issuance;
pub mod line;
pub mod machine;
pub mod mlflow;
pub mod nginx;
mod pace;
pub mod plan;
pub mod probe;
pub mod python;
pub mod receipt;
pub mod resource;
pub mod results;
pub mod scalar;
pub mod service;
pub mod store;
pub mod survey;
pub mod undo;
pub mod users;
