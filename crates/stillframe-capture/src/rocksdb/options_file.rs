//! The OPTIONS file: an ini file that RocksDB writes at each open and at each change of a setting.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// The settings of one OPTIONS file, as bytes: paths need not be UTF-8.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct OptionsFile {
    sections: Vec<Section>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Section {
    /// `DBOptions`, `CFOptions`, …
    title: Vec<u8>,
    /// The column family; empty where there is none.
    family: Vec<u8>,
    settings: Vec<(Vec<u8>, Vec<u8>)>,
}

impl OptionsFile {
    /// Reads what can be read: unknown keys and malformed lines are passed over, as the engine does when asked to ignore
    /// unknown options.
    pub(crate) fn parse(bytes: &[u8]) -> Self {
        let mut sections: Vec<Section> = Vec::new();
        for line in bytes.split(|&byte| byte == b'\n') {
            match Line::parse(line) {
                Line::Section { title, family } => {
                    sections.push(Section { title: title.to_vec(), family, settings: Vec::new() });
                }
                Line::Setting { key, value } => {
                    if let Some(section) = sections.last_mut() {
                        section.settings.push((key.to_vec(), unescape(value)));
                    }
                }
                Line::Other => {}
            }
        }
        Self { sections }
    }

    fn database_setting(&self, key: &str) -> Option<&[u8]> {
        self.setting("DBOptions", key)
    }

    fn setting(&self, title: &str, key: &str) -> Option<&[u8]> {
        let mut sections = self.sections.iter().filter(|section| section.title == title.as_bytes());
        sections.find_map(|section| section.get(key))
    }

    fn database_flag(&self, key: &str) -> bool {
        self.database_setting(key).is_some_and(is_true)
    }

    fn database_path(&self, key: &str) -> Option<PathBuf> {
        let value = self.database_setting(key).filter(|value| !value.is_empty())?;
        Some(PathBuf::from(OsStr::from_bytes(value)))
    }

    /// The version that wrote the file.
    pub(crate) fn rocksdb_version(&self) -> Option<String> {
        self.setting("Version", "rocksdb_version").map(|value| String::from_utf8_lossy(value).into_owned())
    }

    /// Where logs are, if not in the database's directory. May be relative to the owner's working directory.
    pub(crate) fn wal_dir(&self) -> Option<PathBuf> {
        self.database_path("wal_dir")
    }

    /// Where the text diary is, if not in the database's directory.
    pub(crate) fn db_log_dir(&self) -> Option<PathBuf> {
        self.database_path("db_log_dir")
    }

    /// Whether log files are used again under a new name.
    pub(crate) fn recycles_logs(&self) -> bool {
        self.database_setting("recycle_log_file_num").is_some_and(|value| value != b"0" && !value.is_empty())
    }

    /// Whether writes wait in the process until the application flushes the log.
    pub(crate) fn manual_wal_flush(&self) -> bool {
        self.database_flag("manual_wal_flush")
    }

    /// Whether the application opens what it can after a crash, without logs.
    pub(crate) fn best_efforts_recovery(&self) -> bool {
        self.database_flag("best_efforts_recovery")
    }

    /// Column families whose values go straight to blob files that no MANIFEST names yet.
    pub(crate) fn blob_direct_write_families(&self) -> Vec<String> {
        let families = self.sections.iter().filter(|section| {
            section.title == b"CFOptions" && section.get("enable_blob_direct_write").is_some_and(is_true)
        });
        families.map(|section| String::from_utf8_lossy(&section.family).into_owned()).collect()
    }
}

impl Section {
    fn get(&self, key: &str) -> Option<&[u8]> {
        let mut settings = self.settings.iter().rev();
        settings.find(|(name, _)| name == key.as_bytes()).map(|(_, value)| value.as_slice())
    }
}

fn is_true(value: &[u8]) -> bool {
    value == b"true" || value == b"1"
}

enum Line<'a> {
    Section { title: &'a [u8], family: Vec<u8> },
    Setting { key: &'a [u8], value: &'a [u8] },
    Other,
}

impl<'a> Line<'a> {
    fn parse(line: &'a [u8]) -> Self {
        let line = without_comment(line).trim_ascii();
        if let Some(inside) = line.strip_prefix(b"[").and_then(|line| line.strip_suffix(b"]")) {
            let Some(quote) = inside.iter().position(|&byte| byte == b'"') else {
                return Self::Section { title: inside.trim_ascii(), family: Vec::new() };
            };
            let (title, quoted) = inside.split_at(quote);
            let family = quoted.strip_prefix(b"\"").unwrap_or(quoted);
            let family = family.strip_suffix(b"\"").unwrap_or(family);
            return Self::Section { title: title.trim_ascii(), family: unescape(family) };
        }
        match line.iter().position(|&byte| byte == b'=') {
            Some(at) => {
                let (key, value) = line.split_at(at);
                let value = value.strip_prefix(b"=").unwrap_or(value);
                Self::Setting { key: key.trim_ascii(), value: value.trim_ascii() }
            }
            None => Self::Other,
        }
    }
}

fn without_comment(line: &[u8]) -> &[u8] {
    let mut escaped = false;
    let comment = line.iter().position(|&byte| {
        let starts = byte == b'#' && !escaped;
        escaped = byte == b'\\' && !escaped;
        starts
    });
    line.get(..comment.unwrap_or(line.len())).unwrap_or(line)
}

fn unescape(value: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(value.len());
    let mut escaped = false;
    for &byte in value {
        match (escaped, byte) {
            (false, b'\\') => {
                escaped = true;
                continue;
            }
            (true, b'n') => plain.push(b'\n'),
            (true, b'r') => plain.push(b'\r'),
            (_, byte) => plain.push(byte),
        }
        escaped = false;
    }
    plain
}

fn escape(value: &[u8]) -> Vec<u8> {
    let mut escaped = Vec::with_capacity(value.len());
    for &byte in value {
        match byte {
            b'\n' => escaped.extend_from_slice(b"\\n"),
            b'\r' => escaped.extend_from_slice(b"\\r"),
            b'\\' | b'#' | b':' => escaped.extend_from_slice(&[b'\\', byte]),
            _ => escaped.push(byte),
        }
    }
    escaped
}

/// An OPTIONS file whose `wal_dir` is `wal_dir`; `None`: without that line, which means the database's own directory.
/// Everything else stays as it is, byte for byte.
///
/// Up to RocksDB 6.x the line is always there and names the directory of the live database: a copy that is opened with
/// these options would replay and delete the live logs. So an image has no such line, and a restore that puts logs into
/// a directory of their own sets it.
pub(crate) fn with_wal_dir(options: &[u8], wal_dir: Option<&Path>) -> Vec<u8> {
    let mut rewritten = Vec::with_capacity(options.len());
    let mut in_database_section = false;
    for line in options.split_inclusive(|&byte| byte == b'\n') {
        let bare = line.strip_suffix(b"\n").unwrap_or(line);
        match Line::parse(bare) {
            Line::Section { title, .. } => {
                in_database_section = title == b"DBOptions";
                rewritten.extend_from_slice(line);
                if let Some(dir) = wal_dir.filter(|_| in_database_section) {
                    if !line.ends_with(b"\n") {
                        rewritten.push(b'\n');
                    }
                    rewritten.extend_from_slice(b"  wal_dir=");
                    rewritten.extend_from_slice(&escape(dir.as_os_str().as_bytes()));
                    rewritten.push(b'\n');
                }
            }
            Line::Setting { key: b"wal_dir", .. } if in_database_section => {}
            _ => rewritten.extend_from_slice(line),
        }
    }
    rewritten
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const OPTIONS: &[u8] = b"# This is a RocksDB option file.\n\n[Version]\n  rocksdb_version=11.8.1\n  options_file_version=1.1\n\n\
[DBOptions]\n  max_open_files=-1\n  wal_dir=/data/a\\:b\\#c # a comment\n  db_log_dir=\n  recycle_log_file_num=4\n\
  manual_wal_flush=true\n\n[CFOptions \"default\"]\n  wal_dir=not this one\n  compaction_options_fifo={allow_compaction=false;age=0;}\n\
[CFOptions \"pe\\:ars\"]\n  enable_blob_direct_write=true\n  \n[TableOptions/BlockBasedTable \"default\"]\n  block_size=4096\n";

    #[test]
    fn settings_are_read_with_their_escapes() {
        let options = OptionsFile::parse(OPTIONS);
        assert_eq!(options.rocksdb_version().unwrap(), "11.8.1");
        assert_eq!(options.wal_dir().unwrap(), Path::new("/data/a:b#c"));
        assert_eq!(options.db_log_dir(), None);
        assert!(options.recycles_logs());
        assert!(options.manual_wal_flush());
        assert!(!options.best_efforts_recovery());
        assert_eq!(options.blob_direct_write_families(), ["pe:ars"]);
        let plain = OptionsFile::parse(b"[DBOptions]\n  recycle_log_file_num=0\n  wal_dir=\n");
        assert!(!plain.recycles_logs());
        assert_eq!(plain.wal_dir(), None);
    }

    #[test]
    fn only_the_line_with_the_log_directory_changes() {
        let text = String::from_utf8(OPTIONS.to_vec()).unwrap();
        let dropped = String::from_utf8(with_wal_dir(OPTIONS, None)).unwrap();
        assert_eq!(dropped, text.replace("  wal_dir=/data/a\\:b\\#c # a comment\n", ""));
        assert_eq!(OptionsFile::parse(dropped.as_bytes()).wal_dir(), None);

        let set = with_wal_dir(OPTIONS, Some(Path::new("/new/x#:\\y")));
        assert_eq!(OptionsFile::parse(&set).wal_dir().unwrap(), Path::new("/new/x#:\\y"));
        assert_eq!(with_wal_dir(&set, None), dropped.as_bytes());
    }

    proptest! {
        #[test]
        fn any_path_that_is_set_reads_back(path in "[ -~\\n\\r]{1,60}", text in "[ -~\\n]{0,80}") {
            let path = PathBuf::from(format!("/{path}/end"));
            let options = format!("[DBOptions]\n{text}\n[CFOptions \"default\"]\n");
            let set = with_wal_dir(options.as_bytes(), Some(&path));
            prop_assert_eq!(OptionsFile::parse(&set).wal_dir().unwrap(), path);
            prop_assert_eq!(OptionsFile::parse(&with_wal_dir(&set, None)).wal_dir(), None);
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = OptionsFile::parse(&bytes).wal_dir();
            let dropped = with_wal_dir(&bytes, None);
            prop_assert!(dropped.len() <= bytes.len());
        }
    }
}
