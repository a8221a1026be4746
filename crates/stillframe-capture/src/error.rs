//! What can go wrong in a capture, by what the caller should do about it.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Why there is no image. Whatever the case: the source is as it was and nothing of ours is left beside it.
#[derive(Debug, thiserror::Error)]
pub enum CaptureError {
    /// Fix the path or the engine's name.
    #[error("{path} is not a {engine} database: {reason}")]
    NotADatabase {
        /// What was given.
        path: PathBuf,
        /// What it was taken for.
        engine: &'static str,
        /// What is missing or different.
        reason: String,
    },
    /// Written by an engine, or in a format, that this version does not know. Do not trust a copy made in another way.
    #[error("{path}: unknown format: {what}")]
    UnknownFormat {
        /// The file.
        path: PathBuf,
        /// What was met.
        what: String,
    },
    /// Known, and known not to be capturable from outside.
    #[error("{path}: refused: {what}")]
    Refused {
        /// Where it was seen.
        path: PathBuf,
        /// What it is and what to do instead.
        what: String,
    },
    /// The directory does not say where all of its files are. Say it with the flag.
    #[error("{path}: {why}; give it with {flag}")]
    NeedsFlag {
        /// The source.
        path: PathBuf,
        /// The option that is wanted, as on the command line.
        flag: &'static str,
        /// What is missing.
        why: String,
    },
    /// Pointers moved during every attempt. Try when it is quieter, or with a longer deadline.
    #[error(
        "{path} is too busy: no still moment in {attempts} attempts over {:.1} s; last moved: {moved}",
        .waited.as_secs_f64()
    )]
    TooBusy {
        /// The source.
        path: PathBuf,
        /// What moved last.
        moved: String,
        /// How often it was tried.
        attempts: u32,
        /// For how long.
        waited: Duration,
    },
    /// A file that the source itself calls live is damaged. Repair or restore the source.
    #[error("{path} is damaged: {what}")]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// How it shows.
        what: String,
    },
    /// Somebody holds a lock that leaves no way in.
    #[error("{path} is locked: {what}")]
    Locked {
        /// The database.
        path: PathBuf,
        /// By what, and what to do.
        what: String,
    },
    /// The owner crashed and only its own program may repair the database. Start and stop it once.
    #[error("{path} needs recovery by its own application: {what}")]
    RecoveryNeeded {
        /// The database.
        path: PathBuf,
        /// What was found.
        what: String,
    },
    /// The source went away while it was read.
    #[error("{path} vanished during the capture")]
    Vanished {
        /// What is gone.
        path: PathBuf,
    },
    /// Run as the owner or as root, or choose another staging directory.
    #[error("cannot {action} {path}: permission denied{hint}")]
    Permission {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// What to do, beginning with "; ", or nothing.
        hint: String,
    },
    /// Make room, or stage elsewhere.
    #[error("no space left while writing {path}; make room or choose another place with --staging")]
    NoSpace {
        /// What was being written.
        path: PathBuf,
    },
    /// The target of a kept image is taken.
    #[error("{0} already exists and is not an empty directory")]
    Occupied(PathBuf),
    /// The caller cancelled.
    #[error("cancelled")]
    Cancelled,
    /// Anything else the operating system said.
    #[error("cannot {action} {path}: {source}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// What it said.
        source: io::Error,
    },
}

impl CaptureError {
    /// Sorts an error of the operating system into the case that tells the caller what to do.
    pub(crate) fn from_io(action: &'static str, path: &Path, source: io::Error) -> Self {
        let path = path.to_owned();
        match source.kind() {
            io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
                Self::Permission { action, path, hint: String::new() }
            }
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::NoSpace { path },
            _ => Self::Io { action, path, source },
        }
    }

    /// For `map_err`.
    pub(crate) fn io<E: Into<io::Error>>(action: &'static str, path: &Path) -> impl FnOnce(E) -> Self {
        move |error| Self::from_io(action, path, error.into())
    }
}
