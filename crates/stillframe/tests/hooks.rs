//! Whoever asked for it learns how a job ended.
#![allow(clippy::unwrap_used, reason = "a test stops at what it did not expect")]

mod scene;

use serde_json::Value;

use crate::scene::Scene;

fn told(scene: &Scene, name: &str) -> Value {
    serde_json::from_str(&std::fs::read_to_string(scene.path(name)).unwrap()).unwrap()
}

#[test]
fn the_command_for_the_end_that_it_came_to_gets_the_outcome_and_no_secret() {
    let scene = Scene::new();
    let hooks = ["--on-success", "cat > good; env > environment", "--on-failure", "cat > bad"];
    scene.good(&[&["backup", "files:one", "--reserve", "0", "--name", "nightly"][..], &hooks].concat());
    let good = told(&scene, "good");
    assert_eq!(
        (&good["command"], &good["succeeded"], &good["exit_code"]),
        (&"backup".into(), &true.into(), &0.into())
    );
    let id = scene.objects(&["snapshots"])[0]["id"].clone();
    let backup =
        good["results"].as_array().unwrap().iter().find(|result| result["type"] == "backup").unwrap();
    assert_eq!(backup["id"], id);
    assert!(good["started"].as_str().unwrap() <= good["ended"].as_str().unwrap() && good["kind"].is_null());
    let environment = std::fs::read_to_string(scene.path("environment")).unwrap();
    assert!(environment.contains("STILLFRAME_REPO=") && !environment.contains("STILLFRAME_PASSPHRASE"));
    assert!(!scene.path("bad").exists());

    scene.bad(&[&["verify", "never"][..], &hooks].concat(), 24);
    let bad = told(&scene, "bad");
    assert_eq!(
        (&bad["command"], &bad["kind"], &bad["exit_code"]),
        (&"verify".into(), &"no-backup".into(), &24.into())
    );
    assert!(bad["message"].as_str().unwrap().contains("never"));
    for words in [
        &["check"][..],
        &["forget", "--keep-last", "1"],
        &["prune"],
        &["restore", "nightly", "--to", "back"],
        &["repair", "snapshots"],
    ] {
        std::fs::remove_file(scene.path("good")).unwrap();
        scene.good(&[words, &hooks].concat());
        assert_eq!(
            told(&scene, "good")["command"],
            words[..words.len().min(if words[0] == "repair" { 2 } else { 1 })].join(" ")
        );
    }
}

/// The backup is what counts.
#[test]
fn what_becomes_of_the_command_changes_nothing_of_the_outcome() {
    let scene = Scene::new();
    let backup = ["backup", "files:one", "--reserve", "0", "--on-success"];
    for (hook, said) in
        [("exit 7", "exit status: 7"), ("no-such-program", "exit status: 127"), ("kill -9 $$", "signal: 9")]
    {
        let output = scene.run(&[&backup[..], &[hook]].concat());
        let error = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.success() && error.contains(said) && error.contains(hook), "{error}");
    }
    // One that does not read what is more than a pipe takes is not waited for.
    let many = "x".repeat(100_000);
    scene.bad(&["forget", &many, "--on-failure", "exec sleep 1"], 24);
    // One that does not read, and one that prints: what machines read stays what it is.
    let out = scene.good(&[&["--json"], &backup[..], &["echo hello; exit 0"]].concat());
    assert!(out.lines().all(|line| serde_json::from_str::<Value>(line).is_ok()), "{out}");
    assert_eq!(scene.objects(&["snapshots"]).len(), 4);
    let mut command = scene.command(&["verify"]);
    assert!(command.env("STILLFRAME_ON_SUCCESS", "cat > by-environment").status().unwrap().success());
    assert_eq!(told(&scene, "by-environment")["command"], "verify");
}
