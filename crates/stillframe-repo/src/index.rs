//! Which chunk is where: the local cache, kept up with the index segments and packs of the store.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use futures::{StreamExt, TryStreamExt};
use stillframe_storage::failpoint;
use tokio_util::sync::CancellationToken;

use crate::distrust::Distrust;
use crate::envelope::{HEADER_LEN, Header, check_repository};
use crate::error::{Error, Result, set_apart};
use crate::index_cache::{IndexCache, Location, listed_as};
use crate::index_loader::IndexLoader;
use crate::index_segment;
use crate::key_ring::KeyRing;
use crate::layout::{Kind, ObjectName};
use crate::object_io::{Listed, ObjectIo};
use crate::pack_table::PackTable;
use crate::{ChunkId, ObjectId, PackId};

/// How much of a pack's end is read at first: enough for the tables of most.
const TAIL_LEN: u64 = 16 << 10;
/// Requests at a time.
pub(crate) const CONCURRENCY: usize = 4;

/// The index of one repository.
#[derive(Debug)]
pub(crate) struct Index {
    ring: Arc<KeyRing>,
    io: ObjectIo,
    cache: Arc<IndexCache>,
    distrust: Arc<Distrust>,
    /// One refresh at a time; more would do the same work twice.
    refreshing: tokio::sync::Mutex<()>,
    refreshes: AtomicU64,
}

impl Index {
    pub(crate) fn new(ring: Arc<KeyRing>, io: ObjectIo, cache: IndexCache, distrust: Arc<Distrust>) -> Self {
        let (cache, refreshing) = (Arc::new(cache), tokio::sync::Mutex::new(()));
        Self { ring, io, cache, distrust, refreshing, refreshes: AtomicU64::new(0) }
    }

    /// Another index of the same repository, in a temporary file: of what `packs` say of themselves, whatever the segments and the cache
    /// say. `seen` is told what came of each pack that is there.
    pub(crate) async fn of_packs(
        &self,
        packs: &[Listed],
        cancel: &CancellationToken,
        mut seen: impl FnMut(Listed, Result<&PackTable, &Error>),
    ) -> Result<Self> {
        let ring = Arc::clone(&self.ring);
        let cache = blocking(move || IndexCache::private(ring)).await?;
        let index = Self::new(Arc::clone(&self.ring), self.io.clone(), cache, Arc::clone(&self.distrust));
        let listed: Arc<[Listed]> = packs.into();
        let mut loader = index.cache.begin_load()?;
        let mut read = futures::stream::iter(packs.iter().copied())
            .map(async |pack| (pack, read_pack_table(&self.io, &self.ring, pack).await))
            .buffer_unordered(2 * CONCURRENCY);
        while let Some((pack, table)) = read.next().await {
            if cancel.is_cancelled() {
                return Err(Error::Cancelled);
            }
            match set_apart(table)? {
                Some(Ok(table)) => {
                    seen(pack, Ok(&table));
                    loader = index.stage(loader, vec![table], None, &listed).await?.ok_or_else(unusable)?;
                }
                Some(Err(error)) => seen(pack, Err(&error)),
                None => {}
            }
        }
        drop(read);
        if index.commit(loader).await? { Ok(index) } else { Err(unusable()) }
    }

    pub(crate) fn io(&self) -> &ObjectIo {
        &self.io
    }

    /// Packs that were found damaged.
    pub(crate) fn distrust(&self) -> &Distrust {
        &self.distrust
    }

    /// Where the chunk is said to be. May be stale either way; see [`Self::refresh`].
    pub(crate) fn locate(&self, id: &ChunkId) -> Result<Vec<Location>> {
        Ok(self.locate_all(&[*id])?.pop().unwrap_or_default())
    }

    /// The same for many, in the order asked for. Places in packs that were found damaged come last.
    pub(crate) fn locate_all(&self, ids: &[ChunkId]) -> Result<Vec<Vec<Location>>> {
        let mut located = self.cache.locate_all(ids)?;
        located.iter_mut().for_each(|places| self.distrust.sort(places));
        Ok(located)
    }

    /// How often the index was brought up to date in this process.
    pub(crate) fn refreshes(&self) -> u64 {
        self.refreshes.load(Ordering::Acquire)
    }

    /// Brings the index up to date, unless somebody did so since `refreshes` was read.
    pub(crate) async fn refresh_since(&self, refreshes: u64) -> Result<()> {
        let guard = self.refreshing.lock().await;
        if self.refreshes() == refreshes { self.refresh_locked(&guard).await } else { Ok(()) }
    }

    /// Those of `packs` (sorted) whose tables are not known after a refresh: they could not be read.
    pub(crate) async fn unknown_packs(&self, packs: &[Listed]) -> Result<HashSet<PackId>> {
        let (cache, packs) = (Arc::clone(&self.cache), packs.to_vec());
        let unknown = blocking(move || cache.reconcile_packs(&packs)).await?;
        Ok(unknown.into_iter().map(|pack| pack.id).collect())
    }

    /// Lists packs and segments, forgets what is gone and learns what is new: from segments, and for packs that no
    /// segment names, from their own tables. What cannot be read is warned about and passed over: the packs decide.
    pub(crate) async fn refresh(&self) -> Result<()> {
        let guard = self.refreshing.lock().await;
        self.refresh_locked(&guard).await
    }

    async fn refresh_locked(&self, _guard: &tokio::sync::MutexGuard<'_, ()>) -> Result<()> {
        // Segments before packs: a segment is written after its packs, so no pack of a listed segment is missed.
        let segments = self.io.list(Kind::Index).await?;
        let packs: Arc<[Listed]> = self.io.list(Kind::Pack).await?.into();
        // Twice: the cache may turn out to be damaged in the middle and be replaced by an empty one.
        for _ in 0..2 {
            if self.load(&segments, &packs).await? {
                break;
            }
        }
        self.refreshes.fetch_add(1, Ordering::AcqRel);
        Ok(())
    }

    /// `false`: the cache had to be replaced, begin again.
    async fn load(&self, segments: &[Listed], packs: &Arc<[Listed]>) -> Result<bool> {
        let cache = Arc::clone(&self.cache);
        let listed = Arc::clone(packs);
        if blocking(move || cache.reconcile_packs(&listed)).await?.is_empty() {
            return Ok(true);
        }
        let unknown = self.cache.unknown_segments(segments)?;
        let mut loader = self.cache.begin_load()?;
        let mut fetched =
            futures::stream::iter(unknown).map(|id| self.fetch_segment(id)).buffer_unordered(CONCURRENCY);
        while let Some((id, tables)) = fetched.try_next().await? {
            let Some(tables) = tables else { continue };
            match self.stage(loader, tables, Some(id), packs).await? {
                Some(staged) => loader = staged,
                None => return Ok(false),
            }
        }
        if !self.commit(loader).await? {
            return Ok(false);
        }
        self.load_footers(packs).await
    }

    /// Packs that no segment names: an interrupted run left them, or a segment is gone.
    async fn load_footers(&self, packs: &Arc<[Listed]>) -> Result<bool> {
        let cache = Arc::clone(&self.cache);
        let listed = Arc::clone(packs);
        let unknown = blocking(move || cache.reconcile_packs(&listed)).await?;
        let mut loader = self.cache.begin_load()?;
        let mut fetched = futures::stream::iter(unknown)
            .map(|pack| self.fetch_footer(pack))
            .buffer_unordered(2 * CONCURRENCY);
        while let Some(table) = fetched.try_next().await? {
            let Some(table) = table else { continue };
            match self.stage(loader, vec![table], None, packs).await? {
                Some(staged) => loader = staged,
                None => return Ok(false),
            }
        }
        self.commit(loader).await
    }

    async fn stage(
        &self,
        mut loader: IndexLoader,
        tables: Vec<PackTable>,
        segment: Option<ObjectId>,
        packs: &Arc<[Listed]>,
    ) -> Result<Option<IndexLoader>> {
        let (cache, packs) = (Arc::clone(&self.cache), Arc::clone(packs));
        blocking(move || {
            let exists = |table: &PackTable| listed_as(&packs, table.pack, table.size).is_some();
            let whole = cache
                .load(&mut loader, |loader, connection| loader.add(connection, &tables, segment, exists))?;
            Ok(whole.then_some(loader))
        })
        .await
    }

    async fn commit(&self, mut loader: IndexLoader) -> Result<bool> {
        let cache = Arc::clone(&self.cache);
        blocking(move || cache.load(&mut loader, IndexLoader::commit)).await
    }

    pub(crate) async fn fetch_segment(&self, id: ObjectId) -> Result<(ObjectId, Option<Vec<PackTable>>)> {
        let name = ObjectName::new(Kind::Index, id);
        let tables = match self.io.get(name).await {
            Ok(bytes) => index_segment::decode(&self.ring, name, &bytes),
            Err(error) => Err(error),
        };
        Ok((id, tolerate(tables)?))
    }

    pub(crate) async fn read_table(&self, pack: Listed) -> Result<PackTable> {
        read_pack_table(&self.io, &self.ring, pack).await
    }

    /// As if this machine had never seen the repository.
    pub(crate) async fn forget_all(&self) -> Result<()> {
        let cache = Arc::clone(&self.cache);
        blocking(move || cache.clear()).await
    }

    pub(crate) async fn fetch_footer(&self, pack: Listed) -> Result<Option<PackTable>> {
        tolerate(read_pack_table(&self.io, &self.ring, pack).await)
    }

    /// Writes a segment for packs that are stored, and takes them into the cache. A cache that cannot take them costs
    /// work later, nothing else.
    pub(crate) async fn publish(&self, packs: Vec<PackTable>) -> Result<()> {
        if packs.is_empty() {
            return Ok(());
        }
        let name = ObjectName::new(Kind::Index, ObjectId::random());
        self.io.put(name, index_segment::encode(&self.ring, name, &packs)).await?;
        failpoint("repo::segment-stored");
        let cache = Arc::clone(&self.cache);
        let cached = blocking(move || {
            let mut loader = cache.begin_load()?;
            let whole = cache.load(&mut loader, |loader, connection| {
                loader.add(connection, &packs, Some(name.id), |_| true)?;
                loader.commit(connection)
            })?;
            Ok(whole)
        });
        if let Err(error) = cached.await {
            tracing::warn!(%error, "what was stored is not in the index cache; the next run reads it from the repository");
        }
        Ok(())
    }
}

/// Reads the table of one pack from its two ends.
pub(crate) async fn read_pack_table(io: &ObjectIo, ring: &KeyRing, pack: Listed) -> Result<PackTable> {
    let name = ObjectName::new(Kind::Pack, pack.id);
    let damaged = |why: &str| Error::damaged(&name, why);
    if pack.size > Kind::Pack.max_len() || pack.size < HEADER_LEN as u64 {
        return Err(damaged("no pack has its length"));
    }
    let header = Header::decode(name, &io.get_range(name, 0..HEADER_LEN as u64).await?)?;
    check_repository(ring, &header)?;
    let mut tail = io.get_range(name, pack.size.saturating_sub(TAIL_LEN)..pack.size).await?;
    let span = PackTable::footer_span(&tail).ok_or_else(|| damaged("its end is not that of a pack"))?;
    if span > tail.len() {
        let start =
            pack.size.checked_sub(span as u64).ok_or_else(|| damaged("it is shorter than its table"))?;
        tail = io.get_range(name, start..pack.size).await?;
    }
    let end = tail.get(tail.len() - span..).ok_or_else(|| damaged("its end is missing"))?;
    PackTable::decode_footer(ring, &header, pack.size, end)
}

/// A temporary file that failed once is not tried again.
fn unusable() -> Error {
    Error::Cache { path: std::env::temp_dir(), why: "the temporary index failed, see the warning".into() }
}

/// A hint that cannot be read is no hint; a store that fails is a failure.
fn tolerate<T>(result: Result<T>) -> Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error @ Error::Damaged { .. }) => {
            tracing::warn!(%error, "passed over while reading the index");
            Ok(None)
        }
        Err(error) if error.is_absent() => Ok(None),
        Err(error) => Err(error),
    }
}

/// Runs blocking work off the asynchronous threads.
pub(crate) async fn blocking<T, F>(work: F) -> Result<T>
where
    T: Send + 'static,
    F: FnOnce() -> Result<T> + Send + 'static,
{
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(failure) => match failure.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(_) => Err(Error::Cancelled),
        },
    }
}
