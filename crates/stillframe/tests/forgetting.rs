//! Backups go by name or by policy, what is pinned stays, and room comes back.
#![allow(clippy::unwrap_used, reason = "a test stops at what it did not expect")]

mod scene;

use serde_json::Value;

use crate::scene::Scene;

fn id(backup: &Value) -> String {
    backup["id"].as_str().unwrap().to_owned()
}

fn ids(scene: &Scene) -> Vec<String> {
    scene.objects(&["snapshots"]).iter().map(id).collect()
}

/// Of a kind, the objects that a command prints.
fn of_type(objects: Vec<Value>, kind: &str) -> Vec<Value> {
    objects.into_iter().filter(|object| object["type"] == kind).collect()
}

fn stored(scene: &Scene) -> u64 {
    scene.objects(&["repo", "info"])[0]["pack_bytes"].as_u64().unwrap()
}

#[test]
fn a_policy_takes_what_no_rule_keeps_and_says_why_the_others_stay() {
    let scene = Scene::new();
    let one: Vec<String> = (0..4)
        .map(|number| {
            std::fs::write(scene.path("one/a"), format!("{number}").repeat(300_000)).unwrap();
            id(&scene.back_up(&["files:one"]))
        })
        .collect();
    let two = id(&scene.back_up(&["files:two"]));
    scene.good(&["pin", &one[0], "--why", "audit of March"]);
    let before = stored(&scene);

    let dry = scene.objects(&["forget", "--keep-last", "1", "--dry-run"]);
    let decisions = of_type(dry.clone(), "decision");
    assert_eq!(decisions.len(), 5);
    let reasons = |backup: &str| {
        let decision = decisions.iter().find(|decision| decision["id"] == backup).unwrap();
        (decision["action"].as_str().unwrap(), decision["reasons"].clone())
    };
    assert_eq!(reasons(&one[3]), ("keep", serde_json::json!(["last"])));
    assert_eq!(reasons(&one[1]), ("forget", serde_json::json!([])));
    assert_eq!(reasons(&one[0]), ("keep", serde_json::json!(["pinned: audit of March"])));
    assert_eq!(reasons(&two), ("keep", serde_json::json!(["last"])), "other sources are another history");
    assert_eq!(of_type(dry, "forgotten")[0]["dry_run"], true);
    assert_eq!(ids(&scene).len(), 5, "nothing was changed");

    let done = scene.objects(&["forget", "--keep-last", "1", "--prune"]);
    assert_eq!(of_type(done.clone(), "forgotten")[0]["ids"], serde_json::json!([one[2], one[1]]));
    assert!(of_type(done, "pruned")[0]["packs_deleted"].as_u64().unwrap() > 0);
    assert_eq!(ids(&scene), [one[0].clone(), one[3].clone(), two.clone()]);
    assert!(stored(&scene) < before);
    scene.good(&["verify", &one[0]]);
    scene.good(&["verify", &one[3]]);
    let text = scene.good(&["snapshots"]);
    assert!(
        text.contains("pinned: audit of March") && text.contains("sound at level decrypt on 2"),
        "{text}"
    );
    let jobs = scene.good(&["jobs"]);
    assert!(jobs.contains("forget") && jobs.contains("prune"), "{jobs}");
    assert!(scene.good(&["prune"]).starts_with("nothing to prune: "));
}

#[test]
fn what_is_pinned_is_refused_and_the_last_good_one_goes_by_its_id_alone() {
    let scene = Scene::new();
    let first = id(&scene.back_up(&["files:one", "--name", "first", "--tag", "a"]));
    let second = id(&scene.back_up(&["files:one", "--name", "second"]));
    scene.good(&["pin", "first"]);
    let refused = scene.bad(&["forget", "second", "first"], 2);
    assert!(refused.contains(&first) && refused.contains("stillframe unpin"), "{refused}");
    assert_eq!(ids(&scene).len(), 2, "all or nothing: {refused}");
    assert!(scene.good(&["unpin", "first"]).contains("not pinned any more"));
    assert!(scene.good(&["unpin", "first"]).contains("was not pinned"));
    // Of both names both would go.
    let kept = scene.good(&["forget", "--name", "second"]);
    assert!(kept.contains("1 backup forgotten"), "the first one has the same source: {kept}");
    let kept = scene.good(&["forget", "--tag", "a"]);
    assert!(kept.contains("the last good one of files:") && kept.contains("nothing to forget"), "{kept}");
    assert_eq!(ids(&scene), std::slice::from_ref(&first));
    assert!(!ids(&scene).contains(&second));
    scene.good(&["forget", &first[..10], "--prune"]);
    assert!(ids(&scene).is_empty());
    assert_eq!(stored(&scene), 0);
}

/// Damage that was seen is in the repository, for whoever forgets.
#[test]
fn the_last_one_is_no_good_one_if_it_was_found_damaged() {
    let scene = Scene::new();
    let good = id(&scene.back_up(&["files:one"]));
    let before = packs(&scene);
    std::fs::write(scene.path("one/a"), "x".repeat(200_000)).unwrap();
    let bad = id(&scene.back_up(&["files:one"]));
    for pack in packs(&scene).into_iter().filter(|pack| !before.contains(pack)) {
        let mut bytes = std::fs::read(&pack).unwrap();
        bytes[100] ^= 1;
        std::fs::write(&pack, bytes).unwrap();
    }
    scene.bad(&["verify", &bad], 30);
    let snapshots = scene.objects(&["snapshots"]);
    assert_eq!(snapshots[1]["verified"][0]["whole"], false);
    assert_eq!(snapshots[0]["verified"], serde_json::json!([]));
    let decisions = of_type(scene.objects(&["forget", "--keep-last", "1"]), "decision");
    assert_eq!(decisions[1]["id"], good.as_str());
    assert!(decisions[1]["reasons"][0].as_str().unwrap().starts_with("the last good one of files:"));
    assert_eq!(ids(&scene).len(), 2);
}

fn packs(scene: &Scene) -> Vec<std::path::PathBuf> {
    let dirs = std::fs::read_dir(scene.path("repo/packs")).unwrap();
    let dirs = dirs.map(|dir| dir.unwrap().path());
    dirs.flat_map(|dir| std::fs::read_dir(dir).unwrap().map(|pack| pack.unwrap().path())).collect()
}

#[test]
fn what_was_never_finished_goes_by_its_id() {
    let scene = Scene::new();
    let begun = id(&scene.back_up(&["files:one"]));
    scene.back_up(&["files:two"]);
    std::fs::remove_file(scene.path("repo/sealed").join(&begun)).unwrap();
    let kept = scene.objects(&["forget", "--keep-last", "1"]);
    assert!(of_type(kept, "decision").iter().all(|decision| decision["id"] != begun.as_str()));
    scene.good(&["forget", &begun[..8]]);
    assert!(!scene.path("repo/manifests").join(&begun).exists());
}

#[test]
fn what_is_not_meant_is_refused_before_anything_goes() {
    let scene = Scene::new();
    scene.back_up(&["files:one", "--name", "nightly"]);
    scene.back_up(&["files:one", "--name", "nightly"]);
    for (words, said) in [
        (&["forget"][..], "nothing says which backups are meant"),
        (&["forget", "nightly", "--keep-last", "1"], "leave one of them away"),
        (&["forget", "nightly", "--tag", "x"], "cannot be used with"),
        (&["forget", "--keep-daily", "0"], "whole number from 1"),
        (&["forget", "--keep-daily", "-1"], "whole number from 1"),
        (&["forget", "--keep-within", "6m"], "months are written 6mo"),
        (&["forget", "--keep-within", "soon"], "write for example"),
        (&["forget", "--keep-last", "1", "--dry-run", "--prune"], "nothing is forgotten"),
        (&["forget", "latest"], "name the backup by its id"),
        (&["pin", "latest", "--why", "two\nlines"], "without control characters"),
    ] {
        let error = scene.bad(words, 2);
        assert!(error.contains(said), "{words:?}: {error}");
    }
    assert!(scene.bad(&["forget", "nightly"], 24).contains("fits several backups"));
    assert!(scene.bad(&["forget", "never"], 24).contains("there is no backup"));
    assert_eq!(ids(&scene).len(), 2);
}
