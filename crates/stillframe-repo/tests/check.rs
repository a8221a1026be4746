//! A check of the whole repository names whatever is wrong, and calls nothing sound that is not.

#![allow(clippy::unwrap_used, reason = "a test stops at what it did not expect")]

mod support;

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

use stillframe_repo::{
    BackupId, CheckOptions, CheckReport, Encryption, Error, FileKind, InitOptions, ObjectId, PassphraseCost,
    Pin, ReadData, Repository, Unlock, Verification,
};
use stillframe_storage::Clock;
use stillframe_storage::object_store::ObjectStoreExt;
use stillframe_storage::object_store::memory::InMemory;
use stillframe_storage::object_store::path::Path;
use support::{Files, change, clock, files, init, objects, open, write};

struct Scene {
    store: Arc<InMemory>,
    backups: [BackupId; 2],
}

/// Two backups that share most files, and packs that nobody needs.
async fn scene() -> Scene {
    let (store, cache) = (Arc::new(InMemory::new()), tempfile::tempdir().unwrap());
    let repository = init(store.clone(), cache.path()).await;
    let content = files(1, 12, 3000);
    let first = write(&repository, "first", &content).await.unwrap().manifest.id;
    let gone = write(&repository, "gone", &files(2, 12, 3000)).await.unwrap().manifest.id;
    let mut second: Files = content.into_iter().skip(2).collect();
    second.extend(files(3, 4, 3000).into_iter().map(|(path, bytes)| (format!("new/{path}"), bytes)));
    let second = write(&repository, "second", &second).await.unwrap().manifest.id;
    repository.forget(gone).await.unwrap();
    Scene { store, backups: [first, second] }
}

async fn bytes_of(store: &InMemory, path: &Path) -> Vec<u8> {
    store.get(path).await.unwrap().bytes().await.unwrap().to_vec()
}

async fn check(store: &Arc<InMemory>, read: ReadData) -> CheckReport {
    let cache = tempfile::tempdir().unwrap();
    open(store.clone(), cache.path()).await.check(&CheckOptions::new(read)).await.unwrap()
}

/// The oracle: who tries to read everything.
async fn unreadable(store: &Arc<InMemory>, backups: [BackupId; 2]) -> BTreeSet<(BackupId, String)> {
    let cache = tempfile::tempdir().unwrap();
    let repository = open(store.clone(), cache.path()).await;
    let mut lost = BTreeSet::new();
    for id in backups {
        let manifest = repository.manifest(id).await.unwrap();
        let source = &manifest.draft.sources[0];
        if repository.read_content(source.snapshot, u64::MAX).await.is_err() {
            lost.insert((id, String::new()));
        }
        let mut list = repository.files(source.files);
        loop {
            let entry = match list.next().await {
                Ok(Some(entry)) => entry,
                Ok(None) => break,
                Err(_) => {
                    lost.insert((id, String::new()));
                    break;
                }
            };
            let FileKind::File { content } = entry.kind else { panic!() };
            if repository.read_content(content, u64::MAX).await.is_err() {
                lost.insert((id, entry.path.to_string()));
            }
        }
    }
    lost
}

/// What the report says is lost.
fn named(report: &CheckReport) -> BTreeSet<(BackupId, String)> {
    let losses = report.findings.iter().filter(|found| found.finding.is_loss);
    losses.map(|found| (found.backup.unwrap(), found.finding.file.clone().unwrap_or_default())).collect()
}

const ALL: [ReadData; 3] =
    [ReadData::Nothing, ReadData::Part { of_ten_thousand: 5000, seed: 1 }, ReadData::All];

#[tokio::test(flavor = "multi_thread")]
async fn a_sound_repository_is_called_so_and_nothing_in_it_is_changed() {
    let scene = scene().await;
    let cache = tempfile::tempdir().unwrap();
    let repository = open(scene.store.clone(), cache.path()).await;
    let pin = Pin { why: "audit".into(), since: clock().now(), host: "h".into() };
    repository.pin(scene.backups[0], &pin).await.unwrap();
    let verification = Verification { at: clock().now(), host: "h".into(), sound: true, whole: true };
    repository.record_verification(scene.backups[1], "open", verification).await.unwrap();
    let mut before = Vec::new();
    for path in objects(&scene.store, "").await {
        before.push((bytes_of(&scene.store, &path).await, path));
    }
    let packs = objects(&scene.store, "packs").await.len() as u64;
    for read in ALL {
        let told = Arc::new(Mutex::new(Vec::new()));
        let listener = Arc::clone(&told);
        let options = CheckOptions {
            progress: Some(Arc::new(move |progress| listener.lock().unwrap().push(progress))),
            ..CheckOptions::new(read)
        };
        let report = repository.check(&options).await.unwrap();
        assert!(report.is_sound() && report.remarks.is_empty(), "{report:?}");
        assert_eq!((report.backups, report.unfinished, report.packs), (2, 0, packs));
        // 16 files of 3 chunks and a node, one description; where lists are cut depends on the key.
        assert!((67..75).contains(&report.chunks), "{report:?}");
        let read = match read {
            ReadData::Nothing => 0,
            ReadData::Part { .. } => packs.div_ceil(2),
            ReadData::All => packs,
        };
        assert_eq!(report.packs_read, read);
        assert_eq!(report.bytes_read == report.pack_bytes, read == packs);
        let last = *told.lock().unwrap().last().unwrap();
        assert_eq!((last.steps, last.bytes), (last.steps_total, last.bytes_total));
        assert_eq!(last.steps, packs + 2);
    }
    let mut after = Vec::new();
    for path in objects(&scene.store, "").await {
        after.push((bytes_of(&scene.store, &path).await, path));
    }
    assert!(before == after);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pack_that_is_missing_or_cut_is_found_without_reading_data_and_every_file_is_named() {
    let scene = scene().await;
    let mut some_lost_nothing = false;
    for pack in objects(&scene.store, "packs").await {
        let len = usize::try_from(scene.store.head(&pack).await.unwrap().size).unwrap();
        for cut in [None, Some(0), Some(50), Some(len / 2), Some(len - 1)] {
            let store = Arc::new(scene.store.fork());
            match cut {
                None => store.delete(&pack).await.unwrap(),
                Some(len) => change(&store, &pack, |bytes| bytes.truncate(len)).await,
            }
            let lost = unreadable(&store, scene.backups).await;
            some_lost_nothing |= lost.is_empty();
            for read in ALL {
                let report = check(&store, read).await;
                assert_eq!(named(&report), lost, "{pack} {cut:?} {read:?}: {report:?}");
                // Of a pack that is gone and that nobody needs nothing is known.
                assert_eq!(report.is_sound(), cut.is_none() && lost.is_empty());
                for found in &report.findings {
                    assert_eq!(found.finding.object, pack.as_ref(), "{found:?}");
                }
            }
        }
    }
    assert!(some_lost_nothing, "one that no backup needs was among them");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flipped_bit_is_found_by_reading_and_every_file_that_loses_by_it_is_named() {
    let scene = scene().await;
    for pack in objects(&scene.store, "packs").await {
        let len = usize::try_from(scene.store.head(&pack).await.unwrap().size).unwrap();
        for at in [10, 60, 100, len / 2, len - 60, len - 38, len - 3] {
            let store = Arc::new(scene.store.fork());
            change(&store, &pack, |bytes| bytes[at] ^= 4).await;
            let lost = unreadable(&store, scene.backups).await;
            let report = check(&store, ReadData::All).await;
            assert_eq!(named(&report), lost, "{pack} at {at}: {report:?}");
            assert!(!report.is_sound(), "{pack} at {at}");
            assert!(report.findings.iter().all(|found| found.finding.object == pack.as_ref()), "{report:?}");
            // Who does not read finds only what is wrong with the ends, and then looks closer.
            let report = check(&store, ReadData::Nothing).await;
            let is_end = at < 80 || at > len - 60;
            if is_end && at < len - 32 {
                assert!(!report.is_sound() && named(&report) == lost, "{pack} at {at}: {report:?}");
            }
        }
    }
}

/// In any object, at any place: with all data read nothing stays unseen.
#[tokio::test(flavor = "multi_thread")]
async fn no_flipped_bit_in_any_object_is_called_sound() {
    let scene = scene().await;
    let cache = tempfile::tempdir().unwrap();
    let repository = open(scene.store.clone(), cache.path()).await;
    let pin = Pin { why: String::new(), since: clock().now(), host: String::new() };
    repository.pin(scene.backups[0], &pin).await.unwrap();
    let verification = Verification { at: clock().now(), host: String::new(), sound: true, whole: true };
    repository.record_verification(scene.backups[0], "hash", verification).await.unwrap();
    for path in objects(&scene.store, "").await {
        // The only key of an unencrypted repository and its description: then it does not open at all.
        if path.as_ref() == "stillframe.json" || path.as_ref().starts_with("keys/") {
            continue;
        }
        let len = usize::try_from(scene.store.head(&path).await.unwrap().size).unwrap();
        for at in (0..len).step_by(len.div_ceil(8)).chain([len - 1, len - 33]) {
            let store = Arc::new(scene.store.fork());
            change(&store, &path, |bytes| bytes[at] ^= 1 << (at % 8)).await;
            let report = check(&store, ReadData::All).await;
            let is_named = report.findings.iter().any(|found| found.finding.object == path.as_ref());
            assert!(is_named, "{path} at {at}: {report:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_whose_manifest_or_seal_is_lost_is_named_and_the_other_is_not() {
    let scene = scene().await;
    let [first, second] = scene.backups;
    for (kind, gone) in [("manifests", true), ("manifests", false), ("sealed", false)] {
        let store = Arc::new(scene.store.fork());
        let path = Path::from(format!("{kind}/{first}"));
        if gone {
            store.delete(&path).await.unwrap();
        } else {
            change(&store, &path, |bytes| bytes[90] ^= 1).await;
        }
        let report = check(&store, ReadData::Nothing).await;
        let [found] = report.findings.as_slice() else { panic!("{report:?}") };
        assert_eq!((found.backup, found.finding.is_loss), (Some(first), true));
        assert_eq!(found.finding.object, path.as_ref());
        assert_ne!(found.backup, Some(second));
    }
    // Without its seal it is none, and its manifest counts as one of a write that runs.
    scene.store.delete(&format!("sealed/{first}").into()).await.unwrap();
    let report = check(&scene.store, ReadData::Nothing).await;
    assert_eq!((report.is_sound(), report.backups, report.unfinished), (true, 1, 1));
    change(&scene.store, &format!("manifests/{first}").into(), |bytes| bytes[90] ^= 1).await;
    let report = check(&scene.store, ReadData::Nothing).await;
    assert_eq!(report.findings[0].finding.object, format!("manifests/{first}"));
    assert_eq!(report.findings[0].backup, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn marks_and_notes_that_cannot_be_read_are_named_and_interrupted_prunings_told() {
    let scene = scene().await;
    for directory in ["marks", "pins", "verified", "index"] {
        let store = Arc::new(scene.store.fork());
        let path = Path::from(format!("{directory}/{}", ObjectId::random()));
        store.put(&path, b"something".to_vec().into()).await.unwrap();
        let report = check(&store, ReadData::Nothing).await;
        let [found] = report.findings.as_slice() else { panic!("{report:?}") };
        assert_eq!((found.finding.object.as_str(), found.finding.is_loss), (path.as_ref(), false));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_that_do_not_belong_are_named() {
    const CHEAP: PassphraseCost = PassphraseCost { memory_kib: 256, passes: 1, lanes: 1 };
    let (store, cache) = (Arc::new(InMemory::new()), tempfile::tempdir().unwrap());
    let encrypted = |passphrase: &str| InitOptions {
        cost: CHEAP,
        ..InitOptions::new(Encryption::Passphrase(passphrase.into()), clock())
    };
    let repository = Repository::init(store.clone(), &encrypted("one"), cache.path()).await.unwrap();
    repository.add_key("two".into(), CHEAP, "", &*clock()).await.unwrap();
    let report = repository.check(&CheckOptions::new(ReadData::All)).await.unwrap();
    assert!(report.is_sound() && report.remarks.is_empty(), "{report:?}");

    let foreign = Arc::new(InMemory::new());
    init(foreign.clone(), cache.path()).await;
    let key = objects(&foreign, "keys").await.remove(0);
    store.put(&key, bytes_of(&foreign, &key).await.into()).await.unwrap();
    let report = repository.check(&CheckOptions::new(ReadData::Nothing)).await.unwrap();
    assert!(report.is_sound(), "{report:?}");
    assert!(report.remarks[0].contains(key.as_ref()), "{report:?}");

    let own: Vec<Path> = objects(&store, "keys").await.into_iter().filter(|path| *path != key).collect();
    for path in &own {
        let kept = bytes_of(&store, path).await;
        change(&store, path, |bytes| bytes[120] ^= 1).await;
        let report = repository.check(&CheckOptions::new(ReadData::Nothing)).await.unwrap();
        assert_eq!(report.findings[0].finding.object, path.as_ref(), "{report:?}");
        store.put(path, kept.into()).await.unwrap();
    }
    let cache = tempfile::tempdir().unwrap();
    Repository::open(store, &Unlock::Passphrase("two".into()), cache.path()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_check_can_be_stopped_and_says_so() {
    let scene = scene().await;
    let cache = tempfile::tempdir().unwrap();
    let repository = open(scene.store.clone(), cache.path()).await;
    let options = CheckOptions::new(ReadData::All);
    options.cancel.cancel();
    assert!(matches!(repository.check(&options).await.unwrap_err(), Error::Cancelled));
}

/// Chunks move while it looks: nothing of that is damage.
#[tokio::test(flavor = "multi_thread")]
async fn beside_writers_and_prunings_nothing_sound_is_called_damaged() {
    let scene = scene().await;
    let caches = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let (checking, working) = (
        open(scene.store.clone(), caches[0].path()).await,
        open(scene.store.clone(), caches[1].path()).await,
    );
    let work = async {
        for round in 10..30 {
            let id = write(&working, "more", &files(round, 6, 3000)).await.unwrap().manifest.id;
            write(&working, "stays", &files(round + 100, 2, 3000)).await.unwrap();
            working.forget(id).await.unwrap();
            let options = stillframe_repo::PruneOptions {
                pause: std::time::Duration::from_millis(1),
                ..stillframe_repo::PruneOptions::new(clock())
            };
            working.prune(&options).await.unwrap();
        }
    };
    let look = async {
        for read in ALL.into_iter().cycle().take(30) {
            let report = checking.check(&CheckOptions::new(read)).await.unwrap();
            assert!(report.is_sound(), "{report:?}");
        }
    };
    tokio::join!(work, look);
}
