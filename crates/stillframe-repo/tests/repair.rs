//! What a damaged repository still has is made whole again, and what it lost is named.

#![allow(clippy::unwrap_used, reason = "a test stops at what it did not expect")]

mod support;

use std::collections::BTreeSet;
use std::sync::Arc;

use stillframe_repo::{
    BackupId, BackupRepair, CheckOptions, FileKind, ReadData, RepairOptions, Repository, VerifyLevel,
    VerifyOptions,
};
use stillframe_storage::object_store::ObjectStoreExt;
use stillframe_storage::object_store::memory::InMemory;
use support::fault_store::{FaultStore, Moment, Which};
use support::{Files, change, clock, files, init, objects, open, read, write};
use tokio_util::sync::CancellationToken;

struct Scene {
    store: Arc<InMemory>,
    content: Files,
    id: BackupId,
}

async fn scene() -> Scene {
    let (store, cache) = (Arc::new(InMemory::new()), tempfile::tempdir().unwrap());
    let repository = init(store.clone(), cache.path()).await;
    let content = files(1, 12, 3000);
    let id = write(&repository, "a", &content).await.unwrap().manifest.id;
    Scene { store, content, id }
}

fn options(dry_run: bool) -> RepairOptions {
    RepairOptions { dry_run, cancel: CancellationToken::new(), clock: clock() }
}

/// The oracle: which files can be read.
async fn readable(repository: &Repository, id: BackupId) -> Option<Files> {
    let manifest = repository.manifest(id).await.unwrap();
    let source = manifest.draft.sources.first()?;
    repository.read_content(source.snapshot, u64::MAX).await.ok()?;
    let mut list = repository.files(source.files);
    let mut whole = Files::new();
    while let Ok(Some(entry)) = list.next().await {
        let FileKind::File { content } = entry.kind else { panic!() };
        if let Ok(bytes) = repository.read_content(content, u64::MAX).await {
            whole.insert(entry.path.to_string(), bytes);
        }
    }
    Some(whole)
}

/// What is left of a backup. Who reads a list from its beginning to where it is lost sees less than a repair, which goes on behind that.
fn assert_left(left: &Files, readable: &Files, all: &Files, repair: &BackupRepair) {
    assert_eq!(left.len() as u64, repair.files);
    if repair.lost.iter().all(|lost| lost.file.is_some()) {
        assert_eq!(left, readable);
    }
    assert!(readable.keys().all(|path| left.contains_key(path)));
    assert!(left.iter().all(|(path, bytes)| all[path] == *bytes));
}

fn lost(repair: &BackupRepair) -> BTreeSet<String> {
    repair.lost.iter().filter_map(|lost| lost.file.clone()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn of_a_damaged_backup_all_that_is_left_becomes_a_whole_one_and_the_rest_is_named() {
    let scene = scene().await;
    let mut repaired_any = 0;
    for pack in objects(&scene.store, "packs").await {
        for how in ["missing", "flipped"] {
            let store = Arc::new(scene.store.fork());
            match how {
                "missing" => store.delete(&pack).await.unwrap(),
                _ => change(&store, &pack, |bytes| bytes[100] ^= 1).await,
            }
            let cache = tempfile::tempdir().unwrap();
            let repository = open(store.clone(), cache.path()).await;
            let expected = readable(&repository, scene.id).await;
            // What only reading finds is noted by it.
            repository.check(&CheckOptions::new(ReadData::All)).await.unwrap();
            let asked = repository.repair_backup(scene.id, &options(true)).await.unwrap();
            let before = objects(&store, "").await.len();
            assert_eq!(asked.repaired, None);
            let repair = repository.repair_backup(scene.id, &options(false)).await.unwrap();
            assert!(!repair.lost.is_empty(), "{how} {pack}");
            assert_eq!(repair.lost, asked.lost);
            let Some(expected) = expected else {
                assert_eq!(
                    (repair.repaired, objects(&store, "").await.len()),
                    (None, before),
                    "{how} {pack}"
                );
                continue;
            };
            let new = repair.repaired.unwrap();
            assert_left(&read(&repository, new).await.unwrap(), &expected, &scene.content, &repair);
            let report = repository.verify(new, &VerifyOptions::new(VerifyLevel::Decrypt)).await.unwrap();
            // The pack that lost one chunk has others that are whole.
            assert!(report.findings.iter().all(|found| !found.is_loss), "{report:?}");
            if !repair.lost.iter().any(|lost| lost.file.is_none()) {
                let all: BTreeSet<String> = scene.content.keys().cloned().collect();
                let left: BTreeSet<String> = expected.keys().cloned().collect();
                assert_eq!(lost(&repair), &all - &left);
            }
            let (manifest, original) =
                (repository.manifest(new).await.unwrap(), repository.manifest(scene.id).await.unwrap());
            assert_eq!(manifest.draft.repaired_from, Some(scene.id));
            assert_eq!(manifest.draft.lost_files, repair.lost.len() as u64);
            assert!(manifest.draft.warnings[0].contains("repaired"), "{:?}", manifest.draft.warnings);
            assert_eq!((manifest.draft.name, original.draft.name), (Some("a".into()), Some("a".into())));
            assert!(manifest.created > original.created);
            assert!(manifest.created.duration_since(original.created).as_millis() < 1);
            assert_eq!(manifest.draft.sources[0].file_count, repair.files);
            repaired_any += 1;
            // Once is enough.
            let again = repository.repair_backup(new, &options(false)).await.unwrap();
            assert!(again.lost.is_empty() && again.repaired.is_none());
        }
    }
    assert!(repaired_any > 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_whole_is_left_alone() {
    let scene = scene().await;
    let cache = tempfile::tempdir().unwrap();
    let repository = open(scene.store.clone(), cache.path()).await;
    let before = objects(&scene.store, "").await;
    let repair = repository.repair_backup(scene.id, &options(false)).await.unwrap();
    assert_eq!((repair.lost.len(), repair.files, repair.bytes, repair.repaired), (0, 12, 36_000, None));
    assert_eq!(objects(&scene.store, "").await, before);
    change(&scene.store, &format!("manifests/{}", scene.id).into(), |bytes| bytes[90] ^= 1).await;
    assert!(repository.repair_backup(scene.id, &options(false)).await.unwrap_err().is_damage());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_index_is_written_anew_from_the_packs_whatever_became_of_it() {
    for how in ["sound", "missing", "damaged", "many"] {
        let scene = scene().await;
        let cache = tempfile::tempdir().unwrap();
        let repository = open(scene.store.clone(), cache.path()).await;
        if how == "many" {
            for round in 0..5 {
                write(&repository, "more", &files(50 + round, 2, 3000)).await.unwrap();
            }
        }
        let segments = objects(&scene.store, "index").await;
        for path in &segments {
            match how {
                "missing" => scene.store.delete(path).await.unwrap(),
                "damaged" => change(&scene.store, path, |bytes| bytes[100] ^= 1).await,
                _ => {}
            }
        }
        let packs = objects(&scene.store, "packs").await.len() as u64;
        let repair = repository.repair_index(&CancellationToken::new()).await.unwrap();
        let removed = if how == "missing" { 0 } else { segments.len() as u64 };
        assert_eq!(
            (repair.packs, repair.segments_removed, repair.segments_written),
            (packs, removed, 1),
            "{how}"
        );
        assert!(repair.unreadable.is_empty());
        let report = repository.check(&CheckOptions::new(ReadData::All)).await.unwrap();
        assert!(report.is_sound(), "{report:?}");
        assert_eq!(read(&repository, scene.id).await.unwrap(), scene.content);
        let elsewhere = tempfile::tempdir().unwrap();
        let fresh = open(scene.store.clone(), elsewhere.path()).await;
        let again = write(&fresh, "b", &scene.content).await.unwrap().manifest;
        assert_eq!(again.statistics.chunks_new, 0, "{how}: what is there is known again");
    }
}

/// What only the index knows any more is kept.
#[tokio::test(flavor = "multi_thread")]
async fn a_pack_that_cannot_tell_what_is_in_it_is_read_by_what_the_old_index_said() {
    let scene = scene().await;
    let pack = objects(&scene.store, "packs").await.remove(0);
    change(&scene.store, &pack, |bytes| {
        let at = bytes.len() - 60;
        bytes[at] ^= 1;
    })
    .await;
    let cache = tempfile::tempdir().unwrap();
    let repository = open(scene.store.clone(), cache.path()).await;
    let repair = repository.repair_index(&CancellationToken::new()).await.unwrap();
    assert_eq!(repair.unreadable[0].0, pack.as_ref());
    let elsewhere = tempfile::tempdir().unwrap();
    let fresh = open(scene.store.clone(), elsewhere.path()).await;
    assert_eq!(read(&fresh, scene.id).await.unwrap(), scene.content);
    let report = fresh.check(&CheckOptions::new(ReadData::Nothing)).await.unwrap();
    assert!(report.findings.iter().all(|found| !found.finding.is_loss), "{report:?}");
    assert_eq!(report.findings[0].finding.object, pack.as_ref());
}

/// Whatever request fails, before or after it had its effect: nothing more is lost, nothing looks whole that is not, and the next run does it.
#[tokio::test(flavor = "multi_thread")]
async fn a_repair_that_fails_anywhere_harms_nothing_and_is_done_by_the_next() {
    for moment in [Moment::BeforeTheEffect, Moment::AfterTheEffect] {
        for number in 0.. {
            let scene = scene().await;
            let pack = objects(&scene.store, "packs").await.remove(1);
            scene.store.delete(&pack).await.unwrap();
            let store = FaultStore::new(scene.store.clone());
            let cache = tempfile::tempdir().unwrap();
            let repository = open(store.clone(), cache.path()).await;
            let Some(expected) = readable(&repository, scene.id).await.filter(|files| files.len() < 12)
            else {
                continue;
            };
            store.fail(Which::Only(number), moment);
            let failed = match repository.repair_index(&CancellationToken::new()).await {
                Ok(_) => repository.repair_backup(scene.id, &options(false)).await.map(drop),
                Err(error) => Err(error),
            };
            let requests = store.requests();
            store.heal();
            // What there is of backups is whole, but for the damaged one.
            let backups = repository.backups().await.unwrap();
            assert!(backups.unreadable.is_empty());
            for manifest in backups.readable.iter().filter(|manifest| manifest.id != scene.id) {
                let left = read(&repository, manifest.id).await.unwrap();
                assert!(expected.keys().all(|path| left[path] == expected[path]), "{moment:?} {number}");
            }
            assert_eq!(readable(&repository, scene.id).await.unwrap(), expected, "{moment:?} {number}");
            repository.repair_index(&CancellationToken::new()).await.unwrap();
            let repair = repository.repair_backup(scene.id, &options(false)).await.unwrap();
            let left = read(&repository, repair.repaired.unwrap()).await.unwrap();
            assert_left(&left, &expected, &scene.content, &repair);
            assert_eq!(repository.info().await.unwrap().unfinished, 0, "{moment:?} {number}");
            let elsewhere = tempfile::tempdir().unwrap();
            let fresh = open(scene.store.clone(), elsewhere.path()).await;
            let report = fresh.check(&CheckOptions::new(ReadData::All)).await.unwrap();
            assert!(report.findings.iter().all(|found| found.backup == Some(scene.id)), "{report:?}");
            if requests <= number {
                failed.unwrap();
                assert!(number > 20, "so few requests: {number}");
                break;
            }
        }
    }
}
