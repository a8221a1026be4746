//! Whatever rots, is cut short or goes missing is found and named, and harms nothing else.

#![allow(clippy::unwrap_used, reason = "a test stops at what it did not expect")]

mod support;

use std::collections::BTreeSet;
use std::sync::Arc;

use stillframe_repo::{
    BackupId, ContentRef, Error, FileKind, LocalDirs, Repository, Unlock, VerifyLevel, VerifyOptions,
    VerifyReport, check_objects,
};
use stillframe_storage::object_store::ObjectStoreExt;
use stillframe_storage::object_store::memory::InMemory;
use stillframe_storage::object_store::path::Path;
use support::{Files, change, clock, files, init, objects, open, read, write};
use tokio_util::sync::CancellationToken;

struct Scene {
    store: Arc<InMemory>,
    content: Files,
    id: BackupId,
}

/// One backup of 12 files in several packs.
async fn scene() -> Scene {
    let (store, cache) = (Arc::new(InMemory::new()), tempfile::tempdir().unwrap());
    let repository = init(store.clone(), cache.path()).await;
    let content = files(1, 12, 3000);
    let id = write(&repository, "a", &content).await.unwrap().manifest.id;
    Scene { store, content, id }
}

async fn verify(store: Arc<InMemory>, id: BackupId, level: VerifyLevel) -> Result<VerifyReport, Error> {
    let cache = tempfile::tempdir().unwrap();
    let repository = open(store, cache.path()).await;
    repository.verify(id, &VerifyOptions::new(level)).await
}

const LEVELS: [VerifyLevel; 3] = [VerifyLevel::Exists, VerifyLevel::Hash, VerifyLevel::Decrypt];

#[tokio::test(flavor = "multi_thread")]
async fn a_whole_backup_is_sound_at_each_level() {
    let scene = scene().await;
    for level in LEVELS {
        let report = verify(scene.store.clone(), scene.id, level).await.unwrap();
        assert!(report.is_sound(), "{report:?}");
        assert_eq!((report.files, report.bytes), (12, 36_000));
        if level > VerifyLevel::Exists {
            // 36 chunks, 12 nodes, a description, and a list: one chunk, unless the key says to cut it.
            assert!((50..55).contains(&report.chunks), "{report:?}");
            assert_eq!(report.packs, objects(&scene.store, "packs").await.len() as u64);
        }
    }
    let report = check_objects(scene.store.clone(), &CancellationToken::new(), &|_| {}).await.unwrap();
    assert!(report.findings.is_empty());
    assert_eq!(report.objects, objects(&scene.store, "").await.len() as u64 - 1, "all but stillframe.json");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_keys_it_is_told_that_nobody_can_open_the_repository_or_a_sealed_backup() {
    let scene = scene().await;
    for (gone, told) in
        [("stillframe.json", "stillframe.json"), ("keys/", "keys"), ("manifests/", "manifests/")]
    {
        let store = Arc::new(scene.store.fork());
        for path in objects(&store, "").await.iter().filter(|path| path.as_ref().starts_with(gone)) {
            store.delete(path).await.unwrap();
        }
        let report = check_objects(store.clone(), &CancellationToken::new(), &|_| {}).await.unwrap();
        let [finding] = report.findings.as_slice() else { panic!("{gone}: {report:?}") };
        assert!(finding.object.starts_with(told) && !finding.why.is_empty(), "{finding:?}");
    }
    change(&scene.store, &"stillframe.json".into(), |bytes| bytes[0] ^= 1).await;
    let report = check_objects(scene.store.clone(), &CancellationToken::new(), &|_| {}).await.unwrap();
    assert_eq!(report.findings.len(), 1);
}

/// Description and list of a source often lie in one pack.
#[tokio::test(flavor = "multi_thread")]
async fn what_nothing_but_the_chunk_tells_apart_is_one_finding() {
    let scene = scene().await;
    for pack in objects(&scene.store, "packs").await {
        let bytes = scene.store.get(&pack).await.unwrap().bytes().await.unwrap();
        scene.store.delete(&pack).await.unwrap();
        for level in LEVELS {
            let report = verify(scene.store.clone(), scene.id, level).await.unwrap();
            let told: Vec<_> = report
                .findings
                .iter()
                .map(|found| (&found.object, &found.why, &found.source, &found.file, &found.offset))
                .collect();
            assert_eq!(told.iter().collect::<BTreeSet<_>>().len(), told.len(), "{level:?}: {told:?}");
            assert!(!told.is_empty());
        }
        scene.store.put(&pack, bytes.into()).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flipped_bit_anywhere_in_any_object_is_found_without_keys_and_names_the_object() {
    let scene = scene().await;
    for path in objects(&scene.store, "").await {
        if path.as_ref() == "stillframe.json" {
            continue;
        }
        let len = scene.store.head(&path).await.unwrap().size;
        let store = Arc::new(scene.store.fork());
        let step = (len / 60).max(1);
        for at in (0..len).step_by(usize::try_from(step).unwrap()).chain(len - 40..len) {
            let at = usize::try_from(at).unwrap();
            change(&store, &path, |bytes| bytes[at] ^= 1 << (at % 8)).await;
            let report = check_objects(store.clone(), &CancellationToken::new(), &|_| {}).await.unwrap();
            assert_eq!(report.findings.len(), 1, "{path} at {at}");
            assert_eq!(report.findings[0].object, path.as_ref());
            change(&store, &path, |bytes| bytes[at] ^= 1 << (at % 8)).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flipped_bit_in_a_pack_names_the_files_that_are_lost_and_no_others() {
    let scene = scene().await;
    for pack in objects(&scene.store, "packs").await {
        let store = Arc::new(scene.store.fork());
        change(&store, &pack, |bytes| bytes[100] ^= 1).await;
        let cache = tempfile::tempdir().unwrap();
        let repository = open(store.clone(), cache.path()).await;
        let mut named = None;
        for level in [VerifyLevel::Hash, VerifyLevel::Decrypt] {
            let report = repository.verify(scene.id, &VerifyOptions::new(level)).await.unwrap();
            assert!(!report.is_sound());
            assert_eq!(report.findings.len(), 1, "the first chunk of the pack only: {report:?}");
            let finding = &report.findings[0];
            assert_eq!(finding.object, pack.as_ref());
            assert!(finding.chunk.is_some());
            assert_eq!(finding.source.as_deref(), Some("db"));
            named = finding.file.clone().map(|file| (file, finding.offset.unwrap()));
        }
        // What is named cannot be read, everything else can.
        let manifest = repository.manifest(scene.id).await.unwrap();
        let mut list = repository.files(manifest.draft.sources[0].files);
        while let Ok(Some(entry)) = list.next().await {
            let FileKind::File { content } = entry.kind else { panic!() };
            let is_named = named.as_ref().is_some_and(|(file, _)| *file == entry.path.to_string());
            match repository.read_content(content, u64::MAX).await {
                Ok(bytes) => assert!(!is_named && bytes == scene.content[&entry.path.to_string()]),
                Err(error) => {
                    assert!(is_named, "{error}");
                    assert!(error.to_string().contains(pack.as_ref()), "{error}");
                }
            }
        }
        if let Some((_, offset)) = named {
            assert!([0, 1000, 2000].contains(&offset));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_or_shortened_pack_is_found_at_each_level() {
    let scene = scene().await;
    for pack in objects(&scene.store, "packs").await {
        let len = usize::try_from(scene.store.head(&pack).await.unwrap().size).unwrap();
        for cut in [None, Some(0), Some(79), Some(len / 2), Some(len - 1)] {
            let store = Arc::new(scene.store.fork());
            match cut {
                None => store.delete(&pack).await.unwrap(),
                Some(len) => change(&store, &pack, |bytes| bytes.truncate(len)).await,
            }
            for level in LEVELS {
                let report = verify(store.clone(), scene.id, level).await.unwrap();
                assert!(!report.is_sound(), "{pack} {cut:?} {level:?}");
                let names_it = |finding: &stillframe_repo::Finding| {
                    finding.object == pack.as_ref() || finding.object.starts_with("chunk ")
                };
                assert!(report.findings.iter().all(names_it), "{report:?}");
            }
        }
    }
}

/// Also where the chunk that is gone leads to others: whoever looks for the pack must know which.
#[tokio::test(flavor = "multi_thread")]
async fn of_a_lost_node_the_pack_is_named_too() {
    let scene = scene().await;
    for pack in objects(&scene.store, "packs/").await {
        let bytes = scene.store.get(&pack).await.unwrap().bytes().await.unwrap();
        scene.store.delete(&pack).await.unwrap();
        for level in LEVELS {
            let report = verify(scene.store.clone(), scene.id, level).await.unwrap();
            assert!(!report.is_sound());
            for finding in &report.findings {
                assert_eq!(finding.object, pack.as_ref(), "{finding:?}");
                assert!(finding.why.contains("it is missing"), "{finding:?}");
            }
        }
        scene.store.put(&pack, bytes.into()).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn damage_that_does_not_concern_the_backup_is_told_but_loses_nothing() {
    let scene = scene().await;
    let pack = objects(&scene.store, "packs").await.remove(0);
    // In the footer, which the backup does not need as long as there is an index segment.
    change(&scene.store, &pack, |bytes| {
        let at = bytes.len() - 60;
        bytes[at] ^= 1;
    })
    .await;
    let report = verify(scene.store.clone(), scene.id, VerifyLevel::Decrypt).await.unwrap();
    assert_eq!(report.findings.len(), 1, "{report:?}");
    assert_eq!((report.findings[0].object.as_str(), &report.findings[0].file), (pack.as_ref(), &None));
    assert_eq!(report.findings[0].source, None);
    let cache = tempfile::tempdir().unwrap();
    let repository = open(scene.store.clone(), cache.path()).await;
    assert_eq!(read(&repository, scene.id).await.unwrap(), scene.content);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_chunk_with_a_second_copy_survives_the_loss_of_the_first() {
    // Two machines that know nothing of each other store the same content at the same time.
    let (store, cache) = (Arc::new(InMemory::new()), tempfile::tempdir().unwrap());
    init(store.clone(), cache.path()).await;
    let empty = Arc::new(store.fork());
    let content = files(1, 12, 3000);
    let id = write(&open(store.clone(), cache.path()).await, "a", &content).await.unwrap().manifest.id;
    let other_cache = tempfile::tempdir().unwrap();
    write(&open(empty.clone(), other_cache.path()).await, "b", &content).await.unwrap();
    for path in objects(&empty, "").await {
        let bytes = empty.get(&path).await.unwrap().bytes().await.unwrap();
        store.put(&path, bytes.into()).await.unwrap();
    }
    let segment_packs = objects(&store, "packs").await.len();
    let pack = objects(&store, "packs").await.remove(0);
    change(&store, &pack, |bytes| bytes[100] ^= 1).await;
    let fresh = tempfile::tempdir().unwrap();
    let repository = open(store.clone(), fresh.path()).await;
    assert_eq!(read(&repository, id).await.unwrap(), content);
    store.delete(&pack).await.unwrap();
    assert_eq!(read(&repository, id).await.unwrap(), content, "with hints that name the missing pack");
    let report = repository.verify(id, &VerifyOptions::new(VerifyLevel::Decrypt)).await.unwrap();
    assert!(report.is_sound(), "{report:?}");
    assert!(report.packs < segment_packs as u64);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_manifest_or_seal_is_named_and_hides_no_other_backup() {
    let scene = scene().await;
    let cache = tempfile::tempdir().unwrap();
    let repository = open(scene.store.clone(), cache.path()).await;
    let second = write(&repository, "b", &scene.content).await.unwrap().manifest.id;
    for kind in ["manifests", "sealed"] {
        let store = Arc::new(scene.store.fork());
        let path = Path::from(format!("{kind}/{}", scene.id));
        change(&store, &path, |bytes| bytes[90] ^= 1).await;
        let repository = open(store.clone(), cache.path()).await;
        let backups = repository.backups().await.unwrap();
        assert_eq!(backups.readable.iter().map(|manifest| manifest.id).collect::<Vec<_>>(), [second]);
        assert_eq!(backups.unreadable[0].0, scene.id);
        assert!(backups.unreadable[0].1.to_string().contains(path.as_ref()), "{}", backups.unreadable[0].1);
        let error = repository.resolve("latest").await.unwrap_err();
        assert!(matches!(error, Error::Damaged { .. }), "the damaged one may be the latest: {error}");
        // Whoever is in a hurry learns which one is left.
        let left = repository.backups().await.unwrap().readable.pop().unwrap().id.to_string();
        assert!(error.to_string().contains(&left), "{error}");
        let error = repository.resolve("b").await.unwrap_err();
        assert!(error.is_damage(), "the damaged one may be a newer one of this name: {error}");
        let error = repository.resolve("unknown").await.unwrap_err();
        assert!(error.is_damage(), "the damaged one may be called so: {error}");
        assert_eq!(repository.resolve(&second.to_string()[..12]).await.unwrap(), second);
        let report = repository.verify(scene.id, &VerifyOptions::new(VerifyLevel::Exists)).await.unwrap();
        assert_eq!(report.findings[0].object, path.as_ref());
        // A manifest alone is no backup; a seal alone was one.
        store.delete(&path).await.unwrap();
        let error = repository.manifest(scene.id).await.unwrap_err();
        assert_eq!(
            (error.is_damage(), matches!(error, Error::NotFound { .. })),
            (kind == "manifests", kind == "sealed")
        );
        assert_eq!(repository.backups().await.unwrap().readable.len(), 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn damaged_index_segments_are_passed_over() {
    let scene = scene().await;
    for path in objects(&scene.store, "index").await {
        change(&scene.store, &path, |bytes| bytes[100] ^= 1).await;
    }
    let cache = tempfile::tempdir().unwrap();
    let repository = open(scene.store.clone(), cache.path()).await;
    assert_eq!(read(&repository, scene.id).await.unwrap(), scene.content);
    let again = write(&repository, "b", &scene.content).await.unwrap();
    assert_eq!(again.manifest.statistics.chunks_new, 0);
    let report = check_objects(scene.store.clone(), &CancellationToken::new(), &|_| {}).await.unwrap();
    assert!(report.findings.iter().all(|finding| finding.object.starts_with("index/")));
    assert!(!report.findings.is_empty());
}

/// What may go wrong with a cache file between two runs.
fn spoil(cache: &std::path::Path, how: usize) {
    let dir = std::fs::read_dir(cache).unwrap().next().unwrap().unwrap().path();
    let file = dir.join("index.sqlite");
    // As SQLite leaves it when the last user is gone.
    let bytes = std::fs::read(&file).unwrap();
    let spoiled = match how {
        0 => Vec::new(),
        1 => b"not a database at all".repeat(100),
        2 => bytes[..bytes.len() / 2].to_vec(),
        3 => bytes.iter().enumerate().map(|(at, byte)| if at > 4096 { byte ^ 0x55 } else { *byte }).collect(),
        4 => {
            bytes.iter().enumerate().map(|(at, byte)| if at % 97 == 96 { byte ^ 1 } else { *byte }).collect()
        }
        _ => {
            let _ = std::fs::remove_file(dir.join("index.sqlite-wal"));
            std::fs::remove_file(&file).unwrap();
            std::fs::create_dir(&file).unwrap();
            return;
        }
    };
    std::fs::write(&file, spoiled).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_spoiled_cache_is_built_again_and_never_believed() {
    for how in 0..=5 {
        let scene = scene().await;
        let cache = tempfile::tempdir().unwrap();
        {
            let repository = open(scene.store.clone(), cache.path()).await;
            read(&repository, scene.id).await.unwrap();
        }
        spoil(cache.path(), how);
        let repository = open(scene.store.clone(), cache.path()).await;
        assert_eq!(read(&repository, scene.id).await.unwrap(), scene.content, "{how}");
        let mut content = scene.content.clone();
        content.extend(files(2, 3, 2000).into_iter().map(|(path, bytes)| (format!("x{path}"), bytes)));
        let second = write(&repository, "b", &content).await.unwrap().manifest;
        // Three new files, their nodes and the list; where that is cut depends on the key.
        assert!((6000..8000).contains(&second.statistics.bytes_new), "{how}: {:?}", second.statistics);
        assert_eq!(support::assert_all_whole(scene.store.clone()).await, ["a", "b"], "{how}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cache_that_lies_is_not_believed() {
    let scene = scene().await;
    let cache = tempfile::tempdir().unwrap();
    drop(open(scene.store.clone(), cache.path()).await);
    let repository = open(scene.store.clone(), cache.path()).await;
    read(&repository, scene.id).await.unwrap();
    let dir = std::fs::read_dir(cache.path()).unwrap().next().unwrap().unwrap().path();
    let database = rusqlite::Connection::open(dir.join("index.sqlite")).unwrap();
    // Every chunk is said to be in another place of its pack than it is.
    let changed =
        database.execute("UPDATE chunk SET position = position + 1, start = start + 1", []).unwrap();
    assert!(changed > 40);
    drop(database);
    // The rows are as if absent: everything is stored again, nothing relies on them.
    let second = write(&repository, "b", &scene.content).await.unwrap().manifest;
    assert_eq!(second.statistics.chunks_known, 0);
    assert_eq!(support::assert_all_whole(scene.store.clone()).await, ["a", "b"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cache_directory_that_cannot_be_used_is_done_without() {
    let scene = scene().await;
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    std::fs::write(&file, "").unwrap();
    let repository = open(scene.store.clone(), &file).await;
    assert_eq!(read(&repository, scene.id).await.unwrap(), scene.content);
    // Gone below a running process.
    let cache = tempfile::tempdir().unwrap();
    let repository = open(scene.store.clone(), cache.path()).await;
    cache.close().unwrap();
    assert_eq!(read(&repository, scene.id).await.unwrap(), scene.content);
    write(&repository, "b", &files(3, 3, 1000)).await.unwrap();
    assert_eq!(support::assert_all_whole(scene.store.clone()).await, ["a", "b"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cache_of_another_repository_in_the_same_place_is_replaced() {
    let (first, second) = (scene().await, scene().await);
    let cache = tempfile::tempdir().unwrap();
    for scene in [&first, &second] {
        let repository = open(scene.store.clone(), cache.path()).await;
        assert_eq!(read(&repository, scene.id).await.unwrap(), scene.content);
    }
    let dirs: Vec<_> = std::fs::read_dir(cache.path()).unwrap().map(|dir| dir.unwrap().path()).collect();
    assert_eq!(dirs.len(), 2);
    std::fs::copy(dirs[0].join("index.sqlite"), dirs[1].join("index.sqlite")).unwrap();
    std::fs::copy(dirs[1].join("index.sqlite"), dirs[0].join("index.sqlite")).unwrap();
    for scene in [&first, &second] {
        let repository = open(scene.store.clone(), cache.path()).await;
        assert_eq!(read(&repository, scene.id).await.unwrap(), scene.content);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn verification_can_be_cancelled_and_tells_how_far_it_is() {
    let scene = scene().await;
    let cache = tempfile::tempdir().unwrap();
    let repository: Repository = open(scene.store.clone(), cache.path()).await;
    let options = VerifyOptions::new(VerifyLevel::Decrypt);
    options.cancel.cancel();
    assert!(matches!(repository.verify(scene.id, &options).await, Err(Error::Cancelled)));
    let seen = Arc::new(std::sync::Mutex::new(Vec::new()));
    let listener = Arc::clone(&seen);
    let options = VerifyOptions {
        progress: Some(Arc::new(move |progress| listener.lock().unwrap().push(progress))),
        ..VerifyOptions::new(VerifyLevel::Decrypt)
    };
    let report = repository.verify(scene.id, &options).await.unwrap();
    let seen = seen.lock().unwrap().clone();
    assert!(seen.is_sorted_by_key(|progress| progress.bytes));
    let last = seen.last().unwrap();
    assert_eq!((last.bytes, last.bytes_total), (report.bytes_read, report.bytes_read));
    assert_eq!(last.files, last.files_total);
    let unknown = "0".repeat(32).parse().unwrap();
    assert!(matches!(repository.verify(unknown, &options).await, Err(Error::NotFound { .. })));
}

#[tokio::test(flavor = "multi_thread")]
async fn objects_swapped_by_an_enemy_are_not_taken_for_each_other() {
    let scene = scene().await;
    let packs = objects(&scene.store, "packs").await;
    let (a, b) = (packs[0].clone(), packs[1].clone());
    let bytes = scene.store.get(&a).await.unwrap().bytes().await.unwrap();
    scene.store.put(&b, bytes.into()).await.unwrap();
    let report = verify(scene.store.clone(), scene.id, VerifyLevel::Hash).await.unwrap();
    let blamed: BTreeSet<&str> = report.findings.iter().map(|finding| finding.object.as_str()).collect();
    assert!(blamed.iter().all(|object| *object == b.as_ref() || object.starts_with("chunk")), "{blamed:?}");
    assert!(!report.is_sound());
    let _ = clock();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_seen_to_be_damaged_is_relied_on_by_no_later_backup() {
    let scene = scene().await;
    let (cache, files) = (tempfile::tempdir().unwrap(), &scene.content);
    let repository = open(scene.store.clone(), cache.path()).await;
    let level = VerifyOptions::new(VerifyLevel::Decrypt);
    for (turn, how) in ["verified", "read"].into_iter().enumerate() {
        for path in objects(&scene.store, "packs/").await {
            change(&scene.store, &path, |bytes| bytes[200 + turn] ^= 1).await;
        }
        // Nobody has looked: equal chunks are taken to be there.
        let blind = write(&repository, "blind", files).await.unwrap().manifest;
        assert_eq!(blind.statistics.chunks_new, 0, "{how}");
        let look = async |id| match how {
            "verified" => repository.verify(id, &level).await.unwrap().is_sound(),
            _ => read(&repository, id).await.is_ok(),
        };
        assert!(!look(blind.id).await, "{how}");
        let mut again = write(&repository, "again", files).await.unwrap().manifest;
        // Below a node that is damaged nothing is seen, and reading ends at the first damage: each look finds more.
        for _ in 0..100 {
            if look(again.id).await {
                break;
            }
            again = write(&repository, "again", files).await.unwrap().manifest;
        }
        assert!(again.statistics.chunks_new > 0, "{how}");
        let report = repository.verify(again.id, &level).await.unwrap();
        assert!(report.is_sound(), "{how}: {report:?}");
        assert_eq!(&read(&repository, again.id).await.unwrap(), files, "{how}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn emptying_the_cache_forgets_no_damage() {
    let scene = scene().await;
    let dir = tempfile::tempdir().unwrap();
    let dirs = LocalDirs { cache: dir.path().join("cache"), state: dir.path().join("state") };
    let open = async || Repository::open(scene.store.clone(), &Unlock::None, dirs.clone()).await.unwrap();
    for path in objects(&scene.store, "packs/").await {
        change(&scene.store, &path, |bytes| bytes[200] ^= 1).await;
    }
    // Nowhere to note it: then nobody may say that it is.
    let nowhere = LocalDirs { cache: dir.path().join("other"), state: "/dev/null/state".into() };
    let repository = Repository::open(scene.store.clone(), &Unlock::None, nowhere).await.unwrap();
    let report = repository.verify(scene.id, &VerifyOptions::new(VerifyLevel::Decrypt)).await.unwrap();
    assert!(!report.is_sound() && !repository.damage_is_noted());
    let repository = open().await;
    let report = repository.verify(scene.id, &VerifyOptions::new(VerifyLevel::Decrypt)).await.unwrap();
    assert!(!report.is_sound() && repository.damage_is_noted());
    drop(repository);
    std::fs::remove_dir_all(&dirs.cache).unwrap();
    let again = write(&open().await, "again", &scene.content).await.unwrap().manifest;
    assert!(again.statistics.chunks_new > 0, "it relies on nothing that was seen to be damaged");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_seal_without_its_manifest_is_damage_and_no_older_backup_is_the_latest() {
    let scene = scene().await;
    let cache = tempfile::tempdir().unwrap();
    let repository = open(scene.store.clone(), cache.path()).await;
    let second = write(&repository, "b", &scene.content).await.unwrap().manifest.id;
    scene.store.delete(&Path::from(format!("manifests/{second}"))).await.unwrap();
    let backups = repository.backups().await.unwrap();
    assert_eq!(backups.readable.len(), 1);
    assert!(matches!(&backups.unreadable[..], [(id, Error::Damaged { .. })] if *id == second), "{backups:?}");
    let latest = repository.resolve("latest").await.unwrap_err();
    assert!(latest.is_damage() && latest.to_string().contains("by its id"), "{latest}");
    assert_eq!(repository.resolve(&second.to_string()).await.unwrap(), second);
    let report = repository.verify(second, &VerifyOptions::new(VerifyLevel::Exists)).await.unwrap();
    assert!(report.findings[0].why.contains("missing"), "{report:?}");
    // A manifest without its seal is one that is being written, or was not finished.
    scene.store.delete(&Path::from(format!("sealed/{}", scene.id))).await.unwrap();
    assert_eq!(repository.backups().await.unwrap().unfinished, [scene.id]);
}

/// Every chunk of a backup's files as a content of its own.
async fn chunks_of_files(repository: &Repository, id: BackupId) -> Vec<ContentRef> {
    let manifest = repository.manifest(id).await.unwrap();
    let mut files = repository.files(manifest.draft.sources[0].files);
    let mut chunks = Vec::new();
    while let Some(entry) = files.next().await.unwrap() {
        let FileKind::File { content } = entry.kind else { panic!("only files were written") };
        let mut leaves = repository.leaves(content);
        while let Some(chunk) = leaves.next().await.unwrap() {
            chunks.push(ContentRef { level: 0, id: chunk.id, length: chunk.length });
        }
    }
    chunks
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_lost_since_the_index_was_read_is_not_said_to_be_there() {
    for how in ["deleted", "cut"] {
        let scene = scene().await;
        let cache = tempfile::tempdir().unwrap();
        let repository = open(scene.store.clone(), cache.path()).await;
        assert_eq!(read(&repository, scene.id).await.unwrap(), scene.content);
        let chunks = chunks_of_files(&repository, scene.id).await;
        let is_there = async || repository.check_presence(chunks.clone(), &CancellationToken::new()).await;
        is_there().await.unwrap();
        let pack = objects(&scene.store, "packs").await.remove(0);
        match how {
            "deleted" => scene.store.delete(&pack).await.unwrap(),
            _ => change(&scene.store, &pack, |bytes| bytes.truncate(bytes.len() - 1)).await,
        }
        let error = is_there().await.unwrap_err();
        assert!(matches!(error, Error::ChunkLost { .. }), "{how}: {error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn of_a_pack_that_was_seen_to_be_damaged_only_what_can_be_read_is_said_to_be_there() {
    let scene = scene().await;
    let cache = tempfile::tempdir().unwrap();
    let repository = open(scene.store.clone(), cache.path()).await;
    let chunks = chunks_of_files(&repository, scene.id).await;
    for pack in objects(&scene.store, "packs").await {
        // In the first chunk of each.
        change(&scene.store, &pack, |bytes| bytes[100] ^= 1).await;
    }
    let is_there = async |chunk| repository.check_presence([chunk], &CancellationToken::new()).await;
    for chunk in &chunks {
        is_there(*chunk).await.expect("nobody has looked");
    }
    assert!(
        !repository.verify(scene.id, &VerifyOptions::new(VerifyLevel::Decrypt)).await.unwrap().is_sound()
    );
    let mut lost = 0;
    for chunk in &chunks {
        let readable = repository.read_chunk(&chunk.id).await.is_ok();
        match is_there(*chunk).await {
            Ok(()) => assert!(readable, "{chunk}"),
            Err(error) => assert!(matches!(error, Error::ChunkLost { .. }) && !readable, "{chunk}: {error}"),
        }
        lost += usize::from(!readable);
    }
    assert!(lost > 0 && lost < chunks.len(), "{lost} of {}", chunks.len());
}
