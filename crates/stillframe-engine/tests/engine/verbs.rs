//! The verbs on real databases and files, with a repository in memory that fails when it is told to.

use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use crate::house::House;
use futures::TryStreamExt;
use stillframe_engine::create::{create, plan};
use stillframe_engine::restore::{RestoreOptions, restore};
use stillframe_engine::verify::Level;
use stillframe_engine::{EngineError, Event, Kind, Reserve, Surroundings};
use stillframe_jobs::Progress;
use stillframe_storage::object_store::{ObjectStore, ObjectStoreExt};
use stillframe_storage::{Attributes, SystemClock};
use stillframe_testkit::{
    Content, Detail, Effect, Fault, FjallLoad, Inventory, Operation, ScratchCopy, SqliteLoad, Stop,
    tree_digest, write_files,
};

/// A tree with everything that a tree can have.
fn make_tree(dir: &Path) {
    std::fs::create_dir_all(dir.join("deep/er")).unwrap();
    std::fs::create_dir(dir.join("empty")).unwrap();
    std::fs::write(dir.join("nothing"), "").unwrap();
    std::fs::write(dir.join("deep/er/small"), "small").unwrap();
    std::fs::write(dir.join("deep/large"), Content::new(7, 0.5).bytes(9 << 20)).unwrap();
    std::fs::write(dir.join("name with\nnewline \\ and ünïcode"), "x").unwrap();
    symlink("/nowhere/../outside", dir.join("link")).unwrap();
    std::fs::set_permissions(dir.join("deep/large"), std::fs::Permissions::from_mode(0o640)).unwrap();
    std::fs::set_permissions(dir.join("empty"), std::fs::Permissions::from_mode(0o511)).unwrap();
    std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o750)).unwrap();
    let then = SystemTime::UNIX_EPOCH + Duration::new(1_000_000_000, 123_456_789);
    for file in ["nothing", "deep/er/small", "deep/large"] {
        std::fs::File::options().write(true).open(dir.join(file)).unwrap().set_modified(then).unwrap();
    }
    for dir in [dir.join("deep/er"), dir.join("deep"), dir.join("empty"), dir.to_owned()] {
        std::fs::File::open(dir).unwrap().set_modified(then).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tree_comes_back_with_names_bytes_modes_and_times() {
    let house = House::new().await;
    let tree = house.data("tree");
    make_tree(&tree);
    let outcome = house.back_up(&[&format!("files:{}", tree.display())]).await.unwrap();
    let back = house.out("back");
    house.restore(outcome.id, &back).await.unwrap();
    let digest = |dir: &Path| tree_digest(dir, Detail::ModesAndTimes).unwrap();
    assert_eq!(digest(&back), digest(&tree));
    assert_eq!(std::fs::read_link(back.join("link")).unwrap(), Path::new("/nowhere/../outside"));
    assert_eq!(house.left_behind(), Vec::<std::path::PathBuf>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn databases_come_back_row_for_row_and_what_is_unchanged_is_not_read_again() {
    let house = House::new().await;
    let (kv, app) = (house.data("kv"), house.data("app.db"));
    let clock = SystemClock::new();
    let (fjall, sqlite) = (FjallLoad::default(), SqliteLoad::default());
    fjall.write(&kv, &house.out("kv.ledger"), &Stop::at(2000), &clock).unwrap();
    sqlite.write(&app, &house.out("app.ledger"), &Stop::at(200), &clock).unwrap();
    let sources = [format!("fjall:{}", kv.display()), format!("sqlite:{}", app.display())];
    let sources: Vec<&str> = sources.iter().map(String::as_str).collect();
    let before = Inventory::of(&kv).unwrap();

    let first = house.back_up(&sources).await.unwrap();
    let second = house.back_up(&sources).await.unwrap();
    assert!(second.statistics.bytes_taken_over > 0, "{:?}", second.statistics);
    assert!(second.statistics.bytes_new < first.statistics.bytes_new / 20, "{:?}", second.statistics);
    let dry =
        plan(house.opening(), &house.options(&sources), &house.job(), &house.surroundings).await.unwrap();
    assert_eq!(dry.base, Some(second.id));
    assert!(dry.sources[0].unchanged_files > 0 && dry.sources[1].unchanged_files == 0, "{dry:?}");
    assert_eq!(house.repo.backups().await.unwrap().readable.len(), 2, "a dry run writes no backup");
    let changes = Inventory::of(&kv).unwrap().changes_beside_links(&before);
    assert!(changes.is_empty(), "the source was touched: {changes:?}");

    let scratch = house.out("scratch");
    std::fs::create_dir(&scratch).unwrap();
    for (name, id) in [("one", first.id), ("two", second.id)] {
        for level in [Level::Exists, Level::Hash, Level::Decrypt, Level::Open] {
            let found = house.verify(id, level).await.unwrap();
            assert!(found.damage.is_empty() && found.files > 0, "{level:?}: {:?}", found.damage);
        }
        let back = house.out(name);
        house.restore(id, &back).await.unwrap();
        assert_eq!(fjall.check(&back.join("kv"), &scratch).unwrap(), 2000);
        assert_eq!(sqlite.check(&back.join("app.db/app.db"), &scratch).unwrap(), 200);
    }
    assert_eq!(house.left_behind(), Vec::<std::path::PathBuf>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_reads_as_many_manifests_after_forty_backups_as_after_two() {
    let house = House::new().await;
    let kv = house.data("kv");
    let load = FjallLoad { memtable_bytes: 64 << 10, ..FjallLoad::default() };
    load.write(&kv, &house.out("ledger"), &Stop::at(500), &SystemClock::new()).unwrap();
    let source = format!("fjall:{}", kv.display());
    let mut reads = Vec::new();
    for _ in 0..40 {
        let before = house.store.log().len();
        let outcome = house.back_up(&[&source]).await.unwrap();
        assert!(outcome.statistics.bytes_taken_over > 0 || reads.is_empty());
        let log = house.store.log();
        reads.push(
            log[before..]
                .iter()
                .filter(|(what, name)| *what == Operation::Get && name.starts_with("manifests/"))
                .count(),
        );
    }
    assert_eq!(reads[2], reads[39], "{reads:?}");
    // Without the memory the newest one is searched for, and found.
    std::fs::remove_dir_all(house.out("cache/bases")).unwrap();
    assert!(house.back_up(&[&source]).await.unwrap().statistics.bytes_taken_over > 0);
}

/// The tables of all keyspaces but the first, which is about the others and must stay readable; in order of their paths.
fn tables_of(kv: &Path) -> Vec<PathBuf> {
    let keyspaces = std::fs::read_dir(kv.join("keyspaces")).unwrap().map(|entry| entry.unwrap().path());
    let dirs = keyspaces.filter(|keyspace| !keyspace.ends_with("0")).map(|keyspace| keyspace.join("tables"));
    let tables = dirs.flat_map(|dir| std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()));
    let mut tables: Vec<_> = tables.collect();
    tables.sort_unstable();
    tables
}

fn set_time_of(path: &Path, meta: &std::fs::Metadata) {
    let file = std::fs::File::options().append(true).open(path).unwrap();
    file.set_modified(meta.modified().unwrap()).unwrap();
}

/// Writes until there are so many tables: they are written in the background, when there is enough for one.
fn write_tables(load: &FjallLoad, kv: &Path, ledger: &Path, least: usize) {
    for commits in (3000..).step_by(3000) {
        load.write(kv, ledger, &Stop::at(commits), &SystemClock::new()).unwrap();
        if tables_of(kv).len() >= least {
            return;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn tables_that_lie_about_being_unchanged_are_found_out() {
    let house = House::new().await;
    let kv = house.data("kv");
    let load = FjallLoad { memtable_bytes: 64 << 10, ..FjallLoad::default() };
    write_tables(&load, &kv, &house.out("ledger"), 1);
    let source = format!("fjall:{}", kv.display());
    house.back_up(&[&source]).await.unwrap();
    // Same names, sizes, times and pointers, other bytes: no identity shows it, only reading does.
    for path in tables_of(&kv) {
        let (meta, mut bytes) = (path.metadata().unwrap(), std::fs::read(&path).unwrap());
        bytes.iter_mut().for_each(|byte| *byte ^= 0x55);
        std::fs::write(&path, bytes).unwrap();
        set_time_of(&path, &meta);
    }
    // Each backup reads one table of all of them, by lot.
    for _ in 0..100 {
        let again = house.back_up(&[&source]).await.unwrap();
        let warnings = house.warnings.lock().unwrap().join("\n");
        if warnings.contains("claims to be unchanged and is not") {
            assert_eq!(again.statistics.bytes_taken_over, 0);
            return;
        }
    }
    panic!("a hundred looks were in vain");
}

#[tokio::test(flavor = "multi_thread")]
async fn files_of_one_database_are_never_taken_over_for_another_that_calls_its_files_the_same() {
    let house = House::new().await;
    let kv = house.data("kv");
    let load = FjallLoad { memtable_bytes: 64 << 10, ..FjallLoad::default() };
    write_tables(&load, &kv, &house.out("ledger"), 2);
    // A copy, in which one byte of one table is another: paths, sizes, times and identities are all the same. One table only, since a
    // comparison of samples would always find all of them out, and most often not find this one.
    std::fs::create_dir(house.out("scratch")).unwrap();
    let copy = ScratchCopy::of_directory(&kv, &house.out("scratch")).unwrap();
    let changed = tables_of(&copy.path()).pop().unwrap();
    let mut bytes = std::fs::read(&changed).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&changed, bytes).unwrap();
    for table in tables_of(&copy.path()) {
        let original = kv.join(table.strip_prefix(copy.path()).unwrap());
        set_time_of(&table, &original.metadata().unwrap());
    }
    let sources = [&kv, &copy.path()].map(|dir| format!("fjall:{}", dir.display()));
    let both: Vec<&str> = sources.iter().map(String::as_str).collect();
    let unchanged = async || -> Vec<u64> {
        let options = house.options(&both);
        let plan = plan(house.opening(), &options, &house.job(), &house.surroundings).await.unwrap();
        plan.sources.iter().map(|source| source.unchanged_files).collect()
    };

    house.back_up(&both[..1]).await.unwrap();
    let found = unchanged().await;
    assert!(found[0] > 1 && found[1] == 0, "{found:?}: there is no earlier backup of the copy");
    for turn in ["the copy for the first time", "both again"] {
        let backup = house.back_up(&both).await.unwrap();
        let back = house.out(turn);
        house.restore(backup.id, &back).await.unwrap();
        for (original, name) in [(&kv, "kv"), (&copy.path(), "copy")] {
            for table in tables_of(original) {
                let restored = back.join(name).join(table.strip_prefix(original).unwrap());
                let same = std::fs::read(&restored).unwrap() == std::fs::read(&table).unwrap();
                assert!(same, "{turn}: {} has other bytes than its source", restored.display());
            }
        }
        let found = unchanged().await;
        assert!(found[0] > 1 && found[1] == found[0], "{turn}: {found:?} unchanged files, of equally many");
    }
    assert_eq!(*house.warnings.lock().unwrap(), [""; 0]);
    // The newest backups of one of them are not the one that has both.
    house.back_up(&both[..1]).await.unwrap();
    house.back_up(&both[1..]).await.unwrap();
    let found = unchanged().await;
    assert!(found[0] > 1 && found[1] > 1, "{found:?}");
    std::fs::remove_dir_all(house.out("cache/bases")).unwrap();
    assert_eq!(unchanged().await, found, "without memory the same one is found");
}

#[tokio::test(flavor = "multi_thread")]
async fn damage_in_the_repository_is_mended_by_the_next_backup_that_comes_upon_it() {
    let house = House::new().await;
    let kv = house.data("kv");
    let load = FjallLoad { memtable_bytes: 64 << 10, ..FjallLoad::default() };
    load.write(&kv, &house.out("ledger"), &Stop::at(20_000), &SystemClock::new()).unwrap();
    let (source, scratch) = (format!("fjall:{}", kv.display()), house.out("scratch"));
    std::fs::create_dir(&scratch).unwrap();
    house.back_up(&[&source]).await.unwrap();
    for how in ["flipped", "lost"] {
        let packs: Vec<_> = house.store.list(Some(&"packs".into())).try_collect().await.unwrap();
        for pack in packs.into_iter().map(|pack| pack.location) {
            if how == "lost" {
                house.store.delete(&pack).await.unwrap();
            } else {
                let mut bytes = house.store.get(&pack).await.unwrap().bytes().await.unwrap().to_vec();
                bytes.iter_mut().skip(100).step_by(1000).for_each(|byte| *byte ^= 1);
                house.store.put(&pack, bytes.into()).await.unwrap();
            }
        }
        let again = house.back_up(&[&source]).await.unwrap();
        let warnings = std::mem::take(&mut *house.warnings.lock().unwrap()).join("\n");
        assert!(warnings.contains("is damaged") && warnings.contains("verify"), "{how}: {warnings}");
        let restored = house.out(how);
        house.restore(again.id, &restored).await.unwrap();
        assert_eq!(load.check(&restored, &scratch).unwrap(), 20_000, "{how}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn whichever_pack_is_lost_or_cut_the_next_backup_does_not_rely_on_it() {
    let house = House::new().await;
    let kv = house.data("kv");
    let load = FjallLoad { memtable_bytes: 64 << 10, ..FjallLoad::default() };
    load.write(&kv, &house.out("ledger"), &Stop::at(20_000), &SystemClock::new()).unwrap();
    let source = format!("fjall:{}", kv.display());
    let mut newest = house.back_up(&[&source]).await.unwrap();
    for turn in 0..8 {
        let packs: Vec<_> = house.store.list(Some(&"packs".into())).try_collect().await.unwrap();
        let mut hit = None;
        for pack in packs.iter().map(|pack| &pack.location).cycle().skip(turn * 7).take(packs.len()) {
            let bytes = house.store.get(pack).await.unwrap().bytes().await.unwrap();
            if turn % 2 == 0 {
                house.store.delete(pack).await.unwrap();
            } else {
                house.store.put(pack, bytes.slice(..bytes.len() - 1).into()).await.unwrap();
            }
            let damage = house.verify(newest.id, Level::Exists).await.unwrap().damage;
            if !damage.is_empty() {
                hit = Some(pack);
                break;
            }
            // It is an earlier backup's.
            house.store.put(pack, bytes.into()).await.unwrap();
        }
        let pack = hit.expect("the newest backup is in some of the packs");
        newest = house.back_up(&[&source]).await.unwrap();
        let found = house.verify(newest.id, Level::Decrypt).await.unwrap();
        assert!(found.damage.is_empty(), "turn {turn}, {pack}: {:?}", found.damage);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn links_holes_and_the_directory_of_a_database_come_back_as_they_were() {
    let house = House::new().await;
    let tree = house.data("tree");
    std::fs::create_dir(&tree).unwrap();
    symlink("nowhere", tree.join("link")).unwrap();
    let then = Attributes { mode: 0, uid: 12, gid: 34, modified: "2001-01-01T00:00:00.5Z".parse().unwrap() };
    let _ = then.apply_to_link(&tree.join("link")).unwrap();
    // Something, a hole, something across the border of a chunk, and a hole at the end.
    let sparse = std::fs::File::create(tree.join("sparse")).unwrap();
    sparse.write_all_at(b"begin", 0).unwrap();
    sparse.write_all_at(&[7; 3000], (4 << 20) - 1000).unwrap();
    sparse.set_len(64 << 20).unwrap();
    let holder = house.data("holder");
    std::fs::create_dir(&holder).unwrap();
    SqliteLoad::default()
        .write(&holder.join("app.db"), &house.out("ledger"), &Stop::at(10), &SystemClock::new())
        .unwrap();
    std::fs::set_permissions(&holder, std::fs::Permissions::from_mode(0o2750)).unwrap();
    let sources =
        [format!("files:{}", tree.display()), format!("sqlite:{}", holder.join("app.db").display())];
    let backup = house.back_up(&[&sources[0], &sources[1]]).await.unwrap().id;
    let back = house.out("back");
    house.restore(backup, &back).await.unwrap();

    let (was, is) =
        [&tree, &back.join("tree")].map(|dir| std::fs::symlink_metadata(dir.join("link")).unwrap()).into();
    let seen = |meta: &std::fs::Metadata| (meta.uid(), meta.gid(), meta.mtime(), meta.mtime_nsec());
    assert_eq!(seen(&is), seen(&was));
    assert_eq!((is.mtime(), is.mtime_nsec()), (978_307_200, 500_000_000));
    let bytes = |dir: &Path| std::fs::read(dir.join("sparse")).unwrap();
    assert!(bytes(&tree) == bytes(&back.join("tree")), "the same bytes");
    let used = std::fs::metadata(back.join("tree/sparse")).unwrap().blocks() * 512;
    assert!(used < 1 << 20, "{used} bytes of 64 MiB are used");
    let mode = |path: &Path| std::fs::metadata(path).unwrap().mode() & 0o7777;
    assert_eq!((mode(&back), mode(&back.join("app.db"))), (0o755, 0o2750));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restore_that_fails_takes_away_the_directories_that_it_made() {
    let house = House::new().await;
    let tree = house.data("tree");
    make_tree(&tree);
    let backup = house.back_up(&[&format!("files:{}", tree.display())]).await.unwrap().id;
    let target = house.out("made/for/it/target");
    house.store.inject(Fault::nth_of(Operation::Get, "packs", 4, Effect::FailBefore).forever());
    house.restore(backup, &target).await.unwrap_err();
    assert!(!house.out("made").exists());
    house.store.heal();
    house.restore(backup, &target).await.unwrap();
    assert!(target.join("deep/large").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_read_counts_as_done_when_it_is_sent() {
    let house = House::new().await;
    let tree = house.data("tree");
    write_files(&tree, 2, 600 << 10, 3, 1.0).unwrap();
    let readings = Arc::new(Mutex::new(Vec::new()));
    let told = Arc::clone(&readings);
    let report = move |event| {
        if let Event::Progress(reading) = event {
            told.lock().unwrap().push(reading.progress);
        }
    };
    let surroundings = Surroundings { report: Arc::new(report), ..house.surroundings.clone() };
    // Everything fits into the packs on their way, so all is read at once; one of them takes its time.
    house.store.inject(Fault::nth_of(Operation::Put, "packs", 1, Effect::Delay(Duration::from_millis(2500))));
    let options = house.options(&[&format!("files:{}", tree.display())]);
    create(house.opening(), &options, &house.job(), &surroundings).await.unwrap();
    let readings = readings.lock().unwrap();
    let whole = readings.last().and_then(|last| last.bytes_total).unwrap();
    assert!(whole > 1 << 20 && readings.last().is_some_and(|last| last.bytes_done == whole), "{readings:?}");
    let waiting: Vec<_> = readings.iter().filter(|progress| progress.bytes_done < whole).collect();
    assert!(waiting.len() >= 2, "told every second: {readings:?}");
    let all_files = |progress: &Progress| Some(progress.files_done) == progress.files_total;
    assert!(waiting.iter().all(|progress| !all_files(progress)), "neither is its file: {readings:?}");
    assert!(readings.last().is_some_and(all_files), "{readings:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_store_operation_fails_no_backup_looks_whole_that_is_not() {
    let house = House::new().await;
    let tree = house.data("tree");
    write_files(&tree, 12, 400 << 10, 3, 1.0).unwrap();
    let source = format!("files:{}", tree.display());
    let whole = tree_digest(&tree, Detail::Content).unwrap();
    let start = house.store.log().len();
    let first = house.back_up(&[&source]).await.unwrap();
    let operations = u64::try_from(house.store.log().len() - start).unwrap();
    let mut failed = 0;
    for effect in [Effect::FailBefore, Effect::FailAfter] {
        for number in 1..=operations {
            std::fs::write(tree.join("changing"), format!("{effect:?} {number}").repeat(9000)).unwrap();
            house.store.inject(Fault::nth(number, effect));
            let result = house.back_up(&[&source]).await;
            house.store.heal();
            failed += u32::from(result.is_err());
            let elsewhere = house.opened_elsewhere().await;
            let backups = elsewhere.backups().await.unwrap();
            assert!(backups.unreadable.is_empty(), "{effect:?} {number}: {:?}", backups.unreadable);
            if let Ok(outcome) = &result {
                assert!(backups.readable.iter().any(|backup| backup.id == outcome.id), "{effect:?} {number}");
            }
            let newest = backups.readable.last().unwrap().id;
            let found = house.verify(newest, Level::Decrypt).await.unwrap();
            assert!(found.damage.is_empty(), "{effect:?} {number}: {:?}", found.damage);
        }
    }
    assert!(
        failed > u32::try_from(operations).unwrap() / 2,
        "the faults were felt: {failed} of {operations}"
    );
    std::fs::remove_file(tree.join("changing")).unwrap();
    let back = house.out("back");
    house.restore(first.id, &back).await.unwrap();
    assert_eq!(tree_digest(&back, Detail::Content).unwrap(), whole);
    assert_eq!(house.left_behind(), Vec::<std::path::PathBuf>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_repository_is_named_and_the_next_run_uses_what_was_uploaded() {
    let house = House::new().await;
    let tree = house.data("tree");
    write_files(&tree, 8, 1 << 20, 5, 1.0).unwrap();
    let source = format!("files:{}", tree.display());
    house.store.limit_space(Some(5 << 20));
    let error = house.back_up(&[&source]).await.unwrap_err();
    assert_eq!(error.kind(), Kind::NoSpace, "{error}");
    assert!(house.repo.backups().await.unwrap().readable.is_empty());
    house.store.heal();
    let outcome = house.back_up(&[&source]).await.unwrap();
    assert!(
        outcome.statistics.bytes_new < 6 << 20,
        "what was there is not sent again: {:?}",
        outcome.statistics
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_backup_leaves_no_backup_and_no_pins_behind() {
    let house = House::new().await;
    let tree = house.data("tree");
    write_files(&tree, 20, 1 << 20, 5, 1.0).unwrap();
    let source = format!("files:{}", tree.display());
    let before = Inventory::of(&tree).unwrap();
    let job = house.job();
    let canceller = job.canceller();
    let options = house.options(&[&source]);
    let work = create(house.opening(), &options, &job, &house.surroundings);
    let cancel = async {
        // In the middle: when the first packs have arrived.
        while house.store.log().iter().filter(|(_, name)| name.starts_with("packs/")).count() < 3 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        canceller.cancel();
    };
    let (result, ()) = tokio::join!(work, cancel);
    assert_eq!(result.unwrap_err().kind(), Kind::Cancelled);
    assert!(house.opened_elsewhere().await.backups().await.unwrap().readable.is_empty());
    assert_eq!(house.left_behind(), Vec::<std::path::PathBuf>::new());
    assert!(Inventory::of(&tree).unwrap().changes_beside_links(&before).is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repository_that_does_not_open_ends_the_capture_and_says_why() {
    let house = House::new().await;
    let tree = house.data("tree");
    write_files(&tree, 20, 1 << 20, 5, 1.0).unwrap();
    let options = house.options(&[&format!("files:{}", tree.display())]);
    let opening = async { Err(EngineError::Usage("the wrong key".to_owned())) };
    let error = create(opening, &options, &house.job(), &house.surroundings).await.unwrap_err();
    assert!(error.to_string().contains("the wrong key"), "{error}");
    assert_eq!(house.left_behind(), Vec::<std::path::PathBuf>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn below_the_reserve_nothing_is_captured() {
    let house = House::new().await;
    let tree = house.data("tree");
    write_files(&tree, 1, 1000, 5, 1.0).unwrap();
    let mut options = house.options(&[&format!("files:{}", tree.display())]);
    options.reserve = Reserve::Percent(100);
    let error = create(house.opening(), &options, &house.job(), &house.surroundings).await.unwrap_err();
    assert!(matches!(error, EngineError::Reserve { .. }), "{error}");
    assert!(error.to_string().contains("--reserve"), "{error}");
    assert_eq!(house.left_behind(), Vec::<std::path::PathBuf>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn restoring_touches_nothing_that_is_there() {
    let house = House::new().await;
    let tree = house.data("tree");
    make_tree(&tree);
    let outcome = house.back_up(&[&format!("files:{}", tree.display())]).await.unwrap();
    let occupied = house.out("occupied");
    std::fs::create_dir(&occupied).unwrap();
    std::fs::write(occupied.join("precious"), "1").unwrap();
    let error = house.restore(outcome.id, &occupied).await.unwrap_err();
    assert!(matches!(error, EngineError::Occupied(_)), "{error}");
    let file = house.out("file");
    std::fs::write(&file, "1").unwrap();
    assert!(matches!(house.restore(outcome.id, &file).await.unwrap_err(), EngineError::Occupied(_)));
    assert_eq!(std::fs::read_dir(&occupied).unwrap().count(), 1);
    let empty = house.out("new/empty");
    house.restore(outcome.id, &empty).await.unwrap();
    assert!(empty.join("deep/large").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failing_store_during_restore_leaves_no_half_directory() {
    let house = House::new().await;
    let tree = house.data("tree");
    write_files(&tree, 6, 700 << 10, 9, 1.0).unwrap();
    let outcome = house.back_up(&[&format!("files:{}", tree.display())]).await.unwrap();
    let target = house.out("target");
    for number in 1..200 {
        house.store.inject(Fault::nth(number, Effect::FailBefore).forever());
        let result = house.restore(outcome.id, &target).await;
        house.store.heal();
        if result.is_ok() {
            assert!(number > 3, "the faults were felt");
            assert_eq!(
                tree_digest(&target, Detail::Content).unwrap(),
                tree_digest(&tree, Detail::Content).unwrap()
            );
            return;
        }
        assert!(!target.exists(), "half a directory after operation {number} failed");
        assert_eq!(house.left_behind(), Vec::<std::path::PathBuf>::new());
    }
    panic!("restore never succeeded");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_or_directory_that_is_not_there_is_named_with_those_that_are() {
    let house = House::new().await;
    let tree = house.data("tree");
    make_tree(&tree);
    let outcome = house.back_up(&[&format!("files:{}", tree.display())]).await.unwrap();
    let mut options = RestoreOptions {
        target: house.out("t"),
        source: Some("kv".into()),
        map: [].into(),
        host: String::new(),
    };
    let error =
        restore(&house.repo, outcome.id, &options, &house.job(), &house.surroundings).await.unwrap_err();
    assert!(error.to_string().contains("tree"), "{error}");
    options.source = None;
    options.map = [("wal_dir".to_owned(), "elsewhere".to_owned())].into();
    let error =
        restore(&house.repo, outcome.id, &options, &house.job(), &house.surroundings).await.unwrap_err();
    assert!(error.to_string().contains("wal_dir"), "{error}");
    assert!(!house.out("t").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn sources_come_back_under_the_names_that_the_map_gives_and_no_others() {
    let house = House::new().await;
    let (one, two) = (house.data("one"), house.data("two"));
    write_files(&one, 2, 1000, 1, 1.0).unwrap();
    write_files(&two, 3, 1000, 2, 1.0).unwrap();
    let sources = [&one, &two].map(|dir| format!("files:{}", dir.display()));
    let id = house.back_up(&[&sources[0], &sources[1]]).await.unwrap().id;
    let restored = async |name: &str, map: &[(&str, &str)]| {
        let map = map.iter().map(|(old, new)| ((*old).to_owned(), (*new).to_owned())).collect();
        let options = RestoreOptions { target: house.out(name), source: None, map, host: String::new() };
        restore(&house.repo, id, &options, &house.job(), &house.surroundings).await
    };
    restored("renamed", &[("one", "first/part"), ("two", "second")]).await.unwrap();
    for (original, place) in [(&one, "first/part"), (&two, "second")] {
        let entries = |dir: &Path| {
            let names = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name());
            names.collect::<std::collections::BTreeSet<_>>()
        };
        assert_eq!(entries(&house.out("renamed").join(place)), entries(original), "{place}");
    }
    assert!(!house.out("renamed").join("one").exists());

    for wrong in [
        &[("typo", "x")][..],
        &[("one", "two")],
        &[("one", "two/inside")],
        &[("one", "../outside")],
        &[("one/wal_dir", "logs")],
    ] {
        let error = restored("refused", wrong).await.unwrap_err();
        assert!(
            matches!(error, EngineError::Usage(_)) && error.to_string().contains("--map"),
            "{wrong:?}: {error}"
        );
        assert!(!house.out("refused").exists());
    }
    assert_eq!(house.left_behind(), Vec::<std::path::PathBuf>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_weakens_an_image_is_told_by_the_backup_too() {
    let house = House::new().await;
    let tree = house.data("tree");
    make_tree(&tree);
    let outcome = house.back_up(&[&format!("files:{}", tree.display())]).await.unwrap();
    let weakening = &outcome.snapshots[0].weakening;
    let told = house.repo.manifest(outcome.id).await.unwrap().draft.warnings;
    assert_eq!((told.len(), weakening.len()), (1, 1), "{told:?}");
    for part in ["tree", &weakening[0].setting, &weakening[0].effect] {
        assert!(told[0].contains(part), "{told:?}");
    }
}
