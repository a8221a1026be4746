//! Trees of plain files: what is kept of them, what is left out, and what is refused.

use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::os::unix::net::UnixListener;

use proptest::prelude::*;

use tokio_util::sync::CancellationToken;

use super::*;
use crate::snapshot::SNAPSHOT_FILE;
use crate::test_support::{NOBODY, Surroundings, again_as, child_argument, inventory, is_root};
use crate::{ValidationReport, validate_image};

fn source(path: &Path) -> Source {
    Source { engine: Engine::Files, path: path.to_owned() }
}

fn capture_here(path: &Path) -> Result<Image, CaptureError> {
    Surroundings::default().with(|context| capture(&source(path), &CaptureOptions::default(), context))
}

fn keep(image: Image, target: &Path) -> Snapshot {
    Surroundings::default().with(|context| image.keep(target, context)).unwrap()
}

fn set_mode(path: &Path, mode: u32) {
    std::fs::set_permissions(path, PermissionsExt::from_mode(mode)).unwrap();
}

/// A tree with everything in it.
fn tree(parent: &Path) -> PathBuf {
    let root = parent.join("tree");
    std::fs::create_dir_all(root.join("a/b/empty")).unwrap();
    std::fs::write(root.join("a/one"), "first").unwrap();
    std::fs::write(root.join("a/b/two"), vec![7; 100_000]).unwrap();
    std::fs::write(root.join(OsStr::from_bytes(b"not \xff text\\")), "odd").unwrap();
    std::fs::write(root.join("zero"), "").unwrap();
    symlink("a/one", root.join("good")).unwrap();
    symlink("/etc/passwd", root.join("a/outside")).unwrap();
    symlink(OsStr::from_bytes(b"no\xfewhere\\x41"), root.join("dangling")).unwrap();
    symlink("a", root.join("dir-link")).unwrap();
    set_mode(&root.join("a/one"), 0o640);
    set_mode(&root.join("a/b"), 0o711);
    root
}

/// Contents, kinds, modes, owners and times of a tree, without the inodes.
fn contents(root: &Path) -> Vec<(PathBuf, Vec<u8>, u32, u32, i64, i64)> {
    let mut found = Vec::new();
    for path in inventory(root).into_keys() {
        let name = path.strip_prefix(root).unwrap().to_owned();
        if name == Path::new(SNAPSHOT_FILE) {
            continue;
        }
        let meta = std::fs::symlink_metadata(&path).unwrap();
        let bytes = if meta.is_file() {
            std::fs::read(&path).unwrap()
        } else if meta.is_symlink() {
            std::fs::read_link(&path).unwrap().into_os_string().into_vec()
        } else {
            Vec::new()
        };
        // A link's own mode and time mean nothing.
        let time = if meta.is_symlink() { (0, 0) } else { (meta.mtime(), meta.mtime_nsec()) };
        found.push((name, bytes, meta.mode(), meta.uid(), time.0, time.1));
    }
    found
}

#[test]
fn a_tree_comes_back_as_it_was_and_nothing_of_it_changes() {
    let dir = tempfile::tempdir().unwrap();
    let root = tree(dir.path());
    let before = inventory(&root);
    let image = capture_here(&root).unwrap();
    assert!(image.snapshot().weakening[0].effect.starts_with("No consistency is claimed"));
    let target = dir.path().join("image");
    keep(image, &target);
    assert_eq!(inventory(&root), before);
    assert_eq!(contents(&target), contents(&root));
    let report = check(&target).unwrap();
    assert_eq!((report.files, report.bytes), (4, 100_008));
    let left: Vec<_> =
        std::fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left.len(), 2, "{left:?}");
}

#[test]
fn a_kept_image_shares_no_bytes_with_files_that_change_in_place() {
    let dir = tempfile::tempdir().unwrap();
    let root = tree(dir.path());
    let target = dir.path().join("image");
    keep(capture_here(&root).unwrap(), &target);
    std::fs::write(root.join("a/one"), "later").unwrap();
    std::fs::write(target.join("zero"), "of the image").unwrap();
    assert_eq!(std::fs::read_to_string(target.join("a/one")).unwrap(), "first");
    assert_eq!(std::fs::read_to_string(root.join("zero")).unwrap(), "");
}

#[test]
fn a_file_of_a_transient_image_outlives_its_name() {
    let dir = tempfile::tempdir().unwrap();
    let root = tree(dir.path());
    let image = capture_here(&root).unwrap();
    std::fs::remove_dir_all(&root).unwrap();
    let target = dir.path().join("image");
    keep(image, &target);
    assert_eq!(std::fs::read(target.join("a/b/two")).unwrap(), vec![7; 100_000]);
}

#[test]
fn sockets_and_pipes_are_left_out_with_a_warning() {
    let dir = tempfile::tempdir().unwrap();
    let root = tree(dir.path());
    let _listener = UnixListener::bind(root.join("socket")).unwrap();
    let pipe = std::process::Command::new("mkfifo").arg(root.join("pipe")).status();
    let around = Surroundings::default();
    let image = around.with(|context| capture(&source(&root), &CaptureOptions::default(), context)).unwrap();
    assert!(image.snapshot().files.iter().all(|file| !file.path.to_string().contains("socket")));
    let special = image.snapshot().weakening.iter().find(|weak| weak.setting == "special files").unwrap();
    assert!(special.effect.contains("socket"), "{special:?}");
    assert_eq!(special.effect.contains("pipe,"), pipe.is_ok_and(|status| status.success()), "{special:?}");
}

#[test]
fn files_that_come_and_go_meanwhile_do_no_harm() {
    let dir = tempfile::tempdir().unwrap();
    let root = tree(dir.path());
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for n in 0_u64.. {
                if stop.load(std::sync::atomic::Ordering::Relaxed) {
                    break;
                }
                let folder = root.join(format!("passing-{}", n % 7));
                let _ = std::fs::create_dir(&folder);
                let _ = std::fs::write(folder.join("file"), "x");
                let _ = std::fs::rename(folder.join("file"), root.join("moved"));
                let _ = std::fs::remove_dir_all(&folder);
                let _ = symlink("/etc", &folder);
                let _ = std::fs::remove_file(&folder);
            }
        });
        for round in 0..60 {
            let image = capture_here(&root).unwrap();
            let kept = image.snapshot().files.clone();
            assert!(kept.iter().any(|file| file.path.as_bytes() == b"a/b/two"));
            assert!(
                kept.iter().all(|file| !file.path.as_bytes().ends_with(b"/passwd")),
                "no link was followed"
            );
            for file in kept.iter().filter(|file| file.kind == FileKind::File) {
                image.open(&file.path).unwrap();
            }
            if round % 10 == 0 {
                let target = dir.path().join(format!("image-{round}"));
                keep(image, &target);
                check(&target).unwrap();
            }
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
    });
}

#[test]
fn staging_elsewhere_copies() {
    let dir = tempfile::tempdir().unwrap();
    let root = tree(dir.path());
    let elsewhere = tempfile::tempdir_in("/dev/shm").unwrap();
    let options = CaptureOptions { staging: Some(elsewhere.path().to_owned()), ..CaptureOptions::default() };
    let image = Surroundings::default().with(|context| capture(&source(&root), &options, context)).unwrap();
    std::fs::write(root.join("a/one"), "later").unwrap();
    let target = elsewhere.path().join("image");
    keep(image, &target);
    assert_eq!(std::fs::read_to_string(target.join("a/one")).unwrap(), "first");
    assert_eq!(std::fs::read_dir(elsewhere.path()).unwrap().count(), 1);
}

#[test]
fn another_user_keeps_what_it_may_read_and_is_told_what_it_may_not() {
    let test = "files::tests::another_user_keeps_what_it_may_read_and_is_told_what_it_may_not";
    if let Some(dir) = child_argument() {
        let options = CaptureOptions { staging: Some(dir.join("mine")), ..CaptureOptions::default() };
        let capture = |name: &str| {
            Surroundings::default().with(|context| capture(&source(&dir.join(name)), &options, context))
        };
        let before = inventory(&dir.join("readable"));
        let target = dir.join("mine/image");
        keep(capture("readable").unwrap(), &target);
        assert_eq!(inventory(&dir.join("readable")), before);
        assert_eq!(std::fs::read_to_string(target.join("file")).unwrap(), "for all");
        if !is_root() {
            for (name, part) in [("with secret", "secret"), ("closed", "closed/inner")] {
                match capture(name) {
                    Err(CaptureError::Permission { path, .. }) => assert!(path.ends_with(part), "{path:?}"),
                    other => panic!("{other:?}"),
                }
            }
        }
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    set_mode(dir.path(), 0o777);
    for name in ["readable", "with secret", "closed", "closed/inner", "mine"] {
        std::fs::create_dir(dir.path().join(name)).unwrap();
    }
    std::fs::write(dir.path().join("readable/file"), "for all").unwrap();
    std::fs::write(dir.path().join("with secret/secret"), "not for all").unwrap();
    set_mode(&dir.path().join("readable"), 0o755);
    set_mode(&dir.path().join("readable/file"), 0o644);
    set_mode(&dir.path().join("with secret"), 0o755);
    set_mode(&dir.path().join("with secret/secret"), 0o600);
    set_mode(&dir.path().join("closed"), 0o755);
    set_mode(&dir.path().join("closed/inner"), 0o700);
    set_mode(&dir.path().join("mine"), 0o777);
    again_as(test, NOBODY, dir.path());
}

#[test]
fn a_read_only_directory_of_ones_own_is_kept_too() {
    let test = "files::tests::a_read_only_directory_of_ones_own_is_kept_too";
    if let Some(dir) = child_argument() {
        let root = dir.join("mine/tree");
        std::fs::create_dir_all(root.join("inner")).unwrap();
        std::fs::write(root.join("inner/file"), "x").unwrap();
        set_mode(&root.join("inner"), 0o555);
        set_mode(&root, 0o555);
        let target = dir.join("mine/image");
        keep(capture_here(&root).unwrap(), &target);
        assert_eq!(contents(&target), contents(&root));
        for path in [&root, &target] {
            set_mode(path, 0o755);
            set_mode(&path.join("inner"), 0o755);
        }
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    set_mode(dir.path(), 0o777);
    std::fs::create_dir(dir.path().join("mine")).unwrap();
    set_mode(&dir.path().join("mine"), 0o777);
    again_as(test, NOBODY, dir.path());
}

fn check(image: &Path) -> Result<ValidationReport, CaptureError> {
    validate_image(&Snapshot::read(image).unwrap().unwrap(), image, &CancellationToken::new())
}

#[test]
fn a_description_of_the_applications_own_is_not_written_over() {
    let dir = tempfile::tempdir().unwrap();
    let root = tree(dir.path());
    std::fs::write(root.join(SNAPSHOT_FILE), "{}").unwrap();
    let around = Surroundings::default();
    let image = capture_here(&root).unwrap();
    let refused = around.with(|context| image.keep(&dir.path().join("image"), context)).unwrap_err();
    assert!(matches!(refused, CaptureError::Refused { .. }), "{refused}");
    assert_eq!(std::fs::read(root.join(SNAPSHOT_FILE)).unwrap(), b"{}");
}

#[test]
fn validation_misses_nothing_that_the_description_names() {
    let dir = tempfile::tempdir().unwrap();
    let root = tree(dir.path());
    let target = dir.path().join("image");
    keep(capture_here(&root).unwrap(), &target);
    let broken = |change: &dyn Fn()| {
        change();
        let found = check(&target);
        assert!(matches!(found, Err(CaptureError::Corrupt { .. })), "{found:?}");
    };
    broken(&|| std::fs::write(target.join("a/one"), "longer than it was").unwrap());
    std::fs::write(target.join("a/one"), "first").unwrap();
    let report = check(&target).unwrap();
    assert_eq!(report.remarks, [""; 0]);
    std::fs::write(target.join("a/stranger"), "x").unwrap();
    let strange = check(&target).unwrap();
    assert_eq!((strange.files, strange.bytes), (report.files, report.bytes), "those that were captured");
    assert!(strange.remarks[0].contains("a/stranger was not captured"), "{strange:?}");
    std::fs::remove_file(target.join("a/stranger")).unwrap();
    broken(&|| std::fs::remove_dir(target.join("a/b/empty")).unwrap());
    std::fs::write(target.join("a/b/empty"), "").unwrap();
    broken(&|| {});
    std::fs::remove_file(target.join("a/b/empty")).unwrap();
    std::fs::create_dir(target.join("a/b/empty")).unwrap();
    broken(&|| {
        std::fs::remove_file(target.join("good")).unwrap();
        symlink("elsewhere", target.join("good")).unwrap();
    });
    std::fs::remove_file(target.join(SNAPSHOT_FILE)).unwrap();
    assert!(Snapshot::read(&target).unwrap().is_none());
}

#[test]
fn a_file_is_not_a_tree_and_a_link_to_a_tree_is() {
    let dir = tempfile::tempdir().unwrap();
    let root = tree(dir.path());
    assert!(matches!(capture_here(&root.join("zero")), Err(CaptureError::NotADatabase { .. })));
    assert!(matches!(capture_here(&root.join("nowhere")), Err(CaptureError::Io { .. })));
    let snapshot = capture_here(&root.join("dir-link")).unwrap().snapshot().clone();
    assert!(snapshot.files.iter().any(|file| file.path.as_bytes() == b"b/two"));
}

proptest! {
    #[test]
    fn the_text_of_a_links_target_reads_back(target in proptest::collection::vec(1_u8.., 1..60)) {
        let kind = FileKind::Symlink { target: OsString::from_vec(target).into() };
        let json = serde_json::to_string(&kind).unwrap();
        prop_assert!(!json.chars().any(char::is_control));
        prop_assert_eq!(serde_json::from_str::<FileKind>(&json).unwrap(), kind);
    }

    #[test]
    fn any_text_is_read_as_a_target_without_panic(text in "\\PC{0,40}|(\\\\x?[0-9a-f]{0,3}){0,8}") {
        let _ = serde_json::from_value::<FileKind>(serde_json::json!({ "kind": "symlink", "target": text }));
    }
}

#[test]
fn names_that_only_look_like_ours_are_captured_and_ours_are_not() {
    let dir = tempfile::tempdir().unwrap();
    let root = tree(dir.path());
    std::fs::create_dir(root.join(".stillframe-notes")).unwrap();
    std::fs::write(root.join(".stillframe-notes/mine"), "precious").unwrap();
    std::fs::write(root.join(".stillframe-00000000000000000"), "a digit more").unwrap();
    std::fs::write(root.join(".stillframe-00000000000000aa"), "of this form, and nobody's lock is beside it")
        .unwrap();
    std::fs::create_dir(root.join(".stillframe-00000000000000ff")).unwrap();
    std::fs::write(root.join(".stillframe-00000000000000ff.lock"), "").unwrap();
    let around = Surroundings::default();
    let image = around.with(|context| capture(&source(&root), &CaptureOptions::default(), context)).unwrap();
    let names: Vec<_> = image.snapshot().files.iter().map(|file| file.path.to_string()).collect();
    let ours: Vec<_> = names.iter().filter(|name| name.starts_with(".stillframe-")).collect();
    let kept = [
        ".stillframe-00000000000000000",
        ".stillframe-00000000000000aa",
        ".stillframe-notes",
        ".stillframe-notes/mine",
    ];
    assert_eq!(ours, kept);
}

/// Whoever opens and closes a SQLite file drops the locks that its own process has on it.
#[test]
fn what_the_program_keeps_for_itself_is_left_out_told_and_never_opened() {
    let dir = tempfile::tempdir().unwrap();
    let root = tree(dir.path());
    std::fs::create_dir(root.join("state")).unwrap();
    std::fs::write(root.join("state/jobs.db"), "open").unwrap();
    symlink(root.join("state"), dir.path().join("way-in")).unwrap();
    let around = Surroundings::default();
    for own in [root.join("state"), dir.path().join("way-in")] {
        let options =
            CaptureOptions { leave_out: vec![own.clone(), "/no/such".into()], ..CaptureOptions::default() };
        let image = around.with(|context| capture(&source(&root), &options, context)).unwrap();
        let paths: Vec<String> = image.snapshot().files.iter().map(|file| file.path.to_string()).collect();
        assert!(
            !paths.iter().any(|path| path.starts_with("state")) && paths.iter().any(|path| path == "a/one")
        );
        let told = image.snapshot().weakening.iter().find(|weak| weak.setting == "own directories").unwrap();
        assert!(told.effect.ends_with("state."), "{told:?}");
        let refused = around.with(|context| capture(&source(&own), &options, context)).unwrap_err();
        assert!(matches!(refused, CaptureError::Refused { .. }), "{refused}");
    }
}

#[test]
fn a_place_in_the_source_is_refused_for_staging_and_for_images() {
    let dir = tempfile::tempdir().unwrap();
    let root = tree(dir.path());
    symlink(&root, dir.path().join("way-in")).unwrap();
    let around = Surroundings::default();
    for inside in [root.clone(), root.join("a/b"), dir.path().join("way-in/a")] {
        let options = CaptureOptions { staging: Some(inside.clone()), ..CaptureOptions::default() };
        let refused = around.with(|context| crate::capture(&[source(&root)], &options, context)).unwrap_err();
        assert!(matches!(refused, CaptureError::Refused { .. }), "{refused}");
        let other = Source { engine: Engine::Sqlite, path: dir.path().join("other.db") };
        std::fs::write(&other.path, "").unwrap();
        let both = [source(&root), other];
        let refused = around.with(|context| crate::capture(&both[1..], &options, context).map(drop));
        refused.unwrap();
        let refused = around.with(|context| crate::capture(&both, &options, context)).unwrap_err();
        assert!(matches!(refused, CaptureError::Refused { .. }), "{refused}");
        let image =
            around.with(|context| capture(&source(&root), &CaptureOptions::default(), context)).unwrap();
        let refused = around.with(|context| image.keep(&inside.join("new/image"), context)).unwrap_err();
        assert!(matches!(refused, CaptureError::Refused { .. }), "{refused}");
    }
    assert!(!root.join("a/new").exists() && !root.join("new").exists());
}

#[test]
fn a_description_that_lists_a_file_twice_or_none_of_a_database_describes_no_image() {
    let dir = tempfile::tempdir().unwrap();
    let target = dir.path().join("image");
    keep(capture_here(&tree(dir.path())).unwrap(), &target);
    let sound = Snapshot::read(&target).unwrap().unwrap();
    let twice = Snapshot { files: [&sound.files[..], &sound.files[..1]].concat(), ..sound.clone() };
    let none = Snapshot { engine: Engine::Sqlite, files: Vec::new(), ..sound.clone() };
    let check = |snapshot: &Snapshot| validate_image(snapshot, &target, &CancellationToken::new());
    check(&sound).unwrap();
    for (snapshot, said) in [(twice, "twice"), (none, "no file")] {
        match check(&snapshot) {
            Err(CaptureError::Corrupt { path, what }) if path.ends_with("snapshot.json") => {
                assert!(what.contains(said), "{what}");
            }
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_description_of_a_later_version_is_not_guessed_at() {
    let dir = tempfile::tempdir().unwrap();
    let target = dir.path().join("image");
    keep(capture_here(&tree(dir.path())).unwrap(), &target);
    let path = target.join("snapshot.json");
    let later = std::fs::read_to_string(&path).unwrap().replace("\"version\": 1", "\"version\": 2");
    std::fs::write(&path, later).unwrap();
    let refused = Snapshot::read(&target).unwrap_err();
    assert!(matches!(&refused, CaptureError::UnknownFormat { .. }), "{refused}");
}
