//! A WAL database that nobody has open, where SQLite can make no index beside it: a folder or file system that is not writable.

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::staging::Staging;
use crate::{CaptureError, CaptureOptions, Context};

use super::begin::open_own;
use super::beside;
use super::error::failed;

/// A file that was written within this time may be written again without a visible change of its times.
const SETTLED: i64 = 2;
const PAUSE: Duration = Duration::from_millis(100);

/// What tells that a file was not touched.
#[derive(Debug, PartialEq, Eq)]
struct Untouched {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Untouched {
    fn of(path: &Path) -> Result<Option<Self>, CaptureError> {
        match std::fs::metadata(path) {
            Ok(meta) => Ok(Some(Self::from(&meta))),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(CaptureError::from_io("read", path, error)),
        }
    }
}

impl From<&Metadata> for Untouched {
    fn from(meta: &Metadata) -> Self {
        Self {
            device: meta.dev(),
            inode: meta.ino(),
            size: meta.size(),
            modified: (meta.mtime(), meta.mtime_nsec()),
            changed: (meta.ctime(), meta.ctime_nsec()),
        }
    }
}

/// Copies database and log into staging, and applies the log to the copy. Only if neither changed while they were copied, and no
/// rollback journal is there.
pub(super) fn copy_closed(
    path: &Path,
    staging: &Staging,
    options: &CaptureOptions,
    context: &Context<'_>,
) -> Result<PathBuf, CaptureError> {
    if std::fs::metadata(beside(path, "-journal")).is_ok_and(|meta| meta.len() > 0) {
        return Err(CaptureError::RecoveryNeeded {
            path: path.to_owned(),
            what:
                "a rollback journal lies beside it and it cannot be opened where it is; start and stop the \
                   application once"
                    .to_owned(),
        });
    }
    let scratch = staging.scratch_dir("sqlite")?;
    let copy = scratch.join("database");
    let deadline = context.clock.monotonic() + options.deadline;
    loop {
        if context.cancel.is_cancelled() {
            return Err(CaptureError::Cancelled);
        }
        if try_copy(path, &copy, context)? {
            break;
        }
        if context.clock.monotonic() >= deadline {
            return Err(CaptureError::Locked {
                path: path.to_owned(),
                what: "it is written to, and SQLite cannot read it where it is because its folder is not writable; \
                       run as its owner or as root"
                    .to_owned(),
            });
        }
        std::thread::sleep(PAUSE);
    }
    // Opened as its application would open it after a crash; the log is applied and removed.
    let connection = open_own(&copy)?;
    connection
        .query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| row.get::<_, i64>(0))
        .map_err(failed(path))
        .and_then(|busy| if busy == 0 { Ok(()) } else { Err(super::error::locked(path)) })?;
    connection.close().map_err(|(_, error)| failed(path)(error))?;
    Ok(copy)
}

fn try_copy(path: &Path, copy: &Path, context: &Context<'_>) -> Result<bool, CaptureError> {
    let wal = beside(path, "-wal");
    let look = || Ok::<_, CaptureError>((Untouched::of(path)?, Untouched::of(&wal)?));
    let before = look()?;
    let now = context.clock.now().as_second();
    let settled = |file: &Option<Untouched>| {
        file.as_ref().is_none_or(|file| file.modified.0.max(file.changed.0) + SETTLED <= now)
    };
    if before.0.is_none() {
        return Err(CaptureError::Vanished { path: path.to_owned() });
    }
    if !settled(&before.0) || !settled(&before.1) {
        return Ok(false);
    }
    for (from, to) in [(path, copy.to_owned()), (&wal, beside(copy, "-wal"))] {
        let _ = std::fs::remove_file(&to);
        let Some(file) = Untouched::of(from)? else { continue };
        let source = std::fs::File::open(from).map_err(CaptureError::io("open", from))?;
        match crate::image::copy_file(&source, file.size, from, &to) {
            Ok(()) => {}
            // Cut while it was copied.
            Err(CaptureError::Corrupt { .. }) => return Ok(false),
            Err(error) => return Err(error),
        }
    }
    Ok(look()? == before)
}
