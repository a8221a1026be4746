//! Captures of databases that stand still: closed, crashed, damaged, foreign.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use fjall::{Database, KeyspaceCreateOptions};
use stillframe_storage::{Clock, SystemClock};
use tokio_util::sync::CancellationToken;

use super::attempt::Attempts;
use super::journals::Journals;
use super::sabotage::Sabotage;
use super::test_sample::{assert_sample, capture, keep, sample, source};
use super::{capture_with, recognise, validate};
use crate::image::ImageBuilder;
use crate::pin::SourceDir;
use crate::staging::Staging;
use crate::test_support::{NOBODY, Surroundings, again_as, child_argument, copy_tree, inventory};
use crate::{CaptureError, CaptureOptions, Role, Snapshot};

#[test]
fn nothing_of_a_closed_a_live_or_a_crashed_source_changes() {
    let dir = tempfile::tempdir().unwrap();
    let live = dir.path().join("live");
    let db = sample(&live);
    // The files of a process that dies now.
    let crashed = dir.path().join("crashed");
    copy_tree(&live, &crashed);
    let open = inventory(&live);
    keep(capture(&live).unwrap(), &dir.path().join("of live"));
    let still_linked = inventory(&live);
    assert_eq!(open.keys().collect::<Vec<_>>(), still_linked.keys().collect::<Vec<_>>());
    std::fs::rename(dir.path().join("of live"), dir.path().join("of-live")).unwrap();
    drop(db);

    for path in [&live, &crashed] {
        let before = inventory(path);
        let image = capture(path).unwrap();
        drop(image);
        assert_eq!(inventory(path), before, "{}", path.display());
    }
    let target = dir.path().join("of-crashed");
    keep(capture(&crashed).unwrap(), &target);
    for image in ["of-live", "of-crashed"] {
        let image = dir.path().join(image);
        let report = validate(&image, &CancellationToken::new()).unwrap();
        assert!(report.files > 8 && report.bytes > 600_000, "{report:?}");
        assert!(report.remarks.is_empty(), "{report:?}");
        assert_sample(&image);
    }
    assert_sample(&crashed);
}

#[test]
fn opening_an_image_leaves_the_source_alone() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("db");
    let db = sample(&path);
    let target = dir.path().join("image");
    keep(capture(&path).unwrap(), &target);
    let strip = |path: &Path| inventory(path).into_keys().collect::<Vec<_>>();
    let before = (strip(&path), std::fs::read(path.join("0.jnl")).unwrap());
    {
        let image = Database::builder(&target).open().unwrap();
        let plain = image.keyspace("plain", KeyspaceCreateOptions::default).unwrap();
        for n in 0..100_u64 {
            plain.insert(n.to_be_bytes(), "of the image").unwrap();
        }
        plain.rotate_memtable_and_wait().unwrap();
        plain.major_compact().unwrap();
    }
    assert!(before == (strip(&path), std::fs::read(path.join("0.jnl")).unwrap()), "the source has changed");
    drop(db);
    assert_sample(&path);
}

#[test]
fn an_image_says_what_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("db");
    let db = sample(&path);
    let manual = || KeyspaceCreateOptions::default().manual_journal_persist(true);
    db.keyspace("lazy", manual).unwrap();
    let around = Surroundings::default();
    let first = around
        .with(|context| capture_with(&source(&path), &CaptureOptions::default(), context, Sabotage::None))
        .unwrap();
    let second = capture(&path).unwrap();
    let (one, two) = (first.snapshot(), second.snapshot());
    assert_eq!(one.lineage, two.lineage);
    assert_eq!(one.engine_version.as_deref(), Some("lsm-tree 3.1.10"));
    assert!(one.weakening.iter().any(|weak| weak.setting.contains("\"lazy\"")), "{:?}", one.weakening);
    assert!(around.warnings().is_empty(), "whoever keeps the image tells");
    let identities = |snapshot: &Snapshot| -> Vec<_> {
        let written_once = |role| matches!(role, Role::Table | Role::Blob);
        snapshot
            .files
            .iter()
            .filter(|file| written_once(file.role))
            .map(|file| file.identity.clone())
            .collect()
    };
    assert!(identities(one).len() >= 4 && identities(one).iter().all(Option::is_some));
    assert_eq!(identities(one), identities(two), "unchanged tables are known to be unchanged");
    assert!(one.pointers.len() == 4 && one.pointers[0].path == "keyspaces/0/current");
    for file in &one.files {
        if file.kind == crate::FileKind::File {
            assert!(first.open(&file.path).unwrap().metadata().unwrap().len() >= file.size);
        }
    }

    drop(db);
    let copy = dir.path().join("copy");
    copy_tree(&path, &copy);
    assert_ne!(capture(&copy).unwrap().snapshot().lineage, one.lineage, "a copy is another lineage");
}

#[test]
fn versions_that_snapshots_keep_alive_are_not_in_the_image() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("db");
    let db = sample(&path);
    let plain = db.keyspace("plain", KeyspaceCreateOptions::default).unwrap();
    let held = db.snapshot();
    for round in 0..3_u64 {
        plain.insert(round.to_be_bytes(), "new").unwrap();
        plain.rotate_memtable_and_wait().unwrap();
        plain.major_compact().unwrap();
    }
    let old = |dir: &Path| std::fs::read_dir(dir.join("keyspaces/1/tables")).unwrap().count();
    let image = capture(&path).unwrap();
    let target = dir.path().join("image");
    let snapshot = keep(image, &target);
    assert!(old(&target) < old(&path), "{} tables live, {} in the folder", old(&target), old(&path));
    let versions = snapshot.files.iter().filter(|file| file.path.file_name().starts_with(b"v")).count();
    assert_eq!(versions, 3 + 1, "a version file a keyspace, and the marker");
    validate(&target, &CancellationToken::new()).unwrap();
    drop((held, plain, db));
    assert_eq!(Database::builder(&target).open().unwrap().keyspace_count(), 2);
}

/// A kept image of the sample, for damage.
fn image_of_sample(dir: &Path) -> PathBuf {
    let path = dir.join("db");
    let db = sample(&path);
    let target = dir.join("image");
    keep(capture(&path).unwrap(), &target);
    drop(db);
    std::fs::remove_dir_all(path).unwrap();
    target
}

fn corrupt_what(path: &Path) -> String {
    match validate(path, &CancellationToken::new()) {
        Err(CaptureError::Corrupt { what, .. }) => what,
        other => panic!("{other:?}"),
    }
}

#[test]
fn validation_finds_what_the_engine_opens_without_a_word() {
    let dir = tempfile::tempdir().unwrap();
    let image = image_of_sample(dir.path());
    let broken = dir.path().join("broken");
    let damage = |what: &dyn Fn(&Path)| {
        copy_tree(&image, &broken);
        what(&broken);
        let found = corrupt_what(&broken);
        std::fs::remove_dir_all(&broken).unwrap();
        found
    };
    let first =
        |path: &Path, part: &str| std::fs::read_dir(path.join(part)).unwrap().next().unwrap().unwrap().path();
    let flip = |path: &Path| {
        let mut bytes = std::fs::read(path).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        std::fs::write(path, bytes).unwrap();
    };
    assert!(damage(&|path| std::fs::remove_file(path.join("0.jnl")).unwrap()).contains("no journal"));
    assert!(damage(&|path| std::fs::remove_file(path.join("lock")).unwrap()).contains("does not exist"));
    assert!(damage(&|path| std::fs::remove_dir_all(path.join("keyspaces/1")).unwrap()).contains("\"plain\""));
    assert!(
        damage(&|path| std::fs::remove_dir_all(path.join("keyspaces/0")).unwrap()).contains("meta keyspace")
    );
    assert!(damage(&|path| flip(&first(path, "keyspaces/2/blobs"))).contains("checksum"));
    assert!(damage(&|path| flip(&first(path, "keyspaces/1/tables"))).contains("checksum"));
    assert!(damage(&|path| flip(&first(path, "keyspaces/0/tables"))).contains("checksum"));
    assert!(
        damage(&|path| std::fs::remove_file(first(path, "keyspaces/2/tables")).unwrap()).contains("missing")
    );
    assert!(damage(&|path| flip(&path.join("0.jnl"))).contains("offset"));
    let version = |path: &Path| {
        let current = std::fs::read(path.join("keyspaces/1/current")).unwrap();
        path.join(format!("keyspaces/1/v{}", u64::from_le_bytes(current[..8].try_into().unwrap())))
    };
    assert!(damage(&|path| flip(&version(path))).contains("checksum"));
    assert!(damage(&|path| std::fs::remove_file(version(path)).unwrap()).contains("does not exist"));
    validate(&image, &CancellationToken::new()).unwrap();
}

#[test]
fn a_sealed_journal_with_a_hole_is_refused_and_a_torn_newest_one_is_not() {
    let dir = tempfile::tempdir().unwrap();
    let image = image_of_sample(dir.path());
    let journal = std::fs::read(image.join("0.jnl")).unwrap();
    std::fs::write(image.join("0.jnl"), &journal[..journal.len() - 3]).unwrap();
    let report = validate(&image, &CancellationToken::new()).unwrap();
    assert!(report.remarks[0].contains("being written"), "{report:?}");
    // The same as a sealed one: replay would go on with the next journal.
    std::fs::write(image.join("1.jnl"), "").unwrap();
    assert!(corrupt_what(&image).contains("hole"));
    let error = capture(&image).unwrap_err();
    assert!(matches!(error, CaptureError::Corrupt { .. }), "{error}");
    std::fs::write(image.join("0.jnl"), journal).unwrap();
    validate(&image, &CancellationToken::new()).unwrap();
    assert_sample(&image);
}

#[test]
fn a_journal_that_is_missing_between_others_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let image = image_of_sample(dir.path());
    // Empty ones, as after two rotations.
    for number in 1..=3 {
        std::fs::write(image.join(format!("{number}.jnl")), "").unwrap();
    }
    validate(&image, &CancellationToken::new()).unwrap();
    std::fs::remove_file(image.join("2.jnl")).unwrap();
    assert!(corrupt_what(&image).contains("2.jnl is missing between 1.jnl and 3.jnl"));
    let error = capture(&image).unwrap_err();
    assert!(matches!(&error, CaptureError::Corrupt { what, .. } if what.contains("2.jnl")), "{error}");
    // The oldest go away in their turn.
    std::fs::remove_file(image.join("1.jnl")).unwrap();
    assert!(corrupt_what(&image).contains("1.jnl to 2.jnl are missing"));
    std::fs::remove_file(image.join("0.jnl")).unwrap();
    validate(&image, &CancellationToken::new()).unwrap();
}

#[test]
fn a_source_without_journals_or_with_damage_is_refused_soon() {
    let dir = tempfile::tempdir().unwrap();
    let path = image_of_sample(dir.path());
    let journal = std::fs::read(path.join("0.jnl")).unwrap();
    let clock = SystemClock::new();
    let refused = |part: &str| match capture(&path) {
        Err(CaptureError::Corrupt { what, .. }) if what.contains(part) => {}
        other => panic!("{part}: {other:?}"),
    };
    let mut damaged = journal.clone();
    damaged[journal.len() / 2] ^= 1;
    std::fs::write(path.join("0.jnl"), damaged).unwrap();
    refused("offset");
    std::fs::remove_file(path.join("0.jnl")).unwrap();
    refused("no journal");
    std::fs::write(path.join("0.jnl"), journal).unwrap();
    std::fs::rename(path.join("keyspaces/1"), path.join("keyspaces/7")).unwrap();
    refused("\"plain\"");
    std::fs::rename(path.join("keyspaces/7"), path.join("keyspaces/1")).unwrap();
    let table = std::fs::read_dir(path.join("keyspaces/1/tables")).unwrap().next().unwrap().unwrap().path();
    std::fs::remove_file(table).unwrap();
    refused("does not exist");
    assert!(clock.monotonic() < Duration::from_secs(20), "no waiting for what does not come");
}

#[test]
fn a_source_that_is_deleted_meanwhile_has_vanished() {
    let dir = tempfile::tempdir().unwrap();
    let path = image_of_sample(dir.path());
    let around = Surroundings::default();
    around.with(|context| {
        let staging = Staging::for_source(&path, &CaptureOptions::default(), context).unwrap();
        let root = SourceDir::open(&path).unwrap();
        let mut attempts = Attempts::new(root, ImageBuilder::new(staging), Sabotage::None).unwrap();
        attempts.prepare().unwrap();
        std::fs::remove_dir_all(&path).unwrap();
        let outcome = attempts.attempt(context);
        assert!(matches!(outcome, Err(CaptureError::Vanished { .. })));
    });
}

#[test]
fn other_directories_and_formats_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("db");
    assert!(matches!(capture(&path), Err(CaptureError::Io { .. })));
    std::fs::create_dir(&path).unwrap();
    assert!(!recognise(&path).unwrap());
    assert!(matches!(capture(&path), Err(CaptureError::NotADatabase { .. })));
    std::fs::write(path.join("version"), b"FJL\x02").unwrap();
    assert!(matches!(capture(&path), Err(CaptureError::UnknownFormat { .. })));
    std::fs::write(path.join("version"), b"FJL\x03").unwrap();
    assert!(matches!(capture(&path), Err(CaptureError::NotADatabase { .. })));
    assert!(!recognise(&path).unwrap());
    std::fs::create_dir(path.join("keyspaces")).unwrap();
    assert!(recognise(&path).unwrap());
    assert!(matches!(capture(&path), Err(CaptureError::Corrupt { .. })));
    let file = dir.path().join("file");
    std::fs::write(&file, "x").unwrap();
    assert!(matches!(capture(&file), Err(CaptureError::NotADatabase { .. })));
}

#[test]
fn strays_in_the_directory_are_left_out() {
    let dir = tempfile::tempdir().unwrap();
    let path = image_of_sample(dir.path());
    std::fs::create_dir(path.join("lost+found")).unwrap();
    std::fs::write(path.join("keyspaces/1/.tmpAbCdEf"), "x").unwrap();
    std::fs::write(path.join("keyspaces/99"), "a file").unwrap();
    std::fs::create_dir(path.join("keyspaces/stray")).unwrap();
    std::fs::create_dir_all(path.join("keyspaces/50/tables")).unwrap();
    std::fs::write(path.join("keyspaces/1/tables/4000"), "an orphan").unwrap();
    let target = dir.path().join("of strays");
    let snapshot = keep(capture(&path).unwrap(), &target);
    for stray in ["lost+found", "keyspaces/1/.tmpAbCdEf", "keyspaces/99", "keyspaces/stray", "keyspaces/50"] {
        assert!(!target.join(stray).exists(), "{stray}");
    }
    assert!(!target.join("keyspaces/1/tables/4000").exists());
    assert!(snapshot.files.iter().all(|file| file.path.below(&target).exists()));
    assert_sample(&target);
}

#[test]
fn staging_on_another_file_system_gives_the_same_image() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("db");
    let db = sample(&path);
    let elsewhere = tempfile::tempdir_in("/dev/shm").unwrap();
    let options = CaptureOptions { staging: Some(elsewhere.path().to_owned()), ..CaptureOptions::default() };
    let around = Surroundings::default();
    let before = inventory(&path);
    let image =
        around.with(|context| capture_with(&source(&path), &options, context, Sabotage::None)).unwrap();
    assert_eq!(inventory(&path), before, "not even links");
    let target = elsewhere.path().join("image");
    keep(image, &target);
    validate(&target, &CancellationToken::new()).unwrap();
    assert_sample(&target);
    drop(db);
    assert_eq!(std::fs::read_dir(elsewhere.path()).unwrap().count(), 1, "only the image is left");
}

#[test]
fn another_user_captures_what_it_may_read_and_is_told_what_it_may_not() {
    if let Some(path) = child_argument() {
        let before = inventory(&path.join("db"));
        let image = capture(&path.join("db")).unwrap();
        assert_eq!(inventory(&path.join("db")), before);
        let target = path.join("mine/image");
        keep(image, &target);
        validate(&target, &CancellationToken::new()).unwrap();
        assert_sample(&target);
        match capture(&path.join("secret")) {
            Err(CaptureError::Permission { path, .. }) => {
                assert!(path.ends_with("keyspaces/1/current"), "{path:?}");
            }
            other => panic!("{other:?}"),
        }
        let left = std::fs::read_dir(path.join("mine")).unwrap().count();
        assert_eq!(left, 1, "nothing is left but the image");
        return;
    }
    let mode = |path: &Path, mode| std::fs::set_permissions(path, PermissionsExt::from_mode(mode)).unwrap();
    let dir = tempfile::tempdir().unwrap();
    mode(dir.path(), 0o777);
    drop(sample(&dir.path().join("db")));
    // The engine makes its pointers for its own user only.
    for path in inventory(&dir.path().join("db")).into_keys().filter(|path| path.is_file()) {
        mode(&path, 0o644);
    }
    copy_tree(&dir.path().join("db"), &dir.path().join("secret"));
    mode(&dir.path().join("secret/keyspaces/1/current"), 0o000);
    std::fs::create_dir(dir.path().join("mine")).unwrap();
    mode(&dir.path().join("mine"), 0o777);
    let test = "fjall::image_tests::another_user_captures_what_it_may_read_and_is_told_what_it_may_not";
    again_as(test, NOBODY, dir.path());
}

#[test]
fn a_source_that_never_stands_still_is_given_up_with_what_moved() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("db");
    let db = Database::builder(&path).open().unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    // The pointer of a keyspace, replaced as fast as can be.
    let folder = path.join("keyspaces/1");
    db.keyspace("x", KeyspaceCreateOptions::default).unwrap();
    let current = std::fs::read(folder.join("current")).unwrap();
    let version = std::fs::read(folder.join("v0")).unwrap();
    let mover = std::thread::spawn({
        let stop = stop.clone();
        move || {
            for n in (1_u64..).take_while(|_| !stop.load(Ordering::Relaxed)) {
                std::fs::write(folder.join(format!("v{n}")), &version).unwrap();
                let mut bytes = current.clone();
                bytes[..8].copy_from_slice(&n.to_le_bytes());
                std::fs::write(folder.join(".tmp"), bytes).unwrap();
                std::fs::rename(folder.join(".tmp"), folder.join("current")).unwrap();
                let _ = std::fs::remove_file(folder.join(format!("v{}", n.wrapping_sub(2))));
            }
        }
    });
    let hasty = CaptureOptions { deadline: Duration::from_millis(50), ..CaptureOptions::default() };
    let around = Surroundings::default();
    let outcomes: Vec<_> = (0..20)
        .map(|_| around.with(|context| capture_with(&source(&path), &hasty, context, Sabotage::None)))
        .collect();
    stop.store(true, Ordering::Relaxed);
    mover.join().unwrap();
    for outcome in &outcomes {
        match outcome {
            Ok(_) => {}
            // On a busy machine the first attempt may have taken all of the time.
            Err(CaptureError::TooBusy { moved, .. }) => {
                assert!(moved.contains("keyspaces/1/current"), "{moved}");
            }
            Err(error) => panic!("{error}"),
        }
    }
    drop(outcomes);
    let seen = around.events.lock().unwrap().iter().any(|event| matches!(event, crate::Event::Moved { .. }));
    assert!(seen, "the pointer was seen to move");
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "nothing of ours is left");
}

#[test]
fn validation_and_the_copy_of_a_journal_end_when_they_are_cancelled() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("db");
    drop(sample(&path));
    let cancelled = CancellationToken::new();
    cancelled.cancel();
    assert!(matches!(validate(&path, &cancelled), Err(CaptureError::Cancelled)));
    let scratch = dir.path().join("scratch");
    std::fs::create_dir(&scratch).unwrap();
    let mut journals = Journals::new(scratch, cancelled);
    let copied = journals.prepare(&SourceDir::open(&path).unwrap());
    assert!(matches!(copied, Err(CaptureError::Cancelled)), "{copied:?}");
}
