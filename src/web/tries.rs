//! How often somebody may try. A debt of time: each try adds to it, waiting pays it off, and above a limit
//! there is no further try. Bounded in number; the time is given, so that tests wait for nothing.

use std::{
    collections::HashMap,
    hash::Hash,
    time::{Duration, Instant},
};

/// So many tries at once, and then one each time `every` has passed.
#[derive(Debug, Clone, Copy)]
pub struct Allowance {
    pub burst: u32,
    pub every: Duration,
}

pub struct Tries<K> {
    allowance: Allowance,
    most: usize,
    /// When each of them will have paid off all.
    even: HashMap<K, Instant>,
}

impl<K: Hash + Eq + Clone> Tries<K> {
    /// Knows at most `most` of them at once; one more, and the one that owes least is forgiven.
    pub fn new(allowance: Allowance, most: usize) -> Self {
        Self { allowance, most, even: HashMap::new() }
    }

    /// Take one try, or learn how long to wait for it.
    pub fn take(&mut self, who: &K, now: Instant) -> Result<(), Duration> {
        let Allowance { burst, every } = self.allowance;
        let even = self.even.get(who).map_or(now, |even| *even.max(&now)) + every;
        let wait = even.saturating_duration_since(now).saturating_sub(every * burst);
        if !wait.is_zero() {
            return Err(wait);
        }
        if self.even.len() >= self.most && !self.even.contains_key(who) {
            self.even.retain(|_, even| *even > now);
            if self.even.len() >= self.most
                && let Some(least) =
                    self.even.iter().min_by_key(|(_, even)| **even).map(|(who, _)| who.clone())
            {
                self.even.remove(&least);
            }
        }
        self.even.insert(who.clone(), even);
        Ok(())
    }

    /// The try was a good one: it is not held against them.
    pub fn give_back(&mut self, who: &K) {
        if let Some(even) = self.even.get_mut(who)
            && let Some(earlier) = even.checked_sub(self.allowance.every)
        {
            *even = earlier;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn tries() -> Tries<u32> {
        Tries::new(Allowance { burst: 3, every: 10 * SECOND }, 4)
    }

    #[test]
    fn three_at_once_then_one_each_ten_seconds() {
        let (mut tries, start) = (tries(), Instant::now());
        for _ in 0..3 {
            assert_eq!(tries.take(&1, start), Ok(()));
        }
        assert_eq!(tries.take(&1, start), Err(10 * SECOND));
        assert_eq!(tries.take(&2, start), Ok(()), "others are not concerned");
        assert_eq!(tries.take(&1, start + 4 * SECOND), Err(6 * SECOND), "asking costs nothing");
        assert_eq!(tries.take(&1, start + 10 * SECOND), Ok(()));
        assert_eq!(tries.take(&1, start + 10 * SECOND), Err(10 * SECOND));
        for _ in 0..3 {
            assert_eq!(tries.take(&1, start + 999 * SECOND), Ok(()), "all is paid off, and no more than all");
        }
        assert_eq!(tries.take(&1, start + 999 * SECOND), Err(10 * SECOND));
    }

    #[test]
    fn a_good_try_is_given_back() {
        let (mut tries, start) = (tries(), Instant::now());
        for _ in 0..100 {
            assert_eq!(tries.take(&1, start), Ok(()));
            tries.give_back(&1);
        }
    }

    #[test]
    fn it_never_knows_more_than_it_may_and_forgives_who_owes_least() {
        let (mut tries, start) = (tries(), Instant::now());
        for _ in 0..3 {
            tries.take(&0, start).unwrap();
        }
        for who in 1..1000 {
            tries.take(&who, start).unwrap();
            assert!(tries.even.len() <= 4);
        }
        assert_eq!(tries.take(&0, start), Err(10 * SECOND), "the worst is not forgotten for the many");
    }
}
