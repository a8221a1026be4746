//! The framing of write-ahead logs and of the MANIFEST (`db/log_format.h` in both engines).
//!
//! ```text
//! file   = blocks of 32768 bytes; no physical record crosses a block
//! record = crc:u32 length:u16 type:u8 [log number:u32, recyclable types only] payload
//! crc    = masked CRC-32C over everything from the type on
//! ```
//! A logical record is one `full` record or `first middle* last`. Where fewer bytes are left in a block than a header
//! takes, zeros stand; a reader goes on with the next block.

/// Length of a block in bytes.
pub(crate) const BLOCK: u64 = 32 * 1024;
/// The same for buffers.
pub(crate) const BLOCK_LENGTH: usize = 32 * 1024;
/// Length of a header in bytes, without a log number.
pub(crate) const HEADER: usize = 7;
/// Length of the header of a recyclable record in bytes.
pub(crate) const RECYCLABLE_HEADER: usize = 11;

/// Longest logical record that [`RecordReader`] puts together. A MANIFEST's largest record lists all files of one column
/// family with some hundred bytes each.
const MAX_RECORD: usize = 512 * 1024 * 1024;

/// What a physical record is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    /// A whole logical record.
    Full,
    /// The first fragment of one.
    First,
    /// A fragment in the middle.
    Middle,
    /// The last fragment.
    Last,
    /// Compression of the records that follow. Has no log number even in recyclable logs.
    Compression,
    /// Anything else that stands alone: timestamp sizes, predecessor log, and types that readers may ignore.
    Auxiliary,
}

/// One physical record whose checksum was right.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Physical<'a> {
    pub(crate) role: Role,
    /// Low 32 bits of the log's number; recyclable types only.
    pub(crate) log_number: Option<u32>,
    pub(crate) payload: &'a [u8],
    /// Header and payload together, in bytes.
    pub(crate) length: usize,
}

/// Why the bytes at some place are no record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// The type is unknown and not marked as ignorable.
    Type(u8),
    /// The record would cross the end of its block.
    Length,
    /// The checksum does not match.
    Checksum,
}

/// What stands at one place of a log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place<'a> {
    /// A record.
    Record(Physical<'a>),
    /// Nothing up to the end of the block; go on there.
    Padding,
    /// The bytes end before the record does.
    Incomplete,
    /// Something else.
    Bad(Fault),
}

/// Bytes from `offset` to the end of its block.
pub(crate) fn left_in_block(offset: u64) -> u64 {
    BLOCK - offset % BLOCK
}

/// Looks at the place `offset` of a file, whose bytes from there on are `bytes`. `header` is the length of the headers of
/// this log: fewer bytes than that before the end of the block are padding.
pub(crate) fn look(bytes: &[u8], offset: u64, header: usize) -> Place<'_> {
    let left = usize::try_from(left_in_block(offset)).expect("a block is smaller than any address space");
    if left < header {
        return Place::Padding;
    }
    let bytes = bytes.get(..left).unwrap_or(bytes);
    let Some((head, _)) = bytes.split_at_checked(HEADER) else { return Place::Incomplete };
    let &[c0, c1, c2, c3, l0, l1, kind] = head else { return Place::Incomplete };
    let payload_length = usize::from(u16::from_le_bytes([l0, l1]));
    if kind == 0 && payload_length == 0 {
        return Place::Padding;
    }
    let Some((role, recyclable)) = role_of(kind) else { return Place::Bad(Fault::Type(kind)) };
    let own_header = if recyclable { RECYCLABLE_HEADER } else { HEADER };
    let length = own_header + payload_length;
    let Some(record) = bytes.get(..length) else {
        return if bytes.len() == left { Place::Bad(Fault::Length) } else { Place::Incomplete };
    };
    let (_, summed) = record.split_at(HEADER - 1);
    if masked_crc(summed) != u32::from_le_bytes([c0, c1, c2, c3]) {
        return Place::Bad(Fault::Checksum);
    }
    let log_number = recyclable
        .then(|| record.get(HEADER..RECYCLABLE_HEADER).and_then(|number| number.try_into().ok()))
        .flatten()
        .map(u32::from_le_bytes);
    let payload = record.get(own_header..).unwrap_or_default();
    Place::Record(Physical { role, log_number, payload, length })
}

/// The role of a record type, and whether it is recyclable; `None`: unknown and not to be ignored.
fn role_of(kind: u8) -> Option<(Role, bool)> {
    Some(match kind {
        1 => (Role::Full, false),
        2 => (Role::First, false),
        3 => (Role::Middle, false),
        4 => (Role::Last, false),
        5 => (Role::Full, true),
        6 => (Role::First, true),
        7 => (Role::Middle, true),
        8 => (Role::Last, true),
        9 => (Role::Compression, false),
        11 | 131 => (Role::Auxiliary, true),
        // 10: timestamp sizes, 130: predecessor log, bit 7: readers that do not know the type skip it.
        10 | 128..=u8::MAX => (Role::Auxiliary, false),
        _ => return None,
    })
}

/// CRC-32C as both engines store it: rotated and shifted, so that a checksum over bytes that hold checksums stays good.
pub(crate) fn masked_crc(bytes: &[u8]) -> u32 {
    mask(crc32c::crc32c(bytes))
}

/// The mask alone.
pub(crate) fn mask(crc: u32) -> u32 {
    crc.rotate_right(15).wrapping_add(0xa282_ead8)
}

/// Puts the logical records of a MANIFEST together, piece by piece as the file grows.
#[derive(Debug, Default)]
pub(crate) struct RecordReader {
    offset: u64,
    fragments: Option<Vec<u8>>,
}

/// Why a MANIFEST's framing cannot be read on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("damaged record at byte {offset}: {reason}")]
pub(crate) struct FramingError {
    pub(crate) offset: u64,
    pub(crate) reason: &'static str,
}

impl RecordReader {
    /// Where the bytes of the next [`Self::feed`] must begin. May lie behind the end of the file.
    pub(crate) fn offset(&self) -> u64 {
        self.offset
    }

    /// Reads the physical records at the front of `bytes`, which begin at [`Self::offset`], and hands each logical record
    /// that becomes complete to `sink`. What is not whole yet is left for the next call; with at least [`BLOCK`] bytes
    /// something is always read.
    pub(crate) fn feed<E: From<FramingError>>(
        &mut self,
        mut bytes: &[u8],
        mut sink: impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        while !bytes.is_empty() {
            let record = match look(bytes, self.offset, HEADER) {
                Place::Incomplete => return Ok(()),
                Place::Padding => {
                    let skipped = left_in_block(self.offset);
                    let length = usize::try_from(skipped).map_or(bytes.len(), |n| bytes.len().min(n));
                    let (padding, rest) = bytes.split_at(length);
                    if padding.iter().any(|&byte| byte != 0) {
                        return Err(self.error("zeros stand where it should begin").into());
                    }
                    self.offset += skipped;
                    bytes = rest;
                    continue;
                }
                Place::Bad(fault) => return Err(self.error(fault.reason()).into()),
                Place::Record(record) => record,
            };
            match (record.role, &mut self.fragments) {
                (Role::Full, None) if record.log_number.is_none() => sink(record.payload)?,
                (Role::First, none @ None) if record.log_number.is_none() => {
                    *none = Some(record.payload.to_vec());
                }
                (Role::Middle, Some(fragments)) if record.log_number.is_none() => {
                    fragments.extend_from_slice(record.payload);
                }
                (Role::Last, some @ Some(_)) if record.log_number.is_none() => {
                    let mut whole = some.take().unwrap_or_default();
                    whole.extend_from_slice(record.payload);
                    sink(&whole)?;
                }
                _ => return Err(self.error("a fragment is out of order").into()),
            }
            if self.fragments.as_ref().is_some_and(|fragments| fragments.len() > MAX_RECORD) {
                return Err(self.error("a record is longer than 512 MiB").into());
            }
            self.offset += record.length as u64;
            bytes = bytes.get(record.length..).unwrap_or_default();
        }
        Ok(())
    }

    fn error(&self, reason: &'static str) -> FramingError {
        FramingError { offset: self.offset, reason }
    }
}

impl Fault {
    /// In words.
    pub(crate) fn reason(self) -> &'static str {
        match self {
            Self::Type(_) => "its type is unknown",
            Self::Length => "it would cross the end of its block",
            Self::Checksum => "its checksum does not match",
        }
    }
}

/// Writes records; for tests that need logs and MANIFESTs.
#[cfg(test)]
pub(crate) mod writer {
    use super::{BLOCK_LENGTH, HEADER, RECYCLABLE_HEADER, masked_crc};

    /// Appends `payload` as one logical record to `file`; with `log_number` as recyclable records.
    pub(crate) fn append(file: &mut Vec<u8>, mut payload: &[u8], log_number: Option<u32>) {
        let header = if log_number.is_some() { RECYCLABLE_HEADER } else { HEADER };
        let mut first = true;
        loop {
            let mut left = BLOCK_LENGTH - file.len() % BLOCK_LENGTH;
            if left < header {
                file.resize(file.len() + left, 0);
                left = BLOCK_LENGTH;
            }
            let (fragment, rest) = payload.split_at(payload.len().min(left - header));
            let last = rest.is_empty();
            let kind = match (first, last) {
                (true, true) => 1,
                (true, false) => 2,
                (false, false) => 3,
                (false, true) => 4,
            };
            append_physical(file, kind + if log_number.is_some() { 4 } else { 0 }, log_number, fragment);
            if last {
                return;
            }
            payload = rest;
            first = false;
        }
    }

    /// Appends one physical record of any type.
    pub(crate) fn append_physical(file: &mut Vec<u8>, kind: u8, log_number: Option<u32>, payload: &[u8]) {
        let mut summed = vec![kind];
        summed.extend(log_number.map(u32::to_le_bytes).into_iter().flatten());
        summed.extend_from_slice(payload);
        file.extend(masked_crc(&summed).to_le_bytes());
        file.extend(u16::try_from(payload.len()).unwrap().to_le_bytes());
        file.extend(summed);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read_in_chunks(file: &[u8], chunk: usize) -> Result<Vec<Vec<u8>>, FramingError> {
        let mut reader = RecordReader::default();
        let mut records = Vec::new();
        let mut visible = 0;
        while visible < file.len() {
            visible = (visible + chunk).min(file.len());
            let from = usize::try_from(reader.offset()).unwrap();
            let Some(bytes) = file.get(from..visible) else { continue };
            reader.feed(bytes, |record| {
                records.push(record.to_vec());
                Ok::<_, FramingError>(())
            })?;
        }
        Ok(records)
    }

    #[test]
    fn the_mask_is_the_one_of_the_engines() {
        // From LevelDB's log_format: the CRC-32C of "123456789" is 0xe3069283.
        assert_eq!(crc32c::crc32c(b"123456789"), 0xe306_9283);
        assert_eq!(masked_crc(b"123456789"), 0xc78a_b0e5);
    }

    #[test]
    fn a_torn_tail_is_left_alone_and_a_damaged_record_is_reported() {
        let mut file = Vec::new();
        writer::append(&mut file, b"one", None);
        let whole = file.len();
        writer::append(&mut file, b"two", None);
        for cut in whole..file.len() {
            assert_eq!(read_in_chunks(&file[..cut], 7).unwrap(), [b"one"]);
        }
        *file.last_mut().unwrap() ^= 1;
        let error = read_in_chunks(&file, 32768).unwrap_err();
        assert_eq!(error.offset, whole as u64);
    }

    #[test]
    fn a_header_of_zeros_ends_the_block_and_not_the_file() {
        let mut file = Vec::new();
        writer::append(&mut file, b"one", None);
        file.resize(BLOCK_LENGTH, 0);
        writer::append(&mut file, b"two", None);
        assert_eq!(read_in_chunks(&file, 100).unwrap(), [b"one", b"two"]);
    }

    proptest! {
        #[test]
        fn records_read_back_whatever_the_pieces_they_arrive_in(
            lengths in proptest::collection::vec(prop_oneof![0_usize..60, 32_000_usize..33_000, 65_000_usize..70_000], 0..12),
            chunk in 1_usize..50_000,
        ) {
            let records: Vec<Vec<u8>> =
                lengths.iter().zip(0_u8..).map(|(&length, n)| vec![n; length]).collect();
            let mut file = Vec::new();
            for record in &records {
                writer::append(&mut file, record, None);
            }
            prop_assert_eq!(read_in_chunks(&file, chunk).unwrap(), records);
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300), offset: u64, chunk in 1_usize..300) {
            let _ = look(&bytes, offset, HEADER);
            let _ = look(&bytes, offset, RECYCLABLE_HEADER);
            let _ = read_in_chunks(&bytes, chunk);
        }

        #[test]
        fn a_changed_byte_is_an_error_or_loses_the_tail_but_never_invents_a_record(
            lengths in proptest::collection::vec(1_usize..2000, 1..20), at: prop::sample::Index, bit in 0_u8..8,
        ) {
            let mut file = Vec::new();
            let records: Vec<Vec<u8>> = lengths.iter().map(|&length| vec![7; length]).collect();
            for record in &records {
                writer::append(&mut file, record, None);
            }
            let at = at.index(file.len());
            file[at] ^= 1 << bit;
            if let Ok(read) = read_in_chunks(&file, 32768) {
                prop_assert!(read.len() < records.len() && records.starts_with(&read));
            }
        }
    }
}
