//! A Python environment as a thing to look at and make: `python.rs` builds it, here it is noted, switched to and
//! swept after.

use super::{
    python::{self, Lock},
    receipt::{Book, Entry},
    resource::{Seen, missing_dirs},
};
use crate::{host::Host, ui::Step};
use anyhow::Result;
use std::path::{Path, PathBuf};

pub fn look(host: &Host, lock: &Lock) -> Result<Seen> {
    Ok(match python::look(host, lock)? {
        python::Seen::Right(_) => Seen::Right,
        python::Seen::Missing => Seen::Wrong("missing".into()),
        python::Seen::Wrong(why) => Seen::Wrong(why),
        python::Seen::Later => Seen::Later,
    })
}

/// The old one stays beside it until everything that runs from it has answered from the new one (`sweep`).
pub fn make(host: &Host, lock: &Lock, book: &Book, step: &Step) -> Result<()> {
    for path in [python::HOME, python::CACHE_HOME].map(Path::new) {
        if !book.receipt().built.contains(path) {
            book.note(Entry::Built { path: path.into(), dirs: missing_dirs(host, path)? })?;
        }
    }
    let made = python::make(host, lock, &mut |line| step.detail(line));
    let env = made.map_err(|e| {
        let hint = python::hint(&format!("{e:#}"));
        e.context(crate::ui::Hint(hint.into()))
    })?;
    python::switch(host, lock, &env.dir)
}

/// The link is inside of what is ours whole; its marker is what units read.
pub fn owns(lock: &Lock) -> Vec<PathBuf> {
    vec![python::HOME.into(), python::CACHE_HOME.into(), python::marker_of(lock)]
}
