//! A directory as an object store that leaves the system's page cache to those who need it.
//!
//! Packs are written once and hardly ever read again on the same machine. Through the page cache each byte of them would be copied into
//! fresh memory, and would push out what a database beside it has there; so they go to the disk directly, where the file system can do
//! that (`O_DIRECT`). All else is [`LocalFileSystem`]'s, and so are the rules: a name of its own until the object is whole
//! and durable, then a rename, then the directory.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path as FilePath, PathBuf};

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, Extensions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta,
    ObjectStore, PutMode, PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};
use rustix::fs::OFlags;

use crate::durable::{MadeDirs, sync_dir};

/// Smaller objects are not worth it.
const DIRECT_FROM: usize = 1 << 20;
/// Memory, places and lengths of direct writes are multiples of this: the largest block that disks have.
const BLOCK: usize = 4096;
/// Written at a time.
const PIECE: usize = 4 << 20;

#[derive(Debug)]
pub(crate) struct DirectoryStore {
    inner: LocalFileSystem,
}

impl DirectoryStore {
    pub(crate) fn new(inner: LocalFileSystem) -> Self {
        Self { inner }
    }
}

impl fmt::Display for DirectoryStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.fmt(f)
    }
}

#[async_trait]
impl ObjectStore for DirectoryStore {
    async fn put_opts(&self, location: &Path, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        let is_plain = matches!(options.mode, PutMode::Overwrite) && options.attributes.is_empty();
        if is_plain && payload.content_length() >= DIRECT_FROM {
            let (place, bytes) = (self.inner.path_to_filesystem(location)?, payload.clone());
            let written = tokio::task::spawn_blocking(move || put_directly(&place, &bytes)).await;
            match written.map_err(|source| Error::JoinError { source })? {
                Ok(Direct::Done) => {
                    return Ok(PutResult { e_tag: None, version: None, extensions: Extensions::default() });
                }
                Ok(Direct::Unsupported) => {}
                Err(source) => {
                    return Err(Error::Generic { store: "LocalFileSystem", source: Box::new(source) });
                }
            }
        }
        self.inner.put_opts(location, payload, options).await
    }

    async fn put_multipart_opts(
        &self,
        location: &Path,
        options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        self.inner.put_multipart_opts(location, options).await
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        self.inner.get_opts(location, options).await
    }

    async fn get_ranges(&self, location: &Path, ranges: &[Range<u64>]) -> Result<Vec<Bytes>> {
        self.inner.get_ranges(location, ranges).await
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        self.inner.delete_stream(locations)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.inner.list(prefix)
    }

    fn list_with_offset(
        &self,
        prefix: Option<&Path>,
        offset: &Path,
    ) -> BoxStream<'static, Result<ObjectMeta>> {
        self.inner.list_with_offset(prefix, offset)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.inner.copy_opts(from, to, options).await
    }
}

enum Direct {
    Done,
    /// The file system cannot do it, or cannot do it here. Nothing is left.
    Unsupported,
}

fn put_directly(place: &FilePath, payload: &PutPayload) -> io::Result<Direct> {
    let parent = place.parent().ok_or(io::ErrorKind::InvalidInput)?;
    MadeDirs::make(parent)?.keep();
    let Some((draft, file)) = create_draft(place)? else { return Ok(Direct::Unsupported) };
    let written = write(&file, payload).and_then(|()| file.sync_all());
    drop(file);
    match written.and_then(|()| std::fs::rename(&draft, place)) {
        Ok(()) => sync_dir(parent).map(|()| Direct::Done),
        Err(error) => {
            // What cannot be removed is found by the next writer.
            let _ = std::fs::remove_file(&draft);
            let unsupported =
                matches!(error.raw_os_error(), Some(code) if code == rustix::io::Errno::INVAL.raw_os_error());
            if unsupported { Ok(Direct::Unsupported) } else { Err(error) }
        }
    }
}

/// Under a name that no list shows: `<name>#<number>`. `None`: no file can be opened so here.
fn create_draft(place: &FilePath) -> io::Result<Option<(PathBuf, File)>> {
    let flags = OFlags::DIRECT.bits().cast_signed();
    for number in 1_u32.. {
        let mut name = place.file_name().unwrap_or_default().to_owned();
        name.push(format!("#{number}"));
        let draft = place.with_file_name(name);
        match OpenOptions::new().write(true).create_new(true).custom_flags(flags).open(&draft) {
            Ok(file) => return Ok(Some((draft, file))),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
                // Some file systems make the file before they refuse the flag.
                let _ = std::fs::remove_file(&draft);
                return Ok(None);
            }
            Err(error) => return Err(error),
        }
    }
    Ok(None)
}

/// In whole blocks; what the last one has too much is cut off again.
fn write(file: &File, payload: &PutPayload) -> io::Result<()> {
    let mut buffer = vec![0; PIECE + BLOCK];
    let start = buffer.as_ptr().align_offset(BLOCK);
    let buffer = buffer.get_mut(start..start + PIECE).expect("a block more than a piece was made");
    let (mut filled, mut at) = (0, 0);
    for bytes in payload {
        let mut rest = bytes.as_ref();
        while !rest.is_empty() {
            let part = rest.len().min(PIECE - filled);
            let (now, later) = rest.split_at(part);
            buffer.get_mut(filled..filled + part).expect("it fits").copy_from_slice(now);
            filled += part;
            rest = later;
            if filled == PIECE {
                file.write_all_at(buffer, at)?;
                at += filled as u64;
                filled = 0;
            }
        }
    }
    if filled > 0 {
        let blocks = filled.next_multiple_of(BLOCK);
        let last = buffer.get_mut(..blocks).expect("a piece is whole blocks");
        last.get_mut(filled..).expect("not more than the blocks").fill(0);
        file.write_all_at(last, at)?;
    }
    file.set_len(payload.content_length() as u64)
}

#[cfg(test)]
mod tests {
    use object_store::ObjectStoreExt;

    use super::*;

    fn payload(len: usize) -> PutPayload {
        let bytes: Vec<u8> = (0..=250).cycle().step_by(31).take(len).collect();
        // In parts of odd lengths.
        bytes.chunks(1_000_003).map(Bytes::copy_from_slice).collect()
    }

    #[tokio::test]
    async fn objects_of_any_length_come_back_and_nothing_else_is_there() {
        // On a disk, and on a file system that has none.
        for parent in [std::env::temp_dir(), "/dev/shm".into()] {
            let dir = tempfile::tempdir_in(parent).unwrap();
            let store =
                DirectoryStore::new(LocalFileSystem::new_with_prefix(dir.path()).unwrap().with_fsync(true));
            for len in
                [0, 1, DIRECT_FROM - 1, DIRECT_FROM, DIRECT_FROM + 1, PIECE, PIECE + BLOCK, 2 * PIECE + 4097]
            {
                let path = Path::from(format!("packs/ab/{len}"));
                for _ in 0..2 {
                    store.put(&path, payload(len)).await.unwrap();
                    let got = store.get(&path).await.unwrap().bytes().await.unwrap();
                    assert!(got == Bytes::from(payload(len)), "{len}");
                }
            }
            assert_eq!(std::fs::read_dir(dir.path().join("packs/ab")).unwrap().count(), 8);
        }
    }
}
