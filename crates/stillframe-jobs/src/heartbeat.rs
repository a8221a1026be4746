//! The thread that writes a running job's row.

use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

/// How often a running job says that it lives, and how stale its numbers in the history may be.
const INTERVAL: Duration = Duration::from_secs(1);

/// Calls a function once a second until it is stopped.
#[derive(Debug)]
pub(crate) struct Heartbeat {
    stop: Arc<Stop>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Stop {
    stopped: Mutex<bool>,
    changed: Condvar,
}

impl Heartbeat {
    /// Starts the thread. A machine that cannot start one gets a job without heartbeat, which is said in the log.
    pub(crate) fn start(beat: impl Fn() + Send + 'static) -> Self {
        let stop = Arc::new(Stop::default());
        let theirs = Arc::clone(&stop);
        let thread = std::thread::Builder::new().name("job-heartbeat".into()).spawn(move || {
            let lock = || theirs.stopped.lock().unwrap_or_else(PoisonError::into_inner);
            loop {
                // Looked at before waiting too: a job may end before its thread has begun.
                let waited = theirs.changed.wait_timeout_while(lock(), INTERVAL, |stopped| !*stopped);
                if *waited.unwrap_or_else(PoisonError::into_inner).0 {
                    return;
                }
                beat();
            }
        });
        if let Err(error) = &thread {
            tracing::warn!(%error, "a job runs without heartbeat");
        }
        Self { stop, thread: thread.ok() }
    }

    /// Stops it: when this returns, no beat is under way and none will come.
    pub(crate) fn stop(&mut self) {
        *self.stop.stopped.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.stop.changed.notify_all();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::warn!("the heartbeat of a job panicked");
        }
    }
}

impl Drop for Heartbeat {
    fn drop(&mut self) {
        self.stop();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use stillframe_storage::{Clock, SystemClock};

    #[test]
    fn stopping_does_not_wait_for_the_next_beat() {
        let clock = SystemClock::new();
        for _ in 0..200 {
            Heartbeat::start(|| ()).stop();
        }
        assert!(clock.monotonic() < INTERVAL * 20, "{:?} for 200", clock.monotonic());
    }
}
