//! Where one user of one machine keeps what belongs to repositories but is in none.

use std::path::{Path, PathBuf};

/// Two directories, shared by all repositories and processes of a user; each repository has one of its own, named by its id, in
/// either.
///
/// A single path stands for both: `(&path).into()`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LocalDirs {
    /// The index, read from the repository again where it is missing: may be emptied at any time, though not below a running process.
    pub cache: PathBuf,
    /// What nobody tells again: which packs were seen to be damaged, which manifests a killed run left without a seal, how late the
    /// newest backup is. Without it a backup is still right by all that the repository itself shows.
    pub state: PathBuf,
}

impl LocalDirs {
    /// Those of one repository.
    pub(crate) fn of(&self, repository: &str) -> Self {
        Self { cache: self.cache.join(repository), state: self.state.join(repository) }
    }
}

impl<P: AsRef<Path> + ?Sized> From<&P> for LocalDirs {
    fn from(both: &P) -> Self {
        Self { cache: both.as_ref().to_owned(), state: both.as_ref().to_owned() }
    }
}
