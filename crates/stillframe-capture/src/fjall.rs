//! The profile of fjall 3.
//!
//! A database is a directory: `version` (a constant), journals `N.jnl`, and a folder `keyspaces/ID` for each tree. In a
//! tree's folder `current` is the pointer; it names a version file `vN`, which names the live `tables/*` and
//! `blobs/*` with checksums. All pointers of a database are the bytes of every `keyspaces/*/current`, that of the keyspace
//! 0 (names and options) included, and the set of folders that have one. A table is deleted only after the pointer that
//! named it moved; a journal only when the tables that the pointers name contain all of it. Bytes of a journal below
//! its last whole batch never change.
//!
//! The engine checks next to nothing when it opens a directory: a missing journal, a missing keyspace folder and damage
//! in the middle of a sealed journal open without a word and with less data. All checks are here.

mod attempt;
mod journal;
mod journals;
mod log_end;
mod meta;
mod pointers;
mod sabotage;
mod seal;
mod tree;
mod validate;
mod version_file;

#[cfg(test)]
mod busy_tests;
#[cfg(test)]
mod exchange_tests;
#[cfg(test)]
mod image_tests;
#[cfg(test)]
mod test_sample;

use std::fs::File;
use std::io::Read;
use std::path::Path;

pub(crate) use validate::validate;

use crate::image::ImageBuilder;
use crate::pin::SourceDir;
use crate::staging::Staging;
use crate::window::until_still;
use crate::{CaptureError, CaptureOptions, Context, Engine, Image, Source};
use attempt::Attempts;
use sabotage::Sabotage;
use version_file::Fault;

/// The version of this profile.
const PROFILE: u32 = 1;
/// The first bytes of the file `version`; the format's number follows.
const MARKER: [u8; 3] = *b"FJL";
/// The format that this profile knows.
const FORMAT: u8 = 3;

/// Whether `dir` holds a fjall database of any format.
pub(crate) fn recognise(dir: &Path) -> Result<bool, CaptureError> {
    Ok(marker(dir)?.is_some() && dir.join("keyspaces").is_dir())
}

/// Captures a database that may be open and written to.
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
    check_format(&source.path)?;
    let root = SourceDir::open(&source.path)?;
    let staging = Staging::for_source(&source.path, options, context)?;
    let mut attempts = Attempts::new(root, ImageBuilder::new(staging), sabotage)?;
    attempts.prepare()?;
    let still = until_still(&source.path, options.deadline, context, || attempts.attempt(context))?;
    seal::seal(attempts, still, context)
}

/// An error where `dir` is no database of the format that this profile knows.
fn check_format(dir: &Path) -> Result<(), CaptureError> {
    let not_one = |reason: &str| CaptureError::NotADatabase {
        path: dir.to_owned(),
        engine: Engine::Fjall.name(),
        reason: reason.to_owned(),
    };
    if !dir.is_dir() {
        std::fs::metadata(dir).map_err(CaptureError::io("open", dir))?;
        return Err(not_one("it is not a directory"));
    }
    let Some(format) = marker(dir)? else {
        return Err(not_one("it has no file `version` that begins with FJL"));
    };
    if format != FORMAT {
        return Err(CaptureError::UnknownFormat {
            path: dir.join("version"),
            what: format!("fjall's format {format}; this version captures format {FORMAT} only"),
        });
    }
    if dir.join("keyspaces").is_dir() { Ok(()) } else { Err(not_one("it has no directory `keyspaces`")) }
}

/// The format's number, if the marker file is there.
fn marker(dir: &Path) -> Result<Option<u8>, CaptureError> {
    let path = dir.join("version");
    if !path.is_file() {
        return Ok(None);
    }
    let mut bytes = Vec::new();
    let file = File::open(&path).map_err(CaptureError::io("open", &path))?;
    file.take(4).read_to_end(&mut bytes).map_err(CaptureError::io("read", &path))?;
    Ok(bytes.strip_prefix(&MARKER).and_then(|rest| rest.first().copied()))
}

impl Fault {
    /// As an error about a file.
    fn of(self, path: &Path) -> CaptureError {
        CaptureError::Corrupt { path: path.to_owned(), what: format!("it {}", self.0) }
    }
}
