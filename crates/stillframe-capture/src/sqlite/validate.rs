//! Checks an image as it lies.

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use rusqlite::{Connection, OpenFlags};

use crate::{CaptureError, ValidationReport};

use super::error::failed;
use super::header::Header;
use super::{beside, recognise};

/// Checks a database file, or every database in a directory, with SQLite's own `quick_check`. Nothing is written.
pub(crate) fn validate(path: &Path) -> Result<ValidationReport, CaptureError> {
    let mut report = ValidationReport::default();
    let meta = std::fs::metadata(path).map_err(CaptureError::io("open", path))?;
    if !meta.is_dir() {
        check(path, meta.len(), &mut report)?;
        return Ok(report);
    }
    for entry in std::fs::read_dir(path).map_err(CaptureError::io("list", path))? {
        let entry = entry.map_err(CaptureError::io("list", path))?;
        let file = entry.path();
        let meta = std::fs::metadata(&file).map_err(CaptureError::io("read", &file))?;
        if meta.is_file() && (recognise(&file)? || meta.len() == 0 && !is_beside(&file)) {
            check(&file, meta.len(), &mut report)?;
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

fn check(path: &Path, length: u64, report: &mut ValidationReport) -> Result<(), CaptureError> {
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
    let connection = Connection::open_with_flags(immutable_uri(path)?, flags).map_err(failed(path))?;
    let mut statement = connection.prepare("PRAGMA quick_check(10)").map_err(failed(path))?;
    let rows = statement.query_map([], |row| row.get::<_, String>(0)).map_err(failed(path))?;
    let mut findings = Vec::new();
    for row in rows {
        findings.push(row.map_err(failed(path))?);
    }
    if findings == ["ok"] {
        return Ok(());
    }
    Err(corrupt(path, format!("quick_check says: {}", findings.join("; "))))
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
