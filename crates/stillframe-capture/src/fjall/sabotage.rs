//! Known mistakes, made on purpose.

use std::path::Path;
use std::time::Duration;

/// What a capture does wrong, so that a test can show that it would notice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Sabotage {
    /// Nothing.
    #[default]
    None,
    /// Accepts without comparing the pointers again, after a pause between tables and journals.
    NoSecondLook,
    /// Copies the journals some time after the window, by their length.
    #[cfg_attr(not(any(test, feature = "sabotage")), expect(dead_code, reason = "made on purpose only"))]
    LateJournals,
    /// Takes the end of the last data extent for the end of the journal, after the window.
    #[cfg_attr(not(any(test, feature = "sabotage")), expect(dead_code, reason = "made on purpose only"))]
    BlockRoundedEnds,
}

impl Sabotage {
    /// Dawdles, so that the source has time to move on.
    #[cfg(not(test))]
    pub(super) fn dawdle(self, _database: &Path) {
        std::thread::sleep(match self {
            Self::None => Duration::ZERO,
            Self::NoSecondLook => Duration::from_millis(2500),
            Self::LateJournals | Self::BlockRoundedEnds => Duration::from_millis(400),
        });
    }

    /// Dawdles until the test has done what this capture is to miss: the test waits for `DATABASE.dawdling` and makes
    /// `DATABASE.go`.
    #[cfg(test)]
    pub(super) fn dawdle(self, database: &Path) {
        std::fs::write(database.with_extension("dawdling"), format!("{self:?}"))
            .expect("a test's directory is writable");
        while !database.with_extension("go").exists() {
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// `STILLFRAME_SABOTAGE`, in builds that have the feature.
    #[cfg(feature = "sabotage")]
    pub(super) fn from_environment() -> Self {
        match std::env::var("STILLFRAME_SABOTAGE").as_deref() {
            Ok("fjall-no-second-look" | "no-second-look") => Self::NoSecondLook,
            Ok("fjall-late-journals" | "late-journals") => Self::LateJournals,
            Ok("fjall-block-rounded-ends" | "block-rounded-ends") => Self::BlockRoundedEnds,
            _ => Self::None,
        }
    }

    /// Nothing, in builds for use.
    #[cfg(not(feature = "sabotage"))]
    pub(super) fn from_environment() -> Self {
        Self::None
    }
}
