//! A fjall database of set entropy.

use std::cell::Cell;
use std::path::{Path, PathBuf};

use fjall::{CompressionType, Database, Keyspace, KeyspaceCreateOptions, PersistMode};
use stillframe_testkit::Content;

use crate::error::BenchError;
use crate::tree::{directory_with, files_below};
use crate::workshop::Workshop;

const ROW: usize = 1000;
/// What is written between two flushes. fjall's own threads would get stuck if memtables became too large.
const FLUSH: u64 = 32 << 20;
/// The file that stands in a database's own directory and nowhere below.
const MARKER: &str = "version";

/// A database that is written, flushed and closed only between the runs.
#[derive(Debug)]
pub(crate) struct FjallData {
    /// Its directory.
    pub(crate) dir: PathBuf,
    rows: u64,
    noise: f64,
    seed: u64,
    /// Of all rows, as they were written last. Whoever opens the database to look changes its files.
    digest: Cell<blake3::Hash>,
}

impl FjallData {
    /// Writes a database of about that many bytes.
    pub(crate) fn fill(workshop: &Workshop, name: &str, bytes: u64, noise: f64) -> Result<Self, BenchError> {
        let dir = workshop.empty_dir(name)?;
        let rows = (bytes / (ROW as u64 + 8)).max(1000);
        let digest = Cell::new(blake3::Hash::from_bytes([0; 32]));
        let data = Self { dir, rows, noise, seed: workshop.seed, digest };
        data.write(0..rows, 0)?;
        Ok(data)
    }

    /// Writes one row in `one_in`, all over the keys, anew.
    pub(crate) fn change(&self, one_in: u64, round: u32) -> Result<(), BenchError> {
        let from = usize::try_from(u64::from(round) % one_in).unwrap_or_default();
        let step = usize::try_from(one_in).unwrap_or(usize::MAX);
        self.write((0..self.rows).skip(from).step_by(step), round)
    }

    /// How many tables it has.
    pub(crate) fn tables(&self) -> Result<usize, BenchError> {
        let in_tables = |path: &PathBuf| path.parent().is_some_and(|dir| dir.ends_with("tables"));
        Ok(files_below(&self.dir)?.into_iter().filter(in_tables).count())
    }

    /// Whether a database with the same rows lies somewhere below `restored`, and the first difference if not.
    pub(crate) fn difference(&self, restored: &Path) -> Result<Option<String>, BenchError> {
        let Some(dir) = directory_with(restored, MARKER)? else {
            return Ok(Some(format!("there is no {MARKER}")));
        };
        let failed = BenchError::fjall(&dir);
        let theirs = open(&dir).and_then(|(_database, rows)| digest(&rows)).map_err(failed)?;
        Ok((theirs != self.digest.get()).then(|| "the rows differ".to_owned()))
    }

    fn write(&self, rows: impl Iterator<Item = u64>, round: u32) -> Result<(), BenchError> {
        let fill = || -> fjall::Result<()> {
            let (database, keyspace) = open(&self.dir)?;
            let mut since_flush = 0;
            for row in rows {
                keyspace.insert(row.to_be_bytes(), self.body(row, round))?;
                since_flush += ROW as u64;
                if since_flush >= FLUSH {
                    keyspace.rotate_memtable_and_wait()?;
                    since_flush = 0;
                }
            }
            keyspace.rotate_memtable_and_wait()?;
            if round == 0 {
                keyspace.major_compact()?;
            }
            self.digest.set(digest(&keyspace)?);
            database.persist(PersistMode::SyncAll)
        };
        fill().map_err(BenchError::fjall(&self.dir))
    }

    fn body(&self, row: u64, round: u32) -> Vec<u8> {
        // Odd factors, so that no two of seed, row and round meet in the same number.
        let seed = self.seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ row.wrapping_mul(0xd6e8_feb8_6659_fd93);
        Content::new(seed ^ (u64::from(round) << 32), self.noise).bytes(ROW)
    }
}

fn open(dir: &Path) -> fjall::Result<(Database, Keyspace)> {
    let database = Database::builder(dir).worker_threads(1).open()?;
    let options = || {
        // What is measured is the backup's compression, not the engine's.
        let none = fjall::config::CompressionPolicy::all(CompressionType::None);
        KeyspaceCreateOptions::default().data_block_compression_policy(none).max_memtable_size(u64::MAX)
    };
    let keyspace = database.keyspace("item", options)?;
    Ok((database, keyspace))
}

/// A hash over all rows in order.
fn digest(keyspace: &Keyspace) -> fjall::Result<blake3::Hash> {
    let mut hasher = blake3::Hasher::new();
    for row in keyspace.iter() {
        let (key, value) = row.into_inner()?;
        hasher.update(&key);
        hasher.update(&value);
    }
    Ok(hasher.finalize())
}
