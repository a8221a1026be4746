//! How fast content goes in and out: `throughput MIB DIR [half|noise|zero] [CHUNK_KIB]`. Prints MB/s of each step, by the
//! clock and by CPU seconds (which say the same on a busy machine), and the peak memory beyond the content itself.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use stillframe_repo::{
    ContentRef, ContentWriter, Encryption, Error, InitOptions, ManifestDraft, Repository, SourceManifest,
    VerifyLevel, VerifyOptions, WriteOptions, WriteSession,
};
use stillframe_storage::{Clock, Location, SystemClock};

/// Pseudo-random bytes; every second run of 64 is zero when they are to be half compressible.
fn fill(seed: u64, kind: &str, bytes: &mut [u8]) {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    for (n, run) in bytes.chunks_mut(64).enumerate() {
        if kind == "zero" || (kind == "half" && n % 2 == 0) {
            run.fill(0);
            continue;
        }
        for word in run.chunks_mut(8) {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            word.copy_from_slice(&state.to_le_bytes()[..word.len()]);
        }
    }
}

/// CPU time of the process so far, from Linux's `/proc`, whose ticks are a hundredth of a second.
fn cpu() -> Duration {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields = stat.rsplit_once(')').map_or("", |(_, fields)| fields).split_whitespace();
    let ticks: u64 = fields.skip(11).take(2).filter_map(|field| field.parse::<u64>().ok()).sum();
    Duration::from_millis(ticks * 10)
}

/// Linux's high-water mark of resident memory.
fn peak_memory_mib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    peak.and_then(|text| text.trim().trim_end_matches(" kB").parse::<u64>().ok()).unwrap_or(0) / 1024
}

fn put_file(session: &WriteSession, bytes: &[u8], chunk: usize) -> Result<ContentRef, Error> {
    let mut writer = ContentWriter::new(session);
    for chunk in bytes.chunks(chunk) {
        writer.push(session.put(chunk)?)?;
    }
    writer.finish()
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (Some(mib), Some(dir)) = (arguments.first(), arguments.get(1)) else {
        return Err("usage: throughput MIB DIR [half|noise|zero] [CHUNK_KIB]".into());
    };
    let mib: usize = mib.parse()?;
    let kind = arguments.get(2).map_or("half", String::as_str);
    let chunk = arguments.get(3).map_or(Ok(4096), |text| text.parse::<usize>())? << 10;
    let mut data = vec![0; mib << 20];
    for (n, part) in (0..).zip(data.chunks_mut(1 << 20)) {
        fill(n + 1, kind, part);
    }
    let data = Arc::new(data);
    let clock = Arc::new(SystemClock::new());
    let (store, cache) = (Path::new(dir).join("store"), Path::new(dir).join("cache"));
    std::fs::create_dir_all(&store)?;
    let store = stillframe_storage::open(&Location::Directory(store))?;
    let options = InitOptions::new(Encryption::None, clock.clone());
    let repository = Repository::init(store, &options, &cache).await?;
    let megabytes = f64::from(u32::try_from(data.len() / 1_000_000)?);
    let data_mib = u64::try_from(mib)?;
    let begin = || (clock.monotonic(), cpu());
    let report = |what: &str, (wall, spent): (Duration, Duration)| {
        let wall = clock.monotonic().saturating_sub(wall).as_secs_f64();
        let spent = cpu().saturating_sub(spent).as_secs_f64();
        let peak = peak_memory_mib().saturating_sub(data_mib);
        println!(
            "{what}: {:.0} MB/s, {:.0} MB per CPU second, peak {peak} MiB",
            megabytes / wall,
            megabytes / spent
        );
    };

    for round in ["first", "nothing new"] {
        let begun = begin();
        let describe = async |session: Arc<WriteSession>| {
            let half = (data.len() / 2).next_multiple_of(chunk).min(data.len());
            let halves = [0..half, half..data.len()].map(|range| {
                let (session, data) = (Arc::clone(&session), Arc::clone(&data));
                tokio::task::spawn_blocking(move || put_file(&session, &data[range], chunk))
            });
            let mut sources = Vec::new();
            for (name, half) in ["a", "b"].into_iter().zip(halves) {
                let snapshot = half.await.expect("it does not panic")?;
                sources.push(SourceManifest { snapshot, ..SourceManifest::new(name, "made-up", "made-up:") });
            }
            Ok::<_, Error>(ManifestDraft { sources, ..ManifestDraft::default() })
        };
        let written = repository.write(&WriteOptions::new(clock.clone()), describe).await?;
        report(&format!("write, {round}"), begun);
        println!("  {:?}", written.manifest.statistics);
    }
    let manifest = repository.manifest(repository.resolve("latest").await?).await?;
    let begun = begin();
    for source in &manifest.draft.sources {
        let mut reader = repository.content(source.snapshot);
        while reader.next().await?.is_some() {}
    }
    report("read", begun);
    for level in [VerifyLevel::Exists, VerifyLevel::Hash, VerifyLevel::Decrypt] {
        let begun = begin();
        let sound = repository.verify(manifest.id, &VerifyOptions::new(level)).await?.is_sound();
        report(&format!("verify {level:?}, sound: {sound}"), begun);
    }
    Ok(())
}
