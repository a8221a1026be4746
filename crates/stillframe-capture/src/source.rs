//! What can be captured.

use std::ffi::OsStr;
use std::fmt;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use stillframe_storage::path_text;

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

    /// The engine of this name, as it stands before the colon of a source; `None`: not known to this version.
    pub fn named(name: &str) -> Option<Self> {
        Some(match name {
            "rocksdb" | "leveldb" => Self::RocksDb,
            "fjall" => Self::Fjall,
            "sqlite" => Self::Sqlite,
            "files" => Self::Files,
            _ => return None,
        })
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
#[error("{given:?} is not a source; write rocksdb:DIR, leveldb:DIR, fjall:DIR, sqlite:FILE or files:DIR")]
pub struct ParseSourceError {
    given: String,
}

impl TryFrom<&OsStr> for Source {
    type Error = ParseSourceError;

    fn try_from(text: &OsStr) -> Result<Self, Self::Error> {
        let bytes = text.as_bytes();
        let unknown = || ParseSourceError { given: path_text(text) };
        let colon = bytes.iter().position(|byte| *byte == b':').ok_or_else(unknown)?;
        let (engine, path) =
            (bytes.get(..colon).unwrap_or_default(), bytes.get(colon + 1..).unwrap_or_default());
        let engine = std::str::from_utf8(engine).ok().and_then(Engine::named).ok_or_else(unknown)?;
        if path.is_empty() || path.contains(&0) {
            return Err(unknown());
        }
        Ok(Self { engine, path: OsStr::from_bytes(path).into() })
    }
}

impl FromStr for Source {
    type Err = ParseSourceError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::try_from(OsStr::new(text))
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.engine, path_text(&self.path))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_engine_is_known_by_its_name_and_nothing_else_is() {
        for engine in [Engine::RocksDb, Engine::Fjall, Engine::Sqlite, Engine::Files] {
            assert_eq!(Engine::named(engine.name()), Some(engine));
        }
        assert_eq!(Engine::named("leveldb"), Some(Engine::RocksDb));
        for name in ["", "sled", "files:", "files:y", "Files"] {
            assert_eq!(Engine::named(name), None, "{name}");
        }
    }
}
