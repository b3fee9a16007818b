//! Test support, shared by tests, the demo and the bench: a simulated Azure, throw-away Debian machines, an ACME authority,
//! a network that goes away, and a mount namespace that stands in for a machine. The appliance is known in here only as a
//! program or a package, never as a crate.

// Tests and tools reach files and processes directly: the door of src/host.rs is what they test. Skipped stories are told
// on standard error.
#![allow(clippy::disallowed_methods, clippy::disallowed_types, clippy::print_stderr)]
// The compiler reports no unused item that another crate could reach; so what the kit alone uses is not reachable.
#![deny(unreachable_pub)]

pub mod acme;
pub mod cloud;
pub mod cloud_client;
pub mod cloud_lab;
pub mod experiment;
pub mod here;
pub mod hq;
pub mod lab;
pub mod network;
pub mod ordinary;
pub mod process;
pub mod sshd;
pub mod story;
pub mod traces;

/// The project's root, which is two folders above this crate.
pub const TOP: &str = {
    let own = env!("CARGO_MANIFEST_DIR");
    own.split_at(own.len() - "/tests/kit".len()).0
};
