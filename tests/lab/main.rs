//! Stories about whole machines: real Debian with a real systemd, booted for the story and thrown away after it.

// A test, not part of the appliance.
#![allow(clippy::disallowed_methods, clippy::disallowed_types, clippy::print_stdout, clippy::print_stderr)]

/// The appliance, as cargo has built it for these tests.
const PROGRAM: &str = env!("CARGO_BIN_EXE_echoes-appliance");

mod access;
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
mod owned;
mod persons;
mod run_login;
mod sandbox;
mod scanners;
mod store;
