//! Checks an image as it lies.

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use stillframe_storage::{StagingDir, sweep_leftovers};
use tokio_util::sync::CancellationToken;

use crate::pin::SourceDir;
use crate::{CaptureError, ValidationReport};

use super::journal::Sound;
use super::journals::{judge, judge_sealed, list, missing_between};
use super::log_end::log_end;
use super::meta::{MetaCopy, copy_hashed, wrong_checksum};
use super::pointers::{Pointer, Pointers, folder};
use super::tree::{Moved, Tree};

/// Checks everything that the engine does not: version files against their pointers, every table and blob file against
/// its version file, every keyspace that the meta keyspace names, and every journal to its end.
pub(crate) fn validate(dir: &Path, cancel: &CancellationToken) -> Result<ValidationReport, CaptureError> {
    super::check_format(dir)?;
    let lock = dir.join("lock");
    if !lock.is_file() {
        return Err(CaptureError::Corrupt {
            path: lock,
            what: "it does not exist, and the engine opens nothing without it".to_owned(),
        });
    }
    let root = SourceDir::open(dir)?;
    let keyspaces = SourceDir::open(&dir.join("keyspaces"))?;
    let mut report = ValidationReport { files: 2, bytes: 4, remarks: Vec::new() };
    let pointers = Pointers::read(&keyspaces)?;
    let mut trees = Vec::new();
    for (&id, pointer) in &pointers.by_keyspace {
        let tree = load(&keyspaces, id, *pointer)?;
        report.files += 2;
        report.bytes += pointer.meta.size + tree.version_meta.size;
        check_files(&root, &tree, &mut report, cancel)?;
        trees.push(tree);
    }
    check_names(dir, &trees, &mut report, cancel)?;
    check_journals(&root, &mut report, cancel)?;
    Ok(report)
}

fn load(keyspaces: &SourceDir, id: u64, pointer: Pointer) -> Result<Tree, CaptureError> {
    Tree::load(keyspaces, id, pointer)?.map_err(|Moved(what)| CaptureError::Corrupt {
        path: folder(keyspaces.path().parent().unwrap_or(keyspaces.path()), id),
        what: format!("it changes while it is checked ({what}); no image does"),
    })
}

fn check_files(
    root: &SourceDir,
    tree: &Tree,
    report: &mut ValidationReport,
    cancel: &CancellationToken,
) -> Result<(), CaptureError> {
    for named in tree.files() {
        let path = named.path.below(root.path());
        let Some(file) = root.open_file(named.path.as_path().as_os_str())? else {
            return Err(CaptureError::Corrupt {
                path,
                what: format!("version {} needs it and it is missing", tree.pointer.current.version),
            });
        };
        let checksum = copy_hashed(&file, &path, None, cancel)?;
        if checksum != named.checksum {
            return Err(wrong_checksum(&path, checksum, named.checksum));
        }
        report.files += 1;
        report.bytes += file.metadata().map_err(CaptureError::io("read", &path))?.len();
    }
    Ok(())
}

fn check_names(
    dir: &Path,
    trees: &[Tree],
    report: &mut ValidationReport,
    cancel: &CancellationToken,
) -> Result<(), CaptureError> {
    let meta_folder = folder(dir, 0);
    let Some(meta) = trees.iter().find(|tree| tree.id == 0) else {
        return Err(CaptureError::Corrupt {
            path: meta_folder,
            what: "the meta keyspace is not there".to_owned(),
        });
    };
    let scratch = scratch()?;
    let copy = MetaCopy::create(scratch.path().to_owned(), &meta.pointer.current, &meta.version_bytes)?;
    for table in &meta.version.tables {
        let path = meta_folder.join("tables").join(table.id.to_string());
        let file = std::fs::File::open(&path).map_err(CaptureError::io("open", &path))?;
        copy.add_table(table, &file, &path, cancel)?;
    }
    let names = copy.read(&meta_folder)?;
    for (id, keyspace) in &names {
        if !trees.iter().any(|tree| tree.id == *id) {
            return Err(CaptureError::Corrupt {
                path: folder(dir, *id),
                what: format!(
                    "the keyspace {:?} should be there and is not; the engine opens the database without it",
                    keyspace.name
                ),
            });
        }
    }
    for tree in trees.iter().filter(|tree| tree.id != 0 && !names.contains_key(&tree.id)) {
        report.remarks.push(format!(
            "keyspaces/{} was being created or deleted; the engine removes it when it opens the image",
            tree.id
        ));
    }
    Ok(())
}

fn check_journals(
    root: &SourceDir,
    report: &mut ValidationReport,
    cancel: &CancellationToken,
) -> Result<(), CaptureError> {
    let mut journals = list(root)?;
    if let Some(what) = missing_between(journals.keys().copied()) {
        return Err(CaptureError::Corrupt { path: root.path().to_owned(), what });
    }
    let Some((_, newest)) = journals.pop_last() else {
        return Err(CaptureError::Corrupt {
            path: root.path().to_owned(),
            what: "it has no journal (N.jnl), and without one the engine opens it and shows nothing to snapshots"
                .to_owned(),
        });
    };
    let gone = |name: &std::ffi::OsStr| CaptureError::Vanished { path: root.path().join(name) };
    for name in journals.values() {
        let path = root.path().join(name);
        let file = root.open_file(name)?.ok_or_else(|| gone(name))?;
        let judged = judge_sealed(&file, &path, cancel)?;
        let sound = judged.map_err(|what| CaptureError::Corrupt { path, what })?;
        report.files += 1;
        report.bytes += sound.end;
    }
    let path = root.path().join(&newest);
    let file = root.open_file(&newest)?.ok_or_else(|| gone(&newest))?;
    let end = log_end(&file, 0).map_err(CaptureError::io("read", &path))?;
    let mut sound = Sound::default();
    if let Some(what) = judge(&file, &path, &mut sound, end, cancel)? {
        return Err(CaptureError::Corrupt { path, what });
    }
    if sound.end < end {
        report.remarks.push(format!(
            "{} ends in {} bytes of a batch that was being written; the engine drops them",
            newest.display(),
            end - sound.end
        ));
    }
    report.files += 1;
    report.bytes += end;
    Ok(())
}

/// A directory of our own among the system's temporary ones: nothing is written beside the image, which may lie on a
/// medium that cannot be written. What a killed process left there is swept.
fn scratch() -> Result<StagingDir, CaptureError> {
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    let parent = std::env::temp_dir();
    let failed = CaptureError::io("make a directory in", &parent);
    if let Err(error) = sweep_leftovers(&parent) {
        tracing::debug!(parent = %parent.display(), %error, "leftovers could not be looked for");
    }
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    StagingDir::create(&parent, &format!("{:08x}{:08x}", std::process::id(), number % (1 << 32)))
        .map_err(failed)
}
