//! How the repository behaves with very many chunks: `large_index write 10000000 DIR`, then `large_index load DIR` on a cache
//! that knows nothing. Prints times and the peak memory of the process.

use std::path::Path;
use std::sync::Arc;

use stillframe_repo::{
    ContentWriter, Encryption, Error, InitOptions, ManifestDraft, Repository, SourceManifest, Unlock,
    WriteOptions, WriteSession,
};
use stillframe_storage::{Clock, Location, SystemClock};

/// Eight bytes each, so that there is much index and little data.
fn put_range(
    session: &WriteSession,
    range: std::ops::Range<u64>,
) -> Result<stillframe_repo::ContentRef, Error> {
    let mut writer = ContentWriter::new(session);
    for n in range {
        writer.push(session.put(&n.to_le_bytes())?)?;
    }
    writer.finish()
}

fn peak_memory_mib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    peak.and_then(|text| text.trim().trim_end_matches(" kB").parse::<u64>().ok()).unwrap_or(0) / 1024
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let clock = Arc::new(SystemClock::new());
    let report = |what: &str| {
        println!("{what}: {:.1} s, peak {} MiB", clock.monotonic().as_secs_f64(), peak_memory_mib());
    };
    match arguments.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["write", chunks, dir] => {
            let chunks: u64 = chunks.parse()?;
            let (store, cache) = (Path::new(dir).join("store"), Path::new(dir).join("cache"));
            std::fs::create_dir_all(&store)?;
            let store = stillframe_storage::open(&Location::Directory(store))?;
            let options = InitOptions::new(Encryption::None, clock.clone());
            let repository = Repository::init(store, &options, &cache).await?;
            let write = async |session: Arc<WriteSession>| {
                let halves = [0..chunks / 2, chunks / 2..chunks].map(|range| {
                    let session = Arc::clone(&session);
                    tokio::task::spawn_blocking(move || put_range(&session, range))
                });
                let mut sources = Vec::new();
                for (name, half) in ["a", "b"].into_iter().zip(halves) {
                    let snapshot = half.await.expect("it does not panic")?;
                    sources.push(SourceManifest {
                        snapshot,
                        ..SourceManifest::new(name, "made-up", "made-up:")
                    });
                }
                Ok::<_, Error>(ManifestDraft { sources, ..ManifestDraft::default() })
            };
            let written = repository.write(&WriteOptions::new(clock.clone()), write).await?;
            println!("{:?}", written.manifest.statistics);
            report("written");
        }
        ["load", dir] => {
            let cache = Path::new(dir).join("cache-2");
            let _ = std::fs::remove_dir_all(&cache);
            let store = stillframe_storage::open(&Location::Directory(Path::new(dir).join("store")))?;
            let repository = Repository::open(store, &Unlock::None, &cache).await?;
            let manifest = repository.manifest(repository.resolve("latest").await?).await?;
            report("opened");
            let mut leaves = repository.leaves(manifest.draft.sources[0].snapshot);
            let first = leaves.next().await?.ok_or("the content is empty")?;
            report("index loaded");
            for _ in 0..10_000 {
                let Some(chunk) = leaves.next().await? else { break };
                repository.read_chunk(&chunk.id).await?;
            }
            repository.read_chunk(&first.id).await?;
            report("10000 chunks read");
        }
        _ => return Err("usage: large_index write CHUNKS DIR | load DIR".into()),
    }
    Ok(())
}
