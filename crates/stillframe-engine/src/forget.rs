//! `forget`: which backups go, and why the others stay.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use stillframe_jobs::{Job, Phase, Progress};
use stillframe_repo::{BackupId, Error as RepoError, Lease, Manifest, Pin, Repository, Verified};

use crate::retention::Retention;
use crate::{EngineError, Event, Surroundings};

/// Which backups are to be forgotten.
pub enum Selection<'a> {
    /// These, whatever else is there; also ones that were never finished or cannot be read. Only a pin protects them.
    Ids(&'a [BackupId]),
    /// Of those that are wanted, all that the retention does not keep. The last good one of a source stays in any case.
    Policy {
        /// Whether a backup is one of them.
        wanted: &'a dyn Fn(&Manifest) -> bool,
        /// What of them is kept, separately for each machine and set of sources.
        retention: Retention,
    },
}

/// What would go, and why the others stay.
#[derive(Debug, Default)]
pub struct ForgetPlan {
    /// One for each backup that was looked at: by machine and sources, newest first; or as they were named.
    pub decisions: Vec<Decision>,
    /// Backups that cannot be read. No policy takes them: nobody knows what they are of.
    pub unreadable: Vec<(BackupId, RepoError)>,
}

/// What happens to one backup.
#[derive(Debug, Clone, PartialEq)]
pub struct Decision {
    /// Which.
    pub backup: BackupId,
    /// What it says of itself. `None`: it was named, and is unfinished or cannot be read.
    pub manifest: Option<Manifest>,
    /// Why it stays; empty: it goes.
    pub kept: Vec<String>,
}

impl Decision {
    /// Whether it goes.
    pub fn goes(&self) -> bool {
        self.kept.is_empty()
    }
}

impl ForgetPlan {
    /// The backups that go.
    pub fn going(&self) -> impl Iterator<Item = BackupId> {
        self.decisions.iter().filter(|decision| decision.goes()).map(|decision| decision.backup)
    }
}

/// What was forgotten.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ForgetOutcome {
    /// These.
    pub forgotten: Vec<BackupId>,
    /// Pinned by somebody since the plan was made, and left alone.
    pub spared: Vec<BackupId>,
}

/// Decides. Nothing is written.
pub async fn plan_forget(
    repo: &Repository,
    selection: &Selection<'_>,
    now: Timestamp,
) -> Result<ForgetPlan, EngineError> {
    let pins = repo.pins().await?;
    let leases = repo.leases(now).await?.into_iter();
    let in_use: BTreeMap<BackupId, Lease> = leases.filter_map(|lease| Some((lease.backup?, lease))).collect();
    match selection {
        Selection::Ids(ids) => {
            let mut plan = ForgetPlan::default();
            let mut seen = BTreeSet::new();
            for id in ids.iter().filter(|id| seen.insert(**id)) {
                if pins.contains_key(id) {
                    return Err(RepoError::Pinned { backup: *id }.into());
                }
                if let Some(lease) = in_use.get(id) {
                    let (host, since) = (lease.host.clone(), lease.since);
                    return Err(RepoError::InUse { backup: *id, host, since }.into());
                }
                let manifest = repo.manifest(*id).await;
                plan.decisions.push(Decision { backup: *id, manifest: manifest.ok(), kept: Vec::new() });
            }
            Ok(plan)
        }
        Selection::Policy { wanted, retention } => {
            let backups = repo.backups().await?;
            let verified = repo.all_verified().await?;
            let mut decisions = decide(&backups.readable, &pins, &verified, wanted, retention);
            for decision in &mut decisions {
                if let Some(lease) = in_use.get(&decision.backup) {
                    decision.kept.push(format!("being restored on {}", lease.host));
                }
            }
            Ok(ForgetPlan { decisions, unreadable: backups.unreadable })
        }
    }
}

/// What a new backup takes the place of.
#[derive(Debug, Default)]
pub struct AfterBackup {
    /// Of the same machine, sources and name, and of the same installation, what no rule keeps.
    pub plan: ForgetPlan,
    /// How many more there are of another installation. Two machines may be called the same, and each has rules of its own: they stay.
    pub foreign: u64,
}

/// Decides what goes now that `backup` is there. Nothing is written.
pub async fn plan_after(
    repo: &Repository,
    backup: BackupId,
    retention: Retention,
    now: Timestamp,
) -> Result<AfterBackup, EngineError> {
    let made = repo.manifest(backup).await?;
    let is_like_it =
        |manifest: &Manifest| history(manifest) == history(&made) && manifest.draft.name == made.draft.name;
    let is_ours = |manifest: &Manifest| manifest.draft.writer == made.draft.writer;
    let wanted = |manifest: &Manifest| is_like_it(manifest) && is_ours(manifest);
    let foreign = repo.backups().await?.readable.iter().filter(|it| is_like_it(it) && !is_ours(it)).count();
    let plan = plan_forget(repo, &Selection::Policy { wanted: &wanted, retention }, now).await?;
    Ok(AfterBackup { plan, foreign: foreign as u64 })
}

/// Backups with the same key are one history.
type History<'a> = (&'a str, Option<&'a str>, Option<&'a str>, Vec<&'a str>);

/// Of one machine (node, shard) and the same sources.
fn history(manifest: &Manifest) -> History<'_> {
    let draft = &manifest.draft;
    let mut sources: Vec<&str> = draft.sources.iter().map(|source| source.url.as_str()).collect();
    sources.sort_unstable();
    (&draft.host, draft.node.as_deref(), draft.shard.as_deref(), sources)
}

/// Of `all`, oldest first.
fn decide(
    all: &[Manifest],
    pins: &BTreeMap<BackupId, Option<Pin>>,
    verified: &BTreeMap<BackupId, Verified>,
    wanted: &dyn Fn(&Manifest) -> bool,
    retention: &Retention,
) -> Vec<Decision> {
    let mut histories: BTreeMap<History<'_>, Vec<&Manifest>> = BTreeMap::new();
    for manifest in all.iter().filter(|manifest| wanted(manifest)) {
        histories.entry(history(manifest)).or_default().push(manifest);
    }
    let mut kept: BTreeMap<BackupId, Vec<String>> = BTreeMap::new();
    for backups in histories.values() {
        kept.append(&mut retention.keeps(backups));
    }
    for (id, pin) in pins {
        kept.entry(*id).or_default().push(Pin::words(pin.as_ref()));
    }
    keep_last_good(all, verified, wanted, &mut kept);
    let mut decisions = Vec::new();
    for backups in histories.into_values() {
        decisions.extend(backups.into_iter().rev().map(|manifest| Decision {
            backup: manifest.id,
            manifest: Some(manifest.clone()),
            kept: kept.remove(&manifest.id).unwrap_or_default(),
        }));
    }
    decisions
}

/// Of each source of each machine the newest good backup stays, where no good one would be left otherwise; where none is good, the newest.
fn keep_last_good(
    all: &[Manifest],
    verified: &BTreeMap<BackupId, Verified>,
    wanted: &dyn Fn(&Manifest) -> bool,
    kept: &mut BTreeMap<BackupId, Vec<String>>,
) {
    let is_good = |manifest: &Manifest| {
        let is_damaged = verified.get(&manifest.id).is_some_and(Verified::is_damaged);
        manifest.draft.lost_files == 0 && !is_damaged
    };
    let mut by_source: BTreeMap<(&str, &str), Vec<&Manifest>> = BTreeMap::new();
    for manifest in all {
        let urls: BTreeSet<&str> = manifest.draft.sources.iter().map(|source| source.url.as_str()).collect();
        for url in urls {
            by_source.entry((&manifest.draft.host, url)).or_default().push(manifest);
        }
    }
    for ((host, url), mut backups) in by_source {
        let any_good = backups.iter().any(|manifest| is_good(manifest));
        if any_good {
            backups.retain(|manifest| is_good(manifest));
        }
        if backups.iter().any(|manifest| !wanted(manifest) || kept.contains_key(&manifest.id)) {
            continue;
        }
        if let Some(newest) = backups.last() {
            let good = if any_good { " good" } else { "" };
            let of = if host.is_empty() { url.to_owned() } else { format!("{url} on {host}") };
            kept.entry(newest.id).or_default().push(format!("the last{good} one of {of}"));
        }
    }
}

/// Forgets what the plan says. Each backup goes whole or not at all; a run that is stopped has forgotten some of them.
pub async fn forget(
    repo: &Repository,
    plan: &ForgetPlan,
    job: &Job,
    surroundings: &Surroundings,
) -> Result<ForgetOutcome, EngineError> {
    job.enter(Phase::Transferring)?;
    repo.remove_leftovers().await?;
    let mut outcome = ForgetOutcome::default();
    let going: Vec<BackupId> = plan.going().collect();
    for (done, id) in going.iter().enumerate() {
        if job.token().is_cancelled() {
            return Err(EngineError::Cancelled);
        }
        match repo.forget(*id).await {
            Ok(()) => outcome.forgotten.push(*id),
            Err(RepoError::Pinned { .. }) => {
                surroundings.warn(format!("backup {id} was pinned just now, and stays"));
                outcome.spared.push(*id);
            }
            Err(error) => return Err(error.into()),
        }
        let progress = Progress {
            files_done: done as u64 + 1,
            files_total: Some(going.len() as u64),
            ..Progress::new(Phase::Transferring)
        };
        surroundings.tell(Event::Progress(job.progress(&progress)));
    }
    Ok(outcome)
}

#[cfg(test)]
mod tests {
    use stillframe_repo::{ManifestDraft, SourceManifest, Verification};

    use super::*;
    use crate::made_up::{self, id};

    fn backup(number: u8, host: &str, urls: &[&str]) -> Manifest {
        let sources = urls.iter().map(|url| SourceManifest::new(url, "sqlite", url)).collect();
        let made = Timestamp::from_second(i64::from(number) * 86_400).unwrap();
        made_up::backup(
            number,
            made,
            ManifestDraft { host: host.into(), sources, ..ManifestDraft::default() },
        )
    }

    fn damaged() -> Verified {
        let lost =
            Verification { at: Timestamp::UNIX_EPOCH, host: String::new(), sound: false, whole: false };
        Verified { levels: [("decrypt".to_owned(), lost)].into() }
    }

    fn going(
        all: &[Manifest],
        pins: &[u8],
        bad: &[u8],
        wanted: &dyn Fn(&Manifest) -> bool,
        retention: Retention,
    ) -> Vec<u8> {
        let number = |backup: BackupId| (1..9).find(|number| id(*number) == backup).unwrap();
        let pins = pins.iter().map(|number| (id(*number), None)).collect();
        let bad = bad.iter().map(|number| (id(*number), damaged())).collect();
        let decisions = decide(all, &pins, &bad, wanted, &retention);
        assert!(decisions.iter().all(|decision| decision.manifest.as_ref().is_some_and(wanted)));
        let mut going: Vec<u8> = decisions
            .iter()
            .filter(|decision| decision.goes())
            .map(|decision| number(decision.backup))
            .collect();
        going.sort_unstable();
        going
    }

    const ONE: Retention =
        Retention { last: 1, hourly: 0, daily: 0, weekly: 0, monthly: 0, yearly: 0, within: None };

    #[test]
    fn each_machine_and_set_of_sources_is_a_history_of_its_own() {
        let all = [
            backup(1, "a", &["x"]),
            backup(2, "a", &["x"]),
            backup(3, "b", &["x"]),
            backup(4, "a", &["y", "x"]),
            backup(5, "a", &["x", "y"]),
        ];
        assert_eq!(going(&all, &[], &[], &|_| true, ONE), [1, 4]);
        assert_eq!(going(&all, &[4], &[], &|_| true, ONE), [1]);
        assert_eq!(going(&all, &[], &[], &|manifest| manifest.draft.host == "b", ONE), [0_u8; 0]);
    }

    #[test]
    fn the_last_good_one_of_a_source_stays_whatever_is_asked_for() {
        let all = [backup(1, "a", &["x"]), backup(2, "a", &["x"]), backup(3, "a", &["x"])];
        let nothing = Retention::default();
        assert_eq!(going(&all, &[], &[], &|_| true, nothing), [1, 2]);
        // The newest is kept by the rule and is no good: the one before stays beside it.
        assert_eq!(going(&all, &[], &[3], &|_| true, ONE), [1]);
        assert_eq!(going(&all, &[], &[3, 2], &|_| true, ONE), [2]);
        // None is good: the newest may still give something.
        assert_eq!(going(&all, &[], &[1, 2, 3], &|_| true, nothing), [1, 2]);
        // What is left of a damaged one is no good one, either.
        let mut repaired = all.clone();
        repaired[2].draft.lost_files = 1;
        assert_eq!(going(&repaired, &[], &[], &|_| true, ONE), [1]);
        // What is not asked for counts as well.
        assert_eq!(going(&all, &[], &[], &|manifest| manifest.id < id(3), nothing), [1, 2]);
        // One of several sources that no other backup has keeps the whole.
        let both = [backup(1, "a", &["x", "y"]), backup(2, "a", &["x"]), backup(3, "a", &["x"])];
        assert_eq!(going(&both, &[], &[], &|_| true, nothing), [2]);
    }

    #[test]
    fn every_backup_that_stays_says_why() {
        let all = [backup(1, "a", &["x"]), backup(2, "a", &["x"])];
        let pins =
            [(id(1), Some(Pin { why: "audit".into(), since: Timestamp::UNIX_EPOCH, host: String::new() }))];
        let decisions = decide(&all, &pins.into(), &BTreeMap::new(), &|_| true, &Retention::default());
        let kept: Vec<&[String]> = decisions.iter().map(|decision| decision.kept.as_slice()).collect();
        assert_eq!(kept, [&[] as &[String], &["pinned: audit".to_owned()]]);
        let decisions = decide(&all, &BTreeMap::new(), &BTreeMap::new(), &|_| true, &Retention::default());
        assert_eq!(decisions[0].kept, ["the last good one of x on a"]);
    }
}
