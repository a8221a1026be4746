//! Writing the list of an image's files, entry by entry.

use crate::ContentRef;
use crate::content_writer::ContentWriter;
use crate::error::{Error, Result};
use crate::file_entry::FileEntry;
use crate::session::WriteSession;

/// A chunk ends after an entry in so many, on average.
const AVERAGE_ENTRIES: u64 = 256;
const MAX_ENTRIES: usize = 2048;
const MAX_BYTES: usize = 256 << 10;

/// A finished list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileList {
    /// The list itself.
    pub content: ContentRef,
    /// Entries in it.
    pub file_count: u64,
    /// Bytes of the files in it.
    pub bytes: u64,
}

/// Takes entries in the order of [`FileEntry::key`] and stores them in chunks that end where a keyed hash of the path says,
/// so that a change in one place leaves the other chunks as they were.
#[derive(Debug)]
pub struct FileListWriter<'a> {
    session: &'a WriteSession,
    content: ContentWriter<'a>,
    chunk: Vec<u8>,
    entries: usize,
    last: Option<(String, Vec<u8>)>,
    file_count: u64,
    bytes: u64,
}

impl<'a> FileListWriter<'a> {
    /// For a new list.
    pub fn new(session: &'a WriteSession) -> Self {
        let content = ContentWriter::new(session);
        Self { session, content, chunk: Vec::new(), entries: 0, last: None, file_count: 0, bytes: 0 }
    }

    /// Appends an entry. Fails when it is out of order or could not be read back. Blocks as [`WriteSession::put`] does.
    pub fn push(&mut self, entry: &FileEntry) -> Result<()> {
        let (directory, path) = entry.key();
        if self.last.as_ref().is_some_and(|(d, p)| (d.as_bytes(), p.as_slice()) >= (directory, path)) {
            return Err(Error::Invalid(format!("{} is out of order in the file list", entry.display_path())));
        }
        entry.encode(&mut self.chunk)?;
        self.entries += 1;
        self.file_count += 1;
        self.bytes = self.bytes.saturating_add(entry.size());
        let hash = self.session.boundary_hash(&entry.directory, path);
        self.last = Some((entry.directory.clone(), path.to_vec()));
        let full = self.entries >= MAX_ENTRIES || self.chunk.len() >= MAX_BYTES;
        if full || hash.is_multiple_of(AVERAGE_ENTRIES) { self.end_chunk() } else { Ok(()) }
    }

    /// The whole list. Blocks as [`WriteSession::put`] does.
    pub fn finish(mut self) -> Result<FileList> {
        self.end_chunk()?;
        let content = self.content.finish()?;
        Ok(FileList { content, file_count: self.file_count, bytes: self.bytes })
    }

    fn end_chunk(&mut self) -> Result<()> {
        if !self.chunk.is_empty() {
            self.content.push(self.session.put(&self.chunk)?)?;
            self.chunk.clear();
            self.entries = 0;
        }
        Ok(())
    }
}
