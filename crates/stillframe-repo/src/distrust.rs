//! Packs that were found damaged: what this user writes from this machine from now on relies on none of them.
//!
//! Each is an empty file below the state directory, so that processes need no lock to share them. They are no cache: a backup that
//! takes over what an earlier one stored does not read it, and would not find out again. Nothing about the packs is decided here:
//! reading goes on trying them.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{PoisonError, RwLock};

use stillframe_storage::make_private_dirs;

use crate::PackId;
use crate::index_cache::Location;

#[derive(Debug)]
pub(crate) struct Distrust {
    directory: PathBuf,
    /// Those of the directory when it was last looked at, and those that were added since.
    known: RwLock<HashSet<PackId>>,
    /// One could not be noted: the next process does not know of it.
    unnoted: AtomicBool,
}

impl Distrust {
    pub(crate) fn new(state: &Path) -> Self {
        let directory = state.join("distrusted");
        Self { known: RwLock::new(read(&directory)), directory, unnoted: AtomicBool::new(false) }
    }

    /// Notes a pack in which something is damaged.
    pub(crate) fn add(&self, pack: PackId) {
        if !self.known.write().unwrap_or_else(PoisonError::into_inner).insert(pack) {
            return;
        }
        let path = self.directory.join(pack.to_string());
        let noted = make_private_dirs(&self.directory).and_then(|()| std::fs::write(path, b""));
        if let Err(error) = noted {
            self.unnoted.store(true, Ordering::Relaxed);
            tracing::warn!(
                path = %self.directory.display(), %error,
                "that a pack is damaged cannot be noted for later backups: back up with --anew"
            );
        }
    }

    /// Whether the next process knows of all of them.
    pub(crate) fn is_noted(&self) -> bool {
        !self.unnoted.load(Ordering::Relaxed)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_processes_learn_what_was_damaged_and_what_was_brought_back() {
        let dir = tempfile::tempdir().unwrap();
        let [one, two] = [PackId::from([1; _]), PackId::from([2; _])];
        let (here, elsewhere) = (Distrust::new(dir.path()), Distrust::new(dir.path()));
        here.add(one);
        here.add(two);
        assert_eq!(elsewhere.all(), HashSet::from([one, two]));
        here.remove(one);
        assert_eq!(Distrust::new(dir.path()).all(), HashSet::from([two]));
    }
}
