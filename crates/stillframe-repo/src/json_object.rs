//! Small objects whose body is JSON.

use std::collections::BTreeMap;

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};
use serde::Serialize;
use serde::de::DeserializeOwned;
use stillframe_storage::object_store::PutPayload;

use crate::ObjectId;
use crate::envelope::{open_object, seal_object};
use crate::error::{Error, Result, set_apart};
use crate::index::CONCURRENCY;
use crate::key_ring::KeyRing;
use crate::layout::{Kind, ObjectName};
use crate::object_io::ObjectIo;

/// Seals it. What no reader would take is refused.
pub(crate) fn encode(ring: &KeyRing, name: ObjectName, value: &impl Serialize) -> Result<PutPayload> {
    let body = serde_json::to_vec(value)
        .map_err(|error| Error::Invalid(format!("{name} cannot be written as JSON: {error}")))?;
    let (payload, _) = seal_object(ring, name, body);
    if payload.content_length() as u64 > name.kind.max_len() {
        return Err(Error::Invalid(format!("{name} would be larger than {} bytes", name.kind.max_len())));
    }
    Ok(payload)
}

/// Opens it.
pub(crate) fn decode<T: DeserializeOwned>(ring: &KeyRing, name: ObjectName, bytes: &Bytes) -> Result<T> {
    let body = open_object(ring, name, bytes)?;
    serde_json::from_slice(&body)
        .map_err(|error| Error::damaged(&name, format!("its JSON is malformed: {error}")))
}

/// Reads one that nothing depends on. `None`: it is not there. Of one that cannot be understood the damage is told.
pub(crate) async fn read<T: DeserializeOwned>(
    io: &ObjectIo,
    ring: &KeyRing,
    name: ObjectName,
) -> Result<Option<Result<T>>> {
    set_apart(io.get(name).await.and_then(|bytes| decode(ring, name, &bytes)))
}

/// All of a kind, a few at a time.
pub(crate) async fn read_all<T: DeserializeOwned>(
    io: &ObjectIo,
    ring: &KeyRing,
    kind: Kind,
) -> Result<BTreeMap<ObjectId, Result<T>>> {
    let listed = io.list(kind).await?;
    let one = async |id| Ok((id, read(io, ring, ObjectName::new(kind, id)).await?));
    let read = stream::iter(listed).map(|listed| one(listed.id)).buffer_unordered(CONCURRENCY);
    read.try_filter_map(async |(id, value)| Ok(value.map(|value| (id, value)))).try_collect().await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_no_reader_would_take_is_not_written() {
        let ring = KeyRing::generate(ObjectId::random());
        let name = ObjectName::new(Kind::Pin, ObjectId::random());
        let payload = encode(&ring, name, &"x".repeat(60_000)).unwrap();
        let bytes: Bytes = payload.iter().flatten().copied().collect::<Vec<u8>>().into();
        assert_eq!(decode::<String>(&ring, name, &bytes).unwrap(), "x".repeat(60_000));
        assert!(matches!(decode::<u32>(&ring, name, &bytes).unwrap_err(), Error::Damaged { .. }));
        assert!(matches!(encode(&ring, name, &"x".repeat(66_000)).unwrap_err(), Error::Invalid(_)));
    }
}
