//! From an accepted attempt to an image.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use stillframe_storage::{RelativePath, failpoint};

use crate::image::ImageBuilder;
use crate::pin::{FileMeta, SourceDir, os};
use crate::snapshot::{FileKind, Pointer, Role, SNAPSHOT_VERSION, Snapshot, SnapshotFile, Weakening};
use crate::window::Still;
use crate::{CaptureError, Context, Engine, Image};

use super::attempt::{Accepted, Attempts};
use super::journals::{Journal, judge_sealed};
use super::meta::{Keyspace, MetaCopy};
use super::tree::{Kind, Tree, relative};
use super::{FORMAT, MARKER, PROFILE};

/// Copies what is left to copy, writes the pointers as they were read, drops the pins that are not live and checks what
/// the engine would not.
pub(super) fn seal(
    attempts: Attempts,
    still: Still<Accepted>,
    context: &Context<'_>,
) -> Result<Image, CaptureError> {
    let keyspaces_meta = attempts.keyspaces_meta()?;
    let Attempts { root, mut builder, mut trees, journals, .. } = attempts;
    let Accepted { pointers, journals: listed, window } = still.value;
    trees.retain(|id, _| pointers.by_keyspace.contains_key(id));

    let mut files = vec![entry(&relative("keyspaces"), FileKind::Directory, Role::Other, 0, &keyspaces_meta)];
    for tree in trees.values() {
        context.check_cancelled()?;
        add_tree(&mut builder, tree, &mut files)?;
    }
    let live: std::collections::BTreeSet<&RelativePath> = files.iter().map(|file| &file.path).collect();
    builder.pins.retain(|path| live.contains(path));
    failpoint("fjall::trees-written");

    let end = listed.end;
    let mut journals = journals.into_listed(&listed);
    let newest = journals.pop();
    for (_, journal) in journals {
        context.check_cancelled()?;
        files.push(add_sealed(&mut builder, journal)?);
    }
    if let Some((_, journal)) = newest {
        files.push(add_newest(&mut builder, journal, end)?);
    }
    failpoint("fjall::journals-written");

    let lineage = add_constants(&mut builder, &root, &mut files)?;
    let keyspaces = read_meta(&builder, &trees, root.path())?;
    for (id, keyspace) in &keyspaces {
        if !trees.contains_key(id) {
            return Err(CaptureError::Corrupt {
                path: super::pointers::folder(root.path(), *id),
                what: format!(
                    "the keyspace {:?} should be there and is not; the engine opens the database without it",
                    keyspace.name
                ),
            });
        }
    }
    let weakening = weakening(keyspaces.values());
    let snapshot = Snapshot {
        version: SNAPSHOT_VERSION,
        engine: Engine::Fjall,
        profile: PROFILE,
        engine_version: trees.values().next().map(|tree| format!("lsm-tree {}", tree.version.crate_version)),
        source: std::path::absolute(root.path()).unwrap_or_else(|_| root.path().to_owned()),
        instant: still.instant,
        window_us: u64::try_from(window.as_micros()).unwrap_or(u64::MAX),
        attempts: still.attempts,
        lineage: Some(lineage),
        directory: None,
        directories: Vec::new(),
        pointers: trees.values().map(describe).collect(),
        weakening,
        files,
    };
    Ok(builder.finish(snapshot))
}

fn describe(tree: &Tree) -> Pointer {
    let current = &tree.pointer.current;
    Pointer {
        path: format!("keyspaces/{}/current", tree.id),
        value: format!("version {}, xxh3 {:032x}", current.version, current.checksum),
    }
}

/// Pointer and version file as they were read, and the entries of everything that the tree needs.
fn add_tree(
    builder: &mut ImageBuilder,
    tree: &Tree,
    files: &mut Vec<SnapshotFile>,
) -> Result<(), CaptureError> {
    for (path, meta) in &tree.directories {
        files.push(entry(path, FileKind::Directory, Role::Other, 0, meta));
    }
    let current = relative(&format!("keyspaces/{}/current", tree.id));
    let bytes = &tree.pointer.current.bytes;
    builder.write(&current, bytes, &tree.pointer.meta)?;
    files.push(entry(&current, FileKind::File, Role::Pointer, bytes.len() as u64, &tree.pointer.meta));

    let version = relative(&format!("keyspaces/{}/{}", tree.id, tree.pointer.current.version_file()));
    builder.write(&version, &tree.version_bytes, &tree.version_meta)?;
    let size = tree.version_bytes.len() as u64;
    files.push(entry(&version, FileKind::File, Role::Pointer, size, &tree.version_meta));

    for named in tree.files() {
        let pin = builder.pins.get(&named.path);
        let meta = pin.expect("an accepted attempt has pinned everything that its trees name").meta;
        let role = match named.kind {
            Kind::Table => Role::Table,
            Kind::Blob => Role::Blob,
        };
        let identity = Some(named.identity(tree.id, meta.size));
        files.push(SnapshotFile { identity, ..entry(&named.path, FileKind::File, role, meta.size, &meta) });
    }
    Ok(())
}

/// Nothing is appended to a sealed journal any more, so its end is found and its bytes are copied after the window. It is
/// held open, so it stays readable when the engine deletes it.
fn add_sealed(builder: &mut ImageBuilder, journal: Journal) -> Result<SnapshotFile, CaptureError> {
    let Journal { name, path, file, meta, copy, .. } = journal;
    drop(copy);
    let judged = judge_sealed(&file, &path, &builder.staging.cancel)?;
    let sound = judged.map_err(|what| CaptureError::Corrupt { path: path.clone(), what })?;
    let place = relative(&name.to_string_lossy());
    if !builder.copy(&place, &file, &path, sound.end, &meta)? {
        return Err(CaptureError::Corrupt {
            path,
            what: format!("it was cut below its last batch, which ends at {}", sound.end),
        });
    }
    Ok(entry(&place, FileKind::File, Role::Log, sound.end, &meta))
}

/// The copy was made inside the window.
fn add_newest(builder: &mut ImageBuilder, journal: Journal, end: u64) -> Result<SnapshotFile, CaptureError> {
    let Journal { name, meta, copy, .. } = journal;
    let copy = copy.expect("an accepted attempt has copied the newest journal");
    let path = relative(&name.to_string_lossy());
    let place = builder.make_place(&path)?;
    std::fs::rename(&copy.path, &place).map_err(CaptureError::io("move", &place))?;
    let file = std::fs::File::open(&place).map_err(CaptureError::io("open", &place))?;
    let size = file.metadata().map_err(CaptureError::io("read", &place))?.len();
    debug_assert!(size <= end, "nothing is copied behind the noted end");
    crate::image::set_attributes(&file, &place, &meta)?;
    Ok(entry(&path, FileKind::File, Role::Log, size, &meta))
}

/// The marker, and the lock file, which must exist for the engine to open the image. Returns the lineage.
fn add_constants(
    builder: &mut ImageBuilder,
    root: &SourceDir,
    files: &mut Vec<SnapshotFile>,
) -> Result<String, CaptureError> {
    let gone = || CaptureError::Vanished { path: root.path().join("version") };
    let meta = root.stat(os("version"))?.ok_or_else(gone)?;
    let marker = [MARKER[0], MARKER[1], MARKER[2], FORMAT];
    for (name, bytes, meta) in
        [("version", &marker[..], meta), ("lock", &[], root.stat(os("lock"))?.unwrap_or(meta))]
    {
        let path = relative(name);
        builder.write(&path, bytes, &meta)?;
        files.push(entry(&path, FileKind::File, Role::Other, bytes.len() as u64, &meta));
    }
    let canonical = std::fs::canonicalize(root.path()).map_err(CaptureError::io("open", root.path()))?;
    let stat = std::fs::metadata(&canonical).map_err(CaptureError::io("open", &canonical))?;
    Ok(format!("fjall:{}:{}:{}:{}", stat.dev(), stat.ino(), meta.inode, canonical.display()))
}

/// Reads names and options in a throw-away copy.
fn read_meta(
    builder: &ImageBuilder,
    trees: &std::collections::BTreeMap<u64, Tree>,
    root: &Path,
) -> Result<std::collections::BTreeMap<u64, Keyspace>, CaptureError> {
    let folder = super::pointers::folder(root, 0);
    let Some(tree) = trees.get(&0) else {
        return Err(CaptureError::Corrupt {
            path: folder,
            what: "the meta keyspace is not there".to_owned(),
        });
    };
    let scratch = builder.staging.scratch_dir("meta")?;
    let copy = MetaCopy::create(scratch.clone(), &tree.pointer.current, &tree.version_bytes)?;
    for table in &tree.version.tables {
        let name = relative(&format!("keyspaces/0/tables/{}", table.id));
        let path = name.below(root);
        let pin = builder.pins.get(&name).expect("an accepted attempt has pinned the meta keyspace's tables");
        let file = pin.located.open().map_err(CaptureError::io("open", &path))?;
        copy.add_table(table, &file, &path, &builder.staging.cancel)?;
    }
    let keyspaces = copy.read(&folder)?;
    // What stays behind is removed with the staging directory.
    let _ = std::fs::remove_dir_all(scratch);
    Ok(keyspaces)
}

fn weakening<'a>(keyspaces: impl Iterator<Item = &'a Keyspace>) -> Vec<Weakening> {
    // That of the database builder is in no file: the README says what it means.
    let mut weakening = Vec::new();
    for keyspace in keyspaces.filter(|keyspace| keyspace.manual_journal_persist) {
        let effect = format!(
            "Single inserts into the keyspace {:?} that the program has not persisted are not in this image.",
            keyspace.name
        );
        let setting = format!("manual_journal_persist of the keyspace {:?}", keyspace.name);
        weakening.push(Weakening { setting, effect });
    }
    weakening
}

fn entry(path: &RelativePath, kind: FileKind, role: Role, size: u64, meta: &FileMeta) -> SnapshotFile {
    SnapshotFile {
        path: path.clone(),
        kind,
        role,
        directory: String::new(),
        size,
        mode: meta.mode,
        uid: meta.uid,
        gid: meta.gid,
        modified: meta.modified,
        identity: None,
    }
}
