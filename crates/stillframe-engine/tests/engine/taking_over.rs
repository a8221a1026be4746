//! What a backup takes over from an earlier one, and what it must not.

use std::path::Path;
use std::sync::{Arc, Mutex};

use crate::house::House;
use crate::made_rocksdb::make_rocksdb;
use futures::{FutureExt, TryStreamExt};
use stillframe_engine::create::{SourcePlan, create, plan};
use stillframe_engine::{Event, Surroundings};
use stillframe_jobs::Phase;
use stillframe_repo::{VerifyLevel, VerifyOptions};
use stillframe_storage::object_store::path::Path as StorePath;
use stillframe_storage::object_store::{ObjectStore, ObjectStoreExt};
use stillframe_testkit::Content;

fn noise(seed: u64, length: usize) -> Vec<u8> {
    Content::new(seed, 1.0).bytes(length)
}

async fn plan_of(house: &House, sources: &[&str]) -> Vec<SourcePlan> {
    let options = house.options(sources);
    plan(house.opening(), &options, &house.job(), &house.surroundings).await.unwrap().sources
}

fn is_table(name: impl AsRef<Path>) -> bool {
    name.as_ref().extension().is_some_and(|extension| extension == "sst")
}

fn assert_same_tables(original: &Path, restored: &Path) {
    let names = std::fs::read_dir(original).unwrap().map(|entry| entry.unwrap().file_name());
    let tables: Vec<_> = names.filter(|name| is_table(name)).collect();
    assert!(!tables.is_empty());
    for table in tables {
        let bytes = |dir: &Path| std::fs::read(dir.join(&table)).unwrap();
        assert!(bytes(restored) == bytes(original), "{} has other bytes than its source", table.display());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn where_one_source_meets_damage_nothing_of_the_others_is_taken_over_either() {
    let house = House::new().await;
    let (one, two) = (house.data("one"), house.data("two"));
    let large: Vec<Vec<u8>> = (1..=5).map(|seed| noise(seed, 600 << 10)).collect();
    let tables: Vec<(u8, &[u8])> = (11..).zip(large.iter().map(Vec::as_slice)).collect();
    make_rocksdb(&one, &one, &tables);
    make_rocksdb(&two, &two, &[(11, &noise(8, 5000)), (12, &noise(9, 5000))]);
    let sources = [&one, &two].map(|dir| format!("rocksdb:{}", dir.display()));
    let sources = [sources[0].as_str(), sources[1].as_str()];
    let first = house.back_up(&sources).await.unwrap();
    let unchanged = async || -> Vec<u64> {
        plan_of(&house, &sources).await.iter().map(|source| source.unchanged_files).collect()
    };
    assert_eq!(unchanged().await, [5, 2]);

    // A pack that holds tables of the first source and nothing else that the backup needs.
    let packs: Vec<_> = house.store.list(Some(&"packs".into())).try_collect().await.unwrap();
    let mut lost = None;
    for pack in packs.into_iter().map(|pack| pack.location) {
        let bytes = house.store.get(&pack).await.unwrap().bytes().await.unwrap();
        house.store.delete(&pack).await.unwrap();
        let report = house.repo.verify(first.id, &VerifyOptions::new(VerifyLevel::Exists)).await.unwrap();
        let is_of_first = |finding: &stillframe_repo::Finding| {
            finding.source.as_deref() == Some("one") && finding.file.as_ref().is_some_and(is_table)
        };
        if !report.is_sound() && report.findings.iter().all(is_of_first) {
            lost = Some(pack);
            break;
        }
        house.store.put(&pack, bytes.into()).await.unwrap();
    }
    assert!(lost.is_some(), "no pack holds tables of one source only");

    assert_eq!(unchanged().await, [0, 0]);
    let warnings = std::mem::take(&mut *house.warnings.lock().unwrap());
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    assert!(warnings[0].contains("is damaged") && warnings[0].contains("/one is read"), "{warnings:?}");
    let second = house.back_up(&sources).await.unwrap();
    assert_eq!(second.statistics.bytes_taken_over, 0);
    let skipped = async |id| house.repo.manifest(id).await.unwrap().draft.files_skipped;
    assert_eq!(skipped(second.id).await, 0);
    let back = house.out("back");
    house.restore(second.id, &back).await.unwrap();
    assert_same_tables(&one, &back.join("one"));
    assert_same_tables(&two, &back.join("two"));
    assert_eq!(unchanged().await, [5, 2], "and the next one relies on this one again");
    let third = house.back_up(&sources).await.unwrap();
    assert_eq!(skipped(third.id).await, 7);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_base_that_is_forgotten_meanwhile_costs_a_second_reading_and_nothing_else() {
    let house = House::new().await;
    let kv = house.data("kv");
    let (a, b) = (noise(1, 50_000), noise(2, 60_000));
    make_rocksdb(&kv, &kv, &[(11, &a), (12, &b)]);
    let source = format!("rocksdb:{}", kv.display());
    let base = house.back_up(&[&source]).await.unwrap().id;

    let told = Arc::new(Mutex::new((0, 0)));
    let (listener, store) = (Arc::clone(&told), house.store.clone());
    let report = move |event| match event {
        // The first file of the base is about to be taken over.
        Event::Progress(reading) if reading.progress.phase == Phase::Transferring => {
            let mut told = listener.lock().unwrap();
            if told.0 == 0 {
                for kind in ["sealed", "manifests"] {
                    let name = StorePath::from(format!("{kind}/{base}"));
                    store.delete(&name).now_or_never().expect("it is in memory").unwrap();
                }
            }
            told.0 += 1;
        }
        Event::Again { .. } => listener.lock().unwrap().1 += 1,
        _ => {}
    };
    let surroundings = Surroundings { report: Arc::new(report), ..house.surroundings.clone() };
    let outcome =
        create(house.opening(), &house.options(&[&source]), &house.job(), &surroundings).await.unwrap();
    let (readings, again) = *told.lock().unwrap();
    assert!(readings > 0 && again == 1, "{readings} {again}");
    assert_eq!(outcome.statistics.bytes_taken_over, 0);
    let manifest = house.repo.manifest(outcome.id).await.unwrap();
    assert_eq!((manifest.base, manifest.draft.files_skipped), (None, 0));
    let back = house.out("back");
    house.restore(outcome.id, &back).await.unwrap();
    assert_same_tables(&kv, &back);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_of_another_size_is_read_whatever_it_claims_to_be() {
    let house = House::new().await;
    let kv = house.data("kv");
    let whole = noise(1, 50_000);
    let other = noise(2, 10_000);
    let source = format!("rocksdb:{}", kv.display());
    // Where both have something it is the same, so that no sample shows a difference.
    for (turn, length) in [50_000, 40_000, 45_000].into_iter().enumerate() {
        make_rocksdb(&kv, &kv, &[(11, &whole[..length]), (12, &other)]);
        for entry in std::fs::read_dir(&kv).unwrap() {
            let file = std::fs::File::options().append(true).open(entry.unwrap().path()).unwrap();
            file.set_modified(std::time::UNIX_EPOCH).unwrap();
        }
        let unchanged = plan_of(&house, &[&source]).await[0].unchanged_files;
        assert_eq!(unchanged, u64::from(turn > 0), "{length}");
        let backup = house.back_up(&[&source]).await.unwrap();
        let back = house.out(&length.to_string());
        house.restore(backup.id, &back).await.unwrap();
        assert_same_tables(&kv, &back);
    }
    assert_eq!(plan_of(&house, &[&source]).await[0].unchanged_files, 2);
    assert_eq!(*house.warnings.lock().unwrap(), [""; 0]);
}

/// An ingestion writes into a table whose id stays, and an operator puts a good copy in the place of a rotten one.
#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_was_written_to_or_replaced_is_read_again() {
    let house = House::new().await;
    let kv = house.data("kv");
    let tables: Vec<Vec<u8>> = (1..=60).map(|seed| noise(seed, 3000)).collect();
    let numbered: Vec<(u8, &[u8])> = (11..).zip(tables.iter().map(Vec::as_slice)).collect();
    make_rocksdb(&kv, &kv, &numbered);
    let source = format!("rocksdb:{}", kv.display());
    house.back_up(&[&source]).await.unwrap();
    assert_eq!(plan_of(&house, &[&source]).await[0].unchanged_files, 60);
    let table = std::fs::read_dir(&kv)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .find(|path| is_table(path))
        .unwrap();
    let mut bytes = std::fs::read(&table).unwrap();
    bytes[6] ^= 1;
    std::fs::write(&table, bytes).unwrap();
    assert_eq!(plan_of(&house, &[&source]).await[0].unchanged_files, 59);
    let second = house.back_up(&[&source]).await.unwrap();
    let back = house.out("back");
    house.restore(second.id, &back).await.unwrap();
    assert_same_tables(&kv, &back);
}
