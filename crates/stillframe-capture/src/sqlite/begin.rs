//! The first phase: from a path to a read transaction.

use std::fs::{File, Metadata};
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::{Connection, OpenFlags};

use crate::pin::FileMeta;
use crate::staging::Staging;
use crate::{CaptureError, CaptureOptions, Context, Event, Source};

use super::closed_copy::copy_closed;
use super::error::{Answer, failed, hot_journal, locked, sort};
use super::header::Header;
use super::lock_watch::LockWatch;
use super::open_databases::{OpenDatabase, OpenDatabases};
use super::wal::Wal;
use super::{Reader, State, Transaction, beside};

/// How long SQLite waits by itself before cancellation is looked at.
const BUSY_SLICE: Duration = Duration::from_millis(100);
/// Another writer rolls a dead one's transaction back at once, if there is another.
const ROLLBACK_PATIENCE: Duration = Duration::from_secs(1);
/// How much of a rollback-mode database is read ahead of its lock.
const WARM: u64 = 8 << 30;

/// Opens the database and starts the read transaction that is its instant. Gives up when others have it locked for as long
/// as `patience`.
pub(crate) fn begin(
    source: &Source,
    options: &CaptureOptions,
    patience: Duration,
    context: &Context<'_>,
) -> Result<Transaction, CaptureError> {
    let opened = CaptureError::io("open", &source.path);
    let path = std::fs::canonicalize(&source.path).map_err(opened)?;
    let stat = std::fs::metadata(&path).map_err(CaptureError::io("open", &path))?;
    if !stat.is_file() {
        return Err(CaptureError::NotADatabase {
            path,
            engine: "sqlite",
            reason: "it is not a regular file; name the database file itself".to_owned(),
        });
    }
    if stat.nlink() > 1 && !options.force {
        return Err(CaptureError::Refused {
            path,
            what: format!(
                "the file has {} names (hard links), and SQLite keeps its log beside the name that the application \
                 uses; name that one, and use --force to say so",
                stat.nlink()
            ),
        });
    }
    warn_of_network(&path, context);
    let mut transaction = Transaction {
        meta: file_meta(&path)?,
        header: None,
        staging: Staging::for_source(&path, options, context)?,
        instant: context.clock.now(),
        began: context.clock.monotonic(),
        attempts: 1,
        state: State::Empty,
        path,
    };
    if stat.len() == 0 {
        refuse_empty_with_log(&transaction.path)?;
        return Ok(transaction);
    }
    let Some(open) = OpenDatabases::register(&stat) else {
        return Err(CaptureError::Locked {
            path: transaction.path,
            what: "this process is capturing it already; wait for that".to_owned(),
        });
    };
    refuse_strange_company(&transaction.path)?;
    // Before the connection is there, never after: closing the file drops the process's locks.
    let header = Header::read(&transaction.path)?.map_err(|reason| CaptureError::NotADatabase {
        path: transaction.path.clone(),
        engine: "sqlite",
        reason,
    })?;
    transaction.header = Some(header);
    let logged = header.wal || beside(&transaction.path, "-wal").exists();
    let foreign = Foreign::look(&transaction.path, &stat, logged, options)?;
    if !logged {
        warm(&transaction.path, context)?;
    }
    start(&mut transaction, open, &foreign, options, patience, context)?;
    Ok(transaction)
}

/// SQLite opens what stands beside the database by itself, and would wait for somebody at the other end of a pipe.
fn refuse_strange_company(path: &Path) -> Result<(), CaptureError> {
    for suffix in ["-wal", "-shm", "-journal"] {
        let path = beside(path, suffix);
        if std::fs::metadata(&path).is_ok_and(|meta| !meta.is_file()) {
            return Err(CaptureError::Refused { path, what: "it is not a regular file".to_owned() });
        }
    }
    Ok(())
}

fn start(
    transaction: &mut Transaction,
    mut open: OpenDatabase,
    foreign: &Foreign,
    options: &CaptureOptions,
    patience: Duration,
    context: &Context<'_>,
) -> Result<(), CaptureError> {
    let path = transaction.path.clone();
    let give_up = context.clock.monotonic() + patience;
    let rolled_back = context.clock.monotonic() + ROLLBACK_PATIENCE;
    let bytes = File::open(&path).map_err(CaptureError::io("open", &path))?;
    loop {
        context.check_cancelled()?;
        transaction.instant = context.clock.now();
        transaction.began = context.clock.monotonic();
        match connect(&path) {
            Ok((connection, mode)) => {
                if let Ok(shm) = std::fs::metadata(beside(&path, "-shm")) {
                    open.add(&shm);
                }
                open.note_locks();
                foreign.check_after(&path, &mode)?;
                // SQLite has opened the path by itself.
                let same = |a: Metadata, b: Metadata| (a.dev(), a.ino()) == (b.dev(), b.ino());
                if !bytes.metadata().and_then(|own| Ok(same(own, std::fs::metadata(&path)?))).unwrap_or(false)
                {
                    return Err(CaptureError::Vanished { path });
                }
                transaction.state = if mode == "wal" {
                    let wal = Some(Wal::look(beside(&path, "-wal"), &beside(&path, "-shm"))?);
                    State::Reading { reader: Reader::Free(connection), wal, bytes, open }
                } else {
                    let watch = LockWatch::start(connection, options.sqlite_lock_timeout);
                    State::Reading { reader: Reader::Watched(watch), wal: None, bytes, open }
                };
                return Ok(());
            }
            Err(error) => match sort(&path, error) {
                Answer::Error(error) => return Err(error),
                Answer::Busy if context.clock.monotonic() >= give_up => return Err(locked(&path)),
                Answer::HotJournal if context.clock.monotonic() >= give_up.min(rolled_back) => {
                    return Err(hot_journal(&path));
                }
                answer @ (Answer::Busy | Answer::HotJournal) => {
                    transaction.attempts += 1;
                    let what = if matches!(answer, Answer::Busy) {
                        "a writer held the database"
                    } else {
                        std::thread::sleep(BUSY_SLICE);
                        "a writer had died in a transaction"
                    };
                    (context.events)(Event::Moved {
                        attempt: transaction.attempts - 1,
                        what: what.to_owned(),
                    });
                }
                Answer::NotWritable => {
                    let copied = copy_closed(&path, &transaction.staging, options, context)?;
                    transaction.state = State::Copied(copied);
                    return Ok(());
                }
            },
        }
    }
}

/// Opens read-only and starts a transaction with a read that needs no understanding of the schema. Returns the journal mode.
///
/// Read-only also means that the last to close does not checkpoint: SQLite does that under an exclusive lock of the database file,
/// and a file that is open for reading cannot be locked for writing.
fn connect(path: &Path) -> rusqlite::Result<(Connection, String)> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags)?;
    connection.busy_timeout(BUSY_SLICE)?;
    connection.execute_batch("BEGIN")?;
    let _version: i64 = connection.query_row("PRAGMA schema_version", [], |row| row.get(0))?;
    let mode: String = connection.query_row("PRAGMA journal_mode", [], |row| row.get(0))?;
    Ok((connection, mode))
}

/// SQLite deletes the log of a database that has no bytes, whoever opens it.
fn refuse_empty_with_log(path: &Path) -> Result<(), CaptureError> {
    let wal = beside(path, "-wal");
    match std::fs::metadata(&wal) {
        Ok(meta) if meta.len() > 0 => Err(CaptureError::Corrupt {
            path: path.to_owned(),
            what: format!(
                "it has no bytes, but {} has {}; SQLite would delete the log with all that is in it",
                wal.display(),
                meta.len()
            ),
        }),
        _ => Ok(()),
    }
}

/// Whether SQLite can give what it makes to the owner of the database. Root of a user namespace (a rootless container) cannot, as far as
/// its namespace does not know that owner.
fn is_root_here() -> bool {
    let maps_all = |map: String| map.split_whitespace().eq(["0", "0", "4294967295"]);
    rustix::process::geteuid().is_root()
        && std::fs::read_to_string("/proc/self/uid_map").map_or(true, maps_all)
}

/// What is known of the files that SQLite makes beside a WAL database, where they would be ours and not the application's.
struct Foreign {
    /// Ours would lock the application out.
    matters: bool,
}

impl Foreign {
    /// Refuses before anything is opened where index files would have to be made by the wrong user.
    fn look(
        path: &Path,
        stat: &Metadata,
        logged: bool,
        options: &CaptureOptions,
    ) -> Result<Self, CaptureError> {
        let me = rustix::process::geteuid();
        let matters = logged && !is_root_here() && me.as_raw() != stat.uid() && !options.force;
        if !matters {
            return Ok(Self { matters });
        }
        match std::fs::metadata(beside(path, "-shm")) {
            Ok(shm) if shm.uid() != me.as_raw() => Ok(Self { matters }),
            // Where nothing can be made, nothing can be left behind either.
            _ if !writable(path.parent().unwrap_or(Path::new("/"))) => Ok(Self { matters }),
            _ => Err(refused(path, stat.uid())),
        }
    }

    /// The application may have closed the database between the look and the opening: then the files beside it are ours now.
    fn check_after(&self, path: &Path, mode: &str) -> Result<(), CaptureError> {
        if !self.matters || mode != "wal" {
            return Ok(());
        }
        let me = rustix::process::geteuid().as_raw();
        let mine = |suffix| {
            let path = beside(path, suffix);
            std::fs::metadata(&path).ok().filter(|meta| meta.uid() == me).map(|meta| (path, meta.len()))
        };
        let (wal, shm) = (mine("-wal"), mine("-shm"));
        if wal.is_none() && shm.is_none() {
            return Ok(());
        }
        // An empty log that only we can write holds nothing, and leaving it would lock the application out.
        for (path, length) in [wal.filter(|(_, length)| *length == 0), shm].into_iter().flatten() {
            tracing::debug!(path = %path.display(), length, "removing what SQLite made under the wrong user");
            let _ = std::fs::remove_file(path);
        }
        let owner = std::fs::metadata(path).map_or(0, |meta| meta.uid());
        Err(refused(path, owner))
    }
}

fn writable(dir: &Path) -> bool {
    rustix::fs::access(dir, rustix::fs::Access::WRITE_OK).is_ok()
}

fn refused(path: &Path, owner: u32) -> CaptureError {
    CaptureError::Refused {
        path: path.to_owned(),
        what: format!(
            "a capture under this user would leave -wal and -shm files that lock its application (user {owner}) out; run \
             as that user or as root, or while the application has it open, or with --force"
        ),
    }
}

/// Brings the file into the page cache, so that the time under the lock is the time of a copy in memory.
fn warm(path: &Path, context: &Context<'_>) -> Result<(), CaptureError> {
    let failed = |error| CaptureError::from_io("read", path, error);
    let mut file = File::open(path).map_err(failed)?.take(WARM);
    let mut buffer = vec![0; 1 << 20];
    while file.read(&mut buffer).map_err(failed)? > 0 {
        context.check_cancelled()?;
    }
    Ok(())
}

fn warn_of_network(path: &Path, context: &Context<'_>) {
    // NFS, SMB, CIFS, SMB2, Ceph, 9P.
    const NETWORK: [i64; 6] = [0x6969, 0x517B, 0xFF53_4D42, 0xFE53_4D42, 0x00C3_6400, 0x0102_1997];
    if let Ok(stat) = rustix::fs::statfs(path)
        && NETWORK.contains(&stat.f_type)
    {
        (context.events)(Event::Warning(format!(
            "{} is on a network file system, where locks are often wrong and WAL works on one host only",
            path.display()
        )));
    }
}

/// Of a path, without opening it.
fn file_meta(path: &Path) -> Result<FileMeta, CaptureError> {
    let parent = path.parent().unwrap_or(Path::new("/"));
    let dir = crate::pin::SourceDir::open(parent)?;
    let gone = || CaptureError::Vanished { path: path.to_owned() };
    dir.stat(path.file_name().ok_or_else(gone)?)?.ok_or_else(gone)
}

/// Opens a file of our own.
pub(super) fn open_own(path: &PathBuf) -> Result<Connection, CaptureError> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    Connection::open_with_flags(path, flags).map_err(failed(path))
}
