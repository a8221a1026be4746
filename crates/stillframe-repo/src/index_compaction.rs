//! Few full index segments in place of many small ones.

use std::collections::HashSet;

use futures::{StreamExt, TryStreamExt};
use stillframe_storage::failpoint;
use tokio_util::sync::CancellationToken;

use crate::error::{Error, Result};
use crate::index::{CONCURRENCY, Index};
use crate::index_cache::listed_as;
use crate::index_segment::MAX_SEGMENT_CHUNKS;
use crate::layout::{Kind, ObjectName};
use crate::object_io::Listed;
use crate::pack_table::PackTable;
use crate::{ObjectId, PackId};

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

    /// Writes new segments of all packs that are listed, with the tables that the old ones hold, and deletes those. Packs that none of them names tell
    /// themselves what is in them.
    async fn rewrite(&self, old: &[Listed], cancel: &CancellationToken) -> Result<u64> {
        let packs = self.io().list(Kind::Pack).await?;
        let mut writer =
            SegmentWriter { index: self, named: HashSet::new(), open: Vec::new(), chunks: 0, written: 0 };
        let ids: Vec<ObjectId> = old.iter().map(|segment| segment.id).collect();
        let mut fetched =
            futures::stream::iter(ids).map(|id| self.fetch_segment(id)).buffer_unordered(CONCURRENCY);
        while let Some((_, tables)) = fetched.try_next().await? {
            for table in tables.into_iter().flatten() {
                if listed_as(&packs, table.pack, table.size).is_some() {
                    writer.push(table).await?;
                }
            }
            check(cancel)?;
        }
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
        writer.publish().await?;
        failpoint("index::rewritten");
        for segment in old {
            self.io().delete(ObjectName::new(Kind::Index, segment.id)).await?;
        }
        Ok(writer.written)
    }
}

struct SegmentWriter<'a> {
    index: &'a Index,
    named: HashSet<PackId>,
    open: Vec<PackTable>,
    chunks: usize,
    written: u64,
}

impl SegmentWriter<'_> {
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
