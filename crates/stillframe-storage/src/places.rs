//! Questions about places: whether one lies in another, whatever names lead there, and whether anything is at one. And places that
//! are their owner's alone.

use std::fs::DirBuilder;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;

/// Whether `place` is the directory `dir`, or below it. Links are followed; of a place that is not there yet, what is there decides.
pub fn lies_within(place: &Path, dir: &Path) -> bool {
    let Ok(dir) = std::fs::canonicalize(dir) else { return false };
    let existing = place.ancestors().find_map(|place| std::fs::canonicalize(place).ok());
    dir.is_dir() && existing.is_some_and(|place| place.starts_with(&dir))
}

/// Makes a directory, with what is missing above it, that only its owner may enter. One that is there stays as it is.
pub fn make_private_dirs(dir: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(dir)
}

/// Whether nothing is at `place`, or an empty directory.
pub fn is_vacant(place: &Path) -> io::Result<bool> {
    match std::fs::read_dir(place) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotADirectory => Ok(false),
        entries => Ok(entries?.next().is_none()),
    }
}
