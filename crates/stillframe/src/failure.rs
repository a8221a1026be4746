//! Errors as the user sees them, and exit codes by kind.

use std::fmt;
use std::io::ErrorKind;

pub use stillframe_engine::Kind;

/// The exit code; `stillframe --help` and docs/json.md list them.
pub fn exit_code(kind: Kind) -> u8 {
    match kind {
        Kind::Failed => 1,
        Kind::Usage => 2,
        Kind::NoRepository => 10,
        Kind::Passphrase => 12,
        Kind::Source => 20,
        Kind::Busy => 21,
        Kind::NoSpace => 22,
        Kind::Permission => 23,
        Kind::NoBackup => 24,
        Kind::Damaged => 30,
        Kind::Cancelled => 130,
    }
}

/// What the operating system's refusal is for exit codes.
pub fn kind_of(error: &std::io::Error) -> Kind {
    match error.kind() {
        ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem => Kind::Permission,
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => Kind::NoSpace,
        _ => Kind::Failed,
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
        Self::new(error.kind(), error.to_string())
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

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;
    use crate::cli::Cli;

    #[test]
    fn help_and_the_page_for_machines_list_the_codes_that_are_used() {
        let help = Cli::command().render_long_help().to_string();
        let page = include_str!("../../../docs/json.md");
        let kinds = [
            Kind::Failed,
            Kind::Usage,
            Kind::NoRepository,
            Kind::Passphrase,
            Kind::Source,
            Kind::Busy,
            Kind::NoSpace,
            Kind::Permission,
            Kind::NoBackup,
            Kind::Damaged,
            Kind::Cancelled,
        ];
        for kind in kinds {
            let (code, word) = (exit_code(kind), kind.word());
            assert!(page.contains(&format!("| {code} | `{word}` |")), "{code} {word} is not in docs/json.md");
            assert!(help.contains(&format!("  {code} ")), "{code} is not in the help");
        }
    }
}
