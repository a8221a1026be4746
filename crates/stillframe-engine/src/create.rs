//! `create`: live sources → one sealed backup.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::convert::Infallible;
use std::io::ErrorKind;
use std::ops::Range;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesOrdered;
use stillframe_capture::{CaptureOptions, Engine, FileKind, Image, Snapshot, SnapshotFile, Weakening};
use stillframe_jobs::{Job, Phase, Progress, State};
use stillframe_repo::{
    BackupId, ChunkRef, ContentRef, ContentWriter, FileEntry, FileKind as EntryKind, FileListWriter,
    ManifestDraft, Repository, SourceForm, SourceManifest, Statistics, WriteEvent, WriteOptions,
    WriteSession, check_labels,
};
use stillframe_storage::{BandwidthLimit, RelativePath, since_1970};

use crate::base_hint::BaseHints;
use crate::capturing::{capture_all, watch_over};
use crate::cutting::Cut;
use crate::list_order::{list_key, list_order};
use crate::reserve::{Reserve, ReserveWatch};
use crate::unchanged::{Unchanged, find_base, find_unchanged};
use crate::workers::Workers;
use crate::{EngineError, Event, NamedSource, Surroundings};

/// What to back up, and how.
#[derive(Debug, Clone)]
pub struct CreateOptions {
    /// At least one; names unique.
    pub sources: Vec<NamedSource>,
    /// A label; need not be unique.
    pub name: Option<String>,
    /// Marks for later selection.
    pub tags: Vec<String>,
    /// How to capture.
    pub capture: CaptureOptions,
    /// Free space to leave on the sources' disks.
    pub reserve: Reserve,
    /// Bytes per second to the repository.
    pub bandwidth: Option<Arc<BandwidthLimit>>,
    /// Rely on nothing that the repository has: read everything, store everything.
    pub anew: bool,
    /// Where hints are kept that make the next backup faster. May be emptied at any time.
    pub cache_dir: PathBuf,
    /// Who and where, for people.
    pub origin: Origin,
}

/// Who made a backup, and where: told, never decided upon.
#[derive(Debug, Clone, Default)]
pub struct Origin {
    /// The machine.
    pub host: String,
    /// The user.
    pub user: String,
    /// This program and its version.
    pub program: String,
    /// The same for all backups of one installation.
    pub writer: String,
}

/// What a backup would do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CreatePlan {
    /// In the order of the options.
    pub sources: Vec<SourcePlan>,
    /// The backup whose unchanged files would be taken over.
    pub base: Option<BackupId>,
}

/// What a backup would do with one source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourcePlan {
    /// Its name.
    pub name: String,
    /// Files in all.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Files that are proven unchanged and would not be read.
    pub unchanged_files: u64,
    /// Their bytes.
    pub unchanged_bytes: u64,
    /// What makes the guarantee weaker.
    pub weakening: Vec<Weakening>,
}

/// A backup that exists.
#[derive(Debug, Clone)]
pub struct CreateOutcome {
    /// Its id.
    pub id: BackupId,
    /// What was done.
    pub statistics: Statistics,
    /// The images' own descriptions, in the order of the options.
    pub snapshots: Vec<Snapshot>,
}

/// Images that are held while they are read, and what need not be read of them.
struct Held {
    images: Vec<Arc<Image>>,
    unchanged: Vec<Unchanged>,
    base: Option<BackupId>,
    /// Damage was found in the repository, or the user fears some.
    damaged: bool,
}

/// Captures and says what a backup would do. Nothing is written to the repository that `opening` gives.
pub async fn plan<E: From<EngineError>>(
    opening: impl Future<Output = Result<Repository, E>>,
    options: &CreateOptions,
    job: &Job,
    surroundings: &Surroundings,
) -> Result<CreatePlan, E> {
    let watch = watch_of(options, job);
    let planning = Box::pin(async {
        let (repo, images) = capture_while(opening, options, &watch, job, surroundings).await?;
        let held = hold(&repo, images, options, job, surroundings).await?;
        Ok(describe(options, &held))
    });
    watch.during(planning, |text| surroundings.warn(text)).await
}

/// How often sources are captured for one backup, at most.
const CAPTURES: u32 = 4;

/// Captures all sources and writes one backup into the repository that `opening` gives: unlocking takes about as long as a
/// capture, so both are done at the same time. When it returns `Ok`, the backup is sealed and durable.
pub async fn create<E: From<EngineError>>(
    opening: impl Future<Output = Result<Repository, E>>,
    options: &CreateOptions,
    job: &Job,
    surroundings: &Surroundings,
) -> Result<CreateOutcome, E> {
    let watch = watch_of(options, job);
    let creating = Box::pin(async {
        let (repo, mut images) = capture_while(opening, options, &watch, job, surroundings).await?;
        for _ in 1..CAPTURES {
            match write(&repo, images, options, &watch, job, surroundings).await {
                Err(EngineError::CutShort { path }) => surroundings.warn(format!(
                    "{} was cut by its owner while it was read: everything is captured again",
                    path.display()
                )),
                written => return Ok(written?),
            }
            let again = capture_all(&options.sources, &options.capture, &watch, job, surroundings).await?;
            images = again.into_iter().map(Arc::new).collect();
        }
        Ok(write(&repo, images, options, &watch, job, surroundings).await?)
    });
    watch.during(creating, |text| surroundings.warn(text)).await
}

/// A repository that cannot be opened ends the capture.
async fn capture_while<E: From<EngineError>>(
    opening: impl Future<Output = Result<Repository, E>>,
    options: &CreateOptions,
    watch: &Arc<ReserveWatch>,
    job: &Job,
    surroundings: &Surroundings,
) -> Result<(Repository, Vec<Arc<Image>>), E> {
    check_labels(options.name.as_deref(), &options.tags).map_err(EngineError::from)?;
    job.enter(Phase::Capturing).map_err(EngineError::from)?;
    let opening = async {
        let opened = opening.await;
        if opened.is_err() {
            watch.stop().cancel();
        }
        opened
    };
    let captured = capture_all(&options.sources, &options.capture, watch, job, surroundings);
    let (opened, captured) = tokio::join!(opening, captured);
    Ok((opened?, captured?.into_iter().map(Arc::new).collect()))
}

async fn write(
    repo: &Repository,
    images: Vec<Arc<Image>>,
    options: &CreateOptions,
    watch: &Arc<ReserveWatch>,
    job: &Job,
    surroundings: &Surroundings,
) -> Result<CreateOutcome, EngineError> {
    let held = hold(repo, images, options, job, surroundings).await?;
    watch.demand()?;
    // Phases do not go back.
    if !matches!(job.state(), State::Working(Phase::Transferring | Phase::Sealing)) {
        job.enter(Phase::Transferring)?;
    }
    // Not before: the capture gives way to nobody.
    surroundings.share.pace().apply_to_own_session();
    let workers = Workers::start(surroundings.share, &surroundings.clock);
    let meter = Meter::new(&held, job, surroundings);
    let write = WriteOptions {
        base: held.base,
        anew: held.damaged,
        host: options.origin.host.clone(),
        bandwidth: options.bandwidth.clone(),
        cancel: watch.stop().clone(),
        events: Some(again_event(surroundings)),
        ..WriteOptions::new(Arc::clone(&surroundings.clock))
    };
    let (held_ref, workers, meter) = (&held, &workers, &meter);
    let writing = repo.write(&write, |session| async move {
        meter.follow(&session);
        write_draft(&session, options, held_ref, workers, meter, watch).await
    });
    let written = tokio::select! {
        written = writing => written?,
        never = meter.tell_while_waiting() => match never {},
    };
    let hints = hints(repo, options);
    for lineage in held.images.iter().filter_map(|image| image.snapshot().lineage.as_ref()) {
        hints.write(lineage, written.manifest.id);
    }
    Ok(CreateOutcome {
        id: written.manifest.id,
        statistics: written.manifest.statistics,
        snapshots: held.images.iter().map(|image| image.snapshot().clone()).collect(),
    })
}

fn hints(repo: &Repository, options: &CreateOptions) -> BaseHints {
    BaseHints::new(&options.cache_dir, repo.id())
}

fn again_event(surroundings: &Surroundings) -> Arc<dyn Fn(WriteEvent) + Send + Sync> {
    let surroundings = surroundings.clone();
    Arc::new(move |event| {
        match event {
            WriteEvent::Again { why, .. } => surroundings.tell(Event::Again { why }),
            WriteEvent::ClockBehind { newest } => surroundings.warn(format!(
                "this machine's clock is behind the newest backup, which is of {newest}: this one is recorded just after it"
            )),
            _ => {}
        }
    })
}

async fn hold(
    repo: &Repository,
    images: Vec<Arc<Image>>,
    options: &CreateOptions,
    job: &Job,
    surroundings: &Surroundings,
) -> Result<Held, EngineError> {
    let base = if options.anew {
        None
    } else {
        find_base(repo, &hints(repo, options), &options.sources, &images).await?
    };
    let manifest = base.as_ref().map(|(_, manifest)| manifest);
    let (mut unchanged, mut damaged) = (Vec::new(), options.anew);
    let seed = (surroundings.random_name)();
    for image in &images {
        unchanged.push(match find_unchanged(repo, image, manifest, &seed, job.token()).await? {
            Ok(found) => found,
            Err(doubt) => {
                let source = image.snapshot().source.display();
                surroundings.warn(format!("{}: everything of {source} is read", doubt.why));
                damaged |= doubt.damage;
                Unchanged::default()
            }
        });
    }
    if damaged {
        // Where one thing is damaged, more may be: this backup relies on nothing that is there.
        unchanged.iter_mut().for_each(|found| *found = Unchanged::default());
    }
    let base = base.map(|(id, _)| id).filter(|_| unchanged.iter().any(|found| found.count() > 0));
    Ok(Held { images, unchanged, base, damaged })
}

fn watch_of(options: &CreateOptions, job: &Job) -> Arc<ReserveWatch> {
    let sources = options.sources.iter().map(|named| &named.source);
    watch_over(sources, &options.capture, options.reserve, job)
}

fn describe(options: &CreateOptions, held: &Held) -> CreatePlan {
    let sources = options.sources.iter().zip(&held.images).zip(&held.unchanged);
    let sources = sources.map(|((named, image), unchanged)| SourcePlan {
        name: named.name.clone(),
        files: u64::try_from(image.snapshot().files.len()).expect("a usize fits a u64"),
        bytes: image.snapshot().files.iter().map(|file| file.size).sum(),
        unchanged_files: unchanged.count(),
        unchanged_bytes: unchanged.bytes(),
        weakening: image.snapshot().weakening.clone(),
    });
    CreatePlan { sources: sources.collect(), base: held.base }
}

async fn write_draft(
    session: &Arc<WriteSession>,
    options: &CreateOptions,
    held: &Held,
    workers: &Workers,
    meter: &Meter<'_>,
    watch: &Arc<ReserveWatch>,
) -> Result<ManifestDraft, EngineError> {
    let mut sources = Vec::new();
    let mut warnings = Vec::new();
    for ((named, image), unchanged) in options.sources.iter().zip(&held.images).zip(&held.unchanged) {
        let (source, shorter) = write_source(session, named, image, unchanged, workers, meter, watch).await?;
        sources.push(source);
        if let Some(warning) = shorter.sentence(&named.name) {
            meter.surroundings.warn(warning.clone());
            warnings.push(warning);
        }
        let weakening = image.snapshot().weakening.iter();
        warnings.extend(weakening.map(|weak| format!("{}: {}: {}", named.name, weak.setting, weak.effect)));
    }
    session.flush().await?;
    meter.tell();
    // Everything that takes room has arrived. A backup that left less than the reserve is not sealed.
    watch.demand()?;
    // A second round stays in this phase: phases do not go back.
    if meter.job.state() != State::Working(Phase::Sealing) {
        meter.job.enter(Phase::Sealing)?;
    }
    Ok(ManifestDraft {
        name: options.name.clone(),
        tags: options.tags.clone(),
        host: options.origin.host.clone(),
        user: options.origin.user.clone(),
        program: options.origin.program.clone(),
        writer: options.origin.writer.clone(),
        sources,
        warnings,
        files_skipped: if session.base().is_some() {
            held.unchanged.iter().map(Unchanged::count).sum()
        } else {
            0
        },
        ..ManifestDraft::default()
    })
}

/// What is to be done for one file.
enum Part {
    /// An unchanged file: its content stands in the repository.
    TakenOver(ContentRef),
    /// A directory, a link, an empty file: nothing to read.
    Bare(EntryKind),
    /// Bytes to read and cut.
    Span(Range<u64>, Last),
}

/// One finished part, in order of files and of places in them.
enum Done {
    /// The entry needs no content of its own, or has it already.
    Entry(usize, EntryKind),
    /// Chunks of a file that should have so many bytes; whether they are its last.
    Chunks(usize, Result<Vec<ChunkRef>, EngineError>, u64, Last),
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Last {
    Yes,
    No,
}

async fn write_source(
    session: &Arc<WriteSession>,
    named: &NamedSource,
    image: &Arc<Image>,
    unchanged: &Unchanged,
    workers: &Workers,
    meter: &Meter<'_>,
    watch: &Arc<ReserveWatch>,
) -> Result<(SourceManifest, Shorter), EngineError> {
    let snapshot = image.snapshot();
    let mut list = FileListWriter::new(session);
    let mut content = ContentWriter::new(session);
    let mut queue = FuturesOrdered::new();
    let (mut bytes, mut cut, mut shorter) = (0, false, Shorter::default());
    let mut finish = |done: Done| -> Result<(), EngineError> {
        let (index, kind) = match done {
            Done::Entry(index, kind) => (index, kind),
            Done::Chunks(index, chunks, wanted, last) => {
                let chunks = chunks?;
                meter.add_bytes(wanted);
                // What was appended behind a cut does not belong where it would come to stand.
                let kept = if cut { &[] } else { chunks.as_slice() };
                cut |= kept.iter().map(|chunk| chunk.length).sum::<u64>() < wanted;
                for chunk in kept {
                    content.push(*chunk)?;
                }
                if last == Last::No {
                    return Ok(());
                }
                cut = false;
                let whole = std::mem::replace(&mut content, ContentWriter::new(session));
                (index, EntryKind::File { content: whole.finish()? })
            }
        };
        let file =
            snapshot.files.get(index).ok_or_else(|| EngineError::Bug("a file without a place".into()))?;
        meter.add_file();
        let entry = entry_of(file, kind)?;
        if entry.size() < file.size && file.kind == FileKind::File {
            shorter.note(&entry);
        }
        bytes += entry.size();
        Ok(list.push(&entry)?)
    };
    for index in list_order(&snapshot.files) {
        let Some(file) = snapshot.files.get(index) else { continue };
        // A base that is gone meanwhile is not relied on again: then everything is read.
        let known = unchanged.content(index).filter(|_| session.base().is_some());
        for part in parts_of(file, known) {
            if let Part::TakenOver(content) = &part {
                session.take_over(content)?;
                meter.add_bytes(content.length);
            }
            queue.push_back(run_part(session, image, index, file, part, workers, watch));
            while queue.len() >= workers.in_flight() {
                if let Some(done) = queue.next().await {
                    tokio::task::block_in_place(|| finish(done))?;
                }
            }
        }
        if watch.stop().is_cancelled() {
            break;
        }
    }
    while let Some(done) = queue.next().await {
        tokio::task::block_in_place(|| finish(done))?;
    }
    if watch.stop().is_cancelled() {
        return Err(EngineError::Cancelled);
    }
    let files = tokio::task::block_in_place(|| list.finish())?;
    // The files are in their list, which nobody has to hold as a whole.
    let json =
        serde_json::to_vec(&snapshot.without_files()).map_err(|error| EngineError::Bug(error.to_string()))?;
    let description = tokio::task::block_in_place(|| session.put_content(&json))?;
    let source = SourceManifest {
        name: named.name.clone(),
        engine: snapshot.engine.to_string(),
        url: named.source.to_string(),
        instant: snapshot.instant,
        window_us: snapshot.window_us,
        attempts: snapshot.attempts,
        snapshot: description,
        lineage: snapshot.lineage.clone(),
        files: files.content,
        file_count: files.file_count,
        bytes,
        form: SourceForm::Image,
        collections: None,
    };
    Ok((source, shorter))
}

/// Plain files that somebody cut while they were read.
#[derive(Default)]
struct Shorter {
    first: Option<String>,
    count: u64,
}

impl Shorter {
    fn note(&mut self, entry: &FileEntry) {
        self.first.get_or_insert_with(|| entry.display_path());
        self.count += 1;
    }

    fn sentence(self, source: &str) -> Option<String> {
        let first = self.first?;
        let others = match self.count - 1 {
            0 => String::new(),
            others => format!(" and {others} more"),
        };
        Some(format!(
            "{source}: {first}{others}: cut by somebody while it was read; the backup has what was left"
        ))
    }
}

fn parts_of(file: &SnapshotFile, unchanged: Option<&ContentRef>) -> Vec<Part> {
    match (&file.kind, unchanged) {
        (FileKind::Directory, _) => vec![Part::Bare(EntryKind::Directory)],
        (FileKind::Symlink { target }, _) => {
            vec![Part::Bare(EntryKind::Symlink { target: target.as_os_str().as_bytes().to_vec() })]
        }
        (FileKind::File, Some(content)) => vec![Part::TakenOver(*content)],
        (FileKind::File, None) if file.size == 0 => {
            vec![Part::Bare(EntryKind::File { content: ContentRef::EMPTY })]
        }
        (FileKind::File, None) => {
            let cut = Cut::of(file.role);
            let spans = cut.spans(file.size);
            spans
                .map(|span| {
                    Part::Span(span.clone(), if span.end == file.size { Last::Yes } else { Last::No })
                })
                .collect()
        }
    }
}

async fn run_part(
    session: &Arc<WriteSession>,
    image: &Arc<Image>,
    index: usize,
    file: &SnapshotFile,
    part: Part,
    workers: &Workers,
    watch: &Arc<ReserveWatch>,
) -> Done {
    match part {
        Part::TakenOver(content) => Done::Entry(index, EntryKind::File { content }),
        Part::Bare(kind) => Done::Entry(index, kind),
        Part::Span(span, last) => {
            let (session, image, path) = (Arc::clone(session), Arc::clone(image), file.path.clone());
            let chunk = Cut::of(file.role).chunk;
            let wanted = span.end - span.start;
            let watch = Arc::clone(watch);
            let chunks = workers.run(move || store_span(&session, &image, &path, span, chunk, &watch)).await;
            let chunks = chunks.unwrap_or_else(|| Err(EngineError::Bug("storing a chunk panicked".into())));
            Done::Chunks(index, chunks, wanted, last)
        }
    }
}

thread_local! {
    /// One buffer for each worker, since fresh memory for every chunk costs as much as hashing it.
    static BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Reads `span` of a file of the image and stores it in chunks.
fn store_span(
    session: &WriteSession,
    image: &Image,
    path: &RelativePath,
    span: Range<u64>,
    chunk: u64,
    watch: &ReserveWatch,
) -> Result<Vec<ChunkRef>, EngineError> {
    watch.announce(span.end - span.start)?;
    let file = image.open(path)?;
    let chunk = usize::try_from(chunk).expect("chunks are a few MiB");
    let length = usize::try_from(span.end - span.start).expect("spans are a few MiB");
    BUFFER.with_borrow_mut(|buffer| {
        if buffer.len() < length {
            buffer.resize(length, 0);
        }
        let bytes = buffer.get_mut(..length).expect("the buffer was made long enough");
        let length = match file.read_exact_at(bytes, span.start) {
            Ok(()) => length,
            // Plain files are read in place, without any claim: one that was cut meanwhile ends where it ends now.
            Err(error)
                if error.kind() == ErrorKind::UnexpectedEof && image.snapshot().engine == Engine::Files =>
            {
                let now = file.metadata().map_err(EngineError::io("read", path.as_path()))?.len();
                let left = usize::try_from(now.saturating_sub(span.start)).unwrap_or(length).min(length);
                let rest = bytes.get_mut(..left).expect("at most the span's length");
                file.read_exact_at(rest, span.start).map_err(EngineError::io("read", path.as_path()))?;
                left
            }
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => {
                return Err(EngineError::CutShort { path: image.snapshot().source.join(path.as_path()) });
            }
            Err(error) => return Err(EngineError::io("read", path.as_path())(error)),
        };
        let bytes = bytes.get(..length).expect("at most the span's length");
        bytes.chunks(chunk).map(|part| Ok(session.put(part)?)).collect()
    })
}

fn entry_of(file: &SnapshotFile, kind: EntryKind) -> Result<FileEntry, EngineError> {
    let (_, path) = list_key(file);
    let path = RelativePath::from_bytes(path).map_err(|error| EngineError::Bug(error.to_string()))?;
    let (mtime, mtime_nanos) = since_1970(file.modified);
    Ok(FileEntry {
        directory: file.directory.clone(),
        path,
        kind,
        role: file.role.name().to_owned(),
        mode: file.mode,
        uid: file.uid,
        gid: file.gid,
        mtime,
        mtime_nanos,
        identity: file.identity.as_ref().map(|identity| identity.as_bytes().to_vec()),
    })
}

/// How often progress is told while nothing is read, since all that was read is waiting to be sent.
const WAITING_TICK: Duration = Duration::from_secs(1);

/// Counts what is done and tells it. What was read counts as done when it is with the repository.
struct Meter<'a> {
    job: &'a Job,
    surroundings: &'a Surroundings,
    /// That of this round.
    session: Mutex<Option<Arc<WriteSession>>>,
    files: Mutex<FilesDone>,
    bytes: AtomicU64,
    files_total: u64,
    bytes_total: u64,
}

/// Files that were read, and how many of them are with the repository.
#[derive(Default)]
struct FilesDone {
    done: u64,
    /// For each of the others, how many bytes had been read when it was.
    read: VecDeque<u64>,
}

impl FilesDone {
    fn up_to(&mut self, bytes_done: u64) -> u64 {
        while self.read.front().is_some_and(|read| *read <= bytes_done) {
            self.read.pop_front();
            self.done += 1;
        }
        self.done
    }
}

impl<'a> Meter<'a> {
    fn new(held: &Held, job: &'a Job, surroundings: &'a Surroundings) -> Self {
        let files = held.images.iter().flat_map(|image| &image.snapshot().files);
        let (files_total, bytes_total) =
            files.fold((0, 0), |(files, bytes), file| (files + 1, bytes + file.size));
        let (session, files, bytes) = (Mutex::default(), Mutex::default(), 0.into());
        Self { job, surroundings, session, files, bytes, files_total, bytes_total }
    }

    /// A round begins. Numbers never go back, so a second round shows nothing before it is where the first one was.
    fn follow(&self, session: &Arc<WriteSession>) {
        *self.session() = Some(Arc::clone(session));
        *self.files() = FilesDone::default();
        self.bytes.store(0, Ordering::Relaxed);
    }

    fn session(&self) -> MutexGuard<'_, Option<Arc<WriteSession>>> {
        self.session.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add_bytes(&self, bytes: u64) {
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        self.tell();
    }

    /// All bytes of one more file were counted.
    fn add_file(&self) {
        self.files().read.push_back(self.bytes.load(Ordering::Relaxed));
    }

    fn files(&self) -> MutexGuard<'_, FilesDone> {
        self.files.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn tell_while_waiting(&self) -> Infallible {
        loop {
            tokio::time::sleep(WAITING_TICK).await;
            self.tell();
        }
    }

    fn tell(&self) {
        let read = self.bytes.load(Ordering::Relaxed);
        let waiting = self.session().as_ref().map_or(0, |session| session.bytes_waiting());
        let bytes_done = read.saturating_sub(waiting);
        let progress = Progress {
            phase: Phase::Transferring,
            files_done: self.files().up_to(bytes_done),
            files_total: Some(self.files_total),
            bytes_done,
            bytes_total: Some(self.bytes_total),
        };
        self.surroundings.tell(Event::Progress(self.job.progress(&progress)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_done_when_its_bytes_are_with_the_repository() {
        let mut files = FilesDone::default();
        files.read.extend([100, 100, 250]);
        assert_eq!([0, 99, 100, 249, 250].map(|bytes| files.up_to(bytes)), [0, 0, 2, 2, 3]);
    }
}
