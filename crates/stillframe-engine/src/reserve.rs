//! Free space that a backup leaves on the disks its sources live on.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use stillframe_storage::disk_space;
use tokio_util::sync::CancellationToken;

use crate::EngineError;

/// How much is to stay free.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reserve {
    /// The larger of 5 % and 1 GiB.
    Default,
    /// So many bytes.
    Bytes(u64),
    /// So many percent of the file system.
    Percent(u8),
}

impl Reserve {
    /// In bytes, for a file system of `total` bytes.
    pub fn of(self, total: u64) -> u64 {
        match self {
            Self::Default => (total / 20).max(1 << 30),
            Self::Bytes(bytes) => bytes,
            Self::Percent(percent) => total / 100 * u64::from(percent),
        }
    }
}

/// Watches the file systems that hold the sources and the pins.
///
/// Pins keep tables alive that the engine wants gone: a long upload beside heavy compaction can fill the live disk. The
/// watch ends with an error as soon as one file system is below its reserve; the caller lets go of the pins then.
pub(crate) struct ReserveWatch {
    /// One path for each file system.
    places: Vec<PathBuf>,
    reserve: Reserve,
}

/// How often to look. At 2 GB/s a disk loses 0.5 GB between two looks, half of the smallest default reserve.
const INTERVAL: Duration = Duration::from_millis(250);

impl ReserveWatch {
    pub(crate) fn new<'a>(places: impl Iterator<Item = &'a Path>, reserve: Reserve) -> Self {
        let mut by_device = BTreeMap::new();
        for place in places {
            if let Ok(meta) = std::fs::metadata(place) {
                by_device.entry(meta.dev()).or_insert_with(|| place.to_owned());
            }
        }
        Self { places: by_device.into_values().collect(), reserve }
    }

    /// Fails if one of the file systems is below its reserve now.
    pub(crate) fn look(&self) -> Result<(), EngineError> {
        for place in &self.places {
            // A place that cannot be asked (a source that was moved away) is the capture's business.
            let Ok(space) = disk_space(place) else { continue };
            let wanted = self.reserve.of(space.total);
            if space.available < wanted {
                return Err(EngineError::Reserve {
                    path: place.clone(),
                    available: space.available,
                    reserve: wanted,
                });
            }
        }
        Ok(())
    }

    /// Looks until `stop` is cancelled (then `Ok`) or a file system is below its reserve.
    pub(crate) async fn until_breached(&self, stop: &CancellationToken) -> Result<(), EngineError> {
        loop {
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                () = tokio::time::sleep(INTERVAL) => self.look()?,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_is_the_larger_of_five_percent_and_a_gibibyte() {
        assert_eq!(Reserve::Default.of(10 << 30), 1 << 30);
        assert_eq!(Reserve::Default.of(100 << 30), 5 << 30);
        assert_eq!(Reserve::Percent(10).of(1000), 100);
    }

    #[test]
    fn a_disk_below_its_reserve_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let all = ReserveWatch::new([dir.path()].into_iter(), Reserve::Percent(100));
        let error = all.look().unwrap_err().to_string();
        assert!(error.contains(&dir.path().display().to_string()), "{error}");
        ReserveWatch::new([dir.path()].into_iter(), Reserve::Bytes(0)).look().unwrap();
    }
}
