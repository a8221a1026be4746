//! The process that has a database open: who it is, and which files it has open.

use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::file_name::FileName;

/// The process that holds the lock of a database, as far as this process may see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Owner {
    pub(crate) pid: u32,
    /// Its working directory: what relative paths in OPTIONS and LOG mean.
    pub(crate) working_dir: Option<PathBuf>,
}

/// A numbered file that the owner has open. Owners may have several databases open.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct OpenFile {
    pub(crate) name: FileName,
    /// The directory, in the owner's view of the file system.
    pub(crate) dir: PathBuf,
    pub(crate) device: u64,
    pub(crate) inode: u64,
}

/// The owner of the `fcntl` lock on `dir/LOCK`. `None`: nobody has it open for writing, or it cannot be seen from here.
/// LOCK itself is never opened: closing it would not harm the owner, but there is no need to find out.
pub(crate) fn owner_of(dir: &Path) -> Option<Owner> {
    let lock = std::fs::metadata(dir.join("LOCK")).ok()?;
    let locks = std::fs::read_to_string("/proc/locks").ok()?;
    let pid = holder(&locks, lock.dev(), lock.ino())?;
    let working_dir = std::fs::read_link(format!("/proc/{pid}/cwd")).ok();
    Some(Owner { pid, working_dir })
}

/// The process that holds a POSIX write lock on a file, by the text of `/proc/locks`.
fn holder(locks: &str, device: u64, inode: u64) -> Option<u32> {
    let device = format!("{:02x}:{:02x}:{inode}", rustix::fs::major(device), rustix::fs::minor(device));
    locks.lines().find_map(|line| {
        let mut words = line.split_ascii_whitespace().skip(1);
        // "->" marks one that waits for the lock.
        let is_lock =
            words.next() == Some("POSIX") && words.next().is_some() && words.next() == Some("WRITE");
        let pid = words.next().filter(|_| is_lock)?;
        // 0 or -1: a process of another pid namespace.
        let pid = pid.parse().ok().filter(|&pid| pid != 0)?;
        (words.next() == Some(device.as_str())).then_some(pid)
    })
}

impl Owner {
    /// Tables, blob files and logs that it has open. `None`: this process may not look (another user's).
    pub(crate) fn open_files(&self) -> Option<Vec<OpenFile>> {
        let fds = format!("/proc/{}/fd", self.pid);
        let mut files = Vec::new();
        for entry in std::fs::read_dir(&fds).ok()? {
            let Ok(entry) = entry else { continue };
            let Ok(target) = std::fs::read_link(entry.path()) else { continue };
            let Some(name) = target.file_name().and_then(|name| FileName::parse(name.as_bytes())) else {
                continue;
            };
            let (Some(dir), Ok(meta)) = (target.parent(), std::fs::metadata(entry.path())) else { continue };
            files.push(OpenFile { name, dir: dir.to_owned(), device: meta.dev(), inode: meta.ino() });
        }
        Some(files)
    }

    /// What a path of its settings means here.
    pub(crate) fn resolve(&self, path: &Path) -> PathBuf {
        match &self.working_dir {
            Some(dir) => dir.join(path),
            None => path.to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;

    #[test]
    fn the_writer_that_holds_the_lock_is_found_and_others_are_not() {
        let device = rustix::fs::makedev(0xfe, 0x01);
        let locks = "1: POSIX  ADVISORY  READ  11 fe:01:77 0 EOF\n\
2: FLOCK  ADVISORY  WRITE 12 fe:01:77 0 EOF\n\
3: POSIX  ADVISORY  WRITE 13 fe:01:78 0 EOF\n\
4: -> POSIX  ADVISORY  WRITE 14 fe:01:77 0 EOF\n\
5: POSIX  ADVISORY  WRITE 0 fe:01:77 0 EOF\n\
6: POSIX  ADVISORY  WRITE 15 fe:01:77 0 EOF\n";
        assert_eq!(holder(locks, device, 77), Some(15));
        assert_eq!(holder(locks, device, 79), None);
        assert_eq!(holder("", device, 77), None);
        assert_eq!(holder("garbage\n1:\n1: POSIX\n", device, 77), None);
    }

    #[test]
    fn open_tables_and_logs_of_a_process_are_seen() {
        let dir = tempfile::tempdir().unwrap();
        let dir = std::fs::canonicalize(dir.path()).unwrap();
        let _table = File::create(dir.join("000012.sst")).unwrap();
        let _log = File::create(dir.join("000013.log")).unwrap();
        let _other = File::create(dir.join("other")).unwrap();
        let me = Owner { pid: std::process::id(), working_dir: None };
        let mut names: Vec<FileName> = me
            .open_files()
            .unwrap()
            .into_iter()
            .filter(|file| file.dir == dir)
            .map(|file| file.name)
            .collect();
        names.sort_by_key(|name| matches!(name, FileName::Log(_)));
        assert_eq!(names, [FileName::Table(12), FileName::Log(13)]);
    }

    #[test]
    fn a_directory_that_nobody_has_open_has_no_owner() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(owner_of(dir.path()), None);
        std::fs::write(dir.path().join("LOCK"), "").unwrap();
        assert_eq!(owner_of(dir.path()), None);
    }
}
