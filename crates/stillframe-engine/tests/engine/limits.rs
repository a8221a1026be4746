//! What a backup may take of the line and of the processor.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::house::House;
use jiff::Timestamp;
use stillframe_engine::Surroundings;
use stillframe_engine::create::{CreateOptions, create};
use stillframe_jobs::{CpuPercent, CpuShare, Pace};
use stillframe_storage::{BandwidthLimit, Clock, SystemClock};
use stillframe_testkit::{ManualClock, write_files};

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

/// A clock on which every look takes its time: each piece of work seems to have taken one step.
#[derive(Debug)]
struct SteppingClock(AtomicU64);

const STEP: Duration = Duration::from_millis(5);

impl Clock for SteppingClock {
    fn now(&self) -> Timestamp {
        Timestamp::UNIX_EPOCH
    }

    fn monotonic(&self) -> Duration {
        STEP * u32::try_from(self.0.fetch_add(1, Ordering::SeqCst)).unwrap()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_may_take_a_tenth_of_the_processor_rests_nine_times_as_long_as_it_works() {
    let house = House::new().await;
    let tree = house.data("tree");
    write_files(&tree, 8, 1000, 3, 1.0).unwrap();
    let options = house.options(&[&format!("files:{}", tree.display())]);
    let tenth = CpuPercent::try_from(10).unwrap();
    let surroundings = Surroundings {
        clock: Arc::new(SteppingClock(AtomicU64::new(0))),
        share: CpuShare::new(Pace::Fast, Some(tenth), NonZeroUsize::MIN),
        ..house.surroundings.clone()
    };
    let watch = SystemClock::new();
    create(house.opening(), &options, &house.job(), &surroundings).await.unwrap();
    // One worker, and a piece of work for each file.
    let taken = watch.monotonic();
    assert!(taken >= 8 * 9 * STEP, "{taken:?}");
}
