//! Keeping files alive that the engine may delete at any moment.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, Stat, linkat, openat, statat};
use rustix::io::Errno;
use stillframe_storage::RelativePath;

use crate::CaptureError;
use crate::staging::Staging;

/// What the file system says of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FileMeta {
    pub(crate) device: u64,
    pub(crate) inode: u64,
    pub(crate) size: u64,
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) modified: Timestamp,
    pub(crate) kind: FileType,
}

impl FileMeta {
    fn from_stat(stat: &Stat) -> Self {
        let nanoseconds = i32::try_from(stat.st_mtime_nsec).unwrap_or(0);
        Self {
            device: stat.st_dev,
            inode: stat.st_ino,
            size: u64::try_from(stat.st_size).unwrap_or(0),
            mode: stat.st_mode & 0o7777,
            uid: stat.st_uid,
            gid: stat.st_gid,
            modified: Timestamp::new(stat.st_mtime, nanoseconds).unwrap_or(Timestamp::UNIX_EPOCH),
            kind: FileType::from_raw_mode(stat.st_mode),
        }
    }

    /// Of an open file.
    pub(crate) fn of(file: &File) -> io::Result<Self> {
        Ok(Self::from_stat(&rustix::fs::fstat(file)?))
    }
}

/// A directory of the source, open: names are looked up in it without walking the path again.
#[derive(Debug)]
pub(crate) struct SourceDir {
    path: PathBuf,
    fd: OwnedFd,
}

impl SourceDir {
    pub(crate) fn open(path: &Path) -> Result<Self, CaptureError> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = rustix::fs::open(path, flags, Mode::empty()).map_err(CaptureError::io("open", path))?;
        Ok(Self { path: path.to_owned(), fd })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// All names but `.` and `..`, in no order.
    pub(crate) fn list(&self) -> Result<Vec<OsString>, CaptureError> {
        let failed = || CaptureError::io::<Errno>("list", &self.path);
        let mut names = Vec::new();
        for entry in Dir::read_from(&self.fd).map_err(failed())? {
            let entry = entry.map_err(failed())?;
            let name = entry.file_name().to_bytes();
            if name != b"." && name != b".." {
                names.push(OsString::from_vec(name.to_vec()));
            }
        }
        Ok(names)
    }

    /// `None`: no such name. Symbolic links are followed.
    pub(crate) fn stat(&self, name: &OsStr) -> Result<Option<FileMeta>, CaptureError> {
        match statat(&self.fd, name, AtFlags::empty()) {
            Ok(stat) => Ok(Some(FileMeta::from_stat(&stat))),
            Err(Errno::NOENT) => Ok(None),
            Err(error) => Err(CaptureError::from_io("read", &self.path.join(name), error.into())),
        }
    }

    /// `None`: no such name. Opened for reading; never creates.
    pub(crate) fn open_file(&self, name: &OsStr) -> Result<Option<File>, CaptureError> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOCTTY | OFlags::NONBLOCK;
        match openat(&self.fd, name, flags, Mode::empty()) {
            Ok(fd) => Ok(Some(File::from(fd))),
            Err(Errno::NOENT) => Ok(None),
            Err(Errno::MFILE | Errno::NFILE) => Err(CaptureError::Io {
                action: "open",
                path: self.path.join(name),
                source: io::Error::other(
                    "too many open files; raise the limit (ulimit -n) or run as the files' owner",
                ),
            }),
            Err(error) => Err(CaptureError::from_io("open", &self.path.join(name), error.into())),
        }
    }

    /// Whole content of a small file. `None`: no such name.
    pub(crate) fn read(&self, name: &OsStr) -> Result<Option<Vec<u8>>, CaptureError> {
        use std::io::Read;
        let Some(mut file) = self.open_file(name)? else { return Ok(None) };
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).map_err(CaptureError::io("read", &self.path.join(name)))?;
        Ok(Some(bytes))
    }
}

/// Where a pinned file can be read.
#[derive(Debug)]
pub(crate) enum Located {
    /// A link or a copy below a staging directory.
    Path(PathBuf),
    /// Links are refused here (another owner's file): an open handle. It does not keep the engine from cutting the file.
    Handle(File),
}

impl Located {
    pub(crate) fn open(&self) -> io::Result<File> {
        match self {
            Self::Path(path) => File::open(path),
            Self::Handle(file) => file.try_clone(),
        }
    }
}

/// One file that stays readable whatever the engine does with its name.
#[derive(Debug)]
pub(crate) struct Pin {
    /// As it was when it was pinned.
    pub(crate) meta: FileMeta,
    pub(crate) located: Located,
}

/// The pins of one capture, by their path in the image.
///
/// Identity is (path, device, inode): a name alone may be given to another file after a restart of the engine.
#[derive(Debug, Default)]
pub(crate) struct Pins {
    by_path: BTreeMap<RelativePath, Pin>,
}

impl Pins {
    /// Pins `name` of `dir` as `path` of the image, unless the very same file is pinned there already. `None`: it is gone.
    pub(crate) fn pin(
        &mut self,
        staging: &mut Staging,
        dir: &SourceDir,
        name: &OsStr,
        path: &RelativePath,
    ) -> Result<Option<&Pin>, CaptureError> {
        let Some(now) = dir.stat(name)? else { return Ok(None) };
        let same = self
            .by_path
            .get(path)
            .is_some_and(|pin| (pin.meta.device, pin.meta.inode) == (now.device, now.inode));
        if !same {
            self.release(path);
            let Some(pin) = make_pin(staging, dir, name, path, &now)? else { return Ok(None) };
            self.by_path.insert(path.clone(), pin);
        }
        Ok(self.by_path.get(path))
    }

    pub(crate) fn get(&self, path: &RelativePath) -> Option<&Pin> {
        self.by_path.get(path)
    }

    /// Lets go of one file.
    pub(crate) fn release(&mut self, path: &RelativePath) {
        if let Some(Pin { located: Located::Path(link), .. }) = self.by_path.remove(path) {
            // What stays behind is removed with the staging directory.
            let _ = std::fs::remove_file(link);
        }
    }

    /// Lets go of all that `live` does not want.
    pub(crate) fn retain(&mut self, mut live: impl FnMut(&RelativePath) -> bool) {
        let dead: Vec<RelativePath> = self.by_path.keys().filter(|path| !live(path)).cloned().collect();
        for path in &dead {
            self.release(path);
        }
    }

    /// Everything pinned, in order of path, to become part of an image.
    pub(crate) fn into_located(self) -> impl Iterator<Item = (RelativePath, Located)> {
        self.by_path.into_iter().map(|(path, pin)| (path, pin.located))
    }
}

fn make_pin(
    staging: &mut Staging,
    dir: &SourceDir,
    name: &OsStr,
    path: &RelativePath,
    now: &FileMeta,
) -> Result<Option<Pin>, CaptureError> {
    let source = dir.path.join(name);
    if now.kind != FileType::RegularFile {
        return Err(CaptureError::Refused { path: source, what: "it is not a regular file".to_owned() });
    }
    let link = staging.place(now.device, &dir.path, path)?;
    // Links are followed: a table that is a symbolic link is pinned as the file it names.
    match linkat(&dir.fd, name, rustix::fs::CWD, &link, AtFlags::SYMLINK_FOLLOW) {
        Ok(()) => {
            let stat = statat(rustix::fs::CWD, &link, AtFlags::SYMLINK_NOFOLLOW);
            let stat = stat.map_err(CaptureError::io("read", &link))?;
            Ok(Some(Pin { meta: FileMeta::from_stat(&stat), located: Located::Path(link) }))
        }
        Err(Errno::NOENT) => Ok(None),
        Err(Errno::PERM | Errno::ACCESS) => {
            let Some(file) = dir.open_file(name)? else { return Ok(None) };
            let meta = FileMeta::of(&file).map_err(CaptureError::io("read", &source))?;
            Ok(Some(Pin { meta, located: Located::Handle(file) }))
        }
        Err(Errno::XDEV | Errno::MLINK | Errno::OPNOTSUPP) => {
            let Some(file) = dir.open_file(name)? else { return Ok(None) };
            let meta = FileMeta::of(&file).map_err(CaptureError::io("read", &source))?;
            crate::image::copy_file(&file, meta.size, &source, &link, &staging.cancel)?;
            Ok(Some(Pin { meta, located: Located::Path(link) }))
        }
        Err(error) => Err(CaptureError::from_io("link", &link, error.into())),
    }
}

/// A name in bytes, for names that are made of ASCII.
pub(crate) fn os(name: &str) -> &OsStr {
    OsStr::from_bytes(name.as_bytes())
}
