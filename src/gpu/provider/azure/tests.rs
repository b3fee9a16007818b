//! The provider against the simulated Azure, and against what Microsoft has written down.

mod contract;
mod faults;
mod life;
mod login;
mod matrix;
mod run;
mod stage;
