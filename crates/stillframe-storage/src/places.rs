//! Questions about places: whether one lies in another, whatever names lead there, and whether anything is at one.

use std::io;
use std::path::Path;

/// Whether `place` is the directory `dir`, or below it. Links are followed; of a place that is not there yet, what is there decides.
pub fn lies_within(place: &Path, dir: &Path) -> bool {
    let Ok(dir) = std::fs::canonicalize(dir) else { return false };
    let existing = place.ancestors().find_map(|place| std::fs::canonicalize(place).ok());
    dir.is_dir() && existing.is_some_and(|place| place.starts_with(&dir))
}

/// Whether nothing is at `place`, or an empty directory.
pub fn is_vacant(place: &Path) -> io::Result<bool> {
    match std::fs::read_dir(place) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotADirectory => Ok(false),
        entries => Ok(entries?.next().is_none()),
    }
}
