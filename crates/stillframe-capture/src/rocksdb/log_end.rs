//! Where the records of a write-ahead log end.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use tokio_util::sync::CancellationToken;

use super::log_format::{
    BLOCK_LENGTH, HEADER, Physical, Place, RECYCLABLE_HEADER, Role, left_in_block, look,
};
use crate::CaptureError;

/// Finds the end of the last whole record of a log that is read from its beginning.
///
/// A recycled log file holds new records, then the tail of an old log. What tells them apart is the log number in each
/// header, so the file's length is not its end. A log that is not recycled ends where its file does, but its last record
/// may be half written; the scan finds the same kind of end there.
#[derive(Debug, Clone)]
pub(crate) struct LogScan {
    log_number: u32,
    offset: u64,
    /// Behind the last physical record that belongs to the log, whole logical record or not.
    accepted: u64,
    end: u64,
    form: Option<Form>,
    in_fragments: bool,
    finished: bool,
    at_zero_header: ZeroHeader,
    dialect: Dialect,
}

/// Whose rules hold for a log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Dialect {
    /// A record begins where the one before ended: anything else is damage.
    RocksDb,
    /// With `reuse_logs` a log is written on behind what a killed process left of a record: the fragments are dropped.
    LevelDb,
}

/// What the headers of a log look like; the first record tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    Plain,
    Recyclable,
}

/// What a header of zeros means. In a recyclable log a block may end with up to ten zeros where a header of seven would
/// have fitted, so it does not mean that the log ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum ZeroHeader {
    /// Go on with the next block, as the engines do.
    #[default]
    Skips,
    /// Stop. Wrong: loses good records. For negative controls only.
    Ends,
}

impl LogScan {
    /// A scan of log `number`.
    pub(crate) fn new(number: u64, at_zero_header: ZeroHeader, dialect: Dialect) -> Self {
        // Headers hold the low 32 bits.
        let log_number = u32::try_from(number & u64::from(u32::MAX)).expect("masked to 32 bits");
        Self {
            log_number,
            offset: 0,
            accepted: 0,
            end: 0,
            form: None,
            in_fragments: false,
            finished: false,
            at_zero_header,
            dialect,
        }
    }

    /// Where the bytes of the next [`Self::feed`] must begin.
    pub(crate) fn offset(&self) -> u64 {
        self.offset
    }

    /// Behind the last physical record that was found to belong to the log. Bytes below are this log's for good.
    pub(crate) fn accepted(&self) -> u64 {
        self.accepted
    }

    /// Looks again at what stands behind the last record that belonged to the log: its writer goes on there, over what
    /// may be the tail of an older log or, by chance, look like padding.
    pub(crate) fn resume(&mut self) {
        self.offset = self.accepted;
        self.finished = false;
    }

    /// Behind the last whole record so far.
    pub(crate) fn end(&self) -> u64 {
        self.end
    }

    /// Whether the log began with records that are not recyclable: then it ends where its file does.
    pub(crate) fn is_plain(&self) -> bool {
        self.form == Some(Form::Plain)
    }

    fn is_recyclable(&self) -> bool {
        self.form == Some(Form::Recyclable)
    }

    /// Whether the scan met something that is no record of this log, so that nothing behind it counts.
    pub(crate) fn is_finished(&self) -> bool {
        self.finished
    }

    /// Reads the records at the front of `bytes`, which begin at [`Self::offset`].
    pub(crate) fn feed(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() && !self.finished {
            let header = if self.is_recyclable() { RECYCLABLE_HEADER } else { HEADER };
            let record = match look(bytes, self.offset, header) {
                Place::Incomplete => return,
                Place::Bad(_) => {
                    self.finished = true;
                    return;
                }
                Place::Padding => {
                    let skipped = left_in_block(self.offset);
                    if self.at_zero_header == ZeroHeader::Ends && skipped >= HEADER as u64 {
                        self.finished = true;
                        return;
                    }
                    self.offset += skipped;
                    bytes = usize::try_from(skipped).ok().and_then(|n| bytes.get(n..)).unwrap_or_default();
                    continue;
                }
                Place::Record(record) => record,
            };
            if !self.belongs(record.role, record.log_number) {
                self.finished = true;
                return;
            }
            self.offset += record.length as u64;
            self.accepted = self.offset;
            bytes = bytes.get(record.length..).unwrap_or_default();
            match record.role {
                Role::First | Role::Middle => self.in_fragments = true,
                Role::Last | Role::Full => {
                    self.in_fragments = false;
                    self.end = self.offset;
                }
                Role::Compression | Role::Auxiliary if !self.in_fragments => self.end = self.offset,
                Role::Compression | Role::Auxiliary => {}
            }
        }
    }

    /// Whether no record with data was read: nobody knows yet what the log's headers look like.
    pub(crate) fn is_formless(&self) -> bool {
        self.form.is_none()
    }

    /// Whether what stands where the scan had to stop is this log's: a record that is not whole, or damaged. Otherwise it is the tail of
    /// the older log in whose file this one was written.
    pub(crate) fn has_begun(&self, bytes: &[u8]) -> bool {
        let own = self.log_number.to_le_bytes();
        if bytes.len() < RECYCLABLE_HEADER {
            return bytes.get(HEADER..).is_some_and(|begun| !begun.is_empty() && own.starts_with(begun));
        }
        let mut record = bytes.to_vec();
        let number = record.get_mut(HEADER..RECYCLABLE_HEADER).expect("there are so many bytes");
        if number == own {
            return true;
        }
        // The number itself may be what is damaged: the checksum covers it.
        number.copy_from_slice(&own);
        matches!(look(&record, self.offset, RECYCLABLE_HEADER), Place::Record(record) if record.log_number == Some(self.log_number))
    }

    /// Whether what stands where the scan had to stop is a whole record of another log.
    pub(crate) fn is_of_another(&self, bytes: &[u8]) -> bool {
        let Place::Record(record) = look(bytes, self.offset, RECYCLABLE_HEADER) else { return false };
        record.log_number.is_some_and(|number| number != self.log_number) && !self.has_begun(bytes)
    }

    /// Whether a record with data, wherever it stands, was written for this log.
    fn owns(&self, record: &Physical<'_>) -> bool {
        let is_data = !matches!(record.role, Role::Compression | Role::Auxiliary);
        let right_form = match self.form {
            Some(Form::Recyclable) => record.log_number.is_some(),
            Some(Form::Plain) => record.log_number.is_none(),
            None => true,
        };
        is_data && right_form && record.log_number.is_none_or(|number| number == self.log_number)
    }

    /// Whether a record with these first bytes could be one that [`Self::owns`] accepts.
    fn may_own(&self, head: &[u8]) -> bool {
        match head.get(HEADER - 1) {
            Some(1..=4) => self.form != Some(Form::Recyclable),
            Some(5..=8) => {
                self.form != Some(Form::Plain)
                    && head.get(HEADER..RECYCLABLE_HEADER) == Some(&self.log_number.to_le_bytes())
            }
            _ => false,
        }
    }

    fn belongs(&mut self, role: Role, log_number: Option<u32>) -> bool {
        let right_number = log_number.is_none_or(|number| number == self.log_number);
        let right_form = match (role, self.form) {
            (Role::Compression, _) => true,
            (_, Some(Form::Recyclable)) => log_number.is_some(),
            (_, Some(Form::Plain)) => log_number.is_none(),
            (_, None) => {
                if right_number {
                    self.form = Some(if log_number.is_some() { Form::Recyclable } else { Form::Plain });
                }
                true
            }
        };
        let right_order = match role {
            Role::Full | Role::First => !self.in_fragments || self.dialect == Dialect::LevelDb,
            Role::Middle | Role::Last => self.in_fragments,
            Role::Compression | Role::Auxiliary => true,
        };
        right_number && right_form && right_order
    }
}

/// Why a scan of a file ended early.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ScanError {
    #[error(transparent)]
    Read(#[from] io::Error),
    #[error("cancelled")]
    Cancelled,
}

impl ScanError {
    /// Whether the file was shorter than it was said to be.
    pub(crate) fn is_short(&self) -> bool {
        matches!(self, Self::Read(error) if error.kind() == io::ErrorKind::UnexpectedEof)
    }

    /// As an error about the log at `path`.
    pub(crate) fn of(self, path: &Path) -> CaptureError {
        match self {
            Self::Read(error) => CaptureError::from_io("read", path, error),
            Self::Cancelled => CaptureError::Cancelled,
        }
    }
}

/// A log file that is read at explicit offsets, and the question, asked between reads, whether to go on.
#[derive(Clone, Copy)]
pub(crate) struct LogFile<'a> {
    pub(crate) file: &'a File,
    pub(crate) cancel: &'a CancellationToken,
    pub(crate) dialect: Dialect,
}

impl LogFile<'_> {
    /// Scans the first `length` bytes of log `number`. A file that is shorter is an error.
    pub(crate) fn scan(
        self,
        number: u64,
        length: u64,
        at_zero_header: ZeroHeader,
    ) -> Result<LogScan, ScanError> {
        let mut scan = LogScan::new(number, at_zero_header, self.dialect);
        self.scan_on(&mut scan, length)?;
        Ok(scan)
    }

    fn scan_on(self, scan: &mut LogScan, length: u64) -> Result<(), ScanError> {
        let mut buffer = vec![0; 8 * BLOCK_LENGTH];
        while scan.offset() < length && !scan.is_finished() {
            let from = scan.offset();
            let bytes = self.read(&mut buffer, from, length)?;
            scan.feed(bytes);
            if scan.offset() == from {
                break;
            }
        }
        Ok(())
    }

    fn read(self, buffer: &mut [u8], from: u64, length: u64) -> Result<&[u8], ScanError> {
        if self.cancel.is_cancelled() {
            return Err(ScanError::Cancelled);
        }
        let wanted = usize::try_from(length.saturating_sub(from)).unwrap_or(usize::MAX).min(buffer.len());
        let (bytes, _) = buffer.split_at_mut(wanted);
        self.file.read_exact_at(bytes, from)?;
        Ok(bytes)
    }

    /// Where a whole record begins that was written behind the place at which `scan` had to stop. A process that is killed leaves
    /// nothing behind the record it was writing; so the log is damaged in its middle, and an engine drops what follows, or
    /// refuses it. The file has at least `length` bytes.
    ///
    /// The tail of an older log in a recycled file does not count, nor does what a live writer put over the place since.
    pub(crate) fn record_behind(self, scan: &LogScan, length: u64) -> Result<Option<u64>, ScanError> {
        if scan.at_zero_header == ZeroHeader::Ends {
            // The mistake is to take this for the end.
            return Ok(None);
        }
        let mut block = vec![0; BLOCK_LENGTH];
        // The block that holds the place: what its header says of its length cannot be believed, so each byte may begin the next
        // record. The place itself, too: whole records, of which one in the middle is missing.
        let broken = scan.offset();
        let bytes = self.read(&mut block, broken, length.min(next_block(broken)))?;
        let mut found = (0..bytes.len())
            .zip(broken..)
            .find_map(|(skipped, at)| record_in(scan, at, bytes.get(skipped..).unwrap_or_default()));
        // All others begin with a record.
        let mut at = next_block(broken);
        while found.is_none() && at < length {
            let end = length.min(next_block(at));
            // Most blocks behind the end of a recycled log are an older log's: their headers tell.
            if scan.may_own(self.read(&mut [0; RECYCLABLE_HEADER], at, end)?) {
                found = record_in(scan, at, self.read(&mut block, at, end)?);
            }
            at = next_block(at);
        }
        let Some(found) = found else { return Ok(None) };
        // A writer goes on in order: where it has been, the place can be read now.
        let mut again = scan.clone();
        again.resume();
        self.scan_on(&mut again, length)?;
        Ok((again.accepted() <= found).then_some(found))
    }
}

/// The first record of the log that begins a logical one, in `bytes`, which begin at `at` and end with that block or before.
fn record_in(scan: &LogScan, mut at: u64, mut bytes: &[u8]) -> Option<u64> {
    let header = if scan.is_recyclable() { RECYCLABLE_HEADER } else { HEADER };
    while scan.may_own(bytes) {
        let Place::Record(record) = look(bytes, at, header) else { return None };
        if !scan.owns(&record) {
            return None;
        }
        if matches!(record.role, Role::Full | Role::First) {
            return Some(at);
        }
        at += record.length as u64;
        bytes = bytes.get(record.length..).unwrap_or_default();
    }
    None
}

/// Where the block behind the one of `at` begins.
fn next_block(at: u64) -> u64 {
    at + left_in_block(at)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::log_format::BLOCK;
    use super::super::log_format::writer::{append, append_physical};
    use super::*;

    fn file_of(bytes: &[u8]) -> File {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(bytes, 0).unwrap();
        file
    }

    fn behind(bytes: &[u8], number: u64) -> Option<u64> {
        let (file, cancel) = (file_of(bytes), CancellationToken::new());
        let log = LogFile { file: &file, cancel: &cancel, dialect: Dialect::RocksDb };
        let scan = log.scan(number, bytes.len() as u64, ZeroHeader::Skips).unwrap();
        log.record_behind(&scan, bytes.len() as u64).unwrap()
    }

    fn end_of(file: &[u8], number: u64) -> u64 {
        let mut scan = LogScan::new(number, ZeroHeader::Skips, Dialect::RocksDb);
        scan.feed(file);
        scan.end()
    }

    #[test]
    fn the_tail_of_an_older_log_does_not_count() {
        let mut old = Vec::new();
        for n in 0..200_u8 {
            append(&mut old, &vec![n; 700], Some(4));
        }
        let mut new = Vec::new();
        append_physical(&mut new, 9, None, &[0; 4]);
        append(&mut new, &[1; 10_000], Some(9));
        append(&mut new, &vec![2; 60_000], Some(9));
        let end = new.len();
        let mut recycled = new;
        recycled.extend_from_slice(&old[end..]);
        assert_eq!(end_of(&recycled, 9), end as u64);
        assert_eq!(end_of(&old, 4), old.len() as u64);
        assert_eq!(end_of(&old, 9), 0, "renamed, nothing written yet");
        assert_eq!(end_of(&old, 4 + (1 << 32)), old.len() as u64, "headers hold the low 32 bits only");
    }

    #[test]
    fn seven_zeros_at_the_end_of_a_block_do_not_end_a_recyclable_log() {
        for padding in 1..RECYCLABLE_HEADER {
            let mut file = Vec::new();
            append(&mut file, &vec![1; BLOCK_LENGTH - RECYCLABLE_HEADER - padding], Some(3));
            append(&mut file, b"behind the padding", Some(3));
            assert_eq!(end_of(&file, 3), file.len() as u64, "{padding} bytes of padding");
            let mut wrong = LogScan::new(3, ZeroHeader::Ends, Dialect::RocksDb);
            wrong.feed(&file);
            assert_eq!(
                wrong.end() < file.len() as u64,
                padding >= HEADER,
                "the control is wrong where it should be"
            );
        }
    }

    #[test]
    fn a_scan_that_goes_on_while_the_log_is_written_misses_nothing() {
        // The old log holds zeros, so that its bytes look like padding where the new one happens to end.
        let mut old = Vec::new();
        (0..10).for_each(|_| append(&mut old, &vec![0; 40_000], Some(4)));
        let mut new = Vec::new();
        let mut scan = LogScan::new(9, ZeroHeader::Skips, Dialect::RocksDb);
        for n in 0..60 {
            append(&mut new, &vec![1; n * 97], Some(9));
            let mut recycled = new.clone();
            recycled.extend_from_slice(&old[new.len()..]);
            scan.resume();
            scan.feed(&recycled[usize::try_from(scan.offset()).unwrap()..]);
            assert_eq!(scan.end(), new.len() as u64);
            assert_eq!(scan.accepted(), new.len() as u64);
        }
    }

    #[test]
    fn a_record_of_many_fragments_counts_only_with_its_last() {
        let mut file = Vec::new();
        append(&mut file, b"small", None);
        let whole = file.len() as u64;
        append(&mut file, &vec![5; 100_000], None);
        assert_eq!(end_of(&file[..file.len() - 1], 1), whole);
        assert_eq!(end_of(&file, 1), file.len() as u64);
    }

    #[test]
    fn plain_records_behind_recyclable_ones_are_stale() {
        let mut file = Vec::new();
        append(&mut file, b"new", Some(8));
        let end = file.len() as u64;
        append(&mut file, b"old, from before recycling was switched on", None);
        assert_eq!(end_of(&file, 8), end);
    }

    #[test]
    fn header_records_and_types_that_may_be_ignored_belong_to_the_log() {
        let mut file = Vec::new();
        append_physical(&mut file, 9, None, &[7, 0, 0, 0]);
        append_physical(&mut file, 131, Some(8), &[0; 24]);
        append_physical(&mut file, 11, Some(8), &[0; 6]);
        append(&mut file, b"batch", Some(8));
        assert_eq!(end_of(&file, 8), file.len() as u64);
        let mut file = Vec::new();
        append_physical(&mut file, 130, None, &[0; 24]);
        append_physical(&mut file, 200, None, b"of a later version");
        append(&mut file, b"batch", None);
        let end = file.len() as u64;
        append_physical(&mut file, 77, None, b"unknown and not to be ignored");
        append(&mut file, b"batch", None);
        assert_eq!(end_of(&file, 8), end);
    }

    #[test]
    fn scanning_a_file_reads_all_of_it_up_to_the_length() {
        let mut bytes = Vec::new();
        let mut ends = vec![0];
        for n in 0..100 {
            append(&mut bytes, &vec![n; 9000], Some(2));
            ends.push(bytes.len() as u64);
        }
        let (file, cancel) = (file_of(&bytes), CancellationToken::new());
        let log = LogFile { file: &file, cancel: &cancel, dialect: Dialect::RocksDb };
        for length in [0, 1, 9011, 9012, 300_000, bytes.len() as u64] {
            let expected = *ends.iter().rfind(|&&end| end <= length).unwrap();
            assert_eq!(log.scan(2, length, ZeroHeader::Skips).unwrap().end(), expected);
        }
        let too_long = log.scan(2, bytes.len() as u64 + 9, ZeroHeader::Skips);
        assert!(matches!(too_long, Err(ScanError::Read(_))), "a short file is an error");
        cancel.cancel();
        let cancelled = log.scan(2, 9011, ZeroHeader::Skips);
        assert!(matches!(cancelled, Err(ScanError::Cancelled)), "a question before each read");
    }

    #[test]
    fn a_whole_record_behind_a_broken_one_tells_damage_from_the_end() {
        for number in [None, Some(7)] {
            let mut sound = Vec::new();
            let mut begins = Vec::new();
            for length in [100, 200, 40_000, 300, 70_000, 10] {
                begins.push(sound.len());
                append(&mut sound, &vec![3; length], number);
            }
            assert_eq!(behind(&sound, 7), None);
            let broken = |at: usize| {
                let mut bytes = sound.clone();
                bytes[at] ^= 1;
                behind(&bytes, 7)
            };
            let begin = |index: usize| Some(begins[index] as u64);
            assert_eq!(broken(begins[1] + 60), begin(2), "in the same block");
            assert_eq!(
                broken(begins[1] + HEADER - 1),
                begin(2),
                "its type, of one that is not to be ignored"
            );
            assert_eq!(broken(begins[2] + 60), begin(3), "behind the end of one in two blocks");
            assert_eq!(broken(begins[1] + 5), begin(2), "its length, so that it seems to end elsewhere");
            assert_eq!(broken(begins[4] + 60), begin(5), "in three blocks");
            assert_eq!(broken(begins[5] + 15), None, "the last one");
            let mut small = sound[..begins[2]].to_vec();
            small[5] ^= 0x80;
            assert_eq!(behind(&small, 7), begin(1), "it seems to end behind the file");
            small[..50].fill(0xa5);
            assert_eq!(behind(&small, 7), begin(1), "nothing of its header is left");
            for cut in [begins[1] + 60, begins[2] + 60, begins[2] + 39_000] {
                assert_eq!(behind(&sound[..cut], 7), None, "a log that a dying process left");
                let mut preallocated = sound[..cut].to_vec();
                preallocated.resize(200_000, 0);
                assert_eq!(behind(&preallocated, 7), None, "the same with room behind");
            }
        }
    }

    #[test]
    fn leveldb_goes_on_behind_what_a_killed_process_left() {
        let mut file = Vec::new();
        append(&mut file, b"whole", None);
        let torn = file.len();
        append(&mut file, &vec![1; 40_000], None);
        // The first of its two fragments was written whole, the second was not.
        file.truncate(BLOCK_LENGTH);
        append(&mut file, b"by the next process", None);
        for (dialect, end, behind) in
            [(Dialect::RocksDb, torn, Some(BLOCK)), (Dialect::LevelDb, file.len(), None)]
        {
            let (opened, cancel) = (file_of(&file), CancellationToken::new());
            let log = LogFile { file: &opened, cancel: &cancel, dialect };
            let scan = log.scan(3, file.len() as u64, ZeroHeader::Skips).unwrap();
            assert_eq!(scan.end(), end as u64, "{dialect:?}");
            assert_eq!(log.record_behind(&scan, file.len() as u64).unwrap(), behind, "{dialect:?}");
        }
    }

    #[test]
    fn an_older_log_behind_the_end_is_no_damage() {
        let mut old = Vec::new();
        (0..100).for_each(|_| append(&mut old, &[4; 900], Some(4)));
        for length in [0, 1, 70, 900, 32_000, 40_000] {
            let mut new = Vec::new();
            append(&mut new, &vec![9; length], Some(9));
            let end = new.len();
            new.extend_from_slice(&old[end..]);
            assert_eq!(behind(&new, 9), None);
            new[end - 1] ^= 1;
            assert_eq!(behind(&new, 9), None, "nothing of this log is behind it");
            assert_eq!(behind(&old, 9), None, "renamed, nothing written yet");
        }
    }

    #[test]
    fn what_a_writer_wrote_meanwhile_is_no_damage() {
        let mut old = Vec::new();
        (0..100).for_each(|_| append(&mut old, &[4; 900], Some(4)));
        let mut new = Vec::new();
        append(&mut new, &[9; 900], Some(9));
        let end = new.len();
        let (file, cancel) = (file_of(&old), CancellationToken::new());
        file.write_all_at(&new, 0).unwrap();
        let log = LogFile { file: &file, cancel: &cancel, dialect: Dialect::RocksDb };
        let scan = log.scan(9, old.len() as u64, ZeroHeader::Skips).unwrap();
        assert_eq!(scan.end(), end as u64);
        (0..40).for_each(|_| append(&mut new, &[9; 900], Some(9)));
        file.write_all_at(&new, 0).unwrap();
        assert_eq!(log.record_behind(&scan, old.len() as u64).unwrap(), None);
        file.write_all_at(&[0xff; 8], end as u64).unwrap();
        assert!(log.record_behind(&scan, old.len() as u64).unwrap().is_some(), "and now it is");
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_behind_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300), number: u64) {
            let mut file = Vec::new();
            append(&mut file, &vec![1; 32_700], Some(u32::try_from(number % 1000).unwrap()));
            file.extend_from_slice(&bytes);
            prop_assert!(behind(&file, number % 1000).is_none_or(|at| at < file.len() as u64));
        }

        #[test]
        fn the_end_is_behind_the_last_whole_record_at_every_cut(
            lengths in proptest::collection::vec(prop_oneof![0_usize..60, 32_700_usize..32_800], 1..12),
            recyclable: bool, cut: prop::sample::Index, chunk in 1_usize..40_000,
        ) {
            let number = recyclable.then_some(17);
            let mut file = Vec::new();
            let mut ends = vec![0];
            for length in lengths {
                append(&mut file, &vec![1; length], number);
                ends.push(file.len());
            }
            let cut = cut.index(file.len() + 1);
            let expected = *ends.iter().rfind(|&&end| end <= cut).unwrap();
            let mut scan = LogScan::new(17, ZeroHeader::Skips, Dialect::RocksDb);
            let mut visible = 0;
            while visible < cut {
                visible = (visible + chunk).min(cut);
                if let Some(bytes) = file.get(usize::try_from(scan.offset()).unwrap()..visible) {
                    scan.feed(bytes);
                }
            }
            prop_assert_eq!(scan.end(), expected as u64);
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300), number: u64) {
            let mut scan = LogScan::new(number, ZeroHeader::Skips, Dialect::RocksDb);
            scan.feed(&bytes);
            prop_assert!(scan.end() <= bytes.len() as u64);
        }
    }
}
