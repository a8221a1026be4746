//! `index/<id>`: some packs and what is in them. A hint, never the truth.

use bytes::Bytes;
use stillframe_storage::object_store::PutPayload;

use crate::bytes_reader::BytesReader;
use crate::envelope::{open_object, seal_object};
use crate::error::{Error, Result};
use crate::key_ring::KeyRing;
use crate::layout::ObjectName;
use crate::pack_table::{MAX_CHUNKS, PackTable};

/// A segment holds at most so many chunks.
pub(crate) const MAX_SEGMENT_CHUNKS: usize = MAX_CHUNKS;
/// And is written when it holds so many packs.
pub(crate) const SEGMENT_PACKS: usize = 16;

/// Seals a segment.
pub(crate) fn encode(ring: &KeyRing, name: ObjectName, packs: &[PackTable]) -> PutPayload {
    let mut body = Vec::new();
    let count = u32::try_from(packs.len()).expect("a segment holds a few packs");
    body.extend_from_slice(&count.to_le_bytes());
    for pack in packs {
        pack.encode(&mut body);
    }
    seal_object(ring, name, body).0
}

/// Opens one.
pub(crate) fn decode(ring: &KeyRing, name: ObjectName, bytes: &Bytes) -> Result<Vec<PackTable>> {
    let body = open_object(ring, name, bytes)?;
    decode_body(&body).ok_or_else(|| Error::damaged(&name, "its body is malformed"))
}

fn decode_body(body: &[u8]) -> Option<Vec<PackTable>> {
    let mut reader = BytesReader::new(body);
    let count = reader.u32()?;
    let mut packs = Vec::new();
    let mut chunks = 0;
    for _ in 0..count {
        let pack = PackTable::decode(&mut reader)?;
        chunks += pack.entries.len();
        if chunks > MAX_SEGMENT_CHUNKS {
            return None;
        }
        packs.push(pack);
    }
    reader.is_empty().then_some(packs)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn hostile_segments_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = decode_body(&bytes);
            let mut counted = 3_u32.to_le_bytes().to_vec();
            counted.extend(bytes);
            prop_assert_eq!(decode_body(&counted), None);
        }
    }
}
