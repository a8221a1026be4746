//! Reading a journal as the engine's replay would, without changing it.
//!
//! A journal is a bare sequence of batches; a byte 0 (preallocated space) or the end of the file ends it.
//! ```text
//! Start  0x01 | u32 item count | u64 seqno
//! Item   0x02 | u8 value type | u8 compression | u64 keyspace id | u16 key len | u32 value len | u32 stored len | key | value
//! Clear  0x04 | u64 keyspace id                                            (in the place of an item)
//! End    0x03 | u64 XXH3-64 of all Item and Clear records, in order | "FJL" 0x03
//! ```
//! Replay stops at the first record that it cannot read, drops the batch it stands in and truncates the file there: right
//! for a batch that was being written when the process died, and a silent loss for anything else. So this reader looks
//! behind the place where it stops: a whole batch there means that the journal is damaged in its middle.

use std::io::{self, BufRead, BufReader, Read};

use xxhash_rust::xxh3::Xxh3;

use super::version_file::Fault;

const START: u8 = 1;
const ITEM: u8 = 2;
const END: u8 = 3;
const CLEAR: u8 = 4;
const TRAILER: [u8; 4] = *b"FJL\x03";
const BUFFER: usize = 256 << 10;

/// How far a journal is known to be sound, and how it goes on from there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Sound {
    /// Everything below this offset is whole batches with right checksums.
    pub(crate) end: u64,
    /// How many batches those are.
    pub(crate) batches: u64,
    /// How many items they have.
    pub(crate) items: u64,
    /// Sequence number of the last one.
    pub(crate) last_seqno: Option<u64>,
}

/// What follows the last whole batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tail {
    /// Nothing.
    Clean,
    /// Bytes of a batch that is not whole, and no whole batch behind them.
    Torn,
}

/// Why a journal was not read to its end.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ScanError {
    /// The file could not be read.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// A batch is broken in a way that no crash of the process leaves behind.
    #[error(transparent)]
    Damaged(#[from] Fault),
}

/// Reads what follows `sound` and checks every batch. `bytes` yields exactly the journal's bytes from `sound.end` to the
/// noted end of the journal; nothing but zeros may follow that. Memory is bounded whatever the lengths in the file say.
pub(crate) fn scan(bytes: impl Read, sound: &mut Sound) -> Result<Tail, ScanError> {
    let mut records = Records::new(bytes, sound.end);
    loop {
        match records.batch()? {
            Outcome::Whole { seqno, items } => {
                sound.end = records.position;
                sound.batches += 1;
                sound.items += items;
                sound.last_seqno = Some(seqno);
            }
            Outcome::End => return Ok(Tail::Clean),
            Outcome::Unreadable => return Ok(Tail::Torn),
            Outcome::Broken(what) => {
                return Err(Fault(format!("the batch at offset {} is damaged: {what}", sound.end)).into());
            }
        }
    }
}

/// Looks for a whole batch, younger than the last sound one, behind a torn batch that begins at `sound.end`. `open` gives the
/// journal's bytes from an offset to its noted end `end`.
///
/// A torn batch may hold anything in its values, so a find must have a right checksum and a later sequence number. Work
/// is bounded: bytes made to look like a thousand beginnings are called damaged.
pub(crate) fn whole_batch_behind<R: Read>(
    sound: &Sound,
    end: u64,
    mut open: impl FnMut(u64) -> io::Result<R>,
) -> Result<Option<u64>, ScanError> {
    let mut work = 64 << 20;
    let mut at = sound.end + 1;
    while at < end {
        let Some(candidate) = next_candidate(open(at)?, at, sound.last_seqno)? else { return Ok(None) };
        let mut records = Records::new(open(candidate)?, candidate);
        if let Outcome::Whole { .. } = records.batch()? {
            return Ok(Some(candidate));
        }
        work -= i64::try_from(records.position - candidate).unwrap_or(i64::MAX).saturating_add(BUFFER_COST);
        if work < 0 {
            return Err(Fault(format!(
                "behind offset {} lies something that cannot be told from damaged batches",
                sound.end
            ))
            .into());
        }
        at = candidate + 1;
    }
    Ok(None)
}

/// What trying one candidate costs at least.
const BUFFER_COST: i64 = 4096;
/// A batch's beginning and the tag of its first item.
const HEAD: usize = 14;
/// Sequence numbers of one journal lie closer together than this.
const SEQNO_SPAN: u64 = 1 << 40;

/// The first offset that looks like the beginning of a batch with a later sequence number.
fn next_candidate(bytes: impl Read, from: u64, after: Option<u64>) -> Result<Option<u64>, ScanError> {
    let mut reader = BufReader::with_capacity(BUFFER, bytes);
    let mut window = [0; HEAD];
    let mut filled = 0_u64;
    loop {
        let buffer = reader.fill_buf()?;
        if buffer.is_empty() {
            return Ok(None);
        }
        for &byte in buffer {
            window.rotate_left(1);
            window[HEAD - 1] = byte;
            filled += 1;
            if filled >= HEAD as u64 && window[0] == START && matches!(window[HEAD - 1], ITEM | CLEAR) {
                let [_, c0, c1, c2, c3, s0, s1, s2, s3, s4, s5, s6, s7, _] = window;
                let count = u32::from_le_bytes([c0, c1, c2, c3]);
                let seqno = u64::from_le_bytes([s0, s1, s2, s3, s4, s5, s6, s7]);
                let later = after.is_none_or(|after| seqno > after && seqno - after < SEQNO_SPAN);
                if count > 0 && later {
                    return Ok(Some(from + filled - HEAD as u64));
                }
            }
        }
        let used = buffer.len();
        reader.consume(used);
    }
}

enum Outcome {
    Whole {
        seqno: u64,
        items: u64,
    },
    /// Nothing begins here: end of file, or the zeros of preallocated space.
    End,
    /// A record ends early or is none: what a dying process leaves, or damage.
    Unreadable,
    /// All records can be read and do not fit each other; the engine refuses to open this.
    Broken(&'static str),
}

/// One record that could be read.
enum Record {
    Start { items: u32, seqno: u64 },
    Item,
    Clear,
    End { checksum: u64 },
    Zero,
}

struct Records<R> {
    reader: BufReader<R>,
    /// Behind the last byte that was taken.
    position: u64,
    hash: Xxh3,
}

/// A record that ends early or is none.
enum Stop {
    Unreadable,
    Io(io::Error),
}

impl From<io::Error> for Stop {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::UnexpectedEof => Self::Unreadable,
            _ => Self::Io(error),
        }
    }
}

impl<R: Read> Records<R> {
    fn new(bytes: R, position: u64) -> Self {
        Self { reader: BufReader::with_capacity(BUFFER, bytes), position, hash: Xxh3::new() }
    }

    /// Reads one batch, or finds out that there is none.
    fn batch(&mut self) -> io::Result<Outcome> {
        if self.reader.fill_buf()?.is_empty() {
            return Ok(Outcome::End);
        }
        match self.try_batch() {
            Ok(outcome) => Ok(outcome),
            Err(Stop::Unreadable) => Ok(Outcome::Unreadable),
            Err(Stop::Io(error)) => Err(error),
        }
    }

    fn try_batch(&mut self) -> Result<Outcome, Stop> {
        self.hash.reset();
        let (items, seqno) = match self.record()? {
            Record::Start { items, seqno } => (items, seqno),
            Record::Zero => return self.only_zeros_follow(),
            Record::End { .. } | Record::Item | Record::Clear => return Ok(Outcome::Unreadable),
        };
        let mut missing = items;
        loop {
            match self.record()? {
                Record::Item | Record::Clear => match missing.checked_sub(1) {
                    Some(rest) => missing = rest,
                    None => return Ok(Outcome::Broken("it has more items than it announces")),
                },
                Record::End { .. } if missing > 0 => {
                    return Ok(Outcome::Broken("it has fewer items than it announces"));
                }
                Record::End { checksum } if checksum != self.hash.digest() => {
                    return Ok(Outcome::Broken("its checksum is wrong"));
                }
                Record::End { .. } => return Ok(Outcome::Whole { seqno, items: u64::from(items) }),
                Record::Start { .. } | Record::Zero => return Ok(Outcome::Unreadable),
            }
        }
    }

    /// Replay ends at a zero. It is the end only if nothing but zeros follow.
    fn only_zeros_follow(&mut self) -> Result<Outcome, Stop> {
        loop {
            let buffer = self.reader.fill_buf()?;
            if buffer.is_empty() {
                return Ok(Outcome::End);
            }
            if buffer.iter().any(|&byte| byte != 0) {
                return Ok(Outcome::Unreadable);
            }
            let used = buffer.len();
            self.reader.consume(used);
        }
    }

    fn record(&mut self) -> Result<Record, Stop> {
        let [tag] = self.array()?;
        match tag {
            0 => Ok(Record::Zero),
            START => {
                let items = u32::from_le_bytes(self.array()?);
                Ok(Record::Start { items, seqno: u64::from_le_bytes(self.array()?) })
            }
            ITEM => self.item(),
            CLEAR => {
                let keyspace: [u8; 8] = self.array()?;
                self.hash.update(&[CLEAR]);
                self.hash.update(&keyspace);
                Ok(Record::Clear)
            }
            END => {
                let checksum = u64::from_le_bytes(self.array()?);
                if self.array()? == TRAILER { Ok(Record::End { checksum }) } else { Err(Stop::Unreadable) }
            }
            _ => Err(Stop::Unreadable),
        }
    }

    fn item(&mut self) -> Result<Record, Stop> {
        let head: [u8; 20] = self.array()?;
        let [value_type, compression, .., k0, k1, _, _, _, _, s0, s1, s2, s3] = head;
        // Value, tombstone, weak tombstone, indirection; no compression, lz4.
        if !matches!(value_type, 0 | 1 | 2 | 4) || compression > 1 {
            return Err(Stop::Unreadable);
        }
        self.hash.update(&[ITEM]);
        self.hash.update(&head);
        let body = u64::from(u16::from_le_bytes([k0, k1])) + u64::from(u32::from_le_bytes([s0, s1, s2, s3]));
        self.hash_body(body)?;
        Ok(Record::Item)
    }

    /// Takes key and stored value through the buffer, never whole: their length is foreign.
    fn hash_body(&mut self, mut left: u64) -> Result<(), Stop> {
        while left > 0 {
            let buffer = self.reader.fill_buf()?;
            if buffer.is_empty() {
                return Err(Stop::Unreadable);
            }
            let used = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
            self.hash.update(buffer.get(..used).expect("used is at most the buffer's length"));
            self.reader.consume(used);
            self.position += used as u64;
            left -= used as u64;
        }
        Ok(())
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Stop> {
        let mut bytes = [0; N];
        self.reader.read_exact(&mut bytes)?;
        self.position += N as u64;
        Ok(bytes)
    }
}

#[cfg(test)]
#[path = "journal_tests.rs"]
mod tests;
