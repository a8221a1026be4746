//! A limit on bytes per second that several tasks share.

use std::sync::Mutex;
use std::time::Duration;

use crate::Clock;

/// A token bucket: over any span of time no more than the rate times the span, plus one second's worth, gets through.
/// The caller asks before it sends and sleeps for as long as it is told.
#[derive(Debug)]
pub struct BandwidthLimit {
    bytes_per_second: u64,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// Bytes that may be sent now; negative while somebody is paying for a large one.
    tokens: f64,
    refilled: Option<Duration>,
}

impl BandwidthLimit {
    /// `bytes_per_second` must not be zero.
    pub fn new(bytes_per_second: u64) -> Self {
        assert!(bytes_per_second > 0, "a limit of zero would stop for ever");
        Self { bytes_per_second, state: Mutex::new(State { tokens: 0.0, refilled: None }) }
    }

    /// Takes `bytes` from the bucket and says how long to wait before sending them.
    #[expect(clippy::cast_precision_loss, reason = "a rate need not be exact to the byte")]
    pub fn reserve(&self, bytes: u64, clock: &dyn Clock) -> Duration {
        let rate = self.bytes_per_second as f64;
        let now = clock.monotonic();
        let mut state = self.state.lock().expect("no code panics while it holds this lock");
        let idle = now.saturating_sub(state.refilled.unwrap_or(now));
        state.refilled = Some(now);
        state.tokens = (state.tokens + idle.as_secs_f64() * rate).min(rate) - bytes as f64;
        if state.tokens >= 0.0 { Duration::ZERO } else { Duration::from_secs_f64(-state.tokens / rate) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use jiff::Timestamp;

    #[derive(Debug)]
    struct Manual(Mutex<Duration>);

    impl Clock for Manual {
        fn now(&self) -> Timestamp {
            Timestamp::UNIX_EPOCH
        }
        fn monotonic(&self) -> Duration {
            *self.0.lock().unwrap()
        }
    }

    #[test]
    fn a_minute_of_sending_keeps_to_the_rate() {
        let clock = Manual(Mutex::new(Duration::ZERO));
        let limit = BandwidthLimit::new(1_000_000);
        let mut sent = 0_u64;
        while clock.monotonic() < Duration::from_mins(1) {
            let wait = limit.reserve(300_000, &clock);
            *clock.0.lock().unwrap() += wait;
            sent += 300_000;
        }
        assert!((59_000_000..=61_000_000).contains(&sent), "{sent} bytes in 60 s");
    }
}
