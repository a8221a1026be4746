//! What others do while a backup is made: files that they cut, a repository that they exchange.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures::TryStreamExt;
use stillframe_engine::create::create;
use stillframe_engine::forget::{Selection, plan_forget};
use stillframe_engine::verify::Level;
use stillframe_engine::{EngineError, Event, Kind, Retention};
use stillframe_repo::RestoredBackup;
use stillframe_storage::object_store::path::Path as ObjectPath;
use stillframe_storage::object_store::{ObjectStore, ObjectStoreExt, PutPayload};
use stillframe_testkit::write_files;

use crate::house::House;
use crate::made_rocksdb::make_rocksdb;

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

/// Where no link could keep a table, its owner may cut it while it is read. Here its link is exchanged for a shorter file.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_cut_while_it_is_read_is_captured_again_and_not_for_ever() {
    for cuts in [1, 3, 100] {
        let mut house = House::new().await;
        let database = house.data("db");
        make_rocksdb(&database, &database, &[(11, &[1; 5000]), (12, &[2; 6000])]);
        let (around, left) = (database.parent().unwrap().to_owned(), AtomicUsize::new(cuts));
        let report = Arc::clone(&house.surroundings.report);
        house.surroundings.report = Arc::new(move |event| {
            let is_captured = matches!(event, Event::Captured { .. });
            if is_captured && left.load(Ordering::Relaxed) > 0 {
                left.fetch_sub(1, Ordering::Relaxed);
                let held =
                    tables(&around).into_iter().find(|table| !table.starts_with(around.join("db"))).unwrap();
                std::fs::remove_file(&held).unwrap();
                std::fs::write(held, "short").unwrap();
            }
            report(event);
        });
        let result = house.back_up(&[&format!("rocksdb:{}", database.display())]).await;
        let warned =
            house.warnings.lock().unwrap().iter().filter(|text| text.contains("captured again")).count();
        assert_eq!(house.left_behind(), Vec::<PathBuf>::new());
        if cuts == 100 {
            let error = result.unwrap_err();
            assert!(matches!(error, EngineError::CutShort { .. }) && error.kind() == Kind::Busy, "{error}");
            assert!(error.to_string().contains("run as its owner"), "{error}");
            assert_eq!(warned, 3);
            continue;
        }
        assert_eq!(warned, cuts);
        let id = result.unwrap().id;
        let verified = house.verify(id, Level::Open).await.unwrap();
        assert!(verified.damage.is_empty() && verified.unsound.is_empty(), "{verified:?}");
    }
}

fn tables(dir: &std::path::Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    let below = entries.flat_map(|path| if path.is_dir() { tables(&path) } else { vec![path] });
    below.filter(|path| path.extension().is_some_and(|ending| ending == "sst")).collect()
}

/// Whoever restores for hours is not to find half of it gone.
#[tokio::test(flavor = "multi_thread")]
async fn a_backup_that_is_being_restored_is_not_forgotten() {
    let house = House::new().await;
    let tree = house.data("tree");
    write_files(&tree, 3, 1 << 10, 5, 1.0).unwrap();
    let url = format!("files:{}", tree.display());
    let first = house.back_up(&[&url]).await.unwrap().id;
    house.back_up(&[&url]).await.unwrap();
    let clock = Arc::clone(&house.surroundings.clock);
    let restored =
        RestoredBackup { every: Duration::from_millis(1), ..RestoredBackup::new(first, "reader", &clock) };
    let work = async {
        while house.repo.leases(clock.now()).await.unwrap().is_empty() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let retention = Retention { last: 1, ..Retention::default() };
        let policy = Selection::Policy { wanted: &|_| true, retention };
        let plan = plan_forget(&house.repo, &policy, clock.now()).await.unwrap();
        assert_eq!(plan.going().count(), 0);
        assert!(
            plan.decisions.iter().any(|decision| decision.kept == ["being restored on reader"]),
            "{plan:?}"
        );
        let named = plan_forget(&house.repo, &Selection::Ids(&[first]), clock.now()).await.unwrap_err();
        assert_eq!(named.kind(), Kind::Busy);
        assert!(named.to_string().contains("being restored on reader since"), "{named}");
    };
    house.repo.while_restoring(restored, work).await;
    let plan = plan_forget(&house.repo, &Selection::Ids(&[first]), clock.now()).await.unwrap();
    assert_eq!(plan.going().count(), 1);
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
