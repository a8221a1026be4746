//! The place where a verb puts something new: a restored directory, or an image.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Access, access};
use stillframe_storage::{MadeDirs, is_vacant};

use crate::EngineError;

/// Refuses a target that is something other than nothing or an empty directory.
fn require_vacant(target: &Path) -> Result<(), EngineError> {
    match is_vacant(target) {
        Ok(true) => Ok(()),
        Ok(false) => Err(EngineError::Occupied(target.to_owned())),
        Err(error) => Err(EngineError::io("open", target)(error)),
    }
}

/// Where the target is, links resolved. It must be absent or an empty directory, and a rename must be able to put it there.
pub(crate) fn place_of(target: &Path) -> Result<PathBuf, EngineError> {
    let absolute = std::path::absolute(target).map_err(EngineError::io("find", target))?;
    require_vacant(&absolute)?;
    let Ok(target) = std::fs::canonicalize(&absolute) else { return Ok(absolute) };
    let device = |path: &Path| {
        std::fs::metadata(path).map(|meta| meta.dev()).map_err(EngineError::io("look at", path))
    };
    match target.parent() {
        Some(parent) if device(parent)? == device(&target)? => Ok(target),
        _ => Err(EngineError::Usage(format!(
            "{} is a mount point, which nothing can be renamed to; choose a new directory below it",
            target.display()
        ))),
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
