//! The description of an image: `snapshot.json`.

use std::path::{Path, PathBuf};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use stillframe_storage::{Attributes, RelativePath};

use crate::{CaptureError, Engine};

/// The name under which a kept image carries its description.
pub const SNAPSHOT_FILE: &str = "snapshot.json";

/// The version of this description that is written. Readers refuse a higher one.
pub const SNAPSHOT_VERSION: u32 = 1;

/// What an image is and how it came to be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    /// [`SNAPSHOT_VERSION`].
    pub version: u32,
    /// Whose files they are.
    pub engine: Engine,
    /// Version of the profile that took it.
    pub profile: u32,
    /// What the source says of the engine's own version, where it says anything.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub engine_version: Option<String>,
    /// The source as a path of the machine it was taken on.
    #[serde(with = "stillframe_storage::path_text")]
    pub source: PathBuf,
    /// Wall-clock time inside the window.
    pub instant: Timestamp,
    /// From the first read of the pointers to the last of the accepted attempt, in microseconds. For SQLite the time
    /// that the read transaction lived.
    pub window_us: u64,
    /// Attempts, the accepted one included.
    pub attempts: u32,
    /// Equal for two captures of the same directory of the same machine only; see [`SnapshotFile::identity`]. Absent
    /// where nothing can be proven.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lineage: Option<String>,
    /// Attributes of the source's main directory (of the one that holds it, where the source is a file), and of those below it that are
    /// not among the files.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub directory: Option<Attributes>,
    /// Directories other than the main one from which files came.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub directories: Vec<NamedDirectory>,
    /// What was read as the pointers of the accepted attempt.
    pub pointers: Vec<Pointer>,
    /// Settings and states of the source that make the guarantee weaker than "everything acknowledged is in".
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub weakening: Vec<Weakening>,
    /// Everything in the image but this description, in order of path.
    pub files: Vec<SnapshotFile>,
}

impl Snapshot {
    /// The description of the image in `dir`; `None` where there is none.
    pub fn read(dir: &Path) -> Result<Option<Self>, CaptureError> {
        let path = dir.join(SNAPSHOT_FILE);
        if std::fs::metadata(&path).is_ok_and(|meta| !meta.is_file()) {
            return Err(CaptureError::Corrupt { path, what: "it is not a regular file".to_owned() });
        }
        let json = match std::fs::read(&path) {
            Ok(json) => json,
            Err(error)
                if matches!(
                    error.kind(),
                    std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory
                ) =>
            {
                return Ok(None);
            }
            Err(error) => return Err(CaptureError::from_io("read", &path, error)),
        };
        Self::from_json(&json, &path).map(Some)
    }

    /// Reads a description; `path` is what errors call it.
    pub fn from_json(json: &[u8], path: &Path) -> Result<Self, CaptureError> {
        #[derive(Deserialize)]
        struct Head {
            version: u32,
        }
        let malformed = |error: serde_json::Error| CaptureError::Corrupt {
            path: path.to_owned(),
            what: format!("it does not describe an image: {error}"),
        };
        let Head { version } = serde_json::from_slice(json).map_err(malformed)?;
        if !(1..=SNAPSHOT_VERSION).contains(&version) {
            let what = format!(
                "it is of version {version}, and this program reads 1 to {SNAPSHOT_VERSION}; use the one that wrote it"
            );
            return Err(CaptureError::UnknownFormat { path: path.to_owned(), what });
        }
        serde_json::from_slice(json).map_err(malformed)
    }

    /// The description without its `files`: where those are listed elsewhere.
    #[must_use]
    pub fn without_files(&self) -> Self {
        Self {
            version: self.version,
            engine: self.engine,
            profile: self.profile,
            engine_version: self.engine_version.clone(),
            source: self.source.clone(),
            instant: self.instant,
            window_us: self.window_us,
            attempts: self.attempts,
            lineage: self.lineage.clone(),
            directory: self.directory,
            directories: self.directories.clone(),
            pointers: self.pointers.clone(),
            weakening: self.weakening.clone(),
            files: Vec::new(),
        }
    }
}

/// A directory outside the source's main one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NamedDirectory {
    /// `wal_dir`, `db_path-1`, `cf_path-NAME-0`, …
    pub name: String,
    /// Where it was.
    #[serde(with = "stillframe_storage::path_text")]
    pub original: PathBuf,
    /// The engine's option that must name the directory after a restore, and how.
    pub option: String,
}

/// One pointer as it stood in the window.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pointer {
    /// The file.
    pub path: String,
    /// Its bytes, or what of it matters, as text for people.
    pub value: String,
}

/// Something that weakens the guarantee.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Weakening {
    /// The option or state.
    pub setting: String,
    /// What it means for this image, in one sentence.
    pub effect: String,
}

/// What a file is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Written once: sorted tables.
    Table,
    /// Written once: large values.
    Blob,
    /// Append-only.
    Log,
    /// Says which of the others are live.
    Pointer,
    /// A whole database in one file.
    Database,
    /// Anything else.
    Other,
}

impl Role {
    /// As in `snapshot.json`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Table => "table",
            Self::Blob => "blob",
            Self::Log => "log",
            Self::Pointer => "pointer",
            Self::Database => "database",
            Self::Other => "other",
        }
    }
}

/// What stands at a path.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum FileKind {
    /// A regular file.
    File,
    /// A directory, recorded where it is empty or its mode or owner matters.
    Directory,
    /// A symbolic link; the target is data and is never followed.
    Symlink {
        /// Where it points.
        #[serde(with = "stillframe_storage::path_text")]
        target: PathBuf,
    },
}

/// One file of an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotFile {
    /// Where it is in the image.
    pub path: RelativePath,
    /// What stands there.
    #[serde(flatten)]
    pub kind: FileKind,
    /// What it is for.
    pub role: Role,
    /// Name of the [`NamedDirectory`] it came from; empty for the main one.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub directory: String,
    /// Bytes.
    pub size: u64,
    /// Permission bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Last modification.
    pub modified: Timestamp,
    /// Two files of the same lineage and path with equal identity and size have equal content.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub identity: Option<String>,
}

impl SnapshotFile {
    /// What it had besides its name and bytes.
    pub fn attributes(&self) -> Attributes {
        Attributes { mode: self.mode, uid: self.uid, gid: self.gid, modified: self.modified }
    }
}
