//! Checks an image as it lies.

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use rusqlite::{Connection, OpenFlags};
use tokio_util::sync::CancellationToken;

use crate::capture::check;
use crate::{CaptureError, ValidationReport};

use super::error::failed;
use super::header::Header;
use super::{beside, recognise};

/// SQLite asks whether to go on each time it has done this many steps: some milliseconds.
const STEPS: i32 = 10_000;
/// No application has more of its own.
const MAX_COLLATIONS: usize = 100;

/// Checks a database file, or every database in a directory, with SQLite's own `integrity_check`, which
/// reads every page and compares indexes with their tables. Nothing is written.
pub(crate) fn validate(path: &Path, cancel: &CancellationToken) -> Result<ValidationReport, CaptureError> {
    let mut report = ValidationReport::default();
    let meta = std::fs::metadata(path).map_err(CaptureError::io("open", path))?;
    if !meta.is_dir() {
        check_file(path, meta.len(), &mut report, cancel)?;
        return Ok(report);
    }
    for entry in std::fs::read_dir(path).map_err(CaptureError::io("list", path))? {
        let entry = entry.map_err(CaptureError::io("list", path))?;
        let file = entry.path();
        // What is no file is no database: an editor's lock is a link that leads nowhere.
        let Ok(meta) = std::fs::metadata(&file) else { continue };
        if meta.is_file() && (recognise(&file)? || meta.len() == 0 && !is_beside(&file)) {
            check_file(&file, meta.len(), &mut report, cancel)?;
        }
    }
    if report.files == 0 {
        return Err(CaptureError::NotADatabase {
            path: path.to_owned(),
            engine: "sqlite",
            reason: "it holds no database file".to_owned(),
        });
    }
    Ok(report)
}

fn is_beside(path: &Path) -> bool {
    let name = path.as_os_str().as_bytes();
    ["-wal", "-shm", "-journal", ".lock"].iter().any(|suffix| name.ends_with(suffix.as_bytes()))
}

fn check_file(
    path: &Path,
    length: u64,
    report: &mut ValidationReport,
    cancel: &CancellationToken,
) -> Result<(), CaptureError> {
    for suffix in ["-wal", "-journal"] {
        let file = beside(path, suffix);
        if std::fs::metadata(&file).is_ok_and(|meta| meta.len() > 0) {
            return Err(CaptureError::Refused {
                path: file,
                what: "it belongs to a database that is open or was not closed; an image has none".to_owned(),
            });
        }
    }
    report.files += 1;
    report.bytes += length;
    if length == 0 {
        report.remarks.push(format!("{} is an empty database", path.display()));
        return Ok(());
    }
    let header = Header::read(path)?.map_err(|reason| CaptureError::NotADatabase {
        path: path.to_owned(),
        engine: "sqlite",
        reason,
    })?;
    let least = u64::from(header.page_size) * u64::from(header.pages.unwrap_or(1));
    if length < least {
        return Err(corrupt(path, format!("it has {length} bytes and should have {least}")));
    }
    let flags =
        OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX | OpenFlags::SQLITE_OPEN_URI;
    // Immutable: no locks, no log, nothing made beside it. Right for an image and for nothing else.
    let mut connection = Connection::open_with_flags(immutable_uri(path)?, flags).map_err(failed(path))?;
    let asked = cancel.clone();
    connection.progress_handler(STEPS, Some(move || asked.is_cancelled())).map_err(failed(path))?;
    let interrupted = |error| check(cancel).err().unwrap_or_else(|| failed(path)(error));
    let (pragma, findings) = match ask(&connection, "integrity_check") {
        Ok(findings) => ("integrity_check", findings),
        Err(error) => {
            // What only the application can compare or compute is not compared here; all else can be checked.
            let lacking = of_the_application(&error).ok_or_else(|| interrupted(error))?;
            report.remarks.push(format!(
                "{}: its indexes were not compared with their tables, since only its application has what that takes ({lacking}); \
                 `PRAGMA integrity_check` there does it",
                path.display()
            ));
            ("quick_check", ask_with_stand_ins(&connection).map_err(interrupted)?)
        }
    };
    if findings == ["ok"] {
        return Ok(());
    }
    Err(corrupt(path, format!("{pragma} says: {}", findings.join("; "))))
}

/// The first lines of what a check says.
fn ask(connection: &Connection, pragma: &str) -> rusqlite::Result<Vec<String>> {
    let mut statement = connection.prepare(&format!("PRAGMA {pragma}(10)"))?;
    let rows = statement.query_map([], |row| row.get::<_, String>(0))?;
    rows.map(|row| Ok(row?.replace('\n', "; "))).collect()
}

const NO_COLLATION: &str = "no such collation sequence: ";

/// Whether SQLite lacks a collation, function or module that the application registers before it uses its database.
fn of_the_application(error: &rusqlite::Error) -> Option<String> {
    let text = error.to_string();
    let lacking = [NO_COLLATION, "unknown function", "no such function", "no such module"];
    lacking.iter().any(|lacking| text.contains(lacking)).then_some(text)
}

/// `quick_check` compares no keys, and asks for their collations all the same.
fn ask_with_stand_ins(connection: &Connection) -> rusqlite::Result<Vec<String>> {
    for _ in 0..MAX_COLLATIONS {
        let error = match ask(connection, "quick_check") {
            Err(error) => error,
            findings => return findings,
        };
        let text = error.to_string();
        let Some((_, name)) = text.split_once(NO_COLLATION) else { return Err(error) };
        connection.create_collation(name, str::cmp)?;
    }
    ask(connection, "quick_check")
}

fn corrupt(path: &Path, what: String) -> CaptureError {
    CaptureError::Corrupt { path: path.to_owned(), what }
}

/// `file:` with everything escaped that a URI could take for its own.
fn immutable_uri(path: &Path) -> Result<PathBuf, CaptureError> {
    let path = std::path::absolute(path).map_err(CaptureError::io("open", path))?;
    let mut uri = b"file://".to_vec();
    for &byte in path.as_os_str().as_bytes() {
        if byte.is_ascii_alphanumeric() || b"/-_.~".contains(&byte) {
            uri.push(byte);
        } else {
            uri.extend(format!("%{byte:02X}").into_bytes());
        }
    }
    uri.extend(b"?immutable=1");
    Ok(PathBuf::from(OsString::from_vec(uri)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_index_that_does_not_fit_its_table_is_damage() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("db");
        let connection = Connection::open(&path).unwrap();
        connection
            .execute_batch("CREATE TABLE t(a); CREATE INDEX i ON t(a); INSERT INTO t VALUES (1)")
            .unwrap();
        validate(&path, &CancellationToken::new()).unwrap();
        // Behind the back of the index.
        connection
            .execute_batch(
                "PRAGMA writable_schema = ON; CREATE TABLE kept AS SELECT * FROM sqlite_schema WHERE name = 'i';
                 DELETE FROM sqlite_schema WHERE name = 'i'; PRAGMA writable_schema = RESET",
            )
            .unwrap();
        connection
            .execute_batch(
                "INSERT INTO t VALUES (2); PRAGMA writable_schema = ON; INSERT INTO sqlite_schema SELECT * FROM kept",
            )
            .unwrap();
        connection.close().unwrap();
        match validate(&path, &CancellationToken::new()) {
            Err(CaptureError::Corrupt { what, .. }) => {
                assert!(what.contains("missing from index i"), "{what}");
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn what_only_the_application_can_compare_is_told_and_all_else_is_checked() {
        let dir = tempfile::tempdir().unwrap();
        for (name, setup, known, unknown) in [
            (
                "collation",
                "CREATE TABLE t(a TEXT COLLATE NOCASE PRIMARY KEY, b); INSERT INTO t VALUES ('x', 1), ('y', 2)",
                "NOCASE",
                "mine",
            ),
            (
                "function",
                "CREATE TABLE t(a); CREATE INDEX i ON t(abs(a)); INSERT INTO t VALUES (1), (2)",
                "abs",
                "mine",
            ),
        ] {
            let path = dir.path().join(name);
            let connection = Connection::open(&path).unwrap();
            connection.execute_batch(setup).unwrap();
            // As if an application had registered something of its own.
            let rename = format!(
                "PRAGMA writable_schema = ON; UPDATE sqlite_schema SET sql = replace(sql, '{known}', '{unknown}')"
            );
            connection.execute_batch(&rename).unwrap();
            connection.close().unwrap();
            let report = validate(&path, &CancellationToken::new()).unwrap();
            assert!(report.remarks[0].contains("only its application has"), "{report:?}");
            // A page of another table's kind in the place of the root.
            let mut bytes = std::fs::read(&path).unwrap();
            let page = bytes.len() / 2 / 4096 * 4096;
            bytes[page..page + 8].fill(0xAB);
            std::fs::write(&path, bytes).unwrap();
            assert!(validate(&path, &CancellationToken::new()).is_err(), "{name}");
        }
    }

    #[test]
    fn what_leads_nowhere_is_no_database() {
        let dir = tempfile::tempdir().unwrap();
        let connection = Connection::open(dir.path().join("db")).unwrap();
        connection.execute_batch("CREATE TABLE t(a)").unwrap();
        connection.close().unwrap();
        std::os::unix::fs::symlink("nowhere", dir.path().join(".#db")).unwrap();
        assert_eq!(validate(dir.path(), &CancellationToken::new()).unwrap().files, 1);
    }

    #[test]
    fn it_ends_in_the_middle_of_a_database_when_it_is_cancelled() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("db");
        let connection = Connection::open(&path).unwrap();
        let rows = "WITH RECURSIVE n(i) AS (VALUES (1) UNION ALL SELECT i + 1 FROM n WHERE i < 20000)
            INSERT INTO t SELECT i, hex(randomblob(50)) FROM n";
        connection.execute_batch(&format!("CREATE TABLE t(a INTEGER PRIMARY KEY, b); {rows}")).unwrap();
        connection.close().unwrap();
        let cancel = CancellationToken::new();
        validate(&path, &cancel).unwrap();
        cancel.cancel();
        let outcome = validate(&path, &cancel);
        assert!(matches!(outcome, Err(CaptureError::Cancelled)), "{outcome:?}");
    }
}
