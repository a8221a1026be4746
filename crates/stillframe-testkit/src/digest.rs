//! One number for a whole directory.

use std::fs::File;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use blake3::{Hash, Hasher};

/// What counts besides names, kinds and bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Detail {
    /// Nothing.
    Content,
    /// Permissions.
    Modes,
    /// Permissions and, of files, times of modification.
    ModesAndTimes,
}

/// The digest of everything below `dir`: equal exactly if names, kinds, bytes, targets of links and what `detail` adds are equal. The
/// directory's own name and mode do not count. Links are not followed.
pub fn tree_digest(dir: &Path, detail: Detail) -> io::Result<Hash> {
    let mut hasher = Hasher::new();
    add_directory(&mut hasher, dir, detail)?;
    Ok(hasher.finalize())
}

fn add_directory(hasher: &mut Hasher, dir: &Path, detail: Detail) -> io::Result<()> {
    let mut entries = std::fs::read_dir(dir)?.collect::<io::Result<Vec<_>>>()?;
    entries.sort_by_key(std::fs::DirEntry::file_name);
    hasher.update(&(entries.len() as u64).to_le_bytes());
    for entry in entries {
        let path = entry.path();
        let meta = std::fs::symlink_metadata(&path)?;
        add_bytes(hasher, entry.file_name().as_bytes());
        // Permission bits only make sense with the kind before them: the upper bits of the mode.
        let mask = if detail == Detail::Content { 0o170_000 } else { 0o177_777 };
        hasher.update(&(meta.mode() & mask).to_le_bytes());
        if detail == Detail::ModesAndTimes && meta.is_file() {
            hasher.update(&meta.mtime().to_le_bytes()).update(&meta.mtime_nsec().to_le_bytes());
        }
        if meta.is_dir() {
            add_directory(hasher, &path, detail)?;
        } else if meta.is_symlink() {
            add_bytes(hasher, std::fs::read_link(&path)?.as_os_str().as_bytes());
        } else if meta.is_file() {
            let mut content = Hasher::new();
            content.update_reader(File::open(&path)?)?;
            hasher.update(content.finalize().as_bytes());
        }
    }
    Ok(())
}

/// With its length, so that no two sequences of parts look alike.
fn add_bytes(hasher: &mut Hasher, bytes: &[u8]) {
    hasher.update(&(bytes.len() as u64).to_le_bytes()).update(bytes);
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::time::{Duration, UNIX_EPOCH};

    use super::*;

    /// What is changed, how, and which details notice.
    type Edit<'a> = (&'a str, &'a dyn Fn(&Path), [bool; 3]);

    fn sample(dir: &Path) {
        std::fs::create_dir_all(dir.join("a/b")).unwrap();
        std::fs::write(dir.join("a/one"), "1").unwrap();
        std::fs::write(dir.join("a/b/two"), "2").unwrap();
        std::os::unix::fs::symlink("one", dir.join("a/link")).unwrap();
        set_time(&dir.join("a/one"), 100);
        set_time(&dir.join("a/b/two"), 100);
    }

    fn set_time(path: &Path, seconds: u64) {
        File::options()
            .write(true)
            .open(path)
            .unwrap()
            .set_modified(UNIX_EPOCH + Duration::from_secs(seconds))
            .unwrap();
    }

    #[test]
    fn every_difference_changes_the_digest_that_covers_it_and_no_other() {
        let details = [Detail::Content, Detail::Modes, Detail::ModesAndTimes];
        let digests = |change: &dyn Fn(&Path)| {
            let dir = tempfile::tempdir().unwrap();
            sample(dir.path());
            change(dir.path());
            details.map(|detail| tree_digest(dir.path(), detail).unwrap())
        };
        let same = digests(&|_| ());
        assert_eq!(digests(&|_| ()), same, "equal trees have equal digests, wherever they are");
        let edits: [Edit<'_>; 8] = [
            (
                "byte",
                &|dir| {
                    std::fs::write(dir.join("a/one"), "x").unwrap();
                    set_time(&dir.join("a/one"), 100);
                },
                [true; 3],
            ),
            ("name", &|dir| std::fs::rename(dir.join("a/one"), dir.join("a/ond")).unwrap(), [true; 3]),
            ("moved", &|dir| std::fs::rename(dir.join("a/one"), dir.join("a/b/one")).unwrap(), [true; 3]),
            ("gone", &|dir| std::fs::remove_file(dir.join("a/b/two")).unwrap(), [true; 3]),
            ("empty directory", &|dir| std::fs::create_dir(dir.join("a/c")).unwrap(), [true; 3]),
            (
                "target",
                &|dir| {
                    std::fs::remove_file(dir.join("a/link")).unwrap();
                    std::os::unix::fs::symlink("two", dir.join("a/link")).unwrap();
                },
                [true; 3],
            ),
            (
                "mode",
                &|dir| std::fs::set_permissions(dir.join("a/one"), PermissionsExt::from_mode(0o600)).unwrap(),
                [false, true, true],
            ),
            ("time", &|dir| set_time(&dir.join("a/one"), 101), [false, false, true]),
        ];
        for (what, edit, changes) in edits {
            let got = digests(edit);
            for n in 0..3 {
                assert_eq!(got[n] != same[n], changes[n], "{what}, {:?}", details[n]);
            }
        }
    }
}
