//! A backup that is pinned is not forgotten, whatever happens at the same time.

#![allow(clippy::unwrap_used, reason = "a test stops at what it did not expect")]

mod support;

use std::sync::Arc;

use jiff::Timestamp;
use stillframe_repo::{Error, Pin, Verification};
use stillframe_storage::object_store::ObjectStoreExt;
use stillframe_storage::object_store::memory::InMemory;
use support::fault_store::{FaultStore, Moment, Which};
use support::{assert_all_whole, files, init, open, write};

fn pin(why: &str) -> Pin {
    Pin { why: why.into(), since: Timestamp::UNIX_EPOCH, host: "here".into() }
}

#[tokio::test]
async fn a_pin_holds_until_it_is_taken_away_and_needs_a_backup() {
    let (store, cache) = (Arc::new(InMemory::new()), tempfile::tempdir().unwrap());
    let repository = init(store.clone(), cache.path()).await;
    let id = write(&repository, "one", &files(1, 3, 2000)).await.unwrap().manifest.id;
    repository.pin(id, &pin("first words")).await.unwrap();
    repository.pin(id, &pin("other words")).await.unwrap();
    assert_eq!(repository.pins().await.unwrap(), [(id, Some(pin("other words")))].into());
    let refused = repository.forget(id).await.unwrap_err();
    assert!(matches!(refused, Error::Pinned { backup } if backup == id), "{refused}");
    assert_eq!(assert_all_whole(store.clone()).await, ["one"]);
    // One that nobody can read protects all the same.
    let path = format!("pins/{id}").as_str().into();
    store.put(&path, b"rot".to_vec().into()).await.unwrap();
    assert_eq!(repository.pins().await.unwrap(), [(id, None)].into());
    assert!(matches!(repository.forget(id).await.unwrap_err(), Error::Pinned { .. }));

    assert!(repository.unpin(id).await.unwrap());
    assert!(!repository.unpin(id).await.unwrap());
    repository.forget(id).await.unwrap();
    let gone = repository.pin(id, &pin("")).await.unwrap_err();
    assert!(matches!(gone, Error::NotFound { .. }), "{gone}");
    assert!(repository.pins().await.unwrap().is_empty());
}

/// Two at once: either the pin is there and so is the backup, or neither is.
#[tokio::test(flavor = "multi_thread")]
async fn of_a_pinning_and_a_forgetting_at_once_one_gives_way() {
    let (store, cache, other) =
        (Arc::new(InMemory::new()), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let repository = init(store.clone(), cache.path()).await;
    let elsewhere = open(store.clone(), other.path()).await;
    let content = files(2, 1, 100);
    let mut seen = [0, 0, 0];
    for _ in 0..300 {
        let id = write(&repository, "one", &content).await.unwrap().manifest.id;
        let (one, two) = (repository.clone(), elsewhere.clone());
        let pinning = tokio::spawn(async move { one.pin(id, &pin("x")).await });
        let forgetting = tokio::spawn(async move { two.forget(id).await });
        let (pinned, forgotten) = (pinning.await.unwrap(), forgetting.await.unwrap());
        let is_there = repository.manifest(id).await.is_ok();
        let is_pinned = repository.pins().await.unwrap().contains_key(&id);
        match (pinned, forgotten) {
            (Ok(()), Err(Error::Pinned { .. })) => {
                assert!(is_there && is_pinned);
                seen[0] += 1;
            }
            (Err(Error::NotFound { .. }), Ok(())) => {
                assert!(!is_there && !is_pinned);
                seen[1] += 1;
            }
            // Both gave way: the backup is there, and pinned.
            (Err(Error::GivenUp { .. }), Err(Error::Pinned { .. })) => {
                assert!(is_there && is_pinned);
                seen[2] += 1;
            }
            // The pin came too late to be seen, and the look for the manifest before that was gone: the next pruning takes the pin away.
            (Err(Error::GivenUp { .. }), Ok(())) => {
                assert!(!is_there);
                seen[2] += 1;
            }
            other => panic!("{other:?}"),
        }
        if is_there {
            repository.unpin(id).await.unwrap();
            repository.forget(id).await.unwrap();
        }
    }
    assert!(seen[0] + seen[1] > 200, "{seen:?}");
}

/// Who forgets found no pin, and dies after the seal is gone. Who pinned meanwhile found the seal, and was told that the backup stays.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_pinned_while_somebody_died_forgetting_it_is_sealed_again() {
    let (inner, cache, other) =
        (Arc::new(InMemory::new()), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let store = FaultStore::new(inner.clone());
    let repository = init(store.clone(), cache.path()).await;
    let elsewhere = open(inner.clone(), other.path()).await;
    for is_pinned in [true, false] {
        let id = write(&repository, "one", &files(2, 3, 2000)).await.unwrap().manifest.id;
        let there = elsewhere.clone();
        store.before_each(Arc::new(move |verb, path| {
            let there = there.clone();
            Box::pin(async move {
                if is_pinned && verb == "delete" && path.starts_with("sealed") {
                    there.pin(id, &pin("stays")).await.unwrap();
                }
            })
        }));
        // The first request looks for a pin.
        store.fail(Which::From(1), Moment::AfterTheEffect);
        repository.forget(id).await.unwrap_err();
        store.heal();
        assert!(
            matches!(elsewhere.manifest(id).await.unwrap_err(), Error::NotFound { .. }),
            "it lost its seal"
        );
        repository.remove_leftovers().await.unwrap();
        assert_eq!(elsewhere.manifest(id).await.is_ok(), is_pinned);
        if is_pinned {
            assert_eq!(assert_all_whole(inner.clone()).await, ["one"]);
            elsewhere.unpin(id).await.unwrap();
            repository.forget(id).await.unwrap();
        }
        assert!(inner.head(&format!("manifests/{id}").as_str().into()).await.is_err());
    }
}

#[tokio::test]
async fn what_was_said_of_a_backup_goes_with_it() {
    let (store, cache) = (Arc::new(InMemory::new()), tempfile::tempdir().unwrap());
    let repository = init(store.clone(), cache.path()).await;
    let id = write(&repository, "one", &files(3, 3, 2000)).await.unwrap().manifest.id;
    let verification =
        |whole| Verification { at: Timestamp::UNIX_EPOCH, host: "here".into(), sound: whole, whole };
    repository.record_verification(id, "hash", verification(true)).await.unwrap();
    repository.record_verification(id, "decrypt", verification(false)).await.unwrap();
    let verified = repository.verified(id).await.unwrap().unwrap();
    assert!(verified.is_damaged());
    assert_eq!(repository.all_verified().await.unwrap(), [(id, verified)].into());
    repository.forget(id).await.unwrap();
    assert!(repository.all_verified().await.unwrap().is_empty());
    repository.record_verification(id, "hash", verification(true)).await.unwrap();
    assert!(repository.verified(id).await.unwrap().is_none(), "of one that is gone nothing is said");
    // Somebody died between two steps.
    let orphan = format!("pins/{id}").as_str().into();
    store.put(&orphan, b"x".to_vec().into()).await.unwrap();
    let options = stillframe_repo::PruneOptions::new(support::clock());
    repository.prune(&options).await.unwrap();
    assert!(store.head(&orphan).await.is_err());
}
