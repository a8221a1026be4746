//! `forget`.

use serde_json::json;
use stillframe_engine::Retention;
use stillframe_engine::forget::{Decision, ForgetPlan, Selection, forget, plan_forget};
use stillframe_engine::prune::PruneOptions;
use stillframe_jobs::Phase;
use stillframe_repo::{BackupId, Repository};
use stillframe_storage::UploadLock;

use crate::cli::{Forget, Labels};
use crate::commands::limit;
use crate::commands::prune::prune_now;
use crate::failure::{Failure, Kind};
use crate::repository::{Opening, pick, place_text, unfinished_words};
use crate::session::{Session, full_share};
use crate::sizes::{count, short, time};

/// Decides, tells, and does it unless it is only asked what would be done.
pub async fn run(session: &Session, args: &Forget) -> Result<(), Failure> {
    let retention = Retention::from(&args.retention);
    let labels = Labels { name: args.name.clone(), tag: args.tag.clone() };
    check(args, &labels, &retention)?;
    let place = place_text(&args.repo.repo);
    let subject = format!("{} of {place}", words(args, &labels));
    let prepared = prepare(session, args, &labels, retention).await;
    let Prepared { repo, plan, _uploads } = session.recorded("forget", &subject, prepared)?;
    let how = PruneOptions { bandwidth: limit(args.limit_bandwidth) };
    let todo = Todo { dry_run: args.dry_run, prune: args.prune, how, tell_all: true };
    carry_out(session, &repo, &place, &subject, &plan, todo).await
}

/// What is to be done about a plan.
#[derive(Debug, Clone)]
pub struct Todo {
    /// Only tell it.
    pub dry_run: bool,
    /// Give the room back.
    pub prune: bool,
    /// How.
    pub how: PruneOptions,
    /// The plan was asked for: why each stays is told, too.
    pub tell_all: bool,
}

/// Tells the plan, and does what it says.
pub async fn carry_out(
    session: &Session,
    repo: &Repository,
    place: &str,
    subject: &str,
    plan: &ForgetPlan,
    todo: Todo,
) -> Result<(), Failure> {
    tell(session, plan, todo.tell_all);
    let going = plan.going().count() as u64;
    let staying = plan.decisions.len() as u64 - going;
    let mut forgotten: Vec<BackupId> = plan.going().collect();
    if todo.dry_run {
        let stay = if staying > 0 { format!(", {staying} would stay") } else { String::new() };
        session
            .console
            .line(format!("{} would be forgotten{stay}; nothing was changed", count(going, "backup")));
    } else if going > 0 {
        let outcome = session
            .run_job("forget", subject, &[Phase::Transferring], full_share(), async |job, surroundings| {
                let outcome = forget(repo, plan, job, surroundings).await?;
                let object = json!({ "forgotten": outcome.forgotten.len(), "kept": staying });
                Ok((outcome, object))
            })
            .await?;
        forgotten = outcome.forgotten;
        let stay = staying + outcome.spared.len() as u64;
        let next = if todo.prune { "" } else { "; `stillframe prune` gives their room back" };
        // Where backups are named nobody looked at the others.
        let kept = if stay > 0 { format!(", {stay} kept") } else { String::new() };
        session.console.line(format!("{} forgotten{kept}{next}", count(forgotten.len() as u64, "backup")));
    } else {
        session.console.line(format!("nothing to forget: {staying} kept"));
    }
    let ids: Vec<String> = forgotten.iter().map(ToString::to_string).collect();
    session.console.object(
        "forgotten",
        json!({ "ids": ids, "kept": plan.decisions.len() - ids.len(), "dry_run": todo.dry_run }),
    );
    for (id, error) in &plan.unreadable {
        session.console.warn(format!(
            "backup {id} cannot be read, so no policy takes it: {error}; if it is to go, name it by its id"
        ));
    }
    if todo.prune && !todo.dry_run {
        prune_now(session, repo, place, &todo.how).await?;
    }
    Ok(())
}

fn check(args: &Forget, labels: &Labels, retention: &Retention) -> Result<(), Failure> {
    let usage = |message: &str| Err(Failure::new(Kind::Usage, message));
    if args.backups.is_empty() {
        if labels.words().is_none() && retention.is_none() {
            return usage(
                "nothing says which backups are meant: name them, or give --name or --tag, or what to keep (--keep-daily 7, …)",
            );
        }
    } else if !retention.is_none() {
        return usage(
            "backups that are named are forgotten; --keep-… is for a policy, leave one of them away",
        );
    }
    if args.prune && args.dry_run {
        return usage(
            "--prune: with --dry-run nothing is forgotten, and so nothing can be pruned; leave one of them away",
        );
    }
    Ok(())
}

/// What was asked for, for the history.
fn words(args: &Forget, labels: &Labels) -> String {
    match (&labels.name, &labels.tag) {
        _ if !args.backups.is_empty() => args.backups.join(" "),
        (Some(name), Some(tag)) => format!("name {name}, tag {tag}"),
        (Some(name), None) => format!("name {name}"),
        (None, Some(tag)) => format!("tag {tag}"),
        (None, None) => "all".to_owned(),
    }
}

struct Prepared {
    repo: Repository,
    plan: ForgetPlan,
    /// A seal may have to be put back.
    _uploads: Option<UploadLock>,
}

async fn prepare(
    session: &Session,
    args: &Forget,
    labels: &Labels,
    retention: Retention,
) -> Result<Prepared, Failure> {
    let opening = Opening::prepare(&args.repo).await?;
    let uploads = if args.dry_run { None } else { opening.uploads() };
    let repo = opening.open().await?;
    let plan = if args.backups.is_empty() {
        let wanted = |manifest: &stillframe_repo::Manifest| labels.fit(&manifest.draft);
        let plan = plan_forget(&repo, &Selection::Policy { wanted: &wanted, retention }, session.clock.now())
            .await?;
        if let (true, Some(words)) = (plan.decisions.is_empty(), labels.words()) {
            let message = format!("no backup {words}; `stillframe snapshots` lists all");
            return Err(Failure::new(Kind::NoBackup, message));
        }
        plan
    } else {
        let mut ids = Vec::new();
        for text in &args.backups {
            ids.push(find(session, &repo, text).await?);
        }
        plan_forget(&repo, &Selection::Ids(&ids), session.clock.now()).await?
    };
    Ok(Prepared { repo, plan, _uploads: uploads })
}

/// Also what was never finished, by its id.
async fn find(session: &Session, repo: &Repository, text: &str) -> Result<BackupId, Failure> {
    if text == "latest" {
        let message = "latest is another one each time; name the backup by its id or its name";
        return Err(Failure::new(Kind::Usage, message));
    }
    let unfinished = repo.backups().await?.unfinished;
    let begun: Vec<BackupId> =
        unfinished.into_iter().filter(|id| !text.is_empty() && id.to_string().starts_with(text)).collect();
    match begun.as_slice() {
        [] => pick(session, repo, text, &Labels { name: None, tag: None }).await,
        [id] if repo.resolve(text).await.is_err() => Ok(*id),
        _ => Err(Failure::new(
            Kind::NoBackup,
            format!("{text:?} fits several, give all of the id: {}", unfinished_words(&begun)),
        )),
    }
}

fn tell(session: &Session, plan: &ForgetPlan, all: bool) {
    for decision in &plan.decisions {
        if all {
            session.console.answer(line(decision));
        } else if decision.goes() {
            session.console.line(line(decision));
        }
        let manifest = decision.manifest.as_ref();
        let draft = manifest.map(|manifest| &manifest.draft);
        let urls =
            draft.map(|draft| draft.sources.iter().map(|source| source.url.clone()).collect::<Vec<_>>());
        session.console.object(
            "decision",
            json!({ "id": decision.backup.to_string(), "action": if decision.goes() { "forget" } else { "keep" },
                "reasons": decision.kept, "created": manifest.map(|manifest| manifest.created),
                "name": draft.and_then(|draft| draft.name.clone()), "host": draft.map(|draft| draft.host.clone()),
                "sources": urls }),
        );
    }
}

fn line(decision: &Decision) -> String {
    let action = if decision.goes() { "forget" } else { "keep  " };
    let Some(manifest) = &decision.manifest else {
        return format!("{action}  {}  (unfinished, or it cannot be read)", decision.backup);
    };
    let draft = &manifest.draft;
    let short = short(decision.backup);
    let urls: Vec<&str> = draft.sources.iter().map(|source| source.url.as_str()).collect();
    let why = if decision.goes() { String::new() } else { format!("  ({})", decision.kept.join(", ")) };
    format!(
        "{action}  {short}  {}  {}  {}  {}{why}",
        time(manifest.instant()),
        draft.name.as_deref().unwrap_or("-"),
        draft.host,
        urls.join(" "),
    )
}
