//! A small database with everything in it, and short ways to capture it.

use std::path::Path;
use std::time::Duration;

use fjall::{Database, KeyspaceCreateOptions, KvSeparationOptions, Readable};
use stillframe_storage::{Clock, SystemClock};

use super::capture_with;
use super::sabotage::Sabotage;
use crate::test_support::{Surroundings, inventory};
use crate::{CaptureError, CaptureOptions, Engine, Image, Snapshot, Source};

pub(super) fn source(path: &Path) -> Source {
    Source { engine: Engine::Fjall, path: path.to_owned() }
}

pub(super) fn capture_sabotaged(path: &Path, sabotage: Sabotage) -> Result<Image, CaptureError> {
    let around = Surroundings::default();
    around.with(|context| capture_with(&source(path), &CaptureOptions::default(), context, sabotage))
}

pub(super) fn capture(path: &Path) -> Result<Image, CaptureError> {
    capture_sabotaged(path, Sabotage::None)
}

pub(super) fn keep(image: Image, target: &Path) -> Snapshot {
    Surroundings::default().with(|context| image.keep(target, context)).unwrap()
}

pub(super) fn value(n: u64, keyspace: &str, length: usize) -> Vec<u8> {
    let mut bytes = format!("{keyspace}{n}").into_bytes();
    // Not compressible, a function of n: an xorshift.
    let mut x = n.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    while bytes.len() < length {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        bytes.extend(x.to_le_bytes());
    }
    bytes
}

/// A closed database with tables, blobs, an ingested table and rows in its journal.
pub(super) fn sample(path: &Path) -> Database {
    let db = Database::builder(path).open().unwrap();
    let separated =
        || KeyspaceCreateOptions::default().with_kv_separation(Some(KvSeparationOptions::default()));
    let plain = db.keyspace("plain", KeyspaceCreateOptions::default).unwrap();
    let big = db.keyspace("big", separated).unwrap();
    for n in 0..200_u64 {
        plain.insert(n.to_be_bytes(), value(n, "plain", 50)).unwrap();
        big.insert(n.to_be_bytes(), value(n, "big", 3000)).unwrap();
    }
    plain.rotate_memtable_and_wait().unwrap();
    big.rotate_memtable_and_wait().unwrap();
    let mut ingestion = plain.start_ingestion().unwrap();
    for n in 1000..1100_u64 {
        ingestion.write(n.to_be_bytes(), value(n, "plain", 50)).unwrap();
    }
    ingestion.finish().unwrap();
    for n in 200..300_u64 {
        plain.insert(n.to_be_bytes(), value(n, "plain", 50)).unwrap();
    }
    // Compactions of the engine's own go on for a moment.
    let clock = SystemClock::new();
    let mut still_since = clock.monotonic();
    let mut before = inventory(path);
    while clock.monotonic().saturating_sub(still_since) < Duration::from_millis(300) {
        std::thread::sleep(Duration::from_millis(30));
        let now = inventory(path);
        if now != before {
            (before, still_since) = (now, clock.monotonic());
        }
    }
    db
}

pub(super) fn assert_sample(path: &Path) {
    let db = Database::builder(path).open().unwrap();
    let plain = db.keyspace("plain", KeyspaceCreateOptions::default).unwrap();
    let big = db.keyspace("big", KeyspaceCreateOptions::default).unwrap();
    assert_eq!((plain.len().unwrap(), big.len().unwrap()), (400, 200));
    for n in (0..300_u64).chain(1000..1100) {
        assert_eq!(*plain.get(n.to_be_bytes()).unwrap().unwrap(), *value(n, "plain", 50));
    }
    for n in 0..200_u64 {
        assert_eq!(*big.get(n.to_be_bytes()).unwrap().unwrap(), *value(n, "big", 3000));
    }
    assert_eq!(db.snapshot().iter(&plain).count(), 400, "snapshots see it too");
}
