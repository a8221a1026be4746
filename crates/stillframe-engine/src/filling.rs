//! Files of a restore, filled in batches: many small files or a part of a large one at a time, on several threads.

use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use stillframe_repo::{ChunkReader, ChunkRef, ContentRef, Error as RepoError, FileEntry, Repository};
use stillframe_storage::{Attributes, NewFile, Owner, WriteBuffers, failpoint};
use tokio::task::JoinSet;

use crate::EngineError;

/// A batch is full with so many bytes, or so many chunks.
const BATCH_BYTES: u64 = 4 << 20;
const BATCH_CHUNKS: usize = 256;
/// Batches on their way. Each holds its bytes up to three times.
const BATCHES: usize = 4;

/// A file that is being filled. It is made when its first bytes come, and gets its attributes with its last ones.
#[derive(Debug)]
struct Destination {
    place: PathBuf,
    entry: FileEntry,
    /// Absent before the first bytes and after the last ones, so that few files are open at a time.
    file: Mutex<Option<Arc<NewFile>>>,
    length: u64,
    bytes_left: AtomicU64,
    attributes: SetAttributes,
}

/// When a file gets its mode, owner and time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SetAttributes {
    /// As soon as it is full.
    WhenFull,
    /// It is changed after that: its attributes are for the caller.
    Later,
}

/// A part of a file's content.
#[derive(Debug)]
struct Piece {
    chunk: ChunkRef,
    offset: u64,
    destination: Arc<Destination>,
}

/// What a batch has brought.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Filled {
    pub(crate) files: u64,
    pub(crate) bytes: u64,
    /// Files that could not be given to their owner.
    pub(crate) refused: u64,
}

impl Filled {
    /// A file that is done.
    pub(crate) fn count(&mut self, owner: Option<Owner>) {
        self.files += u64::from(owner.is_some());
        self.refused += u64::from(owner == Some(Owner::Refused));
    }
}

/// Takes files and fills them. Each chunk is checked on its way.
pub(crate) struct Filling<'a> {
    repo: &'a Repository,
    chunks: ChunkReader,
    buffers: Arc<WriteBuffers>,
    batch: Vec<Piece>,
    batch_bytes: u64,
    under_way: JoinSet<Result<Filled, EngineError>>,
    tell: &'a dyn Fn(Filled) -> Result<(), EngineError>,
}

impl<'a> Filling<'a> {
    /// `tell` hears what was brought, and may say that it is enough.
    pub(crate) fn new(repo: &'a Repository, tell: &'a dyn Fn(Filled) -> Result<(), EngineError>) -> Self {
        let (batch, buffers, under_way) = (Vec::new(), Arc::default(), JoinSet::new());
        Self { repo, chunks: repo.chunk_reader(), buffers, batch, batch_bytes: 0, under_way, tell }
    }

    /// Fills the file at `place`, which must not exist; its directory must.
    pub(crate) async fn add(
        &mut self,
        place: PathBuf,
        entry: FileEntry,
        content: ContentRef,
        attributes: SetAttributes,
    ) -> Result<(), EngineError> {
        let destination = Arc::new(Destination {
            place,
            entry,
            file: Mutex::default(),
            length: content.length,
            bytes_left: AtomicU64::new(content.length),
            attributes,
        });
        if content.length == 0 {
            let mut filled = Filled::default();
            filled.count(destination.write(0, &[], &self.buffers)?);
            return (self.tell)(filled);
        }
        let mut leaves = self.repo.leaves(content);
        let mut offset = 0;
        let lost = || EngineError::lost(|| destination.entry.display_path());
        while let Some(chunk) = leaves.next().await.map_err(lost())? {
            if self.batch.len() >= BATCH_CHUNKS || self.batch_bytes + chunk.length > BATCH_BYTES {
                self.send().await?;
            }
            self.batch.push(Piece { chunk, offset, destination: Arc::clone(&destination) });
            self.batch_bytes += chunk.length;
            offset += chunk.length;
        }
        Ok(())
    }

    /// Waits until everything is filled.
    pub(crate) async fn finish(&mut self) -> Result<(), EngineError> {
        self.send().await?;
        while self.wait_for_one().await? {}
        Ok(())
    }

    /// Waits for what is under way, whatever comes of it: afterwards nothing is written any more, and what was can be removed.
    pub(crate) async fn abandon(mut self) {
        while self.under_way.join_next().await.is_some() {}
    }

    async fn send(&mut self) -> Result<(), EngineError> {
        let batch = std::mem::take(&mut self.batch);
        self.batch_bytes = 0;
        if batch.is_empty() {
            return Ok(());
        }
        while self.under_way.len() >= BATCHES {
            self.wait_for_one().await?;
        }
        self.under_way.spawn(fill(self.chunks.clone(), Arc::clone(&self.buffers), batch));
        Ok(())
    }

    /// `false`: nothing is under way.
    async fn wait_for_one(&mut self) -> Result<bool, EngineError> {
        let Some(done) = self.under_way.join_next().await else { return Ok(false) };
        let filled = done.map_err(|_| EngineError::Bug("filling files panicked".into()))??;
        (self.tell)(filled)?;
        Ok(true)
    }
}

async fn fill(
    chunks: ChunkReader,
    buffers: Arc<WriteBuffers>,
    batch: Vec<Piece>,
) -> Result<Filled, EngineError> {
    let group: Vec<ChunkRef> = batch.iter().map(|piece| piece.chunk).collect();
    let read = chunks.read_group(&group).await;
    let mut contents = read.map_err(|error| in_file(error, &batch))?;
    let write = move || {
        let contents = contents.make_contiguous();
        let (mut filled, mut at) = (Filled::default(), 0);
        // The pieces of one file follow each other.
        for pieces in batch.chunk_by(|a, b| Arc::ptr_eq(&a.destination, &b.destination)) {
            let Some(first) = pieces.first() else { continue };
            let bytes = contents.get(at..at + pieces.len()).expect("each piece has its bytes");
            filled.count(first.destination.write(first.offset, bytes, &buffers)?);
            filled.bytes += pieces.iter().map(|piece| piece.chunk.length).sum::<u64>();
            at += pieces.len();
        }
        Ok(filled)
    };
    let written = tokio::task::spawn_blocking(write).await;
    written.map_err(|_| EngineError::Bug("writing chunks panicked".into()))?
}

/// Which of the files it is that has lost something.
fn in_file(error: RepoError, batch: &[Piece]) -> EngineError {
    let piece = match &error {
        RepoError::ChunkLost { chunk, .. } => batch.iter().find(|piece| piece.chunk.id == *chunk),
        _ => None,
    };
    match piece {
        Some(piece) => EngineError::Lost { what: piece.destination.entry.display_path(), lost: error },
        None => error.into(),
    }
}

/// Zeros of so many bytes, at multiples of it, are not written but left out: a new file has zeros where nothing was written, and takes
/// no room for them.
const HOLE: usize = 64 << 10;

/// The parts of some bytes that are not holes.
fn without_holes(bytes: &[u8]) -> Vec<Range<usize>> {
    let is_hole = |piece: &[u8]| piece.len() == HOLE && piece.iter().all(|byte| *byte == 0);
    let mut parts: Vec<Range<usize>> = Vec::new();
    let mut at = 0;
    for piece in bytes.chunks(HOLE) {
        let end = at + piece.len();
        match parts.last_mut() {
            _ if is_hole(piece) => {}
            Some(last) if last.end == at => last.end = end,
            _ => parts.push(at..end),
        }
        at = end;
    }
    parts
}

impl Destination {
    /// Writes what stands one behind the other from `offset` on. After the last bytes: whether the file got its owner.
    fn write(
        &self,
        offset: u64,
        contents: &[Bytes],
        buffers: &WriteBuffers,
    ) -> Result<Option<Owner>, EngineError> {
        let file = self.file()?;
        let write = |parts: &mut Vec<&[u8]>, at: u64| {
            file.write_at(parts.drain(..), at, buffers).map_err(EngineError::io("write", &self.place))
        };
        // What is written with one call, and where it begins and ends.
        let (mut parts, mut start, mut end) = (Vec::new(), offset, offset);
        let mut at = offset;
        for bytes in contents {
            for part in without_holes(bytes) {
                let (place, part) = (at + part.start as u64, bytes.get(part).expect("a part of them"));
                if place != end {
                    write(&mut parts, start)?;
                    start = place;
                }
                parts.push(part);
                end = place + part.len() as u64;
            }
            at += bytes.len() as u64;
        }
        write(&mut parts, start)?;
        let length = at - offset;
        if self.bytes_left.fetch_sub(length, Ordering::AcqRel) > length {
            return Ok(None);
        }
        // Nobody else writes to it any more.
        self.lock().take();
        let file = file.finish().map_err(EngineError::io("write", &self.place))?;
        let owner = match self.attributes {
            SetAttributes::WhenFull => apply(file, &self.place, &self.entry)?,
            SetAttributes::Later => Owner::Given,
        };
        failpoint("restore::filled");
        Ok(Some(owner))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<Arc<NewFile>>> {
        self.file.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn file(&self) -> Result<Arc<NewFile>, EngineError> {
        let mut slot = self.lock();
        if let Some(file) = &*slot {
            return Ok(Arc::clone(file));
        }
        let file = NewFile::create(&self.place, 0o600, self.length).map_err(|error| match error.kind() {
            std::io::ErrorKind::AlreadyExists => EngineError::Usage(format!(
                "two files of the backup would come to the place of {}; if that is because of --map, choose other names",
                self.entry.display_path()
            )),
            _ => EngineError::io("create", &self.place)(error),
        });
        let file = Arc::new(file?);
        *slot = Some(Arc::clone(&file));
        Ok(file)
    }
}

/// Gives a file or directory what its entry says.
pub(crate) fn apply(file: &File, place: &Path, entry: &FileEntry) -> Result<Owner, EngineError> {
    attributes(entry)?.apply(file).map_err(EngineError::io("set mode, owner and time of", place))
}

/// Mode, owner and time of an entry.
pub(crate) fn attributes(entry: &FileEntry) -> Result<Attributes, EngineError> {
    let modified = entry.modified().ok_or_else(|| {
        EngineError::Unsound(format!("{}: its time of modification does not exist", entry.display_path()))
    })?;
    Ok(Attributes { mode: entry.mode, uid: entry.uid, gid: entry.gid, modified })
}
