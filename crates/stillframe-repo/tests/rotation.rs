//! Keys come and go, and what was written with any of them is read.

#![allow(clippy::unwrap_used, reason = "a test stops at what it did not expect")]

mod support;

use std::sync::Arc;

use stillframe_repo::{
    Encryption, Error, InitOptions, ObjectId, PassphraseCost, Repository, RotateOptions, Unlock, WriteOptions,
};
use stillframe_storage::object_store::ObjectStoreExt;
use stillframe_storage::object_store::memory::InMemory;
use stillframe_storage::object_store::path::Path;
use support::{clock, files, write};

const CHEAP: PassphraseCost = PassphraseCost { memory_kib: 256, passes: 1, lanes: 1 };

fn options(passphrase: &str) -> InitOptions {
    InitOptions {
        cost: CHEAP,
        label: "first".into(),
        ..InitOptions::new(Encryption::Passphrase(passphrase.into()), clock())
    }
}

fn rotation(clock: &dyn stillframe_storage::Clock, remove_others: bool) -> RotateOptions<'_> {
    RotateOptions { cost: CHEAP, label: None, remove_others, clock }
}

async fn opened(store: &Arc<InMemory>, passphrase: &str) -> Result<Repository, Error> {
    // Kept: the repository goes on using it.
    let cache = tempfile::tempdir().unwrap().keep();
    Repository::open(store.clone(), &Unlock::Passphrase(passphrase.into()), &cache).await
}

#[tokio::test]
async fn after_a_rotation_the_old_and_the_new_are_read_with_the_passphrase_that_stays_and_no_other() {
    let (store, cache) = (Arc::new(InMemory::new()), tempfile::tempdir().unwrap());
    let repository = Repository::init(store.clone(), &options("one"), cache.path()).await.unwrap();
    repository.add_key("two".into(), CHEAP, "second", &*clock()).await.unwrap();
    let content = files(1, 3, 3000);
    let before = write(&repository, "before", &content).await.unwrap().manifest.id;
    let refused = repository.rotate_key("one".into(), &rotation(&*clock(), false)).await.unwrap_err();
    assert!(matches!(refused, Error::Invalid(_)) && refused.to_string().contains("1 other key"), "{refused}");
    assert_eq!(repository.info().await.unwrap().keys, 2);

    let rotated = repository.rotate_key("one".into(), &rotation(&*clock(), true)).await.unwrap();
    assert_eq!(rotated.removed, 2);
    assert!(matches!(opened(&store, "two").await.unwrap_err(), Error::WrongPassphrase { keys: 1 }));
    let new = opened(&store, "one").await.unwrap();
    assert_eq!(new.info().await.unwrap().epochs, [1, rotated.epoch]);
    let after = write(&new, "after", &files(2, 3, 3000)).await.unwrap().manifest.id;
    assert_eq!(support::read(&new, before).await.unwrap(), content);
    // Equal content is still known as such.
    assert_eq!(write(&new, "again", &content).await.unwrap().manifest.statistics.chunks_new, 0);

    // Who holds the old ring reads what it was for, and is told of the rest.
    assert_eq!(support::read(&repository, before).await.unwrap(), content);
    let unknown = repository.manifest(after).await.unwrap_err();
    assert!(unknown.to_string().contains("run again"), "{unknown}");
    let keys = new.keys().await.unwrap();
    assert_eq!(keys.len(), 1);
    assert_eq!(keys[0].as_ref().unwrap().label, "first");
}

/// A backup runs for hours; whoever rotates does not wait for it.
#[tokio::test]
async fn a_backup_that_began_before_a_rotation_is_finished_and_read_by_all() {
    let (store, cache) = (Arc::new(InMemory::new()), tempfile::tempdir().unwrap());
    let repository = Repository::init(store.clone(), &options("one"), cache.path()).await.unwrap();
    let content = files(3, 3, 3000);
    let other = opened(&store, "one").await.unwrap();
    let id = repository
        .write(&WriteOptions::new(clock()), async |session| {
            other.rotate_key("one".into(), &rotation(&*clock(), false)).await?;
            let content = content.clone();
            let work = move || support::describe(&session, "during", &content);
            tokio::task::spawn_blocking(work).await.unwrap()
        })
        .await
        .unwrap()
        .manifest
        .id;
    let new = opened(&store, "one").await.unwrap();
    assert_eq!(support::read(&new, id).await.unwrap(), content);
}

/// Each leaves what the other made, and what either wrote is read.
#[tokio::test(flavor = "multi_thread")]
async fn two_rotations_at_once_lose_nothing() {
    for _ in 0..20 {
        let (store, cache) = (Arc::new(InMemory::new()), tempfile::tempdir().unwrap());
        Repository::init(store.clone(), &options("one"), cache.path()).await.unwrap();
        let (one, two) = (opened(&store, "one").await.unwrap(), opened(&store, "one").await.unwrap());
        let rotate = |repository: Repository| {
            tokio::spawn(async move { repository.rotate_key("one".into(), &rotation(&*clock(), true)).await })
        };
        let (first, second) = (rotate(one), rotate(two));
        // One that sees the other's key may say so; its own is in use all the same.
        let (first, second) = (first.await.unwrap(), second.await.unwrap());
        assert!(first.is_ok() || second.is_ok(), "{first:?} {second:?}");
        let mut written = Vec::new();
        for number in 0..2 {
            let repository = opened(&store, "one").await.unwrap();
            written.push(write(&repository, "x", &files(number, 1, 2000)).await.unwrap().manifest.id);
            // A third one tidies up.
            repository.rotate_key("one".into(), &rotation(&*clock(), true)).await.unwrap();
        }
        let last = opened(&store, "one").await.unwrap();
        for id in written {
            support::read(&last, id).await.unwrap();
        }
        assert_eq!(last.info().await.unwrap().keys, 1);
    }
}

/// Of two rotations at once each key may be the only one that knows an epoch: nothing may be removed by what another key seems to know.
#[tokio::test]
async fn what_two_rotations_left_is_brought_together_before_a_key_is_removed_or_added() {
    let (store, cache) = (Arc::new(InMemory::new()), tempfile::tempdir().unwrap());
    let first = Repository::init(store.clone(), &options("one"), cache.path()).await.unwrap();
    let second = opened(&store, "one").await.unwrap();
    // As if both had listed the keys before either put its own: the key that each began with is put back.
    let key_path = |id: ObjectId| Path::from(format!("keys/{id}"));
    let stored = async |path: &Path| store.get(path).await.unwrap().bytes().await.unwrap();
    let original = key_path(first.keys().await.unwrap().into_iter().flatten().next().unwrap().id);
    let of_original = stored(&original).await;
    let one = first.rotate_key("one".into(), &rotation(&*clock(), false)).await.unwrap();
    let by_one = write(&opened(&store, "one").await.unwrap(), "x", &files(1, 1, 2000)).await.unwrap();
    let (of_one, path) = (stored(&key_path(one.key)).await, key_path(one.key));
    store.delete(&path).await.unwrap();
    store.put(&original, of_original.into()).await.unwrap();
    second.rotate_key("one".into(), &rotation(&*clock(), false)).await.unwrap();
    store.put(&path, of_one.into()).await.unwrap();
    let both = opened(&store, "one").await.unwrap();
    let by_two = write(&both, "y", &files(2, 1, 2000)).await.unwrap();
    let other = both.keys().await.unwrap().into_iter().flatten().find(|key| !key.current).unwrap().id;
    let refused = both.remove_key(other).await.unwrap_err();
    assert!(matches!(refused, Error::Invalid(_)) && refused.to_string().contains("key rotate"), "{refused}");
    both.add_key("two".into(), CHEAP, "", &*clock()).await.unwrap_err();

    both.rotate_key("one".into(), &rotation(&*clock(), true)).await.unwrap();
    let last = opened(&store, "one").await.unwrap();
    assert_eq!(last.info().await.unwrap().keys, 1);
    let added = last.add_key("two".into(), CHEAP, "", &*clock()).await.unwrap();
    last.remove_key(added).await.unwrap();
    for id in [by_one.manifest.id, by_two.manifest.id] {
        support::read(&last, id).await.unwrap();
    }
}

#[tokio::test]
async fn a_key_that_is_removed_opens_nothing_and_the_last_one_stays() {
    let (store, cache) = (Arc::new(InMemory::new()), tempfile::tempdir().unwrap());
    let repository = Repository::init(store.clone(), &options("one"), cache.path()).await.unwrap();
    let second = repository.add_key("two".into(), CHEAP, "second", &*clock()).await.unwrap();
    let current = repository.keys().await.unwrap().into_iter().flatten().find(|key| key.current).unwrap().id;
    assert!(matches!(repository.remove_key(current).await.unwrap_err(), Error::Invalid(_)));
    repository.remove_key(second).await.unwrap();
    assert!(matches!(repository.remove_key(second).await.unwrap_err(), Error::Invalid(_)));
    assert!(matches!(opened(&store, "two").await.unwrap_err(), Error::WrongPassphrase { keys: 1 }));
    opened(&store, "one").await.unwrap();

    // Two that remove each other's: whoever finds none left puts back what it took.
    let third = repository.add_key("three".into(), CHEAP, "", &*clock()).await.unwrap();
    let other = opened(&store, "three").await.unwrap();
    let (one, two) = tokio::join!(repository.remove_key(third), other.remove_key(current));
    assert!(one.is_err() || two.is_err(), "{one:?} {two:?}");
    assert!(repository.info().await.unwrap().keys > 0);
}

#[tokio::test]
async fn a_rotation_removes_no_key_that_only_a_newer_program_reads() {
    let (store, cache) = (Arc::new(InMemory::new()), tempfile::tempdir().unwrap());
    let repository = Repository::init(store.clone(), &options("one"), cache.path()).await.unwrap();
    let second = repository.add_key("two".into(), CHEAP, "second", &*clock()).await.unwrap();
    let path = Path::from(format!("keys/{second}"));
    let mut bytes = store.get(&path).await.unwrap().bytes().await.unwrap().to_vec();
    // The version, and the hash that says that nobody else changed it.
    bytes[9] = 2;
    let content = bytes.len() - 32;
    let hash = blake3::hash(&bytes[..content]);
    bytes[content..].copy_from_slice(hash.as_bytes());
    store.put(&path, bytes.clone().into()).await.unwrap();

    let refused = repository.rotate_key("one".into(), &rotation(&*clock(), true)).await.unwrap_err();
    assert!(matches!(refused, Error::NewerFormat { .. }), "{refused}");
    assert_eq!(store.get(&path).await.unwrap().bytes().await.unwrap(), bytes);
    assert_eq!(repository.keys().await.unwrap().len(), 2, "no new key either");
}
