//! Getting chunks out of packs: located, fetched, decrypted, decompressed, and compared with their names.

use std::borrow::Cow;
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use bytes::{Bytes, BytesMut};

use crate::compression::{Compression, decompress};
use crate::envelope::{Header, ObjectKey, into_mut};
use crate::error::{Error, Result};
use crate::index::{Index, blocking};
use crate::index_cache::Location;
use crate::key_ring::KeyRing;
use crate::layout::{Kind, ObjectName};
use crate::object_io::ObjectIo;
use crate::{ChunkId, ChunkRef, Repository};

/// Decoding less than this takes less time than handing it to another thread.
const INLINE_BYTES: usize = 16 << 10;
const MAX_REFRESHES: u32 = 64;

/// Reads chunks. Cheap to clone.
#[derive(Debug, Clone)]
pub struct ChunkReader {
    ring: Arc<KeyRing>,
    io: ObjectIo,
    index: Arc<Index>,
    /// How often this reader and its clones may still bring the index up to date: where much is lost, that must not
    /// be done for every chunk.
    refreshes_left: Arc<AtomicU32>,
}

impl Repository {
    /// Reads chunks, several at a time.
    pub fn chunk_reader(&self) -> ChunkReader {
        ChunkReader {
            ring: Arc::clone(self.ring()),
            io: self.io().clone(),
            index: Arc::clone(self.index()),
            refreshes_left: Arc::new(AtomicU32::new(MAX_REFRESHES)),
        }
    }

    /// The bytes of one chunk, which are certain to be those that were put. Every copy that the repository has is tried
    /// before this fails; the error names the packs that were tried.
    pub async fn read_chunk(&self, id: &ChunkId) -> Result<Bytes> {
        self.chunk_reader().read(id).await
    }
}

impl ChunkReader {
    pub(crate) async fn read(&self, id: &ChunkId) -> Result<Bytes> {
        let refreshes = self.index.refreshes();
        let mut attempt = Attempt::default();
        if let Some(bytes) = self.try_all(id, &mut attempt).await? {
            return Ok(bytes);
        }
        // The hints may be stale: chunks move when packs are rewritten.
        if self.refresh_since(refreshes).await?
            && let Some(bytes) = self.try_all(id, &mut attempt).await?
        {
            return Ok(bytes);
        }
        Err(attempt.into_error(id))
    }

    /// Brings the index up to date. `false`: often enough.
    pub(crate) async fn refresh_since(&self, refreshes: u64) -> Result<bool> {
        let left = self
            .refreshes_left
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1));
        if left.is_err() {
            return Ok(false);
        }
        self.index.refresh_since(refreshes).await?;
        Ok(true)
    }

    async fn try_all(&self, id: &ChunkId, attempt: &mut Attempt) -> Result<Option<Bytes>> {
        for location in self.index.locate(id)? {
            if attempt.tried.contains(&location) {
                continue;
            }
            match self.read_at(&location).await {
                Ok(bytes) => return Ok(Some(bytes)),
                Err(error) => {
                    if let Error::Damaged { .. } = error {
                        self.index.distrust().add(location.pack, [*id]);
                    }
                    attempt.note(location, error);
                }
            }
        }
        Ok(None)
    }

    /// The chunk from this place, or why not.
    pub(crate) async fn read_at(&self, location: &Location) -> Result<Bytes> {
        let name = ObjectName::new(Kind::Pack, location.pack);
        let stored = into_mut(self.io.get_range(name, location.offset..location.end()).await?);
        if stored.len() <= INLINE_BYTES {
            return decode_chunk(&self.ring, location, stored);
        }
        let (ring, location) = (Arc::clone(&self.ring), location.clone());
        blocking(move || decode_chunk(&ring, &location, stored)).await
    }

    /// The bytes of chunks, in the order asked for, which have the lengths that were asked for. Those that lie close together in a pack are
    /// fetched with one request. Holds at most three times their size.
    pub async fn read_group(&self, group: &[ChunkRef]) -> Result<VecDeque<Bytes>> {
        let ids: Vec<ChunkId> = group.iter().map(|chunk| chunk.id).collect();
        let read = self.read_all(&ids).await?;
        match read.iter().zip(group).find(|(bytes, chunk)| bytes.len() as u64 != chunk.length) {
            Some((bytes, chunk)) => {
                let why = format!("chunk {} has {} bytes, not {}", chunk.id, bytes.len(), chunk.length);
                Err(Error::inconsistent("content", why))
            }
            None => Ok(read),
        }
    }

    /// The same where nobody knows the lengths yet.
    pub(crate) async fn read_all(&self, ids: &[ChunkId]) -> Result<VecDeque<Bytes>> {
        let located = self.index.locate_all(ids)?;
        let mut places: Vec<(usize, Location)> = located
            .into_iter()
            .enumerate()
            .filter_map(|(at, places)| Some((at, places.into_iter().next()?)))
            .collect();
        places.sort_by_key(|(_, place)| (place.pack, place.offset));
        let mut stored = Vec::with_capacity(places.len());
        for run in places.chunk_by(|(_, last), (_, next)| last.is_close_to(next)) {
            // None of them, if that fails: then each is tried for itself, and its own error is told.
            stored.extend(self.fetch_run(run).await.unwrap_or_default());
        }
        let mut decoded: Vec<Option<Bytes>> = vec![None; ids.len()];
        for (at, bytes) in self.decode_all(stored).await? {
            if let Some(slot) = decoded.get_mut(at) {
                *slot = Some(bytes);
            }
        }
        let mut result = VecDeque::with_capacity(ids.len());
        for (bytes, id) in decoded.into_iter().zip(ids) {
            // What did not come out well is read from wherever else it is.
            result.push_back(match bytes {
                Some(bytes) => bytes,
                None => self.read(id).await?,
            });
        }
        Ok(result)
    }

    /// Chunks of one pack in the order of their places there, sealed as they are, with one request.
    pub(crate) async fn fetch_run(
        &self,
        run: &[(usize, Location)],
    ) -> Result<Vec<(usize, Location, BytesMut)>> {
        let (Some((_, first)), Some((_, last))) = (run.first(), run.last()) else { return Ok(Vec::new()) };
        let name = ObjectName::new(Kind::Pack, first.pack);
        let mut rest = into_mut(self.io.get_range(name, first.offset..last.end()).await?);
        let mut start = first.offset;
        let mut stored = Vec::with_capacity(run.len());
        for (at, place) in run {
            let part = |length: u64| usize::try_from(length).unwrap_or(usize::MAX);
            let skipped = part(place.offset - start).min(rest.len());
            drop(rest.split_to(skipped));
            let bytes = rest.split_to(part(place.entry.stored_len.into()).min(rest.len()));
            stored.push((*at, place.clone(), bytes));
            start = place.end();
        }
        Ok(stored)
    }

    /// Decodes chunks on a thread that may block. Those that cannot be decoded are missing in the result.
    async fn decode_all(&self, stored: Vec<(usize, Location, BytesMut)>) -> Result<Vec<(usize, Bytes)>> {
        let ring = Arc::clone(&self.ring);
        let size: usize = stored.iter().map(|(_, _, bytes)| bytes.len()).sum();
        let decode = move || {
            let chunks = stored.into_iter();
            chunks
                .filter_map(|(at, place, bytes)| Some((at, decode_chunk(&ring, &place, bytes).ok()?)))
                .collect()
        };
        if size <= INLINE_BYTES { Ok(decode()) } else { blocking(move || Ok(decode())).await }
    }
}

/// What was tried for one chunk, and what came of it.
#[derive(Default)]
struct Attempt {
    tried: Vec<Location>,
    reasons: Vec<String>,
    /// A failure of the store that says nothing of the data.
    outage: Option<Error>,
}

impl Attempt {
    fn note(&mut self, location: Location, error: Error) {
        match error {
            Error::Damaged { .. } => self.reasons.push(error.to_string()),
            error if error.is_absent() => {
                self.reasons.push(format!("{} is gone", ObjectName::new(Kind::Pack, location.pack)));
            }
            error => self.outage = Some(error),
        }
        self.tried.push(location);
    }

    fn into_error(self, id: &ChunkId) -> Error {
        if let Some(outage) = self.outage {
            return outage;
        }
        let packs = self.tried.iter().map(|location| location.pack).collect();
        let why = if self.reasons.is_empty() { "it is in no pack".into() } else { self.reasons.join("; ") };
        Error::ChunkLost { chunk: *id, packs, why }
    }
}

/// A chunk out of its stored form. Costs at most the memory that its table entry, which is bounded, announces.
pub(crate) fn decode_chunk(ring: &KeyRing, location: &Location, sealed: BytesMut) -> Result<Bytes> {
    let stored = unseal(ring, location, sealed)?;
    Ok(match unpack(ring, location, &stored)? {
        Cow::Owned(plain) => plain.into(),
        Cow::Borrowed(_) => stored.freeze(),
    })
}

/// The stored form of a chunk, not sealed any more, whose content is certain to be what its name stands for.
pub(crate) fn open_chunk(ring: &KeyRing, location: &Location, sealed: BytesMut) -> Result<BytesMut> {
    let stored = unseal(ring, location, sealed)?;
    unpack(ring, location, &stored)?;
    Ok(stored)
}

fn unseal(ring: &KeyRing, location: &Location, mut sealed: BytesMut) -> Result<BytesMut> {
    let name = ObjectName::new(Kind::Pack, location.pack);
    let header = Header { name, repository: ring.repository, epoch: location.epoch, salt: location.salt };
    let key = ObjectKey::derive(ring, &header)?;
    let opened = key.open(u64::from(location.position), &mut sealed);
    let len = opened.ok_or_else(|| damaged(location, "it does not decrypt"))?.len();
    sealed.truncate(len);
    Ok(sealed)
}

fn unpack<'a>(ring: &KeyRing, location: &Location, stored: &'a [u8]) -> Result<Cow<'a, [u8]>> {
    let entry = &location.entry;
    let plain_len = usize::try_from(entry.plain_len).unwrap_or(usize::MAX);
    let plain = match entry.compression {
        Compression::Raw => Cow::Borrowed(stored),
        Compression::Zstd => {
            let plain = decompress(stored, plain_len);
            Cow::Owned(plain.ok_or_else(|| damaged(location, "it does not decompress"))?)
        }
    };
    if plain.len() != plain_len || ring.chunk_id(&plain) != entry.id {
        return Err(damaged(location, "its bytes are not those that its name stands for"));
    }
    Ok(plain)
}

fn damaged(location: &Location, why: &str) -> Error {
    let name = ObjectName::new(Kind::Pack, location.pack);
    Error::damaged(&name, format!("chunk {} at position {}: {why}", location.entry.id, location.position))
}
