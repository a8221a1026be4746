//! The parts of a run.

use clap::ValueEnum;

/// One block of the table, in its order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Part {
    /// Images of a database that db_bench keeps busy
    Capture,
    /// What a RocksDB's own writer feels while it is backed up
    Foreground,
    /// RocksDB, 1 GiB, values that compress to half
    Half,
    /// RocksDB, 1 GiB, values that do not compress
    Incompressible,
    /// SQLite, 500 MB
    Sqlite,
    /// fjall, 500 MB
    Fjall,
    /// RocksDB, 10 000 small tables
    Tables,
    /// Peak memory at 1 GiB and, with --full, at 8 GiB
    Memory,
    /// With --full: peak memory beside an index of 10 000 000 chunks
    Index,
}

impl Part {
    /// What the table calls it.
    pub(crate) fn title(self) -> &'static str {
        match self {
            Self::Capture => "capture of a busy RocksDB",
            Self::Foreground => "foreground of a RocksDB",
            Self::Half => "RocksDB, half-compressible",
            Self::Incompressible => "RocksDB, incompressible",
            Self::Sqlite => "SQLite",
            Self::Fjall => "fjall",
            Self::Tables => "RocksDB, small tables",
            Self::Memory => "peak memory",
            Self::Index => "files, beside 10⁷ chunks",
        }
    }
}
