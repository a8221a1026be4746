//! The process that keeps a SQLite database busy.

use std::path::Path;
use std::time::Duration;

use rusqlite::{Connection, ErrorCode, TransactionBehavior, params};
use stillframe_storage::{BandwidthLimit, Clock};

use crate::sqlite_load::counter;
use crate::{LedgerWriter, Marks, SqliteLoad, Stop, WriteError, WriterReport, judge};

/// Pause before an attempt that failed for want of a lock is made again.
const RETRY: Duration = Duration::from_micros(500);

impl From<rusqlite::Error> for WriteError {
    fn from(error: rusqlite::Error) -> Self {
        Self::Engine(error.to_string())
    }
}

impl SqliteLoad {
    /// Writes into the database `file` (made if it is not there, continued if it is) until `stop`, keeping `ledger`. A transaction that
    /// fails because the database is busy is counted and made again.
    ///
    /// Before continuing it makes sure that nothing acknowledged is missing, going by the counters.
    pub fn write(
        &self,
        file: &Path,
        ledger: &Path,
        stop: &Stop,
        clock: &dyn Clock,
    ) -> Result<WriterReport, WriteError> {
        let mut connection = Connection::open(file)?;
        // While it is being set up it waits, whatever the load says.
        connection.busy_timeout(Duration::from_secs(30))?;
        self.prepare(&mut connection)?;
        let marks = Marks::read(ledger)?;
        let standing = counter(&connection, "c0")?;
        judge(standing, marks, marks)?;
        connection.busy_timeout(Duration::from_millis(self.busy_timeout_ms.unwrap_or(0).into()))?;

        let mut ledger = LedgerWriter::open(ledger)?;
        let limit = self
            .transactions_per_second
            .filter(|rate| *rate > 0)
            .map(|rate| BandwidthLimit::new(rate.into()));
        let started = clock.monotonic();
        let mut longest_commit = Duration::ZERO;
        let mut last = standing;
        let mut busy = 0;
        while !stop.now(last) {
            if let Some(limit) = &limit {
                std::thread::sleep(limit.reserve(1, clock));
            }
            let n = last + 1;
            let hash = self.transaction_hash(n);
            ledger.begun(n, hash)?;
            let before = clock.monotonic();
            while let Err(error) = self.transact(&mut connection, n) {
                if !matches!(
                    error.sqlite_error_code(),
                    Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked)
                ) {
                    return Err(error.into());
                }
                busy += 1;
                std::thread::sleep(RETRY);
            }
            longest_commit = longest_commit.max(clock.monotonic().saturating_sub(before));
            ledger.acked(n, hash)?;
            last = n;
        }
        Ok(WriterReport {
            last,
            transactions: last - standing,
            busy,
            took: clock.monotonic().saturating_sub(started),
            longest_commit,
        })
    }

    fn prepare(&self, connection: &mut Connection) -> Result<(), WriteError> {
        connection.pragma_update(None, "page_size", self.page_size)?;
        let mode = self.journal_mode.name();
        let got: String =
            connection.query_row(&format!("PRAGMA journal_mode = {mode}"), [], |row| row.get(0))?;
        if got != mode {
            return Err(WriteError::Engine(format!("journal mode is {got}, not {mode}")));
        }
        connection.pragma_update(None, "synchronous", "NORMAL")?;
        if let Some(pages) = self.autocheckpoint {
            connection.query_row(&format!("PRAGMA wal_autocheckpoint = {pages}"), [], |_| Ok(()))?;
        }
        let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let tables: i64 =
            transaction.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))?;
        if tables == 0 {
            transaction.execute_batch(
                "CREATE TABLE c0 (k INTEGER PRIMARY KEY, n INTEGER NOT NULL);
                 INSERT INTO c0 VALUES (1, 0);
                 CREATE TABLE filler (id INTEGER PRIMARY KEY, v BLOB NOT NULL);",
            )?;
            let mut insert = transaction.prepare("INSERT INTO filler VALUES (?1, ?2)")?;
            for row in 0..u64::from(self.filler_rows) {
                insert.execute(params![number(row)?, self.filler(row, 0)])?;
            }
            drop(insert);
            transaction.execute_batch(
                "CREATE TABLE log (n INTEGER PRIMARY KEY, v BLOB NOT NULL);
                 CREATE TABLE c1 (k INTEGER PRIMARY KEY, n INTEGER NOT NULL);
                 INSERT INTO c1 VALUES (1, 0);",
            )?;
        }
        transaction.commit()?;
        Ok(())
    }

    fn transact(&self, connection: &mut Connection, n: u64) -> rusqlite::Result<()> {
        let row = self.filler_row(n);
        let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        transaction.prepare_cached("UPDATE c0 SET n = ?1 WHERE k = 1")?.execute([number(n)?])?;
        if self.filler_rows > 0 {
            transaction
                .prepare_cached("UPDATE filler SET v = ?2 WHERE id = ?1")?
                .execute(params![number(row)?, self.filler(row, n)])?;
        }
        transaction
            .prepare_cached("INSERT INTO log (n, v) VALUES (?1, ?2)")?
            .execute(params![number(n)?, self.log_row(n)])?;
        transaction.prepare_cached("UPDATE c1 SET n = ?1 WHERE k = 1")?.execute([number(n)?])?;
        transaction.commit()
    }
}

fn number(value: u64) -> rusqlite::Result<i64> {
    i64::try_from(value).map_err(|error| rusqlite::Error::ToSqlConversionFailure(Box::new(error)))
}
