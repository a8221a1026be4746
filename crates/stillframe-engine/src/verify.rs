//! `verify`: can this backup be restored?

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use stillframe_capture::{CaptureError, Engine, validate};
use stillframe_jobs::{Job, Phase, Progress};
use stillframe_repo::{
    BackupId, Error as RepoError, Finding, Manifest, ObjectReport, Repository, SourceForm, SourceManifest,
    Verification, VerifyLevel, VerifyOptions as RepoOptions, VerifyProgress, VerifyReport, check_objects,
};
use stillframe_storage::StagingDir;
use stillframe_storage::object_store::ObjectStore;

use crate::engine_of::engine_of;
use crate::listening::while_listening;
use crate::restore::{RestoreOptions, refuse_too_large, restore_into};
use crate::{EngineError, Event, Surroundings};

/// How deep to look. Each level holds the ones before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Every object that the backup needs is there.
    Exists,
    /// The stored bytes are as they were written.
    Hash,
    /// Every chunk decrypts to its content.
    Decrypt,
    /// The restored databases pass their engines' checks.
    Open,
}

impl Level {
    /// As on the command line and in the history.
    pub fn name(self) -> &'static str {
        match self {
            Self::Exists => "exists",
            Self::Hash => "hash",
            Self::Decrypt => "decrypt",
            Self::Open => "open",
        }
    }
}

/// What to verify, and how.
#[derive(Debug, Clone)]
pub struct VerifyOptions {
    /// How deep to look.
    pub level: Level,
    /// For [`Level::Open`]: where to restore to for the check. It needs the room of the whole backup.
    pub staging: PathBuf,
    /// The machine, for the record of it in the repository.
    pub host: String,
}

/// What was looked at, and what is wrong.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct VerifyOutcome {
    /// Files of the backup.
    pub files: u64,
    /// Bytes of the backup.
    pub bytes: u64,
    /// Packs that it needs.
    pub packs: u64,
    /// One sentence for each thing in the repository that is wrong and takes something from this backup.
    pub damage: Vec<String>,
    /// One sentence for each thing in the repository that is wrong and takes nothing from this backup, since all that it had has other
    /// copies.
    pub beside: Vec<String>,
    /// One sentence for each source that is not sound to its engine, though the repository gives back what was captured.
    pub unsound: Vec<String>,
    /// One sentence for each source of which the level does not see everything that its engine would.
    pub unseen: Vec<String>,
}

/// Looks at one backup. Damage is an outcome, not an error; an error means that it could not be looked at to the end.
pub async fn verify(
    repo: &Repository,
    backup: BackupId,
    options: &VerifyOptions,
    job: &Job,
    surroundings: &Surroundings,
) -> Result<VerifyOutcome, EngineError> {
    job.enter(Phase::Transferring)?;
    let level = match options.level {
        Level::Exists => VerifyLevel::Exists,
        Level::Hash => VerifyLevel::Hash,
        Level::Decrypt | Level::Open => VerifyLevel::Decrypt,
    };
    let report = look(repo, backup, level, job, surroundings).await?;
    let (losses, beside): (Vec<_>, Vec<_>) = report.findings.iter().partition(|finding| finding.is_loss);
    let mut damage: Vec<String> = losses.into_iter().map(sentence).collect();
    let beside: Vec<String> = beside.into_iter().map(sentence).collect();
    if report.findings_omitted > 0 {
        damage.push(format!("and {} more", report.findings_omitted));
    }
    let mut outcome = VerifyOutcome {
        files: report.files,
        bytes: report.bytes,
        packs: report.packs,
        damage,
        beside,
        unsound: Vec::new(),
        unseen: Vec::new(),
    };
    if options.level == Level::Open && outcome.damage.is_empty() {
        let manifest = repo.manifest(backup).await?;
        outcome.unsound = open_each(repo, &manifest, options, job, surroundings).await?;
        outcome.unseen = unseen(&manifest);
    }
    record(repo, backup, options, &outcome, surroundings).await;
    Ok(outcome)
}

/// Whoever looks after the backups sees when each was looked at last. A repository that may only be read is looked at all the same.
async fn record(
    repo: &Repository,
    backup: BackupId,
    options: &VerifyOptions,
    outcome: &VerifyOutcome,
    surroundings: &Surroundings,
) {
    let VerifyOutcome { damage, beside, unsound, .. } = outcome;
    let verification = Verification {
        at: surroundings.clock.now(),
        host: options.host.clone(),
        sound: damage.is_empty() && beside.is_empty() && unsound.is_empty(),
        whole: damage.is_empty(),
    };
    match repo.record_verification(backup, options.level.name(), verification).await {
        Ok(()) => {}
        Err(error @ RepoError::PermissionDenied { .. }) => {
            tracing::info!(%error, "the verification is not recorded in the repository");
        }
        Err(error) => {
            surroundings.warn(format!("the verification could not be recorded in the repository: {error}"));
        }
    }
}

/// Compares every object of the repository in `store` with its own hash, which needs no key. Damage is an outcome here, too.
pub async fn verify_objects(
    store: Arc<dyn ObjectStore>,
    job: &Job,
    surroundings: &Surroundings,
) -> Result<ObjectReport, EngineError> {
    job.enter(Phase::Transferring)?;
    let tell = |bytes| {
        let progress = Progress { bytes_done: bytes, ..Progress::new(Phase::Transferring) };
        surroundings.tell(Event::Progress(job.progress(&progress)));
    };
    Ok(check_objects(store, job.token(), &tell).await?)
}

async fn look(
    repo: &Repository,
    backup: BackupId,
    level: VerifyLevel,
    job: &Job,
    surroundings: &Surroundings,
) -> Result<VerifyReport, EngineError> {
    let heard = |done: VerifyProgress| {
        let progress = Progress {
            files_done: done.files,
            files_total: Some(done.files_total),
            bytes_done: done.bytes,
            bytes_total: (done.bytes_total > 0).then_some(done.bytes_total),
            ..Progress::new(Phase::Transferring)
        };
        surroundings.tell(Event::Progress(job.progress(&progress)));
    };
    let work = async |tell| {
        let cancel = job.token().clone();
        let options = RepoOptions { cancel, progress: Some(tell), ..RepoOptions::new(level) };
        repo.verify(backup, &options).await
    };
    Ok(while_listening(work, heard).await?)
}

pub(crate) fn sentence(finding: &Finding) -> String {
    let mut text = format!("{}: {}", finding.object, finding.why);
    match (&finding.source, &finding.file) {
        (Some(source), Some(file)) => text = format!("{source}: {file}: {text}"),
        (Some(source), None) => text = format!("{source}: {text}"),
        (None, _) => {}
    }
    if let Some(offset) = finding.offset {
        text = format!("{text} (lost from byte {offset})");
    }
    text
}

/// What was found in a restored copy that is gone by the time somebody reads of it: paths are those in the source.
fn of_source(source: &SourceManifest, place: &Path, found: &str) -> String {
    let found =
        found.replace(&format!("{}/", place.display()), "").replace(&place.display().to_string(), "it");
    format!("{}: {found}", source.name)
}

/// What the profile's check does not look at.
fn unseen(manifest: &Manifest) -> Vec<String> {
    let tables = manifest.draft.sources.iter().filter(|source| source.engine == Engine::RocksDb.name());
    let sentence = |source: &SourceManifest| {
        format!(
            "{}: the blocks of its tables were not compared with their checksums; RocksDB's own tool does that: \
             sst_dump --command=verify --verify_checksum",
            source.name
        )
    };
    tables.map(sentence).collect()
}

/// Restores each source into staging and lets its engine's profile check it there.
async fn open_each(
    repo: &Repository,
    manifest: &Manifest,
    options: &VerifyOptions,
    job: &Job,
    surroundings: &Surroundings,
) -> Result<Vec<String>, EngineError> {
    let mut unsound = Vec::new();
    for source in manifest.draft.sources.iter().filter(|source| source.form == SourceForm::Image) {
        let engine = engine_of(source)?;
        refuse_too_large(&options.staging, &[source], "choose another with --staging")?;
        surroundings.tell(Event::Staging(options.staging.clone()));
        let staging = StagingDir::create(&options.staging, &(surroundings.random_name)())
            .map_err(EngineError::io("make a staging directory in", &options.staging))?;
        let target = staging.path().join("restored");
        // As a restore that nothing else is asked of brings it back, named directories below it included.
        let (name, map) = (Some(source.name.clone()), BTreeMap::new());
        let host = options.host.clone();
        let restored = RestoreOptions { target: target.clone(), source: name, map, host };
        restore_into(repo, manifest, &restored, &target, job, surroundings).await?;
        let (cancel, place) = (job.token().clone(), target.clone());
        let checked = tokio::task::spawn_blocking(move || validate(engine, &target, &cancel)).await;
        match checked.map_err(|_| EngineError::Bug("the validation panicked".into()))? {
            Ok(report) => {
                report.remarks.iter().for_each(|remark| surroundings.warn(of_source(source, &place, remark)));
            }
            Err(CaptureError::Cancelled) => return Err(EngineError::Cancelled),
            Err(error) => unsound.push(of_source(source, &place, &error.to_string())),
        }
    }
    Ok(unsound)
}
