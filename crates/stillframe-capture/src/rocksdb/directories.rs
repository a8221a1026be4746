//! Where a database's files are: the directory itself, its `wal_dir`, `db_paths` and `cf_paths`.
//!
//! `wal_dir` is in the OPTIONS file. The paths of tables are in no file that is meant for reading: the user's flags come
//! first, then what the diary's head says. Nothing is guessed: a file that is not where these say is an error that
//! names the flag that would help.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use stillframe_storage::lies_within;

use super::file_name::FileName;
use super::info_log::{HEAD, InfoLogHead, name_in_log_dir};
use super::options_file::OptionsFile;
use super::owner::Owner;
use super::version_fold::{Family, VersionFold};
use crate::pin::{FileMeta, SourceDir, os};
use crate::{CaptureError, CaptureOptions};

/// The main directory's place in [`Directories`].
pub(crate) const MAIN: usize = 0;

/// One directory with files of the database.
#[derive(Debug)]
pub(crate) struct FileDir {
    /// As in a snapshot: empty for the main one, `wal_dir`, `db_path-1`, `cf_path-NAME-0`.
    pub(crate) name: String,
    /// The engine's option that names it.
    pub(crate) option: String,
    pub(crate) dir: SourceDir,
}

/// All directories of one database.
#[derive(Debug)]
pub(crate) struct Directories {
    dirs: Vec<FileDir>,
    /// By path id.
    db_paths: Vec<usize>,
    /// By family name, then path id.
    cf_paths: BTreeMap<Vec<u8>, Vec<usize>>,
    log_dir: usize,
    /// The user said where tables are.
    told: bool,
}

impl Directories {
    /// Only the main directory, for a start.
    pub(crate) fn new(main: SourceDir) -> Self {
        let main = FileDir { name: String::new(), option: String::new(), dir: main };
        Self { dirs: vec![main], db_paths: vec![MAIN], cf_paths: BTreeMap::new(), log_dir: MAIN, told: false }
    }

    pub(crate) fn main(&self) -> &SourceDir {
        &self.get(MAIN).dir
    }

    pub(crate) fn logs(&self) -> &FileDir {
        self.get(self.log_dir)
    }

    pub(crate) fn logs_are_in_main(&self) -> bool {
        self.log_dir == MAIN
    }

    pub(crate) fn get(&self, index: usize) -> &FileDir {
        self.dirs.get(index).expect("places are handed out for directories that are never removed")
    }

    /// Where the family's tables with this path id are. As in the engine, an id past the end means the last path.
    pub(crate) fn of_table(&self, family: &Family, path_id: u32) -> usize {
        let paths = self.cf_paths.get(&family.name).unwrap_or(&self.db_paths);
        let index = usize::try_from(path_id).unwrap_or(usize::MAX);
        *paths.get(index).or(paths.last()).expect("lists of paths are never empty")
    }

    pub(crate) fn all(&self) -> impl Iterator<Item = &FileDir> {
        self.dirs.iter()
    }

    fn add(&mut self, path: &Path, name: String, option: String) -> Result<usize, CaptureError> {
        let dir = SourceDir::open(path)?;
        if is_same_dir(&dir, self.main())? {
            return Ok(MAIN);
        }
        self.dirs.push(FileDir { name, option, dir });
        Ok(self.dirs.len() - 1)
    }

    fn add_db_paths(&mut self, paths: &[PathBuf]) -> Result<Vec<usize>, CaptureError> {
        let numbered = paths.iter().enumerate();
        numbered.map(|(i, path)| self.add(path, format!("db_path-{i}"), format!("db_paths[{i}]"))).collect()
    }

    /// Finds out where tables are: by the user's flags, or, if some are not in the main directory, by the diaries of the
    /// last opens.
    pub(crate) fn find_tables(
        &mut self,
        fold: &VersionFold,
        options: &CaptureOptions,
        settings: &OptionsFile,
        owner: Option<&Owner>,
    ) -> Result<(), CaptureError> {
        if !options.db_paths.is_empty() {
            self.db_paths = self.add_db_paths(&options.db_paths)?;
            self.told = true;
        }
        for (family, paths) in options.cf_paths.iter().filter(|(_, paths)| !paths.is_empty()) {
            if !fold.families().any(|(_, of)| of.name == family.as_bytes()) {
                let known: Vec<_> = fold.families().map(|(_, of)| of.display_name()).collect();
                let what = format!("it has no column family {family:?}, only {}", known.join(", "));
                return Err(CaptureError::Refused { path: self.main().path().to_owned(), what });
            }
            let mut places = Vec::new();
            for (i, path) in paths.iter().enumerate() {
                let name = format!("cf_path-{}-{i}", plain_name(family));
                places.push(self.add(
                    path,
                    name,
                    format!("cf_paths[{i}] of the column family {family:?}"),
                )?);
            }
            self.cf_paths.insert(family.clone().into_bytes(), places);
        }
        if self.told {
            return Ok(());
        }
        let mut fewest = self.count_missing(fold)?;
        if fewest == 0 {
            // The diary is not looked at: it may be anything.
            return Ok(());
        }
        let mut best: Option<Vec<PathBuf>> = None;
        for head in diaries(self.main(), settings)? {
            if fewest == 0 {
                break;
            }
            let resolve = |path: &PathBuf| owner.map_or_else(|| path.clone(), |owner| owner.resolve(path));
            // The database's own directory comes first in its diary. One that names another was copied along with the files:
            // what it calls its paths are those of the original.
            let of_another = |path: &PathBuf| !same_path(&resolve(path), self.main().path());
            if head.db_paths.first().is_some_and(of_another) {
                continue;
            }
            let paths: Vec<PathBuf> = head.db_paths.iter().map(resolve).collect();
            if paths.is_empty() || !paths.iter().all(|path| path.is_dir()) {
                continue;
            }
            let known = self.dirs.len();
            self.db_paths = self.add_db_paths(&paths)?;
            let missing = self.count_missing(fold)?;
            // Directories of a candidate that is not taken would lend their names to others.
            self.dirs.truncate(known);
            self.db_paths = vec![MAIN];
            if missing < fewest {
                fewest = missing;
                best = Some(paths);
            }
        }
        if let Some(paths) = best {
            self.db_paths = self.add_db_paths(&paths)?;
        }
        Ok(())
    }

    fn count_missing(&self, fold: &VersionFold) -> Result<usize, CaptureError> {
        let mut missing = 0;
        for (_, family) in fold.families() {
            missing += self.count_missing_of(family)?;
        }
        Ok(missing)
    }

    fn count_missing_of(&self, family: &Family) -> Result<usize, CaptureError> {
        let mut missing = 0;
        for (&number, table) in &family.tables {
            let dir = &self.get(self.of_table(family, table.path_id)).dir;
            missing += usize::from(find_table(dir, number)?.is_none());
        }
        Ok(missing)
    }

    /// Why a live file is not where it should be, once it is clear that nothing moved.
    pub(crate) fn explain_missing(
        &self,
        fold: &VersionFold,
        family: u32,
        number: u64,
        owner: Option<&Owner>,
    ) -> Result<CaptureError, CaptureError> {
        let Some((_, of)) = fold.families().find(|(id, _)| *id == family) else {
            return Ok(CaptureError::Vanished { path: self.main().path().to_owned() });
        };
        let path_id = of.tables.get(&number).map_or(0, |table| table.path_id);
        let dir = self.get(self.of_table(of, path_id)).dir.path();
        let elsewhere = self.tables_open_elsewhere(owner);
        let seen = match elsewhere.as_slice() {
            [] => String::new(),
            dirs => format!(" (its owner has tables open in {})", dirs.join(", ")),
        };
        let name = of.display_name();
        let told = self.cf_paths.contains_key(&of.name) || self.told;
        let all_of_family = self.count_missing_of(of)? == of.tables.len() && !of.tables.is_empty();
        let all = all_of_family && self.count_missing(fold)? == fold.table_count();
        let needs = |flag, why| CaptureError::NeedsFlag { path: self.main().path().to_owned(), flag, why };
        if path_id != 0 && !told {
            let why = format!(
                "table {number} is in path {path_id} of db_paths or cf_paths, which no file names{seen}"
            );
            return Ok(needs("--db-path", why));
        }
        if !told && (all || (all_of_family && !elsewhere.is_empty() && fold.families().count() == 1)) {
            let why = format!("none of its tables is in {}{seen}", dir.display());
            return Ok(needs("--db-path", why));
        }
        if self.told && all && !self.cf_paths.contains_key(&of.name) {
            let why = format!("none of its tables is in {}, which was given{seen}", dir.display());
            return Ok(needs("--db-path", why));
        }
        if !self.cf_paths.contains_key(&of.name) && (all_of_family || !elsewhere.is_empty()) {
            let why =
                format!("table {number} of the column family {name:?} is not in {}{seen}", dir.display());
            return Ok(needs("--cf-path", why));
        }
        let what = format!(
            "its MANIFEST says that file {number} of the column family {name:?} is live, and it is not there"
        );
        Ok(CaptureError::Corrupt { path: dir.to_owned(), what })
    }

    /// Directories that are not known here and in which the owner has tables open. It may have other databases too.
    fn tables_open_elsewhere(&self, owner: Option<&Owner>) -> Vec<String> {
        let files = owner.and_then(Owner::open_files).unwrap_or_default();
        let mut dirs: Vec<String> = files
            .into_iter()
            .filter(|file| matches!(file.name, FileName::Table(_) | FileName::Blob(_)))
            .filter(|file| !self.dirs.iter().any(|known| same_path(known.dir.path(), &file.dir)))
            .map(|file| file.dir.display().to_string())
            .collect();
        dirs.sort_unstable();
        dirs.dedup();
        dirs
    }

    /// Finds out where logs are.
    pub(crate) fn find_logs(
        &mut self,
        fold: &VersionFold,
        options: &CaptureOptions,
        settings: &OptionsFile,
        owner: Option<&Owner>,
    ) -> Result<(), CaptureError> {
        let wanted = match (&options.wal_dir, settings.wal_dir()) {
            (Some(told), _) => Some(told.clone()),
            (None, Some(set)) => self.believe(fold, &set, settings, owner)?,
            (None, None) => None,
        };
        self.log_dir = match wanted {
            Some(path) => self.add(&path, "wal_dir".to_owned(), "wal_dir".to_owned())?,
            None => MAIN,
        };
        Ok(())
    }

    /// Whether the log directory of an OPTIONS file is the one of this database. A copy or a checkpoint carries the OPTIONS of
    /// the original, whose logs are not its own. `None`: logs are in the main directory.
    fn believe(
        &self,
        fold: &VersionFold,
        set: &Path,
        settings: &OptionsFile,
        owner: Option<&Owner>,
    ) -> Result<Option<PathBuf>, CaptureError> {
        let main = self.main();
        let path = match owner {
            Some(owner) => owner.resolve(set),
            None => main.path().join(set),
        };
        let needs = |why| CaptureError::NeedsFlag { path: main.path().to_owned(), flag: "--wal-dir", why };
        let logs_in_main = has_needed_log(main, fold)?;
        if !path.is_dir() {
            if owner.is_none() && logs_in_main {
                return Ok(None);
            }
            return Err(needs(format!(
                "its OPTIONS file names the log directory {}, which is not there",
                path.display()
            )));
        }
        let dir = SourceDir::open(&path)?;
        if is_same_dir(&dir, main)? {
            return Ok(None);
        }
        if owner.is_some() {
            return Ok(Some(path));
        }
        // Nobody has it open. Never opened where it lies: then what OPTIONS says was meant for another place.
        let opened_here = main.stat(os("LOCK"))?.is_some();
        let of_another_database = dir.stat(os("CURRENT"))?.is_some();
        if logs_in_main && !opened_here || of_another_database {
            return Ok(None);
        }
        if logs_in_main && has_needed_log(&dir, fold)? {
            let why = format!("there are logs in it and in {}, which its OPTIONS file names", path.display());
            return Err(needs(why));
        }
        if logs_in_main {
            return Ok(None);
        }
        // As a restore lays it out, which names it in full.
        if set.is_absolute() && lies_within(&path, main.path()) {
            return Ok(Some(path));
        }
        if !opened_here {
            if !has_needed_log(&dir, fold)? {
                return Ok(None);
            }
            return Err(needs(format!(
                "it was never opened where it lies, and its OPTIONS file names the log directory {}, which may be another \
                 database's; for a checkpoint that needs no log give its own directory",
                path.display()
            )));
        }
        // LOCK may have been copied along. The original would go on writing into the directory that is named here.
        let last_opened =
            diaries(main, settings)?.into_iter().find_map(|head| head.db_paths.into_iter().next());
        match last_opened {
            // What a path meant that was not given in full, only the program knows that gave it.
            Some(last) if last.is_relative() || set.is_relative() => Err(needs(format!(
                "its OPTIONS file names the log directory {}, and it was opened last as {}, from a directory that is in no file",
                set.display(),
                last.display()
            ))),
            Some(last) if same_path(&last, main.path()) => Ok(Some(path)),
            Some(last) => Err(needs(format!(
                "its OPTIONS file names the log directory {}, but it was opened last as {}: a copy, or it was moved",
                path.display(),
                last.display()
            ))),
            None => Err(needs(format!(
                "its OPTIONS file names the log directory {}, and no file says that the database was opened where it lies",
                path.display()
            ))),
        }
    }

    /// Refuses a log directory that the owner does not use. An owner always has its newest log open: if it has logs open,
    /// but none of the directory that was found, that directory is the wrong one.
    pub(crate) fn check_logs_with_owner(&self, owner: Option<&Owner>) -> Result<(), CaptureError> {
        let Some(owner) = owner else { return Ok(()) };
        let dir = &self.logs().dir;
        let mut elsewhere = Vec::new();
        // A log may be switched between the look at the process and the look at the directory.
        for _ in 0..3 {
            let Some(open) = owner.open_files() else { return Ok(()) };
            elsewhere.clear();
            for file in open {
                let FileName::Log(number) = file.name else { continue };
                let here = dir.stat(os(&log_name(number)))?;
                if here.is_some_and(|here| (here.device, here.inode) == (file.device, file.inode)) {
                    return Ok(());
                }
                // Another database of the same process, which keeps its logs in its own directory.
                if !file.dir.join("CURRENT").exists() {
                    elsewhere.push(file.dir.display().to_string());
                }
            }
            if elsewhere.is_empty() {
                return Ok(());
            }
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        elsewhere.sort_unstable();
        elsewhere.dedup();
        Err(CaptureError::NeedsFlag {
            path: self.main().path().to_owned(),
            flag: "--wal-dir",
            why: format!(
                "process {} writes its logs in {}, not in {}",
                owner.pid,
                elsewhere.join(", "),
                dir.path().display()
            ),
        })
    }
}

/// The file of table `number`, under either of its names.
pub(crate) fn find_table(dir: &SourceDir, number: u64) -> Result<Option<FileMeta>, CaptureError> {
    for name in table_names(number, false) {
        if let Some(meta) = dir.stat(os(&name))? {
            return Ok(Some(meta));
        }
    }
    Ok(None)
}

/// The names that table `number` may have, the likelier first.
pub(crate) fn table_names(number: u64, leveldb: bool) -> [String; 2] {
    let (sst, ldb) = (format!("{number:06}.sst"), format!("{number:06}.ldb"));
    if leveldb { [ldb, sst] } else { [sst, ldb] }
}

pub(crate) fn blob_name(number: u64) -> String {
    format!("{number:06}.blob")
}

fn log_name(number: u64) -> String {
    format!("{number:06}.log")
}

fn has_needed_log(dir: &SourceDir, fold: &VersionFold) -> Result<bool, CaptureError> {
    use std::os::unix::ffi::OsStrExt;
    let needed = |name: &std::ffi::OsString| match FileName::parse(name.as_bytes()) {
        Some(FileName::Log(number)) => fold.needs_log(number),
        _ => false,
    };
    Ok(dir.list()?.iter().any(needed))
}

fn is_same_dir(a: &SourceDir, b: &SourceDir) -> Result<bool, CaptureError> {
    let identity = |dir: &SourceDir| -> Result<_, CaptureError> {
        Ok(dir.stat(os("."))?.map(|meta| (meta.device, meta.inode)))
    };
    Ok(identity(a)? == identity(b)?)
}

fn same_path(a: &Path, b: &Path) -> bool {
    a == b || matches!((a.canonicalize(), b.canonicalize()), (Ok(a), Ok(b)) if a == b)
}

/// The heads of the diaries, newest first, as far as they are there: programs that only read make new ones as well, and theirs
/// need not know the paths.
fn diaries(main: &SourceDir, settings: &OptionsFile) -> Result<Vec<InfoLogHead>, CaptureError> {
    const MOST: usize = 8;
    let log_dir = settings.db_log_dir().and_then(|dir| SourceDir::open(&main.path().join(dir)).ok());
    let (dir, name) = match &log_dir {
        Some(dir) => (dir, name_in_log_dir(main.path())),
        None => (main, "LOG".to_owned()),
    };
    let old = format!("{name}.old.");
    let mut names: Vec<String> = dir.list()?.into_iter().filter_map(|name| name.into_string().ok()).collect();
    names.retain(|listed| *listed == name || listed.starts_with(&old));
    names.sort_unstable_by_key(|listed| {
        // The diary itself, then old ones by falling time.
        let time = listed.strip_prefix(&old).and_then(|time| time.parse::<u64>().ok());
        std::cmp::Reverse(time.unwrap_or(u64::MAX))
    });
    let mut heads = Vec::new();
    for name in names.iter().take(MOST) {
        let Some(file) = dir.open_file(OsStr::new(name))? else { continue };
        let mut head = vec![0; HEAD];
        let mut length = 0;
        while let Some(rest) = head.get_mut(length..).filter(|rest| !rest.is_empty()) {
            let read = file
                .read_at(rest, length as u64)
                .map_err(CaptureError::io("read", &dir.path().join(name)))?;
            if read == 0 {
                break;
            }
            length += read;
        }
        head.truncate(length);
        heads.push(InfoLogHead::parse(&head));
    }
    Ok(heads)
}

/// A family's name as part of a directory's.
fn plain_name(family: &str) -> String {
    use std::fmt::Write;
    let mut name = String::new();
    for byte in family.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.') {
            name.push(char::from(byte));
        } else {
            write!(name, "%{byte:02x}").expect("writing to a String cannot fail");
        }
    }
    if name.len() > 200 {
        name.truncate(180);
        write!(name, "-{:016x}", xxhash_rust::xxh3::xxh3_64(family.as_bytes()))
            .expect("writing to a String cannot fail");
    }
    name
}
