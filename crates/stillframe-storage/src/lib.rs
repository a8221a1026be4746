//! The ground that Stillframe stands on: from a URL to an object store, and from a half-written directory to a
//! published one.
//!
//! What is here is what several crates need and none of them owns: [`open`] (URL → [`object_store::ObjectStore`]),
//! [`StagingDir`] (a directory that is swept when its owner died, and that appears under its final name whole or
//! not at all), [`RelativePath`] (a name from outside, checked before it reaches the file system), [`Clock`],
//! [`BandwidthLimit`] and [`failpoint`]. It knows nothing of backups, engines or formats.
//!
//! ```
//! use stillframe_storage::{Location, RelativePath};
//!
//! let location: Location = "/var/backups/node".parse()?;
//! assert_eq!(location.to_string(), "/var/backups/node");
//! assert!("../etc/passwd".parse::<RelativePath>().is_err());
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
#![forbid(unsafe_code)]

mod attributes;
mod bandwidth;
mod byte_size;
mod clock;
mod directory_list;
mod directory_store;
mod durable;
mod failpoint;
mod location;
mod lock;
mod new_file;
pub mod path_text;
mod places;
mod relative_path;
mod space;
mod staging;
mod upload_lock;

pub use attributes::{Attributes, Owner, since_1970};
pub use bandwidth::BandwidthLimit;
pub use byte_size::ByteSize;
pub use clock::{Clock, SystemClock};
pub use durable::{MadeDirs, sync_dir, sync_filesystem, sync_tree_dirs};
pub use failpoint::failpoint;
pub use location::{Location, LocationError, open};
pub use lock::lock_at;
pub use new_file::{NewFile, WriteBuffers};
pub use object_store;
pub use path_text::path_text;
pub use places::{is_vacant, lies_within, make_private_dirs};
pub use relative_path::{RelativePath, RelativePathError};
pub use space::{DiskSpace, disk_space};
pub use staging::{PublishError, StagingDir, is_staging_name, sweep_leftovers};
pub use upload_lock::UploadLock;
