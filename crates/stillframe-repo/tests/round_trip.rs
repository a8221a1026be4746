//! What goes in comes out, on every kind of store, and is stored once.

#![allow(clippy::unwrap_used, reason = "a test stops at what it did not expect")]

mod support;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use jiff::Timestamp;
use stillframe_repo::{
    ChunkRef, ContentRef, ContentWriter, Encryption, Error, FileEntry, FileKind, FileListWriter, InitOptions,
    MAX_CHUNK_LEN, ManifestDraft, Repository, SourceManifest, VerifyLevel, VerifyOptions, WriteEvent,
    WriteOptions, WriteSession,
};
use stillframe_storage::Clock;
use stillframe_storage::object_store::ObjectStore;
use stillframe_storage::object_store::local::LocalFileSystem;
use stillframe_storage::object_store::memory::InMemory;
use support::{Files, assert_all_whole, clock, files, init, noise, open, read, write, write_with};

fn stores(dir: &tempfile::TempDir) -> [Arc<dyn ObjectStore>; 2] {
    let local = LocalFileSystem::new_with_prefix(dir.path()).unwrap().with_fsync(true);
    [Arc::new(InMemory::new()), Arc::new(local)]
}

#[tokio::test(flavor = "multi_thread")]
async fn files_come_back_as_they_were_from_memory_and_from_a_directory() {
    let dir = tempfile::tempdir().unwrap();
    for store in stores(&dir) {
        let cache = tempfile::tempdir().unwrap();
        let repository = init(Arc::clone(&store), cache.path()).await;
        let mut content = files(1, 20, 3500);
        content.insert("empty".into(), Vec::new());
        content.insert("zeros".into(), vec![0; 100_000]);
        let written = write(&repository, "first", &content).await.unwrap();
        assert_eq!(written.rounds, 1);
        assert_eq!(read(&repository, written.manifest.id).await.unwrap(), content);
        // As another process on another machine.
        let other_cache = tempfile::tempdir().unwrap();
        let other = open(Arc::clone(&store), other_cache.path()).await;
        assert_eq!(read(&other, written.manifest.id).await.unwrap(), content);
        assert_eq!(other.manifest(written.manifest.id).await.unwrap(), written.manifest);
        assert_eq!(assert_all_whole(store).await, ["first"]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_stored_already_is_not_stored_again() {
    let (store, cache) = (Arc::new(InMemory::new()), tempfile::tempdir().unwrap());
    let repository = init(store, cache.path()).await;
    let mut content = files(1, 30, 5000);
    content.insert("twin".into(), content["dir/00003.sst"].clone());
    let first = write(&repository, "first", &content).await.unwrap().manifest.statistics;
    // 30 files of five chunks and a node each, a description, a list; the twin is known. Where the list is cut depends on the
    // key: now and then it is two chunks and their node.
    let list = |chunks: u64| (1..6).contains(&chunks);
    assert!(first.chunks_known == 6 && list(first.chunks_new - 30 * 6 - 1), "{first:?}");

    let second = write(&repository, "second", &content).await.unwrap().manifest.statistics;
    assert_eq!((second.chunks_new, second.bytes_stored, second.packs), (0, 0, 0));
    assert_eq!(second.bytes_read, first.bytes_read);

    content.insert("new".into(), noise(99, 1500));
    let third = write(&repository, "third", &content).await.unwrap().manifest.statistics;
    assert!(list(third.chunks_new - 2 - 1), "two chunks and their node, and the list: {third:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_without_a_cache_knows_what_is_stored() {
    let (store, cache) = (Arc::new(InMemory::new()), tempfile::tempdir().unwrap());
    let content = files(1, 30, 5000);
    write(&init(store.clone(), cache.path()).await, "first", &content).await.unwrap();
    let other_cache = tempfile::tempdir().unwrap();
    let other = open(store, other_cache.path()).await;
    let second = write(&other, "second", &content).await.unwrap();
    assert_eq!(second.manifest.statistics.chunks_new, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn packs_that_no_segment_names_are_found_through_their_own_tables() {
    let dir = tempfile::tempdir().unwrap();
    let store = Arc::new(LocalFileSystem::new_with_prefix(dir.path()).unwrap());
    let cache = tempfile::tempdir().unwrap();
    let content = files(1, 30, 5000);
    write(&init(store.clone(), cache.path()).await, "first", &content).await.unwrap();
    std::fs::remove_dir_all(dir.path().join("index")).unwrap();
    let other_cache = tempfile::tempdir().unwrap();
    let other = open(store.clone(), other_cache.path()).await;
    let second = write(&other, "second", &content).await.unwrap();
    assert_eq!(second.manifest.statistics.chunks_new, 0);
    assert_eq!(assert_all_whole(store).await, ["first", "second"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tree_of_several_levels_holds_a_long_content() {
    let (store, cache) = (Arc::new(InMemory::new()), tempfile::tempdir().unwrap());
    let repository = init(store, cache.path()).await;
    for chunks in [1_u32, 2, 1024, 1025, 2048, 1024 * 1024 + 1] {
        let written = repository
            .write(&WriteOptions::new(clock()), async |session: Arc<WriteSession>| {
                let work = move || {
                    let mut writer = ContentWriter::new(&session);
                    // Chunks repeat, so that a million of them cost a hash each.
                    let refs: Vec<ChunkRef> =
                        (0..997_u32).map(|n| session.put(&n.to_le_bytes())).collect::<Result<_, _>>()?;
                    for n in 0..chunks {
                        writer.push(refs[n as usize % 997])?;
                    }
                    let source =
                        SourceManifest { snapshot: writer.finish()?, ..SourceManifest::new("a", "b", "c") };
                    Ok::<_, Error>(ManifestDraft { sources: vec![source], ..ManifestDraft::default() })
                };
                tokio::task::spawn_blocking(work).await.unwrap()
            })
            .await
            .unwrap();
        let content = written.manifest.draft.sources[0].snapshot;
        let levels = match chunks {
            1 => 0,
            2..=1024 => 1,
            _ if chunks <= 1024 * 1024 => 2,
            _ => 3,
        };
        assert_eq!((content.level, content.length), (levels, u64::from(chunks) * 4));
        let mut leaves = repository.leaves(content);
        let (mut n, mut ids) = (0, Vec::new());
        while let Some(chunk) = leaves.next().await.unwrap() {
            ids.push(chunk.id);
            assert_eq!((chunk.length, chunk.id), (4, ids[n % 997]));
            n += 1;
        }
        assert_eq!(n, chunks as usize);
        if chunks <= 2048 {
            let expected: Vec<u8> = (0..chunks).flat_map(|n| (n % 997).to_le_bytes()).collect();
            assert_eq!(repository.read_content(content, u64::MAX).await.unwrap(), expected);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_file_changes_little_of_a_long_list() {
    let (store, cache) = (Arc::new(InMemory::new()), tempfile::tempdir().unwrap());
    let repository = init(store, cache.path()).await;
    let mut names: Vec<String> = (0..20_000).map(|n| format!("{:03}/{n:06}", n % 50)).collect();
    names.sort();
    let write_list = async |names: Vec<String>| {
        let describe = async |session: Arc<WriteSession>| {
            let names = names.clone();
            let work = move || {
                let mut list = FileListWriter::new(&session);
                for name in &names {
                    list.push(&support::entry(name, ContentRef::EMPTY))?;
                }
                let list = list.finish()?;
                let (files, file_count) = (list.content, list.file_count);
                let source = SourceManifest { files, file_count, ..SourceManifest::new("a", "b", "c") };
                Ok::<_, Error>(ManifestDraft { sources: vec![source], ..ManifestDraft::default() })
            };
            tokio::task::spawn_blocking(work).await.unwrap()
        };
        repository.write(&WriteOptions::new(clock()), describe).await.unwrap()
    };
    let first = write_list(names.clone()).await;
    assert!(first.manifest.statistics.chunks_new > 20, "a list of 20 000 files has many chunks");
    names.remove(9_000);
    names.push("~".into());
    let second = write_list(names.clone()).await;
    // The chunk around the removed name, the last one, and the node above.
    assert!(second.manifest.statistics.chunks_new <= 4, "{:?}", second.manifest.statistics);
    let mut list = repository.files(second.manifest.draft.sources[0].files);
    for name in &names {
        assert_eq!(list.next().await.unwrap().unwrap().path.to_string(), *name);
    }
    assert_eq!(list.next().await.unwrap(), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn entries_of_each_kind_and_directory_come_back_in_order() {
    let (store, cache) = (Arc::new(InMemory::new()), tempfile::tempdir().unwrap());
    let repository = init(store, cache.path()).await;
    let base = support::entry("a", ContentRef::EMPTY);
    let entries = [
        FileEntry { path: "a".parse().unwrap(), kind: FileKind::Directory, ..base.clone() },
        FileEntry { path: "a.b".parse().unwrap(), identity: Some(vec![7; 1024]), mtime: -3, ..base.clone() },
        FileEntry {
            path: "a/b".parse().unwrap(),
            kind: FileKind::Symlink { target: b"../../\xff".to_vec() },
            ..base.clone()
        },
        FileEntry { directory: "wal_dir".into(), ..base.clone() },
    ];
    let written = repository
        .write(&WriteOptions::new(clock()), async |session: Arc<WriteSession>| {
            let entries = entries.clone();
            let work = move || {
                let mut list = FileListWriter::new(&session);
                for entry in &entries {
                    list.push(entry)?;
                    assert!(list.push(entry).is_err(), "the same path twice");
                }
                assert!(list.push(&entries[0]).is_err(), "out of order");
                let list = list.finish()?;
                let source = SourceManifest {
                    files: list.content,
                    file_count: list.file_count,
                    ..SourceManifest::new("a", "b", "c")
                };
                Ok::<_, Error>(ManifestDraft { sources: vec![source], ..ManifestDraft::default() })
            };
            tokio::task::spawn_blocking(work).await.unwrap()
        })
        .await
        .unwrap();
    let mut list = repository.files(written.manifest.draft.sources[0].files);
    for entry in entries {
        assert_eq!(list.next().await.unwrap(), Some(entry));
    }
    assert_eq!(list.next().await.unwrap(), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_subtree_of_the_base_is_taken_over_without_reading_it() {
    let (store, cache) = (Arc::new(InMemory::new()), tempfile::tempdir().unwrap());
    let repository = init(store.clone(), cache.path()).await;
    let content = files(1, 5, 5000);
    let first = write(&repository, "first", &content).await.unwrap().manifest;
    let options = WriteOptions { base: Some(first.id), ..WriteOptions::new(clock()) };
    let source = first.draft.sources[0].clone();
    let second = repository
        .write(&options, async |session: Arc<WriteSession>| {
            assert_eq!(session.base(), Some(first.id));
            session.take_over(&source.files)?;
            let sources = vec![SourceManifest { snapshot: ContentRef::EMPTY, ..source.clone() }];
            Ok::<_, Error>(ManifestDraft { sources, ..ManifestDraft::default() })
        })
        .await
        .unwrap()
        .manifest;
    assert_eq!((second.statistics.bytes_read, second.base), (0, Some(first.id)));
    assert_eq!(second.statistics.bytes_taken_over, source.files.length);
    assert_eq!(read(&repository, second.id).await.unwrap(), content);
    // Without a base there is nothing to take over.
    let refused = repository
        .write(&WriteOptions::new(clock()), async |session: Arc<WriteSession>| {
            session.take_over(&source.files)?;
            Ok::<_, Error>(ManifestDraft::default())
        })
        .await;
    assert!(matches!(refused, Err(Error::Invalid(_))));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_is_found_by_latest_by_name_and_by_the_beginning_of_its_id() {
    let (store, cache) = (Arc::new(InMemory::new()), tempfile::tempdir().unwrap());
    let repository = init(store, cache.path()).await;
    assert!(matches!(repository.resolve("latest").await, Err(Error::NotFound { .. })));
    let content = files(1, 1, 10);
    let a = write(&repository, "nightly", &content).await.unwrap().manifest.id;
    let b = write(&repository, "nightly", &content).await.unwrap().manifest.id;
    let c = write(&repository, "weekly", &content).await.unwrap().manifest.id;
    assert_eq!(repository.resolve("latest").await.unwrap(), c);
    assert_eq!(repository.resolve("weekly").await.unwrap(), c);
    for id in [a, b, c] {
        assert_eq!(repository.resolve(&id.to_string()).await.unwrap(), id);
        assert_eq!(repository.resolve(&id.to_string()[..20]).await.unwrap(), id);
    }
    match repository.resolve("nightly").await.unwrap_err() {
        Error::Ambiguous { name, backups } => {
            let ids: Vec<_> = backups.iter().map(|(id, _)| *id).collect();
            assert_eq!((name.as_str(), ids.as_slice()), ("nightly", &[b, a][..]), "the newest first");
            assert!(backups.iter().all(|(_, created)| created.is_some()));
        }
        other => panic!("{other}"),
    }
    // How somebody else's id begins is no name to rely on: neither of the two is given for the other.
    let cafe = a.to_string()[..12].to_owned();
    let d = write(&repository, &cafe, &content).await.unwrap().manifest.id;
    match repository.resolve(&cafe).await.unwrap_err() {
        Error::Ambiguous { backups, .. } => {
            assert_eq!(backups.iter().map(|(id, _)| *id).collect::<Vec<_>>(), [d, a]);
        }
        other => panic!("{other}"),
    }
    for taken in ["latest", "", &a.to_string(), "two\nlines", "\x1b[2J", &"x".repeat(257)] {
        let refused = write(&repository, taken, &content).await.unwrap_err();
        assert!(matches!(refused, Error::Invalid(_)), "{taken:?}: {refused}");
    }
    for unknown in ["", "monthly", "zz", "../..", &"f".repeat(10_000)] {
        assert!(matches!(repository.resolve(unknown).await, Err(Error::NotFound { .. })), "{unknown:?}");
    }
    let info = repository.info().await.unwrap();
    assert_eq!((info.backups, info.unfinished, info.marks, info.keys), (4, 0, 0, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn chunks_that_cannot_be_are_refused() {
    let (store, cache) = (Arc::new(InMemory::new()), tempfile::tempdir().unwrap());
    let repository = init(store, cache.path()).await;
    let result = repository
        .write(&WriteOptions::new(clock()), async |session: Arc<WriteSession>| {
            let work = move || {
                assert!(matches!(session.put(&[]), Err(Error::Invalid(_))));
                assert!(matches!(session.put(&vec![0; MAX_CHUNK_LEN + 1]), Err(Error::Invalid(_))));
                let chunk = session.put(&vec![0; MAX_CHUNK_LEN])?;
                assert_eq!(session.put_content(&[])?, ContentRef::EMPTY);
                Ok::<_, Error>(chunk)
            };
            let chunk = tokio::task::spawn_blocking(work).await.unwrap()?;
            let snapshot = ContentRef { level: 0, id: chunk.id, length: chunk.length };
            let source = SourceManifest { snapshot, ..SourceManifest::new("a", "b", "c") };
            Ok::<_, Error>(ManifestDraft { sources: vec![source], ..ManifestDraft::default() })
        })
        .await
        .unwrap();
    let snapshot = result.manifest.draft.sources[0].snapshot;
    assert_eq!(repository.read_content(snapshot, u64::MAX).await.unwrap(), vec![0; MAX_CHUNK_LEN]);
    assert!(repository.read_content(snapshot, 10).await.is_err(), "longer than asked for");

    let options = WriteOptions::new(clock());
    let twins = repository.write(&options, async |_| {
        let sources = vec![SourceManifest::new("a", "b", "c"); 2];
        Ok::<_, Error>(ManifestDraft { sources, ..ManifestDraft::default() })
    });
    assert!(matches!(twins.await, Err(Error::Invalid(_))), "two sources of one name");
}

#[tokio::test(flavor = "multi_thread")]
async fn many_threads_may_put_at_once_and_each_chunk_is_stored_once() {
    let (store, cache) = (Arc::new(InMemory::new()), tempfile::tempdir().unwrap());
    let repository = init(store.clone(), cache.path()).await;
    let content: Arc<Files> = Arc::new(files(1, 1, 400_000));
    let written = repository
        .write(&WriteOptions::new(clock()), async |session: Arc<WriteSession>| {
            let threads: Vec<_> = (0..6)
                .map(|_| {
                    let (session, content) = (Arc::clone(&session), Arc::clone(&content));
                    tokio::task::spawn_blocking(move || {
                        support::put_file(&session, &content["dir/00000.sst"])
                    })
                })
                .collect();
            for thread in threads {
                thread.await.unwrap()?;
            }
            let content = Arc::clone(&content);
            let work = move || support::describe(&session, "x", &content);
            tokio::task::spawn_blocking(work).await.unwrap()
        })
        .await
        .unwrap();
    assert_eq!(read(&repository, written.manifest.id).await.unwrap(), *content);
    // A thread that stops between looking and appending while sixteen packs go by may store a chunk again.
    let new = written.manifest.statistics.chunks_new;
    assert!((403..=500).contains(&new), "{new} of 2400");
    assert_eq!(assert_all_whole(store).await, ["x"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn two_writers_at_once_on_one_directory_and_one_cache_both_succeed() {
    let dir = tempfile::tempdir().unwrap();
    let store = Arc::new(LocalFileSystem::new_with_prefix(dir.path()).unwrap());
    let cache = tempfile::tempdir().unwrap();
    init(store.clone(), cache.path()).await;
    let mut writers = tokio::task::JoinSet::new();
    for n in 0..4_u64 {
        // Each its own handles, as processes have; half of what they write is the same.
        let repository = open(store.clone(), cache.path()).await;
        writers.spawn(async move {
            let mut content = files(1, 20, 3000);
            content.extend(
                files(2 + n, 20, 2000).into_iter().map(|(path, bytes)| (format!("own-{path}"), bytes)),
            );
            let id = write(&repository, &format!("writer-{n}"), &content).await.unwrap().manifest.id;
            assert_eq!(read(&repository, id).await.unwrap(), content);
        });
    }
    while let Some(result) = writers.join_next().await {
        result.unwrap();
    }
    assert_eq!(assert_all_whole(store).await.len(), 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn progress_tells_of_packs_and_of_the_seal() {
    let (store, cache) = (Arc::new(InMemory::new()), tempfile::tempdir().unwrap());
    let repository = init(store, cache.path()).await;
    let events = Arc::new(std::sync::Mutex::new(Vec::new()));
    let seen = Arc::clone(&events);
    let options = WriteOptions {
        events: Some(Arc::new(move |event| seen.lock().unwrap().push(event))),
        ..WriteOptions::new(clock())
    };
    let written = write_with(&repository, &options, "x", &files(1, 30, 3000)).await.unwrap();
    let events = events.lock().unwrap();
    let id = written.manifest.id;
    let stored: u64 = events
        .iter()
        .map(|event| if let WriteEvent::PackStored { bytes } = event { *bytes } else { 0 })
        .sum();
    assert_eq!(stored, written.manifest.statistics.bytes_stored);
    assert_eq!(events[events.len() - 2..], [WriteEvent::ManifestStored { id }, WriteEvent::Sealed { id }]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_encrypted_repository_shows_nothing_of_what_is_in_it() {
    let dir = tempfile::tempdir().unwrap();
    let store = Arc::new(LocalFileSystem::new_with_prefix(dir.path()).unwrap());
    let cache = tempfile::tempdir().unwrap();
    let options = InitOptions {
        label: "the label".into(),
        ..InitOptions::new(Encryption::Passphrase("the passphrase".into()), clock())
    };
    let repository = Repository::init(store, &options, cache.path()).await.unwrap();
    let secret = b"a secret that nobody may read".repeat(100);
    let content = Files::from([("the-path".to_owned(), secret.clone())]);
    let id = write(&repository, "the-name", &content).await.unwrap().manifest.id;
    let report = repository.verify(id, &VerifyOptions::new(VerifyLevel::Decrypt)).await.unwrap();
    assert!(report.is_sound());
    let mut all = Vec::new();
    let mut dirs = vec![dir.path().to_owned(), cache.path().to_owned()];
    while let Some(dir) = dirs.pop() {
        for entry in std::fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() { dirs.push(path) } else { all.extend(std::fs::read(path).unwrap()) }
        }
    }
    for clear in [&b"the label"[..], b"the passphrase", b"the-path", b"the-name", b"a secret that"] {
        let found = all.windows(clear.len()).any(|window| window == clear);
        assert!(!found, "{:?} can be read", String::from_utf8_lossy(clear));
    }
}

/// A clock that can be set.
#[derive(Debug)]
struct Settable(Mutex<Timestamp>);

impl Clock for Settable {
    fn now(&self) -> Timestamp {
        *self.0.lock().unwrap()
    }
    fn monotonic(&self) -> Duration {
        Duration::ZERO
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clock_that_was_set_back_makes_no_new_backup_an_old_one() {
    let (store, cache) = (Arc::new(InMemory::new()), tempfile::tempdir().unwrap());
    let repository = init(store.clone(), cache.path()).await;
    let clock = Arc::new(Settable(Mutex::new("2026-03-01T00:00:00Z".parse().unwrap())));
    let warned = Arc::new(Mutex::new(0));
    let seen = Arc::clone(&warned);
    let options = WriteOptions {
        events: Some(Arc::new(move |event| {
            if let WriteEvent::ClockBehind { newest } = event {
                assert!(newest.to_string().starts_with("2026-03-01T"));
                *seen.lock().unwrap() += 1;
            }
        })),
        ..WriteOptions::new(clock.clone())
    };
    let write = async |repository: &Repository| {
        let draft = async |_| Ok::<_, Error>(ManifestDraft::default());
        repository.write(&options, draft).await.unwrap().manifest.id
    };
    let first = write(&repository).await;
    *clock.0.lock().unwrap() = "2026-01-01T00:00:00Z".parse().unwrap();
    let second = write(&repository).await;
    assert_eq!((repository.resolve("latest").await.unwrap(), *warned.lock().unwrap()), (second, 1));
    // A machine that has seen nothing learns it from the list.
    let elsewhere = tempfile::tempdir().unwrap();
    let other = open(store.clone(), elsewhere.path()).await;
    let ids: Vec<_> = other.backups().await.unwrap().readable.iter().map(|backup| backup.id).collect();
    assert_eq!(ids, [first, second]);
    let third = write(&other).await;
    assert_eq!(repository.resolve("latest").await.unwrap(), third);
    // Or by looking itself, when it makes its first one.
    let anywhere = tempfile::tempdir().unwrap();
    let fourth = write(&open(store, anywhere.path()).await).await;
    assert_eq!((repository.resolve("latest").await.unwrap(), *warned.lock().unwrap()), (fourth, 3));
}

/// Uploads take hours: what a backup shows is of the time before its own.
#[tokio::test(flavor = "multi_thread")]
async fn a_backup_that_began_first_and_ended_last_is_not_the_latest() {
    let (store, cache) = (Arc::new(InMemory::new()), tempfile::tempdir().unwrap());
    let repository = init(store.clone(), cache.path()).await;
    let clock = Arc::new(Settable(Mutex::new("2026-03-01T00:00:00Z".parse().unwrap())));
    let options = WriteOptions::new(clock.clone());
    let set = |time: &str| *clock.0.lock().unwrap() = time.parse().unwrap();
    let quick = Mutex::new(None);
    let slow = repository.write(&options, async |_| {
        set("2026-03-01T01:00:00Z");
        let draft = async |_| Ok::<_, Error>(ManifestDraft::default());
        *quick.lock().unwrap() = Some(repository.write(&options, draft).await?.manifest.id);
        set("2026-03-01T05:00:00Z");
        Ok::<_, Error>(ManifestDraft::default())
    });
    let slow = slow.await.unwrap().manifest;
    assert_eq!(slow.created.to_string(), "2026-03-01T00:00:00Z");
    assert_eq!(Some(repository.resolve("latest").await.unwrap()), *quick.lock().unwrap());
}
