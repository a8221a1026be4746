//! How fast the disk is when it must be sure.

use std::fs::File;
use std::io::Write;

use stillframe_storage::{Clock, SystemClock};
use stillframe_testkit::Content;

use crate::error::BenchError;
use crate::statistics::median;
use crate::workshop::Workshop;

const BYTES: u64 = 256 << 20;
const TRIES: u32 = 3;

/// Bytes per second at which one file is written and made durable, the median of a few tries.
#[expect(clippy::cast_precision_loss, reason = "a rate")]
pub(crate) fn synced_rate(workshop: &Workshop) -> Result<f64, BenchError> {
    let path = workshop.place("rate");
    let bytes = workshop.scaled(BYTES).max(16 << 20);
    let mut rates = Vec::new();
    for number in 0..TRIES {
        let noise = Content::new(workshop.seed + u64::from(number), 1.0).bytes(1 << 20);
        rustix::fs::sync();
        // A clock that begins here.
        let clock = SystemClock::new();
        let write = || -> std::io::Result<()> {
            let mut file = File::create(&path)?;
            for _ in 0..bytes >> 20 {
                file.write_all(&noise)?;
            }
            file.sync_all()
        };
        write().map_err(BenchError::io("writing", &path))?;
        rates.push(bytes as f64 / clock.monotonic().as_secs_f64());
        std::fs::remove_file(&path).map_err(BenchError::io("removing", &path))?;
    }
    Ok(median(rates))
}
