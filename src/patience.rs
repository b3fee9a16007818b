//! How long to wait and how often to ask; a value, so that tests wait for nothing.

use anyhow::Result;
use std::time::{Duration, Instant};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Patience {
    /// Give up after this long.
    pub at_most: Duration,
    /// Between two questions.
    pub between: Duration,
}

impl Patience {
    /// Asks once.
    pub const NONE: Self = Self { at_most: Duration::ZERO, between: Duration::ZERO };

    pub const fn seconds(at_most: u64) -> Self {
        Self { at_most: Duration::from_secs(at_most), between: Duration::from_millis(100) }
    }

    /// Ask until the answer is good; the last bad one when patience is out.
    pub fn until<T>(self, mut ask: impl FnMut() -> Result<T>) -> Result<T> {
        let since = Instant::now();
        loop {
            match ask() {
                Err(_) if since.elapsed() < self.at_most => std::thread::sleep(self.between),
                answer => return answer,
            }
        }
    }
}

/// The moment when so much time has passed. A time that somebody wrote down may be longer than a clock counts: that is never.
pub fn from_now(long: Duration) -> Instant {
    const NEVER: Duration = Duration::from_secs(100 * 365 * 86_400);
    let now = Instant::now();
    now.checked_add(long).unwrap_or_else(|| now + NEVER)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_too_long_for_a_clock_is_never() {
        assert!(from_now(Duration::MAX) > from_now(Duration::from_secs(86_400)));
    }

    #[test]
    fn the_last_answer_is_the_one_reported() {
        let patience = Patience::NONE;
        let mut asked = 0;
        let err = patience
            .until(|| -> Result<()> {
                asked += 1;
                anyhow::bail!("no {asked}")
            })
            .unwrap_err();
        assert_eq!(err.to_string(), "no 1");
        let mut left = 3;
        let patience = Patience { at_most: Duration::from_secs(9), between: Duration::ZERO };
        patience
            .until(|| {
                left -= 1;
                anyhow::ensure!(left == 0);
                Ok(())
            })
            .unwrap();
    }
}
