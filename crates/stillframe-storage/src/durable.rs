//! Making what was written survive a power loss.

use std::fs::File;
use std::io;
use std::path::Path;

/// Makes the entries of one directory durable (names that were created, renamed or removed in it).
pub fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

/// Makes the entries of `dir` and of every directory below it durable, deepest first. Links are not followed.
pub fn sync_tree_dirs(dir: &Path) -> io::Result<()> {
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            sync_tree_dirs(&entry.path())?;
        }
    }
    sync_dir(dir)
}

/// Flushes everything dirty on the file system that holds `path`. One call for thousands of freshly written files;
/// it also waits for what others wrote there, so it is for restores, not for work beside a busy database.
pub fn sync_filesystem(path: &Path) -> io::Result<()> {
    Ok(rustix::fs::syncfs(File::open(path)?)?)
}
