//! What is remembered of logins: that a key was seen, since when, and when last. Bounded in number and time;
//! the time is given, so that tests wait for nothing. It knows keys only, never what they were made from.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

/// A keyed hash: whoever reads our memory learns no password from it.
pub type Key = [u8; 32];

pub struct Memory {
    limits: Limits,
    seen: HashMap<Key, Seen>,
}

#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Keys held at once. One more, and the one unused for longest is forgotten.
    pub most: usize,
    /// A key unused for so long is forgotten,
    pub idle: Duration,
    /// and so is one this old, however much it is used.
    pub age: Duration,
}

struct Seen {
    first: Instant,
    last: Instant,
}

impl Memory {
    pub fn new(limits: Limits) -> Self {
        Self { limits, seen: HashMap::new() }
    }

    /// Whether the key is remembered. Asking counts as use.
    pub fn recall(&mut self, key: &Key, now: Instant) -> bool {
        let limits = self.limits;
        let Some(seen) = self.seen.get_mut(key) else { return false };
        if !seen.lives(limits, now) {
            self.seen.remove(key);
            return false;
        }
        seen.last = now;
        true
    }

    pub fn keep(&mut self, key: Key, now: Instant) {
        // Looking through all of them costs microseconds, and is paid only by a login that took a hash.
        if self.seen.len() >= self.limits.most && !self.seen.contains_key(&key) {
            self.seen.retain(|_, seen| seen.lives(self.limits, now));
            if self.seen.len() >= self.limits.most
                && let Some(oldest) = self.seen.iter().min_by_key(|(_, seen)| seen.last).map(|(key, _)| *key)
            {
                self.seen.remove(&oldest);
            }
        }
        self.seen.insert(key, Seen { first: now, last: now });
    }
}

impl Seen {
    fn lives(&self, limits: Limits, now: Instant) -> bool {
        now.saturating_duration_since(self.last) < limits.idle
            && now.saturating_duration_since(self.first) < limits.age
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits { most: 3, idle: Duration::from_secs(10), age: Duration::from_secs(60) };

    fn at(start: Instant, seconds: u64) -> Instant {
        start + Duration::from_secs(seconds)
    }

    #[test]
    fn it_forgets_what_is_idle_and_what_is_old() {
        let start = Instant::now();
        let mut memory = Memory::new(LIMITS);
        memory.keep([1; 32], start);
        assert!(!memory.recall(&[2; 32], start));
        for second in (9..60).step_by(9) {
            assert!(memory.recall(&[1; 32], at(start, second)), "in use at {second}");
        }
        assert!(!memory.recall(&[1; 32], at(start, 60)), "old");
        memory.keep([1; 32], at(start, 60));
        assert!(!memory.recall(&[1; 32], at(start, 70)), "idle");
    }

    #[test]
    fn it_never_holds_more_than_it_may_and_drops_the_longest_unused() {
        let start = Instant::now();
        let mut memory = Memory::new(LIMITS);
        for n in 0..3 {
            memory.keep([n; 32], at(start, n.into()));
        }
        assert!(memory.recall(&[0; 32], at(start, 4)));
        memory.keep([3; 32], at(start, 5));
        assert_eq!(memory.seen.len(), 3);
        assert!(!memory.recall(&[1; 32], at(start, 5)));
        for n in [0, 2, 3] {
            assert!(memory.recall(&[n; 32], at(start, 5)), "{n}");
        }
        for n in 10..=255 {
            memory.keep([n; 32], at(start, 6));
            assert!(memory.seen.len() <= 3);
        }
    }
}
