//! What lies in a directory that serves as an object store.
//!
//! Only plain files in plain directories are objects. A link would lead out of the store, as far as the whole machine; a pipe would
//! be waited for without end. Somebody put such a thing there, so it is named and nothing is passed over in silence.

use std::fs::Metadata;
use std::io;
use std::path::{Path as FilePath, PathBuf};

use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt, stream};
use object_store::path::Path;
use object_store::{Error, ObjectMeta, Result};

/// Refuses what is no plain file or directory.
pub(crate) fn refuse_strange(path: &FilePath, meta: &Metadata) -> io::Result<()> {
    let kind = meta.file_type();
    let text = if kind.is_symlink() {
        "is a symbolic link, and a repository holds none: put what it points to in its place"
    } else if !kind.is_file() && !kind.is_dir() {
        "is neither a file nor a directory: remove it"
    } else {
        return Ok(());
    };
    Err(io::Error::other(format!("{} {text}", path.display())))
}

/// All objects below `prefix`, a directory at a time, in no order. Files that are being written have no names yet and are left out,
/// and so is what no object can be called.
pub(crate) fn list(root: &FilePath, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
    let start = prefix.map_or_else(|| root.to_owned(), |prefix| root.join(prefix.as_ref()));
    let walk = Walk { root: root.to_owned(), left: vec![start] };
    let directories = stream::try_unfold(walk, async |mut walk| {
        let step = move || Ok(walk.step()?.map(|objects| (objects, walk)));
        let step: io::Result<_> =
            tokio::task::spawn_blocking(step).await.map_err(|source| Error::JoinError { source })?;
        step.map_err(|source| Error::Generic { store: "directory", source: Box::new(source) })
    });
    directories.map_ok(|objects| stream::iter(objects).map(Ok)).try_flatten().boxed()
}

struct Walk {
    root: PathBuf,
    /// Directories that are to be read.
    left: Vec<PathBuf>,
}

impl Walk {
    /// The objects of one directory. `None`: none is left.
    fn step(&mut self) -> io::Result<Option<Vec<ObjectMeta>>> {
        let Some(directory) = self.left.pop() else { return Ok(None) };
        let Some(meta) = unless_gone(std::fs::symlink_metadata(&directory))? else {
            return Ok(Some(Vec::new()));
        };
        refuse_strange(&directory, &meta)?;
        let mut objects = Vec::new();
        let Some(entries) = unless_gone(std::fs::read_dir(&directory))? else { return Ok(Some(objects)) };
        for entry in entries {
            let path = entry?.path();
            let Some(meta) = unless_gone(std::fs::symlink_metadata(&path))? else { continue };
            if meta.is_dir() {
                self.left.push(path);
                continue;
            }
            refuse_strange(&path, &meta)?;
            if let Some(location) = self.location(&path) {
                let last_modified = meta.modified()?.into();
                objects.push(ObjectMeta {
                    location,
                    last_modified,
                    size: meta.len(),
                    e_tag: None,
                    version: None,
                });
            }
        }
        Ok(Some(objects))
    }

    fn location(&self, path: &FilePath) -> Option<Path> {
        let name = path.strip_prefix(&self.root).ok()?.to_str()?;
        let is_draft =
            name.rsplit_once('#').is_some_and(|(_, number)| number.bytes().all(|b| b.is_ascii_digit()));
        Path::parse(name).ok().filter(|_| !is_draft)
    }
}

/// What went away since it was listed is not there.
fn unless_gone<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        // A file where a directory was asked for: nothing is below it.
        Err(error) if error.kind() == io::ErrorKind::NotADirectory => Ok(None),
        other => other.map(Some),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use object_store::ObjectStore;
    use object_store::local::LocalFileSystem;
    use rustix::fs::{CWD, FileType};

    use super::*;

    fn names(store: BoxStream<'static, Result<ObjectMeta>>) -> Result<Vec<(String, u64)>> {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let mut listed: Vec<(String, u64)> =
            runtime.block_on(store.map_ok(|meta| (meta.location.to_string(), meta.size)).try_collect())?;
        listed.sort();
        Ok(listed)
    }

    #[test]
    fn it_shows_what_the_library_shows() {
        let dir = tempfile::tempdir().unwrap();
        let library = LocalFileSystem::new_with_prefix(dir.path()).unwrap();
        for name in
            ["config", "packs/ab/one", "packs/ab/two", "packs/cd/three", "packs/cd/four#1", "sealed/x"]
        {
            let path = dir.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, name).unwrap();
        }
        std::fs::create_dir(dir.path().join("empty")).unwrap();
        for prefix in [None, Some("packs"), Some("packs/ab"), Some("empty"), Some("nowhere"), Some("config")]
        {
            let prefix = prefix.map(Path::from);
            let ours = names(list(dir.path(), prefix.as_ref())).unwrap();
            assert_eq!(ours, names(library.list(prefix.as_ref())).unwrap(), "{prefix:?}");
        }
        assert_eq!(names(list(dir.path(), None)).unwrap().len(), 5);
    }

    #[test]
    fn what_is_no_plain_file_is_named_and_neither_followed_nor_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let packs = dir.path().join("packs");
        std::fs::create_dir(&packs).unwrap();
        let strange = packs.join("01");
        for (text, leads_to) in [
            ("is a symbolic link", Some("/")),
            ("is a symbolic link", Some("nowhere")),
            ("is neither a file", None),
        ] {
            match leads_to {
                Some(target) => symlink(target, &strange).unwrap(),
                None => rustix::fs::mknodat(CWD, &strange, FileType::Fifo, 0o600.into(), 0).unwrap(),
            }
            let error = names(list(dir.path(), Some(&Path::from("packs")))).unwrap_err().to_string();
            assert!(error.contains(text) && error.contains("packs/01"), "{error}");
            std::fs::remove_file(&strange).unwrap();
        }
        std::fs::rename(&packs, dir.path().join("elsewhere")).unwrap();
        symlink("elsewhere", &packs).unwrap();
        assert!(names(list(dir.path(), Some(&Path::from("packs")))).is_err());
    }
}
