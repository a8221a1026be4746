//! From a URL to an object store.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use object_store::ObjectStore;

use crate::directory_store::DirectoryStore;

/// Where a repository is: `/path`, `relative/path`, `file:///path` or `memory://`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Location {
    /// A directory of this machine.
    Directory(PathBuf),
    /// Lives and dies with the process: for tests.
    Memory,
}

/// Why a place cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum LocationError {
    /// The scheme is not one that this version can use. Fix the URL.
    #[error(
        "cannot use {scheme}: as a repository: this version stores backups in a directory (/path or file:///path; ./{scheme}:… for a \
         directory of that name)"
    )]
    UnknownScheme {
        /// What stood before `://`.
        scheme: String,
    },
    /// The URL names nothing. Fix it.
    #[error("{url:?} is not a place for a repository: {reason}")]
    Malformed {
        /// As given.
        url: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The directory does not exist.
    #[error("{path}: no such directory")]
    Missing {
        /// The directory.
        path: PathBuf,
    },
    /// The directory is there but cannot be used.
    #[error("{path}: {source}")]
    Unusable {
        /// The directory.
        path: PathBuf,
        /// What the file system said.
        source: std::io::Error,
    },
}

impl FromStr for Location {
    type Err = LocationError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let malformed = |reason| LocationError::Malformed { url: text.to_owned(), reason };
        if text.is_empty() {
            return Err(malformed("it is empty"));
        }
        if text.contains('\0') {
            return Err(malformed("it contains NUL"));
        }
        match text.split_once("://") {
            // As other tools write places that are no directories: `s3:bucket`, `sftp:user@host:/path`.
            None => match text.split_once(':') {
                Some((scheme, _)) if is_scheme(scheme) => {
                    Err(LocationError::UnknownScheme { scheme: scheme.to_owned() })
                }
                _ => Ok(Self::Directory(PathBuf::from(text))),
            },
            Some(("file", path)) if path.starts_with('/') => Ok(Self::Directory(PathBuf::from(path))),
            Some(("file", _)) => Err(malformed("a file URL has three slashes: file:///path")),
            Some(("memory", "")) => Ok(Self::Memory),
            Some((scheme, _)) => Err(LocationError::UnknownScheme { scheme: scheme.to_owned() }),
        }
    }
}

fn is_scheme(text: &str) -> bool {
    let rest = |c: char| c.is_ascii_alphanumeric() || matches!(c, '+' | '-' | '.');
    text.starts_with(|c: char| c.is_ascii_alphabetic()) && text.chars().all(rest)
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Directory(path) => path.display().fmt(f),
            Self::Memory => f.write_str("memory://"),
        }
    }
}

/// Opens the store at `location`. Every object that is put there is durable when the put returns.
///
/// A directory must exist; the store creates directories below it as needed.
pub fn open(location: &Location) -> Result<Arc<dyn ObjectStore>, LocationError> {
    match location {
        Location::Memory => Ok(Arc::new(object_store::memory::InMemory::new())),
        Location::Directory(path) => Ok(Arc::new(open_directory(path)?)),
    }
}

fn open_directory(path: &Path) -> Result<DirectoryStore, LocationError> {
    let unusable = |source| LocationError::Unusable { path: path.to_owned(), source };
    match std::fs::metadata(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return Err(LocationError::Missing { path: path.to_owned() });
        }
        Err(error) => return Err(unusable(error)),
        Ok(meta) if !meta.is_dir() => return Err(unusable(std::io::ErrorKind::NotADirectory.into())),
        Ok(_) => {}
    }
    DirectoryStore::open(path).map_err(unusable)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_understood_or_refused_with_a_reason() {
        assert_eq!("/a b".parse::<Location>().unwrap(), Location::Directory("/a b".into()));
        assert_eq!("file:///x".parse::<Location>().unwrap(), Location::Directory("/x".into()));
        let refused = "s3://bucket/x".parse::<Location>().unwrap_err().to_string();
        assert!(refused.contains("s3:"), "{refused}");
        for elsewhere in ["s3:bucket/x", "sftp:user@host:/srv/b", "b2:bucket:x", "rclone:remote:x"] {
            assert!(elsewhere.parse::<Location>().is_err(), "{elsewhere}");
        }
        for here in ["./s3:bucket", "/srv/a:b", "a b:c"] {
            assert_eq!(here.parse::<Location>().unwrap(), Location::Directory(here.into()));
        }
        assert!("".parse::<Location>().is_err());
        assert!("file://host/x".parse::<Location>().is_err());
    }

    #[test]
    fn a_directory_that_is_not_there_is_named() {
        let error = open(&Location::Directory("/nonexistent/sf".into())).unwrap_err();
        assert!(matches!(error, LocationError::Missing { .. }));
        assert!(error.to_string().contains("/nonexistent/sf"));
    }
}
