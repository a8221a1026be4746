//! The frame that all stored objects share: header, body, hash; and the sealing of what is in the body.

use bytes::{Bytes, BytesMut};
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use stillframe_storage::object_store::PutPayload;

use crate::bytes_reader::BytesReader;
use crate::error::{Error, Result};
use crate::id::random_bytes;
use crate::key_ring::{Key, KeyRing};
use crate::layout::{Kind, ObjectName};
use crate::{ObjectId, RepositoryId};

pub(crate) const MAGIC: &[u8; 8] = b"STILLFRM";
pub(crate) const FORMAT: u8 = 1;
pub(crate) const HEADER_LEN: usize = 80;
pub(crate) const HASH_LEN: usize = 32;
pub(crate) const TAG_LEN: usize = 16;

/// The first 80 bytes of a stored object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) name: ObjectName,
    pub(crate) repository: RepositoryId,
    pub(crate) epoch: u32,
    pub(crate) salt: [u8; 32],
}

impl Header {
    /// For a new object, with a salt of its own.
    pub(crate) fn new(ring: &KeyRing, name: ObjectName) -> Self {
        Self { name, repository: ring.repository, epoch: ring.newest_epoch(), salt: random_bytes() }
    }

    pub(crate) fn encode(&self) -> [u8; HEADER_LEN] {
        let mut bytes = [0; HEADER_LEN];
        bytes[..8].copy_from_slice(MAGIC);
        bytes[8] = self.name.kind as u8;
        bytes[9] = FORMAT;
        bytes[12..16].copy_from_slice(&self.epoch.to_le_bytes());
        bytes[16..32].copy_from_slice(&self.repository.0);
        bytes[32..48].copy_from_slice(&self.name.id.0);
        bytes[48..].copy_from_slice(&self.salt);
        bytes
    }

    /// Reads the header of the object that was found under `name`. Which repository it says it belongs to is for the
    /// caller to compare; everything else is checked.
    pub(crate) fn decode(name: ObjectName, bytes: &[u8]) -> Result<Self> {
        let damaged = |why: &str| Error::damaged(&name, why);
        let header = bytes.first_chunk::<HEADER_LEN>().ok_or_else(|| damaged("it is too short"))?;
        check_magic(name, header)?;
        let (_, rest) = header.split_at(10);
        let mut rest = BytesReader::new(rest);
        if rest.u16() != Some(0) {
            return Err(damaged("its header has bytes that should be zero"));
        }
        let (Some(epoch), Some(repository), Some(id), Some(salt)) =
            (rest.u32(), rest.array(), rest.array(), rest.array())
        else {
            return Err(damaged("its header is too short"));
        };
        if Kind::from_number(header[8]) != Some(name.kind) {
            return Err(damaged("it is an object of another kind"));
        }
        if id != name.id.0 {
            return Err(damaged("it carries the name of another object"));
        }
        Ok(Self { name, repository: ObjectId(repository), epoch, salt })
    }
}

fn not_ours(name: ObjectName) -> Error {
    Error::damaged(&name, "it does not begin as an object of Stillframe does")
}

fn check_magic(name: ObjectName, header: &[u8; HEADER_LEN]) -> Result<()> {
    if !header.starts_with(MAGIC) {
        return Err(not_ours(name));
    }
    match header[9] {
        FORMAT => Ok(()),
        0 => Err(Error::damaged(&name, "its format version is zero")),
        newer => Err(Error::NewerFormat {
            object: name.to_string(),
            found: u64::from(newer),
            supported: u64::from(FORMAT),
        }),
    }
}

/// Checks a whole object as far as that goes without keys, and returns its header and body.
pub(crate) fn unframe(name: ObjectName, bytes: &Bytes) -> Result<(Header, Bytes)> {
    let damaged = |why: &str| Error::damaged(&name, why);
    let header = bytes.first_chunk::<HEADER_LEN>().ok_or_else(|| damaged("it is too short"))?;
    if !header.starts_with(MAGIC) {
        return Err(not_ours(name));
    }
    let (content, hash) = bytes.split_last_chunk::<HASH_LEN>().ok_or_else(|| damaged("it is too short"))?;
    if content.len() < HEADER_LEN {
        return Err(damaged("it is too short"));
    }
    if blake3::hash(content) != *hash {
        return Err(damaged("its hash does not match its bytes"));
    }
    // Whatever a later version is, it is one if its hash says that nobody changed it.
    check_magic(name, header)?;
    let header = Header::decode(name, content)?;
    Ok((header, bytes.slice(HEADER_LEN..bytes.len() - HASH_LEN)))
}

/// Seals and opens the parts of one object.
pub(crate) struct ObjectKey {
    key: LessSafeKey,
    header: [u8; HEADER_LEN],
}

impl ObjectKey {
    /// The key of the object that `header` begins.
    pub(crate) fn derive(ring: &KeyRing, header: &Header) -> Result<Self> {
        match ring.object_key(header.epoch, header.name.kind, &header.salt) {
            Some(key) => Ok(Self::from_key(&key, header)),
            None => Err(Error::damaged(
                &header.name,
                format!(
                    "it is sealed with epoch {}, which the key ring does not have (after a rotation of the keys, run again)",
                    header.epoch
                ),
            )),
        }
    }

    /// With a key that comes from elsewhere (a passphrase).
    pub(crate) fn from_key(key: &Key, header: &Header) -> Self {
        let key = UnboundKey::new(&AES_256_GCM, &**key).expect("the key has the length of AES-256");
        Self { key: LessSafeKey::new(key), header: header.encode() }
    }

    fn nonce_and_aad(&self, position: u64) -> (Nonce, Aad<[u8; HEADER_LEN + 8]>) {
        let mut nonce = [0; 12];
        nonce[..8].copy_from_slice(&position.to_le_bytes());
        let mut aad = [0; HEADER_LEN + 8];
        aad[..HEADER_LEN].copy_from_slice(&self.header);
        aad[HEADER_LEN..].copy_from_slice(&position.to_le_bytes());
        (Nonce::assume_unique_for_key(nonce), Aad::from(aad))
    }

    /// Encrypts in place and appends the tag. No position is ever used twice for one object.
    pub(crate) fn seal(&self, position: u64, bytes: &mut Vec<u8>) {
        let (nonce, aad) = self.nonce_and_aad(position);
        bytes.reserve_exact(TAG_LEN);
        self.key
            .seal_in_place_append_tag(nonce, aad, bytes)
            .expect("a part of an object is far below the limit of AES-GCM");
    }

    /// Encrypts in place and returns the tag, which belongs behind the bytes.
    pub(crate) fn seal_separate(&self, position: u64, bytes: &mut [u8]) -> [u8; TAG_LEN] {
        let (nonce, aad) = self.nonce_and_aad(position);
        let tag = self.key.seal_in_place_separate_tag(nonce, aad, bytes);
        let tag = tag.expect("a part of an object is far below the limit of AES-GCM");
        tag.as_ref().try_into().expect("the tags of AES-GCM have 16 bytes")
    }

    /// Decrypts in place. `None`: not what was sealed here.
    pub(crate) fn open<'a>(&self, position: u64, bytes: &'a mut [u8]) -> Option<&'a mut [u8]> {
        let (nonce, aad) = self.nonce_and_aad(position);
        self.key.open_in_place(nonce, aad, bytes).ok()
    }
}

/// An object whose body is one sealed part; ready to be put. Returns its hash, too.
pub(crate) fn seal_object(ring: &KeyRing, name: ObjectName, mut body: Vec<u8>) -> (PutPayload, blake3::Hash) {
    let header = Header::new(ring, name);
    let key = ObjectKey::derive(ring, &header).expect("a ring has its newest epoch");
    key.seal(0, &mut body);
    frame(&header, vec![Bytes::from(body)])
}

/// Puts header and hash around a body.
pub(crate) fn frame(header: &Header, body: Vec<Bytes>) -> (PutPayload, blake3::Hash) {
    let header = Bytes::copy_from_slice(&header.encode());
    let mut hasher = blake3::Hasher::new();
    hasher.update(&header);
    for part in &body {
        hasher.update(part);
    }
    let hash = hasher.finalize();
    let hash_bytes = Bytes::copy_from_slice(hash.as_bytes());
    (std::iter::once(header).chain(body).chain([hash_bytes]).collect(), hash)
}

/// Opens an object whose body is one sealed part.
pub(crate) fn open_object(ring: &KeyRing, name: ObjectName, bytes: &Bytes) -> Result<Vec<u8>> {
    let (header, body) = unframe(name, bytes)?;
    check_repository(ring, &header)?;
    let mut body = into_mut(body);
    let key = ObjectKey::derive(ring, &header)?;
    match key.open(0, &mut body) {
        Some(plain) => Ok(plain.to_vec()),
        None => {
            Err(Error::damaged(&name, "it does not decrypt: it was not written with this repository's keys"))
        }
    }
}

pub(crate) fn check_repository(ring: &KeyRing, header: &Header) -> Result<()> {
    if header.repository != ring.repository {
        return Err(Error::damaged(&header.name, format!("it belongs to repository {}", header.repository)));
    }
    Ok(())
}

/// Without a copy where nobody else holds the bytes.
pub(crate) fn into_mut(bytes: Bytes) -> BytesMut {
    bytes.try_into_mut().unwrap_or_else(|shared| BytesMut::from(&*shared))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn flatten(payload: &PutPayload) -> Bytes {
        payload.iter().flatten().copied().collect::<Vec<u8>>().into()
    }

    fn name() -> ObjectName {
        ObjectName::new(Kind::Manifest, ObjectId::random())
    }

    #[test]
    fn each_changed_bit_and_each_cut_of_an_object_is_found() {
        let ring = KeyRing::generate(ObjectId::random());
        let name = name();
        let whole = flatten(&seal_object(&ring, name, b"hello".to_vec()).0);
        assert_eq!(open_object(&ring, name, &whole).unwrap(), b"hello");
        for bit in 0..whole.len() * 8 {
            let mut bytes = whole.to_vec();
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert!(open_object(&ring, name, &bytes.into()).is_err(), "bit {bit}");
        }
        for len in 0..whole.len() {
            assert!(open_object(&ring, name, &whole.slice(..len)).is_err(), "length {len}");
        }
    }

    #[test]
    fn an_object_under_another_name_or_in_another_repository_or_of_another_kind_is_refused() {
        let ring = KeyRing::generate(ObjectId::random());
        let name = name();
        let whole = flatten(&seal_object(&ring, name, b"hello".to_vec()).0);
        let other_name = ObjectName::new(Kind::Manifest, ObjectId::random());
        assert!(open_object(&ring, other_name, &whole).is_err());
        assert!(open_object(&ring, ObjectName::new(Kind::Sealed, name.id), &whole).is_err());
        assert!(open_object(&KeyRing::generate(ObjectId::random()), name, &whole).is_err());
        let mut other_ring = KeyRing::generate(ring.repository);
        assert!(open_object(&other_ring, name, &whole).is_err());
        other_ring.repository = ObjectId::random();
        assert!(open_object(&other_ring, name, &whole).is_err());
        // The same keys under another id: nothing but the id in the header tells the two repositories apart.
        let same_keys = KeyRing::decode(ObjectId::random(), ring.encoded()).unwrap();
        let error = open_object(&same_keys, name, &whole).unwrap_err().to_string();
        assert!(error.contains(&ring.repository.to_string()), "{error}");
    }

    #[test]
    fn who_mends_the_hash_after_a_change_does_not_get_through() {
        let ring = KeyRing::generate(ObjectId::random());
        let name = name();
        let whole = flatten(&seal_object(&ring, name, b"hello".to_vec()).0);
        for at in 0..whole.len() - HASH_LEN {
            let mut bytes = whole.to_vec();
            bytes[at] ^= 1;
            let end = bytes.len() - HASH_LEN;
            let hash = blake3::hash(&bytes[..end]);
            bytes[end..].copy_from_slice(hash.as_bytes());
            assert!(open_object(&ring, name, &bytes.into()).is_err(), "byte {at}");
        }
    }

    #[test]
    fn a_newer_version_is_told_from_damage() {
        let ring = KeyRing::generate(ObjectId::random());
        let name = name();
        let mut bytes = flatten(&seal_object(&ring, name, Vec::new()).0).to_vec();
        bytes[9] = 2;
        let rotten = open_object(&ring, name, &bytes.clone().into()).unwrap_err();
        assert!(matches!(rotten, Error::Damaged { .. }), "nobody wrote that version: {rotten}");
        let end = bytes.len() - HASH_LEN;
        let hash = blake3::hash(&bytes[..end]);
        bytes[end..].copy_from_slice(hash.as_bytes());
        let error = open_object(&ring, name, &bytes.into()).unwrap_err();
        assert!(matches!(error, Error::NewerFormat { found: 2, .. }), "{error}");
    }

    proptest! {
        #[test]
        fn hostile_frames_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300), good_start: bool) {
            let ring = KeyRing::generate(ObjectId::random());
            let name = name();
            let mut bytes = bytes;
            if good_start {
                let header = Header::new(&ring, name).encode();
                bytes.splice(0..0, header);
                let hash = blake3::hash(&bytes);
                bytes.extend_from_slice(hash.as_bytes());
            }
            prop_assert!(open_object(&ring, name, &bytes.into()).is_err());
        }
    }
}
