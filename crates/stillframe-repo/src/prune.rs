//! Pruning: packs that no manifest leads to are deleted, those that hold little of use are written anew without the rest.
//!
//! The order of the steps is the protocol of `docs/format.md`, which keeps writers, other sweepers and whoever died half way from
//! harming each other. Hints decide what is condemned; what is deleted is decided by the packs' own tables.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use futures::{StreamExt, TryStreamExt};
use serde::Serialize;
use stillframe_storage::{BandwidthLimit, Clock, failpoint};
use tokio_util::sync::CancellationToken;

use crate::envelope::{HASH_LEN, HEADER_LEN, Header, TAG_LEN, check_repository};
use crate::error::{Error, Result, set_apart};
use crate::index::read_pack_table;
use crate::index_cache::Location;
use crate::layout::{Kind, ObjectName};
use crate::live_chunks::LiveChunks;
use crate::object_io::Listed;
use crate::pack_mover::PackMover;
use crate::{ObjectId, PackId, Repository, mark};

/// Packs deleted at a time.
const DELETIONS: usize = 8;
/// What is moved in one round at most, or a twentieth of all where that is more: its copies need room before the packs go, and a run that
/// is stopped loses that much work.
const MOVED_IN_A_ROUND: u64 = 1 << 30;
/// Sweeps that see each other give way, so it takes some turns until one comes through.
const MAX_MEETINGS: u32 = 8;
/// A round that does not come to an end is a mistake of ours, not of the store.
const MAX_ROUNDS: u64 = 100_000;

/// How to prune.
#[derive(Clone)]
pub struct PruneOptions {
    /// A pack of whose bytes less than so many percent are needed is written anew. 70 bounds what is stored to some 1.43 times of what is
    /// needed.
    pub min_live_percent: u8,
    /// Bytes per second to the store.
    pub bandwidth: Option<Arc<BandwidthLimit>>,
    /// How long to give way to another pruning that began at the same time; some times as long when that happens again.
    pub pause: Duration,
    /// Stops it. What it had begun to delete is deleted by the next run.
    pub cancel: CancellationToken,
    /// For the bandwidth.
    pub clock: Arc<dyn Clock>,
    /// Is told what happens; must not block.
    pub events: Option<Arc<dyn Fn(PruneEvent) + Send + Sync>>,
}

impl PruneOptions {
    /// Packs below 70 %, as fast as it goes, nobody cancels, nobody listens.
    pub fn new(clock: Arc<dyn Clock>) -> Self {
        let (pause, cancel) = (Duration::from_millis(500), CancellationToken::new());
        Self { min_live_percent: 70, bandwidth: None, pause, cancel, clock, events: None }
    }
}

impl fmt::Debug for PruneOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PruneOptions")
            .field("min_live_percent", &self.min_live_percent)
            .finish_non_exhaustive()
    }
}

/// What happens while a repository is pruned.
#[derive(Debug, Clone)]
pub enum PruneEvent {
    /// A round begins; what it is going to do.
    Planned(PrunePlan),
    /// Chunks were moved.
    Moved {
        /// Bytes, as stored.
        bytes: u64,
    },
    /// A pack was deleted.
    Deleted {
        /// Its size.
        bytes: u64,
    },
    /// Another sweep began at the same time; this one starts again.
    Met,
    /// A pack is damaged, so that nobody knows what would be lost with it: it is left alone.
    Spared {
        /// What is wrong with it.
        why: String,
    },
}

/// What a pruning would do.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct PrunePlan {
    /// Packs that are there.
    pub packs: u64,
    /// Their bytes.
    pub pack_bytes: u64,
    /// Bytes of chunks, as stored, that backups need.
    pub live_bytes: u64,
    /// Chunks that backups need and no pack has. Nothing that is done here makes it worse.
    pub lost_chunks: u64,
    /// Packs that nothing needs, those of sweeps that were interrupted among them.
    pub dead_packs: u64,
    /// Their bytes.
    pub dead_bytes: u64,
    /// Packs of which too little is needed, or which are too small.
    pub rewritten_packs: u64,
    /// Their bytes.
    pub rewritten_bytes: u64,
    /// What of those bytes is needed and is moved.
    pub moved_bytes: u64,
    /// Sweeps that were interrupted, or run just now, and whose packs are taken over.
    pub marks: u64,
    /// Packs of backups that are being written just now, which are left alone.
    pub leased_packs: u64,
}

impl PrunePlan {
    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.dead_packs + self.rewritten_packs + self.marks == 0
    }
}

/// What a pruning has done.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct PruneOutcome {
    /// Rounds that deleted something.
    pub rounds: u64,
    /// Packs that were deleted.
    pub packs_deleted: u64,
    /// Their bytes.
    pub bytes_deleted: u64,
    /// Chunks that were moved into new packs.
    pub chunks_moved: u64,
    /// Bytes of the new packs.
    pub bytes_written: u64,
    /// Index segments after a clean-up; 0: none was due.
    pub index_segments: u64,
    /// Bytes of packs that are there now.
    pub pack_bytes: u64,
    /// Damaged packs that were left alone.
    pub packs_spared: u64,
    /// Packs of backups that are being written just now, which were left alone.
    pub packs_leased: u64,
}

impl Repository {
    /// What [`Self::prune`] would do in its first round. Nothing is written.
    pub async fn plan_prune(&self, options: &PruneOptions) -> Result<PrunePlan> {
        let mut sweep = Sweep::new(self, options)?;
        Ok(sweep.survey().await?.plan)
    }

    /// Deletes what no backup needs, in rounds. May run beside writers, readers and other prunings on any machine; a run that is stopped
    /// at any point has lost nothing, and the next one goes on.
    pub async fn prune(&self, options: &PruneOptions) -> Result<PruneOutcome> {
        self.remove_leftovers().await?;
        let mut sweep = Sweep::new(self, options)?;
        let mut outcome = PruneOutcome::default();
        let packs_before = self.io().list(Kind::Pack).await?.len() as u64;
        let mut meetings = 0;
        while outcome.rounds < MAX_ROUNDS {
            let survey = sweep.survey().await?;
            outcome.packs_leased = survey.plan.leased_packs;
            if survey.plan.is_empty() {
                break;
            }
            sweep.emit(PruneEvent::Planned(survey.plan.clone()));
            let Some(own) = sweep.mark(&survey).await? else {
                sweep.emit(PruneEvent::Met);
                meetings += 1;
                if meetings == MAX_MEETINGS {
                    let why = "other prunings began at the same time, again and again".to_owned();
                    return Err(Error::GivenUp { why });
                }
                sweep.give_way(meetings).await?;
                continue;
            };
            match sweep.rescue(&survey).await {
                Ok(()) => sweep.remove(own, survey, &mut outcome).await?,
                Err(failure) => {
                    // Nothing was touched yet.
                    sweep.unmark(own).await;
                    sweep.spare(failure, &survey)?;
                }
            }
        }
        let (chunks_moved, bytes_written) = sweep.moved;
        outcome.chunks_moved = chunks_moved;
        outcome.bytes_written = bytes_written;
        outcome.packs_spared = sweep.spared.len() as u64;
        self.tidy_notes().await?;
        self.tidy_leases(options.clock.now()).await?;
        let much_is_gone = outcome.packs_deleted * 4 > packs_before;
        outcome.index_segments = self.index().compact(much_is_gone, &options.cancel).await?;
        outcome.pack_bytes = self.io().list(Kind::Pack).await?.iter().map(|pack| pack.size).sum();
        Ok(outcome)
    }
}

/// One pruning.
pub(crate) struct Sweep<'a> {
    repository: &'a Repository,
    options: &'a PruneOptions,
    live: LiveChunks,
    /// Packs that cannot be read.
    spared: HashSet<PackId>,
    /// Chunks, and bytes of the packs that they went into.
    moved: (u64, u64),
}

/// What the first step found.
pub(crate) struct Survey {
    /// Of other sweeps that run or died, with their packs.
    marks: BTreeMap<ObjectId, Vec<PackId>>,
    pub(crate) condemned: BTreeSet<PackId>,
    plan: PrunePlan,
}

/// How much of a pack is needed.
#[derive(Debug, Clone, Copy, Default)]
struct Usage {
    chunks: u64,
    bytes: u64,
}

impl Usage {
    /// Of the bytes of chunks in a pack of this size, how many of a thousand are needed; at least that many. A pack all of whose chunks
    /// are needed has a thousand, however small they are beside their table.
    fn permille(self, size: u64) -> u64 {
        let table = self.chunks * 41 + (HEADER_LEN + TAG_LEN + 8 + HASH_LEN) as u64;
        let chunks = size.saturating_sub(table).max(1);
        self.bytes * 1000 / chunks
    }
}

/// Why chunks could not be brought to safety.
pub(crate) enum RescueFailure {
    /// These packs cannot tell what is in them.
    Mute(Vec<(PackId, Error)>),
    Other(Error),
}

impl From<Error> for RescueFailure {
    fn from(error: Error) -> Self {
        Self::Other(error)
    }
}

impl<'a> Sweep<'a> {
    pub(crate) fn new(repository: &'a Repository, options: &'a PruneOptions) -> Result<Self> {
        Ok(Self { repository, options, live: LiveChunks::new()?, spared: HashSet::new(), moved: (0, 0) })
    }

    fn emit(&self, event: PruneEvent) {
        if let Some(events) = &self.options.events {
            events(event);
        }
    }

    fn check(&self) -> Result<()> {
        if self.options.cancel.is_cancelled() { Err(Error::Cancelled) } else { Ok(()) }
    }

    /// Step 1. The order is the protocol: marks, THEN manifests, THEN packs.
    pub(crate) async fn survey(&mut self) -> Result<Survey> {
        let (io, ring) = (self.repository.io(), self.repository.ring());
        let marks = mark::read_all(io, ring).await?;
        self.live.walk(self.repository, &self.options.cancel).await?;
        self.repository.index().refresh().await?;
        let packs = io.list(Kind::Pack).await?;
        let taken: HashSet<PackId> = marks.values().flatten().copied().collect();
        let unknown = self.repository.index().unknown_packs(&packs).await?;
        let mute = self.mute(&unknown, &packs).await?;
        let bad = self.repository.index().distrust().all();
        let leased = self.repository.leased_packs(self.options.clock.now()).await?;
        let (usage, lost_chunks, in_doubt) = self.usage(&taken, &bad)?;
        let mut plan = PrunePlan {
            packs: packs.len() as u64,
            pack_bytes: packs.iter().map(|pack| pack.size).sum(),
            live_bytes: usage.values().map(|usage| usage.bytes).sum(),
            lost_chunks,
            marks: marks.len() as u64,
            ..PrunePlan::default()
        };
        let mut condemned: BTreeSet<PackId> = taken.iter().copied().collect();
        let mut sparse: Vec<(u64, Listed, Usage)> = Vec::new();
        let mut small: Vec<(u64, Listed, Usage)> = Vec::new();
        for pack in packs {
            // Of a pack whose table cannot be read nobody knows what is in it, unless nothing is missing without it, nor may be.
            let is_mute = mute.contains(&pack.id) && in_doubt == 0;
            if (unknown.contains(&pack.id) && !is_mute) || self.spared.contains(&pack.id) {
                continue;
            }
            // So also of one that was found damaged, whatever the index knows of it: what cannot be brought to safety must not be in a mark, which
            // no later sweep could take away.
            if bad.contains(&pack.id) && in_doubt > 0 && !taken.contains(&pack.id) {
                self.spared.insert(pack.id);
                let name = ObjectName::new(Kind::Pack, pack.id);
                self.emit(PruneEvent::Spared {
                    why: format!(
                        "{name} was found damaged, and something that backups need may be in it alone"
                    ),
                });
                continue;
            }
            // What is in a mark is lost to its writer in any case.
            if leased.contains(&pack.id) && !taken.contains(&pack.id) {
                plan.leased_packs += 1;
                continue;
            }
            let used = usage.get(&pack.id).copied().unwrap_or_default();
            let permille = used.permille(pack.size);
            if used.chunks == 0 || taken.contains(&pack.id) {
                condemned.insert(pack.id);
                plan.dead_packs += 1;
                plan.dead_bytes += pack.size;
            } else if permille < u64::from(self.options.min_live_percent) * 10 {
                sparse.push((permille, pack, used));
            } else if self.repository.is_small_pack(used.bytes, used.chunks) {
                small.push((permille, pack, used));
            }
        }
        let of_small = small.iter().fold(Usage::default(), |sum, (_, _, used)| Usage {
            chunks: sum.chunks + used.chunks,
            bytes: sum.bytes + used.bytes,
        });
        // Together they make at least one that is not.
        if self.repository.fills_a_pack(of_small.bytes, of_small.chunks) {
            sparse.extend(small);
        }
        // What brings most room for the least work comes first.
        sparse.sort_unstable_by_key(|(permille, pack, _)| (*permille, pack.id));
        let at_once = MOVED_IN_A_ROUND.max(plan.live_bytes / 20);
        for (_, pack, used) in sparse {
            if plan.moved_bytes > at_once {
                break;
            }
            condemned.insert(pack.id);
            plan.rewritten_packs += 1;
            plan.rewritten_bytes += pack.size;
            plan.moved_bytes += used.bytes;
        }
        Ok(Survey { marks, condemned, plan })
    }

    /// How much of each pack is needed, by the hints; how many chunks no pack has; and how many are, as far as is known, in `bad` packs alone. A
    /// chunk that is in several counts in one of them, always the same, so that the other copies are what they are: garbage. Packs that are
    /// `taken` do not count.
    fn usage(
        &self,
        taken: &HashSet<PackId>,
        bad: &HashSet<PackId>,
    ) -> Result<(HashMap<PackId, Usage>, u64, u64)> {
        let index = self.repository.index();
        let (mut usage, mut lost, mut in_doubt) = (HashMap::<PackId, Usage>::new(), 0, 0);
        self.live.locate_each(index, &self.options.cancel, |chunk, places| {
            let is_good = |place: &Location| chunk.fits(place) && !bad.contains(&place.pack);
            in_doubt += u64::from(!places.iter().any(is_good));
            let homes = places.iter().filter(|place| !taken.contains(&place.pack));
            match homes.min_by_key(|place| (bad.contains(&place.pack), place.pack)) {
                Some(home) => {
                    let used = usage.entry(home.pack).or_default();
                    used.chunks += 1;
                    used.bytes += u64::from(home.entry.stored_len);
                }
                None if places.is_empty() => lost += 1,
                None => {}
            }
        })?;
        Ok((usage, lost, in_doubt))
    }

    /// Of packs of which the index knows nothing, those that are damaged: their own tables cannot tell either.
    async fn mute(&self, unknown: &HashSet<PackId>, packs: &[Listed]) -> Result<HashSet<PackId>> {
        let mut mute = HashSet::new();
        for pack in packs.iter().filter(|pack| unknown.contains(&pack.id)) {
            let table = read_pack_table(self.repository.io(), self.repository.ring(), *pack).await;
            if let Some(Err(Error::Damaged { .. })) = set_apart(table)?
                && !self.is_foreign(*pack).await?
            {
                mute.insert(pack.id);
            }
        }
        Ok(mute)
    }

    /// Whether it is a sound pack of another repository, that somebody put here by mistake.
    async fn is_foreign(&self, pack: Listed) -> Result<bool> {
        let name = ObjectName::new(Kind::Pack, pack.id);
        let header = self.repository.io().get_range(name, 0..HEADER_LEN as u64).await;
        let header = set_apart(header.and_then(|bytes| Header::decode(name, &bytes)))?;
        let ring = self.repository.ring();
        Ok(header.is_some_and(|header| header.is_ok_and(|header| check_repository(ring, &header).is_err())))
    }

    /// Whether everything that is live is in packs that stay and are not damaged, by those packs' own tables: then nothing is lost with packs that
    /// cannot tell what is in them.
    async fn is_all_elsewhere(&self, condemned: &BTreeSet<PackId>) -> Result<bool> {
        let bad = self.repository.index().distrust().all();
        let mut packs = self.repository.io().list(Kind::Pack).await?;
        packs.retain(|pack| !condemned.contains(&pack.id) && !bad.contains(&pack.id));
        let index = self.repository.index().of_packs(&packs, &self.options.cancel, |_, _| {}).await?;
        let mut is_all = true;
        self.live.locate_each(&index, &self.options.cancel, |chunk, places| {
            is_all &= places.iter().any(|place| chunk.fits(place));
        })?;
        Ok(is_all)
    }

    /// Step 2. `None`: another sweep began meanwhile, and this one has given way.
    pub(crate) async fn mark(&self, survey: &Survey) -> Result<Option<ObjectName>> {
        self.check()?;
        let (io, ring) = (self.repository.io(), self.repository.ring());
        let own = ObjectName::new(Kind::Mark, ObjectId::random());
        let put = io.put(own, mark::encode(ring, own, &survey.condemned)).await;
        failpoint("prune::marked");
        let listed = match put {
            Ok(()) => io.list(Kind::Mark).await,
            Err(error) => Err(error),
        };
        match listed {
            Ok(marks) => {
                let is_new = |mark: &Listed| mark.id != own.id && !survey.marks.contains_key(&mark.id);
                if !marks.iter().any(is_new) {
                    return Ok(Some(own));
                }
                io.delete(own).await?;
                Ok(None)
            }
            Err(error) => {
                self.unmark(own).await;
                Err(error)
            }
        }
    }

    /// Takes the own mark back, while nothing was touched.
    async fn unmark(&self, own: ObjectName) {
        if let Err(error) = self.repository.io().delete(own).await {
            tracing::warn!(%error, "a mark could not be taken back; the next pruning takes it over");
        }
    }

    /// Longer each time, and not the same for all.
    async fn give_way(&self, meetings: u32) -> Result<()> {
        let [random, ..] = ObjectId::random().0;
        let pause = self.options.pause * meetings + self.options.pause * u32::from(random) / 128;
        tokio::select! {
            () = tokio::time::sleep(pause) => Ok(()),
            () = self.options.cancel.cancelled() => Err(Error::Cancelled),
        }
    }

    /// Step 3: whatever is live and would have no copy left is copied. The manifests are listed again, since a writer may have put one
    /// before it could see the mark; and the tables are those of the packs themselves, not what the index says of them.
    pub(crate) async fn rescue(&mut self, survey: &Survey) -> Result<(), RescueFailure> {
        self.live.walk(self.repository, &self.options.cancel).await?;
        self.repository.index().refresh().await?;
        let packs = self.repository.io().list(Kind::Pack).await?;
        let mut mover = PackMover::new(self.repository, self.options, &packs, &survey.condemned);
        let condemned: Vec<Listed> =
            packs.iter().filter(|pack| survey.condemned.contains(&pack.id)).copied().collect();
        let mut mute = Vec::new();
        for pack in condemned {
            self.check()?;
            match mover.rescue(pack, &self.live).await {
                Ok(0) => {}
                Ok(bytes) => self.emit(PruneEvent::Moved { bytes }),
                Err(error) if error.is_damage() => mute.push((pack.id, error)),
                Err(error) => return Err(error.into()),
            }
        }
        let (chunks, bytes) = mover.finish().await?;
        self.moved.0 += chunks;
        self.moved.1 += bytes;
        failpoint("prune::rescued");
        if mute.is_empty() || self.is_all_elsewhere(&survey.condemned).await? {
            Ok(())
        } else {
            Err(RescueFailure::Mute(mute))
        }
    }

    /// What could not be read is left alone from now on, if it is this sweep that condemned it.
    fn spare(&mut self, failure: RescueFailure, survey: &Survey) -> Result<()> {
        match failure {
            RescueFailure::Other(error) => Err(error),
            RescueFailure::Mute(packs) => {
                for (pack, error) in packs {
                    let why = error.to_string();
                    if survey.marks.values().flatten().any(|taken| *taken == pack)
                        || !self.spared.insert(pack)
                    {
                        return Err(error);
                    }
                    self.repository.index().distrust().add(pack, []);
                    self.emit(PruneEvent::Spared { why });
                }
                Ok(())
            }
        }
    }

    /// Steps 4 and 5. From the first deletion on the mark stays until all are deleted: whoever finds it goes on here.
    pub(crate) async fn remove(
        &self,
        own: ObjectName,
        survey: Survey,
        outcome: &mut PruneOutcome,
    ) -> Result<()> {
        let io = self.repository.io();
        let sizes: HashMap<PackId, u64> =
            io.list(Kind::Pack).await?.iter().map(|pack| (pack.id, pack.size)).collect();
        let condemned: Vec<PackId> = survey.condemned.iter().copied().collect();
        let deletions = futures::stream::iter(condemned).map(|pack| {
            let (size, io, cancel) = (sizes.get(&pack).copied(), io.clone(), self.options.cancel.clone());
            async move {
                if cancel.is_cancelled() {
                    return Err(Error::Cancelled);
                }
                io.delete(ObjectName::new(Kind::Pack, pack)).await?;
                failpoint("prune::pack-deleted");
                Ok(size)
            }
        });
        let mut deletions = deletions.buffer_unordered(DELETIONS);
        while let Some(size) = deletions.try_next().await? {
            if let Some(bytes) = size {
                outcome.packs_deleted += 1;
                outcome.bytes_deleted += bytes;
                self.emit(PruneEvent::Deleted { bytes });
            }
        }
        failpoint("prune::deleted");
        let marks: Vec<ObjectId> = std::iter::once(own.id).chain(survey.marks.into_keys()).collect();
        for mark in marks {
            io.delete(ObjectName::new(Kind::Mark, mark)).await?;
            failpoint("prune::mark-deleted");
        }
        outcome.rounds += 1;
        Ok(())
    }
}
