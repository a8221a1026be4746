//! Checks an image, or a restored database that was not opened yet, against its own MANIFEST.

use std::ffi::OsStr;
use std::fs::File;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use rustix::fs::FileType;
use tokio_util::sync::CancellationToken;

use super::directories::{blob_name, table_names};
use super::file_name::{FileName, manifest_named_by, newest_options};
use super::log_end::{Dialect, LogFile, ZeroHeader};
use super::logs::{BrokenLog, not_whole};
use super::manifest::Manifest;
use super::options_file::OptionsFile;
use super::setback::Setback;
use super::table_identity::find_damage;
use super::version_fold::{Family, VersionFold};
use crate::capture::check;
use crate::pin::{FileMeta, SourceDir, os};
use crate::{CaptureError, ValidationReport};

const BLOB_FOOTER: u64 = 32;
const BLOB_MAGIC: u32 = 0x0024_8f37;

/// See [`crate::validate`]. Files are looked for in `dir` and in the directories below it that a restore makes of
/// `wal_dir`, `db_paths` and `cf_paths`.
pub(crate) fn validate(dir: &Path, cancel: &CancellationToken) -> Result<ValidationReport, CaptureError> {
    let main = SourceDir::open(dir)?;
    if !super::is_database(&main)? {
        return Err(CaptureError::NotADatabase {
            path: dir.to_owned(),
            engine: "RocksDB or LevelDB",
            reason: "its CURRENT does not name a MANIFEST that is there".to_owned(),
        });
    }
    let options = read_options(&main)?;
    let report = ValidationReport::default();
    let mut checked = Checked { places: places(main, options.as_ref())?, options, report, cancel };
    let manifest = checked.pointers()?;
    for (_, family) in manifest.fold().families() {
        checked.family(&manifest, family)?;
    }
    checked.logs(manifest.fold())?;
    checked.options();
    Ok(checked.report)
}

/// The newest OPTIONS file.
struct Options {
    name: String,
    size: u64,
    wal_dir: WalDir,
}

/// Where OPTIONS says that the logs are.
enum WalDir {
    /// In the database's own directory, or it does not say.
    Main,
    /// Below that, resolved: there a restore puts them, under a name of the user's choice.
    Below(PathBuf),
    /// As it stands there.
    Elsewhere(PathBuf),
}

impl WalDir {
    fn of(options: &OptionsFile, main: &Path) -> Self {
        let Some(wal_dir) = options.wal_dir() else { return Self::Main };
        match (main.join(&wal_dir).canonicalize(), main.canonicalize()) {
            (Ok(found), Ok(main)) if found == main => Self::Main,
            (Ok(found), Ok(main)) if found.starts_with(&main) => Self::Below(found),
            _ => Self::Elsewhere(wal_dir),
        }
    }
}

/// `None`: there is no OPTIONS file, as in LevelDB.
fn read_options(main: &SourceDir) -> Result<Option<Options>, CaptureError> {
    let Some(name) = newest_options(main.list()?) else { return Ok(None) };
    let bytes = main.read(&name)?.unwrap_or_default();
    let wal_dir = WalDir::of(&OptionsFile::parse(&bytes), main.path());
    Ok(Some(Options { name: name.to_string_lossy().into_owned(), size: bytes.len() as u64, wal_dir }))
}

/// The directory itself and those below it in which parts of a restored database may be.
fn places(main: SourceDir, options: Option<&Options>) -> Result<Vec<SourceDir>, CaptureError> {
    let mut places = Vec::new();
    for name in main.list()? {
        let of_a_restore = name == "wal_dir" || is_of_tables(&name);
        if of_a_restore && main.path().join(&name).is_dir() {
            places.push(SourceDir::open(&main.path().join(&name))?);
        }
    }
    if let Some(Options { wal_dir: WalDir::Below(logs), .. }) = options {
        let is_logs = |place: &SourceDir| place.path().canonicalize().is_ok_and(|place| place == *logs);
        if !places.iter().any(is_logs) {
            places.push(SourceDir::open(logs)?);
        }
    }
    places.insert(0, main);
    Ok(places)
}

/// Whether a restore gives this name to a directory of tables.
fn is_of_tables(name: &OsStr) -> bool {
    [&b"db_path-"[..], b"cf_path-"].iter().any(|prefix| name.as_bytes().starts_with(prefix))
}

struct Checked<'a> {
    /// The main directory first.
    places: Vec<SourceDir>,
    options: Option<Options>,
    report: ValidationReport,
    cancel: &'a CancellationToken,
}

impl Checked<'_> {
    fn main(&self) -> &SourceDir {
        self.places.first().expect("the main directory is the first place")
    }

    fn count(&mut self, size: u64) {
        self.report.files += 1;
        self.report.bytes += size;
    }

    fn remark(&mut self, remark: String) {
        self.report.remarks.push(remark);
    }

    fn pointers(&mut self) -> Result<Manifest, CaptureError> {
        let main = self.main();
        let path = main.path().join("CURRENT");
        let gone = || CaptureError::Vanished { path: path.clone() };
        let current = main.read(os("CURRENT"))?.ok_or_else(gone)?;
        let name = manifest_named_by(&current).ok_or_else(gone)?.to_owned();
        let manifest = match Manifest::open(main, &name, self.cancel) {
            Ok(manifest) => manifest.ok_or_else(gone)?,
            Err(Setback::Fatal(error) | Setback::Wrong(error)) => return Err(error),
            Err(Setback::Moved(_) | Setback::Missing { .. }) => return Err(gone()),
        };
        let mut others = 0;
        for listed in main.list()? {
            let is_manifest = matches!(FileName::parse(listed.as_bytes()), Some(FileName::Manifest(_)));
            others += u32::from(is_manifest && listed.as_bytes() != name.as_bytes());
        }
        if others > 0 {
            self.remark(format!(
                "{others} MANIFEST files lie beside the one that counts; best_efforts_recovery might pick one of them"
            ));
        }
        self.count(current.len() as u64);
        self.count(manifest.meta().size);
        Ok(manifest)
    }

    fn family(&mut self, manifest: &Manifest, family: &Family) -> Result<(), CaptureError> {
        let name = family.display_name();
        if let Some(number) = family.missing_blobs().first() {
            let what = format!(
                "tables of the column family {name:?} refer to blob file {number}, which it does not know"
            );
            return Err(CaptureError::Corrupt { path: manifest.path().to_owned(), what });
        }
        for (&number, table) in &family.tables {
            check(self.cancel)?;
            let path = self.live_file(&table_names(number, false), table.size, &name)?;
            check_table(path, table.size)?;
        }
        for (number, size) in family.live_blobs() {
            let path = self.live_file(&[blob_name(number)], size, &name)?;
            check_blob_footer(&path, size)?;
        }
        Ok(())
    }

    fn live_file(&mut self, names: &[String], size: u64, family: &str) -> Result<PathBuf, CaptureError> {
        let mut wrong = None;
        for place in &self.places {
            for name in names {
                let Some(meta) = place.stat(os(name))? else { continue };
                let path = place.path().join(name);
                if meta.size == size {
                    self.count(size);
                    return Ok(path);
                }
                wrong = Some((path, meta.size));
            }
        }
        Err(match wrong {
            Some((path, length)) => CaptureError::Corrupt {
                path,
                what: format!("it has {length} bytes where its MANIFEST says {size}"),
            },
            None => CaptureError::Corrupt {
                path: self.main().path().join(names.first().map_or("", String::as_str)),
                what: format!("it is a live file of the column family {family:?}, and it is not there"),
            },
        })
    }

    fn logs(&mut self, fold: &VersionFold) -> Result<(), CaptureError> {
        let mut logs = Vec::new();
        for place in self.places.iter().filter(|place| !place.path().file_name().is_some_and(is_of_tables)) {
            find_logs(place, fold, &mut logs)?;
        }
        if let Some(Options { name, wal_dir: WalDir::Elsewhere(wal_dir), .. }) = &self.options
            && logs.is_empty()
        {
            // A database where it is used, and no copy: an image would not name that place.
            if !wal_dir.is_dir() {
                let what =
                    format!("{name} names the log directory {}, which is not there", wal_dir.display());
                return Err(CaptureError::Corrupt { path: self.main().path().to_owned(), what });
            }
            find_logs(&SourceDir::open(wal_dir)?, fold, &mut logs)?;
        }
        logs.sort_unstable_by_key(|(number, ..)| *number);
        if let Some([(_, one, _), (_, two, _)]) = logs.array_windows::<2>().find(|[one, two]| one.0 == two.0)
        {
            let what = format!("{} is a log of the same number", two.display());
            return Err(CaptureError::Corrupt { path: one.clone(), what });
        }
        if logs.is_empty() {
            // Checkpoints that were never opened are sound without; their directory was never locked.
            let opened = self.main().stat(os("LOCK"))?.is_some();
            // Whoever restores logs into a directory of their own writes that into the options.
            let restored = matches!(self.options, Some(Options { wal_dir: WalDir::Below(_), .. }));
            let what = "there is no log that its MANIFEST needs";
            if opened || restored {
                return Err(CaptureError::Corrupt {
                    path: self.main().path().to_owned(),
                    what: what.to_owned(),
                });
            }
            self.remark(format!("{what}: sound for a checkpoint, else what was not in tables yet is lost"));
        }
        for (number, size) in fold.synced_logs().filter(|&(number, _)| number >= fold.needed_logs_from()) {
            let found = logs.iter().find(|(listed, ..)| *listed == number);
            if found.is_none_or(|(.., meta)| meta.size < size) {
                let what = format!(
                    "log {number}, of which its MANIFEST says that it has {size} bytes, is not there or shorter"
                );
                return Err(CaptureError::Corrupt { path: self.main().path().to_owned(), what });
            }
        }
        let dialect = if self.options.is_some() { Dialect::RocksDb } else { Dialect::LevelDb };
        for (at, (number, path, meta)) in logs.iter().enumerate() {
            let file = File::open(path).map_err(CaptureError::io("open", path))?;
            let log = LogFile { file: &file, cancel: self.cancel, dialect };
            let scan = log.scan(*number, meta.size, ZeroHeader::Skips).map_err(|error| error.of(path))?;
            if let Some(broken) = BrokenLog::find(log, &scan, meta.size).map_err(|error| error.of(path))? {
                return Err(CaptureError::Corrupt { path: path.clone(), what: broken.to_string() });
            }
            self.count(meta.size);
            let go_on = logs.iter().skip(at + 1).any(|(.., younger)| younger.size > 0);
            if scan.end() < meta.size && go_on {
                self.remark(format!("{}: {}", path.display(), not_whole(scan.end())));
            } else if scan.end() < meta.size {
                self.remark(format!(
                    "{}: whole records end at byte {} of {}; how the rest is taken depends on wal_recovery_mode",
                    path.display(),
                    scan.end(),
                    meta.size
                ));
            }
        }
        Ok(())
    }

    fn options(&mut self) {
        let Some(Options { name, size, wal_dir }) = &self.options else { return };
        let remark = match wal_dir {
            WalDir::Main | WalDir::Below(_) => None,
            WalDir::Elsewhere(wal_dir) => Some(format!(
                "{name} names the log directory {}: a program that loads these options uses, and deletes, the logs there",
                wal_dir.display()
            )),
        };
        self.count(*size);
        self.report.remarks.extend(remark);
    }
}

/// Those that are needed.
fn find_logs(
    place: &SourceDir,
    fold: &VersionFold,
    logs: &mut Vec<(u64, PathBuf, FileMeta)>,
) -> Result<(), CaptureError> {
    for name in place.list()? {
        let Some(FileName::Log(number)) = FileName::parse(name.as_bytes()) else { continue };
        let Some(meta) = place.stat(&name)?.filter(|_| fold.needs_log(number)) else { continue };
        let path = place.path().join(&name);
        if meta.kind != FileType::RegularFile {
            return Err(CaptureError::Corrupt { path, what: "it is not a regular file".to_owned() });
        }
        logs.push((number, path, meta));
    }
    Ok(())
}

fn check_table(path: PathBuf, size: u64) -> Result<(), CaptureError> {
    let file = File::open(&path).map_err(CaptureError::io("open", &path))?;
    match find_damage(&file, size).map_err(CaptureError::io("read", &path))? {
        None => Ok(()),
        Some(what) => Err(CaptureError::Corrupt { path, what: what.to_owned() }),
    }
}

fn check_blob_footer(path: &Path, size: u64) -> Result<(), CaptureError> {
    let file = File::open(path).map_err(CaptureError::io("open", path))?;
    let mut magic = [0; 4];
    let at = size.saturating_sub(BLOB_FOOTER);
    file.read_exact_at(&mut magic, at).map_err(CaptureError::io("read", path))?;
    if u32::from_le_bytes(magic) == BLOB_MAGIC {
        return Ok(());
    }
    Err(CaptureError::Corrupt { path: path.to_owned(), what: "it does not end like a blob file".to_owned() })
}
