//! Time as a parameter.

use std::time::Duration;

use jiff::Timestamp;

/// Where the time comes from. Everything that asks for the time takes one of these, so that a test owns the clock.
pub trait Clock: Send + Sync + std::fmt::Debug {
    /// Wall-clock time: for people and for records, never for safety (clocks are hours off on real machines).
    fn now(&self) -> Timestamp;

    /// Time since some fixed moment; never goes back. For deadlines and durations.
    fn monotonic(&self) -> Duration;
}

/// The clock of the operating system.
#[derive(Debug, Clone, Copy)]
pub struct SystemClock {
    origin: std::time::Instant,
}

impl SystemClock {
    /// A clock whose monotonic origin is now.
    #[expect(clippy::disallowed_methods, reason = "the one place where the system's clock is read")]
    pub fn new() -> Self {
        Self { origin: std::time::Instant::now() }
    }
}

impl Default for SystemClock {
    fn default() -> Self {
        Self::new()
    }
}

impl Clock for SystemClock {
    #[expect(clippy::disallowed_methods, reason = "the one place where the system's clock is read")]
    fn now(&self) -> Timestamp {
        Timestamp::now()
    }

    fn monotonic(&self) -> Duration {
        self.origin.elapsed()
    }
}
