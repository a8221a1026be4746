//! Everything about a directory except its bytes, to see what a capture did to it.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::Metadata;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Names, inodes, sizes, modes, owners, times and link counts of a directory and everything below it. Access times are left out: they
/// belong to whoever reads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inventory(BTreeMap<PathBuf, Item>);

#[derive(Debug, Clone, PartialEq, Eq)]
struct Item {
    mode: u32,
    inode: (u64, u64),
    size: u64,
    owner: (u32, u32),
    modified: (i64, i64),
    changed: (i64, i64),
    links: u64,
    target: Option<PathBuf>,
}

/// One thing that may differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Aspect {
    /// It was not there before.
    Appeared,
    /// It is there no more.
    Vanished,
    /// Another file has its name now.
    Inode,
    /// Size in bytes, of files.
    Size,
    /// Kind or permissions.
    Mode,
    /// User or group.
    Owner,
    /// Time of modification.
    Modified,
    /// Time of the last change of the inode (`ctime`): making and removing a hard link moves it.
    Changed,
    /// Number of hard links, of files.
    Links,
    /// What a symbolic link points to.
    Target,
}

/// A difference between two inventories.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// Below the directory; the directory itself is `.`.
    pub path: PathBuf,
    /// What differs.
    pub aspect: Aspect,
    /// Before and after, in words.
    pub text: String,
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.path.display(), self.text)
    }
}

impl Inventory {
    /// Takes down `dir`. What vanishes while it is being looked at counts as not there: the directory may be in use.
    pub fn of(dir: &Path) -> io::Result<Self> {
        let mut items = BTreeMap::new();
        items.insert(PathBuf::from("."), Item::of(dir, &std::fs::symlink_metadata(dir)?)?);
        walk(dir, Path::new(""), &mut items)?;
        Ok(Self(items))
    }

    /// What is different now, against an inventory taken `before`.
    pub fn changes_since(&self, before: &Self) -> Vec<Change> {
        let mut changes = Vec::new();
        for (path, old) in &before.0 {
            match self.0.get(path) {
                Some(new) => changes.extend(old.differences(new, path)),
                None => changes.push(Change {
                    path: path.clone(),
                    aspect: Aspect::Vanished,
                    text: "vanished".into(),
                }),
            }
        }
        for path in self.0.keys().filter(|path| !before.0.contains_key(*path)) {
            changes.push(Change { path: path.clone(), aspect: Aspect::Appeared, text: "appeared".into() });
        }
        changes
    }

    /// Like [`Self::changes_since`], leaving out what hard links made and removed meanwhile leave behind in the inode (`ctime`).
    pub fn changes_beside_links(&self, before: &Self) -> Vec<Change> {
        let mut changes = self.changes_since(before);
        changes.retain(|change| change.aspect != Aspect::Changed);
        changes
    }
}

impl Item {
    fn of(path: &Path, meta: &Metadata) -> io::Result<Self> {
        Ok(Self {
            mode: meta.mode(),
            inode: (meta.dev(), meta.ino()),
            // The size and link count of a directory are the file system's business.
            size: if meta.is_dir() { 0 } else { meta.size() },
            owner: (meta.uid(), meta.gid()),
            modified: (meta.mtime(), meta.mtime_nsec()),
            changed: (meta.ctime(), meta.ctime_nsec()),
            links: if meta.is_dir() { 0 } else { meta.nlink() },
            target: if meta.is_symlink() { Some(std::fs::read_link(path)?) } else { None },
        })
    }

    fn differences(&self, new: &Self, path: &Path) -> Vec<Change> {
        let mut changes = Vec::new();
        let mut compare = |aspect, differs: bool, text: String| {
            if differs {
                changes.push(Change { path: path.to_owned(), aspect, text });
            }
        };
        compare(
            Aspect::Inode,
            self.inode != new.inode,
            format!("inode {:?}, was {:?}", new.inode, self.inode),
        );
        compare(Aspect::Size, self.size != new.size, format!("{} bytes, was {}", new.size, self.size));
        compare(Aspect::Mode, self.mode != new.mode, format!("mode {:o}, was {:o}", new.mode, self.mode));
        compare(
            Aspect::Owner,
            self.owner != new.owner,
            format!("owner {:?}, was {:?}", new.owner, self.owner),
        );
        let written = self.modified != new.modified;
        compare(
            Aspect::Modified,
            written,
            format!("modified at {:?}, was {:?}", new.modified, self.modified),
        );
        let touched = self.changed != new.changed;
        compare(
            Aspect::Changed,
            touched,
            format!("inode changed at {:?}, was {:?}", new.changed, self.changed),
        );
        compare(Aspect::Links, self.links != new.links, format!("{} links, was {}", new.links, self.links));
        compare(
            Aspect::Target,
            self.target != new.target,
            format!("target {:?}, was {:?}", new.target, self.target),
        );
        changes
    }
}

fn walk(dir: &Path, below: &Path, items: &mut BTreeMap<PathBuf, Item>) -> io::Result<()> {
    let entries = match std::fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound && !below.as_os_str().is_empty() => {
            return Ok(());
        }
        entries => entries?,
    };
    for entry in entries {
        let entry = entry?;
        let (path, name) = (entry.path(), below.join(entry.file_name()));
        let item =
            std::fs::symlink_metadata(&path).and_then(|meta| Ok((meta.is_dir(), Item::of(&path, &meta)?)));
        let (is_dir, item) = match item {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            item => item?,
        };
        items.insert(name.clone(), item);
        if is_dir {
            walk(&path, &name, items)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::time::{Duration, UNIX_EPOCH};

    use super::*;

    #[test]
    fn each_change_is_named_with_its_path_and_nothing_else_is() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        std::fs::create_dir(at("sub")).unwrap();
        for name in ["same", "longer", "mode", "time", "replaced", "linked", "sub/gone"] {
            std::fs::write(at(name), name).unwrap();
        }
        std::os::unix::fs::symlink("same", at("link")).unwrap();
        let before = Inventory::of(dir.path()).unwrap();
        assert_eq!(Inventory::of(dir.path()).unwrap().changes_since(&before), []);

        std::fs::write(at("longer"), "longer than before").unwrap();
        std::fs::set_permissions(at("mode"), PermissionsExt::from_mode(0o600)).unwrap();
        let time = UNIX_EPOCH + Duration::from_secs(5);
        std::fs::File::options().write(true).open(at("time")).unwrap().set_modified(time).unwrap();
        std::fs::write(at("new"), "replaced").unwrap();
        std::fs::rename(at("new"), at("replaced")).unwrap();
        std::fs::hard_link(at("linked"), at("sub/pin")).unwrap();
        std::fs::remove_file(at("sub/gone")).unwrap();
        std::fs::remove_file(at("link")).unwrap();
        std::os::unix::fs::symlink("mode", at("link")).unwrap();

        let changes = Inventory::of(dir.path()).unwrap().changes_since(&before);
        let of = |name: &str| {
            let found = changes.iter().filter(|change| change.path == Path::new(name));
            found.map(|change| change.aspect).collect::<Vec<_>>()
        };
        assert_eq!(of("same"), []);
        assert!(of("longer").contains(&Aspect::Size) && of("longer").contains(&Aspect::Modified));
        assert_eq!(of("mode"), [Aspect::Mode, Aspect::Changed]);
        assert_eq!(of("time"), [Aspect::Modified, Aspect::Changed]);
        assert!(of("replaced").contains(&Aspect::Inode));
        assert_eq!(of("linked"), [Aspect::Changed, Aspect::Links]);
        assert_eq!(of("sub/pin"), [Aspect::Appeared]);
        assert_eq!(of("sub/gone"), [Aspect::Vanished]);
        assert!(of("link").contains(&Aspect::Target));
        assert!(of("sub").contains(&Aspect::Modified));
    }

    #[test]
    fn a_link_made_beside_and_removed_again_leaves_only_the_inodes_time() {
        let dir = tempfile::tempdir().unwrap();
        let source = dir.path().join("source");
        std::fs::create_dir(&source).unwrap();
        std::fs::write(source.join("table"), "1").unwrap();
        let before = Inventory::of(&source).unwrap();
        std::thread::sleep(Duration::from_millis(20));
        std::fs::hard_link(source.join("table"), dir.path().join("pin")).unwrap();
        std::fs::remove_file(dir.path().join("pin")).unwrap();
        let after = Inventory::of(&source).unwrap();
        assert_eq!(
            after.changes_since(&before).iter().map(|c| c.aspect).collect::<Vec<_>>(),
            [Aspect::Changed]
        );
        assert_eq!(after.changes_beside_links(&before), []);
    }
}
