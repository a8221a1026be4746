//! Room comes back, and nothing that a backup needs goes with it, whatever fails meanwhile.

#![allow(clippy::unwrap_used, reason = "a test stops at what it did not expect")]

mod support;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use stillframe_repo::{
    BackupId, Error, PruneEvent, PruneOptions, PruneOutcome, Repository, RestoredBackup, WriteOptions,
    WriteSession,
};
use stillframe_storage::Clock;
use stillframe_storage::object_store::memory::InMemory;
use stillframe_storage::object_store::{ObjectStore, ObjectStoreExt};
use support::fault_store::{FaultStore, Moment, Which};
use support::{Files, PACK_SIZE, assert_all_whole, change, clock, describe, files, init, open, read, write};

fn quick() -> PruneOptions {
    PruneOptions { pause: Duration::from_millis(1), ..PruneOptions::new(clock()) }
}

async fn paths(store: &dyn ObjectStore, directory: &str) -> Vec<String> {
    let listed: Vec<_> =
        futures::TryStreamExt::try_collect(store.list(Some(&directory.into()))).await.unwrap();
    listed.into_iter().map(|meta| meta.location.to_string()).collect()
}

struct Scene {
    inner: Arc<InMemory>,
    store: Arc<FaultStore>,
    repository: Repository,
    cache: tempfile::TempDir,
}

impl Scene {
    async fn new() -> Self {
        let inner = Arc::new(InMemory::new());
        let store = FaultStore::new(inner.clone());
        let cache = tempfile::tempdir().unwrap();
        let repository = init(store.clone(), cache.path()).await;
        Self { inner, store, repository, cache }
    }

    async fn pack_bytes(&self) -> u64 {
        self.repository.info().await.unwrap().pack_bytes
    }

    async fn prune(&self) -> PruneOutcome {
        self.repository.prune(&quick()).await.unwrap()
    }
}

/// A writer of another machine died before it could find out that packs it relied on are gone: that is no damage, and stops nobody.
#[tokio::test(flavor = "multi_thread")]
async fn an_unsealed_manifest_that_relies_on_packs_that_are_gone_stops_nothing() {
    let scene = Scene::new().await;
    let whole = files(2, 6, 3000);
    write(&scene.repository, "whole", &whole).await.unwrap();
    let before = paths(&*scene.inner, "packs").await;
    let id = write(&scene.repository, "unfinished", &files(1, 6, 3000)).await.unwrap().manifest.id;
    scene.inner.delete(&format!("sealed/{id}").into()).await.unwrap();
    for pack in paths(&*scene.inner, "packs").await.iter().filter(|pack| !before.contains(pack)).skip(1) {
        scene.inner.delete(&pack.as_str().into()).await.unwrap();
    }
    scene.prune().await;
    assert_eq!(assert_all_whole(scene.inner.clone()).await, ["whole"]);
    // A sealed one in the same state is damaged.
    write(&scene.repository, "damaged", &files(3, 6, 3000)).await.unwrap();
    for pack in paths(&*scene.inner, "packs").await.iter().filter(|pack| !before.contains(pack)) {
        scene.inner.delete(&pack.as_str().into()).await.unwrap();
    }
    assert!(scene.repository.prune(&quick()).await.unwrap_err().is_damage());
}

/// A long upload is not thrown away because somebody prunes beside it.
#[tokio::test(flavor = "multi_thread")]
async fn packs_of_a_backup_that_is_being_written_are_left_alone_while_it_says_so() {
    for says_so in [true, false] {
        let scene = Scene::new().await;
        let elsewhere = tempfile::tempdir().unwrap();
        let sweeper = open(scene.inner.clone(), elsewhere.path()).await;
        let every = if says_so { Duration::from_millis(5) } else { Duration::from_secs(3600) };
        let options =
            WriteOptions { lease_every: every, host: "writer".into(), ..WriteOptions::new(clock()) };
        let content = files(1, 12, 3000);
        let written = scene
            .repository
            .write(&options, async |session: Arc<WriteSession>| {
                let (content, there) = (content.clone(), Arc::clone(&session));
                let described =
                    tokio::task::spawn_blocking(move || describe(&there, "long", &content)).await.unwrap()?;
                session.flush().await?;
                let packs = paths(&*scene.inner, "packs").await.len();
                while says_so
                    && sweeper.leases(clock().now()).await?.iter().all(|lease| lease.packs.len() < packs)
                {
                    tokio::time::sleep(Duration::from_millis(2)).await;
                }
                let outcome = sweeper.prune(&quick()).await?;
                // In the second round, everything is there again.
                if says_so {
                    assert_eq!(
                        (outcome.packs_deleted, outcome.packs_leased),
                        (0, packs as u64),
                        "{outcome:?}"
                    );
                }
                Ok::<_, Error>(described)
            })
            .await
            .unwrap();
        assert_eq!(written.rounds == 1, says_so);
        assert_eq!(read(&sweeper, written.manifest.id).await.unwrap(), content);
        assert!(paths(&*scene.inner, "leases").await.is_empty(), "it is over");
    }
}

/// By whichever clock: a word that was not renewed for long is nobody's, and goes after a day.
#[tokio::test(flavor = "multi_thread")]
async fn a_lease_that_nobody_renews_is_disregarded_and_then_removed() {
    let scene = Scene::new().await;
    let id = write(&scene.repository, "first", &files(1, 3, 3000)).await.unwrap().manifest.id;
    let clock: Arc<dyn Clock> = clock();
    let restored =
        RestoredBackup { every: Duration::from_millis(1), ..RestoredBackup::new(id, "reader", &clock) };
    let (path, left) = scene
        .repository
        .while_restoring(restored, async {
            loop {
                if let [path] = paths(&*scene.inner, "leases").await.as_slice() {
                    let stored = scene.inner.get(&path.as_str().into()).await.unwrap().bytes().await.unwrap();
                    break (path.clone(), stored);
                }
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        })
        .await;
    assert!(paths(&*scene.inner, "leases").await.is_empty(), "it is over");
    // Who is killed leaves it.
    scene.inner.put(&path.as_str().into(), left.into()).await.unwrap();
    let now = clock.now();
    let leases = async |minutes: i64| {
        let at = now + jiff::SignedDuration::from_mins(minutes);
        scene
            .repository
            .leases(at)
            .await
            .unwrap()
            .into_iter()
            .map(|lease| (lease.backup, lease.host))
            .collect::<Vec<_>>()
    };
    for (minutes, is_valid) in [(0, true), (14, true), (16, false), (-14, true), (-16, false)] {
        let expected = if is_valid { vec![(Some(id), "reader".to_owned())] } else { vec![] };
        assert_eq!(leases(minutes).await, expected, "{minutes}");
    }
    for (hours, stays) in [(0, true), (23, true), (-23, true), (25, false)] {
        let at = now + jiff::SignedDuration::from_hours(hours);
        let options = PruneOptions { clock: Arc::new(Stopped(at)), ..quick() };
        scene.repository.prune(&options).await.unwrap();
        assert_eq!(paths(&*scene.inner, "leases").await.len(), usize::from(stays), "{hours}");
    }
}

/// It stands still.
#[derive(Debug)]
struct Stopped(jiff::Timestamp);

impl Clock for Stopped {
    fn now(&self) -> jiff::Timestamp {
        self.0
    }

    fn monotonic(&self) -> Duration {
        Duration::ZERO
    }
}

/// A seal says that there was a backup. What it needs is not known, and may come back with its manifest.
#[tokio::test(flavor = "multi_thread")]
async fn a_sealed_backup_whose_manifest_is_missing_stops_it_and_is_named() {
    let scene = Scene::new().await;
    let lost = write(&scene.repository, "lost", &files(1, 6, 3000)).await.unwrap().manifest.id;
    write(&scene.repository, "whole", &files(2, 6, 3000)).await.unwrap();
    let path = format!("manifests/{lost}").into();
    let manifest = scene.inner.get(&path).await.unwrap().bytes().await.unwrap();
    scene.inner.delete(&path).await.unwrap();
    let before = scene.pack_bytes().await;
    for refused in [
        scene.repository.prune(&quick()).await.unwrap_err(),
        scene.repository.plan_prune(&quick()).await.unwrap_err(),
    ] {
        assert!(refused.is_damage() && refused.to_string().contains(&lost.to_string()), "{refused}");
        assert!(refused.to_string().contains("stillframe forget"), "{refused}");
    }
    assert_eq!(scene.pack_bytes().await, before);
    scene.inner.put(&path, manifest.into()).await.unwrap();
    assert_eq!(read(&scene.repository, lost).await.unwrap(), files(1, 6, 3000));
    // Who lets it go says that it may go.
    scene.inner.delete(&path).await.unwrap();
    scene.repository.forget(lost).await.unwrap();
    assert!(scene.prune().await.packs_deleted > 0);
    assert_eq!(assert_all_whole(scene.inner.clone()).await, ["whole"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_no_backup_needs_goes_and_what_one_needs_stays() {
    let scene = Scene::new().await;
    let first = write(&scene.repository, "first", &files(1, 20, 3000)).await.unwrap().manifest.id;
    let kept = files(2, 20, 3000);
    let second = write(&scene.repository, "second", &kept).await.unwrap().manifest.id;
    let before = scene.pack_bytes().await;
    let nothing = scene.prune().await;
    assert_eq!((nothing.packs_deleted, nothing.bytes_written), (0, 0), "both are needed: {nothing:?}");

    scene.repository.forget(first).await.unwrap();
    let plan = scene.repository.plan_prune(&quick()).await.unwrap();
    assert!(plan.dead_packs > 0 && plan.lost_chunks == 0, "{plan:?}");
    assert_eq!(scene.pack_bytes().await, before, "a plan deletes nothing");
    let outcome = scene.prune().await;
    let after = scene.pack_bytes().await;
    assert_eq!(outcome.pack_bytes, after);
    assert_eq!(before + outcome.bytes_written - outcome.bytes_deleted, after);
    assert!(after < before * 6 / 10, "{before} {after}");
    assert_eq!(scene.repository.info().await.unwrap().marks, 0);
    assert_eq!(read(&scene.repository, second).await.unwrap(), kept);
    assert_eq!(assert_all_whole(scene.inner.clone()).await, ["second"]);
    assert_eq!(scene.prune().await.rounds, 0, "a second time there is nothing to do");
    // A machine that never saw it before reads the same.
    let elsewhere = tempfile::tempdir().unwrap();
    let repository = open(scene.inner.clone(), elsewhere.path()).await;
    assert_eq!(read(&repository, second).await.unwrap(), kept);
}

/// Half of each pack is another backup's: the packs are written anew, and what is stored stays near what is needed.
#[tokio::test(flavor = "multi_thread")]
async fn packs_of_which_little_is_needed_are_written_anew() {
    let scene = Scene::new().await;
    let all = files(3, 40, 1000);
    let first = write(&scene.repository, "all", &all).await.unwrap().manifest.id;
    let every_third: Files = all
        .iter()
        .enumerate()
        .filter(|(n, _)| n % 3 == 0)
        .map(|(_, (k, v))| (k.clone(), v.clone()))
        .collect();
    let second = write(&scene.repository, "third", &every_third).await.unwrap().manifest.id;
    scene.repository.forget(first).await.unwrap();
    let outcome = scene.prune().await;
    assert!(outcome.chunks_moved > 0, "{outcome:?}");
    let plan = scene.repository.plan_prune(&quick()).await.unwrap();
    assert!(plan.pack_bytes < plan.live_bytes * 3 / 2, "{plan:?}");
    assert_eq!(read(&scene.repository, second).await.unwrap(), every_third);
    assert_eq!(assert_all_whole(scene.inner.clone()).await, ["third"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn many_small_backups_leave_few_packs_and_segments() {
    let scene = Scene::new().await;
    let mut content = BTreeMap::new();
    for turn in 0..60 {
        content.insert(format!("{turn:03}"), support::noise(turn, 300));
        write(&scene.repository, &turn.to_string(), &content).await.unwrap();
    }
    let before = scene.repository.info().await.unwrap();
    assert!(before.packs >= 60 && before.index_segments >= 60, "{before:?}");
    scene.prune().await;
    let after = scene.repository.info().await.unwrap();
    // Their lists are small too, and there are sixty.
    assert!(after.packs < before.packs / 2 && after.index_segments <= 2, "{after:?}");
    assert_eq!(assert_all_whole(scene.inner.clone()).await.len(), 60);
    assert_eq!(scene.prune().await.packs_deleted, 0);
}

/// Each request fails once, before or after it had its effect; the next run finishes what was begun.
#[tokio::test(flavor = "multi_thread")]
async fn whatever_request_fails_nothing_is_lost_and_the_next_run_ends_it() {
    for moment in [Moment::BeforeTheEffect, Moment::AfterTheEffect] {
        for number in 0.. {
            let scene = Scene::new().await;
            let all = files(4, 12, 1500);
            let some: Files = all.iter().step_by(2).map(|(k, v)| (k.clone(), v.clone())).collect();
            let first = write(&scene.repository, "all", &all).await.unwrap().manifest.id;
            let second = write(&scene.repository, "some", &some).await.unwrap().manifest.id;
            scene.repository.forget(first).await.unwrap();
            scene.store.fail(Which::Only(number), moment);
            let outcome = scene.repository.prune(&quick()).await;
            let requests = scene.store.requests();
            scene.store.heal();
            assert_eq!(read(&scene.repository, second).await.unwrap(), some, "{moment:?} {number}");
            assert_all_whole(scene.inner.clone()).await;
            scene.prune().await;
            let info = scene.repository.info().await.unwrap();
            assert_eq!(info.marks, 0, "{moment:?} {number}");
            let plan = scene.repository.plan_prune(&quick()).await.unwrap();
            assert!(
                plan.is_empty() && plan.pack_bytes < plan.live_bytes * 3 / 2,
                "{moment:?} {number}: {plan:?}"
            );
            assert_all_whole(scene.inner.clone()).await;
            if requests <= number {
                outcome.unwrap();
                assert!(number > 20, "so few requests: {number}");
                break;
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_is_cancelled_between_deletions_is_finished_by_the_next() {
    let scene = Scene::new().await;
    let first = write(&scene.repository, "first", &files(5, 30, 3000)).await.unwrap().manifest.id;
    write(&scene.repository, "second", &files(6, 3, 3000)).await.unwrap();
    scene.repository.forget(first).await.unwrap();
    let options = quick();
    let (cancel, deleted) = (options.cancel.clone(), Arc::new(Mutex::new(0)));
    let count = Arc::clone(&deleted);
    let events = move |event| {
        if let PruneEvent::Deleted { .. } = event {
            *count.lock().unwrap() += 1;
            cancel.cancel();
        }
    };
    let options = PruneOptions { events: Some(Arc::new(events)), ..options };
    let stopped = scene.repository.prune(&options).await.unwrap_err();
    assert!(matches!(stopped, Error::Cancelled), "{stopped}");
    assert!(*deleted.lock().unwrap() > 0);
    assert_eq!(scene.repository.info().await.unwrap().marks, 1, "whoever finds it goes on");
    // Writers know that what it names is going.
    let again = files(5, 30, 3000);
    let third = write(&scene.repository, "third", &again).await.unwrap().manifest.id;
    let plan = scene.repository.plan_prune(&quick()).await.unwrap();
    assert_eq!(plan.marks, 1);
    scene.prune().await;
    assert_eq!(scene.repository.info().await.unwrap().marks, 0);
    assert_eq!(read(&scene.repository, third).await.unwrap(), again);
    assert_eq!(assert_all_whole(scene.inner.clone()).await, ["second", "third"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_that_cannot_be_walked_stops_it_and_is_named() {
    let scene = Scene::new().await;
    let first = write(&scene.repository, "first", &files(7, 5, 3000)).await.unwrap().manifest.id;
    let second = write(&scene.repository, "second", &files(8, 5, 3000)).await.unwrap().manifest.id;
    scene.repository.forget(first).await.unwrap();
    let name = format!("manifests/{second}");
    let path = name.as_str().into();
    let mut bytes = scene.inner.get(&path).await.unwrap().bytes().await.unwrap().to_vec();
    let whole = bytes.clone();
    bytes[100] ^= 1;
    scene.inner.put(&path, bytes.into()).await.unwrap();
    let before = paths(&*scene.inner, "packs").await;
    let refused = scene.repository.prune(&quick()).await.unwrap_err();
    assert!(refused.is_damage() && refused.to_string().contains(&name), "{refused}");
    assert_eq!(paths(&*scene.inner, "packs").await, before);
    assert!(paths(&*scene.inner, "marks").await.is_empty());
    scene.inner.put(&path, whole.into()).await.unwrap();
    assert!(scene.prune().await.packs_deleted > 0);
    assert_eq!(assert_all_whole(scene.inner.clone()).await, ["second"]);
}

/// In the table at its end, so that it does not tell what is in it.
async fn damage_table(scene: &Scene, path: &str) {
    change(&scene.inner, &path.into(), |bytes| {
        let at = bytes.len() - 60;
        bytes[at] ^= 1;
    })
    .await;
}

/// Of one that was there when the pack was damaged, and of one that comes new to a repository without segments.
async fn both(scene: &Scene, elsewhere: &tempfile::TempDir) -> [Repository; 2] {
    for path in paths(&*scene.inner, "index").await {
        scene.inner.delete(&path.as_str().into()).await.unwrap();
    }
    [scene.repository.clone(), open(scene.inner.clone(), elsewhere.path()).await]
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_pack_goes_when_nothing_is_missing_without_it() {
    for who in [0, 1] {
        let (scene, elsewhere) = (Scene::new().await, tempfile::tempdir().unwrap());
        // Has what all backups share.
        write(&scene.repository, "before", &files(8, 1, 10)).await.unwrap();
        let before = paths(&*scene.inner, "packs").await;
        let first = write(&scene.repository, "first", &files(9, 20, 3000)).await.unwrap().manifest.id;
        let mut of_first = paths(&*scene.inner, "packs").await;
        of_first.retain(|path| !before.contains(path));
        let damaged = of_first.swap_remove(0);
        let kept = files(10, 5, 3000);
        let second = write(&scene.repository, "second", &kept).await.unwrap().manifest.id;
        scene.repository.forget(first).await.unwrap();
        let plan = scene.repository.plan_prune(&quick()).await.unwrap();
        damage_table(&scene, &damaged).await;
        let outcome = both(&scene, &elsewhere).await[who].prune(&quick()).await.unwrap();
        assert!(plan.dead_packs >= 3 && outcome.packs_deleted >= plan.dead_packs, "{plan:?} {outcome:?}");
        assert_eq!(outcome.packs_spared, 0, "{outcome:?}");
        assert!(!paths(&*scene.inner, "packs").await.contains(&damaged), "{who} {outcome:?}");
        assert!(paths(&*scene.inner, "marks").await.is_empty());
        assert_eq!(read(&scene.repository, second).await.unwrap(), kept);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_pack_that_may_hold_what_is_needed_is_left_alone() {
    for who in [0, 1] {
        let (scene, elsewhere) = (Scene::new().await, tempfile::tempdir().unwrap());
        // One chunk each, so that nothing of a pack is needed to find out what is in the others.
        let all = files(9, 40, 900);
        let first = write(&scene.repository, "first", &all).await.unwrap().manifest.id;
        let of_first = paths(&*scene.inner, "packs").await;
        let kept: Files = all.into_iter().step_by(8).collect();
        let second = write(&scene.repository, "second", &kept).await.unwrap().manifest.id;
        scene.repository.forget(first).await.unwrap();
        assert!(scene.repository.plan_prune(&quick()).await.unwrap().rewritten_packs > 0);
        for path in &of_first {
            damage_table(&scene, path).await;
        }
        let told = Arc::new(Mutex::new(Vec::new()));
        let listener = Arc::clone(&told);
        let events = move |event| {
            if let PruneEvent::Spared { why } = event {
                listener.lock().unwrap().push(why);
            }
        };
        let options = PruneOptions { events: Some(Arc::new(events)), ..quick() };
        let outcome = both(&scene, &elsewhere).await[who].prune(&options).await.unwrap();
        // Who does not know what was in them condemns none of them.
        assert_eq!(outcome.packs_spared > 0, who == 0, "{outcome:?}");
        assert_eq!(told.lock().unwrap().len() as u64, outcome.packs_spared);
        assert!(told.lock().unwrap().iter().all(|why| of_first.iter().any(|path| why.contains(path))));
        let now = paths(&*scene.inner, "packs").await;
        assert!(of_first.iter().all(|path| now.contains(path)), "{now:?} {of_first:?}");
        assert!(paths(&*scene.inner, "marks").await.is_empty());
        assert_eq!(read(&scene.repository, second).await.unwrap(), kept, "the index still knows");
    }
}

/// Two at once, on machines of their own, again and again.
#[tokio::test(flavor = "multi_thread")]
async fn prunings_side_by_side_lose_nothing_and_end() {
    let scene = Scene::new().await;
    let mut rng = StdRng::seed_from_u64(11);
    let mut kept: BTreeMap<BackupId, Files> = BTreeMap::new();
    let elsewhere = tempfile::tempdir().unwrap();
    let other = open(scene.inner.clone(), elsewhere.path()).await;
    for turn in 0..12 {
        let content = files(20 + turn, 6, 2000);
        let id = write(&scene.repository, "x", &content).await.unwrap().manifest.id;
        kept.insert(id, content);
        if kept.len() > 3 {
            let at = rng.random_range(0..kept.len());
            let id = *kept.keys().nth(at).unwrap();
            scene.repository.forget(id).await.unwrap();
            kept.remove(&id);
        }
        let (one, two) = (quick(), quick());
        let (one, two) = tokio::join!(scene.repository.prune(&one), other.prune(&two));
        assert!(one.is_ok() || two.is_ok(), "turn {turn}: {one:?} {two:?}");
        for result in [one, two] {
            // One may take away what the other is reading; that one then stops where it is.
            let gave_way = |error: &Error| {
                error.is_damage() || matches!(error, Error::GivenUp { .. } | Error::Store { .. })
            };
            assert!(result.as_ref().err().is_none_or(gave_way), "turn {turn}: {result:?}");
        }
        for (id, content) in &kept {
            assert!(read(&scene.repository, *id).await.unwrap() == *content, "turn {turn}");
        }
    }
    scene.prune().await;
    let plan = scene.repository.plan_prune(&quick()).await.unwrap();
    assert!(plan.is_empty() && plan.pack_bytes < plan.live_bytes * 3 / 2 + PACK_SIZE, "{plan:?}");
    assert_eq!(assert_all_whole(scene.inner.clone()).await.len(), kept.len());
    drop(scene.cache);
}
