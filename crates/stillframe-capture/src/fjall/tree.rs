//! One keyspace's tree: its version, and the files that the version needs.

use std::io::Read;

use stillframe_storage::RelativePath;

use crate::CaptureError;
use crate::image::ImageBuilder;
use crate::pin::{FileMeta, SourceDir, os};

use super::pointers::{Pointer, folder};
use super::version_file::{MAX_VERSION_FILE, VersionFile};

/// A tree as one pointer names it, with all of its files pinned.
#[derive(Debug)]
pub(super) struct Tree {
    pub(super) id: u64,
    pub(super) pointer: Pointer,
    pub(super) version: VersionFile,
    /// The version file as read.
    pub(super) version_bytes: Vec<u8>,
    pub(super) version_meta: FileMeta,
    /// The folder and those of its parts that exist, with what stood there.
    pub(super) directories: Vec<(RelativePath, FileMeta)>,
}

/// A file that a version names.
#[derive(Debug, Clone)]
pub(super) struct Named {
    pub(super) path: RelativePath,
    pub(super) checksum: u128,
    pub(super) kind: Kind,
    pub(super) id: u64,
    /// Of an ingested table; else 0.
    pub(super) global_seqno: u64,
}

/// What a version names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Table,
    Blob,
}

/// The pointer moved while the tree was read.
pub(super) struct Moved(pub(super) String);

impl Tree {
    /// Reads the version that `pointer` names.
    pub(super) fn load(
        keyspaces: &SourceDir,
        id: u64,
        pointer: Pointer,
    ) -> Result<Result<Self, Moved>, CaptureError> {
        let name = format!("{id}/{}", pointer.current.version_file());
        let path = keyspaces.path().join(&name);
        let failed = |error| CaptureError::from_io("read", &path, error);
        let Some(file) = keyspaces.open_file(os(&name))? else {
            return missing(keyspaces, id, &pointer, &name).map(Err);
        };
        let version_meta = FileMeta::of(&file).map_err(failed)?;
        let mut version_bytes = Vec::new();
        if version_meta.size <= MAX_VERSION_FILE {
            file.take(MAX_VERSION_FILE).read_to_end(&mut version_bytes).map_err(failed)?;
        }
        let version = match VersionFile::parse(&version_bytes, pointer.current.checksum) {
            Ok(version) => version,
            Err(fault) => match moved(keyspaces, id, &pointer)? {
                Some(moved) => return Ok(Err(moved)),
                None => return Err(fault.of(&path)),
            },
        };
        let mut directories = Vec::new();
        for part in ["", "/tables", "/blobs"] {
            let name = format!("{id}{part}");
            if let Some(meta) = keyspaces.stat(os(&name))? {
                directories.push((relative(&format!("keyspaces/{name}")), meta));
            }
        }
        Ok(Ok(Self { id, pointer, version, version_bytes, version_meta, directories }))
    }

    /// Pins every table and blob file of the version. What is pinned already with the same checksum is not looked at again.
    pub(super) fn pin(
        &self,
        root: &SourceDir,
        keyspaces: &SourceDir,
        builder: &mut ImageBuilder,
        pinned: &mut std::collections::BTreeMap<RelativePath, u128>,
    ) -> Result<Result<(), Moved>, CaptureError> {
        for named in self.files() {
            if pinned.get(&named.path) == Some(&named.checksum) {
                continue;
            }
            // Ids are used again after a restart: the same name with another checksum is another file.
            if pinned.remove(&named.path).is_some() {
                builder.pins.release(&named.path);
            }
            let name = named.path.to_string();
            match builder.pins.pin(&mut builder.staging, root, os(&name), &named.path)? {
                Some(_) => {
                    pinned.insert(named.path, named.checksum);
                }
                None => return missing(keyspaces, self.id, &self.pointer, &name).map(Err),
            }
        }
        Ok(Ok(()))
    }

    /// The tables and blob files of the version.
    pub(super) fn files(&self) -> impl Iterator<Item = Named> + '_ {
        named_files(self.id, &self.version)
    }
}

/// The tables and blob files that a version of keyspace `keyspace` names.
pub(super) fn named_files(keyspace: u64, version: &VersionFile) -> impl Iterator<Item = Named> + '_ {
    let tables = version.tables.iter().map(move |table| Named {
        path: relative(&format!("keyspaces/{keyspace}/tables/{}", table.id)),
        checksum: table.checksum,
        kind: Kind::Table,
        id: table.id,
        global_seqno: table.global_seqno,
    });
    let blobs = version.blobs.iter().map(move |blob| Named {
        path: relative(&format!("keyspaces/{keyspace}/blobs/{}", blob.id)),
        checksum: blob.checksum,
        kind: Kind::Blob,
        id: blob.id,
        global_seqno: 0,
    });
    tables.chain(blobs)
}

impl Named {
    /// Two files of one lineage and path with equal text have equal content: see the engine's checksum.
    pub(super) fn identity(&self, keyspace: u64, size: u64) -> String {
        let kind = match self.kind {
            Kind::Table => "table",
            Kind::Blob => "blob",
        };
        format!(
            "fjall:{keyspace}:{kind}:{}:xxh3-{:032x}:{}:{size}",
            self.id, self.checksum, self.global_seqno
        )
    }
}

/// A path made of our own words and numbers.
pub(super) fn relative(path: &str) -> RelativePath {
    RelativePath::from_bytes(path.as_bytes())
        .expect("words and numbers joined by slashes are a relative path")
}

/// A file that a pointer needs is not there: the pointer moved before it went, or the source is damaged.
fn missing(keyspaces: &SourceDir, id: u64, pointer: &Pointer, name: &str) -> Result<Moved, CaptureError> {
    if let Some(moved) = moved(keyspaces, id, pointer)? {
        return Ok(moved);
    }
    Err(CaptureError::Corrupt {
        path: folder(keyspaces.path().parent().unwrap_or(keyspaces.path()), id).join("current"),
        what: format!("it needs {name}, which does not exist"),
    })
}

fn moved(keyspaces: &SourceDir, id: u64, pointer: &Pointer) -> Result<Option<Moved>, CaptureError> {
    let now = Pointer::read(keyspaces, id)?;
    if now.is_some_and(|now| now.current == pointer.current) {
        return Ok(None);
    }
    Ok(Some(Moved(match now {
        Some(now) => {
            format!("keyspaces/{id}/current (version {} to {})", pointer.current.version, now.current.version)
        }
        None => format!("keyspace {id} went away"),
    })))
}
