//! What bounds a copy: time, the log's length, and whoever waits for it.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rusqlite::Connection;
use stillframe_storage::{Clock, SystemClock};
use tokio_util::sync::CancellationToken;

use super::super::{begin, finish};
use super::{PATIENCE, add_ballast, commit, make, source};
use crate::test_support::Surroundings;
use crate::{CaptureError, CaptureOptions, Context, Event};

/// A closed database that takes several steps to copy.
fn large(mode: &str) -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let db = dir.path().join("db");
    let connection = make(&db, mode, 4096);
    add_ballast(&connection, 20);
    (dir, db)
}

#[test]
fn a_log_that_grows_beyond_its_cap_ends_the_capture() {
    let (_dir, db) = large("wal");
    let options = CaptureOptions { sqlite_wal_cap: 1 << 20, ..CaptureOptions::default() };
    let around = Surroundings::default();
    let transaction = around.with(|context| begin(&source(&db), &options, PATIENCE, context)).unwrap();
    let writer = Connection::open(&db).unwrap();
    writer.execute_batch("INSERT INTO ballast VALUES(randomblob(3000000))").unwrap();
    match around.with(|context| finish(transaction, &options, context)) {
        Err(CaptureError::TooBusy { moved, .. }) => assert!(moved.contains("grew"), "{moved}"),
        other => panic!("{other:?}"),
    }
    // The transaction is over: the log can be reset.
    let busy: i64 = writer.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| row.get(0)).unwrap();
    assert_eq!(busy, 0);
}

/// The system's, until it is told that an hour has passed.
#[derive(Debug)]
struct Jumping(SystemClock, AtomicBool);

impl Clock for Jumping {
    fn now(&self) -> jiff::Timestamp {
        self.0.now()
    }

    fn monotonic(&self) -> Duration {
        let jump = u64::from(self.1.load(Ordering::Relaxed)) * 3600;
        self.0.monotonic() + Duration::from_secs(jump)
    }
}

#[test]
fn a_copy_that_keeps_an_application_waiting_for_too_long_lets_go() {
    let (_dir, db) = large("delete");
    let (clock, cancel) = (Jumping(SystemClock::new(), AtomicBool::new(false)), CancellationToken::new());
    let events = |event: Event| {
        if let Event::Copied { done, total } = event
            && done < total
        {
            clock.1.store(true, Ordering::Relaxed);
        }
    };
    let context = Context {
        clock: &clock,
        cancel: &cancel,
        events: &events,
        random_name: &|| "0123456789abcdef".into(),
    };
    let options = CaptureOptions::default();
    let transaction = begin(&source(&db), &options, PATIENCE, &context).unwrap();
    match finish(transaction, &options, &context) {
        Err(CaptureError::Locked { what, .. }) => assert!(what.contains("--sqlite-lock-timeout"), "{what}"),
        other => panic!("{other:?}"),
    }
    let writer = Connection::open(&db).unwrap();
    writer.busy_timeout(Duration::ZERO).unwrap();
    commit(&writer, 1).unwrap();
}

#[test]
fn a_cancelled_copy_leaves_nothing_and_no_lock() {
    let (dir, db) = large("delete");
    let options = CaptureOptions::default();
    let around = Surroundings::default();
    let transaction = around.with(|context| begin(&source(&db), &options, PATIENCE, context)).unwrap();
    around.cancel.cancel();
    let outcome = around.with(|context| finish(transaction, &options, context));
    assert!(matches!(outcome, Err(CaptureError::Cancelled)));
    let writer = Connection::open(&db).unwrap();
    writer.busy_timeout(Duration::ZERO).unwrap();
    commit(&writer, 1).unwrap();
    drop(writer);
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
}
