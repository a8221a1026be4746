//! Reading the list of an image's files, entry by entry.

use bytes::Bytes;

use crate::bytes_reader::BytesReader;
use crate::chunk_reader::ChunkReader;
use crate::content_reader::ContentReader;
use crate::error::{Error, Result};
use crate::file_entry::FileEntry;
use crate::{ContentRef, Repository};

/// Gives the entries of a list in order. Refuses a list that is out of order, that repeats a path, or that holds a path
/// which is not safe below a directory.
#[derive(Debug)]
pub struct FileListReader {
    content: ContentReader,
    chunk: Bytes,
    last: Option<(String, Vec<u8>)>,
}

impl FileListReader {
    pub(crate) fn new(chunks: ChunkReader, list: ContentRef) -> Self {
        Self { content: ContentReader::new(chunks, list), chunk: Bytes::new(), last: None }
    }

    /// The next entry; `None` at the end.
    pub async fn next(&mut self) -> Result<Option<FileEntry>> {
        while self.chunk.is_empty() {
            match self.content.next().await? {
                Some(chunk) => self.chunk = chunk,
                None => return Ok(None),
            }
        }
        let mut reader = BytesReader::new(&self.chunk);
        let entry = FileEntry::decode(&mut reader)?;
        self.chunk = self.chunk.slice(self.chunk.len() - reader.remaining()..);
        let key = entry.key();
        if self.last.as_ref().is_some_and(|(d, p)| (d.as_bytes(), p.as_slice()) >= key) {
            let why = format!("{} is out of order", entry.display_path());
            return Err(Error::inconsistent("file list", why));
        }
        self.last = Some((entry.directory.clone(), entry.path.as_bytes().to_vec()));
        Ok(Some(entry))
    }
}

impl Repository {
    /// The entries of a file list. Must be called on a tokio runtime.
    pub fn files(&self, list: ContentRef) -> FileListReader {
        FileListReader::new(self.chunk_reader(), list)
    }
}
