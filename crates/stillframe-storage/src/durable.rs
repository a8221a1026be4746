//! Making what was written survive a power loss.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

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

/// Directories that were made on the way to a place. Unless they are kept, those that are empty go again when this is dropped.
#[derive(Debug)]
#[must_use = "dropped, it takes the directories away again"]
pub struct MadeDirs(Vec<PathBuf>);

impl MadeDirs {
    /// Makes `path` and whatever is missing above it, with durable names.
    pub fn make(path: &Path) -> io::Result<Self> {
        let is_missing = |dir: &&Path| !dir.as_os_str().is_empty() && !dir.exists();
        let mut missing: Vec<&Path> = path.ancestors().take_while(is_missing).collect();
        let mut made = Self(Vec::new());
        while let Some(dir) = missing.pop() {
            match std::fs::create_dir(dir) {
                Ok(()) => made.0.push(dir.to_owned()),
                // Somebody else was faster: then it is theirs.
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists && dir.is_dir() => continue,
                Err(error) => return Err(error),
            }
            let parent = dir.parent().filter(|parent| !parent.as_os_str().is_empty());
            sync_dir(parent.unwrap_or(Path::new(".")))?;
        }
        Ok(made)
    }

    /// They stay.
    pub fn keep(mut self) {
        self.0.clear();
    }
}

impl Drop for MadeDirs {
    fn drop(&mut self) {
        for dir in self.0.drain(..).rev() {
            // Not empty: then it is needed.
            let _ = std::fs::remove_dir(dir);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directories_that_were_made_go_again_unless_they_are_kept_or_used() {
        let root = tempfile::tempdir().unwrap();
        let at = |name: &str| root.path().join(name);
        drop(MadeDirs::make(&at("a/b/c")).unwrap());
        assert!(!at("a").exists());
        let made = MadeDirs::make(&at("a/b/c")).unwrap();
        std::fs::write(at("a/file"), "x").unwrap();
        drop(made);
        assert!(at("a").exists() && !at("a/b").exists());
        MadeDirs::make(&at("a/b/c")).unwrap().keep();
        // What was there before is not ours.
        drop(MadeDirs::make(&at("a/b/c")).unwrap());
        assert!(at("a/b/c").is_dir());
        assert!(MadeDirs::make(&at("a/file/b")).is_err());
    }
}
