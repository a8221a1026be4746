//! Taking many packs into the index cache at once: staged first, then merged in the order of the index, so that ten million
//! chunks cost a sort on disk and not ten million random writes.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rusqlite::{Connection, TransactionBehavior, params};

use crate::ObjectId;
use crate::index_cache::{Location, prefix};
use crate::key_ring::KeyRing;
use crate::pack_table::PackTable;

/// A load in progress. Dropped without [`Self::commit`], it leaves nothing that anybody sees.
#[derive(Debug)]
pub(crate) struct IndexLoader {
    ring: Arc<KeyRing>,
    /// `None`: the cache is private and has one connection only, which is lent for each step.
    connection: Option<Connection>,
    /// In the names of this load's temporary tables: several loads may share the connection.
    number: u64,
    staged: bool,
    chunks: u64,
}

static LOADS: AtomicU64 = AtomicU64::new(0);

impl IndexLoader {
    pub(crate) fn new(ring: Arc<KeyRing>, connection: Option<Connection>) -> Self {
        let number = LOADS.fetch_add(1, Ordering::Relaxed);
        Self { ring, connection, number, staged: false, chunks: 0 }
    }

    pub(crate) fn take_connection(&mut self) -> Option<Connection> {
        self.connection.take()
    }

    pub(crate) fn put_connection_back(&mut self, connection: Option<Connection>) {
        self.connection = connection;
    }

    /// Stages the packs that `exists`, and `segment` as loaded.
    pub(crate) fn add(
        &mut self,
        connection: &mut Connection,
        packs: &[PackTable],
        segment: Option<ObjectId>,
        exists: impl Fn(&PackTable) -> bool,
    ) -> rusqlite::Result<()> {
        let n = self.number;
        if !self.staged {
            connection.execute_batch(&format!(
                "CREATE TEMP TABLE staged_chunk_{n}(prefix BLOB, pack INTEGER, position INTEGER, start INTEGER,
                    stored INTEGER, plain INTEGER, compression INTEGER, proof INTEGER);
                 CREATE TEMP TABLE staged_pack_{n}(number INTEGER PRIMARY KEY);
                 CREATE TEMP TABLE staged_segment_{n}(id BLOB);",
            ))?;
            self.staged = true;
        }
        let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        for pack in packs.iter().filter(|pack| exists(pack)) {
            let row = params![pack.pack.0, pack.epoch, pack.salt, pack.size.cast_signed()];
            transaction
                .prepare_cached(
                    "INSERT INTO pack(id, epoch, salt, size, whole) VALUES (?1, ?2, ?3, ?4, 0) ON CONFLICT(id)
                     DO UPDATE SET epoch = ?2, salt = ?3, size = ?4 WHERE whole = 0",
                )?
                .execute(row)?;
            let (number, whole): (i64, bool) = transaction
                .prepare_cached("SELECT number, whole FROM pack WHERE id = ?1")?
                .query_row([pack.pack.0], |row| Ok((row.get(0)?, row.get(1)?)))?;
            let staged = transaction
                .prepare_cached(&format!("INSERT OR IGNORE INTO temp.staged_pack_{n} VALUES (?1)"))?
                .execute([number])?;
            if whole || staged == 0 {
                continue;
            }
            let mut insert = transaction.prepare_cached(&format!(
                "INSERT INTO temp.staged_chunk_{n} VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)"
            ))?;
            for location in Location::all_of(pack) {
                let entry = &location.entry;
                insert.execute(params![
                    prefix(&entry.id),
                    number,
                    location.position,
                    location.offset.cast_signed(),
                    entry.stored_len,
                    entry.plain_len,
                    entry.compression as u8,
                    location.proof(&self.ring),
                ])?;
                self.chunks += 1;
            }
        }
        if let Some(segment) = segment {
            transaction.execute(&format!("INSERT INTO temp.staged_segment_{n} VALUES (?1)"), [segment.0])?;
        }
        transaction.commit()
    }

    /// Makes everything staged visible, all or nothing.
    pub(crate) fn commit(&mut self, connection: &mut Connection) -> rusqlite::Result<()> {
        if !self.staged {
            return Ok(());
        }
        let n = self.number;
        let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        transaction.execute_batch(&format!(
            "INSERT OR IGNORE INTO chunk SELECT * FROM temp.staged_chunk_{n} ORDER BY prefix, pack;
             UPDATE pack SET whole = 1 WHERE whole = 0 AND number IN (SELECT number FROM temp.staged_pack_{n});
             INSERT OR IGNORE INTO segment SELECT id FROM temp.staged_segment_{n};",
        ))?;
        transaction.commit()?;
        connection.execute_batch(&format!(
            "DROP TABLE temp.staged_chunk_{n}; DROP TABLE temp.staged_pack_{n}; DROP TABLE temp.staged_segment_{n};",
        ))?;
        self.staged = false;
        // The log of a large merge is as large as the table; give the room back.
        if self.chunks > 1_000_000 {
            connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))?;
        }
        Ok(())
    }
}
