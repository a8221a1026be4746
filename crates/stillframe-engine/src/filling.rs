//! Files of a restore, filled in batches: many small files or a part of a large one at a time, on several threads.

use std::fs::{File, OpenOptions};
use std::ops::Range;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use stillframe_repo::{ChunkReader, ChunkRef, ContentRef, FileEntry, Repository};
use stillframe_storage::{Attributes, failpoint};
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
    file: Mutex<Option<Arc<File>>>,
    length: u64,
    bytes_left: AtomicU64,
    /// Its last bytes are zeros, which may not have been written.
    may_end_in_hole: AtomicBool,
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
}

/// Takes files and fills them. Each chunk is checked on its way.
pub(crate) struct Filling<'a> {
    repo: &'a Repository,
    chunks: ChunkReader,
    batch: Vec<Piece>,
    batch_bytes: u64,
    under_way: JoinSet<Result<Filled, EngineError>>,
    tell: &'a dyn Fn(Filled) -> Result<(), EngineError>,
}

impl<'a> Filling<'a> {
    /// `tell` hears what was brought, and may say that it is enough.
    pub(crate) fn new(repo: &'a Repository, tell: &'a dyn Fn(Filled) -> Result<(), EngineError>) -> Self {
        let (batch, under_way) = (Vec::new(), JoinSet::new());
        Self { repo, chunks: repo.chunk_reader(), batch, batch_bytes: 0, under_way, tell }
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
            may_end_in_hole: AtomicBool::new(false),
            attributes,
        });
        if content.length == 0 {
            destination.write(0, &[])?;
            return (self.tell)(Filled { files: 1, bytes: 0 });
        }
        let mut leaves = self.repo.leaves(content);
        let mut offset = 0;
        while let Some(chunk) = leaves.next().await? {
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
        self.under_way.spawn(fill(self.chunks.clone(), batch));
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

async fn fill(chunks: ChunkReader, batch: Vec<Piece>) -> Result<Filled, EngineError> {
    let group: Vec<ChunkRef> = batch.iter().map(|piece| piece.chunk).collect();
    let contents = chunks.read_group(&group).await?;
    let write = move || {
        let mut filled = Filled::default();
        for (piece, bytes) in batch.iter().zip(contents) {
            filled.files += u64::from(piece.destination.write(piece.offset, &bytes)?);
            filled.bytes += piece.chunk.length;
        }
        Ok(filled)
    };
    let written = tokio::task::spawn_blocking(write).await;
    written.map_err(|_| EngineError::Bug("writing chunks panicked".into()))?
}

/// Zeros of so many bytes, at multiples of it, are not written but left out.
const HOLE: usize = 64 << 10;

/// Writes the bytes but for long runs of zeros: a new file has those where nothing was written, and takes no room for them.
fn write_but_holes(file: &File, bytes: &[u8], offset: u64) -> std::io::Result<()> {
    let is_hole = |piece: &[u8]| piece.len() == HOLE && piece.iter().all(|byte| *byte == 0);
    let (mut start, mut at) = (0, 0);
    for piece in bytes.chunks(HOLE) {
        if is_hole(piece) {
            write_part(file, bytes, start..at, offset)?;
            start = at + piece.len();
        }
        at += piece.len();
    }
    write_part(file, bytes, start..at, offset)
}

fn write_part(file: &File, bytes: &[u8], part: Range<usize>, offset: u64) -> std::io::Result<()> {
    let at = offset + u64::try_from(part.start).expect("a usize fits a u64");
    file.write_all_at(bytes.get(part).expect("a part of the bytes"), at)
}

impl Destination {
    /// Whether these were the last bytes.
    fn write(&self, offset: u64, bytes: &[u8]) -> Result<bool, EngineError> {
        let file = self.file()?;
        let end = offset + u64::try_from(bytes.len()).expect("a usize fits a u64");
        if end == self.length && bytes.last() == Some(&0) {
            self.may_end_in_hole.store(true, Ordering::Release);
        }
        write_but_holes(&file, bytes, offset).map_err(EngineError::io("write", &self.place))?;
        let length = u64::try_from(bytes.len()).expect("a usize fits a u64");
        if self.bytes_left.fetch_sub(length, Ordering::AcqRel) > length {
            return Ok(false);
        }
        // Nobody else writes to it any more.
        self.lock().take();
        if self.may_end_in_hole.load(Ordering::Acquire) {
            file.set_len(self.length).map_err(EngineError::io("write", &self.place))?;
        }
        if self.attributes == SetAttributes::WhenFull {
            apply(&file, &self.place, &self.entry)?;
        }
        failpoint("restore::filled");
        Ok(true)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<Arc<File>>> {
        self.file.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn file(&self) -> Result<Arc<File>, EngineError> {
        let mut slot = self.lock();
        if let Some(file) = &*slot {
            return Ok(Arc::clone(file));
        }
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&self.place);
        let file = file.map_err(|error| match error.kind() {
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
pub(crate) fn apply(file: &File, place: &Path, entry: &FileEntry) -> Result<(), EngineError> {
    attributes(entry)?.apply(file).map_err(EngineError::io("set mode, owner and time of", place))
}

/// Mode, owner and time of an entry.
pub(crate) fn attributes(entry: &FileEntry) -> Result<Attributes, EngineError> {
    let modified = entry.modified().ok_or_else(|| {
        EngineError::Unsound(format!("{}: its time of modification does not exist", entry.display_path()))
    })?;
    Ok(Attributes { mode: entry.mode, uid: entry.uid, gid: entry.gid, modified })
}
