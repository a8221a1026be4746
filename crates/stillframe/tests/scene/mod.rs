//! A directory with two trees and a repository, and the program run in it.
#![allow(dead_code, reason = "each test uses a part of it")]

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;

pub struct Scene {
    dir: tempfile::TempDir,
}

impl Scene {
    /// Two trees and a repository.
    pub fn new() -> Self {
        let scene = Self { dir: tempfile::tempdir().unwrap() };
        for (name, text) in [("one/a", "first"), ("two/b", "second")] {
            std::fs::create_dir(scene.path(name).parent().unwrap()).unwrap();
            std::fs::write(scene.path(name), text).unwrap();
        }
        scene.good(&["repo", "init", "repo"]);
        scene
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn run(&self, words: &[impl AsRef<OsStr>]) -> Output {
        self.command(words).output().unwrap()
    }

    pub fn command(&self, words: &[impl AsRef<OsStr>]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_stillframe"));
        command
            .args(words)
            .current_dir(self.dir.path())
            .env("STILLFRAME_STATE_DIR", self.path("state"))
            .env("STILLFRAME_CACHE_DIR", self.path("cache"))
            .env("STILLFRAME_CONFIG", "")
            .env("STILLFRAME_REPO", self.path("repo"))
            .env("STILLFRAME_PASSPHRASE", "one");
        command
    }

    /// A repository without encryption.
    pub fn make_plain(&self, repo: &str) {
        let mut init = self.command(&["repo", "init", repo, "--no-encryption"]);
        assert!(init.env_remove("STILLFRAME_PASSPHRASE").output().unwrap().status.success());
    }

    /// Standard output of a command that works.
    pub fn good(&self, words: &[&str]) -> String {
        let output = self.run(words);
        assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    /// The objects that it prints.
    pub fn objects(&self, words: &[&str]) -> Vec<Value> {
        let out = self.good(&[&["--json"], words].concat());
        out.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// Standard error of a command that must fail with this code.
    pub fn bad(&self, words: &[&str], code: i32) -> String {
        let output = self.run(words);
        assert_eq!(
            output.status.code(),
            Some(code),
            "{words:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8(output.stderr).unwrap()
    }

    pub fn back_up(&self, words: &[&str]) -> Value {
        let all = [&["backup", "--reserve", "0"], words].concat();
        self.objects(&all).into_iter().find(|object| object["type"] == "backup").unwrap()
    }
}

pub fn names(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).unwrap();
    let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}
