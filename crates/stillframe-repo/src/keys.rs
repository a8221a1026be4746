//! The keys of a repository: found, added, removed, and replaced by one of a new epoch.

use std::sync::Arc;

use jiff::Timestamp;
use serde::Serialize;
use stillframe_storage::{Clock, failpoint};

use crate::error::{Error, Result};
use crate::index::blocking;
use crate::key_object::{KeyDescription, KeyObject, Passphrase, PassphraseCost};
use crate::key_ring::KeyRing;
use crate::layout::{CONFIG_OBJECT, Kind, ObjectName};
use crate::object_io::{Listed, ObjectIo};
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
    /// What the new key is called.
    pub label: &'a str,
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

impl Repository {
    /// All keys. One that is damaged is an error of its own beside the others.
    pub async fn keys(&self) -> Result<Vec<Result<KeyInfo>>> {
        let mut keys = Vec::new();
        for listed in self.io().list(Kind::Keys).await? {
            let name = ObjectName::new(Kind::Keys, listed.id);
            let object = match self.io().get(name).await {
                Ok(bytes) => KeyObject::decode(name, &bytes),
                Err(error @ Error::Damaged { .. }) => Err(error),
                Err(error) => return Err(error),
            };
            match object {
                Ok(object) if object.repository() != self.id() => {}
                Ok(object) => keys.push(self.describe_key(&object)),
                Err(error) => keys.push(Err(error)),
            }
        }
        Ok(keys)
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
        if !label.is_empty() && !is_plain(label) {
            let why = "at most 256 bytes without control characters";
            return Err(Error::Invalid(format!("{label:?} cannot be a key's label: {why}")));
        }
        let description = KeyDescription { label: label.into(), created: clock.now() };
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
        let before = self.io().list(Kind::Keys).await?;
        let others = before.iter().filter(|key| key.id != self.own_key()).count();
        if others > 0 && !options.remove_others {
            let keys = if others == 1 { "1 other key".to_owned() } else { format!("{others} other keys") };
            return Err(Error::Invalid(format!(
                "{keys} of the repository would open what was written until now and nothing newer: let them be removed with it, and add their \
                 passphrases again"
            )));
        }
        let (ring, repository) = (Arc::clone(self.ring()), self.id());
        let ring = Arc::new(blocking(move || ring.with_new_epoch(repository)).await?);
        let description = KeyDescription { label: options.label.to_owned(), created: options.clock.now() };
        let key = put_key(self.io(), &ring, Some((passphrase, options.cost)), description).await?;
        failpoint("key::rotated");
        let mut removed = 0;
        // What came since, and what knows an epoch that is not known here, is of another rotation: it stays, and so nothing is lost.
        for listed in before {
            let name = ObjectName::new(Kind::Keys, listed.id);
            let object = match self.io().get(name).await {
                Ok(bytes) => KeyObject::decode(name, &bytes),
                Err(error) if error.is_absent() => continue,
                Err(error) => Err(error),
            };
            match object {
                Ok(object) if object.repository() != repository => {}
                Ok(object) if !ring.knows(object.epoch()) => {
                    return Err(Error::GivenUp { why: rotated_elsewhere(name) });
                }
                Ok(_) | Err(Error::Damaged { .. }) => {
                    self.io().delete(name).await?;
                    failpoint("key::old-removed");
                    removed += 1;
                }
                Err(error) => return Err(error),
            }
        }
        Ok(KeyRotation { key, epoch: ring.newest_epoch(), removed })
    }

    /// Whether a key of this repository is there beside the one that opened it.
    pub(crate) async fn has_another_key(&self) -> Result<bool> {
        let keys = self.keys().await?;
        let is_other = |key: &Result<KeyInfo>| {
            key.as_ref().is_ok_and(|key| !key.current && key.encrypted == self.is_encrypted())
        };
        // One of a newer epoch cannot be described with this ring, and is one all the same.
        Ok(keys.iter().any(is_other) || self.has_key_of_a_newer_epoch().await?)
    }

    async fn has_key_of_a_newer_epoch(&self) -> Result<bool> {
        for listed in self.io().list(Kind::Keys).await? {
            let name = ObjectName::new(Kind::Keys, listed.id);
            let object = match self.io().get(name).await {
                Ok(bytes) => KeyObject::decode(name, &bytes),
                Err(error) if error.is_absent() => continue,
                Err(error) => return Err(error),
            };
            let is_newer = |object: &KeyObject| {
                object.repository() == self.id()
                    && object.cost.is_some() == self.is_encrypted()
                    && !self.ring().knows(object.epoch())
            };
            if object.is_ok_and(|object| is_newer(&object)) {
                return Ok(true);
            }
        }
        Ok(false)
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
    let listed: Vec<Listed> = io.list(Kind::Keys).await?;
    if listed.len() > MAX_KEYS {
        return Err(Error::damaged(&"keys", format!("there are more than {MAX_KEYS} keys")));
    }
    let (mut wrapped, mut bare, mut damage, mut others) = (Vec::new(), Vec::new(), None, 0);
    for listed in listed {
        let name = ObjectName::new(Kind::Keys, listed.id);
        let object = match io.get(name).await {
            Ok(bytes) => KeyObject::decode(name, &bytes),
            Err(error) => Err(error),
        };
        match object {
            Ok(object) if object.repository() != repository => others += 1,
            Ok(object) if object.cost.is_some() => wrapped.push(object),
            Ok(object) => bare.push(object),
            Err(error @ (Error::Damaged { .. } | Error::NewerFormat { .. })) => damage = Some(error),
            Err(error) if error.is_absent() => {}
            Err(error) => return Err(error),
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
