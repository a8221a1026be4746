//! Capture as a part of a verb: on a thread that may block, with its events turned into ours.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use stillframe_capture::{CaptureOptions, Context, Image, Snapshot, Source, capture};
use stillframe_jobs::{Job, Phase, Progress};
use tokio_util::sync::CancellationToken;

use crate::{EngineError, Event, Surroundings};

/// A source and what it is called in a backup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamedSource {
    /// Unique within one backup; a plain file name.
    pub name: String,
    /// What to capture.
    pub source: Source,
}

/// Captures all of `sources` at instants as close together as can be. `stop` ends it, if the job's own token does not.
pub(crate) async fn capture_all(
    sources: &[NamedSource],
    options: &CaptureOptions,
    stop: &CancellationToken,
    job: &Job,
    surroundings: &Surroundings,
) -> Result<Vec<Image>, EngineError> {
    for source in sources {
        surroundings.tell(Event::Capturing { source: source.name.clone() });
    }
    let plain: Vec<Source> = sources.iter().map(|named| named.source.clone()).collect();
    let (options, surroundings_there) = (options.clone(), surroundings.clone());
    let token = stop.clone();
    let (copied, mut copies) = tokio::sync::mpsc::unbounded_channel();
    let work = tokio::task::spawn_blocking(move || {
        with_context(
            &token,
            &surroundings_there,
            &|done, total| copied.send((done, total)).unwrap_or(()),
            |context| capture(&plain, &options, context),
        )
    });
    // The job lives on this side; what the capture copied comes over here and ends with it.
    while let Some((done, total)) = copies.recv().await {
        let progress =
            Progress { bytes_done: done, bytes_total: Some(total), ..Progress::new(Phase::Capturing) };
        surroundings.tell(Event::Progress(job.progress(&progress)));
    }
    let images = work.await.map_err(|_| EngineError::Bug("the capture panicked".to_owned()))??;
    for (named, image) in sources.iter().zip(&images) {
        surroundings.tell(captured(&named.name, image.snapshot()));
    }
    Ok(images)
}

/// Captures one source into a directory that stays.
pub async fn create_image(
    source: &Source,
    target: &Path,
    options: &CaptureOptions,
    job: &Job,
    surroundings: &Surroundings,
) -> Result<Snapshot, EngineError> {
    job.enter(Phase::Capturing)?;
    let named = NamedSource { name: source.to_string(), source: source.clone() };
    let image = capture_all(&[named], options, job.token(), job, surroundings).await?.pop();
    let image = image.ok_or_else(|| EngineError::Bug("one source gave no image".to_owned()))?;
    job.enter(Phase::Sealing)?;
    let (token, target, there) = (job.token().clone(), target.to_owned(), surroundings.clone());
    let kept = tokio::task::spawn_blocking(move || {
        with_context(&token, &there, &|_, _| {}, |context| image.keep(&target, context))
    });
    Ok(kept.await.map_err(|_| EngineError::Bug("keeping the image panicked".to_owned()))??)
}

fn with_context<T>(
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
