//! The meta keyspace: which keyspaces there are, and what their options say.
//!
//! It is an lsm-tree of its own, `keyspaces/0`, written by ingestion only and never journalled:
//! `'n' | u64 BE id` → name, `'c' | u64 BE id | option` → value. Opening a tree changes its folder, so it is opened in a
//! throw-away copy whose files were checked against the version file before.

use std::collections::BTreeMap;
use std::fs::{DirBuilder, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileExt};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use lsm_tree::{AbstractTree, Config, Guard, SeqNo, SequenceNumberCounter};
use tokio_util::sync::CancellationToken;
use xxhash_rust::xxh3::Xxh3;

use crate::CaptureError;
use crate::capture::check;
use crate::image::create_new;

use super::version_file::{Current, Fault, TableEntry};

/// One keyspace as the meta keyspace knows it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Keyspace {
    pub(super) name: String,
    /// Single inserts stay in the process until the program persists them.
    pub(super) manual_journal_persist: bool,
}

/// A throw-away copy of `keyspaces/0`.
#[derive(Debug)]
pub(super) struct MetaCopy {
    dir: PathBuf,
}

impl MetaCopy {
    /// Starts a copy in `dir`, which must be empty: pointer and version file.
    pub(super) fn create(dir: PathBuf, current: &Current, version: &[u8]) -> Result<Self, CaptureError> {
        let write = |name: &str, bytes: &[u8]| {
            let path = dir.join(name);
            create_new(&path)?.write_all_at(bytes, 0).map_err(CaptureError::io("write", &path))
        };
        write("current", &current.bytes)?;
        write(&current.version_file(), version)?;
        let tables = dir.join("tables");
        DirBuilder::new().mode(0o700).create(&tables).map_err(CaptureError::io("create", &tables))?;
        Ok(Self { dir })
    }

    /// Copies one table from `file` and checks it on the way. `path` is for messages.
    pub(super) fn add_table(
        &self,
        table: &TableEntry,
        file: &File,
        path: &Path,
        cancel: &CancellationToken,
    ) -> Result<(), CaptureError> {
        let place = self.dir.join("tables").join(table.id.to_string());
        let copy = create_new(&place)?;
        let checksum = copy_hashed(file, path, Some(&copy), cancel)?;
        if checksum == table.checksum { Ok(()) } else { Err(wrong_checksum(path, checksum, table.checksum)) }
    }

    /// Opens the copy and reads all names and options. `path` is the original's, for messages.
    pub(super) fn read(&self, path: &Path) -> Result<BTreeMap<u64, Keyspace>, CaptureError> {
        // Checksums fit, so the bytes are the engine's; should its reader still stumble, that is an answer and not our end.
        match catch_unwind(AssertUnwindSafe(|| read_tree(&self.dir))) {
            Ok(result) => result.map_err(|fault| fault.of(path)),
            Err(_) => Err(Fault("cannot be read by the engine's own library".to_owned()).of(path)),
        }
    }
}

fn read_tree(dir: &Path) -> Result<BTreeMap<u64, Keyspace>, Fault> {
    let failed = |error: lsm_tree::Error| Fault(format!("cannot be opened as the meta keyspace: {error}"));
    let counter = SequenceNumberCounter::default;
    let tree = Config::new(dir, counter(), counter()).open().map_err(failed)?;
    let mut keyspaces = BTreeMap::<u64, Keyspace>::new();
    for item in tree.prefix(b"n", SeqNo::MAX, None) {
        let (key, value) = item.into_inner().map_err(failed)?;
        let Some((id, b"")) = split_key(&key) else {
            return Err(Fault(format!("has a name under the key {}", key.escape_ascii())));
        };
        let Ok(name) = std::str::from_utf8(&value) else {
            return Err(Fault(format!("has a name for keyspace {id} that is not text")));
        };
        keyspaces.insert(id, Keyspace { name: name.to_owned(), manual_journal_persist: false });
    }
    for item in tree.prefix(b"c", SeqNo::MAX, None) {
        let (key, value) = item.into_inner().map_err(failed)?;
        if let Some((id, b"manual_journal_persist")) = split_key(&key)
            && let Some(keyspace) = keyspaces.get_mut(&id)
        {
            keyspace.manual_journal_persist = value.first().is_some_and(|&flag| flag != 0);
        }
    }
    Ok(keyspaces)
}

/// The id in a key, and what follows it.
fn split_key(key: &[u8]) -> Option<(u64, &[u8])> {
    let (_, rest) = key.split_first()?;
    let (id, rest) = rest.split_first_chunk::<8>()?;
    Some((u64::from_be_bytes(*id), rest))
}

/// XXH3-128 of a whole file, copied on the way if a copy is wanted.
pub(super) fn copy_hashed(
    file: &File,
    path: &Path,
    copy: Option<&File>,
    cancel: &CancellationToken,
) -> Result<u128, CaptureError> {
    let mut hash = Xxh3::new();
    let mut buffer = vec![0; 1 << 20];
    let mut at = 0;
    loop {
        check(cancel)?;
        let got = match file.read_at(&mut buffer, at) {
            Ok(0) => return Ok(hash.digest128()),
            Ok(got) => got,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(CaptureError::from_io("read", path, error)),
        };
        let part = buffer.get(..got).expect("read_at returns at most what was asked for");
        hash.update(part);
        if let Some(copy) = copy {
            copy.write_all_at(part, at).map_err(CaptureError::io("copy", path))?;
        }
        at += got as u64;
    }
}

pub(super) fn wrong_checksum(path: &Path, actual: u128, expected: u128) -> CaptureError {
    Fault(format!("has checksum {actual:032x}, but its version file says {expected:032x}")).of(path)
}
