//! Captures of databases of another user, whose files can be read but not linked.

use std::cell::Cell;
use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;

use super::capture_with;
use super::sabotage::Sabotage;
use super::test_database::TestDatabase;
use crate::rocksdb::table_identity::writer::opaque_table;
use crate::test_support::{NOBODY, Surroundings, again, child_argument, is_root};
use crate::{CaptureError, CaptureOptions, Context, Engine, Event, Image, Source};

/// Captures the database in `dir`. The engine deletes a table slowly meanwhile: our input is the table, open for writing.
fn capture_while_a_table_is_cut(dir: &Path) -> Result<Image, CaptureError> {
    let options = CaptureOptions { staging: Some(dir.join("staging")), ..CaptureOptions::default() };
    let source = Source { engine: Engine::RocksDb, path: dir.join("db") };
    let table = File::from(std::io::stdin().as_fd().try_clone_to_owned().unwrap());
    let is_cut = Cell::new(false);
    let captured = Surroundings::default().with(|context| {
        let events = |event| {
            if matches!(event, Event::Copied { .. }) && !is_cut.replace(true) {
                table.set_len(699).unwrap();
            }
        };
        capture_with(&source, &options, &Context { events: &events, ..*context }, Sabotage::None)
    });
    assert!(is_cut.get(), "nothing was tested");
    captured
}

/// Unlike a link, a handle is no reason for the engine to leave a file whole until it is gone.
#[test]
fn a_table_that_is_cut_while_it_is_held_by_a_handle_is_named() {
    if let Some(dir) = child_argument() {
        let error = capture_while_a_table_is_cut(&dir).map(|_| ()).unwrap_err().to_string();
        let what = "000012.sst is damaged: it has 699 bytes where its MANIFEST says 700";
        assert!(error.contains(what), "{error}");
        return;
    }
    let mut database = TestDatabase::new();
    database.edit(|e| {
        // With a unique id, the table itself is not read for its identity, where it would be found short as well.
        e.table_4(0, 12, 700, &[(12, &[12; 16])]);
    });
    database.write("000012.sst", &opaque_table(12, 700));
    let mode = |path: &Path, mode| std::fs::set_permissions(path, PermissionsExt::from_mode(mode)).unwrap();
    mode(database.root.path(), 0o755);
    mode(&database.dir(), 0o755);
    mode(&database.beside("staging"), 0o777);
    let table = File::options().write(true).open(database.dir().join("000012.sst")).unwrap();
    let test = "rocksdb::foreign_tests::a_table_that_is_cut_while_it_is_held_by_a_handle_is_named";
    let mut child = again(test, database.root.path());
    if is_root() {
        child.uid(NOBODY).gid(NOBODY);
    }
    let output = child.stdin(table).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.contains("1 passed"), "{said}");
}

/// Where links are refused each table is an open file, and there may be more of them than descriptors.
#[test]
fn more_tables_than_descriptors_are_an_error_that_says_so_and_leave_nothing() {
    if let Some(dir) = child_argument() {
        use rustix::process::{Resource, Rlimit, setrlimit};
        let few = Some(60);
        setrlimit(Resource::Nofile, Rlimit { current: few, maximum: few }).unwrap();
        let options = CaptureOptions { staging: Some(dir.join("staging")), ..CaptureOptions::default() };
        let source = Source { engine: Engine::RocksDb, path: dir.join("db") };
        let captured =
            Surroundings::default().with(|context| capture_with(&source, &options, context, Sabotage::None));
        // Only another user is refused links, and only where the kernel protects them.
        let protected = std::fs::read_to_string("/proc/sys/fs/protected_hardlinks").unwrap_or_default();
        if rustix::process::geteuid().as_raw() == NOBODY && protected.trim() == "1" {
            let error = captured.map(|_| ()).unwrap_err().to_string();
            assert!(error.contains("descriptors") || error.contains("open files"), "{error}");
        } else {
            drop(captured.unwrap());
        }
        assert_eq!(std::fs::read_dir(dir.join("staging")).unwrap().count(), 0, "something was left behind");
        return;
    }
    let mut database = TestDatabase::new();
    database.edit(|e| {
        for number in 20..120_u8 {
            e.table_4(0, number.into(), 700, &[(12, &[number; 16])]);
        }
    });
    for number in 20..120_u8 {
        database.write(&format!("{number:06}.sst"), &opaque_table(number, 700));
    }
    let mode = |path: &Path, mode| std::fs::set_permissions(path, PermissionsExt::from_mode(mode)).unwrap();
    mode(database.root.path(), 0o755);
    mode(&database.dir(), 0o755);
    mode(&database.beside("staging"), 0o777);
    let test =
        "rocksdb::foreign_tests::more_tables_than_descriptors_are_an_error_that_says_so_and_leave_nothing";
    let mut child = again(test, database.root.path());
    if is_root() {
        child.uid(NOBODY).gid(NOBODY);
    }
    let output = child.output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.contains("1 passed"), "{said}");
}
