//! Getting chunks out of packs: located, fetched, decrypted, decompressed, and compared with their names.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use bytes::Bytes;

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
pub(crate) struct ChunkReader {
    ring: Arc<KeyRing>,
    io: ObjectIo,
    index: Arc<Index>,
    /// How often this reader and its clones may still bring the index up to date: where much is lost, that must not
    /// be done for every chunk.
    refreshes_left: Arc<AtomicU32>,
}

impl Repository {
    pub(crate) fn chunk_reader(&self) -> ChunkReader {
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
                Err(error) => attempt.note(location, error),
            }
        }
        Ok(None)
    }

    /// The chunk from this place, or why not.
    pub(crate) async fn read_at(&self, location: &Location) -> Result<Bytes> {
        let name = ObjectName::new(Kind::Pack, location.pack);
        let end = location.offset + u64::from(location.entry.stored_len);
        let stored = self.io.get_range(name, location.offset..end).await?;
        self.decode_all(vec![(location.clone(), stored)])
            .await?
            .pop_front()
            .unwrap_or_else(|| Err(Error::damaged(&name, "nothing was decoded")))
    }

    /// Decodes chunks on a thread that may block.
    async fn decode_all(&self, stored: Vec<(Location, Bytes)>) -> Result<VecDeque<Result<Bytes>>> {
        let ring = Arc::clone(&self.ring);
        let size: usize = stored.iter().map(|(_, bytes)| bytes.len()).sum();
        let decode = move || {
            let chunks = stored.into_iter().map(|(location, bytes)| decode_chunk(&ring, &location, bytes));
            chunks.collect::<VecDeque<_>>()
        };
        if size <= INLINE_BYTES { Ok(decode()) } else { blocking(move || Ok(decode())).await }
    }

    /// The bytes of chunks in order. Those that lie side by side in a pack are fetched with one request.
    pub(crate) async fn read_group(&self, group: &[ChunkRef]) -> Result<VecDeque<Bytes>> {
        let mut located = Vec::with_capacity(group.len());
        for chunk in group {
            located.push(self.index.locate(&chunk.id)?.into_iter().next());
        }
        let mut result = VecDeque::with_capacity(group.len());
        let mut rest = group.iter().zip(located).peekable();
        while let Some((chunk, location)) = rest.next() {
            let Some(location) = location else {
                result.push_back(self.read(&chunk.id).await?);
                continue;
            };
            let (mut chunks, mut run) = (vec![*chunk], vec![location]);
            while let Some((chunk, next)) = rest.next_if(|(_, next)| {
                next.as_ref().is_some_and(|next| run.last().is_some_and(|last| is_next_to(last, next)))
            }) {
                chunks.push(*chunk);
                run.extend(next);
            }
            result.extend(self.read_run(&chunks, run).await?);
        }
        for (bytes, chunk) in result.iter().zip(group) {
            if bytes.len() as u64 != chunk.length {
                return Err(Error::inconsistent(
                    "content",
                    format!("chunk {} has {} bytes, not {}", chunk.id, bytes.len(), chunk.length),
                ));
            }
        }
        Ok(result)
    }

    /// Chunks that lie side by side. What does not come out well is read one by one, from wherever else it is.
    async fn read_run(&self, chunks: &[ChunkRef], run: Vec<Location>) -> Result<VecDeque<Bytes>> {
        let start = run.first().map_or(0, |first| first.offset);
        let end = run.last().map_or(0, |last| last.offset + u64::from(last.entry.stored_len));
        let pack = run.first().map(|first| ObjectName::new(Kind::Pack, first.pack));
        let fetched = match pack {
            Some(pack) => self.io.get_range(pack, start..end).await.ok(),
            None => None,
        };
        let mut decoded = VecDeque::new();
        if let Some(mut fetched) = fetched {
            let mut stored = Vec::with_capacity(run.len());
            for location in run {
                let len = usize::try_from(location.entry.stored_len).unwrap_or(usize::MAX).min(fetched.len());
                stored.push((location, fetched.split_to(len)));
            }
            decoded = self.decode_all(stored).await?;
        }
        let mut result = VecDeque::with_capacity(chunks.len());
        for chunk in chunks {
            result.push_back(match decoded.pop_front() {
                Some(Ok(bytes)) => bytes,
                Some(Err(_)) | None => self.read(&chunk.id).await?,
            });
        }
        Ok(result)
    }
}

fn is_next_to(last: &Location, next: &Location) -> bool {
    next.pack == last.pack && next.offset == last.offset + u64::from(last.entry.stored_len)
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
pub(crate) fn decode_chunk(ring: &KeyRing, location: &Location, stored: Bytes) -> Result<Bytes> {
    let name = ObjectName::new(Kind::Pack, location.pack);
    let entry = &location.entry;
    let damaged = |why: &str| {
        Error::damaged(&name, format!("chunk {} at position {}: {why}", entry.id, location.position))
    };
    let header = Header { name, repository: ring.repository, epoch: location.epoch, salt: location.salt };
    let key = ObjectKey::derive(ring, &header)?;
    let mut stored = into_mut(stored);
    let len = key
        .open(u64::from(location.position), &mut stored)
        .ok_or_else(|| damaged("it does not decrypt"))?
        .len();
    stored.truncate(len);
    let plain_len = usize::try_from(entry.plain_len).unwrap_or(usize::MAX);
    let plain = match entry.compression {
        Compression::Raw => stored.freeze(),
        Compression::Zstd => {
            decompress(&stored, plain_len).ok_or_else(|| damaged("it does not decompress"))?.into()
        }
    };
    if plain.len() != plain_len || ring.chunk_id(&plain) != entry.id {
        return Err(damaged("its bytes are not those that its name stands for"));
    }
    Ok(plain)
}
