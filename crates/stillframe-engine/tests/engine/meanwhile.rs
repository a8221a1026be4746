//! What others do while a backup is made: files that they cut, a repository that they exchange.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures::TryStreamExt;
use stillframe_engine::create::create;
use stillframe_engine::verify::Level;
use stillframe_engine::{EngineError, Event};
use stillframe_storage::object_store::path::Path as ObjectPath;
use stillframe_storage::object_store::{ObjectStore, ObjectStoreExt, PutPayload};
use stillframe_testkit::write_files;

use crate::house::House;

#[tokio::test(flavor = "multi_thread")]
async fn files_that_somebody_cuts_are_kept_as_they_are_then_and_told() {
    let mut house = House::new().await;
    let tree = house.data("tree");
    std::fs::create_dir(&tree).unwrap();
    for name in ["cut", "emptied", "whole"] {
        std::fs::write(tree.join(name), vec![7; 9 << 20]).unwrap();
    }
    let cut = |path: PathBuf, len: u64| {
        std::fs::File::options().write(true).open(path).unwrap().set_len(len).unwrap();
    };
    let (in_tree, report) = (tree.clone(), Arc::clone(&house.surroundings.report));
    house.surroundings.report = Arc::new(move |event| {
        if let Event::Captured { .. } = event {
            cut(in_tree.join("cut"), 5 << 20);
            cut(in_tree.join("emptied"), 0);
        }
        report(event);
    });
    let outcome = house.back_up(&[&format!("files:{}", tree.display())]).await.unwrap();
    let told = |texts: &[String]| {
        texts.iter().any(|text| text.contains("cut by somebody") && text.contains("1 more"))
    };
    assert!(told(&house.warnings.lock().unwrap()));
    let manifest = house.repo.manifest(outcome.id).await.unwrap();
    assert!(told(&manifest.draft.warnings), "{:?}", manifest.draft.warnings);
    let verified = house.verify(outcome.id, Level::Open).await.unwrap();
    assert_eq!((verified.damage, verified.bytes), (vec![], 14 << 20));
    let target = house.out("restored");
    house.restore(outcome.id, &target).await.unwrap();
    for (name, len) in [("cut", 5 << 20), ("emptied", 0), ("whole", 9 << 20)] {
        assert_eq!(std::fs::read(target.join(name)).unwrap(), vec![7; len], "{name}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repository_that_is_exchanged_or_loses_its_key_has_no_backup() {
    for exchange in [true, false] {
        let (house, other) = (House::new().await, House::new().await);
        let tree = house.data("tree");
        write_files(&tree, 20, 1 << 20, 5, 1.0).unwrap();
        let config = ObjectPath::from("stillframe.json");
        let keys: Vec<_> = house.store.list(Some(&ObjectPath::from("keys"))).try_collect().await.unwrap();
        let key = keys[0].location.clone();
        let ours = house.store.get(&config).await.unwrap().bytes().await.unwrap();
        let our_key = house.store.get(&key).await.unwrap().bytes().await.unwrap();
        let theirs = other.store.get(&config).await.unwrap().bytes().await.unwrap();
        let options = house.options(&[&format!("files:{}", tree.display())]);
        let job = house.job();
        let work = create(house.opening(), &options, &job, &house.surroundings);
        let meanwhile = async {
            while !house.store.log().iter().any(|(_, name)| name.starts_with("packs/")) {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            if exchange {
                house.store.put(&config, PutPayload::from_bytes(theirs.clone())).await.unwrap();
            } else {
                house.store.delete(&key).await.unwrap();
            }
        };
        let (result, ()) = tokio::join!(work, meanwhile);
        let error: EngineError = result.unwrap_err();
        assert!(
            error.to_string().contains(if exchange { "another repository's" } else { "is gone now" }),
            "{error}"
        );
        house.store.put(&config, PutPayload::from_bytes(ours.clone())).await.unwrap();
        house.store.put(&key, PutPayload::from_bytes(our_key.clone())).await.unwrap();
        let backups = house.opened_elsewhere().await.backups().await.unwrap();
        assert!(
            backups.readable.is_empty() && backups.unreadable.is_empty() && backups.unfinished.is_empty()
        );
        assert_eq!(house.left_behind(), Vec::<PathBuf>::new());
    }
}
