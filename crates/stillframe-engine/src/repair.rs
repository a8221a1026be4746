//! `repair`: what can be had of a damaged repository is made whole again.

use std::sync::Arc;

use stillframe_jobs::{Job, Phase, Progress};
use stillframe_repo::{
    BackupId, BackupRepair, Error as RepoError, IndexRepair, RepairOptions as RepoOptions, Repository,
};

use crate::{EngineError, Event, Surroundings};

/// How to repair backups.
#[derive(Debug, Clone, Copy, Default)]
pub struct RepairOptions {
    /// Only find out what is lost.
    pub dry_run: bool,
    /// Forget the damaged ones of which a repaired one was written.
    pub forget: bool,
    /// …and those of which nothing can be had. Only of backups that somebody named: packs may only be out of sight.
    pub forget_lost: bool,
}

/// What came of one backup.
#[derive(Debug)]
pub struct Repaired {
    /// The one that was looked at.
    pub backup: BackupId,
    /// What it lost, and what is left; or why nothing of it can be read.
    pub outcome: Result<BackupRepair, RepoError>,
    /// Its seal was damaged, and was written anew (or would be).
    pub is_resealed: bool,
    /// It was forgotten.
    pub is_forgotten: bool,
}

impl Repaired {
    /// Whether something of it was lost.
    pub fn is_damaged(&self) -> bool {
        self.outcome.as_ref().map_or(true, |repair| !repair.lost.is_empty())
    }

    /// Whether it stays, damaged as it is, and no repaired one stands beside it.
    pub fn is_left(&self) -> bool {
        let has_repaired = self.outcome.as_ref().is_ok_and(|repair| repair.repaired.is_some());
        self.is_damaged() && !has_repaired && !self.is_forgotten
    }
}

/// Writes the index anew from the packs.
pub async fn repair_index(repo: &Repository, job: &Job) -> Result<IndexRepair, EngineError> {
    job.enter(Phase::Transferring)?;
    Ok(repo.repair_index(job.token()).await?)
}

/// Makes whole backups of what is left of these. One that was repaired stays repaired when a later one fails.
pub async fn repair_backups(
    repo: &Repository,
    backups: &[BackupId],
    options: RepairOptions,
    job: &Job,
    surroundings: &Surroundings,
) -> Result<Vec<Repaired>, EngineError> {
    job.enter(Phase::Transferring)?;
    let pins = repo.pins().await?;
    let repo_options = RepoOptions {
        dry_run: options.dry_run,
        cancel: job.token().clone(),
        clock: Arc::clone(&surroundings.clock),
    };
    let known = repo.backups().await?.readable;
    let mut all = Vec::new();
    for (done, backup) in backups.iter().copied().enumerate() {
        if job.token().is_cancelled() {
            return Err(EngineError::Cancelled);
        }
        let is_resealed = repo.reseal(backup, options.dry_run).await?;
        // Who was killed before the damaged one was forgotten has repaired it already.
        let earlier = known.iter().find(|manifest| manifest.draft.repaired_from == Some(backup));
        let how = RepoOptions { dry_run: options.dry_run || earlier.is_some(), ..repo_options.clone() };
        let outcome = match repo.repair_backup(backup, &how).await {
            Err(error) if error.is_unreadable() => Err(error),
            // Forgotten by somebody meanwhile.
            Err(RepoError::NotFound { .. }) => continue,
            Err(error @ RepoError::GivenUp { .. }) => {
                surroundings.warn(format!("backup {backup}: {error}"));
                continue;
            }
            outcome => Ok(outcome?),
        };
        let mut repaired = Repaired { backup, outcome, is_resealed, is_forgotten: false };
        if let (Ok(repair), Some(earlier)) = (&mut repaired.outcome, earlier)
            && !repair.lost.is_empty()
            && earlier.draft.lost_files >= repair.lost.len() as u64
        {
            repair.repaired = Some(earlier.id);
        }
        if let Ok(BackupRepair { repaired: Some(new), .. }) = &repaired.outcome
            && let Some(Some(pin)) = pins.get(&backup)
            && !options.dry_run
        {
            // Whoever wanted to keep it wants to keep what is left.
            repo.pin(*new, pin).await?;
        }
        if !options.dry_run && may_go(&repaired, options) {
            repaired.is_forgotten = forget(repo, backup, surroundings).await?;
        }
        all.push(repaired);
        let progress = Progress {
            files_done: done as u64 + 1,
            files_total: Some(backups.len() as u64),
            ..Progress::new(Phase::Transferring)
        };
        surroundings.tell(Event::Progress(job.progress(&progress)));
    }
    Ok(all)
}

/// Only a format of later versions is nobody's to judge here.
fn may_go(repaired: &Repaired, options: RepairOptions) -> bool {
    match &repaired.outcome {
        Err(error) => options.forget_lost && matches!(error, RepoError::Damaged { .. }),
        Ok(repair) if repair.lost.is_empty() => false,
        Ok(repair) if repair.has_more => false,
        Ok(repair) if repair.repaired.is_some() => options.forget,
        Ok(repair) => options.forget_lost && repair.files == 0,
    }
}

async fn forget(
    repo: &Repository,
    backup: BackupId,
    surroundings: &Surroundings,
) -> Result<bool, EngineError> {
    match repo.forget(backup).await {
        Ok(()) => Ok(true),
        Err(error @ RepoError::Pinned { .. }) => {
            surroundings.warn(format!("{error}; it stays, damaged as it is"));
            Ok(false)
        }
        Err(error) => Err(error.into()),
    }
}
