//! Backs up a SQLite database that is open and written to, restores it and opens what came back, all in a temporary directory.
//!
//! `cargo run --release -p stillframe-engine --example back_up_sqlite`

use std::error::Error;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rusqlite::Connection;
use stillframe_capture::{CaptureOptions, Engine, Source};
use stillframe_engine::create::{CreateOptions, Origin, create};
use stillframe_engine::restore::{RestoreOptions, restore};
use stillframe_engine::{EngineError, Event, NamedSource, Reserve, Surroundings};
use stillframe_jobs::{CpuShare, History, Pace};
use stillframe_repo::{Encryption, InitOptions, Repository};
use stillframe_storage::{Clock, Location, SystemClock, open};

fn tell(event: Event) {
    match event {
        Event::Captured { source, bytes, window, .. } => {
            println!("captured {source}: {bytes} bytes, window {} µs", window.as_micros());
        }
        Event::Warning(text) => println!("warning: {text}"),
        _ => {}
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let dir = tempfile::tempdir()?;
    let place = |name: &str| dir.path().join(name);
    for name in ["live", "repository"] {
        std::fs::create_dir(place(name))?;
    }

    // The application: it keeps its database open, and its log is not written back.
    let live = Connection::open(place("live/app.db"))?;
    live.execute_batch("PRAGMA journal_mode = wal; CREATE TABLE t (n); INSERT INTO t VALUES (1), (2), (3);")?;

    let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
    let store = open(&Location::Directory(place("repository")))?;
    let repository = Repository::init(
        store,
        &InitOptions::new(Encryption::Passphrase("correct horse".into()), Arc::clone(&clock)),
        &place("cache"),
    )
    .await?;
    let history = History::in_memory(Arc::clone(&clock))?;
    // Names of staging directories must differ: a program takes them from its generator of random numbers.
    let number = AtomicU64::new(u64::from(std::process::id()) << 32);
    let surroundings = Surroundings {
        clock,
        report: Arc::new(tell),
        random_name: Arc::new(move || format!("{:016x}", number.fetch_add(1, Ordering::Relaxed))),
        share: CpuShare::on_this_machine(Pace::Polite, None),
    };

    let options = CreateOptions {
        sources: vec![NamedSource {
            name: "app".to_owned(),
            source: Source { engine: Engine::Sqlite, path: place("live/app.db") },
        }],
        name: Some("example".to_owned()),
        tags: Vec::new(),
        capture: CaptureOptions::default(),
        reserve: Reserve::Bytes(0),
        bandwidth: None,
        anew: false,
        cache_dir: place("cache"),
        origin: Origin::default(),
    };
    let job = history.start("create", "app");
    let opening = std::future::ready(Ok::<_, EngineError>(repository.clone()));
    let backup = create(opening, &options, &job, &surroundings).await?;
    println!("backup {}: {} bytes stored", backup.id, backup.statistics.bytes_stored);
    job.succeed(serde_json::json!({ "id": backup.id.to_string() }));

    // What is written from here on is not in it.
    live.execute("DELETE FROM t", [])?;
    let options =
        RestoreOptions { target: place("restored"), source: None, map: [].into(), host: String::new() };
    let job = history.start("restore", "app");
    let restored = restore(&repository, backup.id, &options, &job, &surroundings).await?;
    println!("restored {} bytes", restored.bytes);
    restored.remarks.iter().for_each(|remark| println!("{remark}"));
    job.succeed(serde_json::json!({ "bytes": restored.bytes }));

    let rows =
        |database: &Connection| database.query_row("SELECT count(*) FROM t", [], |row| row.get::<_, i64>(0));
    let back = Connection::open(place("restored/app.db"))?;
    println!("rows live: {}, restored: {}", rows(&live)?, rows(&back)?);
    Ok(())
}
