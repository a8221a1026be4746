//! `verify`.

use serde::Serialize;
use serde_json::json;
use stillframe_engine::verify::{self, VerifyOptions, VerifyOutcome, verify, verify_objects};
use stillframe_jobs::Phase;
use stillframe_repo::{BackupId, Repository};
use stillframe_storage::UploadLock;

use crate::cli::{Level, Verify};
use crate::commands::snapshots::repaired;
use crate::commands::{from_here, refuse_no_directory};
use crate::failure::{Failure, Kind};
use crate::place::host;
use crate::repository::{open_store, open_to_write, pick, place_text, refuse_in_repository};
use crate::session::{Session, full_share};
use crate::sizes::{bytes, count, span};

/// Looks at one backup; damage is a failure of its own kind.
pub async fn run(session: &Session, args: &Verify) -> Result<(), Failure> {
    if args.without_key {
        return run_without_key(session, args).await;
    }
    if args.staging.is_some() && args.level != Some(Level::Open) {
        let message = "--staging is for --level open: at other levels nothing is restored";
        return Err(Failure::new(Kind::Usage, message));
    }
    refuse_no_directory("--staging", args.staging.as_deref())?;
    let staging = args.staging.as_deref().map_or_else(std::env::temp_dir, from_here);
    refuse_in_repository("--staging", &staging)?;
    let wanted = args.level.unwrap_or(Level::Decrypt);
    let level = match wanted {
        Level::Exists => verify::Level::Exists,
        Level::Hash => verify::Level::Hash,
        Level::Decrypt => verify::Level::Decrypt,
        Level::Open => verify::Level::Open,
    };
    let word = level.name();
    let options = VerifyOptions { level, staging, host: host() };
    let began = session.clock.monotonic();
    let from = place_text(&args.repo.repo);
    let subject = |backup: &str| format!("{backup} of {from} at level {word}");
    let found = find(session, args).await;
    let (repo, backup, _uploads) = session.recorded("verify", &subject(&args.backup), found)?;
    let subject = subject(&backup.to_string());
    let outcome = session
        .run_job("verify", &subject, &[Phase::Transferring], full_share(), async |job, surroundings| {
            let outcome = verify(&repo, backup, &options, job, surroundings).await?;
            let VerifyOutcome { damage, unsound, beside, .. } = &outcome;
            let found: Vec<&String> = damage.iter().chain(unsound).chain(beside).collect();
            let is_whole = damage.is_empty();
            if let Some(first) = tell_damage(session, Some((backup, is_whole)), word, &found) {
                let later = if repo.damage_is_noted() {
                    "your later backups from this machine store what they need of it again (from others: backup --anew)"
                } else {
                    "back up with --anew: it could not be noted for later backups"
                };
                let message = match (is_whole, unsound.is_empty()) {
                    (false, _) => format!("backup {backup} is damaged: {first}; {later}"),
                    (true, false) => format!(
                        "backup {backup} is what was captured, and that was not sound: {first}; \
                         the source was like that already, look there"
                    ),
                    (true, true) => format!(
                        "backup {backup} is whole and can be restored, but the repository is damaged: {first}; {later}"
                    ),
                };
                return Err(Failure::new(Kind::Damaged, message));
            }
            let object = json!({ "level": word, "files": outcome.files, "bytes": outcome.bytes });
            Ok((outcome, object))
        })
        .await?;
    // This level lists packs and reads none.
    let looked = match wanted {
        Level::Exists => "looked for".to_owned(),
        Level::Hash | Level::Decrypt | Level::Open => format!("{}, looked at", count(outcome.packs, "pack")),
    };
    session.console.line(format!(
        "backup {backup} is sound at level {word}: {}, {}, {looked} in {}",
        count(outcome.files, "file"),
        bytes(outcome.bytes),
        span(session.clock.monotonic().saturating_sub(began)),
    ));
    if let Some(repaired) = repo.manifest(backup).await.ok().as_ref().and_then(repaired) {
        session.console.warn(format!("backup {backup} was {repaired}"));
    }
    outcome.unseen.iter().for_each(|unseen| session.console.note(unseen));
    session.console.object(
        "verified",
        json!({ "backup": backup.to_string(), "level": word, "files": outcome.files, "bytes": outcome.bytes,
            "packs": outcome.packs, "unseen": outcome.unseen }),
    );
    Ok(())
}

/// What is found is recorded in the repository.
async fn find(
    session: &Session,
    args: &Verify,
) -> Result<(Repository, BackupId, Option<UploadLock>), Failure> {
    let (repo, uploads) = open_to_write(&args.repo).await?;
    let backup = pick(session, &repo, &args.backup, &args.labels).await?;
    Ok((repo, backup, uploads))
}

/// Lists what was found; of a backup whether all of it can be had all the same. Returns the first of it, and how many more there are; `None`: nothing was.
fn tell_damage(
    session: &Session,
    backup: Option<(BackupId, bool)>,
    level: &str,
    found: &[impl AsRef<str> + Serialize],
) -> Option<String> {
    let first = found.first()?.as_ref();
    found.iter().for_each(|damage| session.console.answer(damage));
    let (backup, is_whole) = backup.map(|(id, is_whole)| (id.to_string(), is_whole)).unzip();
    let object = json!({ "backup": backup, "whole": is_whole, "level": level, "damage": found });
    session.console.object("damage", object);
    Some(match found.len() {
        1 => first.to_owned(),
        all => format!("{first} (and {} more)", all - 1),
    })
}

/// Looks at everything that is stored; whose it is, only who has the key can tell.
async fn run_without_key(session: &Session, args: &Verify) -> Result<(), Failure> {
    if !matches!(args.level, None | Some(Level::Hash)) {
        return Err(Failure::new(Kind::Usage, "--without-key: only --level hash can do without one"));
    }
    let subject = &format!("all objects of {} at level hash", place_text(&args.repo.repo));
    let store = args.repo.repo.parse().map_err(Failure::from).and_then(|location| open_store(&location));
    let store = session.recorded("verify", subject, store)?;
    let began = session.clock.monotonic();
    let phases = [Phase::Transferring];
    let report = session
        .run_job("verify", subject, &phases, full_share(), async |job, surroundings| {
            let report = verify_objects(store, job, surroundings).await?;
            let found: Vec<String> =
                report.findings.iter().map(|finding| format!("{}: {}", finding.object, finding.why)).collect();
            if let Some(first) = tell_damage(session, None, "hash", &found) {
                let message = format!(
                    "the repository is damaged: {first}; with the passphrase `stillframe verify BACKUP` tells which backups are whole"
                );
                return Err(Failure::new(Kind::Damaged, message));
            }
            let object = json!({ "level": "hash", "objects": report.objects, "bytes": report.bytes });
            Ok((report, object))
        })
        .await?;
    session.console.line(format!(
        "{}, {}: each that is there is as it was written, looked at in {}; that no pack is missing, `verify BACKUP` tells",
        count(report.objects, "object"),
        bytes(report.bytes),
        span(session.clock.monotonic().saturating_sub(began)),
    ));
    session
        .console
        .object("objects", json!({ "level": "hash", "objects": report.objects, "bytes": report.bytes }));
    Ok(())
}
