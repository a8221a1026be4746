//! `restore`.

use std::collections::BTreeMap;

use serde_json::json;
use stillframe_engine::restore::{RestoreOptions, restore};
use stillframe_jobs::Phase;
use stillframe_repo::{Manifest, Repository};
use stillframe_storage::path_text;

use crate::cli::Restore;
use crate::commands::from_here;
use crate::failure::{Failure, Kind};
use crate::place::host;
use crate::repository::{open_repository, pick, place_text, refuse_in_repository};
use crate::session::{Session, full_share};
use crate::sizes::{bytes, count, span, time};

async fn find(session: &Session, args: &Restore) -> Result<(Repository, Manifest), Failure> {
    refuse_in_repository("--to", &args.to)?;
    let repo = open_repository(&args.repo).await?;
    let backup = pick(session, &repo, &args.backup, &args.labels).await?;
    let manifest = repo.manifest(backup).await?;
    Ok((repo, manifest))
}

/// Brings one backup back.
pub async fn run(session: &Session, args: &Restore) -> Result<(), Failure> {
    let mut map = BTreeMap::new();
    for (old, new) in &args.map {
        if map.insert(old.clone(), new.clone()).is_some() {
            return Err(Failure::new(Kind::Usage, format!("--map: {old} is given twice")));
        }
    }
    let (from, to) = (place_text(&args.repo.repo), from_here(&args.to));
    let subject = |backup: &str| format!("{backup} of {from} to {}", to.display());
    let found = find(session, args).await;
    let (repo, what) = session.recorded("restore", &subject(&args.backup), found)?;
    let backup = what.id;
    let wanted = what.draft.sources.iter();
    let wanted = wanted.filter(|source| args.source.as_ref().is_none_or(|name| *name == source.name));
    let of: Vec<&str> = wanted.map(|source| source.url.as_str()).collect();
    let options = RestoreOptions { target: args.to.clone(), source: args.source.clone(), map, host: host() };
    let began = session.clock.monotonic();
    let subject = subject(&backup.to_string());
    let phases = [Phase::Transferring, Phase::Sealing];
    let outcome = session
        .run_job("restore", &subject, &phases, full_share(), async |job, surroundings| {
            let outcome = restore(&repo, backup, &options, job, surroundings).await?;
            let object = json!({ "backup": backup.to_string(), "to": path_text(&to), "files": outcome.files, "bytes": outcome.bytes });
            Ok((outcome, object))
        })
        .await?;
    session.console.line(format!(
        "backup {backup} of {}{} at {} is in {}: {}, {} in {}",
        of.join(" "),
        what.draft.name.as_ref().map_or_else(String::new, |name| format!(" ({name})")),
        time(what.instant()),
        args.to.display(),
        count(outcome.files, "file"),
        bytes(outcome.bytes),
        span(session.clock.monotonic().saturating_sub(began)),
    ));
    for remark in &outcome.remarks {
        session.console.answer(remark);
    }
    // What was told when it was made is what counts now.
    let chosen =
        |warning: &&String| args.source.as_ref().is_none_or(|name| warning.starts_with(&format!("{name}: ")));
    for warning in what.draft.warnings.iter().filter(chosen) {
        session.console.warn(format!("told when the backup was made: {warning}"));
    }
    session.console.object(
        "restored",
        json!({ "backup": backup.to_string(), "to": path_text(&to), "files": outcome.files, "bytes": outcome.bytes,
            "remarks": outcome.remarks }),
    );
    Ok(())
}
