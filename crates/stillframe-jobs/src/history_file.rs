//! The file of the history: opening, making and, when it is damaged, setting it aside.

use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::Timestamp;
use rusqlite::{Connection, ErrorCode, OpenFlags, TransactionBehavior};
use rustix::fs::{FlockOperation, flock};
use stillframe_storage::{failpoint, make_private_dirs};

use crate::Record;

/// "SFjb", so that another program's database is not taken for ours.
const APPLICATION_ID: i64 = 0x5346_6a62;
const VERSION: i64 = 2;
/// How long a statement waits for another process's.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);
/// How long opening waits for another process that is opening.
const OPEN_TIMEOUT: Duration = Duration::from_secs(10);
const OPEN_RETRY: Duration = Duration::from_millis(20);

const SCHEMA: &str = "
    CREATE TABLE jobs (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        kind TEXT NOT NULL,
        subject TEXT NOT NULL,
        state TEXT NOT NULL,
        phase TEXT NOT NULL,
        files_done INTEGER NOT NULL DEFAULT 0,
        files_total INTEGER,
        bytes_done INTEGER NOT NULL DEFAULT 0,
        bytes_total INTEGER,
        bytes_per_second INTEGER NOT NULL DEFAULT 0,
        fraction REAL NOT NULL DEFAULT 0,
        error_kind TEXT,
        error_text TEXT,
        outcome TEXT,
        owner_pid INTEGER NOT NULL,
        owner_start INTEGER,
        owner_boot TEXT,
        owner_namespace TEXT,
        started_ms INTEGER NOT NULL,
        ended_ms INTEGER,
        heartbeat_ms INTEGER NOT NULL,
        deadline_ms INTEGER,
        cancel_ms INTEGER
    ) STRICT;
    CREATE INDEX jobs_unfinished ON jobs (id) WHERE ended_ms IS NULL;
    CREATE TABLE transitions (
        job INTEGER NOT NULL REFERENCES jobs (id) ON DELETE CASCADE,
        number INTEGER NOT NULL,
        state TEXT NOT NULL,
        at_ms INTEGER NOT NULL,
        PRIMARY KEY (job, number)
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE staging_roots (path BLOB PRIMARY KEY NOT NULL, noted_ms INTEGER NOT NULL) STRICT, WITHOUT ROWID;
";

/// Why the history cannot be used. None of these is a reason not to do the work: [`crate::History::in_memory`] takes its
/// place.
#[derive(Debug, thiserror::Error)]
pub enum HistoryError {
    /// Another process holds it. Try again, or look for a process that is stopped.
    #[error("{path}: the history of jobs is held by another process; try again")]
    Busy {
        /// The history's file.
        path: PathBuf,
    },
    /// A newer program wrote it. Use that one.
    #[error(
        "{path}: the history of jobs was written by a newer version of this program (format {found}); use that one"
    )]
    Newer {
        /// The history's file.
        path: PathBuf,
        /// Its format.
        found: i64,
    },
    /// A SQLite database of somebody else. Name another place.
    #[error("{path}: this is another program's database, not a history of jobs; give another path")]
    Foreign {
        /// The file.
        path: PathBuf,
    },
    /// The file system refused. Fix what it says.
    #[error("{path}: cannot use the history of jobs: {source}")]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// What it said.
        source: io::Error,
    },
    /// SQLite refused: no space, no permission, damage found later.
    #[error("{path}: cannot use the history of jobs: {source}")]
    Sqlite {
        /// The history's file.
        path: PathBuf,
        /// What it said.
        source: rusqlite::Error,
    },
}

/// A damaged history that was renamed, so that a new one could begin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SetAside {
    /// Where it is now.
    pub path: PathBuf,
    /// What was wrong with it.
    pub reason: String,
}

enum Attempt {
    Open(Connection),
    Damaged(String),
}

/// Opens or makes the file. Directories above it are made. A damaged one is renamed and a new one made in its place.
///
/// A lock file beside it (`<name>.lock`) makes sure that no two processes set aside, make or repair at once; the kernel lets
/// go of it when its holder ends.
pub(crate) fn open(
    path: &Path,
    now: Timestamp,
) -> Result<(Connection, Option<SetAside>, OpeningLock), HistoryError> {
    let io_error = |source| HistoryError::Io { path: path.to_owned(), source };
    if let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        make_private_dirs(parent).map_err(io_error)?;
    }
    let lock = OpeningLock::take(path)?;
    let reason = match attempt(path)? {
        Attempt::Open(connection) => return Ok((connection, None, lock)),
        Attempt::Damaged(reason) => reason,
    };
    let aside = set_aside(path, now).map_err(io_error)?;
    tracing::warn!(path = %path.display(), aside = %aside.display(), %reason, "the history of jobs is damaged; a new one begins");
    match attempt(path)? {
        Attempt::Open(connection) => Ok((connection, Some(SetAside { path: aside, reason }), lock)),
        Attempt::Damaged(reason) => Err(io_error(io::Error::other(reason))),
    }
}

/// A history that nobody else sees.
pub(crate) fn open_in_memory() -> Result<Connection, HistoryError> {
    let sqlite_error = |source| HistoryError::Sqlite { path: PathBuf::from(":memory:"), source };
    let connection = Connection::open_in_memory().map_err(sqlite_error)?;
    connection.execute_batch(SCHEMA).map_err(sqlite_error)?;
    Ok(connection)
}

/// Held while the history is being opened.
#[derive(Debug)]
pub(crate) struct OpeningLock(#[expect(dead_code, reason = "held for its lock")] std::fs::File);

impl OpeningLock {
    fn take(path: &Path) -> Result<Self, HistoryError> {
        let lock_path = with_suffix(path, ".lock");
        let io_error = |source| HistoryError::Io { path: lock_path.clone(), source };
        let options =
            OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).clone();
        let file = options.open(&lock_path).map_err(io_error)?;
        let mut waited = Duration::ZERO;
        loop {
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => return Ok(Self(file)),
                Err(rustix::io::Errno::WOULDBLOCK | rustix::io::Errno::INTR) if waited < OPEN_TIMEOUT => {
                    std::thread::sleep(OPEN_RETRY);
                    waited += OPEN_RETRY;
                }
                Err(rustix::io::Errno::WOULDBLOCK) => {
                    return Err(HistoryError::Busy { path: path.to_owned() });
                }
                Err(error) => return Err(io_error(error.into())),
            }
        }
    }
}

fn attempt(path: &Path) -> Result<Attempt, HistoryError> {
    // Made here and not by SQLite, so that nobody else can read what the jobs were about.
    let options = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).clone();
    options.open(path).map_err(|source| HistoryError::Io { path: path.to_owned(), source })?;
    match connect(path) {
        Ok(Checked::Good(connection)) => Ok(Attempt::Open(connection)),
        Ok(Checked::Damaged(reason)) => Ok(Attempt::Damaged(reason)),
        Ok(Checked::Foreign) => Err(HistoryError::Foreign { path: path.to_owned() }),
        Ok(Checked::Newer(found)) => Err(HistoryError::Newer { path: path.to_owned(), found }),
        Err(error) if is_damage(&error) => Ok(Attempt::Damaged(error.to_string())),
        Err(source) => Err(wrap(path, source)),
    }
}

/// The error of one statement, by what the caller should do.
pub(crate) fn wrap(path: &Path, source: rusqlite::Error) -> HistoryError {
    match source.sqlite_error_code() {
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => {
            HistoryError::Busy { path: path.to_owned() }
        }
        _ => HistoryError::Sqlite { path: path.to_owned(), source },
    }
}

fn is_damage(error: &rusqlite::Error) -> bool {
    matches!(error.sqlite_error_code(), Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase))
}

enum Checked {
    Good(Connection),
    Damaged(String),
    Foreign,
    Newer(i64),
}

fn connect(path: &Path) -> rusqlite::Result<Checked> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let mut connection = Connection::open_with_flags(path, flags)?;
    connection.busy_timeout(BUSY_TIMEOUT)?;
    // A file system that cannot do WAL keeps its journal mode, which works too.
    connection.query_row("PRAGMA journal_mode = WAL", [], |row| row.get::<_, String>(0))?;
    connection.execute_batch("PRAGMA synchronous = NORMAL; PRAGMA foreign_keys = ON")?;
    let verdict: String = connection.query_row("PRAGMA quick_check(1)", [], |row| row.get(0))?;
    if verdict != "ok" {
        return Ok(Checked::Damaged(verdict));
    }

    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let number = |pragma: &str| transaction.query_row(pragma, [], |row| row.get::<_, i64>(0));
    let application = number("PRAGMA application_id")?;
    let version = number("PRAGMA user_version")?;
    let things = number("SELECT count(*) FROM sqlite_schema")?;
    // What format 2 has more.
    let upgrade = "ALTER TABLE jobs ADD COLUMN cancel_ms INTEGER; PRAGMA user_version = 2";
    let version = match (application, version) {
        (APPLICATION_ID, 1) if transaction.execute_batch(upgrade).is_ok() => 2,
        _ => version,
    };
    match (application, version, things) {
        (0, 0, 0) => {
            transaction.execute_batch(SCHEMA)?;
            transaction.pragma_update(None, "application_id", APPLICATION_ID)?;
            transaction.pragma_update(None, "user_version", VERSION)?;
        }
        (APPLICATION_ID, VERSION, _) => {
            let probe = format!("SELECT {} FROM jobs LIMIT 0", Record::COLUMNS);
            let rest = "SELECT job, number, state, at_ms FROM transitions LIMIT 0; SELECT path, noted_ms FROM staging_roots LIMIT 0";
            if let Err(error) =
                transaction.prepare(&probe).map(drop).and_then(|()| transaction.execute_batch(rest))
            {
                return Ok(Checked::Damaged(error.to_string()));
            }
        }
        (APPLICATION_ID, found, _) if found > VERSION => return Ok(Checked::Newer(found)),
        (APPLICATION_ID, found, _) => {
            return Ok(Checked::Damaged(format!("it says that its format is {found}")));
        }
        _ => return Ok(Checked::Foreign),
    }
    transaction.commit()?;
    Ok(Checked::Good(connection))
}

fn set_aside(path: &Path, now: Timestamp) -> io::Result<PathBuf> {
    let stamp = now.strftime("%Y%m%dT%H%M%SZ").to_string();
    let mut aside = with_suffix(path, &format!(".damaged-{stamp}"));
    let mut number = 1;
    while aside.exists() {
        number += 1;
        aside = with_suffix(path, &format!(".damaged-{stamp}-{number}"));
    }
    // What belongs to the damaged file goes first: left behind by a kill in between, a log would be replayed into the new file.
    for suffix in ["-wal", "-shm", "-journal"] {
        match std::fs::rename(with_suffix(path, suffix), with_suffix(&aside, suffix)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => failpoint("history::log_set_aside"),
        }
    }
    std::fs::rename(path, &aside)?;
    failpoint("history::set_aside");
    Ok(aside)
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}
