//! Which backup was the last one of a source, remembered on this machine, so that a new backup need not read the manifests of all
//! earlier ones. A hint: what it names is looked up and compared, and without it the repository is searched.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};

use stillframe_repo::{BackupId, RepositoryId};

/// A file for each repository and lineage, in a directory that may be deleted at any time.
#[derive(Debug, Clone)]
pub(crate) struct BaseHints {
    dir: PathBuf,
    repository: RepositoryId,
}

impl BaseHints {
    pub(crate) fn new(cache_dir: &Path, repository: RepositoryId) -> Self {
        Self { dir: cache_dir.join("bases"), repository }
    }

    pub(crate) fn read(&self, lineage: &str) -> Option<BackupId> {
        std::fs::read_to_string(self.path(lineage)).ok()?.trim().parse().ok()
    }

    /// Remembers. What cannot be written costs time later and nothing else.
    pub(crate) fn write(&self, lineage: &str, backup: BackupId) {
        let path = self.path(lineage);
        let draft = path.with_extension(format!("{}.draft", std::process::id()));
        let written = std::fs::create_dir_all(&self.dir)
            .and_then(|()| std::fs::write(&draft, backup.to_string()))
            .and_then(|()| std::fs::rename(&draft, &path));
        if let Err(error) = written {
            tracing::debug!(path = %path.display(), %error, "the last backup of a source is not remembered");
        }
    }

    fn path(&self, lineage: &str) -> PathBuf {
        let mut hasher = DefaultHasher::new();
        lineage.hash(&mut hasher);
        self.dir.join(format!("{}-{:016x}", self.repository, hasher.finish()))
    }
}
