//! When a writer stops, and what it says then.

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// When a writer stops of its own accord. With neither it runs until it is killed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Stop {
    /// After the transaction with this number.
    pub at: Option<u64>,
    /// When this file appears.
    pub file: Option<PathBuf>,
}

impl Stop {
    /// After the transaction `number`.
    pub fn at(number: u64) -> Self {
        Self { at: Some(number), file: None }
    }

    /// Whether a writer that has done `number` stops now. Looks at the file system only now and then.
    pub(crate) fn now(&self, number: u64) -> bool {
        self.at.is_some_and(|at| number >= at)
            || (number.is_multiple_of(16) && self.file.as_ref().is_some_and(|file| file.exists()))
    }
}

/// What a writer did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct WriterReport {
    /// The last transaction.
    pub last: u64,
    /// Transactions in this run.
    pub transactions: u64,
    /// Attempts that failed because the database was busy and were made again.
    pub busy: u64,
    /// How long the run took.
    pub took: Duration,
    /// The longest time that one commit took.
    pub longest_commit: Duration,
}
