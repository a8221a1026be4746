//! Where the program keeps what belongs to the user and not to a repository.

use std::path::PathBuf;

use stillframe_repo::LocalDirs;
use stillframe_storage::make_private_dirs;

use crate::failure::{Failure, kind_of};

/// What this machine is called.
pub fn host() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

/// The job history, and what is noted of repositories: `STILLFRAME_STATE_DIR`, else the XDG state directory of the user, else (root
/// without a home) below `/var/lib`.
pub fn state_dir() -> Result<PathBuf, Failure> {
    let path = state_path();
    // What was backed up, from where and to where, is its owner's affair.
    make_private_dirs(&path).map_err(|error| {
        let place = path.display();
        Failure::new(
            kind_of(&error),
            format!("cannot make {place}: {error}; set STILLFRAME_STATE_DIR to another place"),
        )
    })?;
    Ok(path)
}

/// The same, whether or not it can be made: what is noted there is not what the work needs to be right.
fn state_path() -> PathBuf {
    directory("STILLFRAME_STATE_DIR", "XDG_STATE_HOME", ".local/state", "/var/lib/stillframe")
}

/// Where what belongs to repositories is kept.
pub fn local_dirs() -> LocalDirs {
    LocalDirs { cache: cache_dir(), state: state_path().join("repositories") }
}

/// The index cache, safe to delete at any time, and not needed where it cannot be made: `STILLFRAME_CACHE_DIR`, else the XDG cache
/// directory of the user, else below `/var/cache`.
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
