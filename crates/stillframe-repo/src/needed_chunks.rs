//! The chunks that a verification must look at, on disk: there may be more than fit into memory.

use rusqlite::{Connection, params};

use crate::compression::Compression;
use crate::error::{Error, Result};
use crate::index_cache::Location;
use crate::pack_table::PackEntry;
use crate::{ChunkId, ObjectId, PackId};

/// How many rows go into one transaction.
const BATCH: usize = 4096;

/// A set of chunk locations, grouped by pack, in a temporary file that SQLite removes.
pub(crate) struct NeededChunks {
    connection: Connection,
    batch: Vec<Location>,
}

/// How much there is to look at.
pub(crate) struct Totals {
    pub(crate) chunks: u64,
    pub(crate) pack_bytes: u64,
}

fn failed(error: &rusqlite::Error) -> Error {
    Error::Cache { path: std::env::temp_dir(), why: format!("the list of chunks to verify: {error}") }
}

impl NeededChunks {
    pub(crate) fn new() -> Result<Self> {
        let open = || {
            let connection = Connection::open("")?;
            connection.execute_batch(
                "PRAGMA journal_mode = off; PRAGMA cache_size = -8192;
                 CREATE TABLE chunk(pack BLOB, position INTEGER, id BLOB, epoch INTEGER, salt BLOB, size INTEGER,
                    start INTEGER, stored INTEGER, plain INTEGER, compression INTEGER,
                    PRIMARY KEY(pack, position)) WITHOUT ROWID;",
            )?;
            Ok(connection)
        };
        let connection = open().map_err(|error: rusqlite::Error| failed(&error))?;
        Ok(Self { connection, batch: Vec::with_capacity(BATCH) })
    }

    pub(crate) fn add(&mut self, location: &Location) -> Result<()> {
        self.batch.push(location.clone());
        if self.batch.len() < BATCH { Ok(()) } else { self.flush() }
    }

    fn flush(&mut self) -> Result<()> {
        let batch = std::mem::take(&mut self.batch);
        let mut write = || {
            let transaction = self.connection.transaction()?;
            let mut insert = transaction.prepare_cached(
                "INSERT OR IGNORE INTO chunk VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)",
            )?;
            for place in &batch {
                insert.execute(params![
                    place.pack.0,
                    place.position,
                    place.entry.id.0,
                    place.epoch,
                    place.salt,
                    place.pack_size.cast_signed(),
                    place.offset.cast_signed(),
                    place.entry.stored_len,
                    place.entry.plain_len,
                    place.entry.compression as u8,
                ])?;
            }
            drop(insert);
            transaction.commit()
        };
        write().map_err(|error| failed(&error))
    }

    /// Ends the adding.
    pub(crate) fn finish(&mut self) -> Result<Totals> {
        self.flush()?;
        let query = "SELECT (SELECT count(*) FROM chunk), (SELECT coalesce(sum(size), 0) FROM
                     (SELECT max(size) AS size FROM chunk GROUP BY pack))";
        let totals =
            self.connection.query_row(query, [], |row| Ok((row.get::<_, i64>(0)?, row.get::<_, i64>(1)?)));
        let (chunks, bytes) = totals.map_err(|error| failed(&error))?;
        Ok(Totals { chunks: chunks.cast_unsigned(), pack_bytes: bytes.cast_unsigned() })
    }

    /// The pack that follows `after`, with its needed chunks in order.
    pub(crate) fn next_pack(&self, after: Option<PackId>) -> Result<Option<(PackId, Vec<Location>)>> {
        let read = || {
            let after = after.map_or(Vec::new(), |pack| pack.0.to_vec());
            let next: Option<[u8; 16]> = self
                .connection
                .prepare_cached("SELECT min(pack) FROM chunk WHERE pack > ?1")?
                .query_row([after], |row| row.get(0))?;
            let Some(pack) = next else { return Ok(None) };
            let mut select = self.connection.prepare_cached(
                "SELECT position, id, epoch, salt, size, start, stored, plain, compression FROM chunk
                 WHERE pack = ?1 ORDER BY position",
            )?;
            let chunks = select.query_map([pack], |row| {
                let compression =
                    Compression::from_number(row.get(8)?).ok_or(rusqlite::Error::InvalidQuery)?;
                Ok(Location {
                    pack: ObjectId(pack),
                    epoch: row.get(2)?,
                    salt: row.get(3)?,
                    pack_size: row.get::<_, i64>(4)?.cast_unsigned(),
                    position: row.get(0)?,
                    offset: row.get::<_, i64>(5)?.cast_unsigned(),
                    entry: PackEntry {
                        id: ChunkId(row.get(1)?),
                        stored_len: row.get(6)?,
                        plain_len: row.get(7)?,
                        compression,
                    },
                })
            })?;
            Ok(Some((ObjectId(pack), chunks.collect::<rusqlite::Result<Vec<_>>>()?)))
        };
        read().map_err(|error: rusqlite::Error| failed(&error))
    }
}
