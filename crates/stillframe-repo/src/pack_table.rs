//! What is in a pack: the table that its footer and the index segments hold.

use bytes::Bytes;

use crate::bytes_reader::BytesReader;
use crate::compression::Compression;
use crate::content::MAX_CHUNK_LEN;
use crate::envelope::{HASH_LEN, HEADER_LEN, Header, ObjectKey, TAG_LEN};
use crate::error::{Error, Result};
use crate::key_ring::KeyRing;
use crate::layout::Kind;
use crate::{ChunkId, PackId};

/// A pack with more chunks is not one of ours.
pub(crate) const MAX_CHUNKS: usize = 65_536;
const ENTRY_LEN: usize = 41;
/// Length of the footer and number of chunks.
const TRAILER_LEN: usize = 8;
pub(crate) const FOOTER_POSITION: u64 = u64::MAX;

/// One chunk in a pack. Where it begins follows from those before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PackEntry {
    pub(crate) id: ChunkId,
    /// With the tag.
    pub(crate) stored_len: u32,
    pub(crate) plain_len: u32,
    pub(crate) compression: Compression,
}

impl PackEntry {
    fn encode(&self, bytes: &mut Vec<u8>) {
        bytes.extend_from_slice(&self.id.0);
        bytes.extend_from_slice(&self.stored_len.to_le_bytes());
        bytes.extend_from_slice(&self.plain_len.to_le_bytes());
        bytes.push(self.compression as u8);
    }

    fn decode(reader: &mut BytesReader<'_>) -> Option<Self> {
        let id = ChunkId(reader.array()?);
        let (stored_len, plain_len) = (reader.u32()?, reader.u32()?);
        let compression = Compression::from_number(reader.u8()?)?;
        let tag = u32::try_from(TAG_LEN).ok()?;
        let content = stored_len.checked_sub(tag)?;
        let fits = match compression {
            Compression::Raw => content == plain_len,
            Compression::Zstd => content > 0 && content < plain_len,
        };
        let bounded = plain_len > 0 && usize::try_from(plain_len).ok()? <= MAX_CHUNK_LEN;
        (fits && bounded).then_some(Self { id, stored_len, plain_len, compression })
    }
}

/// A pack and all that is in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PackTable {
    pub(crate) pack: PackId,
    pub(crate) epoch: u32,
    pub(crate) salt: [u8; 32],
    /// Length of the pack object.
    pub(crate) size: u64,
    pub(crate) entries: Vec<PackEntry>,
}

impl PackTable {
    /// Equal for tables that say the same.
    pub(crate) fn digest(&self) -> [u8; 32] {
        let mut bytes = Vec::with_capacity(self.entries.len() * ENTRY_LEN + 64);
        self.encode(&mut bytes);
        *blake3::hash(&bytes).as_bytes()
    }

    /// Each entry with its position and its offset in the object.
    pub(crate) fn places(&self) -> impl Iterator<Item = (u32, u64, &PackEntry)> {
        let mut offset = HEADER_LEN as u64;
        (0_u32..).zip(&self.entries).map(move |(position, entry)| {
            let at = offset;
            offset += u64::from(entry.stored_len);
            (position, at, entry)
        })
    }

    /// The length that an object with these entries has.
    pub(crate) fn object_len(entries: &[PackEntry]) -> u64 {
        let chunks: u64 = entries.iter().map(|entry| u64::from(entry.stored_len)).sum();
        let rest = HEADER_LEN + entries.len() * ENTRY_LEN + TAG_LEN + TRAILER_LEN + HASH_LEN;
        chunks + rest as u64
    }

    /// Everything behind the chunks but the hash: sealed footer and trailer.
    pub(crate) fn encode_footer(key: &ObjectKey, entries: &[PackEntry]) -> Bytes {
        let mut footer = Vec::with_capacity(entries.len() * ENTRY_LEN + TAG_LEN + TRAILER_LEN);
        for entry in entries {
            entry.encode(&mut footer);
        }
        key.seal(FOOTER_POSITION, &mut footer);
        let len = u32::try_from(footer.len()).expect("a footer has at most 65536 entries");
        let count = u32::try_from(entries.len()).expect("a footer has at most 65536 entries");
        footer.extend_from_slice(&len.to_le_bytes());
        footer.extend_from_slice(&count.to_le_bytes());
        footer.into()
    }

    /// How many bytes at the end of a pack object hold footer, trailer and hash, told from its last bytes.
    /// `None`: this is not the end of a pack.
    pub(crate) fn footer_span(tail: &[u8]) -> Option<usize> {
        let (rest, _hash) = tail.split_last_chunk::<HASH_LEN>()?;
        let (_, trailer) = rest.split_last_chunk::<TRAILER_LEN>()?;
        let mut trailer = BytesReader::new(trailer);
        let (len, count) = (trailer.u32()?, trailer.u32()?);
        let (len, count) = (usize::try_from(len).ok()?, usize::try_from(count).ok()?);
        let consistent = (1..=MAX_CHUNKS).contains(&count) && len == count * ENTRY_LEN + TAG_LEN;
        consistent.then_some(len + TRAILER_LEN + HASH_LEN)
    }

    /// Reads the table out of a pack object of `size` bytes that begins with `header`; `end` is as long as
    /// [`Self::footer_span`] said.
    pub(crate) fn decode_footer(ring: &KeyRing, header: &Header, size: u64, end: &[u8]) -> Result<Self> {
        let damaged = |why: &str| Error::damaged(&header.name, why);
        let mut footer = end
            .len()
            .checked_sub(TRAILER_LEN + HASH_LEN)
            .and_then(|len| end.get(..len))
            .ok_or_else(|| damaged("its end is missing"))?
            .to_vec();
        let key = ObjectKey::derive(ring, header)?;
        let plain =
            key.open(FOOTER_POSITION, &mut footer).ok_or_else(|| damaged("its footer does not decrypt"))?;
        let mut reader = BytesReader::new(plain);
        let entries = decode_entries(&mut reader, plain.len() / ENTRY_LEN)
            .filter(|entries| reader.is_empty() && Self::object_len(entries) == size)
            .ok_or_else(|| damaged("its footer does not fit its length"))?;
        Ok(Self { pack: header.name.id, epoch: header.epoch, salt: header.salt, size, entries })
    }

    /// Appends the pack's part of an index segment.
    pub(crate) fn encode(&self, bytes: &mut Vec<u8>) {
        bytes.extend_from_slice(&self.pack.0);
        bytes.extend_from_slice(&self.epoch.to_le_bytes());
        bytes.extend_from_slice(&self.salt);
        bytes.extend_from_slice(&self.size.to_le_bytes());
        let count = u32::try_from(self.entries.len()).expect("a pack has at most 65536 chunks");
        bytes.extend_from_slice(&count.to_le_bytes());
        for entry in &self.entries {
            entry.encode(bytes);
        }
    }

    pub(crate) fn decode(reader: &mut BytesReader<'_>) -> Option<Self> {
        let pack = PackId::from(reader.array::<16>()?);
        let (epoch, salt, size) = (reader.u32()?, reader.array()?, reader.u64()?);
        let count = usize::try_from(reader.u32()?).ok()?;
        let entries = decode_entries(reader, count).filter(|entries| Self::object_len(entries) == size)?;
        if size > Kind::Pack.max_len() {
            return None;
        }
        Some(Self { pack, epoch, salt, size, entries })
    }
}

fn decode_entries(reader: &mut BytesReader<'_>, count: usize) -> Option<Vec<PackEntry>> {
    // Compared before allocating: a count is foreign, the bytes behind it are really there.
    if count == 0 || count > MAX_CHUNKS || count > reader.remaining() / ENTRY_LEN {
        return None;
    }
    (0..count).map(|_| PackEntry::decode(reader)).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::ObjectId;
    use crate::layout::ObjectName;

    fn entry(n: u8) -> PackEntry {
        PackEntry { id: ChunkId([n; 32]), stored_len: 116, plain_len: 100, compression: Compression::Raw }
    }

    #[test]
    fn a_footer_reads_back_and_only_at_its_own_length() {
        let ring = KeyRing::generate(ObjectId::random());
        let header = Header::new(&ring, ObjectName::new(Kind::Pack, ObjectId::random()));
        let key = ObjectKey::derive(&ring, &header).unwrap();
        let entries = vec![entry(1), entry(2)];
        let mut end = PackTable::encode_footer(&key, &entries).to_vec();
        end.extend_from_slice(&[0; HASH_LEN]);
        let span = PackTable::footer_span(&end).unwrap();
        assert_eq!(span, end.len());
        let size = PackTable::object_len(&entries);
        let table = PackTable::decode_footer(&ring, &header, size, &end).unwrap();
        assert_eq!(table.entries, entries);
        assert_eq!(table.places().map(|(_, at, _)| at).collect::<Vec<_>>(), [80, 196]);
        assert!(PackTable::decode_footer(&ring, &header, size + 1, &end).is_err());
        end[3] ^= 1;
        assert!(PackTable::decode_footer(&ring, &header, size, &end).is_err());
    }

    proptest! {
        #[test]
        fn hostile_tables_never_panic_or_allocate_more_than_they_bring(
            bytes in proptest::collection::vec(any::<u8>(), 0..400),
            count in prop_oneof![Just(u32::MAX), Just(65_536), 0_u32..6],
        ) {
            let _ = PackTable::footer_span(&bytes);
            let _ = PackTable::decode(&mut BytesReader::new(&bytes));
            let mut table = PackTable {
                pack: ObjectId::random(), epoch: 1, salt: [0; 32], size: 0, entries: vec![]
            };
            let mut encoded = Vec::new();
            table.encode(&mut encoded);
            let end = encoded.len() - 4;
            encoded[end..].copy_from_slice(&count.to_le_bytes());
            encoded.extend(&bytes);
            prop_assert_eq!(PackTable::decode(&mut BytesReader::new(&encoded)), None);
            table.entries = vec![entry(1)];
            table.size = PackTable::object_len(&table.entries);
            let mut encoded = Vec::new();
            table.encode(&mut encoded);
            prop_assert_eq!(PackTable::decode(&mut BytesReader::new(&encoded)), Some(table));
        }
    }
}
