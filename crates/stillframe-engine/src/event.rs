//! What a verb tells while it works.

use std::path::PathBuf;
use std::time::Duration;

use stillframe_jobs::Reading;

/// One thing worth telling the user. The numbers also go into the job's history.
#[derive(Debug, Clone)]
pub enum Event {
    /// A source is being captured.
    Capturing {
        /// Its name in the backup.
        source: String,
    },
    /// An attempt to find a still moment was in vain.
    Moved {
        /// Its number, from 1.
        attempt: u32,
        /// What moved.
        what: String,
    },
    /// A source was captured.
    Captured {
        /// Its name in the backup.
        source: String,
        /// Files of the image.
        files: u64,
        /// Bytes of the image.
        bytes: u64,
        /// How long the window was.
        window: Duration,
        /// How many attempts it took.
        attempts: u32,
    },
    /// How far the work is.
    Progress(Reading),
    /// Staging directories are made in this directory: a place to sweep if this process dies.
    Staging(PathBuf),
    /// Something that weakens or surprises.
    Warning(String),
    /// The backup was uploaded before parts of the repository that it relied on were swept; it is written again.
    Again {
        /// Why.
        why: String,
    },
}
