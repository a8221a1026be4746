//! `prune`: room comes back.

use std::sync::Arc;

use stillframe_jobs::{Job, Phase, Progress};
use stillframe_repo::{PruneEvent, PruneOptions as RepoOptions, PruneOutcome, PrunePlan, Repository};
use stillframe_storage::BandwidthLimit;

use crate::listening::while_listening;
use crate::{EngineError, Event, Surroundings};

/// How to prune.
#[derive(Debug, Clone, Default)]
pub struct PruneOptions {
    /// Bytes per second to the repository.
    pub bandwidth: Option<Arc<BandwidthLimit>>,
}

/// What a pruning would do in its first round. Nothing is written.
pub async fn plan_prune(
    repo: &Repository,
    options: &PruneOptions,
    job: &Job,
    surroundings: &Surroundings,
) -> Result<PrunePlan, EngineError> {
    Ok(repo.plan_prune(&of(options, job, surroundings)).await?)
}

/// Deletes what no backup needs. Others may write, read and prune meanwhile; one that is stopped has lost nothing.
pub async fn prune(
    repo: &Repository,
    options: &PruneOptions,
    job: &Job,
    surroundings: &Surroundings,
) -> Result<PruneOutcome, EngineError> {
    job.enter(Phase::Transferring)?;
    let mut progress = Progress::new(Phase::Transferring);
    let heard = |event| {
        match event {
            PruneEvent::Planned(plan) => {
                // Rounds add up: what is to be moved, and what is to be deleted.
                let round = plan.moved_bytes + plan.dead_bytes + plan.rewritten_bytes;
                progress.bytes_total = Some(progress.bytes_done + round);
                progress.files_total = Some(progress.files_done + plan.dead_packs + plan.rewritten_packs);
            }
            PruneEvent::Moved { bytes } => progress.bytes_done += bytes,
            PruneEvent::Deleted { bytes } => {
                progress.bytes_done += bytes;
                progress.files_done += 1;
            }
            PruneEvent::Met => {
                tracing::info!("another pruning began at the same time; waiting");
                return;
            }
            PruneEvent::Spared { why } => {
                surroundings
                    .warn(format!("{why}; nobody can say what would be lost with it, so it is left alone"));
                return;
            }
        }
        surroundings.tell(Event::Progress(job.progress(&progress)));
    };
    let work =
        async |tell| repo.prune(&RepoOptions { events: Some(tell), ..of(options, job, surroundings) }).await;
    Ok(while_listening(work, heard).await?)
}

fn of(options: &PruneOptions, job: &Job, surroundings: &Surroundings) -> RepoOptions {
    RepoOptions {
        bandwidth: options.bandwidth.clone(),
        cancel: job.token().clone(),
        ..RepoOptions::new(Arc::clone(&surroundings.clock))
    }
}
