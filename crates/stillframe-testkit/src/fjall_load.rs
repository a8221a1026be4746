//! What the fjall writer writes: every row as a function of numbers, so that a checker can make each again.

use serde::{Deserialize, Serialize};

use crate::Content;
use crate::splitmix::mix_all;

/// The key of the row, in each keyspace, that holds the number of the newest batch.
pub(crate) const COUNTER: &[u8] = b"n";
/// Keeps the contents of the churning thread apart from those of the batches.
const CHURN: u64 = 0x6368_7572_6e00;
/// The keyspace that the churning thread writes along with the ones that come and go.
pub(crate) const PARTNER: &str = "partner";

/// A load on an fjall database, and at the same time the description of every row that it leaves.
///
/// Batch n (from 1) writes, atomically over all keyspaces, `rows` rows whose keys were never used before, and the counter n; with
/// [`Self::remove_after`] it also removes one row of an older batch. Keys are never written twice: with a ring of slots each
/// journal would hold them all, and replaying it would repair whatever hole a capture tore.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FjallLoad {
    /// Chooses keys, lengths and contents.
    pub seed: u64,
    /// Keyspaces `k0`, `k1`, … that each batch writes.
    pub keyspaces: u32,
    /// New rows per batch and keyspace.
    pub rows: u32,
    /// Length of the values, from and to, in bytes; at least 1.
    pub value_bytes: (u32, u32),
    /// The part of a value that cannot be compressed, 0 to 1.
    pub noise: f64,
    /// Every so many batches, the first row is a large one.
    pub large_every: Option<u64>,
    /// How large, in bytes: above 4096 the journal compresses it.
    pub large_bytes: u32,
    /// Whether every other keyspace keeps values of 1 KiB and more in blob files.
    pub separate_values: bool,
    /// The batch n removes the first row of the batch so many before it.
    pub remove_after: Option<u64>,
    /// A second thread that makes and deletes keyspaces meanwhile.
    pub churn: Option<Churn>,
    /// Size at which a memtable is flushed, in bytes.
    pub memtable_bytes: u64,
    /// At most so many batches in a second.
    pub batches_per_second: Option<u32>,
    /// Leaves acknowledged batches in the process (`manual_journal_persist`): a copy from outside must then be found to have
    /// lost some. A control for the oracle, not a load.
    pub manual_persist: bool,
}

/// Keyspaces that come and go: `tmp0`, `tmp1`, … one after the other. The batch b of keyspace i writes one row into it and one into
/// the keyspace `partner`, atomically; as a running number that batch is i × batches + b + 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Churn {
    /// Batches per keyspace.
    pub batches: u64,
    /// How many keyspaces live at most, besides one being made; older ones are deleted.
    pub keep: u64,
    /// Pause after each keyspace, in milliseconds.
    pub pause_ms: u64,
}

impl Default for Churn {
    fn default() -> Self {
        Self { batches: 20, keep: 5, pause_ms: 10 }
    }
}

impl Default for FjallLoad {
    fn default() -> Self {
        Self {
            seed: 1,
            keyspaces: 4,
            rows: 4,
            value_bytes: (20, 200),
            noise: 0.5,
            large_every: Some(50),
            large_bytes: 20_000,
            separate_values: false,
            remove_after: Some(100),
            churn: None,
            memtable_bytes: 1 << 20,
            batches_per_second: None,
            manual_persist: false,
        }
    }
}

/// Where a row comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Origin {
    pub(crate) batch: u64,
    pub(crate) row: u64,
}

impl FjallLoad {
    /// The hash of what batch `n` writes, as the writer puts it into its ledger. A checker with another load than the
    /// writer's would find another one.
    pub fn batch_hash(&self, n: u64) -> u64 {
        let keyspaces = u64::from(self.keyspaces);
        let rows =
            (0..keyspaces).flat_map(|keyspace| (0..u64::from(self.rows)).map(move |row| (keyspace, row)));
        let parts: Vec<u64> = rows
            .flat_map(|(keyspace, row)| {
                let origin = Origin { batch: n, row };
                [self.row_seed(keyspace, origin), self.value_length(keyspace, origin) as u64]
            })
            .collect();
        mix_all(&parts)
    }

    /// The name of the keyspace with this number.
    pub(crate) fn keyspace_name(number: u32) -> String {
        format!("k{number}")
    }

    /// The name of a keyspace that comes and goes.
    pub(crate) fn churn_name(number: u64) -> String {
        format!("tmp{number}")
    }

    /// Scattered, so that tables overlap and compaction has work: a hash, then batch and row, from which the whole can be made
    /// again.
    pub(crate) fn key(&self, origin: Origin) -> [u8; 20] {
        let mut key = [0; 20];
        let row = u32::try_from(origin.row).expect("rows of a batch are counted in u32");
        key[..8].copy_from_slice(&mix_all(&[self.seed, origin.batch, origin.row]).to_be_bytes());
        key[8..16].copy_from_slice(&origin.batch.to_be_bytes());
        key[16..].copy_from_slice(&row.to_be_bytes());
        key
    }

    /// Where a key comes from, if it is one of ours.
    pub(crate) fn origin(&self, key: &[u8]) -> Option<Origin> {
        let batch = u64::from_be_bytes(key.get(8..16)?.try_into().ok()?);
        let row = u64::from(u32::from_be_bytes(key.get(16..)?.try_into().ok()?));
        let origin = Origin { batch, row };
        (batch > 0 && row < u64::from(self.rows) && self.key(origin) == key).then_some(origin)
    }

    /// The value of a row in the keyspace with this number.
    pub(crate) fn value(&self, keyspace: u64, origin: Origin) -> Vec<u8> {
        let length = self.value_length(keyspace, origin);
        Content::new(self.row_seed(keyspace, origin), self.noise).bytes(length)
    }

    /// The row that batch `n` removes.
    pub(crate) fn removed_by(&self, n: u64) -> Option<Origin> {
        let batch = n.checked_sub(self.remove_after?)?;
        (batch > 0).then_some(Origin { batch, row: 0 })
    }

    /// The batch that removes this row, if one up to `n` does.
    pub(crate) fn remover(&self, origin: Origin, n: u64) -> Option<u64> {
        let remover = origin.batch.checked_add(self.remove_after?)?;
        (origin.row == 0 && remover <= n).then_some(remover)
    }

    fn row_seed(&self, keyspace: u64, origin: Origin) -> u64 {
        mix_all(&[self.seed, keyspace, origin.batch, origin.row])
    }

    fn value_length(&self, keyspace: u64, origin: Origin) -> usize {
        if origin.row == 0
            && self.large_every.is_some_and(|every| every > 0 && origin.batch.is_multiple_of(every))
        {
            return self.large_bytes as usize;
        }
        let (from, to) = self.value_bytes;
        let span = u64::from(to.saturating_sub(from)) + 1;
        let beyond = self.row_seed(keyspace, origin) % span;
        from as usize + usize::try_from(beyond).expect("less than the difference of two u32")
    }
}

impl Churn {
    /// The keyspace and the batch within it of a running number (from 1).
    pub(crate) fn place(&self, number: u64) -> (u64, u64) {
        ((number - 1) / self.batches, (number - 1) % self.batches)
    }

    /// The hash of what the batch with this running number writes.
    pub(crate) fn hash(seed: u64, number: u64) -> u64 {
        mix_all(&[seed, number, CHURN])
    }

    /// The value of both its rows.
    pub(crate) fn value(seed: u64, number: u64) -> Vec<u8> {
        Content::new(Self::hash(seed, number), 0.5).bytes(100)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn keys_say_where_they_come_from_and_foreign_ones_do_not(
            batch in 1_u64.., row in 0_u64..4, noise in proptest::collection::vec(any::<u8>(), 0..40),
        ) {
            let load = FjallLoad::default();
            let origin = Origin { batch, row };
            prop_assert_eq!(load.origin(&load.key(origin)), Some(origin));
            prop_assert_eq!(load.origin(&noise), None);
            let other = FjallLoad { seed: 2, ..FjallLoad::default() };
            prop_assert_eq!(other.origin(&load.key(origin)), None);
        }
    }

    #[test]
    fn removal_is_said_alike_from_both_sides() {
        let load = FjallLoad { remove_after: Some(10), ..FjallLoad::default() };
        let standing = 35;
        let removed: Vec<_> = (1..=standing).filter_map(|n| load.removed_by(n)).collect();
        for batch in 1..=standing {
            for row in 0..4 {
                let origin = Origin { batch, row };
                assert_eq!(load.remover(origin, standing).is_some(), removed.contains(&origin), "{origin:?}");
            }
        }
        assert_eq!(removed.len(), 25);
    }

    #[test]
    fn loads_of_other_seeds_or_shapes_have_other_hashes() {
        let load = FjallLoad::default();
        assert_ne!(load.batch_hash(5), load.batch_hash(6));
        for other in [
            FjallLoad { seed: 2, ..load.clone() },
            FjallLoad { rows: 5, ..load.clone() },
            FjallLoad { keyspaces: 3, ..load.clone() },
            FjallLoad { value_bytes: (20, 201), ..load.clone() },
        ] {
            assert_ne!(other.batch_hash(5), load.batch_hash(5), "{other:?}");
        }
    }
}
