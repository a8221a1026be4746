//! Who may open a repository, and what everybody else is told.

#![allow(clippy::unwrap_used, reason = "a test stops at what it did not expect")]

mod support;

use std::sync::Arc;

use stillframe_repo::{Encryption, Error, InitOptions, Passphrase, PassphraseCost, Repository, Unlock};
use stillframe_storage::object_store::memory::InMemory;
use stillframe_storage::object_store::path::Path;
use stillframe_storage::object_store::{ObjectStore, ObjectStoreExt, PutPayload};
use support::fault_store::{FaultStore, Moment, Which};
use support::{clock, files, read, write};

const CHEAP: PassphraseCost = PassphraseCost { memory_kib: 256, passes: 1, lanes: 1 };

fn with(passphrase: &str) -> Unlock {
    Unlock::Passphrase(passphrase.into())
}

fn encrypted(passphrase: &str) -> InitOptions {
    InitOptions { cost: CHEAP, ..InitOptions::new(Encryption::Passphrase(passphrase.into()), clock()) }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_passphrase_opens_the_same_repository_and_others_do_not() {
    let (store, cache) = (Arc::new(InMemory::new()), tempfile::tempdir().unwrap());
    let options = InitOptions { label: "first".into(), ..encrypted("one") };
    let repository = Repository::init(store.clone(), &options, cache.path()).await.unwrap();
    let content = files(1, 3, 3000);
    let id = write(&repository, "a", &content).await.unwrap().manifest.id;
    repository.add_key("two".into(), CHEAP, "second", &*clock()).await.unwrap();
    for (passphrase, label) in [("one", "first"), ("two", "second")] {
        let opened = Repository::open(store.clone(), &with(passphrase), cache.path()).await.unwrap();
        assert_eq!(read(&opened, id).await.unwrap(), content);
        let keys: Vec<_> = opened.keys().await.unwrap().into_iter().map(Result::unwrap).collect();
        assert_eq!(keys.len(), 2);
        assert!(keys.iter().all(|key| key.encrypted));
        let current: Vec<_> = keys.iter().filter(|key| key.current).map(|key| key.label.as_str()).collect();
        assert_eq!(current, [label]);
    }
    let error = Repository::open(store.clone(), &with("three"), cache.path()).await.unwrap_err();
    assert!(matches!(error, Error::WrongPassphrase { keys: 2 }), "{error}");
    let error = Repository::open(store, &Unlock::None, cache.path()).await.unwrap_err();
    assert!(matches!(error, Error::PassphraseNeeded), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_usual_cost_opens_with_the_passphrase() {
    let (store, cache) = (Arc::new(InMemory::new()), tempfile::tempdir().unwrap());
    let options = InitOptions::new(Encryption::Passphrase("one".into()), clock());
    let made = Repository::init(store.clone(), &options, cache.path()).await.unwrap();
    let opened = Repository::open(store, &with("one"), cache.path()).await.unwrap();
    assert_eq!(opened.id(), made.id());
    assert!(opened.info().await.unwrap().encrypted);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_passphrase_is_not_accepted_silently_where_nothing_is_encrypted() {
    let (store, cache) = (Arc::new(InMemory::new()), tempfile::tempdir().unwrap());
    let repository = support::init(store.clone(), cache.path()).await;
    let error = Repository::open(store, &with("one"), cache.path()).await.unwrap_err();
    assert!(matches!(error, Error::NotEncrypted), "{error}");
    let error = repository.add_key("one".into(), CHEAP, "", &*clock()).await.unwrap_err();
    assert!(matches!(error, Error::Invalid(_)), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bare_key_slipped_into_an_encrypted_repository_is_not_used() {
    let (store, cache) = (Arc::new(InMemory::new()), tempfile::tempdir().unwrap());
    let repository = Repository::init(store.clone(), &encrypted("one"), cache.path()).await.unwrap();
    // An enemy makes a repository of his own and gives its key the name and id of ours.
    let enemy = Arc::new(InMemory::new());
    support::init(enemy.clone(), cache.path()).await;
    let key = only_object(&*enemy, "keys").await;
    let mut bytes = enemy.get(&key).await.unwrap().bytes().await.unwrap().to_vec();
    bytes[16..32].copy_from_slice(repository.id().as_bytes());
    let end = bytes.len() - 32;
    let hash = blake3::hash(&bytes[..end]);
    bytes[end..].copy_from_slice(hash.as_bytes());
    store.put(&key, bytes.into()).await.unwrap();
    let opened = Repository::open(store.clone(), &with("one"), cache.path()).await.unwrap();
    assert_eq!(opened.id(), repository.id());
    write(&opened, "a", &files(1, 1, 100)).await.unwrap();
    let error = Repository::open(store.clone(), &Unlock::None, cache.path()).await.unwrap_err();
    assert!(matches!(error, Error::PassphraseNeeded), "{error}");
    // Even when it is the only one left.
    for key in objects(&*store, "keys").await {
        if key != only_object(&*enemy, "keys").await {
            store.delete(&key).await.unwrap();
        }
    }
    let error = Repository::open(store, &with("one"), cache.path()).await.unwrap_err();
    assert!(matches!(error, Error::NotEncrypted), "{error}");
}

async fn objects(store: &dyn ObjectStore, kind: &str) -> Vec<Path> {
    use futures::TryStreamExt;
    let prefix = Path::from(kind);
    store.list(Some(&prefix)).map_ok(|meta| meta.location).try_collect().await.unwrap()
}

async fn only_object(store: &dyn ObjectStore, kind: &str) -> Path {
    let objects = objects(store, kind).await;
    assert_eq!(objects.len(), 1);
    objects[0].clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_key_is_named_and_does_not_lock_out_the_others() {
    let (store, cache) = (Arc::new(InMemory::new()), tempfile::tempdir().unwrap());
    let repository = Repository::init(store.clone(), &encrypted("one"), cache.path()).await.unwrap();
    let first = only_object(&*store, "keys").await;
    let second = repository.add_key("two".into(), CHEAP, "", &*clock()).await.unwrap();
    let mut bytes = store.get(&first).await.unwrap().bytes().await.unwrap().to_vec();
    bytes[120] ^= 1;
    store.put(&first, bytes.into()).await.unwrap();
    let opened = Repository::open(store.clone(), &with("two"), cache.path()).await.unwrap();
    let keys = opened.keys().await.unwrap();
    let error = keys.iter().find_map(|key| key.as_ref().err()).unwrap().to_string();
    assert!(error.contains(first.as_ref()), "{error}");
    assert!(keys.iter().any(|key| key.as_ref().is_ok_and(|key| key.id == second)));
    let error = Repository::open(store, &with("one"), cache.path()).await.unwrap_err().to_string();
    assert!(error.contains(first.as_ref()), "the passphrase may be right, the key is damaged: {error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_place_that_holds_anything_of_a_repository_is_not_made_one() {
    let (store, cache) = (Arc::new(InMemory::new()), tempfile::tempdir().unwrap());
    let options = InitOptions::new(Encryption::None, clock());
    let empty = Repository::open(store.clone(), &Unlock::None, cache.path()).await.unwrap_err();
    assert!(matches!(empty, Error::NotARepository), "{empty}");
    let repository = Repository::init(store.clone(), &options, cache.path()).await.unwrap();
    let error = Repository::init(store.clone(), &options, cache.path()).await.unwrap_err();
    assert!(matches!(error, Error::Occupied { whole: true, .. }), "{error}");
    write(&repository, "a", &files(1, 1, 100)).await.unwrap();
    store.delete(&Path::from("stillframe.json")).await.unwrap();
    let error = Repository::init(store.clone(), &options, cache.path()).await.unwrap_err();
    assert!(matches!(error, Error::Occupied { whole: false, .. }), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn making_a_repository_can_be_cut_short_anywhere_and_done_again() {
    for moment in [Moment::BeforeTheEffect, Moment::AfterTheEffect] {
        for request in 0.. {
            let (inner, cache) = (Arc::new(InMemory::new()), tempfile::tempdir().unwrap());
            let store = FaultStore::new(inner.clone());
            store.fail(Which::From(request), moment);
            let options =
                InitOptions { pack_size: support::PACK_SIZE, ..InitOptions::new(Encryption::None, clock()) };
            let made = Repository::init(store.clone(), &options, cache.path()).await;
            if made.is_ok() {
                assert!(request > 7, "it takes more requests than {request}");
                break;
            }
            store.heal();
            match Repository::init(store.clone(), &options, cache.path()).await {
                Ok(_) | Err(Error::Occupied { whole: true, .. }) => {}
                Err(error) => panic!("after {request}: {error}"),
            }
            let repository = support::open(store, cache.path()).await;
            write(&repository, "a", &files(1, 1, 100)).await.unwrap();
            assert_eq!(support::assert_all_whole(inner).await, ["a"]);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_that_make_a_repository_at_once_one_wins_and_the_other_is_told() {
    for _ in 0..20 {
        let store = Arc::new(InMemory::new());
        let (a, b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let options = InitOptions::new(Encryption::None, clock());
        let (first, second) = tokio::join!(
            Repository::init(store.clone(), &options, a.path()),
            Repository::init(store.clone(), &options, b.path())
        );
        assert!(first.is_ok() != second.is_ok());
        let winner = first.or(second).unwrap();
        assert_eq!(support::open(store, a.path()).await.id(), winner.id());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_newer_or_broken_description_is_told_apart() {
    let (store, cache) = (Arc::new(InMemory::new()), tempfile::tempdir().unwrap());
    let path = Path::from("stillframe.json");
    support::init(store.clone(), cache.path()).await;
    let good = store.get(&path).await.unwrap().bytes().await.unwrap();
    let mut json: serde_json::Value = serde_json::from_slice(&good).unwrap();
    json["format"] = 2.into();
    store.put(&path, PutPayload::from(json.to_string().into_bytes())).await.unwrap();
    let error = Repository::open(store.clone(), &Unlock::None, cache.path()).await.unwrap_err();
    assert!(matches!(error, Error::NewerFormat { found: 2, supported: 1, .. }), "{error}");
    for broken in ["", "{", "[]", "{\"stillframe\": \"else\", \"format\": 1}", "{\"format\": 1}"] {
        store.put(&path, broken.to_owned().into_bytes().into()).await.unwrap();
        let error = Repository::open(store.clone(), &Unlock::None, cache.path()).await.unwrap_err();
        assert!(matches!(error, Error::Damaged { .. }), "{broken}: {error}");
    }
    json["format"] = 1.into();
    for pack_size in [0_u64, 1, u64::MAX] {
        json["pack_size"] = pack_size.into();
        store.put(&path, json.to_string().into_bytes().into()).await.unwrap();
        assert!(Repository::open(store.clone(), &Unlock::None, cache.path()).await.is_err());
    }
}

#[test]
fn a_passphrase_is_not_shown() {
    let text = format!("{:?} {:?}", Passphrase::from("hidden"), Unlock::Passphrase("hidden".into()));
    assert!(!text.contains("hidden"), "{text}");
}
