//! What has to be true of the things that a call names before it goes on to MLflow. Pure.

use std::fmt;

/// Something that MLflow keeps, by its id.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Thing {
    Run(String),
    Model(String),
    Trace(String),
    Experiment(String),
    /// By its name.
    Registered(String),
}

impl fmt::Display for Thing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Run(id) => write!(f, "the run {id}"),
            Self::Model(id) => write!(f, "the model {id}"),
            Self::Trace(id) => write!(f, "the trace {id}"),
            Self::Experiment(id) => write!(f, "the experiment {id}"),
            Self::Registered(name) => write!(f, "the registered model {name}"),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Claim {
    /// This run made it.
    Owns(Thing),
    /// This run made it, or nobody has yet.
    OwnsOrNew(Thing),
    /// It is in an experiment that this run may read.
    Reads(Thing),
    /// This run has to do with the experiment: made it, looked it up by its name, or has a run in it.
    Knows(String),
    /// Runs may read everything here.
    ReadsAll,
    /// This run made it, and its artifacts are in this folder.
    OwnsAt(Thing, String),
    /// It is in an experiment that this run may read, and its artifacts are in this folder.
    ReadsAt(Thing, String),
}
