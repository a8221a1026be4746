//! What tests and the demo need to prove that a backup is what it says: writers whose every row is a function of a
//! number, ledgers of what they were told is committed, and checkers that compare every row.
//!
//! A writer ([`FjallLoad`], [`SqliteLoad`]) runs in a process of its own and writes a ledger ([`LedgerWriter`]): `begun n` before the
//! commit of transaction n, `acked n` after it. Whoever takes a copy reads the ledger's [`Marks`] before and after. The checker opens
//! the copy, finds the n that the copy stands at, compares every row with the function at n, and [`judge`] says
//! whether n is a lawful answer: nothing acknowledged before is missing, nothing begun after is there.
//! Beside that: [`Inventory`] shows what changed in a directory, [`Process`] kills and stops children, [`FaultStore`] fails on
//! demand, [`ManualClock`] is time in a test's hands, [`Content`] makes data of set entropy.
//!
//! It belongs to no product path: only tests, benchmarks and the program's `demo` may use it. Its functions block, and panic nowhere on
//! what they read.
//!
//! ```
//! use stillframe_testkit::{LedgerWriter, Marks, judge};
//!
//! let dir = tempfile::tempdir()?;
//! let path = dir.path().join("ledger");
//! let mut ledger = LedgerWriter::open(&path)?;
//! ledger.begun(1, 0xfeed)?;
//! let before = Marks::read(&path)?;
//! ledger.acked(1, 0xfeed)?;
//! let after = Marks::read(&path)?;
//! // A copy taken in between may hold transaction 1 or not, but never transaction 2.
//! judge(0, before, after)?;
//! judge(1, before, after)?;
//! assert!(judge(2, before, after).is_err());
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
#![forbid(unsafe_code)]

mod data;
mod digest;
mod fault_store;
mod fjall_check;
mod fjall_load;
mod fjall_writer;
mod inventory;
mod ledger;
mod manual_clock;
mod oracle;
mod process;
mod scratch_copy;
mod splitmix;
mod sqlite_load;
mod sqlite_writer;
mod stop;
mod write_files;

pub use data::Content;
pub use digest::{Detail, tree_digest};
pub use fault_store::{Effect, Fault, FaultStore, Operation};
pub use fjall_check::LoadMarks;
pub use fjall_load::{Churn, FjallLoad};
pub use fjall_writer::WriteError;
pub use inventory::{Aspect, Change, Inventory};
pub use ledger::{Entry, LedgerError, LedgerWriter, Marks};
pub use manual_clock::ManualClock;
pub use oracle::{Violation, judge};
pub use process::{Process, ProcessError};
pub use scratch_copy::ScratchCopy;
pub use sqlite_load::{JournalMode, SqliteLoad};
pub use stop::{Stop, WriterReport};
pub use write_files::{change_files, write_files};
