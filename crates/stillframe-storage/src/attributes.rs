//! What a file or directory has besides its name and bytes.

use std::fs::{File, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use jiff::Timestamp;
use rustix::fs::{AtFlags, CWD, Gid, Timespec, Timestamps, Uid, futimens, utimensat};
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

impl Attributes {
    /// Gives them to an open file or directory. The owner only as root: nobody else may give files away.
    pub fn apply(&self, file: &File) -> io::Result<()> {
        if rustix::process::geteuid().is_root() {
            rustix::fs::fchown(file, Some(Uid::from_raw(self.uid)), Some(Gid::from_raw(self.gid)))?;
        }
        // After the owner, because changing that takes the set-user-id bits away.
        file.set_permissions(Permissions::from_mode(self.mode))?;
        Ok(futimens(file, &self.timestamps())?)
    }
    /// Gives owner (as root) and time to a symbolic link itself; its mode means nothing.
    pub fn apply_to_link(&self, link: &Path) -> io::Result<()> {
        if rustix::process::geteuid().is_root() {
            let (owner, group) = (Some(Uid::from_raw(self.uid)), Some(Gid::from_raw(self.gid)));
            rustix::fs::chownat(CWD, link, owner, group, AtFlags::SYMLINK_NOFOLLOW)?;
        }
        Ok(utimensat(CWD, link, &self.timestamps(), AtFlags::SYMLINK_NOFOLLOW)?)
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
            Attributes { mode: 0o604, uid: meta.uid(), gid: meta.gid(), modified }.apply(&file).unwrap();
            let meta = file.metadata().unwrap();
            assert_eq!(i128::from(meta.mtime()) * 1_000_000_000 + i128::from(meta.mtime_nsec()), nanoseconds);
            assert_eq!(meta.mode() & 0o7777, 0o604);
        }
    }
}
