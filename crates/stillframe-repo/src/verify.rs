//! Verifying: what is promised to be there is looked for, and whatever is wrong is named.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

use crate::chunk_reader::ChunkReader;
use crate::content_reader::LeafReader;
use crate::error::{Error, Result};
use crate::file_list_reader::FileListReader;
use crate::index_cache::{Location, listed_size};
use crate::index_segment;
use crate::layout::{Kind, ObjectName};
use crate::manifest::{Manifest, SourceForm, SourceManifest};
use crate::needed_chunks::NeededChunks;
use crate::object_io::Listed;
use crate::pack_check::{PackFault, check_pack};
use crate::{BackupId, ChunkId, ContentRef, FileKind, PackId, Repository};

/// A report lists at most so many findings, and counts the rest.
pub(crate) const MAX_FINDINGS: usize = 10_000;
/// Packs read at a time.
const PACKS_AT_A_TIME: usize = 2;

/// How thoroughly to look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum VerifyLevel {
    /// Manifest, file lists and trees are read; every chunk has a pack that is listed with its full length.
    Exists,
    /// Also, each of those packs has the hash that it was written with.
    Hash,
    /// Also, each chunk decrypts, decompresses, and has the content that its name stands for.
    Decrypt,
}

/// How to verify.
#[derive(Clone)]
pub struct VerifyOptions {
    /// How thoroughly.
    pub level: VerifyLevel,
    /// Stops it; the result is then [`Error::Cancelled`], never a report.
    pub cancel: CancellationToken,
    /// Is told how far it is, from time to time; must not block.
    pub progress: Option<Arc<dyn Fn(VerifyProgress) + Send + Sync>>,
}

impl VerifyOptions {
    /// Nobody cancels, nobody listens.
    pub fn new(level: VerifyLevel) -> Self {
        Self { level, cancel: CancellationToken::new(), progress: None }
    }
}

impl fmt::Debug for VerifyOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VerifyOptions").field("level", &self.level).finish_non_exhaustive()
    }
}

/// How far a verification is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct VerifyProgress {
    /// Files whose chunks were looked for.
    pub files: u64,
    /// Of how many.
    pub files_total: u64,
    /// Bytes of packs read.
    pub bytes: u64,
    /// Of how many; 0 until it is known.
    pub bytes_total: u64,
}

/// Something that is wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// The stored object that is damaged or missing, or the chunk when no pack has it.
    pub object: String,
    /// What is wrong with it.
    pub why: String,
    /// Whether something of this backup is lost by it. If not, other copies of all that it had are whole.
    pub is_loss: bool,
    /// The source that needs it; `None`: all of them, or none.
    pub source: Option<String>,
    /// The file that needs it. `None` with a source: the source's description or list itself.
    pub file: Option<String>,
    /// Where in the file what is lost begins, in bytes.
    pub offset: Option<u64>,
    /// The chunk that is lost.
    pub chunk: Option<ChunkId>,
}

/// What a verification found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct VerifyReport {
    /// The backup.
    pub backup: BackupId,
    /// How thoroughly it was looked at.
    pub level: VerifyLevel,
    /// Files, directories and links in it.
    pub files: u64,
    /// Bytes of the files.
    pub bytes: u64,
    /// Chunks that it needs, each counted once. 0 at the level `exists`.
    pub chunks: u64,
    /// Packs that were read. 0 at the level `exists`.
    pub packs: u64,
    /// Bytes of those packs.
    pub bytes_read: u64,
    /// What is wrong, at most ten thousand of it.
    pub findings: Vec<Finding>,
    /// What else is wrong.
    pub findings_omitted: u64,
}

impl VerifyReport {
    /// Nothing at all is wrong.
    pub fn is_sound(&self) -> bool {
        self.findings.is_empty() && self.findings_omitted == 0
    }
}

impl Repository {
    /// Verifies one backup. Damage is in the report; an error means that it could not be verified.
    ///
    /// Memory is bounded whatever the size of the backup. Each pack that the backup needs is read once.
    pub async fn verify(&self, backup: BackupId, options: &VerifyOptions) -> Result<VerifyReport> {
        self.index().refresh().await?;
        let manifest = match self.manifest(backup).await {
            Ok(manifest) => manifest,
            Err(error @ Error::Damaged { .. }) => {
                let mut report = VerifyReport::new(backup, options.level);
                let name = ObjectName::new(Kind::Manifest, backup);
                add(&mut report, Finding { is_loss: true, ..Finding::of(name, &error) });
                return Ok(report);
            }
            Err(error) => return Err(error),
        };
        let mut verifier = Verifier::new(self, &manifest, options).await?;
        verifier.run(&manifest).await?;
        Ok(verifier.report)
    }

    /// What a backup whose manifest can be read loses: chunks that no pack has, and those that are known to be `lost`.
    pub(crate) async fn losses(
        &self,
        backup: BackupId,
        lost: &Lost,
        cancel: &CancellationToken,
    ) -> Result<VerifyReport> {
        self.index().refresh().await?;
        let manifest = self.manifest(backup).await?;
        let options = VerifyOptions { cancel: cancel.clone(), ..VerifyOptions::new(VerifyLevel::Exists) };
        let mut verifier = Verifier::new(self, &manifest, &options).await?;
        verifier.walk(&manifest, &Walk::Look).await?;
        verifier.walk(&manifest, &Walk::Name(lost)).await?;
        Ok(verifier.report)
    }
}

impl VerifyReport {
    fn new(backup: BackupId, level: VerifyLevel) -> Self {
        Self {
            backup,
            level,
            files: 0,
            bytes: 0,
            chunks: 0,
            packs: 0,
            bytes_read: 0,
            findings: Vec::new(),
            findings_omitted: 0,
        }
    }
}

impl Finding {
    /// What is wrong with an object, without a loss. Damage names the object itself.
    pub(crate) fn of(name: ObjectName, error: &Error) -> Self {
        let (object, why) = match error {
            Error::Damaged { object, why } => (object.clone(), why.clone()),
            error => (name.to_string(), error.to_string()),
        };
        Self { object, why, is_loss: false, source: None, file: None, offset: None, chunk: None }
    }
}

struct Verifier<'a> {
    repository: &'a Repository,
    options: &'a VerifyOptions,
    chunks: ChunkReader,
    packs: Vec<Listed>,
    report: VerifyReport,
    progress: VerifyProgress,
    needed: Option<NeededChunks>,
}

/// What a walk over a backup does with each chunk that it comes to.
enum Walk<'a> {
    /// Looks for it.
    Look,
    /// Names those that are lost.
    Name(&'a Lost),
}

/// Chunks that no pack gives any more, with what is wrong.
pub(crate) type Lost = HashMap<ChunkId, (String, String)>;

/// Who needs a chunk.
struct User<'a> {
    source: &'a str,
    file: Option<String>,
    offset: Option<u64>,
}

impl<'a> Verifier<'a> {
    async fn new(
        repository: &'a Repository,
        manifest: &Manifest,
        options: &'a VerifyOptions,
    ) -> Result<Self> {
        let sources = &manifest.draft.sources;
        let files_total = sources.iter().fold(0, |sum, source| source.file_count.saturating_add(sum));
        Ok(Self {
            repository,
            options,
            chunks: repository.chunk_reader(),
            packs: repository.io().list(Kind::Pack).await?,
            report: VerifyReport::new(manifest.id, options.level),
            progress: VerifyProgress { files_total, ..VerifyProgress::default() },
            needed: match options.level {
                VerifyLevel::Exists => None,
                _ => Some(NeededChunks::new()?),
            },
        })
    }

    async fn run(&mut self, manifest: &Manifest) -> Result<()> {
        self.walk(manifest, &Walk::Look).await?;
        if self.options.level == VerifyLevel::Exists {
            return Ok(());
        }
        let lost = self.check_packs().await?;
        if !lost.is_empty() {
            self.walk(manifest, &Walk::Name(&lost)).await?;
        }
        Ok(())
    }

    async fn walk(&mut self, manifest: &Manifest, walk: &Walk<'_>) -> Result<()> {
        for source in &manifest.draft.sources {
            let user = |file| User { source: &source.name, file, offset: None };
            self.walk_content(source.snapshot, &user(None), walk).await?;
            match source.form {
                SourceForm::Image => self.walk_files(source, walk).await?,
                SourceForm::Records | SourceForm::Unknown => {
                    let why = "this version cannot verify a source of this form".to_owned();
                    let object = ObjectName::new(Kind::Manifest, manifest.id).to_string();
                    if let Walk::Look = walk {
                        self.find(object, why, &user(None), None);
                    }
                }
            }
        }
        Ok(())
    }

    async fn walk_files(&mut self, source: &SourceManifest, walk: &Walk<'_>) -> Result<()> {
        let in_list = User { source: &source.name, file: None, offset: None };
        self.walk_content(source.files, &in_list, walk).await?;
        let looking = matches!(walk, Walk::Look);
        let mut entries = FileListReader::new(self.chunks.clone(), source.files);
        let (mut count, mut bytes) = (0, 0_u64);
        loop {
            let entry = match entries.next().await {
                Ok(Some(entry)) => entry,
                Ok(None) => break,
                Err(error) => {
                    let mut blame = Blame::of(error)?;
                    if looking {
                        self.name_the_pack(blame.chunk, &mut blame.object, &mut blame.why).await?;
                        let why =
                            format!("the file list cannot be read after {count} entries: {}", blame.why);
                        self.find(blame.object, why, &in_list, blame.chunk);
                    }
                    return Ok(());
                }
            };
            self.check_cancelled()?;
            count += 1;
            bytes = bytes.saturating_add(entry.size());
            if looking {
                self.report.files += 1;
                self.report.bytes = self.report.bytes.saturating_add(entry.size());
                self.progress.files += 1;
                if self.progress.files.is_multiple_of(64) {
                    self.tell();
                }
            }
            if let FileKind::File { content } = &entry.kind {
                let user = User { source: &source.name, file: Some(entry.display_path()), offset: Some(0) };
                self.walk_content(*content, &user, walk).await?;
            }
        }
        if looking && (count, bytes) != (source.file_count, source.bytes) {
            let object = ObjectName::new(Kind::Manifest, self.report.backup).to_string();
            let why = format!(
                "it announces {} files of {} bytes, the list holds {count} of {bytes}",
                source.file_count, source.bytes
            );
            self.find(object, why, &in_list, None);
        }
        Ok(())
    }

    /// Comes to every node and chunk of some content. What is below an unreadable node cannot be reached: that is said once.
    async fn walk_content(&mut self, content: ContentRef, user: &User<'_>, walk: &Walk<'_>) -> Result<()> {
        let mut leaves = LeafReader::new(self.chunks.clone(), content);
        let mut offset = user.offset;
        loop {
            match leaves.step().await {
                Ok(None) => return Ok(()),
                Ok(Some(chunk)) => {
                    let at = User { file: user.file.clone(), offset, ..*user };
                    self.visit(&chunk, &at, walk).await?;
                    if chunk.level == 0 {
                        offset = offset.map(|offset| offset.saturating_add(chunk.length));
                    }
                }
                Err(error) => {
                    let mut blame = Blame::of(error)?;
                    if let Walk::Look = walk {
                        self.name_the_pack(blame.chunk, &mut blame.object, &mut blame.why).await?;
                        let at = User { file: user.file.clone(), offset, ..*user };
                        let why = format!("what comes from here on cannot be found: {}", blame.why);
                        self.find(blame.object, why, &at, blame.chunk);
                    }
                    return Ok(());
                }
            }
        }
    }

    async fn visit(&mut self, chunk: &ContentRef, user: &User<'_>, walk: &Walk<'_>) -> Result<()> {
        if let Walk::Name(lost) = walk {
            if let Some((object, why)) = lost.get(&chunk.id) {
                self.find(object.clone(), why.clone(), user, Some(chunk.id));
            }
            return Ok(());
        }
        self.check_cancelled()?;
        let refreshes = self.repository.index().refreshes();
        let mut found = self.look_for(chunk)?;
        // Packs may have been rewritten since the lists were taken.
        if found.is_err() && self.chunks.refresh_since(refreshes).await? {
            self.packs = self.repository.io().list(Kind::Pack).await?;
            found = self.look_for(chunk)?;
        }
        if let Err((object, why)) = &mut found {
            self.name_the_pack(Some(chunk.id), object, why).await?;
        }
        match found {
            Ok(place) => match &mut self.needed {
                Some(needed) => needed.add(&place),
                None => Ok(()),
            },
            Err((object, why)) => {
                self.find(object, why, user, Some(chunk.id));
                Ok(())
            }
        }
    }

    /// A place in a pack that is listed whole; or what is missing, and why.
    fn look_for(&self, chunk: &ContentRef) -> Result<Result<Location, (String, String)>> {
        let locations = self.repository.index().locate(&chunk.id)?;
        let fits = |place: &&Location| chunk.level > 0 || u64::from(place.entry.plain_len) == chunk.length;
        let present = locations.iter().filter(fits).find(|place| self.is_whole(place));
        Ok(match (present, locations.first()) {
            (Some(place), _) => Ok(place.clone()),
            (None, Some(place)) => Err((
                ObjectName::new(Kind::Pack, place.pack).to_string(),
                self.why_not_whole(place.pack, place.pack_size),
            )),
            (None, None) => Err((format!("chunk {}", chunk.id), "it is in no pack".to_owned())),
        })
    }

    /// Of a chunk that no pack has any more, the pack that had it is what was lost.
    async fn name_the_pack(
        &self,
        chunk: Option<ChunkId>,
        object: &mut String,
        why: &mut String,
    ) -> Result<()> {
        if let Some(chunk) = chunk
            && object.starts_with("chunk ")
            && let Some((pack, size)) = self.pack_that_had(&chunk).await?
        {
            *object = ObjectName::new(Kind::Pack, pack).to_string();
            *why = self.why_not_whole(pack, size);
        }
        Ok(())
    }

    /// The pack that a segment of the index still names for a chunk that no whole pack has, and its length. Reads all segments: only
    /// for naming what was lost.
    async fn pack_that_had(&self, id: &ChunkId) -> Result<Option<(PackId, u64)>> {
        let io = self.repository.io();
        for listed in io.list(Kind::Index).await? {
            let name = ObjectName::new(Kind::Index, listed.id);
            // One that cannot be read names nothing.
            let Ok(bytes) = io.get(name).await else { continue };
            let Ok(tables) = index_segment::decode(self.repository.ring(), name, &bytes) else { continue };
            let had = tables.iter().find(|table| table.entries.iter().any(|entry| entry.id == *id));
            if let Some(table) = had {
                return Ok(Some((table.pack, table.size)));
            }
        }
        Ok(None)
    }

    fn listed_size(&self, pack: PackId) -> Option<u64> {
        listed_size(&self.packs, pack)
    }

    fn is_whole(&self, place: &Location) -> bool {
        self.listed_size(place.pack) == Some(place.pack_size)
    }

    fn why_not_whole(&self, pack: PackId, written: u64) -> String {
        match self.listed_size(pack) {
            None => "it is missing".to_owned(),
            Some(size) if size != written => {
                format!("it has {size} bytes, not the {written} that were written")
            }
            Some(_) => "it holds another chunk where this one should be".to_owned(),
        }
    }

    /// Reads each needed pack once. Returns the chunks that are lost: damaged here and nowhere else whole.
    async fn check_packs(&mut self) -> Result<Lost> {
        let Some(mut needed) = self.needed.take() else { return Ok(Lost::new()) };
        let totals = needed.finish()?;
        self.report.chunks = totals.chunks;
        self.progress.bytes_total = totals.pack_bytes;
        let decode = self.options.level >= VerifyLevel::Decrypt;
        let mut lost = Lost::new();
        let mut running = tokio::task::JoinSet::new();
        let mut last = None;
        loop {
            while running.len() < PACKS_AT_A_TIME
                && let Some((pack, chunks)) = needed.next_pack(last)?
            {
                last = Some(pack);
                let (io, ring) = (self.repository.io().clone(), Arc::clone(self.repository.ring()));
                running.spawn(check_pack(io, ring, pack, chunks, decode));
            }
            let finished = tokio::select! {
                finished = running.join_next() => finished,
                () = self.options.cancel.cancelled() => return Err(Error::Cancelled),
            };
            let Some(finished) = finished else { return Ok(lost) };
            let check = match finished {
                Ok(check) => check?,
                Err(failure) => match failure.try_into_panic() {
                    Ok(panic) => std::panic::resume_unwind(panic),
                    Err(_) => return Err(Error::Cancelled),
                },
            };
            self.report.packs += 1;
            self.report.bytes_read += check.bytes_read;
            self.progress.bytes += check.bytes_read;
            self.tell();
            let distrust = self.repository.index().distrust();
            match check.fault {
                Some(fault) => {
                    if !fault.missing {
                        distrust.add(check.pack, fault.chunks.iter().map(|chunk| chunk.id));
                    }
                    self.judge(check.pack, fault, &mut lost).await?;
                }
                None => distrust.clear(check.pack, &check.decoded),
            }
        }
    }

    /// What a damaged pack means for the backup: nothing, where each chunk has another copy that is whole.
    async fn judge(&mut self, pack: PackId, fault: PackFault, lost: &mut Lost) -> Result<()> {
        let object = ObjectName::new(Kind::Pack, pack).to_string();
        let mut lost_here = 0;
        for chunk in &fault.chunks {
            match self.chunks.read(&chunk.id).await {
                Ok(_) => {}
                Err(error) => {
                    Blame::of(error)?;
                    lost_here += 1;
                    if lost.len() < MAX_FINDINGS {
                        lost.insert(chunk.id, (object.clone(), chunk.why.clone()));
                    } else {
                        self.report.findings_omitted += 1;
                    }
                }
            }
        }
        // A chunk of the trees, lost by this pack, is named already.
        let is_named = self.report.findings.iter().any(|finding| finding.object == object);
        if lost_here == 0 && !fault.missing && !is_named {
            let why = match fault.chunks.len() {
                0 => format!("{}; no chunk of this backup is affected", fault.why),
                1 => format!("{}; another pack has a whole copy of the chunk that it lost", fault.why),
                chunks => format!(
                    "{}; other packs have whole copies of the {chunks} chunks that it lost",
                    fault.why
                ),
            };
            add(
                &mut self.report,
                Finding { object, why, is_loss: false, source: None, file: None, offset: None, chunk: None },
            );
        }
        Ok(())
    }

    fn find(&mut self, object: String, why: String, user: &User<'_>, chunk: Option<ChunkId>) {
        let User { source, file, offset } = user;
        let (source, file, offset) = (Some((*source).to_owned()), file.clone(), *offset);
        add(&mut self.report, Finding { object, why, is_loss: true, source, file, offset, chunk });
    }

    fn check_cancelled(&self) -> Result<()> {
        if self.options.cancel.is_cancelled() { Err(Error::Cancelled) } else { Ok(()) }
    }

    fn tell(&self) {
        if let Some(progress) = &self.options.progress {
            progress(self.progress);
        }
    }
}

/// Several chunks of one source or file, such as its description and its list, can be lost with one pack and for one reason: where
/// nothing but the chunk tells them apart, that is one thing to tell.
fn add(report: &mut VerifyReport, finding: Finding) {
    let of_the_same = |other: &&Finding| other.source == finding.source && other.file == finding.file;
    let is_told = |other: &Finding| {
        other.offset == finding.offset && other.object == finding.object && other.why == finding.why
    };
    if report.findings.iter().rev().take_while(of_the_same).any(is_told) {
        return;
    }
    if report.findings.len() < MAX_FINDINGS {
        report.findings.push(finding);
    } else {
        report.findings_omitted += 1;
    }
}

/// What damage is to be named after.
struct Blame {
    object: String,
    why: String,
    chunk: Option<ChunkId>,
}

impl Blame {
    /// Tells damage, which a report names, from failures that keep one from looking.
    fn of(error: Error) -> Result<Self> {
        match error {
            Error::Damaged { object, why } => Ok(Self { object, why, chunk: None }),
            Error::ChunkLost { chunk, packs, why } => {
                let pack = packs.first().map(|pack| ObjectName::new(Kind::Pack, *pack).to_string());
                Ok(Self { object: pack.unwrap_or_else(|| format!("chunk {chunk}")), why, chunk: Some(chunk) })
            }
            Error::Inconsistent { what, why } => Ok(Self { object: what.to_owned(), why, chunk: None }),
            error => Err(error),
        }
    }
}
