//! Where the program keeps what belongs to the user and not to a repository.

use std::path::PathBuf;

use crate::failure::{Failure, Kind};

/// The job history: `STILLFRAME_STATE_DIR`, else the XDG state directory of the user, else (root without a home) below
/// `/var/lib`.
pub fn state_dir() -> Result<PathBuf, Failure> {
    directory("STILLFRAME_STATE_DIR", "XDG_STATE_HOME", ".local/state", "/var/lib/stillframe")
}

/// The index cache, safe to delete at any time: `STILLFRAME_CACHE_DIR`, else the XDG cache directory of the user, else below
/// `/var/cache`.
pub fn cache_dir() -> Result<PathBuf, Failure> {
    directory("STILLFRAME_CACHE_DIR", "XDG_CACHE_HOME", ".cache", "/var/cache/stillframe")
}

fn directory(own: &str, xdg: &str, in_home: &str, without_home: &str) -> Result<PathBuf, Failure> {
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let path = set(own)
        .or_else(|| set(xdg).map(|base| base.join("stillframe")))
        .or_else(|| set("HOME").map(|home| home.join(in_home).join("stillframe")))
        .unwrap_or_else(|| PathBuf::from(without_home));
    std::fs::create_dir_all(&path).map_err(|error| {
        Failure::new(
            Kind::Permission,
            format!("cannot make {}: {error}; set {own} to another place", path.display()),
        )
    })?;
    Ok(path)
}
