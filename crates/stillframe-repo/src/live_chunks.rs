//! Every chunk that some manifest leads to, on disk: there may be more of them than fit into memory.

use std::collections::HashSet;
use std::sync::{Mutex, MutexGuard, PoisonError};

use rusqlite::{Connection, OptionalExtension};
use tokio_util::sync::CancellationToken;

use crate::bytes_reader::BytesReader;
use crate::content_reader::children;
use crate::error::{Error, Result};
use crate::layout::{Kind, ObjectName};
use crate::manifest::SourceForm;
use crate::{BackupId, ChunkId, ContentRef, FileEntry, FileKind, Manifest, Repository};

/// How many rows go into one transaction.
const BATCH: usize = 4096;
/// Nodes and parts of lists that are read together. Each may name a thousand others, so this bounds what is held.
const READ_TOGETHER: usize = 64;

/// What manifests lead to. Grows only: what was live once counts as live for as long as this is there.
pub(crate) struct LiveChunks {
    /// Locked only so that it may be looked at from several threads.
    connection: Mutex<Connection>,
    batch: Vec<ChunkId>,
    /// Nodes and parts of file lists whose own children are in the set already. What is taken over from an earlier backup is so walked
    /// once, however many backups share it. The same bytes may be a node of two levels, which have different children.
    walked: HashSet<Node>,
    manifests: HashSet<BackupId>,
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
                 CREATE TABLE live(id BLOB PRIMARY KEY) WITHOUT ROWID;
                 CREATE TABLE staged(id BLOB);",
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

    fn add(&mut self, id: ChunkId) -> Result<()> {
        self.batch.push(id);
        if self.batch.len() < BATCH { Ok(()) } else { self.stage() }
    }

    fn stage(&mut self) -> Result<()> {
        let batch = std::mem::take(&mut self.batch);
        let write = || {
            let mut connection = self.connection();
            let transaction = connection.transaction()?;
            let mut insert = transaction.prepare_cached("INSERT INTO staged VALUES (?1)")?;
            for id in batch {
                insert.execute([id.0])?;
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
            "INSERT OR IGNORE INTO live SELECT id FROM staged ORDER BY id; DELETE FROM staged;",
        );
        merged.map_err(|error| failed(&error))
    }

    /// Which of `ids` are live.
    pub(crate) fn contains(&self, ids: impl IntoIterator<Item = ChunkId>) -> Result<HashSet<ChunkId>> {
        let select = || {
            let connection = self.connection();
            let mut statement = connection.prepare_cached("SELECT 1 FROM live WHERE id = ?1")?;
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
        let count = self.connection().query_row("SELECT count(*) FROM live", [], |row| row.get::<_, i64>(0));
        Ok(count.map_err(|error| failed(&error))?.cast_unsigned())
    }

    /// At most `limit` of those that follow `after`, in their order.
    pub(crate) fn page(&self, after: Option<ChunkId>, limit: usize) -> Result<Vec<ChunkId>> {
        let select = || {
            let after = after.map_or(Vec::new(), |id| id.0.to_vec());
            let connection = self.connection();
            let mut statement =
                connection.prepare_cached("SELECT id FROM live WHERE id > ?1 ORDER BY id LIMIT ?2")?;
            let limit = i64::try_from(limit).unwrap_or(i64::MAX);
            let rows =
                statement.query_map(rusqlite::params![after, limit], |row| Ok(ChunkId(row.get(0)?)))?;
            rows.collect::<rusqlite::Result<Vec<_>>>()
        };
        select().map_err(|error| failed(&error))
    }

    /// Lists the manifests, sealed or not, and walks those that were not walked yet. One that cannot be walked stops it: nobody could
    /// say which chunks it needs.
    pub(crate) async fn walk(&mut self, repository: &Repository, cancel: &CancellationToken) -> Result<()> {
        for listed in repository.io().list(Kind::Manifest).await? {
            if self.manifests.contains(&listed.id) {
                continue;
            }
            match self.walk_one(repository, listed.id, cancel).await {
                Ok(()) => drop(self.manifests.insert(listed.id)),
                Err(error @ (Error::Cancelled | Error::Cache { .. })) => return Err(error),
                // Forgotten since it was listed: what it needed may be gone.
                Err(_)
                    if repository.io().size(ObjectName::new(Kind::Manifest, listed.id)).await?.is_none() => {}
                Err(error) if error.is_damage() => {
                    let why = format!("what it needs cannot be told: {error}");
                    return Err(Error::damaged(&ObjectName::new(Kind::Manifest, listed.id), why));
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
                self.add(content.id)?;
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

/// What the files of one chunk of a list consist of.
fn contents_of(list: &[u8]) -> Result<Vec<ContentRef>> {
    let mut reader = BytesReader::new(list);
    let mut contents = Vec::new();
    while !reader.is_empty() {
        let entry = FileEntry::decode(&mut reader).map_err(|why| Error::inconsistent("file list", why))?;
        if let FileKind::File { content } = entry.kind {
            contents.push(content);
        }
    }
    Ok(contents)
}
