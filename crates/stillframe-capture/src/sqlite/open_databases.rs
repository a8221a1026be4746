//! Which databases this process has open through SQLite.

use std::collections::BTreeSet;
use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::sync::{Mutex, MutexGuard};

/// The system hands `/proc/locks` out a page at a time, and while others take and drop locks in between a line may be left out. Locks
/// that were lost do not come back, so a line that is there once is proof.
const LOOKS: u32 = 16;

/// Databases and their `-shm` files by device and inode.
///
/// POSIX locks belong to a process and a file: closing any handle of the file drops them all. So nothing in this crate
/// opens a file that is registered here.
static OPEN: Mutex<BTreeSet<(u64, u64)>> = Mutex::new(BTreeSet::new());

/// The register.
pub(crate) struct OpenDatabases;

/// An entry of the register; ends with the value.
#[derive(Debug)]
pub(super) struct OpenDatabase {
    files: Vec<(u64, u64)>,
    /// The system shows the locks of this process on the files.
    locks_seen: bool,
}

impl OpenDatabases {
    /// Whether the file must not be opened now.
    pub(crate) fn contains(meta: &Metadata) -> bool {
        open().contains(&(meta.dev(), meta.ino()))
    }

    /// Registers a database; `None` if it is there already.
    pub(super) fn register(meta: &Metadata) -> Option<OpenDatabase> {
        let file = (meta.dev(), meta.ino());
        open().insert(file).then(|| OpenDatabase { files: vec![file], locks_seen: false })
    }
}

impl OpenDatabase {
    /// Registers its `-shm` too.
    pub(super) fn add(&mut self, meta: &Metadata) {
        let file = (meta.dev(), meta.ino());
        if open().insert(file) {
            self.files.push(file);
        }
    }

    /// To be called when the read transaction has begun: whether its locks can be seen at all.
    pub(super) fn note_locks(&mut self) {
        self.locks_seen = self.holds_locks();
    }

    /// Whether locks that were seen are there no more.
    pub(super) fn locks_were_lost(&self) -> bool {
        self.locks_seen && !self.holds_locks()
    }

    fn holds_locks(&self) -> bool {
        (0..LOOKS).any(|_| own_locks(&self.files))
    }
}

/// Whether this process holds a POSIX lock on one of the files, as `/proc/locks` tells. Devices are not compared: some file
/// systems show others there than in `stat`.
fn own_locks(files: &[(u64, u64)]) -> bool {
    let Ok(locks) = std::fs::read_to_string("/proc/locks") else { return false };
    let process = std::process::id().to_string();
    locks.lines().any(|line| {
        // 1: POSIX  ADVISORY  READ 1234 fd:01:10100997 1073741826 1073742335
        let mut words = line.split_ascii_whitespace().skip(1);
        let kind = words.next();
        let mut words = words.skip(2);
        let owner = words.next();
        let inode = words.next().and_then(|id| id.rsplit(':').next()?.parse::<u64>().ok());
        kind == Some("POSIX")
            && owner == Some(process.as_str())
            && inode.is_some_and(|inode| files.iter().any(|(_, own)| *own == inode))
    })
}

impl Drop for OpenDatabase {
    fn drop(&mut self) {
        let mut open = open();
        for file in &self.files {
            open.remove(file);
        }
    }
}

fn open() -> MutexGuard<'static, BTreeSet<(u64, u64)>> {
    OPEN.lock().expect("no code panics while it holds this lock")
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use rusqlite::Connection;

    use super::*;

    #[test]
    fn locks_are_seen_among_many_that_come_and_go_and_missed_when_they_are_lost() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("db");
        Connection::open(&path).unwrap().execute_batch("CREATE TABLE t(a)").unwrap();
        let mut open = OpenDatabases::register(&path.metadata().unwrap()).unwrap();
        let reader = Connection::open(&path).unwrap();
        reader.execute_batch("BEGIN; SELECT * FROM t").unwrap();
        open.note_locks();
        assert!(open.locks_seen);
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            for thread in 0..2 {
                let (dir, done) = (dir.path(), &done);
                scope.spawn(move || {
                    // Each in a transaction of its own: more lines than fit one page.
                    while !done.load(Ordering::Relaxed) {
                        let others = (0..60).map(|n| {
                            let other = Connection::open(dir.join(format!("{thread}-{n}"))).unwrap();
                            other.execute_batch("BEGIN EXCLUSIVE").unwrap();
                            other
                        });
                        drop(others.collect::<Vec<_>>());
                    }
                });
            }
            let lost = (0..2000).any(|_| open.locks_were_lost());
            done.store(true, Ordering::Relaxed);
            assert!(!lost, "nobody took them");
        });
        // What must not happen: another part of the process opens and closes the file.
        drop(std::fs::File::open(&path).unwrap());
        assert!(open.locks_were_lost());
    }
}
