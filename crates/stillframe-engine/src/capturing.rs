//! Capture as a part of a verb: on a thread that may block, with its events turned into ours.

use std::sync::Arc;
use std::time::Duration;

use stillframe_capture::{CaptureOptions, Context, Image, Role, Snapshot, SnapshotFile, Source, capture};
use stillframe_jobs::{Job, Phase, Progress};
use tokio_util::sync::CancellationToken;

use crate::reserve::{Reserve, ReserveWatch};
use crate::{EngineError, Event, NamedSource, Surroundings};

/// Captures all of `sources` at instants as close together as can be.
pub(crate) async fn capture_all(
    sources: &[NamedSource],
    options: &CaptureOptions,
    watch: &Arc<ReserveWatch>,
    job: &Job,
    surroundings: &Surroundings,
) -> Result<Vec<Image>, EngineError> {
    for source in sources {
        surroundings.tell(Event::Capturing { source: source.name.clone() });
    }
    let plain: Vec<Source> = sources.iter().map(|named| named.source.clone()).collect();
    let (options, surroundings_there) = (options.clone(), surroundings.clone());
    let watch_there = Arc::clone(watch);
    let (copied, mut copies) = tokio::sync::mpsc::unbounded_channel();
    // On a thread of its own, at the priority of the one that waits for it: the runtime's may be those of a polite job, and a capture is over
    // sooner, and moves less under a busy writer, when it does not give way.
    let (reply, done) = tokio::sync::oneshot::channel();
    let work = move || {
        let told = |done, total| {
            watch_there.check();
            copied.send((done, total)).unwrap_or(());
        };
        let captured = with_context(watch_there.stop(), &surroundings_there, &told, |context| {
            capture(&plain, &options, context)
        });
        // Nobody waits any more when the job was cancelled.
        let _ = reply.send(captured);
    };
    let thread = std::thread::Builder::new().name("capture".to_owned()).spawn(work);
    thread.map_err(|error| EngineError::Bug(format!("no thread can be started: {error}")))?;
    // The job lives on this side; what the capture copied comes over here and ends with it.
    while let Some((done, total)) = copies.recv().await {
        let progress =
            Progress { bytes_done: done, bytes_total: Some(total), ..Progress::new(Phase::Capturing) };
        surroundings.tell(Event::Progress(job.progress(&progress)));
    }
    let images = done.await.map_err(|_| EngineError::Bug("the capture panicked".to_owned()))??;
    for (named, image) in sources.iter().zip(&images) {
        watch_pins(watch, image.snapshot());
        surroundings.tell(captured(&named.name, image.snapshot()));
    }
    Ok(images)
}

/// A database may keep tables on other disks than its own. Of logs nothing is held any more: they were copied.
fn watch_pins(watch: &ReserveWatch, snapshot: &Snapshot) {
    for directory in &snapshot.directories {
        let is_pinned = |file: &SnapshotFile| {
            file.directory == directory.name && matches!(file.role, Role::Table | Role::Blob)
        };
        if snapshot.files.iter().any(is_pinned) {
            watch.add_pins(&directory.original);
        }
    }
}

/// The watch over the disks of these sources.
pub(crate) fn watch_over<'a>(
    sources: impl Iterator<Item = &'a Source>,
    options: &'a CaptureOptions,
    reserve: Reserve,
    job: &Job,
) -> Arc<ReserveWatch> {
    let sources = sources.map(|source| source.path.as_path());
    ReserveWatch::new(sources, options.staging.as_deref(), reserve, job.token())
}

pub(crate) fn with_context<T>(
    cancel: &CancellationToken,
    surroundings: &Surroundings,
    copied: &dyn Fn(u64, u64),
    work: impl FnOnce(&Context<'_>) -> T,
) -> T {
    use stillframe_capture::Event as Captured;
    let events = |event| match event {
        Captured::Staging(parent) => surroundings.tell(Event::Staging(parent)),
        Captured::Moved { attempt, what } => surroundings.tell(Event::Moved { attempt, what }),
        Captured::Copied { done, total } => copied(done, total),
        Captured::Warning(text) => surroundings.warn(text),
    };
    let random_name = Arc::clone(&surroundings.random_name);
    let context = Context {
        clock: surroundings.clock.as_ref(),
        cancel,
        events: &events,
        random_name: &|| random_name(),
    };
    work(&context)
}

fn captured(name: &str, snapshot: &Snapshot) -> Event {
    Event::Captured {
        source: name.to_owned(),
        files: u64::try_from(snapshot.files.len()).expect("a usize fits a u64"),
        bytes: snapshot.files.iter().map(|file| file.size).sum(),
        window: Duration::from_micros(snapshot.window_us),
        attempts: snapshot.attempts,
    }
}

#[cfg(test)]
mod tests {
    use stillframe_jobs::{CpuShare, History, Pace};
    use stillframe_storage::{Clock, SystemClock};
    use stillframe_testkit::{SqliteLoad, Stop};
    use tokio_util::sync::CancellationToken;

    use super::*;

    /// Nothing looks at the disk here from time to time: the copying itself does.
    #[tokio::test(flavor = "multi_thread")]
    async fn a_copy_that_takes_the_disk_below_its_reserve_is_stopped() {
        let dir = tempfile::tempdir().unwrap();
        let (path, ledger) = (dir.path().join("app.db"), dir.path().join("ledger"));
        SqliteLoad::default().write(&path, &ledger, &Stop::at(50), &SystemClock::new()).unwrap();
        let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
        let surroundings = Surroundings {
            clock: Arc::clone(&clock),
            report: Arc::new(|_| {}),
            random_name: Arc::new(|| "0123456789abcdef".to_owned()),
            share: CpuShare::on_this_machine(Pace::Fast, None),
        };
        let job = History::in_memory(clock).unwrap().start("test", "test");
        let source: Source = format!("sqlite:{}", path.display()).parse().unwrap();
        let sources = [NamedSource { name: "app".to_owned(), source }];
        for (reserve, stops) in [(Reserve::Bytes(0), false), (Reserve::Percent(100), true)] {
            let watch =
                ReserveWatch::new(std::iter::once(dir.path()), None, reserve, &CancellationToken::new());
            let captured =
                capture_all(&sources, &CaptureOptions::default(), &watch, &job, &surroundings).await;
            assert_eq!(watch.stop().is_cancelled(), stops);
            assert_eq!(captured.err().map(|error| error.kind()), stops.then_some(crate::Kind::Cancelled));
        }
    }
}
