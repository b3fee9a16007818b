//! Stories about whole machines: real Debian with a real systemd, booted for the story and thrown away after it.

// A test, not part of the appliance.
#![allow(clippy::disallowed_methods, clippy::disallowed_types, clippy::print_stdout, clippy::print_stderr)]

#[path = "../support/acme.rs"]
mod acme;
#[path = "../support/cloud_client.rs"]
mod client;
#[path = "../support/cloud.rs"]
mod cloud;
#[path = "../support/cloud_lab.rs"]
mod cloud_lab;
#[path = "../../examples/demo/experiment.rs"]
mod experiment;
#[path = "../support/gpu_story.rs"]
mod gpu_story;
#[path = "../support/here.rs"]
mod here;
#[allow(dead_code)]
#[path = "../support/hq.rs"]
mod hq;
#[path = "../support/lab.rs"]
mod lab;
#[path = "../support/traces.rs"]
mod traces;

mod attacks;
mod azure;
mod certificates;
mod crash;
mod demo;
mod disks;
mod experiments;
mod faults;
mod gpu;
mod life;
mod machines;
mod store;
