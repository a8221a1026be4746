//! `restore`: one backup → a directory that appears whole or not at all.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{File, Permissions};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use stillframe_capture::{CaptureError, Engine, SNAPSHOT_FILE, Snapshot, rewrite_wal_dir};
use stillframe_jobs::{Job, Phase, Progress};
use stillframe_repo::{
    BackupId, FileEntry, FileKind, Manifest, Repository, RestoredBackup, SourceForm, SourceManifest,
};
use stillframe_storage::{
    Attributes, PublishError, RelativePath, StagingDir, disk_space, failpoint, lies_within,
    make_private_dirs, sweep_leftovers, sync_filesystem,
};

use crate::engine_of::engine_of;
use crate::filling::{Filled, Filling, SetAttributes, apply, attributes};
use crate::remark::{joined, remark};
use crate::target::{make_parent, place_of};
use crate::{EngineError, Event, Kind, Surroundings};

/// Mode of the directory that holds those of several sources.
const SHARED_ROOT: u32 = 0o755;
/// A source's description, without its files.
const MAX_DESCRIPTION: u64 = 64 << 20;

/// What to bring back, and where to.
#[derive(Debug, Clone)]
pub struct RestoreOptions {
    /// Absent or an empty directory.
    pub target: PathBuf,
    /// Only this source; all of them otherwise.
    pub source: Option<String>,
    /// New names, by old name, for sources (where several are restored) and named directories. `.` as the new name of a
    /// named directory is the main one.
    pub map: BTreeMap<String, String>,
    /// The machine, for the word that the backup is in use.
    pub host: String,
}

/// What was brought back.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RestoreOutcome {
    /// Files, links and directories.
    pub files: u64,
    /// Bytes of files.
    pub bytes: u64,
    /// What the user must know to open it: options to set, one sentence each.
    pub remarks: Vec<String>,
}

/// Where the parts of one source go below the target.
struct Layout {
    /// Below the target; empty when the target itself is the source's directory.
    base: PathBuf,
    /// By named directory, below `base`.
    named: BTreeMap<String, PathBuf>,
}

impl Layout {
    fn place(&self, entry: &FileEntry) -> PathBuf {
        let dir =
            self.named.get(&entry.directory).map_or_else(|| self.base.clone(), |dir| self.base.join(dir));
        entry.path.below(&dir)
    }

    /// The log directory of a RocksDB database that has one of its own, below `base`: its OPTIONS file, which names none in an image,
    /// must name it.
    fn new_wal_dir(&self, snapshot: &Snapshot) -> Option<&Path> {
        let place = self.named.get("wal_dir").filter(|_| snapshot.engine == Engine::RocksDb)?;
        Some(place.as_path()).filter(|place| !place.as_os_str().is_empty())
    }
}

/// Restores into staging beside the target, and renames.
pub async fn restore(
    repo: &Repository,
    backup: BackupId,
    options: &RestoreOptions,
    job: &Job,
    surroundings: &Surroundings,
) -> Result<RestoreOutcome, EngineError> {
    let manifest = repo.manifest(backup).await?;
    let target = place_of(&options.target)?;
    let chosen = choose(&manifest, options)?;
    let placed = place(repo, &chosen, options).await?;
    refuse_unknown_names(&placed, options)?;
    refuse_within_source(&target, &placed)?;
    let (parent, made) = make_parent(&target)?;
    refuse_too_large(parent, &chosen, "choose another --to or make room")?;
    surroundings.tell(Event::Staging(parent.to_owned()));
    if let Err(error) = sweep_leftovers(parent) {
        tracing::debug!(parent = %parent.display(), %error, "leftovers could not be looked for");
    }
    let staging = StagingDir::create(parent, &(surroundings.random_name)())
        .map_err(EngineError::io("make a staging directory in", parent))?;
    job.enter(Phase::Transferring)?;
    let alone = placed.len() == 1;
    let into = Restoring { repo, staging: staging.path(), target: &target };
    let restoring = restore_placed(&into, &placed, job, surroundings);
    let in_use = RestoredBackup::new(backup, &options.host, &surroundings.clock);
    let outcome = match repo.while_restoring(in_use, restoring).await {
        Err(error) if error.kind() == Kind::Damaged => {
            // Forgotten and pruned since: that is no damage.
            repo.manifest(backup).await?;
            return Err(error);
        }
        outcome => outcome?,
    };
    job.enter(Phase::Sealing)?;
    let sealed = tokio::task::spawn_blocking(move || -> Result<(), EngineError> {
        if !alone {
            // Each source has a directory of its own below it, with the mode that it had.
            let opened = std::fs::set_permissions(staging.path(), Permissions::from_mode(SHARED_ROOT));
            opened.map_err(EngineError::io("set the mode of", staging.path()))?;
        }
        sync_filesystem(staging.path()).map_err(EngineError::io("make durable", staging.path()))?;
        failpoint("restore::synced");
        staging.publish(&target).map_err(|error| match error {
            PublishError::Occupied(path) => EngineError::Occupied(path),
            PublishError::NotDurable { path, source } => {
                EngineError::io("make durable, though it is there and whole,", &path)(source)
            }
            PublishError::Io { path, source } => EngineError::io("publish", &path)(source),
        })
    });
    sealed.await.map_err(|_| EngineError::Bug("publishing panicked".into()))??;
    made.keep();
    Ok(outcome)
}

/// Restores into `dir`, which is made, in place: for a look at it, not to keep it. Whether there is room is for the caller to ask.
pub(crate) async fn restore_into(
    repo: &Repository,
    manifest: &Manifest,
    options: &RestoreOptions,
    dir: &Path,
    job: &Job,
    surroundings: &Surroundings,
) -> Result<RestoreOutcome, EngineError> {
    let chosen = choose(manifest, options)?;
    let placed = place(repo, &chosen, options).await?;
    restore_placed(&Restoring { repo, staging: dir, target: dir }, &placed, job, surroundings).await
}

/// Everything has its place before the first file is written.
async fn place<'a>(
    repo: &Repository,
    chosen: &[&'a SourceManifest],
    options: &RestoreOptions,
) -> Result<Vec<Placed<'a>>, EngineError> {
    let mut placed = Vec::new();
    for source in chosen {
        // Its description could not be understood either, and would seem to be damaged.
        engine_of(source)?;
        let description = repo.read_content(source.snapshot, MAX_DESCRIPTION).await;
        let description =
            description.map_err(EngineError::lost(|| format!("the description of {}", source.name)))?;
        let called = format!("{SNAPSHOT_FILE} of {}", source.name);
        let snapshot =
            Snapshot::from_json(&description, Path::new(&called)).map_err(|error| match error {
                CaptureError::UnknownFormat { .. } => error.into(),
                error => EngineError::Unsound(error.to_string()),
            })?;
        let layout = lay_out(options, source, &snapshot, chosen.len() == 1)?;
        placed.push(Placed { source, snapshot, layout });
    }
    refuse_collisions(&placed)?;
    Ok(placed)
}

async fn restore_placed(
    into: &Restoring<'_>,
    placed: &[Placed<'_>],
    job: &Job,
    surroundings: &Surroundings,
) -> Result<RestoreOutcome, EngineError> {
    let mut outcome = RestoreOutcome::default();
    let meter = Meter::new(placed, job, surroundings);
    for placed in placed {
        restore_source(into, placed, &meter, &mut outcome).await?;
    }
    if meter.refused.get() > 0 {
        outcome.remarks.push(format!(
            "{} files and directories belong to whoever ran this: the system refused to give them to their owners",
            meter.refused.get()
        ));
    }
    Ok(outcome)
}

/// A source, and where its files go.
struct Placed<'a> {
    source: &'a SourceManifest,
    snapshot: Snapshot,
    layout: Layout,
}

/// A name in the map that means nothing is a mistake.
fn refuse_unknown_names(placed: &[Placed<'_>], options: &RestoreOptions) -> Result<(), EngineError> {
    let alone = placed.len() == 1;
    let sources = placed.iter().filter(|_| !alone).map(|placed| placed.source.name.as_str());
    let directories = placed.iter().flat_map(|placed| placed.layout.named.keys().map(String::as_str));
    let known: BTreeSet<&str> = sources.chain(directories).collect();
    let Some(unknown) = options.map.keys().find(|old| !known.contains(old.as_str())) else {
        return Ok(());
    };
    let mut names = if known.is_empty() { "nothing".to_owned() } else { Vec::from_iter(known).join(", ") };
    if alone {
        names.push_str(" (a source that comes back alone is the directory of --to itself)");
    }
    Err(EngineError::Usage(format!("--map: there is no {unknown:?} to map; what can be mapped: {names}")))
}

fn refuse_collisions(placed: &[Placed<'_>]) -> Result<(), EngineError> {
    let mut taken: Vec<&Path> = Vec::new();
    for Placed { source, layout, .. } in placed {
        if taken.iter().any(|other| other.starts_with(&layout.base) || layout.base.starts_with(other)) {
            let (name, place) = (&source.name, layout.base.display());
            return Err(EngineError::Usage(format!(
                "--map: {name} would be mixed with another source in {place}"
            )));
        }
        taken.push(&layout.base);
        let mut places: Vec<&PathBuf> =
            layout.named.values().filter(|place| !place.as_os_str().is_empty()).collect();
        places.sort_unstable();
        if let Some(twice) = places.array_windows().find(|[a, b]| a == b).map(|[a, _]| a) {
            return Err(EngineError::Usage(format!(
                "--map: two directories of {} would come to be {}",
                source.name,
                twice.display()
            )));
        }
    }
    Ok(())
}

/// Before anything is written: a restore that cannot end well must not fill a disk that others write to.
/// `dir` is the place that the user knows.
pub(crate) fn refuse_too_large(
    dir: &Path,
    chosen: &[&SourceManifest],
    advice: &'static str,
) -> Result<(), EngineError> {
    // Whoever wrote the manifest may have announced anything.
    let needed = chosen.iter().fold(0_u64, |sum, source| sum.saturating_add(source.bytes));
    match disk_space(dir) {
        Ok(space) if space.available < needed => {
            Err(EngineError::TooLarge { path: dir.to_owned(), available: space.available, needed, advice })
        }
        // A file system that does not tell is tried.
        _ => Ok(()),
    }
}

/// A database's own directory is no place for anything else: its engine may take it for its own. Among plain files it is one more.
fn refuse_within_source(target: &Path, placed: &[Placed<'_>]) -> Result<(), EngineError> {
    let parent = target.parent().unwrap_or(target);
    let holds = |source: &&Path| lies_within(parent, source);
    let databases = placed.iter().filter(|placed| placed.snapshot.engine != Engine::Files);
    match databases.map(|placed| placed.snapshot.source.as_path()).find(holds) {
        None => Ok(()),
        Some(source) => Err(EngineError::Usage(format!(
            "{} lies in {}, which is a source of this backup; restore outside of it",
            target.display(),
            source.display()
        ))),
    }
}

fn choose<'a>(
    manifest: &'a Manifest,
    options: &RestoreOptions,
) -> Result<Vec<&'a SourceManifest>, EngineError> {
    let names =
        || manifest.draft.sources.iter().map(|source| source.name.as_str()).collect::<Vec<_>>().join(", ");
    let chosen: Vec<&SourceManifest> = match &options.source {
        None => manifest.draft.sources.iter().collect(),
        Some(name) => manifest.draft.sources.iter().filter(|source| source.name == *name).collect(),
    };
    if chosen.is_empty() {
        let asked = options.source.as_deref().unwrap_or_default();
        return Err(EngineError::Usage(format!("the backup has no source {asked:?}; it has: {}", names())));
    }
    if let Some(records) = chosen.iter().find(|source| source.form != SourceForm::Image) {
        let name = &records.name;
        return Err(EngineError::Usage(format!(
            "{name} is not an image: it can only be restored into a store"
        )));
    }
    Ok(chosen)
}

/// What stays the same for all sources of one restore.
struct Restoring<'a> {
    repo: &'a Repository,
    staging: &'a Path,
    /// Where it will be when it is whole.
    target: &'a Path,
}

async fn restore_source(
    into: &Restoring<'_>,
    placed: &Placed<'_>,
    meter: &Meter<'_>,
    outcome: &mut RestoreOutcome,
) -> Result<(), EngineError> {
    let staged = into.staging.join(&placed.layout.base);
    open_between(into.staging, &placed.layout.base)?;
    make_private_dirs(&staged).map_err(EngineError::io("create", &staged))?;
    let unfinished = write_files(into, placed, meter, outcome).await?;
    failpoint("restore::written");
    adapt_options(into, &placed.snapshot, &placed.layout, outcome)?;
    // They were counted when they were come to; only whether they got their owners is news.
    let finished = unfinished.finish(&placed.snapshot, &staged)?;
    meter.add(Filled { files: 0, ..finished })
}

/// Makes what a mapped source's name has above the source, as open as the directory that holds all.
fn open_between(staging: &Path, base: &Path) -> Result<(), EngineError> {
    let above: Vec<&Path> = base.ancestors().skip(1).filter(|path| !path.as_os_str().is_empty()).collect();
    for dir in above.into_iter().rev().map(|path| staging.join(path)) {
        // What is there may be another source's own, with a mode of its own.
        if !dir.exists() {
            let made = std::fs::create_dir(&dir)
                .and_then(|()| std::fs::set_permissions(&dir, Permissions::from_mode(SHARED_ROOT)));
            made.map_err(EngineError::io("create", &dir))?;
        }
    }
    Ok(())
}

/// A source that comes back `alone` has the target itself for its directory.
fn lay_out(
    options: &RestoreOptions,
    source: &SourceManifest,
    snapshot: &Snapshot,
    alone: bool,
) -> Result<Layout, EngineError> {
    let checked = |name: &str| -> Result<PathBuf, EngineError> {
        let path: RelativePath =
            name.parse().map_err(|error| EngineError::Usage(format!("--map: {error}")))?;
        Ok(path.as_path().to_owned())
    };
    let mapped = |name: &str| options.map.get(name).map_or(name, String::as_str).to_owned();
    let base = if alone { PathBuf::new() } else { checked(&mapped(&source.name))? };
    let mut named = BTreeMap::new();
    for directory in &snapshot.directories {
        let new = mapped(&directory.name);
        let place = if new == "." { PathBuf::new() } else { checked(&new)? };
        named.insert(directory.name.clone(), place);
    }
    Ok(Layout { base, named })
}

/// Creates directories, and creates and fills files.
async fn write_files(
    into: &Restoring<'_>,
    placed: &Placed<'_>,
    meter: &Meter<'_>,
    outcome: &mut RestoreOutcome,
) -> Result<Unfinished, EngineError> {
    let told = |filled: Filled| meter.add(filled);
    let mut filling = Filling::new(into.repo, &told);
    let written = write_list(into, placed, meter, outcome, &mut filling).await;
    if written.is_err() {
        filling.abandon().await;
    }
    written
}

async fn write_list(
    into: &Restoring<'_>,
    placed: &Placed<'_>,
    meter: &Meter<'_>,
    outcome: &mut RestoreOutcome,
    filling: &mut Filling<'_>,
) -> Result<Unfinished, EngineError> {
    let Placed { source, snapshot, layout } = placed;
    let mut unfinished = Unfinished::default();
    let rewrites = layout.new_wal_dir(snapshot).is_some();
    let mut list = into.repo.files(source.files);
    let mut made = None;
    let lost = || EngineError::lost(|| format!("the file list of {}", source.name));
    while let Some(entry) = list.next().await.map_err(lost())? {
        let place = into.staging.join(layout.place(&entry));
        let directory = match &entry.kind {
            FileKind::Directory => Some(place.as_path()),
            _ => place.parent(),
        };
        // Neighbours in the list are neighbours on the disk.
        if directory != made.as_deref()
            && let Some(directory) = directory
        {
            make_private_dirs(directory).map_err(EngineError::io("create", directory))?;
            made = Some(directory.to_owned());
        }
        outcome.files += 1;
        outcome.bytes += entry.size();
        match entry.kind {
            FileKind::File { content } if rewrites && entry.path.as_bytes().starts_with(b"OPTIONS-") => {
                filling.add(place.clone(), entry.clone(), content, SetAttributes::Later).await?;
                unfinished.files.push((place, entry));
            }
            FileKind::File { content } => {
                filling.add(place, entry, content, SetAttributes::WhenFull).await?;
            }
            FileKind::Symlink { ref target } => {
                unfinished.links.push((place, target.clone(), entry));
                meter.add(Filled { files: 1, ..Filled::default() })?;
            }
            FileKind::Directory => {
                unfinished.directories.push((place, entry));
                meter.add(Filled { files: 1, ..Filled::default() })?;
            }
        }
    }
    filling.finish().await?;
    Ok(unfinished)
}

/// What must wait until all files are there.
#[derive(Default)]
struct Unfinished {
    /// Those that are changed once more.
    files: Vec<(PathBuf, FileEntry)>,
    /// Made last of all, so that nothing is ever written through one.
    links: Vec<(PathBuf, Vec<u8>, FileEntry)>,
    /// Their times change with everything that is created in them.
    directories: Vec<(PathBuf, FileEntry)>,
}

impl Unfinished {
    /// Links; mode, owner (as root) and time of the rest, children before their directories.
    fn finish(self, snapshot: &Snapshot, staged: &Path) -> Result<Filled, EngineError> {
        let mut done = Filled::default();
        for (place, entry) in &self.files {
            let file = File::options().write(true).open(place).map_err(EngineError::io("open", place))?;
            done.count(Some(apply(&file, place, entry)?));
        }
        for (place, target, entry) in &self.links {
            let target = std::ffi::OsStr::from_bytes(target);
            std::os::unix::fs::symlink(target, place).map_err(EngineError::io("link", place))?;
            let given = attributes(entry)?.apply_to_link(place);
            done.count(Some(given.map_err(EngineError::io("set owner and time of", place))?));
        }
        if let Some(like) = &snapshot.directory {
            apply_to_directories(staged, like, &mut done)?;
        }
        for (place, entry) in self.directories.iter().rev() {
            done.count(Some(apply(&open_dir(place)?, place, entry)?));
        }
        Ok(done)
    }
}

/// A restored OPTIONS file must not name the live log directory.
fn adapt_options(
    into: &Restoring<'_>,
    snapshot: &Snapshot,
    layout: &Layout,
    outcome: &mut RestoreOutcome,
) -> Result<(), EngineError> {
    let main = joined(into.target, &layout.base);
    for directory in &snapshot.directories {
        let below = layout.named.get(&directory.name).map_or(Path::new(""), PathBuf::as_path);
        outcome.remarks.push(remark(directory, &main, below));
    }
    if let Some(wal_dir) = layout.new_wal_dir(snapshot) {
        let new = joined(&main, wal_dir);
        rewrite_wal_dir(&into.staging.join(&layout.base), &new)?;
    }
    Ok(())
}

/// Directories that were not recorded themselves are like the source's main one.
fn apply_to_directories(dir: &Path, like: &Attributes, done: &mut Filled) -> Result<(), EngineError> {
    for entry in std::fs::read_dir(dir).map_err(EngineError::io("list", dir))? {
        let entry = entry.map_err(EngineError::io("list", dir))?;
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            apply_to_directories(&entry.path(), like, done)?;
        }
    }
    let given = like.apply(&open_dir(dir)?);
    done.count(Some(given.map_err(EngineError::io("set mode, owner and time of", dir))?));
    Ok(())
}

/// Fails for anything that is not a directory itself, such as a link to one.
fn open_dir(dir: &Path) -> Result<File, EngineError> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let fd = rustix::fs::open(dir, flags, Mode::empty()).map_err(EngineError::io("open", dir))?;
    Ok(File::from(fd))
}

/// Counts what is done, tells it, and notices a cancel.
struct Meter<'a> {
    job: &'a Job,
    surroundings: &'a Surroundings,
    progress: Cell<Progress>,
    /// Files that could not be given to their owner.
    refused: Cell<u64>,
}

impl<'a> Meter<'a> {
    fn new(placed: &[Placed<'_>], job: &'a Job, surroundings: &'a Surroundings) -> Self {
        let total = |of: fn(&SourceManifest) -> u64| {
            placed.iter().fold(0_u64, |sum, placed| sum.saturating_add(of(placed.source)))
        };
        let progress = Progress {
            files_total: Some(total(|source| source.file_count)),
            bytes_total: Some(total(|source| source.bytes)),
            ..Progress::new(Phase::Transferring)
        };
        Self { job, surroundings, progress: Cell::new(progress), refused: Cell::new(0) }
    }

    fn add(&self, filled: Filled) -> Result<(), EngineError> {
        let mut progress = self.progress.get();
        self.refused.set(self.refused.get() + filled.refused);
        progress.files_done += filled.files;
        progress.bytes_done += filled.bytes;
        self.progress.set(progress);
        self.surroundings.tell(Event::Progress(self.job.progress(&progress)));
        if self.job.token().is_cancelled() { Err(EngineError::Cancelled) } else { Ok(()) }
    }
}
