//! A damaged repository is named as such, and made the best of.
#![allow(clippy::unwrap_used, reason = "a test stops at what it did not expect")]

mod scene;

use std::collections::BTreeSet;
use std::path::PathBuf;

use serde_json::{Value, json};

use crate::scene::Scene;

fn id(backup: &Value) -> String {
    backup["id"].as_str().unwrap().to_owned()
}

fn of_type(objects: Vec<Value>, kind: &str) -> Vec<Value> {
    objects.into_iter().filter(|object| object["type"] == kind).collect()
}

/// Also of a command that fails.
fn printed(scene: &Scene, words: &[&str], code: i32) -> Vec<Value> {
    let output = scene.run(&[&["--json"], words].concat());
    assert_eq!(output.status.code(), Some(code), "{}", String::from_utf8_lossy(&output.stderr));
    let out = String::from_utf8(output.stdout).unwrap();
    out.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn packs(scene: &Scene) -> BTreeSet<PathBuf> {
    let dirs = std::fs::read_dir(scene.path("repo/packs")).unwrap();
    let dirs = dirs.map(|dir| dir.unwrap().path());
    dirs.flat_map(|dir| std::fs::read_dir(dir).unwrap().map(|pack| pack.unwrap().path())).collect()
}

/// A pack, as the repository calls it.
fn name(pack: &std::path::Path) -> String {
    let parts: Vec<_> = pack.iter().rev().take(3).map(|part| part.to_str().unwrap()).collect();
    format!("{}/{}/{}", parts[2], parts[1], parts[0])
}

fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed;
    let next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        state.to_be_bytes()[0]
    };
    std::iter::repeat_with(next).take(len).collect()
}

/// Two backups of one tree. Of the second, the file `b` alone is in packs of its own. Returns their ids and those packs.
fn two_backups(scene: &Scene) -> (String, String, BTreeSet<PathBuf>) {
    std::fs::write(scene.path("one/a"), noise(1, 200_000)).unwrap();
    let first = id(&scene.back_up(&["files:one", "--name", "first"]));
    let before = packs(scene);
    std::fs::write(scene.path("one/b"), noise(2, 200_000)).unwrap();
    let second = id(&scene.back_up(&["files:one", "--name", "second"]));
    let new = packs(scene).difference(&before).cloned().collect();
    (first, second, new)
}

#[test]
fn damage_is_named_by_pack_and_file_and_what_is_left_is_restored() {
    let scene = Scene::new();
    let (first, second, new) = two_backups(&scene);
    assert!(scene.good(&["check"]).starts_with("the repository is sound: 2 backups"));
    assert!(scene.good(&["check", "--read-data"]).contains("packs with"));
    let part = printed(&scene, &["check", "--read-data-subset", "1%"], 0);
    assert_eq!(of_type(part, "checked")[0]["packs_read"], 1);
    assert!(scene.good(&["repair", "snapshots"]).starts_with("nothing to repair: 2 backups"));

    // The first chunk in it is of the file; the list and what describes it are behind.
    let pack = new.iter().next().unwrap();
    let mut bytes = std::fs::read(pack).unwrap();
    bytes[100] ^= 1;
    std::fs::write(pack, bytes).unwrap();
    assert!(scene.good(&["check"]).contains("no data read"), "what nobody reads nobody finds");
    let found = printed(&scene, &["check", "--read-data"], 30);
    let findings = of_type(found.clone(), "finding");
    assert_eq!(findings[0]["object"], name(pack).as_str());
    assert_eq!(findings[0]["backup"], Value::Null);
    let losses: Vec<_> = findings.iter().filter(|found| found["is_loss"] == true).collect();
    assert_eq!(losses.len(), 1, "{findings:?}");
    assert_eq!((&losses[0]["backup"], &losses[0]["file"]), (&json!(second), &json!("b")));
    assert_eq!(of_type(found.clone(), "checked")[0]["sound"], false);
    let error = of_type(found, "error").remove(0);
    let message = error["message"].as_str().unwrap();
    assert!(message.contains("1 backup damaged") && message.contains("repair snapshots"), "{message}");
    let text = String::from_utf8(scene.run(&["check", "--read-data"]).stdout).unwrap();
    assert!(text.contains(&format!("backup {second}: one: b: {}", name(pack))), "{text}");

    let asked = printed(&scene, &["repair", "snapshots", "--dry-run"], 0);
    let asked = of_type(asked, "repaired").remove(0);
    assert_eq!((&asked["backup"], &asked["lost"][0]["file"]), (&json!(second), &json!("b")));
    assert_eq!(asked["repaired"], Value::Null);
    scene.good(&["pin", &second, "--why", "audit"]);
    let told = of_type(scene.objects(&["repair", "snapshots"]), "repaired").remove(0);
    let repaired = told["repaired"].as_str().unwrap().to_owned();
    let restored = scene.run(&["restore", &repaired, "--to", "restored"]);
    assert!(restored.status.success());
    let warned = String::from_utf8(restored.stderr).unwrap();
    assert!(warned.contains("one: b"), "whoever restores it is told what is missing: {warned}");
    assert_eq!(std::fs::read(scene.path("restored/a")).unwrap(), noise(1, 200_000));
    assert!(!scene.path("restored/b").exists());
    let snapshots = scene.objects(&["snapshots"]);
    let order: Vec<String> = snapshots.iter().map(id).collect();
    assert_eq!(order, [first.clone(), second.clone(), repaired.clone()]);
    assert_eq!(snapshots[2]["pinned"]["why"], "audit");

    // The damaged one is pinned, and stays.
    let output = scene.run(&["repair", "snapshots", &second, "--forget"]);
    let warned = String::from_utf8(output.stderr).unwrap();
    assert!(warned.contains("unpin") && warned.contains("it stays"), "{warned}");
    scene.good(&["unpin", &second]);
    scene.good(&["repair", "snapshots", &second, "--forget"]);
    assert!(!scene.objects(&["snapshots"]).iter().any(|snapshot| id(snapshot) == second));
    // A new backup stores again what was damaged.
    scene.good(&["backup", "files:one", "--reserve", "0", "--name", "third"]);
    scene.good(&["verify", "third"]);
}

#[test]
fn what_is_missing_is_found_without_reading_and_an_index_is_written_anew() {
    let scene = Scene::new();
    let (first, second, new) = two_backups(&scene);
    for segment in std::fs::read_dir(scene.path("repo/index")).unwrap() {
        std::fs::write(segment.unwrap().path(), "rotten").unwrap();
    }
    let found = of_type(printed(&scene, &["check"], 30), "finding");
    assert!(found.iter().all(|found| found["object"].as_str().unwrap().starts_with("index/")), "{found:?}");
    let message = scene.bad(&["check"], 30);
    assert!(message.contains("repair index") && message.contains("no backup loses anything"), "{message}");
    assert!(scene.good(&["repair", "index"]).contains("1 segment in place of"));
    scene.good(&["check"]);

    new.iter().for_each(|pack| std::fs::remove_file(pack).unwrap());
    let found = of_type(printed(&scene, &["check"], 30), "finding");
    assert!(!found.is_empty());
    for found in &found {
        let names_it = new.iter().any(|pack| found["object"] == name(pack).as_str());
        assert!(names_it && found["backup"] == second.as_str(), "{found}");
    }
    // Its list and its description went with the pack: files of it may be there, so nobody but its owner lets it go.
    for words in [
        &["repair", "snapshots"][..],
        &["repair", "snapshots", "--forget"],
        &["repair", "snapshots", &second, "--forget"],
    ] {
        let message = scene.bad(words, 30);
        assert!(message.contains(&second) && message.contains("--forget"), "{message}");
    }
    scene.good(&["forget", &second, "--prune"]);
    let left: Vec<String> = scene.objects(&["snapshots"]).iter().map(id).collect();
    assert_eq!(left, [first]);
    scene.good(&["check", "--read-data"]);
}

#[test]
fn a_manifest_that_cannot_be_read_goes_only_when_it_is_asked_for() {
    let scene = Scene::new();
    let (first, second, _) = two_backups(&scene);
    let manifest = scene.path(&format!("repo/manifests/{second}"));
    let mut bytes = std::fs::read(&manifest).unwrap();
    bytes[90] ^= 1;
    std::fs::write(&manifest, bytes).unwrap();
    let found = of_type(printed(&scene, &["check"], 30), "finding");
    assert_eq!((found.len(), &found[0]["backup"]), (1, &json!(second)));
    assert!(scene.bad(&["repair", "snapshots"], 30).contains(&second));
    scene.bad(&["repair", "snapshots", "--forget"], 30);
    assert!(manifest.exists(), "without a name nothing goes that may be brought back");
    scene.good(&["repair", "snapshots", &second, "--forget"]);
    assert!(!manifest.exists());
    let left: Vec<String> = scene.objects(&["snapshots"]).iter().map(id).collect();
    assert_eq!(left, [first]);
    scene.good(&["check"]);
}

#[test]
fn a_damaged_seal_is_written_anew() {
    let scene = Scene::new();
    let (_, second, _) = two_backups(&scene);
    let seal = scene.path(&format!("repo/sealed/{second}"));
    let whole = std::fs::read(&seal).unwrap();
    // The version, too: that nobody changed it, its hash says.
    for at in [9, 60, whole.len() - 1] {
        let mut bytes = whole.clone();
        bytes[at] ^= 1;
        std::fs::write(&seal, bytes).unwrap();
        let found = of_type(printed(&scene, &["check"], 30), "finding");
        assert_eq!((found.len(), &found[0]["backup"]), (1, &json!(second)), "{found:?}");
        assert!(scene.good(&["repair", "snapshots", "--dry-run"]).contains("would be written anew"));
        scene.bad(&["verify", &second], 30);
        assert!(scene.good(&["repair", "snapshots", "--forget"]).contains("was written anew"));
        scene.good(&["verify", &second]);
    }
    scene.good(&["check", "--read-data"]);
    assert_eq!(scene.objects(&["snapshots"]).len(), 2);
}

/// What a check has found out counts where backups are forgotten, and a repaired one is no good one.
#[test]
fn the_last_whole_one_stays_when_a_check_has_named_the_newest() {
    let scene = Scene::new();
    let (first, second, new) = two_backups(&scene);
    let pack = new.iter().next().unwrap();
    let whole = std::fs::read(pack).unwrap();
    let mut bytes = whole.clone();
    bytes[100] ^= 1;
    std::fs::write(pack, bytes).unwrap();
    printed(&scene, &["check", "--read-data"], 30);
    scene.good(&["forget", "--keep-last", "1"]);
    let left: Vec<String> = scene.objects(&["snapshots"]).iter().map(id).collect();
    assert_eq!(left, [first.clone(), second.clone()]);
    // Twice is once.
    let of = |objects: Vec<Value>| of_type(objects, "repaired").remove(0)["repaired"].clone();
    let repaired = of(scene.objects(&["repair", "snapshots"]));
    assert_eq!(of(scene.objects(&["repair", "snapshots"])), repaired);
    let snapshots = scene.objects(&["snapshots"]);
    assert_eq!((snapshots.len(), &snapshots[2]["lost_files"]), (3, &json!(1)));
    assert_eq!(snapshots[2]["repaired_from"], second.as_str());
    assert!(scene.good(&["snapshots"]).contains("without 1 lost file"));
    scene.good(&["forget", "--keep-last", "1"]);
    assert!(scene.objects(&["snapshots"]).iter().any(|snapshot| id(snapshot) == first));
    // Somebody brings the pack back.
    std::fs::write(pack, whole).unwrap();
    scene.good(&["check", "--read-data"]);
    let snapshots = scene.objects(&["snapshots"]);
    assert!(
        snapshots.iter().all(|it| it["verified"]
            .as_array()
            .unwrap()
            .iter()
            .all(|seen| seen["whole"] == true))
    );
}

#[test]
fn what_makes_no_sense_is_refused() {
    let scene = Scene::new();
    for share in ["5", "0%", "101%", "0.001%", "%", "-1%", "x%", "100.01%"] {
        let refused = scene.bad(&["check", &format!("--read-data-subset={share}")], 2);
        assert!(refused.contains("for example 5%"), "{share}: {refused}");
    }
    scene.good(&["check", "--read-data-subset", "0.01%"]);
    scene.good(&["check", "--read-data-subset", "100%"]);
    scene.bad(&["check", "--read-data", "--read-data-subset", "5%"], 2);
    scene.bad(&["repair", "snapshots", "--dry-run", "--forget"], 2);
    scene.bad(&["repair", "snapshots", "nothing-of-that-name"], 24);
    scene.bad(&["repair"], 2);
}
