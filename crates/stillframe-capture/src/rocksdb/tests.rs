//! Captures of databases that nobody writes to: what is taken, what is left, what is refused.

use std::cell::Cell;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use tokio_util::sync::CancellationToken;

use super::log_format::writer::{append, append_physical};
use super::options_file::OptionsFile;
use super::sabotage::Sabotage;
use super::table_identity::writer::table;
use super::test_database::{TestDatabase, names};
use super::{recognise, rewrite_wal_dir, validate};
use crate::rocksdb::table_identity::writer::opaque_table;
use crate::test_support::{Surroundings, inventory};
use crate::{CaptureError, CaptureOptions, Event, Role};

fn flag(error: &CaptureError) -> &'static str {
    match error {
        CaptureError::NeedsFlag { flag, .. } => flag,
        other => panic!("{other}"),
    }
}

#[test]
fn an_image_holds_what_is_live_and_nothing_else_and_the_source_stays_as_it_was() {
    let mut database = TestDatabase::new();
    database.edit(|e| {
        e.number(200, 1).string_field(201, b"pears").number(2, 20);
    });
    database.edit(|e| {
        e.number(200, 1).table_4(0, 12, 7, &[(12, &[0xab; 16])]).blob(400, 13, 2, 100);
    });
    database.edit(|e| {
        e.number(200, 1).table_4(0, 14, 9, &[(4, &[13])]).deleted(0, 12);
    });
    database.edit(|e| {
        e.number(200, 1).table_4(0, 15, 8, &[(12, &[0xcd; 16])]);
    });
    database.write("000012.sst", b"obsolete, not deleted yet");
    database.write("000014.sst", &opaque_table(14, 9));
    database.write("000015.sst", &opaque_table(15, 8));
    database.write("000013.blob", &blob(162));
    database.write("000099.sst", b"an orphan of a compaction");
    database.write("000003.log", b"an old log");
    database.write_log("000021.log", None, 1);
    database.write("MANIFEST-000002", b"an old one");
    database.write("OPTIONS-000004", b"old");
    database.write("OPTIONS-000008.dbtmp", b"half");
    database.write("000011.sst.trash", b"waiting");
    std::fs::create_dir(database.dir().join("archive")).unwrap();
    let before = inventory(&database.dir());

    let image = database.capture().unwrap();
    let taken: Vec<(String, Role)> =
        image.snapshot().files.iter().map(|file| (file.path.to_string(), file.role)).collect();
    let expected = [
        ("000010.sst", Role::Table),
        ("000013.blob", Role::Blob),
        ("000014.sst", Role::Table),
        ("000015.sst", Role::Table),
        ("000020.log", Role::Log),
        ("000021.log", Role::Log),
        ("CURRENT", Role::Pointer),
        ("IDENTITY", Role::Other),
        ("MANIFEST-000005", Role::Pointer),
        ("OPTIONS-000007", Role::Other),
    ];
    assert_eq!(taken, expected.map(|(name, role)| (name.to_owned(), role)));
    let identity = |name: &str| {
        image.snapshot().files.iter().find(|file| file.path.to_string() == name).unwrap().identity.clone()
    };
    assert_eq!(identity("000015.sst").unwrap(), format!("{}-15", "cd".repeat(16)));
    assert_eq!(identity("000010.sst"), None, "nothing proves what it is");
    assert_eq!(image.snapshot().engine_version.as_deref(), Some("9.9.9"));
    assert!(image.snapshot().weakening.is_empty());
    for file in &image.snapshot().files {
        let length = image.open(&file.path).unwrap().metadata().unwrap().len();
        assert_eq!(length, file.size, "{}", file.path);
    }
    drop(image);
    assert_eq!(inventory(&database.dir()), before);
    assert_eq!(names(database.root.path()), ["db"], "nothing is left beside it");

    let (target, _, report) = database.keep(database.capture().unwrap(), "image");
    assert_eq!(report.remarks, [""; 0]);
    assert_eq!(report.files, 9, "all but IDENTITY, which no engine needs");
    assert_eq!(names(&target).len(), expected.len() + 1, "and snapshot.json");
    assert_eq!(std::fs::read(target.join("MANIFEST-000005")).unwrap(), database.read("MANIFEST-000005"));
    assert_eq!(names(database.root.path()), ["db", "image"]);
    let shared = |dir: &std::path::Path| {
        let links = |name: &String| std::fs::metadata(dir.join(name)).unwrap().nlink();
        names(dir).iter().filter(|name| links(name) > 1).count()
    };
    assert!(shared(&target) > 0);

    let copied = database.root.path().join("copied");
    let image = database.capture().unwrap();
    Surroundings::default().with(|context| image.keep_copy(&copied, context)).unwrap();
    assert_eq!(shared(&copied), 0);
    assert_eq!(names(&copied), names(&target));
    assert_eq!(names(database.root.path()), ["copied", "db", "image"]);
}

fn blob(size: usize) -> Vec<u8> {
    let mut blob = vec![0; size];
    blob[size - 32..size - 28].copy_from_slice(&0x0024_8f37_u32.to_le_bytes());
    blob
}

#[test]
fn half_a_record_and_half_a_group_behind_the_edits_do_no_harm() {
    let mut database = TestDatabase::new();
    database.edit(|e| {
        e.number(300, 1).table_2(0, 50, 5);
    });
    let mut manifest = database.read("MANIFEST-000005");
    manifest.extend([1, 2, 3, 4, 200, 0, 1, 9]);
    database.write("MANIFEST-000005", &manifest);
    let (target, ..) = database.keep(database.capture().unwrap(), "image");
    assert_eq!(std::fs::read(target.join("MANIFEST-000005")).unwrap(), manifest);
}

#[test]
fn logs_of_another_directory_come_into_the_image_and_its_options_do_not_lead_back() {
    let database = TestDatabase::new();
    let logs = database.beside("logs");
    std::fs::rename(database.dir().join("000020.log"), logs.join("000020.log")).unwrap();
    let line = format!("[DBOptions]\n  wal_dir={}\n  max_open_files=-1\n", logs.display());
    database.write("OPTIONS-000009", line.as_bytes());
    let (target, snapshot, report) = database.keep(database.capture().unwrap(), "image");
    assert!(target.join("000020.log").exists());
    assert_eq!(std::fs::read(target.join("OPTIONS-000009")).unwrap(), b"[DBOptions]\n  max_open_files=-1\n");
    assert_eq!(report.remarks, [""; 0]);
    let log = snapshot.files.iter().find(|file| file.role == Role::Log).unwrap();
    assert_eq!(log.directory, "wal_dir");
    let [dir] = snapshot.directories.as_slice() else { panic!("{:?}", snapshot.directories) };
    assert_eq!((dir.name.as_str(), dir.original.as_path()), ("wal_dir", logs.as_path()));

    // As a restore lays it out: validation finds the logs, and the options name them.
    let separate = target.join("wal_dir");
    std::fs::create_dir(&separate).unwrap();
    std::fs::rename(target.join("000020.log"), separate.join("000020.log")).unwrap();
    let options = rewrite_wal_dir(&target, &separate).unwrap().unwrap();
    assert_eq!(OptionsFile::parse(&std::fs::read(options).unwrap()).wal_dir().unwrap(), separate);
    assert_eq!(validate(&target, &CancellationToken::new()).unwrap().remarks, [""; 0]);
}

#[test]
fn no_log_is_an_error_that_names_the_flag() {
    let database = TestDatabase::new();
    let wrong = database.beside("wrong");
    let options = CaptureOptions { wal_dir: Some(wrong), ..CaptureOptions::default() };
    assert_eq!(flag(&database.capture_with(&options, Sabotage::None).unwrap_err()), "--wal-dir");
    database.capture_with(&options, Sabotage::NoLogsAccepted).expect("the control makes the mistake");

    database.write("OPTIONS-000009", b"[DBOptions]\n  wal_dir=/nonexistent/logs\n");
    assert!(database.capture().is_ok(), "closed, moved, and its logs are here");
    database.remove("000020.log");
    assert_eq!(flag(&database.capture().unwrap_err()), "--wal-dir");
    assert_eq!(names(database.root.path()), ["db", "wrong"]);
}

#[test]
fn logs_in_two_places_are_not_chosen_from() {
    let database = TestDatabase::new();
    let logs = database.beside("logs");
    std::fs::copy(database.dir().join("000020.log"), logs.join("000020.log")).unwrap();
    database.write("OPTIONS-000009", format!("[DBOptions]\n  wal_dir={}\n", logs.display()).as_bytes());
    assert_eq!(flag(&database.capture().unwrap_err()), "--wal-dir");
    // A copy that was never opened where it lies carries options that were meant for another place.
    database.remove("LOCK");
    assert!(database.capture().unwrap().snapshot().directories.is_empty());
}

#[test]
fn a_copy_never_takes_the_logs_of_the_original_that_its_options_name() {
    let original = TestDatabase::new();
    let copy = TestDatabase::new();
    copy.write("OPTIONS-000009", format!("[DBOptions]\n  wal_dir={}\n", original.dir().display()).as_bytes());
    let (target, snapshot, _) = copy.keep(copy.capture().unwrap(), "image");
    assert!(snapshot.directories.is_empty());
    assert!(target.join("000020.log").exists());
    copy.remove("000020.log");
    assert_eq!(flag(&copy.capture().unwrap_err()), "--wal-dir");
}

/// LOCK, OPTIONS and diary are copied along; the log directory that they name is the original's, which may be writing into it.
#[test]
fn a_copy_never_takes_the_log_directory_that_the_original_has_to_itself() {
    let copy = TestDatabase::new();
    let logs = copy.beside("logs-of-the-original");
    std::fs::rename(copy.dir().join("000020.log"), logs.join("000020.log")).unwrap();
    copy.write("OPTIONS-000009", format!("[DBOptions]\n  wal_dir={}\n", logs.display()).as_bytes());
    let original = copy.beside("original");
    copy.write_diary(&original);
    let refused = copy.capture().unwrap_err();
    assert_eq!(flag(&refused), "--wal-dir");
    assert!(refused.to_string().contains(&original.display().to_string()), "{refused}");
    copy.write("LOG", b"a diary that says nothing\n");
    assert_eq!(flag(&copy.capture().unwrap_err()), "--wal-dir");
    // Where a path that is not given in full led to is in no file.
    copy.write_diary(std::path::Path::new("db"));
    assert_eq!(flag(&copy.capture().unwrap_err()), "--wal-dir");
    // Whoever knows better says so.
    let told = |dir| CaptureOptions { wal_dir: Some(dir), ..CaptureOptions::default() };
    let capture = |dir: &std::path::Path| copy.capture_with(&told(dir.to_owned()), Sabotage::None);
    assert_eq!(capture(&logs).unwrap().snapshot().directories.len(), 1);
    copy.write_diary(&copy.dir());
    assert_eq!(copy.capture().unwrap().snapshot().directories.len(), 1);
    // A checkpoint that was never opened is whole without any log, and one that was restored has its own below it.
    copy.remove("LOCK");
    assert_eq!(flag(&copy.capture().unwrap_err()), "--wal-dir");
    let (_, snapshot, _) = copy.keep(capture(&copy.dir()).unwrap(), "checkpoint");
    assert_eq!((snapshot.directories.len(), snapshot.weakening[0].setting.as_str()), (0, "no log"));
    let own = copy.dir().join("own");
    std::fs::rename(logs, &own).unwrap();
    copy.write("OPTIONS-000009", format!("[DBOptions]\n  wal_dir={}\n", own.display()).as_bytes());
    assert_eq!(copy.capture().unwrap().snapshot().directories.len(), 1);
}

/// With logs made in advance the youngest is empty, and the one in use may end in half a record.
#[test]
fn half_a_record_before_an_empty_log_was_just_being_written() {
    let database = TestDatabase::new();
    let mut log = database.read("000020.log");
    let whole = log.len();
    log.extend_from_slice(&log.clone()[..3000]);
    database.write("000020.log", &log);
    database.write("000021.log", b"");
    let (target, snapshot, report) = database.keep(database.capture().unwrap(), "image");
    assert_eq!(std::fs::metadata(target.join("000020.log")).unwrap().len(), whole as u64);
    assert!(snapshot.weakening.is_empty() && report.remarks.is_empty(), "{:?}", report.remarks);
    // Once the younger one holds something, it is kept and told.
    database.write_log("000021.log", None, 1);
    let (target, snapshot, report) = database.keep(database.capture().unwrap(), "later");
    assert_eq!(std::fs::metadata(target.join("000020.log")).unwrap().len(), log.len() as u64);
    assert!(snapshot.weakening[0].setting.ends_with("000020.log"));
    assert!(report.remarks[0].contains("younger logs go on"), "{:?}", report.remarks);
}

/// The engine resolves it from the directory in which its program was started, and something old may lie below the database.
#[test]
fn a_log_directory_that_is_not_named_in_full_is_not_looked_for_below_a_closed_database() {
    let database = TestDatabase::new();
    std::fs::create_dir(database.dir().join("wl")).unwrap();
    std::fs::rename(database.dir().join("000020.log"), database.dir().join("wl/000020.log")).unwrap();
    database.write("OPTIONS-000009", b"[DBOptions]\n  wal_dir=wl\n");
    assert_eq!(flag(&database.capture().unwrap_err()), "--wal-dir");
}

/// Whatever it is, nobody asks it anything while all tables are where they should be.
#[test]
fn a_diary_that_cannot_be_read_does_not_matter() {
    let database = TestDatabase::new();
    database.remove("LOG");
    std::fs::create_dir(database.dir().join("LOG")).unwrap();
    assert!(database.capture().is_ok());
}

#[test]
fn a_checkpoint_that_was_never_opened_needs_no_log() {
    let database = TestDatabase::new();
    database.remove("000020.log");
    database.remove("LOCK");
    let (_, snapshot, report) = database.keep(database.capture().unwrap(), "image");
    assert_eq!(snapshot.weakening[0].setting, "no log");
    assert_eq!(report.remarks.len(), 1);
}

#[test]
fn tables_in_other_paths_are_found_by_flag_or_diary_and_else_the_flag_is_named() {
    let mut database = TestDatabase::new();
    let slow = database.beside("slow");
    database.edit(|e| {
        e.table_3(1, 12, 1, 77);
    });
    std::fs::write(slow.join("000012.sst"), opaque_table(12, 77)).unwrap();
    assert_eq!(flag(&database.capture().unwrap_err()), "--db-path");

    let told = CaptureOptions { db_paths: vec![database.dir(), slow.clone()], ..CaptureOptions::default() };
    let diary = format!(
        "x 1 SST files in {} dir, Total Num: 1, files: 000010.sst \nx 1 SST files in {} dir, Total Num: 1, files: \n",
        database.dir().display(),
        slow.display()
    );
    for (index, options) in [told, CaptureOptions::default()].iter().enumerate() {
        let (target, snapshot, _) =
            database.keep(database.capture_with(options, Sabotage::None).unwrap(), &format!("image-{index}"));
        let table = snapshot.files.iter().find(|file| file.directory == "db_path-1").unwrap();
        assert_eq!(table.path.to_string(), "db_path-1/000012.sst", "path 1 must be given to the engine");
        assert_eq!(snapshot.directories[0].option, "db_paths[1]");
        assert!(target.join("db_path-1/000012.sst").exists());
        // What a program that only reads leaves hides the diary of the owner.
        database.write("LOG.old.1700000000000000", diary.as_bytes());
        database.write(
            "LOG",
            format!("x 1 SST files in {} dir, Total Num: 1, files: \n", database.dir().display()).as_bytes(),
        );
    }
}

#[test]
fn a_family_elsewhere_is_found_by_flag_and_else_the_flag_is_named() {
    let mut database = TestDatabase::new();
    let own = database.beside("own");
    database.edit(|e| {
        e.number(200, 1).string_field(201, b"pears/1").number(2, 20);
    });
    database.edit(|e| {
        e.number(200, 1).table_4(1, 12, 77, &[(4, &[13])]).blob(400, 13, 2, 100);
    });
    std::fs::write(own.join("000012.sst"), opaque_table(12, 77)).unwrap();
    std::fs::write(own.join("000013.blob"), blob(162)).unwrap();
    assert_eq!(flag(&database.capture().unwrap_err()), "--cf-path");
    let cf_paths = [("pears/1".to_owned(), vec![own])].into();
    let options = CaptureOptions { cf_paths, ..CaptureOptions::default() };
    let (_, snapshot, _) = database.keep(database.capture_with(&options, Sabotage::None).unwrap(), "image");
    let elsewhere: Vec<&str> =
        snapshot.files.iter().map(|file| file.directory.as_str()).filter(|dir| !dir.is_empty()).collect();
    assert_eq!(elsewhere, ["cf_path-pears%2f1-0"; 2]);
    let cf_paths = [("apples".to_owned(), vec![database.dir()])].into();
    let options = CaptureOptions { cf_paths, ..CaptureOptions::default() };
    let refused = database.capture_with(&options, Sabotage::None).unwrap_err().to_string();
    assert!(refused.contains("no column family \"apples\"") && refused.contains("pears/1"), "{refused}");
}

#[test]
fn a_live_file_that_is_missing_or_has_another_length_is_named() {
    let mut database = TestDatabase::new();
    database.edit(|e| {
        e.table_2(0, 11, 500);
    });
    let error = database.capture().unwrap_err();
    assert!(
        matches!(&error, CaptureError::Corrupt { .. }) && error.to_string().contains("file 11 "),
        "{error}"
    );
    database.write("000011.sst", &opaque_table(0, 499));
    let error = database.capture().unwrap_err();
    assert!(
        error.to_string().contains("000011.sst is damaged: it has 499 bytes where its MANIFEST says 500"),
        "{error}"
    );
    assert!(validate(&database.dir(), &CancellationToken::new()).is_err());
    assert_eq!(names(database.root.path()), ["db"]);
}

/// Cuts a file in place, so that every link to it is cut as well.
fn cut(database: &TestDatabase, name: &str, size: u64) {
    let file = std::fs::File::options().write(true).open(database.dir().join(name)).unwrap();
    file.set_len(size).unwrap();
}

#[test]
fn a_live_file_that_is_cut_while_the_logs_are_copied_is_named() {
    for (name, size) in [("000012.sst", 700), ("000013.blob", 162)] {
        let mut database = TestDatabase::new();
        database.edit(|e| {
            // With a unique id, the table itself is not read for its identity, where it would be found short as well.
            e.number(200, 0).table_4(0, 12, 700, &[(4, &[13]), (12, &[12; 16])]).blob(400, 13, 2, 100);
        });
        database.write("000012.sst", &opaque_table(12, 700));
        database.write("000013.blob", &blob(162));
        // Copying begins when everything is pinned and the pointers were seen to stand still: nothing but a last look at the
        // pins themselves can show this.
        let is_cut = Cell::new(false);
        let captured = database.capture_while(|event| {
            if matches!(event, Event::Copied { .. }) && !is_cut.replace(true) {
                cut(&database, name, size - 1);
            }
        });
        assert!(is_cut.get(), "{name}: nothing was tested");
        let error = captured.map(|image| image.snapshot().attempts).unwrap_err();
        let what = format!("{name} is damaged: it has {} bytes where its MANIFEST says {size}", size - 1);
        assert!(error.to_string().contains(&what), "{error}");
        assert_eq!(names(database.root.path()), ["db"]);
    }
}

#[test]
fn a_table_that_is_deleted_slowly_while_the_logs_are_copied_leads_to_another_attempt() {
    let mut database = TestDatabase::new();
    database.edit(|e| {
        e.deleted(0, 10).table_4(0, 12, 700, &[(12, &[12; 16])]);
    });
    database.write("000012.sst", &opaque_table(12, 700));
    let before = database.read("MANIFEST-000005");
    database.edit(|e| {
        e.deleted(0, 12).table_4(0, 14, 900, &[(12, &[14; 16])]);
    });
    let after = database.read("MANIFEST-000005");
    database.write("MANIFEST-000005", &before);
    // A compaction ends, and its input is cut though the capture has a link to it, as RocksDB 5.14 did.
    let is_over = Cell::new(false);
    let captured = database.capture_while(|event| {
        if matches!(event, Event::Copied { .. }) && !is_over.replace(true) {
            database.write("000014.sst", &opaque_table(14, 900));
            database.write("MANIFEST-000005", &after);
            cut(&database, "000012.sst", 350);
            database.remove("000012.sst");
        }
    });
    let (target, snapshot, _) = database.keep(captured.unwrap(), "image");
    assert!(snapshot.attempts > 1, "an image that was begun with the whole table has only a part of it");
    let tables = snapshot.files.iter().filter(|file| file.role == Role::Table);
    assert_eq!(tables.map(|file| file.path.to_string()).collect::<Vec<_>>(), ["000014.sst"]);
    assert_eq!(std::fs::read(target.join("000014.sst")).unwrap(), opaque_table(14, 900));
    assert_eq!(std::fs::read(target.join("MANIFEST-000005")).unwrap(), after);
    assert_eq!(names(database.root.path()), ["db", "image"]);
}

#[test]
fn what_cannot_be_captured_from_outside_is_refused_by_name() {
    for name in ["blob_dir", "titandb"] {
        let database = TestDatabase::new();
        std::fs::create_dir(database.dir().join(name)).unwrap();
        let error = database.capture().unwrap_err();
        assert!(matches!(&error, CaptureError::Refused { path, .. } if path.ends_with(name)), "{error}");
    }
    let database = TestDatabase::new();
    database
        .write("OPTIONS-000009", b"[DBOptions]\n[CFOptions \"pears\"]\n  enable_blob_direct_write=true\n");
    let error = database.capture().unwrap_err();
    assert!(matches!(error, CaptureError::Refused { .. }) && error.to_string().contains("pears"), "{error}");

    let mut newer = TestDatabase::new();
    newer.edit(|e| {
        e.number(777, 1);
    });
    assert!(matches!(newer.capture().unwrap_err(), CaptureError::UnknownFormat { .. }));

    let encrypted = TestDatabase::new();
    encrypted.write("CURRENT", &[0x9c; 4096]);
    assert!(matches!(encrypted.capture().unwrap_err(), CaptureError::NotADatabase { .. }));
    assert!(!recognise(&encrypted.dir()).unwrap());
    let encrypted = TestDatabase::new();
    encrypted.write("MANIFEST-000005", &[0x9c; 9000]);
    assert!(matches!(encrypted.capture().unwrap_err(), CaptureError::UnknownFormat { .. }));
}

#[test]
fn damage_in_the_manifest_is_named_with_its_place() {
    let database = TestDatabase::new();
    let mut manifest = database.read("MANIFEST-000005");
    *manifest.last_mut().unwrap() ^= 1;
    database.write("MANIFEST-000005", &manifest);
    let error = database.capture().unwrap_err();
    assert!(
        matches!(&error, CaptureError::Corrupt { path, .. } if path.ends_with("MANIFEST-000005")),
        "{error}"
    );
    assert!(error.to_string().contains("checksum"), "{error}");
}

#[test]
fn settings_that_weaken_the_guarantee_are_recorded() {
    let database = TestDatabase::new();
    database.write("OPTIONS-000009", b"[DBOptions]\n  manual_wal_flush=true\n  best_efforts_recovery=true\n");
    let image = database.capture().unwrap();
    let settings: Vec<&str> =
        image.snapshot().weakening.iter().map(|weakening| weakening.setting.as_str()).collect();
    assert_eq!(settings, ["manual_wal_flush", "best_efforts_recovery"]);
    assert!(database.surroundings.warnings().is_empty(), "whoever keeps the image tells");
}

#[test]
fn half_a_record_is_cut_from_the_newest_log_and_from_no_other() {
    let database = TestDatabase::new();
    database.write_log("000021.log", None, 2);
    for name in ["000020.log", "000021.log"] {
        let mut log = database.read(name);
        log.truncate(log.len() - 100);
        database.write(name, &log);
    }
    let (target, ..) = database.keep(database.capture().unwrap(), "image");
    assert_eq!(std::fs::read(target.join("000020.log")).unwrap(), database.read("000020.log"));
    assert_eq!(std::fs::metadata(target.join("000021.log")).unwrap().len(), 5007);
}

#[test]
fn what_is_no_record_in_the_newest_log_is_kept_for_the_engine_to_judge() {
    let database = TestDatabase::new();
    let mut log = database.read("000020.log");
    append_physical(&mut log, 77, None, b"of a version to come");
    database.write("000020.log", &log);
    let (target, snapshot, report) = database.keep(database.capture().unwrap(), "image");
    assert_eq!(std::fs::read(target.join("000020.log")).unwrap(), log);
    assert_eq!((report.remarks.len(), snapshot.weakening.len()), (1, 0));
}

#[test]
fn a_recycled_log_that_is_damaged_is_told_and_its_damage_is_in_the_image() {
    for (name, at) in [("000020.log", 40_000), ("000020.log", 3), ("000021.log", 40_000)] {
        let database = TestDatabase::new();
        database.write("OPTIONS-000009", b"[DBOptions]\n  recycle_log_file_num=4\n");
        with_recycled_logs(&database);
        let sound = database.capture().unwrap();
        assert!(sound.snapshot().weakening.is_empty());
        let mut log = database.read(name);
        log[at] ^= 0x10;
        database.write(name, &log);
        let image = database.capture().unwrap();
        let [weak] = image.snapshot().weakening.as_slice() else {
            panic!("{:?}", image.snapshot().weakening)
        };
        assert!(weak.setting.ends_with(name), "{weak:?}");
        let target = database.root.path().join("image");
        database.surroundings.with(|context| image.keep(&target, context)).unwrap();
        assert_eq!(std::fs::read(target.join(name)).unwrap(), log, "as it is");
        let checked = validate(&target, &CancellationToken::new());
        assert!(
            matches!(&checked, Err(CaptureError::Corrupt { path, .. }) if path.ends_with(name)),
            "{checked:?}"
        );
    }
}

/// Logs 20 and 21 in recycled files: new records, then the tail of an older log.
fn with_recycled_logs(database: &TestDatabase) -> Vec<u64> {
    let mut old = Vec::new();
    (0..20).for_each(|_| append(&mut old, &[0; 5000], Some(4)));
    let mut ends = Vec::new();
    for (number, count) in [(20, 10_u8), (21, 3)] {
        let mut log = Vec::new();
        // Leaves ten bytes at the end of the first block: padding in a recyclable log, room for a header in others.
        append(&mut log, &vec![9; 32_768 - 10 - 11], Some(number));
        (0..count).for_each(|n| append(&mut log, &[n; 5000], Some(number)));
        ends.push(log.len() as u64);
        log.extend_from_slice(&old[log.len()..]);
        database.write(&format!("0000{number}.log"), &log);
    }
    ends
}

#[test]
fn recycled_logs_end_at_their_last_own_record() {
    for options in [Some("[DBOptions]\n  recycle_log_file_num=4\n"), None] {
        let database = TestDatabase::new();
        if let Some(options) = options {
            database.write("OPTIONS-000009", options.as_bytes());
        }
        let ends = with_recycled_logs(&database);
        let (target, _, report) = database.keep(database.capture().unwrap(), "image");
        assert_eq!(report.remarks, [""; 0]);
        for (name, end) in ["000020.log", "000021.log"].iter().zip(&ends) {
            let copied = std::fs::read(target.join(name)).unwrap();
            assert_eq!(copied.len() as u64, *end);
            assert!(database.read(name).starts_with(&copied));
        }
        let wrong = database.capture_with(&CaptureOptions::default(), Sabotage::ZeroHeaderEndsLog).unwrap();
        let lost = wrong
            .snapshot()
            .files
            .iter()
            .filter(|file| file.role == Role::Log)
            .all(|file| file.size < 32_768);
        assert!(lost, "the control makes the mistake");
    }
}

#[test]
fn plain_logs_of_an_earlier_session_stay_whole_when_logs_are_recycled() {
    let database = TestDatabase::new();
    database.write("OPTIONS-000009", b"[DBOptions]\n  recycle_log_file_num=4\n");
    let ends = with_recycled_logs(&database);
    database.write_log("000020.log", None, 4);
    let (target, ..) = database.keep(database.capture().unwrap(), "image");
    assert_eq!(std::fs::read(target.join("000020.log")).unwrap(), database.read("000020.log"));
    assert_eq!(std::fs::metadata(target.join("000021.log")).unwrap().len(), ends[1]);
}

#[test]
fn logs_that_the_manifest_tracks_must_be_there_and_long_enough() {
    let mut database = TestDatabase::new();
    let length = u8::try_from(database.read("000020.log").len() - 15_000 + 100).unwrap();
    assert_eq!(length, 121, "three records with a header each");
    database.edit(|e| {
        e.string_field(8199, &[20, 2, length, 1]);
    });
    database.capture().unwrap();
    database.edit(|e| {
        e.string_field(8199, &[20, 2, 0xff, 0xff, 0x7f, 1]);
    });
    let error = database.capture().unwrap_err();
    assert!(error.to_string().contains("log 20 has"), "{error}");
    assert!(validate(&database.dir(), &CancellationToken::new()).is_err());
}

#[test]
fn leveldb_is_captured_without_options_and_with_its_own_names() {
    let mut database = TestDatabase::bare();
    database.edit(|e| {
        e.table_1(2, 11, 44).number(2, 19).number(9, 15);
    });
    database.write("000011.ldb", &opaque_table(1, 44));
    database.write_log("000015.log", None, 1);
    database.write_log("000016.log", None, 1);
    let (target, snapshot, _) = database.keep(database.capture().unwrap(), "image");
    let expected = ["000010.sst", "000011.ldb", "000015.log", "000020.log", "CURRENT", "MANIFEST-000005"];
    assert_eq!(names(&target), [&expected[..], &["snapshot.json"]].concat());
    assert!(snapshot.files.iter().all(|file| file.identity.is_none()));
    assert_eq!(snapshot.engine_version, None);
}

#[test]
fn something_else_is_not_a_database() {
    let database = TestDatabase::new();
    database.remove("MANIFEST-000005");
    for path in [
        database.dir(),
        database.root.path().to_owned(),
        PathBuf::from("/nonexistent"),
        database.dir().join("LOG"),
    ] {
        let source = crate::Source { engine: crate::Engine::RocksDb, path };
        let error = database
            .surroundings
            .with(|context| super::capture(&source, &CaptureOptions::default(), context))
            .unwrap_err();
        assert!(matches!(error, CaptureError::NotADatabase { .. }), "{error}");
    }
}

#[test]
fn a_cancelled_capture_leaves_nothing() {
    let database = TestDatabase::new();
    database.surroundings.cancel.cancel();
    assert!(matches!(database.capture().unwrap_err(), CaptureError::Cancelled));
    assert_eq!(names(database.root.path()), ["db"]);
}

type Damage = fn(&std::path::Path);

#[test]
fn validation_names_what_an_image_lacks() {
    let database = TestDatabase::new();
    let make = |name: &str| database.keep(database.capture().unwrap(), name).0;
    let damage: [(&str, Damage); 4] = [
        ("000010.sst", |image| std::fs::remove_file(image.join("000010.sst")).unwrap()),
        ("000010.sst", |image| {
            std::fs::remove_file(image.join("000010.sst")).unwrap();
            std::fs::write(image.join("000010.sst"), b"short").unwrap();
        }),
        ("CURRENT", |image| std::fs::remove_file(image.join("CURRENT")).unwrap()),
        ("MANIFEST", |image| std::fs::write(image.join("MANIFEST-000005"), b"short").unwrap()),
    ];
    for (index, (named, damage)) in damage.iter().enumerate() {
        let image = make(&format!("image-{index}"));
        damage(&image);
        let error = validate(&image, &CancellationToken::new()).unwrap_err().to_string();
        assert!(error.contains(named), "{error}");
    }
    let image = make("with-two");
    std::fs::copy(image.join("MANIFEST-000005"), image.join("MANIFEST-000003")).unwrap();
    std::fs::remove_file(image.join("000020.log")).unwrap();
    assert_eq!(
        validate(&image, &CancellationToken::new()).unwrap().remarks.len(),
        2,
        "a second MANIFEST and no log"
    );
}

/// A link follows whatever is done to its file in place.
#[test]
fn an_image_whose_table_is_cut_after_the_capture_is_not_kept() {
    for (copied, what) in [
        (false, "it has 999 bytes where 1000 were captured"),
        (true, "it was cut to 999 bytes while it was copied, 1000 were expected"),
    ] {
        let database = TestDatabase::new();
        let image = database.capture().unwrap();
        cut(&database, "000010.sst", 999);
        let target = database.root.path().join("image");
        let kept = Surroundings::default().with(|context| {
            if copied { image.keep_copy(&target, context) } else { image.keep(&target, context) }
        });
        let error = kept.map(|_| ()).unwrap_err().to_string();
        assert!(error.contains(&format!("000010.sst is damaged: {what}")), "{error}");
        assert_eq!(names(database.root.path()), ["db"]);
    }
}

#[test]
fn what_has_a_tables_name_and_is_no_file_is_refused() {
    let database = TestDatabase::new();
    database.remove("000010.sst");
    std::fs::create_dir(database.dir().join("000010.sst")).unwrap();
    match database.capture() {
        Err(CaptureError::Refused { what, .. }) => assert_eq!(what, "it is not a regular file"),
        other => panic!("{other:?}"),
    }
}

/// What its diary calls its paths are those of the original, whose tables have the same names.
#[test]
fn a_copy_never_takes_the_tables_of_the_original_that_its_diary_names() {
    let with_two_paths = || {
        let mut database = TestDatabase::new();
        let slow = database.beside("slow");
        database.edit(|e| {
            e.table_3(1, 12, 1, 77);
        });
        std::fs::write(slow.join("000012.sst"), opaque_table(12, 77)).unwrap();
        let line = |dir: PathBuf| format!("x 1 SST files in {} dir, Total Num: 1, files: \n", dir.display());
        let diary = line(database.dir()) + &line(slow.clone());
        (database, slow, diary)
    };
    let (original, _, diary) = with_two_paths();
    original.write("LOG", diary.as_bytes());
    original.capture().unwrap();
    let (copy, slow, own_diary) = with_two_paths();
    copy.write("LOG", diary.as_bytes());
    assert_eq!(flag(&copy.capture().unwrap_err()), "--db-path");
    // Older, but its own.
    copy.write("LOG.old.1700000000000000", own_diary.as_bytes());
    assert_eq!(copy.capture().unwrap().snapshot().directories[0].original, slow);
}

/// Ingestion may write a sequence number into a table that keeps all names it was made with.
#[test]
fn a_table_with_another_sequence_number_is_not_the_same_table() {
    let identity = |bytes: &[u8]| {
        let mut database = TestDatabase::new();
        database.edit(|e| {
            e.table_2(0, 12, bytes.len() as u64);
        });
        database.write("000012.sst", bytes);
        let image = database.capture().unwrap();
        let files = &image.snapshot().files;
        files.iter().find(|file| file.path.to_string() == "000012.sst").unwrap().identity.clone()
    };
    let made = table(4, 5, 100, 0);
    assert_eq!(identity(&made), identity(&made));
    assert!(identity(&made).unwrap().starts_with("db-1-ABCDEFGHIJKLMNOPQRST-12-"));
    assert_ne!(identity(&made), identity(&table(4, 5, 100, 77)));
    // RocksDB leaves the checksum as it was when the number was zero.
    let mut patched = made.clone();
    let name = b"global_seqno";
    let at = made.windows(name.len()).position(|part| part == name).unwrap() + name.len();
    patched[at..at + 8].copy_from_slice(&77_u64.to_le_bytes());
    assert_eq!(identity(&patched), None);
}
