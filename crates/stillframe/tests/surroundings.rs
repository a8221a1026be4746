//! What the program finds around it: nobody who listens, odd names, directories that cannot be used, leftovers of the dead.
#![allow(clippy::unwrap_used, reason = "a test stops at what it did not expect")]

mod scene;

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use stillframe_repo::{ManifestDraft, Repository, Unlock, WriteOptions};
use stillframe_storage::{Clock, SystemClock, open};

use crate::scene::{Scene, names};

#[test]
fn work_goes_on_when_nobody_takes_what_is_said_about_it() {
    let scene = Scene::new();
    let backup = ["backup", "files:one", "--reserve", "0"];
    let full = || File::options().write(true).open("/dev/full").unwrap();
    let output = scene.command(&backup).stderr(full()).env("STILLFRAME_LOG", "trace").output().unwrap();
    assert!(output.status.success(), "{}", output.status);
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    assert!(scene.command(&backup).stderr(writer).output().unwrap().status.success());
    assert_eq!(scene.objects(&["snapshots"]).len(), 2);
    // The code is what is left to tell of a failure.
    let failed = scene.command(&["restore", "none", "--to", "x"]).stderr(full()).output().unwrap();
    assert_eq!(failed.status.code(), Some(24));
}

#[test]
fn names_that_are_no_text_are_captured_written_and_come_back() {
    let scene = Scene::new();
    let odd = |name: &[u8]| scene.path("").join(OsStr::from_bytes(name));
    let tree = odd(b"odd \xff\x1b\\tree");
    std::fs::create_dir(&tree).unwrap();
    std::fs::write(tree.join("a"), "first").unwrap();
    let run = |words: &[&OsStr]| {
        let output = scene.command(words).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success() && !said.contains('\x1b'), "{words:?}: {said}");
        String::from_utf8(output.stdout).unwrap()
    };
    let mut source = OsString::from("files:");
    source.push(&tree);
    let word = OsStr::new;
    run(&[word("backup"), &source, word("--reserve"), word("0")]);
    let snapshot = scene.objects(&["snapshots"]).remove(0);
    assert_eq!(snapshot["sources"][0]["name"], "odd \\xff\\x1b\\x5ctree");
    for (json, target) in [(None, odd(b"back\xfe")), (Some(word("--json")), odd(b"back\xfd"))] {
        let words = [word("restore"), word("latest"), word("--to"), target.as_os_str()];
        run(&json.iter().copied().chain(words).collect::<Vec<_>>());
        assert_eq!(std::fs::read(target.join("a")).unwrap(), b"first");
    }
    // Of several, each has its old name.
    run(&[word("backup"), &source, word("files:one"), word("--reserve"), word("0")]);
    run(&[word("restore"), word("latest"), word("--to"), word("both")]);
    assert!(scene.path("both").join(tree.file_name().unwrap()).join("a").is_file());
    let image = odd(b"image\xfc");
    for json in [None, Some(word("--json"))] {
        let _ = std::fs::remove_dir_all(&image);
        let words = [
            word("image"),
            word("create"),
            &source,
            word("--to"),
            image.as_os_str(),
            word("--reserve"),
            word("0"),
        ];
        run(&json.iter().copied().chain(words).collect::<Vec<_>>());
        let words = [word("image"), word("validate"), image.as_os_str()];
        run(&json.iter().copied().chain(words).collect::<Vec<_>>());
    }
    // A working directory counts as well.
    let inside = scene.command(&["backup", "files:.", "--reserve", "0"]).current_dir(&tree).output().unwrap();
    assert!(inside.status.success(), "{}", String::from_utf8_lossy(&inside.stderr));
}

#[test]
fn an_image_that_is_not_what_its_description_says_is_damaged() {
    let scene = Scene::new();
    scene.good(&["image", "create", "files:one", "--to", "image", "--copy", "--reserve", "0"]);
    scene.good(&["image", "validate", "image"]);
    std::fs::write(scene.path("image/a"), "longer than it was").unwrap();
    let error = scene.bad(&["image", "validate", "image"], 30);
    assert!(error.contains("image/a") && error.contains("--engine files"), "{error}");
    scene.good(&["image", "validate", "image", "--engine", "files"]);
    // One of the application's own, in a tree that came back.
    std::fs::write(scene.path("one/snapshot.json"), r#"{"my": "app"}"#).unwrap();
    scene.back_up(&["files:one"]);
    scene.good(&["verify", "--level", "open"]);
    scene.bad(&["image", "create", "files:one", "--to", "refused", "--reserve", "0"], 20);
    assert!(!scene.path("refused").exists());
}

#[test]
fn a_history_that_cannot_be_used_stops_no_work_but_is_no_empty_history() {
    let scene = Scene::new();
    let run =
        |words: &[&str]| scene.command(words).env("STILLFRAME_STATE_DIR", "/proc/nowhere").output().unwrap();
    let output = run(&["backup", "files:one", "--reserve", "0"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let jobs = run(&["jobs"]);
    assert!(!jobs.status.success() && jobs.stdout.is_empty());
    assert!(String::from_utf8_lossy(&jobs.stderr).contains("STILLFRAME_STATE_DIR"));
}

#[test]
fn a_cache_that_cannot_be_made_is_done_without() {
    let scene = Scene::new();
    for words in [
        &["backup", "files:one", "--reserve", "0"][..],
        &["snapshots"],
        &["verify"],
        &["restore", "latest", "--to", "back"],
    ] {
        let output = scene.command(words).env("STILLFRAME_CACHE_DIR", "/proc/nowhere").output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        let told = said.lines().filter(|line| line.starts_with("warning: /proc/nowhere/")).count();
        assert!(output.status.success() && told == 1 && said.contains("index cache"), "{words:?}: {said}");
    }
    let output =
        scene.command(&["--json", "snapshots"]).env("STILLFRAME_CACHE_DIR", "/proc/nowhere").output();
    let out = String::from_utf8(output.unwrap().stdout).unwrap();
    let first: serde_json::Value = serde_json::from_str(out.lines().next().unwrap()).unwrap();
    assert_eq!(first["type"], "warning", "{out}");
    assert_eq!(std::fs::read(scene.path("back/a")).unwrap(), b"first");
}

#[test]
fn what_is_logged_is_chosen_and_a_choice_that_is_none_is_told() {
    let scene = Scene::new();
    let said = |log: &str| {
        // A new repository has no packs to look for unfinished uploads among.
        let place = format!("new {log}");
        let output = scene.command(&["repo", "init", &place]).env("STILLFRAME_LOG", log).output().unwrap();
        assert!(output.status.success());
        String::from_utf8(output.stderr).unwrap()
    };
    assert!(!said("").contains("DEBUG"));
    assert!(said("trace").contains("DEBUG "));
    assert!(said("x=y=z").contains("warning: STILLFRAME_LOG=x=y=z: "));
}

/// The clock of a machine that is a day ahead.
#[derive(Debug)]
struct Ahead;

impl Clock for Ahead {
    fn now(&self) -> Timestamp {
        SystemClock::new().now() + SignedDuration::from_hours(24)
    }

    fn monotonic(&self) -> Duration {
        SystemClock::new().monotonic()
    }
}

#[test]
fn a_latest_backup_that_is_still_to_come_is_told() {
    let scene = Scene::new();
    scene.back_up(&["files:one"]);
    let quiet = scene.run(&["show", "latest"]);
    assert!(quiet.stderr.is_empty());
    tokio::runtime::Runtime::new().unwrap().block_on(async {
        let store = open(&scene.path("repo").to_str().unwrap().parse().unwrap()).unwrap();
        let (unlock, elsewhere) = (Unlock::Passphrase("one".into()), scene.path("elsewhere"));
        let repository = Repository::open(store, &unlock, &elsewhere).await.unwrap();
        let draft = async |_| Ok::<_, stillframe_repo::Error>(ManifestDraft::default());
        repository.write(&WriteOptions::new(Arc::new(Ahead)), draft).await.unwrap();
    });
    for words in [&["show", "latest"][..], &["verify"]] {
        let said = String::from_utf8(scene.run(words).stderr).unwrap();
        assert!(said.contains("still to come") && said.contains("snapshots"), "{words:?}: {said}");
    }
    // The next one is put behind it, and this is told as well.
    let output = scene.run(&["backup", "files:one", "--reserve", "0", "--name", "newer"]);
    assert!(String::from_utf8_lossy(&output.stderr).contains("clock is behind"));
    assert!(scene.good(&["show", "latest"]).contains("newer"));
}

#[test]
fn what_is_stored_is_checked_by_whoever_has_no_key() {
    let scene = Scene::new();
    scene.back_up(&["files:one"]);
    let blind = |words: &[&str]| {
        let output = scene.command(words).env_remove("STILLFRAME_PASSPHRASE").output().unwrap();
        let text = [output.stdout, output.stderr].map(|said| String::from_utf8(said).unwrap()).concat();
        (output.status.code(), text)
    };
    assert_eq!(blind(&["verify", "--level", "hash"]).0, Some(12));
    let (code, text) = blind(&["verify", "--level", "hash", "--without-key"]);
    assert!(code == Some(0) && text.contains("each that is there is as it was written"), "{text}");
    for words in [&["--level", "decrypt"][..], &["latest"], &["--staging", "."]] {
        assert_eq!(blind(&[&["verify", "--without-key"], words].concat()).0, Some(2), "{words:?}");
    }
    let manifests = scene.path("repo/manifests");
    let manifest = manifests.join(&names(&manifests)[0]);
    let mut bytes = std::fs::read(&manifest).unwrap();
    bytes[60] ^= 1;
    std::fs::write(&manifest, bytes).unwrap();
    let (code, text) = blind(&["verify", "--without-key"]);
    assert!(code == Some(30) && text.contains("the repository is damaged: manifests/"), "{text}");
}

#[test]
fn a_passphrase_is_never_passed_over() {
    let scene = Scene::new();
    scene.back_up(&["files:one"]);
    let whole = scene.path("repo/stillframe.json");
    // Somebody put another one in its place, which needs none.
    scene.make_plain("plain");
    for words in [
        &["backup", "files:one", "-r", "plain"][..],
        &["snapshots", "-r", "plain"],
        &["verify", "-r", "plain"],
    ] {
        assert!(scene.bad(words, 2).contains("not encrypted. If it should be, do not use it"));
    }
    let file = scene.path("passphrase");
    std::fs::write(&file, "one").unwrap();
    let mut with_file = scene.command(&["snapshots", "-r", "plain", "--passphrase-file", "passphrase"]);
    assert_eq!(with_file.env_remove("STILLFRAME_PASSPHRASE").output().unwrap().status.code(), Some(2));
    // Or slipped a key of his own under those that are there.
    let key = names(&scene.path("plain/keys")).remove(0);
    let mut bytes = std::fs::read(scene.path("plain/keys").join(&key)).unwrap();
    let config: serde_json::Value = serde_json::from_slice(&std::fs::read(&whole).unwrap()).unwrap();
    let id: stillframe_repo::RepositoryId = config["id"].as_str().unwrap().parse().unwrap();
    bytes[16..32].copy_from_slice(id.as_bytes());
    let end = bytes.len() - 32;
    let hash = blake3::hash(&bytes[..end]);
    bytes[end..].copy_from_slice(hash.as_bytes());
    std::fs::write(scene.path("repo/keys").join(&key), bytes).unwrap();
    let mut blind = scene.command(&["snapshots"]);
    assert_eq!(blind.env_remove("STILLFRAME_PASSPHRASE").output().unwrap().status.code(), Some(12));
    let mut wrong = scene.command(&["backup", "files:one", "--reserve", "0"]);
    assert_eq!(wrong.env("STILLFRAME_PASSPHRASE", "two").output().unwrap().status.code(), Some(12));
    scene.back_up(&["files:one"]);
    scene.good(&["verify", "--level", "decrypt"]);
    // What is left of a repository is no place for a new one, and not nothing.
    std::fs::remove_file(&whole).unwrap();
    assert!(scene.bad(&["snapshots"], 30).contains("stillframe.json is damaged: it is missing"));
}

#[test]
fn a_restore_that_meets_damage_says_which_file_is_lost_and_what_to_do() {
    let scene = Scene::new();
    std::fs::write(scene.path("one/large"), stillframe_testkit::Content::new(1, 1.0).bytes(3 << 20)).unwrap();
    scene.back_up(&["files:one", "files:two"]);
    let packs = scene.path("repo/packs");
    let pack = names(&packs).into_iter().flat_map(|dir| {
        let dir = packs.join(dir);
        names(&dir).into_iter().map(move |name| dir.join(name))
    });
    let pack = pack.max_by_key(|path| path.metadata().unwrap().len()).unwrap();
    let mut bytes = std::fs::read(&pack).unwrap();
    bytes[1 << 20] ^= 1;
    std::fs::write(&pack, bytes).unwrap();
    let error = scene.bad(&["restore", "latest", "--to", "back"], 30);
    for word in ["large cannot be restored", "packs/", "verify", "--source"] {
        assert!(error.contains(word), "{error}");
    }
    assert!(!scene.path("back").exists());
    scene.good(&["restore", "latest", "--to", "back", "--source", "two"]);
}

#[test]
fn nothing_is_restored_into_a_repository_or_the_directory_of_a_live_database() {
    let scene = Scene::new();
    scene.back_up(&["files:one"]);
    for inside in ["repo/packs/x", "repo/new/deep", "repo"] {
        let error = scene.bad(&["restore", "latest", "--to", inside], 2);
        assert!(error.contains("repository"), "{error}");
    }
    assert!(!scene.path("repo/packs/x").exists() && !scene.path("repo/new").exists());
    std::fs::create_dir(scene.path("repo/tmp")).unwrap();
    scene.bad(&["verify", "--level", "open", "--staging", "repo/tmp"], 2);
    scene.bad(&["backup", "files:one", "--reserve", "0", "--staging", "repo/tmp"], 2);
    let error = scene.bad(&["image", "create", "files:one", "--to", "one/image", "--reserve", "0"], 2);
    assert!(error.contains("lies in the source") && names(&scene.path("one")) == ["a"], "{error}");
    // Beside plain files it is one more.
    scene.good(&["restore", "latest", "--to", "one/back"]);
    scene.good(&["restore", "latest", "--to", "back/made/for/it"]);
    scene.good(&["image", "create", "files:two", "--to", "images/made/for/it", "--reserve", "0"]);
}

#[test]
fn nothing_is_put_into_a_repository_that_is_not_asked_for_anything() {
    let scene = Scene::new();
    scene.back_up(&["files:one"]);
    scene.good(&["repo", "init", "other"]);
    std::fs::create_dir(scene.path("other/tmp")).unwrap();
    std::os::unix::fs::symlink("other/tmp", scene.path("link")).unwrap();
    let before = names(&scene.path("other"));
    let image = ["image", "create", "files:one", "--reserve", "0", "--to"];
    for words in [
        &["restore", "latest", "--to", "other/new/deep"][..],
        &["restore", "latest", "--to", "link/new"],
        &[&image[..], &["other/image"]].concat(),
        &[&image[..], &["repo/packs/new/image"]].concat(),
        &[&image[..], &["link"]].concat(),
        &[&image[..], &["image", "--staging", "other/tmp"]].concat(),
        &["backup", "files:one", "--reserve", "0", "--staging", "link"],
        &["verify", "--level", "open", "--staging", "other/tmp"],
    ] {
        let error = scene.bad(words, 2);
        let option = if words.contains(&"--staging") { "--staging" } else { "--to" };
        assert!(error.contains(option) && error.contains("lies in the repository"), "{words:?}: {error}");
    }
    assert_eq!(names(&scene.path("other")), before);
    assert!(names(&scene.path("other/tmp")).is_empty() && !scene.path("repo/packs/new").exists());
}

#[test]
fn what_the_dead_left_in_other_places_is_swept_by_the_next_run() {
    let scene = Scene::new();
    std::fs::create_dir(scene.path("stage")).unwrap();
    scene.good(&["backup", "files:one", "--reserve", "0", "--staging", "stage"]);
    let left = scene.path("stage/.stillframe-0123456789abcdef");
    std::fs::create_dir(&left).unwrap();
    std::fs::write(scene.path("stage/.stillframe-0123456789abcdef.lock"), "").unwrap();
    let elsewhere =
        scene.command(&["restore", "latest", "--to", "back"]).current_dir(scene.path("two")).output();
    assert!(elsewhere.unwrap().status.success());
    assert_eq!(names(&scene.path("stage")), [""; 0]);
}

#[test]
fn what_weakens_a_capture_is_told_by_every_command_that_captures() {
    let scene = Scene::new();
    for words in [&["backup", "files:one"][..], &["image", "create", "files:one", "--to", "image"]] {
        let output = scene.run(&[words, &["--reserve", "0"]].concat());
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(
            said.contains("warning: ") && said.contains("No consistency is claimed"),
            "{words:?}: {said}"
        );
    }
    let kept = &scene.objects(&["show", "latest"])[0]["warnings"];
    assert!(kept[0].as_str().unwrap().contains("No consistency is claimed"), "{kept}");
}

#[test]
fn keys_are_for_their_owner_and_their_labels_are_lines() {
    let scene = Scene::new();
    let add = |label: &str| {
        let words = ["key", "add", "--label", label];
        scene.command(&words).env("STILLFRAME_NEW_PASSPHRASE", "two").output().unwrap()
    };
    assert!(add("second").status.success());
    for key in names(&scene.path("repo/keys")) {
        let mode = scene.path("repo/keys").join(key).metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o077, 0);
    }
    assert_eq!(add("a\nb").status.code(), Some(2));
    assert_eq!(scene.objects(&["key", "list"]).len(), 2);
}

#[test]
fn as_many_jobs_are_listed_as_were_asked_for() {
    let scene = Scene::new();
    for _ in 0..3 {
        scene.back_up(&["files:one"]);
    }
    assert_eq!(scene.objects(&["jobs", "--limit", "2"]).len(), 2);
    assert_eq!(scene.objects(&["jobs"]).len(), 3);
}

#[test]
fn mistakes_are_told_with_what_to_do() {
    let scene = Scene::new();
    std::fs::write(scene.path("file"), "no database").unwrap();
    for (words, code, said) in [
        (&["repo", "init", "s3:bucket/x"][..], 2, "s3:"),
        (&["backup", "rocksdb:"], 2, "names no place"),
        (&["backup", "files:one", "files:two/../one"], 2, "given twice"),
        (&["backup", "file"], 2, "files:DIR"),
        (&["snapshots", "-r", "file"], 10, "file"),
    ] {
        let error = scene.bad(words, code);
        assert!(error.contains(said) && !error.contains("repo init file"), "{words:?}: {error}");
    }
    assert!(!scene.path("s3:bucket").exists());
}
