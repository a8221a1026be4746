//! Jobs: what a long piece of work is doing, how far it is, who owns it and how it ended.
//!
//! A [`Job`] moves through [`State`]s, carries a cancellation token, measures progress ([`ProgressMeter`]) and writes
//! itself into a [`History`], a SQLite file that several processes share. A row names the process that owns it; rows whose
//! owner is gone are repaired when somebody opens the history, so nothing looks running for ever. The history explains, it
//! does not decide: when it cannot be written the work goes on, and what a job made is judged by what it made.
//!
//! What the work is, it does not know: kinds and subjects are text, outcomes are JSON. It starts no work, has no runtime,
//! and bounds nothing by itself: [`CpuShare`] says how many workers and how long they rest, the caller does so.
//!
//! ```
//! use std::sync::Arc;
//! use stillframe_jobs::{History, Phase, Progress, State};
//! use stillframe_storage::SystemClock;
//!
//! let history = History::in_memory(Arc::new(SystemClock::new()))?;
//! let job = history.start("create", "rocksdb:/var/lib/node/db");
//! let id = job.id().expect("a history in memory takes every job");
//! job.enter(Phase::Transferring)?;
//! job.progress(&Progress { bytes_done: 5, bytes_total: Some(10), ..Progress::new(Phase::Transferring) });
//! if job.token().is_cancelled() {
//!     // Join every task and remove temporary files, then say so.
//!     job.cancelled();
//! } else {
//!     job.succeed(serde_json::json!({ "bytes": 10 }));
//! }
//! assert_eq!(history.get(id)?.expect("it was recorded").state, State::Succeeded);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
#![forbid(unsafe_code)]

mod cpu_share;
mod deadlines;
mod heartbeat;
mod history;
mod history_file;
mod job;
mod owner;
mod progress;
mod progress_meter;
mod record;
mod state;

pub use cpu_share::{CpuPercent, CpuPercentError, CpuShare, Pace, ThreadTime};
pub use deadlines::{Deadlines, Limit};
pub use history::{History, Opening};
pub use history_file::{HistoryError, SetAside};
pub use job::{Canceller, EnterError, Job, JobOptions, StopReason};
pub use owner::{Liveness, Owner};
pub use progress::Progress;
pub use progress_meter::{ProgressMeter, Reading};
pub use record::{JobFailure, JobId, Record};
pub use state::{Phase, State, UnknownState};
