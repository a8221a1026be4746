//! Restores of databases whose logs have a directory of their own, restores for which there is no room, and restores that fail in the
//! middle of their writes.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::pin::pin;
use std::sync::mpsc::channel;
use std::time::Duration;

use crate::hostile::{write_backup_announcing, write_backup_without_list};
use crate::house::House;
use crate::made_rocksdb::make_rocksdb;
use futures::TryStreamExt;
use stillframe_engine::restore::{RestoreOptions, restore};
use stillframe_engine::{EngineError, Kind};
use stillframe_repo::FileKind;
use stillframe_storage::object_store::{ObjectStore, ObjectStoreExt};
use stillframe_testkit::{Content, Effect, Fault, Inventory, Operation};

fn wal_dir_of(database: &Path) -> Option<String> {
    let options = std::fs::read_to_string(database.join("OPTIONS-000007")).unwrap();
    assert!(options.contains("\n  max_open_files=-1\n"), "{options}");
    let mut lines = options.lines().filter_map(|line| line.trim().strip_prefix("wal_dir="));
    let named = lines.next().map(str::to_owned);
    assert_eq!(lines.next(), None, "{options}");
    named
}

/// A program that opens the copy with the options that it finds there replays and deletes the logs that they name.
#[tokio::test(flavor = "multi_thread")]
async fn the_options_of_a_restored_rocksdb_name_the_restored_logs_and_never_the_live_ones() {
    let house = House::new().await;
    let (kv, logs, other) = (house.data("kv"), house.data("logs"), house.data("other"));
    make_rocksdb(&kv, &logs, &[(11, b"table")]);
    make_rocksdb(&other, &other, &[(11, b"another")]);
    std::fs::set_permissions(kv.join("OPTIONS-000007"), std::fs::Permissions::from_mode(0o640)).unwrap();
    let sources = [&kv, &other].map(|dir| format!("rocksdb:{}", dir.display()));
    let live = Inventory::of(&logs).unwrap();
    let alone = house.back_up(&[&sources[0]]).await.unwrap().id;
    let both = house.back_up(&[&sources[0], &sources[1]]).await.unwrap().id;

    // Which backup, how its log directory is mapped, where the database comes to be, and where its logs.
    let cases = [
        (alone, None, "", Some("wal_dir")),
        (alone, Some("some/where"), "", Some("some/where")),
        (alone, Some("."), "", None),
        (both, None, "kv", Some("wal_dir")),
        (both, Some("some/where"), "kv", Some("some/where")),
    ];
    for (turn, (backup, mapped, database, place)) in cases.into_iter().enumerate() {
        let target = house.out(&format!("target-{turn}"));
        let map: BTreeMap<_, _> =
            mapped.iter().map(|new| ("wal_dir".to_owned(), (*new).to_owned())).collect();
        let options = RestoreOptions { target: target.clone(), source: None, map, host: String::new() };
        let outcome =
            restore(&house.repo, backup, &options, &house.job(), &house.surroundings).await.unwrap();
        let database = target.join(database);
        let place = place.map(|place| database.join(place));
        let log = std::fs::read(place.as_ref().unwrap_or(&database).join("000200.log")).unwrap();
        assert!(log == std::fs::read(logs.join("000200.log")).unwrap(), "{turn}");
        assert_eq!(wal_dir_of(&database), place.map(|place| place.display().to_string()), "{turn}");
        let [remark] = outcome.remarks.as_slice() else { panic!("{:?}", outcome.remarks) };
        assert!(remark.contains(&target.display().to_string()) && remark.contains("wal_dir"), "{remark}");
        // Written twice, it still has what it was recorded with.
        let seen = |dir: &Path| {
            let meta = std::fs::metadata(dir.join("OPTIONS-000007")).unwrap();
            (meta.mode(), meta.mtime(), meta.mtime_nsec())
        };
        assert_eq!(seen(&database), seen(&kv), "{turn}");
    }
    assert_eq!(wal_dir_of(&house.out("target-3/other")), None);
    assert!(Inventory::of(&logs).unwrap().changes_beside_links(&live).is_empty());
    assert_eq!(wal_dir_of(&kv), Some(logs.display().to_string()), "the source stays as it was");
    assert_eq!(house.left_behind(), Vec::<std::path::PathBuf>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_for_which_there_is_no_room_is_refused_before_anything_is_written() {
    let house = House::new().await;
    let id = write_backup_announcing(&house, u64::MAX / 2).await;
    let error = house.restore(id, &house.out("made/for/target")).await.unwrap_err();
    let EngineError::TooLarge { needed, available, .. } = &error else { panic!("{error}") };
    assert!(*needed == u64::MAX / 2 && available < needed, "{error}");
    assert!(error.to_string().contains("--to"), "{error}");
    assert!(!house.out("made").exists());
    assert_eq!(house.left_behind(), Vec::<std::path::PathBuf>::new());
}

/// Every pack of a small backup holds something else: what is lost with each is told with its name and with what to do.
#[tokio::test(flavor = "multi_thread")]
async fn whatever_of_a_source_is_lost_is_named_with_what_can_be_done() {
    let house = House::new().await;
    let tree = house.data("tree");
    std::fs::create_dir(&tree).unwrap();
    // So many chunks that nodes stand between the file and them.
    std::fs::write(tree.join("large"), Content::new(1, 1.0).bytes(20 << 20)).unwrap();
    let backup = house.back_up(&[&format!("files:{}", tree.display())]).await.unwrap().id;
    let source = house.repo.manifest(backup).await.unwrap().draft.sources.swap_remove(0);
    let mut list = house.repo.files(source.files);
    let FileKind::File { content } = list.next().await.unwrap().unwrap().kind else { panic!("a file") };
    assert!(content.level > 0);
    let packs: Vec<_> = house.store.list(Some(&"packs".into())).try_collect().await.unwrap();
    let mut told = BTreeSet::new();
    for pack in packs.into_iter().map(|pack| pack.location) {
        let bytes = house.store.get(&pack).await.unwrap().bytes().await.unwrap();
        house.store.delete(&pack).await.unwrap();
        let repo = house.opened_elsewhere().await;
        let target = house.out("target");
        let options = RestoreOptions {
            target: target.clone(),
            source: None,
            map: BTreeMap::new(),
            host: String::new(),
        };
        let restored = restore(&repo, backup, &options, &house.job(), &house.surroundings).await;
        let error = restored.unwrap_err();
        let EngineError::Lost { what, .. } = &error else { panic!("{error}") };
        let text = error.to_string();
        assert!(text.contains("stillframe verify") && text.contains("--source"), "{text}");
        told.insert(what.clone());
        assert!(!target.exists());
        house.store.put(&pack, bytes.into()).await.unwrap();
    }
    assert!(told.contains("large") && told.contains("the description of tree"), "{told:?}");
}

/// A list whose bytes are those of something else is as lost as one that is gone.
#[tokio::test(flavor = "multi_thread")]
async fn a_lost_file_list_is_named_with_its_source() {
    let house = House::new().await;
    let id = write_backup_without_list(&house).await;
    let error = house.restore(id, &house.out("target")).await.unwrap_err();
    assert!(matches!(&error, EngineError::Lost { what, .. } if what == "the file list of s"), "{error}");
    assert!(error.kind() == Kind::Damaged && !house.out("target").exists(), "{error}");
}

/// On a runtime with one thread for blocking work, which the test keeps: a batch of files that was fetched waits for it to be written.
#[test]
fn a_restore_that_fails_ends_only_when_nothing_is_written_any_more() {
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    let runtime = runtime.worker_threads(2).max_blocking_threads(1).enable_all().build().unwrap();
    runtime.block_on(async {
        let house = House::new().await;
        let tree = house.data("tree");
        std::fs::create_dir(&tree).unwrap();
        // Two batches of files, each fetched with one request, and so small that they are decoded where they arrive.
        for n in 0..300 {
            std::fs::write(tree.join(format!("{n:03}")), n.to_string()).unwrap();
        }
        let backup = house.back_up(&[&format!("files:{}", tree.display())]).await.unwrap().id;
        let restored = async |name: &str| house.restore(backup, &house.out(name)).await;
        let before = house.store.log().len();
        restored("whole").await.unwrap();
        let log = house.store.log().split_off(before);
        let is_pack =
            |(what, name): &&(Operation, String)| *what == Operation::Get && name.starts_with("packs/");
        assert!(log.iter().rev().take_while(is_pack).count() >= 2, "{log:?}");

        let (release, kept) = channel::<()>();
        let keeper = tokio::task::spawn_blocking(move || kept.recv());
        let last = u64::try_from(log.len()).unwrap();
        house.store.inject(Fault::nth(last, Effect::FailBefore).forever());
        let before = house.store.log().len();
        let mut restoring = pin!(restored("failed"));
        let has_failed = async {
            while house.store.log().len() - before < log.len() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            // Long enough for who does not wait to come to his end.
            tokio::time::sleep(Duration::from_millis(200)).await;
        };
        tokio::select! {
            early = &mut restoring => panic!("it has ended while files were still to be written: {early:?}"),
            () = has_failed => {}
        }
        release.send(()).unwrap();
        restoring.await.unwrap_err();
        keeper.await.unwrap().unwrap();
        assert!(!house.out("failed").exists());
        assert_eq!(house.left_behind(), Vec::<std::path::PathBuf>::new());
    });
}
