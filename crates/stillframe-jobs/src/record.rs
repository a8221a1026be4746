//! One row of the history.

use std::fmt;
use std::str::FromStr;

use jiff::Timestamp;
use rusqlite::types::Type;
use rusqlite::{Connection, Row};

use crate::{Liveness, Owner, Phase, Progress, State};

/// The number of a job within one history; never used twice there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct JobId(pub(crate) i64);

impl JobId {
    /// As a number.
    pub fn get(self) -> i64 {
        self.0
    }
}

impl fmt::Display for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for JobId {
    type Err = JobIdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.parse().map(Self).map_err(|_| JobIdError(text.to_owned()))
    }
}

/// A number that is none. Give one that the history shows.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not the number of a job: give a whole number, as the history shows it")]
pub struct JobIdError(String);

/// Why a job failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JobFailure {
    /// For programs: the caller's own word, or `owner-gone`, `no-outcome`, `deadline`.
    pub kind: String,
    /// For people.
    pub text: String,
}

/// What the history knows of one job.
#[derive(Debug, Clone, PartialEq)]
pub struct Record {
    /// Its number.
    pub id: JobId,
    /// What sort of work: the caller's word (`create`, `restore`, `verify`).
    pub kind: String,
    /// What it works on, for people.
    pub subject: String,
    /// Where it stands.
    pub state: State,
    /// Each state it went through and when it was entered, in that order.
    pub history: Vec<(State, Timestamp)>,
    /// The newest numbers; of the phase that it was last in.
    pub progress: Progress,
    /// Bytes per second when the numbers were written.
    pub bytes_per_second: u64,
    /// The part that is done, 0 to 1; 1 only when it succeeded.
    pub fraction: f64,
    /// Why it failed.
    pub failure: Option<JobFailure>,
    /// What it made, as its caller put it.
    pub outcome: Option<serde_json::Value>,
    /// The process that it belongs to.
    pub owner: Owner,
    /// When it was started.
    pub started: Timestamp,
    /// When it ended.
    pub ended: Option<Timestamp>,
    /// When its process last said that it lives.
    pub heartbeat: Timestamp,
    /// When the limit of its present state passes.
    pub deadline: Option<Timestamp>,
    /// When another process asked it to stop.
    pub cancel_requested: Option<Timestamp>,
}

impl Record {
    /// Whether it has stayed in its state for longer than it may.
    pub fn overdue(&self, now: Timestamp) -> bool {
        !self.state.is_ended() && self.deadline.is_some_and(|deadline| now > deadline)
    }

    /// Whether its process lives, as far as can be seen from here.
    pub fn liveness(&self) -> Liveness {
        self.owner.liveness(&Owner::this_process())
    }

    /// The columns that [`Self::from_row`] reads, in its order.
    pub(crate) const COLUMNS: &str = "id, kind, subject, state, phase, files_done, files_total, bytes_done, \
        bytes_total, bytes_per_second, fraction, error_kind, error_text, outcome, owner_pid, owner_start, owner_boot, \
        owner_namespace, started_ms, ended_ms, heartbeat_ms, deadline_ms, cancel_ms";

    /// All but the history of states, which [`Self::read_history`] adds.
    pub(crate) fn from_row(row: &Row<'_>) -> rusqlite::Result<Self> {
        let kind: Option<String> = row.get(11)?;
        let text: Option<String> = row.get(12)?;
        let outcome: Option<String> = row.get(13)?;
        Ok(Self {
            id: JobId(row.get(0)?),
            kind: row.get(1)?,
            subject: row.get(2)?,
            state: parsed(row, 3)?,
            history: Vec::new(),
            progress: Progress {
                phase: parsed::<Phase>(row, 4)?,
                files_done: unsigned(row.get(5)?),
                files_total: row.get::<_, Option<i64>>(6)?.map(unsigned),
                bytes_done: unsigned(row.get(7)?),
                bytes_total: row.get::<_, Option<i64>>(8)?.map(unsigned),
            },
            bytes_per_second: unsigned(row.get(9)?),
            fraction: row.get(10)?,
            failure: kind.zip(text).map(|(kind, text)| JobFailure { kind, text }),
            outcome: outcome
                .map(|text| serde_json::from_str(&text))
                .transpose()
                .map_err(|e| malformed(13, e))?,
            owner: Owner {
                pid: row.get(14)?,
                start_time: row.get::<_, Option<i64>>(15)?.map(unsigned),
                boot_id: row.get(16)?,
                namespace: row.get(17)?,
            },
            started: timestamp(18, row.get(18)?)?,
            ended: row.get::<_, Option<i64>>(19)?.map(|ms| timestamp(19, ms)).transpose()?,
            heartbeat: timestamp(20, row.get(20)?)?,
            deadline: row.get::<_, Option<i64>>(21)?.map(|ms| timestamp(21, ms)).transpose()?,
            cancel_requested: row.get::<_, Option<i64>>(22)?.map(|ms| timestamp(22, ms)).transpose()?,
        })
    }

    pub(crate) fn read_history(&mut self, connection: &Connection) -> rusqlite::Result<()> {
        let mut statement = connection
            .prepare_cached("SELECT state, at_ms FROM transitions WHERE job = ?1 ORDER BY number")?;
        let rows =
            statement.query_map([self.id.0], |row| Ok((parsed(row, 0)?, timestamp(1, row.get(1)?)?)))?;
        self.history = rows.collect::<rusqlite::Result<_>>()?;
        Ok(())
    }
}

fn malformed(column: usize, error: impl std::error::Error + Send + Sync + 'static) -> rusqlite::Error {
    rusqlite::Error::FromSqlConversionFailure(column, Type::Text, Box::new(error))
}

fn parsed<T: FromStr>(row: &Row<'_>, column: usize) -> rusqlite::Result<T>
where
    T::Err: std::error::Error + Send + Sync + 'static,
{
    row.get::<_, String>(column)?.parse().map_err(|e| malformed(column, e))
}

fn timestamp(column: usize, ms: i64) -> rusqlite::Result<Timestamp> {
    Timestamp::from_millisecond(ms).map_err(|e| malformed(column, e))
}

/// SQLite's integers are signed; ours count.
fn unsigned(value: i64) -> u64 {
    u64::try_from(value).unwrap_or(0)
}

/// The other way: what does not fit is the largest that does.
pub(crate) fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}
