//! Manifests of backups that never were, for tests of what is decided upon them.

use jiff::Timestamp;
use stillframe_repo::{BackupId, Manifest, ManifestDraft, Statistics};

pub(crate) fn id(number: u8) -> BackupId {
    format!("{number:032x}").parse().unwrap()
}

pub(crate) fn backup(number: u8, created: Timestamp, draft: ManifestDraft) -> Manifest {
    let (id, repository) = (id(number), id(0));
    Manifest { format: 1, id, repository, created, base: None, draft, statistics: Statistics::default() }
}
