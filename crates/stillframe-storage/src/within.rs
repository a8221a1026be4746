//! Whether one place lies in another, whatever names lead there.

use std::path::Path;

/// Whether `place` is the directory `dir`, or below it. Links are followed; of a place that is not there yet, what is there decides.
pub fn lies_within(place: &Path, dir: &Path) -> bool {
    let Ok(dir) = std::fs::canonicalize(dir) else { return false };
    let existing = place.ancestors().find_map(|place| std::fs::canonicalize(place).ok());
    dir.is_dir() && existing.is_some_and(|place| place.starts_with(&dir))
}
