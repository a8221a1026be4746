//! Packs that were found damaged: what this user writes from this machine from now on relies on none of them.
//!
//! Each is a file below the state directory, so that processes need no lock to share them; it has a line for each chunk that did not
//! come out of the pack. They are no cache: a backup that takes over what an earlier one stored does not read it, and would not find
//! out again. Nothing about the packs is decided here: reading goes on trying them.

use std::collections::HashSet;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{PoisonError, RwLock};

use stillframe_storage::make_private_dirs;

use crate::index_cache::Location;
use crate::{ChunkId, PackId};

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

    /// Notes a pack in which something is damaged, and the chunks that did not come out of it.
    pub(crate) fn add(&self, pack: PackId, lost: impl IntoIterator<Item = ChunkId>) {
        self.known.write().unwrap_or_else(PoisonError::into_inner).insert(pack);
        let noted = self.lost_chunks(pack).unwrap_or_default();
        let mut new = String::new();
        for chunk in lost.into_iter().filter(|chunk| !noted.contains(chunk)) {
            new.push_str(&chunk.to_string());
            new.push('\n');
        }
        let note = || {
            make_private_dirs(&self.directory)?;
            let mut file = File::options().create(true).append(true).open(self.path(pack))?;
            file.write_all(new.as_bytes())
        };
        if let Err(error) = note() {
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

    /// A pack has the hash that it was written with, and these chunks came out of it. If that is all that was missed, somebody has
    /// brought it back. A hash that fits says nothing of a chunk that was damaged before it was hashed, and other chunks
    /// say nothing of it either.
    pub(crate) fn clear(&self, pack: PackId, decoded: &HashSet<ChunkId>) {
        if !self.known.read().unwrap_or_else(PoisonError::into_inner).contains(&pack) {
            return;
        }
        // A note that cannot be read stays.
        let is_refuted = self.lost_chunks(pack).is_some_and(|lost| lost.is_subset(decoded));
        if is_refuted {
            self.known.write().unwrap_or_else(PoisonError::into_inner).remove(&pack);
            // What stays costs a pack's worth of storing again.
            let _ = std::fs::remove_file(self.path(pack));
        }
    }

    fn path(&self, pack: PackId) -> PathBuf {
        self.directory.join(pack.to_string())
    }

    fn lost_chunks(&self, pack: PackId) -> Option<HashSet<ChunkId>> {
        let text = std::fs::read_to_string(self.path(pack)).ok()?;
        text.lines().map(|line| line.parse().ok()).collect()
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
        here.add(one, []);
        here.add(two, []);
        assert_eq!(elsewhere.all(), HashSet::from([one, two]));
        here.clear(one, &HashSet::new());
        assert_eq!(Distrust::new(dir.path()).all(), HashSet::from([two]));
    }

    #[test]
    fn what_was_missed_must_come_out_before_a_pack_is_trusted_again() {
        let dir = tempfile::tempdir().unwrap();
        let pack = PackId::from([1; _]);
        let [one, two, other] = [1, 2, 3].map(|n| ChunkId::from([n; _]));
        let distrust = Distrust::new(dir.path());
        distrust.add(pack, [one]);
        distrust.add(pack, [one, two]);
        for decoded in [&[][..], &[other], &[one, other]] {
            Distrust::new(dir.path()).clear(pack, &decoded.iter().copied().collect());
            assert_eq!(distrust.all(), HashSet::from([pack]), "{decoded:?}");
        }
        Distrust::new(dir.path()).clear(pack, &HashSet::from([one, two]));
        assert!(Distrust::new(dir.path()).all().is_empty());
        // A note that is no note of ours is not taken for one that says nothing.
        std::fs::write(dir.path().join("distrusted").join(pack.to_string()), "something").unwrap();
        Distrust::new(dir.path()).clear(pack, &HashSet::from([one, two]));
        assert_eq!(Distrust::new(dir.path()).all(), HashSet::from([pack]));
    }
}
