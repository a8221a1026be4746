//! What a writer was told, written so that the writer's death cannot take it back.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::splitmix::mix_all;

/// A record: magic u32, kind u32, sequence u64, hash u64, checksum u64, little endian. A power of two, so that none spans two pages
/// and a kill can hardly tear one; should it, the checksum says so.
const RECORD: usize = 32;
const MAGIC: u32 = 0x3147_4c53;
const BEGUN: u32 = 1;
const ACKED: u32 = 2;
/// How much [`Marks::read`] reads at first.
const TAIL: u64 = 4096;

/// One line of a ledger.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Entry {
    /// The transaction is about to be committed: from here on it may be in a copy.
    Begun {
        /// Its number.
        sequence: u64,
        /// The hash of what it writes.
        hash: u64,
    },
    /// The commit returned: from here on it must be in a copy.
    Acked {
        /// Its number.
        sequence: u64,
        /// The hash of what it wrote.
        hash: u64,
    },
}

/// Why a ledger cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    /// The file system refused.
    #[error("{path}: {source}")]
    Io {
        /// The ledger.
        path: PathBuf,
        /// What it said.
        source: io::Error,
    },
    /// A record before the end is not one: something else wrote here.
    #[error("{path}: the record at byte {offset} is damaged, and it is not the last one")]
    Damaged {
        /// The ledger.
        path: PathBuf,
        /// Where.
        offset: u64,
    },
}

/// The writing end. Every entry is one `write(2)` without a buffer in the process: what was written is in the page cache and
/// outlives kill -9 (not a power loss).
#[derive(Debug)]
pub struct LedgerWriter {
    file: File,
    path: PathBuf,
}

impl LedgerWriter {
    /// Opens or makes it. The torn last record of a killed writer is cut off.
    pub fn open(path: &Path) -> Result<Self, LedgerError> {
        let io_error = |source| LedgerError::Io { path: path.to_owned(), source };
        let file = OpenOptions::new().read(true).append(true).create(true).open(path).map_err(io_error)?;
        let bytes = std::fs::read(path).map_err(io_error)?;
        let (_, whole) =
            parse(&bytes, 0).map_err(|offset| LedgerError::Damaged { path: path.to_owned(), offset })?;
        if whole < bytes.len() {
            file.set_len(whole as u64).map_err(io_error)?;
        }
        Ok(Self { file, path: path.to_owned() })
    }

    /// To be called before the commit.
    pub fn begun(&mut self, sequence: u64, hash: u64) -> Result<(), LedgerError> {
        self.append(Entry::Begun { sequence, hash })
    }

    /// To be called after the commit returned.
    pub fn acked(&mut self, sequence: u64, hash: u64) -> Result<(), LedgerError> {
        self.append(Entry::Acked { sequence, hash })
    }

    fn append(&mut self, entry: Entry) -> Result<(), LedgerError> {
        let record = encode(entry);
        self.file.write_all(&record).map_err(|source| LedgerError::Io { path: self.path.clone(), source })
    }
}

/// How far a writer was at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Marks {
    /// The highest transaction that was begun; 0 before the first.
    pub begun: u64,
    /// The highest transaction that was acknowledged; 0 before the first.
    pub acked: u64,
    /// The hash that was acknowledged with it.
    pub acked_hash: u64,
}

impl Marks {
    /// Reads the ledger's end while its writer may be writing. Numbers ascend in it, so the end holds the highest ones.
    /// A ledger that is not there yet reads as empty.
    pub fn read(path: &Path) -> Result<Self, LedgerError> {
        let io_error = |source| LedgerError::Io { path: path.to_owned(), source };
        let mut file = match File::open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self::default()),
            file => file.map_err(io_error)?,
        };
        let length = file.metadata().map_err(io_error)?.len();
        for wanted in [TAIL, length] {
            let from = length.saturating_sub(wanted).next_multiple_of(RECORD as u64).min(length);
            file.seek(SeekFrom::Start(from)).map_err(io_error)?;
            let mut bytes = Vec::new();
            (&mut file).take(length - from).read_to_end(&mut bytes).map_err(io_error)?;
            let damaged = |offset| LedgerError::Damaged { path: path.to_owned(), offset };
            let (entries, _) = parse(&bytes, from).map_err(damaged)?;
            let marks = Self::of(&entries);
            if from == 0 || (marks.begun > 0 && marks.acked > 0) {
                return Ok(marks);
            }
        }
        Ok(Self::default())
    }

    fn of(entries: &[Entry]) -> Self {
        entries.iter().fold(Self::default(), |marks, entry| match *entry {
            Entry::Begun { sequence, .. } => Self { begun: marks.begun.max(sequence), ..marks },
            Entry::Acked { sequence, hash } if sequence >= marks.acked => {
                Self { acked: sequence, acked_hash: hash, ..marks }
            }
            Entry::Acked { .. } => marks,
        })
    }
}

impl Entry {
    /// All entries of a ledger in order; a torn last record is left out.
    pub fn read_all(path: &Path) -> Result<Vec<Self>, LedgerError> {
        let bytes =
            std::fs::read(path).map_err(|source| LedgerError::Io { path: path.to_owned(), source })?;
        let (entries, _) =
            parse(&bytes, 0).map_err(|offset| LedgerError::Damaged { path: path.to_owned(), offset })?;
        Ok(entries)
    }
}

fn encode(entry: Entry) -> [u8; RECORD] {
    let (kind, sequence, hash) = match entry {
        Entry::Begun { sequence, hash } => (BEGUN, sequence, hash),
        Entry::Acked { sequence, hash } => (ACKED, sequence, hash),
    };
    let mut record = [0; RECORD];
    record[..4].copy_from_slice(&MAGIC.to_le_bytes());
    record[4..8].copy_from_slice(&kind.to_le_bytes());
    record[8..16].copy_from_slice(&sequence.to_le_bytes());
    record[16..24].copy_from_slice(&hash.to_le_bytes());
    record[24..].copy_from_slice(&checksum(kind, sequence, hash).to_le_bytes());
    record
}

fn checksum(kind: u32, sequence: u64, hash: u64) -> u64 {
    mix_all(&[u64::from(MAGIC), u64::from(kind), sequence, hash])
}

fn decode(record: &[u8]) -> Option<Entry> {
    let word = |at: usize| Some(u64::from_le_bytes(record.get(at..at + 8)?.try_into().ok()?));
    let half = |at: usize| Some(u32::from_le_bytes(record.get(at..at + 4)?.try_into().ok()?));
    let (magic, kind) = (half(0)?, half(4)?);
    let (sequence, hash) = (word(8)?, word(16)?);
    if magic != MAGIC || word(24)? != checksum(kind, sequence, hash) {
        return None;
    }
    match kind {
        BEGUN => Some(Entry::Begun { sequence, hash }),
        ACKED => Some(Entry::Acked { sequence, hash }),
        _ => None,
    }
}

/// The entries and the length of the whole ones, or where damage is. Only the last record may be less than whole.
fn parse(bytes: &[u8], base: u64) -> Result<(Vec<Entry>, usize), u64> {
    let mut entries = Vec::with_capacity(bytes.len() / RECORD);
    let mut records = bytes.chunks(RECORD).peekable();
    let mut whole = 0;
    while let Some(record) = records.next() {
        match decode(record) {
            Some(entry) => entries.push(entry),
            None if records.peek().is_none() => break,
            None => return Err(base + whole as u64),
        }
        whole += RECORD;
    }
    Ok((entries, whole))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn written(path: &Path, count: u64) {
        let mut ledger = LedgerWriter::open(path).unwrap();
        for n in 1..=count {
            ledger.begun(n, n * 7).unwrap();
            ledger.acked(n, n * 7).unwrap();
        }
    }

    #[test]
    fn a_ledger_torn_at_any_byte_gives_the_marks_of_its_whole_records_and_can_be_continued() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ledger");
        written(&path, 3);
        let bytes = std::fs::read(&path).unwrap();
        for cut in 0..=bytes.len() {
            std::fs::write(&path, &bytes[..cut]).unwrap();
            let whole = (cut / RECORD) as u64;
            let expected = Marks { begun: whole.div_ceil(2), acked: whole / 2, acked_hash: whole / 2 * 7 };
            assert_eq!(Marks::read(&path).unwrap(), expected, "cut at {cut}");
            LedgerWriter::open(&path).unwrap().begun(9, 1).unwrap();
            assert_eq!(Marks::read(&path).unwrap().begun, 9);
            assert_eq!(Entry::read_all(&path).unwrap().len() as u64, whole + 1);
        }
    }

    #[test]
    fn damage_before_the_end_is_named_and_damage_at_the_end_is_a_torn_tail() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ledger");
        written(&path, 3);
        let bytes = std::fs::read(&path).unwrap();
        for at in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[at] ^= 1;
            std::fs::write(&path, &damaged).unwrap();
            if at < bytes.len() - RECORD {
                let error = Marks::read(&path).unwrap_err();
                assert!(
                    matches!(error, LedgerError::Damaged { offset, .. } if offset == (at / RECORD * RECORD) as u64)
                );
            } else {
                assert_eq!(Marks::read(&path).unwrap(), Marks { begun: 3, acked: 2, acked_hash: 14 });
            }
        }
    }

    #[test]
    fn marks_of_a_long_ledger_are_found_even_when_its_tail_lacks_one_kind() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ledger");
        assert_eq!(Marks::read(&path).unwrap(), Marks::default());
        written(&path, 1000);
        assert_eq!(Marks::read(&path).unwrap(), Marks { begun: 1000, acked: 1000, acked_hash: 7000 });
        let mut ledger = LedgerWriter::open(&path).unwrap();
        for n in 1001..=2000 {
            ledger.begun(n, 0).unwrap();
        }
        assert_eq!(Marks::read(&path).unwrap(), Marks { begun: 2000, acked: 1000, acked_hash: 7000 });
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = parse(&bytes, 0);
        }
    }
}
