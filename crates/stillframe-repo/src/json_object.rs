//! Small objects whose body is JSON.

use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;
use stillframe_storage::object_store::PutPayload;

use crate::envelope::{open_object, seal_object};
use crate::error::{Error, Result};
use crate::key_ring::KeyRing;
use crate::layout::ObjectName;

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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ObjectId;
    use crate::layout::Kind;

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
