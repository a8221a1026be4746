//! The write-ahead log of a database, read from outside while a read transaction keeps it in place.
//!
//! Whoever holds a read transaction on a WAL database keeps checkpoints from copying anything newer than its snapshot into the
//! database file, and the log from being overwritten from its beginning as long as it has anything that the file has not. So the
//! bytes of the file, with the newest version of each page from the log put over them, are the database as it was at
//! the log's commit up to which one reads, if that is the snapshot's or a later one. A page that a checkpoint is writing at this
//! moment is in that log, too.
//!
//! Which commits are published, only the index (`-shm`) knows: a writer that was killed may have left whole commits in the
//! log that nobody saw, and the next writer overwrites them. So the end is taken from the index, never guessed from the log.
//!
//! Formats: <https://www.sqlite.org/fileformat2.html#walformat>, numbers big endian, and
//! <https://www.sqlite.org/walformat.html#the_wal_index_file_format>, numbers as the machine has them.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::CaptureError;

const HEADER_LEN: usize = 32;
const FRAME_HEADER_LEN: usize = 24;
const MAGIC: u32 = 0x377f_0682;
const VERSION: u32 = 3_007_000;

/// The first bytes of a log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Header {
    /// Of the words that checksums are made of.
    big_endian: bool,
    page_size: u32,
    /// Changed whenever the log is begun anew; frames with other salts are of an earlier one.
    salts: [u8; 8],
    checksum: Checksum,
}

/// The bytes before a page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct FrameHeader {
    page: u32,
    /// Pages of the database after the commit that this frame ends; 0 where it ends none.
    pages_after_commit: u32,
    salts: [u8; 8],
    checksum: Checksum,
}

/// Over everything before it in the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Checksum(u32, u32);

impl Checksum {
    fn add(self, bytes: &[u8], big_endian: bool) -> Self {
        let word = if big_endian { u32::from_be_bytes } else { u32::from_le_bytes };
        let (words, _) = bytes.as_chunks::<4>();
        let (pairs, _) = words.as_chunks::<2>();
        pairs.iter().fold(self, |Self(mut first, mut second), [a, b]| {
            first = first.wrapping_add(word(*a)).wrapping_add(second);
            second = second.wrapping_add(word(*b)).wrapping_add(first);
            Self(first, second)
        })
    }
}

fn number(bytes: &[u8], at: usize) -> u32 {
    let word = bytes.get(at..at + 4).and_then(|word| word.try_into().ok()).unwrap_or_default();
    u32::from_be_bytes(word)
}

fn salts(bytes: &[u8], at: usize) -> [u8; 8] {
    bytes.get(at..at + 8).and_then(|salts| salts.try_into().ok()).unwrap_or_default()
}

impl Header {
    /// `None`: not a log that SQLite would read.
    fn parse(bytes: &[u8; HEADER_LEN]) -> Option<Self> {
        let magic = number(bytes, 0);
        let header = Self {
            big_endian: magic & 1 == 1,
            page_size: number(bytes, 8),
            salts: salts(bytes, 16),
            checksum: Checksum(number(bytes, 24), number(bytes, 28)),
        };
        let (covered, _) = bytes.split_at(HEADER_LEN - 8);
        let sound = magic & !1 == MAGIC
            && number(bytes, 4) == VERSION
            && (512..=65_536).contains(&header.page_size)
            && header.page_size.is_power_of_two()
            && Checksum::default().add(covered, header.big_endian) == header.checksum;
        sound.then_some(header)
    }
}

impl FrameHeader {
    fn parse(bytes: &[u8]) -> Self {
        Self {
            page: number(bytes, 0),
            pages_after_commit: number(bytes, 4),
            salts: salts(bytes, 8),
            checksum: Checksum(number(bytes, 16), number(bytes, 20)),
        }
    }
}

/// What the index says of the log: all that was published.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct IndexHeader {
    page_size: u32,
    frames: u32,
    /// Of the database.
    pages: u32,
    /// Over the log up to the last of the frames.
    checksum: Checksum,
    salts: [u8; 8],
}

impl IndexHeader {
    const LEN: usize = 48;
    /// A writer that writes both copies takes less than a microsecond for it.
    const ATTEMPTS: u32 = 1000;

    /// Reads both copies until they are the same. `None`: they never are, or are not as this version knows them.
    fn read(file: &File) -> io::Result<Option<Self>> {
        for _ in 0..Self::ATTEMPTS {
            let mut bytes = [0; 2 * Self::LEN];
            if !read_whole(file, &mut bytes, 0)? {
                return Ok(None);
            }
            let (first, second) = bytes.split_at(Self::LEN);
            if first == second {
                return Ok(Self::parse(first));
            }
            std::thread::yield_now();
        }
        Ok(None)
    }

    fn parse(bytes: &[u8]) -> Option<Self> {
        let native = |at| u32::from_ne_bytes(number(bytes, at).to_be_bytes());
        let (covered, _) = bytes.split_at_checked(Self::LEN - 8)?;
        let half = |at: usize| Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?));
        let page_size = match half(14)? {
            1 => 65_536,
            size => u32::from(size),
        };
        let sound = native(0) == VERSION
            && bytes.get(12) == Some(&1)
            && Checksum::default().add(covered, cfg!(target_endian = "big"))
                == Checksum(native(40), native(44));
        let header = Self {
            page_size,
            frames: native(16),
            pages: native(20),
            checksum: Checksum(native(24), native(28)),
            salts: salts(bytes, 32),
        };
        sound.then_some(header)
    }
}

/// A log as far as a capture needs it: up to the last commit that was published when the read transaction had begun.
#[derive(Debug)]
pub(super) struct Wal {
    path: PathBuf,
    /// Its length when the transaction had begun.
    length: u64,
    /// Closed after the connection: closing it drops the process's locks on it.
    index: Option<File>,
    /// What the index said when the transaction had begun. `None`: nothing that could be understood.
    end: Option<IndexHeader>,
}

/// How the database as of the look is put together.
#[derive(Debug)]
pub(super) enum Layers {
    /// The database file is all of it: the log had been copied into it when the transaction began, and since the transaction is
    /// not interested in the log, nothing more goes into the file while it lives.
    FileAlone,
    /// The database file with the log's pages over it.
    FileAndLog(Overlay),
    /// The log is not what it was. SQLite itself must be asked.
    Unclear,
}

/// Pages of a log that go over those of the database file.
#[derive(Debug, Default)]
pub(super) struct Overlay {
    /// The place in the log of the newest version of each page.
    pages: HashMap<u32, u64>,
    /// The length of the database in pages.
    pub(super) database_pages: u32,
    page_size: u32,
}

impl Wal {
    /// Looks where the log ends. The read transaction must have begun: then nothing that it sees is after that end.
    pub(super) fn look(path: PathBuf, index: &Path) -> Result<Self, CaptureError> {
        let length = std::fs::metadata(&path).map_or(0, |meta| meta.len());
        let failed = |error| CaptureError::from_io("read", index, error);
        // Opened as SQLite opens it. One that it may not write it does not believe while nobody else keeps it up: the file is never
        // synced, and after a crash of the machine, or in a snapshot of its disk, speaks of an earlier state of the log.
        let index = match File::options().read(true).write(true).open(index) {
            Ok(file) => Some(file),
            // SQLite found its own way without it.
            Err(error) if is_not_for_us(error.kind()) => None,
            Err(error) => return Err(failed(error)),
        };
        let end = index.as_ref().map(IndexHeader::read).transpose().map_err(failed)?.flatten();
        Ok(Self { path, length, index, end })
    }

    /// Whether the log is still the one that was looked at. It is begun anew in the index first, then in its header, then in
    /// its frames: while this is true, all frames up to the end are as they were.
    fn is_the_same(&self) -> Result<bool, CaptureError> {
        let index = self.index.as_ref().map(IndexHeader::read).transpose();
        let now = index.map_err(|error| CaptureError::from_io("read the index of", &self.path, error))?;
        Ok(now.flatten().zip(self.end).is_some_and(|(now, end)| now.salts == end.salts))
    }

    /// Where it is.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// By how many bytes it has grown since.
    pub(super) fn growth(&self) -> u64 {
        std::fs::metadata(&self.path).map_or(0, |meta| meta.len()).saturating_sub(self.length)
    }

    /// The pages up to its end, read and checked. The read transaction must still be there.
    pub(super) fn layers(&self, page_size: u32) -> Result<Layers, CaptureError> {
        match self.end {
            None => Ok(Layers::Unclear),
            Some(end) if end.frames == 0 => Ok(Layers::FileAlone),
            Some(end) if end.page_size != page_size => Ok(Layers::Unclear),
            Some(end) => {
                let overlay =
                    self.read(&end).map_err(|error| CaptureError::from_io("read", &self.path, error))?;
                Ok(match overlay {
                    Some(overlay) => Layers::FileAndLog(overlay),
                    None if self.is_the_same()? => Layers::Unclear,
                    None => Layers::FileAlone,
                })
            }
        }
    }

    /// `None`: the log is not the one that the index speaks of.
    fn read(&self, end: &IndexHeader) -> io::Result<Option<Overlay>> {
        let file = match File::open(&self.path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let Some(header) = read_header(&file)? else { return Ok(None) };
        if (header.salts, header.page_size) != (end.salts, end.page_size) {
            return Ok(None);
        }
        let mut pages = HashMap::new();
        let mut checksum = header.checksum;
        let page_len = usize::try_from(header.page_size).expect("at most 64 KiB");
        let mut bytes = vec![0; FRAME_HEADER_LEN + page_len];
        let mut committed = 0;
        for frame in 0..end.frames {
            let place = place_of(frame, &header);
            if !read_whole(&file, &mut bytes, place)? {
                return Ok(None);
            }
            let (head, page) = bytes.split_at(FRAME_HEADER_LEN);
            let found = FrameHeader::parse(head);
            let (covered, _) = head.split_at(8);
            checksum = checksum.add(covered, header.big_endian).add(page, header.big_endian);
            if found.salts != header.salts || found.checksum != checksum || found.page == 0 {
                return Ok(None);
            }
            pages.insert(found.page, place + FRAME_HEADER_LEN as u64);
            committed = found.pages_after_commit;
        }
        let whole = checksum == end.checksum && committed == end.pages && committed > 0;
        Ok(whole.then_some(Overlay { pages, database_pages: end.pages, page_size: header.page_size }))
    }

    /// Puts the pages into `target`, which has the bytes of the database file. `false`: the log was begun anew meanwhile, and
    /// what is in the target now is worth nothing.
    pub(super) fn put_over(&self, overlay: &Overlay, target: &File, to: &Path) -> Result<bool, CaptureError> {
        let failed = |error| CaptureError::from_io("read", &self.path, error);
        let file = File::open(&self.path).map_err(failed)?;
        let mut bytes = vec![0; usize::try_from(overlay.page_size).expect("at most 64 KiB")];
        let mut pages: Vec<(u32, u64)> = overlay.pages.iter().map(|(page, place)| (*page, *place)).collect();
        pages.sort_unstable();
        for (page, place) in pages.into_iter().filter(|(page, _)| *page <= overlay.database_pages) {
            if !read_whole(&file, &mut bytes, place).map_err(failed)? {
                return Ok(false);
            }
            let place = u64::from(page - 1) * u64::from(overlay.page_size);
            target.write_all_at(&bytes, place).map_err(CaptureError::io("write", to))?;
        }
        self.is_the_same()
    }
}

fn is_not_for_us(kind: io::ErrorKind) -> bool {
    matches!(
        kind,
        io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem
    )
}

fn place_of(frame: u32, header: &Header) -> u64 {
    HEADER_LEN as u64 + u64::from(frame) * (FRAME_HEADER_LEN as u64 + u64::from(header.page_size))
}

fn read_header(file: &File) -> io::Result<Option<Header>> {
    let mut bytes = [0; HEADER_LEN];
    Ok(if read_whole(file, &mut bytes, 0)? { Header::parse(&bytes) } else { None })
}

/// `false`: the file ends before.
fn read_whole(file: &File, bytes: &mut [u8], at: u64) -> io::Result<bool> {
    match file.read_exact_at(bytes, at) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;
    use rusqlite::Connection;
    use rusqlite::config::DbConfig;

    use super::super::{begin, finish};
    use super::*;
    use crate::test_support::Surroundings;
    use crate::{CaptureOptions, Engine, Source};

    fn overlay(wal: &Wal) -> Overlay {
        match wal.layers(4096).unwrap() {
            Layers::FileAndLog(overlay) => overlay,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn only_whole_commits_count_and_only_those_that_were_there_at_the_look() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("db");
        let writer = Connection::open(&path).unwrap();
        writer
            .execute_batch(
                "PRAGMA journal_mode=wal; PRAGMA wal_autocheckpoint=0; PRAGMA cache_size=2; CREATE TABLE t(v);
                 INSERT INTO t VALUES(randomblob(9000));",
            )
            .unwrap();
        let (log, index) = (dir.path().join("db-wal"), dir.path().join("db-shm"));
        let look = || Wal::look(log.clone(), &index).unwrap();
        let looked = look();
        // Pages that the cache had no room for stand in the log without a commit.
        writer.execute_batch("BEGIN; INSERT INTO t VALUES(randomblob(200000));").unwrap();
        let spilled = look();
        assert!(spilled.growth() == 0 && looked.growth() > 0, "nothing was spilled");
        assert_eq!(spilled.end, looked.end);
        let before = overlay(&looked);
        writer.execute_batch("COMMIT").unwrap();
        let after = overlay(&looked);
        assert_eq!((before.pages, before.database_pages), (after.pages, after.database_pages));
        let looked_again = look();
        let all = overlay(&looked_again);
        assert!(all.database_pages > after.database_pages);
        assert!(matches!(looked.layers(512).unwrap(), Layers::Unclear), "another page size");

        // A damaged frame is for SQLite to judge.
        let bytes = std::fs::read(&log).unwrap();
        let mut damaged = bytes.clone();
        damaged[5000] ^= 1;
        std::fs::write(&log, &damaged).unwrap();
        assert!(matches!(looked.layers(4096).unwrap(), Layers::Unclear));
        std::fs::write(&log, &bytes).unwrap();

        // Begun anew: what was looked at is in the database file.
        let target = tempfile::tempfile().unwrap();
        assert!(looked_again.put_over(&all, &target, Path::new("target")).unwrap());
        writer.execute_batch("PRAGMA wal_checkpoint(RESTART); INSERT INTO t VALUES(1)").unwrap();
        assert!(!looked_again.put_over(&all, &target, Path::new("target")).unwrap());
        assert!(matches!(looked.layers(4096).unwrap(), Layers::FileAlone));
        overlay(&look());
        let none = Wal::look(log.clone(), &dir.path().join("none")).unwrap();
        assert!(matches!(none.layers(4096).unwrap(), Layers::Unclear), "without its index");
    }

    /// Nothing in the log itself tells an index that speaks of another state of it: up to each frame, all is sound.
    #[test]
    fn an_index_that_does_not_end_where_the_log_has_the_commit_is_not_believed() {
        let dir = tempfile::tempdir().unwrap();
        let writer = Connection::open(dir.path().join("db")).unwrap();
        writer
            .execute_batch(
                "PRAGMA journal_mode=wal; PRAGMA wal_autocheckpoint=0; CREATE TABLE t(v); INSERT INTO t VALUES(1);
                 UPDATE t SET v = 2; BEGIN; UPDATE t SET v = 3; CREATE TABLE u(v); COMMIT;",
            )
            .unwrap();
        let (log, index) = (dir.path().join("db-wal"), dir.path().join("db-shm"));
        let end = Wal::look(log.clone(), &index).unwrap().end.unwrap();
        let is_believed = |end: IndexHeader| {
            let wal = Wal { end: Some(end), ..Wal::look(log.clone(), &index).unwrap() };
            matches!(wal.layers(4096).unwrap(), Layers::FileAndLog(_))
        };
        assert!(is_believed(end));

        let file = File::open(&log).unwrap();
        let header = read_header(&file).unwrap().unwrap();
        let frame = |number: u32| {
            let mut bytes = [0; FRAME_HEADER_LEN];
            assert!(read_whole(&file, &mut bytes, place_of(number, &header)).unwrap());
            FrameHeader::parse(&bytes)
        };
        let up_to = |last: u32| IndexHeader { frames: last + 1, checksum: frame(last).checksum, ..end };
        let earlier = (0..end.frames - 1).rev().find(|&number| frame(number).pages_after_commit > 0).unwrap();
        let pages = frame(earlier).pages_after_commit;
        assert!(is_believed(IndexHeader { pages, ..up_to(earlier) }), "what was published then");
        assert!(!is_believed(IndexHeader { pages, checksum: end.checksum, ..up_to(earlier) }));
        assert!(!is_believed(IndexHeader { pages: pages + 1, ..up_to(earlier) }));
        // In the middle of the last transaction.
        let middle = end.frames - 2;
        assert_eq!(frame(middle).pages_after_commit, 0);
        assert!(!is_believed(up_to(middle)));
        assert!(!is_believed(IndexHeader { pages: 0, ..up_to(middle) }));
    }

    /// SQLite writes every page that it adds, and reads zeros where another writer did not.
    #[test]
    fn pages_that_were_added_and_never_written_are_zeros_in_the_image() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("db");
        let writer = Connection::open(&path).unwrap();
        writer.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true).unwrap();
        writer
            .execute_batch(
                "PRAGMA journal_mode=wal; CREATE TABLE t(v); PRAGMA wal_checkpoint(TRUNCATE); CREATE TABLE u(v)",
            )
            .unwrap();
        drop(writer);
        let log = dir.path().join("db-wal");
        let mut bytes = std::fs::read(&log).unwrap();
        let header = Header::parse(bytes.first_chunk().unwrap()).unwrap();
        let mut checksum = header.checksum;
        for frame in bytes[HEADER_LEN..].chunks_exact_mut(FRAME_HEADER_LEN + 4096) {
            let (head, page) = frame.split_at_mut(FRAME_HEADER_LEN);
            let found = FrameHeader::parse(head);
            if found.pages_after_commit > 0 {
                head[4..8].copy_from_slice(&9_u32.to_be_bytes());
            }
            if found.page == 1 {
                // Page 1 knows the number as well.
                page[28..32].copy_from_slice(&9_u32.to_be_bytes());
            }
            checksum = checksum.add(&head[..8], header.big_endian).add(page, header.big_endian);
            head[16..20].copy_from_slice(&checksum.0.to_be_bytes());
            head[20..24].copy_from_slice(&checksum.1.to_be_bytes());
        }
        std::fs::write(&log, bytes).unwrap();
        std::fs::remove_file(dir.path().join("db-shm")).unwrap();

        let source = Source { engine: Engine::Sqlite, path: path.clone() };
        let options = CaptureOptions::default();
        let image = Surroundings::default().with(|context| {
            finish(begin(&source, &options, Duration::from_secs(1), context).unwrap(), &options, context)
        });
        let image = image.unwrap();
        let file = image.open(&image.snapshot().files[0].path).unwrap();
        assert_eq!(file.metadata().unwrap().len(), 9 * 4096);
        let mut last = [1; 4096];
        file.read_exact_at(&mut last, 8 * 4096).unwrap();
        assert_eq!(last, [0; 4096]);
    }

    proptest! {
        #[test]
        fn hostile_logs_and_indexes_never_panic(
            log in proptest::collection::vec(any::<u8>(), 0..3000),
            index in proptest::collection::vec(any::<u8>(), IndexHeader::LEN),
            sound: bool, big_endian: bool, frames in 0..4_u32, page_size in 0..6_u32
        ) {
            let (mut log, mut index) = (log, index);
            if sound && log.len() > 100 {
                log[..4].copy_from_slice(&(MAGIC + u32::from(big_endian)).to_be_bytes());
                log[4..8].copy_from_slice(&VERSION.to_be_bytes());
                log[8..12].copy_from_slice(&(256_u32 << page_size).to_be_bytes());
                let Checksum(a, b) = Checksum::default().add(&log[..24], big_endian);
                log[24..28].copy_from_slice(&a.to_be_bytes());
                log[28..32].copy_from_slice(&b.to_be_bytes());
                let salts = log[16..24].to_vec();
                log[40..48].copy_from_slice(&salts);
                index[..4].copy_from_slice(&VERSION.to_ne_bytes());
                index[12] = 1;
                index[14..16].copy_from_slice(&(256_u16 << page_size).to_ne_bytes());
                index[16..20].copy_from_slice(&frames.to_ne_bytes());
                index[32..40].copy_from_slice(&salts);
                let Checksum(a, b) = Checksum::default().add(&index[..40], cfg!(target_endian = "big"));
                index[40..44].copy_from_slice(&a.to_ne_bytes());
                index[44..48].copy_from_slice(&b.to_ne_bytes());
            }
            let dir = tempfile::tempdir().unwrap();
            let (path, index_path) = (dir.path().join("wal"), dir.path().join("shm"));
            std::fs::write(&path, &log).unwrap();
            std::fs::write(&index_path, index.repeat(2)).unwrap();
            let wal = Wal::look(path, &index_path).unwrap();
            if sound && log.len() > 100 {
                prop_assert_eq!(wal.end.map(|end| end.frames), Some(frames));
            }
            if let Layers::FileAndLog(overlay) = wal.layers(256 << page_size).unwrap() {
                prop_assert!(overlay.database_pages > 0);
            }
        }
    }
}
