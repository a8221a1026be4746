//! Checking the repository as a whole: whatever is stored is looked at, and what is wrong is named, with the files of the backups that
//! lose something by it. Nothing is changed.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::Arc;

use futures::{StreamExt, TryStreamExt};
use serde::Serialize;
use tokio_util::sync::CancellationToken;

use crate::error::{Error, Result, set_apart};
use crate::index::{CONCURRENCY, read_pack_table};
use crate::index_cache::Location;
use crate::key_ring::KeyRing;
use crate::layout::{Kind, ObjectName};
use crate::live_chunks::LiveChunks;
use crate::object_io::{Listed, ObjectIo};
use crate::pack_check::{PackCheck, PackFault, check_pack};
use crate::verify::{Finding, Lost, MAX_FINDINGS, VerifyReport};
use crate::{BackupId, Manifest, PackId, Pin, Repository, Verified, index_segment, json_object, mark};

/// Packs read at a time.
const PACKS_AT_A_TIME: usize = 2;

/// How much of the data to read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReadData {
    /// None: packs are there, have their lengths, and their tables can be read.
    Nothing,
    /// So many of ten thousand packs, at least one, chosen by the seed.
    Part {
        /// 1 to 10 000.
        of_ten_thousand: u32,
        /// Another one chooses other packs.
        seed: u64,
    },
    /// All.
    All,
}

/// How to check.
#[derive(Clone)]
pub struct CheckOptions {
    /// How much of the data to read.
    pub read: ReadData,
    /// Stops it; the result is then [`Error::Cancelled`], never a report.
    pub cancel: CancellationToken,
    /// Is told how far it is, from time to time; must not block.
    pub progress: Option<Arc<dyn Fn(CheckProgress) + Send + Sync>>,
}

impl CheckOptions {
    /// Nobody cancels, nobody listens.
    pub fn new(read: ReadData) -> Self {
        Self { read, cancel: CancellationToken::new(), progress: None }
    }
}

impl fmt::Debug for CheckOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CheckOptions").field("read", &self.read).finish_non_exhaustive()
    }
}

/// How far a check is. Totals grow while it finds out what there is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CheckProgress {
    /// Tables of packs, and backups, that were looked at.
    pub steps: u64,
    /// Of how many.
    pub steps_total: u64,
    /// Bytes of packs read.
    pub bytes: u64,
    /// Of how many; 0 until it is known, or if none are to be read.
    pub bytes_total: u64,
}

/// Something that is wrong in the repository.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CheckFinding {
    /// The backup that loses something. `None`: it is said of the object itself.
    pub backup: Option<BackupId>,
    /// What is wrong.
    #[serde(flatten)]
    pub finding: Finding,
}

/// What a check found.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct CheckReport {
    /// Backups that exist.
    pub backups: u64,
    /// Manifests without a seal: of running or killed writes.
    pub unfinished: u64,
    /// Packs.
    pub packs: u64,
    /// Bytes of all packs.
    pub pack_bytes: u64,
    /// Chunks that backups need, each counted once.
    pub chunks: u64,
    /// Packs that were read to their end.
    pub packs_read: u64,
    /// Bytes of those.
    pub bytes_read: u64,
    /// What is wrong, at most ten thousand of it: first of objects, then of backups.
    pub findings: Vec<CheckFinding>,
    /// What else is wrong.
    pub findings_omitted: u64,
    /// What is as it may be, and worth knowing.
    pub remarks: Vec<String>,
}

impl CheckReport {
    fn add(&mut self, backup: Option<BackupId>, finding: Finding) {
        if self.findings.len() < MAX_FINDINGS {
            self.findings.push(CheckFinding { backup, finding });
        } else {
            self.findings_omitted += 1;
        }
    }

    /// Nothing at all is wrong, as far as it was looked at.
    pub fn is_sound(&self) -> bool {
        self.findings.is_empty() && self.findings_omitted == 0
    }
}

impl Repository {
    /// Looks at everything in the repository. Damage is in the report; an error means that it could not be checked to the end. Others may
    /// write, forget and prune meanwhile.
    ///
    /// Which chunk is where is taken from the packs themselves: neither the index nor what this machine remembers of it is believed.
    /// Memory is bounded by the number of packs and backups; chunks are kept in temporary files.
    pub async fn check(&self, options: &CheckOptions) -> Result<CheckReport> {
        let mut check = Check::begin(self, options).await?;
        check.keys().await?;
        check.notes().await?;
        check.segments().await?;
        check.backups().await?;
        check.data().await?;
        check.losses().await?;
        Ok(check.report)
    }
}

/// One check.
struct Check<'a> {
    /// With an index of what the packs say.
    repository: Repository,
    options: &'a CheckOptions,
    report: CheckReport,
    progress: CheckProgress,
    /// Of each pack that can tell what is in it: a digest of that.
    tables: HashMap<PackId, [u8; 32]>,
    /// Packs that cannot.
    mute: BTreeMap<PackId, Listed>,
    existing: Vec<BackupId>,
    live: LiveChunks,
    /// Something that a backup needs was not found: which backups lose what by it is looked for in the end.
    is_missing: bool,
    lost: Lost,
}

impl<'a> Check<'a> {
    /// Reads the table of every pack.
    async fn begin(repository: &Repository, options: &'a CheckOptions) -> Result<Self> {
        let io = repository.io().clone();
        let packs = io.list(Kind::Pack).await?;
        let (mut tables, mut mute) = (HashMap::new(), BTreeMap::new());
        let mut report = CheckReport {
            packs: packs.len() as u64,
            pack_bytes: packs.iter().map(|pack| pack.size).sum(),
            ..CheckReport::default()
        };
        let mut progress = CheckProgress { steps_total: packs.len() as u64, ..CheckProgress::default() };
        let index = repository.index().of_packs(&packs, &options.cancel, |pack, table| {
            match table {
                Ok(table) => drop(tables.insert(pack.id, table.digest())),
                Err(error) => {
                    report.add(None, Finding::of(ObjectName::new(Kind::Pack, pack.id), error));
                    mute.insert(pack.id, pack);
                }
            }
            progress.steps += 1;
            if let Some(told) = &options.progress {
                told(progress);
            }
        });
        let index = index.await?;
        if !mute.is_empty() {
            // Somebody else may know what is in them.
            index.refresh().await?;
        }
        Ok(Self {
            repository: repository.with_index(Arc::new(index)),
            options,
            report,
            progress,
            tables,
            mute,
            existing: Vec::new(),
            live: LiveChunks::new()?,
            is_missing: false,
            lost: Lost::new(),
        })
    }

    fn check_cancelled(&self) -> Result<()> {
        if self.options.cancel.is_cancelled() { Err(Error::Cancelled) } else { Ok(()) }
    }

    fn tell(&self) {
        if let Some(progress) = &self.options.progress {
            progress(self.progress);
        }
    }

    fn find(&mut self, name: ObjectName, error: &Error) {
        self.report.add(None, Finding::of(name, error));
    }

    async fn keys(&mut self) -> Result<()> {
        let foreign = self.repository.foreign_keys().await?;
        self.report.remarks.extend(foreign.into_iter().map(|key| {
            format!("{key} is of another repository: left by a making that was cut short, or put there; nothing needs it")
        }));
        for (name, error) in self.repository.damaged_keys().await? {
            self.find(name, &error);
        }
        Ok(())
    }

    /// What is said of packs and backups.
    async fn notes(&mut self) -> Result<()> {
        let (io, ring) = (self.repository.io().clone(), Arc::clone(self.repository.ring()));
        let mut marks = 0;
        for listed in io.list(Kind::Mark).await? {
            let name = ObjectName::new(Kind::Mark, listed.id);
            match set_apart(io.get(name).await.and_then(|bytes| mark::decode(&ring, name, &bytes)))? {
                Some(Ok(_)) => marks += 1,
                Some(Err(error)) => self.find(name, &error),
                None => {}
            }
        }
        if marks > 0 {
            let remark =
                "a pruning runs, or was interrupted: the next `stillframe prune` brings it to its end";
            self.report.remarks.push(remark.to_owned());
        }
        for (id, pin) in json_object::read_all::<Pin>(&io, &ring, Kind::Pin).await? {
            if let Err(error) = pin {
                self.find(ObjectName::new(Kind::Pin, id), &error);
            }
        }
        for (id, verified) in json_object::read_all::<Verified>(&io, &ring, Kind::Verified).await? {
            if let Err(error) = verified {
                self.find(ObjectName::new(Kind::Verified, id), &error);
            }
        }
        Ok(())
    }

    /// Whether the index says what the packs say.
    async fn segments(&mut self) -> Result<()> {
        let (io, ring) = (self.repository.io().clone(), Arc::clone(self.repository.ring()));
        let read = futures::stream::iter(io.list(Kind::Index).await?).map(|listed| {
            let (io, ring, name) = (&io, &ring, ObjectName::new(Kind::Index, listed.id));
            async move {
                let read = io.get(name).await.and_then(|bytes| index_segment::decode(ring, name, &bytes));
                set_apart(read).map(|read| (name, read))
            }
        });
        let mut read = read.buffer_unordered(CONCURRENCY);
        while let Some((name, tables)) = read.try_next().await? {
            self.check_cancelled()?;
            let tables = match tables {
                Some(Ok(tables)) => tables,
                Some(Err(error)) => {
                    self.find(name, &error);
                    continue;
                }
                None => continue,
            };
            for table in tables {
                let pack = ObjectName::new(Kind::Pack, table.pack);
                if self.tables.get(&table.pack).is_some_and(|digest| *digest != table.digest()) {
                    let why = format!("what it says of {pack} is not what is in that pack");
                    self.find(name, &Error::damaged(&name, why));
                }
                if let Some(listed) = self.mute.get(&table.pack)
                    && listed.size != table.size
                {
                    let why =
                        format!("it has {} bytes, not the {} that were written", listed.size, table.size);
                    self.find(pack, &Error::damaged(&pack, why));
                }
            }
        }
        Ok(())
    }

    /// Which chunks backups need, and whether each is in a pack.
    async fn backups(&mut self) -> Result<()> {
        let (existing, unfinished) = self.repository.backup_ids().await?;
        self.report.backups = existing.len() as u64;
        self.report.unfinished = unfinished.len() as u64;
        self.progress.steps_total += (existing.len() + unfinished.len()) as u64;
        if !unfinished.is_empty() {
            let ids: Vec<String> = unfinished.iter().map(ToString::to_string).collect();
            self.report.remarks.push(format!(
                "{} without a seal: of a backup that runs or was killed, or of one that lost its seal ({})",
                if ids.len() == 1 {
                    "a manifest is".to_owned()
                } else {
                    format!("{} manifests are", ids.len())
                },
                ids.join(", ")
            ));
        }
        for id in existing {
            self.check_cancelled()?;
            match self.repository.manifest(id).await {
                Ok(_) => {
                    self.walk(id).await?;
                    self.existing.push(id);
                }
                // Forgotten since it was listed.
                Err(Error::NotFound { .. }) => {}
                Err(error) if error.is_unreadable() => {
                    let finding = Finding::of(ObjectName::new(Kind::Manifest, id), &error);
                    self.report.add(Some(id), Finding { is_loss: true, ..finding });
                }
                Err(error) => return Err(error),
            }
            self.step();
        }
        for id in unfinished {
            self.check_cancelled()?;
            let name = ObjectName::new(Kind::Manifest, id);
            let read = self.repository.io().get(name).await;
            let read = read.and_then(|bytes| Manifest::decode(self.repository.ring(), id, &bytes));
            // Of one that can be read nothing is asked: what it needs may be on its way.
            if let Some(Err(error)) = set_apart(read)? {
                self.find(name, &error);
            }
            self.step();
        }
        self.live.settle()?;
        self.report.chunks = self.live.len()?;
        let index = Arc::clone(self.repository.index());
        let mut is_missing = false;
        self.live.locate_each(&index, &self.options.cancel, |chunk, places| {
            is_missing |= !places.iter().any(|place| chunk.fits(place));
        })?;
        self.is_missing |= is_missing;
        Ok(())
    }

    fn step(&mut self) {
        self.progress.steps += 1;
        self.tell();
    }

    async fn walk(&mut self, id: BackupId) -> Result<()> {
        match self.live.walk_one(&self.repository, id, &self.options.cancel).await {
            Ok(()) => Ok(()),
            Err(error) if error.is_damage() => {
                self.is_missing = true;
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    /// Reads packs: those that cannot tell what is in them, as far as somebody else can; and as many others as were asked for.
    async fn data(&mut self) -> Result<()> {
        let mute = self.chunks_in_mute_packs()?;
        let io = self.repository.io().clone();
        let mut packs = io.list(Kind::Pack).await?;
        packs.retain(|pack| self.tables.contains_key(&pack.id));
        if let ReadData::Part { of_ten_thousand, seed } = self.options.read {
            let wanted = (packs.len() as u64 * u64::from(of_ten_thousand)).div_ceil(10_000);
            packs.sort_by_cached_key(|pack| drawn(pack.id, seed));
            packs.truncate(usize::try_from(wanted).unwrap_or(usize::MAX));
        } else if self.options.read == ReadData::Nothing {
            packs.clear();
        }
        let size = |places: &Vec<Location>| places.first().map_or(0, |place| place.pack_size);
        self.progress.bytes_total =
            packs.iter().map(|pack| pack.size).sum::<u64>() + mute.values().map(size).sum::<u64>();
        let ring = Arc::clone(self.repository.ring());
        let of_mute = mute.into_iter().map(|(pack, places)| Wanted::Places(pack, places));
        let wanted: Vec<Wanted> = of_mute.chain(packs.into_iter().map(Wanted::Whole)).collect();
        let reading = futures::stream::iter(wanted)
            .map(|wanted| read_pack(io.clone(), Arc::clone(&ring), wanted))
            .buffer_unordered(PACKS_AT_A_TIME);
        let mut reading = std::pin::pin!(reading);
        loop {
            let read = tokio::select! {
                read = reading.try_next() => read?,
                () = self.options.cancel.cancelled() => return Err(Error::Cancelled),
            };
            let Some(read) = read else { return Ok(()) };
            if let Some(check) = read {
                self.judge(check).await?;
            }
        }
    }

    /// By what the index says of them, which nobody else can contradict.
    fn chunks_in_mute_packs(&mut self) -> Result<BTreeMap<PackId, Vec<Location>>> {
        let mut places: BTreeMap<PackId, Vec<Location>> = BTreeMap::new();
        if self.mute.is_empty() {
            return Ok(places);
        }
        let index = Arc::clone(self.repository.index());
        self.live.locate_each(&index, &self.options.cancel, |_, found| {
            for place in found.iter().filter(|place| self.mute.contains_key(&place.pack)) {
                places.entry(place.pack).or_default().push(place.clone());
            }
        })?;
        for places in places.values_mut() {
            places.sort_unstable_by_key(|place| place.position);
        }
        Ok(places)
    }

    async fn judge(&mut self, check: PackCheck) -> Result<()> {
        let PackCheck { pack, bytes_read, fault, decoded } = check;
        self.report.packs_read += 1;
        self.report.bytes_read += bytes_read;
        self.progress.bytes += bytes_read;
        self.tell();
        let distrust = self.repository.index().distrust();
        let Some(PackFault { why, missing, chunks }) = fault else {
            distrust.clear(pack, &decoded);
            return Ok(());
        };
        // Rewritten since it was listed.
        if missing {
            return Ok(());
        }
        distrust.add(pack, chunks.iter().map(|chunk| chunk.id));
        let name = ObjectName::new(Kind::Pack, pack);
        let needed = self.live.contains(chunks.iter().map(|chunk| chunk.id))?;
        let mut lost = 0;
        for chunk in chunks.iter().filter(|chunk| needed.contains(&chunk.id)) {
            match self.repository.read_chunk(&chunk.id).await {
                Ok(_) => {}
                Err(error) if error.is_damage() => {
                    lost += 1;
                    if self.lost.len() < MAX_FINDINGS {
                        self.lost.insert(chunk.id, (name.to_string(), chunk.why.clone()));
                    } else {
                        self.report.findings_omitted += 1;
                    }
                }
                Err(error) => return Err(error),
            }
        }
        let consequence = match lost {
            0 => "no backup loses anything by it".to_owned(),
            1 => "1 chunk that backups need is lost with it".to_owned(),
            lost => format!("{lost} chunks that backups need are lost with it"),
        };
        self.find(name, &Error::damaged(&name, format!("{why}; {consequence}")));
        Ok(())
    }

    /// Which files of which backups are lost.
    async fn losses(&mut self) -> Result<()> {
        if !self.is_missing && self.lost.is_empty() {
            return Ok(());
        }
        for id in std::mem::take(&mut self.existing) {
            match self.repository.losses(id, &self.lost, &self.options.cancel).await {
                Ok(VerifyReport { findings, findings_omitted, .. }) => {
                    findings.into_iter().for_each(|finding| self.report.add(Some(id), finding));
                    self.report.findings_omitted += findings_omitted;
                }
                Err(Error::NotFound { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

/// A pack to be read.
enum Wanted {
    /// With all that it says is in it.
    Whole(Listed),
    /// With what is said to be in it.
    Places(PackId, Vec<Location>),
}

/// `None`: it is gone.
async fn read_pack(io: ObjectIo, ring: Arc<KeyRing>, wanted: Wanted) -> Result<Option<PackCheck>> {
    let (pack, places) = match wanted {
        Wanted::Places(pack, places) => (pack, places),
        Wanted::Whole(listed) => match read_pack_table(&io, &ring, listed).await {
            Ok(table) => (listed.id, Location::all_of(&table).collect()),
            Err(error) if error.is_absent() => return Ok(None),
            Err(error) => return Err(error),
        },
    };
    Ok(Some(check_pack(io, ring, pack, places, true).await?))
}

/// The order in which packs are drawn.
fn drawn(pack: PackId, seed: u64) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&seed.to_le_bytes()).update(&pack.0);
    *hasher.finalize().as_bytes()
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use crate::ObjectId;

    #[test]
    fn another_seed_draws_other_packs() {
        let packs: Vec<PackId> = (0..20).map(|n| ObjectId([n; 16])).collect();
        let first = |seed| {
            let mut packs = packs.clone();
            packs.sort_by_cached_key(|pack| drawn(*pack, seed));
            packs[0]
        };
        assert!((0..50).map(first).collect::<HashSet<_>>().len() > 10);
        assert_eq!(first(7), first(7));
    }
}
