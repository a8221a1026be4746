//! A copy to be opened and thrown away.

use std::io;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

/// A copy of a database that may be opened, which changes it. Gone when dropped.
#[derive(Debug)]
pub struct ScratchCopy {
    dir: TempDir,
    name: PathBuf,
}

impl ScratchCopy {
    /// Copies a directory, with everything in it, below `scratch`.
    pub fn of_directory(source: &Path, scratch: &Path) -> io::Result<Self> {
        let dir = tempfile::tempdir_in(scratch)?;
        copy_tree(source, &dir.path().join("copy"))?;
        Ok(Self { dir, name: "copy".into() })
    }

    /// Copies a file and those beside it that have one of the `suffixes` appended to its name.
    pub fn of_file(source: &Path, suffixes: &[&str], scratch: &Path) -> io::Result<Self> {
        let dir = tempfile::tempdir_in(scratch)?;
        std::fs::copy(source, dir.path().join("copy"))?;
        for suffix in suffixes {
            let mut beside = source.as_os_str().to_owned();
            beside.push(suffix);
            match std::fs::copy(&beside, dir.path().join(format!("copy{suffix}"))) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        Ok(Self { dir, name: "copy".into() })
    }

    /// Where it is.
    pub fn path(&self) -> PathBuf {
        self.dir.path().join(&self.name)
    }
}

fn copy_tree(source: &Path, target: &Path) -> io::Result<()> {
    std::fs::create_dir(target)?;
    for entry in std::fs::read_dir(source)? {
        let entry = entry?;
        let to = target.join(entry.file_name());
        let kind = entry.file_type()?;
        if kind.is_dir() {
            copy_tree(&entry.path(), &to)?;
        } else if kind.is_symlink() {
            std::os::unix::fs::symlink(std::fs::read_link(entry.path())?, to)?;
        } else {
            std::fs::copy(entry.path(), to)?;
        }
    }
    Ok(())
}
