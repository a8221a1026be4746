//! `check`: is the repository as a whole what it should be?

use std::collections::BTreeSet;

use stillframe_jobs::{Job, Phase, Progress};
use stillframe_repo::{
    BackupId, CheckFinding, CheckOptions as RepoOptions, CheckProgress, CheckReport, Error as RepoError,
    ReadData, Repository, Verification,
};

use crate::listening::while_listening;
use crate::verify::sentence;
use crate::{EngineError, Event, Surroundings};

/// Looks at everything that is stored. Damage is in the report, not an error; which backups lose something is noted in the repository, where
/// that may be written.
pub async fn check(
    repo: &Repository,
    read: ReadData,
    host: &str,
    job: &Job,
    surroundings: &Surroundings,
) -> Result<CheckReport, EngineError> {
    job.enter(Phase::Transferring)?;
    let heard = |done: CheckProgress| {
        let progress = Progress {
            files_done: done.steps,
            files_total: Some(done.steps_total),
            bytes_done: done.bytes,
            bytes_total: (done.bytes_total > 0).then_some(done.bytes_total),
            ..Progress::new(Phase::Transferring)
        };
        surroundings.tell(Event::Progress(job.progress(&progress)));
    };
    let work = async |tell| {
        let options =
            RepoOptions { cancel: job.token().clone(), progress: Some(tell), ..RepoOptions::new(read) };
        repo.check(&options).await
    };
    let report = while_listening(work, heard).await?;
    record(repo, read, &report, host, surroundings).await?;
    Ok(report)
}

/// What a backup lost counts when backups are forgotten, and so does that it has come back. Nothing else is noted.
async fn record(
    repo: &Repository,
    read: ReadData,
    report: &CheckReport,
    host: &str,
    surroundings: &Surroundings,
) -> Result<(), EngineError> {
    let level = if read == ReadData::All { "decrypt" } else { "exists" };
    let losers: BTreeSet<BackupId> = report.findings.iter().filter_map(|found| found.backup).collect();
    let was_damaged = repo.all_verified().await?.into_iter().filter(|(_, verified)| verified.is_damaged());
    let recovered = was_damaged.map(|(id, _)| id).filter(|id| !losers.contains(id)).collect::<Vec<_>>();
    let noted = losers.iter().map(|id| (*id, false)).chain(recovered.into_iter().map(|id| (id, true)));
    for (id, is_whole) in noted {
        let at = surroundings.clock.now();
        // What was damaged inside of packs is not refuted by who did not read them.
        let level = if is_whole { level } else { "decrypt" };
        let verification = Verification { at, host: host.to_owned(), sound: is_whole, whole: is_whole };
        match repo.record_verification(id, level, verification).await {
            Err(RepoError::PermissionDenied { .. }) => return Ok(()),
            noted => noted?,
        }
    }
    Ok(())
}

/// In one sentence.
pub fn words(found: &CheckFinding) -> String {
    let what = sentence(&found.finding);
    match found.backup {
        Some(backup) => format!("backup {backup}: {what}"),
        None => what,
    }
}
