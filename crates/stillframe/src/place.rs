//! Where the program keeps what belongs to the user and not to a repository.

use std::path::PathBuf;

use crate::failure::{Failure, Kind};

/// The job history: `STILLFRAME_STATE_DIR`, else the XDG state directory of the user, else (root without a home) below
/// `/var/lib`.
pub fn state_dir() -> Result<PathBuf, Failure> {
    let path = directory("STILLFRAME_STATE_DIR", "XDG_STATE_HOME", ".local/state", "/var/lib/stillframe");
    std::fs::create_dir_all(&path).map_err(|error| {
        let place = path.display();
        Failure::new(
            Kind::Permission,
            format!("cannot make {place}: {error}; set STILLFRAME_STATE_DIR to another place"),
        )
    })?;
    Ok(path)
}

/// The index cache, safe to delete at any time, and not needed where it cannot be made: `STILLFRAME_CACHE_DIR`, else the XDG cache directory of the user, else below
/// `/var/cache`.
pub fn cache_dir() -> PathBuf {
    directory("STILLFRAME_CACHE_DIR", "XDG_CACHE_HOME", ".cache", "/var/cache/stillframe")
}

fn directory(own: &str, xdg: &str, in_home: &str, without_home: &str) -> PathBuf {
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    set(own)
        .or_else(|| set(xdg).map(|base| base.join("stillframe")))
        .or_else(|| set("HOME").map(|home| home.join(in_home).join("stillframe")))
        .unwrap_or_else(|| PathBuf::from(without_home))
}
