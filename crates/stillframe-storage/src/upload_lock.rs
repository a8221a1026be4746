//! Uploads into a directory that a killed process left half done.

use std::fs::File;
use std::io;
use std::path::Path;
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};

use crate::Location;

/// How often, and after which pause, the lock is tried.
const ATTEMPTS: u32 = 200;
const PAUSE: Duration = Duration::from_millis(10);

/// Held by everybody who writes into a store, for as long as it does. Who takes it while nobody else has it removes what a killed writer
/// left: the store writes each object under a name of its own first (`<name>#<number>`), and lists no such names.
///
/// It is a `flock` on the store's directory, so it ends with its process and leaves nothing.
#[derive(Debug)]
pub struct UploadLock {
    _directory: File,
}

impl UploadLock {
    /// `None` where there is nothing to lock, or locking is not possible: then nothing is removed.
    pub fn take(location: &Location) -> Option<Self> {
        let Location::Directory(path) = location else { return None };
        let directory = File::open(path).ok()?;
        if flock(&directory, FlockOperation::NonBlockingLockExclusive).is_ok() {
            for place in [path.clone(), path.join("packs")] {
                if let Err(error) = sweep(&place) {
                    tracing::debug!(path = %place.display(), %error, "unfinished uploads could not be looked for");
                }
            }
        }
        // A sweep by another process takes a moment only. Whoever holds it longer, such as flock(1) around this very program, does
        // not sweep.
        for _ in 0..ATTEMPTS {
            if flock(&directory, FlockOperation::NonBlockingLockShared).is_ok() {
                return Some(Self { _directory: directory });
            }
            std::thread::sleep(PAUSE);
        }
        None
    }
}

/// Looks into the directories of `dir`: objects are one level down, packs two.
fn sweep(dir: &Path) -> io::Result<()> {
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            for object in std::fs::read_dir(entry.path())? {
                remove_unfinished(&object?.path())?;
            }
        } else {
            remove_unfinished(&entry.path())?;
        }
    }
    Ok(())
}

fn remove_unfinished(path: &Path) -> io::Result<()> {
    let number = path.file_name().and_then(|name| name.to_str()?.rsplit_once('#')).map(|(_, number)| number);
    let is_upload =
        number.is_some_and(|number| !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit()));
    if is_upload && std::fs::symlink_metadata(path)?.is_file() {
        tracing::info!(path = %path.display(), "removing what an interrupted upload left");
        std::fs::remove_file(path)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_killed_uploads_left_goes_when_nobody_else_writes() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        std::fs::create_dir_all(at("packs/ab")).unwrap();
        std::fs::create_dir_all(at("sealed")).unwrap();
        let (left, kept) =
            (["packs/ab/abcd#1", "sealed/ef#23", "stillframe.json#1"], ["packs/ab/abcd", "sealed/a#b"]);
        let make = || left.iter().chain(&kept).for_each(|name| std::fs::write(at(name), "x").unwrap());
        let location = Location::Directory(dir.path().to_owned());
        make();
        let first = UploadLock::take(&location).unwrap();
        assert!(left.iter().all(|name| !at(name).exists()));
        make();
        let second = UploadLock::take(&location).unwrap();
        assert!(left.iter().all(|name| at(name).exists()), "another writer lives, and they may be its own");
        drop((first, second));
        drop(UploadLock::take(&location));
        assert!(left.iter().all(|name| !at(name).exists()) && kept.iter().all(|name| at(name).exists()));
        assert!(UploadLock::take(&Location::Memory).is_none());
        let others = File::open(dir.path()).unwrap();
        flock(&others, FlockOperation::LockExclusive).unwrap();
        assert!(UploadLock::take(&location).is_none(), "somebody else's lock is not waited for");
    }
}
