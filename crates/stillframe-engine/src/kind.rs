//! The kinds of failure, by what the user should do.

/// What kind of failure: as in the job history, in `--json` and in the table of exit codes.
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
    /// The word for machines.
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
}
