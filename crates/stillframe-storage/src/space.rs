//! How much room a file system has.

use std::io;
use std::path::Path;

/// Sizes of one file system, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DiskSpace {
    /// Whole size.
    pub total: u64,
    /// What an unprivileged process may still use.
    pub available: u64,
}

/// Asks the file system that holds `path` (which must exist).
pub fn disk_space(path: &Path) -> io::Result<DiskSpace> {
    let stat = rustix::fs::statvfs(path)?;
    Ok(DiskSpace { total: stat.f_blocks * stat.f_frsize, available: stat.f_bavail * stat.f_frsize })
}
