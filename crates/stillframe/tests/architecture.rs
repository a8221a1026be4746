//! The house's rule, read from the crates' manifests: arrows point down only (see ARCHITECTURE.md).
#![allow(clippy::unwrap_used, reason = "a test ends there")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Crates by floor, lowest first. A crate may use those on lower floors only.
const FLOORS: &[&[&str]] = &[
    &["stillframe-storage"],
    &["stillframe-capture", "stillframe-repo", "stillframe-jobs"],
    &["stillframe-engine"],
    &["stillframe"],
];

/// Stands beside the house: uses the ground alone, and is used by the program's demonstration and by tests.
const TESTKIT: &str = "stillframe-testkit";

type Dependencies = BTreeMap<String, (Vec<String>, Vec<String>)>;

fn crates_dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("a crate lies in crates/").to_owned()
}

/// By crate: our own crates among its dependencies, and among its development dependencies.
fn read_manifests() -> Dependencies {
    let mut all = BTreeMap::new();
    for entry in std::fs::read_dir(crates_dir()).unwrap() {
        let path = entry.unwrap().path().join("Cargo.toml");
        let manifest: toml::Table = std::fs::read_to_string(&path).unwrap().parse().unwrap();
        let ours = |section: &str| -> Vec<String> {
            let table = manifest.get(section).and_then(toml::Value::as_table);
            let names = table.into_iter().flatten().map(|(name, given)| {
                // Under whatever name it is used.
                given.get("package").and_then(toml::Value::as_str).unwrap_or(name)
            });
            names.filter(|name| name.starts_with("stillframe")).map(str::to_owned).collect()
        };
        let name = manifest["package"]["name"].as_str().unwrap().to_owned();
        for section in ["target", "build-dependencies"] {
            assert!(
                manifest.get(section).is_none(),
                "{name}: dependencies below [{section}] would escape this test"
            );
        }
        all.insert(name, (ours("dependencies"), ours("dev-dependencies")));
    }
    all
}

fn floor(name: &str) -> Option<usize> {
    FLOORS.iter().position(|floor| floor.contains(&name))
}

fn violations(all: &Dependencies) -> Vec<String> {
    let mut found = Vec::new();
    for (name, (uses, tests_use)) in all {
        let Some(own) = floor(name) else {
            if name != TESTKIT {
                found.push(format!(
                    "{name} has no place in the house: give it one here and in ARCHITECTURE.md"
                ));
            } else if uses.iter().any(|used| floor(used) != Some(0)) {
                found.push(format!("{name} uses more than the ground: {uses:?}"));
            }
            continue;
        };
        for used in uses {
            let fine = match floor(used) {
                Some(theirs) => theirs < own,
                None => used == TESTKIT && name == "stillframe",
            };
            if !fine {
                found.push(format!("{name} -> {used} does not point down"));
            }
        }
        for used in tests_use {
            if floor(used).is_some_and(|theirs| theirs >= own) {
                found.push(format!("the tests of {name} -> {used} do not point down"));
            }
        }
    }
    found
}

#[test]
fn arrows_point_down_only() {
    let all = read_manifests();
    assert!(
        all.len() > FLOORS.iter().map(|floor| floor.len()).sum::<usize>(),
        "every crate was read: {all:?}"
    );
    assert_eq!(violations(&all), Vec::<String>::new());
}

#[test]
fn an_arrow_that_points_up_is_found() {
    let mut all = read_manifests();
    all.get_mut("stillframe-capture").unwrap().0.push("stillframe-repo".to_owned());
    all.get_mut("stillframe-repo").unwrap().1.push("stillframe-engine".to_owned());
    all.insert("stillframe-new".to_owned(), Default::default());
    let found = violations(&all);
    assert_eq!(found.len(), 3, "{found:?}");
}

#[test]
fn only_the_demonstration_uses_the_testkit() {
    let source = crates_dir().join("stillframe/src");
    let mut files = vec![source.clone()];
    let mut users = Vec::new();
    while let Some(path) = files.pop() {
        if path.is_dir() {
            files.extend(std::fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        } else if std::fs::read_to_string(&path).unwrap().contains("stillframe_testkit") {
            users.push(path.strip_prefix(&source).unwrap().to_owned());
        }
    }
    users.retain(|path| !path.starts_with("demo") && path != Path::new("demo.rs"));
    assert_eq!(users, Vec::<PathBuf>::new(), "testkit is for tests and for `demo`");
}

#[test]
fn no_source_file_is_too_big_to_know() {
    let mut files = vec![crates_dir()];
    while let Some(path) = files.pop() {
        if path.is_dir() {
            files.extend(std::fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        } else if path.extension().is_some_and(|ending| ending == "rs") {
            let lines = std::fs::read_to_string(&path).unwrap().lines().count();
            assert!(lines <= 800, "{} has {lines} lines", path.display());
            let name = path.file_stem().and_then(|name| name.to_str()).unwrap();
            let drawers = ["util", "utils", "common", "helper", "helpers", "misc", "types"];
            assert!(!drawers.contains(&name), "{} is named after nothing", path.display());
        }
    }
}
