//! The checker of fjall databases names every kind of damage that a bad capture could do. A checker that lets one pass proves
//! nothing about the captures that it passes.
#![expect(clippy::unwrap_used, reason = "the functions that the tests share are tests too")]

use std::path::{Path, PathBuf};

use fjall::{Database, Keyspace, KeyspaceCreateOptions};
use stillframe_storage::SystemClock;
use stillframe_testkit::{Churn, FjallLoad, LoadMarks, ScratchCopy, Stop, Violation, judge};
use tempfile::TempDir;

/// A database that was written and closed, with its ledger.
struct Written {
    dir: TempDir,
    load: FjallLoad,
}

impl Written {
    fn new(load: &FjallLoad, batches: u64) -> Self {
        let written = Self { dir: tempfile::tempdir().unwrap(), load: load.clone() };
        written.go_on(batches);
        written
    }

    fn go_on(&self, batches: u64) {
        let report =
            self.load.write(&self.db(), &self.ledger(), &Stop::at(batches), &SystemClock::new()).unwrap();
        assert_eq!(report.last, batches);
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

    /// Brings everything that these keyspaces hold into tables. When the writer's own flushes happen depends on how busy the
    /// machine is; what a test needs in tables it puts there.
    fn flush(&self, names: &[&str]) {
        let db = open(&self.db());
        for name in names {
            let keyspace = keyspace(&db, name);
            keyspace.rotate_memtable_and_wait().unwrap();
            assert!(keyspace.table_count() > 0, "{name}");
        }
    }

    fn copy(&self) -> ScratchCopy {
        ScratchCopy::of_directory(&self.db(), self.dir.path()).unwrap()
    }

    /// What the checker says of a copy with a change made through the engine.
    fn after(&self, change: impl FnOnce(&Database)) -> Violation {
        let copy = self.copy();
        let db = open(&copy.path());
        change(&db);
        drop(db);
        self.load.check(&copy.path(), self.dir.path()).unwrap_err()
    }

    /// What checker and ledger say of a copy with a change made to its files.
    fn after_files(&self, change: impl FnOnce(&Path)) -> Result<u64, Violation> {
        let copy = self.copy();
        change(&copy.path());
        let marks = LoadMarks::read(&self.ledger()).unwrap();
        self.load.check_and_judge(&copy.path(), self.dir.path(), &marks, &marks)
    }
}

fn open(path: &Path) -> Database {
    Database::builder(path).worker_threads(1).open().unwrap()
}

fn keyspace(db: &Database, name: &str) -> Keyspace {
    assert!(db.keyspace_exists(name), "{name}");
    db.keyspace(name, KeyspaceCreateOptions::default).unwrap()
}

/// The key of a row: its second part is the batch, its third the row.
fn key_of(keyspace: &Keyspace, batch: u64, row: u32) -> Vec<u8> {
    let tail = [&batch.to_be_bytes()[..], &row.to_be_bytes()[..]].concat();
    keyspace.iter().map(|guard| guard.key().unwrap().to_vec()).find(|key| key.ends_with(&tail)).unwrap()
}

fn journals(db: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(db).unwrap().map(|entry| entry.unwrap().path());
    let mut journals: Vec<_> = entries.filter(|path| path.extension().is_some_and(|e| e == "jnl")).collect();
    journals.sort();
    journals
}

fn small() -> FjallLoad {
    FjallLoad { memtable_bytes: 200_000, ..FjallLoad::default() }
}

#[test]
fn a_good_copy_passes_and_checking_changes_nothing_in_it() {
    let load = FjallLoad { separate_values: true, ..small() };
    let written = Written::new(&load, 1000);
    let before = stillframe_testkit::Inventory::of(&written.db()).unwrap();
    assert_eq!(written.check(), Ok(1000));
    assert_eq!(stillframe_testkit::Inventory::of(&written.db()).unwrap().changes_since(&before), []);
    let marks = LoadMarks::read(&written.ledger()).unwrap();
    assert_eq!((marks.batches.begun, marks.batches.acked), (1000, 1000));
    assert_eq!(marks.batches.acked_hash, load.batch_hash(1000), "writer and checker mean the same rows");
    written.go_on(1500);
    assert_eq!(written.check(), Ok(1500), "a reopened database is continued");
    written.flush(&["k0", "k1", "k2", "k3"]);
    assert_eq!(written.check(), Ok(1500), "read from tables");

    let copy = written.copy();
    let db = open(&copy.path());
    assert!(keyspace(&db, "k1").blob_file_count() > 0, "values were separated");
}

#[test]
fn an_empty_database_stands_at_zero() {
    let written = Written::new(&small(), 0);
    assert_eq!(written.check(), Ok(0));
}

#[test]
fn a_missing_row_is_a_hole_with_its_batch_and_keyspace() {
    let written = Written::new(&small(), 1000);
    let violation = written.after(|db| {
        let k2 = keyspace(db, "k2");
        for (batch, row) in [(700, 3), (321, 1)] {
            k2.remove(key_of(&k2, batch, row)).unwrap();
        }
    });
    let part = "keyspace k2".to_owned();
    assert_eq!(violation, Violation::Hole { part, transaction: 321, row: 1, missing: 2, standing: 1000 });
    assert!(violation.to_string().contains("hole in keyspace k2: row 1 of transaction 321"), "{violation}");
}

#[test]
fn a_changed_byte_is_a_wrong_value() {
    let written = Written::new(&small(), 300);
    let violation = written.after(|db| {
        let k0 = keyspace(db, "k0");
        let key = key_of(&k0, 200, 2);
        let mut value = k0.get(&key).unwrap().unwrap().to_vec();
        value[10] ^= 1;
        k0.insert(key, value).unwrap();
    });
    assert!(
        matches!(&violation, Violation::WrongValue { part, transaction: 200, row: 2, .. } if part == "keyspace k0"),
        "{violation}"
    );
    let violation = written.after(|db| {
        let (k0, k1) = (keyspace(db, "k0"), keyspace(db, "k1"));
        let key = key_of(&k0, 200, 2);
        let others = k1.get(&key).unwrap().unwrap();
        k0.insert(key, others).unwrap();
    });
    assert!(
        matches!(violation, Violation::WrongValue { transaction: 200, .. }),
        "another keyspace's row: {violation}"
    );
}

#[test]
fn a_lost_tombstone_is_named_with_the_batch_that_removed_the_row() {
    let load = small();
    let written = Written::new(&load, 50);
    let copy = written.copy();
    let db = open(&copy.path());
    let k1 = keyspace(&db, "k1");
    let key = key_of(&k1, 5, 0);
    let value = k1.get(&key).unwrap().unwrap().to_vec();
    drop((k1, db));
    written.go_on(200);
    let violation = written.after(|db| keyspace(db, "k1").insert(key, value).unwrap());
    let part = "keyspace k1".to_owned();
    assert_eq!(violation, Violation::Undead { part, transaction: 5, row: 0, removed_by: 105 });
}

#[test]
fn rows_of_later_batches_and_of_nobody_are_named() {
    let written = Written::new(&small(), 300);
    let violation = written.after(|db| {
        for number in 0..4 {
            keyspace(db, &format!("k{number}")).insert("n", 299_u64.to_be_bytes()).unwrap();
        }
    });
    assert!(
        matches!(violation, Violation::FromTheFuture { transaction: 300, standing: 299, .. }),
        "{violation}"
    );
    let violation = written.after(|db| keyspace(db, "k3").insert("whose", "?").unwrap());
    assert_eq!(violation, Violation::Foreign { part: "keyspace k3".into(), row: "77686f7365".into() });
    let other = FjallLoad { seed: 2, ..small() };
    let violation = other.check(&written.db(), written.dir.path()).unwrap_err();
    assert!(matches!(violation, Violation::Foreign { .. }), "another seed's rows: {violation}");
}

#[test]
fn a_batch_that_is_missing_in_one_keyspace_is_torn() {
    let written = Written::new(&small(), 300);
    let violation = written.after(|db| {
        let k3 = keyspace(db, "k3");
        for row in 0..4 {
            k3.remove(key_of(&k3, 300, row)).unwrap();
        }
        k3.insert("n", 299_u64.to_be_bytes()).unwrap();
    });
    let Violation::Torn { standings } = &violation else { panic!("{violation}") };
    assert_eq!(standings.iter().map(|(_, n)| *n).collect::<Vec<_>>(), [300, 300, 300, 299]);
    assert!(violation.to_string().contains("k3 stands at 299"), "{violation}");
}

#[test]
fn a_keyspace_folder_that_is_missing_is_named_although_the_engine_opens() {
    let written = Written::new(&small(), 300);
    let db = open(&written.copy().path());
    let id = keyspace(&db, "k1").path().file_name().unwrap().to_owned();
    drop(db);
    let violation = written
        .after_files(|db| std::fs::remove_dir_all(db.join("keyspaces").join(id)).unwrap())
        .unwrap_err();
    assert_eq!(violation, Violation::PartMissing { part: "keyspace k1".into() });
}

#[test]
fn what_the_engine_cannot_open_is_said_and_does_not_end_the_test_run() {
    let written = Written::new(&small(), 300);
    written.flush(&["k0"]);
    let stray = |db: &Path| std::fs::create_dir(db.join("keyspaces/pins")).unwrap();
    let violation = written.after_files(stray).unwrap_err();
    assert!(
        matches!(&violation, Violation::PartUnexpected { part, .. } if part == "keyspaces/pins"),
        "{violation}"
    );
    let no_lock = |db: &Path| std::fs::remove_file(db.join("lock")).unwrap();
    let violation = written.after_files(no_lock).unwrap_err();
    assert!(matches!(violation, Violation::Unreadable(_)), "{violation}");
    let one_table_less = |db: &Path| {
        let tables = std::fs::read_dir(db.join("keyspaces/1/tables")).unwrap();
        std::fs::remove_file(tables.into_iter().next().unwrap().unwrap().path()).unwrap();
    };
    let violation = written.after_files(one_table_less).unwrap_err();
    assert!(matches!(violation, Violation::Unreadable(_)), "{violation}");
    let violation = written.after_files(|db| std::fs::remove_dir_all(db).unwrap()).unwrap_err();
    assert!(matches!(violation, Violation::Unreadable(_)), "{violation}");
}

#[test]
fn journals_that_are_missing_or_cut_are_noticed() {
    // Everything is in the journal: what is left is a whole prefix, and only the ledger knows better.
    let load = FjallLoad { memtable_bytes: u64::MAX, ..FjallLoad::default() };
    let written = Written::new(&load, 500);
    let cut = |keep: f64| {
        written.after_files(|db| {
            let journal = &journals(db)[0];
            let bytes = std::fs::read(journal).unwrap();
            let end = bytes.iter().rposition(|byte| *byte != 0).unwrap() + 1;
            #[expect(
                clippy::cast_precision_loss,
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "a part of a length"
            )]
            std::fs::write(journal, &bytes[..(end as f64 * keep) as usize]).unwrap();
        })
    };
    assert_eq!(cut(1.0), Ok(500));
    let violation = cut(0.6).unwrap_err();
    assert!(matches!(violation, Violation::Lost { found: 200..400, acked: 500 }), "{violation}");
    let violation = cut(0.999_999).unwrap_err();
    assert_eq!(violation, Violation::Lost { found: 499, acked: 500 });
    let no_journal =
        |db: &Path| journals(db).iter().for_each(|journal| std::fs::remove_file(journal).unwrap());
    assert_eq!(written.after_files(no_journal), Err(Violation::Lost { found: 0, acked: 500 }));

    // Some is in tables, up to another batch in each keyspace.
    written.flush(&["k0"]);
    written.go_on(1000);
    written.flush(&["k1"]);
    assert_eq!(written.check(), Ok(1000));
    let violation = written.after_files(no_journal).unwrap_err();
    assert!(matches!(violation, Violation::Torn { .. }), "{violation}");
    let empty_journal = |db: &Path| {
        let newest = journals(db).pop().unwrap();
        no_journal(db);
        std::fs::write(newest, "").unwrap();
    };
    let violation = written.after_files(empty_journal).unwrap_err();
    assert!(matches!(violation, Violation::Torn { .. }), "{violation}");
}

#[test]
fn one_keyspace_rolled_back_is_named_even_when_the_journal_brings_its_counter_back() {
    // More than a journal holds, so that not all of it can be replayed.
    let load = FjallLoad {
        keyspaces: 3,
        rows: 4,
        value_bytes: (8000, 8000),
        noise: 1.0,
        remove_after: None,
        memtable_bytes: 4 << 20,
        ..FjallLoad::default()
    };
    let written = Written::new(&load, 300);
    let old = written.copy();
    written.go_on(1700);
    written.flush(&["k0", "k1", "k2"]);
    assert!(journals(&written.db())[0].file_name().unwrap() != "0.jnl", "the first journal is gone");
    // What the journal has now brings the counter back, and hardly any rows.
    written.go_on(1720);
    assert_eq!(written.check(), Ok(1720));

    let db = open(&written.copy().path());
    let id = keyspace(&db, "k1").path().file_name().unwrap().to_owned();
    drop(db);
    let violation = written
        .after_files(|db| {
            let place = db.join("keyspaces").join(&id);
            std::fs::remove_dir_all(&place).unwrap();
            std::fs::rename(old.path().join("keyspaces").join(&id), place).unwrap();
        })
        .unwrap_err();
    let Violation::Hole { part, transaction, standing: 1720, missing, .. } = &violation else {
        panic!("{violation}")
    };
    assert_eq!(part, "keyspace k1");
    assert!((1..=301).contains(transaction) && *missing > 1000, "{violation}");
}

#[test]
fn keyspaces_that_come_and_go_are_checked_row_by_row_too() {
    let churn = Churn { batches: 10, keep: 3, pause_ms: 1 };
    let load = FjallLoad { churn: Some(churn), batches_per_second: Some(1000), ..small() };
    let written = Written::new(&load, 2500);
    let marks = LoadMarks::read(&written.ledger()).unwrap();
    assert!(marks.churn.acked >= 100, "ten keyspaces came, some went: {marks:?}");
    assert_eq!(written.after_files(|_| ()), Ok(2500));

    let newest = (marks.churn.acked - 1) / 10;
    let name = format!("tmp{newest}");
    let violation = written.after(|db| {
        let tmp = keyspace(db, &name);
        let first = tmp.first_key_value().unwrap().key().unwrap();
        tmp.remove(first).unwrap();
    });
    assert!(
        matches!(&violation, Violation::Hole { part, missing: 1, .. } if *part == format!("keyspace {name}")),
        "{violation}"
    );
    let violation = written.after(|db| db.delete_keyspace(keyspace(db, &name)).unwrap());
    assert_eq!(violation, Violation::PartMissing { part: format!("keyspace {name}") });
    let violation = written.after(|db| drop(db.keyspace("tmp0", KeyspaceCreateOptions::default).unwrap()));
    assert!(
        matches!(&violation, Violation::PartUnexpected { part, .. } if part == "keyspace tmp0"),
        "{violation}"
    );
    let violation = written.after(|db| {
        let partner = keyspace(db, "partner");
        partner.remove(5_u64.to_be_bytes()).unwrap();
    });
    assert!(
        matches!(&violation, Violation::Hole { part, transaction: 5, .. } if part == "keyspace partner"),
        "{violation}"
    );
}

#[test]
fn a_writer_does_not_continue_a_database_that_lost_what_it_acknowledged() {
    let written = Written::new(&small(), 100);
    let marks = LoadMarks::read(&written.ledger()).unwrap().batches;
    assert_eq!(judge(99, marks, marks), Err(Violation::Lost { found: 99, acked: 100 }));
    std::fs::remove_dir_all(written.db()).unwrap();
    let error =
        small().write(&written.db(), &written.ledger(), &Stop::at(200), &SystemClock::new()).unwrap_err();
    assert!(error.to_string().contains("transaction 100 was acknowledged"), "{error}");
}
