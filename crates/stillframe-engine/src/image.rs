//! `image create`: one source → a directory that its engine can open, without a repository.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;

use stillframe_capture::{CaptureOptions, NamedDirectory, Snapshot, SnapshotFile, Source};
use stillframe_jobs::{Job, Phase};
use stillframe_storage::lies_within;

use crate::capturing::{capture_all, watch_over, with_context};
use crate::remark::remark;
use crate::target::{make_parent, place_of};
use crate::{EngineError, NamedSource, Reserve, Surroundings};

/// How to make an image that stays.
#[derive(Debug, Clone)]
pub struct ImageOptions {
    /// How to capture.
    pub capture: CaptureOptions,
    /// Free space to leave on the source's disk.
    pub reserve: Reserve,
    /// Files of its own, instead of links to the source's tables where both are on one file system.
    pub copy: bool,
}

/// The image that was made.
#[derive(Debug)]
pub struct ImageOutcome {
    /// Its description.
    pub snapshot: Snapshot,
    /// Some of its files are the live ones, under another name.
    pub linked: bool,
    /// What the user must know to open it: options to set, one sentence each.
    pub remarks: Vec<String>,
}

/// Captures one source into a directory that stays. What is missing above it is made first, and goes again if there is no image.
pub async fn create_image(
    source: &Source,
    target: &Path,
    options: &ImageOptions,
    job: &Job,
    surroundings: &Surroundings,
) -> Result<ImageOutcome, EngineError> {
    let place = place_of(target)?;
    let target = place.as_path();
    if lies_within(target, &source.path) {
        return Err(EngineError::Usage(format!(
            "{} lies in the source {}; choose a place outside",
            target.display(),
            source.path.display()
        )));
    }
    let (_, made) = make_parent(target)?;
    job.enter(Phase::Capturing)?;
    let named = NamedSource { name: source.to_string(), source: source.clone() };
    let watch = watch_over(std::iter::once(source), &options.capture, options.reserve, job);
    let keeping = async {
        let image = capture_all(&[named], &options.capture, &watch, job, surroundings).await?.pop();
        let image = image.ok_or_else(|| EngineError::Bug("one source gave no image".to_owned()))?;
        job.enter(Phase::Sealing)?;
        let (watch, target, there) = (Arc::clone(&watch), target.to_owned(), surroundings.clone());
        let copy = options.copy;
        let kept = tokio::task::spawn_blocking(move || {
            with_context(watch.stop(), &there, &|_, _| watch.check(), |context| {
                if copy { image.keep_copy(&target, context) } else { image.keep(&target, context) }
            })
        });
        Ok::<_, EngineError>(
            kept.await.map_err(|_| EngineError::Bug("keeping the image panicked".to_owned()))??,
        )
    };
    let snapshot = watch.during(keeping, |text| surroundings.warn(text)).await?;
    made.keep();
    let is_linked = |file: &SnapshotFile| {
        std::fs::metadata(file.path.below(target)).is_ok_and(|meta| meta.is_file() && meta.nlink() > 1)
    };
    let linked = snapshot.files.iter().any(is_linked);
    let remarks = remarks(&snapshot, target);
    Ok(ImageOutcome { snapshot, linked, remarks })
}

fn remarks(snapshot: &Snapshot, target: &Path) -> Vec<String> {
    let sentence = |directory: &NamedDirectory| {
        let of_it = |file: &&SnapshotFile| file.directory == directory.name;
        let below = |file: &SnapshotFile| file.path.as_path().starts_with(&directory.name);
        // Where the engine wants them so, its files are in the main directory.
        let is_below = snapshot.files.iter().find(of_it).is_some_and(below);
        remark(directory, target, Path::new(if is_below { directory.name.as_str() } else { "" }))
    };
    snapshot.directories.iter().map(sentence).collect()
}
