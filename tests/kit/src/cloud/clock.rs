//! Time, which passes here as a test wants it to.
//!
//! It begins at the host's own time, so that certificates and journals agree with it, and from then on it stands
//! still until told, moves a step with each request, or runs at so many times the host's own speed.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

/// Milliseconds since 1970.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Moment(pub u64);

impl Moment {
    pub fn after(self, wait: Duration) -> Self {
        Self(self.0 + u64::try_from(wait.as_millis()).unwrap())
    }

    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(self.0.saturating_sub(earlier.0))
    }

    pub fn date(self) -> OffsetDateTime {
        OffsetDateTime::from_unix_timestamp_nanos(i128::from(self.0) * 1_000_000).unwrap()
    }

    /// As ARM writes it.
    pub fn text(self) -> String {
        self.date().format(&Rfc3339).unwrap()
    }

    /// As HTTP and IMDS write it.
    pub fn http(self) -> String {
        let form = time::macros::format_description!(
            "[weekday repr:short], [day] [month repr:short] [year] [hour]:[minute]:[second] GMT"
        );
        self.date().format(&form).unwrap()
    }

    pub fn seconds(self) -> u64 {
        self.0 / 1000
    }
}

/// How time passes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Pace {
    /// Only by `advance`.
    Still,
    /// By so much with each request to ARM, and by `advance`: who polls gets on, without waiting.
    PerRequest(Duration),
    /// So many times as fast as the host's; 1.0 is the host's own.
    Running(f64),
}

#[derive(Debug)]
pub(super) struct Clock {
    pace: Pace,
    began: Instant,
    first: Moment,
    skipped: Duration,
}

impl Clock {
    pub(super) fn new(pace: Pace) -> Self {
        let first = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        let first = Moment(u64::try_from(first.as_millis()).unwrap());
        Self { pace, began: Instant::now(), first, skipped: Duration::ZERO }
    }

    pub(super) fn now(&self) -> Moment {
        let run = match self.pace {
            Pace::Running(speed) => self.began.elapsed().mul_f64(speed),
            Pace::Still | Pace::PerRequest(_) => Duration::ZERO,
        };
        self.first.after(self.skipped + run)
    }

    pub(super) fn advance(&mut self, by: Duration) {
        self.skipped += by;
    }

    /// A request came.
    pub(super) fn asked(&mut self) {
        if let Pace::PerRequest(step) = self.pace {
            self.skipped += step;
        }
    }
}
