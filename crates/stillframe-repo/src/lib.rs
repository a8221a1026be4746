//! A repository of backups on any object store: deduplicated, compressed, encrypted, and free of chains.
//!
//! It stores content as trees of chunks, lists of files and manifests, and gives them back or says exactly what is
//! damaged. [`Repository::write`] makes a backup and follows the write-and-delete protocol of `docs/format.md`, so that writers
//! and sweepers may run, stop and die side by side. Where chunks are cut, what the files mean and how they are put back
//! onto a disk is left to who uses it; so are jobs, databases and URLs.
//!
//! ```
//! use std::sync::Arc;
//! use stillframe_repo::{Encryption, InitOptions, ManifestDraft, Repository, SourceManifest, WriteOptions};
//! use stillframe_storage::{SystemClock, object_store::memory::InMemory};
//!
//! # #[tokio::main]
//! # async fn main() -> Result<(), stillframe_repo::Error> {
//! let clock = Arc::new(SystemClock::new());
//! # let cache = std::env::temp_dir().join(format!("stillframe-doctest-{}", std::process::id()));
//! let options = InitOptions::new(Encryption::None, clock.clone());
//! let repository = Repository::init(Arc::new(InMemory::new()), &options, &cache).await?;
//!
//! let written = repository
//!     .write(&WriteOptions::new(clock), async |session| {
//!         // `put` blocks, so content goes in from a thread that may.
//!         let work = move || session.put_content(b"all that matters");
//!         let snapshot = tokio::task::spawn_blocking(work).await.expect("it does not panic")?;
//!         let source = SourceManifest { snapshot, ..SourceManifest::new("notes", "files", "files:/notes") };
//!         Ok::<_, stillframe_repo::Error>(ManifestDraft { sources: vec![source], ..ManifestDraft::default() })
//!     })
//!     .await?;
//!
//! let manifest = repository.manifest(repository.resolve("latest").await?).await?;
//! assert_eq!(manifest, written.manifest);
//! assert_eq!(repository.read_content(manifest.draft.sources[0].snapshot, 100).await?, b"all that matters");
//! # std::fs::remove_dir_all(cache).ok();
//! # Ok(())
//! # }
//! ```
#![forbid(unsafe_code)]

mod bytes_reader;
mod check;
mod chunk_reader;
mod claim;
mod compression;
mod content;
mod content_reader;
mod content_writer;
mod distrust;
mod envelope;
mod error;
mod file_entry;
mod file_list_reader;
mod file_list_writer;
mod forget;
mod id;
mod index;
mod index_cache;
mod index_compaction;
mod index_loader;
mod index_segment;
mod json_object;
mod key_object;
mod key_ring;
mod keys;
mod layout;
mod lease;
mod live_chunks;
mod local_dirs;
mod manifest;
mod mark;
mod needed_chunks;
mod newest;
mod object_check;
mod object_io;
mod pack_buffers;
mod pack_check;
mod pack_mover;
mod pack_table;
mod packer;
mod pin;
mod presence;
mod prune;
mod repair;
mod repository;
mod session;
mod verified;
mod verify;
mod write;

pub use check::{CheckFinding, CheckOptions, CheckProgress, CheckReport, ReadData};
pub use chunk_reader::ChunkReader;
pub use content::{ChunkRef, ContentRef, MAX_CHUNK_LEN, ParseContentRefError};
pub use content_reader::{ContentReader, LeafReader};
pub use content_writer::ContentWriter;
pub use error::{Error, Result};
pub use file_entry::{FileEntry, FileKind};
pub use file_list_reader::FileListReader;
pub use file_list_writer::{FileList, FileListWriter};
pub use id::{BackupId, ChunkId, ObjectId, PackId, ParseIdError, RepositoryId};
pub use index_compaction::IndexRepair;
pub use key_object::{Passphrase, PassphraseCost};
pub use keys::{KeyInfo, KeyRotation, RotateOptions};
pub use layout::{CONFIG_OBJECT, top_level_names};
pub use lease::{Lease, LeaseKind, RestoredBackup};
pub use local_dirs::LocalDirs;
pub use manifest::{MANIFEST_FORMAT, Manifest, ManifestDraft, SourceForm, SourceManifest, Statistics};
pub use object_check::{ObjectFinding, ObjectReport, check_objects};
pub use pin::Pin;
pub use prune::{PruneEvent, PruneOptions, PruneOutcome, PrunePlan};
pub use repair::{BackupRepair, LostFile, RepairOptions};
pub use repository::{Backups, Encryption, InitOptions, Latest, Repository, RepositoryInfo, Unlock};
pub use session::WriteSession;
pub use verified::{Verification, Verified};
pub use verify::{Finding, VerifyLevel, VerifyOptions, VerifyProgress, VerifyReport};
pub use write::{WriteEvent, WriteOptions, Written, check_labels};

#[cfg(test)]
extern crate self as stillframe_repo;
#[cfg(test)]
mod sweep_tests;
#[cfg(test)]
#[path = "../tests/support/mod.rs"]
mod test_support;
#[cfg(test)]
mod wrongly_written_tests;
