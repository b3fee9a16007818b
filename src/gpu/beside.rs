//! Work that goes on beside the loop: it is begun, asked after and never waited for. Whoever waits for something else is
//! woken when there is news of it.

use crate::web::hold;
use anyhow::Result;
use std::{
    sync::{Arc, Condvar, Mutex, PoisonError},
    thread::Scope,
    time::Duration,
};

/// Wakes whoever waits.
#[derive(Default)]
pub struct Wake {
    fresh: Mutex<bool>,
    told: Condvar,
}

impl Wake {
    pub fn tell(&self) {
        *hold(&self.fresh) = true;
        self.told.notify_all();
    }

    /// So long, or until there is news. Whether there was.
    pub fn wait(&self, long: Duration) -> bool {
        let fresh = hold(&self.fresh);
        let waited = self.told.wait_timeout_while(fresh, long, |fresh| !*fresh);
        let (mut fresh, _) = waited.unwrap_or_else(PoisonError::into_inner);
        std::mem::take(&mut fresh)
    }
}

/// One thing at a time of one kind.
pub struct Beside<'scope, 'env, K, T> {
    scope: &'scope Scope<'scope, 'env>,
    wake: &'scope Wake,
    slot: Arc<Mutex<Slot<K, T>>>,
}

enum Slot<K, T> {
    Idle,
    Busy,
    /// And what it was about.
    Done(K, T),
}

impl<'scope, 'env, K, T> Beside<'scope, 'env, K, T>
where
    K: PartialEq + Send + 'scope,
    T: Send + 'scope,
{
    pub fn new(scope: &'scope Scope<'scope, 'env>, wake: &'scope Wake) -> Self {
        Self { scope, wake, slot: Arc::new(Mutex::new(Slot::Idle)) }
    }

    /// What came of it, once; it is begun where nothing goes on. What came of something else than `about` is not told.
    pub fn ask(&self, about: K, work: impl FnOnce() -> T + Send + 'scope) -> Result<Option<T>> {
        let mut slot = hold(&self.slot);
        match std::mem::replace(&mut *slot, Slot::Idle) {
            Slot::Done(was, done) if was == about => return Ok(Some(done)),
            Slot::Busy => {
                *slot = Slot::Busy;
                return Ok(None);
            }
            Slot::Idle | Slot::Done(..) => {}
        }
        let (shared, wake) = (Arc::clone(&self.slot), self.wake);
        *slot = Slot::Busy;
        let begun = std::thread::Builder::new().spawn_scoped(self.scope, move || {
            let done = work();
            *hold(&shared) = Slot::Done(about, done);
            wake.tell();
        });
        if let Err(error) = begun {
            *slot = Slot::Idle;
            return Err(error.into());
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::channel;

    #[test]
    fn work_is_begun_once_and_told_of_once_and_only_to_who_asked_for_it() {
        let wake = Wake::default();
        std::thread::scope(|scope| {
            let beside = Beside::new(scope, &wake);
            let (go, wait) = channel::<()>();
            let work = move || {
                wait.recv().unwrap();
                7
            };
            assert_eq!(beside.ask("a", work).unwrap(), None);
            assert_eq!(beside.ask("a", || 8).unwrap(), None, "the first goes on");
            go.send(()).unwrap();
            assert!(wake.wait(Duration::from_secs(60)));
            assert_eq!(beside.ask("a", || 9).unwrap(), Some(7));
            assert_eq!(beside.ask("a", || 10).unwrap(), None);
            assert!(wake.wait(Duration::from_secs(60)));
            assert_eq!(beside.ask("b", || 11).unwrap(), None, "what came of another is nobody's");
            assert!(wake.wait(Duration::from_secs(60)));
            assert_eq!(beside.ask("b", || 12).unwrap(), Some(11));
        });
        assert!(!wake.wait(Duration::ZERO));
    }
}
