//! `marks/<id>`: the packs that a running sweep is going to delete. Sweepers put them, writers only read them.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use bytes::Bytes;
use stillframe_storage::object_store::PutPayload;

use crate::bytes_reader::BytesReader;
use crate::envelope::{open_object, seal_object};
use crate::error::{Error, Result};
use crate::key_ring::KeyRing;
use crate::layout::{Kind, ObjectName};
use crate::object_io::ObjectIo;
use crate::{ObjectId, PackId};

/// Seals a mark.
pub(crate) fn encode(ring: &KeyRing, name: ObjectName, packs: &BTreeSet<PackId>) -> PutPayload {
    let mut body = Vec::with_capacity(packs.len() * 16 + 4);
    let count = u32::try_from(packs.len()).expect("a mark of 64 MiB holds 4 million packs");
    body.extend_from_slice(&count.to_le_bytes());
    for pack in packs {
        body.extend_from_slice(&pack.0);
    }
    seal_object(ring, name, body).0
}

/// Opens one.
pub(crate) fn decode(ring: &KeyRing, name: ObjectName, bytes: &Bytes) -> Result<Vec<PackId>> {
    let body = open_object(ring, name, bytes)?;
    decode_body(&body).ok_or_else(|| Error::damaged(&name, "its body is malformed"))
}

fn decode_body(body: &[u8]) -> Option<Vec<PackId>> {
    let mut reader = BytesReader::new(body);
    let count = usize::try_from(reader.u32()?).ok()?;
    if reader.remaining() != count.checked_mul(16)? {
        return None;
    }
    let packs: Option<Vec<PackId>> = (0..count).map(|_| reader.array().map(ObjectId)).collect();
    packs.filter(|packs| packs.is_sorted_by(|a, b| a < b))
}

/// The packs that any mark names.
pub(crate) async fn marked(io: &ObjectIo, ring: &KeyRing) -> Result<HashSet<PackId>> {
    Ok(read_all(io, ring).await?.into_values().flatten().collect())
}

/// All marks with the packs that they name.
///
/// One that vanishes between list and read is given without packs: they are gone by then, which the list of packs shows. One
/// that cannot be read stops the caller: nobody can say which packs it protects from being relied on.
pub(crate) async fn read_all(io: &ObjectIo, ring: &KeyRing) -> Result<BTreeMap<ObjectId, Vec<PackId>>> {
    let mut marks = BTreeMap::new();
    for listed in io.list(Kind::Mark).await? {
        let name = ObjectName::new(Kind::Mark, listed.id);
        let packs = match io.get(name).await {
            Ok(bytes) => decode(ring, name, &bytes).map_err(|error| match error {
                Error::Damaged { object, why } => Error::Damaged {
                    object,
                    why: format!("{why}; nobody can say which packs are about to be deleted: when no sweep is running, remove it"),
                },
                error => error,
            })?,
            Err(error) if error.is_absent() => Vec::new(),
            Err(error) => return Err(error),
        };
        marks.insert(listed.id, packs);
    }
    Ok(marks)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn hostile_marks_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..100), count: u32) {
            let _ = decode_body(&bytes);
            let mut body = count.to_le_bytes().to_vec();
            body.extend(bytes);
            let _ = decode_body(&body);
        }
    }
}
