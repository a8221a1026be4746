//! Writers in processes of their own, killed, stopped and copied: this program starts itself again as those writers.
#![expect(clippy::unwrap_used, reason = "a test, though it has a main of its own")]

use std::ffi::OsString;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde::Serialize;
use stillframe_storage::SystemClock;
use stillframe_testkit::{
    Churn, FjallLoad, JournalMode, LoadMarks, Marks, Process, ScratchCopy, SqliteLoad, Stop, Violation, judge,
};
use tempfile::TempDir;

const LONG: Duration = Duration::from_mins(2);

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["write-fjall", load, db, ledger, stop] => {
            let (load, stop): (FjallLoad, Stop) =
                (serde_json::from_str(load).unwrap(), serde_json::from_str(stop).unwrap());
            if let Err(error) = load.write(Path::new(db), Path::new(ledger), &stop, &SystemClock::new()) {
                eprintln!("{error}");
                std::process::exit(3);
            }
        }
        ["write-sqlite", load, db, ledger, stop] => {
            let (load, stop): (SqliteLoad, Stop) =
                (serde_json::from_str(load).unwrap(), serde_json::from_str(stop).unwrap());
            if let Err(error) = load.write(Path::new(db), Path::new(ledger), &stop, &SystemClock::new()) {
                eprintln!("{error}");
                std::process::exit(3);
            }
        }
        // What the test runner passes on (filters, --nocapture) means nothing here.
        _ => tests(),
    }
}

fn tests() {
    let tests: [(&str, fn()); 8] = [
        ("a_killed_fjall_writer_loses_nothing_acknowledged_and_goes_on", killed_fjall),
        ("a_killed_writer_of_large_separated_values_and_passing_keyspaces_loses_nothing", killed_fjall_churn),
        ("a_copy_of_a_stopped_fjall_writers_files_is_an_exact_prefix", stopped_fjall),
        ("journals_copied_after_the_tables_lose_rows_and_that_is_found", naive_copy_is_found),
        ("batches_left_in_the_process_are_found_lost_and_only_that", manual_persist_is_found),
        ("a_killed_sqlite_writer_loses_nothing_acknowledged_in_any_mode", killed_sqlite),
        ("a_sqlite_log_that_was_not_copied_is_found", missing_wal_is_found),
        ("a_writer_stops_when_its_file_appears", stop_file),
    ];
    let filters: Vec<String> = std::env::args().skip(1).filter(|word| !word.starts_with('-')).collect();
    for (name, test) in tests {
        if filters.is_empty() || filters.iter().any(|filter| name.contains(filter.as_str())) {
            test();
            println!("test {name} ... ok");
        }
    }
}

/// A place with a database, its ledger and the load on it.
struct Place<L> {
    dir: TempDir,
    load: L,
    role: &'static str,
}

impl<L: Serialize> Place<L> {
    fn new(role: &'static str, load: L) -> Self {
        Self { dir: tempfile::tempdir().unwrap(), load, role }
    }

    fn db(&self) -> PathBuf {
        self.dir.path().join("db")
    }

    fn ledger(&self) -> PathBuf {
        self.dir.path().join("ledger")
    }

    fn start(&self, stop: &Stop) -> Process {
        let text = |path: PathBuf| path.to_str().unwrap().to_owned();
        let [load, stop] = [serde_json::to_string(&self.load).unwrap(), serde_json::to_string(stop).unwrap()];
        let arguments = [self.role.to_owned(), load, text(self.db()), text(self.ledger()), stop];
        Process::spawn(Command::new(std::env::current_exe().unwrap()).args(arguments)).unwrap()
    }
}

impl Place<FjallLoad> {
    fn fjall(load: FjallLoad) -> Self {
        Self::new("write-fjall", load)
    }

    fn marks(&self) -> LoadMarks {
        LoadMarks::read(&self.ledger()).unwrap()
    }

    fn check(&self, dir: &Path, before: LoadMarks, after: LoadMarks) -> Result<u64, Violation> {
        self.load.check_and_judge(dir, self.dir.path(), &before, &after)
    }

    /// Kills the writer in the middle of its work, several times in a row on one database.
    fn kill_rounds(&self, rounds: u64, batches: u64) {
        let mut acked = 0;
        for round in 0..rounds {
            let mut writer = self.start(&Stop::default());
            writer.wait_for_acked(&self.ledger(), acked + batches, LONG).unwrap();
            assert_eq!(writer.kill().unwrap().signal(), Some(9));
            let marks = self.marks();
            let found = self.check(&self.db(), marks, marks);
            assert!(found.is_ok(), "round {round}: {}", found.unwrap_err());
            acked = marks.batches.acked;
        }
    }
}

fn killed_fjall() {
    Place::fjall(FjallLoad { memtable_bytes: 200_000, ..FjallLoad::default() }).kill_rounds(8, 700);
}

fn killed_fjall_churn() {
    let load = FjallLoad {
        value_bytes: (500, 3000),
        separate_values: true,
        memtable_bytes: 1 << 20,
        churn: Some(Churn { batches: 10, keep: 3, pause_ms: 1 }),
        batches_per_second: Some(1500),
        ..FjallLoad::default()
    };
    let place = Place::fjall(load);
    place.kill_rounds(5, 1500);
    assert!(place.marks().churn.acked > 30, "{:?}", place.marks());
}

fn stopped_fjall() {
    let place = Place::fjall(FjallLoad {
        memtable_bytes: 500_000,
        churn: Some(Churn { batches: 10, keep: 3, pause_ms: 5 }),
        batches_per_second: Some(3000),
        ..FjallLoad::default()
    });
    let mut writer = place.start(&Stop::default());
    for round in 1..=4 {
        writer.wait_for_acked(&place.ledger(), round * 1000, LONG).unwrap();
        let before = place.marks();
        writer.stop().unwrap();
        let copy = ScratchCopy::of_directory(&place.db(), place.dir.path()).unwrap();
        let after = place.marks();
        writer.resume().unwrap();
        let found = place.check(&copy.path(), before, after);
        assert!(found.is_ok(), "round {round}: {}", found.unwrap_err());
    }
}

fn journals(db: &Path) -> Vec<OsString> {
    let names = std::fs::read_dir(db).unwrap().map(|entry| entry.unwrap().file_name());
    names.filter(|name| Path::new(name).extension().is_some_and(|ending| ending == "jnl")).collect()
}

/// A control: pointers and tables are copied, time passes, journals are copied, nobody looks again.
fn naive_copy_is_found() {
    let place = Place::fjall(FjallLoad {
        value_bytes: (4000, 8000),
        noise: 1.0,
        memtable_bytes: 2 << 20,
        ..FjallLoad::default()
    });
    let mut writer = place.start(&Stop::default());
    writer.wait_for_acked(&place.ledger(), 500, LONG).unwrap();
    let before = place.marks();
    let image = place.dir.path().join("image");
    std::fs::create_dir(&image).unwrap();
    // The writer is stopped for each part, so that each for itself is whole: only the time between them is wrong.
    writer.stop().unwrap();
    let early = ScratchCopy::of_directory(&place.db(), place.dir.path()).unwrap();
    writer.resume().unwrap();
    // Until the journals are gone that the early tables need.
    let needed = journals(&early.path());
    let mut more = before.batches.acked;
    while journals(&place.db()).iter().any(|name| needed.contains(name)) {
        more += 200;
        writer.wait_for_acked(&place.ledger(), more, LONG).unwrap();
    }
    writer.stop().unwrap();
    let late = ScratchCopy::of_directory(&place.db(), place.dir.path()).unwrap();
    let after = place.marks();
    writer.kill().unwrap();
    for name in ["version", "lock", "keyspaces"] {
        std::fs::rename(early.path().join(name), image.join(name)).unwrap();
    }
    for name in journals(&late.path()) {
        std::fs::rename(late.path().join(&name), image.join(&name)).unwrap();
    }
    let violation = place.check(&image, before, after).unwrap_err();
    assert!(
        matches!(violation, Violation::Hole { .. } | Violation::Undead { .. }),
        "rows are missing although every counter is right: {violation}"
    );
}

fn manual_persist_is_found() {
    // Small and few enough to stay in the buffer of the process for a while.
    let place = Place::fjall(FjallLoad {
        manual_persist: true,
        keyspaces: 2,
        rows: 1,
        value_bytes: (20, 20),
        large_every: None,
        batches_per_second: Some(2000),
        ..FjallLoad::default()
    });
    let mut writer = place.start(&Stop::default());
    writer.wait_for_acked(&place.ledger(), 300, LONG).unwrap();
    writer.kill().unwrap();
    let marks = place.marks();
    let found = place.load.check(&place.db(), place.dir.path()).expect("as far as it goes it is whole");
    assert!(found < marks.batches.acked, "{found} {marks:?}");
    let violation = judge(found, marks.batches, marks.batches).unwrap_err();
    assert_eq!(violation, Violation::Lost { found, acked: marks.batches.acked });
    let status = place.start(&Stop::default()).wait(LONG).unwrap();
    assert_eq!(status.code(), Some(3), "the writer does not go on as if nothing were lost");
}

fn killed_sqlite() {
    for mode in [JournalMode::Wal, JournalMode::Delete, JournalMode::Persist, JournalMode::Truncate] {
        let load = SqliteLoad { journal_mode: mode, filler_rows: 300, ..SqliteLoad::default() };
        let place = Place::new("write-sqlite", load);
        let mut acked = 0;
        for round in 0..4 {
            let mut writer = place.start(&Stop::default());
            writer.wait_for_acked(&place.ledger(), acked + 150, LONG).unwrap();
            assert_eq!(writer.kill().unwrap().signal(), Some(9));
            let marks = Marks::read(&place.ledger()).unwrap();
            let found = place.load.check(&place.db(), place.dir.path());
            let judged = found.and_then(|found| judge(found, marks, marks));
            assert!(judged.is_ok(), "{mode:?}, round {round}: {}", judged.unwrap_err());
            acked = marks.acked;
        }
    }
}

fn missing_wal_is_found() {
    let load = SqliteLoad { autocheckpoint: Some(0), filler_rows: 300, ..SqliteLoad::default() };
    let place = Place::new("write-sqlite", load);
    let mut writer = place.start(&Stop::default());
    writer.wait_for_acked(&place.ledger(), 500, LONG).unwrap();
    writer.kill().unwrap();
    let marks = Marks::read(&place.ledger()).unwrap();
    let alone = place.dir.path().join("alone");
    std::fs::copy(place.db(), &alone).unwrap();
    let found = place.load.check(&alone, place.dir.path());
    let judged = found.and_then(|found| judge(found, marks, marks));
    assert!(matches!(judged, Err(Violation::Lost { .. })), "{judged:?}");
}

fn stop_file() {
    let place = Place::fjall(FjallLoad { batches_per_second: Some(5000), ..FjallLoad::default() });
    let file = place.dir.path().join("stop");
    let mut writer = place.start(&Stop { at: None, file: Some(file.clone()) });
    writer.wait_for_acked(&place.ledger(), 50, LONG).unwrap();
    std::fs::write(&file, "").unwrap();
    assert!(writer.wait(LONG).unwrap().success());
    let marks = place.marks();
    assert_eq!(marks.batches.begun, marks.batches.acked, "it stopped between two batches");
    assert_eq!(place.check(&place.db(), marks, marks), Ok(marks.batches.acked));
}
