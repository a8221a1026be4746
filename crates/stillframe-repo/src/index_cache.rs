//! The local copy of the index: an SQLite file that is thrown away whenever it does not fit.
//!
//! Nothing here decides anything: each row carries a keyed check, so that a stale, damaged or forged one is as if absent,
//! and whether a pack exists is asked of the store. Several processes may use one file.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use rusqlite::{Connection, ErrorCode, OptionalExtension, TransactionBehavior, params};
use rustix::fs::{FlockOperation, flock};
use stillframe_storage::make_private_dirs;

use crate::compression::Compression;
use crate::error::{Error, Result};
use crate::index_loader::IndexLoader;
use crate::key_ring::KeyRing;
use crate::object_io::Listed;
use crate::pack_table::{PackEntry, PackTable};
use crate::{ChunkId, ObjectId, PackId};

type SqlResult<T> = rusqlite::Result<T>;

/// "STLF": tells our file from any other.
const APPLICATION_ID: i32 = 0x5354_4c46;
const SCHEMA_VERSION: i32 = 1;
/// A merge of millions of rows by another process takes that long at most.
const BUSY_TIMEOUT: Duration = Duration::from_mins(1);
/// How much of a chunk id is the key of its rows; the check covers all of it.
pub(crate) const PREFIX_LEN: usize = 16;

/// Bytes between two chunks that are read along rather than asked for around.
const WORTH_A_REQUEST: u64 = 32 << 10;

const SCHEMA: &str = "
    CREATE TABLE identity(repository BLOB NOT NULL, proof INTEGER NOT NULL);
    CREATE TABLE pack(number INTEGER PRIMARY KEY AUTOINCREMENT, id BLOB NOT NULL UNIQUE, epoch INTEGER NOT NULL,
        salt BLOB NOT NULL, size INTEGER NOT NULL, whole INTEGER NOT NULL);
    CREATE TABLE chunk(prefix BLOB NOT NULL, pack INTEGER NOT NULL, position INTEGER NOT NULL, start INTEGER NOT NULL,
        stored INTEGER NOT NULL, plain INTEGER NOT NULL, compression INTEGER NOT NULL, proof INTEGER NOT NULL,
        PRIMARY KEY(prefix, pack)) WITHOUT ROWID;
    CREATE TABLE segment(id BLOB PRIMARY KEY) WITHOUT ROWID;";

/// Where a chunk is said to be, with all that a ranged read needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Location {
    pub(crate) pack: PackId,
    pub(crate) epoch: u32,
    pub(crate) salt: [u8; 32],
    /// Length of the pack object.
    pub(crate) pack_size: u64,
    pub(crate) position: u32,
    pub(crate) offset: u64,
    pub(crate) entry: PackEntry,
}

impl Location {
    /// The places of all chunks of a pack.
    pub(crate) fn all_of(pack: &PackTable) -> impl Iterator<Item = Self> + '_ {
        pack.places().map(|(position, offset, entry)| Self {
            pack: pack.pack,
            epoch: pack.epoch,
            salt: pack.salt,
            pack_size: pack.size,
            position,
            offset,
            entry: *entry,
        })
    }

    /// Behind the chunk's last byte.
    pub(crate) fn end(&self) -> u64 {
        self.offset + u64::from(self.entry.stored_len)
    }

    /// Whether `next` comes after it in the same pack, with nothing between them that would not be worth reading along.
    pub(crate) fn is_close_to(&self, next: &Self) -> bool {
        next.pack == self.pack && (self.end()..=self.end() + WORTH_A_REQUEST).contains(&next.offset)
    }

    /// What the row must carry to be believed. SQLite's integers are signed.
    pub(crate) fn proof(&self, ring: &KeyRing) -> i64 {
        let mut row = Vec::with_capacity(128);
        row.extend_from_slice(&self.entry.id.0);
        row.extend_from_slice(&self.pack.0);
        row.extend_from_slice(&self.epoch.to_le_bytes());
        row.extend_from_slice(&self.salt);
        row.extend_from_slice(&self.pack_size.to_le_bytes());
        row.extend_from_slice(&self.position.to_le_bytes());
        row.extend_from_slice(&self.offset.to_le_bytes());
        row.extend_from_slice(&self.entry.stored_len.to_le_bytes());
        row.extend_from_slice(&self.entry.plain_len.to_le_bytes());
        row.push(self.entry.compression as u8);
        ring.cache_check(&row).cast_signed()
    }
}

/// The cache of one repository.
#[derive(Debug)]
pub(crate) struct IndexCache {
    ring: Arc<KeyRing>,
    directory: PathBuf,
    database: RwLock<Arc<Database>>,
}

#[derive(Debug)]
struct Database {
    /// `None`: a private one, in a temporary file that SQLite removes; then there is one connection only.
    path: Option<PathBuf>,
    writer: Mutex<Connection>,
    readers: Mutex<Vec<Connection>>,
    /// Shared by every user of the file, so that nobody removes it under another.
    lock: Option<File>,
}

impl IndexCache {
    /// Opens the cache in `directory`, which is made if it is missing. What cannot be used is replaced; when the
    /// directory cannot be used at all, a private cache serves this process.
    pub(crate) fn open(ring: Arc<KeyRing>, directory: &Path) -> Result<Self> {
        let database = match Database::open(&ring, directory) {
            Ok(database) => database,
            Err(why) => {
                tracing::warn!(path = %directory.display(), why, "the index cache cannot be used; working without it");
                Database::private(&ring).map_err(|error| cache_error(directory, &error))?
            }
        };
        Ok(Self { ring, directory: directory.to_owned(), database: RwLock::new(Arc::new(database)) })
    }

    /// One of this process alone, in a temporary file that SQLite removes.
    pub(crate) fn private(ring: Arc<KeyRing>) -> Result<Self> {
        let directory = std::env::temp_dir();
        let database = Database::private(&ring).map_err(|error| cache_error(&directory, &error))?;
        Ok(Self { ring, directory, database: RwLock::new(Arc::new(database)) })
    }

    fn database(&self) -> Arc<Database> {
        Arc::clone(&self.database.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Runs `work`; a database that fails is replaced by an empty one, and the result is the default.
    fn run<T: Default>(&self, write: bool, work: impl FnOnce(&mut Connection) -> SqlResult<T>) -> Result<T> {
        let database = self.database();
        let result = if write { database.write(work) } else { database.read(work) };
        match result {
            Ok(value) => Ok(value),
            Err(error) => {
                self.replace(&database, &error)?;
                Ok(T::default())
            }
        }
    }

    /// Puts an empty database in the place of one that failed: a fresh file where the old one was damaged, a private one
    /// where its disk is full, its directory gone, or others are using it.
    fn replace(&self, failed: &Arc<Database>, error: &rusqlite::Error) -> Result<()> {
        let failure = |error: &dyn ToString| cache_error(&self.directory, &error.to_string());
        if failed.path.is_none() && !is_corrupt(error) {
            return Err(failure(error));
        }
        let mut current = self.database.write().unwrap_or_else(PoisonError::into_inner);
        if !Arc::ptr_eq(&current, failed) {
            return Ok(());
        }
        tracing::warn!(path = %self.directory.display(), %error, "the index cache is replaced");
        // Only who is alone with the file may remove it; its connections stay usable until they are dropped.
        let alone = |lock: &File| flock(lock, FlockOperation::NonBlockingLockExclusive).is_ok();
        let fresh = if is_corrupt(error) && failed.lock.as_ref().is_some_and(alone) {
            remove_database(&self.directory);
            Database::open(&self.ring, &self.directory).or_else(|_| Database::private(&self.ring))
        } else {
            Database::private(&self.ring)
        };
        *current = Arc::new(fresh.map_err(|error| failure(&error))?);
        Ok(())
    }

    /// Every place where each chunk is said to be.
    pub(crate) fn locate_all(&self, ids: &[ChunkId]) -> Result<Vec<Vec<Location>>> {
        let mut located = self.run(false, |connection| {
            // One transaction: else the file is locked, looked at and unlocked for each chunk.
            let transaction = connection.transaction()?;
            let mut statement = transaction.prepare_cached(
                "SELECT p.id, p.epoch, p.salt, p.size, c.position, c.start, c.stored, c.plain, c.compression, c.proof
                 FROM chunk c JOIN pack p ON p.number = c.pack WHERE c.prefix = ?1 AND p.whole = 1",
            )?;
            let mut located = Vec::with_capacity(ids.len());
            for id in ids {
                let mut rows = statement.query([prefix(id)])?;
                let mut locations = Vec::new();
                while let Some(row) = rows.next()? {
                    // A row that cannot even be read as one is no hint.
                    let Ok((location, proof)) = read_location(id, row) else { continue };
                    if location.proof(&self.ring) == proof {
                        locations.push(location);
                    }
                }
                located.push(locations);
            }
            Ok(located)
        })?;
        // A cache that was just replaced knows nothing.
        located.resize_with(ids.len(), Vec::new);
        Ok(located)
    }

    /// Forgets packs that are not in `listed` (sorted), or not with the length that they were written with, and returns those of `listed` that are not known yet.
    pub(crate) fn reconcile_packs(&self, listed: &[Listed]) -> Result<Vec<Listed>> {
        let known = self.run(true, |connection| {
            let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
            let mut known = Vec::new();
            let mut gone = Vec::new();
            {
                let mut statement =
                    transaction.prepare("SELECT id, number, size FROM pack WHERE whole = 1")?;
                let mut rows = statement.query([])?;
                while let Some(row) = rows.next()? {
                    let id = row.get::<_, [u8; 16]>(0).map(ObjectId);
                    let size = row.get::<_, i64>(2)?.cast_unsigned();
                    match id.ok().and_then(|id| listed_as(listed, id, size)) {
                        Some(at) => known.push(at),
                        None => gone.push(row.get::<_, i64>(1)?),
                    }
                }
            }
            for number in gone {
                transaction.execute("DELETE FROM pack WHERE number = ?1", [number])?;
            }
            transaction.commit()?;
            Ok(known)
        })?;
        let mut is_known = vec![false; listed.len()];
        known.into_iter().filter_map(|at| is_known.get_mut(at).map(|flag| *flag = true)).for_each(drop);
        Ok(listed.iter().zip(is_known).filter(|(_, known)| !known).map(|(listed, _)| *listed).collect())
    }

    /// Forgets everything.
    pub(crate) fn clear(&self) -> Result<()> {
        self.run(true, |connection| {
            connection
                .execute_batch("BEGIN; DELETE FROM pack; DELETE FROM chunk; DELETE FROM segment; COMMIT;")
        })
    }

    /// Those of `listed` that were not loaded yet.
    pub(crate) fn unknown_segments(&self, listed: &[Listed]) -> Result<Vec<ObjectId>> {
        let mut unknown: Vec<ObjectId> = listed.iter().map(|listed| listed.id).collect();
        let known: Vec<bool> = self.run(false, |connection| {
            let mut statement = connection.prepare_cached("SELECT 1 FROM segment WHERE id = ?1")?;
            unknown.iter().map(|id| statement.exists([id.0])).collect()
        })?;
        // A cache that was just replaced answers nothing: then all are unknown.
        let mut known = known.into_iter();
        unknown.retain(|_| !known.next().unwrap_or(false));
        Ok(unknown)
    }

    /// Begins to take packs in. They are seen by nobody before [`IndexLoader::commit`].
    pub(crate) fn begin_load(&self) -> Result<IndexLoader> {
        let database = self.database();
        let connection = match &database.path {
            Some(path) => match connect(path) {
                Ok(connection) => Some(connection),
                Err(error) => {
                    self.replace(&database, &error)?;
                    None
                }
            },
            None => None,
        };
        Ok(IndexLoader::new(Arc::clone(&self.ring), connection))
    }

    /// Runs part of a load. A cache that failed has been replaced when this returns `false`: the load is void.
    pub(crate) fn load(
        &self,
        loader: &mut IndexLoader,
        work: impl FnOnce(&mut IndexLoader, &mut Connection) -> SqlResult<()>,
    ) -> Result<bool> {
        let mut own = loader.take_connection();
        let result = match &mut own {
            Some(connection) => work(loader, connection),
            None => self.database().write(|connection| work(loader, connection)),
        };
        loader.put_connection_back(own);
        match result {
            Ok(()) => Ok(true),
            Err(error) => {
                self.replace(&self.database(), &error)?;
                Ok(false)
            }
        }
    }
}

impl Database {
    /// The error is for the log.
    fn open(ring: &KeyRing, directory: &Path) -> Result<Self, String> {
        let text = |error: std::io::Error| error.to_string();
        make_private_dirs(directory).map_err(text)?;
        let lock = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(directory.join("index.lock"))
            .map_err(text)?;
        flock(&lock, FlockOperation::NonBlockingLockShared)
            .map_err(|_| "another process is replacing it".to_owned())?;
        let path = directory.join("index.sqlite");
        match Self::open_file(ring, &path) {
            Ok(writer) => Ok(Self::new(Some(path), writer, Some(lock))),
            Err(Unusable::Foreign) => {
                flock(&lock, FlockOperation::NonBlockingLockExclusive)
                    .map_err(|_| "it is damaged and in use by another process".to_owned())?;
                remove_database(directory);
                let writer = Self::open_file(ring, &path).map_err(|error| error.to_string())?;
                flock(&lock, FlockOperation::NonBlockingLockShared).map_err(|error| error.to_string())?;
                Ok(Self::new(Some(path), writer, Some(lock)))
            }
            Err(error) => Err(error.to_string()),
        }
    }

    fn new(path: Option<PathBuf>, writer: Connection, lock: Option<File>) -> Self {
        Self { path, writer: Mutex::new(writer), readers: Mutex::new(Vec::new()), lock }
    }

    fn private(ring: &KeyRing) -> Result<Self, String> {
        let connection = Connection::open("").map_err(|error| error.to_string())?;
        configure(&connection).and_then(|()| create(ring, &connection)).map_err(|error| error.to_string())?;
        Ok(Self::new(None, connection, None))
    }

    fn open_file(ring: &KeyRing, path: &Path) -> Result<Connection, Unusable> {
        let mut connection = connect(path)?;
        let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let tables: i64 =
            transaction.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))?;
        if tables == 0 {
            create(ring, &transaction)?;
        } else if !is_ours(ring, &transaction)? {
            return Err(Unusable::Foreign);
        }
        transaction.commit()?;
        Ok(connection)
    }

    fn write<T>(&self, work: impl FnOnce(&mut Connection) -> SqlResult<T>) -> SqlResult<T> {
        // A panic elsewhere has rolled its transaction back; the connection itself is fine.
        work(&mut self.writer.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn read<T>(&self, work: impl FnOnce(&mut Connection) -> SqlResult<T>) -> SqlResult<T> {
        let Some(path) = &self.path else { return self.write(work) };
        let idle = self.readers.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let mut connection = match idle {
            Some(connection) => connection,
            None => connect(path)?,
        };
        let result = work(&mut connection);
        self.readers.lock().unwrap_or_else(PoisonError::into_inner).push(connection);
        result
    }
}

enum Unusable {
    /// Not a cache of this repository, or damaged.
    Foreign,
    Failed(rusqlite::Error),
}

impl std::fmt::Display for Unusable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Foreign => f.write_str("it is not the cache of this repository"),
            Self::Failed(error) => error.fmt(f),
        }
    }
}

impl From<rusqlite::Error> for Unusable {
    fn from(error: rusqlite::Error) -> Self {
        if is_corrupt(&error) { Self::Foreign } else { Self::Failed(error) }
    }
}

fn connect(path: &Path) -> SqlResult<Connection> {
    let connection = Connection::open(path)?;
    connection.busy_timeout(BUSY_TIMEOUT)?;
    connection.pragma_update(None, "journal_mode", "wal")?;
    configure(&connection)?;
    Ok(connection)
}

fn configure(connection: &Connection) -> SqlResult<()> {
    // A cache may lose its newest rows in a power loss, but not be torn: WAL with NORMAL gives exactly that.
    connection.pragma_update(None, "synchronous", "normal")?;
    connection.pragma_update(None, "cache_size", -4096)?;
    connection.pragma_update(None, "temp_store", "file")?;
    // Else SQLite plans a query anew for every chunk that is looked up: its statistics might say otherwise this time.
    connection.set_db_config(rusqlite::config::DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true)?;
    Ok(())
}

fn create(ring: &KeyRing, connection: &Connection) -> SqlResult<()> {
    connection.execute_batch(SCHEMA)?;
    connection.pragma_update(None, "application_id", APPLICATION_ID)?;
    connection.pragma_update(None, "user_version", SCHEMA_VERSION)?;
    connection
        .execute("INSERT INTO identity VALUES (?1, ?2)", params![ring.repository.0, identity_proof(ring)])?;
    Ok(())
}

fn is_ours(ring: &KeyRing, connection: &Connection) -> SqlResult<bool> {
    let application: i32 = connection.pragma_query_value(None, "application_id", |row| row.get(0))?;
    let version: i32 = connection.pragma_query_value(None, "user_version", |row| row.get(0))?;
    if (application, version) != (APPLICATION_ID, SCHEMA_VERSION) {
        return Ok(false);
    }
    let identity: Option<(Vec<u8>, i64)> = connection
        .query_row("SELECT repository, proof FROM identity", [], |row| Ok((row.get(0)?, row.get(1)?)))
        .optional()?;
    Ok(identity == Some((ring.repository.0.to_vec(), identity_proof(ring))))
}

fn identity_proof(ring: &KeyRing) -> i64 {
    ring.cache_check(&ring.repository.0).cast_signed()
}

/// The length with which `listed` (sorted) has a pack.
pub(crate) fn listed_size(listed: &[Listed], pack: PackId) -> Option<u64> {
    let at = listed.binary_search_by_key(&pack, |listed| listed.id).ok()?;
    listed.get(at).map(|listed| listed.size)
}

/// Where in `listed` (sorted) a pack is that was written with this length.
pub(crate) fn listed_as(listed: &[Listed], pack: PackId, size: u64) -> Option<usize> {
    let at = listed.binary_search_by_key(&pack, |listed| listed.id).ok()?;
    (listed.get(at)?.size == size).then_some(at)
}

pub(crate) fn prefix(id: &ChunkId) -> [u8; PREFIX_LEN] {
    let (prefix, _) = id.0.split_first_chunk::<PREFIX_LEN>().expect("a chunk id is longer than its prefix");
    *prefix
}

fn read_location(id: &ChunkId, row: &rusqlite::Row<'_>) -> SqlResult<(Location, i64)> {
    let compression = Compression::from_number(row.get(8)?).ok_or(rusqlite::Error::InvalidQuery)?;
    let location = Location {
        pack: ObjectId(row.get(0)?),
        epoch: row.get(1)?,
        salt: row.get(2)?,
        pack_size: row.get::<_, i64>(3)?.cast_unsigned(),
        position: row.get(4)?,
        offset: row.get::<_, i64>(5)?.cast_unsigned(),
        entry: PackEntry { id: *id, stored_len: row.get(6)?, plain_len: row.get(7)?, compression },
    };
    Ok((location, row.get(9)?))
}

/// Missing files are as good as removed ones; what cannot be removed shows when the file is opened again.
fn remove_database(directory: &Path) {
    for file in ["index.sqlite", "index.sqlite-wal", "index.sqlite-shm"] {
        let _ = std::fs::remove_file(directory.join(file));
    }
}

fn is_corrupt(error: &rusqlite::Error) -> bool {
    match error {
        rusqlite::Error::SqliteFailure(failure, message) => match failure.code {
            ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase => true,
            // A table of ours is missing, or has other columns: not our schema.
            ErrorCode::Unknown => message.as_ref().is_some_and(|text| text.contains("no such")),
            _ => false,
        },
        rusqlite::Error::InvalidColumnType(..) | rusqlite::Error::SqlInputError { .. } => true,
        _ => false,
    }
}

fn cache_error(path: &Path, error: &impl ToString) -> Error {
    Error::Cache { path: path.to_owned(), why: error.to_string() }
}
