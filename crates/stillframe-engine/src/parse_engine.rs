//! Engines by their names: as a manifest has them, and as a user gives them.

use stillframe_capture::{Engine, Source};
use stillframe_repo::SourceManifest;

use crate::EngineError;

/// The engine of this name, as it stands before the colon of a source; `None` for one that this version does not know.
pub fn parse_engine(name: &str) -> Option<Engine> {
    let source: Source = format!("{name}:x").parse().ok()?;
    // Otherwise the name holds a colon of its own, and is no name.
    Some(source.engine).filter(|_| source.path.as_os_str() == "x")
}

/// The engine that a source of a backup was captured as. One that is not known says nothing against the backup.
pub(crate) fn engine_of(source: &SourceManifest) -> Result<Engine, EngineError> {
    parse_engine(&source.engine).ok_or_else(|| EngineError::UnknownEngine {
        source_name: source.name.clone(),
        engine: source.engine.clone(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_engine_is_known_by_its_name_and_nothing_else_is() {
        for engine in [Engine::RocksDb, Engine::Fjall, Engine::Sqlite, Engine::Files] {
            assert_eq!(parse_engine(engine.name()), Some(engine));
        }
        assert_eq!(parse_engine("leveldb"), Some(Engine::RocksDb));
        for name in ["", "sled", "files:", "files:y", "Files"] {
            assert_eq!(parse_engine(name), None, "{name}");
        }
    }
}
