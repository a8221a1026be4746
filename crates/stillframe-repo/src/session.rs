//! Putting content into the repository: one round of one write.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use crate::compression::with_compressed;
use crate::content::MAX_CHUNK_LEN;
use crate::content_writer::ContentWriter;
use crate::error::{Error, Result};
use crate::index::Index;
use crate::key_ring::KeyRing;
use crate::manifest::Statistics;
use crate::packer::{Appended, Packer};
use crate::{BackupId, ChunkRef, ContentRef, PackId};

/// Takes chunks. Shared by as many blocking threads as the caller likes; see [`crate::Repository::write`].
pub struct WriteSession {
    ring: Arc<KeyRing>,
    index: Arc<Index>,
    packer: Arc<Packer>,
    level: i32,
    base: Option<BackupId>,
    /// Packs that a sweeper is going to delete, or that are gone.
    excluded: Arc<HashSet<PackId>>,
    /// Packs that the backup will need, with the lengths that they were written with, where this write did not write them.
    relied: Mutex<HashMap<PackId, Option<u64>>>,
    /// Content of the base that is part of this backup.
    taken_over: Mutex<Vec<ContentRef>>,
    /// False when the round is over. Held for reading by every put.
    open: RwLock<bool>,
    bytes_read: AtomicU64,
    bytes_taken_over: AtomicU64,
    chunks_new: AtomicU64,
    bytes_new: AtomicU64,
    chunks_known: AtomicU64,
}

impl std::fmt::Debug for WriteSession {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("WriteSession").field("base", &self.base).finish_non_exhaustive()
    }
}

impl WriteSession {
    pub(crate) fn new(
        ring: Arc<KeyRing>,
        index: Arc<Index>,
        packer: Arc<Packer>,
        level: i32,
        base: Option<BackupId>,
        excluded: Arc<HashSet<PackId>>,
    ) -> Self {
        Self {
            ring,
            index,
            packer,
            level,
            base,
            excluded,
            relied: Mutex::default(),
            taken_over: Mutex::default(),
            open: RwLock::new(true),
            bytes_read: AtomicU64::new(0),
            bytes_taken_over: AtomicU64::new(0),
            chunks_new: AtomicU64::new(0),
            bytes_new: AtomicU64::new(0),
            chunks_known: AtomicU64::new(0),
        }
    }

    /// The backup whose subtrees may be taken over in this round. `None` when none was asked for, or when it is gone.
    pub fn base(&self) -> Option<BackupId> {
        self.base
    }

    /// Stores a chunk of 1 to [`MAX_CHUNK_LEN`] bytes, unless the repository has it. Where chunks are cut is the
    /// caller's choice; equal bytes are stored once only if they are cut equally.
    ///
    /// Blocks: hashes, compresses and encrypts on the calling thread, and waits while too much is on its way to the store.
    /// Call it from blocking threads (several at a time), never from asynchronous code. When it has returned, the chunk
    /// is not durable yet; it is when [`crate::Repository::write`] has returned.
    pub fn put(&self, bytes: &[u8]) -> Result<ChunkRef> {
        let open = self.open.read().unwrap_or_else(PoisonError::into_inner);
        if !*open {
            return Err(Error::Stopped);
        }
        self.packer.check()?;
        let plain_len = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        if bytes.is_empty() || bytes.len() > MAX_CHUNK_LEN {
            let len = bytes.len();
            return Err(Error::Invalid(format!("a chunk has 1 to {MAX_CHUNK_LEN} bytes, not {len}")));
        }
        let chunk = ChunkRef { id: self.ring.chunk_id(bytes), length: u64::from(plain_len) };
        self.bytes_read.fetch_add(chunk.length, Ordering::Relaxed);
        if let Some((pack, size)) = self.find(&chunk)? {
            self.rely_on_known(pack, size);
            return Ok(chunk);
        }
        let append =
            |compression, stored: &[u8]| self.packer.append(chunk.id, plain_len, compression, stored);
        match with_compressed(bytes, self.level, append)? {
            Appended::Known(pack) => self.rely_on_known(pack, None),
            Appended::New(pack) => {
                self.rely_on(pack, None);
                self.chunks_new.fetch_add(1, Ordering::Relaxed);
                self.bytes_new.fetch_add(chunk.length, Ordering::Relaxed);
            }
        }
        Ok(chunk)
    }

    /// Stores bytes of any length as content, cut every 4 MiB: for descriptions and other small things. Blocks.
    pub fn put_content(&self, bytes: &[u8]) -> Result<ContentRef> {
        let mut writer = ContentWriter::new(self);
        for chunk in bytes.chunks(4 << 20) {
            writer.push(self.put(chunk)?)?;
        }
        writer.finish()
    }

    /// Records that content of the base backup (which the caller found there) is part of this one, without reading it.
    /// Fails when there is no base.
    pub fn take_over(&self, content: &ContentRef) -> Result<()> {
        if self.base.is_none() {
            return Err(Error::Invalid("there is no base backup to take anything over from".into()));
        }
        self.taken_over.lock().unwrap_or_else(PoisonError::into_inner).push(*content);
        self.bytes_taken_over.fetch_add(content.length, Ordering::Relaxed);
        Ok(())
    }

    /// What this round has done so far; the packs are those of all rounds.
    pub fn statistics(&self) -> Statistics {
        let (packs, bytes_stored) = self.packer.stored();
        Statistics {
            bytes_read: self.bytes_read.load(Ordering::Relaxed),
            bytes_taken_over: self.bytes_taken_over.load(Ordering::Relaxed),
            chunks_new: self.chunks_new.load(Ordering::Relaxed),
            bytes_new: self.bytes_new.load(Ordering::Relaxed),
            bytes_stored,
            chunks_known: self.chunks_known.load(Ordering::Relaxed),
            packs,
        }
    }

    /// How many of the bytes that were put are on their way to the store: what was read is not yet done with.
    pub fn bytes_waiting(&self) -> u64 {
        self.packer.waiting()
    }

    /// Waits until all that was put is stored. No thread may be in [`Self::put`].
    pub async fn flush(&self) -> Result<()> {
        self.packer.flush().await
    }

    /// Decides where a file list is cut.
    pub(crate) fn boundary_hash(&self, directory: &str, path: &[u8]) -> u64 {
        self.ring.boundary_hash(directory, path)
    }

    /// Waits for puts that are under way and refuses later ones.
    pub(crate) fn close(&self) {
        *self.open.write().unwrap_or_else(PoisonError::into_inner) = false;
    }

    /// The packs that the backup needs.
    pub(crate) fn relied(&self) -> HashMap<PackId, Option<u64>> {
        self.relied.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether the backup needs the base's manifest to have been there.
    pub(crate) fn needs_base(&self) -> bool {
        !self.taken_over.lock().unwrap_or_else(PoisonError::into_inner).is_empty()
    }

    /// What was taken over from it.
    pub(crate) fn taken_over(&self) -> Vec<ContentRef> {
        self.taken_over.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// A pack that has the chunk and may be relied on, with its length if another write has written it.
    fn find(&self, chunk: &ChunkRef) -> Result<Option<(PackId, Option<u64>)>> {
        if let Some(pack) = self.packer.recent(&chunk.id) {
            return Ok(Some((pack, None)));
        }
        let locations = self.index.locate(&chunk.id)?;
        let usable = |pack: &PackId| !self.excluded.contains(pack);
        let fits = locations.into_iter().filter(|place| u64::from(place.entry.plain_len) == chunk.length);
        let found = fits.map(|place| (place.pack, Some(place.pack_size))).find(|(pack, _)| usable(pack));
        Ok(found)
    }

    fn rely_on_known(&self, pack: PackId, size: Option<u64>) {
        self.rely_on(pack, size);
        self.chunks_known.fetch_add(1, Ordering::Relaxed);
    }

    fn rely_on(&self, pack: PackId, size: Option<u64>) {
        let mut relied = self.relied.lock().unwrap_or_else(PoisonError::into_inner);
        let known = relied.entry(pack).or_default();
        *known = known.or(size);
    }
}
