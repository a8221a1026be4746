//! The directories in which one capture keeps its pins and copies.

use std::fs::DirBuilder;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use stillframe_storage::{RelativePath, StagingDir, lies_within, make_private_dirs, sweep_leftovers};
use tokio_util::sync::CancellationToken;

use crate::{CaptureError, CaptureOptions, Context, Event};

/// The name of the image's directory inside the first staging directory.
const IMAGE: &str = "image";

/// One staging directory beside the source (or where the user wants it), and more on other file systems of the same
/// source as they turn out to be needed, because a link cannot leave its file system.
pub(crate) struct Staging {
    /// By device. The first holds the image's own directory.
    dirs: Vec<(u64, StagingDir)>,
    /// Chosen by the user: then nothing is made elsewhere, and what cannot be linked is copied.
    fixed: bool,
    names: Vec<String>,
    /// Asked while files are copied into it.
    pub(crate) cancel: CancellationToken,
}

impl std::fmt::Debug for Staging {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.dirs.iter().map(|(_, dir)| dir.path())).finish()
    }
}

impl Staging {
    /// Prepares a capture of `source` (a directory or a file): sweeps what dead captures left there, makes a new directory.
    pub(crate) fn for_source(
        source: &Path,
        options: &CaptureOptions,
        context: &Context<'_>,
    ) -> Result<Self, CaptureError> {
        let absolute = std::fs::canonicalize(source).map_err(CaptureError::io("open", source))?;
        let beside = absolute.parent().unwrap_or(Path::new("/")).to_owned();
        let parent = options.staging.clone().unwrap_or(beside);
        // Names for the few file systems that one source may span, drawn now so that later steps need no generator.
        let names = (0..4).map(|_| (context.random_name)()).collect();
        let cancel = context.cancel.clone();
        let mut staging = Self { dirs: Vec::new(), fixed: options.staging.is_some(), names, cancel };
        (context.events)(Event::Staging(parent.clone()));
        staging.add(&parent)?;
        make_private_dir(&staging.image_dir())?;
        Ok(staging)
    }

    /// Where the image takes shape.
    pub(crate) fn image_dir(&self) -> PathBuf {
        self.dirs.first().expect("for_source makes the first directory").1.path().join(IMAGE)
    }

    /// A place for throw-away files of this capture, on the same file system as the image.
    pub(crate) fn scratch_dir(&self, name: &str) -> Result<PathBuf, CaptureError> {
        let first = &self.dirs.first().expect("for_source makes the first directory").1;
        let path = first.path().join(name);
        make_private_dir(&path)?;
        Ok(path)
    }

    /// Where to link or copy a file of `device` that lies in `dir` and shall be `path` of the image. Directories are made.
    pub(crate) fn place(
        &mut self,
        device: u64,
        dir: &Path,
        path: &RelativePath,
    ) -> Result<PathBuf, CaptureError> {
        let known = self.dirs.iter().any(|(known, _)| *known == device);
        if !known && !self.fixed && self.dirs.len() < self.names.len() {
            let absolute = std::fs::canonicalize(dir).map_err(CaptureError::io("open", dir))?;
            let beside = absolute.parent().unwrap_or(Path::new("/"));
            let same = std::fs::metadata(beside).is_ok_and(|meta| meta.dev() == device);
            if same {
                self.add(beside)?;
            }
        }
        let base = match self.dirs.iter().position(|(known, _)| *known == device) {
            Some(0) | None => self.image_dir(),
            Some(index) => self.dirs.get(index).expect("position() found it").1.path().to_owned(),
        };
        let place = path.below(&base);
        let parent = place.parent().expect("a path below a directory has a parent");
        if path.as_bytes().contains(&b'/') && !parent.exists() {
            make_private_dirs(parent).map_err(CaptureError::io("create", parent))?;
        }
        Ok(place)
    }

    /// Hands over the directory that holds the image, and keeps the others until the end.
    pub(crate) fn into_image_dir(mut self) -> StagingDir {
        self.dirs.swap_remove(0).1
    }

    fn add(&mut self, parent: &Path) -> Result<(), CaptureError> {
        if let Err(error) = sweep_leftovers(parent) {
            tracing::debug!(parent = %parent.display(), %error, "leftovers could not be looked for");
        }
        let name =
            self.names.get(self.dirs.len()).expect("place() makes no more directories than there are names");
        let dir = StagingDir::create(parent, name).map_err(|error| staging_error(parent, error))?;
        let device = std::fs::metadata(dir.path()).map_err(CaptureError::io("read", dir.path()))?.dev();
        self.dirs.push((device, dir));
        Ok(())
    }
}

/// Refuses a place at or below a source's directory: an engine may take what it finds there for its own, and abort.
pub(crate) fn refuse_within(place: &Path, source: &Path) -> Result<(), CaptureError> {
    if lies_within(place, source) {
        return Err(CaptureError::Refused {
            path: place.to_owned(),
            what: format!("it lies in the source {}; choose a place outside", source.display()),
        });
    }
    Ok(())
}

fn make_private_dir(path: &Path) -> Result<(), CaptureError> {
    DirBuilder::new().mode(0o700).create(path).map_err(CaptureError::io("create", path))
}

fn staging_error(parent: &Path, error: std::io::Error) -> CaptureError {
    match CaptureError::from_io("make a staging directory in", parent, error) {
        CaptureError::Permission { action, path, .. } => CaptureError::Permission {
            action,
            path,
            hint: "; choose another with --staging (for RocksDB and fjall on the file system of the source)"
                .to_owned(),
        },
        other => other,
    }
}
