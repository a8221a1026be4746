//! Ends the read transaction of a rollback-mode database when the time is over.

use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::Duration;

use rusqlite::Connection;

/// A connection whose read transaction holds up the application's commits. A thread ends the transaction after a time,
/// however long the captures of other sources take in between.
#[derive(Debug)]
pub(super) struct LockWatch {
    /// `None`: the time is over, and the database is let go.
    connection: Arc<Mutex<Option<Connection>>>,
    thread: Option<(Sender<()>, JoinHandle<()>)>,
}

impl LockWatch {
    /// Starts the watch; the transaction has begun.
    pub(super) fn start(connection: Connection, timeout: Duration) -> Self {
        let connection = Arc::new(Mutex::new(Some(connection)));
        let (stop, stopped) = channel();
        let thread = std::thread::spawn({
            let connection = connection.clone();
            move || {
                if stopped.recv_timeout(timeout) == Err(RecvTimeoutError::Timeout) {
                    // While pages are copied the copier holds this, and looks at the time itself.
                    drop(lock(&connection).take());
                }
            }
        });
        Self { connection, thread: Some((stop, thread)) }
    }

    /// Stops the watch and hands out the connection; `None` if the time was over.
    pub(super) fn stop(mut self) -> Option<Connection> {
        self.join();
        lock(&self.connection).take()
    }

    fn join(&mut self) {
        if let Some((stop, thread)) = self.thread.take() {
            drop(stop);
            thread.join().expect("the watch does not panic");
        }
    }
}

impl Drop for LockWatch {
    fn drop(&mut self) {
        self.join();
    }
}

fn lock(connection: &Mutex<Option<Connection>>) -> MutexGuard<'_, Option<Connection>> {
    connection.lock().expect("no code panics while it holds this lock")
}
