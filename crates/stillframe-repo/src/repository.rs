//! A repository: made, opened, and asked what it holds.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use stillframe_storage::object_store::ObjectStore;
use stillframe_storage::{Clock, failpoint};

use crate::distrust::Distrust;
use crate::envelope::{HASH_LEN, open_object};
use crate::error::{Error, Result, set_apart};
use crate::index::{Index, blocking};
use crate::index_cache::IndexCache;
use crate::key_object::{KeyDescription, Passphrase, PassphraseCost};
use crate::key_ring::KeyRing;
use crate::keys::{put_key, unlock_ring};
use crate::layout::{CONFIG_OBJECT, Kind, ObjectName};
use crate::local_dirs::LocalDirs;
use crate::manifest::Manifest;
use crate::newest::Newest;
use crate::object_io::{Listed, ObjectIo};
use crate::{BackupId, ObjectId, RepositoryId};

const FORMAT: u64 = 1;
const PACK_SIZES: std::ops::RangeInclusive<u64> = 4096..=128 << 20;
/// Small objects read at a time.
const CONCURRENCY: usize = 16;

/// How the keys of a new repository are protected.
#[derive(Debug, Clone)]
pub enum Encryption {
    /// By a passphrase. Who loses it loses the backups.
    Passphrase(Passphrase),
    /// Not at all: who can read the store can read the backups.
    None,
}

/// How to make a repository.
#[derive(Debug, Clone)]
pub struct InitOptions {
    /// How its keys are protected.
    pub encryption: Encryption,
    /// How hard it is to try a passphrase.
    pub cost: PassphraseCost,
    /// When a pack is full: 4 KiB to 128 MiB; 32 MiB by default.
    pub pack_size: u64,
    /// What the first key is called.
    pub label: String,
    /// For the times of making.
    pub clock: Arc<dyn Clock>,
}

impl InitOptions {
    /// Packs of 32 MiB, the usual cost, no label.
    pub fn new(encryption: Encryption, clock: Arc<dyn Clock>) -> Self {
        let cost = PassphraseCost::default();
        Self { encryption, cost, pack_size: 32 << 20, label: String::new(), clock }
    }
}

/// How to open a repository.
#[derive(Debug, Clone)]
pub enum Unlock {
    /// With this passphrase.
    Passphrase(Passphrase),
    /// It is not encrypted.
    None,
}

/// `stillframe.json`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Config {
    stillframe: String,
    format: u64,
    id: RepositoryId,
    pack_size: u64,
    created: Timestamp,
}

/// An open repository. Cheap to clone; may be used from many tasks and threads at once.
#[derive(Debug, Clone)]
pub struct Repository {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    config: Config,
    io: ObjectIo,
    ring: Arc<KeyRing>,
    /// The key that opened it.
    key: ObjectId,
    encrypted: bool,
    index: Arc<Index>,
    newest: Newest,
    state: PathBuf,
}

/// What a repository is and how much is in it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RepositoryInfo {
    /// Its id, for life.
    pub id: RepositoryId,
    /// Version of the format.
    pub format: u64,
    /// When a pack is full, in bytes.
    pub pack_size: u64,
    /// When it was made, by the maker's clock.
    pub created: Timestamp,
    /// Whether a passphrase protects it.
    pub encrypted: bool,
    /// Epochs of its keys.
    pub epochs: Vec<u32>,
    /// Keys that open it.
    pub keys: u64,
    /// Backups that exist.
    pub backups: u64,
    /// Manifests without a seal: of running or killed writes.
    pub unfinished: u64,
    /// Packs.
    pub packs: u64,
    /// Bytes of all packs.
    pub pack_bytes: u64,
    /// Index segments.
    pub index_segments: u64,
    /// Marks of sweeps that run or were killed.
    pub marks: u64,
}

/// The backups of a repository.
#[derive(Debug, Default)]
pub struct Backups {
    /// Those that exist, newest last.
    pub readable: Vec<Manifest>,
    /// Those that are sealed but whose manifest or seal cannot be read, with the reason.
    pub unreadable: Vec<(BackupId, Error)>,
    /// Manifests without a seal: of running or killed writes.
    pub unfinished: Vec<BackupId>,
}

/// What is listed, without reading it.
struct BackupIds {
    /// Sealed manifests.
    existing: Vec<BackupId>,
    /// Manifests that are not sealed.
    unfinished: Vec<BackupId>,
    /// Seals without a manifest: it is lost, or both were forgotten since. [`Repository::manifest`] tells which.
    lost: Vec<BackupId>,
}

impl Repository {
    /// Makes a repository in `store`, which must hold nothing of one, and opens it. `dirs` is what this
    /// user has on this machine.
    ///
    /// `stillframe.json` is put last: killed before, this leaves a key that belongs to nothing, and can be run again.
    pub async fn init(
        store: Arc<dyn ObjectStore>,
        options: &InitOptions,
        dirs: impl Into<LocalDirs>,
    ) -> Result<Self> {
        if !PACK_SIZES.contains(&options.pack_size) {
            return Err(Error::Invalid("the size of a pack must be between 4 KiB and 128 MiB".into()));
        }
        let io = ObjectIo::new(store);
        refuse_occupied(&io).await?;
        let config = Config {
            stillframe: "repository".into(),
            format: FORMAT,
            id: ObjectId::random(),
            pack_size: options.pack_size,
            created: options.clock.now(),
        };
        let ring = Arc::new(KeyRing::generate(config.id));
        let passphrase = match &options.encryption {
            Encryption::Passphrase(passphrase) => Some((passphrase.clone(), options.cost)),
            Encryption::None => None,
        };
        let encrypted = passphrase.is_some();
        let description = KeyDescription { label: options.label.clone(), created: options.clock.now() };
        let key = put_key(&io, &ring, passphrase, description).await?;
        failpoint("repo::key-stored");
        let json = serde_json::to_vec_pretty(&config)
            .map_err(|error| Error::Invalid(format!("stillframe.json cannot be written: {error}")))?;
        if !io.create_config(&Bytes::from(json)).await? {
            // Somebody made one at the same time; our key belongs to nothing.
            let _ = io.delete(ObjectName::new(Kind::Keys, key)).await;
            return Err(Error::Occupied { found: CONFIG_OBJECT.into(), whole: true });
        }
        failpoint("repo::config-stored");
        Self::assemble(config, io, ring, key, encrypted, &dirs.into()).await
    }

    /// Opens the repository in `store`. `dirs` is what this user has on this machine.
    pub async fn open(
        store: Arc<dyn ObjectStore>,
        unlock: &Unlock,
        dirs: impl Into<LocalDirs>,
    ) -> Result<Self> {
        let io = ObjectIo::new(store);
        let config = read_config(&io).await?;
        let (ring, key) = unlock_ring(&io, config.id, unlock).await?;
        let encrypted = matches!(unlock, Unlock::Passphrase(_));
        Self::assemble(config, io, Arc::new(ring), key, encrypted, &dirs.into()).await
    }

    async fn assemble(
        config: Config,
        io: ObjectIo,
        ring: Arc<KeyRing>,
        key: ObjectId,
        encrypted: bool,
        dirs: &LocalDirs,
    ) -> Result<Self> {
        let LocalDirs { cache, state } = dirs.of(&config.id.to_string());
        let cache_ring = Arc::clone(&ring);
        let cache = blocking(move || IndexCache::open(cache_ring, &cache)).await?;
        let distrust = Arc::new(Distrust::new(&state));
        let index = Arc::new(Index::new(Arc::clone(&ring), io.clone(), cache, distrust));
        let newest = Newest::new(&state);
        Ok(Self { inner: Arc::new(Inner { config, io, ring, key, encrypted, index, newest, state }) })
    }

    /// The same with another index.
    pub(crate) fn with_index(&self, index: Arc<Index>) -> Self {
        let Inner { config, io, ring, key, encrypted, state, .. } = &*self.inner;
        let inner = Inner {
            config: config.clone(),
            io: io.clone(),
            ring: Arc::clone(ring),
            key: *key,
            encrypted: *encrypted,
            index,
            newest: Newest::new(state),
            state: state.clone(),
        };
        Self { inner: Arc::new(inner) }
    }

    /// Its id, for life.
    pub fn id(&self) -> RepositoryId {
        self.inner.config.id
    }

    /// When a pack is full, in bytes.
    pub fn pack_size(&self) -> u64 {
        self.inner.config.pack_size
    }

    pub(crate) fn io(&self) -> &ObjectIo {
        &self.inner.io
    }

    pub(crate) fn ring(&self) -> &Arc<KeyRing> {
        &self.inner.ring
    }

    pub(crate) fn index(&self) -> &Arc<Index> {
        &self.inner.index
    }

    pub(crate) fn newest(&self) -> &Newest {
        &self.inner.newest
    }

    /// The key that opened it.
    pub(crate) fn own_key(&self) -> ObjectId {
        self.inner.key
    }

    /// Whether a passphrase protects it.
    pub(crate) fn is_encrypted(&self) -> bool {
        self.inner.encrypted
    }

    /// See [`LocalDirs::state`].
    pub(crate) fn state(&self) -> &Path {
        &self.inner.state
    }

    /// Whether every pack that was found damaged is noted, so that no later backup of this user relies on it.
    pub fn damage_is_noted(&self) -> bool {
        self.index().distrust().is_noted()
    }

    /// That this is still the repository that was opened, with the key that opened it: somebody may have removed it or made another in
    /// its place meanwhile, and what was put since would be lost with it.
    pub(crate) async fn check_identity(&self) -> Result<()> {
        let config = read_config(self.io()).await?;
        if config.id != self.id() {
            let why = "it is another repository's now: this one was replaced while it was written to";
            return Err(Error::damaged(&CONFIG_OBJECT, why));
        }
        let key = ObjectName::new(Kind::Keys, self.inner.key);
        if self.io().size(key).await?.is_some() || self.has_another_key().await? {
            return Ok(());
        }
        Err(Error::damaged(&key, "it opened the repository and is gone now, and there is no other one"))
    }

    /// What the repository is and how much is in it. Lists everything, reads nothing.
    pub async fn info(&self) -> Result<RepositoryInfo> {
        let Inner { config, io, ring, encrypted, .. } = &*self.inner;
        let BackupIds { existing, unfinished, .. } = self.list_backups().await?;
        let packs = io.list(Kind::Pack).await?;
        Ok(RepositoryInfo {
            id: config.id,
            format: config.format,
            pack_size: config.pack_size,
            created: config.created,
            encrypted: *encrypted,
            epochs: ring.epochs().collect(),
            keys: io.list(Kind::Keys).await?.len() as u64,
            backups: existing.len() as u64,
            unfinished: unfinished.len() as u64,
            packs: packs.len() as u64,
            pack_bytes: packs.iter().map(|pack| pack.size).sum(),
            index_segments: io.list(Kind::Index).await?.len() as u64,
            marks: io.list(Kind::Mark).await?.len() as u64,
        })
    }

    async fn list_backups(&self) -> Result<BackupIds> {
        // Seals before manifests: a manifest is put before its seal, so the manifest of a listed seal is not missed.
        let sealed = self.io().list(Kind::Sealed).await?;
        let manifests = self.io().list(Kind::Manifest).await?;
        let is_in =
            |list: &[Listed], id: &BackupId| list.binary_search_by_key(id, |listed| listed.id).is_ok();
        let seals = sealed.iter().map(|listed| listed.id);
        let lost = seals.filter(|id| !is_in(&manifests, id)).collect();
        let manifests = manifests.into_iter().map(|listed| listed.id);
        let (existing, unfinished) = manifests.partition(|id| is_in(&sealed, id));
        Ok(BackupIds { existing, unfinished, lost })
    }

    /// Backups, those whose manifest is lost among them, and manifests that are not sealed.
    pub(crate) async fn backup_ids(&self) -> Result<(Vec<BackupId>, Vec<BackupId>)> {
        let BackupIds { mut existing, unfinished, lost } = self.list_backups().await?;
        existing.extend(lost);
        Ok((existing, unfinished))
    }

    /// All backups. One that cannot be read does not hide the others.
    pub async fn backups(&self) -> Result<Backups> {
        let BackupIds { existing, unfinished, lost } = self.list_backups().await?;
        let mut backups = Backups { unfinished, ..Backups::default() };
        let mut read = futures::stream::iter(existing.into_iter().chain(lost))
            .map(|id| async move {
                match self.manifest(id).await {
                    // Forgotten since it was listed.
                    Err(Error::NotFound { .. }) => Ok(None),
                    Err(error)
                        if !error.is_unreadable() && !matches!(error, Error::PermissionDenied { .. }) =>
                    {
                        Err(error)
                    }
                    read => Ok(Some((id, read))),
                }
            })
            .buffer_unordered(CONCURRENCY);
        while let Some(read) = read.try_next().await? {
            match read {
                None => {}
                Some((_, Ok(manifest))) => backups.readable.push(manifest),
                Some((id, Err(error))) => backups.unreadable.push((id, error)),
            }
        }
        drop(read);
        backups.readable.sort_by_key(|manifest| (manifest.created, manifest.id));
        backups.unreadable.sort_by_key(|(id, _)| *id);
        if let Some(newest) = backups.readable.last() {
            self.newest().note(newest.created);
        }
        Ok(backups)
    }

    /// One backup's manifest. Its seal is checked, too: a manifest that nobody sealed is no backup.
    pub async fn manifest(&self, id: BackupId) -> Result<Manifest> {
        let get = async |kind| {
            let name = ObjectName::new(kind, id);
            match self.io().get(name).await {
                Err(error) if error.is_absent() => Err(Error::NotFound { name: id.to_string() }),
                result => result,
            }
        };
        let sealed = get(Kind::Sealed).await?;
        let bytes = match get(Kind::Manifest).await {
            // Forgetting takes the seal first: one that is still there has lost its manifest in another way.
            Err(Error::NotFound { .. })
                if self.io().size(ObjectName::new(Kind::Sealed, id)).await?.is_some() =>
            {
                let manifest = ObjectName::new(Kind::Manifest, id);
                return Err(Error::damaged(&manifest, "it is missing, and was sealed"));
            }
            result => result?,
        };
        let manifest = Manifest::decode(self.ring(), id, &bytes)?;
        let name = ObjectName::new(Kind::Sealed, id);
        let hash = open_object(self.ring(), name, &sealed)?;
        if bytes.last_chunk::<HASH_LEN>().map(<[u8; HASH_LEN]>::as_slice) != Some(&hash) {
            return Err(Error::damaged(&name, "it seals another manifest than the one that is there"));
        }
        Ok(manifest)
    }

    /// Which backup is meant: `latest`, an id, or else a name or the beginning of an id. What is one backup's name and how another's id
    /// begins is ambiguous.
    pub async fn resolve(&self, text: &str) -> Result<BackupId> {
        if text == LATEST {
            let latest = self.latest(|_| true).await?.backup;
            return Ok(latest.ok_or_else(|| Error::NotFound { name: text.to_owned() })?.id);
        }
        let BackupIds { existing, lost, .. } = self.list_backups().await?;
        if let Ok(id) = text.parse::<BackupId>()
            && (existing.contains(&id) || lost.contains(&id))
        {
            return Ok(id);
        }
        let Backups { readable, unreadable, .. } = self.backups().await?;
        let is_prefix = |id: &BackupId| !text.is_empty() && id.to_string().starts_with(text);
        let named = readable.iter().filter(|manifest| manifest.draft.name.as_deref() == Some(text));
        let mut ids: Vec<BackupId> = named.map(|manifest| manifest.id).collect();
        let is_name = !ids.is_empty();
        ids.extend(existing.into_iter().chain(lost).filter(is_prefix));
        ids.sort_unstable();
        ids.dedup();
        // What cannot be read may have the same name, and be the newer one.
        if is_name || ids.is_empty() {
            refuse_unreadable(unreadable, &readable, "the backup of this name")?;
        }
        if let [id] = ids.as_slice() {
            return Ok(*id);
        }
        let place = |id: &BackupId| readable.iter().rposition(|manifest| manifest.id == *id);
        let made = |id: &BackupId| Some(readable.get(place(id)?)?.created);
        ids.sort_by_key(|id| std::cmp::Reverse(place(id)));
        let backups: Vec<_> = ids.iter().map(|id| (*id, made(id))).collect();
        if backups.is_empty() {
            Err(Error::NotFound { name: text.to_owned() })
        } else {
            Err(Error::Ambiguous { name: text.to_owned(), backups })
        }
    }

    /// Manifests that are not sealed: of writes that run or were killed, or of backups whose seals were lost. `None`: it cannot be read.
    pub async fn unsealed(&self) -> Result<Vec<(BackupId, Option<Manifest>)>> {
        let mut unsealed = Vec::new();
        for id in self.list_backups().await?.unfinished {
            let bytes = self.io().get(ObjectName::new(Kind::Manifest, id)).await;
            let read = set_apart(bytes.and_then(|bytes| Manifest::decode(self.ring(), id, &bytes)))?;
            unsealed.extend(read.map(|manifest| (id, manifest.ok())));
        }
        Ok(unsealed)
    }

    /// The newest backup of those that are wanted. An error while any cannot be read, since that may be it.
    pub async fn latest(&self, wanted: impl Fn(&Manifest) -> bool) -> Result<Latest> {
        let Backups { readable, unreadable, unfinished } = self.backups().await?;
        refuse_unreadable(unreadable, &readable, "the latest backup")?;
        Ok(Latest { backup: readable.into_iter().rev().find(wanted), unfinished })
    }
}

/// The newest backup, as far as the repository shows.
#[derive(Debug, Clone)]
pub struct Latest {
    /// Its manifest. `None`: there is none.
    pub backup: Option<Manifest>,
    /// Manifests without a seal, of writes that run or were killed, or of backups whose seals were lost: one of those may be newer.
    pub unfinished: Vec<BackupId>,
}

/// The text that means the newest backup.
const LATEST: &str = "latest";

/// Fails for the first backup that cannot be read, because it may be the one that is meant.
fn refuse_unreadable(unreadable: Vec<(BackupId, Error)>, readable: &[Manifest], meant: &str) -> Result<()> {
    let Some((id, error)) = unreadable.into_iter().next() else { return Ok(()) };
    let (object, why) = match error {
        Error::Damaged { object, why } => (object, why),
        // To whoever may read it, it may be sound.
        error @ Error::PermissionDenied { .. } => return Err(error),
        error => (ObjectName::new(Kind::Manifest, id).to_string(), error.to_string()),
    };
    let newest = readable.last().map_or_else(String::new, |newest| {
        let made = newest.created.strftime("%Y-%m-%d %H:%M:%SZ");
        format!("; the newest that can be read is {} of {made}", newest.id)
    });
    let why =
        format!("{why}; it may be {meant}: name one by its id, `stillframe snapshots` lists all{newest}");
    Err(Error::Damaged { object, why })
}

pub(crate) async fn read_config(io: &ObjectIo) -> Result<Config> {
    #[derive(Deserialize)]
    struct Head {
        stillframe: String,
        format: u64,
    }
    let damaged = |why: String| Error::damaged(&CONFIG_OBJECT, why);
    let bytes = match io.get_config().await {
        Err(error) if error.is_absent() => {
            return Err(match any_content(io).await? {
                None => Error::NotARepository,
                Some(found) => {
                    damaged(format!("it is missing, and {found} is there: put back this repository's own"))
                }
            });
        }
        result => result?,
    };
    let head: Head = serde_json::from_slice(&bytes).map_err(|error| damaged(error.to_string()))?;
    if head.stillframe != "repository" {
        return Err(damaged("it does not describe a repository".into()));
    }
    if head.format > FORMAT {
        let object = CONFIG_OBJECT.into();
        return Err(Error::NewerFormat { object, found: head.format, supported: FORMAT });
    }
    let config: Config = serde_json::from_slice(&bytes).map_err(|error| damaged(error.to_string()))?;
    if !PACK_SIZES.contains(&config.pack_size) {
        return Err(damaged("its pack_size is out of bounds".into()));
    }
    Ok(config)
}

/// A key alone is what a making that was cut short leaves; anything else was a repository once.
async fn refuse_occupied(io: &ObjectIo) -> Result<()> {
    match io.get_config().await {
        Err(error) if error.is_absent() => {}
        Ok(_) | Err(Error::Damaged { .. }) => {
            return Err(Error::Occupied { found: CONFIG_OBJECT.into(), whole: true });
        }
        Err(error) => return Err(error),
    }
    match any_content(io).await? {
        None => Ok(()),
        Some(found) => Err(Error::Occupied { found, whole: false }),
    }
}

/// An object that only a repository that was in use has.
async fn any_content(io: &ObjectIo) -> Result<Option<String>> {
    for kind in [Kind::Manifest, Kind::Sealed, Kind::Pack, Kind::Index, Kind::Mark] {
        if let Some(found) = io.any(kind).await? {
            return Ok(Some(found));
        }
    }
    Ok(None)
}
