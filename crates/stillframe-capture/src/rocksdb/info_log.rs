//! The head of `LOG`, RocksDB's diary: the only file that says where `db_paths` are (`db/db_info_dumper.cc`).

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// How much of the diary is read: what is looked for stands in its first lines, written at each open.
pub(crate) const HEAD: usize = 64 * 1024;

/// What the last open wrote down.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct InfoLogHead {
    /// `db_paths` in order. May be relative to the owner's working directory.
    pub(crate) db_paths: Vec<PathBuf>,
    /// Where logs were.
    pub(crate) wal_dir: Option<PathBuf>,
}

impl InfoLogHead {
    /// Reads the first bytes of a diary.
    pub(crate) fn parse(head: &[u8]) -> Self {
        let mut found = Self::default();
        let mut unreadable_after_last_path = None;
        for line in head.split(|&byte| byte == b'\n') {
            if let Some(path) = between(line, b" SST files in ", b" dir, Total Num: ") {
                found.db_paths.extend(unreadable_after_last_path.take());
                found.db_paths.push(path);
            } else if let Some(path) = between(line, b" Error when reading ", b" dir") {
                // Paths first, then the log directory: which of them this is shows with what follows.
                found.db_paths.extend(unreadable_after_last_path.replace(path));
            } else if let Some(path) = after(line, b" Write Ahead Log file in ") {
                found.db_paths.extend(unreadable_after_last_path.take());
                let end = find(path, b": ").unwrap_or(path.len());
                found.wal_dir = path.get(..end).and_then(to_path);
            } else if let Some(path) = after(line, b" Options.wal_dir: ") {
                found.wal_dir = to_path(path).or(found.wal_dir);
                break;
            }
        }
        if found.wal_dir.is_none() || found.wal_dir != unreadable_after_last_path {
            found.db_paths.extend(unreadable_after_last_path);
        }
        found
    }
}

/// The name of the diary of the database at `dir` inside a `db_log_dir` (`InfoLogPrefix` in `file/filename.cc`).
pub(crate) fn name_in_log_dir(dir: &Path) -> String {
    let mut name = String::new();
    for &byte in dir.as_os_str().as_bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_') {
            name.push(char::from(byte));
        } else if byte == b'/' && !name.is_empty() {
            name.push('_');
        }
    }
    name.push_str("_LOG");
    name
}

/// `None`: empty.
fn to_path(bytes: &[u8]) -> Option<PathBuf> {
    (!bytes.is_empty()).then(|| PathBuf::from(OsStr::from_bytes(bytes)))
}

fn after<'a>(line: &'a [u8], before: &[u8]) -> Option<&'a [u8]> {
    line.get(find(line, before)? + before.len()..)
}

/// What stands between the first `before` and the last `behind` of a line.
fn between(line: &[u8], before: &[u8], behind: &[u8]) -> Option<PathBuf> {
    let line = after(line, before)?;
    let end = line.windows(behind.len()).rposition(|window| window == behind)?;
    line.get(..end).and_then(to_path)
}

fn find(line: &[u8], pattern: &[u8]) -> Option<usize> {
    line.windows(pattern.len()).position(|window| window == pattern)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn paths_are_read_in_order_and_told_from_the_log_directory() {
        let head = "2026/11/21-04:52:30.409771 19381 DB SUMMARY\n\
2026/11/21-04:52:30.409778 19381 SST files in /data/fast dir, Total Num: 2, files: 000012.sst 000013.sst \n\
2026/11/21-04:52:30.409778 19381 [ERROR] Error when reading /data/missing dir NotFound: \n\
2026/11/21-04:52:30.409778 19381 SST files in /data/a dir, b dir, Total Num: 0, files: \n\
2026/11/21-04:52:30.409782 19381 Write Ahead Log file in /data/w: 000004.log size: 65565 ; \n\
2026/11/21-04:52:30.409784 19381                         Options.error_if_exists: 0\n\
2026/11/21-04:52:30.409805 19381                                 Options.wal_dir: /data/w\n";
        let found = InfoLogHead::parse(head.as_bytes());
        assert_eq!(
            found.db_paths,
            [Path::new("/data/fast"), Path::new("/data/missing"), Path::new("/data/a dir, b")]
        );
        assert_eq!(found.wal_dir.unwrap(), Path::new("/data/w"));
    }

    #[test]
    fn a_log_directory_that_could_not_be_read_is_no_path() {
        let head = "x 1 SST files in /data/s dir, Total Num: 0, files: \n\
x 1 [ERROR] Error when reading /data/w dir NotFound: \n\
x 1   Options.wal_dir: /data/w\nx 1 SST files in /later dir, Total Num: 0, files: \n";
        let found = InfoLogHead::parse(head.as_bytes());
        assert_eq!(found.db_paths, [Path::new("/data/s")]);
        assert_eq!(found.wal_dir.unwrap(), Path::new("/data/w"));
        let empty =
            InfoLogHead::parse(b"x 1 SST files in /s dir, Total Num: 0, files: \nx Options.wal_dir: \n");
        assert_eq!(empty.wal_dir, None);
    }

    #[test]
    fn the_diary_elsewhere_is_named_after_the_path() {
        assert_eq!(name_in_log_dir(Path::new("/var/lib/no de/db-1")), "var_lib_node_db-1_LOG");
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = InfoLogHead::parse(&bytes);
        }
    }
}
