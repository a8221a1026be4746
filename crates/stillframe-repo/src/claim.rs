//! A note on this machine that a manifest is there without its seal, since it is being finished or forgotten, so that the next run finds what
//! a killed one left.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use stillframe_storage::{lock_at, make_private_dirs, sync_dir};

use crate::BackupId;

const DIRECTORY: &str = "unsealed";
/// The note of whoever is about to write one; in this directory like the others, but with no manifest's name.
const UNBORN: &str = "unborn";

/// A file `unsealed/<manifest id>` below the repository's state directory, locked for as long as its owner lives. The
/// kernel lets go of the lock in whatever way the owner ends, so no clock and no process id is needed.
#[derive(Debug)]
pub(crate) struct Claim {
    pub(crate) id: BackupId,
    path: PathBuf,
    /// `None`: the note could not be written; then a kill leaves a manifest that only an explicit wish removes.
    lock: Option<File>,
}

impl Claim {
    /// Written before the manifest is put, or loses its seal.
    pub(crate) fn new(state: &Path, id: BackupId) -> Self {
        let directory = state.join(DIRECTORY);
        let path = directory.join(id.to_string());
        let lock = match Self::create(&directory, &path) {
            Ok(file) => Some(file),
            Err(error) => {
                tracing::warn!(
                    path = %path.display(), %error,
                    "that a backup is being finished or forgotten cannot be noted: if this run is killed, what it leaves is not taken away by the next"
                );
                None
            }
        };
        Self { id, path, lock }
    }

    /// A note is locked before it bears its name. One that could be seen unlocked would be taken for a dead owner's, and the
    /// manifest deleted that its owner is about to seal.
    fn create(directory: &Path, path: &Path) -> io::Result<File> {
        make_private_dirs(directory)?;
        let unborn = directory.join(UNBORN);
        let file = lock_at(&unborn)?;
        std::fs::rename(&unborn, path)?;
        sync_dir(directory)?;
        Ok(file)
    }

    /// The manifest is sealed, or gone for certain.
    pub(crate) fn settle(self) {
        if self.lock.is_some() {
            // What stays is settled by the next run.
            let _ = std::fs::remove_file(&self.path);
        }
    }

    /// Takes over the notes of owners that are gone.
    pub(crate) fn of_the_dead(state: &Path) -> Vec<Self> {
        let Ok(entries) = std::fs::read_dir(state.join(DIRECTORY)) else { return Vec::new() };
        let claims = entries.filter_map(|entry| {
            let path = entry.ok()?.path();
            let id = path.file_name()?.to_str()?.parse().ok()?;
            let lock = File::options().write(true).open(&path).ok()?;
            flock(&lock, FlockOperation::NonBlockingLockExclusive).ok()?;
            Some(Self { id, path, lock: Some(lock) })
        });
        claims.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ObjectId;

    #[test]
    fn a_claim_of_a_living_owner_is_left_alone_and_a_dead_ones_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let (alive, dead) = (ObjectId::random(), ObjectId::random());
        let claim = Claim::new(dir.path(), alive);
        drop(Claim::new(dir.path(), dead));
        let found = Claim::of_the_dead(dir.path());
        assert_eq!(found.iter().map(|claim| claim.id).collect::<Vec<_>>(), [dead]);
        found.into_iter().for_each(Claim::settle);
        claim.settle();
        assert!(Claim::of_the_dead(dir.path()).is_empty());
    }

    #[test]
    fn a_living_owners_claim_is_never_found_at_whatever_moment_one_looks() {
        let dir = tempfile::tempdir().unwrap();
        let over = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            let owners: Vec<_> = (0..2)
                .map(|_| {
                    scope.spawn(|| {
                        for _ in 0..2000 {
                            let claim = Claim::new(dir.path(), ObjectId::random());
                            assert!(claim.lock.is_some(), "the note was taken away");
                            assert!(claim.path.exists());
                            claim.settle();
                        }
                    })
                })
                .collect();
            let looker = scope.spawn(|| {
                while !over.load(std::sync::atomic::Ordering::Relaxed) {
                    // What was opened before it was removed, and locked after: its owner has settled it.
                    for found in Claim::of_the_dead(dir.path()) {
                        assert!(!found.path.exists(), "a living owner's claim was found");
                    }
                }
            });
            let ended: Vec<_> = owners.into_iter().map(std::thread::ScopedJoinHandle::join).collect();
            over.store(true, std::sync::atomic::Ordering::Relaxed);
            ended.into_iter().for_each(|owner| owner.unwrap());
            looker.join().unwrap();
        });
        assert!(Claim::of_the_dead(dir.path()).is_empty());
    }
}
