//! The profile of SQLite: a copy of the file and of what its log has more, inside one read transaction of SQLite's own.
//!
//! The one engine that is not captured from outside: a database is one file that changes in place, so only its own
//! locks can hold an instant. `begin` opens the database read-only and starts a read transaction, `finish` copies inside it: the
//! file's bytes, several times as fast as SQLite's online backup brings page after page, and over them the pages of the log
//! (see [`wal`]). Where the log is not as expected, the online backup does it. In WAL mode writers go on. In rollback mode their
//! commits wait, or fail where the application sets no busy timeout, for as long as the transaction lives: `sqlite_lock_timeout`
//! bounds that.
//!
//! Nothing of the database is changed: it is never checkpointed, a hot journal is never rolled back, and a write-ahead log is
//! never removed. SQLite itself makes an empty `-wal` and a `-shm` beside a WAL database that nobody has open; where they
//! would belong to another user than the database they would lock its application out, so that is refused.
//!
//! **Locks of a process.** Closing *any* handle of a database drops all locks that the process holds on it. So this process
//! must not read the file by other means while it is captured; [`OpenDatabases`] sees to that within this crate. And a process
//! must not capture a database that it has open itself: its own connections would lose their locks.

mod begin;
mod closed_copy;
mod error;
mod finish;
mod header;
mod lock_watch;
mod open_databases;
mod validate;
mod wal;

#[cfg(test)]
mod exchange_tests;
#[cfg(test)]
mod live_tests;

use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::Timestamp;
use rusqlite::Connection;

pub(crate) use begin::begin;
pub(crate) use finish::finish;
pub(crate) use open_databases::OpenDatabases;
pub(crate) use validate::validate;

use crate::CaptureError;
use crate::pin::FileMeta;
use crate::staging::Staging;
use header::Header;
use lock_watch::LockWatch;
use open_databases::OpenDatabase;
use wal::Wal;

/// The version of this profile.
const PROFILE: u32 = 1;

/// A capture between its two phases: the instant is fixed, nothing is copied yet.
#[derive(Debug)]
pub(crate) struct Transaction {
    /// As given, made absolute, links resolved.
    path: PathBuf,
    meta: FileMeta,
    header: Option<Header>,
    staging: Staging,
    instant: Timestamp,
    began: Duration,
    attempts: u32,
    state: State,
}

/// How the database is reached.
#[derive(Debug)]
enum State {
    /// Its file has no bytes: a database without tables. SQLite is never let near it, because it would delete a `-wal`.
    Empty,
    /// Held open with a read transaction. `bytes` is the same file, opened before the connection and closed after it.
    Reading { reader: Reader, wal: Option<Wal>, bytes: File, open: OpenDatabase },
    /// Nobody has it open and SQLite cannot open it where it is: database and log were copied, and the log was applied to the
    /// copy, which is this file.
    Copied(PathBuf),
}

/// Who holds the read transaction.
#[derive(Debug)]
enum Reader {
    /// A WAL database: it disturbs nobody.
    Free(Connection),
    /// Rollback mode: a watch ends the transaction when the time is over, whoever is late.
    Watched(LockWatch),
}

/// Whether `path` is an SQLite database: by its first bytes, or an empty file that has a log beside it.
pub(crate) fn recognise(path: &Path) -> Result<bool, CaptureError> {
    let meta = std::fs::metadata(path).map_err(CaptureError::io("read", path))?;
    if !meta.is_file() {
        return Ok(false);
    }
    if meta.len() == 0 {
        return Ok(beside(path, "-wal").exists() || beside(path, "-journal").exists());
    }
    if OpenDatabases::contains(&meta) {
        // Captured at this moment by this process: reading its first bytes would drop its locks.
        return Ok(true);
    }
    Ok(Header::read(path)?.is_ok())
}

/// A file that SQLite keeps beside a database.
fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}
