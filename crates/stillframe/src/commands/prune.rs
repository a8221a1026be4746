//! `prune`.

use serde_json::json;
use stillframe_engine::prune::{PruneOptions, plan_prune, prune};
use stillframe_jobs::Phase;
use stillframe_repo::Repository;

use crate::cli::Prune;
use crate::commands::limit;
use crate::failure::Failure;
use crate::repository::{Opening, place_text};
use crate::session::{Session, full_share};
use crate::sizes::{bytes, count, span};

/// Gives room back, or says how much it would be.
pub async fn run(session: &Session, args: &Prune) -> Result<(), Failure> {
    let place = place_text(&args.repo.repo);
    let opening = Opening::prepare(&args.repo).await;
    let opening = session.recorded("prune", &place, opening)?;
    let _uploads = if args.dry_run { None } else { opening.uploads() };
    let opened = opening.open().await;
    let repo = session.recorded("prune", &place, opened)?;
    let options = PruneOptions { bandwidth: limit(args.limit_bandwidth) };
    if args.dry_run {
        tell_plan(session, &repo, &place, &options).await
    } else {
        prune_now(session, &repo, &place, &options).await
    }
}

async fn tell_plan(
    session: &Session,
    repo: &Repository,
    place: &str,
    options: &PruneOptions,
) -> Result<(), Failure> {
    let phases = [Phase::Transferring];
    let plan = session
        .run_job("plan", &format!("prune of {place}"), &phases, full_share(), async |job, surroundings| {
            let plan = plan_prune(repo, options, job, surroundings).await?;
            Ok((plan.clone(), json!(plan)))
        })
        .await?;
    session.console.answer(format!(
        "{} with {}, of which {} need {}",
        count(plan.packs, "pack"),
        bytes(plan.pack_bytes),
        if plan.lost_chunks == 0 { "backups" } else { "backups, as far as they are whole," },
        bytes(plan.live_bytes),
    ));
    session.console.answer(format!(
        "to be deleted: {} with {}; to be written anew: {} with {}, of which {} are needed",
        count(plan.dead_packs, "pack"),
        bytes(plan.dead_bytes),
        count(plan.rewritten_packs, "pack"),
        bytes(plan.rewritten_bytes),
        bytes(plan.moved_bytes),
    ));
    session.console.answer("nothing was changed");
    session.console.object("prune-plan", json!(plan));
    Ok(())
}

/// Prunes as a job of its own.
pub async fn prune_now(
    session: &Session,
    repo: &Repository,
    place: &str,
    options: &PruneOptions,
) -> Result<(), Failure> {
    let began = session.clock.monotonic();
    let phases = [Phase::Transferring];
    let outcome = session
        .run_job("prune", place, &phases, full_share(), async |job, surroundings| {
            let outcome = prune(repo, options, job, surroundings).await?;
            Ok((outcome, json!(outcome)))
        })
        .await?;
    let took = span(session.clock.monotonic().saturating_sub(began));
    if outcome.rounds == 0 {
        session.console.line(format!("nothing to prune: {} stored ({took})", bytes(outcome.pack_bytes)));
    } else {
        session.console.line(format!(
            "pruned in {took}: {} with {} deleted, {} written anew; {} stored now",
            count(outcome.packs_deleted, "pack"),
            bytes(outcome.bytes_deleted),
            bytes(outcome.bytes_written),
            bytes(outcome.pack_bytes),
        ));
    }
    if outcome.packs_leased > 0 {
        session.console.note(format!(
            "{} of backups that are being written were left alone",
            count(outcome.packs_leased, "pack")
        ));
    }
    session.console.object("pruned", json!(outcome));
    Ok(())
}
