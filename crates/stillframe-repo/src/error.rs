//! What can go wrong, by what the caller should do about it.

use std::path::PathBuf;

use stillframe_storage::object_store;

/// Any failure of a repository operation.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no repository at this place. Name another place, or make one.
    #[error(
        "there is no Stillframe repository here: stillframe.json is missing. Check the location, or make one with `repo init`"
    )]
    NotARepository,
    /// A repository, or what is left of one, is where a new one was to be made. Choose another place.
    #[error("cannot make a repository here: {found} is already there{}", if *.whole { "" } else { ", but stillframe.json is missing: a damaged repository is not written over" })]
    Occupied {
        /// The object that was found.
        found: String,
        /// Whether it is a whole repository.
        whole: bool,
    },
    /// No key of the repository opens with this passphrase. Ask again.
    #[error("wrong passphrase: {}", unopened(*.keys))]
    WrongPassphrase {
        /// How many were tried.
        keys: usize,
    },
    /// The repository is encrypted and no passphrase was given.
    #[error("this repository is encrypted: a passphrase is needed")]
    PassphraseNeeded,
    /// A passphrase was given for a repository that has no encryption. If it should have some, somebody changed it.
    #[error(
        "a passphrase was given, but this repository is not encrypted. If it should be, do not use it: somebody replaced its keys; if not, open it without a passphrase"
    )]
    NotEncrypted,
    /// Written by a newer Stillframe. Use that one.
    #[error("{object} has format {found}, this program reads up to {supported}: use a newer Stillframe")]
    NewerFormat {
        /// The object.
        object: String,
        /// Its format.
        found: u64,
        /// The newest that this version reads.
        supported: u64,
    },
    /// A backup has a source of a form that this version cannot walk, so nobody can say which chunks it needs. Use a newer Stillframe.
    #[error(
        "{object}: its source {source_name:?} has a form that this program does not know: use a newer Stillframe"
    )]
    NewerForm {
        /// The manifest.
        object: String,
        /// The source.
        source_name: String,
    },
    /// The bytes of an object are not what was written. Verify the repository; other objects are not affected.
    #[error("{object} is damaged: {why}")]
    Damaged {
        /// The object.
        object: String,
        /// What is wrong with it.
        why: String,
    },
    /// A chunk cannot be had from any pack. What needs it cannot be read.
    #[error("chunk {chunk} cannot be read: {why}")]
    ChunkLost {
        /// The chunk's id.
        chunk: crate::ChunkId,
        /// The packs that should have it.
        packs: Vec<crate::PackId>,
        /// Where it was looked for and what was found.
        why: String,
    },
    /// The bytes of a tree or list contradict themselves, although the chunk that holds them is as it was written.
    #[error("the {what} is inconsistent: {why}")]
    Inconsistent {
        /// What was being read.
        what: &'static str,
        /// The contradiction.
        why: String,
    },
    /// The store has no room left. Free some and run again: what was uploaded is kept.
    #[error(
        "no space left in the repository while writing {object}: free some and run again, what was stored is used"
    )]
    NoSpace {
        /// The object that did not fit.
        object: String,
    },
    /// The store refuses access.
    #[error("{object}: {} while trying to {doing}", refusal(.source))]
    PermissionDenied {
        /// What was tried.
        doing: &'static str,
        /// The object.
        object: String,
        /// What the store said.
        source: Box<object_store::Error>,
    },
    /// The store failed otherwise. Trying again may help.
    #[error("{object}: cannot {doing}: {}", root_cause(.source))]
    Store {
        /// What was tried.
        doing: &'static str,
        /// The object.
        object: String,
        /// What the store said.
        source: Box<object_store::Error>,
    },
    /// The repository was changed under this run in a way that it could not follow. Nothing is lost; run again.
    #[error("given up, run again: {why}")]
    GivenUp {
        /// What happened.
        why: String,
    },
    /// Somebody restores the backup. Forget it when that is done.
    #[error(
        "backup {backup} is being restored on {host} since {}: forget it when that is done", .since.strftime("%Y-%m-%d %H:%M:%SZ")
    )]
    InUse {
        /// The backup.
        backup: crate::BackupId,
        /// Where.
        host: String,
        /// Since when, by that machine's clock.
        since: jiff::Timestamp,
    },
    /// A name or id prefix fits several backups. Use one of the ids.
    #[error("{name:?} fits several backups, name one by its id: {}", several(.backups))]
    Ambiguous {
        /// As given.
        name: String,
        /// The backups that it fits, newest first, and when they were made, as far as that can be read.
        backups: Vec<(crate::BackupId, Option<jiff::Timestamp>)>,
    },
    /// No backup fits.
    #[error("{}", not_found(.name))]
    NotFound {
        /// As given.
        name: String,
    },
    /// The backup is pinned. Take the pin away first, if that is meant.
    #[error("backup {backup} is pinned: `stillframe unpin {backup}` first")]
    Pinned {
        /// It.
        backup: crate::BackupId,
    },
    /// The caller's cancellation token was cancelled.
    #[error("cancelled")]
    Cancelled,
    /// This write has failed already, elsewhere; that failure is the result of the whole write.
    #[error("the write has stopped because another part of it failed")]
    Stopped,
    /// The local cache directory cannot be used, and nothing could be put in its place.
    #[error("{path}: cannot use the index cache: {why}")]
    Cache {
        /// File or directory.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// The caller asked for something that cannot be.
    #[error("{0}")]
    Invalid(String),
}

/// The result of a repository operation.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// Whether bytes of the repository are missing or not as they were written.
    pub fn is_damage(&self) -> bool {
        matches!(self, Self::Damaged { .. } | Self::ChunkLost { .. } | Self::Inconsistent { .. })
    }

    /// Whether an object is damaged, or of a newer program: the others can be read all the same, and trying again does not help.
    pub fn is_unreadable(&self) -> bool {
        matches!(self, Self::Damaged { .. } | Self::NewerFormat { .. })
    }

    pub(crate) fn damaged(object: &impl ToString, why: impl Into<String>) -> Self {
        Self::Damaged { object: object.to_string(), why: why.into() }
    }

    pub(crate) fn inconsistent(what: &'static str, why: impl Into<String>) -> Self {
        Self::Inconsistent { what, why: why.into() }
    }

    /// Sorts a failure of the store.
    pub(crate) fn store(doing: &'static str, object: &impl ToString, source: object_store::Error) -> Self {
        let object = object.to_string();
        match source {
            object_store::Error::PermissionDenied { .. } | object_store::Error::Unauthenticated { .. } => {
                Self::PermissionDenied { doing, object, source: Box::new(source) }
            }
            _ => match io_cause(&source).map(std::io::Error::kind) {
                Some(std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded) => {
                    Self::NoSpace { object }
                }
                Some(std::io::ErrorKind::PermissionDenied | std::io::ErrorKind::ReadOnlyFilesystem) => {
                    Self::PermissionDenied { doing, object, source: Box::new(source) }
                }
                _ => Self::Store { doing, object, source: Box::new(source) },
            },
        }
    }

    /// Whether the object that was asked for is simply not there.
    pub(crate) fn is_absent(&self) -> bool {
        matches!(self, Self::Store { source, .. } if matches!(**source, object_store::Error::NotFound { .. }))
    }
}

/// One of many objects, each of which may go or be unreadable without hiding the others. `None`: it is not there. The inner error is what is wrong
/// with it; the outer one is a failure of the store.
pub(crate) fn set_apart<T>(read: Result<T>) -> Result<Option<Result<T>>> {
    match read {
        Err(error) if error.is_absent() => Ok(None),
        Err(error) if !error.is_unreadable() => Err(error),
        read => Ok(Some(read)),
    }
}

fn io_cause<'a>(error: &'a (dyn std::error::Error + 'static)) -> Option<&'a std::io::Error> {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(io) = error.downcast_ref::<std::io::Error>() {
            return Some(io);
        }
        cause = error.source();
    }
    None
}

/// The innermost message: the layers above it repeat it, or name types.
fn root_cause(error: &object_store::Error) -> String {
    let mut cause: &dyn std::error::Error = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    cause.to_string()
}

fn refusal(error: &object_store::Error) -> &'static str {
    match io_cause(error).map(std::io::Error::kind) {
        Some(std::io::ErrorKind::ReadOnlyFilesystem) => "the file system is read-only",
        _ => "permission denied",
    }
}

fn unopened(keys: usize) -> String {
    match keys {
        1 => "the only key of this repository does not open with it".to_owned(),
        keys => format!("none of the {keys} keys of this repository opens with it"),
    }
}

/// No backup is called `latest`, so that it is missing only where nothing is.
fn not_found(name: &str) -> String {
    match name {
        "latest" => "the repository has no backups".to_owned(),
        name => format!("there is no backup {name:?} in this repository; `stillframe snapshots` lists them"),
    }
}

/// Of these many are named; the list of backups shows all.
const NAMED: usize = 5;

fn several(backups: &[(crate::BackupId, Option<jiff::Timestamp>)]) -> String {
    let one = |(id, created): &(crate::BackupId, Option<jiff::Timestamp>)| match created {
        Some(created) => format!("{id} of {}", created.strftime("%Y-%m-%d %H:%M:%SZ")),
        None => id.to_string(),
    };
    let mut text = backups.iter().take(NAMED).map(one).collect::<Vec<_>>().join(", ");
    if backups.len() > NAMED {
        text = format!("{text} and {} older ones", backups.len() - NAMED);
    }
    text
}
