//! What time it is, and waiting; a value, so that tests wait for nothing.

use std::{future::Future, pin::Pin, time::Duration};
use time::OffsetDateTime;

pub trait Clock: Send + Sync {
    fn now(&self) -> OffsetDateTime;
    fn nap<'a>(&'a self, time: Duration) -> Pin<Box<dyn Future<Output = ()> + Send + 'a>>;
}

/// The machine's own.
pub struct Wall;

impl Clock for Wall {
    fn now(&self) -> OffsetDateTime {
        OffsetDateTime::now_utc()
    }

    fn nap<'a>(&'a self, time: Duration) -> Pin<Box<dyn Future<Output = ()> + Send + 'a>> {
        Box::pin(tokio::time::sleep(time))
    }
}
