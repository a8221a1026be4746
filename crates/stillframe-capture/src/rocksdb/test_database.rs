//! Made-up databases, written as the engines write them; for tests.

use std::path::{Path, PathBuf};

use tokio_util::sync::CancellationToken;

use super::log_format::writer::append;
use super::manifest_writer::{EditBytes, manifest};
use super::sabotage::Sabotage;
use super::table_identity::writer::opaque_table;
use super::{capture_with, validate};
use crate::test_support::Surroundings;
use crate::{
    CaptureError, CaptureOptions, Context, Engine, Event, Image, Snapshot, Source, ValidationReport,
};

/// A directory with a database in it, and room for more beside it.
pub(crate) struct TestDatabase {
    pub(crate) root: tempfile::TempDir,
    edits: Vec<EditBytes>,
    pub(crate) surroundings: Surroundings,
}

impl TestDatabase {
    /// A RocksDB with one log, table 10, and an OPTIONS file; closed.
    pub(crate) fn new() -> Self {
        let database = Self::bare();
        database.write("OPTIONS-000007", b"[Version]\n  rocksdb_version=9.9.9\n[DBOptions]\n");
        database.write("IDENTITY", b"made-up-id");
        database
    }

    /// The same without what only RocksDB has.
    pub(crate) fn bare() -> Self {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir(root.path().join("db")).unwrap();
        let mut database = Self { root, edits: Vec::new(), surroundings: Surroundings::default() };
        database.edit(|e| {
            e.string_field(1, b"leveldb.BytewiseComparator").number(2, 20).number(3, 30).number(4, 100);
        });
        database.edit(|e| {
            e.table_2(0, 10, 1000);
        });
        database.write("000010.sst", &opaque_table(10, 1000));
        database.write_log("000020.log", None, 3);
        database.write("LOCK", b"");
        database.write_diary(&database.dir());
        database
    }

    pub(crate) fn dir(&self) -> PathBuf {
        self.root.path().join("db")
    }

    /// A directory beside the database.
    pub(crate) fn beside(&self, name: &str) -> PathBuf {
        let dir = self.root.path().join(name);
        std::fs::create_dir_all(&dir).unwrap();
        dir
    }

    /// Writes a file of the database. `../name/file` is beside it.
    pub(crate) fn write(&self, name: &str, bytes: &[u8]) {
        std::fs::write(self.dir().join(name), bytes).unwrap();
    }

    pub(crate) fn remove(&self, name: &str) {
        std::fs::remove_file(self.dir().join(name)).unwrap();
    }

    /// Adds to the MANIFEST.
    pub(crate) fn edit(&mut self, build: impl FnOnce(&mut EditBytes)) {
        let mut edit = EditBytes::default();
        build(&mut edit);
        self.edits.push(edit);
        self.write("MANIFEST-000005", &manifest(&self.edits));
        self.write("CURRENT", b"MANIFEST-000005\n");
    }

    /// A log of `count` records of 5000 bytes each.
    pub(crate) fn write_log(&self, name: &str, number: Option<u32>, count: u8) {
        let mut log = Vec::new();
        (0..count).for_each(|n| append(&mut log, &[n; 5000], number));
        self.write(name, &log);
    }

    /// What the engine notes when it opens the database as `place`.
    pub(crate) fn write_diary(&self, place: &Path) {
        let line = format!("x 1 SST files in {} dir, Total Num: 1, files: 000010.sst \n", place.display());
        self.write("LOG", line.as_bytes());
    }

    pub(crate) fn read(&self, name: &str) -> Vec<u8> {
        std::fs::read(self.dir().join(name)).unwrap()
    }

    pub(crate) fn capture(&self) -> Result<Image, CaptureError> {
        self.capture_with(&CaptureOptions::default(), Sabotage::None)
    }

    pub(crate) fn capture_with(
        &self,
        options: &CaptureOptions,
        sabotage: Sabotage,
    ) -> Result<Image, CaptureError> {
        let source = Source { engine: Engine::RocksDb, path: self.dir() };
        self.surroundings.with(|context| capture_with(&source, options, context, sabotage))
    }

    /// Captures while an engine is at work: `meanwhile` is called at each event, in the middle of the capture.
    pub(crate) fn capture_while(&self, meanwhile: impl Fn(&Event)) -> Result<Image, CaptureError> {
        let source = Source { engine: Engine::RocksDb, path: self.dir() };
        self.surroundings.with(|context| {
            let events = |event| {
                meanwhile(&event);
                (context.events)(event);
            };
            let context = Context { events: &events, ..*context };
            capture_with(&source, &CaptureOptions::default(), &context, Sabotage::None)
        })
    }

    /// Captures into the directory `name` beside the database.
    pub(crate) fn keep(&self, image: Image, name: &str) -> (PathBuf, Snapshot, ValidationReport) {
        let target = self.root.path().join(name);
        let snapshot = self.surroundings.with(|context| image.keep(&target, context)).unwrap();
        let report = validate(&target, &CancellationToken::new()).unwrap();
        (target, snapshot, report)
    }
}

/// The names in a directory, sorted.
pub(crate) fn names(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).unwrap();
    let mut names: Vec<String> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort_unstable();
    names
}
