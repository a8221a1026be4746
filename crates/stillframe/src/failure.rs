//! Errors as the user sees them, and exit codes by kind.

use std::fmt;

/// What kind of failure, for exit codes and for machines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// None of the others.
    Failed,
    /// Options that do not fit.
    Usage,
    /// No repository where one was expected.
    NoRepository,
    /// Wrong passphrase, or none given.
    Passphrase,
    /// The source cannot be captured.
    Source,
    /// The source does not stand still, or is locked.
    Busy,
    /// A disk is full, or below its reserve.
    NoSpace,
    /// The operating system forbids it.
    Permission,
    /// No such backup, or several.
    NoBackup,
    /// Stored data are damaged.
    Damaged,
    /// Somebody cancelled.
    Cancelled,
}

impl Kind {
    /// From the word that verbs and jobs use.
    pub fn from_word(word: &str) -> Self {
        match word {
            "usage" => Self::Usage,
            "no-repository" => Self::NoRepository,
            "passphrase" => Self::Passphrase,
            "source" => Self::Source,
            "busy" => Self::Busy,
            "no-space" => Self::NoSpace,
            "permission" => Self::Permission,
            "no-backup" => Self::NoBackup,
            "damaged" => Self::Damaged,
            "cancelled" => Self::Cancelled,
            _ => Self::Failed,
        }
    }

    /// The same, back.
    pub fn word(self) -> &'static str {
        match self {
            Self::Failed => "failed",
            Self::Usage => "usage",
            Self::NoRepository => "no-repository",
            Self::Passphrase => "passphrase",
            Self::Source => "source",
            Self::Busy => "busy",
            Self::NoSpace => "no-space",
            Self::Permission => "permission",
            Self::NoBackup => "no-backup",
            Self::Damaged => "damaged",
            Self::Cancelled => "cancelled",
        }
    }

    /// The exit code; `stillframe --help` and docs/json.md list them.
    pub fn exit_code(self) -> u8 {
        match self {
            Self::Failed => 1,
            Self::Usage => 2,
            Self::NoRepository => 10,
            Self::Passphrase => 12,
            Self::Source => 20,
            Self::Busy => 21,
            Self::NoSpace => 22,
            Self::Permission => 23,
            Self::NoBackup => 24,
            Self::Damaged => 30,
            Self::Cancelled => 130,
        }
    }
}

/// A failure in the user's words.
#[derive(Debug)]
pub struct Failure {
    /// For the exit code.
    pub kind: Kind,
    /// What, where, what to do.
    pub message: String,
}

impl Failure {
    /// As given.
    pub fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into() }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl From<stillframe_engine::EngineError> for Failure {
    fn from(error: stillframe_engine::EngineError) -> Self {
        Self::new(Kind::from_word(error.kind()), error.to_string())
    }
}

impl From<stillframe_capture::CaptureError> for Failure {
    fn from(error: stillframe_capture::CaptureError) -> Self {
        stillframe_engine::EngineError::from(error).into()
    }
}

impl From<stillframe_repo::Error> for Failure {
    fn from(error: stillframe_repo::Error) -> Self {
        stillframe_engine::EngineError::from(error).into()
    }
}

impl From<stillframe_storage::LocationError> for Failure {
    fn from(error: stillframe_storage::LocationError) -> Self {
        use stillframe_storage::LocationError as E;
        let kind = match &error {
            E::UnknownScheme { .. } | E::Malformed { .. } => Kind::Usage,
            E::Missing { .. } => Kind::NoRepository,
            E::Unusable { source, .. } if source.kind() == std::io::ErrorKind::PermissionDenied => {
                Kind::Permission
            }
            E::Unusable { source, .. } if source.kind() == std::io::ErrorKind::NotADirectory => {
                Kind::NoRepository
            }
            E::Unusable { .. } => Kind::Failed,
        };
        Self::new(kind, error.to_string())
    }
}
