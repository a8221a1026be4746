//! Options of the commands, each shown by what it changes.
#![allow(clippy::unwrap_used, reason = "a test stops at what it did not expect")]

mod scene;

use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use serde_json::Value;
use stillframe_storage::{Clock, SystemClock};

use crate::scene::{Scene, names};

#[test]
fn one_source_of_several_comes_back_alone_and_under_another_name() {
    let scene = Scene::new();
    let backup = scene.back_up(&["files:one", "files:two"]);
    let sources: Vec<_> =
        backup["sources"].as_array().unwrap().iter().map(|source| &source["name"]).collect();
    assert_eq!(sources, ["one", "two"]);
    scene.good(&["restore", "latest", "--to", "both"]);
    assert_eq!(names(&scene.path("both")), ["one", "two"]);
    scene.good(&["restore", "latest", "--to", "alone", "--source", "two"]);
    assert_eq!(names(&scene.path("alone")), ["b"]);
    scene.good(&["restore", "latest", "--to", "mapped", "--map", "one=uno", "--map", "two=deep/dos"]);
    assert_eq!(std::fs::read_to_string(scene.path("mapped/uno/a")).unwrap(), "first");
    assert_eq!(std::fs::read_to_string(scene.path("mapped/deep/dos/b")).unwrap(), "second");
    for (map, said) in [("three=x", "three"), ("one=../x", "../x"), ("one=two", "two")] {
        let error = scene.bad(&["restore", "latest", "--to", "refused", "--map", map], 2);
        assert!(error.contains(said) && !scene.path("refused").exists(), "{map}: {error}");
    }
    assert!(scene.bad(&["restore", "latest", "--to", "refused", "--source", "three"], 2).contains("three"));
}

#[test]
fn names_and_tags_select_and_a_name_of_several_is_told_with_dates() {
    let scene = Scene::new();
    let nightly = scene.back_up(&["files:one", "--name", "nightly", "--tag", "a", "--tag", "b"]);
    scene.back_up(&["files:one", "--name", "weekly", "--tag", "b"]);
    let ids = |words: &[&str]| -> Vec<Value> {
        scene.objects(words).into_iter().map(|object| object["id"].clone()).collect()
    };
    assert_eq!(ids(&["snapshots"]).len(), 2);
    assert_eq!(ids(&["snapshots", "--tag", "b"]).len(), 2);
    assert_eq!(ids(&["snapshots", "--tag", "a"]), [nightly["id"].clone()]);
    assert_eq!(ids(&["snapshots", "--name", "nightly"]), [nightly["id"].clone()]);
    for (words, said) in [
        (&["--name", "weekly", "--tag", "a"][..], "no backup has this name and this tag\n"),
        (&["--name", "c"], "no backup has this name\n"),
        (&["--tag", "c"], "no backup has this tag\n"),
    ] {
        assert_eq!(scene.good(&[&["snapshots"], words].concat()), said);
    }
    assert!(scene.bad(&["show", "x"], 24).contains("`stillframe snapshots` lists them"));
    scene.back_up(&["files:one", "--name", "nightly"]);
    let error = scene.bad(&["show", "nightly"], 24);
    assert!(error.contains(nightly["id"].as_str().unwrap()) && error.contains(" of 2"), "{error}");
}

#[test]
fn a_dry_run_captures_and_leaves_the_repository_as_it_is() {
    let scene = Scene::new();
    let digest =
        || stillframe_testkit::tree_digest(&scene.path("repo"), stillframe_testkit::Detail::Content).unwrap();
    let before = digest();
    let plan = scene.objects(&["backup", "files:one", "--reserve", "0", "--dry-run"]).pop().unwrap();
    assert_eq!((&plan["type"], &plan["sources"][0]["bytes"]), (&"plan".into(), &5.into()));
    assert_eq!(digest(), before);
    assert!(scene.objects(&["snapshots"]).is_empty());
}

#[test]
fn nothing_written_and_nothing_sealed_are_told_apart() {
    let scene = Scene::new();
    assert_eq!(scene.good(&["snapshots"]), "no backups\n");
    assert!(scene.bad(&["restore", "latest", "--to", "back"], 24).contains("the repository has no backups"));
    scene.back_up(&["files:one"]);
    let second = scene.back_up(&["files:two"]);
    assert!(!scene.good(&["repo", "info"]).contains("unfinished"));
    // Whoever asks for the newest one is told that there may be a newer.
    let looks: [&[&str]; 3] = [&["snapshots"], &["show", "latest"], &["verify"]];
    let warned = |words: &[&str]| {
        let output = scene.run(words);
        assert!(output.status.success());
        String::from_utf8(output.stderr).unwrap().contains("1 unfinished (written, not sealed)")
    };
    assert!(!looks.iter().any(|words| warned(words)));
    let sealed = scene.path("repo/sealed");
    std::fs::rename(sealed.join(second["id"].as_str().unwrap()), scene.path("seal")).unwrap();
    assert!(looks.iter().all(|words| warned(words)));
    // The one that is asked for by what is its own.
    let id = second["id"].as_str().unwrap();
    let error = scene.bad(&["restore", &id[..12], "--to", "back"], 24);
    assert!(error.contains(id) && error.contains("not sealed"), "{error}");
    let named = |name: &str| scene.back_up(&["files:one", "--name", name])["id"].as_str().unwrap().to_owned();
    let (solo, [older, newer]) = (named("solo"), [named("pair"), named("pair")]);
    let lose = |id: &str| std::fs::rename(scene.path("repo/sealed").join(id), scene.path(id)).unwrap();
    lose(&solo);
    lose(&newer);
    let error = scene.bad(&["verify", "solo"], 24);
    assert!(error.contains(&solo) && error.contains("no backup \"solo\""), "{error}");
    let found = scene.run(&["verify", "pair"]);
    let said = [found.stdout, found.stderr].map(|text| String::from_utf8(text).unwrap());
    assert!(found.status.success() && said[0].contains(&older) && said[1].contains(&newer), "{said:?}");
    for id in [&solo, &newer] {
        std::fs::remove_file(scene.path("repo/manifests").join(id)).unwrap();
    }
    std::fs::remove_file(scene.path("repo/sealed").join(&older)).unwrap();
    std::fs::remove_file(scene.path("repo/manifests").join(&older)).unwrap();
    std::fs::rename(scene.path("seal"), sealed.join(second["id"].as_str().unwrap())).unwrap();
    std::fs::remove_dir_all(scene.path("repo/sealed")).unwrap();
    let said = "2 unfinished (written, not sealed)";
    assert_eq!(scene.good(&["snapshots"]), format!("no backups; {said}\n"));
    assert_eq!(scene.objects(&["snapshots"])[0]["manifests"], 2);
    assert!(scene.good(&["repo", "info"]).contains(said));
    for words in [&["restore", "latest", "--to", "back"][..], &["verify"], &["show", "latest"]] {
        let error = scene.bad(words, 24);
        assert!(error.contains("no backups") && error.contains(said), "{words:?}: {error}");
    }
    assert_eq!(scene.objects(&["repo", "info"])[0]["unfinished"], 2);
}

#[test]
fn quiet_says_nothing_that_was_not_asked_for() {
    let scene = Scene::new();
    for words in [
        &["-q", "backup", "files:two", "--reserve", "0"][..],
        &["-q", "verify"],
        &["-q", "restore", "latest", "--to", "back"],
    ] {
        assert_eq!(scene.good(words), "", "{words:?}");
    }
    assert_eq!(scene.good(&["-q", "snapshots"]).lines().count(), 1, "a list is what was asked for");
    std::fs::write(scene.path("one/large"), vec![7; 1 << 20]).unwrap();
    let types = |words: &[&str]| -> Vec<Value> {
        scene.objects(words).into_iter().map(|object| object["type"].clone()).collect()
    };
    let backup = ["backup", "files:one", "--reserve", "0"];
    assert!(types(&backup).contains(&"progress".into()));
    assert!(!types(&[&["-q"], &backup[..]].concat()).contains(&"progress".into()));
}

#[test]
fn options_that_nothing_can_heed_are_refused() {
    let scene = Scene::new();
    let error = scene.bad(&["backup", "files:one", "--wal-dir", "two"], 2);
    assert!(error.contains("--wal-dir") && error.contains("RocksDB"), "{error}");
    let error = scene.bad(&["image", "create", "files:one", "--to", "x", "--cf-path", "default=two"], 2);
    assert!(error.contains("--cf-path"), "{error}");
    for (words, said) in [
        (&["jobs", "--limit", "0"][..], "--limit"),
        (&["jobs", "--limit", "x"], "give a whole number from 1"),
        (&["jobs", "--limit", "-1"], "give a whole number from 1"),
        (&["backup", "files:one", "--deadline", "-1"], "from 1 to 86400"),
        (&["backup", "files:one", "--sqlite-lock-timeout", "-1"], "from 1 to 3600"),
        (&["backup", "files:one", "--sqlite-wal-cap", "-1"], "is not a size"),
        (&["backup", "files:one", "--limit-bandwidth", "-1"], "is not a size"),
        (&["backup", "files:one", "--reserve", "-1"], "is not a size"),
        (&["backup", "files:one", "--cpu-percent", "-1"], "from 1 to 100"),
        (&["backup", ""], "an empty path"),
        (&["backup", "files:one", "--cpu-percent", "0"], "--cpu-percent"),
        (&["backup", "files:one", "--limit-bandwidth", "fast"], "fast"),
        (&["backup", "files:one", "--reserve", "200%"], "200%"),
        (&["backup", "files:one", "files:one"], "twice"),
        (&["repo", "init", "s4://bucket"], "s4"),
        (&["backup", "files:one", "--staging", "none"], "--staging"),
        (&["backup", "mysql:/x"], "mysql is not an engine"),
        (&["verify", "--staging", "none"], "--staging"),
    ] {
        assert!(scene.bad(words, 2).contains(said), "{words:?}");
    }
    scene.bad(&["backup", "none"], 20);
    scene.bad(&["backup", "rocksdb:none"], 20);
    scene.bad(&["snapshots", "-r", "one/a"], 10);
}

#[test]
fn a_staging_directory_in_a_source_is_a_mistake_in_the_options() {
    let scene = Scene::new();
    std::fs::create_dir(scene.path("one/tmp")).unwrap();
    std::os::unix::fs::symlink("one/tmp", scene.path("link")).unwrap();
    let staging = ["--staging", "one/tmp"];
    for words in [
        &["backup", "files:one"][..],
        // Of several, it may lie in none. No repository is needed to know that.
        &["backup", "files:two", "files:one", "-r", "none"],
        &["image", "create", "files:one", "--to", "image"],
    ] {
        for staging in [staging, ["--staging", "one"], ["--staging", "link"]] {
            let error = scene.bad(&[words, &staging].concat(), 2);
            assert!(
                error.contains("--staging") && error.contains("lies in the source"),
                "{words:?}: {error}"
            );
        }
    }
    assert_eq!(names(&scene.path("one")), ["a", "tmp"]);
    scene.back_up(&["files:two", "--staging", "one/tmp"]);
}

#[test]
fn passphrases_come_from_files_and_their_number_is_shown() {
    let scene = Scene::new();
    std::fs::write(scene.path("first"), "one\nthe rest is for people\n").unwrap();
    std::fs::write(scene.path("second"), "zwei\n").unwrap();
    assert!(scene.bad(&["snapshots", "--passphrase-file", "second"], 12).contains("the only key"));
    scene.good(&[
        "key",
        "add",
        "--passphrase-file",
        "first",
        "--new-passphrase-file",
        "second",
        "--label",
        "deux",
    ]);
    scene.good(&["snapshots", "--passphrase-file", "second"]);
    std::fs::write(scene.path("third"), "tre\n").unwrap();
    assert!(scene.bad(&["snapshots", "--passphrase-file", "third"], 12).contains("none of the 2 keys"));
    let keys = scene.objects(&["key", "list"]);
    assert!(keys.len() == 2 && keys.iter().any(|key| key["label"] == "deux"), "{keys:?}");
    std::fs::write(scene.path("second"), "drei\n").unwrap();
    assert!(!scene.bad(&["snapshots", "--passphrase-file", "second"], 12).contains("drei"));
}

#[test]
fn a_share_of_the_processor_and_of_the_line_still_make_whole_backups() {
    let scene = Scene::new();
    std::fs::write(scene.path("one/large"), stillframe_testkit::Content::new(1, 1.0).bytes(3 << 20)).unwrap();
    scene.back_up(&["files:one", "--cpu-percent", "20", "--limit-bandwidth", "10MiB", "--fast"]);
    scene.good(&["verify", "--level", "open"]);
    assert!(scene.good(&["verify"]).contains("1 pack, looked at in"));
    let listed = scene.good(&["verify", "--level", "exists"]);
    assert!(listed.contains("looked for in") && !listed.contains("pack"), "{listed}");
}

/// A hundredth of two processors works on fifty megabytes for seconds, a whole one for a fraction of one.
#[test]
fn who_may_have_a_hundredth_of_the_processors_takes_his_time() {
    let scene = Scene::new();
    scene.back_up(&["files:two"]);
    std::fs::write(scene.path("one/large"), stillframe_testkit::Content::new(1, 1.0).bytes(48 << 20))
        .unwrap();
    let clock = SystemClock::new();
    let began = clock.monotonic();
    scene.back_up(&["files:one", "--cpu-percent", "1", "--fast"]);
    let took = clock.monotonic().saturating_sub(began);
    assert!(took >= Duration::from_secs(1), "{took:?}");
}

#[test]
fn of_several_backups_the_newest_of_a_name_or_a_tag_can_be_asked_for() {
    let scene = Scene::new();
    for (source, name, tag) in
        [("files:one", "nightly", "a"), ("files:two", "nightly", "b"), ("files:one", "hand", "b")]
    {
        scene.back_up(&[source, "--name", name, "--tag", tag]);
    }
    assert!(scene.bad(&["restore", "nightly", "--to", "out"], 24).contains("fits several"));
    let restored = scene.good(&["restore", "latest", "--name", "nightly", "--to", "out"]);
    assert!(restored.contains("files:") && restored.contains("/two (nightly) at "), "{restored}");
    assert_eq!(names(&scene.path("out")), ["b"]);
    scene.back_up(&["files:one", "files:two", "--name", "both"]);
    let alone = scene.good(&["restore", "both", "--source", "two", "--to", "alone"]);
    assert!(alone.contains("/two (both)") && !alone.contains("/one"), "{alone}");
    assert!(scene.good(&["show", "latest", "--tag", "a"]).contains("/one"));
    scene.good(&["verify", "--name", "hand"]);
    assert!(
        scene.bad(&["show", "latest", "--name", "hand", "--tag", "a"], 24).contains("this name and this tag")
    );
    assert!(scene.bad(&["show", "nightly", "--tag", "a"], 2).contains("narrow"));
}

#[test]
fn what_a_mapped_name_has_above_a_database_is_open_to_whoever_may_open_that() {
    let scene = Scene::new();
    scene.back_up(&["files:one", "files:two"]);
    scene.good(&["restore", "latest", "--map", "one=deep/er/one", "--to", "out"]);
    for dir in ["out", "out/deep", "out/deep/er"] {
        let mode = std::fs::metadata(scene.path(dir)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o755, "{dir}");
    }
    assert_eq!(names(&scene.path("out/deep/er/one")), ["a"]);
}

#[test]
fn a_repository_is_its_owners_and_lies_neither_among_other_things_nor_in_its_sources() {
    let scene = Scene::new();
    let words = ["repo", "init", "bare", "--no-encryption"];
    let with_file = scene.command(&words).env("STILLFRAME_PASSPHRASE_FILE", "file").output().unwrap();
    assert_eq!(with_file.status.code(), Some(2));
    // Who has typed no such option must know where it comes from.
    assert!(String::from_utf8(with_file.stderr).unwrap().contains("STILLFRAME_PASSPHRASE_FILE"));
    scene.bad(&[&words[..], &["--passphrase-file", "file"]].concat(), 2);
    scene.bad(&words, 2);
    assert!(!scene.path("bare").exists());
    scene.make_plain("bare");
    let plain = ["backup", "files:one", "-r", "bare", "--reserve", "0"];
    assert!(scene.command(&plain).env("STILLFRAME_PASSPHRASE", "").output().unwrap().status.success());
    let mut paths = vec![scene.path("bare"), scene.path("repo")];
    while let Some(path) = paths.pop() {
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o077, 0, "{} has mode {mode:o}", path.display());
        if path.is_dir() {
            paths.extend(std::fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        }
    }
    assert!(scene.bad(&["repo", "init", "one"], 2).contains("a is there"));
    assert_eq!(names(&scene.path("one")), ["a"]);
    // What looks like an upload of ours is not, where nothing else is ours.
    std::fs::write(scene.path("two/notes#1"), "mine").unwrap();
    scene.bad(&["repo", "init", "two"], 2);
    assert_eq!(names(&scene.path("two")), ["b", "notes#1"]);
    scene.good(&["repo", "init", "one/deep/repo"]);
    let error = scene.bad(&["backup", "files:one", "-r", "one/deep/repo", "--reserve", "0"], 2);
    assert!(error.contains("lies in the source"), "{error}");
    scene.good(&["backup", "files:two", "-r", "one/deep/repo", "--reserve", "0"]);
    // The other way round, each backup would grow by the one before as well.
    let error = scene.bad(&["backup", "files:repo/packs", "--reserve", "0"], 2);
    assert!(error.contains("lies in the repository"), "{error}");
    assert!(scene.bad(&["repo", "init", "one/a"], 2).contains("this is none"));
}

#[test]
fn a_run_that_could_not_begin_is_in_the_history() {
    let scene = Scene::new();
    let last = |words: &[&str], code: i32| {
        scene.bad(words, code);
        scene.objects(&["jobs", "--limit", "1"]).pop()
    };
    let ran = [
        (&["backup", "files:one", "-r", "unmounted"][..], 10, "create", "no-repository"),
        (&["backup", "files:one", "--dry-run", "--passphrase-file", "gone"], 12, "plan", "passphrase"),
        (&["backup", "gone.db"], 20, "create", "source"),
        (&["restore", "nope", "--to", "back"], 24, "restore", "no-backup"),
        (&["verify", "nope"], 24, "verify", "no-backup"),
        (&["verify", "--without-key", "-r", "unmounted"], 10, "verify", "no-repository"),
        (&["image", "create", "gone.db", "--to", "image"], 20, "image", "source"),
    ];
    for (words, code, kind, error) in ran {
        let job = last(words, code).unwrap();
        assert_eq!((&job["kind"], &job["state"]), (&kind.into(), &"failed".into()), "{words:?}: {job}");
        assert_eq!(job["error"]["kind"], error, "{words:?}: {job}");
    }
    // What was merely mistyped is no run.
    let before = scene.objects(&["jobs"]).len();
    last(&["backup", "", "--reserve", "0"], 2);
    assert_eq!(scene.objects(&["jobs"]).len(), before);
}

#[test]
fn a_job_says_what_it_worked_on_wherever_it_was_started() {
    let scene = Scene::new();
    scene.back_up(&["files:one"]);
    scene.good(&["restore", "latest", "--to", "back"]);
    scene.good(&["image", "create", "files:one", "--to", "image", "--copy", "--reserve", "0"]);
    let at = |name: &str| scene.path(name).display().to_string();
    let subjects: Vec<String> =
        scene.objects(&["jobs"]).iter().map(|job| job["subject"].as_str().unwrap().to_owned()).collect();
    let [image, restore, create] = subjects.as_slice() else { panic!("{subjects:?}") };
    assert_eq!(*image, format!("files:{} to {}", at("one"), at("image")));
    assert!(restore.ends_with(&format!(" of {} to {}", at("repo"), at("back"))), "{restore}");
    assert_eq!(*create, format!("files:{} to {}", at("one"), at("repo")));
}

#[test]
fn what_is_for_the_program_itself_is_not_offered_by_a_shell() {
    let scene = Scene::new();
    for shell in ["bash", "zsh", "fish"] {
        let script = scene.good(&["completions", shell]);
        assert!(script.contains("snapshots") && !script.contains("demo-writer"), "{shell}");
    }
}

#[test]
fn what_a_killed_upload_left_is_gone_after_the_next_backup() {
    let scene = Scene::new();
    scene.back_up(&["files:one"]);
    let left = scene.path("repo/packs").join("00");
    std::fs::create_dir_all(&left).unwrap();
    std::fs::write(left.join("0000#1"), "half").unwrap();
    scene.good(&["snapshots"]);
    scene.good(&["backup", "files:one", "--reserve", "0", "--dry-run"]);
    assert!(left.join("0000#1").exists(), "who only reads removes nothing");
    scene.back_up(&["files:one"]);
    assert!(!left.join("0000#1").exists());
}

#[test]
fn a_result_that_nobody_can_read_is_a_failure_and_no_panic() {
    let scene = Scene::new();
    scene.back_up(&["files:one"]);
    for words in [&["snapshots"][..], &["--json", "jobs"], &["completions", "bash"]] {
        let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
        let output = scene.command(words).stdout(full).output().unwrap();
        let error = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{words:?}: {error}");
        assert!(error.contains("could not be written") && !error.contains("panicked"), "{words:?}: {error}");
    }
}

#[test]
fn the_history_says_how_much_was_done() {
    let scene = Scene::new();
    scene.back_up(&["files:one"]);
    scene.good(&["restore", "latest", "--to", "back"]);
    let jobs = scene.objects(&["jobs"]);
    let done: Vec<_> =
        jobs.iter().map(|job| (job["kind"].as_str().unwrap(), job["bytes_done"].as_u64())).collect();
    assert_eq!(done, [("restore", Some(5)), ("create", Some(5))]);
}

#[test]
fn a_backup_made_anew_relies_on_nothing_that_is_there() {
    let scene = Scene::new();
    scene.back_up(&["files:one"]);
    let known = |words: &[&str]| scene.back_up(words)["statistics"]["chunks_known"].as_u64().unwrap();
    assert!(known(&["files:one"]) > 0);
    assert_eq!(known(&["files:one", "--anew"]), 0);
}
