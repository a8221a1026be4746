//! The README's two commands share one build: what `cargo run` compiles, `cargo test --workspace` finds ready.
#![allow(clippy::unwrap_used, reason = "a test ends there")]

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

/// What cargo compiles from elsewhere, as "name version features", for the packages and kinds of dependencies that `arguments` choose.
fn compiled(arguments: &[&str]) -> BTreeSet<String> {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().parent().unwrap();
    let out = Command::new(env!("CARGO"))
        .current_dir(workspace)
        .args(["tree", "--locked", "--offline", "--prefix", "none", "--format", "{p} [{f}]"])
        .args(arguments)
        .output()
        .unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let lines = String::from_utf8(out.stdout).unwrap();
    // Ours have a path; with `--edges features` a feature is a line of its own, which says the same again; a star marks what was
    // shown above.
    let theirs = lines
        .lines()
        .filter(|line| line.contains(" v") && !line.contains('/') && !line.contains(" feature "));
    theirs.map(|line| line.trim_end_matches(" (*)").to_owned()).collect()
}

#[test]
fn tests_ask_for_no_feature_that_the_program_does_not_have() {
    let program = compiled(&["--package", "stillframe", "--edges", "normal,build,features"]);
    let everything = compiled(&["--workspace", "--edges", "normal,build,dev,features"]);
    assert!(
        program.len() > 100 && everything.len() > program.len(),
        "{} and {}",
        program.len(),
        everything.len()
    );
    let again: Vec<_> = program.difference(&everything).collect();
    assert!(
        again.is_empty(),
        "`cargo test` would compile these once more, with other features (see the end of crates/stillframe/Cargo.toml): {again:?}"
    );
}
