//! A directory as an object store that leaves the system's page cache to those who need it.
//!
//! Packs are written once and hardly ever read again on the same machine, so they go past the page cache ([`NewFile`]). All else is
//! [`LocalFileSystem`]'s, and so are the rules: a name of its own until the object is whole and durable, then a rename, then the
//! directory.

use std::fmt;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::MetadataExt;
use std::path::{Path as FilePath, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures::future::ready;
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt};
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, Extensions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta,
    ObjectStore, PutMode, PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};

use crate::directory_list::{list, refuse_strange};
use crate::durable::{MadeDirs, sync_dir};
use crate::{NewFile, WriteBuffers};

/// Smaller objects are left to the library.
const LARGE: usize = 1 << 20;

#[derive(Debug)]
pub(crate) struct DirectoryStore {
    inner: LocalFileSystem,
    root: Arc<Root>,
    buffers: Arc<WriteBuffers>,
}

/// The directory that was opened. Somebody may unmount or rename it, or make another one in its place, while this is at work: what is put
/// from then on would be lost, or be somebody else's.
#[derive(Debug)]
struct Root {
    path: PathBuf,
    /// Held open, so that no other file gets its number.
    dir: File,
}

impl Root {
    fn check(&self) -> io::Result<()> {
        let opened = self.dir.metadata()?;
        match std::fs::metadata(&self.path) {
            Ok(now) if (now.dev(), now.ino()) == (opened.dev(), opened.ino()) => Ok(()),
            _ => Err(io::Error::other(format!(
                "{} is no longer the directory that was opened (unmounted, renamed or made anew?)",
                self.path.display()
            ))),
        }
    }

    fn check_for_put(&self) -> Result<()> {
        self.check().map_err(|source| Error::Generic { store: "LocalFileSystem", source: Box::new(source) })
    }
}

impl DirectoryStore {
    /// Every put into the directory at `path` is durable when it returns. The directory must exist.
    pub(crate) fn open(path: &FilePath) -> io::Result<Self> {
        let root = Arc::new(Root { path: std::path::absolute(path)?, dir: File::open(path)? });
        let inner = LocalFileSystem::new_with_prefix(path).map_err(io::Error::other)?.with_fsync(true);
        Ok(Self { inner, root, buffers: Arc::default() })
    }
}

impl DirectoryStore {
    /// An object is a plain file; to open anything else might take for ever, or lead elsewhere.
    fn check_object(&self, location: &Path) -> Result<()> {
        let place = self.inner.path_to_filesystem(location)?;
        let checked = std::fs::symlink_metadata(&place).map_or(Ok(()), |meta| refuse_strange(&place, &meta));
        checked.map_err(|source| Error::Generic { store: "directory", source: Box::new(source) })
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
        self.root.check_for_put()?;
        let is_plain = matches!(options.mode, PutMode::Overwrite) && options.attributes.is_empty();
        if is_plain && payload.content_length() >= LARGE {
            let (place, buffers) = (self.inner.path_to_filesystem(location)?, Arc::clone(&self.buffers));
            let written = tokio::task::spawn_blocking(move || put_large(&place, &payload, &buffers)).await;
            return match written.map_err(|source| Error::JoinError { source })? {
                Ok(()) => Ok(PutResult { e_tag: None, version: None, extensions: Extensions::default() }),
                Err(source) => Err(Error::Generic { store: "LocalFileSystem", source: Box::new(source) }),
            };
        }
        self.inner.put_opts(location, payload, options).await
    }

    async fn put_multipart_opts(
        &self,
        location: &Path,
        options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        self.root.check_for_put()?;
        self.inner.put_multipart_opts(location, options).await
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        self.check_object(location)?;
        self.inner.get_opts(location, options).await
    }

    async fn get_ranges(&self, location: &Path, ranges: &[Range<u64>]) -> Result<Vec<Bytes>> {
        self.check_object(location)?;
        self.inner.get_ranges(location, ranges).await
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        self.inner.delete_stream(locations)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        list(&self.root.path, prefix)
    }

    fn list_with_offset(
        &self,
        prefix: Option<&Path>,
        offset: &Path,
    ) -> BoxStream<'static, Result<ObjectMeta>> {
        let offset = offset.clone();
        list(&self.root.path, prefix).try_filter(move |meta| ready(meta.location > offset)).boxed()
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.root.check_for_put()?;
        self.inner.copy_opts(from, to, options).await
    }
}

fn put_large(place: &FilePath, payload: &PutPayload, buffers: &WriteBuffers) -> io::Result<()> {
    let parent = place.parent().ok_or(io::ErrorKind::InvalidInput)?;
    MadeDirs::make(parent)?.keep();
    let (draft, file) = create_draft(place, payload.content_length() as u64)?;
    let parts = payload.iter().map(AsRef::as_ref);
    let written = file.write_at(parts, 0, buffers).and_then(|()| file.finish()?.sync_all());
    drop(file);
    if let Err(error) = written.and_then(|()| std::fs::rename(&draft, place)) {
        // What cannot be removed is found by the next writer.
        let _ = std::fs::remove_file(&draft);
        return Err(error);
    }
    sync_dir(parent)
}

/// Under a name that no list shows: `<name>#<number>`.
fn create_draft(place: &FilePath, length: u64) -> io::Result<(PathBuf, NewFile)> {
    let mut number = 1_u32;
    loop {
        let mut name = place.file_name().unwrap_or_default().to_owned();
        name.push(format!("#{number}"));
        let draft = place.with_file_name(name);
        match NewFile::create(&draft, 0o666, length) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => number += 1,
            file => return Ok((draft, file?)),
        }
    }
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
            let store = DirectoryStore::open(dir.path()).unwrap();
            for len in [0, 1, LARGE - 1, LARGE, LARGE + 1, 5 * LARGE, 8 * LARGE + 4097] {
                let path = Path::from(format!("packs/ab/{len}"));
                for _ in 0..2 {
                    store.put(&path, payload(len)).await.unwrap();
                    let got = store.get(&path).await.unwrap().bytes().await.unwrap();
                    assert!(got == Bytes::from(payload(len)), "{len}");
                }
            }
            assert_eq!(std::fs::read_dir(dir.path().join("packs/ab")).unwrap().count(), 7);
        }
    }

    #[tokio::test]
    async fn what_is_no_plain_file_is_not_opened() {
        let dir = tempfile::tempdir().unwrap();
        let store = DirectoryStore::open(dir.path()).unwrap();
        let pipe = dir.path().join("pipe");
        rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
        std::os::unix::fs::symlink("/etc/hostname", dir.path().join("link")).unwrap();
        for name in ["pipe", "link"] {
            let path = Path::from(name);
            assert!(store.get(&path).await.unwrap_err().to_string().contains(name));
            assert!(store.get_range(&path, 0..1).await.is_err());
            assert!(store.head(&path).await.is_err());
        }
        assert!(matches!(store.get(&Path::from("none")).await, Err(Error::NotFound { .. })));
        store.put(&Path::from("a/b"), payload(3)).await.unwrap();
        store.put(&Path::from("a/c"), payload(4)).await.unwrap();
        let prefix = Path::from("a");
        let behind = store.list_with_offset(Some(&prefix), &Path::from("a/b"));
        let sizes: Vec<u64> = behind.map_ok(|meta| meta.size).try_collect().await.unwrap();
        assert_eq!(sizes, [4]);
    }

    #[tokio::test]
    async fn nothing_is_put_where_another_directory_is_now() {
        let dir = tempfile::tempdir().unwrap();
        let (root, away) = (dir.path().join("root"), dir.path().join("away"));
        std::fs::create_dir(&root).unwrap();
        let store = DirectoryStore::open(&root).unwrap();
        let (small, large) = (Path::from("keys/a"), Path::from("packs/a"));
        store.put(&small, payload(1)).await.unwrap();
        std::fs::rename(&root, &away).unwrap();
        for made_anew in [false, true] {
            if made_anew {
                std::fs::create_dir(&root).unwrap();
            }
            for (path, len) in [(&small, 1), (&large, LARGE)] {
                let refused = store.put(path, payload(len)).await.unwrap_err().to_string();
                assert!(refused.contains("no longer the directory"), "{refused}");
            }
            assert_eq!(root.exists(), made_anew);
        }
        assert_eq!(std::fs::read_dir(&root).unwrap().count(), 0);
        std::fs::remove_dir(&root).unwrap();
        std::fs::rename(&away, &root).unwrap();
        store.put(&large, payload(LARGE)).await.unwrap();
    }
}
