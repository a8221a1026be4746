//! A captured image, before it is kept or put into a repository.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{File, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use jiff::Timestamp;

use stillframe_storage::{
    Attributes, PublishError, RelativePath, StagingDir, failpoint, is_vacant, sync_filesystem,
};
use tokio_util::sync::CancellationToken;

use crate::capture::check;
use crate::pin::{FileMeta, Located, Pins};
use crate::snapshot::{FileKind, SNAPSHOT_FILE, Snapshot, SnapshotFile};
use crate::staging::{Staging, refuse_within};
use crate::{CaptureError, Context};

/// What a kept image has of the source's tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Tables {
    Linked,
    Copied,
}

const EVERYBODY_WRITES: u32 = 0o002;
const STICKY: u32 = 0o1000;
/// The permission bit without which a directory cannot be moved by anybody but root.
const OWNER_WRITES: u32 = 0o200;

/// A crash-consistent copy of a source at one instant: what the source's directory was, as a kill of its process at that
/// instant would have left it.
///
/// It lives in staging directories beside the source and keeps files alive there; dropping it lets go of everything.
/// [`Self::keep`] makes a directory of it that stays.
#[derive(Debug)]
pub struct Image {
    snapshot: Snapshot,
    files: BTreeMap<RelativePath, Located>,
    staging: Staging,
}

/// An image in the making.
#[derive(Debug)]
pub(crate) struct ImageBuilder {
    /// Let go before the staging directory is removed, which takes a descriptor: handles may have taken all.
    pub(crate) pins: Pins,
    pub(crate) staging: Staging,
    /// Made by us, as opposed to pinned.
    made: BTreeMap<RelativePath, PathBuf>,
}

impl ImageBuilder {
    pub(crate) fn new(staging: Staging) -> Self {
        Self { staging, pins: Pins::default(), made: BTreeMap::new() }
    }

    /// A new file of the image with these bytes.
    pub(crate) fn write(
        &mut self,
        path: &RelativePath,
        bytes: &[u8],
        like: &FileMeta,
    ) -> Result<(), CaptureError> {
        let place = self.make_place(path)?;
        let file = create_new(&place)?;
        file.write_all_at(bytes, 0).map_err(CaptureError::io("write", &place))?;
        set_attributes(&file, &place, like)
    }

    /// A new file of the image with the first `size` bytes of `from`. `false`: `from` is shorter, nothing was made.
    pub(crate) fn copy(
        &mut self,
        path: &RelativePath,
        from: &File,
        from_path: &Path,
        size: u64,
        like: &FileMeta,
    ) -> Result<bool, CaptureError> {
        let place = self.make_place(path)?;
        let copied = copy_to_new(from, size, from_path, &place, &self.staging.cancel)?;
        if copied < size {
            std::fs::remove_file(&place).map_err(CaptureError::io("remove", &place))?;
            self.made.remove(path);
            return Ok(false);
        }
        let file = OpenOptions::new().write(true).open(&place).map_err(CaptureError::io("open", &place))?;
        set_attributes(&file, &place, like)?;
        Ok(true)
    }

    /// Where to make a file of the image that the caller writes itself.
    pub(crate) fn make_place(&mut self, path: &RelativePath) -> Result<PathBuf, CaptureError> {
        // The image's own directory, whatever device the original is on: device 0 is no file system's.
        let place = self.staging.place(0, Path::new("/"), path)?;
        self.made.insert(path.clone(), place.clone());
        Ok(place)
    }

    /// A file of the image that stands outside of the image's own directory: it is read where it is, and copied when the
    /// image is kept.
    pub(crate) fn add_elsewhere(&mut self, path: &RelativePath, place: PathBuf) {
        self.made.insert(path.clone(), place);
    }

    /// Where something that was made stands.
    pub(crate) fn made(&self, path: &RelativePath) -> Option<&Path> {
        self.made.get(path).map(PathBuf::as_path)
    }

    /// The image with its description. `snapshot.files` must name all that was pinned and made, in order of path.
    pub(crate) fn finish(self, mut snapshot: Snapshot) -> Image {
        snapshot.files.sort_by(|a, b| a.path.cmp(&b.path));
        snapshot.directory = attributes_of(&snapshot.source);
        let made = self.made.into_iter().map(|(path, place)| (path, Located::Path(place)));
        let files = self.pins.into_located().chain(made).collect();
        Image { snapshot, files, staging: self.staging }
    }
}

/// Of the directory, or, for a file, of the one that holds it: who uses a SQLite database must be able to make files beside it. `None` for
/// one that went away meanwhile.
fn attributes_of(source: &Path) -> Option<Attributes> {
    let (mut meta, mut kept) = (std::fs::metadata(source).ok()?, 0o7777);
    if !meta.is_dir() {
        meta = std::fs::metadata(source.parent()?).ok()?;
        // It may be everybody's, as /tmp is; what is made of it is not.
        kept = !(EVERYBODY_WRITES | STICKY) & 0o7777;
    }
    let modified = meta.modified().ok().and_then(|time| Timestamp::try_from(time).ok());
    Some(Attributes {
        mode: meta.mode() & kept,
        uid: meta.uid(),
        gid: meta.gid(),
        modified: modified.unwrap_or(Timestamp::UNIX_EPOCH),
    })
}

impl Image {
    /// What it is.
    pub fn snapshot(&self) -> &Snapshot {
        &self.snapshot
    }

    /// Opens one file for reading. Read it at explicit offsets: the handle may be shared.
    pub fn open(&self, path: &RelativePath) -> Result<File, CaptureError> {
        let located =
            self.files.get(path).ok_or_else(|| CaptureError::Vanished { path: path.as_path().to_owned() })?;
        located.open().map_err(CaptureError::io("open", path.as_path()))
    }

    /// Makes the image a directory that stays, `target` (absent, or an empty directory): it appears whole or not at all,
    /// durable, with `snapshot.json` in it. Tables stay linked to the source where both are on one file system.
    pub fn keep(self, target: &Path, context: &Context<'_>) -> Result<Snapshot, CaptureError> {
        self.keep_as(Tables::Linked, target, context)
    }

    /// Like [`Self::keep`], with files of its own: whatever is done to the image, the source does not feel it.
    pub fn keep_copy(self, target: &Path, context: &Context<'_>) -> Result<Snapshot, CaptureError> {
        self.keep_as(Tables::Copied, target, context)
    }

    fn keep_as(self, tables: Tables, target: &Path, context: &Context<'_>) -> Result<Snapshot, CaptureError> {
        let Self { snapshot, files, staging } = self;
        let parent = match target.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        refuse_occupied(target)?;
        refuse_within(target, &snapshot.source)?;
        if snapshot.files.iter().any(|file| file.path.as_bytes() == SNAPSHOT_FILE.as_bytes()) {
            return Err(CaptureError::Refused {
                path: snapshot.source.join(SNAPSHOT_FILE),
                what: "an image keeps its description under this name; back these files up into a repository instead"
                    .to_owned(),
            });
        }
        let target_device = std::fs::metadata(parent).map_err(CaptureError::io("open", parent))?.dev();
        let image_dir = staging.image_dir();
        let image_device = std::fs::metadata(&image_dir).map_err(CaptureError::io("open", &image_dir))?.dev();

        let own = if image_device == target_device && tables == Tables::Linked {
            None
        } else {
            let dir = StagingDir::create(parent, &(context.random_name)());
            Some(dir.map_err(CaptureError::io("make a staging directory in", parent))?)
        };
        let base = own.as_ref().map_or_else(|| image_dir.clone(), |dir| dir.path().join("image"));
        complete(&snapshot, &files, &base, context)?;
        let json =
            serde_json::to_vec_pretty(&snapshot).expect("a snapshot is text, numbers and lists of them");
        let description = base.join(SNAPSHOT_FILE);
        let file = create_new(&description)?;
        file.write_all_at(&json, 0).map_err(CaptureError::io("write", &description))?;
        file.sync_all().map_err(CaptureError::io("write", &description))?;
        complete_directories(&snapshot, &base)?;
        failpoint("image::described");
        // Handles and links on other file systems are let go only now that everything is in `base`.
        drop(files);
        let publisher = own.unwrap_or_else(|| staging.into_image_dir());
        publisher.publish_part(&base, target).map_err(|error| match error {
            PublishError::Occupied(path) => CaptureError::Occupied(path),
            PublishError::NotDurable { path, source } => {
                CaptureError::from_io("make durable, though it is there and whole,", &path, source)
            }
            PublishError::Io { path, source } => CaptureError::from_io("publish", &path, source),
        })?;
        if let Some(mode) = snapshot.directory.map(|like| like.mode).filter(|mode| mode & OWNER_WRITES == 0) {
            let exact = std::fs::set_permissions(target, Permissions::from_mode(mode));
            exact.map_err(CaptureError::io("set the mode of", target))?;
        }
        Ok(snapshot)
    }
}

/// Threads that wait for the disk: it makes many files durable together in hardly more time than one.
const SYNCING: usize = 16;

/// Brings every file of the image below `base`, durable, with the attributes it had.
fn complete(
    snapshot: &Snapshot,
    files: &BTreeMap<RelativePath, Located>,
    base: &Path,
    context: &Context<'_>,
) -> Result<(), CaptureError> {
    std::fs::create_dir_all(base).map_err(CaptureError::io("create", base))?;
    let mut unsynced = Vec::new();
    for entry in &snapshot.files {
        context.check_cancelled()?;
        let place = entry.path.below(base);
        if let Some(parent) = place.parent() {
            std::fs::create_dir_all(parent).map_err(CaptureError::io("create", parent))?;
        }
        match &entry.kind {
            FileKind::Directory => {
                std::fs::create_dir_all(&place).map_err(CaptureError::io("create", &place))?;
            }
            FileKind::Symlink { target } => {
                std::os::unix::fs::symlink(target, &place).map_err(CaptureError::io("link", &place))?;
                let given = entry.attributes().apply_to_link(&place);
                let _ = given.map_err(CaptureError::io("set owner and time of", &place))?;
            }
            FileKind::File => {
                if bring(entry, files, &place, context)? == Durable::NotYet {
                    unsynced.push(place);
                }
            }
        }
    }
    sync_files(&unsynced, base, context.cancel)
}

fn sync_files(places: &[PathBuf], base: &Path, cancel: &CancellationToken) -> Result<(), CaptureError> {
    let next = AtomicUsize::new(0);
    let sync = || {
        while let Some(place) = places.get(next.fetch_add(1, Ordering::Relaxed)) {
            check(cancel)?;
            let synced = match File::open(place) {
                // Its mode keeps us out of our own copy.
                Err(error) if error.kind() == io::ErrorKind::PermissionDenied => sync_filesystem(base),
                opened => opened.and_then(|file| file.sync_all()),
            };
            synced.map_err(CaptureError::io("write", place))?;
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..SYNCING.min(places.len())).map(|_| scope.spawn(sync)).collect();
        threads
            .into_iter()
            .try_for_each(|thread| thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    })
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Durable {
    /// A link's bytes are the engine's and were made durable by it before a pointer named them.
    Already,
    NotYet,
}

/// Mode, owner and time of every directory of the image, children first: last of all, because making files in a directory changes
/// its time.
fn complete_directories(snapshot: &Snapshot, base: &Path) -> Result<(), CaptureError> {
    if let Some(like) = &snapshot.directory {
        let directories = snapshot.files.iter().filter(|entry| entry.kind == FileKind::Directory);
        let recorded: BTreeSet<PathBuf> = directories.map(|entry| entry.path.below(base)).collect();
        for path in directories_below(base)? {
            if path == base {
                // A directory that its owner may not write to cannot be renamed to another parent.
                apply(&open_dir(&path)?, &path, &Attributes { mode: like.mode | OWNER_WRITES, ..*like })?;
            } else if !recorded.contains(&path) {
                apply(&open_dir(&path)?, &path, like)?;
            }
        }
    }
    for entry in snapshot.files.iter().rev().filter(|entry| entry.kind == FileKind::Directory) {
        let place = entry.path.below(base);
        apply(&open_dir(&place)?, &place, &entry.attributes())?;
    }
    Ok(())
}

fn open_dir(path: &Path) -> Result<File, CaptureError> {
    File::open(path).map_err(CaptureError::io("open", path))
}

/// `base` and all directories below it, children before their parents.
fn directories_below(base: &Path) -> Result<Vec<PathBuf>, CaptureError> {
    let mut found = vec![base.to_owned()];
    let mut next = 0;
    while let Some(dir) = found.get(next).cloned() {
        next += 1;
        for entry in std::fs::read_dir(&dir).map_err(CaptureError::io("list", &dir))? {
            let entry = entry.map_err(CaptureError::io("list", &dir))?;
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                found.push(entry.path());
            }
        }
    }
    found.reverse();
    Ok(found)
}

fn bring(
    entry: &SnapshotFile,
    files: &BTreeMap<RelativePath, Located>,
    place: &Path,
    context: &Context<'_>,
) -> Result<Durable, CaptureError> {
    let located = files
        .get(&entry.path)
        .ok_or_else(|| CaptureError::Vanished { path: entry.path.as_path().to_owned() })?;
    let in_place = matches!(located, Located::Path(path) if path == place);
    if in_place {
        let file = File::open(place).map_err(CaptureError::io("open", place))?;
        let meta = FileMeta::of(&file).map_err(CaptureError::io("read", place))?;
        let ours = std::fs::metadata(place).is_ok_and(|meta| meta.nlink() == 1);
        if meta.size != entry.size {
            return Err(CaptureError::Corrupt {
                path: place.to_owned(),
                what: format!("it has {} bytes where {} were captured", meta.size, entry.size),
            });
        }
        return Ok(if ours { Durable::NotYet } else { Durable::Already });
    }
    let from = located.open().map_err(CaptureError::io("open", entry.path.as_path()))?;
    copy_file(&from, entry.size, entry.path.as_path(), place, context.cancel)?;
    let file = OpenOptions::new().write(true).open(place).map_err(CaptureError::io("open", place))?;
    apply(&file, place, &entry.attributes())?;
    Ok(Durable::NotYet)
}

/// Refuses a target that is something other than nothing or an empty directory.
fn refuse_occupied(target: &Path) -> Result<(), CaptureError> {
    match is_vacant(target) {
        Ok(true) => Ok(()),
        Ok(false) => Err(CaptureError::Occupied(target.to_owned())),
        Err(error) => Err(CaptureError::from_io("open", target, error)),
    }
}

/// Copies exactly `size` bytes into a new file; a shorter source is an error, because its length was known.
pub(crate) fn copy_file(
    from: &File,
    size: u64,
    from_path: &Path,
    to: &Path,
    cancel: &CancellationToken,
) -> Result<(), CaptureError> {
    let copied = copy_to_new(from, size, from_path, to, cancel)?;
    if copied == size {
        return Ok(());
    }
    Err(CaptureError::Corrupt {
        path: from_path.to_owned(),
        what: format!("it was cut to {copied} bytes while it was copied, {size} were expected"),
    })
}

/// Copies at most `size` bytes from the beginning into a new file and says how many there were.
fn copy_to_new(
    from: &File,
    size: u64,
    from_path: &Path,
    to: &Path,
    cancel: &CancellationToken,
) -> Result<u64, CaptureError> {
    FileCopy { from, from_path, target: &create_new(to)?, to }.prefix(size, &mut |_| check(cancel))
}

/// Bytes of one file into another.
pub(crate) struct FileCopy<'a> {
    pub(crate) from: &'a File,
    pub(crate) from_path: &'a Path,
    /// Empty.
    pub(crate) target: &'a File,
    pub(crate) to: &'a Path,
}

/// Called with what is copied so far; may end it.
type Look<'a> = &'a mut dyn FnMut(u64) -> Result<(), CaptureError>;

impl FileCopy<'_> {
    /// How much is copied between two looks.
    const STEP: u64 = 8 << 20;

    /// Copies at most `size` bytes from the beginning and says how many there were. The file system may share the blocks
    /// (`copy_file_range`).
    pub(crate) fn prefix(&self, size: u64, look: Look<'_>) -> Result<u64, CaptureError> {
        use rustix::io::Errno;
        let (mut read_at, mut write_at) = (0_u64, 0_u64);
        while read_at < size {
            look(write_at)?;
            let wanted = usize::try_from((size - read_at).min(Self::STEP)).expect("8 MiB fit a usize");
            let (read_at, write_at) = (&mut read_at, &mut write_at);
            match rustix::fs::copy_file_range(
                self.from,
                Some(read_at),
                self.target,
                Some(&mut *write_at),
                wanted,
            ) {
                Ok(0) => return Ok(*write_at),
                Ok(_) => {}
                Err(Errno::XDEV | Errno::NOSYS | Errno::INVAL | Errno::OPNOTSUPP) => {
                    return self.by_hand(size, *write_at, look);
                }
                Err(error) => return Err(CaptureError::from_io("copy to", self.to, error.into())),
            }
        }
        Ok(write_at)
    }

    fn by_hand(&self, size: u64, start: u64, look: Look<'_>) -> Result<u64, CaptureError> {
        let mut buffer = vec![0; 1 << 20];
        let mut at = start;
        while at < size {
            look(at)?;
            let wanted = usize::try_from((size - at).min(1 << 20)).expect("1 MiB fits a usize");
            let part = buffer.get_mut(..wanted).expect("wanted is at most the buffer's length");
            let got = self.from.read_at(part, at).map_err(CaptureError::io("read", self.from_path))?;
            if got == 0 {
                break;
            }
            let part = part.get(..got).expect("read_at returns at most what was asked for");
            self.target.write_all_at(part, at).map_err(CaptureError::io("write", self.to))?;
            at += u64::try_from(got).expect("a usize fits a u64");
        }
        Ok(at)
    }
}

/// A new file that only we may read until its attributes are set.
pub(crate) fn create_new(path: &Path) -> Result<File, CaptureError> {
    let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(path);
    file.map_err(CaptureError::io("create", path))
}

pub(crate) fn set_attributes(file: &File, path: &Path, like: &FileMeta) -> Result<(), CaptureError> {
    let FileMeta { mode, uid, gid, modified, .. } = *like;
    apply(file, path, &Attributes { mode, uid, gid, modified })
}

fn apply(file: &File, path: &Path, attributes: &Attributes) -> Result<(), CaptureError> {
    // An image in the hands of somebody who may not give files away is theirs.
    attributes.apply(file).map(|_| ()).map_err(CaptureError::io("set mode, owner and time of", path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_made_of_a_file_in_everybodys_directory_is_not_everybodys() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("db");
        std::fs::write(&file, "").unwrap();
        for (mode, kept) in [(0o1777, 0o775), (0o750, 0o750), (0o2777, 0o2775)] {
            std::fs::set_permissions(dir.path(), Permissions::from_mode(mode)).unwrap();
            assert_eq!(attributes_of(&file).unwrap().mode, kept, "{mode:o}");
            assert_eq!(attributes_of(dir.path()).unwrap().mode, mode, "a directory of its own is as it was");
        }
        std::fs::set_permissions(dir.path(), Permissions::from_mode(0o700)).unwrap();
    }

    #[test]
    fn a_copy_ends_when_it_is_cancelled() {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("from"), dir.path().join("to"));
        std::fs::write(&from, vec![7; 1 << 20]).unwrap();
        let (file, cancel) = (File::open(&from).unwrap(), CancellationToken::new());
        copy_file(&file, 1 << 20, &from, &to, &cancel).unwrap();
        assert_eq!(std::fs::read(&to).unwrap(), std::fs::read(&from).unwrap());
        cancel.cancel();
        let outcome = copy_file(&file, 1 << 20, &from, &dir.path().join("second"), &cancel);
        assert!(matches!(outcome, Err(CaptureError::Cancelled)), "{outcome:?}");
    }
}
