//! File names from outside, checked before they reach the file system.

use std::ffi::OsStr;
use std::fmt;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::path_text::{escape, unescape};

/// A path below some directory: one or more names joined by `/`; never absolute, never empty, no `.` or `..`, no NUL,
/// each name at most 255 bytes, 4096 in all. Joining it to a directory stays inside that directory as long as no
/// symbolic link stands in the way.
///
/// Names are bytes, as on Unix. As text (JSON, messages) it is as [`path_text`](crate::path_text()) writes it; [`FromStr`] reads that
/// form back.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct RelativePath(Box<[u8]>);

/// Why a name was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unsafe path {path:?}: {reason}")]
pub struct RelativePathError {
    path: String,
    reason: &'static str,
}

impl RelativePath {
    /// Checks raw bytes.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, RelativePathError> {
        match fault(bytes) {
            None => Ok(Self(bytes.into())),
            Some(reason) => Err(RelativePathError { path: escape(bytes), reason }),
        }
    }

    /// Checks a path of the file system, taken as it is.
    pub fn from_path(path: &Path) -> Result<Self, RelativePathError> {
        Self::from_bytes(path.as_os_str().as_bytes())
    }

    /// The raw bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// As a path of the file system.
    pub fn as_path(&self) -> &Path {
        Path::new(OsStr::from_bytes(&self.0))
    }

    /// The path below `dir`.
    pub fn below(&self, dir: &Path) -> PathBuf {
        dir.join(self.as_path())
    }

    /// The last name.
    pub fn file_name(&self) -> &[u8] {
        self.0.rsplit(|&b| b == b'/').next().expect("a checked path has at least one name")
    }
}

fn fault(bytes: &[u8]) -> Option<&'static str> {
    if bytes.is_empty() {
        return Some("it is empty");
    }
    if bytes.len() > 4096 {
        return Some("it is longer than 4096 bytes");
    }
    if bytes[0] == b'/' {
        return Some("it is absolute");
    }
    if bytes.contains(&0) {
        return Some("it contains NUL");
    }
    bytes.split(|&b| b == b'/').find_map(|name| match name {
        b"" => Some("it has an empty part"),
        b"." | b".." => Some("it has a part `.` or `..`"),
        _ if name.len() > 255 => Some("a part is longer than 255 bytes"),
        _ => None,
    })
}

impl FromStr for RelativePath {
    type Err = RelativePathError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bytes = unescape(text).ok_or_else(|| RelativePathError {
            path: text.to_owned(),
            reason: "a backslash is not followed by xNN",
        })?;
        Self::from_bytes(&bytes)
    }
}

impl TryFrom<String> for RelativePath {
    type Error = RelativePathError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<RelativePath> for String {
    fn from(path: RelativePath) -> Self {
        path.to_string()
    }
}

impl fmt::Display for RelativePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&escape(&self.0))
    }
}

impl fmt::Debug for RelativePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn hostile_names_are_refused() {
        let long_name = "a".repeat(256);
        let long_path = "a/".repeat(2100) + "a";
        for bad in
            ["", "/", "/etc", "..", "a/../b", "a//b", "a/", ".", "a/.", "nul\0", &long_name, &long_path]
        {
            assert!(RelativePath::from_bytes(bad.as_bytes()).is_err(), "{bad:?}");
        }
        assert!("..\\x2fetc".parse::<RelativePath>().is_err(), "an escaped slash is a slash");
        assert!("\\q".parse::<RelativePath>().is_err());
    }

    proptest! {
        #[test]
        fn text_form_reads_back(bytes in proptest::collection::vec(any::<u8>(), 0..40)) {
            if let Ok(path) = RelativePath::from_bytes(&bytes) {
                prop_assert_eq!(path.to_string().parse::<RelativePath>().unwrap(), path.clone());
                prop_assert!(path.below(Path::new("/base")).starts_with("/base"));
            }
        }
    }
}
