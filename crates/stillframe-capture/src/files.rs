//! The profile of plain files: a tree as it is met, without any claim that its files belong to one moment.
//!
//! Regular files, directories and symbolic links are recorded; links are kept as links and never followed. A file is linked
//! into staging, so that it stays readable when its name goes, and read there: what its owner writes meanwhile is in
//! what is read. Where links are refused it is read in place, and copied where staging lies on another file system.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use rustix::fs::{
    Access, AtFlags, Dir, FileType, Mode, OFlags, Stat, accessat, linkat, openat, readlinkat, statat,
};
use rustix::io::Errno;
use stillframe_storage::{RelativePath, failpoint, is_staging_name};

use crate::image::ImageBuilder;
use crate::pin::FileMeta;
use crate::snapshot::{FileKind, Role, SNAPSHOT_VERSION, Snapshot, SnapshotFile, Weakening};
use crate::sqlite::OpenDatabases;
use crate::staging::Staging;
use crate::{CaptureError, CaptureOptions, Context, Engine, Image, Source, ValidationReport};

/// The version of this profile.
const PROFILE: u32 = 1;
/// How many links one directory of staging holds.
const SHARD: usize = 8192;
/// How many files are named in warnings of one kind.
const NAMED: usize = 20;

/// Captures a tree.
pub(crate) fn capture(
    source: &Source,
    options: &CaptureOptions,
    context: &Context<'_>,
) -> Result<Image, CaptureError> {
    let root = std::fs::canonicalize(&source.path).map_err(CaptureError::io("open", &source.path))?;
    if !root.is_dir() {
        return Err(CaptureError::NotADatabase {
            path: source.path.clone(),
            engine: Engine::Files.name(),
            reason: "it is not a directory; name the directory that holds the files".to_owned(),
        });
    }
    let own = options.leave_out.iter().filter_map(|dir| std::fs::canonicalize(dir).ok()).collect::<Vec<_>>();
    if let Some(dir) = own.iter().find(|dir| root.starts_with(dir)) {
        let what = format!("it lies in {}, which is in use by this program itself", dir.display());
        return Err(CaptureError::Refused { path: root, what });
    }
    let began = context.clock.monotonic();
    let instant = context.clock.now();
    let staging = Staging::for_source(&root, options, context)?;
    let links = staging.scratch_dir("files")?;
    let mut walk = Walk {
        builder: ImageBuilder::new(staging),
        root: root.clone(),
        links,
        linked: 0,
        files: Vec::new(),
        special: Left::default(),
        vanished: Left::default(),
        databases: Left::default(),
        own,
        left_out: Left::default(),
    };
    walk.run(context)?;
    failpoint("files::linked");
    let window = context.clock.monotonic().saturating_sub(began);
    let weakening = walk.weakening();
    let snapshot = Snapshot {
        version: SNAPSHOT_VERSION,
        engine: Engine::Files,
        profile: PROFILE,
        engine_version: None,
        source: root,
        instant,
        window_us: u64::try_from(window.as_micros()).unwrap_or(u64::MAX),
        attempts: 1,
        lineage: None,
        directory: None,
        directories: Vec::new(),
        pointers: Vec::new(),
        weakening,
        files: walk.files,
    };
    Ok(walk.builder.finish(snapshot))
}

/// Plain files fit each other however they are: they are counted.
pub(crate) fn validate(dir: &Path) -> Result<ValidationReport, CaptureError> {
    let mut report = ValidationReport::default();
    count(dir, &mut report)?;
    Ok(report)
}

fn count(dir: &Path, report: &mut ValidationReport) -> Result<(), CaptureError> {
    for entry in std::fs::read_dir(dir).map_err(CaptureError::io("list", dir))? {
        let entry = entry.map_err(CaptureError::io("list", dir))?;
        let meta = entry.metadata().map_err(CaptureError::io("read", &entry.path()))?;
        if meta.is_dir() {
            count(&entry.path(), report)?;
        } else if meta.is_file() {
            report.files += 1;
            report.bytes += meta.len();
        }
    }
    Ok(())
}

/// Files that are not in the image.
#[derive(Debug, Default)]
struct Left {
    names: Vec<String>,
    more: usize,
}

impl Left {
    fn add(&mut self, name: String) {
        if self.names.len() < NAMED {
            self.names.push(name);
        } else {
            self.more += 1;
        }
    }

    fn describe(&self) -> Option<String> {
        if self.names.is_empty() {
            return None;
        }
        let more = if self.more == 0 { String::new() } else { format!(" and {} more", self.more) };
        Some(format!("{}{more}", self.names.join(", ")))
    }
}

/// A walk over the tree. Every name is looked up in its open directory, and links are not followed, so that nobody can
/// lead it elsewhere by exchanging a directory for a link.
struct Walk {
    builder: ImageBuilder,
    root: PathBuf,
    links: PathBuf,
    linked: usize,
    files: Vec<SnapshotFile>,
    /// Sockets, pipes, devices.
    special: Left,
    /// Gone between the listing and the look.
    vanished: Left,
    /// SQLite databases that this process is capturing.
    databases: Left,
    /// Directories that are no part of any source.
    own: Vec<PathBuf>,
    left_out: Left,
}

/// An open directory with the names that are still to be looked at.
struct Level {
    fd: OwnedFd,
    /// Relative to the root; empty for the root.
    path: Vec<u8>,
    names: std::vec::IntoIter<OsString>,
}

impl Walk {
    fn run(&mut self, context: &Context<'_>) -> Result<(), CaptureError> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::open(&self.root, flags, Mode::empty())
            .map_err(CaptureError::io("open", &self.root))?;
        let mut levels = vec![self.level(root, Vec::new())?];
        while let Some(level) = levels.last_mut() {
            context.check_cancelled()?;
            let Some(name) = level.names.next() else {
                levels.pop();
                continue;
            };
            let mut path = level.path.clone();
            if !path.is_empty() {
                path.push(b'/');
            }
            path.extend(name.as_bytes());
            if let Some(fd) = self.entry(&level.fd, &name, &path)? {
                let level = self.level(fd, path)?;
                levels.push(level);
            }
        }
        Ok(())
    }

    fn level(&self, fd: OwnedFd, path: Vec<u8>) -> Result<Level, CaptureError> {
        let shown = self.root.join(OsStr::from_bytes(&path));
        let mut names = Vec::new();
        for entry in Dir::read_from(&fd).map_err(CaptureError::io("list", &shown))? {
            let entry = entry.map_err(CaptureError::io("list", &shown))?;
            let name = entry.file_name().to_bytes();
            if name != b"." && name != b".." {
                names.push(OsString::from_vec(name.to_vec()));
            }
        }
        names.sort_unstable();
        // Staging directories of other captures, and their locks, are no part of what is backed up. Each has the other beside it.
        let partner = |name: &OsStr| match name.as_bytes().strip_suffix(b".lock") {
            Some(dir) => OsStr::from_bytes(dir).to_owned(),
            None => OsString::from_vec([name.as_bytes(), b".lock"].concat()),
        };
        let is_ours = |name: &OsString| is_staging_name(name) && names.binary_search(&partner(name)).is_ok();
        let names: Vec<OsString> = names.iter().filter(|name| !is_ours(name)).cloned().collect();
        Ok(Level { fd, path, names: names.into_iter() })
    }

    /// Records what stands at `name` of `dir`; returns a directory to go into.
    fn entry(&mut self, dir: &OwnedFd, name: &OsStr, path: &[u8]) -> Result<Option<OwnedFd>, CaptureError> {
        let shown = self.root.join(OsStr::from_bytes(path));
        let relative = RelativePath::from_bytes(path)
            .map_err(|error| CaptureError::Refused { path: shown.clone(), what: error.to_string() })?;
        let stat = match statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => {
                self.vanished.add(relative.to_string());
                return Ok(None);
            }
            other => other.map_err(CaptureError::io("read", &shown))?,
        };
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory if self.own.contains(&shown) => self.left_out.add(relative.to_string()),
            FileType::Directory => {
                let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
                match openat(dir, name, flags, Mode::empty()) {
                    Ok(fd) => {
                        self.files.push(record(&relative, FileKind::Directory, 0, &stat));
                        return Ok(Some(fd));
                    }
                    Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => {
                        self.vanished.add(relative.to_string());
                    }
                    Err(error) => return Err(CaptureError::from_io("open", &shown, error.into())),
                }
            }
            FileType::Symlink => match readlinkat(dir, name, Vec::new()) {
                Ok(target) => {
                    let target = OsString::from_vec(target.into_bytes()).into();
                    self.files.push(record(&relative, FileKind::Symlink { target }, 0, &stat));
                }
                Err(Errno::NOENT | Errno::INVAL) => self.vanished.add(relative.to_string()),
                Err(error) => return Err(CaptureError::from_io("read", &shown, error.into())),
            },
            FileType::RegularFile => self.file(dir, name, &relative, &shown)?,
            _ => self.special.add(relative.to_string()),
        }
        Ok(None)
    }

    fn file(
        &mut self,
        dir: &OwnedFd,
        name: &OsStr,
        path: &RelativePath,
        shown: &Path,
    ) -> Result<(), CaptureError> {
        if Self::belongs_to_open_database(shown) {
            self.databases.add(path.to_string());
            return Ok(());
        }
        match accessat(dir, name, Access::READ_OK, AtFlags::EACCESS) {
            Err(Errno::NOENT) => {
                self.vanished.add(path.to_string());
                return Ok(());
            }
            Err(Errno::ACCESS) => {
                return Err(CaptureError::Permission {
                    action: "read",
                    path: shown.to_owned(),
                    hint: "; run as its owner or as root".to_owned(),
                });
            }
            // Other answers come again, in words, when it is linked or opened.
            _ => {}
        }
        let link = self.next_link()?;
        match linkat(dir, name, rustix::fs::CWD, &link, AtFlags::empty()) {
            Ok(()) => {
                // What was linked, whatever it was a moment ago.
                let stat = statat(rustix::fs::CWD, &link, AtFlags::SYMLINK_NOFOLLOW)
                    .map_err(CaptureError::io("read", &link))?;
                if FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile {
                    self.builder.add_elsewhere(path, link);
                    self.add(path, &stat);
                } else {
                    self.vanished.add(path.to_string());
                }
                Ok(())
            }
            Err(Errno::NOENT) => {
                self.vanished.add(path.to_string());
                Ok(())
            }
            Err(Errno::PERM | Errno::ACCESS) => {
                let Some(file) = self.open(dir, name, path, shown)? else { return Ok(()) };
                let stat = rustix::fs::fstat(&file).map_err(CaptureError::io("read", shown))?;
                self.builder.add_elsewhere(path, shown.to_owned());
                self.add(path, &stat);
                Ok(())
            }
            Err(Errno::XDEV | Errno::MLINK | Errno::OPNOTSUPP) => self.copy(dir, name, path, shown),
            Err(error) => Err(CaptureError::from_io("link", &link, error.into())),
        }
    }

    /// Freezes a file by copying it.
    fn copy(
        &mut self,
        dir: &OwnedFd,
        name: &OsStr,
        path: &RelativePath,
        shown: &Path,
    ) -> Result<(), CaptureError> {
        let Some(file) = self.open(dir, name, path, shown)? else { return Ok(()) };
        loop {
            let stat = rustix::fs::fstat(&file).map_err(CaptureError::io("read", shown))?;
            let meta = FileMeta::of(&file).map_err(CaptureError::io("read", shown))?;
            // Cut while it was copied: again, with the new size. It cannot be cut for ever.
            if self.builder.copy(path, &file, shown, meta.size, &meta)? {
                self.files.push(record(path, FileKind::File, meta.size, &stat));
                return Ok(());
            }
        }
    }

    fn open(
        &mut self,
        dir: &OwnedFd,
        name: &OsStr,
        path: &RelativePath,
        shown: &Path,
    ) -> Result<Option<File>, CaptureError> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOCTTY | OFlags::NONBLOCK | OFlags::NOFOLLOW;
        match openat(dir, name, flags, Mode::empty()) {
            Ok(fd) => {
                let file = File::from(fd);
                if file.metadata().map_err(CaptureError::io("read", shown))?.is_file() {
                    return Ok(Some(file));
                }
            }
            Err(Errno::NOENT | Errno::LOOP) => {}
            Err(error) => return Err(CaptureError::from_io("open", shown, error.into())),
        }
        self.vanished.add(path.to_string());
        Ok(None)
    }

    fn add(&mut self, path: &RelativePath, stat: &Stat) {
        let size = u64::try_from(stat.st_size).unwrap_or(0);
        self.files.push(record(path, FileKind::File, size, stat));
    }

    fn next_link(&mut self) -> Result<PathBuf, CaptureError> {
        let shard = self.links.join((self.linked / SHARD).to_string());
        if self.linked.is_multiple_of(SHARD) {
            std::fs::create_dir(&shard).map_err(CaptureError::io("create", &shard))?;
        }
        let link = shard.join((self.linked % SHARD).to_string());
        self.linked += 1;
        Ok(link)
    }

    /// A database that this process captures at the moment, or a file that SQLite keeps beside one: opening it would drop the
    /// locks that hold its instant, and copying it would not give a database.
    fn belongs_to_open_database(shown: &Path) -> bool {
        let open =
            |path: &Path| std::fs::symlink_metadata(path).is_ok_and(|meta| OpenDatabases::contains(&meta));
        let name = shown.as_os_str().as_bytes();
        let beside = ["-wal", "-shm", "-journal"];
        let main = beside.iter().find_map(|suffix| name.strip_suffix(suffix.as_bytes()));
        open(shown) || main.is_some_and(|main| open(Path::new(OsStr::from_bytes(main))))
    }

    fn weakening(&self) -> Vec<Weakening> {
        let mut weakening = vec![Weakening {
            setting: "files".to_owned(),
            effect: "No consistency is claimed: its files may be from different moments, and a file that was written \
                     to meanwhile may be from several."
                .to_owned(),
        }];
        for (setting, left, what) in [
            ("special files", &self.special, "Sockets, pipes and devices are not in this image"),
            (
                "vanished files",
                &self.vanished,
                "What went away or changed its kind during the capture is not in this image",
            ),
            (
                "open databases",
                &self.databases,
                "Files of SQLite databases that are captured on their own at the same time are not in this image",
            ),
            (
                "own directories",
                &self.left_out,
                "What this program keeps for itself, the history of its jobs and its cache, is not in this image",
            ),
        ] {
            if let Some(names) = left.describe() {
                let effect = format!("{what}: {names}.");
                weakening.push(Weakening { setting: setting.to_owned(), effect });
            }
        }
        weakening
    }
}

fn record(path: &RelativePath, kind: FileKind, size: u64, stat: &Stat) -> SnapshotFile {
    let nanoseconds = i32::try_from(stat.st_mtime_nsec).unwrap_or(0);
    SnapshotFile {
        path: path.clone(),
        kind,
        role: Role::Other,
        directory: String::new(),
        size,
        mode: stat.st_mode & 0o7777,
        uid: stat.st_uid,
        gid: stat.st_gid,
        modified: Timestamp::new(stat.st_mtime, nanoseconds).unwrap_or(Timestamp::UNIX_EPOCH),
        identity: None,
    }
}

#[cfg(test)]
#[path = "files_tests.rs"]
mod tests;
