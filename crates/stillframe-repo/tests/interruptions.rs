//! A write that fails, is cancelled or is dropped leaves nothing that looks whole, harms nothing, and is continued cheaply.

#![allow(clippy::unwrap_used, reason = "a test stops at what it did not expect")]

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use stillframe_repo::{Error, ManifestDraft, WriteOptions, WriteSession};
use stillframe_storage::object_store::memory::InMemory;
use stillframe_storage::object_store::{ObjectStore, ObjectStoreExt};
use support::fault_store::{FaultStore, Moment, Which};
use support::{assert_all_whole, clock, files, init, open, write, write_with};
use tokio_util::sync::CancellationToken;

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_fails_at_any_request_never_leaves_a_broken_backup() {
    let (prepared, cache) = (InMemory::new(), tempfile::tempdir().unwrap());
    let prepared = Arc::new(prepared);
    let old = files(1, 10, 3000);
    write(&init(prepared.clone(), cache.path()).await, "old", &old).await.unwrap();
    let mut new = old.clone();
    new.extend(files(2, 6, 3000).into_iter().map(|(path, bytes)| (format!("new-{path}"), bytes)));

    let counting = FaultStore::new(Arc::new(prepared.fork()));
    let counting_cache = tempfile::tempdir().unwrap();
    let repository = open(counting.clone(), counting_cache.path()).await;
    counting.heal();
    write(&repository, "new", &new).await.unwrap();
    let requests = counting.requests();
    assert!(requests > 10, "{requests}");

    let fail = async |which: Which, moment: Moment| {
        let inner = Arc::new(prepared.fork());
        let store = FaultStore::new(inner.clone());
        let cache = tempfile::tempdir().unwrap();
        let repository = open(store.clone(), cache.path()).await;
        store.fail(which, moment);
        let result = write(&repository, "new", &new).await;
        let at = format!("{which:?} {moment:?}: {result:?}");
        let names = assert_all_whole(inner.clone()).await;
        if result.is_ok() {
            assert_eq!(names, ["old", "new"], "{at}");
        } else if let Which::Only(_) = which {
            assert_eq!(names, ["old"], "a failed write took back what it could: {at}");
            let left = open(inner.clone(), cache.path()).await.info().await.unwrap();
            assert_eq!(left.unfinished, 0, "{at}");
        }
        // The next run removes what is left and succeeds.
        drop(repository);
        store.heal();
        let repository = open(store, cache.path()).await;
        write(&repository, "again", &new).await.unwrap();
        let names = assert_all_whole(inner).await;
        assert_eq!(names.last().map(String::as_str), Some("again"), "{at}");
        assert_eq!(repository.info().await.unwrap().unfinished, 0, "{at}");
        result.is_ok()
    };
    let mut failures = 0;
    for moment in [Moment::BeforeTheEffect, Moment::AfterTheEffect] {
        for request in 0..requests {
            failures += u64::from(!fail(Which::Only(request), moment).await);
            failures += u64::from(!fail(Which::From(request), moment).await);
        }
    }
    // The number of requests varies by one or two with the order in which packs arrive.
    assert!(failures >= 4 * requests - 12, "{failures} of {}", 4 * requests);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_interrupted_write_is_continued_with_what_it_uploaded() {
    let inner = Arc::new(InMemory::new());
    let store = FaultStore::new(inner.clone());
    let cache = tempfile::tempdir().unwrap();
    let repository = init(store.clone(), cache.path()).await;
    let content = files(1, 80, 4000);
    let puts = Arc::new(AtomicU64::new(0));
    let counted = Arc::clone(&puts);
    let failing = Arc::downgrade(&store);
    store.before_each(Arc::new(move |verb, path| {
        if verb == "put" && path.starts_with("packs/") && counted.fetch_add(1, Ordering::SeqCst) == 30 {
            failing.upgrade().unwrap().fail(Which::From(0), Moment::BeforeTheEffect);
        }
        Box::pin(async {})
    }));
    assert!(write(&repository, "a", &content).await.is_err());
    store.heal();
    let stored = repository.info().await.unwrap();
    assert!(stored.packs >= 28, "{}", stored.packs);
    assert_eq!((stored.backups, stored.unfinished), (0, 0));
    // Once with what this machine remembers, once as a machine that remembers nothing.
    for dir in [cache, tempfile::tempdir().unwrap()] {
        let fork = Arc::new(inner.fork());
        let repository = open(fork.clone(), dir.path()).await;
        let statistics = write(&repository, "a", &content).await.unwrap().manifest.statistics;
        let known: u64 = statistics.chunks_known;
        // Packs of 8 KiB hold at least seven chunks of 1000 bytes.
        assert!(known >= stored.packs * 7, "{known} chunks known, {} packs stored", stored.packs);
        let all = repository.info().await.unwrap();
        assert!(all.pack_bytes - stored.pack_bytes <= statistics.bytes_stored);
        assert_eq!(assert_all_whole(fork).await, ["a"]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_write_ends_soon_and_leaves_no_backup() {
    let store = Arc::new(InMemory::new());
    let cache = tempfile::tempdir().unwrap();
    let repository = init(store.clone(), cache.path()).await;
    for after in [0, 1, 50, 150] {
        let cancel = CancellationToken::new();
        let options = WriteOptions { cancel: cancel.clone(), ..WriteOptions::new(clock()) };
        let result = repository
            .write(&options, async |session: Arc<WriteSession>| {
                let cancel = cancel.clone();
                let work = move || {
                    for n in 0..1_000_u64 {
                        if n == after {
                            cancel.cancel();
                        }
                        session.put(&support::noise(after * 10_000 + n, 1000))?;
                    }
                    Ok::<_, Error>(ManifestDraft::default())
                };
                tokio::task::spawn_blocking(work).await.unwrap()
            })
            .await;
        assert!(matches!(result, Err(Error::Cancelled)), "{result:?}");
    }
    let info = repository.info().await.unwrap();
    assert_eq!((info.backups, info.unfinished), (0, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_cancelled_at_any_step_of_the_protocol_leaves_no_backup() {
    for step in ["manifests/", "marks", "packs"] {
        let inner = Arc::new(InMemory::new());
        let store = FaultStore::new(inner.clone());
        let cache = tempfile::tempdir().unwrap();
        let repository = init(store.clone(), cache.path()).await;
        let cancel = CancellationToken::new();
        let options = WriteOptions { cancel: cancel.clone(), ..WriteOptions::new(clock()) };
        let manifest_put = Arc::new(AtomicU64::new(0));
        store.before_each(Arc::new(move |verb, path| {
            let put = verb == "put" && path.starts_with("manifests/");
            if put {
                manifest_put.fetch_add(1, Ordering::SeqCst);
            }
            if manifest_put.load(Ordering::SeqCst) > 0 && path.starts_with(step) {
                cancel.cancel();
            }
            Box::pin(async {})
        }));
        let result = write_with(&repository, &options, "x", &files(1, 3, 3000)).await;
        assert!(matches!(result, Err(Error::Cancelled)), "{step}: {result:?}");
        let info = repository.info().await.unwrap();
        assert_eq!((info.backups, info.unfinished), (0, 0), "{step}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dropped_write_stops_its_threads_and_the_next_run_cleans_up() {
    let inner = Arc::new(InMemory::new());
    let store = FaultStore::new(inner.clone());
    let cache = tempfile::tempdir().unwrap();
    let repository = init(store.clone(), cache.path()).await;
    // Hangs right after the manifest is put, as if the machine had stopped.
    let reached = CancellationToken::new();
    let signal = reached.clone();
    let manifest_put = Arc::new(AtomicU64::new(0));
    store.before_each(Arc::new(move |verb, path| {
        if verb == "put" && path.starts_with("manifests/") {
            manifest_put.fetch_add(1, Ordering::SeqCst);
        }
        if manifest_put.load(Ordering::SeqCst) > 0 && verb == "list" {
            signal.cancel();
            return Box::pin(std::future::pending());
        }
        Box::pin(async {})
    }));
    let content = files(1, 3, 3000);
    tokio::select! {
        result = write(&repository, "x", &content) => panic!("{result:?}"),
        () = reached.cancelled() => {}
    }
    store.heal();
    let info = repository.info().await.unwrap();
    assert_eq!((info.backups, info.unfinished), (0, 1));
    let written = write(&repository, "y", &content).await.unwrap();
    assert_eq!(written.manifest.statistics.chunks_new, 0, "what it uploaded is used");
    let info = repository.info().await.unwrap();
    assert_eq!((info.backups, info.unfinished), (1, 0), "what it left is removed");

    // Threads that go on putting are told to stop.
    let (sender, receiver) = std::sync::mpsc::channel();
    let begun = CancellationToken::new();
    let options = WriteOptions::new(clock());
    {
        let write = repository.write(&options, |session: Arc<WriteSession>| {
            let thread = std::thread::spawn(move || {
                (0..).find_map(|n| session.put(&support::noise(n, 500)).err()).unwrap()
            });
            sender.send(thread).unwrap();
            begun.cancel();
            std::future::pending::<Result<ManifestDraft, Error>>()
        });
        tokio::select! {
            _ = write => panic!("it hangs"),
            () = begun.cancelled() => {}
        }
    }
    let handle = receiver.recv().unwrap();
    let error = tokio::task::spawn_blocking(move || handle.join().unwrap()).await.unwrap();
    assert!(matches!(error, Error::Cancelled | Error::Stopped), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_is_told_as_such() {
    let inner = Arc::new(InMemory::new());
    let store = FaultStore::new(inner.clone());
    let cache = tempfile::tempdir().unwrap();
    let repository = init(store.clone(), cache.path()).await;
    store.fail_puts_with(std::io::ErrorKind::StorageFull);
    let error = write(&repository, "a", &files(1, 20, 4000)).await.unwrap_err();
    assert!(matches!(error, Error::NoSpace { .. }), "{error}");
    store.fail_puts_with(std::io::ErrorKind::PermissionDenied);
    let error = write(&repository, "a", &files(1, 20, 4000)).await.unwrap_err();
    assert!(matches!(error, Error::PermissionDenied { .. }), "{error}");
    store.heal();
    write(&repository, "a", &files(1, 20, 4000)).await.unwrap();
    assert_eq!(assert_all_whole(inner).await, ["a"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_error_of_the_caller_is_the_callers_and_leaves_no_backup() {
    #[derive(Debug)]
    enum Mine {
        Repository(Error),
        Source,
    }
    impl From<Error> for Mine {
        fn from(error: Error) -> Self {
            Self::Repository(error)
        }
    }
    let store = Arc::new(InMemory::new());
    let cache = tempfile::tempdir().unwrap();
    let repository = init(store.clone(), cache.path()).await;
    let options = WriteOptions::new(clock());
    let failed = repository.write(&options, async |session: Arc<WriteSession>| {
        let work = move || (0..50).try_for_each(|n| session.put(&support::noise(n, 1000)).map(drop));
        tokio::task::spawn_blocking(work).await.unwrap()?;
        Err(Mine::Source)
    });
    assert!(matches!(failed.await, Err(Mine::Source)));
    let broken = FaultStore::new(store.clone());
    let repository = open(broken.clone(), cache.path()).await;
    let failed = repository.write(&options, async |session: Arc<WriteSession>| {
        broken.fail(Which::From(0), Moment::BeforeTheEffect);
        let work = move || (0..500).try_for_each(|n| session.put(&support::noise(n + 100, 1000)).map(drop));
        tokio::task::spawn_blocking(work).await.unwrap()?;
        Err(Mine::Source)
    });
    match failed.await {
        Err(Mine::Repository(error @ Error::Store { .. })) => {
            assert!(error.to_string().contains("packs/"), "the failure itself, not its echo: {error}");
        }
        other => panic!("{other:?}"),
    }
    let objects = futures::TryStreamExt::try_collect::<Vec<_>>(store.list(None)).await.unwrap();
    assert!(!objects.iter().any(|meta| meta.location.as_ref().starts_with("manifests")));
    assert!(store.head(&"stillframe.json".into()).await.is_ok());
}
