//! Checks an image as it lies, without opening it with its engine (which would change it).

use std::path::Path;

use crate::{CaptureError, Engine, files, fjall, rocksdb, sqlite};

/// What was looked at in a sound image.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ValidationReport {
    /// Files that the engine would read.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Remarks, one sentence each: sound, but worth knowing.
    pub remarks: Vec<String>,
}

/// Checks that everything the engine would need is there and fits: an error names the file and what is wrong with it. For
/// SQLite `path` is the directory that holds the database file, or the file itself.
pub fn validate(engine: Engine, path: &Path) -> Result<ValidationReport, CaptureError> {
    match engine {
        Engine::RocksDb => rocksdb::validate(path),
        Engine::Fjall => fjall::validate(path),
        Engine::Sqlite => sqlite::validate(path),
        Engine::Files => files::validate(path),
    }
}
