//! The process that keeps an fjall database busy.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use fjall::config::CompressionPolicy;
use fjall::{AbstractTree, CompressionType, Database, Keyspace, KeyspaceCreateOptions, KvSeparationOptions};
use stillframe_storage::{BandwidthLimit, Clock};

use crate::fjall_load::{COUNTER, Churn, FjallLoad, Origin, PARTNER};
use crate::{LedgerError, LedgerWriter, Marks, Stop, Violation, WriterReport, judge};

/// How often memtables are looked at.
const ROTATE_EVERY: Duration = Duration::from_millis(2);
/// More than so many journals mean that the engine's workers do nothing any more.
const JOURNALS: usize = 40;
/// Unflushed data of the same meaning, in bytes.
const UNFLUSHED: u64 = 2 << 30;

/// Why a writer gave up.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// The engine refused.
    #[error("the engine refused: {0}")]
    Engine(String),
    /// The ledger cannot be written.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// The database that it was to continue is not what its ledger says.
    #[error("the database cannot be continued: {0}")]
    Unlawful(#[from] Violation),
    /// The engine's workers stand still.
    #[error("the engine has stopped flushing: {journals} journals, {unflushed} bytes unflushed")]
    Stuck {
        /// Journals on disk.
        journals: usize,
        /// Bytes in memory.
        unflushed: u64,
    },
}

impl From<fjall::Error> for WriteError {
    fn from(error: fjall::Error) -> Self {
        Self::Engine(error.to_string())
    }
}

/// What the threads of one writer share.
struct Housekeeping {
    db: Database,
    keyspaces: Mutex<Vec<Keyspace>>,
    ended: AtomicBool,
    stuck: AtomicBool,
}

struct EndOnDrop<'a>(&'a AtomicBool);

impl Drop for EndOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl FjallLoad {
    /// Writes into the database `dir` (made if it is not there, continued if it is) until `stop`, keeping `ledger`. With [`Churn`]
    /// there is a second ledger, `<ledger>.churn`.
    ///
    /// Before continuing it makes sure that nothing acknowledged is missing, going by the counters.
    pub fn write(
        &self,
        dir: &Path,
        ledger: &Path,
        stop: &Stop,
        clock: &dyn Clock,
    ) -> Result<WriterReport, WriteError> {
        let db =
            Database::builder(dir).worker_threads(2).manual_journal_persist(self.manual_persist).open()?;
        let keyspaces = (0..self.keyspaces)
            .map(|number| db.keyspace(&Self::keyspace_name(number), || self.options(number)))
            .collect::<fjall::Result<Vec<_>>>()?;
        let marks = Marks::read(ledger)?;
        let standing = self.common_counter(&keyspaces)?;
        judge(standing, marks, marks)?;

        let shared = Arc::new(Housekeeping {
            db,
            keyspaces: Mutex::new(keyspaces.clone()),
            ended: AtomicBool::new(false),
            stuck: AtomicBool::new(false),
        });
        std::thread::scope(|scope| {
            // Also when this thread panics: the others look at it.
            let ending = EndOnDrop(&shared.ended);
            let rotator = scope.spawn(|| rotate(&shared, self.memtable_bytes));
            let comes_and_goes = self.churn.map(|churn| {
                let shared = &shared;
                scope.spawn(move || {
                    let path = churn_ledger(ledger);
                    self.churn(churn, shared, &path)
                })
            });
            let written = self.write_batches(&shared, &keyspaces, standing, ledger, stop, clock);
            drop(ending);
            let churned = comes_and_goes.map_or(Ok(()), |thread| join(thread.join()));
            let rotated = join(rotator.join());
            let report = written?;
            churned?;
            rotated?;
            Ok(report)
        })
    }

    fn write_batches(
        &self,
        shared: &Housekeeping,
        keyspaces: &[Keyspace],
        standing: u64,
        ledger: &Path,
        stop: &Stop,
        clock: &dyn Clock,
    ) -> Result<WriterReport, WriteError> {
        let mut ledger = LedgerWriter::open(ledger)?;
        let limit =
            self.batches_per_second.filter(|rate| *rate > 0).map(|rate| BandwidthLimit::new(rate.into()));
        let started = clock.monotonic();
        let mut longest_commit = Duration::ZERO;
        let mut last = standing;
        while !stop.now(last) {
            check_stuck(shared)?;
            if let Some(limit) = &limit {
                std::thread::sleep(limit.reserve(1, clock));
            }
            let n = last + 1;
            let mut batch = shared.db.batch();
            for (number, keyspace) in (0_u64..).zip(keyspaces) {
                for row in 0..u64::from(self.rows) {
                    let origin = Origin { batch: n, row };
                    batch.insert(keyspace, self.key(origin), self.value(number, origin));
                }
                if let Some(origin) = self.removed_by(n) {
                    batch.remove(keyspace, self.key(origin));
                }
                batch.insert(keyspace, COUNTER, n.to_be_bytes());
            }
            let hash = self.batch_hash(n);
            ledger.begun(n, hash)?;
            let before = clock.monotonic();
            batch.commit()?;
            longest_commit = longest_commit.max(clock.monotonic().saturating_sub(before));
            ledger.acked(n, hash)?;
            last = n;
        }
        Ok(WriterReport {
            last,
            transactions: last - standing,
            busy: 0,
            took: clock.monotonic().saturating_sub(started),
            longest_commit,
        })
    }

    fn churn(&self, churn: Churn, shared: &Housekeeping, ledger: &Path) -> Result<(), WriteError> {
        let db = &shared.db;
        let partner = db.keyspace(PARTNER, || self.options(0))?;
        lock(&shared.keyspaces).push(partner.clone());
        let marks = Marks::read(ledger)?;
        let standing = counter(&partner)?;
        judge(standing, marks, marks)?;
        let mut ledger = LedgerWriter::open(ledger)?;
        let mut number = standing;
        while !shared.ended.load(Ordering::Relaxed) {
            let (index, batch_in_keyspace) = churn.place(number + 1);
            let keyspace = db.keyspace(&Self::churn_name(index), || self.options(0))?;
            // The one whose turn it is, and before it what a killed predecessor may have left.
            for old in index.saturating_sub(2 * churn.keep)..index.saturating_sub(churn.keep) {
                let name = Self::churn_name(old);
                if db.keyspace_exists(&name) {
                    let handle = db.keyspace(&name, || self.options(0))?;
                    db.delete_keyspace(handle)?;
                }
            }
            for _ in batch_in_keyspace..churn.batches {
                number += 1;
                let mut batch = db.batch();
                let value = Churn::value(self.seed, number);
                batch.insert(&keyspace, number.to_be_bytes(), value.clone());
                batch.insert(&partner, number.to_be_bytes(), value);
                batch.insert(&partner, COUNTER, number.to_be_bytes());
                let hash = Churn::hash(self.seed, number);
                ledger.begun(number, hash)?;
                batch.commit()?;
                ledger.acked(number, hash)?;
            }
            if index.is_multiple_of(2) {
                // Some live in tables when they are deleted, some only in the journal.
                keyspace.rotate_memtable()?;
            }
            drop(keyspace);
            std::thread::sleep(Duration::from_millis(churn.pause_ms));
        }
        Ok(())
    }

    /// The memtable limit is out of reach on purpose. Past it every write posts a message into the queue of the engine's workers, who
    /// post into it themselves and wait: once it is full all wait for ever. So memtables are rotated by [`rotate`].
    fn options(&self, number: u32) -> KeyspaceCreateOptions {
        let options = KeyspaceCreateOptions::default()
            .max_memtable_size(u64::MAX)
            .data_block_compression_policy(CompressionPolicy::all(CompressionType::Lz4))
            .manual_journal_persist(self.manual_persist);
        if self.separate_values && number % 2 == 1 {
            options.with_kv_separation(Some(KvSeparationOptions::default().separation_threshold(1024)))
        } else {
            options
        }
    }

    /// Where the keyspaces stand together; a batch is in all of them or in none.
    fn common_counter(&self, keyspaces: &[Keyspace]) -> Result<u64, WriteError> {
        let standings = (0..self.keyspaces)
            .zip(keyspaces)
            .map(|(number, keyspace)| Ok((Self::keyspace_name(number), counter(keyspace)?)))
            .collect::<Result<Vec<_>, WriteError>>()?;
        let first = standings.first().map_or(0, |(_, n)| *n);
        if standings.iter().any(|(_, n)| *n != first) {
            return Err(Violation::Torn { standings }.into());
        }
        Ok(first)
    }
}

/// The second ledger of a load with [`Churn`].
pub(crate) fn churn_ledger(ledger: &Path) -> std::path::PathBuf {
    let mut path = ledger.as_os_str().to_owned();
    path.push(".churn");
    path.into()
}

fn counter(keyspace: &Keyspace) -> Result<u64, WriteError> {
    let Some(value) = keyspace.get(COUNTER)? else { return Ok(0) };
    let bytes: [u8; 8] =
        value[..].try_into().map_err(|_| WriteError::Engine("a counter is not 8 bytes long".into()))?;
    Ok(u64::from_be_bytes(bytes))
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn join(result: std::thread::Result<Result<(), WriteError>>) -> Result<(), WriteError> {
    result.unwrap_or_else(|_| Err(WriteError::Engine("a thread of the writer panicked".into())))
}

/// Rotates what is large enough, and watches that the engine keeps up.
fn rotate(shared: &Housekeeping, memtable_bytes: u64) -> Result<(), WriteError> {
    while !shared.ended.load(Ordering::Relaxed) {
        let keyspaces = lock(&shared.keyspaces).clone();
        for keyspace in &keyspaces {
            if keyspace.tree.active_memtable().size() > memtable_bytes {
                keyspace.rotate_memtable()?;
            }
        }
        let stuck = shared.db.journal_count() > JOURNALS || shared.db.write_buffer_size() > UNFLUSHED;
        if stuck {
            shared.stuck.store(true, Ordering::Relaxed);
        }
        std::thread::sleep(ROTATE_EVERY);
    }
    Ok(())
}

fn check_stuck(shared: &Housekeeping) -> Result<(), WriteError> {
    if !shared.stuck.load(Ordering::Relaxed) {
        return Ok(());
    }
    Err(WriteError::Stuck { journals: shared.db.journal_count(), unflushed: shared.db.write_buffer_size() })
}
