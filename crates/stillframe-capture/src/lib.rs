//! Takes a consistent image of a live database from outside its process.
//!
//! A source is a database that somebody else's program has open and goes on writing to. [`capture`] returns its [`Image`]:
//! the state at one instant, as a kill of that program at that instant would have left it, without locks on
//! log-structured engines, without the program's help, and without changing anything in the source. What to do with
//! the image is left to others: [`Image::keep`] makes a directory of it, a repository may read its files.
//!
//! ```
//! use stillframe_capture::{Engine, Source};
//!
//! let source: Source = "rocksdb:/var/lib/node/db".parse()?;
//! assert_eq!(source.engine, Engine::RocksDb);
//! assert!("postgres:/var/lib".parse::<Source>().is_err());
//! # Ok::<(), stillframe_capture::ParseSourceError>(())
//! ```
#![forbid(unsafe_code)]

mod capture;
mod error;
mod files;
mod fjall;
mod image;
mod pin;
mod rocksdb;
mod snapshot;
mod source;
mod sqlite;
mod staging;
#[cfg(test)]
mod test_support;
mod validate;
mod window;

pub use capture::{CaptureOptions, Context, Event, capture};
pub use error::CaptureError;
pub use image::Image;
pub use rocksdb::rewrite_wal_dir;
pub use snapshot::{
    FileKind, NamedDirectory, Pointer, Role, SNAPSHOT_FILE, SNAPSHOT_VERSION, Snapshot, SnapshotFile,
    Weakening,
};
pub use source::{Engine, ParseSourceError, Source, detect};
pub use validate::{ValidationReport, validate, validate_image};
