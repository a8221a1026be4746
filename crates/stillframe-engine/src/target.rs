//! The place where a verb puts something new: a restored directory, or an image.

use std::path::Path;

use stillframe_storage::{MadeDirs, is_vacant};

use crate::EngineError;

/// Refuses a target that is something other than nothing or an empty directory.
pub(crate) fn require_vacant(target: &Path) -> Result<(), EngineError> {
    match is_vacant(target) {
        Ok(true) => Ok(()),
        Ok(false) => Err(EngineError::Occupied(target.to_owned())),
        Err(error) => Err(EngineError::io("open", target)(error)),
    }
}

/// The directory above an absolute target, made with whatever is missing above it. What was made goes again unless it is kept.
pub(crate) fn make_parent(target: &Path) -> Result<(&Path, MadeDirs), EngineError> {
    let parent = target.parent().ok_or_else(|| EngineError::Occupied(target.to_owned()))?;
    let made = MadeDirs::make(parent).map_err(EngineError::io("create", parent))?;
    Ok((parent, made))
}
