//! All jobs of one user or one node, past and present.

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use rusqlite::{Connection, OptionalExtension, TransactionBehavior, params};
use stillframe_storage::Clock;

use crate::history_file::{self, HistoryError, SetAside, wrap};
use crate::job::{Job, JobOptions};
use crate::record::{JobId, Record};
use crate::{Liveness, Owner};

/// Ended jobs that are kept; older ones are forgotten when the history is opened.
const KEPT: i64 = 2000;
/// An owner that cannot be seen (another container) counts as gone when it has been silent for this long. Should it live
/// after all, its next heartbeat takes the row back.
const SILENCE: Duration = Duration::from_mins(15);

/// The jobs' memory: a SQLite file that any number of processes use at once, or memory.
#[derive(Debug, Clone)]
pub struct History {
    store: Arc<Store>,
    clock: Arc<dyn Clock>,
    opening: Arc<Opening>,
}

/// What was found when the history was opened.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Opening {
    /// The old history was damaged and lies elsewhere now. Tell the user.
    pub set_aside: Option<SetAside>,
    /// Jobs that looked as if they were running and whose process is gone; they are marked as failed now.
    pub repaired: Vec<JobId>,
}

/// The connection, one statement at a time.
#[derive(Debug)]
pub(crate) struct Store {
    path: PathBuf,
    connection: Mutex<Connection>,
}

impl Store {
    pub(crate) fn lock(&self) -> MutexGuard<'_, Connection> {
        // A panic in between left at most an open transaction, which SQLite rolled back when its guard was dropped.
        self.connection.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run<T>(&self, work: impl FnOnce(&mut Connection) -> rusqlite::Result<T>) -> Result<T, HistoryError> {
        work(&mut self.lock()).map_err(|source| wrap(&self.path, source))
    }
}

impl History {
    /// Opens or makes the history in the file `path`, sets a damaged one aside, and repairs the rows whose owner is gone.
    ///
    /// An error here is no reason not to do the work: say it and go on with [`Self::in_memory`].
    pub fn open(path: &Path, clock: Arc<dyn Clock>) -> Result<Self, HistoryError> {
        let (connection, set_aside, lock) = history_file::open(path, clock.now())?;
        let store = Arc::new(Store { path: path.to_owned(), connection: Mutex::new(connection) });
        let now = clock.now();
        let repaired = store.run(|connection| repair(connection, now))?;
        store.run(forget_old)?;
        drop(lock);
        for id in &repaired {
            tracing::info!(job = id.get(), "a job whose process is gone is marked as failed");
        }
        Ok(Self { store, clock, opening: Arc::new(Opening { set_aside, repaired }) })
    }

    /// A history that is gone with the process, for when the file cannot be used.
    pub fn in_memory(clock: Arc<dyn Clock>) -> Result<Self, HistoryError> {
        let connection = Mutex::new(history_file::open_in_memory()?);
        let store = Arc::new(Store { path: PathBuf::from(":memory:"), connection });
        Ok(Self { store, clock, opening: Arc::default() })
    }

    /// What was found when it was opened.
    pub fn opening(&self) -> &Opening {
        &self.opening
    }

    /// Starts a job that may use every phase, with the usual limits. `kind` is a word (`create`), `subject` is for people.
    pub fn start(&self, kind: &str, subject: &str) -> Job {
        self.start_with(kind, subject, &JobOptions::default())
    }

    /// Starts a job. When the row cannot be written, the job runs all the same, without an id.
    pub fn start_with(&self, kind: &str, subject: &str, options: &JobOptions) -> Job {
        Job::start(Arc::clone(&self.store), Arc::clone(&self.clock), kind, subject, options)
    }

    /// The newest jobs, newest first.
    pub fn list(&self, limit: usize) -> Result<Vec<Record>, HistoryError> {
        self.store.run(|connection| {
            let query = format!("SELECT {} FROM jobs ORDER BY id DESC LIMIT ?1", Record::COLUMNS);
            let limit = i64::try_from(limit).unwrap_or(i64::MAX);
            read_all(connection, &query, params![limit])
        })
    }

    /// One job.
    pub fn get(&self, id: JobId) -> Result<Option<Record>, HistoryError> {
        self.store.run(|connection| {
            let query = format!("SELECT {} FROM jobs WHERE id = ?1", Record::COLUMNS);
            Ok(read_all(connection, &query, params![id.get()])?.pop())
        })
    }

    /// Asks a job of any process to stop; it sees that with its next heartbeat, and ends when its tasks are joined. `None`: there is no
    /// such job. One that has ended is returned as it is.
    pub fn request_cancel(&self, id: JobId) -> Result<Option<Record>, HistoryError> {
        let now = self.clock.now().as_millisecond();
        self.store.run(|connection| {
            connection.execute(
                "UPDATE jobs SET cancel_ms = coalesce(cancel_ms, ?2) WHERE id = ?1 AND ended_ms IS NULL",
                params![id.get(), now],
            )
        })?;
        self.get(id)
    }

    /// Remembers that staging directories are made in `root` (absolute), so that a later start can sweep it. To be called
    /// before the first one is made there.
    pub fn note_staging(&self, root: &Path) -> Result<(), HistoryError> {
        let now = self.clock.now().as_millisecond();
        self.store.run(|connection| {
            connection.execute(
                "INSERT INTO staging_roots (path, noted_ms) VALUES (?1, ?2)
                 ON CONFLICT (path) DO UPDATE SET noted_ms = excluded.noted_ms",
                params![root.as_os_str().as_bytes(), now],
            )
        })?;
        Ok(())
    }

    /// The directories that were noted and not forgotten.
    pub fn staging_roots(&self) -> Result<Vec<PathBuf>, HistoryError> {
        self.store.run(|connection| {
            let mut statement = connection.prepare_cached("SELECT path FROM staging_roots ORDER BY path")?;
            let rows = statement.query_map([], |row| row.get::<_, Vec<u8>>(0))?;
            rows.map(|bytes| Ok(PathBuf::from(OsString::from_vec(bytes?)))).collect()
        })
    }

    /// Forgets a directory: it was swept, and nothing of ours is left in it.
    pub fn forget_staging(&self, root: &Path) -> Result<(), HistoryError> {
        self.store.run(|connection| {
            connection
                .execute("DELETE FROM staging_roots WHERE path = ?1", params![root.as_os_str().as_bytes()])
        })?;
        Ok(())
    }
}

fn read_all(
    connection: &mut Connection,
    query: &str,
    parameters: impl rusqlite::Params,
) -> rusqlite::Result<Vec<Record>> {
    // One transaction, so that a row and its list of states are of one moment.
    let transaction = connection.transaction()?;
    let mut records = {
        let mut statement = transaction.prepare(query)?;
        let rows = statement.query_map(parameters, Record::from_row)?;
        rows.collect::<rusqlite::Result<Vec<_>>>()?
    };
    for record in &mut records {
        record.read_history(&transaction)?;
    }
    Ok(records)
}

/// Marks as failed what belongs to nobody any more. In one immediate transaction: nobody else repairs meanwhile.
fn repair(connection: &mut Connection, now: Timestamp) -> rusqlite::Result<Vec<JobId>> {
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let query = format!("SELECT {} FROM jobs WHERE ended_ms IS NULL ORDER BY id", Record::COLUMNS);
    let unfinished = {
        let mut statement = transaction.prepare(&query)?;
        let rows = statement.query_map([], Record::from_row)?;
        rows.collect::<rusqlite::Result<Vec<_>>>()?
    };
    let viewer = Owner::this_process();
    let mut repaired = Vec::new();
    for record in unfinished {
        let Some(text) = epitaph(&record, &viewer, now) else { continue };
        let id = record.id.get();
        transaction.execute(
            "UPDATE jobs SET state = 'failed', error_kind = 'owner-gone', error_text = ?2, ended_ms = ?3,
                 deadline_ms = NULL, bytes_per_second = 0 WHERE id = ?1",
            params![id, text, now.as_millisecond()],
        )?;
        transaction.execute(
            "INSERT INTO transitions (job, number, state, at_ms)
             SELECT ?1, coalesce(max(number), -1) + 1, 'failed', ?2 FROM transitions WHERE job = ?1",
            params![id, now.as_millisecond()],
        )?;
        repaired.push(record.id);
    }
    transaction.commit()?;
    Ok(repaired)
}

/// What to write on a row whose owner is gone; nothing for one whose owner lives.
fn epitaph(record: &Record, viewer: &Owner, now: Timestamp) -> Option<String> {
    let owner = &record.owner;
    let state = record.state;
    match owner.liveness(viewer) {
        Liveness::Alive => None,
        Liveness::Gone if owner.boot_id.is_some() && owner.boot_id != viewer.boot_id => {
            Some(format!("its process ended while {state}: the machine was started anew; run it again"))
        }
        Liveness::Gone => Some(format!(
            "its process ended while {state} (pid {}), killed or crashed; run it again",
            owner.pid
        )),
        Liveness::Unknown => {
            let silent = now.duration_since(record.heartbeat);
            (silent.as_secs() > i64::try_from(SILENCE.as_secs()).unwrap_or(i64::MAX)).then(|| {
                format!(
                    "its process ended while {state}, as far as can be seen: no sign of life for {} minutes from \
                     pid {} of another container or user; run it again",
                    silent.as_mins(),
                    owner.pid
                )
            })
        }
    }
}

fn forget_old(connection: &mut Connection) -> rusqlite::Result<()> {
    let horizon: Option<i64> = connection
        .query_row(
            "SELECT id FROM jobs WHERE ended_ms IS NOT NULL ORDER BY id DESC LIMIT 1 OFFSET ?1",
            [KEPT],
            |row| row.get(0),
        )
        .optional()?;
    if let Some(horizon) = horizon {
        connection.execute("DELETE FROM jobs WHERE ended_ms IS NOT NULL AND id <= ?1", [horizon])?;
    }
    Ok(())
}
