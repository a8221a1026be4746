//! Directories for work in progress: seen by nobody until they are whole, found and removed when their owner died.

use std::ffi::OsStr;
use std::fs::{DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};

use crate::durable::{sync_dir, sync_tree_dirs};
use crate::failpoint::failpoint;
use crate::lock::lock_at;

/// How every staging directory's name begins. Its lock file has the same name and the ending `.lock`.
const PREFIX: &str = ".stillframe-";
const LOCK_SUFFIX: &str = ".lock";

/// Random digits of a name.
const DIGITS: usize = 16;

/// Whether a file or directory of this name is a staging directory, or the lock of one: `.stillframe-` and 16 lower-case hexadecimal
/// digits. Nothing else that is called in a similar way is ours.
pub fn is_staging_name(name: &OsStr) -> bool {
    let name = name.to_str().and_then(|name| name.strip_prefix(PREFIX));
    let digits = name.map(|name| name.strip_suffix(LOCK_SUFFIX).unwrap_or(name));
    digits.is_some_and(|digits| {
        digits.len() == DIGITS && digits.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
    })
}

/// A directory `.stillframe-<random>` that belongs to this process.
///
/// Ownership is a `flock` on `.stillframe-<random>.lock` beside it. The kernel lets go of it when the process ends in
/// whatever way, so [`sweep_leftovers`] can tell a dead owner's directory from a living one without clocks or
/// process ids. Dropping removes directory and lock file.
#[derive(Debug)]
pub struct StagingDir {
    path: PathBuf,
    lock_path: PathBuf,
    _lock: File,
}

/// Why a staged directory could not be published.
#[derive(Debug, thiserror::Error)]
pub enum PublishError {
    /// The final name is taken by something that is not an empty directory. Choose another one.
    #[error("{0} already exists and is not an empty directory")]
    Occupied(PathBuf),
    /// It is there, whole, and its name may still be lost in a power cut.
    #[error("{path} is there, but its name could not be made durable: {source}")]
    NotDurable {
        /// What was published to.
        path: PathBuf,
        /// What the file system said.
        source: io::Error,
    },
    /// The file system refused.
    #[error("{path}: {source}")]
    Io {
        /// What was being published to.
        path: PathBuf,
        /// What the file system said.
        source: io::Error,
    },
}

impl StagingDir {
    /// Makes one inside `parent`, which only its owner may enter. `name` is 16 random lower-case hexadecimal digits, from the caller's
    /// generator.
    pub fn create(parent: &Path, name: &str) -> io::Result<Self> {
        if !is_staging_name(OsStr::new(&format!("{PREFIX}{name}"))) {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("{name:?} is no name for staging"),
            ));
        }
        let path = parent.join(format!("{PREFIX}{name}"));
        let lock_path = parent.join(format!("{PREFIX}{name}{LOCK_SUFFIX}"));
        // The lock file first, the directory second: so every directory has a lock file, and one whose lock is free
        // has no owner.
        let lock = lock_at(&lock_path)?;
        failpoint("staging::locked");
        match DirBuilder::new().mode(0o700).create(&path) {
            Ok(()) => Ok(Self { path, lock_path, _lock: lock }),
            Err(error) => {
                // Best effort: the sweep finds what is left.
                let _ = std::fs::remove_file(&lock_path);
                Err(error)
            }
        }
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Makes the directory appear as `target`, whole: directories below it are made durable, then it is renamed, then
    /// the name is made durable. Files must be durable already. `target` may be an empty directory.
    pub fn publish(self, target: &Path) -> Result<(), PublishError> {
        let staged = self.path.clone();
        self.publish_part(&staged, target)
    }

    /// Like [`Self::publish`] for one directory inside this one; the rest is removed.
    pub fn publish_part(self, part: &Path, target: &Path) -> Result<(), PublishError> {
        let io_error = |source| PublishError::Io { path: target.to_owned(), source };
        sync_tree_dirs(part).map_err(io_error)?;
        failpoint("staging::synced");
        std::fs::rename(part, target).map_err(|error| match error.kind() {
            io::ErrorKind::DirectoryNotEmpty
            | io::ErrorKind::AlreadyExists
            | io::ErrorKind::NotADirectory => PublishError::Occupied(target.to_owned()),
            _ => io_error(error),
        })?;
        failpoint("staging::renamed");
        let parent = match target.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        sync_dir(parent).map_err(|source| PublishError::NotDurable { path: target.to_owned(), source })
    }
}

impl Drop for StagingDir {
    fn drop(&mut self) {
        // What cannot be removed now is found by the next sweep: the lock file goes last, and only if the rest is gone.
        let gone = match std::fs::remove_dir_all(&self.path) {
            Ok(()) => true,
            Err(error) => error.kind() == io::ErrorKind::NotFound,
        };
        if gone {
            let _ = std::fs::remove_file(&self.lock_path);
        } else {
            tracing::warn!(path = %self.path.display(), "could not remove a staging directory; the next run will");
        }
    }
}

/// Removes the staging directories in `parent` whose owner is gone, and returns them. What belongs to a living process or
/// cannot be opened (another user's) stays.
pub fn sweep_leftovers(parent: &Path) -> io::Result<Vec<PathBuf>> {
    let mut swept = Vec::new();
    for entry in std::fs::read_dir(parent)? {
        let lock_path = entry?.path();
        let Some(dir) = directory_of_lock(&lock_path) else { continue };
        let Ok(lock) = OpenOptions::new().read(true).write(true).open(&lock_path) else { continue };
        if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
            continue;
        }
        match std::fs::remove_dir_all(&dir) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(path = %dir.display(), %error, "could not remove a leftover");
                continue;
            }
            Ok(()) => swept.push(dir),
            Err(_) => {}
        }
        if let Err(error) = std::fs::remove_file(&lock_path)
            && error.kind() != io::ErrorKind::NotFound
        {
            return Err(error);
        }
    }
    Ok(swept)
}

fn directory_of_lock(lock_path: &Path) -> Option<PathBuf> {
    let name = lock_path.file_name().filter(|name| is_staging_name(name))?.to_str()?;
    let dir = name.strip_suffix(LOCK_SUFFIX)?;
    Some(lock_path.with_file_name(dir))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_living_owner_keeps_its_directory_and_a_dead_one_loses_it() {
        let parent = tempfile::tempdir().unwrap();
        let alive = StagingDir::create(parent.path(), "00000000a11fe000").unwrap();
        std::fs::write(alive.path().join("x"), "x").unwrap();
        // What a killed process leaves: a directory and a lock file that nobody holds.
        let dead = parent.path().join(".stillframe-00000000000dead0");
        std::fs::create_dir_all(dead.join("deep")).unwrap();
        std::fs::write(parent.path().join(".stillframe-00000000000dead0.lock"), "").unwrap();
        // Names that only look like ours.
        let foreign = [".stillframe-notes.lock", ".stillframe-00000000000DEAD0.lock", "foreign.lock"];
        for name in foreign {
            std::fs::write(parent.path().join(name), "").unwrap();
            std::fs::create_dir(parent.path().join(name.trim_end_matches(".lock"))).unwrap();
        }
        assert_eq!(std::fs::metadata(alive.path()).unwrap().permissions().mode() & 0o777, 0o700);

        assert_eq!(sweep_leftovers(parent.path()).unwrap(), vec![dead.clone()]);
        assert!(!dead.exists());
        assert!(alive.path().join("x").exists());
        drop(alive);
        assert_eq!(
            std::fs::read_dir(parent.path()).unwrap().count(),
            2 * foreign.len(),
            "nothing of ours is left"
        );
        assert!(foreign.iter().all(|name| parent.path().join(name).exists()), "nothing foreign is touched");
    }

    #[test]
    fn publishing_never_replaces_what_is_there() {
        let parent = tempfile::tempdir().unwrap();
        let occupied = parent.path().join("occupied");
        std::fs::create_dir(&occupied).unwrap();
        std::fs::write(occupied.join("precious"), "1").unwrap();
        let staging = StagingDir::create(parent.path(), "000000000000000a").unwrap();
        assert!(matches!(staging.publish(&occupied), Err(PublishError::Occupied(_))));
        assert!(occupied.join("precious").exists());

        let empty = parent.path().join("empty");
        std::fs::create_dir(&empty).unwrap();
        let staging = StagingDir::create(parent.path(), "000000000000000b").unwrap();
        std::fs::write(staging.path().join("new"), "1").unwrap();
        staging.publish(&empty).unwrap();
        assert!(empty.join("new").exists());
        assert_eq!(std::fs::read_dir(parent.path()).unwrap().count(), 2, "locks and staging are gone");
    }

    #[test]
    fn sweepers_that_never_pause_take_no_living_owners_directory() {
        let dir = tempfile::tempdir().unwrap();
        let over = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            let sweeper = scope.spawn(|| {
                while !over.load(std::sync::atomic::Ordering::Relaxed) {
                    sweep_leftovers(dir.path()).unwrap();
                }
            });
            let owner = scope.spawn(|| {
                for n in 0..1000 {
                    let staging = StagingDir::create(dir.path(), &format!("{n:016x}")).unwrap();
                    std::fs::write(staging.path().join("file"), b"x").unwrap();
                }
            });
            let ended = owner.join();
            over.store(true, std::sync::atomic::Ordering::Relaxed);
            ended.unwrap();
            sweeper.join().unwrap();
        });
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
