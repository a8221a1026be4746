//! Free space that a backup leaves on the disks its sources live on.

use std::collections::BTreeMap;
use std::fmt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use stillframe_storage::{ByteSize, disk_space};
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
/// Pins keep tables alive that the engine wants gone, and copies grow: a long upload beside heavy compaction, or a large copy, can
/// fill the live disk. As soon as one file system is below its reserve the work is stopped and lets go of both.
pub(crate) struct ReserveWatch {
    /// One for each file system.
    places: Mutex<BTreeMap<u64, Place>>,
    reserve: Reserve,
    /// Ends the work, without counting as the user's cancel.
    stop: CancellationToken,
    breach: Mutex<Option<Breach>>,
    /// Bytes that were announced to it.
    announced: AtomicU64,
}

/// Something on a file system that is watched.
#[derive(Debug, Clone)]
struct Place {
    path: PathBuf,
    /// The user has named it for staging and can name another.
    is_staging: bool,
}

/// A file system that was seen below its reserve.
#[derive(Debug)]
struct Breach {
    place: Place,
    available: u64,
    reserve: u64,
}

impl fmt::Display for Breach {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (free, reserve) = (ByteSize(self.available), ByteSize(self.reserve));
        write!(
            f,
            "the disk of {} has {free} free, less than the reserve of {reserve}",
            self.place.path.display()
        )
    }
}

impl From<Breach> for EngineError {
    fn from(Breach { place: Place { path, is_staging }, available, reserve }: Breach) -> Self {
        Self::Reserve { path, available, reserve, is_staging }
    }
}

/// How often to look. At 2 GB/s a disk loses 0.5 GB between two looks, half of the smallest default reserve.
const INTERVAL: Duration = Duration::from_millis(250);
/// After how many bytes that are written to look without waiting for that. The smallest reserve that makes sense is far larger.
const STEP: u64 = 16 << 20;

impl ReserveWatch {
    /// For work that `parent` may cancel, too. Where `staging` shares the file system of a source, it is the source that is named:
    /// its disk is short wherever the staging is.
    pub(crate) fn new<'a>(
        sources: impl Iterator<Item = &'a Path>,
        staging: Option<&'a Path>,
        reserve: Reserve,
        parent: &CancellationToken,
    ) -> Arc<Self> {
        let watch = Arc::new(Self {
            places: Mutex::default(),
            reserve,
            stop: parent.child_token(),
            breach: Mutex::default(),
            announced: 0.into(),
        });
        sources.for_each(|path| watch.add(path, false));
        staging.into_iter().for_each(|path| watch.add(path, true));
        watch
    }

    /// Also watches the file system of this directory from now on, in which a capture keeps files alive: a database may lie on several.
    pub(crate) fn add_pins(&self, path: &Path) {
        self.add(path, false);
    }

    fn add(&self, path: &Path, is_staging: bool) {
        if let Ok(meta) = std::fs::metadata(path) {
            let place = || Place { path: path.to_owned(), is_staging };
            lock(&self.places).entry(meta.dev()).or_insert_with(place);
        }
    }

    /// Cancelled when the work must stop.
    pub(crate) fn stop(&self) -> &CancellationToken {
        &self.stop
    }

    /// Does the work with the watch beside it. Both run to their end: the work joins its tasks and lets go of everything before a
    /// breach is reported. A breach that comes too late to stop it undoes nothing: what exists is told as such, and the breach only
    /// warned of.
    pub(crate) async fn during<T, E: From<EngineError>>(
        &self,
        work: impl Future<Output = Result<T, E>>,
        warn: impl FnOnce(String),
    ) -> Result<T, E> {
        self.look().map_err(EngineError::from)?;
        let done = CancellationToken::new();
        let watching = async {
            while !self.stop.is_cancelled() {
                tokio::select! {
                    () = done.cancelled() => return,
                    () = tokio::time::sleep(INTERVAL) => self.check(),
                }
            }
        };
        let work = async {
            let result = work.await;
            done.cancel();
            result
        };
        let ((), result) = tokio::join!(watching, work);
        match (result, self.breach().take()) {
            (Err(_), Some(breach)) => Err(EngineError::from(breach).into()),
            (Ok(done), Some(breach)) => {
                warn(format!(
                    "{breach}; all was done when that was noticed, the next time it will be stopped"
                ));
                Ok(done)
            }
            (result, None) => result,
        }
    }

    /// Stops the work if a file system is below its reserve. To be called while something is copied, too: that fills a disk faster
    /// than the watch looks.
    pub(crate) fn check(&self) {
        if let Err(breach) = self.look() {
            self.breach().get_or_insert(breach);
            self.stop.cancel();
        }
    }

    /// Announces bytes that are going to be written to wherever the work writes to, and fails if the work has been stopped. The
    /// repository may lie on the source's own disk: then it is the work itself that fills it, faster than the watch looks.
    pub(crate) fn announce(&self, bytes: u64) -> Result<(), EngineError> {
        let before = self.announced.fetch_add(bytes, Ordering::Relaxed);
        if before == 0 || before / STEP != before.saturating_add(bytes) / STEP {
            return self.demand();
        }
        self.go_on()
    }

    /// Fails, and stops the work, if a file system is below its reserve now.
    pub(crate) fn demand(&self) -> Result<(), EngineError> {
        self.check();
        self.go_on()
    }

    /// [`Self::during`] puts the breach in the place of this error.
    fn go_on(&self) -> Result<(), EngineError> {
        if self.stop.is_cancelled() { Err(EngineError::Cancelled) } else { Ok(()) }
    }

    fn breach(&self) -> MutexGuard<'_, Option<Breach>> {
        lock(&self.breach)
    }

    /// Fails if one of the file systems is below its reserve now.
    fn look(&self) -> Result<(), Breach> {
        for place in lock(&self.places).values() {
            let space = match disk_space(&place.path) {
                Ok(space) => space,
                // A source that was moved away is the capture's business.
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
                Err(error) => {
                    tracing::warn!(path = %place.path.display(), %error, "its free room cannot be found out, so the reserve is not watched there");
                    continue;
                }
            };
            let wanted = self.reserve.of(space.total);
            if space.available < wanted {
                return Err(Breach { place: place.clone(), available: space.available, reserve: wanted });
            }
        }
        Ok(())
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
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
        let all = ReserveWatch::new(
            [dir.path()].into_iter(),
            None,
            Reserve::Percent(100),
            &CancellationToken::new(),
        );
        let error = EngineError::from(all.look().unwrap_err()).to_string();
        assert!(error.contains(&dir.path().display().to_string()), "{error}");
        assert!(error.contains("make room or set --reserve") && !error.contains("--staging"), "{error}");
        let token = CancellationToken::new();
        ReserveWatch::new([dir.path()].into_iter(), None, Reserve::Bytes(0), &token).look().unwrap();
    }

    #[test]
    fn another_staging_directory_is_advised_only_where_it_is_the_given_one_that_is_short() {
        let dir = tempfile::tempdir().unwrap();
        let token = CancellationToken::new();
        for (source, staging, is_advised) in [
            (None, Some(dir.path()), true),
            (Some(dir.path()), Some(dir.path()), false),
            (Some(dir.path()), None, false),
        ] {
            let watch = ReserveWatch::new(source.into_iter(), staging, Reserve::Percent(100), &token);
            let error = EngineError::from(watch.look().unwrap_err()).to_string();
            assert_eq!(error.contains("--staging"), is_advised, "{error}");
        }
    }

    /// A watch over a disk that cannot be asked, because the one place on it went away. Once it is back, the disk is below its reserve.
    struct Unseen {
        _root: tempfile::TempDir,
        place: PathBuf,
        away: PathBuf,
        watch: Arc<ReserveWatch>,
    }

    impl Unseen {
        fn new(parent: &CancellationToken) -> Self {
            let root = tempfile::tempdir().unwrap();
            let (place, away) = (root.path().join("place"), root.path().join("away"));
            std::fs::create_dir(&place).unwrap();
            let sources = std::iter::once(place.as_path());
            let watch = ReserveWatch::new(sources, None, Reserve::Percent(100), parent);
            std::fs::rename(&place, &away).unwrap();
            Self { _root: root, place, away, watch }
        }
    }

    #[test]
    fn whoever_writes_is_stopped_after_a_few_megabytes_without_anybody_looking_from_time_to_time() {
        let Unseen { place, away, watch, .. } = &Unseen::new(&CancellationToken::new());
        watch.announce(1).unwrap();
        std::fs::rename(away, place).unwrap();
        let mut written = 0;
        while watch.announce(1 << 20).is_ok() {
            written += 1 << 20;
            assert!(written <= STEP, "{written} bytes were let through");
        }
        assert!(watch.demand().is_err() && watch.breach().is_some());
    }

    #[tokio::test]
    async fn work_beside_which_a_disk_fills_up_is_stopped_and_ends_with_the_reserve() {
        let parent = CancellationToken::new();
        let Unseen { place, away, watch, .. } = &Unseen::new(&parent);
        let work = async {
            std::fs::rename(away, place).unwrap();
            let stopped = tokio::time::timeout(Duration::from_secs(30), watch.stop().cancelled()).await;
            assert!(stopped.is_ok(), "nobody looks at the disk while the work goes on");
            Err::<(), _>(EngineError::Cancelled)
        };
        let error = watch.during(work, |text| panic!("{text}")).await.unwrap_err();
        assert!(matches!(&error, EngineError::Reserve { path, .. } if path == place), "{error}");
        assert!(!parent.is_cancelled(), "the user has cancelled nothing");
    }

    /// The backup is sealed, or the image stands in its place: to call that a failure would be wrong.
    #[tokio::test]
    async fn work_that_was_done_before_a_breach_could_stop_it_is_done_and_the_breach_is_a_warning() {
        let Unseen { place, away, watch, .. } = &Unseen::new(&CancellationToken::new());
        let work = async {
            std::fs::rename(away, place).unwrap();
            watch.check();
            Ok::<_, EngineError>("sealed")
        };
        let mut warnings = Vec::new();
        assert_eq!(watch.during(work, |text| warnings.push(text)).await.unwrap(), "sealed");
        let [warning] = warnings.as_slice() else { panic!("{warnings:?}") };
        assert!(
            warning.contains(&place.display().to_string()) && warning.contains("all was done"),
            "{warning}"
        );
    }
}
