//! What the tests of the repository share: a store that fails, made-up files, and a look at everything that is stored.

#![allow(clippy::unwrap_used, reason = "a test stops at what it did not expect")]
#![allow(dead_code, reason = "each test binary uses its own part of this")]

pub mod fault_store;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use futures::TryStreamExt;
use rand::{Rng, SeedableRng};
use stillframe_repo::{
    ContentRef, ContentWriter, Encryption, Error, FileEntry, FileKind, FileListWriter, InitOptions,
    ManifestDraft, Repository, SourceManifest, Unlock, VerifyLevel, VerifyOptions, WriteOptions,
    WriteSession, Written,
};
use stillframe_storage::SystemClock;
use stillframe_storage::object_store::memory::InMemory;
use stillframe_storage::object_store::path::Path as ObjectPath;
use stillframe_storage::object_store::{ObjectStore, ObjectStoreExt};

/// Small enough that a few kilobytes make several packs.
pub const PACK_SIZE: u64 = 8 << 10;
/// Where the files of these tests are cut.
pub const CHUNK: usize = 1000;

pub type Files = BTreeMap<String, Vec<u8>>;

pub fn clock() -> Arc<SystemClock> {
    Arc::new(SystemClock::new())
}

pub fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    rand::rngs::StdRng::seed_from_u64(seed).fill_bytes(&mut bytes);
    bytes
}

/// `count` files of `len` random bytes.
pub fn files(seed: u64, count: usize, len: usize) -> Files {
    (0..count).map(|n| (format!("dir/{n:05}.sst"), noise(seed * 1000 + n as u64, len))).collect()
}

pub async fn init(store: Arc<dyn ObjectStore>, cache: &Path) -> Repository {
    let options = InitOptions { pack_size: PACK_SIZE, ..InitOptions::new(Encryption::None, clock()) };
    Repository::init(store, &options, cache).await.unwrap()
}

pub async fn open(store: Arc<dyn ObjectStore>, cache: &Path) -> Repository {
    Repository::open(store, &Unlock::None, cache).await.unwrap()
}

/// The objects whose path begins with `prefix`, in order.
pub async fn objects(store: &InMemory, prefix: &str) -> Vec<ObjectPath> {
    let all: Vec<_> = store.list(None).map_ok(|meta| meta.location).try_collect().await.unwrap();
    let mut all: Vec<_> = all.into_iter().filter(|path| path.as_ref().starts_with(prefix)).collect();
    all.sort();
    all
}

pub async fn change(store: &InMemory, path: &ObjectPath, change: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = store.get(path).await.unwrap().bytes().await.unwrap().to_vec();
    change(&mut bytes);
    store.put(path, bytes.into()).await.unwrap();
}

pub fn put_file(session: &WriteSession, bytes: &[u8]) -> Result<ContentRef, Error> {
    let mut writer = ContentWriter::new(session);
    for chunk in bytes.chunks(CHUNK) {
        writer.push(session.put(chunk)?)?;
    }
    writer.finish()
}

pub fn entry(path: &str, content: ContentRef) -> FileEntry {
    FileEntry {
        directory: String::new(),
        path: path.parse().unwrap(),
        kind: FileKind::File { content },
        role: "table".into(),
        mode: 0o600,
        uid: 1000,
        gid: 1000,
        mtime: 1_700_000_000,
        mtime_nanos: 5,
        identity: None,
    }
}

/// What `describe` does in these tests: all files of one source.
pub fn describe(session: &WriteSession, name: &str, files: &Files) -> Result<ManifestDraft, Error> {
    let mut list = FileListWriter::new(session);
    for (path, bytes) in files {
        list.push(&entry(path, put_file(session, bytes)?))?;
    }
    let list = list.finish()?;
    let source = SourceManifest {
        snapshot: session.put_content(b"{\"snapshot\": true}")?,
        files: list.content,
        file_count: list.file_count,
        bytes: list.bytes,
        ..SourceManifest::new("db", "files", "files:/db")
    };
    Ok(ManifestDraft { name: Some(name.to_owned()), sources: vec![source], ..ManifestDraft::default() })
}

pub async fn write_with(
    repository: &Repository,
    options: &WriteOptions,
    name: &str,
    files: &Files,
) -> Result<Written, Error> {
    let write = repository.write(options, async |session: Arc<WriteSession>| {
        let (name, files) = (name.to_owned(), files.clone());
        tokio::task::spawn_blocking(move || describe(&session, &name, &files)).await.unwrap()
    });
    write.await
}

pub async fn write(repository: &Repository, name: &str, files: &Files) -> Result<Written, Error> {
    write_with(repository, &WriteOptions::new(clock()), name, files).await
}

/// The files of a backup's only source.
pub async fn read(repository: &Repository, id: stillframe_repo::BackupId) -> Result<Files, Error> {
    let manifest = repository.manifest(id).await?;
    let mut list = repository.files(manifest.draft.sources[0].files);
    let mut files = Files::new();
    while let Some(entry) = list.next().await? {
        let FileKind::File { content } = entry.kind else { panic!("only files were written") };
        let bytes = repository.read_content(content, u64::MAX).await?;
        files.insert(entry.path.to_string(), bytes);
    }
    Ok(files)
}

/// Every backup that exists must be whole. Returns their names, oldest first.
pub async fn assert_all_whole(store: Arc<dyn ObjectStore>) -> Vec<String> {
    let cache = tempfile::tempdir().unwrap();
    let repository = open(store, cache.path()).await;
    let backups = repository.backups().await.unwrap();
    assert!(backups.unreadable.is_empty(), "{:?}", backups.unreadable);
    for manifest in &backups.readable {
        let report = repository.verify(manifest.id, &VerifyOptions::new(VerifyLevel::Decrypt)).await.unwrap();
        assert!(report.is_sound(), "{report:?}");
    }
    backups.readable.into_iter().map(|manifest| manifest.draft.name.unwrap()).collect()
}
