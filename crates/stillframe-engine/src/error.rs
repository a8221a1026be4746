//! What can go wrong in a verb, by what the user should do.

use std::io;
use std::path::{Path, PathBuf};

use stillframe_capture::CaptureError;
use stillframe_jobs::{EnterError, StopReason};
use stillframe_repo::Error as RepoError;
use stillframe_storage::ByteSize;

use crate::Kind;

/// Why a verb did not do its work.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// The source cannot be captured, or an image is not sound.
    #[error(transparent)]
    Capture(CaptureError),
    /// The repository refused or failed.
    #[error(transparent)]
    Repo(#[from] RepoError),
    /// Make room on the live disk, or lower the reserve.
    #[error(
        "stopped: the disk of {path} has {} free, less than the reserve of {}; \
         all pins were let go; make room{} or set --reserve",
        ByteSize(*.available),
        ByteSize(*.reserve),
        if *.is_staging { ", choose another --staging" } else { "" }
    )]
    Reserve {
        /// Something on the file system.
        path: PathBuf,
        /// Free bytes.
        available: u64,
        /// Bytes that were to stay free.
        reserve: u64,
        /// It is the disk of the staging directory that was asked for, and no source's.
        is_staging: bool,
    },
    /// The options do not fit the backup or each other. Fix them.
    #[error("{0}")]
    Usage(String),
    /// The target of a restore or of an image is taken. Choose another one.
    #[error("{0} already exists and is not an empty directory; choose a new one")]
    Occupied(PathBuf),
    /// The target's disk is full.
    #[error("no space left while writing {path}; make room or restore elsewhere")]
    NoSpace {
        /// What was being written.
        path: PathBuf,
    },
    /// The target's disk is too small.
    #[error(
        "no space: {} are to be restored, and the disk of {path} has {} free; nothing was written; {advice}",
        ByteSize(*.needed),
        ByteSize(*.available)
    )]
    TooLarge {
        /// Something on the file system.
        path: PathBuf,
        /// Free bytes.
        available: u64,
        /// Bytes of the files.
        needed: u64,
        /// What to do about it.
        advice: &'static str,
    },
    /// The target may not be written.
    #[error("cannot {action} {path}: {}", refusal(*.why))]
    Permission {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Whether the user may not, or nobody.
        why: io::ErrorKind,
    },
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
    /// A file's content is lost, or a source's description or file list. Look what else is, and whether another backup has it.
    #[error(
        "{what} cannot be restored: {lost}; nothing was restored. `stillframe verify` names all that is lost, another backup may have it, \
         and --source brings other sources back"
    )]
    Lost {
        /// The file, as the backup calls it, or what of which source.
        what: String,
        /// What is wrong with its content.
        lost: RepoError,
    },
    /// Written by a newer Stillframe, for an engine that this one does not know. Use that one.
    #[error("{source_name}: engine {engine:?} is not known to this version: use a newer Stillframe")]
    UnknownEngine {
        /// The source's name in the backup.
        source_name: String,
        /// The engine's name.
        engine: String,
    },
    /// A table was cut while it was read, by its owner, and no link could keep it. Capture again; in the end, run as its owner.
    #[error(
        "{path}: it was cut by its owner while it was read, again and again: this user may not make hard links to it, which would keep it; run as its owner or as root, or make the backup faster (--fast, no --limit-bandwidth)"
    )]
    CutShort {
        /// The file, in the source.
        path: PathBuf,
    },
    /// Verification found damage.
    #[error("{0}")]
    Unsound(String),
    /// A phase took longer than it may.
    #[error("{0}; run it again when what it waited for answers: what was stored is used")]
    Deadline(StopReason),
    /// Somebody cancelled.
    #[error("cancelled")]
    Cancelled,
    /// A mistake in this program.
    #[error("a mistake in stillframe: {0}; please report it")]
    Bug(String),
}

impl EngineError {
    pub(crate) fn io<E: Into<io::Error>>(action: &'static str, path: &Path) -> impl FnOnce(E) -> Self {
        move |error| {
            let (source, path): (io::Error, _) = (error.into(), path.to_owned());
            match source.kind() {
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::NoSpace { path },
                io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
                    Self::Permission { action, path, why: source.kind() }
                }
                _ => Self::Io { action, path, source },
            }
        }
    }

    /// Names what damage of the repository has taken; anything else that went wrong there stays as it is.
    pub(crate) fn lost(what: impl FnOnce() -> String) -> impl FnOnce(RepoError) -> Self {
        |error| {
            if error.is_damage() { Self::Lost { what: what(), lost: error } } else { error.into() }
        }
    }

    /// What kind of failure this is.
    pub fn kind(&self) -> Kind {
        match self {
            Self::Capture(error) => match error {
                CaptureError::TooBusy { .. } | CaptureError::Locked { .. } => Kind::Busy,
                CaptureError::NoSpace { .. } => Kind::NoSpace,
                CaptureError::Permission { .. } => Kind::Permission,
                CaptureError::Cancelled => Kind::Cancelled,
                CaptureError::NeedsFlag { .. } => Kind::Usage,
                _ => Kind::Source,
            },
            Self::Repo(error) | Self::Lost { lost: error, .. } => repo_kind(error),
            Self::Reserve { .. } | Self::NoSpace { .. } | Self::TooLarge { .. } => Kind::NoSpace,
            Self::Usage(_) | Self::Occupied(_) => Kind::Usage,
            Self::Permission { .. } => Kind::Permission,
            Self::Unsound(_) => Kind::Damaged,
            Self::CutShort { .. } => Kind::Busy,
            Self::Cancelled => Kind::Cancelled,
            Self::Io { .. } | Self::UnknownEngine { .. } | Self::Deadline(_) | Self::Bug(_) => Kind::Failed,
        }
    }
}

impl From<CaptureError> for EngineError {
    fn from(error: CaptureError) -> Self {
        match error {
            // Whoever finds it out, it is told in the same words.
            CaptureError::Occupied(target) => Self::Occupied(target),
            error => Self::Capture(error),
        }
    }
}

impl From<EnterError> for EngineError {
    fn from(error: EnterError) -> Self {
        match error {
            EnterError::Stopping(reason) => reason.into(),
            EnterError::Illegal { .. } => Self::Bug(error.to_string()),
        }
    }
}

impl From<StopReason> for EngineError {
    fn from(reason: StopReason) -> Self {
        match reason {
            StopReason::Cancelled => Self::Cancelled,
            reason @ StopReason::Deadline { .. } => Self::Deadline(reason),
        }
    }
}

fn refusal(why: io::ErrorKind) -> &'static str {
    if why == io::ErrorKind::ReadOnlyFilesystem {
        "the file system is read-only"
    } else {
        "permission denied"
    }
}

fn repo_kind(error: &RepoError) -> Kind {
    match error {
        RepoError::NotARepository => Kind::NoRepository,
        RepoError::WrongPassphrase { .. } | RepoError::PassphraseNeeded => Kind::Passphrase,
        RepoError::Occupied { .. }
        | RepoError::NotEncrypted
        | RepoError::Pinned { .. }
        | RepoError::Invalid(_) => Kind::Usage,
        error if error.is_damage() => Kind::Damaged,
        RepoError::InUse { .. } => Kind::Busy,
        RepoError::NoSpace { .. } => Kind::NoSpace,
        RepoError::PermissionDenied { .. } => Kind::Permission,
        RepoError::Ambiguous { .. } | RepoError::NotFound { .. } => Kind::NoBackup,
        RepoError::Cancelled => Kind::Cancelled,
        _ => Kind::Failed,
    }
}
