//! One file for each command: it takes the options, calls a verb, and says what came of it.

pub mod backup;
pub mod check;
pub mod forget;
pub mod image;
pub mod jobs;
pub mod key;
pub mod pin;
pub mod prune;
pub mod repair;
pub mod repo;
pub mod restore;
pub mod show;
pub mod snapshots;
pub mod verify;

use std::ffi::OsStr;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use stillframe_capture::{CaptureOptions, Engine, Source, detect};
use stillframe_engine::Reserve;
use stillframe_storage::{BandwidthLimit, lies_within, path_text};

use crate::cli::CaptureArgs;
use crate::failure::{Failure, Kind};
use crate::place::{cache_dir, state_dir};
use crate::repository::refuse_in_repository;
use crate::sizes;

/// For what is sent to a repository.
fn limit(given: Option<sizes::Size>) -> Option<Arc<BandwidthLimit>> {
    given.map(|limit| Arc::new(BandwidthLimit::new(limit.0)))
}

impl From<&CaptureArgs> for CaptureOptions {
    fn from(args: &CaptureArgs) -> Self {
        let mut cf_paths = std::collections::BTreeMap::<String, Vec<PathBuf>>::new();
        for (family, dir) in &args.cf_paths {
            cf_paths.entry(family.clone()).or_default().push(from_here(dir));
        }
        Self {
            staging: args.staging.as_deref().map(from_here),
            deadline: Duration::from_secs(args.deadline),
            wal_dir: args.wal_dir.as_deref().map(from_here),
            db_paths: args.db_paths.iter().map(|dir| from_here(dir)).collect(),
            cf_paths,
            sqlite_lock_timeout: Duration::from_secs(args.sqlite_lock_timeout),
            sqlite_wal_cap: args.sqlite_wal_cap.0,
            force: args.force,
            leave_out: state_dir().into_iter().chain([cache_dir()]).collect(),
        }
    }
}

impl CaptureArgs {
    /// Refuses a staging directory that cannot be one, options that none of the sources can heed, and directories of one database given
    /// for several.
    pub fn check<'a>(
        &self,
        sources: impl IntoIterator<Item = &'a Source, IntoIter: Clone>,
    ) -> Result<(), Failure> {
        let sources = sources.into_iter();
        self.check_staging(sources.clone())?;
        let given = [
            ("--wal-dir", self.wal_dir.is_some()),
            ("--db-path", !self.db_paths.is_empty()),
            ("--cf-path", !self.cf_paths.is_empty()),
        ];
        // Options of the other engine, which nothing would heed, were meant for another source.
        if self.force && !sources.clone().any(|source| source.engine == Engine::Sqlite) {
            return Err(Failure::new(Kind::Usage, "--force: no source is a SQLite database"));
        }
        let Some((flag, _)) = given.into_iter().find(|(_, given)| *given) else { return Ok(()) };
        let rocksdb = |source: &&Source| source.engine == Engine::RocksDb;
        let why = match sources.filter(rocksdb).count() {
            1 => return Ok(()),
            0 => "no source is a RocksDB database",
            _ => "its directories belong to one of the RocksDB databases; back that one up by itself",
        };
        Err(Failure::new(Kind::Usage, format!("{flag}: {why}")))
    }

    /// Refuses a staging directory that is none, or that belongs to a repository or to a source: an engine may take what it finds in its
    /// directory for its own. A capture refuses that too, with no option to name.
    fn check_staging<'a>(&self, mut sources: impl Iterator<Item = &'a Source>) -> Result<(), Failure> {
        refuse_no_directory("--staging", self.staging.as_deref())?;
        let Some(staging) = &self.staging else { return Ok(()) };
        if let Some(source) = sources.find(|source| lies_within(staging, &source.path)) {
            let (staging, source) = (staging.display(), source.path.display());
            return Err(Failure::new(
                Kind::Usage,
                format!("--staging {staging} lies in the source {source}; choose a place outside"),
            ));
        }
        refuse_in_repository("--staging", staging)
    }

    /// What is to stay free on the source's disk.
    pub fn reserve(&self) -> Reserve {
        match self.reserve {
            None => Reserve::Default,
            Some(sizes::Reserve::Bytes(count)) => Reserve::Bytes(count),
            Some(sizes::Reserve::Percent(percent)) => Reserve::Percent(percent),
        }
    }
}

/// Refuses an option's directory that is none.
pub fn refuse_no_directory(option: &str, dir: Option<&Path>) -> Result<(), Failure> {
    let Some(dir) = dir else { return Ok(()) };
    let place = dir.display();
    let (kind, why) = match dir.metadata() {
        Ok(meta) if meta.is_dir() => return Ok(()),
        Ok(_) => (Kind::Usage, "it is not a directory".to_owned()),
        Err(error) if error.kind() == ErrorKind::PermissionDenied => (Kind::Permission, error.to_string()),
        Err(_) => (Kind::Usage, "there is no such directory".to_owned()),
    };
    Err(Failure::new(kind, format!("{option} {place}: {why}")))
}

/// `engine:path`, or a path whose engine is recognised by its files.
pub fn parse_source(given: &OsStr) -> Result<Source, Failure> {
    let text = path_text(given);
    let usage = |message: String| Failure::new(Kind::Usage, message);
    let mut source = if let Ok(source) = Source::try_from(given) {
        source
    } else {
        let path = PathBuf::from(given);
        let there = path.try_exists();
        if let Err(error) = &there
            && error.kind() == ErrorKind::PermissionDenied
        {
            return Err(Failure::new(Kind::Permission, format!("{text}: {error}")));
        }
        if !there.unwrap_or(false) {
            let hint =
                "write rocksdb:DIR, leveldb:DIR, fjall:DIR, sqlite:FILE, files:DIR or the path of a database";
            // A script's variable that is not set, most likely.
            if given.is_empty() {
                return Err(usage(format!("an empty path was given as a source; {hint}")));
            }
            let looks_like_engine = |word: &str| word.bytes().all(|byte| byte.is_ascii_lowercase());
            return Err(match text.split_once(':').filter(|(engine, _)| looks_like_engine(engine)) {
                Some((_, "")) => usage(format!("{text}: it names no place; {hint}")),
                Some((engine, _)) => {
                    usage(format!("{text}: {engine} is not an engine that is known; {hint}"))
                }
                None => Failure::new(Kind::Source, format!("{text}: no such file or directory; {hint}")),
            });
        }
        match detect(&path)? {
            Some(engine) => Source { engine, path },
            None if path.is_dir() => {
                return Err(usage(format!(
                    "{text}: no database is recognised here; for plain files without consistency write files:{text}"
                )));
            }
            None => {
                return Err(usage(format!(
                    "{text}: this is not a database that is known; for plain files give their directory: files:DIR"
                )));
            }
        }
    };
    // Descriptions and later runs must not depend on where this one was started.
    source.path = from_here(&source.path);
    if source.engine == Engine::Sqlite && source.path.is_dir() {
        return Err(usage(format!(
            "{}: a SQLite source is a file, this is a directory",
            source.path.display()
        )));
    }
    Ok(source)
}

/// The same place, wherever somebody starts from.
pub fn from_here(path: &Path) -> PathBuf {
    // An empty path, and one in a working directory that is gone, are told of when they are opened.
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}
