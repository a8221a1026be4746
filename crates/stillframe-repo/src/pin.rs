//! `pins/<id>`: this backup is not to be forgotten.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use stillframe_storage::failpoint;

use crate::error::{Error, Result};
use crate::layout::{Kind, ObjectName};
use crate::write::is_plain;
use crate::{BackupId, Repository, json_object};

/// Why a backup is not to be forgotten.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pin {
    /// What people said of it; may be empty, else at most 256 bytes on one line.
    #[serde(default)]
    pub why: String,
    /// When, by the clock of whoever did it.
    pub since: Timestamp,
    /// On which machine.
    #[serde(default)]
    pub host: String,
}

impl Pin {
    /// In words, also of a pin that cannot be read.
    pub fn words(pin: Option<&Self>) -> String {
        match pin {
            Some(pin) if !pin.why.is_empty() => format!("pinned: {}", pin.why),
            _ => "pinned".to_owned(),
        }
    }
}

impl Repository {
    /// Protects a backup from [`Repository::forget`] until [`Repository::unpin`]. One that is pinned already gets the new words.
    ///
    /// Puts first and looks then, as all in `docs/format.md`: of a pinning and a forgetting at the same time at least one gives way. Where both do, the
    /// pin stays: it may be somebody else's, who was told that it is there.
    pub async fn pin(&self, id: BackupId, pin: &Pin) -> Result<()> {
        if !pin.why.is_empty() && !is_plain(&pin.why) {
            let why = "at most 256 bytes without control characters";
            return Err(Error::Invalid(format!("{:?} cannot be said of a pin: {why}", pin.why)));
        }
        let name = ObjectName::new(Kind::Pin, id);
        if !self.is_sealed(id).await? {
            return Err(Error::NotFound { name: id.to_string() });
        }
        self.io().put(name, json_object::encode(self.ring(), name, pin)?).await?;
        failpoint("pin::stored");
        if self.is_sealed(id).await? {
            return Ok(());
        }
        if self.io().size(ObjectName::new(Kind::Manifest, id)).await?.is_some() {
            let why = format!("backup {id} was being forgotten at the same moment");
            return Err(Error::GivenUp { why });
        }
        self.io().delete(name).await?;
        Err(Error::NotFound { name: id.to_string() })
    }

    /// Takes the protection away. `false`: there was none.
    pub async fn unpin(&self, id: BackupId) -> Result<bool> {
        let was_pinned = self.is_pinned(id).await?;
        self.io().delete(ObjectName::new(Kind::Pin, id)).await?;
        Ok(was_pinned)
    }

    /// The backups that are pinned, with what was said of it. A pin that cannot be read is one all the same.
    pub async fn pins(&self) -> Result<BTreeMap<BackupId, Option<Pin>>> {
        let pins = json_object::read_all(self.io(), self.ring(), Kind::Pin).await?;
        Ok(pins.into_iter().map(|(id, pin)| (id, pin.ok())).collect())
    }

    pub(crate) async fn is_pinned(&self, id: BackupId) -> Result<bool> {
        Ok(self.io().size(ObjectName::new(Kind::Pin, id)).await?.is_some())
    }
}
