//! From sources to images.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use stillframe_storage::Clock;
use tokio_util::sync::CancellationToken;

use crate::staging::refuse_within;
use crate::{CaptureError, Engine, Image, Source, files, fjall, rocksdb, sqlite};

/// How to capture. The defaults are right for most sources.
#[derive(Debug, Clone)]
pub struct CaptureOptions {
    /// Where pins and copies live while the image is in use. Default: beside the source. On another file system than the
    /// source, everything is copied instead of linked.
    pub staging: Option<PathBuf>,
    /// How long to look for a still moment.
    pub deadline: Duration,
    /// RocksDB: the log directory, where the OPTIONS file does not say it or says it wrongly.
    pub wal_dir: Option<PathBuf>,
    /// RocksDB: `db_paths`, in order. They are in no file.
    pub db_paths: Vec<PathBuf>,
    /// RocksDB: `cf_paths` by family, in order. They are in no file.
    pub cf_paths: BTreeMap<String, Vec<PathBuf>>,
    /// SQLite in rollback mode: for how long commits of the application may be held up.
    pub sqlite_lock_timeout: Duration,
    /// SQLite in WAL mode: how far the WAL may grow while its database is copied, in bytes.
    pub sqlite_wal_cap: u64,
    /// Plain files: directories that are not part of any source, wherever they lie below one. What the calling process has open there
    /// must not be opened again: the locks of its SQLite databases would be gone.
    pub leave_out: Vec<PathBuf>,
    /// Capture also where it may disturb the application (SQLite's WAL files under another user id).
    pub force: bool,
}

impl Default for CaptureOptions {
    fn default() -> Self {
        Self {
            staging: None,
            deadline: Duration::from_mins(1),
            wal_dir: None,
            db_paths: Vec::new(),
            cf_paths: BTreeMap::new(),
            sqlite_lock_timeout: Duration::from_secs(5),
            sqlite_wal_cap: 4 << 30,
            leave_out: Vec::new(),
            force: false,
        }
    }
}

/// How long to try to get into SQLite databases, at most. A rollback-mode writer that never pauses, or an exclusive one, leaves no
/// way in.
const LOCK_PATIENCE: Duration = Duration::from_secs(15);
/// The same while others are held that the same writer may want.
const LOCK_PATIENCE_WITH_OTHERS: Duration = Duration::from_millis(300);
/// For the writer to get its turn.
const LOCK_PAUSE: Duration = Duration::from_millis(50);

/// What a capture takes from its surroundings.
#[derive(Clone, Copy)]
pub struct Context<'a> {
    /// Time.
    pub clock: &'a dyn Clock,
    /// Asked at every step.
    pub cancel: &'a CancellationToken,
    /// Told of progress. Called in the middle of the work: must be quick.
    pub events: &'a dyn Fn(Event),
    /// Gives a new random name (hexadecimal digits) at each call.
    pub random_name: &'a dyn Fn() -> String,
}

impl Context<'_> {
    /// An error if the work is to stop.
    pub(crate) fn check_cancelled(&self) -> Result<(), CaptureError> {
        check(self.cancel)
    }
}

/// An error if the work is to stop. Asked between reads of a few MiB at most.
pub(crate) fn check(cancel: &CancellationToken) -> Result<(), CaptureError> {
    if cancel.is_cancelled() { Err(CaptureError::Cancelled) } else { Ok(()) }
}

/// What happens during a capture.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A staging directory was made inside this directory: a place to sweep if this process dies.
    Staging(PathBuf),
    /// An attempt was in vain.
    Moved {
        /// Its number, from 1.
        attempt: u32,
        /// What moved.
        what: String,
    },
    /// Bytes were copied (SQLite, logs).
    Copied {
        /// So far.
        done: u64,
        /// In all, as far as known.
        total: u64,
    },
    /// Something that the user should know.
    Warning(String),
}

/// Captures all sources, and returns their images in the order given.
///
/// SQLite's read transactions are opened first, then the log-structured sources are captured, then SQLite is copied: the
/// instants lie as close together as can be, and each image records its own.
pub fn capture(
    sources: &[Source],
    options: &CaptureOptions,
    context: &Context<'_>,
) -> Result<Vec<Image>, CaptureError> {
    // The staging of one may not lie in another either.
    for (staging, source) in
        options.staging.iter().flat_map(|staging| sources.iter().map(move |source| (staging, source)))
    {
        refuse_within(staging, &source.path)?;
    }
    let mut images: Vec<Option<Image>> = sources.iter().map(|_| None).collect();
    let transactions = begin_all(sources, options, context)?;
    for (source, image) in sources.iter().zip(&mut images) {
        *image = match source.engine {
            Engine::RocksDb => Some(rocksdb::capture(source, options, context)?),
            Engine::Fjall => Some(fjall::capture(source, options, context)?),
            Engine::Files => Some(files::capture(source, options, context)?),
            Engine::Sqlite => None,
        };
    }
    for (index, transaction) in transactions {
        let image = sqlite::finish(transaction, options, context)?;
        if let Some(place) = images.get_mut(index) {
            *place = Some(image);
        }
    }
    Ok(images.into_iter().flatten().collect())
}

/// Starts the read transactions of all SQLite sources. A writer with several of them attached may hold one and wait for another
/// that we hold. Who finds one locked while it holds others lets go of them and begins again with that one: a writer locks its
/// databases in an order of its own, and who comes to them in the same order never holds what it waits for.
fn begin_all(
    sources: &[Source],
    options: &CaptureOptions,
    context: &Context<'_>,
) -> Result<Vec<(usize, sqlite::Transaction)>, CaptureError> {
    let patience = options.deadline.min(LOCK_PATIENCE);
    let end = context.clock.monotonic() + patience;
    let mut order: Vec<(usize, &Source)> =
        sources.iter().enumerate().filter(|(_, source)| source.engine == Engine::Sqlite).collect();
    loop {
        let mut transactions = Vec::new();
        let mut refused = None;
        for (place, (index, source)) in order.iter().enumerate() {
            let patience = if transactions.is_empty() { patience } else { LOCK_PATIENCE_WITH_OTHERS };
            match sqlite::begin(source, options, patience, context) {
                Ok(transaction) => transactions.push((*index, transaction)),
                Err(error @ CaptureError::Locked { .. }) if !transactions.is_empty() => {
                    refused = Some((place, error));
                    break;
                }
                Err(error) => return Err(error),
            }
        }
        match refused {
            None => return Ok(transactions),
            Some((_, error)) if context.clock.monotonic() >= end => return Err(error),
            Some((place, _)) => {
                drop(transactions);
                order.get_mut(..=place).expect("it was just there").rotate_right(1);
                std::thread::sleep(LOCK_PAUSE);
            }
        }
    }
}
