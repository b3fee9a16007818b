//! `gpu-run --provider azure` from its first word to its receipt: the program itself, before a simulated Azure that holds
//! each request to Microsoft's documents, on a machine that is this one behind a real sshd with the key that it was given
//! at its first start.

// Tests look at files and processes directly.
#![allow(clippy::disallowed_methods, clippy::disallowed_types, clippy::print_stderr)]

#[path = "support/cloud.rs"]
mod cloud;
#[path = "support/gpu_sshd.rs"]
mod gpu_sshd;
#[path = "support/gpu_story.rs"]
mod gpu_story;
#[path = "support/here.rs"]
mod here;

use gpu_sshd::Sshd;
use gpu_story::{Story, T4, words};
use here::Here;

fn story() -> Option<Story> {
    let here = Here::new()?;
    let sshd = Sshd::new(&here, None)?;
    let there = here.dir.path().display().to_string();
    Story::faster(here, sshd.port, sshd, &there)
}

#[test]
fn what_can_be_had_is_shown_and_nothing_is_rented_without_a_yes() {
    let Some(story) = story() else { return };
    let plan = story.gpu_run("plan", &["--dry-run", "--max-cost", "5"]);
    let said = words(&plan.stderr);
    assert_eq!(plan.status.code(), Some(0), "{said}");
    assert!(said.contains('✓') && said.contains(T4) && said.contains("eastus"), "{said}");
    assert!(said.contains("before it costs $5.00"), "{said}");

    let unasked = story.gpu_run("unasked", &[]);
    assert_eq!(unasked.status.code(), Some(1), "{}", words(&unasked.stderr));
    assert!(words(&unasked.stderr).contains("it costs money, and there is nobody to ask\ntry:   -y"));

    story.cloud.set_quota("lowPriorityCores", 0);
    let short = story.gpu_run("short", &["--spot", "always", "-y"]);
    let said = words(&short.stderr);
    assert_eq!(short.status.code(), Some(81), "{said}");
    assert!(said.contains('✗') && said.contains("ask for a limit of 4"), "{said}");
    assert_eq!(story.cloud.left(), Vec::<String>::new());
    story.cloud.assert_honest();
}

#[test]
fn a_script_runs_on_a_rented_machine_and_nothing_of_that_is_left() {
    let Some(story) = story() else { return };
    story.runs_to_its_receipt();
}
