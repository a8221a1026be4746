//! What a backup may take of the line.

use std::sync::Arc;
use std::time::Duration;

use crate::house::House;
use stillframe_engine::Surroundings;
use stillframe_engine::create::{CreateOptions, create};
use stillframe_storage::{BandwidthLimit, Clock};
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
