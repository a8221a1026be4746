//! What is configured once is done by one word.
#![allow(clippy::unwrap_used, reason = "a test stops at what it did not expect")]

mod scene;

use std::process::Output;

use crate::scene::Scene;

/// Without what the tests' surroundings say.
fn run(scene: &Scene, words: &[&str]) -> Output {
    let mut command = scene.command(words);
    command.env_remove("STILLFRAME_REPO").env_remove("STILLFRAME_PASSPHRASE").env_remove("STILLFRAME_CONFIG");
    command.env("XDG_CONFIG_HOME", scene.path("config")).output().unwrap()
}

fn good(scene: &Scene, words: &[&str]) -> String {
    let output = run(scene, words);
    assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn bad(scene: &Scene, words: &[&str], code: i32) -> String {
    let output = run(scene, words);
    assert_eq!(output.status.code(), Some(code), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stderr).unwrap()
}

fn configure(scene: &Scene, backup: &str) -> String {
    let place = scene.path("config/stillframe/stillframe.toml");
    std::fs::create_dir_all(place.parent().unwrap()).unwrap();
    std::fs::write(scene.path("passphrase"), "one\n").unwrap();
    let [repo, passphrase, done] =
        ["repo", "passphrase", "done"].map(|name| scene.path(name).display().to_string());
    let text = format!(
        "repo = {repo:?}\npassphrase-file = {passphrase:?}\non-success = 'cat > {done}'\n[backup]\nreserve = \"0\"\n{backup}"
    );
    std::fs::write(&place, text).unwrap();
    place.display().to_string()
}

#[test]
fn a_configured_backup_keeps_what_its_rules_say_and_gives_room_back() {
    let scene = Scene::new();
    let sources = format!("sources = [\"files:{}\"]", scene.path("one").display());
    configure(&scene, &format!("{sources}\nname = \"nightly\"\nkeep-last = 2\nprune = true\n"));
    // Of other sources, and so another history.
    scene.back_up(&["files:two", "--name", "other"]);
    for round in 0..4_u8 {
        std::fs::write(scene.path("one/a"), vec![round; 100_000]).unwrap();
        let said = good(&scene, &["backup"]);
        assert_eq!(said.contains("1 backup forgotten, 2 kept"), round >= 2, "{round}: {said}");
        assert_eq!(said.contains("pruned in"), round >= 2, "{round}: {said}");
    }
    let listed = good(&scene, &["snapshots"]);
    assert_eq!(
        (listed.matches("  nightly  ").count(), listed.matches("  other  ").count()),
        (2, 1),
        "{listed}"
    );
    let done = std::fs::read_to_string(scene.path("done")).unwrap();
    assert!(done.contains("\"command\":\"backup\"") && done.contains("\"succeeded\":true"), "{done}");
    good(&scene, &["check", "--read-data"]);
    // What is given counts, also with a file of one's own.
    let said = good(&scene, &["backup", "--name", "now", "--keep-last", "1"]);
    assert!(
        said.contains("nothing to forget: 1 kept"),
        "those of another name have rules of their own: {said}"
    );
    // Another installation with the same name, as clones of a machine have it.
    let other = scene.path("elsewhere").display().to_string();
    let mut command = scene.command(&["backup", "--keep-last", "1"]);
    command.env("STILLFRAME_STATE_DIR", other).env_remove("STILLFRAME_CONFIG");
    let output = command.env("XDG_CONFIG_HOME", scene.path("config")).output().unwrap();
    let (said, noted) =
        (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
    assert!(
        said.contains("nothing to forget: 1 kept") && noted.contains("of another installation"),
        "{said}{noted}"
    );
    assert_eq!(good(&scene, &["snapshots"]).matches("  nightly  ").count(), 3);
    let own = scene.path("own.toml").display().to_string();
    std::fs::write(&own, "").unwrap();
    assert!(bad(&scene, &["--config", &own, "backup"], 2).contains("required"));
}

#[test]
fn a_backup_that_fails_forgets_nothing() {
    let scene = Scene::new();
    let sources = format!("sources = [\"files:{}\"]", scene.path("one").display());
    configure(&scene, &format!("{sources}\nkeep-last = 1\n"));
    good(&scene, &["backup"]);
    std::fs::rename(scene.path("one"), scene.path("away")).unwrap();
    bad(&scene, &["backup"], 20);
    assert_eq!(good(&scene, &["--json", "snapshots"]).lines().count(), 1);
}

#[test]
fn a_configuration_that_means_nothing_is_an_error_that_names_it() {
    let scene = Scene::new();
    let place = configure(&scene, "keep-dayly = 7\n");
    let refused = bad(&scene, &["backup", "files:one"], 2);
    assert!(refused.contains(&place) && refused.contains("keep-daily"), "{refused}");
    let place = configure(&scene, "keep-daily = 0\nsources = [\"files:one\"]\n");
    let refused = bad(&scene, &["backup"], 2);
    assert!(refused.contains(&place) && refused.contains("whole number from 1"), "{refused}");
    let refused = bad(&scene, &["--config=/no/such.toml", "snapshots"], 2);
    assert!(refused.contains("cannot read the configuration \"/no/such.toml\""), "{refused}");
    assert!(!refused.contains("what is not given"), "nothing was read from it: {refused}");
    let refused = bad(&scene, &["--config=", "snapshots"], 2);
    assert!(refused.contains("the configuration \"\""), "{refused}");
    assert!(good(&scene, &["--config=/no/such.toml", "--version"]).contains("stillframe"));
    configure(&scene, "prune = true\nsources = [\"files:one\"]\n");
    assert!(bad(&scene, &["backup"], 2).contains("without a rule"));
}

#[test]
fn a_backup_that_is_saved_is_said_to_be_when_what_follows_fails() {
    let scene = Scene::new();
    let sources = format!("sources = [\"files:{}\"]", scene.path("one").display());
    configure(&scene, &format!("{sources}\nname = \"nightly\"\nkeep-last = 1\nprune = true\n"));
    good(&scene, &["backup"]);
    let pins = scene.path("repo/pins");
    let _ = std::fs::remove_dir(&pins);
    std::fs::write(&pins, "no directory").unwrap();
    let said = bad(&scene, &["backup"], 1);
    assert!(said.contains("is saved, but what follows it failed: pins"), "{said}");
    std::fs::remove_file(&pins).unwrap();
    assert_eq!(good(&scene, &["snapshots"]).matches("  nightly  ").count(), 2);
    let jobs = good(&scene, &["jobs"]);
    assert!(jobs.lines().next().unwrap().contains("failed"), "the history knows of it: {jobs}");
}
