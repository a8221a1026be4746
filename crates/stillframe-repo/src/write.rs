//! Writing a backup: the writer's half of the protocol that `docs/format.md` draws.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use stillframe_storage::{BandwidthLimit, Clock, failpoint};
use tokio_util::sync::CancellationToken;

use crate::claim::Claim;
use crate::envelope::{HASH_LEN, seal_object};
use crate::error::{Error, Result};
use crate::index::blocking;
use crate::index_cache::listed_size;
use crate::layout::{Kind, ObjectName};
use crate::lease::{self, Lease, LeaseKeeper, LeaseKind};
use crate::manifest::{MANIFEST_FORMAT, Manifest, ManifestDraft, Statistics};
use crate::mark;
use crate::packer::{Packer, PackerOptions};
use crate::session::WriteSession;
use crate::{BackupId, ObjectId, PackId, Repository};

/// A write that finds the ground moving under it so often gives up. Each round means that a sweep ran at just that time.
const MAX_ROUNDS: u32 = 8;

/// How to write a backup.
#[derive(Clone)]
pub struct WriteOptions {
    /// The backup whose subtrees may be taken over unread.
    pub base: Option<BackupId>,
    /// Rely on no pack that was there before: everything is stored again. For a repository in which damage was found.
    pub anew: bool,
    /// When what it shows was written, where that is not now: in place of the clock's time. It is dated right after.
    pub created: Option<Timestamp>,
    /// The machine, for the lease of a write that takes long.
    pub host: String,
    /// How often a write says that it is at work, so that prunings spare what it has stored. One that is done sooner never says so.
    pub lease_every: Duration,
    /// zstd's level for new chunks; 1 by default.
    pub level: i32,
    /// Stops the write at the next chunk or step.
    pub cancel: CancellationToken,
    /// What the uploads share with others.
    pub bandwidth: Option<Arc<BandwidthLimit>>,
    /// For the manifest's time and for the bandwidth limit.
    pub clock: Arc<dyn Clock>,
    /// Is told of steps as they happen, from any thread; must not block.
    pub events: Option<Arc<dyn Fn(WriteEvent) + Send + Sync>>,
}

/// Of names and tags, in bytes.
const MAX_LABEL_LEN: usize = 256;

impl WriteOptions {
    /// No base, level 1, no limits, no listener.
    pub fn new(clock: Arc<dyn Clock>) -> Self {
        Self {
            base: None,
            anew: false,
            created: None,
            host: String::new(),
            lease_every: lease::EVERY,
            level: 1,
            cancel: CancellationToken::new(),
            bandwidth: None,
            clock,
            events: None,
        }
    }

    fn emit(&self, event: WriteEvent) {
        if let Some(events) = &self.events {
            events(event);
        }
    }
}

impl std::fmt::Debug for WriteOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("WriteOptions")
            .field("base", &self.base)
            .field("level", &self.level)
            .finish_non_exhaustive()
    }
}

/// A step of a write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WriteEvent {
    /// A pack arrived.
    PackStored {
        /// Its size.
        bytes: u64,
    },
    /// Everything is uploaded and the manifest is written; what it relies on is being checked.
    ManifestStored {
        /// The backup it will be.
        id: BackupId,
    },
    /// A sweep took something that this write relied on: the content is put again, most of it without uploading.
    Again {
        /// The round that begins, counted from 1.
        round: u32,
        /// What was taken.
        why: String,
    },
    /// This machine's clock says that it is before the newest backup. The new one gets a time after it, so that it is listed as the
    /// newest.
    ClockBehind {
        /// The time of that backup.
        newest: Timestamp,
    },
    /// The backup exists.
    Sealed {
        /// It.
        id: BackupId,
    },
}

/// A backup that exists.
#[derive(Debug, Clone, PartialEq)]
pub struct Written {
    /// As stored.
    pub manifest: Manifest,
    /// How often the content was put; more than once only when a sweep ran beside.
    pub rounds: u32,
}

impl Repository {
    /// Writes a backup: calls `describe` with a session to put content into, and makes what it returns a backup.
    ///
    /// `describe` is called again, with a new session, when a sweep took packs that the first round relied on; it must put
    /// everything again (what is there is not uploaded again). It should hand the session to blocking threads,
    /// since [`WriteSession::put`] blocks, and must have joined them when it returns.
    ///
    /// When this returns a backup, everything it needs is durable. When it fails, is cancelled or is dropped, there is no
    /// backup; what was uploaded stays and is used by the next run. A failure of the store inside a `put` is returned
    /// in place of what `describe` made of it.
    pub async fn write<F, Fut, E>(&self, options: &WriteOptions, describe: F) -> Result<Written, E>
    where
        F: FnMut(Arc<WriteSession>) -> Fut,
        Fut: Future<Output = Result<ManifestDraft, E>>,
        E: From<Error>,
    {
        self.remove_leftovers().await?;
        let created = self.time_of_creation(options).await?;
        let cancel = options.cancel.child_token();
        // However this future ends, no thread goes on putting into a session that leads nowhere.
        let _stop = cancel.clone().drop_guard();
        let events = options.events.clone();
        let on_stored = Box::new(move |bytes| {
            if let Some(events) = &events {
                events(WriteEvent::PackStored { bytes });
            }
        });
        let packer_options = PackerOptions {
            pack_size: self.pack_size(),
            cancel: cancel.clone(),
            bandwidth: options.bandwidth.clone(),
            clock: Arc::clone(&options.clock),
        };
        let (ring, io, index) = (self.ring(), self.io(), self.index());
        let packer = Packer::new(Arc::clone(ring), io.clone(), Arc::clone(index), packer_options, on_stored);
        let base = match options.base {
            Some(base) if self.is_sealed(base).await? => Some(base),
            _ => None,
        };
        let mut writer = Writer {
            repository: self,
            options,
            created,
            packer,
            base,
            excluded: HashSet::new(),
            claims: Vec::new(),
            earlier: Statistics::default(),
            session: Arc::default(),
        };
        if options.anew {
            let packs = self.io().list(Kind::Pack).await?;
            writer.excluded.extend(packs.iter().map(|pack| pack.id));
        }
        let since = options.clock.now();
        let lease = Lease {
            what: LeaseKind::Write,
            since,
            renewed: since,
            host: options.host.clone(),
            packs: Vec::new(),
            backup: None,
        };
        let relied = Arc::clone(&writer.session);
        let packs = move || {
            let session = relied.lock().unwrap_or_else(PoisonError::into_inner).clone();
            session.map(|session| session.relied().into_keys().collect()).unwrap_or_default()
        };
        let keeper = LeaseKeeper::start(self, Arc::clone(&options.clock), options.lease_every, lease, packs);
        let result = writer.run(describe).await;
        keeper.end().await;
        if result.is_err() {
            cancel.cancel();
            writer.packer.drain().await;
        }
        let claims = std::mem::take(&mut writer.claims);
        match result {
            Ok(written) => {
                claims.into_iter().for_each(Claim::settle);
                Ok(written)
            }
            Err(error) => {
                for claim in claims {
                    self.retract(claim).await;
                }
                Err(error)
            }
        }
    }

    /// Removes what earlier runs of this machine left unsealed when they were killed. What cannot be removed now is tried
    /// again by the next run.
    pub async fn remove_leftovers(&self) -> Result<()> {
        for claim in Claim::of_the_dead(self.state()) {
            if self.is_sealed(claim.id).await? {
                claim.settle();
            } else {
                tracing::info!(id = %claim.id, "removing what an interrupted run left unsealed");
                self.retract(claim).await;
            }
        }
        Ok(())
    }

    /// Now, or after the time of every backup that is known here. Where nothing is known yet, the backups that are there are read, once.
    async fn time_of_creation(&self, options: &WriteOptions) -> Result<Timestamp> {
        const AFTER: SignedDuration = SignedDuration::from_micros(1);
        if let Some(created) = options.created {
            return Ok(created.saturating_add(AFTER).unwrap_or(created));
        }
        let now = options.clock.now();
        let newest = match self.newest().get() {
            None => self.backups().await?.readable.last().map(|newest| newest.created),
            known => known,
        };
        Ok(match newest {
            Some(newest) if newest >= now => {
                options.emit(WriteEvent::ClockBehind { newest });
                newest.saturating_add(AFTER).unwrap_or(now)
            }
            _ => now,
        })
    }

    pub(crate) async fn is_sealed(&self, id: BackupId) -> Result<bool> {
        let sealed = self.io().size(ObjectName::new(Kind::Sealed, id)).await?;
        let manifest = self.io().size(ObjectName::new(Kind::Manifest, id)).await?;
        Ok(sealed.is_some() && manifest.is_some())
    }

    async fn retract(&self, claim: Claim) {
        match self.take_away(claim.id).await {
            Ok(_) => claim.settle(),
            Err(error) => {
                tracing::warn!(%error, "could not take back an unfinished backup; the next run will");
            }
        }
    }
}

/// The protocol's state.
struct Writer<'a> {
    repository: &'a Repository,
    options: &'a WriteOptions,
    /// The upload may take hours: what the backup shows is of the time before it.
    created: Timestamp,
    packer: Arc<Packer>,
    base: Option<BackupId>,
    excluded: HashSet<PackId>,
    /// Manifests that are put, or may be, and not sealed. At most two.
    claims: Vec<Claim>,
    /// What earlier rounds stored.
    earlier: Statistics,
    /// That of this round.
    session: Arc<Mutex<Option<Arc<WriteSession>>>>,
}

impl Writer<'_> {
    async fn run<F, Fut, E>(&mut self, mut describe: F) -> Result<Written, E>
    where
        F: FnMut(Arc<WriteSession>) -> Fut,
        Fut: Future<Output = Result<ManifestDraft, E>>,
        E: From<Error>,
    {
        for round in 1..=MAX_ROUNDS {
            let session = self.begin_round().await?;
            let described = describe(Arc::clone(&session)).await;
            let closing = Arc::clone(&session);
            blocking(move || {
                closing.close();
                Ok(())
            })
            .await?;
            let draft = match described {
                Ok(draft) => draft,
                Err(error) => return Err(self.packer.take_failure().map_or(error, E::from)),
            };
            match self.finish_round(&session, draft).await? {
                Verdict::Good(manifest) => {
                    self.seal(&manifest).await?;
                    return Ok(Written { manifest: manifest.manifest, rounds: round });
                }
                Verdict::Taken(why) => {
                    tracing::info!(round, why, "putting the content again");
                    self.options.emit(WriteEvent::Again { round: round + 1, why });
                }
            }
        }
        let why =
            format!("{MAX_ROUNDS} times in a row something that this backup relied on was deleted meanwhile");
        Err(E::from(Error::GivenUp { why }))
    }

    async fn begin_round(&mut self) -> Result<Arc<WriteSession>> {
        let repository = self.repository;
        repository.index().refresh().await?;
        let marked = mark::marked(repository.io(), repository.ring()).await?;
        self.excluded.extend(marked);
        self.excluded.extend(repository.index().distrust().all());
        let session = Arc::new(WriteSession::new(
            Arc::clone(repository.ring()),
            Arc::clone(repository.index()),
            Arc::clone(&self.packer),
            self.options.level,
            self.base,
            Arc::new(self.excluded.clone()),
        ));
        *self.session.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::clone(&session));
        Ok(session)
    }

    /// Steps 1 to 3: everything uploaded, a manifest put, and then a look at what others have put.
    async fn finish_round(&mut self, session: &WriteSession, draft: ManifestDraft) -> Result<Verdict> {
        if let Err(error) = self.packer.flush().await {
            return Err(self.packer.take_failure().unwrap_or(error));
        }
        check_draft(&draft)?;
        let io = self.repository.io();
        let id = ObjectId::random();
        let mut statistics = session.statistics();
        statistics.chunks_new += self.earlier.chunks_new;
        statistics.bytes_new += self.earlier.bytes_new;
        let manifest = Manifest {
            format: MANIFEST_FORMAT,
            id,
            repository: self.repository.id(),
            created: self.created,
            base: session.base().filter(|_| session.needs_base()),
            draft,
            statistics,
        };
        let (payload, hash) = manifest.encode(self.repository.ring())?;
        failpoint("repo::flushed");
        self.claims.push(Claim::new(self.repository.state(), id));
        failpoint("repo::claimed");
        io.put(ObjectName::new(Kind::Manifest, id), payload).await?;
        failpoint("repo::manifest-stored");
        self.options.emit(WriteEvent::ManifestStored { id });
        while self.claims.len() > 1 {
            let previous = self.claims.remove(0);
            self.repository.retract(previous).await;
        }
        match self.what_was_taken(session).await? {
            None => Ok(Verdict::Good(Box::new(StoredManifest { manifest, hash }))),
            Some(why) => {
                self.earlier = Statistics { ..manifest.statistics };
                Ok(Verdict::Taken(why))
            }
        }
    }

    /// Step 3. The order is the protocol: marks, THEN packs, THEN the base's manifest. `None`: all is there.
    async fn what_was_taken(&mut self, session: &WriteSession) -> Result<Option<String>> {
        let (io, ring) = (self.repository.io(), self.repository.ring());
        let relied = session.relied();
        let marked = mark::marked(io, ring).await?;
        failpoint("repo::marks-listed");
        let listed = io.list(Kind::Pack).await?;
        failpoint("repo::packs-listed");
        // One that was cut meanwhile is as good as gone.
        let is_whole = |pack: PackId, written: Option<u64>| {
            let size = listed_size(&listed, pack);
            size.is_some()
                && written.or_else(|| self.packer.size_of(pack)).is_none_or(|written| size == Some(written))
        };
        let bad: Vec<PackId> = relied
            .into_iter()
            .filter(|(pack, written)| marked.contains(pack) || !is_whole(*pack, *written))
            .map(|(pack, _)| pack)
            .collect();
        let mut taken = Vec::new();
        if !bad.is_empty() {
            taken.push(format!("{} packs are deleted, about to be, or cut", bad.len()));
            self.packer.forget(&bad);
            self.excluded.extend(bad);
        }
        if session.needs_base()
            && let Some(base) = self.base
        {
            if io.size(ObjectName::new(Kind::Manifest, base)).await?.is_none() {
                taken.push(format!("the base backup {base} was deleted"));
                self.base = None;
            } else if let Err(error) =
                self.repository.check_presence(session.taken_over(), &self.options.cancel).await
            {
                if !error.is_damage() {
                    return Err(error);
                }
                taken.push(format!("what the base backup {base} has is not whole any more: {error}"));
                self.base = None;
            }
        }
        if self.options.cancel.is_cancelled() {
            return Err(Error::Cancelled);
        }
        Ok((!taken.is_empty()).then(|| taken.join("; ")))
    }

    /// Steps 4 and 5.
    async fn seal(&self, stored: &StoredManifest) -> Result<()> {
        let io = self.repository.io();
        let id = stored.manifest.id;
        failpoint("repo::checked");
        let name = ObjectName::new(Kind::Sealed, id);
        let (payload, _) = seal_object(self.repository.ring(), name, stored.hash.as_bytes().to_vec());
        io.put(name, payload).await?;
        failpoint("repo::sealed");
        let manifest = ObjectName::new(Kind::Manifest, id);
        let bytes = match io.get(manifest).await {
            Ok(bytes) => bytes,
            Err(error) if error.is_absent() => {
                let why = "this backup was removed by somebody while it was being finished".to_owned();
                return Err(Error::GivenUp { why });
            }
            Err(error) => return Err(error),
        };
        if bytes.last_chunk::<HASH_LEN>() != Some(stored.hash.as_bytes()) {
            return Err(Error::damaged(&manifest, "the store gives back other bytes than it was given"));
        }
        self.repository.check_identity().await?;
        self.repository.newest().note(stored.manifest.created);
        self.options.emit(WriteEvent::Sealed { id });
        Ok(())
    }
}

/// What the look at the others' doings found.
enum Verdict {
    Good(Box<StoredManifest>),
    Taken(String),
}

struct StoredManifest {
    manifest: Manifest,
    hash: blake3::Hash,
}

/// Whether a list can show it on one line.
pub(crate) fn is_plain(label: &str) -> bool {
    !label.is_empty() && label.len() <= MAX_LABEL_LEN && !label.chars().any(char::is_control)
}

/// Refuses names and tags of backups that would mean something else, or that no list could show.
pub fn check_labels(name: Option<&str>, tags: &[String]) -> Result<()> {
    if let Some(name) = name {
        if !is_plain(name) {
            let why = "a name is 1 to 256 bytes without control characters";
            return Err(Error::Invalid(format!("{name:?} cannot be a backup's name: {why}")));
        }
        let meaning = match name {
            "latest" => Some("it means the newest backup"),
            name if name.parse::<BackupId>().is_ok() => Some("it is written like a backup's id"),
            _ => None,
        };
        if let Some(meaning) = meaning {
            return Err(Error::Invalid(format!("{name:?} cannot be a backup's name: {meaning}")));
        }
    }
    match tags.iter().find(|tag| !is_plain(tag)) {
        Some(tag) => {
            Err(Error::Invalid(format!("{tag:?} cannot be a tag: 1 to 256 bytes without control characters")))
        }
        None => Ok(()),
    }
}

fn check_draft(draft: &ManifestDraft) -> Result<()> {
    check_labels(draft.name.as_deref(), &draft.tags)?;
    let mut names = HashSet::new();
    for source in &draft.sources {
        if !names.insert(&source.name) {
            return Err(Error::Invalid(format!("two sources of the backup are called {:?}", source.name)));
        }
        for content in [Some(source.snapshot), Some(source.files), source.collections].into_iter().flatten() {
            if !content.is_consistent() {
                return Err(Error::Invalid(format!(
                    "{}: a content reference contradicts itself",
                    source.name
                )));
            }
        }
    }
    Ok(())
}
