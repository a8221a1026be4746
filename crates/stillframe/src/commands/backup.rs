//! `backup`.

use std::cell::OnceCell;
use std::ffi::OsString;
use std::path::Path;

use serde_json::json;
use stillframe_capture::Weakening;
use stillframe_engine::create::{CreateOptions, CreateOutcome, CreatePlan, Origin, create, plan};
use stillframe_engine::forget::{AfterBackup, plan_after};
use stillframe_engine::prune::PruneOptions;
use stillframe_engine::{NamedSource, Retention};
use stillframe_jobs::{CpuShare, Pace, Phase};
use stillframe_repo::{BackupId, Repository};
use stillframe_storage::path_text;

use crate::cli::Backup;
use crate::commands::forget::{Todo, carry_out};
use crate::commands::{limit, parse_source};
use crate::failure::{Failure, Kind};
use crate::place;
use crate::repository::{Opening, place_text, refuse_in_repository};
use crate::session::Session;
use crate::sizes::{bytes, count, span};

/// Captures the sources and writes one backup, or says what it would do.
pub async fn run(session: &Session, args: &Backup) -> Result<(), Failure> {
    let kind = if args.dry_run { "plan" } else { "create" };
    let typed: Vec<String> = args.sources.iter().map(path_text).collect();
    let to = place_text(&args.repo.repo);
    let prepared = prepare(args).await;
    let (sources, repo) = session.recorded(kind, &format!("{} to {to}", typed.join(" ")), prepared)?;
    let _uploads = if args.dry_run { None } else { repo.uploads() };
    let urls: Vec<String> = sources.iter().map(|named| named.source.to_string()).collect();
    let subject = format!("{} to {to}", urls.join(" "));
    let options = options_of(args, sources, origin(session));
    let share = share_of(args);
    let retention = Retention::from(&args.after.retention);
    if args.after.prune && retention.is_none() {
        let message =
            "--prune: nothing is forgotten without a rule (--keep-daily 7, …), and so nothing can be pruned";
        return Err(Failure::new(Kind::Usage, message));
    }
    if args.dry_run {
        let plan = session
            .run_job(kind, &subject, &[Phase::Capturing], share, async |job, surroundings| {
                let plan = plan(repo.open(), &options, job, surroundings).await?;
                let outcome = plan_object(&plan);
                Ok((plan, outcome))
            })
            .await?;
        tell_plan(session, &plan);
        return Ok(());
    }
    let began = session.clock.monotonic();
    let opened = OnceCell::new();
    let phases = [Phase::Capturing, Phase::Transferring, Phase::Sealing];
    let outcome = session
        .run_job(kind, &subject, &phases, share, async |job, surroundings| {
            let opening = async {
                let repo = repo.open().await?;
                Ok::<_, Failure>(opened.get_or_init(|| repo).clone())
            };
            let outcome = create(opening, &options, job, surroundings).await?;
            let object = outcome_object(&options.sources, &outcome);
            Ok((outcome, object))
        })
        .await?;
    for (named, snapshot) in options.sources.iter().zip(&outcome.snapshots) {
        warn(session, &named.name, &snapshot.weakening);
    }
    let took = session.clock.monotonic().saturating_sub(began);
    let statistics = &outcome.statistics;
    session.console.line(format!(
        "backup {} saved in {}: {} read, {} taken over unread, {} new, {} stored",
        outcome.id,
        span(took),
        bytes(statistics.bytes_read),
        bytes(statistics.bytes_taken_over),
        bytes(statistics.bytes_new),
        bytes(statistics.bytes_stored),
    ));
    session.console.object("backup", outcome_object(&options.sources, &outcome));
    match opened.get() {
        Some(repo) if !retention.is_none() => {
            let how = PruneOptions { bandwidth: options.bandwidth.clone() };
            let todo = Todo { dry_run: false, prune: args.after.prune, how, tell_all: false };
            let done = let_go(session, repo, outcome.id, retention, &to, todo).await;
            done.map_err(|failure| Failure {
                message: format!(
                    "backup {} is saved, but what follows it failed: {}",
                    outcome.id, failure.message
                ),
                ..failure
            })
        }
        _ => Ok(()),
    }
}

/// Of the history that the backup belongs to, what no rule keeps.
async fn let_go(
    session: &Session,
    repo: &Repository,
    backup: BackupId,
    retention: Retention,
    place: &str,
    todo: Todo,
) -> Result<(), Failure> {
    let subject = format!("those before {backup} of {place}");
    let planned = plan_after(repo, backup, retention, session.clock.now()).await.map_err(Failure::from);
    let AfterBackup { plan, foreign } = session.recorded("forget", &subject, planned)?;
    if foreign > 0 {
        session.console.note(format!(
            "{} of the same machine's name, sources and name are of another installation, and stay; `stillframe forget` takes them",
            count(foreign, "backup")
        ));
    }
    carry_out(session, repo, place, &subject, &plan, todo).await
}

/// All that can be found wrong before there is anything to do.
async fn prepare(args: &Backup) -> Result<(Vec<NamedSource>, Opening), Failure> {
    let sources = named_sources(&args.sources)?;
    args.capture.check(sources.iter().map(|named| &named.source))?;
    for named in &sources {
        // Each backup would grow by the one before.
        refuse_in_repository("the source", &named.source.path)?;
    }
    let repo = Opening::prepare(&args.repo).await?;
    repo.refuse_within(sources.iter().map(|named| named.source.path.as_path()))?;
    Ok((sources, repo))
}

fn options_of(args: &Backup, sources: Vec<NamedSource>, origin: Origin) -> CreateOptions {
    CreateOptions {
        sources,
        name: args.name.clone(),
        tags: args.tags.clone(),
        capture: (&args.capture).into(),
        reserve: args.capture.reserve(),
        bandwidth: limit(args.limit_bandwidth),
        anew: args.anew,
        cache_dir: place::cache_dir(),
        origin,
    }
}

fn share_of(args: &Backup) -> CpuShare {
    let pace = if args.fast { Pace::Fast } else { Pace::Polite };
    CpuShare::on_this_machine(pace, args.cpu_percent)
}

fn named_sources(given: &[OsString]) -> Result<Vec<NamedSource>, Failure> {
    let sources = given.iter().map(|text| parse_source(text)).collect::<Result<Vec<_>, _>>()?;
    NamedSource::name_all(sources)
        .map_err(|twice| Failure::new(Kind::Usage, format!("{twice} is given twice")))
}

fn origin(session: &Session) -> Origin {
    let user = std::env::var("USER").or_else(|_| std::env::var("LOGNAME"));
    Origin {
        host: place::host(),
        user: user.unwrap_or_else(|_| format!("uid {}", rustix::process::getuid().as_raw())),
        program: concat!("stillframe ", env!("CARGO_PKG_VERSION")).to_owned(),
        writer: place::state_dir().and_then(|dir| writer_id(&dir)).unwrap_or_else(|failure| {
            session.console.warn(format!("{failure}; this backup says that it is from a new installation"));
            crate::session::random_name()
        }),
    }
}

/// The same for all backups of one installation: drawn once, kept with the job history.
fn writer_id(state: &Path) -> Result<String, Failure> {
    let path = state.join("writer-id");
    let failed = |error: std::io::Error| Failure::new(Kind::Failed, format!("{}: {error}", path.display()));
    match std::fs::read_to_string(&path) {
        Ok(id) if !id.trim().is_empty() => return Ok(id.trim().to_owned()),
        Ok(_) => {}
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(failed(error)),
    }
    let id = format!("{}{}", crate::session::random_name(), crate::session::random_name());
    let draft = state.join(format!("writer-id.{id}"));
    std::fs::write(&draft, &id).map_err(failed)?;
    std::fs::rename(&draft, &path).map_err(failed)?;
    Ok(id)
}

fn warn(session: &Session, source: &str, weakening: &[Weakening]) {
    for weakening in weakening {
        session.console.warn(format!("{source}: {}: {}", weakening.setting, weakening.effect));
    }
}

fn tell_plan(session: &Session, plan: &CreatePlan) {
    for source in &plan.sources {
        warn(session, &source.name, &source.weakening);
        session.console.answer(format!(
            "{}: {}, {}; unchanged and not to be read: {}, {}; to be read: {}",
            source.name,
            count(source.files, "file"),
            bytes(source.bytes),
            count(source.unchanged_files, "file"),
            bytes(source.unchanged_bytes),
            bytes(source.bytes - source.unchanged_bytes),
        ));
    }
    session.console.answer("nothing was written");
    session.console.object("plan", plan_object(plan));
}

fn plan_object(plan: &CreatePlan) -> serde_json::Value {
    let sources: Vec<_> = plan
        .sources
        .iter()
        .map(|source| {
            json!({ "name": source.name, "files": source.files, "bytes": source.bytes,
                "unchanged_files": source.unchanged_files, "unchanged_bytes": source.unchanged_bytes,
                "weakening": source.weakening })
        })
        .collect();
    json!({ "sources": sources, "base": plan.base.map(|id| id.to_string()) })
}

fn outcome_object(sources: &[NamedSource], outcome: &CreateOutcome) -> serde_json::Value {
    let sources: Vec<_> = sources
        .iter()
        .zip(&outcome.snapshots)
        .map(|(named, snapshot)| {
            json!({ "name": named.name, "engine": snapshot.engine.name(), "url": named.source.to_string(),
                "instant": snapshot.instant, "window_us": snapshot.window_us, "attempts": snapshot.attempts,
                "weakening": snapshot.weakening })
        })
        .collect();
    json!({ "id": outcome.id.to_string(), "sources": sources, "statistics": outcome.statistics })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use clap::Parser;
    use stillframe_jobs::CpuPercent;
    use stillframe_storage::SystemClock;

    use super::*;
    use crate::cli::{Cli, Command};

    fn parsed(words: &[&str]) -> Backup {
        let all = [&["stillframe", "backup", "files:one", "-r", "repo"], words].concat();
        match Cli::try_parse_from(all).unwrap().command {
            Command::Backup(backup) => backup,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_share_of_the_processor_is_the_one_that_was_asked_for() {
        let twenty = CpuPercent::try_from(20).unwrap();
        for (words, pace, percent) in [
            (&[][..], Pace::Polite, None),
            (&["--fast"], Pace::Fast, None),
            (&["--cpu-percent", "20"], Pace::Polite, Some(twenty)),
            (&["--cpu-percent", "20", "--fast"], Pace::Fast, Some(twenty)),
        ] {
            assert_eq!(share_of(&parsed(words)), CpuShare::on_this_machine(pace, percent), "{words:?}");
        }
    }

    #[test]
    fn what_the_repository_is_sent_is_limited_to_the_bandwidth_that_was_asked_for() {
        let options = |words: &[&str]| options_of(&parsed(words), Vec::new(), Origin::default());
        assert!(options(&[]).bandwidth.is_none());
        let limit = options(&["--limit-bandwidth", "10MiB"]).bandwidth.unwrap();
        // The bucket is empty at first.
        assert_eq!(limit.reserve(30 << 20, &SystemClock::new()), Duration::from_secs(3));
    }
}
