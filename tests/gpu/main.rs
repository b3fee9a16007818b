//! Experiments with real processes: on this very machine, over a real ssh, and before a simulated Azure, which is itself
//! held to Microsoft's documents.

// Tests look at files and processes directly.
#![allow(clippy::disallowed_methods, clippy::disallowed_types, clippy::print_stderr)]

#[path = "../support/cloud_client.rs"]
mod client;
#[path = "../support/cloud.rs"]
mod cloud;
#[path = "../support/gpu_sshd.rs"]
mod gpu_sshd;
#[path = "../support/gpu_story.rs"]
mod gpu_story;
#[path = "../support/here.rs"]
mod here;
#[path = "../support/network.rs"]
mod network;

mod azure;
mod contract;
mod deaths;
mod hostile;
mod local;
mod troubles;
