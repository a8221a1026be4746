//! SQLite's answers, by what the user should do.

use std::path::Path;

use rusqlite::ErrorCode;
use rusqlite::ffi::{
    SQLITE_READONLY_CANTINIT, SQLITE_READONLY_CANTLOCK, SQLITE_READONLY_DIRECTORY, SQLITE_READONLY_RECOVERY,
    SQLITE_READONLY_ROLLBACK,
};

use crate::CaptureError;

/// What an answer means for the opening of a source.
#[derive(Debug)]
pub(super) enum Answer {
    /// Somebody holds a lock: try again.
    Busy,
    /// The log cannot be used where it is, because nothing can be written there.
    NotWritable,
    /// A writer died in a transaction. Another one, if there is one, rolls it back with its next access.
    HotJournal,
    /// Nothing to be done here.
    Error(CaptureError),
}

/// Sorts an answer.
pub(super) fn sort(path: &Path, error: rusqlite::Error) -> Answer {
    let Some(code) = error.sqlite_error() else { return Answer::Error(other(path, error)) };
    match (code.code, code.extended_code) {
        (ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked | ErrorCode::FileLockingProtocolFailed, _) => {
            Answer::Busy
        }
        (_, SQLITE_READONLY_ROLLBACK) => Answer::HotJournal,
        (
            _,
            SQLITE_READONLY_CANTINIT
            | SQLITE_READONLY_CANTLOCK
            | SQLITE_READONLY_DIRECTORY
            | SQLITE_READONLY_RECOVERY,
        )
        | (ErrorCode::ReadOnly | ErrorCode::CannotOpen, _) => Answer::NotWritable,
        (ErrorCode::NotADatabase, _) => Answer::Error(CaptureError::NotADatabase {
            path: path.to_owned(),
            engine: "sqlite",
            reason:
                "its first page cannot be read; an encrypted one (SQLCipher) or another format cannot be \
                     captured while it is open: stop its program and use files:"
                    .to_owned(),
        }),
        (ErrorCode::DatabaseCorrupt, _) => Answer::Error(CaptureError::Corrupt {
            path: path.to_owned(),
            what: format!("SQLite says: {error}"),
        }),
        (ErrorCode::DiskFull, _) => Answer::Error(CaptureError::NoSpace { path: path.to_owned() }),
        (ErrorCode::PermissionDenied | ErrorCode::AuthorizationForStatementDenied, _) => {
            Answer::Error(CaptureError::Permission {
                action: "read",
                path: path.to_owned(),
                hint: "; run as the owner or as root".to_owned(),
            })
        }
        _ => Answer::Error(other(path, error)),
    }
}

/// For `map_err` where no lock and no log can be in the way.
pub(super) fn failed(path: &Path) -> impl FnOnce(rusqlite::Error) -> CaptureError {
    move |error| match sort(path, error) {
        Answer::Error(error) => error,
        Answer::Busy => locked(path),
        Answer::HotJournal => hot_journal(path),
        Answer::NotWritable => {
            CaptureError::Permission { action: "open", path: path.to_owned(), hint: String::new() }
        }
    }
}

/// Only the application may roll back.
pub(super) fn hot_journal(path: &Path) -> CaptureError {
    CaptureError::RecoveryNeeded {
        path: path.to_owned(),
        what: "a writer died in the middle of a transaction and left a hot journal; start and stop the application \
               once, it rolls the transaction back"
            .to_owned(),
    }
}

/// Nobody got in for a long time.
pub(super) fn locked(path: &Path) -> CaptureError {
    CaptureError::Locked {
        path: path.to_owned(),
        what: "a writer holds it without a pause, or its application uses locking_mode=EXCLUSIVE, which leaves no \
               way in; capture it when the application is stopped"
            .to_owned(),
    }
}

fn other(path: &Path, error: rusqlite::Error) -> CaptureError {
    CaptureError::Io { action: "read", path: path.to_owned(), source: std::io::Error::other(error) }
}
