//! Databases that become other ones while they are captured, and what their files lack.

use std::cell::Cell;
use std::path::Path;
use std::time::Duration;

use rusqlite::Connection;

use super::begin;
use crate::test_support::Surroundings;
use crate::{CaptureError, CaptureOptions, Context, Engine, Event, Source};

const PATIENCE: Duration = Duration::from_secs(15);

fn make(path: &Path, rows: u32) -> Connection {
    let connection = Connection::open(path).unwrap();
    connection.execute_batch("PRAGMA synchronous=off; CREATE TABLE t(v); BEGIN").unwrap();
    (0..rows).for_each(|n| assert_eq!(connection.execute("INSERT INTO t VALUES(?1)", [n]).unwrap(), 1));
    connection.execute_batch("COMMIT").unwrap();
    connection
}

/// A transaction of the new file says nothing of the bytes of the old one.
#[test]
fn a_database_that_is_exchanged_while_a_writer_keeps_us_waiting_is_not_captured() {
    let dir = tempfile::tempdir().unwrap();
    let (db, other) = (dir.path().join("db"), dir.path().join("other"));
    drop(make(&other, 20_000));
    let writer = make(&db, 10);
    writer.execute_batch("BEGIN EXCLUSIVE").unwrap();
    let exchanged = Cell::new(false);
    let outcome = Surroundings::default().with(|context| {
        let events = |event| {
            if matches!(event, Event::Moved { .. }) && !exchanged.replace(true) {
                std::fs::rename(&other, &db).unwrap();
            }
        };
        let source = Source { engine: Engine::Sqlite, path: db.clone() };
        let context = Context { events: &events, ..*context };
        begin(&source, &CaptureOptions::default(), PATIENCE, &context).map(|_| ())
    });
    assert!(exchanged.get(), "nothing was tested");
    assert!(matches!(outcome, Err(CaptureError::Vanished { .. })), "{outcome:?}");
}
