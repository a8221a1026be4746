//! The keys of a repository, and how each is derived from the ring that a passphrase opens.

use std::collections::BTreeMap;
use std::fmt;

use ring::hkdf;
use zeroize::Zeroizing;

use crate::bytes_reader::BytesReader;
use crate::error::{Error, Result};
use crate::id::random_bytes;
use crate::layout::Kind;
use crate::{ChunkId, RepositoryId};

pub(crate) const KEY_LEN: usize = 32;
/// A ring with more is not one of ours; the bound keeps a hostile one from costing anything.
const MAX_EPOCHS: u32 = 1024;
/// By how much the number of a new epoch is above the one before, at most.
const EPOCH_STEP: u32 = 1 << 20;

pub(crate) type Key = Zeroizing<[u8; KEY_LEN]>;

/// Everything that an open repository needs to read, write and find.
pub(crate) struct KeyRing {
    pub(crate) repository: RepositoryId,
    /// As stored, for wrapping it once more.
    encoded: Zeroizing<Vec<u8>>,
    id_key: Key,
    boundary_key: Key,
    cache_key: Key,
    epochs: BTreeMap<u32, Key>,
    newest: u32,
    is_merged: bool,
}

impl KeyRing {
    /// A new ring with one epoch.
    pub(crate) fn generate(repository: RepositoryId) -> Self {
        let mut encoded = Zeroizing::new(Vec::with_capacity(2 * KEY_LEN + 8));
        encoded.extend_from_slice(&*Zeroizing::new(random_bytes::<KEY_LEN>()));
        encoded.extend_from_slice(&1_u32.to_le_bytes());
        encoded.extend_from_slice(&1_u32.to_le_bytes());
        encoded.extend_from_slice(&*Zeroizing::new(random_bytes::<KEY_LEN>()));
        Self::decode(repository, &encoded).expect("what was just encoded is well formed")
    }

    /// `None`: these bytes are not a ring.
    pub(crate) fn decode(repository: RepositoryId, encoded: &[u8]) -> Option<Self> {
        let mut bytes = BytesReader::new(encoded);
        let master: Key = Zeroizing::new(bytes.array()?);
        let count = bytes.u32().filter(|count| (1..=MAX_EPOCHS).contains(count))?;
        let mut epochs = BTreeMap::new();
        let mut newest = 0;
        for _ in 0..count {
            let number = bytes.u32().filter(|number| *number > newest)?;
            let seed: Key = Zeroizing::new(bytes.array()?);
            let mut info = b"stillframe/1/epoch".to_vec();
            info.extend_from_slice(&number.to_le_bytes());
            epochs.insert(number, derive(&*seed, &*master, &info));
            newest = number;
        }
        bytes.is_empty().then(|| Self {
            repository,
            encoded: Zeroizing::new(encoded.to_vec()),
            id_key: derive(&*master, &[], b"stillframe/1/chunk id"),
            boundary_key: derive(&*master, &[], b"stillframe/1/boundary"),
            cache_key: derive(&*master, &[], b"stillframe/1/cache"),
            epochs,
            newest,
            is_merged: false,
        })
    }

    /// The same with one more epoch. Its number is random within what follows the newest: two rotations at the same time begin two epochs.
    pub(crate) fn with_new_epoch(&self) -> Result<Self> {
        let step = u32::from_le_bytes(random_bytes::<4>()) % EPOCH_STEP + 1;
        let number = self.newest.checked_add(step).filter(|_| self.epochs.len() < MAX_EPOCHS as usize);
        let number = number.ok_or_else(|| {
            Error::Invalid(format!("the keys were rotated {MAX_EPOCHS} times: make a new repository"))
        })?;
        let mut seeds = self.seeds();
        seeds.insert(number, Zeroizing::new(random_bytes::<KEY_LEN>()));
        Ok(self.with_seeds(&seeds))
    }

    /// With the epochs of both. `None`: they are rings of different repositories, or there would be too many.
    pub(crate) fn merged(&self, other: &Self) -> Option<Self> {
        if self.master() != other.master() || self.repository != other.repository {
            return None;
        }
        let mut seeds = self.seeds();
        seeds.extend(other.seeds());
        let knows_all = |ring: &Self| !ring.is_merged && ring.epochs.len() == seeds.len();
        let is_merged = !knows_all(self) && !knows_all(other);
        (seeds.len() <= MAX_EPOCHS as usize).then(|| Self { is_merged, ..self.with_seeds(&seeds) })
    }

    /// Whether no single key that it was read from has all of its epochs.
    pub(crate) fn is_merged(&self) -> bool {
        self.is_merged
    }

    fn master(&self) -> &[u8] {
        self.encoded.get(..KEY_LEN).unwrap_or_default()
    }

    fn seeds(&self) -> BTreeMap<u32, Key> {
        let mut bytes = BytesReader::new(self.encoded.get(KEY_LEN + 4..).unwrap_or_default());
        std::iter::from_fn(|| Some((bytes.u32()?, Zeroizing::new(bytes.array()?)))).collect()
    }

    fn with_seeds(&self, seeds: &BTreeMap<u32, Key>) -> Self {
        let mut encoded = Zeroizing::new(Vec::with_capacity(KEY_LEN + 4 + seeds.len() * (KEY_LEN + 4)));
        encoded.extend_from_slice(self.master());
        let count = u32::try_from(seeds.len()).expect("there are at most 1024");
        encoded.extend_from_slice(&count.to_le_bytes());
        for (number, seed) in seeds {
            encoded.extend_from_slice(&number.to_le_bytes());
            encoded.extend_from_slice(&**seed);
        }
        Self::decode(self.repository, &encoded).expect("what was just encoded is well formed")
    }

    /// Whether it has this epoch.
    pub(crate) fn knows(&self, epoch: u32) -> bool {
        self.epochs.contains_key(&epoch)
    }

    pub(crate) fn encoded(&self) -> &[u8] {
        &self.encoded
    }

    /// The epoch that new objects are written with.
    pub(crate) fn newest_epoch(&self) -> u32 {
        self.newest
    }

    pub(crate) fn epochs(&self) -> impl Iterator<Item = u32> + '_ {
        self.epochs.keys().copied()
    }

    /// The AES-256 key of one object. `None`: an epoch that this ring does not have.
    pub(crate) fn object_key(&self, epoch: u32, kind: Kind, salt: &[u8; 32]) -> Option<Key> {
        let info = format!("stillframe/1/{}", kind.name());
        Some(derive(&**self.epochs.get(&epoch)?, salt, info.as_bytes()))
    }

    pub(crate) fn chunk_id(&self, bytes: &[u8]) -> ChunkId {
        ChunkId(*blake3::keyed_hash(&self.id_key, bytes).as_bytes())
    }

    /// Decides where file lists are cut; says nothing to who does not have the key.
    pub(crate) fn boundary_hash(&self, directory: &str, path: &[u8]) -> u64 {
        let mut hasher = blake3::Hasher::new_keyed(&self.boundary_key);
        hasher.update(directory.as_bytes()).update(&[0]).update(path);
        first_eight(hasher.finalize().as_bytes())
    }

    /// What a row of the local cache must carry to be believed.
    pub(crate) fn cache_check(&self, row: &[u8]) -> u64 {
        first_eight(blake3::keyed_hash(&self.cache_key, row).as_bytes())
    }
}

impl fmt::Debug for KeyRing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyRing").field("repository", &self.repository).finish_non_exhaustive()
    }
}

fn first_eight(hash: &[u8; 32]) -> u64 {
    let (head, _) = hash.split_first_chunk::<8>().expect("32 bytes begin with 8");
    u64::from_le_bytes(*head)
}

/// HKDF-SHA256 to 32 bytes.
fn derive(input: &[u8], salt: &[u8], info: &[u8]) -> Key {
    let mut key = Zeroizing::new([0; KEY_LEN]);
    hkdf::Salt::new(hkdf::HKDF_SHA256, salt)
        .extract(input)
        .expand(&[info], hkdf::HKDF_SHA256)
        .and_then(|okm| okm.fill(&mut *key))
        .expect("32 bytes are within what HKDF-SHA256 gives");
    key
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::ObjectId;

    #[test]
    fn a_ring_with_a_second_epoch_reads_what_the_first_wrote() {
        let repository = ObjectId::random();
        let old = KeyRing::generate(repository);
        let mut encoded = old.encoded().to_vec();
        encoded[32] = 2;
        encoded.extend_from_slice(&7_u32.to_le_bytes());
        encoded.extend_from_slice(&[9; 32]);
        let new = KeyRing::decode(repository, &encoded).unwrap();
        assert_eq!(new.newest_epoch(), 7);
        assert_eq!(new.chunk_id(b"x"), old.chunk_id(b"x"));
        let salt = [1; 32];
        assert_eq!(new.object_key(1, Kind::Pack, &salt), old.object_key(1, Kind::Pack, &salt));
        assert_ne!(new.object_key(1, Kind::Pack, &salt), new.object_key(7, Kind::Pack, &salt));
        assert_ne!(new.object_key(1, Kind::Pack, &salt), new.object_key(1, Kind::Index, &salt));
        assert_eq!(old.object_key(7, Kind::Pack, &salt), None);
    }

    #[test]
    fn rings_of_two_rotations_at_once_read_together_what_each_wrote() {
        let repository = ObjectId::random();
        let old = KeyRing::generate(repository);
        let (one, two) = (old.with_new_epoch().unwrap(), old.with_new_epoch().unwrap());
        let both = one.merged(&two).unwrap();
        assert_eq!(both.epochs().count(), 3);
        assert!(both.is_merged() && !both.with_new_epoch().unwrap().is_merged());
        assert!(both.merged(&one).unwrap().is_merged());
        assert!(!one.merged(&old).unwrap().is_merged() && !old.merged(&one).unwrap().is_merged());
        assert_eq!(both.chunk_id(b"x"), old.chunk_id(b"x"));
        for ring in [&old, &one, &two] {
            let (epoch, salt) = (ring.newest_epoch(), [3; 32]);
            assert!(both.knows(epoch));
            assert_eq!(both.object_key(epoch, Kind::Pack, &salt), ring.object_key(epoch, Kind::Pack, &salt));
        }
        assert!(!one.knows(two.newest_epoch()) && one.newest_epoch() > old.newest_epoch());
        assert!(one.merged(&KeyRing::generate(repository)).is_none());
    }

    #[test]
    fn debug_shows_no_key() {
        let ring = KeyRing::generate(ObjectId::random());
        let text = format!("{ring:?}");
        assert!(text.len() < 100, "{text}");
    }

    proptest! {
        #[test]
        fn hostile_rings_are_refused_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            if let Some(ring) = KeyRing::decode(ObjectId([0; 16]), &bytes) {
                prop_assert_eq!(ring.encoded(), &bytes[..]);
            }
        }
    }
}
