//! Packs that this machine found damaged: what is written from now on relies on none of them.
//!
//! Each is an empty file below the cache directory, so that processes need no lock to share them, and that emptying the cache
//! costs no more than finding out again. Nothing about the packs is decided here: reading goes on trying them.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::{PoisonError, RwLock};

use crate::PackId;
use crate::index_cache::Location;

#[derive(Debug)]
pub(crate) struct Distrust {
    directory: PathBuf,
    /// Those of the directory when it was last looked at, and those that were added since.
    known: RwLock<HashSet<PackId>>,
}

impl Distrust {
    pub(crate) fn new(cache_dir: &Path) -> Self {
        let directory = cache_dir.join("distrusted");
        Self { known: RwLock::new(read(&directory)), directory }
    }

    /// Notes a pack in which something is damaged. What cannot be noted is found again by the next one who looks.
    pub(crate) fn add(&self, pack: PackId) {
        if !self.known.write().unwrap_or_else(PoisonError::into_inner).insert(pack) {
            return;
        }
        let path = self.directory.join(pack.to_string());
        let noted = std::fs::create_dir_all(&self.directory).and_then(|()| std::fs::write(path, b""));
        if let Err(error) = noted {
            tracing::debug!(%pack, %error, "a damaged pack could not be noted");
        }
    }

    /// The whole of a pack was read and is as it was written: somebody brought it back.
    pub(crate) fn remove(&self, pack: PackId) {
        if self.known.write().unwrap_or_else(PoisonError::into_inner).remove(&pack) {
            // What stays costs a pack's worth of storing again.
            let _ = std::fs::remove_file(self.directory.join(pack.to_string()));
        }
    }

    /// All of them, with those that other processes have noted meanwhile.
    pub(crate) fn all(&self) -> HashSet<PackId> {
        let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
        known.extend(read(&self.directory));
        known.clone()
    }

    /// Puts the places in distrusted packs last.
    pub(crate) fn sort(&self, places: &mut [Location]) {
        if places.len() > 1 {
            let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
            places.sort_by_key(|place| known.contains(&place.pack));
        }
    }
}

fn read(directory: &Path) -> HashSet<PackId> {
    let Ok(entries) = std::fs::read_dir(directory) else { return HashSet::new() };
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    names.filter_map(|name| name.parse().ok()).collect()
}
