//! Few full index segments in place of many small ones.

use std::collections::HashSet;

use futures::{StreamExt, TryStreamExt};
use serde::Serialize;
use stillframe_storage::failpoint;
use tokio_util::sync::CancellationToken;

use crate::error::{Error, Result, set_apart};
use crate::index::{CONCURRENCY, Index};
use crate::index_cache::listed_as;
use crate::index_segment::MAX_SEGMENT_CHUNKS;
use crate::layout::{Kind, ObjectName};
use crate::object_io::Listed;
use crate::pack_table::PackTable;
use crate::{ObjectId, PackId, Repository};

/// So many segments more than are needed are nothing to tidy up.
const TOLERATED: u64 = 16;
/// About the size of a full one.
const FULL: u64 = 41 * MAX_SEGMENT_CHUNKS as u64;

impl Index {
    /// Writes the index anew if it has become many small segments, or if `much_is_gone` of what they name. Returns how many segments it
    /// then has; 0: nothing was due. Segments are hints, so stopping at any point harms nothing.
    pub(crate) async fn compact(&self, much_is_gone: bool, cancel: &CancellationToken) -> Result<u64> {
        let segments = self.io().list(Kind::Index).await?;
        let needed = segments.iter().map(|segment| segment.size).sum::<u64>() / FULL + 1;
        if segments.is_empty() || !(much_is_gone || segments.len() as u64 > 2 * needed + TOLERATED) {
            return Ok(0);
        }
        self.rewrite(&segments, cancel).await
    }

    /// Writes the index anew from what the packs say of themselves. What the segments say is believed only of packs that cannot tell any more
    /// what is in them, and the cache is emptied.
    pub(crate) async fn rebuild(&self, cancel: &CancellationToken) -> Result<IndexRepair> {
        let old = self.io().list(Kind::Index).await?;
        let packs = self.io().list(Kind::Pack).await?;
        self.forget_all().await?;
        let mut writer = SegmentWriter::new(self);
        let mut repair = IndexRepair { packs: packs.len() as u64, ..IndexRepair::default() };
        let mut read = futures::stream::iter(packs.iter().copied())
            .map(async |pack| (pack, self.read_table(pack).await))
            .buffer_unordered(2 * CONCURRENCY);
        while let Some((pack, table)) = read.next().await {
            match set_apart(table)? {
                Some(Ok(table)) => writer.push(table).await?,
                Some(Err(error)) => {
                    let name = ObjectName::new(Kind::Pack, pack.id).to_string();
                    repair.unreadable.push((name, error.to_string()));
                }
                None => {}
            }
            check(cancel)?;
        }
        drop(read);
        if !repair.unreadable.is_empty() {
            self.push_segments(&mut writer, &old, &packs, cancel).await?;
        }
        repair.segments_removed = old.len() as u64;
        repair.segments_written = self.replace(writer, &old).await?;
        Ok(repair)
    }

    /// Writes new segments of all packs that are listed, with the tables that the old ones hold, and deletes those. Packs that none of them names tell
    /// themselves what is in them.
    async fn rewrite(&self, old: &[Listed], cancel: &CancellationToken) -> Result<u64> {
        let packs = self.io().list(Kind::Pack).await?;
        let mut writer = SegmentWriter::new(self);
        self.push_segments(&mut writer, old, &packs, cancel).await?;
        let unnamed: Vec<Listed> =
            packs.iter().filter(|pack| !writer.named.contains(&pack.id)).copied().collect();
        let mut fetched = futures::stream::iter(unnamed)
            .map(|pack| self.fetch_footer(pack))
            .buffer_unordered(2 * CONCURRENCY);
        while let Some(table) = fetched.try_next().await? {
            if let Some(table) = table {
                writer.push(table).await?;
            }
            check(cancel)?;
        }
        drop(fetched);
        self.replace(writer, old).await
    }

    /// What the segments say of packs that are listed and were not written yet.
    async fn push_segments(
        &self,
        writer: &mut SegmentWriter<'_>,
        segments: &[Listed],
        packs: &[Listed],
        cancel: &CancellationToken,
    ) -> Result<()> {
        let ids: Vec<ObjectId> = segments.iter().map(|segment| segment.id).collect();
        let mut fetched =
            futures::stream::iter(ids).map(|id| self.fetch_segment(id)).buffer_unordered(CONCURRENCY);
        while let Some((_, tables)) = fetched.try_next().await? {
            for table in tables.into_iter().flatten() {
                if listed_as(packs, table.pack, table.size).is_some() {
                    writer.push(table).await?;
                }
            }
            check(cancel)?;
        }
        Ok(())
    }

    async fn replace(&self, mut writer: SegmentWriter<'_>, old: &[Listed]) -> Result<u64> {
        writer.publish().await?;
        failpoint("index::rewritten");
        for segment in old {
            self.io().delete(ObjectName::new(Kind::Index, segment.id)).await?;
            failpoint("index::old-removed");
        }
        Ok(writer.written)
    }
}

/// What came of writing the index anew.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct IndexRepair {
    /// Packs in the repository.
    pub packs: u64,
    /// Segments that were removed.
    pub segments_removed: u64,
    /// Segments that were written.
    pub segments_written: u64,
    /// Packs that cannot tell what is in them, and why; what the old index said of them was kept.
    pub unreadable: Vec<(String, String)>,
}

impl Repository {
    /// Writes the index anew from the packs. Others may write, read and prune meanwhile; stopped at any point it has harmed nothing.
    pub async fn repair_index(&self, cancel: &CancellationToken) -> Result<IndexRepair> {
        self.index().rebuild(cancel).await
    }
}

struct SegmentWriter<'a> {
    index: &'a Index,
    named: HashSet<PackId>,
    open: Vec<PackTable>,
    chunks: usize,
    written: u64,
}

impl<'a> SegmentWriter<'a> {
    fn new(index: &'a Index) -> Self {
        Self { index, named: HashSet::new(), open: Vec::new(), chunks: 0, written: 0 }
    }

    async fn push(&mut self, table: PackTable) -> Result<()> {
        if !self.named.insert(table.pack) {
            return Ok(());
        }
        if self.chunks + table.entries.len() > MAX_SEGMENT_CHUNKS {
            self.publish().await?;
        }
        self.chunks += table.entries.len();
        self.open.push(table);
        Ok(())
    }

    async fn publish(&mut self) -> Result<()> {
        self.chunks = 0;
        let tables = std::mem::take(&mut self.open);
        self.written += u64::from(!tables.is_empty());
        self.index.publish(tables).await
    }
}

fn check(cancel: &CancellationToken) -> Result<()> {
    if cancel.is_cancelled() { Err(Error::Cancelled) } else { Ok(()) }
}
