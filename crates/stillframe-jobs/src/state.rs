//! The states of a job and the ways between them.

use std::fmt;
use std::str::FromStr;

/// A phase of work. A job passes through some or all of them, in this order, never back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Phase {
    /// Options are checked, places are opened.
    Started,
    /// The source is being held still.
    Capturing,
    /// Bytes go from one place to the other; a verification reads here.
    Transferring,
    /// The result is being made visible, whole.
    Sealing,
}

/// Where a job stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum State {
    /// At work.
    Working(Phase),
    /// Told to stop; its tasks are still being joined.
    Cancelling,
    /// Stopped as told: nothing runs any more, nothing temporary is left.
    Cancelled,
    /// Ended with an error, or its process ended.
    Failed,
    /// Did what it was asked.
    Succeeded,
}

impl Phase {
    /// All of them, in order.
    pub const ALL: [Self; 4] = [Self::Started, Self::Capturing, Self::Transferring, Self::Sealing];

    /// The name, as it is stored and shown.
    pub fn name(self) -> &'static str {
        match self {
            Self::Started => "started",
            Self::Capturing => "capturing",
            Self::Transferring => "transferring",
            Self::Sealing => "sealing",
        }
    }
}

impl State {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::Working(Phase::Started),
        Self::Working(Phase::Capturing),
        Self::Working(Phase::Transferring),
        Self::Working(Phase::Sealing),
        Self::Cancelling,
        Self::Cancelled,
        Self::Failed,
        Self::Succeeded,
    ];

    /// The name, as it is stored and shown.
    pub fn name(self) -> &'static str {
        match self {
            Self::Working(phase) => phase.name(),
            Self::Cancelling => "cancelling",
            Self::Cancelled => "cancelled",
            Self::Failed => "failed",
            Self::Succeeded => "succeeded",
        }
    }

    /// Whether nothing can follow.
    pub fn is_ended(self) -> bool {
        matches!(self, Self::Cancelled | Self::Failed | Self::Succeeded)
    }

    /// Whether `next` may follow directly. Phases may be left out (a restore captures nothing) but not repeated.
    ///
    /// A job that is cancelling may still succeed: when the word came after the result was visible, the result is there
    /// and saying otherwise would be a lie.
    pub fn may_become(self, next: Self) -> bool {
        match (self, next) {
            (Self::Working(now), Self::Working(then)) => now < then,
            (Self::Working(_), Self::Cancelling | Self::Failed | Self::Succeeded)
            | (Self::Cancelling, Self::Cancelled | Self::Failed | Self::Succeeded) => true,
            _ => false,
        }
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A name that is no state's. The history was written by another program.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not the state of a job")]
pub struct UnknownState(pub String);

impl FromStr for State {
    type Err = UnknownState;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        Self::ALL.into_iter().find(|state| state.name() == name).ok_or_else(|| UnknownState(name.to_owned()))
    }
}

impl FromStr for Phase {
    type Err = UnknownState;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        Self::ALL.into_iter().find(|phase| phase.name() == name).ok_or_else(|| UnknownState(name.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn any_state() -> impl Strategy<Value = State> {
        proptest::sample::select(State::ALL.to_vec())
    }

    proptest! {
        #[test]
        fn every_legal_walk_only_goes_forward_and_stops_at_an_end(steps in proptest::collection::vec(any_state(), 0..40)) {
            let mut state = State::Working(Phase::Started);
            let mut walked = vec![state];
            for next in steps {
                if state.may_become(next) {
                    prop_assert!(!state.is_ended(), "{state} is an end but {next} followed");
                    prop_assert!(!walked.contains(&next), "{next} came twice in {walked:?}");
                    prop_assert!(next != State::Cancelled || state == State::Cancelling);
                    if state == State::Cancelling {
                        prop_assert!(next.is_ended(), "work went on after a cancel: {next}");
                    }
                    state = next;
                    walked.push(next);
                }
            }
            let phases: Vec<_> = walked.iter().filter_map(|s| match s { State::Working(p) => Some(*p), _ => None }).collect();
            prop_assert!(phases.is_sorted());
        }
    }

    #[test]
    fn names_read_back_and_others_are_refused() {
        for state in State::ALL {
            assert_eq!(state.name().parse(), Ok(state));
        }
        for phase in Phase::ALL {
            assert_eq!(phase.name().parse(), Ok(phase));
        }
        assert_eq!("running".parse::<State>(), Err(UnknownState("running".into())));
    }

    #[test]
    fn every_state_that_is_not_an_end_can_still_fail() {
        for state in State::ALL {
            assert_eq!(state.may_become(State::Failed), !state.is_ended(), "{state}");
        }
    }
}
