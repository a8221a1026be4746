//! How long a job may stay in a state.

use std::time::Duration;

use crate::{Phase, State};

/// How long one state may last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Limit {
    /// From entering the state.
    Total(Duration),
    /// From the last progress (or entering), however long the whole takes: for work whose size is the user's.
    WithoutProgress(Duration),
}

/// A limit for each state that is not an end. When a phase's limit passes, the job's token is cancelled and the job ends as
/// failed. Passing the limit of `cancelling` only shows ([`crate::Record::overdue`]): nobody can join tasks for the owner.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Deadlines {
    /// Of [`Phase::Started`].
    pub started: Limit,
    /// Of [`Phase::Capturing`].
    pub capturing: Limit,
    /// Of [`Phase::Transferring`].
    pub transferring: Limit,
    /// Of [`Phase::Sealing`].
    pub sealing: Limit,
    /// Of [`State::Cancelling`].
    pub cancelling: Limit,
}

impl Default for Deadlines {
    fn default() -> Self {
        Self {
            started: Limit::Total(Duration::from_mins(10)),
            capturing: Limit::WithoutProgress(Duration::from_hours(1)),
            transferring: Limit::WithoutProgress(Duration::from_hours(1)),
            sealing: Limit::WithoutProgress(Duration::from_hours(1)),
            cancelling: Limit::Total(Duration::from_mins(10)),
        }
    }
}

impl Deadlines {
    /// The limit of `state`; none for an end.
    pub fn of(&self, state: State) -> Option<Limit> {
        match state {
            State::Working(Phase::Started) => Some(self.started),
            State::Working(Phase::Capturing) => Some(self.capturing),
            State::Working(Phase::Transferring) => Some(self.transferring),
            State::Working(Phase::Sealing) => Some(self.sealing),
            State::Cancelling => Some(self.cancelling),
            State::Cancelled | State::Failed | State::Succeeded => None,
        }
    }
}

impl Limit {
    /// The moment at which it passes, on the clock that `entered` and `progressed` were read from.
    pub(crate) fn passes_at(self, entered: Duration, progressed: Duration) -> Duration {
        match self {
            Self::Total(limit) => entered.saturating_add(limit),
            Self::WithoutProgress(limit) => entered.max(progressed).saturating_add(limit),
        }
    }

    /// The length.
    pub fn length(self) -> Duration {
        match self {
            Self::Total(limit) | Self::WithoutProgress(limit) => limit,
        }
    }
}
