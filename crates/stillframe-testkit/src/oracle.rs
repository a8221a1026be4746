//! The last word on a copy.

use crate::Marks;

/// What is wrong with a copy, precisely.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// The engine refuses it.
    #[error("the engine cannot read the copy: {0}")]
    Unreadable(String),
    /// The engine's own check complains.
    #[error("the engine's own check says: {0}")]
    Integrity(String),
    /// A part (keyspace, table) is not there.
    #[error("{part} is missing")]
    PartMissing {
        /// Its name.
        part: String,
    },
    /// A part is there that must not be.
    #[error("{part} is there and must not be: {why}")]
    PartUnexpected {
        /// Its name.
        part: String,
        /// What speaks against it.
        why: String,
    },
    /// A transaction is in one part and not in another: parts stand at different numbers.
    #[error("a transaction is torn: {}", .standings.iter().map(|(part, n)| format!("{part} stands at {n}")).collect::<Vec<_>>().join(", "))]
    Torn {
        /// Each part and the number that it stands at.
        standings: Vec<(String, u64)>,
    },
    /// A row that an earlier transaction wrote is gone.
    #[error(
        "hole in {part}: row {row} of transaction {transaction} is missing ({missing} rows in all; the copy stands at {standing})"
    )]
    Hole {
        /// Where.
        part: String,
        /// The first transaction with a missing row.
        transaction: u64,
        /// The row within it.
        row: u64,
        /// How many rows are missing in this part.
        missing: u64,
        /// The number that the copy stands at.
        standing: u64,
    },
    /// A row has another value than its transaction wrote.
    #[error("{part}: row {row} of transaction {transaction} has a wrong value: {found}")]
    WrongValue {
        /// Where.
        part: String,
        /// The transaction that wrote it last.
        transaction: u64,
        /// The row within it.
        row: u64,
        /// What is there instead.
        found: String,
    },
    /// A row of a transaction after the one that the copy stands at.
    #[error("{part}: a row of transaction {transaction} is there, but the copy stands at {standing}")]
    FromTheFuture {
        /// Where.
        part: String,
        /// The transaction.
        transaction: u64,
        /// The number that the copy stands at.
        standing: u64,
    },
    /// A row that a transaction removed is there again.
    #[error(
        "{part}: row {row} of transaction {transaction} was removed by transaction {removed_by} and is there again"
    )]
    Undead {
        /// Where.
        part: String,
        /// The transaction that wrote it.
        transaction: u64,
        /// The row within it.
        row: u64,
        /// The transaction that removed it.
        removed_by: u64,
    },
    /// A row that no transaction wrote.
    #[error("{part}: there is a row that no transaction wrote: {row}")]
    Foreign {
        /// Where.
        part: String,
        /// Its key.
        row: String,
    },
    /// Acknowledged before the copy began, and not in it.
    #[error(
        "lost: transaction {acked} was acknowledged before the copy began, but the copy stands at {found}"
    )]
    Lost {
        /// Where the copy stands.
        found: u64,
        /// What was acknowledged.
        acked: u64,
    },
    /// In the copy, and begun only after the copy ended.
    #[error("the copy stands at {found}, but when it ended only transaction {begun} had begun")]
    NotBegun {
        /// Where the copy stands.
        found: u64,
        /// What had begun.
        begun: u64,
    },
}

/// Whether a copy that stands at `found`, as a checker says after comparing every row, is lawful: it holds everything that was
/// acknowledged `before` it began and nothing that was begun `after` it ended.
pub fn judge(found: u64, before: Marks, after: Marks) -> Result<(), Violation> {
    if found < before.acked {
        return Err(Violation::Lost { found, acked: before.acked });
    }
    if found > after.begun {
        return Err(Violation::NotBegun { found, begun: after.begun });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_lies_between_acknowledged_before_and_begun_after_is_lawful() {
        let before = Marks { begun: 11, acked: 10, acked_hash: 0 };
        let after = Marks { begun: 15, acked: 14, acked_hash: 0 };
        for found in 0..20 {
            let expected = match found {
                0..10 => Err(Violation::Lost { found, acked: 10 }),
                10..=15 => Ok(()),
                _ => Err(Violation::NotBegun { found, begun: 15 }),
            };
            assert_eq!(judge(found, before, after), expected);
        }
    }
}
