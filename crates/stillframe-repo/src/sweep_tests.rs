//! Writer against sweeper, step by step: marks are put between the writer's steps, packs vanish, bases are forgotten.

#![allow(clippy::unwrap_used, reason = "a test stops at what it did not expect")]

use std::collections::{BTreeSet, HashMap};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use stillframe_storage::object_store::memory::InMemory;
use stillframe_storage::object_store::{ObjectStore, ObjectStoreExt};

use crate::layout::{Kind, ObjectName};
use crate::prune::{RescueFailure, Survey, Sweep};
use crate::test_support::fault_store::{FaultStore, Hook};
use crate::test_support::{
    Files, PACK_SIZE, assert_all_whole, clock, describe, files, init, open, read, write, write_with,
};
use crate::{
    BackupId, Error, ManifestDraft, ObjectId, PackId, PruneOptions, PruneOutcome, Repository, Result,
    SourceManifest, WriteOptions, WriteSession, mark,
};

fn quick() -> PruneOptions {
    PruneOptions { pause: Duration::from_millis(1), ..PruneOptions::new(clock()) }
}

/// The sweeper, one step at a time.
struct Sweeper {
    repository: Repository,
    options: PruneOptions,
}

/// What stands between the sweeper's two halves.
struct Marked {
    own: ObjectName,
    survey: Survey,
}

impl Sweeper {
    /// With `repack` it condemns every pack, also those that are in use.
    fn new(repository: Repository, repack: bool) -> Self {
        let mut options = quick();
        if repack {
            options.min_live_percent = 101;
        }
        Self { repository, options }
    }

    /// Steps 1 and 2. `None`: there is nothing to do, or another sweeper was seen.
    async fn mark(&self) -> Result<Option<Marked>> {
        let mut sweep = Sweep::new(&self.repository, &self.options)?;
        let survey = sweep.survey().await?;
        if survey.condemned.is_empty() {
            return Ok(None);
        }
        Ok(sweep.mark(&survey).await?.map(|own| Marked { own, survey }))
    }

    /// Step 3.
    async fn rescue(&self, marked: &Marked) -> Result<()> {
        let mut sweep = Sweep::new(&self.repository, &self.options)?;
        sweep.rescue(&marked.survey).await.map_err(|failure| match failure {
            RescueFailure::Mute(mut packs) => packs.swap_remove(0).1,
            RescueFailure::Other(error) => error,
        })
    }

    /// Steps 4 and 5.
    async fn remove(&self, marked: Marked) -> Result<()> {
        let sweep = Sweep::new(&self.repository, &self.options)?;
        sweep.remove(marked.own, marked.survey, &mut PruneOutcome::default()).await
    }

    async fn delete(&self, marked: Marked) -> Result<()> {
        self.rescue(&marked).await?;
        self.remove(marked).await
    }

    async fn sweep(&self) -> Result<()> {
        match self.mark().await? {
            Some(marked) => self.delete(marked).await,
            None => Ok(()),
        }
    }
}

/// Runs `act` once, before the first request whose verb and path begin like this.
fn once(
    verb: &'static str,
    prefix: &'static str,
    act: impl Fn() -> futures::future::BoxFuture<'static, ()> + Send + Sync + 'static,
) -> Hook {
    let done = AtomicBool::new(false);
    Arc::new(move |this_verb, path| {
        if this_verb == verb && path.starts_with(prefix) && !done.swap(true, Ordering::SeqCst) {
            act()
        } else {
            Box::pin(async {})
        }
    })
}

struct Scene {
    inner: Arc<InMemory>,
    store: Arc<FaultStore>,
    repository: Repository,
    sweeper: Arc<Sweeper>,
    content: Files,
    _caches: [tempfile::TempDir; 2],
}

/// A repository with one backup `first`; its writer goes through the returned store, its sweeper does not.
async fn scene(repack: bool) -> (Scene, BackupId) {
    let inner = Arc::new(InMemory::new());
    let store = FaultStore::new(inner.clone());
    let caches = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let repository = init(store.clone(), caches[0].path()).await;
    let content = files(1, 12, 3000);
    let first = write(&repository, "first", &content).await.unwrap().manifest.id;
    let sweeper = Arc::new(Sweeper::new(open(inner.clone(), caches[1].path()).await, repack));
    (Scene { inner, store, repository, sweeper, content, _caches: caches }, first)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_test_sweeper_keeps_what_is_live_and_deletes_the_rest() {
    for repack in [false, true] {
        let (scene, first) = scene(repack).await;
        let of_first = scene.repository.info().await.unwrap().pack_bytes;
        write(&scene.repository, "second", &files(2, 12, 3000)).await.unwrap();
        scene.sweeper.sweep().await.unwrap();
        assert_eq!(assert_all_whole(scene.inner.clone()).await, ["first", "second"]);
        scene.repository.forget(first).await.unwrap();
        let before = scene.repository.info().await.unwrap().pack_bytes;
        scene.sweeper.sweep().await.unwrap();
        let after = scene.repository.info().await.unwrap();
        // What the two share is in one pack at most, and others have chunks of both only if they were repacked.
        if !repack {
            assert!(
                after.pack_bytes < before - of_first + PACK_SIZE,
                "{before} {of_first} {}",
                after.pack_bytes
            );
        }
        assert_eq!(after.marks, 0);
        assert_eq!(assert_all_whole(scene.inner).await, ["second"]);
        // Reading goes on with hints that are stale.
        assert!(matches!(read(&scene.repository, first).await, Err(Error::NotFound { .. })));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn packs_marked_between_two_steps_of_a_writer_are_uploaded_again() {
    let (scene, first) = scene(false).await;
    scene.repository.forget(first).await.unwrap();
    let sweep = Arc::new(Mutex::new(None));
    let (sweeper, slot) = (Arc::clone(&scene.sweeper), Arc::clone(&sweep));
    scene.store.before_each(once("put", "manifests/", move || {
        let (sweeper, slot) = (Arc::clone(&sweeper), Arc::clone(&slot));
        Box::pin(async move {
            let marked = sweeper.mark().await.unwrap();
            *slot.lock().unwrap() = marked;
        })
    }));
    let written = write(&scene.repository, "second", &scene.content).await.unwrap();
    assert_eq!(written.rounds, 2);
    assert!(written.manifest.statistics.chunks_new > 0);
    let marked = sweep.lock().unwrap().take().unwrap();
    scene.sweeper.delete(marked).await.unwrap();
    assert_eq!(read(&scene.repository, written.manifest.id).await.unwrap(), scene.content);
    assert_eq!(assert_all_whole(scene.inner).await, ["second"]);
}

/// The writer lists the marks and then the packs. The other way round, this sweep would show in neither list.
#[tokio::test(flavor = "multi_thread")]
async fn a_sweep_that_ends_between_a_writers_two_lists_is_noticed() {
    let (scene, first) = scene(false).await;
    scene.repository.forget(first).await.unwrap();
    let judged = Arc::new(Mutex::new(None));
    let (sweeper, slot) = (Arc::clone(&scene.sweeper), Arc::clone(&judged));
    // It has looked at all manifests before the writer's is there…
    let judge = once("put", "manifests/", move || {
        let (sweeper, slot) = (Arc::clone(&sweeper), Arc::clone(&slot));
        Box::pin(async move {
            let sweep = sweeper.mark().await.unwrap().unwrap();
            sweeper.rescue(&sweep).await.unwrap();
            *slot.lock().unwrap() = Some(sweep);
        })
    });
    // …and removes packs and mark when the writer is about to list the marks.
    let sweeper = Arc::clone(&scene.sweeper);
    scene.store.before_each(Arc::new(move |verb, path| {
        let lists_marks = verb == "list" && path.starts_with("marks");
        let judged = if lists_marks { judged.lock().unwrap().take() } else { None };
        match judged {
            Some(sweep) => {
                let sweeper = Arc::clone(&sweeper);
                Box::pin(async move { sweeper.remove(sweep).await.unwrap() })
            }
            None => judge(verb, path),
        }
    }));
    let written = write(&scene.repository, "second", &scene.content).await.unwrap();
    assert_eq!(read(&scene.repository, written.manifest.id).await.unwrap(), scene.content);
    assert_eq!(assert_all_whole(scene.inner).await, ["second"]);
    assert_eq!(written.rounds, 2);
}

/// A run that is killed between the seal and the removal of its note leaves both.
#[tokio::test(flavor = "multi_thread")]
async fn the_note_of_a_sealed_backup_costs_nothing_but_the_note() {
    let (scene, first) = scene(false).await;
    drop(crate::claim::Claim::new(scene.repository.state(), first));
    scene.repository.remove_leftovers().await.unwrap();
    assert_eq!(read(&scene.repository, first).await.unwrap(), scene.content);
    assert!(crate::claim::Claim::of_the_dead(scene.repository.state()).is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_gives_back_other_bytes_of_a_manifest_fails_the_write() {
    let (scene, _) = scene(false).await;
    let inner = scene.inner.clone();
    scene.store.before_each(once("put", "sealed/", move || {
        let inner = inner.clone();
        Box::pin(async move {
            let manifests: Vec<_> =
                futures::TryStreamExt::try_collect(inner.list(Some(&"manifests".into()))).await.unwrap();
            for manifest in manifests {
                let mut bytes = inner.get(&manifest.location).await.unwrap().bytes().await.unwrap().to_vec();
                let last = bytes.len() - 1;
                bytes[last] ^= 1;
                inner.put(&manifest.location, bytes.into()).await.unwrap();
            }
        })
    }));
    let refused = write(&scene.repository, "second", &scene.content).await.unwrap_err();
    assert!(matches!(refused, Error::Damaged { .. }), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn packs_marked_before_a_writer_begins_are_not_relied_on() {
    let (scene, first) = scene(false).await;
    scene.repository.forget(first).await.unwrap();
    let marked = scene.sweeper.mark().await.unwrap().unwrap();
    let written = write(&scene.repository, "second", &scene.content).await.unwrap();
    assert_eq!(written.rounds, 1);
    scene.sweeper.delete(marked).await.unwrap();
    assert_eq!(assert_all_whole(scene.inner).await, ["second"]);
}

/// Sweepers that see each other take their marks back and start again, so that a mark may be there whenever a writer looks at
/// what it relied on, and gone whenever it begins anew.
#[tokio::test(flavor = "multi_thread")]
async fn packs_that_were_marked_once_are_not_relied_on_again_in_the_same_write() {
    let (scene, first) = scene(false).await;
    let repository = scene.sweeper.repository.clone();
    let old: BTreeSet<PackId> =
        repository.io().list(Kind::Pack).await.unwrap().iter().map(|listed| listed.id).collect();
    let name = ObjectName::new(Kind::Mark, ObjectId::random());
    scene.store.before_each(Arc::new(move |verb, path| {
        let (repository, old) = (repository.clone(), old.clone());
        Box::pin(async move {
            if verb == "put" && path.starts_with("manifests/") {
                let mark = mark::encode(repository.ring(), name, &old);
                repository.io().put(name, mark).await.unwrap();
            } else if verb == "list" && path.starts_with("index") {
                repository.io().delete(name).await.unwrap();
            }
        })
    }));
    let written = write(&scene.repository, "second", &scene.content).await.unwrap();
    assert_eq!(written.rounds, 2);
    let statistics = written.manifest.statistics;
    assert!(statistics.chunks_new > 0 && statistics.chunks_known == 0, "{statistics:?}");
    scene.store.heal();
    assert_eq!(read(&scene.repository, first).await.unwrap(), scene.content);
    assert_eq!(assert_all_whole(scene.inner).await, ["first", "second"]);
}

/// A writer's packs are in no manifest before its own is put, so a sweep that runs meanwhile takes them for garbage.
#[tokio::test(flavor = "multi_thread")]
async fn a_writer_that_is_robbed_of_its_own_packs_once_uploads_them_again() {
    let (scene, _) = scene(false).await;
    let sweeper = Arc::clone(&scene.sweeper);
    scene.store.before_each(once("put", "manifests/", move || {
        let sweeper = Arc::clone(&sweeper);
        Box::pin(async move { sweeper.sweep().await.unwrap() })
    }));
    let content = files(3, 3, 2000);
    let written = write(&scene.repository, "second", &content).await.unwrap();
    assert_eq!(written.rounds, 2);
    assert_eq!(read(&scene.repository, written.manifest.id).await.unwrap(), content);
    assert_eq!(assert_all_whole(scene.inner).await, ["first", "second"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn packs_that_vanish_while_a_writer_relies_on_them_are_uploaded_again() {
    let (scene, first) = scene(false).await;
    let (repository, sweeper) = (scene.repository.clone(), Arc::clone(&scene.sweeper));
    scene.store.before_each(once("put", "manifests/", move || {
        let (repository, sweeper) = (repository.clone(), Arc::clone(&sweeper));
        Box::pin(async move {
            repository.forget(first).await.unwrap();
            sweeper.sweep().await.unwrap();
        })
    }));
    let written = write(&scene.repository, "second", &scene.content).await.unwrap();
    assert_eq!(written.rounds, 2);
    assert_eq!(read(&scene.repository, written.manifest.id).await.unwrap(), scene.content);
    assert_eq!(assert_all_whole(scene.inner).await, ["second"]);
}

async fn cut_a_pack(inner: &InMemory, path: &str) {
    let bytes = inner.get(&path.into()).await.unwrap().bytes().await.unwrap();
    inner.put(&path.into(), bytes.slice(..bytes.len() - 10).into()).await.unwrap();
}

/// A torn write that the store called good, a disk that lost the end of a file.
#[tokio::test(flavor = "multi_thread")]
async fn a_pack_that_is_cut_before_the_seal_is_uploaded_again() {
    for whose in ["its own", "another's"] {
        let (scene, _) = scene(false).await;
        let content = if whose == "its own" { files(3, 12, 3000) } else { scene.content.clone() };
        let inner = scene.inner.clone();
        let before = paths_of_packs(&inner).await;
        scene.store.before_each(once("put", "manifests/", move || {
            let (inner, before) = (inner.clone(), before.clone());
            Box::pin(async move {
                let now = paths_of_packs(&inner).await;
                let is_wanted = |path: &&String| before.contains(path) == (whose == "another's");
                cut_a_pack(&inner, now.iter().find(is_wanted).unwrap()).await;
            })
        }));
        let written = write(&scene.repository, "second", &content).await.unwrap();
        assert_eq!(written.rounds, 2, "{whose}");
        assert_eq!(read(&scene.repository, written.manifest.id).await.unwrap(), content, "{whose}");
    }
}

async fn paths_of_packs(inner: &InMemory) -> Vec<String> {
    let listed: Vec<_> = futures::TryStreamExt::try_collect(inner.list(Some(&"packs".into()))).await.unwrap();
    listed.into_iter().map(|meta| meta.location.to_string()).collect()
}

/// What is taken over is not read, so nothing else would notice.
#[tokio::test(flavor = "multi_thread")]
async fn a_base_whose_packs_are_cut_meanwhile_is_not_relied_on() {
    let (scene, first) = scene(false).await;
    let source = scene.repository.manifest(first).await.unwrap().draft.sources[0].clone();
    let inner = scene.inner.clone();
    scene.store.before_each(once("put", "manifests/", move || {
        let inner = inner.clone();
        Box::pin(async move {
            for path in paths_of_packs(&inner).await {
                cut_a_pack(&inner, &path).await;
            }
        })
    }));
    let options = WriteOptions { base: Some(first), ..WriteOptions::new(clock()) };
    let written = scene
        .repository
        .write(&options, async |session: Arc<WriteSession>| {
            if session.base().is_some() {
                session.take_over(&source.files)?;
                session.take_over(&source.snapshot)?;
                let sources = vec![source.clone()];
                return Ok(ManifestDraft { sources, ..ManifestDraft::default() });
            }
            let content = scene.content.clone();
            tokio::task::spawn_blocking(move || describe(&session, "second", &content)).await.unwrap()
        })
        .await
        .unwrap();
    assert_eq!((written.rounds, written.manifest.base), (2, None));
    assert_eq!(read(&scene.repository, written.manifest.id).await.unwrap(), scene.content);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_base_that_is_forgotten_meanwhile_is_not_relied_on() {
    let (scene, first) = scene(false).await;
    let manifest = scene.repository.manifest(first).await.unwrap();
    let source = manifest.draft.sources[0].clone();
    let (repository, sweeper) = (scene.repository.clone(), Arc::clone(&scene.sweeper));
    scene.store.before_each(once("put", "manifests/", move || {
        let (repository, sweeper) = (repository.clone(), Arc::clone(&sweeper));
        Box::pin(async move {
            repository.forget(first).await.unwrap();
            sweeper.sweep().await.unwrap();
        })
    }));
    let bases = Mutex::new(Vec::new());
    let options = WriteOptions { base: Some(first), ..WriteOptions::new(clock()) };
    let written = scene
        .repository
        .write(&options, async |session: Arc<WriteSession>| {
            bases.lock().unwrap().push(session.base());
            if session.base().is_some() {
                session.take_over(&source.files)?;
                session.take_over(&source.snapshot)?;
                let sources = vec![source.clone()];
                return Ok(ManifestDraft {
                    name: Some("second".into()),
                    sources,
                    ..ManifestDraft::default()
                });
            }
            let content = scene.content.clone();
            tokio::task::spawn_blocking(move || describe(&session, "second", &content)).await.unwrap()
        })
        .await
        .unwrap();
    assert_eq!(*bases.lock().unwrap(), [Some(first), None]);
    assert_eq!((written.rounds, written.manifest.base), (2, None));
    assert_eq!(read(&scene.repository, written.manifest.id).await.unwrap(), scene.content);
    assert_eq!(assert_all_whole(scene.inner).await, ["second"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_manifest_forgotten_before_its_seal_is_checked_fails_the_write() {
    let (scene, _) = scene(false).await;
    let repository = scene.repository.clone();
    scene.store.before_each(once("put", "sealed/", move || {
        let repository = repository.clone();
        Box::pin(async move {
            let unfinished = repository.backups().await.unwrap().unfinished;
            assert_eq!(unfinished.len(), 1);
            repository.forget(unfinished[0]).await.unwrap();
        })
    }));
    let error = write(&scene.repository, "second", &files(3, 3, 2000)).await.unwrap_err();
    assert!(matches!(error, Error::GivenUp { .. }), "{error}");
    assert_eq!(assert_all_whole(scene.inner.clone()).await, ["first"]);
    let sealed = scene.repository.io().list(Kind::Sealed).await.unwrap();
    assert_eq!(sealed.len(), 1, "the seal without a manifest is gone");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_writer_that_is_robbed_in_every_round_gives_up() {
    let (scene, _) = scene(false).await;
    let repository = scene.sweeper.repository.clone();
    scene.store.before_each(Arc::new(move |verb, path| {
        let repository = repository.clone();
        Box::pin(async move {
            if verb == "put" && path.starts_with("manifests/") {
                for listed in repository.io().list(Kind::Pack).await.unwrap() {
                    repository.io().delete(ObjectName::new(Kind::Pack, listed.id)).await.unwrap();
                }
            }
        })
    }));
    let error = write(&scene.repository, "second", &files(3, 3, 2000)).await.unwrap_err();
    assert!(matches!(error, Error::GivenUp { .. }), "{error}");
    scene.store.heal();
    let info = scene.repository.info().await.unwrap();
    assert_eq!((info.backups, info.unfinished), (1, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mark_that_cannot_be_read_stops_the_writer_and_is_named() {
    let (scene, _) = scene(false).await;
    let name = ObjectName::new(Kind::Mark, ObjectId::random());
    scene.repository.io().put(name, vec![7; 300].into()).await.unwrap();
    let error = write(&scene.repository, "second", &scene.content).await.unwrap_err().to_string();
    assert!(error.contains(&name.to_string()), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn readers_follow_chunks_that_a_sweep_has_moved() {
    let (scene, first) = scene(true).await;
    // What the reader knows is older than the sweep.
    assert_eq!(read(&scene.repository, first).await.unwrap(), scene.content);
    scene.sweeper.sweep().await.unwrap();
    assert_eq!(read(&scene.repository, first).await.unwrap(), scene.content);
}

/// Real writers, sweepers and forgetters on one store, each request at a moment that a seed chooses.
async fn random_history(seed: u64) {
    let inner = Arc::new(InMemory::new());
    let cache = tempfile::tempdir().unwrap();
    init(inner.clone(), cache.path()).await;
    let reported: Arc<Mutex<HashMap<BackupId, Files>>> = Arc::default();
    let mut actors = tokio::task::JoinSet::new();
    for actor in 0..6_u64 {
        let store = FaultStore::new(inner.clone());
        let rng = Mutex::new(StdRng::seed_from_u64(seed * 100 + actor));
        let pauses = AtomicU64::new(0);
        store.before_each(Arc::new(move |_, _| {
            let turns = rng.lock().unwrap().random_range(0..40);
            pauses.fetch_add(turns, Ordering::Relaxed);
            Box::pin(async move {
                for _ in 0..turns {
                    tokio::task::yield_now().await;
                }
            })
        }));
        let (reported, dir) = (Arc::clone(&reported), cache.path().to_owned());
        actors.spawn(async move {
            let repository = open(store as Arc<dyn ObjectStore>, &dir).await;
            for turn in 0..3 {
                match actor {
                    0..3 => {
                        let content = files((seed + actor + turn) % 3, 5, 2500);
                        match write_with(&repository, &WriteOptions::new(clock()), "x", &content).await {
                            Ok(written) => {
                                reported.lock().unwrap().insert(written.manifest.id, content);
                            }
                            Err(Error::GivenUp { .. }) => {}
                            Err(error) => panic!("{error}"),
                        }
                    }
                    3..5 => {
                        let repack = turn == 1;
                        let swept = if repack {
                            Sweeper::new(repository.clone(), repack).sweep().await
                        } else {
                            repository.prune(&quick()).await.map(drop)
                        };
                        match swept {
                            // Two sweepers may take each other's packs away while they walk; then one stops where it is.
                            Ok(())
                            | Err(
                                Error::ChunkLost { .. }
                                | Error::Store { .. }
                                | Error::Damaged { .. }
                                | Error::GivenUp { .. },
                            ) => {}
                            Err(error) => panic!("{error}"),
                        }
                    }
                    _ => {
                        let some = reported.lock().unwrap().keys().next().copied();
                        if let Some(id) = some {
                            reported.lock().unwrap().remove(&id);
                            repository.forget(id).await.unwrap();
                        }
                    }
                }
            }
        });
    }
    while let Some(result) = actors.join_next().await {
        result.unwrap();
    }
    let fresh = tempfile::tempdir().unwrap();
    let repository = open(inner.clone(), fresh.path()).await;
    let reported = std::mem::take(&mut *reported.lock().unwrap());
    for (id, content) in reported {
        let what =
            read(&repository, id).await.unwrap_or_else(|error| panic!("seed {seed}: backup {id}: {error}"));
        assert!(what == content, "seed {seed}: backup {id} has other content");
    }
    assert_all_whole(inner).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn real_writers_sweepers_and_forgetters_lose_nothing_in_random_histories() {
    let histories =
        std::env::var("STILLFRAME_HISTORIES").ok().and_then(|text| text.parse().ok()).unwrap_or(30);
    for seed in 0..histories {
        random_history(seed).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_of_a_later_form_is_kept_but_not_called_sound() {
    let (scene, _) = scene(false).await;
    let written = scene
        .repository
        .write(&WriteOptions::new(clock()), async |_| {
            let mut source = SourceManifest::new("r", "store", "node:x");
            source.form = crate::SourceForm::Records;
            Ok::<_, Error>(ManifestDraft { sources: vec![source], ..ManifestDraft::default() })
        })
        .await
        .unwrap();
    let options = crate::VerifyOptions::new(crate::VerifyLevel::Exists);
    let report = scene.repository.verify(written.manifest.id, &options).await.unwrap();
    assert!(!report.is_sound());
}
