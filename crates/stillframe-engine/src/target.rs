//! The place where a verb puts something new: a restored directory, or an image.

use std::path::Path;

use rustix::fs::{Access, access};
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
    // It appears there by a rename: who may not do that learns it before the work.
    access(parent, Access::WRITE_OK | Access::EXEC_OK)
        .map_err(|error| EngineError::io("write in", parent)(std::io::Error::from(error)))?;
    Ok((parent, made))
}
