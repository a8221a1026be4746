//! Each object of the golden repositories is lost, cut, emptied, flipped and exchanged: nothing passes for sound that is not, each is named, and nobody
//! panics over it.

#![allow(clippy::unwrap_used, reason = "a test stops at what it did not expect")]

mod support;

use std::collections::BTreeMap;
use std::path::Path as FilePath;
use std::sync::Arc;

use futures::TryStreamExt;
use stillframe_repo::{
    BackupId, CheckOptions, CheckReport, Error, FileKind, LocalDirs, ReadData, Repository, Unlock,
};
use stillframe_storage::object_store::local::LocalFileSystem;
use stillframe_storage::object_store::memory::InMemory;
use stillframe_storage::object_store::path::Path;
use stillframe_storage::object_store::{ObjectStore, ObjectStoreExt};

const NAMES: [&str; 3] = ["plain", "encrypted", "lived"];

fn unlock(name: &str) -> Unlock {
    if name == "plain" { Unlock::None } else { Unlock::Passphrase("golden".into()) }
}

/// All objects of a golden repository.
async fn golden(name: &str) -> BTreeMap<Path, Vec<u8>> {
    let root = FilePath::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/format-1").join(name);
    let store = LocalFileSystem::new_with_prefix(root).unwrap();
    let listed: Vec<_> = store.list(None).try_collect().await.unwrap();
    let mut objects = BTreeMap::new();
    for meta in listed {
        let bytes = store.get(&meta.location).await.unwrap().bytes().await.unwrap();
        objects.insert(meta.location, bytes.to_vec());
    }
    objects
}

async fn open(name: &str, objects: &BTreeMap<Path, Vec<u8>>, local: &FilePath) -> Result<Repository, Error> {
    let store = Arc::new(InMemory::new());
    for (path, bytes) in objects {
        store.put(path, bytes.clone().into()).await.unwrap();
    }
    let dirs = LocalDirs { cache: local.join("cache"), state: local.join("state") };
    Repository::open(store, &unlock(name), dirs).await
}

type Content = BTreeMap<(BackupId, String), Vec<u8>>;

/// Every byte of every file of every backup.
async fn content(repository: &Repository) -> Result<Content, Error> {
    let mut content = BTreeMap::new();
    let backups = repository.backups().await?;
    if let Some((_, error)) = backups.unreadable.into_iter().next() {
        return Err(error);
    }
    for manifest in backups.readable {
        for source in &manifest.draft.sources {
            let snapshot = repository.read_content(source.snapshot, u64::MAX).await?;
            content.insert((manifest.id, format!("{}: its description", source.name)), snapshot);
            let mut list = repository.files(source.files);
            while let Some(entry) = list.next().await? {
                let place = (manifest.id, format!("{}: {}", source.name, entry.path));
                let bytes = match entry.kind {
                    FileKind::File { content } => repository.read_content(content, u64::MAX).await?,
                    FileKind::Symlink { target } => target,
                    FileKind::Directory => Vec::new(),
                };
                content.insert(place, bytes);
            }
        }
    }
    Ok(content)
}

/// What may become of an object. `None`: it is gone.
fn damages(bytes: &[u8], other: Option<&[u8]>) -> Vec<(String, Option<Vec<u8>>)> {
    let mut damages = vec![("missing".to_owned(), None), ("emptied".to_owned(), Some(Vec::new()))];
    for length in [1, bytes.len() / 2, bytes.len() - 1] {
        damages.push((format!("cut to {length}"), Some(bytes[..length].to_vec())));
    }
    for at in [0, 4, 5, 30, bytes.len() / 3, bytes.len() / 2, bytes.len() - 40, bytes.len() - 1] {
        if let Some(byte) = bytes.get(at) {
            let mut flipped = bytes.to_vec();
            flipped[at] = byte ^ 0x10;
            damages.push((format!("flipped at {at}"), Some(flipped)));
        }
    }
    let longer = [bytes, b"more"].concat();
    damages.push(("longer".to_owned(), Some(longer)));
    damages.extend(other.map(|other| ("another one".to_owned(), Some(other.to_vec()))));
    damages
}

/// What nobody misses: the index is a hint, and what is said of backups nothing relies on.
fn is_missed(path: &Path) -> bool {
    let kind = path.parts().next().unwrap();
    !matches!(kind.as_ref(), "index" | "pins" | "verified" | "keys")
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_of_a_golden_repository_is_damaged_without_being_named() {
    let mut tried = 0;
    for name in NAMES {
        let whole = golden(name).await;
        let local = tempfile::tempdir().unwrap();
        let expected = content(&open(name, &whole, local.path()).await.unwrap()).await.unwrap();
        assert!(!expected.is_empty());
        let foreign = golden(if name == "plain" { "encrypted" } else { "plain" }).await;
        for (path, bytes) in &whole {
            let kind = path.parts().next().unwrap().as_ref().to_owned();
            let other = foreign.iter().find(|(other, _)| other.parts().next().unwrap().as_ref() == kind);
            for (damage, changed) in damages(bytes, other.map(|(_, bytes)| bytes.as_slice())) {
                let mut objects = whole.clone();
                match changed {
                    Some(changed) => _ = objects.insert(path.clone(), changed),
                    None => _ = objects.remove(path),
                }
                judge(name, path, &damage, &objects, &expected).await;
                tried += 1;
            }
        }
    }
    assert!(tried > 250, "{tried}");
}

async fn judge(name: &str, path: &Path, damage: &str, objects: &BTreeMap<Path, Vec<u8>>, expected: &Content) {
    let what = format!("{name}: {path} {damage}");
    let local = tempfile::tempdir().unwrap();
    let repository = match open(name, objects, local.path()).await {
        Ok(repository) => repository,
        Err(error) => {
            let said = error.to_string();
            let kind = path.parts().next().unwrap();
            assert!(
                matches!(kind.as_ref(), "keys" | "stillframe.json"),
                "{what}: it cannot be opened: {said}"
            );
            return;
        }
    };
    let report = repository.check(&CheckOptions::new(ReadData::All)).await;
    let read = content(&repository).await;
    let report: CheckReport = match report {
        Ok(report) => report,
        Err(error) => panic!("{what}: it cannot be checked: {error}"),
    };
    let is_as_it_was = read.as_ref().is_ok_and(|content| content == expected);
    if report.is_sound() && report.remarks.is_empty() {
        assert!(is_as_it_was, "{what}: called sound, and is not: {:?}", read.err());
        assert!(damage == "missing" && !is_missed(path) || path.as_ref() == "stillframe.json", "{what}");
        return;
    }
    if report.is_sound() {
        // A manifest without its seal may be of a backup that is being written.
        assert!(damage == "missing" && path.as_ref().starts_with("sealed/"), "{what}: {:?}", report.remarks);
        return;
    }
    if read.is_err() {
        assert!(report.findings.iter().any(|found| found.finding.is_loss), "{what}: {report:?}");
    }
    let is_named = report.findings.iter().any(|found| found.finding.object == path.as_ref());
    assert!(is_named || damage == "missing", "{what}: {report:?}");
}
