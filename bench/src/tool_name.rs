//! The tools by name.

use clap::ValueEnum;

/// One tool, in the order of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub(crate) enum ToolName {
    /// Stillframe with --fast
    Stillframe,
    /// Stillframe as it is by default
    Polite,
    /// cp -a
    Cp,
    /// restic, as Debian ships it
    Restic,
    /// rustic, from the registry of Rust crates
    Rustic,
    /// RocksDB's BackupEngine through ldb
    Ldb,
}

impl ToolName {
    /// What the table calls it.
    pub(crate) fn title(self) -> &'static str {
        match self {
            Self::Stillframe => "stillframe",
            Self::Polite => "stillframe, polite",
            Self::Cp => "cp -a",
            Self::Restic => "restic",
            Self::Rustic => "rustic",
            Self::Ldb => "ldb backup",
        }
    }
}
