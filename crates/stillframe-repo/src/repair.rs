//! Repairing: what a damaged backup still has becomes a backup of its own, and what it lost is named.

use std::sync::{Arc, Mutex, PoisonError};

use serde::Serialize;
use stillframe_storage::Clock;
use tokio_util::sync::CancellationToken;

use crate::content_reader::LeafReader;
use crate::error::{Error, Result};
use crate::file_list_writer::FileListWriter;
use crate::manifest::{ManifestDraft, SourceForm, SourceManifest};
use crate::session::WriteSession;
use crate::verify::MAX_FINDINGS;
use crate::write::WriteOptions;
use crate::{BackupId, ContentRef, FileEntry, FileKind, Manifest, Repository};

/// Of so many lost files a repaired backup says the names.
const NAMED: usize = 5;

/// How to repair backups.
#[derive(Clone)]
pub struct RepairOptions {
    /// Find out what is lost; write nothing.
    pub dry_run: bool,
    /// Stops it; nothing is written then.
    pub cancel: CancellationToken,
    /// For what is written.
    pub clock: Arc<dyn Clock>,
}

/// Something that a backup lost.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LostFile {
    /// The source that it was in.
    pub source: String,
    /// Its path there. `None`: the source's description, or a part of the list of its files.
    pub file: Option<String>,
    /// Why it cannot be read.
    pub why: String,
}

/// What came of repairing a backup.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct BackupRepair {
    /// The damaged one. It is left as it is.
    pub backup: BackupId,
    /// What it lost, at most ten thousand of it. Empty: nothing, there was nothing to do.
    pub lost: Vec<LostFile>,
    /// What else it lost.
    pub lost_omitted: u64,
    /// Files that are left.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Of a source the description is lost, without which it cannot be restored, though files of it may be there: a reason to keep the
    /// damaged one.
    pub has_more: bool,
    /// The backup of what is left. `None`: there was nothing to do, or nothing is left, or it was only asked.
    pub repaired: Option<BackupId>,
}

impl Repository {
    /// Writes a backup of all that can still be read of a damaged one, with the same labels, dated right after it. Nothing is uploaded but
    /// its lists. A manifest that cannot be read is an error: then nothing is left.
    ///
    /// What cannot be read is what is in no pack, and what did not come out of packs in which damage was seen from this machine: a check
    /// that reads the data, or a verification, sees it.
    pub async fn repair_backup(&self, id: BackupId, options: &RepairOptions) -> Result<BackupRepair> {
        self.index().refresh().await?;
        let manifest = self.manifest(id).await?;
        let found = Salvage::of(self, &manifest, options, None).await?.outcome;
        if found.lost.is_empty() || options.dry_run || found.is_nothing_left {
            return Ok(found.into_repair(id, None));
        }
        let write_options = WriteOptions {
            base: Some(id),
            created: Some(manifest.created),
            cancel: options.cancel.clone(),
            ..WriteOptions::new(Arc::clone(&options.clock))
        };
        let found = Mutex::new(found);
        let write = self.write(&write_options, async |session: Arc<WriteSession>| {
            if session.base().is_none() {
                let why = format!("backup {id} was forgotten, or lost more, meanwhile");
                return Err(Error::GivenUp { why });
            }
            let salvage = Salvage::of(self, &manifest, options, Some(session)).await?;
            *found.lock().unwrap_or_else(PoisonError::into_inner) = salvage.outcome;
            Ok(salvage.draft)
        });
        let written = write.await?.manifest.id;
        let found = found.into_inner().unwrap_or_else(PoisonError::into_inner);
        Ok(found.into_repair(id, Some(written)))
    }
}

/// What is left of a backup, as a draft of a new one.
struct Salvage<'a> {
    repository: &'a Repository,
    options: &'a RepairOptions,
    session: Option<Arc<WriteSession>>,
    draft: ManifestDraft,
    outcome: Outcome,
}

#[derive(Default)]
struct Outcome {
    lost: Vec<LostFile>,
    omitted: u64,
    files: u64,
    bytes: u64,
    is_nothing_left: bool,
    has_more: bool,
}

impl Outcome {
    fn into_repair(self, backup: BackupId, repaired: Option<BackupId>) -> BackupRepair {
        let Self { lost, omitted, files, bytes, has_more, .. } = self;
        BackupRepair { backup, lost, lost_omitted: omitted, files, bytes, has_more, repaired }
    }

    fn lose(&mut self, source: &SourceManifest, file: Option<String>, why: String) {
        if self.lost.len() < MAX_FINDINGS {
            self.lost.push(LostFile { source: source.name.clone(), file, why });
        } else {
            self.omitted += 1;
        }
    }
}

impl<'a> Salvage<'a> {
    async fn of(
        repository: &'a Repository,
        manifest: &Manifest,
        options: &'a RepairOptions,
        session: Option<Arc<WriteSession>>,
    ) -> Result<Self> {
        let draft = ManifestDraft { sources: Vec::new(), ..manifest.draft.clone() };
        let mut salvage = Self { repository, options, session, draft, outcome: Outcome::default() };
        for source in &manifest.draft.sources {
            if source.form != SourceForm::Image || source.collections.is_some() {
                let object = format!("manifests/{}", manifest.id);
                return Err(Error::NewerForm { object, source_name: source.name.clone() });
            }
            salvage.source(source).await?;
        }
        salvage.outcome.is_nothing_left = salvage.draft.sources.is_empty();
        salvage.label(manifest.id);
        Ok(salvage)
    }

    /// Whoever restores it is told.
    fn label(&mut self, id: BackupId) {
        let lost = self.outcome.lost.len() as u64 + self.outcome.omitted;
        if lost == 0 {
            return;
        }
        self.draft.repaired_from = Some(id);
        self.draft.lost_files += lost;
        let name = |lost: &LostFile| match &lost.file {
            Some(file) => format!("{}: {file}", lost.source),
            None => format!("{}: {}", lost.source, lost.why),
        };
        let mut names: Vec<String> = self.outcome.lost.iter().take(NAMED).map(name).collect();
        if lost > NAMED as u64 {
            names.push(format!("and {} more", lost - NAMED as u64));
        }
        self.draft.warnings.push(format!(
            "this backup was repaired from {id}, without what could not be read any more: {}; a database in it may not open",
            names.join(", ")
        ));
    }

    async fn source(&mut self, source: &SourceManifest) -> Result<()> {
        if let Some(why) = self.loss_of(&[source.snapshot]).await? {
            let why = format!("its description is lost, and without it none of it can be restored: {why}");
            self.outcome.lose(source, None, why);
            self.outcome.has_more = true;
            return Ok(());
        }
        let session = self.session.clone();
        let (sender, mut kept) = tokio::sync::mpsc::channel::<FileEntry>(1024);
        let writer = session.clone().map(|session| {
            tokio::task::spawn_blocking(move || {
                let mut list = FileListWriter::new(&session);
                while let Some(entry) = kept.blocking_recv() {
                    if let FileKind::File { content } = &entry.kind {
                        session.take_over(content)?;
                    }
                    list.push(&entry)?;
                }
                list.finish()
            })
        });
        let (mut count, mut bytes) = (0, 0_u64);
        let mut leaves = LeafReader::new(self.repository.chunk_reader(), source.files);
        loop {
            let leaf = match leaves.next().await {
                Ok(Some(leaf)) => leaf,
                Ok(None) => break,
                Err(error) if error.is_damage() => {
                    let why = format!("the list of its files cannot be followed to the end: {error}");
                    self.outcome.lose(source, None, why);
                    break;
                }
                Err(error) => return Err(error),
            };
            let list = self.repository.read_chunk(&leaf.id).await;
            let entries = match list.and_then(|list| FileEntry::decode_all(&list)) {
                Ok(entries) => entries,
                Err(error) if error.is_damage() => {
                    let why = format!("a part of the list of its files is lost: {error}");
                    self.outcome.lose(source, None, why);
                    continue;
                }
                Err(error) => return Err(error),
            };
            for entry in self.readable(source, entries).await? {
                count += 1;
                bytes = bytes.saturating_add(entry.size());
                // Without a writer nobody listens; one that failed says why below.
                if session.is_some() && sender.send(entry).await.is_err() {
                    break;
                }
            }
        }
        drop(sender);
        self.outcome.files += count;
        self.outcome.bytes = self.outcome.bytes.saturating_add(bytes);
        let mut left = SourceManifest { file_count: count, bytes, ..source.clone() };
        if let (Some(writer), Some(session)) = (writer, &self.session) {
            let list = writer.await.map_err(|_| Error::Cancelled)??;
            session.take_over(&source.snapshot)?;
            left.files = list.content;
        }
        self.draft.sources.push(left);
        Ok(())
    }

    /// Those of some entries of a list of which all is there.
    async fn readable(&mut self, source: &SourceManifest, entries: Vec<FileEntry>) -> Result<Vec<FileEntry>> {
        let contents: Vec<ContentRef> = entries.iter().filter_map(content_of).collect();
        if self.loss_of(&contents).await?.is_none() {
            return Ok(entries);
        }
        let mut kept = Vec::with_capacity(entries.len());
        for entry in entries {
            let content = content_of(&entry);
            match self.loss_of(content.as_slice()).await? {
                None => kept.push(entry),
                Some(why) => self.outcome.lose(source, Some(entry.display_path()), why),
            }
        }
        Ok(kept)
    }

    /// `None`: all that these consist of can be had.
    async fn loss_of(&self, contents: &[ContentRef]) -> Result<Option<String>> {
        match self.repository.look_for_all(contents.iter().copied(), &self.options.cancel).await {
            Ok(()) => Ok(None),
            Err(error) if error.is_damage() => Ok(Some(error.to_string())),
            Err(error) => Err(error),
        }
    }
}

fn content_of(entry: &FileEntry) -> Option<ContentRef> {
    match entry.kind {
        FileKind::File { content } => Some(content),
        _ => None,
    }
}
