//! What a tool is asked to back up.

use std::path::{Path, PathBuf};

/// Live data of one kind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Source {
    /// The directory of a RocksDB.
    RocksDb(PathBuf),
    /// The directory of a fjall database.
    Fjall(PathBuf),
    /// The file of a SQLite database.
    Sqlite(PathBuf),
    /// A directory of any files.
    Files(PathBuf),
}

impl Source {
    /// The directory or file.
    pub(crate) fn path(&self) -> &Path {
        match self {
            Self::RocksDb(path) | Self::Fjall(path) | Self::Sqlite(path) | Self::Files(path) => path,
        }
    }

    /// What Stillframe calls it.
    pub(crate) fn url(&self) -> String {
        let engine = match self {
            Self::RocksDb(_) => "rocksdb",
            Self::Fjall(_) => "fjall",
            Self::Sqlite(_) => "sqlite",
            Self::Files(_) => "files",
        };
        format!("{engine}:{}", self.path().display())
    }
}
