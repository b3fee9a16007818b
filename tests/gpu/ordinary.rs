//! The table of ordinary troubles (`kit::ordinary`) on each kind of machine that needs no booting: this one, one that the
//! team owns, where nobody may be root, and one that is rented.

use crate::PROGRAM;
use kit::{
    here::Here,
    ordinary::{ID, MANY, PERSON, ROWS, World, has_orphan},
    sshd::{Owned, Sshd},
    story::{Story, T4},
};

/// Headquarters in whose namespace there is such a person.
fn here() -> Option<Here> {
    let here = Here::new(PROGRAM)?;
    here.add_person(PERSON, ID);
    Some(here)
}

#[test]
fn on_this_machine() {
    let Some(here) = here() else { return };
    let command = |words: &[&str]| {
        let mut command = here.command(words);
        // As sudo says who typed it.
        command.env("SUDO_USER", PERSON);
        command
    };
    let world = World {
        named: "here",
        here: &here,
        command: Box::new(command),
        provider: ["--provider", "local"].map(Into::into).into(),
        rooms: here.inside(&format!("/var/lib/echoes-appliance/machine/{PERSON}/runs")),
        signs: here.signs(),
        has_orphan: Box::new(|| has_orphan(&here)),
        rented: false,
    };
    world.pull_what_is_left();
    world.try_all(&ROWS.iter().chain([&MANY]).collect::<Vec<_>>());
}

#[test]
fn on_a_machine_that_the_team_owns() {
    let Some(here) = here() else { return };
    let Some(owned) = Owned::new(&here) else { return };
    let world = World {
        named: "owned",
        here: &here,
        command: Box::new(|words| here.command_with(&owned.settings(), words)),
        provider: vec!["--provider".to_owned(), owned.url(PERSON)],
        rooms: here.inside(&format!("/home/{PERSON}/.echoes-appliance/runs")),
        signs: here.signs(),
        has_orphan: Box::new(|| has_orphan(&here)),
        rented: false,
    };
    world.pull_what_is_left();
    world.try_all(&ROWS.iter().collect::<Vec<_>>());
}

#[test]
fn on_a_machine_that_is_rented() {
    let Some(here) = Here::new(PROGRAM) else { return };
    let Some(sshd) = Sshd::of_a_person(&here, ID) else { return };
    let Some(story) = Story::faster(here, sshd.port, sshd, "") else { return };
    let world = World {
        named: "rented",
        here: &story.here,
        command: Box::new(|words| story.command(words)),
        provider: ["--provider", "azure", "--vm-size", T4].map(Into::into).into(),
        rooms: story.here.inside("/home/echoes/.echoes/runs"),
        signs: story.here.signs(),
        has_orphan: Box::new(|| has_orphan(&story.here)),
        rented: true,
    };
    world.try_all(&ROWS.iter().collect::<Vec<_>>());
    assert_eq!(story.cloud.costing(), Vec::<String>::new());
    story.cloud.assert_honest();
}
