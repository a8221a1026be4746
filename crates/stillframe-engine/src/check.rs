//! `check`: is the repository as a whole what it should be?

use stillframe_jobs::{Job, Phase, Progress};
use stillframe_repo::{
    CheckFinding, CheckOptions as RepoOptions, CheckProgress, CheckReport, ReadData, Repository,
};

use crate::listening::while_listening;
use crate::verify::sentence;
use crate::{EngineError, Event, Surroundings};

/// Looks at everything that is stored, and changes nothing. Damage is in the report, not an error.
pub async fn check(
    repo: &Repository,
    read: ReadData,
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
    Ok(while_listening(work, heard).await?)
}

/// In one sentence.
pub fn words(found: &CheckFinding) -> String {
    let what = sentence(&found.finding);
    match found.backup {
        Some(backup) => format!("backup {backup}: {what}"),
        None => what,
    }
}
