//! Who waits for whom while a plan is carried out: one thing after the other, as the blueprint has them, but what
//! takes long goes on beside the rest, and so does whatever must wait for it.

use super::resource::Resource;
use anyhow::{Error, Result};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// Make all of them. After a failure nothing more is begun, and what is under way ends. Of several failures it
/// returns the one that the blueprint has first.
pub fn each(wanted: &[&Resource], make: impl Fn(&Resource) -> Result<()> + Sync) -> Result<()> {
    let board = Board::new(wanted.len());
    std::thread::scope(|scope| {
        for (n, resource) in wanted.iter().enumerate() {
            let awaited = board.unfinished(&needed(wanted, n));
            let beside = resource.takes_long() || !awaited.is_empty();
            let (board, make) = (&board, &make);
            let turn = move || {
                if board.wait(&awaited) {
                    board.enter(n, make(resource));
                }
            };
            if beside {
                scope.spawn(turn);
            } else {
                turn();
            }
        }
    });
    board.verdict()
}

/// Which of those before it bring something that it needs.
fn needed(wanted: &[&Resource], n: usize) -> Vec<usize> {
    let needs = wanted[n].needs();
    (0..n).filter(|&earlier| wanted[earlier].owns().iter().any(|path| needs.contains(path))).collect()
}

/// How far each is.
struct Board {
    ends: Mutex<Vec<Option<Result<()>>>>,
    moved: Condvar,
}

impl Board {
    fn new(len: usize) -> Self {
        Self { ends: Mutex::new((0..len).map(|_| None).collect()), moved: Condvar::new() }
    }

    fn ends(&self) -> MutexGuard<'_, Vec<Option<Result<()>>>> {
        self.ends.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn unfinished(&self, of: &[usize]) -> Vec<usize> {
        let ends = self.ends();
        of.iter().copied().filter(|&n| ends[n].is_none()).collect()
    }

    /// Until all of these are there. Says no as soon as anything has failed.
    fn wait(&self, awaited: &[usize]) -> bool {
        let mut ends = self.ends();
        loop {
            if ends.iter().flatten().any(Result::is_err) {
                return false;
            }
            if awaited.iter().all(|&n| ends[n].is_some()) {
                return true;
            }
            ends = self.moved.wait(ends).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn enter(&self, n: usize, end: Result<()>) {
        self.ends()[n] = Some(end);
        self.moved.notify_all();
    }

    fn verdict(self) -> Result<()> {
        let ends = self.ends.into_inner().unwrap_or_else(PoisonError::into_inner);
        ends.into_iter().flatten().find_map(Result::err).map_or(Ok(()), Err::<(), Error>)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hq::{
        python,
        resource::{Load, Unit},
    };
    use std::{
        path::PathBuf,
        sync::{Barrier, mpsc},
        time::Duration,
    };

    fn dir(name: &str) -> Resource {
        Resource::Dir { path: name.into() }
    }

    fn unit(reads: PathBuf) -> Resource {
        Resource::Unit(Unit {
            name: "u".into(),
            reads: vec![reads],
            with: String::new(),
            load: Load::Restart,
        })
    }

    #[test]
    fn what_is_quick_does_not_wait_for_what_takes_long_and_what_needs_it_does() {
        let all = [
            Resource::Env(&python::SERVICES),
            dir("/quick"),
            unit(python::marker_of(&python::SERVICES)),
            dir("/last"),
        ];
        let wanted: Vec<_> = all.iter().collect();
        let made = Mutex::new(Vec::new());
        let (last, wait) = mpsc::channel();
        let wait = Mutex::new(wait);
        each(&wanted, |resource| {
            if matches!(resource, Resource::Env(_)) {
                // It ends only after the last of the others.
                wait.lock().unwrap().recv_timeout(Duration::from_secs(60)).unwrap();
            }
            made.lock().unwrap().push(resource.to_string());
            if *resource == all[3] {
                last.send(()).unwrap();
            }
            Ok(())
        })
        .unwrap();
        let order = ["directory /quick", "directory /last", "Python environment services", "unit u"];
        assert_eq!(*made.lock().unwrap(), order);
    }

    #[test]
    fn after_a_failure_nothing_more_is_begun_and_the_first_of_the_blueprint_is_told() {
        let all = [
            Resource::Env(&python::SERVICES),
            dir("/fails"),
            dir("/never"),
            unit(python::marker_of(&python::SERVICES)),
        ];
        let wanted: Vec<_> = all.iter().collect();
        let made = Mutex::new(Vec::new());
        // Both are under way before either fails.
        let both = Barrier::new(2);
        let error = each(&wanted, |resource| {
            made.lock().unwrap().push(resource.to_string());
            both.wait();
            match resource {
                Resource::Env(_) => anyhow::bail!("no network"),
                _ => anyhow::bail!("no room"),
            }
        })
        .unwrap_err();
        assert_eq!(error.to_string(), "no network");
        let mut made = made.into_inner().unwrap();
        made.sort();
        assert_eq!(made, ["Python environment services", "directory /fails"]);
    }
}
