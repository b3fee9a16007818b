//! `gpu-run --provider azure` on a machine that boots: cloud-init gives it the key that we chose, systemd holds the script,
//! and the machine is gone when it is given back.

// Tests look at files and processes directly.
#![allow(clippy::disallowed_methods, clippy::disallowed_types, clippy::print_stderr)]

#[path = "support/cloud.rs"]
mod cloud;
#[path = "support/cloud_lab.rs"]
mod cloud_lab;
#[path = "support/gpu_story.rs"]
mod gpu_story;
#[path = "support/here.rs"]
mod here;
#[allow(dead_code)]
#[path = "support/hq.rs"]
mod hq;
#[path = "support/lab.rs"]
mod lab;

use cloud::{Options, Pace, Takes};
use cloud_lab::{LabMetal, Metadata};
use gpu_story::Story;
use here::Here;
use lab::{Machine, Release};
use std::{net::Ipv4Addr, sync::Arc, time::Duration};

#[test]
fn an_experiment_on_a_rented_machine_comes_home_and_the_machine_is_gone() {
    if !hq::can_boot("an experiment at the simulated Azure") {
        return;
    }
    let Some(here) = Here::new() else { return };
    let before = Machine::list().unwrap();
    // What the script needs, and what the agent does: an environment is made of the machine's own Python.
    let metal = Arc::new(LabMetal::new(Release::Bookworm, &["python3", "sudo"]).unwrap());
    let second = Duration::from_secs(1);
    let takes = Takes {
        vm_create: second,
        vm_delete: second,
        reservation: 5 * second,
        retry_after: Some(1),
        ..Takes::default()
    };
    let options = Options {
        pace: Pace::Running(1.0),
        takes,
        metal: Arc::clone(&metal) as Arc<_>,
        // From everywhere: the lab's own address comes and goes with its machines.
        imds: Some((Ipv4Addr::UNSPECIFIED.into(), 0)),
        ..Options::default()
    };
    let Some(story) = Story::new(here, 22, "/tmp", options) else { return };
    // Before there is a machine: what asks there must never get to whatever this host itself is in.
    let port = story.cloud.imds().rsplit_once(':').unwrap().1.parse().unwrap();
    let _way = Metadata::at(port).unwrap();
    story.runs_to_its_receipt();
    assert_eq!(Machine::list().unwrap(), before);
}
