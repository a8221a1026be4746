//! Captures of real databases in both journal modes: written to by other processes, closed, crashed, locked, foreign, damaged.

#[path = "limits_tests.rs"]
mod limits_tests;

use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::Duration;

use rusqlite::Connection;
use rusqlite::config::DbConfig;

use tokio_util::sync::CancellationToken;

use super::{begin, beside, finish, recognise, validate};
use crate::test_support::{NOBODY, Surroundings, again, again_as, child_argument, inventory, is_root};
use crate::{CaptureError, CaptureOptions, Engine, Event, Image, Role, Source};

/// Rows that transactions rewrite in turn.
const FILLER: u64 = 400;
const PATIENCE: Duration = Duration::from_secs(15);

fn source(path: &Path) -> Source {
    Source { engine: Engine::Sqlite, path: path.to_owned() }
}

fn capture_with(path: &Path, options: &CaptureOptions) -> Result<Image, CaptureError> {
    Surroundings::default()
        .with(|context| finish(begin(&source(path), options, PATIENCE, context)?, options, context))
}

fn capture(path: &Path) -> Result<Image, CaptureError> {
    capture_with(path, &CaptureOptions::default())
}

/// The image's database, in a directory of its own.
fn kept(image: Image, dir: &Path, name: &str) -> PathBuf {
    let target = dir.join(name);
    let snapshot = Surroundings::default().with(|context| image.keep(&target, context)).unwrap();
    assert_eq!(snapshot.files.len(), 1);
    assert_eq!(snapshot.files[0].role, Role::Database);
    snapshot.files[0].path.below(&target)
}

/// Rows that are a function of the number of the last transaction.
fn filler(n: u64) -> String {
    format!("{n:>0200}-{}", n.wrapping_mul(0x9E37_79B9_7F4A_7C15))
}

fn make(path: &Path, mode: &str, page_size: u32) -> Connection {
    let connection = Connection::open(path).unwrap();
    let settings =
        format!("PRAGMA page_size={page_size}; PRAGMA journal_mode={mode}; PRAGMA synchronous=off;");
    connection.execute_batch(&settings).unwrap();
    connection
        .execute_batch(
            "CREATE TABLE c0(k INTEGER PRIMARY KEY, n); CREATE TABLE t(id INTEGER PRIMARY KEY, v);
             CREATE TABLE c1(k INTEGER PRIMARY KEY, n); INSERT INTO c0 VALUES(0, 0); INSERT INTO c1 VALUES(0, 0);",
        )
        .unwrap();
    connection
}

/// One transaction over three parts of the file.
fn commit(connection: &Connection, n: u64) -> rusqlite::Result<()> {
    let number = i64::try_from(n).unwrap();
    let row = i64::try_from(n % FILLER).unwrap();
    connection.execute_batch("BEGIN IMMEDIATE")?;
    connection.execute("UPDATE c0 SET n = ?1", [number])?;
    connection.execute("INSERT OR REPLACE INTO t VALUES(?1, ?2)", (row, filler(n)))?;
    connection.execute("UPDATE c1 SET n = ?1", [number])?;
    connection.execute_batch("COMMIT").inspect_err(|_| {
        let _ = connection.execute_batch("ROLLBACK");
    })
}

/// The number of the last transaction in the database, if it is exactly the state after that one.
fn state(path: &Path) -> u64 {
    let connection = Connection::open(path).unwrap();
    let number = |query: &str| connection.query_row(query, [], |row| row.get::<_, i64>(0)).unwrap();
    let n = u64::try_from(number("SELECT n FROM c0")).unwrap();
    assert_eq!(u64::try_from(number("SELECT n FROM c1")).unwrap(), n, "a transaction is torn");
    let mut statement = connection.prepare("SELECT id, v FROM t ORDER BY id").unwrap();
    let rows: Vec<(i64, String)> =
        statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?))).unwrap().map(Result::unwrap).collect();
    for (id, v) in &rows {
        let id = u64::try_from(*id).unwrap();
        let last = n - (n + FILLER - id) % FILLER;
        assert_eq!(*v, filler(last), "row {id} at {n}");
    }
    assert_eq!(rows.len() as u64, n.min(FILLER), "rows at {n}");
    let check: String = connection.query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap();
    assert_eq!(check, "ok");
    n
}

/// A writer in a process of its own. It keeps (begun, acknowledged, failed, longest commit in ms) in a file.
struct Writer {
    child: Killed,
    log: PathBuf,
}

impl Writer {
    /// `test` must call [`Writer::run_if_child`] first.
    fn start(test: &str, dir: &Path) -> Self {
        let log = dir.join("log");
        std::fs::write(&log, [0; 32]).unwrap();
        let child = Killed(again(test, dir).stdout(Stdio::null()).spawn().unwrap());
        let writer = Self { child, log };
        while writer.number(1) < 50 {
            std::thread::sleep(Duration::from_millis(2));
        }
        writer
    }

    fn number(&self, at: usize) -> u64 {
        let bytes = std::fs::read(&self.log).unwrap();
        u64::from_le_bytes(bytes[at * 8..at * 8 + 8].try_into().unwrap())
    }

    fn kill(mut self) -> (u64, u64) {
        self.child.0.kill().unwrap();
        self.child.0.wait().unwrap();
        (self.number(1), self.number(0))
    }

    /// In the child: writes to `db` until it is killed.
    fn run_if_child(busy_timeout: Duration, prepare: &str, pause: Duration) -> bool {
        let Some(dir) = child_argument() else { return false };
        let connection = Connection::open(dir.join("db")).unwrap();
        connection.busy_timeout(busy_timeout).unwrap();
        connection.execute_batch("PRAGMA synchronous=off").unwrap();
        connection.execute_batch(prepare).unwrap();
        let log = std::fs::OpenOptions::new().write(true).open(dir.join("log")).unwrap();
        let clock = stillframe_storage::SystemClock::new();
        let note = |at: u64, n: u64| log.write_all_at(&n.to_le_bytes(), at * 8).unwrap();
        let (mut n, mut failed, mut longest) = (0, 0, 0);
        loop {
            note(0, n + 1);
            let began = stillframe_storage::Clock::monotonic(&clock);
            if commit(&connection, n + 1).is_ok() {
                n += 1;
                note(1, n);
            } else {
                failed += 1;
                note(2, failed);
            }
            let took = stillframe_storage::Clock::monotonic(&clock).saturating_sub(began);
            longest = longest.max(u64::try_from(took.as_millis()).unwrap());
            note(3, longest);
            std::thread::sleep(pause);
        }
    }
}

fn live_rounds(writer: &Writer, dir: &Path, rounds: u32, ballast: &str) {
    let db = dir.join("db");
    let mut windows = Vec::new();
    for round in 0..rounds {
        let least = writer.number(1);
        let image = capture(&db).unwrap();
        let most = writer.number(0);
        windows.push(image.snapshot().window_us);
        let file = kept(image, dir, &format!("image-{round}"));
        validate(&file, &CancellationToken::new()).unwrap();
        let n = state(&file);
        assert!((least..=most).contains(&n), "{n} is not between {least} and {most}");
        std::thread::sleep(Duration::from_millis(30));
    }
    windows.sort_unstable();
    println!(
        "{rounds} images exact, {ballast}: transaction p50 {} us, max {} us; writer: {} commits, {} failed, longest {} ms",
        windows[windows.len() / 2],
        windows[windows.len() - 1],
        writer.number(1),
        writer.number(2),
        writer.number(3),
    );
}

/// Bytes that make the copy take a moment.
fn add_ballast(connection: &Connection, megabytes: u32) {
    connection.execute_batch("CREATE TABLE ballast(b)").unwrap();
    let mut statement = connection.prepare("INSERT INTO ballast VALUES(randomblob(1000000))").unwrap();
    (0..megabytes).for_each(|_| {
        statement.execute([]).unwrap();
    });
}

#[test]
fn images_of_a_busy_wal_database_are_exact_and_its_writer_is_never_refused() {
    if Writer::run_if_child(Duration::ZERO, "", Duration::from_micros(200)) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let connection = make(&dir.path().join("db"), "wal", 4096);
    add_ballast(&connection, 40);
    drop(connection);
    let test = "sqlite::live_tests::images_of_a_busy_wal_database_are_exact_and_its_writer_is_never_refused";
    let writer = Writer::start(test, dir.path());
    live_rounds(&writer, dir.path(), 8, "40 MB, WAL");
    assert_eq!(writer.number(2), 0, "no commit failed");
    writer.kill();
}

#[test]
fn images_of_a_busy_rollback_database_are_exact_and_its_writer_waits() {
    if Writer::run_if_child(Duration::from_secs(20), "", Duration::from_millis(2)) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let connection = make(&dir.path().join("db"), "delete", 4096);
    add_ballast(&connection, 40);
    drop(connection);
    let test = "sqlite::live_tests::images_of_a_busy_rollback_database_are_exact_and_its_writer_waits";
    let writer = Writer::start(test, dir.path());
    live_rounds(&writer, dir.path(), 8, "40 MB, rollback journal, busy timeout 20 s");
    assert_eq!(writer.number(2), 0, "no commit failed");
    assert!(writer.number(3) < 5000, "none waited longer than the lock timeout");
    writer.kill();
}

#[test]
fn a_rollback_writer_without_busy_timeout_fails_some_commits_and_the_image_is_exact() {
    if Writer::run_if_child(Duration::ZERO, "", Duration::from_millis(2)) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let connection = make(&dir.path().join("db"), "truncate", 4096);
    add_ballast(&connection, 20);
    drop(connection);
    let test = "sqlite::live_tests::a_rollback_writer_without_busy_timeout_fails_some_commits_and_the_image_is_exact";
    let writer = Writer::start(test, dir.path());
    let db = dir.path().join("db");
    let image = capture(&db).unwrap();
    let file = kept(image, dir.path(), "image");
    state(&file);
    let before = writer.number(1);
    std::thread::sleep(Duration::from_millis(100));
    assert!(writer.number(1) > before, "the writer goes on afterwards");
    writer.kill();
}

#[test]
fn a_crashed_wal_database_is_captured_whole_and_its_log_stays() {
    if Writer::run_if_child(Duration::ZERO, "PRAGMA wal_autocheckpoint=0", Duration::ZERO) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let db = dir.path().join("db");
    drop(make(&db, "wal", 4096));
    let test = "sqlite::live_tests::a_crashed_wal_database_is_captured_whole_and_its_log_stays";
    for without_index in [false, true] {
        let _ = std::fs::remove_file(beside(&db, "-wal"));
        std::fs::remove_file(&db).unwrap();
        drop(make(&db, "wal", 4096));
        let (acknowledged, begun) = Writer::start(test, dir.path()).kill();
        if without_index {
            std::fs::remove_file(beside(&db, "-shm")).unwrap();
        }
        let bytes = || (std::fs::read(&db).unwrap(), std::fs::read(beside(&db, "-wal")).unwrap());
        let before = (bytes(), inventory(&db), inventory(&beside(&db, "-wal")));
        assert!(before.0.1.len() > 100_000, "the log is full");
        let file = kept(capture(&db).unwrap(), dir.path(), &format!("image-{without_index}"));
        assert!(
            before == (bytes(), inventory(&db), inventory(&beside(&db, "-wal"))),
            "something was changed"
        );
        let n = state(&file);
        assert!((acknowledged..=begun).contains(&n), "{acknowledged} <= {n} <= {begun}");
        assert_eq!(state(&db), n, "the application finds the same");
    }
}

#[test]
fn a_closed_database_is_left_exactly_as_it_was() {
    for (mode, page_size) in [("delete", 512), ("persist", 65_536), ("wal", 512), ("wal", 65_536)] {
        let dir = tempfile::tempdir().unwrap();
        let db = dir.path().join("a db?#%.sqlite");
        let connection = make(&db, mode, page_size);
        (1..=50).for_each(|n| commit(&connection, n).unwrap());
        drop(connection);
        let mut before = inventory(dir.path());
        let image = capture(&db).unwrap();
        let snapshot = image.snapshot().clone();
        assert!(snapshot.pointers[0].value.contains(&format!("page size {page_size}")));
        assert_eq!(snapshot.engine_version.as_deref(), Some(rusqlite::version()));
        drop(image);
        let mut after = inventory(dir.path());
        if mode == "wal" {
            // Its own index files, which SQLite makes for whoever opens the database, and the directory's time with them.
            assert_eq!(std::fs::metadata(beside(&db, "-wal")).unwrap().len(), 0);
            for path in [beside(&db, "-wal"), beside(&db, "-shm"), dir.path().to_owned()] {
                before.remove(&path);
                after.remove(&path);
            }
        } else {
            // Staging came and went.
            before.remove(dir.path());
            after.remove(dir.path());
        }
        assert_eq!(before, after, "{mode}");
        let file = kept(capture(&db).unwrap(), dir.path(), "image");
        assert!(validate(file.parent().unwrap(), &CancellationToken::new()).unwrap().remarks.is_empty());
        assert_eq!(state(&file), 50);
    }
}

/// The database as SQLite's own backup copies it. Through a new connection: a writer's own has bytes of free pages in memory
/// that it never wrote.
fn own_backup(path: &Path, to: &Path) -> Vec<u8> {
    let connection = Connection::open(path).unwrap();
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true).unwrap();
    let mut target = Connection::open(to).unwrap();
    target.execute_batch("PRAGMA journal_mode=off").unwrap();
    rusqlite::backup::Backup::new(&connection, &mut target).unwrap().step(-1).unwrap();
    drop(target);
    std::fs::read(to).unwrap()
}

#[test]
fn an_image_is_byte_for_byte_what_sqlites_own_backup_makes() {
    for page_size in [512_u32, 4096, 65_536] {
        for mode in ["wal", "delete"] {
            let dir = tempfile::tempdir().unwrap();
            let db = dir.path().join("db");
            let made = make(&db, mode, page_size);
            made.execute_batch("PRAGMA auto_vacuum=2; VACUUM").unwrap();
            drop(made);
            // The log holds pages that the file has not; then ones that it has older; then it is begun anew, with older
            // frames behind; then the database shrinks.
            let steps = [
                "SELECT 1",
                "PRAGMA wal_checkpoint(RESTART)",
                "PRAGMA wal_checkpoint(PASSIVE)",
                "DELETE FROM t WHERE id > 30; PRAGMA incremental_vacuum",
                "PRAGMA wal_checkpoint(TRUNCATE)",
            ];
            for (turn, step) in (0_u64..).zip(steps) {
                // Closed before the capture, which must not be in a process that has the database open; its log stays.
                let writer = Connection::open(&db).unwrap();
                writer.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true).unwrap();
                writer.execute_batch("PRAGMA synchronous=off; PRAGMA wal_autocheckpoint=0").unwrap();
                (0..200).for_each(|n| commit(&writer, turn * 200 + n).unwrap());
                writer.execute_batch(step).unwrap();
                drop(writer);
                let image =
                    std::fs::read(kept(capture(&db).unwrap(), dir.path(), &format!("image-{turn}"))).unwrap();
                let mut expected = own_backup(&db, &dir.path().join(format!("backup-{turn}")));
                assert_eq!(image.len(), expected.len(), "{mode} {page_size}, {step}");
                // These counters of page 1 the backup raises.
                for at in [24..28, 40..44, 92..100] {
                    expected[at.clone()].copy_from_slice(&image[at]);
                }
                let wrong = image.iter().zip(&expected).position(|(a, b)| a != b);
                assert_eq!(wrong, None, "{mode} {page_size}, {step}");
            }
        }
    }
}

#[test]
fn what_is_committed_between_the_phases_is_not_in_the_image() {
    for mode in ["wal", "delete"] {
        let dir = tempfile::tempdir().unwrap();
        let db = dir.path().join("db");
        let connection = make(&db, mode, 4096);
        (1..=5).for_each(|n| commit(&connection, n).unwrap());
        drop(connection);
        let options = CaptureOptions::default();
        let around = Surroundings::default();
        let transaction = around.with(|context| begin(&source(&db), &options, PATIENCE, context)).unwrap();
        let writer = Connection::open(&db).unwrap();
        writer.busy_timeout(Duration::ZERO).unwrap();
        let committed = commit(&writer, 6).is_ok();
        assert_eq!(committed, mode == "wal", "only a rollback journal makes commits wait");
        let image = around.with(|context| finish(transaction, &options, context)).unwrap();
        commit(&writer, if committed { 7 } else { 6 }).unwrap();
        drop(writer);
        assert_eq!(state(&kept(image, dir.path(), "image")), 5);
        assert!(around.events.lock().unwrap().iter().any(|event| matches!(event, Event::Copied { .. })));
    }
}

#[test]
fn a_rollback_database_is_let_go_when_the_time_is_over_whoever_is_late() {
    let dir = tempfile::tempdir().unwrap();
    let db = dir.path().join("db");
    drop(make(&db, "delete", 4096));
    let options =
        CaptureOptions { sqlite_lock_timeout: Duration::from_millis(100), ..CaptureOptions::default() };
    let around = Surroundings::default();
    let transaction = around.with(|context| begin(&source(&db), &options, PATIENCE, context)).unwrap();
    let writer = Connection::open(&db).unwrap();
    writer.busy_timeout(Duration::from_secs(5)).unwrap();
    commit(&writer, 1).unwrap();
    // The other sources of the backup are still being captured, and the application goes on.
    match around.with(|context| finish(transaction, &options, context)) {
        Err(CaptureError::Locked { what, .. }) => assert!(what.contains("WAL"), "{what}"),
        other => panic!("{other:?}"),
    }
    drop(writer);
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "nothing is left");
}

/// A child that ends with the test, however that ends.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// As its own process: commits over two attached databases until its input ends.
fn attached_writer(dir: &Path) {
    let connection = Connection::open(dir.join("a")).unwrap();
    connection.busy_timeout(Duration::from_mins(1)).unwrap();
    connection.execute("ATTACH ?1 AS other", [dir.join("b").to_str().unwrap()]).unwrap();
    for n in 0_i64.. {
        let rows = (n, n);
        connection.execute_batch("BEGIN IMMEDIATE").unwrap();
        connection.execute("INSERT OR REPLACE INTO main.t VALUES(?1 % 100, ?2)", rows).unwrap();
        connection.execute("INSERT OR REPLACE INTO other.t VALUES(?1 % 100, ?2)", rows).unwrap();
        connection.execute_batch("COMMIT").unwrap();
        if n == 0 {
            println!("writing");
        }
    }
}

#[test]
fn a_writer_with_two_databases_attached_and_a_capture_of_both_do_not_wait_for_each_other() {
    if let Some(dir) = child_argument() {
        return attached_writer(Path::new(&dir));
    }
    let dir = tempfile::tempdir().unwrap();
    for name in ["a", "b"] {
        drop(make(&dir.path().join(name), "delete", 4096));
    }
    let name = "sqlite::live_tests::a_writer_with_two_databases_attached_and_a_capture_of_both_do_not_wait_for_each_other";
    let mut child = Killed(again(name, dir.path()).stdout(Stdio::piped()).spawn().unwrap());
    let mut lines = BufReader::new(child.0.stdout.take().unwrap()).lines();
    while !lines.next().unwrap().unwrap().ends_with("writing") {}
    let around = Surroundings::default();
    for turn in 0..10 {
        // Both orders: one of them is the wrong one.
        let names = if turn % 2 == 0 { ["a", "b"] } else { ["b", "a"] };
        let sources = names.map(|name| source(&dir.path().join(name)));
        let images = around.with(|context| crate::capture(&sources, &CaptureOptions::default(), context));
        let images = images.unwrap_or_else(|error| panic!("turn {turn}: {error}"));
        assert_eq!(images.len(), 2);
    }
}

#[test]
fn a_second_name_of_a_database_is_refused_unless_it_is_said_to_be_the_right_one() {
    let dir = tempfile::tempdir().unwrap();
    let (db, alias) = (dir.path().join("db"), dir.path().join("alias"));
    drop(make(&db, "wal", 4096));
    std::fs::hard_link(&db, &alias).unwrap();
    match capture(&alias) {
        Err(CaptureError::Refused { what, .. }) => assert!(what.contains("--force"), "{what}"),
        other => panic!("{other:?}"),
    }
    capture_with(&db, &CaptureOptions { force: true, ..CaptureOptions::default() }).unwrap();
}

#[test]
fn a_hot_journal_is_left_for_its_application() {
    let test = "sqlite::live_tests::a_hot_journal_is_left_for_its_application";
    if let Some(dir) = child_argument() {
        let connection = Connection::open(dir.join("db")).unwrap();
        connection
            .execute_batch("PRAGMA cache_size=5; PRAGMA cache_spill=1; BEGIN; UPDATE ballast SET b = 1")
            .unwrap();
        println!("in the middle");
        std::io::stdout().flush().unwrap();
        std::thread::sleep(Duration::from_mins(1));
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let db = dir.path().join("db");
    let connection = make(&db, "delete", 1024);
    add_ballast(&connection, 3);
    drop(connection);
    let mut child = again(test, dir.path()).stdout(Stdio::piped()).spawn().unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert!(lines.map(Result::unwrap).any(|line| line.contains("in the middle")));
    child.kill().unwrap();
    child.wait().unwrap();

    let files = || (inventory(&db), inventory(&beside(&db, "-journal")));
    let before = files();
    match capture(&db) {
        Err(CaptureError::RecoveryNeeded { what, .. }) => assert!(what.contains("hot journal"), "{what}"),
        other => panic!("{other:?}"),
    }
    assert_eq!(files(), before, "neither rolled back nor removed");
    // The application rolls back, and then it works.
    let application = Connection::open(&db).unwrap();
    let whole: i64 = application
        .query_row("SELECT count(*) FROM ballast WHERE length(b) = 1000000", [], |row| row.get(0))
        .unwrap();
    assert_eq!(whole, 3);
    drop(application);
    validate(&kept(capture(&db).unwrap(), dir.path(), "image"), &CancellationToken::new()).unwrap();
}

#[test]
fn an_exclusive_writer_leaves_no_way_in() {
    let test = "sqlite::live_tests::an_exclusive_writer_leaves_no_way_in";
    if let Some(dir) = child_argument() {
        let connection = Connection::open(dir.join("db")).unwrap();
        connection.execute_batch("PRAGMA locking_mode=EXCLUSIVE; UPDATE c0 SET n = 0").unwrap();
        println!("locked");
        std::io::stdout().flush().unwrap();
        std::thread::sleep(Duration::from_mins(1));
        return;
    }
    for mode in ["wal", "delete"] {
        let dir = tempfile::tempdir().unwrap();
        let db = dir.path().join("db");
        drop(make(&db, mode, 4096));
        let mut child = again(test, dir.path()).stdout(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        assert!(lines.map(Result::unwrap).any(|line| line.contains("locked")));
        let options = CaptureOptions { deadline: Duration::from_millis(300), ..CaptureOptions::default() };
        match capture_with(&db, &options) {
            Err(CaptureError::Locked { what, .. }) => assert!(what.contains("EXCLUSIVE"), "{what}"),
            other => panic!("{mode}: {other:?}"),
        }
        child.kill().unwrap();
        child.wait().unwrap();
    }
}

#[test]
fn empty_foreign_and_damaged_files_are_told_apart() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    std::fs::write(path("empty"), "").unwrap();
    assert!(!recognise(&path("empty")).unwrap());
    let file = kept(capture(&path("empty")).unwrap(), dir.path(), "image of empty");
    assert_eq!(std::fs::metadata(&file).unwrap().len(), 0);
    assert!(validate(&file, &CancellationToken::new()).unwrap().remarks[0].contains("empty database"));
    validate(file.parent().unwrap(), &CancellationToken::new()).unwrap();

    std::fs::write(path("lost"), "").unwrap();
    std::fs::write(path("lost-wal"), [1; 5000]).unwrap();
    assert!(recognise(&path("lost")).unwrap());
    assert!(matches!(capture(&path("lost")), Err(CaptureError::Corrupt { .. })));
    assert_eq!(std::fs::read(path("lost-wal")).unwrap().len(), 5000, "the log is still there");

    let mut encrypted = vec![0x5A; 8192];
    encrypted[100] = 1;
    std::fs::write(path("encrypted"), &encrypted).unwrap();
    std::fs::write(path("short"), "SQLite format 3\0").unwrap();
    for name in ["encrypted", "short"] {
        assert!(!recognise(&path(name)).unwrap());
        match capture(&path(name)) {
            Err(error @ CaptureError::NotADatabase { .. }) => assert!(error.to_string().contains(name)),
            other => panic!("{other:?}"),
        }
    }
    // The header alone is right.
    drop(make(&path("good"), "delete", 4096));
    let mut bytes = std::fs::read(path("good")).unwrap();
    bytes[100..4096].fill(0x77);
    std::fs::write(path("damaged"), &bytes).unwrap();
    match capture(&path("damaged")) {
        Ok(image) => {
            let file = kept(image, dir.path(), "image of damaged");
            assert!(matches!(
                validate(&file, &CancellationToken::new()),
                Err(CaptureError::Corrupt { .. } | CaptureError::NotADatabase { .. })
            ));
        }
        Err(error) => assert!(matches!(error, CaptureError::Corrupt { .. }), "{error}"),
    }
    assert!(matches!(capture(dir.path()), Err(CaptureError::NotADatabase { .. })));
    assert!(matches!(capture(&path("nowhere")), Err(CaptureError::Io { .. })));
    let left: Vec<_> =
        std::fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(left.iter().all(|name| !name.to_string_lossy().starts_with(".stillframe")), "{left:?}");
}

#[test]
fn validation_finds_damage_and_leaves_the_image_alone() {
    let dir = tempfile::tempdir().unwrap();
    let db = dir.path().join("db");
    let connection = make(&db, "wal", 4096);
    (1..=FILLER).for_each(|n| commit(&connection, n).unwrap());
    drop(connection);
    let file = kept(capture(&db).unwrap(), dir.path(), "image % ?#");
    let before = inventory(file.parent().unwrap());
    validate(file.parent().unwrap(), &CancellationToken::new()).unwrap();
    assert_eq!(inventory(file.parent().unwrap()), before);

    let good = std::fs::read(&file).unwrap();
    let mut bytes = good.clone();
    let page = bytes.len() / 4096 / 2 * 4096;
    bytes[page..page + 64].fill(0xEE);
    std::fs::write(&file, &bytes).unwrap();
    assert!(matches!(validate(&file, &CancellationToken::new()), Err(CaptureError::Corrupt { .. })));
    std::fs::write(&file, &good[..good.len() - 4096]).unwrap();
    assert!(matches!(validate(&file, &CancellationToken::new()), Err(CaptureError::Corrupt { .. })));
    std::fs::write(&file, &good).unwrap();
    std::fs::write(beside(&file, "-wal"), "x").unwrap();
    assert!(matches!(validate(&file, &CancellationToken::new()), Err(CaptureError::Refused { .. })));
}

#[test]
fn a_database_is_not_read_by_other_means_while_it_is_captured() {
    let dir = tempfile::tempdir().unwrap();
    let db = dir.path().join("db");
    let connection = make(&db, "delete", 4096);
    (1..=3).for_each(|n| commit(&connection, n).unwrap());
    drop(connection);
    std::fs::write(dir.path().join("note.txt"), "a plain file").unwrap();
    let files = Source { engine: Engine::Files, path: dir.path().to_owned() };
    let staging = tempfile::tempdir_in(dir.path().parent().unwrap()).unwrap();
    let options = CaptureOptions { staging: Some(staging.path().to_owned()), ..CaptureOptions::default() };
    let around = Surroundings::default();
    let transaction = around.with(|context| begin(&source(&db), &options, PATIENCE, context)).unwrap();
    assert!(recognise(&db).unwrap(), "recognised without being opened");
    let again = around.with(|context| begin(&source(&db), &options, PATIENCE, context));
    assert!(matches!(again, Err(CaptureError::Locked { .. })));
    let image = around.with(|context| crate::files::capture(&files, &options, context)).unwrap();
    let names: Vec<_> = image.snapshot().files.iter().map(|file| file.path.to_string()).collect();
    assert_eq!(names, ["note.txt"], "the database is captured on its own");
    assert!(image.snapshot().weakening.iter().any(|weak| weak.effect.contains("captured on their own")));

    // Still locked after all that.
    let writer = Connection::open(&db).unwrap();
    writer.busy_timeout(Duration::ZERO).unwrap();
    assert!(commit(&writer, 4).is_err());
    let image = around.with(|context| finish(transaction, &options, context)).unwrap();
    commit(&writer, 4).unwrap();
    assert_eq!(state(&kept(image, staging.path(), "image")), 3);
}

#[test]
fn lost_locks_are_noticed() {
    let dir = tempfile::tempdir().unwrap();
    let db = dir.path().join("db");
    drop(make(&db, "delete", 4096));
    let options = CaptureOptions::default();
    let around = Surroundings::default();
    let transaction = around.with(|context| begin(&source(&db), &options, PATIENCE, context)).unwrap();
    // The trap: any handle that is closed drops the process's locks.
    drop(std::fs::File::open(&db).unwrap());
    match around.with(|context| finish(transaction, &options, context)) {
        Err(CaptureError::Locked { what, .. }) => assert!(what.contains("lost its locks"), "{what}"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn another_user_never_locks_the_application_out() {
    let test = "sqlite::live_tests::another_user_never_locks_the_application_out";
    if let Some(dir) = child_argument() {
        let as_nobody = !is_root();
        let options = CaptureOptions { staging: Some(dir.join("mine")), ..CaptureOptions::default() };
        let capture = |path: &Path| capture_with(path, &options);
        // Open by its application: its own index files are used.
        assert_eq!(state(&kept(capture(&dir.join("open/db")).unwrap(), &dir.join("mine"), "open")), 3);
        // Closed, in a folder where index files could be made: they would be ours.
        let closed = capture(&dir.join("closed/db"));
        if as_nobody {
            assert!(matches!(closed, Err(CaptureError::Refused { .. })), "{closed:?}");
            assert!(!dir.join("closed/db-shm").exists() && !dir.join("closed/db-wal").exists());
            // Unless it is forced.
            let forced = CaptureOptions { force: true, ..options.clone() };
            let image = capture_with(&dir.join("closed/db"), &forced).unwrap();
            assert_eq!(state(&kept(image, &dir.join("mine"), "forced")), 3);
        }
        // Closed or crashed, in a folder where nothing can be made: copied, and the log is in it.
        for name in ["shut", "crashed", "crashed with index"] {
            let before = inventory(&dir.join(name));
            let image = capture(&dir.join(name).join("db")).unwrap();
            if as_nobody {
                assert_eq!(inventory(&dir.join(name)), before);
            }
            if as_nobody && name != "crashed with index" {
                assert!(image.snapshot().pointers[0].value.contains("copied while it was closed"));
            }
            assert_eq!(state(&kept(image, &dir.join("mine"), name)), 3);
        }
        // A rollback journal needs no index.
        assert_eq!(
            state(&kept(capture(&dir.join("rollback/db")).unwrap(), &dir.join("mine"), "rollback")),
            3
        );
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let mode = |path: &Path, mode| std::fs::set_permissions(path, PermissionsExt::from_mode(mode)).unwrap();
    mode(dir.path(), 0o777);
    std::fs::create_dir(dir.path().join("mine")).unwrap();
    mode(&dir.path().join("mine"), 0o777);
    let fill = |name: &str, journal: &str| {
        let folder = dir.path().join(name);
        std::fs::create_dir(&folder).unwrap();
        let connection = make(&folder.join("db"), journal, 4096);
        connection.execute_batch("PRAGMA wal_autocheckpoint=0").unwrap();
        (1..=3).for_each(|n| commit(&connection, n).unwrap());
        mode(&folder.join("db"), 0o644);
        (folder, connection)
    };
    let (folder, application) = fill("open", "wal");
    mode(&folder, 0o777);
    let (folder, connection) = fill("closed", "wal");
    drop(connection);
    mode(&folder, 0o777);
    let (folder, connection) = fill("shut", "wal");
    drop(connection);
    mode(&folder, 0o755);
    let (folder, connection) = fill("rollback", "delete");
    drop(connection);
    mode(&folder, 0o777);
    // What a dead process leaves: database and log of a live one.
    for (folder, files) in
        [("crashed", &["db", "db-wal"][..]), ("crashed with index", &["db", "db-wal", "db-shm"])]
    {
        let crashed = dir.path().join(folder);
        std::fs::create_dir(&crashed).unwrap();
        for name in files {
            std::fs::copy(dir.path().join("open").join(name), crashed.join(name)).unwrap();
        }
        mode(&crashed, 0o755);
    }
    again_as(test, NOBODY, dir.path());
    commit(&application, 4).unwrap();
    let (before, closed) = (4, Connection::open(dir.path().join("closed/db")).unwrap());
    commit(&closed, before).unwrap();
}

#[test]
fn a_pipe_in_the_place_of_a_file_of_sqlites_own_is_refused_and_not_waited_for() {
    for suffix in ["-journal", "-wal", "-shm"] {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("app.db");
        make(&path, "delete", 4096).close().unwrap();
        let pipe = beside(&path, suffix);
        rustix::fs::mkfifoat(rustix::fs::CWD, &pipe, 0o600.into()).unwrap();
        let refused = capture(&path).map(drop).unwrap_err();
        assert!(matches!(&refused, CaptureError::Refused { path, .. } if *path == pipe), "{refused}");
    }
}
