//! Known mistakes, made on purpose, to show that the tests would notice them.

use std::time::Duration;

/// What a capture does wrong. Each of these produced images that the engine opened without complaint and that lacked
/// writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Sabotage {
    /// Nothing.
    #[default]
    None,
    /// Nothing either, but slow at every step: what is right does not depend on speed.
    #[cfg(test)]
    Slowly,
    /// Logs are pinned oldest first, with a pause after each.
    LogsOldestFirst,
    /// The directory is listed once, however many system calls that takes.
    LogsListedOnce,
    /// Recycled logs are treated like others: copied by their length some time after acceptance.
    RecycledLogsLate,
    /// A log directory without logs is taken for a database without unflushed writes.
    NoLogsAccepted,
    /// Pointers are read once, and whatever is found after a pause is accepted.
    NoSecondLook,
    /// Tables are held by open handles for some seconds, and copied as far as they still go.
    HandlesInsteadOfLinks,
    /// The end of a recycled log is taken to be at the first header of zeros.
    #[cfg_attr(
        not(any(test, feature = "sabotage")),
        expect(dead_code, reason = "made by tests and by the environment of sabotaged builds only")
    )]
    ZeroHeaderEndsLog,
}

impl Sabotage {
    /// `STILLFRAME_SABOTAGE`, in builds that have the feature.
    #[cfg(feature = "sabotage")]
    pub(crate) fn from_environment() -> Self {
        match std::env::var("STILLFRAME_SABOTAGE").as_deref() {
            Ok("oldest-first-logs") => Self::LogsOldestFirst,
            Ok("logs-listed-once") => Self::LogsListedOnce,
            Ok("late-recycled-logs") => Self::RecycledLogsLate,
            Ok("wrong-log-dir") => Self::NoLogsAccepted,
            Ok("no-second-look") => Self::NoSecondLook,
            Ok("handles") => Self::HandlesInsteadOfLinks,
            Ok("stop-at-zero-header") => Self::ZeroHeaderEndsLog,
            _ => Self::None,
        }
    }

    /// Nothing, in builds for use.
    #[cfg(not(feature = "sabotage"))]
    pub(crate) fn from_environment() -> Self {
        Self::None
    }

    /// Dawdles where this mistake does.
    pub(crate) fn pause(self, at: Self) {
        #[cfg(test)]
        if self == Self::Slowly {
            return std::thread::sleep(Duration::from_millis(2));
        }
        if self != at {
            return;
        }
        std::thread::sleep(match self {
            Self::LogsOldestFirst => Duration::from_millis(30),
            Self::RecycledLogsLate => Duration::from_millis(500),
            Self::NoSecondLook => Duration::from_millis(300),
            Self::HandlesInsteadOfLinks => Duration::from_millis(2000),
            _ => Duration::ZERO,
        });
    }
}
