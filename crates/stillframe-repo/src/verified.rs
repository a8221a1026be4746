//! `verified/<id>`: how deep a backup was looked at last, when, and what came out. A courtesy: nothing relies on it but what people are told,
//! and which backup counts as the last good one.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::error::Result;
use crate::layout::{Kind, ObjectName};
use crate::{BackupId, Repository, json_object};

/// From the shallowest to the deepest; each does what those before it do.
const LEVELS: [&str; 4] = ["exists", "hash", "decrypt", "open"];

/// What verifications of one backup found: for each level the last one, unless a deeper one came later.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verified {
    /// By level, as it is called on the command line.
    pub levels: BTreeMap<String, Verification>,
}

/// The outcome of one verification.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verification {
    /// When it ended, by the clock of whoever did it.
    pub at: Timestamp,
    /// On which machine.
    #[serde(default)]
    pub host: String,
    /// Nothing was wrong.
    pub sound: bool,
    /// All of the backup can be restored, whatever else was wrong.
    pub whole: bool,
}

impl Verified {
    /// What is to be said of it, with its level: damage that no look so deep took back, else the newest.
    pub fn verdict(&self) -> Option<(&str, &Verification)> {
        let weight = |found: &Verification| (!found.whole, !found.sound, found.at);
        let gravest = self.levels.iter().max_by_key(|(_, found)| weight(found))?;
        Some((gravest.0.as_str(), gravest.1))
    }

    /// Whether something of it was lost when somebody looked so deep the last time.
    pub fn is_damaged(&self) -> bool {
        self.levels.values().any(|verification| !verification.whole)
    }

    fn add(&mut self, level: &str, verification: Verification) {
        let depth = |level: &str| LEVELS.iter().position(|known| *known == level);
        self.levels.retain(|before, _| depth(before).is_none_or(|before| Some(before) > depth(level)));
        self.levels.insert(level.to_owned(), verification);
    }
}

impl Repository {
    /// Records the outcome of a verification at a level. Of two that end at the same time one may be lost.
    pub async fn record_verification(
        &self,
        id: BackupId,
        level: &str,
        verification: Verification,
    ) -> Result<()> {
        let mut verified = self.verified(id).await?.unwrap_or_default();
        verified.add(level, verification);
        let name = ObjectName::new(Kind::Verified, id);
        self.io().put(name, json_object::encode(self.ring(), name, &verified)?).await?;
        // Forgotten meanwhile: nobody wants to know any more.
        if self.io().size(ObjectName::new(Kind::Manifest, id)).await?.is_none() {
            self.io().delete(name).await?;
        }
        Ok(())
    }

    /// What is recorded of a backup. `None`: nothing that can be read.
    pub async fn verified(&self, id: BackupId) -> Result<Option<Verified>> {
        let name = ObjectName::new(Kind::Verified, id);
        Ok(json_object::read(self.io(), self.ring(), name).await?.and_then(Result::ok))
    }

    /// What is recorded of all backups.
    pub async fn all_verified(&self) -> Result<BTreeMap<BackupId, Verified>> {
        let all = json_object::read_all(self.io(), self.ring(), Kind::Verified).await?;
        Ok(all.into_iter().filter_map(|(id, verified)| Some((id, verified.ok()?))).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_deep_look_takes_back_what_a_shallow_one_said_and_not_the_other_way_round() {
        let verification = |second, whole| Verification {
            at: Timestamp::from_second(second).unwrap(),
            host: String::new(),
            sound: whole,
            whole,
        };
        let mut verified = Verified::default();
        assert!(!verified.is_damaged() && verified.verdict().is_none());
        verified.add("decrypt", verification(1, false));
        verified.add("exists", verification(2, true));
        assert!(verified.is_damaged(), "who only looked whether it is there has not seen it");
        assert_eq!(verified.verdict().unwrap().0, "decrypt", "what people are told is the damage");
        verified.add("exists", verification(2, false));
        verified.add("exists", verification(3, true));
        assert_eq!(verified.verdict().unwrap().0, "decrypt");
        verified.add("open", verification(3, true));
        assert!(!verified.is_damaged());
        assert_eq!(verified.verdict().unwrap().0, "open");
        assert_eq!(verified.levels.len(), 1);
        verified.add("hash", verification(4, false));
        assert!(verified.is_damaged());
        verified.add("invented-later", verification(5, true));
        verified.add("open", verification(6, true));
        assert!(!verified.is_damaged());
        assert_eq!(verified.levels.keys().collect::<Vec<_>>(), ["invented-later", "open"]);
    }
}
