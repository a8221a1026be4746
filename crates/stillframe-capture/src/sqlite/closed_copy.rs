//! A WAL database that nobody has open, where SQLite can make no index beside it: a folder or file system that is not writable.

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::staging::Staging;
use crate::{CaptureError, CaptureOptions, Context};

use super::begin::open_own;
use super::beside;
use super::error::failed;

/// A file that was written within this time may be written again without a visible change of its times.
const SETTLED: i64 = 2;
const PAUSE: Duration = Duration::from_millis(100);

/// What tells that a file was not touched.
#[derive(Debug, PartialEq, Eq)]
struct Untouched {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Untouched {
    fn of(path: &Path) -> Result<Option<Self>, CaptureError> {
        match std::fs::metadata(path) {
            Ok(meta) => Ok(Some(Self::from(&meta))),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(CaptureError::from_io("read", path, error)),
        }
    }
}

impl From<&Metadata> for Untouched {
    fn from(meta: &Metadata) -> Self {
        Self {
            device: meta.dev(),
            inode: meta.ino(),
            size: meta.size(),
            modified: (meta.mtime(), meta.mtime_nsec()),
            changed: (meta.ctime(), meta.ctime_nsec()),
        }
    }
}

/// Copies database and log into staging, and applies the log to the copy. Only if neither changed while they were copied, and no
/// rollback journal is there.
pub(super) fn copy_closed(
    path: &Path,
    staging: &Staging,
    options: &CaptureOptions,
    context: &Context<'_>,
) -> Result<PathBuf, CaptureError> {
    if std::fs::metadata(beside(path, "-journal")).is_ok_and(|meta| meta.len() > 0) {
        return Err(CaptureError::RecoveryNeeded {
            path: path.to_owned(),
            what:
                "a rollback journal lies beside it and it cannot be opened where it is; start and stop the \
                   application once"
                    .to_owned(),
        });
    }
    let scratch = staging.scratch_dir("sqlite")?;
    let copy = scratch.join("database");
    let deadline = context.clock.monotonic() + options.deadline;
    loop {
        context.check_cancelled()?;
        if try_copy(path, &copy, context)? {
            break;
        }
        if context.clock.monotonic() >= deadline {
            return Err(CaptureError::Locked {
                path: path.to_owned(),
                what: "it is written to, and SQLite cannot read it where it is because its folder is not writable; \
                       run as its owner or as root"
                    .to_owned(),
            });
        }
        std::thread::sleep(PAUSE);
    }
    // Opened as its application would open it after a crash; the log is applied and removed.
    let connection = open_own(&copy)?;
    connection
        .query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| row.get::<_, i64>(0))
        .map_err(failed(path))
        .and_then(|busy| if busy == 0 { Ok(()) } else { Err(super::error::locked(path)) })?;
    connection.close().map_err(|(_, error)| failed(path)(error))?;
    Ok(copy)
}

fn try_copy(path: &Path, copy: &Path, context: &Context<'_>) -> Result<bool, CaptureError> {
    let wal = beside(path, "-wal");
    let look = || Ok::<_, CaptureError>((Untouched::of(path)?, Untouched::of(&wal)?));
    let before = look()?;
    let now = context.clock.now().as_second();
    let settled = |file: &Option<Untouched>| {
        file.as_ref().is_none_or(|file| file.modified.0.max(file.changed.0) + SETTLED <= now)
    };
    if before.0.is_none() {
        return Err(CaptureError::Vanished { path: path.to_owned() });
    }
    if !settled(&before.0) || !settled(&before.1) {
        return Ok(false);
    }
    for (from, to) in [(path, copy.to_owned()), (&wal, beside(copy, "-wal"))] {
        let _ = std::fs::remove_file(&to);
        let Some(file) = Untouched::of(from)? else { continue };
        let source = std::fs::File::open(from).map_err(CaptureError::io("open", from))?;
        match crate::image::copy_file(&source, file.size, from, &to, context.cancel) {
            Ok(()) => {}
            // Cut while it was copied.
            Err(CaptureError::Corrupt { .. }) => return Ok(false),
            Err(error) => return Err(error),
        }
    }
    Ok(look()? == before)
}

#[cfg(test)]
mod tests {
    use std::fs::{File, FileTimes};
    use std::os::unix::fs::FileExt;

    use jiff::{SignedDuration, Timestamp};
    use stillframe_storage::{Clock, SystemClock};

    use super::*;
    use crate::test_support::Surroundings;

    /// A clock that goes ahead of the files' times, and by which something happens between the first look at the files and
    /// their copy.
    #[derive(Debug)]
    struct Meanwhile {
        ahead: SignedDuration,
        file: PathBuf,
        work: fn(&Path),
    }

    impl Clock for Meanwhile {
        fn now(&self) -> Timestamp {
            (self.work)(&self.file);
            SystemClock::new().now() + self.ahead
        }

        fn monotonic(&self) -> Duration {
            SystemClock::new().monotonic()
        }
    }

    const LATER: SignedDuration = SignedDuration::from_secs(60);

    fn closed(dir: &Path) -> (PathBuf, PathBuf) {
        let (db, wal) = (dir.join("db"), dir.join("db-wal"));
        std::fs::write(&db, [1; 5000]).unwrap();
        std::fs::write(&wal, [2; 5000]).unwrap();
        (db, wal)
    }

    fn is_copied(db: &Path, clock: &Meanwhile) -> bool {
        let copy = tempfile::tempdir().unwrap();
        Surroundings::default()
            .with(|context| try_copy(db, &copy.path().join("copy"), &Context { clock, ..*context }))
            .unwrap()
    }

    #[test]
    fn what_was_written_a_moment_ago_is_not_copied_yet() {
        let dir = tempfile::tempdir().unwrap();
        let (db, wal) = closed(dir.path());
        let at = |ahead| Meanwhile { ahead, file: db.clone(), work: |_| {} };
        let set_modified = |file: &Path, time: Timestamp| {
            let file = File::options().write(true).open(file).unwrap();
            file.set_times(FileTimes::new().set_modified(time.into())).unwrap();
        };
        assert!(is_copied(&db, &at(LATER)));
        for file in [&db, &wal] {
            set_modified(file, Timestamp::UNIX_EPOCH);
            assert!(
                !is_copied(&db, &at(SignedDuration::ZERO)),
                "what a program says of its time does not count"
            );
            set_modified(file, SystemClock::new().now() + LATER);
            assert!(!is_copied(&db, &at(LATER)));
            set_modified(file, Timestamp::UNIX_EPOCH);
            assert!(is_copied(&db, &at(LATER)));
        }
    }

    #[test]
    fn what_changes_while_it_is_copied_is_not_taken() {
        let changes: [fn(&Path); 3] = [
            |file| {
                let file = File::options().write(true).open(file).unwrap();
                file.set_len(file.metadata().unwrap().len() + 1).unwrap();
            },
            |file| {
                std::fs::write(file.with_extension("new"), [3; 5000]).unwrap();
                std::fs::rename(file.with_extension("new"), file).unwrap();
            },
            // In place, with the time set back: the file system's own time shows it, in steps of some milliseconds.
            |file| {
                std::thread::sleep(Duration::from_millis(50));
                let modified = std::fs::metadata(file).unwrap().modified().unwrap();
                let file = File::options().write(true).open(file).unwrap();
                file.write_all_at(&[3; 10], 0).unwrap();
                file.set_times(FileTimes::new().set_modified(modified)).unwrap();
            },
        ];
        for work in changes {
            let dir = tempfile::tempdir().unwrap();
            let (db, wal) = closed(dir.path());
            for file in [db.clone(), wal] {
                let copied = is_copied(&db, &Meanwhile { ahead: LATER, file: file.clone(), work });
                assert!(!copied, "{}", file.display());
            }
            assert!(is_copied(&db, &Meanwhile { ahead: LATER, file: db.clone(), work: |_| {} }));
        }
    }

    /// Opened without its journal, the copy would show half a transaction.
    #[test]
    fn a_closed_database_with_a_rollback_journal_is_not_copied() {
        let dir = tempfile::tempdir().unwrap();
        let (db, journal) = (dir.path().join("db"), dir.path().join("db-journal"));
        let made = rusqlite::Connection::open(&db).unwrap();
        made.execute_batch("PRAGMA journal_mode=wal; CREATE TABLE t(v)").unwrap();
        drop(made);
        let options = CaptureOptions::default();
        let clock = Meanwhile { ahead: LATER, file: db.clone(), work: |_| {} };
        let copied = || {
            Surroundings::default().with(|context| {
                let staging = Staging::for_source(&db, &options, context).unwrap();
                copy_closed(&db, &staging, &options, &Context { clock: &clock, ..*context }).map(|_| ())
            })
        };
        std::fs::write(&journal, "").unwrap();
        copied().unwrap();
        std::fs::write(&journal, [1; 600]).unwrap();
        let refused = copied();
        assert!(matches!(refused, Err(CaptureError::RecoveryNeeded { .. })), "{refused:?}");
    }
}
