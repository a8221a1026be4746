//! Directories as the comparisons see them.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use crate::error::BenchError;

/// That a file is there; the hint says what to do if not.
pub(crate) fn need(path: &Path, hint: &'static str) -> Result<(), BenchError> {
    if path.is_file() { Ok(()) } else { Err(BenchError::Missing(path.display().to_string(), hint)) }
}

/// Every regular file below `root` (or `root` itself), in a fixed order.
pub(crate) fn files_below(root: &Path) -> Result<Vec<PathBuf>, BenchError> {
    let kind = std::fs::symlink_metadata(root).map_err(BenchError::io("looking at", root))?.file_type();
    if kind.is_file() {
        return Ok(vec![root.to_owned()]);
    }
    let mut files = Vec::new();
    if kind.is_dir() {
        let mut names = Vec::new();
        for entry in std::fs::read_dir(root).map_err(BenchError::io("listing", root))? {
            names.push(entry.map_err(BenchError::io("listing", root))?.path());
        }
        names.sort();
        for path in names {
            files.extend(files_below(&path)?);
        }
    }
    Ok(files)
}

/// The bytes of all files below `root`.
pub(crate) fn bytes_below(root: &Path) -> Result<u64, BenchError> {
    files_below(root)?.iter().map(|path| length(path)).sum()
}

/// The length of one file.
pub(crate) fn length(path: &Path) -> Result<u64, BenchError> {
    Ok(std::fs::metadata(path).map_err(BenchError::io("looking at", path))?.len())
}

/// Reads every file below `root` once, so that all tools find it in the page cache.
pub(crate) fn warm(root: &Path) -> Result<(), BenchError> {
    let mut buffer = vec![0; 1 << 20];
    for path in files_below(root)? {
        let mut file = File::open(&path).map_err(BenchError::io("opening", &path))?;
        while file.read(&mut buffer).map_err(BenchError::io("reading", &path))? > 0 {}
    }
    Ok(())
}

/// The directory below `root` that holds a file of this name.
pub(crate) fn directory_with(root: &Path, name: &str) -> Result<Option<PathBuf>, BenchError> {
    let found = files_below(root)?.into_iter().find(|path| path.file_name().is_some_and(|it| it == name));
    Ok(found.and_then(|path| path.parent().map(Path::to_owned)))
}

/// The names of the files directly in `dir` with this extension, in order.
pub(crate) fn names_with_extension(dir: &Path, extension: &str) -> Result<Vec<PathBuf>, BenchError> {
    let files = files_below(dir)?.into_iter();
    let fits =
        files.filter(|path| path.parent() == Some(dir) && path.extension().is_some_and(|it| it == extension));
    Ok(fits.filter_map(|path| path.file_name().map(PathBuf::from)).collect())
}

/// Whether two files have the same bytes.
pub(crate) fn same_bytes(left: &Path, right: &Path) -> Result<bool, BenchError> {
    let digest = |path: &Path| -> Result<blake3::Hash, BenchError> {
        let mut hasher = blake3::Hasher::new();
        let mut file = File::open(path).map_err(BenchError::io("opening", path))?;
        std::io::copy(&mut file, &mut hasher).map_err(BenchError::io("reading", path))?;
        Ok(hasher.finalize())
    };
    Ok(length(left)? == length(right)? && digest(left)? == digest(right)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_found_counted_and_compared() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        std::fs::create_dir_all(root.join("a/b")).unwrap();
        std::fs::write(root.join("a/b/CURRENT"), "x").unwrap();
        std::fs::write(root.join("a/b/1.sst"), "table").unwrap();
        std::fs::write(root.join("a/2.sst"), "other").unwrap();
        std::os::unix::fs::symlink("/", root.join("a/away")).unwrap();
        assert_eq!(bytes_below(root).unwrap(), 11);
        assert_eq!(directory_with(root, "CURRENT").unwrap(), Some(root.join("a/b")));
        assert_eq!(directory_with(root, "nothing").unwrap(), None);
        assert_eq!(names_with_extension(&root.join("a"), "sst").unwrap(), [PathBuf::from("2.sst")]);
        assert!(!same_bytes(&root.join("a/b/1.sst"), &root.join("a/2.sst")).unwrap());
        assert!(same_bytes(&root.join("a/2.sst"), &root.join("a/2.sst")).unwrap());
        warm(root).unwrap();
    }
}
