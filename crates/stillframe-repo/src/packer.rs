//! Chunks into packs, packs into the store: many threads hash and compress, one at a time seals into the open pack (at several
//! gigabytes per second), and a few uploads run beside them.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use stillframe_storage::object_store::PutPayload;
use stillframe_storage::{BandwidthLimit, Clock, failpoint};
use tokio::runtime::Handle;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::compression::Compression;
use crate::envelope::{Header, ObjectKey, TAG_LEN};
use crate::error::{Error, Result};
use crate::index::Index;
use crate::index_segment::{MAX_SEGMENT_CHUNKS, SEGMENT_PACKS};
use crate::key_ring::KeyRing;
use crate::layout::{Kind, ObjectName};
use crate::object_io::ObjectIo;
use crate::pack_buffers::{PackBuffer, PackBuffers, Turn};
use crate::pack_table::{PackEntry, PackTable};
use crate::{ChunkId, ObjectId, PackId};

/// Packs in memory at a time: one that is being filled and two on their way.
const PACKS_IN_MEMORY: usize = 3;
/// A pack is full with so many chunks, however small they are: what is kept of each until the index has it is bounded.
pub(crate) const PACK_CHUNKS: usize = 16_384;

/// With a bandwidth limit, how much is paid for at a time: what is waiting is seen to shrink while a large pack goes out.
const PAID_AT_ONCE: u64 = 256 << 10;

/// What all uploads of one write share.
pub(crate) struct PackerOptions {
    pub(crate) pack_size: u64,
    pub(crate) cancel: CancellationToken,
    pub(crate) bandwidth: Option<Arc<BandwidthLimit>>,
    pub(crate) clock: Arc<dyn Clock>,
}

/// Fills packs and uploads them.
pub(crate) struct Packer {
    ring: Arc<KeyRing>,
    io: ObjectIo,
    index: Arc<Index>,
    options: PackerOptions,
    runtime: Handle,
    buffers: Arc<PackBuffers>,
    /// The pack that takes chunks.
    open: Mutex<Option<OpenPack>>,
    recent: Mutex<Recent>,
    uploads: Mutex<JoinSet<()>>,
    /// Stored, but in no segment yet.
    unpublished: Mutex<Vec<PackTable>>,
    failed: AtomicBool,
    failure: Mutex<Option<Error>>,
    /// Those that are stored, with their lengths.
    sizes: Mutex<HashMap<PackId, u64>>,
    bytes_stored: AtomicU64,
    /// Bytes before compression that were appended and are not sent yet.
    waiting: AtomicU64,
    on_stored: Box<dyn Fn(u64) + Send + Sync>,
}

/// Chunks that this write has stored and that the index cache may not know yet, so that none is stored twice.
#[derive(Default)]
struct Recent {
    packs: HashMap<ChunkId, PackId>,
    /// Those that the cache has by now. They go with the next segment: a thread that asked the cache just before they came
    /// into it still finds them here.
    in_cache: Vec<ChunkId>,
}

struct OpenPack {
    header: Header,
    key: ObjectKey,
    /// Header and sealed chunks.
    turn: Turn,
    buffer: PackBuffer,
    entries: Vec<PackEntry>,
}

/// Where a chunk went.
pub(crate) enum Appended {
    New(PackId),
    /// Another thread was faster.
    Known(PackId),
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What these guard is whole between any two statements; only `open` is not, and is not locked by this.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Packer {
    /// Must be called on the runtime that is to do the uploads. `on_stored` is told the bytes of each pack.
    pub(crate) fn new(
        ring: Arc<KeyRing>,
        io: ObjectIo,
        index: Arc<Index>,
        options: PackerOptions,
        on_stored: Box<dyn Fn(u64) + Send + Sync>,
    ) -> Arc<Self> {
        // Besides the chunks: their table, and one chunk more than fits, in packs smaller than a chunk.
        let capacity = usize::try_from(options.pack_size).unwrap_or(usize::MAX).saturating_add(1 << 20);
        Arc::new(Self {
            ring,
            io,
            index,
            options,
            runtime: Handle::current(),
            buffers: PackBuffers::new(PACKS_IN_MEMORY, capacity),
            open: Mutex::default(),
            recent: Mutex::default(),
            uploads: Mutex::default(),
            unpublished: Mutex::default(),
            failed: AtomicBool::new(false),
            failure: Mutex::default(),
            sizes: Mutex::default(),
            bytes_stored: AtomicU64::new(0),
            waiting: AtomicU64::new(0),
            on_stored,
        })
    }

    /// Packs stored so far, and their bytes.
    pub(crate) fn stored(&self) -> (u64, u64) {
        (lock(&self.sizes).len() as u64, self.bytes_stored.load(Ordering::Relaxed))
    }

    /// The length of a pack that this write has stored.
    pub(crate) fn size_of(&self, pack: PackId) -> Option<u64> {
        lock(&self.sizes).get(&pack).copied()
    }

    /// Bytes of chunks, before compression, that are on their way.
    pub(crate) fn waiting(&self) -> u64 {
        self.waiting.load(Ordering::Relaxed)
    }

    /// Fails when the write has failed or was cancelled.
    pub(crate) fn check(&self) -> Result<()> {
        if self.options.cancel.is_cancelled() {
            return Err(Error::Cancelled);
        }
        if self.failed.load(Ordering::Acquire) { Err(Error::Stopped) } else { Ok(()) }
    }

    /// The first failure, once.
    pub(crate) fn take_failure(&self) -> Option<Error> {
        lock(&self.failure).take()
    }

    fn fail(&self, error: Error) {
        lock(&self.failure).get_or_insert(error);
        self.failed.store(true, Ordering::Release);
    }

    /// What these packs had is not stored.
    pub(crate) fn forget(&self, packs: &[PackId]) {
        lock(&self.recent).packs.retain(|_, pack| !packs.contains(pack));
    }

    /// The pack of a chunk that this write has stored or is about to.
    pub(crate) fn recent(&self, id: &ChunkId) -> Option<PackId> {
        lock(&self.recent).packs.get(id).copied()
    }

    /// Adds a chunk in its stored form, not yet sealed. Blocks while too many packs are on their way.
    pub(crate) fn append(
        self: &Arc<Self>,
        id: ChunkId,
        plain_len: u32,
        compression: Compression,
        stored: &[u8],
    ) -> Result<Appended> {
        let stored_len = u32::try_from(stored.len() + TAG_LEN)
            .map_err(|_| Error::Invalid("a chunk is larger than 16 MiB".into()))?;
        let entry = PackEntry { id, stored_len, plain_len, compression };
        loop {
            let full = {
                let mut open = self.lock_open()?;
                if let Some(pack) = self.recent(&id) {
                    return Ok(Appended::Known(pack));
                }
                let pack = match &mut *open {
                    Some(pack) => pack,
                    none => none.insert(self.new_pack()?),
                };
                if pack.has_room(stored.len(), self.options.pack_size) {
                    pack.push(entry, stored);
                    let name = pack.header.name.id;
                    lock(&self.recent).packs.insert(id, name);
                    self.waiting.fetch_add(u64::from(plain_len), Ordering::Relaxed);
                    return Ok(Appended::New(name));
                }
                open.take()
            };
            // Sent before a buffer for the next one is waited for: it may be the one that comes back.
            if let Some(full) = full {
                self.finish(full);
            }
        }
    }

    /// A thread that panicked in the middle of a pack has left it half done: the write has failed.
    fn lock_open(&self) -> Result<MutexGuard<'_, Option<OpenPack>>> {
        let open = self.open.lock();
        if open.is_err() {
            self.fail(Error::Stopped);
        }
        self.check()?;
        open.map_err(|_| Error::Stopped)
    }

    fn new_pack(&self) -> Result<OpenPack> {
        let Some((turn, mut buffer)) = self.buffers.lend(|| self.check().is_err()) else {
            self.check()?;
            return Err(Error::Stopped);
        };
        let header = Header::new(&self.ring, ObjectName::new(Kind::Pack, ObjectId::random()));
        let key = ObjectKey::derive(&self.ring, &header)?;
        buffer.bytes.extend_from_slice(&header.encode());
        Ok(OpenPack { header, key, turn, buffer, entries: Vec::new() })
    }

    /// Footer, hash, and off to the store.
    fn finish(self: &Arc<Self>, pack: OpenPack) {
        let OpenPack { header, key, turn, mut buffer, entries } = pack;
        buffer.bytes.extend_from_slice(&PackTable::encode_footer(&key, &entries));
        let hash = blake3::hash(&buffer.bytes);
        buffer.bytes.extend_from_slice(hash.as_bytes());
        let size = PackTable::object_len(&entries);
        debug_assert_eq!(buffer.bytes.len() as u64, size);
        let table = PackTable { pack: header.name.id, epoch: header.epoch, salt: header.salt, size, entries };
        let payload = PutPayload::from_bytes(Bytes::from_owner(buffer));
        let packer = Arc::clone(self);
        let mut uploads = lock(&self.uploads);
        while uploads.try_join_next().is_some() {}
        uploads.spawn_on(async move { packer.upload(table, payload, turn).await }, &self.runtime);
    }

    async fn upload(self: Arc<Self>, table: PackTable, payload: PutPayload, turn: Turn) {
        let (pack, size) = (table.pack, table.size);
        let stored = self.put_pack(&table, payload).await;
        drop(turn);
        let result = match stored {
            Ok(()) => {
                tracing::debug!(pack = %table.pack, bytes = size, chunks = table.entries.len(), "stored a pack");
                lock(&self.sizes).insert(pack, size);
                self.bytes_stored.fetch_add(size, Ordering::Relaxed);
                (self.on_stored)(size);
                self.publish_when_due(table).await
            }
            Err(error) => Err(error),
        };
        if let Err(error) = result {
            self.fail(error);
        }
    }

    async fn put_pack(&self, table: &PackTable, payload: PutPayload) -> Result<()> {
        let mut plain: u64 = table.entries.iter().map(|entry| u64::from(entry.plain_len)).sum();
        let put = async {
            if let Some(limit) = &self.options.bandwidth {
                let mut unpaid = table.size;
                while unpaid > 0 {
                    let part = unpaid.min(PAID_AT_ONCE);
                    tokio::time::sleep(limit.reserve(part, &*self.options.clock)).await;
                    let of_plain = u128::from(plain) * u128::from(part) / u128::from(unpaid);
                    let of_plain = u64::try_from(of_plain).expect("a part of a u64");
                    self.waiting.fetch_sub(of_plain, Ordering::Relaxed);
                    plain -= of_plain;
                    unpaid -= part;
                }
            }
            self.io.put(ObjectName::new(Kind::Pack, table.pack), payload).await?;
            self.waiting.fetch_sub(plain, Ordering::Relaxed);
            Ok(())
        };
        tokio::select! {
            result = put => result?,
            () = self.options.cancel.cancelled() => return Err(Error::Cancelled),
        }
        failpoint("repo::pack-stored");
        Ok(())
    }

    async fn publish_when_due(&self, table: PackTable) -> Result<()> {
        let due = {
            let mut unpublished = lock(&self.unpublished);
            let chunks: usize = unpublished.iter().map(|table| table.entries.len()).sum();
            // The bound is kept before the pack is added: no segment may exceed it.
            let overflow = chunks + table.entries.len() > MAX_SEGMENT_CHUNKS;
            let before = if overflow { std::mem::take(&mut *unpublished) } else { Vec::new() };
            unpublished.push(table);
            let full = unpublished.len() >= SEGMENT_PACKS;
            let after = if full { std::mem::take(&mut *unpublished) } else { Vec::new() };
            [before, after]
        };
        for packs in due {
            self.publish(packs).await?;
        }
        Ok(())
    }

    async fn publish(&self, packs: Vec<PackTable>) -> Result<()> {
        let chunks: Vec<ChunkId> =
            packs.iter().flat_map(|pack| &pack.entries).map(|entry| entry.id).collect();
        self.index.publish(packs).await?;
        let mut recent = lock(&self.recent);
        for chunk in std::mem::replace(&mut recent.in_cache, chunks) {
            recent.packs.remove(&chunk);
        }
        Ok(())
    }

    /// Closes the open pack and waits until everything is stored and in index segments. No thread may be in
    /// [`Self::append`].
    pub(crate) async fn flush(self: &Arc<Self>) -> Result<()> {
        if let Ok(mut open) = self.lock_open()
            && let Some(open) = open.take()
        {
            self.finish(open);
        }
        self.drain().await;
        self.check()?;
        let rest = std::mem::take(&mut *lock(&self.unpublished));
        self.publish(rest).await
    }

    /// Waits for the uploads that are under way; cancelled ones end soon.
    pub(crate) async fn drain(&self) {
        loop {
            let mut uploads = std::mem::take(&mut *lock(&self.uploads));
            if uploads.is_empty() {
                return;
            }
            while let Some(result) = uploads.join_next().await {
                if let Err(failure) = result
                    && let Ok(panic) = failure.try_into_panic()
                {
                    std::panic::resume_unwind(panic);
                }
            }
        }
    }
}

impl OpenPack {
    /// The first chunk always fits.
    fn has_room(&self, stored_len: usize, pack_size: u64) -> bool {
        let len = self.buffer.bytes.len() + stored_len + TAG_LEN;
        self.entries.is_empty() || (len as u64 <= pack_size && self.entries.len() < PACK_CHUNKS)
    }

    fn push(&mut self, entry: PackEntry, stored: &[u8]) {
        let start = self.buffer.bytes.len();
        self.buffer.bytes.extend_from_slice(stored);
        let (_, chunk) = self.buffer.bytes.split_at_mut(start);
        let tag = self.key.seal_separate(self.entries.len() as u64, chunk);
        self.buffer.bytes.extend_from_slice(&tag);
        self.entries.push(entry);
    }
}
