//! Memory does not grow with the number of chunks. One test in a process of its own: its peak is what is measured.

#![allow(clippy::unwrap_used, reason = "a test stops at what it did not expect")]

mod support;

use std::sync::Arc;

use stillframe_repo::{
    ContentWriter, Encryption, Error, InitOptions, ManifestDraft, Repository, SourceManifest, WriteOptions,
    WriteSession, Written,
};
use stillframe_storage::object_store::local::LocalFileSystem;
use support::{clock, open};

fn peak_mib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() / 1024
}

async fn write(repository: &Repository, chunks: std::ops::Range<u64>) -> Written {
    let describe = async |session: Arc<WriteSession>| {
        let chunks = chunks.clone();
        let work = move || {
            let mut writer = ContentWriter::new(&session);
            for n in chunks {
                writer.push(session.put(&n.to_le_bytes())?)?;
            }
            let source = SourceManifest { snapshot: writer.finish()?, ..SourceManifest::new("a", "b", "c") };
            Ok::<_, Error>(ManifestDraft { sources: vec![source], ..ManifestDraft::default() })
        };
        tokio::task::spawn_blocking(work).await.unwrap()
    };
    repository.write(&WriteOptions::new(clock()), describe).await.unwrap()
}

const TEST: &str = "a_million_chunks_more_are_written_indexed_and_found_in_a_few_megabytes_more";

/// Runs itself again with one arena: what the allocator keeps for each of many threads is not what is asked about.
#[test]
fn a_million_chunks_more_are_written_indexed_and_found_in_a_few_megabytes_more() {
    if std::env::var_os("MALLOC_ARENA_MAX").is_some() {
        return tokio::runtime::Runtime::new().unwrap().block_on(measure());
    }
    let program = std::env::current_exe().unwrap();
    let mut again = std::process::Command::new(program);
    let status = again.args([TEST, "--exact", "--nocapture"]).env("MALLOC_ARENA_MAX", "1").status().unwrap();
    assert!(status.success(), "{status}");
}

async fn measure() {
    const FIRST: u64 = 400_000;
    const ALL: u64 = 1_500_000;
    let dir = tempfile::tempdir().unwrap();
    let store = Arc::new(LocalFileSystem::new_with_prefix(dir.path()).unwrap());
    let cache = tempfile::tempdir().unwrap();
    let options = InitOptions::new(Encryption::None, clock());
    let repository = Repository::init(store.clone(), &options, cache.path()).await.unwrap();
    write(&repository, 0..FIRST).await;
    let after_first = peak_mib();
    assert!(after_first < 96, "{FIRST} chunks took {after_first} MiB");
    let written = write(&repository, FIRST..ALL).await;
    let more = peak_mib() - after_first;
    assert!(more < 24, "{} chunks more took {more} MiB more", ALL - FIRST);
    // Rebuilding the cache from the segments, and looking everything up in it.
    let other_cache = tempfile::tempdir().unwrap();
    let other = open(store, other_cache.path()).await;
    let again = write(&other, FIRST..ALL).await;
    assert_eq!(again.manifest.statistics.chunks_new, 0);
    assert_eq!(again.manifest.draft, written.manifest.draft);
    let more_again = peak_mib() - after_first;
    assert!(more_again < 40, "with the cache rebuilt it took {more_again} MiB more");
    println!("{after_first} MiB, {more} MiB more, {more_again} MiB more");
}
