//! The end of a table, read without decompressing anything: what proves that two tables are the same, and that one is whole.
//!
//! An identity is needed only for tables whose MANIFEST carries no unique id (before RocksDB 7.3). The three properties that id is
//! made of are in tables since 6.24. Everything read here is checked against its checksum; whatever is not understood gives
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
/// LevelDB's, and RocksDB's with format version 0.
const LEGACY: u64 = 0xdb47_7524_8b80_fb57;
const LEGACY_FOOTER: usize = 48;
/// Other kinds of tables that RocksDB can be told to write.
const PLAIN: u64 = 0x8242_2296_63bf_9564;
const LEGACY_PLAIN: u64 = 0x4f34_18eb_7a8f_13b8;
const CUCKOO: u64 = 0x9267_89d0_c5f1_7873;
/// The newest format version whose footer is known.
const NEWEST_FORMAT: u32 = 7;
const CRC32C: u8 = 1;
/// The property that some releases write in place when they ingest a table.
const GLOBAL_SEQNO: &[u8] = b"rocksdb.external_sst_file.global_seqno";
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
        let Found::Good(footer) = table.footer() else { return Ok(None) };
        let Found::Good(metaindex) = table.block(&footer, footer.metaindex)? else { return Ok(None) };
        let Some(handle) = properties_in(&metaindex) else { return Ok(None) };
        let Found::Good(properties) = table.block(&footer, handle)? else { return Ok(None) };
        Ok(properties.plain().and_then(Self::from_properties))
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

/// What is wrong with the first `size` bytes of `file` as a table: its footer, metaindex, properties and (up to format 5) index are
/// read and their checksums compared. `None`: nothing, as far as its kind is known. Its data blocks are not looked at.
pub(crate) fn find_damage(file: &File, size: u64) -> io::Result<Option<&'static str>> {
    let mut table = TableBytes::open(file, size)?;
    let footer = match table.footer() {
        Found::Good(footer) => footer,
        Found::Unknown => return Ok(None),
        Found::Damaged(what) => return Ok(Some(what)),
    };
    let metaindex = match table.block(&footer, footer.metaindex)? {
        Found::Good(metaindex) => metaindex,
        Found::Unknown => return Ok(None),
        Found::Damaged(_) => return Ok(Some("its metaindex is not as it was written")),
    };
    if let Some(handle) = properties_in(&metaindex)
        && matches!(table.block(&footer, handle)?, Found::Damaged(_))
        && !table.was_ingested(&footer, handle)?
    {
        return Ok(Some("its properties are not as they were written"));
    }
    if let Some(handle) = footer.index
        && matches!(table.block(&footer, handle)?, Found::Damaged(_))
    {
        return Ok(Some("its index is not as it was written"));
    }
    Ok(None)
}

/// What a look at a part of a table gave.
enum Found<T> {
    Good(T),
    /// It is of a kind, or of a size, that is not read here.
    Unknown,
    /// What is wrong.
    Damaged(&'static str),
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
    /// Later formats name it in the metaindex.
    index: Option<Handle>,
}

/// A block as it is stored.
struct Block {
    bytes: Vec<u8>,
    compression: u8,
}

impl Block {
    /// Its content, if it is not compressed.
    fn plain(&self) -> Option<&[u8]> {
        (self.compression == 0).then_some(&self.bytes)
    }
}

fn properties_in(metaindex: &Block) -> Option<Handle> {
    let entries = block_entries(metaindex.plain()?)?;
    let handle = find(&entries, b"rocksdb.properties").or_else(|| find(&entries, b"rocksdb.stats"));
    handle.and_then(Handle::decode)
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

    fn footer(&self) -> Found<Footer> {
        let magic = self.tail.last_chunk::<8>().map(|magic| u64::from_le_bytes(*magic));
        let footer = match magic {
            Some(BLOCK_BASED) => match self.tail.last_chunk::<FOOTER>().and_then(footer_version) {
                Some(0..=5) => self.tail.last_chunk::<FOOTER>().and_then(Footer::with_handles),
                Some(6..=NEWEST_FORMAT) => self.footer_with_checksum(),
                Some(_) => return Found::Unknown,
                None => None,
            },
            Some(LEGACY) => self.tail.last_chunk::<LEGACY_FOOTER>().and_then(Footer::legacy),
            Some(PLAIN | LEGACY_PLAIN | CUCKOO) => return Found::Unknown,
            _ => return Found::Damaged("it does not end like a table"),
        };
        footer.map_or(Found::Damaged("its footer cannot be read"), Found::Good)
    }

    fn footer_with_checksum(&self) -> Option<Footer> {
        let footer = self.tail.last_chunk::<FOOTER>()?;
        let mut decoder = Decoder::new(footer);
        let checksum = decoder.byte().ok()?;
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
        let computed = checksum_of(checksum, &zeroed);
        if computed.is_some_and(|sum| sum.wrapping_add(context(base_context, footer_offset)) != stored) {
            return None;
        }
        let offset = footer_offset.checked_sub(TRAILER as u64)?.checked_sub(size)?;
        Some(Footer { checksum, base_context, metaindex: Handle { offset, size }, index: None })
    }

    /// A block whose checksum is right.
    fn block(&mut self, footer: &Footer, handle: Handle) -> io::Result<Found<Block>> {
        let mut bytes = match self.stored(handle)? {
            Found::Good(bytes) => bytes,
            Found::Unknown => return Ok(Found::Unknown),
            Found::Damaged(what) => return Ok(Found::Damaged(what)),
        };
        match footer.vouches_for(&bytes, handle) {
            Some(true) => {}
            Some(false) => return Ok(Found::Damaged("its checksum does not match")),
            None => return Ok(Found::Unknown),
        }
        let length = bytes.len() - TRAILER;
        let compression = *bytes.get(length).expect("the compression type begins the trailer");
        bytes.truncate(length);
        Ok(Found::Good(Block { bytes, compression }))
    }

    /// Whether these are properties into which a number was written when the table was ingested: their checksum is the one from
    /// before, when a zero stood there.
    fn was_ingested(&mut self, footer: &Footer, properties: Handle) -> io::Result<bool> {
        let Found::Good(mut bytes) = self.stored(properties)? else { return Ok(false) };
        let at = global_seqno_in(bytes.get(..bytes.len() - TRAILER).unwrap_or_default());
        let Some(value) = at.and_then(|at| bytes.get_mut(at..)?.get_mut(..8)) else { return Ok(false) };
        value.fill(0);
        Ok(footer.vouches_for(&bytes, properties) == Some(true))
    }

    /// A block with its trailer.
    fn stored(&mut self, handle: Handle) -> io::Result<Found<Vec<u8>>> {
        let end =
            handle.size.checked_add(TRAILER as u64).and_then(|length| handle.offset.checked_add(length));
        if end.is_none_or(|end| end > self.size) {
            return Ok(Found::Damaged("it lies behind the end of the file"));
        }
        if handle.size > MAX_BLOCK {
            return Ok(Found::Unknown);
        }
        let length = usize::try_from(handle.size).expect("at most 4 MiB") + TRAILER;
        let mut bytes = vec![0; length];
        let tail_start = self.size - self.tail.len() as u64;
        let in_tail = handle.offset.checked_sub(tail_start).and_then(|at| usize::try_from(at).ok());
        match in_tail.and_then(|at| self.tail.get(at..at + length)) {
            Some(part) => bytes.copy_from_slice(part),
            None => self.file.read_exact_at(&mut bytes, handle.offset)?,
        }
        Ok(Found::Good(bytes))
    }
}

/// The version of the format, which stands before the magic number.
fn footer_version(footer: &[u8; FOOTER]) -> Option<u32> {
    footer.get(FOOTER - 12..)?.first_chunk().map(|version| u32::from_le_bytes(*version))
}

impl Footer {
    /// Whether the checksum of a block and its compression type is the stored one behind them. `None`: it is of a kind not known here.
    fn vouches_for(&self, stored: &[u8], handle: Handle) -> Option<bool> {
        let (summed, sum) = stored.split_last_chunk::<4>().expect("a trailer is longer than that");
        let computed = checksum_of(self.checksum, summed)?;
        let computed = computed.wrapping_add(context(self.base_context, handle.offset));
        Some(computed == u32::from_le_bytes(*sum))
    }

    /// `checksum type | metaindex | index | padding | version | magic`.
    fn with_handles(footer: &[u8; FOOTER]) -> Option<Self> {
        let (&checksum, handles) = footer.split_first()?;
        Self::of_handles(checksum, handles)
    }

    /// `metaindex | index | padding | magic`, as LevelDB writes it.
    fn legacy(footer: &[u8; LEGACY_FOOTER]) -> Option<Self> {
        Self::of_handles(CRC32C, footer)
    }

    fn of_handles(checksum: u8, bytes: &[u8]) -> Option<Self> {
        let mut decoder = Decoder::new(bytes.get(..40)?);
        let mut handle = || Some(Handle { offset: decoder.varint64().ok()?, size: decoder.varint64().ok()? });
        Some(Self { checksum, base_context: 0, metaindex: handle()?, index: Some(handle()?) })
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
        CRC32C => Some(mask(crc32c::crc32c(bytes))),
        4 => {
            let (&last, block) = bytes.split_last()?;
            let hash = xxhash_rust::xxh3::xxh3_64(block) & u64::from(u32::MAX);
            let hash = u32::try_from(hash).expect("masked to 32 bits");
            Some(hash ^ u32::from(last).wrapping_mul(0x6b90_83d9))
        }
        _ => None,
    }
}

/// Where in a block of properties the number stands that is written when a table is ingested.
fn global_seqno_in(properties: &[u8]) -> Option<usize> {
    let entries = block_entries(properties)?;
    let value = find(&entries, GLOBAL_SEQNO).filter(|value| value.len() == 8)?;
    value.as_ptr().addr().checked_sub(properties.as_ptr().addr())
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

    /// Bytes that end like a table of a kind that is not looked into.
    pub(crate) fn opaque_table(fill: u8, size: usize) -> Vec<u8> {
        let mut table = vec![fill; size - 8];
        table.extend(PLAIN.to_le_bytes());
        table
    }

    /// A table as LevelDB writes it, of blocks without entries.
    pub(crate) fn legacy_table(before: usize) -> Vec<u8> {
        let mut file = vec![9; before];
        let handles = [(); 2].map(|()| append_block(&mut file, &block(&[]), CRC32C, 0));
        let mut footer = Vec::new();
        for (offset, size) in handles {
            put_varint(&mut footer, offset);
            put_varint(&mut footer, size);
        }
        footer.resize(40, 0);
        footer.extend(LEGACY.to_le_bytes());
        file.extend(footer);
        file
    }

    fn block(entries: &[(&[u8], &[u8])]) -> Vec<u8> {
        let mut block = Vec::new();
        let mut before: &[u8] = &[];
        for (key, value) in entries {
            let shared = key.iter().zip(before).take_while(|(a, b)| a == b).count();
            put_varint(&mut block, shared as u64);
            put_varint(&mut block, (key.len() - shared) as u64);
            put_varint(&mut block, value.len() as u64);
            block.extend_from_slice(&key[shared..]);
            block.extend_from_slice(value);
            before = key;
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
            (GLOBAL_SEQNO, &global_seqno.to_le_bytes()),
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
            // The metaindex, and in the place of the index the same.
            for _ in 0..2 {
                put_varint(&mut footer, offset);
                put_varint(&mut footer, size);
            }
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
    use super::writer::{legacy_table, table};
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

    fn damage(bytes: &[u8]) -> Option<&'static str> {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        find_damage(&file, bytes.len() as u64).unwrap()
    }

    /// Its name shares its beginning with the one before, so only its end is written out.
    fn seqno_in(table: &[u8]) -> Option<usize> {
        let name = b"external_sst_file.global_seqno";
        Some(table.windows(name.len()).position(|window| window == name)? + name.len())
    }

    #[test]
    fn a_whole_end_is_no_damage_and_every_changed_bit_of_it_is() {
        // Behind the handles, up to the magic number: padding, and the version, which may tell of a later kind.
        let all = [
            (legacy_table(100), 48 - 4),
            (table(1, 2, 10, 0), 53 - 7),
            (table(1, 5, 100_000, 0), 53 - 9),
            (table(4, 5, 0, 0), 53 - 7),
            (table(4, 6, 20_000, 0), 12),
            (table(4, 7, 3, 0), 12),
        ];
        for (good, says_nothing) in all {
            assert_eq!(damage(&good), None);
            let begin = good.iter().position(|&byte| byte != 9).unwrap();
            let seqno = seqno_in(&good);
            let patched = seqno.map_or(0..0, |at| at..at + 8);
            let open = |at: usize| {
                // The first byte of the newer footers is the checksum's kind, and may be one that is not known here.
                let kind = seqno.is_some() && at == good.len() - FOOTER;
                kind || patched.contains(&at) || (good.len() - says_nothing..good.len() - 8).contains(&at)
            };
            for at in (begin..good.len()).filter(|at| !open(*at)) {
                let mut bad = good.clone();
                bad[at] ^= 0x40;
                assert!(damage(&bad).is_some(), "byte {at} of {}", good.len());
            }
            assert_eq!(damage(&vec![0; good.len()]), Some("it does not end like a table"));
            assert!(damage(&good[..good.len() - 1]).is_some());
        }
        assert!(damage(b"").is_some());
        let before = table(4, 5, 0, 0);
        let at = seqno_in(&before).unwrap();
        let mut ingested = before;
        ingested[at] = 77;
        assert_eq!(damage(&ingested), None, "a number was written in place");
        ingested[at - 1] ^= 1;
        assert_eq!(damage(&ingested), Some("its properties are not as they were written"));
        for magic in [PLAIN, LEGACY_PLAIN, CUCKOO] {
            assert_eq!(damage(&magic.to_le_bytes()), None, "known to be of another kind");
        }
    }

    proptest! {
        #[test]
        fn arbitrary_blocks_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = block_entries(&bytes);
            let _ = TableIdentity::from_properties(&bytes);
            let mut file = bytes.clone();
            for magic in [BLOCK_BASED, LEGACY] {
                file.extend(magic.to_le_bytes());
                let _ = (read(&file), damage(&file));
            }
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
