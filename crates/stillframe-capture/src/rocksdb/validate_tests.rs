//! Databases and images that are sound, damaged, or only look so.

use tokio_util::sync::CancellationToken;

use super::table_identity::writer::opaque_table;
use super::test_database::TestDatabase;
use super::validate;
use crate::CaptureError;

#[test]
fn a_log_that_is_damaged_before_its_end_is_told_at_once_and_no_sound_image() {
    // The last is in a length: by what that says now, the newest log ends within that record.
    let length_of_third = 2 * 5007 + 5;
    for (name, records, damage_at) in [
        ("000020.log", 20, 9000),
        ("000020.log", 20, 15_500),
        ("000021.log", 20, 50),
        ("000021.log", 5, length_of_third),
    ] {
        let database = TestDatabase::new();
        database.write_log("000020.log", None, 20);
        database.write_log("000021.log", None, records);
        let mut log = database.read(name);
        log[damage_at] ^= 0x40;
        database.write(name, &log);
        let image = database.capture().unwrap();
        let weakening = &image.snapshot().weakening;
        assert_eq!(weakening.len(), 1, "{weakening:?}");
        assert!(weakening[0].setting.ends_with(name) && weakening[0].effect.contains("whole records follow"));
        assert!(database.surroundings.warnings().is_empty(), "whoever keeps the image tells");
        let target = database.root.path().join("image");
        database.surroundings.with(|context| image.keep(&target, context)).unwrap();
        assert_eq!(std::fs::read(target.join(name)).unwrap(), log, "as it is");
        match validate(&target, &CancellationToken::new()) {
            Err(CaptureError::Corrupt { path, what }) => {
                assert!(path.ends_with(name) && what.contains("whole records follow"), "{path:?} {what}");
            }
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_manifest_that_only_seems_to_end_early_is_damaged() {
    let whole = {
        let mut database = TestDatabase::new();
        (11..20).for_each(|number| {
            database.edit(|edit| {
                edit.table_2(0, number, 1000);
            });
        });
        database.read("MANIFEST-000005")
    };
    let second = 7 + usize::from(u16::from_le_bytes([whole[4], whole[5]]));
    for name in ["its length points behind the file", "the same, by less", "zeros where it began"] {
        let database = TestDatabase::new();
        (11..20_u8)
            .for_each(|number| database.write(&format!("{number:06}.sst"), &opaque_table(number, 1000)));
        let mut bytes = whole.clone();
        let record = &mut bytes[second..];
        match name {
            "its length points behind the file" => record[5] ^= 0x80,
            "the same, by less" => record[5] ^= 0x40,
            _ => record[..9].fill(0),
        }
        database.write("MANIFEST-000005", &bytes);
        let captured = database.capture().map(|_| ());
        assert!(matches!(&captured, Err(CaptureError::Corrupt { .. })), "{name}: {captured:?}");
        let checked = validate(&database.dir(), &CancellationToken::new()).map(|_| ());
        assert!(matches!(&checked, Err(CaptureError::Corrupt { .. })), "{name}: {checked:?}");
    }
}

#[test]
fn logs_are_looked_for_where_the_options_of_a_restored_database_name_a_directory_in_it() {
    let database = TestDatabase::new();
    database.remove("LOCK");
    let options = |logs: &std::path::Path| format!("[DBOptions]\n  wal_dir={}\n", logs.display());
    let logs = database.dir().join("journal");
    std::fs::create_dir(&logs).unwrap();
    std::fs::rename(database.dir().join("000020.log"), logs.join("000020.log")).unwrap();
    database.write("OPTIONS-000009", options(&logs).as_bytes());
    assert_eq!(validate(&database.dir(), &CancellationToken::new()).unwrap().remarks, [""; 0]);
    std::fs::remove_file(logs.join("000020.log")).unwrap();
    let gone = validate(&database.dir(), &CancellationToken::new());
    assert!(matches!(&gone, Err(CaptureError::Corrupt { .. })), "{gone:?}");
    // Its own directory, and none: as in a checkpoint.
    for text in [options(&database.dir()), "[DBOptions]\n".to_owned()] {
        database.write("OPTIONS-000009", text.as_bytes());
        assert_eq!(validate(&database.dir(), &CancellationToken::new()).unwrap().remarks.len(), 1);
    }
}

#[test]
fn validation_ends_when_it_is_cancelled() {
    let database = TestDatabase::new();
    let cancelled = CancellationToken::new();
    cancelled.cancel();
    assert!(matches!(validate(&database.dir(), &cancelled), Err(CaptureError::Cancelled)));
}

#[test]
fn what_an_engine_could_not_open_does_not_pass_for_sound() {
    let blob_without_its_end = |database: &mut TestDatabase| {
        database.edit(|edit| {
            edit.number(200, 0).table_4(0, 12, 700, &[(4, &[13]), (12, &[12; 16])]).blob(400, 13, 2, 100);
        });
        database.write("000012.sst", &opaque_table(12, 700));
        database.write("000013.blob", &[0; 162]);
        "000013.blob"
    };
    let opened_and_without_a_log = |database: &mut TestDatabase| {
        assert!(database.dir().join("LOCK").exists());
        database.remove("000020.log");
        "db"
    };
    let a_pipe_for_a_log = |database: &mut TestDatabase| {
        let path = database.dir().join("000099.log");
        rustix::fs::mkfifoat(rustix::fs::CWD, &path, 0o600.into()).unwrap();
        "000099.log"
    };
    let spoil: [&dyn Fn(&mut TestDatabase) -> &'static str; 3] =
        [&blob_without_its_end, &opened_and_without_a_log, &a_pipe_for_a_log];
    for spoil in spoil {
        let mut database = TestDatabase::new();
        let name = spoil(&mut database);
        let checked = validate(&database.dir(), &CancellationToken::new());
        assert!(
            matches!(&checked, Err(CaptureError::Corrupt { path, .. }) if path.ends_with(name)),
            "{name}: {checked:?}"
        );
    }
}

#[test]
fn logs_that_somebody_laid_aside_are_no_logs_of_the_database() {
    let database = TestDatabase::new();
    for aside in ["wal_dir-old", "db_path-1-old"].map(|name| database.dir().join(name)) {
        std::fs::create_dir(&aside).unwrap();
        std::fs::write(aside.join("000020.log"), database.read("000020.log")).unwrap();
    }
    assert_eq!(validate(&database.dir(), &CancellationToken::new()).unwrap().remarks, [""; 0]);
}

/// Of a database where it is used, and not of an image, which never names a directory of the original's.
#[test]
fn logs_are_looked_for_where_the_options_say_that_they_are() {
    let database = TestDatabase::new();
    let logs = database.beside("logs");
    std::fs::rename(database.dir().join("000020.log"), logs.join("000020.log")).unwrap();
    let options = format!("[DBOptions]\n  wal_dir={}\n", logs.display());
    database.write("OPTIONS-000009", options.as_bytes());
    let validated = || validate(&database.dir(), &CancellationToken::new());
    let report = validated().unwrap();
    assert!(report.remarks[0].contains(&logs.display().to_string()), "{:?}", report.remarks);
    // They are looked at, too.
    let mut log = std::fs::read(logs.join("000020.log")).unwrap();
    let whole = log.clone();
    log.extend_from_slice(&whole);
    log[20] ^= 1;
    std::fs::write(logs.join("000020.log"), log).unwrap();
    assert!(validated().unwrap_err().to_string().contains("000020.log"));
    std::fs::remove_file(logs.join("000020.log")).unwrap();
    assert!(validated().unwrap_err().to_string().contains("there is no log"));
    std::fs::remove_dir(&logs).unwrap();
    assert!(validated().unwrap_err().to_string().contains("which is not there"));
}
