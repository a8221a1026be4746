//! The checker of SQLite databases names every kind of damage that a bad capture could do.
#![expect(clippy::unwrap_used, reason = "the functions that the tests share are tests too")]

use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::Connection;
use stillframe_storage::SystemClock;
use stillframe_testkit::{JournalMode, Marks, SqliteLoad, Stop, Violation, WriteError};
use tempfile::TempDir;

struct Written {
    dir: TempDir,
    load: SqliteLoad,
}

impl Written {
    fn new(load: &SqliteLoad, transactions: u64) -> Self {
        let written = Self { dir: tempfile::tempdir().unwrap(), load: load.clone() };
        written.go_on(transactions);
        written
    }

    fn go_on(&self, transactions: u64) {
        let report = self
            .load
            .write(&self.db(), &self.ledger(), &Stop::at(transactions), &SystemClock::new())
            .unwrap();
        assert_eq!(report.last, transactions);
    }

    fn db(&self) -> PathBuf {
        self.dir.path().join("db")
    }

    fn ledger(&self) -> PathBuf {
        self.dir.path().join("ledger")
    }

    fn check(&self) -> Result<u64, Violation> {
        self.load.check(&self.db(), self.dir.path())
    }

    fn after_sql(&self, sql: &str) -> Violation {
        let copy = self.dir.path().join("changed");
        std::fs::copy(self.db(), &copy).unwrap();
        Connection::open(&copy).unwrap().execute_batch(sql).unwrap();
        self.load.check(&copy, self.dir.path()).unwrap_err()
    }
}

fn load(journal_mode: JournalMode) -> SqliteLoad {
    SqliteLoad { journal_mode, filler_rows: 200, filler_bytes: 500, ..SqliteLoad::default() }
}

#[test]
fn good_databases_of_every_journal_mode_and_page_size_pass() {
    use JournalMode::{Delete, Persist, Truncate, Wal};
    for (mode, page_size) in [(Wal, 4096), (Wal, 512), (Delete, 4096), (Persist, 65536), (Truncate, 1024)] {
        let load = SqliteLoad { page_size, ..load(mode) };
        let written = Written::new(&load, 210);
        assert_eq!(written.check(), Ok(210), "{mode:?}");
        let marks = Marks::read(&written.ledger()).unwrap();
        assert_eq!((marks.begun, marks.acked), (210, 210));
        assert_eq!(marks.acked_hash, load.transaction_hash(210));
        let connection = Connection::open(written.db()).unwrap();
        let number = |pragma: &str| connection.query_row(pragma, [], |row| row.get::<_, i64>(0)).unwrap();
        assert_eq!(number("PRAGMA page_size"), i64::from(page_size));
        drop(connection);
        written.go_on(220);
        assert_eq!(written.check(), Ok(220), "{mode:?} continued");
    }
}

#[test]
fn checking_leaves_the_database_and_its_log_alone() {
    let written = Written::new(&load(JournalMode::Wal), 300);
    // Somebody has it open, so it has a log.
    let holder = Connection::open(written.db()).unwrap();
    holder.execute_batch("CREATE TABLE x (y); DROP TABLE x").unwrap();
    let before = stillframe_testkit::Inventory::of(written.dir.path()).unwrap();
    assert_eq!(written.check(), Ok(300));
    let changes = stillframe_testkit::Inventory::of(written.dir.path()).unwrap().changes_since(&before);
    let others: Vec<_> = changes.iter().filter(|change| change.path != Path::new(".")).collect();
    assert!(others.is_empty(), "{others:?}");
}

#[test]
fn each_kind_of_wrong_row_is_named() {
    let written = Written::new(&load(JournalMode::Wal), 450);
    let violation = written.after_sql("UPDATE c1 SET n = 449");
    assert_eq!(violation, Violation::Torn { standings: vec![("c0".into(), 450), ("c1".into(), 449)] });
    let violation = written.after_sql("UPDATE c0 SET n = 449; UPDATE c1 SET n = 449");
    assert!(
        matches!(&violation, Violation::WrongValue { found, row: 50, .. } if found == "what transaction 450 wrote there"),
        "{violation}"
    );
    let violation = written.after_sql("DELETE FROM log WHERE n = 321");
    assert!(matches!(violation, Violation::Hole { transaction: 321, .. }), "{violation}");
    let violation = written.after_sql("DELETE FROM log WHERE n = 450");
    assert!(matches!(violation, Violation::Hole { transaction: 450, missing: 1, .. }), "{violation}");
    let violation = written.after_sql("DELETE FROM filler WHERE id = 7");
    assert!(
        matches!(&violation, Violation::Hole { part, row: 7, .. } if part == "table filler"),
        "{violation}"
    );
    let violation = written.after_sql("INSERT INTO log VALUES (451, x'00')");
    assert!(
        matches!(violation, Violation::FromTheFuture { transaction: 451, standing: 450, .. }),
        "{violation}"
    );
    let violation = written.after_sql("INSERT INTO filler VALUES (200, x'00')");
    assert!(matches!(violation, Violation::Foreign { .. }), "{violation}");
    let violation = written.after_sql("UPDATE log SET v = zeroblob(24) WHERE n = 9");
    assert!(matches!(violation, Violation::WrongValue { transaction: 9, .. }), "{violation}");
    let violation = written.after_sql("DROP TABLE c1");
    assert_eq!(violation, Violation::PartMissing { part: "table c1".into() });
    let violation = written.after_sql("CREATE TABLE c2 (x)");
    assert!(matches!(violation, Violation::PartUnexpected { .. }), "{violation}");
}

#[test]
fn a_page_from_an_older_state_is_found_although_sqlite_finds_nothing_wrong() {
    // Rows as long as pages: an old page is a row's old content, whole and in order.
    let load = SqliteLoad { filler_rows: 100, filler_bytes: 3000, ..load(JournalMode::Delete) };
    let written = Written::new(&load, 100);
    let old = std::fs::read(written.db()).unwrap();
    written.go_on(200);
    let new = std::fs::read(written.db()).unwrap();
    let page_of = |bytes: &[u8], row: usize| bytes[row * 4096..][..4096].to_vec();
    let copy = written.dir.path().join("mixed");
    let mut named = 0;
    for page in 20..40 {
        assert_ne!(page_of(&old, page), page_of(&new, page));
        let mut mixed = new.clone();
        mixed[page * 4096..][..4096].copy_from_slice(&page_of(&old, page));
        std::fs::write(&copy, mixed).unwrap();
        let violation = load.check(&copy, written.dir.path()).unwrap_err();
        let Violation::WrongValue { part, transaction, found, .. } = &violation else {
            panic!("{violation}")
        };
        assert_eq!(part, "table filler");
        assert_eq!(*found, format!("what transaction {} wrote there", transaction - 100), "{violation}");
        named += 1;
    }
    assert_eq!(named, 20);
}

#[test]
fn damage_and_absence_are_said_as_such() {
    let written = Written::new(&load(JournalMode::Delete), 50);
    let copy = written.dir.path().join("damaged");
    let mut bytes = std::fs::read(written.db()).unwrap();
    let middle = bytes.len() / 2 / 4096 * 4096;
    bytes[middle..middle + 8].fill(0xff);
    std::fs::write(&copy, &bytes).unwrap();
    let violation = written.load.check(&copy, written.dir.path()).unwrap_err();
    assert!(matches!(violation, Violation::Integrity(_) | Violation::Unreadable(_)), "{violation}");
    std::fs::write(&copy, "not a database, but long enough to look at").unwrap();
    let violation = written.load.check(&copy, written.dir.path()).unwrap_err();
    assert!(matches!(violation, Violation::Unreadable(_)), "{violation}");
    let violation = written.load.check(Path::new("/nonexistent/db"), written.dir.path()).unwrap_err();
    assert!(matches!(violation, Violation::Unreadable(_)), "{violation}");
}

#[test]
fn a_writer_without_busy_timeout_counts_its_failures_and_one_with_it_waits() {
    for (busy_timeout_ms, fails) in [(None, true), (Some(5000), false)] {
        let load =
            SqliteLoad { busy_timeout_ms, transactions_per_second: Some(500), ..load(JournalMode::Delete) };
        let written = Written::new(&load, 1);
        let report = std::thread::scope(|scope| {
            let writer = scope
                .spawn(|| load.write(&written.db(), &written.ledger(), &Stop::at(300), &SystemClock::new()));
            while Marks::read(&written.ledger()).unwrap().acked < 20 {
                std::thread::sleep(Duration::from_millis(1));
            }
            let reader = Connection::open(written.db()).unwrap();
            // SQLite's own waiting is no match for a writer that never pauses.
            reader.busy_timeout(Duration::ZERO).unwrap();
            reader.execute_batch("BEGIN").unwrap();
            while reader.query_row("SELECT n FROM c0", [], |_| Ok(())).is_err() {
                std::thread::sleep(Duration::from_micros(50));
            }
            std::thread::sleep(Duration::from_millis(200));
            reader.execute_batch("ROLLBACK").unwrap();
            writer.join().unwrap().unwrap()
        });
        assert_eq!(report.busy > 0, fails, "{report:?}");
        assert!(report.longest_commit >= Duration::from_millis(100), "{report:?}");
        assert_eq!(written.check(), Ok(300));
    }
}

#[test]
fn a_writer_does_not_continue_a_database_that_lost_what_it_acknowledged() {
    let written = Written::new(&load(JournalMode::Delete), 10);
    std::fs::remove_file(written.db()).unwrap();
    let error =
        written.load.write(&written.db(), &written.ledger(), &Stop::at(20), &SystemClock::new()).unwrap_err();
    assert!(matches!(error, WriteError::Unlawful(Violation::Lost { found: 0, acked: 10 })), "{error}");
}
