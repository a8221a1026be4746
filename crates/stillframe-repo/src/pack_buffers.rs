//! The few large buffers in which packs are built and travel: a bound on memory, and the same pages again and again.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// How often a thread that waits for its turn looks whether it should stop.
const STOP_CHECK: Duration = Duration::from_millis(50);

/// So many packs at a time.
#[derive(Debug)]
pub(crate) struct PackBuffers {
    count: usize,
    capacity: usize,
    state: Mutex<State>,
    returned: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// Turns that are taken.
    taken: usize,
    /// Buffers to be used again.
    free: Vec<Vec<u8>>,
}

/// The right to hold a pack in memory; ends when it is dropped.
#[derive(Debug)]
pub(crate) struct Turn {
    home: Arc<PackBuffers>,
}

/// A buffer that is used again when it is dropped. It may live longer than the turn that it came with: a store in memory
/// keeps what it is given.
#[derive(Debug)]
pub(crate) struct PackBuffer {
    pub(crate) bytes: Vec<u8>,
    home: Arc<PackBuffers>,
}

impl PackBuffers {
    pub(crate) fn new(count: usize, capacity: usize) -> Arc<Self> {
        Arc::new(Self { count, capacity, state: Mutex::default(), returned: Condvar::new() })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing in here is half done when a thread panics.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A turn and an empty buffer; blocks until it is one's turn. `None`: `stop` said so.
    pub(crate) fn lend(self: &Arc<Self>, stop: impl Fn() -> bool) -> Option<(Turn, PackBuffer)> {
        let mut state = self.state();
        while !stop() {
            if state.taken < self.count {
                state.taken += 1;
                let bytes = state.free.pop().unwrap_or_else(|| Vec::with_capacity(self.capacity));
                let home = Arc::clone(self);
                return Some((Turn { home: Arc::clone(self) }, PackBuffer { bytes, home }));
            }
            state = self.returned.wait_timeout(state, STOP_CHECK).unwrap_or_else(PoisonError::into_inner).0;
        }
        None
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.home.state().taken -= 1;
        self.home.returned.notify_one();
    }
}

impl AsRef<[u8]> for PackBuffer {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for PackBuffer {
    fn drop(&mut self) {
        let mut bytes = std::mem::take(&mut self.bytes);
        let mut state = self.home.state();
        if state.free.len() < self.home.count {
            bytes.clear();
            state.free.push(bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_turns_are_given_than_there_are_and_buffers_come_back_empty() {
        let buffers = PackBuffers::new(2, 100);
        let (turn, mut buffer) = buffers.lend(|| false).unwrap();
        buffer.bytes.extend_from_slice(b"x");
        let _second = buffers.lend(|| false).unwrap();
        assert!(buffers.lend(|| true).is_none());
        let waiting = {
            let buffers = Arc::clone(&buffers);
            std::thread::spawn(move || buffers.lend(|| false).unwrap().1.bytes.len())
        };
        drop(buffer);
        drop(turn);
        assert_eq!(waiting.join().unwrap(), 0);
    }

    #[test]
    fn a_store_that_keeps_the_buffers_stops_nobody() {
        let buffers = PackBuffers::new(2, 100);
        let kept: Vec<PackBuffer> = (0..10).map(|_| buffers.lend(|| false).unwrap().1).collect();
        assert_eq!(kept.len(), 10);
    }
}
