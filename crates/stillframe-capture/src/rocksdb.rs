//! RocksDB and LevelDB: log-structured merge trees in a directory, written by one process.
//!
//! What is live is said by a MANIFEST, a log of edits that CURRENT names. Tables and blob files are written once and
//! deleted after an edit says so; write-ahead logs are appended to. [`attempt`] holds the argument why what a capture
//! takes is the state at one instant. Nothing here links the engines or opens a database: files are read as they lie.

mod assemble;
mod attempt;
#[cfg(test)]
mod busy_tests;
#[cfg(test)]
mod damaged_log_tests;
mod decoder;
mod directories;
mod file_name;
#[cfg(test)]
mod foreign_tests;
mod info_log;
mod log_end;
mod log_format;
mod logs;
mod manifest;
#[cfg(test)]
mod manifest_writer;
mod options_file;
mod owner;
mod recycled_copy;
mod sabotage;
mod setback;
mod table_identity;
#[cfg(test)]
mod test_database;
#[cfg(test)]
mod tests;
mod validate;
#[cfg(test)]
mod validate_tests;
mod version_edit;
mod version_fold;

use std::path::{Path, PathBuf};

use self::attempt::Capture;
use self::file_name::{manifest_named_by, newest_options};
use self::options_file::with_wal_dir;
use self::sabotage::Sabotage;
use crate::pin::{SourceDir, os};
use crate::window::{Still, until_still};
use crate::{CaptureError, CaptureOptions, Context, Event, Image, Source};

pub(crate) use self::validate::validate;

/// Whether `dir` holds a database of this kind.
pub(crate) fn recognise(dir: &Path) -> Result<bool, CaptureError> {
    is_database(&SourceDir::open(dir)?)
}

/// A CURRENT that names a MANIFEST that is there. Both may move between the two looks.
fn is_database(dir: &SourceDir) -> Result<bool, CaptureError> {
    for _ in 0..3 {
        let small = dir.stat(os("CURRENT"))?.is_some_and(|meta| meta.size <= 4096);
        let Some(current) = (if small { dir.read(os("CURRENT"))? } else { None }) else { return Ok(false) };
        let Some(name) = manifest_named_by(&current) else { return Ok(false) };
        if dir.stat(os(name))?.is_some() {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Captures the database at `source`.
pub(crate) fn capture(
    source: &Source,
    options: &CaptureOptions,
    context: &Context<'_>,
) -> Result<Image, CaptureError> {
    capture_with(source, options, context, Sabotage::from_environment())
}

fn capture_with(
    source: &Source,
    options: &CaptureOptions,
    context: &Context<'_>,
    sabotage: Sabotage,
) -> Result<Image, CaptureError> {
    let began = context.clock.monotonic();
    let mut capture = Capture::open(source, options, context, sabotage)?;
    capture.prepare()?;
    let mut vain = 0;
    loop {
        let waited = context.clock.monotonic().saturating_sub(began);
        let left = options.deadline.saturating_sub(waited);
        let still = until_still(&source.path, left, context, || capture.attempt())?;
        let attempts = vain + still.attempts;
        if let Some(made) = capture.assemble(&still.value)? {
            return capture.finish(&Still { attempts, ..still }, made);
        }
        vain = attempts;
        let moved = "a file was cut while it was copied".to_owned();
        (context.events)(Event::Moved { attempt: attempts, what: moved.clone() });
        let waited = context.clock.monotonic().saturating_sub(began);
        if waited >= options.deadline {
            return Err(CaptureError::TooBusy { path: source.path.clone(), moved, attempts, waited });
        }
    }
}

/// Sets `wal_dir` in the newest OPTIONS file of the database at `dir`, which must be a copy that nobody has open, and returns
/// that file. `None`: there is no OPTIONS file.
///
/// For a copy whose logs are put into a directory of their own: a program that loads its options from the copy must find
/// them there, and never those of the original.
pub fn rewrite_wal_dir(dir: &Path, wal_dir: &Path) -> Result<Option<PathBuf>, CaptureError> {
    let Some(name) = newest_options(SourceDir::open(dir)?.list()?) else { return Ok(None) };
    let path = dir.join(name);
    let bytes = std::fs::read(&path).map_err(CaptureError::io("read", &path))?;
    let file = std::fs::File::options().write(true).truncate(true).open(&path);
    let file = file.map_err(CaptureError::io("write", &path))?;
    let rewritten = with_wal_dir(&bytes, Some(wal_dir));
    std::os::unix::fs::FileExt::write_all_at(&file, &rewritten, 0)
        .map_err(CaptureError::io("write", &path))?;
    file.sync_all().map_err(CaptureError::io("write", &path))?;
    Ok(Some(path))
}
