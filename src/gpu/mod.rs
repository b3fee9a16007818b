//! Experiments on machines that are rented for them: rent, send, run, bring home, give back, prove it.
//!
//! `runner` is a loop over a journal: read where the run stands (`state`), do the phase, note what happened. Whoever
//! holds the journal's lock drives the run, so any process may die and any other may go on. A `provider` is where
//! machines come from, a `job` is what happens on one, and a `target` is how a command gets there.

pub mod agent;
pub mod beside;
pub mod checkout;
pub mod code;
pub mod data;
pub mod driver;
pub mod errand;
pub mod final_status;
pub mod home;
pub mod identity;
pub mod job;
pub mod left;
pub mod loan;
pub mod log;
pub mod metrics;
pub mod offer;
pub mod provenance;
pub mod provider;
pub mod pull;
pub mod pulse;
pub mod reader;
pub mod receipt;
pub mod runner;
pub mod runs;
pub mod spec;
pub mod state;
pub mod sweep;
pub mod target;
pub mod telling;
pub mod tracking;
pub mod tree;
pub mod wire;
