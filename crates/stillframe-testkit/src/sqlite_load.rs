//! What the SQLite writer writes, and every row of a copy against it.

use std::path::Path;

use rusqlite::{Connection, OpenFlags, OptionalExtension};
use serde::{Deserialize, Serialize};

use crate::fjall_check::describe_difference;
use crate::splitmix::mix_all;
use crate::{Content, ScratchCopy, Violation};

/// A load on a SQLite database, and at the same time the description of every row that it leaves.
///
/// Transaction n (from 1) sets the counter in table `c0` to n, rewrites the filler row n modulo their number as a function of n, appends a
/// row to `log`, and sets the counter in `c1` to n: parts of the file that lie far apart.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SqliteLoad {
    /// Chooses contents.
    pub seed: u64,
    /// How the database keeps its transactions whole.
    pub journal_mode: JournalMode,
    /// Bytes per page, 512 to 65536, a power of two. Takes effect when the database is made.
    pub page_size: u32,
    /// Filler rows, which with their length make the size of the database.
    pub filler_rows: u32,
    /// Length of a filler row in bytes.
    pub filler_bytes: u32,
    /// How long a statement waits for other processes; none is SQLite's default, and it fails at once.
    pub busy_timeout_ms: Option<u32>,
    /// Pages after which the writer checkpoints; none is SQLite's default, 0 is never.
    pub autocheckpoint: Option<u32>,
    /// At most so many transactions in a second.
    pub transactions_per_second: Option<u32>,
}

/// How a database keeps its transactions whole (`PRAGMA journal_mode`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum JournalMode {
    /// A log beside the database.
    Wal,
    /// A rollback journal, removed after each transaction.
    Delete,
    /// A rollback journal whose header is overwritten after each transaction.
    Persist,
    /// A rollback journal that is cut to nothing after each transaction.
    Truncate,
}

impl JournalMode {
    /// As SQLite spells it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Wal => "wal",
            Self::Delete => "delete",
            Self::Persist => "persist",
            Self::Truncate => "truncate",
        }
    }
}

impl Default for SqliteLoad {
    fn default() -> Self {
        Self {
            seed: 1,
            journal_mode: JournalMode::Wal,
            page_size: 4096,
            filler_rows: 2000,
            filler_bytes: 1000,
            busy_timeout_ms: Some(5000),
            autocheckpoint: None,
            transactions_per_second: None,
        }
    }
}

/// Keeps the contents of the log apart from those of the filler rows.
const LOG: u64 = 0x006c_6f67;

impl SqliteLoad {
    /// The hash of what transaction `n` writes, as the writer puts it into its ledger.
    pub fn transaction_hash(&self, n: u64) -> u64 {
        mix_all(&[self.seed, n, u64::from(self.filler_rows), u64::from(self.filler_bytes)])
    }

    /// The filler row that transaction `n` rewrites.
    pub(crate) fn filler_row(&self, n: u64) -> u64 {
        n % u64::from(self.filler_rows.max(1))
    }

    /// What it writes there. Number 0 is what the row held at first.
    pub(crate) fn filler(&self, row: u64, n: u64) -> Vec<u8> {
        Content::new(mix_all(&[self.seed, row, n]), 0.5).bytes(self.filler_bytes as usize)
    }

    /// What it appends to the log.
    pub(crate) fn log_row(&self, n: u64) -> Vec<u8> {
        Content::new(mix_all(&[self.seed, n, LOG]), 1.0).bytes(24)
    }

    /// The transaction that wrote the filler row last, when the database stands at `standing`.
    fn last_writer(&self, row: u64, standing: u64) -> u64 {
        let rows = u64::from(self.filler_rows.max(1));
        let back = (standing % rows + rows - row) % rows;
        standing.saturating_sub(back)
    }

    /// Copies the database `file` (with its `-wal` or `-journal`, if it has one) below `scratch`, opens the copy, lets SQLite check it
    /// and compares every row. Returns the number of the transaction that it stands at.
    pub fn check(&self, file: &Path, scratch: &Path) -> Result<u64, Violation> {
        let copy = ScratchCopy::of_file(file, &["-wal", "-journal"], scratch)
            .map_err(|error| Violation::Unreadable(format!("copying {}: {error}", file.display())))?;
        // Not made if it is missing, but written: a journal is played back.
        let connection = Connection::open_with_flags(copy.path(), OpenFlags::SQLITE_OPEN_READ_WRITE)
            .map_err(unreadable)?;
        let verdict: String =
            connection.query_row("PRAGMA integrity_check", [], |row| row.get(0)).map_err(unreadable)?;
        if verdict != "ok" {
            return Err(Violation::Integrity(verdict));
        }
        self.check_rows(&connection)
    }

    fn check_rows(&self, connection: &Connection) -> Result<u64, Violation> {
        let mut tables = connection
            .prepare("SELECT name FROM sqlite_schema WHERE type = 'table' ORDER BY name")
            .map_err(unreadable)?;
        let names = tables.query_map([], |row| row.get::<_, String>(0)).map_err(unreadable)?;
        let names = names.collect::<rusqlite::Result<Vec<_>>>().map_err(unreadable)?;
        if names.is_empty() {
            // The database is made in one transaction, which was still to come.
            return Ok(0);
        }
        for expected in ["c0", "c1", "filler", "log"] {
            if !names.iter().any(|name| name == expected) {
                return Err(Violation::PartMissing { part: format!("table {expected}") });
            }
        }
        if let Some(name) = names.iter().find(|name| !["c0", "c1", "filler", "log"].contains(&name.as_str()))
        {
            let why = "no transaction makes it".to_owned();
            return Err(Violation::PartUnexpected { part: format!("table {name}"), why });
        }

        let counters = [counter(connection, "c0")?, counter(connection, "c1")?];
        let [standing, other] = counters;
        if standing != other {
            return Err(Violation::Torn { standings: vec![("c0".into(), standing), ("c1".into(), other)] });
        }
        let rows = u64::from(self.filler_rows);
        self.check_table(connection, "SELECT id, v FROM filler ORDER BY id", 0..rows, |row| {
            let writer = self.last_writer(row, standing);
            ("table filler", writer, self.filler(row, writer), standing)
        })?;
        self.check_table(
            connection,
            "SELECT n, v FROM log ORDER BY n",
            1..standing.saturating_add(1),
            |n| ("table log", n, self.log_row(n), standing),
        )?;
        Ok(standing)
    }

    /// Compares the rows of a query (number, bytes) with what is expected for each number of a range: part, transaction, bytes, standing.
    fn check_table(
        &self,
        connection: &Connection,
        query: &str,
        numbers: std::ops::Range<u64>,
        expected: impl Fn(u64) -> (&'static str, u64, Vec<u8>, u64),
    ) -> Result<(), Violation> {
        let mut statement = connection.prepare(query).map_err(unreadable)?;
        let mut rows = statement.query([]).map_err(unreadable)?;
        let mut next = numbers.start;
        while let Some(row) = rows.next().map_err(unreadable)? {
            let number = u64::try_from(row.get::<_, i64>(0).map_err(unreadable)?).unwrap_or(u64::MAX);
            let (part, transaction, bytes, standing) = expected(next);
            if number >= numbers.end {
                return Err(match part {
                    "table log" => {
                        Violation::FromTheFuture { part: part.into(), transaction: number, standing }
                    }
                    _ => Violation::Foreign { part: part.into(), row: number.to_string() },
                });
            }
            if number < next {
                return Err(Violation::Foreign { part: part.into(), row: number.to_string() });
            }
            if number != next {
                let missing = number.saturating_sub(next);
                return Err(Violation::Hole { part: part.into(), transaction, row: next, missing, standing });
            }
            let found: Vec<u8> = row.get(1).map_err(unreadable)?;
            if found != bytes {
                let found = self.describe_filler(next, &found, &bytes);
                return Err(Violation::WrongValue { part: part.into(), transaction, row: next, found });
            }
            next += 1;
        }
        if next < numbers.end {
            let (part, transaction, _, standing) = expected(next);
            let missing = numbers.end - next;
            return Err(Violation::Hole { part: part.into(), transaction, row: next, missing, standing });
        }
        Ok(())
    }

    /// Says whether a wrong filler row is an older or a newer state of that row.
    fn describe_filler(&self, row: u64, found: &[u8], expected: &[u8]) -> String {
        let rows = u64::from(self.filler_rows.max(1));
        let candidates = std::iter::once(0).chain((0..1000).map(|round| round * rows + row));
        match candidates.into_iter().find(|n| self.filler(row, *n) == found) {
            Some(n) => format!("what transaction {n} wrote there"),
            None => describe_difference(found, expected),
        }
    }
}

pub(crate) fn counter(connection: &Connection, table: &str) -> Result<u64, Violation> {
    let found: Option<i64> = connection
        .query_row(&format!("SELECT n FROM {table} WHERE k = 1"), [], |row| row.get(0))
        .optional()
        .map_err(unreadable)?;
    let n = found.ok_or_else(|| Violation::PartMissing { part: format!("the counter in table {table}") })?;
    u64::try_from(n).map_err(|_| Violation::WrongValue {
        part: format!("table {table}"),
        transaction: 0,
        row: 0,
        found: format!("the counter is {n}"),
    })
}

#[expect(clippy::needless_pass_by_value, reason = "fits map_err")]
fn unreadable(error: rusqlite::Error) -> Violation {
    Violation::Unreadable(error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_writer_of_a_row_is_the_newest_transaction_that_rewrites_it() {
        let load = SqliteLoad { filler_rows: 7, ..SqliteLoad::default() };
        for standing in 0..50 {
            for row in 0..7 {
                let newest = (1..=standing).rev().find(|n| load.filler_row(*n) == row).unwrap_or(0);
                assert_eq!(load.last_writer(row, standing), newest, "row {row} at {standing}");
            }
        }
    }
}
