//! Checks an image as it lies, without opening it with its engine (which would change it).

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use tokio_util::sync::CancellationToken;

use crate::snapshot::{FileKind, SNAPSHOT_FILE, Snapshot};
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
/// SQLite `path` is the directory that holds the database file, or the file itself. `cancel` ends it early.
pub fn validate(
    engine: Engine,
    path: &Path,
    cancel: &CancellationToken,
) -> Result<ValidationReport, CaptureError> {
    match engine {
        Engine::RocksDb => rocksdb::validate(path, cancel),
        Engine::Fjall => fjall::validate(path, cancel),
        Engine::Sqlite => sqlite::validate(path, cancel),
        Engine::Files => files::validate(path),
    }
}

/// Checks a kept image by its description: everything that was captured is there, of its kind and size, and as [`validate`] wants it.
///
/// Once its engine has opened it, a database is no longer the image that was taken: logs go, tables come. [`validate`] checks it as it is.
pub fn validate_image(
    snapshot: &Snapshot,
    dir: &Path,
    cancel: &CancellationToken,
) -> Result<ValidationReport, CaptureError> {
    let mut report = ValidationReport::default();
    let mut seen = BTreeSet::new();
    let is_empty =
        |snapshot: &Snapshot| !snapshot.files.iter().any(|entry| matches!(entry.kind, FileKind::File));
    if snapshot.engine != Engine::Files && is_empty(snapshot) {
        let what = "it lists no file, and every database has some".to_owned();
        return Err(CaptureError::Corrupt { path: dir.join(SNAPSHOT_FILE), what });
    }
    for entry in &snapshot.files {
        if !seen.insert(&entry.path) {
            let what = format!("it lists {} twice", entry.path);
            return Err(CaptureError::Corrupt { path: dir.join(SNAPSHOT_FILE), what });
        }
        let path = entry.path.below(dir);
        let meta = match std::fs::symlink_metadata(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
            other => Some(other.map_err(CaptureError::io("read", &path))?),
        };
        let is_a_file = meta.as_ref().is_some_and(std::fs::Metadata::is_file);
        let what = match (&entry.kind, meta) {
            (_, None) => "it is missing".to_owned(),
            (FileKind::File, Some(meta)) if is_a_file && meta.len() == entry.size => {
                report.files += 1;
                report.bytes += entry.size;
                continue;
            }
            (FileKind::File, Some(meta)) if is_a_file => {
                format!("it has {} bytes and should have {}", meta.len(), entry.size)
            }
            (FileKind::Directory, Some(meta)) if meta.is_dir() => continue,
            (FileKind::Symlink { target }, _)
                if std::fs::read_link(&path).is_ok_and(|found| found == *target) =>
            {
                continue;
            }
            _ => "it is not of the kind that was captured, or points elsewhere".to_owned(),
        };
        return Err(CaptureError::Corrupt { path, what });
    }
    report.remarks.extend(remark_on_strangers(snapshot, dir)?);
    // Of plain files there is no more to be asked.
    if snapshot.engine != Engine::Files {
        report.remarks.extend(validate(snapshot.engine, dir, cancel)?.remarks);
    }
    Ok(report)
}

/// An engine takes what it finds: a log that was not captured would be replayed.
fn remark_on_strangers(snapshot: &Snapshot, dir: &Path) -> Result<Option<String>, CaptureError> {
    let captured: BTreeSet<PathBuf> = snapshot.files.iter().map(|entry| entry.path.below(dir)).collect();
    let mut strangers = Vec::new();
    let description = dir.join(SNAPSHOT_FILE);
    let mut left = vec![dir.to_owned()];
    while let Some(below) = left.pop() {
        for entry in std::fs::read_dir(&below).map_err(CaptureError::io("list", &below))? {
            let entry = entry.map_err(CaptureError::io("list", &below))?;
            let path = entry.path();
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                left.push(path);
            } else if !captured.contains(&path) && path != description {
                strangers.push(path);
            }
        }
    }
    strangers.sort_unstable();
    let more = strangers.len().saturating_sub(1);
    Ok(strangers.first().map(|first| match more {
        0 => format!("{} was not captured, and lies in the image", first.display()),
        more => format!("{} was not captured, and lies in the image, as do {more} more", first.display()),
    }))
}
