//! Puts objects into a directory no faster than a limit allows, lists them and reads one back.
//!
//! `cargo run --release -p stillframe-storage --example slow_upload -- [DIR]`; without DIR in a temporary directory.

use std::error::Error;
use std::path::PathBuf;

use bytes::Bytes;
use futures::TryStreamExt;
use stillframe_storage::object_store::path::Path;
use stillframe_storage::object_store::{ObjectStore, ObjectStoreExt};
use stillframe_storage::{BandwidthLimit, ByteSize, Clock, Location, SystemClock, open};

const OBJECT: usize = 512 << 10;
const PER_SECOND: u64 = 4 << 20;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let temporary = tempfile::tempdir()?;
    let dir = std::env::args_os().nth(1).map_or_else(|| temporary.path().join("store"), PathBuf::from);
    std::fs::create_dir_all(&dir)?;
    let location = Location::Directory(dir);
    let store = open(&location)?;

    let (clock, limit) = (SystemClock::new(), BandwidthLimit::new(PER_SECOND));
    let began = clock.monotonic();
    for number in 0..4_u8 {
        let content = Bytes::from(vec![number; OBJECT]);
        // Asked before each object is sent, and shared by everybody who sends: the limit holds for all of them together.
        tokio::time::sleep(limit.reserve(content.len() as u64, &clock)).await;
        // Durable when this returns; nobody sees half of it before.
        store.put(&Path::from(format!("packs/{number}")), content.into()).await?;
    }
    let took = clock.monotonic().saturating_sub(began);
    println!("put 4 objects into {location} in {:.2} s, at {}/s", took.as_secs_f64(), ByteSize(PER_SECOND));

    let mut listed: Vec<_> = store.list(Some(&Path::from("packs"))).try_collect().await?;
    listed.sort_by(|one, other| one.location.cmp(&other.location));
    for object in &listed {
        println!("{}  {}", object.location, ByteSize(object.size));
    }
    let read = store.get(&Path::from("packs/3")).await?.bytes().await?;
    println!("packs/3 is as it was put: {}", read.len() == OBJECT && read.iter().all(|byte| *byte == 3));
    Ok(())
}
