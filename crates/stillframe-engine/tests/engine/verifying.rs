//! How deep each level looks, and what is restored for the deepest.

use std::path::Path;

use futures::TryStreamExt;
use stillframe_engine::verify::{Level, VerifyOptions, verify};
use stillframe_engine::{EngineError, Kind};
use stillframe_storage::object_store::{ObjectStore, ObjectStoreExt, PutPayload};
use stillframe_testkit::Content;

use crate::hostile::write_backup_of_an_unknown_engine;
use crate::house::House;
use crate::made_rocksdb::make_rocksdb;

/// The largest pack gets another byte in its middle and, if so wanted, the hash that fits what it has then.
async fn damage_a_pack(house: &House, hash_fits: bool) {
    let packs: Vec<_> = house.store.list(Some(&"packs".into())).try_collect().await.unwrap();
    let pack = packs.into_iter().max_by_key(|pack| pack.size).unwrap().location;
    let mut bytes = house.store.get(&pack).await.unwrap().bytes().await.unwrap().to_vec();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    if hash_fits {
        bytes.truncate(bytes.len() - blake3::OUT_LEN);
        let hash = blake3::hash(&bytes);
        bytes.extend(hash.as_bytes());
    }
    house.store.put(&pack, PutPayload::from(bytes)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_deepest_level_finds_whatever_the_ones_before_it_find() {
    // With a hash that fits, only who decrypts finds it: a wrong byte of a file is nothing to an engine that knows only files.
    for (hash_fits, finders) in
        [(false, &[Level::Hash, Level::Decrypt, Level::Open][..]), (true, &[Level::Decrypt, Level::Open])]
    {
        let house = House::new().await;
        let tree = house.data("tree");
        std::fs::create_dir(&tree).unwrap();
        std::fs::write(tree.join("large"), Content::new(1, 1.0).bytes(3 << 20)).unwrap();
        let backup = house.back_up(&[&format!("files:{}", tree.display())]).await.unwrap().id;
        damage_a_pack(&house, hash_fits).await;
        for level in [Level::Exists, Level::Hash, Level::Decrypt, Level::Open] {
            let found = house.verify(backup, level).await.unwrap().damage;
            assert_eq!(!found.is_empty(), finders.contains(&level), "{level:?}, {hash_fits}: {found:?}");
            assert!(found.iter().all(|damage| damage.contains("large")), "{level:?}, {hash_fits}: {found:?}");
        }
        // A look that cannot see the damage takes back nothing: the next backup stores anew what it needs.
        if hash_fits {
            assert!(house.verify(backup, Level::Hash).await.unwrap().damage.is_empty());
        }
        let later = house.back_up(&[&format!("files:{}", tree.display())]).await.unwrap();
        assert!(later.statistics.bytes_new > 1 << 20, "{:?}", later.statistics);
        let found = house.verify(later.id, Level::Decrypt).await.unwrap();
        assert!(found.damage.is_empty(), "{hash_fits}: {:?}", found.damage);
        // With these copies the first one is whole again.
        let found = house.verify(backup, Level::Decrypt).await.unwrap();
        assert!(found.damage.is_empty(), "{hash_fits}: {found:?}");
        assert!(house.left_behind().is_empty());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_whose_log_has_a_directory_of_its_own_is_opened_as_a_restore_brings_it_back() {
    let house = House::new().await;
    let (kv, logs) = (house.data("kv"), house.data("logs"));
    make_rocksdb(&kv, &logs, &[(11, &Content::new(1, 1.0).bytes(5000))]);
    let backup = house.back_up(&[&format!("rocksdb:{}", kv.display())]).await.unwrap().id;
    let found = house.verify(backup, Level::Open).await.unwrap();
    assert_eq!((&found.damage, &found.unsound), (&vec![], &vec![]));
    assert!(found.files > 0 && house.left_behind().is_empty());
    // A log that is not found, or options that name the live one, would be told.
    assert_eq!(*house.warnings.lock().unwrap(), [""; 0]);
}

/// The file system of the processes tells that it has no room at all.
#[tokio::test(flavor = "multi_thread")]
async fn staging_that_is_too_small_is_named_as_it_was_given_before_anything_is_made_in_it() {
    let house = House::new().await;
    let tree = house.data("tree");
    std::fs::create_dir(&tree).unwrap();
    std::fs::write(tree.join("file"), "some bytes").unwrap();
    let backup = house.back_up(&[&format!("files:{}", tree.display())]).await.unwrap().id;
    let options = VerifyOptions { level: Level::Open, staging: "/proc".into(), host: String::new() };
    let found = verify(&house.repo, backup, &options, &house.job(), &house.surroundings).await;
    let error = found.unwrap_err();
    let EngineError::TooLarge { path, needed: 10, available: 0, .. } = &error else { panic!("{error}") };
    assert!(path == Path::new("/proc") && error.to_string().contains("--staging"), "{error}");
}

/// It may be as sound as any.
#[tokio::test(flavor = "multi_thread")]
async fn an_engine_that_this_version_does_not_know_makes_no_backup_unsound() {
    let house = House::new().await;
    let backup = write_backup_of_an_unknown_engine(&house).await;
    assert_eq!(house.verify(backup, Level::Decrypt).await.unwrap().damage, [""; 0]);
    for error in [
        house.verify(backup, Level::Open).await.unwrap_err(),
        house.restore(backup, &house.out("target")).await.unwrap_err(),
    ] {
        assert_eq!(error.kind(), Kind::Failed, "{error}");
        assert!(error.to_string().contains("use a newer Stillframe"), "{error}");
    }
    assert!(house.left_behind().is_empty() && !house.out("target").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_sound_database_is_remarked_on_is_passed_on() {
    let house = House::new().await;
    std::fs::write(house.data("empty.db"), "").unwrap();
    let backup = house.back_up(&[&format!("sqlite:{}", house.data("empty.db").display())]).await.unwrap().id;
    house.warnings.lock().unwrap().clear();
    let found = house.verify(backup, Level::Open).await.unwrap();
    assert_eq!((&found.damage, &found.unsound), (&vec![], &vec![]));
    let warnings = house.warnings.lock().unwrap();
    assert!(matches!(warnings.as_slice(), [remark] if remark.contains("empty database")), "{warnings:?}");
}
