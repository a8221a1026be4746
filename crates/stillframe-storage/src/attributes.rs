//! What a file or directory has besides its name and bytes.

use std::fs::{File, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use jiff::Timestamp;
use rustix::fs::{AtFlags, CWD, Gid, Timespec, Timestamps, Uid, futimens, utimensat};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

/// Mode, owner and time of modification.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attributes {
    /// Permission bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Last modification.
    pub modified: Timestamp,
}

/// Whether a file got its owner.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum Owner {
    /// It has it.
    Given,
    /// Only root may give files away.
    NotRoot,
    /// Root is none here: its user namespace does not know the owner, or the file system has no owners or lets nobody give files away.
    Refused,
}

impl Owner {
    fn give(change: impl FnOnce() -> Result<(), Errno>) -> io::Result<Self> {
        if !rustix::process::geteuid().is_root() {
            return Ok(Self::NotRoot);
        }
        match change() {
            Ok(()) => Ok(Self::Given),
            Err(Errno::PERM | Errno::INVAL | Errno::NOTSUP) => Ok(Self::Refused),
            Err(error) => Err(error.into()),
        }
    }
}

/// Nobody else's file may act in the name of whoever restored it.
const SET_IDS: u32 = 0o6000;

impl Attributes {
    /// Gives them to an open file or directory.
    pub fn apply(&self, file: &File) -> io::Result<Owner> {
        let (uid, gid) = (Some(Uid::from_raw(self.uid)), Some(Gid::from_raw(self.gid)));
        let owner = Owner::give(|| rustix::fs::fchown(file, uid, gid))?;
        let mode = if owner == Owner::Refused { self.mode & !SET_IDS } else { self.mode };
        // After the owner, because changing that takes the set-user-id bits away.
        file.set_permissions(Permissions::from_mode(mode))?;
        futimens(file, &self.timestamps())?;
        Ok(owner)
    }

    /// Gives owner and time to a symbolic link itself; its mode means nothing.
    pub fn apply_to_link(&self, link: &Path) -> io::Result<Owner> {
        let (uid, gid) = (Some(Uid::from_raw(self.uid)), Some(Gid::from_raw(self.gid)));
        let owner = Owner::give(|| rustix::fs::chownat(CWD, link, uid, gid, AtFlags::SYMLINK_NOFOLLOW))?;
        utimensat(CWD, link, &self.timestamps(), AtFlags::SYMLINK_NOFOLLOW)?;
        Ok(owner)
    }

    fn timestamps(&self) -> Timestamps {
        let (seconds, nanoseconds) = since_1970(self.modified);
        let time = Timespec { tv_sec: seconds, tv_nsec: nanoseconds.into() };
        Timestamps { last_access: time, last_modification: time }
    }
}

/// Whole seconds, rounded down, and the nanoseconds above them: as file systems count, also before 1970.
pub fn since_1970(time: Timestamp) -> (i64, u32) {
    let (seconds, nanoseconds) = (time.as_second(), time.subsec_nanosecond());
    match u32::try_from(nanoseconds) {
        Ok(nanoseconds) => (seconds, nanoseconds),
        Err(_) => (seconds - 1, (1_000_000_000 + nanoseconds).unsigned_abs()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn mode_and_time_are_given_to_the_nanosecond_also_before_1970() {
        let dir = tempfile::tempdir().unwrap();
        let file = File::create(dir.path().join("f")).unwrap();
        let meta = file.metadata().unwrap();
        for nanoseconds in [-1_500_000_000, -1, 0, 1, 1_500_000_001] {
            let modified = Timestamp::from_nanosecond(nanoseconds).unwrap();
            let attributes = Attributes { mode: 0o604, uid: meta.uid(), gid: meta.gid(), modified };
            let owner = attributes.apply(&file).unwrap();
            assert_ne!(owner, Owner::Refused);
            let meta = file.metadata().unwrap();
            assert_eq!(i128::from(meta.mtime()) * 1_000_000_000 + i128::from(meta.mtime_nsec()), nanoseconds);
            assert_eq!(meta.mode() & 0o7777, 0o604);
        }
    }
}
