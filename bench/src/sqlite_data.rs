//! A SQLite database of set entropy.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use rusqlite::{Connection, OpenFlags};
use stillframe_testkit::Content;

use crate::error::BenchError;
use crate::tree::directory_with;
use crate::workshop::Workshop;

const ROW: usize = 1000;

/// Rows that are changed lie in this many runs, as those of an application that works in some places more than in others.
const RUNS: u64 = 16;

/// The unit in which changes are counted: that in which Stillframe cuts files that are changed page by page.
pub(crate) const CHUNK: usize = 64 << 10;

/// A database in WAL mode that is written, checkpointed and closed only between the runs.
#[derive(Debug)]
pub(crate) struct SqliteData {
    /// Its file.
    pub(crate) file: PathBuf,
    rows: u64,
    noise: f64,
    seed: u64,
}

impl SqliteData {
    /// Writes a database of about that many bytes.
    pub(crate) fn fill(workshop: &Workshop, name: &str, bytes: u64, noise: f64) -> Result<Self, BenchError> {
        let file = workshop.empty_dir(name)?.join("data.sqlite");
        let rows = (bytes / (ROW as u64 + 24)).max(RUNS);
        let data = Self { file, rows, noise, seed: workshop.seed };
        data.write(
            "PRAGMA journal_mode = wal; CREATE TABLE item (id INTEGER PRIMARY KEY, body BLOB);",
            0..rows,
            0,
        )?;
        Ok(data)
    }

    /// Writes one row in `one_in` anew, in [`RUNS`] runs; returns the bytes of the chunks in which the file then differs.
    pub(crate) fn change(&self, one_in: u64, round: u32) -> Result<u64, BenchError> {
        let before = self.chunk_hashes()?;
        let length = (self.rows / one_in / RUNS).max(1);
        // Each round begins elsewhere.
        let from = u64::from(round) * length;
        let chosen = (0..RUNS).flat_map(|run| {
            let start = run * (self.rows / RUNS) + from;
            start..(start + length)
        });
        self.write("", chosen.map(|row| row % self.rows), round)?;
        let after = self.chunk_hashes()?;
        let changed = after.iter().enumerate().filter(|(at, hash)| before.get(*at) != Some(hash)).count();
        Ok((changed * CHUNK) as u64)
    }

    /// Whether a database with the same rows lies somewhere below `restored`, and the first difference if not.
    pub(crate) fn difference(&self, restored: &Path) -> Result<Option<String>, BenchError> {
        let Some(dir) = directory_with(restored, "data.sqlite")? else {
            return Ok(Some("there is no data.sqlite".to_owned()));
        };
        let (ours, theirs) = (digest(&self.file)?, digest(&dir.join("data.sqlite"))?);
        Ok((ours != theirs).then(|| "the rows differ".to_owned()))
    }

    fn write(&self, first: &str, rows: impl Iterator<Item = u64>, round: u32) -> Result<(), BenchError> {
        let fill = || -> rusqlite::Result<()> {
            let mut connection = Connection::open(&self.file)?;
            connection.execute_batch(first)?;
            let transaction = connection.transaction()?;
            {
                let mut insert =
                    transaction.prepare("INSERT OR REPLACE INTO item (id, body) VALUES (?1, ?2)")?;
                for row in rows {
                    insert.execute((row.cast_signed(), self.body(row, round)))?;
                }
            }
            transaction.commit()?;
            // Closing checkpoints and removes the WAL: what is backed up is one file at rest.
            connection.close().map_err(|(_, error)| error)
        };
        fill().map_err(BenchError::sqlite(&self.file))
    }

    fn body(&self, row: u64, round: u32) -> Vec<u8> {
        // Odd factors, so that no two of seed, row and round meet in the same number.
        let seed = self.seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ row.wrapping_mul(0xd6e8_feb8_6659_fd93);
        Content::new(seed ^ (u64::from(round) << 32), self.noise).bytes(ROW)
    }

    fn chunk_hashes(&self) -> Result<Vec<blake3::Hash>, BenchError> {
        let mut file = File::open(&self.file).map_err(BenchError::io("opening", &self.file))?;
        let mut hashes = Vec::new();
        loop {
            let mut chunk = Vec::with_capacity(CHUNK);
            let part = file.by_ref().take(CHUNK as u64).read_to_end(&mut chunk);
            if part.map_err(BenchError::io("reading", &self.file))? == 0 {
                return Ok(hashes);
            }
            hashes.push(blake3::hash(&chunk));
        }
    }
}

/// A hash over all rows in order.
fn digest(file: &Path) -> Result<blake3::Hash, BenchError> {
    let read = || -> rusqlite::Result<blake3::Hash> {
        let connection = Connection::open_with_flags(file, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
        let mut hasher = blake3::Hasher::new();
        let mut select = connection.prepare("SELECT id, body FROM item ORDER BY id")?;
        let mut rows = select.query([])?;
        while let Some(row) = rows.next()? {
            hasher.update(&row.get::<_, i64>(0)?.to_le_bytes());
            hasher.update(row.get_ref(1)?.as_blob()?);
        }
        Ok(hasher.finalize())
    };
    read().map_err(BenchError::sqlite(file))
}
