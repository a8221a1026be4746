//! What can be captured.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::{CaptureError, fjall, rocksdb, sqlite};

/// A storage engine whose files this crate understands, or plain files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Engine {
    /// RocksDB and LevelDB: a directory.
    RocksDb,
    /// fjall 3: a directory.
    Fjall,
    /// SQLite 3: a file.
    Sqlite,
    /// Any directory; no consistency is claimed.
    Files,
}

impl Engine {
    /// As written before the colon of a source.
    pub fn name(self) -> &'static str {
        match self {
            Self::RocksDb => "rocksdb",
            Self::Fjall => "fjall",
            Self::Sqlite => "sqlite",
            Self::Files => "files",
        }
    }
}

impl fmt::Display for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Live data: `rocksdb:DIR`, `leveldb:DIR`, `fjall:DIR`, `sqlite:FILE` or `files:DIR`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    /// Whose files they are.
    pub engine: Engine,
    /// Where they are.
    pub path: PathBuf,
}

/// A source that names no known engine.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{given:?} is not a source; write rocksdb:DIR, fjall:DIR, sqlite:FILE or files:DIR")]
pub struct ParseSourceError {
    given: String,
}

impl FromStr for Source {
    type Err = ParseSourceError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let unknown = || ParseSourceError { given: text.to_owned() };
        let (engine, path) = text.split_once(':').ok_or_else(unknown)?;
        let engine = match engine {
            "rocksdb" | "leveldb" => Engine::RocksDb,
            "fjall" => Engine::Fjall,
            "sqlite" => Engine::Sqlite,
            "files" => Engine::Files,
            _ => return Err(unknown()),
        };
        if path.is_empty() || path.contains('\0') {
            return Err(unknown());
        }
        Ok(Self { engine, path: PathBuf::from(path) })
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.engine, self.path.display())
    }
}

/// Recognises the engine whose database is at `path`; `None` where it is none that is known. Reads only; takes no lock.
pub fn detect(path: &Path) -> Result<Option<Engine>, CaptureError> {
    let meta = std::fs::metadata(path).map_err(CaptureError::io("read", path))?;
    let recognised = if meta.is_dir() {
        if rocksdb::recognise(path)? {
            Some(Engine::RocksDb)
        } else if fjall::recognise(path)? {
            Some(Engine::Fjall)
        } else {
            None
        }
    } else if sqlite::recognise(path)? {
        Some(Engine::Sqlite)
    } else {
        None
    };
    Ok(recognised)
}
