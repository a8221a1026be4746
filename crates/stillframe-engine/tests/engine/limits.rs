//! What a backup may take of the line and of the disk.

use std::collections::BTreeSet;
use std::fs::File;
use std::sync::Arc;
use std::time::Duration;

use crate::house::House;
use rustix::fs::{FallocateFlags, fallocate};
use stillframe_engine::create::{CreateOptions, create};
use stillframe_engine::{EngineError, Event, Kind, Reserve, Surroundings};
use stillframe_jobs::{Phase, Progress};
use stillframe_storage::{BandwidthLimit, Clock, disk_space};
use stillframe_testkit::{ManualClock, Operation, write_files};

#[tokio::test(flavor = "multi_thread")]
async fn every_byte_of_a_pack_is_paid_for_where_the_bandwidth_is_limited() {
    let house = House::new().await;
    let tree = house.data("tree");
    write_files(&tree, 3, 700 << 10, 3, 1.0).unwrap();
    // Time stands still, so nothing is ever refilled: what the next one would have to wait for is what was paid.
    let clock: Arc<dyn Clock> = Arc::new(ManualClock::default());
    let rate = 100 << 20;
    let limit = Arc::new(BandwidthLimit::new(rate));
    let options = house.options(&[&format!("files:{}", tree.display())]);
    let options = CreateOptions { bandwidth: Some(Arc::clone(&limit)), ..options };
    let surroundings = Surroundings { clock: Arc::clone(&clock), ..house.surroundings.clone() };
    let outcome = create(house.opening(), &options, &house.job(), &surroundings).await.unwrap();
    let stored = outcome.statistics.bytes_stored;
    assert!(stored > 2 << 20, "{stored}");
    let paid = limit.reserve(0, &*clock);
    let due = Duration::from_nanos(stored * 1_000_000_000 / rate);
    assert!(paid.abs_diff(due) < Duration::from_millis(1), "{paid:?} of {due:?}");
}

/// A backup of so many MiB beside which a disk falls below its reserve as soon as the progress is such: how many packs were stored.
async fn refused_below_the_reserve(mib: u64, moment: fn(&Progress) -> bool) -> usize {
    let mut house = House::new().await;
    let tree = house.data("tree");
    write_files(&tree, mib, 1 << 20, 5, 1.0).unwrap();
    // Far more than others use or let go of meanwhile. The room is taken without anything being written.
    let (margin, taken) = (256 << 20, 512 << 20);
    let filler = house.out("filler");
    let report = Arc::clone(&house.surroundings.report);
    house.surroundings.report = Arc::new(move |event| {
        if let Event::Progress(reading) = &event
            && reading.progress.phase == Phase::Transferring
            && moment(&reading.progress)
            && let Ok(file) = File::create_new(&filler)
        {
            fallocate(file, FallocateFlags::empty(), 0, taken).unwrap();
        }
        report(event);
    });
    let options = house.options(&[&format!("files:{}", tree.display())]);
    let reserve = Reserve::Bytes(disk_space(&tree).unwrap().available - margin);
    let options = CreateOptions { reserve, ..options };
    let outcome = create(house.opening(), &options, &house.job(), &house.surroundings).await;
    let error = outcome.map(|saved| saved.id).unwrap_err();
    assert!(matches!(error, EngineError::Reserve { .. }) && error.kind() == Kind::NoSpace, "{error}");
    assert!(house.opened_elsewhere().await.backups().await.unwrap().readable.is_empty());
    assert_eq!(house.left_behind(), Vec::<std::path::PathBuf>::new());
    let log = house.store.log().into_iter();
    let packs = log.filter(|(what, name)| *what == Operation::Put && name.starts_with("packs/"));
    packs.map(|(_, name)| name).collect::<BTreeSet<_>>().len()
}

/// One test, since each part would take the other's letting go for room.
#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_falls_below_its_reserve_faster_than_anybody_looks_stops_the_backup_and_nothing_is_sealed()
 {
    let packs = refused_below_the_reserve(64, |_| true).await;
    assert!(packs < 40, "{packs} packs of 1 MiB were stored");
    let is_stored = |progress: &Progress| Some(progress.bytes_done) == progress.bytes_total;
    let packs = refused_below_the_reserve(4, is_stored).await;
    assert!(packs >= 4, "everything was stored already: {packs}");
}
