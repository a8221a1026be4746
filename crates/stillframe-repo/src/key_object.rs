//! `keys/<id>`: the key ring, wrapped for one passphrase or bare.

use std::fmt;

use argon2::{Algorithm, Argon2, Params, Version};
use bytes::Bytes;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use stillframe_storage::object_store::PutPayload;
use zeroize::Zeroizing;

use crate::bytes_reader::BytesReader;
use crate::envelope::{Header, ObjectKey, TAG_LEN, frame, unframe};
use crate::error::{Error, Result};
use crate::key_ring::{KEY_LEN, Key, KeyRing};
use crate::layout::ObjectName;
use crate::{ObjectId, RepositoryId};

const WRAPPING_NONE: u8 = 0;
const WRAPPING_ARGON2ID: u8 = 1;
const RING_POSITION: u64 = 0;
const DESCRIPTION_POSITION: u64 = 1;

/// A passphrase. Never shown by `Debug`, wiped when dropped.
#[derive(Clone)]
pub struct Passphrase(Zeroizing<String>);

impl Passphrase {
    /// Takes the text over.
    pub fn new(text: String) -> Self {
        Self(Zeroizing::new(text))
    }
}

impl From<&str> for Passphrase {
    fn from(text: &str) -> Self {
        Self::new(text.to_owned())
    }
}

impl fmt::Debug for Passphrase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Passphrase(…)")
    }
}

/// How hard it is to try a passphrase: Argon2id's parameters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PassphraseCost {
    /// KiB of memory.
    pub memory_kib: u32,
    /// Passes over it.
    pub passes: u32,
    /// Lanes.
    pub lanes: u32,
}

impl Default for PassphraseCost {
    /// The second recommendation of RFC 9106: 64 MiB, 3 passes, 4 lanes.
    fn default() -> Self {
        Self { memory_kib: 64 << 10, passes: 3, lanes: 4 }
    }
}

impl PassphraseCost {
    /// What a stored object may ask of who reads it: a hostile one must not take all memory or run for ever.
    fn is_bearable(self) -> bool {
        let work = u64::from(self.memory_kib) * u64::from(self.passes);
        self.memory_kib <= 1 << 20 && self.passes <= 64 && self.lanes <= 64 && work <= 8 << 20
    }

    /// The wrapping key. `None`: parameters that Argon2 does not allow, or no memory.
    fn wrapping_key(self, passphrase: &Passphrase, salt: &[u8; 32]) -> Option<Key> {
        let params = Params::new(self.memory_kib, self.passes, self.lanes, Some(KEY_LEN)).ok()?;
        let mut key = Zeroizing::new([0; KEY_LEN]);
        Argon2::new(Algorithm::Argon2id, Version::V0x13, params)
            .hash_password_into(passphrase.0.as_bytes(), salt, &mut *key)
            .ok()?;
        Some(key)
    }
}

/// What a key says of itself to who can open the repository.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct KeyDescription {
    pub(crate) label: String,
    pub(crate) created: Timestamp,
}

/// A stored key as far as it can be read without opening it.
pub(crate) struct KeyObject {
    header: Header,
    /// `None`: the ring is bare.
    pub(crate) cost: Option<PassphraseCost>,
    wrapped: Bytes,
    description: Bytes,
}

impl KeyObject {
    /// Makes one for `ring`; bare without a passphrase.
    pub(crate) fn encode(
        ring: &KeyRing,
        name: ObjectName,
        wrapping: Option<(&Passphrase, PassphraseCost)>,
        description: &KeyDescription,
    ) -> Result<PutPayload> {
        let header = Header::new(ring, name);
        let mut body = Vec::with_capacity(512);
        let mut encoded = Zeroizing::new(ring.encoded().to_vec());
        let cost = match wrapping {
            None => {
                body.push(WRAPPING_NONE);
                PassphraseCost { memory_kib: 0, passes: 0, lanes: 0 }
            }
            Some((passphrase, cost)) => {
                let key = cost.wrapping_key(passphrase, &header.salt).filter(|_| cost.is_bearable());
                let key = key.ok_or_else(|| {
                    Error::Invalid(
                        "the passphrase's cost is out of bounds, or there is no memory for it".into(),
                    )
                })?;
                ObjectKey::from_key(&key, &header).seal(RING_POSITION, &mut encoded);
                body.push(WRAPPING_ARGON2ID);
                cost
            }
        };
        body.extend_from_slice(&[0; 3]);
        for number in [cost.memory_kib, cost.passes, cost.lanes] {
            body.extend_from_slice(&number.to_le_bytes());
        }
        let mut description = serde_json::to_vec(description)
            .expect("a description is strings and a time, which JSON can hold");
        ObjectKey::derive(ring, &header)?.seal(DESCRIPTION_POSITION, &mut description);
        for part in [&*encoded, &description] {
            let len = u32::try_from(part.len())
                .map_err(|_| Error::Invalid("the key's label is too long".into()))?;
            body.extend_from_slice(&len.to_le_bytes());
            body.extend_from_slice(part);
        }
        if body.len() > 60 << 10 {
            return Err(Error::Invalid("the key's label is too long".into()));
        }
        Ok(frame(&header, vec![body.into()]).0)
    }

    /// Reads the frame and the parameters.
    pub(crate) fn decode(name: ObjectName, bytes: &Bytes) -> Result<Self> {
        let (header, body) = unframe(name, bytes)?;
        Self::decode_body(header, &body).ok_or_else(|| Error::damaged(&name, "its body is malformed"))
    }

    fn decode_body(header: Header, body: &Bytes) -> Option<Self> {
        let mut reader = BytesReader::new(body);
        let wrapping = reader.u8()?;
        reader.take(3)?;
        let cost = PassphraseCost { memory_kib: reader.u32()?, passes: reader.u32()?, lanes: reader.u32()? };
        let wrapped = body.slice_ref(reader.long()?);
        let description = body.slice_ref(reader.long()?);
        let cost = match wrapping {
            WRAPPING_NONE => None,
            WRAPPING_ARGON2ID => Some(cost),
            _ => return None,
        };
        reader.is_empty().then_some(Self { header, cost, wrapped, description })
    }

    pub(crate) fn id(&self) -> ObjectId {
        self.header.name.id
    }

    /// The newest epoch that its ring has.
    pub(crate) fn epoch(&self) -> u32 {
        self.header.epoch
    }

    /// Which repository's key it says it is.
    pub(crate) fn repository(&self) -> RepositoryId {
        self.header.repository
    }

    /// The ring, if it is bare.
    pub(crate) fn open_bare(&self) -> Result<KeyRing> {
        KeyRing::decode(self.header.repository, &self.wrapped)
            .filter(|_| self.cost.is_none())
            .ok_or_else(|| Error::damaged(&self.header.name, "its key ring is malformed"))
    }

    /// The ring, if it is wrapped and this is the passphrase. `None`: it is not. Takes as long as the parameters say.
    pub(crate) fn open_wrapped(&self, passphrase: &Passphrase) -> Result<Option<KeyRing>> {
        let Some(cost) = self.cost else { return Ok(None) };
        let damaged = |why: &str| Error::damaged(&self.header.name, why);
        if !cost.is_bearable() {
            return Err(damaged("it asks for more memory or time than any key of Stillframe does"));
        }
        let key = cost
            .wrapping_key(passphrase, &self.header.salt)
            .ok_or_else(|| damaged("its parameters are not allowed, or there is no memory for them"))?;
        let mut encoded = Zeroizing::new(self.wrapped.to_vec());
        if ObjectKey::from_key(&key, &self.header).open(RING_POSITION, &mut encoded).is_none() {
            return Ok(None);
        }
        let len = encoded.len().saturating_sub(TAG_LEN);
        encoded.truncate(len);
        let ring = KeyRing::decode(self.header.repository, &encoded);
        ring.map(Some).ok_or_else(|| damaged("its key ring is malformed"))
    }

    /// What the key says of itself.
    pub(crate) fn describe(&self, ring: &KeyRing) -> Result<KeyDescription> {
        let mut bytes = self.description.to_vec();
        let plain = ObjectKey::derive(ring, &self.header)?.open(DESCRIPTION_POSITION, &mut bytes);
        plain
            .and_then(|json| serde_json::from_slice(json).ok())
            .ok_or_else(|| Error::damaged(&self.header.name, "its description does not decrypt"))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::layout::Kind;

    const CHEAP: PassphraseCost = PassphraseCost { memory_kib: 64, passes: 1, lanes: 1 };

    fn flatten(payload: &PutPayload) -> Bytes {
        payload.iter().flatten().copied().collect::<Vec<u8>>().into()
    }

    fn description() -> KeyDescription {
        KeyDescription { label: "first".into(), created: Timestamp::UNIX_EPOCH }
    }

    #[test]
    fn only_the_right_passphrase_opens_a_wrapped_ring_and_no_passphrase_opens_a_bare_one() {
        let ring = KeyRing::generate(ObjectId::random());
        let name = ObjectName::new(Kind::Keys, ObjectId::random());
        let wrapped = KeyObject::encode(&ring, name, Some((&"right".into(), CHEAP)), &description()).unwrap();
        let object = KeyObject::decode(name, &flatten(&wrapped)).unwrap();
        assert!(object.open_wrapped(&"wrong".into()).unwrap().is_none());
        assert!(object.open_bare().is_err());
        let opened = object.open_wrapped(&"right".into()).unwrap().unwrap();
        assert_eq!(opened.encoded(), ring.encoded());
        assert_eq!(object.describe(&opened).unwrap(), description());

        let bare = KeyObject::encode(&ring, name, None, &description()).unwrap();
        let object = KeyObject::decode(name, &flatten(&bare)).unwrap();
        assert!(
            object.open_wrapped(&"right".into()).unwrap().is_none(),
            "a bare ring must not be slipped in"
        );
        assert_eq!(object.open_bare().unwrap().encoded(), ring.encoded());
    }

    #[test]
    fn a_hostile_cost_is_refused_before_it_costs_anything() {
        let ring = KeyRing::generate(ObjectId::random());
        let name = ObjectName::new(Kind::Keys, ObjectId::random());
        let payload = KeyObject::encode(&ring, name, Some((&"p".into(), CHEAP)), &description()).unwrap();
        let mut object = KeyObject::decode(name, &flatten(&payload)).unwrap();
        for cost in [
            PassphraseCost { memory_kib: u32::MAX, ..CHEAP },
            PassphraseCost { memory_kib: (1 << 20) + 1, ..CHEAP },
            PassphraseCost { passes: u32::MAX, ..CHEAP },
            PassphraseCost { lanes: u32::MAX, ..CHEAP },
            PassphraseCost { memory_kib: 1 << 20, passes: 9, lanes: 1 },
            PassphraseCost { memory_kib: 0, ..CHEAP },
            PassphraseCost { passes: 0, ..CHEAP },
            PassphraseCost { lanes: 0, ..CHEAP },
        ] {
            object.cost = Some(cost);
            assert!(object.open_wrapped(&"p".into()).is_err(), "{cost:?}");
        }
    }

    proptest! {
        #[test]
        fn hostile_bodies_never_panic(body in proptest::collection::vec(any::<u8>(), 0..200)) {
            let ring = KeyRing::generate(ObjectId::random());
            let name = ObjectName::new(Kind::Keys, ObjectId::random());
            if let Some(object) = KeyObject::decode_body(Header::new(&ring, name), &body.into()) {
                let _ = object.open_bare();
                prop_assert!(object.describe(&ring).is_err());
            }
        }
    }
}
