//! Experiments with real processes: on this very machine, over a real ssh, and before a simulated Azure, which is itself
//! held to Microsoft's documents.

// Tests look at files and processes directly.
#![allow(clippy::disallowed_methods, clippy::disallowed_types, clippy::print_stderr)]

/// The appliance, as cargo has built it for these tests.
const PROGRAM: &str = env!("CARGO_BIN_EXE_echoes-appliance");

mod azure;
mod contract;
mod deaths;
mod ends;
mod hostile;
mod local;
mod mlflow;
mod ordinary;
mod persons;
mod troubles;
