//! What `--json` prints is what `docs/json.md` says: the page is read, the program is run, and types and fields are compared.

#![allow(clippy::unwrap_used, reason = "a test stops at what it did not expect")]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

/// Those that a short run on a quiet machine need not print.
const BY_CHANCE: [&str; 2] = ["progress", "warning"];
/// Fields that are times.
const TIMES: [&str; 8] = ["created", "instant", "started", "ended", "heartbeat", "mtime", "since", "at"];

/// By type, and by what is within one (`backup.sources`): the fields that stand outside of parentheses.
fn documented() -> BTreeMap<String, BTreeSet<String>> {
    let page =
        std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/json.md")).unwrap();
    let mut types = BTreeMap::new();
    for heading in ["| `type`", "| Within"] {
        for line in page.lines().skip_while(|line| !line.starts_with(heading)).skip(2) {
            let Some(row) = line.strip_prefix("| ") else { break };
            let cells: Vec<&str> = row.trim_end_matches(" |").split(" | ").collect();
            let fields: BTreeSet<String> = words(cells.last().unwrap()).collect();
            types.extend(words(cells[0]).map(|name| (name, fields.clone())));
        }
    }
    types
}

/// What stands in backquotes, and not in parentheses.
fn words(cell: &str) -> impl Iterator<Item = String> {
    let mut depth = 0;
    let outside: String = cell
        .chars()
        .filter(|letter| {
            depth += i32::from(*letter == '(');
            let keep = depth == 0;
            depth -= i32::from(*letter == ')');
            keep
        })
        .collect();
    outside.split('`').skip(1).step_by(2).map(str::to_owned).collect::<Vec<_>>().into_iter()
}

struct Scene {
    dir: tempfile::TempDir,
    seen: BTreeMap<String, BTreeSet<String>>,
}

impl Scene {
    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Runs the program, notes what it printed, and returns its exit code and its last object.
    fn run(&mut self, words: &[&str]) -> (i32, Value) {
        let output = Command::new(env!("CARGO_BIN_EXE_stillframe"))
            .arg("--json")
            .args(words)
            .current_dir(self.dir.path())
            .env("STILLFRAME_STATE_DIR", self.path("state"))
            .env("STILLFRAME_CACHE_DIR", self.path("cache"))
            .env("STILLFRAME_CONFIG", "")
            .env("STILLFRAME_REPO", self.path("repo"))
            .env("STILLFRAME_PASSPHRASE", "one")
            .env("STILLFRAME_NEW_PASSPHRASE", "two")
            .output()
            .unwrap();
        let mut last = Value::Null;
        for line in String::from_utf8(output.stdout).unwrap().lines() {
            let object: Value =
                serde_json::from_str(line).unwrap_or_else(|error| panic!("{words:?}: {line}: {error}"));
            let kind = object["type"].as_str().unwrap_or_else(|| panic!("{words:?}: {line}")).to_owned();
            self.note(&kind, &object);
            last = object;
        }
        (output.status.code().unwrap(), last)
    }

    /// The fields of an object, and of those in it.
    fn note(&mut self, within: &str, value: &Value) {
        if let Value::Array(values) = value {
            values.iter().for_each(|value| self.note(within, value));
        }
        let Some(object) = value.as_object() else { return };
        for (field, value) in object.iter().filter(|(field, _)| *field != "type") {
            if TIMES.contains(&field.as_str()) && !value.is_null() {
                let time = value.as_str().and_then(|text| text.parse::<jiff::Timestamp>().ok());
                assert!(time.is_some(), "{within}: {field} is no time: {value}");
            }
            self.seen.entry(within.to_owned()).or_default().insert(field.clone());
            // What came of a job depends on its kind.
            if field != "outcome" {
                self.note(&format!("{within}.{field}"), value);
            }
        }
    }
}

#[test]
fn what_is_printed_is_what_the_page_says() {
    let mut scene = Scene { dir: tempfile::tempdir().unwrap(), seen: BTreeMap::new() };
    std::fs::create_dir(scene.path("data")).unwrap();
    std::fs::write(scene.path("data/file"), vec![7; 100_000]).unwrap();
    for words in [
        &["repo", "init", "repo"][..],
        &["backup", "files:data", "--name", "first", "--tag", "a", "--reserve", "0"],
        &["backup", "files:data", "--dry-run", "--reserve", "0"],
        &["restore", "first", "--to", "restored"],
        &["snapshots"],
        &["show", "first", "--files"],
        &["verify", "--level", "hash"],
        &["verify", "--without-key"],
        &["pin", "first", "--why", "audit"],
        &["backup", "files:data", "--name", "second", "--reserve", "0"],
        &["backup", "files:data", "--name", "third", "--reserve", "0"],
        &["snapshots"],
        &["forget", "--keep-last", "1", "--dry-run"],
        &["forget", "--keep-last", "1"],
        &["unpin", "first"],
        &["prune", "--dry-run"],
        &["prune"],
        &["check", "--read-data"],
        &["repair", "index"],
        &["repo", "info"],
        &["key", "add", "--label", "second"],
        &["key", "list"],
        &["key", "rotate", "--remove-others"],
        &["image", "create", "files:data", "--to", "image", "--reserve", "0"],
        &["image", "validate", "image"],
        &["demo"],
    ] {
        let (code, last) = scene.run(words);
        assert_eq!(code, 0, "{words:?}: {last}");
    }
    let (_, added) = scene.run(&["key", "add"]);
    assert_eq!(scene.run(&["key", "remove", added["id"].as_str().unwrap()]).0, 0, "{added}");
    for (words, code, kind) in [
        (&["backup", "files:data", "--nmae", "x"][..], 2, "usage"),
        (&["backup", "files:data", "--name", "latest", "--reserve", "0"], 2, "usage"),
        (&["restore", "first", "--to", "restored"], 2, "usage"),
        (&["restore", "first", "--to", "elsewhere", "--map", "x=y"], 2, "usage"),
        (&["restore", "second", "--to", "elsewhere"], 24, "no-backup"),
        (&["forget"], 2, "usage"),
        (&["verify", "-r", "data"], 10, "no-repository"),
        (&["backup", "rocksdb:data"], 20, "source"),
    ] {
        let (got, last) = scene.run(words);
        assert_eq!(
            (got, last["type"].as_str(), last["kind"].as_str()),
            (code, Some("error"), Some(kind)),
            "{words:?}"
        );
    }
    let packs = walk(&scene.path("repo/packs"));
    let mut bytes = std::fs::read(&packs[0]).unwrap();
    bytes[100] ^= 1;
    std::fs::write(&packs[0], bytes).unwrap();
    assert_eq!(scene.run(&["verify", "--level", "hash"]).0, 30);
    assert_eq!(scene.run(&["check", "--read-data"]).0, 30);
    scene.run(&["repair", "snapshots", "--dry-run"]);
    assert_eq!(scene.run(&["jobs"]).0, 0);
    std::fs::remove_dir_all(scene.path("repo/sealed")).unwrap();
    assert_eq!(scene.run(&["snapshots"]).0, 0);

    let documented = documented();
    assert!(documented.len() > 10, "the page was not understood: {documented:?}");
    for (kind, fields) in &documented {
        match scene.seen.get(kind) {
            Some(seen) => assert_eq!(seen, fields, "{kind}: printed, and on the page"),
            None => assert!(BY_CHANCE.contains(&kind.as_str()), "{kind} was never printed"),
        }
    }
    let unknown: Vec<_> = scene.seen.keys().filter(|kind| !documented.contains_key(*kind)).collect();
    assert!(unknown.is_empty(), "not on the page: {unknown:?}");
}

fn walk(dir: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    entries.flat_map(|path| if path.is_dir() { walk(&path) } else { vec![path] }).collect()
}
