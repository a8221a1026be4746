//! One look at a live database: pointers, tables, logs, pointers again.
//!
//! Why an accepted look is one instant: a MANIFEST is in force from before the first look at it to after the second. What
//! it calls live is deleted only after an edit says otherwise, so all of it was there, and is pinned. Logs that it needs
//! go only after an edit as well. The directory is listed twice, since a listing is no single moment, so that none is missed that is older
//! than the newest. They are noted newest first, each with its end: an engine completes a log before it begins the next, so when the
//! newest held anything, all older ones were whole, and what was noted is a prefix.

use std::collections::{HashMap, HashSet};
use std::ffi::OsString;
use std::fs::File;
use std::path::PathBuf;

use stillframe_storage::RelativePath;

use super::directories::{Directories, blob_name, table_names};
use super::file_name::{manifest_named_by, newest_options};
use super::log_end::{Dialect, ZeroHeader};
use super::logs::{Logs, Reuse, needed_logs};
use super::manifest::Manifest;
use super::options_file::OptionsFile;
use super::owner::{Owner, owner_of};
use super::sabotage::Sabotage;
use super::setback::{Patience, Setback};
use super::version_fold::VersionFold;
use crate::image::ImageBuilder;
use crate::pin::{FileMeta, SourceDir, os};
use crate::staging::Staging;
use crate::window::{Attempt, until_still};
use crate::{CaptureError, CaptureOptions, Context, Source};

/// Larger files than this are not what their names say. OPTIONS tells of each column family.
const MAX_OPTIONS: u64 = 64 << 20;
const MAX_POINTER: u64 = 64 << 10;

/// A capture in progress, with all that is kept from one attempt to the next.
pub(crate) struct Capture<'a> {
    pub(crate) context: &'a Context<'a>,
    pub(crate) options: &'a CaptureOptions,
    pub(crate) sabotage: Sabotage,
    /// The database's directory, absolute.
    pub(crate) path: PathBuf,
    pub(crate) directories: Directories,
    pub(crate) builder: ImageBuilder,
    pub(crate) logs: Logs,
    pub(crate) settings: Settings,
    owner: Option<Owner>,
    /// CURRENT's bytes as last read.
    current: Vec<u8>,
    pub(crate) manifest: Option<Manifest>,
    /// What is pinned, by number: tables and blob files share one sequence.
    pinned: HashMap<u64, PinnedFile>,
    /// Set when CURRENT named another MANIFEST: names may mean other files than before.
    recheck: bool,
    patience: Patience,
    /// Only for [`Sabotage::HandlesInsteadOfLinks`].
    pub(crate) handles: HashMap<RelativePath, (File, FileMeta)>,
}

/// A live file in hand.
#[derive(Debug, Clone)]
pub(crate) struct PinnedFile {
    pub(crate) path: RelativePath,
    /// Place of its directory.
    pub(crate) dir: usize,
    /// What the MANIFEST says its length is.
    pub(crate) size: u64,
    pub(crate) is_blob: bool,
    /// A table's, if the MANIFEST has it.
    pub(crate) unique_id: Option<[u8; 16]>,
}

/// A live file as the MANIFEST describes it.
struct Wanted<'n> {
    family: u32,
    number: u64,
    /// Place of its directory.
    dir: usize,
    /// Where in the image it goes, if not into its main directory: below a directory of this name.
    below: &'n str,
    /// Names that it may have.
    names: &'n [String],
    size: u64,
    is_blob: bool,
    unique_id: Option<[u8; 16]>,
}

/// The newest OPTIONS file, as last read.
#[derive(Debug, Default)]
pub(crate) struct Settings {
    pub(crate) file: Option<SmallFile>,
    pub(crate) options: OptionsFile,
    /// The engine writes new logs over old ones.
    recycles_logs: bool,
}

/// A file that is copied whole.
#[derive(Debug)]
pub(crate) struct SmallFile {
    pub(crate) name: OsString,
    pub(crate) bytes: Vec<u8>,
    pub(crate) meta: FileMeta,
}

/// What an accepted attempt holds besides pins.
#[derive(Debug)]
pub(crate) struct Accepted {
    pub(crate) current: SmallFile,
    /// Length of the MANIFEST that counts.
    pub(crate) manifest_length: u64,
    pub(crate) identity: Option<SmallFile>,
}

impl<'a> Capture<'a> {
    /// Opens the source and refuses what cannot be captured at all.
    pub(crate) fn open(
        source: &Source,
        options: &'a CaptureOptions,
        context: &'a Context<'a>,
        sabotage: Sabotage,
    ) -> Result<Self, CaptureError> {
        let not_one = |reason: &str| CaptureError::NotADatabase {
            path: source.path.clone(),
            engine: "RocksDB or LevelDB",
            reason: reason.to_owned(),
        };
        match std::fs::metadata(&source.path) {
            Ok(meta) if !meta.is_dir() => return Err(not_one("it is not a directory")),
            Ok(_) => {}
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Err(not_one("there is no such directory"));
            }
            Err(error) => return Err(CaptureError::from_io("open", &source.path, error)),
        }
        let path = std::fs::canonicalize(&source.path).map_err(CaptureError::io("open", &source.path))?;
        let main = SourceDir::open(&path)?;
        if !super::is_database(&main)? {
            return Err(not_one(
                "its CURRENT does not name a MANIFEST that is there; or it is encrypted by its own Env",
            ));
        }
        refuse_by_name(&main)?;
        let owner = owner_of(&path);
        let staging = Staging::for_source(&path, options, context)?;
        Ok(Self {
            context,
            options,
            sabotage,
            path,
            directories: Directories::new(main),
            builder: ImageBuilder::new(staging),
            logs: Logs::default(),
            settings: Settings::default(),
            owner,
            current: Vec::new(),
            manifest: None,
            pinned: HashMap::new(),
            recheck: false,
            patience: Patience::default(),
            handles: HashMap::new(),
        })
    }

    /// Learns where everything is and pins what is live now, so that the attempts that count are short.
    pub(crate) fn prepare(&mut self) -> Result<(), CaptureError> {
        until_still(&self.path.clone(), self.options.deadline, self.context, || {
            match self.read_pointers().and_then(|()| self.learn_settings_anew()) {
                Ok(()) => Ok(Attempt::Accepted(())),
                Err(setback) => Ok(Attempt::Moved(self.bear(setback)?)),
            }
        })?;
        let Some(manifest) = &self.manifest else { return Ok(()) };
        let (options, owner) = (&self.settings.options, self.owner.as_ref());
        self.directories.find_tables(manifest.fold(), self.options, options, owner)?;
        self.directories.find_logs(manifest.fold(), self.options, options, owner)?;
        if self.sabotage != Sabotage::NoLogsAccepted {
            self.directories.check_logs_with_owner(owner)?;
        }
        if let Err(setback) = self.look() {
            self.bear(setback)?;
        }
        Ok(())
    }

    /// One attempt.
    pub(crate) fn attempt(&mut self) -> Result<Attempt<Accepted>, CaptureError> {
        match self.look() {
            Ok(accepted) => Ok(Attempt::Accepted(accepted)),
            Err(setback) => {
                let what = self.bear(setback)?;
                self.release_dead();
                Ok(Attempt::Moved(what))
            }
        }
    }

    /// What to say of a setback, or the error that it turned out to be.
    fn bear(&mut self, setback: Setback) -> Result<String, CaptureError> {
        let error = match setback {
            Setback::Fatal(error) => return Err(error),
            Setback::Moved(what) => return Ok(what),
            Setback::Missing { number, .. } if !self.patience.is_over(self.pointer_bytes()) => {
                return Ok(format!("live file {number} went away"));
            }
            Setback::Wrong(error) if !self.patience.is_over(self.pointer_bytes()) => {
                return Ok(error.to_string());
            }
            Setback::Wrong(error) => error,
            Setback::Missing { family, number } => {
                let fold = self.fold().cloned().unwrap_or_default();
                self.directories.explain_missing(&fold, family, number, self.owner.as_ref())?
            }
        };
        Err(error)
    }

    fn pointer_bytes(&self) -> Vec<u8> {
        let mut bytes = self.current.clone();
        if let Some(manifest) = &self.manifest {
            bytes.extend(manifest.meta().inode.to_le_bytes());
            bytes.extend(manifest.meta().size.to_le_bytes());
        }
        bytes
    }

    fn look(&mut self) -> Result<Accepted, Setback> {
        self.look_first()?;
        self.look_again()
    }

    /// Pointers, and hold of all that they need.
    fn look_first(&mut self) -> Result<(), Setback> {
        self.read_pointers()?;
        self.pin_live()?;
        self.sabotage.pause(Sabotage::NoSecondLook);
        let names = self.directories.main().list()?;
        self.note_logs(&names)?;
        self.learn_settings(&names)
    }

    /// CURRENT, the MANIFEST that it names, and what that says.
    fn read_pointers(&mut self) -> Result<(), Setback> {
        let main = self.directories.main();
        let current = main.path().join("CURRENT");
        let Some(file) = self.read_small("CURRENT", MAX_POINTER)? else {
            return Err(Setback::Wrong(CaptureError::Vanished { path: current }));
        };
        let Some(name) = manifest_named_by(&file.bytes) else {
            let what = "it does not name a MANIFEST, followed by a newline".to_owned();
            return Err(Setback::Wrong(CaptureError::Corrupt { path: current, what }));
        };
        // A setback in the middle of reading leaves nothing half read behind.
        let known = self.manifest.take();
        let advanced = match known {
            Some(mut manifest) => manifest.advance(main, name, self.context.cancel)?.then_some(manifest),
            None => None,
        };
        self.manifest = match advanced {
            Some(manifest) => Some(manifest),
            None => {
                self.recheck = !self.pinned.is_empty();
                let opened = Manifest::open(main, name, self.context.cancel)?;
                let gone = || CaptureError::Vanished { path: main.path().join(name) };
                Some(opened.ok_or_else(|| Setback::Wrong(gone()))?)
            }
        };
        self.current = file.bytes;
        Ok(())
    }

    pub(crate) fn fold(&self) -> Option<&VersionFold> {
        self.manifest.as_ref().map(Manifest::fold)
    }

    pub(crate) fn manifest(&self) -> &Manifest {
        self.manifest.as_ref().expect("an accepted attempt has read a MANIFEST")
    }

    /// Every live table and blob file.
    fn pin_live(&mut self) -> Result<(), Setback> {
        let Some(manifest) = self.manifest.take() else { return Ok(()) };
        let pinned = self.pin_live_of(manifest.fold());
        self.manifest = Some(manifest);
        pinned
    }

    fn pin_live_of(&mut self, fold: &VersionFold) -> Result<(), Setback> {
        let recheck = self.recheck;
        for (family, of) in fold.families() {
            if let Some(number) = of.missing_blobs().first() {
                let what = format!("live tables refer to blob file {number}, which it does not know");
                let path = self.directories.main().path().join(self.current_name());
                return Err(Setback::Wrong(CaptureError::Corrupt { path, what }));
            }
            for (&number, table) in &of.tables {
                if recheck || !self.pinned.contains_key(&number) {
                    let dir = self.directories.of_table(of, table.path_id);
                    let names = &table_names(number, self.is_leveldb());
                    let (size, unique_id) = (table.size, table.unique_id);
                    // An engine without db_paths finds tables of path 0 in the main directory, whatever the path was. For
                    // others it must be given as many paths as there were, so these get directories of their own.
                    let own = |dir: usize| self.directories.get(dir).name.clone();
                    let below = &if table.path_id == 0 { String::new() } else { own(dir) };
                    let is_blob = false;
                    self.pin(&Wanted { family, number, dir, below, names, size, is_blob, unique_id })?;
                }
            }
            for (number, size) in of.live_blobs() {
                if recheck || !self.pinned.contains_key(&number) {
                    let dir = self.directories.of_table(of, 0);
                    let names = &[blob_name(number)];
                    let (below, is_blob, unique_id) = ("", true, None);
                    self.pin(&Wanted { family, number, dir, below, names, size, is_blob, unique_id })?;
                }
            }
        }
        self.recheck = false;
        Ok(())
    }

    fn pin(&mut self, wanted: &Wanted<'_>) -> Result<(), Setback> {
        let &Wanted { family, number, dir, below, names, size, is_blob, unique_id } = wanted;
        if number % 256 == 0 {
            self.context.check_cancelled()?;
        }
        for name in names {
            let path = if below.is_empty() { name.clone() } else { format!("{below}/{name}") };
            let path =
                RelativePath::from_bytes(path.as_bytes()).expect("a plain name, and digits with an ending");
            let Some(meta) = self.pin_as(dir, name, &path)? else { continue };
            if meta.size != size {
                let full = self.directories.get(dir).dir.path().join(name);
                self.builder.pins.release(&path);
                self.pinned.remove(&number);
                let what = format!("it has {} bytes where its MANIFEST says {size}", meta.size);
                return Err(Setback::Wrong(CaptureError::Corrupt { path: full, what }));
            }
            self.pinned.insert(number, PinnedFile { path, dir, size, is_blob, unique_id });
            return Ok(());
        }
        self.pinned.remove(&number);
        Err(Setback::Missing { family, number })
    }

    fn pin_as(&mut self, dir: usize, name: &str, path: &RelativePath) -> Result<Option<FileMeta>, Setback> {
        let dir = &self.directories.get(dir).dir;
        if self.sabotage == Sabotage::HandlesInsteadOfLinks {
            let Some(file) = dir.open_file(os(name))? else { return Ok(None) };
            let meta = FileMeta::of(&file).map_err(CaptureError::io("read", &dir.path().join(name)))?;
            self.handles.insert(path.clone(), (file, meta));
            return Ok(Some(meta));
        }
        let ImageBuilder { pins, staging, .. } = &mut self.builder;
        if let Some(pin) = pins.get(path) {
            // A copy does not keep its original's inode from being given to another file.
            let then = (pin.meta.size, pin.meta.modified);
            if dir.stat(os(name))?.is_none_or(|now| (now.size, now.modified) != then) {
                pins.release(path);
            }
        }
        match pins.pin(staging, dir, os(name), path) {
            Ok(pin) => Ok(pin.map(|pin| pin.meta)),
            // Cut while it was copied: it was live no more.
            Err(error @ CaptureError::Corrupt { .. }) => {
                // The next attempt copies to the same place.
                let _ = std::fs::remove_file(path.below(&staging.image_dir()));
                Err(Setback::Wrong(error))
            }
            Err(error) => Err(Setback::Fatal(error)),
        }
    }

    /// Needed logs, newest first. `in_main`: the names in the main directory.
    fn note_logs(&mut self, in_main: &[OsString]) -> Result<(), Setback> {
        let Some(manifest) = &self.manifest else { return Ok(()) };
        let fold = manifest.fold();
        let dir = &self.directories.logs().dir;
        let listed = if self.directories.logs_are_in_main() { None } else { Some(dir.list()?) };
        let first = listed.as_deref().unwrap_or(in_main);
        let second = if self.sabotage == Sabotage::LogsListedOnce { first.to_vec() } else { dir.list()? };
        let Some(mut needed) = needed_logs(first, second, |number| fold.needs_log(number)) else {
            return Err(Setback::Moved("logs came and went".to_owned()));
        };
        if self.sabotage == Sabotage::LogsOldestFirst {
            needed.reverse();
        }
        if needed.is_empty() && self.sabotage != Sabotage::NoLogsAccepted {
            self.accept_no_log()?;
        }
        let reuse = self.reuse();
        for (number, name) in &needed {
            if !self.logs.note(&mut self.builder.staging, dir, *number, name, reuse)? {
                return Err(Setback::Moved(format!("log {number} went away")));
            }
            self.sabotage.pause(Sabotage::LogsOldestFirst);
        }
        let numbers: HashSet<u64> = needed.iter().map(|(number, _)| *number).collect();
        self.logs.retain(|number| numbers.contains(&number));
        if !self.settings.recycles_logs && self.logs.are_recycled()? {
            self.settings.recycles_logs = true;
            if self.reuse() != reuse {
                return Err(Setback::Moved("logs turned out to be recycled".to_owned()));
            }
        }
        for (number, size) in fold.synced_logs().filter(|&(number, _)| number >= fold.needed_logs_from()) {
            let end = self.logs.get(number).map(super::logs::NotedLog::noted_end);
            if end.is_none_or(|end| end < size) {
                let what = format!(
                    "its MANIFEST says that log {number} has {size} synced bytes, and {}",
                    end.map_or_else(|| "it is not there".to_owned(), |end| format!("it has {end}"))
                );
                return Err(Setback::Wrong(CaptureError::Corrupt { path: dir.path().to_owned(), what }));
            }
        }
        Ok(())
    }

    fn reuse(&self) -> Reuse {
        match self.sabotage {
            Sabotage::RecycledLogsLate => Reuse::Never,
            Sabotage::ZeroHeaderEndsLog if self.settings.recycles_logs => Reuse::Recycles(ZeroHeader::Ends),
            _ if self.settings.recycles_logs => Reuse::Recycles(ZeroHeader::Skips),
            _ => Reuse::Never,
        }
    }

    /// A database that was opened where it lies has a log. A checkpoint that was never opened may have none.
    fn accept_no_log(&self) -> Result<(), Setback> {
        let main = self.directories.main();
        if self.directories.logs_are_in_main() && self.owner.is_none() && main.stat(os("LOCK"))?.is_none() {
            return Ok(());
        }
        Err(Setback::Wrong(CaptureError::NeedsFlag {
            path: main.path().to_owned(),
            flag: "--wal-dir",
            why: format!("there is no log that it needs in {}", self.directories.logs().dir.path().display()),
        }))
    }

    fn learn_settings_anew(&mut self) -> Result<(), Setback> {
        let names = self.directories.main().list()?;
        self.learn_settings(&names)
    }

    /// The newest OPTIONS file, if it is another one than before.
    fn learn_settings(&mut self, in_main: &[OsString]) -> Result<(), Setback> {
        let main = self.directories.main();
        let known = self.settings.file.as_ref().map(|file| &file.name);
        let Some(name) = newest_options(in_main).filter(|name| Some(*name) != known) else { return Ok(()) };
        let Some(text) = name.to_str() else { return Ok(()) };
        let Some(file) = self.read_small(text, MAX_OPTIONS)? else {
            return Err(Setback::Moved(format!("{text} was replaced")));
        };
        let options = OptionsFile::parse(&file.bytes);
        if let Some(family) = options.blob_direct_write_families().first() {
            let what = format!(
                "enable_blob_direct_write is set for the column family {family:?}: its values lie in blob files that no \
                 MANIFEST names yet, and the engine itself cannot replay them; switch it off"
            );
            return Err(Setback::Fatal(CaptureError::Refused { path: main.path().join(name), what }));
        }
        let moved = known.is_some() && options.wal_dir() != self.settings.options.wal_dir();
        let recycles_logs = self.settings.recycles_logs || options.recycles_logs();
        let changed = known.is_some() && recycles_logs != self.settings.recycles_logs;
        self.settings = Settings { file: Some(file), options, recycles_logs };
        if moved && let Some(manifest) = &self.manifest {
            // Opened again with another log directory.
            self.owner = owner_of(&self.path);
            let (options, owner) = (&self.settings.options, self.owner.as_ref());
            self.directories.find_logs(manifest.fold(), self.options, options, owner)?;
            self.directories.check_logs_with_owner(owner)?;
        }
        if moved || changed {
            self.logs.release_all();
            return Err(Setback::Moved("settings of the logs changed".to_owned()));
        }
        Ok(())
    }

    /// Whether all is as it was when the attempt began.
    fn look_again(&mut self) -> Result<Accepted, Setback> {
        let identity = self.read_small("IDENTITY", MAX_POINTER)?;
        let Some(current) = self.read_small("CURRENT", MAX_POINTER)? else {
            let path = self.directories.main().path().join("CURRENT");
            return Err(Setback::Wrong(CaptureError::Vanished { path }));
        };
        let manifest = self.manifest();
        let manifest_length = manifest.meta().size;
        if self.sabotage == Sabotage::NoSecondLook {
            let current = SmallFile { bytes: self.current.clone(), ..current };
            return Ok(Accepted { current, manifest_length, identity });
        }
        if current.bytes != self.current {
            return Err(Setback::Moved("CURRENT names another MANIFEST".to_owned()));
        }
        let now = self.directories.main().stat(os(manifest.name()))?;
        let stood = now.is_some_and(|now| manifest.is_same_file(&now) && now.size == manifest_length);
        if !stood {
            return Err(Setback::Moved(format!("{} grew", manifest.name())));
        }
        if let Some(name) = self.logs.find_moved(&self.directories.logs().dir)? {
            return Err(Setback::Moved(format!("log {} was replaced", name.display())));
        }
        Ok(Accepted { current, manifest_length, identity })
    }

    fn read_small(&self, name: &str, max: u64) -> Result<Option<SmallFile>, CaptureError> {
        use std::io::Read;
        let main = self.directories.main();
        let path = main.path().join(name);
        let Some(file) = main.open_file(os(name))? else { return Ok(None) };
        let meta = FileMeta::of(&file).map_err(CaptureError::io("read", &path))?;
        if meta.size > max {
            let what = format!("it has {} bytes, which no engine writes there", meta.size);
            return Err(CaptureError::Corrupt { path, what });
        }
        let mut bytes = Vec::new();
        file.take(max).read_to_end(&mut bytes).map_err(CaptureError::io("read", &path))?;
        Ok(Some(SmallFile { name: name.into(), bytes, meta }))
    }

    fn current_name(&self) -> String {
        manifest_named_by(&self.current).unwrap_or("MANIFEST").to_owned()
    }

    /// LevelDB writes no OPTIONS file.
    pub(crate) fn is_leveldb(&self) -> bool {
        self.settings.file.is_none()
    }

    /// Whose rules hold for its logs.
    pub(crate) fn dialect(&self) -> Dialect {
        if self.is_leveldb() { Dialect::LevelDb } else { Dialect::RocksDb }
    }

    /// The live files that are pinned, by number.
    pub(crate) fn live(&self) -> impl Iterator<Item = (u64, &PinnedFile)> {
        self.pinned.iter().map(|(&number, pinned)| (number, pinned))
    }

    /// Lets go of what is no longer live: it only takes room.
    pub(crate) fn release_dead(&mut self) {
        let Some(manifest) = &self.manifest else { return };
        let mut live = HashSet::new();
        for (_, family) in manifest.fold().families() {
            live.extend(family.tables.keys().copied());
            live.extend(family.live_blobs().map(|(number, _)| number));
        }
        let ImageBuilder { pins, .. } = &mut self.builder;
        let handles = &mut self.handles;
        self.pinned.retain(|number, pinned| {
            let keep = live.contains(number);
            if !keep {
                pins.release(&pinned.path);
                handles.remove(&pinned.path);
            }
            keep
        });
    }

    /// Takes a file that was pinned and then cut out of hand, so that the next attempt looks for it anew.
    pub(crate) fn forget(&mut self, number: u64) {
        if let Some(pinned) = self.pinned.remove(&number) {
            self.builder.pins.release(&pinned.path);
        }
    }
}

/// Engines that keep values where the MANIFEST does not tell.
fn refuse_by_name(main: &SourceDir) -> Result<(), CaptureError> {
    let refused = [
        ("blob_dir", "it belongs to the old stacked BlobDB, whose values the MANIFEST does not name"),
        ("titandb", "it belongs to Titan, whose values the MANIFEST does not name"),
    ];
    for (name, what) in refused {
        if main.stat(os(name))?.is_some_and(|meta| meta.kind == rustix::fs::FileType::Directory) {
            let what = format!("{what}; stop the program and copy its files");
            return Err(CaptureError::Refused { path: main.path().join(name), what });
        }
    }
    Ok(())
}

#[cfg(test)]
#[path = "attempt_tests.rs"]
mod tests;
