//! `repair index` and `repair snapshots`.

use serde_json::json;
use stillframe_engine::repair::{RepairOptions, Repaired, repair_backups, repair_index};
use stillframe_jobs::Phase;
use stillframe_repo::{BackupId, LostFile, Repository};

use crate::cli::{Labels, RepairCommand, RepairSnapshots, RepoArgs};
use crate::failure::{Failure, Kind};
use crate::repository::{open_repository, open_to_write, pick, place_text};
use crate::session::{Session, full_share};
use crate::sizes::{bytes, count};

/// Runs one of them.
pub async fn run(session: &Session, command: &RepairCommand) -> Result<(), Failure> {
    match command {
        RepairCommand::Index { repo } => index(session, repo).await,
        RepairCommand::Snapshots(args) => snapshots(session, args).await,
    }
}

async fn index(session: &Session, args: &RepoArgs) -> Result<(), Failure> {
    let subject = format!("index of {}", place_text(&args.repo));
    let opened = open_to_write(args).await;
    let (repo, _uploads) = session.recorded("repair", &subject, opened)?;
    let phases = [Phase::Transferring];
    let done = session
        .run_job("repair", &subject, &phases, full_share(), async |job, _| {
            let done = repair_index(&repo, job).await?;
            let object = json!(done);
            Ok((done, object))
        })
        .await?;
    for (pack, why) in &done.unreadable {
        session
            .console
            .warn(format!("what is in {pack} is known from the old index alone, if at all: {why}"));
    }
    session.console.line(format!(
        "the index was written anew from {}: {} in place of {}",
        count(done.packs, "pack"),
        count(done.segments_written, "segment"),
        done.segments_removed,
    ));
    session
        .console
        .note("other machines remember what the old index said: there, delete the cache directory");
    session.console.object("index-repaired", json!(done));
    Ok(())
}

async fn snapshots(session: &Session, args: &RepairSnapshots) -> Result<(), Failure> {
    let place = place_text(&args.repo.repo);
    let subject = match args.backups.as_slice() {
        [] => format!("backups of {place}"),
        backups => format!("{} of {place}", backups.join(" ")),
    };
    let opened = if args.dry_run {
        open_repository(&args.repo).await.map(|repo| (repo, None))
    } else {
        open_to_write(&args.repo).await
    };
    let (repo, _uploads) = session.recorded("repair", &subject, opened)?;
    let ids = session.recorded("repair", &subject, chosen(session, &repo, args).await)?;
    let is_named = !args.backups.is_empty();
    let options =
        RepairOptions { dry_run: args.dry_run, forget: args.forget, forget_lost: args.forget && is_named };
    let phases = [Phase::Transferring];
    let kind = if args.dry_run { "plan" } else { "repair" };
    let all = session
        .run_job(kind, &subject, &phases, full_share(), async |job, surroundings| {
            let all = repair_backups(&repo, &ids, options, job, surroundings).await?;
            let damaged = all.iter().filter(|repaired| repaired.is_damaged()).count();
            let object = json!({ "backups": all.len(), "damaged": damaged });
            Ok((all, object))
        })
        .await?;
    let damaged: Vec<&Repaired> = all.iter().filter(|repaired| repaired.is_damaged()).collect();
    damaged.iter().for_each(|repaired| tell(session, repaired, args.dry_run));
    for resealed in all.iter().filter(|repaired| repaired.is_resealed) {
        let done = if args.dry_run { "would be written" } else { "was written" };
        session.console.line(format!("backup {}: its seal was damaged, and {done} anew", resealed.backup));
    }
    session.console.object(
        "repairs",
        json!({ "backups": all.len(), "damaged": damaged.len(), "resealed": all.iter().filter(|one| one.is_resealed).count(),
            "dry_run": args.dry_run }),
    );
    if damaged.is_empty() && all.iter().any(|repaired| repaired.is_resealed) {
        return Ok(());
    }
    if damaged.is_empty() {
        session.console.line(format!(
            "nothing to repair: {}; damage inside packs is found by `stillframe check --read-data`",
            count(all.len() as u64, "backup")
        ));
        return Ok(());
    }
    if args.dry_run {
        session.console.line("nothing was changed");
        return Ok(());
    }
    let left: Vec<String> =
        damaged.iter().filter(|repaired| repaired.is_left()).map(|left| left.backup.to_string()).collect();
    if left.is_empty() {
        return Ok(());
    }
    let message = format!(
        "of {} nothing can be had: {}; if it is not only out of sight (a disk that is not mounted), name them, with --forget, to remove them",
        count(left.len() as u64, "backup"),
        left.join(", ")
    );
    Err(Failure::new(Kind::Damaged, message))
}

/// The named ones, or all, also those that cannot be read.
async fn chosen(
    session: &Session,
    repo: &Repository,
    args: &RepairSnapshots,
) -> Result<Vec<BackupId>, Failure> {
    if args.backups.is_empty() {
        let backups = repo.backups().await?;
        let unreadable = backups.unreadable.into_iter().map(|(id, _)| id);
        return Ok(backups.readable.into_iter().map(|manifest| manifest.id).chain(unreadable).collect());
    }
    let mut ids = Vec::new();
    for text in &args.backups {
        let id = pick(session, repo, text, &Labels { name: None, tag: None }).await?;
        if !ids.contains(&id) {
            ids.push(id);
        }
    }
    Ok(ids)
}

fn tell(session: &Session, repaired: &Repaired, dry_run: bool) {
    let (console, id) = (&session.console, repaired.backup);
    let object = match &repaired.outcome {
        Err(error) => {
            console.answer(format!("backup {id}: {error}"));
            json!({ "backup": id, "lost": null, "files": 0, "bytes": 0, "repaired": null, "forgotten": repaired.is_forgotten })
        }
        Ok(repair) => {
            repair.lost.iter().for_each(|lost| console.answer(format!("backup {id}: {}", words(lost))));
            if repair.lost_omitted > 0 {
                console.answer(format!("backup {id}: and {} more", repair.lost_omitted));
            }
            let left = format!("{} with {}", count(repair.files, "file"), bytes(repair.bytes));
            console.line(match repair.repaired {
                Some(new) => format!("backup {id}: what is left, {left}, is backup {new}"),
                None if dry_run && repair.files > 0 => format!("backup {id}: {left} would be left"),
                None => format!("backup {id}: nothing is left of it"),
            });
            json!({ "backup": id, "lost": repair.lost, "files": repair.files, "bytes": repair.bytes, "repaired": repair.repaired,
                "forgotten": repaired.is_forgotten })
        }
    };
    if repaired.is_forgotten {
        console.line(format!("backup {id}: forgotten"));
    }
    console.object("repaired", object);
}

fn words(lost: &LostFile) -> String {
    match &lost.file {
        Some(file) => format!("{}: {file}: lost: {}", lost.source, lost.why),
        None => format!("{}: {}", lost.source, lost.why),
    }
}
