//! Memory does not grow with the number of chunks. One test in a process of its own: its peak is what is measured.

#![allow(clippy::unwrap_used, reason = "a test stops at what it did not expect")]

mod support;

use std::sync::Arc;

use stillframe_repo::{
    ContentWriter, Encryption, Error, InitOptions, ManifestDraft, Repository, SourceManifest, WriteOptions,
    WriteSession,
};
use stillframe_storage::object_store::local::LocalFileSystem;
use support::{clock, open};

fn peak_mib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() / 1024
}

#[tokio::test(flavor = "multi_thread")]
async fn four_hundred_thousand_chunks_are_written_indexed_and_found_in_a_few_megabytes() {
    const CHUNKS: u64 = 400_000;
    let dir = tempfile::tempdir().unwrap();
    let store = Arc::new(LocalFileSystem::new_with_prefix(dir.path()).unwrap());
    let cache = tempfile::tempdir().unwrap();
    let options = InitOptions::new(Encryption::None, clock());
    let repository = Repository::init(store.clone(), &options, cache.path()).await.unwrap();
    let before = peak_mib();
    let write = async |session: Arc<WriteSession>| {
        let work = move || {
            let mut writer = ContentWriter::new(&session);
            for n in 0..CHUNKS {
                writer.push(session.put(&n.to_le_bytes())?)?;
            }
            let source = SourceManifest { snapshot: writer.finish()?, ..SourceManifest::new("a", "b", "c") };
            Ok::<_, Error>(ManifestDraft { sources: vec![source], ..ManifestDraft::default() })
        };
        tokio::task::spawn_blocking(work).await.unwrap()
    };
    let written = repository.write(&WriteOptions::new(clock()), write).await.unwrap();
    let after_writing = peak_mib();
    assert!(after_writing - before < 64, "writing took {} MiB", after_writing - before);
    // Rebuilding the cache from the segments, and looking everything up in it.
    let other_cache = tempfile::tempdir().unwrap();
    let other = open(store, other_cache.path()).await;
    let again = other.write(&WriteOptions::new(clock()), write).await.unwrap();
    assert_eq!(again.manifest.statistics.chunks_new, 0);
    assert_eq!(again.manifest.draft, written.manifest.draft);
    assert!(peak_mib() - before < 80, "with the cache rebuilt it took {} MiB", peak_mib() - before);
}
