//! Which engine a source of a backup was captured as.

use stillframe_capture::Engine;
use stillframe_repo::SourceManifest;

use crate::EngineError;

/// As its manifest has it. One that is not known says nothing against the backup.
pub(crate) fn engine_of(source: &SourceManifest) -> Result<Engine, EngineError> {
    Engine::named(&source.engine).ok_or_else(|| EngineError::UnknownEngine {
        source_name: source.name.clone(),
        engine: source.engine.clone(),
    })
}
