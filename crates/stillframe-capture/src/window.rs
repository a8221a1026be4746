//! The loop that looks for a still moment.

use std::path::Path;
use std::time::Duration;

use jiff::Timestamp;

use crate::{CaptureError, Context, Event};

/// What one attempt found.
pub(crate) enum Attempt<T> {
    /// The pointers stood still, and everything they need is pinned.
    Accepted(T),
    /// Something moved: what, for people. What is still good is kept by the profile.
    Moved(String),
}

/// An accepted attempt.
pub(crate) struct Still<T> {
    pub(crate) value: T,
    pub(crate) attempts: u32,
    /// Wall-clock time when the accepted attempt began.
    pub(crate) instant: Timestamp,
    /// How long the accepted attempt took.
    pub(crate) window: Duration,
}

/// Calls `attempt` until it accepts, fails or the deadline passes. `deadline` is a span from now.
///
/// The first attempts follow each other at once, since pins that were kept make each faster than the one before; later
/// ones wait a little (at most 50 ms), to meet another phase of a source that moves in rhythm.
pub(crate) fn until_still<T>(
    path: &Path,
    deadline: Duration,
    context: &Context<'_>,
    mut attempt: impl FnMut() -> Result<Attempt<T>, CaptureError>,
) -> Result<Still<T>, CaptureError> {
    let began = context.clock.monotonic();
    let mut attempts = 0;
    loop {
        context.check_cancelled()?;
        attempts += 1;
        let instant = context.clock.now();
        let from = context.clock.monotonic();
        let moved = match attempt()? {
            Attempt::Accepted(value) => {
                let window = context.clock.monotonic().saturating_sub(from);
                tracing::debug!(path = %path.display(), attempts, ?window, "it stood still");
                return Ok(Still { value, attempts, instant, window });
            }
            Attempt::Moved(moved) => moved,
        };
        let waited = context.clock.monotonic().saturating_sub(began);
        tracing::debug!(path = %path.display(), attempt = attempts, moved, "it moved");
        (context.events)(Event::Moved { attempt: attempts, what: moved.clone() });
        if waited >= deadline {
            return Err(CaptureError::TooBusy { path: path.to_owned(), moved, attempts, waited });
        }
        if attempts > 8 {
            std::thread::sleep(Duration::from_millis(u64::from(attempts % 16) * 3));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use stillframe_storage::Clock;
    use tokio_util::sync::CancellationToken;

    use super::*;

    /// Ten milliseconds pass between two looks.
    #[derive(Debug, Default)]
    struct Ticking(AtomicU64);

    impl Clock for Ticking {
        fn now(&self) -> Timestamp {
            Timestamp::UNIX_EPOCH
        }

        fn monotonic(&self) -> Duration {
            Duration::from_millis(10 * self.0.fetch_add(1, Ordering::Relaxed))
        }
    }

    #[test]
    fn it_ends_with_the_first_vain_attempt_behind_the_deadline() {
        for deadline in [0, 95, 400] {
            let deadline = Duration::from_millis(deadline);
            let (clock, cancel) = (Ticking::default(), CancellationToken::new());
            let context =
                Context { clock: &clock, cancel: &cancel, events: &|_| {}, random_name: &String::new };
            let outcome = until_still(Path::new("/db"), deadline, &context, || {
                Ok(Attempt::<()>::Moved("a pointer".to_owned()))
            });
            match outcome {
                Err(CaptureError::TooBusy { waited, moved, .. }) => {
                    assert_eq!(moved, "a pointer");
                    let late = waited.checked_sub(deadline).expect("it waited as long as it was told");
                    assert!(late <= Duration::from_millis(30), "{waited:?} of {deadline:?}");
                }
                other => panic!("{:?}", other.map(|_| ())),
            }
        }
    }
}
