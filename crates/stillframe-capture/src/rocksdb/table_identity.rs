//! What proves that two tables are the same, read from a table's properties without decompressing anything.
//!
//! Needed only for tables whose MANIFEST carries no unique id (before RocksDB 7.3). The three properties that id is made
//! of are in tables since 6.24. Everything read here is checked against its checksum; whatever is not understood gives
//! no identity, and the file is read in full.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use super::decoder::Decoder;
use super::log_format::mask;

const FOOTER: usize = 53;
/// Checksum and compression type behind each block.
const TRAILER: usize = 5;
const BLOCK_BASED: u64 = 0x88e2_41b7_85f4_cff7;
const EXTENDED_MAGIC: [u8; 4] = [0x3e, 0x00, 0x7a, 0x00];
/// Metaindex and properties take about a kilobyte at the end of the file.
const TAIL: u64 = 8 * 1024;
/// Larger metadata blocks than this are not worth reading for an identity.
const MAX_BLOCK: u64 = 4 * 1024 * 1024;

/// The identity of one table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TableIdentity {
    /// The database that made it.
    pub(crate) db_id: String,
    /// Its session: drawn anew at each open.
    pub(crate) session_id: String,
    /// The file's number when it was made.
    pub(crate) original_number: u64,
    /// Hash of all properties: one of them may be patched when a file is ingested.
    pub(crate) properties_hash: u64,
}

impl TableIdentity {
    /// Reads it from the first `size` bytes of `file`. `None`: the table has none, or it is of a kind that is not known.
    pub(crate) fn read(file: &File, size: u64) -> io::Result<Option<Self>> {
        let mut table = TableBytes::open(file, size)?;
        let Some(footer) = table.footer() else { return Ok(None) };
        let Some(metaindex) = table.block(&footer, footer.metaindex)? else { return Ok(None) };
        let entries = block_entries(&metaindex).unwrap_or_default();
        let handle = find(&entries, b"rocksdb.properties").or_else(|| find(&entries, b"rocksdb.stats"));
        let Some(handle) = handle.and_then(Handle::decode) else { return Ok(None) };
        let Some(properties) = table.block(&footer, handle)? else { return Ok(None) };
        Ok(Self::from_properties(&properties))
    }

    fn from_properties(block: &[u8]) -> Option<Self> {
        let entries = block_entries(block)?;
        let text = |name: &[u8]| {
            let value = find(&entries, name).filter(|value| !value.is_empty())?;
            String::from_utf8(value.to_vec()).ok()
        };
        let number = find(&entries, b"rocksdb.original.file.number")?;
        let original_number = Decoder::new(number).varint64().ok().filter(|&number| number != 0)?;
        Some(Self {
            db_id: text(b"rocksdb.creating.db.identity")?,
            session_id: text(b"rocksdb.creating.session.identity")?,
            original_number,
            properties_hash: xxhash_rust::xxh3::xxh3_64(block),
        })
    }
}

#[derive(Debug, Clone, Copy)]
struct Handle {
    offset: u64,
    size: u64,
}

impl Handle {
    fn decode(bytes: &[u8]) -> Option<Self> {
        let mut decoder = Decoder::new(bytes);
        Some(Self { offset: decoder.varint64().ok()?, size: decoder.varint64().ok()? })
    }
}

struct Footer {
    checksum: u8,
    /// Added to each checksum, mixed with the block's offset; format 6 and later.
    base_context: u32,
    metaindex: Handle,
}

struct TableBytes<'a> {
    file: &'a File,
    size: u64,
    /// The end of the file, read at once.
    tail: Vec<u8>,
}

impl<'a> TableBytes<'a> {
    fn open(file: &'a File, size: u64) -> io::Result<Self> {
        let mut tail = vec![0; usize::try_from(size.min(TAIL)).expect("8 KiB fit a usize")];
        let start = size - tail.len() as u64;
        file.read_exact_at(&mut tail, start)?;
        Ok(Self { file, size, tail })
    }

    fn footer(&self) -> Option<Footer> {
        let footer = self.tail.last_chunk::<FOOTER>()?;
        let mut decoder = Decoder::new(footer);
        let checksum = decoder.byte().ok()?;
        let body = decoder.take(40).ok()?;
        let version = decoder.fixed32().ok()?;
        if decoder.fixed64() != Ok(BLOCK_BASED) {
            return None;
        }
        if version <= 5 {
            return Some(Footer { checksum, base_context: 0, metaindex: Handle::decode(body)? });
        }
        let mut decoder = Decoder::new(body);
        if decoder.take(4) != Ok(&EXTENDED_MAGIC) {
            return None;
        }
        let stored = decoder.fixed32().ok()?;
        let base_context = decoder.fixed32().ok()?;
        let size = u64::from(decoder.fixed32().ok()?);
        let footer_offset = self.size.checked_sub(FOOTER as u64)?;
        // The footer's own checksum is computed with its field zeroed, and placed like that of a block.
        let mut zeroed = *footer;
        zeroed.get_mut(5..9)?.fill(0);
        let computed = checksum_of(checksum, &zeroed)?.wrapping_add(context(base_context, footer_offset));
        if computed != stored {
            return None;
        }
        let offset = footer_offset.checked_sub(TRAILER as u64)?.checked_sub(size)?;
        Some(Footer { checksum, base_context, metaindex: Handle { offset, size } })
    }

    /// A block that is not compressed and whose checksum is right.
    fn block(&mut self, footer: &Footer, handle: Handle) -> io::Result<Option<Vec<u8>>> {
        let end =
            handle.size.checked_add(TRAILER as u64).and_then(|length| handle.offset.checked_add(length));
        if handle.size > MAX_BLOCK || end.is_none_or(|end| end > self.size) {
            return Ok(None);
        }
        let length = usize::try_from(handle.size).expect("at most 4 MiB") + TRAILER;
        let mut bytes = vec![0; length];
        let tail_start = self.size - self.tail.len() as u64;
        let in_tail = handle.offset.checked_sub(tail_start).and_then(|at| usize::try_from(at).ok());
        match in_tail.and_then(|at| self.tail.get(at..at + length)) {
            Some(part) => bytes.copy_from_slice(part),
            None => self.file.read_exact_at(&mut bytes, handle.offset)?,
        }
        let Some((summed, stored)) = bytes.split_last_chunk::<4>() else { return Ok(None) };
        let Some(computed) = checksum_of(footer.checksum, summed) else { return Ok(None) };
        let computed = computed.wrapping_add(context(footer.base_context, handle.offset));
        if computed != u32::from_le_bytes(*stored) || summed.last() != Some(&0) {
            return Ok(None);
        }
        bytes.truncate(length - TRAILER);
        Ok(Some(bytes))
    }
}

/// What is added to a checksum so that a block in the wrong place shows.
fn context(base: u32, offset: u64) -> u32 {
    if base == 0 {
        return 0;
    }
    let low = u32::try_from(offset & u64::from(u32::MAX)).expect("masked to 32 bits");
    let high = u32::try_from(offset >> 32).expect("32 bits are left");
    base ^ low.wrapping_add(high)
}

/// Of a block and its compression type, by the footer's checksum type; `None`: not known here.
fn checksum_of(kind: u8, bytes: &[u8]) -> Option<u32> {
    match kind {
        1 => Some(mask(crc32c::crc32c(bytes))),
        4 => {
            let (&last, block) = bytes.split_last()?;
            let hash = xxhash_rust::xxh3::xxh3_64(block) & u64::from(u32::MAX);
            let hash = u32::try_from(hash).expect("masked to 32 bits");
            Some(hash ^ u32::from(last).wrapping_mul(0x6b90_83d9))
        }
        _ => None,
    }
}

fn find<'a>(entries: &'a [(Vec<u8>, &'a [u8])], name: &[u8]) -> Option<&'a [u8]> {
    entries.iter().find(|(key, _)| key == name).map(|(_, value)| *value)
}

/// The entries of a block: each key shares a prefix with the one before.
fn block_entries(block: &[u8]) -> Option<Vec<(Vec<u8>, &[u8])>> {
    let (body, count) = block.split_last_chunk::<4>()?;
    let restarts = usize::try_from(u32::from_le_bytes(*count)).ok()?.checked_mul(4)?;
    let body = body.get(..body.len().checked_sub(restarts)?)?;
    let mut decoder = Decoder::new(body);
    let mut entries: Vec<(Vec<u8>, &[u8])> = Vec::new();
    let mut key_bytes = 0_usize;
    while !decoder.is_empty() {
        let shared = usize::try_from(decoder.varint32().ok()?).ok()?;
        let unshared = usize::try_from(decoder.varint32().ok()?).ok()?;
        let value_length = usize::try_from(decoder.varint32().ok()?).ok()?;
        let mut key = match entries.last() {
            Some((previous, _)) => previous.get(..shared)?.to_vec(),
            None if shared == 0 => Vec::new(),
            None => return None,
        };
        key.extend_from_slice(decoder.take(unshared).ok()?);
        // Keys that share much could take far more memory than the block does.
        key_bytes += key.len();
        if key_bytes as u64 > 4 * MAX_BLOCK {
            return None;
        }
        entries.push((key, decoder.take(value_length).ok()?));
    }
    Some(entries)
}

/// Writes the ends of tables; for tests.
#[cfg(test)]
pub(crate) mod writer {
    use super::super::manifest_writer::put_varint;
    use super::*;

    fn block(entries: &[(&[u8], &[u8])]) -> Vec<u8> {
        let mut block = Vec::new();
        for (key, value) in entries {
            put_varint(&mut block, 0);
            put_varint(&mut block, key.len() as u64);
            put_varint(&mut block, value.len() as u64);
            block.extend_from_slice(key);
            block.extend_from_slice(value);
        }
        block.extend(0_u32.to_le_bytes());
        block.extend(1_u32.to_le_bytes());
        block
    }

    fn append_block(file: &mut Vec<u8>, bytes: &[u8], kind: u8, base: u32) -> (u64, u64) {
        let offset = file.len() as u64;
        let mut summed = bytes.to_vec();
        summed.push(0);
        let sum = checksum_of(kind, &summed).unwrap().wrapping_add(context(base, offset));
        file.extend(summed);
        file.extend(sum.to_le_bytes());
        (offset, bytes.len() as u64)
    }

    /// A table with a checksum of this kind, in this version of the format, with so many bytes before its properties.
    pub(crate) fn table(kind: u8, version: u32, before: usize, global_seqno: u64) -> Vec<u8> {
        let base = if version >= 6 { 0x1234_5678 } else { 0 };
        let mut file = vec![9; before];
        let properties = block(&[
            (b"rocksdb.creating.db.identity", b"db-1"),
            (b"rocksdb.creating.session.identity", b"ABCDEFGHIJKLMNOPQRST"),
            (b"rocksdb.external_sst_file.global_seqno", &global_seqno.to_le_bytes()),
            (b"rocksdb.original.file.number", &[12]),
        ]);
        let (offset, size) = append_block(&mut file, &properties, kind, base);
        let mut handle = Vec::new();
        put_varint(&mut handle, offset);
        put_varint(&mut handle, size);
        let metaindex = block(&[(b"rocksdb.properties", &handle)]);
        let (offset, size) = append_block(&mut file, &metaindex, kind, base);
        let mut footer = vec![kind];
        if version < 6 {
            put_varint(&mut footer, offset);
            put_varint(&mut footer, size);
        } else {
            footer.extend(EXTENDED_MAGIC);
            footer.extend([0; 4]);
            footer.extend(base.to_le_bytes());
            footer.extend(u32::try_from(size).unwrap().to_le_bytes());
        }
        footer.resize(41, 0);
        footer.extend(version.to_le_bytes());
        footer.extend(BLOCK_BASED.to_le_bytes());
        if version >= 6 {
            let sum = checksum_of(kind, &footer).unwrap().wrapping_add(context(base, file.len() as u64));
            footer[5..9].copy_from_slice(&sum.to_le_bytes());
        }
        file.extend(footer);
        file
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use proptest::prelude::*;

    use super::super::manifest_writer::{put_string, put_varint};
    use super::writer::table;
    use super::*;

    fn read(bytes: &[u8]) -> Option<TableIdentity> {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        TableIdentity::read(&file, bytes.len() as u64).unwrap()
    }

    #[test]
    fn identity_is_read_from_all_known_footers() {
        for (kind, version, before) in
            [(1, 2, 10), (1, 5, 100_000), (4, 5, 0), (4, 6, 20_000), (4, 7, 3), (1, 6, 3)]
        {
            let identity = read(&table(kind, version, before, 0)).unwrap();
            assert_eq!(identity.db_id, "db-1");
            assert_eq!(identity.session_id, "ABCDEFGHIJKLMNOPQRST");
            assert_eq!(identity.original_number, 12);
        }
    }

    #[test]
    fn damage_gives_no_identity() {
        let good = table(4, 6, 0, 0);
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 0x40;
            assert_eq!(read(&bad), None, "byte {at}");
        }
        assert_eq!(read(b""), None);
        assert_eq!(read(&good[1..]), None, "blocks in the wrong place");
    }

    proptest! {
        #[test]
        fn arbitrary_blocks_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = block_entries(&bytes);
            let _ = TableIdentity::from_properties(&bytes);
            let mut file = bytes.clone();
            file.extend(BLOCK_BASED.to_le_bytes());
            let _ = read(&file);
        }

        #[test]
        fn keys_that_share_prefixes_stay_bounded(length in 0_usize..3000) {
            let mut bytes = Vec::new();
            put_varint(&mut bytes, 0);
            put_string(&mut bytes, &[]);
            bytes.resize(length, 0);
            let _ = block_entries(&bytes);
        }
    }
}
