//! What moves between the steps of one attempt, and what must not be missed of it.

use std::os::unix::fs::FileExt;
use std::path::Path;

use jiff::Timestamp;

use super::super::log_format::writer::append;
use super::super::logs::TornEnd;
use super::super::manifest_writer::{EditBytes, manifest};
use super::super::table_identity::writer::opaque_table;
use super::super::test_database::TestDatabase;
use super::*;
use crate::Engine;
use crate::pin::Located;

/// Calls `work` with a capture of the database that has learned where everything is and has pinned what is live.
fn with_capture(database: &TestDatabase, work: impl FnOnce(&mut Capture<'_>)) {
    let source = Source { engine: Engine::RocksDb, path: database.dir() };
    let options = CaptureOptions::default();
    database.surroundings.with(|context| {
        let mut capture = Capture::open(&source, &options, context, Sabotage::None).unwrap();
        capture.prepare().unwrap();
        work(&mut capture);
    });
}

/// What an attempt says that moved.
fn moved<T: std::fmt::Debug>(looked: Result<T, Setback>) -> String {
    match looked {
        Err(Setback::Moved(what)) => what,
        other => panic!("{other:?}"),
    }
}

fn accepted(capture: &mut Capture<'_>) -> Accepted {
    match capture.attempt().unwrap() {
        Attempt::Accepted(accepted) => accepted,
        Attempt::Moved(what) => panic!("{what}"),
    }
}

/// A MANIFEST of a database with one table, and log 20.
fn manifest_of_table(number: u64, size: u64) -> Vec<u8> {
    let mut edit = EditBytes::default();
    edit.string_field(1, b"leveldb.BytewiseComparator").number(2, 20).number(3, 30).number(4, 100);
    edit.table_2(0, number, size);
    manifest(&[edit])
}

/// The bytes that an image would have of a live file.
fn pinned_bytes(capture: &Capture<'_>, name: &str) -> Vec<u8> {
    let pin = capture.builder.pins.get(&RelativePath::from_bytes(name.as_bytes()).unwrap()).unwrap();
    let file = pin.located.open().unwrap();
    let mut bytes = vec![0; usize::try_from(file.metadata().unwrap().len()).unwrap()];
    file.read_exact_at(&mut bytes, 0).unwrap();
    bytes
}

/// Gives a name to another file, as a rename does.
fn replace(path: &Path, bytes: &[u8]) {
    let new = path.with_extension("new");
    std::fs::write(&new, bytes).unwrap();
    std::fs::rename(new, path).unwrap();
}

/// An engine may write over a log that its MANIFEST still asks for without a word in the MANIFEST: RocksDB advances the log
/// number of a column family that has nothing unflushed only in memory.
#[test]
fn a_recycled_log_that_gets_another_name_after_it_was_noted_leads_to_another_attempt() {
    let database = TestDatabase::new();
    database.write("OPTIONS-000009", b"[DBOptions]\n  recycle_log_file_num=4\n");
    database.write_log("000020.log", Some(20), 3);
    database.write_log("000021.log", Some(21), 3);
    let manifest = database.read("MANIFEST-000005");
    with_capture(&database, |capture| {
        capture.look_first().unwrap();
        assert!(capture.look_again().is_ok(), "nothing moved yet");

        capture.look_first().unwrap();
        std::fs::rename(database.dir().join("000020.log"), database.dir().join("000022.log")).unwrap();
        let mut log = Vec::new();
        append(&mut log, &[22; 5000], Some(22));
        let file = File::options().write(true).open(database.dir().join("000022.log")).unwrap();
        file.write_all_at(&log, 0).unwrap();
        assert_eq!(moved(capture.look_again()), "log 000020.log was replaced");
        assert_eq!(database.read("MANIFEST-000005"), manifest, "no pointer shows it");

        accepted(capture);
        let ends: Vec<_> = capture.logs.iter().map(|(number, log)| (number, log.noted_end())).collect();
        let whole = database.read("000021.log").len() as u64;
        assert_eq!(ends, [(22, log.len() as u64), (21, whole)]);
    });
}

/// Nothing is appended to a MANIFEST any more once CURRENT names the next one, and it stays for a while.
#[test]
fn a_log_that_got_another_name_is_not_called_damaged_by_what_is_written_over_it() {
    let database = TestDatabase::new();
    database.write("OPTIONS-000009", b"[DBOptions]\n  recycle_log_file_num=4\n");
    let mut log = Vec::new();
    (0..40).for_each(|n| append(&mut log, &[n; 5000], Some(20)));
    // Where the copy ends, whatever the reason.
    log[20_000] ^= 1;
    database.write("000020.log", &log);
    with_capture(&database, |capture| {
        accepted(capture);
        let broken = |capture: &Capture<'_>| {
            let noted = capture.logs.get(20).unwrap();
            let dir = &capture.directories.logs().dir;
            noted.part(20, TornEnd::Cut, dir, Dialect::RocksDb, capture.context.cancel).unwrap().damage
        };
        assert!(broken(capture).is_some());
        std::fs::rename(database.dir().join("000020.log"), database.dir().join("000031.log")).unwrap();
        assert_eq!(broken(capture), None, "another log is written over it from now on");
    });
}

#[test]
fn a_roll_over_between_the_looks_leads_to_another_attempt_though_the_old_manifest_stands_still() {
    let database = TestDatabase::new();
    with_capture(&database, |capture| {
        capture.look_first().unwrap();
        database.write("000011.sst", &opaque_table(11, 500));
        database.write("MANIFEST-000006", &manifest_of_table(11, 500));
        database.write("CURRENT", b"MANIFEST-000006\n");
        assert_eq!(moved(capture.look_again()), "CURRENT names another MANIFEST");

        assert_eq!(accepted(capture).current.bytes, b"MANIFEST-000006\n");
        assert_eq!(capture.manifest().name(), "MANIFEST-000006", "the one that CURRENT names");
        capture.release_dead();
        assert_eq!(capture.live().map(|(number, _)| number).collect::<Vec<_>>(), [11]);
    });
}

#[test]
fn an_edit_between_the_looks_leads_to_another_attempt() {
    let mut database = TestDatabase::new();
    let before = database.read("MANIFEST-000005");
    database.edit(|e| {
        e.deleted(0, 10).table_2(0, 11, 500).number(2, 21);
    });
    let after = database.read("MANIFEST-000005");
    database.write("MANIFEST-000005", &before);
    with_capture(&database, |capture| {
        capture.look_first().unwrap();
        database.write("000011.sst", &opaque_table(11, 500));
        database.write_log("000021.log", None, 1);
        let file = File::options().write(true).open(database.dir().join("MANIFEST-000005")).unwrap();
        file.write_all_at(&after, 0).unwrap();
        assert_eq!(moved(capture.look_again()), "MANIFEST-000005 grew");
        assert_eq!(accepted(capture).manifest_length, after.len() as u64);
    });
}

/// A database that is put back from elsewhere has the same names and may have the same lengths.
#[test]
fn another_manifest_of_the_same_name_and_length_leads_to_another_attempt() {
    let database = TestDatabase::new();
    database.write("MANIFEST-000005", &manifest_of_table(10, 1000));
    with_capture(&database, |capture| {
        capture.look_first().unwrap();
        database.write("000011.sst", &opaque_table(11, 1000));
        let other = manifest_of_table(11, 1000);
        assert_eq!(other.len(), database.read("MANIFEST-000005").len(), "its length does not show it");
        replace(&database.dir().join("MANIFEST-000005"), &other);
        assert!(moved(capture.look_again()).starts_with("MANIFEST-000005"));

        accepted(capture);
        capture.release_dead();
        assert_eq!(capture.live().map(|(number, _)| number).collect::<Vec<_>>(), [11]);
    });
}

/// Numbers of tables are used again by an engine that was restarted, and a database that is put back may even have the times of
/// before.
#[test]
fn a_table_that_was_exchanged_together_with_the_manifest_is_pinned_anew() {
    for (size, same_time) in [(1000_usize, false), (1000, true), (900, true)] {
        let database = TestDatabase::new();
        with_capture(&database, |capture| {
            assert_eq!(pinned_bytes(capture, "000010.sst"), opaque_table(10, 1000));
            let table = database.dir().join("000010.sst");
            let modified = std::fs::metadata(&table).unwrap().modified().unwrap();
            replace(&table, &vec![77; size]);
            if same_time {
                let file = File::options().write(true).open(&table).unwrap();
                file.set_modified(modified).unwrap();
            }
            database.write("MANIFEST-000006", &manifest_of_table(10, size as u64));
            database.write("CURRENT", b"MANIFEST-000006\n");
            accepted(capture);
            assert_eq!(pinned_bytes(capture, "000010.sst"), vec![77; size]);
        });
    }
}

/// Unlike a link, a copy leaves the inode of its original free for another file.
#[test]
fn a_copy_is_made_anew_when_another_file_has_the_inode_of_its_original() {
    let times = |seconds| std::fs::FileTimes::new().set_modified(Timestamp::new(seconds, 0).unwrap().into());
    for (size, time) in [(1000, 1_700_000_001), (900, 1_700_000_000)] {
        let database = TestDatabase::new();
        let table = || File::options().write(true).open(database.dir().join("000010.sst")).unwrap();
        table().set_times(times(1_700_000_000)).unwrap();
        with_capture(&database, |capture| {
            // As it is where the staging directory is on another file system.
            let path = RelativePath::from_bytes(b"000010.sst").unwrap();
            let pin = capture.builder.pins.get(&path).unwrap();
            let Located::Path(place) = &pin.located else { panic!("{pin:?}") };
            replace(place, &[10; 1000]);

            table().write_all_at(&[77; 1000], 0).unwrap();
            table().set_len(size).unwrap();
            table().set_times(times(time)).unwrap();
            database.write("MANIFEST-000006", &manifest_of_table(10, size));
            database.write("CURRENT", b"MANIFEST-000006\n");
            accepted(capture);
            assert_eq!(pinned_bytes(capture, "000010.sst"), vec![77; usize::try_from(size).unwrap()]);
        });
    }
}

/// A list that was not empty says nothing if what is on it is not there.
#[test]
fn a_log_that_goes_away_between_listing_and_noting_leads_to_another_attempt() {
    let database = TestDatabase::new();
    with_capture(&database, |capture| {
        let listed = capture.directories.main().list().unwrap();
        database.remove("000020.log");
        assert_eq!(moved(capture.note_logs(&listed)), "logs came and went");

        let refused = std::iter::repeat_with(|| capture.attempt()).find_map(Result::err).unwrap();
        assert!(matches!(refused, CaptureError::NeedsFlag { flag: "--wal-dir", .. }), "{refused}");
    });
}

#[test]
fn logs_are_looked_for_in_their_new_directory_when_the_database_is_opened_with_another_one() {
    let database = TestDatabase::new();
    let (old, new) = (database.beside("old"), database.beside("new"));
    std::fs::rename(database.dir().join("000020.log"), old.join("000020.log")).unwrap();
    let options = |dir: &Path| format!("[DBOptions]\n  wal_dir={}\n", dir.display()).into_bytes();
    database.write("OPTIONS-000009", &options(&old));
    with_capture(&database, |capture| {
        assert_eq!(capture.directories.logs().dir.path(), old);
        // Copied to another disk, and gone on there: what is left in the old directory looks as good as before.
        std::fs::copy(old.join("000020.log"), new.join("000020.log")).unwrap();
        database.write_log("../new/000021.log", None, 1);
        database.write("OPTIONS-000011", &options(&new));
        assert_eq!(moved(capture.look_first()), "settings of the logs changed");

        accepted(capture);
        let logs: Vec<_> = capture.logs.iter().map(|(_, log)| log.path.clone()).collect();
        assert_eq!(logs, [new.join("000021.log"), new.join("000020.log")]);
    });
}

/// Its newest log is always open, so a directory of which it has none open is not its log directory.
#[test]
fn a_log_directory_of_which_the_owner_has_no_log_open_is_refused() {
    let database = TestDatabase::new();
    let logs = std::fs::canonicalize(database.beside("logs")).unwrap();
    // What is in the main directory was left by an earlier session.
    database.write_log("../logs/000021.log", None, 1);
    let source = Source { engine: Engine::RocksDb, path: database.dir() };
    let prepare = |wal_dir: Option<PathBuf>| {
        let options = CaptureOptions { wal_dir, ..CaptureOptions::default() };
        database.surroundings.with(|context| {
            let mut capture = Capture::open(&source, &options, context, Sabotage::None).unwrap();
            capture.owner = Some(Owner { pid: std::process::id(), working_dir: None });
            capture.prepare()
        })
    };
    let _open = File::open(logs.join("000021.log")).unwrap();
    match prepare(None) {
        Err(CaptureError::NeedsFlag { flag: "--wal-dir", why, .. }) => {
            assert!(why.contains(&logs.display().to_string()), "{why}");
        }
        other => panic!("{other:?}"),
    }
    prepare(Some(logs)).unwrap();
}
