//! Logs with a bit or more that is not what was written, in databases that write logs over older ones.
//!
//! An engine that found an older log to end at the damage would replay the next one over the gap. In the image it must meet what it would
//! have met in the source, where it looks whether the next log goes on where this one ends.

use super::log_format::writer::append;
use super::test_database::TestDatabase;

/// Log 20 in a file whose tail is an older log's, and a younger one with records. Returns where 20's last record begins and ends.
fn two_logs(database: &TestDatabase, first: usize) -> (usize, usize) {
    database.write("OPTIONS-000009", b"[DBOptions]\n  recycle_log_file_num=4\n");
    let mut old = Vec::new();
    (0..20).for_each(|_| append(&mut old, &[0; 5000], Some(4)));
    let mut log = Vec::new();
    append(&mut log, &vec![9; first], Some(20));
    (0..6).for_each(|n| append(&mut log, &[n; 900], Some(20)));
    let begin = log.len();
    // Where the block has no room for a header, padding comes first.
    let padding = Some(32_768 - begin % 32_768).filter(|&left| left < 11).unwrap_or(0);
    append(&mut log, &[7; 900], Some(20));
    let end = log.len();
    log.extend_from_slice(&old[end..]);
    database.write("000020.log", &log);
    database.write_log("000021.log", Some(21), 3);
    (begin + padding, end)
}

/// What the image has of a log, and whether damage was told.
fn captured(database: &TestDatabase, name: &str) -> (Vec<u8>, bool) {
    let image = database.capture().unwrap();
    let told = image.snapshot().weakening.iter().any(|weak| weak.setting.ends_with(name));
    let target = database.root.path().join("image");
    let _ = std::fs::remove_dir_all(&target);
    database.surroundings.with(|context| image.keep(&target, context)).unwrap();
    (std::fs::read(target.join(name)).unwrap(), told)
}

#[test]
fn a_damaged_last_record_of_an_older_log_stays_where_it_was_in_the_log() {
    // Behind the six records of 911 bytes so much of the block is left: 0 to 14 bytes, of which up to ten are padding.
    for left in 0..15 {
        let first = 32_768 - 11 - 6 * 911 - left;
        for bit in [0, 4, 5, 6, 7, 10, 11, 500] {
            let database = TestDatabase::new();
            let (begin, end) = two_logs(&database, first);
            let mut log = database.read("000020.log");
            log[begin + bit] ^= 0x20;
            database.write("000020.log", &log);
            let (copy, told) = captured(&database, "000020.log");
            let what = format!("{left} bytes left, byte {bit}");
            assert!(
                log.starts_with(&copy) && copy.len() >= end.min(begin + 11) && told,
                "{what}: {} of {end}",
                copy.len()
            );
        }
    }
}

#[test]
fn of_the_newest_log_the_damaged_record_goes() {
    let database = TestDatabase::new();
    let (begin, _) = two_logs(&database, 1000);
    database.remove("000021.log");
    let mut log = database.read("000020.log");
    log[begin + 100] ^= 1;
    database.write("000020.log", &log);
    assert_eq!(captured(&database, "000020.log"), (log[..begin].to_vec(), false));
}

#[test]
fn an_older_log_that_was_cut_in_its_last_record_does_not_look_as_if_it_ended_there() {
    for kept in [1, 7, 8, 10, 11, 100] {
        let database = TestDatabase::new();
        let (begin, _) = two_logs(&database, 1000);
        let mut log = database.read("000020.log");
        log.truncate(begin + kept);
        database.write("000020.log", &log);
        // Of seven bytes nobody can say whose they are.
        assert_eq!(captured(&database, "000020.log"), (log, kept > 7), "{kept} bytes of the record");
    }
}

/// The file ends where the older log ended, in whose place this one was written.
#[test]
fn some_bytes_that_an_older_and_longer_log_left_are_no_damage() {
    for longer in 1..11 {
        let database = TestDatabase::new();
        let (_, end) = two_logs(&database, 1000);
        let mut log = database.read("000020.log");
        log.truncate(end);
        log.extend([0x5a, 3, 0xc0, 7, 1, 2, 5, 4, 0, 0].iter().take(longer));
        database.write("000020.log", &log);
        assert_eq!(captured(&database, "000020.log"), (log, false), "{longer} bytes");
    }
}

#[test]
fn an_older_log_of_which_nothing_can_be_read_is_kept_whole() {
    for number in [None, Some(20)] {
        for at in [0, 6, 40] {
            let database = TestDatabase::new();
            two_logs(&database, 1000);
            let mut log = Vec::new();
            append(&mut log, &vec![1; 70_000], number);
            log[at] ^= 0x40;
            database.write("000020.log", &log);
            assert_eq!(captured(&database, "000020.log"), (log, true), "{number:?} {at}");
        }
    }
    // Unless the file still holds nothing but the older log.
    let database = TestDatabase::new();
    two_logs(&database, 1000);
    database.write_log("000020.log", Some(4), 3);
    assert_eq!(captured(&database, "000020.log"), (Vec::new(), false));
}
