//! Every chunk that some manifest leads to, on disk: there may be more of them than fit into memory.

use std::collections::HashSet;
use std::sync::{Mutex, MutexGuard, PoisonError};

use rusqlite::{Connection, OptionalExtension, params};
use tokio_util::sync::CancellationToken;

use crate::content_reader::children;
use crate::error::{Error, Result};
use crate::index::Index;
use crate::index_cache::Location;
use crate::layout::{Kind, ObjectName};
use crate::manifest::SourceForm;
use crate::{BackupId, ChunkId, ContentRef, FileEntry, FileKind, Manifest, Repository};

/// How many rows go into one transaction.
const BATCH: usize = 4096;
/// Nodes and parts of lists that are read together. Each may name a thousand others, so this bounds what is held.
const READ_TOGETHER: usize = 64;

/// Chunks looked up together.
const PAGE: usize = 4096;

/// What manifests lead to. Grows only: what was live once counts as live for as long as this is there.
pub(crate) struct LiveChunks {
    /// Locked only so that it may be looked at from several threads.
    connection: Mutex<Connection>,
    batch: Vec<LiveChunk>,
    /// Nodes and parts of file lists whose own children are in the set already. What is taken over from an earlier backup is so walked
    /// once, however many backups share it. The same bytes may be a node of two levels, which have different children.
    walked: HashSet<Node>,
    manifests: HashSet<BackupId>,
}

/// A chunk that is needed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct LiveChunk {
    pub(crate) id: ChunkId,
    /// As whoever needs it says; 0: of nodes nobody says it.
    pub(crate) length: u64,
}

impl LiveChunk {
    /// Whether what is there is as long as it is needed.
    pub(crate) fn fits(&self, place: &Location) -> bool {
        self.length == 0 || u64::from(place.entry.plain_len) == self.length
    }
}

/// A chunk that names others, its level, and what is at the bottom below it.
type Node = (ChunkId, u8, Role);

/// What stands in the chunks at the bottom of a tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Role {
    Bytes,
    FileList,
}

fn failed(error: &rusqlite::Error) -> Error {
    Error::Cache { path: std::env::temp_dir(), why: format!("the list of chunks in use: {error}") }
}

impl LiveChunks {
    pub(crate) fn new() -> Result<Self> {
        let open = || {
            let connection = Connection::open("")?;
            connection.execute_batch(
                "PRAGMA journal_mode = off; PRAGMA cache_size = -8192; PRAGMA temp_store = file;
                 CREATE TABLE live(id BLOB, length INTEGER, PRIMARY KEY(id, length)) WITHOUT ROWID;
                 CREATE TABLE staged(id BLOB, length INTEGER);",
            )?;
            Ok(connection)
        };
        let connection = open().map_err(|error: rusqlite::Error| failed(&error))?;
        let (walked, manifests) = (HashSet::new(), HashSet::new());
        Ok(Self { connection: Mutex::new(connection), batch: Vec::with_capacity(BATCH), walked, manifests })
    }

    fn connection(&self) -> MutexGuard<'_, Connection> {
        self.connection.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add(&mut self, chunk: LiveChunk) -> Result<()> {
        self.batch.push(chunk);
        if self.batch.len() < BATCH { Ok(()) } else { self.stage() }
    }

    fn stage(&mut self) -> Result<()> {
        let batch = std::mem::take(&mut self.batch);
        let write = || {
            let mut connection = self.connection();
            let transaction = connection.transaction()?;
            let mut insert = transaction.prepare_cached("INSERT INTO staged VALUES (?1, ?2)")?;
            for chunk in batch {
                insert.execute(params![chunk.id.0, chunk.length.cast_signed()])?;
            }
            drop(insert);
            transaction.commit()
        };
        write().map_err(|error| failed(&error))
    }

    /// Sorted once and not chunk by chunk: ten million random places in a tree on disk would be as many writes.
    pub(crate) fn settle(&mut self) -> Result<()> {
        self.stage()?;
        let merged = self.connection().execute_batch(
            "INSERT OR IGNORE INTO live SELECT id, length FROM staged ORDER BY id, length; DELETE FROM staged;",
        );
        merged.map_err(|error| failed(&error))
    }

    /// Which of `ids` are live.
    pub(crate) fn contains(&self, ids: impl IntoIterator<Item = ChunkId>) -> Result<HashSet<ChunkId>> {
        let select = || {
            let connection = self.connection();
            let mut statement = connection.prepare_cached("SELECT 1 FROM live WHERE id = ?1 LIMIT 1")?;
            let mut found = HashSet::new();
            for id in ids {
                if statement.query_row([id.0], |_| Ok(())).optional()?.is_some() {
                    found.insert(id);
                }
            }
            Ok(found)
        };
        select().map_err(|error: rusqlite::Error| failed(&error))
    }

    /// How many.
    pub(crate) fn len(&self) -> Result<u64> {
        let count = self
            .connection()
            .query_row("SELECT count(DISTINCT id) FROM live", [], |row| row.get::<_, i64>(0));
        Ok(count.map_err(|error| failed(&error))?.cast_unsigned())
    }

    /// Tells of each, in their order, where `index` has it. One chunk may come with several lengths, if somebody wrote nonsense.
    pub(crate) fn locate_each(
        &self,
        index: &Index,
        cancel: &CancellationToken,
        mut told: impl FnMut(&LiveChunk, &[Location]),
    ) -> Result<()> {
        let mut after = None;
        loop {
            if cancel.is_cancelled() {
                return Err(Error::Cancelled);
            }
            let page = self.page(after, PAGE)?;
            let Some(last) = page.last() else { return Ok(()) };
            after = Some(*last);
            let ids: Vec<ChunkId> = page.iter().map(|chunk| chunk.id).collect();
            page.iter().zip(index.locate_all(&ids)?).for_each(|(chunk, places)| told(chunk, &places));
        }
    }

    /// At most `limit` of those that follow `after`, in their order.
    fn page(&self, after: Option<LiveChunk>, limit: usize) -> Result<Vec<LiveChunk>> {
        let select = || {
            let (id, length) =
                after.map_or((Vec::new(), 0), |chunk| (chunk.id.0.to_vec(), chunk.length.cast_signed()));
            let connection = self.connection();
            let mut statement = connection.prepare_cached(
                "SELECT id, length FROM live WHERE (id, length) > (?1, ?2) ORDER BY id, length LIMIT ?3",
            )?;
            let limit = i64::try_from(limit).unwrap_or(i64::MAX);
            let rows = statement.query_map(params![id, length, limit], |row| {
                Ok(LiveChunk { id: ChunkId(row.get(0)?), length: row.get::<_, i64>(1)?.cast_unsigned() })
            })?;
            rows.collect::<rusqlite::Result<Vec<_>>>()
        };
        select().map_err(|error| failed(&error))
    }

    /// Lists the manifests, sealed or not, and walks those that were not walked yet. One that cannot be walked stops it: nobody could
    /// say which chunks it needs.
    pub(crate) async fn walk(&mut self, repository: &Repository, cancel: &CancellationToken) -> Result<()> {
        let io = repository.io();
        // Before the manifests: of a seal that was listed the manifest must be there, unless both were forgotten since.
        let sealed = io.list(Kind::Sealed).await?;
        let manifests = io.list(Kind::Manifest).await?;
        let is_sealed = |id: &BackupId| sealed.binary_search_by_key(id, |listed| listed.id).is_ok();
        for seal in &sealed {
            let is_there = manifests.binary_search_by_key(&seal.id, |listed| listed.id).is_ok();
            if !is_there && io.size(ObjectName::new(Kind::Sealed, seal.id)).await?.is_some() {
                return Err(untold(seal.id, "it is missing, and was sealed"));
            }
        }
        for listed in manifests {
            if self.manifests.contains(&listed.id) {
                continue;
            }
            match self.walk_one(repository, listed.id, cancel).await {
                Ok(()) => drop(self.manifests.insert(listed.id)),
                Err(error @ (Error::Cancelled | Error::Cache { .. })) => return Err(error),
                // Forgotten since it was listed: what it needed may be gone.
                Err(_)
                    if repository.io().size(ObjectName::new(Kind::Manifest, listed.id)).await?.is_none() => {}
                // Its writer will find out before it seals, and put everything again. So whoever died there left it.
                Err(Error::ChunkLost { chunk, .. })
                    if !is_sealed(&listed.id) && is_in_no_pack(repository, &chunk).await? => {}
                Err(error) if error.is_damage() => {
                    return Err(untold(listed.id, &error.to_string()));
                }
                Err(error) => return Err(error),
            }
        }
        self.settle()
    }

    /// What one manifest leads to. Ends with [`Self::settle`].
    pub(crate) async fn walk_one(
        &mut self,
        repository: &Repository,
        id: BackupId,
        cancel: &CancellationToken,
    ) -> Result<()> {
        let fresh = self.walk_manifest(repository, ObjectName::new(Kind::Manifest, id), cancel).await?;
        // Only now: of a walk that failed half way nobody knows which children were come to.
        self.walked.extend(fresh);
        Ok(())
    }

    /// Returns what was walked of it for the first time.
    async fn walk_manifest(
        &mut self,
        repository: &Repository,
        name: ObjectName,
        cancel: &CancellationToken,
    ) -> Result<HashSet<Node>> {
        let manifest = Manifest::decode(repository.ring(), name.id, &repository.io().get(name).await?)?;
        let mut open = Vec::new();
        for source in &manifest.draft.sources {
            if source.form != SourceForm::Image || source.collections.is_some() {
                return Err(Error::NewerForm { object: name.to_string(), source_name: source.name.clone() });
            }
            open.extend([(source.snapshot, Role::Bytes), (source.files, Role::FileList)]);
        }
        let chunks = repository.chunk_reader();
        let mut fresh = HashSet::new();
        while !open.is_empty() {
            if cancel.is_cancelled() {
                return Err(Error::Cancelled);
            }
            let mut to_read = Vec::new();
            while to_read.len() < READ_TOGETHER
                && let Some((content, role)) = open.pop()
            {
                if content == ContentRef::EMPTY {
                    continue;
                }
                let node = (content.id, content.level, role);
                let is_read = content.level > 0 || role == Role::FileList;
                if is_read && (self.walked.contains(&node) || !fresh.insert(node)) {
                    continue;
                }
                let length = if content.level == 0 { content.length } else { 0 };
                self.add(LiveChunk { id: content.id, length })?;
                if is_read {
                    to_read.push((content, role));
                }
            }
            let ids: Vec<ChunkId> = to_read.iter().map(|(content, _)| content.id).collect();
            for ((content, role), bytes) in to_read.into_iter().zip(chunks.read_all(&ids).await?) {
                if content.level > 0 {
                    open.extend(children(&content, &bytes)?.into_iter().map(|child| (child, role)));
                } else {
                    open.extend(contents_of(&bytes)?.into_iter().map(|content| (content, Role::Bytes)));
                }
            }
        }
        Ok(fresh)
    }
}

async fn is_in_no_pack(repository: &Repository, chunk: &ChunkId) -> Result<bool> {
    repository.index().refresh().await?;
    Ok(repository.index().locate(chunk)?.is_empty())
}

/// What such a backup needs must not be deleted, and nobody knows what that is.
fn untold(id: BackupId, why: &str) -> Error {
    let advice =
        "bring back what is lost, or let the backup go (`stillframe repair snapshots`, `stillframe forget`)";
    let name = ObjectName::new(Kind::Manifest, id);
    Error::damaged(&name, format!("what backup {id} needs cannot be told: {why}; {advice}"))
}

/// What the files of one chunk of a list consist of.
fn contents_of(list: &[u8]) -> Result<Vec<ContentRef>> {
    let content = |entry: FileEntry| match entry.kind {
        FileKind::File { content } => Some(content),
        _ => None,
    };
    Ok(FileEntry::decode_all(list)?.into_iter().filter_map(content).collect())
}
