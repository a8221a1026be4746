//! Bringing what is needed of condemned packs into new ones.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use crate::chunk_reader::{ChunkReader, open_chunk};
use crate::error::{Error, Result};
use crate::index::{blocking, read_pack_table};
use crate::index_cache::{Location, listed_as};
use crate::live_chunks::LiveChunks;
use crate::object_io::Listed;
use crate::packer::{Appended, PACK_CHUNKS, Packer, PackerOptions};
use crate::prune::PruneOptions;
use crate::{ChunkId, PackId, Repository};

/// How many tables of other packs are kept in memory.
const TABLES: usize = 32;
/// Bytes fetched together.
const RUN: u64 = 8 << 20;

impl Repository {
    /// Whether a pack with so much of use is one of those that many small backups leave, which cost a request each.
    pub(crate) fn is_small_pack(&self, bytes: u64, chunks: u64) -> bool {
        bytes < self.pack_size() / 4 && chunks < PACK_CHUNKS as u64 / 4
    }

    /// Whether so much is at least one pack.
    pub(crate) fn fills_a_pack(&self, bytes: u64, chunks: u64) -> bool {
        bytes >= self.pack_size() || chunks >= PACK_CHUNKS as u64
    }
}

pub(crate) struct PackMover<'a> {
    repository: &'a Repository,
    /// That are there, sorted.
    packs: &'a [Listed],
    condemned: &'a BTreeSet<PackId>,
    chunks: ChunkReader,
    packer: Arc<Packer>,
    /// In which damage was seen.
    bad: HashSet<PackId>,
    /// Written here.
    own: HashSet<PackId>,
    tables: HashMap<PackId, HashSet<ChunkId>>,
    moved: u64,
}

impl<'a> PackMover<'a> {
    pub(crate) fn new(
        repository: &'a Repository,
        options: &PruneOptions,
        packs: &'a [Listed],
        condemned: &'a BTreeSet<PackId>,
    ) -> Self {
        let packer_options = PackerOptions {
            pack_size: repository.pack_size(),
            cancel: options.cancel.clone(),
            bandwidth: options.bandwidth.clone(),
            clock: Arc::clone(&options.clock),
        };
        let (ring, io, index) = (repository.ring(), repository.io(), repository.index());
        let packer =
            Packer::new(Arc::clone(ring), io.clone(), Arc::clone(index), packer_options, Box::new(|_| {}));
        let chunks = repository.chunk_reader();
        let (bad, own, tables) = (index.distrust().all(), HashSet::new(), HashMap::new());
        Self { repository, packs, condemned, chunks, packer, bad, own, tables, moved: 0 }
    }

    /// Copies what of a condemned pack is live and nowhere else. Returns how many bytes that were.
    pub(crate) async fn rescue(&mut self, pack: Listed, live: &LiveChunks) -> Result<u64> {
        let (io, ring) = (self.repository.io(), self.repository.ring());
        let table = match read_pack_table(io, ring, pack).await {
            Ok(table) => table,
            // Another sweep was here, and has brought to safety what was in it.
            Err(error) if error.is_absent() => return Ok(0),
            Err(error) => return Err(error),
        };
        let wanted = live.contains(table.entries.iter().map(|entry| entry.id))?;
        let mut to_move = Vec::new();
        let wanted: Vec<Location> =
            Location::all_of(&table).filter(|location| wanted.contains(&location.entry.id)).collect();
        let ids: Vec<ChunkId> = wanted.iter().map(|location| location.entry.id).collect();
        let located = self.repository.index().locate_all(&ids)?;
        for (location, places) in wanted.into_iter().zip(&located) {
            if !self.is_elsewhere(&location.entry.id, places).await? {
                to_move.push(location);
            }
        }
        let mut bytes = 0;
        let runs: Vec<&[Location]> = runs(&to_move).collect();
        for run in runs {
            bytes += match self.move_run(run).await {
                Ok(bytes) => bytes,
                Err(error) if error.is_absent() => return Ok(bytes),
                Err(error) => return Err(error),
            };
        }
        Ok(bytes)
    }

    /// Whether a pack that stays has the chunk, by that pack's own table.
    async fn is_elsewhere(&mut self, id: &ChunkId, places: &[Location]) -> Result<bool> {
        for place in places {
            if self.own.contains(&place.pack) {
                return Ok(true);
            }
            if self.condemned.contains(&place.pack) || self.bad.contains(&place.pack) {
                continue;
            }
            let Some(at) = listed_as(self.packs, place.pack, place.pack_size) else { continue };
            let Some(listed) = self.packs.get(at) else { continue };
            if self.table_of(*listed).await?.contains(id) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// The chunks of a pack; none, if its table cannot be read.
    async fn table_of(&mut self, pack: Listed) -> Result<&HashSet<ChunkId>> {
        if !self.tables.contains_key(&pack.id) {
            if self.tables.len() == TABLES {
                self.tables.clear();
            }
            let ids = match read_pack_table(self.repository.io(), self.repository.ring(), pack).await {
                Ok(table) => table.entries.iter().map(|entry| entry.id).collect(),
                Err(error) if error.is_absent() || error.is_damage() => HashSet::new(),
                Err(error) => return Err(error),
            };
            self.tables.insert(pack.id, ids);
        }
        Ok(self.tables.entry(pack.id).or_default())
    }

    /// In the form in which they are stored, but not before each was compared with its name.
    async fn move_run(&mut self, run: &[Location]) -> Result<u64> {
        let places: Vec<(usize, Location)> = run.iter().cloned().enumerate().collect();
        let fetched = self.chunks.fetch_run(&places).await?;
        let (ring, packer) = (Arc::clone(self.repository.ring()), Arc::clone(&self.packer));
        let moving = blocking(move || {
            let mut moved = Vec::new();
            for (_, place, sealed) in fetched {
                let stored = open_chunk(&ring, &place, sealed)?;
                let entry = place.entry;
                if let Appended::New(pack) =
                    packer.append(entry.id, entry.plain_len, entry.compression, &stored)?
                {
                    moved.push((pack, u64::from(entry.stored_len)));
                }
            }
            Ok(moved)
        });
        let moved = match moving.await {
            Err(Error::Stopped) => return Err(self.packer.take_failure().unwrap_or(Error::Stopped)),
            moved => moved?,
        };
        self.moved += moved.len() as u64;
        self.own.extend(moved.iter().map(|(pack, _)| *pack));
        Ok(moved.iter().map(|(_, bytes)| bytes).sum())
    }

    /// Everything stored and in the index. Chunks that were moved, and bytes of their packs.
    pub(crate) async fn finish(self) -> Result<(u64, u64)> {
        if let Err(error) = self.packer.flush().await {
            return Err(self.packer.take_failure().unwrap_or(error));
        }
        let (_, bytes) = self.packer.stored();
        Ok((self.moved, bytes))
    }
}

/// Chunks that are fetched together: neighbours, and not too many.
fn runs(places: &[Location]) -> impl Iterator<Item = &[Location]> {
    let mut rest = places;
    std::iter::from_fn(move || {
        let first = rest.first()?;
        let mut length = 1;
        let mut last = first;
        while let Some(next) = rest.get(length).filter(|next| last.is_close_to(next)) {
            if next.end() - first.offset > RUN {
                break;
            }
            last = next;
            length += 1;
        }
        let (run, behind) = rest.split_at(length);
        rest = behind;
        Some(run)
    })
}
