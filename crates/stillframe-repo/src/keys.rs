//! The keys of a repository: found, added, removed, and replaced by one of a new epoch.

use std::sync::Arc;

use jiff::Timestamp;
use serde::Serialize;
use stillframe_storage::{Clock, failpoint};

use crate::error::{Error, Result, set_apart};
use crate::index::blocking;
use crate::key_object::{KeyDescription, KeyObject, Passphrase, PassphraseCost};
use crate::key_ring::KeyRing;
use crate::layout::{CONFIG_OBJECT, Kind, ObjectName};
use crate::object_io::ObjectIo;
use crate::repository::Unlock;
use crate::write::is_plain;
use crate::{ObjectId, Repository, RepositoryId};

/// Trying a passphrase on more keys than that is not what anybody means.
const MAX_KEYS: usize = 128;

/// One key of a repository.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct KeyInfo {
    /// Its id.
    pub id: ObjectId,
    /// What it was called.
    pub label: String,
    /// When it was made, by the maker's clock.
    pub created: Timestamp,
    /// Whether a passphrase protects it.
    pub encrypted: bool,
    /// Whether the repository was opened with it.
    pub current: bool,
}

/// How to rotate.
#[derive(Debug, Clone, Copy)]
pub struct RotateOptions<'a> {
    /// How hard it is to try the passphrase.
    pub cost: PassphraseCost,
    /// What the new key is called; as the one before, if nothing is said.
    pub label: Option<&'a str>,
    /// Whether other passphrases may lose their keys.
    pub remove_others: bool,
    /// For the time of making.
    pub clock: &'a dyn Clock,
}

/// What a rotation did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeyRotation {
    /// The new key.
    pub key: ObjectId,
    /// The epoch of what is written from now on.
    pub epoch: u32,
    /// Keys that are gone, the one that opened the repository among them.
    pub removed: u64,
}

/// What lies under the name of a key: one of any repository, or an error that is damage.
type KeyRead = (ObjectName, Result<KeyObject>);

/// Every key that is there. One that is gone by the time it is read is passed over.
async fn read_keys(io: &ObjectIo) -> Result<Vec<KeyRead>> {
    let listed = io.list(Kind::Keys).await?;
    if listed.len() > MAX_KEYS {
        return Err(Error::damaged(&"keys", format!("there are more than {MAX_KEYS} keys")));
    }
    let mut keys = Vec::new();
    for listed in listed {
        let name = ObjectName::new(Kind::Keys, listed.id);
        let read = io.get(name).await.and_then(|bytes| KeyObject::decode(name, &bytes));
        keys.extend(set_apart(read)?.map(|read| (name, read)));
    }
    Ok(keys)
}

/// What a new key says of itself.
fn description(label: &str, clock: &dyn Clock) -> Result<KeyDescription> {
    if !label.is_empty() && !is_plain(label) {
        let why = "at most 256 bytes without control characters";
        return Err(Error::Invalid(format!("{label:?} cannot be a key's label: {why}")));
    }
    Ok(KeyDescription { label: label.into(), created: clock.now() })
}

impl Repository {
    /// All keys. One that is damaged is an error of its own beside the others.
    pub async fn keys(&self) -> Result<Vec<Result<KeyInfo>>> {
        Ok(self.own_keys().await?.into_iter().map(|(_, read)| self.describe_key(&read?)).collect())
    }

    /// Without those of other repositories, which a making that was cut short left.
    async fn own_keys(&self) -> Result<Vec<KeyRead>> {
        let mut keys = read_keys(self.io()).await?;
        keys.retain(|(_, read)| read.as_ref().map_or(true, |key| key.repository() == self.id()));
        Ok(keys)
    }

    /// Keys that are of another repository.
    pub(crate) async fn foreign_keys(&self) -> Result<Vec<ObjectName>> {
        let is_foreign =
            |read: &Result<KeyObject>| read.as_ref().is_ok_and(|key| key.repository() != self.id());
        let keys = read_keys(self.io()).await?.into_iter();
        Ok(keys.filter(|(_, read)| is_foreign(read)).map(|(name, _)| name).collect())
    }

    /// Keys that cannot be what they should be. Of one that is wrapped for another passphrase only so much can be told.
    pub(crate) async fn damaged_keys(&self) -> Result<Vec<(ObjectName, Error)>> {
        let mut damaged = Vec::new();
        for (name, read) in self.own_keys().await? {
            match read {
                Err(error) => damaged.push((name, error)),
                Ok(key) if key.cost.is_some() != self.is_encrypted() => {
                    let why = "it is not protected as the repository is: somebody put it there, and no reader uses it; `stillframe key remove` \
                               removes it";
                    damaged.push((name, Error::damaged(&name, why)));
                }
                Ok(key) if !self.ring().knows(key.epoch()) => {}
                Ok(key) => damaged.extend(key.describe(self.ring()).err().map(|error| (name, error))),
            }
        }
        Ok(damaged)
    }

    fn describe_key(&self, object: &KeyObject) -> Result<KeyInfo> {
        let KeyDescription { label, created } = object.describe(self.ring())?;
        let (id, encrypted) = (object.id(), object.cost.is_some());
        Ok(KeyInfo { id, label, created, encrypted, current: id == self.own_key() })
    }

    /// Lets a further passphrase open the repository.
    pub async fn add_key(
        &self,
        passphrase: Passphrase,
        cost: PassphraseCost,
        label: &str,
        clock: &dyn Clock,
    ) -> Result<ObjectId> {
        if !self.is_encrypted() {
            let why = "the repository is not encrypted: a passphrase would protect nothing";
            return Err(Error::Invalid(why.into()));
        }
        let description = description(label, clock)?;
        self.refuse_merged()?;
        put_key(self.io(), self.ring(), Some((passphrase, cost)), description).await
    }

    /// Takes a key away: its passphrase opens the repository no more. Who has copied the key ring can read all that is written until
    /// [`Self::rotate_key`]. The key that opened this repository, and so the last one, is refused.
    pub async fn remove_key(&self, id: ObjectId) -> Result<()> {
        let name = ObjectName::new(Kind::Keys, id);
        if id == self.own_key() {
            let why = "it is the key of the passphrase that was given: open the repository with another passphrase to remove it";
            return Err(Error::Invalid(format!("{name}: {why}")));
        }
        self.refuse_merged()?;
        let bytes = match self.io().get(name).await {
            Err(error) if error.is_absent() => return Err(Error::Invalid(format!("there is no {name}"))),
            bytes => bytes?,
        };
        if let Ok(object) = KeyObject::decode(name, &bytes)
            && !self.ring().knows(object.epoch())
        {
            return Err(Error::Invalid(rotated_elsewhere(name)));
        }
        self.io().delete(name).await?;
        failpoint("key::removed");
        // Somebody may remove ours at the same time: of the two at least one puts back what it took.
        if self.io().size(ObjectName::new(Kind::Keys, self.own_key())).await?.is_some()
            || self.has_another_key().await?
        {
            return Ok(());
        }
        self.io().put(name, bytes.into()).await?;
        let why =
            format!("{name} is the last key now, since somebody removed the others meanwhile: it stays");
        Err(Error::GivenUp { why })
    }

    /// Begins a new epoch, whose key nobody knows who has copied the ring before, and wraps the ring for `passphrase` alone. What was
    /// written before stays readable with it. The other keys do not know the new epoch and are removed, if `options` allow that.
    pub async fn rotate_key(
        &self,
        passphrase: Passphrase,
        options: &RotateOptions<'_>,
    ) -> Result<KeyRotation> {
        if !self.is_encrypted() {
            return Err(Error::Invalid("the repository is not encrypted: it has no keys to rotate".into()));
        }
        let mut before = self.own_keys().await?;
        // What only a newer program reads may know a newer epoch: it is not taken for damaged, and so not removed.
        let is_newer = |(_, read): &KeyRead| matches!(read, Err(Error::NewerFormat { .. }));
        if let Some(newer) = before.iter().position(is_newer) {
            before.swap_remove(newer).1?;
        }
        let mut own = before.iter().filter(|(name, _)| name.id == self.own_key());
        let own = own.find_map(|(_, read)| read.as_ref().ok()?.describe(self.ring()).ok());
        let label =
            options.label.map_or_else(|| own.map_or_else(String::new, |own| own.label), str::to_owned);
        let description = description(&label, options.clock)?;
        if !options.remove_others {
            self.refuse_to_lock_out(&before)?;
        }
        let ring = Arc::new(self.ring().with_new_epoch()?);
        let key = put_key(self.io(), &ring, Some((passphrase, options.cost)), description).await?;
        failpoint("key::rotated");
        let mut removed = 0;
        // What came since, and what knows an epoch that is not known here, is of another rotation: it stays, and so nothing is lost.
        for (name, read) in before {
            if read.is_ok_and(|object| !ring.knows(object.epoch())) {
                return Err(Error::GivenUp { why: rotated_elsewhere(name) });
            }
            self.io().delete(name).await?;
            failpoint("key::old-removed");
            removed += 1;
        }
        Ok(KeyRotation { key, epoch: ring.newest_epoch(), removed })
    }

    fn refuse_to_lock_out(&self, keys: &[KeyRead]) -> Result<()> {
        let others: Vec<String> = keys
            .iter()
            .filter(|(name, _)| name.id != self.own_key())
            .map(|(name, read)| match read.as_ref().map(|object| object.describe(self.ring())) {
                Ok(Ok(described)) if !described.label.is_empty() => {
                    format!("{} ({})", name.id, described.label)
                }
                Ok(_) => name.id.to_string(),
                Err(error) => error.to_string(),
            })
            .collect();
        let keys = match others.len() {
            0 => return Ok(()),
            1 => "1 other key".to_owned(),
            several => format!("{several} other keys"),
        };
        Err(Error::Invalid(format!(
            "{keys} would open what was written until now and nothing newer: {}; --remove-others removes them, and `stillframe key add` adds \
             their passphrases again",
            others.join(", ")
        )))
    }

    /// While it takes several keys to know all epochs, each of them may be the only one that knows one: a key that was added now would look
    /// as if it made the others superfluous.
    fn refuse_merged(&self) -> Result<()> {
        if !self.ring().is_merged() {
            return Ok(());
        }
        let why = "two rotations at the same time left keys that read everything only together; `stillframe key rotate` makes one of them, then \
                   run again";
        Err(Error::Invalid(why.into()))
    }

    /// Whether a key of this repository is there beside the one that opened it. One of a newer epoch, which cannot be described with this
    /// ring, is one all the same.
    pub(crate) async fn has_another_key(&self) -> Result<bool> {
        let is_another = |(name, read): &KeyRead| {
            let fits = |object: &KeyObject| {
                let is_readable = !self.ring().knows(object.epoch()) || object.describe(self.ring()).is_ok();
                object.cost.is_some() == self.is_encrypted() && is_readable
            };
            name.id != self.own_key() && read.as_ref().is_ok_and(fits)
        };
        Ok(self.own_keys().await?.iter().any(is_another))
    }
}

fn rotated_elsewhere(name: ObjectName) -> String {
    format!("{name} is of a rotation that this run knows nothing of: run again")
}

/// Wraps the ring for one passphrase, or leaves it bare.
pub(crate) async fn put_key(
    io: &ObjectIo,
    ring: &Arc<KeyRing>,
    passphrase: Option<(Passphrase, PassphraseCost)>,
    description: KeyDescription,
) -> Result<ObjectId> {
    let name = ObjectName::new(Kind::Keys, ObjectId::random());
    let ring = Arc::clone(ring);
    let payload = blocking(move || {
        let wrapping = passphrase.as_ref().map(|(passphrase, cost)| (passphrase, *cost));
        KeyObject::encode(&ring, name, wrapping, &description)
    });
    io.put(name, payload.await?).await?;
    Ok(name.id)
}

/// Finds the key that opens the repository. Keys of other repositories are what a cut-short making left.
pub(crate) async fn unlock_ring(
    io: &ObjectIo,
    repository: RepositoryId,
    unlock: &Unlock,
) -> Result<(KeyRing, ObjectId)> {
    let (mut wrapped, mut bare, mut damage, mut others) = (Vec::new(), Vec::new(), None, 0);
    for (_, read) in read_keys(io).await? {
        match read {
            Ok(object) if object.repository() != repository => others += 1,
            Ok(object) if object.cost.is_some() => wrapped.push(object),
            Ok(object) => bare.push(object),
            Err(error) => damage = Some(error),
        }
    }
    if wrapped.is_empty() && bare.is_empty() {
        let lost = || match others {
            0 => Error::damaged(&"keys", "no key of this repository is there"),
            _ => Error::damaged(
                &CONFIG_OBJECT,
                "it names another repository than the keys that are there: it is damaged, or another's",
            ),
        };
        return Err(damage.unwrap_or_else(lost));
    }
    match unlock {
        // A bare key beside wrapped ones was slipped under them: whoever may write to the store knows it.
        Unlock::None if !wrapped.is_empty() => Err(Error::PassphraseNeeded),
        Unlock::None => {
            for object in &bare {
                match object.open_bare() {
                    Ok(ring) => return Ok((ring, object.id())),
                    Err(error) => damage = Some(error),
                }
            }
            Err(damage.unwrap_or(Error::PassphraseNeeded))
        }
        Unlock::Passphrase(_) if wrapped.is_empty() => Err(damage.unwrap_or(Error::NotEncrypted)),
        Unlock::Passphrase(passphrase) => {
            let keys = wrapped.len();
            // Those of the newest epochs know the older ones, too.
            wrapped.sort_by_key(|object| std::cmp::Reverse(object.epoch()));
            let mut opened: Option<(KeyRing, ObjectId)> = None;
            for object in wrapped {
                // Two rotations at the same time made an epoch each: only together they read everything.
                if opened.as_ref().is_some_and(|(ring, _)| ring.knows(object.epoch())) {
                    continue;
                }
                let passphrase = passphrase.clone();
                let tried = move || Ok(object.open_wrapped(&passphrase)?.map(|ring| (ring, object.id())));
                match blocking(tried).await {
                    Ok(Some((ring, id))) => {
                        opened = Some(match opened {
                            None => (ring, id),
                            Some((first, id)) => (first.merged(&ring).unwrap_or(first), id),
                        });
                    }
                    Ok(None) => {}
                    Err(error) => damage = Some(error),
                }
            }
            opened.ok_or_else(|| damage.unwrap_or(Error::WrongPassphrase { keys }))
        }
    }
}
