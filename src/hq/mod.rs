//! The headquarters.

pub mod mlflow;
pub mod python;
