//! All pointers of a database, read at one go.

use std::collections::BTreeMap;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use crate::CaptureError;
use crate::pin::{FileMeta, SourceDir, os};

use super::version_file::{CURRENT_LEN, Current};

/// Every `keyspaces/*/current`, by keyspace.
///
/// Reading them is not atomic. But if each equals its own later reading, then all of them held together at every instant
/// between the end of the first reading and the beginning of the second.
#[derive(Debug, Clone, Default)]
pub(super) struct Pointers {
    pub(super) by_keyspace: BTreeMap<u64, Pointer>,
}

/// One `current` as it was read.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pointer {
    pub(super) current: Current,
    pub(super) meta: FileMeta,
}

impl Pointers {
    /// Reads them in `keyspaces`, the directory of that name.
    pub(super) fn read(keyspaces: &SourceDir) -> Result<Self, CaptureError> {
        let mut by_keyspace = BTreeMap::new();
        for name in keyspaces.list()? {
            // The engine names folders by number; anything else there is not of the database.
            let Some(id) = name.to_str().and_then(|name| name.parse::<u64>().ok()) else { continue };
            if *name != *id.to_string() {
                continue;
            }
            if let Some(pointer) = Pointer::read(keyspaces, id)? {
                by_keyspace.insert(id, pointer);
            }
        }
        Ok(Self { by_keyspace })
    }

    /// What differs, for people; `None` if they are equal.
    pub(super) fn difference(&self, later: &Self) -> Option<String> {
        let mut moved = Vec::new();
        for (id, before) in &self.by_keyspace {
            match later.by_keyspace.get(id) {
                None => moved.push(format!("keyspace {id} went away")),
                Some(after) if after.current != before.current => moved.push(format!(
                    "keyspaces/{id}/current (version {} to {})",
                    before.current.version, after.current.version
                )),
                Some(_) => {}
            }
        }
        let new = later.by_keyspace.keys().filter(|id| !self.by_keyspace.contains_key(id));
        moved.extend(new.map(|id| format!("keyspace {id} appeared")));
        match moved.len() {
            0 => None,
            1..=3 => Some(moved.join(", ")),
            n => Some(format!("{} and {} more", moved.get(..3).unwrap_or_default().join(", "), n - 3)),
        }
    }
}

impl Pointer {
    /// `None`: the keyspace has none (it is being made or deleted).
    pub(super) fn read(keyspaces: &SourceDir, id: u64) -> Result<Option<Self>, CaptureError> {
        let name = format!("{id}/current");
        let path = keyspaces.path().join(&name);
        let file = match keyspaces.open_file(os(&name)) {
            Ok(Some(file)) => file,
            Ok(None) => return Ok(None),
            // A file with a number for a name: the engine steps over it.
            Err(CaptureError::Io { source, .. }) if source.kind() == io::ErrorKind::NotADirectory => {
                return Ok(None);
            }
            Err(error) => return Err(error),
        };
        let failed = |error| CaptureError::from_io("read", &path, error);
        let meta = FileMeta::of(&file).map_err(failed)?;
        let mut bytes = Vec::with_capacity(CURRENT_LEN + 1);
        file.take(CURRENT_LEN as u64 + 1).read_to_end(&mut bytes).map_err(failed)?;
        let current = Current::parse(&bytes).map_err(|fault| fault.of(&path))?;
        Ok(Some(Self { current, meta }))
    }
}

/// A keyspace's folder, below the database's directory.
pub(super) fn folder(root: &Path, id: u64) -> PathBuf {
    root.join("keyspaces").join(id.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The meta keyspace's pointer does not show every keyspace that comes or goes: its own is read at another moment than the
    /// folders are listed, and a folder is deleted whenever the last user of its keyspace lets go.
    #[test]
    fn a_keyspace_that_moves_appears_or_goes_away_between_two_readings_is_a_difference() {
        let dir = tempfile::tempdir().unwrap();
        let set = |id: u64, version: u64| {
            std::fs::create_dir_all(dir.path().join(id.to_string())).unwrap();
            let mut bytes = version.to_le_bytes().to_vec();
            bytes.resize(CURRENT_LEN, 0);
            std::fs::write(dir.path().join(format!("{id}/current")), bytes).unwrap();
        };
        let keyspaces = SourceDir::open(dir.path()).unwrap();
        let read = || Pointers::read(&keyspaces).unwrap();
        set(0, 5);
        set(1, 7);
        let one = read();
        assert_eq!(one.difference(&read()), None);

        set(2, 0);
        let two = read();
        assert_eq!(one.difference(&two).as_deref(), Some("keyspace 2 appeared"));
        assert_eq!(two.difference(&one).as_deref(), Some("keyspace 2 went away"));

        set(1, 8);
        assert_eq!(two.difference(&read()).as_deref(), Some("keyspaces/1/current (version 7 to 8)"));
        // The pointer goes before the rest of the folder does.
        std::fs::remove_file(dir.path().join("1/current")).unwrap();
        assert_eq!(two.difference(&read()).as_deref(), Some("keyspace 1 went away"));
    }
}
